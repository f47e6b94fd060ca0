//! Leases against true time.
//!
//! Nobody is told when a lease begins or ends; the history gives bounds. A lease that was granted or renewed by an
//! acknowledged call lives at least its time to live after that *call*, unless someone revokes it. Until then its keys
//! must not be deleted with it, and nobody may be told that it does not exist. After its end, when known, it exists
//! again only if someone grants it again.
//!
//! And it does not live for ever: once nothing is disturbed any more, a lease whose last possible renewal lies its time
//! to live and the promised bound back is gone, with its keys.
//!
//! Whether keys that vanished together went with their lease or were deleted by a call of unknown outcome is not decided
//! when it happens. `may_end` says, after everything has been replayed, whether the lease may have ended there: not if it
//! was used, renewed or revoked later without having been granted again.

use std::collections::{BTreeMap, BTreeSet};

use super::model::Model;
use super::order::Order;
use super::replay::Replayed;
use super::*;

const SECOND: u64 = 1_000_000_000;

/// What the history says of all leases.
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
    drift_ppm: u64,
    healed: u64,
    bound: u64,
}

#[derive(Default)]
struct Lease {
    grants: Vec<Life>,
    /// Acknowledged renewals.
    renewals: Vec<Life>,
    /// Renewals that got no answer.
    tried: Vec<Life>,
    revokes: Vec<Revoke>,
    /// Calls that met the lease alive: each between its call and its return. By time of call, once complete.
    met: Vec<Met>,
    /// Of each of them the earliest return of it and those after it.
    met_by: Vec<u64>,
    /// Return and call of those that did not find it, by return; once complete, each with the latest call so far.
    missed: Vec<(u64, u64)>,
}

/// A grant or a renewal.
struct Life {
    op: usize,
    call: u64,
    ret: Option<u64>,
    ttl_s: i64,
    /// Revision of the reply; none for a grant of unknown outcome.
    revision: Option<i64>,
}

/// A revoke that may have been carried out.
struct Revoke {
    op: usize,
    call: u64,
    /// Return and revision, if acknowledged.
    done: Option<(u64, i64)>,
}

#[derive(Clone, Copy)]
struct Met {
    op: usize,
    call: u64,
    ret: u64,
}

/// A known end of a lease: an acknowledged revoke, or keys that may have gone with it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The newest revision right after it.
    pub revision: i64,
    /// When it may have begun.
    pub call: u64,
    /// When it was certainly over.
    pub over: u64,
    /// It may have come after grants answered at the same revision: no keys went with it.
    pub bare: bool,
}

impl Leases {
    /// Collects what the history says.
    pub fn new(history: &History) -> Leases {
        let mut leases: BTreeMap<i64, Lease> = BTreeMap::new();
        for (index, op) in history.ops.iter().enumerate() {
            let life = |ttl_s, revision| Life { op: index, call: op.call, ret: op.ret, ttl_s, revision };
            let met = op.ret.map(|ret| Met { op: index, call: op.call, ret });
            match (&op.request, &op.outcome) {
                (Request::Grant { id, .. }, Outcome::Refused(text)) if text.contains("already exists") => {
                    leases.entry(*id).or_default().met.extend(met)
                }
                (
                    Request::KeepAlive { id } | Request::TimeToLive { id, .. },
                    Outcome::Ok {
                        reply: Reply::KeepAlive { ttl_s: ..=0 } | Reply::TimeToLive { ttl_s: ..0, .. }, ..
                    },
                ) => leases.entry(*id).or_default().missed.extend(met.map(|met| (met.ret, met.call))),
                (_, Outcome::Refused(_)) => {}
                (Request::Grant { .. }, Outcome::Ok { revision, reply: Reply::Grant { id, ttl_s } }) => {
                    leases.entry(*id).or_default().grants.push(life(*ttl_s, Some(*revision)))
                }
                (Request::Grant { id, ttl_s }, Outcome::Unknown) if *id != 0 => {
                    leases.entry(*id).or_default().grants.push(Life { ret: None, ..life(*ttl_s, None) })
                }
                (
                    Request::KeepAlive { id },
                    Outcome::Ok { revision, reply: Reply::KeepAlive { ttl_s: ttl_s @ 1.. } },
                ) => {
                    let lease = leases.entry(*id).or_default();
                    lease.renewals.push(life(*ttl_s, Some(*revision)));
                    lease.met.extend(met);
                }
                (Request::KeepAlive { id }, Outcome::Unknown) => {
                    leases.entry(*id).or_default().tried.push(Life { ret: None, ..life(0, None) })
                }
                (Request::TimeToLive { id, .. }, Outcome::Ok { reply: Reply::TimeToLive { ttl_s: 0.., .. }, .. }) => {
                    leases.entry(*id).or_default().met.extend(met)
                }
                (Request::Revoke { id }, outcome) => {
                    let done = match (outcome, op.ret) {
                        (Outcome::Ok { revision, .. }, Some(ret)) => Some((ret, *revision)),
                        _ => None,
                    };
                    leases.entry(*id).or_default().revokes.push(Revoke { op: index, call: op.call, done });
                }
                _ => {}
            }
        }
        for lease in leases.values_mut() {
            lease.met.sort_unstable_by_key(|met| met.call);
            let mut earliest = u64::MAX;
            let mut met_by: Vec<u64> = Vec::with_capacity(lease.met.len());
            for met in lease.met.iter().rev() {
                earliest = earliest.min(met.ret);
                met_by.push(earliest);
            }
            met_by.reverse();
            lease.met_by = met_by;
            lease.missed.sort_unstable();
            let mut latest = 0;
            for (_, call) in &mut lease.missed {
                latest = latest.max(*call);
                *call = latest;
            }
        }
        let (healed, bound) = match history.healed {
            Some(healed) if history.lease_bound > 0 => (healed, history.lease_bound),
            _ => (u64::MAX, 0),
        };
        Leases { leases, drift_ppm: history.drift_ppm, healed, bound }
    }

