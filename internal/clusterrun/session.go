// SPDX-License-Identifier: AGPL-3.0-only

package clusterrun

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
)

// Options say what is wanted, and how members are reached.
type Options struct {
	Version string // of lxd-recover
	Giver   string // name of this machine

	// Here says that this machine is a member, which is reached without ssh.
	Here bool

	Hosts     map[string]string // where ssh reaches members, by their names; what is missing is reached at its address
	Lost      []string          // names of lost members
	Addresses map[string]string // new addresses HOST:PORT, by the members' names
	From      string            // name of the member whose database all get; empty: the comparison tells
	Voters    int               // how many there are to be; 0: as many as LXD would have

	Move        bool // a working cluster is to be given new addresses
	NoStart     bool // LXD stays down in the end
	KeepHealing bool // cluster.healing_threshold stays as it is

	// Edit changes the member list that was worked out; nil: it stays.
	Edit func(ctx context.Context, list member.List, check func(member.List) error) (member.List, error)

	// Connect starts an agent on a member. m.Host is empty for this machine.
	Connect func(ctx context.Context, m Member) (agent.Agent, error)

	// Ask puts a question to a person. An error ends the run: everything is taken back.
	Ask func(ctx context.Context, q Question) error

	Event func(Event) // is told what happens; may be called by several goroutines

	ExchangeTime time.Duration // how long the exchange on one member may take; 0: a quarter of an hour

	AgainTime time.Duration // how long a member to which the connection was lost is waited for; 0: a minute

	StartTime time.Duration // how long LXD may take to answer once all are started
}

// Question is something that a person decides.
type Question struct {
	Code  string   // changed or losses
	Text  string   // one or more sentences
	Lines []string // what it is about, one a line
}

// Event is something that has happened in a run.
type Event struct {
	Time   time.Time `json:"time"`
	Run    string    `json:"run,omitempty"`
	Member string    `json:"member,omitempty"` // empty for the run as a whole
	Phase  string    `json:"phase,omitempty"`  // that the member has come to
	Text   string    `json:"text"`
}

// Session is connections to the members of a cluster. Close it.
type Session struct {
	opts   Options
	run    string // id, once there is one
	mu     sync.Mutex
	agents map[string]agent.Agent          // by the members' names
	looks  map[string]*recovery.MemberLook // of the members that were looked at, by their names
	hosts  map[string]string               // where they were reached
	states map[string]*recovery.OpenRun    // how far they had come when a run was joined again
	back   bool                            // the run is being taken back

	accepted map[string]string // what may be given up that was written on members since they were armed: see recovery.WrittenSince

	begun      bool                        // all members are part of the run
	rejoined   bool                        // the run had begun before this session
	exchanging bool                        // some members may have the new database
	leave      func(context.Context) error // ends the run that is undone on the members, before the undoing one begins
}

func newSession(opts Options) *Session {
	return &Session{opts: opts, agents: map[string]agent.Agent{}, looks: map[string]*recovery.MemberLook{}, hosts: map[string]string{},
		states: map[string]*recovery.OpenRun{}, accepted: map[string]string{}}
}

// tell tells what has happened.
func (s *Session) tell(member string, phase string, format string, args ...any) {
	if s.opts.Event != nil {
		s.opts.Event(Event{Time: time.Now().UTC(), Run: s.run, Member: member, Phase: phase, Text: fmt.Sprintf(format, args...)})
	}
}

func (s *Session) ask(ctx context.Context, q Question) error {
	if s.opts.Ask == nil {
		return nil
	}

	return s.opts.Ask(ctx, q)
}

// Close ends all agents. A member on which a run is not armed takes its part back.
func (s *Session) Close() error {
	s.mu.Lock()
	agents := slices.Collect(maps.Values(s.agents))
	clear(s.agents)
	s.mu.Unlock()
	errs := make([]error, len(agents))
	var wait sync.WaitGroup
	for i, a := range agents {
		wait.Go(func() { errs[i] = a.Close() })
	}

	wait.Wait()
	return errors.Join(errs...)
}

func (s *Session) agent(name string) agent.Agent {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.agents[name]
}

// names are the members that are reached, in the order of their ids.
func (s *Session) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()

	return slices.SortedFunc(maps.Keys(s.agents), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.idOf(a), s.idOf(b)), strings.Compare(a, b))
	})
}

func (s *Session) idOf(name string) uint64 {
	look := s.looks[name]
	if look == nil || look.Status.Member == nil {
		return 0
	}

	return look.Status.Member.ID
}

var errNotReached = errors.New("it was not reached")

