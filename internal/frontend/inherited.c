// SPDX-License-Identifier: AGPL-3.0-only

// What this process inherited, noted before Go's run-time changes it: that installs a handler for every signal but an ignored
// SIGHUP or SIGINT, unblocks some, opens /dev/null in place of closed standard files, and drops variables that occur twice
// from the environment. Only a constructor of C's runs before that.

#include "inherited.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

extern char **environ;
char **inherited_environment;

static uint64_t ignored; // bit n-1 is signal n, as in mask
static uint64_t mask;
static int closed; // bit n is file n

// The kernel's struct sigaction, of which only the first word, the handler, is of interest: larger than it is anywhere. The
// C library's own sigaction keeps some signals to itself.
struct action {
	uintptr_t handler;
	uintptr_t rest[15];
};

static int is_ignored(int n)
{
	struct action a = {0};
	return syscall(SYS_rt_sigaction, n, NULL, &a, sizeof mask) == 0 && a.handler == (uintptr_t)SIG_IGN;
}

__attribute__((constructor)) static void remember(void)
{
	inherited_environment = environ;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, sizeof mask);
	for (int n = 1; n <= 64; n++)
		if (is_ignored(n))
			ignored |= (uint64_t)1 << (n - 1);
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
			closed |= 1 << fd;
}

void inherited_restore(void)
{
	struct action ignore = {.handler = (uintptr_t)SIG_IGN}, standard = {.handler = (uintptr_t)SIG_DFL};
	for (int n = 1; n <= 64; n++) {
		if (ignored >> (n - 1) & 1)
			syscall(SYS_rt_sigaction, n, &ignore, NULL, sizeof mask);
		else if (is_ignored(n))
			syscall(SYS_rt_sigaction, n, &standard, NULL, sizeof mask);
	}
	for (int fd = 0; fd <= 2; fd++)
		if (closed >> fd & 1)
			close(fd);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}
