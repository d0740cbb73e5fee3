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
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/spf13/cobra"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/replay"
)

// replayFlags are those of `walferry replay`.
type replayFlags struct {
	fromLSN, fromTime, from string
	toLSN, toTime           string
	to, prefix, resume      string
	inPlace, dryRun, table  bool
	rate                    float64
}

func replayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Publish once more what was published, from a saved LSN or a time on",
		Long: "Publish once more what the bridge has published, out of the WAL that the retention slot keeps\n" +
			"(retain in the configuration). It takes a temporary copy of that slot, which ends with it; the\n" +
			"bridge, its slot and its checkpoint are left alone, and may go on meanwhile.\n\n" +
			"Whole transactions are replayed, by where their commit records lie: those at or behind --from-lsn\n" +
			"and before --to-lsn. With --from-time and --to-time those that were committed in between, by\n" +
			"Postgres' clock. Without an end it goes as far as the bridge has published. What is not kept any\n" +
			"more is refused: `walferry replay window` says what is.\n\n" +
			"Records go to topics with a prefix unless --in-place is given, have the ID of the replay in the header\n" +
			"walferry-replay-id and their position in walferry-position. A replay that was stopped or killed goes on\n" +
			"with --resume; what it published in its last second comes again.\n\n" +
			"--from-table replays the rows that the outbox tables still hold instead. It needs no retention slot,\n" +
			"and knows less: not what is deleted, no logical messages, no positions, and no certain order.",
		Example: "  walferry replay --from-time 45m --dry-run\n" +
			"  walferry replay --from before-deploy --in-place\n" +
			"  walferry replay --from-lsn 16/B374D848 --to-lsn 16/B3800000 --to stdout > events.ndjson\n" +
			"  walferry replay --from-table --topic-prefix again.",
		Args: noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	var f replayFlags
	flags := cmd.Flags()
	flags.StringVar(&f.fromLSN, "from-lsn", "", "begin with the first transaction whose commit record lies at or behind this `LSN`")
	flags.StringVar(&f.fromTime, "from-time", "", "begin at this `time`, as 2026-11-30T02:15:00Z, or so long ago, as 45m")
	flags.StringVar(&f.from, "from", "", "begin at the checkpoint that is saved under this `name`")
	flags.StringVar(&f.toLSN, "to-lsn", "", "end before this `LSN`")
	flags.StringVar(&f.toTime, "to-time", "", "end at this `time`, as --from-time")
	flags.StringVar(&f.to, "to", "kafka", "`where` to: kafka, or stdout for a JSON object a line")
	flags.StringVar(&f.prefix, "topic-prefix", "replay.", "`prefix` of the name of each topic")
	flags.BoolVar(&f.inPlace, "in-place", false, "publish to the topics that the events went to first")
	flags.BoolVar(&f.dryRun, "dry-run", false, "publish nothing: say how many events there are, the first and the last")
	flags.Float64Var(&f.rate, "rate", 0, "at most so many `events` a second; 0: as fast as they can be read")
	flags.StringVar(&f.resume, "resume", "", "go on with the replay of this `ID`")
	flags.BoolVar(&f.table, "from-table", false, "replay the rows that the outbox tables still hold")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := f.options(cmd)
		if err != nil {
			return &usageError{err}
		}
		cfg, db, err := chosenOne(*path, *name)
		if err != nil {
			return err
		}
		o.Options = options(cfg, db)
		return f.run(cmd.Context(), o, cmd.OutOrStdout())
	}
	cmd.AddCommand(windowCommand())
	return cmd
}

// options checks the flags.
func (f *replayFlags) options(cmd *cobra.Command) (o replay.Options, err error) {
	given := func(names ...string) (n int) {
		for _, name := range names {
			if cmd.Flags().Changed(name) {
				n++
			}
		}
		return n
	}
	froms := given("from-lsn", "from-time", "from")
	switch {
	case f.resume != "" && given("from-lsn", "from-time", "from", "to-lsn", "to-time", "to", "topic-prefix", "in-place", "dry-run", "from-table") > 0:
		return o, errors.New("--resume goes on as the replay began: only --rate goes with it")
	case f.table && given("from-lsn", "from", "to-lsn") > 0:
		return o, errors.New("--from-table knows no LSNs: only --from-time and --to-time go with it, with track_commit_timestamp")
	case f.resume == "" && !f.table && froms != 1:
		return o, errors.New("give one of --from-lsn, --from-time, --from, --from-table and --resume")
	case given("to-lsn", "to-time") > 1:
		return o, errors.New("give one of --to-lsn and --to-time")
	case f.to != "kafka" && f.to != "stdout":
		return o, errors.New("--to must be kafka or stdout")
	case f.inPlace && given("topic-prefix") > 0:
		return o, errors.New("--in-place and --topic-prefix exclude each other")
	case f.inPlace && f.to == "stdout":
		return o, errors.New("--in-place and --to stdout exclude each other")
	case !f.inPlace && f.prefix == "" && f.to == "kafka":
		return o, errors.New("an empty --topic-prefix is --in-place: say so")
	case f.rate < 0:
		return o, errors.New("--rate must not be negative")
	}
	if o.Ask.FromLSN, err = lsnFlag("--from-lsn", f.fromLSN); err != nil {
		return o, err
	}
	if o.Ask.ToLSN, err = lsnFlag("--to-lsn", f.toLSN); err != nil {
		return o, err
	}
	now := time.Now()
	if o.Ask.FromTime, err = timeFlag("--from-time", f.fromTime, now); err != nil {
		return o, err
	}
	if o.Ask.ToTime, err = timeFlag("--to-time", f.toTime, now); err != nil {
		return o, err
	}
	if o.Ask.FromTime.After(now) {
		return o, fmt.Errorf("--from-time: %s lies in the future", f.fromTime)
	}
	if !o.Ask.ToTime.IsZero() && o.Ask.ToTime.Before(o.Ask.FromTime) {
		return o, errors.New("--to-time lies before --from-time")
	}
	o.Ask.FromName, o.Resume, o.Rate, o.DryRun = f.from, f.resume, f.rate, f.dryRun
	o.Target = replay.Target{InPlace: f.inPlace, Prefix: f.prefix}
	if f.inPlace || f.to == "stdout" {
		o.Target.Prefix = ""
	}
	return o, nil
}

