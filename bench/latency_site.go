package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/walferry/walferry/internal/servers"
)

// latencyPatience bounds every wait for something that should take a second or two.
const latencyPatience = time.Minute

// latencySite is a database with the tables of both contestants, and the way to Kafka.
type latencySite struct {
	bed      *testbed
	database string // also the name of its slot
	dsn      string
	broker   string
	tls      latencyTLS
	config   string // path of walferry's configuration
	once     string // the same with exactly-once
	client   *kgo.Client
	drain    *latencyDrain // what is drained during the blocks that say so
}

// newLatencySite creates the database on the server and sets it up. The caller must close it.
func newLatencySite(ctx context.Context, bed *testbed, pg *servers.PG, database, dsn, broker string, tls latencyTLS) (_ *latencySite, err error) {
	s := &latencySite{bed: bed, database: database, dsn: dsn, broker: broker, tls: tls}
	if s.client, err = kgo.NewClient(s.kafka()...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := execute(ctx, pg.DSN("postgres"), "CREATE DATABASE "+database); err != nil {
		return nil, err
	}
	if s.config, err = s.writeConfig(database, topicOf("{aggregatetype}"), ""); err != nil {
		return nil, err
	}
	if s.once, err = s.writeConfig(database, topicOf("{aggregatetype}"), deliverOnce); err != nil {
		return nil, err
	}
	if output, err := exec.CommandContext(ctx, bed.walferry, "init", "--config", s.config).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("walferry init: %w\n%s", err, output)
	}
	return s, execute(ctx, pg.DSN(database),
		"CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, total bigint NOT NULL)",
		"CREATE TABLE outbox_unpublished (LIKE outbox INCLUDING ALL)")
}

func (s *latencySite) close() { s.client.Close() }

// kafka returns how clients in this process reach the broker.
func (s *latencySite) kafka() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(s.broker)}
	if s.tls.client != nil {
		opts = append(opts, kgo.DialTLSConfig(s.tls.client))
	}
	return opts
}

// writeConfig writes the configuration of a bridge that reads the slot, and returns its path.
func (s *latencySite) writeConfig(slot, topic, more string) (string, error) {
	path := filepath.Join(s.bed.dir, slot+".yaml")
	if more != "" {
		path = filepath.Join(s.bed.dir, slot+"-more.yaml")
	}
	return path, os.WriteFile(path, []byte(walferryConfig(s.broker, s.tls.file, bridged{name: slot, dsn: s.dsn, slot: slot, topic: topic})+more), 0o600)
}

// execute runs statements on a connection of their own.
func execute(ctx context.Context, dsn string, statements ...string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the statements are through, or failed
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// topicOf is where the events of an aggregate type go.
func topicOf(aggregateType string) string { return "outbox.event." + aggregateType }

// measure runs one block. late is the most that a writer was behind the schedule.
func (s *latencySite) measure(ctx context.Context, b latencyBlock) (_ Latency, late time.Duration, err error) {
	topic := topicOf(b.name())
	if _, err := kadm.NewClient(s.client).CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		return Latency{}, 0, fmt.Errorf("create topic %s: %w", topic, err)
	}
	reader, err := newLatencyReader(s.kafka(), topic, b.total())
	if err != nil {
		return Latency{}, 0, err
	}
	defer reader.client.Close()
	load, err := newLatencyLoad(ctx, s.dsn, b)
	if err != nil {
		return Latency{}, 0, err
	}
	defer func() { err = errors.Join(err, load.close(ctx)) }()

	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop, err := s.publisher(running, load, topic, cancel)
	if err != nil {
		return Latency{}, 0, err
	}
	var cores float64
	err = busyCores(&cores, func() error { return s.runLoad(running, load, reader) })
	if err = errors.Join(err, stop()); err != nil {
		return Latency{}, 0, err
	}
	if err := reader.checkNoMore(ctx); err != nil {
		return Latency{}, 0, err
	}
	took, err := reader.took(load.sent, b.warmup)
	if err != nil {
		return Latency{}, 0, err
	}
	l := summarize(b, took)
	l.Cores = cores
	return l, time.Duration(load.late.Load()), nil
}

// runLoad commits all events and returns when the consumer has them.
func (s *latencySite) runLoad(ctx context.Context, load *latencyLoad, reader *latencyReader) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return reader.follow(ctx) })
	group.Go(func() (err error) {
		if err := load.probe(ctx); err != nil {
			return fmt.Errorf("write the first event: %w", err)
		}
		if err := await(ctx, reader.any, "the first event"); err != nil {
			return err
		}
		if load.block.draining {
			stop, startErr := s.drain.start(ctx)
			if startErr != nil {
				return startErr
			}
			defer func() { err = errors.Join(err, stop()) }()
		}
		if err := load.run(ctx); err != nil {
			return err
		}
		return await(ctx, reader.all, "the last event")
	})
	if group.Wait() != nil {
		return context.Cause(ctx) // the first error, and not those of whom it interrupted
	}
	return nil
}

// await returns when done is closed.
func await(ctx context.Context, done <-chan struct{}, what string) error {
	timer := time.NewTimer(latencyPatience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%s has not arrived after %s", what, latencyPatience)
	}
}
