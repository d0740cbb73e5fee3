package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// WatchdogCommand is the subcommand of the demo that calls Watch with its three arguments.
const WatchdogCommand = "watchdog"

// leash is the end of a pipe whose other end a watchdog reads. The kernel closes it when
// this process dies, however it dies.
type leash struct {
	pipe     io.Closer
	watchdog *exec.Cmd
}

// newLeash starts a watchdog that ends the server in dir, see Watch.
func newLeash(dir, binaries string, keep bool) (*leash, error) {
	self, err := self()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, WatchdogCommand, dir, binaries, map[bool]string{true: "keep", false: "remove"}[keep])
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	// A session of its own: what ends the demo's process group does not end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return &leash{pipe: pipe, watchdog: cmd}, nil
}

// release returns when the watchdog has done its work.
func (l *leash) release() error {
	if err := errors.Join(l.pipe.Close(), l.watchdog.Wait()); err != nil {
		return fmt.Errorf("the watchdog failed: %w", err)
	}
	return nil
}

// Watch reads the leash to its end, then stops the Postgres server whose data are in dir
// and removes dir, unless it is kept. It is the body of a process of its own.
func Watch(ctx context.Context, leash io.Reader, dir, binaries string, keep bool) error {
	_, _ = io.Copy(io.Discard, leash)
	if keep {
		return stopServer(ctx, dir, binaries)
	}
	// A demo that was killed leaves initdb or pg_ctl at work, which may write once more.
	retry := time.NewTicker(200 * time.Millisecond)
	defer retry.Stop()
	for attempt := 0; ; attempt++ {
		err := errors.Join(stopServer(ctx, dir, binaries), os.RemoveAll(dir))
		if err == nil || attempt == 50 {
			return err
		}
		<-retry.C
	}
}

// stopServer stops the server if there is one.
func stopServer(ctx context.Context, dir, binaries string) error {
	data := filepath.Join(dir, dataDir)
	if _, err := os.Stat(filepath.Join(data, "postmaster.pid")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	stop := exec.CommandContext(ctx, filepath.Join(binaries, "bin", "pg_ctl"), "stop", "-w", "-m", "fast", "-D", data)
	if output, err := stop.CombinedOutput(); err != nil {
		return fmt.Errorf("stop Postgres in %s: %w\n%s", data, err, output)
	}
	return nil
}
