package bridge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/decode"
	"github.com/walferry/walferry/replication"
	"github.com/walferry/walferry/sink"
)

// OutboxTable is what the decoder knows of a configured outbox table.
func OutboxTable(o config.Outbox) decode.Table {
	schema, name, _ := strings.Cut(o.Table, ".")
	return decode.Table{Schema: schema, Name: name, Columns: decode.Columns(o.Columns)}
}

// Published is what the publication must publish of an outbox table.
func Published(t decode.Table) replication.Table {
	r := replication.Table{Schema: t.Schema, Name: t.Name}
	for _, c := range []string{t.Columns.ID, t.Columns.AggregateType, t.Columns.AggregateID, t.Columns.Type, t.Columns.Payload} {
		if c != "" {
			r.Columns = append(r.Columns, c)
		}
	}
	return r
}

// sinkConfig is that of a sink, without how to reach the brokers.
func (b *Bridge) sinkConfig() sink.Config {
	cfg := b.options.SinkConfig()
	cfg.Topics = &b.topics
	cfg.Created = func(topic string) {
		b.log.Info().Str("topic", topic).Msg("created a missing topic with the broker's defaults")
	}
	return cfg
}

// SinkConfig is that of a sink, without how to reach the brokers and what it shares with others.
func (o Options) SinkConfig() sink.Config {
	k, share := o.Kafka, o.share()
	cfg := sink.Config{
		Compression: compression(k.Compression), Linger: k.Linger,
		MaxBuffered: share.buffered, MaxBufferedRecords: share.records, MaxRecord: int(k.MaxRecord),
		CreateTopics: k.Topics.Create, PositionHeader: k.PositionHeader,
		Reserved: []string{o.Checkpoint.Topic, k.DeadLetterTopic},
	}
	for _, t := range o.Database.Outbox {
		cfg.Routes = append(cfg.Routes, sink.Route{Topic: t.Topic, TypeHeader: t.TypeHeader})
	}
	cfg.Routes = append(cfg.Routes, sink.Route{Topic: o.Database.Messages.Topic, TypeHeader: o.Database.Messages.TypeHeader})
	return cfg
}

// openSink opens a sink with the secrets as they are now.
func (b *Bridge) openSink(ctx context.Context) (*sink.Kafka, error) {
	cfg, err := b.liveSinkConfig()
	if err != nil {
		return nil, err
	}
	return b.options.openSink(ctx, cfg)
}

// liveSinkConfig is that of a sink that publishes, with the secrets as they are now.
func (b *Bridge) liveSinkConfig() (cfg sink.Config, err error) {
	cfg = b.sinkConfig()
	observe := b.metrics.observer(b.db.Name)
	cfg.Observe = func(topic string, bytes int, latency time.Duration) {
		b.acknowledged.Add(1)
		observe(topic, bytes, latency)
	}
	cfg.Client, err = kafkaClient(b.options)
	return cfg, err
}

// kafkaClient returns how a client reaches the brokers, with the secrets as they are now.
func kafkaClient(o Options) ([]kgo.Opt, error) {
	log := o.kafkaLog
	if log == nil {
		log = newKafkaLogger(o.Log)
	}
	opts := []kgo.Opt{kgo.SeedBrokers(o.Kafka.Brokers...), kgo.ClientID(o.Kafka.ClientID), kgo.WithLogger(log)}
	tlsConfig, err := o.Kafka.TLS.Load()
	if err != nil {
		return nil, fmt.Errorf("kafka.tls: %w", err)
	}
	if tlsConfig != nil {
		opts = append(opts, kgo.DialTLSConfig(tlsConfig))
	}
	if o.Dial != nil {
		opts = append(opts, kgo.Dialer(o.Dial))
	}
	auth, err := mechanism(o.Kafka.SASL)
	if err != nil {
		return nil, fmt.Errorf("kafka.sasl: %w", err)
	}
	if auth != nil {
		opts = append(opts, kgo.SASL(auth))
	}
	return opts, nil
}

func compression(name string) kgo.Opt {
	switch name {
	case "gzip":
		return kgo.ProducerBatchCompression(kgo.GzipCompression())
	case "snappy":
		return kgo.ProducerBatchCompression(kgo.SnappyCompression())
	case "lz4":
		return sink.LZ4()
	case "zstd":
		return kgo.ProducerBatchCompression(kgo.ZstdCompression())
	}
	return kgo.ProducerBatchCompression(kgo.NoCompression())
}

func mechanism(s config.SASL) (sasl.Mechanism, error) {
	name, user, password, err := s.Load()
	if err != nil {
		return nil, err
	}
	switch name {
	case "PLAIN":
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism(), nil
	}
	return nil, nil
}

// kafkaLogger passes the Kafka client's warnings on; in normal operation there are none.
type kafkaLogger struct{ log zerolog.Logger }

// newKafkaLogger samples them: without brokers the client warns for each of its attempts. All clients of a bridge share one,
// for each session has new clients.
func newKafkaLogger(log zerolog.Logger) kafkaLogger {
	return kafkaLogger{log.Sample(&zerolog.LevelSampler{WarnSampler: &zerolog.BurstSampler{Burst: 5, Period: logAgain}})}
}

// Level implements kgo.Logger.
func (l kafkaLogger) Level() kgo.LogLevel {
	if l.log.GetLevel() <= zerolog.DebugLevel {
		return kgo.LogLevelDebug
	}
	return kgo.LogLevelWarn
}

// Log implements kgo.Logger.
func (l kafkaLogger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	to := zerolog.DebugLevel
	if level <= kgo.LogLevelWarn {
		to = zerolog.WarnLevel
	}
	l.log.WithLevel(to).Str("component", "kafka").Fields(keyvals).Msg(msg)
}
