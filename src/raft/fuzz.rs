//! Nodes among liars: messages out of nothing, and real ones with something changed, into three members that also talk
//! to one another. Lies can fork a cluster, so nothing is checked but that no node panics, and that each still gives
//! its outputs in order and applies in order.

use bytes::Bytes;

use super::tests::{Dice, dice, founder, start, voters};
use super::*;
use crate::types::{Index, MemberId, Term};

const KINDS: [MessageType; 19] = {
    use MessageType::*;
    [
        MsgHup,
        MsgBeat,
        MsgPropose,
        MsgAppend,
        MsgAppendResponse,
        MsgRequestVote,
        MsgRequestVoteResponse,
        MsgSnapshot,
        MsgHeartbeat,
        MsgHeartbeatResponse,
        MsgUnreachable,
        MsgSnapStatus,
        MsgCheckQuorum,
        MsgTransferLeader,
        MsgTimeoutNow,
        MsgReadIndex,
        MsgReadIndexResp,
        MsgRequestPreVote,
        MsgRequestPreVoteResponse,
    ]
};

/// A member whose disk is late by as much as the dice want.
struct Victim {
    node: Node,
    id: u64,
    number: u64,
    persisted: u64,
    /// Applied entries not yet told, and configuration changes among them.
    committed: Vec<Entry>,
    given: u64,
    late: Vec<(u64, Vec<Message>)>,
}

impl Victim {
    fn turn(&mut self, network: &mut Vec<Message>) {
        while let Some(output) = self.node.take_output() {
            self.number += 1;
            assert_eq!(output.number, self.number);
            if let Some(snapshot) = output.snapshot {
                assert!(snapshot.get_metadata().index >= self.given);
                self.given = snapshot.get_metadata().index;
                self.committed.clear();
            }
            for entry in output.committed {
                self.given += 1;
                assert_eq!(entry.index, self.given, "an entry is given once, in order");
                self.committed.push(entry);
            }
            network.extend(output.messages);
            self.late.push((output.number, output.messages_after_sync));
        }
    }

    fn sync(&mut self, dice: &mut Dice, network: &mut Vec<Message>) {
        if self.late.is_empty() {
            return;
        }
        let many = dice.roll(self.late.len() as u64) as usize + 1;
        for (number, messages) in self.late.drain(..many) {
            self.persisted = number;
            network.extend(messages);
        }
        self.node.handle(Input::Persisted { number: self.persisted }).expect("it was given");
    }

    fn apply(&mut self, dice: &mut Dice) {
        let many = dice.roll(self.committed.len() as u64 + 1) as usize;
        for entry in self.committed.drain(..many) {
            if let Some(change) = decode_conf_change(&entry) {
                // What cannot be made is refused, on every member alike.
                let _ = self.node.apply_conf_change(&change);
            }
            self.node.handle(Input::Applied(Index(entry.index))).expect("it was given");
        }
    }
}

/// A number near one that means something to the victim, and now and then one that means nothing.
fn number(dice: &mut Dice, near: u64) -> u64 {
    match dice.roll(40) {
        0 => 0,
        1 => u64::MAX - dice.roll(2),
        2 => 1 << (dice.roll(63)),
        3..=10 => dice.roll(4),
        _ => near.saturating_add(dice.roll(5)).saturating_sub(2),
    }
}

fn bytes(dice: &mut Dice) -> Bytes {
    let len = [0, 1, 2, 7, 8, 24, 24, 24, 40][dice.roll(9) as usize];
    (0..len).map(|_| if dice.chance(2) { dice.roll(4) as u8 } else { dice.roll(256) as u8 }).collect()
}

