package main

// mutants are the bugs to plant. Those that repeat somebody's bug name the public issue or pull
// request; the rest take out a guard of our own.
var mutants = []mutant{
	{
		name:    "ack-plus-one",
		repeats: "an LSN with something added to it skips the transaction behind: supabase/etl#731, pgjdbc/pgjdbc#801",
		edits: []edit{{
			"replication/inflight.go",
			"f.flushed.Store(uint64(r.end))",
			"f.flushed.Store(uint64(r.end) + 1)",
		}},
		checker: checker{"./bridge", "TestAdjacentCommitsSurviveACrashAfterEachConfirmation"},
		says:    "which the server never sent",
	},
	{
		name:    "ack-of-a-change",
		repeats: "the LSN of a change is confirmed or resumed from: debezium/debezium#7531, debezium/debezium#4152, airbytehq/airbyte#35963",
		edits: []edit{
			{
				"replication/stream.go",
				"Message{Data: b[xLogData:], At: s.frames.last}",
				"Message{Data: b[xLogData:], At: s.frames.last, WALEnd: LSN(binary.BigEndian.Uint64(b[1:]))}",
			},
			{
				"replication/inflight.go",
				"// Pending returns",
				"func (f *Inflight) Change(lsn LSN) { f.flushed.Store(max(f.flushed.Load(), uint64(lsn))) }\n\n// Pending returns",
			},
			{
				"bridge/session.go",
				"if err := s.sink.Publish(ctx, &c.Event, m.At, done); err != nil {",
				`change := m.WALEnd
			if err := s.sink.Publish(ctx, &c.Event, m.At, func(err error) { s.inflight.Change(change); done(err) }); err != nil {`,
			},
		},
		checker: checker{"./bridge", "TestDrainFinishesTheOpenTransaction"},
		says:    "which the server never sent",
	},
	{
		name:    "keepalive-in-flight",
		repeats: "a keepalive's LSN is confirmed before what was received earlier: ConduitIO/conduit-connector-postgres#313, Trendyol/go-pq-cdc#107, drasi-project/drasi-core#178",
		edits: []edit{{
			"replication/inflight.go",
			"if !f.open && f.size() == 0 && walEnd > f.Flushed() {",
			"if walEnd > f.Flushed() {",
		}},
		checker: checker{"./bridge", "TestNothingIsConfirmedBeforeKafkaAcknowledges"},
		says:    "while Kafka holds everything back",
	},
	{
		name:    "max-instead-of-prefix",
		repeats: "the highest LSN counts although an earlier one is still in flight: ClickHouse/walshadow#60, lukashes/outboxx#109",
		edits: []edit{{
			"replication/inflight.go",
			"case n == 0:\n\t\tf.advance()",
			"case n == 0:\n\t\tf.flushed.Store(max(f.flushed.Load(), uint64(r.end)))",
		}},
		checker: checker{"./replication", "TestInflightPublishesOnlyTheFinishedPrefix"},
		says:    "after transaction 2: Flushed",
	},
	{
		name:    "no-latch",
		repeats: "events behind a failed one are published: datastax/kafka-sink#39, apache/kafka#11323",
		edits: []edit{{
			"sink/kafka.go",
			"if err := k.failed.Load(); err != nil {\n\t\treturn err\n\t}\n\tr := ",
			"r := ",
		}},
		checker: checker{"./sink", "TestPublishLatchesOnTheFirstFailure"},
		says:    "an event behind the failed one was published",
	},
	{
		name:    "flush-left-zero",
		repeats: "the flush position is left 0, for which a library puts the write position: ConduitIO/conduit-connector-postgres#313, Trendyol/go-pq-cdc#81",
		edits: []edit{{
			"replication/feedback.go",
			"for range 3 {\n\t\tb = binary.BigEndian.AppendUint64(b, uint64(lsn))",
			"for i := range uint64(3) {\n\t\tb = binary.BigEndian.AppendUint64(b, uint64(lsn)*((i+1)%2))",
		}},
		checker: checker{"./replication", "TestStatusUpdate"},
		says:    "flush is 0/0",
	},
	{
		name:    "parse-error-skipped",
		repeats: "what cannot be read is logged and skipped: apache/iggy#3640, drasi-project/drasi-core#178",
		edits: []edit{{
			"bridge/session.go",
			"if s.passesOver(err) {\n\t\t\t\tcontinue\n\t\t\t}\n\t\t\treturn err",
			"s.log.Warn().Err(err).Msg(\"skipped\")\n\t\t\tcontinue",
		}},
		checker: checker{"./bridge", "TestWhatIsNotUnderstoodStopsTheBridge"},
		red:     hung, // the bridge never stops
		says:    "panic: test timed out",
	},
	{
		name:    "batch-dropped-on-error",
		repeats: "what the brokers refuse counts as delivered: apache/kafka#6993",
		edits: []edit{{
			"sink/kafka.go",
			"r.done(failure)",
			"r.done(nil)",
		}},
		checker: checker{"./bridge", "TestAFailedBatchEndsTheSessionAndLosesNothing"},
		says:    "first copies:",
	},
	{
		name:    "ack-before-promise",
		repeats: "an event counts as delivered when it is handed on: airbytehq/airbyte#15214, lukashes/outboxx#109",
		edits: []edit{{
			"sink/kafka.go",
			"r.done, r.at, r.Timestamp = done, at, at",
			"r.done, r.at, r.Timestamp = func(error) {}, at, at\n\tdone(nil)",
		}},
		checker: checker{"./bridge", "TestNothingIsConfirmedBeforeKafkaAcknowledges"},
		says:    "while Kafka holds everything back",
	},
	{
		name:    "feedback-behind-publish",
		repeats: "no status update while a full buffer blocks the reader: MaterializeInc/materialize#6835, PeerDB-io/peerdb#4324",
		edits: []edit{{
			"replication/feedback.go",
			"asked || lsn != f.sent || now.Sub(lastSent) >= heartbeat {",
			"f.Stream.frames.waiting.Load() && (asked || lsn != f.sent || now.Sub(lastSent) >= heartbeat) {",
		}},
		checker: checker{"./bridge", "TestPostgresKeepsASessionThatReadsNothing"},
		says:    "the server gave up a session",
	},
	{
		name:    "skip-across-timelines",
		repeats: "after a promotion events are skipped by an LSN of the old primary: patroni/patroni#1749, EnterpriseDB/pg_failover_slots#10",
		edits: []edit{{
			"checkpoint/checkpoint.go",
			"covered > left {",
			"covered > left && false {",
		}},
		checker: checker{"./checkpoint", "TestResume"},
		says:    "promoted before it: {From:{Flushed:0/2800 ",
	},
	{
		name:    "index-reset-after-restart",
		repeats: "what comes after a restart inside of a transaction is counted anew: debezium/debezium#7531, redpanda-data/connect#4677",
		edits: []edit{{
			"bridge/session.go",
			"index := c.Event.Position.Index\n",
			`if p := &c.Event.Position; replication.LSN(p.CommitLSN) == s.resumed.Commit {
				p.Index -= s.resumed.Index
			}
			index := c.Event.Position.Index
`,
		}},
		checker: checker{"./bridge", "TestPositionsAreTheSameAfterARestartInATransaction"},
		says:    "has position",
	},
	{
		name:    "index-after-filtering",
		repeats: "only what is published is counted, so that another configuration numbers events anew",
		edits: []edit{{
			"decode/decoder.go",
			"case msgUpdate, msgDelete, msgTruncate:\n\t\td.pos.Index++",
			"case msgUpdate, msgDelete, msgTruncate:",
		}},
		checker: checker{"./decode", "TestIndexCountsEveryChangeOfTheTransaction"},
		says:    ": index ",
	},
	{
		name:    "confirmed-before-checkpoint",
		repeats: "the slot moves on before the position is saved: osmanahmadxai/SYNCLE#33, airbytehq/airbyte#15214",
		edits: []edit{{
			"checkpoint/keeper.go",
			"return min(k.Progress().Flushed, replication.LSN(k.durable.Load()))",
			"return k.Progress().Flushed",
		}},
		checker: checker{"./bridge", "TestNothingIsConfirmedBeforeItsCheckpoint"},
		says:    "is confirmed, the checkpoint is at",
	},
	{
		name:    "recreated-slot-taken",
		repeats: "a slot that was dropped and recreated is taken as if nothing was missing: debezium/debezium#3970",
		edits: []edit{{
			"checkpoint/checkpoint.go",
			"case f.Start > r.From.Flushed:",
			"case false:",
		}},
		checker: checker{"./checkpoint", "TestResume"},
		says:    "the slot is ahead: <nil>, want a gap",
	},
	{
		name:    "older-copy-taken",
		repeats: "new events at LSNs that were used before the server was restored are skipped: ours",
		edits: []edit{{
			"checkpoint/checkpoint.go",
			"case max(r.From.Flushed, r.From.Commit) > f.WALEnd:",
			"case false:",
		}},
		checker: checker{"./checkpoint", "TestResume"},
		says:    "restored from an older copy: <nil>, want a gap",
	},
	{
		name:    "batch-judged-by-its-first",
		repeats: "the brokers refuse a batch, and its first event is taken for the bad one: ours",
		edits: []edit{{
			"bridge/deadletter.go",
			"	err := s.try(ctx, ev)\n",
			"	if s.note.Reason != \"\" {\n\t\treturn s.note.Reason, nil\n\t}\n\terr := s.try(ctx, ev)\n",
		}},
		checker: checker{"./bridge", "TestOnlyWhatTheBrokersRefuseNowIsMoved"},
		says:    "dead letters",
	},
	{
		name:    "keepalive-never-confirmed",
		repeats: "on an idle outbox nothing is confirmed, WAL fills the disk and a shutdown hangs: readysettech/readyset#471, rocicorp/mono#3463",
		edits: []edit{{
			"bridge/session.go",
			"s.inflight.Idle(m.WALEnd)\n",
			"\n",
		}},
		checker: checker{"./bridge", "TestIdleSlotFollowsForeignWAL"},
		says:    "WAL ends at",
	},
	{
		name:    "slot-read-once",
		repeats: "the session begins where the slot stood before it was ours",
		edits: []edit{
			{"replication/stream.go", "s := &Stream{Server: server,", "s := &Stream{Start: slot.ConfirmedFlush, Server: server,"},
			{"replication/stream.go", "s.Start, s.WALEnd = slot.ConfirmedFlush, slot.SnapshotLSN", "s.WALEnd = slot.SnapshotLSN"},
		},
		checker: checker{"./bridge", "TestASessionBeginsWhereTheSlotStandsOnceItIsOurs"},
		says:    "the session began at",
	},
	{
		name:    "acks-leader",
		repeats: "a record counts when one broker has it, and nothing tells a repeated batch",
		edits: []edit{{
			"sink/kafka.go",
			"kgo.RequiredAcks(kgo.AllISRAcks()),",
			"kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite(),",
		}},
		checker: checker{"./sink", "TestRecordsAreProducedWithAcksAllAndASequence"},
		says:    "want -1: all in-sync replicas",
	},
	{
		name:    "messages-not-asked-for",
		repeats: "logical messages are left out in silence: apache/flink-cdc#4387",
		edits: []edit{{
			"replication/stream.go",
			`, "messages 'true'"}`,
			"}",
		}},
		checker: checker{"./bridge", "TestLogicalMessagesAreAskedFor"},
		says:    "want the message between two rows",
	},
	{
		name:    "stop-waits-for-kafka",
		repeats: "a stop does not interrupt the first connection to Kafka",
		edits: []edit{{
			"bridge/session.go",
			"defer context.AfterFunc(stop, cancel)()\n",
			"\n",
		}},
		checker: checker{"./bridge", "TestAStopDoesNotWaitForKafka"},
		says:    "although there was nothing to drain",
	},
	{
		name:    "sql-connection-leaked",
		repeats: "an attempt to open the stream that fails leaves its SQL connection open",
		edits: []edit{{
			"bridge/bridge.go",
			"_ = sql.Close(ctx) // it only read\n",
			"\n",
		}},
		checker: checker{"./bridge", "TestAnAttemptThatFailsClosesItsConnections"},
		says:    "connections are still open",
	},
	{
		name:    "no-last-status-update",
		repeats: "a session that fails does not say what was acknowledged since the last status update: Trendyol/go-pq-cdc#148",
		edits: []edit{{
			"bridge/session.go",
			"_ = s.feedback.Final() // a courtesy",
			"// a courtesy",
		}},
		checker: checker{"./bridge", "TestASessionThatFailsConfirmsWhatWasAcknowledged"},
		says:    "the failed session left the slot at",
	},
	{
		name:    "no-open-timeout",
		repeats: "a Postgres that accepts connections and says nothing holds a session up for ever",
		edits: []edit{{
			"bridge/bridge.go",
			"context.WithTimeout(stop, openTimeout)",
			"context.WithCancel(stop)",
		}},
		checker: checker{"./bridge", "TestASilentPostgresDoesNotHoldUpASessionForEver"},
		says:    "a minute after Postgres answers again",
	},
	{
		name:    "due-is-forgotten",
		repeats: "what came while a produce request was on its way lingers although that is answered",
		edits: []edit{{
			"sink/kafka.go",
			"k.requests.Add(-1)\n\tk.sendDue()\n",
			"k.requests.Add(-1)\n",
		}},
		checker: checker{"./sink", "TestSendWaitsForTheRequestOnItsWay"},
		says:    "want a second request with all that came meanwhile",
	},
}
