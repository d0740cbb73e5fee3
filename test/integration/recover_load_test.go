package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/recovery"
	"github.com/walferry/walferry/internal/servers"
)

// Slots are lost under load, while a bridge runs and while none does.
func TestRecoverUnderLoad(t *testing.T) { losingSlots(t, "18", 3, newSeed(t)) }

// losingSlots loses the slot n times under load: dropped, below a bridge or not, or invalidated. Transactions commit in another
// order than that of their IDs, some of them long after they began, and write in savepoints. Each recovery must send what is in
// no topic and nothing else; in the end the topics have all that was committed.
func losingSlots(t *testing.T, version string, n int, random *rand.Rand) (events, resent int) {
	pg := ownPostgres(t, version, servers.PostgresOptions{
		InitArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{"min_wal_size": "2MB", "max_wal_size": "2MB"},
	})
	w := newWorld(t, pg.DSN("postgres"), func(c *config.Config) { c.Checkpoint.Interval = 200 * time.Millisecond })
	w.exec("CREATE TABLE filler (id int, filler text)")
	if _, err := w.kafkaAdmin().CreateTopic(t.Context(), 3, 1, nil, w.prefix+".order"); err != nil {
		t.Fatal(err)
	}
	path := w.configFile("")
	l := w.startLateWriters(6, random)
	defer l.stop()
	lost, first, killed := map[string]int{}, random.IntN(3), 0
	for round := range n {
		how := []string{"dropped below a bridge", "dropped", "invalidated"}[(first+round)%3]
		lost[how]++
		l.loseSlot(how, path, random)
		settled := l.committed()
		if random.IntN(3) > 0 { // the one that is killed leaves its work to the next
			c := walferry(t, "recover", "--config", path)
			<-time.After(time.Duration(random.IntN(1500)) * time.Millisecond)
			if err := c.cmd.Process.Kill(); err == nil {
				killed++
			}
			<-c.done
		}
		r, err := w.recovering(t.Context(), recovery.Run, nil)
		if err != nil && strings.Contains(err.Error(), "there is nothing to recover") {
			t.Logf("round %d: %s, recovered before it was killed", round, how)
			continue
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		resent += len(r.sent)
		seen := w.copies()
		for _, id := range r.sent {
			if seen[id] != 1 {
				t.Errorf("round %d: event %s was sent, and is %d times in the topics", round, id, seen[id])
			}
		}
		if slices.Sort(r.sent); len(slices.Compact(r.sent)) != int(r.Report.Sent) {
			t.Errorf("round %d: the report has %d of %d rows", round, len(r.sent), r.Report.Sent)
		}
		missing := 0
		for _, id := range settled {
			if seen[id] == 0 {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("round %d: %d of %d events that were committed before are in no topic", round, missing, len(settled))
		}
		t.Logf("round %d: %s, %d candidates, %d sent again of %d committed before", round, how, r.Candidates, r.Report.Sent, len(settled))
	}
	l.stop()
	w.drainAll()
	l.audit()
	t.Logf("%d rounds %v, %d recoveries killed: %d rows sent again by the last ones of %d events", n, lost, killed, resent, len(l.committed()))
	if resent == 0 {
		t.Error("nothing was ever sent again")
	}
	return len(l.committed()), resent
}

// copies returns how often each event is in the world's topics.
func (w *world) copies() map[string]int {
	w.t.Helper()
	seen := map[string]int{}
	w.eachRecord(func(r *kgo.Record) { seen[header(r, "id")]++ })
	return seen
}

// lateWriters write transactions that overlap, each the events of keys of its own.
type lateWriters struct {
	w       *world
	halt    context.CancelFunc
	writers sync.WaitGroup

	mu       sync.Mutex
	outcomes map[string]outcome
}

// startLateWriters starts n writers.
func (w *world) startLateWriters(n int, random *rand.Rand) *lateWriters {
	w.t.Helper()
	ctx, halt := context.WithCancel(context.Background())
	l := &lateWriters{w: w, halt: halt, outcomes: map[string]outcome{}}
	for i := range n {
		conn, own := w.another(), rand.New(rand.NewPCG(random.Uint64(), uint64(i)))
		l.writers.Go(func() {
			for txn := 0; ctx.Err() == nil; txn++ {
				if err := l.transaction(conn, i, txn, own); err != nil {
					w.t.Errorf("writer %d: %v", i, err)
					return
				}
			}
		})
	}
	w.t.Cleanup(l.stop)
	return l
}

func (l *lateWriters) stop() {
	l.halt()
	l.writers.Wait()
}

// transaction writes up to 12 events, some in savepoints, and commits at once, or late, or not at all. Its transaction ID may be
// older than its first row.
func (l *lateWriters) transaction(conn *pgx.Conn, writer, txn int, random *rand.Rand) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	exec := func(sql string) {
		if err == nil {
			_, err = conn.Exec(ctx, sql)
		}
	}
	late := time.Duration(random.IntN(40)) * time.Millisecond
	if random.IntN(8) == 0 {
		late = time.Duration(random.IntN(1500)) * time.Millisecond
	}
	var kept, undone []string
	exec("BEGIN")
	if random.IntN(2) == 0 {
		exec("SELECT pg_current_xact_id()")
		<-time.After(late / 2)
	}
	for i := range 1 + random.IntN(4) {
		end := ""
		if random.IntN(3) > 0 {
			exec("SAVEPOINT s")
			end = "RELEASE s"
			if random.IntN(4) == 0 {
				end = "ROLLBACK TO s"
			}
		}
		for j := range 1 + random.IntN(3) {
			id := fmt.Sprintf("%08x-%04x-4000-8000-%012x", writer, 4*i+j, txn)
			exec(fmt.Sprintf("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('%s', 'order', 'key-%d-%d', 'T', '%d')", id, writer, j, txn))
			if end == "ROLLBACK TO s" {
				undone = append(undone, id)
			} else {
				kept = append(kept, id)
			}
		}
		if end != "" {
			exec(end)
		}
		<-time.After(late / 4)
	}
	outcome, end := committed, "COMMIT"
	if random.IntN(10) == 0 {
		outcome, end = rolledBack, "ROLLBACK"
	}
	exec(end)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range kept {
		l.outcomes[id] = outcome
	}
	for _, id := range undone {
		l.outcomes[id] = rolledBack
	}
	return nil
}

// committed returns the events that are known to be.
func (l *lateWriters) committed() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, o := range l.outcomes {
		if o == committed {
			ids = append(ids, id)
		}
	}
	return ids
}

