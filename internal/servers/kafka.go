package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// kafkaStartLimit is how long formatting, and a start with log recovery, may take.
const kafkaStartLimit = 2 * time.Minute

// A Broker is one Kafka server, broker and controller in one process. Its PLAINTEXT listener asks for no
// authentication; with an authorizer its clients may do everything (super.users=User:ANONYMOUS).
//
// Start and Close must not run at the same time as a method that starts or ends the broker; the others may, for example
// Kill while Stop waits.
type Broker struct {
	id      int
	java    string
	heapMB  int
	jit     []string // options of the running broker's JVM
	lib     string   // directory of Kafka's jars
	scratch *scratch
	ports   map[string]port // by listener
	process *process        // the last one started
}

// Kafka creates a cluster of one node and starts it. It returns when the broker serves requests. ctx bounds only that;
// the broker runs until [Broker.Close], which the caller must call.
func Kafka(ctx context.Context, opts KafkaOptions) (*Broker, error) {
	cluster, err := KafkaCluster(ctx, 1, opts)
	if err != nil {
		return nil, err
	}
	return cluster.Brokers[0], nil
}

// newBroker reserves what node id needs; it starts and writes nothing yet.
func newBroker(id int, opts KafkaOptions) (*Broker, error) {
	java, err := findJava()
	if err != nil {
		return nil, err
	}
	home, err := fetched()
	if err != nil {
		return nil, err
	}
	lib := filepath.Join(home, "kafka", "lib")
	if _, err := jars(lib); err != nil {
		return nil, err
	}
	scratch, err := newScratch(nil)
	if err != nil {
		return nil, err
	}
	b := &Broker{id: id, java: java, heapMB: opts.HeapMB, jit: quickCompiler(), lib: lib, scratch: scratch, ports: map[string]port{}}
	if opts.LongLived {
		b.jit = nil
	}
	for name := range opts.listeners() {
		held, err := holdPort()
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.ports[name] = held
	}
	return b, nil
}

// findJava returns the java command: that of JAVA_HOME, or else the one on PATH.
func findJava() (string, error) {
	name := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		name = filepath.Join(home, "bin", "java")
	}
	java, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find java (install a Java 17 runtime or newer, or correct JAVA_HOME): %w", err)
	}
	return filepath.Abs(java)
}

// quickCompiler returns the JVM's options for what ends before the other compiler would pay: all commands, and most brokers
// here.
func quickCompiler() []string { return []string{"-XX:TieredStopAtLevel=1"} }

// command returns a command that runs one of Kafka's classes.
func (b *Broker) command(options []string, class string, args ...string) *exec.Cmd {
	all := append([]string{
		"-Xmx" + strconv.Itoa(b.heapMB) + "m",
		"-XX:+UseSerialGC", // starts faster than G1 and needs fewer threads
		"-XX:+ExitOnOutOfMemoryError",
		// Else a killed JVM leaves files in the temporary directory of the system.
		"-XX:-UsePerfData",
		"-Djava.io.tmpdir=" + b.scratch.dir,
		"-Djava.net.preferIPv4Stack=true",
		"-Dorg.slf4j.simpleLogger.showDateTime=true",
		"-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
		"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn", // else all 400 properties
		"-cp", filepath.Join(b.lib, "*"),
	}, options...)
	all = append(append(all, class), args...)
	cmd := exec.Command(b.java, all...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8"}
	cmd.Dir = b.scratch.dir
	return cmd
}

// format initializes the broker's data directory for the cluster.
func (b *Broker) format(ctx context.Context, cluster string, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, kafkaStartLimit)
	defer cancel()
	all := append([]string{"format", "--cluster-id", cluster, "--config", b.scratch.path("server.properties")}, args...)
	tool := b.command(quickCompiler(), "kafka.tools.StorageTool", all...)
	if output, err := runCommand(ctx, tool, nil); err != nil {
		return fmt.Errorf("format the storage of kafka node %d: %w\n%s", b.id, err, output)
	}
	return nil
}

// ID returns the node id of the broker, which is its number in the cluster from 1.
func (b *Broker) ID() int { return b.id }

// PID returns the process id of the broker that was started last.
func (b *Broker) PID() int { return b.process.cmd.Process.Pid }

