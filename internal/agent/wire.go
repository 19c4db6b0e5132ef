// SPDX-License-Identifier: AGPL-3.0-only

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// Names of the calls.
const (
	callLook     = "look"
	callAfter    = "transactions"
	callProbe    = "probe"
	callState    = "state"
	callLoss     = "kept-loss"
	callKept     = "inspect-kept"
	callSupport  = "support"
	callQuorum   = "quorum"
	callBackup   = "backup"
	callPrepare  = "prepare-resync"
	callResync   = "resync"
	callAbandon  = "abandon-resync"
	callJoin     = "join"
	callGate     = "gate"
	callStop     = "stop"
	callMake     = "make"
	callTarball  = "tarball"
	callReceive  = "receive"
	callStage    = "stage"
	callArm      = "arm"
	callExchange = "exchange"
	callStart    = "start"
	callReady    = "ready"
	callFinish   = "finish"
	callTurnBack = "turn-back"
	callWithdraw = "withdraw"
)

// codeRefusal is the code of an error that is a *recovery.Refusal, which is its detail; codeDamage that of a *recovery.DamageError.
const (
	codeRefusal = "refusal"
	codeDamage  = "damage"
	codeBusy    = "busy" // recovery.ErrBusy
)

// busyError is a recovery.ErrBusy of another machine.
type busyError struct{ there *remote.Error }

func (e busyError) Error() string { return e.there.Error() }

func (busyError) Is(target error) bool { return target == recovery.ErrBusy }

func (e busyError) Unwrap() error { return e.there }

// digestArgs are the arguments of calls about a tarball.
type digestArgs struct {
	Digest string `json:"digest"`
}

type nonceArgs struct {
	Nonce string `json:"nonce"`
}

type afterArgs struct {
	After uint64 `json:"after"`
}

type keptArgs struct {
	Kept string `json:"kept"`
}

type exchangeArgs struct {
	Accepted string `json:"accepted,omitempty"`
}

type readyArgs struct {
	Seconds float64 `json:"seconds"`
}

type finishArgs struct {
	NoStart bool `json:"no_start"`
}

// Serve offers an agent on this LXD on in and out, until the connection ends. What was not armed by then is withdrawn.
func Serve(ctx context.Context, opts Options, in io.Reader, out io.Writer) error {
	l := NewLocal(opts)
	err := remote.Serve(ctx, opts.Version, in, out, remote.HandlerFunc(func(ctx context.Context, call remote.Call) (any, error) {
		reply, err := l.handle(ctx, call)
		return reply, onWire(err)
	}))
	return errors.Join(err, l.Close())
}

// onWire gives an error the form in which the giver makes the same one of it.
func onWire(err error) error {
	var refusal *recovery.Refusal
	var damage *recovery.DamageError
	switch {
	case errors.As(err, &refusal):
		detail, marshalErr := json.Marshal(refusal)
		if marshalErr != nil {
			return errors.Join(err, marshalErr)
		}

		return &remote.Error{Code: codeRefusal, Message: err.Error(), Detail: detail}
	case errors.As(err, &damage):
		return &remote.Error{Code: codeDamage, Message: err.Error()}
	case errors.Is(err, recovery.ErrBusy):
		return &remote.Error{Code: codeBusy, Message: err.Error()}
	}

	return err
}

// offWire is the inverse of onWire.
func offWire(err error) error {
	var e *remote.Error
	switch {
	case !errors.As(err, &e):
		return err
	case e.Code == codeBusy:
		return busyError{e}
	case e.Code != codeRefusal:
		return err
	}

	refusal := &recovery.Refusal{}
	if json.Unmarshal(e.Detail, refusal) != nil {
		return err
	}

	return refusal
}

// handle carries out a call.
func (l *Local) handle(ctx context.Context, call remote.Call) (any, error) {
	l.say(call.Progress)
	defer l.say(nil)

	switch call.Method {
	case callLook:
		return l.Look(ctx)
	case callAfter:
		return with(call, func(args afterArgs) (any, error) { return l.Transactions(ctx, args.After) })
	case callProbe:
		return with(call, func(opts ProbeOptions) (any, error) { return l.Probe(ctx, opts) })
	case callState:
		return with(call, func(opts StateOptions) (any, error) { return l.State(ctx, opts) })
	case callLoss:
		return with(call, func(args keptArgs) (any, error) { return l.KeptLoss(ctx, args.Kept) })
	case callKept:
		return with(call, func(args keptArgs) (any, error) { return l.InspectKept(ctx, args.Kept) })
	case callQuorum:
		return nil, l.Quorum(ctx)
	case callBackup:
		return with(call, func(args nonceArgs) (any, error) { return l.Backup(ctx, args.Nonce, call.To) })
	case callSupport:
		return nil, l.Support(ctx, call.To)
	case callJoin:
		return with(call, func(run JoinRun) (any, error) { return l.Join(ctx, run) })
	case callGate:
		return nil, l.Gate(ctx)
	case callStop:
		return l.Stop(ctx)
	case callMake:
		return with(call, func(opts recovery.MakeOptions) (any, error) { return l.Make(ctx, opts) })
	case callTarball:
		return nil, l.Tarball(ctx, call.To)
	case callReceive:
		return with(call, func(args digestArgs) (any, error) { return nil, l.Receive(ctx, args.Digest, call.From) })
	}

	return l.handleResync(ctx, call)
}

