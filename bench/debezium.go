package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// debeziumVersion is that of the peer, Debezium Server.
const debeziumVersion = "3.6.0.Final"

// debeziumServer is the peer, and the Java to run it with.
type debeziumServer struct{ java, home string }

// findDebezium fetches Debezium Server into cache, once: about 780 MB. Java 21 or newer runs it, that of JAVA_HOME.
func findDebezium(ctx context.Context, cache string, say func(string, ...any)) (*debeziumServer, error) {
	java, err := java21(ctx)
	if err != nil {
		return nil, err
	}
	if cache, err = filepath.Abs(cache); err != nil { // it runs in a directory of its own
		return nil, err
	}
	home := filepath.Join(cache, "debezium-server-"+debeziumVersion)
	if _, err := os.Stat(home); err == nil {
		return &debeziumServer{java, home}, nil
	}
	say("fetching Debezium Server %s with Maven into %s (about 780 MB, once)", debeziumVersion, cache)
	unpacked := home + ".partial"
	if err := errors.Join(os.RemoveAll(unpacked), os.MkdirAll(unpacked, 0o755)); err != nil {
		return nil, err
	}
	// The local repository is given, as in test/servers/fetch.sh: HOME may not be usable.
	repository := filepath.Join(filepath.Dir(cache), "m2")
	archive := filepath.Join(cache, "debezium-server-dist-"+debeziumVersion+".tar.gz")
	for _, cmd := range []*exec.Cmd{
		exec.CommandContext(ctx, "mvn", "--quiet", "--batch-mode", "-Dmaven.repo.local="+repository, "dependency:copy",
			"-Dartifact=io.debezium:debezium-server-dist:"+debeziumVersion+":tar.gz", "-DoutputDirectory="+cache),
		exec.CommandContext(ctx, "tar", "-xzf", archive, "--strip-components=1", "-C", unpacked),
	} {
		if output, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", cmd, err, output)
		}
	}
	return &debeziumServer{java, home}, errors.Join(os.Rename(unpacked, home), os.Remove(archive))
}

// java21 returns the java command of JAVA_HOME, if it is new enough for Debezium.
func java21(ctx context.Context) (string, error) {
	home := os.Getenv("JAVA_HOME")
	if home == "" {
		return "", errors.New("debezium needs Java 21 or newer: set JAVA_HOME to one")
	}
	java := filepath.Join(home, "bin", "java")
	output, err := exec.CommandContext(ctx, java, "-version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("debezium needs Java 21 or newer in JAVA_HOME: %w\n%s", err, output)
	}
	if major := javaMajor(string(output)); major < 21 {
		return "", fmt.Errorf("debezium needs Java 21 or newer, JAVA_HOME has %d: %s", major, home)
	}
	return java, nil
}

// javaMajor returns the major version in what `java -version` says, 0 if there is none.
func javaMajor(output string) int {
	found := regexp.MustCompile(`version "(\d+)`).FindStringSubmatch(output)
	if found == nil {
		return 0
	}
	major, err := strconv.Atoi(found[1])
	if err != nil {
		return 0
	}
	return major
}

func debeziumCommand(ctx context.Context, h *harness, r run) (*exec.Cmd, error) {
	dir := filepath.Join(h.bed.dir, r.id)
	if err := os.MkdirAll(filepath.Join(dir, "config"), 0o755); err != nil {
		return nil, err
	}
	properties := debeziumProperties(h.bed.pg.Port(), h.bed.kafka.Addr(), r.wal.database, r.id, filepath.Join(dir, "offsets"))
	if err := os.WriteFile(filepath.Join(dir, "config", "application.properties"), []byte(properties), 0o600); err != nil {
		return nil, err
	}
	runner, err := filepath.Glob(filepath.Join(h.tools.debezium.home, "debezium-server-*runner.jar"))
	if err != nil {
		return nil, err
	}
	if len(runner) != 1 {
		return nil, fmt.Errorf("%d files debezium-server-*runner.jar in %s, want 1", len(runner), h.tools.debezium.home)
	}
	cmd := exec.CommandContext(ctx, h.tools.debezium.java, "--add-opens", "java.base/java.lang=ALL-UNNAMED", "-Xmx2g",
		"-cp", runner[0]+":"+filepath.Join(dir, "config")+":"+filepath.Join(h.tools.debezium.home, "lib", "*"), "io.debezium.server.Main")
	cmd.Dir = dir
	return cmd, nil
}

// debeziumProperties are those of a Debezium Server that publishes what walferry does, with large batches, and with
// strings where JSON would have to be built.
func debeziumProperties(port int, broker, database, id, offsets string) string {
	return fmt.Sprintf(`debezium.source.connector.class=io.debezium.connector.postgresql.PostgresConnector
debezium.source.database.hostname=127.0.0.1
debezium.source.database.port=%d
debezium.source.database.user=postgres
debezium.source.database.password=postgres
debezium.source.database.dbname=%s
debezium.source.database.sslmode=disable
debezium.source.topic.prefix=bench
debezium.source.plugin.name=pgoutput
debezium.source.slot.name=%s
debezium.source.publication.name=%s
debezium.source.publication.autocreate.mode=disabled
debezium.source.table.include.list=public.outbox
debezium.source.snapshot.mode=no_data
debezium.source.tombstones.on.delete=false
debezium.source.max.batch.size=16384
debezium.source.max.queue.size=65536
debezium.source.poll.interval.ms=5
debezium.source.offset.storage=org.apache.kafka.connect.storage.FileOffsetBackingStore
debezium.source.offset.storage.file.filename=%s
debezium.source.offset.flush.interval.ms=1000
debezium.transforms=outbox
debezium.transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
debezium.transforms.outbox.route.topic.replacement=%s
debezium.format.key=simplestring
debezium.format.value=simplestring
debezium.format.header.schemas.enable=false
debezium.sink.type=kafka
debezium.sink.kafka.producer.bootstrap.servers=%s
debezium.sink.kafka.producer.key.serializer=org.apache.kafka.common.serialization.StringSerializer
debezium.sink.kafka.producer.value.serializer=org.apache.kafka.common.serialization.StringSerializer
debezium.sink.kafka.producer.acks=all
debezium.sink.kafka.producer.compression.type=lz4
debezium.sink.kafka.producer.linger.ms=5
debezium.sink.kafka.producer.batch.size=1000000
debezium.sink.kafka.producer.buffer.memory=134217728
quarkus.http.port=0
quarkus.log.level=WARN
`, port, database, id, publication, offsets, id, broker)
}

// awaitRecords returns when the topic has all events of the backlog.
func awaitRecords(ctx context.Context, h *harness, r run, first func()) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("that takes longer than ten minutes"))
	defer cancel()
	var seen int64
	err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		records, err := countRecords(ctx, h.client, r.id)
		if records > 0 && seen == 0 {
			first()
		}
		seen = records
		return records >= r.wal.Events, err
	})
	if err != nil {
		return fmt.Errorf("topic %s has %d records of %d: %w", r.id, seen, r.wal.Events, err)
	}
	return nil
}
