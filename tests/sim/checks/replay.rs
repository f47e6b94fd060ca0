//! Replay: one write for every revision, and every reply equal to the model at its own.
//!
//! Most revisions have an acknowledged write that carries them. The rest are gaps: made by a write whose outcome the
//! client never learned, by a revoke (whose reply does not tell whether keys went with it), or by a lease that ended.
//! Two questions are kept apart. *What* a gap did is what reads and watches showed of it; with a watch over all keys
//! that is known at once, and without one it is found by trying what the calls could have done. *Who* did it matters
//! only because a call is carried out once, and because a lease that ended is gone: that is decided when everything has
//! been replayed, for all gaps together (`blame`), as an assignment of calls to gaps. A gap blamed on a lease frees a
//! call for another gap, so a lease is blamed wherever nothing speaks against it.
//!
//! Calls of unknown outcome may take effect at any time after they were made. So of several calls with one request, as
//! of clients that try again blindly, each may stand for the other.

use std::collections::BTreeMap;

use super::lease::{End, Leases, put_lease};
use super::model::{Model, within};
use super::order::{Order, certainly_writes};
use super::watch::{Shown, concerns_all};
use super::*;

/// Steps of the search beyond one for each revision, before it is given up. A history whose gaps are covered by a watch
/// over all keys needs none.
const SEARCH_STEPS_MAX: usize = 100_000;

/// The rule broken where reads and watches showed something else than the call that carries a revision made.
pub const SHOWN: &str = "shown";

/// What made a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A call.
    Op(usize),
    /// A lease that expired, or was revoked by a call that got no answer.
    Expiry(i64),
}

/// A replay under way.
pub struct Replay<'a> {
    history: &'a History,
    order: &'a Order,
    leases: &'a Leases,
    evidence: Evidence<'a>,
    /// Acknowledged calls at each revision.
    at: BTreeMap<i64, Vec<usize>>,
    unknown: Unknown<'a>,
    /// What was shown of a revision must also agree with the call that carries it. (Otherwise left to `watch`, which
    /// can tell better what is wrong.)
    strict: bool,
    /// Before this instant the revision had certainly not been made.
    began: Vec<u64>,
    /// State: all that follows is taken back when an explanation turns out wrong.
    model: Model,
    made: Vec<Made>,
    /// Revisions that put a key on a lease.
    used: BTreeMap<i64, Vec<i64>>,
    /// Which gap, by its revision, a call of unknown outcome is blamed for.
    blamed: BTreeMap<usize, i64>,
    /// Changes of `blamed`, to take them back.
    journal: Vec<(usize, Option<i64>)>,
}

/// What is known of the maker of a revision; `mark`: length of the journal before it.
enum Made {
    Carried(usize),
    Gap { gap: Gap, mark: usize },
}

/// Who may have made a revision that no acknowledged write carries. All of them would have done the same.
#[derive(Clone, Debug, Default)]
struct Gap {
    /// An acknowledged revoke answered at this revision.
    revoke: Option<usize>,
    /// The lease whose keys, all of them, were deleted.
    lease: Option<i64>,
    /// Calls of unknown outcome.
    ops: Vec<usize>,
}

enum Choice {
    Carried(usize),
    Gap(Gap, Vec<Event>),
}

/// What a replay found.
pub struct Replayed {
    /// The store at every revision.
    pub model: Model,
    /// What made revision 2, 3, …
    pub writers: Vec<Writer>,
    began: Vec<u64>,
}

impl Replayed {
    /// The newest revision that may have been made by that time.
    pub fn newest_by(&self, time: u64) -> i64 {
        self.began.partition_point(|began| *began <= time) as i64 - 1
    }
}

