package integration

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
)

// daemon starts the binary on the world. admin is its admin address, "" for none.
func (w *world) daemon(admin string) *command {
	w.t.Helper()
	db, kafka := w.cfg.Databases[0], w.cfg.Kafka
	return walferry(w.t, "run", "--config", writeFile(w.t, fmt.Sprintf(`
databases:
  - name: %s
    dsn: %q
    slot: %s
    publication: %s
    outbox: [{table: public.outbox, topic: %q}]
    messages: {topic: %q}
    drain_timeout: %s
    shutdown_grace: %s
kafka: {brokers: %q, linger: %s, max_record: %s, max_buffered: %s}
delivery: %s
checkpoint: {topic: %q, interval: %s}
admin: {listen: %q}
log: {format: json}
`, db.Name, db.DSN.Reveal(), db.Slot, db.Publication, db.Outbox[0].Topic, db.Messages.Topic, db.DrainTimeout, db.ShutdownGrace,
		strings.Join(kafka.Brokers, ","), kafka.Linger, kafka.MaxRecord, kafka.MaxBuffered, w.cfg.Delivery, w.cfg.Checkpoint.Topic, w.cfg.Checkpoint.Interval, admin)))
}

// awaitStreaming waits until the process has begun to read the slot.
func (c *command) awaitStreaming() {
	c.t.Helper()
	await(c.t, "walferry to stream", func() error {
		if len(c.logLines("streaming")) == 0 {
			return fmt.Errorf("its log is\n%s", &c.stderr)
		}
		return nil
	})
}

// kill ends the process with SIGKILL.
func (c *command) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	<-c.done
}

func TestKillUnderLoad(t *testing.T) {
	// Linger, so that a killed process takes events with it.
	killUnderLoad(t, func(cfg *config.Config) { cfg.Kafka.Linger = 50 * time.Millisecond })
}

// killUnderLoad kills walferry 20 times, and returns how many duplicates there are.
func killUnderLoad(t *testing.T, edit func(*config.Config)) int {
	t.Helper()
	random := newSeed(t)
	w := newWorld(t, newest(t), edit)
	l := w.startLoad(random)
	for round := range 20 {
		c := w.daemon("")
		if round%2 == 0 { // else also while it starts
			c.awaitStreaming()
		}
		l.more(random.IntN(150))
		c.kill()
	}
	w.daemon("")
	return l.audit()
}

func TestExactlyOnceUnderKills(t *testing.T) {
	if n := killUnderLoad(t, onceEach); n != 0 {
		t.Errorf("%d duplicates over 20 kills, want 0", n)
	}
}

func TestTerminateUnderLoad(t *testing.T) {
	random := newSeed(t)
	w := newWorld(t, newest(t), nil)
	l := w.startLoad(random)
	for range 5 {
		c := w.daemon("")
		c.awaitStreaming()
		l.more(random.IntN(150))
		began := time.Now()
		c.terminate()
		took := time.Since(began)
		t.Logf("exit 0 after %s", took.Round(time.Millisecond))
		if took > 2*time.Second {
			t.Errorf("a drain with a healthy Kafka took %s", took)
		}
	}
	w.daemon("")
	if n := l.audit(); n != 0 {
		t.Errorf("%d duplicates over 5 drains, want 0", n)
	}
}

const bulkRows = 100_000

// bulk writes bulkRows events of one key in one transaction.
func (w *world) bulk() {
	w.t.Helper()
	w.exec(`INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
		SELECT 'bulk', 'k', 'T', jsonb_build_object('n', i, 'pad', repeat('x', 200)) FROM generate_series(1, $1::int) i`, bulkRows)
}

// checkBulk makes sure that a topic has the events of bulk, all and in order, and returns
// how many duplicates. An event 0 may come first.
func (w *world) checkBulk() int {
	w.t.Helper()
	copies, previous, highest := 0, 0, 0
	w.eachRecord(func(r *kgo.Record) {
		text, _, _ := strings.Cut(strings.TrimPrefix(string(r.Value), `{"n": `), ",")
		n, err := strconv.Atoi(text)
		if err != nil {
			w.t.Errorf("record at %d is not of bulk: %.50s", r.Offset, r.Value)
		}
		if n > previous+1 {
			w.t.Errorf("record at %d: %d came after %d", r.Offset, n, previous)
		}
		copies, previous, highest = copies+min(n, 1), n, max(highest, n)
	})
	if highest != bulkRows {
		w.t.Errorf("the topic ends with event %d of %d", highest, bulkRows)
	}
	return copies - highest
}

