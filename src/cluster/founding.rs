//! Whether a member without data may take part: the rule that keeps one that lost its disk from starting as if it were new.
//!
//! Such a member forgot its votes and what it acknowledged. If it voted and acknowledged again, with an empty log, a write that
//! counted on it could be lost: A has it and loses its disk, B has it and is cut off, C is behind; A and C would make a majority
//! that never heard of it. So whoever starts without data asks the other members, again and again, and does nothing else until
//! [`decide`] says that it may. What they answer is found by [`answer`] and [`confirmed`]:
//!
//! | answer     | means                                                                                              |
//! |------------|----------------------------------------------------------------------------------------------------|
//! | `Fresh`    | the one who answers has no entry and knows of no leader: as far as it can tell nothing has begun    |
//! | `HasRun`   | the table of members says that the asker has run. True for ever, so even an old table may say it     |
//! | `Removed`  | the asker's id was removed; an id never returns                                                     |
//! | `NeverRan` | the cluster runs, the asker never told it that it does, and an entry was committed *without the asker* after the question: whatever earlier entries it may have acknowledged, a majority has them without it |
//! | `Unsure`   | the cluster runs, and that is all the answering member can say: it knows no leader, or there is no majority |
//!
//! A founder may start when somebody says `NeverRan`, or when a majority of the founders, itself included, is fresh, every
//! other one was asked, and none of those who answered is of a running cluster. The price: a founder that starts for the first
//! time while the others that ran have no majority waits for one of them to return, for they cannot tell it from one that lost its disk.
//!
//! What remains. Nobody can know what happened among members who all do not answer: if the cluster ran without some founders
//! ever taking part, and one that ran lost its disk, and all the others that ran are out of reach while it starts, then it
//! founds the cluster anew together with those who never took part. The same if as many as make a majority lose their disks at once.
//! And with two voters, of whom the other is always needed, the word of the other is taken without a commit (there can be
//! none): wrong only if a third voter was added, by an entry that the other has not carried out, before it had heard
//! that the asker runs.
//!
//! Pure: the server asks and answers, the simulator calls the same functions.

use super::Membership;
use crate::pb::everwatchpb::Standing;
use crate::types::MemberId;

/// What a member says about another that starts without data. See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// I am new myself.
    Fresh,
    /// You have run.
    HasRun,
    /// You were removed.
    Removed,
    /// The cluster runs and does not count on you.
    NeverRan,
    /// The cluster runs; I cannot say more.
    Unsure,
}

/// What is known of one of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Heard {
    /// It has not been asked to the end yet.
    #[default]
    Nothing,
    /// It was asked and did not answer.
    Silence,
    /// It said so, when it was asked last.
    Said(Answer),
}

/// What a member without data wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To found a cluster with others.
    Found,
    /// To join one that runs.
    Join,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may take part.
    Start,
    /// It may not, and never will with this id; `removed` or not.
    Refuse {
        /// Because it was removed. Otherwise because it has run, and its data is gone.
        removed: bool,
    },
    /// It cannot be known yet.
    KeepAsking,
}

/// What a member without data may do, by what it heard from all `others` (one for each).
pub fn decide(wish: Wish, others: &[Heard]) -> Decision {
    let said = |answer| others.contains(&Heard::Said(answer));
    if said(Answer::HasRun) || said(Answer::Removed) {
        return Decision::Refuse { removed: !said(Answer::HasRun) };
    }
    if said(Answer::NeverRan) {
        return Decision::Start;
    }
    let fresh = 1 + others.iter().filter(|heard| **heard == Heard::Said(Answer::Fresh)).count();
    let founders = others.len() + 1;
    let majority = founders / 2 + 1;
    let runs = said(Answer::Unsure) || wish == Wish::Join;
    // Somebody who is slow to answer may know better than those who are new.
    if runs || others.contains(&Heard::Nothing) || fresh < majority {
        return Decision::KeepAsking;
    }
    Decision::Start
}

/// What a member says about `asker` at once. `None`: that has to be confirmed first, by an entry that is committed and carried
/// out here after the question. `fresh`: the log here has nothing beyond the founding, and no leader was ever known.
pub fn answer(asker: MemberId, fresh: bool, members: &Membership) -> Option<Answer> {
    if has_run(asker, members) {
        return Some(Answer::HasRun);
    }
    if members.was_removed(asker) {
        return Some(Answer::Removed);
    }
    fresh.then_some(Answer::Fresh)
}

/// What a member says about `asker` once that is confirmed.
pub fn confirmed(asker: MemberId, members: &Membership) -> Answer {
    if has_run(asker, members) {
        Answer::HasRun
    } else if members.get(asker).is_some() {
        Answer::NeverRan
    } else {
        Answer::Removed
    }
}

