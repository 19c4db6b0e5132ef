// SPDX-License-Identifier: AGPL-3.0-only

// Package machines gives each member of a cluster (package cluster) a machine of its own, with Debian's sshd: its own root, host name,
// processes and network. One machine more, on the same network, is no member, and may come in on all others by ssh.
//
// A machine is namespaces over the guests' image (package guest), or over the root of Incus, and nothing but sshd runs in it until somebody
// starts more: twenty of them are up in a second or two. There is no systemd: whoever has LXD started is the service manager.
//
// Nothing outlives the process: the first process of a machine is killed with it, and so is all that is in the machine. All files
// are in the cluster's directory.
package machines

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lxd-recover/lxd-recover/tests/cluster"
	"github.com/lxd-recover/lxd-recover/tests/guest"
	"github.com/lxd-recover/lxd-recover/tests/netns"
	"github.com/lxd-recover/lxd-recover/tests/progress"
	"github.com/lxd-recover/lxd-recover/tests/repository"
	"github.com/lxd-recover/lxd-recover/tests/tied"
)

const (
	giverName        = "giver"
	giverAddress     = "10.77.0.250/16"
	giverIPv6Address = "fd77::250/64"
)

// upTime bounds the start of one machine's sshd, in the machine's time.
const upTime = 30 * time.Second

// Lab is the machines of a cluster.
type Lab struct {
	Cluster *cluster.Cluster
	Giver   *Machine // is no member, and has the program that is tested

	machines []*Machine // of the members, in their order
	dir      string     // of all machines, in the cluster's
	image    string     // what they have in common
	lxd      cluster.LXD
	ipv6     bool
}

// Machine is one machine. Its first process is sshd.
type Machine struct {
	Name   string
	Member *cluster.Member // nil for the giver

	dir  string
	ns   *netns.Namespace
	cmd  *exec.Cmd
	gone chan struct{} // closed when all processes of the machine are gone
	pids *os.File      // its PID namespace
}

// New forms a cluster (see cluster.New) whose members run in a machine each, and makes one more for the giver, on which tool is
// /usr/bin/lxd-recover. On an error nothing is left.
func New(ctx context.Context, opts cluster.Options, tool string) (*Lab, error) {
	l := &Lab{lxd: opts.LXD, ipv6: opts.IPv6}
	opts.Place = l.place
	var err error
	l.Cluster, err = cluster.New(ctx, opts)
	if err == nil {
		err = l.addGiver(ctx, tool)
	}

	if err != nil {
		return nil, errors.Join(err, l.Close())
	}

	return l, nil
}

// ForTest is New for tests: see cluster.ForTest.
func ForTest(t testing.TB, opts cluster.Options, tool string) *Lab {
	t.Helper()
	l := &Lab{lxd: opts.LXD, ipv6: opts.IPv6}
	opts.Place = l.place
	t.Cleanup(l.end) // after the cluster's own end
	l.Cluster = cluster.ForTest(t, opts)
	err := l.addGiver(t.Context(), tool)
	if err != nil {
		t.Fatal(err)
	}

	return l
}

// place makes a member's machine.
func (l *Lab) place(ctx context.Context, c *cluster.Cluster, m *cluster.Member) (*cluster.Place, error) {
	var err error
	if l.dir == "" {
		l.image = l.lxd.Image
		if l.image == "" {
			l.image, err = guest.Image(ctx)
		}

		if err != nil {
			return nil, err
		}

		l.dir = filepath.Join(c.Dir(), "machines")
		err = os.Mkdir(l.dir, 0o700)
		if err == nil {
			err = keygen(ctx, l.key())
		}

		if err != nil {
			return nil, err
		}
	}

	machine := &Machine{Name: m.Name, Member: m, dir: filepath.Join(l.dir, m.Name), ns: m.Namespace()}
	err = machine.prepare(ctx, l.key())
	if err == nil {
		err = machine.spawn(l, c.Dir())
	}

	if err != nil {
		return nil, fmt.Errorf("machine of %s: %w", m.Name, err)
	}

	l.machines = append(l.machines, machine)
	return machine.place(), machine.waitUp(ctx) // whoever enters before its first process is in all namespaces is not in them, either
}

func (l *Lab) key() string { return filepath.Join(l.dir, "id") }

