package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/table"
)

// FromTable replays what the outbox tables still hold. Rows that are deleted and logical messages are not among it, and the
// order is that of Say: no position is known, and none is in the records. It needs SELECT on the tables and no slot. Of Ask only FromTime
// and ToTime count, and they need track_commit_timestamp. Its errors are *bridge.Error.
func FromTable(ctx context.Context, o Options) (*Report, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &run{Options: o, fail: fail}
	err := r.prepare()
	if err == nil {
		err = r.fromTable(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = cmp.Or(context.Cause(ctx), err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = stopped("", err)
	}
	return &r.report, bridge.Explain(o.Database.Name, err)
}

func (r *run) fromTable(ctx context.Context) error {
	r.report.ID, r.report.Topics = r.id, map[string]int64{}
	r.table = true
	r.limit = limiter(r.Rate)
	cfg, err := r.ConnConfig()
	if err != nil {
		return err
	}
	snapshot, err := table.Open(ctx, cfg, "")
	if err != nil {
		return err
	}
	defer snapshot.Close(ctx)
	if !snapshot.CommitTimes && !(r.Ask.FromTime.IsZero() && r.Ask.ToTime.IsZero()) {
		return replication.Refuse("leave the times out, and all rows are replayed; to have them in the future: ALTER SYSTEM SET track_commit_timestamp = on; then restart Postgres",
			"when a row was committed is not known: track_commit_timestamp is off")
	}
	if r.out, err = r.output(ctx); err != nil {
		return err
	}
	defer r.out.close()
	r.rng.Since, r.rng.Until = r.Ask.FromTime, r.Ask.ToTime
	tables, _ := r.Tables()
	for i, t := range tables {
		if err := r.readTable(ctx, snapshot, table.Query{Table: t, Source: i, OrderColumn: r.Database.Outbox[i].OrderColumn}); err != nil {
			return err
		}
	}
	if err := r.out.flush(ctx); err != nil {
		return err
	}
	r.report.Complete = true
	return nil
}

func (r *run) readTable(ctx context.Context, snapshot *table.Snapshot, q table.Query) error {
	total, err := snapshot.Count(ctx, q)
	if err != nil {
		return err
	}
	r.Say(fmt.Sprintf("replay %s: %d rows that %s.%s still holds, %s; deleted rows and logical messages are not among them", r.id, total, q.Table.Schema, q.Table.Name, snapshot.Order(q)))
	q.Broken = func(*table.RowError) error { // the bridge has passed over it as well, or halts before it
		r.report.Unpublished++
		return nil
	}
	read, told := int64(0), time.Now()
	return snapshot.Read(ctx, q, func(row *table.Row) error {
		read++
		if now := time.Now(); r.Progress != nil && (read == total || now.Sub(told) > 100*time.Millisecond) {
			told = now
			r.Progress(read, total, r.report.Events)
		}
		if !r.rng.holds(row.Committed) {
			return nil
		}
		return r.publish(ctx, &row.Event, time.Now(), row.Committed, row.Done(q.Table, r.fail))
	})
}
