//! The leader's half of leases: when each runs out, by the leader's clock.
//!
//! Promises, while it leads:
//!   * a lease is never offered for expiry before its deadline, and never renewed after it was offered;
//!   * one that was offered and still exists [`REOFFER`] later (the proposal was lost) is offered again;
//!   * a renewal that was answered with [`Renewed::Ttl`] left no record of a smaller rest behind, so that no later leader
//!     ends the lease sooner than the client was told.
//!
//! The last promise needs the caller's help. `promote` comes when every entry of earlier terms has been applied: they may still
//! record rests and end leases. What `checkpoints` gives is proposed before `renew` is called again, in the term it was given in.
//! `granted`, `revoked` and `remaining_changed` are called in the order of the log.
//!
//! Called by the lease loop and by whoever answers keep-alives. A member that does not lead has one too; it holds nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use super::Table;
use crate::types::LeaseId;

/// How long an offered lease may stay before it is offered again.
pub const REOFFER: Duration = Duration::from_secs(2);

/// How many seconds the clearing of a record keeps new records of the same lease away. Longer, and its proposal counts as lost.
const CLEARING_S: u8 = 10;

/// Rests are recorded at most this often.
const RECORD_EVERY_MIN_MS: u64 = 1000;

/// Leases looked at in one call, per lease asked for and at least: a call must not take long when there are a million of them,
/// or the timers of renewed ones, which are only moved, fire together. The rest is looked at in the next call.
const VISITS_PER_LEASE: usize = 4;
const VISITS_MIN: usize = 4096;

/// Stale timers (of leases that are gone) beyond the live ones. More, and they are swept out.
const STALE_TIMERS_MAX: usize = 4096;

/// Deadlines of all leases, of the leader.
#[derive(Debug, Default)]
pub struct Lessor {
    leads: bool,
    // Looked up, never iterated. A table of hashes would be a little quicker and, half empty, twice as large.
    clocks: BTreeMap<LeaseId, Clock>,
    expiries: Timers,
    /// Those that ran out and were not offered yet, with when they did. Offered in the order of ids, and round: what goes together from
    /// the leases' rows then lies together there, and few pages are written for it.
    overdue: BTreeMap<LeaseId, u64>,
    /// The last that was taken from them.
    swept: LeaseId,
    /// Those that were offered, with when they are offered again: first the one that was first. Among the timers those of leases that
    /// have ended since would have to be swept out, thousands at once, while writes wait.
    offers: VecDeque<(u64, LeaseId)>,
    /// The last lease that was looked at for its record. The next call goes on behind it, and round: a record may be late, so that
    /// nothing need be kept to find those that are due.
    recorded: LeaseId,
    /// Leases that were offered for expiry and are still there.
    ending: usize,
}

/// What came of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The lease has its full length again, so many seconds.
    Ttl(i64),
    /// A smaller rest is on record, or about to be. Propose to clear it, wait until that is applied, then renew again.
    NeedsLog,
    /// There is no such lease, it ran out, or this member does not lead.
    Unknown,
}

/// One lease's times, in milliseconds since the origin of `now`. There may be a million.
#[derive(Debug)]
struct Clock {
    ttl: i64,
    deadline: u64,
    /// Its rest is due to be recorded so many seconds before the deadline.
    record_before_s: u32,
    /// Where its timer stands. A timer that stands elsewhere belonged to an earlier lease of this id; one taken for its own by mistake
    /// fires in vain, once.
    timer: Stand,
    /// Since when a renewal waits, in seconds, if one does. Taken for recent by mistake, it delays a record.
    clearing_s: u8,
    state: State,
}

const _: () = assert!(size_of::<Clock>() <= 24);

/// What the log says about the rest, as far as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing: all of it.
    Unrecorded,
    /// A smaller rest, or an offer to record one.
    Recorded,
    /// A renewal waits until the record is cleared.
    Clearing,
    /// It was offered for expiry: nothing but its end can happen to it now.
    Offered,
}

/// The low bits of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand(u16);

