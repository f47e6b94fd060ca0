//! The world: time, chance, and everything that happens, in one queue.
//!
//! Nothing here depends on anything but the seed and the scenario, so a run can be repeated exactly. The world owns the members,
//! the network between them and the clients. `nemesis` says what goes wrong, `phases` how a run proceeds: faults for a while;
//! then only a quorum is mended and must work; then everything is, and the run is judged: what clients saw (the checks), what
//! members hold (agreement), what was shown before it was durable on a quorum (exposure), and whether everything works again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use everwatch::cluster::founding::{Answer, Decision, Heard};
use everwatch::mvcc::revision::RevisionKey;
use everwatch::pb::everwatchpb::{self, MemberRecord};
use everwatch::pb::mvccpb;
use everwatch::raft::{Message, MessageType};
use everwatch::storage::backend::{Batch, Bucket, Reader};
use everwatch::storage::schema;
use everwatch::storage::wal::LogEntry;
use everwatch::types::MemberId;
use everwatch::watch::{Outgoing, feed};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;

use crate::checks::rights::{Decided, Held, Rights, Token, Watched};
use crate::checks::{
    self, Event, EventKind, History, KeyValue, Op, Outcome, Reply, Request, WatchMessage, WatchRecord,
};
use crate::clients::{self, Knowledge, Mix};
use crate::dice::{Dice, Hashing, hash_on};
use crate::disk::{Loss, Trouble};
use crate::member::{By, Content, Context, Effect, Member, MemberEvent, Question, place_of};
use crate::network::Network;
use crate::users::{self, Gossip};

#[path = "nemesis.rs"]
mod nemesis;
#[path = "phases.rs"]
mod phases;
#[path = "removals.rs"]
mod removals;

pub use nemesis::{FAULTS, Fault, Faults};

pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MILLI;
/// Streams that one watch client holds, at most.
const STREAMS_MAX: usize = 3;
/// Open watches of one stream above which a client asks for no more.
const WATCHES_MAX: usize = 6;
/// How long a member without data waits for an answer.
const ANSWER_TIMEOUT: u64 = 2 * SECOND;
/// Members that a cluster may grow to.
const MEMBERS_MAX: usize = 5;
/// For how long a member must have been connected to another to count as near.
const NEAR_AFTER: Duration = Duration::from_secs(5);
/// Events of the world shown with a failure.
const TRACE_SHOWN: usize = 100;

/// Steps that are written down, and what must come of them.
type Script = fn(&mut World) -> Result<(), String>;

/// What a run is about.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub members: usize,
    pub kv_clients: u32,
    /// So many of them manage users and roles, which count then.
    pub managers: u32,
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
    /// Clocks run so much faster or slower than time, at most, in parts per million.
    pub drift_ppm: u64,
    /// How often a client that heard nothing asks the same again, out of a thousand.
    pub retry_per_mille: u64,
    /// Before all is mended, a quorum alone must work.
    pub core: bool,
    /// More leaders than that are a failure.
    pub leaders_max: Option<usize>,
    /// What is done to the world after that time, step by step. If there are faults, they go on meanwhile.
    pub script: Option<Script>,
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
    /// Longest time until the hub hears what was applied, if nobody asks it for anything.
    pub hear_delay: u64,
    /// Changes that may wait for the hub.
    pub feed_changes: usize,
    /// How long compacted history stays for watches that read it.
    pub compaction_grace: u64,
    pub pre_vote: bool,
    pub disk_delay_max: u64,
    pub slow_sync_per_mille: u64,
    /// What waits for one stream, at most.
    pub outbox_bytes: usize,
    pub outbox_messages: usize,
    /// History read for watchers in one turn, about.
    pub slice_bytes: usize,
    /// Bytes after which a catch-up message is closed.
    pub message_bytes: usize,
    /// Larger messages are cut into pieces, for watchers that accept that.
    pub piece_bytes: usize,
    /// Ticks without word from a leader until a member campaigns, at least.
    pub election_ticks: usize,
    /// Messages are encoded and decoded on their way.
    pub wire: bool,
}

impl Options {
    /// From now on history is read without delay, and not one revision at a time: there is an end to the time in which late
    /// watchers must have all of it.
    pub fn read_on(&mut self) {
        self.catch_up_delay = self.catch_up_delay.min(MILLI);
        self.hear_delay = self.hear_delay.min(MILLI);
        self.slice_bytes = self.slice_bytes.max(300);
    }

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
            hear_delay: dice.pick(&[1, 1, 10, 100]) * MILLI,
            feed_changes: dice.pick(&[1, 8, feed::CHANGES_MAX]),
            compaction_grace: dice.pick(&[0, 10, 200, 2000]) * MILLI,
            pre_vote: dice.chance(900),
            disk_delay_max: dice.pick(&[1, 5, 30]) * MILLI,
            slow_sync_per_mille: dice.pick(&[0, 0, 5]),
            outbox_bytes: dice.pick(&[100, 1000, 20_000, 1 << 20]),
            outbox_messages: dice.pick(&[2, 16, 1024]),
            slice_bytes: dice.pick(&[1, 300, 5000, 1 << 20]),
            message_bytes: dice.pick(&[1, 200, 5000, 1 << 20]),
            piece_bytes: dice.pick(&[1, 150, 1000, 2 << 20]),
            election_ticks: dice.pick(&[10, 10, 5]),
            wire: dice.chance(50),
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
    /// What is written down where users count.
    minutes: Option<Minutes>,
    /// By index: who belongs from there on.
    configurations: BTreeMap<u64, Configuration>,
    /// Members that all who heard of it know to have run.
    ran: BTreeSet<usize>,
    /// So many were there from the beginning, and count as started.
    founders: usize,
    /// There is a configuration that the world has not taken notice of.
    reconfigured: bool,
    pub installs: u64,
    now: u64,
    violations: Vec<String>,
}

/// For the judge of who may do what.
#[derive(Default)]
struct Minutes {
    /// What stands in logs, by index and term.
    payloads: BTreeMap<(u64, u64), bytes::Bytes>,
    /// How calls were decided.
    decided: Vec<(u64, Decided)>,
    watched: Vec<(usize, Watched)>,
    tokens: Vec<Held>,
}

/// Who belongs, by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    pub voters: Vec<usize>,
    pub learners: Vec<usize>,
}

impl Configuration {
    fn of(stored: &everwatchpb::ConfState) -> Configuration {
        let places = |ids: &[u64]| ids.iter().map(|id| place_of(*id)).collect();
        Configuration { voters: places(&stored.voters), learners: places(&stored.learners) }
    }

