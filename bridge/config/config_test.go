package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const minimum = `databases:
  - name: shop
    dsn: postgres://walferry@127.0.0.1:5432/shop
    slot: walferry
    publication: walferry
    outbox:
      - table: public.outbox
kafka:
  brokers: [127.0.0.1:9092]
admin:
  listen: 127.0.0.1:9400
`

func noEnv(string) (string, bool) { return "", false }

// hermetic keeps the connection settings of the machine out of the test.
func hermetic(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE", "PGSSLMODE",
		"PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS",
	} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("HOME", t.TempDir())
}

func parse(t *testing.T, text string) *Config {
	t.Helper()
	hermetic(t)
	config, err := Parse("walferry.yaml", []byte(text), noEnv)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return config
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMinimumHasDefaults(t *testing.T) {
	want := &Config{
		Databases: []Database{{
			Name: "shop", DSN: "postgres://walferry@127.0.0.1:5432/shop", Slot: "walferry", Publication: "walferry",
			Outbox: []Outbox{{
				Table:   "public.outbox",
				Columns: Columns{ID: "id", AggregateType: "aggregatetype", AggregateID: "aggregateid", Type: "type", Payload: "payload"},
				Topic:   "outbox.event.{aggregatetype}",
			}},
			Messages:     Messages{Prefix: "outbox", Topic: "outbox.event.{aggregatetype}"},
			DrainTimeout: 10 * time.Second, ShutdownGrace: 5 * time.Second,
		}},
		Kafka: Kafka{
			Brokers: []string{"127.0.0.1:9092"}, ClientID: "walferry", Topics: Topics{Create: true}, Compression: "lz4", Linger: 20 * time.Millisecond,
			MaxBuffered: 8 << 20, MaxRecord: 1020 << 10, PositionHeader: "walferry-position", DeadLetterTopic: "walferry.dead-letters",
		},
		Delivery:   "at_least_once",
		Checkpoint: Checkpoint{Topic: "walferry.checkpoints", Interval: time.Second},
		Admin:      Admin{Listen: "127.0.0.1:9400"},
		Log:        Log{Level: "info", Format: "auto"},
	}
	if got := parse(t, minimum); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

func TestExampleShowsEveryKeyAndItsDefault(t *testing.T) {
	hermetic(t)
	path := filepath.Join("..", "..", "walferry.example.yaml")
	got, err := Load(path)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if want := parse(t, minimum); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &document{nodes: map[string]node{}, failed: map[string]bool{}, env: noEnv}
	d.bind(d.parse(data), "", reflect.ValueOf(new(Config)).Elem(), "")
	for _, key := range keys("", reflect.TypeFor[Config]()) {
		if _, ok := d.nodes[key]; !ok {
			t.Errorf("%s does not show %s", path, key)
		}
	}
}

// keys lists the YAML paths of every key under path; a list has one element.
func keys(path string, of reflect.Type) (all []string) {
	switch of.Kind() {
	case reflect.Slice:
		return keys(path+"[0]", of.Elem())
	case reflect.Struct:
		for i := range of.NumField() {
			if key, _ := keyOf(of.Field(i)); key != "" {
				all = append(all, join(path, key))
				all = append(all, keys(join(path, key), of.Field(i).Type)...)
			}
		}
	}
	return all
}

func TestLoadReadsEnvironment(t *testing.T) {
	hermetic(t)
	t.Setenv("SHOP_BROKERS", "a:1, b:2")
	path := write(t, "walferry.yaml", strings.Replace(minimum, "[127.0.0.1:9092]", "${SHOP_BROKERS}", 1))
	config, err := Load(path)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if got, want := config.Kafka.Brokers, []string{"a:1", "b:2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got brokers %q, want %q", got, want)
	}
}

func TestLoadMissingFile(t *testing.T) {
	_, err := Load("/nowhere/walferry.yaml")
	if got, want := fmt.Sprint(err), "read the configuration: open /nowhere/walferry.yaml: no such file or directory"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestValues(t *testing.T) {
	hermetic(t)
	env := map[string]string{"SECRET": "a: b #'\"${NOT}\n", "FIVE": "5s", "ON": "true", "EMPTY": ""}
	lookup := func(name string) (string, bool) { value, ok := env[name]; return value, ok }
	text := `databases:
  - name: ${EMPTY}a-1_b
    dsn: "host=/run/postgresql password='$${x}'"
    slot: s_1
    publication: "größe"
    outbox: [{table: outbox, topic: events, type_header: eventType}, {table: Sales.Out, order_column: No. 1}]
    messages: {prefix: "", topic: ""}
    drain_timeout: ${FIVE}
    shutdown_grace: 0s
kafka:
  brokers: ["[::1]:9092"]
  client_id: 0x10
  topics: {create: false}
  compression: none
  linger: 1m
  max_buffered: 4KiB
  max_record: 1024
  position_header: ""
  dead_letter_topic: dead
  tls: {enabled: "${ON}", insecure_skip_verify: true, server_name: kafka}
  sasl: {mechanism: PLAIN, username: u, password: "${SECRET}$5"}
admin: {listen: ""}
log: {level: debug, format: json}
`
	config, err := Parse("f", []byte(text), lookup)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	db, kafka := config.Databases[0], config.Kafka
	for _, check := range []struct{ got, want any }{
		{db.Name, "a-1_b"},
		{db.DSN.Reveal(), "host=/run/postgresql password='${x}'"},
		{db.Publication, "größe"},
		{db.Outbox[0].Table, "public.outbox"},
		{db.Outbox[0].Topic, "events"},
		{db.Outbox[0].TypeHeader, "eventType"},
		{db.Outbox[0].Columns.Payload, "payload"},
		{db.Outbox[1].Table, "Sales.Out"},
		{db.Outbox[1].OrderColumn, "No. 1"},
		{db.Outbox[1].Topic, "outbox.event.{aggregatetype}"},
		{db.Messages, Messages{}},
		{db.DrainTimeout, 5 * time.Second},
		{db.ShutdownGrace, time.Duration(0)},
		{kafka.Brokers, []string{"[::1]:9092"}},
		{kafka.ClientID, "0x10"},
		{kafka.Topics.Create, false},
		{kafka.Compression, "none"},
		{kafka.Linger, time.Minute},
		{kafka.MaxBuffered, Size(4096)},
		{kafka.MaxRecord, Size(1024)},
		{kafka.PositionHeader, ""},
		{kafka.DeadLetterTopic, "dead"},
		{kafka.TLS, TLS{Enabled: true, InsecureSkipVerify: true, ServerName: "kafka"}},
		{kafka.SASL.Password.Reveal(), "a: b #'\"${NOT}\n$5"},
		{config.Admin.Listen, ""},
		{config.Log, Log{Level: "debug", Format: "json"}},
		{config.Warnings(), []string{"f:20:49: kafka.tls.insecure_skip_verify is true: any server can pass itself off as the broker"}},
	} {
		if !reflect.DeepEqual(check.got, check.want) {
			t.Errorf("got %#v, want %#v", check.got, check.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	const unsafeDSN = " may connect to another host without TLS: sslmode is disable, allow or prefer, which is the default; " +
		"use verify-full, or at least require"
	text := func(dsn, brokers, rest string) string {
		out := strings.Replace(minimum, "postgres://walferry@127.0.0.1:5432/shop", dsn, 1)
		return strings.Replace(out, "[127.0.0.1:9092]", brokers+"\n  sasl: {mechanism: PLAIN, username: u, password: p}"+rest, 1)
	}
	plain := "walferry.yaml:10:21: kafka.sasl.mechanism is PLAIN without TLS: the password travels in clear text; " +
		"enable kafka.tls or use SCRAM-SHA-512"
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"local", text("postgres://u@localhost/d?sslmode=disable", "[localhost:9092]", ""), nil},
		{"socket", text("host=/run/postgresql", "[127.0.0.1:1]", ""), nil},
		{"prefer", text("postgres://u@db/d", "[localhost:9092]", ""), []string{"walferry.yaml:3:10: databases[0].dsn" + unsafeDSN}},
		{"allow", text("postgres://u@db/d?sslmode=allow", "[localhost:9092]", ""), []string{"walferry.yaml:3:10: databases[0].dsn" + unsafeDSN}},
		{"second host", text("host=localhost,db sslmode=disable", "[localhost:9092]", ""), []string{"walferry.yaml:3:10: databases[0].dsn" + unsafeDSN}},
		{"require", text("postgres://u@db/d?sslmode=require", "[localhost:9092]", ""), nil},
		{"plain", text("host=localhost", "[localhost:9092, kafka:9092]", ""), []string{plain}},
		{"plain in tls", text("host=localhost", "[kafka:9092]", "\n  tls: {enabled: true}"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := parse(t, test.text).Warnings(); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	config := parse(t, strings.Replace(minimum, "[127.0.0.1:9092]",
		"[127.0.0.1:9092]\n  sasl: {mechanism: PLAIN, username: u, password: hunter2}", 1))
	config.Databases[0].DSN = "hunter2"
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%08b"} {
		if got := fmt.Sprintf(verb, config.Kafka.SASL); strings.Contains(got, "hunter2") || strings.Contains(got, "68756e74657232") {
			t.Errorf("%s shows the secret: %s", verb, got)
		}
		if got := fmt.Sprintf(verb, config); strings.Contains(got, "hunter2") {
			t.Errorf("%s shows the secret: %s", verb, got)
		}
	}
	encoded, err := json.Marshal(config)
	if err != nil || strings.Contains(string(encoded), "hunter2") || !strings.Contains(string(encoded), `"Password":"redacted"`) {
		t.Errorf("got JSON %s, error %v", encoded, err)
	}
	secret := config.Kafka.SASL.Password
	if got, want := secret.String()+secret.GoString()+secret.Reveal(), "redactedredactedhunter2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSize(t *testing.T) {
	for _, test := range []struct {
		text string
		want Size
		ok   bool
	}{
		{"0", 0, true},
		{"1000000", 1000000, true},
		{"12B", 12, true},
		{"1KB", 1000, true},
		{"10KiB", 10240, true},
		{"1MB", 1000000, true},
		{"64MiB", 67108864, true},
		{"2GB", 2000000000, true},
		{"8589934591GiB", 9223372035781033984, true},
		{"8589934592GiB", 0, false},
		{"9223372036854775808", 0, false},
		{"", 0, false},
		{"MiB", 0, false},
		{"-1", 0, false},
		{"+1", 0, false},
		{"1.5MiB", 0, false},
		{"1 MiB", 0, false},
		{"1mib", 0, false},
		{"1TiB", 0, false},
		{"1BB", 0, false},
	} {
		if got, ok := parseSize(test.text); got != test.want || ok != test.ok {
			t.Errorf("parseSize(%q): got %d, %v, want %d, %v", test.text, got, ok, test.want, test.ok)
		}
	}
	for size, want := range map[Size]string{0: "0B", 1: "1B", 1000000: "1MB", 33554432: "32MiB", 1001: "1001B", 3000: "3KB"} {
		if got := size.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