impl Lessor {
    /// Leadership begins, and the table has everything of earlier terms: every lease runs for its recorded rest, or its full length, and `extend` besides, for
    /// renewals could not be heard while there was no leader.
    pub fn promote(&mut self, table: &Table, now: Duration, extend: Duration) {
        self.demote();
        self.leads = true;
        let now = millis_up(now.saturating_add(extend));
        for (id, lease) in table.iter() {
            let (rest, state, record_in) = match lease.rest_ms() {
                Some(rest) => (rest.get(), State::Recorded, record_every(lease.ttl)),
                // Whether its client renews it is not known. To suppose so spares all clients a log entry each.
                None => (ttl_ms(lease.ttl), State::Unrecorded, record_after_renewal(lease.ttl)),
            };
            self.insert(id, lease.ttl, now.saturating_add(rest), now.saturating_add(record_in), state);
        }
    }

    /// Leadership ends: the clocks mean nothing any more.
    pub fn demote(&mut self) {
        *self = Lessor::default();
    }

    /// Whether deadlines are kept here.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// A lease came into being.
    pub fn granted(&mut self, id: LeaseId, ttl: i64, now: Duration) {
        if self.leads {
            let now = millis_up(now);
            self.insert(
                id,
                ttl,
                now.saturating_add(ttl_ms(ttl)),
                now.saturating_add(record_every(ttl)),
                State::Unrecorded,
            );
        }
    }

    /// A lease is gone.
    pub fn revoked(&mut self, id: LeaseId) {
        if let Some(clock) = self.clocks.remove(&id) {
            self.ending -= usize::from(clock.is_offered());
            let Lessor { clocks, expiries, offers, .. } = self;
            let belongs = |id, at| clocks.get(&id).is_some_and(|clock| clock.timer == Stand::at(at));
            while offers.pop_front_if(|(at, id)| !belongs(*id, *at)).is_some() {}
            expiries.sweep(clocks.len(), belongs);
        }
    }

    /// A client wants its lease to last.
    pub fn renew(&mut self, id: LeaseId, now: Duration) -> Renewed {
        let Some(clock) = self.clocks.get_mut(&id) else { return Renewed::Unknown };
        match clock.state {
            State::Offered => Renewed::Unknown,
            State::Recorded | State::Clearing => {
                (clock.state, clock.clearing_s) = (State::Clearing, seconds(millis_up(now)));
                Renewed::NeedsLog
            }
            State::Unrecorded => {
                clock.renew(millis_up(now));
                Renewed::Ttl(clock.ttl)
            }
        }
    }

    /// The log says another rest than before. That nothing is recorded any more is a renewal.
    pub fn remaining_changed(&mut self, id: LeaseId, rest_ms: Option<u64>, now: Duration) {
        let Some(clock) = self.clocks.get_mut(&id) else { return };
        match (rest_ms, clock.state) {
            (Some(_), State::Unrecorded) => clock.state = State::Recorded,
            // A clearing that is on its way stands behind this in the log.
            (Some(_), State::Recorded | State::Clearing) => {}
            (None, State::Unrecorded | State::Clearing) => {
                clock.state = State::Unrecorded;
                clock.renew(millis_up(now));
            }
            // A rest was offered for the record after this clearing was proposed: it is still to come.
            (None, State::Recorded) => {}
            (_, State::Offered) => {}
        }
    }

    /// Up to `max` leases that have run out, given by id. Propose to expire them. None waits for longer than it takes to come round to
    /// it among the others that ran out.
    pub fn expired(&mut self, now: Duration, max: usize) -> Vec<LeaseId> {
        let now = millis_down(now);
        for _ in 0..visits(max) {
            let Some((at, id)) = self.expiries.due(now) else { break };
            self.overdue.insert(id, at);
        }
        let mut ids = Vec::new();
        for _ in 0..visits(max) {
            if ids.len() == max {
                break;
            }
            let offered = self.offers.pop_front_if(|(at, _)| *at <= now);
            let Some((at, id)) = offered.or_else(|| self.next_overdue()) else { break };
            let Some(clock) = self.clocks.get_mut(&id).filter(|clock| clock.timer == Stand::at(at)) else { continue };
            if clock.deadline <= now {
                self.ending += usize::from(!clock.is_offered());
                clock.state = State::Offered;
                clock.deadline = now.saturating_add(millis_up(REOFFER));
                self.offers.push_back((clock.deadline, id));
                ids.push(id);
            } else {
                self.expiries.set(clock.deadline, id);
            }
            clock.timer = Stand::at(clock.deadline);
        }
        ids.sort_unstable();
        ids
    }

