package checkpoint

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/walferry/walferry/replication"
)

// history is that of a server on timeline 3, which left 1 at 0/1000 and 2 at 0/2000.
const history = "1\t0/1000\tno recovery target specified\n2\t0/2000\tno recovery target specified\n"

func found(t *testing.T, start replication.LSN) Found {
	t.Helper()
	timelines, err := replication.ParseTimelines(3, history)
	if err != nil {
		t.Fatal(err)
	}
	return Found{
		Slot: "s", SystemID: "7000", Timelines: timelines, Start: start, WALEnd: 0x3200,
		Membership: replication.Membership{"publication": "1/10", "public.outbox": "2/20"},
	}
}

func written(timeline uint32, pos, openCommit replication.LSN, index uint64) *Checkpoint {
	return &Checkpoint{
		Version: version, SystemID: "7000", Timeline: timeline, TimelineBegan: LSN{replication.LSN(timeline-1) * 0x1000}, Pos: LSN{pos}, OpenCommit: LSN{openCommit}, OpenIndex: index,
		Membership: replication.Membership{"publication": "1/10", "public.outbox": "2/20"},
	}
}

func TestResume(t *testing.T) {
	changed := func(key, row string) *Checkpoint {
		c := written(3, 0x3000, 0, 0)
		c.Membership[key] = row
		return c
	}
	other, fork, unknown := written(3, 0x3000, 0, 0), written(3, 0x3000, 0, 0), written(3, 0x3000, 0, 0)
	other.SystemID, fork.TimelineBegan.LSN, unknown.TimelineBegan.LSN = "7001", 0x1800, 0
	lost := changed("publication", "9/10")
	seen := written(3, 0x3000, 0, 0)
	seen.Snapshot = "7:9:"
	at := func(lsn replication.LSN) replication.Progress { return replication.Progress{Flushed: lsn} }
	for _, test := range []struct {
		name  string
		from  *Checkpoint
		start replication.LSN
		want  Resume
		gap   string
	}{
		{"where it stood", written(3, 0x3000, 0, 0), 0x3000, Resume{From: at(0x3000)}, ""},
		{"the slot went back", written(3, 0x3000, 0, 0), 0x2500, Resume{From: at(0x3000)}, ""},
		{"inside of a transaction", written(3, 0x3000, 0x3100, 5), 0x3000, Resume{From: replication.Progress{Flushed: 0x3000, Commit: 0x3100, Index: 5}}, ""},
		{"promoted where all is published", written(2, 0x2000, 0, 0), 0x1f00, Resume{From: at(0x2000)}, ""},
		{"promoted behind it", written(2, 0x1f00, 0, 0), 0x1f00, Resume{From: at(0x1f00)}, ""},
		// The new primary writes at 0x2000 and on what the old one has written there too.
		{"promoted before it", written(2, 0x2800, 0, 0), 0x1f00, Resume{From: at(0x2000), Phantoms: Range{0x2000, 0x2800}}, ""},
		{"promoted twice", written(1, 0x1800, 0, 0), 0x0f00, Resume{From: at(0x1000), Phantoms: Range{0x1000, 0x1800}}, ""},
		{"promoted inside of a transaction", written(2, 0x1f00, 0x2100, 7), 0x1f00, Resume{From: at(0x1f00), Phantoms: Range{0x2000, 0x2100}}, ""},
		{"promoted before it, the slot ahead", written(2, 0x2800, 0, 0), 0x2400, Resume{From: at(0x2400), Phantoms: Range{}}, "ahead of the checkpoint"},
		{"the slot is ahead", written(3, 0x3000, 0, 0), 0x3001, Resume{From: at(0x3001)}, "ahead of the checkpoint"},
		{"another cluster", other, 0x3000, Resume{From: at(0x3000)}, "system identifier 7001"},
		{"another timeline of that number", fork, 0x2000, Resume{From: at(0x2000)}, "another standby was promoted"},
		{"a timeline of which nothing is known", unknown, 0x3000, Resume{From: at(0x3000)}, ""},
		{"with a snapshot", seen, 0x3000, Resume{From: at(0x3000), Snapshot: "7:9:"}, ""},
		{"as far as the WAL goes", written(3, 0x3200, 0, 0), 0x3000, Resume{From: at(0x3200)}, ""},
		{"restored from an older copy", written(3, 0x3201, 0, 0), 0x3000, Resume{From: at(0x3000)}, "WAL ends at 0/3200, before the checkpoint"},
		{"restored, inside of a transaction", written(3, 0x3000, 0x3300, 5), 0x3000, Resume{From: at(0x3000)}, "WAL ends at 0/3200, before the checkpoint"},
		{"all at once", lost, 0x3001, Resume{From: at(0x3001)}, "besides, the publication was recreated or altered"},
		{"a timeline of another branch", written(4, 0x3000, 0, 0), 0x3000, Resume{From: at(0x3000)}, "timeline 4"},
		{"publication recreated", changed("publication", "9/10"), 0x3000, Resume{From: at(0x3000)}, "publication was recreated or altered"},
		{"table taken out and put back", changed("public.outbox", "2/19"), 0x3000, Resume{From: at(0x3000)}, "table public.outbox was taken out"},
		{"table no longer configured", changed("public.old", "3/30"), 0x3000, Resume{From: at(0x3000)}, ""},
	} {
		got, err := test.from.Resume(found(t, test.start))
		if got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
		gap, ok := errors.AsType[*replication.GapError](err)
		switch {
		case test.gap == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.gap != "" && (!ok || !strings.Contains(err.Error(), test.gap) || gap.From != test.from.Pos.LSN):
			t.Errorf("%s: %v, want a gap behind %s: %q", test.name, err, test.from.Pos, test.gap)
		}
	}
}

