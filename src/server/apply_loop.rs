//! One turn of apply: committed entries are carried out and everybody who should know is told, in an order that matters.
//!
//! 1. every command changes the state, under the one write lock;
//! 2. rows and applied index go to the backend's queue together (they are one commit, or part of one);
//! 3. the lock is released;
//! 4. the hubs' feeds are told, in the order of what happened; hubs hear them on the threads that serve watchers, before they do anything
//!    for a client;
//! 5. replies are given to the caller of this function, who raises the applied index and completes waiters.
//!
//! An entry that changes who belongs stands anywhere among the others. What became of it is in the turn as well; before raft is
//! told that the turn's entries are applied, [`Turn::reconfigure`] tells it of each change that was carried out, once.
//!
//! 4 before 5: a client that sees its reply and then watches "from now" must not be told about its own write.
//! The simulator calls the same function.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use crate::auth::token::TokenChange;
use crate::mvcc::change::{ChangeKind, SharedChanges};
use crate::pb::everwatchpb::ConfState;
use crate::raft::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Node, decode_conf_change};
use crate::state::StateMachine;
use crate::state::applied::{LeaseChange, Refusal, Reply};
use crate::state::command::{Change, decode_proposal, decode_reconfiguration};
use crate::storage;
use crate::storage::backend::Batch;
use crate::types::{Index, Revision, Term};
use crate::watch::{Feeds, Notice};

/// What one turn came to.
#[derive(Default)]
pub struct Turn {
    /// Replies to commands that this life of this member proposed: the number of the command, and what it came to.
    pub replies: Vec<(u64, Result<Reply, Refusal>)>,
    /// For the lessor, in order.
    pub leases: Vec<LeaseChange>,
    /// The changes of raft's configuration that were carried out, in order, each with its entry's place.
    pub conf_changes: Vec<(Index, ConfChangeV2)>,
    /// The configuration after the last of them.
    pub conf_state: Option<ConfState>,
    /// Whether members came, went, changed their rank or are to be reached elsewhere.
    pub members_changed: bool,
    /// The last entry that was carried out; the default when there was none.
    pub applied: Index,
    /// The term of the last entry.
    pub term: Term,
    /// What befell tokens, in order.
    pub tokens: Vec<TokenChange>,
    /// Whether auth is on and the auth revision, if users or roles were changed.
    pub users: Option<(bool, u64)>,
    /// Keys put.
    pub puts: usize,
    /// Keys deleted.
    pub deletes: usize,
    /// Where the store was compacted, if it was.
    pub compacted: Option<Revision>,
    /// The last revision that was made, if any was.
    pub revision: Option<Revision>,
}

impl Turn {
    fn count(&mut self, changes: &[SharedChanges]) {
        for set in changes {
            let puts = set.changes.iter().filter(|change| change.kind == ChangeKind::Put).count();
            self.puts += puts;
            self.deletes += set.changes.len() - puts;
            self.revision = Some(set.revision);
        }
    }

    fn users_changed(&mut self, state: &StateMachine, reply: &Result<Reply, Refusal>) {
        let change = match reply {
            Ok(Reply::AuthChanged { tokens, .. }) => tokens.as_ref(),
            Ok(Reply::Authenticated { tokens, .. }) => Some(tokens),
            _ => return,
        };
        self.tokens.extend(change.cloned());
        self.users = Some((state.auth.is_enabled(), state.auth.revision()));
    }

    /// Carries out an entry that changes raft's configuration, or leaves it without effect: on every member alike, for what
    /// decides is in the entry and in the state.
    fn change_members(
        &mut self,
        state: &mut StateMachine,
        own: Proposer,
        entry: &Entry,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let (index, term) = (Index(entry.index), Term(entry.term));
        let unknown = |what: String| Error::UnknownEntry { index, what };
        if entry.context.is_empty() {
            // Nobody here proposes such a change but raft itself, to leave a configuration that is never entered.
            return Ok(());
        }
        let command = decode_reconfiguration(entry.context.clone()).map_err(|error| unknown(error.to_string()))?;
        let asked = command.change.as_ref().map(conf_change);
        if asked.is_some() && !asked.as_ref().zip(decode_conf_change(entry).as_ref()).is_some_and(is_same) {
            return Err(unknown("raft is to change something else than the members".into()));
        }
        let outcome = state.reconfigure(index, term, &command, batch)?;
        if let (Ok(_), Some(change)) = (&outcome, asked) {
            self.conf_changes.push((index, change));
            self.conf_state = Some(state.conf_state().clone());
            self.members_changed = true;
        }
        if own == (Proposer { member: command.proposer, boot: command.boot }) && command.id != 0 {
            self.replies.push((command.id, outcome));
        }
        Ok(())
    }

