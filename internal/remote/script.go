// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// What is run on the other machine before the agent is: two scripts for a POSIX shell, the first as the user who came in, the second as
// root. They print lines that begin with a mark, which is another one for each connection: what a login shell or a message of the day prints
// before is no matter. After the mark comes one of these words.
const (
	sayNoSudo     = "no-sudo"     // UID
	saySudo       = "sudo"        // UID: `sudo -n` does not work
	sayNoProgram  = "no-program"  // MACHINE, as uname -m has it: none of the given programs is for it
	sayUnwritable = "unwritable"  // the directory could not be made
	saySend       = "send"        // MACHINE: the program is to be sent now
	sayDamaged    = "not-arrived" // what was sent is not what was to be sent, or could not be written
	sayStart      = "start"       // MACHINE UID FROM: the agent is started
)

// FROM is where the program was that is started.
const (
	fromHere = "here" // installed there
	fromKept = "kept" // left by an agent that was killed
	fromSent = "sent"
)

// Both scripts go through a login shell that may be any one, as words between single quotes, and must do without these characters:
// a single quote; a backslash, which fish obeys between them; "!", which csh does; and ends of lines, which csh does not take there.
const unquotable = "'\\!\n\r"

// userScript has the arguments MARK ROOTSCRIPT DIR PROGRAM SPECS WORDS..., and hands all but the second on to rootScript.
const userScript = `
cd /;
mark=$1; script=$2; shift 2;
uid=$(id -u);
if [ "$uid" = 0 ]; then exec sh -c "$script" lxd-recover "$mark" "$uid" "$@"; fi;
command -v sudo > /dev/null || { echo "$mark no-sudo $uid"; exit 1; };
sudo -n sh -c : < /dev/null > /dev/null || { echo "$mark sudo $uid"; exit 1; };
exec sudo -n sh -c "$script" lxd-recover "$mark" "$uid" "$@";
`

// rootScript has the arguments MARK UID DIR PROGRAM SPECS WORDS...: where a program that is carried along is put, where this one may be besides
// (or nothing), MACHINE=DIGEST=SIZE for each program there is, and the agent's arguments. It becomes the agent, so that $$ is the agent's number.
// head may read beyond the size (busybox); nothing is sent before the next line is printed.
const rootScript = `
cd /;
mark=$1; uid=$2; dir=$3; program=$4; specs=$5; shift 5;
machine=$(uname -m); spec=;
for s in $specs; do case $s in "$machine"=*) spec=${s#*=};; esac; done;
if [ -z "$spec" ]; then echo "$mark no-program $machine"; exit 1; fi;
digest=${spec%=*}; size=${spec#*=};
same() { [ -f "$1" ] && [ "$(sha256sum < "$1" | cut -c 1-64)" = "$digest" ]; };

found=; from=here;
for p in "$program" "$(command -v lxd-recover)"; do
  if [ -z "$found" ] && [ -x "$p" ] && same "$p"; then found=$p; fi;
done;
if [ -z "$found" ]; then
  own=$dir/$digest.$$; found=$own/lxd-recover; from=kept; mask=$(umask); umask 077;
  end() { rm -rf "$own"; };
  trap end EXIT;
  mkdir -p "$own" || mkdir -p "$own" || { echo "$mark unwritable"; exit 1; };
  chmod 700 "$dir";
  for p in "$dir/$digest".*/lxd-recover; do [ -f "$found" ] || ln "$p" "$found" 2> /dev/null; done;
  if same "$found"; then :; else
    from=sent; rm -f "$found"; echo "$mark send $machine";
    timeout 900 head -c "$size" > "$found";
    same "$found" || { echo "$mark not-arrived"; exit 1; };
  fi;
  chmod 700 "$found"; umask "$mask";
fi;
echo "$mark start $machine $uid $from";
exec "$found" "$@";
`

// machines are the names that uname -m has for Go's architectures.
var machines = map[string]string{
	"386": "i686", "amd64": "x86_64", "arm": "armv7l", "arm64": "aarch64", "loong64": "loongarch64",
	"ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x",
}

// architecture is Go's name for what uname -m says.
func architecture(machine string) string {
	for arch, m := range machines {
		if m == machine {
			return arch
		}
	}

	return machine
}

// oneLine makes one line of a script.
func oneLine(script string) string {
	return strings.Join(strings.FieldsFunc(script, func(r rune) bool { return r == '\n' }), " ")
}

// newMark is a mark for one connection.
func newMark() string { return "lxd-recover-" + rand.Text() }

// words are the arguments of `sh` by which the agent is started.
func words(mark string, program string, specs []string, command []string) []string {
	script := []string{"-c", oneLine(userScript), programName, mark, oneLine(rootScript), agentDir, program, strings.Join(specs, " ")}
	return append(script, command...)
}

// commandLine is a command for whatever login shell there is.
func commandLine(words []string) (string, error) {
	line := "exec sh"
	for _, w := range words {
		if strings.ContainsAny(w, unquotable) {
			return "", fmt.Errorf("%q cannot be an argument of a command on another machine", w)
		}

		line += " '" + w + "'"
	}

	return line, nil
}
