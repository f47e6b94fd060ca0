//! The log on a disk that somebody has been at: files cut, overwritten, mixed with one another, repeated, missing.
//!
//! Whatever was done, opening refuses, or gives a state that the log really went through: no entry that was not written,
//! none out of order, and everything that was written before the first changed byte. A log that opens goes on.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use everwatch::storage::Error;
use everwatch::storage::disk::{Disk, DiskFile};
use everwatch::storage::seal::{self, Keys};
use everwatch::storage::wal::{Append, Base, HardState, LogEntry, Replayed, Wal, WalOptions};
use everwatch::types::{ClusterId, Index, MemberId, Term};

use crate::engine::{Feed, gist, outcome};

/// Files in memory, all of them in one directory.
#[derive(Default)]
struct Files {
    data: Vec<Vec<u8>>,
    names: BTreeMap<String, usize>,
    /// The file last written to, and where that ended.
    written: (usize, u64),
}

#[derive(Clone, Default)]
struct MemoryDisk(Arc<Mutex<Files>>);

fn name(path: &Path) -> String {
    path.file_name().expect("a file").to_str().expect("a name").to_owned()
}

impl MemoryDisk {
    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.0.lock().expect("nobody panicked in here")
    }

    /// The name of the file last written to, and where that ended.
    fn written(&self) -> (String, u64) {
        let files = self.files();
        let (file, end) = files.written;
        let name = files.names.iter().find(|(_, id)| **id == file).map(|(name, _)| name.clone());
        (name.expect("the log writes to files that have names"), end)
    }

    fn content(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files();
        files.names.iter().map(|(name, id)| (name.clone(), files.data[*id].clone())).collect()
    }

    fn of(content: BTreeMap<String, Vec<u8>>) -> MemoryDisk {
        let mut files = Files::default();
        for (name, data) in content {
            files.data.push(data);
            files.names.insert(name, files.data.len() - 1);
        }
        MemoryDisk(Arc::new(Mutex::new(files)))
    }
}

