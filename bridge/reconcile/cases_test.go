package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/replication"
)

// judged is what a comparison of a few rows and records finds: defects by kind, ordinal and offset, and what is counted beside them.
func judged(t *testing.T, topics []*topic, history []snapshot, slack uint64, rows []row, records []record) (found []string, counts Counts) {
	t.Helper()
	c := newComparison(t.TempDir(), 0)
	defer c.Close()
	c.topics, c.sources = topics, []source{{slack: slack}, {slack: slack}, {slack: slack, doubted: true}}
	for i := range rows {
		if err := c.row(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range records {
		if err := c.record(&records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.finish(history, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if err := each(c.found, func() error { return nil }, func(b []byte) error {
		f := readDefect(b)
		found = append(found, fmt.Sprintf("%s %d at %d/%d, %d/%d", f.kind, f.ordinal, f.partition, f.offset, f.otherPartition, f.otherOffset))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, tp := range topics {
		counts.add(&tp.counts)
	}
	return found, counts
}

// doubted is the source of judged whose transaction IDs prove nothing.
const doubted = 2

func TestComparison(t *testing.T) {
	at := func(commit uint64) position { return position{1, 1, commit, 0} }
	one := func(edit func(*topic)) []*topic {
		tp := &topic{name: "t", partitions: make([]partition, 2)}
		if edit != nil {
			edit(tp)
		}
		return []*topic{tp}
	}
	expired := func(tp *topic) { tp.partitions[0].start = 1 }
	for _, c := range []struct {
		name    string
		topics  []*topic
		history []snapshot
		slack   uint64
		rows    []row
		records []record
		want    []string
		counts  string // those that are not 0, but for rows and records
	}{
		{name: "nothing", topics: one(nil)},
		{
			name: "a twin of each", topics: one(nil), // two rows share an id
			rows:    []row{{ordinal: 1, content: 7}, {ordinal: 2, content: 8}},
			records: []record{{offset: 5, content: 8}, {offset: 6, content: 7}}, counts: "order_unknown 2",
		},
		{
			name: "a twin without", topics: one(nil),
			rows: []row{{ordinal: 1, content: 7}, {ordinal: 2, content: 8}}, records: []record{{offset: 5, content: 8}},
			want: []string{"missing 1 at 0/-1, 0/-1"}, counts: "order_unknown 2",
		},
		{
			name: "equal twins", topics: one(nil),
			rows:    []row{{ordinal: 1, content: 7}, {ordinal: 2, content: 7}},
			records: []record{{offset: 5, content: 7}, {offset: 6, content: 7}, {offset: 7, content: 7}},
			want:    []string{"duplicated 1 at 0/7, 0/5"}, counts: "order_unknown 2",
		},
		{
			name: "one changed, one too many", topics: one(nil),
			rows:    []row{{ordinal: 1, content: 7}},
			records: []record{{offset: 5, content: 8}, {offset: 6, content: 7}, {offset: 7, content: 7}, {partition: 1, offset: 2, content: 7, replayed: true}},
			want:    []string{"duplicated 1 at 0/7, 0/5", "different 1 at 0/5, 0/-1"}, counts: "replayed 1 order_unknown 1",
		},
		{
			name: "changed, and so not missing", topics: one(nil),
			rows: []row{{ordinal: 1, content: 7}}, records: []record{{offset: 5, content: 8, replayed: true}},
			want: []string{"different 1 at 0/5, 0/-1"}, counts: "replayed 1",
		},
		{
			name: "a dead letter", topics: one(nil),
			rows: []row{{ordinal: 1, dead: true}, {id: ids(1), ordinal: 2, dead: true}}, records: []record{{id: ids(1), offset: 5}},
			counts: "unpublishable 1 order_unknown 1",
		},
		{
			name: "no topic", topics: []*topic{{name: "t"}}, rows: []row{{ordinal: 1}}, want: []string{"missing 1 at 0/-1, 0/-1"},
		},
		{
			name: "in another topic", topics: append(one(nil), one(nil)...),
			rows: []row{{id: ids(1), ordinal: 1, topic: 1}}, records: []record{{id: ids(2), topic: 0}},
			want: []string{"missing 1 at 0/-1, 0/-1"}, counts: "pruned 1",
		},
		{
			name: "compacted", topics: one(func(tp *topic) { tp.compacted = true }),
			rows:    []row{{ordinal: 1}, {id: ids(1), ordinal: 2}, {id: ids(2), ordinal: 3}},
			records: []record{{id: ids(1), offset: 6, at: at(20), positioned: true}, {id: ids(2), offset: 7, at: at(10), positioned: true}},
			counts:  "unknown 1 order_unknown 1",
		},
		{
			name: "held by a repair only", topics: one(expired), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50}, {id: ids(1), ordinal: 2, xid: 200}}, records: []record{{offset: 6, repaired: true}},
			counts: "unknown 1",
		},
		{
			name: "held by a replay only", topics: one(expired), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50}, {id: ids(1), ordinal: 2, xid: 200}}, records: []record{{offset: 6, replayed: true}},
			counts: "unknown 1 replayed 1",
		},
		{
			name: "the partitions may have been fewer", topics: one(expired), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50}, {id: ids(1), partition: 1, ordinal: 2, xid: 200}}, records: []record{{offset: 6}},
			want: []string{"missing 2 at 1/-1, 0/-1"}, counts: "order_unknown 1", // but every one of them would have it
		},
		{
			name: "one of the others has nothing", topics: one(func(tp *topic) { expired(tp); tp.partitions[1].start = 1 }), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50}, {id: ids(1), ordinal: 2, xid: 200}}, records: []record{{offset: 6}},
			counts: "unknown 1 order_unknown 1",
		},
		{
			name: "the last has something older", topics: one(func(tp *topic) {
				expired(tp)
				tp.partitions = append(tp.partitions, partition{})
				tp.partitions[1].start = 9
			}),
			history: []snapshot{{100, 110}}, rows: []row{{ordinal: 1, xid: 50}, {id: ids(2), ordinal: 2, xid: 60}, {id: ids(1), ordinal: 3, xid: 110}, {id: ids(3), ordinal: 4, xid: 109}},
			records: []record{{offset: 6}, {id: ids(2), partition: 2, whole: true}}, want: []string{"missing 3 at 0/-1, 0/-1"}, counts: "unknown 1 order_unknown 2",
		},
		{
			name: "the last has nothing, but another has a whole one", topics: one(func(tp *topic) { expired(tp); tp.partitions[1].start = 1 }),
			history: []snapshot{{60, 70}, {100, 110}}, rows: []row{{ordinal: 1, xid: 50}, {id: ids(2), ordinal: 2, xid: 80}, {id: ids(1), ordinal: 3, xid: 109}, {id: ids(3), ordinal: 4, xid: 110}},
			records: []record{{offset: 6}, {id: ids(2), offset: 7, whole: true}}, want: []string{"missing 4 at 0/-1, 0/-1"}, counts: "unknown 1 order_unknown 2",
		},
		{
			name: "a row that was updated", topics: one(func(tp *topic) { tp.partitions = tp.partitions[:1]; tp.partitions[0].start = 1 }), history: []snapshot{{100, 110}},
			rows:    []row{{ordinal: 1, xid: 50}, {id: ids(1), ordinal: 2, xid: 200, source: doubted}, {id: ids(2), ordinal: 3, xid: 200}},
			records: []record{{offset: 6, whole: true}}, want: []string{"missing 3 at 0/-1, 0/-1"}, counts: "unknown 1 order_unknown 1",
		},
		{
			name: "held of a row that was updated", topics: one(func(tp *topic) { tp.partitions = tp.partitions[:1]; tp.partitions[0].start = 1 }), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50, source: doubted}, {id: ids(1), ordinal: 2, xid: 200}}, records: []record{{offset: 6, whole: true}},
			counts: "unknown 1 order_unknown 1",
		},
		{
			name: "updated, and nothing has expired", topics: one(nil), rows: []row{{ordinal: 1, source: doubted}}, want: []string{"missing 1 at 0/-1, 0/-1"},
		},
		{
			name: "updated, and another partition may have had it", topics: one(func(tp *topic) { tp.partitions[1].start = 1 }),
			rows: []row{{ordinal: 1, xid: 200, source: doubted}}, counts: "unknown 1",
		},
		{
			name: "by the time of an update", topics: one(nil), slack: 2,
			rows:    []row{{ordinal: 1, rank: 20, source: doubted}, {id: ids(1), ordinal: 2, rank: 10, source: doubted}},
			records: []record{{offset: 1}, {id: ids(1), offset: 2}}, counts: "order_unknown 2",
		},
		{
			name: "an older record that was deleted while it was read", topics: one(func(tp *topic) { tp.partitions = tp.partitions[:1]; tp.partitions[0].start = 9 }), history: []snapshot{{100, 110}},
			rows: []row{{ordinal: 1, xid: 50}, {id: ids(1), ordinal: 2, xid: 200}}, records: []record{{offset: 8}},
			counts: "unknown 1 order_unknown 1",
		},
		{
			name: "by position", topics: one(nil),
			rows:    []row{{ordinal: 1, rank: 1}, {id: ids(1), ordinal: 2, rank: 3}, {id: ids(2), ordinal: 3, rank: 2}},
			records: []record{{offset: 1, at: at(10), positioned: true}, {id: ids(1), offset: 2, at: at(20), positioned: true}, {id: ids(2), offset: 3, at: at(30), positioned: true}},
		},
		{
			name: "by position and index, on two timelines", topics: one(nil),
			rows: []row{{ordinal: 1}, {id: ids(1), ordinal: 2}, {id: ids(2), ordinal: 3}, {id: ids(3), ordinal: 4}},
			records: []record{
				{offset: 1, at: position{1, 1, 50, 2}, positioned: true},
				{id: ids(1), offset: 2, at: position{1, 1, 50, 1}, positioned: true},
				{id: ids(2), offset: 3, at: position{1, 2, 40, 0}, positioned: true},
				{id: ids(3), offset: 4, at: position{1, 1, 60, 0}, positioned: true},
			},
			want: []string{"out_of_order 2 at 0/2, 0/1", "out_of_order 4 at 0/4, 0/3"},
		},
		{
			name: "two clusters", topics: one(nil),
			rows:    []row{{ordinal: 1}, {id: ids(1), ordinal: 2}},
			records: []record{{offset: 1, at: position{1, 1, 50, 2}, positioned: true}, {id: ids(1), offset: 2, at: position{2, 1, 40, 1}, positioned: true}},
		},
		{
			name: "two keys and two partitions", topics: one(nil),
			rows:    []row{{ordinal: 1}, {id: ids(1), ordinal: 2}, {id: ids(2), ordinal: 3}},
			records: []record{{offset: 1, at: at(30), positioned: true}, {id: ids(1), key: 1, offset: 2, at: at(20), positioned: true}, {id: ids(2), partition: 1, offset: 3, at: at(10), positioned: true}},
		},
		{
			name: "by rank", topics: one(nil), slack: 2,
			rows: []row{
				{ordinal: 1, rank: 10},
				{id: ids(1), ordinal: 2, rank: 20},
				{id: ids(2), ordinal: 3, rank: 18},
				{id: ids(3), ordinal: 4, rank: 17},
				{id: ids(4), ordinal: 5},
				{id: ids(5), ordinal: 6, rank: 1, source: 1},
			},
			records: []record{{offset: 1}, {id: ids(1), offset: 2}, {id: ids(2), offset: 3}, {id: ids(3), offset: 4}, {id: ids(4), offset: 5}, {id: ids(5), offset: 6}},
			want:    []string{"out_of_order 4 at 0/4, 0/2"}, counts: "order_unknown 1",
		},
		{
			name: "a repair is late", topics: one(nil),
			rows:    []row{{ordinal: 1, rank: 1}, {id: ids(1), ordinal: 2, rank: 2}},
			records: []record{{id: ids(1), offset: 1, at: at(20), positioned: true}, {offset: 2, repaired: true}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, counts := judged(t, c.topics, c.history, c.slack, c.rows, c.records)
			slices.Sort(found)
			slices.Sort(c.want)
			if !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
			var beside []string
			for _, n := range []struct {
				name string
				n    int64
			}{
				{"unknown", counts.Unknown},
				{"unpublishable", counts.Unpublishable},
				{"pruned", counts.Pruned},
				{"replayed", counts.Replayed},
				{"order_unknown", counts.OrderUnknown},
			} {
				if n.n != 0 {
					beside = append(beside, fmt.Sprintf("%s %d", n.name, n.n))
				}
			}
			if got := strings.Join(beside, " "); got != c.counts {
				t.Errorf("counts %q, want %q", got, c.counts)
			}
		})
	}
}

