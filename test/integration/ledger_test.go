package integration

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kgo"
)

// ref names an event of a ledger: the seq-th of its key. Everything else about the event
// follows from it.
type ref struct{ key, seq int }

func (r ref) id() string            { return fmt.Sprintf("%08x-0000-4000-8000-%012x", r.key, r.seq) }
func (r ref) aggregateID() string   { return fmt.Sprintf("key-%d", r.key) }
func (r ref) aggregateType() string { return ledgerTypes[r.key%len(ledgerTypes)] }

var ledgerTypes = []string{"order", "invoice", "customer"}

// message reports whether the event is written as a logical message, not as a row.
func (r ref) message() bool { return r.seq%8 == 5 }

// payload is JSON as jsonb writes it, so that a row's bytes and a message's are the same.
func (r ref) payload() string {
	pad := (r.key*31 + r.seq*7) % 200
	if r.seq%100 == 99 {
		pad = 20_000 // out of line in the table
	}
	return fmt.Sprintf(`{"n": %d, "pad": "\"é\n%s"}`, r.seq, strings.Repeat("x", pad))
}

func parseRef(id string) (ref, error) {
	var r ref
	if _, err := fmt.Sscanf(id, "%08x-0000-4000-8000-%012x", &r.key, &r.seq); err != nil {
		return r, fmt.Errorf("id %q is not of this ledger: %w", id, err)
	}
	return r, nil
}

// outcome is what a writer knows of an event.
type outcome int

const (
	unwritten outcome = iota
	committed
	rolledBack // or never came as far as COMMIT
	unclear    // the connection died at COMMIT
	undone     // committed, or unclear, on a primary whose WAL the next one does not have
)

// ledger records what became of every event. One writer owns a key, so that the order of a
// key's sequence numbers is the order of its commits.
type ledger struct {
	mu     sync.Mutex
	events [][]outcome // by key and seq
	txns   int         // that committed
}

func newLedger(keys int) *ledger { return &ledger{events: make([][]outcome, keys)} }

// next returns the next event of a key.
func (l *ledger) next(key int) ref {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[key] = append(l.events[key], unwritten)
	return ref{key, len(l.events[key]) - 1}
}

// settle notes what became of the events of one transaction.
func (l *ledger) settle(o outcome, refs ...ref) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range refs {
		l.events[r.key][r.seq] = o
	}
	if o == committed {
		l.txns++
	}
}

// commits returns how many transactions are known to have committed.
func (l *ledger) commits() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.txns
}

// of returns what became of an event, unwritten if it is not in the ledger.
func (l *ledger) of(r ref) outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.key < 0 || r.key >= len(l.events) || r.seq < 0 || r.seq >= len(l.events[r.key]) {
		return unwritten
	}
	return l.events[r.key][r.seq]
}

// ends returns how many events each key has.
func (l *ledger) ends() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	ends := make([]int, len(l.events))
	for key, events := range l.events {
		ends[key] = len(events)
	}
	return ends
}

// undo notes that a promotion has lost what was committed behind these ends. No writer may be at work.
func (l *ledger) undo(ends []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, events := range l.events {
		for seq := ends[key]; seq < len(events); seq++ {
			if events[seq] == committed || events[seq] == unclear {
				events[seq] = undone
			}
		}
	}
}

// resolve clears up from the table which unclear rows were committed. Messages leave
// no trace: theirs stays unclear. It fails when the table contradicts the ledger.
func (l *ledger) resolve(table map[string]bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, events := range l.events {
		for seq, o := range events {
			r := ref{key, seq}
			if r.message() {
				continue
			}
			there := table[r.id()]
			switch {
			case o == unclear && there:
				events[seq] = committed
			case o == unclear:
				events[seq] = rolledBack
			case there != (o == committed):
				return fmt.Errorf("event %s: outcome %d, in the table: %t", r.id(), o, there)
			}
		}
	}
	return nil
}

// audit compares the topics with a ledger, record by record.
type audit struct {
	ledger *ledger
	prefix string                 // of the topics
	first  map[ref]string         // the position of every event's first copy
	byKey  map[int][]int          // sequence numbers as they came
	home   map[int]string         // the key's partition
	last   map[string]walPosition // by partition: of the latest first copy
	faults map[string]int         // by kind: lost, phantom, altered, order
	report []string               // the first faults in words
	copies int
	// overtaking are events that a client sent behind one of its batches that brokers had refused for good: they
	// alone may come early (docs/adr/0006).
	overtaking map[string]bool
	early      int // of them that did
	// interleaved says that two instances may have published at a time, for one of them was frozen in between: copies
	// may come anywhere, first copies in their order (docs/high-availability.md).
	interleaved bool
	// lost is the WAL that a promotion has lost, from which alone events that are undone may come.
	lost     lostWAL
	phantoms int // that did
}

