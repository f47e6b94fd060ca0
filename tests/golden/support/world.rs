//! What a script talks to: one member, with its state machine, its hub and its leader's lessor, over a backend in memory.
//!
//! Commands that change something go the way they go in the server: encoded into an entry, and through the server's own
//! [`apply_loop::turn`], which changes the state, tells the hub and answers. Of raft there is only what counts votes: it is told
//! of each change of the configuration, and must come to the same as the state. What is missing is any waiting.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use everwatch::auth::token::TokenChange;
use everwatch::auth::{self, Asker};
use everwatch::lease::Lessor;
use everwatch::mvcc::History;
use everwatch::pb::etcdserverpb::LeaseGrantRequest;
use everwatch::pb::everwatchpb::{ConfState, MemberRecord};
use everwatch::raft::{self, Entry, LogStart, Node, NodeConfig, encode_conf_change};
use everwatch::server::apply_loop::{self, Proposer};
use everwatch::state::StateMachine;
use everwatch::state::applied::{LeaseChange, Refusal, Reply};
use everwatch::state::command::{
    Change, Command, Kind, ProposalWriter, Reconfiguration, encode_command, encode_reconfiguration,
};
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch};
use everwatch::types::{LeaseId, MemberId};
use everwatch::watch::Feeds;

use crate::watch_commands::{self, Watches};
use crate::{auth_commands, kv, lease_commands, member_commands};

/// The member that proposes what scripts say.
const OWN: Proposer = Proposer { member: 1, boot: 1 };

/// The state of one script. The member leads in term 1, at second 0, when it begins.
pub(crate) struct World {
    /// What survives `restart`: what was flushed.
    backend: MemoryBackend,
    /// What was done and the backend does not have yet.
    pub(crate) batch: Batch,
    state: Arc<RwLock<StateMachine>>,
    /// What counts votes.
    node: Node,
    /// Those who are told.
    pub(crate) watches: Watches,
    /// The leader's clock half of leases.
    pub(crate) lessor: Lessor,
    /// The leader's clock.
    pub(crate) now: Duration,
    pub(crate) term: u64,
    index: u64,
    /// Who asks.
    pub(crate) speaker: Speaker,
}

/// Who asks in a script.
pub(crate) enum Speaker {
    Nobody,
    Member,
    User(String, u64),
}

