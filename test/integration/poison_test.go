package integration

import (
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// An event that can never be published stops the bridge: what was committed before it is
// published and confirmed, nothing behind it is, and its values are in no log.
func TestPoison(t *testing.T) {
	const row = "INSERT INTO outbox VALUES "
	message := func(content string) string { return "SELECT pg_logical_emit_message(true, 'outbox', " + content + ")" }
	for name, test := range map[string]struct {
		write string
		says  []string
	}{
		"id is NULL":              {row + "(NULL, 'order', 'secret', 'T', '\"secret\"')", []string{"public.outbox.id", "NULL"}},
		"aggregate type is NULL":  {row + "('secret', NULL, 'secret', 'T', '\"secret\"')", []string{"public.outbox.aggregatetype", "NULL"}},
		"key is NULL":             {row + "('secret', 'order', NULL, 'T', '\"secret\"')", []string{"public.outbox.aggregateid", "NULL"}},
		"topic has a slash":       {row + "('secret', 'secret/', 'secret', 'T', '\"secret\"')", []string{"legal topic name", "byte 6"}},
		"topic is not ASCII":      {row + "('secret', 'sécret', 'secret', 'T', '\"secret\"')", []string{"legal topic name"}},
		"topic is too long":       {row + "('secret', repeat('secret', 50), 'secret', 'T', '\"secret\"')", []string{"legal topic name", "300 characters", "249"}},
		"topic is Kafka's own":    {row + "('secret', '__consumer_offsets', 'secret', 'T', '\"secret\"')", []string{"Kafka's own"}},
		"topic is empty":          {row + "('secret', '', 'secret', 'T', '\"secret\"')", []string{"legal topic name", "empty"}},
		"record is too large":     {row + "('secret', 'PREFIX.order', 'secret', 'T', to_jsonb(repeat('secret', 200)))", []string{"kafka.max_record", "allows 1024"}},
		"key is too large":        {row + "('secret', 'PREFIX.order', repeat('secret', 200), 'T', '1')", []string{"kafka.max_record", "allows 1024"}},
		"message is not UTF-8":    {message(`convert_to('{"id":"secret"}', 'UTF8') || '\xff'::bytea`), []string{"logical message outbox", "UTF-8"}},
		"message is not JSON":     {message(`'secret'`), []string{"logical message outbox", "valid JSON"}},
		"message is cut":          {message(`'{"id":"secret","aggregatetype":"order","aggregateid":"secret","payload":{"secret"'`), []string{"logical message outbox", "valid JSON"}},
		"message is a list":       {message(`'["secret"]'`), []string{"logical message outbox", "JSON object"}},
		"message has no payload":  {message(`'{"id":"secret","aggregatetype":"order","aggregateid":"secret"}'`), []string{"logical message outbox.payload", "missing"}},
		"message has no id":       {message(`'{"aggregatetype":"order","aggregateid":"secret","payload":1}'`), []string{"logical message outbox.id", "missing"}},
		"message's key is a list": {message(`'{"id":"secret","aggregatetype":"order","aggregateid":["secret"],"payload":1}'`), []string{"logical message outbox.aggregateid", "text is needed"}},
		"message has half a rune": {message(`'{"id":"secret","aggregatetype":"order","aggregateid":"k","payload":"secret \ud800"}'`), []string{"logical message outbox.payload", "surrogate"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := bareWorld(t, newest(t), "", func(c *config.Config) {
				c.Databases[0].Outbox[0].Topic = "{aggregatetype}"
				c.Kafka.MaxRecord = 1 << 10
			})
			w.exec("CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload jsonb)")
			w.setup()
			good := func() []event {
				return w.emit("INSERT INTO outbox VALUES (gen_random_uuid()::text, '" + w.prefix + ".order', 'k', 'T', '1')" + returning)
			}
			want := good()
			before := w.insertLSN()
			w.exec("BEGIN; " + strings.ReplaceAll(test.write, "PREFIX", w.prefix) + "; COMMIT")
			good()
			r := w.run("")
			r.mustStopBefore(w, before, test.says...)
			r.mustStayQuiet("secret", test.says)
			// What precedes it is confirmed, or it would come a second time.
			w.run("").mustStopBefore(w, before, test.says...)
			w.mustPublish("order", want)
		})
	}
}

// mustStayQuiet fails if data of an event is in the log or the error.
func (r *running) mustStayQuiet(data string, but []string) {
	r.t.Helper()
	text := r.log.String() + r.err.Error()
	for _, b := range but {
		text = strings.ReplaceAll(text, b, "")
	}
	if strings.Contains(text, data) {
		r.t.Errorf("the log or the error has data of an event: %v", r.err)
	}
}

// A table that is renamed is known by its OID: nothing is lost on either side of the rename.
// The bridge stops until the configuration follows.
func TestTableIsRenamed(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		r := w.run("")
		r.awaitState(bridge.Streaming)
		want := w.order("k", "1")
		w.awaitCaughtUp()
		r.drain()
		down := w.order("k", "2") // written under the old name, read after the rename
		w.exec("CREATE SCHEMA sales; ALTER TABLE outbox RENAME TO events; ALTER TABLE events SET SCHEMA sales")
		late := w.emit("INSERT INTO sales.events (aggregatetype, aggregateid, type, payload) VALUES ('order', 'k', 'T', '3')" + returning)
		w.mustStop(bridge.Fatal, `table "public"."outbox" does not exist`, "outbox.table")
		w.mustPublish("order", want)
		w.cfg.Databases[0].Outbox[0].Table = "sales.events"
		w.drainAll()
		w.mustPublish("order", concat(want, down, late))
	})
}

// A rename while the bridge streams stops it as well, and loses nothing.
func TestTableIsRenamedWhileRunning(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		r := w.run("")
		r.awaitState(bridge.Streaming)
		want := w.order("k", "1")
		w.awaitCaughtUp()
		w.exec("ALTER TABLE outbox RENAME TO events")
		late := w.emit("INSERT INTO events (aggregatetype, aggregateid, type, payload) VALUES ('order', 'k', 'T', '2')" + returning)
		r.awaitState(bridge.Failed)
		w.cfg.Databases[0].Outbox[0].Table = "public.events"
		w.drainAll()
		w.mustPublish("order", concat(want, late))
	})
}
