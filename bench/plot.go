package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The figure's size is that of a README, 900 CSS pixels of 0.75 points wide.
const (
	figureWidth   = 675 * vg.Length(1)
	figureHeight  = 315 * vg.Length(1)
	captionHeight = 30 * vg.Length(1)
)

// ink is what the figure is drawn with.
type ink struct{ text, faint, grid, walferry, others color.Color }

func newInk() ink {
	return ink{
		text: color.Gray{0x22}, faint: color.Gray{0x66}, grid: color.Gray{0xdd},
		walferry: color.RGBA{0x1f, 0x5f, 0xae, 0xff}, others: color.RGBA{0xc8, 0x7a, 0x2c, 0xff},
	}
}

// drawPlot draws throughput and latency, as far as they were measured, into a file: .svg or
// .png. It fails if there is neither.
func drawPlot(r *Results, path string) error {
	var panels []*plot.Plot
	for _, make := range []func(*Results, ink) (*plot.Plot, error){throughputPanel, latencyPanel} {
		panel, err := make(r, newInk())
		if err != nil {
			return fmt.Errorf("plot: %w", err)
		}
		if panel != nil {
			panels = append(panels, panel)
		}
	}
	if len(panels) == 0 {
		return errors.New("plot: neither throughput nor latency was measured")
	}
	var file bytes.Buffer
	switch filepath.Ext(path) {
	case ".svg":
		c := vgsvg.New(figureWidth, figureHeight)
		drawFigure(draw.New(c), panels, caption(r), newInk())
		if _, err := c.WriteTo(&file); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
		// Where there is no Liberation Sans, fonts of the same widths will do.
		svg := bytes.ReplaceAll(file.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arimo,Helvetica,Arial,sans-serif;"))
		return os.WriteFile(path, svg, 0o644)
	case ".png":
		c := vgimg.NewWith(vgimg.UseWH(figureWidth, figureHeight), vgimg.UseDPI(192))
		drawFigure(draw.New(c), panels, caption(r), newInk())
		if _, err := (vgimg.PngCanvas{Canvas: c}).WriteTo(&file); err != nil {
			return fmt.Errorf("plot: %w", err)
		}
		return os.WriteFile(path, file.Bytes(), 0o644)
	}
	return fmt.Errorf("plot: %s ends neither in .svg nor in .png", path)
}

// drawFigure draws the panels side by side, and the caption below.
func drawFigure(c draw.Canvas, panels []*plot.Plot, caption string, ink ink) {
	c.SetColor(color.White)
	c.Fill(c.Rectangle.Path())
	const margin = 8
	inner := draw.Crop(c, margin, -margin, margin+captionHeight, -margin)
	x, width := inner.Min.X, inner.Max.X-inner.Min.X
	for i, panel := range panels {
		share := vg.Length(1)
		if len(panels) == 2 {
			share = []vg.Length{0.4, 0.6}[i] // the latencies need more room
		}
		part := inner
		part.Min.X, part.Max.X = x, x+share*width
		if i > 0 {
			part.Min.X += 2 * margin
		}
		panel.Draw(part)
		x += share * width
	}
	style := sans(8, ink.faint)
	style.YAlign = draw.YTop
	c.FillText(style, vg.Point{X: margin, Y: captionHeight}, caption)
}

// sans is the style of a text of that many points.
func sans(size vg.Length, c color.Color) text.Style {
	return text.Style{
		Color: c, Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size),
		Handler: plot.DefaultTextHandler,
	}
}

// newPanel returns a panel without data.
func newPanel(title string, ink ink) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.Title.Padding = title, 10
	p.Title.TextStyle = restyle(p.Title.TextStyle, 11, ink.text)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle = restyle(axis.Label.TextStyle, 8.5, ink.text)
		axis.Label.Padding = 4
		axis.Tick.Label = restyle(axis.Tick.Label, 8.5, ink.text)
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = ink.faint, ink.faint
		axis.Padding = 0
		axis.Tick.Length = 3
	}
	return p
}

// restyle changes size and color of a style, and keeps its alignment.
func restyle(s text.Style, size vg.Length, c color.Color) text.Style {
	n := sans(size, c)
	n.XAlign, n.YAlign, n.Rotation = s.XAlign, s.YAlign, s.Rotation
	return n
}

