//! Whether a member's directory is sound: each part by itself, and all of them together.
//!
//! | part      | what holds                                                                                              |
//! |-----------|---------------------------------------------------------------------------------------------------------|
//! | log       | every checksum; no segment is missing; entries follow each other, in terms that never fall, up to what is known to be committed; every entry can be read |
//! | snapshot  | the one that the log starts after, if it is not the state yet, as the state is                           |
//! | state     | every page's checksum; every row can be read; the history of each key goes on without a gap, each revision has its rows; leases, members, users are what they refer to; the sum of all rows is what is written down |
//! | together  | one member's; the state is at an entry of the log, of the same term                                      |
//!
//! What a crash leaves, and the next start clears away, is no damage: it is remarked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::dump::{committed, content};
use super::{Error, Looked};
use crate::mvcc::HashKv;
use crate::mvcc::revision::RevisionKey;
use crate::pb::mvccpb::KeyValue;
use crate::state::StateMachine;
use crate::storage::backend::inspect::inspect as inspect_backend;
use crate::storage::backend::{Backend, Bucket, Reader};
use crate::storage::wal::inspect::{Inspected, inspect as inspect_log};
use crate::storage::{self, datadir, schema, snapshot};
use crate::types::{ClusterId, Index, MemberId, Revision, Term};

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Whose directory it is.
    pub identity: Option<(ClusterId, MemberId)>,
    /// The log, as far as it could be read.
    pub log: LogFacts,
    /// The state; none: it could not be opened.
    pub state: Option<StateFacts>,
    /// What is worth knowing.
    pub remarks: Vec<String>,
    /// What is wrong, and where. None: the directory is sound.
    pub problems: Vec<String>,
}

/// About the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFacts {
    /// Segments in use.
    pub segments: usize,
    /// The log starts after this entry.
    pub base: Index,
    /// Its last entry.
    pub last: Index,
    /// The last one that it knows to be committed.
    pub committed: Index,
    /// The term that it was in.
    pub term: Term,
}

/// About the state.
#[derive(Clone, Debug)]
pub struct StateFacts {
    /// The last entry that was carried out.
    pub applied: Index,
    /// The newest revision.
    pub revision: Revision,
    /// Where it was compacted; -1: it was not.
    pub compacted: Revision,
    /// Keys that exist.
    pub keys: usize,
    /// Rows of their history.
    pub history_rows: usize,
    /// Leases.
    pub leases: usize,
    /// Members.
    pub members: usize,
    /// Whether users and roles count.
    pub auth: bool,
    /// What other members have at the same revision.
    pub hash: Option<HashKv>,
}

/// Checks all of it.
pub fn check(looked: &Looked) -> Result<Report, Error> {
    let mut report = Report::default();
    let found = inspect_log(&looked.wal, looked.keys.as_ref())?;
    report.log(&looked.wal, &found);
    let Some(path) = report.state_file(looked, found.log.base.index) else { return Ok(report) };
    let backend = match inspect_backend(&path, looked.keys.as_ref()) {
        Ok(backend) => backend,
        Err(error) => {
            report.problem(&path, &error);
            return Ok(report);
        }
    };
    let reader = backend.reader()?;
    report.rows(&path, &*reader, backend.size_in_use());
    match StateMachine::open(reader.clone()) {
        Ok(state) => report.state(&path, &*reader, &state, &found),
        Err(error) => report.problem(&path, &error),
    }
    Ok(report)
}

impl Report {
    /// `error` says what is wrong, and perhaps where: then `path` need not be said.
    fn problem(&mut self, path: &Path, error: &storage::Error) {
        self.problems.push(match error {
            storage::Error::Engine(what) if !what.contains(&*path.to_string_lossy()) => {
                format!("{}: {what}", path.display())
            }
            error => error.to_string(),
        });
    }

    fn wrong(&mut self, path: &Path, what: impl std::fmt::Display) {
        self.problems.push(format!("{}: {what}", path.display()));
    }

    fn log(&mut self, path: &Path, found: &Inspected) {
        self.identity = found.identity;
        self.problems.extend(found.damage.iter().map(ToString::to_string));
        if let Some(torn) = &found.torn {
            let path = torn.path.display();
            self.remarks.push(format!(
                "{path} ends at byte {} with {} bytes of a record that was never finished: the next start removes them",
                torn.offset, torn.bytes
            ));
        }
        let log = &found.log;
        let last = log.entries.last().map_or(log.base.index, |entry| entry.index);
        let hard_state = log.hard_state.unwrap_or_default();
        self.log = LogFacts {
            segments: found.segments,
            base: log.base.index,
            last,
            committed: committed(found),
            term: hard_state.term,
        };
        if found.segments == 0 {
            self.wrong(path, "holds no segment of a log");
        }
        let mut term = log.base.term;
        for entry in &log.entries {
            if entry.term < term {
                self.wrong(path, format!("entry {} is of term {}, after one of term {term}", entry.index, entry.term));
            }
            term = term.max(entry.term);
            if let Err(what) = content(entry) {
                self.wrong(path, format!("entry {} {what}", entry.index));
            }
        }
        // Behind damage there is more that was not read.
        if found.damage.is_none() && hard_state.commit > last {
            let commit = hard_state.commit;
            self.wrong(path, format!("it ends with entry {last}, and entry {commit} is known to be committed"));
        }
        if found.damage.is_none() && found.segments > 0 && hard_state.term < term {
            let known = hard_state.term;
            self.wrong(path, format!("it has entries of term {term}, and the term that is written down is {known}"));
        }
    }

