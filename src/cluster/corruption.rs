//! Whose history is wrong, when members were asked for the hash of theirs.
//!
//! Members that have compacted at the same revision come to the same hash at the same revision, whatever they have carried out
//! since. Of those who do not, the ones are right that are a majority of all members. Where no hash has a majority, nobody can
//! say who is wrong, only that somebody is.
//!
//! Called by `server::corrupt_loop`, which asks. etcd: server/etcdserver/corrupt.go, where the periodic comparison takes the leader's
//! word for it.

use std::collections::BTreeMap;

use crate::types::{MemberId, Revision};

/// What a member says of its history up to some revision, the same for all that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who says it.
    pub member: MemberId,
    /// The hash.
    pub hash: u32,
    /// The compacted revision when it was made.
    pub compacted: Revision,
}

/// What comes of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs among those who answered and could be compared: so many, the asker among them.
    Equal {
        /// How many.
        members: usize,
    },
    /// These differ from a majority.
    Wrong(Vec<MemberId>),
    /// Some differ, and no majority agrees.
    Undecided {
        /// Those who did not answer could still make one.
        open: bool,
    },
}

/// Compares the asker's answer with those of others, in a cluster of so many members. Answers from before or after another
/// compaction do not count.
pub fn judge(own: Answer, others: &[Answer], members: usize) -> Verdict {
    let mut camps: BTreeMap<u32, Vec<MemberId>> = BTreeMap::from([(own.hash, vec![own.member])]);
    for other in others.iter().filter(|other| other.compacted == own.compacted && other.member != own.member) {
        camps.entry(other.hash).or_default().push(other.member);
    }
    let heard: usize = camps.values().map(Vec::len).sum();
    if camps.len() == 1 {
        return Verdict::Equal { members: heard };
    }
    let Some((right, _)) = camps.iter().find(|(_, camp)| camp.len() > members / 2) else {
        let largest = camps.values().map(Vec::len).max().unwrap_or(0);
        return Verdict::Undecided { open: largest + members.saturating_sub(heard) > members / 2 };
    };
    let wrong = camps.iter().filter(|(hash, _)| *hash != right).flat_map(|(_, camp)| camp.iter().copied());
    let mut wrong: Vec<MemberId> = wrong.collect();
    wrong.sort_unstable();
    Verdict::Wrong(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members 1, 2, … with these hashes, of a cluster of so many; the first asks. A hash of 0 was made after another compaction.
    fn verdict(hashes: &[u32], members: usize) -> Verdict {
        let answers = (1..).zip(hashes).map(|(id, hash)| Answer {
            member: MemberId(id),
            hash: *hash,
            compacted: Revision(if *hash == 0 { 5 } else { 3 }),
        });
        let answers: Vec<Answer> = answers.collect();
        judge(answers[0], &answers[1..], members)
    }

    fn wrong(ids: &[u64]) -> Verdict {
        Verdict::Wrong(ids.iter().copied().map(MemberId).collect())
    }

    #[test]
    fn the_majority_of_all_members_is_right_whoever_asks() {
        assert_eq!(verdict(&[7, 7, 7], 3), Verdict::Equal { members: 3 });
        assert_eq!(verdict(&[7, 7, 8], 3), wrong(&[3]));
        assert_eq!(verdict(&[8, 7, 7], 3), wrong(&[1]));
        assert_eq!(verdict(&[7, 8, 7, 9, 7], 5), wrong(&[2, 4]));
    }

    #[test]
    fn without_a_majority_nobody_is_named() {
        assert_eq!(verdict(&[7, 8], 2), Verdict::Undecided { open: false });
        assert_eq!(verdict(&[7, 8, 9], 3), Verdict::Undecided { open: false });
        assert_eq!(verdict(&[7, 7, 8, 8], 4), Verdict::Undecided { open: false });
        // The third was not heard; and nobody can help these.
        assert_eq!(verdict(&[7, 8], 3), Verdict::Undecided { open: true });
        assert_eq!(verdict(&[7, 8, 9, 6], 5), Verdict::Undecided { open: false });
    }

    #[test]
    fn what_cannot_be_compared_does_not_count() {
        assert_eq!(verdict(&[7, 0, 7], 3), Verdict::Equal { members: 2 });
        assert_eq!(verdict(&[7], 3), Verdict::Equal { members: 1 });
        assert_eq!(verdict(&[7, 0, 8], 3), Verdict::Undecided { open: true });
        // A member that stands twice in the answers has one voice.
        let own = Answer { member: MemberId(1), hash: 7, compacted: Revision(3) };
        assert_eq!(judge(own, &[Answer { hash: 8, ..own }], 3), Verdict::Equal { members: 1 });
    }
}
