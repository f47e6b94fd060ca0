//! The watch hub: decides which stream hears about which change.
//!
//! Promises:
//!   * the position of a watcher only grows, and no change before it is pushed;
//!   * all changes of one revision that concern a watcher are pushed together;
//!   * a watcher that is not being caught up has been offered everything up to `published`;
//!   * a watcher whose position is compacted away is told so; it never skips.
//!
//! Called by the apply loop (publish, compacted, restored) and by the streams (create, cancel, progress), under one small
//! mutex. Reading history is left to the watch loop: [`Hub::next_catch_up`] says what to read, [`Hub::caught_up`] hands it
//! out. Nothing here waits or reads; work under the mutex is bounded by what is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::interval::Intervals;
use super::outbox::{Bell, End, EventList, Events, Full, Limits, Outbox, Outgoing, Refusal};
use super::slice::{Place, Slice};
use super::watcher::{Position, Spec, Watcher, WatcherKey};
use crate::mvcc::change::{Change, SharedChanges};
use crate::types::Revision;

/// Bytes of events after which a catch-up message is closed, at the end of a revision. A client with gRPC's default limit of
/// 4 MiB can read any message unless a single revision is larger.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Watchers handled by one [`Hub::caught_up`]; the rest wait for the next call, so that publish is never kept out for long.
const WATCHERS_PER_CALL: usize = 512;
/// Events handed out by one [`Hub::caught_up`], for the same reason.
const EVENTS_PER_CALL: usize = 1 << 15;
/// Ids of watchers that compaction ended, remembered per stream to answer a cancel that comes late. Older ones are
/// forgotten; their cancel then gets the answer of an unknown id, which is none.
const COMPACTED_IDS_MAX: usize = 1024;
/// The id that means "the stream" in a response.
const STREAM_ID_ON_WIRE: i64 = -1;

/// Names a stream. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Distributes changes to watchers. See the module.
#[derive(Debug)]
pub struct Hub {
    /// Every revision up to here has been offered to the synced watchers.
    published: Revision,
    /// Changes before this one may be gone. -1 before the first compaction.
    compacted: Revision,
    streams: BTreeMap<StreamId, Stream>,
    streams_opened: u64,
    /// Watchers by key; keys of the gaps stand in `free`.
    watchers: Vec<Option<Watcher>>,
    free: Vec<WatcherKey>,
    /// The synced watchers, by what they watch.
    synced: Intervals,
    /// Streams that have unsynced watchers and room for events.
    ready: BTreeSet<StreamId>,
    /// The stream served last; the next one in order is next.
    served: StreamId,
    /// Unsynced watchers, and those among them that want previous values.
    unsynced: usize,
    unsynced_prev_kv: usize,
    stopped: bool,
    events_sent: u64,
    bell: Arc<Bell>,
    /// Of the outboxes of streams that are opened.
    limits: Limits,
    /// Streams that asked for progress and have watchers of the future, by the last of their starts.
    expecting: BTreeSet<(Revision, StreamId)>,
    /// The watchers that want to be told how far they are.
    notified: BTreeSet<WatcherKey>,
    /// See [`MESSAGE_BYTES_MAX`].
    message_bytes: usize,
    /// Room for [`Hub::publish`] to work in.
    matched: Vec<(WatcherKey, u32)>,
}

/// The watchers of one stream.
#[derive(Debug)]
struct Stream {
    outbox: Outbox,
    ids: HashMap<i64, WatcherKey>,
    /// Where the search for a free id begins.
    next_id: i64,
    /// Its unsynced watchers, in both orders.
    unsynced: BTreeMap<WatcherKey, Revision>,
    unsynced_by_next: BTreeSet<(Revision, WatcherKey)>,
    /// The unsynced watcher served last.
    served: WatcherKey,
    /// The outbox turned events away and has not been emptied since.
    stalled: bool,
    /// Start revisions that were not published when last looked at.
    ahead: BTreeSet<(Revision, WatcherKey)>,
    /// The client asked for progress, and it could not be told yet. However often it asked, it is told once.
    progress_asked: bool,
    /// Where it stands among those that expect the future.
    expects: Option<Revision>,
    compacted_ids: VecDeque<i64>,
    needs_leader: bool,
}

