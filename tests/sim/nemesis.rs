//! The nemesis: what goes wrong, how often, and that it is counted.
//!
//! Faults stay within what the cluster promises to bear. Power cuts, pauses and the network may strike everybody at once. A disk
//! that loses what it had promised to keep (a turned bit, everything) strikes only while all that its member holds is durable on a
//! quorum without it, and never more than a minority of those who vote. Members are changed by whoever is asked to, after the
//! server's own question whether that is wise; nobody asks for what would leave no majority of members whose disks are sound.

use std::collections::BTreeMap;
use std::time::Duration;

use everwatch::state::command::{Change, MemberAdd, MemberPromote, MemberRemove};

use super::{MEMBERS_MAX, MILLI, SECOND};
use super::{MemberEvent, Phase, World, WorldEvent};
use crate::disk::Trouble;
use crate::member::id_of;
use crate::network::Link;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One dies, with its process or its machine.
    Crash,
    /// All die at once.
    CrashAll,
    /// One dies again and again, soon after it was started.
    CrashLoop,
    /// A disk breaks for good at one of its next commands; the member dies of it.
    DiskBreaks,
    /// A write, a read or a sync fails once.
    DiskError,
    /// There is no room on a disk for a while.
    DiskFull,
    /// Syncs take long.
    SlowDisk,
    /// A bit of a dead member's log turns.
    BitFlip,
    /// The disk of a dead member is emptied.
    Wipe,
    /// A member is added that does not vote.
    AddLearner,
    /// A member is added that votes at once.
    AddVoter,
    /// A learner becomes a voter.
    Promote,
    /// A member is removed.
    Remove,
    /// A member is removed, and another is added for it.
    Replace,
    /// A member stands still.
    Pause,
    /// The leader for less than an election takes, or somebody else for longer, while all others go on.
    ShortPause,
    /// Two sides that do not hear each other.
    Partition,
    /// One hears another but is not heard.
    OneWay,
    /// One hears only one other.
    Bridge,
    /// One hears nobody.
    Isolate,
    /// Everybody hears two neighbours.
    Ring,
    /// Any links are cut.
    Scatter,
    /// Links come and go, many times a second.
    Flap,
    /// Links of one are cut one by one and mended in another order.
    Swizzle,
    /// Links hold everything back, and deliver it at once.
    Clog,
    /// Messages get lost, come late, twice and out of order.
    Weather,
    /// The leader hands over.
    HandOver,
}

/// All kinds.
pub const FAULTS: [Fault; 27] = [
    Fault::Crash,
    Fault::CrashAll,
    Fault::CrashLoop,
    Fault::DiskBreaks,
    Fault::DiskError,
    Fault::DiskFull,
    Fault::SlowDisk,
    Fault::BitFlip,
    Fault::Wipe,
    Fault::AddLearner,
    Fault::AddVoter,
    Fault::Promote,
    Fault::Remove,
    Fault::Replace,
    Fault::Pause,
    Fault::ShortPause,
    Fault::Partition,
    Fault::OneWay,
    Fault::Bridge,
    Fault::Isolate,
    Fault::Ring,
    Fault::Scatter,
    Fault::Flap,
    Fault::Swizzle,
    Fault::Clog,
    Fault::Weather,
    Fault::HandOver,
];

impl Fault {
    /// In words, as counted.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Crash => "crash",
            Fault::CrashAll => "crash-all",
            Fault::CrashLoop => "crash-loop",
            Fault::DiskBreaks => "disk-breaks",
            Fault::DiskError => "disk-error",
            Fault::DiskFull => "disk-full",
            Fault::SlowDisk => "slow-disk",
            Fault::BitFlip => "bit-flip",
            Fault::Wipe => "wipe",
            Fault::AddLearner => "add-learner",
            Fault::AddVoter => "add-voter",
            Fault::Promote => "promote",
            Fault::Remove => "remove",
            Fault::Replace => "replace",
            Fault::Pause => "pause",
            Fault::ShortPause => "short-pause",
            Fault::Partition => "partition",
            Fault::OneWay => "one-way",
            Fault::Bridge => "bridge",
            Fault::Isolate => "isolate",
            Fault::Ring => "ring",
            Fault::Scatter => "scatter",
            Fault::Flap => "flap",
            Fault::Swizzle => "swizzle",
            Fault::Clog => "clog",
            Fault::Weather => "weather",
            Fault::HandOver => "hand-over",
        }
    }

    /// Whether it takes others to suffer from it.
    fn needs_others(self) -> bool {
        self >= Fault::Partition || self == Fault::BitFlip || self == Fault::Wipe
    }
}

