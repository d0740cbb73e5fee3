package integration

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/setup"
)

// patience bounds every wait of these tests; it is for machines under load.
const patience = 90 * time.Second

// world is a database of its own with an outbox, a slot, and topics of its own.
type world struct {
	t      *testing.T
	admin  string // DSN of the maintenance database
	prefix string // of the world's topics and its database
	cfg    *config.Config
	conn   *pgx.Conn

	// How its bridges in this process dial; nil: directly.
	dialKafka    pgconn.DialFunc
	dialPostgres pgconn.DialFunc
}

var worlds atomic.Int64

// newWorld creates a database, changes its configuration as edit says, and sets it up.
func newWorld(t *testing.T, admin string, edit func(*config.Config)) *world {
	t.Helper()
	w := bareWorld(t, admin, "", edit)
	w.setup()
	return w
}

// setup does what `walferry init` does.
func (w *world) setup() {
	w.t.Helper()
	if err := setup.Run(w.t.Context(), w.options("", zerolog.Disabled), func(string) {}); err != nil {
		w.t.Fatal(err)
	}
}

// bareWorld creates a database, with options such as ENCODING, without any set-up.
func bareWorld(t *testing.T, admin, options string, edit func(*config.Config)) *world {
	t.Helper()
	w := &world{t: t, admin: admin, prefix: fmt.Sprintf("w%d_%d", time.Now().UnixMilli(), worlds.Add(1))}
	root, err := pgx.Connect(t.Context(), admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close(context.Background()) }()
	if _, err := root.Exec(t.Context(), "CREATE DATABASE "+w.prefix+" "+options); err != nil {
		t.Fatal(err)
	}
	dsn := dsnOf(t, admin, w.prefix)
	w.cfg = parseConfig(t, fmt.Sprintf(`
databases:
  - name: shop
    dsn: %s
    slot: %s
    publication: walferry
    outbox:
      - table: public.outbox
        topic: %s.{aggregatetype}
    messages:
      topic: %s.{aggregatetype}
kafka:
  brokers: %q
`, dsn, w.prefix, w.prefix, w.prefix, shared.kafka))
	w.cfg.Delivery = cmp.Or(shared.delivery, w.cfg.Delivery)
	if edit != nil {
		edit(w.cfg)
	}
	if w.conn, err = pgx.Connect(t.Context(), dsn+"&client_encoding=UTF8"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.drop)
	return w
}

// on makes a world publish to other brokers than the shared one.
func on(brokers ...string) func(*config.Config) {
	return func(cfg *config.Config) { cfg.Kafka.Brokers = brokers }
}

// withoutCheckpoints is for tests of what walferry notices by itself.
func withoutCheckpoints(c *config.Config) { c.Checkpoint.Topic, c.Delivery = "", atLeastOnce }

// The values of delivery.
const (
	atLeastOnce = "at_least_once"
	exactlyOnce = "exactly_once"
)

// onceEach makes a world's bridges commit events and checkpoints together.
func onceEach(c *config.Config) { c.Delivery = exactlyOnce }

func dsnOf(t *testing.T, admin, database string) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(admin)
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{fmt.Sprintf("%s:%d", cfg.Host, cfg.Port)}
	for _, f := range cfg.Fallbacks {
		hosts = append(hosts, fmt.Sprintf("%s:%d", f.Host, f.Port))
	}
	hosts = slices.Compact(hosts) // one is there with TLS and without
	dsn := fmt.Sprintf("postgres://%s/%s?user=%s&sslmode=disable", strings.Join(hosts, ","), database, cfg.User)
	if cfg.Password != "" {
		dsn += "&password=" + cfg.Password
	}
	if len(hosts) > 1 {
		dsn += "&target_session_attrs=read-write"
	}
	return dsn
}

func parseConfig(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// drop frees the slot, so that a shared server does not keep WAL for it.
func (w *world) drop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = w.conn.Close(ctx)
	w.dropSlot(w.prefix)
}

