package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/internal/demo"
)

// place is where a run happens: two servers, and the names of what it makes on them.
type place struct {
	options                // with dsn and brokers filled in
	server  *demo.Postgres // nil: the user's
	cluster *kfake.Cluster // nil: the user's

	schema      string // of the tables orders and outbox
	slot        string
	publication string
	prefix      string // of logical messages
	topics      string // prefix of topic names

	undo []func(context.Context) error // from the last to the first
}

const partitions = 3

// newPlace starts the servers that o does not give. The caller must leave it, also after an
// error.
func newPlace(ctx context.Context, o options, say func(string, ...any)) (*place, error) {
	// What belongs to nobody else needs no name of its own; the others must never meet
	// what somebody else has, another bridge's outbox above all.
	own := "walferry_demo_" + strings.ToLower(rand.Text()[:8])
	p := &place{
		options: o,
		schema:  own, slot: own, publication: own, prefix: own, topics: own,
	}
	if o.dsn == "" {
		p.schema, p.slot, p.publication, p.prefix = "public", "walferry", "walferry", "outbox"
		if err := p.startPostgres(ctx, say); err != nil {
			return p, err
		}
	}
	if len(o.brokers) == 0 {
		p.topics = "outbox.event"
		var err error
		if p.cluster, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
			return p, fmt.Errorf("start an in-process Kafka: %w", err)
		}
		p.later(func(context.Context) error { p.cluster.Close(); return nil })
		p.brokers = p.cluster.ListenAddrs()
		say("kafka     in this process, on %s", strings.Join(p.brokers, ","))
	} else {
		say("kafka     the one given; topic %s", p.topic())
	}
	return p, nil
}

func (p *place) startPostgres(ctx context.Context, say func(string, ...any)) error {
	say("postgres  starting %s", demo.PostgresVersion)
	var err error
	if p.server, err = demo.StartPostgres(ctx, p.keep, say); err != nil {
		return err
	}
	p.dsn = p.server.DSN
	p.later(func(context.Context) error { return p.server.Stop() })
	what := "removed at the end"
	if p.keep {
		what = "kept"
	}
	say("postgres  runs, with its data in %s, %s", p.server.Dir, what)
	return nil
}

func (p *place) later(undo func(context.Context) error) { p.undo = append(p.undo, undo) }

// topic is the one topic that the order service's events go to.
func (p *place) topic() string { return p.topics + "." + demo.AggregateType }

// furnish makes what the bridge's setup does not make: schema, table of orders, topic.
func (p *place) furnish(ctx context.Context, shop demo.Shop, say func(string, ...any)) error {
	conn, err := pgx.Connect(ctx, p.dsn)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // every statement is committed by itself
	if p.server == nil {
		say("postgres  the one given; slot, publication and schema %s", p.slot)
		if p.keep {
			say("          they are kept: the slot holds WAL back until you drop it")
		} else {
			p.later(p.clearPostgres)
		}
		if _, err := conn.Exec(ctx, `CREATE SCHEMA `+pgx.Identifier{p.schema}.Sanitize()); err != nil {
			return fmt.Errorf("create schema %s: %w", p.schema, err)
		}
	}
	if err := shop.CreateTable(ctx, conn); err != nil {
		return err
	}
	return p.createTopic(ctx)
}

func (p *place) createTopic(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...))
	if err != nil {
		return fmt.Errorf("connect to Kafka: %w", err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, partitions, -1, nil, p.topic()); err != nil {
		return fmt.Errorf("create topic %s: %w", p.topic(), err)
	}
	if !p.keep {
		p.later(p.deleteTopics)
	}
	return nil
}

func (p *place) deleteTopics(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(p.brokers...))
	if err != nil {
		return err
	}
	defer client.Close()
	for _, topic := range []string{p.topic(), p.topics + "-checkpoints"} {
		_, err = kadm.NewClient(client).DeleteTopic(ctx, topic)
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("delete topic %s, which is left behind: %w", topic, err)
		}
	}
	return nil
}

// clearPostgres removes what the run has made on a server that goes on.
func (p *place) clearPostgres(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.dsn)
	if err == nil {
		defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // every statement is committed by itself
		err = p.dropSlot(ctx, conn)
	}
	if err != nil {
		return fmt.Errorf("slot %s, publication %s and schema %s are left behind, drop them: %w", p.slot, p.publication, p.schema, err)
	}
	_, err = conn.Exec(ctx, `DROP PUBLICATION IF EXISTS `+pgx.Identifier{p.publication}.Sanitize())
	if err == nil {
		_, err = conn.Exec(ctx, `DROP SCHEMA IF EXISTS `+pgx.Identifier{p.schema}.Sanitize()+` CASCADE`)
	}
	if err != nil {
		return fmt.Errorf("publication %s and schema %s are left behind, drop them: %w", p.publication, p.schema, err)
	}
	return nil
}

// dropSlot waits for the walsender to leave the slot.
func (p *place) dropSlot(ctx context.Context, conn *pgx.Conn) error {
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, p.slot)
		inUse := false
		if e, ok := errors.AsType[*pgconn.PgError](err); ok {
			inUse = e.Code == "55006"
		}
		if !inUse {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-retry.C:
		}
	}
}

// leave stops and removes what newPlace and furnish made, even when ctx is done.
func (p *place) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for len(p.undo) > 0 {
		last := len(p.undo) - 1
		errs = append(errs, p.undo[last](ctx))
		p.undo = p.undo[:last]
	}
	return errors.Join(errs...)
}
