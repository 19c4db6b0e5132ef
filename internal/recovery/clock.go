// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// clockTolerance is how far ahead of this machine's clock a time may be that was written before. Some of them come from other members' clocks:
// without time synchronisation those differ by seconds. It takes nothing from the fence: that lies termStep, a thousand seconds of
// milliseconds, above all that is known, and a fence that nobody here knows of was not made within the last minute.
const clockTolerance = time.Minute

// written is a time, and what it was found in.
type written struct {
	what string
	at   time.Time
}

func (w written) orNewer(o written) written {
	if o.at.After(w.at) {
		return o
	}

	return w
}

// newestTime is the newest time in LXD's directory: of the files in database/, of the certificates, and of the high-water file.
func (d directory) newestTime() (written, error) {
	h, err := d.readHighWater()
	if err != nil {
		return written{}, err
	}

	newest := written{d.join(highWaterName), h.Time}
	for _, name := range []string{clusterCertificateName, "server.crt"} {
		newest = newest.orNewer(written{"the beginning of validity of " + d.join(name), certificateBegin(d.join(name))})
	}

	err = filepath.WalkDir(d.database(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}

		info, err := e.Info()
		if err == nil {
			newest = newest.orNewer(written{path, info.ModTime()})
		}

		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}

		return err
	})
	return newest, err
}

// certificateBegin is the time from which a certificate is valid; zero where it cannot be read, which others say.
func certificateBegin(path string) time.Time {
	data, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}
	}

	block, _ := pem.Decode(data)
	if block == nil {
		return time.Time{}
	}

	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}

	return certificate.NotBefore
}

// checkClock refuses to make a fence by a clock that is behind a time that was written before: a member that nobody asked may have a higher
// one then.
func checkClock(now time.Time, newest written) error {
	if !newest.at.After(now.Add(clockTolerance)) {
		return nil
	}

	return &Refusal{Code: "clock", Reason: fmt.Sprintf("the clock of this machine says %s, and %s is of %s. Fences are numbered by the clock: one made now "+
		"could be lower than one that another member has. Set the clock", second(now), newest.what, second(newest.at)), Flag: "--term-above",
		Use: "if the clock is right, and that time is wrong: --term-above N makes a fence above N, " +
			"the highest term that `lxd-recover global-db-inspect` shows on any member"}
}

// heartbeat is the newest one of a database.
func heartbeat(at time.Time) written { return written{"the newest heartbeat in the database", at} }

func second(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkTermAbove checks the number that the administrator wants the fence to lie above.
func checkTermAbove(above uint64, proven uint64) error {
	if believable(above, proven) {
		return nil
	}

	return fmt.Errorf("--term-above %d: no raft counts that far, the most is %d", above, cmp.Or(max(maxTerm, proven), maxTerm))
}
