// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// program is a file of this program, for one architecture.
type program struct {
	path   string
	arch   string // Go's name
	digest string // SHA-256
	size   int64
}

// itself is the program that runs, even where its file has another name by now.
const itself = "/proc/self/exe"

// programs are those that can be carried along: this one and what the options name, which goes first, by the name that uname -m
// has for the machine.
func programs(binaries map[string]string) (map[string]program, error) {
	all := map[string]program{}
	own, err := measured(itself)
	if err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}

	own.arch = runtime.GOARCH
	all[machines[own.arch]] = own
	for arch, path := range binaries {
		machine, known := machines[arch]
		if !known {
			return nil, fmt.Errorf("--binary %s=%s: %q is no architecture that Go knows; amd64 and arm64 are", arch, path, arch)
		}

		p, err := measured(path)
		if err == nil {
			err = p.runsOn(arch)
		}

		if err != nil {
			return nil, fmt.Errorf("--binary %s=%s: %w", arch, path, err)
		}

		p.arch = arch
		all[machine] = p
	}

	return all, nil
}

// specs are programs as rootScript wants them.
func specs(all map[string]program) []string {
	var list []string
	for machine, p := range all {
		list = append(list, fmt.Sprintf("%s=%s=%d", machine, p.digest, p.size))
	}

	slices.Sort(list)
	return list
}

// sums has what measured has found, by path: twenty connections need the same one.
var sums sync.Map

// measured reads a program once in this process.
func measured(path string) (program, error) {
	once, _ := sums.LoadOrStore(path, sync.OnceValues(func() (program, error) { return measure(path) }))
	return once.(func() (program, error))()
}

func measure(path string) (program, error) {
	file, err := newfile.Open(path)
	if err != nil {
		return program{}, err
	}

	defer file.Close()

	sum := sha256.New()
	n, err := io.Copy(sum, file)
	return program{path: path, digest: hex.EncodeToString(sum.Sum(nil)), size: n}, err
}

// elfMachines are the numbers of architectures in a program's header.
var elfMachines = map[string]elf.Machine{
	"386": elf.EM_386, "amd64": elf.EM_X86_64, "arm": elf.EM_ARM, "arm64": elf.EM_AARCH64, "loong64": elf.EM_LOONGARCH,
	"ppc64le": elf.EM_PPC64, "riscv64": elf.EM_RISCV, "s390x": elf.EM_S390,
}

// runsOn makes sure that a program is one for that architecture.
func (p program) runsOn(arch string) error {
	file, err := elf.Open(p.path)
	if err != nil {
		return errors.New("this is no program for Linux")
	}

	defer file.Close()

	if file.Machine != elfMachines[arch] {
		return fmt.Errorf("this is a program for another architecture (%s)", file.Machine)
	}

	return nil
}
