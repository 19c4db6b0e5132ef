// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// fakeLXD answers on LXD's socket in a directory.
func fakeLXD(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}

	server := &http.Server{Handler: answer}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()
	return dir
}

const (
	written   = `{"type":"sync","status":"Success","status_code":200,"metadata":{"Results":[{"type":"exec","rows_affected":%d}]}}`
	sqlFailed = `{"type":"error","error":"disk I/O error","error_code":500}`
)

// What counts is a write that is confirmed. A leader that has lost its quorum takes the question and fails, or says nothing.
func TestQuorum(t *testing.T) {
	var asked atomic.Int32
	write := func(after int32, rows int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if r.URL.Path != "/internal/sql" || !strings.Contains(string(body), "WHERE id = 7") || !strings.Contains(string(body), `"global"`) {
				t.Errorf("%s %s", r.URL, body)
			}

			if asked.Add(1) <= after {
				http.Error(w, sqlFailed, http.StatusInternalServerError)
				return
			}

			fmt.Fprintf(w, written, rows)
		}
	}
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		works  bool
	}{
		"confirmed":          {write(0, 1), true},
		"confirmed at last":  {write(3, 1), true},
		"wrote nothing":      {write(0, 0), false},
		"never confirmed":    {write(1<<30, 1), false},
		"takes it and hangs": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, false},
	} {
		asked.Store(0)
		began := time.Now()
		err := Quorum(t.Context(), fakeLXD(t, test.answer), 7)
		if (err == nil) != test.works || time.Since(began) > QuorumTime+5*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
	}
}
