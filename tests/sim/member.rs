//! One member: the server's own core, pumped by the world instead of threads.
//!
//! [`Core`], the log's [`LogWriter`], the backend's [`Gathering`] and `watch_loop::turn` are the server's; what is here is an
//! [`Outside`] for them. What the server's threads do, an event of the world does later: a write to the log becomes durable, and its
//! messages leave, when `LogDone` comes; a commit of the backend counts when `BackendDone` comes. A crash in between loses them,
//! or half of them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use everwatch::auth::token::{self, TokenChange};
use everwatch::auth::{self, Asker, Tokens};
use everwatch::cluster::founding::{self, Answer, Decision, Heard, Wish};
use everwatch::cluster::leaving::Leaving;
use everwatch::cluster::{membership, reconfig};
use everwatch::mvcc::Store;
use everwatch::pb::everwatchpb::{self, Authenticate, MemberAttributes, MemberRecord};
use everwatch::peer::{Remaining, Renewal};
use everwatch::raft::{ConfChangeType, Input, Message, MessageType, Node, NodeConfig, Role};
use everwatch::server::bootstrap::{self, FOUNDING};
use everwatch::server::core::{self, Core, CoreConfig, Outside};
use everwatch::server::error::Error;
use everwatch::server::gathering::{self, Gathering};
use everwatch::server::log_writer::{Appended, Durable, LogJob, LogWriter};
use everwatch::server::logins::{Claim, Identity};
use everwatch::server::watch_loop::{self, Shard, StoreAccess};
use everwatch::server::watch_rights::{self, Denied, Guard, Rights};
use everwatch::server::{apply_loop, snapshot_point};
use everwatch::state::StateMachine;
use everwatch::state::applied::Reply;
use everwatch::state::command::{Change, Command, Kind, LeaseRemaining, MemberAdd, encode_command};
use everwatch::state::permission::Wanted;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket, Reader};
use everwatch::storage::schema;
use everwatch::storage::wal::{Wal, WalOptions};
use everwatch::types::{ClusterId, Index, KeyRange, LeaseId, MemberId};
use everwatch::watch::{End, Feeds, Hub, Next, Outbox, Outgoing, Refusal, Spec, StreamId};
use prost::Message as _;
use tokio::sync::oneshot;

use crate::checks::rights::{Decided, Standing, Token, Watched, texts};
use crate::checks::{Outcome, Reply as CheckedReply, Request};
use crate::clients;
use crate::dice::{Dice, Hashing, hash_on};
use crate::disk::{Loss, SimDisk};
use crate::users;
use crate::world::{Ledger, MILLI, Options, SECOND};

const CLUSTER: ClusterId = ClusterId(7);
/// How often the leader's clock ticks, on a clock that runs right.
pub const TICK: u64 = 100 * MILLI;
/// How long a client's request may wait on a member.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a removed member is still talked to, and goes on itself when it may go, as in the server.
const FAREWELL: u64 = SECOND;
/// How often a member dials those that refuse it, and when it was removed asks the others whether they know.
const DIAL_PAUSE: u64 = SECOND;
/// How long the entry may take that confirms what is said about a member without data.
const CONFIRM_TIMEOUT: u64 = SECOND;
/// How long a token lives after it was last used: now and then one runs out that its user has used elsewhere.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3);
/// How long whoever watches waits for a leader to say how far his member must be, as in the server.
const NOW_TIMEOUT: u64 = 50 * MILLI;
/// Why the server ends a watch by itself. What it says is for clients; here it only has to be something.
const DENIED: &str = "denied";
/// What an entry takes, about, where a portion to be carried out is counted in entries.
const ENTRY_BYTES: usize = 60;

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
    Hear,
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
    /// A snapshot was not sent at all.
    SnapshotNotSent {
        to: MemberId,
    },
    Call {
        call: u64,
        by: By,
        request: Request,
        deadline: u64,
    },
    /// A range goes on with its next slice.
    ReadOn {
        call: u64,
    },
    /// The leader is asked again on behalf of a client.
    AskLeader {
        call: u64,
        request: Request,
        deadline: u64,
    },
    /// A follower asks on behalf of a client.
    AskLessor {
        origin: usize,
        call: u64,
        request: Request,
        deadline: u64,
    },
    /// The leader has answered; nothing: ask again.
    LessorSaid {
        call: u64,
        request: Request,
        answer: Option<CheckedReply>,
        deadline: u64,
    },
    Open {
        stream: u64,
        /// As whom its client has opened it.
        by: By,
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
    /// A member without data asks whether it may take part.
    Asked {
        question: Question,
    },
    /// Members are to change. Since when others are connected goes with it.
    Reconfigure {
        change: Change,
        connected: BTreeMap<u64, Duration>,
    },
    /// A peer refuses what this member says, as from one that was removed.
    Refused,
    /// It dials the others; removed, it asks them whether they know.
    Dial,
    /// A peer has opened a connection, and says nothing yet.
    Dialled {
        from: usize,
    },
    /// One of them has its removal on disk, and these members.
    Known {
        by: usize,
        table: Vec<MemberRecord>,
    },
    /// It was removed, and has said farewell.
    Retire,
}

/// Who asks, by what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Somebody who does not say; while users count, nobody.
    Nobody,
    /// A member, on nobody's behalf.
    Member,
    /// Whoever was given this token.
    Token(String),
}

/// A question of a member without data, or of one that was removed, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub asker: usize,
    pub life: u64,
    /// Counts the questions of that life; those of a removed member need not be told apart.
    pub number: u64,
}

/// Something a member does to the world.
pub enum Effect {
    Send(Message),
    SendSnapshot { to: MemberId, message: Message, rows: Arc<dyn Reader> },
    SnapshotAnswer { to: usize, ok: bool },
    Later { delay: u64, event: MemberEvent },
    Answer { call: u64, outcome: Outcome },
    AskLessor { leader: usize, call: u64, request: Request, deadline: u64 },
    AnswerForLessor { origin: usize, call: u64, request: Request, answer: Option<CheckedReply>, deadline: u64 },
    Watch { stream: u64, message: Outgoing, watch: Option<usize> },
    StreamEnded { stream: u64 },
    AnswerQuestion { question: Question, answer: Answer, table: Vec<MemberRecord> },
    Dial { others: Vec<usize> },
    Ask { to: usize },
    Refuse { to: usize },
    Retired,
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

impl From<bootstrap::Error> for Death {
    fn from(error: bootstrap::Error) -> Death {
        Death(error.to_string())
    }
}

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
    /// Written and not synced: where the log starts anew, entries.
    written: Vec<Written>,
    /// Counts its lives; events of an earlier one come to nothing.
    pub life: u64,
    pub paused_until: u64,
    /// Its clock gains so many parts per million.
    pub drift_ppm: i64,
    /// Those it was to found the cluster with, itself included; none of a member that was added later.
    founders: usize,
    /// It has no data, and asks whether it may take part.
    pub asking: Option<Asking>,
    /// It was removed and has stopped for good.
    pub gone: bool,
    pub running: Option<Box<Running>>,
}

/// A member without data asks the others until it is clear what it may do.
pub struct Asking {
    wish: Wish,
    heard: BTreeMap<usize, Heard>,
    /// Questions without answer, by whom they went to.
    open: BTreeMap<usize, u64>,
    numbers: u64,
    /// The newest table of members that has this one in it.
    table: Vec<MemberRecord>,
}

/// A write to the log: where it starts anew, and entries with their terms.
type Written = (Option<u64>, Vec<(u64, u64)>);

/// What a power cut takes.
pub struct Running {
    core: Core,
    shared: core::Shared,
    /// The hub, and what it hears.
    shard: Shard,
    shell: Shell,
    born: u64,
    /// Tells this life's proposals from those of others.
    boot: u64,
    commands: u64,
    receiving: Option<(u64, MemoryBackend)>,
    unfinished: bool,
    turn_due: bool,
    catch_up_due: bool,
    hear_due: bool,
    // Clients.
    calls: Vec<Call>,
    scans: BTreeMap<u64, Scanning>,
    lessor_calls: Vec<LessorCall>,
    /// Who waits for word from the leader about a lease.
    lease_callers: BTreeMap<u64, Caller>,
    streams: BTreeMap<u64, Stream>,
    /// Changes of members that were asked for here.
    changes: Vec<oneshot::Receiver<Result<Reply, Error>>>,
    /// Answers to members without data that wait for their confirmation, until then.
    standings: Vec<(Question, Waits, u64)>,
    /// It had nothing beyond the founding when it started.
    fresh: bool,
}

/// The threads and the transport of a member.
struct Shell {
    id: MemberId,
    life: u64,
    log: LogWriter,
    log_queue: Vec<LogJob>,
    log_busy: Option<Appended>,
    backend_queue: VecDeque<BackendJob>,
    backend_busy: Option<BackendWork>,
    gathering: Gathering,
    /// Counts the deadlines of what has gathered; and whether the last one has passed while the backend was busy.
    dues: u64,
    due_missed: bool,
    newest: Arc<dyn Reader>,
    /// Those who are being sent a snapshot.
    sending: BTreeSet<u64>,
    /// A received snapshot is being written or waits to be settled.
    place_taken: bool,
    /// Everything carried out, hashed.
    chain: u64,
    tokens: Tokens,
    /// What running watches are held against.
    mark: u64,
    /// Until when removed members are still talked to.
    farewells: BTreeMap<u64, u64>,
    /// It was removed, and this is what it heard of that; and whether it is about to stop.
    leaving: Option<Leaving>,
    going: bool,
    knew_leader: bool,
    death: Option<String>,
}

