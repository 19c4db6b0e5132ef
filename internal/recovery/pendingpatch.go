// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/globaldb"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// pendingPatch is what a patch.global.sql holds, by who has written it. LXD runs the file once, in one transaction, when it next starts
// and has found a leader, and deletes it.
type pendingPatch struct {
	own       string // SQL that somebody has written, as it stands there
	added     string // SQL that this run adds
	versions  string // of ours, for the rows of lost members (preflight.VersionSQL)
	addresses string // of ours or of LXD's own edit, for the addresses of the members
}

// MaxPatch bounds what is read of a patch, in bytes.
const MaxPatch = 8 << 20

// Lines as we, and LXD's own edit, write them.
var (
	addressLine = regexp.MustCompile(`^UPDATE nodes SET address = (?:"[^"]*" WHERE id = \d+|'(?:[^']|'')*' WHERE id = \d+ AND address = '(?:[^']|'')*');$`)
	versionLine = regexp.MustCompile(`^UPDATE nodes SET schema = \d+, api_extensions = \d+ WHERE id = \d+ AND schema = \d+ AND api_extensions = \d+;$`)
)

// readPatch reads the patch of a database directory; it is empty where there is none.
func readPatch(database string) (pendingPatch, error) {
	text, err := ReadSQL(filepath.Join(database, patchName))
	if errors.Is(err, os.ErrNotExist) {
		return pendingPatch{}, nil
	}

	return splitPatch(text), err
}

// ReadSQL reads a regular file of SQL that is not larger than a patch may be.
func ReadSQL(path string) (string, error) {
	info, err := os.Stat(path) // before it is opened: a pipe would be waited for
	if err != nil {
		return "", err
	}

	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a file", path)
	}

	f, err := os.Open(path)
	if err != nil {
		return "", err
	}

	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, MaxPatch+1))
	if err == nil && len(data) > MaxPatch {
		err = fmt.Errorf("%s is larger than %d MiB: that is no patch", path, MaxPatch>>20)
	}

	return string(data), err
}

// splitPatch tells the lines of a patch apart. A line in the middle of somebody's own statement is a part of it, whatever it looks like.
func splitPatch(text string) pendingPatch {
	var p pendingPatch
	for line := range strings.Lines(text) {
		trimmed := strings.TrimRight(line, "\r\n")
		switch {
		case addressLine.MatchString(trimmed) && isEnded(p.own):
			p.addresses += trimmed + "\n"
		case versionLine.MatchString(trimmed) && isEnded(p.own):
			p.versions += trimmed + "\n"
		default:
			p.own += line
		}
	}

	if globaldb.PatchStatements(p.own) == 0 { // nothing but comments
		p.own = ""
	}

	p.own = ended(p.own)
	return p
}

// isEnded tells whether another statement can be written after some SQL: what follows a statement that is not ended would become a part of it.
func isEnded(sql string) bool {
	return globaldb.PatchStatements(sql+"\nx") > globaldb.PatchStatements(sql)
}

// ended is SQL after which another statement can be written.
func ended(sql string) string {
	trimmed := strings.TrimRight(sql, " \t\r\n")
	switch {
	case trimmed == "":
		return ""
	case isEnded(sql):
	case isEnded(trimmed + ";"):
		sql = trimmed + ";"
	default: // a comment at its end
		sql = trimmed + "\n;"
	}

	if !strings.HasSuffix(sql, "\n") {
		sql += "\n"
	}

	return sql
}

// carried is what stays when the addresses are written anew: somebody's own SQL first. It was written for the database as it is, and
// what we add is worked out for the one that it leaves.
func (p pendingPatch) carried() string { return p.own + p.added + p.versions }

// digest names somebody's own SQL; it is empty where there is none.
func (p pendingPatch) digest() string {
	if p.own == "" {
		return ""
	}

	sum := sha256.Sum256([]byte(p.own))
	return hex.EncodeToString(sum[:])
}

// String tells in a few words what is in the patch.
func (p pendingPatch) String() string {
	var parts []string
	if p.own != "" {
		statements, _ := globaldb.Statements(p.own)
		text := "SQL that was written to it (" + firstWords(statements[0]) + ")"
		if len(statements) > 1 {
			text = fmt.Sprintf("%d SQL statements that were written to it (%s …)", globaldb.PatchStatements(p.own), firstWords(statements[0]))
		}

		parts = append(parts, text)
	}

	if p.versions != "" {
		parts = append(parts, "the versions of lost members")
	}

	if p.addresses != "" {
		parts = append(parts, "addresses of members")
	}

	return strings.Join(parts, ", ")
}

// maxWords bounds firstWords, in characters.
const maxWords = 100

// firstWords is the beginning of a statement, on one line.
func firstWords(statement string) string {
	runes := []rune(strings.Join(strings.Fields(globaldb.ConcealSQL(statement)), " "))
	if len(runes) > maxWords {
		return string(runes[:maxWords-1]) + "…"
	}

	return string(runes)
}

// dropPatchFlag leaves a pending patch out.
const dropPatchFlag = "--drop-patch"

// tryPatch runs a patch on a copy of the database that it will meet, as LXD will. Close the result unless it is nil.
func tryPatch(ctx context.Context, db *globaldb.DB, p pendingPatch, what string) (*globaldb.DB, error) {
	patched, err := db.Patched(ctx, p.carried())
	var failed *globaldb.StatementError
	if errors.As(err, &failed) {
		return nil, &Refusal{Code: "patch-fails", Flag: dropPatchFlag,
			Reason: product.Sprintf("%s, which is pending here, does not run on %s: %v. LXD may not start with it. Correct it, or remove it with "+
				"`lxd-recover global-db-patch --remove`", patchName, what, failed)}
	}

	if err != nil {
		return nil, err
	}

	summary, err := patched.Summary(ctx)
	if err == nil && summary.Integrity != "ok" {
		err = fmt.Errorf("%s does damage to %s: SQLite: %s", patchName, what, summary.Integrity)
	}

	if err != nil {
		patched.Close()
		return nil, err
	}

	return patched, nil
}

// composed is the whole patch: what is carried over, and the addresses that the members are to have, worked out for the rows that the former
// leaves.
func composed(p pendingPatch, rows []preflight.Node, members member.List) string {
	return p.carried() + patchSQL(withoutVersions(rows), members)
}

// takePatch reads what is pending in the live database. With drop only what was in it is told; it stays in the database that is kept.
func (d directory) takePatch(drop bool) (p pendingPatch, dropped string, err error) {
	p, err = readPatch(d.database())
	if err == nil && drop && p.carried() != "" {
		return pendingPatch{}, fmt.Sprintf("%s is left out, with %s; it stays in the database that is kept", patchName, p), nil
	}

	return p, "", err
}

// samePatch makes sure that the pending patch is what it was: LXD deletes it when it has run it, and somebody may have written to it.
func (d directory) samePatch(p pendingPatch, drop bool) error {
	now, _, err := d.takePatch(drop)
	if err == nil && now.own != p.own {
		err = fmt.Errorf("%s is not what it was when this run began: nothing was changed, run the command again", filepath.Join(d.database(), patchName))
	}

	return err
}
