// Command walferry-demo shows on real servers that every committed event arrives once and
// in order.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/walferry/walferry/internal/demo"
)

// version and commit are set by the linker.
var version, commit = "dev", "unknown" //nolint:gochecknoglobals // set by -ldflags -X

// Exit codes besides 1, a demo that failed.
const (
	exitUsage       = 64
	exitInterrupted = 128 + int(syscall.SIGINT)
)

var (
	errInterrupted = errors.New("interrupted")
	errNotProved   = errors.New("the proof failed")
)

func main() { os.Exit(execute(os.Args[1:])) }

func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// From the first signal on the second one kills, as signals do by default.
	defer context.AfterFunc(ctx, stop)()
	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil || errors.Is(err, errNotProved) {
		return exitCode(err) // the last line says it
	}
	fmt.Fprintln(os.Stderr, "walferry-demo:", err)
	return exitCode(err)
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if errors.Is(err, errInterrupted) {
		return exitInterrupted
	}
	return 1
}

func rootCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "walferry-demo",
		Short: "Carries events from Postgres to Kafka with walferry, and proves that none was lost",
		Long: "An order service changes orders and writes an event in each transaction; walferry\n" +
			"publishes the events; a consumer reads them back; and what arrived is compared with what\n" +
			"was committed. The exit code is 0 only if every committed event arrived, once, in the\n" +
			"order of its key, and nothing that was rolled back did.\n\n" +
			"Without --postgres a real Postgres is fetched, once, and started; without --kafka an\n" +
			"in-process broker that speaks Kafka's protocol stands in for Kafka.\n\n" +
			"On servers given with --postgres and --kafka everything has a name of its own for the\n" +
			"run, beginning with walferry_demo_, and is removed at the end. The role needs the\n" +
			"rights to create a schema, a publication and a slot, and wal_level must be logical.",
		Example: "  walferry-demo --events 20000\n" +
			"  walferry-demo --postgres postgres://postgres@db/shop --kafka kafka-1:9092,kafka-2:9092",
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.Flags().IntVar(&o.events, "events", 2000, "how many events to commit")
	cmd.Flags().Float64Var(&o.rate, "rate", 0, "events per second; 0: as fast as possible")
	cmd.Flags().StringVar(&o.dsn, "postgres", "", "connection string (`DSN`) of a running Postgres")
	cmd.Flags().StringSliceVar(&o.brokers, "kafka", nil, "seed brokers of a running Kafka, `host:port,...`")
	cmd.Flags().BoolVar(&o.keep, "keep", false, "keep what the run has made, and say where")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return &usageError{err}
		}
		return runDemo(cmd.Context(), o)
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(produceCommand(), consumeCommand(), watchdogCommand(), versionCommand())
	return cmd
}

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (see walferry-demo --help)" }
func (e *usageError) Unwrap() error { return e.err }

// noArgs is cobra.NoArgs with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}

// watchdogCommand is what the demo starts beside itself.
func watchdogCommand() *cobra.Command {
	return &cobra.Command{
		Use: demo.WatchdogCommand + " DIR BINARIES keep|remove", Hidden: true, Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // the demo's end is its only sign
			return demo.Watch(context.WithoutCancel(cmd.Context()), os.Stdin, args[0], args[1], args[2] == "keep")
		},
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "walferry-demo %s (%s)\n", version, commit)
		},
	}
}
