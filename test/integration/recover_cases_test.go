package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/bridge/recovery"
	"github.com/walferry/walferry/bridge/replay"
	"github.com/walferry/walferry/bridge/setup"
	"github.com/walferry/walferry/internal/servers"
)

// produce publishes a record as a bridge would that has not written its checkpoint any more.
func (w *world) produce(topic string, e event, headers ...kgo.RecordHeader) {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	r := &kgo.Record{Topic: topic, Key: []byte(e.key), Value: []byte(e.value), Headers: append([]kgo.RecordHeader{{Key: "id", Value: []byte(e.id)}}, headers...)}
	if err := client.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
}

// transactionalID is what the checkpoints of a world are written with.
func (w *world) transactionalID() string {
	w.t.Helper()
	db := w.cfg.Databases[0]
	return "walferry/" + w.query("SELECT system_identifier::text FROM pg_control_system()") + "/" + db.Name + "/" + db.Slot
}

// leaveOpen publishes an event in a transaction that nobody commits but the function that it returns.
func (w *world) leaveOpen(transactionalID string, e event) (commit func()) {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...), kgo.TransactionalID(transactionalID))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	if err := client.BeginTransaction(); err != nil {
		w.t.Fatal(err)
	}
	r := &kgo.Record{Topic: w.prefix + ".order", Key: []byte(e.key), Value: []byte(e.value), Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(e.id)}}}
	if err := client.ProduceSync(w.t.Context(), r).FirstErr(); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		if err := client.EndTransaction(w.t.Context(), kgo.TryCommit); err != nil {
			w.t.Error(err)
		}
	}
}

// What was published behind the last checkpoint is not sent again, and neither is what is as young as that.
func TestRecoverFindsWhatIsPublished(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	published := w.order("k", "1")
	w.drainAll()
	w.awaitNoWalsender()
	second, missing := w.order("k", "2"), w.order("k", "3")
	w.produce(w.prefix+".order", second[0])
	w.produce(w.prefix+".order", event{id: "of somebody else", key: missing[0].key})
	// Behind what somebody has not committed yet. What a bridge has left open that is gone does not count.
	finish := w.leaveOpen("somebody", event{id: "open"})
	again := w.order("k", "4")
	w.produce(w.prefix+".order", again[0])
	w.leaveOpen(w.transactionalID(), missing[0])
	w.dropOwnSlot()
	time.AfterFunc(12*time.Second, finish)
	r := w.recover()
	r.mustSend(t, missing)
	r.mustSay(t, "waits for a transaction that is open in partition 0 of topic "+w.prefix+".order")
	if r.Candidates < 3 || r.Candidates > 4 {
		t.Errorf("%d candidates", r.Candidates)
	}
	w.mustPublish("order", concat(published, second, []event{{id: "of somebody else", key: "k"}, {id: "open"}}, again, missing))
}

// Wherever it is interrupted the next run does the rest, and nothing is sent twice.
func TestRecoverIsInterrupted(t *testing.T) {
	pg := forgetfulPostgres(t, "18")
	for _, at := range []string{"a new slot begins", "are candidates", "in no topic", "3 sent", "wrote the checkpoint", "dropped the lost slot", "created slot"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t, pg.DSN("postgres"), nil)
			w.exec("CREATE TABLE filler (id int, filler text)")
			want := w.order("k", "0")
			w.drainAll()
			for i := range 7 {
				want = concat(want, w.order("k", fmt.Sprint(i+1)))
			}
			w.loseSlot()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			sent, meanwhile := 0, []event(nil)
			_, err := w.recovering(ctx, recovery.Run, func(o *recovery.Options) {
				o.Kafka.MaxBuffered, o.Kafka.MaxRecord = 4<<10, 1<<10 // so that not all is sent at once
				say, note := o.Say, o.Sent
				o.Say = func(line string) {
					if strings.Contains(line, "a new slot begins") { // which sends this
						meanwhile = w.order("k", `"meanwhile"`)
					}
					if say(line); strings.Contains(line, at) {
						cancel()
					}
				}
				o.Sent = func(s recovery.Sent) error {
					if sent++; at == "3 sent" && sent == 3 {
						cancel()
					}
					return note(s)
				}
			})
			if done := at == "created slot"; (err == nil) != done {
				t.Fatalf("it ended with %v", err)
			}
			between := w.order("k", `"between"`)
			if at != "created slot" {
				r := w.recover()
				if at == "wrote the checkpoint" || at == "dropped the lost slot" {
					r.mustSend(t, concat(meanwhile, between))
				}
			}
			want = concat(want, meanwhile, between, w.order("k", `"late"`))
			w.drainAll()
			w.mustPublish("order", want)
		})
	}
}

