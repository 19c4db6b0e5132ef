// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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

// cookieDir is where snapd keeps the key that the commands of a snap are known by; a file of root's for each snap.
const cookieDir = "/var/lib/snapd/cookie"

// outsideHook is the configuration as a command of the snap sees it, that no hook has called: what is set is visible at once, and stays
// if the hook that is at work fails.
func (c *snapConfig) outsideHook() (*snapConfig, error) {
	name := cmp.Or(os.Getenv("SNAP_INSTANCE_NAME"), os.Getenv("SNAP_NAME"))
	cookie, err := os.ReadFile(filepath.Join(cookieDir, "snap."+filepath.Base(name)))
	if err != nil {
		return nil, err
	}

	return &snapConfig{client: c.client, context: string(bytes.TrimSpace(cookie))}, nil
}

func (c *snapConfig) run(args ...string) ([]byte, error) {
	stdout, _, err := c.client.RunSnapctl(&client.SnapCtlOptions{ContextID: c.context, Args: args}, nil)
	return stdout, err
}

// get returns the values of all keys that are set: the empty key stands for them.
func (c *snapConfig) get() (map[string]any, error) {
	out, err := c.run("get", "-d", keyImport, "") // the first one must not be empty
	if err != nil {
		return nil, err
	}

	values := map[string]any{}
	if len(bytes.TrimSpace(out)) > 0 {
		err = json.Unmarshal(out, &values)
	}

	all, _ := values[""].(map[string]any)
	return all, err
}

func (c *snapConfig) unset(keys ...string) error {
	_, err := c.run(append([]string{"unset"}, keys...)...)
	return err
}

// snapTimer is the app of our snap that snapd starts at set times, once it is enabled. How often is fixed in snapcraft.yaml: it is for the run to see whether
// a backup is due.
type snapTimer struct{}

// backupApp is the name of that app.
const backupApp = "backup"

// Known implements recovery.Timer.
func (snapTimer) Known(context.Context) error { return nil }

// Enable implements recovery.Timer.
func (t snapTimer) Enable(context.Context, string) error { return t.snapctl("start", "--enable") }

// Disable implements recovery.Timer.
func (t snapTimer) Disable(context.Context) error { return t.snapctl("stop", "--disable") }

func (snapTimer) snapctl(args ...string) error {
	config, err := (&snapConfig{client: client.New(&client.Config{Socket: snapctlSocket})}).outsideHook()
	if err == nil {
		_, err = config.run(append(args, "lxd-recover."+backupApp)...)
	}

	if err != nil {
		return fmt.Errorf("snapctl %s: %w", strings.Join(args, " "), err)
	}

	return nil
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
