// SPDX-License-Identifier: AGPL-3.0-only

// Two programs in one. Called as `launch` it starts another with everything about the process unusual that a process can
// inherit:
//
//     launch CLOSED PROGRAM ARG...    CLOSED is a standard file to close, or -1; PROGRAM runs as "lxd"
//
// Called as anything else it stands for LXD's own lxd: it writes all that it inherited to the file $LXD_TEST_REPORT, and then
// does what $LXD_TEST_THEN says: exit with that status, or, below 0, die by that signal; "wait" waits for a signal.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

extern char **environ;

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static int launch(char **argv)
{
	static char *odd[] = {
		"LXD_TEST_TWICE=first", "LXD_TEST_TWICE=second", "no equals sign", "", "=name missing", "EMPTY=", "=", "BYTES=\xff\xfe\n\x01",
	};
	static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM, SIGUSR1, SIGTSTP, SIGTTOU, SIGSEGV, SIGURG, SIGPROF, SIGSYS};
	static const int blocked[] = {SIGUSR2, SIGCHLD, SIGBUS, SIGWINCH, SIGALRM, SIGTRAP};
	char *env[1024];
	int n = 0;
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
		env[n++] = odd[i];
	for (char **e = environ; *e != NULL && n < 1023; e++)
		env[n++] = *e;
	env[n] = NULL;

	for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
		signal(ignored[i], SIG_IGN);
	signal(SIGRTMIN + 3, SIG_IGN);
	signal(SIGRTMAX, SIG_IGN);
	sigset_t mask;
	sigemptyset(&mask);
	for (size_t i = 0; i < sizeof blocked / sizeof *blocked; i++)
		sigaddset(&mask, blocked[i]);
	sigaddset(&mask, SIGRTMIN + 1);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	kill(getpid(), SIGUSR2); // stays pending
	alarm(3600);

	struct rlimit files = {100, 4000}, core = {0, 12345}, stack = {4 << 20, 64 << 20};
	if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_CORE, &core) || setrlimit(RLIMIT_STACK, &stack))
		die("setrlimit");
	umask(037);
	if (chdir("/usr") || setpriority(PRIO_PROCESS, 0, 3) || prctl(PR_SET_TIMERSLACK, 77777) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("launch");
	if (fcntl(open("/dev/zero", O_RDONLY), F_DUPFD, 30) != 30) // and the lower one stays, too
		die("open");
	int fd = atoi(argv[1]);
	if (fd >= 0)
		close(fd);

	char *program = argv[2];
	argv[2] = "lxd";
	execve(program, argv + 2, env);
	die(program);
	return 99;
}

// bytes writes a string so that any byte of it is seen.
static void bytes(FILE *f, const char *name, const char *s)
{
	fprintf(f, "%s <", name);
	for (; *s != 0; s++)
		if (*s > ' ' && *s < 127)
			fputc(*s, f);
		else
			fprintf(f, "\\%02x", (unsigned char)*s);
	fprintf(f, ">\n");
}

static void signals(FILE *f)
{
	struct {
		uintptr_t handler, rest[15];
	} a;
	uint64_t mask = 0, pending = 0;
	fprintf(f, "ignored");
	for (int n = 1; n <= 64; n++)
		if (syscall(SYS_rt_sigaction, n, NULL, &a, 8) == 0 && a.handler == (uintptr_t)SIG_IGN)
			fprintf(f, " %d", n);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
	syscall(SYS_rt_sigpending, &pending, 8);
	fprintf(f, "\nblocked %llx\npending %llx\n", (unsigned long long)mask, (unsigned long long)pending);
	fprintf(f, "alarm %s\n", alarm(0) > 3000 ? "set" : "not set");
}

static void files(FILE *f)
{
	for (int fd = 0; fd < 64; fd++) {
		char path[64], target[4096] = "";
		int flags = fcntl(fd, F_GETFL);
		if (flags < 0 || fd == fileno(f))
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (readlink(path, target, sizeof target - 1) < 0)
			die(path);
		// Pipes and their numbers are not the same ones in two runs.
		char *number = strchr(target, '[');
		if (number != NULL)
			*number = 0;
		fprintf(f, "file %d %s flags %o tty %d\n", fd, target, flags, isatty(fd));
	}
}

static void limits(FILE *f)
{
	for (int n = 0; n < RLIM_NLIMITS; n++) {
		struct rlimit r;
		getrlimit(n, &r);
		fprintf(f, "limit %d %llu %llu\n", n, (unsigned long long)r.rlim_cur, (unsigned long long)r.rlim_max);
	}
	cpu_set_t cpus;
	sched_getaffinity(0, sizeof cpus, &cpus);
	mode_t mask = umask(0);
	umask(mask);
	char *dir = getcwd(NULL, 0);
	fprintf(f, "cpus %d policy %d nice %d umask %o timer slack %d no_new_privs %d personality %x\n", CPU_COUNT(&cpus),
		sched_getscheduler(0), getpriority(PRIO_PROCESS, 0), mask, prctl(PR_GET_TIMERSLACK), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
		personality(0xffffffff));
	bytes(f, "directory", dir);
	fprintf(f, "leads its session %d, its group %d; in the foreground %d\n", getsid(0) == getpid(), getpgrp() == getpid(), tcgetpgrp(0) == getpgrp());
}

static void input(FILE *f)
{
	if (isatty(0) || fcntl(0, F_GETFL) < 0)
		return;
	uint64_t sum = 14695981039346656037u, size = 0;
	unsigned char buffer[65536];
	for (ssize_t n; (n = read(0, buffer, sizeof buffer)) > 0; size += n)
		for (ssize_t i = 0; i < n; i++)
			sum = (sum ^ buffer[i]) * 1099511628211u;
	fprintf(f, "input %llu %016llx\n", (unsigned long long)size, (unsigned long long)sum);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/');
	if (strcmp(name == NULL ? argv[0] : name + 1, "launch") == 0)
		return launch(argv);

	const char *path = getenv("LXD_TEST_REPORT"), *then = getenv("LXD_TEST_THEN");
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	FILE *f = fdopen(fcntl(fd, F_DUPFD_CLOEXEC, 63), "w");
	if (f == NULL)
		die(path);
	close(fd);
	for (int i = 0; i < argc; i++)
		bytes(f, "argument", argv[i]);
	for (char **e = environ; *e != NULL; e++)
		bytes(f, "variable", *e);
	signals(f);
	files(f);
	limits(f);
	input(f);
	if (fclose(f) != 0)
		die(path);

	if (strcmp(then, "wait") == 0) {
		printf("waiting in %d\n", getpid());
		fflush(stdout);
		for (;;)
			pause();
	}
	int status = atoi(then);
	if (status < 0)
		raise(-status);
	return status;
}
