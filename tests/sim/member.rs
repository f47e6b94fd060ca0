//! One member: the same structs as the server's, pumped by the world instead of threads.
//!
//! What the server's core does in one place is done here in the same order and with the same functions (`raft_loop::turn`,
//! `apply_loop::turn`, `lease_loop::turn`, `watch_loop::turn`, and the queues of proposals, waiters and reads). What its threads
//! do, an event of the world does later: a write to the log becomes durable, and its messages leave, when `LogDone` comes; a
//! commit of the backend counts when `BackendDone` comes. A crash in between loses them, or half of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use everwatch::lease::{Lessor, Renewed};
use everwatch::mvcc::Store;
use everwatch::pb::everwatchpb::lease_remaining::Remaining;
use everwatch::pb::everwatchpb::{self, MemberAttributes, MemberRecord};
use everwatch::raft::{
    self, ConfState, Entry, Input, LogStart, Message, MessageType, Node, NodeConfig, Rejected, Role, SnapshotPoint,
};
use everwatch::server::apply_loop::{self, Proposer};
use everwatch::server::error::Error;
use everwatch::server::watch_loop::{self, LeaderMonitor, StoreAccess};
use everwatch::server::{lease_loop, raft_loop};
use everwatch::state::StateMachine;
use everwatch::state::applied::{LeaseChange, Reply};
use everwatch::state::command::{Command, Kind, LeaseRemaining, encode_command};
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket, Reader};
use everwatch::storage::schema;
use everwatch::storage::wal::{Append, Base, HardState, Wal, WalOptions};
use everwatch::types::{ClusterId, Index, LeaseId, MemberId, Term};
use everwatch::watch::{End, Hub, Next, Outbox, Outgoing, Spec, StreamId};
use prost::Message as _;
use tokio::sync::oneshot;

use crate::checks::{Outcome, Request};
use crate::clients;
use crate::dice::{Dice, hash_on};
use crate::disk::{Loss, SimDisk};
use crate::waiting::{Pending, Reads, Waiters};
use crate::world::{Ledger, MILLI, Options};

const CLUSTER: ClusterId = ClusterId(7);
const FOUNDING: Base = Base { index: Index(1), term: Term(1) };
/// How often the leader's clock ticks, on a clock that runs right.
pub const TICK: u64 = 100 * MILLI;
const ELECTION: Duration = Duration::from_secs(1);
/// How long a client's request may wait on a member.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// As in the server's core.
const COMPACTION_STEPS_MAX: u32 = 10;

/// The id of the member at a place.
pub fn id_of(place: usize) -> MemberId {
    MemberId(0x1000 + place as u64)
}

/// The place of a member.
pub fn place_of(id: u64) -> usize {
    (id - 0x1000) as usize
}

/// Something that happens to a member.
pub enum MemberEvent {
    Tick,
    Turn,
    LogDone,
    BackendDue(u64),
    BackendDone,
    CatchUp,
    Message(Message),
    /// Rows have arrived over the network.
    SnapshotOffered {
        from: usize,
        message: Message,
        rows: Arc<dyn Reader>,
    },
    /// They are durable in a file of their own.
    SnapshotWritten {
        from: usize,
        message: Message,
    },
    SnapshotSent {
        to: MemberId,
        ok: bool,
    },
    Call {
        call: u64,
        request: Request,
        deadline: u64,
    },
    /// A range goes on with its next slice.
    ReadOn {
        call: u64,
    },
    /// A follower asks on behalf of a client.
    RenewFor {
        origin: usize,
        call: u64,
        id: i64,
        deadline: u64,
    },
    /// The leader has answered: seconds; 0, there is no such lease; nothing, ask again.
    Renewed {
        call: u64,
        id: i64,
        ttl: Option<i64>,
        deadline: u64,
    },
    Open {
        stream: u64,
        watches: Vec<(usize, Spec)>,
    },
    Cancel {
        stream: u64,
        watch: usize,
    },
    AskProgress {
        stream: u64,
    },
    TickProgress {
        stream: u64,
    },
    CloseStream {
        stream: u64,
    },
    /// The client of a stream reads again at this time.
    Pace {
        stream: u64,
        until: u64,
    },
    HandOver,
}

/// Something a member does to the world.
pub enum Effect {
    Send(Message),
    SendSnapshot { to: MemberId, message: Message, rows: Arc<dyn Reader> },
    SnapshotAnswer { to: usize, ok: bool },
    Later { delay: u64, event: MemberEvent },
    Answer { call: u64, outcome: Outcome },
    AskLeader { leader: usize, call: u64, id: i64, deadline: u64 },
    AnswerRenewal { origin: usize, call: u64, id: i64, ttl: Option<i64>, deadline: u64 },
    Watch { stream: u64, message: Outgoing, watch: Option<usize> },
    StreamEnded { stream: u64 },
    Note(String),
}

/// What a member works with besides itself.
pub struct Context<'a> {
    pub now: u64,
    pub dice: &'a mut Dice,
    pub options: &'a Options,
    pub effects: &'a mut Vec<Effect>,
    pub ledger: &'a mut Ledger,
}

impl Context<'_> {
    fn later(&mut self, delay: u64, event: MemberEvent) {
        self.effects.push(Effect::Later { delay, event });
    }
}

/// Why a member stopped, in words.
#[derive(Debug)]
pub struct Death(pub String);

impl From<everwatch::storage::Error> for Death {
    fn from(error: everwatch::storage::Error) -> Death {
        Death(error.to_string())
    }
}

/// A member and its disk. The disk outlives its lives.
pub struct Member {
    pub place: usize,
    pub disk: SimDisk,
    /// The backend as a crash leaves it.
    pub image: Arc<MemoryBackend>,
    /// Complete snapshots, by index.
    snapshots: BTreeMap<u64, Arc<MemoryBackend>>,
    /// Entries that are durable in its log: index and term. And where the log starts.
    pub durable: BTreeMap<u64, u64>,
    pub durable_base: u64,
    /// Counts its lives; events of an earlier one come to nothing.
    pub life: u64,
    pub paused_until: u64,
    /// Its clock gains so many parts per million.
    pub drift_ppm: i64,
    pub running: Option<Box<Running>>,
}

