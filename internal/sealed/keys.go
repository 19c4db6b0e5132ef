// SPDX-License-Identifier: AGPL-3.0-only

package sealed

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"

	"github.com/lxd-recover/lxd-recover/internal/newfile"
)

// ErrRecipient says that a text is none that a file can be sealed for.
var ErrRecipient = errors.New("no recipient")

// First words of keys.
const (
	secretPrefix = "AGE-SECRET-KEY-" // of a private key of age
	agePrefix    = "age1"            // of a public one
	sshPrefix    = "ssh-"            // of a public key of ssh
)

// maxKeyFile bounds a file with keys, recipients or a passphrase, bytes.
const maxKeyFile = 1 << 20

// workFactor is the logarithm of what trying one passphrase costs (scrypt's N): age's own, about a second and 256 MiB. Tests have less time.
var workFactor = 18

// Lock is whom files are sealed for.
type Lock struct{ recipients []age.Recipient }

// LockFor seals for recipients, each of which can open it alone: public keys of age (age1…) or of ssh (ssh-ed25519 …, ssh-rsa …), or files with one
// of them a line.
func LockFor(recipients []string) (*Lock, error) {
	l := &Lock{}
	for _, text := range recipients {
		err := l.add(text)
		if err != nil {
			return nil, err
		}
	}

	if len(l.recipients) == 0 {
		return nil, fmt.Errorf("%w: there is nobody to encrypt for", ErrRecipient)
	}

	return l, nil
}

// Absolute makes the names of files among recipients absolute, in place.
func Absolute(recipients []string) error {
	for i, text := range recipients {
		if strings.HasPrefix(text, agePrefix) || strings.HasPrefix(text, sshPrefix) {
			continue
		}

		file, err := filepath.Abs(text)
		if err != nil {
			return err
		}

		recipients[i] = file
	}

	return nil
}

func (l *Lock) add(text string) error {
	switch {
	case strings.HasPrefix(text, secretPrefix):
		return fmt.Errorf("%w: this is a private key, and now known to whoever sees the command line: make a new one, and give its public key, %s…",
			ErrRecipient, agePrefix)
	case strings.HasPrefix(text, agePrefix), strings.HasPrefix(text, sshPrefix):
		r, err := parseRecipient(text)
		if err != nil {
			return fmt.Errorf("%w: %.40q is no public key of age, nor one of ssh that age takes (ed25519, rsa)", ErrRecipient, text)
		}

		l.recipients = append(l.recipients, r)
		return nil
	}

	_, err := os.Stat(text)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %.80q is neither a public key (%s…, %sed25519 …) nor a file with such keys", ErrRecipient, text, agePrefix, sshPrefix)
	}

	return l.addFile(text)
}

func (l *Lock) addFile(file string) error {
	data, err := readSmall(file)
	if err != nil {
		return err
	}

	found := 0
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}

		r, err := parseRecipient(line)
		if err != nil { // its text may be that of a private key
			return fmt.Errorf("%w: line %d of %s is no public key (%s…, %sed25519 …, %srsa …)", ErrRecipient, number, file, agePrefix, sshPrefix, sshPrefix)
		}

		l.recipients = append(l.recipients, r)
		found++
	}

	if lines.Err() != nil || found == 0 {
		return fmt.Errorf("%w: %s has no public key", ErrRecipient, file)
	}

	return nil
}

func parseRecipient(text string) (age.Recipient, error) {
	if strings.HasPrefix(text, sshPrefix) {
		return agessh.ParseRecipient(text)
	}

	found, err := age.ParseRecipients(strings.NewReader(text + "\n"))
	if err != nil {
		return nil, err
	}

	return found[0], nil
}

// LockWith seals with the passphrase that a file has in its first line.
func LockWith(file string) (*Lock, error) {
	passphrase, err := readPassphrase(file)
	if err != nil {
		return nil, err
	}

	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("the passphrase in %s cannot be used", file)
	}

	r.SetWorkFactor(workFactor)
	return &Lock{recipients: []age.Recipient{r}}, nil
}

// Key opens what was sealed.
type Key struct {
	identities []age.Identity
	file       string // it is from
	passphrase bool
}

// ReadKey reads private keys: a file that age-keygen has made, or a private key of ssh that has no passphrase.
func ReadKey(file string) (*Key, error) {
	data, err := readSmall(file)
	if err != nil {
		return nil, err
	}

	k := &Key{file: file}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")) {
		identity, err := agessh.ParseIdentity(data)
		if err != nil {
			return nil, fmt.Errorf("%s is no private key of ssh that can be used: it must be ed25519 or rsa, and have no passphrase "+
				"(`ssh-keygen -p` removes it from a copy)", file)
		}

		k.identities = []age.Identity{identity}
		return k, nil
	}

	k.identities, err = age.ParseIdentities(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s is no file with private keys of age (%s…), nor a private key of ssh", file, secretPrefix)
	}

	return k, nil
}

// ReadPassphrase reads the passphrase that a file has in its first line.
func ReadPassphrase(file string) (*Key, error) {
	passphrase, err := readPassphrase(file)
	if err != nil {
		return nil, err
	}

	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("the passphrase in %s cannot be used", file)
	}

	return &Key{identities: []age.Identity{identity}, file: file, passphrase: true}, nil
}

// wrong says why a key does not open this file.
func (k *Key) wrong(data []byte) string {
	sealedWith := bytes.Contains(data[:min(len(data), 200)], []byte("\n-> scrypt "))
	switch {
	case k.passphrase && sealedWith:
		return "the passphrase in " + k.file + " is another one"
	case k.passphrase:
		return "it was encrypted for public keys, and not with a passphrase"
	case sealedWith:
		return "it was encrypted with a passphrase, and not for a public key"
	}

	return "it was not encrypted for a key in " + k.file
}

func readPassphrase(file string) (string, error) {
	data, err := readSmall(file)
	if err != nil {
		return "", err
	}

	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", fmt.Errorf("%s has no passphrase in its first line", file)
	}

	return line, nil
}

func readSmall(file string) ([]byte, error) {
	f, err := newfile.Open(file)
	if err != nil {
		return nil, err
	}

	defer f.Close()

	info, err := f.Stat()
	if err == nil && info.Size() > maxKeyFile {
		err = fmt.Errorf("%s has %d bytes: that is no file with keys", file, info.Size())
	}

	if err != nil {
		return nil, err
	}

	return newfile.Read(file)
}
