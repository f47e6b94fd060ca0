//! The core: where raft's turn and apply's turn run back to back.
//!
//! It owns the node, and everything that waits for it: commands for a leader, clients for replies, reads for a quorum. It is told
//! what happened (a command, a peer's message, the log is durable up to here, time passed) and then makes a [turn](Core::turn):
//! proposals and questions go to raft, what raft says goes where it belongs, what was committed is carried out, whoever waited is
//! answered. It never waits, and knows neither clock, disk nor socket: all of that is its [`Outside`], which the server and the
//! simulator each have their own of.
//!
//! Everything it does in one turn is bounded: committed entries by their bytes, compaction by keys per step, lease expiry by leases on
//! their way. What is left over is said by the turn's outcome, and done in the next.
//!
//! The order of effects is the promise of this file: messages that need no disk leave before anything is carried out; a committed
//! entry's rows go to the backend before watchers hear of them, watchers hear before the applied index rises, and that rises before
//! a client has its reply.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::apply_loop::{self, Proposer};
use super::error::Error;
use super::lease_loop;
use super::log_writer::LogJob;
use super::pending::Pending;
use super::raft_loop;
use super::reads::Reads;
use super::renewals::{Need, Renewals};
use super::waiters::Waiters;
use super::watch_loop::Monitor;
use crate::cluster::Membership;
use crate::cluster::reconfig::Unwise;
use crate::lease::Lessor;
use crate::pb::everwatchpb::{ClusterVersion, LeaseRemaining, MemberAttributes};
use crate::peer::{Learner, Remaining, Renewal};
use crate::raft::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, Input, Message, MessageType, Node, Rejected, Role,
    SnapshotPoint, decode_conf_change,
};
use crate::state::StateMachine;
use crate::state::alarm::AlarmKind;
use crate::state::applied::{LeaseChange, Refusal, Reply};
use crate::state::command::{Change, Command, Kind, Reconfiguration, encode_command, encode_reconfiguration};
use crate::storage::backend::{Batch, Reader};
use crate::storage::wal::Base;
use crate::types::{Index, LeaseId, MemberId, Revision, Term};
use crate::watch::{End, Feeds, Notice};

/// Steps of compaction between two commits of the backend. Beyond this the next one waits: the rows to be removed are held in
/// memory until then.
const COMPACTION_STEPS_MAX: u32 = 10;
/// Bytes of log kept in memory beyond what is durably applied, whatever the entries' number.
const LOG_BYTES_KEPT: u64 = 24 << 20;
/// Ticks after which attributes are proposed again that nobody has applied: the proposal may have been lost with a leader.
const PUBLISH_TICKS: u64 = 10;

/// Commands of the core's own have numbers from here on where somebody waits for them; those of clients are smaller.
const OWN_COMMANDS: u64 = 1 << 63;
/// Changes of members that may wait for a leader, for the one before them or for their reply. Beyond this they are refused.
const CHANGES_MAX: usize = 100;

/// What the core is told at its start.
pub struct CoreConfig {
    /// Drawn at the start of this life: what an earlier one proposed has nobody waiting.
    pub boot: u64,
    /// Ticks in an election timeout.
    pub election_ticks: u64,
    /// The same as time.
    pub election: Duration,
    /// How long a proposal or a read may wait.
    pub request_timeout: Duration,
    /// Entries beyond the durably applied ones and the catch-up entries at which the log is truncated.
    pub snapshot_count: u64,
    /// Entries kept for members that are a little behind.
    pub catchup_entries: u64,
    /// Keys that one step of compaction looks at.
    pub compaction_keys: usize,
    /// How long what was compacted is kept for watchers that are reading it.
    pub compaction_grace: Duration,
    /// Bytes of entries carried out before others run. After a disk has stood still, all that waited for it is committed at once.
    pub apply_bytes: usize,
    /// This member's own attributes, to be published.
    pub attributes: MemberAttributes,
}

/// What the core and those who read beside it share.
#[derive(Clone)]
pub struct Shared {
    /// Written by the core alone.
    pub state: Arc<RwLock<StateMachine>>,
    /// Told by the core, heard by the hubs.
    pub feeds: Feeds,
}