    fn members(&self) -> Vec<usize> {
        let mut members = [&self.voters[..], &self.learners].concat();
        members.sort_unstable();
        members
    }

    fn quorum(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The nemesis is loose.
    Faulty,
    /// These must work, whatever the others do.
    Core(Vec<usize>),
    /// All must work.
    Healed,
}

impl Ledger {
    pub fn chain_at(&self, index: u64) -> u64 {
        self.entries.get(&index).map_or(0, |(chain, _)| *chain)
    }

    /// Entries are about to be in a log.
    pub fn written(&mut self, entries: &[LogEntry]) {
        if let Some(minutes) = &mut self.minutes {
            let payloads = entries.iter().filter(|entry| entry.kind == 0);
            minutes.payloads.extend(payloads.map(|entry| ((entry.index.0, entry.term.0), entry.data.clone())));
        }
    }

    /// A member has decided something about a call.
    pub fn decided(&mut self, call: u64, decided: Decided) {
        if let Some(minutes) = &mut self.minutes {
            minutes.decided.push((call, decided));
        }
    }

    /// A member has done something about a watch.
    pub fn watched(&mut self, watch: usize, watched: Watched) {
        if let Some(minutes) = &mut self.minutes {
            minutes.watched.push((watch, watched));
        }
    }

    /// Something has become of tokens, on a member in one of its lives, by its clock.
    pub fn token(&mut self, member: (u64, u64), at: Duration, what: Token) {
        if let Some(minutes) = &mut self.minutes {
            minutes.tokens.push(Held { member, at: at.as_nanos() as u64, what });
        }
    }