/// What the watch loop is to read: history from `from`, to `to` at most, as much as fits one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    /// The first revision wanted.
    pub from: Revision,
    /// The last one published.
    pub to: Revision,
    /// Somebody wants previous values.
    pub prev_kv: bool,
}

/// Numbers for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open streams.
    pub streams: usize,
    /// Watchers.
    pub watchers: usize,
    /// Watchers that are being caught up.
    pub slow_watchers: usize,
    /// Events put into outboxes so far.
    pub events_sent: u64,
    /// Events waiting in outboxes.
    pub pending_events: usize,
}

impl Hub {
    /// A hub of a store at revision `published`, compacted at `compacted` (-1: never).
    pub fn new(published: Revision, compacted: Revision) -> Hub {
        Hub {
            published,
            compacted,
            streams: BTreeMap::new(),
            streams_opened: 0,
            watchers: Vec::new(),
            free: Vec::new(),
            synced: Intervals::default(),
            ready: BTreeSet::new(),
            served: StreamId(0),
            unsynced: 0,
            unsynced_prev_kv: 0,
            stopped: false,
            events_sent: 0,
            bell: Arc::default(),
            limits: Limits::default(),
            expecting: BTreeSet::new(),
            notified: BTreeSet::new(),
            message_bytes: MESSAGE_BYTES_MAX,
            matched: Vec::new(),
        }
    }

    /// Rings when [`Hub::next_catch_up`] may have something.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// The last revision offered to watchers.
    pub fn published(&self) -> Revision {
        self.published
    }

    /// Outboxes of streams opened from now on hold only so much: small ones show what happens when they are full.
    pub fn limit_outboxes(&mut self, bytes: usize, messages: usize) {
        self.limits = Limits { bytes, messages };
    }

    /// Catch-up messages are closed after so many bytes: few show what happens when history comes in many.
    pub fn limit_messages(&mut self, bytes: usize) {
        self.message_bytes = bytes;
    }

    /// Opens a stream. Whoever reads the outbox closes it again.
    pub fn open_stream(&mut self) -> (StreamId, Outbox) {
        self.streams_opened += 1;
        let id = StreamId(self.streams_opened);
        let outbox = Outbox::new(id, self.bell.clone(), self.limits);
        if self.stopped {
            outbox.end(End::Stopped);
        }
        let stream = Stream {
            outbox: outbox.clone(),
            ids: HashMap::new(),
            next_id: 0,
            unsynced: BTreeMap::new(),
            unsynced_by_next: BTreeSet::new(),
            served: WatcherKey(0),
            stalled: false,
            ahead: BTreeSet::new(),
            progress_asked: false,
            expects: None,
            compacted_ids: VecDeque::new(),
            needs_leader: false,
        };
        self.streams.insert(id, stream);
        (id, outbox)
    }

