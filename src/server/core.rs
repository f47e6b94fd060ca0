//! The core: where raft's turn and apply's turn run back to back.
//!
//! It takes everything that waits in its inbox, tells raft, carries out what raft has committed, answers whoever waited, and only
//! then looks at the inbox again. It never waits for a disk or a socket: the log thread and the backend thread do, and report.
//! Everything it does in one turn is bounded: committed entries by their bytes, compaction by keys per step, lease expiry by leases
//! per tick. What is left over waits until others on this thread have run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use slog::{Logger, info, warn};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::apply_loop::{self, Proposer};
use super::disk_threads::{BackendJob, Failure, LogJob, ToBackend};
use super::error::Error;
use super::handle::Shared;
use super::inbox::Event;
use super::lease_loop;
use super::pending::Pending;
use super::raft_loop;
use super::reads::Reads;
use super::waiters::Waiters;
use super::watch_loop::LeaderMonitor;
use crate::pb::everwatchpb::{ClusterVersion, MemberAttributes};
use crate::peer::{FromPeer, Place, Transport};
use crate::raft::{Entry, Input, Node, Rejected, Role, SnapshotPoint};
use crate::state::applied::LeaseChange;
use crate::state::command::{Command, Kind, encode_command};
use crate::storage::backend::Batch;
use crate::storage::wal::Base;
use crate::types::{Index, MemberId, Term};

/// Bytes of entries carried out before others run. After a disk has stood still, all that waited for it is committed at once.
const APPLY_BYTES: usize = 1 << 20;
/// Steps of compaction between two commits of the backend. Beyond this the next one waits: the rows to be removed are held in
/// memory until then.
const COMPACTION_STEPS_MAX: u32 = 10;
/// Bytes of log kept in memory beyond what is durably applied, whatever the entries' number.
const LOG_BYTES_KEPT: u64 = 64 << 20;

/// What the core is told at its start.
pub(crate) struct CoreConfig {
    pub(crate) heartbeat: Duration,
    pub(crate) election: Duration,
    pub(crate) snapshot_count: u64,
    pub(crate) catchup_entries: u64,
    /// Keys that one step of compaction looks at.
    pub(crate) compaction_keys: usize,
    /// Carrying out what was committed should not take longer in one turn.
    pub(crate) warning_apply_duration: Duration,
    /// This member's own attributes, to be published.
    pub(crate) attributes: MemberAttributes,
}

/// The owner of the node, and of everything that waits for it.
pub(crate) struct Core {
    pub(crate) node: Node,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) log: Sender<LogJob>,
    pub(crate) backend: ToBackend,
    pub(crate) config: CoreConfig,
    pub(crate) logger: Logger,
    pub(crate) fail: Failure,
    pub(crate) state: Waiting,
}

/// What waits, and what is under way.
#[derive(Default)]
pub(crate) struct Waiting {
    pending: Pending,
    waiters: Waiters,
    reads: Reads,
    /// Those who wait for compactions to end, and those of them whose flush is under way.
    compactions: Vec<oneshot::Sender<()>>,
    flushing: Vec<oneshot::Sender<()>>,
    /// Steps of compaction since the backend's last commit.
    compaction_steps: u32,
    /// This turn left work for the next.
    unfinished: bool,
    /// Committed, and not carried out yet.
    committed: VecDeque<Entry>,
    /// A snapshot is being installed: the state stands still until it is there.
    installing: bool,
    /// What the log reported durable meanwhile. Raft hears of it with the snapshot: it would hand out what follows.
    persisted: u64,
    /// The last index the backend has durably, and the last the log was truncated to.
    durable: Index,
    /// Snapshot received and put to raft: if raft does not take it, its file is to go.
    offered: Option<(Index, Place)>,
    ticks: u64,
    /// Attributes were proposed at this tick and have not been applied yet.
    published_at: Option<u64>,
    role: Option<Role>,
    promoted: Option<Term>,
    monitor: LeaderMonitor,
    stopping: bool,
}

impl Core {
    /// Runs until it is told to stop.
    pub(crate) async fn run(mut self) {
        let mut events = Vec::new();
        let mut ticks = tokio::time::interval(self.config.heartbeat);
        // After a pause raft is told of one tick, not of all that were missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Nobody else could lead: waiting for a leader would be waiting for the clock.
        if self.node.voters() == [self.shared.member] {
            self.tell(Input::Campaign);
        }
        // Entries known to be committed before the restart need nobody's leave.
        self.turn();
        while !self.state.stopping {
            tokio::select! {
                () = self.shared.inbox.filled() => {}
                _ = ticks.tick() => self.tick(),
            }
            self.shared.inbox.take(&mut events);
            for event in events.drain(..) {
                self.take(event);
            }
            self.turn();
            if std::mem::take(&mut self.state.unfinished) {
                // There is always an event then: without this nobody else would run on this thread, not even the clock.
                tokio::task::yield_now().await;
            }
        }
        self.state.waiters.stop();
        self.state.reads.stop();
    }