impl<'a> Replay<'a> {
    /// Prepares the replay of a history.
    pub fn new(history: &'a History, order: &'a Order, leases: &'a Leases, strict: bool) -> Replay<'a> {
        let mut at: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        let mut calls = Vec::new();
        for (index, op) in history.ops.iter().enumerate() {
            if let Outcome::Ok { revision, reply } = &op.outcome {
                at.entry(*revision).or_default().push(index);
                if certainly_writes(reply) {
                    calls.push((*revision, op.call));
                }
            }
        }
        calls.sort_unstable();
        let last = usize::try_from(order.seen.last(1)).unwrap_or(1).min(history_bound(history));
        let mut began = Vec::new();
        let (mut latest, mut next) = (0, 0);
        for revision in 0..=last {
            while calls.get(next).is_some_and(|(made, _)| *made <= revision as i64) {
                latest = latest.max(calls[next].1);
                next += 1;
            }
            began.push(latest);
        }
        Replay {
            history,
            order,
            leases,
            evidence: Evidence::new(history, last as i64),
            at,
            unknown: Unknown::new(history),
            strict,
            began,
            model: Model::default(),
            made: Vec::new(),
            used: BTreeMap::new(),
            blamed: BTreeMap::new(),
            journal: Vec::new(),
        }
    }

    /// Replays everything that was seen.
    pub fn run(mut self) -> Result<Replayed, Violation> {
        let last = self.order.seen.last(1);
        if last > history_bound(self.history) as i64 {
            return Err(general("replay", format!("revision {last} was seen; there were not that many calls")));
        }
        if let Some((revision, ops)) = self.at.range(..1).next()
            && let Some(op) = ops.iter().find(|op| linearized(&self.history.ops[**op].request))
        {
            return Err(broken("replay", format!("revision {revision} in a reply"), *op));
        }
        self.settle(None)?;
        let mut trail: Vec<std::vec::IntoIter<Choice>> = Vec::new();
        let mut worst: Option<(i64, Violation)> = None;
        let mut steps = SEARCH_STEPS_MAX + 2 * last as usize;
        loop {
            let revision = self.model.revision();
            if revision == last {
                match self.blame() {
                    Ok(writers) => return Ok(Replayed { model: self.model, writers, began: self.began }),
                    Err(violation) => note(&mut worst, last + 1, violation),
                }
                if trail.is_empty() {
                    return Err(worst.expect("just noted").1);
                }
                self.undo();
            } else {
                let options = self.options(revision + 1).unwrap_or_else(|violation| {
                    note(&mut worst, revision + 1, violation);
                    Vec::new()
                });
                trail.push(options.into_iter());
            }
            // The next explanation that nothing seen so far speaks against, of this revision or of one before.
            loop {
                let Some(options) = trail.last_mut() else {
                    return Err(worst.expect("something failed at the first revision").1);
                };
                let Some(choice) = options.next() else {
                    trail.pop();
                    if !trail.is_empty() {
                        self.undo();
                    }
                    continue;
                };
                if steps == 0 {
                    return Err(worst.expect("only failures lead to a search").1);
                }
                steps -= 1;
                let revision = self.model.revision() + 1;
                match self.step(choice) {
                    Ok(()) => break,
                    Err(violation) => note(&mut worst, revision, violation),
                }
            }
        }
    }

    /// What may have made the revision: one choice for each thing that may have been done.
    fn options(&self, revision: i64) -> Result<Vec<Choice>, Violation> {
        let here = self.at.get(&revision).map_or(&[][..], Vec::as_slice);
        let mut certain = here.iter().filter(|op| match &self.history.ops[**op].outcome {
            Outcome::Ok { reply, .. } => certainly_writes(reply),
            _ => false,
        });
        if let Some(writer) = certain.next() {
            if let Some(second) = certain.next() {
                return Err(broken("order", format!("revision {revision} also carried by op {writer}"), *second));
            }
            return Ok(vec![Choice::Carried(*writer)]);
        }
        let by = self.order.seen.reached(revision);
        let mut found: Vec<(Gap, Vec<Event>)> = Vec::new();
        for &index in here {
            if let Request::Revoke { id } = self.history.ops[index].request
                && self.model.attached(id).next().is_some()
            {
                let events = self.model.effect(&self.history.ops[index].request).events;
                if self.evidence.agrees(revision, &events) {
                    group(&mut found, events).revoke = Some(index);
                }
            }
        }
        let (event, read) = (self.evidence.event(revision), self.evidence.read(revision));
        for &index in self.unknown.candidates(event, read) {
            let op = &self.history.ops[index];
            let in_time = op.call <= by && self.order.floors[index] < revision;
            if in_time && self.may_explain(&op.request, event, read) {
                let events = self.model.effect(&op.request).events;
                let leased = |event: &Event| event.kv.lease == 0 || self.leases.may_exist(event.kv.lease, revision, by);
                if !events.is_empty() && events.iter().all(leased) && self.evidence.agrees(revision, &events) {
                    group(&mut found, events).ops.push(index);
                }
            }
        }
        let mut early = None;
        let leases: Vec<i64> = match event {
            Some(event) if event.kind == EventKind::Put => Vec::new(),
            Some(event) => self.model.lease_of_key(&event.kv.key).into_iter().collect(),
            None if read.is_some() => Vec::new(),
            None => self.model.leases().collect(),
        };
        for id in leases {
            let events = self.model.effect(&Request::Revoke { id }).events;
            if !self.evidence.agrees(revision, &events) {
                continue;
            }
            match self.leases.may_expire(id, self.began[revision as usize], by) {
                Err(until) if self.leases.unanswered_revokes(id, revision, by, &self.order.floors).is_empty() => {
                    early = Some((id, until))
                }
                _ => group(&mut found, events).lease = Some(id),
            }
        }
        match (found.is_empty(), early) {
            (false, _) => Ok(found.into_iter().map(|(gap, events)| Choice::Gap(gap, events)).collect()),
            (true, Some((id, until))) => {
                let what = format!("lease {id} ended at revision {revision}, by {by}; it had to live until {until}");
                Err(general("lease", what))
            }
            (true, None) => {
                let told = self.evidence.told(revision);
                Err(general("replay", format!("no call explains revision {revision}{told}")))
            }
        }
    }

    /// Takes the next revision as made like this, if nothing that was seen speaks against it.
    fn step(&mut self, choice: Choice) -> Result<(), Violation> {
        let revision = self.model.revision() + 1;
        let mark = self.journal.len();
        let (made, events) = match choice {
            Choice::Gap(gap, events) => {
                let must = gap.lease.is_none() && gap.revoke.is_none();
                let ops = gap.ops.clone();
                self.made.push(Made::Gap { gap, mark });
                if must && !self.blame_op(&ops, revision) {
                    self.made.pop();
                    self.forget(mark);
                    let told = self.evidence.told(revision);
                    let what = format!("of {ops:?} none is left that explains revision {revision}{told}");
                    return Err(general("replay", what));
                }
                (None, events)
            }
            Choice::Carried(index) => {
                let op = &self.history.ops[index];
                let effect = self.model.effect(&op.request);
                if let Outcome::Ok { reply, .. } = &op.outcome {
                    same(reply, &effect.reply, index)?;
                }
                if effect.events.is_empty() {
                    return Err(broken("replay", format!("cannot have made revision {revision}"), index));
                }
                if self.strict && !self.evidence.agrees(revision, &effect.events) {
                    let told = self.evidence.told(revision);
                    let what = format!("made revision {revision}, but not what was shown of it{told}");
                    return Err(broken(SHOWN, what, index));
                }
                let by = self.order.seen.reached(revision);
                for id in effect.events.iter().map(|event| event.kv.lease).filter(|id| *id != 0) {
                    if !self.leases.may_exist(id, revision, by) {
                        let what = format!("lease {id} did not exist before revision {revision}");
                        return Err(broken("lease", what, index));
                    }
                }
                (Some(Made::Carried(index)), effect.events)
            }
        };
        self.made.extend(made);
        for event in events.iter().filter(|event| event.kv.lease != 0) {
            self.used.entry(event.kv.lease).or_default().push(revision);
        }
        self.model.push(events);
        let writer = match self.made.last() {
            Some(Made::Carried(op)) => Some(*op),
            Some(Made::Gap { gap, .. }) => gap.revoke,
            None => None,
        };
        let settled = self.settle(writer);
        if settled.is_err() {
            self.undo();
        }
        settled
    }

    /// Everything answered at the newest revision, except by what made it.
    fn settle(&mut self, writer: Option<usize>) -> Result<(), Violation> {
        let revision = self.model.revision();
        let Some(here) = self.at.get(&revision) else { return Ok(()) };
        for &index in here {
            let op = &self.history.ops[index];
            let Outcome::Ok { reply, .. } = &op.outcome else { continue };
            match op.request {
                Request::Revoke { id } => {
                    same(reply, &Reply::Revoke, index)?;
                    if self.model.attached(id).next().is_some() {
                        return Err(broken("lease", format!("revoked at {revision}, but its keys remain"), index));
                    }
                    if !self.leases.may_revoke(id, revision, op.ret.unwrap_or(u64::MAX)) {
                        let what = format!("lease {id} did not exist to be revoked at revision {revision}");
                        return Err(broken("lease", what, index));
                    }
                }
                _ if Some(index) == writer => {}
                Request::Grant { id, ttl_s } => {
                    let as_asked = matches!(reply, Reply::Grant { id: got, ttl_s: lives }
                        if *got > 0 && (id == 0 || *got == id) && *lives >= ttl_s);
                    if !as_asked {
                        return Err(broken("reply", format!("{reply:?}"), index));
                    }
                }
                Request::KeepAlive { .. } if matches!(reply, Reply::KeepAlive { .. }) => {}
                Request::TimeToLive { .. } if matches!(reply, Reply::TimeToLive { .. }) => {}
                Request::Range { .. } if self.model.answers(&op.request, reply) => {}
                _ => {
                    let effect = self.model.effect(&op.request);
                    if !effect.events.is_empty() {
                        let what = format!("writes, but is not what made revision {revision} of its reply");
                        return Err(broken("order", what, index));
                    }
                    same(reply, &effect.reply, index)?;
                }
            }
        }
        Ok(())
    }

    fn undo(&mut self) {
        let revision = self.model.revision();
        for event in self.model.events(revision).iter().filter(|event| event.kv.lease != 0) {
            self.used.get_mut(&event.kv.lease).expect("its use was recorded").pop();
        }
        self.model.pop();
        if let Some(Made::Gap { mark, .. }) = self.made.pop() {
            self.forget(mark);
        }
    }

    /// Blames one of the calls for the gap; calls blamed for others may be exchanged for others that could have done those.
    fn blame_op(&mut self, ops: &[usize], gap: i64) -> bool {
        let mut tried = Vec::new();
        self.blame_among(ops, gap, &mut tried)
    }

    fn blame_among(&mut self, ops: &[usize], gap: i64, tried: &mut Vec<usize>) -> bool {
        let free = ops.iter().copied().find(|op| !self.blamed.contains_key(op));
        for op in free.into_iter().chain(ops.iter().copied()) {
            if tried.contains(&op) {
                continue;
            }
            tried.push(op);
            let before = self.blamed.get(&op).copied();
            let others = before.map(|other| match &self.made[other as usize - 2] {
                Made::Gap { gap, .. } => gap.ops.clone(),
                Made::Carried(_) => Vec::new(),
            });
            let freed = match (before, others) {
                (Some(other), Some(others)) => self.blame_among(&others, other, tried),
                _ => true,
            };
            if freed {
                self.journal.push((op, before));
                self.blamed.insert(op, gap);
                return true;
            }
        }
        false
    }

    fn forget(&mut self, mark: usize) {
        for (op, before) in self.journal.drain(mark..).rev() {
            match before {
                Some(gap) => self.blamed.insert(op, gap),
                None => self.blamed.remove(&op),
            };
        }
    }

    /// Decides who made each revision. Leaves everything as it was if there is no way.
    fn blame(&mut self) -> Result<Vec<Writer>, Violation> {
        let mark = self.journal.len();
        let mut writers = Vec::with_capacity(self.made.len());
        let mut ends: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for at in 0..self.made.len() {
            let revision = at as i64 + 2;
            let (lease, ops) = match &self.made[at] {
                Made::Carried(op) | Made::Gap { gap: Gap { revoke: Some(op), .. }, .. } => {
                    writers.push(Writer::Op(*op));
                    continue;
                }
                Made::Gap { gap, .. } => (gap.lease, gap.ops.clone()),
            };
            let Some(id) = lease else {
                writers.push(Writer::Expiry(0)); // Its call is known when all are.
                continue;
            };
            match self.may_end(id, revision, ends.entry(id).or_default()) {
                Ok(()) => writers.push(Writer::Expiry(id)),
                Err(_) if self.blame_op(&ops, revision) => writers.push(Writer::Expiry(0)),
                Err(why) => {
                    self.forget(mark);
                    let what =
                        format!("lease {id} ended at revision {revision}, but {why}; none of {ops:?} explains it");
                    return Err(general("lease", what));
                }
            }
        }
        for (op, revision) in &self.blamed {
            writers[*revision as usize - 2] = Writer::Op(*op);
        }
        Ok(writers)
    }

    /// May the lease have ended there, with `revokes` already taken for other ends of it?
    fn may_end(&self, id: i64, revision: i64, revokes: &mut Vec<usize>) -> Result<(), String> {
        let (call, by) = (self.began[revision as usize], self.order.seen.reached(revision));
        let used = self.used.get(&id).map_or(&[][..], Vec::as_slice);
        let next = used.get(used.partition_point(|used| *used <= revision)).copied();
        let end = End { revision, call, over: by, bare: false };
        self.leases.may_end(id, end, next.map(|next| (next, self.order.seen.reached(next))))?;
        if let Err(until) = self.leases.may_expire(id, call, by) {
            let unanswered = self.leases.unanswered_revokes(id, revision, by, &self.order.floors);
            let free = unanswered.into_iter().find(|op| !revokes.contains(op));
            revokes.push(free.ok_or(format!("it had to live until {until}, and all revokes are taken"))?);
        }
        Ok(())
    }

    /// A quick look whether the request may have made what one read or watch showed of the revision.
    fn may_explain(&self, request: &Request, event: Option<&Event>, read: Option<&KeyValue>) -> bool {
        let shown = read.or(event.filter(|event| event.kind == EventKind::Put).map(|event| &event.kv));
        let gone = event.filter(|event| event.kind == EventKind::Delete).map(|event| event.kv.key.as_slice());
        // Of what is nested nobody knows yet which way it went.
        let leases_exist = |ops: &[TxnOp]| ops.iter().filter_map(put_lease).all(|id| self.leases.known(id));
        let deletes = |ops: &[TxnOp]| {
            let goes = |gone: &[u8]| {
                let mut all = ops.iter().flat_map(TxnOp::all);
                all.any(|op| matches!(op, TxnOp::Delete { key, end, .. } if within(gone, key, end)))
            };
            gone.is_none_or(goes)
        };
        match request {
            Request::Put { key, value, lease, .. } => {
                gone.is_none()
                    && (*lease == 0 || self.leases.known(*lease))
                    && shown.is_none_or(|kv| kv.key == *key && kv.value == *value && kv.lease == *lease)
            }
            Request::Delete { key, end, .. } => shown.is_none() && gone.is_none_or(|gone| within(gone, key, end)),
            Request::Txn { then, otherwise, .. } => {
                (leases_exist(then) && deletes(then)) || (leases_exist(otherwise) && deletes(otherwise))
            }
            _ => false,
        }
    }
}

/// Calls of unknown outcome that may have written, other than revokes (those belong to their leases), by what they write.
struct Unknown<'a> {
    all: Vec<usize>,
    /// Those that put the value.
    puts: BTreeMap<&'a [u8], Vec<usize>>,
    deletes: Vec<usize>,
}