/// Everything that is not the core. Calls come in the order in which they have to take effect, and none of them waits.
pub trait Outside {
    /// Time since the start of this life.
    fn now(&self) -> Duration;
    /// Messages for peers.
    fn send(&mut self, messages: Vec<Message>);
    /// A job for the log, after all before it.
    fn log(&mut self, job: LogJob);
    /// Rows for the backend, after all before them.
    fn commit(&mut self, batch: Batch);
    /// What the backend has gathered is to be committed now; [`Core::flush_done`] says when it is.
    fn flush(&mut self);
    /// Raft did not take the snapshot of this index that was offered to it: its file can go.
    fn discard_snapshot(&mut self, index: Index);
    /// The log starts after the snapshot of this index now, but the state is still to follow.
    fn adopting(&mut self, index: Index);
    /// The snapshot of this index is the state; `old` is of no more use, but may take long to take apart.
    fn adopted(&mut self, index: Index, old: StateMachine);
    /// Entries were carried out: said before whoever waited for them is answered. `began` is when that was begun.
    fn applied(&mut self, turn: &apply_loop::Turn, began: Duration);
    /// Who leads has changed, or the term, or whether this member is a learner.
    fn role(&mut self, role: Role, before: Option<Role>, learner: bool);
    /// Leadership goes to this member, or there is nobody to take it.
    fn handing_over(&mut self, to: Option<MemberId>);
    /// There has been no leader for as long as streams that need one bear it. Said again while there is none.
    fn leader_lost(&mut self);
    /// Whether this member has fallen so far behind that clients are better off elsewhere.
    fn lags(&mut self, lags: bool);
    /// The others know of this member: it can serve.
    fn ready(&mut self);
    /// A turn has ended: the last entry known to be committed, and how many clients wait for a reply.
    fn turned(&mut self, committed: Index, waiting: usize);
    /// Something came that made no sense and was dropped.
    fn dropped(&mut self, reason: &'static str);
    /// The member may not go on. Nothing that the core does after this counts.
    fn fail(&mut self, error: &dyn fmt::Display);
}

/// The owner of the node, and of everything that waits for it.
pub struct Core {
    node: Node,
    shared: Shared,
    config: CoreConfig,
    pending: Pending,
    /// Changes of members that somebody waits for.
    changes: Vec<AskedChange>,
    /// The term that this member last led and was asked to leave in, and when.
    asked_to_leave: Option<(Term, Duration)>,
    waiters: Waiters,
    reads: Reads,
    /// Leads when this member does.
    lessor: Lessor,
    renewals: Renewals,
    /// Commands of the core's own that somebody waits for, until now.
    commands: u64,
    /// Those who wait for compactions to end, and those of them whose flush is under way.
    compactions: Vec<oneshot::Sender<()>>,
    flushing: Vec<oneshot::Sender<()>>,
    /// Steps of compaction since the backend's last commit.
    compaction_steps: u32,
    /// Compactions whose rows are still there, and until when watchers may read them.
    graces: VecDeque<(Revision, Duration)>,
    /// Committed, and not carried out yet.
    committed: VecDeque<Entry>,
    /// A snapshot is being installed: the state stands still until it is there.
    installing: bool,
    /// What the log reported durable meanwhile. Raft hears of it with the snapshot: it would hand out what follows.
    persisted: u64,
    /// Snapshot received and put to raft: if raft does not take it, its file is to go.
    offered: Option<Index>,
    ticks: u64,
    /// Attributes were proposed at this tick and have not been applied yet.
    published_at: Option<u64>,
    role: Option<Role>,
    /// The term in which the lessor leads.
    promoted: Option<Term>,
    /// This member was removed: it votes on for as long as it is needed, but nothing comes of what clients want here.
    removed: bool,
    monitor: Monitor,
}

impl Core {
    /// The core over a node and a state that fit together. Raft is told what snapshots it may offer.
    pub fn new(config: CoreConfig, mut node: Node, shared: Shared, durable: SnapshotPoint) -> Core {
        // Cannot be refused: it is what the node's log starts from, or later.
        let _ = node.handle(Input::SnapshotReady(durable));
        // Nobody else could lead: waiting for a leader would be waiting for the clock.
        if node.voters() == [node.id()] {
            let _ = node.handle(Input::Campaign);
        }
        let own = node.id();
        let removed = shared.state.read().unwrap_or_else(PoisonError::into_inner).members.was_removed(own);
        Core {
            node,
            shared,
            config,
            pending: Pending::default(),
            changes: Vec::new(),
            asked_to_leave: None,
            waiters: Waiters::default(),
            reads: Reads::default(),
            lessor: Lessor::default(),
            renewals: Renewals::default(),
            commands: 0,
            compactions: Vec::new(),
            flushing: Vec::new(),
            compaction_steps: 0,
            graces: VecDeque::new(),
            committed: VecDeque::new(),
            installing: false,
            persisted: 0,
            offered: None,
            ticks: 0,
            published_at: None,
            role: None,
            promoted: None,
            removed,
            monitor: Monitor::default(),
        }
    }

