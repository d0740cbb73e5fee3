package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/internal/servers"
)

// refusesToRepair fails unless a repair says all the parts and publishes nothing.
func (w *world) refusesToRepair(edit func(*reconcile.Options), parts ...string) (report []reported) {
	w.t.Helper()
	records := 0
	count := func(*kgo.Record) { records++ }
	w.eachRecord(count)
	before := records
	var text bytes.Buffer
	o := reconcile.Options{Options: w.options("", zerolog.Disabled), Repair: true, MaxRepair: 1000, Report: &text, Memory: 1 << 20, Timeout: patience}
	edit(&o)
	_, err := reconcile.Run(w.t.Context(), o)
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			w.t.Errorf("%v, want an error with %q", err, part)
		}
	}
	w.t.Log(err)
	records = 0
	if w.eachRecord(count); records != before {
		w.t.Errorf("%d records were published", records-before)
	}
	return parseReport(w.t, &text)
}

func TestReconcileDoesNotFloodATopic(t *testing.T) {
	w, _ := published(t, nil)
	report := w.refusesToRepair(func(o *reconcile.Options) { o.MaxRepair = 2 }, "3 rows are missing", "--max-repair 2", "look at --report first")
	if len(report) != 3 || slices.ContainsFunc(report, func(l reported) bool { return l.Repaired }) {
		t.Errorf("the report is %+v", report)
	}
	w.refusesToRepair(func(o *reconcile.Options) { o.MaxRepair, o.Report = 2, nil }, "3 rows are missing")
	w.repairs(3)
}

func TestReconcileRepairsOnceAtATime(t *testing.T) {
	w, _ := published(t, nil)
	lock := w.another()
	w.on(lock, "SELECT pg_advisory_lock(hashtextextended('walferry recover "+w.prefix+"', 0))")
	w.refusesToRepair(func(*reconcile.Options) {}, "another walferry recovers slot", "or repairs")
	if r := w.reconciled(); r.Total.Missing != 3 { // which changes nothing
		t.Errorf("%+v", r)
	}
	w.on(lock, "SELECT pg_advisory_unlock_all()")
	w.repairs(3)
	w.repairs(0)
}

// writing is an io.Writer of a function.
type writing func([]byte)

func (f writing) Write(b []byte) (int, error) {
	f(b)
	return len(b), nil
}

func TestReconcileGivesUpOnBrokersThatDoNotAcknowledge(t *testing.T) {
	w, _ := published(t, nil)
	_, kafka := w.throughProxies()
	_, err := reconcile.Run(t.Context(), reconcile.Options{
		Options: w.options("", zerolog.Disabled), Repair: true, MaxRepair: 10, Memory: 1 << 20, Timeout: 2 * time.Second,
		Report: writing(func([]byte) { kafka.blackHole() }), // behind the first row that is published
	})
	if err == nil || !strings.Contains(err.Error(), "acknowledged nothing for 2s") {
		t.Errorf("%v", err)
	}
	t.Log(err)
	kafka.heal()
	if r, _ := w.reconcile(true); !r.Agree || r.Total.Repaired < 2 {
		t.Errorf("run again: %+v", r)
	}
}

// Two hosts of one DSN may be two servers, in a failover.
func TestReconcileRefusesTwoServers(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	w.confirmAll()
	root, err := pgx.Connect(t.Context(), ownPostgres(t, "14", servers.PostgresOptions{}).DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close(context.Background()) }()
	w.on(root, "CREATE DATABASE "+w.prefix)
	connections := 0
	w.dialPostgres = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if connections++; connections == 2 {
			addr = net.JoinHostPort(root.Config().Host, fmt.Sprint(root.Config().Port))
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	w.refusesToRepair(func(*reconcile.Options) {}, "the tables are read from server", "and the slot from server", "run it again")
}

// publishMostOf100 writes 100 rows, each by a command of one transaction, appends the records of most of them to their topic, and returns the
// ids of the others.
func (w *world) publishMostOf100() (missing []string) {
	w.t.Helper()
	topic := w.createTopic("order", 1, nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text")
	w.exec(`DO $$ BEGIN FOR n IN 0..99 LOOP
		INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (n, 'order', 'k', 'T', to_jsonb(n));
	END LOOP; END $$`)
	p := w.publisher()
	for n := range 100 {
		if n%10 == 3 {
			missing = append(missing, fmt.Sprint(n))
			continue
		}
		p.append(p.record(topic, fmt.Sprint(n), "k", fmt.Sprint(n)))
	}
	p.flush()
	return missing
}

// Rows of one transaction are ordered by the command that wrote them, a number that whoever deletes them overwrites: the second
// time they come in another order.
func TestReconcileRepairsTheRightRowsWhileOthersAreDeleted(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	var want []string
	for _, id := range w.publishMostOf100() {
		want = append(want, "missing "+id)
	}
	w.confirmAll()
	var report bytes.Buffer
	deleted := false
	r, err := reconcile.Run(t.Context(), reconcile.Options{
		Options: w.options("", zerolog.Disabled), Repair: true, MaxRepair: 10, Report: &report, Memory: 1 << 20, Timeout: patience,
		Progress: func(stage string, _, _ int64) {
			if stage == reconcile.StageTopics && !deleted {
				deleted = true
				w.exec("DELETE FROM outbox WHERE id::int % 3 = 2")
			}
		},
	})
	if err != nil || r.Total.Repaired != 10 {
		t.Fatalf("%+v: %v", r, err)
	}
	slices.Sort(want)
	missed(t, found(parseReport(t, &report)), want)
	seen := map[string]int{}
	w.eachRecord(func(k *kgo.Record) {
		seen[header(k, "id")]++
		if got := header(k, "id"); got != string(k.Value) {
			t.Errorf("%s has the payload %s", got, k.Value)
		}
	})
	for n := range 100 {
		if seen[fmt.Sprint(n)] != 1 {
			t.Errorf("%d was published %d times", n, seen[fmt.Sprint(n)])
		}
	}
}
