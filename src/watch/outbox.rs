//! The outbox: what waits to be written to one stream, in the order in which its client is to see it.
//!
//! All watchers of a stream share one outbox, and everything the client hears goes through it. So "created" precedes events,
//! nothing follows "canceled", and progress cannot overtake an event, all without further thought.
//!
//! Events are taken only while there is room. When there is not, the hub is told `Full`, remembers a revision and reads
//! history later: a slow client costs a number, not a copy of what it missed. Answers to requests are always taken; they are
//! bounded because the stream's requests are not read while many wait ([`Outbox::has_answer_room`]), and a cancellation by
//! the server because every watcher has one at most.
//!
//! The hub pushes, the stream's task pops. Once a full outbox is half empty again, the task rings the [`Bell`] and the watch
//! loop sees to the stream. Beside the feed's this file holds the only lock of `watch`.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::hub::StreamId;
use crate::types::Revision;

/// Bytes of events waiting in one outbox. Beyond this its watchers become unsynced. One message may go over it, else a
/// large one could never be sent.
pub const OUTBOX_BYTES_MAX: usize = 1 << 20;
/// Messages waiting in one outbox. Beyond this its watchers become unsynced.
pub const OUTBOX_MESSAGES_MAX: usize = 256;
/// Messages for which an empty outbox keeps its room. One that was full once is not to cost that for ever.
const IDLE_MESSAGES: usize = 16;
/// What the mark of a fragment takes in a message.
const FRAGMENT_BYTES: usize = 2;
/// Messages beyond those that answers to requests may take. When they are used up, the stream's requests wait unread.
const ANSWERS_RESERVED: usize = 256;

/// How much one outbox holds, both ways of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: OUTBOX_BYTES_MAX, messages: OUTBOX_MESSAGES_MAX }
    }
}

/// One message to a client. Who serves it and in which term is stamped on where it is encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// A watcher exists.
    Created {
        /// Its id on this stream.
        id: i64,
        /// It is sent what comes after this, if it did not ask for another start.
        revision: Revision,
    },
    /// A watcher was not created.
    Refused {
        /// Why.
        reason: Refusal,
        /// What is published.
        revision: Revision,
    },
    /// The client's cancel is done, or it may not hear more: nothing follows for this id.
    Canceled {
        /// Which.
        id: i64,
        /// What is published.
        revision: Revision,
        /// Why, in words for the client, if that was not what it asked for.
        reason: &'static str,
    },
    /// Compaction removed what the watcher still had to be sent. Nothing follows for this id.
    Compacted {
        /// Which.
        id: i64,
        /// The oldest revision that can still be watched from.
        at: Revision,
    },
    /// Everything up to `revision` has been sent.
    Progress {
        /// To which watcher; `None`: to all of the stream.
        id: Option<i64>,
        /// Up to where.
        revision: Revision,
    },
    /// Changes, whole revisions in ascending order.
    Events(Events),
}

/// Changes for watchers of one stream that want the same and are equally far: one message here, one response for each of them on
/// the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// Which watchers.
    pub ids: Ids,
    /// Everything they want up to here is in this message or was in earlier ones.
    pub revision: Revision,
    /// Encoded `events` fields of `WatchResponse`, shared with every other watcher of the same change.
    pub events: EventList,
    /// Bytes of them, once.
    pub bytes: usize,
    /// The client accepts parts.
    pub fragment: bool,
}

impl Events {
    /// How many events its watchers are sent, all together.
    pub(crate) fn count(&self) -> usize {
        self.events.as_slice().len() * self.ids.as_slice().len()
    }

    /// The same, for one watcher at a time.
    pub fn each(&self) -> impl Iterator<Item = Events> {
        self.ids.as_slice().iter().map(|id| Events { ids: Ids::One(*id), ..self.clone() })
    }

    /// Takes in what follows for the same watchers, unless that would make more than `bytes_max`. What is not taken is given back.
    fn join(&mut self, next: Events, bytes_max: usize) -> Result<(), Events> {
        let same = self.fragment == next.fragment && self.ids == next.ids;
        if !same || self.bytes + next.bytes > bytes_max {
            return Err(next);
        }
        self.events.append(next.events);
        (self.bytes, self.revision) = (self.bytes + next.bytes, next.revision);
        Ok(())
    }