// A slot that is whole but ahead of its checkpoint stays: what it has skipped is published.
func TestRecoverWhatASlotHasSkipped(t *testing.T) {
	for name, change := range map[string]string{
		"recreated": "SELECT pg_drop_replication_slot('SLOT'); SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')",
		"advanced":  "SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, newest(t), nil)
			want := w.order("k", "1")
			w.drainAll()
			w.awaitNoWalsender()
			skipped := w.order("k", "2")
			for statement := range strings.SplitSeq(strings.ReplaceAll(change, "SLOT", w.prefix), "; ") {
				w.exec(statement)
			}
			w.exec(`SELECT pg_logical_emit_message(true, 'outbox', '{"id":"m","aggregatetype":"order","aggregateid":"k","payload":1}')`)
			ahead := w.order("k", "3")
			before := w.confirmed()
			r := w.recover()
			r.mustSend(t, concat(skipped, ahead))
			r.mustSay(t, "ahead of the checkpoint", "keeps the slot", "a second time")
			if w.confirmed() != before {
				t.Error("the slot has moved")
			}
			w.drainAll()
			w.mustPublish("order", concat(want, skipped, ahead, []event{{id: "m", key: "k", value: "1"}}, ahead))
		})
	}
}

// Rows that were written while nobody published the table may lie before the checkpoint: every row is looked for.
func TestRecoverWhatAPublicationHasLeftOut(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	published := w.order("k", "1")
	w.drainAll()
	w.exec("ALTER PUBLICATION walferry DROP TABLE outbox")
	missing := w.order("k", "2")
	w.exec("ALTER PUBLICATION walferry ADD TABLE outbox")
	w.mustStop(bridge.Gap, "walferry recover")
	r := w.recover()
	r.mustSend(t, missing)
	r.mustSay(t, "every row is a candidate", "taken out of the publication", "from the beginning")
	late := w.order("k", "3")
	w.drainAll()
	w.mustPublish("order", concat(published, missing, late))
}

