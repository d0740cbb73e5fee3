package reconcile

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// past is a made-up past of one topic: what transactions committed, in which order a bridge published it, and what
// table and partitions hold now.
type past struct {
	rng       *rand.Rand
	events    []happened // in the order of their commits
	snapshots []snapshot
	records   [][]held // by partition, from offset 0 on
	start     []int64  // log start offsets
	rows      map[int]bool
	want      map[string]bool // defects that must be found
	may       map[string]bool // that may be: where something has expired
	grew      bool            // the topic was given more partitions
}

type happened struct {
	id, key     int
	xid, commit uint64
	index       uint64
}

type held struct {
	event    int
	replayed bool
	repaired bool
	altered  bool
	gone     bool // deleted by the test, so its offset is empty
}

func ids(n int) (id ident) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9E3779B97F4A7C15)
	return id
}

// newPast lets transactions run side by side, and a bridge publish them with repetitions, to partitions that may become more.
func newPast(seed uint64) *past {
	p := &past{rng: rand.New(rand.NewPCG(seed, 1)), rows: map[int]bool{}, want: map[string]bool{}, may: map[string]bool{}}
	r := p.rng
	type open struct {
		xid  uint64
		keys []int
	}
	var running []open
	next, lsn := uint64(700), uint64(1000)
	keys := 1 + r.IntN(8)
	for range 20 + r.IntN(400) {
		switch r.IntN(6) {
		case 0:
			running = append(running, open{xid: next})
			next += 1 + r.Uint64N(3)
		case 1, 2:
			if len(running) > 0 {
				o := &running[r.IntN(len(running))]
				o.keys = append(o.keys, r.IntN(keys))
			}
		case 3, 4:
			if len(running) > 0 {
				i := r.IntN(len(running))
				lsn += 10
				for index, key := range running[i].keys {
					p.events = append(p.events, happened{id: len(p.events), key: key, xid: running[i].xid, commit: lsn, index: uint64(index)})
				}
				running = slices.Delete(running, i, i+1)
			}
		case 5:
			s := snapshot{next, next}
			for _, o := range running {
				s.xmin = min(s.xmin, o.xid)
			}
			p.snapshots = append(p.snapshots, s)
		}
	}
	p.publish()
	return p
}

// publish fills the partitions.
func (p *past) publish() {
	partitions := 1 + p.rng.IntN(3)
	p.records = make([][]held, partitions)
	for i := 0; i < len(p.events); i++ {
		if p.rng.IntN(60) == 0 {
			p.records, p.grew = append(p.records, nil), true
		}
		p.append(held{event: i})
		if p.rng.IntN(25) == 0 { // a crash: from somewhere before it comes again
			i = max(-1, i-1-p.rng.IntN(6))
		}
		if p.rng.IntN(40) == 0 { // somebody replays an old one
			p.append(held{event: p.rng.IntN(max(i, 0) + 1), replayed: true})
		}
	}
	p.start = make([]int64, len(p.records))
	for i := range p.events {
		p.rows[i] = true
	}
}

func (p *past) append(h held) {
	at := p.events[h.event].key % len(p.records)
	p.records[at] = append(p.records[at], h)
}

// prune deletes rows, from the oldest on and here and there.
func (p *past) prune() {
	old := 0
	if n := len(p.events); n > 0 && p.rng.IntN(2) == 0 {
		old = p.rng.IntN(n)
	}
	for i := range p.events {
		if i < old || p.rng.IntN(10) == 0 {
			delete(p.rows, i)
		}
	}
}

// expire cuts partitions off.
func (p *past) expire() {
	for i := range p.start {
		if n := len(p.records[i]); p.rng.IntN(3) > 0 {
			p.start[i] = p.rng.Int64N(int64(n) + 1)
			if p.rng.IntN(2) == 0 {
				p.start[i] /= 4
			}
		}
	}
}

func (p *past) expired() bool { return slices.Max(p.start) > 0 }

// copies returns where the copies of each event are held, first by partition, then by offset.
func (p *past) copies() map[int][][2]int {
	at := map[int][][2]int{}
	for partition, records := range p.records {
		for offset, h := range records {
			if int64(offset) >= p.start[partition] && !h.gone {
				at[h.event] = append(at[h.event], [2]int{partition, offset})
			}
		}
	}
	return at
}

func name(kind Kind, event, partition int, offset int64) string {
	return fmt.Sprintf("%s of %d in %d at %d", kind, event, partition, offset)
}

// plant spoils some of what has a row, not more than once, and notes what must be found.
func (p *past) plant() {
	touched := map[int]bool{}
	copies := p.copies()
	for event := range p.events {
		at := copies[event]
		if !p.rows[event] || touched[event] || p.rng.IntN(6) > 0 {
			continue
		}
		sole := len(at) == 1 && !p.records[at[0][0]][at[0][1]].replayed
		switch p.rng.IntN(4) {
		case 0: // never published
			for _, records := range p.records {
				for i := range records {
					records[i].gone = records[i].gone || records[i].event == event
				}
			}
			touched[event] = true
			note := p.want
			if p.expired() {
				note = p.may
			}
			note[name(Missing, event, p.events[event].key%len(p.records), -1)] = true
		case 1: // altered
			if sole {
				touched[event] = true
				p.records[at[0][0]][at[0][1]].altered = true
				p.want[name(Different, event, at[0][0], int64(at[0][1]))] = true
			}
		case 2: // once more, at the end
			if sole {
				touched[event] = true
				p.records[at[0][0]] = append(p.records[at[0][0]], held{event: event})
			}
		case 3: // it changes places with the next one of its key
			if sole {
				p.swap(event, at[0], copies, touched)
			}
		}
	}
}

