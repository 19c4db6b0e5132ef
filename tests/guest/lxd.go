// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
)

// lxdPort is where LXD listens in the clusters that FormCluster makes.
const lxdPort = "8443"

// IP is the address of eth0 without its prefix length, or "" if the guest was given none.
func (g *Guest) IP() string {
	ip, _, _ := strings.Cut(g.opts.Address, "/")
	return ip
}

// FormCluster makes the LXDs of the guests, whether they come from the package or from a snap, the members of a cluster. They
// have the guests' names and addresses, port 8443, and the ids 1, 2, 3 in the order given. All must be on one network.
func FormCluster(ctx context.Context, guests ...*Guest) error {
	for i, g := range guests {
		if g.IP() == "" {
			return errors.New(g.Name + " has no address")
		}

		address := net.JoinHostPort(g.IP(), lxdPort)
		answers := map[string]any{
			"config":  map[string]string{"core.https_address": address, "images.auto_update_interval": "0"},
			"cluster": map[string]any{"enabled": true, "server_name": g.Name},
		}
		if i > 0 {
			token, err := guests[0].Exec(ctx, "lxc", "cluster", "add", "--quiet", g.Name)
			if err != nil {
				return err
			}

			answers = map[string]any{"cluster": map[string]any{
				"enabled": true, "server_name": g.Name, "server_address": address, "cluster_token": strings.TrimSpace(token),
			}}
		}

		err := g.initLXD(ctx, answers)
		if err != nil {
			return fmt.Errorf("form a cluster: %w", err)
		}
	}

	return nil
}

// StartStandalone sets the guest's LXD up as a server of its own, which is no member of a cluster.
func (g *Guest) StartStandalone(ctx context.Context) error {
	return g.initLXD(ctx, map[string]any{"config": map[string]string{"images.auto_update_interval": "0"}})
}

// initLXD answers lxd init's questions. JSON is YAML as well.
func (g *Guest) initLXD(ctx context.Context, answers any) error {
	yaml, err := json.Marshal(answers)
	if err != nil {
		return err
	}

	args := []string{"init", "--preseed"}
	cmd := g.Command(ctx, "lxd", args...)
	cmd.Stdin = strings.NewReader(string(yaml))
	_, err = g.run(cmd, "lxd", args)
	return err
}