// Ids of any type, also the same in two tables, payloads that are bytes, a column to order by, partitions.
func TestRecoverTablesOfAnyKind(t *testing.T) {
	w := bareWorld(t, newest(t), "", func(c *config.Config) {
		outboxes(4)(c)
		c.Databases[0].Outbox[0].OrderColumn = "at"
		c.Databases[0].Outbox[1].Topic = c.Databases[0].Slot + ".second"
	})
	w.exec("CREATE TABLE outbox_0 (id bigint, at int, aggregatetype text, aggregateid bigint, type text, payload bytea)")
	w.exec("CREATE TABLE outbox_1 (id bigint, aggregatetype text, aggregateid text, type text, payload text)")
	w.exec("CREATE TABLE outbox_2 (id text, aggregatetype text, aggregateid text, type text, payload json)")
	w.exec("CREATE TABLE outbox_3 (id uuid, n int, aggregatetype text, aggregateid text, type text, payload jsonb) PARTITION BY RANGE (n)")
	w.exec("CREATE TABLE outbox_3_0 PARTITION OF outbox_3 FOR VALUES FROM (0) TO (10)")
	w.exec("CREATE TABLE outbox_3_1 PARTITION OF outbox_3 FOR VALUES FROM (10) TO (20)")
	w.setup()
	insert := func(from, to int) {
		for i := from; i < to; i++ {
			w.exec(fmt.Sprintf("INSERT INTO outbox_0 VALUES (%d, %d, 'order', 7, NULL, '\\x00%02x')", i, 100-i, i))
			w.exec(fmt.Sprintf("INSERT INTO outbox_1 VALUES (%d, 'order', '7', NULL, 'text %[1]d')", i))
			w.exec(fmt.Sprintf("INSERT INTO outbox_2 VALUES ('id-%d', 'order', '8', 'T', '{\"a\" :%[1]d}')", i))
			w.exec(fmt.Sprintf("INSERT INTO outbox_3 VALUES ('%s', %d, 'invoice', '9', 'T', NULL)", numberedID(i), i))
		}
	}
	insert(5, 8)
	w.drainAll()
	w.awaitNoWalsender()
	insert(8, 12)
	// What another table has published under this id is another event: in another topic, or of another key.
	w.exec("INSERT INTO outbox_2 VALUES ('6', 'order', '8', 'T', '1')")
	w.exec("INSERT INTO outbox_1 VALUES (7, 'order', '9', NULL, 'text 7')")
	w.exec("INSERT INTO outbox_3 VALUES ($1, 5, 'order', '9', 'T', NULL)", numberedID(6))
	w.dropOwnSlot()
	r := w.recover()
	if r.Report.Sent != 19 || !maps.Equal(r.Topics, map[string]int64{w.prefix + ".order": 10, w.prefix + ".second": 5, w.prefix + ".invoice": 4}) {
		t.Errorf("sent %+v", r.Report)
	}
	r.mustSay(t, "public.outbox_0 are candidates; they come by the order column", "public.outbox_1 are candidates; they come by transaction ID")
	insert(12, 13)
	w.drainAll()
	var got []event
	for _, e := range w.published("order") {
		if e.key == "7" {
			got = append(got, e)
		}
	}
	var want []event
	for _, i := range []int{5, 6, 7, 11, 10, 9, 8, 12} {
		want = append(want, event{id: fmt.Sprint(i), key: "7", value: fmt.Sprintf("\x00%c", i)})
	}
	mustEqual(t, "bytea, by its column", got, want)
	want = nil
	for i := 5; i < 13; i++ {
		want = append(want, event{id: fmt.Sprint(i), key: "7", value: fmt.Sprintf("text %d", i)})
	}
	got = slices.DeleteFunc(w.published("second"), func(e event) bool { return e.key == "9" })
	mustEqual(t, "with another topic", got, want)
	want = nil
	for i := 5; i < 13; i++ {
		want = append(want, event{id: numberedID(i), key: "9", tombstone: true})
	}
	w.mustPublish("invoice", want)
}

// With commit times the order is that of the commits, in a transaction that of its commands.
func TestRecoverInTheOrderOfCommits(t *testing.T) {
	pg := ownPostgres(t, "14", servers.PostgresOptions{Settings: map[string]string{"track_commit_timestamp": "on"}})
	w := newWorld(t, pg.DSN("postgres"), nil)
	w.drainAll()
	w.awaitNoWalsender()
	first := w.another()
	w.on(first, "BEGIN", fmt.Sprintf(insertOrder, numberedID(1), 1), "SAVEPOINT a", fmt.Sprintf(insertOrder, numberedID(2), 2), "RELEASE a", fmt.Sprintf(insertOrder, numberedID(3), 3))
	w.exec(fmt.Sprintf(insertOrder, numberedID(4), 4))
	w.on(first, fmt.Sprintf(insertOrder, numberedID(5), 5), "COMMIT")
	w.exec(fmt.Sprintf(insertOrder, numberedID(6), 6))
	var want []event
	for _, i := range []int{4, 1, 2, 3, 5, 6} {
		want = append(want, event{id: numberedID(i), key: "k", value: fmt.Sprint(i)})
	}
	w.dropOwnSlot()
	r := w.recover()
	r.mustSend(t, want)
	r.mustSay(t, "by the time of the commit")
	w.mustPublish("order", want)
}