impl Disk for MemoryDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<String>> {
        Ok(self.files().names.keys().cloned().collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.files();
        files.data.push(Vec::new());
        let id = files.data.len() - 1;
        files.names.insert(name(path), id);
        Ok(Box::new(MemoryFile(self.clone(), id)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let id = *self.files().names.get(&name(path)).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(MemoryFile(self.clone(), id)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files();
        let id = files.names.remove(&name(from)).ok_or(io::ErrorKind::NotFound)?;
        files.names.insert(name(to), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().names.remove(&name(path)).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

struct MemoryFile(MemoryDisk, usize);

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.files().data[self.1].len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let files = self.0.files();
        let from = files.data[self.1].get(offset as usize..).unwrap_or_default();
        let read = from.len().min(into.len());
        into[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut files = self.0.files();
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let data = &mut files.data[self.1];
        if data.len() < end {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(&bytes);
        files.written = (self.1, end as u64);
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let data = &mut self.0.files().data[self.1];
        if data.len() < len as usize {
            data.resize(len as usize, 0);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.files().data[self.1].resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What the log says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    base: Base,
    hard_state: Option<HardState>,
    entries: Vec<LogEntry>,
}

impl Said {
    fn of(replayed: Replayed) -> Said {
        Said { base: replayed.base, hard_state: replayed.hard_state, entries: replayed.entries }
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(self.base.index.0, |entry| entry.index.0)
    }

    fn appended(&self, append: &Append<'_>) -> Said {
        let mut said = self.clone();
        if let Some(base) = append.reset {
            (said.base, said.entries) = (base, Vec::new());
        }
        if let Some(first) = append.entries.first() {
            said.entries.retain(|entry| entry.index < first.index);
            said.entries.extend_from_slice(append.entries);
        }
        said.hard_state = append.hard_state.copied().or(said.hard_state);
        said
    }

    fn truncated(&self, base: Base) -> Said {
        let entries = self.entries.iter().filter(|entry| entry.index > base.index).cloned().collect();
        Said { base, hard_state: self.hard_state, entries }
    }
}

fn open(disk: &MemoryDisk, keys: Option<&Keys>) -> Result<(Wal, Said), Error> {
    let options = WalOptions { segment_bytes: 2048, identity: (ClusterId(0xc1), MemberId(0xa1)) };
    let (wal, replayed) = Wal::open(seal::disk(Arc::new(disk.clone()), keys), PathBuf::from("wal"), options)?;
    Ok((wal, Said::of(replayed)))
}

fn entry(feed: &mut Feed<'_>, index: u64, term: u64) -> LogEntry {
    let len = feed.pick(&[1, 8, 40, 90, 500, 700, 2100]);
    let mark = feed.byte();
    // Values that look like records are a client's good right.
    let data: Bytes = match mark % 8 {
        7 => b"EwR1EwT1EWSEGv1\n".iter().copied().cycle().take(len).collect(),
        6 => vec![0; len].into(),
        _ => (0..len).map(|i| (i as u8).wrapping_mul(31) ^ mark).collect(),
    };
    let context = Bytes::from(if mark == 5 { vec![mark; 3] } else { Vec::new() });
    LogEntry { kind: mark % 3, term: Term(term), index: Index(index), data, context }
}

/// A log's life; what it said after each record, and where that record ended.
fn live(feed: &mut Feed<'_>, disk: &MemoryDisk, keys: Option<&Keys>) -> (Vec<Said>, Vec<(String, u64)>) {
    let (mut wal, said) = open(disk, keys).expect("a new log");
    let (mut states, mut ends) = (vec![said], vec![(String::new(), 0)]);
    for step in 0..feed.below(24) as u64 {
        let said = states.last().expect("the first").clone();
        let (end, term) = (said.last(), step / 3 + 1);
        let hard = HardState { term: Term(term), vote: MemberId(term % 3), commit: Index(end) };
        let first = 1 + end - feed.below(3).min((end - said.base.index.0) as usize) as u64;
        let count = feed.below(3) as u64;
        let made: Vec<LogEntry> = (first..=first + count).map(|index| entry(feed, index, term)).collect();
        let append = match feed.below(12) {
            9 => Append {
                reset: Some(Base { index: Index(end + 5), term: Term(term) }),
                hard_state: Some(&hard),
                entries: &[],
            },
            10 => Append { hard_state: Some(&hard), ..Append::default() },
            11 if end > said.base.index.0 => {
                let index = said.base.index.0 + 1 + feed.below((end - said.base.index.0) as usize) as u64;
                let base = Base { index: Index(index), term: Term(term) };
                wal.truncate_front(base).expect("a disk without faults");
                states.push(said.truncated(base));
                ends.push(disk.written());
                continue;
            }
            8 => Append { entries: &made, ..Append::default() },
            _ => Append { entries: &made, hard_state: Some(&hard), ..Append::default() },
        };
        wal.append(&append).expect("a disk without faults");
        states.push(said.appended(&append));
        ends.push(disk.written());
        match feed.below(8) {
            7 => {}
            6 => {
                let _ = wal.prepare().expect("a disk without faults");
            }
            5 => {
                drop(wal);
                let (opened, found) = open(disk, keys).expect("nobody has been at it");
                assert_eq!(Some(&found), states.last(), "a log that nobody has been at");
                wal = opened;
            }
            _ => wal.sync().expect("a disk without faults"),
        }
    }
    (states, ends)
}

/// Changes files; returns the first place that is not as it was.
fn tamper(feed: &mut Feed<'_>, files: &mut BTreeMap<String, Vec<u8>>) -> Option<(String, u64)> {
    let mut first: Option<(String, u64)> = None;
    for _ in 0..1 + feed.below(3) {
        if feed.is_empty() || files.is_empty() {
            break;
        }
        let names: Vec<String> = files.keys().cloned().collect();
        let name = names[feed.below(names.len())].clone();
        let other = names[feed.below(names.len())].clone();
        let data = files.get_mut(&name).expect("listed");
        let len = data.len().max(1);
        // Where records are, more often than where nothing is yet.
        let used = data.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let limit = if feed.one_in(8) { len } else { used };
        let at = (feed.u64() >> 1) as usize % limit;
        let size = feed.pick(&[1usize, 4, 8, 48, 512, 4096]).min(data.len() - at.min(data.len()));
        let mut place = at as u64;
        match feed.below(10) {
            _ if data.is_empty() => {}
            0 | 1 => data[at] ^= 1 << feed.below(8),
            2 => data[at..at + size].fill(0),
            3 => {
                let mark = feed.byte() | 1;
                data[at..at + size].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(mark).wrapping_add(mark));
            }
            4 => data.truncate(at),
            5 => {
                let from = feed.below(len).min(len - size);
                data.copy_within(from..from + size, at);
            }
            6 => {
                let source = files[&other].clone();
                let data = files.get_mut(&name).expect("listed");
                let end = (at + size).min(source.len()).min(data.len());
                if at < end {
                    data[at..end].copy_from_slice(&source[at..end]);
                }
            }
            7 => {
                let copy = data.clone();
                let to = match feed.below(3) {
                    0 => other,
                    _ => format!("{:016x}.wal", feed.below(12)),
                };
                files.insert(to.clone(), copy);
                first = first.into_iter().chain([(to, 0)]).min();
                continue;
            }
            8 => {
                files.remove(&name);
                place = 0;
            }
            _ => data.extend(std::iter::repeat_n(feed.byte(), 512)),
        }
        first = first.into_iter().chain([(name, place)]).min();
    }
    first
}

pub(crate) fn run(input: &[u8]) -> u64 {
    run_with(input, None)
}

/// The same log on a disk where it is sealed.
pub(crate) fn run_sealed(input: &[u8]) -> u64 {
    let keys = Keys::parse(Path::new("keys"), &"5e".repeat(32)).expect("a key");
    run_with(input, Some(&keys))
}

fn run_with(input: &[u8], keys: Option<&Keys>) -> u64 {
    let mut feed = Feed::new(input);
    let disk = MemoryDisk::default();
    let (states, ends) = live(&mut feed, &disk, keys);
    let mut files = disk.content();
    let changed = tamper(&mut feed, &mut files);
    let logless = !files.keys().any(|name| name.ends_with(".wal"));
    // Spare files have names that sort among the others, and count too: that makes the demand smaller, never larger.
    let safe = |end: &(String, u64)| changed.as_ref().is_none_or(|place| end <= place);
    let kept = ends.iter().take_while(|end| safe(end)).count() - 1;

    let disk = MemoryDisk::of(files);
    let (mut wal, said) = match open(&disk, keys) {
        Ok(opened) => opened,
        Err(Error::Corrupt { what, .. }) => {
            assert!(changed.is_some(), "a log that nobody has been at was refused: {what}");
            return outcome(gist(&what));
        }
        Err(error) => {
            assert!(changed.is_some(), "a log that nobody has been at was refused: {error}");
            return outcome(gist(&error.to_string()));
        }
    };
    let found = states.iter().rposition(|state| *state == said);
    let place = found.unwrap_or_else(|| panic!("entries to {} were never what the log said", said.last()));
    assert!(place >= kept || logless, "record {place} is the last, but {kept} stood before the first changed byte");

    // What opens goes on, and comes back.
    let next =
        LogEntry { kind: 0, term: Term(99), index: Index(said.last() + 1), data: "x".into(), context: Bytes::new() };
    let append = Append { entries: &[next], ..Append::default() };
    wal.append(&append).expect("a disk without faults");
    wal.sync().expect("a disk without faults");
    drop(wal);
    let again = open(&disk, keys).map(|(_, said)| said).unwrap_or_else(|error| panic!("a log that went on: {error}"));
    assert_eq!(again, said.appended(&append), "a log that went on");
    outcome((states.len() - place, changed.is_some(), states.len() / 4))
}
