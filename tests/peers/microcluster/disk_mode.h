// SPDX-License-Identifier: AGPL-3.0-only
//
// go-dqlite v2.0.0 calls this function of libdqlite 1.11 to 1.17; libdqlite 1.18 does not have it any more. Nothing is included here, as
// this comes before everything else, assembly too.

#ifndef __ASSEMBLER__
typedef struct dqlite_node dqlite_node;

static inline int dqlite_node_enable_disk_mode(dqlite_node *n) { return n ? 3 : 3; } // DQLITE_MISUSE
#endif
