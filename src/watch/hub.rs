//! The watch hub: decides which stream hears about which change.
//!
//! Promises:
//!   * the position of a watcher only grows, and no change before it is pushed;
//!   * all changes of one revision that concern a watcher are pushed together;
//!   * a watcher that is not being caught up has been offered everything up to `published`;
//!   * a watcher whose position is removed is told so; it never skips.
//!
//! Called by whoever hears the apply loop's [feed](super::feed) (publish, compacted, removed, restored) and by the streams (create,
//! cancel, progress), under one small mutex, which the apply loop never takes. Reading history is left to the watch loop: [`Hub::next_catch_up`] says what to read, [`Hub::caught_up`] hands it
//! out. Nothing here waits or reads; work under the mutex is bounded by what is sent.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::feed::Notice;
use super::group::{Cohort, CohortKey, GroupKey, Members, Position, Span, Synced, Wish};
use super::index::Index;
use super::outbox::{Bell, End, EventList, Events, Full, Limits, Outbox, Outgoing};
use super::slab::Slab;
use super::slice::{Place, Slice};
use super::stream::Stream;
use super::watcher::Spec;
use crate::mvcc::change::{Change, SharedChanges};
use crate::mvcc::revision::RevisionKey;
use crate::types::Revision;

/// Bytes of events after which a catch-up message is closed, at the end of a revision. A client with gRPC's default limit of
/// 4 MiB can read any message unless a single revision is larger.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Cohorts handled by one [`Hub::caught_up`]; the rest wait for the next call, so that publish is never kept out for long.
const COHORTS_PER_CALL: usize = 512;
/// Events handed out by one [`Hub::caught_up`], for the same reason.
const EVENTS_PER_CALL: usize = 1 << 15;

/// Names a stream. Never used again: its place is, and then has another number in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    fn place(self) -> u32 {
        self.0 as u32
    }
}

/// Distributes changes to watchers. See the module.
#[derive(Debug)]
pub struct Hub {
    /// Every revision up to here has been offered to the synced watchers.
    published: Revision,
    /// Changes before this one may be gone. -1 before the first compaction.
    compacted: Revision,
    streams: Slab<Stream>,
    streams_opened: u64,
    index: Index,
    cohorts: Slab<Cohort>,
    /// The synced cohorts of groups that have several, each list by the cohorts' streams.
    lists: Slab<Vec<CohortKey>>,
    /// How many watchers there are.
    watchers: usize,
    /// Cohorts of the future, by the revision they wait for and their streams' places.
    future: BTreeMap<(Revision, u32, GroupKey), CohortKey>,
    /// Places of streams that have late watchers and room for events.
    ready: BTreeSet<u32>,
    /// The place of the stream served last; the next one in order is next.
    served: u32,
    /// Late watchers, and the late cohorts that want previous values.
    late: usize,
    late_prev_kv: usize,
    /// Where they stand, and how many cohorts there.
    standing_at: BTreeMap<Revision, usize>,
    /// Places of the streams with watchers that want to be told how far they are.
    notified: BTreeSet<u32>,
    stopped: bool,
    events_sent: u64,
    /// Messages offered to outboxes so far.
    offered: u64,
    caught_up: (u64, u64),
    cancels: Cancels,
    bell: Arc<Bell>,
    /// Of the outboxes of streams that are opened.
    limits: Limits,
    /// See [`MESSAGE_BYTES_MAX`].
    message_bytes: usize,
    /// Room for [`Hub::publish`] to work in.
    matched: Vec<(GroupKey, u32)>,
    fallen: Vec<CohortKey>,
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
    /// Events waiting in outboxes, each as often as it will be written.
    pub pending_events: usize,
    /// Their bytes, as they are in memory.
    pub queued_bytes: usize,
    /// Streams whose outboxes turned events away and have not been emptied since.
    pub lagging_streams: usize,
    /// Events put into outboxes that were read from history, and their bytes.
    pub caught_up: (u64, u64),
    /// Watchers that have ended, or were not created.
    pub cancels: Cancels,
}

/// Watchers by why they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cancels {
    /// The client cancelled them.
    pub client: u64,
    /// Compaction took what they still had to read.
    pub compacted: u64,
    /// They were not created.
    pub refused: u64,
    /// The member stopped.
    pub stopped: u64,
    /// The member was without a leader.
    pub no_leader: u64,
    /// The member was too far behind.
    pub lagging: u64,
}

