//! A model that keeps everything and looks at all of it for every question, and the random calls that compare it with the
//! store.
//!
//! Between calls the backend commits some of what waits for it, rows are removed, and the store is opened again, with
//! or without what the backend had not committed. Whoever runs it prints the seed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use everwatch::mvcc::change::{ChangeKind, SharedChanges};
use everwatch::mvcc::{Error, History, Store, txn_is_read_only};
use everwatch::pb::etcdserverpb::compare::TargetUnion;
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::response_op::Response;
use everwatch::pb::etcdserverpb::*;
use everwatch::pb::mvccpb::KeyValue;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket};
use everwatch::types::{KeyRange, LeaseId, Revision};
use prost::Message;

const KEYS: [&str; 7] = ["a", "aa", "ab", "b", "c", "ca", "\u{ff}"];
/// Leases from here on do not exist.
const NO_LEASE_FROM: i64 = 4;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

type State = BTreeMap<Bytes, KeyValue>;

/// Every change ever made, in order.
#[derive(Clone, Default)]
struct Model {
    log: Vec<(i64, Bytes, Option<KeyValue>)>,
    compacted: i64,
}

impl Model {
    fn revision(&self) -> i64 {
        self.log.last().map_or(1, |(revision, ..)| *revision)
    }

    fn at(&self, revision: i64) -> State {
        let mut state = State::new();
        for (_, key, kv) in self.log.iter().take_while(|(made, ..)| *made <= revision) {
            match kv {
                Some(kv) => state.insert(key.clone(), kv.clone()),
                None => state.remove(key),
            };
        }
        state
    }

    fn forget_after(&mut self, revision: i64, compacted: i64) {
        self.log.retain(|(made, ..)| *made <= revision);
        self.compacted = compacted;
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

/// A write to the model under way.
struct Attempt<'a> {
    model: &'a Model,
    state: State,
    log: Vec<(i64, Bytes, Option<KeyValue>)>,
}

impl Attempt<'_> {
    fn new(model: &Model) -> Attempt<'_> {
        Attempt { model, state: model.at(i64::MAX), log: Vec::new() }
    }

    fn revision(&self) -> i64 {
        self.model.revision() + !self.log.is_empty() as i64
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let next = self.model.revision() + 1;
        let old = self.state.get(&request.key).cloned();
        let kept = old.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: if old.is_some() { kept.create_revision } else { next },
            mod_revision: next,
            version: kept.version + 1,
            value: if request.ignore_value { kept.value } else { request.value.clone() },
            lease: if request.ignore_lease { kept.lease } else { request.lease },
        };
        self.state.insert(kv.key.clone(), kv.clone());
        self.log.push((next, kv.key.clone(), Some(kv)));
        PutResponse { header: header(self.revision()), prev_kv: old.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let gone: Vec<KeyValue> = self.state.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
        for kv in &gone {
            self.state.remove(&kv.key);
            self.log.push((self.model.revision() + 1, kv.key.clone(), None));
        }
        let deleted = gone.len() as i64;
        let prev_kvs = if request.prev_kv { gone } else { Vec::new() };
        DeleteRangeResponse { header: header(self.revision()), deleted, prev_kvs }
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, String> {
        let revision = self.revision();
        if request.revision > revision {
            return Err("future revision".into());
        }
        if request.revision > 0 && request.revision < self.model.compacted {
            return Err(format!("compacted at {}", self.model.compacted));
        }
        let now = request.revision <= 0 || request.revision == revision;
        let state = if now { self.state.clone() } else { self.model.at(request.revision) };
        Ok(range_of(&state, request, revision))
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, String> {
        let (mut verdicts, mut chosen) = (Vec::new(), Vec::new());
        judge(&self.state, request, &mut verdicts, &mut chosen);
        for put in chosen.iter().filter_map(|op| if let Request::RequestPut(put) = op { Some(put) } else { None }) {
            if (put.ignore_lease || put.ignore_value) && !self.state.contains_key(&put.key) {
                return Err("key not found".into());
            }
            if put.lease >= NO_LEASE_FROM {
                return Err("lease not found".into());
            }
        }
        for range in chosen.iter().filter_map(|op| if let Request::RequestRange(r) = op { Some(r) } else { None }) {
            if range.revision > self.revision() {
                return Err("future revision".into());
            }
            if range.revision != 0 && range.revision < self.model.compacted {
                return Err(format!("compacted at {}", self.model.compacted));
            }
        }
        let mut response = self.run(request, &mut verdicts.into_iter());
        response.header = header(self.revision());
        Ok(response)
    }

    fn run(&mut self, request: &TxnRequest, verdicts: &mut std::vec::IntoIter<bool>) -> TxnResponse {
        let succeeded = verdicts.next().unwrap();
        let mut responses = Vec::new();
        for op in if succeeded { &request.success } else { &request.failure } {
            responses.push(ResponseOp {
                response: Some(match op.request.as_ref().unwrap() {
                    Request::RequestRange(range) => Response::ResponseRange(self.range(range).unwrap()),
                    Request::RequestPut(put) => Response::ResponsePut(self.put(put)),
                    Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(delete)),
                    Request::RequestTxn(nested) => Response::ResponseTxn(self.run(nested, verdicts)),
                }),
            });
        }
        TxnResponse { header: header(0), succeeded, responses }
    }
}

