//! Clients: what they ask for, and how what they ask and hear is put into the words of the judge.

use std::collections::BTreeMap;

use bytes::Bytes;
use everwatch::mvcc;
use everwatch::pb::etcdserverpb as pb;
use everwatch::pb::mvccpb;
use everwatch::server::error::Error;
use everwatch::state::applied::{Refusal, Reply as StateReply};
use everwatch::state::command::Kind;
use everwatch::types::{KeyRange, Revision};
use everwatch::watch::{self, Filters, Outgoing, Spec};
use prost::Message as _;

use crate::checks::{
    Compare, Event, EventKind, KeyValue, Outcome, Relation, Reply, Request, Target, TxnOp, WatchMessage, WatchRecord,
};
use crate::dice::Dice;
use crate::member::Death;
use crate::users;

/// Transactions in one another, beyond the outermost.
const NESTING_MAX: u32 = 3;
/// A lease that nobody grants.
const UNKNOWN_LEASE: i64 = 999;
/// What a message takes beside its events, about.
const HEAD_BYTES: usize = 20;

/// What clients have learned, all of them together: they gossip, so that they get in each other's way.
#[derive(Default)]
pub struct Knowledge {
    /// The newest revision anybody saw.
    pub revision: i64,
    pub compacted: i64,
    /// Leases that were granted and not known to be revoked.
    pub leases: Vec<i64>,
    /// Leases that were revoked, the latest last.
    revoked: Vec<i64>,
    /// By client: what it asked last and heard nothing of.
    pub again: BTreeMap<u32, Request>,
    leases_made: i64,
    values_made: u64,
    /// The last revision and value seen of a key.
    keys: BTreeMap<Vec<u8>, (i64, Vec<u8>)>,
}

impl Knowledge {
    pub fn learn(&mut self, request: &Request, outcome: &Outcome) {
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
            (_, Reply::Grant { id, .. }) => self.leases.push(*id),
            (Request::Revoke { id }, _) => {
                self.leases.retain(|known| known != id);
                self.revoked.push(*id);
            }
            (Request::KeepAlive { id }, Reply::KeepAlive { ttl_s: 0 })
            | (Request::TimeToLive { id, .. }, Reply::TimeToLive { ttl_s: ..0, .. }) => {
                self.leases.retain(|known| known != id);
            }
            (Request::Compact { revision }, _) => self.compacted = self.compacted.max(*revision),
            _ => {}
        }
    }

    fn key(dice: &mut Dice, keys: u64) -> Vec<u8> {
        format!("k{:02}", dice.skewed(0, keys - 1)).into_bytes()
    }

    pub fn range(dice: &mut Dice, keys: u64) -> (Vec<u8>, Vec<u8>) {
        match dice.below(10) {
            0..5 => (Self::key(dice, keys), Vec::new()),
            5..7 => (b"k".to_vec(), b"l".to_vec()),
            7 => (vec![0], vec![0]),
            _ => {
                let (a, b) = (Self::key(dice, keys), Self::key(dice, keys));
                // Backwards there is nothing in it.
                if a < b || dice.chance(100) { (a, b) } else { (a, vec![0]) }
            }
        }
    }

    /// Every value names itself.
    fn value(&mut self, dice: &mut Dice, client: u32) -> Vec<u8> {
        self.values_made += 1;
        let mut value = format!("c{client}v{}", self.values_made).into_bytes();
        if dice.chance(20) {
            value.resize(dice.between(100, 5000) as usize, b'.');
        }
        value
    }

    fn lease(&self, dice: &mut Dice) -> i64 {
        match self.leases.len() as u64 {
            // Nobody has ever granted that.
            _ if dice.chance(5) => UNKNOWN_LEASE,
            0 => 0,
            n if dice.chance(250) => self.leases[(n - 1 - dice.below(n.min(6))) as usize],
            _ => 0,
        }
    }

    /// One of the leases that were revoked last: for a moment not everybody knows.
    fn gone(&self, dice: &mut Dice) -> Option<i64> {
        let last = dice.skewed(1, 5) as usize;
        self.revoked.iter().rev().take(last).next_back().copied()
    }

    /// The next request of a client.
    pub fn request(&mut self, dice: &mut Dice, client: u32, mix: &Mix) -> Request {
        let keys = mix.keys;
        let total = mix.range + mix.put + mix.delete + mix.txn + mix.lease + mix.compact;
        let mut roll = dice.below(total);
        let mut is = |weight: u64| {
            let hit = roll < weight;
            roll = roll.wrapping_sub(weight);
            hit
        };
        if is(mix.range) {
            let (key, end) = Self::range(dice, keys);
            let limit = if dice.chance(200) { dice.between(1, 5) as i64 } else { 0 };
            let revision = match dice.below(10) {
                0 => (self.revision - dice.below(50) as i64).max(0),
                1 if dice.chance(200) => self.revision + 5,
                _ => 0,
            };
            return Request::Range { key, end, limit, revision, serializable: dice.chance(200) };
        }
        if is(mix.put) {
            let (key, value, lease) = (Self::key(dice, keys), self.value(dice, client), self.lease(dice));
            return Request::Put { key, value, lease, prev_kv: dice.chance(300) };
        }
        if is(mix.delete) {
            let (key, end) = if dice.chance(800) { (Self::key(dice, keys), vec![]) } else { Self::range(dice, keys) };
            return Request::Delete { key, end, prev_kv: dice.chance(300) };
        }
        if is(mix.txn) {
            return self.txn(dice, client, keys);
        }
        if is(mix.lease) {
            let known = (!self.leases.is_empty()).then(|| {
                let n = self.leases.len() as u64;
                self.leases[dice.below(n) as usize]
            });
            let gone = self.gone(dice);
            return match (dice.below(15), known, gone) {
                (0..6, Some(id), _) => Request::KeepAlive { id },
                (6, Some(id), _) => Request::Revoke { id },
                (7 | 12, Some(id), _) if dice.chance(mix.again) => Request::Grant { id, ttl_s: 5 },
                (8, Some(id), _) => Request::TimeToLive { id, keys: dice.chance(400) },
                (9, _, Some(id)) => Request::KeepAlive { id },
                (10, _, Some(id)) if dice.chance(300) => Request::TimeToLive { id, keys: false },
                (10, _, Some(id)) => Request::KeepAlive { id },
                (11, _, _) if dice.chance(200) => Request::Revoke { id: UNKNOWN_LEASE },
                (11, _, _) if dice.chance(200) => Request::KeepAlive { id: UNKNOWN_LEASE },
                _ => {
                    self.leases_made += 1;
                    Request::Grant { id: 1000 + self.leases_made, ttl_s: dice.skewed(2, 30) as i64 }
                }
            };
        }
        let back = dice.skewed(0, 60) as i64;
        Request::Compact { revision: (self.revision - back + if dice.chance(60) { 70 } else { 0 }).max(1) }
    }

    fn txn(&mut self, dice: &mut Dice, client: u32, keys: u64) -> Request {
        let key = Self::key(dice, keys);
        let known = self.keys.get(&key).cloned();
        let target = match (dice.below(5), known) {
            (0..3, Some((revision, _))) => Target::ModRevision(revision),
            (3, Some((_, value))) => Target::Value(value),
            (4, _) => Target::Version(dice.below(4) as i64),
            _ => Target::CreateRevision(0),
        };
        let is = dice.pick(&[
            Relation::Equal,
            Relation::Equal,
            Relation::Equal,
            Relation::NotEqual,
            Relation::Greater,
            Relation::Less,
        ]);
        let mut compares = vec![Compare { key: key.clone(), target, is }];
        while dice.chance(300) && compares.len() < 3 {
            let other = Self::key(dice, keys);
            let target = match self.keys.get(&other) {
                Some((revision, _)) => Target::ModRevision(*revision),
                None => Target::CreateRevision(0),
            };
            compares.push(Compare { key: other, target, is: Relation::Equal });
        }
        let mut free: Vec<u64> = (0..keys).collect();
        let then = self.branch(dice, client, keys, &key, &mut free.clone(), 0);
        let otherwise = self.branch(dice, client, keys, &key, &mut free, 0);
        Request::Txn { compares, then, otherwise }
    }

    /// What a transaction does; `free` are the keys that nobody has changed on this way, as a key is changed once in a
    /// transaction, and `key` the one that it is about.
    fn branch(
        &mut self,
        dice: &mut Dice,
        client: u32,
        keys: u64,
        key: &[u8],
        free: &mut Vec<u64>,
        depth: u32,
    ) -> Vec<TxnOp> {
        let numbered = |n: u64| format!("k{n:02}").into_bytes();
        let mut ops = Vec::new();
        for n in 0..dice.skewed(0, 4) {
            if depth < NESTING_MAX && dice.chance(200) {
                ops.push(self.nested(dice, client, keys, key, free, depth + 1));
                continue;
            }
            if free.len() < 2 {
                break;
            }
            let own = free.iter().position(|free| numbered(*free) == key).filter(|_| n == 0 && dice.chance(700));
            let at = own.unwrap_or_else(|| dice.below(free.len() as u64) as usize);
            let key = numbered(free.swap_remove(at));
            let prev_kv = dice.chance(200);
            ops.push(match dice.below(10) {
                0..6 => TxnOp::Put { key, value: self.value(dice, client), lease: self.lease(dice), prev_kv },
                6..8 => TxnOp::Delete { key, end: Vec::new(), prev_kv },
                _ => {
                    let (key, end) = Self::range(dice, keys);
                    // Some of the past, which may be compacted by then, or of the future: that ends all of the transaction.
                    let back = dice.chance(400).then(|| self.revision - dice.skewed(0, 60) as i64);
                    let revision = if dice.chance(20) { self.revision + 20 } else { back.unwrap_or(0).max(0) };
                    TxnOp::Range { key, end, limit: 0, revision }
                }
            });
        }
        ops
    }

    /// A transaction in a transaction. Often its condition is about the key that the outer one has just changed: it looks at
    /// what was there before.
    fn nested(
        &mut self,
        dice: &mut Dice,
        client: u32,
        keys: u64,
        key: &[u8],
        free: &mut Vec<u64>,
        depth: u32,
    ) -> TxnOp {
        let about = if dice.chance(600) { key.to_vec() } else { Self::key(dice, keys) };
        let target = match self.keys.get(&about) {
            Some((revision, _)) => Target::ModRevision(*revision),
            None => Target::CreateRevision(0),
        };
        let is = dice.pick(&[Relation::Equal, Relation::Equal, Relation::NotEqual]);
        // Only one of the two is done: both may change the same keys.
        let (mut one, mut other) = (free.clone(), free.clone());
        let then = self.branch(dice, client, keys, key, &mut one, depth);
        let otherwise = self.branch(dice, client, keys, key, &mut other, depth);
        free.retain(|key| one.contains(key) && other.contains(key));
        TxnOp::Txn { compares: vec![Compare { key: about, target, is }], then, otherwise }
    }

    /// What a watch client asks for.
    pub fn watch(&self, dice: &mut Dice, client: u32, member: u64, keys: u64) -> WatchRecord {
        let (key, end) = Self::range(dice, keys);
        // All of a long history is seen now and then only.
        let whole = self.revision - self.compacted < 200 || dice.chance(20);
        let start = match dice.below(8) {
            0..3 => 0,
            3 if whole => 1.max(self.compacted),
            4 if dice.chance(30) => -1,
            4 if whole => self.compacted + 1,
            5 => {
                let ahead = dice.between(2, 100);
                self.revision + dice.pick(&[0, 1, ahead]) as i64
            }
            _ => (self.revision - dice.below(60) as i64).max(1),
        };
        let filter = dice.below(12);
        WatchRecord {
            client,
            member,
            key,
            end,
            start,
            prev_kv: dice.chance(400),
            progress: dice.chance(400),
            no_put: filter == 0,
            no_delete: filter == 1,
            fragment: dice.chance(400),
            ..WatchRecord::default()
        }
    }
}

