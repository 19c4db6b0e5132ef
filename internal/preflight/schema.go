// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Codes of findings about schemas.
const (
	CodeSchemaNewer = "schema-newer" // than the LXD here knows
	CodeSchemaOlder = "schema-older" // than the LXD here makes it
	CodePatchesDone = "patches-done" // patches of LXD's are marked as applied, and the database is from before them
)

// LXD is an LXD that is installed.
type LXD struct {
	Program string `json:"program" yaml:"program"` // its file; empty where none was found
	Version string `json:"version" yaml:"version"` // empty where it does not tell
	Schema  int    `json:"schema" yaml:"schema"`   // of the global database that it makes; 0 where it cannot be told
}

// String is the LXD for people.
func (l LXD) String() string {
	version := l.Version
	if !versionNumber.MatchString(version) { // a saved report may have anything there
		version = strconv.Quote(version)
	}

	text := product.Text("LXD ") + version
	if l.Version == "" {
		text = product.Text("LXD of unknown version")
	}

	if l.Schema > 0 {
		text += fmt.Sprintf(" (schema %d)", l.Schema)
	}

	return text
}

// checkSchema compares the schema of the database with what the LXD of this machine knows. An older one LXD brings up to date when it
// starts, a newer one it does not start on.
func checkSchema(facts Facts) []Finding {
	known := facts.Installed.Schema
	switch {
	case facts.Schema == 0 || known > 0 && facts.Schema <= known:
		return nil
	case known > 0:
		return []Finding{{Code: CodeSchemaNewer, Member: facts.name(), Fatal: true,
			Text: fmt.Sprintf("the global database has schema %d, and the %s that is installed here (%s) knows schemas up to %d: it does not start "+
				"(this node's version is behind)", facts.Schema, lxdVersion(facts.Installed), facts.Installed.Program, known),
			Advice: product.Text("Upgrade LXD on this member first, to the version of the members that the database comes from.")}}
	case facts.LastRan == 0 || facts.Schema <= facts.LastRan:
		return nil
	}

	return []Finding{{Code: CodeSchemaNewer, Member: facts.name(), Fatal: true,
		Text: product.Sprintf("the global database has schema %d, and the LXD that ran last on this member had schema %d: "+
			"unless it was upgraded since, it does not start (this node's version is behind)", facts.Schema, facts.LastRan),
		Advice: product.Text("Make sure that LXD on this member has the version of the members that the database comes from.")}}
}

func lxdVersion(l LXD) string {
	if l.Version == "" {
		return product.Text("LXD")
	}

	return product.Text("LXD ") + l.Version
}

// checkGoingBack says what LXD does again, and what not, on a database that is older than what it has had here.
func checkGoingBack(facts Facts) []Finding {
	var found []Finding
	newest := max(facts.LastRan, facts.Installed.Schema)
	if facts.Schema > 0 && facts.Schema < newest {
		found = append(found, Finding{Code: CodeSchemaOlder, Member: facts.name(),
			Text: product.Sprintf("the global database has schema %d, and LXD has schema %d here: when LXD starts it brings the database from the one "+
				"to the other",
				facts.Schema, newest)})
	}

	if len(facts.Patches) > 0 {
		found = append(found, Finding{Code: CodePatchesDone, Member: facts.name(),
			Text: product.Sprintf("the node database marks patches of LXD's own as applied that are newer than the global database: %s. "+
				"LXD does not apply them again, although the global database is without what they did to it", strings.Join(facts.Patches, ", ")),
			Advice: product.Sprintf("LXD applies one again if this is written into %s first: DELETE FROM patches WHERE name = 'NAME';", patchLocal)})
	}

	return found
}
