//! Leases against true time.
//!
//! Nobody is told when a lease begins or ends; the history gives bounds. A lease that was granted or renewed by an
//! acknowledged call lives at least its time to live after that *call*, unless someone revokes it. Until then its keys
//! must not be deleted with it, and nobody may be told that it does not exist. After its end, when known, it exists
//! again only if someone grants it again.

use std::collections::BTreeMap;

use super::*;

const SECOND: u64 = 1_000_000_000;

/// What the history says of all leases.
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
    drift_ppm: u64,
}

#[derive(Default)]
struct Lease {
    grants: Vec<Life>,
    renewals: Vec<Life>,
    /// Calls of revokes that may have been carried out.
    revokes: Vec<u64>,
}

/// A grant or a renewal.
struct Life {
    call: u64,
    ret: Option<u64>,
    ttl_s: i64,
    /// Revision of the reply; none for a grant of unknown outcome.
    revision: Option<i64>,
}

/// A known end of a lease.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The newest revision right after it.
    pub revision: i64,
    /// If keys went with it it *is* that revision; else it happened between that and the next.
    pub with_keys: bool,
    /// When the revoke was called; 0 if it expired.
    pub call: u64,
    /// When it was certainly over.
    pub over: u64,
}

impl Leases {
    /// Collects what the history says.
    pub fn new(history: &History) -> Leases {
        let mut leases: BTreeMap<i64, Lease> = BTreeMap::new();
        for op in &history.ops {
            let life = |ttl_s, revision| Life { call: op.call, ret: op.ret, ttl_s, revision };
            match (&op.request, &op.outcome) {
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
                ) => leases.entry(*id).or_default().renewals.push(life(*ttl_s, Some(*revision))),
                (Request::Revoke { id }, _) => leases.entry(*id).or_default().revokes.push(op.call),
                _ => {}
            }
        }
        Leases { leases, drift_ppm: history.drift_ppm }
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
                if lease.revokes.iter().any(|call| *call < by) {
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

    /// Does the lease exist for certain from `call` to `ret`?
    pub fn certain(&self, id: i64, call: u64, ret: u64) -> bool {
        let Some(lease) = self.leases.get(&id) else { return false };
        let lives = lease.grants.iter().chain(&lease.renewals);
        let acknowledged = lives.filter(|life| life.revision.is_some() && life.ret.is_some_and(|r| r < call));
        acknowledged.map(|life| self.deadline(life)).max().is_some_and(|until| ret < until)
            && !lease.revokes.iter().any(|revoke| *revoke <= ret)
    }

    /// May the lease exist for a write that makes `revision` and was seen by `by`, after these ends?
    pub fn may_exist(&self, id: i64, revision: i64, by: u64, ends: &[End]) -> bool {
        let Some(lease) = self.leases.get(&id) else { return false };
        let ends: Vec<&End> = ends.iter().filter(|end| end.revision < revision).collect();
        let in_time = |grant: &&Life| grant.call <= by && grant.revision.is_none_or(|granted| granted < revision);
        granted_after(lease.grants.iter().filter(in_time), &ends)
    }

    /// How often the lease may have been granted.
    pub fn grants(&self, id: i64) -> usize {
        self.leases.get(&id).map_or(0, |lease| lease.grants.len())
    }

    /// Renewals that were acknowledged though the lease had ended and had not been granted again.
    pub fn check_renewals(&self, ends: &BTreeMap<i64, Vec<End>>) -> Result<(), Violation> {
        for (id, lease) in &self.leases {
            for renewal in &lease.renewals {
                let by = renewal.ret.unwrap_or(u64::MAX);
                let over = ends.get(id).into_iter().flatten().filter(|end| end.over < renewal.call);
                let over: Vec<&End> = over.collect();
                let grants = lease.grants.iter().filter(|grant| grant.call <= by);
                if !granted_after(grants, &over) {
                    let what = format!("lease {id} renewed at {}, but not granted since its end", renewal.call);
                    return Err(Violation { rule: "lease", what, op: None, watch: None });
                }
            }
        }
        Ok(())
    }

    /// Refusals and renewals that say of a lease that it does not exist while it must.
    pub fn check_refusals(&self, history: &History) -> Result<(), Violation> {
        for (index, op) in history.ops.iter().enumerate() {
            let Some(ret) = op.ret else { continue };
            let not_found = match &op.outcome {
                Outcome::Refused(text) => text.contains("lease not found"),
                Outcome::Ok { reply: Reply::KeepAlive { ttl_s }, .. } => *ttl_s <= 0,
                _ => false,
            };
            if !not_found {
                continue;
            }
            let named = match &op.request {
                Request::Put { lease, .. } => vec![*lease],
                Request::Revoke { id } | Request::KeepAlive { id } => vec![*id],
                Request::Txn { then, otherwise, .. } => then.iter().chain(otherwise).filter_map(put_lease).collect(),
                _ => vec![],
            };
            if !named.is_empty() && named.iter().all(|id| self.certain(*id, op.call, ret)) {
                return Err(broken("lease", format!("leases {named:?} live, but were not found"), index));
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

/// The lease a put in a transaction names, if any.
pub fn put_lease(op: &TxnOp) -> Option<i64> {
    match op {
        TxnOp::Put { lease, .. } if *lease != 0 => Some(*lease),
        _ => None,
    }
}

/// May one of the grants come after all those ends, of which each took a grant of its own?
fn granted_after<'a>(grants: impl Iterator<Item = &'a Life>, ends: &[&End]) -> bool {
    let grants: Vec<&Life> = grants.collect();
    grants.len() > ends.len() && grants.iter().any(|grant| ends.iter().all(|end| may_follow(grant, end)))
}

/// May the grant come after that end?
fn may_follow(grant: &Life, end: &End) -> bool {
    match grant.revision {
        None => true,
        Some(granted) if granted == end.revision && !end.with_keys => grant.ret.is_none_or(|ret| ret >= end.call),
        Some(granted) => granted >= end.revision,
    }
}
