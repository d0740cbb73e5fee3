package config

import (
	"errors"
	"strings"
	"testing"
)

// errorsOf returns the messages of text, one per line.
func errorsOf(t *testing.T, text string) string {
	t.Helper()
	hermetic(t)
	config, err := Parse("w.yaml", []byte(text), noEnv)
	if err == nil {
		return ""
	}
	if problems, ok := errors.AsType[Errors](err); !ok || len(problems) == 0 || config != nil {
		t.Errorf("got config %v and error %T, want no config and Errors", config, err)
	}
	return err.Error()
}

func TestShapeErrors(t *testing.T) {
	const kafka = "kafka: {brokers: ['h:1']}\n"
	database := func(lines string) string {
		return kafka + "databases:\n  - name: a\n    dsn: host=localhost\n    slot: s\n    publication: p\n" + lines
	}
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "w.yaml:1:1: databases is required\nw.yaml:1:1: kafka.brokers is required"},
		{"only a comment", "# x\n", "w.yaml:1:1: databases is required\nw.yaml:1:1: kafka.brokers is required"},
		{"text", "x", "w.yaml:1:1: the file must be a mapping, not a text"},
		{"list", "- x", "w.yaml:1:1: the file must be a mapping, not a list"},
		{"empty values", "databases:\nkafka:\n  brokers: []\n", "w.yaml:1:1: databases is required\nw.yaml:3:12: kafka.brokers is required"},
		{"text for a list", kafka + "databases: x", "w.yaml:2:12: databases must be a list, not a text"},
		{"text for a mapping", kafka + "databases: [x]", "w.yaml:2:13: databases[0] must be a mapping, not a text"},
		{"null item", kafka + "databases:\n  - ~", strings.Join([]string{
			"w.yaml:3:5: databases[0].name is required",
			"w.yaml:3:5: databases[0].slot is required",
			"w.yaml:3:5: databases[0].publication is required",
			"w.yaml:3:5: databases[0].dsn is required, or else dsn_file",
		}, "\n")},
		{"list for a text", database("    topic: 1\n    password_file: [x]\n"), strings.Join([]string{
			`w.yaml:7:5: unknown key "topic" in databases[0]: valid keys: name, dsn, dsn_file, password_file, slot, publication, outbox, messages, drain_timeout, shutdown_grace, retain`,
			"w.yaml:8:20: databases[0].password_file must be a text, not a list",
		}, "\n")},
		{"misspelt", database("    slott: x\n"), `w.yaml:7:5: unknown key "slott" in databases[0]: did you mean "slot"? ` +
			"valid keys: name, dsn, dsn_file, password_file, slot, publication, outbox, messages, drain_timeout, shutdown_grace, retain"},
		{"misspelt at the top", database("adnim: {}\n"), `w.yaml:7:1: unknown key "adnim" in the file: did you mean "admin"? valid keys: databases, kafka, delivery, checkpoint, admin, log`},
		{"other case", database("log: {Level: info}\n"), `w.yaml:7:7: unknown key "Level" in log: did you mean "level"? valid keys: level, format`},
		{"duplicate", database("    slot: x\n"), `w.yaml:7:5: duplicate key "slot" in databases[0]: it is set already on line 5`},
		{"no value", database("    drain_timeout: # 10s\n"), "w.yaml:7:5: databases[0].drain_timeout has no value: give it one, or remove the key"},
		{"null section", database("    messages:\n"), ""},
		{
			"colon in braces", "kafka: {brokers: [h:1]}\n" + strings.TrimPrefix(database(""), kafka),
			"w.yaml:1:19: kafka.brokers[0] must be a text, not a mapping: put quotes around a text that has a colon in it",
		},
		{"alias", database("    password_file: *x\n"), "w.yaml:7:20: databases[0].password_file must be a text, not a YAML alias, anchor or tag: write the value itself"},
		{"merge", database("    <<: *x\n"), `w.yaml:7:5: unknown key "<<" in databases[0]: ` +
			"valid keys: name, dsn, dsn_file, password_file, slot, publication, outbox, messages, drain_timeout, shutdown_grace, retain"},
		{"two documents", database("---\na: 1\n"), "w.yaml:8:1: only one YAML document may be in the file"},
		{"marked document", "---\n" + database("...\n"), ""},
		{"byte order mark and CRLF", "\ufeff" + strings.ReplaceAll(database("    outbx: 1 # x\n    slott: 1\n"), "\n", "\r\n"), strings.Join([]string{
			`w.yaml:7:5: unknown key "outbx" in databases[0]: did you mean "outbox"? valid keys: name, dsn, dsn_file, password_file, slot, publication, outbox, messages, drain_timeout, shutdown_grace, retain`,
			`w.yaml:8:5: unknown key "slott" in databases[0]: did you mean "slot"? valid keys: name, dsn, dsn_file, password_file, slot, publication, outbox, messages, drain_timeout, shutdown_grace, retain`,
		}, "\n")},
		{"columns count characters", database("log: {level: größe, format: ö}\n"), strings.Join([]string{
			`w.yaml:7:14: log.level must be one of debug, info, warn, error, not "größe"`,
			`w.yaml:7:29: log.format must be one of auto, json, pretty, not "ö"`,
		}, "\n")},
		{"not UTF-8", "a: 1\nb: \xff\n", "w.yaml:2:1: not UTF-8: save the file as UTF-8"},
		{"not YAML", "a: [1\n", "w.yaml:1:4: not valid YAML: sequence end token ']' not found"},
		{"bad indentation", "a:\n  - b: 1\n   c: 2\n", "w.yaml:3:4: not valid YAML: value is not allowed in this context"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := errorsOf(t, test.text); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestValueErrors(t *testing.T) {
	text := func(database, outbox, rest string) string {
		return "databases:\n  - name: a\n    publication: p\n    " + database + "\n    outbox:\n      - " + outbox + "\n" + rest
	}
	const ok, table, kafka = "{dsn: host=localhost, slot: s}", "table: t", "kafka: {brokers: ['h:1']}\n"
	database := func(line string) string { return text(line, table, kafka) }
	outbox := func(line string) string { return text("dsn: host=localhost\n    slot: s", line, kafka) }
	other := func(lines string) string { return text("dsn: host=localhost\n    slot: s", table, lines) }
	inKafka := func(line string) string { return other("kafka:\n  brokers: ['h:1']\n  " + line + "\n") }
	long := strings.Repeat("x", 64)
	for _, test := range []struct{ name, text, want string }{
		{
			"name", strings.Replace(database("dsn: host=localhost\n    slot: s"), "name: a", "name: A", 1),
			`w.yaml:2:11: databases[0].name must be 1 to 63 of a-z, 0-9, _ and -, not "A"`,
		},
		{"slot", database("dsn: host=localhost\n    slot: a-b"), `w.yaml:5:11: databases[0].slot must be 1 to 63 of a-z, 0-9 and _, not "a-b"`},
		{
			"long slot", database("dsn: host=localhost\n    slot: " + long),
			`w.yaml:5:11: databases[0].slot must be 1 to 63 of a-z, 0-9 and _, not "` + long[:60] + `"`,
		},
		{
			"publication", strings.Replace(database("dsn: host=localhost\n    slot: s"), "publication: p", `publication: "a\nb"`, 1),
			`w.yaml:3:18: databases[0].publication must be a name of 1 to 63 bytes without control characters, not "a\nb"`,
		},
		{"no dsn", database("slot: s"), "w.yaml:2:5: databases[0].dsn is required, or else dsn_file"},
		{"two dsn", database("dsn_file: x\n    dsn: host=localhost\n    slot: s"), "w.yaml:4:15: databases[0].dsn_file must not be set together with dsn"},
		{
			"no dsn_file", database("dsn_file: /nowhere/x\n    slot: s"),
			"w.yaml:4:15: databases[0].dsn_file names a file that cannot be read: no such file or directory",
		},
		{
			"no password_file", database("dsn: host=localhost\n    slot: s\n    password_file: /nowhere/x"),
			"w.yaml:6:20: databases[0].password_file names a file that cannot be read: no such file or directory",
		},
		{"dsn", database("dsn: postgres://u:pw@h:port/d\n    slot: s"), "w.yaml:4:10: databases[0].dsn must be postgres://user@host:port/database?sslmode=verify-full " +
			"or key=value pairs: percent-encode : / ? # % @ and spaces in a URL's password, or use password_file; check the PG* variables too"},
		{
			"dsn names a file", database("dsn: host=h sslmode=verify-ca sslrootcert=/nowhere/ca\n    slot: s"),
			"w.yaml:4:10: databases[0].dsn needs a file that cannot be read (sslrootcert, sslcert, sslkey or servicefile): no such file or directory",
		},
		{"variable", database("dsn: host=${DB_HOST}\n    slot: s"), "w.yaml:4:10: databases[0].dsn needs the environment variable DB_HOST, which is not set"},
		{
			"reference", database("dsn: host=localhost\n    slot: ${a"),
			"w.yaml:5:11: databases[0].slot has a malformed reference: write ${NAME} for an environment variable, $${ for a literal ${",
		},
		{
			"reference with a default", database("dsn: host=localhost\n    slot: ${a:-b}"),
			"w.yaml:5:11: databases[0].slot has a malformed reference: write ${NAME} for an environment variable, $${ for a literal ${",
		},
		{
			"duration without unit", database("dsn: host=localhost\n    slot: s\n    drain_timeout: 10"),
			`w.yaml:6:20: databases[0].drain_timeout must be a duration of 0s or more such as 500ms, 10s or 2m, not "10"`,
		},
		{
			"negative duration", database("dsn: host=localhost\n    slot: s\n    shutdown_grace: -1s"),
			`w.yaml:6:21: databases[0].shutdown_grace must be a duration of 0s or more such as 500ms, 10s or 2m, not "-1s"`,
		},
		{
			"nothing to publish", "databases:\n  - {name: a, dsn: host=localhost, slot: s, publication: p, messages: {prefix: ''}}\n" + kafka,
			"w.yaml:2:5: databases[0].outbox must list a table when messages.prefix is empty: else there is nothing to publish",
		},
		{"table", outbox("table: a.b.c"), `w.yaml:7:16: databases[0].outbox[0].table must be schema.table such as public.outbox, each part 1 to 63 bytes, not "a.b.c"`},
		{"no table", outbox("topic: x"), "w.yaml:7:9: databases[0].outbox[0].table is required"},
		{"empty table", outbox(`table: ""`), "w.yaml:7:16: databases[0].outbox[0].table is required"},
		{
			"same table", outbox("table: t\n      - table: public.t"),
			"w.yaml:8:16: databases[0].outbox[1].table must be unique in its database: databases[0].outbox[0].table at w.yaml:7:16 is the same",
		},
		{"no column", outbox("{table: t, columns: {id: ''}}"), `w.yaml:7:34: databases[0].outbox[0].columns.id must be a column name of 1 to 63 bytes, not ""`},
		{"no order column", outbox("{table: t, order_column: \"a\\tb\"}"), `w.yaml:7:34: databases[0].outbox[0].order_column must be a column name of 1 to 63 bytes, not "a\tb"`},
		{
			"same column", outbox("{table: t, columns: {type: id}}"),
			"w.yaml:7:36: databases[0].outbox[0].columns.type must be unique in its table: databases[0].outbox[0].columns.id at w.yaml:7:29 is the same",
		},
		{
			"placeholder", outbox("{table: t, topic: 'a.{type}'}"),
			`w.yaml:7:27: databases[0].outbox[0].topic must have no placeholder but {aggregatetype}, not "a.{type}"`,
		},
		{
			"topic", outbox("{table: t, topic: 'a {aggregatetype}'}"),
			`w.yaml:7:27: databases[0].outbox[0].topic must give a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not "a {aggregatetype}"`,
		},
		{
			"topic of dots", outbox("{table: t, topic: '..'}"),
			`w.yaml:7:27: databases[0].outbox[0].topic must give a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not ".."`,
		},
		{
			"message topic", outbox("table: t\n    messages: {topic: ''}"),
			`w.yaml:8:23: databases[0].messages.topic must give a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not ""`,
		},
		{
			"type header", outbox("{table: t, type_header: id}"),
			`w.yaml:7:33: databases[0].outbox[0].type_header must not be "id": that header carries the event's id`,
		},
		{
			"header twice", outbox("table: t\n    messages: {type_header: walferry-position}"),
			"w.yaml:8:29: databases[0].messages.type_header must differ from kafka.position_header",
		},
		{"no brokers", other(""), "w.yaml:1:1: kafka.brokers is required"},
		{"brokers", other(`kafka: {brokers: [a, "a:b", ":1", "a:0", "kafka://u:pw@h:1"]}`), strings.Join([]string{
			`w.yaml:8:19: kafka.brokers[0] must be host:port such as 127.0.0.1:9092, not "a"`,
			`w.yaml:8:22: kafka.brokers[1] must be host:port such as 127.0.0.1:9092, not "a:b"`,
			`w.yaml:8:29: kafka.brokers[2] must be host:port such as 127.0.0.1:9092, not ":1"`,
			`w.yaml:8:35: kafka.brokers[3] must be host:port such as 127.0.0.1:9092, not "a:0"`,
			`w.yaml:8:42: kafka.brokers[4] must be host:port such as 127.0.0.1:9092, not the one given`,
		}, "\n")},
		{"brokers in one text", other("kafka: {brokers: 'a:1,b'}"), `w.yaml:8:18: kafka.brokers[1] must be host:port such as 127.0.0.1:9092, not "a:1,b"`},
		{"bool", inKafka("topics: {create: yes}"), `w.yaml:10:20: kafka.topics.create must be true or false, not "yes"`},
		{"enum", inKafka("compression: brotli"), `w.yaml:10:16: kafka.compression must be one of none, gzip, snappy, lz4, zstd, not "brotli"`},
		{"linger", inKafka("linger: 61s"), `w.yaml:10:11: kafka.linger must be at most 1m0s, not "61s"`},
		{"checkpoint topic", other("kafka: {brokers: ['h:1']}\ncheckpoint: {topic: a b}\n"), `w.yaml:9:21: checkpoint.topic must be a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not "a b"`},
		{
			"checkpoint among events", text("dsn: host=localhost\n    slot: s", "{table: t, topic: events}", "kafka: {brokers: ['h:1']}\ncheckpoint: {topic: events}\n"),
			"w.yaml:9:21: checkpoint.topic must not be a topic of events, as it is in outbox[0] of database a",
		},
		{"checkpoint interval", other("kafka: {brokers: ['h:1']}\ncheckpoint: {interval: 10ms}\n"), `w.yaml:9:24: checkpoint.interval must be from 100ms to 1m0s, not "10ms"`},
		{"size", inKafka("max_record: 1 MB"), `w.yaml:10:15: kafka.max_record must be a size such as 64MiB, 1MB or 1000000, not "1 MB"`},
		{"small record", inKafka("max_record: 1023"), `w.yaml:10:15: kafka.max_record must be from 1KiB to 64MiB, not "1023"`},
		{"large record", inKafka("max_record: 65MiB"), `w.yaml:10:15: kafka.max_record must be from 1KiB to 64MiB, not "65MiB"`},
		{"small buffer", inKafka("max_buffered: 3999999"), "w.yaml:10:17: kafka.max_buffered must be at least 4 times max_record, that is 4080KiB"},
		{"dead-letter topic", inKafka("dead_letter_topic: ''"), `w.yaml:10:22: kafka.dead_letter_topic must be a topic name of 1 to 249 of a-z, A-Z, 0-9, '.', _ and -, not ""`},
		{"dead letters among checkpoints", inKafka("dead_letter_topic: walferry.checkpoints"), `w.yaml:10:22: kafka.dead_letter_topic must differ from checkpoint.topic`},
		{
			"dead letters among events", text("dsn: host=localhost\n    slot: s", "{table: t, topic: events}", "kafka: {brokers: ['h:1'], dead_letter_topic: events}\n"),
			"w.yaml:8:46: kafka.dead_letter_topic must not be a topic of events, as it is in outbox[0] of database a",
		},
		{"position header", inKafka("position_header: id"), `w.yaml:10:20: kafka.position_header must not be "id": that header carries the event's id`},
		{"tls is off", inKafka("tls: {ca_file: x}"), "w.yaml:10:8: kafka.tls.enabled must be true for the other keys of kafka.tls to have an effect"},
		{
			"no ca", inKafka("tls: {enabled: true, ca_file: /nowhere/ca}"),
			"w.yaml:10:33: kafka.tls.ca_file cannot be read: open /nowhere/ca: no such file or directory",
		},
		{"no key", inKafka("tls: {enabled: true, cert_file: x}"), "w.yaml:10:8: kafka.tls.key_file is required with cert_file"},
		{"no certificate", inKafka("tls: {enabled: true, key_file: x}"), "w.yaml:10:8: kafka.tls.cert_file is required with key_file"},
		{
			"no pair", inKafka("tls: {enabled: true, cert_file: /nowhere/x, key_file: /nowhere/y}"),
			"w.yaml:10:35: kafka.tls.cert_file and key_file cannot be used: open /nowhere/x: no such file or directory",
		},
		{"mechanism", inKafka("sasl: {mechanism: GSSAPI}"), `w.yaml:10:21: kafka.sasl.mechanism must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, not "GSSAPI"`},
		{"no mechanism", inKafka("sasl: {username: u}"), "w.yaml:10:9: kafka.sasl.mechanism is required for the other keys of kafka.sasl to have an effect"},
		{
			"no user", inKafka("sasl: {mechanism: PLAIN}"),
			"w.yaml:10:9: kafka.sasl.username is required with a mechanism\nw.yaml:10:9: kafka.sasl.password is required, or else password_file",
		},
		{
			"no password file", inKafka("sasl: {mechanism: PLAIN, username: u, password_file: /nowhere/x}"),
			"w.yaml:10:56: kafka.sasl.password_file names a file that cannot be read: no such file or directory",
		},
		{
			"listen", other(kafka + "admin: {listen: '9400'}"),
			`w.yaml:9:17: admin.listen must be host:port such as 127.0.0.1:9400, or "" to turn it off, not "9400"`,
		},
		{
			"log", other(kafka + "log: {level: trace, format: ''}"),
			"w.yaml:9:14: log.level must be one of debug, info, warn, error, not \"trace\"\nw.yaml:9:29: log.format must be one of auto, json, pretty, not \"\"",
		},
		{"no problem", database("dsn: host=localhost\n    slot: s"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := errorsOf(t, test.text); got != test.want {
				t.Errorf("got\n%s\nwant\n%s\nof\n%s", got, test.want, test.text)
			}
		})
	}
}

func TestUniqueDatabases(t *testing.T) {
	text := func(name, dsn, slot string) string {
		second := strings.NewReplacer("databases:\n", "", "shop", name, "postgres://walferry@127.0.0.1:5432/shop", dsn, "slot: walferry", "slot: "+slot)
		databases, rest, _ := strings.Cut(minimum, "kafka:")
		return databases + second.Replace(databases) + "kafka:" + rest
	}
	for _, test := range []struct{ name, text, want string }{
		{"other slot", text("b", "postgres://walferry@127.0.0.1/shop", "s2"), ""},
		{"other server", text("b", "postgres://walferry@127.0.0.2/shop", "walferry"), ""},
		{"other port", text("b", "postgres://walferry@127.0.0.1:5433/shop", "walferry"), ""},
		{"other slot", text("b", "postgres://walferry@127.0.0.1:5432/crm", "walferry2"), ""},
		{"same name", text("shop", "host=127.0.0.1", "s2"), "w.yaml:8:11: databases[1].name must be unique in the file: databases[0].name at w.yaml:2:11 is the same"},
		{
			"same slot", text("b", "host=127.0.0.1 dbname=shop user=other", "walferry"),
			"w.yaml:10:11: databases[1].slot must be unique in its Postgres server: databases[0].slot at w.yaml:4:11 is the same",
		},
		{
			"same slot of another database", text("b", "host=127.0.0.1 dbname=crm", "walferry"),
			"w.yaml:10:11: databases[1].slot must be unique in its Postgres server: databases[0].slot at w.yaml:4:11 is the same",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := errorsOf(t, test.text); got != test.want {
				t.Errorf("got\n%s\nwant\n%s\nof\n%s", got, test.want, test.text)
			}
		})
	}
}

