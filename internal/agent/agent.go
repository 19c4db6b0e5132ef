// SPDX-License-Identifier: AGPL-3.0-only

// Package agent is a member's side of a run over the whole cluster: the use cases of package recovery, called one after another by the machine
// that gives the run. Local calls them in this process. Serve offers a Local's calls on a connection of package remote, and Remote calls them
// over one, so that the giver sees no difference.
package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/preflight"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Agent is what the giver calls on a member. The calls of a run come in the order of their phases.
type Agent interface {
	// Look looks at the member. It changes nothing.
	Look(ctx context.Context) (*recovery.MemberLook, error)

	// Transactions tells what the transactions of the member's log after an index changed.
	Transactions(ctx context.Context, after uint64) (*recovery.Transactions, error)

	// Quorum has LXD there, which answers, write something, and returns an error if no majority of the voters confirms it. See recovery.HasQuorum.
	Quorum(ctx context.Context) error

	// Probe tells what is found at addresses HOST:PORT from the member, and which of own it could listen on.
	Probe(ctx context.Context, opts ProbeOptions) (*ProbeReport, error)

	// State reads what the member's directory says after a run.
	State(ctx context.Context, opts StateOptions) (*recovery.MemberState, error)

	// KeptLoss tells what would be given up if a kept database took the place of the live one.
	KeptLoss(ctx context.Context, kept string) (*recovery.KeptLossReport, error)

	// InspectKept reads a kept database.
	InspectKept(ctx context.Context, kept string) (*recovery.InspectReport, error)

	// Support writes what somebody who helps needs to know of the member, as a tar file.
	Support(ctx context.Context, w io.Writer) error

	// Backup writes a backup of the cluster's database, made with a nonce, to w.
	Backup(ctx context.Context, nonce string, w io.Writer) (*recovery.BackupReport, error)

	// PrepareResync stops LXD on the member, and returns the nonce that a backup for it has to have. Resync puts the log of that backup, which it reads from r,
	// in place, starts LXD, and sees that it follows the leader. AbandonResync gives up what PrepareResync has begun: LXD runs again if it ran.
	PrepareResync(ctx context.Context) (*recovery.ResyncReport, error)
	Resync(ctx context.Context, opts ResyncOptions, r io.Reader) (*ResyncOutcome, error)
	AbandonResync(ctx context.Context) error

	// Join makes the member part of a run. What it returns is nil if it is not part of it, after JoinRun.Again.
	Join(ctx context.Context, run JoinRun) (*recovery.OpenRun, error)

	Gate(ctx context.Context) error
	Stop(ctx context.Context) (killed bool, err error)

	// Make makes the tarball of the run here, Tarball writes it to w, Receive gets it from elsewhere.
	Make(ctx context.Context, opts recovery.MakeOptions) (*recovery.MakeReport, error)
	Tarball(ctx context.Context, w io.Writer) error
	Receive(ctx context.Context, digest string, r io.Reader) error

	Stage(ctx context.Context, opts recovery.StageOptions) (*recovery.ImportReport, error)
	Arm(ctx context.Context) error

	// Exchange is refused if LXD has written since Arm; accepted is the state of what may be given up, see recovery.WrittenSince.
	Exchange(ctx context.Context, accepted string) (*recovery.ImportReport, error)

	Start(ctx context.Context) error

	// Ready waits until LXD answers, and returns the members' addresses by name as it lists them; nil if it does not answer in time.
	Ready(ctx context.Context, timeout time.Duration) (map[string]string, error)

	Finish(ctx context.Context, noStart bool) error

	// TurnBack is called on all members before Withdraw is on the first: none can go on with the run from then on.
	TurnBack(ctx context.Context) error
	Withdraw(ctx context.Context) error

	// Done is closed when the agent can be called no more.
	Done() <-chan struct{}

	// Close ends the agent. A run that has not come to PhaseArmed on the member is withdrawn there, a resync that has not come to the exchange is
	// abandoned.
	Close() error
}

// JoinRun says which run a member becomes part of: see recovery.JoinOptions.
type JoinRun struct {
	Run   string `json:"run"`
	Giver string `json:"giver"`
	Plan  string `json:"plan"`
	Again bool   `json:"again"`

	Instead string `json:"instead,omitempty"`
}

// StateOptions say what of a member's state is read: see recovery.MemberStateOptions.
type StateOptions struct {
	Fence   bundle.Position `json:"fence"`
	At      uint64          `json:"at"`
	Outline bool            `json:"outline"`
}

// ProbeOptions are addresses, HOST:PORT each.
type ProbeOptions struct {
	Others []string `json:"others"` // of other members
	Own    []string `json:"own"`    // that LXD here is to listen on
}

