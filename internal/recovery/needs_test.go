// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

// withoutAddresses has this machine lack the addresses that begin so.
func withoutAddresses(t *testing.T, prefix string) {
	t.Helper()
	before := bindable
	t.Cleanup(func() { bindable = before })
	bindable = func(_ context.Context, address string) (preflight.Presence, string) {
		if strings.HasPrefix(address, prefix) {
			return preflight.Absent, ""
		}

		return preflight.Here, ""
	}
}

// withAddress is the lab's member list with another address of one member.
func (l stateLab) withAddress(id uint64, address string) member.List {
	list := l.list(raftlog.Voter, raftlog.Voter, raftlog.Voter)
	list[id-1].Address = address
	return list
}

// certain are the codes of the findings, those that are fatal with a mark.
func certain(found []preflight.Finding) string {
	var all []string
	for _, f := range found {
		mark := ""
		if f.Fatal {
			mark = "!"
		}

		all = append(all, f.Code+mark)
	}

	return strings.Join(all, " ")
}

// A mistyped address of this member goes no further than the edit, and where it got further, no further than the import.
func TestAddressAbsent(t *testing.T) {
	l := newStateLab(t)
	withoutAddresses(t, "10.142.")
	refused := Refusal{Code: "address-absent", Member: "node2", Flag: "--address-absent",
		Reason: "this machine does not have the address 10.142.0.2:8443, which is set as cluster.https_address: LXD does not start without it"}
	_, err := l.edit(t, l.withAddress(2, "10.142.0.2:8443"), nil)
	wantRefusal(t, err, refused)
	if s := l.status(t); len(s.Problems)+len(s.Findings) > 0 {
		t.Errorf("after a refused edit: %q, %v", s.Problems, s.Findings)
	}

	edited, err := l.edit(t, l.withAddress(2, "10.142.0.2:8443"), func(o *EditOptions) { o.AddressAbsent = true })
	must(t, err)
	wantWarning(t, edited.Warnings, refused.Reason)
	exported, tarball, err := l.export(t, nil)
	must(t, err)
	wantWarning(t, exported.Warnings, refused.Reason)
	before := signature(l.dir.global())
	for _, dryRun := range []bool{true, false} {
		r, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DryRun, o.DiscardLocal = dryRun, true })
		wantRefusal(t, err, refused)
		if certain(r.Findings) != "address-absent!" || signature(l.dir.global()) != before {
			t.Errorf("dry run %t: %v", dryRun, r.Findings)
		}
	}

	s := l.status(t)
	if certain(s.Findings) != "address-absent!" || len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], refused.Reason) {
		t.Errorf("status: %v, %q", s.Findings, s.Problems)
	}

	r, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal, o.AddressAbsent = true, true })
	if err != nil || !r.Done {
		t.Errorf("with the flag: %+v, %v", r, err)
	}
}

// An address that is in force already, and that this machine does not have, is said and is no reason to refuse: it may come back.
func TestAddressGone(t *testing.T) {
	l := newStateLab(t)
	withoutAddresses(t, "127.6.6.102:")
	r, err := l.edit(t, l.withAddress(2, "127.6.6.102:9393"), nil)
	must(t, err)
	if certain(r.Findings) != "address-gone!" {
		t.Errorf("edit: %v", r.Findings)
	}

	_, tarball, err := l.export(t, nil)
	must(t, err)
	imported, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal = true })
	if err != nil || certain(imported.Findings) != "address-gone!" {
		t.Errorf("import: %v, %v", imported, err)
	}
}

// Another member's new address where nobody answers is a doubt; one that no member can have is an error. Those that are in force are
// neither: all of the lab's are loopback addresses.
func TestNewAddresses(t *testing.T) {
	l := newStateLab(t)
	for address, wrong := range map[string]string{
		"0.0.0.0:8443":            `member "node1": address "0.0.0.0:8443" stands for all addresses of a machine`,
		"127.0.0.1:8443":          `member "node1": address "127.0.0.1:8443" is one under which a machine reaches itself`,
		"10.92.0.256:8443":        "10.92.0.256 is not an IP address",
		"10.92.0.1:08443":         "write 10.92.0.1:8443",
		"[::ffff:10.0.0.1]:8443":  "write 10.0.0.1:8443",
		"127.6.6.103:8443":        "have the same address 127.6.6.103:8443",
		"NODE3.example:8443":      "write node3.example:8443",
		"[::ffff:127.6.6.3]:8443": "one under which a machine reaches itself",
	} {
		_, err := l.edit(t, l.withAddress(1, address), nil)
		wantError(t, err, wrong)
	}

	r, err := l.edit(t, l.withAddress(1, "192.0.2.7:8443"), nil) // TEST-NET-1
	must(t, err)
	wantWarning(t, r.Warnings, "no machine answers at 192.0.2.7:8443, the new address of node1")
	if certain(r.Findings) != "address-silent" {
		t.Errorf("%v", r.Findings)
	}

	// LXD's own edit takes anything.
	l = newStateLab(t)
	l.exec(t, "UPDATE raft_nodes SET address = '0.0.0.0:8443' WHERE id = 1")
	l.append(t, raftlog.ChangeEntry, raftlog.EncodeConfiguration(servers(l.withAddress(1, "0.0.0.0:8443"))))
	_, file, err := l.export(t, nil)
	wantRefusal(t, err, Refusal{Code: "address-unusable", Member: "node1", Reason: `address "0.0.0.0:8443" stands for all addresses`})
	if exists(file) {
		t.Errorf("%s was written", file)
	}
}

