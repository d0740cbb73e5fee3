package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/recovery"
)

func recoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Publish from the outbox table what a lost slot has not sent, and make a new slot",
		Long: "After a slot was lost: invalidated, dropped, left behind by a failover, or moved ahead of its\n" +
			"checkpoint. Makes a new slot, and publishes the rows that commit before it begins and that no topic\n" +
			"has. Then `walferry run` goes on. No row that is still in an outbox table is lost. Not recovered are\n" +
			"rows that were deleted, in the transaction that wrote them or later, and logical messages. The order\n" +
			"of the rows of one key is that of their commits only with track_commit_timestamp, or as far as\n" +
			"outbox.order_column has it; it says which order it takes.\n\n" +
			"The bridge of the database must have stopped. Needs SELECT on the outbox tables. It can be killed at\n" +
			"any time and run again. While it runs Postgres keeps the WAL behind the new slot. Refuses a slot that\n" +
			"is whole and agrees with its checkpoint.",
		Example: "  walferry recover --dry-run\n  walferry recover --database shop --report resent.ndjson",
		Args:    noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	dryRun := cmd.Flags().Bool("dry-run", false, "change nothing: say what is known, and how many rows would be sent")
	report := reportFlag(cmd)
	timeout := cmd.Flags().Duration("timeout", 0, "give up after this `duration`; 0 does not")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, db, err := chosenOne(*path, *name)
		if err != nil {
			return err
		}
		ctx, stop := untilSignalled(cmd.Context())
		defer stop()
		if *timeout > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, *timeout)
			defer cancel()
		}
		return recovering(cfg, db, *report, cmd.OutOrStdout(), func(o recovery.Options) (*recovery.Report, error) {
			o.DryRun = *dryRun
			return recovery.Run(ctx, o)
		})
	}
	return cmd
}

// reportFlag adds --report.
func reportFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("report", "", "append a line of JSON to this `file` for each row that is sent: id, topic, partition, offset")
}

// recovering runs a recovery of a database, or its backfill, prints what it does to w and what it has sent to a file.
func recovering(cfg *config.Config, db config.Database, file string, w io.Writer, run func(recovery.Options) (*recovery.Report, error)) (err error) {
	collectEarly()
	say := func(line string) { fmt.Fprintf(w, "%s: %s\n", db.Name, line) }
	o := recovery.Options{Options: options(cfg, db), Say: say, Progress: newProgress(os.Stderr, false).show}
	if file != "" {
		// What a run has sent that was killed stands there already: the next one finds it in the topics.
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return &usageError{fmt.Errorf("--report: %w", err)}
		}
		lines := json.NewEncoder(f) // a whole line a write
		o.Sent = func(s recovery.Sent) error { return lines.Encode(s) }
		defer func() { err = errors.Join(err, f.Close()) }()
	}
	report, err := run(o)
	if err != nil {
		return err
	}
	for _, topic := range slices.Sorted(maps.Keys(report.Topics)) {
		say(fmt.Sprintf("sent %d rows to topic %s", report.Topics[topic], topic))
	}
	if report.Sent > 0 {
		say(fmt.Sprintf("the first is %s, the last %s", place(report.First), place(report.Last)))
	}
	if !o.DryRun && report.Start != 0 {
		say(fmt.Sprintf("`walferry run` goes on at %s", report.Start))
	}
	return nil
}

func place(s recovery.Sent) string {
	return fmt.Sprintf("%q at offset %d of partition %d of topic %s", s.ID, s.Offset, s.Partition, s.Topic)
}
