package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/walferry/walferry/internal/servers"
)

// partitions is how many partitions every topic of an experiment has.
const partitions = 6

// testbed is what everything is measured on: the servers and the binary.
type testbed struct {
	pg       *servers.PG
	kafka    *servers.Broker
	walferry string // path of the walferry binary
	dir      string // scratch directory
}

// newTestbed starts one Postgres 18 and one Kafka broker, both empty. The caller must close it.
func newTestbed(ctx context.Context, walferry string) (*testbed, error) {
	binary, err := filepath.Abs(walferry)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("the binary to measure, which `make build` makes: %w", err)
	}
	dir, err := os.MkdirTemp("", "walferry-bench-")
	if err != nil {
		return nil, err
	}
	bed := &testbed{walferry: binary, dir: dir}
	if bed.pg, err = servers.Postgres(ctx, "18", postgresOptions()); err != nil {
		return nil, errors.Join(err, bed.close())
	}
	if bed.kafka, err = servers.Kafka(ctx, kafkaOptions()); err != nil {
		return nil, errors.Join(err, bed.close())
	}
	return bed, nil
}

// postgresOptions keep what Postgres does by itself, at its own times, out of the runs.
func postgresOptions() servers.PostgresOptions {
	return servers.PostgresOptions{Settings: map[string]string{
		"shared_buffers":        "256MB",
		"max_wal_size":          "64GB",
		"checkpoint_timeout":    "1h",
		"autovacuum":            "off",
		"max_replication_slots": "60",
		"max_wal_senders":       "60",
		"max_connections":       "200",
	}}
}

func kafkaOptions() servers.KafkaOptions {
	return servers.KafkaOptions{HeapMB: 1024, LongLived: true, Properties: map[string]string{
		"log.segment.delete.delay.ms": "1000", // the disk needs the room of deleted topics
	}}
}

// close ends the servers and removes everything they have written.
func (bed *testbed) close() error {
	err := os.RemoveAll(bed.dir)
	if bed.pg != nil {
		err = errors.Join(err, bed.pg.Close())
	}
	if bed.kafka != nil {
		err = errors.Join(err, bed.kafka.Close())
	}
	return err
}
