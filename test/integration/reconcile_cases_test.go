package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/reconcile"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/internal/servers"
	"github.com/walferry/walferry/replication"
)

// deleteRecords deletes what a partition holds before an offset.
func (w *world) deleteRecords(topic string, partition int32, before int64) {
	w.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: before})
	responses, err := w.kafkaAdmin().DeleteRecords(w.t.Context(), offsets)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// indexNow adds an entry to the index of the checkpoint, as a bridge does each minute: that of a minute in the future.
func (w *world) indexNow(minute int) {
	w.t.Helper()
	e := checkpoint.Entry{Pos: checkpoint.LSN{LSN: w.lsnOf("SELECT pg_current_wal_insert_lsn()::text")}, Time: time.Now(), Timeline: 1}
	e.SystemID = w.query("SELECT system_identifier::text FROM pg_control_system()")
	e.Snapshot = w.query("SELECT pg_snapshot_xmin(s) || ':' || pg_snapshot_xmax(s) || ':' FROM pg_current_snapshot() s")
	value, err := json.Marshal(&e)
	if err != nil {
		w.t.Fatal(err)
	}
	p := w.publisher()
	key := fmt.Sprintf("shop/%s/t/9999-01-01T00:%02dZ", w.prefix, minute)
	p.append(&kgo.Record{Topic: w.cfg.Checkpoint.Topic, Key: []byte(key), Value: value})
	p.flush()
}

func (w *world) lsnOf(sql string) replication.LSN {
	w.t.Helper()
	var l checkpoint.LSN
	if err := l.UnmarshalText([]byte(w.query(sql))); err != nil {
		w.t.Fatal(err)
	}
	return l.LSN
}

// published is a world whose rows 0 to 29 of one key are published but for 5, 12 and 25, and whose checkpoint knows the
// transaction IDs from before 10 and from before 20.
func published(t *testing.T, configs map[string]*string) (w *world, topic string) {
	t.Helper()
	w = newWorld(t, newest(t), nil)
	topic = w.createTopic("order", 1, configs)
	w.exec("ALTER TABLE outbox ALTER id TYPE text")
	p := w.publisher()
	for n := range 30 {
		if n == 10 || n == 20 {
			w.indexNow(n)
		}
		w.exec("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1::int, 'order', 'k', 'T', to_jsonb($1::int))", n)
		if n != 5 && n != 12 && n != 25 {
			p.append(p.record(topic, fmt.Sprint(n), "k", fmt.Sprint(n)))
		}
	}
	p.flush()
	w.confirmAll()
	return w, topic
}

