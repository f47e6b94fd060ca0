//! The watch hub: decides which stream hears about which change.
//!
//! Promises:
//!   * the position of a watcher only grows, and no change before it is pushed;
//!   * all changes of one revision that concern a watcher are pushed together;
//!   * a watcher that is not being caught up has been offered everything up to `published`;
//!   * a watcher whose position is removed is told so; it never skips.
//!
//! Called by whoever hears the apply loop's [feed](super::feed) (publish, compacted, removed, restored) and by the streams (create,
//! cancel, progress), under one small mutex, which the apply loop never takes. How late watchers are served is in
//! [`catch_up`](super::catch_up), where they stand in `cohorts`. Nothing here waits or reads; work under the mutex is bounded by
//! what is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;

use super::feed::Notice;
use super::group::{Cohort, CohortKey, GroupKey, Members, Position, Span, Synced, Wish};
use super::index::Index;
use super::outbox::{Bell, End, EventList, Events, Full, Limits, Outbox, Outgoing, Refusal};
use super::slab::Slab;
use super::stats::{Cancels, Stats};

use super::stream::Stream;
use super::watcher::Spec;
use crate::mvcc::change::{Change, SharedChanges};
use crate::mvcc::revision::RevisionKey;
use crate::types::{KeyRange, Revision};

/// Bytes of events after which a catch-up message is closed, at the end of a revision. A client with gRPC's default limit of
/// 4 MiB can read any message unless a single revision is larger.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Names a stream. Never used again: its place is, and then has another number in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    pub(super) fn place(self) -> u32 {
        self.0 as u32
    }
}

/// Distributes changes to watchers. See the module.
#[derive(Debug)]
pub struct Hub {
    /// Every revision up to here has been offered to the synced watchers.
    pub(super) published: Revision,
    /// Changes before this one may be gone. -1 before the first compaction.
    pub(super) compacted: Revision,
    pub(super) streams: Slab<Stream>,
    pub(super) streams_opened: u64,
    pub(super) index: Index,
    pub(super) cohorts: Slab<Cohort>,
    /// The synced cohorts of groups that have several, each list by the cohorts' streams.
    pub(super) lists: Slab<Vec<CohortKey>>,
    /// How many watchers there are.
    pub(super) watchers: usize,
    /// Cohorts of the future, by the revision they wait for and their streams' places.
    pub(super) future: BTreeMap<(Revision, u32, GroupKey), CohortKey>,
    /// Places of streams that have late watchers and room for events.
    pub(super) ready: BTreeSet<u32>,
    /// The place of the stream served last; the next one in order is next.
    pub(super) served: u32,
    /// Late watchers, and the late cohorts that want previous values.
    pub(super) late: usize,
    pub(super) late_prev_kv: usize,
    /// Where they stand, and how many cohorts there.
    pub(super) standing_at: BTreeMap<Revision, usize>,
    /// Places of the streams with watchers that want to be told how far they are.
    pub(super) notified: BTreeSet<u32>,
    pub(super) stopped: bool,
    pub(super) events_sent: u64,
    /// Messages offered to outboxes so far.
    pub(super) offered: u64,
    pub(super) caught_up: (u64, u64),
    pub(super) cancels: Cancels,
    pub(super) bell: Arc<Bell>,
    /// Of the outboxes of streams that are opened.
    pub(super) limits: Limits,
    /// See [`MESSAGE_BYTES_MAX`].
    pub(super) message_bytes: usize,
    /// Room for [`Hub::publish`] to work in.
    pub(super) matched: Vec<(GroupKey, u32)>,
    pub(super) fallen: Vec<CohortKey>,
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

    /// Answers on a stream that a watcher is not created.
    pub fn refuse(&mut self, stream: StreamId, reason: Refusal) {
        let published = self.published;
        if let Some(home) = self.stream(stream) {
            home.outbox.push_answer(Outgoing::Refused { reason, revision: published });
            self.cancels.refused += 1;
        }
    }