impl<'a> Unknown<'a> {
    fn new(history: &'a History) -> Unknown<'a> {
        let mut unknown = Unknown { all: Vec::new(), puts: BTreeMap::new(), deletes: Vec::new() };
        let mut calls: Vec<usize> =
            (0..history.ops.len()).filter(|index| history.ops[*index].outcome == Outcome::Unknown).collect();
        calls.sort_by_key(|index| history.ops[*index].call);
        for index in calls {
            let (mut values, mut deletes): (Vec<&[u8]>, bool) = (Vec::new(), false);
            match &history.ops[index].request {
                Request::Put { value, .. } => values.push(value),
                Request::Delete { .. } => deletes = true,
                Request::Txn { then, otherwise, .. } => {
                    for op in then.iter().chain(otherwise).flat_map(TxnOp::all) {
                        match op {
                            TxnOp::Put { value, .. } => values.push(value),
                            TxnOp::Delete { .. } => deletes = true,
                            TxnOp::Range { .. } | TxnOp::Txn { .. } => {}
                        }
                    }
                }
                _ => {}
            }
            if deletes || !values.is_empty() {
                unknown.all.push(index);
            }
            if deletes {
                unknown.deletes.push(index);
            }
            values.sort_unstable();
            values.dedup();
            values.into_iter().for_each(|value| unknown.puts.entry(value).or_default().push(index));
        }
        unknown
    }

    fn candidates(&self, event: Option<&Event>, read: Option<&KeyValue>) -> &[usize] {
        let put = |kv: &KeyValue| self.puts.get(kv.value.as_slice()).map_or(&[][..], Vec::as_slice);
        match (event, read) {
            (_, Some(kv)) => put(kv),
            (Some(event), None) if event.kind == EventKind::Put => put(&event.kv),
            (Some(_), None) => &self.deletes,
            (None, None) => &self.all,
        }
    }
}

/// What watches and reads showed of each revision.
struct Evidence<'a> {
    /// Events of revision 2, 3, … as a watch over everything showed them: from where to where in `events`; none: not shown.
    whole: Vec<Option<(u32, u32)>>,
    events: Vec<&'a Event>,
    /// What all watches showed, unless watches over everything leave nothing open.
    shown: Vec<Shown<'a>>,
    /// Key-values that replies showed, by revision of their last write; likewise.
    read: BTreeMap<i64, BTreeMap<&'a [u8], &'a KeyValue>>,
    /// Of each key the revisions between which it was not written, as previous values in events tell; likewise.
    untouched: BTreeMap<&'a [u8], Vec<(i64, i64)>>,
}

