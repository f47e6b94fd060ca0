//! Every watch against the model's events, and chains of resumed watches as if each were one.
//!
//! What is due to a watch is the list of events of its range, past its filters, from its first revision on. It must be
//! sent exactly this list from the front: in order, nothing twice, nothing left out, nothing too early, a revision in
//! one message (or in marked fragments), with right previous values. Progress at p says that all up to p has been sent.
//! Equality across members follows: there is but one list.

use std::collections::BTreeMap;

use super::model::{Model, within};
use super::order::may_be_compacted;
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
        let mut covers = (i64::MAX, 0);
        for (_, message) in &record.messages {
            match message {
                WatchMessage::Created { revision } => {
                    covers.0 = if record.start > 0 { record.start } else { revision + 1 };
                }
                WatchMessage::Events { fragment, events: sent, .. } => {
                    for event in sent {
                        events.entry(event.kv.mod_revision).or_default().push(event);
                    }
                    if let Some(event) = sent.last() {
                        covers.1 = covers.1.max(event.kv.mod_revision - i64::from(*fragment));
                    }
                }
                WatchMessage::Progress { revision } => covers.1 = covers.1.max(*revision),
                WatchMessage::Canceled { .. } | WatchMessage::Ended => {}
            }
        }
        Shown { record, events, covers }
    }

    /// Some event of the revision.
    pub fn one(&self, revision: i64) -> Option<&'a Event> {
        self.events.get(&revision).and_then(|events| events.first().copied())
    }

    /// Are these events of the revision, as far as they concern the watch, the ones it showed?
    pub fn agrees(&self, revision: i64, events: &[Event]) -> bool {
        if revision < self.covers.0 || revision > self.covers.1 {
            return true;
        }
        let shown = self.events.get(&revision).map_or(&[][..], Vec::as_slice);
        let due: Vec<&Event> = events.iter().filter(|event| concerns(self.record, event)).collect();
        due.len() == shown.len()
            && due.iter().zip(shown).all(|(due, shown)| due.kind == shown.kind && due.kv == shown.kv)
    }
}

/// Where a watch had got to when it ended, or the history did.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    created: bool,
    /// Everything below has been sent.
    next: i64,
    /// Revision of its last event that was sent whole, 0 for none.
    sent: i64,
    /// It was canceled because history up to here was gone.
    compacted: Option<i64>,
    /// It is open, and has not been sent everything.
    pub behind: bool,
}

