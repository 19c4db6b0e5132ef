// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What is secret is told by names, as LXD gives them and others would: those of tables, columns, config keys and of what is in JSON.
// A name that only sounds like a secret's conceals a value that nobody needed; the other way round a secret would be printed.

// secretParts make a name one of a secret, wherever they are in it.
var secretParts = []string{"password", "passwd", "passphrase", "secret", "token", "credential", "keyring", "apikey"}

// secretWords make a name one of a secret as its last word.
var secretWords = []string{"key", "pass", "pwd", "psk"}

// secretEnds are those of config keys that hold what a cloud-init configures, passwords among it, and of ACME's environment.
var secretEnds = []string{"user-data", "vendor-data", "network-config", "acme.provider.environment"}

// harmlessWords are the last words of names that tell something about a secret.
var harmlessWords = []string{"at", "date", "expiry", "id", "name", "type"}

// harmlessNames sound like secrets, and are settings.
var harmlessNames = []string{"core.https_allowed_credentials"}

// secretName tells whether what goes by this name is a secret: a config key, a column, a member of a JSON object.
func secretName(name string) bool {
	name = strings.ToLower(name)
	if slices.Contains(harmlessNames, name) {
		return false
	}

	if slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(name, end) }) {
		return true
	}

	words := strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("._- ", r) })
	last := ""
	if len(words) > 0 {
		last = words[len(words)-1]
	}

	// A program's environment has names of its own, such as VAULT_SECRET_ID.
	if slices.Contains(harmlessWords, last) && !strings.HasPrefix(name, "environment.") {
		return false
	}

	return slices.Contains(secretWords, last) || slices.ContainsFunc(secretParts, func(part string) bool { return strings.Contains(name, part) })
}

// secretColumn tells whether all values of a column are secrets. In a table of secrets all columns are, but those that tell what a
// secret is for.
func secretColumn(table string, column string, row map[string]string) bool {
	column = strings.ToLower(column)
	_, config := row["value"]
	switch {
	case column == "key" && config: // the name of a setting
		return false
	case column == "id" || column == "uuid" || strings.HasSuffix(column, "_id"):
		return false
	case secretName(column):
		return true
	}

	words := strings.Split(column, "_")
	return secretName(table) && !slices.Contains(harmlessWords, words[len(words)-1])
}

// secretText is what is shown in place of a secret: enough to tell whether two are the same, and to try one that is known. It is no
// SQL literal, which no value can therefore be mistaken for.
func secretText(value []byte) string {
	sum := sha256.Sum256(value)
	return "(secret, sha256 " + hex.EncodeToString(sum[:2]) + "…)"
}

// concealed tells whether a value is no SQL literal, but what conceal has put in place of one.
func concealed(value string) bool { return strings.HasPrefix(value, "(") }

// ShownSetting is the value of a setting as it may be shown: without secrets.
func ShownSetting(key string, value string) string {
	if secretName(key) && value != "" {
		return secretText([]byte(value))
	}

	return concealText(value)
}

// conceal returns a row, whose values are SQL literals, without secrets, and with text in binary values made readable.
func conceal(table string, row map[string]string) map[string]string {
	if row == nil {
		return nil
	}

	setting, _, _ := decode(row["key"])
	shown := make(map[string]string, len(row))
	for column, literal := range row {
		secret := secretColumn(table, column, row) || column == "value" && secretName(setting)
		shown[column] = concealValue(literal, secret)
	}

	return shown
}

func concealValue(literal string, secret bool) string {
	text, blob, ok := decode(literal)
	switch {
	case literal == "NULL" || ok && text == "" || concealed(literal):
		return literal
	case secret && !ok: // a number
		return secretText([]byte(literal))
	case secret || hasPrivateKey(text):
		return secretText([]byte(text))
	case !ok || !readable(text):
		return literal
	case blob:
		return "CAST(" + textLiteral(concealText(text)) + " AS BLOB)"
	}

	return textLiteral(concealText(text))
}