// lsnFlag returns 0 for "".
func lsnFlag(name, text string) (lsn pglogrepl.LSN, err error) {
	if text == "" {
		return 0, nil
	}
	if lsn, err = pglogrepl.ParseLSN(text); err != nil || lsn == 0 {
		return 0, fmt.Errorf("%s: %q is not an LSN such as 16/B374D848", name, text)
	}
	return lsn, nil
}

// timeFlag returns the zero time for "".
func timeFlag(name, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago > 0 {
		return now.Add(-ago).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("%s: %q is neither a time such as 2026-11-30T02:15:00Z nor a duration such as 45m", name, text)
	}
	return at, nil
}

func (f *replayFlags) run(ctx context.Context, o replay.Options, stdout io.Writer) error {
	ctx, stop := untilSignalled(ctx)
	defer stop()
	messages := stdout
	if f.to == "stdout" {
		messages = os.Stderr
		if !o.DryRun {
			o.Lines = stdout
		}
	}
	o.Say = func(line string) { fmt.Fprintf(messages, "%s: %s\n", o.Database.Name, line) }
	bar := newProgress(os.Stderr, !f.table)
	o.Progress = func(done, total, _ int64) { bar.show("replay", done, total) }
	replayed := replay.Run
	if f.table {
		replayed = replay.FromTable
	}
	report, err := replayed(ctx, o)
	bar.end()
	f.summarize(messages, o, report)
	return err
}

func (f *replayFlags) summarize(w io.Writer, o replay.Options, r *replay.Report) {
	if r.Range.To.LSN == 0 && !f.table {
		return // it never began
	}
	verb := "replayed"
	if o.DryRun {
		verb = "would replay"
	}
	what := "rows"
	if !f.table {
		what = fmt.Sprintf("events of %d transactions", r.Transactions)
	}
	fmt.Fprintf(w, "%s: %s %d %s\n", o.Database.Name, verb, r.Events, what)
	for _, topic := range slices.Sorted(maps.Keys(r.Topics)) {
		fmt.Fprintf(w, "  %d to %s\n", r.Topics[topic], topic)
	}
	if r.Events > 0 && !f.table {
		fmt.Fprintf(w, "  first %s, committed %s\n  last  %s, committed %s\n", r.First.Position, r.First.Committed.UTC().Format(time.RFC3339Nano),
			r.Last.Position, r.Last.Committed.UTC().Format(time.RFC3339Nano))
	}
	if r.Unpublished > 0 {
		fmt.Fprintf(w, "  %d events were left out, as none can be published like that: dead letters, or larger than kafka.max_record by now\n", r.Unpublished)
	}
}

func windowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "window",
		Short: "Show what can be replayed, in LSNs and times, and replays that can be resumed",
		Long: "Show, for each database, which transactions the retention slot keeps. What lies in it in LSNs can\n" +
			"be asked for by --from-lsn and --from; by --from-time what lies in it by the index, which has an entry a\n" +
			"minute. Its end is what the bridge has published.",
		Example: "  walferry replay window\n  walferry replay window --database shop --json",
		Args:    noArgs,
	}
	path, name := configFlag(cmd), databaseFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return eachDatabase(cmd, *path, *name, func(ctx context.Context, o bridge.Options, out io.Writer) error {
			w, err := replay.ReadWindow(ctx, o)
			if err != nil {
				return err
			}
			if *asJSON {
				return json.NewEncoder(out).Encode(struct {
					Database string `json:"database"`
					*replay.Window
				}{o.Database.Name, w})
			}
			fmt.Fprintf(out, "%s: %s (slot %s)\n", o.Database.Name, w, w.Slot)
			for _, s := range w.Interrupted {
				fmt.Fprintf(out, "  replay %s of %s to %s has come to %s at %s; --resume %s goes on\n",
					s.ID, s.Range.From, s.Range.To, s.Reached, s.Time.Format(time.RFC3339), s.ID)
			}
			return nil
		})
	}
	return cmd
}
