package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Image returns the root file system that guests are made over. The first call on a machine makes it, by build-image.sh,
// in .deps/guest of this repository: 25 s and 400 MB. Test processes that call it side by side wait for each other.
func Image(ctx context.Context) (dir string, err error) {
	repository, err := repositoryRoot()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(repository, ".deps", "guest")
	cmd := exec.CommandContext(ctx, filepath.Join(repository, "tests", "guest", "build-image.sh"), parent)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the guests' image: %w: %s", err, bytes.TrimSpace(out))
	}
	return filepath.Join(parent, "root"), nil
}

// repositoryRoot is the directory of this module's go.mod, at or above the working directory.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		file, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(file), "module github.com/lxd-recover/lxd-recover\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the working directory is not in the repository of lxd-recover")
		}
		dir = filepath.Dir(dir)
	}
}