/// Holds all watches against the model.
pub fn check_all(history: &History, model: &Model) -> Result<Vec<Place>, Violation> {
    let mut places = Vec::with_capacity(history.watches.len());
    for (index, record) in history.watches.iter().enumerate() {
        places.push(check_one(history, model, record).map_err(|(rule, what)| at(index, rule, what))?);
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

fn check_one(history: &History, model: &Model, record: &WatchRecord) -> Result<Place, (&'static str, String)> {
    let mut created: Option<i64> = None;
    let mut first = record.start;
    // Revision and place in it of the next event to look at.
    let mut due = Due { model, record, revision: i64::MAX, index: 0 };
    let mut place = Place { created: false, next: record.start, sent: 0, compacted: None, behind: false };
    let (mut header, mut last) = (0, 0);
    let (mut in_fragments, mut canceled, mut ended) = (false, false, false);
    let mut clock = 0;
    for (number, (time, message)) in record.messages.iter().enumerate() {
        let say = |what: &str| format!("message {number}: {what}");
        if *time < clock {
            return Err(("record", say("arrived before the one before it")));
        }
        clock = *time;
        if ended {
            return Err(("protocol", say("after the end of the stream")));
        }
        if canceled && *message != WatchMessage::Ended {
            return Err(("protocol", say("after canceled")));
        }
        if created.is_none() && matches!(message, WatchMessage::Events { .. } | WatchMessage::Progress { .. }) {
            return Err(("protocol", say("before created")));
        }
        if in_fragments && !matches!(message, WatchMessage::Events { .. } | WatchMessage::Ended) {
            return Err(("fragment", say("in the middle of a fragmented one")));
        }
        match message {
            WatchMessage::Created { revision } => {
                if created.replace(*revision).is_some() {
                    return Err(("protocol", say("created again")));
                }
                first = if record.start > 0 { record.start } else { revision + 1 };
                (due.revision, place.created, place.next) = (first, true, first);
            }
            WatchMessage::Events { header_revision, fragment, events } => {
                if events.is_empty() {
                    return Err(("protocol", say("events without events")));
                }
                for event in events {
                    let revision = event.kv.mod_revision;
                    if !concerns(record, event) {
                        return Err(("filter", say(&format!("{event:?} does not concern this watch"))));
                    }
                    if revision < first {
                        return Err(("early", say(&format!("revision {revision}, the watch starts at {first}"))));
                    }
                    if revision < last || revision < place.next {
                        return Err(("ordered", say(&format!("revision {revision} after {last}, {place:?}"))));
                    }
                    let Some(expected) = due.next() else {
                        return Err(("unique", say(&format!("{event:?}, but there is nothing more to send"))));
                    };
                    if (event.kind, &event.kv) != (expected.kind, &expected.kv) {
                        return Err(("reliable", say(&format!("got {event:?}, expected {expected:?}"))));
                    }
                    check_prev(history, record, *time, event, expected).map_err(|what| ("prev_kv", say(&what)))?;
                    last = revision;
                }
                if *header_revision < last || *header_revision < header {
                    return Err(("header", say(&format!("revision {header_revision} after {header}, event {last}"))));
                }
                header = *header_revision;
                if *fragment && !record.fragment {
                    return Err(("fragment", say("fragmented without having been asked")));
                }
                in_fragments = *fragment;
                if !fragment && due.peek().is_some_and(|(revision, _)| revision == last) {
                    return Err(("atomic", say(&format!("revision {last} is not complete"))));
                }
                let whole = due.peek().is_none_or(|(revision, _)| revision != last);
                place.next = if whole { last + 1 } else { last };
                place.sent = if whole { last } else { place.sent.max(last - 1) };
            }
            WatchMessage::Progress { revision } => {
                if *revision < record.start || created.is_some_and(|created| record.start == 0 && *revision < created) {
                    return Err(("bookmark", say(&format!("progress {revision} before the start, {first}"))));
                }
                if *revision < header {
                    return Err(("bookmark", say(&format!("progress {revision} after {header}"))));
                }
                if let Some((_, event)) = due.peek().filter(|(due, _)| due <= revision) {
                    return Err(("bookmark", say(&format!("progress {revision}, but {event:?} has not been sent"))));
                }
                header = *revision;
                place.next = place.next.max(revision + 1);
            }
            WatchMessage::Canceled { compact_revision } => {
                canceled = true;
                let compact = *compact_revision;
                if compact != 0 {
                    let asked = history.ops.iter().any(|op| {
                        let done = !matches!(op.outcome, Outcome::Refused(_)) && op.call <= *time;
                        done && matches!(op.request, Request::Compact { revision } if revision == compact)
                    });
                    if created.is_none() || !asked || place.next >= compact {
                        let what = format!("canceled for compaction {compact}, asked for: {asked}, {place:?}");
                        return Err(("compaction", say(&what)));
                    }
                    place.compacted = Some(compact);
                }
            }
            WatchMessage::Ended => ended = true,
        }
    }
    place.behind = !canceled && !ended && (created.is_none() || due.peek().is_some());
    Ok(place)
}

fn check_prev(
    history: &History,
    record: &WatchRecord,
    time: u64,
    event: &Event,
    expected: &Event,
) -> Result<(), String> {
    match (&event.prev, &expected.prev) {
        (None, _) if !record.prev_kv => Ok(()),
        (None, None) => Ok(()),
        (Some(got), Some(expected)) if record.prev_kv && got == expected => Ok(()),
        // Gone with a compaction above the revision that holds it.
        (None, Some(_)) if may_be_compacted(history, event.kv.mod_revision, time, None) => Ok(()),
        (got, expected) => Err(format!("previous value {got:?}, expected {expected:?}, of {:?}", event.kv)),
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
    fn peek(&mut self) -> Option<(i64, &'a Event)> {
        while self.revision <= self.model.revision() {
            match self.model.events(self.revision).get(self.index) {
                Some(event) if concerns(self.record, event) => return Some((self.revision, event)),
                Some(_) => self.index += 1,
                None => (self.revision, self.index) = (self.revision + 1, 0),
            }
        }
        None
    }

    fn next(&mut self) -> Option<&'a Event> {
        let (_, event) = self.peek()?;
        self.index += 1;
        Some(event)
    }
}
