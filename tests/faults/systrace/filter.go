// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// What seccomp does with a call: linux/seccomp.h.
const (
	seccompTrace = 0x7ff00000
	seccompAllow = 0x7fff0000
)

// filter is the program that seccomp runs at each call, in the kernel: those that are of no interest pass, all others stop the
// thread. Which are of interest is for describe to tell; what has no rule stops, too.
func filter(reads bool) []unix.SockFilter {
	var pass []int
	for number, rule := range rules {
		if rule.kind == Other || rule.kind == Read && !reads {
			pass = append(pass, number)
		}
	}

	slices.Sort(pass)
	const numberOffset = 0 // of struct seccomp_data
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: numberOffset}}
	for i, number := range pass {
		toAllow := uint8(len(pass) - i) // instructions to jump over
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jt: toAllow})
	}

	return append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: seccompTrace},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: seccompAllow})
}

// installFilter makes a program that has not run yet install the filter for itself: its first system call is replaced by
// seccomp(2), with arguments put into unused room on its stack, and made when that has returned.
func installFilter(pid int, reads bool) error {
	var ws syscall.WaitStatus
	next := func() error {
		err := unix.PtraceSyscall(pid, 0)
		if err == nil {
			_, err = wait(pid, &ws)
		}

		if err == nil && (!ws.Stopped() || ws.StopSignal() != unix.SIGTRAP|0x80) {
			err = fmt.Errorf("the program does not make a system call: %#x", ws)
		}

		return err
	}
	err := next()
	if err != nil {
		return err
	}

	var first unix.PtraceRegs
	err = unix.PtraceGetRegs(pid, &first)
	if err != nil {
		return err
	}

	const room = 8192 // bytes below the stack pointer
	program := uintptr(first.Rsp-room) &^ 15
	call := first
	call.Orig_rax, call.Rdi, call.Rsi, call.Rdx = unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uint64(program)
	_, err = unix.PtracePokeData(pid, program, encode(filter(reads), uint64(program)+16))
	if err == nil {
		err = unix.PtraceSetRegs(pid, &call)
	}

	if err == nil {
		err = next()
	}

	if err == nil {
		err = unix.PtraceGetRegs(pid, &call)
	}

	if err != nil {
		return err
	}

	if call.Rax != 0 {
		return fmt.Errorf("seccomp: %w", unix.Errno(-call.Rax))
	}

	const instruction = 2 // bytes of the instruction `syscall`
	first.Rip -= instruction
	first.Rax, first.Orig_rax = first.Orig_rax, noCall
	return unix.PtraceSetRegs(pid, &first)
}

// encode returns a struct sock_fprog of 16 bytes, and after it the instructions, which are to be at the address given.
func encode(program []unix.SockFilter, address uint64) []byte {
	data := binary.LittleEndian.AppendUint64(nil, uint64(len(program)))
	data = binary.LittleEndian.AppendUint64(data, address)
	for _, in := range program {
		data = binary.LittleEndian.AppendUint16(data, in.Code)
		data = append(data, in.Jt, in.Jf)
		data = binary.LittleEndian.AppendUint32(data, in.K)
	}

	return data
}
