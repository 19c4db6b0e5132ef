// SPDX-License-Identifier: AGPL-3.0-only

// Command snapyaml makes the meta/snap.yaml of a snap out of its snapcraft.yaml, where snapcraft is not at hand:
//
//	snapyaml SNAPCRAFT.YAML VERSION ARCHITECTURE > meta/snap.yaml
//
// It knows the keys that our snapcraft.yaml has, and no other: one that it does not know is an error, so that nothing is lost
// between the two files.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// both are the keys that mean the same in either file.
type both struct {
	Name        string         `yaml:"name"`
	Title       string         `yaml:"title,omitempty"`
	Summary     string         `yaml:"summary"`
	Description string         `yaml:"description"`
	License     string         `yaml:"license,omitempty"`
	Base        string         `yaml:"base"`
	Confinement string         `yaml:"confinement"`
	Grade       string         `yaml:"grade"`
	Apps        map[string]app `yaml:"apps"`
}

type app struct {
	Command   string `yaml:"command"`
	Completer string `yaml:"completer,omitempty"`
	Daemon    string `yaml:"daemon,omitempty"` // a service
	Restart   string `yaml:"restart-condition,omitempty"`
	Timer     string `yaml:"timer,omitempty"`        // when snapd starts it
	Install   string `yaml:"install-mode,omitempty"` // disable: not before somebody enables it
}

// snapcraft is our snapcraft.yaml.
type snapcraft struct {
	both      `yaml:",inline"`
	AdoptInfo string               `yaml:"adopt-info"` // the version is the caller's business
	Platforms map[string]yaml.Node `yaml:"platforms"`
	Parts     map[string]yaml.Node `yaml:"parts"` // how snapcraft builds it
}

// snap is what snapd reads.
type snap struct {
	both          `yaml:",inline"`
	Version       string   `yaml:"version"`
	Architectures []string `yaml:"architectures"`
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: snapyaml SNAPCRAFT.YAML VERSION ARCHITECTURE")
		os.Exit(2)
	}

	out, err := convert(os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapyaml:", err)
		os.Exit(1)
	}

	os.Stdout.Write(out)
}

func convert(file, version, architecture string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}

	var from snapcraft
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	err = decoder.Decode(&from)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}

	if _, ok := from.Platforms[architecture]; !ok {
		return nil, fmt.Errorf("%s: there is no platform %s", file, architecture)
	}

	if version == "" {
		return nil, errors.New("no version")
	}

	return yaml.Marshal(snap{both: from.both, Version: version, Architectures: []string{architecture}})
}
