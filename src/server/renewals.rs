//! Renewals of leases, and questions for what is left of them, where the leader deals with them.
//!
//! The lessor answers at once, but an answer of its counts only if this member still leads in the same term after a read that began
//! later was confirmed: after a pause it may have been deposed long ago without having heard of it, and the leases may be gone
//! (etcd #15247). So a renewal goes like this:
//!
//! ```text
//!   arrived ──▶ lessor ──▶ a read is confirmed, and carried out here ──▶ the answer
//!                │  ▲                    │
//!                │  ├────────────────────┘  unknown: once more, it may have been granted and not been carried out here
//!                ▼  │
//!           a recorded rest is taken back through the log
//! ```
//!
//! What stands at the same place goes on together: all that arrives between two turns, of whomever, shares a read and an entry.
//! Leases that are not there any more when the read is confirmed are unknown, whatever the lessor said before.
//!
//! Whoever asks has an answer within the time that the core gives to requests, and at the end of the turn in which leadership is
//! lost: [`Renewal::Unavailable`] says that asking again, perhaps another member, is all that can be done.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::error::Error;
use crate::lease::{Lessor, Renewed, Table};
use crate::pb::everwatchpb::LeaseRemaining;
use crate::pb::everwatchpb::lease_remaining::Remaining as Rest;
use crate::peer::{Remaining, Renewal};
use crate::state::applied::Reply;
use crate::types::{LeaseId, Term};

/// Leases whose records one command clears.
const LEASES_PER_COMMAND: usize = 500;
/// Leases that may be asked for at once. Beyond this the answer is that it is unavailable: whoever asked comes again.
const WAITING_MAX: usize = 200_000;

/// What has to happen before it can go on.
#[derive(Debug)]
pub(crate) enum Need {
    /// A read, to be confirmed from now on.
    Read(oneshot::Sender<Result<(), Error>>),
    /// A command, to be carried out here. What has been carried out by now is to be added.
    Command(LeaseRemaining, oneshot::Sender<Result<Reply, Error>>),
}

/// All that waits on this member.
#[derive(Default)]
pub(crate) struct Renewals {
    /// By the order of arrival, which is that of their deadlines.
    askers: BTreeMap<u64, Asker>,
    askers_made: u64,
    /// For the lessor.
    open: Vec<Item>,
    batches: Vec<Batch>,
    /// Questions that no read was asked for yet, and those that one was asked for.
    questions: Vec<Question>,
    asked: Vec<Questions>,
    /// Leases that somebody waits for.
    waiting: usize,
}

/// One who renews.
struct Asker {
    deadline: Duration,
    /// In the order of the ids; unavailable where there is none yet.
    answers: Vec<Renewal>,
    missing: usize,
    reply: oneshot::Sender<Vec<Renewal>>,
}

/// One lease that somebody renews.
#[derive(Clone, Copy)]
struct Item {
    asker: u64,
    /// Its place among those of the asker.
    place: usize,
    id: LeaseId,
    /// What is to be confirmed.
    answer: Renewal,
    /// Everything that was committed when it arrived has been carried out here.
    caught_up: bool,
}

/// Those that wait for the same.
struct Batch {
    /// The term in which the lessor was asked.
    term: Term,
    items: Vec<Item>,
    waits: Waits,
}

enum Waits {
    Recorded(oneshot::Receiver<Result<Reply, Error>>),
    Confirmed(oneshot::Receiver<Result<(), Error>>),
}

/// What is left of a lease?
struct Question {
    id: LeaseId,
    reply: oneshot::Sender<Remaining>,
}

/// Questions that wait for the same read.
struct Questions {
    term: Term,
    questions: Vec<Question>,
    confirmed: oneshot::Receiver<Result<(), Error>>,
}

impl Renewals {
    /// Somebody renews leases until `deadline`, which is not before that of anybody who came earlier. There will be one answer per
    /// id, in their order.
    pub(crate) fn renew(&mut self, ids: Vec<LeaseId>, deadline: Duration, reply: oneshot::Sender<Vec<Renewal>>) {
        let answers = vec![Renewal::Unavailable; ids.len()];
        if ids.is_empty() || self.waiting + ids.len() > WAITING_MAX {
            let _ = reply.send(answers);
            return;
        }
        self.waiting += ids.len();
        self.askers_made += 1;
        let asker = self.askers_made;
        let item = |(place, id)| Item { asker, place, id, answer: Renewal::Unavailable, caught_up: false };
        self.askers.insert(asker, Asker { deadline, missing: ids.len(), answers, reply });
        self.open.extend(ids.into_iter().enumerate().map(item));
    }

    /// Somebody asks what is left of a lease. The answer takes as long as a read.
    pub(crate) fn time_to_live(&mut self, id: LeaseId, reply: oneshot::Sender<Remaining>) {
        if self.waiting >= WAITING_MAX {
            let _ = reply.send(Remaining::Unavailable);
            return;
        }
        self.waiting += 1;
        self.questions.push(Question { id, reply });
    }

