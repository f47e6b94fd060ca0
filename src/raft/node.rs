//! One member's part in raft: inputs go in, outputs come out, nothing panics on what others say.
//!
//! Promises, beyond those of the protocol:
//!   * a message that raft could not take is refused with the reason, and nothing has changed;
//!   * nothing of a term leaves before that term and its vote are durable here;
//!   * a proposal that is refused has not been appended anywhere; one that is not refused may still be lost;
//!   * `committed` holds each entry once, in order, and only what is durable here and on a quorum;
//!   * the same inputs and the same seed give the same outputs.
//!
//! Called by server::raft_loop, in the order that the head of `raft` describes. etcd: raft/node.go and
//! server/etcdserver/raft.go, which leave most of these rules to their caller.

use ::raft::{Changer, Config, INVALID_ID, ProgressState, RawNode, SnapshotStatus, StateRole};
use bytes::Bytes;

use super::catch_up::{self, CatchUps};
use super::check::{self, Standing};
use super::conf_change;
use super::interface::{Error, Input, LogStart, NodeConfig, Output, Peer, Rejected, Role};
use super::log::{Log, SnapshotPoint, entry_size};
use super::read_index::{ReadContext, ReadContexts, SeenContexts};
use super::timeout::Draw;
use super::{ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType};
use crate::types::{Index, MemberId, Term};

/// Bytes of entries in one append. Beyond this the rest goes into the next one.
const MESSAGE_BYTES_MAX: u64 = 256 << 10;
/// Bytes of proposals that are not committed yet. Beyond this proposals are refused.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of committed entries in one output. Beyond this they come with the next one, so that apply works in portions.
const COMMITTED_BYTES_MAX: u64 = 4 << 20;
/// Bytes of log that are kept for peers that receive a snapshot. Beyond this the log is truncated although they will need a
/// snapshot again: a peer that stands still must not fill the leader's memory.
const HELD_BYTES_MAX: u64 = 256 << 20;
/// Reads that wait for a new leader's first commit. Beyond this they are dropped: whoever asked asks again.
const HELD_READS_MAX: usize = 4096;
/// How much of the leader's log, in percent, a learner must have to be made a voter: until a new voter has the rest, it
/// counts for a majority and helps to none.
const IN_SYNC_PERCENT: u128 = 90;
/// Heartbeats that commit what this log lacks, after which the log counts as lost. One could be a mistake of the
/// sender; an honest leader commits only what this member has acknowledged.
const AHEAD_MAX: u32 = 3;

/// One member's part in raft.
pub struct Node {
    raw: RawNode<Log>,
    seed: u64,
    /// How often its timeout made this member campaign.
    campaigns: u64,
    reads: ReadContexts,
    seen: SeenContexts,
    /// Reads that wait for this leader's first commit of its term; before it the leader does not know what is
    /// committed.
    held: Vec<Message>,
    numbers: Numbers,
    /// Term and vote as of the last output.
    ballot: (u64, u64),
    /// Output that carries a snapshot which is not durable yet, and the snapshot's index.
    installing: Option<(u64, Index)>,
    /// Last entry given out to be applied.
    handed: u64,
    role: Role,
    ahead: Ahead,
    catch_ups: CatchUps,
    /// The leader's call to campaign, which came while the log was being written.
    called: Option<Message>,
}

/// Numbers of outputs that mattered.
#[derive(Default)]
struct Numbers {
    /// The last one given out.
    last: u64,
    /// The last one told to be durable.
    persisted: u64,
    /// The last one with entries.
    writes: u64,
    /// The last one that replaced part of the log, or all of it by a snapshot.
    replaces: u64,
    /// The last one that changed the term or the vote.
    ballot: u64,
}

/// Heartbeats that commit what this log lacks.
#[derive(Default)]
struct Ahead {
    term: u64,
    count: u32,
    commit: u64,
}