    /// Which file is the state: the log's word decides.
    fn state_file(&mut self, looked: &Looked, base: Index) -> Option<PathBuf> {
        let member = &looked.member;
        let state = member.join(datadir::STATE);
        let pending = match snapshot::pending(member) {
            Ok(pending) => pending,
            Err(error) => {
                self.problem(member, &error);
                return None;
            }
        };
        let behind = |path: &Path| match inspect_backend(path, looked.keys.as_ref())
            .and_then(|backend| number(&*backend.reader()?))
        {
            Ok(applied) => applied.is_none_or(|applied| applied < base),
            // It is looked at again, and then it is said why it cannot be.
            Err(_) => false,
        };
        let mut chosen = state.exists().then_some(state);
        for (index, path) in pending {
            if index == base && chosen.as_deref().is_none_or(behind) {
                self.remarks.push(format!("{} becomes the state at the next start", path.display()));
                chosen = Some(path);
            } else {
                self.remarks.push(format!("{} was not adopted: the next start removes it", path.display()));
            }
        }
        if chosen.is_none() {
            self.wrong(member, format!("there is no {}", datadir::STATE));
        }
        chosen
    }

    /// Every row by itself, and the rows of each key among themselves.
    fn rows(&mut self, path: &Path, rows: &dyn Reader, written_down: u64) {
        let mut bytes = 0;
        for bucket in Bucket::ALL {
            let scanned = rows.scan(bucket, &[], None, &mut |key, value| {
                bytes += (key.len() + value.len()) as u64;
                true
            });
            if let Err(error) = scanned {
                self.problem(path, &error);
            }
        }
        if bytes != written_down {
            self.wrong(path, format!("all rows have {bytes} bytes, and {written_down} are written down"));
        }
        let meta = |name| rows.get(Bucket::Meta, name).ok().flatten().as_deref().and_then(schema::read_u64);
        let revision = |name| meta(name).map(|number| number as i64);
        let newest = revision(schema::REVISION).unwrap_or(Revision::FIRST.0);
        let compacted = revision(schema::COMPACTED).unwrap_or(-1);
        let done = revision(schema::COMPACTION_DONE).unwrap_or(-1);
        if done > compacted || compacted > newest {
            let what = format!("compaction to {compacted}, done to {done}, at revision {newest}: this cannot be");
            self.wrong(path, what);
        }
        let mut history = History { compacted, newest, next: whole_from(compacted), ..History::default() };
        let scanned = rows.scan_all(Bucket::Key, &mut |key, value| {
            history.row(key, value);
            true
        });
        if let Err(error) = scanned {
            self.problem(path, &error);
        }
        history.end();
        for what in history.wrong {
            self.wrong(path, what);
        }
        if history.more > 0 {
            self.wrong(path, format!("and {} rows more that are wrong", history.more));
        }
        self.state = Some(StateFacts {
            applied: Index(meta(schema::APPLIED_INDEX).unwrap_or(0)),
            revision: Revision(newest),
            compacted: Revision(compacted),
            keys: history.latest.values().filter(|latest| latest.version > 0).count(),
            history_rows: history.rows,
            leases: 0,
            members: 0,
            auth: false,
            hash: None,
        });
    }