// addGiver makes the machine that is no member.
func (l *Lab) addGiver(ctx context.Context, tool string) error {
	known := ""
	for _, m := range l.machines {
		public, err := os.ReadFile(m.up(hostKey + ".pub"))
		if err != nil {
			return err
		}

		known += m.Member.IP() + "," + m.NewIP() + " " + string(public)
	}

	g := &Machine{Name: giverName, dir: filepath.Join(l.dir, giverName)}
	err := g.prepare(ctx, l.key())
	if err == nil {
		err = g.equip(l.key(), known, tool)
	}

	if err == nil {
		address := giverAddress
		if l.ipv6 {
			address = giverIPv6Address
		}

		g.ns, err = l.Cluster.Plug(ctx, address)
	}

	if err != nil {
		return err
	}

	l.Giver = g
	return errors.Join(g.spawn(l, l.Cluster.Dir()), g.waitUp(ctx))
}

// Restore is cluster.Restore. Machines are started anew, with nothing in them of what was there.
func (l *Lab) Restore(ctx context.Context, name string) error {
	for _, m := range l.machines {
		m.PowerOff()
	}

	err := l.Cluster.Restore(ctx, name)
	for _, m := range l.machines {
		if err == nil {
			err = m.again(ctx, l)
		}
	}

	return err
}

// again starts a machine anew. It keeps its keys.
func (m *Machine) again(ctx context.Context, l *Lab) error {
	for _, name := range []string{"work", "up/var"} {
		err := os.RemoveAll(filepath.Join(m.dir, name))
		if err == nil {
			err = os.MkdirAll(filepath.Join(m.dir, name), 0o755)
		}

		if err != nil {
			return err
		}
	}

	_ = m.pids.Close()
	err := m.spawn(l, l.Cluster.Dir())
	if err != nil {
		return err
	}

	m.Member.PutInto(m.place())
	return m.waitUp(ctx)
}

// Of is a member's machine.
func (l *Lab) Of(m *cluster.Member) *Machine { return l.machines[m.ID-1] }

// Close ends everything and removes it.
func (l *Lab) Close() error {
	var err error
	if l.Cluster != nil {
		err = l.Cluster.Close()
	}

	l.end()
	return err
}

// end ends all machines with all that runs in them.
func (l *Lab) end() {
	for _, m := range append([]*Machine{l.Giver}, l.machines...) {
		if m != nil && m.cmd != nil {
			m.PowerOff()
			_ = m.pids.Close()
			m.cmd = nil
		}
	}

	if l.Giver != nil && l.Giver.ns != nil {
		_ = l.Giver.ns.Close()
		l.Giver.ns = nil
	}
}

func keygen(ctx context.Context, file string) error {
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ssh-keygen: %w: %s", err, bytes.TrimSpace(out))
	}

	return nil
}

// hostKey is sshd's, in a machine.
const hostKey = "etc/ssh/machine_key"

const sshdConfig = `HostKey /` + hostKey + `
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
MaxStartups 100
UseDNS no
Subsystem sftp internal-sftp
`

// prepare makes the upper layer of the machine's root.
func (m *Machine) prepare(ctx context.Context, userKey string) error {
	for _, dir := range []string{"root", "work", "up/etc/ssh", "up/root/.ssh"} {
		err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755)
		if err != nil {
			return err
		}
	}

	authorized, err := os.ReadFile(userKey + ".pub")
	return errors.Join(err,
		keygen(ctx, m.up(hostKey)),
		os.Chmod(m.up("root"), 0o700),
		os.WriteFile(m.up("etc/ssh/machine_config"), []byte(sshdConfig), 0o600),
		os.WriteFile(m.up("root/.ssh/authorized_keys"), authorized, 0o600),
		os.WriteFile(m.up("etc/hostname"), []byte(m.Name+"\n"), 0o644))
}

// equip gives the giver what it needs to come in on the others.
func (m *Machine) equip(userKey string, known string, tool string) error {
	key, err := os.ReadFile(userKey)
	if err != nil {
		return err
	}

	program, err := os.ReadFile(tool)
	if err != nil {
		return err
	}

	return errors.Join(
		os.WriteFile(m.up("root/.ssh/id_ed25519"), key, 0o600),
		os.WriteFile(m.up("root/.ssh/known_hosts"), []byte(known), 0o600),
		os.MkdirAll(m.up("usr/bin"), 0o755),
		os.WriteFile(m.up("usr/bin/lxd-recover"), program, 0o755))
}

func (m *Machine) up(name string) string { return filepath.Join(m.dir, "up", name) }

// NewIP is one more address for the member, on the same network: the giver knows the host's key there, too.
func (m *Machine) NewIP() string {
	return strings.NewReplacer("10.77.0.", "10.77.1.", "fd77::", "fd77::1:").Replace(m.Member.IP())
}

