// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/daemon"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/raftlog"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/scratch"
)

// maxClockSkew is how far a member's clock may be from this machine's: a fence is numbered by the clock.
const maxClockSkew = time.Minute

// MakePlan reaches the members, looks at them and decides. Nothing is stopped or changed. The session can apply the plan.
func MakePlan(ctx context.Context, opts Options) (*Plan, *Session, error) {
	s := newSession(opts)
	plan, err := s.plan(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}

	return plan, s, nil
}

func (s *Session) plan(ctx context.Context) (*Plan, error) {
	s.tell("", "", "Looking at all members")
	err := s.reach(ctx)
	if err != nil {
		return nil, err
	}

	err = s.check(ctx)
	if err != nil {
		return nil, err
	}

	p := &Plan{ID: bundle.NewRun(), Created: time.Now().UTC().Truncate(time.Second), Version: s.opts.Version, Giver: s.opts.Giver,
		Move: s.opts.Move, NoStart: s.opts.NoStart, Losses: []Loss{}, Warnings: []string{}}
	s.run = p.ID
	err = s.choose(ctx, p)
	if err != nil {
		return nil, err
	}

	err = s.list(ctx, p)
	if err != nil {
		return nil, err
	}

	s.warnByHand(p)
	s.dropEntries()
	return p, s.probe(ctx, p)
}

// warnByHand warns of members on which somebody has to start LXD, and could do so too early.
func (s *Session) warnByHand(p *Plan) {
	names := slices.DeleteFunc(s.names(), func(name string) bool { return !s.byHand(name) })
	if len(names) == 0 {
		return
	}

	when := "when the run says so"
	if p.NoStart {
		when = "when the run is over"
	}

	p.Warnings = append(p.Warnings, product.Sprintf("nothing is known that starts LXD on %s: nothing keeps it from being started there while the run is at "+
		"work. Start it yourself, %s", strings.Join(names, ", "), when))
}

// dropEntries lets go of what was read of the members' logs. Where they ended is in the plan, and they are read again once LXD is down.
func (s *Session) dropEntries() {
	s.mu.Lock()
	defer s.mu.Unlock()

	for name, look := range s.looks {
		if look.Inspect == nil {
			continue
		}

		less, inspect := *look, *look.Inspect
		inspect.Entries, inspect.LastEntries = nil, nil
		less.Inspect = &inspect
		s.looks[name] = &less
	}
}

// refuse refuses a member.
func refuse(name string, code string, format string, args ...any) error {
	return &recovery.Refusal{Code: code, Member: name, Reason: name + ": " + fmt.Sprintf(format, args...)}
}

// canStop refuses a member whose LXD cannot be stopped, or whose database cannot be exchanged, by this run.
func (s *Session) canStop(name string) error {
	look := s.looks[name]
	switch {
	case look.Open != nil:
		return refuse(name, "open-run", "%s", recovery.OpenRunText(look.Open))
	case look.NodeLost != "":
		return nodeLost(name, look.NodeLost)
	case look.Beside != "":
		return refuse(name, "two-lxd", product.Text("its LXD does not run, and there is another one's database in %s beside it: which of them is the "+
			"member's is not known. Start LXD there, or rename the directory `database` of the one that is not used any more"), look.Beside)
	case look.Obstacle != "":
		return refuse(name, "cannot-exchange", "%s", look.Obstacle)
	case look.Status.Running && look.Service == "":
		return refuse(name, "no-service", product.Text("LXD is %s, and neither systemd nor snapd runs it: stop it first (with SIGTERM; "+
			"`lxd shutdown` would stop all instances as well)"), look.Status.Daemon)
	}

	return nil
}

// nodeLost refuses a member whose node database is lost. name is empty if it is not known.
func nodeLost(name string, why string) error {
	name = cmp.Or(name, "this machine")
	return &recovery.Refusal{Code: "node-database-lost", Member: name, Reason: name + ": " + why + ", and this command makes no new one",
		Use: fmt.Sprintf("if the other members work, `lxd-recover global-db-resync --from HOST --node-db FILE` on %s makes it, and brings that member back: "+
			"FILE is a copy of `database/local.db` of any other member. If they do not, recover them first, with --lost for this one", name)}
}

