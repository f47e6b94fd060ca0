//! The loop that owns the [`Core`]: it waits for the inbox and the clock, and carries out what the core says, on the runtime's thread.

use std::fmt;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::time::MissedTickBehavior;

use super::apply_loop;
use super::core::{Core, Outside};
use super::disk_threads::{BackendJob, Failure, ToBackend};
use super::handle::Shared;
use super::inbox::Event;
use super::log_writer::LogJob;
use crate::auth::token::TokenChange;
use crate::peer::{FromPeer, Place, Transport};
use crate::raft::{Input, Message, Role};
use crate::state::StateMachine;
use crate::state::applied::LeaseChange;
use crate::storage::backend::Batch;
use crate::types::{Index, MemberId};

/// How long a removed member is still sent to, and how long it stays when it may go: whoever waits for word of the removal hears of
/// it by then.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// The core's outside in the server: threads, peers, and what others look at.
pub(crate) struct Plumbing {
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) log: Sender<LogJob>,
    pub(crate) backend: ToBackend,
    /// What keeps the next snapshot from being received before this one is adopted or gone.
    pub(crate) place: Option<Place>,
    /// The transport's table of peers: those of the state, and until `farewell` those that were removed a moment ago. They
    /// should hear that they were.
    pub(crate) peers: Vec<(MemberId, Vec<String>)>,
    pub(crate) farewell: Option<Duration>,
    /// Carrying out what was committed should not take longer in one turn.
    pub(crate) warning_apply_duration: Duration,
    pub(crate) logger: Logger,
    pub(crate) fail: Failure,
}

/// Runs a member's core until it is told to stop.
pub(crate) async fn run(mut core: Core, mut out: Plumbing, heartbeat: Duration) {
    let shared = out.shared.clone();
    let mut events = Vec::new();
    let mut ticks = tokio::time::interval(heartbeat);
    // After a pause raft is told of one tick, not of all that were missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Entries known to be committed before the restart need nobody's leave.
    let mut unfinished = core.turn(&mut out);
    let mut stopping = false;
    while !stopping {
        if unfinished {
            shared.inbox.again();
            // There is always an event then: without this nobody else would run on this thread, not even the clock.
            tokio::task::yield_now().await;
        }
        let filled = async {
            shared.inbox.filled().await;
            // Whoever else is ready now, on connections that have just become so, too, is in the same turn: each costs a message
            // to every peer, or a write to the log.
            tokio::task::yield_now().await;
        };
        tokio::select! {
            () = filled => {}
            _ = ticks.tick() => core.tick(&mut out),
        }
        shared.inbox.take(&mut events);
        for event in events.drain(..) {
            stopping |= take(&mut core, event, &mut out);
        }
        unfinished = core.turn(&mut out);
    }
    core.stop();
}

/// Tells the core of an event. Whether it was the last.
fn take(core: &mut Core, event: Event, out: &mut Plumbing) -> bool {
    match event {
        Event::Propose { id, command, reply } => core.propose(id, command, reply, out),
        Event::Reconfigure { id, change, reply } => core.reconfigure(id, change, reply, out),
        Event::Linearize(reader) => core.linearize(reader, out),
        Event::Renew { ids, reply } => core.renew(ids, reply, out),
        Event::TimeToLive { id, reply } => core.time_to_live(id, reply),
        Event::Learner { id, reply } => core.learner(id, reply),
        Event::AwaitCompaction(waiter) => core.await_compaction(waiter),
        Event::Peer(FromPeer::Message(message)) => core.tell(Input::Message(message), out),
        Event::Peer(FromPeer::Unreachable(peer)) => core.tell(Input::Unreachable(peer), out),
        Event::Peer(FromPeer::SnapshotSent { to, ok }) => core.tell(Input::SnapshotStatus { to, ok }, out),
        Event::Peer(FromPeer::SnapshotReceived { message, index, place }) => {
            out.place = Some(place);
            core.snapshot_received(message, index, out);
        }
        Event::Peer(FromPeer::ToldRemoved(_)) => out.shared.leave(),
        Event::Peer(FromPeer::StorageFailed(error)) => (out.fail)(&error),
        Event::Persisted(number) => core.persisted(number, out),
        Event::Flushed { reader } => core.flushed(&reader, out),
        Event::FlushDone => core.flush_done(),
        Event::Installed { number, state, index } => core.installed(number, *state, index, out),
        Event::HandOver(to) => core.hand_over(to, out),
        Event::Stop => return true,
    }
    false
}

impl Plumbing {
    /// The transport learns who the peers are, and this member whether it is still one.
    fn members_changed(&mut self) {
        let (mut peers, removed) = self.shared.peers();
        if removed {
            self.shared.leave();
        }
        let staying = peers.len();
        for peer in std::mem::take(&mut self.peers) {
            if !peers[..staying].iter().any(|(id, _)| *id == peer.0) {
                peers.push(peer);
            }
        }
        if peers.len() > staying {
            self.farewell = Some(self.now() + FAREWELL);
        }
        self.set_peers(peers);
    }

    fn set_peers(&mut self, peers: Vec<(MemberId, Vec<String>)>) {
        self.peers.clone_from(&peers);
        self.transport.set_peers(peers);
    }
}

impl Plumbing {
    /// Users or roles are others now: `users` says whether auth is on, and the auth revision.
    fn users_changed(&self, tokens: &[TokenChange], users: (bool, u64)) {
        self.shared.logins.follow(tokens, users, self.shared.now());
        self.shared.shards.iter().for_each(|shard| shard.rouse());
    }
}