    pub fn violated(&mut self, what: String) {
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
            if *bucket == Bucket::Members
                && let Some(Ok(record)) = value.clone().map(MemberRecord::decode)
                && !record.client_urls.is_empty()
            {
                self.ran.insert(place_of(record.id));
            }
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

    /// A member was told by an entry who belongs.
    pub fn configured(&mut self, index: u64, conf_state: &everwatchpb::ConfState, member: u64) {
        let configuration = Configuration::of(conf_state);
        if let Some(known) = self.configurations.get(&index) {
            if *known != configuration {
                let place = place_of(member);
                self.violated(format!("agreement: for m{place} {configuration:?} belong at {index}, not {known:?}"));
            }
            return;
        }
        self.configurations.insert(index, configuration);
        self.reconfigured = true;
    }

    /// What a member holds for the configuration at an index is it.
    pub fn check_configuration(&mut self, index: u64, conf_state: &everwatchpb::ConfState, member: u64) {
        let known = self.configurations.range(..=index).next_back();
        let configuration = Configuration::of(conf_state);
        if let Some((_, known)) = known.filter(|(_, known)| **known != configuration) {
            let what =
                format!("agreement: m{} takes {configuration:?} for those at {index}, not {known:?}", place_of(member));
            self.violated(what);
        }
    }

    /// A member lets another one in that votes at once. Of those who vote then a majority must have been started (or there
    /// is but one, which has been), and all who vote now must have been connected to it for a while.
    pub fn lets_in(&mut self, by: MemberId, voters: &[MemberId], connected: &BTreeMap<u64, Duration>) {
        let began = |voter: &&MemberId| {
            let place = place_of(voter.0);
            place < self.founders || self.ran.contains(&place)
        };
        let started = voters.iter().filter(began).count();
        let enough = started > voters.len().div_ceil(2) || (voters.len(), started) == (1, 1);
        let near = |voter: &MemberId| *voter == by || connected.get(&voter.0).is_some_and(|time| *time >= NEAR_AFTER);
        if !enough || !voters.iter().all(near) {
            let what = format!("{started} of {voters:?} were started, connected: {connected:?}");
            self.violated(format!("members: m{} lets in a voter: {what}", place_of(by.0)));
        }
    }

    /// Who belongs, as far as anybody has been told.
    pub fn newest(&self) -> &Configuration {
        self.configurations.last_key_value().expect("there are founders").1
    }

    /// A member's content at an index.
    pub fn content(&mut self, index: u64, content: Content, member: u64) {
        let (known, by) = *self.contents.entry(index).or_insert((content, member));
        if known != content {
            let (a, b) = (place_of(by), place_of(member));
            self.violated(format!("agreement at {index}: m{a} holds {known:?}, m{b} {content:?}"));
        }
    }

    /// The one who was the last to be elected, as far as was seen.
    pub fn leader(&self) -> Option<usize> {
        self.leaders.values().next_back().map(|member| place_of(*member))
    }

    pub fn leads(&mut self, term: u64, member: u64) {
        let known = *self.leaders.entry(term).or_insert(member);
        if known != member {
            self.violated(format!("m{} and m{} lead term {term}", place_of(known), place_of(member)));
        }
    }
}

enum WorldEvent {
    Member {
        place: usize,
        life: u64,
        event: MemberEvent,
    },
    Deliver {
        from: usize,
        to: usize,
        message: Message,
    },
    SnapshotArrives {
        from: usize,
        to: usize,
        message: Message,
        rows: Arc<dyn Reader>,
    },
    Boot {
        place: usize,
    },
    /// A member without data asks another, or a removed one does.
    Ask {
        question: Question,
        to: usize,
    },
    QuestionArrives {
        question: Question,
        to: usize,
    },
    /// An answer, or that there is none.
    QuestionAnswered {
        question: Question,
        from: usize,
        heard: Heard,
        table: Vec<MemberRecord>,
    },
    Client {
        client: u32,
    },
    CallArrives {
        call: u64,
        place: usize,
        by: By,
        request: Request,
        deadline: u64,
    },
    /// From a member, in one of its lives.
    AnswerArrives {
        call: u64,
        outcome: Outcome,
        by: (u64, u64),
    },
    CallEnds {
        call: u64,
    },
    Watcher {
        client: u32,
    },
    WatchArrives {
        stream: u64,
        watch: usize,
        message: WatchMessage,
    },
    StreamEnds {
        stream: u64,
    },
    Nemesis,
    /// Those links are cut or mended, unless all were mended since.
    Links {
        links: Vec<(usize, usize)>,
        cut: bool,
        era: u64,
    },
    Flap {
        links: Vec<(usize, usize)>,
        until: u64,
        cut: bool,
        era: u64,
    },
    Calm {
        era: u64,
    },
    /// A disk has room again, and is as fast as it was.
    Relief {
        place: usize,
    },
    Resume {
        place: usize,
    },
}

struct Call {
    client: u32,
    op: usize,
}

/// A watch client: a few streams at a time.
#[derive(Default)]
struct Watcher {
    streams: Vec<u64>,
    /// Records that are to be continued on the next stream.
    broken: Vec<usize>,
}

struct Stream {
    client: u32,
    by: By,
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
    /// By kind.
    pub faults: [u64; FAULTS.len()],
    pub crashes: u64,
    /// Crashes that took what was not synced.
    pub power_cuts: u64,
    /// Members that refused to start because their disk was damaged.
    pub refusals: u64,
    pub installs: u64,
    pub leaders: usize,
    /// Founders that do not belong any more.
    pub replaced: usize,
    /// The longest that a mended quorum took to acknowledge a write, in milliseconds.
    pub recovery_ms: u64,
    pub events: u64,
    pub ops: usize,
    pub acknowledged: usize,
    /// Watches judged, and their events.
    pub watches: usize,
    pub watch_events: usize,
    pub revision: i64,
    /// What was decided about users.
    pub rights: checks::rights::Counts,
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
    /// By member.
    options: Vec<Options>,
    usual: Options,
    ledger: Ledger,
    knowledge: Knowledge,
    gossip: Gossip,
    history: History,
    calls: BTreeMap<u64, Call>,
    calls_made: u64,
    watchers: Vec<Watcher>,
    streams: BTreeMap<u64, Stream>,
    streams_made: u64,
    /// Snapshots on their way: from, to, and the life of the sender.
    transfers: BTreeMap<(usize, usize), u64>,
    phase: Phase,
    asking: bool,
    /// What happened to members that stand still.
    held: Vec<VecDeque<(u64, MemberEvent)>>,
    /// Times that a member still dies right after its start.
    crash_loops: Vec<u64>,
    /// Members whose disk lost what it had promised to keep: what was durable before.
    damaged: Vec<Option<BTreeMap<u64, u64>>>,
    to_damage: Vec<Option<Fault>>,
    /// Members that refuse to start for it.
    refused: Vec<bool>,
    /// Members that lost their disk.
    wiped: Vec<bool>,
    /// Members whose removal was asked for, so that it may still come; and those of them that others come for.
    leaving: BTreeSet<usize>,
    /// The member that was to be added last; and if that is to vote at once, until it belongs.
    adding: Option<usize>,
    arriving: Option<usize>,
    replaced: BTreeSet<usize>,
    /// When members were changed last.
    reconfigured_at: u64,
    /// What is known to belong.
    configuration: Configuration,
    /// Messages of which this is true, by their sender, get lost.
    losing: Option<fn(&mut World, usize, &Message) -> bool>,
    /// Every event is printed.
    tells_all: bool,
    report: Report,
    trace: VecDeque<Traced>,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> World {
        let mut dice = Dice::new(seed ^ hash_on(0, scenario.name.as_bytes()));
        let drawn = Options::draw(&mut dice);
        let options = vec![scenario.options.clone().unwrap_or(drawn); scenario.members];
        let drift = scenario.drift_ppm;
        let members = (0..scenario.members)
            .map(|place| Member::new(place, scenario.members, dice.between(0, 2 * drift) as i64 - drift as i64))
            .collect();
        // Those of the probe come after those of the clients.
        let watchers = (0..scenario.watch_clients as usize + scenario.members).map(|_| Watcher::default()).collect();
        let places = scenario.members;
        let mut world = World {
            seed,
            scenario,
            dice,
            now: SECOND,
            events: 0,
            queue: BTreeMap::new(),
            members,
            network: Network::default(),
            usual: options[0].clone(),
            options,
            ledger: Ledger { founders: places, ..Ledger::default() },
            knowledge: Knowledge::default(),
            gossip: Gossip::default(),
            // A little is lost in rounding.
            history: History { drift_ppm: drift + 100, ..History::default() },
            calls: BTreeMap::new(),
            calls_made: 0,
            watchers,
            streams: BTreeMap::new(),
            streams_made: 0,
            transfers: BTreeMap::new(),
            phase: Phase::Faulty,
            asking: true,
            held: (0..places).map(|_| VecDeque::new()).collect(),
            crash_loops: vec![0; places],
            damaged: vec![None; places],
            to_damage: vec![None; places],
            refused: vec![false; places],
            wiped: vec![false; places],
            leaving: BTreeSet::new(),
            adding: None,
            arriving: None,
            replaced: BTreeSet::new(),
            reconfigured_at: 0,
            configuration: Configuration { voters: (0..places).collect(), learners: Vec::new() },
            losing: None,
            tells_all: std::env::var_os("TRACE").is_some(),
            report: Report::default(),
            trace: VecDeque::new(),
        };
        world.ledger.minutes = (world.scenario.managers > 0).then(Minutes::default);
        world.ledger.configurations.insert(1, world.configuration.clone());
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
            if std::mem::take(&mut self.ledger.reconfigured) {
                self.members_changed();
            }
            if let Some(violation) = self.ledger.violations.first() {
                return Err(violation.clone());
            }
        }
        self.now = end;
        Ok(())
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
                    if self.crash_loops[to] > 0 {
                        self.crash_again(to);
                    }
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
            WorldEvent::Ask { question, to } => self.ask_another(question, to),
            WorldEvent::QuestionArrives { question, to } => self.question_arrives(question, to),
            WorldEvent::QuestionAnswered { question, from, heard, table } => {
                self.question_answered(question, from, heard, table);
            }
            WorldEvent::Client { client } => self.ask(client),
            WorldEvent::CallArrives { call, place, by, request, deadline } => {
                if self.members[place].running.is_none() {
                    let delay = self.dice.below(MILLI);
                    self.schedule(delay, WorldEvent::AnswerArrives { call, outcome: Outcome::Unknown, by: (0, 0) });
                } else {
                    self.tell_member(place, MemberEvent::Call { call, by, request, deadline });
                }
            }
            WorldEvent::AnswerArrives { call, outcome, by } => self.answered(call, outcome, Some(by)),
            WorldEvent::CallEnds { call } => self.answered(call, Outcome::Unknown, None),
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
            WorldEvent::Links { links, cut, era } => {
                if era == self.network.era {
                    self.mark("links", [links[0].0 as u64, links[0].1 as u64, u64::from(cut), 0], String::new());
                    links.iter().for_each(|(from, to)| self.network.at(*from, *to).cut = cut);
                }
            }
            WorldEvent::Flap { links, until, cut, era } => self.flap(links, until, cut, era),
            WorldEvent::Calm { era } => {
                if era == self.network.era {
                    self.mark("calm", [0; 4], String::new());
                    self.network.heal();
                }
            }
            WorldEvent::Relief { place } => self.relieve(place),
            WorldEvent::Resume { place } => self.resume(place),
        }
    }

