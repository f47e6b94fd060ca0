//! The leader's lessor between its clock and the log: what has run out and what should be recorded becomes commands; what apply
//! did comes back.

use std::time::Duration;

use crate::lease::Lessor;
use crate::pb::everwatchpb::lease_remaining::Remaining;
use crate::state::applied::LeaseChange;
use crate::state::command::{Command, Kind, LeaseExpire, LeaseRemaining};
use crate::types::{Index, LeaseId, Term};

/// Leases whose end may be on its way. Carrying that out takes a quarter of a millisecond, for which writes wait; the next follow when
/// these are gone, as fast as the log takes them: more at once come to their end no sooner.
const ENDING_MAX: usize = 60;
/// Rests in one command.
const RESTS_PER_COMMAND: usize = 250;
/// Rests that one tick records.
const RECORDED_PER_TICK: usize = 2000;

/// The leases that end now, as a command. It knows of everything up to `seen`. With `again` some are given however many are on their way:
/// what was given before may be lost.
pub fn expire(lessor: &mut Lessor, term: Term, seen: Index, now: Duration, again: bool) -> Option<Command> {
    let room = if again { ENDING_MAX } else { ENDING_MAX.saturating_sub(lessor.ending()) };
    let ids: Vec<_> = lessor.expired(now, room).into_iter().map(|id| id.0).collect();
    (!ids.is_empty()).then(|| command(Kind::LeaseExpire(LeaseExpire { term: term.0, ids, seen: seen.0 })))
}

/// Whether [`expire`] may have something to give.
pub fn expires(lessor: &Lessor, now: Duration) -> bool {
    lessor.ending() < ENDING_MAX && lessor.is_due(now)
}

/// The rests that are to be in the log now. As above.
pub fn record(lessor: &mut Lessor, term: Term, seen: Index, now: Duration) -> Vec<Command> {
    let rests = lessor.checkpoints(now, RECORDED_PER_TICK);
    let commands = rests.chunks(RESTS_PER_COMMAND).map(|rests| {
        let rest = |(id, remaining_ms): &(LeaseId, u64)| Remaining { id: id.0, remaining_ms: *remaining_ms };
        let leases = rests.iter().map(rest).collect();
        Kind::LeaseRemaining(LeaseRemaining { term: term.0, leases, seen: seen.0 })
    });
    commands.map(command).collect()
}

fn command(kind: Kind) -> Command {
    Command { kind: Some(kind), ..Command::default() }
}

/// Tells the lessor what apply did.
pub fn follow(lessor: &mut Lessor, changes: Vec<LeaseChange>, now: Duration) {
    for change in changes {
        match change {
            LeaseChange::Granted { id, ttl } => lessor.granted(id, ttl, now),
            LeaseChange::Revoked { id } => lessor.revoked(id),
            LeaseChange::Remaining { id, rest_ms } => lessor.remaining_changed(id, rest_ms, now),
        }
    }
}