impl Cancels {
    fn ended(&mut self, end: End, watchers: usize) {
        *match end {
            End::Stopped => &mut self.stopped,
            End::NoLeader => &mut self.no_leader,
            End::Lagging => &mut self.lagging,
        } += watchers as u64;
    }
}

impl std::iter::Sum for Stats {
    fn sum<I: Iterator<Item = Stats>>(all: I) -> Stats {
        all.fold(Stats::default(), |a, b| Stats {
            streams: a.streams + b.streams,
            watchers: a.watchers + b.watchers,
            slow_watchers: a.slow_watchers + b.slow_watchers,
            events_sent: a.events_sent + b.events_sent,
            pending_events: a.pending_events + b.pending_events,
            queued_bytes: a.queued_bytes + b.queued_bytes,
            lagging_streams: a.lagging_streams + b.lagging_streams,
            caught_up: (a.caught_up.0 + b.caught_up.0, a.caught_up.1 + b.caught_up.1),
            cancels: Cancels {
                client: a.cancels.client + b.cancels.client,
                compacted: a.cancels.compacted + b.cancels.compacted,
                refused: a.cancels.refused + b.cancels.refused,
                stopped: a.cancels.stopped + b.cancels.stopped,
                no_leader: a.cancels.no_leader + b.cancels.no_leader,
                lagging: a.cancels.lagging + b.cancels.lagging,
            },
        })
    }
}

impl Hub {
    /// A hub of a store at revision `published`, compacted at `compacted` (-1: never).
    pub fn new(published: Revision, compacted: Revision) -> Hub {
        Hub {
            published,
            compacted,
            streams: Slab::default(),
            streams_opened: 0,
            index: Index::default(),
            cohorts: Slab::default(),
            lists: Slab::default(),
            watchers: 0,
            future: BTreeMap::new(),
            ready: BTreeSet::new(),
            served: 0,
            late: 0,
            late_prev_kv: 0,
            standing_at: BTreeMap::new(),
            notified: BTreeSet::new(),
            stopped: false,
            events_sent: 0,
            offered: 0,
            caught_up: (0, 0),
            cancels: Cancels::default(),
            bell: Arc::default(),
            limits: Limits::default(),
            message_bytes: MESSAGE_BYTES_MAX,
            matched: Vec::new(),
            fallen: Vec::new(),
        }
    }

    /// Rings when [`Hub::next_catch_up`] may have something.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// How many messages it has offered to outboxes: a measure of its work.
    pub fn offered(&self) -> u64 {
        self.offered
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
        let place = self.streams.insert_with(|place| {
            let id = StreamId(self.streams_opened << 32 | u64::from(place));
            Stream::new(id, Outbox::new(id, self.bell.clone(), self.limits))
        });
        let Stream { id, outbox, .. } = &self.streams[place];
        if self.stopped {
            outbox.end(End::Stopped);
        }
        (*id, outbox.clone())
    }

    /// Has the stream ended by [`Hub::end_needing`].
    pub fn need_leader(&mut self, stream: StreamId) {
        if let Some(home) = self.stream(stream) {
            home.needs_leader = true;
        }
    }

    /// Forgets a stream and its watchers. What waits in its outbox stays readable.
    pub fn close_stream(&mut self, stream: StreamId) {
        let Some(home) = self.stream(stream) else { return };
        let watchers = mem::take(&mut home.watchers);
        self.watchers -= watchers.len();
        let mut cohorts: Vec<CohortKey> = watchers.into_values().collect();
        // Their numbers are used again in the order in which they come free, and that order reaches clients.
        cohorts.sort_unstable();
        cohorts.dedup();
        for cohort in cohorts {
            self.leave(cohort);
            self.release(cohort);
        }
        self.ready.remove(&stream.place());
        self.notified.remove(&stream.place());
        self.streams.remove(stream.place());
    }

