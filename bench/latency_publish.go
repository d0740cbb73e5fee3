package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/sink"
)

// publisher starts who publishes the events of the load. failed is called if that ends by
// itself; stop returns when it has ended in order.
func (s *latencySite) publisher(ctx context.Context, load *latencyLoad, topic string, failed context.CancelCauseFunc) (stop func() error, err error) {
	if load.block.contestant == direct {
		load.publish, stop, err = s.publishDirectly(ctx, topic)
		return stop, err
	}
	config := s.config
	if load.block.contestant == exactlyOnce {
		config = s.once
	}
	bridge, err := startBridge(ctx, s.bed, config)
	if err != nil {
		return nil, err
	}
	go func() {
		<-bridge.done
		failed(errors.New("walferry has ended")) // why, says stop
	}()
	return bridge.stop, nil
}

// publishDirectly returns a function that publishes an event as the application itself would,
// with a producer like walferry's: acks=all, idempotent, no linger, lz4, murmur2 of the key.
// It does not wait for the brokers.
func (s *latencySite) publishDirectly(ctx context.Context, topic string) (publish func(latencyEvent), stop func() error, err error) {
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.DefaultProduceTopic(topic),
		kgo.RequiredAcks(kgo.AllISRAcks()), // idempotent as well, by default
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		sink.LZ4(),
		kgo.ProducerLinger(0),
		kgo.MetadataMinAge(500 * time.Millisecond),
	}, s.kafka()...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("configure the producer: %w", err)
	}
	var first atomic.Pointer[error]
	promise := func(_ *kgo.Record, err error) {
		if err != nil {
			first.CompareAndSwap(nil, &err)
		}
	}
	publish = func(e latencyEvent) {
		client.Produce(ctx, &kgo.Record{
			Key: []byte(e.key), Value: []byte(e.payload),
			Headers: []kgo.RecordHeader{{Key: "id", Value: []byte(e.id)}},
		}, promise)
	}
	stop = func() error {
		defer client.Close()
		err := client.Flush(ctx)
		if cause := first.Load(); cause != nil {
			err = *cause
		}
		if err != nil {
			return fmt.Errorf("publish to topic %s: %w", topic, err)
		}
		return nil
	}
	return publish, stop, nil
}

// bridgeProcess is a running walferry.
type bridgeProcess struct {
	cmd     *exec.Cmd
	explain func(error) error // see logged
	done    chan struct{}     // closed when it has ended
	err     error             // of its end; valid when done is closed
}

// startBridge starts walferry run. When ctx ends it is told to stop as well.
func startBridge(ctx context.Context, bed *testbed, config string, args ...string) (_ *bridgeProcess, err error) {
	p := &bridgeProcess{done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, bed.walferry, append([]string{"run", "--config", config}, args...)...)
	if p.explain, err = logged(p.cmd, filepath.Join(bed.dir, filepath.Base(config)+".log")); err != nil {
		return nil, err
	}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = latencyPatience
	if err := p.cmd.Start(); err != nil {
		return nil, p.explain(fmt.Errorf("start walferry: %w", err))
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// stop stops it with SIGTERM and returns when it has ended, with an error unless that was in
// order. It is called once.
func (p *bridgeProcess) stop() error {
	select {
	case <-p.done: // too early
	default:
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop walferry: %w", err)
		}
	}
	<-p.done
	if err := p.explain(p.err); err != nil {
		return fmt.Errorf("walferry: %w", err)
	}
	return nil
}