    /// Cut into pieces of less than `bytes_max` each, `head` bytes of everything else in a message included, if the client
    /// accepts that and it is needed. A piece that is one event may be larger. All but the last are marked as fragments;
    /// they are written one right after the other.
    pub fn pieces(&self, head: usize, bytes_max: usize) -> Vec<&[Bytes]> {
        let list = self.events.as_slice();
        if !self.fragment || list.len() < 2 || head + self.bytes < bytes_max {
            return vec![list];
        }
        let mut pieces = Vec::new();
        let (mut first, mut bytes) = (0, head + FRAGMENT_BYTES);
        for (at, event) in list.iter().enumerate() {
            bytes += event.len();
            if bytes >= bytes_max && at > first {
                pieces.push(&list[first..at]);
                (first, bytes) = (at, head + FRAGMENT_BYTES + event.len());
            }
        }
        pieces.push(&list[first..]);
        pieces
    }
}

/// One event, or several. Most writes change one key, and that needs no allocation here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventList {
    /// One.
    One(Bytes),
    /// Several, in order.
    Many(Arc<Vec<Bytes>>),
}

impl EventList {
    /// The encoded events in order.
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            EventList::One(event) => std::slice::from_ref(event),
            EventList::Many(events) => events,
        }
    }

    /// Whether it is the same list, in the same place. What is equal but was made anew is not.
    pub(crate) fn is(&self, other: &EventList) -> bool {
        match (self, other) {
            (EventList::One(event), EventList::One(other)) => {
                (event.as_ptr(), event.len()) == (other.as_ptr(), other.len())
            }
            (EventList::Many(events), EventList::Many(other)) => Arc::ptr_eq(events, other),
            _ => false,
        }
    }

    fn append(&mut self, more: EventList) {
        match self {
            EventList::One(first) => {
                let all = [std::slice::from_ref(first), more.as_slice()].concat();
                *self = EventList::Many(Arc::new(all));
            }
            EventList::Many(events) => Arc::make_mut(events).extend_from_slice(more.as_slice()),
        }
    }
}

/// The ids of one watcher, or of several.
#[derive(Clone, Debug)]
pub enum Ids {
    /// One.
    One(i64),
    /// Several, ascending.
    Many(Arc<[i64]>),
}

impl Ids {
    /// The same without some.
    pub fn without(&self, others: &[i64]) -> Ids {
        Ids::Many(self.as_slice().iter().copied().filter(|id| !others.contains(id)).collect())
    }

    /// All of them.
    pub fn as_slice(&self) -> &[i64] {
        match self {
            Ids::One(id) => std::slice::from_ref(id),
            Ids::Many(ids) => ids,
        }
    }
}

impl PartialEq for Ids {
    fn eq(&self, other: &Ids) -> bool {
        match (self, other) {
            // The usual case of many: the list that the last message had.
            (Ids::Many(a), Ids::Many(b)) if Arc::ptr_eq(a, b) => true,
            _ => self.as_slice() == other.as_slice(),
        }
    }
}

impl Eq for Ids {}

/// Why a watcher was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The start revision is negative.
    NegativeStart,
    /// No key can lie in the range.
    EmptyRange,
    /// The stream has a watcher of this id. -1 always counts as taken: on the wire it names the stream itself.
    DuplicateId,
    /// Its client may not hear of these keys: so says, in words for the client, who knows what clients may.
    Denied(&'static str),
    /// Its stream has as many watchers as one may have.
    StreamFull,
    /// The member has as many watchers as it may have.
    MemberFull,
}

/// Why the server ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The member stops serving.
    Stopped,
    /// The client asked to be cut off from a member that has lost its leader.
    NoLeader,
    /// The same client is better off with a member that is not so far behind.
    Lagging,
}

/// What [`Outbox`] hands to the stream's task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write this.
    Message(Outgoing),
    /// Everything is written; end the stream.
    End(End),
}

/// The outbox has no room for events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The queue of one stream. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: StreamId,
    bell: Arc<Bell>,
    limits: Limits,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Outgoing>,
    /// How many events are among them, and their bytes.
    events: usize,
    bytes: usize,
    /// Events were turned away since the queue was last half empty.
    turned_away: bool,
    end: Option<End>,
    reader: Option<Waker>,
}

impl Outbox {
    pub(crate) fn new(stream: StreamId, bell: Arc<Bell>, limits: Limits) -> Outbox {
        Outbox { shared: Arc::new(Shared { stream, bell, limits, queue: Mutex::default() }) }
    }

    /// The stream it belongs to.
    pub fn stream(&self) -> StreamId {
        self.shared.stream
    }