// handleResync carries out the calls of a resync.
func (l *Local) handleResync(ctx context.Context, call remote.Call) (any, error) {
	switch call.Method {
	case callPrepare:
		return l.PrepareResync(ctx)
	case callResync:
		return with(call, func(opts ResyncOptions) (any, error) { return l.Resync(ctx, opts, call.From) })
	case callAbandon:
		return nil, l.AbandonResync(ctx)
	}

	return l.handleLate(ctx, call)
}

// handleLate carries out the calls that come when the new database is there.
func (l *Local) handleLate(ctx context.Context, call remote.Call) (any, error) {
	switch call.Method {
	case callStage:
		return with(call, func(opts recovery.StageOptions) (any, error) { return l.Stage(ctx, opts) })
	case callArm:
		return nil, l.Arm(ctx)
	case callExchange:
		return with(call, func(args exchangeArgs) (any, error) { return l.Exchange(ctx, args.Accepted) })
	case callStart:
		return nil, l.Start(ctx)
	case callReady:
		return with(call, func(args readyArgs) (any, error) {
			return l.Ready(ctx, time.Duration(args.Seconds*float64(time.Second)))
		})
	case callFinish:
		return with(call, func(args finishArgs) (any, error) { return nil, l.Finish(ctx, args.NoStart) })
	case callTurnBack:
		return nil, l.TurnBack(ctx)
	case callWithdraw:
		return nil, l.Withdraw(ctx)
	}

	return nil, fmt.Errorf("no call is named %q", call.Method)
}

func with[T any](call remote.Call, do func(args T) (any, error)) (any, error) {
	var args T
	err := call.Decode(&args)
	if err != nil {
		return nil, err
	}

	return do(args)
}

// Remote is an agent on another machine.
type Remote struct{ conn *remote.Conn }

var (
	_ Agent = (*Local)(nil)
	_ Agent = (*Remote)(nil)
)

// CodeHostKey is that of a machine whose key is not the one that ssh knows.
const CodeHostKey = remote.CodeHostKey

// NotLetIn is the code of an error of Dial that says that the machine is there, and does not let us in as root, or has another key; empty for any other one.
func NotLetIn(err error) string {
	for _, code := range []string{remote.CodeHostKey, remote.CodeNotRoot} {
		if remote.HasCode(err, code) {
			return code
		}
	}

	return ""
}

// Dial starts an agent and connects to it.
func Dial(ctx context.Context, opts remote.Options) (*Remote, error) {
	conn, err := remote.Dial(ctx, opts)
	if err != nil {
		return nil, err
	}

	return &Remote{conn: conn}, nil
}

// Peer is what is known of the machine.
func (r *Remote) Peer() remote.Peer { return r.conn.Peer() }

// errNoReply says that a member has answered a call with nothing.
var errNoReply = errors.New("it has answered without a report")

// wanted calls a method whose reply must be there.
func wanted[T any](ctx context.Context, r *Remote, method string, args any) (*T, error) {
	var reply *T
	err := r.call(ctx, method, args, &reply)
	if err == nil && reply == nil {
		err = fmt.Errorf("%s: %w", method, errNoReply)
	}

	return reply, err
}

func (r *Remote) call(ctx context.Context, method string, args any, reply any) error {
	return offWire(r.conn.Call(ctx, method, args, reply))
}

// Look implements Agent.
func (r *Remote) Look(ctx context.Context) (*recovery.MemberLook, error) {
	look, err := wanted[recovery.MemberLook](ctx, r, callLook, struct{}{})
	if err == nil && look.Status == nil {
		return nil, fmt.Errorf("%s: %w", callLook, errNoReply)
	}

	return look, err
}

// Transactions implements Agent.
func (r *Remote) Transactions(ctx context.Context, after uint64) (*recovery.Transactions, error) {
	return wanted[recovery.Transactions](ctx, r, callAfter, afterArgs{After: after})
}

// Probe implements Agent.
func (r *Remote) Probe(ctx context.Context, opts ProbeOptions) (*ProbeReport, error) {
	report, err := wanted[ProbeReport](ctx, r, callProbe, opts)
	if err == nil && len(report.Others) != len(opts.Others) {
		return nil, fmt.Errorf("%s: %d addresses were asked for, and it has answered for %d", callProbe, len(opts.Others), len(report.Others))
	}

	return report, err
}

// State implements Agent.
func (r *Remote) State(ctx context.Context, opts StateOptions) (*recovery.MemberState, error) {
	return wanted[recovery.MemberState](ctx, r, callState, opts)
}

// KeptLoss implements Agent.
func (r *Remote) KeptLoss(ctx context.Context, kept string) (*recovery.KeptLossReport, error) {
	return wanted[recovery.KeptLossReport](ctx, r, callLoss, keptArgs{Kept: kept})
}

