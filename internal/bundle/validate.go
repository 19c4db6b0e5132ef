// SPDX-License-Identifier: AGPL-3.0-only

package bundle

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/lxd-recover/lxd-recover/internal/member"
)

// digest is a SHA-256 as it stands in a manifest.
var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// validate checks what messages say of the source and the cluster.
func (m *Manifest) validateTexts() error {
	if m.Source.Name != "" { // as where the node database does not know it
		err := member.ValidName(m.Source.Name)
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}

	err := member.Member{Name: m.Version, Address: m.Source.Address}.Printable()
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}

	if !digest.MatchString(m.Cluster.Certificate) {
		return errors.New("no fingerprint of the cluster certificate")
	}

	return nil
}