fn judge<'a>(state: &State, request: &'a TxnRequest, verdicts: &mut Vec<bool>, chosen: &mut Vec<&'a Request>) {
    let verdict = request.compare.iter().all(|compare| holds(state, compare));
    verdicts.push(verdict);
    for op in if verdict { &request.success } else { &request.failure } {
        match op.request.as_ref().unwrap() {
            Request::RequestTxn(nested) => judge(state, nested, verdicts, chosen),
            op => chosen.push(op),
        }
    }
}

fn holds(state: &State, compare: &Compare) -> bool {
    let range = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
    let judge = |kv: &KeyValue| {
        let ordering = match compare.target_union.as_ref().unwrap() {
            TargetUnion::Version(n) => kv.version.cmp(n),
            TargetUnion::CreateRevision(n) => kv.create_revision.cmp(n),
            TargetUnion::ModRevision(n) => kv.mod_revision.cmp(n),
            TargetUnion::Value(value) => kv.value.cmp(value),
            TargetUnion::Lease(n) => kv.lease.cmp(n),
        };
        match compare.result {
            0 => ordering == Ordering::Equal,
            1 => ordering == Ordering::Greater,
            2 => ordering == Ordering::Less,
            _ => ordering != Ordering::Equal,
        }
    };
    let mut kvs = state.values().filter(|kv| range.contains(&kv.key)).peekable();
    match kvs.peek() {
        None => compare.target != 3 && judge(&KeyValue::default()),
        Some(_) => kvs.all(judge),
    }
}

/// What a range answers, in the words of the API.
fn range_of(state: &State, request: &RangeRequest, revision: i64) -> RangeResponse {
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let mut kvs: Vec<KeyValue> = state.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
    if request.sort_order == 0 && bounds == [0; 4] && request.limit > 0 {
        kvs.truncate(limit + 1);
    }
    kvs.retain(|kv| {
        (bounds[0] == 0 || kv.mod_revision >= bounds[0])
            && (bounds[1] == 0 || kv.mod_revision <= bounds[1])
            && (bounds[2] == 0 || kv.create_revision >= bounds[2])
            && (bounds[3] == 0 || kv.create_revision <= bounds[3])
    });
    let compare = |a: &KeyValue, b: &KeyValue| match request.sort_target {
        0 => a.key.cmp(&b.key),
        1 => a.version.cmp(&b.version),
        2 => a.create_revision.cmp(&b.create_revision),
        3 => a.mod_revision.cmp(&b.mod_revision),
        _ => a.value.cmp(&b.value),
    };
    match request.sort_order {
        2 => kvs.sort_by(|a, b| compare(b, a)),
        _ => kvs.sort_by(compare),
    }
    if request.count_only {
        kvs.clear();
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: header(revision), kvs, more, count }
}

/// The store, the model, and a backend that runs behind.
pub(crate) struct Harness {
    dice: Dice,
    recent_max: usize,
    store: Store,
    model: Model,
    rows: MemoryBackend,
    /// Not committed yet, each with the revision and the compacted revision after it.
    waiting: VecDeque<(Batch, i64, i64)>,
    committed: (i64, i64),
}

