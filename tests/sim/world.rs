//! The world: time, chance, and everything that happens, in one queue.
//!
//! Nothing here depends on anything but the seed and the scenario, so a run can be repeated exactly. The world owns the members,
//! the network between them and the clients; it lets a nemesis loose on them for a while, then heals everything, gives the cluster
//! time to recover, and judges: what clients saw (the checks), what members hold (agreement), what was shown before it was durable
//! on a quorum (exposure), and whether everything works again (liveness).

use std::collections::{BTreeMap, VecDeque};

use everwatch::mvcc::revision::RevisionKey;
use everwatch::pb::mvccpb;
use everwatch::raft::{Message, MessageType};
use everwatch::storage::backend::{Batch, Bucket, Reader};
use everwatch::storage::schema;
use everwatch::watch::Outgoing;
use prost::Message as _;
use std::sync::Arc;

use crate::checks::{self, Event, EventKind, History, KeyValue, Op, Outcome, Request, WatchMessage, WatchRecord};
use crate::clients::{self, Knowledge, Mix};
use crate::dice::{Dice, hash_on};
use crate::disk::Loss;
use crate::member::{Content, Context, Effect, Member, MemberEvent, place_of};
use crate::network::{Link, Network};

pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MILLI;
/// Events of the world shown with a failure.
const TRACE_SHOWN: usize = 100;

/// What a run is about.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub members: usize,
    pub kv_clients: u32,
    pub watch_clients: u32,
    pub mix: Mix,
    /// How long faults go on.
    pub faulty: u64,
    /// Time between faults, on average; 0: there are none.
    pub every: u64,
    pub faults: Faults,
    /// How long a client thinks between two requests, at most.
    pub think: u64,
    pub options: Option<Options>,
    /// Every disk breaks after so many commands, and what the crash then takes.
    pub breaks: Option<(u64, Loss)>,
}

/// How often which fault is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub crash: u64,
    pub crash_all: u64,
    pub disk_breaks: u64,
    pub pause: u64,
    pub partition: u64,
    pub one_way: u64,
    pub bridge: u64,
    pub rough: u64,
    pub hand_over: u64,
    pub slow_disk: u64,
}

/// What a member's configuration and machine are like.
#[derive(Clone, Debug)]
pub struct Options {
    pub segment_bytes: u64,
    pub snapshot_count: u64,
    pub catchup_entries: u64,
    pub backend_interval: u64,
    pub backend_rows: usize,
    pub compaction_keys: usize,
    pub recent_bytes: usize,
    /// Entries carried out in one turn, at most.
    pub apply_portion: u64,
    /// Until the next portion.
    pub apply_delay: u64,
    pub catch_up_delay: u64,
    pub pre_vote: bool,
    pub disk_delay_max: u64,
    pub slow_sync_per_mille: u64,
}

impl Options {
    /// Small limits, so that everything that happens rarely happens often.
    pub fn draw(dice: &mut Dice) -> Options {
        Options {
            segment_bytes: dice.pick(&[4 << 10, 16 << 10, 64 << 10]),
            snapshot_count: dice.pick(&[10, 50, 300]),
            catchup_entries: dice.pick(&[2, 10, 50]),
            backend_interval: dice.pick(&[5, 50, 100, 500]) * MILLI,
            backend_rows: dice.pick(&[10, 200, 10_000]),
            compaction_keys: dice.pick(&[1, 5, 1000]),
            recent_bytes: dice.pick(&[0, 500, 5000, 1 << 20]),
            apply_portion: dice.pick(&[1, 3, 100]),
            apply_delay: dice.pick(&[1, 5, 50]) * MILLI,
            catch_up_delay: dice.pick(&[1, 10, 100]) * MILLI,
            pre_vote: dice.chance(900),
            disk_delay_max: dice.pick(&[1, 5, 30]) * MILLI,
            slow_sync_per_mille: dice.pick(&[0, 0, 5]),
        }
    }

    pub fn disk_delay(&self, dice: &mut Dice) -> u64 {
        if dice.chance(self.slow_sync_per_mille) {
            return dice.below(3 * SECOND);
        }
        dice.skewed(MILLI / 20, self.disk_delay_max)
    }
}

/// What no single member knows: the history of the whole cluster, for comparing.
#[derive(Default)]
pub struct Ledger {
    /// By index: everything up to it hashed, its term.
    entries: BTreeMap<u64, (u64, u64)>,
    /// By revision: the entry that made it, and when it was first carried out.
    revisions: BTreeMap<i64, u64>,
    changes: BTreeMap<i64, (u64, Vec<Event>)>,
    contents: BTreeMap<u64, (Content, u64)>,
    leaders: BTreeMap<u64, u64>,
    pub installs: u64,
    now: u64,
    violations: Vec<String>,
}

impl Ledger {
    pub fn chain_at(&self, index: u64) -> u64 {
        self.entries.get(&index).map_or(0, |(chain, _)| *chain)
    }

    fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    /// A member has carried out entries that gave these rows. Whoever does so first writes history; the others must agree.
    pub fn follow(&mut self, mut chain: u64, batch: &Batch, member: u64) -> u64 {
        let mut changed: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        let mut current = 0;
        for (bucket, key, value) in &batch.rows {
            let meta = *bucket == Bucket::Meta;
            if meta && key == schema::REVISION {
                continue;
            }
            if meta && key == schema::APPLIED_INDEX {
                current = value.as_deref().and_then(schema::read_u64).unwrap_or(0);
                chain = hash_on(chain, &current.to_le_bytes());
                continue;
            }
            if meta && key == schema::APPLIED_TERM {
                let term = value.as_deref().and_then(schema::read_u64).unwrap_or(0);
                chain = hash_on(chain, &term.to_le_bytes());
                match self.entries.get(&current) {
                    Some(known) if *known != (chain, term) => {
                        let place = place_of(member);
                        self.violated(format!("agreement: m{place} carried out something else at {current}"));
                    }
                    Some(_) => {}
                    None => {
                        self.entries.insert(current, (chain, term));
                        for (revision, events) in std::mem::take(&mut changed) {
                            self.revisions.insert(revision, current);
                            self.changes.insert(revision, (self.now, events));
                        }
                    }
                }
                changed.clear();
                continue;
            }
            chain = hash_on(chain, &[*bucket as u8, u8::from(value.is_some())]);
            chain = hash_on(chain, key);
            chain = hash_on(chain, value.as_deref().unwrap_or_default());
            if *bucket == Bucket::Key
                && let (Some((place, tombstone)), Some(record)) = (RevisionKey::from_row(key), value)
            {
                let kv = mvccpb::KeyValue::decode(&record[..]).expect("apply wrote it");
                let event = if tombstone {
                    let kv = KeyValue { key: kv.key.to_vec(), mod_revision: place.main, ..KeyValue::default() };
                    Event { kind: EventKind::Delete, kv, prev: None }
                } else {
                    Event { kind: EventKind::Put, kv: clients::key_value(&kv), prev: None }
                };
                changed.entry(place.main).or_default().push(event);
            }
        }
        chain
    }

    /// A member's content at an index.
    pub fn content(&mut self, index: u64, content: Content, member: u64) {
        let (known, by) = *self.contents.entry(index).or_insert((content, member));
        if known != content {
            let (a, b) = (place_of(by), place_of(member));
            self.violated(format!("agreement at {index}: m{a} holds {known:?}, m{b} {content:?}"));
        }
    }

    pub fn leads(&mut self, term: u64, member: u64) {
        let known = *self.leaders.entry(term).or_insert(member);
        if known != member {
            self.violated(format!("m{} and m{} lead term {term}", place_of(known), place_of(member)));
        }
    }
}

enum WorldEvent {
    Member { place: usize, life: u64, event: MemberEvent },
    Deliver { from: usize, to: usize, message: Message },
    SnapshotArrives { from: usize, to: usize, message: Message, rows: Arc<dyn Reader> },
    Boot { place: usize },
    Client { client: u32 },
    CallArrives { call: u64, place: usize, request: Request, deadline: u64 },
    AnswerArrives { call: u64, outcome: Outcome },
    CallEnds { call: u64 },
    Watcher { client: u32 },
    WatchArrives { stream: u64, watch: usize, message: WatchMessage },
    StreamEnds { stream: u64 },
    Nemesis,
}

struct Call {
    client: u32,
    op: usize,
}

/// A watch client: one stream at a time.
#[derive(Default)]
struct Watcher {
    stream: Option<u64>,
    /// Records that are to be continued on the next stream.
    broken: Vec<usize>,
}

struct Stream {
    client: u32,
    place: usize,
    life: u64,
    watches: Vec<usize>,
    last_arrival: u64,
    ended: bool,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub trace: u64,
    pub virtual_ns: u64,
    pub faults: u64,
    pub crashes: u64,
    pub installs: u64,
    pub events: u64,
    pub ops: usize,
    pub acknowledged: usize,
    pub watch_events: usize,
    pub revision: i64,
}

struct Traced {
    now: u64,
    what: &'static str,
    numbers: [u64; 4],
    text: String,
}

