package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/mattn/go-isatty"
)

// screen writes lines and, on a terminal, keeps one line below them that changes.
type screen struct {
	out, err io.Writer
	live     bool // out is a terminal

	mu     sync.Mutex // guards the writers and the following
	status string     // what stands on the last line now
}

func newScreen() *screen {
	return &screen{out: os.Stdout, err: os.Stderr, live: isatty.IsTerminal(os.Stdout.Fd())}
}

// say writes a line.
func (s *screen) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.out, format+"\n", args...)
	s.draw()
}

// Write implements io.Writer: it writes log lines to standard error.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	defer s.draw()
	return s.err.Write(p)
}

func (s *screen) clear() {
	if s.status != "" {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
}

func (s *screen) draw() { fmt.Fprint(s.out, s.status) }

func (s *screen) setStatus(status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.status = status
	s.draw()
}

// watch shows what status returns, until ctx is done: many times a second on a terminal,
// else as a line every few seconds.
func (s *screen) watch(ctx context.Context, status func() string) {
	every := 3 * time.Second
	if s.live {
		every = 100 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.setStatus("")
			return
		case <-tick.C:
			if s.live {
				s.setStatus(status())
			} else {
				s.say("%s", status())
			}
		}
	}
}