    /// Whether nobody waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.open.is_empty() && self.batches.is_empty()
    }

    /// Goes on with all that can go on: `leads` is the term in which this member leads, with a lessor that knows its leases, and
    /// `leases` are those that are carried out here.
    pub(crate) fn turn(
        &mut self,
        leads: Option<Term>,
        lessor: &mut Lessor,
        leases: &Table,
        now: Duration,
    ) -> Vec<Need> {
        self.resume(leads, leases);
        self.answer_questions(leads, lessor, leases, now);
        let open = std::mem::take(&mut self.open);
        let questions = std::mem::take(&mut self.questions);
        let Some(term) = leads else {
            open.into_iter().for_each(|item| self.settle(item, Renewal::Unavailable));
            questions.into_iter().for_each(|question| self.tell(question, Remaining::Unavailable));
            return Vec::new();
        };
        let mut needs = Vec::new();
        let (mut recorded, mut answered) = (Vec::new(), Vec::new());
        for item in open {
            match lessor.renew(item.id, now) {
                Renewed::Ttl(ttl) => answered.push(Item { answer: Renewal::Ttl(ttl), ..item }),
                Renewed::Unknown => answered.push(Item { answer: Renewal::Unknown, ..item }),
                Renewed::NeedsLog => recorded.push(item),
            }
        }
        // A rest is on record: the next leader would let the lease run out early if that were not taken back first.
        for items in recorded.chunks(LEASES_PER_COMMAND) {
            let leases = items.iter().map(|item| Rest { id: item.id.0, remaining_ms: 0 }).collect();
            let (reply, outcome) = oneshot::channel();
            needs.push(Need::Command(LeaseRemaining { term: term.0, leases, ..Default::default() }, reply));
            self.batches.push(Batch { term, items: items.to_vec(), waits: Waits::Recorded(outcome) });
        }
        if !answered.is_empty() {
            let (reader, confirmed) = oneshot::channel();
            needs.push(Need::Read(reader));
            self.batches.push(Batch { term, items: answered, waits: Waits::Confirmed(confirmed) });
        }
        if !questions.is_empty() {
            let (reader, confirmed) = oneshot::channel();
            needs.push(Need::Read(reader));
            self.asked.push(Questions { term, questions, confirmed });
        }
        needs
    }

    /// Tells whoever has waited long enough what is settled until now.
    pub(crate) fn expire(&mut self, now: Duration) {
        while let Some(first) = self.askers.first_entry()
            && first.get().deadline <= now
        {
            let asker = first.remove();
            self.answer(asker);
        }
    }

    /// Nobody gets an answer any more.
    pub(crate) fn stop(&mut self) {
        *self = Renewals::default();
    }

    /// Those for whom it has happened what they waited for.
    fn resume(&mut self, leads: Option<Term>, leases: &Table) {
        for mut batch in std::mem::take(&mut self.batches) {
            let outcome = match &mut batch.waits {
                Waits::Recorded(outcome) => came_true(outcome),
                Waits::Confirmed(outcome) => came_true(outcome),
            };
            if leads != Some(batch.term) || outcome == Some(false) {
                batch.items.into_iter().for_each(|item| self.settle(item, Renewal::Unavailable));
                continue;
            }
            match (outcome, &batch.waits) {
                (None, _) => self.batches.push(batch),
                (Some(_), Waits::Recorded(_)) => self.open.append(&mut batch.items),
                (Some(_), Waits::Confirmed(_)) => batch.items.into_iter().for_each(|item| self.confirmed(item, leases)),
            }
        }
    }

    /// This member led after the lessor had said so.
    fn confirmed(&mut self, item: Item, leases: &Table) {
        // A grant may have been committed and not yet carried out here when the lessor was asked.
        if item.answer == Renewal::Unknown && !item.caught_up {
            self.open.push(Item { caught_up: true, ..item });
            return;
        }
        // Whoever revoked a lease may have been told so before it was renewed, and before that was carried out here: then it is not
        // renewed, and saying that it is would keep a holder in its belief (etcd #20615).
        let exists = leases.exists(item.id);
        self.settle(item, if exists { item.answer } else { Renewal::Unknown });
    }

    fn answer_questions(&mut self, leads: Option<Term>, lessor: &Lessor, leases: &Table, now: Duration) {
        for mut asked in std::mem::take(&mut self.asked) {
            let outcome = came_true(&mut asked.confirmed);
            let counts = leads == Some(asked.term) && outcome != Some(false);
            if counts && outcome.is_none() {
                self.asked.push(asked);
                continue;
            }
            for question in asked.questions {
                let left = if counts { left(question.id, lessor, leases, now) } else { Remaining::Unavailable };
                self.tell(question, left);
            }
        }
    }

    fn settle(&mut self, item: Item, answer: Renewal) {
        // An asker whose time is over has its answers.
        let Some(asker) = self.askers.get_mut(&item.asker) else { return };
        asker.answers[item.place] = answer;
        asker.missing -= 1;
        if asker.missing == 0
            && let Some(asker) = self.askers.remove(&item.asker)
        {
            self.answer(asker);
        }
    }

    fn answer(&mut self, asker: Asker) {
        self.waiting -= asker.answers.len();
        // One that has gone away does not care.
        let _ = asker.reply.send(asker.answers);
    }

    fn tell(&mut self, question: Question, left: Remaining) {
        self.waiting -= 1;
        // As above.
        let _ = question.reply.send(left);
    }
}

