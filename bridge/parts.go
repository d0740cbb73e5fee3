package bridge

import (
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/checkpoint"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
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
