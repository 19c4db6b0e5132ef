// SPDX-License-Identifier: AGPL-3.0-only

#ifndef ROWSUM_H
#define ROWSUM_H

// rowsum_register makes the SQL function lxd_recover_sum known to every connection that is opened from now on, whoever opens
// it. It returns an SQLite result code.
int rowsum_register(void);

#endif
