//! Auto-compaction: what is to be forgotten without anybody asking for it, and when.
//!
//! Two rules, with etcd's timing:
//!   * *periodic* keeps what is younger than a period. The revision is looked at ten times in every period (or hour, if that is
//!     shorter), and what it was a period ago is what is compacted. The first time is after a whole period, then once in every
//!     period or hour;
//!   * *by revision* keeps so many revisions, and looks every five minutes.
//!
//! Every member follows the revision, for each may have to lead; only the leader is told to compact. Who is told and fails is
//! told again at the next look.
//!
//! Called by `server::compact_loop`, which knows the time. etcd: server/etcdserver/api/v3compactor.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::Revision;

/// Longest time between two compactions of the periodic rule.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Looks in one such interval.
const LOOKS: u32 = 10;
/// Shortest time between two looks: a shorter period is not worth more.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Time between two looks of the rule that counts revisions.
const REVISIONS_PAUSE: Duration = Duration::from_secs(300);

/// What of the past is kept, and what was done about the rest.
#[derive(Debug)]
pub struct AutoCompaction {
    rule: Rule,
    /// The revision that was compacted last.
    compacted: Revision,
}

#[derive(Debug)]
enum Rule {
    Periodic {
        period: Duration,
        /// The revision at the last looks, oldest first: a period and one look at the most.
        looks: VecDeque<Revision>,
        /// When it was compacted last; at first the beginning.
        since: Duration,
        /// A first whole period has passed.
        going: bool,
    },
    Revisions {
        kept: u64,
    },
}

impl AutoCompaction {
    /// Keeps what is younger than `period`, from `now` on, when the store is at `revision`.
    pub fn periodic(period: Duration, now: Duration, revision: Revision) -> AutoCompaction {
        let looks = VecDeque::from([revision]);
        AutoCompaction {
            rule: Rule::Periodic { period, looks, since: now, going: false },
            compacted: Revision::default(),
        }
    }

    /// Keeps so many revisions.
    pub fn revisions(kept: u64) -> AutoCompaction {
        AutoCompaction { rule: Rule::Revisions { kept }, compacted: Revision::default() }
    }

    /// Time between two looks.
    pub fn pause(&self) -> Duration {
        match &self.rule {
            Rule::Periodic { period, .. } => ((*period).min(INTERVAL_MAX) / LOOKS).max(PAUSE_MIN),
            Rule::Revisions { .. } => REVISIONS_PAUSE,
        }
    }

    /// One look, a pause after the one before: the revision that a leader is to compact now, if there is one.
    pub fn look(&mut self, now: Duration, revision: Revision, leads: bool) -> Option<Revision> {
        let pause = self.pause();
        let to = match &mut self.rule {
            Rule::Periodic { period, looks, since, going } => {
                let wait = if *going { (*period).min(INTERVAL_MAX) } else { *period };
                let to = looks[0];
                looks.push_back(revision);
                if looks.len() as u128 > period.as_nanos() / pause.as_nanos() + 1 {
                    looks.pop_front();
                }
                if !leads || now.saturating_sub(*since) < wait {
                    return None;
                }
                *going = true;
                to
            }
            Rule::Revisions { kept } => {
                let to = Revision(revision.0.saturating_sub(i64::try_from(*kept).unwrap_or(i64::MAX)));
                if !leads || to.0 <= 0 {
                    return None;
                }
                to
            }
        };
        (to != self.compacted).then_some(to)
    }

    /// What lies before `to` is forgotten, by this or by another.
    pub fn done(&mut self, now: Duration, to: Revision) {
        self.compacted = to;
        if let Rule::Periodic { since, .. } = &mut self.rule {
            *since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Lets the rule look for `minutes` while one revision is written in each, led by this member where `leads` says so, and
    /// carries out what it says. When it said what, in minutes.
    fn run(mut rule: AutoCompaction, minutes: u32, leads: impl Fn(u32) -> bool) -> Vec<(u32, i64)> {
        let mut said = Vec::new();
        let mut now = rule.pause();
        while now <= MINUTE * minutes {
            let minute = (now.as_secs() / 60) as u32;
            if let Some(to) = rule.look(now, Revision(1 + i64::from(minute)), leads(minute)) {
                said.push((minute, to.0));
                rule.done(now, to);
            }
            now += rule.pause();
        }
        said
    }

    fn periodic(minutes: u32) -> AutoCompaction {
        AutoCompaction::periodic(MINUTE * minutes, Duration::ZERO, Revision(1))
    }

    #[test]
    fn a_period_is_kept_and_compacted_once_in_a_period() {
        assert_eq!(run(periodic(10), 40, |_| true), [(10, 1), (20, 10), (30, 20), (40, 30)]);
    }

    #[test]
    fn a_long_period_is_kept_and_compacted_every_hour() {
        let said = run(periodic(120), 300, |_| true);
        assert_eq!(said, [(120, 1), (180, 55), (240, 115), (300, 175)]);
    }

    #[test]
    fn revisions_are_kept_and_compacted_every_five_minutes() {
        assert_eq!(run(AutoCompaction::revisions(7), 20, |_| true), [(10, 4), (15, 9), (20, 14)]);
        assert_eq!(run(AutoCompaction::revisions(u64::MAX), 20, |_| true), []);
    }

    #[test]
    fn who_begins_to_lead_compacts_what_is_old_by_then() {
        assert_eq!(run(periodic(10), 35, |minute| minute >= 25), [(25, 15), (35, 25)]);
        assert_eq!(run(AutoCompaction::revisions(7), 20, |minute| minute >= 16), [(20, 14)]);
    }

    #[test]
    fn what_failed_is_said_again_at_the_next_look_and_what_is_done_is_not() {
        let mut rule = periodic(10);
        for _ in 0..9 {
            assert_eq!(rule.look(9 * MINUTE, Revision(5), true), None);
        }
        assert_eq!(rule.look(10 * MINUTE, Revision(5), true), Some(Revision(1)));
        assert_eq!(rule.look(11 * MINUTE, Revision(5), true), Some(Revision(1)));
        rule.done(11 * MINUTE, Revision(1));
        assert_eq!(rule.look(12 * MINUTE, Revision(5), true), None);
        // Nothing was written since.
        rule.done(12 * MINUTE, Revision(5));
        assert_eq!(rule.look(40 * MINUTE, Revision(5), true), None);
    }
}
