package main

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg/draw"
)

// quantiles are those of the figure, as labels.
func quantiles() []string { return []string{"50", "90", "99", "99.9"} }

// latencyStride is how far apart two cases are on the x axis; quantiles are 1 apart.
const latencyStride = 4.3

// latencyLine is one contestant in one case: the medians of the rounds, by quantile.
type latencyLine struct {
	latencyCase
	contestant string
	quantiles  []float64 // ms
}

// latencyLines returns the lines in the order in which their cases were measured.
func latencyLines(latencies []Latency) []latencyLine {
	var lines []latencyLine
	for _, l := range summarizeLatencies(latencies) {
		line := latencyLine{latencyCase: l.latencyCase, contestant: l.contestant}
		for _, ms := range l.medians[:len(quantiles())] {
			line.quantiles = append(line.quantiles, max(ms, 0.001)) // µs are the resolution, and 0 has no logarithm
		}
		lines = append(lines, line)
	}
	return lines
}

// latencyPanel shows the quantiles of both contestants, case by case. It is nil without latencies.
func latencyPanel(r *Results, ink ink) (*plot.Plot, error) {
	lines := latencyLines(r.Latencies)
	if len(lines) == 0 {
		return nil, nil
	}
	p := newPanel("Latency: from COMMIT to the consumer", ink)
	// The legend is between the title and the data.
	p.Title.Padding, p.Legend.Padding = 14, 2
	p.Legend.Top, p.Legend.Left, p.Legend.YOffs, p.Legend.TextStyle = true, true, 10, restyle(p.Legend.TextStyle, 8.5, ink.text)
	var cases []latencyCase
	low, high := math.Inf(1), 0.0
	for _, line := range lines {
		if !slices.Contains(cases, line.latencyCase) {
			cases = append(cases, line.latencyCase)
		}
		low, high = min(low, slices.Min(line.quantiles)), max(high, slices.Max(line.quantiles))
	}
	p.X.Min = (3 - latencyStride) / 2
	p.X.Max = p.X.Min + float64(len(cases))*latencyStride
	p.X.Label.Text = "percentile (99: that many of 100 events arrive sooner)"
	p.X.Tick.Length = 0
	p.X.Tick.Label = restyle(p.X.Tick.Label, 7.5, ink.text)
	p.Y.Label.Text = "milliseconds, logarithmic"
	p.Y.Scale = plot.LogScale{}
	ticks := logTicks(low, high)
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	p.Y.Min, p.Y.Max = ticks[0].Value, ticks[len(ticks)-1].Value
	grid := plotter.NewGrid()
	grid.Vertical.Width, grid.Horizontal.Color = 0, ink.grid
	p.Add(grid)
	if err := addCases(p, cases, ink); err != nil {
		return nil, err
	}
	// walferry comes last, thinner, so that neither hides the other where they are equal.
	slices.SortStableFunc(lines, func(a, b latencyLine) int { return strings.Compare(a.contestant, b.contestant) })
	for _, line := range lines {
		if err := addLatencyLine(p, line, slices.Index(cases, line.latencyCase), ink); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// addCases adds what tells the cases apart: their names at the top, lines between them, and
// the labels of the quantiles.
func addCases(p *plot.Plot, cases []latencyCase, ink ink) error {
	var ticks plot.ConstantTicks
	names := plotter.XYLabels{}
	for i, c := range cases {
		left := float64(i) * latencyStride
		for q, label := range quantiles() {
			ticks = append(ticks, plot.Tick{Value: left + float64(q), Label: label})
		}
		names.XYs = append(names.XYs, plotter.XY{X: left + 1.5, Y: p.Y.Max})
		names.Labels = append(names.Labels, caseLabel(c))
		if i == 0 {
			continue
		}
		edge, err := plotter.NewLine(plotter.XYs{{X: left + p.X.Min, Y: p.Y.Min}, {X: left + p.X.Min, Y: p.Y.Max}})
		if err != nil {
			return err
		}
		edge.LineStyle.Width, edge.LineStyle.Color = 0.5, ink.faint
		p.Add(edge)
	}
	p.X.Tick.Marker = ticks
	labels, err := plotter.NewLabels(names)
	if err != nil {
		return err
	}
	for i := range labels.TextStyle {
		labels.TextStyle[i] = sans(8.5, ink.text)
		labels.TextStyle[i].XAlign, labels.TextStyle[i].YAlign = draw.XCenter, draw.YTop
	}
	labels.Offset.Y = -3
	p.Add(labels)
	return nil
}

// caseLabel names a case in at most two short lines.
func caseLabel(c latencyCase) string {
	s := thousands(float64(c.rate)) + "/s"
	switch {
	case c.tls:
		s += "\nTLS"
	case c.draining:
		s += "\nduring a drain"
	}
	return s
}

func addLatencyLine(p *plot.Plot, line latencyLine, at int, ink ink) error {
	var points plotter.XYs
	for q, ms := range line.quantiles {
		points = append(points, plotter.XY{X: float64(at)*latencyStride + float64(q), Y: ms})
	}
	l, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		return err
	}
	name := "application publishes by itself"
	l.LineStyle.Width, l.LineStyle.Color = 2.6, ink.others
	marks.GlyphStyle = draw.GlyphStyle{Color: ink.others, Radius: 3.2, Shape: draw.BoxGlyph{}}
	if line.contestant == walferry {
		name = walferry
		l.LineStyle.Width, l.LineStyle.Color = 1.2, ink.walferry
		marks.GlyphStyle = draw.GlyphStyle{Color: ink.walferry, Radius: 2.2, Shape: draw.CircleGlyph{}}
	}
	p.Add(l, marks)
	if at == 0 {
		p.Legend.Add(name, l, marks)
	}
	return nil
}

// logTicks are 1, 2 and 5 times powers of ten: from the last one that is not above low on, with
// room above high for the names of the cases.
func logTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for exponent := math.Floor(math.Log10(low)); ; exponent++ {
		for _, digit := range []float64{1, 2, 5} {
			v := digit * math.Pow(10, exponent)
			if v <= low {
				ticks = nil
			}
			ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 3, 64)})
			if v >= 3*high {
				return ticks
			}
		}
	}
}
