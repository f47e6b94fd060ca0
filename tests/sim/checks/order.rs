//! Real time: who had seen what by when, and what follows for every call.
//!
//! A revision that someone saw (in a reply, or in a message of a watch) had been produced by then. So whoever calls
//! later must write a higher one, and must read at least that one unless he asked for a local read. With every call
//! pinned to its revision this is the whole of the real-time order.

use std::collections::BTreeMap;

use super::*;

/// The highest value reported so far, as a function of time.
pub struct Highest {
    /// Strictly rising in both.
    steps: Vec<(u64, i64)>,
}

impl Highest {
    /// From reports in any order.
    pub fn new(mut reports: Vec<(u64, i64)>) -> Highest {
        reports.sort_unstable();
        let mut steps: Vec<(u64, i64)> = Vec::new();
        for (time, value) in reports {
            match steps.last_mut() {
                Some((_, highest)) if *highest >= value => {}
                Some((at, highest)) if *at == time => *highest = value,
                _ => steps.push((time, value)),
            }
        }
        Highest { steps }
    }

    /// The highest reported before `time`; `none` if there was no report.
    pub fn before(&self, time: u64, none: i64) -> i64 {
        let after = self.steps.partition_point(|(at, _)| *at < time);
        self.steps[..after].last().map_or(none, |(_, value)| *value)
    }

    /// When `value`, or a higher one, was first reported.
    pub fn reached(&self, value: i64) -> u64 {
        let at = self.steps.partition_point(|(_, highest)| *highest < value);
        self.steps.get(at).map_or(u64::MAX, |(time, _)| *time)
    }

    /// The highest of all.
    pub fn last(&self, none: i64) -> i64 {
        self.steps.last().map_or(none, |(_, value)| *value)
    }
}

/// What the history says of time before anything is replayed.
pub struct Order {
    /// Revisions seen.
    pub seen: Highest,
    /// Revisions compacted for certain: acknowledged.
    pub compacted: Highest,
    /// Compactions that may have been carried out.
    pub compactions: Compactions,
    /// Of each call the highest revision that someone had seen when it was made.
    pub floors: Vec<i64>,
}

/// Compactions that may have been carried out, by time of call.
pub struct Compactions {
    /// Of the calls up to a time the two that go highest: revision and index.
    steps: Vec<(u64, [(i64, usize); 2])>,
    /// When each revision was first asked for.
    first: BTreeMap<i64, u64>,
}

impl Compactions {
    fn new(history: &History) -> Compactions {
        let mut calls: Vec<(u64, i64, usize)> = Vec::new();
        for (index, op) in history.ops.iter().enumerate() {
            if let (Request::Compact { revision }, Outcome::Ok { .. } | Outcome::Unknown) = (&op.request, &op.outcome) {
                calls.push((op.call, *revision, index));
            }
        }
        calls.sort_unstable();
        let mut first = BTreeMap::new();
        for (call, revision, _) in &calls {
            first.entry(*revision).or_insert(*call);
        }
        let mut best = [(-1, usize::MAX); 2];
        let mut steps = Vec::with_capacity(calls.len());
        for (call, revision, index) in calls {
            if revision > best[0].0 {
                best = [(revision, index), best[0]];
            } else if revision > best[1].0 {
                best[1] = (revision, index);
            }
            steps.push((call, best));
        }
        Compactions { steps, first }
    }

    /// May there have been one of just that revision by this time?
    pub fn may_be(&self, revision: i64, until: u64) -> bool {
        self.first.get(&revision).is_some_and(|call| *call <= until)
    }

    /// May there have been one at `least` or above by this time? (Other than by that call itself.)
    pub fn may_reach(&self, least: i64, until: u64, other_than: Option<usize>) -> bool {
        let after = self.steps.partition_point(|(call, _)| *call <= until);
        let Some((_, best)) = self.steps[..after].last() else { return false };
        best.iter().any(|(revision, index)| *revision >= least && *index != usize::MAX && Some(*index) != other_than)
    }
}

