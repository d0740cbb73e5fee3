package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/walferry/walferry/internal/servers"
)

// drainedPerSecond is more than a bridge can drain beside the load, so that a backlog of so
// many events for each second outlives its block.
const drainedPerSecond = 200_000

// latencyDrain is a backlog in another database of the same server. It can be drained again
// and again, each time by a slot that is a copy of the one that keeps the WAL.
type latencyDrain struct {
	site   *latencySite
	dsn    string
	events int64
	drains int
}

// measureWhileDraining measures the blocks, each while a bridge of its own drains the backlog.
func measureWhileDraining(ctx context.Context, t *testbed, pg *servers.PG, site *latencySite, seconds float64, blocks []latencyBlock, report func(string)) ([]Latency, error) {
	drain, err := newLatencyDrain(ctx, t, pg, int64(seconds*drainedPerSecond))
	if err != nil {
		return nil, err
	}
	defer drain.site.close()
	site.drain = drain
	return site.measureAll(ctx, blocks, report)
}

// newLatencyDrain writes the backlog.
func newLatencyDrain(ctx context.Context, bed *testbed, pg *servers.PG, events int64) (*latencyDrain, error) {
	const database = "latency_backlog"
	site, err := newLatencySite(ctx, bed, pg, database, pg.DSN(database), bed.kafka.Addr(), latencyTLS{})
	if err != nil {
		return nil, err
	}
	const perTransaction = 100
	d := &latencyDrain{site: site, dsn: pg.DSN(database), events: events / perTransaction * perTransaction}
	err = execute(ctx, d.dsn, "SET synchronous_commit = off", fmt.Sprintf(`DO $$ BEGIN
		FOR i IN 1..%d LOOP
			INSERT INTO outbox (aggregatetype, aggregateid, type, payload)
			SELECT 'backlog', n::text, 'OrderPlaced', jsonb_build_object('order', n, 'note', repeat('two of the blue ones, ', 10))
			FROM generate_series(1, %d) n;
			COMMIT;
		END LOOP; END $$`, d.events/perTransaction, perTransaction))
	if err != nil {
		site.close()
		return nil, fmt.Errorf("write a backlog: %w", err)
	}
	return d, nil
}

// start has a bridge drain the backlog, and returns when that is under way. stop ends it and
// fails if the backlog was drained before.
func (d *latencyDrain) start(ctx context.Context) (stop func() error, err error) {
	d.drains++
	slot := fmt.Sprintf("%s_%d", d.site.database, d.drains)
	if err := execute(ctx, d.dsn, fmt.Sprintf("SELECT pg_copy_logical_replication_slot('%s', '%s')", d.site.database, slot)); err != nil {
		return nil, err
	}
	topic := "latency.drain." + slot // deleted topics linger, so each has a name of its own
	config, err := d.site.writeConfig(slot, topic, "")
	if err != nil {
		return nil, err
	}
	admin := kadm.NewClient(d.site.client)
	if _, err := admin.CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		return nil, fmt.Errorf("create topic %s: %w", topic, err)
	}
	bridge, err := startBridge(ctx, d.site.bed, config, "--adopt-slot")
	if err != nil {
		return nil, err
	}
	if err := d.underWay(ctx, topic, bridge); err != nil {
		return nil, errors.Join(err, bridge.stop())
	}
	return func() error {
		drained, err := countRecords(ctx, d.site.client, topic)
		if err = errors.Join(err, bridge.stop()); err != nil {
			return err
		}
		if drained >= d.events {
			return fmt.Errorf("the backlog of %d events was drained before the block ended: write a larger one (drainedPerSecond)", d.events)
		}
		_, err = admin.DeleteTopic(ctx, topic)
		return errors.Join(err, execute(ctx, d.dsn, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot)))
	}, nil
}

// underWay returns when there are records in the topic.
func (d *latencyDrain) underWay(ctx context.Context, topic string, bridge *bridgeProcess) error {
	ctx, cancel := context.WithTimeoutCause(ctx, latencyPatience, fmt.Errorf("nothing is drained after %s", latencyPatience))
	defer cancel()
	var last error
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		select {
		case <-bridge.done:
			return false, errors.New("the bridge that drains has ended")
		default:
		}
		var records int64
		records, last = countRecords(ctx, d.site.client, topic)
		return last == nil && records > 0, nil
	})
	return errors.Join(err, last)
}
