package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/decode"
)

func poisonCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "poison", Short: "Show events that can never be published, and move one out of the way",
		Example: "  walferry poison show\n  walferry poison dead-letter 7312345678901234567/1/0/15A1DB3/0", Args: noArgs, RunE: help,
	}
	cmd.AddCommand(poisonShowCommand(), deadLetterCommand())
	return cmd
}

func poisonShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the event that a bridge halted before",
		Long: "Show, for each database, the event that its bridge halted before, as the bridge has noted it in\n" +
			"checkpoint.topic: its position, where it comes from, its outbox id if that can be read, and the\n" +
			"reason; never payload or key. Needs Kafka but not Postgres, and takes nothing away from a bridge\n" +
			"that runs. Without a note, for Kafka may have been out of reach, the bridge's log names the event.\n\n" +
			"Exits with 0 if the notes could be read, whether there are any or not.",
		Example: "  walferry poison show --config walferry.yaml\n  walferry poison show --database shop",
		Args:    noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return eachDatabase(cmd, *path, *name, func(ctx context.Context, o bridge.Options, w io.Writer) error {
			p, err := bridge.ReadPoison(ctx, o)
			if err != nil {
				return bridge.Explain(o.Database.Name, err)
			}
			printPoison(w, *path, o.Database.Name, p)
			return nil
		})
	}
	return cmd
}

// printPoison quotes the id, which may be anything.
func printPoison(w io.Writer, path, database string, p *bridge.Poisoned) {
	for _, position := range p.DeadLettered {
		fmt.Fprintf(w, "%s: event %s is a dead letter; walferry passes over it when it is started again\n", database, position)
	}
	n := p.Note
	if n == nil {
		fmt.Fprintf(w, "%s: no other event is known that can never be published\n", database)
		return
	}
	fmt.Fprintf(w, "%s: halted before event %s at %s\n  from    %s\n", database, n.Position, n.Time.Format(time.RFC3339), n.Where)
	if n.ID != "" {
		fmt.Fprintf(w, "  id      %q\n", n.ID)
	}
	fmt.Fprintf(w, "  reason  %s\n", n.Reason)
	fmt.Fprintf(w, "  next    correct what the reason names and restart walferry, or move the event out of the way:\n"+
		"          walferry poison dead-letter --config %s --database %s %s\n", path, database, n.Position)
}

func deadLetterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dead-letter POSITION",
		Short: "Move one event that can never be published to the dead-letter topic",
		Long: "Publish the original bytes of one event, and what is needed to read them, to\n" +
			"kafka.dead_letter_topic, and let the bridge pass over it. POSITION is what `walferry poison show`\n" +
			"and the log print. The bridge of the database must have halted; it goes on when walferry is\n" +
			"started again. Consumers do not get the event: whoever owns it has to make it good.\n\n" +
			"Refuses, with exit code 1, an event that can be published, one that is published, and a position\n" +
			"without an event. Exits with 64 for a wrong command line.",
		Example: "  walferry poison dead-letter 7312345678901234567/1/0/15A1DB3/0\n" +
			"  walferry poison dead-letter --database shop 7312345678901234567/1/0/15A1DB3/0",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.ExactArgs(1)(cmd, args); err != nil {
				return &usageError{err}
			}
			return nil
		},
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	timeout := cmd.Flags().Duration("timeout", 5*time.Minute, "give up after this `duration`; the event is searched from where the slot stands")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at, err := decode.ParsePosition(args[0])
		if err != nil {
			return &usageError{err}
		}
		cfg, db, err := chosenOne(*path, *name)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		l, err := bridge.MoveToDeadLetters(ctx, options(cfg, db), at)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: event %s of %s (%d bytes, committed %s: %s) is at offset %d of partition %d of topic %s\n"+
			"restart walferry: it passes over the event\n",
			db.Name, at, l.Where, l.Size, l.Committed.UTC().Format(time.RFC3339), l.Reason, l.Offset, l.Partition, l.Topic)
		return nil
	}
	return cmd
}

// databaseFlag adds --database.
func databaseFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("database", "", "only the database with this `name`")
}

// chosen loads the configuration and returns its databases of that name, all of them for "".
func chosen(path, name string) (cfg *config.Config, databases []config.Database, err error) {
	if cfg, err = loadConfig(path); err != nil {
		return nil, nil, err
	}
	for _, db := range cfg.Databases {
		if name == "" || name == db.Name {
			databases = append(databases, db)
		}
	}
	if len(databases) == 0 {
		return nil, nil, &usageError{fmt.Errorf("--database: the configuration has no database %q", name)}
	}
	return cfg, databases, nil
}

// eachDatabase does something that needs no more than a minute for each database of that name, or all.
func eachDatabase(cmd *cobra.Command, path, name string, do func(context.Context, bridge.Options, io.Writer) error) error {
	cfg, databases, err := chosen(path, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
	defer cancel()
	for _, db := range databases {
		if err := do(ctx, options(cfg, db), cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	return nil
}

// chosenOne is chosen for a command that is about one database.
func chosenOne(path, name string) (cfg *config.Config, db config.Database, err error) {
	cfg, databases, err := chosen(path, name)
	if err == nil && len(databases) != 1 {
		err = &usageError{fmt.Errorf("the configuration has %d databases: choose one with --database", len(databases))}
	}
	if err != nil {
		return nil, db, err
	}
	return cfg, databases[0], nil
}

// options are those of a command that looks at a database; it logs warnings only.
func options(cfg *config.Config, db config.Database) bridge.Options {
	cfg.Log.Level = "warn"
	return bridge.Options{
		Database: db, Kafka: cfg.Kafka, Checkpoint: cfg.Checkpoint, ExactlyOnce: cfg.ExactlyOnce(),
		Log: newLogger(cfg.Log, os.Stderr), Metrics: bridge.NewMetrics(prometheus.NewRegistry(), version, commit),
	}
}
