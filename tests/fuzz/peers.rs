//! Three members whose messages travel as bytes, through the codec, over a network that loses, repeats and delays them.
//!
//! In half of the runs every message is as its sender wrote it: then no term has two leaders, and what is committed at an
//! index is the same everywhere and for ever. In the other half bytes are changed on the way, and now and then still are a
//! message: lies can fork a cluster, so then no node may panic, and each gives its outputs and entries in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use everwatch::pb::everwatchpb as wire;
use everwatch::peer::codec;
use everwatch::raft::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, Input, LogStart, Message, MessageType, Node,
    NodeConfig, SnapshotPoint, decode_conf_change,
};
use everwatch::types::{Index, MemberId, Term};
use prost::Message as _;

use crate::engine::{Dice, Feed, mutated, outcome};

/// Messages under way. Beyond this the newest are lost.
const NETWORK_MAX: usize = 100;

/// A member whose disk and state machine are late.
struct Member {
    node: Node,
    id: u64,
    number: u64,
    late: VecDeque<(u64, Vec<Message>)>,
    /// Given out, not applied yet.
    committed: VecDeque<Entry>,
    given: u64,
    applied: (u64, u64),
    known_committed: u64,
}

struct Cluster {
    members: Vec<Member>,
    network: Vec<(u64, Vec<u8>)>,
    honest: bool,
    leaders: BTreeMap<u64, u64>,
    agreed: BTreeMap<u64, (u64, Bytes)>,
    refused: usize,
}

fn voters() -> ConfState {
    ConfState { voters: vec![1, 2, 3], ..ConfState::default() }
}

fn member(id: u64) -> Member {
    let node = Node::new(NodeConfig {
        id: MemberId(id),
        election_ticks: 10,
        heartbeat_ticks: 1,
        applied: Index(1),
        seed: 42,
        boot: 1,
        pre_vote: true,
        log: LogStart { base: (Index(1), Term(1)), conf_state: voters(), hard_state: None, entries: Vec::new() },
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    });
    let node = node.expect("a founder");
    let (late, committed) = Default::default();
    Member { node, id, number: 0, late, committed, given: 1, applied: (1, 1), known_committed: 1 }
}

impl Cluster {
    fn tell(&mut self, at: usize, input: Input) -> bool {
        let taken = self.members[at].node.handle(input).is_ok();
        self.refused += usize::from(!taken);
        self.turn(at);
        taken
    }

    fn turn(&mut self, at: usize) {
        while let Some(output) = self.members[at].node.take_output() {
            let member = &mut self.members[at];
            member.number += 1;
            assert_eq!(output.number, member.number, "outputs are numbered");
            if let Some(role) = output.role.filter(|role| role.leads && self.honest) {
                let leader = self.leaders.entry(role.term.0).or_insert(member.id);
                assert_eq!(*leader, member.id, "two leaders in term {}", role.term);
            }
            if let Some(snapshot) = output.snapshot {
                let meta = snapshot.get_metadata();
                assert!(meta.index >= member.given, "a snapshot goes forward");
                member.given = meta.index;
                member.applied = (meta.index, meta.term);
                member.committed.clear();
            }
            for entry in output.committed {
                member.given += 1;
                assert_eq!(entry.index, member.given, "an entry is given once, in order");
                if self.honest {
                    let known = self.agreed.entry(entry.index).or_insert((entry.term, entry.data.clone()));
                    assert_eq!(*known, (entry.term, entry.data.clone()), "index {} is settled", entry.index);
                }
                member.committed.push_back(entry);
            }
            member.late.push_back((output.number, output.messages_after_sync));
            self.send(at, output.messages);
        }
        let member = &mut self.members[at];
        let committed = member.node.committed().0;
        assert!(committed >= member.known_committed, "what is committed stays so");
        member.known_committed = committed;
    }

    fn send(&mut self, at: usize, messages: Vec<Message>) {
        for message in messages {
            let (to, snapshot) = (message.to, message.msg_type == MessageType::MsgSnapshot);
            assert!(codec::travels(message.msg_type) && message.from == self.members[at].id);
            if self.network.len() < NETWORK_MAX {
                self.network.push((to, codec::to_wire(message).encode_to_vec()));
            }
            if snapshot {
                // Sent or not, its sender has to be told.
                let ok = self.network.len().is_multiple_of(2);
                let _ = self.members[at].node.handle(Input::SnapshotStatus { to: MemberId(to), ok });
            }
        }
    }

