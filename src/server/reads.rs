//! Reads that wait to be linearizable: until a quorum has said that the leader still leads, and this member has applied all that
//! was committed then.
//!
//! Many reads share a round. A read joins a round that starts after it arrived, never one under way: that one may have been
//! answered as of before. Two rounds may be under way, so that a read waits little more than one. A round that gets no answer is
//! asked again with a context that was never used before (a repeated context can release reads of a deposed leader at an old
//! index: etcd #20418), and any of its contexts may answer it. After a change of leader or term no earlier context counts, and the
//! reads of all rounds are asked again; etcd fails them, and clients repeat them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::Error;
use crate::raft::ReadContext;
use crate::types::Index;

/// Rounds under way at once.
const ROUNDS_MAX: usize = 2;
/// How long a round waits before it is asked again, as in etcd.
const RETRY_AFTER: Duration = Duration::from_millis(500);

type Reader = oneshot::Sender<Result<(), Error>>;

struct Round {
    contexts: Vec<ReadContext>,
    /// With their times of arrival.
    readers: Vec<(Duration, Reader)>,
    asked: Duration,
}

/// All waiting reads of this member.
#[derive(Default)]
pub(crate) struct Reads {
    /// Not asked yet, with the time of arrival.
    arrived: Vec<(Duration, Reader)>,
    rounds: Vec<Round>,
    /// Confirmed, but not yet applied here; with the times of arrival.
    confirmed: BTreeMap<Index, Vec<(Duration, Reader)>>,
}

impl Reads {
    /// Somebody wants to read.
    pub(crate) fn add(&mut self, now: Duration, reader: Reader) {
        self.arrived.push((now, reader));
    }

    /// Starts a round if reads wait for one and asks again where no answer came. `ask` puts a question to the leader and gives
    /// its context, or nothing when there is no leader to ask.
    pub(crate) fn ask(&mut self, now: Duration, mut ask: impl FnMut() -> Option<ReadContext>) {
        for round in self.rounds.iter_mut().filter(|round| now >= round.asked + RETRY_AFTER) {
            round.asked = now;
            round.contexts.extend(ask());
        }
        if !self.arrived.is_empty()
            && self.rounds.len() < ROUNDS_MAX
            && let Some(context) = ask()
        {
            let readers = std::mem::take(&mut self.arrived);
            self.rounds.push(Round { contexts: vec![context], readers, asked: now });
        }
    }

    /// The leader confirmed the round of `context`: what was committed up to `index` is what it may see.
    pub(crate) fn confirm(&mut self, context: &ReadContext, index: Index) {
        if let Some(at) = self.rounds.iter().position(|round| round.contexts.contains(context)) {
            let round = self.rounds.remove(at);
            self.confirmed.entry(index).or_default().extend(round.readers);
        }
    }

    /// Everything up to `applied` is carried out here: releases whoever waited for that.
    pub(crate) fn applied(&mut self, applied: Index) {
        while let Some(entry) = self.confirmed.first_entry() {
            if *entry.key() > applied {
                break;
            }
            for (_, reader) in entry.remove() {
                let _ = reader.send(Ok(()));
            }
        }
    }

    /// Another leader or term: what was asked may be answered by one who did not lead any more. It is asked anew.
    pub(crate) fn leader_changed(&mut self) {
        let late = std::mem::take(&mut self.arrived);
        self.arrived.extend(self.rounds.drain(..).flat_map(|round| round.readers).chain(late));
    }

    /// Fails whoever has waited for `limit`.
    pub(crate) fn expire(&mut self, now: Duration, limit: Duration) {
        let rounds = self.rounds.iter_mut().map(|round| &mut round.readers);
        // A member that is far behind may not get to what was confirmed for minutes.
        let all = rounds.chain(self.confirmed.values_mut()).chain([&mut self.arrived]);
        for (_, reader) in all.flat_map(|waiting| waiting.extract_if(.., |(arrived, _)| now >= *arrived + limit)) {
            let _ = reader.send(Err(Error::Timeout));
        }
        self.rounds.retain(|round| !round.readers.is_empty());
    }

    /// Fails everybody.
    pub(crate) fn stop(&mut self) {
        let rounds = self.rounds.drain(..).flat_map(|round| round.readers);
        let confirmed = std::mem::take(&mut self.confirmed).into_values().flatten();
        for (_, reader) in self.arrived.drain(..).chain(rounds).chain(confirmed) {
            let _ = reader.send(Err(Error::Stopped));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemberId;

    #[test]
    fn a_confirmed_read_waits_for_apply_and_no_longer_than_its_limit() {
        let at = Duration::from_secs;
        let mut reads = Reads::default();
        let context = |counter| ReadContext { member: MemberId(1), boot: 1, counter };
        let (first, mut early) = oneshot::channel();
        let (second, mut late) = oneshot::channel();
        reads.add(at(0), first);
        reads.ask(at(0), || Some(context(1)));
        reads.add(at(1), second);
        reads.ask(at(1), || Some(context(2)));
        reads.confirm(&context(1), Index(5));
        reads.confirm(&context(2), Index(6));
        reads.applied(Index(4));
        assert!(early.try_recv().is_err() && late.try_recv().is_err());
        reads.applied(Index(5));
        assert_eq!(early.try_recv(), Ok(Ok(())));
        reads.expire(at(7), at(7));
        assert!(late.try_recv().is_err());
        reads.expire(at(8), at(7));
        assert_eq!(late.try_recv(), Ok(Err(Error::Timeout)));
    }

    #[test]
    fn after_a_change_of_leader_only_a_new_question_counts() {
        let now = Duration::ZERO;
        let mut reads = Reads::default();
        let context = |counter| ReadContext { member: MemberId(1), boot: 1, counter };
        let (reader, mut read) = oneshot::channel();
        reads.add(now, reader);
        reads.ask(now, || Some(context(1)));
        reads.leader_changed();
        reads.confirm(&context(1), Index(1));
        reads.applied(Index(9));
        assert!(read.try_recv().is_err());
        reads.ask(now, || Some(context(2)));
        reads.confirm(&context(2), Index(2));
        reads.applied(Index(9));
        assert_eq!(read.try_recv(), Ok(Ok(())));
    }
}