impl Node {
    /// A node over what the disk has. It re-applies from `applied` on and does not campaign before its timeout.
    pub fn new(config: NodeConfig) -> Result<Node, Error> {
        let applied = config.applied.0;
        let LogStart { base, conf_state, hard_state, entries } = config.log;
        let is_blank = conf_state == ConfState::default() && base.0.0 == 0;
        if !is_blank && !conf_change::is_sound(&conf_state) {
            return Err(Error::BrokenConfState);
        }
        let hard_state = start_hard_state(base, &entries, hard_state, applied)?;
        let ballot = (hard_state.term, hard_state.vote);
        let raft_config = Config {
            id: config.id.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: catch_up::INFLIGHT_MAX,
            check_quorum: true,
            pre_vote: config.pre_vote,
            batch_append: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..Config::default()
        };
        raft_config.validate().map_err(|error| Error::Config(error.to_string()))?;
        let log = Log::new(base, entries, (hard_state, conf_state));
        let raw = RawNode::new(&raft_config, log, &config.logger).map_err(|error| Error::Config(error.to_string()))?;
        let role = Role { leader: None, term: Term(raw.raft.term), leads: false };
        let mut node = Node {
            raw,
            seed: config.seed,
            campaigns: 0,
            reads: ReadContexts::new(config.id, config.boot),
            seen: SeenContexts::default(),
            held: Vec::new(),
            numbers: Numbers::default(),
            ballot,
            installing: None,
            handed: applied,
            role,
            ahead: Ahead::default(),
            catch_ups: CatchUps::default(),
            called: None,
        };
        node.settle();
        Ok(node)
    }

    /// Takes one input. Whatever follows from it comes with [`Node::take_output`].
    pub fn handle(&mut self, input: Input) -> Result<(), Rejected> {
        let result = match input {
            Input::Tick => self.tick(),
            Input::Message(message) => self.message(message),
            Input::Propose(data) => self.propose(data),
            Input::ProposeConfChange { change, context } => self.propose_conf_change(&change, context),
            Input::Read(context) => self.read(context),
            Input::Persisted { number } => self.persisted(number),
            Input::Applied(index) => self.applied_to(index),
            Input::Unreachable(peer) => {
                self.raw.report_unreachable(peer.0);
                Ok(())
            }
            Input::SnapshotStatus { to, ok } => {
                self.snapshot_status(to, ok);
                Ok(())
            }
            Input::TransferLeader(to) => self.transfer_leader(to),
            Input::Campaign => self.campaign(),
            Input::SnapshotReady(point) => self.snapshot_ready(point),
            Input::TruncateLog(index) => self.truncate_log(index),
        };
        self.settle();
        result
    }