pub struct World {
    seed: u64,
    scenario: Scenario,
    dice: Dice,
    now: u64,
    events: u64,
    queue: BTreeMap<(u64, u64), WorldEvent>,
    members: Vec<Member>,
    network: Network,
    options: Options,
    ledger: Ledger,
    knowledge: Knowledge,
    history: History,
    calls: BTreeMap<u64, Call>,
    calls_made: u64,
    watchers: Vec<Watcher>,
    streams: BTreeMap<u64, Stream>,
    streams_made: u64,
    /// Snapshots on their way: from, to, and the life of the sender.
    transfers: BTreeMap<(usize, usize), u64>,
    healed: bool,
    asking: bool,
    /// Every event is printed.
    tells_all: bool,
    report: Report,
    trace: VecDeque<Traced>,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> World {
        let mut dice = Dice::new(seed ^ hash_on(0, scenario.name.as_bytes()));
        let drawn = Options::draw(&mut dice);
        let options = scenario.options.clone().unwrap_or(drawn);
        let members = (0..scenario.members)
            .map(|place| Member::new(place, scenario.members, dice.between(0, 400) as i64 - 200))
            .collect();
        let watchers = (0..scenario.watch_clients).map(|_| Watcher::default()).collect();
        let mut world = World {
            seed,
            scenario,
            dice,
            now: SECOND,
            events: 0,
            queue: BTreeMap::new(),
            members,
            network: Network::default(),
            options,
            ledger: Ledger::default(),
            knowledge: Knowledge::default(),
            history: History { drift_ppm: 1000, ..History::default() },
            calls: BTreeMap::new(),
            calls_made: 0,
            watchers,
            streams: BTreeMap::new(),
            streams_made: 0,
            transfers: BTreeMap::new(),
            healed: false,
            asking: true,
            tells_all: std::env::var_os("TRACE").is_some(),
            report: Report::default(),
            trace: VecDeque::new(),
        };
        if let Some((commands, _)) = world.scenario.breaks {
            world.members.iter().for_each(|member| member.disk.break_after(commands));
        }
        for place in 0..world.scenario.members {
            let delay = world.dice.below(SECOND);
            world.schedule(delay, WorldEvent::Boot { place });
        }
        for client in 0..world.scenario.kv_clients {
            world.schedule(SECOND + u64::from(client) * MILLI, WorldEvent::Client { client });
        }
        for client in 0..world.scenario.watch_clients {
            world.schedule(SECOND + u64::from(client) * MILLI, WorldEvent::Watcher { client });
        }
        if world.scenario.every > 0 {
            world.schedule(3 * SECOND, WorldEvent::Nemesis);
        }
        world
    }

    /// Lives through the whole scenario. A failure says all that is needed to see it again.
    pub fn run(mut self) -> Result<Report, String> {
        let end = self.now + self.scenario.faulty;
        let outcome = self.live(end);
        self.report.virtual_ns = self.now;
        self.report.events = self.events;
        self.report.installs = self.ledger.installs;
        outcome.map(|()| self.report.clone()).map_err(|what| self.failure(&what))
    }

    fn live(&mut self, end: u64) -> Result<(), String> {
        self.run_until(end)?;
        self.heal();
        let end = self.now + 12 * SECOND;
        self.run_until(end)?;
        self.asking = false;
        let acknowledged = self.history.ops.iter().filter(|op| matches!(op.outcome, Outcome::Ok { .. }));
        let late = self.now - 6 * SECOND;
        if !acknowledged.clone().any(|op| op.ret.is_some_and(|ret| ret > late)) {
            return Err("liveness: nothing is acknowledged after everything was healed".into());
        }
        // Leases run out meanwhile.
        let end = self.now + 12 * SECOND;
        self.run_until(end)?;
        self.judge()
    }

    fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry() {
            let at = entry.key().0;
            if at > end {
                break;
            }
            let event = entry.remove();
            self.now = self.now.max(at);
            self.ledger.now = self.now;
            self.events += 1;
            self.happen(event);
            if let Some(violation) = self.ledger.violations.first() {
                return Err(violation.clone());
            }
        }
        self.now = end;
        Ok(())
    }

    fn standing(&self) -> Result<Vec<(u64, i64, Content)>, String> {
        let down = |member: &Member| format!("liveness: {}", member.describe());
        self.members.iter().map(|member| member.standing().ok_or_else(|| down(member))).collect()
    }

    fn judge(&mut self) -> Result<(), String> {
        let mut standing = self.standing()?;
        // Leases still run out, and have their rests recorded: there is a moment without an entry on its way, and without a
        // change that watchers are about to be told of.
        let mut unchanged = (standing[0].1, self.now);
        for _ in 0..500 {
            let together = standing.iter().all(|other| other == &standing[0]);
            if together && self.now >= unchanged.1 + 200 * MILLI {
                break;
            }
            self.run_until(self.now + 10 * MILLI)?;
            standing = self.standing()?;
            if standing[0].1 != unchanged.0 {
                unchanged = (standing[0].1, self.now);
            }
        }
        if standing.iter().any(|other| other != &standing[0]) {
            let all: Vec<String> = self.members.iter().map(Member::describe).collect();
            return Err(format!("liveness: members do not come together: {}", all.join("; ")));
        }
        if let Some(member) = self.members.iter().find(|member| member.slow_watchers() > 0) {
            return Err(format!("liveness: m{} still has watchers to catch up", member.place));
        }
        self.mark("content", [standing[0].2.0.into(), standing[0].0, self.history.ops.len() as u64, 0], String::new());
        let revision = standing[0].1;

        // What was carried out, as a watcher would see it that misses nothing.
        let mut messages = vec![(0, WatchMessage::Created { revision: 1 })];
        for (revision, (at, events)) in &self.ledger.changes {
            let events = events.clone();
            messages.push((*at, WatchMessage::Events { header_revision: *revision, fragment: false, events }));
        }
        messages.push((self.now, WatchMessage::Ended));
        let witness =
            WatchRecord { client: u32::MAX, key: vec![0], end: vec![0], start: 1, messages, ..Default::default() };
        self.history.watches.push(witness);
        let summary = checks::check(&self.history).map_err(|violation| {
            let op = violation.op.and_then(|op| self.history.ops.get(op));
            let watch = violation.watch.and_then(|watch| self.history.watches.get(watch));
            let watch = watch.map(|watch| {
                let from = watch.messages.len().saturating_sub(12);
                let head = WatchRecord { messages: Vec::new(), ..watch.clone() };
                format!("{head:?} … {:?}", &watch.messages[from..])
            });
            format!("{violation}\n  op: {op:?}\n  watch: {watch:?}")
        })?;
        if !summary.behind.is_empty() {
            return Err(format!("liveness: watches {:?} were not sent everything", summary.behind));
        }
        self.report.ops = summary.ops;
        self.report.acknowledged = summary.acknowledged;
        self.report.watch_events = summary.events;
        self.report.revision = revision;
        Ok(())
    }

    fn failure(&self, what: &str) -> String {
        let mut text = String::new();
        for traced in &self.trace {
            let Traced { now, what, numbers, text: more } = traced;
            text += &format!("  {:>12.6} {what} {numbers:?} {more}\n", *now as f64 / SECOND as f64);
        }
        format!(
            "the last {} events of the world:\n{text}{:?}\nscenario {:?} seed {}: {what}\nreplay: SEED={} SCENARIO={} cargo test --test sim scenario",
            self.trace.len(),
            self.options,
            self.scenario.name,
            self.seed,
            self.seed,
            self.scenario.name,
        )
    }

    fn schedule(&mut self, delay: u64, event: WorldEvent) {
        let seq = self.events << 20 | self.queue.len() as u64 & 0xfffff;
        let mut key = (self.now + delay, seq);
        while self.queue.contains_key(&key) {
            key.1 += 1;
        }
        self.queue.insert(key, event);
    }

    fn mark(&mut self, what: &'static str, numbers: [u64; 4], text: String) {
        let mut hash = hash_on(self.report.trace ^ self.now, what.as_bytes());
        for number in numbers {
            hash = hash_on(hash, &number.to_le_bytes());
        }
        self.report.trace = hash_on(hash, text.as_bytes());
        if self.tells_all {
            println!("{:>12.6} {what} {numbers:?} {text}", self.now as f64 / SECOND as f64);
        }
        if self.trace.len() == TRACE_SHOWN {
            self.trace.pop_front();
        }
        self.trace.push_back(Traced { now: self.now, what, numbers, text });
    }

    fn happen(&mut self, event: WorldEvent) {
        match event {
            WorldEvent::Member { place, life, event } => {
                if self.members[place].life == life {
                    self.tell_member(place, event);
                }
            }
            WorldEvent::Deliver { from, to, message } => {
                if !self.network.link(from, to).cut {
                    self.tell_member(to, MemberEvent::Message(message));
                }
            }
            WorldEvent::SnapshotArrives { from, to, message, rows } => {
                if self.network.link(from, to).cut || self.members[to].running.is_none() {
                    self.snapshot_settled(from, to, false);
                } else {
                    self.tell_member(to, MemberEvent::SnapshotOffered { from, message, rows });
                }
            }
            WorldEvent::Boot { place } => self.boot(place),
            WorldEvent::Client { client } => self.ask(client),
            WorldEvent::CallArrives { call, place, request, deadline } => {
                if self.members[place].running.is_none() {
                    let delay = self.dice.below(MILLI);
                    self.schedule(delay, WorldEvent::AnswerArrives { call, outcome: Outcome::Unknown });
                } else {
                    self.tell_member(place, MemberEvent::Call { call, request, deadline });
                }
            }
            WorldEvent::AnswerArrives { call, outcome } => self.answered(call, outcome, true),
            WorldEvent::CallEnds { call } => self.answered(call, Outcome::Unknown, false),
            WorldEvent::Watcher { client } => self.watcher(client),
            WorldEvent::WatchArrives { stream, watch, message } => {
                if self.streams.get(&stream).is_some_and(|stream| !stream.ended) {
                    self.mark("watch", [stream, watch as u64, revision_of(&message) as u64, 0], String::new());
                    self.knowledge.revision = self.knowledge.revision.max(revision_of(&message));
                    self.history.watches[watch].messages.push((self.now, message));
                }
            }
            WorldEvent::StreamEnds { stream } => self.stream_ends(stream),
            WorldEvent::Nemesis => self.nemesis(),
        }
    }

    fn tell_member(&mut self, place: usize, event: MemberEvent) {
        let paused_until = self.members[place].paused_until;
        if paused_until > self.now {
            let life = self.members[place].life;
            return self.schedule(paused_until - self.now, WorldEvent::Member { place, life, event });
        }
        let (what, numbers) = describe(place, &event);
        self.mark(what, numbers, String::new());
        let mut effects = Vec::new();
        let mut cx = Context {
            now: self.now,
            dice: &mut self.dice,
            options: &self.options,
            effects: &mut effects,
            ledger: &mut self.ledger,
        };
        let outcome = self.members[place].handle(event, &mut cx);
        self.carry_out(place, effects);
        if let Err(death) = outcome {
            self.died(place, &death.0);
        }
    }

    fn died(&mut self, place: usize, why: &str) {
        self.mark("dies", [place as u64, 0, 0, 0], why.to_owned());
        if !self.members[place].disk.is_broken() {
            return self.ledger.violated(format!("m{place} stopped for no fault of the world: {why}"));
        }
        let loss = self.loss();
        self.crash(place, loss);
        let delay = self.dice.below(3 * SECOND);
        self.schedule(delay, WorldEvent::Boot { place });
    }

    fn loss(&mut self) -> Loss {
        let drawn = self.dice.pick(&[Loss::Process, Loss::All, Loss::Mixed]);
        self.scenario.breaks.map_or(drawn, |(_, loss)| loss)
    }

    fn crash(&mut self, place: usize, loss: Loss) {
        self.report.crashes += 1;
        self.mark("crash", [place as u64, loss as u64, 0, 0], String::new());
        self.members[place].crash(loss, &mut self.dice);
        let broken: Vec<_> = self.transfers.keys().copied().filter(|(_, to)| *to == place).collect();
        for (from, to) in broken {
            self.snapshot_settled(from, to, false);
        }
        self.transfers.retain(|(from, _), _| *from != place);
        let streams: Vec<u64> =
            self.streams.iter().filter(|(_, s)| s.place == place && !s.ended).map(|(token, _)| *token).collect();
        for token in streams {
            self.end_stream_later(token);
        }
    }

    fn end_stream_later(&mut self, token: u64) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        stream.last_arrival = stream.last_arrival.max(self.now) + 1;
        let delay = stream.last_arrival - self.now;
        self.schedule(delay, WorldEvent::StreamEnds { stream: token });
    }

    fn boot(&mut self, place: usize) {
        if self.members[place].running.is_some() {
            return;
        }
        if !self.healed && self.scenario.faults.disk_breaks > 0 && self.dice.chance(60) {
            let commands = self.dice.below(12);
            self.members[place].disk.break_after(commands);
        }
        self.mark("boot", [place as u64, 0, 0, 0], String::new());
        let mut effects = Vec::new();
        let mut cx = Context {
            now: self.now,
            dice: &mut self.dice,
            options: &self.options,
            effects: &mut effects,
            ledger: &mut self.ledger,
        };
        let outcome = self.members[place].boot(&mut cx);
        match outcome {
            Ok(()) => self.carry_out(place, effects),
            Err(death) => {
                self.mark("dies", [place as u64, 1, 0, 0], death.0.clone());
                if !self.members[place].disk.is_broken() {
                    return self.ledger.violated(format!("m{place} does not start: {}", death.0));
                }
                let loss = self.loss();
                self.members[place].disk.crash(loss, &mut self.dice);
                let delay = self.dice.below(SECOND);
                self.schedule(delay, WorldEvent::Boot { place });
            }
        }
    }

    fn snapshot_settled(&mut self, from: usize, to: usize, ok: bool) {
        let Some(life) = self.transfers.remove(&(from, to)) else { return };
        let event = MemberEvent::SnapshotSent { to: crate::member::id_of(to), ok };
        let delay = self.dice.below(50 * MILLI);
        self.schedule(delay, WorldEvent::Member { place: from, life, event });
    }

    fn carry_out(&mut self, place: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(message) => {
                    let to = place_of(message.to);
                    let mut arrivals = self.network.arrivals(place, to, &mut self.dice);
                    if message.get_msg_type() == MessageType::MsgPropose {
                        // The transport may lose a message but never repeats one, and here it matters: a proposal that
                        // arrives twice is carried out twice. Of the others a repetition must do no harm.
                        arrivals.truncate(1);
                    }
                    for delay in arrivals {
                        self.schedule(delay, WorldEvent::Deliver { from: place, to, message: message.clone() });
                    }
                }
                Effect::SendSnapshot { to, message, rows } => {
                    let to = place_of(to.0);
                    self.transfers.insert((place, to), self.members[place].life);
                    let delay = self.dice.skewed(5 * MILLI, 2 * SECOND);
                    self.schedule(delay, WorldEvent::SnapshotArrives { from: place, to, message, rows });
                }
                Effect::SnapshotAnswer { to, ok } => self.snapshot_settled(to, place, ok),
                Effect::Later { delay, event } => {
                    let life = self.members[place].life;
                    self.schedule(delay, WorldEvent::Member { place, life, event });
                }
                Effect::Answer { call, outcome } => {
                    if let Outcome::Ok { revision, .. } = &outcome {
                        self.shown(*revision, place);
                    }
                    if self.dice.chance(if self.healed { 0 } else { 5 }) {
                        continue;
                    }
                    let delay = self.dice.skewed(MILLI / 10, 5 * MILLI);
                    self.schedule(delay, WorldEvent::AnswerArrives { call, outcome });
                }
                Effect::AskLeader { leader, call, id, deadline } => {
                    let ask = MemberEvent::RenewFor { origin: place, call, id, deadline };
                    self.between(place, leader, ask, MemberEvent::Renewed { call, id, ttl: None, deadline }, place);
                }
                Effect::AnswerRenewal { origin, call, id, ttl, deadline } => {
                    let answer = MemberEvent::Renewed { call, id, ttl, deadline };
                    let lost = MemberEvent::Renewed { call, id, ttl: None, deadline };
                    self.between(place, origin, answer, lost, origin);
                }
                Effect::Watch { stream, message, watch } => {
                    if let Outgoing::Events(events) = &message {
                        self.shown(events.revision.0, place);
                    }
                    let Some(watch) = watch else { continue };
                    let delay = self.dice.skewed(MILLI / 10, 20 * MILLI);
                    let Some(known) = self.streams.get_mut(&stream) else { continue };
                    known.last_arrival = (self.now + delay).max(known.last_arrival + 1);
                    let delay = known.last_arrival - self.now;
                    let message = clients::watch_message(&message);
                    self.schedule(delay, WorldEvent::WatchArrives { stream, watch, message });
                }
                Effect::StreamEnded { stream } => self.end_stream_later(stream),
                Effect::Note(text) => self.mark("note", [place as u64, 0, 0, 0], text),
            }
        }
    }

    /// A question from member to member, or the news that it got lost.
    fn between(&mut self, from: usize, to: usize, event: MemberEvent, lost: MemberEvent, hears: usize) {
        let arrives = self.network.arrivals(from, to, &mut self.dice).first().copied();
        let (delay, place, event) = match arrives {
            Some(delay) if self.members[to].running.is_some() => (delay, to, event),
            _ => (SECOND, hears, lost),
        };
        let life = self.members[place].life;
        self.schedule(delay, WorldEvent::Member { place, life, event });
    }

    /// A revision is shown to a client: the entry that made it must be durable on a quorum now.
    fn shown(&mut self, revision: i64, by: usize) {
        let Some((_, index)) = self.ledger.revisions.range(..=revision).next_back() else { return };
        let index = *index;
        let term = self.ledger.entries[&index].1;
        let holders = self.members.iter().filter(|member| member.holds(index, term)).count();
        if holders <= self.members.len() / 2 {
            self.ledger.violated(format!(
                "durability: m{by} shows revision {revision} but entry {index} of term {term} is durable on {holders} members"
            ));
        }
    }

    fn any(&mut self) -> usize {
        self.dice.below(self.members.len() as u64) as usize
    }

    fn ask(&mut self, client: u32) {
        if !self.asking {
            return;
        }
        let request = self.knowledge.request(&mut self.dice, client, &self.scenario.mix);
        let place = if self.dice.chance(700) { client as usize % self.members.len() } else { self.any() };
        let op = Op { client, call: self.now, request: request.clone(), ..Op::default() };
        self.history.ops.push(op);
        self.calls_made += 1;
        let call = self.calls_made;
        self.mark("call", [client.into(), call, place as u64, 0], String::new());
        self.calls.insert(call, Call { client, op: self.history.ops.len() - 1 });
        let patience = self.dice.pick(&[500, 2000, 7000]) * MILLI;
        let delay = self.dice.skewed(MILLI / 10, 5 * MILLI);
        let deadline = self.now + patience;
        self.schedule(delay, WorldEvent::CallArrives { call, place, request, deadline });
        self.schedule(patience, WorldEvent::CallEnds { call });
    }

    fn answered(&mut self, call: u64, outcome: Outcome, heard: bool) {
        let Some(Call { client, op }) = self.calls.remove(&call) else { return };
        let revision = match &outcome {
            Outcome::Ok { revision, .. } => *revision as u64,
            Outcome::Refused(_) => 1 << 62,
            Outcome::Unknown => 0,
        };
        self.mark("answer", [client.into(), call, revision, 0], String::new());
        let op = &mut self.history.ops[op];
        self.knowledge.learn(&op.request, &outcome);
        let known = !matches!(outcome, Outcome::Unknown);
        op.ret = (heard && known).then_some(self.now);
        op.outcome = outcome;
        let pause = self.dice.skewed(MILLI, self.scenario.think);
        self.schedule(pause, WorldEvent::Client { client });
    }

    fn watcher(&mut self, client: u32) {
        let pause = self.dice.skewed(5 * MILLI, 3 * SECOND);
        self.schedule(pause, WorldEvent::Watcher { client });
        let Some(token) = self.watchers[client as usize].stream else {
            return self.open_stream(client);
        };
        let (place, life) = (self.streams[&token].place, self.streams[&token].life);
        let event = match self.dice.below(if self.asking { 14 } else { 2 }) {
            0 => MemberEvent::AskProgress { stream: token },
            1 => MemberEvent::TickProgress { stream: token },
            2 => {
                let open = self.open_watches(token);
                if open.is_empty() {
                    return;
                }
                let watch = open[self.dice.below(open.len() as u64) as usize];
                MemberEvent::Cancel { stream: token, watch }
            }
            3..5 => {
                let watch = self.knowledge.watch(&mut self.dice, client, place as u64, self.scenario.mix.keys);
                let watch = WatchRecord { stream: token, ..watch };
                let spec = clients::spec(&watch);
                let at = self.history.watches.len();
                self.history.watches.push(watch);
                self.streams.get_mut(&token).expect("it is open").watches.push(at);
                MemberEvent::Open { stream: token, watches: vec![(at, spec)] }
            }
            5 => {
                let until = self.now + self.dice.below(8 * SECOND);
                MemberEvent::Pace { stream: token, until }
            }
            6 => {
                // It moves to another member.
                self.stream_ends(token);
                MemberEvent::CloseStream { stream: token }
            }
            _ => return,
        };
        let delay = self.dice.below(2 * MILLI);
        self.schedule(delay, WorldEvent::Member { place, life, event });
    }

    /// Watches of a stream that have been created and have not ended.
    fn open_watches(&self, token: u64) -> Vec<usize> {
        let open = |watch: &&usize| {
            let messages = &self.history.watches[**watch].messages;
            let over = |message: &WatchMessage| matches!(message, WatchMessage::Canceled { .. } | WatchMessage::Ended);
            !messages.is_empty() && !messages.iter().any(|(_, message)| over(message))
        };
        self.streams[&token].watches.iter().filter(open).copied().collect()
    }

    fn open_stream(&mut self, client: u32) {
        let place = self.any();
        if self.members[place].running.is_none() {
            return;
        }
        let life = self.members[place].life;
        self.streams_made += 1;
        let token = self.streams_made;
        let mut records: Vec<WatchRecord> = Vec::new();
        for broken in std::mem::take(&mut self.watchers[client as usize].broken) {
            let old = &self.history.watches[broken];
            let start = next_revision(old);
            let (messages, resumes) = (Vec::new(), Some(broken));
            records.push(WatchRecord { member: place as u64, start, resumes, messages, ..old.clone() });
        }
        if records.is_empty() {
            records.push(self.knowledge.watch(&mut self.dice, client, place as u64, self.scenario.mix.keys));
        }
        records.iter_mut().for_each(|record| record.stream = token);
        let first = self.history.watches.len();
        let watches: Vec<_> =
            records.iter().enumerate().map(|(n, record)| (first + n, clients::spec(record))).collect();
        self.history.watches.extend(records);
        let stream = Stream {
            client,
            place,
            life,
            watches: watches.iter().map(|(watch, _)| *watch).collect(),
            last_arrival: self.now,
            ended: false,
        };
        self.streams.insert(token, stream);
        self.watchers[client as usize].stream = Some(token);
        let delay = self.dice.below(5 * MILLI);
        self.schedule(delay, WorldEvent::Member { place, life, event: MemberEvent::Open { stream: token, watches } });
    }

    fn stream_ends(&mut self, token: u64) {
        let open = match self.streams.get(&token) {
            Some(stream) if !stream.ended => self.open_watches(token),
            _ => return,
        };
        let stream = self.streams.get_mut(&token).expect("just looked at");
        stream.ended = true;
        let client = stream.client as usize;
        for watch in stream.watches.clone() {
            let messages = &mut self.history.watches[watch].messages;
            if !matches!(messages.last(), Some((_, WatchMessage::Canceled { .. }))) {
                messages.push((self.now, WatchMessage::Ended));
            }
        }
        self.watchers[client].stream = None;
        // Most are continued elsewhere.
        for watch in open {
            if self.dice.chance(850) {
                self.watchers[client].broken.push(watch);
            }
        }
    }

    /// Everything works again, and stays so.
    fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        self.options.slow_sync_per_mille = 0;
        self.options.disk_delay_max = self.options.disk_delay_max.min(10 * MILLI);
        self.mark("heal", [0; 4], String::new());
        for place in 0..self.members.len() {
            self.members[place].paused_until = self.now;
            if self.members[place].running.is_none() {
                self.schedule(MILLI, WorldEvent::Boot { place });
            }
        }
        // Nobody keeps his eyes shut for ever.
        for (token, stream) in &self.streams {
            if !stream.ended {
                let event = MemberEvent::Pace { stream: *token, until: 0 };
                let key = (self.now + 8 * SECOND, u64::MAX - token);
                self.queue.insert(key, WorldEvent::Member { place: stream.place, life: stream.life, event });
            }
        }
    }

    fn nemesis(&mut self) {
        if self.healed {
            return;
        }
        let pause = self.dice.skewed(self.scenario.every / 4, self.scenario.every * 2);
        self.schedule(pause, WorldEvent::Nemesis);
        self.report.faults += 1;
        let Faults { crash, crash_all, disk_breaks, pause, partition, one_way, bridge, rough, hand_over, slow_disk } =
            self.scenario.faults;
        let weights = [crash, crash_all, disk_breaks, pause, partition, one_way, bridge, rough, hand_over, slow_disk];
        let mut roll = self.dice.below(weights.iter().sum());
        let chosen = weights
            .iter()
            .position(|weight| {
                let hit = roll < *weight;
                roll = roll.wrapping_sub(*weight);
                hit
            })
            .expect("the roll is below the sum");
        let members = self.members.len();
        let place = self.any();
        self.mark("nemesis", [chosen as u64, place as u64, 0, 0], String::new());
        match chosen {
            0 | 1 => {
                for place in if chosen == 0 { place..place + 1 } else { 0..members } {
                    let loss = self.loss();
                    if self.members[place].running.is_some() {
                        self.crash(place, loss);
                        let delay = self.dice.skewed(10 * MILLI, 6 * SECOND);
                        self.schedule(delay, WorldEvent::Boot { place });
                    }
                }
            }
            2 => {
                let commands = self.dice.skewed(0, 60);
                self.members[place].disk.break_after(commands);
            }
            3 => self.members[place].paused_until = self.now + self.dice.skewed(50 * MILLI, 6 * SECOND),
            4 => {
                self.network.heal();
                let side: Vec<bool> = (0..members).map(|_| self.dice.chance(500)).collect();
                for a in 0..members {
                    for b in (0..members).filter(|b| side[*b] != side[a]) {
                        self.network.cut(a, b);
                    }
                }
            }
            5 => {
                let other = self.any();
                self.network.cut(place, other);
                if self.dice.chance(300) {
                    (0..members).for_each(|to| self.network.cut(place, to));
                }
            }
            6 => {
                // All but one of the links of a member.
                let friend = self.any();
                for other in (0..members).filter(|other| *other != friend && *other != place) {
                    self.network.cut(place, other);
                    self.network.cut(other, place);
                }
            }
            7 => {
                for a in 0..members {
                    for b in 0..members {
                        let link = Link::rough(&mut self.dice);
                        self.network.set(a, b, link);
                    }
                }
            }
            8 => (0..members).for_each(|place| self.tell_member(place, MemberEvent::HandOver)),
            _ => {
                self.options.slow_sync_per_mille = self.dice.pick(&[0, 5, 50]);
                self.options.disk_delay_max = self.dice.pick(&[1, 10, 200]) * MILLI;
            }
        }
        if self.dice.chance(400) {
            self.network.heal();
        }
    }
}