impl Harness {
    pub(crate) fn new(seed: u64, recent_max: usize) -> Harness {
        let rows = MemoryBackend::new();
        let (mut store, _) = Store::open(rows.reader().unwrap()).unwrap();
        store.limit_recent(recent_max);
        let model = Model { compacted: -1, ..Model::default() };
        let dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Harness { dice, recent_max, store, model, rows, waiting: VecDeque::new(), committed: (1, -1) }
    }

    pub(crate) fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.act();
            assert_eq!(self.store.revision().0, self.model.revision());
            assert_eq!(self.store.compacted().0, self.model.compacted);
            self.compare_range();
            if self.dice.one_in(20) {
                self.compare_everything();
            }
        }
        self.compare_everything();
    }

    fn act(&mut self) {
        match self.dice.below(40) {
            0..14 => {
                let request = self.put_request(None);
                let mut expected = Attempt::new(&self.model);
                let missing =
                    (request.ignore_value || request.ignore_lease) && !expected.state.contains_key(&request.key);
                let expected = if missing { Err("key not found".into()) } else { Ok(expected.put(&request)) }
                    .map(|response| (response, expected.log));
                let got = self.store.put(&request);
                self.settle(got.map(|w| (w.response, w.changes, w.attachments)), expected);
            }
            14..18 => {
                let request = self.delete_request();
                let mut attempt = Attempt::new(&self.model);
                let expected = Ok((attempt.delete(&request), attempt.log));
                let got = self.store.delete_range(&request);
                self.settle(got.map(|w| (w.response, w.changes, w.attachments)), expected);
            }
            18..26 => {
                let request = self.txn_request(0, &mut BTreeSet::new());
                let mut attempt = Attempt::new(&self.model);
                let expected = attempt.txn(&request).map(|response| (response, attempt.log));
                if txn_is_read_only(&request) {
                    let got = self.store.read_txn(&request).map_err(|error| error.to_string());
                    assert_eq!(got, expected.clone().map(|(response, _)| response));
                }
                let got = self.store.txn(&request, &|lease| lease.0 < NO_LEASE_FROM);
                self.settle(got.map(|w| (w.response, w.changes, w.attachments)), expected);
            }
            26 => {
                let mut keys: Vec<Bytes> = (0..3).map(|_| self.key()).collect();
                keys.sort();
                keys.dedup();
                let mut attempt = Attempt::new(&self.model);
                for key in &keys {
                    attempt.delete(&DeleteRangeRequest { key: key.clone(), ..Default::default() });
                }
                let expected = Ok(((), attempt.log));
                let got = self.store.delete_keys(&keys);
                self.settle(got.map(|w| (w.response, w.changes, w.attachments)), expected);
            }
            27 => self.compact(),
            28..32 => self.compact_step(),
            32..37 => {
                let batches = self.dice.pick(&[1, 2, 3, 8, usize::MAX]);
                self.commit(batches);
            }
            37 => self.sliced_scan(),
            38 => {
                self.commit(usize::MAX);
                self.reopen();
            }
            _ => {
                // A crash; what the backend has not committed is gone (a member would get it again from its log).
                self.waiting.clear();
                self.model.forget_after(self.committed.0, self.committed.1);
                self.reopen();
            }
        }
    }

    fn compact(&mut self) {
        let at = self.model.revision() + 2 - self.dice.below(12) as i64;
        let mut batch = Batch::default();
        let expected = if at <= self.model.compacted {
            Err(format!("compacted at {}", self.model.compacted))
        } else if at > self.model.revision() {
            Err("future revision".into())
        } else {
            Ok(())
        };
        let got = self.store.compact(Revision(at), &mut batch).map_err(|error| error.to_string());
        assert_eq!(got, expected);
        if got.is_ok() {
            self.model.compacted = at;
        }
        self.wait(batch);
    }

    fn compact_step(&mut self) {
        let mut batch = Batch::default();
        let work_max = self.dice.below(6) as usize;
        let more = self.store.compact_step(work_max, &mut batch).unwrap();
        assert_eq!(more, self.store.compacting());
        self.wait(batch);
    }

    /// Compares what a write came to, and takes it into the model and the backend's queue.
    #[allow(clippy::type_complexity)]
    fn settle<R: PartialEq + std::fmt::Debug>(
        &mut self,
        got: Result<(R, Option<SharedChanges>, Vec<(Bytes, LeaseId)>), Error>,
        expected: Result<(R, Vec<(i64, Bytes, Option<KeyValue>)>), String>,
    ) {
        let (got, changes, attachments) = match (got, expected) {
            (Err(got), Err(expected)) => return assert_eq!(got.to_string(), expected),
            (Ok((got, changes, attachments)), Ok((expected, log))) => {
                assert_eq!(got, expected);
                (log, changes, attachments)
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        };
        let before = self.leases();
        self.model.log.extend(got);
        let mut batch = Batch::default();
        if let Some(changes) = changes {
            changes.rows(&mut batch);
        }
        let mut leases = before;
        for (key, lease) in attachments {
            match lease {
                LeaseId::NONE => assert!(leases.remove(&key).is_some(), "detached from nothing"),
                lease => drop(leases.insert(key, lease)),
            }
        }
        assert_eq!(leases, self.leases());
        self.wait(batch);
    }

    fn leases(&self) -> BTreeMap<Bytes, LeaseId> {
        let state = self.model.at(i64::MAX).into_iter();
        state.filter(|(_, kv)| kv.lease != 0).map(|(key, kv)| (key, LeaseId(kv.lease))).collect()
    }

    fn wait(&mut self, mut batch: Batch) {
        self.store.meta_rows(&mut batch);
        self.waiting.push_back((batch, self.model.revision(), self.model.compacted));
    }

    fn commit(&mut self, batches: usize) {
        for _ in 0..batches {
            let Some((batch, revision, compacted)) = self.waiting.pop_front() else { break };
            self.rows.commit(&batch).unwrap();
            self.committed = (revision, compacted);
        }
        self.store.flushed(self.rows.reader().unwrap()).unwrap();
    }

    fn reopen(&mut self) {
        let (store, attached) = Store::open(self.rows.reader().unwrap()).unwrap();
        self.store = store;
        self.store.limit_recent(self.recent_max);
        assert_eq!(attached, self.leases().into_iter().collect::<Vec<_>>());
    }

    fn compare_range(&mut self) {
        let request = self.range_request();
        let expected = Attempt::new(&self.model).range(&request);
        assert_eq!(self.store.range(&request).map_err(|error| error.to_string()), expected, "{request:?}");
    }

    /// A range read in slices, with writes in between, sees one revision.
    fn sliced_scan(&mut self) {
        let request = self.range_request();
        let Ok(mut scan) = self.store.scan(&request) else { return };
        loop {
            match self.store.scan_more(&mut scan, 1) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    assert!(request.revision > 0 && request.revision < self.model.compacted, "{error}");
                    return;
                }
            }
            // Anything but another scan or a reopening.
            for _ in 0..self.dice.below(4) {
                let before = self.dice.0;
                if self.dice.below(40) < 37 {
                    self.dice.0 = before;
                    self.act();
                }
            }
            if self.dice.one_in(4) {
                self.compact();
                (0..5).for_each(|_| self.compact_step());
                self.commit(usize::MAX);
            }
        }
        // What is committed or removed now is too late to matter.
        let revision = scan.revision().0;
        assert!(request.revision <= 0 || revision == request.revision);
        // The header says so too, even when a compaction made it begin again.
        assert!(if request.revision > 0 { scan.began_at().0 >= revision } else { scan.began_at().0 == revision });
        let expected = range_of(&self.model.at(revision), &request, revision);
        self.commit(3);
        assert_eq!(scan.finish().unwrap().into_response(Revision(revision)).unwrap(), expected);
    }

    fn compare_everything(&mut self) {
        let (revision, compacted) = (self.model.revision(), self.model.compacted);
        assert_eq!(self.store.keys_total(), self.model.at(revision).len());
        for at in compacted.max(1)..=revision {
            let request = RangeRequest { range_end: "\0".into(), revision: at, ..Default::default() };
            assert_eq!(self.store.range(&request).unwrap().kvs, self.model.at(at).into_values().collect::<Vec<_>>());
        }
        let from = 1 + self.dice.below(revision as u64 + 2) as i64;
        self.compare_history(from);
        self.compare_hash();
        if self.waiting.is_empty() && !self.store.compacting() {
            self.compare_rows();
        }
    }

    /// After a compaction is done the backend has what can still be read, and nothing else.
    fn compare_rows(&self) {
        let compacted = self.model.compacted;
        let kept = self.model.at(compacted);
        let stays = |(made, key, kv): &&(i64, Bytes, Option<KeyValue>)| {
            *made > compacted || (kv.is_none() && *made == compacted) || (kv.is_some() && kv.as_ref() == kept.get(key))
        };
        let mut rows = 0;
        self.rows
            .reader()
            .unwrap()
            .scan(Bucket::Key, &[], None, &mut |_, _| {
                rows += 1;
                true
            })
            .unwrap();
        assert_eq!(rows, self.model.log.iter().filter(stays).count());
    }

    fn compare_history(&mut self, from: i64) {
        let (revision, compacted) = (self.model.revision(), self.model.compacted);
        // Until rows are removed, what is compacted is still told to those who were reading it.
        let retained = self.store.retained().0;
        assert!(retained <= compacted);
        let mut expected = self.model.log.iter().filter(|(made, ..)| *made >= from);
        let mut next = from;
        let bytes_max = self.dice.pick(&[0, 100, 3_000]);
        loop {
            let sets = match self.store.history(Revision(next), bytes_max) {
                History::Compacted { at } => {
                    assert!(next < retained && at.0 == retained);
                    return;
                }
                History::Ready(sets) => sets,
                History::Behind(scan) => {
                    assert!(scan.to().0 <= self.committed.0);
                    let mut sets = scan.read(bytes_max).unwrap();
                    self.store.link(&mut sets);
                    sets.into_iter().map(Arc::new).collect()
                }
            };
            assert!(next >= retained);
            if sets.is_empty() {
                assert!(next.max(2) > revision && expected.next().is_none());
                return;
            }
            for set in &sets {
                for change in &set.changes {
                    let (made, key, kv) = expected.next().unwrap();
                    assert_eq!(
                        (set.revision.0, &change.key, change.kind == ChangeKind::Put),
                        (*made, key, kv.is_some())
                    );
                    if let Some(kv) = kv {
                        assert_eq!(change.record, kv.encode_to_vec());
                    }
                    let before = self.model.at(made - 1).remove(key);
                    let previous = self.store.previous(key, Revision(*made)).unwrap();
                    let shown = before.as_ref().filter(|_| *made > compacted);
                    assert_eq!(previous, shown.map(|kv| Bytes::from(kv.encode_to_vec())));
                    if *made > retained {
                        assert_eq!(change.replaced.map(|place| place.main), before.map(|kv| kv.mod_revision));
                    }
                }
            }
            next = sets.last().unwrap().revision.0 + 1;
        }
    }

    /// The hash as it is defined, over what a compaction that is done would have left.
    fn compare_hash(&mut self) {
        let (revision, compacted) = (self.model.revision(), self.model.compacted);
        let at = revision - self.dice.below((revision - compacted.max(1)) as u64 + 1) as i64;
        let values =
            |at: i64| self.model.at(at).into_values().map(|kv| (kv.mod_revision, kv.key)).collect::<BTreeSet<_>>();
        let kept = Some(values(at)).filter(|kept| !kept.is_empty()).unwrap_or_else(|| values(compacted));
        let mut bytes = b"key".to_vec();
        let mut sub = 0;
        for (n, (made, key, kv)) in self.model.log.iter().enumerate() {
            sub = if n > 0 && self.model.log[n - 1].0 == *made { sub + 1 } else { 0 };
            if *made > at || (*made <= compacted && (kv.is_none() || !kept.contains(&(*made, key.clone())))) {
                continue;
            }
            bytes.extend(made.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(i64::to_be_bytes(sub));
            match kv {
                Some(kv) => bytes.extend(kv.encode_to_vec()),
                None => {
                    bytes.push(b't');
                    bytes.extend(KeyValue { key: key.clone(), ..Default::default() }.encode_to_vec());
                }
            }
        }
        let hash = self.store.hash_kv(Revision(at)).unwrap();
        assert_eq!((hash.hash, hash.compact_revision, hash.hash_revision), (crc32c::crc32c(&bytes), compacted, at));
    }

    fn key(&mut self) -> Bytes {
        self.dice.pick(&KEYS).into()
    }

    fn bounds(&mut self) -> (Bytes, Bytes) {
        let ends = ["", "", "\0", "b", "c", "zzz"];
        (self.key(), self.dice.pick(&ends).into())
    }

    /// `taken`: keys that the transaction may not put any more.
    fn put_request(&mut self, taken: Option<&BTreeSet<Bytes>>) -> PutRequest {
        let ignore_value = self.dice.one_in(8);
        let ignore_lease = self.dice.one_in(8);
        let key = loop {
            let key = self.key();
            if taken.is_none_or(|taken| !taken.contains(&key)) {
                break key;
            }
        };
        let len = self.dice.below(4) as usize;
        let value = if ignore_value { Bytes::new() } else { vec![b'0' + self.dice.below(4) as u8; len].into() };
        // A plain put's lease is checked by the caller, so it exists; in a transaction it may not.
        let leases = if taken.is_some() { &[0, 0, 1, 2, 3, 3, 3, NO_LEASE_FROM][..] } else { &[0, 0, 1, 2, 3] };
        let lease = if ignore_lease { 0 } else { self.dice.pick(leases) };
        PutRequest { key, value, lease, prev_kv: self.dice.one_in(3), ignore_value, ignore_lease }
    }

    fn delete_request(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.bounds();
        let range_end = if self.dice.one_in(2) { range_end } else { Bytes::new() };
        DeleteRangeRequest { key, range_end, prev_kv: self.dice.one_in(2) }
    }

    fn range_request(&mut self) -> RangeRequest {
        let (key, range_end) = self.bounds();
        let revision = self.model.revision();
        let near = |dice: &mut Dice| if dice.one_in(4) { revision + 1 - dice.below(15) as i64 } else { 0 };
        RangeRequest {
            key,
            range_end,
            limit: self.dice.pick(&[0, 0, 1, 2, 3, -1, i64::MAX - 1]),
            revision: near(&mut self.dice),
            sort_order: self.dice.below(3) as i32,
            sort_target: self.dice.below(5) as i32,
            serializable: false,
            keys_only: self.dice.one_in(5),
            count_only: self.dice.one_in(8),
            min_mod_revision: near(&mut self.dice),
            max_mod_revision: near(&mut self.dice),
            min_create_revision: near(&mut self.dice),
            max_create_revision: near(&mut self.dice),
        }
    }

    fn txn_request(&mut self, depth: usize, taken: &mut BTreeSet<Bytes>) -> TxnRequest {
        let compare = (0..self.dice.below(3)).map(|_| self.compare()).collect();
        // Only one of the branches runs, yet what both take is taken: stricter than the edge, and simpler.
        let success = self.ops(depth, taken);
        let failure = self.ops(depth, taken);
        TxnRequest { compare, success, failure }
    }

    /// Operations that touch every key at most once.
    fn ops(&mut self, depth: usize, taken: &mut BTreeSet<Bytes>) -> Vec<RequestOp> {
        let mut ops = Vec::new();
        for _ in 0..self.dice.below(4) {
            let request = match self.dice.below(8) {
                0..3 if taken.len() < KEYS.len() => {
                    let put = self.put_request(Some(taken));
                    taken.insert(put.key.clone());
                    Request::RequestPut(put)
                }
                3 => {
                    let delete = self.delete_request();
                    let range = KeyRange::from_wire(delete.key.clone(), delete.range_end.clone());
                    let keys = KEYS.iter().map(|key| Bytes::from(*key)).filter(|key| range.contains(key));
                    let keys: Vec<Bytes> = keys.collect();
                    if keys.iter().any(|key| taken.contains(key)) {
                        continue;
                    }
                    taken.extend(keys);
                    Request::RequestDeleteRange(delete)
                }
                4 if depth < 2 => Request::RequestTxn(self.txn_request(depth + 1, taken)),
                _ => Request::RequestRange(self.range_request()),
            };
            ops.push(RequestOp { request: Some(request) });
        }
        ops
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = self.bounds();
        let revision = self.model.revision() - self.dice.below(10) as i64;
        let small = self.dice.below(4) as i64;
        let target = self.dice.below(5) as i32;
        let wanted = match target {
            0 => TargetUnion::Version(small),
            1 => TargetUnion::CreateRevision(revision),
            2 => TargetUnion::ModRevision(revision),
            3 => TargetUnion::Value(vec![b'0' + small as u8; 2].into()),
            _ => TargetUnion::Lease(small),
        };
        Compare { result: self.dice.below(4) as i32, target, key, range_end, target_union: Some(wanted) }
    }
}
