package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
)

// table is what is printed, for people.
type table struct {
	title string
	rows  [][]string // the first one has the names of the columns
}

// report prints the tables and verdicts and writes all to a directory: JSON, Markdown and a plot.
func (h *harness) report(dir string) error {
	r := h.results
	tables := tablesOf(r)
	if err := errors.Join(printTables(h.out, tables), printVerdicts(h.out, r)); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := r.Time.Format("2006-01-02") + "-" + r.Commit
	if r.Quick {
		name += "-quick"
	}
	base := filepath.Join(dir, name)
	content, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(base+".json", append(content, '\n'), 0o644); err != nil {
		return err
	}
	plot := name + ".svg"
	if err := drawPlot(r, filepath.Join(dir, plot)); err != nil {
		h.say("%v", err)
		plot = ""
	}
	if err := os.WriteFile(base+".md", []byte(markdown(r, tables, plot)), 0o644); err != nil {
		return err
	}
	h.say("written to %s.md, .json and .svg", base)
	return nil
}

func tablesOf(r *Results) []table {
	all := summarizeDrains(r.Drains)
	drains := table{title: "Drains", rows: [][]string{{
		"backlog", "contestant", "runs", "events/s", "min–max", "× limit", "× plain", "× recvlogical", "µs CPU/event",
		"peak RSS MB", "walsender user+sys s", "broker CPU s",
	}}}
	costs := table{title: "Without events", rows: [][]string{{"what", "WAL MB", "runs", "elapsed s", "CPU s", "peak RSS MB"}}}
	for _, b := range r.Backlogs {
		for _, s := range all {
			switch {
			case s.backlog != b.Name:
			case s.events > 0:
				drains.rows = append(drains.rows, drainRow(all, s))
			default:
				costs.rows = append(costs.rows, []string{
					s.backlog, fmt.Sprint(b.WALBytes / 1e6), strconv.Itoa(s.runs), fmt.Sprintf("%.1f", s.seconds.median),
					fmt.Sprintf("%.2f", s.totalCPU.median), megabytes(s.peakRSS),
				})
			}
		}
	}
	tables := []table{drains, costs, latencyTable(r.Latencies)}
	var filled []table
	for _, t := range tables {
		if len(t.rows) > 1 {
			filled = append(filled, t)
		}
	}
	return filled
}

func drainRow(all []summary, s summary) []string {
	plain, _ := find(all, s.backlog, plainReader)
	tool, _ := find(all, s.backlog, recvlogical)
	row := []string{
		s.backlog, s.contestant, strconv.Itoa(s.runs), thousands(s.rate.median), thousands(s.rate.least) + "–" + thousands(s.rate.most),
		factor(s.rate.median, limit(all, s.backlog)), factor(s.rate.median, plain.rate.median), factor(s.rate.median, tool.rate.median),
		fmt.Sprintf("%.2f", s.cpu.median), megabytes(s.peakRSS), "", fmt.Sprintf("%.2f", s.broker),
	}
	if s.sender.total() > 0 {
		row[10] = fmt.Sprintf("%.2f+%.2f", s.sender.user, s.sender.sys)
	}
	return row
}

// latencyTable has the medians over the rounds.
func latencyTable(latencies []Latency) table {
	t := table{title: "Latency from COMMIT to a consumer, ms (medians of the rounds)", rows: [][]string{{
		"events/s", "", "contestant", "rounds", "p50", "p90", "p99", "p99.9", "max", "cores busy",
	}}}
	for _, l := range summarizeLatencies(latencies) {
		row := []string{strconv.Itoa(l.rate), conditions(l.latencyCase), l.contestant, strconv.Itoa(l.rounds)}
		for _, ms := range l.medians {
			row = append(row, fmt.Sprintf("%.2f", ms))
		}
		t.rows = append(t.rows, append(row, fmt.Sprintf("%.2f", l.cores)))
	}
	return t
}

func conditions(c latencyCase) string {
	switch {
	case c.tls:
		return "TLS"
	case c.draining:
		return "while another database is drained"
	}
	return ""
}

func printTables(w io.Writer, tables []table) error {
	for _, t := range tables {
		out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		text := "\n" + t.title + "\n\n"
		for _, row := range t.rows {
			text += strings.Join(row, "\t") + "\n"
		}
		_, err := io.WriteString(out, text)
		if err := errors.Join(err, out.Flush()); err != nil {
			return err
		}
	}
	return nil
}

func printVerdicts(w io.Writer, r *Results) error {
	text := "\n"
	for _, v := range r.Verdicts {
		text += fmt.Sprintf("%-8s  %s: %s\n", v.Outcome, v.Target, v.Figure)
	}
	for _, n := range r.Notes {
		text += "NOTE      " + n + "\n"
	}
	for _, f := range r.Failures {
		text += "FAILED    " + f + "\n"
	}
	_, err := io.WriteString(w, text+"\n")
	return err
}

// markdown is the report with everything in it but the single runs, which are in the JSON.
func markdown(r *Results, tables []table, plot string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmark of %s, commit %s\n\n", r.Time.Format("2006-01-02"), r.Commit)
	if r.Quick {
		b.WriteString("A quick run: small backlog, few rounds. No target is judged by it.\n\n")
	}
	b.WriteString(describeMachine(r.Machine) + ".\n\n" + method + "\n")
	for _, t := range tables {
		fmt.Fprintf(&b, "\n## %s\n\n", t.title)
		for i, row := range t.rows {
			b.WriteString("| " + strings.Join(row, " | ") + " |\n")
			if i == 0 {
				b.WriteString(strings.Repeat("|---", len(row)) + "|\n")
			}
		}
	}
	b.WriteString("\n## Targets\n\n| | target | measured |\n|---|---|---|\n")
	for _, v := range r.Verdicts {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", v.Outcome, v.Target, v.Figure)
	}
	for _, list := range []struct {
		title string
		items []string
	}{{"Notes", r.Notes}, {"Failed", r.Failures}} {
		if len(list.items) > 0 {
			fmt.Fprintf(&b, "\n## %s\n\n- %s\n", list.title, strings.Join(list.items, "\n- "))
		}
	}
	if plot != "" {
		fmt.Fprintf(&b, "\n![throughput and latency](%s)\n", plot)
	}
	return b.String()
}

// method says how the numbers came about.
const method = "Postgres, Kafka and the contestant share the machine. Each contestant is a process of its own, timed from its start to its exit; " +
	"its CPU is user and system time, its peak RSS the kernel's VmHWM. All drain the same WAL, each from a copy of one slot, in rounds that are interleaved. " +
	"The limit is the best run of the coalescing reader, which reads as walferry does, to nowhere. `produce` only publishes. " +
	"Debezium's rate counts from the first record in the topic, without the start of its JVM; its CPU and memory are of the whole run. " +
	"Topics that do not hold exactly the events of the backlog fail the run."

// thousands prints a rate or a count in groups of three digits.
func thousands(n float64) string {
	digits := strconv.FormatInt(int64(n+0.5), 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }

func factor(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}
