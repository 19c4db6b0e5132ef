// SPDX-License-Identifier: AGPL-3.0-only

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/lxd-recover/lxd-recover/tests/progress"
)

// Command prepares a program to run on the member: in its network namespace, with its LXD_DIR (INCUS_DIR), and with its LXD first in
// PATH. It ends with ctx, and with this process. The caller sets input and output and runs it.
func (m *Member) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + m.ns.Path(), "--", name}, args...)...)
	cmd.Env = m.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // for children that keep the output open
	return cmd
}

// LXC runs a command of the client, lxc or incus, on the member and returns what it wrote to standard output. An error has its standard
// error, and is an *exec.ExitError underneath.
func (m *Member) LXC(ctx context.Context, args ...string) (stdout string, err error) {
	return m.run(ctx, nil, m.names().Client, args...)
}

// LXD runs a sub-command of lxd, or of `incus admin`, on the member, as LXC does one of the client.
func (m *Member) LXD(ctx context.Context, args ...string) (stdout string, err error) {
	return m.admin(ctx, nil, args...)
}

func (m *Member) admin(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	words := strings.Fields(m.names().Admin)
	return m.run(ctx, stdin, words[0], append(words[1:len(words):len(words)], args...)...)
}

// names is what the member's LXD calls its own.
func (m *Member) names() Names { return m.cluster.opts.LXD.Names }

func (m *Member) run(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	ctx, cancel := progress.Within(ctx, commandTime)
	defer cancel()
	cmd := m.Command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}

		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s",
			m.Name, name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}

	return stdout.String(), nil
}

// bootstrap makes a cluster of this one member.
func (m *Member) bootstrap(ctx context.Context) error {
	config := m.cluster.config()
	if config["core.https_address"] == "" {
		config["core.https_address"] = m.Address()
	}

	return m.preseed(ctx, map[string]any{
		"config":  config,
		"cluster": map[string]any{"enabled": true, "server_name": m.Name},
	})
}

// config is what LXD is told in the beginning.
func (c *Cluster) config() map[string]string {
	config := map[string]string{"images.auto_update_interval": "0"}
	maps.Copy(config, c.opts.Config)
	return config
}

// join makes this member part of the cluster that the other one belongs to.
func (m *Member) join(ctx context.Context, through *Member) error {
	token, err := through.LXC(ctx, "cluster", "add", "--quiet", m.Name)
	if err != nil {
		return err
	}

	return m.preseed(ctx, map[string]any{"cluster": map[string]any{
		"enabled":        true,
		"server_name":    m.Name,
		"server_address": m.Address(),
		"cluster_token":  strings.TrimSpace(token),
	}})
}

// preseed answers the questions of `lxd init`. JSON is YAML as well.
func (m *Member) preseed(ctx context.Context, answers any) error {
	begin := time.Now()
	yaml, err := json.Marshal(answers)
	if err != nil {
		return err
	}

	_, err = m.admin(ctx, bytes.NewReader(yaml), "init", "--preseed")
	if err != nil {
		return err
	}

	m.cluster.logf("%s set up after %s", m.Name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// Query sends one request to the daemon's API through its socket and returns the metadata of the answer. The body, if not
// nil, is sent as JSON. Answers that report an error are errors.
func (m *Member) Query(ctx context.Context, method, path string, body any) (json.RawMessage, error) {
	fail := func(err error) (json.RawMessage, error) {
		return nil, fmt.Errorf("%s: %s %s: %w", m.Name, method, path, err)
	}
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return fail(err)
		}

		content = bytes.NewReader(data)
	}

	ctx, cancel := progress.Within(ctx, commandTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://lxd"+path, content)
	if err != nil {
		return fail(err)
	}

	response, err := m.http.Do(request)
	if err != nil {
		return fail(err)
	}

	defer response.Body.Close()
	var answer struct {
		Error    string          `json:"error"`
		Metadata json.RawMessage `json:"metadata"`
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", response.Status, err))
	}

	if answer.Error != "" {
		return fail(fmt.Errorf("%s", answer.Error))
	}

	return answer.Metadata, nil
}

// SQL runs a statement on the global database, as `lxd sql global` does, and returns its rows, NULL as "NULL". Every member
// asks the leader: to see what one member has on disk, look at its files. A database that somebody else is just writing to
// (LXD itself does, with every heartbeat) is asked again. Several statements, split at every semicolon as LXD splits them,
// run in a transaction each; the rows are the last one's.
func (m *Member) SQL(ctx context.Context, query string) ([][]string, error) {
	return m.sql(ctx, "global", query)
}

// localSQL runs a statement on the member's own database, as `lxd sql local` does.
func (m *Member) localSQL(ctx context.Context, query string) ([][]string, error) {
	return m.sql(ctx, "local", query)
}

func (m *Member) sql(ctx context.Context, database, statements string) ([][]string, error) {
	var rows [][]string
	for statement := range strings.SplitSeq(statements, ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}

		var metadata json.RawMessage
		var queryErr error // wait's own is about waiting
		err := m.cluster.wait(ctx, 10*time.Millisecond, "the database", func(ctx context.Context) (bool, error) {
			metadata, queryErr = m.Query(ctx, http.MethodPost, "/internal/sql",
				map[string]string{"database": database, "query": statement})
			return queryErr == nil || !strings.Contains(queryErr.Error(), "database is locked"), queryErr
		})
		if err == nil {
			err = queryErr
		}

		if err == nil {
			rows, err = sqlRows(metadata)
		}

		if err != nil {
			return nil, fmt.Errorf("%w, statement %q", err, statement)
		}
	}

	return rows, nil
}

// sqlRows reads the answer to one statement.
func sqlRows(metadata json.RawMessage) ([][]string, error) {
	var batch struct {
		Results []struct {
			Rows [][]any `json:"rows"`
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(metadata))
	decoder.UseNumber() // ids stay integers
	err := decoder.Decode(&batch)
	if err != nil {
		return nil, err
	}

	if len(batch.Results) != 1 {
		return nil, fmt.Errorf("%d results", len(batch.Results))
	}

	var rows [][]string
	for _, row := range batch.Results[0].Rows {
		values := make([]string, len(row))
		for i, value := range row {
			values[i] = fmt.Sprint(value)
			if value == nil {
				values[i] = "NULL"
			}
		}

		rows = append(rows, values)
	}

	return rows, nil
}