// TestErrorsShowNoSecret puts a secret where it is easily put by mistake.
func TestErrorsShowNoSecret(t *testing.T) {
	hermetic(t)
	env := func(name string) (string, bool) { return "hunter2", name == "SECRET" }
	for _, text := range []string{
		"databases: [{dsn: 'postgres://u:hunter2@h:port/d'}]",
		"databases: [{dsn: 'postgres://u:hunter2:hunter2@h/d'}]",
		"databases: [{dsn: 'postgres://u:hunter2 hunter2@h/d'}]",
		"databases: [{dsn: 'password=hunter2 hunter2'}]",
		"databases: [{dsn: 'hunter2'}]",
		"databases: [{dsn: 'host=h sslmode=hunter2'}]",
		"databases: [{dsn: 'host=h password=hunter2 sslmode=verify-ca sslrootcert=/nowhere/hunter2'}]",
		"databases: [{dsn: hunter2, dsn: hunter2}]",
		"databases: [{dsn: hunter2, dsn_file: hunter2}]",
		"databases: [{dsn: [hunter2]}]",
		"databases: [{dsn: {hunter2: x}}]",
		"databases: [{dsn: '${hunter2'}]",
		"databases: [{dsn: '${NO-hunter2}'}]",
		"databases: [{dsn: *hunter2}]",
		"databases: [{dsn: !hunter2 x}]",
		"databases: [{dsn_file: hunter2, password_file: hunter2}]",
		"databases: [{dsn: host=localhost, password_file: hunter2}]",
		"databases: [postgres://u:hunter2@h/d]",
		"databases:\n  - dsn postgres://u:hunter2@h\n    slot: s\n",
		"databases:\n  - dsn: a\n     hunter2: b\n",
		"databases:\n  - dsn: |hunter2\n",
		"databases:\n  - dsn: \"\\hunter2\"\n",
		"databases:\n  - dsn: 'hunter2\n",
		"databases:\n  - dsn: @hunter2\n",
		"databases:\n  - dsn: %hunter2\n",
		"databases:\n  - dsn: a: hunter2\n",
		"kafka: {brokers: ['kafka://u:hunter2@h:9092'], sasl: {password: hunter2}}",
		"kafka: {sasl: {mechanism: PLAIN, password: hunter2, password_file: hunter2}}",
		"kafka: {sasl: {mechanism: PLAIN, username: u, password_file: hunter2}}",
		"kafka: {'u:hunter2@h': x}",
		"log: {level: '${SECRET}'}",
		"kafka: {brokers: '${SECRET}', linger: '${SECRET}', max_record: '${SECRET}', tls: {enabled: '${SECRET}'}}",
		"databases: [{name: '${SECRET}!', slot: '${SECRET}!', outbox: [{table: '${SECRET}.x.y', topic: '${SECRET}!'}]}]",
	} {
		_, err := Parse("w.yaml", []byte(text), env)
		if err == nil {
			t.Errorf("no error for\n%s", text)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got\n%v\nof\n%s", err, text)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		minimum, "", "# x", "a", "[]", "{}", "? a\n: b\n", "a: &x\n  <<: *x\n", "--- \n---\n", "\ufeffa: 1\r\n", "%YAML 1.2\n---\na: 1\n",
		"databases: [~, {outbox: [~, {columns: ~}]}]", "databases: [{name: |\n  a\n}]", "kafka: {brokers: 'a,${B}', max_record: 9MiB}",
		"log: !!map {level: \"\\u00e9\", format: >-\n  json}", "databases:\n  - dsn: 'host=localhost password=$${x}'\n    drain_timeout: 1h\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		config, err := Parse("w.yaml", []byte(text), func(name string) (string, bool) { return "v", len(name)%2 == 0 })
		if (config == nil) == (err == nil) {
			t.Fatalf("got config %v and error %v", config, err)
		}
		problems, ok := errors.AsType[Errors](err)
		if err != nil && (!ok || len(problems) == 0) {
			t.Fatalf("got error %T, want Errors with a problem", err)
		}
		for i, problem := range problems {
			if problem.Line < 1 || problem.Column < 1 || problem.Message == "" || i > 0 && problem.Line < problems[i-1].Line {
				t.Errorf("problem %d has no place or is out of order: %v", i, problems)
			}
		}
	})
}
