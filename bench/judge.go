package main

import (
	"fmt"
	"math"
	"slices"
)

// The targets.
const (
	targetLimit       = 0.85    // of the walsender-bound limit
	targetPlain       = 1.7     // × plain reader
	targetRecvlogical = 1.5     // × pg_recvlogical
	targetPeer        = 5.0     // × Debezium
	targetSpread      = 0.12    // of the median
	targetRuns        = 8       // that the spread is of, at least
	targetCPU         = 3.0     // µs per event
	targetRSS         = 64e6    // bytes
	targetGrowth      = 0.10    // of the cost per event
	targetUnrelated   = 1.0     // s of CPU for 5 GB
	validLimit        = 1.9     // × pg_recvlogical: less is no limit, the reader has fallen out of the fast regime
	fiveGB            = 5_000e6 // bytes of WAL
	targetP50         = 1.1     // × an application that publishes directly
	targetP99         = 1.5     // × the same
	targetOnce        = 0.8     // of at-least-once
	targetOnceP50     = 150.0   // ms at 1,000 events/s
)

// Outcomes of a verdict.
const (
	passed   = "PASS"
	missed   = "MISSED"
	unjudged = "UNJUDGED" // not measured, or not enough of it
)

// judge holds the results against the targets. A quick run, seconds on a broker whose JVM is still compiling, shows figures
// and decides nothing.
func judge(r *Results) []Verdict {
	all := summarizeDrains(r.Drains)
	rows, _ := find(all, rowsBacklog, walferry)
	best := limit(all, rowsBacklog)
	reader, _ := find(all, rowsBacklog, plainReader)
	tool, _ := find(all, rowsBacklog, recvlogical)
	peer, _ := find(all, rowsBacklog, debezium)
	messages, _ := find(all, messagesBacklog, walferry)
	once, _ := find(all, rowsBacklog, exactlyOnce)
	verdicts := []Verdict{
		atLeast("the walsender-bound limit is one: best coalescing run, × pg_recvlogical", best, tool.rate.median, validLimit),
		againstLimit(rows.rate.median, best, tool.rate.median),
		atLeast("drain, × plain reader", rows.rate.median, reader.rate.median, targetPlain),
		atLeast("drain, × pg_recvlogical", rows.rate.median, tool.rate.median, targetRecvlogical),
		judgeSpread(rows),
		atLeast("drain, × Debezium Server", rows.rate.median, peer.rate.median, targetPeer),
		atLeast("drain of logical messages, × rows", messages.rate.median, rows.rate.median, 1),
		atLeast("drain with exactly-once, × at-least-once", once.rate.median, rows.rate.median, targetOnce),
		atMost("CPU per event, µs", rows.cpu.median, targetCPU, rows.runs > 0),
		judgeMemory(all),
		judgeGrowth(all),
		judgeUnrelated(all, r.Backlogs),
	}
	latencies := summarizeLatencies(r.Latencies)
	for _, rate := range []int{1000, 3000} { // the rates that have targets
		verdicts = append(verdicts,
			judgeLatency(latencies, rate, "50", targetP50), judgeLatency(latencies, rate, "99", targetP99))
	}
	verdicts = append(verdicts, judgeOnce(latencies))
	if r.Quick {
		for i := range verdicts {
			verdicts[i].Outcome = unjudged
		}
	}
	return verdicts
}

// judgeOnce looks at how soon an event is visible with exactly-once.
func judgeOnce(all []latencySummary) Verdict {
	p50 := medianOf(all, latencyKey{latencyCase{rate: 1000}, exactlyOnce}, "50")
	return atMost("p50 from commit to consumer at 1,000 events/s with exactly-once, ms", p50, targetOnceP50, p50 > 0)
}

// medianOf returns the median of a quantile over the rounds, in ms, 0 if it was not measured.
func medianOf(all []latencySummary, key latencyKey, quantile string) float64 {
	for _, l := range all {
		if l.latencyKey == key {
			return l.medians[slices.Index(quantiles(), quantile)]
		}
	}
	return 0
}

// judgeLatency compares a quantile with that of an application that publishes directly.
func judgeLatency(all []latencySummary, rate int, quantile string, want float64) Verdict {
	v := Verdict{
		Target:  fmt.Sprintf("p%s from commit to consumer at %s events/s, × publishing directly ≤ %.2f", quantile, thousands(float64(rate)), want),
		Outcome: unjudged, Figure: "not measured",
	}
	of := func(contestant string) float64 {
		return medianOf(all, latencyKey{latencyCase{rate: rate}, contestant}, quantile)
	}
	bridged, published := of(walferry), of(direct)
	if bridged == 0 || published == 0 {
		return v
	}
	return v.decide(bridged <= want*published, fmt.Sprintf("%.2f (%.2f of %.2f ms)", bridged/published, bridged, published))
}

