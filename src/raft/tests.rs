//! What nodes do together: three members on a network and disks made of memory, in an order that a seed decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use slog::{Discard, Logger, o};

use super::*;
use crate::types::{Index, MemberId, Term};

const TICKS: usize = 10;

/// A generator of numbers for one run.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    pub(super) fn chance(&mut self, one_in: u64) -> bool {
        self.roll(one_in) == 0
    }
}

pub(super) fn dice(seed: u64) -> Dice {
    Dice((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What survives a crash.
#[derive(Clone)]
pub(super) struct Durable {
    base: (Index, Term),
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
    /// State and configuration; the tests' backend is always durable.
    applied: u64,
    conf_state: ConfState,
}

struct Member {
    node: Node,
    disk: Durable,
    /// Given by the node, not durable yet.
    writing: VecDeque<Output>,
    boot: u64,
    roles: Vec<Role>,
    /// Reads on their way, with the highest index that anybody had applied when they were asked.
    reads: BTreeMap<ReadContext, u64>,
    answered: usize,
}

struct Cluster {
    members: BTreeMap<u64, Member>,
    network: Vec<Message>,
    /// Members that hear nobody and that nobody hears.
    cut: BTreeSet<u64>,
    dice: Dice,
    /// What stands at each index, once somebody applied it.
    agreed: BTreeMap<u64, (u64, Bytes)>,
}

pub(super) fn voters(ids: &[u64]) -> ConfState {
    ConfState { voters: ids.to_vec(), ..ConfState::default() }
}

pub(super) fn founder(conf_state: &ConfState) -> Durable {
    Durable {
        base: (Index(1), Term(1)),
        entries: Vec::new(),
        hard_state: None,
        applied: 1,
        conf_state: conf_state.clone(),
    }
}

pub(super) fn start(id: u64, disk: &Durable, boot: u64) -> Result<Node, Error> {
    Node::new(NodeConfig {
        id: MemberId(id),
        election_ticks: TICKS,
        heartbeat_ticks: 1,
        applied: Index(disk.applied),
        seed: 42,
        boot,
        pre_vote: true,
        log: LogStart {
            base: disk.base,
            conf_state: disk.conf_state.clone(),
            hard_state: disk.hard_state.clone(),
            entries: disk.entries.clone(),
        },
        logger: Logger::root(Discard, o!()),
    })
}

impl Durable {
    fn write(&mut self, output: &Output) {
        if let Some(snapshot) = &output.snapshot {
            let meta = snapshot.get_metadata();
            self.base = (Index(meta.index), Term(meta.term));
            self.entries.clear();
            self.applied = meta.index;
            self.conf_state = meta.get_conf_state().clone();
        }
        if let Some(first) = output.entries.first() {
            self.entries.truncate((first.index - self.base.0.0 - 1) as usize);
            self.entries.extend(output.entries.iter().cloned());
        }
        if let Some(hard_state) = &output.hard_state {
            self.hard_state = Some(hard_state.clone());
        }
    }
}

impl Cluster {
    fn new(conf_state: ConfState, seed: u64) -> Cluster {
        let ids: Vec<u64> = conf_state.voters.iter().chain(&conf_state.learners).copied().collect();
        let disk = founder(&conf_state);
        let mut cluster = Cluster {
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            dice: dice(seed),
            agreed: BTreeMap::new(),
        };
        for id in ids {
            cluster.boot(id, disk.clone(), 1);
        }
        cluster
    }

    fn three(seed: u64) -> Cluster {
        Cluster::new(voters(&[1, 2, 3]), seed)
    }

    fn boot(&mut self, id: u64, disk: Durable, boot: u64) {
        let node = start(id, &disk, boot).unwrap_or_else(|error| panic!("member {id}: {error}"));
        let member = Member {
            node,
            disk,
            writing: VecDeque::new(),
            boot,
            roles: Vec::new(),
            reads: BTreeMap::new(),
            answered: 0,
        };
        self.members.insert(id, member);
    }

    /// The member dies and comes back with what was durable.
    fn crash(&mut self, id: u64) {
        let member = &self.members[&id];
        let (disk, boot) = (member.disk.clone(), member.boot + 1);
        self.boot(id, disk, boot);
    }

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.members.get_mut(&id).expect("a member").node
    }

    fn handle(&mut self, id: u64, input: Input) -> Result<(), Rejected> {
        let result = self.node(id).handle(input);
        self.turn(id);
        result
    }

    /// Takes all outputs; sends, applies and answers, but leaves the disk alone.
    fn turn(&mut self, id: u64) {
        let member = self.members.get_mut(&id).expect("a member");
        while let Some(mut output) = member.node.take_output() {
            self.network.append(&mut output.messages);
            for entry in &output.committed {
                let stands = (entry.term, entry.data.clone());
                let before = self.agreed.entry(entry.index).or_insert_with(|| stands.clone());
                assert_eq!(*before, stands, "member {id} applies something else at {}", entry.index);
                let change = decode_conf_change(entry);
                if let Some(Ok(conf_state)) = change.map(|change| member.node.apply_conf_change(&change)) {
                    member.disk.conf_state = conf_state;
                }
                member.disk.applied = entry.index;
                member.node.handle(Input::Applied(Index(entry.index))).expect("it was given");
            }
            for (context, index) in output.reads.drain(..) {
                if let Some(needed) = member.reads.remove(&context) {
                    assert!(index.0 >= needed, "member {id} reads at {index}, but {needed} was seen before it asked");
                    member.answered += 1;
                }
            }
            if let Some(role) = output.role {
                member.roles.push(role);
                member.reads.clear();
            }
            member.writing.push_back(output);
        }
    }

    /// One write reaches the disk.
    fn sync_one(&mut self, id: u64) -> bool {
        let member = self.members.get_mut(&id).expect("a member");
        let Some(mut output) = member.writing.pop_front() else { return false };
        member.disk.write(&output);
        member.node.handle(Input::Persisted { number: output.number }).expect("it was given");
        self.network.append(&mut output.messages_after_sync);
        self.turn(id);
        true
    }

    fn sync(&mut self, id: u64) {
        while self.sync_one(id) {}
    }

    fn deliver(&mut self, message: Message) {
        let (to, from) = (message.to, message.from);
        let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
        let mut arrived = false;
        if !self.cut.contains(&to) && !self.cut.contains(&from) && self.members.contains_key(&to) {
            arrived = self.handle(to, Input::Message(message)).is_ok();
        }
        if snapshot && self.members.contains_key(&from) {
            let _ = self.handle(from, Input::SnapshotStatus { to: MemberId(to), ok: arrived });
        }
    }

    /// Everything that can happen without time passing, in an order that the dice decide.
    fn settle(&mut self) {
        loop {
            let ids: Vec<u64> = self.members.keys().copied().collect();
            let writing: Vec<u64> = ids.iter().copied().filter(|id| !self.members[id].writing.is_empty()).collect();
            let choices = self.network.len() + writing.len();
            if choices == 0 {
                return;
            }
            let choice = self.dice.roll(choices as u64) as usize;
            match choice.checked_sub(self.network.len()) {
                Some(place) => drop(self.sync_one(writing[place])),
                // In order between two members most of the time, as on a connection.
                None => {
                    let (to, from) = (self.network[choice].to, self.network[choice].from);
                    let first = self.network.iter().position(|m| (m.to, m.from) == (to, from)).expect("it is there");
                    let message = self.network.remove(if self.dice.chance(8) { choice } else { first });
                    self.deliver(message);
                }
            }
        }
    }

    fn tick_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.handle(id, Input::Tick).expect("time passes");
        }
        self.settle();
    }

    fn leader(&self) -> Option<u64> {
        let leading = self.members.iter().filter(|(id, member)| member.node.is_leader() && !self.cut.contains(id));
        leading.max_by_key(|(_, member)| member.node.term()).map(|(id, _)| *id)
    }

    /// Time passes until the members that are not cut off have a leader they agree on, and it has committed.
    fn elect(&mut self) -> u64 {
        for _ in 0..20 * TICKS {
            if let Some(leader) = self.leader() {
                let follow = self.members.iter().filter(|(id, _)| !self.cut.contains(id));
                let agreed = follow.into_iter().all(|(_, m)| m.node.leader() == Some(MemberId(leader)));
                if agreed && self.node(leader).committed() == self.node(leader).last_index() {
                    return leader;
                }
            }
            self.tick_all();
        }
        panic!("no leader after twenty timeouts");
    }

    fn propose(&mut self, id: u64, data: &str) -> Result<(), Rejected> {
        self.handle(id, Input::Propose(Bytes::copy_from_slice(data.as_bytes())))
    }

    fn ask(&mut self, id: u64) -> Result<(), Rejected> {
        let seen = self.agreed.keys().next_back().copied().unwrap_or(1);
        let member = self.members.get_mut(&id).expect("a member");
        let context = member.node.fresh_read();
        member.node.handle(Input::Read(context))?;
        member.reads.insert(context, seen);
        self.turn(id);
        Ok(())
    }

    fn applied(&self, id: u64) -> u64 {
        self.members[&id].node.applied().0
    }

    fn values(&self) -> Vec<String> {
        let normal = self.agreed.values().filter(|(_, data)| !data.is_empty());
        normal.map(|(_, data)| String::from_utf8_lossy(data).into_owned()).collect()
    }
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn members_elect_one_leader_and_apply_the_same_entries() {
    for seed in 0..20 {
        let mut cluster = Cluster::three(seed);
        let leader = cluster.elect();
        for id in 1..=3 {
            cluster.propose(id, &format!("from {id}")).expect("there is a leader");
        }
        cluster.settle();
        cluster.tick_all();
        let mut values = cluster.values();
        values.sort();
        assert_eq!(values, ["from 1", "from 2", "from 3"], "seed {seed}");
        let last = cluster.node(leader).last_index().0;
        assert!((1..=3).all(|id| cluster.applied(id) == last), "seed {seed}");
        assert!(cluster.node(leader).peers().iter().all(|peer| peer.matched.0 == last && peer.active));
    }
}

#[test]
fn a_lost_leader_is_replaced_and_joins_again() {
    for seed in 0..20 {
        let mut cluster = Cluster::three(seed);
        let old = cluster.elect();
        let term = cluster.node(old).term();
        cluster.cut.insert(old);
        cluster.propose(old, "lost").expect("it still believes that it leads");
        let new = cluster.elect();
        assert!(new != old && cluster.node(new).term() > term);
        cluster.propose(new, "kept").expect("a leader");
        (0..2 * TICKS).for_each(|_| cluster.tick_all());
        assert!(!cluster.node(old).is_leader(), "it stepped down for want of a quorum");
        cluster.cut.clear();
        let last = cluster.elect();
        cluster.tick_all();
        assert_eq!((cluster.values(), cluster.applied(old)), (vec!["kept".to_owned()], cluster.applied(last)));
    }
}

#[test]
fn without_a_leader_proposals_and_reads_are_refused() {
    let mut cluster = Cluster::three(0);
    assert_eq!(cluster.propose(1, "x"), Err(Rejected::ProposalDropped));
    assert_eq!(cluster.ask(1), Err(Rejected::ReadDropped));
    assert_eq!(cluster.propose(1, ""), Err(Rejected::Invalid("an empty proposal")));
}

#[test]
fn a_lone_voter_commits_only_what_is_durable() {
    let mut cluster = Cluster::new(voters(&[1]), 0);
    cluster.handle(1, Input::Campaign).expect("a voter");
    assert!(cluster.node(1).is_leader());
    cluster.propose(1, "x").expect("a leader");
    cluster.turn(1);
    assert!(cluster.agreed.is_empty() && cluster.members[&1].disk.entries.is_empty());
    cluster.ask(1).expect("it waits for the first commit");
    assert_eq!(cluster.members[&1].answered, 0);
    cluster.sync(1);
    assert_eq!((cluster.values(), cluster.members[&1].answered), (vec!["x".to_owned()], 1));
}

#[test]
fn a_lone_voter_tells_its_learner_nothing_before_its_term_is_durable() {
    let conf_state = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
    let mut cluster = Cluster::new(conf_state, 0);
    assert!(cluster.node(2).is_learner() && !cluster.node(1).is_learner());
    cluster.handle(1, Input::Campaign).expect("a voter");
    cluster.propose(1, "x").expect("a leader");
    assert!(cluster.node(1).is_leader() && cluster.network.is_empty());
    cluster.sync(1);
    assert!(cluster.network.iter().any(|m| m.get_msg_type() == MessageType::MsgAppend && m.to == 2));
    cluster.settle();
    cluster.propose(1, "y").expect("a leader");
    assert!(!cluster.members[&1].writing.is_empty(), "y is not durable here");
    assert!(cluster.network.iter().any(|m| m.entries.iter().any(|e| e.data == "y")), "but on its way");
}

#[test]
fn a_leader_replicates_before_its_own_disk_and_applies_after_it() {
    let mut cluster = Cluster::three(1);
    let leader = cluster.elect();
    let before = cluster.applied(leader);
    cluster.propose(leader, "x").expect("a leader");
    for _ in 0..6 {
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
        (1..=3).filter(|id| *id != leader).for_each(|id| cluster.sync(id));
    }
    assert_eq!(cluster.node(leader).committed().0, before + 1, "two followers have it");
    assert_eq!(cluster.applied(leader), before, "its own disk does not");
    cluster.sync(leader);
    assert_eq!(cluster.applied(leader), before + 1);
}

#[test]
fn acknowledgements_wait_for_the_disk_and_heartbeats_do_not() {
    let mut cluster = Cluster::three(2);
    let leader = cluster.elect();
    let follower = leader % 3 + 1;
    cluster.propose(leader, "x").expect("a leader");
    let append = cluster.network.iter().position(|m| m.to == follower).expect("it is on its way");
    let append = cluster.network.remove(append);
    cluster.network.clear();
    cluster.deliver(append);
    let term = cluster.node(leader).term().0;
    cluster.deliver(message(MessageType::MsgHeartbeat, leader, follower, term));
    let kinds: Vec<_> = cluster.network.iter().map(|m| m.get_msg_type()).collect();
    assert_eq!(kinds, [MessageType::MsgHeartbeatResponse]);
    cluster.sync(follower);
    assert_eq!(cluster.network[1].get_msg_type(), MessageType::MsgAppendResponse);
}

#[test]
fn a_member_behind_the_log_is_given_a_snapshot() {
    for seed in 0..10 {
        let mut cluster = Cluster::three(seed);
        let leader = cluster.elect();
        let behind = leader % 3 + 1;
        cluster.cut.insert(behind);
        for number in 0..20 {
            cluster.propose(leader, &format!("{number}")).expect("a leader");
            cluster.settle();
        }
        let at = cluster.node(leader).applied();
        assert_eq!(
            cluster.handle(leader, Input::TruncateLog(Index(at.0 + 1))),
            Err(Rejected::Invalid("truncation of entries that are not applied"))
        );
        cluster.handle(leader, Input::TruncateLog(at)).expect("applied");
        assert_eq!((cluster.node(leader).base().0, cluster.node(leader).first_index().0), (at, at.0 + 1));
        cluster.cut.clear();
        for _ in 0..3 * TICKS {
            cluster.tick_all();
        }
        let leader = cluster.elect();
        assert!(cluster.node(leader).snapshot_wanted() && cluster.applied(behind) < at.0, "seed {seed}");

        let (index, term) = (cluster.node(leader).applied(), cluster.node(leader).term());
        let point = SnapshotPoint { index, term, conf_state: voters(&[1, 2, 3]) };
        cluster.handle(leader, Input::SnapshotReady(point)).expect("an applied point");
        cluster.propose(leader, "after").expect("a leader");
        for _ in 0..3 * TICKS {
            cluster.tick_all();
        }
        assert_eq!(cluster.applied(behind), cluster.applied(leader), "seed {seed}");
        assert!(cluster.members[&behind].disk.base.0 >= at && cluster.node(behind).snapshot_in_flight().is_none());
        cluster.crash(behind);
        cluster.elect();
    }
}

/// A leader, a member behind its log, and the snapshot that it has offered to that one, of this index.
fn snapshot_on_its_way() -> (Cluster, u64, u64, Message, Index) {
    let mut cluster = Cluster::three(9);
    let leader = cluster.elect();
    let behind = leader % 3 + 1;
    cluster.cut.insert(behind);
    cluster.propose(leader, "x").expect("a leader");
    cluster.settle();
    let (index, term) = (cluster.node(leader).applied(), cluster.node(leader).term());
    let point = SnapshotPoint { index, term, conf_state: voters(&[1, 2, 3]) };
    cluster.handle(leader, Input::SnapshotReady(point)).expect("an applied point");
    cluster.handle(leader, Input::TruncateLog(index)).expect("applied");
    cluster.cut.clear();
    cluster.handle(leader, Input::Unreachable(MemberId(behind))).expect("always");
    cluster.handle(leader, Input::Tick).expect("time passes");
    for _ in 0..2 {
        std::mem::take(&mut cluster.network).into_iter().for_each(|message| cluster.deliver(message));
    }
    let offer = cluster.network.iter().position(|m| m.get_msg_type() == MessageType::MsgSnapshot);
    let offer = cluster.network.remove(offer.expect("the log does not reach back"));
    (cluster, leader, behind, offer, index)
}

#[test]
fn the_log_is_kept_for_a_member_that_receives_a_snapshot() {
    let (mut cluster, leader, behind, offer, index) = snapshot_on_its_way();
    cluster.propose(leader, "y").expect("a leader");
    cluster.settle();
    assert_eq!(cluster.node(leader).applied().0, index.0 + 1);
    cluster.handle(leader, Input::TruncateLog(Index(index.0 + 1))).expect("applied");
    assert_eq!(cluster.node(leader).base().0, index);
    cluster.deliver(offer);
    cluster.settle();
    cluster.tick_all();
    assert_eq!(cluster.applied(behind), cluster.applied(leader));
    cluster.handle(leader, Input::TruncateLog(Index(index.0 + 1))).expect("applied");
    assert_eq!(cluster.node(leader).base().0.0, index.0 + 1);
}

/// It has arrived and is being adopted: nothing of the member says so yet, and raft has forgotten that it was sent one.
#[test]
fn the_log_is_kept_for_a_member_that_adopts_a_snapshot_and_answers() {
    let (mut cluster, leader, behind, offer, index) = snapshot_on_its_way();
    cluster.deliver(offer);
    assert_eq!(cluster.node(behind).snapshot_in_flight(), Some(index));
    for value in 0..100 {
        cluster.propose(leader, &value.to_string()).expect("a leader");
    }
    // Time passes; the disk of the member that adopts does not get on.
    let pass = |cluster: &mut Cluster, answers: bool| {
        for id in 1..=3 {
            cluster.handle(id, Input::Tick).expect("time passes");
        }
        while let Some(message) = cluster.network.pop() {
            assert_ne!(message.get_msg_type(), MessageType::MsgSnapshot, "another one");
            if answers || (message.from != behind && message.to != behind) {
                cluster.deliver(message);
            }
            (1..=3).filter(|id| *id != behind).for_each(|id| cluster.sync(id));
        }
    };
    for _ in 0..20 * TICKS {
        pass(&mut cluster, true);
        let applied = cluster.node(leader).applied();
        cluster.handle(leader, Input::TruncateLog(applied)).expect("applied");
        assert_eq!(cluster.node(leader).base().0, index);
    }
    let (mut silent, at) = (0, cluster.node(leader).applied());
    assert!(at.0 >= index.0 + 100);
    while cluster.node(leader).base().0 == index {
        pass(&mut cluster, false);
        cluster.handle(leader, Input::TruncateLog(at)).expect("applied");
        silent += 1;
        assert!(silent <= 10 * TICKS + 1, "it is kept for somebody who has gone");
    }
    assert!(silent > 9 * TICKS, "it was kept for {silent} ticks");
}

/// What a member says of a snapshot may come before the connection's notice that it has gone.
#[test]
fn the_log_is_kept_until_who_adopted_a_snapshot_has_the_rest() {
    for acknowledged_first in [false, true] {
        let (mut cluster, leader, behind, offer, index) = snapshot_on_its_way();
        let (to, status) = (behind, Input::SnapshotStatus { to: MemberId(behind), ok: true });
        if acknowledged_first {
            cluster.handle(to, Input::Message(offer)).expect("a member that lacks it");
            cluster.sync(to);
            let said =
                cluster.network.iter().position(|message| message.get_msg_type() == MessageType::MsgAppendResponse);
            let said = cluster.network.remove(said.expect("it is durable there"));
            cluster.deliver(said);
            cluster.handle(leader, status).expect("always");
        } else {
            cluster.deliver(offer);
            cluster.sync(to);
        }
        cluster.cut.insert(to);
        for value in 0..100 {
            cluster.propose(leader, &value.to_string()).expect("a leader");
            cluster.settle();
        }
        let applied = cluster.node(leader).applied();
        assert!(applied.0 >= index.0 + 100);
        cluster.handle(leader, Input::TruncateLog(applied)).expect("applied");
        assert_eq!(cluster.node(leader).base().0, index, "acknowledged first: {acknowledged_first}");
        cluster.cut.clear();
        (0..3 * TICKS).for_each(|_| cluster.tick_all());
        assert_eq!(cluster.applied(to), cluster.applied(leader));
        cluster.handle(leader, Input::TruncateLog(applied)).expect("applied");
        assert_eq!(cluster.node(leader).base().0, applied);
    }
}

#[test]
fn who_lacks_much_gets_it_in_portions() {
    let mut cluster = Cluster::three(3);
    let leader = cluster.elect();
    let behind = leader % 3 + 1;
    cluster.cut.insert(behind);
    let value = "x".repeat(1 << 10);
    for _ in 0..600 {
        (0..10).for_each(|_| cluster.propose(leader, &value).expect("a leader"));
        cluster.settle();
    }
    cluster.cut.clear();
    let (mut most, ticks) = (0, 10 * TICKS);
    for _ in 0..ticks {
        (1..=3).for_each(|id| cluster.handle(id, Input::Tick).expect("time passes"));
        while !cluster.network.is_empty() {
            let under_way = cluster.network.iter().filter(|message| message.to == behind);
            most = most.max(under_way.flat_map(|message| &message.entries).map(|entry| entry.data.len()).sum());
            let message = cluster.network.remove(0);
            cluster.deliver(message);
            (1..=3).for_each(|id| cluster.sync(id));
        }
    }
    assert_eq!(cluster.applied(behind), cluster.applied(leader));
    assert!(((1 << 20)..=(3 << 20)).contains(&most), "{most} bytes on their way");
}

#[test]
fn a_snapshot_that_does_not_arrive_holds_the_log_only_so_far() {
    let (mut cluster, leader, _, _, index) = snapshot_on_its_way();
    let large = Bytes::from(vec![1; 60 << 20]);
    for _ in 0..5 {
        assert_eq!(cluster.node(leader).base().0, index);
        cluster.handle(leader, Input::Propose(large.clone())).expect("a leader");
        cluster.settle();
        let applied = cluster.node(leader).applied();
        cluster.handle(leader, Input::TruncateLog(applied)).expect("applied");
    }
    assert_eq!(cluster.node(leader).base().0.0, index.0 + 5);
}

/// The disk would end with the middle one of three writes if the power failed after the second.
#[test]
fn an_entry_that_was_replaced_and_came_back_counts_when_its_last_write_is_durable() {
    let mut cluster = Cluster::three(0);
    for (leader, term, entries) in [(1, 2, &[2][..]), (3, 3, &[3]), (1, 4, &[2, 4])] {
        let mut append =
            Message { index: 1, log_term: 1, commit: 3, ..message(MessageType::MsgAppend, leader, 2, term) };
        let entry = |(place, term): (usize, &u64)| Entry { index: place as u64 + 2, term: *term, ..Entry::default() };
        append.set_entries(entries.iter().enumerate().map(entry).collect::<Vec<_>>().into());
        append.commit *= u64::from(term == 4);
        cluster.handle(2, Input::Message(append)).expect("sound");
    }
    assert_eq!((cluster.node(2).committed().0, cluster.members[&2].writing.len()), (3, 3));
    for applied in [1, 1, 3] {
        cluster.sync_one(2);
        assert_eq!(cluster.applied(2), applied);
    }
}

#[test]
fn a_member_that_installs_a_snapshot_neither_campaigns_nor_takes_another() {
    let mut cluster = Cluster::three(0);
    let offer = |index: u64| {
        let mut offer = message(MessageType::MsgSnapshot, 1, 2, 5);
        let meta = offer.mut_snapshot().mut_metadata();
        (meta.index, meta.term) = (index, 4);
        meta.set_conf_state(voters(&[2]));
        offer
    };
    cluster.handle(2, Input::Message(offer(50))).expect("the first");
    cluster.handle(2, Input::Applied(Index(50))).expect("it was given");
    assert_eq!(cluster.applied(2), 1, "it is not durable yet");
    assert_eq!(cluster.node(2).snapshot_in_flight(), Some(Index(50)));
    assert!(matches!(cluster.handle(2, Input::Message(offer(60))), Err(Rejected::Invalid(_))));
    assert!(matches!(cluster.handle(2, Input::Campaign), Err(Rejected::Invalid(_))));
    for _ in 0..3 * TICKS {
        cluster.handle(2, Input::Tick).expect("time passes");
    }
    assert!(!cluster.node(2).is_leader(), "alone in the new configuration, but not durable");
    cluster.sync(2);
    assert_eq!((cluster.applied(2), cluster.node(2).snapshot_in_flight()), (50, None));
    cluster.handle(2, Input::Tick).expect("time passes");
    assert!(cluster.node(2).is_leader());
}

#[test]
fn a_deposed_leader_releases_no_read_for_answers_to_an_earlier_one() {
    let mut cluster = Cluster::three(3);
    let old = cluster.elect();
    let (second, third) = (old % 3 + 1, (old + 1) % 3 + 1);
    cluster.ask(second).expect("a leader is known");
    let question = cluster.network.remove(0);
    assert_eq!(question.get_msg_type(), MessageType::MsgReadIndex);
    cluster.deliver(question.clone());
    let mut late = Vec::new();
    for beat in std::mem::take(&mut cluster.network) {
        cluster.deliver(beat);
    }
    for answer in std::mem::take(&mut cluster.network) {
        if answer.from == third { late.push(answer) } else { cluster.deliver(answer) }
    }
    for answer in std::mem::take(&mut cluster.network) {
        cluster.deliver(answer);
    }
    assert_eq!((cluster.members[&second].answered, late.len()), (1, 1));

    // The other two go on without the old leader, who has not noticed yet.
    cluster.cut.insert(old);
    let term = cluster.node(old).term();
    cluster.handle(second, Input::Tick).expect("time passes");
    while !cluster.node(second).is_leader() && !cluster.node(third).is_leader() {
        for id in [second, third] {
            cluster.handle(id, Input::Tick).expect("time passes");
        }
        cluster.settle();
    }
    let new = if cluster.node(second).is_leader() { second } else { third };
    cluster.propose(new, "newer").expect("a leader");
    cluster.settle();
    assert!(cluster.node(old).is_leader() && cluster.node(old).term() == term);

    cluster.cut.clear();
    cluster.ask(old).expect("it believes that it leads");
    cluster.network.clear();
    let again = cluster.handle(old, Input::Message(question));
    assert_eq!(again, Err(Rejected::Invalid("a read context that is not fresh")));
    for answer in late {
        cluster.deliver(answer);
    }
    assert_eq!(cluster.members[&old].answered, 0, "nobody has confirmed this read");
    assert!(cluster.network.iter().all(|m| m.get_msg_type() != MessageType::MsgReadIndexResp));
}

#[test]
fn a_member_restarts_from_every_prefix_of_its_log() {
    let mut cluster = Cluster::three(4);
    let mut states = Vec::new();
    for round in 0..4 {
        let leader = cluster.elect();
        for number in 0..3 {
            cluster.propose(leader, &format!("{round} {number}")).expect("a leader");
            while cluster.sync_one(leader) {
                states.push(cluster.members[&leader].disk.clone());
            }
            cluster.settle();
        }
        cluster.cut = BTreeSet::from([leader]);
    }
    assert!(states.len() > 8);
    for disk in states {
        let hard_state = disk.hard_state.clone().expect("raft has written");
        let last = disk.entries.last().map_or(disk.base.0.0, |entry| entry.index);
        for cut in disk.base.0.0..=last {
            let mut prefix = disk.clone();
            prefix.entries.truncate((cut - disk.base.0.0) as usize);
            let needed = hard_state.commit.max(disk.applied);
            match start(1, &prefix, 9) {
                Ok(mut node) => {
                    assert!(cut >= needed);
                    assert!(node.committed().0 >= disk.applied && node.last_index().0 == cut);
                    while node.take_output().is_some() {}
                }
                Err(error) => {
                    assert!(cut < needed);
                    assert_eq!(error, Error::LogEndsEarly { last: Index(cut), needed: Index(needed) });
                }
            }
        }
    }
}

#[test]
fn a_log_that_does_not_fit_together_is_refused() {
    let entry = |index, term| Entry { index, term, ..Entry::default() };
    let sound = Durable {
        entries: vec![entry(2, 2), entry(3, 3)],
        hard_state: Some(HardState { term: 3, commit: 2, ..HardState::default() }),
        ..founder(&voters(&[1]))
    };
    assert!(start(1, &sound, 1).is_ok());
    let refuse = |damage: &dyn Fn(&mut Durable)| {
        let mut disk = sound.clone();
        damage(&mut disk);
        start(1, &disk, 1).err().expect("it is damaged")
    };
    assert_eq!(refuse(&|disk| disk.entries[1].index = 4), Error::Disordered(Index(4)));
    assert_eq!(refuse(&|disk| disk.entries[1].term = 1), Error::Disordered(Index(3)));
    assert_eq!(refuse(&|disk| disk.applied = 9), Error::LogEndsEarly { last: Index(3), needed: Index(9) });
    assert_eq!(refuse(&|disk| disk.applied = 0), Error::LogStartsLate { base: Index(1), applied: Index(0) });
    assert_eq!(refuse(&|disk| disk.hard_state = None), Error::TermForgotten { last: Term(3), known: Term(1) });
    assert_eq!(refuse(&|disk| disk.conf_state = voters(&[1, 1])), Error::BrokenConfState);
    assert!(matches!(refuse(&|disk| disk.conf_state = ConfState::default()), Error::BrokenConfState));
}

#[test]
fn a_member_whose_log_is_lost_is_told_so() {
    let mut cluster = Cluster::three(5);
    let beat = Message { commit: 99, ..message(MessageType::MsgHeartbeat, 1, 2, 5) };
    for times in 1..=3 {
        assert!(matches!(cluster.handle(2, Input::Message(beat.clone())), Err(Rejected::Invalid(_))));
        assert_eq!(cluster.node(2).lost_log(), (times == 3).then_some(Index(99)));
    }
}

#[test]
fn members_are_added_promoted_and_removed_even_the_leader() {
    let mut cluster = Cluster::three(6);
    let change = |cluster: &mut Cluster, kind, id: u64| {
        let leader = cluster.elect();
        let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        let mut change = ConfChangeV2::default();
        change.mut_changes().push(single);
        let input = Input::ProposeConfChange { change, context: Bytes::from_static(b"mine") };
        cluster.handle(leader, input.clone()).expect("nothing is pending");
        assert_eq!(cluster.handle(leader, input), Err(Rejected::ConfChangePending));
        cluster.settle();
    };
    let blank = Durable { base: Default::default(), applied: 0, ..founder(&ConfState::default()) };
    cluster.boot(4, blank, 1);
    cluster.cut.insert(4);
    change(&mut cluster, ConfChangeType::AddLearnerNode, 4);
    let leader = cluster.leader().expect("it still leads");
    let (index, term) = (cluster.node(leader).applied(), cluster.node(leader).term());
    let conf_state = cluster.node(leader).conf_state();
    cluster.handle(leader, Input::SnapshotReady(SnapshotPoint { index, term, conf_state })).expect("applied");
    cluster.cut.clear();
    cluster.elect();
    assert!(cluster.node(4).is_learner() && cluster.applied(4) == cluster.applied(leader));
    change(&mut cluster, ConfChangeType::AddNode, 4);
    assert_eq!(cluster.node(leader).voters(), [1, 2, 3, 4].map(MemberId));

    let leader = cluster.elect();
    cluster.propose(leader, "before").expect("a leader");
    change(&mut cluster, ConfChangeType::RemoveNode, leader);
    assert!(!cluster.node(leader).is_leader(), "it was removed");
    cluster.members.remove(&leader);
    let next = cluster.elect();
    cluster.propose(next, "after").expect("a leader");
    cluster.settle();
    assert_eq!(cluster.values().last().map(String::as_str), Some("after"));
}

#[test]
fn leadership_is_handed_over() {
    let mut cluster = Cluster::three(7);
    let old = cluster.elect();
    let to = old % 3 + 1;
    assert!(matches!(cluster.handle(to, Input::TransferLeader(MemberId(to))), Err(Rejected::Invalid(_))));
    assert!(matches!(cluster.handle(old, Input::TransferLeader(MemberId(9))), Err(Rejected::Invalid(_))));
    cluster.handle(old, Input::TransferLeader(MemberId(to))).expect("the leader");
    cluster.settle();
    assert_eq!(cluster.elect(), to);
    assert!(cluster.members[&old].roles.iter().any(|role| role.leader == Some(MemberId(to)) && !role.leads));
}

#[test]
fn a_call_to_campaign_is_answered_when_the_log_is_written() {
    let mut cluster = Cluster::three(7);
    let old = cluster.elect();
    let to = old % 3 + 1;
    cluster.propose(old, "being written").expect("the leader");
    while let Some(place) = cluster.network.iter().position(|message| message.to == to) {
        let message = cluster.network.remove(place);
        cluster.deliver(message);
    }
    assert!(cluster.members[&to].writing.iter().any(|output| !output.entries.is_empty()));
    let term = cluster.node(old).term().0;
    cluster.handle(to, Input::Message(message(MessageType::MsgTimeoutNow, old, to, term))).expect("the leader calls");
    // No time passes.
    cluster.settle();
    assert_eq!((cluster.leader(), cluster.node(to).term()), (Some(to), Term(term + 1)));
    assert_eq!(cluster.values(), ["being written"]);
}

#[test]
fn appends_are_cut_to_size() {
    let mut cluster = Cluster::three(8);
    let leader = cluster.elect();
    let large = "x".repeat(100 << 10);
    for _ in 0..20 {
        cluster.propose(leader, &large).expect("a leader");
    }
    for message in &cluster.network {
        assert!(message.entries.iter().map(|entry| entry.data.len()).sum::<usize>() <= 256 << 10);
    }
    cluster.settle();
    cluster.tick_all();
    assert_eq!(cluster.values().len(), 20);
    assert!((1..=3).all(|id| cluster.applied(id) == cluster.applied(leader)));
}

/// Crashes, cuts, late disks and lost messages. Members never disagree (checked as they apply), reads are never stale
/// (checked as they are answered), and when it is over everybody catches up.
#[test]
fn chaos_neither_forks_nor_reads_the_past() {
    let mut answered = 0;
    for seed in 0..60 {
        let mut cluster = Cluster::three(seed);
        for step in 0..1500 {
            let id = cluster.dice.roll(3) + 1;
            match cluster.dice.roll(100) {
                0 => cluster.crash(id),
                1 => drop(cluster.cut.insert(id)),
                2..=4 => cluster.cut.clear(),
                5..=12 => drop(cluster.propose(id, &format!("{seed} {step}"))),
                13..=18 => drop(cluster.ask(id)),
                19..=35 => drop(cluster.handle(id, Input::Tick)),
                36..=55 => drop(cluster.sync_one(id)),
                56 => drop(cluster.handle(id, Input::Campaign)),
                57 => {
                    let (index, term) = (cluster.node(id).applied(), cluster.agreed.get(&cluster.applied(id)));
                    if let Some(&(term, _)) = term {
                        let point = SnapshotPoint { index, term: Term(term), conf_state: voters(&[1, 2, 3]) };
                        // A point that a snapshot has made the base is a point of the log, too.
                        cluster.handle(id, Input::SnapshotReady(point)).expect("an applied point");
                        cluster.handle(id, Input::TruncateLog(index)).expect("applied");
                        let base = cluster.node(id).base();
                        let disk = &mut cluster.members.get_mut(&id).expect("a member").disk;
                        let gone = (base.0.0.saturating_sub(disk.base.0.0) as usize).min(disk.entries.len());
                        if base.0.0 > disk.base.0.0 && gone == (base.0.0 - disk.base.0.0) as usize {
                            disk.entries.drain(..gone);
                            disk.base = base;
                        }
                    }
                }
                _ if !cluster.network.is_empty() => {
                    let place = cluster.dice.roll(cluster.network.len().min(6) as u64) as usize;
                    let message = cluster.network.remove(place);
                    if !cluster.dice.chance(30) {
                        cluster.deliver(message);
                    } else {
                        let to = MemberId(message.to);
                        let _ = cluster.handle(message.from, Input::Unreachable(to));
                        if message.get_msg_type() == MessageType::MsgSnapshot {
                            let _ = cluster.handle(message.from, Input::SnapshotStatus { to, ok: false });
                        }
                    }
                }
                _ => {}
            }
        }
        cluster.cut.clear();
        cluster.settle();
        let leader = cluster.elect();
        let (index, term) = (cluster.node(leader).applied(), cluster.node(leader).term());
        let point = SnapshotPoint { index, term, conf_state: voters(&[1, 2, 3]) };
        cluster.handle(leader, Input::SnapshotReady(point)).expect("an applied point");
        for _ in 0..6 * TICKS {
            cluster.tick_all();
        }
        let leader = cluster.elect();
        assert!((1..=3).all(|id| cluster.applied(id) == cluster.applied(leader)), "seed {seed}");
        assert!((1..=3).all(|id| cluster.node(id).lost_log().is_none()), "seed {seed}");
        answered += cluster.members.values().map(|member| member.answered).sum::<usize>();
    }
    assert!(answered > 100, "reads were answered: {answered}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut cluster = Cluster::three(11);
        let mut story = String::new();
        for _ in 0..3 {
            let leader = cluster.elect();
            story += &format!("{leader} {:?} {:?};", cluster.node(leader).term(), cluster.node(leader).last_index());
            cluster.cut = BTreeSet::from([leader]);
        }
        story
    };
    assert_eq!(run(), run());
}
