package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/internal/servers"
)

// secret is a password that no output may show.
const secret = "s3cret-p4ssword"

// said is what a command line came to.
type said struct {
	t              *testing.T
	args           []string
	code           int
	stdout, stderr string
}

// walferry executes a command line in this process.
func walferry(t *testing.T, args ...string) said {
	t.Helper()
	s := said{t: t, args: args}
	output := func(file **os.File) (read func() string) {
		capture, err := os.Create(filepath.Join(t.TempDir(), "output"))
		if err != nil {
			t.Fatal(err)
		}
		before := *file
		*file = capture
		return func() string {
			*file = before
			defer capture.Close()
			text, err := os.ReadFile(capture.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	stdout, stderr := output(&os.Stdout), output(&os.Stderr)
	s.code = execute(args)
	s.stdout, s.stderr = stdout(), stderr()
	if strings.Contains(s.stdout+s.stderr, secret) {
		t.Errorf("%q shows a password:\n%s%s", args, s.stdout, s.stderr)
	}
	return s
}

// exits checks the exit code, and that standard error has all the parts.
func (s said) exits(code int, parts ...string) said {
	s.t.Helper()
	if s.code != code {
		s.t.Errorf("%q: exit code %d, want %d\n%s%s", s.args, s.code, code, s.stdout, s.stderr)
	}
	for _, part := range parts {
		if !strings.Contains(s.stderr, part) {
			s.t.Errorf("%q does not say %q:\n%s", s.args, part, s.stderr)
		}
	}
	return s
}

// says checks that standard output has all the parts.
func (s said) says(parts ...string) said {
	s.t.Helper()
	for _, part := range parts {
		if !strings.Contains(s.stdout, part) {
			s.t.Errorf("%q does not print %q:\n%s", s.args, part, s.stdout)
		}
	}
	return s
}

// configFile writes a configuration with these databases, each name@host:port.
func configFile(t *testing.T, admin string, databases ...string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("databases:\n")
	for _, d := range databases {
		name, addr, _ := strings.Cut(d, "@")
		fmt.Fprintf(&b, "  - {name: %s, dsn: \"postgres://walferry:%s@%s/shop?sslmode=require\", slot: %s, publication: walferry, outbox: [{table: outbox}]}\n",
			name, secret, addr, name)
	}
	fmt.Fprintf(&b, "kafka: {brokers: %q}\nadmin: {listen: %q}\nlog: {format: json}\n", servers.FreeAddr(t), admin)
	return write(t, b.String())
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "walferry.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAWrongCommandLine(t *testing.T) {
	one, two := configFile(t, "", "shop@"+servers.FreeAddr(t)), configFile(t, "", "a@"+servers.FreeAddr(t), "b@"+servers.FreeAddr(t))
	for _, test := range []struct {
		args []string
		part string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense"`},
		{[]string{"config", "nonsense"}, `unknown command "nonsense"`},
		{[]string{"--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"run", "--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"run", "-x"}, "unknown shorthand flag: 'x'"},
		{[]string{"run", "--config"}, "flag needs an argument: --config"},
		{[]string{"init", "--timeout", "soon"}, "invalid argument"},
		{[]string{"run", "shop"}, `unknown command "shop"`},
		{[]string{"init", "shop"}, `unknown command "shop"`},
		{[]string{"status", "shop"}, `unknown command "shop"`},
		{[]string{"healthcheck", "shop"}, `unknown command "shop"`},
		{[]string{"version", "shop"}, `unknown command "shop"`},
		{[]string{"config", "validate", one}, "unknown command"},
		{[]string{"poison", "nonsense"}, `unknown command "nonsense"`},
		{[]string{"poison", "show", "7000/1/0/1/0"}, `unknown command "7000/1/0/1/0"`},
		{[]string{"poison", "show", "--config", one, "--database", "other"}, `--database: the configuration has no database "other"`},
		{[]string{"poison", "dead-letter"}, "accepts 1 arg(s), received 0"},
		{[]string{"poison", "dead-letter", "--config", one, "0/1"}, `"0/1" is not a position such as 7312345678901234567/1/0/15A1DB3/0`},
		{[]string{"poison", "dead-letter", "--config", two, "7000/1/0/1/0"}, "the configuration has 2 databases: choose one with --database"},
		{[]string{"recover", "shop"}, `unknown command "shop"`},
		{[]string{"recover", "--config", two}, "the configuration has 2 databases: choose one with --database"},
		{[]string{"recover", "--config", one, "--report", "/nowhere/report"}, "--report: open /nowhere/report"},
		{[]string{"replay", "--config", one}, "give one of --from-lsn, --from-time, --from, --from-table and --resume"},
		{[]string{"replay", "--config", one, "--from-lsn", "nonsense"}, `--from-lsn: "nonsense" is not an LSN such as 16/B374D848`},
		{[]string{"replay", "--config", one, "--from-time", "yesterday"}, `--from-time: "yesterday" is neither a time such as`},
		{[]string{"replay", "--config", one, "--from-time", "5m", "--to-time", "6m"}, "--to-time lies before --from-time"},
		{[]string{"replay", "--config", one, "--from", "x", "--from-lsn", "0/1"}, "give one of --from-lsn"},
		{[]string{"replay", "--config", one, "--from", "x", "--to", "nowhere"}, "--to must be kafka or stdout"},
		{[]string{"replay", "--config", one, "--from", "x", "--in-place", "--topic-prefix", "y"}, "--in-place and --topic-prefix exclude each other"},
		{[]string{"replay", "--config", one, "--from", "x", "--topic-prefix", ""}, "an empty --topic-prefix is --in-place"},
		{[]string{"replay", "--config", one, "--resume", "x", "--from", "y"}, "--resume goes on as the replay began"},
		{[]string{"replay", "--config", one, "--from-table", "--to-lsn", "0/1"}, "--from-table knows no LSNs"},
		{[]string{"replay", "--config", two, "--from", "x"}, "the configuration has 2 databases: choose one with --database"},
		{[]string{"reconcile", "shop"}, `unknown command "shop"`},
		{[]string{"reconcile", "--config", one, "--database", "nobody"}, `--database: the configuration has no database "nobody"`},
		{[]string{"reconcile", "--config", one, "--report", "/nowhere/report"}, "--report: open /nowhere/report"},
		{[]string{"reconcile", "--config", one, "--memory", "1kB"}, `invalid argument "1kB" for "--memory" flag: must be from 1.0 MiB to 1.0 TiB`},
		{[]string{"reconcile", "--config", one, "--repair", "--max-repair", "-1"}, `invalid argument "-1" for "--max-repair" flag`},
		{[]string{"checkpoint", "save"}, "accepts 1 arg(s), received 0"},
		{[]string{"checkpoint", "save", "--config", one, "before/deploy"}, `"before/deploy" is not a name`},
		{[]string{"run", "--config", one, "--until-lsn", "nonsense"}, `--until-lsn: "nonsense" is not an LSN such as 16/B374D848`},
		{[]string{"run", "--config", two, "--until-lsn", "0/1"}, "--until-lsn needs one database, the configuration has 2"},
	} {
		s := walferry(t, test.args...).exits(exitUsage, "walferry: ", test.part, "(see walferry --help)")
		if s.stdout != "" || strings.Count(s.stderr, "\n") != 1 {
			t.Errorf("%q: want one line on standard error:\n%s%s", test.args, s.stdout, s.stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	root := walferry(t).exits(0).says("Usage:", "Available Commands:")
	if again := walferry(t, "--help").exits(0); again.stdout != root.stdout {
		t.Error("walferry and walferry --help differ")
	}
	_, list, _ := strings.Cut(root.stdout, "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	commands := [][]string{
		{"config", "validate"},
		{"poison", "show"},
		{"poison", "dead-letter"},
		{"replay", "window"},
		{"checkpoint", "list"},
		{"checkpoint", "show"},
		{"checkpoint", "save"},
		{"checkpoint", "forget"},
	}
	for _, line := range strings.Split(list, "\n") {
		if name := strings.Fields(line)[0]; name != "completion" && name != "help" { // those are cobra's
			commands = append(commands, []string{name})
		}
	}
	if got, want := len(commands), 19; got != want {
		t.Errorf("%d commands, want %d: %q", got, want, commands)
	}
	for _, command := range commands {
		s := walferry(t, append(command, "--help")...).exits(0).says("Usage:", "Examples:\n  walferry "+strings.Join(command, " "))
		if s.stderr != "" {
			t.Errorf("%q writes to standard error: %s", s.args, s.stderr)
		}
	}
	walferry(t, "config").exits(0).says("validate")
}

func TestVersion(t *testing.T) {
	s := walferry(t, "version").exits(0)
	if want := "walferry dev (unknown)\n"; s.stdout != want {
		t.Errorf("got %q, want %q", s.stdout, want)
	}
}

func TestConfigurationsThatCannotBeUsed(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	invalid := write(t, `databases:
  - name: shop
    dsn: postgres://walferry:`+secret+`@127.0.0.1/shop
    slot: Shop
    publication: walferry
    outbox:
      - table: outbox
        topics: orders
kafka:
  brokers: [nowhere]
`)
	for _, command := range [][]string{{"run"}, {"init"}, {"init", "--print"}, {"status"}, {"poison", "show"}, {"poison", "dead-letter", "7000/1/0/1/0"}, {"reconcile"}, {"config", "validate"}, {"healthcheck"}} {
		walferry(t, append(command, "--config", missing)...).exits(exitConfig, "walferry: read the configuration: open "+missing)
		s := walferry(t, append(command, "-c", invalid)...).exits(exitConfig,
			"walferry: "+invalid+":4:11: databases[0].slot must be",
			invalid+`:8:9: unknown key "topics" in databases[0].outbox[0]: did you mean "topic"?`,
			invalid+":10:13: kafka.brokers[0] must be host:port")
		if got := strings.Count(s.stderr, invalid+":"); got != 3 || s.stdout != "" {
			t.Errorf("%q reports %d problems, want 3:\n%s%s", command, got, s.stdout, s.stderr)
		}
	}
	unset := write(t, "databases: [{name: shop, dsn: '${WALFERRY_TEST_UNSET}', slot: s, publication: p}]\nkafka: {brokers: '127.0.0.1:9092'}\n")
	walferry(t, "config", "validate", "--config", unset).exits(exitConfig, unset+":1:", "needs the environment variable WALFERRY_TEST_UNSET")
}

func TestConfigValidate(t *testing.T) {
	path := configFile(t, "", "a@"+servers.FreeAddr(t), "b@"+servers.FreeAddr(t))
	s := walferry(t, "config", "validate", "--config", path).exits(0)
	if want := path + " is valid: 2 database(s)\n"; s.stdout != want || s.stderr != "" {
		t.Errorf("got %q and %q, want %q", s.stdout, s.stderr, want)
	}
	t.Setenv("WALFERRY_TEST_PASSWORD", secret)
	path = write(t, `databases: [{name: shop, dsn: "host=db.example user=walferry password='${WALFERRY_TEST_PASSWORD}'", slot: s, publication: p}]
kafka: {brokers: "kafka.example:9092", sasl: {mechanism: PLAIN, username: walferry, password: "${WALFERRY_TEST_PASSWORD}"}}
`)
	walferry(t, "config", "validate", "--config", path).exits(0,
		"warning: "+path+":1:", "may connect to another host without TLS",
		"warning: "+path+":2:", "the password travels in clear text").says(path + " is valid: 1 database(s)\n")
}

func TestInitPrint(t *testing.T) {
	path := configFile(t, "", "shop@"+servers.FreeAddr(t))
	s := walferry(t, "init", "--print", "--config", path).exits(0)
	order := []string{
		`CREATE ROLE "walferry" LOGIN REPLICATION`, `GRANT CONNECT ON DATABASE "shop" TO "walferry"`,
		`CREATE TABLE IF NOT EXISTS "public"."outbox"`, `CREATE PUBLICATION "walferry" FOR TABLE "public"."outbox"`,
		"SELECT pg_create_logical_replication_slot('shop', 'pgoutput');",
	}
	at := make([]int, len(order))
	for i, statement := range order {
		if at[i] = strings.Index(s.stdout, statement); at[i] < 0 {
			t.Errorf("no %s in\n%s", statement, s.stdout)
		}
	}
	if !slices.IsSorted(at) {
		t.Errorf("the order of the statements is wrong:\n%s", s.stdout)
	}
	nameless := write(t, "databases: [{name: shop, dsn: 'postgres://walferry@127.0.0.1/', slot: s, publication: p}]\nkafka: {brokers: '127.0.0.1:9092'}\n")
	t.Setenv("PGDATABASE", "")
	walferry(t, "init", "--print", "--config", nameless).exits(exitConfig, "the DSN names no user or no database")
}

func TestWithoutPostgres(t *testing.T) {
	addr := servers.FreeAddr(t)
	path := configFile(t, "", "shop@"+addr)
	walferry(t, "init", "--config", path).exits(1, "walferry: database shop: connect to Postgres: ", addr, "connection refused")
	walferry(t, "poison", "dead-letter", "--config", path, "7000/1/0/1/0").exits(1, "walferry: database shop: connect to Postgres: ", addr, "connection refused")
	s := walferry(t, "status", "--config", path).exits(1, "walferry: 1 of 1 slots are lost or cannot be read")
	s.says("shop\n", "connection refused", "admin.listen is empty")

	s = walferry(t, "status", "--json", "--config", path).exits(1, "1 of 1 slots")
	var reports []report
	if err := json.Unmarshal([]byte(s.stdout), &reports); err != nil {
		t.Fatalf("status --json prints %q: %v", s.stdout, err)
	}
	if len(reports) != 1 || reports[0].Database != "shop" || reports[0].Slot != nil || reports[0].Bridge != nil || len(reports[0].Errors) != 2 {
		t.Errorf("reports %+v", reports)
	}
}

// Whoever watches the metrics must see that there was no comparison.
func TestReconcileMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "walferry.prom")
	series := func() []string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return regexp.MustCompile("(?m)^walferry_reconcile_.*").FindAllString(string(text), -1)
	}
	file := configFile(t, "", "a@"+servers.FreeAddr(t), "b@"+servers.FreeAddr(t))
	walferry(t, "reconcile", "--config", file, "--metrics", path).exits(1, "database a: connect to Postgres", "database b: connect to Postgres")
	if got := series(); !slices.Equal(got, []string{`walferry_reconcile_success{database="a"} 0`, `walferry_reconcile_success{database="b"} 0`}) {
		t.Errorf("where nothing could be compared: %q", got)
	}
	repaired := &reconcile.Result{Database: "a", Total: reconcile.Counts{Missing: 5, Repaired: 3}}
	if err := writeReconcileMetrics(path, []*reconcile.Result{repaired}, map[string]float64{"a": 1, "b": 0}); err != nil {
		t.Fatal(err)
	}
	got := series()
	for _, want := range []string{
		`walferry_reconcile_success{database="a"} 1`, `walferry_reconcile_success{database="b"} 0`,
		`walferry_reconcile_missing{database="a"} 2`, `walferry_reconcile_repaired{database="a"} 3`,
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
}

func TestTheAdminAddressIsTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := configFile(t, l.Addr().String(), "shop@"+servers.FreeAddr(t))
	s := walferry(t, "run", "--config", path).exits(1, "walferry: admin.listen: listen tcp "+l.Addr().String(), "address already in use", "another walferry")
	if strings.Contains(s.stderr, "walferry starts") {
		t.Errorf("it started all the same:\n%s", s.stderr)
	}
}

// A server that refuses TLS stops every bridge: the process ends with all that was wrong.
func TestEveryDatabaseFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the test is over
			}
			_, _ = io.ReadFull(conn, make([]byte, 8)) // the request for TLS
			_, _ = io.WriteString(conn, "N")
			conn.Close()
		}
	}()
	path := configFile(t, servers.FreeAddr(t), "a@"+l.Addr().String(), "b@"+l.Addr().String())
	s := walferry(t, "run", "--config", path).exits(bridge.Fatal.ExitCode(),
		"walferry: database a: connect to Postgres: ", "\ndatabase b: connect to Postgres: ", "(hint: ")
	logged := regexp.MustCompile(`"level":"error","database":"([ab])".*"class":"fatal","hint":"[^"]+".*"message":"stopped"`).FindAllStringSubmatch(s.stderr, -1)
	if len(logged) != 2 {
		t.Errorf("%d bridges log why they stopped, want 2:\n%s", len(logged), s.stderr)
	}
}

