package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/pgoutput"
	"github.com/walferry/walferry/internal/refusal"
	"github.com/walferry/walferry/internal/walsender"
	"github.com/walferry/walferry/replication"
)

// rig is a bridge between a scripted walsender and a fake Kafka, all in one synctest
// bubble: time is fake, and a goroutine that is left over fails the test.
type rig struct {
	t             *testing.T
	pg            *walsender.Server
	kafka         *kfake.Cluster
	network       *kfake.VirtualNetwork
	options       Options
	bridge        *Bridge
	log           *logBuffer
	stop          context.CancelFunc
	ended         chan error
	seen          lsns
	senderTimeout time.Duration
	republished   atomic.Int64

	waitsForStandby atomic.Bool // the walsender does
	muted           atomic.Bool // what Postgres sends never arrives
	cut             atomic.Bool // the bridge reaches nobody any more
	noKafka         atomic.Bool // connections to brokers never come about
}

// muteConn is a connection behind a network that has gone away without a word.
type muteConn struct {
	net.Conn
	muted *atomic.Bool
}

func (c muteConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.muted.Load() {
			return n, err
		}
	}
}

// lsns are those that the server has sent, and so the only ones that may come back.
type lsns struct {
	mu   sync.Mutex
	sent map[replication.LSN]bool
}