    fn next_overdue(&mut self) -> Option<(u64, LeaseId)> {
        let behind = (Bound::Excluded(self.swept), Bound::Unbounded);
        let id = *self.overdue.range(behind).next().or_else(|| self.overdue.first_key_value())?.0;
        self.swept = id;
        self.overdue.remove(&id).map(|at| (at, id))
    }

    /// How many leases were offered for expiry and have not come to their end yet.
    pub fn ending(&self) -> usize {
        self.ending
    }

    /// Whether a lease may have run out.
    pub fn is_due(&self, now: Duration) -> bool {
        if !self.overdue.is_empty() {
            return true;
        }
        let offered = self.offers.front().map(|(at, _)| *at);
        let first = offered.into_iter().chain(self.expiries.first()).min();
        first.is_some_and(|at| at <= millis_down(now))
    }

    /// Up to `max` rests that are due to be recorded, in milliseconds, given by id. Propose to record them. However many leases there
    /// are, each is looked at in its turn.
    pub fn checkpoints(&mut self, now: Duration, max: usize) -> Vec<(LeaseId, u64)> {
        let now = millis_down(now);
        let (behind, mut visits, mut rests) = (self.recorded, visits(max), Vec::new());
        let around = [(Bound::Excluded(behind), Bound::Unbounded), (Bound::Unbounded, Bound::Included(behind))];
        'all: for part in around {
            for (id, clock) in self.clocks.range_mut(part) {
                if visits == 0 || rests.len() == max {
                    break 'all;
                }
                (self.recorded, visits) = (*id, visits - 1);
                rests.extend(clock.checkpoint(now).map(|rest| (*id, rest)));
            }
        }
        rests.sort_unstable();
        rests
    }

    /// What is left of a lease; nothing of one that ran out. `None`: unknown, or this member does not lead.
    pub fn remaining(&self, id: LeaseId, now: Duration) -> Option<Duration> {
        let clock = self.clocks.get(&id)?;
        let left = if clock.is_offered() { 0 } else { clock.deadline.saturating_sub(millis_down(now)) };
        Some(Duration::from_millis(left))
    }

    fn insert(&mut self, id: LeaseId, ttl: i64, deadline: u64, record_at: u64, state: State) {
        self.expiries.set(deadline, id);
        let timer = Stand::at(deadline);
        let mut clock = Clock { ttl, deadline, record_before_s: 0, timer, clearing_s: 0, state };
        clock.record_at(record_at);
        if let Some(before) = self.clocks.insert(id, clock) {
            self.ending -= usize::from(before.is_offered());
        }
    }
}

impl Clock {
    fn is_offered(&self) -> bool {
        self.state == State::Offered
    }

    /// Timers stay where they are: when they fire, they move on to the new times. So a renewal costs one look-up.
    fn renew(&mut self, now: u64) {
        let record_at = self.record_due().max(now.saturating_add(record_after_renewal(self.ttl)));
        // Never earlier than before: a lease just taken over may have more than its length left.
        self.deadline = self.deadline.max(now.saturating_add(ttl_ms(self.ttl)));
        self.record_at(record_at);
    }

    /// Its rest, if it is to be recorded now.
    fn checkpoint(&mut self, now: u64) -> Option<u64> {
        if self.is_offered() || now < self.record_due() {
            return None;
        }
        self.record_at(now.saturating_add(record_every(self.ttl)));
        let rest = self.deadline.saturating_sub(now).min(ttl_ms(self.ttl));
        let clearing = self.state == State::Clearing && seconds(now).wrapping_sub(self.clearing_s) < CLEARING_S;
        if rest == 0 || clearing {
            return None;
        }
        self.state = State::Recorded;
        Some(rest)
    }

    fn record_due(&self) -> u64 {
        self.deadline.saturating_sub(u64::from(self.record_before_s) * 1000)
    }

    /// A part of a second later, or not before the last 136 years.
    fn record_at(&mut self, at: u64) {
        self.record_before_s = u32::try_from(self.deadline.saturating_sub(at) / 1000).unwrap_or(u32::MAX);
    }
}

impl Stand {
    fn at(time: u64) -> Stand {
        Stand(time as u16)
    }
}

/// Times at which leases want to be looked at, earliest first, ties by id.
#[derive(Debug, Default)]
struct Timers(BinaryHeap<Reverse<(u64, LeaseId)>>);

