package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/mattn/go-isatty"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Publish the outbox events of every configured database until stopped",
		Long: "Publish the outbox events of every configured database.\n\n" +
			"SIGTERM or SIGINT drains: an open transaction is read to its COMMIT, Kafka's\n" +
			"acknowledgements are awaited for drain_timeout, the LSN is confirmed and read back.\n" +
			"A second signal stops at once. No stop loses an event.",
		Example: "  walferry run --config walferry.yaml\n" +
			"  walferry run --adopt-slot   # once, for a slot that `walferry init` did not make\n" +
			"  walferry run --until-lsn \"$(psql -Atc 'select pg_current_wal_lsn()')\"",
		Args: noArgs,
	}
	path := configFlag(cmd)
	until := cmd.Flags().String("until-lsn", "", "exit 0 as soon as everything up to this `LSN` is confirmed (one database only)")
	var o bridge.Options
	cmd.Flags().BoolVar(&o.AdoptSlot, "adopt-slot", false, "begin where the slot stands if it has no checkpoint; what it skipped before is not known")
	cmd.Flags().BoolVar(&o.AcceptGap, "accept-gap", false, "go on behind a gap, once: events in it are not published; its range is logged")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		if *until != "" {
			if o.Until, err = pglogrepl.ParseLSN(*until); err != nil {
				return &usageError{fmt.Errorf("--until-lsn: %q is not an LSN such as 16/B374D848", *until)}
			}
			if len(cfg.Databases) != 1 {
				return &usageError{fmt.Errorf("--until-lsn needs one database, the configuration has %d", len(cfg.Databases))}
			}
		}
		collectEarly()
		ctx, stop := untilSignalled(cmd.Context())
		defer stop()
		o.Log = newLogger(cfg.Log, os.Stderr)
		return run(ctx, cfg, o)
	}
	return cmd
}

// collectEarly halves what the collector leaves for garbage: most of the heap is what is in flight, or sorted, and garbage is
// rare, so that by default it would double memory for nothing.
func collectEarly() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// untilSignalled returns a context that ends with the first SIGTERM or SIGINT. The second kills the
// process, as signals do by default, however soon it comes: signal.NotifyContext ends its context
// before it can give the default back, and takes what comes in between.
func untilSignalled(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-ctx.Done():
		case <-signals:
		}
		signal.Stop(signals)
		cancel()
		select {
		case second := <-signals:
			_ = syscall.Kill(os.Getpid(), second.(syscall.Signal)) // it cannot fail: it is this process
		default:
		}
	}()
	return ctx, cancel
}

func newLogger(cfg config.Log, w *os.File) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		level = zerolog.InfoLevel // config has checked it
	}
	var out io.Writer = w
	if cfg.Format == "pretty" || cfg.Format == "auto" && isatty.IsTerminal(w.Fd()) {
		out = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(out).Level(level).With().Timestamp().Logger()
}

// run runs a bridge for each database until all have ended: one that fails keeps its state
// on the admin address and leaves the others alone.
func run(ctx context.Context, cfg *config.Config, o bridge.Options) error {
	log := o.Log
	for _, w := range cfg.Warnings() {
		log.Warn().Msg(w)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	o.Databases = len(cfg.Databases)
	o.Kafka, o.Checkpoint, o.ExactlyOnce, o.Metrics = cfg.Kafka, cfg.Checkpoint, cfg.ExactlyOnce(), bridge.NewMetrics(registry, version, commit)
	var bridges []*bridge.Bridge
	for _, db := range cfg.Databases {
		o.Database = db
		bridges = append(bridges, bridge.New(o))
	}
	closeAdmin, err := serveAdmin(cfg.Admin.Listen, bridges, registry, log)
	if err != nil {
		return err
	}
	defer closeAdmin()
	log.Info().Str("version", version).Int("databases", len(bridges)).Str("admin", cfg.Admin.Listen).Msg("walferry starts")

	errs := make([]error, len(bridges))
	var wg sync.WaitGroup
	for i, b := range bridges {
		wg.Go(func() { errs[i] = b.Run(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	log.Info().Msg("walferry stopped")
	return nil
}

// serveAdmin serves the admin address, if there is one, until the returned function is called.
func serveAdmin(addr string, bridges []*bridge.Bridge, metrics prometheus.Gatherer, log zerolog.Logger) (func(), error) {
	if addr == "" {
		return func() {}, nil
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin.listen: %w (is another walferry running? choose another address, or \"\" for none)", err)
	}
	server := &http.Server{Handler: bridge.AdminHandler(bridges, metrics), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("the admin server ended")
		}
	}()
	return func() { _ = server.Close() }, nil // probes can be cut off
}