/// Whether `own` and `asker` are the only voters: nothing can be committed without the asker, and nothing was without `own`.
pub fn depend_on_each_other(own: MemberId, asker: MemberId, voters: &[u64]) -> bool {
    voters.len() == 2 && voters.contains(&own.0) && voters.contains(&asker.0)
}

/// A member tells its client URLs when it runs for the first time.
fn has_run(id: MemberId, members: &Membership) -> bool {
    members.get(id).is_some_and(|member| !member.client_urls.is_empty())
}

impl Answer {
    /// As it travels.
    pub fn to_wire(self) -> Standing {
        match self {
            Answer::Fresh => Standing::Fresh,
            Answer::HasRun => Standing::HasRun,
            Answer::Removed => Standing::Removed,
            Answer::NeverRan => Standing::NeverRan,
            Answer::Unsure => Standing::Unsure,
        }
    }

    /// As it came. Something that this release does not know says nothing.
    pub fn from_wire(standing: Standing) -> Answer {
        match standing {
            Standing::Fresh => Answer::Fresh,
            Standing::HasRun => Answer::HasRun,
            Standing::Removed => Answer::Removed,
            Standing::NeverRan => Answer::NeverRan,
            Standing::Unsure => Answer::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::everwatchpb::MemberRecord;

    /// One letter for each of the others: `.` not asked yet, `-` silent, then the answers.
    fn decision(wish: Wish, others: &str) -> Decision {
        let heard = |letter| match letter {
            '.' => Heard::Nothing,
            '-' => Heard::Silence,
            'f' => Heard::Said(Answer::Fresh),
            'r' => Heard::Said(Answer::HasRun),
            'x' => Heard::Said(Answer::Removed),
            'n' => Heard::Said(Answer::NeverRan),
            _ => Heard::Said(Answer::Unsure),
        };
        decide(wish, &others.chars().map(heard).collect::<Vec<_>>())
    }

    #[test]
    fn founders_start_when_a_majority_is_new_and_nobody_knows_better() {
        use Decision::{KeepAsking, Refuse, Start};
        let (run, gone) = (Refuse { removed: false }, Refuse { removed: true });
        for (others, expected) in [
            // Alone; two; three; five.
            ("", Start),
            ("f", Start),
            ("-", KeepAsking),
            ("f-", Start),
            ("ff", Start),
            ("--", KeepAsking),
            ("f---", KeepAsking),
            ("ff--", Start),
            // Who has not been asked to the end may know better.
            ("f.", KeepAsking),
            ("..", KeepAsking),
            // One that runs and cannot say more: A wiped, C new, B cut off from both but for this.
            ("fu", KeepAsking),
            ("uu", KeepAsking),
            // Running clusters that can.
            ("n.", Start),
            ("nu", Start),
            ("fn", Start),
            ("r.", run),
            ("fr", run),
            ("nr", run),
            ("x-", gone),
            ("xr", run),
        ] {
            assert_eq!(decision(Wish::Found, others), expected, "{others:?}");
        }
    }

    #[test]
    fn whoever_joins_needs_the_word_of_the_cluster() {
        for (others, expected) in [
            ("f", Decision::KeepAsking),
            ("ff", Decision::KeepAsking),
            ("u-", Decision::KeepAsking),
            ("nu", Decision::Start),
            ("nr", Decision::Refuse { removed: false }),
            ("-x", Decision::Refuse { removed: true }),
        ] {
            assert_eq!(decision(Wish::Join, others), expected, "{others:?}");
        }
    }

    #[test]
    fn the_table_of_members_knows_who_has_run() {
        let [new, ran, removed, stranger] = [1, 2, 3, 4].map(MemberId);
        let mut members = Membership::default();
        members.restore(MemberRecord { id: new.0, name: "named in advance".into(), ..Default::default() });
        members.restore(MemberRecord { id: ran.0, client_urls: vec!["http://c:1".into()], ..Default::default() });
        members.restore_removed(removed);
        let both = |asker| (answer(asker, true, &members), answer(asker, false, &members), confirmed(asker, &members));
        assert_eq!(both(new), (Some(Answer::Fresh), None, Answer::NeverRan));
        assert_eq!(both(ran), (Some(Answer::HasRun), Some(Answer::HasRun), Answer::HasRun));
        assert_eq!(both(removed), (Some(Answer::Removed), Some(Answer::Removed), Answer::Removed));
        assert_eq!(both(stranger), (Some(Answer::Fresh), None, Answer::Removed));

        assert!(depend_on_each_other(new, ran, &[1, 2]));
        for voters in [&[1][..], &[1, 2, 3], &[2], &[2, 3], &[1, 3], &[]] {
            assert!(!depend_on_each_other(new, ran, voters), "{voters:?}");
        }
    }
}
