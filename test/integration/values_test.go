package integration

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// outboxes makes the world's configuration have tables outbox_0 to outbox_<n-1>.
func outboxes(n int) func(*config.Config) {
	return func(c *config.Config) {
		template := c.Databases[0].Outbox[0]
		c.Databases[0].Outbox = nil
		for i := range n {
			template.Table = fmt.Sprintf("public.outbox_%d", i)
			c.Databases[0].Outbox = append(c.Databases[0].Outbox, template)
		}
	}
}

// null is a payload that is NULL.
const null = "\x00"

func TestValuesKeepTheirBytes(t *testing.T) {
	types := []struct {
		name     string
		payloads []string
	}{
		{"text", []string{"", " ", "🐘 → 👩‍👩‍👧‍👦", "\x01\x02\x1f\x7f\u0085\u2028\ufeff\U0010ffff", "\\x00 \\N \t\r\n\\", "{not JSON", null}},
		{"json", []string{`{"nul": "\u0000", "half": "\ud800"}`, "{ \"b\" :1,\t\"a\":2, \"a\":3 }\n", `"🐘"`, `1e400`, "null", null}},
		{"jsonb", []string{`{"b": 1,   "a": 2, "a": 3}`, `1e400`, `-0.10`, `"\u00e4\t🐘"`, `""`, "null", null}},
		{"varchar(5)", []string{"äöü", null}},
		{"numeric", []string{"0.10000", "NaN", "-12345678901234567890.5", null}},
		{"float8", []string{"0.1", "1e-300", "Infinity", "0.30000000000000004", null}},
		{"text[]", []string{`{"a,b","",NULL,"\"quoted\""}`, null}},
		{"mood", []string{"très bien", null}},
		{"document", []string{`{"a":   1}`, null}},
	}
	keys := []string{"k", "", " ", "🐘", "new\nline\t\"quoted\" \\ \x01", noise(100_000, 1), strings.Repeat("ключ", 1000)}
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", outboxes(len(types)))
		w.exec("CREATE TYPE mood AS ENUM ('très bien'); CREATE DOMAIN document AS jsonb")
		for i, typ := range types {
			w.exec(fmt.Sprintf(`CREATE TABLE outbox_%d (at timestamptz DEFAULT 'infinity', id text, until date DEFAULT '-infinity', aggregatetype text,
				old timestamp DEFAULT '4713-01-01 BC', aggregateid text, moods mood[] DEFAULT '{très bien}', type text, payload %s)`, i, typ.name))
		}
		w.setup()
		var want []event
		for i, typ := range types {
			for j, payload := range typ.payloads {
				var value any = payload
				if payload == null {
					value = nil
				}
				want = concat(want, w.emit(fmt.Sprintf("INSERT INTO outbox_%d (id, aggregatetype, aggregateid, payload) VALUES ($1, 'order', $2, $3)", i)+returning,
					fmt.Sprintf("%s %d", typ.name, j), keys[(i+j)%len(keys)], value))
			}
		}
		w.drainAll()
		w.mustPublish("order", want)
		for _, r := range w.records() {
			if r.Key == nil {
				t.Errorf("the empty key of event %s became none", header(r, "id"))
			}
		}
	})
}

// The value of a bytea payload is its bytes, not a text form of them.
func TestByteaPayloads(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", outboxes(2))
		w.exec("CREATE DOMAIN protobuf AS bytea; CREATE DOMAIN cloud_event AS protobuf NOT NULL")
		var want []event
		for i, typ := range []string{"bytea", "cloud_event"} {
			w.exec(fmt.Sprintf("CREATE TABLE outbox_%d (id text, aggregatetype text, aggregateid text, type text, payload %s)", i, typ))
		}
		w.setup()
		insert := func(table int, payload any) {
			events := w.emit(fmt.Sprintf("INSERT INTO outbox_%d VALUES ('1', 'order', 'k', 'T', $1)", table)+
				" RETURNING id, aggregateid, encode(payload, 'hex')", payload)
			b, err := hex.DecodeString(events[0].value)
			if err != nil {
				t.Fatal(err)
			}
			events[0].value = string(b)
			want = concat(want, events)
		}
		all := make([]byte, 256)
		for i := range all {
			all[i] = byte(i)
		}
		for table := range 2 {
			for _, payload := range [][]byte{all, {}, {0}, []byte(`\x00`), []byte(noise(100_000, 1))} {
				insert(table, payload)
			}
		}
		insert(0, nil)
		w.drainAll()
		w.mustPublish("order", want)
	})
}