    /// A command, encoded for a proposal, and who waits for its reply. Its number is below 2^63.
    pub fn propose(
        &mut self,
        id: u64,
        command: Bytes,
        reply: oneshot::Sender<Result<Reply, Error>>,
        out: &dyn Outside,
    ) {
        if let Some(error) = self.refusal(!self.pending.has_room()) {
            let _ = reply.send(Err(error));
            return;
        }
        let deadline = out.now() + self.config.request_timeout;
        self.waiters.add(id, deadline, reply);
        self.pending.push(deadline, command);
    }

    /// A change of members, and who waits for its reply.
    pub fn reconfigure(
        &mut self,
        id: u64,
        change: Change,
        reply: oneshot::Sender<Result<Reply, Error>>,
        out: &dyn Outside,
    ) {
        if let Some(error) = self.refusal(self.changes.len() >= CHANGES_MAX) {
            let _ = reply.send(Err(error));
            return;
        }
        let deadline = out.now() + self.config.request_timeout;
        self.waiters.add(id, deadline, reply);
        let (proposer, boot) = (self.node.id().0, self.config.boot);
        let command = Reconfiguration { proposer, boot, id, change: Some(change) };
        self.changes.push(AskedChange { command, due: Duration::ZERO, overtaken: false });
    }

    /// Somebody wants to read what is committed by now.
    pub fn linearize(&mut self, reader: oneshot::Sender<Result<(), Error>>, out: &dyn Outside) {
        if self.removed {
            let _ = reader.send(Err(Error::Stopped));
            return;
        }
        self.reads.add(out.now(), reader);
    }

    /// Somebody renews leases. One answer per id, in their order; it counts only if this member led afterwards.
    pub fn renew(&mut self, ids: Vec<LeaseId>, reply: oneshot::Sender<Vec<Renewal>>, out: &dyn Outside) {
        if self.removed {
            // Without an answer he asks elsewhere.
            return;
        }
        self.renewals.renew(ids, out.now() + self.config.request_timeout, reply);
    }

    /// Somebody asks what is left of a lease. As above.
    pub fn time_to_live(&mut self, id: LeaseId, reply: oneshot::Sender<Remaining>) {
        if self.removed {
            return;
        }
        self.renewals.time_to_live(id, reply);
    }

    /// Somebody asks whether a member that is to be promoted has the log.
    pub fn learner(&self, id: MemberId, reply: oneshot::Sender<Learner>) {
        let learner = match (self.node.is_leader(), self.node.is_behind(id)) {
            (false, _) => Learner::Unavailable,
            (true, true) => Learner::Behind,
            (true, false) => Learner::Unobjectionable,
        };
        // Whoever no longer waits has given up.
        let _ = reply.send(learner);
    }

    /// Somebody waits until no compaction has rows left to remove and the removals are on disk.
    pub fn await_compaction(&mut self, waiter: oneshot::Sender<()>) {
        self.compactions.push(waiter);
    }

    /// News for raft: a peer's message, what became of one of ours.
    pub fn tell(&mut self, input: Input, out: &mut dyn Outside) {
        if let Input::Message(message) = &input
            && message.get_msg_type() == MessageType::MsgPropose
            && message.entries.iter().filter_map(decode_conf_change).any(|change| self.is_own_removal(&change))
            && self.hands_over_first(out)
        {
            // Whoever proposes it proposes it again.
            return;
        }
        if let Some(reason) = raft_loop::tell(&mut self.node, input) {
            out.dropped(reason);
            if let Some(commit) = self.node.lost_log() {
                out.fail(&format_args!(
                    "the cluster counts on entries up to {commit} that this member has acknowledged and no longer has: \
                     its disk was replaced or rolled back; remove it from the cluster and add it anew"
                ));
            }
        }
    }