func TestReconcileDoesNotCallMissingWhatMayHaveExpired(t *testing.T) {
	w, topic := published(t, nil)
	check := func(when string, want []string, unknown int64) {
		t.Helper()
		r, report := w.reconcile(false)
		if got := found(report); !slices.Equal(got, want) || r.Total.Unknown != unknown || r.Total.Missing != int64(len(want)) {
			t.Errorf("%s: %q and %d unknown, want %q and %d", when, got, r.Total.Unknown, want, unknown)
		}
	}
	check("nothing has expired", []string{"missing 12", "missing 25", "missing 5"}, 0)
	w.deleteRecords(topic, 0, 1)
	check("the first has expired", []string{"missing 12", "missing 25"}, 2) // 0, and 5 that nothing tells from it
	w.deleteRecords(topic, 0, 10)
	check("11 is the first", []string{"missing 25"}, 12) // up to 10, and 12
	w.repairs(1)
	check("25 is repaired", nil, 12)
	w.deleteRecords(topic, 0, 27)
	check("only the repair is held", nil, 29) // which says nothing of others
	w.deleteRecords(topic, 0, 28)
	check("all have expired", nil, 30)
	if _, err := w.kafkaAdmin().DeleteTopics(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	await(t, "the topic to be gone", func() error {
		if r := w.reconciled(); r.Topics[0].Partitions > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	if r := w.reconciled(); r.Total.Missing != 30 || r.Agree {
		t.Errorf("without the topic: %+v", r)
	}
	w.repairs(30)
	if r := w.reconciled(); !r.Agree || r.Total.Records != 30 || r.Total.Missing+r.Total.OutOfOrder != 0 {
		t.Errorf("after all were repaired: %+v", r)
	}
}

// A row that was updated has the transaction ID of the update, as if it was new.
func TestReconcileDoesNotCallMissingARowThatWasUpdated(t *testing.T) {
	w, topic := published(t, nil)
	w.deleteRecords(topic, 0, 10)
	w.update("UPDATE outbox SET type = 'U' WHERE id = '3'")
	r, report := w.reconcile(true)
	if len(report) != 0 || r.Total.Unknown != 13 || r.Total.Repaired != 0 || !strings.Contains(strings.Join(r.Hints, " "), "rows of table public.outbox were updated (1 times") {
		t.Errorf("%+v, %+v", r, report)
	}
	_, reset, _ := strings.Cut(strings.Join(r.Hints, " "), "are deleted: ")
	reset, _, ok := strings.Cut(reset, ")")
	if !ok {
		t.Fatalf("the hints are %q", r.Hints)
	}
	w.exec("DELETE FROM outbox WHERE id = '3'")
	w.exec(reset + ")")
	if r, report = w.reconcile(false); !slices.Equal(found(report), []string{"missing 25"}) || r.Total.Unknown != 11 {
		t.Errorf("once it is deleted: %+v, %+v", r, report)
	}
}

// update runs SQL on a connection that ends, and so tells the statistics.
func (w *world) update(sql string) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.dsn())
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := conn.Exec(w.t.Context(), sql); err != nil {
		w.t.Error(err)
	}
	if err := conn.Close(w.t.Context()); err != nil {
		w.t.Error(err)
	}
	await(w.t, "the statistics", func() error {
		if w.query("SELECT sum(n_tup_upd)::text FROM pg_stat_user_tables WHERE relname LIKE 'outbox%'") == "0" {
			return errors.New("no update is counted")
		}
		return nil
	})
}

func TestReconcileOfACompactedTopic(t *testing.T) {
	for _, policy := range []string{"compact", "compact,delete"} {
		w, _ := published(t, map[string]*string{"cleanup.policy": &policy})
		r, report := w.reconcile(true)
		if !r.Agree || len(report) != 0 || r.Total.Unknown != 3 || r.Total.Repaired != 0 || !r.Topics[0].Compacted {
			t.Errorf("%+v", r)
		}
	}
}

// Not everything in a topic is an event's only record.
func TestReconcileOfRecordsOfEveryKind(t *testing.T) { onEveryPostgres(t, reconcileEveryKind) }

func reconcileEveryKind(t *testing.T, admin string) {
	w := newWorld(t, admin, func(c *config.Config) { c.Databases[0].Outbox[0].TypeHeader = "eventType" })
	topic := w.createTopic("order", 1, nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text, ALTER payload TYPE text, ALTER payload DROP NOT NULL, ALTER type DROP NOT NULL")
	insert := func(id, kind, eventType string, payload any) {
		t.Helper()
		w.exec("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1, $2, 'k', nullif($3, ''), $4)", id, kind, eventType, payload)
	}
	p := w.publisher()
	typed := func(name string) kgo.RecordHeader { return kgo.RecordHeader{Key: "eventType", Value: []byte(name)} }
	replayed := kgo.RecordHeader{Key: "walferry-replay-id", Value: []byte("1")}
	repaired := kgo.RecordHeader{Key: "walferry-source", Value: []byte("table")}
	put := func(id, payload string, headers ...kgo.RecordHeader) {
		p.append(p.record(topic, id, "k", payload, headers...))
	}
	putTombstone := func(id string) {
		r := p.record(topic, id, "k", "", typed("T"))
		r.Value = nil
		p.append(r)
	}

	insert("plain", "order", "T", "1")
	put("plain", "1", typed("T"))
	insert("untyped", "order", "", "1")
	put("untyped", "1")
	insert("of another type", "order", "T", "1")
	put("of another type", "1", typed("U"))
	insert("of no type", "order", "T", "1")
	put("of no type", "1")
	insert("tombstone", "order", "T", nil)
	putTombstone("tombstone")
	insert("empty, not a tombstone", "order", "T", "")
	putTombstone("empty, not a tombstone")
	insert("tombstone, not empty", "order", "T", nil)
	put("tombstone, not empty", "", typed("T"))
	insert("of another key", "order", "T", "1")
	p.append(p.record(topic, "of another key", "l", "1", typed("T")))
	insert("as long", "order", "T", "12")
	put("as long", "13", typed("T"))
	insert("replayed", "order", "T", "1")
	put("replayed", "1", typed("T"))
	put("replayed", "1", typed("T"), replayed)
	put("replayed", "1", typed("T"), replayed)
	insert("only replayed", "order", "T", "1")
	put("only replayed", "1", typed("T"), replayed)
	insert("repaired", "order", "T", "1")
	put("repaired", "1", typed("T"), repaired)
	insert("twice", "order", "T", "1")
	put("twice", "1", typed("T"))
	put("twice", "1", typed("T"))
	put("twice", "1", typed("T"))
	put("without a row", "1", typed("T"))
	p.append(&kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("without an id")})
	insert("never", "order", "T", "1")
	insert("no topic", "with spaces", "T", "1")
	insert("too large", "order", "T", strings.Repeat("x", 2<<20))
	insert("dead", "order", "T", "1")
	p.append(&kgo.Record{Topic: w.deadLetterTopic(), Key: []byte("a position"), Headers: []kgo.RecordHeader{
		{Key: "walferry-database", Value: []byte("shop")},
		{Key: "walferry-slot", Value: []byte(w.prefix)},
		{Key: "walferry-where", Value: []byte("public.outbox")},
		{Key: "walferry-id", Value: []byte("dead")},
	}})
	insert("dead elsewhere", "order", "T", "1")
	p.append(&kgo.Record{Topic: w.deadLetterTopic(), Key: []byte("a position"), Headers: []kgo.RecordHeader{
		{Key: "walferry-database", Value: []byte("shop")},
		{Key: "walferry-slot", Value: []byte("another")},
		{Key: "walferry-where", Value: []byte("public.outbox")},
		{Key: "walferry-id", Value: []byte("dead elsewhere")},
	}})
	p.flush()
	w.confirmAll()

	want := []string{
		"different as long", "different empty, not a tombstone", "different of another key", "different of another type", "different of no type",
		"different tombstone, not empty", "duplicated twice", "duplicated twice", "missing dead elsewhere", "missing never",
	}
	r, report := w.reconcile(false)
	missed(t, found(report), want)
	c := r.Total
	if c.Replayed != 3 || c.Pruned != 1 || c.Foreign != 1 || c.Unpublishable != 3 || c.Unknown != 0 || c.OutOfOrder != 0 || c.Rows != 18 {
		t.Errorf("%+v", c)
	}
	w.repairs(2)
	if _, report := w.reconcile(false); len(report) != len(want)-2 {
		t.Errorf("after the repair: %+v", report)
	}
}

// deadLetterTopic makes sure that the topic exists and returns its name.
func (w *world) deadLetterTopic() string {
	w.t.Helper()
	topic := w.cfg.Kafka.DeadLetterTopic
	if _, err := w.kafkaAdmin().CreateTopic(w.t.Context(), 1, -1, nil, topic); err != nil && !strings.Contains(err.Error(), "already exists") {
		w.t.Fatal(err)
	}
	return topic
}

func TestReconcileReadsWhatIsCommitted(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	topic := w.createTopic("order", 1, nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text")
	for n := range 3 {
		w.exec("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ($1::int, 'order', 'k', 'T', '1')", n)
	}
	w.confirmAll()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...), kgo.TransactionalID(w.prefix), kgo.TransactionTimeout(patience))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := w.publisher()
	in := func(id string, end func()) {
		t.Helper()
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), p.record(topic, id, "k", "1")).FirstErr(); err != nil {
			t.Fatal(err)
		}
		end()
	}
	finish := func(how kgo.TransactionEndTry) func() {
		return func() {
			if err := client.EndTransaction(t.Context(), how); err != nil {
				t.Fatal(err)
			}
		}
	}
	in("0", finish(kgo.TryCommit))
	in("1", finish(kgo.TryAbort))
	in("2", func() {
		p.append(p.record(topic, "1", "k", "1")) // it is there, behind a transaction that is open
		p.flush()
		_, err := reconcile.Run(t.Context(), reconcile.Options{Options: w.options("", zerolog.Disabled), Memory: 1 << 20, Timeout: 2 * time.Second})
		e, ok := errors.AsType[*bridge.Error](err)
		if !ok || !strings.Contains(err.Error(), "transaction has been open") || e.Class != bridge.Fatal {
			t.Errorf("behind an open transaction: %v", err)
		}
		time.AfterFunc(time.Second, finish(kgo.TryCommit))
		r, report := w.reconcile(false)
		if len(report) != 0 || !r.Agree || r.Total.Records != 3 {
			t.Errorf("%+v, %+v", r, report)
		}
	})
}