// Every other setting with an old address is named; one without which LXD does not start is to be changed first.
func TestSettingsWithOldAddresses(t *testing.T) {
	l := newStateLab(t)
	withoutAddresses(t, "127.6.6.102:")
	l.exec(t, "INSERT INTO config (key, value) VALUES ('core.metrics_address', '127.6.6.102:9100'), ('core.bgp_routerid', '127.6.6.102')")
	l.transact(t, "INSERT INTO config (key, value) VALUES ('network.ovn.northbound_connection', 'ssl:127.6.6.101:6641,ssl:127.6.6.102:6641'), "+
		"('core.proxy_http', 'http://user:secret@127.6.6.102:3128'), ('user.near', '127.6.6.1022')")
	list := l.withAddress(2, "10.6.6.102:8443")
	_, err := l.edit(t, list, nil)
	const sql = "UPDATE config SET value = '10.6.6.102:9100' WHERE key = 'core.metrics_address';"
	wantRefusal(t, err, Refusal{Code: "address-absent", Member: "node2", Flag: "--address-absent", Reason: sql})

	must(t, os.WriteFile(filepath.Join(l.dir.database(), "patch.local.sql"), []byte(sql), 0o600))
	r, err := l.edit(t, list, nil)
	must(t, err)
	const was = " still names 127.6.6.102, which was an address of node2 and is 10.6.6.102:8443 now"
	var named []string
	for _, f := range r.Findings {
		named = append(named, strings.TrimSuffix(f.Text, was))
	}

	want := []string{"setting core.bgp_routerid of this member",
		"config network.ovn.northbound_connection of the cluster", "config core.proxy_http of the cluster"}
	if !slices.Equal(named, want) {
		t.Errorf("named are %q, want %q", named, want)
	}

	if strings.Contains(fmt.Sprint(r), "secret") {
		t.Errorf("a secret is in the report: %+v", r)
	}
}

// installedHere has an LXD with that schema be in PATH.
func installedHere(t *testing.T, version string, schema int) preflight.LXD {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lxd")
	script := fmt.Sprintf("#!/bin/sh\necho %s\nexit\nlxd/db/cluster.updateFromV%d\x00", version, schema-1)
	must(t, os.WriteFile(file, []byte(script), 0o755))
	t.Setenv("PATH", filepath.Dir(file)+":"+os.Getenv("PATH"))
	return preflight.LXD{Program: file, Version: version, Schema: schema}
}

// A tarball of LXD 6.9, schema 88, on a member with LXD 5.0.2, schema 60.
func TestSchemaNewer(t *testing.T) {
	l := newStateLab(t)
	refused := Refusal{Code: "schema-newer", Member: "node2", Flag: "--newer-schema"}

	// Nothing tells what is installed: the member's own row does, in its own database or in the tarball's.
	t.Setenv("PATH", t.TempDir())
	l.transact(t, "UPDATE nodes SET schema = 60 WHERE id = 2")
	refused.Reason = "the global database has schema 88, and the LXD that ran last on this member had schema 60: " +
		"unless it was upgraded since, it does not start"
	_, err := l.importDB(t.Context(), nil)
	wantRefusal(t, err, refused)

	old := installedHere(t, "5.0.2", 60)
	refused.Reason = fmt.Sprintf("the global database has schema 88, and the LXD 5.0.2 that is installed here (%s) knows schemas up to 60: "+
		"it does not start", old.Program)
	r, err := l.importDB(t.Context(), func(o *ImportOptions) { o.DryRun, o.DiscardLocal = true, true })
	wantRefusal(t, err, refused)
	if r.LXD != old {
		t.Errorf("installed is %+v, want %+v", r.LXD, old)
	}

	s := l.status(t)
	if s.LXD != old || !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.HasPrefix(p, refused.Reason) }) {
		t.Errorf("status: %+v, %q", s.LXD, s.Problems)
	}

	exported, _, err := l.export(t, nil)
	must(t, err)
	wantWarning(t, exported.Warnings, refused.Reason)
	_, err = l.importDB(t.Context(), func(o *ImportOptions) { o.DiscardLocal, o.NewerSchema = true, true })
	must(t, err)

	// It was upgraded, and has not run since.
	l = newStateLab(t)
	l.transact(t, "UPDATE nodes SET schema = 60 WHERE id = 2")
	installedHere(t, "6.9", 88)
	_, err = l.importDB(t.Context(), func(o *ImportOptions) { o.DiscardLocal = true })
	must(t, err)
}