// A row that can never be published stops it before anything is changed, unless it was moved away.
func TestRecoverHaltsBeforePoison(t *testing.T) {
	w := bareWorld(t, newest(t), "", nil)
	w.exec("CREATE TABLE outbox (id text, aggregatetype text, aggregateid text, type text, payload text)")
	w.setup()
	w.exec("INSERT INTO outbox VALUES ('moved', 'order', NULL, 'T', 'secret'), ('moved too', 'no/topic', 'k', 'T', 'secret')")
	for range 2 {
		w.mustStop(bridge.Poison, "walferry poison show")
		walferry(t, "poison", "dead-letter", "--config", w.configFile(""), w.positionOfPoison()).exit(0)
	}
	w.exec("INSERT INTO outbox VALUES ('secret-id', 'order', NULL, 'T', 'secret'), ('other', 'no/topic', 'k', 'T', 'secret')")
	good := w.order2("good")
	w.dropOwnSlot()
	for _, dry := range []bool{true, false} {
		_, err := w.recovering(t.Context(), recovery.Run, func(o *recovery.Options) { o.DryRun = dry })
		e := asError(t, err)
		mustSay(t, e, bridge.Poison, "aggregateid: is NULL", "ctid '(", "(and 1 more)")
		if strings.Contains(e.Error(), "secret") {
			t.Errorf("it shows data: %v", e)
		}
	}
	if n := len(w.records()); n != 0 {
		t.Errorf("%d records", n)
	}
	w.exec("DELETE FROM outbox WHERE id IN ('secret-id', 'other')")
	r := w.recover()
	r.mustSend(t, good)
	late := w.order2("late")
	w.drainAll()
	w.mustPublish("order", concat(good, late))
}

