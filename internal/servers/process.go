package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// shutdownLimit is how long a server may take to end when it is asked to.
const shutdownLimit = time.Minute

// shutdownContext returns the context for ending servers and cleaning up after them, which has to be done also when the
// contexts of the callers are over.
func shutdownContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), shutdownLimit) //nolint:forbidigo // see above
}

// A process is a server process that was started.
type process struct {
	cmd  *exec.Cmd     // its ProcessState is valid when done is closed
	done chan struct{} // closed when the process has ended
	err  error         // of its end; valid when done is closed
}

// startProcess starts the command under account (nil: that of this process) and has the kernel send it the signal
// orphaned when this process dies. It gets a process group of its own, so that Ctrl-C in a terminal reaches only the
// tests, which then stop it.
//
// The kernel takes the end of the thread that started a process for the death of its parent, and the Go runtime does
// end threads, for example when a goroutine locked to its thread returns. So the starting goroutine keeps its thread
// for itself until the server has ended.
func startProcess(cmd *exec.Cmd, account *syscall.Credential, orphaned syscall.Signal) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: account}
	setParentDeathSignal(cmd.SysProcAttr, orphaned)
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// runCommand runs the command under account until it ends and returns what it wrote. When ctx ends first, it is killed.
func runCommand(ctx context.Context, cmd *exec.Cmd, account *syscall.Credential) (output string, err error) {
	var buffer bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buffer, &buffer
	p, err := startProcess(cmd, account, syscall.SIGKILL)
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
		return buffer.String(), p.err
	case <-ctx.Done():
		return "", errors.Join(context.Cause(ctx), p.kill())
	}
}

// running tells whether the process was started and has not ended.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// awaitReady calls ready until it succeeds, the process ends or the time limit is over.
func (p *process) awaitReady(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	go func() {
		select {
		case <-p.done:
			abort(fmt.Errorf("it ended before it was ready (%v)", p.cmd.ProcessState))
		case <-ctx.Done():
		}
	}()
	return until(ctx, func() error { return ready(ctx) })
}

// stop sends the signal and waits until the process has ended.
func (p *process) stop(signal syscall.Signal) error {
	if err := p.signal(signal); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(shutdownLimit):
		return fmt.Errorf("still running %v after the signal %v", shutdownLimit, signal)
	}
}

// signal sends the signal unless the process has ended.
func (p *process) signal(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send process %d the signal %v: %w", p.cmd.Process.Pid, signal, err)
	}
	return nil
}

// kill ends the process and its children with SIGKILL and returns when all are gone.
//
// Killing the process group would not do: the children of Postgres lead groups of their own, and notice the death of
// the postmaster only when they next look. Until then a walsender still sends and a backend still commits. The process
// is stopped first so that it cannot start more children meanwhile.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	children, err := childrenOf(p.cmd.Process.Pid)
	for _, pid := range children {
		if killErr := syscall.Kill(pid, syscall.SIGKILL); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("kill process %d: %w", pid, killErr))
		}
	}
	if err := errors.Join(err, p.signal(syscall.SIGKILL)); err != nil {
		return err
	}
	<-p.done
	ctx, cancel := shutdownContext()
	defer cancel()
	return until(ctx, func() error {
		for _, pid := range children {
			if alive(pid) {
				return fmt.Errorf("process %d still lives after SIGKILL", pid)
			}
		}
		return nil
	})
}

// until calls check every few milliseconds until it returns nil. When ctx ends first, it returns check's last error.
func until(ctx context.Context, check func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