// InspectKept implements Agent.
func (r *Remote) InspectKept(ctx context.Context, kept string) (*recovery.InspectReport, error) {
	return wanted[recovery.InspectReport](ctx, r, callKept, keptArgs{Kept: kept})
}

// Quorum implements Agent.
func (r *Remote) Quorum(ctx context.Context) error {
	return r.call(ctx, callQuorum, struct{}{}, nil)
}

// Support implements Agent.
func (r *Remote) Support(ctx context.Context, w io.Writer) error {
	return offWire(r.conn.Transfer(ctx, callSupport, struct{}{}, nil, remote.Files{To: w}))
}

// Backup implements Agent.
func (r *Remote) Backup(ctx context.Context, nonce string, w io.Writer) (*recovery.BackupReport, error) {
	reply := &recovery.BackupReport{}
	err := r.conn.Transfer(ctx, callBackup, nonceArgs{Nonce: nonce}, reply, remote.Files{To: w})
	if err != nil {
		return nil, offWire(err)
	}

	return reply, nil
}

// PrepareResync implements Agent.
func (r *Remote) PrepareResync(ctx context.Context) (*recovery.ResyncReport, error) {
	return wanted[recovery.ResyncReport](ctx, r, callPrepare, struct{}{})
}

// Resync implements Agent.
func (r *Remote) Resync(ctx context.Context, opts ResyncOptions, from io.Reader) (*ResyncOutcome, error) {
	reply := &ResyncOutcome{}
	err := r.conn.Transfer(ctx, callResync, opts, reply, remote.Files{From: from})
	if err == nil && reply.Report == nil {
		err = fmt.Errorf("%s: %w", callResync, errNoReply)
	}

	if err != nil {
		return nil, offWire(err)
	}

	return reply, nil
}

// AbandonResync implements Agent.
func (r *Remote) AbandonResync(ctx context.Context) error {
	return r.call(ctx, callAbandon, struct{}{}, nil)
}

// Join implements Agent.
func (r *Remote) Join(ctx context.Context, run JoinRun) (*recovery.OpenRun, error) {
	var reply *recovery.OpenRun
	err := r.call(ctx, callJoin, run, &reply)
	return reply, err
}

// Gate implements Agent.
func (r *Remote) Gate(ctx context.Context) error {
	return r.call(ctx, callGate, struct{}{}, nil)
}

// Stop implements Agent.
func (r *Remote) Stop(ctx context.Context) (bool, error) {
	var reply bool
	err := r.call(ctx, callStop, struct{}{}, &reply)
	return reply, err
}

// Make implements Agent.
func (r *Remote) Make(ctx context.Context, opts recovery.MakeOptions) (*recovery.MakeReport, error) {
	made, err := wanted[recovery.MakeReport](ctx, r, callMake, opts)
	if err == nil && made.Export == nil {
		return nil, fmt.Errorf("%s: %w", callMake, errNoReply)
	}

	return made, err
}

// Tarball implements Agent.
func (r *Remote) Tarball(ctx context.Context, w io.Writer) error {
	return offWire(r.conn.Transfer(ctx, callTarball, struct{}{}, nil, remote.Files{To: w}))
}

// Receive implements Agent.
func (r *Remote) Receive(ctx context.Context, digest string, from io.Reader) error {
	return offWire(r.conn.Transfer(ctx, callReceive, digestArgs{Digest: digest}, nil, remote.Files{From: from}))
}

// Stage implements Agent.
func (r *Remote) Stage(ctx context.Context, opts recovery.StageOptions) (*recovery.ImportReport, error) {
	return wanted[recovery.ImportReport](ctx, r, callStage, opts)
}

// Arm implements Agent.
func (r *Remote) Arm(ctx context.Context) error {
	return r.call(ctx, callArm, struct{}{}, nil)
}

// Exchange implements Agent.
func (r *Remote) Exchange(ctx context.Context, accepted string) (*recovery.ImportReport, error) {
	var reply *recovery.ImportReport
	err := r.call(ctx, callExchange, exchangeArgs{Accepted: accepted}, &reply)
	return reply, err
}

// Start implements Agent.
func (r *Remote) Start(ctx context.Context) error {
	return r.call(ctx, callStart, struct{}{}, nil)
}

// Ready implements Agent.
func (r *Remote) Ready(ctx context.Context, timeout time.Duration) (map[string]string, error) {
	var reply map[string]string
	err := r.call(ctx, callReady, readyArgs{Seconds: timeout.Seconds()}, &reply)
	return reply, err
}

// Finish implements Agent.
func (r *Remote) Finish(ctx context.Context, noStart bool) error {
	return r.call(ctx, callFinish, finishArgs{NoStart: noStart}, nil)
}

// TurnBack implements Agent.
func (r *Remote) TurnBack(ctx context.Context) error {
	return r.call(ctx, callTurnBack, struct{}{}, nil)
}

// Withdraw implements Agent.
func (r *Remote) Withdraw(ctx context.Context) error {
	return r.call(ctx, callWithdraw, struct{}{}, nil)
}

// Done implements Agent.
func (r *Remote) Done() <-chan struct{} { return r.conn.Done() }

// Close implements Agent.
func (r *Remote) Close() error { return r.conn.Close() }
