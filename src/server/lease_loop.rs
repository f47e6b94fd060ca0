//! The leader's lessor between its clock and the log: what has run out and what should be recorded becomes commands; what apply
//! did comes back.

use std::time::Duration;

use crate::lease::Lessor;
use crate::pb::everwatchpb::lease_remaining::Remaining;
use crate::state::applied::LeaseChange;
use crate::state::command::{Command, Kind, LeaseExpire, LeaseRemaining};
use crate::types::{Index, Term};

/// Leases that one tick lets expire. The rest comes with the next tick: a mass expiry must not hold up writes.
const EXPIRED_PER_TICK: usize = 2000;
/// Leases in one command.
const LEASES_PER_COMMAND: usize = 250;
/// Rests that one tick records.
const RECORDED_PER_TICK: usize = 2000;

/// What the lessor wants in the log now. It knows of everything up to `seen`.
pub fn turn(lessor: &mut Lessor, term: Term, seen: Index, now: Duration) -> Vec<Command> {
    let (term, seen) = (term.0, seen.0);
    let expired = lessor.expired(now, EXPIRED_PER_TICK);
    let expired = expired
        .chunks(LEASES_PER_COMMAND)
        .map(|ids| Kind::LeaseExpire(LeaseExpire { term, ids: ids.iter().map(|id| id.0).collect(), seen }));
    let rests = lessor.checkpoints(now, RECORDED_PER_TICK);
    let rests = rests.chunks(LEASES_PER_COMMAND).map(|rests| {
        let leases =
            rests.iter().map(|(id, remaining_ms)| Remaining { id: id.0, remaining_ms: *remaining_ms }).collect();
        Kind::LeaseRemaining(LeaseRemaining { term, leases, seen })
    });
    expired.chain(rests).map(|kind| Command { kind: Some(kind), ..Command::default() }).collect()
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
