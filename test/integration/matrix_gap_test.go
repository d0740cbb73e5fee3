//go:build faults

package integration

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
)

// What a process ends with.
const (
	exitFailed = 1
	exitGap    = 67
)

// refuses makes sure that the process stops with an exit code, says all the parts, and confirms nothing.
func (w *world) refuses(code int, parts ...string) {
	w.t.Helper()
	const confirmed = "SELECT coalesce(max(confirmed_flush_lsn)::text, '') FROM pg_replication_slots WHERE slot_name = $1"
	before := w.query(confirmed, w.prefix)
	mustExit(w.t, code, []string{"run", "--config", w.configFile("")}, parts...)
	if after := w.query(confirmed, w.prefix); after != before {
		w.t.Errorf("%s is confirmed, it was %s", after, before)
	}
}

// goesOn makes sure that the process delivers what comes, once it is told to with a flag.
func (w *world) goesOn(flag string, before []event) {
	w.t.Helper()
	late := w.order("k", `"late"`)
	args := []string{"run", "--config", w.configFile(""), "--until-lsn", w.walEnd()}
	if flag != "" {
		args = append(args, flag)
	}
	walferry(w.t, args...).exit(0)
	w.mustPublish("order", concat(before, late))
}

// deliver delivers one event and leaves the slot to others.
func (w *world) deliver() []event {
	w.t.Helper()
	e := w.order("k", "1")
	w.drainAll()
	w.awaitNoWalsender()
	return e
}

// mustBeCheckpointed fails if more is confirmed than the checkpoint says.
func (w *world) mustBeCheckpointed() {
	w.t.Helper()
	confirmed := w.confirmed()
	c, err := bridge.ReadCheckpoint(w.t.Context(), w.options("", zerolog.Disabled))
	if err != nil || c == nil {
		w.t.Fatalf("no checkpoint: %v", err)
	}
	if confirmed > c.Pos.LSN {
		w.t.Errorf("%s is confirmed, the checkpoint says %s", confirmed, c.Pos)
	}
}

// recreateSlot has a slot of the same name that stands elsewhere.
func recreateSlot(f *faultRun) {
	for name, change := range map[string]string{
		"recreated": "SELECT pg_drop_replication_slot('SLOT'); SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')",
		"advanced":  "SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())",
	} {
		f.Run(name, func(t *testing.T) {
			onEveryPostgres(t, func(t *testing.T, admin string) {
				w := newWorld(t, admin, nil)
				before := w.deliver()
				w.order("k", `"in the gap"`)
				w.execEach(change)
				for range 2 {
					w.refuses(exitGap, "ahead of the checkpoint", "--accept-gap")
				}
				w.goesOn("--accept-gap", before)
			})
		})
	}
}

// execEach runs statements, each in a transaction of its own, with the slot's name in them.
func (w *world) execEach(sql string) {
	w.t.Helper()
	for _, statement := range strings.Split(strings.ReplaceAll(sql, "SLOT", w.prefix), "; ") {
		w.exec(statement)
	}
}

// changePublication changes the publication and changes it back, while the process runs and while it does not.
func changePublication(f *faultRun) {
	changes := map[string]string{
		"recreated":     "DROP PUBLICATION walferry; CREATE PUBLICATION walferry FOR TABLE outbox WITH (publish = 'insert')",
		"table removed": "ALTER PUBLICATION walferry DROP TABLE outbox; ALTER PUBLICATION walferry ADD TABLE outbox",
	}
	for name, change := range changes {
		f.Run(name, func(t *testing.T) {
			onEveryPostgres(t, func(t *testing.T, admin string) {
				t.Run("while down", func(t *testing.T) {
					w := newWorld(t, admin, nil)
					before := w.deliver()
					w.execEach(change)
					w.refuses(exitGap, "publication")
					w.goesOn("--accept-gap", before)
				})
				t.Run("while running", func(t *testing.T) {
					w := newWorld(t, admin, nil)
					before := w.order("k", "1")
					addr := freeAddr(t)
					c := walferry(t, "run", "--config", w.configFile(addr))
					w.awaitCaughtUp()
					w.execEach(change)
					_, stderr := c.exit(exitGap)
					mustSayAll(t, stderr, "publication")
					w.refuses(exitGap, "publication")
					w.goesOn("--accept-gap", before)
				})
			})
		})
	}
	f.Run("with an event in between", func(t *testing.T) { onEveryPostgres(t, withoutPublication) })
}