/// What a power cut takes.
pub struct Running {
    pub node: Node,
    wal: Wal,
    state: Arc<RwLock<StateMachine>>,
    hub: Arc<Mutex<Hub>>,
    lessor: Lessor,
    boot: u64,
    born: u64,
    pending: Pending,
    waiters: Waiters,
    reads: Reads,
    commands: u64,
    committed: VecDeque<Entry>,
    installing: bool,
    persisted: u64,
    offered: Option<u64>,
    /// A received snapshot is being written or waits to be settled.
    place_taken: bool,
    receiving: Option<(u64, MemoryBackend)>,
    sending: BTreeSet<u64>,
    promoted: Option<Term>,
    role: Option<Role>,
    monitor: LeaderMonitor,
    ticks: u64,
    published_at: Option<u64>,
    compaction_steps: u32,
    turn_due: bool,
    catch_up_due: bool,
    /// Everything carried out, hashed.
    chain: u64,
    // The log thread.
    log_queue: Vec<LogJob>,
    log_busy: Option<Vec<LogJob>>,
    // The backend thread.
    backend_queue: VecDeque<BackendJob>,
    backend_busy: Option<BackendWork>,
    gathered: Batch,
    due: Option<u64>,
    due_missed: bool,
    dues: u64,
    newest: Arc<dyn Reader>,
    // Clients.
    calls: Vec<Call>,
    scans: BTreeMap<u64, Scanning>,
    renewals: Vec<Renewal>,
    streams: BTreeMap<u64, Stream>,
}

enum LogJob {
    Write(raft_loop::LogWrite),
    Truncate(Base),
}

enum BackendJob {
    Commit(Batch),
    Flush,
    Discard(u64),
    Install { number: u64, index: u64 },
}

enum BackendWork {
    Commit(Batch),
    Install { number: u64, index: u64 },
}

struct Call {
    call: u64,
    request: Request,
    waits: Waits,
}

enum Waits {
    Reply(oneshot::Receiver<Result<Reply, Error>>),
    Read(oneshot::Receiver<Result<(), Error>>),
}

struct Scanning {
    request: Request,
    scan: everwatch::mvcc::Scan,
}

/// A renewal on the leader; see `Handle::renew_all`.
struct Renewal {
    origin: Option<usize>,
    call: u64,
    id: i64,
    deadline: u64,
    term: Term,
    caught_up: bool,
    answer: Option<i64>,
    again: bool,
    waits: Waits,
}

struct Stream {
    id: StreamId,
    outbox: Outbox,
    /// Answers to creations come in their order.
    creating: VecDeque<usize>,
    watches: BTreeMap<i64, usize>,
    quiet_until: u64,
}

fn lock(hub: &Mutex<Hub>) -> std::sync::MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(reader: &dyn Reader, row: &[u8]) -> Result<u64, Death> {
    let value = reader.get(Bucket::Meta, row)?;
    value.as_deref().and_then(schema::read_u64).ok_or_else(|| Death(format!("{} is missing", row.escape_ascii())))
}

fn conf_state(reader: &dyn Reader) -> Result<ConfState, Death> {
    let row = reader.get(Bucket::Meta, schema::CONF_STATE)?.unwrap_or_default();
    let stored = everwatchpb::ConfState::decode(row).map_err(|error| Death(error.to_string()))?;
    Ok(ConfState { voters: stored.voters, learners: stored.learners, ..ConfState::default() })
}

fn point(reader: &dyn Reader) -> Result<SnapshotPoint, Death> {
    Ok(SnapshotPoint {
        index: Index(number(reader, schema::APPLIED_INDEX)?),
        term: Term(number(reader, schema::APPLIED_TERM)?),
        conf_state: conf_state(reader)?,
    })
}

/// The state behind its lock, with something that happens whenever nobody holds it.
struct Access<'a> {
    state: &'a RwLock<StateMachine>,
    meanwhile: RefCell<&'a mut dyn FnMut()>,
}

impl StoreAccess for Access<'_> {
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        (self.meanwhile.borrow_mut())();
        let seen = look(&self.state.read().unwrap_or_else(PoisonError::into_inner).kv);
        (self.meanwhile.borrow_mut())();
        seen
    }
}

impl Member {
    pub fn new(place: usize, members: usize, drift_ppm: i64) -> Member {
        let image = Arc::new(MemoryBackend::new());
        let records: Vec<_> = (0..members)
            .map(|place| MemberRecord { id: id_of(place).0, name: format!("m{place}"), ..MemberRecord::default() })
            .collect();
        let voters = records.iter().map(|record| record.id).collect();
        let conf_state = everwatchpb::ConfState { voters, ..Default::default() };
        image.commit(&StateMachine::founding_rows(&records, &conf_state)).expect("memory takes it");
        Member {
            place,
            disk: SimDisk::default(),
            image,
            snapshots: BTreeMap::new(),
            durable: BTreeMap::new(),
            durable_base: 0,
            life: 0,
            paused_until: 0,
            drift_ppm,
            running: None,
        }
    }

    pub fn id(&self) -> MemberId {
        id_of(self.place)
    }