// check refuses what no run can go on with, before anything is stopped.
func (s *Session) check(ctx context.Context) error {
	names := s.names()
	certificate := s.looks[names[0]].Status.Cluster
	answer := []string{}
	for _, name := range names {
		look := s.looks[name]
		if look.Open == nil && (look.Status.Cluster == "" || look.Status.Cluster != certificate) {
			return refuse(name, "another-cluster", "it is a member of another cluster than %s: their cluster certificates differ", names[0])
		}

		err := s.canStop(name)
		if err != nil {
			return err
		}

		skew := time.Until(look.Clock)
		switch {
		case skew.Abs() > maxClockSkew:
			return refuse(name, "clock-off", "its clock is %s off this machine's. Set the clocks, with NTP for instance", skew.Abs().Round(time.Second))
		case look.Answers:
			answer = append(answer, name)
		}
	}

	if s.opts.Move && len(answer) < len(names) {
		return &recovery.Refusal{Code: "not-working", Reason: "not all members work, and --move is for a working cluster: leave --move out to recover it"}
	}

	if s.opts.Move || len(answer) == 0 {
		return nil
	}

	return s.refuseWorking(ctx, answer)
}

// refuseWorking refuses to recover a cluster that works: one of whose members a majority of the voters confirms a write. A leader that has lost its quorum a
// moment ago only answers.
func (s *Session) refuseWorking(ctx context.Context, answer []string) error {
	s.tell("", "", "Asking whether the cluster works")
	failed := s.each(answer, func(_ string, a agent.Agent) error { return a.Quorum(ctx) })
	works := slices.DeleteFunc(answer, func(name string) bool { return failed[name] != nil })
	if len(works) == 0 {
		return ctx.Err()
	}

	return &recovery.Refusal{Code: "working-cluster", Member: works[0], Flag: "--move", Use: "--move gives a working cluster new addresses",
		Reason: product.Sprintf("LXD on %s answers, and a majority of the voters has confirmed what it wrote (it was given %s): the cluster works, and "+
			"there is nothing to recover", strings.Join(works, ", "), daemon.QuorumTime)}
}

// writeReports writes what was seen of the members' logs into files, by the members' names.
func writeReports(dir string, reports map[string]*recovery.InspectReport) (map[string]string, error) {
	files := map[string]string{}
	for name, report := range reports {
		data, err := json.Marshal(report)
		if err != nil {
			return nil, err
		}

		files[name] = filepath.Join(dir, name+".json")
		err = os.WriteFile(files[name], data, 0o600)
		if err != nil {
			return nil, err
		}
	}

	return files, nil
}

// choose finds the member whose database all get.
func (s *Session) choose(ctx context.Context, p *Plan) error {
	if s.opts.Move { // it works, or check would have refused
		return s.chooseOfWorking(p)
	}

	reports := map[string]*recovery.InspectReport{}
	for _, name := range s.names() {
		if s.looks[name].Inspect == nil {
			continue
		}

		still := *s.looks[name].Inspect // a daemon without a quorum writes nothing but terms; all is read again when it is down
		still.RunningDaemon, still.Raft.Whole = "", still.Healthy
		reports[name] = &still
	}

	return s.chooseBy(ctx, p, reports, func(name string, after uint64) (*recovery.Transactions, error) {
		return s.agent(name).Transactions(ctx, after)
	})
}

// tellAfter tells the transactions of a member's log after an index.
type tellAfter func(name string, after uint64) (*recovery.Transactions, error)

