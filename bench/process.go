package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sampling is how often a running process is looked at. A look takes some 20 µs.
const sampling = 10 * time.Millisecond

// usage is what a process took.
type usage struct {
	elapsed time.Duration // from its start to its exit
	cpu     cpuTime
	peakRSS int64 // bytes
}

// measure runs the command to its end. Until then, done, if not nil, may decide that it has done its work; the process
// then gets SIGTERM, its exit code counts for nothing, and elapsed ends when done returned.
func measure(ctx context.Context, cmd *exec.Cmd, done func(context.Context) error) (usage, error) {
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return usage{}, err
	}
	exited := make(chan exit, 1)
	go func() {
		err := cmd.Wait()
		exited <- exit{time.Now(), err}
	}()
	finished := make(chan exit, 1)
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	if done != nil {
		go func() {
			err := done(watching)
			finished <- exit{time.Now(), err}
		}()
	}
	peak := watchPeak(cmd.Process.Pid)
	defer peak.close()
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	var early *exit
	for {
		select {
		case <-tick.C:
			peak.look()
		case end := <-finished:
			early = &end
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
			kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
			defer kill.Stop()
		case end := <-exited:
			return judgeExit(ctx, cmd, start, end, early, done != nil, peak.bytes)
		}
	}
}

// exit is when something ended, and how.
type exit struct {
	at  time.Time
	err error
}

// judgeExit says what a process that has ended took.
func judgeExit(ctx context.Context, cmd *exec.Cmd, start time.Time, end exit, early *exit, asked bool, peak int64) (usage, error) {
	state := cmd.ProcessState
	u := usage{end.at.Sub(start), cpuTime{state.UserTime().Seconds(), state.SystemTime().Seconds()}, peak}
	switch {
	case ctx.Err() != nil:
		return u, context.Cause(ctx)
	case early != nil:
		u.elapsed = early.at.Sub(start)
		return u, early.err
	case asked:
		return u, fmt.Errorf("it ended before its work was done: %v", state)
	}
	return u, end.err
}

// peakWatch follows the largest resident set of a process. Its VmHWM is that of the program alone; the maximum of the
// rusage is not, for it begins with what the process that started it had.
type peakWatch struct {
	status *os.File // nil: the process had ended before it was opened
	buffer [8 << 10]byte
	bytes  int64
}

func watchPeak(pid int) *peakWatch {
	w := &peakWatch{}
	if file, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "status")); err == nil {
		w.status = file
	}
	w.look()
	return w
}

func (w *peakWatch) look() {
	if w.status == nil {
		return
	}
	n, _ := w.status.ReadAt(w.buffer[:], 0) // of a process that has ended it reads nothing
	if size, ok := statusBytes(w.buffer[:n], "VmHWM"); ok {
		w.bytes = max(w.bytes, size)
	}
}

func (w *peakWatch) close() {
	if w.status != nil {
		_ = w.status.Close() // only read
	}
}

// logged sends what the command writes to a file, and returns a function that adds the file's end to an error.
func logged(cmd *exec.Cmd, path string) (explain func(error) error, err error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = file, file
	return func(failure error) error {
		if failure == nil {
			return errors.Join(file.Close(), os.Remove(path))
		}
		content, err := os.ReadFile(path)
		const most = 2 << 10
		content = content[max(0, len(content)-most):]
		return errors.Join(fmt.Errorf("%w; it wrote: %s", failure, strings.TrimSpace(string(content))), err, file.Close())
	}, nil
}
