// SPDX-License-Identifier: AGPL-3.0-only

package member

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// Host is the host of an address HOST:PORT, without brackets; the whole address where it is none.
func Host(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}

	return host
}

// Canonical is the one spelling of an address that may be spelled in several: names in lower case, IP addresses as the kernel has them,
// no zeros before the port. An address that is not HOST:PORT stays as it is.
func Canonical(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}

	n, err := strconv.ParseUint(port, 10, 16)
	if err == nil {
		port = strconv.FormatUint(n, 10)
	}

	return net.JoinHostPort(CanonicalHost(host), port)
}

// CanonicalHost is the one spelling of a host.
func CanonicalHost(host string) string {
	ip, err := netip.ParseAddr(host)
	if err == nil {
		return ip.Unmap().String()
	}

	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// hostName is a name that can be looked up.
var hostName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)

// numeric is a host whose last part is a number: it is meant for an IPv4 address, and libraries take it for one.
var numeric = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)

// CheckAddress checks an address that a member of a cluster is to have from now on. One that is in force already may be odder: it works.
func CheckAddress(address string) error {
	err := validAddress(address)
	if err != nil {
		return err
	}

	host := Host(address)
	lower := CanonicalHost(host)
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil && (numeric.MatchString(lower) || strings.Contains(lower, ":")):
		return fmt.Errorf("address %q has no usable host: %s is not an IP address", address, host)
	case err != nil && (!hostName.MatchString(lower) || len(lower) > maxHost):
		return fmt.Errorf("address %q has no usable host: %s is neither an IP address nor a host name", address, host)
	case lower == "localhost" || strings.HasSuffix(lower, ".localhost") || ip.Unmap().IsLoopback():
		return fmt.Errorf("address %q is one under which a machine reaches itself: the other members would not reach this one", address)
	case ip.Unmap().IsUnspecified():
		return fmt.Errorf("address %q stands for all addresses of a machine: a member of a cluster needs one under which the others reach it", address)
	case ip.Unmap().IsMulticast() || ip.Unmap() == broadcast:
		return fmt.Errorf("address %q is not the address of one machine", address)
	}

	canonical := Canonical(address)
	if canonical != address {
		return spelling(address, canonical)
	}

	return nil
}

func spelling(address string, canonical string) error {
	return product.Errorf("address %q has another usual spelling, and LXD takes two spellings for two addresses: write %s", address, canonical)
}

// CheckChange checks an address that takes the place of one that is in force, empty for none. A host that stays may be odd.
func CheckChange(inForce string, address string) error {
	switch {
	case inForce == address:
		return nil
	case inForce == "" || Host(inForce) != Host(address):
		return CheckAddress(address)
	}

	err := validAddress(address)
	if err != nil {
		return err
	}

	_, port, err := net.SplitHostPort(Canonical(address))
	if err == nil && !strings.HasSuffix(address, ":"+port) {
		return spelling(address, net.JoinHostPort(Host(address), port))
	}

	return err
}

// maxHost is how long a name in the DNS can be, in bytes.
const maxHost = 253

// broadcast is the address of all machines of a network.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// ValidateNew checks a list that is to take the place of another one: as Validate does, and the addresses that are new more strictly.
// inForce are the addresses that members have already, by their ids.
func (l List) ValidateNew(inForce map[uint64]string) error {
	err := l.Validate()
	if err != nil {
		return err
	}

	spelled := map[string]Member{}
	for _, m := range l {
		isNew := inForce[m.ID] != m.Address
		err = CheckChange(inForce[m.ID], m.Address)
		if err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}

		other, ok := spelled[Canonical(m.Address)]
		if ok && (isNew || inForce[other.ID] != other.Address) {
			return fmt.Errorf("members %q and %q have the same address in two spellings, %s and %s", other.Name, m.Name, other.Address, m.Address)
		}

		spelled[Canonical(m.Address)] = m
	}

	return nil
}

// Mentions tells whether a text, a setting for instance, names a host or an address, which is not just part of another one there.
func Mentions(text string, host string) bool {
	text, host = strings.ToLower(text), strings.ToLower(host)
	if host == "" {
		return false
	}

	for at := 0; ; {
		found := strings.Index(text[at:], host)
		if found < 0 {
			return false
		}

		from, to := at+found, at+found+len(host)
		if !continues(text[:from], host, false) && !continues(text[to:], host, true) {
			return true
		}

		at = from + 1
	}
}

// continues tells whether a text goes on with the host that it is beside: as a word or number, with a dot before or after more of it, or,
// for an IPv6 address without brackets, with a colon. What is beside a bracket does not go on.
func continues(beside string, host string, after bool) bool {
	if beside == "" {
		return false
	}

	next, more := beside[len(beside)-1], beside[:len(beside)-1]
	if after {
		next, more = beside[0], beside[1:]
	}

	wordy := func(c byte) bool { return c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' }
	switch {
	case wordy(next):
		return true
	case next == ':' && strings.Count(host, ":") > 1 && !strings.Contains(host, "]"):
		return true
	case next == '.' && after:
		return more != "" && wordy(more[0])
	case next == '.':
		return more != "" && wordy(more[len(more)-1])
	}

	return false
}