// each calls do for members at the same time, and returns what has failed, by their names.
func (s *Session) each(names []string, do func(name string, a agent.Agent) error) failures {
	failed := failures{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, name := range names {
		wait.Go(func() {
			a := s.agent(name)
			err := errNotReached
			if a != nil {
				err = do(name, a)
			}

			if err != nil {
				mu.Lock()
				failed[name] = err
				mu.Unlock()
			}
		})
	}

	wait.Wait()
	return failed
}

// failures are errors by the members' names.
type failures map[string]error

// join makes one error of them; nil if there is none. A refusal stays one.
func (f failures) join() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(f)) {
		errs = append(errs, fmt.Errorf("%s: %w", name, f[name]))
	}

	return errors.Join(errs...)
}

// line is join in one line.
func (f failures) line() string { return inLine(f.join()) }

// inLine is the text of joined errors in one line.
func inLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// connect reaches a member and looks at it. m.Name may be empty: then it is whoever is there.
func (s *Session) connect(ctx context.Context, m Member) (string, error) {
	a, err := s.opts.Connect(ctx, m)
	if err != nil {
		return "", err
	}

	look, err := a.Look(ctx)
	if err == nil {
		product.Use(product.ByName(look.Product)) // this process may be on a machine that has none
	}

	if err == nil && look.Status.Member != nil {
		err = checkName(look.Status.Member.Name)
	}

	if err == nil && look.Status.Member == nil && look.NodeLost != "" {
		err = nodeLost(m.Name, look.NodeLost)
	}

	if err == nil && look.Status.Member == nil {
		err = errors.New(product.Text("LXD there does not tell which member it is: see `lxd-recover global-db-status` there"))
	}

	name := m.Name
	if err == nil && name != "" && !is(look.Status.Member, m) {
		err = &recovery.Refusal{Code: "wrong-host", Member: name, Flag: "--host",
			Use:    fmt.Sprintf("--host %s=DESTINATION says where %s is", printable.Word(name), name),
			Reason: fmt.Sprintf("at %s there is %s, not %s", destination(m), cmp.Or(look.Status.Member.Name, "another member"), name)}
	}

	if err != nil {
		return "", errors.Join(err, a.Close())
	}

	name = cmp.Or(look.Status.Member.Name, name)
	s.mu.Lock()
	_, twice := s.agents[name]
	if !twice {
		s.agents[name], s.looks[name], s.hosts[name] = a, look, m.Host
	}

	s.mu.Unlock()
	if twice {
		return "", errors.Join(&recovery.Refusal{Code: "one-host-twice", Member: name,
			Reason: fmt.Sprintf("%s is %s, which was reached in another way, too", destination(m), name)}, a.Close())
	}

	return name, nil
}

// checkName refuses what cannot be a member's name: files are named by it.
func checkName(name string) error {
	bad := func(r rune) bool { return r == '/' || !unicode.IsPrint(r) }
	if strings.ContainsFunc(name, bad) || strings.HasPrefix(name, "-") || len(name) > 200 {
		return fmt.Errorf("%q is no name of a member", name)
	}

	return nil
}

// is tells whether a member is the one that was looked for. One to which LXD has not sent the names yet is known by its id.
func is(found *member.Member, m Member) bool {
	if found.Name == "" && m.ID != 0 {
		return found.ID == m.ID
	}

	return found.Name == m.Name
}

func destination(m Member) string {
	if m.Host == "" {
		return "this machine"
	}

	return m.Host
}

// hostOf is where ssh is to reach a member: where --host says, else at its new address, which its machine has already unless a working cluster is
// moved, else at the one that it has.
func (s *Session) hostOf(m member.Member) string {
	host, ok := s.opts.Hosts[m.Name]
	if ok {
		return host
	}

	address, ok := s.opts.Addresses[m.Name]
	if !ok || s.opts.Move {
		address = m.Address
	}

	return hostName(address)
}

// hostName is the host of an address HOST:PORT, as ssh takes it.
func hostName(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}

	return host
}

// reach connects to all members but the lost ones: to one first, which knows the others.
func (s *Session) reach(ctx context.Context) error {
	first, err := s.first(ctx)
	if err != nil {
		return err
	}

	list := s.members(first)
	for _, m := range list { // the plan is read again, with the names of those that are lost
		err = checkName(m.Name)
		if err != nil {
			return err
		}
	}

	for _, name := range slices.Concat(s.opts.Lost, slices.Sorted(maps.Keys(s.opts.Hosts)), slices.Sorted(maps.Keys(s.opts.Addresses))) {
		if !slices.ContainsFunc(list, func(m member.Member) bool { return m.Name == name }) {
			return fmt.Errorf("no member of this cluster is named %q: it has %s", name, strings.Join(namesOf(list), ", "))
		}
	}

	return s.unreached(ctx, s.reachOthers(ctx, first))
}

