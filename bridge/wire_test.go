package bridge

import (
	"bytes"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestKafkasWarningsAreSampled(t *testing.T) {
	var b bytes.Buffer
	l := newKafkaLogger(zerolog.New(&b).Level(zerolog.InfoLevel))
	for range 1000 {
		l.Log(kgo.LogLevelWarn, "unable to open connection to broker", "addr", "localhost:9092")
		l.Log(kgo.LogLevelDebug, "never shown")
	}
	if got := strings.Count(b.String(), "\n"); got < 1 || got > 5 {
		t.Errorf("%d lines for 1000 warnings, want 1 to 5", got)
	}
	if !strings.Contains(b.String(), `"addr":"localhost:9092"`) || strings.Contains(b.String(), "never shown") {
		t.Errorf("log:\n%s", &b)
	}
}
