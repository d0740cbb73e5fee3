package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/walferry/walferry/bridge/config"
)

// noise returns n characters that do not compress and mean nothing to JSON or COPY.
func noise(n int, seed uint64) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !#$%&()*+,-./:;<=>?@[]^_`{|}~"
	random := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[random.IntN(len(letters))]
	}
	return string(b)
}

// A row of 1,000,000 bytes is stored in pieces outside of the table, compressed or not; the
// default configuration and the brokers' defaults carry it.
func TestPayloadsOfAMillionBytes(t *testing.T) {
	columns := []string{"text", "jsonb", "json", "text EXTERNAL", "jsonb EXTERNAL"}
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := bareWorld(t, admin, "", func(c *config.Config) {
			outbox := c.Databases[0].Outbox[0]
			c.Databases[0].Outbox = nil
			for i := range columns {
				outbox.Table = fmt.Sprintf("public.outbox_%d", i)
				c.Databases[0].Outbox = append(c.Databases[0].Outbox, outbox)
			}
		})
		for i, column := range columns {
			typ, storage, _ := strings.Cut(column, " ")
			w.exec(fmt.Sprintf("CREATE TABLE outbox_%d (id int, aggregatetype text, aggregateid text, type text, payload %s)", i, typ))
			if storage == "EXTERNAL" {
				w.exec(fmt.Sprintf("ALTER TABLE outbox_%d ALTER payload SET STORAGE EXTERNAL", i))
			}
		}
		w.setup()
		var want []event
		for i, column := range columns {
			payload := noise(1_000_000, uint64(i))
			if strings.HasPrefix(column, "json") {
				payload = `"` + payload[2:] + `"`
			}
			insert := fmt.Sprintf("INSERT INTO outbox_%d VALUES (%d, 'order', 'k', 'T', $1)", i, i)
			want = concat(want, w.emit(insert+returning, payload), w.emit(insert+returning, `"small"`))
			// From TOAST to TOAST, and compressible.
			want = concat(want, w.emit(fmt.Sprintf("INSERT INTO outbox_%d SELECT id, aggregatetype, 'copy', type, payload FROM outbox_%d", i, i)+returning))
			want = concat(want, w.emit(insert+returning, `"`+strings.Repeat("ä", 499_999)+`"`))
		}
		w.drainAll()
		w.mustPublish("order", want)
	})
}

// The largest record that the default kafka.max_record allows is one that the brokers take
// at their defaults; with one byte more the bridge stops before it.
func TestTheLargestRecord(t *testing.T) {
	w := bareWorld(t, newest(t), "", func(c *config.Config) {
		c.Databases[0].Outbox[0].TypeHeader = "type"
		c.Kafka.PositionHeader = ""
	})
	w.exec("CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text)")
	w.setup()
	const id, key, typ = "an-id", "the key", "the type"
	size := int(w.cfg.Kafka.MaxRecord) - len(id) - len(key) - len(typ)
	insert := func(size int) []event {
		return w.emit("INSERT INTO outbox VALUES ($1, 'order', $2, $3, $4)"+returning, id, key, typ, noise(size, 7))
	}
	want := insert(size)
	w.drainAll()
	w.mustPublish("order", want)
	before := w.insertLSN()
	insert(size + 1)
	w.run("").mustStopBefore(w, before, "1044481 bytes", "allows 1044480")
	w.mustPublish("order", want)
}

// All rows of a COPY are in few WAL records: their LSNs do not tell them apart.
func TestRowsOfOneCopy(t *testing.T) {
	const rows = 10_000
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		var input strings.Builder
		for i := range rows {
			fmt.Fprintf(&input, "00000000-0000-0000-0000-%012d\torder\tkey %d\tT\t%d\n", i, i%7, i)
		}
		if _, err := w.conn.PgConn().CopyFrom(t.Context(), strings.NewReader(input.String()), "COPY outbox FROM STDIN"); err != nil {
			t.Fatal(err)
		}
		w.drainAll()
		want := w.emit("SELECT id::text, aggregateid, payload::text FROM outbox ORDER BY id")
		w.mustPublish("order", want)

		positions := w.positions("order")
		first := positions[want[0].id][0]
		transaction := first[:strings.LastIndexByte(first, '/')]
		if parts := strings.Split(first, "/"); len(parts) != 5 || parts[0] != w.query("SELECT system_identifier::text FROM pg_control_system()") || parts[1] != "1" {
			t.Errorf("position %q, want <system identifier>/1/<commit LSN>/0", first)
		}
		for i, e := range want {
			if got, want := fmt.Sprint(positions[e.id]), fmt.Sprintf("[%s/%d]", transaction, i); got != want {
				t.Fatalf("position of row %d is %s, want %s", i, got, want)
			}
		}
	})
}