// Whoever accepts a gap on the wrong server loses more than the gap.
func TestResumeTellsAnotherServerFromAGap(t *testing.T) {
	cluster, fork := written(3, 0x3000, 0, 0), written(3, 0x3000, 0, 0)
	cluster.SystemID, fork.TimelineBegan.LSN = "7001", 0x1800
	for name, test := range map[string]struct {
		from  *Checkpoint
		start replication.LSN
		want  bool
	}{
		"a later timeline":     {written(4, 0x3000, 0, 0), 0x3000, true},
		"the same by number":   {fork, 0x3000, true},
		"another cluster":      {cluster, 0x3000, true},
		"a slot that is ahead": {written(3, 0x3000, 0, 0), 0x3001, false},
	} {
		_, err := test.from.Resume(found(t, test.start))
		if gap, ok := errors.AsType[*replication.GapError](err); !ok || gap.OtherServer != test.want {
			t.Errorf("%s: %v, want a gap, of another server: %t", name, err, test.want)
		}
	}
}

// What was handed to Kafka may be there, whatever the checkpoint says.
func TestResumeKnowsWhatWasOnItsWay(t *testing.T) {
	inside := replication.Progress{Flushed: 0x1f00, Commit: 0x1f80, Index: 5}
	for _, test := range []struct {
		name string
		from *Checkpoint // of timeline 2, which was left at 0x2000
		sent replication.LSN
		want Resume
	}{
		{"behind all of it", written(2, 0x1f00, 0x1f80, 5), 0x1ff0, Resume{From: inside}},
		{"before it", written(2, 0x1f00, 0x1f80, 5), 0x2100, Resume{From: inside, Phantoms: Range{0x2000, 0x2100}}},
		{"right before it", written(2, 0x1f00, 0x1f80, 5), 0x2000, Resume{From: inside, Phantoms: Range{0x2000, 0x2000}}},
		{"before the checkpoint too", written(2, 0x2800, 0, 0), 0x2900, Resume{From: replication.Progress{Flushed: 0x2000}, Phantoms: Range{0x2000, 0x2900}}},
		{"the checkpoint covers more", written(2, 0x2800, 0, 0), 0x2700, Resume{From: replication.Progress{Flushed: 0x2000}, Phantoms: Range{0x2000, 0x2800}}},
	} {
		f := found(t, 0x1f00)
		f.Sent = test.sent
		if got, err := test.from.Resume(f); err != nil || got != test.want {
			t.Errorf("promoted %s: %+v, want %+v: %v", test.name, got, test.want, err)
		}
	}
}

