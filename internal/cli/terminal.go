// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"os"

	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/printable"
)

// Whatever is printed goes through one of the functions here, so that nothing that somebody else wrote, into a tarball, a database, a report
// or a name, gets to a terminal as it is.

// stderr is standard error, for people.
func stderr() io.Writer { return printable.NewWriter(asCalled(atWords(os.Stderr))) }

// stdoutFor is standard output for what is printed in a format. What is for programs goes out as it is, unless a terminal is there to show
// it; JSON and YAML have nothing in them by then that a terminal obeys.
func stdoutFor(format string) io.Writer {
	if format == formatTable || format == formatCompact || isTerminal(os.Stdout) {
		return printable.NewWriter(os.Stdout)
	}

	return os.Stdout
}

// formatDump is the format of what is written as SQL.
const formatDump = "dump"

// encodeJSON is a value as JSON, indented, without what a terminal could obey.
func encodeJSON(value any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	err := enc.Encode(value)
	return printable.JSON(b.Bytes()), err
}

// encodeYAML is a value as YAML, without what a terminal could obey: the encoder leaves some of that as it is, and only between double quotes
// can it be written otherwise.
func encodeYAML(value any) ([]byte, error) {
	data, err := yaml.Marshal(value)
	if err != nil || printable.AllHarmless(data) {
		return data, err
	}

	node := &yaml.Node{}
	err = node.Encode(value)
	if err != nil {
		return nil, err
	}

	quoteHarmful(node)
	data, err = yaml.Marshal(node)
	return printable.YAML(data), err
}

func quoteHarmful(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode && !printable.AllHarmless([]byte(node.Value)) {
		node.Style = yaml.DoubleQuotedStyle
	}

	for _, n := range node.Content {
		quoteHarmful(n)
	}
}
