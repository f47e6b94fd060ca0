//! Every watch against the model's events, and chains of resumed watches as if each were one.
//!
//! What is due to a watch is the list of events of its range, past its filters, from its first revision on. It must be
//! sent exactly this list from the front. Progress at p says that all up to p has been sent. The rules, and where they
//! are held:
//!
//! | rule | where, under which name |
//! |---|---|
//! | 1 every event matches range and filters | `events`: *filter* |
//! | 2 ordered, inside a revision as executed | `events`: *ordered*; comparison with the model's list: *reliable* |
//! | 3 nothing twice | `events`: *ordered*, *reliable*, *unique* |
//! | 4 a revision in one message, or in fragments that were asked for, all but the last marked, one right after the other on the stream under one header | `message`, `Streams`: *fragment*, `events`: *atomic* |
//! | 5 nothing left out, nothing early; a resumed watch goes on where the one before left off | `events`: *early*, *reliable*; `check_all`: *resume* |
//! | 6 progress at p: all up to p was sent, for a stream's progress on all its watches; headers not below their events, never falling on a watch, nor on a stream where they speak for all of it (created, the stream's progress; a late watch is told how far it has got itself) | `progress`: *bookmark*; `Streams`: *bookmark*, *header*; `events`: *header* |
//! | 7 the previous value right, or missing after a compaction | `check_prev`: *prev_kv* |
//! | 8 created or changed, version, create revision; a delete shows key and revision only | comparison with the model's list: *reliable* |
//! | 9 created first and once, unless what was asked for makes no sense, then refused; nothing after canceled; canceled for a compaction only if that was asked for and something below it had not been sent; nothing below a start in the future | `message`, `cancel`: *protocol*, *compaction*, `events`: *early*, `progress`: *bookmark* |
//! | 10 nothing that may be lost | the simulator, at the instant of every message |
//! | 11 everything arrives in the end | `Place::behind`, for the simulator after a quiet time |
//! | 12 the same on all members | there is but one list, so two watches that are both right are equal |
//! | 13 bounded queues | the simulator |

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Model, within};
use super::order::Order;
use super::*;

/// What a watch showed of each revision, before anything is known to be right: evidence for the replay.
pub struct Shown<'a> {
    record: &'a WatchRecord,
    events: BTreeMap<i64, Vec<&'a Event>>,
    /// Revisions of which it showed everything it had to: first and last.
    covers: (i64, i64),
}

impl<'a> Shown<'a> {
    /// Reads a record.
    pub fn new(record: &'a WatchRecord) -> Shown<'a> {
        let mut events: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
        for event in record.messages.iter().flat_map(|(_, message)| message.events()) {
            events.entry(event.kv.mod_revision).or_default().push(event);
        }
        Shown { record, events, covers: Shown::covers(record) }
    }

    /// Revisions of which a record shows everything it had to: first and last.
    pub fn covers(record: &WatchRecord) -> (i64, i64) {
        let mut covers = (i64::MAX, 0);
        for (_, message) in &record.messages {
            match message {
                WatchMessage::Created { revision } => {
                    covers.0 = if record.start > 0 { record.start } else { revision + 1 };
                }
                WatchMessage::Events { fragment, events: sent, .. } => {
                    if let Some(event) = sent.last() {
                        covers.1 = covers.1.max(event.kv.mod_revision - i64::from(*fragment));
                    }
                }
                WatchMessage::Progress { revision } | WatchMessage::StreamProgress { revision } => {
                    covers.1 = covers.1.max(*revision)
                }
                WatchMessage::Refused
                | WatchMessage::Denied
                | WatchMessage::Revoked
                | WatchMessage::Canceled { .. }
                | WatchMessage::Ended => {}
            }
        }
        covers
    }

    /// Some event of the revision.
    pub fn one(&self, revision: i64) -> Option<&'a Event> {
        self.events.get(&revision).and_then(|events| events.first().copied())
    }

    /// Are these events of the revision, as far as they concern the watch, the ones it showed? (Or begin with them, if
    /// it ended between two pieces.)
    pub fn agrees(&self, revision: i64, events: &[Event]) -> bool {
        if revision < self.covers.0 {
            return true;
        }
        let shown = self.events.get(&revision).map_or(&[][..], Vec::as_slice);
        let due: Vec<&Event> = events.iter().filter(|event| concerns(self.record, event)).collect();
        let all = due.len() == shown.len() || revision > self.covers.1 && due.len() > shown.len();
        all && due.iter().zip(shown).all(|(due, shown)| {
            due.kind == shown.kind && due.kv == shown.kv && (shown.prev.is_none() || shown.prev == due.prev)
        })
    }
}