// Addr returns host:port of the PLAINTEXT listener. It stays the same over restarts.
func (b *Broker) Addr() string { return b.ports[plaintext].addr() }

// ListenerAddr returns host:port of a listener in [KafkaOptions.Listeners]. It panics if the broker has no such listener.
func (b *Broker) ListenerAddr(name string) string {
	held, ok := b.ports[name]
	if !ok {
		panic(fmt.Sprintf("kafka node %d has no listener %q", b.id, name))
	}
	return held.addr()
}

// Log returns the end of the broker's log, at most 8 KiB, for the output of a test that fails.
func (b *Broker) Log() string { return b.scratch.logTail() }

// Start starts the broker on its data directory and ports and returns when it serves requests, after log recovery if
// need be. A node of a larger cluster needs the majority of the nodes for that. It fails if the broker is running.
func (b *Broker) Start(ctx context.Context) error {
	if err := b.launch(); err != nil {
		return err
	}
	return b.await(ctx, 1)
}

// launch starts the broker's process.
func (b *Broker) launch() error {
	if b.process.running() {
		return fmt.Errorf("start kafka node %d: it is running (process %d)", b.id, b.process.cmd.Process.Pid)
	}
	log, err := b.scratch.openLog()
	if err != nil {
		return fmt.Errorf("start kafka node %d: %w", b.id, err)
	}
	defer log.Close() //nolint:errcheck // the server has its own handle
	kafka := b.command(b.jit, "kafka.Kafka", b.scratch.path("server.properties"))
	kafka.Stdout, kafka.Stderr = log, log
	b.process, err = startProcess(kafka, nil, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("start kafka node %d: %w", b.id, err)
	}
	return nil
}

// await returns when the broker serves requests and knows of at least so many live brokers, itself included.
// If that fails, it kills the broker.
func (b *Broker) await(ctx context.Context, brokers int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addr()))
	if err != nil {
		return errors.Join(fmt.Errorf("start kafka node %d: %w", b.id, err), b.Kill())
	}
	defer client.Close()
	ready := func(ctx context.Context) error { return b.checkServes(ctx, client, brokers) }
	if err := b.process.awaitReady(ctx, kafkaStartLimit, ready); err != nil {
		return errors.Join(fmt.Errorf("start kafka node %d: %w; its log ends with:\n%s", b.id, err, b.Log()), b.Kill())
	}
	return nil
}

func (b *Broker) checkServes(ctx context.Context, client *kgo.Client, brokers int) error {
	request := kmsg.NewPtrMetadataRequest()
	request.Topics = []kmsg.MetadataRequestTopic{} // none; nil would ask for all
	answer, err := client.SeedBrokers()[0].Request(ctx, request)
	if err != nil {
		return err
	}
	// A broker that the controller has not let in is not in the list, not even in its own.
	live, self := 0, false
	for _, broker := range answer.(*kmsg.MetadataResponse).Brokers {
		live++
		self = self || int(broker.NodeID) == b.id
	}
	if !self || live < brokers {
		return fmt.Errorf("it knows of %d live brokers, itself among them: %t; want %d", live, self, brokers)
	}
	return nil
}

// Stop shuts the broker down with SIGTERM and returns when it has ended. In a larger cluster it first hands its
// partitions over, which needs a majority of the nodes. It fails if the broker still runs after a minute, and does
// nothing if it does not run.
func (b *Broker) Stop() error {
	if !b.process.running() {
		return nil
	}
	if err := b.process.stop(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop kafka node %d: %w; its log ends with:\n%s", b.id, err, b.Log())
	}
	return nil
}

// Kill ends the broker with SIGKILL and returns when it is gone. It does nothing if the broker does not run.
func (b *Broker) Kill() error {
	if err := b.process.kill(); err != nil {
		return fmt.Errorf("kill kafka node %d: %w", b.id, err)
	}
	return nil
}

// Close kills the broker and removes everything it has written. The Broker cannot be used any more.
func (b *Broker) Close() error {
	err := errors.Join(b.Kill(), b.scratch.remove())
	for _, held := range b.ports {
		err = errors.Join(err, held.release())
	}
	return err
}
