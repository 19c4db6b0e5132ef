// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lxd-recover/lxd-recover/internal/agent"
	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/clusterrun"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/printable"
	"github.com/lxd-recover/lxd-recover/internal/product"
	"github.com/lxd-recover/lxd-recover/internal/recovery"
	"github.com/lxd-recover/lxd-recover/internal/remote"
)

// maxMemberFile bounds what is read of a file of members or hosts, in bytes.
const maxMemberFile = 1 << 20

// options make what clusterrun takes of the flags. done ends the log of the run.
func (o *recoverOptions) options(ctx context.Context) (opts clusterrun.Options, done func(), err error) {
	hosts, err := o.allHosts()
	if err != nil {
		return opts, nil, err
	}

	log := &eventFile{}
	opts = clusterrun.Options{
		Version: Version, Giver: giver(), Here: isMember(), Hosts: hosts, Lost: o.lost, Addresses: o.addresses, From: o.from, Voters: o.voters,
		Move: o.move, NoStart: o.noStart, KeepHealing: o.keepHeal, StartTime: o.startTime,
		Connect: func(ctx context.Context, m clusterrun.Member) (agent.Agent, error) { return o.connect(ctx, m) },
		Ask:     o.ask,
		Event: func(e clusterrun.Event) {
			log.write(e)
			printEvent(o.format, e)
		},
	}
	switch {
	case o.members != "" && o.edit:
		return opts, nil, errors.New("--members and --edit are two ways to give one list: leave one out")
	case o.members != "":
		opts.Edit, err = o.membersOf(ctx)
	case o.edit:
		opts.Edit = func(ctx context.Context, list member.List, check func(member.List) error) (member.List, error) {
			return (&memberAsker{}).ask(ctx, list, bundle.Position{}, check)
		}
	}

	return opts, log.close, err
}

// membersOf reads the list of --members.
func (o *recoverOptions) membersOf(ctx context.Context) (func(context.Context, member.List, func(member.List) error) (member.List, error), error) {
	var data []byte
	var err error
	if o.members == "-" {
		data, err = readStdin(ctx, maxMemberList)
	} else {
		data, err = readBounded(o.members)
	}

	return func(_ context.Context, list member.List, check func(member.List) error) (member.List, error) {
		edited, err := decodeMembers(data, list)
		if err == nil {
			err = check(edited)
		}

		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.members, err)
		}

		return edited, nil
	}, err
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	data, err := io.ReadAll(io.LimitReader(f, maxMemberFile+1))
	if err == nil && len(data) > maxMemberFile {
		err = fmt.Errorf("%s is too large", path)
	}

	return data, err
}

// allHosts are those of --host and of --hosts; --host counts more.
func (o *recoverOptions) allHosts() (map[string]string, error) {
	hosts := map[string]string{}
	if o.hostsFile != "" {
		data, err := readBounded(o.hostsFile)
		if err != nil {
			return nil, err
		}

		lines := bufio.NewScanner(strings.NewReader(string(data)))
		for number := 1; lines.Scan(); number++ {
			text, _, _ := strings.Cut(lines.Text(), "#")
			words := strings.Fields(text)
			switch {
			case len(words) == 0:
			case len(words) != 2:
				return nil, fmt.Errorf("%s, line %d: a name and a destination are needed, such as `server1 root@10.0.0.1`", o.hostsFile, number)
			default:
				hosts[words[0]] = words[1]
			}
		}
	}

	for name, host := range o.hosts {
		hosts[name] = host
	}

	for name, host := range hosts {
		if strings.HasPrefix(host, "-") || host == "" {
			return nil, fmt.Errorf("%q is no destination of ssh for %s", host, name)
		}
	}

	return hosts, nil
}

// isMember tells whether this machine has an LXD that may be a member.
func isMember() bool {
	dir, err := recovery.FindLXD()
	if err != nil {
		return false
	}

	_, err = os.Stat(filepath.Join(dir, "cluster.crt"))
	return err == nil
}

// giver names this machine and who gives the run.
func giver() string {
	host, _ := os.Hostname()
	who, err := user.Current()
	if err != nil {
		return host
	}

	return who.Username + "@" + host
}