impl Order {
    /// Takes the times from a history, and holds every call against them.
    pub fn new(history: &History) -> Result<Order, Violation> {
        let mut seen = Vec::new();
        let mut compacted = Vec::new();
        for (index, op) in history.ops.iter().enumerate() {
            if op.ret.is_some_and(|ret| ret < op.call) {
                return Err(broken("record", "a call returned before it was made".into(), index));
            }
            if let Outcome::Ok { revision, .. } = op.outcome {
                let Some(ret) = op.ret else {
                    return Err(broken("record", "acknowledged, but without a time".into(), index));
                };
                seen.push((ret, revision));
                if let Request::Compact { revision } = op.request {
                    compacted.push((ret, revision));
                }
            }
        }
        for record in &history.watches {
            for (time, message) in &record.messages {
                match message {
                    WatchMessage::Created { revision }
                    | WatchMessage::Progress { revision }
                    | WatchMessage::StreamProgress { revision } => seen.push((*time, *revision)),
                    WatchMessage::Events { header_revision, events, .. } => {
                        let newest = events.iter().map(|event| event.kv.mod_revision).max();
                        seen.push((*time, newest.unwrap_or(0).max(*header_revision)));
                    }
                    WatchMessage::Refused
                    | WatchMessage::Denied
                    | WatchMessage::Revoked
                    | WatchMessage::Canceled { .. }
                    | WatchMessage::Ended => {}
                }
            }
        }
        let (seen, compacted) = (Highest::new(seen), Highest::new(compacted));
        let floors = floors(history, &seen);
        let order = Order { seen, compacted, compactions: Compactions::new(history), floors };
        for (index, op) in history.ops.iter().enumerate() {
            order.judge(index, op)?;
        }
        check_members(history)?;
        Ok(order)
    }

    fn judge(&self, index: usize, op: &Op) -> Result<(), Violation> {
        let floor = self.floors[index];
        match &op.outcome {
            Outcome::Ok { revision, reply } => {
                if certainly_writes(reply) && *revision <= floor {
                    let what = format!("written at revision {revision}, called when {floor} had been seen");
                    return Err(broken("real time", what, index));
                }
                if linearizable(&op.request) && *revision < floor {
                    let what = format!("answered at revision {revision}, called when {floor} had been seen");
                    return Err(broken("stale", what, index));
                }
                match op.request {
                    Request::Range { revision: asked, serializable, .. } if asked > 0 => {
                        let compacted = self.compacted.before(op.call, -1);
                        if asked > *revision {
                            return Err(broken("future", format!("read {asked} at revision {revision}"), index));
                        }
                        if asked < compacted && !serializable {
                            return Err(broken("compaction", format!("read {asked}, compacted at {compacted}"), index));
                        }
                    }
                    Request::Compact { revision: asked } => {
                        let compacted = self.compacted.before(op.call, -1);
                        if asked > *revision || asked <= compacted {
                            let what = format!("compacted {asked} at revision {revision}, after {compacted}");
                            return Err(broken("compaction", what, index));
                        }
                    }
                    Request::Txn { ref then, ref otherwise, .. } => {
                        let outer = TxnOp::Txn { compares: vec![], then: then.clone(), otherwise: otherwise.clone() };
                        let before = *revision - i64::from(certainly_writes(reply));
                        let compacted = self.compacted.before(op.call, -1);
                        for asked in outer.done(reply).into_iter().filter_map(past) {
                            if asked > before {
                                return Err(broken("future", format!("read {asked} at revision {before}"), index));
                            }
                            if asked < compacted {
                                let what = format!("read {asked}, compacted at {compacted}");
                                return Err(broken("compaction", what, index));
                            }
                        }
                    }
                    _ => {}
                }
            }
            Outcome::Refused(text) => {
                let (asked, local, compacts) = match &op.request {
                    Request::Range { revision, serializable, .. } => (vec![*revision], *serializable, false),
                    Request::Txn { then, otherwise, .. } => {
                        let all = then.iter().chain(otherwise).flat_map(TxnOp::all);
                        (all.filter_map(past).collect(), false, false)
                    }
                    Request::Compact { revision } => (vec![*revision], false, true),
                    _ => (Vec::new(), false, false),
                };
                let until = op.ret.unwrap_or(u64::MAX);
                let gone = |asked: &i64| {
                    let least = if compacts { *asked } else { asked + 1 };
                    self.compactions.may_reach(least, until, Some(index))
                };
                if text.contains("compacted") && !asked.iter().any(gone) {
                    return Err(broken("compaction", format!("refused {asked:?}: {text}"), index));
                }
                if text.contains("future revision") && asked.iter().all(|asked| *asked <= floor) && !local {
                    return Err(broken("stale", format!("refused {asked:?}, {floor} had been seen: {text}"), index));
                }
                let of_grants = text.contains("lease already exists") && !matches!(op.request, Request::Grant { .. });
                if of_grants || NEVER.iter().any(|never| text.contains(never)) {
                    return Err(broken("refusal", format!("there is no reason for it: {text}"), index));
                }
            }
            Outcome::Unknown => {}
        }
        Ok(())
    }
}