impl Speaker {
    pub(crate) fn asker(&self) -> Asker<'_> {
        match self {
            Speaker::Nobody => Asker::Nobody,
            Speaker::Member => Asker::Member,
            Speaker::User(name, revision) => Asker::User { name, revision: *revision },
        }
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::founded_by(&[1])
    }

    /// A world for scripts about members: three have founded it.
    pub(crate) fn of_three() -> World {
        World::founded_by(&[1, 2, 3])
    }

    fn founded_by(ids: &[u64]) -> World {
        let backend = MemoryBackend::new();
        let founder = |id: &u64| MemberRecord {
            id: *id,
            name: format!("m{id}"),
            peer_urls: vec![format!("http://h:{id}")],
            ..Default::default()
        };
        let founders: Vec<MemberRecord> = ids.iter().map(founder).collect();
        let conf_state = ConfState { voters: ids.to_vec(), ..Default::default() };
        backend.commit(&StateMachine::founding_rows(&founders, &conf_state)).unwrap();
        let state = StateMachine::open(backend.reader().unwrap()).unwrap();
        let mut lessor = Lessor::default();
        lessor.promote(&state.leases, Duration::ZERO, Duration::ZERO);
        let node = node(&state);
        let (watches, state) = watched(state);
        let (batch, speaker) = (Batch::default(), Speaker::Nobody);
        World { watches, node, state, backend, batch, lessor, now: Duration::ZERO, term: 1, index: 1, speaker }
    }

    /// A world for scripts that are not about leases: those below 100 exist, for ever.
    pub(crate) fn with_leases() -> World {
        let mut world = World::new();
        let grant = |id| Kind::LeaseGrant(LeaseGrantRequest { id, ttl: 1_000_000 });
        world.apply((1..100).map(grant).collect());
        world
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, StateMachine> {
        self.state.read().unwrap()
    }

    /// For what the server does beside applying: removing rows, forgetting what the backend has.
    pub(crate) fn state_mut(&mut self) -> (RwLockWriteGuard<'_, StateMachine>, &mut Batch) {
        (self.state.write().unwrap(), &mut self.batch)
    }

    /// Carries out a command, given as its line and the indented lines below it, and says what came of it.
    pub(crate) fn run(&mut self, command: &[&str]) -> Vec<String> {
        let words: Vec<&str> = command[0].split_whitespace().collect();
        let mut lines = match words[0] {
            "flush" => {
                self.flush();
                Vec::new()
            }
            "restart" => self.restart(),
            _ => kv::run(self, &words, &command[1..])
                .or_else(|| lease_commands::run(self, &words))
                .or_else(|| watch_commands::run(self, &words))
                .or_else(|| auth_commands::run(self, &words, &command[1..]))
                .or_else(|| member_commands::run(self, &words, &command[1..]))
                .unwrap_or_else(|| panic!("no command {:?}; the areas' commands are in golden/support/", command[0])),
        };
        lines.extend(self.watches.follow(&self.state.read().unwrap().kv));
        lines
    }

    /// An entry with one command: what its proposer is told, then what became of leases' keys.
    pub(crate) fn propose(&mut self, kind: Kind) -> Vec<String> {
        let deletes_by_lease = matches!(kind, Kind::LeaseRevoke(_) | Kind::LeaseExpire(_));
        let before = self.state().kv.revision();
        let reply = self.apply(vec![kind]).remove(0);
        let mut lines = show_reply(&reply);
        if deletes_by_lease && let History::Ready(sets) = self.state().kv.history(before.next(), usize::MAX) {
            for set in &sets {
                let keys: Vec<String> = set.changes.iter().map(|change| kv::show(&change.key)).collect();
                lines.push(format!("{} deleted {}", set.revision, keys.join(" ")));
            }
        }
        lines
    }

    /// An entry with these commands, one after the other.
    pub(crate) fn apply(&mut self, kinds: Vec<Kind>) -> Vec<Result<Reply, Refusal>> {
        self.turn(vec![commands_of(self.speaker.asker(), kinds)])
    }

    /// One turn of the apply loop with these entries, which get their places here.
    pub(crate) fn turn(&mut self, mut entries: Vec<Entry>) -> Vec<Result<Reply, Refusal>> {
        for entry in &mut entries {
            self.index += 1;
            (entry.index, entry.term) = (self.index, self.term);
        }
        let elsewhere = Feeds::new(1, self.state().kv.revision());
        let feeds = self.watches.feeds().unwrap_or(&elsewhere);
        let batch = &mut self.batch;
        let submit = &mut |rows: Batch| batch.rows.extend(rows.rows);
        let turn = apply_loop::turn(&self.state, feeds, OWN, entries, submit).unwrap();
        turn.reconfigure(&mut self.node);
        if let Some(at) = turn.compacted.filter(|_| !self.watches.has_grace()) {
            self.state.write().unwrap().kv.remove(at);
        }
        self.watches.hear(turn.compacted);
        for change in turn.leases {
            match change {
                LeaseChange::Granted { id, ttl } => self.lessor.granted(id, ttl, self.now),
                LeaseChange::Revoked { id } => self.lessor.revoked(id),
                LeaseChange::Remaining { id, rest_ms } => self.lessor.remaining_changed(id, rest_ms, self.now),
            }
        }
        turn.replies.into_iter().map(|(_, reply)| reply).collect()
    }

    fn flush(&mut self) {
        self.backend.commit(&std::mem::take(&mut self.batch)).unwrap();
        self.state.write().unwrap().kv.flushed(self.backend.reader().unwrap()).unwrap();
    }

    /// An orderly stop: everything is flushed. The member comes back from its rows, not leading.
    fn restart(&mut self) -> Vec<String> {
        self.flush();
        let state = StateMachine::open(self.backend.reader().unwrap()).unwrap();
        self.lessor.demote();
        self.node = node(&state);
        let of_lease = |(id, lease): (LeaseId, &everwatch::lease::Lease)| -> Vec<String> {
            lease.keys().map(|key| format!("leased {}={id}", kv::show(key))).collect()
        };
        let mut leased: Vec<String> = state.leases.iter().flat_map(of_lease).collect();
        leased.sort();
        let is = format!("rev={} compacted={}", state.kv.revision(), state.kv.compacted());
        (self.watches, self.state) = watched(state);
        [is].into_iter().chain(leased).collect()
    }
}

/// An entry with these commands, that nobody asked for.
pub(crate) fn commands(kinds: Vec<Kind>) -> Entry {
    commands_of(Asker::Nobody, kinds)
}

fn commands_of(asker: Asker<'_>, kinds: Vec<Kind>) -> Entry {
    let mut proposal = ProposalWriter::new(OWN.member, OWN.boot, 0);
    for (id, kind) in (1..).zip(kinds) {
        proposal.push(&encode_command(&Command::new(id, asker, kind)));
    }
    Entry { data: proposal.finish(), ..Default::default() }
}

/// An entry that changes who belongs.
pub(crate) fn reconfiguration(change: Change) -> Entry {
    let raft = apply_loop::conf_change(&change);
    let command = Reconfiguration { proposer: OWN.member, boot: OWN.boot, id: 1, change: Some(change) };
    encode_conf_change(&raft, encode_reconfiguration(&command))
}

/// A state, and those who are told of it.
fn watched(state: StateMachine) -> (Watches, Arc<RwLock<StateMachine>>) {
    let state = Arc::new(RwLock::new(state));
    let read = state.clone();
    let record = Box::new(move |place| read.read().unwrap().kv.record(place).unwrap());
    let watches = Watches::new(&state.read().unwrap().kv, record);
    (watches, state)
}

/// A node as the server starts it over this state.
fn node(state: &StateMachine) -> Node {
    let ConfState { voters, learners, .. } = state.conf_state().clone();
    let log = LogStart {
        base: (state.applied(), state.applied_term()),
        conf_state: raft::ConfState { voters, learners, ..Default::default() },
        hard_state: None,
        entries: Vec::new(),
    };
    Node::new(NodeConfig {
        id: MemberId(OWN.member),
        election_ticks: 10,
        heartbeat_ticks: 1,
        applied: state.applied(),
        seed: 1,
        boot: OWN.boot,
        pre_vote: true,
        log,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    })
    .unwrap()
}

pub(crate) fn show_reply(reply: &Result<Reply, Refusal>) -> Vec<String> {
    match reply {
        Ok(Reply::Put(response)) => kv::show_put(response),
        Ok(Reply::DeleteRange(response)) => kv::show_delete(response),
        Ok(Reply::Txn(response)) => kv::show_txn(response, ""),
        Ok(Reply::LeaseGrant(response)) => {
            vec![format!("rev={} id={} ttl={}", kv::revision(&response.header), response.id, response.ttl)]
        }
        Ok(Reply::LeaseRevoke(response)) => vec![format!("rev={}", kv::revision(&response.header))],
        Ok(Reply::AuthChanged { revision, tokens }) => {
            let void = match tokens {
                Some(TokenChange::VoidOf(user)) => format!(", tokens of {user} are void"),
                Some(TokenChange::VoidAll) => ", all tokens are void".into(),
                _ => String::new(),
            };
            vec![format!("rev={revision}{void}")]
        }
        Ok(Reply::Authenticated { revision, token, .. }) => vec![format!("rev={revision} token={token}")],
        Ok(Reply::Members(members)) => members.iter().map(member_commands::show).collect(),
        Ok(_) => Vec::new(),
        Err(refusal) => vec![show_refusal(refusal)],
    }
}

fn show_refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Compacted(at) => format!("error: compacted at {at}"),
        Refusal::FutureRevision => "error: future revision".into(),
        Refusal::KeyNotFound => "error: key not found".into(),
        Refusal::LeaseNotFound => "error: lease not found".into(),
        Refusal::LeaseExists => "error: lease exists".into(),
        Refusal::NoSpace => "error: no space".into(),
        Refusal::Corrupt => "error: corrupt".into(),
        Refusal::InvalidSort => "error: invalid sort".into(),
        Refusal::MemberNotFound => "error: member not found".into(),
        Refusal::MemberExists => "error: member exists".into(),
        Refusal::PeerUrlExists => "error: peer url exists".into(),
        Refusal::NotLearner => "error: not a learner".into(),
        Refusal::TooManyLearners => "error: too many learners".into(),
        Refusal::LastVoter => "error: last voter".into(),
        Refusal::Auth(error) => show_auth_error(*error),
    }
}

pub(crate) fn show_auth_error(error: auth::Error) -> String {
    use auth::Error::*;
    let text = match error {
        NoRootUser => "no user root",
        NoRootRole => "root has not the role root",
        UserEmpty => "nobody",
        UserExists => "user exists",
        UserNotFound => "user not found",
        RoleEmpty => "role without a name",
        RoleExists => "role exists",
        RoleNotFound => "role not found",
        RoleNotGranted => "role not granted",
        PermissionMissing => "no permission given",
        PermissionNotGranted => "permission not granted",
        InvalidManagement => "invalid management",
        PermissionDenied => "denied",
        OldRevision => "old auth revision",
        NotEnabled => "auth is off",
        WrongPassword => "wrong password",
        NoPassword => "no password",
        VerifyOnly => "no key to sign with",
    };
    format!("error: {text}")
}
