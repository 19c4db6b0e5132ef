// SPDX-License-Identifier: AGPL-3.0-only

package engine

/*
#cgo CFLAGS: -I${SRCDIR}/../../.deps/dqlite/include
#cgo LDFLAGS: -L${SRCDIR}/../../.deps/dqlite/lib -ldqlite -luv_a -llz4 -lm
#include <stdlib.h>
#include <dqlite.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"os/signal"
	"runtime"
	"unsafe"

	"github.com/canonical/go-dqlite/v3/client"
	_ "github.com/mattn/go-sqlite3" // is, or links, the SQLite that libdqlite uses
	"golang.org/x/sys/unix"
)

// Node is a raft node as go-dqlite and LXD describe it: roles are 0 voter, 1 stand-by, 2 spare.
type Node = client.NodeInfo

// NewNode returns a node with a role in that numbering.
func NewNode(id uint64, address string, role int) Node {
	return Node{ID: id, Address: address, Role: client.NodeRole(role)}
}

// Server is libdqlite at work in this process, on one raft directory. The functions of dqlite.h that it calls are documented there.
type Server struct {
	node    *C.dqlite_node
	running bool
}

// Open has libdqlite take a raft directory, for the member with that id and address. It does not load the log yet. Close frees what it
// takes.
func Open(id uint64, address string, dir string) (*Server, error) {
	cAddress, cDir := C.CString(address), C.CString(dir)
	defer C.free(unsafe.Pointer(cAddress))
	defer C.free(unsafe.Pointer(cDir))

	s := &Server{}
	code := C.dqlite_node_create(C.dqlite_node_id(id), cAddress, cDir, &s.node)
	if code != C.DQLITE_OK {
		// dqlite.h wants it destroyed all the same. But libdqlite 1.18.7 then spoils its memory: every second process crashed at its
		// next node. A few hundred bytes are left instead.
		return nil, s.failure(code)
	}

	return s, nil
}

// Start loads the log and serves the address of Open, "@" and a name: an abstract socket, which answers this process only, and of which
// nothing is left to clean up.
func (s *Server) Start(address string) error {
	cAddress := C.CString(address)
	defer C.free(unsafe.Pointer(cAddress))

	code := C.dqlite_node_set_bind_address(s.node, cAddress)
	if code != C.DQLITE_OK {
		return fmt.Errorf("listen on %s: %w", address, s.failure(code))
	}

	// libuv writes to connections that the other side may have closed. Go's own handler ends a process for that where the thread is
	// none of Go's, as libdqlite's is.
	signal.Ignore(unix.SIGPIPE)
	err := s.start()
	s.running = err == nil
	return err
}

// servePriority is a nice value, and usualPriority is what the system call returns for one of 0.
const servePriority, usualPriority = -10, 20

// start starts a node whose thread, it has one that does all, goes before others where root asks for that, and has not asked for
// something else: it has the most to do of all that an export waits for, and nobody can help it.
func (s *Server) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: this thread ends here, the node's has taken over its priority
		priority, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err == nil && priority == usualPriority {
			_ = unix.Setpriority(unix.PRIO_PROCESS, 0, servePriority)
		}

		code := C.dqlite_node_start(s.node)
		if code != C.DQLITE_OK {
			started <- s.failure(code)
			return
		}

		started <- nil
	}()

	return <-started
}

// reconfigure appends a configuration entry with these nodes to the log of a node that was not started.
func (s *Server) reconfigure(nodes []Node) error {
	infos := make([]C.dqlite_node_info_ext, len(nodes))
	for i, n := range nodes {
		address := C.CString(n.Address)
		defer C.free(unsafe.Pointer(address))

		infos[i] = C.dqlite_node_info_ext{
			size:        C.sizeof_dqlite_node_info_ext,
			id:          C.uint64_t(n.ID),
			address:     C.uint64_t(uintptr(unsafe.Pointer(address))),
			dqlite_role: C.uint64_t(n.Role), // dqlite's own numbers, which the header does not give: those of Node
		}
	}

	code := C.dqlite_node_recover_ext(s.node, unsafe.SliceData(infos), C.int(len(infos)))
	if code != C.DQLITE_OK {
		return s.failure(code)
	}

	return nil
}

// Close stops what was started, and frees the node, whatever it returns.
func (s *Server) Close() error {
	var err error
	if s.running {
		code := C.dqlite_node_stop(s.node)
		if code != C.DQLITE_OK {
			err = fmt.Errorf("stop libdqlite: %w", s.failure(code))
		}
	}

	C.dqlite_node_destroy(s.node)
	s.node, s.running = nil, false
	return err
}

// failure is what libdqlite says about the last call, which returned this code.
func (s *Server) failure(code C.int) error {
	text := C.GoString(C.dqlite_node_errmsg(s.node))
	if text == "" {
		return fmt.Errorf("error %d", int(code))
	}

	return errors.New(text)
}