// chooseBy finds the member whose database all get, by what is known of the members' databases, by their names. tell is nil if the reports tell their last
// transactions themselves.
func (s *Session) chooseBy(ctx context.Context, p *Plan, reports map[string]*recovery.InspectReport, tell tellAfter) error {
	dir, remove, err := scratch.Dir("plan")
	if err != nil {
		return err
	}

	defer remove()

	files, err := writeReports(dir, reports)
	if err != nil {
		return err
	}

	report, err := recovery.Compare(ctx, recovery.CompareOptions{Sources: slices.Sorted(maps.Values(files))})
	if err != nil {
		return err
	}

	name := labelled(report, files)

	p.Certain = report.Certain
	if report.Doubt != nil {
		p.Doubt = report.Doubt.Reason
	}

	err = s.decide(p, report, name)
	if err != nil {
		return err
	}

	if reports[p.From] == nil || !reports[p.From].Healthy {
		return &recovery.Refusal{Code: "damaged", Member: p.From, Reason: fmt.Sprintf("the database of %s is damaged: repair it there first, "+
			"see `lxd-recover global-db-inspect` and `lxd-recover global-db-repair`", p.From)}
	}

	for _, rows := range report.Rows {
		has := &recovery.Transactions{List: rows.Has, From: rows.HasFrom}
		if tell != nil && !rows.Gap {
			has, err = tell(name(rows.Sources[0]), rows.Shared)
			if err != nil {
				return fmt.Errorf("%s: what its log has more than that of %s: %w", name(rows.Sources[0]), p.From, err)
			}
		}

		loss := lossOf(has, rows.Shared)
		for i, label := range rows.Sources {
			loss.Member += strings.Repeat(", ", min(i, 1)) + name(label)
		}

		if loss.Count != "" {
			p.Losses = append(p.Losses, loss)
		}
	}

	return nil
}

// lossOf is what is lost with a log that is another one after an index; it has no Count if that is nothing.
func lossOf(has *recovery.Transactions, after uint64) Loss {
	loss := Loss{Lines: []string{}}
	for _, t := range has.List {
		loss.Lines = append(loss.Lines, t.Changes...)
		if t.Unknown != "" {
			loss.Lines = append(loss.Lines, fmt.Sprintf("index %d: %s", t.Index, t.Unknown))
		}
	}

	if len(has.List) > 0 {
		loss.Count = fmt.Sprintf("%d transactions", len(has.List))
	}

	if has.From > after+1 {
		loss.Count = fmt.Sprintf("%d transactions, and what was before index %d", len(has.List), has.From)
		loss.Lines = append(loss.Lines, fmt.Sprintf("index %d to %d: too many to be told, or in a snapshot", after+1, has.From-1))
	}

	return loss
}

// labelled finds a member by its label in a comparison: not all know their names, and one may say that it has another one's.
func labelled(report *recovery.CompareReport, files map[string]string) func(label string) string {
	return func(label string) string {
		for _, source := range report.Sources {
			for name, file := range files {
				if source.Label == label && source.Source == file {
					return name
				}
			}
		}

		return label
	}
}

// decide takes the member that the comparison recommends, or the one that was asked for. name finds one by its label there.
func (s *Session) decide(p *Plan, report *recovery.CompareReport, name func(label string) string) error {
	recommended := ""
	var same []string
	if report.Recommendation != nil {
		recommended = name(report.Recommendation.Label)
		for _, label := range report.Recommendation.Same {
			same = append(same, name(label))
		}
	}

	switch {
	case s.opts.From != "" && s.agent(s.opts.From) == nil:
		return fmt.Errorf("--from %s: that is none of the members that were reached: %s", s.opts.From, strings.Join(s.names(), ", "))
	case s.opts.From != "":
		p.From, p.Reason = s.opts.From, "it was asked for with --from"
		if recommended != p.From && !slices.Contains(same, p.From) {
			p.Certain = false
			p.Doubt = "the comparison does not recommend it"
			if report.Recommendation != nil {
				p.Doubt += fmt.Sprintf(": it recommends %s (%s)", recommended, report.Recommendation.Reason)
			}
		}

	case report.Recommendation == nil:
		return &recovery.Refusal{Code: string(report.Refusal.Verdict), Reason: "no member is recommended: " + report.Refusal.Reason, Flag: "--from",
			Use: "--from NAME takes the database of a member all the same"}
	default:
		p.From, p.Reason = recommended, report.Recommendation.Reason
	}

	return nil
}

// chooseOfWorking takes the member with the longest log: of a cluster that works, and is stopped cleanly, all have the same in the end.
func (s *Session) chooseOfWorking(p *Plan) error {
	names := slices.DeleteFunc(s.names(), func(name string) bool { return lacksLog(s.looks[name]) })
	if len(names) == 0 {
		return errors.New("no member has a log")
	}

	for _, name := range names {
		if s.looks[name].Inspect == nil {
			return &recovery.Refusal{Code: "damaged", Member: name, Reason: fmt.Sprintf("the database of %s cannot be read: %s", name, s.looks[name].Unread)}
		}
	}

	p.From = slices.MaxFunc(names, func(a, b string) int {
		return cmp.Compare(s.looks[a].Inspect.Raft.LastIndex, s.looks[b].Inspect.Raft.LastIndex)
	})
	p.Reason, p.Certain = "the cluster works; once all members are stopped their logs are compared", true
	return nil
}

