package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
)

// progress shows how far a long run has come: a bar with rate and ETA on a terminal, a plain line now and then elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	bytes    bool // it counts bytes, of WAL
	bar      *progressbar.ProgressBar
	stage    string
	last     time.Time
}

// plainEvery is how often there is a plain line.
const plainEvery = 10 * time.Second

// newProgress shows on a file, which is standard error for all that print results.
func newProgress(out *os.File, bytes bool) *progress {
	return &progress{out: out, terminal: isatty.IsTerminal(out.Fd()), bytes: bytes}
}

// show takes how much of a stage is done; a total of 0 is not known. It is of one goroutine.
func (p *progress) show(stage string, done, total int64) {
	first := p.stage != stage
	if first {
		p.end()
		p.stage = stage
	}
	if p.terminal {
		p.showBar(stage, done, total)
		return
	}
	if now := time.Now(); first || now.Sub(p.last) >= plainEvery {
		p.last = now
		switch {
		case first && done < total:
			fmt.Fprintln(p.out, stage)
		default:
			fmt.Fprintf(p.out, "%s: %d of %d\n", stage, done, cmp.Or(total, done))
		}
	}
}

func (p *progress) showBar(stage string, done, total int64) {
	switch {
	case p.bar == nil:
		p.bar = progressbar.NewOptions64(cmp.Or(total, -1), progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(stage),
			progressbar.OptionShowBytes(p.bytes), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionFullWidth(),
			progressbar.OptionSetSpinnerChangeInterval(0)) // or a bar without a total draws itself for ever, also behind Exit
	case total > 0 && total != p.bar.GetMax64():
		p.bar.ChangeMax64(total)
	}
	_ = p.bar.Set64(done) // a terminal that is gone
}

// end leaves the bar as it is.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Exit() // as in showBar
		fmt.Fprintln(p.out)
		p.bar = nil
	}
}