func textLiteral(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// decode returns the bytes of an SQL literal of text or of a binary value, as SQLite's quote and conceal write them.
func decode(literal string) (text string, blob bool, ok bool) {
	inner, isCast := strings.CutPrefix(literal, "CAST(")
	if isCast {
		literal = strings.TrimSuffix(inner, " AS BLOB)")
	}

	if len(literal) >= 3 && literal[0] == 'X' && literal[1] == '\'' {
		data, err := hex.DecodeString(literal[2 : len(literal)-1])
		return string(data), true, err == nil
	}

	if len(literal) < 2 || literal[0] != '\'' || literal[len(literal)-1] != '\'' {
		return "", false, false
	}

	return strings.ReplaceAll(literal[1:len(literal)-1], "''", "'"), isCast, true
}

// readable tells whether something is text.
func readable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\t\n\r", r) })
}

// Secrets that are known by what they look like.
var (
	privateKey  = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----`)
	tokens      = regexp.MustCompile(`\beyJ[A-Za-z0-9+/_-]{16,}={0,2}(\.[A-Za-z0-9_-]*)*`) // JSON in base64: LXD's own tokens, and those of the web
	urlPassword = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^/\s:@"']*:)([^/\s@"']+)@`)
)

// hasPrivateKey tells whether a text has a private key in it. Expressions are slow, and most texts have none of the words that they need.
func hasPrivateKey(text string) bool {
	return strings.Contains(text, "PRIVATE KEY-----") && privateKey.MatchString(text)
}

// concealText conceals the secrets in a text, JSON or not.
func concealText(text string) string {
	if hasPrivateKey(text) {
		return secretText([]byte(text))
	}

	value, ok := fromJSON(text)
	if ok {
		found := false
		value = concealJSON(value, false, &found)
		if !found {
			return text
		}

		return toJSON(value)
	}

	if strings.Contains(text, "eyJ") {
		text = tokens.ReplaceAllStringFunc(text, func(token string) string { return secretText([]byte(token)) })
	}

	if !strings.Contains(text, "://") {
		return text
	}

	return urlPassword.ReplaceAllStringFunc(text, func(match string) string {
		parts := urlPassword.FindStringSubmatch(match)
		return parts[1] + secretText([]byte(parts[2])) + "@"
	})
}

// concealJSON conceals the secrets in a decoded JSON value, of which all is one if secret is true. found tells whether there are any.
func concealJSON(value any, secret bool, found *bool) any {
	switch v := value.(type) {
	case map[string]any:
		setting, _ := v["key"].(string)
		_, pair := v["value"]
		for name := range v {
			isName := pair && name == "key"
			is := secret || secretName(name) && !isName || pair && name == "value" && secretName(setting)
			v[name] = concealJSON(v[name], is, found)
		}
	case []any:
		for i := range v {
			v[i] = concealJSON(v[i], secret, found)
		}
	case json.Number:
		if secret {
			*found = true
			return secretText([]byte(v))
		}
	case string:
		shown := v
		switch {
		case v == "":
		case secret:
			shown = secretText([]byte(v))
		default:
			shown = concealText(v)
		}

		*found = *found || shown != v
		return shown
	}

	return value
}

// fromJSON decodes a text that is a JSON object or list.
func fromJSON(text string) (any, bool) {
	trimmed := strings.TrimSpace(text)
	if trimmed == "" || trimmed[0] != '{' && trimmed[0] != '[' {
		return nil, false
	}

	decoder := json.NewDecoder(strings.NewReader(trimmed))
	decoder.UseNumber()
	var value any
	err := decoder.Decode(&value)
	if err != nil {
		return nil, false
	}

	_, err = decoder.Token()
	return value, errors.Is(err, io.EOF)
}

func toJSON(value any) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(value) // what was decoded from JSON
	return strings.TrimSuffix(b.String(), "\n")
}