fn entry(dice: &mut Dice, index: u64, term: u64) -> Entry {
    let mut entry = Entry { index, term, data: bytes(dice), ..Entry::default() };
    match dice.roll(12) {
        0 => entry.set_entry_type(EntryType::EntryConfChange),
        1 => entry.set_entry_type(EntryType::EntryConfChangeV2),
        _ => {}
    }
    if entry.get_entry_type() != EntryType::EntryNormal && !dice.chance(4) {
        // A change that can be read: remove or add one of five.
        let kind = if entry.get_entry_type() == EntryType::EntryConfChange { [16, 24] } else { [8, 16] };
        let single = vec![kind[0], dice.roll(3) as u8, kind[1], dice.roll(6) as u8];
        let joint = [vec![0x12, 4], single.clone()].concat();
        entry.data = if kind[0] == 16 { single } else { joint }.into();
    }
    entry
}

fn conf_state(dice: &mut Dice) -> ConfState {
    let ids = |dice: &mut Dice, most: u64| (0..dice.roll(most)).map(|_| dice.roll(6)).collect::<Vec<_>>();
    if dice.chance(3) {
        return voters(&[1, 2, 3]);
    }
    let mut state = ConfState { voters: ids(dice, 4), learners: ids(dice, 2), ..ConfState::default() };
    if dice.chance(3) {
        (state.voters_outgoing, state.learners_next) = (ids(dice, 4), ids(dice, 2));
        state.auto_leave = dice.chance(2);
    }
    state
}

/// A message that nobody sent.
fn forge(dice: &mut Dice, victim: &Victim) -> Message {
    let node = &victim.node;
    let (term, last, committed) = (node.term().0, node.last_index().0, node.committed().0);
    let mut message = Message::default();
    message.set_msg_type(KINDS[dice.roll(19) as usize]);
    message.to = if dice.chance(30) { dice.roll(6) } else { victim.id };
    message.from = node.leader().filter(|_| dice.chance(2)).map_or_else(|| dice.roll(6), |leader| leader.0);
    message.term = number(dice, term);
    if dice.chance(2) {
        message.term = term;
    }
    if matches!(message.get_msg_type(), MessageType::MsgPropose | MessageType::MsgReadIndex) && !dice.chance(5) {
        message.term = 0;
    }
    message.index = if dice.chance(2) { number(dice, last) } else { number(dice, committed) };
    message.log_term = number(dice, term);
    message.commit = if dice.chance(2) { number(dice, last) } else { number(dice, committed) };
    message.commit_term = number(dice, term);
    message.reject = dice.chance(3);
    message.reject_hint = number(dice, last);
    message.request_snapshot = if dice.chance(20) { number(dice, last) } else { 0 };
    message.context = match dice.roll(5) {
        0 => bytes(dice),
        1 => Bytes::from_static(::raft::CAMPAIGN_TRANSFER),
        _ => Bytes::new(),
    };
    if dice.chance(2) {
        let mut next = message.index.wrapping_add(1);
        let mut entries = Vec::new();
        for _ in 0..dice.roll(4) {
            let index = if dice.chance(15) { number(dice, last) } else { next };
            let term = if dice.chance(5) { number(dice, term) } else { message.term.max(message.log_term) };
            entries.push(entry(dice, index, term));
            next = next.wrapping_add(1);
        }
        message.set_entries(entries.into());
    }
    if message.get_msg_type() == MessageType::MsgSnapshot || dice.chance(20) {
        let state = conf_state(dice);
        let data = if dice.chance(10) { bytes(dice) } else { Bytes::new() };
        let snapshot = message.mut_snapshot();
        snapshot.data = data;
        let meta = snapshot.mut_metadata();
        meta.set_conf_state(state);
        (meta.index, meta.term) = (number(dice, last), number(dice, term));
    }
    message
}

/// A real message with one thing changed.
fn mutate(dice: &mut Dice, victim: &Victim, mut message: Message) -> Message {
    let lie = forge(dice, victim);
    match dice.roll(12) {
        0 => message.set_msg_type(lie.get_msg_type()),
        1 => message.from = lie.from,
        2 => message.term = lie.term,
        3 => message.index = lie.index,
        4 => message.log_term = lie.log_term,
        5 => message.commit = lie.commit,
        6 => message.reject = !message.reject,
        7 => message.reject_hint = lie.reject_hint,
        8 => message.context = lie.context,
        9 => message.entries = lie.entries,
        10 => message.snapshot = lie.snapshot,
        _ => drop(message.entries.pop()),
    }
    message
}

