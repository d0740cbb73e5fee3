package integration

import (
	"context"
	"sync"
	"testing"

	"github.com/walferry/walferry/internal/servers"
)

// breakableKafka returns a broker that tests may break, one test at a time, as long as
// they leave it running.
func breakableKafka(t *testing.T) *servers.Broker {
	t.Helper()
	if shared.breakable == nil {
		broker, err := servers.Kafka(context.Background(), servers.KafkaOptions{})
		if err != nil {
			t.Fatal(err)
		}
		shared.breakable = broker
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of Kafka:\n%s", shared.breakable.Log())
		}
	})
	return shared.breakable
}

// outage kills the broker. It is started again by the returned function, or at the end of
// the test.
func outage(t *testing.T, broker *servers.Broker) (end func()) {
	t.Helper()
	if err := broker.Kill(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		if err := broker.Start(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}