// connect starts an agent on a member.
func (o *recoverOptions) connect(ctx context.Context, m clusterrun.Member) (agent.Agent, error) {
	name := cmp.Or(m.Name, m.Host, "here")
	var connected atomic.Bool // what ssh says before is in the error
	say := func(line string) {
		if o.format.name == formatTable && connected.Load() {
			fmt.Fprintln(stderr(), printable.Line(name+": "+line))
		}
	}
	a, err := agent.Dial(ctx, remote.Options{
		Destination: m.Host, SSH: splitWords(o.ssh), Batch: o.yes || !isTerminal(os.Stdin), Binaries: o.binaries, Command: []string{agentCommand},
		Version: Version, Stderr: say,
	})
	if err != nil {
		return nil, err
	}

	connected.Store(true)
	return a, nil
}

// splitWords splits a command at spaces, as rsync -e does; quotes keep words together.
func splitWords(text string) []string {
	var words []string
	var word strings.Builder
	quote, begun := rune(0), false
	for _, r := range text {
		switch {
		case quote == 0 && (r == '\'' || r == '"'):
			quote, begun = r, true
		case r == quote:
			quote = 0
		case quote == 0 && r == ' ':
			if begun {
				words = append(words, word.String())
			}

			word.Reset()
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}

	if begun {
		words = append(words, word.String())
	}

	return words
}

// stateDir is where logs and plans of runs that were given here are kept.
func stateDir() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if state != "" {
		return filepath.Join(state, "lxd-recover"), nil
	}

	if os.Geteuid() == 0 {
		return "/var/log/lxd-recover", nil
	}

	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state", "lxd-recover"), err
}

// makeStateDir is stateDir, made if it is missing.
func makeStateDir() (string, error) {
	dir, err := stateDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}

	return dir, err
}

const planSuffix = ".plan.yaml"

// keepPlan keeps the plan of a run on this machine, so that it can be undone later, until forget is called. That it cannot be kept is no reason not to
// recover.
func keepPlan(p *clusterrun.Plan) (forget func()) {
	dir, err := makeStateDir()

	file := filepath.Join(dir, p.ID+planSuffix)
	if err == nil {
		err = p.Write(file)
	}

	if err != nil {
		fmt.Fprintf(stderr(), "Warning: the plan is not kept here: %v\n", err)
	}

	return func() { _ = os.Remove(file) }
}

// findPlan reads a plan, or finds the one of the run that is open, or that was given here last.
func findPlan(ctx context.Context, opts clusterrun.Options, file string) (*clusterrun.Plan, error) {
	if file != "" {
		return clusterrun.ReadPlan(file)
	}

	plan, err := clusterrun.FindRun(ctx, opts)
	if err == nil || !errors.Is(err, clusterrun.ErrNoRun) {
		return plan, err
	}

	dir, dirErr := stateDir()
	kept, globErr := filepath.Glob(filepath.Join(dir, "*"+planSuffix))
	if dirErr != nil || globErr != nil || len(kept) == 0 {
		return nil, err
	}

	newest := slices.MaxFunc(kept, func(a, b string) int {
		first, errA := os.Stat(a)
		second, errB := os.Stat(b)
		if errA != nil || errB != nil {
			return strings.Compare(a, b)
		}

		return first.ModTime().Compare(second.ModTime())
	})
	return clusterrun.ReadPlan(newest)
}

// eventFile is the log of a run, a line of JSON an event.
type eventFile struct {
	mu   sync.Mutex
	file *os.File
	run  string
	said bool
}

func (l *eventFile) write(e clusterrun.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()

	if e.Run == "" {
		return // nothing has begun
	}

	if l.file == nil || l.run != e.Run {
		l.open(e.Run)
	}

	data, err := json.Marshal(e)
	if err == nil && l.file != nil {
		_, err = l.file.Write(append(printable.JSON(data), '\n'))
	}

	l.warn(err)
}