    /// A snapshot has been received, and is durable in a file of its own; `message` is what raft is to hear of it.
    pub fn snapshot_received(&mut self, message: Message, index: Index, out: &mut dyn Outside) {
        self.offered = Some(index);
        self.tell(Input::Message(message), out);
    }

    /// The log holds everything up to and including this output of raft.
    pub fn persisted(&mut self, number: u64, out: &mut dyn Outside) {
        if self.installing {
            self.persisted = number;
        } else {
            self.tell(Input::Persisted { number }, out);
        }
    }

    /// The backend has committed: `reader` shows what.
    pub fn flushed(&mut self, reader: &Arc<dyn Reader>, out: &mut dyn Outside) {
        self.compaction_steps = 0;
        if self.installing {
            return;
        }
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        let flushed = state.kv.flushed(reader.clone());
        drop(state);
        match flushed.and_then(|()| super::snapshot_point(&**reader)) {
            Ok(point) => self.durable(point, out),
            Err(error) => out.fail(&error),
        }
    }

    /// What the backend was asked to flush is on disk.
    pub fn flush_done(&mut self) {
        for waiter in self.flushing.drain(..) {
            let _ = waiter.send(());
        }
    }

    /// A snapshot has taken the backend's place: `number` is the output of raft that brought it, `new` the state it describes.
    pub fn installed(&mut self, number: u64, new: StateMachine, index: Index, out: &mut dyn Outside) {
        let (revision, compacted) = (new.kv.revision(), new.kv.compacted());
        if let Err(difference) = apply_loop::same_configuration(&self.node, new.conf_state()) {
            return out.fail(&difference);
        }
        let old = std::mem::replace(&mut *self.shared.state.write().unwrap_or_else(PoisonError::into_inner), new);
        self.graces.clear();
        self.changes.iter_mut().for_each(|asked| asked.overtaken = asked.due > Duration::ZERO);
        self.shared.feeds.tell(&[Notice::Restored { revision, compacted }]);
        self.installing = false;
        self.offered = None;
        out.adopted(index, old);
        self.rank_changed(out);
        self.leave_if_removed();
        self.tell(Input::Persisted { number: number.max(self.persisted) }, out);
        out.flush();
    }

    /// Asks `to` to lead, or whoever is fit to.
    pub fn hand_over(&mut self, to: Option<MemberId>, out: &mut dyn Outside) {
        let heir = to.or_else(|| self.heir());
        out.handing_over(heir);
        if let Some(heir) = heir {
            self.tell(Input::TransferLeader(heir), out);
        }
    }

    /// A heartbeat's time has passed.
    pub fn tick(&mut self, out: &mut dyn Outside) {
        let now = out.now();
        self.ticks += 1;
        self.tell(Input::Tick, out);
        self.pending.expire(now);
        self.waiters.expire(now);
        self.reads.expire(now, self.config.request_timeout);
        self.renewals.expire(now);
        self.publish(out);
        if self.ticks.is_multiple_of(self.config.election_ticks.max(1)) {
            let ended = self.monitor.tick(self.node.leader().is_some(), self.node.committed(), self.node.applied());
            ended.into_iter().for_each(|ended| self.shared.feeds.tell(&[Notice::Ended(ended)]));
            if ended == Some(End::NoLeader) {
                out.leader_lost();
            }
            out.lags(self.monitor.lags());
        }
        if self.node.is_leader() {
            self.expire_leases(true, out);
            let seen = self.state().applied();
            for command in lease_loop::record(&mut self.lessor, self.node.term(), seen, now) {
                self.put_pending(&command, out);
            }
        }
    }

    /// Leases that ran out end, some of them.
    fn expire_leases(&mut self, again: bool, out: &dyn Outside) {
        let seen = self.state().applied();
        if let Some(command) = lease_loop::expire(&mut self.lessor, self.node.term(), seen, out.now(), again) {
            self.put_pending(&command, out);
        }
    }

