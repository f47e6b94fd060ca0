//! Streams of watch requests without rhyme or reason, among writes, compactions and a store that forgets: every watcher of
//! every stream is told the truth.
//!
//! What a client may rely on, checked at each message: answers come in the order of the requests; a watcher is created before
//! anything else is said of it; no two of a stream have one id; its events are all the changes of its range from its start
//! on, each once, in order, a revision never split; after its end it is silent; progress is never ahead of events; and only a
//! compaction that overtook a watcher ends it. The member is that of the golden scripts: a state machine, a hub, no raft.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use everwatch::mvcc::Store;
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchResponse,
};
use everwatch::pb::everwatchpb::ConfState;
use everwatch::pb::mvccpb::{Event, KeyValue};
use everwatch::raft::Entry;
use everwatch::server::apply_loop::{self, Proposer};
use everwatch::server::watch_loop::{self, Shard, StoreAccess};
use everwatch::state::StateMachine;
use everwatch::state::command::{Command, Kind, ProposalWriter, encode_command};
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch};
use everwatch::types::{KeyRange, Revision};
use everwatch::watch::{Feeds, Filters, Hub, Next, Notice, Outbox, Outgoing, Refusal, Spec, StreamId};
use prost::Message;

use crate::engine::{Feed, outcome};

const OWN: Proposer = Proposer { member: 1, boot: 1 };
const KEYS: [&str; 6] = ["a", "aa", "b", "ba", "c", "\u{ff}"];
/// Values of this length fill an outbox soon.
const LARGE: usize = 300_000;

/// What a client asked for and has not been answered yet.
enum Asked {
    Create(Spec),
    Cancel(i64),
}

/// A watcher as its client sees it.
struct Watcher {
    spec: Spec,
    /// Everything before this that it wants has been told.
    next: i64,
}

struct Client {
    stream: StreamId,
    outbox: Outbox,
    asked: VecDeque<Asked>,
    live: BTreeMap<i64, Watcher>,
    stalled: bool,
}

struct InPlainSight<'a>(&'a Store);

impl StoreAccess for InPlainSight<'_> {
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(self.0)
    }
}

struct World {
    backend: MemoryBackend,
    batch: Batch,
    state: Arc<RwLock<StateMachine>>,
    feeds: Feeds,
    shard: Shard,
    /// This member hears of nothing: changes happen elsewhere, until a snapshot comes.
    cut_off: bool,
    index: u64,
    clients: Vec<Client>,
    /// Every change ever made: what it left, and what it replaced.
    events: Vec<Event>,
    keys: BTreeMap<Bytes, KeyValue>,
    revision: i64,
    compacted: i64,
    messages: usize,
    ended: usize,
}

impl World {
    fn new() -> World {
        let backend = MemoryBackend::new();
        backend.commit(&StateMachine::founding_rows(&[], &ConfState::default())).expect("memory");
        let state = StateMachine::open(backend.reader().expect("memory")).expect("a founder's rows");
        let (hub, feeds) = (Hub::new(state.kv.revision(), state.kv.compacted()), Feeds::new(1, state.kv.revision()));
        let state = Arc::new(RwLock::new(state));
        let read = state.clone();
        let record = move |place| read.read().expect("nobody panicked in here").kv.record(place).expect("memory");
        World {
            backend,
            batch: Batch::default(),
            state,
            shard: Shard::new(hub, feeds.of(0), Box::new(record)),
            feeds,
            cut_off: false,
            index: 1,
            clients: Vec::new(),
            events: Vec::new(),
            keys: BTreeMap::new(),
            revision: 1,
            compacted: -1,
            messages: 0,
            ended: 0,
        }
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.shard.hub()
    }

    fn apply(&mut self, kind: Kind) {
        self.index += 1;
        let mut proposal = ProposalWriter::new(OWN.member, OWN.boot, 0);
        proposal.push(&encode_command(&Command { id: 1, kind: Some(kind), ..Default::default() }));
        let entry = Entry { index: self.index, term: 1, data: proposal.finish(), ..Default::default() };
        let elsewhere = Feeds::new(1, self.store(Store::revision));
        let feeds = if self.cut_off { &elsewhere } else { &self.feeds };
        let batch = &mut self.batch;
        let submit = &mut |rows: Batch| batch.rows.extend(rows.rows);
        apply_loop::turn(&self.state, feeds, OWN, vec![entry], submit).expect("memory");
    }