// ProbeReport has an answer for each address.
type ProbeReport struct {
	Others []daemon.Reach `json:"others"`
	Absent []string       `json:"absent"` // of Own: this machine does not have them
}

// Local is the agent in this process.
type Local struct {
	opts Options
	mu   sync.Mutex // one call at a time
	part *recovery.Part
	done chan struct{}

	resyncing bool // LXD is stopped for a resync

	sayMu sync.Mutex
	said  func(line string) // where lines of progress go; nil for nowhere
}

// Options say what an agent works on.
type Options struct {
	LXDDir   string            // empty: this machine's
	Version  string            // of lxd-recover
	Timeout  time.Duration     // of a stop of LXD
	Progress recovery.Progress // Step is the agent's own
}

// NewLocal returns an agent that works on an LXD directory of this machine.
func NewLocal(opts Options) *Local {
	l := &Local{opts: opts, done: make(chan struct{})}
	l.opts.Progress.Step = l.step
	return l
}

// step passes a line of progress on.
func (l *Local) step(text string) {
	l.sayMu.Lock()
	defer l.sayMu.Unlock()

	if l.said != nil {
		l.said(text)
	}
}

// say says where lines of progress go.
func (l *Local) say(to func(line string)) {
	l.sayMu.Lock()
	defer l.sayMu.Unlock()

	l.said = to
}

var (
	errNotJoined = errors.New("this member is not part of a run")
	errClosed    = errors.New("this agent has ended")
)

// ended tells whether the agent was closed: what is left of its part is then another one's to go on with.
func (l *Local) ended() error {
	select {
	case <-l.done:
		return errClosed
	default:
		return nil
	}
}

// joined calls do with the member's part of the run.
func (l *Local) joined(do func(p *recovery.Part) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()

	err := l.ended()
	if err == nil && l.part == nil {
		err = errNotJoined
	}

	if err != nil {
		return err
	}

	return do(l.part)
}

// Look implements Agent.
func (l *Local) Look(ctx context.Context) (*recovery.MemberLook, error) {
	return recovery.Look(ctx, l.opts.LXDDir, l.opts.Progress)
}

// Transactions implements Agent.
func (l *Local) Transactions(ctx context.Context, after uint64) (*recovery.Transactions, error) {
	return recovery.TransactionsAfter(ctx, l.opts.LXDDir, after, l.opts.Progress)
}

// Probe implements Agent.
func (l *Local) Probe(ctx context.Context, opts ProbeOptions) (*ProbeReport, error) {
	dir := l.opts.LXDDir
	if dir == "" {
		found, err := recovery.FindLXD()
		if err != nil {
			return nil, err
		}

		dir = found
	}

	r := &ProbeReport{Absent: []string{}}
	for _, address := range opts.Own {
		found, _ := preflight.Bindable(ctx, address)
		if found == preflight.Absent {
			r.Absent = append(r.Absent, address)
		}
	}

	var err error
	r.Others, err = daemon.Reachable(ctx, dir, opts.Others)
	return r, err
}

// State implements Agent.
func (l *Local) State(ctx context.Context, opts StateOptions) (*recovery.MemberState, error) {
	return recovery.ReadMemberState(ctx, recovery.MemberStateOptions{
		LXDDir: l.opts.LXDDir, Fence: opts.Fence, At: opts.At, Outline: opts.Outline, Progress: l.opts.Progress,
	})
}

// KeptLoss implements Agent.
func (l *Local) KeptLoss(ctx context.Context, kept string) (*recovery.KeptLossReport, error) {
	return recovery.KeptLoss(ctx, l.opts.LXDDir, kept, l.opts.Progress)
}

// InspectKept implements Agent.
func (l *Local) InspectKept(ctx context.Context, kept string) (*recovery.InspectReport, error) {
	return recovery.InspectKept(ctx, l.opts.LXDDir, kept, l.opts.Progress)
}

// Quorum implements Agent.
func (l *Local) Quorum(ctx context.Context) error {
	return recovery.HasQuorum(ctx, l.opts.LXDDir)
}

// Support implements Agent.
func (l *Local) Support(ctx context.Context, w io.Writer) error {
	return recovery.Support(ctx, l.opts.LXDDir, w)
}

// backupWait is how long the leader may take to write what a backup waits for.
const backupWait = time.Minute

// Backup implements Agent.
func (l *Local) Backup(ctx context.Context, nonce string, w io.Writer) (*recovery.BackupReport, error) {
	return recovery.Backup(ctx, recovery.BackupOptions{
		LXDDir: l.opts.LXDDir, Stdout: w, Version: l.opts.Version, Nonce: nonce, Trailing: true, Wait: backupWait, Progress: l.opts.Progress,
	})
}