// atLeast judges the ratio a/b.
func atLeast(target string, a, b, want float64) Verdict {
	v := Verdict{Target: fmt.Sprintf("%s ≥ %.2f", target, want), Outcome: unjudged, Figure: "not measured"}
	if a == 0 || b == 0 {
		return v
	}
	return v.decide(a/b >= want, fmt.Sprintf("%.2f (%s of %s events/s)", a/b, thousands(a), thousands(b)))
}

// againstLimit judges the drain against a limit that must be one.
func againstLimit(rate, best, tool float64) Verdict {
	v := atLeast("drain, × walsender-bound limit", rate, best, targetLimit)
	if v.Outcome != unjudged && (tool == 0 || best < validLimit*tool) {
		v.Outcome = unjudged
		v.Figure += ", but the limit is not valid"
	}
	return v
}

func atMost(target string, got, want float64, measured bool) Verdict {
	v := Verdict{Target: fmt.Sprintf("%s ≤ %.2f", target, want), Outcome: unjudged, Figure: "not measured"}
	if !measured {
		return v
	}
	return v.decide(got <= want, fmt.Sprintf("%.2f", got))
}

func (v Verdict) decide(ok bool, figure string) Verdict {
	v.Outcome, v.Figure = missed, figure
	if ok {
		v.Outcome = passed
	}
	return v
}

func judgeSpread(rows summary) Verdict {
	v := Verdict{Target: fmt.Sprintf("all of at least %d drains within ±%.0f %% of their median", targetRuns, targetSpread*100), Outcome: unjudged, Figure: "not measured"}
	if rows.runs == 0 {
		return v
	}
	figure := fmt.Sprintf("±%.1f %% in %d runs", rows.rate.off()*100, rows.runs)
	if rows.runs < targetRuns {
		v.Figure = figure
		return v
	}
	return v.decide(rows.rate.off() <= targetSpread, figure)
}

// judgeMemory looks at every drain of walferry; the largest transaction must be among them.
func judgeMemory(all []summary) Verdict {
	v := Verdict{Target: fmt.Sprintf("peak RSS in every drain, a transaction of 1,000,000 rows included ≤ %d MB", int(targetRSS/1e6)), Outcome: unjudged, Figure: "not measured"}
	var most summary
	for _, s := range all {
		if s.contestant == walferry && s.backlog != idleExperiment && s.peakRSS > most.peakRSS {
			most = s
		}
	}
	if most.runs == 0 {
		return v
	}
	figure := fmt.Sprintf("%.1f MB, in backlog %s", float64(most.peakRSS)/1e6, most.backlog)
	if _, ok := find(all, bigBacklog, walferry); !ok && float64(most.peakRSS) <= targetRSS {
		v.Figure = figure + "; the large transaction was not measured"
		return v
	}
	return v.decide(float64(most.peakRSS) <= targetRSS, figure)
}

// judgeGrowth compares what an event costs in backlogs of all sizes. What a start costs, measured with an empty one, is
// taken off first: it is the same for all and would make the small ones dear.
func judgeGrowth(all []summary) Verdict {
	v := Verdict{
		Target:  fmt.Sprintf("CPU per event from 100,000 to 10,000,000 events, without the start, within %.0f %%", targetGrowth*100),
		Outcome: unjudged, Figure: "not measured",
	}
	empty, ok := find(all, emptyBacklog, walferry)
	if !ok {
		return v
	}
	least, most := math.Inf(1), 0.0
	figure := ""
	for _, g := range grown {
		s, ok := find(all, g.name, walferry)
		if !ok {
			return v
		}
		cpu := (s.totalCPU.median - empty.totalCPU.median) * 1e6 / float64(s.events)
		elapsed := (s.seconds.median - empty.seconds.median) * 1e6 / float64(s.events)
		figure += fmt.Sprintf("%s: %.2f µs CPU, %.2f µs elapsed; ", g.name, cpu, elapsed)
		least, most = min(least, cpu), max(most, cpu)
	}
	return v.decide(most <= least*(1+targetGrowth), fmt.Sprintf("%sthe most is %.1f %% above the least", figure, (most/least-1)*100))
}

// judgeUnrelated scales to 5 GB, which the WAL has only about.
func judgeUnrelated(all []summary, backlogs []Backlog) Verdict {
	s, ok := find(all, unrelatedBacklog, walferry)
	scaled := 0.0
	for _, b := range backlogs {
		if ok && b.Name == unrelatedBacklog {
			scaled = s.totalCPU.median * fiveGB / float64(b.WALBytes)
		}
	}
	return atMost("CPU of the bridge for 5 GB of unrelated WAL, s", scaled, targetUnrelated, ok)
}