/// Where a watch had got to when it ended, or the history did.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    created: bool,
    /// Everything below has been sent.
    next: i64,
    /// The last revision of which the client knows that it was sent all events, 0 for none.
    sent: i64,
    /// It was canceled because history up to here was gone.
    compacted: Option<i64>,
    /// It is open, and has not been sent everything.
    pub behind: bool,
}

/// Does every change concern the watch?
pub fn concerns_all(record: &WatchRecord) -> bool {
    record.key <= vec![0] && record.end == [0] && !record.no_put && !record.no_delete
}

/// Holds all watches against the model.
pub fn check_all(history: &History, order: &Order, model: &Model) -> Result<Vec<Place>, Violation> {
    let streams = Streams::new(history)?;
    let mut places = Vec::with_capacity(history.watches.len());
    for (index, record) in history.watches.iter().enumerate() {
        let mut walk = Walk::new(order, model, record);
        for (number, (time, message)) in record.messages.iter().enumerate() {
            let say = |(rule, what): Broken| at(index, rule, format!("message {number}: {what}"));
            walk.message(*time, message).map_err(say)?;
            streams.check_events(record, walk.created_at, *time, message).map_err(say)?;
        }
        places.push(walk.finish());
    }
    for (index, record) in history.watches.iter().enumerate() {
        let Some(before) = record.resumes else { continue };
        let (Some(earlier), Some(place)) = (history.watches.get(before), places.get(before)) else {
            return Err(at(index, "resume", format!("there is no watch {before}")));
        };
        let same = (&earlier.key, &earlier.end) == (&record.key, &record.end)
            && (earlier.no_put, earlier.no_delete) == (record.no_put, record.no_delete);
        let starts_right = match (place.compacted, place.created) {
            (Some(compacted), _) => record.start >= compacted,
            (None, true) => place.sent < record.start && record.start <= place.next,
            (None, false) => record.start == earlier.start,
        };
        if !same || !starts_right {
            let what = format!("watch {before} left off at {place:?}, this one starts at {}", record.start);
            return Err(at(index, "resume", what));
        }
    }
    Ok(places)
}

fn at(index: usize, rule: &'static str, what: String) -> Violation {
    Violation { rule, what, op: None, watch: Some(index) }
}

fn concerns(record: &WatchRecord, event: &Event) -> bool {
    let filtered = match event.kind {
        EventKind::Put => record.no_put,
        EventKind::Delete => record.no_delete,
    };
    !filtered && within(&event.kv.key, &record.key, &record.end)
}

/// Does it ask for something that can never be sent?
fn makes_no_sense(record: &WatchRecord) -> bool {
    let empty = !record.end.is_empty() && record.end != [0] && record.key >= record.end;
    empty || record.start < 0
}

