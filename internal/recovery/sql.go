// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"encoding/json"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
)

// SQL is what LXD is to run. In reports it is without secrets, whatever format they have: see globaldb.ConcealSQL.
type SQL string

// Shown is the SQL as it may be shown.
func (s SQL) Shown() string { return globaldb.ConcealSQL(string(s)) }

// MarshalJSON writes the SQL as it may be shown.
func (s SQL) MarshalJSON() ([]byte, error) { return json.Marshal(s.Shown()) }

// MarshalYAML returns the SQL as it may be shown.
func (s SQL) MarshalYAML() (any, error) { return s.Shown(), nil }