    /// The state as a member would have it, and what it and the log say of each other.
    fn state(&mut self, path: &Path, rows: &dyn Reader, state: &StateMachine, found: &Inspected) {
        let applied = state.applied();
        if let Some(facts) = &mut self.state {
            let counted = facts.keys;
            facts.leases = state.leases.iter().count();
            facts.members = state.members.len();
            facts.auth = state.auth.is_enabled();
            let (indexed, hashed) = (state.kv.keys_total(), state.kv.hash_kv(Revision(0)));
            let failed = match hashed {
                Ok(hash) => {
                    facts.hash = Some(hash);
                    None
                }
                Err(error) => Some(format!("the history cannot be hashed: {error:?}")),
            };
            if indexed != counted {
                self.wrong(path, format!("the index has {indexed} keys, and by their rows there are {counted}"));
            }
            failed.into_iter().for_each(|what| self.wrong(path, what));
        }
        let voters: Vec<u64> = state.members.voters().map(|(id, _)| id.0).collect();
        // One that joins knows who the members are before it knows who votes.
        if applied > Index(0) && voters != state.conf_state().voters {
            let raft = &state.conf_state().voters;
            self.wrong(path, format!("the voters are {voters:?}, and raft's are {raft:?}"));
        }
        let identity = rows.get(Bucket::Meta, schema::IDENTITY).ok().flatten();
        let read = |part: Option<&[u8]>| part.and_then(schema::read_u64);
        let identity = identity.and_then(|row| Some((ClusterId(read(row.get(..8))?), MemberId(read(row.get(8..))?))));
        match (identity, self.identity) {
            // A received snapshot says that when it is adopted.
            (None, _) if path.file_name().is_some_and(|name| name == datadir::STATE) => {
                self.wrong(path, "no row says whose state it is");
            }
            (Some(of_state), Some(of_log)) if of_state != of_log => {
                let what = format!(
                    "is of member {} of cluster {}, and the log of member {} of cluster {}",
                    of_state.1, of_state.0, of_log.1, of_log.0
                );
                self.wrong(path, what);
            }
            (Some(of_state), None) => self.identity = Some(of_state),
            _ => {}
        }
        let LogFacts { base, last, .. } = self.log;
        if applied < base {
            self.wrong(path, format!("the state is at entry {applied}, and the log starts only after {base}"));
        }
        // What damage hides may well be there.
        if applied > last && found.damage.is_none() {
            self.wrong(path, format!("the state is at entry {applied}, and the log ends with {last}"));
        }
        let log = &found.log;
        let entry = log.entries.iter().find(|entry| entry.index == applied);
        let term = entry.map(|entry| entry.term).or((applied == base).then_some(log.base.term));
        if let Some(term) = term.filter(|term| *term != state.applied_term()) {
            let known = state.applied_term();
            self.wrong(path, format!("entry {applied} is of term {known} here, and of term {term} in the log"));
        }
    }
}

fn number(rows: &dyn Reader) -> storage::Result<Option<Index>> {
    Ok(rows.get(Bucket::Meta, schema::APPLIED_INDEX)?.as_deref().and_then(schema::read_u64).map(Index))
}

/// The first revision whose rows must all be there.
fn whole_from(compacted: i64) -> i64 {
    compacted.max(Revision::FIRST.0) + 1
}

/// What is remembered of a key: its last row.
struct Latest {
    create: i64,
    /// 0: it was deleted.
    version: i64,
}

/// The rows of history, in their order.
#[derive(Default)]
struct History {
    compacted: i64,
    newest: i64,
    rows: usize,
    latest: HashMap<Bytes, Latest>,
    /// The revision that must come, and which of its changes, if the one before is complete.
    next: i64,
    sub: u32,
    wrong: Vec<String>,
    /// Beyond those that are told.
    more: usize,
}

/// Rows that are told of. Where one thing went wrong for many, the first ones show it.
const TOLD_MAX: usize = 20;

impl History {
    fn wrong(&mut self, what: String) {
        if self.wrong.len() < TOLD_MAX {
            self.wrong.push(what);
        } else {
            self.more += 1;
        }
    }

    fn row(&mut self, row: &[u8], value: &[u8]) {
        self.rows += 1;
        let Some((place, tombstone)) = RevisionKey::from_row(row) else {
            return self.wrong(format!("the row {} is not a revision", row.escape_ascii()));
        };
        self.order(place);
        let record = match KeyValue::decode(value) {
            Ok(record) => record,
            Err(error) => return self.wrong(format!("{} cannot be read: {error}", named(place))),
        };
        let key = record.key.escape_ascii();
        let whole = place.main >= whole_from(self.compacted);
        let before = self.latest.get(&record.key);
        let alive = before.is_some_and(|latest| latest.version > 0);
        if tombstone {
            if whole && !alive {
                self.wrong(format!("{} deletes the key {key}, which is not there", named(place)));
            }
            self.latest.insert(record.key, Latest { create: 0, version: 0 });
            return;
        }
        let KeyValue { create_revision: create, mod_revision, version, .. } = record;
        if mod_revision != place.main || create > mod_revision || create < 1 || version < 1 {
            let says = format!("created {create}, changed {mod_revision}, version {version}");
            self.wrong(format!("{} of the key {key} says: {says}", named(place)));
        } else if whole {
            let follows = match before.filter(|latest| latest.version > 0) {
                Some(latest) => create == latest.create && version == latest.version + 1,
                // What it follows may have been compacted, but only if nothing is known of it.
                None => create == place.main && version == 1,
            };
            if !follows {
                let says = format!("created {create}, version {version}");
                self.wrong(format!("{} of the key {key} does not follow the one before: {says}", named(place)));
            }
        }
        self.latest.insert(record.key, Latest { create, version });
    }

