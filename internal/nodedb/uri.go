// SPDX-License-Identifier: AGPL-3.0-only

package nodedb

import "net/url"

// uriPath escapes a file name for an SQLite URI: `?`, `#` and `%` would otherwise end or change it.
func uriPath(file string) string {
	return (&url.URL{Path: file}).EscapedPath()
}
