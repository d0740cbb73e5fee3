package main

// ofReconcile are bugs of `walferry reconcile`.
var ofReconcile = []mutant{
	{
		name:    "expired-is-missing",
		repeats: "a row whose record has expired is called missing, and published again: ours",
		edits:   []edit{{"bridge/reconcile/compare.go", "certain := t.holds(s.row.partition, xid)", "certain := t.holds(s.row.partition, xid) || true"}},
		checker: checker{"./bridge/reconcile", "TestAHealthyPastHasNoDefectsButRepetitions"},
		says:    "not there: missing",
	},
	{
		name:    "fewer-partitions",
		repeats: "a record that lies where its key belonged when there were fewer partitions is looked for where it belongs now: ours",
		edits:   []edit{{"bridge/reconcile/certain.go", "case xid >= t.behind:", "case true:"}},
		checker: checker{"./bridge/reconcile", "TestAHealthyPastHasNoDefectsButRepetitions"},
		says:    "not there: missing",
	},
	{
		name:    "updated-is-new",
		repeats: "an old row that was updated is taken for one that was just written, and published again: ours",
		edits:   []edit{{"bridge/reconcile/compare.go", "if source.doubted {", "if false {"}},
		checker: checker{"./bridge/reconcile", "TestComparison"},
		says:    "missing 2 at",
	},
	{
		name:    "repetitions-out-of-order",
		repeats: "a repeated stretch of the stream is taken for events out of order: ours",
		edits: []edit{
			{"bridge/reconcile/compare.go", "k.repaired || e.places > 0 && e.copy.row.partition == k.partition {", "k.repaired {"},
			{"bridge/reconcile/compare.go", "\te.places++\n", "\te.places = 1\n"},
		},
		checker: checker{"./bridge/reconcile", "TestAHealthyPastHasNoDefectsButRepetitions"},
		says:    "not there: out_of_order",
	},
	{
		name:    "lengths-only",
		repeats: "records are compared by their lengths: ours",
		edits:   []edit{{"bridge/reconcile/entry.go", "h.number(length)\n\t_, _ = h.h.Write(part)", "h.number(length)"}},
		checker: checker{"./bridge/reconcile", "TestHashes"},
		says:    " is ",
	},
	{
		name:    "run-cut-off",
		repeats: "a file of sorted records that is too short is taken for its end: ours",
		edits:   []edit{{"internal/spill/spill.go", "err = io.ErrUnexpectedEOF", "err = io.EOF"}},
		checker: checker{"./internal/spill", "TestErrors"},
		says:    "of a file that was cut Next returns",
	},
}