    /// Creates a watcher on a stream and answers there, first of all.
    pub fn create(&mut self, stream: StreamId, spec: Spec) {
        let (published, compacted) = (self.published, self.compacted);
        let Some(home) = self.stream(stream) else { return };
        let id = match home.admit(&spec) {
            Ok(id) => id,
            Err(reason) => {
                home.outbox.push_answer(Outgoing::Refused { reason, revision: published });
                self.cancels.refused += 1;
                return;
            }
        };
        home.outbox.push_answer(Outgoing::Created { id, revision: published });
        if spec.start.0 > 0 && spec.start < compacted {
            home.end_compacted(id, compacted);
            self.cancels.compacted += 1;
            return;
        }
        if spec.progress_notify {
            home.notified.insert(id, true);
            self.notified.insert(stream.place());
        }
        let position = match spec.start {
            Revision(0) => Position::Synced,
            start if start > published => Position::Future(start),
            start => Position::Behind(start),
        };
        let group = self.index.group(Span::of(&spec.range), Wish::of(&spec));
        let stream = stream.place();
        let cohort = match self.standing(stream, group, position) {
            Some(cohort) => {
                self.cohorts[cohort.0].members.insert(id);
                self.late += usize::from(matches!(position, Position::Behind(_)));
                cohort
            }
            None => {
                let cohort = Cohort::new(position, stream, group, Members::One(id));
                let cohort = CohortKey(self.cohorts.insert(cohort));
                self.index[group].cohorts += 1;
                self.settle(cohort);
                cohort
            }
        };
        self.streams[stream].watchers.insert(id, cohort);
        self.watchers += 1;
    }

    /// Cancels a watcher and answers; an unknown id gets no answer.
    pub fn cancel(&mut self, stream: StreamId, id: i64) {
        let revision = self.published;
        let Some(home) = self.stream(stream) else { return };
        if home.watchers.contains_key(&id) {
            home.outbox.push_answer(Outgoing::Canceled { id, revision });
            self.cancels.client += 1;
            self.remove(stream.place(), id);
            self.tell_progress(stream.place());
        } else if home.take_compacted(id) {
            // The client does not know yet, or tidies up: etcd answers this too.
            home.outbox.push_answer(Outgoing::Canceled { id, revision });
        }
    }

    /// Answers a request for progress, as soon as the answer is true of every watcher of the stream. A stream without watchers
    /// gets none.
    pub fn progress(&mut self, stream: StreamId) {
        if let Some(home) = self.stream(stream) {
            home.progress_asked = true;
            self.tell_progress(stream.place());
        }
    }

    /// Gives the answer that a stream waits for, if it can be given now.
    fn tell_progress(&mut self, stream: u32) {
        let revision = self.published;
        let home = &mut self.streams[stream];
        if !home.progress_asked || !home.behind.is_empty() || home.future > 0 {
            return;
        }
        home.progress_asked = false;
        if !home.watchers.is_empty() {
            home.outbox.push_answer(Outgoing::Progress { id: None, revision });
        }
    }

    /// One tick of the stream's progress ticker: tells the watchers that asked for it, are synced and had no event since the
    /// last tick how far they are.
    pub fn tick_progress(&mut self, stream: StreamId) {
        let published = self.published;
        let Some(home) = self.streams.get_mut(stream.place()).filter(|home| home.id == stream) else { return };
        for (id, quiet) in &mut home.notified {
            let was_quiet = mem::replace(quiet, true);
            if was_quiet && self.cohorts[home.watchers[id].0].position() == Position::Synced {
                home.outbox.push_progress(Some(*id), published);
            }
        }
    }

    /// Offers the changes of the next revision to the synced watchers. `previous` supplies the encoded key-value that a
    /// change replaced; it is asked only when somebody wants it, once per change.
    pub fn publish(&mut self, changes: &SharedChanges, previous: &mut dyn FnMut(&Change) -> Option<Bytes>) {
        let revision = changes.revision;
        assert!(revision > self.published, "revision {revision} published after {}", self.published);
        let arrived = self.future_comes(revision);
        let mut matched = mem::take(&mut self.matched);
        for (at, change) in (0u32..).zip(&changes.changes) {
            self.index.matching(&change.key, &mut |group| matched.push((group, at)));
        }
        if changes.changes.len() > 1 {
            matched.sort_unstable();
        }
        let mut fallen = mem::take(&mut self.fallen);
        for found in matched.chunk_by(|a, b| a.0 == b.0) {
            let group = &self.index[found[0].0];
            let synced = group.synced();
            if let Synced::None = synced {
                continue;
            }
            let Wish { filters, prev_kv, fragment } = group.wish();
            let places = found.iter().map(|(_, at)| &changes.changes[*at as usize]);
            let wanted = places.filter(|change| filters.admit(change.kind));
            let events = collect(wanted.map(|change| match prev_kv {
                true => change.event_with_prev(revision, || previous(change)).clone(),
                false => change.event(revision).clone(),
            }));
            let Some((events, bytes)) = events else { continue };
            let listed = match &synced {
                Synced::One(cohort) => std::slice::from_ref(cohort),
                Synced::Many(list) => &self.lists[*list],
                Synced::None => &[],
            };
            self.offered += listed.len() as u64;
            for &key in listed {
                let cohort = &mut self.cohorts[key.0];
                let home = &mut self.streams[cohort.stream];
                let events = Events { ids: cohort.members.ids(), revision, events: events.clone(), bytes, fragment };
                match push(home, events) {
                    Ok(count) => self.events_sent += count as u64,
                    Err(Full) => fallen.push(key),
                }
            }
        }
        for key in fallen.drain(..) {
            self.stall(self.cohorts[key.0].stream);
            self.fall_behind(key);
        }
        self.published = revision;
        matched.clear();
        (self.matched, self.fallen) = (matched, fallen);
        for stream in arrived {
            self.tell_progress(stream);
        }
    }