/// Whether it happened; nothing while it still may.
fn came_true<T>(outcome: &mut oneshot::Receiver<Result<T, Error>>) -> Option<bool> {
    match outcome.try_recv() {
        Ok(outcome) => Some(outcome.is_ok()),
        Err(TryRecvError::Empty) => None,
        Err(TryRecvError::Closed) => Some(false),
    }
}

fn left(id: LeaseId, lessor: &Lessor, leases: &Table, now: Duration) -> Remaining {
    let (Some(left), Some(lease)) = (lessor.remaining(id, now), leases.get(id)) else { return Remaining::Unknown };
    // A new leader lets leases run a little longer, for renewals that it could not hear. Nobody may count on that.
    Remaining::Left { ttl: (left.as_secs() as i64).min(lease.ttl), granted_ttl: lease.ttl }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::backend::Batch as Rows;
    use crate::types::Index;

    const TERM: Option<Term> = Some(Term(2));

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A leader of some leases, all of 60 seconds.
    struct Leader {
        renewals: Renewals,
        lessor: Lessor,
        leases: Table,
    }

    impl Leader {
        fn of(ids: &[i64]) -> Leader {
            let (mut lessor, mut leases) = (Lessor::default(), Table::default());
            ids.iter().for_each(|id| leases.grant(LeaseId(*id), 60, Index(1), &mut Rows::default()).unwrap());
            lessor.promote(&leases, at(0), at(1));
            Leader { renewals: Renewals::default(), lessor, leases }
        }

        fn renew(&mut self, ids: &[i64]) -> oneshot::Receiver<Vec<Renewal>> {
            let (reply, answers) = oneshot::channel();
            self.renewals.renew(ids.iter().copied().map(LeaseId).collect(), at(9), reply);
            answers
        }

        fn turn(&mut self, leads: Option<Term>) -> Vec<Need> {
            self.renewals.turn(leads, &mut self.lessor, &self.leases, at(5))
        }

        /// A turn that asks for nothing but a read, which is confirmed. What the next turn asks for.
        fn confirm(&mut self) -> Vec<Need> {
            let mut needs = self.turn(TERM);
            let (Some(Need::Read(reader)), None) = (needs.pop(), needs.pop()) else {
                panic!("a read, and nothing else")
            };
            reader.send(Ok(())).unwrap();
            self.turn(TERM)
        }
    }

    #[test]
    fn what_arrives_together_shares_a_read_and_is_not_answered_before() {
        let mut leader = Leader::of(&[1, 2, 3]);
        let (mut first, mut second) = (leader.renew(&[1, 2]), leader.renew(&[3]));
        let needs = leader.turn(TERM);
        let [Need::Read(_)] = &needs[..] else { panic!("one read: {needs:?}") };
        assert!(leader.turn(TERM).is_empty() && first.try_recv().is_err());
        let Some(Need::Read(reader)) = needs.into_iter().next() else { unreachable!() };
        reader.send(Ok(())).unwrap();
        assert!(leader.turn(TERM).is_empty() && leader.renewals.is_idle());
        assert_eq!(first.try_recv(), Ok(vec![Renewal::Ttl(60), Renewal::Ttl(60)]));
        assert_eq!(second.try_recv(), Ok(vec![Renewal::Ttl(60)]));
    }

    #[test]
    fn a_lease_that_was_revoked_meanwhile_is_not_renewed() {
        let mut leader = Leader::of(&[1, 2]);
        let mut answers = leader.renew(&[1, 2]);
        let needs = leader.turn(TERM);
        leader.leases.revoke(LeaseId(1), &mut Rows::default()).unwrap();
        leader.lessor.revoked(LeaseId(1));
        for need in needs {
            let Need::Read(reader) = need else { panic!("{need:?}") };
            reader.send(Ok(())).unwrap();
        }
        assert!(leader.turn(TERM).is_empty());
        assert_eq!(answers.try_recv(), Ok(vec![Renewal::Unknown, Renewal::Ttl(60)]));
    }

    #[test]
    fn an_unknown_lease_is_looked_at_again_when_all_that_was_committed_is_there() {
        let mut leader = Leader::of(&[]);
        let (mut granted, mut unknown) = (leader.renew(&[1]), leader.renew(&[2]));
        let again = leader.confirm();
        assert!(matches!(&again[..], [Need::Read(_)]) && granted.try_recv().is_err());
        drop(again);
        leader.turn(TERM);
        assert_eq!(unknown.try_recv(), Ok(vec![Renewal::Unavailable]), "its second read came to nothing");

        let (mut granted, mut unknown) = (leader.renew(&[1]), leader.renew(&[2]));
        let needs = leader.turn(TERM);
        leader.leases.grant(LeaseId(1), 60, Index(1), &mut Rows::default()).unwrap();
        leader.lessor.granted(LeaseId(1), 60, at(5));
        let mut needs = needs;
        for _ in 0..2 {
            let Some(Need::Read(reader)) = needs.pop() else { panic!("a read") };
            reader.send(Ok(())).unwrap();
            needs = leader.turn(TERM);
        }
        assert_eq!(granted.try_recv(), Ok(vec![Renewal::Ttl(60)]));
        assert_eq!(unknown.try_recv(), Ok(vec![Renewal::Unknown]));
    }

    #[test]
    fn recorded_rests_are_taken_back_first_together() {
        let ids: Vec<i64> = (1..=600).collect();
        let mut leader = Leader::of(&ids);
        assert_eq!(leader.lessor.checkpoints(at(45), 1000).len(), 600);
        let mut answers = [leader.renew(&ids[..300]), leader.renew(&ids[300..])];
        let commands = leader.turn(TERM);
        let sizes: Vec<usize> = commands
            .into_iter()
            .map(|need| {
                let Need::Command(command, reply) = need else { panic!("{need:?}") };
                assert_eq!(command.term, 2);
                for rest in &command.leases {
                    leader.lessor.remaining_changed(LeaseId(rest.id), None, at(5));
                }
                reply.send(Ok(Reply::Done)).unwrap();
                command.leases.len()
            })
            .collect();
        assert_eq!(sizes, [500, 100]);
        assert!(leader.confirm().is_empty());
        assert!(answers.iter_mut().all(|answers| answers.try_recv() == Ok(vec![Renewal::Ttl(60); 300])));
    }

    #[test]
    fn whoever_does_not_lead_any_more_says_so_at_once() {
        for (leads, confirms) in [(None, false), (None, true), (Some(Term(3)), true)] {
            let mut leader = Leader::of(&[1]);
            let mut answers = leader.renew(&[1]);
            let (reply, mut left) = oneshot::channel();
            leader.renewals.time_to_live(LeaseId(1), reply);
            let needs = leader.turn(TERM);
            for need in needs {
                let Need::Read(reader) = need else { panic!("{need:?}") };
                if confirms {
                    reader.send(Ok(())).unwrap();
                }
            }
            assert!(leader.turn(leads).is_empty() && leader.renewals.is_idle());
            assert_eq!(answers.try_recv(), Ok(vec![Renewal::Unavailable]));
            assert_eq!(left.try_recv(), Ok(Remaining::Unavailable));
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut leader = Leader::of(&[1]);
        let mut answers = leader.renew(&[1]);
        let needs = leader.turn(TERM);
        leader.renewals.expire(at(8));
        assert!(answers.try_recv().is_err());
        leader.renewals.expire(at(9));
        assert_eq!(answers.try_recv(), Ok(vec![Renewal::Unavailable]));
        drop(needs);
        leader.turn(TERM);
        assert!(leader.renewals.is_idle());

        let mut last = leader.renew(&vec![1; WAITING_MAX]);
        let mut beyond = leader.renew(&[1]);
        assert!(last.try_recv().is_err());
        assert_eq!(beyond.try_recv(), Ok(vec![Renewal::Unavailable]));
    }

    #[test]
    fn what_is_left_is_never_more_than_was_granted() {
        let mut leader = Leader::of(&[1]);
        for (id, now, expected) in [
            (1, 0, Remaining::Left { ttl: 60, granted_ttl: 60 }),
            (1, 11, Remaining::Left { ttl: 50, granted_ttl: 60 }),
            (2, 11, Remaining::Unknown),
        ] {
            let (reply, mut left) = oneshot::channel();
            leader.renewals.time_to_live(LeaseId(id), reply);
            let Some(Need::Read(reader)) = leader.turn(TERM).pop() else { panic!("a read") };
            assert!(left.try_recv().is_err());
            reader.send(Ok(())).unwrap();
            leader.renewals.turn(TERM, &mut leader.lessor, &leader.leases, at(now));
            assert_eq!(left.try_recv(), Ok(expected));
        }
    }
}