/// What one life of a member has once shown it knows: its local reads never go back behind that. (Renewals and questions
/// for a lease's time are answered by another member, the leader, and show nothing of this one.)
fn check_members(history: &History) -> Result<(), Violation> {
    let mut shown: BTreeMap<(u64, u64), Vec<(u64, i64)>> = BTreeMap::new();
    let own = |op: &Op| op.member != 0 && op.life != 0;
    for op in history.ops.iter().filter(|op| own(op)) {
        let elsewhere = matches!(op.request, Request::KeepAlive { .. } | Request::TimeToLive { .. });
        if let (Outcome::Ok { revision, .. }, Some(ret), false) = (&op.outcome, op.ret, elsewhere) {
            shown.entry((op.member, op.life)).or_default().push((ret, *revision));
        }
    }
    let shown: BTreeMap<(u64, u64), Highest> =
        shown.into_iter().map(|(life, reports)| (life, Highest::new(reports))).collect();
    for (index, op) in history.ops.iter().enumerate().filter(|(_, op)| own(op)) {
        let (Outcome::Ok { revision, .. }, Request::Range { serializable: true, .. }) = (&op.outcome, &op.request)
        else {
            continue;
        };
        let known = shown.get(&(op.member, op.life)).map_or(1, |shown| shown.before(op.call, 1));
        if *revision < known {
            let what = format!("member {} read locally at {revision}, had shown {known} before", op.member);
            return Err(broken("back in time", what, index));
        }
    }
    Ok(())
}

/// Refusals that the clients give no reason for.
const NEVER: [&str; 8] = [
    "key not found",
    "key is not provided",
    "invalid sort option",
    "duplicate key",
    "too many operations",
    "too large",
    "database space exceeded",
    "corrupt cluster",
];

/// The revision that a range in a transaction names.
fn past(op: &TxnOp) -> Option<i64> {
    match op {
        TxnOp::Range { revision, .. } if *revision > 0 => Some(*revision),
        _ => None,
    }
}

/// Does the reply show that something was written?
pub fn certainly_writes(reply: &Reply) -> bool {
    match reply {
        Reply::Put { .. } => true,
        Reply::Delete { deleted, .. } => *deleted > 0,
        Reply::Txn { replies, .. } => replies.iter().any(certainly_writes),
        _ => false,
    }
}

/// Must the reply know everything seen before the call? Not so: local reads; a transaction that does nothing; renewals
/// and questions for their time, answered by the leader's clock; compactions, answered when they are on disk.
fn linearizable(request: &Request) -> bool {
    match request {
        Request::Range { serializable, .. } => !serializable,
        Request::Txn { then, otherwise, .. } => !(then.is_empty() && otherwise.is_empty()),
        Request::KeepAlive { .. } | Request::TimeToLive { .. } | Request::Compact { .. } => false,
        Request::Put { .. } | Request::Delete { .. } | Request::Grant { .. } | Request::Revoke { .. } => true,
        Request::Users(_) | Request::Login { .. } => true,
    }
}

/// Seen strictly before the call; and, at the very instant of the call, what the caller itself had got until then.
fn floors(history: &History, seen: &Highest) -> Vec<i64> {
    let mut own: BTreeMap<u32, (u64, i64)> = BTreeMap::new();
    let mut floors = Vec::with_capacity(history.ops.len());
    for op in &history.ops {
        let (returned, revision) = own.entry(op.client).or_insert((0, 1));
        let of_own = if *returned <= op.call { *revision } else { 1 };
        floors.push(seen.before(op.call, 1).max(of_own));
        *returned = (*returned).max(op.ret.unwrap_or(0));
        if let Outcome::Ok { revision: got, .. } = op.outcome {
            *revision = (*revision).max(got);
        }
    }
    floors
}