    /// Has the stream ended by [`Hub::leader_lost`].
    pub fn need_leader(&mut self, stream: StreamId) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.needs_leader = true;
        }
    }

    /// Forgets a stream and its watchers. What waits in its outbox stays readable.
    pub fn close_stream(&mut self, stream: StreamId) {
        let Some(home) = self.streams.get(&stream) else { return };
        let mut watchers: Vec<WatcherKey> = home.ids.values().copied().collect();
        // Their keys are used again in the order in which they come free, and that order reaches clients.
        watchers.sort_unstable();
        for key in watchers {
            self.remove(key);
        }
        if let Some(start) = self.streams.remove(&stream).and_then(|home| home.expects) {
            self.expecting.remove(&(start, stream));
        }
        self.ready.remove(&stream);
    }

    /// Creates a watcher on a stream and answers there, first of all.
    pub fn create(&mut self, stream: StreamId, spec: Spec) {
        let published = self.published;
        let Some(home) = self.streams.get_mut(&stream) else { return };
        let id = match home.admit(&spec) {
            Ok(id) => id,
            Err(reason) => return home.outbox.push_answer(Outgoing::Refused { reason, revision: published }),
        };
        home.outbox.push_answer(Outgoing::Created { id, revision: published });
        if spec.start.0 > 0 && spec.start < self.compacted {
            return home.end_compacted(id, self.compacted);
        }
        let position = match spec.start {
            Revision(0) => Position::Synced { floor: published.next() },
            start if start > published => Position::Synced { floor: start },
            start => Position::Unsynced { next: start },
        };
        let key = self.free.pop().unwrap_or_else(|| {
            self.watchers.push(None);
            WatcherKey(u32::try_from(self.watchers.len() - 1).expect("watchers fit into memory"))
        });
        home.ids.insert(id, key);
        if spec.start > published {
            home.ahead.insert((spec.start, key));
        }
        if spec.progress_notify {
            self.notified.insert(key);
        }
        self.watchers[key.0 as usize] = Some(Watcher { stream, id, spec, position, quiet: true });
        self.enter(key);
    }

    /// Cancels a watcher and answers; an unknown id gets no answer.
    pub fn cancel(&mut self, stream: StreamId, id: i64) {
        let revision = self.published;
        let Some(home) = self.streams.get_mut(&stream) else { return };
        if let Some(&key) = home.ids.get(&id) {
            home.outbox.push_answer(Outgoing::Canceled { id, revision });
            self.remove(key);
            self.tell_progress(stream);
        } else if let Some(at) = home.compacted_ids.iter().position(|known| *known == id) {
            // The client does not know yet, or tidies up: etcd answers this too.
            home.compacted_ids.remove(at);
            home.outbox.push_answer(Outgoing::Canceled { id, revision });
        }
    }

    /// Answers a request for progress, as soon as the answer is true of every watcher of the stream. A stream without watchers
    /// gets none.
    pub fn progress(&mut self, stream: StreamId) {
        if let Some(home) = self.streams.get_mut(&stream) {
            home.progress_asked = true;
            self.tell_progress(stream);
        }
    }

    /// Gives the answer that a stream waits for, if it can be given now.
    fn tell_progress(&mut self, stream: StreamId) {
        let published = self.published;
        let home = self.streams.get_mut(&stream).expect("a watcher has a stream");
        if let Some(start) = home.expects.take() {
            self.expecting.remove(&(start, stream));
        }
        if !home.progress_asked || !home.unsynced.is_empty() {
            return;
        }
        while home.ahead.first().is_some_and(|(start, _)| *start <= published) {
            home.ahead.pop_first();
        }
        if let Some((start, _)) = home.ahead.last() {
            home.expects = Some(*start);
            self.expecting.insert((*start, stream));
            return;
        }
        home.progress_asked = false;
        if !home.ids.is_empty() {
            home.outbox.push_answer(Outgoing::Progress { id: None, revision: published });
        }
    }

    /// One tick of the stream's progress ticker: tells the watchers that asked for it, are synced and had no event since the
    /// last tick how far they are.
    pub fn tick_progress(&mut self, stream: StreamId) {
        let published = self.published;
        let Some(home) = self.streams.get(&stream) else { return };
        let mut due = Vec::new();
        for key in home.ids.values() {
            let watcher = live(&mut self.watchers, *key);
            if watcher.spec.progress_notify {
                let had_events = !mem::replace(&mut watcher.quiet, true);
                if !had_events && watcher.has_all(published) {
                    due.push(watcher.id);
                }
            }
        }
        due.sort_unstable();
        for id in due {
            home.outbox.push_progress(Some(id), published);
        }
    }

    /// Offers the changes of the next revision to the synced watchers. `previous` supplies the encoded key-value that a
    /// change replaced; it is asked only when somebody wants it, once per change.
    pub fn publish(&mut self, changes: &SharedChanges, previous: &mut dyn FnMut(&Change) -> Option<Bytes>) {
        let revision = changes.revision;
        assert!(revision > self.published, "revision {revision} published after {}", self.published);
        let mut matched = mem::take(&mut self.matched);
        for (at, change) in (0u32..).zip(&changes.changes) {
            self.synced.matching(&change.key, &mut |watcher| matched.push((watcher, at)));
        }
        if changes.changes.len() > 1 {
            matched.sort_unstable();
        }
        self.published = revision;
        for group in matched.chunk_by(|a, b| a.0 == b.0) {
            let key = group[0].0;
            let watcher = live(&mut self.watchers, key);
            if !watcher.accepts(revision) {
                continue;
            }
            let places = group.iter().map(|(_, at)| &changes.changes[*at as usize]);
            let wanted = places.filter(|change| watcher.wants(change));
            let events = collect(wanted.map(|change| match watcher.spec.prev_kv {
                true => change.event_with_prev(revision, || previous(change)).clone(),
                false => change.event(revision).clone(),
            }));
            let Some(events) = events else { continue };
            let home = self.streams.get(&watcher.stream).expect("a watcher has a stream");
            match push(watcher, home, revision, events) {
                Ok(count) => self.events_sent += count as u64,
                Err(Full) => {
                    let stream = watcher.stream;
                    self.stall(stream);
                    self.fall_behind(key, revision);
                }
            }
        }
        matched.clear();
        self.matched = matched;
        while let Some((_, stream)) = self.expecting.first().filter(|(start, _)| *start <= revision) {
            self.tell_progress(*stream);
        }
    }

    /// The store has been compacted at `at`: what lies before may be gone. Ends the watchers that still had to read it. Those
    /// that want to be told how far they are, and are far enough, are told: a client that heard nothing for long could not go on
    /// elsewhere from where it stands, once its revision is compacted.
    pub fn compacted(&mut self, at: Revision) {
        if at > self.compacted {
            for key in &self.notified {
                let watcher = live(&mut self.watchers, *key);
                if watcher.has_all(self.published) {
                    let home = &self.streams[&watcher.stream];
                    home.outbox.push_progress(Some(watcher.id), self.published);
                }
            }
        }
        let at = self.compacted.max(at);
        self.compacted = at;
        let late: Vec<WatcherKey> = (self.streams.values())
            .flat_map(|stream| stream.unsynced_by_next.range(..(at, WatcherKey(0))).map(|(_, key)| *key))
            .collect();
        for key in late {
            let (stream, id) = self.remove(key);
            self.streams.get_mut(&stream).expect("a watcher has a stream").end_compacted(id, at);
            self.tell_progress(stream);
        }
    }

    /// A snapshot has replaced the store: it stands at `revision` now, compacted at `compacted`. Watchers that were synced
    /// have seen everything up to what was published before, however long ago that concerned them, and continue from there.
    pub fn restored(&mut self, revision: Revision, compacted: Revision) {
        assert!(revision >= self.published, "a snapshot at {revision} behind {}", self.published);
        let before = mem::replace(&mut self.published, revision);
        for at in 0..self.watchers.len() {
            let key = WatcherKey(at as u32);
            if let Some(watcher) = &self.watchers[at]
                && let Position::Synced { .. } = watcher.position
                && watcher.resume_at(before) <= revision
            {
                self.fall_behind(key, watcher.resume_at(before));
            }
        }
        self.compacted(compacted);
    }

    /// What to read next for watchers that are behind. Streams take turns, and so do the watchers of a stream.
    pub fn next_catch_up(&mut self) -> Option<CatchUp> {
        for stream in self.bell.take_drained() {
            if let Some(home) = self.streams.get_mut(&stream) {
                home.stalled = false;
                if !home.unsynced.is_empty() {
                    self.ready.insert(stream);
                }
            }
        }
        let after = (Bound::Excluded(self.served), Bound::Unbounded);
        let stream = *self.ready.range(after).next().or(self.ready.first())?;
        self.served = stream;
        let home = self.streams.get_mut(&stream).expect("a ready stream is open");
        let after = (Bound::Excluded(home.served), Bound::Unbounded);
        let (&key, &from) =
            home.unsynced.range(after).next().or(home.unsynced.first_key_value()).expect("a ready stream has one");
        home.served = key;
        Some(CatchUp { from, to: self.published, prev_kv: self.unsynced_prev_kv > 0 })
    }

    /// Hands a piece of history to every watcher that stands inside it. Returns whether there are more of them: then call
    /// again with the same slice.
    pub fn caught_up(&mut self, slice: &Slice) -> bool {
        let mut watchers_left = WATCHERS_PER_CALL;
        let mut events_left = EVENTS_PER_CALL;
        let inside = (slice.from(), WatcherKey(0))..=(slice.covered(), WatcherKey(u32::MAX));
        let ready: Vec<StreamId> = self.ready.iter().copied().collect();
        for stream in ready {
            let can_serve = |key: &WatcherKey| slice.has_previous() || !self.prev_kv(*key);
            let standing = self.streams[&stream].unsynced_by_next.range(inside.clone()).map(|(_, key)| *key);
            let keys: Vec<WatcherKey> = standing.filter(can_serve).take(watchers_left + 1).collect();
            for key in keys {
                if watchers_left == 0 || events_left == 0 {
                    return true;
                }
                let (count, result) = self.feed(key, slice);
                watchers_left -= 1;
                events_left = events_left.saturating_sub(count);
                if let Err(Full) = result {
                    break;
                }
            }
        }
        false
    }

    /// The member stops: every stream ends once its client has what waits.
    pub fn stop(&mut self) {
        self.stopped = true;
        for stream in self.streams.values() {
            stream.outbox.end(End::Stopped);
        }
    }

    /// The member has had no leader for too long: ends the streams that asked for that.
    pub fn leader_lost(&mut self) {
        for stream in self.streams.values().filter(|stream| stream.needs_leader) {
            stream.outbox.end(End::NoLeader);
        }
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> Stats {
        Stats {
            streams: self.streams.len(),
            watchers: self.watchers.len() - self.free.len(),
            slow_watchers: self.unsynced,
            events_sent: self.events_sent,
            pending_events: self.streams.values().map(|stream| stream.outbox.pending_events()).sum(),
        }
    }

    /// Sends one unsynced watcher what `slice` has for it. Returns how many events that were, and whether all found room.
    fn feed(&mut self, key: WatcherKey, slice: &Slice) -> (usize, Result<(), Full>) {
        let watcher = live(&mut self.watchers, key);
        let Position::Unsynced { mut next } = watcher.position else {
            unreachable!("a stream lists its unsynced watchers")
        };
        let (stream, prev_kv) = (watcher.stream, watcher.spec.prev_kv);
        let encode = |place: &Place| {
            let (change, revision) = (slice.change(*place), slice.revision(*place));
            match prev_kv {
                true => change.event_with_prev(revision, || None).clone(),
                false => change.event(revision).clone(),
            }
        };
        let mut places = slice.changes(&watcher.spec.range, next);
        places.retain(|place| watcher.wants(slice.change(*place)));

        let mut sent = 0;
        let mut result = Ok(());
        let mut message = Vec::new();
        let mut bytes = 0;
        let mut revisions = places.chunk_by(|a, b| a.0 == b.0).peekable();
        while let Some(revision) = revisions.next() {
            for event in revision.iter().map(encode) {
                bytes += event.len();
                message.push(event);
            }
            let completes = match revisions.peek() {
                Some(_) if bytes < self.message_bytes => continue,
                Some(_) => slice.revision(revision[0]),
                None => slice.covered(),
            };
            bytes = 0;
            let events = collect(message.drain(..)).expect("a revision has a change");
            match push(watcher, &self.streams[&stream], completes, events) {
                Ok(count) => sent += count,
                Err(Full) => {
                    result = Err(Full);
                    break;
                }
            }
            next = completes.next();
        }
        match result {
            Ok(()) => next = slice.covered().next(),
            Err(Full) => self.stall(stream),
        }
        self.events_sent += sent as u64;
        // Under the lock that publish needs: whatever comes after `published` will find the watcher.
        let position = match next > self.published {
            true => Position::Synced { floor: next },
            false => Position::Unsynced { next },
        };
        self.leave(key);
        live(&mut self.watchers, key).advance(position);
        self.enter(key);
        self.tell_progress(stream);
        (sent, result)
    }

    /// A synced watcher has to read history from `next`.
    fn fall_behind(&mut self, key: WatcherKey, next: Revision) {
        self.leave(key);
        live(&mut self.watchers, key).advance(Position::Unsynced { next });
        self.enter(key);
    }

    /// The stream gets no events until its outbox has been emptied.
    fn stall(&mut self, stream: StreamId) {
        self.streams.get_mut(&stream).expect("a watcher has a stream").stalled = true;
        self.ready.remove(&stream);
    }

    /// Puts a watcher where its position says.
    fn enter(&mut self, key: WatcherKey) {
        let watcher = live(&mut self.watchers, key);
        let Position::Unsynced { next } = watcher.position else {
            return self.synced.insert(&watcher.spec.range, key);
        };
        let home = self.streams.get_mut(&watcher.stream).expect("a watcher has a stream");
        home.unsynced.insert(key, next);
        home.unsynced_by_next.insert((next, key));
        self.unsynced += 1;
        self.unsynced_prev_kv += usize::from(watcher.spec.prev_kv);
        if !home.stalled {
            self.ready.insert(watcher.stream);
            self.bell.ring();
        }
    }

    /// Takes a watcher from where its position says; it gets another one, or goes.
    fn leave(&mut self, key: WatcherKey) {
        let watcher = live(&mut self.watchers, key);
        let Position::Unsynced { next } = watcher.position else {
            return self.synced.remove(&watcher.spec.range, key);
        };
        let home = self.streams.get_mut(&watcher.stream).expect("a watcher has a stream");
        home.unsynced.remove(&key);
        home.unsynced_by_next.remove(&(next, key));
        self.unsynced -= 1;
        self.unsynced_prev_kv -= usize::from(watcher.spec.prev_kv);
        if home.unsynced.is_empty() {
            self.ready.remove(&watcher.stream);
        }
    }

    /// Forgets a watcher altogether. Returns its stream and its id there.
    fn remove(&mut self, key: WatcherKey) -> (StreamId, i64) {
        self.leave(key);
        let watcher = self.watchers[key.0 as usize].take().expect("only live watchers are named");
        self.free.push(key);
        self.notified.remove(&key);
        let home = self.streams.get_mut(&watcher.stream).expect("a watcher has a stream");
        home.ids.remove(&watcher.id);
        home.ahead.remove(&(watcher.spec.start, key));
        (watcher.stream, watcher.id)
    }

    fn prev_kv(&self, key: WatcherKey) -> bool {
        self.watchers[key.0 as usize].as_ref().is_some_and(|watcher| watcher.spec.prev_kv)
    }
}