// reachOthers connects to the other members that one knows, all but the lost ones. It returns those that were not reached.
func (s *Session) reachOthers(ctx context.Context, first string) failures {
	var others []Member
	for _, m := range s.members(first) {
		if m.Name != first && !slices.Contains(s.opts.Lost, m.Name) {
			others = append(others, Member{ID: m.ID, Name: m.Name, Host: s.hostOf(m)})
		}
	}

	return s.connectAll(ctx, others)
}

// connectAll connects to members at the same time. It returns those that were not reached.
func (s *Session) connectAll(ctx context.Context, members []Member) failures {
	failed := failures{}
	var mu sync.Mutex
	var wait sync.WaitGroup
	for _, m := range members {
		wait.Go(func() {
			_, err := s.connect(ctx, m)
			if err != nil {
				mu.Lock()
				failed[m.Name] = err
				mu.Unlock()
			}
		})
	}

	wait.Wait()
	return failed
}

func namesOf(list member.List) []string {
	names := make([]string, len(list))
	for i, m := range list {
		names[i] = m.Name
	}

	return names
}

// unreached refuses to go on without a member that is not said to be lost.
func (s *Session) unreached(ctx context.Context, failed failures) error {
	if ctx.Err() != nil || len(failed) == 0 {
		return ctx.Err()
	}

	names := slices.Sorted(maps.Keys(failed))
	for _, name := range names {
		var refusal *recovery.Refusal
		if errors.As(failed[name], &refusal) {
			return refusal
		}
	}

	for _, name := range names {
		err := notLetIn(name, failed[name])
		if err != nil {
			return err
		}
	}

	return &recovery.Refusal{Code: "unreachable", Member: names[0], Flag: "--lost", Reason: "not all members are reached: " + failed.line(),
		Use: product.Sprintf("--host NAME=DESTINATION says where ssh reaches a member; if a member is lost for good, and its LXD will not be started again, "+
			"--lost %s says so", printable.Word(strings.Join(names, ",")))}
}

// notLetIn refuses a machine that is there and does not let us in as root: that its member is lost is no way out. It is nil for any other error.
func notLetIn(name string, err error) error {
	code := agent.NotLetIn(err)
	if code == "" {
		return nil
	}

	refusal := &recovery.Refusal{Code: code, Member: name, Reason: fmt.Sprintf("%s is not reached: %v", cmp.Or(name, "this member"), err)}
	if code == agent.CodeHostKey {
		refusal.Use = "if the machine has a new key, and you know why, take it into your known hosts"
	}

	return refusal
}

// firstOf connects to one of the members that --host names. A machine that is not the right one, or does not let us in, is a refusal at once.
func (s *Session) firstOf(ctx context.Context, names []string) (string, error) {
	failed := failures{}
	for _, name := range names {
		found, err := s.connect(ctx, Member{Name: name, Host: s.opts.Hosts[name]})
		var refusal *recovery.Refusal
		if err == nil || ctx.Err() != nil || errors.As(err, &refusal) {
			return found, err
		}

		failed[name] = err
	}

	return "", s.unreached(ctx, failed)
}

// first connects to the member that knows the others: this machine, or the first one that is reached of those that --host names.
func (s *Session) first(ctx context.Context) (string, error) {
	if s.opts.Here {
		name, err := s.connect(ctx, Member{})
		return name, cmp.Or(notLetIn("", err), err)
	}

	names := slices.DeleteFunc(slices.Sorted(maps.Keys(s.opts.Hosts)), func(name string) bool { return slices.Contains(s.opts.Lost, name) })
	if len(names) == 0 {
		return "", errNoMember
	}

	return s.firstOf(ctx, names)
}

var errNoMember = errors.New("this machine is no member of a cluster: --host NAME=DESTINATION says where ssh reaches one, and that one knows the others")

// members is the list that a member knows, in the order of the ids.
func (s *Session) members(name string) member.List {
	look := s.looks[name]
	list := member.List{}
	if look.Inspect != nil {
		list = append(list, look.Inspect.Members...)
	}

	for _, row := range look.Status.Addresses {
		_, ok := list.ByID(row.ID)
		if !ok {
			list = append(list, member.Member{ID: row.ID, Name: row.Name, Address: cmp.Or(row.Raft, row.Local, row.Nodes)})
		}
	}

	for i, m := range list { // a raft log has no names
		for _, row := range look.Status.Addresses {
			if m.ID == row.ID && m.Name == "" {
				list[i].Name = row.Name
			}
		}
	}

	slices.SortFunc(list, func(a, b member.Member) int { return cmp.Compare(a.ID, b.ID) })
	return list
}
