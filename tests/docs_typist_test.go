// SPDX-License-Identifier: AGPL-3.0-only

package tests

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// typist runs commands as somebody does who sits before them: standard input and output are a terminal, so that they ask,
// and whatever they ask is answered.
type typist struct {
	answers []string // to questions, in the order of the questions

	mu     sync.Mutex
	screen strings.Builder
}

// question ends what a command prints when it waits for an answer.
const question = "(yes/no) [default=no]: "

// run runs a command and returns what is then on the screen, and its exit status.
func (s *typist) run(ctx context.Context, t testing.TB, cmd *exec.Cmd) (string, int) {
	t.Helper()
	ours, theirs := openTerminal(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	err := cmd.Start()
	theirs.Close()
	must(t, err)

	read := make(chan error, 1)
	go func() { read <- s.read(ours) }()
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", cmd, err, s.text())
	}

	select {
	case err = <-read: // the last one to have the terminal open has ended
		must(t, err)
	case <-ctx.Done(): // something that was left keeps it open
		t.Fatalf("%s: %v\n%s", cmd, context.Cause(ctx), s.text())
	}

	return s.text(), cmd.ProcessState.ExitCode()
}

// read keeps what is printed, and answers questions.
func (s *typist) read(file *os.File) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := file.Read(buffer)
		s.mu.Lock()
		s.screen.Write(buffer[:n])
		asked := n > 0 && strings.HasSuffix(s.screen.String(), question)
		s.mu.Unlock()
		if errors.Is(err, unix.EIO) { // a terminal that nobody has open any more
			return nil
		}

		if err != nil {
			return err
		}

		if !asked {
			continue
		}

		answer := "\x04" // end of file: nobody is there who could answer
		if len(s.answers) > 0 {
			answer, s.answers = s.answers[0]+"\n", s.answers[1:]
		}

		_, err = file.WriteString(answer)
		if err != nil {
			return err
		}
	}
}

var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// text is what is to be seen: without colours, and without what was overwritten in its line.
func (s *typist) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for line := range strings.SplitSeq(escapes.ReplaceAllString(s.screen.String(), ""), "\n") {
		line = strings.TrimRight(line, "\r")
		line = line[strings.LastIndex(line, "\r")+1:]
		lines = append(lines, strings.TrimRight(line, " "))
	}

	return strings.TrimSpace(strings.Join(lines, "\n"))
}