    fn take(&mut self, event: Event) {
        let now = self.shared.now();
        match event {
            Event::Propose { id, command, reply } => {
                if !self.state.pending.has_room() {
                    let _ = reply.send(Err(Error::TooManyRequests));
                    return;
                }
                let deadline = now + self.shared.limits.request_timeout;
                self.state.waiters.add(id, deadline, reply);
                self.state.pending.push(deadline, command);
            }
            Event::Linearize(reader) => self.state.reads.add(now, reader),
            Event::AwaitCompaction(waiter) => self.state.compactions.push(waiter),
            Event::Peer(FromPeer::Message(message)) => self.tell(Input::Message(message)),
            Event::Peer(FromPeer::Unreachable(peer)) => self.tell(Input::Unreachable(peer)),
            Event::Peer(FromPeer::SnapshotSent { to, ok }) => self.tell(Input::SnapshotStatus { to, ok }),
            Event::Peer(FromPeer::SnapshotReceived { message, index, place }) => {
                self.state.offered = Some((index, place));
                self.tell(Input::Message(message));
            }
            Event::Peer(FromPeer::StorageFailed(error)) => (self.fail)(&error),
            Event::Persisted(number) if self.state.installing => self.state.persisted = number,
            Event::Persisted(number) => self.tell(Input::Persisted { number }),
            Event::Flushed { reader } => self.flushed(reader),
            Event::FlushDone => {
                for waiter in self.state.flushing.drain(..) {
                    let _ = waiter.send(());
                }
            }
            Event::Installed { number, state, index } => self.installed(number, *state, index),
            Event::HandOver(to) => self.hand_over(to),
            Event::Stop => self.state.stopping = true,
        }
    }

    /// Asks `to` to lead, or whoever is furthest of the voters that are heard of.
    fn hand_over(&mut self, to: Option<MemberId>) {
        if let Some(to) = to {
            info!(self.logger, "handing over leadership"; "to" => %to);
            return self.tell(Input::TransferLeader(to));
        }
        let others = self.node.peers().into_iter().filter(|peer| peer.id != self.shared.member);
        let heir = others.filter(|peer| !peer.learner && peer.active).max_by_key(|peer| peer.matched);
        if let Some(heir) = heir {
            info!(self.logger, "handing over leadership"; "to" => %heir.id);
            self.tell(Input::TransferLeader(heir.id));
        } else {
            self.shared.progress.leader.store(0, Relaxed);
        }
    }

    fn tell(&mut self, input: Input) {
        if let Some(reason) = raft_loop::tell(&mut self.node, input) {
            warn!(self.logger, "dropping what raft cannot use"; "reason" => reason);
            if let Some(commit) = self.node.lost_log() {
                (self.fail)(&format_args!(
                    "the cluster counts on entries up to {commit} that this member has acknowledged and no longer has: \
                     its disk was replaced or rolled back; remove it from the cluster and add it anew"
                ));
            }
        }
    }

    fn tick(&mut self) {
        let now = self.shared.now();
        self.state.ticks += 1;
        self.tell(Input::Tick);
        self.state.pending.expire(now);
        self.state.waiters.expire(now);
        self.state.reads.expire(now, self.shared.limits.request_timeout);
        self.publish();
        let election_ticks =
            (self.config.election.as_millis() / self.config.heartbeat.as_millis().max(1)).max(1) as u64;
        if self.state.ticks.is_multiple_of(election_ticks) && self.state.monitor.tick(self.node.leader().is_some()) {
            self.shared.hub.lock().unwrap_or_else(PoisonError::into_inner).leader_lost();
        }
        if self.node.is_leader() {
            let mut lessor = self.shared.lessor.lock().unwrap_or_else(PoisonError::into_inner);
            let commands = lease_loop::turn(&mut lessor, self.node.term(), now);
            drop(lessor);
            for command in commands {
                self.put_pending(&command);
            }
        }
    }

    /// Tells the others this member's name and client URLs, until they have heard.
    fn publish(&mut self) {
        let own = &self.config.attributes;
        let (published, version_known) = {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            let member = state.members.get(self.shared.member);
            let published = member.is_none_or(|m| m.name == own.name && m.client_urls == own.client_urls);
            (published, state.cluster_version().is_some())
        };
        if published {
            self.shared.ready();
        }
        // Once per second, for a proposal may be lost with a leader.
        let due = self.state.published_at.is_none_or(|tick| self.state.ticks >= tick + 10);
        if self.node.leader().is_none() || !due || (published && version_known) {
            return;
        }
        self.state.published_at = Some(self.state.ticks);
        if !published {
            self.propose(Kind::MemberAttributes(own.clone()));
        }
        if !version_known && self.node.is_leader() {
            self.propose(Kind::ClusterVersion(ClusterVersion { version: crate::version::CLUSTER.into() }));
        }
    }