    /// The cohorts that wait for `revision` hear of it as it is published. Returns the places of their streams.
    fn future_comes(&mut self, revision: Revision) -> Vec<u32> {
        let mut streams = Vec::new();
        while let Some((&(start, stream, _), &key)) = self.future.first_key_value()
            && start <= revision
        {
            self.advance(key, Position::Synced);
            streams.push(stream);
        }
        streams
    }

    /// The store has been compacted at `at`: who wants to begin before that is refused. Watchers that want to be told how far they
    /// are, and are far enough, are told: a client that heard nothing for long could not go on elsewhere from where it stands, once
    /// its revision is compacted. Those who still have to read what lies before may go on until it is [removed](Hub::removed).
    pub fn compacted(&mut self, at: Revision) {
        if at <= self.compacted {
            return;
        }
        self.compacted = at;
        for stream in &self.notified {
            self.bookmark(&self.streams[*stream]);
        }
    }

    /// Tells the watchers of a stream that want to be told how far they are, and are far enough.
    fn bookmark(&self, home: &Stream) {
        for id in home.notified.keys() {
            if self.cohorts[home.watchers[id].0].position() == Position::Synced {
                home.outbox.push_progress(Some(*id), self.published);
            }
        }
    }

    /// What lies before `at` is being removed: ends the watchers that still had to read it.
    pub fn removed(&mut self, at: Revision) {
        if self.needed() >= at {
            return;
        }
        let late: Vec<(u32, CohortKey)> = (self.streams.iter())
            .flat_map(|(place, home)| {
                home.behind.range(..(at, GroupKey::FIRST)).map(move |(_, cohort)| (place, *cohort))
            })
            .collect();
        let compacted = self.compacted.max(at);
        for (stream, cohort) in late {
            let ids = self.cohorts[cohort.0].members.ids();
            for id in ids.as_slice() {
                self.remove(stream, *id);
                self.streams[stream].end_compacted(*id, compacted);
            }
            self.cancels.compacted += ids.as_slice().len() as u64;
            self.tell_progress(stream);
        }
    }

    /// The first revision whose history may still be asked for.
    pub fn needed(&self) -> Revision {
        let oldest = self.standing_at.first_key_value().map(|(at, _)| *at);
        oldest.unwrap_or(self.published.next())
    }

    /// Hears what a feed has told, in that order. `record` reads the encoded key-value of a place, as far as it is there.
    pub fn hear(&mut self, notice: Notice, record: &mut dyn FnMut(RevisionKey) -> Option<Bytes>) {
        match notice {
            Notice::Changed(set) => self.publish(&set, &mut |change| change.replaced.and_then(&mut *record)),
            Notice::Compacted(at) => self.compacted(at),
            Notice::Removed(at) => self.removed(at),
            Notice::Restored { revision, compacted } => self.restored(revision, compacted),
            Notice::Ended(end) => self.end_needing(end),
        }
    }

    /// A snapshot has replaced the store: it stands at `revision` now, compacted at `compacted`. Watchers that were synced
    /// have seen everything up to what was published before, however long ago that concerned them, and continue from there.
    pub fn restored(&mut self, revision: Revision, compacted: Revision) {
        assert!(revision >= self.published, "a snapshot at {revision} behind {}", self.published);
        if revision > self.published {
            let synced = self.cohorts.iter().filter(|(_, cohort)| cohort.position() == Position::Synced);
            for key in synced.map(|(key, _)| CohortKey(key)).collect::<Vec<_>>() {
                self.fall_behind(key);
            }
            while let Some((&(start, ..), &key)) = self.future.first_key_value()
                && start <= revision
            {
                self.advance(key, Position::Behind(start));
            }
            self.published = revision;
        }
        self.compacted(compacted);
        self.removed(compacted);
    }

