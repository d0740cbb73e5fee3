package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge/recovery"
	"github.com/walferry/walferry/bridge/setup"
)

func initCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create outbox tables, publication, slot and first checkpoint where they are missing",
		Long: "Create what is missing, in this order: outbox tables, publication, slot, and in Kafka the\n" +
			"slot's first checkpoint. What exists is checked. The DSN's role needs to own the tables or be able to create them; with --print\n" +
			"nothing is touched and the SQL is printed, for a migration or a DBA, with the role that\n" +
			"walferry itself needs. Rows that are older than the slot are published with --backfill only.",
		Example: "  walferry init --config walferry.yaml\n  walferry init --print > outbox.sql\n  walferry init --backfill   # the tables have rows that are to be published",
		Args:    noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	onlyPrint := cmd.Flags().Bool("print", false, "only print the SQL, with the least-privilege role")
	acceptGap := cmd.Flags().Bool("accept-gap", false, "create a slot anew although its checkpoint says that there was one: events between them are not published")
	backfill := cmd.Flags().Bool("backfill", false, "publish also the rows that are older than the slot, which must not exist; needs SELECT on the tables")
	report := reportFlag(cmd)
	timeout := cmd.Flags().Duration("timeout", time.Minute, "give up after this `duration`; creating a slot waits for open transactions")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, databases, err := chosen(*path, *name)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if !*backfill || cmd.Flags().Changed("timeout") { // which may have to read a large table
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, *timeout)
			defer cancel()
		}
		for _, db := range databases {
			if *onlyPrint {
				sql, err := setup.SQL(db)
				if err != nil {
					return &configError{err}
				}
				fmt.Fprintln(cmd.OutOrStdout(), sql)
				continue
			}
			if *backfill {
				err := recovering(cfg, db, *report, cmd.OutOrStdout(), func(o recovery.Options) (*recovery.Report, error) {
					o.AcceptGap = *acceptGap
					return setup.Backfill(ctx, o)
				})
				if err != nil {
					return err
				}
				continue
			}
			did := func(what string) { fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", db.Name, what) }
			o := options(cfg, db)
			o.AcceptGap = *acceptGap
			if err := setup.Run(ctx, o, did); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}
