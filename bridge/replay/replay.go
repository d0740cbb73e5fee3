package replay

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// Options say what to replay, and where to.
type Options struct {
	bridge.Options
	Ask Ask
	// Resume, if not "", is the ID of a replay that did not come to its end: it goes on, with its own range and target.
	Resume string
	// Target is where the events go. Without Lines and DryRun it is Kafka.
	Target Target
	Lines  io.Writer // if not nil, events go here, a JSON object each, and Kafka gets none
	DryRun bool      // they are only counted
	Rate   float64   // events a second, 0: no bound
	// Say is told what is about to happen, in words.
	Say func(string)
	// Progress, if not nil, is told how many bytes of WAL are read, of how many, and how many events are published. It comes from one
	// goroutine, ten times a second.
	Progress func(done, total, events int64)
}

// Target names the topics: those of the bridge, or others beside them.
type Target struct {
	InPlace bool   `json:"in_place,omitempty"`
	Prefix  string `json:"prefix,omitempty"` // before the name of each topic, unless InPlace
}

// positionHeader carries the position where kafka.position_header turns it off.
const positionHeader = "walferry-position"

// run is one replay.
type run struct {
	Options
	id       string
	started  time.Time
	table    bool // it reads the tables, not the WAL
	known    *known
	notes    *checkpoint.Notes // where its state is kept
	rng      Range
	resumed  *State               // nil: it begins
	from     replication.Progress // what an earlier attempt has published
	stream   *replication.Stream
	decoder  *decode.Decoder
	inflight *replication.Inflight
	out      output
	report   Report
	limit    *rate.Limiter
	fail     context.CancelCauseFunc

	mu sync.Mutex // guards the following
	at replication.LSN
}

// Run replays. With an error the report says how far it came. Its errors are *bridge.Error.
func Run(ctx context.Context, o Options) (*Report, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	r := &run{Options: o, fail: fail}
	err := with(ctx, o.Options, func(conn *pgx.Conn) error { return r.run(ctx, conn) })
	if err != nil && ctx.Err() != nil {
		err = cmp.Or(context.Cause(ctx), err)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = stopped(r.resumable(), err)
	}
	err = bridge.Explain(o.Database.Name, meant(err))
	if e, ok := errors.AsType[*bridge.Error](err); ok && e.Hint == "" && r.resumable() != "" {
		e.Hint = resumes(r.id)
	}
	return &r.report, err
}

func (r *run) run(ctx context.Context, conn *pgx.Conn) (err error) {
	if r.known, err = read(ctx, r.Options.Options); err != nil {
		return err
	}
	r.notes = &checkpoint.Notes{Config: r.known.cfg}
	defer r.notes.Close()
	if err := r.prepare(); err != nil {
		return err
	}
	if err := r.open(ctx, conn); err != nil {
		return err
	}
	defer r.stream.Close(ctx)
	if r.out, err = r.output(ctx); err != nil {
		return err
	}
	defer r.out.close()
	r.announce()
	if err := r.keep(ctx); err != nil {
		return err
	}
	// Last: from here on the server wants to be answered.
	if err := r.stream.StartAt(ctx, r.Database.Publication, r.inflight.Flushed()); err != nil {
		return err
	}
	end := r.beside(ctx, conn)
	err = r.pump(ctx)
	if err == nil {
		err = r.out.flush(ctx)
	}
	end()
	return r.finish(ctx, err)
}

// prepare chooses the ID, or takes up a replay that was interrupted.
func (r *run) prepare() error {
	if r.Resume == "" {
		var random [3]byte
		_, _ = rand.Read(random[:]) // it never fails
		r.started = time.Now().UTC()
		r.id = r.started.Format("20060102_150405_") + hex.EncodeToString(random[:])
		return nil
	}
	s, err := r.known.state(r.Resume)
	if err != nil {
		return err
	}
	r.resumed = s
	r.id, r.started, r.rng, r.Target = s.ID, s.Started, s.Range, s.Target
	r.from = replication.Progress{Flushed: s.Reached.LSN, Commit: s.OpenCommit.LSN, Index: s.OpenIndex}
	return nil
}

// open copies the slot and finds the range in what the copy has.
func (r *run) open(ctx context.Context, conn *pgx.Conn) error {
	tables, published := r.Tables()
	db := r.Database
	cfg := replication.Config{Slot: db.RetentionSlot(), Publication: db.Publication, Tables: published}
	var err error
	if cfg.Conn, err = r.ConnConfig(); err != nil {
		return err
	}
	if r.stream, err = replication.Copy(ctx, cfg, conn, "walferry_replay_"+r.id); err != nil {
		return err
	}
	if err := r.locate(); err != nil {
		r.stream.Close(ctx)
		return err
	}
	r.decoder = decode.NewDecoder(decode.Config{
		Tables: tables, OIDs: r.stream.Publication.OIDs, Prefix: db.Messages.Prefix, SystemID: r.stream.Server.SystemID,
		Timeline: func(l decode.LSN) uint32 { return r.stream.Timelines.Of(replication.LSN(l)) },
	})
	r.inflight = replication.NewInflight(max(r.rng.From.LSN, r.from.Flushed), windowRuns, replication.Hooks{Failed: r.fail})
	r.limit = limiter(r.Rate)
	return nil
}

// limiter returns nil for no bound.
func limiter(events float64) *rate.Limiter {
	if events <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(events), max(1, int(events/10)))
}