enum BackendJob {
    Commit(Batch),
    Flush,
    Discard(u64),
    Install { number: u64, index: u64 },
}

enum BackendWork {
    Commit { batch: Batch, asked: bool },
    Install { number: u64, index: u64 },
}

/// A member's outside for the time of one event.
struct Surroundings<'a, 'b> {
    shell: &'a mut Shell,
    state: &'a RwLock<StateMachine>,
    now: Duration,
    cx: &'a mut Context<'b>,
}

impl Outside for Surroundings<'_, '_> {
    fn now(&self) -> Duration {
        self.now
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if !self.shell.talks_to(message.to, self.state, self.cx.now) {
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    self.cx.later(0, MemberEvent::SnapshotNotSent { to: MemberId(message.to) });
                }
                continue;
            }
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(message);
            } else {
                self.cx.effects.push(Effect::Send(message));
            }
        }
    }

    fn log(&mut self, job: LogJob) {
        if let LogJob::Write(write) = &job {
            self.cx.ledger.written(&write.entries);
        }
        self.shell.log_queue.push(job);
    }

    fn commit(&mut self, batch: Batch) {
        // What compaction removes, and when, is each member's own affair.
        if batch.rows.iter().any(|(bucket, key, _)| *bucket == Bucket::Meta && key == schema::APPLIED_INDEX) {
            self.shell.chain = self.cx.ledger.follow(self.shell.chain, &batch, self.shell.id.0);
        }
        self.shell.backend_queue.push_back(BackendJob::Commit(batch));
    }

    fn flush(&mut self) {
        self.shell.backend_queue.push_back(BackendJob::Flush);
    }

    fn discard_snapshot(&mut self, index: Index) {
        self.shell.backend_queue.push_back(BackendJob::Discard(index.0));
    }

    fn adopting(&mut self, _: Index) {}

    fn adopted(&mut self, index: Index, _: StateMachine) {
        self.shell.chain = self.cx.ledger.chain_at(index.0);
        self.shell.place_taken = false;
        // As the server's does: who lost his token meanwhile is not known.
        let (enabled, revision) = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            (state.auth.is_enabled(), state.auth.revision())
        };
        self.users_changed(&[TokenChange::VoidAll], (enabled, revision));
        self.cx.ledger.installs += 1;
        self.note(format!("adopted the snapshot {index}"));
        self.belongs(index.0);
    }

    fn applied(&mut self, turn: &apply_loop::Turn, _: Duration) {
        if let Some(users) = turn.users {
            self.users_changed(&turn.tokens, users);
        }
        if let (Some((index, _)), Some(conf_state)) = (turn.conf_changes.last(), &turn.conf_state) {
            let removals = turn.conf_changes.iter().map(|(_, change)| &change.changes[0]);
            for removal in removals.filter(|single| single.get_change_type() == ConfChangeType::RemoveNode) {
                self.shell.farewells.insert(removal.node_id, self.cx.now + FAREWELL);
            }
            self.note(format!("members: {:?} {:?}", conf_state.voters, conf_state.learners));
            self.cx.ledger.configured(index.0, conf_state, self.shell.id.0);
            self.belongs(index.0);
        }
        if turn.applied.0.is_multiple_of(HASH_EVERY) {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            self.cx.ledger.content(turn.applied.0, content(&state), self.shell.id.0);
        }
    }

    fn role(&mut self, role: Role, _: Option<Role>, _: bool) {
        self.shell.knew_leader |= role.leader.is_some();
        if role.leads {
            self.cx.ledger.leads(role.term.0, self.shell.id.0);
            self.note(format!("leads term {}", role.term));
        }
    }

    fn handing_over(&mut self, _: Option<MemberId>) {}

    fn leader_lost(&mut self) {}

    fn lags(&mut self, _: bool) {}

    fn ready(&mut self) {}

    fn turned(&mut self, _: Index, _: usize) {}

    fn dropped(&mut self, _: &'static str) {}

    fn fail(&mut self, error: &dyn fmt::Display) {
        self.shell.death.get_or_insert(error.to_string());
    }
}

impl Surroundings<'_, '_> {
    /// As `server::logins` follows it.
    fn users_changed(&mut self, tokens: &[TokenChange], (enabled, revision): (bool, u64)) {
        self.shell.mark = watch_rights::mark(enabled, revision);
        self.shell.tokens.follow(tokens, revision, self.now);
        for change in tokens.iter().cloned() {
            let what = match change {
                TokenChange::Issued { token, user } => Token::Came { token, user },
                TokenChange::VoidOf(user) => Token::VoidOf(user),
                TokenChange::VoidAll => Token::AllVoid,
            };
            self.cx.ledger.token((self.shell.id.0, self.shell.life), self.now, what);
        }
    }

    /// Who belongs may have changed at this index: does this member still?
    fn belongs(&mut self, index: u64) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let removed = state.members.was_removed(self.shell.id);
        self.cx.ledger.check_configuration(index, state.conf_state(), self.shell.id.0);
        drop(state);
        if removed {
            self.shell.leaving.get_or_insert_default();
        }
    }

    fn note(&mut self, text: String) {
        self.cx.effects.push(Effect::Note(text));
    }

    /// The transport's part: the rows are those of the last commit, whatever raft had in mind.
    fn send_snapshot(&mut self, mut message: Message) {
        let to = MemberId(message.to);
        let rows = self.shell.newest.clone();
        let point = match snapshot_point(&*rows) {
            Ok(point) => point,
            Err(error) => return self.fail(&error),
        };
        let asked = message.get_snapshot().get_metadata().index;
        if point.index.0 < asked || !self.shell.sending.insert(to.0) {
            return self.cx.later(0, MemberEvent::SnapshotNotSent { to });
        }
        let meta = message.mut_snapshot().mut_metadata();
        (meta.index, meta.term) = (point.index.0, point.term.0);
        meta.set_conf_state(point.conf_state);
        self.cx.effects.push(Effect::SendSnapshot { to, message, rows });
    }
}

impl Shell {
    fn guard<'a>(&'a mut self, state: &'a RwLock<StateMachine>, now: Duration) -> Users<'a> {
        Users { state, tokens: Mutex::new(&mut self.tokens), mark: self.mark, now, found: Mutex::new(None) }
    }

    /// Whether messages to and from a member are passed on: not for long after it was removed.
    fn talks_to(&self, id: u64, state: &RwLock<StateMachine>, now: u64) -> bool {
        let removed = state.read().unwrap_or_else(PoisonError::into_inner).members.was_removed(MemberId(id));
        !removed || self.farewells.get(&id).is_some_and(|until| now < *until)
    }
}

struct Call {
    call: u64,
    request: Request,
    waits: Waits,
}

/// Who was found to be behind a request.
#[derive(Clone)]
enum Caller {
    Member,
    Client(Identity),
}

impl Caller {
    fn asker(&self) -> Asker<'_> {
        match self {
            Caller::Member => Asker::Member,
            Caller::Client(identity) => identity.asker(),
        }
    }
}

enum Waits {
    Reply(oneshot::Receiver<Result<Reply, Error>>),
    Read(oneshot::Receiver<Result<(), Error>>, Caller),
    /// As a read: then this token may be known.
    Token(oneshot::Receiver<Result<(), Error>>, String, u64),
    /// As a read: then the password counts that is the last one.
    Password(oneshot::Receiver<Result<(), Error>>),
    /// As a read; the leader has said the rest.
    Keys(oneshot::Receiver<Result<(), Error>>, CheckedReply, Caller),
}

impl Waits {
    /// What has come: nothing yet; what the call comes to; or that it can go on, with the reply if that is what it waits for.
    fn heard(&mut self) -> Option<Result<Option<Reply>, Outcome>> {
        let heard = match self {
            Waits::Reply(outcome) => outcome.try_recv().map(|outcome| outcome.map(Some)),
            Waits::Read(confirmed, _)
            | Waits::Token(confirmed, ..)
            | Waits::Password(confirmed)
            | Waits::Keys(confirmed, ..) => confirmed.try_recv().map(|outcome| outcome.map(|()| None)),
        };
        match heard {
            Ok(outcome) => Some(outcome.map_err(|error| clients::failure(&error))),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Outcome::Unknown)),
        }
    }
}

struct Scanning {
    request: Request,
    scan: everwatch::mvcc::Scan,
    caller: Caller,
}

/// What the leader's lessor is asked, by a client here or at another member.
struct LessorCall {
    origin: Option<usize>,
    call: u64,
    request: Request,
    deadline: u64,
    waits: LessorSays,
}

enum LessorSays {
    Renewed(oneshot::Receiver<Vec<Renewal>>),
    Left(oneshot::Receiver<Remaining>),
}

struct Stream {
    id: StreamId,
    outbox: Outbox,
    by: By,
    rights: Rights,
    /// Users and roles, as they were when its watches were last noted: whether they count, and the auth revision.
    noted: (bool, u64),
    /// Watches that are to be created when it is known how far the member must be.
    waiting: VecDeque<Opening>,
    /// How many of them, from the front, came before that was asked for the last time; and whether a leader has said it.
    confirmed: usize,
    sure: bool,
    confirming: Option<(oneshot::Receiver<Result<(), Error>>, u64)>,
    /// Answers to creations come in their order.
    creating: VecDeque<usize>,
    watches: BTreeMap<i64, usize>,
    quiet_until: u64,
}

