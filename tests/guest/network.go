// SPDX-License-Identifier: AGPL-3.0-only

package guest

import (
	"testing"

	"github.com/lxd-recover/lxd-recover/tests/netns"
)

// NetworkForTest makes a network for guests to share. It fails t on an error, and the network is closed when t ends.
func NetworkForTest(t testing.TB) *netns.Switch {
	t.Helper()
	n, err := netns.NewSwitch(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	t.Cleanup(func() {
		err := n.Close()
		if err != nil {
			t.Errorf("close network: %v", err)
		}
	})
	return n
}
