//! The log of a stopped etcd: what it holds that the member's file does not have yet.
//!
//! ```text
//! file     <sequence>-<first index>.wal: frames, then zeros
//! frame    record bytes 7, padding 1 (with the high bit set: its low three bits) · walpb.Record · padding      little endian
//! record   type (2: raftpb.Entry, 3: raftpb.HardState, 4: the checksum goes on from here), CRC-32C of the data of all records so far,
//!          data
//! ```
//!
//! A member that was stopped has committed to its file what it had applied. One that was killed has up to a tenth of a second of it in the
//! log only, and one that fell behind may have entries that it never applied. [`tail`] gives them as commands of ours
//! ([`super::etcd_commands`]).
//!
//! Which entries count is raft's to say. Up to the commit index they are decided. After it the only voter of a cluster decides alone:
//! its log is all there is to ask, and etcd carries all of it out when it starts again. One of several cannot tell, and its last entries
//! are left out, and counted. Entries that change the members matter for that alone: who they were is not taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::Error;
use super::etcd_commands::command;
use crate::pb::everwatchpb::Command;

/// What the log holds after the last entry that is in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tail {
    /// What is to be done, in order.
    pub commands: Vec<Command>,
    /// The last entry that is decided.
    pub last: u64,
    /// Entries after it that may change something, of which nobody here knows whether they are decided.
    pub undecided: Vec<u64>,
}

/// `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

/// `raftpb.HardState`, but for what votes need.
#[derive(Clone, PartialEq, Message)]
struct HardState {
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// `raftpb.ConfChange`.
#[derive(Clone, PartialEq, Message)]
struct ConfChange {
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    member: u64,
}

const ENTRY: i64 = 2;
const HARD_STATE: i64 = 3;
const CHECKSUM: i64 = 4;

/// Kinds of entries; etcd makes no others.
const NORMAL: i32 = 0;
const CONF_CHANGE: i32 = 1;

/// Kinds of changes: a voter, or a learner that is one from now on; a member that leaves; new addresses; a learner.
const VOTER: i32 = 0;
const LEAVER: i32 = 1;
const ADDRESSES: i32 = 2;
const LEARNER: i32 = 3;

/// What the log in `dir` holds after the entry at `index`, at which these were the voters.
pub fn tail(dir: &Path, index: u64, voters: BTreeSet<u64>) -> Result<Tail, Error> {
    let mut names: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    names.retain(|entry| entry.file_name().as_encoded_bytes().ends_with(b".wal"));
    names.sort_by_key(|entry| entry.file_name());
    let mut log = Log::after(index);
    let last = names.len().saturating_sub(1);
    for (n, entry) in names.iter().enumerate() {
        let rest = log.read(&std::fs::read(entry.path())?);
        // The last record may have been written half.
        if rest.is_err() && n < last {
            return Err(Error::Refused(format!("the log file {} is damaged", entry.path().display())));
        }
    }
    log.tail(voters)
}

/// A log while it is read, file by file.
#[derive(Debug)]
pub struct Log {
    above: u64,
    entries: BTreeMap<u64, Entry>,
    commit: u64,
    crc: u32,
}

/// A record that is not whole.
#[derive(Debug)]
pub struct Torn;

impl Log {
    /// Of which the entries after `index` are wanted.
    pub fn after(index: u64) -> Log {
        Log { above: index, entries: BTreeMap::new(), commit: 0, crc: 0 }
    }

