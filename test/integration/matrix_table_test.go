//go:build faults

package integration

import "testing"

// matrix returns the rows that this suite runs, in their order.
func matrix() []matrixRow {
	return []matrixRow{
		{1, "kill -9 of the bridge, 50 times under load", "C1-C4 C7 C8 C10", killBridge},
		{2, "SIGTERM under load, 10 times", "C1-C4 C7 C10", terminateBridge},
		{3, "SIGSTOP of the bridge, a standby takes over, SIGCONT, 10 times", "C1-C4 C7 C10 log timer", freezeLeader},
		{4, "two bridges started together, kill -9 of the one that runs, 10 times", "C1-C4 C7 C10 log timer", twoBridges},
		{5, "fast restarts of Postgres 14 to 18 under load, 3 of each", "C1-C4 C7 C8 C10 timer", restartPostgres},
		{6, "crash loop of Postgres 14, 16 and 18, 10 of each", "C1-C4 C7 C8 C10", crashPostgres},
		{7, "fast stop of Postgres 14 to 18 while Kafka is down", "timer C1-C4 C7 C10", stopPostgresWithoutKafka},
		{8, "pg_terminate_backend of the walsender each second for 60 s", "C1-C4 C7 C9 C10", terminateWalsender},
		{9, "primary killed, standby with the slot promoted, Postgres 17 and 18", "C1-C4 C7 C10", failOver},
		{10, "the standby that the walsender waits for is down", "C1-C4 C7 C10 state log", loseStandby},
		{11, "a standby that lacks WAL is promoted, Postgres 17 and 18", "C1-C4 C7 C10 log", loseWAL},
		{12, "promotion of a standby without the slot, recover, Postgres 14-16 and 18", "exit code, no confirmation, C1", promoteWithoutSlot},
		{13, "slot dropped and created again, or advanced, Postgres 14 to 18", "exit code, no confirmation", recreateSlot},
		{14, "slot lost by max_slot_wal_keep_size, in use and not", "exit code, state, log", together(map[string]func(*testing.T){"slot": TestSlotIsLost})},
		{15, "idle_replication_slot_timeout of Postgres 18", "state", idleTimeout},
		{16, "publication dropped and created again, Postgres 14 to 18", "exit code, no confirmation", changePublication},
		{17, "ALTER PUBLICATION DROP TABLE, Postgres 14 to 18", "exit code, timer", dropTable},
		{18, "network before Postgres: latency, 50 kB/s, slices, resets, black hole", "C1-C4 C7 C9 C10", networkBeforePostgres},
		{19, "network before Kafka: the same, and cut behind Produce and EndTxn", "C1-C4 C7 C10", networkBeforeKafka},
		{20, "kill -9 of partition leaders, rolling restart of 3 brokers", "C1-C4 C7 C9 C10", loseLeaders},
		{21, "2 of 3 brokers down for 60 s", "C1-C4 C7 C9 C10 RSS", loseMajority},
		{22, "all brokers down for 2 minutes", "C1-C4 C7 C9 C10 RSS", loseKafka},
		{23, "transaction coordinator kill -9, 3 times; SIGSTOP beyond the transaction's timeout", "C1-C4 C7 C9 C10", loseCoordinator},
		{24, "topic deleted, and deleted and created again, under load", "C1 C4 state", recreateTopic},
		{25, "topic missing at the start", "exit code, state", missingTopic},
		{26, "an event in the middle that only the brokers refuse: halt", "C1-C4 C7 C8 C10 exit code", messageTooLarge},
		{27, "ACL of topics, of the transactional ID taken away and given back", "C1-C4 C7 C8 C10", loseACL},
		{28, "checkpoint topic deleted, checkpoint corrupted", "exit code, no confirmation", loseCheckpoint},
		{29, "every error code of Kafka on Produce, before and after the write", "C1-C4 C7 C10", everyErrorOfKafka},
		{30, "1 GB in one transaction, 100 k transactions, COPY of 500 k; kill -9", "C1-C4 RSS", largeTransactions},
		{31, "10 k aborted savepoints, large rollbacks, two phases", "C1 C2 C7", rollbacks},
		{32, "adjacent commits, group commits, kill -9 after acknowledgements", "C1-C4 C7 C10", groupCommits},
		{33, "200 kB that compress, small transactions behind them, kill -9", "C1 C4 C7", compressedPayloads},
		{34, "DDL while it runs and in transactions", "C1 C7", together(map[string]func(*testing.T){
			"in a transaction": TestDDLInATransaction, "columns go": TestMappedColumnsGoAway, "a column goes": TestAMappedColumnGoesAwayInATransaction,
			"partitions": TestPartitionsComeAndGoWhileRunning, "attached with rows": TestATableWithRowsBecomesAPartition,
			"partitions gone": TestPartitionsThatAreGoneBeforeTheirRowsAreRead, "renamed": TestTableIsRenamed,
			"renamed while running": TestTableIsRenamedWhileRunning, "truncate": TestOnlyInsertsAreEvents,
		})},
		{35, "idle outbox, 2 GiB of WAL elsewhere", "slot lag, timer", idleOutbox},
		{36, "a transaction open for 2 minutes", "metrics C1-C4 C7 C9 C10", openTransaction},
		{37, "logical messages of every kind, restarts in between", "C1-C3 C7", messages},
		{38, "values of every kind", "C7", values},
		{39, "keys and topics of every kind", "state, C1", together(map[string]func(*testing.T){"poison": TestPoison})},
		{42, "cold start 2 GiB behind", "C1 C4 C9", coldStart},
		{46, "planned switchover under load, Postgres 18", "C1-C4 C7 C10", switchOver},
		{47, "the old primary comes back and takes writes, Postgres 18", "exit code, no confirmation", returnOfThePrimary},
		{48, "slot lost 20 times under load, recover, Postgres 14 and 18", "C1-C4 C7", loseSlots},
	}
}