    /// May the lease have expired by `by`, having ended not before `not_before`? If not, the instant until which it had to live.
    pub fn may_expire(&self, id: i64, not_before: u64, by: u64) -> Result<(), u64> {
        let Some(lease) = self.leases.get(&id) else { return Ok(()) };
        let deadline = |life: &Life| self.deadline(life);
        let until = match lease.grants.as_slice() {
            [] => 0,
            // One life only: no renewal can belong to another.
            [grant] => lease.renewals.iter().map(deadline).max().unwrap_or(0).max(deadline(grant)),
            // Several: only what was certainly before the end, and not if another end may lie in between.
            grants => {
                let least = grants.iter().map(deadline).min().unwrap_or(0);
                if lease.revokes.iter().any(|revoke| revoke.call < by) {
                    least
                } else {
                    let lives = grants.iter().chain(&lease.renewals);
                    let before =
                        lives.filter(|life| life.revision.is_some() && life.ret.is_some_and(|r| r < not_before));
                    before.map(deadline).max().unwrap_or(0).max(least)
                }
            }
        };
        if by < until { Err(until) } else { Ok(()) }
    }

    /// Until when the lease lives for certain, as far as was known at `call`; no revoke may touch it before `ret`.
    fn certain_until(&self, id: i64, call: u64, ret: u64) -> u64 {
        let Some(lease) = self.leases.get(&id) else { return 0 };
        if lease.revokes.iter().any(|revoke| revoke.call <= ret) {
            return 0;
        }
        let lives = lease.grants.iter().chain(&lease.renewals);
        let acknowledged = lives.filter(|life| life.revision.is_some() && life.ret.is_some_and(|r| r < call));
        acknowledged.map(|life| self.deadline(life)).max().unwrap_or(0)
    }

    /// May the lease exist for a write that makes `revision` and was seen by `by`, as far as revokes and grants tell?
    pub fn may_exist(&self, id: i64, revision: i64, by: u64) -> bool {
        let Some(lease) = self.leases.get(&id) else { return false };
        let ends: Vec<End> = lease.revoked().filter(|end| end.revision < revision).collect();
        let in_time = |grant: &&Life| grant.call <= by && grant.revision.is_none_or(|granted| granted < revision);
        granted_after(lease.grants.iter().filter(in_time), &ends)
    }

    /// May the lease exist for an acknowledged revoke, as far as the revokes before it and grants tell?
    pub fn may_revoke(&self, id: i64, revision: i64, by: u64) -> bool {
        let Some(lease) = self.leases.get(&id) else { return false };
        let ends: Vec<End> = lease.revoked().filter(|end| end.revision < revision).collect();
        let in_time = |grant: &&Life| grant.call <= by && grant.revision.is_none_or(|granted| granted <= revision);
        granted_after(lease.grants.iter().filter(in_time), &ends)
    }

    /// Has anybody tried to grant it?
    pub fn known(&self, id: i64) -> bool {
        self.leases.get(&id).is_some_and(|lease| !lease.grants.is_empty())
    }

