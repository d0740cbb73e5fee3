package checkpoint

import (
	"slices"
	"testing"
	"time"

	"github.com/walferry/walferry/replication"
)

// indexer writes an index minute by minute, as a Keeper does.
type indexer struct {
	keeper *Keeper
	topic  map[string][]byte
}

func newIndexer() *indexer {
	return &indexer{&Keeper{Key: checkpointKey, Store: &Store{values: map[string][]byte{}}}, map[string][]byte{checkpointKey: []byte("checkpoint")}}
}

func (x *indexer) write(at time.Time, pos replication.LSN) {
	c := &Checkpoint{Time: at, Pos: LSN{pos}, Timeline: 1, SystemID: "7000", Snapshot: "700:712:701,705"}
	values := map[string][]byte{}
	x.keeper.index(values, c)
	for key, value := range values {
		if value == nil {
			delete(x.topic, key)
		} else {
			x.topic[key] = value
		}
	}
}

func (x *indexer) entries() []Entry { return Index(x.topic, checkpointKey) }

func TestIndexIsFineFirstAndCoarseLater(t *testing.T) {
	x, now := newIndexer(), time.Date(2026, 11, 30, 0, 0, 30, 0, time.UTC)
	step, fine := 5*time.Minute, now.Add(8*24*time.Hour)
	for n := replication.LSN(1); now.Before(fine.Add(3 * time.Hour)); n++ {
		x.write(now, n)
		if !now.Before(fine) {
			step = time.Minute
		}
		now = now.Add(step)
	}
	entries := x.entries()
	if got, most := len(entries), 121+7*24*6; got > most || got < most-20 {
		t.Errorf("%d entries, want about %d", got, most)
	}
	if string(x.topic[checkpointKey]) != "checkpoint" {
		t.Error("the checkpoint itself was touched")
	}
	last := entries[len(entries)-1]
	for i, e := range entries {
		if i > 0 && (!e.Time.After(entries[i-1].Time) || e.Pos.LSN <= entries[i-1].Pos.LSN) {
			t.Fatalf("entry %d is %v behind %v", i, e, entries[i-1])
		}
		step, age := time.Duration(0), last.Time.Sub(e.Time)
		if i > 0 {
			step = e.Time.Sub(entries[i-1].Time)
		}
		switch {
		case age > 7*24*time.Hour+time.Minute:
			t.Errorf("the entry of %s is kept for %s", e.Time, age)
		case age < 110*time.Minute && step > time.Minute:
			t.Errorf("before %s nothing is known for %s", e.Time, step)
		case step > 10*time.Minute:
			t.Errorf("before %s nothing is known for %s", e.Time, step)
		}
	}
	if e := last; e.Snapshot != "700:712:" || e.Timeline != 1 || e.SystemID != "7000" {
		t.Errorf("the last entry is %+v", e)
	}
}

// A minute without progress has no entry, and of ten minutes the first that there is stays.
func TestIndexOfABridgeThatIsMostlyIdle(t *testing.T) {
	x, begin := newIndexer(), time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	for i, minute := range []int{3, 7, 8, 25, 300} {
		x.write(begin.Add(time.Duration(minute)*time.Minute), replication.LSN(i+1))
	}
	var got []replication.LSN
	for _, e := range x.entries() {
		got = append(got, e.Pos.LSN)
	}
	if want := []replication.LSN{1, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("entries at %v, want %v", got, want)
	}
	x.keeper.Kept = 30 * 24 * time.Hour
	x.write(begin.Add(20*24*time.Hour), 6)
	if n := len(x.entries()); n != 4 {
		t.Errorf("with a month %d entries, want 4", n)
	}
	x.keeper.Kept = time.Hour // never less than a week
	x.write(begin.Add(20*24*time.Hour+time.Minute), 7)
	if n := len(x.entries()); n != 2 {
		t.Errorf("with a week %d entries, want 2", n)
	}
}
