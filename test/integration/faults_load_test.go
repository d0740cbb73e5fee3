package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	loadKeys    = 50
	loadWriters = 8
	loadPace    = 25 * time.Millisecond // between a writer's transactions
)

// load is a set of writers that fill the outbox until stop, over any fault of Postgres.
type load struct {
	w           *world
	ledger      *ledger
	lost        lostWAL         // see audit
	ignore      string          // a topic of other events than the ledger's
	overtaking  map[string]bool // see audit
	interleaved bool            // likewise
	halt        context.CancelFunc
	writers     sync.WaitGroup
}

// newSeed returns the source of a test's random choices. WALFERRY_SEED repeats those of a
// run before.
func newSeed(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("WALFERRY_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("WALFERRY_SEED: %v", err)
		}
	}
	t.Logf("WALFERRY_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// startLoad creates the topics and starts the writers.
func (w *world) startLoad(random *rand.Rand) *load {
	w.t.Helper()
	w.createLedgerTopics()
	l := &load{w: w, ledger: newLedger(loadKeys)}
	l.start(random)
	w.t.Cleanup(l.stop)
	return l
}

// start starts the writers, for the first time or behind a stop.
func (l *load) start(random *rand.Rand) {
	ctx, halt := context.WithCancel(context.Background())
	l.halt = halt
	for i := range loadWriters {
		writer := &writer{ledger: l.ledger, dsn: l.w.dsn(), random: rand.New(rand.NewPCG(random.Uint64(), 0))}
		for key := i; key < loadKeys; key += loadWriters {
			writer.keys = append(writer.keys, key)
		}
		l.writers.Go(func() { writer.run(ctx) })
	}
}

// createLedgerTopics creates a ledger's topics, each with several partitions and with the brokers' default of replicas.
func (w *world) createLedgerTopics() {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...))
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	for _, kind := range ledgerTypes {
		if _, err := kadm.NewClient(client).CreateTopic(w.t.Context(), 3, -1, nil, w.prefix+"."+kind); err != nil {
			w.t.Fatal(err)
		}
	}
}

// dsn returns the DSN of the world's database, whatever the bridge is configured with.
func (w *world) dsn() string { return dsnOf(w.t, w.admin, w.prefix) }

// stop ends the writers, each behind its transaction.
func (l *load) stop() {
	l.halt()
	l.writers.Wait()
}

// more waits until n more transactions have committed.
func (l *load) more(n int) {
	l.w.t.Helper()
	target := l.ledger.commits() + n
	await(l.w.t, fmt.Sprintf("%d more transactions", n), func() error {
		if got := l.ledger.commits(); got < target {
			return fmt.Errorf("%d to go", target-got)
		}
		return nil
	})
}

// audit is inspect for tests that only want the number of duplicates.
func (l *load) audit() int {
	l.w.t.Helper()
	return l.inspect(func(*kgo.Record) {}).duplicates()
}

// inspect stops the writers, waits until the bridge that runs has confirmed everything, and
// compares the topics with the ledger. It shows each record to another checker too.
func (l *load) inspect(also func(*kgo.Record)) *audit {
	l.w.t.Helper()
	l.stop()
	l.w.reconnect()
	l.w.awaitCaughtUp()
	if err := l.ledger.resolve(l.w.ids()); err != nil {
		l.w.t.Fatalf("the ledger is wrong: %v", err)
	}
	a := l.ledger.audit(l.w.prefix)
	a.overtaking, a.interleaved, a.lost = l.overtaking, l.interleaved, l.lost
	l.w.eachRecord(func(r *kgo.Record) {
		if r.Topic != l.ignore {
			a.see(r)
		}
		also(r)
	})
	a.finish()
	l.w.t.Logf("%d transactions, %d events delivered, %d duplicates", l.ledger.commits(), len(a.first), a.duplicates())
	if len(a.faults) > 0 || len(a.first) == 0 {
		l.w.t.Errorf("faults: %v", a.faults)
		for _, line := range a.report {
			l.w.t.Log(line)
		}
	}
	return a
}

// reconnect replaces the world's connection, which may have died with the server.
func (w *world) reconnect() {
	w.t.Helper()
	_ = w.conn.Close(context.Background())
	await(w.t, "Postgres to accept connections", func() (err error) {
		w.conn, err = pgx.Connect(w.t.Context(), w.dsn())
		return err
	})
}

// ids returns what the outbox table holds.
func (w *world) ids() map[string]bool {
	w.t.Helper()
	rows, _ := w.conn.Query(w.t.Context(), "SELECT id::text FROM outbox")
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	ids := make(map[string]bool, len(list))
	for _, id := range list {
		ids[id] = true
	}
	return ids
}

// writer writes transactions, one after another, and owns some keys.
type writer struct {
	ledger *ledger
	dsn    string
	keys   []int
	random *rand.Rand
	conn   *pgx.Conn // nil: has to connect
}

func (w *writer) run(ctx context.Context) {
	pace := time.NewTicker(loadPace)
	defer pace.Stop()
	defer w.disconnect()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		// Only between transactions may ctx end it, or the outcome would be unclear.
		patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		if w.conn == nil {
			w.conn, _ = pgx.Connect(patient, w.dsn) // nil again while the server is down
		}
		if w.conn != nil && !w.transaction(patient) {
			w.disconnect()
		}
		cancel()
	}
}

func (w *writer) disconnect() {
	if w.conn != nil {
		_ = w.conn.Close(context.Background())
		w.conn = nil
	}
}

// transaction writes a few events in one transaction and notes what became of them. It
// returns false when the connection is of no use any more.
func (w *writer) transaction(ctx context.Context) bool {
	sizes := []int{1, 1, 1, 2, 2, 3, 5, 8, 13, 40}
	refs := make([]ref, sizes[w.random.IntN(len(sizes))])
	for i := range refs {
		refs[i] = w.ledger.next(w.keys[w.random.IntN(len(w.keys))])
	}
	batch := &pgx.Batch{}
	batch.Queue("BEGIN")
	kept, undone := refs, []ref(nil)
	if len(refs) > 1 && w.random.IntN(4) == 0 { // a savepoint that is rolled back
		n := w.random.IntN(len(refs))
		kept, undone = refs[n:], refs[:n]
		batch.Queue("SAVEPOINT s")
		queue(batch, undone)
		batch.Queue("ROLLBACK TO s")
	}
	queue(batch, kept)
	end, outcome := "COMMIT", committed
	if w.random.IntN(10) == 0 {
		end, outcome = "ROLLBACK", rolledBack
	}
	w.ledger.settle(rolledBack, undone...)
	if err := w.conn.SendBatch(ctx, batch).Close(); err != nil {
		w.ledger.settle(rolledBack, kept...) // COMMIT was never sent
		return false
	}
	_, err := w.conn.Exec(ctx, end)
	if err != nil && outcome == committed {
		outcome = unclear
	}
	w.ledger.settle(outcome, kept...)
	return err == nil
}

func queue(batch *pgx.Batch, refs []ref) {
	for _, r := range refs {
		if r.message() {
			batch.Queue("SELECT pg_logical_emit_message(true, 'outbox', $1::text)", fmt.Sprintf(
				`{"id": %q, "aggregatetype": %q, "aggregateid": %q, "type": "T", "payload": %s}`,
				r.id(), r.aggregateType(), r.aggregateID(), r.payload()))
			continue
		}
		batch.Queue("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1::text::uuid, $2, $3, 'T', $4::text::jsonb)",
			r.id(), r.aggregateType(), r.aggregateID(), r.payload())
	}
}
