// SPDX-License-Identifier: AGPL-3.0-only

package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Codes of findings about addresses.
const (
	CodeAddressAbsent    = "address-absent"     // a new one, which this machine does not have, and without which LXD does not start
	CodeAddressGone      = "address-gone"       // the same of one that is in force already: it may come back
	CodeAddressUnknown   = "address-unknown"    // whether this machine has it cannot be told, or does not decide
	CodeAddressUnusable  = "address-unusable"   // no member can have it
	CodeAddressSilent    = "address-silent"     // no machine answers there
	CodeAddressLeft      = "address-left"       // another setting names an address that is no member's any more
	CodeCoreNotReachable = "address-not-served" // LXD starts, and does not listen there
)

// Settings of the node database that name an address of this machine. LXD listens on it when it starts.
const (
	KeyCluster = "cluster.https_address"
	KeyCore    = "core.https_address"
)

// listening are the settings with an address without which LXD does not start. For core.https_address see checkOwnAddresses.
var listening = map[string]bool{
	KeyCluster: true, "core.bgp_address": true, "core.debug_address": true, "core.dns_address": true, "core.metrics_address": true,
	"core.storage_buckets_address": true,
}

// Listening tells whether a setting of the node database is an address on which LXD listens.
func Listening(key string) bool { return key == KeyCore || listening[key] }

// OwnAddress is an address of this member, as it will be when LXD starts.
type OwnAddress struct {
	Key     string // the setting that has it
	Address string // as it is set
	New     bool   // LXD has not listened on it here before
	Here    Presence
	Why     string // the reason of a Presence that is Unknown; empty for none
}

// Left is a setting that names an address which a member has had, and has no more.
type Left struct {
	Where   string // the setting, for people
	Address string // HOST of it, or what of it is in the setting
	Member  string // whose it was
	New     string // what that member has now
	Key     string // of a setting of this member's node database; empty for one in the global database
}

// Silent is a new address of another member at which no machine answers.
type Silent struct{ Member, Address string }

// Presence tells whether this machine has an address.
type Presence int

// What is known of an address.
const (
	Unknown Presence = iota
	Here
	Absent
)

// lookupTimeout bounds how long a name may take to be looked up.
const lookupTimeout = 5 * time.Second

// Bindable tells whether LXD could listen on an address HOST:PORT of this machine, in the network namespace of this process. The kernel
// itself is asked, for a socket that is bound to the address, to no port in particular, and listens to nothing: so addresses count that
// are no interface's, where the kernel is set up for them (ip_nonlocal_bind, local routes). why says what is in the way of an answer.
func Bindable(ctx context.Context, address string) (found Presence, why string) {
	host := member.Host(address)
	if host == "" || host == "*" {
		return Here, ""
	}

	ip, err := netip.ParseAddr(host)
	if err == nil {
		return bindable([]netip.Addr{ip})
	}

	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()

	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return Unknown, fmt.Sprintf("%s cannot be looked up: %v", host, err)
	}

	found, why = bindable(all)
	if found == Absent && len(all) > 0 {
		why = fmt.Sprintf("%s is %s", host, all[0].Unmap())
	}

	return found, why
}

// bindable tells whether the first of these addresses, which is the one that Go listens on, is this machine's. IPv4 comes first.
func bindable(all []netip.Addr) (found Presence, why string) {
	for _, ip := range all {
		if ip.Unmap().Is4() {
			return bind(ip.Unmap())
		}
	}

	for _, ip := range all {
		return bind(ip)
	}

	return Unknown, "it has no address"
}

func bind(ip netip.Addr) (found Presence, why string) {
	family := unix.AF_INET
	var to unix.Sockaddr
	if ip.Is4() {
		to = &unix.SockaddrInet4{Addr: ip.As4()}
	} else {
		zone := uint32(0)
		if ip.Zone() != "" {
			device, err := net.InterfaceByName(ip.Zone())
			if err != nil {
				return Absent, ""
			}

			zone = uint32(device.Index)
		}

		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: ip.As16(), ZoneId: zone}
	}

	socket, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) { // IPv6 is switched off
		return Absent, ""
	}

	if err != nil {
		return Unknown, err.Error()
	}

	defer unix.Close(socket)

	err = unix.Bind(socket, to)
	switch {
	case err == nil:
		return Here, ""
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.ENODEV):
		return Absent, ""
	}

	return Unknown, err.Error()
}

// checkMemberAddresses looks at the addresses that members are to have from now on.
func checkMemberAddresses(facts Facts) []Finding {
	var found []Finding
	for _, m := range facts.Members {
		old, known := facts.InForce[m.ID]
		if !known {
			continue
		}

		err := member.CheckChange(old, m.Address)
		if err != nil {
			found = append(found, Finding{Code: CodeAddressUnusable, Member: m.Name, Fatal: true,
				Text: fmt.Sprintf("member %s: %v", m.Name, err), Advice: "Give it another one with `lxd-recover cluster edit`, and export again."})
		}
	}

	for _, s := range facts.Silent {
		found = append(found, Finding{Code: CodeAddressSilent, Member: s.Member,
			Text:   fmt.Sprintf("no machine answers at %s, the new address of %s", s.Address, s.Member),
			Advice: "Look whether it is the right one: the machine may only be off, or a firewall may be silent."})
	}

	return found
}