// While a session skips what it resumed behind, its own progress lags what is written.
func TestMergeNeverFallsBack(t *testing.T) {
	type p = replication.Progress
	whole, inside := p{Flushed: 100}, p{Flushed: 100, Commit: 120, Index: 7}
	for _, test := range []struct{ resumed, now, want p }{
		{whole, p{Flushed: 50}, whole},
		{whole, p{Flushed: 100}, whole},
		{whole, p{Flushed: 150}, p{Flushed: 150}},
		{whole, p{Flushed: 50, Commit: 120, Index: 3}, p{Flushed: 100, Commit: 120, Index: 3}},
		{inside, p{Flushed: 50}, inside},
		{inside, p{Flushed: 100}, inside},
		{inside, p{Flushed: 110}, p{Flushed: 110, Commit: 120, Index: 7}}, // transactions without events lie before it
		{inside, p{Flushed: 110, Commit: 120, Index: 5}, p{Flushed: 110, Commit: 120, Index: 7}},
		{inside, p{Flushed: 110, Commit: 120, Index: 9}, p{Flushed: 110, Commit: 120, Index: 9}},
		{inside, p{Flushed: 130}, p{Flushed: 130}},
		{inside, p{Flushed: 130, Commit: 140, Index: 1}, p{Flushed: 130, Commit: 140, Index: 1}},
	} {
		if got := Merge(test.resumed, test.now); got != test.want {
			t.Errorf("resumed at %+v, now at %+v: %+v, want %+v", test.resumed, test.now, got, test.want)
		}
	}
}

func TestParseReadsWhatIsWritten(t *testing.T) {
	want := written(3, 0x16B374D848, 0x16B374D900, 1<<40)
	want.Time, want.Snapshot = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "100:200:150"
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"pos":"16/B374D848"`) {
		t.Errorf("%s does not show the position as an LSN", text)
	}
	if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v: %v, want %+v", got, err, want)
	}
}

func TestParseRefuses(t *testing.T) {
	const good = `{"version":1,"system_id":"7000","timeline":3,"pos":"0/3000","time":"2026-01-02T03:04:05Z","membership":{}}`
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", "{}", "null", "[]", good[:40],
		strings.Replace(good, `"version":1`, `"version":2`, 1),
		strings.Replace(good, `"7000"`, `""`, 1),
		strings.Replace(good, `"timeline":3`, `"timeline":-3`, 1),
		strings.Replace(good, `0/3000`, `0/0`, 1),
		strings.Replace(good, `0/3000`, `3000`, 1),
		strings.Replace(good, `0/3000`, `0/3000x`, 1),
		strings.Replace(good, `0/3000`, `100000000/3000`, 1),
	} {
		_, err := Parse([]byte(text))
		if _, ok := errors.AsType[*CorruptError](err); !ok {
			t.Errorf("%q: %v, want a CorruptError", text, err)
		}
	}
}

func TestShared(t *testing.T) {
	other, fork := written(3, 0x3000, 0, 0), written(3, 0x3000, 0, 0)
	other.SystemID, fork.TimelineBegan.LSN = "7001", 0x1800
	for _, test := range []struct {
		name  string
		from  *Checkpoint
		want  replication.LSN
		gap   string
		other bool
	}{
		{"on the server's timeline", written(3, 0x3000, 0, 0), math.MaxUint64, "", false},
		{"as far as the WAL goes", written(3, 0x3200, 0, 0), math.MaxUint64, "", false},
		{"on one that was left behind it", written(2, 0x1f00, 0, 0), 0x2000, "", false},
		{"on one that was left before it", written(2, 0x4000, 0, 0), 0x2000, "", false},
		{"left inside of a transaction", written(2, 0x1f00, 0x4000, 7), 0x2000, "", false},
		{"restored from an older copy", written(3, 0x3201, 0, 0), 0, "restored from an older copy", false},
		{"restored, inside of a transaction", written(3, 0x3000, 0x3300, 5), 0, "restored from an older copy", false},
		{"another cluster", other, 0, "system identifier 7001", true},
		{"another timeline of that number", fork, 0, "another standby was promoted", true},
		{"a timeline of another branch", written(4, 0x3000, 0, 0), 0, "timeline 4", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.from.Shared(found(t, 0))
			if got != test.want || (err == nil) != (test.gap == "") {
				t.Fatalf("got %s, %v, want %s", got, err, test.want)
			}
			if gap, ok := errors.AsType[*replication.GapError](err); err != nil && (!ok || gap.OtherServer != test.other || gap.From != test.from.Pos.LSN || !strings.Contains(err.Error(), test.gap)) {
				t.Errorf("got %v, want a gap: %s", err, test.gap)
			}
		})
	}
}