func TestReconcileOfTwoTablesWithOrders(t *testing.T) {
	pg := newest(t)
	w := newWorld(t, pg, func(c *config.Config) {
		db := &c.Databases[0]
		second := db.Outbox[0]
		second.Table, second.OrderColumn = "public.outbox2", "n"
		db.Outbox = append(db.Outbox, second)
		c.Kafka.PositionHeader = "" // so it is the column that says what the order is
	})
	topic := w.createTopic("order", 2, nil)
	w.exec("ALTER TABLE outbox ALTER id TYPE text; ALTER TABLE outbox2 ALTER id TYPE text, ADD COLUMN n int")
	p := w.publisher()
	for i, n := range []int{0, 1, 3, 2, 4} {
		w.exec("INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES ('a' || $1::int, 'order', 'k', 'T', '1')", n)
		w.exec("INSERT INTO outbox2 (id, n, aggregatetype, aggregateid, type, payload) VALUES ('b' || $1::int, $1, 'order', 'k', 'T', '1')", i)
		for _, table := range []string{"a", "b"} {
			r := p.record(topic, table+fmt.Sprint(n), "k", "1")
			r.Headers = r.Headers[:1]
			p.append(r)
		}
	}
	p.flush()
	w.confirmAll()
	r, report := w.reconcile(false)
	missed(t, found(report), []string{"out_of_order b2"})
	if c := r.Total; c.OrderUnknown != 5 || c.Rows != 10 || c.Missing != 0 || len(r.Tables) != 2 { // those of the first table
		t.Errorf("%+v", r)
	}
}