    fn propose(&mut self, kind: Kind) {
        self.put_pending(&Command { kind: Some(kind), ..Command::default() });
    }

    /// A command of the member's own: it is given up like a client's, and made again by whoever wants it.
    fn put_pending(&mut self, command: &Command) {
        let deadline = self.shared.now() + self.shared.limits.request_timeout;
        self.state.pending.push(deadline, encode_command(command));
    }

    /// One turn: proposals and questions to raft, raft's answers to where they belong, until raft has nothing more to say.
    fn turn(&mut self) {
        self.propose_pending();
        let now = self.shared.now();
        let Core { node, state, .. } = self;
        state.reads.ask(now, || {
            node.leader()?;
            let context = node.fresh_read();
            node.handle(Input::Read(context)).ok().map(|()| context)
        });
        loop {
            let turn = raft_loop::turn(&mut self.node);
            let progress = !turn.writes.is_empty();
            if !turn.messages.is_empty() {
                self.transport.send(turn.messages);
            }
            for write in turn.writes {
                if let Some(base) = write.reset {
                    info!(self.logger, "adopting a snapshot"; "index" => base.index.0);
                    self.state.installing = true;
                    // The snapshot has what they would have done.
                    self.state.committed.clear();
                }
                if self.log.send(LogJob::Write(write)).is_err() {
                    (self.fail)(&"the log thread is gone");
                }
            }
            // Before the role: a change of it fails reads that have no answer yet.
            for (context, index) in turn.reads {
                self.state.reads.confirm(&context, index);
            }
            if let Some(role) = turn.role {
                self.role_changed(role);
            }
            self.state.committed.extend(turn.committed);
            self.apply();
            if !progress {
                break;
            }
        }
        if !self.state.committed.is_empty() {
            self.leave_rest();
        }
        if !self.state.installing
            && let Some((index, place)) = self.state.offered.take()
        {
            self.backend.send(BackendJob::Discard { index, place });
        }
        self.state.reads.applied(self.node.applied());
        self.compact();
        self.shared.progress.committed.store(self.node.committed().0, Relaxed);
        self.shared.progress.pending.store(self.state.waiters.len() as u64, Relaxed);
    }

    fn propose_pending(&mut self) {
        if self.node.leader().is_none() {
            return;
        }
        while let Some((entry, taken)) = self.state.pending.entry(self.shared.member.0, self.shared.boot) {
            match self.node.handle(Input::Propose(entry)) {
                // Definite: it is in nobody's log. It waits for a leader, or for room, as etcd's clients expect.
                Err(Rejected::ProposalDropped) => return,
                Err(Rejected::Invalid(reason)) => {
                    warn!(self.logger, "raft refused a proposal"; "reason" => reason);
                    return;
                }
                _ => self.state.pending.taken(taken),
            }
        }
    }

    /// There is more to do, in the next turn: sockets and the clock come first.
    fn leave_rest(&mut self) {
        self.shared.inbox.again();
        self.state.unfinished = true;
    }

    /// Carries out what was committed, or a portion of it.
    fn apply(&mut self) {
        let mut bytes = 0;
        let mut committed = Vec::new();
        while bytes < APPLY_BYTES
            && let Some(entry) = self.state.committed.pop_front()
        {
            bytes += entry.data.len();
            committed.push(entry);
        }
        let Some(last) = committed.last().map(|entry| Index(entry.index)) else { return };
        assert!(!self.state.installing, "raft commits nothing while a snapshot is being installed");
        let began = Instant::now();
        let own = Proposer { member: self.shared.member.0, boot: self.shared.boot };
        let turn = match apply_loop::turn(&self.shared.state, &self.shared.hub, own, committed, &mut |batch| {
            self.backend.commit(batch);
        }) {
            Ok(turn) => turn,
            Err(error) => return (self.fail)(&error),
        };
        let metrics = &self.shared.metrics;
        metrics.puts.add(turn.puts as u64);
        metrics.deletes.add(turn.deletes as u64);
        let took = began.elapsed();
        if took > self.config.warning_apply_duration {
            metrics.slow_apply.inc();
            warn!(self.logger, "apply request took too long"; "took" => ?took, "last-index" => last.0);
        }
        self.leases(turn.leases, turn.term);
        self.shared.progress.applied.store(last.0, Release);
        self.tell(Input::Applied(last));
        for (id, outcome) in turn.replies {
            self.state.waiters.complete(id, outcome);
        }
    }