    /// Revokes of the lease without an answer that may have been carried out at that revision, seen by `by`.
    pub fn unanswered_revokes(&self, id: i64, revision: i64, by: u64, floors: &[i64]) -> Vec<usize> {
        let revokes = self.leases.get(&id).map_or(&[][..], |lease| &lease.revokes);
        let may = |revoke: &&Revoke| revoke.done.is_none() && revoke.call <= by && floors[revoke.op] < revision;
        revokes.iter().filter(may).map(|revoke| revoke.op).collect()
    }

    /// May the lease have ended there, for all that happened to it later? `used` is the revision, and the time at which it
    /// was seen, of the next write after it that put a key on the lease.
    pub fn may_end(&self, id: i64, end: End, used: Option<(i64, u64)>) -> Result<(), String> {
        let Some(lease) = self.leases.get(&id) else { return Ok(()) };
        let again = |by: u64, below: i64| {
            lease.grants.iter().any(|grant| {
                grant.call <= by && grant.revision.is_none_or(|granted| granted < below) && may_follow(grant, &end)
            })
        };
        if let Some((revision, by)) = used.filter(|(revision, by)| !again(*by, *revision)) {
            return Err(format!("was used at revision {revision} (seen at {by})"));
        }
        let later = lease.met.partition_point(|met| met.call <= end.over);
        if let Some(by) = lease.met_by.get(later).filter(|by| !again(**by, i64::MAX)) {
            return Err(format!("was met after {} and by {by}", end.over));
        }
        let later = lease.revoked().filter(|revoke| revoke.revision > end.revision);
        if let Some(revoke) = later.into_iter().find(|revoke| !again(revoke.over, revoke.revision + 1)) {
            return Err(format!("was revoked at revision {}", revoke.revision));
        }
        Ok(())
    }

    /// Calls that met a lease after it had been revoked or not been found, without its having been granted again; and more revokes than grants.
    pub fn check_revokes(&self) -> Result<(), Violation> {
        for (id, lease) in &self.leases {
            let mut revokes: Vec<End> = lease.revoked().collect();
            if revokes.len() > lease.grants.len() {
                let what = format!("lease {id} granted {} times, ended: {revokes:?}", lease.grants.len());
                return Err(general("lease", what));
            }
            revokes.sort_unstable_by_key(|revoke| revoke.over);
            for met in &lease.met {
                let over = &revokes[..revokes.partition_point(|revoke| revoke.over < met.call)];
                if !granted_after(lease.grants.iter().filter(|grant| grant.call <= met.ret), over) {
                    let what = format!("lease {id} met at {}, but not granted since it was revoked", met.call);
                    return Err(broken("lease", what, met.op));
                }
                let before = lease.missed.partition_point(|(ret, _)| *ret < met.call);
                let Some((_, missed)) = lease.missed[..before].last() else { continue };
                let again = |grant: &Life| grant.call <= met.ret && grant.ret.is_none_or(|ret| ret >= *missed);
                if !lease.grants.iter().any(again) {
                    let what = format!("lease {id} met at {}, but not granted since it was missed", met.call);
                    return Err(broken("lease", what, met.op));
                }
            }
        }
        Ok(())
    }

    /// Refusals and answers that say of a lease that it does not exist while it must, or that it does while it must not,
    /// or give it another time than it has.
    pub fn check_answers(&self, history: &History) -> Result<(), Violation> {
        self.check_revokes()?;
        for (index, op) in history.ops.iter().enumerate() {
            let Some(ret) = op.ret else { continue };
            let not_found = match &op.outcome {
                Outcome::Refused(text) => text.contains("lease not found"),
                Outcome::Ok { reply: Reply::KeepAlive { ttl_s }, .. } => *ttl_s <= 0,
                Outcome::Ok { reply: Reply::TimeToLive { ttl_s, .. }, .. } => *ttl_s < 0,
                _ => false,
            };
            if not_found {
                let mut named = match &op.request {
                    Request::Put { lease, .. } => vec![*lease],
                    Request::Revoke { id } | Request::KeepAlive { id } | Request::TimeToLive { id, .. } => vec![*id],
                    Request::Txn { then, otherwise, .. } => {
                        then.iter().chain(otherwise).flat_map(TxnOp::all).filter_map(put_lease).collect()
                    }
                    _ => Vec::new(),
                };
                named.retain(|id| *id != 0);
                if named.iter().all(|id| ret < self.certain_until(*id, op.call, ret)) {
                    return Err(broken("lease", format!("leases {named:?} live, but were not found"), index));
                }
            }
            if let Outcome::Ok { reply: Reply::Grant { id, .. }, .. } = &op.outcome
                && ret < self.certain_until(*id, op.call, ret)
            {
                return Err(broken("lease", format!("lease {id} was granted while it lived"), index));
            }
            if let (Request::TimeToLive { id, .. }, Outcome::Ok { reply, .. }) = (&op.request, &op.outcome) {
                self.check_time(*id, op, ret, reply).map_err(|what| broken("ttl", what, index))?;
            }
        }
        Ok(())
    }