// dropSlot drops a slot, if there is one, as soon as nobody holds it.
func (w *world) dropSlot(slot string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	root, err := pgx.Connect(ctx, w.admin)
	if err != nil {
		return // the test has stopped its server
	}
	defer func() { _ = root.Close(ctx) }()
	await(w.t, "the slot to be dropped", func() error {
		_, err := root.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slot)
		return err
	})
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.conn.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) query(sql string, args ...any) string {
	w.t.Helper()
	var s string
	if err := w.conn.QueryRow(w.t.Context(), sql, args...).Scan(&s); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// insert writes one outbox row of type order.
func (w *world) insert(key, payload string) {
	w.t.Helper()
	w.exec("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('order', $1, 'T', $2)", key, payload)
}

// running is a bridge that runs in this process.
type running struct {
	t      *testing.T
	bridge *bridge.Bridge
	log    *syncBuffer
	stop   context.CancelFunc
	done   chan struct{}
	err    error
}

// syncBuffer is a log that a test may read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// run starts a bridge; until "" runs it until it is stopped.
func (w *world) run(until string) *running {
	w.t.Helper()
	return w.start(w.options(until, zerolog.InfoLevel))
}

// options are those of a bridge of the world that logs from this level on. It ends at until, or for "" when it is
// stopped.
func (w *world) options(until string, level zerolog.Level) bridge.Options {
	w.t.Helper()
	o := bridge.Options{
		Database: w.cfg.Databases[0], Kafka: w.cfg.Kafka, Checkpoint: w.cfg.Checkpoint, ExactlyOnce: w.cfg.ExactlyOnce(),
		Dial: w.dialKafka, DialPostgres: w.dialPostgres,
		Log:     zerolog.New(nil).Level(level),
		Metrics: bridge.NewMetrics(prometheus.NewRegistry(), "test", "test"),
	}
	if until != "" {
		var err error
		if o.Until, err = pglogrepl.ParseLSN(until); err != nil {
			w.t.Fatal(err)
		}
	}
	return o
}

// start runs a bridge with these options until it ends or the test does; its log goes to running.log.
func (w *world) start(o bridge.Options) *running {
	w.t.Helper()
	r := &running{t: w.t, log: &syncBuffer{}, done: make(chan struct{})}
	o.Log = o.Log.Output(r.log)
	r.bridge = bridge.New(o)
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		defer close(r.done)
		r.err = r.bridge.Run(ctx)
	}()
	w.t.Cleanup(func() {
		stop()
		<-r.done
		if w.t.Failed() {
			w.t.Logf("the bridge ended with %v; its log:\n%s", r.err, r.log)
		}
	})
	return r
}

// wait returns what the bridge ended with.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-time.After(patience):
		r.t.Fatalf("the bridge still runs after %s: %+v", patience, r.bridge.Status())
		return nil
	}
}

// drain stops the bridge as SIGTERM does.
func (r *running) drain() {
	r.t.Helper()
	r.stop()
	if err := r.wait(); err != nil {
		r.t.Errorf("drain: %v", err)
	}
}

func (r *running) awaitState(state bridge.State) {
	r.t.Helper()
	await(r.t, "state "+string(state), func() error {
		s := r.bridge.Status()
		switch s.State {
		case state:
			return nil
		case bridge.Failed, bridge.SlotLost, bridge.Stopped:
			r.t.Fatalf("state is %s, want %s: %s", s.State, state, s.LastError)
		}
		return fmt.Errorf("state is %s: %s", s.State, s.LastError)
	})
}

// drainAll runs a bridge up to the present end of WAL.
func (w *world) drainAll() {
	w.t.Helper()
	if err := w.run(w.walEnd()).wait(); err != nil {
		w.t.Fatal(err)
	}
}

// walEnd returns the end of a commit record that is younger than everything so far.
func (w *world) walEnd() string {
	w.t.Helper()
	// A transaction of its own, because WAL may end in a page header that no record ever
	// ends behind.
	w.exec("SELECT pg_logical_emit_message(true, 'wal-end', '')")
	return w.query("SELECT pg_current_wal_flush_lsn()::text")
}

// records returns everything in the world's topics, in each partition's order.
func (w *world) records() []*kgo.Record {
	w.t.Helper()
	var records []*kgo.Record
	w.eachRecord(func(r *kgo.Record) { records = append(records, r) })
	return records
}

// eachRecord visits everything that is committed in the world's topics, in each partition's order.
func (w *world) eachRecord(visit func(*kgo.Record)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords()) // the last of a transaction is one
	if err != nil {
		w.t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	type place struct {
		topic     string
		partition int32
	}
	assigned, want := map[string]map[int32]kgo.Offset{}, map[place]int64{} // the last offset
	ends.Each(func(o kadm.ListedOffset) {
		if strings.HasPrefix(o.Topic, w.prefix+".") {
			if assigned[o.Topic] == nil {
				assigned[o.Topic] = map[int32]kgo.Offset{}
			}
			assigned[o.Topic][o.Partition] = kgo.NewOffset().AtStart()
			if o.Offset > 0 {
				want[place{o.Topic, o.Partition}] = o.Offset - 1
			}
		}
	})
	client.AddConsumePartitions(assigned)
	for len(want) > 0 {
		polling, cancel := context.WithTimeout(context.Background(), patience) // for some of them, for there may be millions
		fetches := client.PollFetches(polling)
		cancel()
		if err := fetches.Err(); err != nil {
			w.t.Fatalf("read topics, not all of %v: %v", want, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				visit(r)
			}
			if at := (place{r.Topic, r.Partition}); r.Offset >= want[at] {
				delete(want, at)
			}
		})
	}
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

// await polls until check succeeds.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	awaitWithin(t, patience, what, check)
}

// awaitWithin is await for what takes another time.
func awaitWithin(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		case <-tick.C:
		}
	}
}
