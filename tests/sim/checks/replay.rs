//! Replay: one write for every revision, and every reply equal to the model at its own.
//!
//! Most revisions have an acknowledged write that carries them. The rest are gaps: made by a write whose outcome the
//! client never learned, by a revoke (whose reply does not tell whether keys went with it), or by a lease that expired.
//! What reads and watches showed of a gap narrows it down, as a rule to one explanation. Where several remain the first
//! is taken, and the next if that leads into a contradiction.

use std::collections::BTreeMap;

use super::lease::{End, Leases, put_lease};
use super::model::{Model, within};
use super::order::{Order, certainly_writes};
use super::watch::Shown;
use super::*;

/// Steps of the search beyond one for each revision, before it is given up. A history whose gaps are covered by a watch
/// over all keys needs next to none.
const SEARCH_STEPS_MAX: usize = 100_000;

/// The rule broken where reads and watches showed something else than the call that carries a revision made.
pub const SHOWN: &str = "shown";

/// What made a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A call.
    Op(usize),
    /// A lease that expired.
    Expiry(i64),
}

/// A replay under way.
pub struct Replay<'a> {
    history: &'a History,
    order: &'a Order,
    leases: &'a Leases,
    shown: Vec<Shown<'a>>,
    /// Acknowledged calls at each revision.
    at: BTreeMap<i64, Vec<usize>>,
    /// Writes of unknown outcome, by time of call.
    unknown: Vec<usize>,
    /// Key-values that replies showed, by revision of their last write.
    read: BTreeMap<i64, BTreeMap<&'a [u8], &'a KeyValue>>,
    /// What was shown of a revision must also agree with the call that carries it. (Otherwise left to `watch`, which
    /// can tell better what is wrong.)
    strict: bool,
    /// Before this instant the revision had certainly not been made.
    began: Vec<u64>,
    /// State: all that follows is taken back when an explanation turns out wrong.
    model: Model,
    writers: Vec<Writer>,
    used: Vec<bool>,
    ends: BTreeMap<i64, Vec<End>>,
    ended: Vec<Vec<i64>>,
}

/// What a replay found.
pub struct Replayed {
    /// The store at every revision.
    pub model: Model,
    /// What made revision 2, 3, …
    pub writers: Vec<Writer>,
    /// Known ends of leases.
    pub ends: BTreeMap<i64, Vec<End>>,
}

