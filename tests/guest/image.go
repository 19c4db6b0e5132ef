// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/lxd-recover/lxd-recover/tests/repository"
)

// Image returns the root file system that guests are made over. The first call on a machine makes it, by build-image.sh,
// in .deps/guest of this repository: 25 s and 400 MB. Test processes that call it side by side wait for each other.
func Image(ctx context.Context) (dir string, err error) {
	repository, err := repository.Root()
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
