package main

// ofRecovery are the bugs to plant in what recovers a lost slot.
var ofRecovery = []mutant{
	{
		name:    "open-when-lost",
		repeats: "what a snapshot does not see is taken for all that a lost slot had not sent, but for transactions that were open: ours",
		edits:   []edit{{"bridge/recovery/bound.go", "xmin, _, ok := limits(snapshot)", "_, xmin, ok := limits(snapshot)"}},
		checker: checker{"./bridge/recovery", "TestBound"},
		says:    "want 495",
	},
	{
		name:    "transaction-ids-twice",
		repeats: "a promotion gives transaction IDs a second time, and those of the old primary are compared with them: ours",
		edits:   []edit{{"bridge/recovery/bound.go", "if c.Pos.LSN > shared {", "if c.Pos.LSN > shared && shared == 0 {"}},
		checker: checker{"./bridge/recovery", "TestBound"},
		says:    "want 400",
	},
	{
		name:    "id-of-another-topic",
		repeats: "an id that another topic has is taken for published: ours",
		edits:   []edit{{"bridge/recovery/find.go", "[]byte(topic), key, id}", "[]byte(topic)[:0], key, id}"}},
		checker: checker{"./bridge/recovery", "TestIdentitiesDiffer"},
		says:    "is somebody else's",
	},
}