impl<'a> Evidence<'a> {
    fn new(history: &'a History, last: i64) -> Evidence<'a> {
        let mut evidence = Evidence {
            whole: vec![None; usize::try_from(last - 1).unwrap_or(0)],
            events: Vec::new(),
            shown: Vec::new(),
            read: BTreeMap::new(),
            untouched: BTreeMap::new(),
        };
        for record in history.watches.iter().filter(|record| concerns_all(record)) {
            let (first, covered) = Shown::covers(record);
            if !(first.max(2)..=covered.min(last)).any(|revision| evidence.whole[revision as usize - 2].is_none()) {
                continue;
            }
            let start = evidence.events.len();
            evidence.events.extend(record.messages.iter().flat_map(|(_, message)| message.events()));
            evidence.events[start..].sort_by_key(|event| event.kv.mod_revision);
            let mut at = start;
            for revision in first.max(2)..=covered.min(last) {
                let of = |at: usize| evidence.events.get(at).map_or(i64::MAX, |event| event.kv.mod_revision);
                while of(at) < revision {
                    at += 1;
                }
                let from = at;
                while of(at) == revision {
                    at += 1;
                }
                evidence.whole[revision as usize - 2].get_or_insert((from as u32, at as u32));
            }
        }
        if evidence.whole.iter().any(Option::is_none) {
            evidence.shown = history.watches.iter().map(Shown::new).collect();
            for op in &history.ops {
                if let Outcome::Ok { reply, .. } = &op.outcome {
                    collect(reply, &mut evidence.read);
                }
            }
            for (_, message) in history.watches.iter().flat_map(|watch| &watch.messages) {
                for event in message.events() {
                    let Some(prev) = &event.prev else { continue };
                    evidence.read.entry(prev.mod_revision).or_default().insert(&prev.key, prev);
                    let between = (prev.mod_revision, event.kv.mod_revision);
                    evidence.untouched.entry(&event.kv.key).or_default().push(between);
                }
            }
        }
        evidence
    }

    fn whole(&self, revision: i64) -> Option<&[&'a Event]> {
        let (from, to) = (*self.whole.get(usize::try_from(revision - 2).ok()?)?)?;
        Some(&self.events[from as usize..to as usize])
    }

    /// Some event of the revision.
    fn event(&self, revision: i64) -> Option<&'a Event> {
        match self.whole(revision) {
            Some(events) => events.first().copied(),
            None => self.shown.iter().find_map(|shown| shown.one(revision)),
        }
    }

