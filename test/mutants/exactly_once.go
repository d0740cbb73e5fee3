package main

// ofTransactions are the bugs to plant in delivery exactly once, takeovers and failover.
var ofTransactions = []mutant{
	{
		name:    "commit-without-settling",
		repeats: "a transaction is committed although the brokers refused one of its events: Kafka's own clients leave that to the caller",
		edits: []edit{
			{"sink/transaction.go", "if err := k.Flush(ctx); err != nil {\n\t\treturn err\n\t}", "_ = k.Flush(ctx)"},
			{"sink/transaction.go", "published != acknowledged", "published < acknowledged"},
		},
		checker: checker{"./bridge", "TestExactlyOnceHaltsBeforePoison"},
		says:    "are committed, want",
	},
	{
		name:    "former-producer",
		repeats: "kgo becomes another producer in the middle of a transaction, and what the first one has published is lost under a checkpoint",
		edits: []edit{{
			"checkpoint/events.go",
			"err == nil && now != c.producer {",
			"err == nil && now == (producer{}) {",
		}},
		checker: checker{"./checkpoint", "TestEventsOfAFormerProducerAreNotCovered"},
		says:    "got <nil>, want TRANSACTION_ABORTABLE",
	},
	{
		name:    "ahead-of-what-was-published",
		repeats: "a checkpoint covers an event that is not in its transaction",
		edits: []edit{{
			"replication/inflight.go",
			"f.run.index, f.index, f.added = index+1, index+1, f.commit",
			"f.run.index, f.index, f.added = index+1, index+2, f.commit",
		}},
		checker: checker{"./replication", "TestInflightAheadIsWhatThereWillBe"},
		says:    "with one:",
	},
	{
		name:    "fenced-by-its-own-name",
		repeats: "the transactional ID has what tells one instance from another, a host's name for one, so that nobody fences who was frozen",
		edits: []edit{{
			"bridge/checkpoint.go",
			"\"walferry/\" + systemID + \"/\" + key,",
			"\"walferry/\" + systemID + \"/\" + key + \"/\" + string(o.Database.DSN),",
		}},
		checker: checker{"./test/sim", "TestZombies"},
		says:    "duplicates:",
	},
	{
		name:    "read-before-fencing",
		repeats: "the checkpoint is read before whoever had it is fenced, and may write another one meanwhile",
		edits: []edit{
			{
				"checkpoint/store.go",
				"if c.cfg.Producer != nil || c.cfg.IsEvents != nil {\n\t\tif c.abilities",
				"if c.values, err = Read(ctx, c.cfg); err != nil {\n\t\treturn err\n\t}\n\tvalues := c.values\n\tc.values = nil\n\tif c.cfg.Producer != nil || c.cfg.IsEvents != nil {\n\t\tif c.abilities",
			},
			{
				"checkpoint/store.go",
				"c.values, err = c.cfg.read(ctx, c.client, c.last, (*contents).settled)",
				"c.values = values",
			},
		},
		checker: checker{"./test/sim", "TestZombies"},
		says:    "order:",
	},
	{
		name:    "marker-of-one-transaction",
		repeats: "a marker is taken for that of the writer's own transaction alone, and one that the brokers have left open before it is not read",
		edits: []edit{{
			"checkpoint/contents.go",
			"c.end(r) // also of",
			"// also of",
		}},
		checker: checker{"./checkpoint", "TestAMarkerEndsWhatHungBeforeIt"},
		says:    "the checkpoint is",
	},
	{
		name:    "gap-of-the-past",
		repeats: "what was found before an instance was frozen is compared with its successor's checkpoint, and looks like a gap",
		edits: []edit{{
			"bridge/checkpoint.go",
			"err := s.holdsSlot(ctx)\n\t\tif errors.Is",
			"err := error(nil)\n\t\tif errors.Is",
		}},
		checker: checker{"./bridge", "TestAFrozenInstanceSeesNoGap"},
		says:    "restored from an older copy",
	},
	{
		name:    "published-into-a-commit",
		repeats: "what is published while a transaction is committed goes to the client, which has none for it",
		edits:   []edit{{"sink/transaction.go", "return t.cut\n}", "return false\n}"}},
		checker: checker{"./bridge", "TestExactlyOnceReadsOnWhileItCommits"},
		says:    "events are",
	},
	{
		name:    "old-socket",
		repeats: "an instance that was frozen publishes what it finds in its socket, behind its successor: bridges that trust a connection",
		edits:   []edit{{"replication/stream.go", "return timeout > 0 && at", "return timeout < 0 && at"}},
		checker: checker{"./replication", "TestWhatComesBehindAPauseIsNotOurs"},
		says:    "stood still",
	},
	{
		name:    "behind-anybody's-transaction",
		repeats: "a reader of what is committed waits behind the open transaction of somebody who is gone",
		edits:   []edit{{"checkpoint/store.go", "kgo.KeepControlRecords(),", "kgo.KeepControlRecords(), kgo.FetchIsolationLevel(kgo.ReadCommitted()),"}},
		checker: checker{"./checkpoint", "TestWhatIsNotSettledHoldsNobodyUp"},
		says:    "read checkpoints of topic",
	},
	{
		name:    "own-error-unheard",
		repeats: "a walsender that fails as soon as it decodes is taken for one whose slot somebody took, and tried again for ever: ours",
		edits:   []edit{{"replication/stream.go", "case slot.ActivePID != \"\" && !s.holds(slot):", "case !s.holds(slot):"}},
		checker: checker{"./bridge", "TestAWalsenderThatFailsAtOnceIsHeard"},
		says:    "it was tried again",
	},
}
