// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

/*
#include "rowsum.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// rowSum is an aggregate function of our own in SQLite: the sum of its rows, whatever their order. It takes rows where SQLite
// has them. Fetched one by one, and from libdqlite over a socket, as text, they take ten times the time.
const rowSum = "lxd_recover_sum"

// maxSummed is how many columns one call takes; SQLite's bound on arguments is 127.
const maxSummed = 100

// RegisterSums makes the function known to every SQLite connection of this process that is opened from now on, those of
// libdqlite as well. It is for a process that calls FingerprintOf; Open does it by itself.
var RegisterSums = sync.OnceValue(func() error {
	code := C.rowsum_register()
	if code != 0 {
		return fmt.Errorf("register an SQL function: SQLite error %d", int(code))
	}

	return nil
})

// sumRows adds up each row's XXH64, which is for telling rows apart that nobody made to look alike: nothing here stands between
// two parties. A row is its length, 32 bits in this machine's order, and as many bytes.
//
//export sumRows
func sumRows(rows *C.uchar, size C.size_t) C.ulonglong {
	data := unsafe.Slice((*byte)(unsafe.Pointer(rows)), int(size))
	total := uint64(0)
	for len(data) > 0 {
		n := 4 + int(binary.NativeEndian.Uint32(data))
		total += xxhash.Sum64(data[4:n])
		data = data[n:]
	}

	return C.ulonglong(total)
}
