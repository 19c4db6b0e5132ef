// SPDX-License-Identifier: AGPL-3.0-only

package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	lxd "github.com/canonical/lxd/client"
	"github.com/canonical/lxd/shared/api"

	"github.com/lxd-recover/lxd-recover/internal/product"
)

// peerTimeout bounds what asking one other member may take. A daemon without a quorum does not answer at all.
const peerTimeout = 3 * time.Second

// Peer is another member's daemon that answers, and belongs to a working cluster.
type Peer struct {
	Address string

	// Rows is what its node database answered to the query, nil where it has no such table.
	Rows [][]any
}

// AskPeers asks the daemons at these addresses whether they serve a cluster, and for some rows of their node databases. A
// peer is recognised by the cluster certificate in lxdDir, and asked in this member's own name. Addresses where nobody
// answers, or somebody else, are left out; so are daemons that have no quorum.
func AskPeers(ctx context.Context, lxdDir string, addresses []string, query string) ([]Peer, error) {
	var pem [3][]byte
	for i, name := range []string{"cluster.crt", "server.crt", "server.key"} {
		var err error
		pem[i], err = os.ReadFile(filepath.Join(lxdDir, name))
		if err != nil {
			return nil, err
		}
	}

	args := lxd.ConnectionArgs{TLSServerCert: string(pem[0]), TLSClientCert: string(pem[1]), TLSClientKey: string(pem[2]), SkipGetServer: true, Proxy: noProxy}
	found := make([]*Peer, len(addresses))
	var wait sync.WaitGroup
	for i, address := range addresses {
		wait.Go(func() { found[i] = askPeer(ctx, address, args, query) })
	}

	wait.Wait()
	var peers []Peer
	for _, p := range found {
		if p != nil {
			peers = append(peers, *p)
		}
	}

	return peers, ctx.Err()
}

// noProxy keeps members' connections direct, whatever the environment says: LXD's own are.
func noProxy(*http.Request) (*url.URL, error) { return nil, nil }

// askPeer returns nil for a peer that does not answer as the member of a working cluster.
func askPeer(ctx context.Context, address string, args lxd.ConnectionArgs, query string) *Peer {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()

	args.HTTPClient = &http.Client{Timeout: peerTimeout}
	var server lxd.InstanceServer
	err := askedAgain(ctx, func(ctx context.Context) (err error) {
		server, err = lxd.ConnectLXDWithContext(ctx, "https://"+address, &args)
		if err == nil {
			// The list of members comes out of the global database: only a working cluster has one to give.
			_, err = server.GetClusterMemberNames()
		}

		return err
	})
	if err != nil {
		return nil
	}

	defer server.Disconnect()

	peer := &Peer{Address: address}
	var answer *api.Response
	err = askedAgain(ctx, func(context.Context) (err error) {
		answer, _, err = server.RawQuery(http.MethodPost, "/internal/sql", map[string]string{"database": "local", "query": query}, "")
		return err
	})
	if err != nil {
		return peer
	}

	var result struct {
		Results []struct {
			Rows [][]any `json:"rows"`
		}
	}

	if json.Unmarshal(answer.Metadata, &result) == nil && len(result.Results) == 1 {
		peer.Rows = slices.Clip(result.Results[0].Rows)
	}

	return peer
}

// askedAgain asks another member's daemon, again where the connection breaks. That nobody listens is an answer.
func askedAgain(ctx context.Context, question func(ctx context.Context) error) error {
	var refused error
	err := again(ctx, peerTries, func(ctx context.Context) error {
		err := question(ctx)
		if errors.Is(err, syscall.ECONNREFUSED) {
			refused = err
			return nil
		}

		return err
	})
	if err == nil {
		return refused
	}

	return err
}

// Reach is what was found of another member's daemon at its address.
type Reach int

const (
	Silent  Reach = iota // nobody answers: no route, or no answer in time
	Refused              // the machine is up, but nobody listens
	Foreign              // somebody else listens
	Mute                 // somebody takes the connection and says nothing in time: it may be a daemon of this cluster that hangs
	Answers              // a daemon of this cluster, whether the cluster works or not
)

// Reachable looks for the daemons at these addresses. A daemon of this cluster is recognised by the cluster certificate in
// lxdDir, which it shows whether it has a quorum or not.
func Reachable(ctx context.Context, lxdDir string, addresses []string) ([]Reach, error) {
	data, err := os.ReadFile(filepath.Join(lxdDir, "cluster.crt"))
	if err != nil {
		return nil, err
	}

	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(lxdDir, "cluster.crt"))
	}

	found := make([]Reach, len(addresses))
	var wait sync.WaitGroup
	for i, address := range addresses {
		wait.Go(func() { found[i] = reach(ctx, address, block.Bytes) })
	}

	wait.Wait()
	return found, ctx.Err()
}

func reach(ctx context.Context, address string, certificate []byte) Reach {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()

	// The certificate itself is what is compared, so there is nothing else to verify.
	var conn *tls.Conn
	connected := false
	err := askedAgain(ctx, func(ctx context.Context) error {
		plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}

		host, _, _ := net.SplitHostPort(address)
		connected, conn = true, tls.Client(plain, &tls.Config{ServerName: host, InsecureSkipVerify: true})
		err = conn.HandshakeContext(ctx)
		if err != nil {
			_ = plain.Close()
		}

		return err
	})
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case err != nil && !connected:
		return Silent
	case err != nil && ctx.Err() != nil:
		return Mute
	case err != nil:
		return Foreign
	}

	defer conn.Close()

	shown := conn.ConnectionState().PeerCertificates
	if len(shown) > 0 && bytes.Equal(shown[0].Raw, certificate) {
		return Answers
	}

	return Foreign
}

// String names the peer.
func (p Peer) String() string { return product.Sprintf("LXD at %s", p.Address) }