// A JSON string of a message stands for its text, in which even NUL may be.
func TestValuesOfMessages(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		var want []event
		for i, payload := range []struct{ json, value string }{
			{`"a\u0000b\n\"\\\/\ud83d\udc18🐘"`, "a\x00b\n\"\\/🐘🐘"},
			{`{ "raw":  "\u0000", "raw": 1e400 }`, `{ "raw":  "\u0000", "raw": 1e400 }`},
			{`""`, ""},
			{`"` + strings.Repeat("🐘", 250_000) + `"`, strings.Repeat("🐘", 250_000)},
			{`-1.50`, `-1.50`},
			{`[1, 2]`, `[1, 2]`},
			{`false`, `false`},
			{`null`, `null`},
		} {
			w.exec("SELECT pg_logical_emit_message(true, 'outbox', $1::text)",
				fmt.Sprintf(` {"id": %d, "type": null, "aggregatetype": "order", "more": [{}], "aggregateid": "k\u0000🐘", "payload": %s} `, i, payload.json))
			want = append(want, event{id: fmt.Sprint(i), key: "k\x00🐘", value: payload.value})
		}
		w.drainAll()
		w.mustPublish("order", want)
	})
}

// Names of any kind, keys and ids of other types, and headers as configured.
func TestMappedNamesTypesAndHeaders(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) {
			prefix := c.Databases[0].Slot
			columns := config.Columns{ID: "Event ID", AggregateType: "aggregate-Type", AggregateID: `"Key"`, Type: "SELECT", Payload: "größe 🐘"}
			c.Databases[0].Publication = `Wal"Ferry's`
			c.Databases[0].Outbox = []config.Outbox{
				{Table: "Sales Dept.Out'Box", Columns: columns, Topic: prefix + ".constant", TypeHeader: "ce_type"},
				{Table: "Sales Dept.out'box", Columns: columns, Topic: prefix + ".{aggregatetype}.v1"},
			}
			c.Databases[0].Messages.TypeHeader = "event-type"
			c.Kafka.PositionHeader = ""
		})
		w.exec(`CREATE SCHEMA "Sales Dept"`)
		for _, table := range []string{`"Sales Dept"."Out'Box" ("größe 🐘" jsonb, "Event ID" bigint, "aggregate-Type" text, `, `"Sales Dept"."out'box" ("größe 🐘" text, "Event ID" uuid, "aggregate-Type" name, `} {
			key := "bigint"
			if strings.Contains(table, "uuid") {
				key = "uuid"
			}
			w.exec("CREATE TABLE " + table + `payload text DEFAULT 'not the payload', "SELECT" text, """Key""" ` + key + ")")
		}
		w.setup()
		constant := w.emit(`INSERT INTO "Sales Dept"."Out'Box" VALUES ('{"a":1}', -9223372036854775808, 'whatever ☂', DEFAULT, 'Placed', 42), ('2', 7, '', DEFAULT, NULL, -1)
			RETURNING "Event ID"::text, """Key"""::text, "größe 🐘"::text`)
		templated := w.emit(`INSERT INTO "Sales Dept"."out'box" VALUES ('v', gen_random_uuid(), 'In_voice-2.x', DEFAULT, 'Sent', gen_random_uuid())
			RETURNING "Event ID"::text, """Key"""::text, "größe 🐘"`)
		w.exec(`SELECT pg_logical_emit_message(true, 'outbox', '{"id":"m","aggregatetype":"order","aggregateid":"k","type":"Emitted","payload":1}')`)
		w.drainAll()
		w.mustPublish("constant", constant)
		w.mustPublish("In_voice-2.x.v1", templated)
		w.mustPublish("order", []event{{id: "m", key: "k", value: "1"}})
		var headers []string
		for _, r := range w.records() {
			for _, h := range r.Headers {
				headers = append(headers, h.Key+"="+string(h.Value))
			}
		}
		slices.Sort(headers)
		want := []string{"ce_type=Placed", "event-type=Emitted", "id=-9223372036854775808", "id=7", "id=" + templated[0].id, "id=m"}
		slices.Sort(want)
		if !slices.Equal(headers, want) {
			t.Errorf("headers %q, want %q", headers, want)
		}
	})
}

func TestMessagesCanBeOff(t *testing.T) {
	w := newWorld(t, newest(t), func(c *config.Config) { c.Databases[0].Messages.Prefix = "" })
	w.exec("SELECT pg_logical_emit_message(true, 'outbox', 'no JSON'), pg_logical_emit_message(true, '', 'no JSON')")
	want := w.order("k", "1")
	r := w.run("")
	r.awaitState(bridge.Streaming)
	w.awaitCaughtUp()
	r.drain()
	w.mustPublish("order", want)
}
