// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// expiresSoon is how long before its end a certificate is worth a word.
const expiresSoon = 30 * 24 * time.Hour

// Certificate is one that LXD shows to others.
type Certificate struct {
	What      string // which one, as the subject of a sentence
	Member    string // whose it is; empty for the cluster's
	NotBefore time.Time
	NotAfter  time.Time

	// Unknown says that the global database has another one for that member.
	Unknown bool
}

// ParseCertificate returns the dates of a certificate in PEM. what and owner are told in the findings.
func ParseCertificate(data []byte, what string, owner string) (Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return Certificate{}, errors.New(what + " is not PEM")
	}

	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Certificate{}, fmt.Errorf("%s is no certificate: %w", what, err)
	}

	return Certificate{What: what, Member: owner, NotBefore: parsed.NotBefore, NotAfter: parsed.NotAfter}, nil
}

// Codes of findings about certificates.
const (
	CodeCertificateExpired     = "certificate-expired"
	CodeCertificateNotYetValid = "certificate-not-yet-valid"
	CodeCertificateExpiresSoon = "certificate-expires-soon"
	CodeCertificateUnknown     = "certificate-unknown"
)

// checkCertificates looks for certificates that are not in date: LXD starts, and members refuse each other's connections.
func checkCertificates(facts Facts) []Finding {
	now, soon := "the members refuse each other's connections, and the cluster gets no leader", "from then on the members refuse each other's connections"
	if facts.Alone() {
		now, soon = "clients may refuse the connection", "from then on clients may refuse the connection"
	}

	var found []Finding
	for _, c := range facts.Certificates {
		f := Finding{Member: c.Member, Advice: c.renewal()}
		switch {
		case facts.Now.After(c.NotAfter):
			f.Code, f.Fatal = CodeCertificateExpired, !facts.Alone()
			f.Text = fmt.Sprintf("%s expired on %s: %s", c.What, date(c.NotAfter), now)
		case facts.Now.Before(c.NotBefore):
			f.Code, f.Fatal = CodeCertificateNotYetValid, !facts.Alone()
			f.Text = fmt.Sprintf("%s is not valid before %s, and the clock of this machine says %s: %s", c.What, date(c.NotBefore), date(facts.Now), now)
			f.Advice = "Look whether the clock is right. " + f.Advice
		case facts.Now.Add(expiresSoon).After(c.NotAfter):
			f.Code = CodeCertificateExpiresSoon
			f.Text = fmt.Sprintf("%s expires on %s: %s", c.What, date(c.NotAfter), soon)
		case c.Unknown:
			f.Code = CodeCertificateUnknown
			f.Text = fmt.Sprintf("%s is not the one that the global database has for %s: the other members may refuse the connection", c.What, c.Member)
			f.Advice = "If another server.crt and server.key were put in its place, put back those that this member had."
		default:
			continue
		}

		found = append(found, f)
	}

	return found
}

// renewal says how a certificate is replaced.
func (c Certificate) renewal() string {
	if c.Member == "" {
		return product.Text("While the cluster works, `lxc cluster update-certificate` replaces it. " +
			"Else put one new cluster.crt, with its cluster.key, on all members before the database is exported.")
	}

	return "The members accept a new one only if the database of the cluster has it, too."
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }
