//! Clients that read and write, and get in each other's way: ten keys for all of them, and what one learns they all know.
//!
//! Every value is written once, so that a write whose outcome nobody learned can be recognised. A lease whose revoke had
//! no answer is left alone, and a key is changed once in a transaction: the judge is not made to guess more than it must.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::ask::NOT_SENT;
use crate::checks::{Compare, Outcome, Relation, Reply, Request, Target, TxnOp};
use crate::dice::Dice;
use crate::{Run, lock};

const KEYS: u64 = 10;
/// Between two calls of a client, in milliseconds: no faster, or the history outgrows the judge.
const PACE: (u64, u64) = (2, 20);
/// How far behind the present history is forgotten, in revisions: watchers that resume should mostly find it.
const KEPT: u64 = 2000;
/// The longest time to live that is asked for.
pub const TTL_MAX_S: u64 = 12;
/// Transactions in one another, beyond the outermost.
const NESTING_MAX: u32 = 3;

/// What the clients have learned, all of them together.
#[derive(Default)]
pub struct Knowledge {
    /// The newest revision anybody saw.
    pub revision: i64,
    pub compacted: i64,
    /// Leases that may live, oldest first.
    leases: Vec<i64>,
    leases_made: i64,
    values_made: u64,
    /// Revision and value last seen of a key.
    keys: BTreeMap<Vec<u8>, (i64, Vec<u8>)>,
}

impl Knowledge {
    /// What an answer tells.
    pub fn learn(&mut self, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (Request::Revoke { id }, Outcome::Ok { .. } | Outcome::Unknown)
            | (Request::KeepAlive { id }, Outcome::Ok { reply: Reply::KeepAlive { ttl_s: 0 }, .. }) => {
                self.leases.retain(|known| known != id);
            }
            (Request::Put { lease, .. }, Outcome::Refused(text)) if text.contains("lease not found") => {
                self.leases.retain(|known| known != lease);
            }
            _ => {}
        }
        let Outcome::Ok { revision, reply } = outcome else { return };
        self.revision = self.revision.max(*revision);
        match (request, reply) {
            (_, Reply::Range { kvs, .. }) => {
                for kv in kvs {
                    self.keys.insert(kv.key.clone(), (kv.mod_revision, kv.value.clone()));
                }
            }
            (Request::Put { key, value, .. }, _) => {
                self.keys.insert(key.clone(), (*revision, value.clone()));
            }
            (_, Reply::Grant { id, .. }) => {
                self.leases.push(*id);
                // The oldest has expired unless it was renewed; nobody needs that many.
                if self.leases.len() > 30 {
                    self.leases.remove(0);
                }
            }
            (Request::Compact { revision }, _) => self.compacted = self.compacted.max(*revision),
            _ => {}
        }
    }

    /// One of the newest leases.
    fn known_lease(&self, dice: &mut Dice) -> Option<i64> {
        let count = self.leases.len() as u64;
        (count > 0).then(|| self.leases[(count - 1 - dice.below(count.min(8))) as usize])
    }

    fn lease(&self, dice: &mut Dice) -> i64 {
        if dice.chance(250) { self.known_lease(dice).unwrap_or(0) } else { 0 }
    }

    fn value(&mut self, dice: &mut Dice, client: u32) -> Vec<u8> {
        self.values_made += 1;
        let mut value = format!("c{client}v{}", self.values_made).into_bytes();
        if dice.chance(20) {
            value.resize(dice.between(100, 3000) as usize, b'.');
        }
        value
    }

    /// The next request of a client; `watched` may not be compacted away.
    fn request(&mut self, dice: &mut Dice, client: u32, watched: i64) -> Request {
        match dice.below(1000) {
            0..300 => {
                let (key, end) = range(dice);
                let limit = if dice.chance(200) { dice.between(1, 5) as i64 } else { 0 };
                let revision = match dice.below(20) {
                    0..2 => (self.revision - dice.below(100) as i64).max(0),
                    2 => (self.compacted + dice.below(3) as i64 - 1).max(0),
                    3 if dice.chance(200) => self.revision + 50,
                    _ => 0,
                };
                Request::Range { key, end, limit, revision, serializable: dice.chance(250) }
            }
            300..600 => {
                let (key, value, lease) = (key(dice), self.value(dice, client), self.lease(dice));
                Request::Put { key, value, lease, prev_kv: dice.chance(300) }
            }
            600..680 => {
                let (key, end) = if dice.chance(800) { (key(dice), Vec::new()) } else { range(dice) };
                Request::Delete { key, end, prev_kv: dice.chance(300) }
            }
            680..900 => self.txn(dice, client),
            900..997 => match (dice.below(10), self.known_lease(dice)) {
                (0..5, Some(id)) => Request::KeepAlive { id },
                (5..7, Some(id)) => Request::Revoke { id },
                (7, Some(id)) => Request::TimeToLive { id, keys: dice.chance(500) },
                _ => {
                    self.leases_made += 1;
                    let id = if dice.chance(500) { 0 } else { 1000 + self.leases_made };
                    Request::Grant { id, ttl_s: dice.skewed(1, TTL_MAX_S) as i64 }
                }
            },
            _ => {
                let back = dice.skewed(0, KEPT) as i64;
                Request::Compact { revision: (self.revision - back).min(watched - 1).max(1) }
            }
        }
    }

    fn txn(&mut self, dice: &mut Dice, client: u32) -> Request {
        let first = key(dice);
        let target = match (dice.below(6), self.keys.get(&first)) {
            (0..4, Some((revision, _))) => Target::ModRevision(*revision),
            (4, Some((_, value))) => Target::Value(value.clone()),
            (5, _) => Target::Version(dice.below(4) as i64),
            _ => Target::CreateRevision(0),
        };
        let is = match dice.below(6) {
            0 => Relation::NotEqual,
            1 => Relation::Greater,
            2 => Relation::Less,
            _ => Relation::Equal,
        };
        let then = self.branch(dice, client, &first, &mut BTreeSet::new(), 0);
        let otherwise = self.branch(dice, client, &first, &mut BTreeSet::new(), 0);
        Request::Txn { compares: vec![Compare { key: first, target, is }], then, otherwise }
    }

    /// What a transaction does; `taken` are keys that are changed already.
    fn branch(
        &mut self,
        dice: &mut Dice,
        client: u32,
        first: &[u8],
        taken: &mut BTreeSet<Vec<u8>>,
        depth: u32,
    ) -> Vec<TxnOp> {
        let mut ops = Vec::new();
        let mut at = dice.below(KEYS);
        for n in 0..dice.skewed(0, 4) {
            if depth < NESTING_MAX && dice.chance(150) {
                ops.push(self.nested(dice, client, first, taken, depth + 1));
                continue;
            }
            // Each operation has a key of its own: the compared one, or the next of a walk that leaves it out.
            let key = if n == 0 && dice.chance(700) {
                first.to_vec()
            } else {
                at = (at + dice.between(1, 2)) % KEYS;
                numbered(at)
            };
            if !taken.insert(key.clone()) {
                break;
            }
            let prev_kv = dice.chance(200);
            ops.push(match dice.below(10) {
                0..6 => TxnOp::Put { key, value: self.value(dice, client), lease: self.lease(dice), prev_kv },
                6..8 => TxnOp::Delete { key, end: Vec::new(), prev_kv },
                _ => {
                    let (key, end) = range(dice);
                    TxnOp::Range { key, end, limit: 0, revision: 0 }
                }
            });
        }
        ops
    }

    /// A transaction in a transaction. Its condition is about what was there before the outermost one.
    fn nested(
        &mut self,
        dice: &mut Dice,
        client: u32,
        first: &[u8],
        taken: &mut BTreeSet<Vec<u8>>,
        depth: u32,
    ) -> TxnOp {
        let about = if dice.chance(600) { first.to_vec() } else { key(dice) };
        let target = match self.keys.get(&about) {
            Some((revision, _)) => Target::ModRevision(*revision),
            None => Target::CreateRevision(0),
        };
        let is = if dice.chance(700) { Relation::Equal } else { Relation::NotEqual };
        // Only one of the two is done: both may change the same keys.
        let (mut one, mut other) = (taken.clone(), taken.clone());
        let then = self.branch(dice, client, first, &mut one, depth);
        let otherwise = self.branch(dice, client, first, &mut other, depth);
        taken.extend(one.into_iter().chain(other));
        TxnOp::Txn { compares: vec![Compare { key: about, target, is }], then, otherwise }
    }
}

/// One client, until the load ends. The first three stay with one member each, the others move.
pub async fn client(run: Arc<Run>, client: u32, mut dice: Dice) {
    let members = run.members.count() as u64;
    let mut member = u64::from(client) % members;
    while !run.stop.load(Ordering::Relaxed) {
        let watched = run.watched.load(Ordering::Relaxed);
        let request = lock(&run.knowledge).request(&mut dice, client, watched);
        let limit = Duration::from_millis(dice.between(300, 3000));
        let outcome = run.call(client, member as usize, request, limit).await;
        let failed = outcome == Outcome::Unknown || outcome == Outcome::Refused(NOT_SENT.to_owned());
        if u64::from(client) >= members && dice.chance(if failed { 500 } else { 30 }) {
            member = dice.below(members);
        }
        let pause = dice.between(PACE.0, PACE.1) + if failed { dice.between(20, 100) } else { 0 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

fn numbered(n: u64) -> Vec<u8> {
    format!("k{n:02}").into_bytes()
}

fn key(dice: &mut Dice) -> Vec<u8> {
    numbered(dice.skewed(0, KEYS - 1))
}

/// A key, a prefix, everything, or some keys: key and end.
pub fn range(dice: &mut Dice) -> (Vec<u8>, Vec<u8>) {
    match dice.below(10) {
        0..5 => (key(dice), Vec::new()),
        5..7 => (b"k".to_vec(), b"l".to_vec()),
        7 => (vec![0], vec![0]),
        _ => {
            let (a, b) = (key(dice), key(dice));
            if a < b { (a, b) } else { (a, vec![0]) }
        }
    }
}