type Broken = (&'static str, String);

/// What holds between the watches of one stream.
struct Streams {
    /// Of each stream the progress it was sent as a whole, by time, and the highest so far.
    progress: BTreeMap<u64, Vec<(u64, i64)>>,
}

impl Streams {
    fn new(history: &History) -> Result<Streams, Violation> {
        let mut headers: Vec<(u64, u64, i64, usize)> = Vec::new();
        let mut progress: BTreeMap<u64, Vec<(u64, i64)>> = BTreeMap::new();
        for (index, record) in history.watches.iter().enumerate().filter(|(_, record)| record.stream != 0) {
            for (time, message) in &record.messages {
                let revision = match message {
                    WatchMessage::Created { revision } => *revision,
                    WatchMessage::StreamProgress { revision } => {
                        progress.entry(record.stream).or_default().push((*time, *revision));
                        *revision
                    }
                    // A watch that is late is told how far it has got, which says nothing of the others.
                    _ => continue,
                };
                headers.push((record.stream, *time, revision, index));
            }
        }
        headers.sort_unstable();
        // Sorted by revision where the time is the same: their order is not known.
        for pair in headers.windows(2) {
            let [(stream, time, before, _), (same, after, revision, index)] = pair else { continue };
            if stream == same && revision < before {
                let what = format!("revision {revision} at {after} after {before} at {time} on stream {stream}");
                return Err(at(*index, "header", what));
            }
        }
        check_pieces(history)?;
        for sent in progress.values_mut() {
            sent.sort_unstable();
            let mut highest = 0;
            for (_, revision) in sent {
                highest = highest.max(*revision);
                *revision = highest;
            }
        }
        Ok(Streams { progress })
    }

    /// No event that a stream's progress, sent before it to another watch, had declared sent.
    fn check_events(
        &self,
        record: &WatchRecord,
        created_at: u64,
        time: u64,
        message: &WatchMessage,
    ) -> Result<(), Broken> {
        let (Some(progress), Some(first)) = (self.progress.get(&record.stream), message.events().first()) else {
            return Ok(());
        };
        let before = progress.partition_point(|(sent, _)| *sent < time);
        match progress[..before].last() {
            Some((sent, declared)) if *sent > created_at && *declared >= first.kv.mod_revision => {
                Err(("bookmark", format!("{first:?} after progress {declared} of the stream at {sent}")))
            }
            _ => Ok(()),
        }
    }
}

/// The pieces of a message come one right after the other on their stream: clients join what arrives in a row.
fn check_pieces(history: &History) -> Result<(), Violation> {
    let is_piece = |message: &WatchMessage| matches!(message, WatchMessage::Events { fragment: true, .. });
    let known = history.watches.iter().filter(|record| record.stream != 0);
    let in_pieces = known.filter(|record| record.messages.iter().any(|(_, message)| is_piece(message)));
    let streams: BTreeSet<u64> = in_pieces.map(|record| record.stream).collect();
    let mut messages: Vec<(u64, u64, usize, &WatchMessage)> = Vec::new();
    for (index, record) in history.watches.iter().enumerate().filter(|(_, record)| streams.contains(&record.stream)) {
        let arrived = record.messages.iter().filter(|(_, message)| *message != WatchMessage::Ended);
        messages.extend(arrived.map(|(time, message)| (record.stream, *time, index, message)));
    }
    messages.sort_by_key(|(stream, time, index, _)| (*stream, *time, *index));
    for pair in messages.windows(2) {
        let [(stream, time, index, before), (same, after, other, message)] = pair else { continue };
        if stream == same && is_piece(before) && index != other {
            let what = format!("watch {other} was sent {message:?} at {after}, after a piece for this one at {time}");
            return Err(at(*index, "fragment", what));
        }
    }
    Ok(())
}

/// Follows one watch through its messages.
struct Walk<'a> {
    order: &'a Order,
    record: &'a WatchRecord,
    due: Due<'a>,
    place: Place,
    clock: u64,
    created: Option<i64>,
    created_at: u64,
    /// The first revision it is to be sent.
    first: i64,
    /// The last revision it was sent.
    last: i64,
    header: i64,
    in_fragments: bool,
    canceled: bool,
    ended: bool,
}

