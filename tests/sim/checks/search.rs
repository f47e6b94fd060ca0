//! A second opinion on short histories: is there any order of the calls that explains every reply?
//!
//! The search of Wing and Gong with a memory of where it has been: next may come any call that no other one precedes in
//! time, if a small store of its own, written apart from `model`, gives its reply; calls of unknown outcome may come
//! whenever they were made, or never, and leases may run out. Calls that change nothing are taken as soon as they fit.
//! It looks at calls only, not at watches, and not at how long leases live beyond what they must; so it may pass what
//! `check` rejects for such a reason, but what it rejects `check` must reject as well, and what `check` passes it must
//! pass.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::*;

/// Longer histories, and those of which more than so many situations have been looked at, are left undecided.
const OPS_MAX: usize = 320;
const SITUATIONS_MAX: usize = 200_000;

/// What the search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// There is an order.
    Right,
    /// There is none.
    Wrong,
    /// It gave up.
    Undecided,
}

/// Looks for an order of a history's calls.
pub fn second_opinion(history: &History) -> Opinion {
    if history.ops.len() > OPS_MAX {
        return Opinion::Undecided;
    }
    let mut search = Search { history, tried: HashSet::new(), written: HashSet::new(), given_up: false };
    let mut done = [0; OPS_MAX / 64];
    for (index, op) in history.ops.iter().enumerate() {
        match &op.outcome {
            Outcome::Ok { revision, reply } if writes(reply) && !search.written.insert(*revision) => {
                return Opinion::Wrong;
            }
            Outcome::Refused(_) => set(&mut done, index),
            _ => {}
        }
    }
    let empty = Rc::new(Keys::new());
    let state = State { past: vec![empty.clone(), empty], leases: BTreeMap::new(), compacted: -1, now: 0, path: 0 };
    match (search.explore(done, &state), search.given_up) {
        (true, _) => Opinion::Right,
        (false, true) => Opinion::Undecided,
        (false, false) => Opinion::Wrong,
    }
}

type Keys = BTreeMap<Vec<u8>, KeyValue>;
type Done = [u64; OPS_MAX / 64];

/// A situation of the store.
#[derive(Clone)]
struct State {
    /// Keys at revision 0, 1, 2, …
    past: Vec<Rc<Keys>>,
    /// Until when each lease must live.
    leases: BTreeMap<i64, u64>,
    compacted: i64,
    /// It is at least that late: a lease has run out.
    now: u64,
    /// Says how the keys came about.
    path: u64,
}

struct Search<'a> {
    history: &'a History,
    tried: HashSet<(Done, u64)>,
    /// Revisions that acknowledged writes carry: nothing else made them.
    written: HashSet<i64>,
    given_up: bool,
}

impl Search<'_> {
    fn explore(&mut self, mut done: Done, state: &State) -> bool {
        let ops = &self.history.ops;
        let (first_ret, target) = loop {
            let open = || (0..ops.len()).filter(|index| !is_set(&done, *index));
            let answered = || open().filter(|index| matches!(ops[*index].outcome, Outcome::Ok { .. }));
            let first_ret = answered().filter_map(|index| ops[index].ret).min();
            let Some(first_ret) = first_ret else { return true };
            if first_ret < state.now {
                return false;
            }
            let fits = answered().find(|index| ops[*index].call <= first_ret && state.fits(&ops[*index]));
            match fits {
                Some(index) => set(&mut done, index),
                None => {
                    let target = answered().map(|index| revision_of(&ops[index])).max().unwrap_or(0);
                    break (first_ret, target);
                }
            }
        };
        if self.tried.len() >= SITUATIONS_MAX {
            self.given_up = true;
            return false;
        }
        if !self.tried.insert((done, state.fingerprint())) {
            return false;
        }
        let open: Vec<usize> = (0..ops.len()).filter(|index| !is_set(&done, *index)).collect();
        let next = state.revision() + 1;
        let gap = next <= target && !self.written.contains(&next);
        let mut repeated: Vec<&Request> = Vec::new();
        for &index in open.iter().filter(|index| ops[**index].call <= first_ret) {
            let op = &ops[index];
            let answered = matches!(op.outcome, Outcome::Ok { .. });
            if !answered {
                if repeated.contains(&&op.request) {
                    continue;
                }
                repeated.push(&op.request);
            }
            let mut after = state.clone();
            let Some(reply) = after.apply(&op.request, op.call, self.history.drift_ppm, &op.outcome) else { continue };
            let wrote = after.revision() > state.revision();
            let may = match &op.outcome {
                Outcome::Ok { revision, reply: got } => {
                    let pinned = !matches!(op.request, Request::KeepAlive { .. } | Request::Compact { .. });
                    *got == reply && (!pinned || *revision == after.revision()) && (!wrote || gap || writes(got))
                }
                _ if wrote => gap,
                _ => match op.request {
                    Request::Grant { id, .. } | Request::Revoke { id } => self.wanted(&open, id),
                    _ => false,
                },
            };
            if may {
                let mut then = done;
                set(&mut then, index);
                if self.explore(then, &after) {
                    return true;
                }
            }
        }
        for (&id, &until) in state.leases.iter().filter(|(_, until)| **until <= first_ret) {
            let mut after = state.clone();
            after.now = after.now.max(until);
            after.end(id);
            let wrote = after.revision() > state.revision();
            if (if wrote { gap } else { self.wanted(&open, id) }) && self.explore(done, &after) {
                return true;
            }
        }
        false
    }

    /// Is there still a call that names the lease?
    fn wanted(&self, open: &[usize], lease: i64) -> bool {
        let puts = |ops: &[TxnOp]| {
            ops.iter().flat_map(TxnOp::all).any(|op| matches!(op, TxnOp::Put { lease: id, .. } if *id == lease))
        };
        open.iter().any(|index| match &self.history.ops[*index].request {
            Request::Grant { id, .. }
            | Request::Revoke { id }
            | Request::KeepAlive { id }
            | Request::TimeToLive { id, .. } => *id == lease,
            Request::Put { lease: id, .. } => *id == lease,
            Request::Txn { then, otherwise, .. } => puts(then) || puts(otherwise),
            _ => false,
        })
    }
}

