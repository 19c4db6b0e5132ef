// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"context"
	"fmt"
	"strings"
)

// LetIn lets root of any of the guests in on the others by ssh, by their names, at their addresses, and at the one that also returns for each.
func LetIn(ctx context.Context, also func(*Guest) string, guests ...*Guest) error {
	keys, known := "", ""
	for _, g := range guests {
		_, err := g.Exec(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
		if err != nil {
			return err
		}

		key, err := g.Exec(ctx, "cat", "/root/.ssh/id_ed25519.pub")
		if err != nil {
			return err
		}

		host, err := g.Exec(ctx, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
		if err != nil {
			return err
		}

		keys += key
		known += fmt.Sprintf("%s,%s,%s %s", g.Name, g.IP(), also(g), host)
	}

	for _, g := range guests {
		for file, text := range map[string]string{"authorized_keys": keys, "known_hosts": known} {
			cmd := g.Command(ctx, "sh", "-c", "cat > /root/.ssh/"+file)
			cmd.Stdin = strings.NewReader(text)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: write %s: %w: %s", g.Name, file, err, out)
			}
		}
	}

	return nil
}
