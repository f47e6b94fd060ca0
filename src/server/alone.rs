//! `--force-new-cluster`: a member whose cluster has lost its majority for good goes on alone, with what it knows.
//!
//! What the log knows to be committed is kept, what is behind it dropped. Then the log says, as committed, that every other member was
//! removed: so the change is carried out by the same code as any removal, the ids of the others are spent, and the next start needs no
//! flag. Member and cluster keep their ids, and revisions go on. All of that is one record of the log: a crash leaves the cluster as it was,
//! or the cluster of one.
//!
//! Like etcd, but for three things. The removals are of a term of their own, so that no entry of the lost majority can pass for one
//! of them. Learners are removed as well, and one that is a learner itself is made a voter. And a member that voted alone already loses
//! nothing, however often it is started with the flag: what it alone decides about is committed when it is on its disk, whether or not
//! its log had been told so.
//!
//! A directory without data has nothing to be kept: there the flag does nothing, as in etcd.

use std::collections::BTreeMap;

use bytes::Bytes;
use slog::{Logger, warn};

use super::apply_loop::conf_change;
use super::bootstrap::Error;
use super::raft_loop::to_log;
use crate::raft::{Entry, encode_conf_change};
use crate::state::StateMachine;
use crate::state::command::{
    Change, MemberPromote, MemberRemove, Reconfiguration, decode_reconfiguration, encode_reconfiguration,
};
use crate::storage::wal::{Append, HardState, LogEntry, Replayed, Wal};
use crate::types::{Index, MemberId, Term};

/// Ids of members, and whether they vote.
type Members = BTreeMap<u64, bool>;

/// Makes the member's log, which `log` is a copy of, that of a cluster of one.
pub(super) fn leave_others(
    wal: &mut Wal,
    log: &mut Replayed,
    state: &StateMachine,
    own: MemberId,
    logger: &Logger,
) -> Result<(), Error> {
    let known = log.hard_state.unwrap_or_default();
    let (kept, members) = survey(log, state, own, known.commit.max(state.applied()));
    if !members.contains_key(&own.0) {
        let what = format!("--force-new-cluster: member {own} does not belong to a cluster, or was removed from it");
        return Err(Error::Refused(what));
    }
    let dropped = log.entries.iter().filter(|entry| entry.index > kept).count();
    let changes = departures(&members, own);
    if changes.is_empty() && dropped == 0 {
        return Ok(());
    }
    let term = Term(known.term.0 + 1);
    let appended: Vec<LogEntry> =
        (kept.0 + 1..).zip(&changes).map(|(index, change)| entry(Index(index), term, change)).collect();
    let commit = Index(kept.0 + appended.len() as u64);
    let hard_state = HardState { term, vote: MemberId(0), commit };
    let others = members.keys().filter(|id| **id != own.0).map(|id| MemberId(*id).to_string());
    warn!(logger, "forced to go on alone: the other members are removed";
        "member-id" => %own, "removed" => others.collect::<Vec<_>>().join(","), "committed" => kept.0,
        "dropped-entries" => dropped);
    wal.append(&Append { reset: None, entries: &appended, hard_state: Some(&hard_state) })?;
    wal.sync()?;
    log.entries.truncate(log.entries.len() - dropped);
    log.entries.extend(appended);
    log.hard_state = Some(hard_state);
    Ok(())
}

/// How much of the log counts, and who belongs then.
///
/// A change that was refused when it was carried out is taken for one that was not. So there may be too many members, never too few:
/// removing one who is not there is refused, and harms nobody.
fn survey(log: &Replayed, state: &StateMachine, own: MemberId, committed: Index) -> (Index, Members) {
    let conf_state = state.conf_state();
    let mut members: Members = conf_state.learners.iter().map(|id| (*id, false)).collect();
    members.extend(conf_state.voters.iter().map(|id| (*id, true)));
    let mut kept = state.applied();
    for entry in log.entries.iter().filter(|entry| entry.index > state.applied()) {
        let votes_alone = members.get(&own.0) == Some(&true) && voters(&members) == 1;
        if entry.index > committed && !votes_alone {
            break;
        }
        kept = entry.index;
        // An entry that cannot be read stops the member when it is to be carried out.
        if entry.kind != NORMAL
            && let Ok(Reconfiguration { change: Some(change), .. }) = decode_reconfiguration(entry.context.clone())
        {
            take(&mut members, &change);
        }
    }
    (kept, members)
}

/// Raft's number of entries that do not change the configuration.
const NORMAL: u8 = 0;

fn voters(members: &Members) -> usize {
    members.values().filter(|votes| **votes).count()
}

fn take(members: &mut Members, change: &Change) {
    match change {
        Change::Add(new) => {
            members.entry(new.id).or_insert(!new.is_learner);
        }
        Change::Promote(promoted) => {
            members.entry(promoted.id).and_modify(|votes| *votes = true);
        }
        // The last voter is not removed.
        Change::Remove(old) if members.get(&old.id) == Some(&true) && voters(members) == 1 => {}
        Change::Remove(old) => {
            members.remove(&old.id);
        }
    }
}

/// What makes `own` the only one. It votes before the others go: somebody has to.
fn departures(members: &Members, own: MemberId) -> Vec<Change> {
    let promote = (members.get(&own.0) == Some(&false)).then_some(Change::Promote(MemberPromote { id: own.0 }));
    let others = members.keys().filter(|id| **id != own.0);
    promote.into_iter().chain(others.map(|id| Change::Remove(MemberRemove { id: *id }))).collect()
}