    /// Something that a reply showed of the revision.
    fn read(&self, revision: i64) -> Option<&'a KeyValue> {
        self.read.get(&revision).and_then(|kvs| kvs.values().next().copied())
    }

    /// Are these events just what was shown of the revision?
    fn agrees(&self, revision: i64, events: &[Event]) -> bool {
        if let Some(whole) = self.whole(revision) {
            return whole.len() == events.len()
                && whole.iter().zip(events).all(|(shown, event)| shown.kind == event.kind && shown.kv == event.kv);
        }
        let mut read = self.read.get(&revision).into_iter().flat_map(|kvs| kvs.values());
        let untouched = |event: &Event| {
            let times = self.untouched.get(event.kv.key.as_slice()).map_or(&[][..], Vec::as_slice);
            times.iter().any(|(from, to)| *from < revision && revision < *to)
        };
        read.all(|kv| events.iter().any(|event| event.kind == EventKind::Put && event.kv == **kv))
            && !events.iter().any(untouched)
            && self.shown.iter().all(|shown| shown.agrees(revision, events))
    }

    fn told(&self, revision: i64) -> String {
        match (self.event(revision), self.read(revision)) {
            (Some(event), _) => format!("; a watch showed {event:?}"),
            (None, Some(kv)) => format!("; a reply showed {kv:?}"),
            (None, None) => String::new(),
        }
    }
}