    /// The lessor hears of what apply did, and takes over when this member has applied the first entry of its own term: what
    /// earlier leaders recorded is known then.
    fn leases(&mut self, changes: Vec<LeaseChange>, term: Term) {
        for change in &changes {
            match change {
                LeaseChange::Granted { ttl, .. } => {
                    self.shared.metrics.leases_granted.inc();
                    self.shared.metrics.lease_ttl_seconds.observe_value(*ttl as f64);
                }
                LeaseChange::Revoked { .. } => self.shared.metrics.leases_revoked.inc(),
                LeaseChange::Remaining { .. } => {}
            }
        }
        if !self.node.is_leader() {
            return;
        }
        let now = self.shared.now();
        let mut lessor = self.shared.lessor.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.promoted == Some(self.node.term()) {
            lease_loop::follow(&mut lessor, changes, now);
        } else if term == self.node.term() {
            let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
            lessor.promote(&state.leases, now, self.config.election);
            self.state.promoted = Some(term);
        }
    }

    fn role_changed(&mut self, role: Role) {
        let before = self.state.role.replace(role);
        let progress = &self.shared.progress;
        progress.term.store(role.term.0, Relaxed);
        progress.learner.store(self.node.is_learner(), Relaxed);
        progress.leader.store(role.leader.map_or(0, |leader| leader.0), Relaxed);
        self.shared.metrics.has_leader.set_flag(role.leader.is_some());
        self.shared.metrics.is_leader.set_flag(role.leads);
        if role.leader.is_some() && before.and_then(|role| role.leader) != role.leader {
            self.shared.metrics.leader_changes.inc();
            info!(self.logger, "leader elected"; "leader" => %role.leader.unwrap_or_default(), "term" => role.term.0);
        }
        if !role.leads {
            self.shared.lessor.lock().unwrap_or_else(PoisonError::into_inner).demote();
            self.state.promoted = None;
        }
        self.state.reads.leader_changed();
        // They are asked anew in the next turn.
        self.shared.inbox.again();
        if before.is_some_and(|before| before.leader.is_some() && before.leader != role.leader) {
            self.state.waiters.leader_lost(self.shared.now() + 2 * self.config.election);
        }
    }

    fn flushed(&mut self, reader: Arc<dyn crate::storage::backend::Reader>) {
        self.state.compaction_steps = 0;
        if self.state.installing {
            return;
        }
        let point = {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = state.kv.flushed(reader.clone()) {
                return (self.fail)(&error);
            }
            super::bootstrap::snapshot_point(&*reader)
        };
        match point {
            Ok(point) => self.durable(point),
            Err(error) => (self.fail)(&error),
        }
    }

    /// The backend holds everything up to `point`: that is what a member far behind can be sent, and what the log may forget
    /// (but for a rest that spares members which are little behind a snapshot).
    fn durable(&mut self, point: SnapshotPoint) {
        let index = point.index;
        self.state.durable = index;
        self.tell(Input::SnapshotReady(point));
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
            self.tell(Input::TruncateLog(Index(to)));
            let (index, term) = self.node.base();
            let _ = self.log.send(LogJob::Truncate(Base { index, term }));
        }
    }

    fn installed(&mut self, number: u64, new: crate::state::StateMachine, index: Index) {
        let (revision, compacted) = (new.kv.revision(), new.kv.compacted());
        let old = std::mem::replace(&mut *self.shared.state.write().unwrap_or_else(PoisonError::into_inner), new);
        // Taking millions of keys apart takes long: neither under the lock nor here.
        tokio::task::spawn_blocking(move || drop(old));
        self.shared.hub.lock().unwrap_or_else(PoisonError::into_inner).restored(revision, compacted);
        self.shared.progress.applied.store(index.0, Release);
        self.state.installing = false;
        self.state.offered = None;
        self.tell(Input::Persisted { number: number.max(self.state.persisted) });
        info!(self.logger, "snapshot adopted"; "index" => index.0, "revision" => revision.0);
        self.backend.send(BackendJob::Flush);
    }

    fn compacting(&self) -> bool {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner).kv.compacting()
    }

    /// One bounded step of physical compaction, if there is one to do; the rest is left to the next turn.
    fn compact(&mut self) {
        if self.state.installing || !self.compacting() {
            if !self.state.compactions.is_empty() && self.state.flushing.is_empty() {
                self.state.flushing = std::mem::take(&mut self.state.compactions);
                self.backend.send(BackendJob::Flush);
            }
            return;
        }
        if self.state.compaction_steps >= COMPACTION_STEPS_MAX {
            return;
        }
        self.state.compaction_steps += 1;
        let mut batch = Batch::default();
        let more = {
            let mut state = self.shared.state.write().unwrap_or_else(PoisonError::into_inner);
            state.kv.compact_step(self.config.compaction_keys, &mut batch)
        };
        match more {
            Ok(_) => {
                self.backend.commit(batch);
                self.leave_rest();
            }
            Err(error) => (self.fail)(&error),
        }
    }
}