// lostWAL is the range of a timeline's WAL that walferry has called lost. The transaction that commits at its end is in it.
type lostWAL struct {
	timeline uint32
	from, to pglogrepl.LSN
}

func (l lostWAL) has(p walPosition) bool {
	return p.timeline == l.timeline && p.commit >= l.from && p.commit <= l.to
}

func (l *ledger) audit(prefix string) *audit {
	return &audit{
		ledger: l, prefix: prefix, first: map[ref]string{}, byKey: map[int][]int{},
		home: map[int]string{}, last: map[string]walPosition{}, faults: map[string]int{},
	}
}

func (a *audit) fault(kind, format string, args ...any) {
	a.faults[kind]++
	if len(a.report) < 20 {
		a.report = append(a.report, kind+": "+fmt.Sprintf(format, args...))
	}
}

// see takes the next record. Those of a partition must come in their order.
func (a *audit) see(rec *kgo.Record) {
	where := fmt.Sprintf("%s/%d", rec.Topic, rec.Partition)
	r, err := parseRef(header(rec, "id"))
	if err != nil {
		a.fault("phantom", "%s at %d: %v", where, rec.Offset, err)
		return
	}
	position := header(rec, "walferry-position")
	p, positionErr := parsePosition(position)
	switch o := a.ledger.of(r); {
	case o == committed, o == unclear:
	case o == undone && a.lost.has(p):
		a.phantoms++
	default:
		a.fault("phantom", "%s at %d: %s (%s) was never committed (outcome %d)", where, rec.Offset, r.id(), position, o)
		return
	}
	a.copies++
	if rec.Topic != a.prefix+"."+r.aggregateType() || string(rec.Key) != r.aggregateID() || !bytes.Equal(rec.Value, []byte(r.payload())) {
		a.fault("altered", "%s at %d: %s", where, rec.Offset, r.id())
	}
	if home, ok := a.home[r.key]; ok && home != where {
		a.fault("order", "%s at %d: key %d was in %s before", where, rec.Offset, r.key, home)
	}
	a.home[r.key] = where
	a.byKey[r.key] = append(a.byKey[r.key], r.seq)
	if first, again := a.first[r]; again {
		if first != position {
			a.fault("altered", "%s at %d: %s was %s before and is %s now", where, rec.Offset, r.id(), first, position)
		}
		return
	}
	a.first[r] = position
	if positionErr != nil || p.compare(a.last[where]) <= 0 {
		a.fault("order", "%s at %d: position %s after %v (%v)", where, rec.Offset, position, a.last[where], positionErr)
	}
	if !a.overtaking[r.id()] {
		a.last[where] = p
	}
}

// finish looks for what is missing and at the order of each key: a record is the
// successor of the one before it, or goes back and starts a repetition. So first copies
// are in commit order, and no repetition leaves anything out.
func (a *audit) finish() {
	for key, events := range a.ledger.events {
		for seq, o := range events {
			if _, there := a.first[ref{key, seq}]; o == committed && !there {
				a.fault("lost", "%s", ref{key, seq}.id())
			}
		}
	}
	for key, seqs := range a.byKey {
		order := slices.Clone(seqs)
		slices.Sort(order)
		order = slices.Compact(order)
		previous := -1
		for _, seq := range seqs {
			at, _ := slices.BinarySearch(order, seq)
			switch {
			case at <= previous+1, a.interleaved:
			case a.overtaking[ref{key, seq}.id()]:
				a.early++
			default:
				a.fault("order", "key %d: %d came before %d", key, seq, order[previous+1])
			}
			previous = at
		}
	}
}

func (a *audit) duplicates() int { return a.copies - len(a.first) }

// walPosition is where an event lies in the WAL.
type walPosition struct {
	timeline uint32
	commit   pglogrepl.LSN
	index    uint64
}

func parsePosition(header string) (walPosition, error) {
	var p walPosition
	parts := strings.Split(header, "/")
	if len(parts) != 5 {
		return p, fmt.Errorf("position %q has %d parts, want 5", header, len(parts))
	}
	lsn, err := pglogrepl.ParseLSN(parts[2] + "/" + parts[3])
	if err != nil {
		return p, err
	}
	p.commit = lsn
	_, err = fmt.Sscan(parts[1]+" "+parts[4], &p.timeline, &p.index)
	return p, err
}

func (p walPosition) compare(q walPosition) int {
	return cmp.Or(cmp.Compare(p.timeline, q.timeline), cmp.Compare(p.commit, q.commit), cmp.Compare(p.index, q.index))
}