func (l *eventFile) open(run string) {
	if l.file != nil {
		_ = l.file.Close()
	}

	l.file, l.run = nil, run
	dir, err := makeStateDir()

	if err == nil {
		l.file, err = os.OpenFile(filepath.Join(dir, run+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}

	l.warn(err)
}

// warn says once that the log is not kept.
func (l *eventFile) warn(err error) {
	if err != nil && !l.said {
		l.said = true
		fmt.Fprintf(stderr(), "Warning: the log of the run is not kept: %v\n", err)
	}
}

func (l *eventFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.file != nil {
		_ = l.file.Close()
	}
}

// printEvent shows what happens: for people, or a line of JSON each.
func printEvent(f format, e clusterrun.Event) {
	if f.name == formatJSON {
		data, err := json.Marshal(e)
		if err == nil {
			fmt.Fprintf(os.Stdout, "%s\n", printable.JSON(data))
		}

		return
	}

	text := e.Text
	if e.Member != "" {
		text = e.Member + ": " + text
	}

	fmt.Fprintln(stderr(), printable.Line(text))
}

func printRecoverPlan(w io.Writer, p *clusterrun.Plan) {
	what := "Recover the cluster"
	switch {
	case p.Undoes != "":
		what = "Undo the run " + p.Undoes
	case p.Move:
		what = "Give the cluster new addresses"
	}

	fmt.Fprintf(w, "%s: run %s.\n\n", what, p.ID)
	var rows [][]string
	for _, m := range p.Members {
		log, now := "lost", "lost"
		if m.Seen != nil {
			log, now = logText(m.Seen), upText(m.Seen.Up)
		}

		name := m.Name
		if name == p.From {
			name += " *"
		}

		rows = append(rows, []string{name, changeText(m.Address, m.NewAddress), changeText(m.Role, m.NewRole), log, now})
	}

	writeTable(w, []string{"name", "address", "role", "log", strings.ToLower(product.Current().Name)}, rows)
	fmt.Fprintf(w, "\n* All members get the database of %s: %s.\n", p.From, strings.TrimSuffix(p.Reason, "."))
	if p.Doubt != "" {
		fmt.Fprintf(w, "What cannot be known: %s.\n", strings.TrimSuffix(p.Doubt, "."))
	}

	for _, loss := range p.Losses {
		verb := "has"
		if strings.Contains(loss.Member, ", ") {
			verb = "have"
		}

		fmt.Fprintf(w, "\n%s %s what the new database lacks, %s:\n", loss.Member, verb, loss.Count)
		for _, line := range loss.Lines {
			fmt.Fprintln(w, "  "+line)
		}
	}

	printList(w, "Warning", p.Warnings)
	if len(p.Lost()) > 0 {
		product.Fprintf(w, "\nLXD on %s must never start again on its old database: those members would go on as a cluster of their own, "+
			"and no run can reach them there.\n",
			strings.Join(p.Lost(), ", "))
	}
}

// logText is how far a member's log goes.
func logText(seen *clusterrun.Seen) string {
	switch {
	case seen.Index == 0 && seen.Healthy:
		return "none"
	case seen.Index == 0:
		return "damaged"
	case !seen.Healthy:
		return fmt.Sprintf("index %d, term %d, damaged", seen.Index, seen.Term)
	}

	return fmt.Sprintf("index %d, term %d", seen.Index, seen.Term)
}

func printRecovered(w io.Writer, r *clusterrun.Result, p *clusterrun.Plan) {
	printList(w, "Warning", r.Warnings)
	if len(r.Exchanged) == 0 {
		return
	}

	fmt.Fprintf(w, "\nRun %s: the new database is in place on %s", r.Run, listText(r.Exchanged))
	if r.Raft != nil {
		fmt.Fprintf(w, ", up to %s", *r.Raft)
	}

	fmt.Fprintln(w, ".")
	switch {
	case p.NoStart:
		fmt.Fprintln(w, product.Text("LXD was not started, and nothing keeps it from being started. Start it on all members."))
	case len(r.Ready) > 0:
		product.Fprintf(w, "LXD answers on %s, %.0f s after the run began.\n", listText(r.Ready), r.Seconds)
	}

	if r.Verdict != nil {
		printVerdict(w, r.Verdict)
	}

	lost := p.Lost()
	if len(lost) > 0 && p.Undoes == "" {
		fmt.Fprintf(w, "\nLeft to do for the lost members, on any member, once each:\n")
		for _, name := range lost {
			product.Fprintf(w, "  lxc cluster remove --force %s\n", printable.Word(name))
		}
	}

	fmt.Fprintln(w, "\n`lxd-recover cluster recover undo` takes every member back to before this run.")
}

func printTakenBack(w io.Writer, r *clusterrun.Result, p *clusterrun.Plan) {
	if len(r.Old) > 0 {
		fmt.Fprintf(w, "Run %s is taken back: %s have the database that they had before.\n", p.ID, listText(r.Old))
	}
}

func upText(up bool) string {
	if up {
		return "runs"
	}

	return "down"
}

func listText(names []string) string {
	if len(names) == 0 {
		return "no member"
	}

	return strings.Join(names, ", ")
}