func (l *lsns) add(lsn replication.LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent[lsn] = true
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const secretPayload = "s3cret-payload"

var (
	outboxRelation = pgoutput.Relation{ID: 16400, Namespace: "public", Name: "outbox", ReplicaIdentity: 'd', Columns: []pgoutput.Column{
		{Key: true, Name: "id", TypeOID: 2950, TypeMod: -1},
		{Name: "aggregatetype", TypeOID: 1043, TypeMod: -1},
		{Name: "aggregateid", TypeOID: 1043, TypeMod: -1},
		{Name: "type", TypeOID: 1043, TypeMod: -1},
		{Name: "payload", TypeOID: 3802, TypeMod: -1},
	}}
	otherRelation = pgoutput.Relation{ID: 16500, Namespace: "public", Name: "orders", ReplicaIdentity: 'd', Columns: []pgoutput.Column{
		{Name: "id", TypeOID: 20, TypeMod: -1},
	}}
)

// event is a row of the outbox.
func event(n int) walsender.Change {
	return walsender.Insert(outboxRelation, pgoutput.Text(fmt.Sprintf("id-%d", n)), pgoutput.Text("order"),
		pgoutput.Text("key"), pgoutput.Text("T"), pgoutput.Text(fmt.Sprintf(`{"n": %d, "s": %q}`, n, secretPayload)))
}

// newRig starts the two servers. senderTimeout is the server's wal_sender_timeout.
func newRig(t *testing.T, senderTimeout time.Duration, edit func(*walsender.Config, *config.Config)) *rig {
	t.Helper()
	r := &rig{t: t, network: &kfake.VirtualNetwork{}, log: &logBuffer{}, seen: lsns{sent: map[replication.LSN]bool{}}}
	var err error
	r.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.ListenFn(r.network.Listen),
		kfake.SeedTopics(1, "outbox.event.order"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.kafka.Close)
	cfg, err := config.Parse("rig.yaml", []byte(`
databases:
  - {name: shop, dsn: "postgres://walferry@127.0.0.1:5432/shop?sslmode=disable", slot: walferry, publication: walferry, outbox: [{table: public.outbox}]}
kafka:
  brokers: ["localhost:9092"]
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Kafka.Brokers = r.kafka.ListenAddrs()
	sender := walsender.Config{Slot: "walferry", Start: 0x1500000, SystemID: "7000", Timeline: 1, SenderTimeout: senderTimeout}
	if edit != nil {
		edit(&sender, cfg)
	}
	r.seen.add(sender.Start)
	r.pg = walsender.New(sender)
	t.Cleanup(r.pg.Close)
	r.senderTimeout = senderTimeout
	r.answerSQL()
	r.options = Options{
		Database: cfg.Databases[0], Kafka: cfg.Kafka, Dial: r.dialKafka,
		Log: zerolog.New(r.log).Level(zerolog.DebugLevel), Metrics: NewMetrics(prometheus.NewRegistry(), "test", "test"),
		DialPostgres: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := r.pg.Dial(ctx, network, addr)
			return muteConn{conn, &r.muted}, err
		},
	}
	r.bridge = New(r.options)
	return r
}

func (r *rig) dialKafka(ctx context.Context, network, addr string) (net.Conn, error) {
	if r.cut.Load() {
		return nil, errors.New("cut off")
	}
	if r.noKafka.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r.network.DialContext(ctx, network, addr)
}

// answerSQL answers the bridge's queries as a server does that is set up well.
func (r *rig) answerSQL() {
	row := func(tag string, values ...any) {
		r.pg.Handle(tag, func(string) walsender.Result { return walsender.Answer(values...) })
	}
	r.server(1)
	row("publication", "16390/700", true, true)
	row("holder", "pid 1 application somebody")
	r.table("r", "{}")
	r.slot("reserved", "")
	r.pg.Handle("has-slot", func(string) walsender.Result { return walsender.Answer(false) }) // one that keeps WAL for replays
}

// server has the server answer what it says of itself, from now on.
func (r *rig) server(timeline int) {
	r.pg.Handle("server", func(string) walsender.Result {
		return walsender.Answer("7000", timeline, 180001, "logical", false, "UTF8", "shop", int(r.senderTimeout.Milliseconds()))
	})
}

// table has the server answer what it says of the outbox table, from now on.
func (r *rig) table(kind string, published walsender.JSON) {
	r.pg.Handle("table", func(string) walsender.Result {
		return walsender.Answer(outboxRelation.ID, kind, "p", walsender.JSON(`["id","aggregatetype","aggregateid","type","payload"]`), published, r.membership())
	})
}

// membership is the publication's row of the outbox table, which republish replaces.
func (r *rig) membership() string { return fmt.Sprintf("16410/%d", 700+r.republished.Load()) }

// slot has the server answer what it says of the slot, from now on.
func (r *rig) slot(walStatus, invalidation string) {
	r.pg.Handle("slot", func(string) walsender.Result {
		at := r.pg.Confirmed()
		return walsender.Answer("pgoutput", "logical", "shop", r.pg.ActivePID() != "", r.pg.ActivePID(), at, at, walStatus, -1, invalidation, false, r.pg.WALEnd(), "100:100:", r.pg.WALEnd(), r.waitsForStandby.Load())
	})
}

// start runs the bridge until finish, or the end of the test.
func (r *rig) start() {
	ctx, stop := context.WithCancel(r.t.Context())
	r.stop, r.ended = stop, make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r.ended <- r.bridge.Run(ctx)
	}()
	r.t.Cleanup(func() { // for a test that failed before finish
		stop()
		<-gone
	})
	synctest.Wait()
}

// finish drains the bridge and checks what must hold for every run: the acknowledgement
// rules, and that no log line shows data.
func (r *rig) finish() error {
	r.t.Helper()
	r.stop()
	err := <-r.ended
	r.checkUpdates()
	if strings.Contains(r.log.String(), secretPayload) {
		r.t.Errorf("I18: the log shows a payload:\n%s", r.log)
	}
	return err
}

// finishAfter lets the bridge run for d, and drains it.
func (r *rig) finishAfter(d time.Duration) {
	r.t.Helper()
	sleep(d)
	if err := r.finish(); err != nil {
		r.t.Fatal(err)
	}
}

// commit commits a transaction and notes what the server sends of it.
func (r *rig) commit(changes ...walsender.Change) walsender.Committed {
	c := r.pg.Commit(changes)
	r.seen.add(c.EndLSN)
	return c
}

// checkUpdates judges every status update: I1, I4, I5.
func (r *rig) checkUpdates() {
	r.t.Helper()
	r.seen.add(r.pg.WALEnd())
	var last replication.LSN
	for i, u := range r.pg.Updates() {
		if u.Write != u.Flush || u.Flush != u.Apply {
			r.t.Errorf("I5: update %d: write %s, flush %s, apply %s", i, u.Write, u.Flush, u.Apply)
		}
		if u.Flush == 0 {
			r.t.Errorf("I5: update %d confirms 0/0", i)
		}
		if u.Flush < last {
			r.t.Errorf("I1: update %d goes back from %s to %s", i, last, u.Flush)
		}
		if !r.seen.sent[u.Flush] {
			r.t.Errorf("I4: update %d confirms %s, which the server never sent", i, u.Flush)
		}
		last = u.Flush
	}
}

// sleep lets fake time pass.
func sleep(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// records returns what is in a topic: all that comes within ten seconds of fake time.
func (r *rig) records(topic string, opts ...kgo.Opt) (records []*kgo.Record) {
	r.t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(r.kafka.ListenAddrs()...), kgo.Dialer(r.network.DialContext),
		kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		records = append(records, client.PollFetches(ctx).Records()...)
	}
	return records
}

// delivered returns the ids in the topic, in order.
func (r *rig) delivered() (ids []string) {
	r.t.Helper()
	for _, p := range r.positions() {
		ids = append(ids, p.id)
	}
	return ids
}

// positioned is an event in the topic.
type positioned struct{ id, position string }

// positions returns the events in the topic, in order.
func (r *rig) positions(opts ...kgo.Opt) (all []positioned) {
	r.t.Helper()
	for _, record := range r.records("outbox.event.order", opts...) {
		var p positioned
		for _, h := range record.Headers {
			switch h.Key {
			case "id":
				p.id = string(h.Value)
			case "walferry-position":
				p.position = string(h.Value)
			}
		}
		all = append(all, p)
	}
	return all
}

// holdProduce leaves produce requests without an answer until release is called, which waits until kfake
// has gone on: a cluster that is closed while it wakes a request up may wait for its own lock for ever.
func (r *rig) holdProduce() (release func()) {
	held := make(chan struct{})
	r.kafka.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		r.kafka.SleepControl(func() { <-held })
		return nil, nil, false
	})
	return sync.OnceFunc(func() {
		close(held)
		synctest.Wait()
	})
}

// failProduce answers one produce request with an error; after says after how many good ones.
func (r *rig) failProduce(after int, with *kerr.Error) {
	r.kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		r.kafka.KeepControl()
		if after--; after != -1 {
			return nil, nil, false
		}
		return refusal.Of(request.(*kmsg.ProduceRequest), with.Code, -1), nil, true
	})
}