    fn tell_member(&mut self, place: usize, event: MemberEvent) {
        let paused_until = self.members[place].paused_until;
        if paused_until > self.now || !self.held[place].is_empty() {
            if self.held[place].is_empty() {
                self.schedule(paused_until - self.now, WorldEvent::Resume { place });
            }
            return self.held[place].push_back((self.members[place].life, event));
        }
        self.happens_to(place, event);
    }

    /// A member moves again: what waited happens, in its order.
    fn resume(&mut self, place: usize) {
        let until = self.members[place].paused_until;
        if self.held[place].is_empty() || until > self.now {
            if !self.held[place].is_empty() {
                self.schedule(until - self.now, WorldEvent::Resume { place });
            }
            return;
        }
        for (life, event) in std::mem::take(&mut self.held[place]) {
            if self.members[place].life == life {
                self.happens_to(place, event);
            }
        }
    }

    fn happens_to(&mut self, place: usize, event: MemberEvent) {
        let (what, numbers) = describe(place, &event);
        self.mark(what, numbers, String::new());
        let mut effects = Vec::new();
        let mut cx = Context {
            now: self.now,
            dice: &mut self.dice,
            options: &self.options[place],
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
        if !self.members[place].disk.has_failed() {
            return self.ledger.violated(format!("m{place} stopped for no fault of the world: {why}"));
        }
        let loss = self.loss();
        self.crash(place, loss);
        let delay = self.dice.below(3 * SECOND);
        self.schedule(delay, WorldEvent::Boot { place });
    }

    /// One of the deaths of a crash loop: it has just heard something.
    fn crash_again(&mut self, place: usize) {
        if self.members[place].running.is_none() || !self.dice.chance(100) {
            return;
        }
        self.crash_loops[place] -= 1;
        self.count(Fault::CrashLoop);
        let loss = self.loss();
        self.crash(place, loss);
        let delay = self.dice.skewed(MILLI, 300 * MILLI);
        self.schedule(delay, WorldEvent::Boot { place });
    }

    /// A disk has room again, and is as fast as it was.
    fn relieve(&mut self, place: usize) {
        self.members[place].disk.set_full(false);
        let usual = &self.usual;
        let options = &mut self.options[place];
        options.slow_sync_per_mille = usual.slow_sync_per_mille;
        options.disk_delay_max = usual.disk_delay_max;
    }

    fn loss(&mut self) -> Loss {
        let drawn = self.dice.pick(&[Loss::Process, Loss::All, Loss::Mixed]);
        self.scenario.breaks.map_or(drawn, |(_, loss)| loss)
    }

    fn crash(&mut self, place: usize, loss: Loss) {
        self.report.crashes += 1;
        self.report.power_cuts += u64::from(loss != Loss::Process);
        self.take_down(place, loss);
    }

    fn take_down(&mut self, place: usize, loss: Loss) {
        self.held[place].clear();
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
        let left_out = matches!(&self.phase, Phase::Core(core) if !core.contains(&place));
        let member = &self.members[place];
        if member.running.is_some() || member.asking.is_some() || member.gone || self.refused[place] || left_out {
            return;
        }
        if let Some(fault) = self.to_damage[place].take()
            && self.phase == Phase::Faulty
        {
            self.damage(place, fault);
        }
        if !self.members[place].has_data() {
            return self.begin_asking(place);
        }
        self.start(place);
    }

    /// A member without data asks the others whether it may take part.
    fn begin_asking(&mut self, place: usize) {
        self.mark("asks", [place as u64, 0, 0, 0], String::new());
        let others = self.configuration.members();
        self.members[place].ask(&others);
        let asking = self.members[place].asking.as_ref().expect("it has just begun");
        for to in asking.others() {
            self.ask_again(place, to, 5 * MILLI);
        }
        self.decide(place);
    }

    fn ask_again(&mut self, place: usize, to: usize, within: u64) {
        let life = self.members[place].life;
        let Some(asking) = &mut self.members[place].asking else { return };
        let question = asking.question(place, life, to);
        let delay = self.dice.below(within);
        self.schedule(delay, WorldEvent::Ask { question, to });
    }

    /// Whether the asker still is who asked.
    fn still_asks(&self, question: Question) -> bool {
        let member = &self.members[question.asker];
        member.life == question.life && (member.asking.is_some() || member.is_leaving())
    }

    fn ask_another(&mut self, question: Question, to: usize) {
        if !self.still_asks(question) {
            return;
        }
        let silence = WorldEvent::QuestionAnswered { question, from: to, heard: Heard::Silence, table: Vec::new() };
        self.schedule(ANSWER_TIMEOUT, silence);
        if let Some(delay) = self.network.arrivals(question.asker, to, self.now, &mut self.dice).first() {
            self.schedule(*delay, WorldEvent::QuestionArrives { question, to });
        }
    }

    fn question_arrives(&mut self, question: Question, to: usize) {
        let member = &self.members[to];
        if member.running.is_some() {
            return self.tell_member(to, MemberEvent::Asked { question });
        }
        // Nobody listens there, or one who is new as well.
        let heard = member.asking.as_ref().map_or(Heard::Silence, |asking| asking.says());
        self.answer_travels(question, to, heard, Vec::new());
    }

    fn answer_travels(&mut self, question: Question, from: usize, heard: Heard, table: Vec<MemberRecord>) {
        if let Some(delay) = self.network.arrivals(from, question.asker, self.now, &mut self.dice).first() {
            self.schedule(*delay, WorldEvent::QuestionAnswered { question, from, heard, table });
        }
    }

    fn question_answered(&mut self, question: Question, from: usize, heard: Heard, table: Vec<MemberRecord>) {
        if !self.still_asks(question) {
            return;
        }
        let place = question.asker;
        let member = &mut self.members[place];
        let own = member.id();
        let Some(asking) = member.asking.as_mut() else {
            if heard == Heard::Said(Answer::Removed) {
                self.tell_member(place, MemberEvent::Known { by: from, table });
            }
            return;
        };
        if !asking.hears(from, question.number, heard, table, own) {
            return;
        }
        self.mark("hears", [place as u64, from as u64, 0, 0], format!("{heard:?}"));
        let pause = self.dice.pick(&[20, 200, 1000]) * MILLI;
        self.ask_again(place, from, pause);
        self.decide(place);
    }

    /// A member without data does what the others' answers come to.
    fn decide(&mut self, place: usize) {
        let asking = self.members[place].asking.as_ref().expect("it asks");
        match asking.decision() {
            Decision::KeepAsking => {}
            Decision::Start if self.wiped[place] => {
                self.ledger.violated(format!("m{place} lost its disk and is let in as if it were new"));
            }
            Decision::Start => {
                self.members[place].begin();
                self.start(place);
            }
            Decision::Refuse { removed } => {
                self.mark("refused", [place as u64, u64::from(removed), 0, 0], String::new());
                self.members[place].asking = None;
                let belongs = self.configuration.members().contains(&place);
                if removed && !belongs {
                    self.members[place].gone = true;
                } else if !removed && self.wiped[place] {
                    self.refused[place] = true;
                    self.report.refusals += 1;
                } else {
                    self.ledger.violated(format!("m{place} is turned away: removed {removed}, belongs {belongs}"));
                }
            }
        }
    }

    /// It starts from what its disk has.
    fn start(&mut self, place: usize) {
        if self.phase == Phase::Faulty && self.scenario.faults.of(Fault::DiskBreaks) > 0 && self.dice.chance(60) {
            let commands = self.dice.below(12);
            self.members[place].disk.break_after(commands);
        }
        if self.phase == Phase::Faulty && self.scenario.faults.of(Fault::DiskError) > 0 && self.dice.chance(60) {
            let trouble = self.dice.pick(&[Trouble::Read, Trouble::Write, Trouble::Sync]);
            let commands = self.dice.below(6);
            self.members[place].disk.trouble_after(trouble, commands);
        }
        self.mark("boot", [place as u64, 0, 0, 0], String::new());
        let mut effects = Vec::new();
        let mut cx = Context {
            now: self.now,
            dice: &mut self.dice,
            options: &self.options[place],
            effects: &mut effects,
            ledger: &mut self.ledger,
        };
        let outcome = self.members[place].boot(&mut cx);
        match outcome {
            Ok(()) => {
                self.carry_out(place, effects);
                let Some(before) = &self.damaged[place] else { return };
                let member = &self.members[place];
                if let Some((index, _)) = before.iter().find(|(index, term)| !member.holds(**index, **term)) {
                    self.ledger.violated(format!("m{place} starts on a damaged log without entry {index}"));
                }
                // Its log is whole, or the damage lies where nothing is: it can only be found by what comes later.
                self.damaged[place] = Some(BTreeMap::new());
            }
            Err(death) => {
                self.mark("dies", [place as u64, 1, 0, 0], death.0.clone());
                if !self.members[place].disk.has_failed() && self.damaged[place].is_some() {
                    self.refused[place] = true;
                    self.report.refusals += 1;
                    return;
                }
                if !self.members[place].disk.has_failed() {
                    return self.ledger.violated(format!("m{place} does not start: {}", death.0));
                }
                let loss = self.loss();
                self.members[place].disk.crash(loss, &mut self.dice);
                let delay = self.dice.below(SECOND);
                self.schedule(delay, WorldEvent::Boot { place });
            }
        }
    }

    /// Whether its disk has all that it ever promised to keep.
    fn is_sound(&self, place: usize) -> bool {
        !self.refused[place] && !self.wiped[place] && !self.members[place].gone
    }

    /// Those of all members that belong or run.
    fn present(&self) -> Vec<usize> {
        let belongs = |member: &&Member| {
            let place = member.place;
            let (voters, learners) = (&self.configuration.voters, &self.configuration.learners);
            !member.gone && (member.running.is_some() || voters.contains(&place) || learners.contains(&place))
        };
        self.members.iter().filter(belongs).map(|member| member.place).collect()
    }

    /// A machine for a member that is to be added. It is started when it belongs.
    fn new_machine(&mut self) -> usize {
        let place = self.members.len();
        let drift = self.scenario.drift_ppm;
        let drift = self.dice.between(0, 2 * drift) as i64 - drift as i64;
        self.members.push(Member::new(place, self.scenario.members.min(place), drift));
        self.options.push(self.usual.clone());
        self.held.push(VecDeque::new());
        self.crash_loops.push(0);
        self.damaged.push(None);
        self.to_damage.push(None);
        self.refused.push(false);
        self.wiped.push(false);
        self.watchers.push(Watcher::default());
        place
    }

    /// Somebody has carried out a change of members.
    fn members_changed(&mut self) {
        let before = std::mem::replace(&mut self.configuration, self.ledger.newest().clone());
        self.reconfigured_at = self.now;
        let after = self.configuration.clone();
        self.mark("members", [0; 4], format!("{after:?}"));
        for place in after.members() {
            if !before.members().contains(&place) {
                self.count(if after.voters.contains(&place) { Fault::AddVoter } else { Fault::AddLearner });
                self.arriving.take_if(|arriving| *arriving == place);
                let delay = self.dice.skewed(10 * MILLI, 3 * SECOND);
                self.schedule(delay, WorldEvent::Boot { place });
            } else if after.voters.contains(&place) && !before.voters.contains(&place) {
                self.count(Fault::Promote);
            }
        }
        for place in before.members() {
            if !after.members().contains(&place) {
                self.leaving.remove(&place);
                let replaced = self.replaced.remove(&place);
                self.count(if replaced { Fault::Replace } else { Fault::Remove });
                if replaced && self.phase == Phase::Faulty {
                    self.add_member(true);
                }
            }
        }
        if let Phase::Core(core) = self.phase.clone() {
            self.extend_core(core);
        }
    }

    /// Whether a removed member may still have to vote: as long as no majority of those who voted at some time after it has its
    /// removal on disk. The others may not know that it was committed, and ask for its vote as before; whoever takes its machine
    /// away then, takes away a voter.
    fn is_needed(&self, place: usize) -> bool {
        let configurations = &self.ledger.configurations;
        let voted = configurations.iter().rev().find(|(_, known)| known.voters.contains(&place));
        let Some((voted, _)) = voted else { return false };
        let Some((removed, _)) = configurations.range(voted + 1..).next() else { return false };
        // Whoever lost its disk after it said so does not ask anybody for a vote.
        let knows = |voter: &&usize| {
            self.wiped[**voter] || self.members[**voter].applied().is_some_and(|applied| applied >= *removed)
        };
        let settled = |after: &Configuration| after.voters.iter().filter(knows).count() >= after.quorum();
        !configurations.range(removed..).any(|(_, after)| settled(after))
    }

    /// Removed members that may still have to vote.
    fn needed(&self) -> Vec<usize> {
        let left = |place: &usize| !self.configuration.members().contains(place) && self.is_needed(*place);
        let all = self.members.iter().filter(|member| !member.gone && member.has_data());
        all.map(|member| member.place).filter(left).collect()
    }

    /// A removed member has stopped for good.
    fn retire(&mut self, place: usize) {
        if self.configuration.members().contains(&place) {
            return self.ledger.violated(format!("m{place} stops as if it were removed"));
        }
        if self.members[place].gone {
            return;
        }
        if self.is_needed(place) {
            return self.ledger.violated(format!("m{place} leaves while its vote may be needed"));
        }
        self.mark("retires", [place as u64, 0, 0, 0], String::new());
        self.take_down(place, Loss::Process);
        self.members[place].gone = true;
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
                Effect::Send(mut message) => {
                    let to = place_of(message.to);
                    if self.usual.wire {
                        let bytes = everwatch::peer::codec::to_wire(message).encode_to_vec();
                        let read = everwatchpb::RaftMessage::decode(&bytes[..]).expect("it was just written");
                        message = everwatch::peer::codec::from_wire(read).expect("members send what travels");
                    }
                    if self.losing.is_some_and(|loses| loses(self, place, &message)) {
                        self.mark("lost", [place as u64, to as u64, message.get_msg_type() as u64, 0], String::new());
                        continue;
                    }
                    self.trace_message(place, &message);
                    let mut arrivals = self.network.arrivals(place, to, self.now, &mut self.dice);
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
                    self.trace_outcome(call, &outcome);
                    if self.dice.chance(if self.phase == Phase::Faulty { 5 } else { 0 }) {
                        continue;
                    }
                    let delay = self.dice.skewed(MILLI / 10, 5 * MILLI);
                    let by = (place as u64 + 1, self.members[place].life);
                    self.schedule(delay, WorldEvent::AnswerArrives { call, outcome, by });
                }
                Effect::AskLessor { leader, call, request, deadline } => {
                    let lost = MemberEvent::LessorSaid { call, request: request.clone(), answer: None, deadline };
                    let ask = MemberEvent::AskLessor { origin: place, call, request, deadline };
                    self.between(place, leader, ask, lost, place);
                }
                Effect::AnswerForLessor { origin, call, request, answer, deadline } => {
                    let lost = MemberEvent::LessorSaid { call, request: request.clone(), answer: None, deadline };
                    let answer = MemberEvent::LessorSaid { call, request, answer, deadline };
                    self.between(place, origin, answer, lost, origin);
                }
                Effect::Watch { stream, message, watch } => {
                    if let Outgoing::Events(events) = &message {
                        self.shown(events.revision.0, place);
                    }
                    let Some(watch) = watch else { continue };
                    let delay = self.dice.skewed(MILLI / 10, 20 * MILLI);
                    let Some(known) = self.streams.get(&stream) else { continue };
                    let mut arrival = (self.now + delay).max(known.last_arrival + 1);
                    self.trace_watch(stream, &message);
                    let mut last_arrival = arrival;
                    for message in clients::watch_messages(message, self.usual.piece_bytes) {
                        last_arrival = arrival;
                        self.schedule(arrival - self.now, WorldEvent::WatchArrives { stream, watch, message });
                        arrival += 1 + self.dice.below(2 * MILLI);
                    }
                    self.streams.get_mut(&stream).expect("just looked at").last_arrival = last_arrival;
                }
                Effect::StreamEnded { stream } => self.end_stream_later(stream),
                Effect::AnswerQuestion { question, answer, table } => {
                    self.answer_travels(question, place, Heard::Said(answer), table);
                }
                Effect::Ask { to } => {
                    let question = Question { asker: place, life: self.members[place].life, number: 0 };
                    self.ask_another(question, to);
                }
                // Nobody refuses those who belong.
                Effect::Dial { others } if !self.configuration.members().contains(&place) => {
                    others.into_iter().for_each(|to| self.reaches(place, to, MemberEvent::Dialled { from: place }));
                }
                Effect::Dial { .. } => {}
                Effect::Refuse { to } => self.reaches(place, to, MemberEvent::Refused),
                Effect::Retired => self.retire(place),
                Effect::Note(text) => self.mark("note", [place as u64, 0, 0, 0], text),
            }
        }
    }

    /// What a member says to another belongs to the trace.
    fn trace_message(&mut self, from: usize, message: &Message) {
        let entries = &message.entries;
        let numbers = [
            (from as u64) << 32 | message.to,
            message.get_msg_type() as u64,
            message.term,
            message.log_term,
            message.index,
            message.commit,
            u64::from(message.reject) << 32 | entries.len() as u64,
            message.reject_hint,
        ];
        let mut hash = self.report.trace;
        for number in numbers {
            hash = hash_on(hash, &number.to_le_bytes());
        }
        hash = hash_on(hash, &message.context);
        self.report.trace = entries.iter().fold(hash, |hash, entry| hash_on(hash ^ entry.index, &entry.data));
    }

    /// What a client is told belongs to it.
    fn trace_text(&mut self, number: u64, text: std::fmt::Arguments<'_>) {
        let mut hash = Hashing(self.report.trace ^ number);
        std::fmt::Write::write_fmt(&mut hash, text).expect("hashing takes everything");
        self.report.trace = hash_on(hash.0, &[]);
    }

    /// What a call comes to belongs to it.
    fn trace_outcome(&mut self, call: u64, outcome: &Outcome) {
        let Outcome::Ok { revision, reply: Reply::Range { kvs, more, count } } = outcome else {
            return self.trace_text(call, format_args!("{outcome:?}"));
        };
        let mut hash = hash_on(self.report.trace ^ call ^ u64::from(*more), &revision.to_le_bytes());
        hash = hash_on(hash, &count.to_le_bytes());
        for kv in kvs {
            hash = hash_on(hash_on(hash ^ kv.mod_revision as u64, &kv.key), &kv.value);
        }
        self.report.trace = hash;
    }

    /// What a watcher is told belongs to it.
    fn trace_watch(&mut self, stream: u64, message: &Outgoing) {
        let Outgoing::Events(events) = message else { return self.trace_text(stream, format_args!("{message:?}")) };
        let mut hash = hash_on(self.report.trace ^ stream, &events.revision.0.to_le_bytes());
        for event in events.events.as_slice() {
            hash = hash_on(hash, event);
        }
        self.report.trace = hash;
    }

    /// Something from member to member that may get lost.
    fn reaches(&mut self, from: usize, to: usize, event: MemberEvent) {
        if let Some(delay) = self.network.arrivals(from, to, self.now, &mut self.dice).first() {
            let life = self.members[to].life;
            self.schedule(*delay, WorldEvent::Member { place: to, life, event });
        }
    }

    /// A question from member to member, or the news that it got lost.
    fn between(&mut self, from: usize, to: usize, event: MemberEvent, lost: MemberEvent, hears: usize) {
        let arrives = self.network.arrivals(from, to, self.now, &mut self.dice).first().copied();
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
        // Whoever committed it had carried out all changes of members before it but for the last, or that too; and what was
        // durable then must have become so among those who came later.
        let configurations = &self.ledger.configurations;
        let from = configurations.range(..=index).rev().nth(1).map_or(0, |(from, _)| *from);
        let holds = |voters: &[usize]| {
            let holders = voters.iter().filter(|place| self.members[**place].holds(index, term)).count();
            (holders > voters.len() / 2, holders)
        };
        if configurations.range(from..).any(|(_, configuration)| holds(&configuration.voters).0) {
            return;
        }
        let holders = holds(&self.configuration.voters).1;
        self.ledger.violated(format!(
            "durability: m{by} shows revision {revision} but entry {index} of term {term} is durable on {holders} members"
        ));
    }

    /// One of those that belong or run.
    fn any(&mut self) -> usize {
        let present = self.present();
        self.dice.pick(&present)
    }

    fn ask(&mut self, client: u32) {
        if !self.asking {
            return;
        }
        let again = self.knowledge.again.remove(&client).filter(|_| self.dice.chance(self.scenario.retry_per_mille));
        let World { dice, knowledge, gossip, scenario, .. } = self;
        let (by, request) = match again {
            Some(request) => (By::Nobody, request),
            None if scenario.managers > 0 => gossip.request(dice, client, scenario.managers, knowledge, &scenario.mix),
            None => (By::Nobody, knowledge.request(dice, client, &scenario.mix)),
        };
        let present = self.present();
        let place = if self.dice.chance(700) { present[client as usize % present.len()] } else { self.any() };
        let patience = self.dice.pick(&[500, 2000, 7000]) * MILLI;
        self.issue(client, place, by, request, patience);
    }

    /// A request sets out. Returns its place in the history.
    fn issue(&mut self, client: u32, place: usize, by: By, request: Request, patience: u64) -> usize {
        let op = Op { client, call: self.now, request: request.clone(), ..Op::default() };
        self.history.ops.push(op);
        let op = self.history.ops.len() - 1;
        self.calls_made += 1;
        let call = self.calls_made;
        self.mark("call", [client.into(), call, place as u64, 0], String::new());
        self.trace_text(call, format_args!("{request:?}"));
        self.calls.insert(call, Call { client, op });
        let delay = self.dice.skewed(MILLI / 10, 5 * MILLI);
        let deadline = self.now + patience;
        self.schedule(delay, WorldEvent::CallArrives { call, place, by, request, deadline });
        self.schedule(patience, WorldEvent::CallEnds { call });
        op
    }

    fn answered(&mut self, call: u64, mut outcome: Outcome, by: Option<(u64, u64)>) {
        let Some(Call { client, op }) = self.calls.remove(&call) else { return };
        let revision = match &outcome {
            Outcome::Ok { revision, .. } => *revision as u64,
            Outcome::Refused(_) => 1 << 62,
            Outcome::Unknown => 0,
        };
        self.mark("answer", [client.into(), call, revision, 0], String::new());
        let op = &mut self.history.ops[op];
        self.knowledge.learn(&op.request, &outcome);
        self.gossip.learn(&mut self.dice, client, &op.request, &outcome);
        if let Outcome::Ok { reply: Reply::Login { token }, .. } = &mut outcome {
            token.clear();
        }
        let known = !matches!(outcome, Outcome::Unknown);
        if !known {
            self.knowledge.again.insert(client, op.request.clone());
        }
        op.ret = (by.is_some() && known).then_some(self.now);
        (op.member, op.life) = by.unwrap_or_default();
        op.outcome = outcome;
        if client < self.scenario.kv_clients {
            let pause = self.dice.skewed(MILLI, self.scenario.think);
            self.schedule(pause, WorldEvent::Client { client });
        }
    }

    fn watcher(&mut self, client: u32) {
        let pause = self.dice.skewed(5 * MILLI, 3 * SECOND);
        self.schedule(pause, WorldEvent::Watcher { client });
        let streams = &self.watchers[client as usize].streams;
        let more = streams.len() < STREAMS_MAX && self.asking && self.dice.chance(50);
        if streams.is_empty() || more {
            let place = self.any();
            return self.open_stream(client, place);
        }
        let token = streams[self.dice.below(streams.len() as u64) as usize];
        let (place, life) = (self.streams[&token].place, self.streams[&token].life);
        let mut what = self.dice.below(if self.asking { 15 } else { 2 });
        // Where rights change, what waits for those who do not read is what matters, and what is said of how far they are.
        if self.scenario.managers > 0 && what > 7 {
            what = self.dice.pick(&[0, 3, 6, 6]);
        }
        let event = match what {
            0 => MemberEvent::AskProgress { stream: token },
            1 => MemberEvent::TickProgress { stream: token },
            2 => {
                let open = self.open_watches(token);
                if open.is_empty() {
                    return;
                }
                // Now and then all of them, in a storm.
                let first = self.dice.below(open.len() as u64) as usize;
                let last = if self.dice.chance(100) { open.len() } else { first + 1 };
                for watch in open[first..last].iter().copied() {
                    let delay = self.dice.below(2 * MILLI);
                    let event = MemberEvent::Cancel { stream: token, watch };
                    self.schedule(delay, WorldEvent::Member { place, life, event });
                }
                return;
            }
            3..6 if self.open_watches(token).len() < WATCHES_MAX => {
                let count = if self.dice.chance(60) { self.dice.between(5, 30) } else { 1 };
                let mut watches = Vec::new();
                for _ in 0..count {
                    let watch = self.wanted(client, place);
                    let watch = WatchRecord { stream: token, ..watch };
                    watches.push((self.history.watches.len(), clients::spec(&watch)));
                    self.history.watches.push(watch);
                }
                let stream = self.streams.get_mut(&token).expect("it is open");
                stream.watches.extend(watches.iter().map(|(watch, _)| *watch));
                MemberEvent::Open { stream: token, by: stream.by.clone(), watches }
            }
            6 => {
                // Some never read again. Whose rights change is to hear of that, too.
                let most = if self.phase == Phase::Faulty { 8 } else { 1 };
                let never = self.phase == Phase::Faulty && self.scenario.managers == 0 && self.dice.chance(150);
                let quiet = if never { 3600 * SECOND } else { self.dice.below(most * SECOND) };
                if self.scenario.managers > 0 {
                    let event = MemberEvent::AskProgress { stream: token };
                    self.schedule(quiet / 3, WorldEvent::Member { place, life, event });
                }
                MemberEvent::Pace { stream: token, until: self.now + quiet }
            }
            7 => {
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
            // Nothing follows the end.
            let over = |message: &WatchMessage| is_last(message) || *message == WatchMessage::Ended;
            messages.last().is_some_and(|(_, message)| !over(message))
        };
        self.streams[&token].watches.iter().filter(open).copied().collect()
    }

    /// What a watch client asks for.
    fn wanted(&mut self, client: u32, place: usize) -> WatchRecord {
        let record = self.knowledge.watch(&mut self.dice, client, place as u64, self.scenario.mix.keys);
        match self.scenario.managers > 0 {
            true => match self.gossip.watches(&mut self.dice) {
                Some((key, end)) => WatchRecord { key, end, ..record },
                None => record,
            },
            false => record,
        }
    }

    fn open_stream(&mut self, client: u32, place: usize) {
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
            let mut record = self.wanted(client, place);
            if client >= self.scenario.watch_clients {
                // The probe's see everything from now on.
                let (key, end) = (vec![0], vec![0]);
                record = WatchRecord { client, member: place as u64, key, end, ..WatchRecord::default() };
            }
            records.push(record);
        }
        records.iter_mut().for_each(|record| record.stream = token);
        let first = self.history.watches.len();
        let watches: Vec<_> =
            records.iter().enumerate().map(|(n, record)| (first + n, clients::spec(record))).collect();
        self.history.watches.extend(records);
        // The probe's are a member's own, and so are all where users never count.
        let by = match self.scenario.managers > 0 && client < self.scenario.watch_clients {
            true => self.gossip.watches_as(&mut self.dice),
            false => By::Member,
        };
        let stream = Stream {
            client,
            by: by.clone(),
            place,
            life,
            watches: watches.iter().map(|(watch, _)| *watch).collect(),
            last_arrival: self.now,
            ended: false,
        };
        self.streams.insert(token, stream);
        self.watchers[client as usize].streams.push(token);
        let delay = self.dice.below(5 * MILLI);
        self.schedule(
            delay,
            WorldEvent::Member { place, life, event: MemberEvent::Open { stream: token, by, watches } },
        );
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
            if !messages.last().is_some_and(|(_, message)| is_last(message)) {
                messages.push((self.now, WatchMessage::Ended));
            }
        }
        self.watchers[client].streams.retain(|open| *open != token);
        // Most are continued elsewhere.
        for watch in open {
            if self.dice.chance(850) {
                self.watchers[client].broken.push(watch);
            }
        }
    }
}

