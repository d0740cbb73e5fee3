package deploy_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/setup"
)

// TestOutboxSQLIsWhatInitPrints keeps postgres/outbox.sql equal, statement by
// statement, to `walferry init --print` for the compose file's database.
func TestOutboxSQLIsWhatInitPrints(t *testing.T) {
	path := filepath.Join("compose", "walferry.yaml")
	dsn := func(string) (string, bool) { return "postgres://walferry@postgres/shop", true }
	cfg, err := config.Parse(path, []byte(read(t, path)), dsn)
	if err != nil {
		t.Fatal(err)
	}
	printed, err := setup.SQL(cfg.Databases[0])
	if err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(statements(printed), func(s string) bool {
		return strings.HasPrefix(s, "create role ") || strings.HasPrefix(s, "grant connect ") // in roles.sql
	})
	if got := statements(read(t, filepath.Join("postgres", "outbox.sql"))); !slices.Equal(got, want) {
		t.Errorf("postgres/outbox.sql:\n%s\n`walferry init --print`:\n%s", strings.Join(got, ";\n"), strings.Join(want, ";\n"))
	}
}

// statements splits SQL and takes away what makes no difference: comments, case,
// quotes around names, white space, IF NOT EXISTS.
func statements(sql string) []string {
	sql = regexp.MustCompile(`--.*`).ReplaceAllString(sql, "")
	sql = strings.NewReplacer(`"`, "", "if not exists ", "").Replace(strings.ToLower(sql))
	sql = regexp.MustCompile(`\s*([(),=])\s*`).ReplaceAllString(sql, "$1")
	var found []string
	for statement := range strings.SplitSeq(sql, ";") {
		if words := strings.Fields(statement); len(words) > 0 {
			found = append(found, strings.Join(words, " "))
		}
	}
	return found
}