impl Stream {
    /// The id a new watcher gets, or why it gets none. An id that the server chooses was not chosen by it before.
    fn admit(&mut self, spec: &Spec) -> Result<i64, Refusal> {
        if spec.start < Revision(0) {
            return Err(Refusal::NegativeStart);
        }
        if spec.range.is_empty() {
            return Err(Refusal::EmptyRange);
        }
        let id = match spec.id {
            Some(STREAM_ID_ON_WIRE) => return Err(Refusal::DuplicateId),
            Some(id) if self.ids.contains_key(&id) => return Err(Refusal::DuplicateId),
            Some(id) => id,
            None => {
                while self.ids.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
        };
        self.compacted_ids.retain(|known| *known != id);
        Ok(id)
    }

    /// Tells the client that compaction has ended its watcher `id`.
    fn end_compacted(&mut self, id: i64, at: Revision) {
        self.outbox.push_answer(Outgoing::Compacted { id, at });
        if self.compacted_ids.len() == COMPACTED_IDS_MAX {
            self.compacted_ids.pop_front();
        }
        self.compacted_ids.push_back(id);
    }
}

/// The watcher of a key that the hub's own structures name.
fn live(watchers: &mut [Option<Watcher>], key: WatcherKey) -> &mut Watcher {
    watchers[key.0 as usize].as_mut().expect("only live watchers are named")
}

/// Events as a message carries them, and their bytes; nothing for none.
fn collect(mut events: impl Iterator<Item = Bytes>) -> Option<(EventList, usize)> {
    let first = events.next()?;
    let Some(second) = events.next() else {
        let bytes = first.len();
        return Some((EventList::One(first), bytes));
    };
    let all: Vec<Bytes> = [first, second].into_iter().chain(events).collect();
    let bytes = all.iter().map(Bytes::len).sum();
    Some((EventList::Many(all), bytes))
}

/// Puts events into the watcher's outbox. Returns how many there were.
fn push(watcher: &mut Watcher, home: &Stream, revision: Revision, events: (EventList, usize)) -> Result<usize, Full> {
    let (events, bytes) = events;
    let count = events.as_slice().len();
    let fragment = watcher.spec.fragment;
    home.outbox.push_events(Events { id: watcher.id, revision, events, bytes, fragment })?;
    watcher.quiet = false;
    Ok(count)
}