/// A watch that was asked for.
struct Opening {
    watch: usize,
    spec: Spec,
    asked_at: u64,
}

/// Users and roles, as far as watches go: what `server::handle` answers for the server.
struct Users<'a> {
    state: &'a RwLock<StateMachine>,
    tokens: Mutex<&'a mut Tokens>,
    mark: u64,
    now: Duration,
    /// Who was found to ask.
    found: Mutex<Option<Identity>>,
}

impl Guard for Users<'_> {
    fn admit(&self, claim: Claim<'_>, range: &KeyRange) -> Result<Option<Arc<str>>, Denied> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if !state.auth.is_enabled() {
            return Ok(None);
        }
        let identity = match claim {
            Claim::Token(token) => {
                let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                let (user, revision) = tokens.user(token, self.now).ok_or(Denied::Token)?;
                Identity::of(user, revision)
            }
            _ => Identity::default(),
        };
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity.clone());
        state.permit(identity.asker(), Wanted::Watch(range)).map_err(Denied::Auth)?;
        Ok(identity.user().cloned())
    }

    fn rights(&self) -> u64 {
        self.mark
    }

    fn may(&self, user: &Arc<str>, range: &KeyRange) -> bool {
        watch_rights::may(&self.state.read().unwrap_or_else(PoisonError::into_inner), user, range)
    }
}

fn number(reader: &dyn Reader, row: &[u8]) -> Result<u64, Death> {
    let value = reader.get(Bucket::Meta, row)?;
    value.as_deref().and_then(schema::read_u64).ok_or_else(|| Death(format!("{} is missing", row.escape_ascii())))
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
    /// A machine with an empty disk, for one of so many founders, or for a member that joins them later.
    pub fn new(place: usize, founders: usize, drift_ppm: i64) -> Member {
        Member {
            place,
            disk: SimDisk::default(),
            image: Arc::default(),
            snapshots: BTreeMap::new(),
            durable: BTreeMap::new(),
            durable_base: 0,
            written: Vec::new(),
            life: 0,
            paused_until: 0,
            drift_ppm,
            founders,
            asking: None,
            gone: false,
            running: None,
        }
    }

    /// Whether its disk says what it is: a log, or a state beyond the founding.
    pub fn has_data(&self) -> bool {
        let log = self.disk.names().iter().any(|name| name.ends_with(".wal"));
        log || self.applied().is_some_and(|applied| applied > FOUNDING.index.0)
    }

    /// Whether there is something beyond the founding on its disk.
    pub fn has_entries(&self) -> bool {
        self.durable_base > FOUNDING.index.0 || !self.durable.is_empty()
    }

    /// How far the rows on its disk are.
    pub fn applied(&self) -> Option<u64> {
        let row = self.image.reader().and_then(|reader| reader.get(Bucket::Meta, schema::APPLIED_INDEX));
        row.expect("memory can be read").as_deref().and_then(schema::read_u64)
    }

    /// Everything on its disk is gone.
    pub fn wipe(&mut self) {
        self.disk.empty();
        self.image = Arc::default();
        self.snapshots.clear();
        self.durable.clear();
        self.durable_base = 0;
    }

    /// Without data it begins to ask these.
    pub fn ask(&mut self, members: &[usize]) {
        self.life += 1;
        let founds = self.place < self.founders;
        let founders: Vec<usize> = (0..self.founders).collect();
        let others = if founds { &founders } else { members };
        let heard = others.iter().filter(|other| **other != self.place).map(|other| (*other, Heard::Nothing)).collect();
        let wish = if founds { Wish::Found } else { Wish::Join };
        self.asking = Some(Asking { wish, heard, open: BTreeMap::new(), numbers: 0, table: Vec::new() });
    }

    /// It may take part: what it begins with, before it starts.
    pub fn begin(&mut self) {
        let asking = self.asking.take().expect("it has asked");
        let image = MemoryBackend::new();
        let rows = if asking.wish == Wish::Found {
            let record = |place| MemberRecord { id: id_of(place).0, name: format!("m{place}"), ..Default::default() };
            let records: Vec<_> = (0..self.founders).map(record).collect();
            let voters = records.iter().map(|record| record.id).collect();
            let conf_state = everwatchpb::ConfState { voters, ..Default::default() };
            StateMachine::founding_rows(&records, &conf_state)
        } else {
            let mut rows = Batch::default();
            asking.table.iter().for_each(|record| membership::put_row(&mut rows, record));
            rows
        };
        image.commit(&rows).expect("memory takes it");
        self.image = Arc::new(image);
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
        self.asking = None;
        let Some(running) = self.running.take() else { return };
        // What the backend was about to do is done or not.
        match running.shell.backend_busy {
            Some(BackendWork::Commit { batch, .. }) if dice.chance(500) => {
                self.image.commit(&batch).expect("memory takes it");
            }
            Some(BackendWork::Install { index, .. }) if dice.chance(500) => {
                self.image = self.snapshots.remove(&index).expect("it was complete");
            }
            _ => {}
        }
        drop(running.shell.log);
        self.disk.crash(loss, dice);
    }

    /// It starts from what its disk has, as the server's bootstrap does.
    pub fn boot(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        self.life += 1;
        let options = WalOptions { segment_bytes: cx.options.segment_bytes, identity: (CLUSTER, self.id()) };
        let (mut wal, mut log) = Wal::open(Arc::new(self.disk.clone()), PathBuf::from("/wal"), options)?;
        let applied = self.applied().unwrap_or(0);
        bootstrap::begin_log(&mut wal, &mut log, Index(applied))?;
        for (index, rows) in std::mem::take(&mut self.snapshots) {
            if index == log.base.index.0 && index > applied {
                cx.effects.push(Effect::Note(format!("adopts the snapshot {index} at its start")));
                self.image = rows;
            }
        }
        self.durable = log.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect();
        let base = log.base.index;
        self.durable_base = base.0;
        self.written.clear();

        let reader = self.image.reader()?;
        let mut state = StateMachine::open(reader.clone())?;
        cx.ledger.check_configuration(state.applied().0, state.conf_state(), self.id().0);
        let removed = state.members.was_removed(self.id());
        let boot = cx.dice.next();
        let node = Node::new(NodeConfig {
            id: self.id(),
            election_ticks: cx.options.election_ticks,
            heartbeat_ticks: 1,
            applied: state.applied(),
            seed: boot,
            boot,
            pre_vote: cx.options.pre_vote,
            log: bootstrap::log_start(log, &state)?,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        })
        .map_err(|error| Death(error.to_string()))?;
        let fresh = node.last_index() == FOUNDING.index;
        let point = snapshot_point(&*reader)?;
        state.kv.limit_recent(cx.options.recent_bytes);
        let chain = cx.ledger.chain_at(state.applied().0);
        let tokens = Tokens::new(TOKEN_LIFETIME, state.auth.revision());
        let mark = watch_rights::mark(state.auth.is_enabled(), state.auth.revision());
        let mut hub = Hub::new(state.kv.revision(), state.kv.compacted());
        hub.limit_outboxes(cx.options.outbox_bytes, cx.options.outbox_messages);
        hub.limit_messages(cx.options.message_bytes);
        let note = format!(
            "starts: applied {} revision {} log {}..{}",
            state.applied(),
            state.kv.revision(),
            base,
            wal.last()
        );
        cx.effects.push(Effect::Note(note));
        let feeds = Feeds::limited(1, state.kv.revision(), cx.options.feed_changes);
        let shared = core::Shared { state: Arc::new(RwLock::new(state)), feeds };
        let read = shared.state.clone();
        let record = move |place| {
            read.read()
                .unwrap_or_else(PoisonError::into_inner)
                .kv
                .record(place)
                .expect("what is committed is in memory")
        };
        let shard = Shard::new(hub, shared.feeds.of(0), Box::new(record));
        let name = format!("m{}", self.place);
        let config = CoreConfig {
            boot,
            election_ticks: cx.options.election_ticks as u64,
            election: Duration::from_nanos(cx.options.election_ticks as u64 * TICK),
            request_timeout: REQUEST_TIMEOUT,
            snapshot_count: cx.options.snapshot_count,
            catchup_entries: cx.options.catchup_entries,
            compaction_keys: cx.options.compaction_keys,
            compaction_grace: Duration::from_nanos(cx.options.compaction_grace),
            apply_bytes: (cx.options.apply_portion as usize - 1) * ENTRY_BYTES + 1,
            attributes: MemberAttributes { id: self.id().0, client_urls: vec![format!("http://{name}")], name },
        };
        self.running = Some(Box::new(Running {
            core: Core::new(config, node, shared.clone(), point),
            shared,
            shard,
            shell: Shell {
                id: self.id(),
                life: self.life,
                log: LogWriter::new(wal),
                log_queue: Vec::new(),
                log_busy: None,
                backend_queue: VecDeque::new(),
                backend_busy: None,
                gathering: Gathering::new(Duration::from_nanos(cx.options.backend_interval), cx.options.backend_rows),
                dues: 0,
                due_missed: false,
                newest: reader,
                sending: BTreeSet::new(),
                place_taken: false,
                chain,
                tokens,
                mark,
                farewells: BTreeMap::new(),
                leaving: removed.then(Leaving::default),
                going: false,
                knew_leader: false,
                death: None,
            },
            born: cx.now,
            boot,
            commands: 1,
            receiving: None,
            unfinished: false,
            turn_due: true,
            catch_up_due: false,
            hear_due: false,
            calls: Vec::new(),
            scans: BTreeMap::new(),
            lessor_calls: Vec::new(),
            lease_callers: BTreeMap::new(),
            streams: BTreeMap::new(),
            changes: Vec::new(),
            standings: Vec::new(),
            fresh,
        }));
        cx.later(DIAL_PAUSE, MemberEvent::Dial);
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
        let was_turn = matches!(event, MemberEvent::Turn);
        let running = self.running.as_mut().expect("looked at above");
        match event {
            MemberEvent::Tick => {
                let period = TICK as i64 - TICK as i64 * self.drift_ppm / 1_000_000;
                cx.later(period as u64, MemberEvent::Tick);
                running.with_core(now, cx, |core, out| core.tick(out));
            }
            MemberEvent::Turn => {
                running.turn_due = false;
                running.unfinished = running.with_core(now, cx, |core, out| core.turn(out));
            }
            MemberEvent::LogDone => self.log_done(now, cx)?,
            MemberEvent::BackendDue(due) => running.shell.due_missed |= running.shell.dues == due,
            MemberEvent::BackendDone => self.backend_done(now, cx)?,
            MemberEvent::Hear => {
                running.hear_due = false;
                let most = cx.dice.pick(&[1, 3, 64]);
                running.shard.hear_some(most);
            }
            MemberEvent::CatchUp => {
                running.catch_up_due = false;
                running.catch_up(now, cx)?;
            }
            MemberEvent::Message(message) => {
                if running.shell.talks_to(message.from, &running.shared.state, cx.now) {
                    running.tell(Input::Message(message), now, cx);
                } else {
                    cx.effects.push(Effect::Refuse { to: place_of(message.from) });
                }
            }
            MemberEvent::SnapshotOffered { from, message, rows } => {
                let stranger = !running.shell.talks_to(message.from, &running.shared.state, cx.now);
                if running.shell.place_taken || stranger {
                    cx.effects.push(Effect::SnapshotAnswer { to: from, ok: false });
                } else {
                    running.shell.place_taken = true;
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
                    running.with_core(now, cx, |core, out| core.snapshot_received(message, Index(index), out));
                    cx.effects.push(Effect::SnapshotAnswer { to: from, ok: true });
                }
            }
            MemberEvent::SnapshotSent { to, ok } => {
                running.shell.sending.remove(&to.0);
                running.tell(Input::SnapshotStatus { to, ok }, now, cx);
            }
            MemberEvent::SnapshotNotSent { to } => running.tell(Input::SnapshotStatus { to, ok: false }, now, cx),
            MemberEvent::Call { call, by, request, deadline } => running.call(call, by, request, deadline, now, cx)?,
            MemberEvent::ReadOn { call } => running.read_on(call, cx)?,
            MemberEvent::AskLeader { call, request, deadline } => running.ask_leader(call, request, deadline, now, cx),
            MemberEvent::AskLessor { origin, call, request, deadline } => {
                running.ask_lessor(Some(origin), call, request, deadline, now, cx);
            }
            MemberEvent::LessorSaid { call, request, answer, deadline } => {
                running.lessor_said(call, request, answer, deadline, now, cx);
            }
            MemberEvent::Open { stream, by, watches } => running.open(stream, by, watches, now, cx),
            MemberEvent::Cancel { stream, watch } => {
                if let Some(stream) = running.streams.get(&stream)
                    && let Some((id, _)) = stream.watches.iter().find(|(_, known)| **known == watch)
                {
                    running.shard.hub().cancel(stream.id, *id);
                }
            }
            MemberEvent::AskProgress { stream } => {
                if let Some(stream) = running.streams.get(&stream) {
                    running.shard.hub().progress(stream.id);
                }
            }
            MemberEvent::TickProgress { stream } => {
                if let Some(stream) = running.streams.get(&stream) {
                    running.shard.hub().tick_progress(stream.id);
                }
            }
            MemberEvent::CloseStream { stream } => {
                if let Some(stream) = running.streams.remove(&stream) {
                    running.shard.hub().close_stream(stream.id);
                }
            }
            MemberEvent::Pace { stream, until } => {
                if let Some(stream) = running.streams.get_mut(&stream) {
                    stream.quiet_until = until;
                }
            }
            MemberEvent::HandOver => {
                if running.core.node().is_leader() {
                    running.with_core(now, cx, |core, out| core.hand_over(None, out));
                }
            }
            MemberEvent::Asked { question } => running.asked(question, now, cx),
            MemberEvent::Reconfigure { change, connected } => running.reconfigure(change, &connected, now, cx),
            MemberEvent::Refused => _ = running.shell.leaving.get_or_insert_default(),
            MemberEvent::Dial => running.dial(cx),
            MemberEvent::Dialled { from } => {
                if !running.shell.talks_to(id_of(from).0, &running.shared.state, cx.now) {
                    cx.effects.push(Effect::Refuse { to: from });
                }
            }
            MemberEvent::Known { by, table } => running.is_known(by, &table, cx),
            MemberEvent::Retire => cx.effects.push(Effect::Retired),
        }
        let running = self.running.as_mut().expect("nobody took it");
        running.start_log(cx)?;
        running.pump_backend(&mut self.snapshots, now, cx);
        if let Some(reason) = running.shell.death.take() {
            return Err(Death(reason));
        }
        running.finish_calls(now, cx)?;
        running.listen(now, cx);
        running.drain_streams(now, cx);
        running.schedule(was_turn, cx);
        if let Some(what) = self.overflow(cx.options) {
            cx.ledger.violated(what);
        }
        Ok(())
    }

    /// Whether it runs, and was removed as far as it knows.
    pub fn is_leaving(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.shell.leaving.is_some())
    }

    /// Those it can ask, if it is there to ask anybody.
    pub fn knows(&self) -> Vec<usize> {
        match (&self.running, &self.asking) {
            (Some(running), _) => running.others().into_iter().map(|other| place_of(other.0)).collect(),
            (None, Some(asking)) => asking.others(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.core.node().is_leader())
    }

    /// For how long it has been running.
    pub fn age(&self, now: u64) -> Option<u64> {
        self.running.as_ref().map(|running| now - running.born)
    }

    fn local_now(&self, now: u64) -> Duration {
        let age = now - self.running.as_ref().map_or(now, |running| running.born);
        Duration::from_nanos((age as i64 + age as i64 / 1000 * self.drift_ppm / 1000) as u64)
    }

    /// What the log thread does when its sync returns.
    fn log_done(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        let running = self.running.as_mut().expect("the caller looked");
        let Some(appended) = running.shell.log_busy.take() else { return Ok(()) };
        for write in appended.writes() {
            let entries = write.entries.iter().map(|entry| (entry.index.0, entry.term.0)).collect();
            self.written.push((write.reset.map(|base| base.index.0), entries));
        }
        let syncs = self.disk.syncs();
        let Durable { messages, installs, persisted, truncate } = running.shell.log.sync(appended)?;
        // What counts is what the disk was told, not what the log says.
        if self.disk.syncs() > syncs {
            for (reset, entries) in self.written.drain(..) {
                if let Some(base) = reset {
                    self.durable.clear();
                    self.durable_base = base;
                }
                if let Some((first, _)) = entries.first() {
                    self.durable.split_off(first);
                }
                self.durable.extend(entries);
            }
        }
        for (number, index) in installs {
            running.shell.backend_queue.push_back(BackendJob::Install { number, index: index.0 });
        }
        running.with_core(now, cx, |core, out| {
            out.send(messages);
            if let Some(number) = persisted {
                core.persisted(number, out);
            }
        });
        Ok(running.shell.log.tidy(truncate)?)
    }

    /// What the backend thread does when its commit returns, and the core when it hears of it.
    fn backend_done(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        let running = self.running.as_mut().expect("the caller looked");
        match running.shell.backend_busy.take() {
            Some(BackendWork::Commit { batch, asked }) => {
                self.image.commit(&batch)?;
                let reader = self.image.reader()?;
                running.shell.newest = reader.clone();
                running.with_core(now, cx, |core, out| {
                    core.flushed(&reader, out);
                    if asked {
                        core.flush_done();
                    }
                });
            }
            Some(BackendWork::Install { number, index }) => {
                self.image = self.snapshots.remove(&index).expect("it was complete");
                let reader = self.image.reader()?;
                let applied = self::number(&*reader, schema::APPLIED_INDEX)?;
                if applied != index {
                    return Err(Death(format!("the snapshot of {index} describes {applied}")));
                }
                running.shell.newest = reader.clone();
                let mut new = StateMachine::open(reader)?;
                new.kv.limit_recent(cx.options.recent_bytes);
                running.with_core(now, cx, |core, out| core.installed(number, new, Index(index), out));
            }
            None => {}
        }
        Ok(())
    }

    /// The state as it stands: applied index, revision, all content.
    pub fn standing(&self) -> Option<(u64, i64, Content)> {
        let running = self.running.as_ref()?;
        let state = running.state();
        Some((state.applied().0, state.kv.revision().0, content(&state)))
    }

    /// Its users and roles.
    pub fn users(&self) -> Option<Standing> {
        self.running.as_ref().map(|running| users::standing(&running.state().auth))
    }

    /// Watchers that are not at the end of what is published.
    pub fn slow_watchers(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.shard.stats().slow_watchers)
    }

    /// What it still has to do for somebody: nothing, once all is quiet.
    pub fn unfinished(&self) -> usize {
        let Some(running) = &self.running else { return 0 };
        let (core, shell) = (&running.core, &running.shell);
        let clients = running.calls.len() + running.lessor_calls.len() + running.scans.len() + running.standings.len();
        clients + core.waiting() + shell.backend_queue.len() + shell.sending.len() + usize::from(shell.place_taken)
    }

    /// A queue that is longer than it may become.
    fn overflow(&self, options: &Options) -> Option<String> {
        let running = self.running.as_ref()?;
        let shell = &running.shell;
        if shell.log_queue.len() > LOG_QUEUE_MAX || shell.backend_queue.len() > BACKEND_QUEUE_MAX {
            let (log, backend) = (shell.log_queue.len(), shell.backend_queue.len());
            return Some(format!("bounds: {log} writes wait for the log, {backend} for the backend"));
        }
        let too_full = |(messages, bytes): &(usize, usize)| {
            *messages > options.outbox_messages + ANSWERS_MAX || *bytes > options.outbox_bytes + MESSAGE_MAX
        };
        let (messages, bytes) = running.streams.values().map(|stream| stream.outbox.waiting()).find(too_full)?;
        Some(format!("bounds: {messages} messages with {bytes} bytes wait for a stream"))
    }

    /// Where it stands, for a person.
    pub fn describe(&self) -> String {
        let Some(running) = &self.running else { return format!("m{}: down", self.place) };
        let (state, node, shell) = (running.state(), running.core.node(), &running.shell);
        format!(
            "m{}: term {} leader {:?} committed {} applied {} last {} revision {} installing {} log {} backend {}",
            self.place,
            node.term(),
            node.leader().map(|leader| place_of(leader.0)),
            node.committed(),
            state.applied(),
            node.last_index(),
            state.kv.revision(),
            running.core.is_installing(),
            shell.log_queue.len() + shell.log_busy.as_ref().map_or(0, |busy| busy.writes().len()),
            shell.backend_queue.len(),
        )
    }
}

