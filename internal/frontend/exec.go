// SPDX-License-Identifier: AGPL-3.0-only

package frontend

// #include "inherited.h"
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Exec replaces this process by program, which finds everything as this process found it: all arguments, argv[0] included, the
// environment byte for byte, open files, ignored and blocked signals. Of the limits Go changes one, that of open files, and
// syscall.Exec puts it back. Only where the program cannot be started does Exec return.
//
// Call it before anything installs signal handlers or changes the environment.
func Exec(program string) error {
	env := environment()
	runtime.LockOSThread() // the signal mask is the thread's
	defer runtime.UnlockOSThread()

	C.inherited_restore()
	err := syscall.Exec(program, os.Args, env)
	return fmt.Errorf("run %s: %w", program, err)
}

func environment() []string {
	var env []string
	size := unsafe.Sizeof(*C.inherited_environment)
	for p := C.inherited_environment; *p != nil; p = (**C.char)(unsafe.Add(unsafe.Pointer(p), size)) {
		env = append(env, C.GoString(*p))
	}

	return env
}
