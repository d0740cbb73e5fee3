package reconcile

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
	"github.com/walferry/walferry/table"
)

// repair publishes rows. It fails once the brokers have acknowledged nothing for a time although something is on its way: of
// what may pass, as too few in-sync replicas, the client would never tell.
type repair struct {
	*sink.Kafka
	fail    func(error)
	timeout time.Duration

	mu      sync.Mutex
	onWay   int // records that are not acknowledged
	silence *time.Timer
}

// newRepair opens the sink, unless something is not as it was when it was compared.
func (w *work) newRepair(ctx context.Context, fail func(error)) (*repair, error) {
	if err := w.conn.Ping(ctx); err != nil {
		return nil, fmt.Errorf("the connection that has the lock: %w", err)
	}
	if err := w.absent(ctx); err != nil {
		return nil, err
	}
	r := &repair{fail: fail, timeout: w.o.Timeout}
	r.silence = time.AfterFunc(r.timeout, func() {
		fail(replication.Refuse("see the brokers' logs, and min.insync.replicas of the topics; then run it again: what they have by then is not missing any more; or raise --timeout",
			"the brokers have acknowledged nothing for %s while rows were published", r.timeout))
	})
	r.silence.Stop()
	cfg := w.o.TableSinkConfig()
	cfg.Acknowledged = func(*kgo.Record) { r.count(-1) }
	var err error
	r.Kafka, err = w.o.OpenSink(ctx, cfg)
	return r, err
}

func (r *repair) close() {
	r.silence.Stop()
	r.Close()
}

// publish publishes a row; Flush tells when it is done.
func (r *repair) publish(ctx context.Context, of decode.Table, t *table.Row) error {
	r.count(1)
	return r.Publish(ctx, &t.Event, time.Now(), t.Done(of, r.fail))
}

// count counts what is on its way.
func (r *repair) count(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onWay += n
	switch {
	case r.onWay == 0:
		r.silence.Stop()
	case n < 0 || r.onWay == n: // something was acknowledged, or is the first on its way
		r.silence.Reset(r.timeout)
	}
}
