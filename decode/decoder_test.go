package decode_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
)

const (
	outboxOID, otherOID, byteaOID = 16400, 16500, 16600
	textOID, jsonbOID             = 25, 3802
)

var commitTime = time.Date(2026, 3, 8, 13, 0, 0, 123456000, time.UTC)

func column(name string, oid uint32) pgoutput.Column {
	return pgoutput.Column{Name: name, TypeOID: oid, TypeMod: -1}
}

func relation(oid uint32, name string, payload uint32) []byte {
	return pgoutput.AppendRelation(nil, pgoutput.Relation{
		ID: oid, Namespace: "public", Name: name, ReplicaIdentity: 'd',
		Columns: []pgoutput.Column{
			{Key: true, Name: "id", TypeOID: 2950, TypeMod: -1},
			column("aggregatetype", textOID), column("extra", textOID), column("aggregateid", textOID),
			column("type", textOID), column("payload", payload),
		},
	})
}

func row(oid uint32, values ...string) []byte {
	cols := make([]pgoutput.Value, len(values))
	for i, v := range values {
		cols[i] = pgoutput.Text(v)
		if v == "NULL" {
			cols[i] = pgoutput.Null()
		}
	}
	return pgoutput.AppendInsert(nil, oid, cols)
}

func message(content string) []byte {
	return pgoutput.AppendMessage(nil, true, 0x500, "outbox", []byte(content))
}

func newDecoder(oids ...uint32) *decode.Decoder {
	return decode.NewDecoder(decode.Config{
		Tables: []decode.Table{
			{Schema: "public", Name: "outbox", Columns: decode.DefaultColumns},
			{Schema: "public", Name: "outbox_bytea", Columns: decode.DefaultColumns},
		},
		Prefix: "outbox", SystemID: "7000", OIDs: oids,
		Timeline: func(l decode.LSN) uint32 {
			if l < 0x1000 {
				return 1
			}
			return 2
		},
	})
}

// feed decodes messages that must succeed and returns what the last one meant.
func feed(t *testing.T, d *decode.Decoder, messages ...[]byte) *decode.Change {
	t.Helper()
	var c *decode.Change
	for i, m := range messages {
		var err error
		if c, err = d.Decode(m); err != nil {
			t.Fatalf("message %d (%q): %v", i, m[0], err)
		}
	}
	return c
}

func begun(t *testing.T) *decode.Decoder {
	t.Helper()
	d := newDecoder()
	feed(t, d, pgoutput.AppendBegin(nil, 0x2000, commitTime, 7),
		relation(outboxOID, "outbox", jsonbOID), relation(otherOID, "orders", textOID), relation(byteaOID, "outbox_bytea", 17))
	return d
}

func TestTransaction(t *testing.T) {
	d := newDecoder()
	c := feed(t, d, pgoutput.AppendBegin(nil, 0x2000, commitTime, 7))
	if c.Kind != decode.Begin || c.CommitLSN != 0x2000 || !c.CommitTime.Equal(commitTime) {
		t.Errorf("BEGIN: %+v", c)
	}
	c = feed(t, d, relation(outboxOID, "outbox", jsonbOID),
		row(outboxOID, "id-1", "order", "x", "42", "OrderPlaced", `{"a": 1}`))
	ev := c.Event
	if c.Kind != decode.Row || string(ev.ID) != "id-1" || string(ev.AggregateType) != "order" || string(ev.AggregateID) != "42" ||
		string(ev.Type) != "OrderPlaced" || string(ev.Payload) != `{"a": 1}` || ev.PayloadHex || ev.Source != 0 {
		t.Errorf("row: %+v", c)
	}
	if got, want := ev.Position.String(), "7000/2/0/2000/0"; got != want {
		t.Errorf("position %s, want %s", got, want)
	}
	c = feed(t, d, pgoutput.AppendCommit(nil, 0, 0x2000, 0x2030, commitTime))
	if c.Kind != decode.Commit || c.EndLSN != 0x2030 || !c.CommitTime.Equal(commitTime) {
		t.Errorf("COMMIT: %+v", c)
	}
}