impl State {
    fn revision(&self) -> i64 {
        self.past.len() as i64 - 1
    }

    fn keys(&self) -> &Keys {
        self.past.last().expect("there is a first one")
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.path, self.past.len(), &self.leases, self.compacted, self.now).hash(&mut hasher);
        hasher.finish()
    }

    /// Has the call this reply now, and changes nothing?
    fn fits(&self, op: &Op) -> bool {
        let Outcome::Ok { revision, reply } = &op.outcome else { return false };
        match &op.request {
            Request::Range { key, end, limit, revision: asked, serializable } => {
                let now = *revision == self.revision() || (*serializable && *revision <= self.revision());
                let of = if *asked > 0 { *asked } else { *revision };
                now && (1..=*revision).contains(&of) && read(&self.past[of as usize], key, end, *limit) == *reply
            }
            // A local answer of the leader: it may name any revision.
            Request::TimeToLive { id, keys } => match reply {
                Reply::TimeToLive { ttl_s: ..0, .. } => !self.leases.contains_key(id),
                Reply::TimeToLive { keys: listed, .. } => {
                    let on = self.keys().values().filter(|kv| kv.lease == *id).map(|kv| &kv.key);
                    self.leases.contains_key(id) && (!*keys || on.eq(listed))
                }
                _ => false,
            },
            Request::KeepAlive { id } => {
                matches!(reply, Reply::KeepAlive { ttl_s: 0 }) && !self.leases.contains_key(id)
            }
            Request::Delete { .. } | Request::Txn { .. } if *revision == self.revision() => {
                let mut after = self.clone();
                after.apply(&op.request, op.call, 0, &op.outcome).as_ref() == Some(reply)
                    && after.revision() == self.revision()
            }
            _ => false,
        }
    }

    /// Carries out a request; none if it would be refused.
    fn apply(&mut self, request: &Request, call: u64, drift_ppm: u64, outcome: &Outcome) -> Option<Reply> {
        let answer = match outcome {
            Outcome::Ok { reply, .. } => Some(reply),
            _ => None,
        };
        let lives = |ttl_s: i64| {
            let ttl = u64::try_from(ttl_s).unwrap_or(0).saturating_mul(1_000_000_000);
            call.saturating_add(ttl - (u128::from(ttl) * u128::from(drift_ppm) / 1_000_000) as u64)
        };
        let mut keys = self.keys().clone();
        let revision = self.revision() + 1;
        let reply = match request {
            Request::Range { key, end, limit, .. } => read(&keys, key, end, *limit),
            Request::Put { key, value, lease, prev_kv } => {
                self.put(&mut keys, revision, key, value, *lease, *prev_kv)?
            }
            Request::Delete { key, end, prev_kv } => delete(&mut keys, key, end, *prev_kv),
            Request::Txn { compares, then, otherwise } => self.txn(&mut keys, revision, compares, then, otherwise)?,
            Request::Grant { id, ttl_s } => {
                let (id, ttl_s) = match answer {
                    Some(Reply::Grant { id: got, ttl_s: lives }) if *id == 0 || id == got => (*got, *lives),
                    Some(_) => return None,
                    None => (*id, *ttl_s),
                };
                if id == 0 || self.leases.contains_key(&id) {
                    return None;
                }
                self.leases.insert(id, lives(ttl_s));
                Reply::Grant { id, ttl_s }
            }
            Request::Revoke { id } => {
                self.leases.contains_key(id).then_some(())?;
                self.end(*id);
                return Some(Reply::Revoke);
            }
            Request::KeepAlive { id } => {
                let Some(Reply::KeepAlive { ttl_s: ttl_s @ 1.. }) = answer else { return None };
                let until = self.leases.get_mut(id)?;
                *until = (*until).max(lives(*ttl_s));
                Reply::KeepAlive { ttl_s: *ttl_s }
            }
            Request::TimeToLive { .. } | Request::Users(_) | Request::Login { .. } => return None,
            Request::Compact { revision } => {
                (*revision > self.compacted && *revision <= self.revision()).then_some(())?;
                self.compacted = *revision;
                Reply::Compact
            }
        };
        self.push(keys);
        Some(reply)
    }

    /// A transaction, or a nested one; `keys` are what those before it have left.
    fn txn(
        &self,
        keys: &mut Keys,
        at: i64,
        compares: &[Compare],
        then: &[TxnOp],
        otherwise: &[TxnOp],
    ) -> Option<Reply> {
        let succeeded = compares.iter().all(|compare| holds(self.keys(), compare));
        let mut replies = Vec::new();
        for op in if succeeded { then } else { otherwise } {
            replies.push(match op {
                TxnOp::Range { key, end, limit, revision: ..=0 } => read(keys, key, end, *limit),
                TxnOp::Range { key, end, limit, revision } => {
                    read(self.past.get(*revision as usize)?, key, end, *limit)
                }
                TxnOp::Put { key, value, lease, prev_kv } => self.put(keys, at, key, value, *lease, *prev_kv)?,
                TxnOp::Delete { key, end, prev_kv } => delete(keys, key, end, *prev_kv),
                TxnOp::Txn { compares, then, otherwise } => self.txn(keys, at, compares, then, otherwise)?,
            });
        }
        Some(Reply::Txn { succeeded, replies })
    }

    fn put(&self, keys: &mut Keys, at: i64, key: &[u8], value: &[u8], lease: i64, prev_kv: bool) -> Option<Reply> {
        if lease != 0 && !self.leases.contains_key(&lease) {
            return None;
        }
        let prev = keys.get(key).cloned();
        let (create_revision, version) = prev.as_ref().map_or((at, 1), |kv| (kv.create_revision, kv.version + 1));
        let (key, value) = (key.to_vec(), value.to_vec());
        let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: at, version, lease };
        keys.insert(key, kv);
        Some(Reply::Put { prev: prev.filter(|_| prev_kv) })
    }

    /// Ends a lease and deletes its keys.
    fn end(&mut self, id: i64) {
        self.leases.remove(&id);
        let mut keys = self.keys().clone();
        keys.retain(|_, kv| kv.lease != id);
        self.push(keys);
    }

    /// A new revision, if the keys are not as they were. (A put of the same value changes the version.)
    fn push(&mut self, keys: Keys) {
        if keys != *self.keys() {
            let mut hasher = DefaultHasher::new();
            self.path.hash(&mut hasher);
            for kv in keys.values() {
                (&kv.key, &kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease).hash(&mut hasher);
            }
            self.path = hasher.finish();
            self.past.push(Rc::new(keys));
        }
    }
}

