package decode_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/pgoutput"
)

// testdata/wal holds what Postgres 14 to 18 have sent, see test/integration/capture_test.go:
// pg18-ddl.wal is a capture as internal/pgoutput describes it, of pgoutput messages, and
// pg18-ddl.txt has a line for each event that must come out of it, from SQL's own RETURNING:
//
//	xid, index in the transaction, outbox, id, aggregate type, aggregate id, type, payload
//
// separated by tabs, the values quoted as in Go, or NULL.
const walDir = "testdata/wal"

// walTables are the outboxes of the captures.
var walTables = []decode.Table{
	{Schema: "public", Name: "outbox", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_bytea", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_domain", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_json", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_typed", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_part", Columns: decode.DefaultColumns},
	{Schema: "public", Name: "outbox_gen", Columns: decode.DefaultColumns},
	{Schema: "Odd Schema", Name: `Out"Box ä`, Columns: decode.Columns{
		ID: "Event Id", AggregateType: "agg.type", AggregateID: "Kéy", Payload: "pay load",
	}},
}

// newWALDecoder returns a decoder for captures, and for what a fuzzer makes of them.
func newWALDecoder() *decode.Decoder {
	return decode.NewDecoder(decode.Config{Tables: walTables, Prefix: "outbox", SystemID: "7000", Timeline: walTimeline})
}

func walTimeline(l decode.LSN) uint32 { return 1 + uint32(l>>24) }

// capture is one file of walDir.
type capture struct {
	name     string
	bytes    []byte
	messages [][]byte
	golden   []string // lines
}

func captures(t testing.TB) (all []capture) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(walDir, "*.wal"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no captures in %s (%v)", walDir, err)
	}
	for _, path := range paths {
		wal, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(path, ".wal")
		golden, err := os.ReadFile(name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, capture{filepath.Base(name), wal, pgoutput.SplitCapture(wal), strings.Split(strings.TrimSpace(string(golden)), "\n")})
	}
	return all
}

// TestCapturedWAL decodes what real servers have sent, side by side with the naive model,
// and compares the events with what SQL said of their rows.
func TestCapturedWAL(t *testing.T) {
	versions := map[string]bool{}
	for _, c := range captures(t) {
		version, _, _ := strings.Cut(c.name, "-")
		versions[version] = true
		t.Run(c.name, func(t *testing.T) {
			var again []byte
			for _, m := range c.messages {
				again = pgoutput.AppendCaptured(again, m)
			}
			if !bytes.Equal(again, c.bytes) {
				t.Fatal("the file is cut off, or something stands between its messages")
			}
			got := decodeCapture(t, c.messages)
			for i := range min(len(got), len(c.golden)) {
				if got[i] != c.golden[i] {
					t.Fatalf("event %d:\n got %.300s\nwant %.300s", i, got[i], c.golden[i])
				}
			}
			if len(got) != len(c.golden) {
				t.Errorf("%d events, want %d", len(got), len(c.golden))
			}
		})
	}
	for _, version := range []string{"pg14", "pg15", "pg16", "pg17", "pg18"} {
		if !versions[version] {
			t.Errorf("there is no capture of %s", version)
		}
	}
}

// decodeCapture returns the events as lines of the golden file.
func decodeCapture(t *testing.T, messages [][]byte) (lines []string) {
	t.Helper()
	d, reference := newWALDecoder(), newModel()
	for i, message := range messages {
		c, err := d.Decode(message)
		if err != nil {
			t.Fatalf("message %d (%q): %v", i, message[0], err)
		}
		if err := reference.compare(message, c); err != nil {
			t.Fatalf("message %d (%q): %v", i, message[0], err)
		}
		switch c.Kind {
		case decode.Row, decode.Message:
			outbox := "message"
			if c.Kind == decode.Row {
				outbox = walTables[c.Event.Source].Schema + "." + walTables[c.Event.Source].Name
			}
			line := fmt.Sprintf("%d\t%d\t%s", reference.xid, c.Event.Position.Index, outbox)
			for _, v := range valuesOf(&c.Event) {
				line += "\t" + quoteValue(v)
			}
			lines = append(lines, line)
		case decode.Skip, decode.Begin, decode.Commit, decode.NonTransactional:
		}
	}
	return lines
}

func quoteValue(v []byte) string {
	if v == nil {
		return "NULL"
	}
	return strconv.Quote(string(v))
}

// bodyOf returns the content of a transactional logical message with the outbox prefix.
func bodyOf(message []byte) ([]byte, bool) {
	const header = "M\x01LLLLLLLLoutbox\x00llll" // its length: a real message has an LSN and a length in it
	if len(message) < len(header) || !bytes.HasPrefix(message, []byte("M\x01")) || !bytes.Equal(message[10:17], []byte("outbox\x00")) {
		return nil, false
	}
	return message[len(header):], true
}
