// Package sim is the deterministic simulation of the whole way from a slot to Kafka: the
// real bridge with its real Postgres and Kafka clients, between a scripted walsender and a
// fake Kafka, in one testing/synctest bubble whose time is fake. A seed chooses a load and
// a swarm of faults; a fifth of the seeds have a second process that waits for the slot, and
// takes over when the first one dies or is frozen. The promises of README are judged at every
// step.
//
// What a seed fixes is the load, the faults, and when in fake time or at which byte they
// strike. It does not fix the order in which goroutines run that are ready at the same time,
// nor the jitter of the two clients' and the bridge's own backoff: a seed that has failed
// fails again most of the times, not always. So the command that replays it does so more
// than once. A panic of the bridge ends the whole test; with GODEBUG=tracebacklabels=1 its
// traceback names the seed.
package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

var (
	seeds    = flag.Int("seeds", 200, "how many seeds a test runs")
	first    = flag.Uint64("first", 1, "the first of them; 0: one that depends on the time")
	oneSeed  = flag.Uint64("seed", 0, "run only this seed; with -v its log is shown")
	failures = flag.Int("failures", 3, "how many seeds may fail before a test ends")
)

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(200) // the heap is small and nearly all of it garbage soon; a higher goal costs more in page faults than it saves
	code := m.Run()
	if total.seeds > 0 {
		total.print()
	}
	os.Exit(code)
}

// total is what all seeds of this process came to.
var total summary

type summary struct {
	mu                                                         sync.Mutex
	seeds, violations, events, records, duplicates             int
	transactions, processes, streams, checkpoints, fakeSeconds int
	strikes                                                    map[*fault]int
}

func (s *summary) add(w *world) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.strikes == nil {
		s.strikes = map[*fault]int{}
	}
	s.seeds++
	s.violations += len(w.faults)
	s.events += len(w.history.byID)
	s.transactions += len(w.history.txns)
	s.records += w.history.records
	s.duplicates += w.history.duplicates
	s.checkpoints += w.history.written
	s.processes += len(w.processes)
	s.streams += len(w.streams)
	s.fakeSeconds += int(time.Since(bubbleStart) / time.Second)
	for f, n := range w.strikes {
		s.strikes[f] += n
	}
}

// bubbleStart is when fake time begins in every bubble.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (s *summary) print() {
	for _, f := range faults {
		fmt.Printf("sim: %8d  %s\n", s.strikes[f], f.name)
	}
	fmt.Printf("sim: %d transactions, %d events, %d records of which %d again, %d processes of which %d stopped in order, %d streams, %d hours\n",
		s.transactions, s.events, s.records, s.duplicates, s.processes, orderlyStops.Load(), s.streams, s.fakeSeconds/3600)
	fmt.Printf("sim: %d checkpoints, %d crashes of Postgres or of the bridge\n", s.checkpoints, s.strikes[&crash]+s.strikes[&sigkill])
	fmt.Printf("sim: %d seeds, %d violations\n", s.seeds, s.violations)
}

func TestSimulation(t *testing.T) {
	if simulateAll(t, *seeds, false) {
		for _, f := range faults {
			if *seeds >= 500 && total.strikes[f] == 0 {
				t.Errorf("in %d seeds no fault was: %s", *seeds, f.name)
			}
		}
	}
}

// TestZombies runs half as many seeds, which all have a standby, and processes that freeze and go on behind their successor.
func TestZombies(t *testing.T) {
	simulateAll(t, *seeds/2, true)
}

// simulateAll runs n seeds, or the one that was asked for, and reports whether every promise was kept.
func simulateAll(t *testing.T, n int, zombies bool) bool {
	if *oneSeed != 0 {
		simulate(t, *oneSeed, zombies)
		return false
	}
	if *first == 0 {
		*first = uint64(time.Now().UnixNano()) >> 10
	}
	var next, failed atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := next.Add(1) - 1; seed < int64(n) && failed.Load() < int64(*failures); seed = next.Add(1) - 1 {
				if !simulate(t, *first+uint64(seed), zombies) {
					failed.Add(1)
				}
			}
		})
	}
	workers.Wait()
	return failed.Load() == 0
}

// simulate runs one seed and reports whether every promise was kept.
func simulate(t *testing.T, seed uint64, zombies bool) bool {
	test := t.Name()
	return t.Run(fmt.Sprintf("seed-%d", seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			pprof.SetGoroutineLabels(pprof.WithLabels(t.Context(), pprof.Labels("seed", strconv.FormatUint(seed, 10))))
			log := zerolog.Nop()
			if *oneSeed != 0 && testing.Verbose() {
				log = zerolog.New(zerolog.ConsoleWriter{Out: t.Output(), NoColor: true, TimeFormat: "04:05.000000"}).With().Timestamp().Logger()
			}
			w := newWorld(t, seed, zombies, log)
			w.run()
			total.add(w)
			if n := len(w.history.txns); n < minTransactions {
				t.Errorf("seed %d has %d transactions, want %d at least", seed, n, minTransactions)
			}
			if len(w.faults) > 0 {
				t.Errorf("seed %d: %s\n%+v\n\t%s\nreplay: go test ./test/sim -run %s -seed %d -count 20", seed,
					strings.Join(w.faults, "\n"), w.profile, strings.Join(w.trace, "\n\t"), test, seed)
			} else if testing.Verbose() && *oneSeed != 0 {
				t.Logf("%+v\n\t%s", w.profile, strings.Join(w.trace, "\n\t"))
			}
		})
	})
}