    /// What is left of a lease: not more than was granted, not less than is certain, rounded down to seconds.
    fn check_time(&self, id: i64, op: &Op, ret: u64, reply: &Reply) -> Result<(), String> {
        let Reply::TimeToLive { granted_ttl_s, ttl_s, keys } = reply else { return Err(format!("{reply:?}")) };
        if *ttl_s < 0 {
            let empty = *ttl_s == -1 && *granted_ttl_s == 0 && keys.is_empty();
            return if empty { Ok(()) } else { Err(format!("not there, and yet {reply:?}")) };
        }
        let grants = self.leases.get(&id).map_or(&[][..], |lease| &lease.grants);
        let as_granted = |grant: &Life| match grant.revision {
            Some(_) => grant.ttl_s == *granted_ttl_s,
            None => grant.ttl_s <= *granted_ttl_s, // The server may have granted more than was asked for.
        };
        if !grants.iter().any(|grant| grant.call <= ret && as_granted(grant)) {
            return Err(format!("lease {id} was never granted for {granted_ttl_s} s"));
        }
        let certain = (self.certain_until(id, op.call, ret).saturating_sub(ret) / SECOND) as i64;
        if *ttl_s > *granted_ttl_s || *ttl_s < certain {
            return Err(format!("{ttl_s} s left of {granted_ttl_s}, of which {certain} are certain"));
        }
        Ok(())
    }

    /// Leases that were still met, or still had keys, when they had to be over; how many there were that had to be over by
    /// the end of the history.
    pub fn check_over(&self, history: &History, model: &Model) -> Result<usize, Violation> {
        if self.bound == 0 {
            return Ok(0);
        }
        for (id, lease) in &self.leases {
            for met in lease.met.iter().filter(|met| met.call > self.healed) {
                let due = self.due(lease, met.ret, met.op);
                if met.call > due {
                    let what = format!("lease {id} had to be over by {due}, was met at {}", met.call);
                    return Err(broken("lease late", what, met.op));
                }
            }
        }
        let due: BTreeMap<i64, u64> =
            self.leases.iter().map(|(id, lease)| (*id, self.due(lease, u64::MAX, usize::MAX))).collect();
        let late = |id: &i64, at: u64| *id != 0 && due.get(id).is_some_and(|due| at > *due);
        for (index, op) in history.ops.iter().enumerate().filter(|(_, op)| op.call > self.healed) {
            let Outcome::Ok { reply, .. } = &op.outcome else { continue };
            let used: Vec<i64> = match (&op.request, reply) {
                // A read of the present; others may show what was.
                (Request::Range { revision: ..=0, serializable: false, .. }, Reply::Range { kvs, .. }) => {
                    kvs.iter().map(|kv| kv.lease).collect()
                }
                (Request::Put { lease, .. }, _) => vec![*lease],
                (Request::Revoke { id }, _) => vec![*id],
                (Request::Txn { then, otherwise, .. }, Reply::Txn { succeeded, replies }) => {
                    let ops = if *succeeded { then } else { otherwise };
                    let done = ops.iter().zip(replies).flat_map(|(op, reply)| op.done(reply));
                    done.filter_map(put_lease).collect()
                }
                _ => continue,
            };
            if let Some(id) = used.into_iter().find(|id| late(id, op.call)) {
                let what = format!("lease {id} had to be over by {}, was there at {}", due[&id], op.call);
                return Err(broken("lease late", what, index));
            }
        }
        if let Some(id) = model.leases().find(|id| late(id, history.end)) {
            let what = format!("lease {id} had to be over by {}, has keys at the end, {}", due[&id], history.end);
            return Err(general("lease late", what));
        }
        Ok(self.leases.iter().filter(|(id, lease)| !lease.grants.is_empty() && late(id, history.end)).count())
    }

    /// When the lease has to be over, unless a call made after `until` (or that one) gave it more time.
    fn due(&self, lease: &Lease, until: u64, other_than: usize) -> u64 {
        let lives = lease.grants.iter().chain(&lease.renewals).chain(&lease.tried);
        let happened = |life: &Life| match (life.revision, life.ret) {
            (Some(_), Some(ret)) => ret,
            // Without an answer: some time later.
            _ => life.call.max(self.healed).saturating_add(self.bound),
        };
        let earlier = lives.filter(|life| life.call <= until && life.op != other_than);
        // The leader that came last when all was healed gave every lease its full time.
        let last = earlier.map(happened).max().unwrap_or(0).max(self.healed);
        let ttl = lease.grants.iter().chain(&lease.renewals).map(|life| life.ttl_s).max().unwrap_or(0);
        let ttl = u64::try_from(ttl).unwrap_or(0).saturating_mul(SECOND);
        let slow = (u128::from(ttl) * u128::from(self.drift_ppm) / 1_000_000) as u64;
        last.saturating_add(ttl).saturating_add(slow).saturating_add(self.bound)
    }

