//! How the hub hands history to watchers that are late, in three steps: under its lock it says who stands where
//! ([`Hub::orders`]), without it their events are found, encoded and put together ([`Order::pack`]), and under it again they go
//! into the outboxes of those who still stand there ([`Hub::deliver`]). So whoever publishes, or creates a watcher, waits for a
//! few messages to be queued and never for history to be encoded.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::task::Waker;

use super::group::{GroupKey, Keys, Position, Wish};
use super::hub::{Hub, StreamId, collect, push};
use super::outbox::{EventList, Events, Full};
use super::slice::{Place, Slice};
use crate::types::Revision;

/// Cohorts ordered for in one call of [`Hub::orders`], streams looked at, and bytes of keys copied; the rest is for the next one.
const COHORTS_PER_CALL: usize = 512;
const STREAMS_PER_CALL: usize = 512;
const KEY_BYTES_PER_CALL: usize = 64 << 10;

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

/// How far handing out a piece of history has come: the place of the stream that is next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    stream: u32,
}

/// What some cohorts want that want the same: they are of one group, and stand at one revision.
#[derive(Debug)]
pub struct Order {
    group: GroupKey,
    next: Revision,
    keys: Keys,
    wish: Wish,
    /// The streams they are on.
    streams: Vec<StreamId>,
    message_bytes: usize,
}

/// An order with what is in a slice for it.
#[derive(Debug)]
pub struct Parcel {
    order: Order,
    messages: Vec<Message>,
    /// The slice has nothing more for it up to here.
    covered: Revision,
}

#[derive(Debug)]
struct Message {
    /// The last revision that is complete with it.
    revision: Revision,
    events: EventList,
    bytes: usize,
}

impl Hub {
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

    /// Some of those who stand inside a piece of history and have room for what it has for them, and where to go on when they have
    /// been served; nowhere, when all have been asked.
    pub fn orders(&self, slice: &Slice, round: Round) -> (Vec<Order>, Option<Round>) {
        let inside = (slice.from(), GroupKey::FIRST)..=(slice.covered(), GroupKey::LAST);
        let mut orders: BTreeMap<(Revision, GroupKey), Order> = BTreeMap::new();
        let (mut streams, mut cohorts, mut key_bytes) = (0, 0, 0);
        for stream in self.ready.range(round.stream..).copied() {
            if streams == STREAMS_PER_CALL {
                return (orders.into_values().collect(), Some(Round { stream }));
            }
            streams += 1;
            let home = &self.streams[stream];
            for (next, group) in home.behind.range(inside.clone()).map(|(standing, _)| *standing) {
                let (span, wish) = (self.index[group].span(), self.index[group].wish());
                if wish.prev_kv && !slice.has_previous() {
                    continue;
                }
                // Those of this stream who have been served are not inside any more.
                if cohorts == COHORTS_PER_CALL || key_bytes >= KEY_BYTES_PER_CALL {
                    return (orders.into_values().collect(), Some(Round { stream }));
                }
                cohorts += 1;
                let order = orders.entry((next, group)).or_insert_with(|| {
                    key_bytes += span.start.len() + span.end.len();
                    let message_bytes = self.message_bytes;
                    Order { group, next, keys: span.into(), wish, streams: Vec::new(), message_bytes }
                });
                order.streams.push(home.id);
            }
        }
        (orders.into_values().collect(), None)
    }

    /// Hands a parcel to those who still wait for it. They are to be woken once the lock is free: on another thread they run at
    /// once, and would wait for it.
    #[must_use]
    pub fn deliver(&mut self, parcel: &Parcel) -> Vec<Waker> {
        let mut readers = Vec::new();
        for stream in &parcel.order.streams {
            self.deliver_to(*stream, parcel, &mut readers);
        }
        readers
    }

    fn deliver_to(&mut self, stream: StreamId, parcel: &Parcel, readers: &mut Vec<Waker>) {
        let Parcel { order, messages, covered } = parcel;
        let Some(home) = self.stream(stream) else { return };
        let Some(&key) = home.behind.get(&(order.next, order.group)) else { return };
        // A group that has gone leaves its number to another.
        let group = &self.index[order.group];
        if group.wish() != order.wish || group.span() != order.keys.span() {
            return;
        }
        let stream = stream.place();
        let ids = self.cohorts[key.0].members.ids();
        let (mut next, mut full) = (order.next, false);
        for Message { revision, events, bytes } in messages {
            let (revision, bytes, fragment) = (*revision, *bytes, order.wish.fragment);
            let events = Events { ids: ids.clone(), revision, events: events.clone(), bytes, fragment };
            match push(&mut self.streams[stream], events) {
                Ok((count, reader)) => {
                    readers.extend(reader);
                    self.events_sent += count as u64;
                    self.caught_up.0 += count as u64;
                    self.caught_up.1 += (bytes * ids.as_slice().len()) as u64;
                }
                Err(Full) => {
                    full = true;
                    break;
                }
            }
            next = revision.next();
        }
        match full {
            true => self.stall(stream),
            false => next = covered.next(),
        }
        // Under the lock that publish needs: whatever comes after `published` will find the watchers.
        self.advance(key, if next > self.published { Position::Synced } else { Position::Behind(next) });
        self.tell_progress(stream);
    }
}

impl Order {
    /// Finds and encodes what the slice has for it. Whole revisions; a message is closed when it has become large enough.
    pub fn pack(self, slice: &Slice) -> Parcel {
        let mut places = slice.changes(self.keys.span(), self.next);
        places.retain(|place| self.wish.filters.admit(slice.change(*place).kind));
        let encode = |place: &Place| {
            let (change, revision) = (slice.change(*place), slice.revision(*place));
            match self.wish.prev_kv {
                true => change.event_with_prev(revision, || None).clone(),
                false => change.event(revision).clone(),
            }
        };
        let mut messages = Vec::new();
        let (mut open, mut bytes) = (Vec::new(), 0);
        let mut revisions = places.chunk_by(|a, b| a.0 == b.0).peekable();
        while let Some(changes) = revisions.next() {
            for event in changes.iter().map(encode) {
                bytes += event.len();
                open.push(event);
            }
            let revision = match revisions.peek() {
                Some(_) if bytes < self.message_bytes => continue,
                Some(_) => slice.revision(changes[0]),
                None => slice.covered(),
            };
            bytes = 0;
            let (events, bytes) = collect(open.drain(..)).expect("a revision has a change");
            messages.push(Message { revision, events, bytes });
        }
        Parcel { order: self, messages, covered: slice.covered() }
    }
}

/// The next one after `last`, from the beginning when there is none.
fn after<T: Ord + Copy>(all: &BTreeSet<T>, last: T) -> Option<T> {
    let later = (Bound::Excluded(last), Bound::Unbounded);
    all.range(later).next().or(all.first()).copied()
}