impl Timers {
    fn set(&mut self, at: u64, id: LeaseId) {
        self.0.push(Reverse((at, id)));
    }

    fn first(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    fn due(&mut self, now: u64) -> Option<(u64, LeaseId)> {
        if self.first()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(timer)| timer)
    }

    /// Throws out stale timers once they outnumber the live ones.
    fn sweep(&mut self, live: usize, belongs: impl Fn(LeaseId, u64) -> bool) {
        if self.0.len() > live * 2 + STALE_TIMERS_MAX {
            self.0.retain(|Reverse((at, id))| belongs(*id, *at));
        }
    }
}

fn visits(max: usize) -> usize {
    max.saturating_mul(VISITS_PER_LEASE).max(VISITS_MIN)
}

fn ttl_ms(ttl: i64) -> u64 {
    (ttl.max(0) as u64).saturating_mul(1000)
}

fn record_every(ttl: i64) -> u64 {
    (ttl_ms(ttl) / 20).max(RECORD_EVERY_MIN_MS)
}

fn record_after_renewal(ttl: i64) -> u64 {
    (ttl_ms(ttl) / 2).max(RECORD_EVERY_MIN_MS)
}

/// Round and round.
fn seconds(millis: u64) -> u8 {
    (millis / 1000) as u8
}

