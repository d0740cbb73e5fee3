package recovery

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/internal/spill"
	"github.com/walferry/walferry/replication"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// entry is of the n-th ten minutes after noon.
func entry(n int, timeline uint32, pos replication.LSN, snapshot string) checkpoint.Entry {
	return checkpoint.Entry{Pos: checkpoint.LSN{LSN: pos}, Time: noon.Add(time.Duration(n) * 10 * time.Minute), Timeline: timeline, SystemID: "7000", Snapshot: snapshot}
}

// A server is on timeline 3, which left 1 at 0/1000 and 2 at 0/2000.
func TestBound(t *testing.T) {
	timelines, err := replication.ParseTimelines(3, "1\t0/1000\tx\n2\t0/2000\tx\n")
	if err != nil {
		t.Fatal(err)
	}
	rows := replication.Membership{"publication": "1/10", "public.outbox": "2/20"}
	f := checkpoint.Found{SystemID: "7000", Timelines: timelines, Membership: rows}
	history := []checkpoint.Entry{
		entry(0, 1, 0x900, "100:110:"), entry(1, 1, 0xa00, "200:210:"), entry(2, 1, 0xb00, "200:210:"), entry(3, 2, 0x1100, "300:310:"),
		entry(4, 2, 0x1f00, "400:410:"), entry(5, 2, 0x2800, "500:510:"), entry(6, 3, 0x2900, "480:490:"),
	}
	foreign := slices.Clone(history)
	for i := range foreign {
		foreign[i].SystemID = "6000"
	}
	at := func(n int) time.Time { return noon.Add(time.Duration(n)*10*time.Minute - clocks) }
	for _, test := range []struct {
		name     string
		timeline uint32
		pos      replication.LSN
		snapshot string
		rows     replication.Membership
		entries  []checkpoint.Entry
		since    uint64
		from     time.Time
		why      string
	}{
		{"the checkpoint's snapshot", 3, 0x3000, "495:520:495,497", rows, history, 495, at(3), "the checkpoint at 0/3000"},
		{"of which one has to be left out", 3, 0x3000, "489:520:", rows, history, 489, at(1 + 1), "the checkpoint at 0/3000"},
		{"older than what the index has two of", 3, 0x3000, "300:520:", rows, history, 300, time.Time{}, "the checkpoint at 0/3000"},
		{"none", 3, 0x3000, "", rows, history, 0, time.Time{}, "every row"},
		{"no snapshot at all", 3, 0x3000, "x", rows, history, 0, time.Time{}, "every row"},
		{"where the timeline was left", 2, 0x2000, "450:460:", rows, history, 450, at(2), "the checkpoint at 0/2000"},
		// 500 may be another transaction's on the new primary.
		{"behind it", 2, 0x2900, "500:510:", rows, history, 400, at(0), "the server has lost WAL behind 0/2000"},
		{"behind it, without an index", 2, 0x2900, "500:510:", rows, nil, 0, time.Time{}, "every row"},
		{"behind it, with the index of another cluster", 2, 0x2900, "500:510:", rows, foreign, 0, time.Time{}, "every row"},
		{"rows may have been left out", 3, 0x3000, "495:520:", replication.Membership{"publication": "9/9", "public.outbox": "2/20"}, history, 0, time.Time{}, "the publication was recreated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &checkpoint.Checkpoint{SystemID: "7000", Timeline: test.timeline, Pos: checkpoint.LSN{LSN: test.pos}, Snapshot: test.snapshot, Membership: test.rows}
			shared, ok := timelines.End(test.timeline)
			if !ok {
				t.Fatal("no such timeline")
			}
			b := newBound(c, shared, f, test.entries)
			if b.since != test.since || !b.from.Equal(test.from) || !strings.Contains(b.why, test.why) {
				t.Errorf("got %d, %s, %q, want %d, %s, %q", b.since, b.from, b.why, test.since, test.from, test.why)
			}
		})
	}
}

// Of any number of candidates those are missing whose identity was not published, however often it was, and whatever spills.
func TestJoin(t *testing.T) {
	for _, memory := range []int{1 << 20, 1} {
		candidates, published := spill.New(t.TempDir(), identityBytes, memory), spill.New(t.TempDir(), identityBytes, memory)
		const n = 5000
		for i := range n {
			id := identity("t", []byte("k"), fmt.Append(nil, i))
			if i != 77 { // a dead letter is a candidate without an identity
				if err := candidates.Add(id); err != nil {
					t.Fatal(err)
				}
			}
			for range i % 3 {
				if err := published.Add(id); err != nil {
					t.Fatal(err)
				}
			}
			if err := published.Add(identity("other", []byte("k"), fmt.Append(nil, i))); err != nil {
				t.Fatal(err)
			}
		}
		m, err := (&recovery{Options: Options{Dir: t.TempDir()}}).join(candidates, published)
		if err != nil {
			t.Fatal(err)
		}
		found := int64(0)
		for i := range int64(n) {
			want := i%3 == 0 && i != 77
			if is, err := m.has(identity("t", []byte("k"), fmt.Append(nil, i))); is != want || err != nil {
				t.Fatalf("candidate %d is missing: %t, %v, want %t", i, is, err, want)
			}
			if want {
				found++
			}
		}
		if m.n != found {
			t.Errorf("%d are missing, want %d", m.n, found)
		}
		m.close()
		if err := candidates.Close(); err != nil {
			t.Error(err)
		}
		if err := published.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestIdentitiesDiffer(t *testing.T) {
	seen := [][]byte{}
	for _, parts := range [][3]string{{"t", "k", "i"}, {"tk", "", "i"}, {"t", "ki", ""}, {"", "tk", "i"}, {"t", "k", "j"}, {"u", "k", "i"}, {"t", "l", "i"}} {
		id := identity(parts[0], []byte(parts[1]), []byte(parts[2]))
		if len(id) != identityBytes || slices.ContainsFunc(seen, func(other []byte) bool { return bytes.Equal(id, other) }) {
			t.Errorf("%q: %x is somebody else's", parts, id)
		}
		seen = append(seen, id)
	}
}