/// Where a watch goes on.
fn next_revision(record: &WatchRecord) -> i64 {
    let mut next = record.start;
    for (_, message) in &record.messages {
        match message {
            WatchMessage::Created { revision } if record.start == 0 => next = next.max(revision + 1),
            WatchMessage::Events { events, .. } => {
                next = events.iter().fold(next, |next, event| next.max(event.kv.mod_revision + 1));
            }
            WatchMessage::Progress { revision } | WatchMessage::StreamProgress { revision } => {
                next = next.max(revision + 1)
            }
            _ => {}
        }
    }
    next
}

fn revision_of(message: &WatchMessage) -> i64 {
    match message {
        WatchMessage::Created { revision }
        | WatchMessage::Progress { revision }
        | WatchMessage::StreamProgress { revision } => *revision,
        WatchMessage::Events { header_revision, .. } => *header_revision,
        WatchMessage::Canceled { .. } | WatchMessage::Ended => 0,
    }
}

fn describe(place: usize, event: &MemberEvent) -> (&'static str, [u64; 4]) {
    let at = place as u64;
    match event {
        MemberEvent::Tick => ("tick", [at, 0, 0, 0]),
        MemberEvent::Turn => ("turn", [at, 0, 0, 0]),
        MemberEvent::LogDone => ("log done", [at, 0, 0, 0]),
        MemberEvent::BackendDue(_) => ("backend due", [at, 0, 0, 0]),
        MemberEvent::BackendDone => ("backend done", [at, 0, 0, 0]),
        MemberEvent::CatchUp => ("catch up", [at, 0, 0, 0]),
        MemberEvent::Message(m) => {
            ("message", [at, place_of(m.from) as u64, m.get_msg_type() as u64, m.term << 32 | m.index])
        }
        MemberEvent::SnapshotOffered { from, .. } => ("snapshot offered", [at, *from as u64, 0, 0]),
        MemberEvent::SnapshotWritten { from, .. } => ("snapshot written", [at, *from as u64, 0, 0]),
        MemberEvent::SnapshotSent { to, ok } => ("snapshot sent", [at, place_of(to.0) as u64, u64::from(*ok), 0]),
        MemberEvent::SnapshotNotSent { to } => ("snapshot not sent", [at, place_of(to.0) as u64, 0, 0]),
        MemberEvent::Call { call, .. } => ("request", [at, *call, 0, 0]),
        MemberEvent::ReadOn { call } => ("read on", [at, *call, 0, 0]),
        MemberEvent::RenewFor { call, .. } => ("renew for", [at, *call, 0, 0]),
        MemberEvent::Renewed { call, .. } => ("renewed", [at, *call, 0, 0]),
        MemberEvent::Open { stream, .. } => ("open", [at, *stream, 0, 0]),
        MemberEvent::Cancel { stream, watch } => ("cancel", [at, *stream, *watch as u64, 0]),
        MemberEvent::AskProgress { stream } => ("ask progress", [at, *stream, 0, 0]),
        MemberEvent::TickProgress { stream } => ("tick progress", [at, *stream, 0, 0]),
        MemberEvent::CloseStream { stream } => ("close", [at, *stream, 0, 0]),
        MemberEvent::Pace { stream, until } => ("pace", [at, *stream, *until, 0]),
        MemberEvent::HandOver => ("hand over", [at, 0, 0, 0]),
    }
}
