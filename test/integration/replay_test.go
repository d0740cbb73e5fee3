package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/replay"
	"github.com/walferry/walferry/internal/servers"
)

// retaining makes a world keep WAL for replays.
func retaining(c *config.Config) { c.Databases[0].Retain.MaxBytes = 1 << 30 }

// retained returns a world that keeps WAL, and lets go of it in the end.
func retained(t *testing.T, admin string, edit func(*config.Config)) *world {
	t.Helper()
	w := newWorld(t, admin, func(c *config.Config) {
		retaining(c)
		if edit != nil {
			edit(c)
		}
	})
	t.Cleanup(func() { w.dropSlot(w.prefix + "_retain") })
	return w
}

// replaying runs a replay of the world in this process.
func (w *world) replaying(edit func(*replay.Options)) (*replay.Report, error) {
	w.t.Helper()
	o := replay.Options{Options: w.options("", zerolog.Disabled), Target: replay.Target{Prefix: "replay."}, Say: func(string) {}}
	edit(&o)
	return replay.Run(w.t.Context(), o)
}

// replayed returns what is in the topics that a replay has written to, in each partition's order.
func (w *world) replayed() []*kgo.Record {
	w.t.Helper()
	replays := *w
	replays.prefix = "replay." + w.prefix
	return replays.records()
}

// window is what can be replayed of the world.
func (w *world) window() *replay.Window {
	w.t.Helper()
	window, err := replay.ReadWindow(w.t.Context(), w.options("", zerolog.Disabled))
	if err != nil {
		w.t.Fatal(err)
	}
	return window
}

// slotState is all that replays must leave alone.
func (w *world) slotState() string {
	w.t.Helper()
	return w.query("SELECT string_agg(concat_ws(' ', slot_name, restart_lsn, confirmed_flush_lsn, temporary), '; ' ORDER BY slot_name) FROM pg_replication_slots WHERE database = $1", w.prefix)
}

// mustRefuse fails unless a replay ends with an error that says this, before it has published anything.
func (w *world) mustRefuse(ask replay.Ask, parts ...string) {
	w.t.Helper()
	before := len(w.replayed())
	_, err := w.replaying(func(o *replay.Options) { o.Ask = ask })
	if err == nil {
		w.t.Fatalf("%+v was replayed", ask)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			w.t.Errorf("it does not say %q, but: %v", part, err)
		}
	}
	if after := len(w.replayed()); after != before {
		w.t.Errorf("%d records were published all the same", after-before)
	}
}

