//! How a run proceeds, and what must be true when.
//!
//! First the nemesis is loose. Then a quorum is chosen and mended, while the others stay as they are or fare worse: it must elect
//! a leader, acknowledge a write and tell all who watch. Then all are mended: they must come to the same content, tell every
//! watcher everything, and have nothing left to do. In the end everything that clients saw is judged.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::checks::rights::Counts;
use crate::member::{TICK, TOKEN_LIFETIME};

/// Election timeouts, at their longest, within which a mended quorum must acknowledge a write.
const ELECTIONS_MAX: u64 = 10;
/// Within so much of silence every watcher must have been told.
const TELLING_MAX: u64 = 5 * SECOND;
/// How long all is quiet in the end, so that leases run out.
const QUIET: u64 = 20 * SECOND;
/// How much later than their time leases may end then.
const LEASE_LATE_MAX: u64 = 6 * SECOND;
/// How long a removed member may take to hear that it may go, when nothing is wrong, and to go.
const RETIRING_MAX: u64 = 10 * SECOND;
/// A client that no other is like.
const PROBE: u32 = u32::MAX - 1;

impl World {
    /// Lives through the whole scenario. A failure says all that is needed to see it again.
    pub fn run(mut self) -> Result<Report, String> {
        let end = self.now + self.scenario.faulty;
        // A panic is a violation like others: what led to it is told.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.live(end)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind")))
        });
        self.report.virtual_ns = self.now;
        self.report.events = self.events;
        self.report.installs = self.ledger.installs;
        self.report.leaders = self.ledger.leaders.len();
        let belong = self.configuration.members();
        self.report.replaced = (0..self.scenario.members).filter(|founder| !belong.contains(founder)).count();
        for member in &self.members {
            let given = member.disk.given();
            self.report.faults[Fault::DiskBreaks as usize] += given.breaks;
            self.report.faults[Fault::DiskError as usize] += given.writes + given.reads + given.syncs;
            self.report.faults[Fault::DiskFull as usize] += given.no_space;
        }
        outcome.map(|()| self.report.clone()).map_err(|what| self.failure(&what))
    }

    fn live(&mut self, end: u64) -> Result<(), String> {
        self.run_until(end)?;
        if let Some(script) = self.scenario.script {
            script(self)?;
        }
        if self.scenario.core {
            self.core_works()?;
        }
        self.heal();
        let end = self.now + 12 * SECOND;
        self.run_until(end)?;
        let forgotten = self.members.iter().filter(|member| self.is_removed(member) && self.is_forgotten(member));
        for place in forgotten.map(|member| member.place).collect::<Vec<_>>() {
            self.retire(place);
        }
        self.asking = false;
        self.probe(self.now)?;
        let (leaders, quiet) = (self.ledger.leaders.len(), self.now);
        // Leases run out meanwhile, and the last calls end.
        let end = self.now + QUIET;
        self.run_until(end)?;
        self.converge()?;
        // A change of members that was on its way may have removed the leader.
        if self.ledger.leaders.len() > leaders && self.reconfigured_at < quiet {
            return Err("liveness: leaders change though nothing is wrong".into());
        }
        if let Some(max) = self.scenario.leaders_max
            && leaders > max
        {
            return Err(format!("liveness: {leaders} leaders, {max} would be right"));
        }
        self.read_everything()?;
        // A lease may have run out at the last moment: whoever watches has been told of that, too.
        self.converge()?;
        // From the probe's answer on a leader leads, and nobody takes its place: leases end when they should.
        if self.reconfigured_at < quiet {
            self.history.healed = Some(quiet);
            self.history.lease_bound = LEASE_LATE_MAX;
        }
        self.history.end = self.now;
        self.judge()
    }

    /// A quorum alone is mended, and must work.
    fn core_works(&mut self) -> Result<(), String> {
        let mut core = self.sound_voters();
        let order = self.dice.order(core.len());
        core = order.into_iter().map(|at| core[at]).collect();
        // Whoever has never begun can only do so with the help of others.
        core.sort_by_key(|place| !self.members[*place].has_data());
        let quorum = self.configuration.quorum();
        let begun = core.iter().filter(|place| self.members[**place].has_data()).count();
        let size = match self.dice.chance(700) {
            _ if begun < quorum => core.len(),
            true => quorum,
            false => self.dice.between(quorum as u64, core.len() as u64) as usize,
        };
        core.truncate(size);
        core.extend(self.needed());
        core.sort_unstable();
        self.mark("core", [core.iter().fold(0, |bits, place| bits | 1 << place), 0, 0, 0], String::new());
        self.phase = Phase::Core(core.clone());
        self.network.heal_among(&core);
        for place in self.present() {
            if core.contains(&place) {
                self.mend(place);
            } else {
                self.leave_out(place, &core);
            }
        }
        let began = self.now;
        // A machine needs a moment to start.
        self.run_until(began + 100 * MILLI)?;
        let first_watch = self.history.watches.len();
        for place in self.working() {
            self.open_stream(self.scenario.watch_clients + place as u32, place);
        }
        let probes = first_watch..self.history.watches.len();
        let revision = self.probe(began)?;
        self.report.recovery_ms = self.report.recovery_ms.max((self.now - began) / MILLI);
        let end = self.now + TELLING_MAX;
        while !probes.clone().all(|watch| self.is_told(watch, revision)) {
            if self.now >= end {
                let probes = &self.history.watches[probes];
                let last: Vec<_> = probes.iter().map(|watch| (watch.member, watch.messages.last())).collect();
                return Err(format!(
                    "liveness: not all watchers are told of {revision}: {}; {last:?}",
                    self.describe()
                ));
            }
            self.run_until(self.now + 20 * MILLI)?;
        }
        let on = self.dice.between(2, 15) * SECOND;
        self.run_until(self.now + on)
    }

    /// Whether a watch of the probe's has been told of a revision, or there is a reason why not.
    fn is_told(&self, watch: usize, revision: i64) -> bool {
        let watch = &self.history.watches[watch];
        match watch.messages.last() {
            // Its member caught up with a snapshot, past what the watcher still had to be told: then it is told that.
            Some((_, WatchMessage::Canceled { compact_revision: 1.. })) => true,
            // Its member died, of an error that its disk gave before it was mended, or was removed: else that would have
            // been a violation.
            Some((_, WatchMessage::Ended)) => {
                self.members[watch.member as usize].life != self.streams[&watch.stream].life
            }
            _ => next_revision(watch) > revision,
        }
    }

    /// Those who vote and have lost nothing.
    fn sound_voters(&self) -> Vec<usize> {
        self.configuration.voters.iter().copied().filter(|place| self.is_sound(*place)).collect()
    }

    /// Members were changed while only some work: it is up to a quorum of those who vote now.
    pub(super) fn extend_core(&mut self, core: Vec<usize>) {
        let voters = self.sound_voters();
        let mut extended: Vec<usize> = core.iter().copied().filter(|place| voters.contains(place)).collect();
        let missing = self.configuration.quorum().saturating_sub(extended.len());
        // Whoever has never begun needs the others for that.
        let mut others: Vec<usize> = voters.iter().copied().filter(|place| !core.contains(place)).collect();
        others.sort_by_key(|place| !self.members[*place].has_data());
        extended.extend(others.into_iter().take(missing));
        extended.extend(self.needed());
        self.mark("core", [extended.iter().fold(0, |bits, place| bits | 1 << place), 1, 0, 0], String::new());
        self.phase = Phase::Core(extended.clone());
        self.network.heal_among(&extended);
        for place in extended.into_iter().filter(|place| !core.contains(place)) {
            self.mend(place);
        }
    }

    /// Those who must work now.
    fn working(&self) -> Vec<usize> {
        match &self.phase {
            Phase::Core(core) => self.sound_voters().into_iter().filter(|place| core.contains(place)).collect(),
            _ => self.sound_voters(),
        }
    }

    /// Writes until a write is acknowledged. Returns its revision.
    fn probe(&mut self, began: u64) -> Result<i64, String> {
        let election = 2 * self.usual.election_ticks as u64 * TICK;
        let mut tries = 0;
        loop {
            let value = format!("probe{}", self.calls_made).into_bytes();
            let request = Request::Put { key: b"k00".to_vec(), value, lease: 0, prev_kv: false };
            let core = self.working();
            let op = self.issue(PROBE, core[tries % core.len()], By::Member, request, SECOND);
            tries += 1;
            let end = self.now + SECOND;
            while self.now < end {
                self.run_until(self.now + 20 * MILLI)?;
                if let Outcome::Ok { revision, .. } = self.history.ops[op].outcome {
                    return Ok(revision);
                }
                if self.now > began.max(self.reconfigured_at) + ELECTIONS_MAX * election {
                    return Err(format!("liveness: {core:?} do not come to work: {}", self.describe()));
                }
            }
        }
    }

    /// A member is not among those that must work.
    fn leave_out(&mut self, place: usize, core: &[usize]) {
        // Without the vote before the vote, whoever is heard but does not hear disturbs for ever.
        let heard = self.usual.pre_vote;
        let fate = self.dice.below(5);
        match fate {
            0 => {
                let loss = self.loss();
                if self.members[place].running.is_some() {
                    self.crash(place, loss);
                }
            }
            1 if heard => core.iter().for_each(|other| self.network.cut(*other, place)),
            2 => core.iter().for_each(|other| self.network.cut(place, *other)),
            // As it is, slow or forgetful; but if it leads, it must lead all of the others.
            3 if heard => core.iter().for_each(|other| self.network.set_both(place, *other, false)),
            _ => core.iter().for_each(|other| self.network.set_both(place, *other, true)),
        }
        self.mark("left out", [place as u64, fate, 0, 0], String::new());
    }

    /// Nothing is wrong with a member any more.
    fn mend(&mut self, place: usize) {
        self.members[place].disk.repair();
        self.relieve(place);
        let options = &mut self.options[place];
        options.slow_sync_per_mille = 0;
        options.disk_delay_max = options.disk_delay_max.min(10 * MILLI);
        options.read_on();
        self.crash_loops[place] = 0;
        self.members[place].paused_until = self.now;
        self.resume(place);
        if self.members[place].running.is_none() {
            self.schedule(MILLI, WorldEvent::Boot { place });
        }
    }

    /// Everything works again, and stays so.
    fn heal(&mut self) {
        self.phase = Phase::Healed;
        self.network.heal();
        self.mark("heal", [0; 4], String::new());
        self.usual.read_on();
        let members = self.configuration.members();
        for place in 0..self.members.len() {
            let member = &self.members[place];
            if members.contains(&place) {
                self.mend(place);
            } else if !member.gone && (member.has_data() || member.asking.is_some()) {
                // It was removed, and has not heard of it or the others have not. It will.
                self.mend(place);
            }
        }
        // Nobody keeps his eyes shut for ever.
        let reading = |(token, stream): (&u64, &Stream)| (!stream.ended).then_some((*token, stream.place, stream.life));
        let open: Vec<_> = self.streams.iter().filter_map(reading).collect();
        for (stream, place, life) in open {
            let event = MemberEvent::Pace { stream, until: 0 };
            self.schedule(SECOND, WorldEvent::Member { place, life, event });
        }
    }

    /// Whether it is there and was removed.
    fn is_removed(&self, member: &Member) -> bool {
        let there = member.running.is_some() || member.asking.is_some() && !self.wiped[member.place];
        there && !self.configuration.members().contains(&member.place)
    }

    /// Whether all that it ever knew have left: then there is nobody to ask.
    fn is_forgotten(&self, member: &Member) -> bool {
        let places = self.sound_members();
        !member.knows().iter().any(|other| places.contains(other))
    }

    fn describe(&self) -> String {
        let present = self.members.iter().filter(|member| !member.gone);
        let all: Vec<String> = present.map(Member::describe).collect();
        all.join("; ")
    }

    /// Of all that can run.
    fn standing(&self) -> Result<Vec<(u64, i64, Content)>, String> {
        let down = |member: &Member| format!("liveness: {}", member.describe());
        let sound = self.sound_members().into_iter().map(|place| &self.members[place]);
        sound.map(|member| member.standing().ok_or_else(|| down(member))).collect()
    }

    /// Those who belong and have lost nothing.
    fn sound_members(&self) -> Vec<usize> {
        self.configuration.members().into_iter().filter(|place| self.is_sound(*place)).collect()
    }

    /// Members have the same content, and watchers have been told all of it.
    fn converge(&mut self) -> Result<(), String> {
        let mut standing = self.standing()?;
        // Leases still run out, and have their rests recorded: there is a moment without an entry on its way, and without a
        // change that watchers are about to be told of.
        let mut unchanged = (standing[0].1, self.now);
        for _ in 0..TELLING_MAX / (10 * MILLI) {
            let together = standing.iter().all(|other| other == &standing[0]);
            let busy = self.members.iter().any(|member| member.unfinished() > 0);
            if together && !busy && self.now >= unchanged.1 + 200 * MILLI {
                break;
            }
            self.run_until(self.now + 10 * MILLI)?;
            standing = self.standing()?;
            if standing[0].1 != unchanged.0 {
                unchanged = (standing[0].1, self.now);
            }
        }
        if standing.iter().any(|other| other != &standing[0]) {
            return Err(format!("liveness: members do not come together: {}", self.describe()));
        }
        if let Some(member) = self.members.iter().find(|member| member.slow_watchers() > 0) {
            return Err(format!("liveness: m{} still has watchers to catch up", member.place));
        }
        if self.members.iter().any(|member| member.unfinished() > 0) {
            return Err(format!("liveness: something is unfinished: {}", self.describe()));
        }
        if self.now >= self.reconfigured_at + RETIRING_MAX {
            let stays = |member: &&Member| self.is_removed(member) && !self.is_forgotten(member);
            if let Some(member) = self.members.iter().find(stays) {
                return Err(format!("liveness: m{} was removed and does not go: {}", member.place, self.describe()));
            }
        }
        let leftovers = |member: &Member| -> Vec<String> {
            member.disk.names().into_iter().filter(|name| name.contains("unfinished")).collect()
        };
        // A member that is gone for good tidies up no more.
        let places = self.sound_members();
        let leftovers: Vec<String> = places.iter().flat_map(|place| leftovers(&self.members[*place])).collect();
        if !leftovers.is_empty() {
            return Err(format!("leftovers: {leftovers:?}"));
        }
        self.mark("content", [standing[0].2.0.into(), standing[0].0, self.history.ops.len() as u64, 0], String::new());
        self.report.revision = standing[0].1;
        Ok(())
    }

    /// Everybody is asked for everything.
    fn read_everything(&mut self) -> Result<(), String> {
        let everything =
            |serializable| Request::Range { key: vec![0], end: vec![0], limit: 0, revision: 0, serializable };
        let mut ops = Vec::new();
        for place in self.sound_members() {
            for serializable in [false, true] {
                ops.push(self.issue(PROBE, place, By::Member, everything(serializable), 2 * SECOND));
            }
        }
        self.run_until(self.now + 3 * SECOND)?;
        match ops.iter().find(|op| !matches!(self.history.ops[**op].outcome, Outcome::Ok { .. })) {
            Some(op) => Err(format!("liveness: {:?} is not answered: {}", self.history.ops[*op], self.describe())),
            None => Ok(()),
        }
    }

    fn judge(&mut self) -> Result<(), String> {
        // What was carried out, as a watcher would see it that misses nothing.
        let mut messages = vec![(0, WatchMessage::Created { revision: 1 })];
        for (revision, (at, events)) in &self.ledger.changes {
            let events = events.clone();
            messages.push((*at, WatchMessage::Events { header_revision: *revision, fragment: false, events }));
        }
        messages.push((self.now, WatchMessage::Ended));
        let witness =
            WatchRecord { client: u32::MAX, key: vec![0], end: vec![0], start: 1, messages, ..Default::default() };
        self.history.watches.push(witness);
        self.history.rights = self.rights();
        let summary = checks::check(&self.history).map_err(|violation| {
            let op = violation.op.and_then(|op| self.history.ops.get(op));
            let watch = violation.watch.and_then(|watch| self.history.watches.get(watch));
            let watch = watch.map(|watch| {
                let from = watch.messages.len().saturating_sub(12);
                let head = WatchRecord { messages: Vec::new(), ..watch.clone() };
                format!("{head:?} … {:?}", &watch.messages[from..])
            });
            format!("{violation}\n  op: {op:?}\n  watch: {watch:?}")
        })?;
        if !summary.behind.is_empty() {
            return Err(format!("liveness: watches {:?} were not sent everything", summary.behind));
        }
        self.report.ops = summary.ops;
        self.report.acknowledged = summary.acknowledged;
        self.report.watches = summary.watches;
        self.report.watch_events = summary.events;
        self.report.rights = summary.rights;
        let Counts { allowed, denied, changes, .. } = summary.rights;
        if self.scenario.managers > 0 && (allowed == 0 || denied == 0 || changes == 0) {
            return Err(format!("coverage: {allowed} requests were allowed, {denied} denied, of {changes} changes"));
        }
        Ok(())
    }

    /// What was written down of users.
    fn rights(&mut self) -> Option<Rights> {
        let Minutes { payloads, decided, watched, tokens } = self.ledger.minutes.take()?;
        let entries = self.ledger.entries.iter();
        let payload = |(index, (_, term)): (&u64, &(u64, u64))| {
            payloads
                .get(&(*index, *term))
                .filter(|payload| !payload.is_empty())
                .map(|payload| (*index, *term, payload.clone()))
        };
        let entries = entries.filter_map(payload);
        let log = entries.flat_map(|(index, term, payload)| users::read_entry(index, term, payload)).collect();
        let mut effects: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
        for (revision, (_, events)) in &self.ledger.changes {
            effects.entry(self.ledger.revisions[revision]).or_default().extend(events.iter().cloned());
        }
        // Calls are counted from 1, in the order of the history.
        let decided = decided.into_iter().map(|(call, decided)| (call as usize - 1, decided)).collect();
        let end = self.sound_members().first().and_then(|place| self.members[*place].users());
        let token_lifetime = TOKEN_LIFETIME.as_nanos() as u64;
        Some(Rights { log, effects, decided, watched, tokens, token_lifetime, end })
    }

    fn failure(&self, what: &str) -> String {
        let mut text = String::new();
        for traced in &self.trace {
            let Traced { now, what, numbers, text: more } = traced;
            text += &format!("  {:>12.6} {what} {numbers:?} {more}\n", *now as f64 / SECOND as f64);
        }
        format!(
            "the last {} events of the world:\n{text}{:?}\n{:?}\nscenario {:?} seed {}: {what}\n\
             replay: SEED={} SCENARIO={:?} cargo test --test sim scenario -- --nocapture",
            self.trace.len(),
            self.scenario,
            self.usual,
            self.scenario.name,
            self.seed,
            self.seed,
            self.scenario.name,
        )
    }
}
