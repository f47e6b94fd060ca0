//! The hub against a client that checks every message, under random traffic.
//!
//! The rule that carries most of the weight: a message of events completes its watcher up to the header's revision. So what
//! it holds must be exactly the wanted changes after the last completed revision, no more, no less, none twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::dice::Dice;
use super::*;
use crate::mvcc::change::{Change, ChangeKind, ChangeSet, SharedChanges};
use crate::mvcc::revision::RevisionKey;
use crate::pb::etcdserverpb::WatchResponse;
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::types::{KeyRange, Revision};

/// What really happened: every event with its previous value, by revision (the first write is revision 2).
#[derive(Default)]
struct Truth {
    revisions: Vec<Vec<Event>>,
    live: BTreeMap<Bytes, KeyValue>,
}

impl Truth {
    fn revision(&self) -> Revision {
        Revision(self.revisions.len() as i64 + 1)
    }

    fn event(&mut self, key: Bytes, value: Option<Bytes>, sub: usize) -> Option<(Event, Change)> {
        let main = self.revision().0 + 1;
        let prev_kv = self.live.get(&key).cloned();
        let replaced = prev_kv.as_ref().map(|kv| RevisionKey { main: kv.mod_revision, sub: sub as u32 });
        let (kind, kv, record) = match value {
            Some(value) => {
                let old = prev_kv.clone().unwrap_or(KeyValue { create_revision: main, ..Default::default() });
                let kv =
                    KeyValue { key: key.clone(), value, mod_revision: main, version: old.version + 1, lease: 0, ..old };
                self.live.insert(key.clone(), kv.clone());
                (ChangeKind::Put, kv.clone(), kv)
            }
            None => {
                self.live.remove(&key)?;
                let record = KeyValue { key: key.clone(), ..Default::default() };
                (ChangeKind::Delete, KeyValue { mod_revision: main, ..record.clone() }, record)
            }
        };
        let r#type = if kind == ChangeKind::Put { EventType::Put } else { EventType::Delete } as i32;
        let change = Change::new(key, kind, record.encode_to_vec().into(), replaced);
        Some((Event { r#type, kv: Some(kv), prev_kv }, change))
    }

    /// A write of up to three keys.
    fn write(&mut self, dice: &mut Dice) -> Option<SharedChanges> {
        let first = dice.below(6);
        let (mut events, mut changes) = (Vec::new(), Vec::new());
        for sub in 0..=dice.below(3) {
            let key = Bytes::from(vec![b'a' + ((first + sub) % 6) as u8]);
            // Values of one key are so large that a few of them fill an outbox.
            let len = if key == "c" { 300 << 10 } else { 3 };
            let value = (dice.below(3) > 0).then(|| Bytes::from(vec![dice.below(256) as u8; len]));
            if let Some((event, change)) = self.event(key, value, changes.len()) {
                events.push(event);
                changes.push(change);
            }
        }
        if changes.is_empty() {
            return None;
        }
        self.revisions.push(events);
        Some(Arc::new(ChangeSet { revision: self.revision(), changes }))
    }

    fn previous(&self, revision: Revision, key: &Bytes) -> Option<Bytes> {
        let events = &self.revisions[revision.0 as usize - 2];
        let event = events.iter().find(|event| event.kv.as_ref().unwrap().key == key)?;
        event.prev_kv.as_ref().map(|kv| kv.encode_to_vec().into())
    }

    fn wanted(&self, spec: &Spec, after: Revision, to: Revision) -> Vec<Event> {
        let position = |revision: Revision| revision.0.max(1) as usize - 1;
        let end = position(to);
        let mut wanted: Vec<Event> = self.revisions[position(after).min(end)..end].concat();
        wanted.retain(|event| {
            let kind = if event.r#type == 0 { ChangeKind::Put } else { ChangeKind::Delete };
            spec.range.contains(&event.kv.as_ref().unwrap().key) && spec.filters.admit(kind)
        });
        wanted
    }
}

/// A watcher as its client sees it.
struct Watching {
    spec: Spec,
    /// Everything wanted up to here has arrived.
    complete: Revision,
}

struct Client {
    stream: StreamId,
    outbox: Outbox,
    /// What was asked for and not answered.
    creates: VecDeque<Spec>,
    watching: BTreeMap<i64, Watching>,
    /// Ids the client has ever cancelled.
    cancelled: BTreeSet<i64>,
}

struct World {
    hub: Hub,
    truth: Truth,
    /// What history gives back: the same changes, encoded anew.
    sets: Vec<SharedChanges>,
    compacted: Revision,
    clients: Vec<Client>,
    dice: Dice,
    most_slow: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let hub = Hub::new(Revision(1), Revision(-1));
        let mut world = World {
            hub,
            truth: Truth::default(),
            sets: Vec::new(),
            compacted: Revision(-1),
            clients: Vec::new(),
            dice: Dice::new(seed),
            most_slow: 0,
        };
        for _ in 0..3 {
            let (stream, outbox) = world.hub.open_stream();
            let (creates, watching, cancelled) = Default::default();
            world.clients.push(Client { stream, outbox, creates, watching, cancelled });
        }
        world
    }

    fn write(&mut self, publish: bool) {
        let Some(set) = self.truth.write(&mut self.dice) else { return };
        let again =
            |change: &Change| Change::new(change.key.clone(), change.kind, change.record.clone(), change.replaced);
        let changes = set.changes.iter().map(again).collect();
        self.sets.push(Arc::new(ChangeSet { revision: set.revision, changes }));
        if publish {
            let truth = &self.truth;
            self.hub.publish(&set, &mut |change| truth.previous(set.revision, &change.key));
        }
    }

    fn create(&mut self) {
        let dice = &mut self.dice;
        let now = self.truth.revision().0;
        let start = match dice.below(4) {
            0 => 0,
            1 => now + dice.below(5) as i64,
            2 => now - dice.below(now as u64 + 2) as i64,
            _ => (now - dice.below(20) as i64).max(1),
        };
        let range = match dice.below(4) {
            0 => KeyRange::single(vec![b'a' + dice.below(6) as u8].into()),
            1 => KeyRange::from_wire("c".into(), "\0".into()),
            2 => KeyRange::from_wire("b".into(), vec![b'a' + dice.below(6) as u8].into()),
            _ => KeyRange::from_wire("a".into(), "z".into()),
        };
        let spec = Spec {
            range,
            start: Revision(start),
            filters: Filters { no_put: dice.below(6) == 0, no_delete: dice.below(6) == 0 },
            prev_kv: dice.below(2) == 0,
            progress_notify: dice.below(2) == 0,
            fragment: false,
            id: (dice.below(4) == 0).then(|| 1 + dice.below(5) as i64),
        };
        let client = &mut self.clients[dice.below(3) as usize];
        client.creates.push_back(spec.clone());
        self.hub.create(client.stream, spec);
    }

    fn cancel(&mut self) {
        let client = &mut self.clients[self.dice.below(3) as usize];
        let id = self.dice.below(8) as i64;
        client.cancelled.insert(id);
        self.hub.cancel(client.stream, id);
    }

    fn catch_up(&mut self) -> bool {
        let Some(job) = self.hub.next_catch_up() else { return false };
        assert!(job.from <= job.to && job.from >= self.compacted, "{job:?} at {:?}", self.compacted);
        let from = job.from.0.max(2) as usize - 2;
        let count = 1 + self.dice.below(12) as usize;
        let sets: Vec<_> = self.sets[from..].iter().take(count).cloned().collect();
        for set in sets.iter().filter(|_| job.prev_kv) {
            for change in &set.changes {
                change.event_with_prev(set.revision, || match set.revision > self.compacted {
                    true => self.truth.previous(set.revision, &change.key),
                    false => None,
                });
            }
        }
        let slice = Slice::new(&job, sets);
        // The world goes on while history is read.
        for _ in 0..self.dice.below(3) {
            self.step(false);
        }
        let mut round = Some(Round::default());
        while let Some(here) = round {
            let (orders, next) = self.hub.orders(&slice, here);
            round = next;
            for order in orders {
                self.step(false);
                drop(self.hub.deliver(&order.pack(&slice)));
            }
        }
        true
    }

    fn compact(&mut self) {
        let now = self.truth.revision().0;
        let at = Revision(now - self.dice.below(30.min(now as u64)) as i64);
        if at > self.compacted && at <= self.hub.published() {
            self.compacted = at;
            self.hub.compacted(at);
            self.hub.removed(at);
        }
    }

    fn restore(&mut self) {
        for _ in 0..self.dice.below(20) {
            self.write(false);
        }
        if self.dice.below(2) == 0 {
            let now = self.truth.revision().0;
            self.compacted = self.compacted.max(Revision(now - self.dice.below(now.min(15) as u64) as i64));
        }
        self.hub.restored(self.truth.revision(), self.compacted);
    }

    fn step(&mut self, may_catch_up: bool) {
        self.most_slow = self.most_slow.max(self.hub.stats().slow_watchers);
        match self.dice.below(100) {
            0..50 => self.write(true),
            50..58 => self.create(),
            58..61 => self.cancel(),
            61..65 => self.read(3, 1),
            65..70 => {
                let clients = 1 + self.dice.below(3) as usize;
                self.read(clients, 1000);
            }
            70..77 => {
                let stream = self.clients[self.dice.below(3) as usize].stream;
                if self.dice.below(2) == 0 { self.hub.progress(stream) } else { self.hub.tick_progress(stream) }
            }
            77..79 => self.compact(),
            79 => self.restore(),
            _ if may_catch_up => {
                self.catch_up();
            }
            _ => {}
        }
    }

    /// Clients read some messages.
    fn read(&mut self, clients: usize, messages: usize) {
        for at in 0..clients {
            for _ in 0..messages {
                let Some(Next::Message(mut message)) = self.clients[at].outbox.try_next() else { break };
                let mut behind = None;
                if let Outgoing::Events(events) = &mut message
                    && self.dice.below(2) == 0
                {
                    behind = self.clients[at].outbox.join(events, 400 << 10);
                }
                self.receive(at, message);
                if let Some(Next::Message(message)) = behind {
                    self.receive(at, message);
                }
            }
        }
    }

    fn receive(&mut self, at: usize, message: Outgoing) {
        let client = &mut self.clients[at];
        match message {
            Outgoing::Created { id, revision } => {
                let spec = client.creates.pop_front().expect("an answer without a request");
                assert!(spec.id.is_none_or(|asked| asked == id));
                let complete = if spec.start == Revision(0) { revision } else { spec.start.previous() };
                let before = client.watching.insert(id, Watching { spec, complete });
                assert!(before.is_none(), "id {id} was in use");
            }
            Outgoing::Refused { reason, .. } => {
                let spec = client.creates.pop_front().expect("an answer without a request");
                match reason {
                    Refusal::NegativeStart => assert!(spec.start < Revision(0)),
                    Refusal::EmptyRange => assert!(spec.range.is_empty()),
                    Refusal::Denied(_) | Refusal::StreamFull | Refusal::MemberFull => unreachable!("nobody is asked"),
                    Refusal::DuplicateId => assert!(client.watching.contains_key(&spec.id.unwrap())),
                }
            }
            Outgoing::Canceled { id, .. } => {
                assert!(client.cancelled.contains(&id));
                client.watching.remove(&id);
            }
            Outgoing::Compacted { id, at } => {
                let watching = client.watching.remove(&id).expect("compacted without a watcher");
                assert!(watching.complete.next() < at, "nothing it still needed was compacted");
            }
            Outgoing::Progress { id, revision } => {
                let told: Vec<i64> = id.map_or(client.watching.keys().copied().collect(), |id| vec![id]);
                for id in told {
                    let watching = client.watching.get_mut(&id).expect("progress of a watcher that is not there");
                    assert!(revision >= watching.spec.start && revision >= watching.complete);
                    let missed = self.truth.wanted(&watching.spec, watching.complete, revision);
                    assert!(missed.is_empty(), "progress {revision} overtook {missed:?}");
                    watching.complete = revision;
                }
            }
            Outgoing::Events(events) if events.ids.as_slice().len() > 1 => {
                assert!(events.ids.as_slice().is_sorted());
                events.each().for_each(|events| self.receive(at, Outgoing::Events(events)));
            }
            Outgoing::Events(Events { ids, revision, events, bytes, .. }) => {
                let id = ids.as_slice()[0];
                let watching = client.watching.get_mut(&id).expect("events of a watcher that is not there");
                let joined = Bytes::from(events.as_slice().concat());
                assert_eq!(joined.len(), bytes);
                let received = WatchResponse::decode(joined).unwrap().events;
                let mut wanted = self.truth.wanted(&watching.spec, watching.complete, revision);
                assert!(revision > watching.complete && !wanted.is_empty());
                assert_eq!(received.len(), wanted.len(), "watcher {id}, up to {revision}");
                for (received, wanted) in received.iter().zip(&mut wanted) {
                    let gone = received.kv.as_ref().unwrap().mod_revision <= self.compacted.0;
                    if !watching.spec.prev_kv || (received.prev_kv.is_none() && gone) {
                        wanted.prev_kv = None;
                    }
                    // Not assert_eq: values are too large to look at.
                    let at = received.kv.as_ref().map(|kv| (&kv.key, kv.mod_revision));
                    assert!(received == wanted, "watcher {id} got something else at {at:?}");
                }
                watching.complete = revision;
            }
        }
    }

    /// Everybody reads and is caught up; then nobody lacks anything.
    fn settle(&mut self) {
        loop {
            let more = self.hub.next_catch_up();
            let Some(job) = more else {
                if self.clients.iter().all(|client| client.outbox.is_empty()) {
                    break;
                }
                self.read(3, usize::MAX);
                continue;
            };
            let sets: Vec<_> = self.sets[job.from.0.max(2) as usize - 2..].to_vec();
            for set in &sets {
                for change in &set.changes {
                    change.event_with_prev(set.revision, || self.truth.previous(set.revision, &change.key));
                }
            }
            let slice = Slice::new(&CatchUp { prev_kv: true, ..job }, sets);
            for order in self.hub.orders(&slice, Round::default()).0 {
                drop(self.hub.deliver(&order.pack(&slice)));
            }
            self.read(3, usize::MAX);
        }
        let published = self.hub.published();
        for client in &self.clients {
            assert!(client.creates.is_empty());
            for (id, watching) in &client.watching {
                let missed = self.truth.wanted(&watching.spec, watching.complete, published);
                assert!(missed.is_empty(), "watcher {id} of {:?} never got {} events", client.stream, missed.len());
            }
        }
        let watchers: usize = self.clients.iter().map(|client| client.watching.len()).sum();
        let stats = self.hub.stats();
        assert_eq!((stats.watchers, stats.slow_watchers, stats.pending_events), (watchers, 0, 0));
    }
}

#[test]
fn keeps_every_promise_under_random_traffic() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..100).collect::<Vec<u64>>(),
    };
    let mut most_slow = 0;
    for seed in seeds {
        let failed = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..400).for_each(|_| world.step(true));
            world.settle();
            world.most_slow
        });
        match failed {
            Ok(slow) => most_slow = most_slow.max(slow),
            Err(panic) => {
                eprintln!("failed with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(most_slow > 1 || std::env::var("SEED").is_ok(), "nobody was ever behind: the traffic tests nothing");
}

fn spec(range: KeyRange) -> Spec {
    let (filters, start) = (Filters::default(), Revision(0));
    Spec { range, start, filters, prev_kv: false, progress_notify: false, fragment: false, id: None }
}

fn put(revision: i64, key: &'static str, value: usize) -> SharedChanges {
    let value = vec![0; value].into();
    let kv = KeyValue { key: key.into(), value, mod_revision: revision, ..Default::default() };
    let change = Change::new(key.into(), ChangeKind::Put, kv.encode_to_vec().into(), None);
    Arc::new(ChangeSet { revision: Revision(revision), changes: vec![change] })
}

fn drain(outbox: &Outbox) -> Vec<Outgoing> {
    std::iter::from_fn(|| match outbox.try_next()? {
        Next::Message(message) => Some(message),
        Next::End(_) => None,
    })
    .collect()
}

#[test]
fn a_client_that_does_not_read_costs_a_revision_and_nobody_else_anything() {
    let mut hub = Hub::new(Revision(1), Revision(-1));
    let (stuck, stuck_outbox) = hub.open_stream();
    let (reading, outbox) = hub.open_stream();
    for stream in [stuck, reading] {
        hub.create(stream, spec(KeyRange::single("a".into())));
    }
    drain(&outbox);
    for revision in 2..102 {
        hub.publish(&put(revision, "a", 200 << 10), &mut |_| None);
        assert_eq!(drain(&outbox).len(), 1);
    }
    let stats = hub.stats();
    assert_eq!((stats.slow_watchers, stats.pending_events), (1, 6), "1 MiB and the message that went over it");
    assert_eq!(hub.next_catch_up(), None, "there is no point in reading for a full outbox");
    assert_eq!(drain(&stuck_outbox).len(), 7);
    let job = hub.next_catch_up().expect("it has room again");
    assert_eq!((job.from, job.to), (Revision(8), Revision(101)));
}

#[test]
fn history_goes_only_to_those_for_whom_it_was_packed() {
    let mut hub = Hub::new(Revision(3), Revision(-1));
    let (stream, outbox) = hub.open_stream();
    let behind = |key: &'static str| Spec { start: Revision(2), ..spec(KeyRange::single(key.into())) };
    hub.create(stream, behind("a"));
    let slice = Slice::new(&hub.next_catch_up().expect("it is late"), vec![put(2, "a", 1), put(3, "b", 1)]);
    let (orders, _) = hub.orders(&slice, Round::default());
    // Its group goes meanwhile, and another one gets the number, for a watcher that stands at the same place.
    hub.cancel(stream, 0);
    hub.create(stream, behind("b"));
    drain(&outbox);
    orders.into_iter().for_each(|order| drop(hub.deliver(&order.pack(&slice))));
    assert_eq!(drain(&outbox), []);
    for order in hub.orders(&slice, Round::default()).0 {
        drop(hub.deliver(&order.pack(&slice)));
    }
    let revisions: Vec<Revision> = drain(&outbox)
        .iter()
        .filter_map(|message| if let Outgoing::Events(events) = message { Some(events.revision) } else { None })
        .collect();
    assert_eq!(revisions, [Revision(3)]);
}

#[test]
fn an_installed_snapshot_cancels_only_those_who_lack_something() {
    let mut hub = Hub::new(Revision(10), Revision(-1));
    let (stream, outbox) = hub.open_stream();
    hub.create(stream, spec(KeyRange::single("idle".into())));
    hub.publish(&put(11, "other", 1), &mut |_| None);
    hub.create(stream, Spec { start: Revision(1000), ..spec(KeyRange::single("later".into())) });
    drain(&outbox);
    // It was told of nothing since 10, but has seen up to 11: history from 12 on is enough.
    hub.restored(Revision(20), Revision(12));
    assert_eq!(hub.stats().slow_watchers, 1);
    assert_eq!(hub.next_catch_up().map(|job| job.from), Some(Revision(12)));
    hub.restored(Revision(30), Revision(25));
    assert_eq!(drain(&outbox), [Outgoing::Compacted { id: 0, at: Revision(25) }]);
    assert_eq!(hub.stats().watchers, 1);
}

#[test]
fn streams_end_when_the_member_stops_or_has_no_leader() {
    let mut hub = Hub::new(Revision(1), Revision(-1));
    let (needing, needing_outbox) = hub.open_stream();
    let (_, outbox) = hub.open_stream();
    hub.need_leader(needing);
    hub.end_needing(End::NoLeader);
    assert_eq!(needing_outbox.try_next(), Some(Next::End(End::NoLeader)));
    assert_eq!(outbox.try_next(), None);
    assert!(!hub.stop(usize::MAX));
    assert_eq!(outbox.try_next(), Some(Next::End(End::Stopped)));
    assert_eq!(hub.open_stream().1.try_next(), Some(Next::End(End::Stopped)));
}