func lsnOf(t *testing.T, text string) pglogrepl.LSN {
	t.Helper()
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// idsOf returns those of records, in their order.
func idsOf(records []*kgo.Record) (list []string) {
	for _, r := range records {
		list = append(list, header(r, "id"))
	}
	return list
}

// What was published between two positions is published again, byte for byte and in order, to topics of its own; neither the
// slots nor the checkpoint are touched. What is not kept is refused.
func TestReplay(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := retained(t, admin, nil)
		o := w.options("", zerolog.Disabled)
		w.order("k", `"before"`)
		w.drainAll()
		if _, err := replay.Save(t.Context(), o, "deploy", false); err != nil {
			t.Fatal(err)
		}
		want := w.order("k", `"first"`)
		w.exec("BEGIN")
		want = concat(want, w.order("k", `"in a transaction"`), w.order("k", `"with another"`))
		w.exec("COMMIT")
		w.drainAll()
		middle := w.window().To.LSN
		last := w.order("k", `"last"`)
		w.drainAll()
		w.awaitNoWalsender()

		slots, live := w.slotState(), w.records()
		report, err := w.replaying(func(o *replay.Options) { o.Ask.FromName = "deploy" })
		if err != nil {
			t.Fatal(err)
		}
		copies := w.replayed()
		if report.Events != 4 || report.Transactions != 3 || !report.Complete || len(copies) != 4 {
			t.Errorf("the report is %+v, with %d records; want 4 events of 3 transactions", report, len(copies))
		}
		for i, r := range copies {
			original := live[i+1]
			if r.Topic != "replay."+original.Topic || r.Partition != original.Partition || !bytes.Equal(r.Key, original.Key) || !bytes.Equal(r.Value, original.Value) {
				t.Errorf("record %d is %s/%d %q, want that of %s/%d %q", i, r.Topic, r.Partition, r.Key, original.Topic, original.Partition, original.Key)
			}
			for _, h := range []string{"id", "walferry-position"} {
				if header(r, h) != header(original, h) {
					t.Errorf("record %d has %s %q, want %q", i, h, header(r, h), header(original, h))
				}
			}
			if header(r, "walferry-replay-id") != report.ID {
				t.Errorf("record %d is of replay %q, want %q", i, header(r, "walferry-replay-id"), report.ID)
			}
		}
		if now := w.slotState(); now != slots {
			t.Errorf("the slots were %s and are %s", slots, now)
		}
		report, err = w.replaying(func(o *replay.Options) {
			o.Ask.FromLSN, o.DryRun = middle, true
		})
		if err != nil || report.Events != 1 || report.First != report.Last || len(w.replayed()) != 4 {
			t.Errorf("a dry run from %s: %+v, %v; want 1 event and no record", middle, report, err)
		}
		var out bytes.Buffer
		if _, err = w.replaying(func(o *replay.Options) {
			o.Ask.FromName, o.Ask.ToLSN, o.Lines, o.Target = "deploy", middle, &out, replay.Target{}
		}); err != nil {
			t.Fatal(err)
		}
		var lines []event
		for line := range strings.Lines(out.String()) {
			var l struct {
				Topic, Key, Value, Position string
				Headers                     map[string]string
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if l.Topic != w.prefix+".order" || l.Position == "" {
				t.Errorf("a line has topic %q and position %q", l.Topic, l.Position)
			}
			lines = append(lines, event{id: l.Headers["id"], key: l.Key, value: l.Value})
		}
		mustEqual(t, "lines", lines, want)
		if _, err = w.replaying(func(o *replay.Options) { o.Ask.FromLSN, o.Target = middle, replay.Target{InPlace: true} }); err != nil {
			t.Fatal(err)
		}
		if again := w.records()[len(live):]; len(again) != 1 || header(again[0], "id") != last[0].id {
			t.Errorf("in place came %q, want %q", idsOf(again), last[0].id)
		}

		window := w.window()
		w.mustRefuse(replay.Ask{FromLSN: window.From.LSN - 1}, "outside of what can be replayed", "from "+window.From.String()+" to "+window.To.String(), "--from-table")
		w.mustRefuse(replay.Ask{FromLSN: window.To.LSN + 1}, "outside of what can be replayed")
		w.mustRefuse(replay.Ask{FromLSN: window.From.LSN, ToLSN: window.To.LSN + 1}, "outside of what can be replayed")
		w.mustRefuse(replay.Ask{FromTime: time.Now().Add(-time.Hour)}, "outside of what can be replayed")
		w.mustRefuse(replay.Ask{FromName: "nobody"}, `no checkpoint is saved as "nobody"`)
		w.drainAll() // the bridge goes on as if nothing had been
		if n := w.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name LIKE 'walferry_replay_%' AND database = $1", w.prefix); n != "0" {
			t.Errorf("%s slots of replays are left", n)
		}
	})
}

