//! A store that forgets nothing: what the API says each request does, and the state at every revision.
//!
//! Written for being evidently right: a write is computed against the newest revision and then recorded; a read looks
//! at whatever revision it likes. Knows which keys hang on which lease, but not when leases live (`lease` does).

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The store at every revision so far.
#[derive(Default)]
pub struct Model {
    /// Of each key what it was from a revision on, oldest first; none: absent.
    keys: BTreeMap<Vec<u8>, Vec<(i64, Option<KeyValue>)>>,
    /// Events of revision 2, 3, …, in order of execution, with previous values.
    revisions: Vec<Vec<Event>>,
    /// Keys on each lease, now.
    attached: BTreeMap<i64, BTreeSet<Vec<u8>>>,
}

/// What a request does: events of the next revision (none: no new revision) and the reply.
pub struct Effect {
    /// In order of execution.
    pub events: Vec<Event>,
    /// The reply.
    pub reply: Reply,
}

impl Model {
    /// The newest revision.
    pub fn revision(&self) -> i64 {
        1 + self.revisions.len() as i64
    }

    /// Events of a revision; of one that does not exist, none.
    pub fn events(&self, revision: i64) -> &[Event] {
        usize::try_from(revision - 2).ok().and_then(|at| self.revisions.get(at)).map_or(&[], Vec::as_slice)
    }

    /// Keys on a lease, now.
    pub fn attached(&self, lease: i64) -> impl Iterator<Item = &Vec<u8>> {
        self.attached.get(&lease).into_iter().flatten()
    }

    /// Leases with keys, now.
    pub fn leases(&self) -> impl Iterator<Item = i64> {
        self.attached.keys().copied()
    }

    /// What the request does now.
    pub fn effect(&self, request: &Request) -> Effect {
        let mut step = Step::new(self);
        let reply = match request {
            Request::Range { key, end, limit, revision, .. } => step.range(key, end, *limit, *revision),
            Request::Put { key, value, lease, prev_kv } => step.put(key, value, *lease, *prev_kv),
            Request::Delete { key, end, prev_kv } => step.delete(key, end, *prev_kv),
            Request::Txn { compares, then, otherwise } => step.txn(compares, then, otherwise),
            Request::Revoke { id } => {
                for key in self.attached(*id).cloned().collect::<Vec<_>>() {
                    step.delete(&key, &[], false);
                }
                Reply::Revoke
            }
            Request::Grant { id, ttl_s } => Reply::Grant { id: *id, ttl_s: *ttl_s },
            Request::KeepAlive { .. } => Reply::KeepAlive { ttl_s: 0 },
            Request::TimeToLive { .. } => Reply::TimeToLive { granted_ttl_s: 0, ttl_s: -1, keys: Vec::new() },
            Request::Compact { .. } => Reply::Compact,
            Request::Users(_) => Reply::Users,
            Request::Login { .. } => Reply::Login { token: String::new() },
        };
        Effect { events: step.events, reply }
    }

    /// The lease the key hangs on, now.
    pub fn lease_of_key(&self, key: &[u8]) -> Option<i64> {
        self.get(key, self.revision()).map(|kv| kv.lease).filter(|lease| *lease != 0)
    }

    /// Is that the right reply to a range now? The same as comparing with `effect`, without copying what is read.
    pub fn answers(&self, request: &Request, reply: &Reply) -> bool {
        let (Request::Range { key, end, limit, revision, .. }, Reply::Range { kvs, more, count }) = (request, reply)
        else {
            return false;
        };
        let of = if *revision > 0 { *revision } else { self.revision() };
        let live = self.live(key, end, of);
        let cut = *limit > 0 && live.len() as i64 > *limit;
        let shown = if cut { &live[..*limit as usize] } else { &live[..] };
        *more == cut && *count == live.len() as i64 && kvs.iter().eq(shown.iter().copied())
    }

    /// Makes the events the next revision.
    pub fn push(&mut self, events: Vec<Event>) {
        let revision = self.revision() + 1;
        for event in &events {
            let live = (event.kind == EventKind::Put).then(|| event.kv.clone());
            let (was, is) = (lease_of(event.prev.as_ref()), lease_of(live.as_ref()));
            self.reattach(&event.kv.key, was, is);
            self.keys.entry(event.kv.key.clone()).or_default().push((revision, live));
        }
        self.revisions.push(events);
    }

    /// Takes back the newest revision.
    pub fn pop(&mut self) {
        for event in self.revisions.pop().expect("only what was pushed is taken back").iter().rev() {
            let versions = self.keys.get_mut(&event.kv.key).expect("its key was recorded");
            let (_, live) = versions.pop().expect("and this version of it");
            self.reattach(&event.kv.key, lease_of(live.as_ref()), lease_of(event.prev.as_ref()));
        }
    }