func TestAuditExcusesOnlyWhatFollowsARefusal(t *testing.T) {
	for _, c := range []struct {
		name       string
		overtaking []int
		seqs       []int
		early      int
		want       map[string]int
	}{
		{"3 was sent behind a refusal, and all come again", []int{3}, []int{0, 3, 1, 2, 3, 4}, 1, nil},
		{"3 and 4 were", []int{3, 4}, []int{0, 3, 4, 1, 2, 3, 4}, 1, nil},
		{"4 was, but 3 was not", []int{4}, []int{0, 3, 4, 1, 2, 3, 4}, 0, map[string]int{"order": 2}}, // 1 behind 3, 3 before 1
		{"lost behind a refusal", []int{3}, []int{0, 3, 2, 3, 4}, 1, map[string]int{"lost": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger(8)
			for range 5 {
				l.settle(committed, l.next(7))
			}
			a := l.audit("p")
			a.overtaking = map[string]bool{}
			for _, seq := range c.overtaking {
				a.overtaking[ref{7, seq}.id()] = true
			}
			for _, r := range topicOf(7, c.seqs...) {
				a.see(r)
			}
			a.finish()
			if got, want := fmt.Sprint(a.faults), fmt.Sprint(c.want); got != want || a.early != c.early {
				t.Errorf("faults %v, want %v; %d early, want %d: %q", got, want, a.early, c.early, a.report)
			}
		})
	}
}

func TestAuditExcusesOnlyCopiesOfAFrozenInstance(t *testing.T) {
	for _, c := range []struct {
		name string
		seqs []int
		want map[string]int
	}{
		{"copies of 2 and 3 behind their successors", []int{0, 1, 2, 3, 4, 2, 3, 5}, nil},
		{"3 by the one, before the other repeats it", []int{0, 1, 2, 1, 3, 2, 3, 4, 5}, nil},
		{"first copies in another order", []int{0, 1, 3, 2, 4, 5}, map[string]int{"order": 1}},
		{"loss", []int{0, 1, 2, 4, 2, 5}, map[string]int{"lost": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger(8)
			for range 6 {
				l.settle(committed, l.next(7))
			}
			a := l.audit("p")
			a.interleaved = true
			for _, r := range topicOf(7, c.seqs...) {
				a.see(r)
			}
			a.finish()
			if got, want := fmt.Sprint(a.faults), fmt.Sprint(c.want); got != want {
				t.Errorf("faults %v, want %v: %q", got, want, a.report)
			}
		})
	}
}

// topicOf returns records as the topic of one key would hold them.
func topicOf(key int, seqs ...int) []*kgo.Record {
	var records []*kgo.Record
	for i, seq := range seqs {
		r := ref{key, seq}
		records = append(records, &kgo.Record{
			Topic: "p." + r.aggregateType(), Offset: int64(i), Key: []byte(r.aggregateID()), Value: []byte(r.payload()),
			Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(r.id())}, {Key: "walferry-position", Value: fmt.Appendf(nil, "7/1/0/%X/0", 16+seq)}},
		})
	}
	return records
}

func TestAuditFindsWhatIsPlanted(t *testing.T) {
	// Events 0 to 5 of one key: 2 was rolled back, 5 died at its COMMIT.
	outcomes := []outcome{committed, committed, rolledBack, committed, committed, unclear}
	cases := []struct {
		name       string
		seqs       []int
		spoil      func([]*kgo.Record)
		duplicates int
		want       map[string]int
	}{
		{"all is well", []int{0, 1, 3, 4}, nil, 0, nil},
		{"the unclear one was committed", []int{0, 1, 3, 4, 5}, nil, 0, nil},
		{"a suffix twice", []int{0, 1, 3, 1, 3, 4}, nil, 2, nil},
		{"a suffix three times", []int{0, 0, 1, 3, 1, 3, 4, 4}, nil, 4, nil},
		{"loss", []int{0, 1, 4}, nil, 0, map[string]int{"lost": 1}},
		{"loss at the end", []int{0, 1, 3}, nil, 0, map[string]int{"lost": 1}},
		{"nothing", nil, nil, 0, map[string]int{"lost": 4}},
		{"rolled back and delivered", []int{0, 1, 2, 3, 4}, nil, 0, map[string]int{"phantom": 1}},
		{"never written", []int{0, 1, 3, 4, 9}, nil, 0, map[string]int{"phantom": 1}},
		{"a swap", []int{0, 3, 1, 4}, nil, 0, map[string]int{"order": 3}}, // 3 before 1, 1 behind 3, 4 without 3
		{"a repetition with a hole", []int{0, 1, 3, 0, 3, 4}, nil, 2, map[string]int{"order": 1}},
		{"an altered byte", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[2].Value[3] ^= 1 }, 0, map[string]int{"altered": 1}},
		{"an altered byte of a copy", []int{0, 1, 0, 1, 3, 4}, func(r []*kgo.Record) { r[3].Value[3] ^= 1 }, 2, map[string]int{"altered": 1}},
		{"another key", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[2].Key = []byte("key-8") }, 0, map[string]int{"altered": 1}},
		{"another topic", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[3].Topic = "p.other" }, 0, map[string]int{"altered": 1, "order": 1}},
		{"another partition", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[3].Partition = 1 }, 0, map[string]int{"order": 1}},
		{"an id of somebody else", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[0].Headers[0].Value = []byte("other") }, 0, map[string]int{"lost": 1, "phantom": 1}},
		{"a copy with another position", []int{0, 1, 1, 3, 4}, func(r []*kgo.Record) { r[2].Headers[1].Value = []byte("7/1/0/FF/0") }, 1, map[string]int{"altered": 1}},
		{"positions going back", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[3].Headers[1].Value = []byte("7/1/0/1/0") }, 0, map[string]int{"order": 1}},
		{"no position", []int{0, 1, 3, 4}, func(r []*kgo.Record) { r[3].Headers = r[3].Headers[:1] }, 0, map[string]int{"order": 1}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger(8)
			for _, o := range outcomes {
				l.settle(o, l.next(7))
			}
			records := topicOf(7, c.seqs...)
			if c.spoil != nil {
				c.spoil(records)
			}
			a := l.audit("p")
			for _, r := range records {
				a.see(r)
			}
			a.finish()
			if got, want := fmt.Sprint(a.faults), fmt.Sprint(c.want); got != want {
				t.Errorf("faults %v, want %v: %q", got, want, a.report)
			}
			if a.duplicates() != c.duplicates {
				t.Errorf("%d duplicates, want %d", a.duplicates(), c.duplicates)
			}
		})
	}
}