// withoutPublication has an event that was written while there was no publication: it cannot be read, neither may it be
// left out.
func withoutPublication(t *testing.T, admin string) {
	w := newWorld(t, admin, nil)
	before := w.deliver()
	w.exec("DROP PUBLICATION walferry")
	w.order("k", `"in the gap"`)
	written := w.insertLSN()
	w.exec("CREATE PUBLICATION walferry FOR TABLE outbox WITH (publish = 'insert')")
	w.order("k", `"late"`)
	w.refuses(exitGap, "publication")
	// A gap can be accepted; what cannot be decoded stops it all the same.
	mustExit(t, exitFailed, []string{"run", "--config", w.configFile(""), "--accept-gap"}, "publication")
	w.mustNotReach(written)
	w.mustPublish("order", before)
}

// dropTable takes the table out of the publication while the process runs, and leaves it out.
func dropTable(f *faultRun) {
	onEveryPostgres(f.T, func(t *testing.T, admin string) {
		w := newWorld(t, admin, nil)
		before := w.order("k", "1")
		c := walferry(t, "run", "--config", w.configFile(""))
		w.awaitCaughtUp()
		w.exec("ALTER PUBLICATION walferry DROP TABLE outbox")
		began := time.Now()
		w.order("k", `"in the gap"`)
		_, stderr := c.exit(exitFailed)
		took := time.Since(began)
		f.recoveries = append(f.recoveries, took)
		if took > 10*time.Second {
			t.Errorf("noticed after %s, the watch looks every 5 s", took)
		}
		mustSayAll(t, stderr, `does not contain table "public"."outbox"`)
		w.exec("ALTER PUBLICATION walferry ADD TABLE outbox")
		w.refuses(exitGap, "taken out of the publication")
		w.goesOn("--accept-gap", before)
	})
	f.note("(until it stopped)")
}

// loseCheckpoint deletes the checkpoints, and has one that is no checkpoint.
func loseCheckpoint(f *faultRun) {
	f.Run("deleted while down", func(t *testing.T) {
		w := newWorld(t, newest(t), nil)
		before := w.deliver()
		w.deleteCheckpoints()
		for range 2 {
			w.refuses(exitFailed, "no checkpoint", "--adopt-slot")
		}
		w.goesOn("--adopt-slot", before)
	})
	f.Run("deleted while running", func(t *testing.T) {
		w := newWorld(t, newest(t), nil)
		l := w.startLoad(newSeed(t))
		c := w.daemon("")
		c.awaitStreaming()
		l.more(50)
		w.deleteCheckpoints()
		l.more(50)
		select {
		case <-c.done:
		case <-time.After(patience):
			t.Fatal("it goes on without checkpoints")
		}
		t.Logf("it ended with %s", c.cmd.ProcessState)
		confirmed := w.confirmed()
		w.refuses(exitFailed, "checkpoint")
		if now := w.confirmed(); now != confirmed {
			t.Errorf("%s is confirmed without checkpoints, it was %s", now, confirmed)
		}
		w.cfg.Kafka.Brokers = shared.kafka
		l.stop()
		walferry(t, "run", "--adopt-slot", "--config", w.configFile(""), "--until-lsn", w.walEnd()).exit(0)
		w.daemon("")
		l.audit()
	})
	f.Run("corrupted", func(t *testing.T) {
		for name, value := range map[string]string{"no JSON": "\x00secret", "another version": `{"version":99}`, "nothing in it": "{}"} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, newest(t), nil)
				w.deliver()
				client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...))
				if err != nil {
					t.Fatal(err)
				}
				defer client.Close()
				key := w.cfg.Databases[0].Name + "/" + w.cfg.Databases[0].Slot
				if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Checkpoint.Topic, Key: []byte(key), Value: []byte(value)}).FirstErr(); err != nil {
					t.Fatal(err)
				}
				w.refuses(exitFailed, "the checkpoint cannot be used")
			})
		}
	})
}

func (w *world) deleteCheckpoints() {
	w.t.Helper()
	if _, err := w.kafkaAdmin().DeleteTopic(w.t.Context(), w.cfg.Checkpoint.Topic); err != nil {
		w.t.Fatal(err)
	}
	await(w.t, "the checkpoints to be gone", func() error {
		topics, err := w.kafkaAdmin().ListTopics(context.Background(), w.cfg.Checkpoint.Topic)
		if err == nil && topics.Has(w.cfg.Checkpoint.Topic) && topics[w.cfg.Checkpoint.Topic].Err == nil {
			err = errors.New("the topic is there")
		}
		return err
	})
}

func mustSayAll(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("it does not say %q:\n%s", part, text)
		}
	}
}