// The server throws the retention slot away alone: the bridge publishes on, names the setting before and says afterwards what
// to do. A slot that only moves when its bounds demand it is no idle one.
func TestRetentionSlotDiesAlone(t *testing.T) {
	problem := func(t *testing.T, r *running, parts ...string) {
		t.Helper()
		await(t, "what the bridge says of the retention slot", func() error {
			s := r.bridge.Status().Retention
			if s == nil {
				return errors.New("nothing is known of it")
			}
			for _, part := range parts {
				if !strings.Contains(s.Problem, part) {
					return fmt.Errorf("its problem is %q, want %q in it", s.Problem, part)
				}
			}
			if len(parts) == 0 && s.Problem != "" {
				return errors.New(s.Problem)
			}
			return nil
		})
	}
	begin := func(t *testing.T, pg *servers.PG) (*world, *running) {
		w := retained(t, pg.DSN("postgres"), func(c *config.Config) { c.Checkpoint.Interval = 100 * time.Millisecond })
		o := w.options("", zerolog.InfoLevel)
		o.RetainEvery = 100 * time.Millisecond
		r := w.start(o)
		r.awaitState(bridge.Streaming)
		return w, r
	}
	for _, version := range []string{"14", "18"} {
		t.Run("max_slot_wal_keep_size of "+version, func(t *testing.T) {
			w, r := begin(t, ownPostgres(t, version, servers.PostgresOptions{
				InitArgs: []string{"--wal-segsize=1"},
				Settings: map[string]string{"max_slot_wal_keep_size": "8MB", "min_wal_size": "2MB", "max_wal_size": "2MB"},
			}))
			w.exec("CREATE TABLE filler (x text)")
			want := w.order("k", `"kept"`)
			kept := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain")
			problem(t, r, "max_slot_wal_keep_size is 8.0 MiB", "retain.max_bytes not below it")
			await(t, "the retention slot to be lost", func() error {
				w.exec("INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 2000)")
				w.exec("CHECKPOINT") // lets the other slot go on
				w.awaitCaughtUp()
				if status := w.query("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain"); status != "lost" {
					return fmt.Errorf("wal_status is %s", status)
				}
				return nil
			})
			problem(t, r, "is lost", "`walferry init` makes a new one")
			want = concat(want, w.order("k", `"without it"`))
			w.awaitCaughtUp()
			w.mustPublish("order", want)
			w.mustRefuse(replay.Ask{FromLSN: lsnOf(t, kept)}, "is lost", "walferry init")
			w.setup()
			problem(t, r, "max_slot_wal_keep_size is 8.0 MiB")
			if s := r.bridge.Status(); s.Sessions != 1 {
				t.Errorf("%d sessions, want 1", s.Sessions)
			}
			r.drain()
		})
	}
	t.Run("idle_replication_slot_timeout", func(t *testing.T) {
		w, r := begin(t, ownPostgres(t, "18", servers.PostgresOptions{Settings: map[string]string{"idle_replication_slot_timeout": "2s"}}))
		w.order("k", `"kept"`)
		problem(t, r)
		first := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain")
		for began := time.Now(); time.Since(began) < 5*time.Second; {
			w.exec("SELECT pg_sleep(0.2)")
			w.exec("CHECKPOINT") // looks for idle slots
		}
		problem(t, r)
		if now := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain"); now != first {
			t.Errorf("it moved from %s to %s, though no bound demands it", first, now)
		}
		r.drain()
		o := w.options("", zerolog.InfoLevel) // uses it once a minute
		r = w.start(o)
		r.awaitState(bridge.Streaming)
		problem(t, r, "idle_replication_slot_timeout is 2s", "set it to 3m0s or more")
		r.drain()
	})
}

// Without retain a slot that was kept for replays is still there, and fills the disk: the bridge says so until it is gone.
func TestRetentionSlotThatIsLeft(t *testing.T) {
	w := retained(t, newest(t), nil)
	o := w.options("", zerolog.InfoLevel)
	o.Database.Retain, o.RetainEvery = config.Retain{}, 100*time.Millisecond
	registry := prometheus.NewRegistry()
	o.Metrics = bridge.NewMetrics(registry, "test", "test")
	r := w.start(o)
	w.order("k", `"kept"`)
	await(t, "the slot that is left to be noticed", func() error {
		s := r.bridge.Status().Retention
		if s == nil || !strings.Contains(s.Problem, "pg_drop_replication_slot('"+w.prefix+"_retain')") || s.WAL == 0 {
			return fmt.Errorf("the status is %+v", s)
		}
		return nil
	})
	if !strings.Contains(r.log.String(), "nobody moves slot") {
		t.Error("the log does not say it")
	}
	gauges := func() (n int) {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), "walferry_retention_") {
				n += len(f.GetMetric())
			}
		}
		return n
	}
	if gauges() == 0 {
		t.Error("no metric shows it")
	}
	w.dropSlot(w.prefix + "_retain")
	await(t, "nothing to be said any more", func() error {
		if s := r.bridge.Status().Retention; s != nil || gauges() > 0 {
			return fmt.Errorf("%d metrics, status %+v", gauges(), s)
		}
		return nil
	})
	r.drain()
}