    /// Creates a watcher on a stream and answers there, first of all.
    pub fn create(&mut self, stream: StreamId, spec: Spec) {
        let (published, compacted) = (self.published, self.compacted);
        let Some(home) = self.stream(stream) else { return };
        let id = match home.admit(&spec) {
            Ok(id) => id,
            Err(reason) => return self.refuse(stream, reason),
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

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers
    }

    /// How many of them a stream has.
    pub fn watchers_of(&self, stream: StreamId) -> usize {
        self.streams.get(stream.place()).filter(|home| home.id == stream).map_or(0, |home| home.watchers.len())
    }

    /// Cancels a watcher and answers; an unknown id gets no answer.
    pub fn cancel(&mut self, stream: StreamId, id: i64) {
        let revision = self.published;
        let Some(home) = self.stream(stream) else { return };
        if home.watchers.contains_key(&id) {
            home.outbox.push_answer(Outgoing::Canceled { id, revision, reason: "" });
            self.cancels.client += 1;
            self.remove(stream.place(), id);
            self.tell_progress(stream.place());
        } else if home.take_compacted(id) {
            // The client does not know yet, or tidies up: etcd answers this too.
            home.outbox.push_answer(Outgoing::Canceled { id, revision, reason: "" });
        }
    }

    /// Cancels those watchers of a stream whose keys its client may no longer hear of, and says why. Their ids: what waits for them in
    /// the outbox is from before.
    pub fn revoke(&mut self, stream: StreamId, may: &dyn Fn(&KeyRange) -> bool, reason: &'static str) -> Vec<i64> {
        let revision = self.published;
        let Some(home) = self.streams.get(stream.place()).filter(|home| home.id == stream) else { return Vec::new() };
        let range = |cohort: &CohortKey| self.index[self.cohorts[cohort.0].group].span().range();
        let denied = home.watchers.iter().filter(|(_, cohort)| !may(&range(cohort)));
        let mut denied: Vec<i64> = denied.map(|(id, _)| *id).collect();
        denied.sort_unstable();
        for id in &denied {
            self.streams[stream.place()].outbox.push_answer(Outgoing::Canceled { id: *id, revision, reason });
            self.remove(stream.place(), *id);
        }
        self.cancels.revoked += denied.len() as u64;
        if !denied.is_empty() {
            self.tell_progress(stream.place());
        }
        denied
    }

    /// Has everybody look at his stream again, who waits for something to come.
    pub fn rouse(&self) -> Vec<Waker> {
        self.streams.iter().filter_map(|(_, home)| home.outbox.rouse()).collect()
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
    pub(super) fn tell_progress(&mut self, stream: u32) {
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
                    Ok((count, reader)) => {
                        self.events_sent += count as u64;
                        // It runs on this thread.
                        reader.into_iter().for_each(Waker::wake);
                    }
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

    /// A synced cohort has to read history from the next revision on: it has been offered all that is published.
    fn fall_behind(&mut self, key: CohortKey) {
        self.advance(key, Position::Behind(self.published.next()));
    }

    /// The stream gets no events until its outbox has been emptied.
    pub(super) fn stall(&mut self, stream: u32) {
        self.streams[stream].stalled = true;
        self.ready.remove(&stream);
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
    pub(super) fn stream(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id.place()).filter(|home| home.id == id)
    }
}

/// Events as a message carries them, and their bytes; nothing for none.
pub(super) fn collect(mut events: impl Iterator<Item = Bytes>) -> Option<(EventList, usize)> {
    let first = events.next()?;
    let Some(second) = events.next() else {
        let bytes = first.len();
        return Some((EventList::One(first), bytes));
    };
    let all: Vec<Bytes> = [first, second].into_iter().chain(events).collect();
    let bytes = all.iter().map(Bytes::len).sum();
    Some((EventList::Many(Arc::new(all)), bytes))
}

/// Puts events into a stream's outbox. Returns how many they are, and whom to wake.
pub(super) fn push(home: &mut Stream, events: Events) -> Result<(usize, Option<Waker>), Full> {
    let (count, ids) = (events.count(), events.ids.clone());
    let reader = home.outbox.push_events(events)?;
    home.heard(ids.as_slice());
    Ok((count, reader))
}
