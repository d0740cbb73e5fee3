package recovery

import "context"

// promise says, before anything is done, what can be proved and what not.
func (r *recovery) promise(context.Context) error {
	if r.reason != "" {
		r.Say(r.reason)
	}
	which := "that the slot has not sent"
	if r.backfill {
		which = "that they hold now"
	}
	r.Say("will publish the rows of the outbox tables " + which + ", but for those that a topic has: none of them is lost")
	r.Say("cannot publish rows that were deleted before this, in the transaction that wrote them or later" + r.messages() + ": only the WAL had them")
	if r.kept != nil {
		r.Say("keeps the slot, which stands at " + r.slot.ConfirmedFlush.String() + ": what it will still send of the rows that are published now comes a second time")
	}
	r.Say(r.bound.String())
	r.Say("rows that were updated since they were published count as new, and so do events that their topics have dropped or compacted away: both are sent again")
	return nil
}

func (r *recovery) messages() string {
	if r.Database.Messages.Prefix == "" {
		return ""
	}
	return ", or logical messages"
}