    /// Who waits for something to come.
    pub(crate) fn rouse(&self) -> Option<Waker> {
        self.lock().reader.take()
    }

    /// What comes next, if anything waits. Messages before the end.
    pub fn try_next(&self) -> Option<Next> {
        self.pop(&mut self.lock())
    }

    /// What comes next; wakes the task when there is something.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut queue = self.lock();
        match self.pop(&mut queue) {
            Some(next) => Poll::Ready(next),
            None => {
                queue.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Makes one message of `events` and what waits right behind it for the same watchers, of `bytes_max` at most. A client that is
    /// slower than the writers so gets many events at a time. Returns what was taken and cannot be joined.
    pub fn join(&self, events: &mut Events, bytes_max: usize) -> Option<Next> {
        while events.bytes < bytes_max {
            match self.try_next() {
                Some(Next::Message(Outgoing::Events(more))) => {
                    if let Err(more) = events.join(more, bytes_max) {
                        return Some(Next::Message(Outgoing::Events(more)));
                    }
                }
                other => return other,
            }
        }
        None
    }

    /// Whether another request of the stream may be read: its answers will find room.
    pub fn has_answer_room(&self) -> bool {
        self.lock().messages.len() < self.shared.limits.messages + ANSWERS_RESERVED
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().messages.is_empty()
    }

    /// Messages that wait, and the bytes of the events among them.
    pub fn waiting(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.messages.len(), queue.bytes)
    }

    /// Events that wait, each as often as it will be written, and their bytes in memory.
    pub(crate) fn pending(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.events, queue.bytes)
    }

    /// Adds events if there is room, and says whom to wake then. After `Full` the bell will ring for this stream.
    pub(crate) fn push_events(&self, events: Events) -> Result<Option<Waker>, Full> {
        let mut queue = self.lock();
        if !queue.has_room(self.shared.limits) {
            queue.turned_away = true;
            return Err(Full);
        }
        queue.events += events.count();
        queue.bytes += events.bytes;
        Ok(queue.push(Outgoing::Events(events)))
    }

    /// Adds progress if there is room; it is a courtesy that can be repeated.
    pub(crate) fn push_progress(&self, id: Option<i64>, revision: Revision) {
        let mut queue = self.lock();
        let reader = match queue.has_room(self.shared.limits) {
            true => queue.push(Outgoing::Progress { id, revision }),
            false => None,
        };
        drop(queue);
        wake(reader);
    }

    /// Adds an answer to a request, or a cancellation. Never turned away.
    pub(crate) fn push_answer(&self, answer: Outgoing) {
        let reader = self.lock().push(answer);
        wake(reader);
    }

    /// Whether nothing follows what waits.
    pub(crate) fn is_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Nothing follows what waits. The first reason stands.
    pub(crate) fn end(&self, end: End) {
        let mut queue = self.lock();
        queue.end.get_or_insert(end);
        let reader = queue.reader.take();
        drop(queue);
        wake(reader);
    }