    /// Whether nothing is missing between this row and the one before.
    fn order(&mut self, place: RevisionKey) {
        if place.main > self.newest {
            self.wrong(format!("{} lies above the store's revision {}", named(place), self.newest));
        }
        if place.main < whole_from(self.compacted) {
            return;
        }
        // The same revision has more, or the next one begins.
        let expected = match self.sub > 0 && place.main > self.next {
            true => RevisionKey { main: self.next + 1, sub: 0 },
            false => RevisionKey { main: self.next, sub: self.sub },
        };
        if place != expected {
            self.wrong(format!("{} comes where {} should", named(place), named(expected)));
        }
        (self.next, self.sub) = (place.main, place.sub.saturating_add(1));
    }

    /// There are no more.
    fn end(&mut self) {
        let last = if self.sub > 0 { self.next } else { self.next - 1 };
        if last < self.newest && self.newest >= whole_from(self.compacted) {
            self.wrong(format!("the history ends with revision {last}, and the store is at {}", self.newest));
        }
    }
}

fn named(place: RevisionKey) -> String {
    format!("the row of revision {}, change {},", place.main, place.sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with rows given as `revision.change key created version`, or `revision.change key -` for a deletion.
    fn wrong(compacted: i64, newest: i64, rows: &[&str]) -> Vec<String> {
        let mut history = History { compacted, newest, next: whole_from(compacted), ..History::default() };
        for row in rows {
            let words: Vec<&str> = row.split(' ').collect();
            let (main, sub) = words[0].split_once('.').unwrap();
            let place = RevisionKey { main: main.parse().unwrap(), sub: sub.parse().unwrap() };
            let mut record = KeyValue { key: Bytes::from(words[1].to_owned()), ..Default::default() };
            if words[2] != "-" {
                record.create_revision = words[2].parse().unwrap();
                record.mod_revision = place.main;
                record.version = words[3].parse().unwrap();
            }
            history.row(&place.row(words[2] == "-"), &record.encode_to_vec());
        }
        history.end();
        history.wrong
    }

    #[test]
    fn a_history_without_gaps_is_sound() {
        let rows = ["2.0 a 2 1", "3.0 a 2 2", "3.1 b 3 1", "4.0 a -", "5.0 a 5 1", "6.0 b 3 2"];
        assert_eq!(wrong(-1, 6, &rows), [""; 0]);
        // Compacted at 4, not all of it done.
        assert_eq!(wrong(4, 6, &["3.0 a 2 2", "3.1 b 3 1", "5.0 a 5 1", "6.0 b 3 2"]).len(), 1, "a lives on");
        assert_eq!(wrong(4, 6, &["3.1 b 3 1", "5.0 a 5 1", "6.0 b 3 2"]), [""; 0]);
        assert_eq!(wrong(9, 9, &["3.1 b 3 1"]), [""; 0]);
        assert_eq!(wrong(-1, 1, &[]), [""; 0]);
    }

    #[test]
    fn what_is_missing_or_does_not_belong_is_found() {
        for (compacted, newest, rows, what) in [
            (-1, 3, &["2.0 a 2 1"][..], "ends with revision 2"),
            (-1, 3, &[][..], "ends with revision 1"),
            (-1, 3, &["3.0 a 3 1"], "change 0, comes where the row of revision 2"),
            (-1, 2, &["2.1 a 2 1"], "comes where"),
            (-1, 2, &["2.0 a 2 1", "2.2 b 2 1"], "comes where"),
            (-1, 2, &["2.0 a 2 1", "3.0 a 2 2"], "above the store's revision 2"),
            (-1, 3, &["2.0 a 2 1", "3.0 a 2 3"], "does not follow"),
            (-1, 3, &["2.0 a 2 1", "3.0 a 3 1"], "does not follow"),
            (-1, 3, &["2.0 a 2 1", "3.0 b 2 1"], "does not follow"),
            (-1, 2, &["2.0 a 3 1"], "says: created 3"),
            (-1, 2, &["2.0 a 2 0"], "says: created 2"),
            (-1, 2, &["2.0 a -"], "is not there"),
            (4, 5, &["3.0 a 2 2", "5.0 a 2 4"], "does not follow"),
        ] {
            let found = wrong(compacted, newest, rows);
            assert!(found.len() == 1 && found[0].contains(what), "{rows:?}: {found:?}");
        }
    }

    #[test]
    fn one_cause_does_not_fill_the_screen() {
        let mut history = History { compacted: -1, newest: 100, next: 2, ..History::default() };
        (0..100).for_each(|_| history.row(b"no row", b""));
        assert_eq!((history.wrong.len(), history.more), (TOLD_MAX, 80));
    }
}
