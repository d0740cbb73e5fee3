package main

import (
	"fmt"
	"slices"
	"strings"
)

// spec is a backlog to write, and who drains it how often.
type spec struct {
	name        string
	fills       []fill
	filler      int // bytes to add to a payload
	rounds      int
	contestants []string
}

// The contestants.
const (
	recvlogical = "pg_recvlogical"
	plainReader = "plain"
	coalescer   = "coalescing"
	producer    = "produce"
	walferry    = "walferry"
	exactlyOnce = "exactly_once" // walferry with delivery: exactly_once
	debezium    = "debezium"
)

// The backlogs that targets name.
const (
	rowsBacklog      = "rows"
	messagesBacklog  = "messages"
	bigBacklog       = "big"
	unrelatedBacklog = "unrelated"
	emptyBacklog     = "empty"
)

// grown are the backlogs of the growth experiment, by their size.
var grown = []struct { //nolint:gochecknoglobals // a table that nobody changes
	name   string
	events int64
}{{"100k", 100_000}, {"1m", 1_000_000}, {"10m", 10_000_000}}

// plan returns what is to be measured.
func plan(o options) ([]spec, error) {
	all := []string{recvlogical, plainReader, coalescer, producer, walferry}
	specs := []spec{
		{rowsBacklog, []fill{{"rows", 500_000, 1}, {"rows", 5_000, 100}}, 0, 8, append(slices.Clone(all), exactlyOnce, debezium)},
		{messagesBacklog, []fill{{"messages", 500_000, 1}, {"messages", 5_000, 100}}, 0, 4, all},
		{"1kb", []fill{{"rows", 200_000, 1}}, 864, 4, all},
		{"8kb", []fill{{"rows", 40_000, 1}}, 8000, 4, all},
		{"mixed", []fill{{"mixed", 100_000, 10}}, 0, 4, all},
		{bigBacklog, []fill{{"rows", 1, 1_000_000}}, 0, 3, []string{recvlogical, coalescer, walferry}},
	}
	if o.quick {
		specs = []spec{{rowsBacklog, []fill{{"rows", 125_000, 1}, {"rows", 1_250, 100}}, 0, 3, append(slices.Clone(all), exactlyOnce, debezium)}}
	}
	if o.growth {
		specs = append(specs, spec{emptyBacklog, nil, 0, 4, []string{walferry}})
		for _, g := range grown {
			specs = append(specs, spec{g.name, []fill{{"rows", g.events / 10, 10}}, 0, 4, []string{walferry}})
		}
		specs[len(specs)-1].rounds = 2 // ten million events take their time
		// 5 GB in transactions of 100 rows of about 1 KB
		specs = append(specs, spec{unrelatedBacklog, []fill{{"business", 44_000, 100}}, 992, 3, []string{walferry}})
	}
	return choose(specs, o)
}

// choose leaves what the flags name.
func choose(specs []spec, o options) ([]spec, error) {
	known := []string{idleExperiment, latencyExperiment}
	var chosen []spec
	for _, s := range specs {
		known = append(known, s.name)
		if len(o.only) > 0 && !slices.Contains(o.only, s.name) {
			continue
		}
		if o.rounds > 0 {
			s.rounds = o.rounds
		}
		s.contestants = slices.DeleteFunc(slices.Clone(s.contestants), func(name string) bool {
			return len(o.contestants) > 0 && !slices.Contains(o.contestants, name) || name == debezium && !o.peers
		})
		if len(s.contestants) > 0 {
			chosen = append(chosen, s)
		}
	}
	for _, name := range o.only {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("--only %s: no such backlog in this run; there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, name := range o.contestants {
		if !slices.Contains([]string{recvlogical, plainReader, coalescer, producer, walferry, exactlyOnce, debezium}, name) {
			return nil, fmt.Errorf("--contestants %s: no such contestant", name)
		}
	}
	return chosen, nil
}

// rotated returns the names in the order of a round, each round beginning with another one.
func rotated(names []string, round int) []string {
	first := round % len(names)
	return slices.Concat(names[first:], names[:first])
}