    /// What to read next for watchers that are behind. Streams take turns, and so do the cohorts of a stream.
    pub fn next_catch_up(&mut self) -> Option<CatchUp> {
        for stream in self.bell.take_drained() {
            if let Some(home) = self.stream(stream) {
                home.stalled = false;
                if !home.late.is_empty() {
                    self.ready.insert(stream.place());
                }
            }
        }
        let stream = after(&self.ready, self.served)?;
        self.served = stream;
        let home = &mut self.streams[stream];
        let cohort = after(&home.late, home.served).expect("a ready stream has one");
        home.served = cohort;
        let Position::Behind(from) = self.cohorts[cohort.0].position() else {
            unreachable!("a stream lists its late cohorts")
        };
        Some(CatchUp { from, to: self.published, prev_kv: self.late_prev_kv > 0 })
    }

    /// Hands a piece of history to every watcher that stands inside it. Returns whether there are more of them: then call
    /// again with the same slice.
    pub fn caught_up(&mut self, slice: &Slice) -> bool {
        let mut cohorts_left = COHORTS_PER_CALL;
        let mut events_left = EVENTS_PER_CALL;
        let inside = (slice.from(), GroupKey::FIRST)..=(slice.covered(), GroupKey::LAST);
        let ready: Vec<u32> = self.ready.iter().copied().collect();
        for stream in ready {
            let standing = self.streams[stream].behind.range(inside.clone());
            let served = standing.filter(|((_, group), _)| slice.has_previous() || !self.index[*group].wish().prev_kv);
            let cohorts: Vec<CohortKey> = served.map(|(_, cohort)| *cohort).take(cohorts_left + 1).collect();
            for cohort in cohorts {
                if cohorts_left == 0 || events_left == 0 {
                    return true;
                }
                let (count, result) = self.feed(cohort, slice);
                cohorts_left -= 1;
                events_left = events_left.saturating_sub(count);
                if let Err(Full) = result {
                    break;
                }
            }
        }
        false
    }

    /// The member stops: streams end once their clients have what waits, those that are opened from now on at once, of the others
    /// `most` with each call. Watchers that want to be told how far they are, and are far enough, are told. Whether there are more.
    pub fn stop(&mut self, most: usize) -> bool {
        self.stopped = true;
        let mut open = self.streams.iter().filter(|(_, home)| !home.outbox.is_ended());
        for (_, home) in open.by_ref().take(most) {
            self.bookmark(home);
            home.outbox.end(End::Stopped);
            self.cancels.ended(End::Stopped, home.watchers.len());
        }
        open.next().is_some()
    }

    /// The member has had no leader for too long, or is too far behind: ends the streams that asked for that.
    pub fn end_needing(&mut self, end: End) {
        let needing = self.streams.iter().filter(|(_, home)| home.needs_leader && !home.outbox.is_ended());
        for (_, home) in needing {
            home.outbox.end(end);
            self.cancels.ended(end, home.watchers.len());
        }
    }