func TestReconcileNeedsATableAndItsSlot(t *testing.T) {
	w := newWorld(t, newest(t), nil)
	run := func(edit func(*reconcile.Options)) error {
		o := reconcile.Options{Options: w.options("", zerolog.Disabled), Memory: 1 << 20, Timeout: time.Second, Report: &bytes.Buffer{}}
		edit(&o)
		_, err := reconcile.Run(t.Context(), o)
		return err
	}
	for _, c := range []struct {
		name string
		edit func(*reconcile.Options)
		want string
	}{
		{"messages only", func(o *reconcile.Options) { o.Database.Outbox = nil }, "no outbox table is configured"},
		{"no slot", func(o *reconcile.Options) { o.Database.Slot = "absent" }, "the slot does not exist"},
		{"no bridge", func(o *reconcile.Options) { w.walEnd() }, "nobody holds it (hint: only what is confirmed"},
		{"no table", func(o *reconcile.Options) {
			w.confirmAll()
			o.Timeout = patience
			o.Database.Outbox = []config.Outbox{{Table: "public.absent", Columns: o.Database.Outbox[0].Columns, Topic: "t"}}
		}, `table "public"."absent" does not exist`},
	} {
		if err := run(c.edit); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		} else {
			t.Logf("%s: %v", c.name, err)
		}
	}
}