/// How often clients ask for what, and among how many keys.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub keys: u64,
    pub range: u64,
    pub put: u64,
    pub delete: u64,
    pub txn: u64,
    pub lease: u64,
    /// Of a thousand chances to grant a lease under an id that had one, how many are taken.
    pub again: u64,
    pub compact: u64,
}

pub fn spec(record: &WatchRecord) -> Spec {
    Spec {
        range: KeyRange::from_wire(record.key.clone().into(), record.end.clone().into()),
        start: Revision(record.start),
        filters: Filters { no_put: record.no_put, no_delete: record.no_delete },
        prev_kv: record.prev_kv,
        progress_notify: record.progress,
        fragment: record.fragment,
        id: None,
    }
}

fn put(key: &[u8], value: &[u8], lease: i64, prev_kv: bool) -> pb::PutRequest {
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    pb::PutRequest { key, value, lease, prev_kv, ..Default::default() }
}

fn delete(key: &[u8], end: &[u8], prev_kv: bool) -> pb::DeleteRangeRequest {
    let (key, range_end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(end));
    pb::DeleteRangeRequest { key, range_end, prev_kv }
}

fn range_of(key: &[u8], end: &[u8], limit: i64, revision: i64) -> pb::RangeRequest {
    let (key, range_end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(end));
    pb::RangeRequest { key, range_end, limit, revision, ..Default::default() }
}

pub fn range(request: &Request) -> Option<pb::RangeRequest> {
    match request {
        Request::Range { key, end, limit, revision, .. } => Some(range_of(key, end, *limit, *revision)),
        _ => None,
    }
}

pub fn txn(request: &Request) -> Option<pb::TxnRequest> {
    match request {
        Request::Txn { compares, then, otherwise } => Some(txn_of(compares, then, otherwise)),
        _ => None,
    }
}

fn txn_of(compares: &[Compare], then: &[TxnOp], otherwise: &[TxnOp]) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: compares.iter().map(compare).collect(),
        success: then.iter().map(operation).collect(),
        failure: otherwise.iter().map(operation).collect(),
    }
}

fn operation(op: &TxnOp) -> pb::RequestOp {
    use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
    let request = match op {
        TxnOp::Range { key, end, limit, revision } => RequestRange(range_of(key, end, *limit, *revision)),
        TxnOp::Put { key, value, lease, prev_kv } => RequestPut(put(key, value, *lease, *prev_kv)),
        TxnOp::Delete { key, end, prev_kv } => RequestDeleteRange(delete(key, end, *prev_kv)),
        TxnOp::Txn { compares, then, otherwise } => RequestTxn(txn_of(compares, then, otherwise)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(compare: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let (target, union) = match &compare.target {
        Target::ModRevision(n) => (CompareTarget::Mod, TargetUnion::ModRevision(*n)),
        Target::CreateRevision(n) => (CompareTarget::Create, TargetUnion::CreateRevision(*n)),
        Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(*n)),
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
    };
    let result = match compare.is {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: compare.key.clone().into(),
        target_union: Some(union),
        ..Default::default()
    }
}

/// The command that a request is proposed as; nothing for those that only read.
pub fn command(request: &Request) -> Option<Kind> {
    Some(match request {
        Request::Range { .. } | Request::KeepAlive { .. } | Request::TimeToLive { .. } | Request::Login { .. } => {
            return None;
        }
        Request::Users(change) => users::wire(change),
        Request::Put { key, value, lease, prev_kv } => Kind::Put(put(key, value, *lease, *prev_kv)),
        Request::Delete { key, end, prev_kv } => Kind::DeleteRange(delete(key, end, *prev_kv)),
        Request::Txn { .. } => {
            let txn = txn(request)?;
            if mvcc::txn_is_read_only(&txn) {
                return None;
            }
            Kind::Txn(txn)
        }
        Request::Grant { id, ttl_s } => Kind::LeaseGrant(pb::LeaseGrantRequest { id: *id, ttl: *ttl_s }),
        Request::Revoke { id } => Kind::LeaseRevoke(pb::LeaseRevokeRequest { id: *id }),
        Request::Compact { revision } => {
            Kind::Compaction(pb::CompactionRequest { revision: *revision, ..Default::default() })
        }
    })
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

pub fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key.to_vec(),
        value: kv.value.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

fn put_part(response: &pb::PutResponse) -> Reply {
    Reply::Put { prev: response.prev_kv.as_ref().map(key_value) }
}

fn delete_part(response: &pb::DeleteRangeResponse) -> Reply {
    Reply::Delete { deleted: response.deleted, prevs: response.prev_kvs.iter().map(key_value).collect() }
}

fn range_part(response: &pb::RangeResponse) -> Reply {
    Reply::Range { kvs: response.kvs.iter().map(key_value).collect(), more: response.more, count: response.count }
}

pub fn range_reply(response: pb::RangeResponse) -> Outcome {
    Outcome::Ok { revision: revision(&response.header), reply: range_part(&response) }
}

pub fn txn_reply(response: pb::TxnResponse) -> Outcome {
    Outcome::Ok { revision: revision(&response.header), reply: txn_part(&response) }
}

fn txn_part(response: &pb::TxnResponse) -> Reply {
    use pb::response_op::Response::{ResponseDeleteRange, ResponsePut, ResponseRange, ResponseTxn};
    let part = |op: &pb::ResponseOp| match op.response.as_ref().expect("every operation is answered") {
        ResponseRange(response) => range_part(response),
        ResponsePut(response) => put_part(response),
        ResponseDeleteRange(response) => delete_part(response),
        ResponseTxn(response) => txn_part(response),
    };
    Reply::Txn { succeeded: response.succeeded, replies: response.responses.iter().map(part).collect() }
}

/// What a reply of the state says to the client.
pub fn outcome(reply: StateReply) -> Outcome {
    match reply {
        StateReply::Put(response) => Outcome::Ok { revision: revision(&response.header), reply: put_part(&response) },
        StateReply::DeleteRange(response) => {
            Outcome::Ok { revision: revision(&response.header), reply: delete_part(&response) }
        }
        StateReply::Txn(response) => txn_reply(response),
        StateReply::Compaction(response) => Outcome::Ok { revision: revision(&response.header), reply: Reply::Compact },
        StateReply::LeaseGrant(response) => Outcome::Ok {
            revision: revision(&response.header),
            reply: Reply::Grant { id: response.id, ttl_s: response.ttl },
        },
        StateReply::LeaseRevoke(response) => Outcome::Ok { revision: revision(&response.header), reply: Reply::Revoke },
        StateReply::AuthChanged { revision, .. } => Outcome::Ok { revision: revision.0, reply: Reply::Users },
        StateReply::Authenticated { revision, token, .. } => {
            Outcome::Ok { revision: revision.0, reply: Reply::Login { token } }
        }
        StateReply::Alarm(_) | StateReply::Members(_) | StateReply::Done => panic!("no client asked for that"),
    }
}

fn refusal(refusal: &Refusal) -> Outcome {
    let text = match refusal {
        Refusal::Compacted(_) => "etcdserver: mvcc: required revision has been compacted",
        Refusal::FutureRevision => "etcdserver: mvcc: required revision is a future revision",
        Refusal::LeaseNotFound => "etcdserver: requested lease not found",
        Refusal::LeaseExists => "etcdserver: lease already exists",
        Refusal::KeyNotFound => "etcdserver: key not found",
        Refusal::NoSpace => "etcdserver: mvcc: database space exceeded",
        Refusal::Corrupt => "etcdserver: corrupt cluster",
        Refusal::InvalidSort => "etcdserver: invalid sort option",
        Refusal::Auth(error) => users::text(*error),
        Refusal::MemberNotFound
        | Refusal::MemberExists
        | Refusal::PeerUrlExists
        | Refusal::NotLearner
        | Refusal::TooManyLearners
        | Refusal::LastVoter => panic!("no client asked for that"),
    };
    Outcome::Refused(text.into())
}

/// What a failure of the server says to the client.
pub fn failure(error: &Error) -> Outcome {
    match error {
        Error::Refused(reason) => refusal(reason),
        _ => Outcome::Unknown,
    }
}

/// What a read came to.
pub fn read_outcome<T>(result: Result<T, mvcc::Error>, reply: impl FnOnce(T) -> Outcome) -> Result<Outcome, Death> {
    match result {
        Ok(response) => Ok(reply(response)),
        Err(error) => match Refusal::try_from(error) {
            Ok(reason) => Ok(refusal(&reason)),
            Err(error) => Err(error.into()),
        },
    }
}

/// A message of a stream, as its client understands it: of events there may be several, as `api::watch` cuts them.
pub fn watch_messages(message: Outgoing, piece_bytes: usize) -> Vec<WatchMessage> {
    vec![match message {
        Outgoing::Created { revision, .. } => WatchMessage::Created { revision: revision.0 },
        Outgoing::Refused { reason: watch::Refusal::Denied(_), .. } => WatchMessage::Denied,
        Outgoing::Refused { .. } => WatchMessage::Refused,
        // What the client asks for itself needs no reason.
        Outgoing::Canceled { reason: "", .. } => WatchMessage::Canceled { compact_revision: 0 },
        Outgoing::Canceled { .. } => WatchMessage::Revoked,
        Outgoing::Compacted { at, .. } => WatchMessage::Canceled { compact_revision: at.0 },
        Outgoing::Progress { id: None, revision } => WatchMessage::StreamProgress { revision: revision.0 },
        Outgoing::Progress { revision, .. } => WatchMessage::Progress { revision: revision.0 },
        Outgoing::Events(events) => {
            let header_revision = events.revision.0;
            let pieces = events.pieces(HEAD_BYTES, piece_bytes);
            let last = pieces.len() - 1;
            let message = |(at, piece): (usize, &[Bytes])| WatchMessage::Events {
                header_revision,
                fragment: at < last,
                events: read_events(piece),
            };
            return pieces.into_iter().enumerate().map(message).collect();
        }
    }]
}

fn read_events(encoded: &[Bytes]) -> Vec<Event> {
    let response = pb::WatchResponse::decode(&*encoded.concat()).expect("the hub wrote it");
    let event = |event: &mvccpb::Event| Event {
        kind: if event.r#type == mvccpb::event::EventType::Put as i32 { EventKind::Put } else { EventKind::Delete },
        kv: event.kv.as_ref().map(key_value).unwrap_or_default(),
        prev: event.prev_kv.as_ref().map(key_value),
    };
    response.events.iter().map(event).collect()
}