// What publishes rows of the tables says which one the brokers refuse, although no position is known of it.
func TestRowThatTheBrokersRefuse(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	small := "2000"
	topic := w.createTopic("order", 1, map[string]*string{"max.message.bytes": &small})
	w.insert("k", "1")
	w.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
		SELECT 'order', 'k', 'T', to_jsonb(string_agg(md5(n::text), '')) FROM generate_series(1, 200) n`) // which cannot be compressed
	stop := w.confirmAll()
	where := w.query("SELECT format('the row of public.outbox with tableoid %s and ctid ''(0,1)'', or one that shares its batch', 'outbox'::regclass::oid)")
	mustSay := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), where) || !strings.Contains(err.Error(), topic) || !strings.Contains(err.Error(), "MESSAGE_TOO_LARGE") ||
			strings.Contains(err.Error(), "poison") {
			t.Errorf("it says %v, want %s, the topic and why, and no way out that there is not", err, where)
		}
	}
	_, err := reconcile.Run(t.Context(), reconcile.Options{Options: w.options("", zerolog.Disabled), Repair: true, MaxRepair: 2, Dir: t.TempDir(), Timeout: patience})
	mustSay(err)
	stop()
	_, err = replay.FromTable(t.Context(), replay.Options{Options: w.options("", zerolog.Disabled), Target: replay.Target{InPlace: true}, Say: func(string) {}})
	mustSay(err)
	w.dropOwnSlot()
	_, err = w.recovering(t.Context(), recovery.Run, nil)
	mustSay(err)
}

func (w *world) order2(id string) []event {
	w.t.Helper()
	return w.emit("INSERT INTO outbox VALUES ($1, 'order', 'k', 'T', '1')"+returning, id)
}

// positionOfPoison returns the position that the bridge halted before.
func (w *world) positionOfPoison() string {
	w.t.Helper()
	p, err := bridge.ReadPoison(w.t.Context(), w.options("", zerolog.Disabled))
	if err != nil || p.Note == nil {
		w.t.Fatalf("no note of poison: %v", err)
	}
	return p.Note.Position
}

// Where nothing could be proved, or nothing is lost, it refuses, and changes nothing.
func TestRecoverRefuses(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	w.order("k", "1")
	refused := func(what string, w *world, parts ...string) {
		t.Helper()
		_, err := w.recovering(t.Context(), recovery.Run, nil)
		e, ok := errors.AsType[*bridge.Error](err)
		if !ok {
			t.Fatalf("%s: got %v, want a refusal", what, err)
		}
		for _, part := range parts {
			if !strings.Contains(e.Error(), part) {
				t.Errorf("%s: it does not say %q: %v", what, part, e)
			}
		}
	}
	refused("a whole slot", w, "nothing to recover", "walferry run")
	r := w.run("")
	r.awaitState(bridge.Streaming)
	refused("a slot in use", w, "is held by pid", "stop it")
	w.awaitCaughtUp()
	r.drain()
	w.awaitNoWalsender()
	w.dropOwnSlot()
	other := *w
	other.cfg = &config.Config{Databases: slices.Clone(w.cfg.Databases), Kafka: w.cfg.Kafka, Checkpoint: w.cfg.Checkpoint, Delivery: w.cfg.Delivery}
	other.cfg.Databases[0].Name = "another"
	refused("no checkpoint", &other, "has no checkpoint another/", "walferry init --backfill")
	other.cfg.Databases[0].Name = "shop"
	other.cfg.Checkpoint.Topic = ""
	refused("without checkpoints", &other, "checkpoint.topic is empty")
	lock := w.another()
	w.on(lock, "SELECT pg_advisory_lock(hashtextextended('walferry recover "+w.prefix+"', 0))")
	refused("beside another", w, "another walferry recovers")
	w.on(lock, "SELECT pg_advisory_unlock_all()")
	_, err := w.recovering(t.Context(), setup.Backfill, nil)
	mustSay(t, asError(t, err), bridge.Gap, "there is a checkpoint")
	w.recover().mustSend(t, nil)
}

// The command says what it does, reports what it has sent, and ends with the exit codes of the others.
func TestRecoverCommand(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	first := w.order("k", "1")
	w.drainAll()
	w.awaitNoWalsender()
	want := concat(w.order("k", "2"), w.order("k2", "3"))
	w.dropOwnSlot()
	path, report := w.configFile(""), filepath.Join(t.TempDir(), "report")
	mustExit(t, 67, []string{"run", "--config", path}, "walferry recover")
	slots := func() string {
		return w.query("SELECT count(*)::text FROM pg_replication_slots WHERE database = current_database()")
	}
	checkpointed := w.checkpointValue()
	stdout, _ := walferry(t, "recover", "--dry-run", "--config", path).exit(0)
	for _, part := range []string{"shop: slot ", "none of them is lost", "shop: 2 of them are in no topic"} {
		if !strings.Contains(stdout, part) {
			t.Errorf("a dry run does not say %q:\n%s", part, stdout)
		}
	}
	if slots() != "0" || w.checkpointValue() != checkpointed || len(w.records()) != 1 {
		t.Error("a dry run has changed something")
	}
	stdout, _ = walferry(t, "recover", "--config", path, "--report", report).exit(0)
	for _, part := range []string{"created slot " + w.prefix, "sent 2 rows to topic " + w.prefix + ".order", "`walferry run` goes on at "} {
		if !strings.Contains(stdout, part) {
			t.Errorf("it does not say %q:\n%s", part, stdout)
		}
	}
	lines, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for line := range strings.Lines(string(lines)) {
		var s recovery.Sent
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Topic != w.prefix+".order" {
			t.Errorf("%q: %v", line, err)
		}
		ids = append(ids, s.ID)
	}
	slices.Sort(ids)
	if wanted := []string{want[0].id, want[1].id}; !slices.Equal(ids, sorted(wanted)) {
		t.Errorf("reported %q, want %q", ids, wanted)
	}
	mustExit(t, 1, []string{"recover", "--config", path}, "nothing to recover")
	w.drainAll()
	if got := len(w.records()); got != 3 {
		t.Errorf("%d records, want those of %v and %v", got, first, want)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

// checkpointValue is what a checkpoint says.
func (w *world) checkpointValue() string {
	w.t.Helper()
	c, err := bridge.ReadCheckpoint(w.t.Context(), w.options("", zerolog.Disabled))
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("%+v", c)
}

// After a promotion that has lost WAL new transactions have the IDs of those that are lost, below those that the checkpoint knows.
func TestRecoverAfterAPromotionThatLosesWAL(t *testing.T) {
	primary := ownPostgres(t, "16", servers.PostgresOptions{})
	standby, err := primary.Standby(context.Background(), servers.StandbyOptions{Slot: physicalSlot})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, hosts(primary, standby), nil)
	published := w.order("k", `"both have it"`)
	w.drainAll()
	end := w.walEnd()
	await(t, "the standby to have all", func() error {
		if n := w.query("SELECT count(*)::text FROM pg_stat_replication WHERE replay_lsn >= $1::text::pg_lsn", end); n != "1" {
			return errors.New("it has not")
		}
		return nil
	})
	if err := standby.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	last := w.query("SELECT pg_current_xact_id()::text")
	r := w.run("")
	await(t, "the checkpoint to know of later transactions", func() error {
		published = concat(published, w.order("k", `"lost"`))
		c, err := bridge.ReadCheckpoint(t.Context(), w.options("", zerolog.Disabled))
		if err != nil {
			return err
		}
		var xmin, after int
		if _, err := fmt.Sscan(strings.Split(c.Snapshot, ":")[0]+" "+last, &xmin, &after); err != nil {
			return err
		}
		if xmin < after+20 {
			return errors.New("it knows of " + c.Snapshot)
		}
		return nil
	})
	w.awaitCaughtUp()
	r.drain()
	if err := errors.Join(primary.Kill(), standby.Start(t.Context()), standby.Promote(t.Context())); err != nil {
		t.Fatal(err)
	}
	w.reconnect()
	missing := concat(w.order("k", `"new"`), w.order("k", `"new"`))
	w.mustStop(bridge.Gap, "walferry recover")
	rec := w.recover()
	rec.mustSend(t, missing)
	if said := strings.Join(rec.said, "\n"); strings.Contains(said, "by the checkpoint at") {
		t.Errorf("it goes by a snapshot that is not true here:\n%s", said) // an index of minutes may have nothing better
	}
	late := w.order("k", `"late"`)
	w.drainAll()
	w.mustPublish("order", concat(published, missing, late))
}

// init says aloud what it leaves out, and does not when it is asked to.
func TestBackfillCommand(t *testing.T) {
	w := bareWorld(t, newest(t), "", nil)
	w.exec("CREATE TABLE outbox (id uuid DEFAULT gen_random_uuid(), aggregatetype text, aggregateid text, type text, payload jsonb)")
	want := concat(w.order("k", "1"), w.order("k", "2"))
	path, report := w.configFile(""), filepath.Join(t.TempDir(), "report")
	stdout, _ := walferry(t, "init", "--backfill", "--report", report, "--config", path).exit(0)
	for _, part := range []string{`created publication "walferry"`, "that they hold now", "2 of them are in no topic", "created slot " + w.prefix, "sent 2 rows"} {
		if !strings.Contains(stdout, part) {
			t.Errorf("it does not say %q:\n%s", part, stdout)
		}
	}
	if lines, err := os.ReadFile(report); err != nil || strings.Count(string(lines), "\n") != 2 {
		t.Errorf("the report is %q, %v", lines, err)
	}
	mustExit(t, 1, []string{"init", "--backfill", "--config", path}, "exists already", "walferry recover")
	want = concat(want, w.order("k", "3"))
	walferry(t, "run", "--config", path, "--until-lsn", w.walEnd()).exit(0)
	w.mustPublish("order", want)
}

// Rows that are deleted while they are recovered come in another order when they are read again: a DELETE overwrites the number of the
// command that wrote the row, also for a snapshot that still sees it.
func TestRecoverSendsTheRightRowsWhileOthersAreDeleted(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	w.drainAll()
	w.awaitNoWalsender()
	w.dropOwnSlot()
	want := w.publishMostOf100()
	deleted := false
	r, err := w.recovering(t.Context(), recovery.Run, func(o *recovery.Options) {
		o.Progress = func(stage string, _, _ int64) {
			if stage == "reading topics" && !deleted {
				deleted = true
				w.exec("DELETE FROM outbox WHERE id::int % 3 = 2")
			}
		}
	})
	if err != nil || !deleted {
		t.Fatalf("%v; rows were deleted meanwhile: %t", err, deleted)
	}
	slices.Sort(r.sent)
	slices.Sort(want)
	if !slices.Equal(r.sent, want) {
		t.Errorf("sent are %q, want %q", r.sent, want)
	}
}
