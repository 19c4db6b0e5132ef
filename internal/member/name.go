// SPDX-License-Identifier: AGPL-3.0-only

package member

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName bounds a name, in bytes. LXD has none; the names that it takes by itself are those of hosts, which have 64 at most.
const maxName = 255

// ValidName checks the name of a member. LXD takes any text that is not empty (api_cluster.go), and refuses "none" and names that begin with
// "@" only in later versions: no name that a member has may be refused here. But nobody has one that cannot be shown, or that cannot be
// a part of a path of LXD's API.
func ValidName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > maxName:
		return fmt.Errorf("the name %.20q… has more than %d bytes", name, maxName)
	case !shown(name) || strings.Contains(name, "/"):
		return fmt.Errorf("%q is no name of a member", name)
	}

	return nil
}

// shown tells whether a text has nothing in it but what is shown as it is.
func shown(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// Printable checks that the texts of a member can be shown, whatever else is wrong with them, as in a report of a damaged database. Both may be
// empty.
func (m Member) Printable() error {
	if !shown(m.Name) {
		return fmt.Errorf("%q is no name of a member", m.Name)
	}

	if !shown(m.Address) {
		return fmt.Errorf("%q is no address of a member", m.Address)
	}

	return nil
}
