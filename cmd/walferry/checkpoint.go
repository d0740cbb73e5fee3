package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/bridge/replay"
)

func checkpointCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "checkpoint", Short: "Show positions, and save one under a name for a replay",
		Example: "  walferry checkpoint save before-deploy\n  walferry checkpoint list\n  walferry checkpoint show", Args: noArgs, RunE: help,
	}
	cmd.AddCommand(checkpointListCommand(), checkpointShowCommand(), checkpointSaveCommand(), checkpointForgetCommand())
	return cmd
}

func checkpointListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List which LSN was reached when, and the checkpoints that are saved",
		Long: "List, for each database, which LSN was reached when: an entry a minute of the last two hours, one\n" +
			"each ten minutes of the week before, none of a time without progress. And the checkpoints that were saved\n" +
			"under a name. Needs Kafka only. What of it can be replayed `walferry replay window` says.",
		Example: "  walferry checkpoint list\n  walferry checkpoint list --database shop --json",
		Args:    noArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	eachPosition(cmd, func(ctx context.Context, o bridge.Options, w io.Writer) error {
		p, err := replay.ReadPositions(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(w).Encode(p)
		}
		return printPositions(w, p)
	})
	return cmd
}

func printPositions(out io.Writer, p *replay.Positions) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "%s\n", p.Database)
	for _, e := range p.Index {
		fmt.Fprintf(w, "  %s\t%s\t\n", e.Time.UTC().Format(time.RFC3339), e.Pos)
	}
	for _, s := range p.Saved {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", s.Checkpoint.Time.UTC().Format(time.RFC3339), s.Checkpoint.Pos, s.Name)
	}
	return w.Flush()
}

func checkpointShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the present checkpoint",
		Long: "Show, for each database, its present checkpoint, as JSON: the LSN before which everything is in\n" +
			"Kafka, the server's identity and timeline, when it was written, and what was published then. Needs Kafka only.",
		Example: "  walferry checkpoint show --database shop",
		Args:    noArgs,
	}
	eachPosition(cmd, func(ctx context.Context, o bridge.Options, w io.Writer) error {
		p, err := replay.ReadPositions(ctx, o)
		if err != nil {
			return err
		}
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Database   string `json:"database"`
			Checkpoint any    `json:"checkpoint"`
		}{p.Database, p.Current})
	})
	return cmd
}

func checkpointSaveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "save NAME",
		Short: "Save the present checkpoint under a name, for `walferry replay --from NAME`",
		Long: "Save, for each database, its present checkpoint under a name: before a deployment, say. A running\n" +
			"bridge goes on meanwhile. It keeps no WAL: what can be replayed later retain in the configuration bounds.\n" +
			"NAME is 1 to 63 of a-z, 0-9, _, . and -. Needs Kafka only. Refuses a name that is taken, without --replace.",
		Example: "  walferry checkpoint save before-deploy\n  walferry checkpoint save before-deploy --replace",
		Args:    oneName,
	}
	replace := cmd.Flags().Bool("replace", false, "save it also if the name is taken")
	named(cmd, func(ctx context.Context, o bridge.Options, name string, w io.Writer) error {
		c, err := replay.Save(ctx, o, name, *replace)
		if err == nil {
			fmt.Fprintf(w, "%s: saved %s as %s\n", o.Database.Name, c.Pos, name)
		}
		return err
	})
	return cmd
}

func checkpointForgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "forget NAME",
		Short:   "Forget a checkpoint that was saved",
		Example: "  walferry checkpoint forget before-deploy",
		Args:    oneName,
	}
	named(cmd, func(ctx context.Context, o bridge.Options, name string, w io.Writer) error {
		err := replay.Forget(ctx, o, name)
		if err == nil {
			fmt.Fprintf(w, "%s: forgot %s\n", o.Database.Name, name)
		}
		return err
	})
	return cmd
}

// oneName is the argument of commands about one saved checkpoint.
func oneName(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return &usageError{err}
	}
	if !config.IsName(args[0]) {
		return &usageError{fmt.Errorf("%q is not a name: it must be 1 to 63 of a-z, 0-9, _, . and -", args[0])}
	}
	return nil
}

func named(cmd *cobra.Command, do func(ctx context.Context, o bridge.Options, name string, w io.Writer) error) {
	path, database := configFlag(cmd), databaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return eachDatabase(cmd, *path, *database, func(ctx context.Context, o bridge.Options, w io.Writer) error { return do(ctx, o, args[0], w) })
	}
}

func eachPosition(cmd *cobra.Command, do func(context.Context, bridge.Options, io.Writer) error) {
	path, database := configFlag(cmd), databaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return eachDatabase(cmd, *path, *database, do) }
}
