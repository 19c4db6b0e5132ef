// SPDX-License-Identifier: AGPL-3.0-only

// Package sealed packs a few small files into one that only the holder of a key can open: a tar archive in the format of age
// (age-encryption.org/v1). It is for what nobody else may read, private keys above all. So nothing is written to disk here, and no error has
// a word of what is in the files, of a key or of a passphrase.
package sealed

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"filippo.io/age"
)

// MaxSize bounds what is sealed, bytes: all files, with what the archive adds.
const MaxSize = 32 << 20

// magic is what a sealed file begins with.
const magic = "age-encryption.org/v1\n"

// Errors of Open.
var (
	// ErrKey says that a key or passphrase is not the one that it was sealed for.
	ErrKey = errors.New("the key does not fit")

	// ErrDamaged says that the sealed file was changed, or is not whole.
	ErrDamaged = errors.New("it is damaged, or was changed")
)

// File is one file that is sealed.
type File struct {
	Name string // without directories
	Data []byte
}

// Is tells whether data begin like a sealed file.
func Is(data []byte) bool { return bytes.HasPrefix(data, []byte(magic)) }

// Seal packs files for all of the recipients.
func (l *Lock) Seal(files []File) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, l.recipients...)
	if err != nil {
		return nil, err
	}

	archive := tar.NewWriter(w)
	for _, f := range files {
		err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: 0o600, Size: int64(len(f.Data)), Format: tar.FormatPAX})
		if err == nil {
			_, err = archive.Write(f.Data)
		}

		if err != nil {
			return nil, err
		}
	}

	err = errors.Join(archive.Close(), w.Close())
	if err == nil && out.Len() > MaxSize {
		err = fmt.Errorf("it has %d bytes, more than the %d that are allowed", out.Len(), MaxSize)
	}

	return out.Bytes(), err
}

// Open unpacks the files. The error is ErrKey or ErrDamaged, or wraps one of them.
func (k *Key) Open(data []byte) ([]File, error) {
	if !Is(data) {
		return nil, fmt.Errorf("%w: it does not begin like a file of age", ErrDamaged)
	}

	r, err := age.Decrypt(bytes.NewReader(data), k.identities...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, fmt.Errorf("%w: %s", ErrKey, k.wrong(data))
	}

	if err != nil {
		return nil, ErrDamaged
	}

	plain, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil || len(plain) > MaxSize {
		return nil, ErrDamaged
	}

	files, err := unpack(plain)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}

	return files, nil
}

func unpack(plain []byte) ([]File, error) {
	var files []File
	archive := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}

		if err != nil {
			return nil, errors.New("what is sealed is no tar archive")
		}

		if h.Typeflag != tar.TypeReg || !fs.ValidPath(h.Name) || bytes.ContainsRune([]byte(h.Name), '/') {
			return nil, errors.New("what is sealed has an entry that is no plain file")
		}

		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, errors.New("what is sealed ends too early")
		}

		files = append(files, File{Name: h.Name, Data: content})
	}
}