    /// Whether there are leases that should end now.
    fn leases_expire(&self, out: &dyn Outside) -> bool {
        self.node.is_leader() && lease_loop::expires(&self.lessor, out.now())
    }

    /// One turn: proposals and questions to raft, raft's answers to where they belong, until raft has nothing more to say. Whether
    /// it left something for the next.
    pub fn turn(&mut self, out: &mut dyn Outside) -> bool {
        // First: what they need goes out in this turn.
        self.renewals(out);
        if self.leases_expire(out) {
            self.expire_leases(false, out);
        }
        self.propose_pending(out);
        self.propose_changes(out);
        let Core { node, reads, .. } = self;
        reads.ask(out.now(), || {
            node.leader()?;
            let context = node.fresh_read();
            node.handle(Input::Read(context)).ok().map(|()| context)
        });
        let mut unfinished = false;
        loop {
            let turn = raft_loop::turn(&mut self.node);
            let progress = !turn.writes.is_empty();
            if !turn.messages.is_empty() {
                out.send(turn.messages);
            }
            for write in turn.writes {
                if let Some(base) = write.reset {
                    out.adopting(base.index);
                    self.installing = true;
                    // The snapshot has what they would have done.
                    self.committed.clear();
                }
                out.log(LogJob::Write(write));
            }
            // Before the role: a change of it fails reads that have no answer yet.
            for (context, index) in turn.reads {
                self.reads.confirm(&context, index);
            }
            if let Some(role) = turn.role {
                self.role_changed(role, out);
                // What was asked of the old leader is asked anew in the next turn.
                unfinished = true;
            }
            self.committed.extend(turn.committed);
            self.apply(self.config.apply_bytes, out);
            if !progress {
                break;
            }
        }
        if !self.installing
            && let Some(index) = self.offered.take()
        {
            out.discard_snapshot(index);
        }
        self.reads.applied(self.node.applied());
        unfinished |= self.renewals(out);
        unfinished |= self.compact(out);
        unfinished |= self.leases_expire(out);
        out.turned(self.node.committed(), self.waiters.len());
        unfinished || !self.committed.is_empty()
    }

    /// Carries out what was committed, or as much of it as makes up `bytes`.
    pub fn apply(&mut self, bytes: usize, out: &mut dyn Outside) {
        if self.installing {
            return;
        }
        let (mut taken, mut entries) = (0, Vec::new());
        while taken < bytes
            && let Some(entry) = self.committed.pop_front()
        {
            // An entry without commands is work, too.
            taken += entry.data.len() + 1;
            entries.push(entry);
        }
        let Some(last) = entries.last().map(|entry| Index(entry.index)) else { return };
        let began = out.now();
        let own = Proposer { member: self.node.id().0, boot: self.config.boot };
        let Shared { state, feeds } = &self.shared;
        let mut turn = match apply_loop::turn(state, feeds, own, entries, &mut |batch| out.commit(batch)) {
            Ok(turn) => turn,
            Err(error) => return out.fail(&error),
        };
        if let Some(at) = turn.compacted {
            self.graces.push_back((at, began + self.config.compaction_grace));
        }
        turn.reconfigure(&mut self.node);
        out.applied(&turn, began);
        if turn.conf_state.is_some() {
            self.rank_changed(out);
        }
        self.leases(std::mem::take(&mut turn.leases), turn.term, out);
        self.tell(Input::Applied(last), out);
        for (id, outcome) in turn.replies {
            let outcome = outcome.or_else(|refusal| self.change_done_before(id).ok_or(refusal));
            self.waiters.complete(id, outcome);
        }
        if turn.conf_state.is_some() {
            self.leave_if_removed();
        }
    }

    /// Once all are answered of whom it is known what became of what they wanted.
    fn leave_if_removed(&mut self) {
        if !self.removed && self.state().members.was_removed(self.node.id()) {
            self.leave();
        }
    }

