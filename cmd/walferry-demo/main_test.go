package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/walferry/walferry/bridge/config"
)

// TestBridgeBinaryHasNoTestTools: what the demo needs must not end up in production.
func TestBridgeBinaryHasNoTestTools(t *testing.T) {
	list := exec.Command("go", "list", "-deps", "github.com/walferry/walferry/cmd/walferry")
	list.Stderr = os.Stderr
	output, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(output))
	if !slices.Contains(deps, "github.com/walferry/walferry/bridge") {
		t.Fatalf("go list returned %d packages and not even bridge", len(deps))
	}
	for _, dep := range deps {
		for _, tool := range []string{"/kfake", "embedded-postgres", "walferry/internal/servers", "walferry/internal/demo"} {
			if strings.Contains(dep, tool) {
				t.Errorf("cmd/walferry depends on %s", dep)
			}
		}
	}
}

// TestComposeCommands checks the flags that docker-compose.yml gives to the demo.
func TestComposeCommands(t *testing.T) {
	content, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct{ Command []string }
	}
	if err := yaml.Unmarshal(content, &compose); err != nil {
		t.Fatal(err)
	}
	for service, want := range map[string]string{"demo-service": "produce", "demo-consumer": "consume"} {
		cmd, args, err := rootCommand().Find(compose.Services[service].Command)
		if err != nil || cmd.Name() != want {
			t.Errorf("%s: got command %q, error %v, want %q", service, cmd.Name(), err, want)
			continue
		}
		if err := errors.Join(cmd.ParseFlags(args), cmd.ValidateArgs(cmd.Flags().Args())); err != nil {
			t.Errorf("%s: %v", service, err)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"--events", "0"},
		{"--events", "many"},
		{"--rate", "-1"},
		{"--unknown"},
		{"unknown"},
		{"--kafka", "no-port"},
		{"--postgres", "postgres://u:s3cret@h:port/db"},
		{"produce"},
		{"produce", "--postgres", "host=h", "--rate", "-1"},
		{"consume"},
		{"consume", "extra", "--kafka", "h:1"},
	} {
		root := rootCommand()
		root.SetArgs(args)
		err := root.ExecuteContext(t.Context())
		if got := exitCode(err); got != exitUsage {
			t.Errorf("%v: got exit code %d (%v), want %d", args, got, err, exitUsage)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v: the error shows the password", args)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errNotProved, 1},
		{errors.New("x"), 1},
		{errors.Join(errInterrupted, errors.New("x")), 130},
		{fmt.Errorf("x: %w", &usageError{errors.New("y")}), 64},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: got %d, want %d", c.err, got, c.want)
		}
	}
}

// TestBridgeConfig: a password may hold any character, also those of YAML and of variables.
func TestBridgeConfig(t *testing.T) {
	const dsn = `postgres://u:p$%7B%22x%22%7D@127.0.0.1:5432/d?sslmode=disable`
	p := &place{
		options: options{dsn: dsn, brokers: []string{"127.0.0.1:1", "127.0.0.1:2"}},
		schema:  "s", slot: "slot", publication: "pub", prefix: "msg", topics: "t",
	}
	cfg, err := p.config()
	if err != nil {
		t.Fatal(err)
	}
	db := cfg.Databases[0]
	conn, err := db.ConnConfig()
	if err != nil || conn.Password != `p${"x"}` {
		t.Errorf("password: got error %v, or another password", err)
	}
	if db.Slot != "slot" || db.Publication != "pub" || db.Messages.Prefix != "msg" || len(cfg.Kafka.Brokers) != 2 {
		t.Errorf("got %+v", cfg)
	}
	want := config.Outbox{Table: "s.outbox", Topic: "t.{aggregatetype}", TypeHeader: "type", Columns: db.Outbox[0].Columns}
	if db.Outbox[0] != want || db.Messages.Topic != want.Topic || p.topic() != "t.order" {
		t.Errorf("got %+v and messages %+v, want %+v", db.Outbox[0], db.Messages, want)
	}
}

func TestScreen(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(s *screen)
		out  string
		err  string
	}{
		{"lines", func(s *screen) { s.say("a %d", 1); s.say("b") }, "a 1\nb\n", ""},
		{"a line above the status", func(s *screen) { s.setStatus("status"); s.say("a") }, "status\r\x1b[Ka\nstatus", ""},
		{"a new status", func(s *screen) { s.setStatus("one"); s.setStatus("two"); s.setStatus("") }, "one\r\x1b[Ktwo\r\x1b[K", ""},
		{"a log line", func(s *screen) { s.setStatus("one"); fmt.Fprint(s, "log\n") }, "one\r\x1b[Kone", "log\n"},
	} {
		var out, log bytes.Buffer
		c.do(&screen{out: &out, err: &log})
		if out.String() != c.out || log.String() != c.err {
			t.Errorf("%s: got %q and %q, want %q and %q", c.name, out.String(), log.String(), c.out, c.err)
		}
	}
}