func TestTimelineIsTheCommitLSNs(t *testing.T) {
	d := newDecoder()
	c := feed(t, d, pgoutput.AppendBegin(nil, 0xFFF, commitTime, 7), relation(outboxOID, "outbox", jsonbOID),
		row(outboxOID, "i", "order", "x", "k", "T", "{}"))
	if got := c.Event.Position.Timeline; got != 1 {
		t.Errorf("timeline %d, want the one that 0/FFF lies on", got)
	}
}

// The index must count what is filtered, so that a change of configuration does not renumber.
func TestIndexCountsEveryChangeOfTheTransaction(t *testing.T) {
	d := begun(t)
	event := func() []byte { return row(outboxOID, "i", "order", "x", "k", "T", "{}") }
	for _, step := range []struct {
		name    string
		message []byte
		kind    decode.Kind
		index   uint64
	}{
		{"first row", event(), decode.Row, 0},
		{"row of another table", row(otherOID, "a"), decode.Skip, 1},
		{"delete", pgoutput.AppendDelete(nil, outboxOID, pgoutput.OldRow{Values: []pgoutput.Value{pgoutput.Text("i")}}), decode.Skip, 2},
		{"truncate", pgoutput.AppendTruncate(nil, 0, outboxOID), decode.Skip, 3},
		{"foreign message", pgoutput.AppendMessage(nil, true, 1, "other", []byte("x")), decode.Skip, 4},
		{"non-transactional message", pgoutput.AppendMessage(nil, false, 1, "outbox", []byte("x")), decode.NonTransactional, 5},
		{"relation", relation(otherOID, "orders", textOID), decode.Skip, 5},
		{"origin", pgoutput.AppendOrigin(nil, 1, "o"), decode.Skip, 5},
		{"type", pgoutput.AppendType(nil, 99, "public", "mood"), decode.Skip, 5},
		{"message", message(`{"id":"i","aggregatetype":"order","aggregateid":"k","payload":{}}`), decode.Message, 5},
		{"last row", event(), decode.Row, 6},
	} {
		c := feed(t, d, step.message)
		if c.Kind != step.kind {
			t.Errorf("%s: kind %d, want %d", step.name, c.Kind, step.kind)
		}
		if (c.Kind == decode.Row || c.Kind == decode.Message) && c.Event.Position.Index != step.index {
			t.Errorf("%s: index %d, want %d", step.name, c.Event.Position.Index, step.index)
		}
	}
}

func TestRowValues(t *testing.T) {
	d := begun(t)
	c := feed(t, d, row(outboxOID, "i", "order", "NULL", "", "NULL", "NULL"))
	if c.Event.Payload != nil || c.Event.Type != nil {
		t.Errorf("NULL payload and type: %q, %q, want nil", c.Event.Payload, c.Event.Type)
	}
	if c.Event.AggregateID == nil || len(c.Event.AggregateID) != 0 {
		t.Errorf("an empty key is not NULL: %v", c.Event.AggregateID)
	}
	c = feed(t, d, row(byteaOID, "i", "order", "x", "k", "T", `\x00ff`))
	if !c.Event.PayloadHex || c.Event.Source != 1 {
		t.Errorf("bytea payload: %+v", c.Event)
	}
	const domainOID = 70000
	feed(t, d, pgoutput.AppendType(nil, domainOID, "", "bytea"), relation(byteaOID, "outbox_bytea", domainOID))
	if c = feed(t, d, row(byteaOID, "i", "order", "x", "k", "T", `\x00ff`)); !c.Event.PayloadHex {
		t.Errorf("payload of a domain over bytea: %+v", c.Event)
	}
	feed(t, d, pgoutput.AppendType(nil, domainOID+1, "public", "bytea"), relation(byteaOID, "outbox_bytea", domainOID+1))
	if c = feed(t, d, row(byteaOID, "i", "order", "x", "k", "T", "a")); c.Event.PayloadHex {
		t.Errorf("payload of somebody's type bytea: %+v", c.Event)
	}
}

