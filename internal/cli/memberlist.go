// SPDX-License-Identifier: AGPL-3.0-only

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/canonical/lxd/shared"
	"go.yaml.in/yaml/v3"

	"github.com/lxd-recover/lxd-recover/internal/bundle"
	"github.com/lxd-recover/lxd-recover/internal/member"
	"github.com/lxd-recover/lxd-recover/internal/product"
)

// memberList is the YAML that `lxd cluster show` prints and `lxd cluster edit` takes.
type memberList struct {
	Members member.List `yaml:"members"`
}

// memberListComment stands above the list in the editor. %s is the last entry of the raft log.
const memberListComment = `# The members of the cluster, as they are to be. Change addresses and roles; ids, names and the number of members stay.
#
# address: HOST:PORT under which the other members reach this one
# role:    "voter"     has the database, and a vote: LXD works while a majority of the voters is up
#          "stand-by"  has the database, and no vote
#          "spare"     has no database: for members that are lost
#
# The database of this member ends at %s. It becomes the database of all members:
# be sure that no other surviving member has a newer one (lxd-recover global-db-inspect).

`

// maxMemberList bounds what is read of a list, in bytes.
const maxMemberList = 1 << 20

// encodeMembers writes a list for the editor.
func encodeMembers(list member.List, last bundle.Position) ([]byte, error) {
	var text bytes.Buffer
	product.Fprintf(&text, memberListComment, last)
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	err := enc.Encode(memberList{list})
	return text.Bytes(), err
}

// decodeMembers reads a list. Members without a name, as LXD lists those that it has had no heartbeat from, keep the one that
// is known.
func decodeMembers(data []byte, current member.List) (member.List, error) {
	var list memberList
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(&list)
	if errors.Is(err, io.EOF) {
		return nil, errors.New(product.Text("the list of members is empty: `lxd cluster show` prints the one that there is"))
	}

	if err != nil {
		return nil, product.Errorf("not a list of members as `lxd cluster show` prints it: %w", err)
	}

	for i, m := range list.Members {
		known, ok := current.ByID(m.ID)
		if ok && m.Name == "" {
			list.Members[i].Name = known.Name
		}
	}

	return list.Members, nil
}

// memberAsker asks for the new list.
type memberAsker struct {
	piped []byte // the list, if standard input is no terminal
}

// newMemberAsker reads what is piped in, to its end: `lxd cluster show | … | lxd cluster edit` has LXD's node database open
// until then.
func newMemberAsker(ctx context.Context) (*memberAsker, error) {
	if isTerminal(os.Stdin) {
		return &memberAsker{}, nil
	}

	data, err := readStdin(ctx, maxMemberList)
	if err != nil {
		return nil, fmt.Errorf("read the list of members from standard input: %w", err)
	}

	return &memberAsker{piped: append([]byte{}, data...)}, nil
}

// stdin is what a command is given as standard input that takes the list in our place.
func (a *memberAsker) stdin() io.Reader {
	if a.piped == nil {
		return os.Stdin
	}

	return bytes.NewReader(a.piped)
}

// ask returns the list that was piped in, or opens it in the administrator's editor, again and again as long as it cannot be
// used.
func (a *memberAsker) ask(ctx context.Context, current member.List, last bundle.Position, check func(member.List) error) (member.List, error) {
	parse := func(data []byte) (member.List, error) {
		list, err := decodeMembers(data, current)
		if err == nil {
			err = check(list)
		}

		return list, err
	}

	if a.piped != nil {
		list, err := parse(a.piped)
		if err != nil {
			return nil, fmt.Errorf("the list of members on standard input cannot be used: %w", err)
		}

		return list, nil
	}

	text, err := encodeMembers(current, last)
	for err == nil {
		text, err = shared.TextEditor("", text)
		if err != nil {
			return nil, fmt.Errorf("the editor: %w; nothing was changed", err)
		}

		list, wrong := parse(text)
		if wrong == nil {
			return list, nil
		}

		fmt.Fprintf(stderr(), "Config validation error: %s\nPress enter to open the editor again or ctrl+c to abort change\n", wrong)
		_, err = readLine(ctx)
		if errors.Is(err, io.EOF) {
			err = errors.New("nobody to edit the list again: nothing was changed")
		}
	}

	return nil, err
}