    /// Whether an entry is durable here, in the log or below it.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        index <= self.durable_base || self.durable.get(&index) == Some(&term)
    }

    /// It dies.
    pub fn crash(&mut self, loss: Loss, dice: &mut Dice) {
        self.life += 1;
        self.paused_until = 0;
        let Some(running) = self.running.take() else { return };
        // What the backend was about to do is done or not.
        match running.backend_busy {
            Some(BackendWork::Commit(batch)) if dice.chance(500) => {
                self.image.commit(&batch).expect("memory takes it");
            }
            Some(BackendWork::Install { index, .. }) if dice.chance(500) => {
                self.image = self.snapshots.remove(&index).expect("it was complete");
            }
            _ => {}
        }
        drop(running.wal);
        self.disk.crash(loss, dice);
    }

    /// It starts from what its disk has, as the server's bootstrap does.
    pub fn boot(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        self.life += 1;
        let options = WalOptions { segment_bytes: cx.options.segment_bytes, identity: (CLUSTER, self.id()) };
        let (mut wal, mut log) = Wal::open(Arc::new(self.disk.clone()), PathBuf::from("/wal"), options)?;
        let applied = number(&*self.image.reader()?, schema::APPLIED_INDEX)?;
        if log.base == Base::default() && log.hard_state.is_none() && log.entries.is_empty() {
            if applied != FOUNDING.index.0 {
                return Err(Death(format!("the log is empty but the state is at {applied}")));
            }
            let hard_state = HardState { term: FOUNDING.term, vote: MemberId(0), commit: FOUNDING.index };
            wal.append(&Append { reset: Some(FOUNDING), entries: &[], hard_state: Some(&hard_state) })?;
            wal.sync()?;
            (log.base, log.hard_state) = (FOUNDING, Some(hard_state));
        }
        for (index, rows) in std::mem::take(&mut self.snapshots) {
            if index == log.base.index.0 && index > applied {
                cx.effects.push(Effect::Note(format!("adopts the snapshot {index} at its start")));
                self.image = rows;
            }
        }
        self.durable = log.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect();
        self.durable_base = log.base.index.0;

        let reader = self.image.reader()?;
        let state = StateMachine::open(reader.clone())?;
        let entries = log.entries.into_iter();
        let hard_state = log.hard_state.map(|state| {
            let mut out = raft::HardState::default();
            (out.term, out.vote, out.commit) = (state.term.0, state.vote.0, state.commit.0);
            out
        });
        let boot = cx.dice.next();
        let mut node = Node::new(NodeConfig {
            id: self.id(),
            election_ticks: 10,
            heartbeat_ticks: 1,
            applied: state.applied(),
            seed: boot,
            boot,
            pre_vote: cx.options.pre_vote,
            log: LogStart {
                base: (log.base.index, log.base.term),
                conf_state: conf_state(&*reader)?,
                hard_state,
                entries: entries.map(|entry| raft_loop::from_log(entry).expect("raft wrote it")).collect(),
            },
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        })
        .map_err(|error| Death(error.to_string()))?;
        node.handle(Input::SnapshotReady(point(&*reader)?)).ok();
        if node.voters() == [self.id()] {
            node.handle(Input::Campaign).ok();
        }
        let mut state = state;
        state.kv.limit_recent(cx.options.recent_bytes);
        let chain = cx.ledger.chain_at(state.applied().0);
        let hub = Hub::new(state.kv.revision(), state.kv.compacted());
        let note = format!(
            "starts: applied {} revision {} log {}..{}",
            state.applied(),
            state.kv.revision(),
            log.base.index,
            wal.last()
        );
        cx.effects.push(Effect::Note(note));
        self.running = Some(Box::new(Running {
            node,
            wal,
            state: Arc::new(RwLock::new(state)),
            hub: Arc::new(Mutex::new(hub)),
            lessor: Lessor::default(),
            boot,
            born: cx.now,
            pending: Pending::default(),
            waiters: Waiters::default(),
            reads: Reads::default(),
            commands: 1,
            committed: VecDeque::new(),
            installing: false,
            persisted: 0,
            offered: None,
            place_taken: false,
            receiving: None,
            sending: BTreeSet::new(),
            promoted: None,
            role: None,
            monitor: LeaderMonitor::default(),
            ticks: 0,
            published_at: None,
            compaction_steps: 0,
            turn_due: true,
            catch_up_due: false,
            chain,
            log_queue: Vec::new(),
            log_busy: None,
            backend_queue: VecDeque::new(),
            backend_busy: None,
            gathered: Batch::default(),
            due: None,
            due_missed: false,
            dues: 0,
            newest: reader,
            calls: Vec::new(),
            scans: BTreeMap::new(),
            renewals: Vec::new(),
            streams: BTreeMap::new(),
        }));
        cx.later(0, MemberEvent::Turn);
        let first = cx.dice.below(TICK);
        cx.later(first, MemberEvent::Tick);
        Ok(())
    }

    /// Something happens to it.
    pub fn handle(&mut self, event: MemberEvent, cx: &mut Context<'_>) -> Result<(), Death> {
        if self.running.is_none() {
            return Ok(());
        }
        let now = self.local_now(cx.now);
        let id = self.id();
        let place = self.place;
        let was_turn = matches!(event, MemberEvent::Turn);
        let running = self.running.as_mut().expect("looked at above");
        match event {
            MemberEvent::Tick => {
                let period = TICK as i64 - TICK as i64 * self.drift_ppm / 1_000_000;
                cx.later(period as u64, MemberEvent::Tick);
                running.tick(id, now)?;
            }
            MemberEvent::Turn => {
                running.turn_due = false;
                self.turn(cx)?;
            }
            MemberEvent::LogDone => self.log_done(cx)?,
            MemberEvent::BackendDue(due) => {
                if running.due == Some(due) {
                    running.due_missed = true;
                    running.pump_backend(&mut self.snapshots, cx);
                }
            }
            MemberEvent::BackendDone => self.backend_done(cx)?,
            MemberEvent::CatchUp => {
                running.catch_up_due = false;
                self.catch_up(cx)?;
            }
            MemberEvent::Message(message) => running.tell(Input::Message(message))?,
            MemberEvent::SnapshotOffered { from, message, rows } => {
                if running.place_taken {
                    cx.effects.push(Effect::SnapshotAnswer { to: from, ok: false });
                } else {
                    running.place_taken = true;
                    let index = message.get_snapshot().get_metadata().index;
                    let mut batch = Batch::default();
                    for bucket in Bucket::ALL {
                        rows.scan(bucket, &[], None, &mut |key, value| {
                            batch.put(bucket, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                            true
                        })?;
                    }
                    let backend = MemoryBackend::new();
                    backend.commit(&batch)?;
                    // Complete only when it is reported: until then a crash leaves nothing that counts.
                    let delay = cx.options.disk_delay(cx.dice);
                    running.receiving = Some((index, backend));
                    cx.later(delay, MemberEvent::SnapshotWritten { from, message });
                }
            }
            MemberEvent::SnapshotWritten { from, message } => {
                let index = message.get_snapshot().get_metadata().index;
                if let Some((_, backend)) = running.receiving.take_if(|(receiving, _)| *receiving == index) {
                    self.snapshots.insert(index, Arc::new(backend));
                    running.offered = Some(index);
                    running.tell(Input::Message(message))?;
                    cx.effects.push(Effect::SnapshotAnswer { to: from, ok: true });
                }
            }
            MemberEvent::SnapshotSent { to, ok } => {
                running.sending.remove(&to.0);
                running.tell(Input::SnapshotStatus { to, ok })?;
            }
            MemberEvent::Call { call, request, deadline } => running.call(place, call, request, deadline, now, cx)?,
            MemberEvent::ReadOn { call } => running.read_on(call, cx)?,
            MemberEvent::RenewFor { origin, call, id, deadline } => {
                running.renew(Some(origin), call, id, deadline, now, cx);
            }
            MemberEvent::Renewed { call, id, ttl, deadline } => running.renewed(call, id, ttl, deadline, cx),
            MemberEvent::Open { stream, watches } => {
                let mut hub = lock(&running.hub);
                let entry = running.streams.entry(stream).or_insert_with(|| {
                    let (id, outbox) = hub.open_stream();
                    let (creating, watches) = (VecDeque::new(), BTreeMap::new());
                    Stream { id, outbox, creating, watches, quiet_until: 0 }
                });
                for (watch, spec) in watches {
                    entry.creating.push_back(watch);
                    hub.create(entry.id, spec);
                }
            }
            MemberEvent::Cancel { stream, watch } => {
                if let Some(stream) = running.streams.get(&stream)
                    && let Some((id, _)) = stream.watches.iter().find(|(_, known)| **known == watch)
                {
                    lock(&running.hub).cancel(stream.id, *id);
                }
            }
            MemberEvent::AskProgress { stream } => {
                if let Some(stream) = running.streams.get(&stream) {
                    lock(&running.hub).progress(stream.id);
                }
            }
            MemberEvent::TickProgress { stream } => {
                if let Some(stream) = running.streams.get(&stream) {
                    lock(&running.hub).tick_progress(stream.id);
                }
            }
            MemberEvent::CloseStream { stream } => {
                if let Some(stream) = running.streams.remove(&stream) {
                    lock(&running.hub).close_stream(stream.id);
                }
            }
            MemberEvent::Pace { stream, until } => {
                if let Some(stream) = running.streams.get_mut(&stream) {
                    stream.quiet_until = until;
                }
            }
            MemberEvent::HandOver => {
                let others = running.node.peers().into_iter().filter(|peer| peer.id != id);
                let heir = others.filter(|peer| !peer.learner && peer.active).max_by_key(|peer| peer.matched);
                if let Some(heir) = heir.filter(|_| running.node.is_leader()) {
                    running.tell(Input::TransferLeader(heir.id))?;
                }
            }
        }
        let now = self.local_now(cx.now);
        let running = self.running.as_mut().expect("nobody took it");
        running.finish_calls(now, cx)?;
        running.drain_streams(cx);
        running.schedule(was_turn, cx);
        Ok(())
    }

    fn local_now(&self, now: u64) -> Duration {
        let age = now - self.running.as_ref().map_or(now, |running| running.born);
        Duration::from_nanos((age as i64 + age as i64 / 1000 * self.drift_ppm / 1000) as u64)
    }

    /// `Core::turn`.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let now = self.local_now(cx.now);
        let id = self.id();
        let running = self.running.as_mut().expect("the caller looked");
        running.propose_pending(id);
        {
            let Running { node, reads, .. } = &mut **running;
            reads.ask(now, || {
                node.leader()?;
                let context = node.fresh_read();
                node.handle(Input::Read(context)).ok().map(|()| context)
            });
        }
        loop {
            let turn = raft_loop::turn(&mut running.node);
            let progress = !turn.writes.is_empty();
            running.send(turn.messages, cx)?;
            for write in turn.writes {
                if write.reset.is_some() {
                    running.installing = true;
                    running.committed.clear();
                }
                running.log_queue.push(LogJob::Write(write));
            }
            for (context, index) in turn.reads {
                running.reads.confirm(&context, index);
            }
            if let Some(role) = turn.role {
                running.role_changed(role, now, cx);
            }
            running.committed.extend(turn.committed);
            let portion = cx.dice.between(1, cx.options.apply_portion) as usize;
            running.apply(portion, id, now, cx)?;
            if !progress {
                break;
            }
        }
        if !running.installing
            && let Some(index) = running.offered.take()
        {
            running.backend_queue.push_back(BackendJob::Discard(index));
        }
        let applied = running.node.applied();
        running.reads.applied(applied);
        running.compact(cx)?;
        running.start_log(cx)?;
        running.pump_backend(&mut self.snapshots, cx);
        Ok(())
    }

    /// What the log thread does when its sync returns.
    fn log_done(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let running = self.running.as_mut().expect("the caller looked");
        let Some(batch) = running.log_busy.take() else { return Ok(()) };
        let (mut writes, mut truncate) = (Vec::new(), None);
        for job in batch {
            match job {
                LogJob::Write(write) => writes.push(write),
                LogJob::Truncate(base) => truncate = Some(base),
            }
        }
        if writes.iter().any(|write| write.must_sync || write.reset.is_some()) {
            running.wal.sync()?;
            for write in &writes {
                if let Some(base) = write.reset {
                    self.durable.clear();
                    self.durable_base = base.index.0;
                }
                if let Some(first) = write.entries.first() {
                    self.durable.split_off(&first.index.0);
                }
                self.durable.extend(write.entries.iter().map(|entry| (entry.index.0, entry.term.0)));
            }
        }
        let (mut persisted, mut messages) = (None, Vec::new());
        for write in writes {
            messages.extend(write.then_send);
            match write.reset {
                Some(base) => {
                    let install = BackendJob::Install { number: write.number, index: base.index.0 };
                    running.backend_queue.push_back(install);
                }
                None => persisted = Some(write.number),
            }
        }
        running.send(messages, cx)?;
        if let Some(number) = persisted {
            if running.installing {
                running.persisted = number;
            } else {
                running.tell(Input::Persisted { number })?;
            }
        }
        if let Some(base) = truncate {
            running.wal.truncate_front(base)?;
        }
        // As in the server: if there is no room, the append that needs it will say so.
        let _ = running.wal.prepare();
        running.start_log(cx)?;
        running.pump_backend(&mut self.snapshots, cx);
        Ok(())
    }

    /// What the backend thread does when its commit returns, and the core when it hears of it.
    fn backend_done(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let running = self.running.as_mut().expect("the caller looked");
        match running.backend_busy.take() {
            Some(BackendWork::Commit(batch)) => {
                self.image.commit(&batch)?;
                let reader = self.image.reader()?;
                running.newest = reader.clone();
                running.compaction_steps = 0;
                if !running.installing {
                    let mut state = running.state.write().unwrap_or_else(PoisonError::into_inner);
                    state.kv.flushed(reader.clone())?;
                    drop(state);
                    running.made_durable(point(&*reader)?, cx)?;
                }
            }
            Some(BackendWork::Install { number, index }) => {
                self.image = self.snapshots.remove(&index).expect("it was complete");
                let reader = self.image.reader()?;
                let applied = self::number(&*reader, schema::APPLIED_INDEX)?;
                if applied != index {
                    return Err(Death(format!("the snapshot of {index} describes {applied}")));
                }
                running.newest = reader.clone();
                let mut new = StateMachine::open(reader)?;
                new.kv.limit_recent(cx.options.recent_bytes);
                let (revision, compacted) = (new.kv.revision(), new.kv.compacted());
                *running.state.write().unwrap_or_else(PoisonError::into_inner) = new;
                lock(&running.hub).restored(revision, compacted);
                running.chain = cx.ledger.chain_at(index);
                running.installing = false;
                running.offered = None;
                running.place_taken = false;
                let number = number.max(running.persisted);
                running.tell(Input::Persisted { number })?;
                running.backend_queue.push_back(BackendJob::Flush);
                cx.ledger.installs += 1;
                cx.effects.push(Effect::Note(format!("adopted the snapshot {index}, revision {revision}")));
            }
            None => {}
        }
        running.pump_backend(&mut self.snapshots, cx);
        running.start_log(cx)?;
        Ok(())
    }

    /// `watch_loop::turn`, with entries being carried out whenever it does not hold the state.
    fn catch_up(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let now = self.local_now(cx.now);
        let id = self.id();
        let running = self.running.as_mut().expect("the caller looked");
        let (state, hub) = (running.state.clone(), running.hub.clone());
        let own = Proposer { member: id.0, boot: running.boot };
        let mut applied = Vec::new();
        let mut failed = None;
        let worked = {
            let waiting = &mut running.committed;
            let may = !running.installing;
            let dice = &mut *cx.dice;
            let mut meanwhile = || {
                if may && failed.is_none() && dice.chance(300) {
                    let Some(entry) = waiting.pop_front() else { return };
                    let last = (entry.index, entry.term);
                    let mut batches = Vec::new();
                    match apply_loop::turn(&state, &hub, own, vec![entry], &mut |batch| batches.push(batch)) {
                        Ok(turn) => applied.push((turn, batches, last)),
                        Err(error) => failed = Some(error),
                    }
                }
            };
            let access = Access { state: &state, meanwhile: RefCell::new(&mut meanwhile) };
            watch_loop::turn(&hub, &access)?
        };
        if let Some(error) = failed {
            return Err(Death(error.to_string()));
        }
        for (turn, batches, last) in applied {
            running.applied(turn, batches, last, now, cx)?;
        }
        if worked {
            running.catch_up_due = true;
            let delay = cx.dice.below(cx.options.catch_up_delay);
            cx.later(delay, MemberEvent::CatchUp);
        }
        Ok(())
    }

    /// The state as it stands: applied index, revision, all content.
    pub fn standing(&self) -> Option<(u64, i64, Content)> {
        let running = self.running.as_ref()?;
        let state = running.state.read().unwrap_or_else(PoisonError::into_inner);
        Some((state.applied().0, state.kv.revision().0, content(&state)))
    }

    /// Watchers that are not at the end of what is published.
    pub fn slow_watchers(&self) -> usize {
        self.running.as_ref().map_or(0, |running| lock(&running.hub).stats().slow_watchers)
    }

    /// Where it stands, for a person.
    pub fn describe(&self) -> String {
        let Some(running) = &self.running else { return format!("m{}: down", self.place) };
        let state = running.state.read().unwrap_or_else(PoisonError::into_inner);
        format!(
            "m{}: term {} leader {:?} committed {} applied {} last {} revision {} installing {} log {} backend {}",
            self.place,
            running.node.term(),
            running.node.leader().map(|leader| place_of(leader.0)),
            running.node.committed(),
            state.applied(),
            running.node.last_index(),
            state.kv.revision(),
            running.installing,
            running.log_queue.len() + running.log_busy.as_ref().map_or(0, Vec::len),
            running.backend_queue.len(),
        )
    }
}