// windowRuns bounds the events on their way, in runs of 512 at most.
const windowRuns = 4096

// locate finds the range, which must be whole in the copy: the slot may have been moved since anybody looked.
func (r *run) locate() error {
	found := checkpoint.Found{SystemID: r.stream.Server.SystemID, Timelines: r.stream.Timelines, WALEnd: r.stream.WALEnd}
	w, err := r.known.window(r.Database.RetentionSlot(), r.stream.Start, found)
	if err != nil {
		return err
	}
	if r.resumed != nil {
		return r.resumed.goesOn(w, found)
	}
	r.rng, err = r.Ask.resolve(w, r.known, found)
	return err
}

// beside answers the server, and keeps what is reached, until the function that it returns is called. It takes over the connection.
func (r *run) beside(ctx context.Context, sql *pgx.Conn) (end func()) {
	beside, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	feedback := &replication.Feedback{
		// The copy is nobody else's: what is published the server need not keep for it.
		Stream: r.stream, Confirmable: r.inflight.Flushed, Tick: func(replication.LSN) { r.progress() },
	}
	// A server that shuts down waits for a walsender that confirms nothing: at once it is let go. What becomes of the publication is no
	// matter: the WAL is read with that of its time.
	watch := &replication.Watch{
		Conn: sql, Server: r.stream.Server, Slot: r.Database.RetentionSlot(), Every: 5 * time.Second, Report: func(*replication.Slot) {}, Lost: func(bool) {},
	}
	for _, f := range []func(context.Context) error{feedback.Run, watch.Run, r.keepOn} {
		wg.Go(func() {
			if err := f(beside); err != nil {
				r.fail(err)
			}
		})
	}
	unhook := context.AfterFunc(ctx, r.stream.Interrupt)
	return func() {
		unhook()
		cancel()
		wg.Wait()
	}
}

// pump reads the range. It returns nil at its end.
func (r *run) pump(ctx context.Context) error {
	if r.rng.From.LSN >= r.rng.To.LSN || r.from.Flushed >= r.rng.To.LSN {
		return nil
	}
	var inRange, hasEvents bool
	var committed, ended time.Time
	for {
		m, err := r.stream.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case m.Keepalive():
			r.inflight.Idle(m.WALEnd)
			if r.reached(m.WALEnd) {
				return nil
			}
			continue
		}
		c, err := r.decoder.Decode(m.Data)
		if _, poison := errors.AsType[*decode.ContractError](err); poison {
			if inRange {
				r.report.Unpublished++
			}
			continue
		}
		if err != nil {
			return err
		}
		switch c.Kind {
		case decode.Begin:
			if replication.LSN(c.CommitLSN) >= r.rng.To.LSN || r.rng.passed(c.CommitTime) {
				return nil
			}
			committed, inRange, hasEvents = c.CommitTime, r.rng.holds(c.CommitTime), false
			r.stream.Begin(c.CommitTime)
			r.inflight.Begin(replication.LSN(c.CommitLSN), c.CommitTime)
		case decode.Row, decode.Message:
			if now := time.Now(); now.Sub(ended) >= keepEvery { // of a large transaction, at a low rate
				ended = now
				r.inflight.EndRun()
			}
			if !inRange || r.from.Covers(replication.LSN(c.Event.Position.CommitLSN), c.Event.Position.Index) {
				continue
			}
			if err := r.publish(ctx, &c.Event, m.At, committed, nil); err != nil {
				return err
			}
			hasEvents = true
		case decode.Commit:
			if hasEvents {
				r.report.Transactions++
			}
			if err := r.inflight.Commit(replication.LSN(c.EndLSN)); err != nil {
				return err
			}
			if r.reached(replication.LSN(c.EndLSN)) {
				return nil
			}
		}
	}
}

// reached notes how far the stream is, and reports whether that is the end.
func (r *run) reached(lsn replication.LSN) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = max(r.at, lsn)
	return lsn >= r.rng.To.LSN
}

// publish hands an event on. done is called once it is published, or never will be; nil is for those of the WAL.
// One that could never be published to its own topic the bridge has passed over as well.
func (r *run) publish(ctx context.Context, ev *decode.Event, at, committed time.Time, done func(error)) error {
	if r.limit != nil {
		if err := r.limit.Wait(ctx); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
	var err error
	wal := done == nil
	if wal {
		if done, err = r.inflight.Add(ctx, ev.Position.Index); err != nil {
			return err
		}
	}
	topic, err := r.out.publish(ctx, ev, at, committed, done)
	if err != nil && wal {
		r.inflight.Withdraw(ev.Position.Index)
	}
	if _, poison := errors.AsType[*sink.PoisonError](err); poison && sink.Check(r.SinkConfig(), ev) != nil {
		r.report.Unpublished++
		return nil
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	place := Place{ev.Position, committed}
	if r.report.Events == 0 {
		r.report.First = place
	}
	r.report.Last = place
	r.report.Events++
	r.report.Topics[topic]++
	return nil
}

// finish keeps what was reached, or forgets a replay that has come to its end.
func (r *run) finish(ctx context.Context, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	if err != nil {
		r.inflight.EndRun()
		return errors.Join(err, r.keep(ctx))
	}
	r.report.Complete = true
	r.progress()
	return r.forget(ctx)
}

const finishTimeout = 15 * time.Second
