// Command bench measures lxd-recover against named tools, in one run and on one set of files, and prints ratios: seconds
// alone say little on machines that others share. `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/olekukonko/tablewriter"

	"github.com/lxd-recover/lxd-recover/internal/raftlog"
)

func main() {
	size := flag.Int64("size", 1<<30, "bytes of the raft directory")
	runs := flag.Int("runs", 3, "runs of each; the fastest counts")
	child := flag.String("child", "", "internal: what a child process measures")
	flag.Parse()
	err := run(*size, *runs, *child, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(size int64, runs int, child string, args []string) error {
	switch child {
	case "":
		return compare(size, runs)
	case "make":
		return makeDirectory(args[0], size)
	case "crc32":
		return sumFiles(args)
	case "verify":
		log, err := raftlog.Open(context.Background(), os.DirFS(args[0]), raftlog.Options{})
		if err == nil && !log.Healthy() {
			err = fmt.Errorf("not healthy: %v", log.Problems)
		}
		return err
	}
	return errors.New("unknown child")
}

// sumFiles is what Go's own crc32 makes of the files, read the plain way.
func sumFiles(files []string) error {
	hash := crc32.NewIEEE()
	buf := make([]byte, 1<<20)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(hash, struct{ io.Reader }{f}, buf)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// measure is the fastest of several runs of a command.
type measure struct {
	wall, cpu time.Duration
	peak      int64 // resident memory, bytes
}

// refused is the exit status of a comparison that recommends nothing: whose bare raft directories are is not known.
const refused = 3

func best(runs int, name string, args ...string) (measure, error) {
	var m measure
	for range runs {
		cmd := exec.Command(name, args...)
		cmd.Stderr = os.Stderr
		began := time.Now()
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != refused) {
			return m, fmt.Errorf("%s: %w", name, err)
		}
		wall := time.Since(began)
		usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		m.peak = max(m.peak, usage.Maxrss<<10)
		if m.wall == 0 || wall < m.wall {
			m.wall, m.cpu = wall, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
		}
	}
	return m, nil
}

func compare(size int64, runs int) error {
	dir, err := os.MkdirTemp("", "lxd-recover-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("Making a raft directory of %d MiB…\n", size>>20)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// In a child: what this process has ever used would count for every process that it starts.
	if _, err := best(1, self, "-child", "make", "-size", fmt.Sprint(size), dir); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	var total int64
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return err
		}
		total += info.Size()
	}
	table := tablewriter.NewWriter(os.Stdout)
	table.SetHeader([]string{"", "wall", "speed", "of crc32", "cpu", "peak memory"})
	var reference measure
	for _, test := range []struct {
		what string
		args []string
	}{
		{"Go crc32 IEEE", append([]string{self, "-child", "crc32"}, files...)},
		{"cksum", append([]string{"cksum"}, files...)},
		{"raftlog verify", []string{self, "-child", "verify", dir}},
		{"global-db-inspect", []string{filepath.Join("bin", "lxd-recover"), "global-db-inspect", dir}},
	} {
		m, err := best(runs, test.args[0], test.args[1:]...)
		if err != nil {
			return fmt.Errorf("%s: %w", test.what, err)
		}
		if reference.wall == 0 {
			reference = m
		}
		table.Append([]string{
			test.what, m.wall.Round(time.Millisecond).String(), fmt.Sprintf("%.2f GB/s", float64(total)/1e9/m.wall.Seconds()),
			fmt.Sprintf("%.2f", reference.wall.Seconds()/m.wall.Seconds()), m.cpu.Round(time.Millisecond).String(), fmt.Sprintf("%d MiB", m.peak>>20),
		})
	}
	fmt.Printf("%d files, %d bytes, from the page cache; fastest of %d runs\n", len(files), total, runs)
	table.Render()
	fmt.Println(strings.TrimSpace(`
"of crc32" is the speed as a part of Go's crc32 IEEE over the same files. inspect also replays the log into an SQLite file,
has SQLite check it, and sums every entry.`))
	return compareMembers(dir, runs)
}
