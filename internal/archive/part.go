// SPDX-License-Identifier: AGPL-3.0-only

package archive

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// readPart reads what a part has. Half a line at the end of its catalogue is of a run that was cut off: that file is added again, and so is one that
// somebody has deleted.
func readPart(dir string) (*Part, error) {
	p := &Part{Dir: dir}
	f, err := os.Open(filepath.Join(dir, catalogueName))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}

	if err != nil {
		return nil, err
	}

	defer f.Close()

	lines := bufio.NewScanner(f)
	for lines.Scan() {
		e := Entry{}
		err = json.Unmarshal(lines.Bytes(), &e)
		if err == nil {
			p.take(e)
		}
	}

	p.Files = slices.DeleteFunc(p.Files, func(f Entry) bool { return !exists(filepath.Join(dir, f.Name)) })
	p.measure()
	return p, lines.Err()
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// note adds a line to the part's catalogue, and what it says to the part.
func (p *Part) note(e Entry) error {
	err := appendLine(filepath.Join(p.Dir, catalogueName), e)
	if err == nil {
		p.take(e)
	}

	return err
}

// take takes over what a line of the catalogue says.
func (p *Part) take(e Entry) {
	p.all = append(p.all, e)
	p.Files = slices.DeleteFunc(p.Files, func(f Entry) bool { return f.Name == e.Name })
	if !e.Gone {
		p.Files = append(p.Files, e)
		p.Added = e.Added
	}

	p.measure()
}

// measure finds out which entries the part has.
func (p *Part) measure() {
	p.First, p.Last = 0, 0
	for _, f := range p.Files {
		if f.First == 0 {
			continue
		}

		if p.First == 0 || f.First < p.First {
			p.First = f.First
		}

		p.Last = max(p.Last, f.Last)
	}
}

// Began is when the part was begun, UTC.
func (p *Part) Began() time.Time {
	if len(p.all) == 0 {
		return time.Time{}
	}

	return p.all[0].Added
}

// has tells whether the part has a file, with this content, or had it and was not to keep it.
func (p *Part) has(e Entry) bool {
	same := func(f Entry) bool { return f.Name == e.Name && f.SHA256 == e.SHA256 }
	return slices.ContainsFunc(p.Files, same) || slices.ContainsFunc(p.all, func(f Entry) bool { return f.Expired && same(f) })
}

// partDir is the directory of a lineage's part, numbered from 1 on.
func partDir(lineage string, number int) string {
	if number == 1 {
		return lineage
	}

	return fmt.Sprintf("%s.%d", lineage, number)
}

// place is the lineage that a part belongs to, and its number.
func (p *Part) place() (lineage string, number int) {
	lineage, digits, numbered := strings.Cut(filepath.Base(p.Dir), ".")
	number, err := strconv.Atoi(digits)
	if !numbered || err != nil {
		return lineage, 1
	}

	return lineage, number
}

// Oldest is the first index whose database the part tells: 1, or that of its oldest snapshot. Without either there is none, and it is higher than any.
func (p *Part) Oldest() uint64 {
	if p.First == 1 {
		return 1
	}

	oldest := uint64(math.MaxUint64)
	for _, f := range p.Files {
		if f.First == 0 {
			oldest = min(oldest, f.Last)
		}
	}

	return oldest
}

// Newest is the last index that the part has.
func (p *Part) Newest() uint64 {
	newest := p.Last
	for _, f := range p.Files {
		newest = max(newest, f.Last)
	}

	return newest
}