    fn store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.state.read().expect("nobody panicked in here").kv)
    }

    fn put(&mut self, revision: i64, key: Bytes, value: Bytes) -> PutRequest {
        let old = self.keys.get(&key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            value: value.clone(),
            lease: 0,
        };
        self.keys.insert(key.clone(), kv.clone());
        self.events.push(Event { r#type: 0, kv: Some(kv), prev_kv: old });
        PutRequest { key, value, ..Default::default() }
    }

    fn delete(&mut self, revision: i64, key: Bytes, range_end: Bytes) -> DeleteRangeRequest {
        let range = KeyRange::from_wire(key.clone(), range_end.clone());
        let gone: Vec<Bytes> = self.keys.keys().filter(|key| range.contains(key)).cloned().collect();
        for key in gone {
            let old = self.keys.remove(&key);
            let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
            self.events.push(Event { r#type: 1, kv: Some(kv), prev_kv: old });
        }
        DeleteRangeRequest { key, range_end, ..Default::default() }
    }

    fn write(&mut self, feed: &mut Feed<'_>) {
        let next = self.revision + 1;
        let before = self.events.len();
        let value = |feed: &mut Feed<'_>| Bytes::from(vec![b'v'; feed.pick(&[0, 1, 2, 3, 3, 3, 30, LARGE])]);
        let kind = match feed.below(4) {
            0 => {
                let (key, range_end) = bounds(feed);
                Kind::DeleteRange(self.delete(next, key, range_end))
            }
            1 => {
                // Several keys at one revision, each of them once.
                let first = feed.below(KEYS.len());
                let mut success = Vec::new();
                let count = 1 + feed.below(4);
                for key in KEYS.iter().skip(first).take(count) {
                    let key = Bytes::from(*key);
                    let request = if feed.one_in(3) {
                        Request::RequestDeleteRange(self.delete(next, key, Bytes::new()))
                    } else {
                        let value = value(feed);
                        Request::RequestPut(self.put(next, key, value))
                    };
                    success.push(RequestOp { request: Some(request) });
                }
                Kind::Txn(TxnRequest { success, ..Default::default() })
            }
            _ => {
                let (key, value) = (feed.pick(&KEYS).into(), value(feed));
                Kind::Put(self.put(next, key, value))
            }
        };
        self.revision += i64::from(self.events.len() > before);
        self.apply(kind);
        assert_eq!(self.store(Store::revision).0, self.revision);
    }

    fn compact(&mut self, feed: &mut Feed<'_>) {
        let at = self.revision - feed.below(8) as i64;
        self.apply(Kind::Compaction(CompactionRequest { revision: at, physical: false }));
        if at > self.compacted && at <= self.revision {
            self.compacted = at;
        }
        assert_eq!(self.store(Store::compacted).0, self.compacted);
    }

    fn step(&mut self, feed: &mut Feed<'_>) {
        if feed.one_in(4) {
            self.shard.hear_some(1);
            return;
        }
        let World { state, batch, backend, feeds, cut_off, .. } = self;
        let kv = &mut state.write().expect("nobody panicked in here").kv;
        match feed.below(3) {
            0 => {
                let begins = !kv.removing();
                kv.compact_step(1 + feed.below(5), batch).expect("memory");
                if begins && !*cut_off {
                    feeds.tell(&[Notice::Removed(kv.compacted())]);
                }
            }
            1 => {
                backend.commit(&std::mem::take(batch)).expect("memory");
                kv.flushed(backend.reader().expect("memory")).expect("memory");
            }
            _ => kv.limit_recent(feed.pick(&[0, 1000])),
        }
    }

    /// Catches up those who are behind, for a while.
    fn catch_up(&self, turns: usize) -> bool {
        if self.cut_off {
            return false;
        }
        let state = self.state.read().expect("nobody panicked in here");
        (0..turns).any(|_| {
            watch_loop::turn(&self.shard, &InPlainSight(&state.kv), watch_loop::SLICE_BYTES_MAX).expect("memory")
        })
    }

    fn client(&mut self, feed: &mut Feed<'_>) -> Option<usize> {
        if self.clients.len() < 3 && (self.clients.is_empty() || feed.one_in(6)) {
            let (stream, outbox) = self.hub().open_stream();
            let (asked, live) = Default::default();
            self.clients.push(Client { stream, outbox, asked, live, stalled: false });
        }
        Some(feed.below(self.clients.len()))
    }

    fn ask(&mut self, feed: &mut Feed<'_>) {
        let Some(at) = self.client(feed) else { return };
        let stream = self.clients[at].stream;
        match feed.below(16) {
            0..=6 => {
                let (key, range_end) = bounds(feed);
                let start = match feed.below(4) {
                    0 | 1 => 0,
                    2 => self.revision + 2 - feed.below(12) as i64,
                    _ => feed.number(),
                };
                let spec = Spec {
                    range: KeyRange::from_wire(key, range_end),
                    start: Revision(start),
                    filters: Filters { no_put: feed.one_in(5), no_delete: feed.one_in(5) },
                    prev_kv: feed.one_in(3),
                    progress_notify: feed.one_in(2),
                    fragment: feed.one_in(2),
                    id: if feed.one_in(3) { Some(id(feed)) } else { None },
                };
                self.clients[at].asked.push_back(Asked::Create(spec.clone()));
                self.hub().create(stream, spec);
            }
            7..=9 => {
                let known = self.clients[at].live.keys().nth(feed.below(4)).copied();
                let id = if feed.one_in(4) { id(feed) } else { known.unwrap_or(0) };
                self.clients[at].asked.push_back(Asked::Cancel(id));
                self.hub().cancel(stream, id);
            }
            10..=11 => self.hub().progress(stream),
            12..=13 => self.hub().tick_progress(stream),
            14 => self.clients[at].stalled ^= true,
            _ => {
                self.hub().close_stream(stream);
                self.clients.remove(at);
            }
        }
    }

    fn read(&mut self, messages_max: usize) -> bool {
        let mut clients = std::mem::take(&mut self.clients);
        let before = self.messages;
        for client in clients.iter_mut().filter(|client| !client.stalled) {
            for _ in 0..messages_max {
                let Some(next) = client.outbox.try_next() else { break };
                let Next::Message(message) = next else { panic!("nobody ended the stream") };
                self.messages += 1;
                self.hear(client, message);
            }
        }
        self.clients = clients;
        self.messages > before
    }

    fn hear(&mut self, client: &mut Client, message: Outgoing) {
        match message {
            Outgoing::Created { id, revision } => {
                let spec = client.created();
                assert!(spec.id.is_none_or(|wanted| wanted == id), "the id that was asked for");
                let next = if spec.start.0 == 0 { revision.0 + 1 } else { spec.start.0 };
                let taken = client.live.insert(id, Watcher { spec, next });
                assert!(taken.is_none() && id != -1, "two watchers {id}");
            }
            Outgoing::Refused { reason, .. } => {
                let spec = client.created();
                match reason {
                    Refusal::NegativeStart => assert!(spec.start.0 < 0),
                    Refusal::EmptyRange => assert!(spec.range.is_empty()),
                    Refusal::Denied(_) | Refusal::StreamFull | Refusal::MemberFull => unreachable!("nobody is asked"),
                    Refusal::DuplicateId => {
                        assert!(spec.id.is_some_and(|id| id == -1 || client.live.contains_key(&id)));
                    }
                }
            }
            Outgoing::Canceled { id, .. } => {
                loop {
                    match client.asked.pop_front() {
                        Some(Asked::Cancel(asked)) if asked == id => break,
                        Some(Asked::Cancel(other)) => assert!(!client.live.contains_key(&other), "{other} was live"),
                        _ => panic!("nobody asked to cancel {id}"),
                    }
                }
                client.live.remove(&id);
            }
            Outgoing::Compacted { id, at } => {
                let watcher = client.live.remove(&id).expect("it was live");
                assert!(watcher.next < at.0 && at.0 <= self.compacted, "{} needs nothing before {at}", watcher.next);
                self.ended += 1;
            }
            Outgoing::Progress { id, revision } => {
                assert!(revision.0 <= self.revision);
                for (own, watcher) in client.live.iter_mut().filter(|(own, _)| id.is_none_or(|id| id == **own)) {
                    assert!(id.is_none() || watcher.spec.progress_notify);
                    let missing = self.wanted(watcher, revision.0).len();
                    assert_eq!(missing, 0, "progress {revision} overtakes events of {own}");
                    watcher.next = watcher.next.max(revision.0 + 1);
                }
            }
            Outgoing::Events(events) => {
                let ids = events.ids.as_slice();
                let &[id] = ids else {
                    assert!(!ids.is_empty() && ids.is_sorted());
                    return events.each().for_each(|events| self.hear(client, Outgoing::Events(events)));
                };
                let watcher = client.live.get_mut(&id).expect("events come to those who live");
                let bytes = Bytes::from(events.events.as_slice().concat());
                assert_eq!(bytes.len(), events.bytes);
                let told = WatchResponse::decode(bytes).expect("events are a response").events;
                let wanted = self.wanted(watcher, events.revision.0);
                assert!(!told.is_empty() && events.revision.0 <= self.revision);
                assert_eq!(told.len(), wanted.len(), "{} to {}", watcher.next, events.revision);
                for (told, wanted) in told.iter().zip(wanted) {
                    assert_eq!((told.r#type, &told.kv), (wanted.r#type, &wanted.kv));
                    let made = wanted.kv.as_ref().expect("an event has a key").mod_revision;
                    // What a compaction took need not be told any more.
                    let lost = told.prev_kv.is_none() && made <= self.compacted;
                    let previous = wanted.prev_kv.as_ref().filter(|_| watcher.spec.prev_kv);
                    assert!(lost || told.prev_kv.as_ref() == previous, "{told:?} instead of {previous:?}");
                }
                watcher.next = events.revision.0 + 1;
            }
        }
    }

    /// What a watcher has yet to be told, up to a revision.
    fn wanted(&self, watcher: &Watcher, to: i64) -> Vec<&Event> {
        let Watcher { spec, next } = watcher;
        let wants = |event: &&Event| {
            let kv = event.kv.as_ref().expect("an event has a key");
            let filtered = if event.r#type == 0 { spec.filters.no_put } else { spec.filters.no_delete };
            (*next..=to).contains(&kv.mod_revision) && spec.range.contains(&kv.key) && !filtered
        };
        self.events.iter().filter(wants).collect()
    }

    fn settle(&mut self) {
        self.install();
        self.clients.iter_mut().for_each(|client| client.stalled = false);
        loop {
            drop(self.hub());
            if !self.catch_up(1) && !self.read(usize::MAX) {
                break;
            }
        }
        for client in &self.clients {
            let all_answered = client.asked.iter().all(|asked| match asked {
                Asked::Create(_) => false,
                Asked::Cancel(id) => !client.live.contains_key(id),
            });
            assert!(all_answered, "a request was not answered");
            for (id, watcher) in &client.live {
                let missing = self.wanted(watcher, self.revision);
                assert!(missing.is_empty(), "watcher {id} was never told of {missing:?}");
            }
        }
        let stats = self.hub().stats();
        let live: usize = self.clients.iter().map(|client| client.live.len()).sum();
        assert_eq!((stats.watchers, stats.slow_watchers, stats.pending_events), (live, 0, 0));
    }

    fn install(&mut self) {
        if std::mem::take(&mut self.cut_off) {
            let (revision, compacted) = (Revision(self.revision), Revision(self.compacted));
            self.feeds.tell(&[Notice::Restored { revision, compacted }]);
        }
    }
}

impl Client {
    /// What was asked for, now that it is answered.
    fn created(&mut self) -> Spec {
        loop {
            match self.asked.pop_front().expect("something was asked") {
                Asked::Create(spec) => return spec,
                // One that is not there gets no answer.
                Asked::Cancel(id) => assert!(!self.live.contains_key(&id), "the cancel of {id} was not answered"),
            }
        }
    }
}

fn id(feed: &mut Feed<'_>) -> i64 {
    feed.pick(&[0, 1, 2, 3, 7, -1, -2, i64::MAX, i64::MIN])
}

fn bounds(feed: &mut Feed<'_>) -> (Bytes, Bytes) {
    let ends = ["", "", "\0", "b", "c", "zz", "a"];
    let key = if feed.one_in(5) { "" } else { feed.pick(&KEYS) };
    (key.into(), feed.pick(&ends).into())
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let mut world = World::new();
    while !feed.is_empty() {
        match feed.below(32) {
            0..=9 => world.write(&mut feed),
            10..=21 => world.ask(&mut feed),
            22 => world.compact(&mut feed),
            23..=24 => world.step(&mut feed),
            25..=26 => drop(world.catch_up(1 + feed.below(3))),
            27 => match world.cut_off {
                true => world.install(),
                false => world.cut_off = feed.one_in(3),
            },
            _ => drop(world.read(1 + feed.below(6))),
        }
    }
    world.settle();
    let live: usize = world.clients.iter().map(|client| client.live.len()).sum();
    outcome((world.messages.min(60) / 4, world.ended.min(4), live.min(6), world.revision.min(40) / 8))
}