// checkOwnAddresses looks for addresses that LXD is to listen on and this machine does not have.
func checkOwnAddresses(facts Facts) []Finding {
	cluster, core := "", ""
	for _, a := range facts.OwnAddresses {
		switch a.Key {
		case KeyCluster:
			cluster = a.Address
		case KeyCore:
			core = a.Address
		}
	}

	var found []Finding
	for _, a := range facts.OwnAddresses {
		f := Finding{Member: facts.name(), Text: fmt.Sprintf("%s, which is set as %s", a.Address, a.Key)}
		if a.Why != "" {
			f.Text += " (" + a.Why + ")"
		}

		switch {
		case a.Here == Here, a.Key == KeyCore && a.Address == cluster: // of the cluster's it is said already
			continue
		case a.Here == Unknown:
			f.Code = CodeAddressUnknown
			f.Text = "whether this machine has the address " + f.Text + ", cannot be told"
		case a.Key == KeyCluster && covers(core, cluster):
			f.Code = CodeAddressUnknown
			f.Text = product.Sprintf("this machine does not have the address %s: LXD starts, as it listens on all addresses (%s is %s), and the others reach "+
				"it only if something forwards that address to this machine", f.Text, KeyCore, core)
		case listening[a.Key]:
			f.Code, f.Fatal = CodeAddressGone, true
			if a.New {
				f.Code = CodeAddressAbsent
			}

			f.Text = product.Sprintf("this machine does not have the address %s: LXD does not start without it (cannot assign requested address)", f.Text)
			f.Advice = facts.absentAdvice(a)
		default:
			f.Code = CodeCoreNotReachable
			f.Text = product.Sprintf("this machine does not have the address %s: LXD starts, and clients do not reach it there", f.Text)
			f.Advice = product.Text("`lxc config set ") + a.Key + product.Text("` changes it when LXD is up.")
		}

		found = append(found, f)
	}

	return found
}

// absentAdvice says what to do about an address that LXD does not start without.
func (facts Facts) absentAdvice(a OwnAddress) string {
	switch {
	case a.Key == KeyCluster && !a.New:
		return product.Text("Give this machine the address before LXD is started. If it has another one now, `lxd-recover cluster edit` corrects the " +
			"member list.")
	case a.Key == KeyCluster:
		return product.Text("If it is mistyped, correct it, after an edit with another `lxd-recover cluster edit` and a new export; " +
			"else give this machine the address before LXD is started.")
	}

	self, _ := facts.Members.ByID(facts.Self)
	_, port, err := net.SplitHostPort(a.Address)
	host := member.Host(self.Address)
	if err != nil || host == "" || host == self.Address {
		return product.Text("Give this machine the address before LXD is started, or change the setting in ") + patchLocal + "."
	}

	return product.Sprintf("Give this machine the address before LXD is started, or write the change into %s, which LXD runs first: %s",
		patchLocal, SettingSQL(a.Key, net.JoinHostPort(host, port)))
}

// patchLocal is the file of SQL that LXD runs on the node database before it looks at it.
const patchLocal = "database/patch.local.sql"

// SettingSQL is the SQL that changes a setting of the node database.
func SettingSQL(key string, value string) string {
	quoted := func(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
	return fmt.Sprintf("UPDATE config SET value = %s WHERE key = %s;", quoted(value), quoted(key))
}

// covers tells whether LXD, listening on one address, listens on another one, too: on all addresses, on the same port.
func covers(wide string, address string) bool {
	host, port, err := net.SplitHostPort(wide)
	if err != nil {
		return false
	}

	_, other, err := net.SplitHostPort(address)
	if err != nil || port != other {
		return false
	}

	ip, err := netip.ParseAddr(cmp.Or(host, "::"))
	return err == nil && ip.Unmap().IsUnspecified()
}

// checkLeft names the other settings that still have an address which a member has no more.
func checkLeft(facts Facts) []Finding {
	var found []Finding
	for _, l := range facts.Left {
		f := Finding{Code: CodeAddressLeft, Member: l.Member,
			Text:   fmt.Sprintf("%s still names %s, which was an address of %s and is %s now", l.Where, l.Address, l.Member, l.New),
			Advice: product.Text("Change it when LXD is up, if it means that machine.")}
		if l.Key != "" {
			f.Advice = product.Sprintf("`lxc config set %s` changes it when LXD is up.", l.Key)
		}

		found = append(found, f)
	}

	return found
}