    /// What is to be done next, until there is nothing.
    pub fn take_output(&mut self) -> Option<Output> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let number = ready.number();
        self.numbers.last = number;
        let mut output = Output { number, must_sync: ready.must_sync(), ..Output::default() };

        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            let meta = snapshot.get_metadata();
            self.raw.mut_store().reset(meta.index, meta.term);
            self.installing = Some((number, Index(meta.index)));
            self.handed = meta.index;
            self.numbers.replaces = number;
            output.snapshot = Some(snapshot);
        }
        output.entries = ready.take_entries();
        if !output.entries.is_empty() {
            // From here on the log answers for them, durable or not.
            if self.raw.mut_store().append(&output.entries) {
                self.numbers.replaces = number;
            }
            self.numbers.writes = number;
        }
        output.hard_state = ready.hs().cloned();
        let ballot = self.present_ballot();
        if ballot != self.ballot {
            self.ballot = ballot;
            self.numbers.ballot = number;
        }

        let mut messages = ready.take_messages();
        messages.append(&mut ready.take_persisted_messages());
        (output.messages, output.messages_after_sync) = self.split_by_sync(messages);

        output.committed = ready.take_committed_entries();
        if let Some(last) = output.committed.last() {
            self.handed = last.index;
        }
        let answers = ready.take_read_states().into_iter();
        output.reads = answers
            .filter_map(|state| Some((ReadContext::decode(&state.request_ctx)?, Index(state.index))))
            .filter(|(context, _)| self.reads.is_ours(*context))
            .collect();
        let role = self.role();
        if role != self.role {
            self.role = role;
            output.role = Some(role);
        }
        self.raw.advance_append_async(ready);
        Some(output)
    }

    /// A context for [`Input::Read`]. Use it once: when a read takes too long, ask again with another.
    pub fn fresh_read(&mut self) -> ReadContext {
        self.reads.fresh()
    }

    /// Takes a change that was committed into the configuration, and gives the new one, to be kept with the applied
    /// index. Call it once for each such entry, unless the change is refused on every member alike. An error is such a
    /// refusal: it depends on the configuration only.
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        let conf_state = self.raw.apply_conf_change(change).map_err(|error| Error::ConfChange(error.to_string()))?;
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            // The crate lets a removed leader go on, and panics when that one commits again.
            let term = raft.term;
            raft.become_follower(term, INVALID_ID);
        }
        self.seen.retain(|id| conf_change::names(&conf_state, id.0));
        self.settle();
        Ok(conf_state)
    }

    /// This member.
    pub fn id(&self) -> MemberId {
        MemberId(self.raw.raft.id)
    }

    /// Who leads, in which term.
    pub fn role(&self) -> Role {
        Role { leader: self.leader(), term: self.term(), leads: self.is_leader() }
    }

    /// The present term.
    pub fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    /// The leader, if known.
    pub fn leader(&self) -> Option<MemberId> {
        let leader = self.raw.raft.leader_id;
        (leader != INVALID_ID).then_some(MemberId(leader))
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// The last entry known to be committed.
    pub fn committed(&self) -> Index {
        Index(self.raw.raft.raft_log.committed)
    }

    /// The last entry told to be applied.
    pub fn applied(&self) -> Index {
        Index(self.raw.raft.raft_log.applied)
    }

    /// The first entry still in the log.
    pub fn first_index(&self) -> Index {
        Index(self.raw.raft.raft_log.first_index())
    }

    /// Bytes of payload that the log holds in memory.
    pub fn log_bytes(&self) -> u64 {
        self.raw.store().bytes()
    }

    /// The last entry of the log, durable or not.
    pub fn last_index(&self) -> Index {
        Index(self.raw.raft.raft_log.last_index())
    }

    /// The entry right before the first of the log: where the log on disk may be truncated, too.
    pub fn base(&self) -> (Index, Term) {
        self.raw.store().base()
    }

    /// The configuration.
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// Who votes, lowest id first.
    pub fn voters(&self) -> Vec<MemberId> {
        let mut voters: Vec<_> = self.conf_state().voters.into_iter().map(MemberId).collect();
        voters.sort_unstable();
        voters
    }

    /// Whether this member only listens.
    pub fn is_learner(&self) -> bool {
        self.conf_state().learners.contains(&self.raw.raft.id)
    }

    /// All members of the configuration with how far each is, lowest id first.
    pub fn peers(&self) -> Vec<Peer> {
        let learners = self.conf_state().learners;
        let progress = self.raw.raft.prs().iter();
        let mut peers: Vec<_> = progress
            .map(|(&id, progress)| Peer {
                id: MemberId(id),
                learner: learners.contains(&id),
                matched: Index(progress.matched),
                active: progress.recent_active || id == self.raw.raft.id,
                snapshot: (progress.state == ProgressState::Snapshot).then_some(Index(progress.pending_snapshot)),
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.id);
        peers
    }

    /// Whom leadership is being handed over to.
    pub fn transferring_to(&self) -> Option<MemberId> {
        self.raw.raft.lead_transferee.map(MemberId)
    }

    /// The snapshot that is being installed here, until it is told to be durable.
    pub fn snapshot_in_flight(&self) -> Option<Index> {
        let waiting = self.raw.snap().map(|snapshot| Index(snapshot.get_metadata().index));
        waiting.or(self.installing.map(|(_, index)| index))
    }

    /// Whether a peer is too far behind for the log and no snapshot is offered that would help: make one.
    pub fn snapshot_wanted(&self) -> bool {
        self.is_leader() && self.raw.store().snapshot_wanted()
    }

    /// This log lost entries that it had acknowledged: the leader goes on to commit an index (this one) that it does
    /// not reach. There is nothing to be done here but to stop; a member with this log could lose others' writes.
    pub fn lost_log(&self) -> Option<Index> {
        (self.ahead.count >= AHEAD_MAX).then_some(Index(self.ahead.commit))
    }

    fn tick(&mut self) -> Result<(), Rejected> {
        let settled = self.is_settled();
        let raft = &mut self.raw.raft;
        let fires = raft.state != StateRole::Leader
            && raft.promotable()
            && raft.election_elapsed + 1 >= raft.randomized_election_timeout();
        if fires && !settled {
            // Time passes all the same: others may have this member's vote.
            raft.election_elapsed += 1;
            return Ok(());
        }
        self.campaigns += u64::from(fires);
        self.catch_ups.tick(raft.election_timeout());
        self.raw.tick();
        self.leave_joint();
        Ok(())
    }

    /// A leader that came after the change to a joint configuration is not told by the crate to leave it again.
    fn leave_joint(&mut self) {
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader && *raft.prs().conf().auto_leave() && !raft.has_pending_conf() {
            let mut entry = Entry::default();
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            // If it is dropped, the next tick tries again.
            let _ = self.step_own(MessageType::MsgPropose, entry);
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Rejected> {
        let standing = self.standing(message.from);
        // Under load the answer to an acknowledgement may be here before we are told that what was acknowledged is durable.
        // Dropped, it would cost the cluster an election timeout in which its leader takes no proposals.
        if message.get_msg_type() == MessageType::MsgTimeoutNow && !standing.settled {
            let soon = Standing { settled: true, ..standing };
            check::check(&message, &soon).map_err(Rejected::Invalid)?;
            self.called = Some(message);
            return Ok(());
        }
        check::check(&message, &standing).map_err(Rejected::Invalid)?;
        match message.get_msg_type() {
            MessageType::MsgHeartbeat => self.check_commit(&message)?,
            // The crate would pass them on; the sender will hear of the leader himself.
            MessageType::MsgPropose if !self.is_leader() => return Err(Rejected::ProposalDropped),
            MessageType::MsgReadIndex if !self.is_leader() => return Err(Rejected::ReadDropped),
            MessageType::MsgPropose => {
                for change in message.entries.iter().filter_map(conf_change::decode) {
                    self.check_conf_change(&change)?;
                }
            }
            MessageType::MsgReadIndex => {
                let context = ReadContext::decode(&message.entries[0].data);
                let context = context.filter(|context| context.member.0 == message.from);
                if !context.is_some_and(|context| self.seen.admit(context)) {
                    return Err(Rejected::Invalid("a read context that is not fresh"));
                }
                return self.start_read(message);
            }
            _ => {}
        }
        self.step(message)
    }

    /// A heartbeat commits what its receiver has acknowledged. If the log does not reach that far, it has been lost.
    fn check_commit(&mut self, message: &Message) -> Result<(), Rejected> {
        if message.term < self.raw.raft.term || message.commit <= self.raw.raft.raft_log.last_index() {
            return Ok(());
        }
        if self.ahead.term != message.term {
            self.ahead = Ahead { term: message.term, ..Ahead::default() };
        }
        self.ahead.count = self.ahead.count.saturating_add(1);
        self.ahead.commit = message.commit;
        Err(Rejected::Invalid("a heartbeat that commits what this log does not have"))
    }

    fn propose(&mut self, data: Bytes) -> Result<(), Rejected> {
        if data.is_empty() {
            // Raft's own entries are the empty ones.
            return Err(Rejected::Invalid("an empty proposal"));
        }
        self.step_own(MessageType::MsgPropose, Entry { data, ..Entry::default() })
    }

    fn propose_conf_change(&mut self, change: &ConfChangeV2, context: Bytes) -> Result<(), Rejected> {
        if self.is_leader() {
            self.check_conf_change(change)?;
        }
        let entry = conf_change::encode(change, context);
        if conf_change::decode(&entry).is_none() {
            return Err(Rejected::Invalid("a change that cannot be read"));
        }
        self.step_own(MessageType::MsgPropose, entry)
    }

    /// The crate replaces a change that cannot be made by an empty entry, and nobody would hear of it. And whether a learner
    /// has the log is known to the leader alone.
    fn check_conf_change(&self, change: &ConfChangeV2) -> Result<(), Rejected> {
        let raft = &self.raw.raft;
        if raft.has_pending_conf() {
            return Err(Rejected::ConfChangePending);
        }
        let mut changer = Changer::new(raft.prs());
        let outcome = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        outcome.map_err(|_| Rejected::Invalid("a change that the configuration does not allow"))?;
        let mut promoted = change.changes.iter().filter(|single| single.get_change_type() == ConfChangeType::AddNode);
        let behind = promoted.any(|single| self.is_behind(MemberId(single.node_id)));
        if behind { Err(Rejected::LearnerBehind) } else { Ok(()) }
    }

    /// Whether a member is a learner that lacks too much of the log to vote, as far as a leader knows.
    pub fn is_behind(&self, id: MemberId) -> bool {
        let peers = self.peers();
        let matched = |id| peers.iter().find(|peer| peer.id == id).map_or(0, |peer| u128::from(peer.matched.0));
        let learner = peers.iter().any(|peer| peer.id == id && peer.learner);
        learner && matched(id) * 100 < matched(self.id()) * IN_SYNC_PERCENT
    }

    fn read(&mut self, context: ReadContext) -> Result<(), Rejected> {
        if !self.reads.spend(context) {
            return Err(Rejected::Invalid("a read context that is not fresh"));
        }
        if self.leader().is_none() {
            return Err(Rejected::ReadDropped);
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        let entry = Entry { data: Bytes::copy_from_slice(&context.encode()), ..Entry::default() };
        message.set_entries(vec![entry].into());
        self.start_read(message)
    }

    /// Starts a read, or keeps it until this leader has committed an entry of its own term.
    fn start_read(&mut self, message: Message) -> Result<(), Rejected> {
        if !self.is_leader() || self.raw.raft.commit_to_current_term() {
            return self.step(message);
        }
        if self.held.len() == HELD_READS_MAX {
            return Err(Rejected::ReadDropped);
        }
        self.held.push(message);
        Ok(())
    }

    fn persisted(&mut self, number: u64) -> Result<(), Rejected> {
        if number > self.numbers.last {
            return Err(Rejected::Invalid("an output that was never given is said to be durable"));
        }
        self.numbers.persisted = self.numbers.persisted.max(number);
        // An entry that was replaced and then written again as it was counts as durable to the crate as soon as its
        // first copy is, although the log on disk may still end up with what stood there in between. So nothing counts
        // until the last replacement is durable.
        if number < self.numbers.replaces {
            return Ok(());
        }
        self.raw.on_persist_ready(number);
        if let Some((_, index)) = self.installing.take_if(|(at, _)| *at <= number) {
            self.raw.advance_apply_to(index.0);
        }
        if self.is_settled()
            && let Some(call) = self.called.take()
        {
            // Whoever called may not lead any more; then it is refused, and nobody waits for it.
            let _ = self.message(call);
        }
        Ok(())
    }

    fn applied_to(&mut self, index: Index) -> Result<(), Rejected> {
        if index.0 > self.handed {
            return Err(Rejected::Invalid("an entry that was never given is said to be applied"));
        }
        // What was given before a snapshot may be reported while the snapshot is installed, and later than that.
        if index > self.applied() && self.snapshot_in_flight().is_none() {
            self.raw.advance_apply_to(index.0);
        }
        Ok(())
    }

    fn transfer_leader(&mut self, to: MemberId) -> Result<(), Rejected> {
        if !self.is_leader() {
            return Err(Rejected::Invalid("only the leader hands over leadership"));
        }
        if !self.conf_state().voters.contains(&to.0) {
            return Err(Rejected::Invalid("leadership goes to voters only"));
        }
        self.raw.transfer_leader(to.0);
        Ok(())
    }

    fn campaign(&mut self) -> Result<(), Rejected> {
        if !self.raw.raft.promotable() {
            return Err(Rejected::Invalid("only voters campaign"));
        }
        if !self.is_settled() {
            return Err(Rejected::Invalid("the log is being written"));
        }
        self.raw.campaign().map_err(|_| Rejected::Invalid("raft refused to campaign"))
    }

    fn snapshot_ready(&mut self, point: SnapshotPoint) -> Result<(), Rejected> {
        if point.index > self.applied() || !conf_change::is_sound(&point.conf_state) {
            return Err(Rejected::Invalid("a snapshot of a state that was never reached"));
        }
        if self.raw.store().term_at(point.index.0) != Some(point.term.0) || point.index.0 == 0 {
            return Err(Rejected::Invalid("a snapshot of a point that is not in the log"));
        }
        self.raw.mut_store().offer(point);
        Ok(())
    }

    fn snapshot_status(&mut self, to: MemberId, ok: bool) {
        self.note_snapshot(to.0);
        if !ok {
            self.catch_ups.failed(to.0);
        }
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to.0, status);
    }

    /// Before raft forgets it: that a peer was sent a snapshot.
    fn note_snapshot(&mut self, peer: u64) {
        let progress = self.raw.raft.prs().get(peer);
        let sent =
            progress.filter(|progress| progress.state == ProgressState::Snapshot && progress.pending_snapshot > 0);
        if let Some(progress) = sent {
            self.catch_ups.sent(peer, progress.pending_snapshot);
        }
    }

    fn truncate_log(&mut self, index: Index) -> Result<(), Rejected> {
        if index > self.applied() {
            return Err(Rejected::Invalid("truncation of entries that are not applied"));
        }
        // A peer that receives a snapshot needs what follows it; one that does not get on with it will need another.
        let holds = self.log_bytes() <= HELD_BYTES_MAX;
        self.peers().into_iter().for_each(|peer| self.note_snapshot(peer.id.0));
        let raft = &self.raw.raft;
        let matched = |peer| raft.prs().get(peer).map(|progress| progress.matched);
        let needed = self.catch_ups.needed(raft.raft_log.last_index(), matched).filter(|_| holds);
        let index = needed.map_or(index.0, |needed| index.0.min(needed));
        self.raw.mut_store().truncate(index);
        Ok(())
    }

    fn step_own(&mut self, kind: MessageType, entry: Entry) -> Result<(), Rejected> {
        let mut message = Message { from: self.raw.raft.id, ..Message::default() };
        message.set_msg_type(kind);
        message.set_entries(vec![entry].into());
        self.step(message)
    }

    fn step(&mut self, message: Message) -> Result<(), Rejected> {
        if self.is_leader() {
            self.heard(message.from);
        }
        self.raw.raft.step(message).map_err(|error| match error {
            ::raft::Error::ProposalDropped => Rejected::ProposalDropped,
            _ => Rejected::Invalid("raft refused the message"),
        })
    }

    /// Before raft answers a peer: how many appends may be on their way to it.
    fn heard(&mut self, peer: u64) {
        // The peer's acknowledgement may be here before we are told that the snapshot has arrived.
        self.note_snapshot(peer);
        self.catch_ups.heard(peer);
        let raft = &mut self.raw.raft;
        let last = raft.raft_log.last_index();
        let Some(progress) = raft.prs().get(peer) else { return };
        let most = catch_up::inflight_max(last.saturating_sub(progress.matched));
        // Not less while many are on their way: raft would wait for as many heartbeats before it sends anything, if they were lost.
        if progress.state != ProgressState::Replicate || most == catch_up::INFLIGHT_MAX {
            raft.adjust_max_inflight_msgs(peer, most);
        }
    }

    /// After every call into raft: waiting reads, and the timeout it may have drawn.
    fn settle(&mut self) {
        if !self.is_leader() {
            self.held.clear();
            self.catch_ups.clear();
        } else if !self.held.is_empty() && self.raw.raft.commit_to_current_term() {
            for message in std::mem::take(&mut self.held) {
                // A read is never refused by a leader; it could only be dropped, and then asked again.
                let _ = self.step(message);
            }
        }
        let raft = &mut self.raw.raft;
        let draw = Draw {
            seed: self.seed,
            id: raft.id,
            term: raft.term,
            role: raft.state as u64,
            leader: raft.leader_id,
            campaigns: self.campaigns,
        };
        let ticks = draw.ticks(raft.election_timeout());
        raft.set_randomized_election_timeout(ticks);
    }

    fn standing(&self, sender: u64) -> Standing {
        let raft = &self.raw.raft;
        Standing {
            id: raft.id,
            term: raft.term,
            leader: raft.leader_id,
            last_index: raft.raft_log.last_index(),
            knows_sender: raft.prs().get(sender).is_some(),
            settled: self.is_settled(),
            installing: self.snapshot_in_flight().is_some(),
        }
    }

    /// Whether nothing of the log is on its way to the disk. Only then may the member stand for election: a leader's
    /// log must not lose its end, and the crate asserts it.
    fn is_settled(&self) -> bool {
        self.snapshot_in_flight().is_none()
            && self.raw.raft.raft_log.unstable_entries().is_empty()
            && self.numbers.writes <= self.numbers.persisted
    }

    fn present_ballot(&self) -> (u64, u64) {
        (self.raw.raft.term, self.raw.raft.vote)
    }

    /// What may be sent now, and what has to wait until this output is durable; each in the order of its receivers.
    fn split_by_sync(&self, messages: Vec<Message>) -> (Vec<Message>, Vec<Message>) {
        let ballot_durable = self.numbers.ballot <= self.numbers.persisted;
        let leads = self.is_leader();
        let (mut now, mut after): (Vec<_>, Vec<_>) = messages.into_iter().flat_map(split_append).partition(|message| {
            // Followers acknowledge entries and give votes: promises that a crash must not take back. These three
            // promise nothing but the term.
            let kind = message.get_msg_type();
            let promises_nothing =
                matches!(kind, MessageType::MsgHeartbeatResponse | MessageType::MsgReadIndex | MessageType::MsgPropose);
            ballot_durable && (leads || promises_nothing)
        });
        now.sort_by_key(|message| message.to);
        after.sort_by_key(|message| message.to);
        (now, after)
    }
}

/// The hard state to start with, if the log is one that raft can start from.
fn start_hard_state(
    base: (Index, Term),
    entries: &[Entry],
    hard_state: Option<HardState>,
    applied: u64,
) -> Result<HardState, Error> {
    let (Index(mut last), Term(mut last_term)) = base;
    if applied < last {
        return Err(Error::LogStartsLate { base: base.0, applied: Index(applied) });
    }
    for entry in entries {
        if entry.index != last + 1 || entry.term == 0 || entry.term < last_term {
            return Err(Error::Disordered(Index(entry.index)));
        }
        (last, last_term) = (entry.index, entry.term);
    }
    // Entries never come before the hard state of their term; without one, the log is that of a founder.
    let mut hard_state = hard_state.unwrap_or_else(|| HardState { term: base.1.0, ..HardState::default() });
    if hard_state.term < last_term {
        return Err(Error::TermForgotten { last: Term(last_term), known: Term(hard_state.term) });
    }
    // What is applied was committed, whether or not the disk was told so.
    hard_state.commit = hard_state.commit.max(applied);
    if hard_state.commit > last {
        return Err(Error::LogEndsEarly { last: Index(last), needed: Index(hard_state.commit) });
    }
    Ok(hard_state)
}

/// Appends for the same receiver are merged by the crate without a limit. Cuts them to size again.
fn split_append(mut message: Message) -> Vec<Message> {
    let total: u64 = message.entries.iter().map(entry_size).sum();
    if message.get_msg_type() != MessageType::MsgAppend || total <= MESSAGE_BYTES_MAX || message.entries.len() < 2 {
        return vec![message];
    }
    let entries = message.take_entries().into_vec();
    let mut parts: Vec<Message> = Vec::new();
    let mut part = Vec::new();
    let mut size = 0;
    let (mut index, mut term) = (message.index, message.log_term);
    let mut finish = |part: &mut Vec<Entry>, index: &mut u64, term: &mut u64| {
        let mut cut = message.clone();
        (cut.index, cut.log_term) = (*index, *term);
        if let Some(last) = part.last() {
            (*index, *term) = (last.index, last.term);
        }
        cut.set_entries(std::mem::take(part).into());
        parts.push(cut);
    };
    for entry in entries {
        if !part.is_empty() && size + entry_size(&entry) > MESSAGE_BYTES_MAX {
            finish(&mut part, &mut index, &mut term);
            size = 0;
        }
        size += entry_size(&entry);
        part.push(entry);
    }
    finish(&mut part, &mut index, &mut term);
    parts
}