// Join implements Agent.
func (l *Local) Join(ctx context.Context, run JoinRun) (*recovery.OpenRun, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	err := l.ended()
	if err == nil && l.part != nil {
		err = errors.New("this agent is part of a run already")
	}

	if err != nil {
		return nil, err
	}

	part, err := recovery.JoinRun(ctx, recovery.JoinOptions{
		LXDDir: l.opts.LXDDir, Version: l.opts.Version, Run: run.Run, Giver: run.Giver, Plan: run.Plan, Again: run.Again, Instead: run.Instead,
		Timeout: l.opts.Timeout, Progress: l.opts.Progress,
	})
	if err != nil {
		return nil, err
	}

	l.part = part
	return part.State(), nil
}

// Gate implements Agent.
func (l *Local) Gate(ctx context.Context) error {
	return l.joined(func(p *recovery.Part) error { return p.Gate(ctx) })
}

// Stop implements Agent.
func (l *Local) Stop(ctx context.Context) (killed bool, err error) {
	err = l.joined(func(p *recovery.Part) (err error) {
		killed, err = p.Stop(ctx)
		return err
	})
	return killed, err
}

// Make implements Agent.
func (l *Local) Make(ctx context.Context, opts recovery.MakeOptions) (r *recovery.MakeReport, err error) {
	err = l.joined(func(p *recovery.Part) (err error) {
		r, err = p.MakeTarball(ctx, opts)
		return err
	})
	return r, err
}

// Tarball implements Agent.
func (l *Local) Tarball(_ context.Context, w io.Writer) error {
	return l.joined(func(p *recovery.Part) error {
		f, err := os.Open(p.TarballPath())
		if err != nil {
			return err
		}

		defer f.Close()

		_, err = io.Copy(w, f)
		return err
	})
}

// Receive implements Agent.
func (l *Local) Receive(_ context.Context, digest string, r io.Reader) error {
	return l.joined(func(p *recovery.Part) error { return p.ReceiveTarball(r, digest) })
}

// Stage implements Agent.
func (l *Local) Stage(ctx context.Context, opts recovery.StageOptions) (r *recovery.ImportReport, err error) {
	err = l.joined(func(p *recovery.Part) (err error) {
		r, err = p.Stage(ctx, opts)
		return err
	})
	return r, err
}

// Arm implements Agent.
func (l *Local) Arm(context.Context) error {
	return l.joined(func(p *recovery.Part) error { return p.Arm() })
}

// Exchange implements Agent.
func (l *Local) Exchange(ctx context.Context, accepted string) (r *recovery.ImportReport, err error) {
	err = l.joined(func(p *recovery.Part) (err error) {
		r, err = p.Exchange(ctx, accepted)
		return err
	})
	return r, err
}

// Start implements Agent.
func (l *Local) Start(ctx context.Context) error {
	return l.joined(func(p *recovery.Part) error { return p.Start(ctx) })
}

// Ready implements Agent.
func (l *Local) Ready(ctx context.Context, timeout time.Duration) (listed map[string]string, err error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	err = l.joined(func(p *recovery.Part) (err error) {
		listed, err = p.WaitReady(limited)
		return err
	})
	if errors.Is(err, daemon.ErrNotReady) && ctx.Err() == nil {
		return nil, nil
	}

	return listed, err
}

// Finish implements Agent.
func (l *Local) Finish(ctx context.Context, noStart bool) error {
	return l.joined(func(p *recovery.Part) error { return p.Finish(ctx, noStart) })
}

// TurnBack implements Agent.
func (l *Local) TurnBack(context.Context) error {
	err := l.joined(func(p *recovery.Part) error { return p.TurnBack() })
	if errors.Is(err, errNotJoined) {
		return nil // see Withdraw
	}

	return err
}

// Withdraw implements Agent.
func (l *Local) Withdraw(ctx context.Context) error {
	err := l.joined(func(p *recovery.Part) error { return p.Withdraw(ctx) })
	if errors.Is(err, errNotJoined) {
		return nil // another one was not free, and this one was not asked
	}

	return err
}

// Done implements Agent.
func (l *Local) Done() <-chan struct{} { return l.done }

// Close implements Agent.
func (l *Local) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.ended() != nil {
		return nil
	}

	close(l.done)
	var err error
	if l.resyncing {
		err = l.abandonResync(context.Background(), true)
	}

	if l.part != nil {
		err = errors.Join(err, l.part.Close(context.Background()))
	}

	return err
}