// The retention slot goes no further than its bounds demand; the bridge says what it costs and what is wrong with it, and goes on
// without it.
func TestRetentionSlot(t *testing.T) {
	onEveryPostgres(t, func(t *testing.T, admin string) {
		w := retained(t, admin, func(c *config.Config) { c.Databases[0].Retain.MaxBytes = 8 << 20 })
		w.exec("CREATE TABLE filler (x text)")
		o := w.options("", zerolog.InfoLevel)
		o.RetainEvery = 100 * time.Millisecond
		r := w.start(o)
		r.awaitState(bridge.Streaming)
		status := func(check func(*bridge.RetentionStatus) error) {
			t.Helper()
			await(t, "the retention slot", func() error {
				s := r.bridge.Status().Retention
				if s == nil {
					return errors.New("nothing is known of it")
				}
				return check(s)
			})
		}
		want := w.order("k", `"kept"`)
		first := w.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.prefix+"_retain")
		status(func(s *bridge.RetentionStatus) error {
			if s.Problem != "" || s.From != first {
				return fmt.Errorf("it begins at %s, want %s; problem %q", s.From, first, s.Problem)
			}
			return nil
		})
		w.exec("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 30000)") // 30 MB and more
		want = concat(want, w.order("k", `"behind it"`))
		status(func(s *bridge.RetentionStatus) error {
			if end := lsnOf(t, w.query("SELECT pg_current_wal_lsn()::text")); lsnOf(t, s.From) <= lsnOf(t, first) || end-lsnOf(t, s.From) > 9<<20 {
				return fmt.Errorf("it begins at %s with WAL up to %s, and began at %s", s.From, end, first)
			}
			if confirmed := w.confirmed(); lsnOf(t, s.From) > confirmed {
				return fmt.Errorf("it begins at %s, behind %s, which the bridge has confirmed", s.From, confirmed)
			}
			return nil
		})
		w.mustRefuse(replay.Ask{FromLSN: lsnOf(t, first)}, "outside of what can be replayed")
		w.dropSlot(w.prefix + "_retain")
		status(func(s *bridge.RetentionStatus) error {
			if !strings.Contains(s.Problem, "walferry init") {
				return fmt.Errorf("its problem is %q", s.Problem)
			}
			return nil
		})
		w.mustRefuse(replay.Ask{FromLSN: lsnOf(t, first)}, "does not exist", "`walferry init` makes it")
		if !strings.Contains(r.log.String(), "the slot that keeps WAL for replays needs somebody") {
			t.Error("the log says nothing of a retention slot that is gone")
		}
		want = concat(want, w.order("k", `"without it"`))
		w.awaitCaughtUp()
		w.mustPublish("order", want)
		w.setup()
		status(func(s *bridge.RetentionStatus) error {
			if s.Problem != "" {
				return errors.New(s.Problem)
			}
			return nil
		})
		r.drain()
	})
}

// A replay that is killed leaves no slot, and goes on where it was.
func TestReplayIsKilledAndResumed(t *testing.T) {
	w := retained(t, newest(t), nil)
	w.drainAll()
	from := w.window().To
	w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'key-' || n % 50, 'T', to_jsonb(n) FROM generate_series(1, 30000) n")
	w.drainAll()
	live := w.records()
	file := w.configFile("")
	c := walferry(t, "replay", "--config", file, "--from-lsn", from.String(), "--rate", "5000")
	await(t, "a part of it to be replayed", func() error {
		if len(w.window().Interrupted) == 0 || len(w.replayed()) < 3000 {
			return errors.New("not yet")
		}
		return nil
	})
	<-time.After(1500 * time.Millisecond) // what was reached is kept once a second
	c.kill()
	interrupted := w.window().Interrupted
	if len(interrupted) != 1 || interrupted[0].Reached.LSN < from.LSN || interrupted[0].OpenIndex == 0 {
		t.Fatalf("to be resumed are %+v, want one inside of the transaction", interrupted)
	}
	killed := len(w.replayed())
	stdout, _ := walferry(t, "replay", "--config", file, "--resume", interrupted[0].ID).exit(0) // also while the copy is still there
	await(t, "the copies of the slot to be gone", func() error {
		if n := w.query("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name LIKE 'walferry_replay_%'"); n != "0" {
			return errors.New(n + " are there")
		}
		return nil
	})
	copies := w.replayed()
	seen := map[string]bool{}
	for _, r := range copies {
		seen[header(r, "walferry-position")] = true
	}
	if len(seen) != len(live) || killed >= len(live) {
		t.Errorf("%d of %d events were replayed, %d before the kill", len(seen), len(live), killed)
	}
	if again := len(copies) - len(live); again > 15000 {
		t.Errorf("%d came again, more than three seconds' worth\n%s", again, stdout)
	}
	if left := w.window().Interrupted; len(left) != 0 {
		t.Errorf("%d replays can be resumed, want none", len(left))
	}
	walferry(t, "replay", "--config", file, "--resume", interrupted[0].ID).exit(1)
}