    /// This member has carried out its own removal: whoever waits is told that it stops, and so is whoever comes.
    fn leave(&mut self) {
        self.removed = true;
        self.pending = Pending::default();
        for asked in std::mem::take(&mut self.changes) {
            // Its own removal, which came to it with a snapshot.
            let members = asked.is_done(&self.state().members).then(|| self.state().members.list());
            if let Some(members) = members {
                self.waiters.complete(asked.command.id, Ok(Reply::Members(members)));
            }
        }
        self.stop();
    }

    fn refusal(&self, full: bool) -> Option<Error> {
        if self.removed { Some(Error::Stopped) } else { full.then_some(Error::TooManyRequests) }
    }

    /// The member goes down: whoever waits is told so.
    pub fn stop(&mut self) {
        self.waiters.stop();
        self.reads.stop();
        self.renewals.stop();
    }

    /// Raft's part of it, to look at.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Whether the state stands still because a snapshot is about to replace it.
    pub fn is_installing(&self) -> bool {
        self.installing
    }

    /// How many clients wait for a reply.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    fn state(&self) -> std::sync::RwLockReadGuard<'_, StateMachine> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others this member's name and client URLs, until they have heard.
    fn publish(&mut self, out: &mut dyn Outside) {
        let own = &self.config.attributes;
        let (published, version_known) = {
            let state = self.state();
            let member = state.members.get(MemberId(own.id));
            let published = member.is_none_or(|m| m.name == own.name && m.client_urls == own.client_urls);
            (published, state.cluster_version().is_some())
        };
        if published {
            out.ready();
        }
        let due = self.published_at.is_none_or(|tick| self.ticks >= tick + PUBLISH_TICKS);
        if self.node.leader().is_none() || !due || (published && version_known) {
            return;
        }
        self.published_at = Some(self.ticks);
        if !published {
            let own = own.clone();
            self.put_pending(&Command { kind: Some(Kind::MemberAttributes(own)), ..Command::default() }, out);
        }
        if !version_known && self.node.is_leader() {
            let version = ClusterVersion { version: crate::version::CLUSTER.into() };
            self.put_pending(&Command { kind: Some(Kind::ClusterVersion(version)), ..Command::default() }, out);
        }
    }

    /// A command of the member's own: it is given up like a client's, and made again by whoever wants it.
    fn put_pending(&mut self, command: &Command, out: &dyn Outside) {
        self.pending.push(out.now() + self.config.request_timeout, encode_command(command));
    }

    fn propose_pending(&mut self, out: &mut dyn Outside) {
        if self.node.leader().is_none() {
            return;
        }
        while let Some((entry, taken)) = self.pending.entry(self.node.id().0, self.config.boot) {
            match self.node.handle(Input::Propose(entry)) {
                // Definite: it is in nobody's log. It waits for a leader, or for room, as etcd's clients expect.
                Err(Rejected::ProposalDropped) => return,
                Err(Rejected::Invalid(reason)) => return out.dropped(reason),
                _ => self.pending.taken(taken),
            }
        }
    }

    /// Proposes the changes of members that are due. One that nobody answers is proposed again: a leader elsewhere does not say
    /// what it refuses, and whatever is forwarded may get lost. Where both are carried out, the second has no effect.
    fn propose_changes(&mut self, out: &mut dyn Outside) {
        let Core { waiters, changes, .. } = self;
        changes.retain(|asked| waiters.is_waiting(asked.command.id));
        // A leader takes no change before it has carried out the first entry of its term.
        if self.changes.is_empty() || self.node.leader().is_none() || self.state().applied_term() != self.node.term() {
            return;
        }
        let now = out.now();
        let mut at = 0;
        while let Some(asked) = self.changes.get(at) {
            if asked.due > now {
                at += 1;
                continue;
            }
            let change = apply_loop::conf_change(asked.change());
            let context = encode_reconfiguration(&asked.command);
            if self.is_own_removal(&change) && self.hands_over_first(out) {
                return;
            }
            let refused = match self.node.handle(Input::ProposeConfChange { change, context }) {
                // It is in nobody's log, and waits for a leader, or until the change before it is carried out.
                Err(Rejected::ProposalDropped | Rejected::ConfChangePending) => return,
                Err(Rejected::LearnerBehind) => match self.changes[at].command.change {
                    Some(Change::Promote(_)) => Error::Unwise(Unwise::LearnerNotReady),
                    // The same URLs in the same second: raft cannot tell that nobody is to be promoted.
                    _ => Error::Refused(Refusal::MemberExists),
                },
                // Raft lets everybody in and out, but for the last voter.
                Err(Rejected::Invalid(_)) => Error::Refused(Refusal::LastVoter),
                Ok(()) | Err(Rejected::ReadDropped) => {
                    self.changes[at].due = now + self.config.election;
                    at += 1;
                    continue;
                }
            };
            self.waiters.fail(self.changes.remove(at).command.id, refused);
        }
    }