fn within(k: &[u8], key: &[u8], end: &[u8]) -> bool {
    if end.is_empty() { k == key } else { k >= key && (end == [0] || k < end) }
}

fn read(keys: &Keys, key: &[u8], end: &[u8], limit: i64) -> Reply {
    let all = || keys.values().filter(|kv| within(&kv.key, key, end));
    let count = all().count();
    let most = if limit > 0 { limit as usize } else { count };
    Reply::Range { kvs: all().take(most).cloned().collect(), more: count > most, count: count as i64 }
}

fn delete(keys: &mut Keys, key: &[u8], end: &[u8], prev_kv: bool) -> Reply {
    let gone: Vec<KeyValue> = keys.values().filter(|kv| within(&kv.key, key, end)).cloned().collect();
    gone.iter().for_each(|kv| drop(keys.remove(&kv.key)));
    Reply::Delete { deleted: gone.len() as i64, prevs: if prev_kv { gone } else { vec![] } }
}

fn holds(keys: &Keys, compare: &Compare) -> bool {
    let found = keys.get(&compare.key);
    let order = match &compare.target {
        Target::ModRevision(with) => found.map_or(0, |kv| kv.mod_revision).cmp(with),
        Target::CreateRevision(with) => found.map_or(0, |kv| kv.create_revision).cmp(with),
        Target::Version(with) => found.map_or(0, |kv| kv.version).cmp(with),
        Target::Value(with) => match found {
            Some(kv) => kv.value.cmp(with),
            None => return false,
        },
    };
    match compare.is {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
    }
}

fn writes(reply: &Reply) -> bool {
    match reply {
        Reply::Put { .. } => true,
        Reply::Delete { deleted, .. } => *deleted > 0,
        Reply::Txn { replies, .. } => replies.iter().any(writes),
        _ => false,
    }
}

fn revision_of(op: &Op) -> i64 {
    match (&op.request, &op.outcome) {
        (Request::KeepAlive { .. } | Request::TimeToLive { .. } | Request::Compact { .. }, _) => 0,
        (_, Outcome::Ok { revision, .. }) => *revision,
        _ => 0,
    }
}

fn is_set(done: &Done, index: usize) -> bool {
    done[index / 64] >> (index % 64) & 1 == 1
}

fn set(done: &mut Done, index: usize) {
    done[index / 64] |= 1 << (index % 64);
}