/// How often which fault is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults(pub [u64; FAULTS.len()]);

impl Faults {
    pub const NONE: Faults = Faults([0; FAULTS.len()]);

    /// With that fault, at that weight.
    pub const fn with(mut self, fault: Fault, weight: u64) -> Faults {
        self.0[fault as usize] = weight;
        self
    }

    /// How often that one is chosen.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }
}

impl World {
    /// The next fault.
    pub(super) fn nemesis(&mut self) {
        if self.phase != Phase::Faulty {
            return;
        }
        let pause = self.dice.skewed(self.scenario.every / 4, self.scenario.every * 2);
        self.schedule(pause, WorldEvent::Nemesis);
        let alone = self.present().len() == 1;
        let weight = |fault: &Fault| if alone && fault.needs_others() { 0 } else { self.scenario.faults.of(*fault) };
        let total: u64 = FAULTS.iter().map(weight).sum();
        if total == 0 {
            return;
        }
        let mut roll = self.dice.below(total);
        let hits = |fault: &&Fault| {
            let weight = if alone && fault.needs_others() { 0 } else { self.scenario.faults.of(**fault) };
            let hit = roll < weight;
            roll = roll.wrapping_sub(weight);
            hit
        };
        let fault = *FAULTS.iter().find(hits).expect("the roll is below the sum");
        let place = self.any();
        self.mark("nemesis", [fault as u64, place as u64, 0, 0], String::new());
        self.strike(fault, place);
        if fault >= Fault::Partition && self.dice.chance(800) {
            let calm = self.dice.skewed(100 * MILLI, 6 * SECOND);
            self.schedule(calm, WorldEvent::Calm { era: self.network.era });
        }
    }

    /// Something with an effect is counted.
    pub(super) fn count(&mut self, fault: Fault) {
        self.report.faults[fault as usize] += 1;
    }

    fn strike(&mut self, fault: Fault, place: usize) {
        let present = self.present();
        match fault {
            Fault::Crash => self.strike_dead(Fault::Crash, place, 6 * SECOND),
            Fault::CrashAll => {
                for place in present {
                    self.strike_dead(Fault::CrashAll, place, 6 * SECOND);
                }
            }
            Fault::CrashLoop => {
                self.crash_loops[place] = self.dice.between(2, 6);
                self.strike_dead(Fault::CrashLoop, place, 300 * MILLI);
            }
            // These are counted when they come to pass.
            Fault::DiskBreaks => {
                let commands = self.dice.skewed(0, 60);
                self.members[place].disk.break_after(commands);
            }
            Fault::DiskError => {
                let trouble = self.dice.pick(&[Trouble::Write, Trouble::Sync]);
                let commands = self.dice.skewed(0, 30);
                self.members[place].disk.trouble_after(trouble, commands);
            }
            Fault::DiskFull => {
                self.members[place].disk.set_full(true);
                let relief = self.dice.skewed(2 * SECOND, 40 * SECOND);
                self.schedule(relief, WorldEvent::Relief { place });
            }
            Fault::SlowDisk => {
                self.count(fault);
                let options = &mut self.options[place];
                options.slow_sync_per_mille = self.dice.pick(&[0, 5, 50, 300]);
                options.disk_delay_max = self.dice.pick(&[1, 10, 200]) * MILLI;
                let relief = self.dice.skewed(SECOND, 15 * SECOND);
                self.schedule(relief, WorldEvent::Relief { place });
            }
            Fault::BitFlip | Fault::Wipe => self.strike_dead_to_damage(fault, place),
            Fault::AddLearner => self.add_member(true),
            Fault::AddVoter => self.add_member(false),
            Fault::Promote => self.promote(),
            Fault::Remove | Fault::Replace => self.remove(fault, place),
            Fault::Pause => self.pause(fault, place, 6 * SECOND),
            Fault::ShortPause => {
                let others_go_on = self.members.iter().all(|member| member.paused_until <= self.now);
                let leads = self.ledger.leader().is_none_or(|leader| leader == place);
                if others_go_on {
                    self.pause(fault, place, if leads { 650 * MILLI } else { 4 * SECOND });
                }
            }
            Fault::HandOver => {
                self.count(fault);
                present.into_iter().for_each(|place| self.tell_member(place, MemberEvent::HandOver));
            }
            _ => {
                self.count(fault);
                self.strike_links(fault, place);
            }
        }
    }

