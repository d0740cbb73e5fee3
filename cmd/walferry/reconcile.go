package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge/reconcile"
)

// exitDefects says that table and topics do not agree.
const exitDefects = 68

// defectsError is what a comparison has found in several databases.
type defectsError struct{ databases []string }

func (e *defectsError) Error() string {
	return "tables and topics do not agree: " + strings.Join(e.databases, ", ")
}

func reconcileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Compare outbox tables with topics, and publish what is missing",
		Long: "Take a snapshot of the outbox tables, wait until the slot has confirmed all that it sees, read the topics\n" +
			"that the rows go to from start to end, and compare: rows without a record (missing), records too many\n" +
			"(duplicated), records that are not what their row becomes (different), and events of one key out of their\n" +
			"order. What may have expired from a topic, or was compacted, is unknown, never missing. Records\n" +
			"without a row are not judged: it was deleted, or is newer than the snapshot.\n\n" +
			"Needs SELECT on the tables, and of the topics READ, DESCRIBE and DESCRIBE_CONFIGS; --repair WRITE. Takes\n" +
			"nothing away from the bridge, which has to run: only what it has confirmed is compared. While it reads, Postgres\n" +
			"cannot vacuum what has died since it began. Rows and records are kept as hashes, beyond --memory in files.\n\n" +
			"Exits with 0 if tables and topics agree, with 68 if not; with delivery at_least_once duplicates are counted and\n" +
			"agree. What --repair has published is no defect any more. Exits with 1 if it could not compare. One --repair or\n" +
			"`walferry recover` of a slot runs at a time.",
		Example: "  walferry reconcile --config walferry.yaml --report defects.ndjson\n" +
			"  walferry reconcile --json --metrics /var/lib/node_exporter/walferry.prom\n  walferry reconcile --database shop --repair",
		Args: noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	f := reconcileFlags{memory: 256 << 20}
	flags := cmd.Flags()
	flags.BoolVar(&f.repair, "repair", false, "publish what is missing")
	flags.Uint32Var(&f.maxRepair, "max-repair", 1000, "publish nothing, and fail, if more than this `number` of rows are missing from the topics of a database")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.StringVar(&f.report, "report", "", "write each defect as a line of JSON to this `file`: kind, id and place, never payload or key")
	flags.StringVar(&f.metrics, "metrics", "", "write metrics to this `file` for node_exporter's textfile collector")
	flags.DurationVar(&f.timeout, "timeout", 5*time.Minute, "give up if the slot takes longer than this `duration` to confirm what is compared, or Kafka sends or acknowledges nothing for as long")
	flags.Var(&f.memory, "memory", "hold about as many `bytes` of rows and records, the rest goes to files")
	flags.StringVar(&f.dir, "dir", "", "the `directory` for these files (default: the system's for temporary files)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := untilSignalled(cmd.Context())
		defer stop()
		return f.run(ctx, cmd.OutOrStdout(), *path, *name)
	}
	return cmd
}

type reconcileFlags struct {
	repair, asJSON       bool
	maxRepair            uint32
	report, metrics, dir string
	memory               byteSize
	timeout              time.Duration
}

// byteSize is a flag that takes 64MiB.
type byteSize uint64

func (s *byteSize) String() string { return humanize.IBytes(uint64(*s)) }
func (s *byteSize) Type() string   { return "bytes" }

// Set implements pflag.Value.
func (s *byteSize) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err == nil && (n < leastMemory || n > mostMemory) {
		err = fmt.Errorf("must be from %s to %s", humanize.IBytes(leastMemory), humanize.IBytes(mostMemory))
	}
	*s = byteSize(n)
	return err
}

const (
	leastMemory = 1 << 20
	mostMemory  = 1 << 40
	// beside is what the process takes beside --memory, in bytes, mostly what Kafka sends: beyond both together the collector
	// works harder.
	beside = 64 << 20
)

// run compares the databases one after another.
func (f *reconcileFlags) run(ctx context.Context, out io.Writer, path, name string) (err error) {
	cfg, databases, err := chosen(path, name)
	if err != nil {
		return err
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(f.memory) + beside)
	}
	report, err := create(f.report)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(report.close(), err) }()
	results, bad, failed, success := []*reconcile.Result{}, &defectsError{}, []error(nil), map[string]float64{}
	for _, db := range databases {
		bar := newProgress(os.Stderr, false)
		o := reconcile.Options{
			Options: options(cfg, db), Repair: f.repair, MaxRepair: int64(f.maxRepair), Report: report.writer(),
			Memory: int(f.memory), Dir: f.dir, Timeout: f.timeout, Progress: func(stage string, done, total int64) { bar.show(db.Name+": "+stage, done, total) },
		}
		r, err := reconcile.Run(ctx, o)
		bar.end()
		if ctx.Err() != nil {
			return errors.New("interrupted before everything was compared")
		}
		success[db.Name] = 0
		if err != nil { // the others can be compared all the same
			failed = append(failed, err)
		}
		if r == nil {
			continue
		}
		success[db.Name] = 1
		if results = append(results, r); !r.Agree {
			bad.databases = append(bad.databases, db.Name)
		}
	}
	if f.metrics != "" {
		if err := writeReconcileMetrics(f.metrics, results, success); err != nil {
			return err
		}
	}
	if err := f.print(out, results); err != nil {
		return err
	}
	switch {
	case len(failed) > 0:
		return errors.Join(failed...)
	case len(bad.databases) > 0:
		return bad
	}
	return nil
}

