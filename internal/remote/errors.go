// SPDX-License-Identifier: AGPL-3.0-only

package remote

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Codes of the errors that this package itself makes. Those of the agent's calls are their handler's.
const (
	CodeUnreachable  = "unreachable"     // ssh does not get there, or is not let in
	CodeHostKey      = "host-key"        // the machine's key is not the one that ssh knows
	CodeNotRoot      = "not-root"        // the user there is not root, and `sudo -n` does not work
	CodeNoProgram    = "no-program"      // there is no program for a machine of that architecture
	CodeNotStarted   = "not-started"     // the program could not be brought there, or does not run there
	CodeOtherVersion = "other-version"   // the program there is of another version
	CodeLost         = "connection-lost" // the connection has ended, and with it the calls that were under way
	CodeCanceled     = "canceled"        // the call was cancelled, by the giving side or by a signal to the agent
)

// Error is what went wrong on the way to another machine, or there. The second kind is what a Handler returned: an *Error as it was, of
// any other error the text.
type Error struct {
	Code    string          `json:"code,omitempty"` // a few words in lower case with hyphens; may be empty
	Message string          `json:"message"`
	Detail  json.RawMessage `json:"detail,omitempty"` // what the handler adds for programs
}

func (e *Error) Error() string { return e.Message }

// HasCode tells whether an error is an *Error with that code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

func errorf(code string, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}