/// Everything replicated that clients could ever see: hash of history, its revisions, number of keys, hash of leases, members and users.
pub type Content = (u32, i64, i64, usize, u64);

fn content(state: &StateMachine) -> Content {
    let hash = state.kv.hash_kv(everwatch::types::Revision(0)).expect("the newest revision can be hashed");
    let mut leases = 0;
    for (id, lease) in state.leases.iter() {
        leases = hash_on(leases, &id.0.to_le_bytes());
        leases = hash_on(leases, &lease.ttl.to_le_bytes());
        leases = hash_on(leases, &lease.rest_ms().map_or(0, |ms| ms.get()).to_le_bytes());
        for key in lease.keys() {
            leases = hash_on(leases, key);
        }
    }
    let mut members = 0;
    for (id, member) in state.members.iter() {
        members = hash_on(members, &member.record(id).encode_to_vec());
    }
    // With what is derived of them.
    let mut users = Hashing(0);
    fmt::Write::write_fmt(&mut users, format_args!("{:?}", state.auth)).expect("hashing takes everything");
    (hash.hash, hash.compact_revision, hash.hash_revision, state.kv.keys_total(), leases ^ members ^ users.0)
}

impl Asking {
    /// The next question to one of the others.
    pub fn question(&mut self, asker: usize, life: u64, to: usize) -> Question {
        self.numbers += 1;
        self.open.insert(to, self.numbers);
        Question { asker, life, number: self.numbers }
    }

    /// Those who are asked.
    pub fn others(&self) -> Vec<usize> {
        self.heard.keys().copied().collect()
    }

    /// An answer has come, or none has for long. Whether it is news.
    pub fn hears(&mut self, from: usize, number: u64, heard: Heard, table: Vec<MemberRecord>, own: MemberId) -> bool {
        if self.open.get(&from) != Some(&number) {
            return false;
        }
        self.open.remove(&from);
        self.heard.insert(from, heard);
        if table.iter().any(|record| record.id == own.0) {
            self.table = table;
        }
        true
    }

    /// What others that are new as well are told.
    pub fn says(&self) -> Heard {
        if self.wish == Wish::Found { Heard::Said(Answer::Fresh) } else { Heard::Silence }
    }

    /// What comes of what was heard.
    pub fn decision(&self) -> Decision {
        let heard: Vec<Heard> = self.heard.values().copied().collect();
        founding::decide(self.wish, &heard)
    }
}

