package integration

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// mustExit runs the binary to its end, checks its exit code and last words, and returns them.
func mustExit(t *testing.T, code int, args []string, says ...string) (stderr string) {
	t.Helper()
	_, stderr = walferry(t, args...).exit(code)
	for _, part := range says {
		if !strings.Contains(stderr, part) {
			t.Errorf("walferry %s does not say %q:\n%s", strings.Join(args, " "), part, stderr)
		}
	}
	return stderr
}

func TestExitCodesOfConfigurations(t *testing.T) {
	const good = "databases:\n  - {name: shop, dsn: 'postgres://walferry:hunter2@127.0.0.1:1/shop', slot: s, publication: p}\nkafka: {brokers: '127.0.0.1:1'}\n"
	for name, test := range map[string]struct {
		content string
		says    []string
	}{
		"unknown key":        {good + "kafak: {}\n", []string{"walferry.yaml:4:1", `"kafak"`, `did you mean "kafka"?`}},
		"several mistakes":   {"databases:\n  - {name: Shop, dsn: 'x=', slot: s}\nkafka: {max_record: 1TB}\n", []string{"databases[0].name", "databases[0].publication", "kafka.brokers", "kafka.max_record"}},
		"no YAML":            {"databases: [", []string{"walferry.yaml:1"}},
		"empty":              {"", []string{"databases"}},
		"variable not set":   {strings.Replace(good, "hunter2", "${NOBODY_SETS_THIS}", 1), []string{"walferry.yaml:2", "NOBODY_SETS_THIS"}},
		"password file gone": {strings.Replace(good, "slot: s", "slot: s, password_file: /nonexistent/secret", 1), []string{"walferry.yaml:2:95: databases[0].password_file", "cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, test.content)
			for _, command := range [][]string{{"run"}, {"init"}, {"init", "--print"}, {"status"}, {"healthcheck"}, {"config", "validate"}} {
				stderr := mustExit(t, 78, append(command, "--config", path), test.says...)
				if strings.Contains(stderr, "hunter2") {
					t.Errorf("walferry %s shows a password:\n%s", command, stderr)
				}
			}
		})
	}
	mustExit(t, 78, []string{"run", "--config", filepath.Join(t.TempDir(), "missing.yaml")}, "missing.yaml", "no such file")
	mustExit(t, 0, []string{"config", "validate", "--config", writeFile(t, good)})
}

func TestExitCodesOfUsage(t *testing.T) {
	path := writeFile(t, "databases: [{name: a, dsn: 'host=127.0.0.1', slot: a, publication: p}, {name: b, dsn: 'host=127.0.0.1', slot: b, publication: p}]\nkafka: {brokers: '127.0.0.1:1'}\n")
	for _, test := range []struct {
		args string
		says string
	}{
		{"run --no-such-flag", "--no-such-flag"},
		{"run extra", "extra"},
		{"run --until-lsn x --config " + path, `"x" is not an LSN such as 16/B374D848`},
		{"run --until-lsn 0/1 --config " + path, "needs one database, the configuration has 2"},
		{"frobnicate", `unknown command "frobnicate"`},
		{"config frobnicate", "frobnicate"},
	} {
		mustExit(t, 64, strings.Fields(test.args), test.says)
	}
	for _, args := range []string{"--help", "version", "run --help", "config --help"} {
		mustExit(t, 0, strings.Fields(args))
	}
}

func TestExitCodesOfRun(t *testing.T) {
	t.Run("poison", func(t *testing.T) {
		w := newWorld(t, newest(t), func(c *config.Config) { c.Kafka.MaxRecord = 1 << 10 })
		want := w.order("k", "1")
		before := w.insertLSN()
		w.order("k", `"`+noise(2000, 1)+`"`)
		w.order("k", "3")
		for range 2 {
			stderr := mustExit(t, 65, []string{"run", "--config", w.configFile("")}, "cannot be published", "kafka.max_record", w.prefix+".order")
			w.mustNotConfirm(before, stderr)
			w.mustPublish("order", want)
		}
	})
	t.Run("admin.listen is taken", func(t *testing.T) {
		w := newWorld(t, newest(t), nil)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		mustExit(t, 1, []string{"run", "--config", w.configFile(l.Addr().String())}, "admin.listen", l.Addr().String(), "in use", "is another walferry running?")
	})
	t.Run("database is missing", func(t *testing.T) {
		w := bareWorld(t, newest(t), "", func(c *config.Config) {
			c.Databases[0].DSN = config.Secret(strings.Replace(string(c.Databases[0].DSN), "?", "_missing?", 1))
		})
		for _, command := range []string{"run", "init"} {
			mustExit(t, 1, []string{command, "--config", w.configFile("")}, w.prefix+"_missing", "does not exist")
		}
	})
	t.Run("slot is missing", func(t *testing.T) {
		w := newWorld(t, newest(t), nil)
		w.exec("SELECT pg_drop_replication_slot($1)", w.prefix)
		mustExit(t, 67, []string{"run", "--config", w.configFile("")}, w.prefix, "does not exist any more", "walferry init --accept-gap")
		w.cfg.Checkpoint.Topic = ""
		mustExit(t, 1, []string{"run", "--config", w.configFile("")}, w.prefix, "does not exist", "walferry init")
		mustExit(t, 1, []string{"status", "--config", w.configFile("")}, "cannot be read")
	})
}

func TestExitCodeOfAWrongPassword(t *testing.T) {
	pg := ownPostgres(t, "18", servers.PostgresOptions{})
	w := newWorld(t, pg.DSN("postgres"), nil)
	w.exec("CREATE ROLE ferryman LOGIN REPLICATION PASSWORD 'right one'")
	hba := "host all ferryman 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
	if err := os.WriteFile(filepath.Join(pg.DataDir(), "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := pg.SetConf(t.Context(), nil); err != nil { // reloads
		t.Fatal(err)
	}
	w.as("ferryman")
	dsn := w.cfg.Databases[0].DSN
	w.cfg.Databases[0].DSN = dsn + "&password=wrong-one"
	for _, command := range []string{"run", "init", "status"} {
		stdout, stderr := walferry(t, command, "--config", w.configFile("")).exit(1)
		if said := stdout + stderr; !strings.Contains(said, "28P01") || strings.Contains(said, "wrong-one") {
			t.Errorf("walferry %s says %q, want SQLSTATE 28P01 and no password", command, said)
		}
	}
	want := w.order("k", "1")
	end := w.walEnd()
	w.cfg.Databases[0].DSN = dsn + "&password=right%20one"
	walferry(t, "run", "--until-lsn", end, "--config", w.configFile("")).exit(0)
	w.mustPublish("order", want)
}
