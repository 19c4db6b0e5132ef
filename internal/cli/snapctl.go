// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"

	"github.com/snapcore/snapd/client"
)

// snapctlSocket is the socket that snapd serves to snaps and their hooks.
const snapctlSocket = "/run/snapd-snap.socket"

// snapConfig is the configuration of our own snap, as `snap set lxd-recover` and `snap get lxd-recover` know it, seen from a
// hook. What is set becomes visible when the hook has succeeded.
type snapConfig struct {
	client  *client.Client
	context string // which hook this is, to snapd
}

func newSnapConfig() (*snapConfig, error) {
	context := os.Getenv("SNAP_COOKIE")
	if context == "" {
		context = os.Getenv("SNAP_CONTEXT") // older snapd
	}

	if context == "" {
		return nil, errors.New("this is what the hooks of the snap call, and it does not run in one")
	}

	return &snapConfig{client: client.New(&client.Config{Socket: snapctlSocket}), context: context}, nil
}

func (c *snapConfig) run(args ...string) ([]byte, error) {
	stdout, _, err := c.client.RunSnapctl(&client.SnapCtlOptions{ContextID: c.context, Args: args}, nil)
	return stdout, err
}

// get returns the values of some keys; one that is not set is missing.
func (c *snapConfig) get(keys ...string) (map[string]any, error) {
	out, err := c.run(append([]string{"get", "-d"}, keys...)...)
	if err != nil {
		return nil, err
	}

	values := map[string]any{}
	if len(bytes.TrimSpace(out)) == 0 {
		return values, nil
	}

	return values, json.Unmarshal(out, &values)
}

func (c *snapConfig) unset(keys ...string) error {
	_, err := c.run(append([]string{"unset"}, keys...)...)
	return err
}

// set gives a key a value, which becomes JSON.
func (c *snapConfig) set(key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}

	_, err = c.run("set", "-t", key+"="+string(data))
	return err
}