impl Outside for Plumbing {
    fn now(&self) -> Duration {
        self.shared.now()
    }

    fn send(&mut self, messages: Vec<Message>) {
        self.transport.send(messages);
    }

    fn log(&mut self, job: LogJob) {
        if self.log.send(job).is_err() {
            (self.fail)(&"the log thread is gone");
        }
    }

    fn commit(&mut self, batch: Batch) {
        self.backend.commit(batch);
    }

    fn flush(&mut self) {
        self.backend.send(BackendJob::Flush);
    }

    fn discard_snapshot(&mut self, index: Index) {
        if let Some(place) = self.place.take() {
            self.backend.send(BackendJob::Discard { index, place });
        }
    }

    fn adopting(&mut self, index: Index) {
        self.shared.metrics.snapshot_apply_in_progress.set(1);
        // Before the log thread has it installed.
        if self.place.as_ref().is_some_and(|place| place.hurried) {
            self.backend.send(BackendJob::Hurry);
        }
        info!(self.logger, "adopting a snapshot"; "index" => index.0);
    }

    fn adopted(&mut self, index: Index, old: StateMachine) {
        // Taking millions of keys apart takes long: neither under the lock nor here.
        tokio::task::spawn_blocking(move || drop(old));
        self.place = None;
        self.shared.progress.applied.store(index.0, Release);
        // Whose tokens have become void meanwhile is not known: all are, and clients log in again.
        let users = {
            let state = self.shared.replicated.state.read().unwrap_or_else(PoisonError::into_inner);
            (state.auth.is_enabled(), state.auth.revision())
        };
        self.users_changed(&[TokenChange::VoidAll], users);
        self.shared.metrics.snapshot_apply_in_progress.set(0);
        info!(self.logger, "snapshot adopted"; "index" => index.0);
        self.members_changed();
    }

    fn applied(&mut self, turn: &apply_loop::Turn, began: Duration) {
        let metrics = &self.shared.metrics;
        metrics.puts.add(turn.puts as u64);
        metrics.deletes.add(turn.deletes as u64);
        if let Some(revision) = turn.revision {
            self.shared.timeline.applied(revision, self.now());
        }
        for change in &turn.leases {
            match change {
                LeaseChange::Granted { ttl, .. } => {
                    metrics.leases_granted.inc();
                    metrics.lease_ttl_seconds.observe_value(*ttl as f64);
                }
                LeaseChange::Revoked { .. } => metrics.leases_revoked.inc(),
                LeaseChange::Remaining { .. } => {}
            }
        }
        let now = self.now();
        if let Some((last, _)) = turn.replies.last() {
            self.shared.throttle.answered(*last, now);
        }
        let took = now.saturating_sub(began);
        if took > self.warning_apply_duration {
            metrics.slow_apply.inc();
            warn!(self.logger, "apply request took too long"; "took" => ?took, "last-index" => turn.applied.0);
        }
        // Before anybody has a reply, and before it can be seen that this member is as far.
        if let Some(users) = turn.users {
            self.users_changed(&turn.tokens, users);
        }
        self.shared.progress.applied.store(turn.applied.0, Release);
        for (index, change) in &turn.conf_changes {
            let single = &change.changes[0];
            info!(self.logger, "members changed"; "index" => index.0,
                "change" => ?single.get_change_type(), "member" => %MemberId(single.node_id));
        }
        if turn.members_changed {
            self.members_changed();
        }
    }

    fn role(&mut self, role: Role, before: Option<Role>, learner: bool) {
        let progress = &self.shared.progress;
        progress.term.store(role.term.0, Relaxed);
        progress.learner.store(learner, Relaxed);
        self.shared.throttle.leads(role.leads);
        progress.leader.store(role.leader.map_or(0, |leader| leader.0), Relaxed);
        progress.knew_leader.fetch_or(role.leader.is_some(), Relaxed);
        let metrics = &self.shared.metrics;
        metrics.has_leader.set_flag(role.leader.is_some());
        metrics.is_leader.set_flag(role.leads);
        if let Some(leader) = role.leader
            && before.and_then(|role| role.leader) != Some(leader)
        {
            metrics.leader_changes.inc();
            info!(self.logger, "leader elected"; "leader" => %leader, "term" => role.term.0);
        }
    }

    fn handing_over(&mut self, to: Option<MemberId>) {
        match to {
            Some(to) => info!(self.logger, "handing over leadership"; "to" => %to),
            None => self.shared.progress.leader.store(0, Relaxed),
        }
    }

    fn leader_lost(&mut self) {
        self.shared.leader_lost.send_replace(());
    }

    fn lags(&mut self, lags: bool) {
        if self.shared.progress.lagging.swap(lags, Relaxed) != lags {
            warn!(self.logger, "far behind what is committed, or not any more"; "lags" => lags);
        }
    }

    fn ready(&mut self) {
        self.shared.ready();
    }

    fn turned(&mut self, committed: Index, waiting: usize) {
        self.shared.progress.committed.store(committed.0, Relaxed);
        self.shared.progress.pending.store(waiting as u64, Relaxed);
        self.shared.throttle.turned(waiting, self.now());
        if self.farewell.is_some_and(|until| self.now() >= until) {
            self.farewell = None;
            self.set_peers(self.shared.peers().0);
        }
    }

    fn dropped(&mut self, reason: &'static str) {
        warn!(self.logger, "dropping what raft cannot use"; "reason" => reason);
    }

    fn fail(&mut self, error: &dyn fmt::Display) {
        (self.fail)(error);
    }
}