    /// The reply to a change that was refused, if that is because it was carried out before, and this member did not see it: it
    /// got past that with a snapshot.
    fn change_done_before(&self, id: u64) -> Option<Reply> {
        let asked = self.changes.iter().find(|asked| asked.command.id == id && asked.overtaken)?;
        let members = &self.state().members;
        asked.is_done(members).then(|| Reply::Members(members.list()))
    }

    fn is_own_removal(&self, change: &ConfChangeV2) -> bool {
        let own = self.node.id().0;
        let is_own =
            |single: &ConfChangeSingle| single.get_change_type() == ConfChangeType::RemoveNode && single.node_id == own;
        change.changes.iter().any(is_own)
    }

    /// Whether this member's removal has to wait because it leads. Once it is removed nobody leads until somebody has missed it for
    /// an election timeout; so another is asked to lead first. Where none does, the removal does not wait for longer than that.
    fn hands_over_first(&mut self, out: &mut dyn Outside) -> bool {
        if !self.node.is_leader() {
            return false;
        }
        let (term, now, election) = (self.node.term(), out.now(), self.config.election);
        if let Some((asked, since)) = self.asked_to_leave
            && asked == term
            && now < since + 3 * election
        {
            return now < since + election;
        }
        let Some(heir) = self.heir() else { return false };
        self.asked_to_leave = Some((term, now));
        self.hand_over(Some(heir), out);
        true
    }

    /// Who is to lead after this member: whoever is furthest of the voters that are heard of.
    fn heir(&self) -> Option<MemberId> {
        let others = self.node.peers().into_iter().filter(|peer| peer.id != self.node.id());
        let fit = others.filter(|peer| !peer.learner && peer.active).max_by_key(|peer| peer.matched);
        fit.map(|peer| peer.id)
    }

    /// Members were changed, and this one may have become a voter or a learner by it.
    fn rank_changed(&mut self, out: &mut dyn Outside) {
        if let Some(role) = self.role {
            out.role(role, Some(role), self.node.is_learner());
        }
    }

    /// Renewals go on as far as they can without waiting. Whether that gave something to do for the rest of a turn.
    fn renewals(&mut self, out: &dyn Outside) -> bool {
        if self.renewals.is_idle() {
            return false;
        }
        let now = out.now();
        let leads = self.promoted.filter(|term| self.node.is_leader() && self.node.term() == *term);
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let needs = self.renewals.turn(leads, &mut self.lessor, &state.leases, now);
        let seen = state.applied().0;
        drop(state);
        let work = !needs.is_empty();
        for need in needs {
            match need {
                Need::Read(reader) => self.reads.add(now, reader),
                Need::Command(command, reply) => {
                    let command = LeaseRemaining { seen, ..command };
                    self.commands += 1;
                    let id = OWN_COMMANDS + self.commands;
                    let command = Command { id, kind: Some(Kind::LeaseRemaining(command)), ..Command::default() };
                    self.propose(id, encode_command(&command), reply, out);
                }
            }
        }
        work
    }

    /// The lessor hears of what apply did, and takes over when this member has applied the first entry of its own term: what
    /// earlier leaders recorded is known then.
    fn leases(&mut self, changes: Vec<LeaseChange>, term: Term, out: &dyn Outside) {
        if !self.node.is_leader() {
            return;
        }
        if self.promoted == Some(self.node.term()) {
            lease_loop::follow(&mut self.lessor, changes, out.now());
        } else if term == self.node.term() {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            self.lessor.promote(&state.leases, out.now(), self.config.election);
            self.promoted = Some(term);
        }
    }

