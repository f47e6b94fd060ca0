//! When a removed member may go: the rule that keeps its removal from taking a vote that the others still need.
//!
//! A change of members is carried out when it is committed, and each member hears of that in its own time. One that has not
//! heard counts the removed member as a voter, and may need its vote to find a leader: of two voters, the one that stays cannot
//! know that it is alone if the one that left took the news with it. So a removed member does not serve, but goes on voting
//! and acknowledging until a majority of those who vote now has its removal *on disk*: what is only in memory is forgotten
//! by a crash, and asked of the removed member again.
//!
//! It learns so by asking, in the words of [`founding`](super::founding): it asks every member that it knows, and every member
//! that those know, and counts who says `Removed`. One word of a peer that it was removed is enough to begin asking: a member
//! that was down meanwhile will not hear of it in any other way, since nobody talks to it.
//!
//! etcd's members leave a second after they carried out their removal, or on the first peer's word for it.
//!
//! Pure: the server asks, the simulator calls the same functions.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::MemberId;

/// What a member that was removed has heard of that.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Those who said that it was removed, with the voters as each knew them then.
    told: BTreeMap<MemberId, BTreeSet<MemberId>>,
}

impl Leaving {
    /// `teller` has this member's removal on disk, and these voters.
    pub fn told(&mut self, teller: MemberId, voters: impl IntoIterator<Item = MemberId>) {
        self.told.insert(teller, voters.into_iter().collect());
    }

    /// Whether a majority of the voters has it on disk, by what one of those voters knows of them.
    pub fn may_go(&self) -> bool {
        let settled = |(teller, voters): (&MemberId, &BTreeSet<MemberId>)| {
            let told = voters.iter().filter(|voter| self.told.contains_key(voter)).count();
            voters.contains(teller) && told > voters.len() / 2
        };
        self.told.iter().any(settled)
    }

    /// Voters that only others know. They are to be asked, too.
    pub fn named(&self) -> BTreeSet<MemberId> {
        self.told.values().flatten().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(told: &[(u64, &[u64])]) -> Leaving {
        let mut leaving = Leaving::default();
        for (teller, voters) in told {
            leaving.told(MemberId(*teller), voters.iter().copied().map(MemberId));
        }
        leaving
    }

    #[test]
    fn it_goes_when_a_majority_of_those_who_stay_has_its_removal_on_disk() {
        assert!(!leaving(&[]).may_go());
        assert!(leaving(&[(2, &[2])]).may_go(), "the other of two is alone now");
        assert!(!leaving(&[(2, &[2, 3])]).may_go(), "two of two are needed");
        assert!(leaving(&[(2, &[2, 3]), (3, &[2, 3])]).may_go());
        assert!(leaving(&[(2, &[2, 3, 4]), (4, &[2, 3, 4])]).may_go());
        assert!(!leaving(&[(5, &[2])]).may_go(), "a learner's word about voters who have said nothing");
    }

    #[test]
    fn those_who_were_replaced_meanwhile_need_not_be_heard() {
        let mut heard = leaving(&[(2, &[2, 3, 4])]);
        heard.told(MemberId(5), [5, 6, 2].map(MemberId));
        assert!(heard.may_go(), "5 and 2 of 2, 5 and 6");
        assert_eq!(heard.named(), [2, 3, 4, 5, 6].map(MemberId).into());
    }
}