// delivered returns how many records are in the topics of a type.
func (w *world) delivered(kind string) int64 {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(w.t.Context(), w.prefix+"."+kind)
	if err != nil {
		w.t.Fatal(err)
	}
	var n int64
	ends.Each(func(o kadm.ListedOffset) { n += max(0, o.Offset) }) // -1: there is no such topic yet
	return n
}

// terminateInBulk sends SIGTERM in the middle of bulk's transaction and waits for exit 0.
func (w *world) terminateInBulk() *command {
	w.t.Helper()
	w.bulk()
	c := w.daemon("")
	await(w.t, "the first events", func() error {
		if n := w.delivered("bulk"); n < 1000 {
			return fmt.Errorf("%d are there", n)
		}
		return nil
	})
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	began, n := time.Now(), w.delivered("bulk")
	c.exit(0)
	w.t.Logf("SIGTERM before event %d of %d, exit 0 %s later", n, bulkRows, time.Since(began).Round(time.Millisecond))
	if n == bulkRows {
		w.t.Fatal("SIGTERM came after the transaction: bulkRows is too small for this machine")
	}
	return c
}

func TestTerminateReadsABigTransactionToItsCommit(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	c := w.terminateInBulk()
	if strings.Contains(c.stderr.String(), "second time") {
		t.Errorf("a drain that was complete warns of duplicates:\n%s", &c.stderr)
	}
	if n := w.delivered("bulk"); n != bulkRows {
		t.Errorf("%d of %d events are in the topic", n, bulkRows)
	}
	w.drainAll()
	if n := w.checkBulk(); n != 0 {
		t.Errorf("%d duplicates: the transaction was not confirmed", n)
	}
}

func TestDrainTimeoutInABigTransaction(t *testing.T) {
	w := newWorld(t, newest(t), func(cfg *config.Config) { cfg.Databases[0].DrainTimeout = time.Millisecond })
	c := w.terminateInBulk()
	reports := c.logLines("events behind the confirmed LSN may be delivered a second time by the next session")
	if len(reports) != 1 || reports[0]["open_transaction"] != true || reports[0]["confirmed_lsn"] == nil || reports[0]["unacknowledged_events"] == nil {
		t.Errorf("report %v, want one with the open transaction", reports)
	}
	if n := w.delivered("bulk"); n == bulkRows {
		t.Error("the transaction was not cut")
	}
	w.drainAll()
	t.Logf("%d duplicates", w.checkBulk())
}

// awaitStatus waits until the status of a process holds a field.
func awaitStatus(t *testing.T, admin, field string) {
	t.Helper()
	await(t, "a status with "+field, func() error {
		if _, body := get(t, "http://"+admin+"/status"); !strings.Contains(body, field) {
			return fmt.Errorf("it is %s", body)
		}
		return nil
	})
}

func TestSecondSignalKills(t *testing.T) {
	broker := breakableKafka(t)
	w := newWorld(t, newest(t), func(cfg *config.Config) {
		cfg.Kafka.Brokers = []string{broker.Addr()}
		cfg.Databases[0].DrainTimeout = time.Hour
	})
	admin := freeAddr(t)
	c := w.daemon(admin)
	w.insert("k", "1")
	w.awaitCaughtUp()
	end := outage(t, broker)
	w.insert("k", "2")
	awaitStatus(t, admin, `"in_flight_events":1`)
	signal := func() {
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	signal()
	awaitStatus(t, admin, `"state":"draining"`)
	began := time.Now()
	signal()
	c.exit(-1)
	took := time.Since(began)
	t.Logf("dead %s after the second signal", took.Round(time.Millisecond))
	if got := c.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); got != syscall.SIGTERM || took > time.Second {
		t.Errorf("it ended by signal %d after %s, want %d at once", got, took, syscall.SIGTERM)
	}
	end()
	w.drainAll()
	if r := w.records(); len(r) != 2 || string(r[1].Value) != "2" {
		t.Errorf("%d records, want the events 1 and 2", len(r))
	}
}