func TestSchemaChangeBetweenRows(t *testing.T) {
	d := begun(t)
	feed(t, d, row(outboxOID, "i", "order", "x", "k", "T", "{}"))
	changed := pgoutput.AppendRelation(nil, pgoutput.Relation{
		ID: outboxOID, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd',
		Columns: []pgoutput.Column{
			column("payload", jsonbOID), column("new", textOID), column("type", textOID), column("aggregateid", textOID),
			column("id", textOID), column("aggregatetype", textOID),
		},
	})
	c := feed(t, d, changed, row(outboxOID, "{}", "n", "T", "k", "i", "order"))
	if string(c.Event.ID) != "i" || string(c.Event.Payload) != "{}" || string(c.Event.AggregateID) != "k" {
		t.Errorf("row after the change: %+v", c.Event)
	}
}

// Rows written before a rename carry the old name, rows of a table that was recreated the old OID.
func TestATableIsKnownByItsNameAndByItsOID(t *testing.T) {
	for _, c := range []struct {
		name  string
		oids  []uint32
		table []byte
		want  decode.Kind
	}{
		{"old name, its OID", []uint32{outboxOID, byteaOID}, relation(outboxOID, "outbox_before", jsonbOID), decode.Row},
		{"its name, old OID", []uint32{999, byteaOID}, relation(outboxOID, "outbox", jsonbOID), decode.Row},
		{"neither", []uint32{999, byteaOID}, relation(outboxOID, "outbox_before", jsonbOID), decode.Skip},
	} {
		got := feed(t, newDecoder(c.oids...), pgoutput.AppendBegin(nil, 0x2000, commitTime, 7), c.table,
			row(outboxOID, "id-1", "order", "x", "42", "OrderPlaced", `{"a": 1}`))
		if got.Kind != c.want || got.Event.Source != 0 {
			t.Errorf("%s: kind %d of table %d, want %d of 0", c.name, got.Kind, got.Event.Source, c.want)
		}
	}
}

func TestContractErrors(t *testing.T) {
	dropped := pgoutput.AppendRelation(nil, pgoutput.Relation{
		ID: outboxOID, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd',
		Columns: []pgoutput.Column{column("id", textOID), column("aggregatetype", textOID), column("type", textOID), column("payload", jsonbOID)},
	})
	const secret = "s3cret"
	for _, c := range []struct {
		name, want string
		messages   [][]byte
	}{
		{"NULL topic", "public.outbox.aggregatetype: is NULL or missing", [][]byte{row(outboxOID, "i", "NULL", "x", secret, "T", "{}")}},
		{"NULL key", "public.outbox.aggregateid: is NULL or missing", [][]byte{row(outboxOID, "i", "o", "x", "NULL", "T", secret)}},
		{"NULL id", "public.outbox.id: is NULL or missing", [][]byte{row(outboxOID, "NULL", "o", "x", "k", "T", secret)}},
		{"dropped column", "public.outbox.aggregateid: the table has no such column", [][]byte{dropped, row(outboxOID, "i", "o", "T", secret)}},
		{"message: UTF-8", "not valid UTF-8", [][]byte{message("{\"id\":\"" + secret + "\xff\"}")}},
		{"message: JSON", "not valid JSON", [][]byte{message(`{"id":"` + secret)}},
		{"message: trailing", "not valid JSON", [][]byte{message(`{"id":"` + secret + `"}}`)}},
		{"message: empty", "not valid JSON", [][]byte{message("")}},
		{"message: array", "not a JSON object", [][]byte{message(`["` + secret + `"]`)}},
		{"message: no payload", "logical message outbox.payload: is missing", [][]byte{message(`{"id":"i","aggregatetype":"o","aggregateid":"` + secret + `"}`)}},
		{"message: null id", "logical message outbox.id: is NULL or missing", [][]byte{message(`{"id":null,"aggregatetype":"o","aggregateid":"k","payload":1}`)}},
		{"message: object as key", "is an object or array", [][]byte{message(`{"id":"i","aggregatetype":"o","aggregateid":{"x":"` + secret + `"},"payload":1}`)}},
		{"message: half a surrogate", "half of a surrogate pair", [][]byte{message(`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"` + secret + `\ud800"}`)}},
	} {
		d := begun(t)
		var err error
		for _, m := range c.messages {
			if _, err = d.Decode(m); err != nil {
				break
			}
		}
		contract, ok := errors.AsType[*decode.ContractError](err)
		if !ok {
			t.Errorf("%s: %v, want a ContractError", c.name, err)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "7000/2/0/2000/0") {
			t.Errorf("%s: %q does not say %q and the position", c.name, err, c.want)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows a value: %q", c.name, err)
		}
		if contract.Where == "" {
			t.Errorf("%s: no place", c.name)
		}
	}
}

