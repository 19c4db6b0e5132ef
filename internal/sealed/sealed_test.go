// SPDX-License-Identifier: AGPL-3.0-only

package sealed

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyPair makes a key of age, in a file, and returns its public key, too.
func keyPair(t *testing.T) (file string, recipient string) {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	must(t, err)
	return fileWith(t, "# made for a test\n"+k.String()+"\n"), k.Recipient().String()
}

func fileWith(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

var secrets = []File{{"server.key", []byte("a private key, told to nobody")}, {"local.db", bytes.Repeat([]byte("a page"), 100_000)}, {"empty", nil}}

func sealFor(t *testing.T, recipients ...string) []byte {
	t.Helper()
	lock, err := LockFor(recipients)
	must(t, err)
	data, err := lock.Seal(secrets)
	must(t, err)
	return data
}

func wantOpened(t *testing.T, k *Key, data []byte) {
	t.Helper()
	files, err := k.Open(data)
	must(t, err)
	if !slices.EqualFunc(files, secrets, func(a, b File) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }) {
		t.Errorf("other files came out: %d", len(files))
	}
}

// Each recipient opens it alone, given on the command line or in a file; nobody else does.
func TestRecipients(t *testing.T) {
	one, oneFor := keyPair(t)
	two, twoFor := keyPair(t)
	other, _ := keyPair(t)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	must(t, err)
	sshPublic, err := ssh.NewPublicKey(public)
	must(t, err)
	sshFor := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPublic)))
	data := sealFor(t, oneFor, fileWith(t, "# recipients\n\n"+twoFor+"\n"+sshFor+" root@server1\n"))
	if bytes.Contains(data, secrets[0].Data) || bytes.Contains(data, []byte("server.key")) || !Is(data) {
		t.Error("it is not encrypted")
	}

	for _, file := range []string{one, two, fileWith(t, string(pem.EncodeToMemory(block)))} {
		k, err := ReadKey(file)
		must(t, err)
		wantOpened(t, k, data)
	}

	k, err := ReadKey(other)
	must(t, err)
	_, err = k.Open(data)
	if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), other) {
		t.Errorf("with another key: %v", err)
	}

	k, err = ReadKey(one)
	must(t, err)
	for _, at := range []int{3, len(data) / 2, len(data) - 1} {
		changed := bytes.Clone(data)
		changed[at] ^= 1
		_, err = k.Open(changed)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("changed at %d of %d: %v", at, len(data), err)
		}
	}

	_, err = k.Open(data[:len(data)-100])
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("cut off: %v", err)
	}
}

func TestPassphrase(t *testing.T) {
	workFactor = 10
	t.Cleanup(func() { workFactor = 18 })
	lock, err := LockWith(fileWith(t, "correct horse\r\nnot this\n"))
	must(t, err)
	data, err := lock.Seal(secrets)
	must(t, err)
	k, err := ReadPassphrase(fileWith(t, "correct horse"))
	must(t, err)
	wantOpened(t, k, data)
	wrong, err := ReadPassphrase(fileWith(t, "battery staple\n"))
	must(t, err)
	key, recipient := keyPair(t)
	byKey, err := ReadKey(key)
	must(t, err)
	for want, open := range map[string]func() ([]File, error){
		"is another one": func() ([]File, error) { return wrong.Open(data) },
		"with a passphrase, and not for a public": func() ([]File, error) { return byKey.Open(data) },
		"for public keys, and not with a":         func() ([]File, error) { return k.Open(sealFor(t, recipient)) },
	} {
		_, err := open()
		if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "staple") {
			t.Errorf("%v, want %q", err, want)
		}
	}

	_, err = LockWith(fileWith(t, "\nsecond line\n"))
	if err == nil || strings.Contains(err.Error(), "second line") {
		t.Errorf("an empty passphrase: %v", err)
	}
}

// What is no key is told, without a word of what it is.
func TestNoKeys(t *testing.T) {
	file, recipient := keyPair(t)
	secret, err := os.ReadFile(file)
	must(t, err)
	private := strings.Fields(string(secret))[5]
	for name, text := range map[string]string{
		"private key": private, "file of a private key": file, "no key": "age1whatever",
		"no file": "nowhere/to/be/found", "empty file": fileWith(t, "# nobody\n"),
		"ssh": "ssh-rsa nothing", "second line": fileWith(t, recipient+"\nnobody\n"),
	} {
		_, err := LockFor([]string{text})
		if !errors.Is(err, ErrRecipient) || strings.Contains(err.Error(), private[20:40]) {
			t.Errorf("%s: %v", name, err)
		}
	}

	_, err = LockFor(nil)
	if !errors.Is(err, ErrRecipient) {
		t.Errorf("nobody: %v", err)
	}

	for _, text := range []string{recipient, "-----BEGIN OPENSSH PRIVATE KEY-----\nnothing", "", "hush hush"} {
		_, err = ReadKey(fileWith(t, text))
		if err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: %v", text, err)
		}
	}

	_, err = ReadKey(t.TempDir())
	if err == nil {
		t.Error("a directory is a key")
	}
}
