// SPDX-License-Identifier: AGPL-3.0-only

#ifndef LXD_RECOVER_INHERITED_H
#define LXD_RECOVER_INHERITED_H

// The environment that this process was started with.
extern char **inherited_environment;

// inherited_restore gives the calling thread, which is about to execute another program, what this process was started with:
// ignored signals, the signal mask, closed standard files.
void inherited_restore(void);

#endif