    fn pause(&mut self, fault: Fault, place: usize, most: u64) {
        if self.members[place].running.is_some() {
            self.count(fault);
            self.members[place].paused_until = self.now + self.dice.skewed(50 * MILLI, most);
        }
    }

    fn strike_links(&mut self, fault: Fault, place: usize) {
        let present = self.present();
        let members = present.len();
        let others: Vec<usize> = present.iter().copied().filter(|other| *other != place).collect();
        match fault {
            Fault::Partition => {
                self.network.heal();
                let chosen = self.dice.between(1, members as u64 - 1) as usize;
                let side = self.dice.order(members).split_off(chosen);
                for a in 0..members {
                    for b in (0..members).filter(|b| side.contains(b) != side.contains(&a)) {
                        self.network.cut(present[a], present[b]);
                    }
                }
            }
            Fault::OneWay => {
                let other = self.dice.pick(&others);
                match self.dice.below(4) {
                    0 => others.iter().for_each(|to| self.network.cut(place, *to)),
                    1 => others.iter().for_each(|from| self.network.cut(*from, place)),
                    _ => self.network.cut(place, other),
                }
            }
            Fault::Bridge => {
                let friend = self.dice.pick(&others);
                others.iter().filter(|other| **other != friend).for_each(|o| self.network.set_both(place, *o, true));
            }
            Fault::Isolate => others.iter().for_each(|other| self.network.set_both(place, *other, true)),
            Fault::Ring => {
                let ring = self.dice.order(members);
                for a in 0..members {
                    for b in a + 1..members {
                        let neighbours = b - a == 1 || (a, b) == (0, members - 1) && members > 3;
                        self.network.set_both(present[ring[a]], present[ring[b]], !neighbours);
                    }
                }
            }
            Fault::Scatter => {
                let share = self.dice.pick(&[200, 400, 600]);
                for from in present.iter().copied() {
                    for to in present.iter().copied().filter(|to| *to != from) {
                        self.network.at(from, to).cut = self.dice.chance(share);
                    }
                }
            }
            Fault::Flap => {
                let links = match self.dice.below(3) {
                    0 => vec![(place, self.dice.pick(&others))],
                    1 => others.iter().map(|other| (place, *other)).collect(),
                    _ => others.iter().flat_map(|other| [(place, *other), (*other, place)]).collect(),
                };
                let until = self.now + self.dice.skewed(2 * SECOND, 20 * SECOND);
                self.schedule(0, WorldEvent::Flap { links, until, cut: true, era: self.network.era });
            }
            Fault::Swizzle => {
                let era = self.network.era;
                for cut in [true, false] {
                    let mut delay = if cut { 0 } else { 2 * SECOND };
                    for at in self.dice.order(others.len()) {
                        delay += self.dice.skewed(10 * MILLI, 800 * MILLI);
                        let links = vec![(place, others[at]), (others[at], place)];
                        self.schedule(delay, WorldEvent::Links { links, cut, era });
                    }
                }
            }
            Fault::Clog => {
                let until = self.now + self.dice.skewed(100 * MILLI, 4 * SECOND);
                let share = self.dice.pick(&[300, 1000]);
                for other in others {
                    for (from, to) in [(place, other), (other, place)] {
                        if self.dice.chance(share) {
                            self.network.at(from, to).clogged_until = until;
                        }
                    }
                }
            }
            _ => {
                for from in present.iter().copied() {
                    for to in present.iter().copied() {
                        *self.network.at(from, to) = Link::rough(&mut self.dice);
                    }
                }
            }
        }
    }

