// SPDX-License-Identifier: AGPL-3.0-only

//go:build linux && amd64

package systrace

import "golang.org/x/sys/unix"

// operand says which arguments of a call name a file: a descriptor, a path, or a path relative to a descriptor. -1: none.
type operand struct {
	fd, path int
	control  bool // fd is the number of the argument that points to a control block's address: struct iocb of linux/aio_abi.h
}

var (
	fd0   = operand{fd: 0, path: -1}
	fd2   = operand{fd: 2, path: -1}
	fd4   = operand{fd: 4, path: -1}
	path0 = operand{fd: -1, path: 0}
	path1 = operand{fd: -1, path: 1}
	at0   = operand{fd: 0, path: 1}
	at1   = operand{fd: 1, path: 2}
	at2   = operand{fd: 2, path: 3}
	iocb2 = operand{fd: 2, path: -1, control: true}
)

// rule is what is known of a system call.
type rule struct {
	name  string
	kind  Kind
	files []operand
}

// rules has every call that a program may make. All others end its run: see Run.
var rules = makeRules()

// groups are the calls by what they do, and to which of their arguments.
var groups = []struct {
	kind  Kind
	files []operand
	calls map[int]string
}{
	{Change, []operand{path0}, map[int]string{
		unix.SYS_MKDIR: "mkdir", unix.SYS_RMDIR: "rmdir", unix.SYS_UNLINK: "unlink", unix.SYS_CHMOD: "chmod", unix.SYS_CHOWN: "chown",
		unix.SYS_LCHOWN: "lchown", unix.SYS_TRUNCATE: "truncate", unix.SYS_UTIME: "utime", unix.SYS_UTIMES: "utimes", unix.SYS_CREAT: "creat",
		unix.SYS_MKNOD: "mknod", unix.SYS_SETXATTR: "setxattr", unix.SYS_LSETXATTR: "lsetxattr", unix.SYS_REMOVEXATTR: "removexattr",
		unix.SYS_LREMOVEXATTR: "lremovexattr"}},
	{Change, []operand{path0, path1}, map[int]string{unix.SYS_RENAME: "rename", unix.SYS_LINK: "link"}},
	{Change, []operand{path1}, map[int]string{unix.SYS_SYMLINK: "symlink"}},
	{Change, []operand{at0}, map[int]string{
		unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2",
		unix.SYS_FCHOWNAT: "fchownat", unix.SYS_UTIMENSAT: "utimensat", unix.SYS_FUTIMESAT: "futimesat", unix.SYS_MKNODAT: "mknodat"}},
	{Change, []operand{at0, at2}, map[int]string{
		unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat"}},
	{Change, []operand{at1}, map[int]string{unix.SYS_SYMLINKAT: "symlinkat"}},
	{Change, []operand{fd0}, map[int]string{
		unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_PWRITEV: "pwritev",
		unix.SYS_PWRITEV2: "pwritev2", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync",
		unix.SYS_FDATASYNC: "fdatasync", unix.SYS_SYNC_FILE_RANGE: "sync_file_range", unix.SYS_SYNCFS: "syncfs", unix.SYS_FCHMOD: "fchmod",
		unix.SYS_FCHOWN: "fchown", unix.SYS_FSETXATTR: "fsetxattr", unix.SYS_FREMOVEXATTR: "fremovexattr", unix.SYS_FLOCK: "flock",
		unix.SYS_IOCTL: "ioctl", unix.SYS_SENDFILE: "sendfile"}},
	// libdqlite submits one control block at a time; io_uring, which it does not use, is in no list.
	{Change, []operand{iocb2}, map[int]string{unix.SYS_IO_SUBMIT: "io_submit"}},
	{Change, []operand{fd2}, map[int]string{unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_SPLICE: "splice"}},

	// These change something or not: their other arguments tell, see harmless.
	{Change, []operand{path0}, map[int]string{unix.SYS_OPEN: "open"}},
	{Change, []operand{at0}, map[int]string{unix.SYS_OPENAT: "openat"}},
	{Change, []operand{fd0}, map[int]string{unix.SYS_FCNTL: "fcntl", unix.SYS_CLOSE: "close"}},
	{Change, []operand{fd4}, map[int]string{unix.SYS_MMAP: "mmap"}},

	{Read, []operand{path0}, map[int]string{
		unix.SYS_STAT: "stat", unix.SYS_LSTAT: "lstat", unix.SYS_ACCESS: "access", unix.SYS_STATFS: "statfs", unix.SYS_READLINK: "readlink",
		unix.SYS_LGETXATTR: "lgetxattr", unix.SYS_LLISTXATTR: "llistxattr"}},
	{Read, []operand{at0}, map[int]string{
		unix.SYS_NEWFSTATAT: "newfstatat", unix.SYS_STATX: "statx", unix.SYS_READLINKAT: "readlinkat", unix.SYS_FACCESSAT: "faccessat",
		unix.SYS_FACCESSAT2: "faccessat2"}},
	{Read, []operand{fd0}, map[int]string{
		unix.SYS_READ: "read", unix.SYS_PREAD64: "pread64", unix.SYS_READV: "readv", unix.SYS_PREADV: "preadv", unix.SYS_PREADV2: "preadv2",
		unix.SYS_GETDENTS64: "getdents64", unix.SYS_FSTAT: "fstat", unix.SYS_FSTATFS: "fstatfs", unix.SYS_LSEEK: "lseek",
		unix.SYS_FADVISE64: "fadvise64"}},

	{Other, nil, map[int]string{
		unix.SYS_CHDIR: "chdir", unix.SYS_DUP: "dup", unix.SYS_DUP2: "dup2", unix.SYS_DUP3: "dup3", unix.SYS_FCHDIR: "fchdir", unix.SYS_FORK: "fork",
		unix.SYS_GETPGRP: "getpgrp", unix.SYS_VFORK: "vfork", unix.SYS_WAIT4: "wait4",
		unix.SYS_ARCH_PRCTL: "arch_prctl", unix.SYS_BIND: "bind", unix.SYS_BRK: "brk", unix.SYS_CLOCK_GETTIME: "clock_gettime",
		unix.SYS_CLOCK_NANOSLEEP: "clock_nanosleep", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_CONNECT: "connect",
		unix.SYS_EPOLL_CREATE1: "epoll_create1", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_EPOLL_PWAIT: "epoll_pwait",
		unix.SYS_EPOLL_WAIT: "epoll_wait", unix.SYS_EVENTFD2: "eventfd2", unix.SYS_EXECVE: "execve", unix.SYS_EXIT: "exit",
		unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_FUTEX: "futex", unix.SYS_GETCWD: "getcwd", unix.SYS_GETEGID: "getegid",
		unix.SYS_GETEUID: "geteuid", unix.SYS_GETGID: "getgid", unix.SYS_GETPEERNAME: "getpeername", unix.SYS_GETPID: "getpid",
		unix.SYS_GETPPID: "getppid", unix.SYS_GETRANDOM: "getrandom", unix.SYS_GETRLIMIT: "getrlimit", unix.SYS_GETRUSAGE: "getrusage",
		unix.SYS_GETSOCKNAME: "getsockname", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_GETTID: "gettid",
		unix.SYS_GETTIMEOFDAY: "gettimeofday", unix.SYS_IO_DESTROY: "io_destroy",
		unix.SYS_IO_GETEVENTS: "io_getevents", unix.SYS_IO_SETUP: "io_setup",
		unix.SYS_GETUID: "getuid", unix.SYS_MADVISE: "madvise", unix.SYS_MINCORE: "mincore",
		unix.SYS_MPROTECT: "mprotect", unix.SYS_MREMAP: "mremap", unix.SYS_MUNMAP: "munmap", unix.SYS_NANOSLEEP: "nanosleep",
		unix.SYS_PIDFD_OPEN: "pidfd_open", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal", unix.SYS_PIPE2: "pipe2", unix.SYS_POLL: "poll",
		unix.SYS_PPOLL: "ppoll", unix.SYS_PRCTL: "prctl", unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_RECVFROM: "recvfrom",
		unix.SYS_RECVMSG: "recvmsg", unix.SYS_RESTART_SYSCALL: "restart_syscall", unix.SYS_RSEQ: "rseq",
		unix.SYS_RT_SIGACTION: "rt_sigaction", unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_RT_SIGRETURN: "rt_sigreturn",
		unix.SYS_SCHED_GETAFFINITY: "sched_getaffinity", unix.SYS_SCHED_YIELD: "sched_yield", unix.SYS_SENDMSG: "sendmsg",
		unix.SYS_SENDTO: "sendto", unix.SYS_SET_ROBUST_LIST: "set_robust_list", unix.SYS_SET_TID_ADDRESS: "set_tid_address",
		unix.SYS_SETSOCKOPT: "setsockopt", unix.SYS_SIGALTSTACK: "sigaltstack", unix.SYS_SOCKET: "socket", unix.SYS_SYSINFO: "sysinfo",
		unix.SYS_TGKILL: "tgkill", unix.SYS_TIMER_CREATE: "timer_create", unix.SYS_TIMER_DELETE: "timer_delete",
		unix.SYS_TIMER_SETTIME: "timer_settime", unix.SYS_UMASK: "umask", unix.SYS_UNAME: "uname", unix.SYS_WAITID: "waitid"}},
}

func makeRules() map[int]rule {
	all := map[int]rule{}
	for _, g := range groups {
		for number, name := range g.calls {
			all[number] = rule{name, g.kind, g.files}
		}
	}

	return all
}

// harmless tells of a call that is listed as a change whether its arguments make it none: opening for reading, mapping
// without writing to the file, asking for a descriptor's flags.
func harmless(number int, args [6]uint64) bool {
	switch number {
	case unix.SYS_OPEN:
		return readOnly(args[1])
	case unix.SYS_OPENAT:
		return readOnly(args[2])
	case unix.SYS_MMAP:
		return args[2]&unix.PROT_WRITE == 0 || args[3]&unix.MAP_TYPE == unix.MAP_PRIVATE
	case unix.SYS_FCNTL:
		switch args[1] {
		case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
			return false
		}

		return true
	}

	return false
}

func readOnly(flags uint64) bool {
	return flags&unix.O_ACCMODE == unix.O_RDONLY && flags&(unix.O_CREAT|unix.O_TRUNC) == 0
}