// more waits until n more events are committed.
func (l *lateWriters) more(n int) {
	l.w.t.Helper()
	target := len(l.committed()) + n
	await(l.w.t, fmt.Sprintf("%d more events", n), func() error {
		if got := len(l.committed()); got < target {
			return fmt.Errorf("%d to go", target-got)
		}
		return nil
	})
}

// loseSlot lets a bridge run for a while, ends it in one way or another, and loses its slot.
func (l *lateWriters) loseSlot(how, path string, random *rand.Rand) {
	w := l.w
	w.t.Helper()
	c := walferry(w.t, "run", "--config", path)
	await(w.t, "the bridge to stream", func() error {
		if w.walsender() == "" {
			return errors.New("nobody holds the slot")
		}
		return nil
	})
	l.more(20 + random.IntN(200))
	switch {
	case how == "dropped below a bridge":
		w.dropBelow()
		c.exit(67)
		l.more(20 + random.IntN(100))
		return
	case random.IntN(2) == 0:
		if err := c.cmd.Process.Signal(os.Kill); err != nil {
			w.t.Fatal(err)
		}
		<-c.done
	default:
		c.terminate()
	}
	w.awaitNoWalsender()
	l.more(20 + random.IntN(100))
	if how == "dropped" {
		w.dropOwnSlot()
	} else {
		w.exec("ALTER SYSTEM SET max_slot_wal_keep_size = '2MB'")
		w.exec("SELECT pg_reload_conf()")
		w.loseSlot()
		w.exec("ALTER SYSTEM RESET max_slot_wal_keep_size")
		w.exec("SELECT pg_reload_conf()")
	}
	l.more(random.IntN(50))
}

// dropBelow drops the slot although a bridge holds it.
func (w *world) dropBelow() {
	w.t.Helper()
	await(w.t, "the slot to be dropped", func() error {
		w.exec("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", w.prefix)
		_, err := w.conn.Exec(w.t.Context(), "SELECT pg_drop_replication_slot($1)", w.prefix)
		return err
	})
}

// audit compares the topics with what the writers know: all that was committed and nothing else, once if it came out of the
// table, the events of a key in the order of their transactions.
func (l *lateWriters) audit() {
	w := l.w
	w.t.Helper()
	seen, source, last, faults := map[string]int{}, map[string]bool{}, map[string]int{}, map[string]int{}
	w.eachRecord(func(r *kgo.Record) {
		id := header(r, "id")
		source[id] = source[id] || header(r, "walferry-source") == "table"
		if seen[id]++; seen[id] > 1 {
			return
		}
		if l.outcomes[id] != committed {
			faults["phantom"]++
		}
		var txn int
		if _, err := fmt.Sscan(string(r.Value), &txn); err != nil || !strings.HasSuffix(id, fmt.Sprintf("-%012x", txn)) {
			faults["altered"]++
		}
		if txn < last[string(r.Key)] {
			faults["order"]++
		}
		last[string(r.Key)] = max(txn, last[string(r.Key)])
	})
	duplicates := 0
	for _, id := range l.committed() {
		switch {
		case seen[id] == 0:
			faults["lost"]++
		case seen[id] > 1 && source[id]:
			faults["twice out of the table"]++
		case seen[id] > 1:
			duplicates++
		}
	}
	w.t.Logf("%d events, %d of a bridge that was killed came again", len(seen), duplicates)
	if len(faults) > 0 {
		w.t.Errorf("faults: %v", faults)
	}
}