    /// The keys that answers listed of a lease: those it had at some moment of the call, no older than what was seen before.
    pub fn check_keys(&self, history: &History, order: &Order, replayed: &Replayed) -> Result<(), Violation> {
        let mut asked: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (index, op) in history.ops.iter().enumerate() {
            if let (Request::TimeToLive { id, keys: true }, Outcome::Ok { reply, .. }) = (&op.request, &op.outcome)
                && matches!(reply, Reply::TimeToLive { ttl_s: 0.., .. })
            {
                asked.entry(*id).or_default().push(index);
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        // Of each lease the revisions that changed its keys.
        type Change<'a> = (i64, &'a [u8], bool);
        let mut changes: BTreeMap<i64, Vec<Change<'_>>> = BTreeMap::new();
        for event in (2..=replayed.model.revision()).flat_map(|revision| replayed.model.events(revision)) {
            let mut note = |id: i64, on: bool| {
                if asked.contains_key(&id) {
                    changes.entry(id).or_default().push((event.kv.mod_revision, &event.kv.key, on));
                }
            };
            event.prev.iter().for_each(|prev| note(prev.lease, false));
            note(event.kv.lease, true);
        }
        for (id, asked) in asked {
            let changes = changes.remove(&id).unwrap_or_default();
            for index in asked {
                let op = &history.ops[index];
                let Outcome::Ok { reply: Reply::TimeToLive { keys: listed, .. }, .. } = &op.outcome else { continue };
                let listed: BTreeSet<&[u8]> = listed.iter().map(Vec::as_slice).collect();
                let newest = replayed.newest_by(op.ret.unwrap_or(u64::MAX));
                let mut has: BTreeSet<&[u8]> = BTreeSet::new();
                let mut found = false;
                let mut at = 0;
                while at <= changes.len() && !found {
                    // All changes of one revision at once.
                    let next = changes.get(at).map_or(i64::MAX, |(revision, _, _)| *revision);
                    found = next > order.floors[index] && has == listed;
                    if next > newest {
                        break;
                    }
                    for (_, key, on) in changes[at..].iter().take_while(|(revision, _, _)| *revision == next) {
                        if *on {
                            has.insert(key)
                        } else {
                            has.remove(key)
                        };
                        at += 1;
                    }
                }
                if !found {
                    let what = format!(
                        "lease {id} listed {listed:?}, not its keys between {} and {newest}",
                        order.floors[index]
                    );
                    return Err(broken("ttl", what, index));
                }
            }
        }
        Ok(())
    }

    fn deadline(&self, life: &Life) -> u64 {
        let ttl = u64::try_from(life.ttl_s).unwrap_or(0).saturating_mul(SECOND);
        let early = (u128::from(ttl) * u128::from(self.drift_ppm) / 1_000_000) as u64;
        life.call.saturating_add(ttl - early.min(ttl))
    }
}

impl Lease {
    /// Ends that are certain.
    fn revoked(&self) -> impl Iterator<Item = End> {
        self.revokes.iter().filter_map(|revoke| {
            let (over, revision) = revoke.done?;
            Some(End { revision, call: revoke.call, over, bare: true })
        })
    }
}

/// The lease a put in a transaction names, if any.
pub fn put_lease(op: &TxnOp) -> Option<i64> {
    match op {
        TxnOp::Put { lease, .. } if *lease != 0 => Some(*lease),
        _ => None,
    }
}

/// May one of the grants come after all those ends, of which each took a grant of its own?
fn granted_after<'a>(grants: impl Iterator<Item = &'a Life>, ends: &[End]) -> bool {
    let grants: Vec<&Life> = grants.collect();
    grants.len() > ends.len() && grants.iter().any(|grant| ends.iter().all(|end| may_follow(grant, end)))
}

/// May the grant come after that end?
fn may_follow(grant: &Life, end: &End) -> bool {
    match grant.revision {
        None => true,
        Some(granted) if granted == end.revision && end.bare => grant.ret.is_none_or(|ret| ret >= end.call),
        Some(granted) => granted >= end.revision,
    }
}
