// Command bench measures walferry beside others on the same WAL: how fast a backlog is drained, what
// that costs, and how late an event is. It starts a Postgres and a Kafka of its own.
//
// Usage: go run ./bench [flags], or make bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// options are what the flags say.
type options struct {
	quick, peers, latency, growth bool
	rounds                        int
	only, contestants             []string
	out, walferry, cache          string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) //nolint:forbidigo // a command's first context
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// command runs the benchmark, or one of the contestants that are this program itself.
func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "read":
			return read(ctx, args[1:])
		case "produce":
			return produce(ctx, args[1:])
		}
	}
	o, err := parseFlags(args, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return benchmark(ctx, o, os.Stdout)
}

func parseFlags(args []string, w io.Writer) (options, error) {
	var o options
	var only, contestants string
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.BoolVar(&o.quick, "quick", false, "a small backlog and few rounds: under five minutes, for a first look")
	flags.BoolVar(&o.peers, "peers", false, "measure Debezium Server as well; needs Maven, and Java 21 or newer in JAVA_HOME")
	flags.BoolVar(&o.latency, "latency", true, "measure the latency")
	flags.BoolVar(&o.growth, "growth", false, "measure what grows: up to 10,000,000 events, 5 GB of unrelated WAL, 20 idle databases (by default unless --quick)")
	flags.IntVar(&o.rounds, "rounds", 0, "rounds of every backlog; 0: as many as each needs")
	flags.StringVar(&only, "only", "", "backlogs to measure, separated by commas")
	flags.StringVar(&contestants, "contestants", "", "contestants to measure, separated by commas")
	flags.StringVar(&o.out, "out", "bench/results", "directory for the results")
	flags.StringVar(&o.walferry, "walferry", "bin/walferry", "binary to measure")
	flags.StringVar(&o.cache, "cache", ".cache/bench", "directory for what is fetched")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	growthGiven := false
	flags.Visit(func(f *flag.Flag) { growthGiven = growthGiven || f.Name == "growth" })
	if !growthGiven {
		o.growth = !o.quick
	}
	o.only, o.contestants = list(only), list(contestants)
	return o, nil
}

// list returns the items of a text that separates them by commas.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