    fn sync(&mut self, at: usize, many: usize) {
        for _ in 0..many {
            let Some((number, messages)) = self.members[at].late.pop_front() else { break };
            self.members[at].node.handle(Input::Persisted { number }).expect("it was given");
            self.send(at, messages);
        }
        self.turn(at);
    }

    fn apply(&mut self, at: usize, many: usize) {
        for _ in 0..many {
            let member = &mut self.members[at];
            let Some(entry) = member.committed.pop_front() else { break };
            if let Some(change) = decode_conf_change(&entry) {
                // What cannot be made is refused, on every member alike.
                let _ = member.node.apply_conf_change(&change);
            }
            member.applied = (entry.index, entry.term);
            member.node.handle(Input::Applied(Index(entry.index))).expect("it was given");
        }
        self.turn(at);
    }

    fn deliver(&mut self, feed: &mut Feed<'_>) {
        if self.network.is_empty() {
            return;
        }
        let which = feed.below(self.network.len().min(8));
        let fate = feed.below(16);
        let (to, bytes) = match fate {
            13 => self.network[which].clone(),
            _ => self.network.remove(which),
        };
        let bytes = match fate {
            14 => return,
            15 if !self.honest => mutated(&mut Dice::new(feed.u64()), &bytes, &[], 4000),
            _ => bytes,
        };
        let Some(at) = self.members.iter().position(|member| member.id == to) else { return };
        let Ok(message) = wire::RaftMessage::decode(bytes.as_slice()) else { return };
        let Ok(message) = codec::from_wire(message) else { return };
        // The service lets nothing through that is for somebody else.
        if message.to == to {
            self.tell(at, Input::Message(message));
        }
    }
}

fn change(feed: &mut Feed<'_>) -> ConfChangeV2 {
    let mut single = ConfChangeSingle { node_id: feed.pick(&[4, 4, 4, 3, 5, 0]), ..Default::default() };
    single.set_change_type(feed.pick(&[
        ConfChangeType::AddLearnerNode,
        ConfChangeType::RemoveNode,
        ConfChangeType::AddNode,
    ]));
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(single);
    change
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let honest = feed.below(2) == 0;
    let (network, leaders, agreed) = Default::default();
    let members = (1..=3).map(member).collect();
    let mut cluster = Cluster { members, network, honest, leaders, agreed, refused: 0 };
    while !feed.is_empty() {
        let at = feed.below(3);
        match feed.below(32) {
            0..=1 => {
                cluster.tell(at, Input::Tick);
            }
            2 => {
                cluster.tell(at, Input::Campaign);
            }
            3..=5 => {
                let data = Bytes::from([&[feed.byte()], &feed.bytes(5)[..]].concat());
                cluster.tell(at, Input::Propose(data));
            }
            6 => {
                let read = cluster.members[at].node.fresh_read();
                cluster.tell(at, Input::Read(read));
            }
            7..=12 => {
                let many = 1 + feed.below(4);
                cluster.sync(at, many);
            }
            13..=15 => {
                let many = 1 + feed.below(6);
                cluster.apply(at, many);
            }
            16 => {
                cluster.tell(at, Input::TransferLeader(MemberId(feed.below(5) as u64)));
            }
            17 => {
                cluster.tell(at, Input::Unreachable(MemberId(feed.below(5) as u64)));
            }
            18 => {
                let (index, term) = cluster.members[at].applied;
                let conf_state = cluster.members[at].node.conf_state();
                cluster.tell(
                    at,
                    Input::SnapshotReady(SnapshotPoint { index: Index(index), term: Term(term), conf_state }),
                );
                if feed.one_in(2) {
                    cluster.tell(at, Input::TruncateLog(Index(index)));
                }
            }
            19 => {
                let change = change(&mut feed);
                cluster.tell(at, Input::ProposeConfChange { change, context: Bytes::new() });
            }
            20 => {
                // Time passes for everybody, and disks catch up.
                for at in 0..3 {
                    (0..4).for_each(|_| {
                        cluster.tell(at, Input::Tick);
                    });
                    cluster.sync(at, usize::MAX);
                }
            }
            _ => (0..1 + feed.below(3)).for_each(|_| cluster.deliver(&mut feed)),
        }
    }
    let furthest = cluster.members.iter().map(|member| member.given).max();
    let terms = cluster.members.iter().map(|member| member.node.term().0).max();
    outcome((honest, furthest.map(|given| given.min(30)), terms.map(|term| term.min(12)), cluster.refused.min(3)))
}
