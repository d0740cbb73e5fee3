package main

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
)

// bridgeConfig is what somebody would write into walferry.yaml.
const bridgeConfig = `
databases:
  - name: demo
    dsn: ${DSN}
    slot: ${SLOT}
    publication: ${PUBLICATION}
    outbox:
      - table: ${SCHEMA}.outbox
        topic: ${TOPICS}.{aggregatetype}
        type_header: type
    messages:
      prefix: ${PREFIX}
      topic: ${TOPICS}.{aggregatetype}
      type_header: type
kafka:
  brokers: ${BROKERS}
checkpoint:
  topic: ${TOPICS}-checkpoints
`

func (p *place) config() (*config.Config, error) {
	values := map[string]string{
		"DSN": p.dsn, "SLOT": p.slot, "PUBLICATION": p.publication, "SCHEMA": p.schema,
		"TOPICS": p.topics, "PREFIX": p.prefix, "BROKERS": strings.Join(p.brokers, ","),
	}
	return config.Parse("the demo's configuration", []byte(bridgeConfig), func(name string) (string, bool) {
		value, ok := values[name]
		return value, ok
	})
}

func bridgeOptions(cfg *config.Config, scr *screen) bridge.Options {
	log := zerolog.New(zerolog.ConsoleWriter{Out: scr, NoColor: !scr.live, PartsExclude: []string{zerolog.TimestampFieldName}})
	return bridge.Options{
		Database: cfg.Databases[0], Kafka: cfg.Kafka, Checkpoint: cfg.Checkpoint, ExactlyOnce: cfg.ExactlyOnce(),
		Log:     log.Level(zerolog.WarnLevel),
		Metrics: bridge.NewMetrics(prometheus.NewRegistry(), version, commit),
	}
}
