package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge/replay"
	"github.com/walferry/walferry/checkpoint"
)

// slowReplay begins a replay of n events of one transaction, 100 a second, and returns what it left to resume after the function
// has run.
func (w *world) slowReplay(n int, meanwhile func(id string)) *replay.State {
	w.t.Helper()
	w.drainAll()
	from := w.window().To.LSN
	w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'k', 'T', to_jsonb(n) FROM generate_series(1, $1) n", n)
	w.drainAll()
	ctx, stop := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := replay.Run(ctx, replay.Options{
			Options: w.options("", zerolog.Disabled), Ask: replay.Ask{FromLSN: from}, Target: replay.Target{Prefix: "replay."}, Rate: 100, Say: func(string) {},
		})
		ended <- err
	}()
	var state *replay.State
	await(w.t, "a part of it to be replayed", func() error {
		if len(w.replayed()) < 50 || len(w.window().Interrupted) != 1 {
			return errors.New("not yet")
		}
		state = w.window().Interrupted[0]
		return nil
	})
	meanwhile(state.ID)
	stop()
	if err := <-ended; err == nil {
		w.t.Fatal("the replay came to its end")
	}
	return w.window().Interrupted[0]
}

// A replay at a low rate keeps what it has reached although no run of events is full, and is not disturbed by what becomes of the
// publication. Where its end or what it has reached is no part of the server's history any more it is not resumed.
func TestReplayIsResumedWhereItWas(t *testing.T) {
	w := retained(t, newest(t), nil)
	state := w.slowReplay(300, func(id string) {
		w.exec("CREATE TABLE other (x int)")
		w.exec("ALTER PUBLICATION walferry ADD TABLE other")
		w.exec("ALTER PUBLICATION walferry DROP TABLE other")
		await(t, "what is reached to be kept", func() error {
			if s := w.window().Interrupted[0]; s.OpenIndex < 50 {
				return fmt.Errorf("it is %+v", s)
			}
			return nil
		})
	})
	cfg, err := w.options("", zerolog.Disabled).Checkpoints("")
	if err != nil {
		t.Fatal(err)
	}
	notes := &checkpoint.Notes{Config: cfg}
	defer notes.Close()
	resume := func(edit func(*replay.State)) error {
		t.Helper()
		s := *state
		edit(&s)
		value, err := json.Marshal(s)
		if err == nil {
			err = notes.Put(t.Context(), cfg.Key+"/replay/"+s.ID, value)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.replaying(func(o *replay.Options) { o.Resume, o.Rate = s.ID, 0 })
		return err
	}
	before := len(w.replayed())
	for what, edit := range map[string]func(*replay.State){
		"a cluster":  func(s *replay.State) { s.SystemID = "1" },
		"a timeline": func(s *replay.State) { s.Timeline += 7 },
	} {
		if err := resume(edit); err == nil || !strings.Contains(err.Error(), "which this server does not have") {
			t.Errorf("resumed on %s that is another: %v", what, err)
		}
	}
	if n := len(w.replayed()); n != before {
		t.Errorf("%d events were replayed", n-before)
	}
	if err := resume(func(*replay.State) {}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range w.replayed() {
		seen[header(r, "walferry-position")] = true
	}
	if again := len(w.replayed()) - len(seen); len(seen) != 300 || again > 150 {
		t.Errorf("%d events were replayed, want 300, and %d again", len(seen), again)
	}
}

// The copy of the slot lets go of what is replayed: however slow a replay is, the server does not keep for it what lies behind.
func TestReplayLetsGoOfWAL(t *testing.T) {
	w := retained(t, newest(t), nil)
	w.drainAll()
	from := w.window().To.LSN
	for n := range 20 {
		w.order("k", fmt.Sprint(n))
	}
	w.drainAll()
	to := w.window().To.LSN
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := replay.Run(ctx, replay.Options{
			Options: w.options("", zerolog.Disabled), Ask: replay.Ask{FromLSN: from}, Target: replay.Target{Prefix: "replay."}, Rate: 4, Say: func(string) {},
		})
		ended <- err
	}()
	await(t, "the copy to move", func() error {
		at := w.query("SELECT coalesce(max(confirmed_flush_lsn), '0/0')::text FROM pg_replication_slots WHERE slot_name LIKE 'walferry_replay_%' AND database = $1", w.prefix)
		if lsn := lsnOf(t, at); lsn <= from || lsn >= to {
			return fmt.Errorf("it stands at %s, the replay is of %s to %s", at, from, to)
		}
		return nil
	})
	stop()
	if err := <-ended; err == nil {
		t.Error("the replay came to its end")
	}
	if at := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain"); lsnOf(t, at) > from {
		t.Errorf("the retention slot has moved to %s", at)
	}
}

// What cannot be is refused, and not replayed as nothing.
func TestReplayRefusesWhatCannotBe(t *testing.T) {
	w := retained(t, newest(t), nil)
	w.drainAll()
	first := w.window().To.LSN
	w.order("k", "1")
	w.drainAll()
	last := w.window().To.LSN
	w.order("k", "2")
	w.drainAll()
	w.mustRefuse(replay.Ask{FromLSN: last, ToLSN: first}, "where the replay would begin")
	w.mustRefuse(replay.Ask{FromLSN: first, ToTime: time.Now().Add(-48 * time.Hour)}, "outside of what can be replayed")
	for prefix, says := range map[string]string{
		"my replay/":             "choose another --topic-prefix",
		strings.Repeat("x", 240): "choose another --topic-prefix", // and the name of the topic is too long
	} {
		report, err := w.replaying(func(o *replay.Options) { o.Ask.FromLSN, o.Target.Prefix = first, prefix })
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("prefix %q: %v, %+v", prefix, err, report)
		}
	}
	_, stderr := walferry(t, "replay", "--config", w.configFile(""), "--from-time", "2126-11-30T00:00:00Z").exit(64)
	if !strings.Contains(stderr, "lies in the future") {
		t.Errorf("a time of the future: %s", stderr)
	}
	small := "1000"
	topic := "replay." + w.prefix + ".order"
	if _, err := w.kafkaAdmin().CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": &small}, topic); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
		SELECT 'order', 'k', 'T', to_jsonb(string_agg(md5(n::text), '')) FROM generate_series(1, 200) n`)
	w.drainAll()
	_, err := w.replaying(func(o *replay.Options) { o.Ask.FromLSN = first })
	if err == nil || !strings.Contains(err.Error(), "raise max.message.bytes") || strings.Contains(err.Error(), "poison") {
		t.Errorf("a record that the brokers refuse: %v", err)
	}
}
