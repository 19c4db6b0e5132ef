// SPDX-License-Identifier: AGPL-3.0-only

package recovery

import "context"

// withdrawAtBoot takes this member's part in a run over the whole cluster back when the machine starts, if it had not come to PhaseArmed: the database
// is the one from before, and LXD is started again where it ran. From PhaseArmed on that is a Refusal, which names the run: others may have the new
// database then.
//
// It is what an agent does that loses its connection, and safe for the same reason. A member notes PhaseArmed before it answers to the giver, and no
// member is exchanged before all have answered. So nobody has the new database now; and nobody will, as the giver, or who resumes the run, finds that this
// member is not part of it any more.
//
// The report is nil if there is no such run, or if it is at work: then the agent has the lock.
func withdrawAtBoot(ctx context.Context, opts ResumeOptions) (*ResumeReport, error) {
	dir, unlock, err := openAlone(opts.LXDDir)
	if err != nil {
		return nil, err
	}

	defer unlock()

	open, err := dir.readOpenRun()
	if open == nil || err != nil {
		return nil, err
	}

	if !open.Phase.Before(PhaseArmed) {
		return nil, dir.refuseOpenRun()
	}

	p := &Part{dir: dir, unlock: unlock, opts: JoinOptions{Timeout: opts.Timeout, Progress: opts.Progress}, run: open, later: true}
	err = p.Withdraw(ctx)
	if err != nil {
		return nil, err
	}

	return &ResumeReport{
		Found: true, Warnings: []string{}, Started: open.Before != nil && open.Before.Daemon,
		Done: []string{"took this member's part back in the " + open.String() + ": nothing was changed on any member"},
	}, nil
}
