package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// fleet is the databases of one process.
type fleet []*world

// newFleet makes a database of each name.
func newFleet(t *testing.T, admin string, names []string, edit func(*config.Config)) fleet {
	t.Helper()
	var f fleet
	for _, name := range names {
		f = append(f, newWorld(t, admin, func(c *config.Config) {
			c.Databases[0].Name = name
			if edit != nil {
				edit(c)
			}
		}))
	}
	return f
}

// daemon starts the binary on all of the databases, with the first one's brokers and delivery.
func (f fleet) daemon(admin string) *command {
	t, cfg := f[0].t, f[0].cfg
	t.Helper()
	var databases strings.Builder
	for _, w := range f {
		db := w.cfg.Databases[0]
		fmt.Fprintf(&databases, "  - {name: %s, dsn: %q, slot: %s, publication: %s, outbox: [{table: outbox, topic: %q}], drain_timeout: %s}\n",
			db.Name, db.DSN.Reveal(), db.Slot, db.Publication, db.Outbox[0].Topic, db.DrainTimeout)
	}
	return walferry(t, "run", "--config", writeFile(t, fmt.Sprintf(
		"databases:\n%skafka: {brokers: %q}\ndelivery: %s\ncheckpoint: {topic: %q}\nadmin: {listen: %q}\nlog: {format: json}\n",
		&databases, strings.Join(cfg.Kafka.Brokers, ","), cfg.Delivery, cfg.Checkpoint.Topic, admin)))
}

// statuses returns what a process says of its databases, by name.
func statuses(t *testing.T, addr string) map[string]bridge.Status {
	t.Helper()
	var all []bridge.Status
	if code, body := get(t, "http://"+addr+"/status"); code != 200 || json.Unmarshal([]byte(body), &all) != nil {
		t.Fatalf("/status answers %d: %s", code, body)
	}
	byName := map[string]bridge.Status{}
	for _, s := range all {
		byName[s.Database] = s
	}
	return byName
}

// trickle is a light load on a database, and when its events arrive at a consumer of committed records.
type trickle struct {
	written int
	stop    func() // the writer, and waits for it

	mu       sync.Mutex
	arrivals []arrival
}

type arrival struct {
	at    time.Time // the insert was sent
	delay time.Duration
}

// startTrickle writes an event each pause until stop.
func (w *world) startTrickle(pause time.Duration) *trickle {
	w.t.Helper()
	if _, err := w.kafkaAdmin().CreateTopic(w.t.Context(), 1, 1, nil, w.prefix+".trickle"); err != nil {
		w.t.Fatal(err)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...), kgo.ConsumeTopics(w.prefix+".trickle"),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := pgx.Connect(w.t.Context(), w.dsn())
	if err != nil {
		w.t.Fatal(err)
	}
	tr := &trickle{}
	ctx, cancel := context.WithCancel(context.Background())
	var writer, consumer sync.WaitGroup
	writer.Go(func() { tr.write(ctx, w.t, conn, pause) })
	consumer.Go(func() { tr.consume(client) })
	tr.stop = sync.OnceFunc(func() { cancel(); writer.Wait() })
	w.t.Cleanup(func() {
		tr.stop()
		client.Close()
		consumer.Wait()
		_ = conn.Close(context.Background())
	})
	return tr
}

func (tr *trickle) write(ctx context.Context, t *testing.T, conn *pgx.Conn, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := conn.Exec(context.Background(), `INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
			VALUES ('trickle', 'k', 'T', to_jsonb($1::bigint))`, time.Now().UnixNano()); err != nil {
			t.Errorf("insert: %v", err)
			return
		}
		tr.written++
	}
}

// consume ends when the client is closed.
func (tr *trickle) consume(client *kgo.Client) {
	for {
		fetches := client.PollFetches(context.Background())
		if fetches.IsClientClosed() {
			return
		}
		now := time.Now()
		tr.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			var nanos int64
			_ = json.Unmarshal(r.Value, &nanos) // it is what write wrote
			at := time.Unix(0, nanos)
			tr.arrivals = append(tr.arrivals, arrival{at, now.Sub(at)})
		})
		tr.mu.Unlock()
	}
}

// delays returns those of the events of a period that have arrived, the shortest first.
func (tr *trickle) delays(from, to time.Time) (delays []time.Duration) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, a := range tr.arrivals {
		if !a.at.Before(from) && a.at.Before(to) {
			delays = append(delays, a.delay)
		}
	}
	slices.Sort(delays)
	return delays
}

// awaitAll waits until everything that was written has arrived, and returns how many events that were more.
func (tr *trickle) awaitAll(t *testing.T) (more int) {
	t.Helper()
	tr.stop()
	await(t, "the last events of a database", func() error {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		events := map[time.Time]bool{}
		for _, a := range tr.arrivals {
			events[a.at] = true
		}
		if len(events) < tr.written {
			return fmt.Errorf("%d of %d have arrived", len(events), tr.written)
		}
		more = len(tr.arrivals) - len(events)
		return nil
	})
	return more
}