impl<'a> Replay<'a> {
    /// Prepares the replay of a history.
    pub fn new(history: &'a History, order: &'a Order, leases: &'a Leases, strict: bool) -> Replay<'a> {
        let mut at: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut read = BTreeMap::new();
        let mut calls = Vec::new();
        for (index, op) in history.ops.iter().enumerate() {
            match &op.outcome {
                Outcome::Ok { revision, reply } => {
                    at.entry(*revision).or_default().push(index);
                    collect(reply, &mut read);
                    if certainly_writes(reply) {
                        calls.push((*revision, op.call));
                    }
                }
                Outcome::Unknown if may_write(&op.request) => unknown.push(index),
                _ => {}
            }
        }
        for (_, message) in history.watches.iter().flat_map(|watch| &watch.messages) {
            for prev in message.events().iter().filter_map(|event| event.prev.as_ref()) {
                read.entry(prev.mod_revision).or_insert_with(BTreeMap::new).insert(&prev.key, prev);
            }
        }
        unknown.sort_by_key(|index| history.ops[*index].call);
        calls.sort_unstable();
        let last = usize::try_from(order.seen.last(1)).unwrap_or(1);
        let mut began = Vec::new();
        let (mut latest, mut next) = (0, 0);
        for revision in 0..=last.min(history_bound(history)) {
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
            shown: history.watches.iter().map(Shown::new).collect(),
            at,
            unknown,
            read,
            strict,
            began,
            model: Model::default(),
            writers: Vec::new(),
            used: vec![false; history.ops.len()],
            ends: BTreeMap::new(),
            ended: vec![Vec::new()],
        }
    }

    /// Replays everything that was seen.
    pub fn run(mut self) -> Result<Replayed, Violation> {
        let last = self.order.seen.last(1);
        if last > history_bound(self.history) as i64 {
            return Err(general("replay", format!("revision {last} was seen; there were not that many calls")));
        }
        if let Some((revision, ops)) = self.at.range(..1).next()
            && ops.iter().any(|op| !matches!(self.history.ops[*op].request, Request::KeepAlive { .. }))
        {
            return Err(broken("replay", format!("revision {revision} in a reply"), ops[0]));
        }
        self.settle(None)?;
        let mut trail: Vec<(Vec<Writer>, usize)> = Vec::new();
        let mut worst: Option<(i64, Violation)> = None;
        let mut steps = SEARCH_STEPS_MAX + 2 * last as usize;
        while self.model.revision() < last {
            let revision = self.model.revision() + 1;
            let options = self.options(revision).unwrap_or_else(|violation| {
                note(&mut worst, revision, violation);
                Vec::new()
            });
            trail.push((options, 0));
            loop {
                let Some((options, next)) = trail.last_mut() else {
                    return Err(worst.expect("something failed at the first revision").1);
                };
                let Some(writer) = options.get(*next).copied() else {
                    trail.pop();
                    if !trail.is_empty() {
                        self.undo();
                    }
                    continue;
                };
                *next += 1;
                if steps == 0 {
                    return Err(worst.expect("only failures lead to a search").1);
                }
                steps -= 1;
                let revision = self.model.revision() + 1;
                match self.step(writer) {
                    Ok(()) => break,
                    Err(violation) => note(&mut worst, revision, violation),
                }
            }
        }
        for (id, ends) in &self.ends {
            if ends.len() > self.leases.grants(*id) {
                return Err(general("lease", format!("lease {id} ended {} times: {ends:?}", ends.len())));
            }
        }
        Ok(Replayed { model: self.model, writers: self.writers, ends: self.ends })
    }

    /// What may have made the revision.
    fn options(&self, revision: i64) -> Result<Vec<Writer>, Violation> {
        let here = self.at.get(&revision).map_or(&[][..], Vec::as_slice);
        let mut certain = here.iter().filter(|op| match &self.history.ops[**op].outcome {
            Outcome::Ok { reply, .. } => certainly_writes(reply),
            _ => false,
        });
        if let Some(writer) = certain.next() {
            if let Some(second) = certain.next() {
                return Err(broken("order", format!("revision {revision} also carried by op {writer}"), *second));
            }
            return Ok(vec![Writer::Op(*writer)]);
        }
        let mut options = Vec::new();
        for &index in here {
            if let Request::Revoke { id } = self.history.ops[index].request
                && self.model.attached(id).next().is_some()
            {
                options.push(Writer::Op(index));
            }
        }
        let by = self.order.seen.reached(revision);
        let called = self.unknown.iter().take_while(|index| self.history.ops[**index].call <= by);
        let mut early = None;
        let mut tried: Vec<&Request> = Vec::new();
        let event = self.shown.iter().find_map(|shown| shown.one(revision));
        let read = self.read.get(&revision).and_then(|kvs| kvs.values().next().copied());
        for &index in called.filter(|index| !self.used[**index] && self.order.floors[**index] < revision) {
            let request = &self.history.ops[index].request;
            if self.may_explain(request, event, read) && !tried.contains(&request) {
                let events = self.model.effect(request).events;
                if !events.is_empty() && self.explains(revision, &events) {
                    options.push(Writer::Op(index));
                    tried.push(request);
                }
            }
        }
        for id in self.model.leases() {
            let events = self.model.effect(&Request::Revoke { id }).events;
            if self.explains(revision, &events) {
                match self.leases.may_expire(id, self.began[revision as usize], by) {
                    Ok(()) => options.push(Writer::Expiry(id)),
                    Err(until) => early = Some((id, until)),
                }
            }
        }
        match (options.is_empty(), early) {
            (false, _) => Ok(options),
            (true, Some((id, until))) => {
                let what = format!("lease {id} ended at revision {revision}, by {by}; it had to live until {until}");
                Err(general("lease", what))
            }
            (true, None) => {
                Err(general("replay", format!("no call explains revision {revision}{}", self.told(revision))))
            }
        }
    }

    /// Takes the next revision as made by this writer, if nothing that was seen speaks against it.
    fn step(&mut self, writer: Writer) -> Result<(), Violation> {
        let revision = self.model.revision() + 1;
        let by = self.order.seen.reached(revision);
        let (effect, lease) = match writer {
            Writer::Expiry(id) => (self.model.effect(&Request::Revoke { id }), Some((id, 0))),
            Writer::Op(index) => {
                let op = &self.history.ops[index];
                let effect = self.model.effect(&op.request);
                if let Outcome::Ok { reply, .. } = &op.outcome {
                    same(reply, &effect.reply, index)?;
                }
                if effect.events.is_empty() {
                    return Err(broken("replay", format!("cannot have made revision {revision}"), index));
                }
                if self.order.floors[index] >= revision {
                    return Err(broken("real time", format!("made revision {revision}, seen before the call"), index));
                }
                if self.strict && !self.explains(revision, &effect.events) {
                    let what = format!("made revision {revision}, but not what was shown of it{}", self.told(revision));
                    return Err(broken(SHOWN, what, index));
                }
                for event in effect.events.iter().filter(|event| event.kv.lease != 0) {
                    self.must_exist(event.kv.lease, revision, by, index)?;
                }
                let ends = if let Request::Revoke { id } = op.request { Some((id, op.call)) } else { None };
                if let Some((id, _)) = ends {
                    self.must_exist(id, revision, by, index)?;
                }
                (effect, ends)
            }
        };
        self.model.push(effect.events);
        self.writers.push(writer);
        self.ended.push(Vec::new());
        if let Writer::Op(index) = writer {
            self.used[index] = true;
        }
        if let Some((id, call)) = lease {
            self.end(id, End { revision, with_keys: true, call, over: by });
        }
        let settled = self.settle(Some(writer));
        if settled.is_err() {
            self.undo();
        }
        settled
    }

    /// Everything answered at the newest revision, except by what made it.
    fn settle(&mut self, writer: Option<Writer>) -> Result<(), Violation> {
        let revision = self.model.revision();
        for index in self.at.get(&revision).cloned().unwrap_or_default() {
            let op = &self.history.ops[index];
            let Outcome::Ok { reply, .. } = &op.outcome else { continue };
            if Some(Writer::Op(index)) == writer {
                continue;
            }
            match op.request {
                Request::Grant { id, ttl_s } => {
                    let as_asked = matches!(reply, Reply::Grant { id: got, ttl_s: lives }
                        if *got > 0 && (id == 0 || *got == id) && *lives >= ttl_s);
                    if !as_asked {
                        return Err(broken("reply", format!("{reply:?}"), index));
                    }
                }
                Request::KeepAlive { .. } if matches!(reply, Reply::KeepAlive { .. }) => {}
                Request::Revoke { id } => {
                    same(reply, &Reply::Revoke, index)?;
                    if self.model.attached(id).next().is_some() {
                        return Err(broken("lease", format!("revoked at {revision}, but its keys remain"), index));
                    }
                    let over = op.ret.unwrap_or(u64::MAX);
                    self.must_exist(id, revision + 1, over, index)?;
                    self.end(id, End { revision, with_keys: false, call: op.call, over });
                }
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
        self.model.pop();
        if let Some(Writer::Op(index)) = self.writers.pop() {
            self.used[index] = false;
        }
        for id in self.ended.pop().expect("one list for each revision") {
            self.ends.get_mut(&id).expect("its end was recorded").pop();
        }
    }

    fn end(&mut self, id: i64, end: End) {
        self.ends.entry(id).or_default().push(end);
        self.ended.last_mut().expect("one list for each revision").push(id);
    }

    fn must_exist(&self, id: i64, revision: i64, by: u64, op: usize) -> Result<(), Violation> {
        let ends = self.ends.get(&id).map_or(&[][..], Vec::as_slice);
        if self.leases.may_exist(id, revision, by, ends) {
            return Ok(());
        }
        Err(broken("lease", format!("lease {id} did not exist before revision {revision}; ends: {ends:?}"), op))
    }

    /// A quick look whether the request may have made what one read or watch showed of the revision.
    fn may_explain(&self, request: &Request, event: Option<&Event>, read: Option<&KeyValue>) -> bool {
        let shown = read.or(event.filter(|event| event.kind == EventKind::Put).map(|event| &event.kv));
        let leases_exist = |ops: &[TxnOp]| ops.iter().filter_map(put_lease).all(|id| self.leases.grants(id) > 0);
        match request {
            Request::Put { key, value, lease, .. } => {
                (*lease == 0 || self.leases.grants(*lease) > 0)
                    && event.is_none_or(|event| event.kind == EventKind::Put)
                    && shown.is_none_or(|kv| kv.key == *key && kv.value == *value && kv.lease == *lease)
            }
            Request::Delete { key, end, .. } => {
                shown.is_none() && event.is_none_or(|event| within(&event.kv.key, key, end))
            }
            Request::Revoke { id } => shown.is_none() && self.model.attached(*id).next().is_some(),
            Request::Txn { then, otherwise, .. } => leases_exist(then) || leases_exist(otherwise),
            _ => false,
        }
    }

    /// Are these events just what reads and watches showed of the revision?
    fn explains(&self, revision: i64, events: &[Event]) -> bool {
        let mut read = self.read.get(&revision).into_iter().flat_map(|kvs| kvs.values());
        read.all(|kv| events.iter().any(|event| event.kind == EventKind::Put && event.kv == **kv))
            && self.shown.iter().all(|shown| shown.agrees(revision, events))
    }

    fn told(&self, revision: i64) -> String {
        let events = self.shown.iter().enumerate().find_map(|(index, shown)| Some((index, shown.one(revision)?)));
        let read = self.read.get(&revision).and_then(|kvs| kvs.values().next());
        match (events, read) {
            (Some((watch, event)), _) => format!("; watch {watch} showed {event:?}"),
            (None, Some(kv)) => format!("; a reply showed {kv:?}"),
            (None, None) => String::new(),
        }
    }
}

/// More revisions than this the calls and their leases cannot have made.
fn history_bound(history: &History) -> usize {
    1 + 2 * history.ops.len()
}

fn may_write(request: &Request) -> bool {
    match request {
        Request::Put { .. } | Request::Delete { .. } | Request::Revoke { .. } => true,
        Request::Txn { then, otherwise, .. } => {
            then.iter().chain(otherwise).any(|op| !matches!(op, TxnOp::Range { .. }))
        }
        _ => false,
    }
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
