package integration

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// kafkaAdmin returns an admin client of the world's brokers.
func (w *world) kafkaAdmin() *kadm.Client {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.cfg.Kafka.Brokers...))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// topics returns the names of the world's topics.
func (w *world) topics() []string {
	w.t.Helper()
	all, err := w.kafkaAdmin().ListTopics(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(all.Names(), func(name string) bool { return !strings.HasPrefix(name, w.prefix+".") })
}

func TestTopicsThatMayNotBeCreated(t *testing.T) {
	w := newWorld(t, newest(t), func(c *config.Config) { c.Kafka.Topics.Create = false })
	want := w.order("k", "1")
	written := w.insertLSN()
	topic := w.prefix + ".order"
	for range 2 {
		w.mustStop(bridge.Fatal, topic, "kafka.topics.create is false", "kafka-topics.sh --bootstrap-server", "--create --topic "+topic)
		w.mustNotReach(written)
	}
	if names := w.topics(); len(names) != 0 {
		t.Fatalf("topics %q were created", names)
	}
	if _, err := w.kafkaAdmin().CreateTopic(t.Context(), 3, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	w.drainAll()
	w.mustPublish("order", want)
}

// Who deletes a topic deletes events that were delivered: the bridge must not cover it up,
// neither the session that has written to it nor one that follows.
func TestDeletedTopicIsNotCreatedAgain(t *testing.T) {
	for _, session := range []string{"same session", "next session"} {
		t.Run(session, func(t *testing.T) {
			w := newWorld(t, newest(t), nil)
			r := w.run("")
			r.awaitState(bridge.Streaming)
			w.order("k", "1")
			w.awaitCaughtUp()
			topic := w.prefix + ".order"
			if _, err := w.kafkaAdmin().DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			if session == "next session" {
				w.exec("SELECT pg_cancel_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", w.prefix)
				w.awaitCaughtUp()
			}
			want := w.order("k", "2")
			written := w.insertLSN()
			r.mustStop(bridge.Fatal, topic, "--create --topic", "find out who deleted it")
			w.mustNotReach(written)
			if names := w.topics(); len(names) != 0 {
				t.Errorf("topics %q were created again", names)
			}
			// Somebody has looked into it and starts it again.
			w.drainAll()
			w.mustPublish("order", want)
		})
	}
}

// A bridge outlives brokers that are away for as long as it takes, and says so.
func TestKafkaIsUnreachable(t *testing.T) {
	gate := newGate(t, shared.kafka[0])
	w := newWorld(t, newest(t), nil)
	w.cfg.Kafka.Brokers = []string{"127.0.0.1:1", gate.Addr().String()} // nobody listens on port 1
	want := w.order("k", "1")
	written := w.insertLSN()
	r := w.run("")
	r.awaitState(bridge.Waiting)
	s := r.bridge.Status()
	if s.Ready || s.Role != "none" || !strings.Contains(s.Reason, "look up topic") {
		t.Errorf("status %+v, want not ready because of Kafka", s)
	}
	first := s.LastErrorAt
	await(t, "another attempt", func() error {
		if s := r.bridge.Status(); !s.LastErrorAt.After(first) {
			return io.EOF
		}
		return nil
	})
	w.mustNotReach(written)
	gate.open.Store(true)
	r.awaitState(bridge.Streaming)
	w.awaitCaughtUp()
	if s := r.bridge.Status(); !s.Ready || s.Role != "leader" || s.Reason != "" {
		t.Errorf("status %+v, want ready", s)
	}
	r.drain()
	w.cfg.Kafka.Brokers = shared.kafka
	w.mustPublish("order", want)
}

// gate is an address that hangs up on everybody until it is open, and then leads to another.
type gate struct {
	net.Listener
	open atomic.Bool
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if g.open.Load() {
				go forward(ctx, conn, to)
			} else {
				_ = conn.Close()
			}
		}
	}()
	return g
}

// forward copies between a connection and an address until either ends.
func forward(ctx context.Context, conn net.Conn, to string) {
	defer conn.Close()
	other, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer other.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	go func() {
		_, _ = io.Copy(other, conn)
		_ = other.Close()
	}()
	_, _ = io.Copy(conn, other)
}
