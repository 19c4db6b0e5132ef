// SPDX-License-Identifier: AGPL-3.0-only

package globaldb

import (
	"regexp"
	"strings"
)

// sqlTokens are the parts of SQL that matter here: comments, texts, quoted names, words, ends of statements. Anything else stands between
// them.
var sqlTokens = regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|[A-Za-z_][A-Za-z0-9_]*|;`)

// keyText is how a config key looks: user.note, loki.auth.password.
var keyText = regexp.MustCompile(`^[a-z][a-z0-9_-]*(\.[A-Za-z0-9_-]+)+$`)

// ConcealSQL conceals the secrets in SQL that is shown to people. A statement that names a secret, as a key or as a column, has all its texts
// concealed but the names of keys; in any other one, and in comments, what looks like a secret is. What remains need not be SQL any more.
func ConcealSQL(sql string) string {
	var out, statement strings.Builder
	begin := 0
	end := func(at int) {
		statement.WriteString(sql[begin:at])
		out.WriteString(concealStatement(statement.String()))
		statement.Reset()
		begin = at
	}

	for _, at := range sqlTokens.FindAllStringIndex(sql, -1) {
		if sql[at[0]:at[1]] == ";" {
			end(at[1])
		}
	}

	end(len(sql))
	return out.String()
}

func concealStatement(statement string) string {
	secret := false
	for _, token := range sqlTokens.FindAllString(statement, -1) {
		name := strings.Trim(token, `'"`)
		switch {
		case strings.HasPrefix(token, "--"), strings.HasPrefix(token, "/*"), strings.EqualFold(name, "key"): // the column is no secret
		case token[0] == '\'' && !keyText.MatchString(name): // a value
		default:
			secret = secret || secretName(name)
		}
	}

	return sqlTokens.ReplaceAllStringFunc(statement, func(token string) string {
		text, _, quoted := decode(token)
		switch {
		case strings.HasPrefix(token, "--"), strings.HasPrefix(token, "/*"):
			return concealText(token)
		case token[0] != '\'' || !quoted:
			return token
		case secret && !keyText.MatchString(text):
			return secretText([]byte(text))
		}

		shown := concealText(text)
		if shown == text {
			return token
		}

		return textLiteral(shown)
	})
}
