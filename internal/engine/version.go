// SPDX-License-Identifier: AGPL-3.0-only

package engine

// #include <dqlite.h>
import "C"

import "fmt"

// Version is the version of the libdqlite that is linked in, such as 1.18.7.
func Version() string {
	n := int(C.dqlite_version_number()) // 11807
	return fmt.Sprintf("%d.%d.%d", n/10000, n/100%100, n%100)
}