    /// Links go on coming and going.
    pub(super) fn flap(&mut self, links: Vec<(usize, usize)>, until: u64, cut: bool, era: u64) {
        if era != self.network.era {
            return;
        }
        let cut = cut && self.now < until;
        self.mark("flap", [links[0].0 as u64, links[0].1 as u64, u64::from(cut), 0], String::new());
        links.iter().for_each(|(from, to)| self.network.at(*from, *to).cut = cut);
        if self.now < until {
            let pause = self.dice.between(50, 500) * MILLI;
            self.schedule(pause, WorldEvent::Flap { links, until, cut: !cut, era });
        }
    }

    fn strike_dead(&mut self, fault: Fault, place: usize, down: u64) {
        if self.members[place].running.is_none() {
            return;
        }
        self.count(fault);
        let loss = self.loss();
        self.crash(place, loss);
        let delay = self.dice.skewed(10 * MILLI, down);
        self.schedule(delay, WorldEvent::Boot { place });
    }

    /// Kills a member, to damage its disk before it starts again.
    fn strike_dead_to_damage(&mut self, fault: Fault, place: usize) {
        if self.members[place].running.is_none() || !self.bears_damage(place) {
            return;
        }
        // One that founded its cluster alone has nobody on its list to ask, and begins anew: nobody can tell it not to.
        if fault == Fault::Wipe && place == 0 && self.scenario.members == 1 {
            return;
        }
        let loss = self.loss();
        self.crash(place, loss);
        self.to_damage[place] = Some(fault);
        let delay = self.dice.skewed(SECOND, 8 * SECOND);
        self.schedule(delay, WorldEvent::Boot { place });
    }

    /// Whether only a minority would be damaged then, whatever removals are still to come.
    fn bears_damage(&self, place: usize) -> bool {
        let voters = &self.configuration.voters;
        // Before all have begun, a member without a disk is like one that was never there.
        let begun = voters.iter().all(|voter| self.members[*voter].has_entries() && self.ledger.ran.contains(voter));
        begun && voters.contains(&place) && self.damaged[place].is_none() && self.enough_sound(place, None)
    }

    /// Whether there is a sound majority without one that is damaged, even if all who are to leave do, and this one.
    fn enough_sound(&self, damaged: usize, also_leaving: Option<usize>) -> bool {
        // Whoever was added and has never begun is no help yet.
        let begun = |place: usize| place < self.scenario.members || self.members[place].has_data();
        let sound = |place: &usize| {
            *place != damaged && self.damaged[*place].is_none() && self.is_sound(*place) && begun(*place)
        };
        let voters = &self.configuration.voters;
        let leave = |place: &usize| sound(place) && (self.leaving.contains(place) || also_leaving == Some(*place));
        let leaving = voters.iter().filter(|place| leave(place)).count();
        let staying = voters.iter().filter(|place| sound(place)).count() - leaving;
        let arriving = usize::from(self.arriving.is_some());
        staying > 0 && staying > (voters.len() + arriving - leaving) / 2
    }