/// For deadlines: rounded so that they are never early.
fn millis_up(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// For the time it is: rounded so that no deadline is reached early.
fn millis_down(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::backend::Batch;
    use crate::types::Index;

    const A: LeaseId = LeaseId(1);
    const B: LeaseId = LeaseId(2);

    fn secs(s: f64) -> Duration {
        Duration::from_secs_f64(s)
    }

    fn table(leases: &[(LeaseId, i64, Option<u64>)]) -> Table {
        let mut table = Table::default();
        for &(id, ttl, rest) in leases {
            table.grant(id, ttl, Index(1), &mut Batch::default()).unwrap();
            table.set_rest(id, rest, &mut Batch::default()).unwrap();
        }
        table
    }

    fn leader() -> Lessor {
        let mut lessor = Lessor::default();
        lessor.promote(&Table::default(), Duration::ZERO, Duration::ZERO);
        lessor
    }

    #[test]
    fn a_lease_is_offered_at_its_deadline_and_again_when_nothing_came_of_it() {
        let mut lessor = leader();
        lessor.granted(B, 10, secs(0.0001));
        lessor.granted(A, 10, Duration::ZERO);
        assert_eq!(lessor.expired(secs(9.9999), 9), []);
        assert_eq!(lessor.expired(secs(10.0), 9), [A], "the other was granted a little later");
        assert_eq!(lessor.expired(secs(10.5), 9), [B]);
        assert_eq!(lessor.expired(secs(11.9), 9), []);
        assert_eq!((lessor.renew(A, secs(11.9)), lessor.remaining(A, secs(11.9))), (Renewed::Unknown, Some(secs(0.0))));
        assert_eq!((lessor.expired(secs(12.5), 9), lessor.ending()), (vec![A, B], 2));
        lessor.revoked(A);
        assert_eq!(lessor.ending(), 1);
        assert_eq!(lessor.expired(secs(99.0), 9), [B]);
        assert_eq!(lessor.remaining(A, secs(99.0)), None);
    }

    #[test]
    fn offers_are_bounded_and_come_by_id() {
        let mut lessor = leader();
        for id in 1..=5 {
            lessor.granted(LeaseId(id), 10 - id, Duration::ZERO);
        }
        assert_eq!(lessor.expired(secs(6.0), 1), [LeaseId(4)]);
        assert_eq!(lessor.expired(secs(7.5), 1), [LeaseId(5)], "it goes on behind the last");
        assert!(lessor.is_due(secs(7.5)));
        assert_eq!(lessor.renew(LeaseId(3), secs(7.5)), Renewed::Ttl(7), "not offered yet");
        assert_eq!(lessor.expired(secs(7.5), 9), []);
        assert!(!lessor.is_due(secs(7.5)));
        assert_eq!(lessor.expired(secs(9.0), 2), [1, 4].map(LeaseId), "one that nothing came of; and round");
        assert_eq!(lessor.expired(secs(9.0), 9), [LeaseId(2)]);
        assert_eq!(lessor.expired(secs(14.5), 9), [1, 2, 3, 4, 5].map(LeaseId));
    }

    #[test]
    fn an_overdue_lease_that_is_gone_or_another_is_not_offered() {
        let mut lessor = leader();
        for id in 1..=4 {
            lessor.granted(LeaseId(id), 10, Duration::ZERO);
        }
        assert_eq!(lessor.expired(secs(10.0), 1), [A]);
        lessor.revoked(B);
        lessor.revoked(LeaseId(3));
        lessor.granted(LeaseId(3), 10, secs(10.0));
        assert_eq!(lessor.expired(secs(11.0), 9), [LeaseId(4)]);
        lessor.revoked(A);
        lessor.revoked(LeaseId(4));
        assert_eq!(lessor.expired(secs(20.0), 9), [LeaseId(3)]);
    }

    #[test]
    fn a_renewed_lease_lives_on_and_never_needs_the_log() {
        let mut lessor = leader();
        lessor.granted(A, 30, Duration::ZERO);
        assert_eq!(lessor.renew(A, secs(0.1)), Renewed::Ttl(30));
        for beat in 1..100 {
            let now = secs(0.1 + f64::from(beat) * 10.0);
            assert_eq!((lessor.checkpoints(now, 9), lessor.expired(now, 9)), (vec![], vec![]));
            assert_eq!(lessor.renew(A, now), Renewed::Ttl(30));
        }
        assert_eq!(lessor.expired(secs(990.1 + 29.9), 9), []);
        assert_eq!(lessor.expired(secs(990.1 + 30.0), 9), [A]);
    }

    #[test]
    fn rests_are_recorded_from_the_start_until_a_renewal_and_after_half_the_length_then() {
        let mut lessor = leader();
        lessor.granted(A, 100, Duration::ZERO);
        assert_eq!(lessor.checkpoints(secs(4.9), 9), []);
        assert_eq!(lessor.checkpoints(secs(5.0), 9), [(A, 95_000)]);
        assert_eq!(lessor.checkpoints(secs(10.0), 9), [(A, 90_000)]);
        lessor.remaining_changed(A, Some(95_000), secs(10.0));
        lessor.remaining_changed(A, Some(90_000), secs(10.0));

        // The record must go before the renewal may be acknowledged, and no new one may slip in between.
        assert_eq!(lessor.renew(A, secs(11.0)), Renewed::NeedsLog);
        assert_eq!(lessor.checkpoints(secs(15.0), 9), []);
        assert_eq!(lessor.remaining(A, secs(15.0)), Some(secs(85.0)));
        lessor.remaining_changed(A, None, secs(15.0));
        assert_eq!(lessor.renew(A, secs(15.0)), Renewed::Ttl(100));
        assert_eq!(lessor.checkpoints(secs(64.9), 9), []);
        assert_eq!(lessor.checkpoints(secs(65.0), 9), [(A, 50_000)]);
        assert_eq!(lessor.checkpoints(secs(70.0), 9), [(A, 45_000)]);
    }

    #[test]
    fn records_come_round_to_every_lease() {
        let mut lessor = leader();
        for id in 1..=5 {
            lessor.granted(LeaseId(id), 100, Duration::ZERO);
        }
        let mut some = |now| lessor.checkpoints(secs(now), 2).iter().map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!([some(5.0), some(5.0), some(5.0), some(5.0)], [vec![1, 2], vec![3, 4], vec![5], vec![]]);
        assert_eq!([some(10.0), some(10.0), some(10.0)].map(|ids| ids.len()), [2, 2, 1]);
    }

    #[test]
    fn an_offered_record_counts_before_it_is_applied() {
        let mut lessor = leader();
        lessor.granted(A, 100, Duration::ZERO);
        assert_eq!(lessor.checkpoints(secs(5.0), 9), [(A, 95_000)]);
        assert_eq!(lessor.renew(A, secs(5.0)), Renewed::NeedsLog);
        lessor.remaining_changed(A, Some(95_000), secs(5.1));
        assert_eq!(lessor.renew(A, secs(5.1)), Renewed::NeedsLog);
        lessor.remaining_changed(A, None, secs(5.2));
        assert_eq!(lessor.renew(A, secs(5.2)), Renewed::Ttl(100));
    }

    #[test]
    fn a_lost_clearing_does_not_keep_records_away_for_ever() {
        let mut lessor = leader();
        lessor.granted(A, 100, Duration::ZERO);
        assert_eq!(lessor.checkpoints(secs(5.0), 9), [(A, 95_000)]);
        assert_eq!(lessor.renew(A, secs(6.0)), Renewed::NeedsLog);
        assert_eq!(lessor.checkpoints(secs(10.0), 9), []);
        assert_eq!(lessor.checkpoints(secs(16.0), 9), [(A, 84_000)]);
        lessor.remaining_changed(A, None, secs(17.0));
        assert_eq!(lessor.renew(A, secs(17.0)), Renewed::NeedsLog, "it was late, and the new record stands behind it");
    }

    #[test]
    fn a_new_leader_continues_from_the_record_and_gives_the_rest_its_full_length() {
        let mut lessor = leader();
        lessor.granted(LeaseId(9), 1, Duration::ZERO);
        lessor.promote(&table(&[(A, 60, Some(5_000)), (B, 60, None)]), secs(1000.0), secs(1.0));
        assert_eq!(lessor.remaining(LeaseId(9), secs(1000.0)), None, "the clocks of an earlier reign are gone");
        assert_eq!(lessor.expired(secs(1005.9), 9), []);
        assert_eq!(
            (lessor.renew(A, secs(1000.0)), lessor.renew(B, secs(1000.0))),
            (Renewed::NeedsLog, Renewed::Ttl(60))
        );
        assert_eq!(lessor.expired(secs(1006.0), 9), [A]);
        assert_eq!(lessor.expired(secs(1060.9), 1), [A], "offered again; the other has its length and the extension");
        lessor.revoked(A);
        assert_eq!(lessor.expired(secs(1061.0), 9), [B]);

        lessor.demote();
        lessor.granted(A, 1, secs(2000.0));
        assert_eq!((lessor.expired(secs(9e9), 9), lessor.renew(B, secs(2000.0))), (vec![], Renewed::Unknown));
        assert_eq!((lessor.is_due(secs(9e9)), lessor.leads(), lessor.ending()), (false, false, 0));
    }

    #[test]
    fn an_id_granted_anew_does_not_inherit_the_old_timers() {
        let mut lessor = leader();
        lessor.granted(A, 10, Duration::ZERO);
        lessor.revoked(A);
        lessor.granted(A, 100, secs(1.0));
        assert_eq!(lessor.expired(secs(50.0), 9), []);
        assert_eq!(lessor.expired(secs(101.0), 9), [A]);
    }

    #[test]
    fn leases_that_come_and_go_leave_no_timers_behind() {
        let mut lessor = leader();
        for id in 1..50_000 {
            lessor.granted(LeaseId(id), 3600, Duration::ZERO);
            lessor.revoked(LeaseId(id));
        }
        assert!(lessor.expiries.0.len() < 2 * STALE_TIMERS_MAX);
    }

    #[test]
    fn the_end_of_many_leases_leaves_nothing_to_sweep_out() {
        let mut lessor = leader();
        let count = 20_000;
        for id in 1..=count {
            lessor.granted(LeaseId(id), 1 + id % 7, Duration::ZERO);
        }
        for _ in 0..count / 100 {
            let ended = lessor.expired(secs(7.0), 100);
            assert_eq!(ended.len(), 100);
            ended.into_iter().rev().for_each(|id| lessor.revoked(id));
            let waiting = lessor.expiries.0.len() + lessor.overdue.len();
            assert_eq!((waiting, lessor.offers.len()), (lessor.clocks.len(), 0));
        }
        assert!(lessor.clocks.is_empty());
    }

    #[test]
    fn the_longest_lease_and_a_nonsensical_one_do_no_harm() {
        let mut lessor = leader();
        lessor.granted(A, super::super::TTL_MAX, secs(1.0));
        lessor.granted(B, i64::MIN, secs(1.0));
        lessor.granted(LeaseId(3), i64::MAX, secs(1.0));
        assert_eq!(lessor.expired(secs(1.0), 9), [B]);
        assert_eq!(lessor.remaining(A, secs(1.0)), Some(Duration::from_secs(super::super::TTL_MAX as u64)));
        assert!(matches!(lessor.renew(A, Duration::MAX), Renewed::Ttl(_)));
    }
}