// A topic that a replay creates has as many partitions as the one that the events went to, and so the same keys in each.
func TestReplayTopicsArePartitionedAlike(t *testing.T) {
	w := retained(t, newest(t), nil)
	client, err := kgo.NewClient(kgo.SeedBrokers(shared.kafka...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 7, 1, nil, w.prefix+".order"); err != nil {
		t.Fatal(err)
	}
	w.drainAll()
	from := w.window().To.LSN
	for n := range 30 {
		w.order(fmt.Sprintf("key-%d", n), `"x"`)
	}
	w.drainAll()
	if _, err := w.replaying(func(o *replay.Options) { o.Ask.FromLSN = from }); err != nil {
		t.Fatal(err)
	}
	place := func(records []*kgo.Record) (places []string) {
		for _, r := range records {
			places = append(places, fmt.Sprintf("%s in %d", r.Key, r.Partition))
		}
		slices.Sort(places)
		return places
	}
	if live, copies := place(w.records()), place(w.replayed()); !slices.Equal(live, copies) {
		t.Errorf("keys are %q, and of the replay %q", live, copies)
	}
}

// What the table still holds can be replayed without any slot.
func TestReplayFromTable(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	want := concat(w.order("k", "1"), w.order("k", "2"))
	gone := w.order("k", "3")
	w.exec("DELETE FROM outbox WHERE id = $1", gone[0].id)
	var said []string
	o := replay.Options{Options: w.options("", zerolog.Disabled), Target: replay.Target{Prefix: "replay."}, Say: func(line string) { said = append(said, line) }}
	report, err := replay.FromTable(t.Context(), o)
	if err != nil || report.Events != 2 || !report.Complete {
		t.Fatalf("%+v, %v; want 2 events", report, err)
	}
	if text := strings.Join(said, "\n"); !strings.Contains(text, "deleted rows and logical messages are not among them") || !strings.Contains(text, "not the order of their commits") {
		t.Errorf("it says %q", text)
	}
	copies := w.replayed()
	if got := idsOf(copies); !slices.Equal(got, []string{want[0].id, want[1].id}) {
		t.Errorf("replayed are %q, want %q", got, want)
	}
	for _, r := range copies {
		if header(r, "walferry-source") != "table" || header(r, "walferry-position") != "" || header(r, "walferry-replay-id") != report.ID {
			t.Errorf("a record has headers %v", r.Headers)
		}
	}
	o.Ask.FromTime = time.Now()
	if _, err := replay.FromTable(t.Context(), o); err == nil || !strings.Contains(err.Error(), "track_commit_timestamp") {
		t.Errorf("with a time: %v, want track_commit_timestamp to be named", err)
	}
}

// A replay that is interrupted says how to go on.
func TestReplayIsInterrupted(t *testing.T) {
	w := retained(t, newest(t), nil)
	w.drainAll()
	from := w.window().To.LSN
	w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'k', 'T', to_jsonb(n) FROM generate_series(1, 5000) n")
	w.drainAll()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	o := replay.Options{Options: w.options("", zerolog.Disabled), Target: replay.Target{Prefix: "replay."}, Say: func(string) {}, Rate: 500}
	o.Ask.FromLSN = from
	report, err := replay.Run(ctx, o)
	if err == nil || report.Complete || report.Events == 0 || report.Events == 5000 || !strings.Contains(err.Error(), "--resume "+report.ID) {
		t.Fatalf("%+v, %v; want to be told how to resume", report, err)
	}
	o.Resume, o.Rate, o.Ask = report.ID, 0, replay.Ask{}
	if rest, err := replay.Run(t.Context(), o); err != nil || !rest.Complete || rest.Events+report.Events < 5000 {
		t.Errorf("%+v, %v; want the rest behind %d", rest, err, report.Events)
	}
}

// A shutdown of Postgres does not wait for a replay, which never confirms anything.
func TestReplayDoesNotHoldUpAShutdown(t *testing.T) {
	pg := ownPostgres(t, "18", servers.PostgresOptions{})
	w := retained(t, pg.DSN("postgres"), nil)
	w.drainAll()
	from := w.window().To.LSN
	w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) SELECT 'order', 'k', 'T', to_jsonb(n) FROM generate_series(1, 20000) n")
	w.drainAll()
	ended := make(chan error, 1)
	go func() {
		_, err := w.replaying(func(o *replay.Options) { o.Ask.FromLSN, o.Rate = from, 500 })
		ended <- err
	}()
	await(t, "the replay to begin", func() error {
		if len(w.window().Interrupted) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	began := time.Now()
	if err := pg.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the shutdown took %s", took)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "--resume") {
		t.Errorf("the replay ended with %v, want to be told how to resume", err)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.reconnect()
}