    fn reattach(&mut self, key: &[u8], was: i64, is: i64) {
        if was != 0
            && let Some(keys) = self.attached.get_mut(&was)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.attached.remove(&was);
            }
        }
        if is != 0 {
            self.attached.entry(is).or_default().insert(key.to_vec());
        }
    }

    fn get(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        at(self.keys.get(key)?, revision)
    }

    fn live(&self, key: &[u8], end: &[u8], revision: i64) -> Vec<&KeyValue> {
        if end.is_empty() {
            return self.get(key, revision).into_iter().collect();
        }
        let from = self.keys.range(key.to_vec()..).take_while(|(k, _)| within(k, key, end));
        from.filter_map(|(_, versions)| at(versions, revision)).collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let found = self.get(&compare.key, self.revision());
        let number = |of: fn(&KeyValue) -> i64| found.map_or(0, of);
        let order = match &compare.target {
            Target::ModRevision(with) => number(|kv| kv.mod_revision).cmp(with),
            Target::CreateRevision(with) => number(|kv| kv.create_revision).cmp(with),
            Target::Version(with) => number(|kv| kv.version).cmp(with),
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
}

/// Is the key in the range, as ranges are on the wire?
pub fn within(k: &[u8], key: &[u8], end: &[u8]) -> bool {
    match end {
        [] => k == key,
        [0] => k >= key,
        end => k >= key && k < end,
    }
}

fn at(versions: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
    let after = versions.partition_point(|(from, _)| *from <= revision);
    versions[..after].last().and_then(|(_, live)| live.as_ref())
}

fn lease_of(kv: Option<&KeyValue>) -> i64 {
    kv.map_or(0, |kv| kv.lease)
}

/// One request under way: its operations see what those before them have done.
struct Step<'a> {
    model: &'a Model,
    changed: BTreeMap<Vec<u8>, Option<KeyValue>>,
    events: Vec<Event>,
}

impl<'a> Step<'a> {
    fn new(model: &'a Model) -> Step<'a> {
        Step { model, changed: BTreeMap::new(), events: Vec::new() }
    }

    fn op(&mut self, op: &TxnOp) -> Reply {
        match op {
            TxnOp::Range { key, end, limit, revision } => self.range(key, end, *limit, *revision),
            TxnOp::Put { key, value, lease, prev_kv } => self.put(key, value, *lease, *prev_kv),
            TxnOp::Delete { key, end, prev_kv } => self.delete(key, end, *prev_kv),
            TxnOp::Txn { compares, then, otherwise } => self.txn(compares, then, otherwise),
        }
    }

    /// Conditions, nested ones too, are about the state before the request.
    fn txn(&mut self, compares: &[Compare], then: &[TxnOp], otherwise: &[TxnOp]) -> Reply {
        let succeeded = compares.iter().all(|compare| self.model.holds(compare));
        let ops = if succeeded { then } else { otherwise };
        Reply::Txn { succeeded, replies: ops.iter().map(|op| self.op(op)).collect() }
    }

    fn live(&self, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
        let before = self.model.live(key, end, self.model.revision());
        let mut live: BTreeMap<&[u8], &KeyValue> = before.into_iter().map(|kv| (kv.key.as_slice(), kv)).collect();
        for (k, changed) in self.changed.iter().filter(|(k, _)| within(k, key, end)) {
            match changed {
                Some(kv) => live.insert(k, kv),
                None => live.remove(k.as_slice()),
            };
        }
        live.into_values().cloned().collect()
    }

    fn range(&self, key: &[u8], end: &[u8], limit: i64, revision: i64) -> Reply {
        let mut kvs = match revision {
            ..=0 => self.live(key, end),
            past => self.model.live(key, end, past).into_iter().cloned().collect(),
        };
        let count = kvs.len() as i64;
        let more = limit > 0 && count > limit;
        if more {
            kvs.truncate(limit as usize);
        }
        Reply::Range { kvs, more, count }
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: i64, prev_kv: bool) -> Reply {
        let prev = self.live(key, &[]).pop();
        let revision = self.model.revision() + 1;
        let kv = KeyValue {
            key: key.to_vec(),
            value: value.to_vec(),
            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: 1 + prev.as_ref().map_or(0, |prev| prev.version),
            lease,
        };
        self.changed.insert(key.to_vec(), Some(kv.clone()));
        self.events.push(Event { kind: EventKind::Put, kv, prev: prev.clone() });
        Reply::Put { prev: prev.filter(|_| prev_kv) }
    }

    fn delete(&mut self, key: &[u8], end: &[u8], prev_kv: bool) -> Reply {
        let gone = self.live(key, end);
        let mod_revision = self.model.revision() + 1;
        for prev in &gone {
            self.changed.insert(prev.key.clone(), None);
            let kv = KeyValue { key: prev.key.clone(), mod_revision, ..KeyValue::default() };
            self.events.push(Event { kind: EventKind::Delete, kv, prev: Some(prev.clone()) });
        }
        Reply::Delete { deleted: gone.len() as i64, prevs: if prev_kv { gone } else { Vec::new() } }
    }
}