fn group(found: &mut Vec<(Gap, Vec<Event>)>, events: Vec<Event>) -> &mut Gap {
    let at = match found.iter().position(|(_, other)| *other == events) {
        Some(at) => at,
        None => {
            found.push((Gap::default(), events));
            found.len() - 1
        }
    };
    &mut found[at].0
}

/// More revisions than this the calls and their leases cannot have made.
fn history_bound(history: &History) -> usize {
    1 + 2 * history.ops.len()
}

/// Is the revision of its reply that of the moment it happened?
fn linearized(request: &Request) -> bool {
    !matches!(request, Request::KeepAlive { .. } | Request::TimeToLive { .. })
}

fn collect<'a>(reply: &'a Reply, read: &mut BTreeMap<i64, BTreeMap<&'a [u8], &'a KeyValue>>) {
    let kvs: Vec<&KeyValue> = match reply {
        Reply::Range { kvs, .. } => kvs.iter().collect(),
        Reply::Put { prev } => prev.iter().collect(),
        Reply::Delete { prevs, .. } => prevs.iter().collect(),
        Reply::Txn { replies, .. } => {
            replies.iter().for_each(|reply| collect(reply, read));
            return;
        }
        _ => return,
    };
    for kv in kvs {
        read.entry(kv.mod_revision).or_default().insert(&kv.key, kv);
    }
}

fn same(got: &Reply, expected: &Reply, op: usize) -> Result<(), Violation> {
    if got == expected {
        return Ok(());
    }
    Err(broken("reply", format!("got {got:?}, expected {expected:?}"), op))
}

fn note(worst: &mut Option<(i64, Violation)>, revision: i64, violation: Violation) {
    if worst.as_ref().is_none_or(|(at, _)| revision > *at) {
        *worst = Some((revision, violation));
    }
}