// Network is where the machine is on the network: commands run there by nsenter, with the programs of this machine.
func (m *Machine) Network() *netns.Namespace { return m.ns }

//go:embed machine.sh
var machineScript string

// spawn starts the machine and does not wait for it. The directory shared has its own name in it.
func (m *Machine) spawn(l *Lab, shared string) error {
	repository, err := repository.Root()
	if err != nil {
		return err
	}

	output, err := os.Create(filepath.Join(m.dir, "sshd.log"))
	if err != nil {
		return err
	}

	defer output.Close()
	cmd := exec.Command("nsenter", "--net="+m.ns.Path(), "/bin/sh", "-c", machineScript, "machine.sh")
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"OWNER=" + strconv.Itoa(os.Getpid()),
		"DIR=" + m.dir,
		"IMAGE=" + l.image,
		"NAME=" + m.Name,
		"LXD=",
		"HOME_OF_LXD=" + l.lxd.Names.Home,
		"PROGRAMS=" + l.programs(),
		"BIND=" + shared + " " + filepath.Join(repository, ".deps"),
	}
	if m.Member != nil {
		cmd.Env = append(cmd.Env, "LXD="+m.Member.Dir())
	}

	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWUTS, Unshareflags: unix.CLONE_NEWNS}
	err = tied.Start(cmd)
	if err != nil {
		return err
	}

	m.cmd, m.gone = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(m.gone)
	}()
	m.pids, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", cmd.Process.Pid))
	return err
}

// programs are those of an LXD that are to be in the machines in place of the image's, which are Debian's.
func (l *Lab) programs() string {
	if l.lxd.BinDir == "" || l.lxd.LibDir != "" || l.lxd.Image != "" { // the latter are Debian's, too
		return ""
	}

	return filepath.Join(l.lxd.BinDir, l.lxd.Names.Daemon) + " " + filepath.Join(l.lxd.BinDir, l.lxd.Names.Client)
}

// waitUp waits until sshd listens.
func (m *Machine) waitUp(ctx context.Context) error {
	ctx, cancel := progress.Within(ctx, upTime)
	defer cancel()
	for {
		// State 0A is listening, 0016 the port.
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", m.cmd.Process.Pid))
		if err == nil && bytes.Contains(table, []byte(":0016 00000000:0000 0A")) {
			return nil
		}

		select {
		case <-m.gone:
			return m.failed(errors.New("it has ended"))
		case <-ctx.Done():
			return m.failed(context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (m *Machine) failed(err error) error {
	said, _ := os.ReadFile(filepath.Join(m.dir, "sshd.log"))
	return fmt.Errorf("sshd on %s: %w: %s", m.Name, err, bytes.TrimSpace(said))
}

// enter is the command line that enters the machine, but for the PID namespace.
func (m *Machine) enter() []string {
	return []string{"nsenter", "--target", strconv.Itoa(m.cmd.Process.Pid), "--mount", "--uts", "--net", "--root", "--wd"}
}

func (m *Machine) place() *cluster.Place { return &cluster.Place{Enter: m.enter(), PIDs: m.pids} }

// PowerOff kills the machine's first process: the kernel kills all others of its PID namespace, LXD among them. It returns when they are
// gone.
func (m *Machine) PowerOff() {
	_ = m.cmd.Process.Kill()
	<-m.gone
}

// Command prepares a program to run on the machine, as root and in root's home directory. It ends with ctx, and with this process.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := append(m.enter()[1:], "--pid", "setpriv", "--pdeathsig", "KILL", "env", "--ignore-environment", "--chdir=/root",
		"HOME=/root", "USER=root", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", name)
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // for children that keep the output open
	return cmd
}

// Sent is how many bytes have left the machine by its network so far.
func (m *Machine) Sent() (int64, error) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", m.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}

	// eth0: eight numbers of what has come in, then bytes that have gone out.
	for line := range strings.Lines(string(table)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(rest)
		if name == "eth0" && len(fields) > 8 {
			return strconv.ParseInt(fields[8], 10, 64)
		}
	}

	return 0, fmt.Errorf("%s: no eth0 in %q", m.Name, table)
}

// Address is where ssh reaches the member's machine.
func (m *Machine) Address() string { return m.Member.IP() }

// NewAddress is NewIP with the port of the member's LXD.
func (m *Machine) NewAddress() string {
	_, port, _ := net.SplitHostPort(m.Member.Address())
	return net.JoinHostPort(m.NewIP(), port)
}