func (p *past) swap(event int, at [2]int, copies map[int][][2]int, touched map[int]bool) {
	records := p.records[at[0]]
	for offset := at[1] + 1; offset < len(records); offset++ {
		h := records[offset]
		if p.events[h.event].key != p.events[event].key {
			continue
		}
		if h.gone || h.event < event || h.replayed || touched[h.event] || !p.rows[h.event] || len(copies[h.event]) != 1 {
			return
		}
		touched[event], touched[h.event] = true, true
		records[at[1]], records[offset] = records[offset], records[at[1]]
		note := p.want
		if p.expired() {
			note = p.may
		}
		note[name(OutOfOrder, event, at[0], int64(offset))] = true
		return
	}
}

// duplicates notes the copies too many, which are known whatever has expired.
func (p *past) duplicates() {
	for event, at := range p.copies() {
		first := true
		for _, place := range at {
			h := p.records[place[0]][place[1]]
			switch {
			case h.replayed || h.altered || !p.rows[event]:
			case first:
				first = false
			default:
				p.want[name(Duplicated, event, place[0], int64(place[1]))] = true
			}
		}
	}
}

// compare has a comparison judge the past, in any order.
func (p *past) compare(t *testing.T, memory int) (found map[string]bool, counts Counts) {
	t.Helper()
	tp := &topic{name: "t"}
	for _, start := range p.start {
		tp.partitions = append(tp.partitions, partition{start: start})
	}
	c := newComparison(t.TempDir(), memory)
	defer c.Close()
	c.topics, c.sources = []*topic{tp}, make([]source, 1)
	var add []func() error
	for ordinal, e := range p.events {
		if p.rows[e.id] {
			add = append(add, func() error {
				return c.row(&row{id: ids(e.id), partition: int32(e.key % len(p.records)), ordinal: uint64(ordinal), content: uint64(e.id), key: uint64(e.key), xid: e.xid})
			})
		}
	}
	for partition, records := range p.records {
		for offset, h := range records {
			if e := p.events[h.event]; int64(offset) >= p.start[partition] && !h.gone {
				k := record{
					id: ids(e.id), partition: int32(partition), offset: int64(offset), content: uint64(e.id), key: uint64(e.key),
					at: position{7, 1, e.commit, e.index}, positioned: true, replayed: h.replayed, repaired: h.repaired, whole: e.key%len(p.records) == partition,
				}
				for fewer := partition + 1; fewer < len(p.records); fewer++ {
					k.whole = k.whole && e.key%fewer != partition
				}
				if h.altered {
					k.content++
				}
				add = append(add, func() error { return c.record(&k) })
			}
		}
	}
	p.rng.Shuffle(len(add), func(i, j int) { add[i], add[j] = add[j], add[i] })
	for _, f := range add {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.finish(p.snapshots, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	found = map[string]bool{}
	last := uint64(0)
	if err := each(c.found, func() error { return nil }, func(b []byte) error {
		f := readDefect(b)
		if f.ordinal < last {
			t.Errorf("defect of row %d behind that of %d", f.ordinal, last)
		}
		last = f.ordinal
		found[name(f.kind, int(f.ordinal), int(f.partition), f.offset)] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found, tp.counts
}

// seeds is how many pasts are tried of each kind.
const seeds = 1000

func TestAHealthyPastHasNoDefectsButRepetitions(t *testing.T) {
	for seed := range uint64(seeds) {
		p := newPast(seed)
		if len(p.events) == 0 {
			continue
		}
		p.prune()
		p.expire()
		p.duplicates()
		found, counts := p.compare(t, 0)
		p.check(t, seed, found)
		if n := counts.Missing + counts.Different + counts.OutOfOrder; n != 0 {
			t.Errorf("seed %d: %+v", seed, counts)
		}
		if !p.expired() && (counts.Unknown > 0 || counts.OrderUnknown > 0 && !p.grew) {
			t.Errorf("seed %d: nothing has expired, and there is something unknown: %+v", seed, counts)
		}
	}
}

func TestWhatIsPlantedIsFoundAndNothingElse(t *testing.T) {
	may, known := 0, 0
	for seed := range uint64(seeds) {
		p := newPast(seed)
		if len(p.events) == 0 {
			continue
		}
		p.prune()
		if seed%2 == 0 {
			p.expire()
		}
		p.plant()
		p.duplicates()
		found, _ := p.compare(t, int(seed%3)<<10)
		p.check(t, seed, found)
		may += len(p.may)
		for d := range p.may {
			if found[d] {
				known++
			}
		}
	}
	t.Logf("of %d defects beside something that has expired %d are known", may, known)
	if known*4 < may { // so that "unknown" is no way out
		t.Errorf("of %d defects beside something that has expired only %d are known", may, known)
	}
}

// check compares what is found with what must and may be.
func (p *past) check(t *testing.T, seed uint64, found map[string]bool) {
	t.Helper()
	var faults []string
	for d := range p.want {
		if !found[d] {
			faults = append(faults, "not found: "+d)
		}
	}
	for d := range found {
		if !p.want[d] && !p.may[d] {
			faults = append(faults, "not there: "+d)
		}
	}
	if len(faults) > 0 {
		slices.SortFunc(faults, cmp.Compare[string])
		t.Fatalf("seed %d: %q", seed, faults)
	}
}
