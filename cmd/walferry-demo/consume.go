package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"
)

func consumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "consume",
		Short:   "Print the records of topics, from the first one on, until stopped",
		Example: "  walferry-demo consume --kafka 127.0.0.1:9092 --topics '^outbox\\.event\\.order$'",
		Args:    noArgs,
	}
	brokers := cmd.Flags().StringSlice("kafka", nil, "seed brokers, `host:port,...`")
	topics := cmd.Flags().String("topics", `^outbox\.event\.`, "`regex` of topic names; topics may be created later")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(*brokers) == 0 {
			return &usageError{errors.New("--kafka is required")}
		}
		return stopped(cmd.Context(), consume(cmd.Context(), *brokers, *topics))
	}
	return cmd
}

func consume(ctx context.Context, brokers []string, topics string) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ClientID("walferry-demo-consumer"),
		kgo.ConsumeRegex(),
		kgo.ConsumeTopics(topics),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.MetadataMaxAge(2*time.Second), // how soon a new topic is found
		kgo.MetadataMinAge(time.Second),
		kgo.FetchMaxWait(500*time.Millisecond),
	)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer client.Close()
	scr := newScreen()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("consume: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) { scr.say("%s", recordLine(r)) })
	}
	return nil
}