impl Running {
    fn state(&self) -> std::sync::RwLockReadGuard<'_, StateMachine> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_core<T>(
        &mut self,
        now: Duration,
        cx: &mut Context<'_>,
        work: impl FnOnce(&mut Core, &mut dyn Outside) -> T,
    ) -> T {
        let Running { core, shell, shared, .. } = self;
        work(core, &mut Surroundings { shell, state: &shared.state, now, cx })
    }

    fn tell(&mut self, input: Input, now: Duration, cx: &mut Context<'_>) {
        self.with_core(now, cx, |core, out| core.tell(input, out));
    }

    /// `watch_loop::turn`, with entries being carried out whenever it does not hold the state.
    fn catch_up(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        let slice_bytes = cx.options.slice_bytes;
        let worked = {
            let Running { core, shell, shared, shard, .. } = self;
            let state = &shared.state;
            let mut meanwhile = || {
                if cx.dice.chance(300) {
                    core.apply(1, &mut Surroundings { shell, state, now, cx });
                }
            };
            let access = Access { state, meanwhile: RefCell::new(&mut meanwhile) };
            watch_loop::turn(shard, &access, slice_bytes)?
        };
        if worked {
            self.catch_up_due = true;
            let delay = cx.dice.below(cx.options.catch_up_delay);
            cx.later(delay, MemberEvent::CatchUp);
        }
        Ok(())
    }

    fn start_log(&mut self, cx: &mut Context<'_>) -> Result<(), Death> {
        let shell = &mut self.shell;
        if shell.log_busy.is_some() || shell.log_queue.is_empty() {
            return Ok(());
        }
        let appended = shell.log.append(std::mem::take(&mut shell.log_queue))?;
        let syncs = appended.must_sync();
        shell.log_busy = Some(appended);
        let delay = if syncs { cx.options.disk_delay(cx.dice) } else { cx.dice.below(MILLI / 10) };
        cx.later(delay, MemberEvent::LogDone);
        Ok(())
    }

    /// The backend thread's loop, as far as it gets without waiting.
    fn pump_backend(&mut self, snapshots: &mut BTreeMap<u64, Arc<MemoryBackend>>, now: Duration, cx: &mut Context<'_>) {
        let shell = &mut self.shell;
        while shell.backend_busy.is_none() {
            let (mut commit, mut asked) = (false, false);
            match shell.backend_queue.pop_front() {
                Some(BackendJob::Commit(batch)) => {
                    let first = shell.gathering.due().is_none();
                    let bytes = gathering::bytes_of(&batch);
                    commit = shell.gathering.add(batch, bytes, now);
                    if first {
                        shell.dues += 1;
                        cx.later(cx.options.backend_interval, MemberEvent::BackendDue(shell.dues));
                    }
                }
                Some(BackendJob::Flush) => (commit, asked) = (true, true),
                Some(BackendJob::Discard(index)) => {
                    snapshots.remove(&index);
                    shell.place_taken = false;
                }
                Some(BackendJob::Install { number, index }) => {
                    shell.gathering.take();
                    self::begin(shell, BackendWork::Install { number, index }, cx);
                }
                None if shell.due_missed && shell.gathering.due().is_some() => commit = true,
                None => return,
            }
            if commit {
                let (batch, _) = shell.gathering.take();
                self::begin(shell, BackendWork::Commit { batch, asked }, cx);
            }
        }
    }

    /// A client's request has arrived. As `Handle::identify` does: a token that another member has just given out is waited for.
    fn call(
        &mut self,
        call: u64,
        by: By,
        request: Request,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) -> Result<(), Death> {
        let caller = match by {
            By::Nobody => Caller::Client(Identity::default()),
            By::Member => Caller::Member,
            // As `api::lease` does: there a token is of no interest while users do not count.
            By::Token(_)
                if matches!(request, Request::KeepAlive { .. } | Request::TimeToLive { .. })
                    && !self.state().auth.is_enabled() =>
            {
                Caller::Client(Identity::default())
            }
            By::Token(token) => match self.recognise(call, &token, now, cx) {
                Some(caller) => caller,
                None if token::made_at(&token).is_some_and(|made| made > self.state().applied()) => {
                    let (reader, confirmed) = oneshot::channel();
                    self.with_core(now, cx, |core, out| core.linearize(reader, out));
                    self.calls.push(Call { call, request, waits: Waits::Token(confirmed, token, deadline) });
                    return Ok(());
                }
                None => {
                    cx.effects.push(Effect::Answer { call, outcome: Outcome::Refused(texts::TOKEN.into()) });
                    return Ok(());
                }
            },
        };
        self.call_by(call, caller, request, deadline, now, cx)
    }

    fn recognise(&mut self, call: u64, token: &str, now: Duration, cx: &mut Context<'_>) -> Option<Caller> {
        let known = self.shell.tokens.user(token, now);
        let shown = Token::Shown { token: token.into(), known: known.is_some() };
        cx.ledger.token((self.shell.id.0, self.shell.life), now, shown);
        let (user, revision) = known?;
        let caller = Caller::Client(Identity::of(user, revision));
        let (by, applied) = (users::asker(caller.asker()), self.state().applied().0);
        cx.ledger.decided(call, Decided::Recognised { token: token.into(), by, applied });
        Some(caller)
    }

    /// It is known who asks.
    fn call_by(
        &mut self,
        call: u64,
        caller: Caller,
        request: Request,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) -> Result<(), Death> {
        let (reader, confirmed) = oneshot::channel();
        match &request {
            Request::Range { serializable: true, .. } => return self.begin_read(call, request, caller, cx),
            Request::Range { .. } => {
                self.with_core(now, cx, |core, out| core.linearize(reader, out));
                self.calls.push(Call { call, request, waits: Waits::Read(confirmed, caller) });
            }
            Request::Login { .. } => {
                self.with_core(now, cx, |core, out| core.linearize(reader, out));
                self.calls.push(Call { call, request, waits: Waits::Password(confirmed) });
            }
            Request::KeepAlive { .. } | Request::TimeToLive { .. } => {
                self.ask_of_lease(call, caller, request, deadline, now, cx);
            }
            _ => match clients::command(&request) {
                // A transaction that only reads.
                None => {
                    self.with_core(now, cx, |core, out| core.linearize(reader, out));
                    self.calls.push(Call { call, request, waits: Waits::Read(confirmed, caller) });
                }
                Some(kind) => self.propose_for(call, request, kind, caller.asker(), now, cx),
            },
        }
        Ok(())
    }

    /// A client waits for what comes of it.
    fn propose_for(
        &mut self,
        call: u64,
        request: Request,
        kind: Kind,
        asker: Asker<'_>,
        now: Duration,
        cx: &mut Context<'_>,
    ) {
        let id = (self.shell.id.0, self.boot, self.commands);
        cx.ledger.decided(call, Decided::Proposed { id });
        let waits = self.propose(kind, asker, now, cx);
        self.calls.push(Call { call, request, waits });
    }

    /// `Handle::login`, when this member is as far as the cluster. That a password takes long to compare is left out; clients
    /// themselves try again when users have changed meanwhile.
    fn log_in(&mut self, call: u64, request: Request, now: Duration, cx: &mut Context<'_>) {
        let Request::Login { user, password } = &request else { unreachable!("nothing else has a password") };
        let (hash, auth_revision) = (self.state().auth.hash_of(user), self.state().auth.revision());
        let refused = match hash {
            Ok(hash) if *hash == *password.as_bytes() => None,
            Ok(_) => Some(auth::Error::WrongPassword),
            Err(error) => Some(error),
        };
        if let Some(error) = refused {
            let outcome = Outcome::Refused(users::text(error).into());
            return cx.effects.push(Effect::Answer { call, outcome });
        }
        let random = std::array::from_fn(|_| cx.dice.below(256) as u8);
        let command = Authenticate { name: user.clone(), token: token::letters(random), auth_revision };
        self.propose_for(call, request, Kind::Authenticate(command), Asker::Nobody, now, cx);
    }

    fn propose(&mut self, kind: Kind, asker: Asker<'_>, now: Duration, cx: &mut Context<'_>) -> Waits {
        let (reply, outcome) = oneshot::channel();
        let id = self.commands;
        self.commands += 1;
        let command = encode_command(&Command::new(id, asker, kind));
        self.with_core(now, cx, |core, out| core.propose(id, command, reply, out));
        Waits::Reply(outcome)
    }

    /// `server::founding`: what is said to a member without data.
    fn asked(&mut self, question: Question, now: Duration, cx: &mut Context<'_>) {
        let asker = id_of(question.asker);
        let (at_once, alone) = {
            let state = self.state();
            let fresh = self.fresh && !self.shell.knew_leader;
            let alone = founding::depend_on_each_other(self.shell.id, asker, &state.conf_state().voters);
            (founding::answer(asker, fresh, &state.members), alone)
        };
        match at_once {
            Some(answer) => self.say(question, answer, cx),
            None if alone => {
                let answer = founding::confirmed(asker, &self.state().members);
                self.say(question, answer, cx);
            }
            None if self.core.node().leader().is_none() => self.say(question, Answer::Unsure, cx),
            None => {
                let waits = self.propose(Kind::LeaseRemaining(LeaseRemaining::default()), Asker::Nobody, now, cx);
                self.standings.push((question, waits, cx.now + CONFIRM_TIMEOUT));
            }
        }
    }

    /// What is only in memory would be forgotten by a crash: whoever was removed may rely on what is on disk.
    fn say(&mut self, question: Question, answer: Answer, cx: &mut Context<'_>) {
        let asker = id_of(question.asker);
        let row = self.shell.newest.get(Bucket::MembersRemoved, &schema::u64_row(asker.0));
        let forgettable = self.state().members.was_removed(asker) && row.expect("memory can be read").is_none();
        let answer = if answer == Answer::Removed && forgettable { Answer::Unsure } else { answer };
        let table = self.state().members.iter().map(|(id, member)| member.record(id)).collect();
        cx.effects.push(Effect::AnswerQuestion { question, answer, table });
    }

    fn finish_standings(&mut self, cx: &mut Context<'_>) {
        for (question, mut waits, until) in std::mem::take(&mut self.standings) {
            let Waits::Reply(outcome) = &mut waits else { unreachable!("it waits for a proposal") };
            let answer = match outcome.try_recv() {
                Ok(Ok(_) | Err(Error::Refused(_))) => founding::confirmed(id_of(question.asker), &self.state().members),
                Err(oneshot::error::TryRecvError::Empty) if cx.now < until => {
                    self.standings.push((question, waits, until));
                    continue;
                }
                _ => Answer::Unsure,
            };
            self.say(question, answer, cx);
        }
    }

    /// Removed, it asks every member that it knows, and those that they know. Until then it learns from who refuses it.
    fn dial(&mut self, cx: &mut Context<'_>) {
        cx.later(DIAL_PAUSE, MemberEvent::Dial);
        let others = self.others().into_iter().map(|other| place_of(other.0));
        if self.shell.leaving.is_none() {
            return cx.effects.push(Effect::Dial { others: others.collect() });
        }
        cx.effects.extend(others.map(|to| Effect::Ask { to }));
        self.go_if_allowed(cx);
    }

    /// All that it knows of but for itself.
    fn others(&self) -> BTreeSet<MemberId> {
        let mut others: BTreeSet<MemberId> = self.state().members.iter().map(|(id, _)| id).collect();
        others.extend(self.shell.leaving.iter().flat_map(Leaving::named));
        others.remove(&self.shell.id);
        others
    }

    fn is_known(&mut self, by: usize, table: &[MemberRecord], cx: &mut Context<'_>) {
        let voters = table.iter().filter(|member| !member.is_learner).map(|member| MemberId(member.id));
        if let Some(leaving) = &mut self.shell.leaving {
            leaving.told(id_of(by), voters);
            self.go_if_allowed(cx);
        }
    }

    fn go_if_allowed(&mut self, cx: &mut Context<'_>) {
        let allowed = self.shell.leaving.as_ref().is_some_and(Leaving::may_go);
        if allowed && !std::mem::replace(&mut self.shell.going, true) {
            cx.later(FAREWELL, MemberEvent::Retire);
        }
    }

    /// The verbs of the server's `members`: what is unwise is not proposed.
    fn reconfigure(
        &mut self,
        change: Change,
        connected_since: &BTreeMap<u64, Duration>,
        now: Duration,
        cx: &mut Context<'_>,
    ) {
        let own = self.shell.id;
        let connected = |id: MemberId| connected_since.get(&id.0).copied();
        let wise = {
            let members = &self.state().members;
            match &change {
                Change::Add(new) => reconfig::may_add(members, new.is_learner, own, connected),
                Change::Promote(_) => reconfig::may_promote(members),
                Change::Remove(removed) => reconfig::may_remove(members, MemberId(removed.id), own, connected),
            }
        };
        cx.effects.push(Effect::Note(format!("{change:?}: {wise:?}")));
        if wise.is_err() {
            return;
        }
        if let Change::Add(MemberAdd { is_learner: false, .. }) = change {
            let voters: Vec<MemberId> = self.state().members.voters().map(|(id, _)| id).collect();
            cx.ledger.lets_in(own, &voters, connected_since);
        }
        let (reply, outcome) = oneshot::channel();
        let id = self.commands;
        self.commands += 1;
        self.with_core(now, cx, |core, out| core.reconfigure(id, change, reply, out));
        self.changes.push(outcome);
    }

    fn finish_changes(&mut self, cx: &mut Context<'_>) {
        for mut change in std::mem::take(&mut self.changes) {
            match change.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => self.changes.push(change),
                Ok(Ok(Reply::Members(members))) => {
                    cx.effects.push(Effect::Note(format!("changed: {} members", members.len())));
                }
                other => cx.effects.push(Effect::Note(format!("not changed: {:?}", other.err()))),
            }
        }
    }

    /// `Handle::range`, in slices between which other things happen.
    fn begin_read(&mut self, call: u64, request: Request, caller: Caller, cx: &mut Context<'_>) -> Result<(), Death> {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let (range, txn) = (clients::range(&request), clients::txn(&request));
        let wanted = match (&range, &txn) {
            (Some(range), _) => Wanted::Range(range),
            (None, txn) => Wanted::Txn(txn.as_ref().expect("only ranges and transactions are read")),
        };
        let (by, applied) = (users::asker(caller.asker()), state.applied().0);
        cx.ledger.decided(call, Decided::Looked { by, applied });
        if let Err(error) = state.permit(caller.asker(), wanted) {
            let outcome = Outcome::Refused(users::text(error).into());
            cx.effects.push(Effect::Answer { call, outcome });
            return Ok(());
        }
        let Some(range) = range else {
            let txn = txn.expect("looked at above");
            let outcome = clients::read_outcome(state.kv.read_txn(&txn), clients::txn_reply)?;
            cx.effects.push(Effect::Answer { call, outcome });
            return Ok(());
        };
        match state.kv.scan(&range) {
            Ok(scan) => {
                self.scans.insert(call, Scanning { request, scan, caller });
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
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
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
                let response = finished.and_then(|found| found.into_response(revision));
                debug_assert!(matches!(scanning.request, Request::Range { .. }), "nothing else is read in slices");
                let state = self.state();
                let (by, applied) = (users::asker(scanning.caller.asker()), state.applied().0);
                cx.ledger.decided(call, Decided::LookedAgain { by, applied });
                match scanning.caller.asker() {
                    Asker::User { revision, .. } if state.auth.is_enabled() && state.auth.revision() != revision => {
                        Outcome::Refused(users::text(auth::Error::OldRevision).into())
                    }
                    _ => clients::read_outcome(response, clients::range_reply)?,
                }
            }
            Err(error) => clients::read_outcome(Err::<(), _>(error), |()| unreachable!("it is an error"))?,
        };
        cx.effects.push(Effect::Answer { call, outcome });
        Ok(())
    }

    /// `api::lease`: who asks is looked at before the leader is asked.
    fn ask_of_lease(
        &mut self,
        call: u64,
        caller: Caller,
        request: Request,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) {
        let wanted = match &request {
            Request::KeepAlive { id } => Wanted::Renewal(LeaseId(*id)),
            _ => Wanted::Login,
        };
        let (permitted, applied) = {
            let state = self.state();
            (state.permit(caller.asker(), wanted), state.applied().0)
        };
        cx.ledger.decided(call, Decided::Looked { by: users::asker(caller.asker()), applied });
        if let Err(error) = permitted {
            let outcome = Outcome::Refused(users::text(error).into());
            return cx.effects.push(Effect::Answer { call, outcome });
        }
        self.lease_callers.insert(call, caller);
        self.ask_leader(call, request, deadline, now, cx);
    }

    fn ask_leader(&mut self, call: u64, request: Request, deadline: u64, now: Duration, cx: &mut Context<'_>) {
        match self.core.node().leader() {
            Some(leader) if leader == self.shell.id => self.ask_lessor(None, call, request, deadline, now, cx),
            Some(leader) => {
                let leader = place_of(leader.0);
                cx.effects.push(Effect::AskLessor { leader, call, request, deadline });
            }
            None => self.lessor_said(call, request, None, deadline, now, cx),
        }
    }

    /// `Handle::renew_here` and `Handle::time_to_live_here`, for one lease.
    fn ask_lessor(
        &mut self,
        origin: Option<usize>,
        call: u64,
        request: Request,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) {
        let waits = match &request {
            Request::KeepAlive { id } => {
                let (reply, answers) = oneshot::channel();
                self.with_core(now, cx, |core, out| core.renew(vec![LeaseId(*id)], reply, out));
                LessorSays::Renewed(answers)
            }
            Request::TimeToLive { id, .. } => {
                let (reply, left) = oneshot::channel();
                self.with_core(now, cx, |core, _| core.time_to_live(LeaseId(*id), reply));
                LessorSays::Left(left)
            }
            _ => unreachable!("nothing else is asked of the lessor"),
        };
        self.lessor_calls.push(LessorCall { origin, call, request, deadline, waits });
    }

    fn finish_lessor_calls(&mut self, now: Duration, cx: &mut Context<'_>) {
        for mut asked in std::mem::take(&mut self.lessor_calls) {
            let answer = match &mut asked.waits {
                LessorSays::Renewed(answers) => answers.try_recv().map(|mut answers| match answers.pop() {
                    Some(Renewal::Ttl(ttl_s)) => Some(CheckedReply::KeepAlive { ttl_s }),
                    Some(Renewal::Unknown) => Some(CheckedReply::KeepAlive { ttl_s: 0 }),
                    Some(Renewal::Unavailable) | None => None,
                }),
                LessorSays::Left(left) => left.try_recv().map(|left| {
                    let (granted_ttl_s, ttl_s) = match left {
                        Remaining::Left { ttl, granted_ttl } => (granted_ttl, ttl),
                        Remaining::Unknown => (0, -1),
                        Remaining::Unavailable => return None,
                    };
                    Some(CheckedReply::TimeToLive { granted_ttl_s, ttl_s, keys: Vec::new() })
                }),
            };
            if let Err(oneshot::error::TryRecvError::Empty) = answer {
                self.lessor_calls.push(asked);
                continue;
            }
            let LessorCall { origin, call, request, deadline, .. } = asked;
            let answer = answer.unwrap_or(None);
            match origin {
                Some(origin) => cx.effects.push(Effect::AnswerForLessor { origin, call, request, answer, deadline }),
                None => self.lessor_said(call, request, answer, deadline, now, cx),
            }
        }
    }

    /// An answer for the client, or another try.
    fn lessor_said(
        &mut self,
        call: u64,
        request: Request,
        answer: Option<CheckedReply>,
        deadline: u64,
        now: Duration,
        cx: &mut Context<'_>,
    ) {
        // An answer may come twice, or for who asked before a restart.
        let Some(caller) = self.lease_callers.remove(&call) else { return };
        match answer {
            Some(reply @ CheckedReply::TimeToLive { ttl_s: 0.., .. })
                if matches!(request, Request::TimeToLive { keys: true, .. }) =>
            {
                // What is attached is replicated, as soon as this member is as far.
                let (reader, confirmed) = oneshot::channel();
                self.with_core(now, cx, |core, out| core.linearize(reader, out));
                self.calls.push(Call { call, request, waits: Waits::Keys(confirmed, reply, caller) });
            }
            Some(reply) => {
                let revision = self.state().kv.revision().0;
                cx.effects.push(Effect::Answer { call, outcome: Outcome::Ok { revision, reply } });
            }
            None if cx.now < deadline => {
                self.lease_callers.insert(call, caller);
                cx.later(100 * MILLI, MemberEvent::AskLeader { call, request, deadline });
            }
            None => cx.effects.push(Effect::Answer { call, outcome: Outcome::Unknown }),
        }
    }

    /// The keys of a lease, for what the leader has said of its time.
    fn with_keys(
        &mut self,
        call: u64,
        request: &Request,
        mut reply: CheckedReply,
        caller: &Caller,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let state = self.state();
        if let (Request::TimeToLive { id, .. }, CheckedReply::TimeToLive { keys, .. }) = (request, &mut reply) {
            let (by, applied) = (users::asker(caller.asker()), state.applied().0);
            cx.ledger.decided(call, Decided::LookedAtKeys { by, applied });
            if let Err(error) = state.permit(caller.asker(), Wanted::LeaseKeys(LeaseId(*id))) {
                return Outcome::Refused(users::text(error).into());
            }
            let lease = state.leases.get(LeaseId(*id));
            keys.extend(lease.into_iter().flat_map(|lease| lease.keys()).map(|key| key.to_vec()));
        }
        Outcome::Ok { revision: state.kv.revision().0, reply }
    }

    fn finish_calls(&mut self, now: Duration, cx: &mut Context<'_>) -> Result<(), Death> {
        self.finish_lessor_calls(now, cx);
        self.finish_standings(cx);
        self.finish_changes(cx);
        for mut call in std::mem::take(&mut self.calls) {
            let Some(heard) = call.waits.heard() else {
                self.calls.push(call);
                continue;
            };
            let outcome = match (heard, call.waits) {
                (Err(outcome), _) => outcome,
                (Ok(reply), Waits::Reply(_)) => clients::outcome(reply.expect("it is what was waited for")),
                (Ok(_), Waits::Read(_, caller)) => {
                    self.begin_read(call.call, call.request, caller, cx)?;
                    continue;
                }
                (Ok(_), Waits::Token(_, token, deadline)) => match self.recognise(call.call, &token, now, cx) {
                    Some(caller) => {
                        self.call_by(call.call, caller, call.request, deadline, now, cx)?;
                        continue;
                    }
                    None => Outcome::Refused(texts::TOKEN.into()),
                },
                (Ok(_), Waits::Password(_)) => {
                    self.log_in(call.call, call.request, now, cx);
                    continue;
                }
                (Ok(_), Waits::Keys(_, reply, caller)) => self.with_keys(call.call, &call.request, reply, &caller, cx),
            };
            cx.effects.push(Effect::Answer { call: call.call, outcome });
        }
        Ok(())
    }

    /// A client asks for watches, on a stream that it may have to open first.
    fn open(&mut self, stream: u64, by: By, watches: Vec<(usize, Spec)>, now: Duration, cx: &mut Context<'_>) {
        let Running { streams, shard, shell, shared, .. } = self;
        let stream = streams.entry(stream).or_insert_with(|| {
            let (id, outbox) = shard.hub().open_stream();
            let rights = Rights::new(&shell.guard(&shared.state, now));
            Stream {
                id,
                outbox,
                by,
                rights,
                noted: (false, 0),
                waiting: VecDeque::new(),
                confirmed: 0,
                sure: false,
                confirming: None,
                creating: VecDeque::new(),
                watches: BTreeMap::new(),
                quiet_until: 0,
            }
        });
        if stream.by != By::Member {
            let opening = |(watch, spec)| Opening { watch, spec, asked_at: cx.now };
            return stream.waiting.extend(watches.into_iter().map(opening));
        }
        for (watch, spec) in watches {
            stream.creating.push_back(watch);
            shard.hub().create(stream.id, spec);
        }
    }

    /// `Responses::listen` of `api::watch`: what watches are asked for is looked at when it is known how far this member must be.
    fn listen(&mut self, now: Duration, cx: &mut Context<'_>) {
        let mut streams = std::mem::take(&mut self.streams);
        for stream in streams.values_mut().filter(|stream| !stream.waiting.is_empty()) {
            loop {
                if let Some((confirmation, until)) = &mut stream.confirming {
                    match confirmation.try_recv() {
                        Err(oneshot::error::TryRecvError::Empty) if cx.now < *until => break,
                        outcome => stream.sure = matches!(outcome, Ok(Ok(()))),
                    }
                    stream.confirming = None;
                }
                while let Some(opening) = stream.waiting.front() {
                    let confirmed = stream.confirmed > 0;
                    if !confirmed && (opening.spec.start.0 == 0 || stream.by != By::Nobody) {
                        break;
                    }
                    stream.confirmed = stream.confirmed.saturating_sub(1);
                    let opening = stream.waiting.pop_front().expect("just looked at");
                    self.create(stream, opening, confirmed && stream.sure, now, cx);
                }
                if stream.waiting.is_empty() {
                    break;
                }
                (stream.confirmed, stream.sure) = (stream.waiting.len(), false);
                if self.core.node().leader().is_some() {
                    let (reader, confirmation) = oneshot::channel();
                    self.with_core(now, cx, |core, out| core.linearize(reader, out));
                    stream.confirming = Some((confirmation, cx.now + NOW_TIMEOUT));
                }
            }
        }
        self.streams = streams;
    }

    /// A watch is created for whoever may have it.
    fn create(&mut self, stream: &mut Stream, opening: Opening, confirmed: bool, now: Duration, cx: &mut Context<'_>) {
        let Opening { watch, spec, asked_at } = opening;
        let (enabled, applied) = {
            let state = self.state();
            (state.auth.is_enabled(), state.applied().0)
        };
        let (claim, token) = match &stream.by {
            By::Token(token) => (Claim::Token(token), enabled.then(|| token.clone())),
            _ => (Claim::Nothing, None),
        };
        let guard = self.shell.guard(&self.shared.state, now);
        let outcome = stream.rights.admit(&guard, claim, &spec.range);
        let by = guard.found.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();
        let refused = outcome.err().map(|denied| match denied {
            Denied::Token => texts::TOKEN,
            Denied::Auth(error) => users::text(error),
        });
        if let Some(token) = token.clone() {
            let shown = Token::Shown { token, known: refused != Some(texts::TOKEN) };
            cx.ledger.token((self.shell.id.0, self.shell.life), now, shown);
        }
        let by = users::asker(by.asker());
        cx.ledger.watched(watch, Watched::Asked { by, token, asked_at, applied, confirmed, refused });
        stream.creating.push_back(watch);
        match refused {
            None => self.shard.hub().create(stream.id, spec),
            Some(_) => self.shard.hub().refuse(stream.id, Refusal::Denied(DENIED)),
        }
    }

    /// What the streams' tasks do: they take what waits, as fast as their clients read, when they have looked whether those may
    /// hear it.
    fn drain_streams(&mut self, now: Duration, cx: &mut Context<'_>) {
        let (users, applied) = {
            let state = self.state();
            ((state.auth.is_enabled(), state.auth.revision()), state.applied().0)
        };
        let Running { streams, shard, shell, shared, .. } = self;
        let mut ended = Vec::new();
        for (token, stream) in streams.iter_mut() {
            // Where rights change, its task comes to it a little later, now and then.
            if stream.quiet_until > cx.now || stream.by != By::Member && cx.dice.chance(850) {
                continue;
            }
            let guard = shell.guard(&shared.state, now);
            stream.rights.review(&guard, |may| shard.hub().revoke(stream.id, may, DENIED));
            let (mut behind, mut written) = (None, BTreeSet::new());
            while let Some(mut next) = behind.take().or_else(|| stream.outbox.try_next()) {
                // As `api::watch` does; here not always.
                if let Next::Message(Outgoing::Events(events)) = &mut next
                    && cx.dice.chance(500)
                {
                    behind = stream.outbox.join(events, cx.options.message_bytes);
                }
                if let Next::Message(message) = &mut next
                    && !stream.rights.filter(message)
                {
                    continue;
                }
                match next {
                    // For each of its watchers.
                    Next::Message(Outgoing::Events(events)) => {
                        for events in events.each() {
                            let watch = stream.watches.get(&events.ids.as_slice()[0]).copied();
                            let message = Outgoing::Events(events);
                            written.extend(watch.filter(|_| stream.by != By::Member));
                            cx.effects.push(Effect::Watch { stream: *token, message, watch });
                        }
                    }
                    Next::Message(message) => {
                        let watch = match &message {
                            Outgoing::Created { id, .. } => {
                                let watch = stream.creating.pop_front();
                                stream.watches.extend(watch.map(|watch| (*id, watch)));
                                watch
                            }
                            Outgoing::Refused { .. } => stream.creating.pop_front(),
                            Outgoing::Canceled { id, reason, .. } if !reason.is_empty() => {
                                let watch = stream.watches.remove(id);
                                if let Some(watch) = watch {
                                    cx.ledger.watched(watch, Watched::Ended { applied });
                                }
                                watch
                            }
                            Outgoing::Canceled { id, .. } | Outgoing::Compacted { id, .. } => {
                                let watch = stream.watches.remove(id);
                                // It had ended before, and what waited for it comes up to its end.
                                watch.inspect(|watch| _ = written.remove(watch))
                            }
                            Outgoing::Progress { id: Some(id), .. } => stream.watches.get(id).copied(),
                            Outgoing::Progress { id: None, .. } | Outgoing::Events(_) => None,
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
                    Next::End(End::Stopped | End::NoLeader | End::Lagging) => {
                        ended.push(*token);
                        break;
                    }
                }
            }
            if stream.rights.ask_again() {
                shard.hub().progress(stream.id);
            }
            if std::mem::replace(&mut stream.noted, users) != users && stream.by != By::Member {
                written.extend(stream.watches.values().copied());
            }
            written.into_iter().for_each(|watch| cx.ledger.watched(watch, Watched::Goes { applied }));
        }
        for token in ended {
            if let Some(stream) = self.streams.remove(&token) {
                self.shard.hub().close_stream(stream.id);
            }
            cx.effects.push(Effect::StreamEnded { stream: token });
        }
    }

    /// Sees to it that what is left over is looked at again.
    fn schedule(&mut self, was_turn: bool, cx: &mut Context<'_>) {
        if !self.turn_due && (!was_turn || self.unfinished) {
            self.turn_due = true;
            let delay = cx.dice.below(if was_turn { cx.options.apply_delay } else { MILLI / 4 });
            cx.later(delay, MemberEvent::Turn);
        }
        if !self.hear_due && self.shard.has_news() {
            self.hear_due = true;
            let delay = cx.dice.below(cx.options.hear_delay);
            cx.later(delay, MemberEvent::Hear);
        }
        if !self.catch_up_due && self.shard.stats().slow_watchers > 0 {
            self.catch_up_due = true;
            let delay = cx.dice.below(cx.options.catch_up_delay);
            cx.later(delay, MemberEvent::CatchUp);
        }
    }
}

fn begin(shell: &mut Shell, work: BackendWork, cx: &mut Context<'_>) {
    shell.backend_busy = Some(work);
    shell.due_missed = false;
    let delay = cx.options.disk_delay(cx.dice);
    cx.later(delay, MemberEvent::BackendDone);
}

/// Answers and cancellations that may wait for a stream beyond its events: clients here ask for so few at a time.
const ANSWERS_MAX: usize = 600;
/// One message of events may go over what a stream may hold.
const MESSAGE_MAX: usize = 2 << 20;
/// Writes that may wait for the log, and commits for the backend, before somebody is to blame.
const LOG_QUEUE_MAX: usize = 2000;
const BACKEND_QUEUE_MAX: usize = 20_000;
/// At these indices members compare the hashes of all they have.
const HASH_EVERY: u64 = 32;