// reportFile is where defects go; a nil one is nowhere.
type reportFile struct {
	file *os.File
	*bufio.Writer
}

func create(path string) (*reportFile, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // ids may say something to somebody
	if err != nil {
		return nil, &usageError{fmt.Errorf("--report: %w", err)}
	}
	return &reportFile{file, bufio.NewWriter(file)}, nil
}

func (r *reportFile) writer() io.Writer {
	if r == nil {
		return nil
	}
	return r.Writer
}

func (r *reportFile) close() error {
	if r == nil {
		return nil
	}
	if err := errors.Join(r.Flush(), r.file.Close()); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	return nil
}

func (f *reconcileFlags) print(out io.Writer, results []*reconcile.Result) error {
	if f.asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	for _, r := range results {
		if err := printResult(out, r); err != nil {
			return err
		}
	}
	return nil
}

func printResult(out io.Writer, r *reconcile.Result) error {
	verdict := "tables and topics agree"
	if !r.Agree {
		verdict = "TABLES AND TOPICS DO NOT AGREE"
	}
	fmt.Fprintf(out, "%s: %s, up to %s at %s, delivery %s, in %.1f s\n", r.Database, verdict, r.LSN, r.Time.Format(time.RFC3339), r.Delivery, r.Seconds)
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "rows\trecords\tmissing\trepaired\tduplicated\tdifferent\tout of order\tunknown\tpruned\t  topic")
	line := func(c *reconcile.Counts, topic string) {
		for _, n := range []int64{c.Rows, c.Records, c.Missing, c.Repaired, c.Duplicated, c.Different, c.OutOfOrder, c.Unknown, c.Pruned} {
			fmt.Fprintf(w, "%d\t", n)
		}
		fmt.Fprintf(w, "  %s\n", topic)
	}
	for i := range r.Topics {
		t := &r.Topics[i]
		name := t.Topic
		switch {
		case t.Partitions == 0:
			name += " (does not exist)"
		case t.Compacted:
			name += " (compacted)"
		}
		line(&t.Counts, name)
	}
	line(&r.Total, "in all")
	if err := w.Flush(); err != nil {
		return err
	}
	if n := r.Total.Unpublishable; n > 0 {
		fmt.Fprintf(out, "  %d rows can never be published, or are dead letters\n", n)
	}
	for _, t := range r.Tables {
		if r.Total.Repaired > 0 {
			fmt.Fprintf(out, "  rows of %s were published %s\n", t.Table, t.Order)
		}
	}
	for _, hint := range r.Hints {
		fmt.Fprintf(out, "  %s\n", hint)
	}
	return nil
}

// writeReconcileMetrics writes the results in Prometheus' text format, and of each database whether it could be compared. The
// file appears at once or not at all.
func writeReconcileMetrics(path string, results []*reconcile.Result, success map[string]float64) error {
	registry := prometheus.NewRegistry()
	of := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "walferry_reconcile_" + name, Help: help + ", of the last `walferry reconcile`."}, []string{"database"})
		registry.MustRegister(g)
		return g
	}
	compared := of("success", "Whether the database could be compared, 1 or 0")
	for database, is := range success {
		compared.WithLabelValues(database).Set(is)
	}
	gauge := func(name, help string, value func(*reconcile.Result) int64) {
		g := of(name, help)
		for _, r := range results {
			g.WithLabelValues(r.Database).Set(float64(value(r)))
		}
	}
	gauge("rows", "Rows of the outbox tables", func(r *reconcile.Result) int64 { return r.Total.Rows })
	gauge("records", "Records of the topics that rows go to", func(r *reconcile.Result) int64 { return r.Total.Records })
	gauge("missing", "Rows without a record, where it would be held, and that were not repaired", func(r *reconcile.Result) int64 { return r.Total.Missing - r.Total.Repaired })
	gauge("duplicated", "Records too many", func(r *reconcile.Result) int64 { return r.Total.Duplicated })
	gauge("different", "Records that are not what their row becomes", func(r *reconcile.Result) int64 { return r.Total.Different })
	gauge("out_of_order", "Events behind one of their key that they should precede", func(r *reconcile.Result) int64 { return r.Total.OutOfOrder })
	gauge("unknown", "Rows without a record, which may have expired", func(r *reconcile.Result) int64 { return r.Total.Unknown })
	gauge("repaired", "Missing rows that were published", func(r *reconcile.Result) int64 { return r.Total.Repaired })
	gauge("timestamp_seconds", "When the tables were read, in seconds since the Unix epoch", func(r *reconcile.Result) int64 { return r.Time.Unix() })
	if err := prometheus.WriteToTextfile(path, registry); err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	return nil
}