    fn pop(&self, queue: &mut Queue) -> Option<Next> {
        let Some(message) = queue.messages.pop_front() else {
            return queue.end.map(Next::End);
        };
        if queue.messages.is_empty() && queue.messages.capacity() > IDLE_MESSAGES {
            queue.messages = VecDeque::new();
        }
        if let Outgoing::Events(events) = &message {
            queue.events -= events.count();
            queue.bytes -= events.bytes;
        }
        let limits = self.shared.limits;
        let half_empty = queue.messages.len() <= limits.messages / 2 && queue.bytes <= limits.bytes / 2;
        if queue.turned_away && half_empty {
            queue.turned_away = false;
            self.shared.bell.drained(self.shared.stream);
        }
        Some(Next::Message(message))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn has_room(&self, limits: Limits) -> bool {
        self.end.is_none() && self.messages.len() < limits.messages && self.bytes < limits.bytes
    }

    /// Whom to wake once the lock is free: somebody who is woken often runs at once, and would wait for the lock.
    fn push(&mut self, message: Outgoing) -> Option<Waker> {
        // Else a busy stream would never come to its end.
        if self.end.is_some() {
            return None;
        }
        self.messages.push_back(message);
        self.reader.take()
    }
}

fn wake(reader: Option<Waker>) {
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Tells the watch loop that there may be somebody to catch up.
#[derive(Debug, Default)]
pub struct Bell {
    state: Mutex<BellState>,
}

#[derive(Debug, Default)]
struct BellState {
    rung: bool,
    /// Streams whose full outbox is half empty again.
    drained: BTreeSet<StreamId>,
    listener: Option<Waker>,
}

impl Bell {
    /// Returns once the bell has rung since the last return. One listener.
    pub async fn rung(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if mem::take(&mut state.rung) {
                return Poll::Ready(());
            }
            state.listener = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Wakes the listener.
    pub fn ring(&self) {
        self.ring_for(None);
    }

    fn drained(&self, stream: StreamId) {
        self.ring_for(Some(stream));
    }

    fn ring_for(&self, drained: Option<StreamId>) {
        let mut state = self.lock();
        state.drained.extend(drained);
        state.rung = true;
        let listener = state.listener.take();
        drop(state);
        wake(listener);
    }

    pub(crate) fn take_drained(&self) -> BTreeSet<StreamId> {
        mem::take(&mut self.lock().drained)
    }

    fn lock(&self) -> MutexGuard<'_, BellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(bytes: usize) -> Events {
        let events = EventList::One(Bytes::from(vec![0; bytes]));
        Events { ids: Ids::One(0), revision: Revision(2), events, bytes, fragment: false }
    }

    #[test]
    fn what_follows_for_the_same_watchers_can_be_one_message() {
        let numbered = |ids: &[i64], revision, bytes| Events {
            ids: if let [id] = ids { Ids::One(*id) } else { Ids::Many(ids.into()) },
            revision: Revision(revision),
            ..events(bytes)
        };
        let mut first = numbered(&[1, 2], 2, 5);
        assert_eq!(first.join(numbered(&[1, 2], 3, 6), 20), Ok(()));
        assert_eq!(first.join(numbered(&[1, 2], 5, 7), 20), Ok(()));
        let shape = |events: &Events| {
            (events.revision.0, events.bytes, events.events.as_slice().iter().map(Bytes::len).collect::<Vec<_>>())
        };
        assert_eq!(shape(&first), (5, 18, vec![5, 6, 7]));
        for other in [numbered(&[1], 6, 1), numbered(&[1, 3], 6, 1), numbered(&[1, 2], 6, 3)] {
            assert_eq!(first.join(other.clone(), 20), Err(other));
        }
        assert_eq!(shape(&first), (5, 18, vec![5, 6, 7]));
        let each: Vec<Events> = first.each().collect();
        assert_eq!((each.len(), &each[1].ids, shape(&each[1])), (2, &Ids::One(2), shape(&first)));
    }

    #[test]
    fn events_are_bounded_answers_are_not_lost_and_draining_rings_once() {
        let bell = Arc::new(Bell::default());
        let outbox = Outbox::new(StreamId(7), bell.clone(), Limits::default());
        // One message of any size fits into an outbox with room.
        assert!(outbox.push_events(events(OUTBOX_BYTES_MAX * 3)).is_ok());
        assert!(outbox.push_events(events(1)).is_err());
        outbox.push_progress(None, Revision(2));
        outbox.push_answer(Outgoing::Canceled { id: 0, revision: Revision(2), reason: "" });
        assert!(bell.take_drained().is_empty());
        assert!(matches!(outbox.try_next(), Some(Next::Message(Outgoing::Events(_)))));
        assert_eq!(bell.take_drained(), BTreeSet::from([StreamId(7)]));
        assert!(matches!(outbox.try_next(), Some(Next::Message(Outgoing::Canceled { .. }))));
        assert!(bell.take_drained().is_empty());

        for _ in 0..OUTBOX_MESSAGES_MAX {
            assert!(outbox.push_events(events(1)).is_ok());
        }
        assert!(outbox.push_events(events(1)).is_err());
        for id in 0..ANSWERS_RESERVED as i64 {
            assert!(outbox.has_answer_room());
            outbox.push_answer(Outgoing::Created { id, revision: Revision(2) });
        }
        assert!(!outbox.has_answer_room());
    }

    #[test]
    fn what_waits_is_written_before_the_end() {
        let outbox = Outbox::new(StreamId(1), Arc::default(), Limits::default());
        outbox.push_answer(Outgoing::Created { id: 0, revision: Revision(1) });
        outbox.end(End::Stopped);
        outbox.end(End::NoLeader);
        outbox.push_answer(Outgoing::Created { id: 1, revision: Revision(1) });
        assert!(outbox.push_events(events(1)).is_err());
        assert!(matches!(outbox.try_next(), Some(Next::Message(Outgoing::Created { .. }))));
        assert_eq!(outbox.try_next(), Some(Next::End(End::Stopped)));
    }
}
