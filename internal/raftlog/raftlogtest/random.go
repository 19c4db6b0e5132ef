// SPDX-License-Identifier: AGPL-3.0-only

package raftlogtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// Random returns damage at a place that depends on rnd alone, and its description, which is filled in when the damage is done.
func Random(rnd *rand.Rand) (d Damage, what string) {
	kind := rnd.IntN(8)
	pick := rnd.Float64()
	a, b := rnd.Float64(), rnd.Float64()
	value := byte(1 + rnd.IntN(255))
	names := []string{"flip", "flip at the beginning", "set a run", "zero a run", "cut", "remove", "copy a block over another", "swap with the next"}
	what = fmt.Sprintf("%s, file %.3f, at %.4f, %.4f, value %d", names[kind], pick, a, b, value)
	return func(dir string) error {
		files, err := databaseFiles(dir)
		if err != nil {
			return err
		}

		i := int(pick * float64(len(files)))
		path := filepath.Join(dir, files[i])
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}

		used := len(p)
		for used > 0 && p[used-1] == 0 {
			used--
		}

		used = min(used+64, len(p))
		at := int(a * float64(used))
		length := min(1+int(b*b*8192), used-at)
		switch {
		case used == 0:
			return nil
		case kind == 0:
			p[at] ^= 1 << (value & 7)
		case kind == 1:
			p[int(a*float64(min(used, 128)))] ^= 1 << (value & 7)
		case kind == 2:
			for j := range p[at : at+length] {
				p[at+j] = value
			}
		case kind == 3:
			clear(p[at : at+length])
		case kind == 4:
			p = p[:at]
		case kind == 5:
			return os.Remove(path)
		case kind == 6:
			from := int(b * float64(used))
			copy(p[at&^511:used], p[from&^511:used])
		case kind == 7:
			other := filepath.Join(dir, files[(i+1)%len(files)])
			q, err := os.ReadFile(other)
			if err != nil {
				return err
			}

			err = writeFile(other, p)
			if err != nil {
				return err
			}

			p = q
		}

		return writeFile(path, p)
	}, what
}

// databaseFiles lists the files that libdqlite reads.
func databaseFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}

	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "db.bin") && e.Name() != "dqlite-lock" {
			names = append(names, e.Name())
		}
	}

	return names, nil
}