    fn role_changed(&mut self, role: Role, out: &mut dyn Outside) {
        let before = self.role.replace(role);
        out.role(role, before, self.node.is_learner());
        if !role.leads {
            self.lessor.demote();
            self.promoted = None;
        }
        self.reads.leader_changed();
        // Proposed to the new leader at once, these are not lost with the old one.
        self.changes.iter_mut().for_each(|asked| asked.due = Duration::ZERO);
        if before.is_some_and(|before| before.leader.is_some() && before.leader != role.leader) {
            let Core { waiters, changes, .. } = self;
            let lasts = |id| changes.iter().any(|asked| asked.command.id == id);
            waiters.leader_lost(out.now() + 2 * self.config.election, lasts);
        }
    }

    /// The backend holds everything up to `point`: that is what a member far behind can be sent, and what the log may forget
    /// (but for a rest that spares members which are little behind a snapshot).
    fn durable(&mut self, point: SnapshotPoint, out: &mut dyn Outside) {
        let index = point.index;
        self.tell(Input::SnapshotReady(point), out);
        let (base, _) = self.node.base();
        let keep = self.config.catchup_entries;
        let long = index.0.saturating_sub(base.0) > self.config.snapshot_count.max(1) + keep;
        if !long && self.node.log_bytes() <= LOG_BYTES_KEPT {
            return;
        }
        let mut to = index.0.saturating_sub(if long { keep } else { keep.min(100) });
        if let Some(in_flight) = self.node.snapshot_in_flight() {
            to = to.min(in_flight.0);
        }
        if to > base.0 {
            self.tell(Input::TruncateLog(Index(to)), out);
            let (index, term) = self.node.base();
            out.log(LogJob::Truncate(Base { index, term }));
        }
    }

    /// Up to where what was compacted may be removed now: no watcher reads there any more, or they have had their time, or the space
    /// is needed, or somebody waits for it to be gone.
    fn grace_over(&mut self, now: Duration) -> Option<Revision> {
        let hurry = !self.compactions.is_empty() || self.state().alarms.is_raised(AlarmKind::NoSpace);
        let needed = self.shared.feeds.needed();
        let mut to = None;
        // (The compacted revision's own changes are kept, but not what they replaced.)
        while let Some((at, _)) = self.graces.pop_front_if(|(at, until)| hurry || needed > *at || *until <= now) {
            to = Some(at);
        }
        // What was left over from before this life.
        to.or_else(|| self.graces.is_empty().then(|| self.state().kv.compacted()))
    }

    /// One bounded step of physical compaction, if there is one to do. Whether there may be another.
    fn compact(&mut self, out: &mut dyn Outside) -> bool {
        if self.installing || !self.state().kv.compacting() {
            if !self.compactions.is_empty() && self.flushing.is_empty() {
                self.flushing = std::mem::take(&mut self.compactions);
                out.flush();
            }
            return false;
        }
        if self.compaction_steps >= COMPACTION_STEPS_MAX {
            return false;
        }
        if !self.state().kv.removing() {
            let Some(to) = self.grace_over(out.now()) else { return false };
            self.shared.state.write().unwrap_or_else(PoisonError::into_inner).kv.remove(to);
            self.shared.feeds.tell(&[Notice::Removed(to)]);
        }
        self.compaction_steps += 1;
        let mut batch = Batch::default();
        let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
        let step = state.kv.compact_step(self.config.compaction_keys, &mut batch);
        drop(state);
        match step {
            Ok(_) => out.commit(batch),
            Err(error) => out.fail(&error),
        }
        true
    }
}

/// A change of members on its way.
struct AskedChange {
    command: Reconfiguration,
    /// It is to be proposed from then on: what was proposed before has got lost, for all that is known. Zero until it was.
    due: Duration,
    /// A snapshot was adopted since, which may have it.
    overtaken: bool,
}

impl AskedChange {
    fn change(&self) -> &Change {
        self.command.change.as_ref().expect("it came with a change")
    }

    /// Whether the members are as if it had been carried out.
    fn is_done(&self, members: &Membership) -> bool {
        match self.change() {
            Change::Add(new) => members.get(MemberId(new.id)).is_some(),
            Change::Promote(new) => members.get(MemberId(new.id)).is_some_and(|member| !member.is_learner),
            Change::Remove(old) => members.was_removed(MemberId(old.id)),
        }
    }
}