func TestMessages(t *testing.T) {
	head := `{"id":"i","aggregatetype":"o","aggregateid":"k","type":"T","payload":`
	for _, c := range []struct{ name, content, payload string }{
		{"object as it stands", head + `{"b": 1,  "a":[ null ,2.50]} }`, `{"b": 1,  "a":[ null ,2.50]}`},
		{"string unescaped", head + `"caf\u00e9 \"x\"\n\\\/\t\b\f\r \ud83d\ude00 "}`, "café \"x\"\n\\/\t\b\f\r 😀 "},
		{"plain string", head + `"text"}`, "text"},
		{"empty string", head + `""}`, ""},
		{"NUL", head + `"\u0000"}`, "\x00"},
		{"number", head + `-1.50e3}`, "-1.50e3"},
		{"null is a JSON text", head + `null}`, "null"},
		{"true", head + ` true }`, "true"},
		{"array", head + `["}",{"a":"]"}]}`, `["}",{"a":"]"}]`},
		{"last of two counts", head + `1,"payload":2}`, "2"},
		{"escaped name", `{"id":"i","aggregatetype":"o","aggregateid":"k","type":"T","pay\u006coad":"x\ty"}`, "x\ty"},
		{"other members", `{"x":{"payload":1},"y":["payload",2],"z":"payload",` + head[1:] + `3}`, "3"},
		{"blanks", " \n{ \"id\" : \"i\" , \"aggregatetype\" : \"o\",\t\"aggregateid\":\r\"k\",\"payload\":7}\n", "7"},
	} {
		got := feed(t, begun(t), message(c.content))
		if got.Kind != decode.Message || string(got.Event.Payload) != c.payload || got.Event.Payload == nil {
			t.Errorf("%s: payload %q, want %q", c.name, got.Event.Payload, c.payload)
		}
		if string(got.Event.ID) != "i" || string(got.Event.AggregateType) != "o" || string(got.Event.AggregateID) != "k" || got.Event.Source != 2 {
			t.Errorf("%s: %+v", c.name, got.Event)
		}
	}
	got := feed(t, begun(t), message(`{"id":7,"aggregatetype":true,"aggregateid":4.20,"payload":1}`))
	if string(got.Event.ID) != "7" || string(got.Event.AggregateID) != "4.20" {
		t.Errorf("numbers as id and key: %+v", got.Event)
	}
}

func TestMalformed(t *testing.T) {
	valid := row(outboxOID, "i", "order", "x", "k", "T", "{}")
	toast := pgoutput.AppendInsert(nil, outboxOID, []pgoutput.Value{
		pgoutput.Text("i"), pgoutput.Text("o"), pgoutput.Null(), pgoutput.Text("k"), pgoutput.Null(), pgoutput.UnchangedToast(),
	})
	binary := pgoutput.AppendInsert(nil, outboxOID, []pgoutput.Value{
		pgoutput.Text("i"), pgoutput.Text("o"), pgoutput.Null(), pgoutput.Text("k"), pgoutput.Null(), pgoutput.Binary([]byte{1}),
	})
	for _, c := range []struct {
		name, want string
		message    []byte
	}{
		{"empty", "", nil},
		{"unknown type", "unknown type", []byte("Z")},
		{"stream start", "unknown type", []byte("S\x00\x00\x00\x01\x01")},
		{"BEGIN in BEGIN", "begins inside another", pgoutput.AppendBegin(nil, 1, commitTime, 1)},
		{"foreign COMMIT", "does not belong", pgoutput.AppendCommit(nil, 0, 0x1999, 0x2030, commitTime)},
		{"COMMIT that ends before it begins", "ends at", pgoutput.AppendCommit(nil, 0, 0x2000, 0x2000, commitTime)},
		{"unknown relation", "never described", row(4711, "a")},
		{"column count", "1 columns where the relation has 6", row(outboxOID, "i")},
		{"unchanged TOAST", "unchanged TOAST", toast},
		{"binary value", "unexpected value kind", binary},
		{"left over", "left over", append(bytes.Clone(valid), 0)},
	} {
		_, err := begun(t).Decode(c.message)
		if _, ok := errors.AsType[*decode.MalformedError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a MalformedError with %q", c.name, err, c.want)
		}
	}
	for _, m := range [][]byte{valid, pgoutput.AppendCommit(nil, 0, 1, 2, commitTime), pgoutput.AppendTruncate(nil, 0, 1)} {
		if _, err := newDecoder().Decode(m); err == nil || !strings.Contains(err.Error(), "outside of a transaction") {
			t.Errorf("%q outside of a transaction: %v", m[0], err)
		}
	}
}