    /// Tells raft of the changes that were carried out: once per turn, before `Input::Applied`. Raft then has the configuration
    /// that the state has; a member for which that is not so would count other votes than the others do.
    pub fn reconfigure(&self, node: &mut Node) {
        for (index, change) in &self.conf_changes {
            let outcome = node.apply_conf_change(change);
            assert!(outcome.is_ok(), "the state allowed at entry {index} what raft does not: {outcome:?}");
        }
        if let Some(Err(difference)) = self.conf_state.as_ref().map(|state| same_configuration(node, state)) {
            panic!("{difference}");
        }
    }
}

/// Raft and the state must count the same votes; the error says how they differ. To be asked, too, when both were replaced by a
/// snapshot.
pub fn same_configuration(node: &Node, state: &ConfState) -> Result<(), String> {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    let raft = node.conf_state();
    let of_raft = [&raft.voters, &raft.learners, &raft.voters_outgoing, &raft.learners_next].map(|ids| sorted(ids));
    let of_state =
        [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next].map(|ids| sorted(ids));
    if of_raft == of_state {
        return Ok(());
    }
    Err(format!("raft's configuration is {of_raft:?} and the state's {of_state:?}"))
}

/// Whether both change the same, whatever their contexts say.
fn is_same((asked, found): (&ConfChangeV2, &ConfChangeV2)) -> bool {
    asked.get_transition() == found.get_transition() && asked.changes == found.changes
}

/// What raft is asked for, and later told, when members are to change so.
pub fn conf_change(change: &Change) -> ConfChangeV2 {
    let (kind, id) = match change {
        Change::Add(new) if new.is_learner => (ConfChangeType::AddLearnerNode, new.id),
        Change::Add(new) => (ConfChangeType::AddNode, new.id),
        Change::Promote(promoted) => (ConfChangeType::AddNode, promoted.id),
        Change::Remove(removed) => (ConfChangeType::RemoveNode, removed.id),
    };
    let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    single.set_change_type(kind);
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(single);
    change
}

/// Why the member cannot go on.
#[derive(Debug)]
pub enum Error {
    /// Its disk.
    Storage(storage::Error),
    /// An entry that this release cannot read. Guessing would fork the state.
    UnknownEntry {
        /// Where it stands in the log.
        index: Index,
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Storage(error) => error.fmt(f),
            Error::UnknownEntry { index, what } => write!(f, "raft entry {index} cannot be carried out: {what}"),
        }
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}

/// Who proposed: only commands of this member in this life have somebody waiting here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposer {
    /// The member.
    pub member: u64,
    /// Its life.
    pub boot: u64,
}