func TestWrapped(t *testing.T) {
	for _, c := range []struct {
		eldest, next uint64
		want         bool
	}{
		{3, 1<<32 - 1, false}, // no ID was used twice
		{3, 1 << 32, true},
		{2, 1<<32 + 5, true}, // as old as the cluster
		{1<<31 + 5, 1<<32 + 5, true},
		{1<<31 + 6, 1<<32 + 5, false},
		{1<<32 - 7, 1<<32 + 5, false},
		{never, 1<<32 + 5, false}, // there is no row
	} {
		if got := wrapped(c.eldest, c.next); got != c.want {
			t.Errorf("the oldest is of %d, the next is %d: %t", c.eldest, c.next, got)
		}
	}
}

func TestWhole(t *testing.T) {
	w := &work{partition: func(k *kgo.Record, n int) int { return int(k.Key[0]) % n }}
	for _, c := range []struct {
		key       byte
		partition int32
		n         int
		want      bool
	}{
		{0, 0, 1, true},
		{0, 0, 2, false},
		{1, 1, 2, true},
		{3, 1, 2, true},
		{2, 1, 2, false}, // not its own
		{7, 3, 4, true},
		{6, 2, 4, true},
		{5, 1, 4, false}, // as with 2
		{8, 3, 5, true},
		{7, 1, 6, false}, // as with 2 and 3
		{8, 2, 6, false}, // as with 3
		{10, 4, 6, true},
	} {
		if got := w.whole(&kgo.Record{Key: []byte{c.key}, Partition: c.partition}, c.n); got != c.want {
			t.Errorf("key %d in %d of %d: %t", c.key, c.partition, c.n, got)
		}
	}
}

