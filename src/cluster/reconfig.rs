//! Whether a change of members is wise now: what is asked before it is proposed, and never when it is carried out.
//!
//! The answers depend on who has run and on who is connected to whom, which every member sees differently. They are etcd's:
//! a change must leave a majority of voters that have been started, and must not break a majority that is working. Unlike
//! the rules of [`membership`](super::membership) they can be switched off (`--strict-reconfig-check=false`), but for the one
//! about learners that lag: that is raft's, as only the leader's raft knows how far each is.

use std::time::Duration;

use super::Membership;
use crate::types::MemberId;

/// For how long a member must have been connected to count as healthy.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// Why a change is not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwise {
    /// A majority of the voters there would be have never been started.
    NotEnoughStarted,
    /// Too few voters have been connected to this member for a while.
    Unhealthy,
    /// The learner lacks too much of the log.
    LearnerNotReady,
}

/// Whether a member may be added by `own`. `connected` says for how long a member has been connected to it, if it is.
pub fn may_add(
    members: &Membership,
    is_learner: bool,
    own: MemberId,
    connected: impl Fn(MemberId) -> Option<Duration>,
) -> Result<(), Unwise> {
    let (voters, started) = count(members, None);
    // The one that is added votes as well, and is not started. The second of two is let in all the same: that is how a
    // cluster grows out of one member.
    let second = voters == 1 && started == 1;
    ensure(is_learner || second || started >= majority(voters + 1), Unwise::NotEnoughStarted)?;
    let mut voters = members.voters();
    ensure(voters.all(|(id, _)| id == own || is_healthy(connected(id))), Unwise::Unhealthy)
}

/// Whether `id` may be removed by `own`.
pub fn may_remove(
    members: &Membership,
    id: MemberId,
    own: MemberId,
    connected: impl Fn(MemberId) -> Option<Duration>,
) -> Result<(), Unwise> {
    if members.get(id).is_some_and(|member| member.is_learner) {
        return Ok(());
    }
    let (rest, started) = count(members, Some(id));
    ensure(started >= majority(rest), Unwise::NotEnoughStarted)?;
    // One that is down is no part of the majority that works.
    if id != own && connected(id).is_none() {
        return Ok(());
    }
    let healthy = members.voters().filter(|(voter, _)| *voter == own || is_healthy(connected(*voter))).count();
    let others = members.voters().count().saturating_sub(1);
    ensure(healthy > majority(others), Unwise::Unhealthy)
}

/// Whether `id` may be made a voter, as far as the number of started members is concerned.
pub fn may_promote(members: &Membership) -> Result<(), Unwise> {
    let (voters, started) = count(members, None);
    // The learner counts as one of the voters there will be, and as started.
    ensure(started + 1 >= majority(voters + 1), Unwise::NotEnoughStarted)
}

/// Voters but for `without`, and how many of them have been started.
fn count(members: &Membership, without: Option<MemberId>) -> (usize, usize) {
    let voters = || members.voters().filter(|(id, _)| Some(*id) != without);
    (voters().count(), voters().filter(|(_, member)| member.is_started()).count())
}

fn is_healthy(connected: Option<Duration>) -> bool {
    connected.is_some_and(|time| time >= HEALTHY_AFTER)
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

fn ensure(holds: bool, reason: Unwise) -> Result<(), Unwise> {
    if holds { Ok(()) } else { Err(reason) }
}

#[cfg(test)]
mod tests {
    use super::Unwise::*;
    use super::*;
    use crate::pb::everwatchpb::MemberRecord;

    /// Members 1, 2, … : `v` a voter, `V` one that was started, `l` a learner.
    fn members(kinds: &str) -> Membership {
        let mut members = Membership::default();
        for (id, kind) in (1..).zip(kinds.chars()) {
            let name = if kind == 'V' { format!("m{id}") } else { String::new() };
            members.restore(MemberRecord { id, name, is_learner: kind == 'l', ..Default::default() });
        }
        members
    }

    /// Member 1 is connected to `here`; to those above 10, less 10, for a moment only.
    fn connected(here: &[u64]) -> impl Fn(MemberId) -> Option<Duration> {
        move |id| match () {
            () if here.contains(&id.0) => Some(HEALTHY_AFTER),
            () if here.contains(&(id.0 + 10)) => Some(Duration::ZERO),
            () => None,
        }
    }

    fn add(kinds: &str, here: &[u64], is_learner: bool) -> Result<(), Unwise> {
        may_add(&members(kinds), is_learner, MemberId(1), connected(here))
    }

    fn remove(kinds: &str, here: &[u64], id: u64) -> Result<(), Unwise> {
        may_remove(&members(kinds), MemberId(id), MemberId(1), connected(here))
    }

    #[test]
    fn a_voter_is_added_while_a_majority_is_started_and_all_are_connected() {
        assert_eq!(add("V", &[], false), Ok(()), "the second member of a cluster");
        assert_eq!(add("Vv", &[2], false), Err(NotEnoughStarted));
        assert_eq!(add("VV", &[2], false), Ok(()));
        assert_eq!(add("VVv", &[2, 3], false), Err(NotEnoughStarted));
        assert_eq!(add("VVVv", &[2, 3, 4], false), Ok(()));
        assert_eq!(add("VVV", &[2], false), Err(Unhealthy));
        assert_eq!(add("VVV", &[2, 13], false), Err(Unhealthy));
        assert_eq!(add("VVVl", &[2, 3], false), Ok(()), "learners need not be connected");
        assert_eq!(add("Vv", &[2], true), Ok(()), "a learner changes no majority");
        assert_eq!(add("Vv", &[], true), Err(Unhealthy));
    }

    #[test]
    fn a_voter_is_removed_while_a_majority_stays() {
        assert_eq!(remove("V", &[], 1), Err(NotEnoughStarted), "the last one");
        assert_eq!(remove("VV", &[2], 2), Ok(()));
        assert_eq!(remove("Vv", &[2], 1), Err(NotEnoughStarted));
        assert_eq!(remove("Vv", &[], 2), Ok(()), "one that was never started");
        assert_eq!(remove("VVV", &[2, 3], 2), Ok(()));
        assert_eq!(remove("VVV", &[2], 2), Err(Unhealthy));
        assert_eq!(remove("VVV", &[2], 1), Err(Unhealthy));
        assert_eq!(remove("VVV", &[2], 3), Ok(()), "the one that is down");
        assert_eq!(remove("VVV", &[2, 13], 3), Err(Unhealthy), "one that has only just come back");
        assert_eq!(remove("VVVvv", &[2, 3], 2), Err(NotEnoughStarted));
        assert_eq!(remove("VVl", &[], 3), Ok(()), "a learner");
        assert_eq!(remove("VVV", &[2, 3], 9), Ok(()), "nobody: that is found out when it is carried out");
    }

    #[test]
    fn a_learner_is_promoted_while_a_majority_is_started() {
        assert_eq!(may_promote(&members("Vl")), Ok(()));
        assert_eq!(may_promote(&members("Vvl")), Ok(()));
        assert_eq!(may_promote(&members("Vvvl")), Err(NotEnoughStarted));
    }
}