// lacksLog tells whether a member has never got a log, as spares do not.
func lacksLog(look *recovery.MemberLook) bool {
	return look.Inspect == nil && look.Status.Healthy && look.Status.Raft != nil && look.Status.Raft.Index == 0
}

// later tells whether the machines get their new addresses when the run is over.
func (p *Plan) later() bool { return p.Move && p.NoStart }

// healingSQL keeps LXD from starting the instances of members that do not answer yet on others.
const (
	healingKey = "cluster.healing_threshold"
	healingSQL = "UPDATE config SET value = '0' WHERE key = '" + healingKey + "';\n"
)

// list works out the new member list.
func (s *Session) list(ctx context.Context, p *Plan) error {
	look := s.looks[p.From]
	old := s.members(p.From)
	list := slices.Clone(old)
	if !p.Move {
		list = chooseRoles(old, s.opts.Lost, look.Place, s.opts.Voters)
	}

	for i, m := range list {
		address, ok := s.opts.Addresses[m.Name]
		if ok {
			list[i].Address = address
		}
	}

	check := func(l member.List) error { return s.checkList(old, l) }
	if s.opts.Edit != nil {
		var err error
		list, err = s.opts.Edit(ctx, list, check)
		if err != nil {
			return err
		}
	}

	err := check(list)
	if err != nil {
		return err
	}

	for _, m := range old {
		edited, _ := list.ByID(m.ID)
		entry := Member{ID: m.ID, Name: m.Name, Host: s.hosts[m.Name], Lost: slices.Contains(s.opts.Lost, m.Name),
			Address: m.Address, NewAddress: edited.Address, Role: m.Role.String(), NewRole: edited.Role.String()}
		if !entry.Lost {
			entry.Seen = seen(s.looks[m.Name])
			entry.Seen.Instances, entry.Seen.Volumes = look.Place.Instances[m.ID], look.Place.Volumes[m.ID]
		} else if n := look.Place.Instances[m.ID] + look.Place.Volumes[m.ID]; n > 0 {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s is lost, and had %d instances and %d volumes of its own", m.Name,
				look.Place.Instances[m.ID], look.Place.Volumes[m.ID]))
		}

		p.Members = append(p.Members, entry)
	}

	if look.Place.Healing != "" && look.Place.Healing != "0" && !s.opts.KeepHealing {
		p.SQL = healingSQL
		p.Warnings = append(p.Warnings, product.Sprintf("cluster.healing_threshold was %s, and becomes 0: LXD would start the instances of members that do "+
			"not answer yet on others. `lxc config set cluster.healing_threshold %s` sets it again; --keep-healing leaves it",
			look.Place.Healing, look.Place.Healing))
	}

	return s.checkRoom(p)
}

// checkList refuses a list that the members cannot have.
func (s *Session) checkList(old member.List, list member.List) error {
	if len(list) != len(old) {
		return listRefused("", "it has %d members and had %d: none can be added or removed here", len(list), len(old))
	}

	for _, m := range list {
		before, ok := old.ByID(m.ID)
		switch {
		case !ok || before.Name != m.Name:
			return listRefused(m.Name, "no member has the id %d and the name %s: only addresses and roles can be changed", m.ID, m.Name)
		case m.Role == raftlog.Voter && slices.Contains(s.opts.Lost, m.Name):
			return listRefused(m.Name, "%s is lost, and cannot be a voter", m.Name)
		}
	}

	inForce := map[uint64]string{}
	for _, m := range old {
		inForce[m.ID] = m.Address
	}

	err := errors.Join(list.Validate(), list.ValidateNew(inForce))
	if err != nil {
		return listRefused("", "%s", inLine(err))
	}

	return nil
}

