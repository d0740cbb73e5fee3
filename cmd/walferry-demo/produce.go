package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/internal/demo"
)

func produceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "produce",
		Short: "Run the order service alone until stopped, beside a walferry that runs already",
		Long: "Change orders in public.orders, which is created, and write an event in each\n" +
			"transaction: into public.outbox, which must exist, or as a logical message with the\n" +
			"prefix outbox. Some transactions are rolled back on purpose. Prints every committed event.",
		Example: "  walferry-demo produce --postgres postgres://shop@127.0.0.1:5432/shop --rate 5",
		Args:    noArgs,
	}
	dsn := cmd.Flags().String("postgres", "", "connection string (`DSN`)")
	rate := cmd.Flags().Float64("rate", 5, "events per second; 0: as fast as possible")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *dsn == "" || *rate < 0 {
			return &usageError{errors.New("--postgres is required, and --rate must not be negative")}
		}
		return produce(cmd.Context(), *dsn, *rate)
	}
	return cmd
}

func produce(ctx context.Context, dsn string, rate float64) error {
	scr := newScreen()
	shop := demo.Shop{Schema: "public", Prefix: "outbox"}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return stopped(ctx, err)
	}
	err = errors.Join(shop.CreateTable(ctx, conn), conn.Close(ctx))
	if err != nil {
		return stopped(ctx, err)
	}
	load := demo.Load{
		Shop: shop, DSN: dsn, Writers: 2, Orders: 100, Rate: rate,
		Committed: func(events []demo.Event) {
			for _, e := range events {
				scr.say("committed %s version %d, event %s", e.Order, e.Version, e.ID)
			}
		},
	}
	_, err = load.Run(ctx)
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "42P01" {
		err = fmt.Errorf("%w: run `walferry init` first", err)
	}
	return stopped(ctx, err)
}

// stopped returns err, or nil if a signal is what ended the command: it has no other end.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