func TestEveryTruncationIsMalformed(t *testing.T) {
	for _, m := range [][]byte{
		row(outboxOID, "i", "order", "x", "k", "T", "{}"),
		relation(outboxOID, "outbox", jsonbOID),
		message(`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":1}`),
		pgoutput.AppendCommit(nil, 0, 0x2000, 0x2030, commitTime),
		pgoutput.AppendType(nil, 70000, "", "bytea"),
	} {
		for n := range len(m) {
			if _, err := begun(t).Decode(m[:n:n]); err == nil {
				t.Errorf("%q cut to %d of %d bytes was accepted", m[0], n, len(m))
			}
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	for name, m := range map[string][]byte{
		"row":     row(outboxOID, "i", "order", "x", "k", "T", `{"a": 1}`),
		"other":   row(otherOID, "a"),
		"message": message(`{"id":"i","aggregatetype":"o","aggregateid":"k","payload":"a\tb"}`),
	} {
		d := begun(t)
		feed(t, d, m) // the scratch buffer grows once
		if got := testing.AllocsPerRun(1000, func() { _, _ = d.Decode(m) }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

func BenchmarkDecodeRow(b *testing.B) {
	d := newDecoder()
	for _, m := range [][]byte{pgoutput.AppendBegin(nil, 0x2000, commitTime, 7), relation(outboxOID, "outbox", jsonbOID)} {
		if _, err := d.Decode(m); err != nil {
			b.Fatal(err)
		}
	}
	m := row(outboxOID, "0199c2b0-7c2e-7000-8000-000000000001", "order", "x", "42", "OrderPlaced", strings.Repeat("x", 245))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = d.Decode(m)
	}
}

// A bridge goes on behind an event that was moved out of the way: it is counted like any other.
func TestDecodingGoesOnBehindABrokenContract(t *testing.T) {
	d := begun(t)
	good := row(outboxOID, "id-1", "order", "x", "42", "T", "{}")
	for i, bad := range [][]byte{
		row(outboxOID, "id-x", "order", "x", "NULL", "T", "{}"), message("secret"), message(`{"id":"id-x","aggregatetype":["order"]}`), message(`{}`),
	} {
		_, err := d.Decode(bad)
		broken, ok := errors.AsType[*decode.ContractError](err)
		if want := uint64(2 * i); !ok || broken.Position.Index != want {
			t.Fatalf("event %d: %v (%+v), want a ContractError of index %d", i, err, broken, want)
		}
		if i == 0 && broken.ID != "id-x" || strings.Contains(err.Error(), "id-x") {
			t.Errorf("id %q in %v", broken.ID, err)
		}
		if c := feed(t, d, good); c.Event.Position.Index != broken.Position.Index+1 || string(c.Event.ID) != "id-1" {
			t.Errorf("behind it: %+v", c.Event)
		}
	}
}

func TestColumnNames(t *testing.T) {
	d := begun(t)
	if _, err := d.Decode(row(outboxOID, "NULL", "order", "x", "42", "T", "{}")); err == nil {
		t.Error("a NULL id is an event")
	}
	if got := strings.Join(d.ColumnNames(row(outboxOID)), " "); got != "id aggregatetype extra aggregateid type payload" {
		t.Errorf("got %s", got)
	}
	for _, other := range [][]byte{nil, {'I'}, message("{}"), row(otherOID, "1"), row(4711, "1")} {
		if got := d.ColumnNames(other); got != nil {
			t.Errorf("%q: got %s", other, got)
		}
	}
}
