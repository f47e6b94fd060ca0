//! Changes of members that are written down, step by step: what chance hits on too rarely.
//!
//! Most begin with a cluster that works, and say what must come of one change of members when one message is lost. One goes through
//! with the replacement of everybody while faults go on.

use everwatch::raft::EntryType;
use everwatch::state::command::{Change, MemberAdd, MemberRemove};

use super::*;
use crate::member::{TICK, id_of};

/// How long somebody may wait for a leader here, in election timeouts.
const ELECTIONS_MAX: u64 = 10;
/// How long a step of a replacement may take while faults go on, before there is a truce; and in a truce, in which all that was
/// struck comes back by itself.
const STEP_MAX: u64 = 30 * SECOND;
const TRUCE_MAX: u64 = 60 * SECOND;
/// A client that no other is like.
const WRITER: u32 = u32::MAX - 2;

impl World {
    /// Of two voters the leader is removed, nobody else will lead, and the message that commits it is lost: the other does not know
    /// that it is alone, and needs the vote of the one that was removed.
    pub fn the_commit_is_lost(&mut self) -> Result<(), String> {
        let leader = self.the_leader()?;
        self.losing = Some(|world, from, message| {
            let (removed, newest) = world.ledger.configurations.last_key_value().expect("there are founders");
            let commits = matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat);
            let told = commits && message.commit >= *removed && !newest.voters.contains(&from);
            told || message.get_msg_type() == MessageType::MsgTimeoutNow
        });
        self.change_by(leader, Change::Remove(MemberRemove { id: id_of(leader).0 }));
        self.until("the leader is removed", |world| !world.configuration.voters.contains(&leader))?;
        let rest = 1 - leader;
        self.until("the rest has a leader", |world| world.members[rest].leads())?;
        self.until("the removed member goes", |world| world.members[leader].gone)
    }

    /// The leader of three is removed: whoever writes to the others hardly notices.
    pub fn the_leader_is_removed(&mut self) -> Result<(), String> {
        let leader = self.the_leader()?;
        self.change_by(leader, Change::Remove(MemberRemove { id: id_of(leader).0 }));
        let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
        let (end, mut written, mut slowest) = (self.now + 5 * SECOND, self.now, 0);
        let mut waiting = Vec::new();
        for turn in 0.. {
            if self.now >= end {
                break;
            }
            waiting.push(self.write(others[turn % 2]));
            self.run_until(self.now + 20 * MILLI)?;
            slowest = slowest.max(self.now - written);
            let ops = &self.history.ops;
            let before = waiting.len();
            waiting.retain(|op| !matches!(ops[*op].outcome, Outcome::Ok { .. }));
            if waiting.len() < before {
                written = self.now;
            }
        }
        let election = self.usual.election_ticks as u64 * TICK;
        if slowest >= election {
            return Err(format!("liveness: nobody could write for {} ms", slowest / MILLI));
        }
        self.until("the leader is removed", |world| world.members[leader].gone)
    }

    /// A change that is asked for on a follower does not reach the leader at first.
    pub fn the_forward_is_lost(&mut self) -> Result<(), String> {
        let leader = self.the_leader()?;
        self.losing = Some(|world, _, message| {
            let change = |entry: &everwatch::raft::Entry| entry.get_entry_type() != EntryType::EntryNormal;
            let lost = message.get_msg_type() == MessageType::MsgPropose && message.entries.iter().any(change);
            if lost {
                world.losing = None;
            }
            lost
        });
        let (follower, place) = ((leader + 1) % self.members.len(), self.new_machine());
        let peer_urls = vec![format!("http://m{place}:2380")];
        let new = MemberAdd { id: id_of(place).0, peer_urls, is_learner: true, learners_max: 1 };
        self.change_by(follower, Change::Add(new));
        self.until("the learner is added", |world| world.configuration.learners.contains(&place))?;
        if self.losing.is_some() { Err("nothing was lost".into()) } else { Ok(()) }
    }

    /// All founders are replaced, one after another and each in another way, while faults go on: in the end nobody is there who
    /// was there in the beginning.
    pub fn all_are_replaced(&mut self) -> Result<(), String> {
        let founders = self.scenario.members;
        let ways = self.dice.order(founders);
        for (founder, way) in self.dice.order(founders).into_iter().zip(ways) {
            match way % 3 {
                0 => {
                    self.add(true)?;
                    self.promote_all()?;
                    self.part_with(founder)?;
                }
                1 => {
                    self.add(false)?;
                    self.part_with(founder)?;
                }
                // The old one's place is wanted first.
                _ => {
                    self.part_with(founder)?;
                    self.add(true)?;
                    self.promote_all()?;
                }
            }
        }
        let configuration = &self.configuration;
        if configuration.voters.len() != founders || configuration.members().iter().any(|place| *place < founders) {
            return Err(format!("members: all founders were to be replaced, and {configuration:?} belong"));
        }
        // The log is short: nobody who is new gets on without one.
        if self.ledger.installs < founders as u64 {
            return Err(format!(
                "members: {} snapshots brought {founders} new members up to date",
                self.ledger.installs
            ));
        }
        Ok(())
    }

    fn add(&mut self, is_learner: bool) -> Result<(), String> {
        self.adding = None;
        self.strive(
            "a member is added",
            |world| world.add_member(is_learner),
            |world| world.adding.is_some_and(|place| world.configuration.members().contains(&place)),
        )
    }

    fn promote_all(&mut self) -> Result<(), String> {
        self.strive("learners are promoted", World::promote, |world| world.configuration.learners.is_empty())
    }

    fn part_with(&mut self, place: usize) -> Result<(), String> {
        self.strive(
            "a founder is removed",
            |world| world.remove(Fault::Remove, place),
            |world| !world.configuration.members().contains(&place),
        )
    }

    /// Asks for something again and again until it comes to pass: rather among faults, and at the latest soon after they ended.
    fn strive(&mut self, what: &str, asks: impl Fn(&mut World), holds: impl Fn(&World) -> bool) -> Result<(), String> {
        for (most, truce) in [(STEP_MAX, false), (TRUCE_MAX, true)] {
            let faults = self.scenario.faults;
            if truce {
                self.mark("truce", [0; 4], what.to_owned());
                self.scenario.faults = Faults::NONE;
                self.network.heal();
            }
            let end = self.now + most;
            while !holds(self) && self.now < end {
                asks(self);
                self.run_until(self.now + SECOND)?;
            }
            self.scenario.faults = faults;
            if holds(self) {
                return Ok(());
            }
        }
        let all: Vec<String> = self.members.iter().map(Member::describe).collect();
        Err(format!("liveness: it does not come to pass that {what}: {}", all.join("; ")))
    }

    /// Who leads, once everybody has told its name.
    fn the_leader(&mut self) -> Result<usize, String> {
        self.until("all run", |world| world.ledger.ran.len() == world.members.len())?;
        self.until("one leads", |world| world.members.iter().any(Member::leads))?;
        Ok(self.members.iter().position(Member::leads).expect("just seen"))
    }

    fn change_by(&mut self, place: usize, change: Change) {
        let connected = self.connected_to(place);
        self.tell_member(place, MemberEvent::Reconfigure { change, connected });
    }

    fn write(&mut self, place: usize) -> usize {
        let value = format!("written{}", self.calls_made).into_bytes();
        let request = Request::Put { key: b"k00".to_vec(), value, lease: 0, prev_kv: false };
        self.issue(WRITER, place, By::Member, request, 2 * SECOND)
    }

    fn until(&mut self, what: &str, holds: impl Fn(&World) -> bool) -> Result<(), String> {
        let end = self.now + ELECTIONS_MAX * 2 * self.usual.election_ticks as u64 * TICK;
        while !holds(self) {
            if self.now >= end {
                let all: Vec<String> = self.members.iter().map(Member::describe).collect();
                return Err(format!("liveness: it does not come to pass that {what}: {}", all.join("; ")));
            }
            self.run_until(self.now + 20 * MILLI)?;
        }
        Ok(())
    }
}
