package main

import "slices"

// rate returns events per second, from the start or, of a contestant whose start does not count, from the first record.
func (d Drain) rate() float64 { return float64(d.Events) / (d.Seconds - d.FirstRecord) }

// cpuPerEvent returns microseconds of CPU time, user and system.
func (d Drain) cpuPerEvent() float64 { return (d.User + d.Sys) * 1e6 / float64(d.Events) }

// series is what several rounds have found.
type series struct{ median, least, most float64 }

// seriesOf returns zeros for no values.
func seriesOf(values []float64) series {
	if len(values) == 0 {
		return series{}
	}
	s := slices.Sorted(slices.Values(values))
	return series{median(s), s[0], s[len(s)-1]}
}

// off returns how far the outermost figure lies from the median, as a part of it.
func (s series) off() float64 {
	if s.median == 0 {
		return 0
	}
	return max(s.median-s.least, s.most-s.median) / s.median
}

// summary is what the runs of one contestant at one backlog come to.
type summary struct {
	backlog, contestant string
	runs                int
	events              int64
	rate, cpu, seconds  series // events/s, µs of CPU per event, s
	totalCPU            series // s
	peakRSS             int64  // of all runs
	sender              cpuTime
	broker              float64
}

// summarizeDrains returns a summary for each backlog and contestant, in the order in which they first ran.
func summarizeDrains(drains []Drain) []summary {
	var all []summary
	for _, d := range drains {
		if _, ok := find(all, d.Backlog, d.Contestant); !ok {
			all = append(all, summarizeOne(drains, d.Backlog, d.Contestant))
		}
	}
	return all
}

func summarizeOne(drains []Drain, backlog, contestant string) summary {
	s := summary{backlog: backlog, contestant: contestant}
	var rates, cpus, seconds, totals, users, systems, brokers []float64
	for _, d := range drains {
		if d.Backlog != backlog || d.Contestant != contestant {
			continue
		}
		s.runs++
		s.events = d.Events
		s.peakRSS = max(s.peakRSS, d.PeakRSS)
		if d.Events > 0 {
			rates, cpus = append(rates, d.rate()), append(cpus, d.cpuPerEvent())
		}
		seconds, totals = append(seconds, d.Seconds), append(totals, d.User+d.Sys)
		users, systems, brokers = append(users, d.WalsenderUser), append(systems, d.WalsenderSys), append(brokers, d.BrokerCPU)
	}
	s.rate, s.cpu, s.seconds, s.totalCPU = seriesOf(rates), seriesOf(cpus), seriesOf(seconds), seriesOf(totals)
	s.sender = cpuTime{seriesOf(users).median, seriesOf(systems).median}
	s.broker = seriesOf(brokers).median
	return s
}

func find(all []summary, backlog, contestant string) (summary, bool) {
	for _, s := range all {
		if s.backlog == backlog && s.contestant == contestant {
			return s, true
		}
	}
	return summary{}, false
}

// limit returns the events per second that the walsender lets through: what the coalescing reader reached in its best
// run, for it is bimodal. It is 0 where that was not measured.
func limit(all []summary, backlog string) float64 {
	s, _ := find(all, backlog, coalescer)
	return s.rate.most
}

// latencyKey is what the rounds of a latency have in common.
type latencyKey struct {
	latencyCase
	contestant string
}

func (l Latency) key() latencyKey {
	return latencyKey{latencyCase{rate: l.Rate, tls: l.TLS, draining: l.Draining}, l.Contestant}
}

// latencySummary is what the rounds of one contestant in one case come to.
type latencySummary struct {
	latencyKey
	rounds  int
	medians []float64 // ms: of the quantiles, in their order, and of the maximum
	cores   float64   // see Latency
}

// summarizeLatencies returns a summary for each case and contestant, in the order in which they first ran.
func summarizeLatencies(latencies []Latency) []latencySummary {
	var keys []latencyKey
	rounds := map[latencyKey][]Latency{}
	for _, l := range latencies {
		if len(rounds[l.key()]) == 0 {
			keys = append(keys, l.key())
		}
		rounds[l.key()] = append(rounds[l.key()], l)
	}
	var all []latencySummary
	for _, k := range keys {
		var figures [5][]float64
		var cores []float64
		for _, l := range rounds[k] {
			cores = append(cores, l.Cores)
			for i, ms := range l.figures() {
				figures[i] = append(figures[i], ms)
			}
		}
		s := latencySummary{latencyKey: k, rounds: len(rounds[k]), cores: seriesOf(cores).median}
		for _, ms := range figures {
			s.medians = append(s.medians, seriesOf(ms).median)
		}
		all = append(all, s)
	}
	return all
}

// figures returns the quantiles, in the order of quantiles(), and the maximum.
func (l Latency) figures() [5]float64 { return [...]float64{l.P50, l.P90, l.P99, l.P999, l.Max} }