impl<'a> Walk<'a> {
    fn new(order: &'a Order, model: &'a Model, record: &'a WatchRecord) -> Walk<'a> {
        Walk {
            order,
            record,
            due: Due { model, record, revision: i64::MAX, index: 0 },
            place: Place { created: false, next: record.start, sent: 0, compacted: None, behind: false },
            clock: 0,
            created: None,
            created_at: 0,
            first: record.start,
            last: 0,
            header: 0,
            in_fragments: false,
            canceled: false,
            ended: false,
        }
    }

    fn message(&mut self, time: u64, message: &WatchMessage) -> Result<(), Broken> {
        if time < self.clock {
            return Err(("record", "arrived before the one before it".into()));
        }
        self.clock = time;
        if self.ended {
            return Err(("protocol", "after the end of the stream".into()));
        }
        if self.canceled && *message != WatchMessage::Ended {
            return Err(("protocol", "after canceled".into()));
        }
        let first = matches!(
            message,
            WatchMessage::Created { .. } | WatchMessage::Refused | WatchMessage::Denied | WatchMessage::Ended
        );
        if self.created.is_none() && !first {
            return Err(("protocol", "before created".into()));
        }
        if self.in_fragments && !matches!(message, WatchMessage::Events { .. } | WatchMessage::Ended) {
            return Err(("fragment", "in the middle of a fragmented one".into()));
        }
        match message {
            WatchMessage::Refused if self.created.is_some() || !makes_no_sense(self.record) => {
                Err(("protocol", "refused without reason".into()))
            }
            WatchMessage::Denied if self.created.is_some() => Err(("protocol", "denied after created".into())),
            // Whether that is right is for the judge of rights.
            WatchMessage::Refused | WatchMessage::Denied | WatchMessage::Revoked => {
                self.canceled = true;
                Ok(())
            }
            WatchMessage::Created { revision } => {
                if self.created.replace(*revision).is_some() {
                    return Err(("protocol", "created again".into()));
                }
                if makes_no_sense(self.record) {
                    return Err(("protocol", "created, though it makes no sense".into()));
                }
                self.created_at = time;
                self.first = if self.record.start > 0 { self.record.start } else { revision + 1 };
                (self.due.revision, self.place.created, self.place.next) = (self.first, true, self.first);
                Ok(())
            }
            WatchMessage::Events { header_revision, fragment, events } => {
                self.events(time, *header_revision, *fragment, events)
            }
            WatchMessage::Progress { revision } | WatchMessage::StreamProgress { revision } => self.progress(*revision),
            WatchMessage::Canceled { compact_revision } => self.cancel(time, *compact_revision),
            WatchMessage::Ended => {
                self.ended = true;
                Ok(())
            }
        }
    }

    fn events(&mut self, time: u64, header: i64, fragment: bool, events: &[Event]) -> Result<(), Broken> {
        if events.is_empty() {
            return Err(("protocol", "events without events".into()));
        }
        for event in events {
            let revision = event.kv.mod_revision;
            if !concerns(self.record, event) {
                return Err(("filter", format!("{event:?} does not concern this watch")));
            }
            if revision < self.first {
                return Err(("early", format!("revision {revision}, the watch starts at {}", self.first)));
            }
            if revision < self.last || revision < self.place.next {
                return Err(("ordered", format!("revision {revision} after {}, {:?}", self.last, self.place)));
            }
            let Some(expected) = self.due.next(revision) else {
                return Err(("unique", format!("{event:?}, but there is nothing to send up to there")));
            };
            if (event.kind, &event.kv) != (expected.kind, &expected.kv) {
                return Err(("reliable", format!("got {event:?}, expected {expected:?}")));
            }
            self.check_prev(time, event, expected).map_err(|what| ("prev_kv", what))?;
            self.last = revision;
        }
        if header < self.last || header < self.header {
            let what = format!("revision {header} after {}, event {}", self.header, self.last);
            return Err(("header", what));
        }
        if self.in_fragments && header != self.header {
            return Err(("fragment", format!("header {header}, of the piece before {}", self.header)));
        }
        self.header = header;
        if fragment && !self.record.fragment {
            return Err(("fragment", "fragmented without having been asked".into()));
        }
        self.in_fragments = fragment;
        let whole = self.due.peek(self.last).is_none();
        if !fragment && !whole {
            return Err(("atomic", format!("revision {} is not complete", self.last)));
        }
        self.place.next = if whole { self.last + 1 } else { self.last };
        self.place.sent = if whole && !fragment { self.last } else { self.place.sent.max(self.last - 1) };
        Ok(())
    }

    fn progress(&mut self, revision: i64) -> Result<(), Broken> {
        let least = if self.record.start > 0 { self.record.start } else { self.created.unwrap_or(0) };
        if revision < least {
            return Err(("bookmark", format!("progress {revision} before the start, {least}")));
        }
        if revision < self.header {
            return Err(("bookmark", format!("progress {revision} after {}", self.header)));
        }
        if let Some(event) = self.due.peek(revision) {
            return Err(("bookmark", format!("progress {revision}, but {event:?} has not been sent")));
        }
        self.header = revision;
        self.place.next = self.place.next.max(revision + 1);
        Ok(())
    }

    fn cancel(&mut self, time: u64, compact: i64) -> Result<(), Broken> {
        self.canceled = true;
        if compact == 0 {
            return Ok(());
        }
        let asked = self.order.compactions.may_be(compact, time);
        if !asked || self.place.next >= compact {
            return Err(("compaction", format!("canceled for {compact}, asked for: {asked}, {:?}", self.place)));
        }
        self.place.compacted = Some(compact);
        Ok(())
    }

    fn check_prev(&self, time: u64, event: &Event, expected: &Event) -> Result<(), String> {
        match (&event.prev, &expected.prev) {
            (None, _) if !self.record.prev_kv => Ok(()),
            (None, None) => Ok(()),
            (Some(got), Some(expected)) if self.record.prev_kv && got == expected => Ok(()),
            // Gone with a compaction above the revision that holds it.
            (None, Some(_)) if self.order.compactions.may_reach(event.kv.mod_revision, time, None) => Ok(()),
            (got, expected) => Err(format!("previous value {got:?}, expected {expected:?}, of {:?}", event.kv)),
        }
    }

    fn finish(mut self) -> Place {
        let open = !self.canceled && !self.ended;
        self.place.behind = open && (self.created.is_none() || self.in_fragments || self.due.peek(i64::MAX).is_some());
        self.place
    }
}

/// Walks the events a watch is due.
struct Due<'a> {
    model: &'a Model,
    record: &'a WatchRecord,
    revision: i64,
    index: usize,
}

impl<'a> Due<'a> {
    /// The next, if it is of that revision or below.
    fn peek(&mut self, until: i64) -> Option<&'a Event> {
        while self.revision <= until.min(self.model.revision()) {
            match self.model.events(self.revision).get(self.index) {
                Some(event) if concerns(self.record, event) => return Some(event),
                Some(_) => self.index += 1,
                None => (self.revision, self.index) = (self.revision + 1, 0),
            }
        }
        None
    }

    fn next(&mut self, until: i64) -> Option<&'a Event> {
        let event = self.peek(until)?;
        self.index += 1;
        Some(event)
    }
}