// Back to before an upgrade: what LXD does again, and what not.
func TestBackOverUpgrade(t *testing.T) {
	l := newStateLab(t)
	t.Setenv("PATH", t.TempDir())
	before := openDir(t, l.dir.global()).LastIndex
	l.transact(t, "INSERT INTO schema (version, updated_at) VALUES (89, 4000000000); UPDATE nodes SET schema = 89")
	l.exec(t, "INSERT INTO patches (name, applied_at) VALUES ('patch_of_the_upgrade', 4000000000)")
	r, tarball, err := l.export(t, func(o *ExportOptions) { o.At, o.Confirm = before, func(*ExportReport) error { return nil } })
	must(t, err)
	const schema = "the global database has schema 88, and LXD has schema 89 here: when LXD starts it brings the database from the one to the other"
	const patches = "the node database marks patches of LXD's own as applied that are newer than the global database: patch_of_the_upgrade. "
	wantWarning(t, r.Warnings, schema)
	wantWarning(t, r.Warnings, patches)
	imported, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal = true })
	must(t, err)
	wantWarning(t, imported.Warnings, schema)
	wantWarning(t, imported.Warnings, patches)
}

// certificate writes a self-signed certificate.
func certificate(t *testing.T, file string, from time.Time, to time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to}
	data, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: data}), 0o644))
}

// A cluster certificate that is out of date, or about to be, is named before anything is done in vain. (canonical/lxd#16690)
func TestExpiredClusterCertificate(t *testing.T) {
	l := newStateLab(t)
	file := l.dir.join(clusterCertificateName)
	certificate(t, file, time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2025, 4, 1, 0, 0, 0, 0, time.UTC))
	expired := "the cluster certificate, " + file + ", expired on 2025-04-01: the members refuse each other's connections, and the cluster gets no leader"
	s := l.status(t)
	if certain(s.Findings) != "certificate-expired!" || len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], expired) {
		t.Errorf("status: %v, %q", s.Findings, s.Problems)
	}

	inspected, err := Inspect(t.Context(), l.dir.path, Progress{})
	must(t, err)
	if !slices.ContainsFunc(inspected.Problems, func(p raftlog.Problem) bool { return p.Text == expired && p.Severity == raftlog.Warning }) {
		t.Errorf("inspect: %v", inspected.Problems)
	}

	edited, err := l.edit(t, l.withAddress(2, "127.6.6.102:9393"), nil)
	must(t, err)
	wantWarning(t, edited.Warnings, expired)
	exported, tarball, err := l.export(t, nil)
	must(t, err)
	wantWarning(t, exported.Warnings, expired)
	imported, err := l.importFrom(t, tarball, func(o *ImportOptions) { o.DiscardLocal = true })
	must(t, err)
	wantWarning(t, imported.Warnings, expired)

	certificate(t, file, time.Now().Add(-time.Hour), time.Now().Add(29*24*time.Hour))
	s = l.status(t)
	if certain(s.Findings) != "certificate-expires-soon" || len(s.Problems) > 0 || len(s.Warnings) != 1 {
		t.Errorf("29 days left: %v, %q, %q", s.Findings, s.Problems, s.Warnings)
	}
}

// A report says which machine and which LXD it is from.
func TestInspectMachine(t *testing.T) {
	l := newStateLab(t)
	installed := installedHere(t, "6.9", 88)
	r, err := Inspect(t.Context(), l.dir.path, Progress{})
	must(t, err)
	host, err := os.Hostname()
	must(t, err)
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(t, err)
	want := InspectMachine{HostName: host, BootID: strings.TrimSpace(string(id)), LXD: installed}
	if r.Machine == nil || *r.Machine != want {
		t.Errorf("machine is %+v, want %+v", r.Machine, want)
	}

	r, err = Inspect(t.Context(), l.tarball, Progress{})
	if err != nil || r.Machine != nil {
		t.Errorf("a tarball is of the machine %+v (%v)", r.Machine, err)
	}
}
