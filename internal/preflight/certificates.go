// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// expiresSoon is how long before its end a certificate is worth a word.
const expiresSoon = 30 * 24 * time.Hour

// Certificate is one that LXD shows to others.
type Certificate struct {
	What      string // which one, as the subject of a sentence
	Member    string // whose it is; empty for the cluster's
	NotBefore time.Time
	NotAfter  time.Time
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

// checkCertificates looks for certificates that are not in date: members refuse each other then.
func checkCertificates(facts Facts) []Finding {
	var found []Finding
	for _, c := range facts.Certificates {
		f := Finding{Member: c.Member}
		switch {
		case facts.Now.After(c.NotAfter):
			f.Code, f.Fatal = "certificate-expired", true
			f.Text = fmt.Sprintf("%s expired on %s: members refuse each other's connections", c.What, date(c.NotAfter))
		case facts.Now.Before(c.NotBefore):
			f.Code, f.Fatal = "certificate-not-yet-valid", true
			f.Text = fmt.Sprintf("%s is not valid before %s, and it is %s here", c.What, date(c.NotBefore), date(facts.Now))
		case facts.Now.Add(expiresSoon).After(c.NotAfter):
			f.Code = "certificate-expires-soon"
			f.Text = fmt.Sprintf("%s expires on %s", c.What, date(c.NotAfter))
		default:
			continue
		}

		found = append(found, f)
	}

	return found
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }
