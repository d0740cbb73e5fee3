//go:build faults

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/walferry/walferry/bridge"
	"github.com/walferry/walferry/bridge/config"
	"github.com/walferry/walferry/internal/servers"
)

// adminOf returns an admin client of some brokers.
func (f *faultRun) adminOf(brokers ...string) *kadm.Client {
	f.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(client.Close)
	return kadm.NewClient(client)
}

// leader returns the broker that leads the first partition of a topic.
func (f *faultRun) leader(cluster *servers.Cluster, topic string) *servers.Broker {
	f.Helper()
	topics, err := f.adminOf(cluster.Addrs()...).ListTopics(f.Context(), topic)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range cluster.Brokers {
		if int32(b.ID()) == topics[topic].Partitions[0].Leader {
			return b
		}
	}
	f.Fatalf("nobody leads %s", topic)
	return nil
}

// awaitReplicas waits until all replicas of the world's topics are in sync.
func (f *faultRun) awaitReplicas(w *world, cluster *servers.Cluster) {
	f.Helper()
	admin := f.adminOf(cluster.Addrs()...)
	await(f.T, "all replicas to be in sync", func() error {
		topics, err := admin.ListTopics(f.Context(), w.prefix+"."+ledgerTypes[0], w.prefix+"."+ledgerTypes[1], w.prefix+"."+ledgerTypes[2])
		for _, topic := range topics {
			for _, p := range topic.Partitions {
				if len(p.ISR) < 3 {
					err = fmt.Errorf("%d replicas of %s/%d are in sync", len(p.ISR), topic.Topic, p.Partition)
				}
			}
		}
		return err
	})
}

// loseLeaders kills leaders of partitions, and then restarts all brokers one by one.
func loseLeaders(f *faultRun) {
	cluster := f.threeBrokers()
	w := newWorld(f.T, newest(f.T), on(cluster.Addrs()...))
	l := f.load(w)
	c := w.daemon("")
	c.awaitStreaming()
	l.more(100)
	for range 2 {
		f.awaitReplicas(w, cluster)
		f.withoutBroker(l, cluster, f.leader(cluster, w.prefix+".order"), "leader")
	}
	gap := f.longestGap(w)
	for _, b := range cluster.Brokers {
		if err := errors.Join(b.Stop(), b.Start(context.Background())); err != nil {
			f.Fatal(err)
		}
		f.awaitReplicas(w, cluster)
	}
	stall := gap()
	f.note("rolling restart: stall %s", short(stall))
	f.within("the stall in a rolling restart", stall, 20*time.Second)
	f.mustStayOneSession(c, f.verify(l))
}

// withoutBroker kills a broker under load, starts it again once the bridge has recovered, and bounds how long nothing was
// confirmed.
func (f *faultRun) withoutBroker(l *load, cluster *servers.Cluster, broker *servers.Broker, role string) {
	f.Helper()
	gap := f.longestGap(l.w)
	end := outage(f.T, broker)
	f.recovered(l.w, time.Now(), l.w.insertLSN())
	l.more(200)
	end()
	f.awaitReplicas(l.w, cluster)
	stall := gap()
	f.note("kill -9: stall %s;", short(stall))
	f.within("the stall after kill -9 of the "+role, stall, 20*time.Second)
}

// mustStayOneSession fails if the process had to begin anew, or sent anything twice without that.
func (f *faultRun) mustStayOneSession(c *command, duplicates int) {
	f.Helper()
	if n := len(c.logLines("streaming")); n != 1 || duplicates != 0 {
		f.Errorf("%d sessions and %d duplicates, want 1 and 0", n, duplicates)
	}
}

// withoutMajority takes brokers away for a while. The stream must live, memory must be bounded, and the state must show.
func (f *faultRun) withoutMajority(lost []*servers.Broker, all *servers.Cluster, outageTime time.Duration) {
	f.Helper()
	const timeout = 8 * time.Second
	w := newWorld(f.T, newest(f.T), func(cfg *config.Config) {
		on(all.Addrs()...)(cfg)
		senderTimeout(cfg, timeout)
	})
	l := f.load(w)
	admin := freeAddr(f.T)
	c := w.daemon(admin)
	c.awaitStreaming()
	l.more(200)
	pid := w.walsender()
	end := outage(f.T, lost...)
	f.awaitStalled(admin)
	began, lag, middle := time.Now(), f.statusOf(admin).ConfirmedLag, int64(0)
	for time.Since(began) < outageTime {
		l.more(200)
		// A transaction of Kafka does not outlive this outage, and so neither does the session that has it. While a walsender gets rid of
		// what it sends it reads nothing for half of its timeout: at its start nobody has told it anything yet.
		if since := w.query("SELECT coalesce(max(extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start))), 1000)::int::text FROM pg_stat_replication WHERE pid = $1::int", pid); !f.exactlyOnce() && (len(since) > 1 || since > "8") {
			f.Fatalf("the walsender has not heard from us for %s s", since)
		}
		if middle == 0 && time.Since(began) > outageTime/3 {
			middle = highWater(c.cmd.Process.Pid)
		}
	}
	s, peak := f.statusOf(admin), highWater(c.cmd.Process.Pid)
	stalls := s.ConfirmedLag > lag && s.State == bridge.Streaming && strings.Contains(s.Reason, "Kafka does not acknowledge")
	waits := f.exactlyOnce() && s.State == bridge.Waiting && s.Reason != ""
	if s.Ready || !stalls && !waits {
		f.Errorf("status %+v, want a lag of more than %d and the reason why it is not ready", s, lag)
	}
	if code, body := get(f.T, "http://"+admin+"/readyz"); code != http.StatusServiceUnavailable {
		f.Errorf("/readyz answers %d: %s", code, body)
	}
	if peak > maxRSS || peak > middle+24<<20 {
		f.Errorf("peak memory %d bytes, want at most %d, and what it was at a third of the outage, %d, and 24 MiB", peak, maxRSS, middle)
	}
	end()
	took := f.recovered(w, time.Now(), w.insertLSN())
	f.note("outage %s, VmHWM %d MiB at a third and %d at the end, lag %d MiB", short(time.Since(began)-took), middle>>20, peak>>20, s.ConfirmedLag>>20)
	f.within("to catch up", took, 60*time.Second)
	duplicates := f.verify(l)
	if f.exactlyOnce() {
		return
	}
	f.mustStayOneSession(c, duplicates)
	if w.walsender() != pid {
		f.Error("another walsender serves the slot")
	}
}

// loseMajority takes two of three brokers away for a minute.
func loseMajority(f *faultRun) {
	cluster := f.threeBrokers()
	f.withoutMajority(cluster.Brokers[1:], cluster, time.Minute)
}

// loseKafka takes all brokers away for two minutes.
func loseKafka(f *faultRun) {
	cluster := f.threeBrokers()
	f.withoutMajority(cluster.Brokers, cluster, 2*time.Minute)
}

// recreateTopic deletes a topic under load and creates it again at once. What it had is gone; what it gets must be a
// stretch of the stream without a hole, up to the end.
func recreateTopic(f *faultRun) {
	TestDeletedTopicIsNotCreatedAgain(f.T)
	w := newWorld(f.T, newest(f.T), nil)
	l := f.load(w)
	admin := w.kafkaAdmin()
	topic := w.prefix + ".order"
	r := w.run("")
	r.awaitState(bridge.Streaming)
	l.more(100)
	if _, err := admin.DeleteTopic(f.Context(), topic); err != nil {
		f.Fatal(err)
	}
	await(f.T, "the topic to be created again", func() error {
		_, err := admin.CreateTopic(f.Context(), 3, -1, nil, topic)
		return err
	})
	l.more(200)
	l.stop()
	if stopped := w.caughtUpOrStopped(r); stopped != nil {
		f.note("stopped: %v", stopped)
		w.run("")
		w.awaitCaughtUp()
	} else {
		f.note("went on in session %d", r.bridge.Status().Sessions)
	}
	f.mustHaveNoHole(w, topic)
}

// mustHaveNoHole fails unless each partition of a topic holds the end of the stream, from some event on.
func (f *faultRun) mustHaveNoHole(w *world, topic string) {
	f.Helper()
	type partition struct{ ids, want []string }
	partitions, home, seen := map[int32]*partition{}, map[string]int32{}, map[string]bool{}
	w.eachRecord(func(r *kgo.Record) {
		if id := header(r, "id"); r.Topic == topic {
			home[string(r.Key)] = r.Partition
			p := partitions[r.Partition]
			if p == nil {
				p = &partition{}
				partitions[r.Partition] = p
			}
			f.events++
			if seen[id] {
				f.duplicates++
				return
			}
			seen[id] = true
			p.ids = append(p.ids, id)
		}
	})
	w.eachTruth(func(id string, d delivery) {
		if p, ok := home[d.key]; ok && d.topic == topic {
			partitions[p].want = append(partitions[p].want, id)
		}
	})
	for n, p := range partitions {
		if len(p.ids) > len(p.want) || !slices.Equal(p.ids, p.want[len(p.want)-len(p.ids):]) {
			f.Errorf("partition %d: its %d events are not the end of the %d that were written", n, len(p.ids), len(p.want))
		}
	}
	if f.events == 0 {
		f.Error("nothing is in the new topic")
	}
}

// missingTopic starts without the topic.
func missingTopic(f *faultRun) {
	TestTopicsThatMayNotBeCreated(f.T)
	w := newWorld(f.T, newest(f.T), func(c *config.Config) { c.Kafka.Topics.Create = false })
	w.insert("k", "1")
	written := w.insertLSN()
	_, stderr := walferry(f.T, "run", "--config", w.configFile("")).exit(1)
	if !strings.Contains(stderr, "--create --topic "+w.prefix+".order") {
		f.Errorf("it does not say how to create the topic:\n%s", stderr)
	}
	w.mustNotReach(written)
}

// messageTooLarge has an event under load that only the brokers refuse.
func messageTooLarge(f *faultRun) {
	w := newWorld(f.T, newest(f.T), nil)
	l := f.load(w)
	admin := w.kafkaAdmin()
	const neighbours, limit = 20, "102400"
	small := limit
	if _, err := admin.CreateTopic(f.Context(), 1, -1, map[string]*string{"max.message.bytes": &small}, w.prefix+".big"); err != nil {
		f.Fatal(err)
	}
	big := func(payload string) []event {
		return w.emit("INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ('big', 'k', 'T', to_jsonb($1::text)) RETURNING id::text, aggregateid, payload #>> '{}'", payload)
	}
	want := map[string]event{}
	keep := func(events []event) {
		for _, e := range events {
			want[e.id] = e
		}
	}
	c := w.daemon("")
	c.awaitStreaming()
	l.more(50)
	before := w.insertLSN()
	for i := range neighbours {
		keep(big(fmt.Sprint("before ", i)))
	}
	culprit := big(noise(300_000, 7)) // does not compress
	keep(culprit)
	for i := range neighbours {
		keep(big(fmt.Sprint("behind ", i)))
	}
	// What is refused is a batch: the error names its first event, which is the large one or before it.
	_, stderr := c.exit(65)
	w.mustNotConfirm(before, stderr)
	_, stderr = walferry(f.T, "run", "--config", w.configFile("")).exit(65)
	w.mustNotConfirm(before, stderr)
	l.more(50)
	raised := "1048588"
	if _, err := admin.AlterTopicConfigs(f.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &raised}}, w.prefix+".big"); err != nil {
		f.Fatal(err)
	}
	w.daemon("")
	l.stop()
	w.awaitCaughtUp()
	copies := map[string]int{}
	w.eachRecord(func(r *kgo.Record) {
		if r.Topic != w.prefix+".big" {
			return
		}
		id := header(r, "id")
		copies[id]++
		if e := want[id]; e.value != strings.Trim(string(r.Value), `"`) && e.value != string(r.Value) {
			f.Errorf("event %s is altered", id)
		}
	})
	if len(copies) != len(want) || copies[culprit[0].id] != 1 {
		f.Errorf("%d of %d events are in the topic, the large one %d times", len(copies), len(want), copies[culprit[0].id])
	}
	f.verifyBut(l, "big")
}

// grant creates ACLs and waits until the broker, which decides, knows of them.
func (f *faultRun) grant(admin *kadm.Client, acls *kadm.ACLBuilder) {
	f.Helper()
	created, err := admin.CreateACLs(f.Context(), acls)
	for _, r := range created {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		f.Fatal(err)
	}
	await(f.T, "the grants", func() error {
		found, err := admin.DescribeACLs(f.Context(), acls)
		for _, r := range found {
			if len(r.Described) == 0 {
				err = errors.Join(err, errors.New("not granted yet"))
			}
		}
		return err
	})
}

// loseACL takes the right to write away from a bridge that runs, and gives it back.
func loseACL(f *faultRun) {
	broker, err := servers.Kafka(context.Background(), servers.KafkaOptions{
		Listeners: map[string]string{"SCRAM": "SASL_PLAINTEXT"},
		Properties: map[string]string{
			"authorizer.class.name":                              "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"listener.name.scram.sasl.enabled.mechanisms":        "SCRAM-SHA-512",
			"listener.name.scram.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
		},
		FormatArgs: []string{"--add-scram", "SCRAM-SHA-512=[name=limited,password=" + secretPassword + "]"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = broker.Close() })
	w := newWorld(f.T, newest(f.T), on(broker.Addr()))
	l := f.load(w)
	admin := f.adminOf(broker.Addr())
	var topics []string
	for _, kind := range ledgerTypes {
		topics = append(topics, w.prefix+"."+kind)
	}
	to := func(acls *kadm.ACLBuilder, operations ...kadm.ACLOperation) *kadm.ACLBuilder {
		return acls.ResourcePatternType(kadm.ACLPatternLiteral).Operations(operations...).Allow("User:limited").AllowHosts()
	}
	topicACLs := to(kadm.NewACLs().Topics(topics...), kadm.OpWrite, kadm.OpDescribe)
	idACLs := to(kadm.NewACLs().TransactionalIDs("*"), kadm.OpWrite, kadm.OpDescribe)
	f.grant(admin, to(kadm.NewACLs().Topics(w.cfg.Checkpoint.Topic), kadm.OpRead, kadm.OpWrite, kadm.OpDescribe, kadm.OpDescribeConfigs))
	f.grant(admin, topicACLs)
	f.grant(admin, idACLs)
	secured := kafkaConfig(f.T, broker.ListenerAddr("SCRAM"), saslKeys("SCRAM-SHA-512", "limited", secretPassword))
	run := func() *running {
		o := w.options("", zerolog.InfoLevel)
		o.Kafka = secured
		return w.start(o)
	}
	r := run()
	for _, lost := range []struct {
		acls        *kadm.ACLBuilder
		error, hint string
	}{
		{topicACLs, "TOPIC_AUTHORIZATION_FAILED", "grant the client WRITE, DESCRIBE"},
		{idACLs, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "grant the client WRITE on transactional IDs"},
	} {
		r.awaitState(bridge.Streaming)
		l.more(100)
		if _, err := admin.DeleteACLs(f.Context(), lost.acls); err != nil {
			f.Fatal(err)
		}
		began := time.Now()
		r.mustStop(bridge.Fatal, lost.error, lost.hint)
		f.note("%s: stopped after %s", lost.error, short(time.Since(began)))
		w.awaitNoWalsender()
		confirmed := w.confirmed()
		l.more(50)
		run().mustStop(bridge.Fatal, "AUTHORIZATION_FAILED", lost.hint)
		if now := w.confirmed(); now != confirmed {
			f.Errorf("%s is confirmed without the right to write, it was %s", now, confirmed)
		}
		f.grant(admin, lost.acls)
		granted := time.Now()
		r = run()
		f.recovered(w, granted, w.insertLSN())
	}
	f.verify(l)
}

// loseCoordinator kills the coordinator of the bridge's transactions while they come and go, and then has the bridge stand
// still for so long that the brokers abort the one that is open.
func loseCoordinator(f *faultRun) {
	cluster := f.threeBrokers()
	w := newWorld(f.T, newest(f.T), on(cluster.Addrs()...))
	l := f.load(w)
	c := w.daemon("")
	c.awaitStreaming()
	admin, id := f.adminOf(cluster.Addrs()...), w.transactionalID()
	for range 3 {
		l.more(f.random.IntN(200))
		coordinators := admin.FindTxnCoordinators(f.Context(), id)
		at := slices.IndexFunc(cluster.Brokers, func(b *servers.Broker) bool { return int32(b.ID()) == coordinators[id].NodeID })
		if at < 0 {
			f.Fatalf("no coordinator of %s: %v", id, coordinators[id].Err)
		}
		f.withoutBroker(l, cluster, cluster.Brokers[at], "coordinator")
	}
	l.more(50)
	c.signal(syscall.SIGSTOP)
	frozen := time.Now()
	var held time.Duration
	for time.Since(frozen) < 45*time.Second { // the walsender waits for a minute
		l.more(50)
		if f.uncommitted(admin, w) {
			held = time.Since(frozen)
		}
	}
	c.signal(syscall.SIGCONT)
	f.recovered(w, time.Now(), w.insertLSN())
	f.note("frozen for %s, which held committed readers up for %s", short(time.Since(frozen)), short(held))
	f.within("readers of what is committed were held up", held, 42*time.Second)
	f.verify(l)
}

// loseMarkers kills the only broker while commits are on their way, and the session with it. When the broker comes back its partitions
// have no leader for a moment, in which it forgets the markers of what is committed (KAFKA-20734).
func loseMarkers(f *faultRun) {
	broker := breakableKafka(f.T)
	w := newWorld(f.T, newest(f.T), on(broker.Addr()))
	l := f.load(w)
	admin := freeAddr(f.T)
	c := w.daemon(admin)
	c.awaitStreaming()
	for range 12 {
		l.more(30)
		end := outage(f.T, broker)
		f.awaitStalled(admin)
		if pid := w.walsender(); pid != "" {
			w.query("SELECT pg_terminate_backend($1::int)::text", pid)
		}
		<-time.After(time.Duration(f.random.IntN(2000)) * time.Millisecond) // what the controller knows of the broker then differs
		end()
		f.recovered(w, time.Now(), w.insertLSN())
	}
	f.verify(l)
	f.note("%d transactions hung", len(c.logLines("never ended the last transaction")))
}

// uncommitted reports whether there are records in the world's topics that a reader of committed ones has to wait behind.
func (f *faultRun) uncommitted(admin *kadm.Client, w *world) (waits bool) {
	f.Helper()
	var topics []string
	for _, kind := range ledgerTypes {
		topics = append(topics, w.prefix+"."+kind)
	}
	ends, err := admin.ListEndOffsets(f.Context(), topics...)
	stable, stableErr := admin.ListCommittedOffsets(f.Context(), topics...)
	if err := errors.Join(err, stableErr); err != nil {
		f.Fatal(err)
	}
	stable.Each(func(o kadm.ListedOffset) {
		end, _ := ends.Lookup(o.Topic, o.Partition)
		waits = waits || o.Offset < end.Offset
	})
	return waits
}