func TestHealthcheck(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, "what is wrong with "+r.URL.Path)
	}))
	defer server.Close()
	path := configFile(t, server.Listener.Addr().String(), "shop@"+servers.FreeAddr(t))
	if s := walferry(t, "healthcheck", "--config", path).exits(0); s.stdout+s.stderr != "" {
		t.Errorf("it says %q and %q", s.stdout, s.stderr)
	}
	walferry(t, "healthcheck", "--url", server.URL+"/healthz").exits(0)
	walferry(t, "healthcheck", "--url", server.URL+"/readyz").exits(1, "503 Service Unavailable", "what is wrong with /readyz")
	walferry(t, "healthcheck", "--url", "http://"+servers.FreeAddr(t)+"/healthz").exits(1, "connection refused")
	walferry(t, "healthcheck", "--config", configFile(t, "", "shop@"+servers.FreeAddr(t))).exits(1, "admin.listen is empty")
}

func TestAdminURL(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9400":     "http://127.0.0.1:9400/status",
		":9400":              "http://127.0.0.1:9400/status",
		"0.0.0.0:9400":       "http://127.0.0.1:9400/status",
		"[::]:9400":          "http://127.0.0.1:9400/status",
		"[::1]:9400":         "http://[::1]:9400/status",
		"admin.example:9400": "http://admin.example:9400/status",
	} {
		if got, err := adminURL(listen, "/status"); got != want || err != nil {
			t.Errorf("%q: %q, %v, want %q", listen, got, err, want)
		}
	}
	for _, listen := range []string{"", "9400", "::1:9400"} {
		if got, err := adminURL(listen, "/status"); err == nil {
			t.Errorf("%q: %q, want an error", listen, got)
		}
	}
}