    /// Reads the next file, up to its end or to what is no record.
    pub fn read(&mut self, mut file: &[u8]) -> Result<(), Torn> {
        while let Some((head, rest)) = file.split_first_chunk::<8>() {
            let head = u64::from_le_bytes(*head);
            if head == 0 {
                return Ok(());
            }
            let bytes = usize::try_from(head & (u64::MAX >> 8)).map_err(|_| Torn)?;
            let padding = if head >> 63 == 1 { (head >> 56) as usize & 7 } else { 0 };
            let (record, rest) = rest.split_at_checked(bytes).ok_or(Torn)?;
            file = rest.get(padding..).ok_or(Torn)?;
            self.record(Record::decode(record).map_err(|_| Torn)?)?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), Torn> {
        if record.kind == CHECKSUM {
            if self.crc != 0 && self.crc != record.crc {
                return Err(Torn);
            }
            self.crc = record.crc;
            return Ok(());
        }
        let crc = crc32c::crc32c_append(self.crc, &record.data);
        if crc != record.crc {
            return Err(Torn);
        }
        self.crc = crc;
        match record.kind {
            ENTRY => {
                let entry = Entry::decode(record.data).map_err(|_| Torn)?;
                // It takes the place of one that was not decided, and of all after that.
                self.entries.split_off(&entry.index);
                if entry.index > self.above {
                    self.entries.insert(entry.index, entry);
                }
            }
            HARD_STATE => self.commit = HardState::decode(record.data).map_err(|_| Torn)?.commit,
            _ => {}
        }
        Ok(())
    }

    /// What it came to, when all files are read.
    pub fn tail(mut self, mut voters: BTreeSet<u64>) -> Result<Tail, Error> {
        let open = self.entries.split_off(&self.commit.saturating_add(1));
        let mut tail = Tail { last: self.above, ..Tail::default() };
        for entry in self.entries.into_values() {
            if entry.kind != NORMAL {
                change_voters(&entry, &mut voters)?;
            }
            tail.take(entry)?;
        }
        if tail.last < self.commit {
            return Err(Error::Refused(format!("the log lacks entry {}, which is decided", tail.last + 1)));
        }
        if voters.len() == 1 {
            open.into_values().try_for_each(|entry| tail.take(entry))?;
        } else {
            let changing = |entry: &Entry| entry.kind == NORMAL && !matches!(command(&entry.data), Ok(None));
            tail.undecided.extend(open.into_values().filter(changing).map(|entry| entry.index));
        }
        Ok(tail)
    }
}

impl Tail {
    fn take(&mut self, entry: Entry) -> Result<(), Error> {
        if entry.index != self.last + 1 {
            return Err(Error::Refused(format!("the log lacks entry {}", self.last + 1)));
        }
        self.last = entry.index;
        if entry.kind == NORMAL {
            let asked = command(&entry.data);
            let asked = asked.map_err(|why| Error::Refused(format!("entry {} of the log {why}", entry.index)))?;
            self.commands.extend(asked);
        }
        Ok(())
    }
}

fn change_voters(entry: &Entry, voters: &mut BTreeSet<u64>) -> Result<(), Error> {
    let unknown =
        || Error::Refused(format!("entry {} of the log changes the members in a way that is not known", entry.index));
    if entry.kind != CONF_CHANGE {
        return Err(unknown());
    }
    let change = ConfChange::decode(entry.data.clone()).map_err(|_| unknown())?;
    match change.kind {
        VOTER => drop(voters.insert(change.member)),
        LEAVER => drop(voters.remove(&change.member)),
        ADDRESSES | LEARNER => {}
        _ => return Err(unknown()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::everwatchpb::command::Kind;

    /// A log file as etcd writes it: entries with index, kind and data, each with the commit index that stands behind it, if any.
    fn file(crc: &mut u32, entries: &[(u64, i32, &[u8], u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut frame = |record: Record| {
            let record = record.encode_to_vec();
            let padding = (8 - record.len() % 8) % 8;
            let mark = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
            file.extend((record.len() as u64 | mark).to_le_bytes());
            file.extend(&record);
            file.extend(vec![0; padding]);
        };
        frame(Record { kind: CHECKSUM, crc: *crc, data: Default::default() });
        for &(index, kind, data, commit) in entries {
            let entry = (ENTRY, Entry { kind, index, data: data.to_vec().into() }.encode_to_vec());
            let state = (HARD_STATE, HardState { commit }.encode_to_vec());
            for (kind, data) in [entry, state].into_iter().take(1 + usize::from(commit > 0)) {
                *crc = crc32c::crc32c_append(*crc, &data);
                frame(Record { kind, crc: *crc, data: data.into() });
            }
        }
        file.resize(file.len() + 512, 0);
        file
    }

    fn after(files: &[Vec<u8>], index: u64, voters: &[u64]) -> Result<Tail, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (n, file) in files.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{n:016x}-{n:016x}.wal")), file).unwrap();
        }
        std::fs::write(dir.path().join("0.tmp"), b"preallocated").unwrap();
        tail(dir.path(), index, voters.iter().copied().collect())
    }

    /// The keys that are put.
    fn puts(tail: &Tail) -> String {
        let keys = tail.commands.iter().map(|command| match &command.kind {
            Some(Kind::Put(put)) => str::from_utf8(&put.key).unwrap(),
            other => panic!("{other:?}"),
        });
        keys.collect()
    }

    fn why(outcome: Result<Tail, Error>) -> String {
        outcome.expect_err("it is refused").to_string()
    }

    // Requests with an id and: a put of a key, a cluster version, nothing else.
    const A: &[u8] = b"\x08\x01\x22\x03\x0a\x01a";
    const B: &[u8] = b"\x08\x01\x22\x03\x0a\x01b";
    const C: &[u8] = b"\x08\x01\x22\x03\x0a\x01c";
    const VERSION: &[u8] = b"\x08\x01\xa2\x51\x07\x0a\x053.5.0";
    const OLD: &[u8] = b"\x12\x03PUT";

    #[test]
    fn what_the_file_has_is_not_done_again_and_what_was_overwritten_never() {
        let mut crc = 0;
        let first = [(1, 1, &b""[..], 0), (2, 0, A, 0), (3, 0, b"", 0), (4, 0, VERSION, 0), (5, 0, A, 5)];
        let first = file(&mut crc, &first);
        let second = [(6, 0, A, 0), (7, 0, A, 0), (6, 0, VERSION, 0), (7, 0, B, 0), (8, 0, OLD, 8)];
        let second = file(&mut crc, &second);
        let files = [first.clone(), second.clone()];
        let found = after(&files, 1, &[7]).unwrap();
        assert_eq!((puts(&found), found.last), ("aab".to_owned(), 8));
        assert_eq!(puts(&after(&files, 5, &[7]).unwrap()), "b");
        let nothing = Tail { last: 8, ..Tail::default() };
        assert_eq!(after(&files, 8, &[7]).unwrap(), nothing);
        assert_eq!(after(&files, 7, &[7, 8]).unwrap(), nothing);
        // Cut in the middle of its last entry: it was never acknowledged. In an earlier file nothing may be missing.
        let torn = |file: &[u8]| file[..file.len() - 512 - 30].to_vec();
        assert_eq!(puts(&after(&[first.clone(), torn(&second)], 5, &[7]).unwrap()), "b");
        assert!(why(after(&[torn(&first), second.clone()], 5, &[7])).contains("damaged"));
        let mut changed = first;
        changed[40] ^= 1;
        assert!(why(after(&[changed, second], 5, &[7])).contains("damaged"));
    }

    #[test]
    fn a_member_alone_decides_and_one_of_several_does_not_know() {
        // Adds 8, in the words of raft; and takes it away.
        let (joins, leaves) = (&b"\x10\x00\x18\x08"[..], &b"\x10\x01\x18\x08"[..]);
        let files = [file(&mut 0, &[(4, 0, A, 4), (5, 0, VERSION, 0), (6, 0, B, 0), (7, 0, C, 0)])];
        let alone = after(&files, 3, &[7]).unwrap();
        assert_eq!((puts(&alone), alone.last, alone.undecided), ("abc".to_owned(), 7, vec![]));
        let several = after(&files, 3, &[7, 8]).unwrap();
        assert_eq!((puts(&several), several.last, several.undecided), ("a".to_owned(), 4, vec![6, 7]));
        // What counts is who decided when the member was last heard of.
        let files = |change| [file(&mut 0, &[(4, 0, A, 0), (5, CONF_CHANGE, change, 5), (6, 0, B, 0)])];
        assert_eq!(puts(&after(&files(joins), 3, &[7]).unwrap()), "a");
        assert_eq!(puts(&after(&files(leaves), 3, &[7, 8]).unwrap()), "ab");
        assert_eq!(puts(&after(&files(b"\x10\x03\x18\x08"), 3, &[7]).unwrap()), "ab");
        assert!(why(after(&files(b"\x10\x09"), 3, &[7])).contains("entry 5 of the log changes the members"));
        let joint = [file(&mut 0, &[(4, 2, b"", 4)])];
        assert!(why(after(&joint, 3, &[7])).contains("entry 4"));
    }

    #[test]
    fn a_log_with_gaps_and_one_that_is_not_understood_are_refused() {
        let gap = [file(&mut 0, &[(4, 0, A, 0), (6, 0, B, 6)])];
        assert_eq!(why(after(&gap, 3, &[7])), "the log lacks entry 5");
        assert_eq!(why(after(&gap, 2, &[7])), "the log lacks entry 3");
        assert!(after(&gap, 5, &[7]).is_ok() && after(&gap, 6, &[7]).is_ok());
        let short = [file(&mut 0, &[(4, 0, A, 9)])];
        assert_eq!(why(after(&short, 3, &[7])), "the log lacks entry 5, which is decided");
        let unknown = [file(&mut 0, &[(4, 0, b"\x08\x01\xe2\x5d\x00", 4)])];
        assert!(why(after(&unknown, 3, &[7])).starts_with("entry 4 of the log holds something"));
        assert_eq!(after(&[file(&mut 0, &[(4, 0, b"\xff", 0)])], 3, &[7, 8]).unwrap().undecided, [4]);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = file(&mut 0, &[(1, 0, A, 1), (2, 0, VERSION, 0)]);
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0xff, whole[at] ^ 1] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = after(&[bytes], 0, &[7]);
            }
        }
    }
}