/// The change as an entry that nobody waits for.
fn entry(index: Index, term: Term, change: &Change) -> LogEntry {
    let context = encode_reconfiguration(&Reconfiguration { change: Some(change.clone()), ..Default::default() });
    let raft: Entry = encode_conf_change(&conf_change(change), Bytes::clone(&context));
    to_log(Entry { index: index.0, term: term.0, ..raft })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pb::everwatchpb::{ConfState, MemberAdd, MemberRecord};
    use crate::server::bootstrap::{FOUNDING, begin_log};
    use crate::storage::backend::Backend;
    use crate::storage::backend::disk::DiskBackend;
    use crate::storage::disk::RealDisk;
    use crate::storage::wal::WalOptions;
    use crate::types::ClusterId;

    const OWN: MemberId = MemberId(1);

    fn normal(index: u64) -> LogEntry {
        LogEntry { kind: NORMAL, term: Term(3), index: Index(index), data: "x".into(), context: Bytes::new() }
    }

    fn changed(index: u64, change: Change) -> LogEntry {
        entry(Index(index), Term(3), &change)
    }

    fn add(id: u64) -> Change {
        Change::Add(MemberAdd { id, peer_urls: vec![format!("http://h:{id}")], is_learner: false, learners_max: 1 })
    }

    fn remove(id: u64) -> Change {
        Change::Remove(MemberRemove { id })
    }

    /// Founded by these, with these entries from 2 on, of which the log knows as committed those up to `commit`: how many are kept,
    /// and what is appended. Forced twice: the second time nothing is left to do.
    fn forced(
        voters: &[u64],
        learners: &[u64],
        entries: &[LogEntry],
        commit: u64,
    ) -> Result<(u64, Vec<Change>), Error> {
        let dir = tempfile::tempdir().unwrap();
        let backend = DiskBackend::open(dir.path().join("state")).unwrap();
        let ids = voters.iter().chain(learners);
        let record = |id: &u64| MemberRecord { id: *id, is_learner: learners.contains(id), ..Default::default() };
        let records: Vec<_> = ids.map(record).collect();
        let conf_state = ConfState { voters: voters.into(), learners: learners.into(), ..Default::default() };
        backend.commit(&StateMachine::founding_rows(&records, &conf_state)).unwrap();
        let state = StateMachine::open(backend.reader().unwrap()).unwrap();
        let open = || {
            let options = WalOptions::new(ClusterId(9), OWN);
            Wal::open(Arc::new(RealDisk), dir.path().join("wal"), options).unwrap()
        };
        let (mut wal, mut log) = open();
        begin_log(&mut wal, &mut log, FOUNDING.index).unwrap();
        let hard_state = HardState { term: Term(3), vote: MemberId(2), commit: Index(commit) };
        wal.append(&Append { reset: None, entries, hard_state: Some(&hard_state) }).unwrap();
        wal.sync().unwrap();
        drop((wal, log));

        let logger = Logger::root(slog::Discard, slog::o!());
        let (mut wal, mut log) = open();
        leave_others(&mut wal, &mut log, &state, OWN, &logger)?;
        drop(wal);
        let (mut wal, mut again) = open();
        assert_eq!(again, log, "what is on disk is what raft is given");
        let changes = log.entries.iter().filter(|entry| entry.term == Term(4));
        let changes: Vec<Change> = changes
            .map(|entry| decode_reconfiguration(entry.context.clone()).unwrap().change.expect("there is one"))
            .collect();
        let last = log.entries.last().map_or(FOUNDING.index, |entry| entry.index);
        if !changes.is_empty() {
            assert_eq!(log.hard_state, Some(HardState { term: Term(4), vote: MemberId(0), commit: last }));
        }
        leave_others(&mut wal, &mut again, &state, OWN, &logger)?;
        assert_eq!(again, log);
        Ok((last.0 - changes.len() as u64, changes))
    }

    #[test]
    fn what_is_not_known_to_be_committed_is_dropped_and_the_others_leave() {
        let entries = [normal(2), normal(3), normal(4), normal(5)];
        assert_eq!(forced(&[1, 2, 3], &[], &entries, 3).unwrap(), (3, vec![remove(2), remove(3)]));
        assert_eq!(forced(&[1, 2, 3], &[], &[], 1).unwrap(), (1, vec![remove(2), remove(3)]));
        let came = [normal(2), changed(3, add(4)), changed(4, remove(2)), changed(5, add(5))];
        assert_eq!(forced(&[1, 2, 3], &[], &came, 4).unwrap(), (4, vec![remove(3), remove(4)]));
    }

    #[test]
    fn a_learner_votes_before_the_others_go() {
        let promote = Change::Promote(MemberPromote { id: 1 });
        assert_eq!(forced(&[2], &[1], &[normal(2)], 2).unwrap(), (2, vec![promote, remove(2)]));
        assert_eq!(forced(&[1], &[2], &[normal(2)], 2).unwrap(), (2, vec![remove(2)]));
    }

    #[test]
    fn one_that_votes_alone_loses_nothing() {
        assert_eq!(forced(&[1], &[], &[normal(2), normal(3)], 1).unwrap(), (3, vec![]));
        let alone_from_3_to_4 = [normal(2), changed(3, remove(2)), changed(4, add(3)), normal(5)];
        assert_eq!(forced(&[1, 2], &[], &alone_from_3_to_4, 3).unwrap(), (4, vec![remove(3)]));
        assert_eq!(forced(&[1, 2], &[], &alone_from_3_to_4, 2).unwrap(), (2, vec![remove(2)]));
    }

    #[test]
    fn who_does_not_belong_is_refused() {
        assert!(matches!(forced(&[1, 2], &[], &[changed(2, remove(1))], 2), Err(Error::Refused(_))));
        assert!(matches!(forced(&[2], &[], &[], 1), Err(Error::Refused(_))));
    }
}