func TestAuditKnowsWhatAPromotionHasLost(t *testing.T) {
	// 0 is old, 1 to 3 were lost by the promotion, 4 and 5 are of the new primary, whose WAL begins where 1 lay.
	at := map[int]string{0: "1/0/10", 1: "1/0/11", 2: "1/0/12", 3: "1/0/13", 4: "2/0/11", 5: "2/0/12"}
	for _, c := range []struct {
		name     string
		seqs     []int
		table    []int
		phantoms int
		want     map[string]int
	}{
		{"two of them were published", []int{0, 1, 2, 4, 5}, []int{0, 4, 5}, 2, nil},
		{"none was", []int{0, 4, 5}, []int{0, 4, 5}, 0, nil},
		{"one that is not in the range", []int{0, 1, 2, 3, 4, 5}, []int{0, 4, 5}, 2, map[string]int{"phantom": 1}},
		{"one of the new primary is missing", []int{0, 1, 2, 5}, []int{0, 4, 5}, 2, map[string]int{"lost": 1}},
		{"one of the lost comes behind the new", []int{0, 1, 4, 2, 5}, []int{0, 4, 5}, 2, map[string]int{"order": 3}},
		{"one is in the table after all", []int{0, 1, 4, 5}, []int{0, 1, 4, 5}, 1, map[string]int{"ledger": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLedger(8)
			var ends []int
			for seq := range 6 {
				switch seq {
				case 1:
					ends = l.ends()
				case 4:
					l.undo(ends)
				}
				l.settle(committed, l.next(7))
			}
			a := l.audit("p")
			a.lost = lostWAL{timeline: 1, from: 0x11, to: 0x12}
			table := map[string]bool{}
			for _, seq := range c.table {
				table[ref{7, seq}.id()] = true
			}
			if l.resolve(table) != nil {
				a.fault("ledger", "")
			}
			records := topicOf(7, c.seqs...)
			for i, seq := range c.seqs {
				records[i].Headers[1].Value = []byte("7/" + at[seq] + "/0")
				a.see(records[i])
			}
			a.finish()
			if got, want := fmt.Sprint(a.faults), fmt.Sprint(c.want); got != want || a.phantoms != c.phantoms {
				t.Errorf("faults %v, want %v; %d phantoms, want %d: %q", got, want, a.phantoms, c.phantoms, a.report)
			}
		})
	}
}

func TestLedgerResolvesTheUnclearFromTheTable(t *testing.T) {
	l := newLedger(1)
	for _, o := range []outcome{committed, unclear, unclear, rolledBack, committed, unclear} { // 5 is a message
		l.settle(o, l.next(0))
	}
	table := map[string]bool{ref{0, 0}.id(): true, ref{0, 2}.id(): true, ref{0, 4}.id(): true}
	if err := l.resolve(table); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(l.events[0]), fmt.Sprint([]outcome{committed, rolledBack, committed, rolledBack, committed, unclear}); got != want {
		t.Errorf("outcomes %s, want %s", got, want)
	}
	delete(table, ref{0, 4}.id())
	if err := l.resolve(table); err == nil {
		t.Error("a committed row is not in the table, and resolve is content")
	}
}