    /// Numbers for the metrics.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            streams: self.streams.len(),
            watchers: self.watchers,
            slow_watchers: self.late,
            events_sent: self.events_sent,
            caught_up: self.caught_up,
            cancels: self.cancels,
            ..Stats::default()
        };
        for (_, home) in self.streams.iter() {
            let (events, bytes) = home.outbox.pending();
            stats.pending_events += events;
            stats.queued_bytes += bytes;
            stats.lagging_streams += usize::from(home.stalled);
        }
        stats
    }

    /// Sends a late cohort what `slice` has for it. Returns how many events that were, and whether all found room.
    fn feed(&mut self, key: CohortKey, slice: &Slice) -> (usize, Result<(), Full>) {
        let cohort = &mut self.cohorts[key.0];
        let Position::Behind(mut next) = cohort.position() else { unreachable!("a stream lists its late cohorts") };
        let (stream, ids, group) = (cohort.stream, cohort.members.ids(), &self.index[cohort.group]);
        let Wish { filters, prev_kv, fragment } = group.wish();
        let encode = |place: &Place| {
            let (change, revision) = (slice.change(*place), slice.revision(*place));
            match prev_kv {
                true => change.event_with_prev(revision, || None).clone(),
                false => change.event(revision).clone(),
            }
        };
        let mut places = slice.changes(group.span(), next);
        places.retain(|place| filters.admit(slice.change(*place).kind));

        let mut result = Ok(());
        let mut message = Vec::new();
        let mut bytes = 0;
        let mut revisions = places.chunk_by(|a, b| a.0 == b.0).peekable();
        while let Some(changes) = revisions.next() {
            for event in changes.iter().map(encode) {
                bytes += event.len();
                message.push(event);
            }
            let revision = match revisions.peek() {
                Some(_) if bytes < self.message_bytes => continue,
                Some(_) => slice.revision(changes[0]),
                None => slice.covered(),
            };
            bytes = 0;
            let (events, bytes) = collect(message.drain(..)).expect("a revision has a change");
            let events = Events { ids: ids.clone(), revision, events, bytes, fragment };
            match push(&mut self.streams[stream], events) {
                Ok(count) => {
                    self.events_sent += count as u64;
                    self.caught_up.0 += count as u64;
                    self.caught_up.1 += (bytes * ids.as_slice().len()) as u64;
                }
                Err(Full) => {
                    result = Err(Full);
                    break;
                }
            }
            next = revision.next();
        }
        match result {
            Ok(()) => next = slice.covered().next(),
            Err(Full) => self.stall(stream),
        }
        // Under the lock that publish needs: whatever comes after `published` will find the watchers.
        self.advance(key, if next > self.published { Position::Synced } else { Position::Behind(next) });
        self.tell_progress(stream);
        (places.len(), result)
    }

    /// A synced cohort has to read history from the next revision on: it has been offered all that is published.
    fn fall_behind(&mut self, key: CohortKey) {
        self.advance(key, Position::Behind(self.published.next()));
    }

    /// The stream gets no events until its outbox has been emptied.
    fn stall(&mut self, stream: u32) {
        self.streams[stream].stalled = true;
        self.ready.remove(&stream);
    }

    /// Moves a cohort on, to join those who are there already: what watchers have been sent only grows.
    fn advance(&mut self, key: CohortKey, to: Position) {
        self.leave(key);
        let cohort = &mut self.cohorts[key.0];
        let first = |position| match position {
            Position::Synced => self.published.next(),
            Position::Future(first) | Position::Behind(first) => first,
        };
        // (What waits for the future becomes synced as that is published.)
        let forward = first(to) >= first(cohort.position()) || to == Position::Synced;
        assert!(forward, "watchers went back: {:?} to {to:?}", cohort.position());
        cohort.stand(to);
        let (stream, group) = (cohort.stream, cohort.group);
        let Some(there) = self.standing(stream, group, to) else {
            return self.settle(key);
        };
        let mut members = self.cohorts.remove(key.0).members;
        self.index[group].cohorts -= 1;
        for id in members.ids().as_slice() {
            self.streams[stream].watchers.insert(*id, there);
        }
        self.late += if let Position::Behind(_) = to { members.len() } else { 0 };
        self.cohorts[there.0].members.absorb(members);
    }

    /// Those of a stream and a group that stand at a position.
    fn standing(&self, stream: u32, group: GroupKey, position: Position) -> Option<CohortKey> {
        match position {
            Position::Synced => self.synced(group, stream).ok(),
            Position::Future(start) => self.future.get(&(start, stream, group)).copied(),
            Position::Behind(next) => self.streams[stream].behind.get(&(next, group)).copied(),
        }
    }

    /// The synced cohort of a group on a stream; without one, where it would stand in the group's list.
    fn synced(&self, group: GroupKey, stream: u32) -> Result<CohortKey, usize> {
        match self.index[group].synced() {
            Synced::One(cohort) if self.cohorts[cohort.0].stream == stream => Ok(cohort),
            Synced::None | Synced::One(_) => Err(0),
            Synced::Many(list) => {
                let at = self.lists[list].binary_search_by_key(&stream, |cohort| self.cohorts[cohort.0].stream)?;
                Ok(self.lists[list][at])
            }
        }
    }

    /// Adds a cohort to the synced ones of its group.
    fn list(&mut self, group: GroupKey, key: CohortKey) {
        if let Synced::One(one) = self.index[group].synced() {
            self.index[group].set_synced(Synced::Many(self.lists.insert(vec![one])));
        }
        let place = self.synced(group, self.cohorts[key.0].stream);
        match self.index[group].synced() {
            Synced::Many(list) => self.lists[list].insert(place.expect_err("a stream has one"), key),
            _ => self.index[group].set_synced(Synced::One(key)),
        }
    }

    /// Takes a cohort from the synced ones of its group.
    fn unlist(&mut self, group: GroupKey, key: CohortKey) {
        let Synced::Many(list) = self.index[group].synced() else {
            return self.index[group].set_synced(Synced::None);
        };
        let stream = self.cohorts[key.0].stream;
        let cohorts = &mut self.lists[list];
        if let Ok(at) = cohorts.binary_search_by_key(&stream, |cohort| self.cohorts[cohort.0].stream) {
            cohorts.remove(at);
        }
        if cohorts.is_empty() {
            self.lists.remove(list);
            self.index[group].set_synced(Synced::None);
        }
    }

    /// Puts a cohort where its position says. Nobody stands there.
    fn settle(&mut self, key: CohortKey) {
        let Cohort { stream, group, ref members, .. } = self.cohorts[key.0];
        let home = &mut self.streams[stream];
        match self.cohorts[key.0].position() {
            Position::Synced => self.list(group, key),
            Position::Future(start) => {
                self.future.insert((start, stream, group), key);
                home.future += 1;
            }
            Position::Behind(next) => {
                home.behind.insert((next, group), key);
                home.late.insert(key);
                *self.standing_at.entry(next).or_default() += 1;
                self.late += members.len();
                self.late_prev_kv += usize::from(self.index[group].wish().prev_kv);
                if !home.stalled {
                    self.ready.insert(stream);
                    self.bell.ring();
                }
            }
        }
    }

    /// Takes a cohort from where its position says; it gets another one, or goes.
    fn leave(&mut self, key: CohortKey) {
        let Cohort { stream, group, ref members, .. } = self.cohorts[key.0];
        let home = &mut self.streams[stream];
        match self.cohorts[key.0].position() {
            Position::Synced => self.unlist(group, key),
            Position::Future(start) => {
                self.future.remove(&(start, stream, group));
                home.future -= 1;
            }
            Position::Behind(next) => {
                home.behind.remove(&(next, group));
                home.late.remove(&key);
                if let Entry::Occupied(mut count) = self.standing_at.entry(next) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
                self.late -= members.len();
                self.late_prev_kv -= usize::from(self.index[group].wish().prev_kv);
                if home.late.is_empty() {
                    self.ready.remove(&stream);
                }
            }
        }
    }

    /// Forgets a cohort that has left, and its group with it if it was the last one there.
    fn release(&mut self, key: CohortKey) {
        let group = self.cohorts.remove(key.0).group;
        self.index[group].cohorts -= 1;
        if self.index[group].cohorts == 0 {
            self.index.remove(group);
        }
    }

    /// Forgets a watcher altogether.
    fn remove(&mut self, stream: u32, id: i64) {
        let home = &mut self.streams[stream];
        let key = home.watchers.remove(&id).expect("only watchers that are there are named");
        if home.notified.remove(&id).is_some() && home.notified.is_empty() {
            self.notified.remove(&stream);
        }
        self.watchers -= 1;
        let cohort = &mut self.cohorts[key.0];
        if cohort.members.len() > 1 {
            cohort.members.remove(id);
            self.late -= usize::from(matches!(cohort.position(), Position::Behind(_)));
        } else {
            self.leave(key);
            self.release(key);
        }
    }

    /// A stream that is open.
    fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id.place()).filter(|home| home.id == id)
    }
}

/// The next one after `last`, from the beginning when there is none.
fn after<T: Ord + Copy>(all: &BTreeSet<T>, last: T) -> Option<T> {
    let later = (Bound::Excluded(last), Bound::Unbounded);
    all.range(later).next().or(all.first()).copied()
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
    Some((EventList::Many(Arc::new(all)), bytes))
}

/// Puts events into a stream's outbox. Returns how many they are.
fn push(home: &mut Stream, events: Events) -> Result<usize, Full> {
    let (count, ids) = (events.count(), events.ids.clone());
    home.outbox.push_events(events)?;
    home.heard(ids.as_slice());
    Ok(count)
}