func listRefused(name string, format string, args ...any) error {
	return &recovery.Refusal{Code: "member-list", Member: name, Reason: "the new member list: " + fmt.Sprintf(format, args...)}
}

func seen(look *recovery.MemberLook) *Seen {
	v := &Seen{Cluster: look.Status.Cluster, LXD: look.Status.LXD.Version, Daemon: look.Status.Daemon, Up: look.Status.Running, Service: look.Service}
	if look.Inspect == nil {
		v.Healthy = lacksLog(look)
		return v
	}

	v.Index, v.Term, v.Healthy = look.Inspect.Raft.LastIndex, look.Inspect.Raft.LastTerm, look.Inspect.Healthy
	v.Checksum = lastChecksum(look.Inspect)
	if look.Inspect.Machine != nil {
		v.Machine, v.Boot = look.Inspect.Machine.HostName, look.Inspect.Machine.BootID
	}

	return v
}

// roomFactor is how many databases have to fit on a member's disk beside the one in force: the tarball, what is staged from it, and the copy that is kept until
// the end.
const roomFactor = 3

// checkRoom refuses a disk that is too small, and an LXD that cannot read the database.
func (s *Session) checkRoom(p *Plan) error {
	from := s.looks[p.From]
	need := roomFactor*uint64(from.Size) + 64<<20
	for _, name := range s.names() {
		look := s.looks[name]
		if look.Free < need {
			return &recovery.Refusal{Code: "disk-full", Member: name,
				Reason: fmt.Sprintf("%s: its disk has %d MiB left, and the run needs %d MiB there. Make room first", name, look.Free>>20, need>>20)}
		}

		schema := 0
		if from.Inspect.Data != nil { // it is damaged otherwise
			schema = from.Inspect.Data.SchemaVersion
		}

		if look.Status.LXD.Schema > 0 && look.Status.LXD.Schema < schema {
			return &recovery.Refusal{Code: "schema-newer", Member: name,
				Reason: product.Sprintf("%s: its LXD %s knows the database's schema up to version %d, and the one of %s "+
					"has version %d: it would not start. Update LXD there first", name, look.Status.LXD.Version, look.Status.LXD.Schema, p.From, schema)}
		}
	}

	return nil
}

// at names the member that gets an address.
func (p *Plan) at(address string) string {
	i := slices.IndexFunc(p.Members, func(m Member) bool { return m.NewAddress == address })
	return p.Members[i].Name
}

// probe asks the members whether they have their new addresses, and what they find at those of the others.
func (s *Session) probe(ctx context.Context, p *Plan) error {
	silent := map[string][]string{} // who finds nobody at whose address
	var absent *recovery.Refusal
	answers := map[string]*agent.ProbeReport{}
	names := s.names()
	others := func(name string) (of []Member) {
		for _, m := range p.Members {
			if m.Name != name && !m.Lost && m.NewAddress != m.Address {
				of = append(of, m)
			}
		}

		return of
	}
	failed := s.each(names, func(name string, a agent.Agent) error {
		opts := agent.ProbeOptions{}
		if m := p.member(name); m.NewAddress != m.Address && !p.later() {
			opts.Own = append(opts.Own, m.NewAddress)
		}

		for _, m := range others(name) {
			opts.Others = append(opts.Others, m.NewAddress)
		}

		r, err := a.Probe(ctx, opts)
		s.mu.Lock()
		answers[name] = r
		s.mu.Unlock()
		return err
	})
	err := failed.join()
	if err != nil {
		return err
	}

	for _, name := range names {
		for _, address := range answers[name].Absent {
			absent = &recovery.Refusal{Code: "address-absent", Member: name,
				Reason: product.Sprintf("%s: its machine does not have the new address %s, and LXD would not start there", name, address)}
		}

		for i, m := range others(name) {
			if answers[name].Others[i] == daemon.Silent {
				silent[m.NewAddress] = append(silent[m.NewAddress], name)
			}
		}
	}

	if absent != nil {
		return absent
	}

	for _, address := range slices.Sorted(maps.Keys(silent)) {
		p.Warnings = append(p.Warnings, fmt.Sprintf("no machine answers at %s, the new address of %s, as seen from %s: a firewall may be in the way",
			address, p.at(address), strings.Join(silent[address], ", ")))
	}

	return nil
}
