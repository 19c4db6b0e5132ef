// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"context"
	"net/http"
	"path/filepath"

	lxd "github.com/canonical/lxd/client"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// WriteThroughLeader has the LXD in a directory set a key of the server configuration to a value, and remove it again: two transactions of the leader's. It
// is for an LXD that runs, see ListMembers. An error after the first of them leaves the key in place, and says so.
func WriteThroughLeader(ctx context.Context, lxdDir string, key string, value string) error {
	server, err := lxd.ConnectLXDUnixWithContext(ctx, filepath.Join(lxdDir, socketName), nil)
	if err != nil {
		return product.Errorf("ask LXD to write %s: %w", key, err)
	}

	defer server.Disconnect()

	err = setKey(server, key, value)
	if err != nil {
		return product.Errorf("ask LXD to write %s: %w", key, err)
	}

	err = setKey(server, key, "")
	if err != nil {
		return product.Errorf("LXD has written %[1]s, and does not remove it: %[2]w; `lxc config unset %[1]s` does", key, err)
	}

	return nil
}

// setKey sets a key of the server configuration; an empty value removes it.
func setKey(server lxd.InstanceServer, key, value string) error {
	_, _, err := server.RawQuery(http.MethodPatch, "/1.0", map[string]any{"config": map[string]string{key: value}}, "")
	return err
}