// What a bridge repeats after it was killed are duplicates, in their order, and no defects.
func TestReconcileOfABridgeThatIsKilled(t *testing.T) {
	for _, delivery := range []string{atLeastOnce, exactlyOnce} {
		t.Run(delivery, func(t *testing.T) {
			w := newWorld(t, newest(t), func(c *config.Config) { c.Delivery = delivery })
			load := w.startLoad(newSeed(t))
			file := w.configFile("")
			for range 5 {
				c := walferry(t, "run", "--config", file)
				load.more(100)
				_ = c.cmd.Process.Kill()
				<-c.done
			}
			walferry(t, "run", "--config", file)
			r, report := w.reconcile(false)
			c := r.Total
			t.Logf("%d rows, %d duplicates", c.Rows, c.Duplicated)
			if !r.Agree || c.Missing+c.Different+c.OutOfOrder+c.Unknown+c.OrderUnknown != 0 || c.Duplicated != int64(len(report)) ||
				delivery == exactlyOnce && c.Duplicated != 0 {
				t.Errorf("%+v: %+v", r, report)
			}
		})
	}
}

func testReconcileWithACLs(t *testing.T, broker *servers.Broker) {
	w := newWorld(t, newest(t), func(c *config.Config) {
		c.Kafka.Brokers = []string{broker.Addr()}
		c.Kafka.DeadLetterTopic, c.Checkpoint.Topic = "dead-letters-of-reconcile", "checkpoints-of-reconcile" // of which nobody has granted anything
	})
	topic := w.createTopic("order", 1, nil)
	w.deadLetterTopic()
	for _, key := range []string{"1", "2"} {
		w.insert(key, "{}")
	}
	p := w.publisher()
	p.append(p.record(topic, "of something else", "1", "")) // of an empty topic nothing is read
	p.flush()
	w.confirmAll()
	own := w.cfg.Kafka
	w.cfg.Kafka = limited(t, broker)
	w.cfg.Kafka.DeadLetterTopic = own.DeadLetterTopic
	admin := adminOf(t, broker)
	refused := func(topic string) {
		t.Helper()
		_, err := reconcile.Run(t.Context(), reconcile.Options{Options: w.options("", zerolog.Disabled), Memory: 1 << 20, Timeout: patience})
		if err == nil || !strings.Contains(err.Error(), topic) || !strings.Contains(err.Error(), "`walferry reconcile` needs READ and DESCRIBE_CONFIGS") {
			t.Errorf("%v, want one of topic %s", err, topic)
		}
	}
	refused(w.cfg.Kafka.DeadLetterTopic)
	grantLimited(t, admin, kadm.NewACLs().Topics(w.cfg.Kafka.DeadLetterTopic).Operations(kadm.OpRead))
	refused(topic)
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpDescribe))
	refused(topic)
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpRead))
	refused(w.cfg.Checkpoint.Topic)
	grantLimited(t, admin, kadm.NewACLs().Topics(w.cfg.Checkpoint.Topic).Operations(kadm.OpRead))
	if r := w.reconciled(); r.Total.Unknown != 2 || !strings.Contains(strings.Join(r.Hints, " "), "grant the client DESCRIBE_CONFIGS") {
		t.Errorf("without DESCRIBE_CONFIGS: %+v", r)
	}
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpDescribeConfigs))
	if r := w.reconciled(); r.Total.Missing != 2 {
		t.Errorf("with all that it needs: %+v", r)
	}
	grantLimited(t, admin, kadm.NewACLs().Topics(topic).Operations(kadm.OpWrite))
	w.repairs(2)
}