    /// Damages a dead member's disk if by now the others can do without it.
    pub(super) fn damage(&mut self, place: usize, fault: Fault) {
        let voters = &self.configuration.voters;
        let held = |(index, term): (&u64, &u64)| {
            let sound = voters.iter().filter(|other| **other != place && self.damaged[**other].is_none());
            sound.filter(|other| self.members[**other].holds(*index, *term)).count() > voters.len() / 2
        };
        let before = self.members[place].durable.clone();
        let base = self.members[place].durable_base;
        let base_held = self.ledger.entries.get(&base).is_none_or(|(_, term)| held((&base, term)));
        if !self.bears_damage(place) || !before.iter().all(held) || !base_held {
            return;
        }
        if fault == Fault::Wipe {
            self.count(fault);
            self.mark("wipe", [place as u64, 0, 0, 0], String::new());
            self.members[place].wipe();
            self.wiped[place] = true;
            self.damaged[place] = Some(before);
        } else if let Some(at) = self.members[place].disk.flip(&mut self.dice) {
            self.count(fault);
            self.mark("flip", [place as u64, 0, 0, 0], at);
            self.damaged[place] = Some(before);
        }
    }

    /// Somebody is asked for a change of members, as by a client.
    fn change_members(&mut self, change: Change) {
        let running: Vec<usize> =
            self.configuration.voters.iter().copied().filter(|place| self.members[*place].running.is_some()).collect();
        if running.is_empty() {
            return;
        }
        let place = self.dice.pick(&running);
        let connected = self.connected_to(place);
        self.tell_member(place, MemberEvent::Reconfigure { change, connected });
    }

    /// Since when the transport of a member would have others as connected.
    pub(super) fn connected_to(&self, place: usize) -> BTreeMap<u64, Duration> {
        let mut connected = BTreeMap::new();
        let Some(own) = self.members[place].age(self.now) else { return connected };
        for other in &self.members {
            let cut = self.network.link(place, other.place).cut || self.network.link(other.place, place).cut;
            if let Some(age) = other.age(self.now).filter(|_| !cut) {
                connected.insert(other.id().0, Duration::from_nanos(age.min(own)));
            }
        }
        connected
    }

    /// A member is to be added, the one that was to be before if it does not belong yet.
    pub(super) fn add_member(&mut self, is_learner: bool) {
        let members = self.configuration.members();
        let asked = self.adding.filter(|place| !members.contains(place) && !self.members[*place].gone);
        if asked.is_none() && members.len() >= MEMBERS_MAX {
            return;
        }
        // One that was asked for as a voter may still become one; and so the other way round.
        let is_learner = if asked.is_some() { self.arriving != asked } else { is_learner };
        if !is_learner && asked.is_none() {
            self.arriving = Some(self.members.len());
            let second = self.configuration.voters.len() == 1 && self.leaving.is_empty();
            if !second && !self.enough_sound(usize::MAX, None) {
                self.arriving = None;
                return;
            }
        }
        let place = asked.unwrap_or_else(|| self.new_machine());
        self.adding = Some(place);
        let peer_urls = vec![format!("http://m{place}:2380")];
        let new = MemberAdd { id: id_of(place).0, peer_urls, is_learner, learners_max: LEARNERS_MAX };
        self.change_members(Change::Add(new));
    }

    /// A learner is to vote.
    pub(super) fn promote(&mut self) {
        let learners = self.configuration.learners.clone();
        if !learners.is_empty() {
            let id = id_of(self.dice.pick(&learners)).0;
            self.change_members(Change::Promote(MemberPromote { id }));
        }
    }

    /// A member is to leave: rather one that is lost than others.
    pub(super) fn remove(&mut self, fault: Fault, place: usize) {
        let members = self.configuration.members();
        let lost: Vec<usize> = members.iter().copied().filter(|place| !self.is_sound(*place)).collect();
        let place = if lost.is_empty() || self.dice.chance(200) { place } else { self.dice.pick(&lost) };
        let voter = self.configuration.voters.contains(&place);
        let bearable = !voter || self.enough_sound(usize::MAX, Some(place));
        if !members.contains(&place) || !bearable {
            return;
        }
        self.leaving.insert(place);
        if fault == Fault::Replace {
            self.replaced.insert(place);
        }
        self.change_members(Change::Remove(MemberRemove { id: id_of(place).0 }));
    }
}

/// As many members as may receive the log without voting.
const LEARNERS_MAX: u32 = 2;