/// Everything replicated that clients could ever see: hash of history, its revisions, number of keys, hash of leases.
pub type Content = (u32, i64, i64, usize, u64);

fn content(state: &StateMachine) -> Content {
    let hash = state.kv.hash_kv(everwatch::types::Revision(0)).expect("the newest revision can be hashed");
    let mut leases = 0;
    for (id, lease) in state.leases.iter() {
        leases = hash_on(leases, &id.0.to_le_bytes());
        leases = hash_on(leases, &lease.ttl.to_le_bytes());
        leases = hash_on(leases, &lease.rest_ms.unwrap_or(0).to_le_bytes());
        for key in lease.keys() {
            leases = hash_on(leases, key);
        }
    }
    (hash.hash, hash.compact_revision, hash.hash_revision, state.kv.keys_total(), leases)
}

impl Running {
    fn tell(&mut self, input: Input) -> Result<(), Death> {
        if raft_loop::tell(&mut self.node, input).is_some()
            && let Some(commit) = self.node.lost_log()
        {
            return Err(Death(format!("the cluster counts on entries up to {commit} that this member lost")));
        }
        Ok(())
    }

    fn tick(&mut self, id: MemberId, now: Duration) -> Result<(), Death> {
        self.ticks += 1;
        self.tell(Input::Tick)?;
        self.pending.expire(now);
        self.waiters.expire(now);
        self.reads.expire(now, REQUEST_TIMEOUT);
        self.publish(id, now);
        if self.ticks.is_multiple_of(10) && self.monitor.tick(self.node.leader().is_some()) {
            lock(&self.hub).leader_lost();
        }
        if self.node.is_leader() {
            for command in lease_loop::turn(&mut self.lessor, self.node.term(), now) {
                self.pending.push(now + REQUEST_TIMEOUT, encode_command(&command));
            }
        }
        Ok(())
    }

