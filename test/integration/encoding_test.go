package integration

import (
	"fmt"
	"testing"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// Whatever encoding a database has, records are UTF-8.
func TestLatin1Database(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'", func(c *config.Config) {
			c.Databases[0].Outbox[0].Table = "public.Ausgangskörbe"
			c.Databases[0].Outbox[0].Columns.AggregateID = "schlüssel"
		})
		w.exec(`CREATE TABLE "Ausgangskörbe" (id text, aggregatetype text, "schlüssel" text, type text, payload text)`)
		w.setup()
		want := w.emit(`INSERT INTO "Ausgangskörbe" VALUES ('ä', 'order', 'ö ÿ', 'T', E'\u00e9 {"\u00fc": "\u00a4\u0085"}') RETURNING id, "schlüssel", payload`)
		if want[0].value != "é {\"ü\": \"¤\u0085\"}" {
			t.Fatalf("the table has %q", want[0].value)
		}
		// Postgres converts rows, but messages are bytes to it: they have to be UTF-8 as they are.
		const message = `{"id":"m","aggregatetype":"order","aggregateid":"ü","payload":"é"}`
		w.exec("SELECT pg_logical_emit_message(true, 'outbox', convert_to($1, 'UTF8'))", message)
		want = append(want, event{id: "m", key: "ü", value: "é"})
		w.drainAll()
		w.mustPublish("order", want)

		before := w.insertLSN()
		w.exec("SELECT pg_logical_emit_message(true, 'outbox', $1::text)", message)
		w.run("").mustStopBefore(w, before, "logical message outbox", "UTF-8")
	})
}

// Settings of the role and the database change how sessions print values, but not records.
func TestSettingsOfTheRoleDoNotChangeBytes(t *testing.T) {
	types := map[string][]string{
		"timestamptz": {"2026-03-08 13:00:00.5+00", "infinity", "0044-03-15 12:00:00+00 BC"},
		"timestamp":   {"2026-03-08 01:02:03.000004"},
		"date":        {"2026-03-08", "-infinity"},
		"timetz":      {"13:00:00+05:30"},
		"interval":    {"1 year 2 mons -3 days 04:05:06.7", "-1 day"},
		"float8":      {"0.1", "0.30000000000000004", "1e-7"},
		"float4":      {"0.1", "16777217"},
		"text":        {"ä 🐘"},
		"xml":         {"<a/>"},
		"oid":         {"16384"},
	}
	settings := map[string]string{
		"DateStyle": "German, DMY", "TimeZone": "Asia/Kolkata", "IntervalStyle": "iso_8601", "bytea_output": "escape",
		"extra_float_digits": "-15", "client_encoding": "LATIN1", "lc_monetary": "C", "xmloption": "document",
		"quote_all_identifiers": "on", "search_path": "nowhere", "statement_timeout": "1min", "lock_timeout": "1s",
		"standard_conforming_strings": "off", "default_transaction_read_only": "on", "row_security": "off",
	}
	onEveryPostgres(t, func(t *testing.T, admin string) {
		for _, target := range []string{"ROLE", "DATABASE"} {
			t.Run(target, func(t *testing.T) {
				w := bareWorld(t, admin, "", outboxes(len(types)))
				table, inserts := 0, []string(nil)
				for typ, values := range types {
					w.exec(fmt.Sprintf("CREATE TABLE outbox_%d (id text, aggregatetype text, aggregateid text, type text, payload %s)", table, typ))
					for _, value := range values {
						inserts = append(inserts, fmt.Sprintf("INSERT INTO outbox_%d VALUES ('%s', 'order', 'k', 'T', '%s')", table, typ, value)+returning)
					}
					table++
				}
				w.setup()
				w.exec("SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1")
				var want []event
				for _, insert := range inserts {
					want = concat(want, w.emit(insert))
				}
				role := w.prefix + "_role"
				w.exec("CREATE ROLE " + role + " LOGIN REPLICATION")
				t.Cleanup(func() { w.dropRole(role) })
				name := map[string]string{"ROLE": role, "DATABASE": w.prefix}[target]
				for setting, value := range settings {
					w.exec(fmt.Sprintf("ALTER %s %s SET %s = '%s'", target, name, setting, value))
				}
				w.as(role)
				r := w.run("")
				r.awaitState(bridge.Streaming)
				w.awaitCaughtUp()
				r.drain()
				w.mustPublish("order", want)
			})
		}
	})
}