/// Whether nothing follows for that watch.
fn is_last(message: &WatchMessage) -> bool {
    use WatchMessage::{Canceled, Denied, Refused, Revoked};
    matches!(message, Refused | Denied | Revoked | Canceled { .. })
}

/// Where a watch goes on.
fn next_revision(record: &WatchRecord) -> i64 {
    let mut next = record.start;
    for (_, message) in &record.messages {
        match message {
            WatchMessage::Created { revision } if record.start == 0 => next = next.max(revision + 1),
            // There may be more of the last revision of a piece.
            WatchMessage::Events { fragment, events, .. } => {
                let seen = events.last().map_or(0, |event| event.kv.mod_revision + i64::from(!fragment));
                next = next.max(seen);
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
        WatchMessage::Refused
        | WatchMessage::Denied
        | WatchMessage::Revoked
        | WatchMessage::Canceled { .. }
        | WatchMessage::Ended => 0,
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
        MemberEvent::Hear => ("hear", [at, 0, 0, 0]),
        MemberEvent::Message(m) => {
            ("message", [at, place_of(m.from) as u64, m.get_msg_type() as u64, m.term << 32 | m.index])
        }
        MemberEvent::SnapshotOffered { from, .. } => ("snapshot offered", [at, *from as u64, 0, 0]),
        MemberEvent::SnapshotWritten { from, .. } => ("snapshot written", [at, *from as u64, 0, 0]),
        MemberEvent::SnapshotSent { to, ok } => ("snapshot sent", [at, place_of(to.0) as u64, u64::from(*ok), 0]),
        MemberEvent::SnapshotNotSent { to } => ("snapshot not sent", [at, place_of(to.0) as u64, 0, 0]),
        MemberEvent::Call { call, .. } => ("request", [at, *call, 0, 0]),
        MemberEvent::ReadOn { call } => ("read on", [at, *call, 0, 0]),
        MemberEvent::AskLeader { call, .. } => ("ask leader", [at, *call, 0, 0]),
        MemberEvent::AskLessor { call, .. } => ("ask lessor", [at, *call, 0, 0]),
        MemberEvent::LessorSaid { call, .. } => ("lessor said", [at, *call, 0, 0]),
        MemberEvent::Open { stream, .. } => ("open", [at, *stream, 0, 0]),
        MemberEvent::Cancel { stream, watch } => ("cancel", [at, *stream, *watch as u64, 0]),
        MemberEvent::AskProgress { stream } => ("ask progress", [at, *stream, 0, 0]),
        MemberEvent::TickProgress { stream } => ("tick progress", [at, *stream, 0, 0]),
        MemberEvent::CloseStream { stream } => ("close", [at, *stream, 0, 0]),
        MemberEvent::Pace { stream, until } => ("pace", [at, *stream, *until, 0]),
        MemberEvent::HandOver => ("hand over", [at, 0, 0, 0]),
        MemberEvent::Asked { question } => ("asked", [at, question.asker as u64, question.number, 0]),
        MemberEvent::Reconfigure { .. } => ("reconfigure", [at, 0, 0, 0]),
        MemberEvent::Refused => ("is refused", [at, 0, 0, 0]),
        MemberEvent::Dial => ("dial", [at, 0, 0, 0]),
        MemberEvent::Dialled { from } => ("dialled", [at, *from as u64, 0, 0]),
        MemberEvent::Known { by, .. } => ("removal known", [at, *by as u64, 0, 0]),
        MemberEvent::Retire => ("retire", [at, 0, 0, 0]),
    }
}