func TestTwinsWithoutEnd(t *testing.T) {
	var rows []row
	for i := range uint64(maxTwins + 5) {
		rows = append(rows, row{ordinal: i, content: i})
	}
	found, counts := judged(t, []*topic{{partitions: make([]partition, 1)}}, nil, 0, rows, nil)
	if len(found) != maxTwins || counts.Unknown != 5 {
		t.Errorf("%d are missing and %d unknown", len(found), counts.Unknown)
	}
}

func TestReached(t *testing.T) {
	for _, c := range []struct {
		confirmed, lsn replication.LSN
		want           bool
	}{
		{100, 100, true},
		{99, 100, false},
		{101, 100, true},
		{0x2000, 0x2000, true},
		{0x2000, 0x2018, true},
		{0x2000, 0x2028, true},
		{0x1FF8, 0x2018, false},
		{0x2000, 0x2029, false},
		{0x2028, 0x2030, false},
	} {
		if got := reached(c.confirmed, c.lsn); got != c.want {
			t.Errorf("%s confirmed, %s wanted: %t", c.confirmed, c.lsn, got)
		}
	}
}

func TestSnapshots(t *testing.T) {
	entry := func(pos replication.LSN, timeline uint32, text string) checkpoint.Entry {
		return checkpoint.Entry{Pos: checkpoint.LSN{LSN: pos}, Time: time.Unix(int64(pos), 0), SystemID: "7", Timeline: timeline, Snapshot: text}
	}
	other := entry(9, 2, "10:12:")
	other.SystemID = "8"
	for _, c := range []struct {
		name    string
		entries []checkpoint.Entry
		want    []snapshot
	}{
		{"none", nil, nil},
		{"unreadable", []checkpoint.Entry{entry(1, 2, ""), entry(2, 2, "10"), entry(3, 2, "a:b:"), entry(4, 2, "12:10:"), entry(5, 2, "10:12:"), entry(6, 2, "20:30:21,25")}, []snapshot{{10, 12}, {20, 30}}},
		{"of another timeline", []checkpoint.Entry{entry(1, 1, "10:12:"), entry(2, 2, "11:13:"), entry(3, 3, "14:15:")}, []snapshot{{11, 13}}},
		{"of another cluster", []checkpoint.Entry{other, entry(1, 2, "11:13:")}, []snapshot{{11, 13}}},
		{"IDs that go back", []checkpoint.Entry{entry(1, 2, "10:12:"), entry(2, 2, "5:13:"), entry(3, 2, "6:14:")}, []snapshot{{5, 13}, {6, 14}}},
		{"positions that go back", []checkpoint.Entry{entry(9, 2, "10:12:"), entry(2, 2, "10:12:")}, []snapshot{{10, 12}}},
	} {
		if got := snapshots(c.entries, replication.Server{SystemID: "7", Timeline: 2}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestEntriesAreReadAsTheyAreWritten(t *testing.T) {
	r := row{id: ids(7), topic: 1 << 31, partition: 9, ordinal: 1 << 60, content: 3, key: 4, xid: 5, rank: 6, source: 7, dead: true}
	if got, _, isRow := readEntry(r.append(nil)); !isRow || got != r || len(r.append(nil)) != entryWidth {
		t.Errorf("%+v, want %+v", got, r)
	}
	k := record{id: ids(7), topic: 2, partition: 9, offset: 1 << 40, content: 3, key: 4, at: position{1, 2, 3, 4}, positioned: true, replayed: true, repaired: true, whole: true}
	if _, got, isRow := readEntry(k.append(nil)); isRow || got != k || len(k.append(nil)) != entryWidth {
		t.Errorf("%+v, want %+v", got, k)
	}
	s := suspect{row: row{id: ids(1), topic: 2, partition: 3, ordinal: 4, content: 5, key: 6, xid: 7, rank: 8, source: 9}, missing: true, offset: 10, at: position{1, 2, 3, 4}, placed: true}
	if got := readSuspect(s.append(nil)); got != s || len(s.append(nil)) != suspectWidth {
		t.Errorf("%+v, want %+v", got, s)
	}
	f := defect{1, Different, 2, 3, -1, 4, -1, ids(5), 6}
	if got := readDefect(f.append(nil)); got != f || len(f.append(nil)) != defectWidth {
		t.Errorf("%+v, want %+v", got, f)
	}
}

func TestDefectsFindTheirRowsAgain(t *testing.T) {
	const rows = 3 * lookahead
	for _, c := range []struct {
		name  string
		order func([]int)
		ok    bool
	}{
		{"in their order", func([]int) {}, true},
		{"each transaction the other way round", func(order []int) {
			for part := range slices.Chunk(order, 500) {
				slices.Reverse(part)
			}
		}, true},
		{"all the other way round", func(order []int) { slices.Reverse(order) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmp := newComparison(t.TempDir(), 1<<20)
			defer cmp.Close()
			cmp.topics = []*topic{{}}
			key := func(n int) row { return row{id: ids(n / 2), content: uint64(n % 2), ordinal: uint64(n)} }
			order := make([]int, rows)
			for n := range rows {
				order[n] = n
				r := key(n)
				for range n % 3 {
					if err := cmp.defect(&defect{kind: Duplicated}, &r); err != nil {
						t.Fatal(err)
					}
				}
			}
			c.order(order)
			f, err := newFound(cmp.found)
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range order {
				r := key(n)
				defects, err := f.of(uint64(i), twinKey{r.id, r.content})
				if err != nil {
					t.Fatal(err)
				}
				if c.ok && len(defects) != n%3 {
					t.Fatalf("row %d has %d defects, want %d", n, len(defects), n%3)
				}
			}
			if err := f.end(); (err == nil) != c.ok {
				t.Errorf("the end: %v", err)
			}
		})
	}
}

func TestHashes(t *testing.T) {
	h, ids := newHasher(), map[ident]string{}
	for topic := range uint32(3) {
		for _, id := range []string{"", "a", "b", "aa"} {
			v := h.ident(topic, []byte(id))
			if v != h.ident(topic, []byte(id)) {
				t.Errorf("%q of topic %d is not the same again", id, topic)
			}
			if other, ok := ids[v]; ok {
				t.Errorf("%q of topic %d is %q", id, topic, other)
			}
			ids[v] = id
		}
	}
	contents := map[uint64]string{}
	for _, parts := range [][][]byte{
		{[]byte("k"), []byte("v")},
		{[]byte("k"), []byte("w")},
		{[]byte("l"), []byte("v")},
		{[]byte("kv"), {}},
		{[]byte("k"), {}},
		{[]byte("k"), nil},
		{[]byte("k"), []byte("v"), []byte("t")},
		{[]byte("k"), []byte("vt"), {}},
		{nil, []byte("v")},
		{{}, []byte("v")},
	} {
		h.begin()
		for _, part := range parts {
			h.add(part)
		}
		v, name := h.sum(), fmt.Sprintf("%#v", parts)
		if other, ok := contents[v]; ok {
			t.Errorf("%s is %s", name, other)
		}
		contents[v] = name
	}
}

func TestWhatIsADefect(t *testing.T) {
	for _, c := range []struct {
		counts             Counts
		atLeast, exactOnce int64
	}{
		{Counts{Rows: 9, Records: 9, Unknown: 1, OrderUnknown: 1, Unpublishable: 1, Pruned: 1, Replayed: 1, Foreign: 1}, 0, 0},
		{Counts{Duplicated: 2}, 0, 2},
		{Counts{Missing: 3, Repaired: 3}, 0, 0},
		{Counts{Missing: 3, Repaired: 1, Different: 10, OutOfOrder: 100, Duplicated: 1000}, 112, 1112},
	} {
		if a, e := c.counts.defects(false), c.counts.defects(true); a != c.atLeast || e != c.exactOnce {
			t.Errorf("%+v: %d with at_least_once, %d with exactly_once", c.counts, a, e)
		}
	}
}