    fn publish(&mut self, id: MemberId, now: Duration) {
        let name = format!("m{}", place_of(id.0));
        let urls = vec![format!("http://{name}")];
        let published = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.members.get(id).is_none_or(|member| member.client_urls == urls)
        };
        let due = self.published_at.is_none_or(|tick| self.ticks >= tick + 10);
        if self.node.leader().is_none() || !due || published {
            return;
        }
        self.published_at = Some(self.ticks);
        let kind = Kind::MemberAttributes(MemberAttributes { id: id.0, name, client_urls: urls });
        let command = Command { kind: Some(kind), ..Command::default() };
        self.pending.push(now + REQUEST_TIMEOUT, encode_command(&command));
    }

    fn propose_pending(&mut self, id: MemberId) {
        if self.node.leader().is_none() {
            return;
        }
        while let Some((entry, taken)) = self.pending.entry(id.0, self.boot) {
            match self.node.handle(Input::Propose(entry)) {
                Err(Rejected::ProposalDropped | Rejected::Invalid(_)) => return,
                _ => self.pending.taken(taken),
            }
        }
    }

    fn send(&mut self, messages: Vec<Message>, cx: &mut Context<'_>) -> Result<(), Death> {
        for mut message in messages {
            if message.get_msg_type() != MessageType::MsgSnapshot {
                cx.effects.push(Effect::Send(message));
                continue;
            }
            let to = MemberId(message.to);
            let rows = self.newest.clone();
            let point = point(&*rows)?;
            let asked = message.get_snapshot().get_metadata().index;
            if point.index.0 < asked || !self.sending.insert(to.0) {
                self.tell(Input::SnapshotStatus { to, ok: false })?;
                continue;
            }
            let meta = message.mut_snapshot().mut_metadata();
            (meta.index, meta.term) = (point.index.0, point.term.0);
            meta.set_conf_state(point.conf_state);
            cx.effects.push(Effect::SendSnapshot { to, message, rows });
        }
        Ok(())
    }

    fn role_changed(&mut self, role: Role, now: Duration, cx: &mut Context<'_>) {
        let before = self.role.replace(role);
        if role.leads {
            cx.ledger.leads(role.term.0, self.node.id().0);
            cx.effects.push(Effect::Note(format!("leads term {}", role.term)));
        } else {
            self.lessor.demote();
            self.promoted = None;
        }
        self.reads.leader_changed();
        if before.is_some_and(|before| before.leader.is_some() && before.leader != role.leader) {
            self.waiters.leader_lost(now + 2 * ELECTION);
        }
    }

    /// `Core::apply`.
    fn apply(&mut self, portion: usize, id: MemberId, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        let mut entries: Vec<Entry> = Vec::new();
        while entries.len() < portion
            && let Some(entry) = self.committed.pop_front()
        {
            let index = entry.index;
            entries.push(entry);
            if index.is_multiple_of(HASH_EVERY) {
                break;
            }
        }
        let Some(last) = entries.last().map(|entry| (entry.index, entry.term)) else { return Ok(()) };
        assert!(!self.installing, "raft commits nothing while a snapshot is being installed");
        let own = Proposer { member: id.0, boot: self.boot };
        let mut batches = Vec::new();
        let turn = apply_loop::turn(&self.state, &self.hub, own, entries, &mut |batch| batches.push(batch))
            .map_err(|error| Death(error.to_string()))?;
        self.applied(turn, batches, last, now, cx)
    }

    fn applied(
        &mut self,
        turn: apply_loop::Turn,
        batches: Vec<Batch>,
        last: (u64, u64),
        now: Duration,
        cx: &mut Context<'_>,
    ) -> Result<(), Death> {
        for batch in batches {
            self.chain = cx.ledger.follow(self.chain, &batch, self.node.id().0);
            self.backend_queue.push_back(BackendJob::Commit(batch));
        }
        self.leases(turn.leases, turn.term, now);
        self.tell(Input::Applied(Index(last.0)))?;
        for (id, outcome) in turn.replies {
            self.waiters.complete(id, outcome);
        }
        if last.0.is_multiple_of(HASH_EVERY) {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            // A watcher being caught up may have let the next entry in.
            if state.applied().0 == last.0 {
                cx.ledger.content(last.0, content(&state), self.node.id().0);
            }
        }
        Ok(())
    }

    fn leases(&mut self, changes: Vec<LeaseChange>, term: Term, now: Duration) {
        if !self.node.is_leader() {
            return;
        }
        if self.promoted == Some(self.node.term()) {
            lease_loop::follow(&mut self.lessor, changes, now);
        } else if term == self.node.term() {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            self.lessor.promote(&state.leases, now, ELECTION);
            self.promoted = Some(term);
        }
    }

    /// `Core::durable`.
    fn made_durable(&mut self, point: SnapshotPoint, cx: &mut Context<'_>) -> Result<(), Death> {
        let index = point.index.0;
        self.tell(Input::SnapshotReady(point))?;
        let (base, _) = self.node.base();
        let keep = cx.options.catchup_entries;
        if index.saturating_sub(base.0) <= cx.options.snapshot_count + keep {
            return Ok(());
        }
        let mut to = index.saturating_sub(keep);
        if let Some(in_flight) = self.node.snapshot_in_flight() {
            to = to.min(in_flight.0);
        }
        if to > base.0 {
            self.tell(Input::TruncateLog(Index(to)))?;
            let (index, term) = self.node.base();
            self.log_queue.push(LogJob::Truncate(Base { index, term }));
        }
        Ok(())
    }

    /// `Core::compact`.
    fn compact(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if self.installing || !state.kv.compacting() || self.compaction_steps >= COMPACTION_STEPS_MAX {
            return Ok(());
        }
        self.compaction_steps += 1;
        let mut batch = Batch::default();
        state.kv.compact_step(cx.options.compaction_keys, &mut batch)?;
        self.backend_queue.push_back(BackendJob::Commit(batch));
        Ok(())
    }

    fn start_log(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        if self.log_busy.is_some() || self.log_queue.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.log_queue);
        let mut syncs = false;
        for job in &batch {
            if let LogJob::Write(write) = job {
                write.append_to(&mut self.wal)?;
                syncs |= write.must_sync || write.reset.is_some();
            }
        }
        self.log_busy = Some(batch);
        let delay = if syncs { cx.options.disk_delay(cx.dice) } else { cx.dice.below(MILLI / 10) };
        cx.later(delay, MemberEvent::LogDone);
        Ok(())
    }

    /// The backend thread's loop, as far as it gets without waiting.
    fn pump_backend(&mut self, snapshots: &mut BTreeMap<u64, Arc<MemoryBackend>>, cx: &mut Context<'_>) {
        while self.backend_busy.is_none() {
            let mut flush = false;
            match self.backend_queue.pop_front() {
                Some(BackendJob::Commit(batch)) => {
                    self.gathered.append(batch);
                    if self.due.is_none() {
                        self.dues += 1;
                        self.due = Some(self.dues);
                        cx.later(cx.options.backend_interval, MemberEvent::BackendDue(self.dues));
                    }
                    flush = self.gathered.rows.len() >= cx.options.backend_rows;
                }
                Some(BackendJob::Flush) => flush = true,
                Some(BackendJob::Discard(index)) => {
                    snapshots.remove(&index);
                    self.place_taken = false;
                }
                Some(BackendJob::Install { number, index }) => {
                    (self.gathered, self.due, self.due_missed) = (Batch::default(), None, false);
                    self.begin(BackendWork::Install { number, index }, cx);
                }
                None if self.due_missed => flush = true,
                None => return,
            }
            if flush {
                (self.due, self.due_missed) = (None, false);
                let batch = std::mem::take(&mut self.gathered);
                self.begin(BackendWork::Commit(batch), cx);
            }
        }
    }

    fn begin(&mut self, work: BackendWork, cx: &mut Context<'_>) {
        self.backend_busy = Some(work);
        let delay = cx.options.disk_delay(cx.dice);
        cx.later(delay, MemberEvent::BackendDone);
    }

    /// A client's request has arrived.
    fn call(
        &mut self,
        place: usize,
        call: u64,
        request: Request,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) -> Result<(), Death> {
        let (reader, confirmed) = oneshot::channel();
        match &request {
            Request::Range { serializable: true, .. } => return self.begin_read(call, request, cx),
            Request::Range { .. } => {
                self.reads.add(now, reader);
                self.calls.push(Call { call, request, waits: Waits::Read(confirmed) });
            }
            Request::KeepAlive { id } => match self.node.leader() {
                Some(leader) if place_of(leader.0) == place => self.renew(None, call, *id, deadline, now, cx),
                Some(leader) => {
                    let leader = place_of(leader.0);
                    cx.effects.push(Effect::AskLeader { leader, call, id: *id, deadline });
                }
                None => self.renewed(call, *id, None, deadline, cx),
            },
            _ => match clients::command(&request) {
                // A transaction that only reads.
                None => {
                    self.reads.add(now, reader);
                    self.calls.push(Call { call, request, waits: Waits::Read(confirmed) });
                }
                Some(kind) => match self.propose(kind, now) {
                    Some(waits) => self.calls.push(Call { call, request, waits }),
                    None => {
                        let outcome = Outcome::Refused("etcdserver: too many requests".into());
                        cx.effects.push(Effect::Answer { call, outcome });
                    }
                },
            },
        }
        Ok(())
    }

    fn propose(&mut self, kind: Kind, now: Duration) -> Option<Waits> {
        if !self.pending.has_room() {
            return None;
        }
        let (reply, outcome) = oneshot::channel();
        let id = self.commands;
        self.commands += 1;
        let deadline = now + REQUEST_TIMEOUT;
        self.waiters.add(id, deadline, reply);
        self.pending.push(deadline, encode_command(&Command { id, kind: Some(kind), ..Command::default() }));
        Some(Waits::Reply(outcome))
    }

    /// `Handle::range`, in slices between which other things happen.
    fn begin_read(&mut self, call: u64, request: Request, cx: &mut Context<'_>) -> Result<(), Death> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(range) = clients::range(&request) else {
            let txn = clients::txn(&request).expect("only ranges and transactions are read");
            let outcome = clients::read_outcome(state.kv.read_txn(&txn), clients::txn_reply)?;
            cx.effects.push(Effect::Answer { call, outcome });
            return Ok(());
        };
        match state.kv.scan(&range) {
            Ok(scan) => {
                self.scans.insert(call, Scanning { request, scan });
            }
            Err(error) => {
                let outcome = clients::read_outcome(Err::<(), _>(error), |()| unreachable!("it is an error"))?;
                cx.effects.push(Effect::Answer { call, outcome });
                return Ok(());
            }
        }
        drop(state);
        if cx.dice.chance(200) {
            let delay = cx.dice.below(20 * MILLI);
            cx.later(delay, MemberEvent::ReadOn { call });
            return Ok(());
        }
        self.read_on(call, cx)
    }

    fn read_on(&mut self, call: u64, cx: &mut Context<'_>) -> Result<(), Death> {
        let Some(mut scanning) = self.scans.remove(&call) else { return Ok(()) };
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let keys = if cx.dice.chance(300) { 2 } else { 1000 };
        let more = state.kv.scan_more(&mut scanning.scan, keys);
        drop(state);
        let outcome = match more {
            Ok(true) => {
                self.scans.insert(call, scanning);
                let delay = cx.dice.below(5 * MILLI);
                cx.later(delay, MemberEvent::ReadOn { call });
                return Ok(());
            }
            Ok(false) => {
                let revision = scanning.scan.began_at();
                let finished = scanning.scan.finish().map_err(everwatch::mvcc::Error::Storage);
                let response = finished.map(|found| found.into_response(revision));
                debug_assert!(matches!(scanning.request, Request::Range { .. }), "nothing else is read in slices");
                clients::read_outcome(response, clients::range_reply)?
            }
            Err(error) => clients::read_outcome(Err::<(), _>(error), |()| unreachable!("it is an error"))?,
        };
        cx.effects.push(Effect::Answer { call, outcome });
        Ok(())
    }

    /// `Handle::renew_here`, for one lease.
    fn renew(&mut self, origin: Option<usize>, call: u64, id: i64, deadline: u64, now: Duration, cx: &mut Context<'_>) {
        let (_, waits) = oneshot::channel();
        let renewal = Renewal {
            origin,
            call,
            id,
            deadline,
            term: self.node.term(),
            caught_up: false,
            answer: None,
            again: false,
            waits: Waits::Read(waits),
        };
        self.renew_once(renewal, now, cx);
    }

    fn renew_once(&mut self, mut renewal: Renewal, now: Duration, cx: &mut Context<'_>) {
        if !self.lessor.leads() {
            return self.renewal_done(&renewal, None, cx);
        }
        match self.lessor.renew(LeaseId(renewal.id), now) {
            Renewed::NeedsLog => {
                let leases = vec![Remaining { id: renewal.id, remaining_ms: 0 }];
                let kind = Kind::LeaseRemaining(LeaseRemaining { term: renewal.term.0, leases });
                let Some(waits) = self.propose(kind, now) else { return self.renewal_done(&renewal, None, cx) };
                (renewal.waits, renewal.again) = (waits, true);
                self.renewals.push(renewal);
                return;
            }
            Renewed::Ttl(ttl) => (renewal.answer, renewal.again) = (Some(ttl), false),
            Renewed::Unknown => (renewal.answer, renewal.again) = (Some(0), !renewal.caught_up),
        }
        self.confirm_renewal(renewal, now);
    }

    fn confirm_renewal(&mut self, mut renewal: Renewal, now: Duration) {
        let (reader, confirmed) = oneshot::channel();
        self.reads.add(now, reader);
        renewal.waits = Waits::Read(confirmed);
        self.renewals.push(renewal);
    }

    fn finish_renewals(&mut self, now: Duration, cx: &mut Context<'_>) {
        for mut renewal in std::mem::take(&mut self.renewals) {
            match &mut renewal.waits {
                Waits::Reply(outcome) => match outcome.try_recv() {
                    Ok(Ok(_)) => self.confirm_renewal(renewal, now),
                    Err(oneshot::error::TryRecvError::Empty) => self.renewals.push(renewal),
                    _ => self.renewal_done(&renewal, None, cx),
                },
                Waits::Read(confirmed) => match confirmed.try_recv() {
                    Ok(Ok(())) if !self.node.is_leader() || self.node.term() != renewal.term => {
                        self.renewal_done(&renewal, None, cx);
                    }
                    Ok(Ok(())) if renewal.again => {
                        renewal.caught_up = true;
                        self.renew_once(renewal, now, cx);
                    }
                    Ok(Ok(())) => self.renewal_done(&renewal, renewal.answer, cx),
                    Err(oneshot::error::TryRecvError::Empty) => self.renewals.push(renewal),
                    _ => self.renewal_done(&renewal, None, cx),
                },
            }
        }
    }

    fn renewal_done(&mut self, renewal: &Renewal, ttl: Option<i64>, cx: &mut Context<'_>) {
        let Renewal { call, id, deadline, .. } = *renewal;
        match renewal.origin {
            Some(origin) => cx.effects.push(Effect::AnswerRenewal { origin, call, id, ttl, deadline }),
            None => self.renewed(call, id, ttl, deadline, cx),
        }
    }

    /// An answer for the client, or another try.
    fn renewed(&mut self, call: u64, id: i64, ttl: Option<i64>, deadline: u64, cx: &mut Context<'_>) {
        match ttl {
            Some(ttl_s) => {
                let revision = self.state.read().unwrap_or_else(PoisonError::into_inner).kv.revision().0;
                let reply = crate::checks::Reply::KeepAlive { ttl_s };
                cx.effects.push(Effect::Answer { call, outcome: Outcome::Ok { revision, reply } });
            }
            None if cx.now < deadline => {
                let event = MemberEvent::Call { call, request: Request::KeepAlive { id }, deadline };
                cx.later(100 * MILLI, event);
            }
            None => cx.effects.push(Effect::Answer { call, outcome: Outcome::Unknown }),
        }
    }

    fn finish_calls(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        self.finish_renewals(now, cx);
        for mut call in std::mem::take(&mut self.calls) {
            let outcome = match &mut call.waits {
                Waits::Reply(outcome) => match outcome.try_recv() {
                    Ok(Ok(reply)) => clients::outcome(reply),
                    Ok(Err(error)) => clients::failure(&error),
                    Err(oneshot::error::TryRecvError::Empty) => {
                        self.calls.push(call);
                        continue;
                    }
                    Err(oneshot::error::TryRecvError::Closed) => Outcome::Unknown,
                },
                Waits::Read(confirmed) => match confirmed.try_recv() {
                    Ok(Ok(())) => {
                        self.begin_read(call.call, call.request, cx)?;
                        continue;
                    }
                    Ok(Err(error)) => clients::failure(&error),
                    Err(oneshot::error::TryRecvError::Empty) => {
                        self.calls.push(call);
                        continue;
                    }
                    Err(oneshot::error::TryRecvError::Closed) => Outcome::Unknown,
                },
            };
            cx.effects.push(Effect::Answer { call: call.call, outcome });
        }
        Ok(())
    }

    /// What the streams' tasks do: they take what waits, as fast as their clients read.
    fn drain_streams(&mut self, cx: &mut Context<'_>) {
        let mut ended = Vec::new();
        for (token, stream) in &mut self.streams {
            if stream.quiet_until > cx.now {
                continue;
            }
            while let Some(next) = stream.outbox.try_next() {
                match next {
                    Next::Message(message) => {
                        let watch = match &message {
                            Outgoing::Created { id, .. } => {
                                let watch = stream.creating.pop_front();
                                stream.watches.extend(watch.map(|watch| (*id, watch)));
                                watch
                            }
                            Outgoing::Refused { .. } => stream.creating.pop_front(),
                            Outgoing::Canceled { id, .. } | Outgoing::Compacted { id, .. } => stream.watches.remove(id),
                            Outgoing::Progress { id: Some(id), .. } => stream.watches.get(id).copied(),
                            Outgoing::Events(events) => stream.watches.get(&events.id).copied(),
                            Outgoing::Progress { id: None, .. } => None,
                        };
                        if let Outgoing::Progress { id: None, revision } = &message {
                            for watch in stream.watches.values() {
                                let message = Outgoing::Progress { id: None, revision: *revision };
                                cx.effects.push(Effect::Watch { stream: *token, message, watch: Some(*watch) });
                            }
                        } else {
                            cx.effects.push(Effect::Watch { stream: *token, message, watch });
                        }
                    }
                    Next::End(End::Stopped | End::NoLeader) => {
                        ended.push(*token);
                        break;
                    }
                }
            }
        }
        for token in ended {
            if let Some(stream) = self.streams.remove(&token) {
                lock(&self.hub).close_stream(stream.id);
            }
            cx.effects.push(Effect::StreamEnded { stream: token });
        }
    }

    /// Sees to it that what is left over is looked at again.
    fn schedule(&mut self, was_turn: bool, cx: &mut Context<'_>) {
        let compacting = self.compaction_steps < COMPACTION_STEPS_MAX
            && self.state.read().unwrap_or_else(PoisonError::into_inner).kv.compacting();
        let unfinished = !self.committed.is_empty() || compacting;
        if !self.turn_due && (!was_turn || unfinished) {
            self.turn_due = true;
            let delay = cx.dice.below(if was_turn { cx.options.apply_delay } else { MILLI / 4 });
            cx.later(delay, MemberEvent::Turn);
        }
        if !self.catch_up_due && lock(&self.hub).stats().slow_watchers > 0 {
            self.catch_up_due = true;
            let delay = cx.dice.below(cx.options.catch_up_delay);
            cx.later(delay, MemberEvent::CatchUp);
        }
    }
}

/// At these indices members compare the hashes of all they have.
const HASH_EVERY: u64 = 32;