// throughputPanel shows how fast each contestant drained the backlog "rows": the median of
// the rounds as a bar, from the slowest to the fastest as a line. It is nil without drains.
func throughputPanel(r *Results, ink ink) (*plot.Plot, error) {
	drained := drainedBy(r.Drains, rowsBacklog)
	if len(drained) == 0 {
		return nil, nil
	}
	p := newPanel("Throughput: draining a backlog", ink)
	for _, b := range r.Backlogs {
		if b.Name == rowsBacklog {
			p.Title.Text = fmt.Sprintf("Throughput: a backlog of %s rows", thousands(float64(b.Events)))
		}
	}
	slices.Reverse(drained) // the fastest on top
	var names []string
	var most float64
	for i, s := range drained {
		names = append(names, plainName(s.contestant))
		most = max(most, s.rate.most)
		if err := addBar(p, i, s, ink); err != nil {
			return nil, err
		}
	}
	p.NominalY(names...)
	p.Y.LineStyle.Width = 0
	p.Y.Min, p.Y.Max = -0.6, float64(len(drained))-0.4
	p.X.Min, p.X.Max = 0, most*1.28 // room for the number behind the bar
	p.X.Label.Text = "events/s, median of the rounds; line: slowest to fastest"
	p.X.Tick.Marker = plot.ConstantTicks(linearTicks(p.X.Max))
	return p, nil
}

// addBar adds the bar of a contestant, its whisker and its number.
func addBar(p *plot.Plot, at int, s summary, ink ink) error {
	bar, err := plotter.NewBarChart(plotter.Values{s.rate.median}, 14)
	if err != nil {
		return err
	}
	bar.Horizontal, bar.XMin, bar.LineStyle.Width = true, float64(at), 0
	bar.Color = color.Gray{0xb4}
	if s.contestant == walferry {
		bar.Color = ink.walferry
	}
	y := float64(at)
	whisker, err := plotter.NewLine(plotter.XYs{{X: s.rate.least, Y: y}, {X: s.rate.most, Y: y}})
	if err != nil {
		return err
	}
	whisker.LineStyle.Width, whisker.LineStyle.Color = 1.2, ink.text
	number, err := plotter.NewLabels(plotter.XYLabels{
		XYs: plotter.XYs{{X: s.rate.most, Y: y}}, Labels: []string{thousands(s.rate.median)},
	})
	if err != nil {
		return err
	}
	number.TextStyle[0] = sans(8.5, ink.text)
	number.TextStyle[0].YAlign = draw.YCenter
	number.Offset.X = 4
	p.Add(bar, whisker, number)
	return nil
}

// drainedBy returns the summaries of those that drained the backlog, the fastest first.
func drainedBy(drains []Drain, backlog string) []summary {
	known := contestants()
	all := slices.DeleteFunc(summarizeDrains(drains), func(s summary) bool {
		return s.backlog != backlog || !known[s.contestant].reads // who does not read drains nothing
	})
	slices.SortStableFunc(all, func(a, b summary) int { return cmp.Compare(b.rate.median, a.rate.median) })
	return all
}

// plainName is a contestant's name for somebody who has not read the report.
func plainName(contestant string) string {
	names := map[string]string{plainReader: "plain reader", coalescer: "coalescing reader", debezium: "Debezium Server"}
	name := cmp.Or(names[contestant], contestant)
	if !contestants()[contestant].publishes {
		name += "*"
	}
	return name
}

// median returns that of sorted values, at least one.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// linearTicks are some round numbers from 0 to the maximum.
func linearTicks(maximum float64) []plot.Tick {
	step := 1.0
	for i := 0; maximum/step > 5; i++ {
		step *= []float64{2, 2.5, 2}[i%3] // 1, 2, 5, 10, …
	}
	var ticks []plot.Tick
	for n := 0; float64(n)*step <= maximum; n++ {
		v := float64(n) * step
		ticks = append(ticks, plot.Tick{Value: v, Label: thousands(v)})
	}
	return ticks
}

// caption says what the numbers were measured on, and when.
func caption(r *Results) string {
	m := r.Machine
	text := fmt.Sprintf("%s, %d cores, %.0f GB, Linux %s; Postgres %s, Kafka %s, %s. Servers, contestants and consumer share the machine.\n",
		m.CPU, m.Cores, float64(m.Memory)/1e9, m.Kernel, m.Postgres, m.Kafka, m.Go)
	if len(drainedBy(r.Drains, rowsBacklog)) > 0 {
		text += "* reads to nowhere; the others publish to Kafka. "
	}
	if r.Quick {
		text += "A quick run, too short to rely on. "
	}
	return text + fmt.Sprintf("walferry %s, %s.", r.Commit, r.Time.Format("2006-01-02"))
}
