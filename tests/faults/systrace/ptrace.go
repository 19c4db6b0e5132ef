// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// callInfo is what PTRACE_GET_SYSCALL_INFO returns: struct ptrace_syscall_info of linux/ptrace.h.
type callInfo struct {
	op     uint8
	_      [3]uint8
	arch   uint32
	ip, sp uint64
	number uint64
	args   [6]uint64
	_      [4]uint64 // room for what newer kernels add
}

func syscallInfo(tid int) (*callInfo, error) {
	info := &callInfo{}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(*info), uintptr(unsafe.Pointer(info)), 0, 0)
	if errno != 0 {
		return nil, errno
	}

	return info, nil
}

// skip turns the call that a thread is about to make into none, which returns an error.
func skip(tid int, errno unix.Errno) error {
	return changeRegisters(tid, func(r *unix.PtraceRegs) { r.Orig_rax, r.Rax = noCall, -uint64(errno) })
}

// noCall is the number of no system call.
const noCall = ^uint64(0)

// setResult makes the call that a thread returns from return an error.
func setResult(tid int, errno unix.Errno) error {
	return changeRegisters(tid, func(r *unix.PtraceRegs) { r.Rax = -uint64(errno) })
}

func changeRegisters(tid int, change func(*unix.PtraceRegs)) error {
	var regs unix.PtraceRegs
	err := unix.PtraceGetRegs(tid, &regs)
	if err != nil {
		return err
	}

	change(&regs)
	return unix.PtraceSetRegs(tid, &regs)
}
