package servers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// The listeners that every broker has.
const (
	plaintext  = "PLAINTEXT"  // for clients and other brokers
	controller = "CONTROLLER" // for the quorum
)

// KafkaOptions are the choices for a cluster. The zero value is a good one for most tests.
type KafkaOptions struct {
	// Properties go into server.properties of every node and win over those of this package.
	Properties map[string]string
	// Listeners are more listeners of every node: name in capitals -> PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. Their
	// ports are chosen here, see [Broker.ListenerAddr]; keys and mechanisms come by Properties (listener.name.<name>.…).
	Listeners map[string]string
	// FormatArgs are more arguments of kafka-storage format, for example --add-scram.
	FormatArgs []string
	// HeapMB limits the heap of each node; 0 means 512 MiB for one node and 384 MiB for each of several.
	HeapMB int
	// LongLived lets the JVM use all its compilers: a slower start and a faster broker, for measurements.
	LongLived bool
}

// listeners returns the security protocol of every listener.
func (o KafkaOptions) listeners() map[string]string {
	all := map[string]string{plaintext: "PLAINTEXT", controller: "PLAINTEXT"}
	maps.Copy(all, o.Listeners)
	return all
}

// A Cluster is a Kafka cluster on this machine. Every node is broker and controller.
type Cluster struct {
	Brokers []*Broker // node ids 1, 2, …
}

// KafkaCluster creates a cluster of that many nodes and starts them. It returns when all brokers serve requests and
// know each other. ctx bounds only that; the brokers run until [Cluster.Close], which the caller must call.
func KafkaCluster(ctx context.Context, nodes int, opts KafkaOptions) (*Cluster, error) {
	heapMB := 512
	if nodes > 1 {
		heapMB = 384
	}
	opts.HeapMB = cmp.Or(opts.HeapMB, heapMB)
	cluster := &Cluster{}
	for id := 1; id <= nodes; id++ {
		broker, err := newBroker(id, opts)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("kafka node %d: %w", id, err), cluster.Close())
		}
		cluster.Brokers = append(cluster.Brokers, broker)
	}
	if err := cluster.start(ctx, opts); err != nil {
		return nil, errors.Join(err, cluster.Close())
	}
	return cluster, nil
}

// start configures and formats all nodes and starts them.
func (c *Cluster) start(ctx context.Context, opts KafkaOptions) error {
	id := newClusterID()
	group, ctx := errgroup.WithContext(ctx)
	for _, b := range c.Brokers {
		group.Go(func() error {
			if err := os.WriteFile(b.scratch.path("server.properties"), c.properties(b, opts), 0o600); err != nil {
				return fmt.Errorf("configure kafka node %d: %w", b.id, err)
			}
			if err := b.format(ctx, id, opts.FormatArgs); err != nil {
				return err
			}
			if err := b.launch(); err != nil {
				return err
			}
			return b.await(ctx, len(c.Brokers))
		})
	}
	return group.Wait()
}

// newClusterID returns a random id in Kafka's form, 16 bytes in URL-safe base64. Its first letter is never '-', which
// would make it an option on a command line.
func newClusterID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	id[0] &= 0x7f
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// properties returns the content of the node's server.properties.
func (c *Cluster) properties(b *Broker, opts KafkaOptions) []byte {
	var listeners, protocols, voters []string
	for name, protocol := range opts.listeners() {
		listeners = append(listeners, name+"://"+b.ports[name].addr())
		protocols = append(protocols, name+":"+protocol)
	}
	for _, node := range c.Brokers {
		voters = append(voters, strconv.Itoa(node.id)+"@"+node.ports[controller].addr())
	}
	replicas := min(len(c.Brokers), 3)
	all := map[string]string{
		"process.roles":                    "broker,controller",
		"node.id":                          strconv.Itoa(b.id),
		"controller.quorum.voters":         strings.Join(voters, ","),
		"controller.listener.names":        controller,
		"inter.broker.listener.name":       plaintext,
		"listeners":                        strings.Join(listeners, ","),
		"listener.security.protocol.map":   strings.Join(protocols, ","),
		"log.dirs":                         b.scratch.path("data"),
		"super.users":                      "User:ANONYMOUS",
		"auto.create.topics.enable":        "false",
		"group.initial.rebalance.delay.ms": "0",
		"default.replication.factor":       strconv.Itoa(replicas),
	}
	// A killed broker's partitions get no new leader, and the broker itself cannot return, before its session is over:
	// 9 s by default.
	all["broker.session.timeout.ms"] = "3000"
	all["broker.heartbeat.interval.ms"] = "500"
	// Few partitions: they are created at first use, and recovered one by one after Kill.
	for _, topic := range []string{"offsets.topic", "transaction.state.log", "share.coordinator.state.topic"} {
		all[topic+".num.partitions"] = "4"
		all[topic+".replication.factor"] = strconv.Itoa(replicas)
	}
	majority := strconv.Itoa(replicas/2 + 1)
	all["transaction.state.log.min.isr"] = majority
	all["share.coordinator.state.topic.min.isr"] = majority
	maps.Copy(all, opts.Properties)
	var lines strings.Builder
	escape := strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&lines, "%s=%s\n", name, escape.Replace(all[name]))
	}
	return []byte(lines.String())
}

// Addrs returns host:port of the PLAINTEXT listener of every broker.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, b := range c.Brokers {
		addrs = append(addrs, b.Addr())
	}
	return addrs
}

// Close kills all brokers and removes everything they have written.
func (c *Cluster) Close() error {
	var err error
	for _, b := range c.Brokers {
		err = errors.Join(err, b.Close())
	}
	return err
}