fn run(seed: u64, steps: u64) -> [u64; 2] {
    let mut dice = dice(seed);
    let mut network: Vec<Message> = Vec::new();
    let disk = founder(&voters(&[1, 2, 3]));
    let mut victims: Vec<Victim> = (1..=3)
        .map(|id| Victim {
            node: start(id, &disk, seed).expect("a founder's disk"),
            id,
            number: 0,
            persisted: 0,
            committed: Vec::new(),
            given: 1,
            late: Vec::new(),
        })
        .collect();
    let (mut taken, mut refused) = (0, 0);
    let liars = dice.roll(3);
    for _ in 0..steps {
        let place = dice.roll(3) as usize;
        let victim = &mut victims[place];
        let (term, applied) = (victim.node.term(), victim.node.applied());
        let input = match dice.roll(40) {
            0..=6 => Input::Tick,
            7..=8 => Input::Propose(bytes(&mut dice)),
            9 => Input::Read(victim.node.fresh_read()),
            10 => Input::Campaign,
            11 => Input::TransferLeader(MemberId(dice.roll(6))),
            12 => Input::Unreachable(MemberId(dice.roll(6))),
            13 => Input::SnapshotStatus { to: MemberId(dice.roll(6)), ok: dice.chance(2) },
            14 => Input::TruncateLog(Index(number(&mut dice, applied.0))),
            15 => {
                let (index, state) = (Index(number(&mut dice, applied.0)), conf_state(&mut dice));
                Input::SnapshotReady(SnapshotPoint { index, term: Term(number(&mut dice, term.0)), conf_state: state })
            }
            16 => {
                let change = decode_conf_change(&entry(&mut dice, 0, 0)).unwrap_or_default();
                Input::ProposeConfChange { change, context: bytes(&mut dice) }
            }
            17 => Input::Persisted { number: number(&mut dice, victim.number + 5).max(victim.number + 1) },
            18..=23 => {
                victim.sync(&mut dice, &mut network);
                Input::Unreachable(MemberId(0))
            }
            24..=26 => {
                victim.apply(&mut dice);
                Input::Unreachable(MemberId(0))
            }
            29 => Input::Applied(Index(number(&mut dice, victim.given))),
            27 if liars > 0 => Input::Message(forge(&mut dice, victim)),
            28 if liars > 1 => Input::Message(forge(&mut dice, victim)),
            _ if network.is_empty() => Input::Tick,
            _ => {
                let message = network.remove(dice.roll(network.len().min(8) as u64) as usize);
                let Some(to) = victims.iter().position(|victim| victim.id == message.to) else { continue };
                let victim = &mut victims[to];
                let lies = dice.chance(12);
                let message = if lies { mutate(&mut dice, victim, message) } else { message };
                match victim.node.handle(Input::Message(message)) {
                    Ok(()) => taken += 1,
                    Err(_) => refused += 1,
                }
                victim.turn(&mut network);
                continue;
            }
        };
        let victim = &mut victims[place];
        match victim.node.handle(input) {
            Ok(()) => taken += 1,
            Err(_) => refused += 1,
        }
        victim.turn(&mut network);
        network.truncate(200);
    }
    [taken, refused]
}

#[test]
fn no_message_makes_a_node_panic() {
    // SEED repeats one run; SEEDS asks for more of them.
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("SEED").map_or(0..number("SEEDS").unwrap_or(150), |seed| seed..seed + 1);
    let [mut taken, mut refused] = [0, 0];
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, 3000));
        let [good, bad] = outcome.unwrap_or_else(|_| panic!("SEED={seed} made a node panic"));
        (taken, refused) = (taken + good, refused + bad);
    }
    assert!(taken > refused && refused > 0, "{taken} inputs were taken, {refused} refused");
}
