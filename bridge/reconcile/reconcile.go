// Package reconcile compares what the outbox tables of a database retain with what Kafka holds of it, and publishes what is
// missing.
//
// It takes a snapshot of the tables, waits until the slot has confirmed all that the snapshot sees, reads the rows, and then the
// topics that they go to, from their start to their end. What is in both is compared; which rows must have a record is
// judged in certain.go, the order of records in lane.go. It takes nothing away from a bridge that runs, and writes
// nothing unless it is asked to.
package reconcile

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/internal/topics"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// Options say what is compared, and how.
type Options struct {
	bridge.Options
	// Repair publishes what is missing, unless that is more than MaxRepair rows.
	Repair    bool
	MaxRepair int64
	// Report, if not nil, gets a line of JSON for each defect: its kind, the event's id, and where it is.
	Report io.Writer
	// Memory is about how many bytes of rows and records are held; what is more is written to files in Dir, "" being the
	// system's directory for such.
	Memory int
	Dir    string
	// Timeout bounds how long the slot may take to confirm what the snapshot sees, and how long the brokers may send or acknowledge
	// nothing.
	Timeout time.Duration
	// Progress, if not nil, is called about once a second and at the end of a stage. total is 0 if it is not known.
	Progress func(stage string, done, total int64)
}

// The stages of Progress, and what is counted.
const (
	StageWait    = "wait for the slot" // bytes of WAL
	StageTables  = "read the tables"   // rows
	StageTopics  = "read the topics"   // offsets
	StageCompare = "compare"           // rows and records
	StageSettle  = "look up defects"   // rows, read once more
)

// The headers by which a record is known.
const (
	idHeader     = "id"
	replayHeader = bridge.ReplayHeader
	sourceHeader = bridge.SourceHeader
)

// work is one comparison of one database.
type work struct {
	o      Options
	began  time.Time
	tables []decode.Table
	rows   []TableResult // by table
	conn   *pgx.Conn     // has the lock
	server replication.Server

	snapshot   *table.Snapshot
	lsn        replication.LSN // the snapshot's
	taken      time.Time
	reader     *topics.Reader
	preview    *sink.Preview
	partition  func(k *kgo.Record, n int) int // where a record of a topic with n partitions goes
	types      []string                       // headers that carry a type
	comparison *comparison
	hash       *hasher
	numbers    map[string]uint32 // of topics, their places in comparison.topics
	dead       map[ident]bool    // dead letters: by table and id
	history    []snapshot
	outside    Counts // of rows that have no topic
	hints      []string
}

// Run compares one database. Its errors are *bridge.Error; to find defects is none. If they are too many to be repaired there is a
// result all the same.
func Run(ctx context.Context, o Options) (*Result, error) {
	w := &work{o: o, began: time.Now(), hash: newHasher(), numbers: map[string]uint32{}, dead: map[ident]bool{}}
	err := w.run(ctx)
	if err != nil {
		return nil, bridge.Explain(o.Database.Name, err)
	}
	return w.result(), bridge.Explain(o.Database.Name, w.tooMany())
}

func (w *work) run(ctx context.Context) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if w.tables, _ = w.o.Tables(); len(w.tables) == 0 {
		return &replication.PreconditionError{
			Reason: "no outbox table is configured, and logical messages leave no rows behind that topics could be compared with", Hint: "see databases.outbox",
		}
	}
	cfg := w.o.SinkConfig()
	for _, r := range cfg.Routes {
		w.types = append(w.types, r.TypeHeader)
	}
	cfg.PositionHeader = ""
	w.preview = sink.NewPreview(cfg)
	w.partition = sink.Partitioner().ForTopic("").Partition // records have keys, so it remembers nothing
	w.comparison = newComparison(w.o.Dir, w.o.Memory)
	defer func() { err = errors.Join(err, w.comparison.Close()) }()
	if err := w.connect(ctx); err != nil {
		return err
	}
	defer func() { _ = w.conn.Close(context.WithoutCancel(ctx)) }() // it only read
	if err := w.open(ctx); err != nil {
		return err
	}
	defer w.reader.Close()
	defer func() { w.closeSnapshot(ctx) }()
	for _, step := range []func(context.Context) error{w.await, w.readDead, w.readTables, w.readTopics, w.compare, w.settle} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// connect connects to Postgres and takes the lock.
func (w *work) connect(ctx context.Context) error {
	cfg, err := w.o.ConnConfig()
	if err != nil {
		return err
	}
	if w.conn, err = replication.ConnectToRead(ctx, cfg, nil); err != nil {
		return err
	}
	if w.server, err = replication.ReadServer(ctx, w.conn); err == nil && w.o.Repair {
		err = bridge.Lock(ctx, w.conn, w.o.Database.Slot)
	}
	if err != nil {
		_ = w.conn.Close(context.WithoutCancel(ctx)) // it only read
	}
	return err
}

// open takes the snapshot and makes a Kafka client.
func (w *work) open(ctx context.Context) (err error) {
	opts, err := w.o.KafkaClient()
	if err != nil {
		return err
	}
	cfg, err := w.o.ConnConfig()
	if err != nil {
		return err
	}
	if w.snapshot, err = table.Open(ctx, cfg, ""); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.closeSnapshot(ctx)
		}
	}()
	of, err := w.snapshot.Server(ctx)
	if err != nil {
		return err
	}
	if !of.Same(&w.server) {
		return replication.Refuse("run it again; of several hosts in a DSN only the primary is meant: target_session_attrs=read-write",
			"the tables are read from server %s on timeline %d, and the slot from server %s on timeline %d: what the one has confirmed says nothing of the other",
			of.SystemID, of.Timeline, w.server.SystemID, w.server.Timeline)
	}
	w.lsn, w.taken = w.snapshot.LSN, time.Now()
	for i := range w.tables {
		s := source{}
		if w.snapshot.Order(w.query(i)) == table.ByCommit {
			s.slack = commitSlack
		}
		w.comparison.sources = append(w.comparison.sources, s)
	}
	w.reader, err = topics.New(ctx, opts, topics.Options{Timeout: w.o.Timeout})
	return err
}

// closeSnapshot lets Postgres vacuum again.
func (w *work) closeSnapshot(ctx context.Context) {
	if w.snapshot != nil {
		w.snapshot.Close(ctx)
		w.snapshot = nil
	}
}

// twice reports whether the tables are read a second time if there are defects.
func (w *work) twice() bool { return w.o.Repair || w.o.Report != nil }

// progress returns a function that passes on how far a stage is.
func (w *work) progress(stage string) func(done, total int64) {
	if w.o.Progress == nil {
		return func(int64, int64) {}
	}
	w.o.Progress(stage, 0, 0)
	last := time.Now()
	return func(done, total int64) {
		if done == total || time.Since(last) >= time.Second {
			last = time.Now()
			w.o.Progress(stage, done, total)
		}
	}
}

// compare has everything judged.
func (w *work) compare(ctx context.Context) error {
	if err := w.readHistory(ctx); err != nil {
		return err
	}
	total := int64(0)
	for _, t := range w.comparison.topics {
		total += 2*t.counts.Rows + t.counts.Records // a row is looked at once more, with its first copy or without
	}
	report, done := w.progress(StageCompare), int64(0)
	err := w.comparison.finish(w.history, func() error {
		if done++; done%(1<<12) == 0 {
			report(min(done, total-1), total)
			return context.Cause(ctx)
		}
		return nil
	})
	report(total, total)
	return err
}
