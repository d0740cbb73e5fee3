package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// What commands need that do a bridge's work while none runs. All of it is with the secrets as they are now.

// ConnConfig returns how to connect to the database.
func (o Options) ConnConfig() (*pgx.ConnConfig, error) {
	cfg, err := o.Database.ConnConfig()
	if err == nil && o.DialPostgres != nil {
		cfg.DialFunc = o.DialPostgres
	}
	return cfg, err
}

// KafkaClient returns how a client reaches the brokers.
func (o Options) KafkaClient() ([]kgo.Opt, error) { return kafkaClient(o) }

// Checkpoints returns where the checkpoints of a database are kept. Without the system identifier of its cluster they can
// only be read.
func (o Options) Checkpoints(systemID string) (checkpoint.Config, error) {
	return o.checkpoints(systemID)
}

// Tables returns the outbox tables, and what the publication must publish of them.
func (o Options) Tables() (tables []decode.Table, published []replication.Table) {
	for _, t := range o.Database.Outbox {
		table := OutboxTable(t)
		tables, published = append(tables, table), append(published, Published(table))
	}
	return tables, published
}

const (
	lockEvery = 100 * time.Millisecond
	lockFor   = 5 * time.Second
)

// Lock makes sure that nobody else publishes rows of the tables for a slot. Postgres lets go of it when the connection ends; of one
// that was killed that takes a moment.
func Lock(ctx context.Context, conn *pgx.Conn, slot string) error {
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for began := time.Now(); ; {
		var mine bool
		err := conn.QueryRow(ctx, `/* walferry:lock */ select pg_try_advisory_lock(hashtextextended('walferry recover ' || $1, 0))`, slot).Scan(&mine)
		switch {
		case err != nil:
			return fmt.Errorf("lock slot %q against other recoveries and repairs: %w", slot, err)
		case mine:
			return nil
		case time.Since(began) > lockFor:
			return replication.Refuse("wait for it, or end it: SELECT pid FROM pg_locks WHERE locktype = 'advisory'", "another walferry recovers slot %q, or repairs its topics", slot)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// The headers of records that are not of a bridge.
const (
	// SourceHeader is SourceTable in a record that was made of a row in the table, and not of the WAL.
	SourceHeader = "walferry-source"
	SourceTable  = "table"
	// ReplayHeader has the ID of the replay that a record is of.
	ReplayHeader = "walferry-replay-id"
)

// TableSinkConfig is SinkConfig for rows that are read from the tables: no position is known of them, and they say where they are from.
func (o Options) TableSinkConfig() sink.Config {
	cfg := o.SinkConfig()
	cfg.PositionHeader, cfg.Headers = "", []kgo.RecordHeader{{Key: SourceHeader, Value: []byte(SourceTable)}}
	return cfg
}

// OpenSink opens a sink that shares nothing with others.
func (o Options) OpenSink(ctx context.Context, cfg sink.Config) (_ *sink.Kafka, err error) {
	if cfg.Client, err = kafkaClient(o); err != nil {
		return nil, err
	}
	cfg.Topics = &sink.Topics{}
	return o.openSink(ctx, cfg)
}

func (o Options) openSink(ctx context.Context, cfg sink.Config) (*sink.Kafka, error) {
	opened, err := sink.Open(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("brokers %s: %w", strings.Join(o.Kafka.Brokers, ", "), err)
	}
	return opened, nil
}