func TestExitCode(t *testing.T) {
	stopped := func(c bridge.Class) error { return &bridge.Error{Database: "shop", Class: c, Err: errors.New("why")} }
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("anything"), 1},
		{stopped(bridge.Fatal), 1},
		{stopped(bridge.Poison), 65},
		{stopped(bridge.Lost), 66},
		{errors.Join(nil, stopped(bridge.Lost)), 66},
		{errors.Join(stopped(bridge.Poison), stopped(bridge.Fatal)), 65},
		{&usageError{errors.New("why")}, 64},
		{&defectsError{[]string{"shop"}}, 68},
		{errors.Join(stopped(bridge.Fatal)), 1},
		{&configError{errors.New("why")}, 78},
		{fmt.Errorf("load: %w", config.Errors{{Message: "why"}}), 78},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: exit code %d, want %d", test.err, got, test.want)
		}
	}
}

func TestReportsForPeople(t *testing.T) {
	var b strings.Builder
	err := printReports(&b, []report{
		{
			Database: "shop",
			Slot: &slotReport{
				Name: "walferry", Active: true, WALStatus: "reserved", RestartLSN: "0/1500000", ConfirmedFlushLSN: "0/1500100",
				RestartLagBytes: 3 << 20, ConfirmedLagBytes: 2048, SafeWALSizeBytes: -1,
			},
			Bridge: &bridge.Status{State: bridge.Streaming, Role: "leader", Ready: true, Inflight: 7, Sessions: 2, LastEvent: time.Now().Add(-3 * time.Minute)},
		},
		{Database: "billing", Bridge: &bridge.Status{State: bridge.Starting, Role: "none", Reason: "starting"}, Errors: []string{"no slot"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	words := regexp.MustCompile(` +`).ReplaceAllString(b.String(), " ")
	for _, want := range []string{
		"shop\n slot walferry active true, wal_status reserved", "confirmed_flush_lsn 0/1500100 2.0 KiB behind", "restart_lsn 0/1500000 3.0 MiB of WAL kept",
		"bridge streaming role leader, ready true", "in flight 7 events 2 session(s) so far", "last event 3 minutes ago",
		"billing\n bridge starting role none, ready false starting", "last event none yet", "problem no slot",
	} {
		if !strings.Contains(words, want) {
			t.Errorf("no %q in\n%s", want, words)
		}
	}
}
