package bridge

import (
	"testing"

	"github.com/walferry/walferry/bridge/config"
)

func TestDatabasesShareEqually(t *testing.T) {
	for _, test := range []struct {
		databases           int
		buffered, maxRecord config.Size
		want                share
	}{
		{0, 8 << 20, 1020 << 10, share{512 << 10, 8 << 20, 16 << 10, 1 << 18, 100_000}}, // of a command, which has one
		{1, 8 << 20, 1020 << 10, share{512 << 10, 8 << 20, 16 << 10, 1 << 18, 100_000}},
		{1, 4 << 10, 1 << 10, share{512 << 10, 4 << 10, 16 << 10, 1 << 18, 100_000}},
		{2, 8 << 20, 1020 << 10, share{256 << 10, 4 << 20, 8 << 10, 1 << 17, 50_000}},
		{20, 8 << 20, 64 << 10, share{128 << 10, 8 << 20 / 20, 819, 13107, 5000}},
		{20, 8 << 20, 1020 << 10, share{128 << 10, 1021 << 10, 819, 13107, 5000}}, // room for the largest record
		{1000, 8 << 20, 1 << 10, share{128 << 10, 8388, 256, 4096, 1000}},
	} {
		o := Options{Databases: test.databases, Kafka: config.Kafka{MaxBuffered: test.buffered, MaxRecord: test.maxRecord}}
		if got := o.share(); got != test.want {
			t.Errorf("%d databases with max_buffered %v and max_record %v: %+v, want %+v", test.databases, test.buffered, test.maxRecord, got, test.want)
		}
	}
}