/// Carries out `entries`. `submit` queues rows for the backend; it does not wait.
pub fn turn(
    state: &RwLock<StateMachine>,
    feeds: &Feeds,
    own: Proposer,
    entries: Vec<Entry>,
    submit: &mut dyn FnMut(Batch),
) -> Result<Turn, Error> {
    let mut turn = Turn::default();
    let mut batch = Batch::default();
    let mut notices = Vec::new();
    {
        let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let (index, term) = (Index(entry.index), Term(entry.term));
            if entry.get_entry_type() != EntryType::EntryNormal {
                turn.change_members(&mut state, own, &entry, &mut batch)?;
            } else if !entry.data.is_empty() {
                // (A new leader's first entry is empty.)
                let proposal = decode_proposal(entry.data)
                    .map_err(|error| Error::UnknownEntry { index, what: error.to_string() })?;
                let waited_for = own == Proposer { member: proposal.proposer, boot: proposal.boot };
                for command in &proposal.commands {
                    let applied = state.apply(index, term, command, &mut batch)?;
                    turn.count(&applied.changes);
                    notices.extend(applied.changes.into_iter().map(Notice::Changed));
                    turn.leases.extend(applied.leases);
                    // After the events: a watcher that is told of them has seen what the compaction takes away.
                    if let Ok(Reply::Compaction(_)) = &applied.reply {
                        turn.compacted = Some(state.kv.compacted());
                        notices.push(Notice::Compacted(state.kv.compacted()));
                    }
                    turn.members_changed |= matches!(&applied.reply, Ok(Reply::Members(_)));
                    turn.users_changed(&state, &applied.reply);
                    if waited_for && command.id != 0 {
                        turn.replies.push((command.id, applied.reply));
                    }
                }
            }
            state.finish_entry(index, term, &mut batch);
            (turn.applied, turn.term) = (index, term);
        }
        // Under the lock: the backend gets batches in the order of the state's history.
        submit(batch);
    }
    if !notices.is_empty() {
        feeds.tell(&notices);
    }
    Ok(turn)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pb::etcdserverpb::PutRequest;
    use crate::pb::everwatchpb::MemberRecord;
    use crate::raft::encode_conf_change;
    use crate::state::command::*;
    use crate::storage::backend::Backend;
    use crate::storage::backend::memory::MemoryBackend;

    const OWN: Proposer = Proposer { member: 1, boot: 7 };

    /// What a lone founder, member 1, begins with.
    fn foundation() -> MemoryBackend {
        let backend = MemoryBackend::new();
        let peer_urls = vec!["http://h:1".into()];
        let record = MemberRecord { id: 1, name: "m1".into(), peer_urls, ..Default::default() };
        let conf_state = ConfState { voters: vec![1], ..Default::default() };
        backend.commit(&StateMachine::founding_rows(&[record], &conf_state)).unwrap();
        backend
    }

    fn founded() -> (RwLock<StateMachine>, Feeds) {
        let state = StateMachine::open(foundation().reader().unwrap()).unwrap();
        let feeds = Feeds::new(1, state.kv.revision());
        (RwLock::new(state), feeds)
    }

    fn put(index: u64) -> Entry {
        let put = PutRequest { key: "k".into(), ..Default::default() };
        let command = Command { id: index, kind: Some(Kind::Put(put)), ..Default::default() };
        let mut writer = ProposalWriter::new(OWN.member, OWN.boot, 0);
        writer.push(&encode_command(&command));
        Entry { index, term: 1, data: writer.finish(), ..Default::default() }
    }

    fn add(id: u64) -> Change {
        Change::Add(MemberAdd { id, peer_urls: vec![format!("http://h:{id}")], ..Default::default() })
    }

    fn entry(index: u64, raft: &ConfChangeV2, context: Bytes) -> Entry {
        Entry { index, term: 1, ..encode_conf_change(raft, context) }
    }

    fn context(boot: u64, id: u64, change: Option<Change>) -> Bytes {
        encode_reconfiguration(&Reconfiguration { proposer: 1, boot, id, change })
    }

    #[test]
    fn a_change_among_commands_is_one_batch_and_its_proposer_hears_of_it() {
        let (state, feeds) = founded();
        let change = |index: u64, boot, id| entry(index, &conf_change(&add(id)), context(boot, index, Some(add(id))));
        let entries = vec![put(2), change(3, OWN.boot, 2), put(4), change(5, OWN.boot, 2), change(6, 8, 3)];
        let mut batches = Vec::new();
        let turn = turn(&state, &feeds, OWN, entries, &mut |batch| batches.push(batch)).unwrap();
        assert_eq!(turn.replies.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 3, 4, 5], "not another life's");
        assert!(matches!(&turn.replies[1].1, Ok(Reply::Members(members)) if members.len() == 2));
        assert_eq!(turn.replies[3].1, Err(Refusal::MemberExists));
        assert_eq!(turn.conf_changes.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [3, 6]);
        assert_eq!(turn.conf_state.map(|state| state.voters), Some(vec![1, 2, 3]));
        assert!(turn.members_changed);

        // The rows are the state: those of the foundation, and this one batch.
        assert_eq!(batches.len(), 1);
        let backend = foundation();
        backend.commit(&batches[0]).unwrap();
        let again = StateMachine::open(backend.reader().unwrap()).unwrap();
        let state = state.into_inner().unwrap();
        assert_eq!((&again.members, again.conf_state()), (&state.members, state.conf_state()));
        assert_eq!((again.applied(), again.kv.revision()), (Index(6), Revision(3)));
    }

    #[test]
    fn a_change_that_nobody_of_us_proposed_is_without_effect() {
        for kind in [EntryType::EntryConfChange, EntryType::EntryConfChangeV2] {
            for data in [&b""[..], &[0x0b], &[0x10, 1, 0x18, 1], &[0x12, 4, 0x08, 1, 0x10, 1]] {
                let (state, feeds) = founded();
                let mut strange = Entry { index: 2, term: 1, data: data.into(), ..Default::default() };
                strange.set_entry_type(kind);
                let turn = turn(&state, &feeds, OWN, vec![strange, put(3)], &mut |_| ()).unwrap();
                assert!(turn.conf_changes.is_empty() && turn.conf_state.is_none() && !turn.members_changed);
                let state = state.into_inner().unwrap();
                assert_eq!((state.members.len(), &state.conf_state().voters[..]), (1, &[1][..]));
                assert_eq!(state.applied(), Index(3));
            }
        }
    }

    #[test]
    fn a_change_that_cannot_be_understood_stops_the_member() {
        let raft = conf_change(&add(2));
        let mut both = conf_change(&add(2));
        both.mut_changes().push(conf_change(&add(3)).changes[0].clone());
        for strange in [
            entry(2, &raft, Bytes::from_static(b"\x0b")),
            entry(2, &raft, context(OWN.boot, 1, None)),
            entry(2, &raft, context(OWN.boot, 1, Some(add(3)))),
            entry(2, &ConfChangeV2::default(), context(OWN.boot, 1, Some(add(2)))),
            entry(2, &both, context(OWN.boot, 1, Some(add(2)))),
        ] {
            let (state, feeds) = founded();
            assert!(turn(&state, &feeds, OWN, vec![strange], &mut |_| ()).is_err());
        }
    }
}
