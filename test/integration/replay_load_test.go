package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/replay"
)

// Replays from saved positions, while the bridge runs under load.
func TestReplayUnderLoad(t *testing.T) { replayingUnderLoad(t, newest(t), 4, newSeed(t)) }

// replayedRange is one replay, of which every event must be there.
type replayedRange struct {
	prefix string
	rng    replay.Range
	killed bool
}

// replayingUnderLoad replays n times from positions that were saved while a bridge runs under load; some of the replays are killed, and
// resumed. Each must have exactly what the bridge has published from the one position to the other.
func replayingUnderLoad(t *testing.T, admin string, n int, random *rand.Rand) (events, copies int) {
	w := retained(t, admin, func(c *config.Config) { c.Checkpoint.Interval = 200 * time.Millisecond })
	l := w.startLoad(random)
	c := walferry(t, "run", "--config", w.configFile(""))
	c.awaitStreaming()
	o := w.options("", zerolog.Disabled)
	var ranges []replayedRange
	for round := range n {
		l.more(50)
		saved, err := replay.Save(t.Context(), o, fmt.Sprintf("save-%d", round), false)
		if err != nil {
			t.Fatal(err)
		}
		l.more(50)
		await(t, "a later checkpoint", func() error {
			if to := w.window().To.LSN; to <= saved.Pos.LSN {
				return fmt.Errorf("it is at %s, as %s was saved", to, saved.Pos)
			}
			return nil
		})
		r := replayedRange{prefix: fmt.Sprintf("r%d.", round), killed: random.IntN(3) == 0}
		ask := replay.Ask{FromName: fmt.Sprintf("save-%d", random.IntN(round+1))}
		if to := w.window().To.LSN; random.IntN(2) == 0 {
			ask.ToLSN = to
		}
		confirmed := w.confirmed()
		if r.killed {
			r.rng = w.killReplay(r.prefix, ask.FromName, random)
		} else {
			report, err := w.replaying(func(o *replay.Options) { o.Ask, o.Target.Prefix = ask, r.prefix })
			if err != nil {
				t.Fatalf("round %d, %+v: %v", round, ask, err)
			}
			r.rng = report.Range
		}
		if now := w.confirmed(); now < confirmed {
			t.Errorf("round %d: the slot of the bridge stood at %s, and stands at %s", round, confirmed, now)
		}
		ranges = append(ranges, r)
		w.mustRefuse(replay.Ask{FromLSN: w.window().From.LSN - 1}, "outside of what can be replayed")
	}
	l.audit()
	if sessions := len(c.logLines("streaming")); sessions != 1 {
		t.Errorf("the bridge has had %d sessions, want 1", sessions)
	}
	c.terminate()
	await(t, "the copies of the slot to be gone", func() error {
		if left := w.query("SELECT coalesce(string_agg(slot_name, ' '), '') FROM pg_replication_slots WHERE slot_name LIKE 'walferry_replay_%' AND database = $1", w.prefix); left != "" {
			return errors.New(left)
		}
		return nil
	})
	live := map[walPosition]*kgo.Record{}
	w.eachRecord(func(r *kgo.Record) { live[positionOf(t, r)] = r })
	for _, r := range ranges {
		copies += w.compareReplay(r, live)
	}
	return len(live), copies
}

// killReplay kills a replay, and resumes it until it has come to its end.
func (w *world) killReplay(prefix, from string, random *rand.Rand) replay.Range {
	w.t.Helper()
	c := walferry(w.t, "replay", "--config", w.configFile(""), "--from", from, "--topic-prefix", prefix, "--rate", "2000")
	<-time.After(time.Duration(500+random.IntN(2500)) * time.Millisecond)
	_ = c.cmd.Process.Kill() // it may have come to its end
	<-c.done
	var interrupted *replay.State
	for _, s := range w.window().Interrupted {
		if s.Target.Prefix == prefix {
			interrupted = s
		}
	}
	if interrupted == nil { // killed before it began, or behind its end
		report, err := w.replaying(func(o *replay.Options) { o.Ask.FromName, o.Target.Prefix = from, prefix })
		if err != nil {
			w.t.Fatal(err)
		}
		return report.Range
	}
	var err error
	awaitWithin(w.t, patience, "the replay to be resumed", func() error { // Postgres may not have noticed yet that the other is gone
		_, err = w.replaying(func(o *replay.Options) { o.Resume, o.Ask = interrupted.ID, replay.Ask{} })
		if err != nil && strings.Contains(err.Error(), "already exists") {
			return err
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return interrupted.Range
}

func positionOf(t *testing.T, r *kgo.Record) walPosition {
	t.Helper()
	p, err := parsePosition(header(r, "walferry-position"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// compareReplay fails unless a replay has all events of its range, each as it was published first, and nothing else.
func (w *world) compareReplay(r replayedRange, live map[walPosition]*kgo.Record) (copies int) {
	w.t.Helper()
	replays := *w
	replays.prefix = r.prefix + w.prefix
	seen, last := map[walPosition]bool{}, map[string]walPosition{}
	replays.eachRecord(func(rec *kgo.Record) {
		copies++
		at := positionOf(w.t, rec)
		original := live[at]
		switch {
		case original == nil || at.commit < r.rng.From.LSN || at.commit >= r.rng.To.LSN:
			w.t.Errorf("%s: event %v is not of %s to %s", r.prefix, at, r.rng.From, r.rng.To)
			return
		case rec.Topic != r.prefix+original.Topic, string(rec.Key) != string(original.Key), string(rec.Value) != string(original.Value), header(rec, "id") != header(original, "id"):
			w.t.Errorf("%s: event %v is not as it was published", r.prefix, at)
		}
		where := fmt.Sprintf("%s/%d", rec.Topic, rec.Partition)
		if !seen[at] && at.compare(last[where]) <= 0 {
			w.t.Errorf("%s: event %v came behind %v", r.prefix, at, last[where])
		}
		if !seen[at] {
			last[where] = at
		}
		seen[at] = true
	})
	want := 0
	for at := range live {
		if at.commit >= r.rng.From.LSN && at.commit < r.rng.To.LSN {
			want++
		}
	}
	if len(seen) != want || copies != want && !r.killed {
		w.t.Errorf("%s: %d events in %d records from %s to %s, want %d (killed %t)", r.prefix, len(seen), copies, r.rng.From, r.rng.To, want, r.killed)
	}
	w.t.Logf("%s%d events from %s to %s, %d of them again after a kill", r.prefix, len(seen), r.rng.From, r.rng.To, copies-len(seen))
	return copies
}
