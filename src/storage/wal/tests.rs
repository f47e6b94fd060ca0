//! The log against a disk that forgets, tears and fails, and against every wrong byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Mutex;

use super::record::TRAILER_BYTES;
use super::*;
use crate::storage::seal::{self, Keys};

/// A disk in memory. `crash` keeps what was synced and an arbitrary part of the rest, sector by sector.
#[derive(Default)]
struct TestDisk(Arc<Mutex<Files>>);

/// What a log on a sealed disk is sealed with.
fn some_keys() -> Keys {
    Keys::parse(Path::new("keys"), &"4b".repeat(32)).unwrap()
}

#[derive(Default)]
struct Files {
    data: Vec<File>,
    names: Names,
    durable_names: Names,
    /// Changes of names since the directory was synced; what belongs together happens together.
    pending_names: Vec<Vec<(PathBuf, Option<usize>)>>,
    /// Calls that change something until one fails, and what it fails with.
    fail_in: Option<(u64, i32)>,
    /// Calls that ask something until one fails.
    fail_asking_in: Option<u64>,
    /// What the calls were that failed.
    failed: BTreeSet<&'static str>,
    /// What the log on it is sealed with, if it is.
    keys: Option<Keys>,
}

type Names = BTreeMap<PathBuf, usize>;

fn rename(names: &mut Names, changes: &[(PathBuf, Option<usize>)]) {
    for (path, id) in changes {
        match id {
            Some(id) => names.insert(path.clone(), *id),
            None => names.remove(path),
        };
    }
}

#[derive(Clone, Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

impl Files {
    fn change(&mut self, call: &'static str) -> io::Result<()> {
        match &mut self.fail_in {
            Some((0, errno)) => {
                self.failed.insert(call);
                return Err(io::Error::from_raw_os_error(*errno));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn ask(&mut self, call: &'static str) -> io::Result<()> {
        match &mut self.fail_asking_in {
            Some(0) => {
                self.failed.insert(call);
                return Err(io::Error::from_raw_os_error(5));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn rename(&mut self, changes: Vec<(PathBuf, Option<usize>)>) {
        rename(&mut self.names, &changes);
        self.pending_names.push(changes);
    }

    fn id(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn put_at(data: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if data.len() < offset + bytes.len() {
        data.resize(offset + bytes.len(), 0);
    }
    data[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl TestDisk {
    /// An empty one, sealed if asked for.
    fn new(sealed: bool) -> Arc<TestDisk> {
        let files = Files { keys: sealed.then(some_keys), ..Files::default() };
        Arc::new(TestDisk(Arc::new(Mutex::new(files))))
    }

    /// What the machine finds after a power cut: of what was not synced all, nothing, or each sector and name with an even
    /// chance.
    fn crash(&self, random: &mut Random) -> Arc<TestDisk> {
        let files = self.0.lock().unwrap();
        let mode = random.below(4);
        let mut kept = || mode == 0 || (mode > 1 && random.below(2) == 0);
        let mut names = files.durable_names.clone();
        files.pending_names.iter().filter(|_| kept()).for_each(|changes| rename(&mut names, changes));
        let keys = files.keys.clone();
        let mut after = Files { durable_names: names.clone(), names, keys, ..Files::default() };
        for file in &files.data {
            let mut data = file.durable.clone();
            for (offset, bytes) in &file.pending {
                let mut at = *offset as usize;
                let end = at + bytes.len();
                while at < end {
                    let stop = (at / 512 * 512 + 512).min(end);
                    if kept() {
                        put_at(&mut data, at, &bytes[at - *offset as usize..stop - *offset as usize]);
                    }
                    at = stop;
                }
            }
            after.data.push(File { now: data.clone(), durable: data, pending: Vec::new() });
        }
        Arc::new(TestDisk(Arc::new(Mutex::new(after))))
    }

    /// The same content on another disk, as the death of the process leaves it.
    fn copy(&self) -> Arc<TestDisk> {
        let files = self.0.lock().unwrap();
        let (data, names, keys) = (files.data.clone(), files.names.clone(), files.keys.clone());
        let copy = Files { data, names, keys, ..Files::default() };
        let copy = Files { durable_names: copy.names.clone(), ..copy };
        Arc::new(TestDisk(Arc::new(Mutex::new(copy))))
    }

    fn names(&self) -> Vec<String> {
        self.list(Path::new("wal")).unwrap()
    }

    /// Changes a file's bytes behind the log's back.
    fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut files = self.0.lock().unwrap();
        let id = files.id(&Path::new("wal").join(name)).unwrap();
        change(&mut files.data[id].now);
    }

    fn content(&self, name: &str) -> Vec<u8> {
        let files = self.0.lock().unwrap();
        files.data[files.id(&Path::new("wal").join(name)).unwrap()].now.clone()
    }

    fn fail_in(&self, calls: u64, errno: i32) {
        self.0.lock().unwrap().fail_in = Some((calls, errno));
    }
}

impl Disk for TestDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut files = self.0.lock().unwrap();
        files.ask("list")?;
        let names = files.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.0.lock().unwrap();
        files.change("create")?;
        files.data.push(File::default());
        let id = files.data.len() - 1;
        files.rename(vec![(path.to_owned(), Some(id))]);
        Ok(Box::new(TestFile(self.0.clone(), id)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut files = self.0.lock().unwrap();
        files.ask("open")?;
        let id = files.id(path)?;
        Ok(Box::new(TestFile(self.0.clone(), id)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("rename")?;
        let id = files.id(from)?;
        files.rename(vec![(from.to_owned(), None), (to.to_owned(), Some(id))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("remove")?;
        files.id(path)?;
        files.rename(vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("sync_dir")?;
        files.durable_names = files.names.clone();
        files.pending_names.clear();
        Ok(())
    }
}

struct TestFile(Arc<Mutex<Files>>, usize);

impl DiskFile for TestFile {
    fn len(&self) -> io::Result<u64> {
        let mut files = self.0.lock().unwrap();
        files.ask("len")?;
        Ok(files.data[self.1].now.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut files = self.0.lock().unwrap();
        files.ask("read_at")?;
        let from = files.data[self.1].now.get(offset as usize..).unwrap_or_default();
        let read = from.len().min(into.len());
        into[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("write_at")?;
        let bytes = pieces.iter().flat_map(|piece| piece.iter().copied()).collect::<Vec<u8>>();
        let file = &mut files.data[self.1];
        put_at(&mut file.now, offset as usize, &bytes);
        file.pending.push((offset, bytes));
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("preallocate")?;
        let file = &mut files.data[self.1];
        if file.now.len() < len as usize {
            let zeros = vec![0; len as usize - file.now.len()];
            file.pending.push((file.now.len() as u64, zeros));
            file.now.resize(len as usize, 0);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("set_len")?;
        let file = &mut files.data[self.1];
        file.now.resize(len as usize, 0);
        file.durable.truncate(len as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.change("sync")?;
        let file = &mut files.data[self.1];
        file.durable = file.now.clone();
        file.pending.clear();
        Ok(())
    }
}

/// Xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

const IDENTITY: (ClusterId, MemberId) = (ClusterId(0xc1), MemberId(0xa1));

fn open_with(disk: &Arc<TestDisk>, segment_bytes: u64) -> Result<(Wal, Replayed)> {
    let keys = disk.0.lock().unwrap().keys.clone();
    let disk = seal::disk(disk.clone(), keys.as_ref());
    Wal::open(disk, "wal".into(), WalOptions { segment_bytes, identity: IDENTITY })
}

fn open(disk: &Arc<TestDisk>) -> Result<(Wal, Replayed)> {
    open_with(disk, 2048)
}

fn entry(index: u64, term: u64, len: usize) -> LogEntry {
    let data = (0..len).map(|i| (index as usize * 31 + term as usize * 17 + i * 7) as u8 | 1).collect();
    LogEntry { kind: 0, term: Term(term), index: Index(index), data, context: Bytes::new() }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64, len: usize) -> Vec<LogEntry> {
    range.map(|index| entry(index, term, len)).collect()
}

fn hard_state(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: MemberId(term % 3), commit: Index(commit) }
}

fn base(index: u64, term: u64) -> Base {
    Base { index: Index(index), term: Term(term) }
}

/// What the log should say: the record applied the obvious way.
fn modelled(log: &Replayed, append: &Append<'_>) -> Replayed {
    let mut log = Replayed { base: log.base, hard_state: log.hard_state, entries: log.entries.clone() };
    if let Some(base) = append.reset {
        log.base = base;
        log.entries.clear();
    }
    if let Some(first) = append.entries.first() {
        log.entries.retain(|entry| entry.index < first.index);
        log.entries.extend_from_slice(append.entries);
    }
    log.hard_state = append.hard_state.copied().or(log.hard_state);
    log
}

fn truncated(log: &Replayed, base: Base) -> Replayed {
    let entries = log.entries.iter().filter(|entry| entry.index > base.index).cloned().collect();
    Replayed { base, hard_state: log.hard_state, entries }
}

fn last(log: &Replayed) -> u64 {
    log.entries.last().map_or(log.base.index.0, |entry| entry.index.0)
}

/// Several segments with entries, hard states and overwritten suffixes; everything is synced. Returns what it says before
/// and after the last record.
fn sample(disk: &Arc<TestDisk>) -> (Replayed, Replayed) {
    let (mut wal, mut log) = open(disk).unwrap();
    let mut before = Replayed::default();
    for step in 0..12 {
        let first = if step % 4 == 3 { last(&log) - 1 } else { last(&log) + 1 };
        let entries = entries(first..=first + 2, step + 1, 90);
        let hard_state = hard_state(step + 1, first);
        let append = Append { reset: None, entries: &entries, hard_state: Some(&hard_state) };
        wal.append(&append).unwrap();
        wal.sync().unwrap();
        before = std::mem::take(&mut log);
        log = modelled(&before, &append);
    }
    assert!(disk.names().len() >= 3, "more than one segment: {:?}", disk.names());
    (before, log)
}

/// The last segment's name, and where its last record and its seal start.
fn tail_of(disk: &TestDisk) -> (String, usize, usize) {
    let name = disk.names().into_iter().rfind(|name| name.ends_with(".wal")).unwrap();
    let data = disk.content(&name);
    let place = SegmentHeader::decode(&data).unwrap().place();
    let (mut previous, mut at) = (0, SEGMENT_HEADER_BYTES as usize);
    loop {
        let header = Header::decode(&data[at..], at as u64, &place).expect("a sealed log");
        if header.kind == Kind::Seal {
            return (name, previous, at);
        }
        previous = at;
        at += header.record_bytes() as usize;
    }
}

#[test]
fn what_was_appended_comes_back_at_every_opening() {
    for sealed in [false, true] {
        what_was_appended_comes_back(&TestDisk::new(sealed));
    }
}

fn what_was_appended_comes_back(disk: &Arc<TestDisk>) {
    let mut log = open(disk).unwrap().1;
    assert_eq!(log, Replayed::default());
    let reset = Some(base(40, 6));
    let steps: [(Option<Base>, Vec<LogEntry>, Option<HardState>); 8] = [
        (None, entries(1..=3, 1, 10), Some(hard_state(1, 0))),
        (None, entries(4..=9, 1, 500), None),
        (None, vec![], Some(hard_state(2, 5))),
        (None, entries(6..=7, 2, 20), None), // conflicting suffix, in another segment than what it replaces
        (None, entries(8..=8, 3, 5000), None), // longer than a segment
        (reset, vec![], Some(hard_state(6, 40))),
        (None, entries(41..=44, 6, 300), Some(hard_state(7, 41))),
        (Some(base(90, 9)), entries(91..=92, 9, 1), None),
    ];
    for (reset, entries, hard_state) in &steps {
        let append = Append { reset: *reset, entries, hard_state: hard_state.as_ref() };
        let (mut wal, replayed) = open(disk).unwrap();
        assert_eq!(replayed, log);
        wal.append(&append).unwrap();
        wal.sync().unwrap();
        log = modelled(&log, &append);
        assert_eq!((wal.base(), wal.last().0), (log.base, last(&log)));
    }
    let (mut wal, replayed) = open(disk).unwrap();
    assert_eq!(replayed, log);
    wal.truncate_front(base(91, 9)).unwrap();
    assert_eq!(open(disk).unwrap().1, truncated(&log, base(91, 9)));
    assert_eq!(disk.names().iter().filter(|name| name.ends_with(".wal")).count(), 1, "{:?}", disk.names());
}

#[test]
fn a_wrong_bit_anywhere_in_synced_records_is_refused() {
    let disk = Arc::new(TestDisk::default());
    let (_, log) = sample(&disk);
    let (tail, _, seal) = tail_of(&disk);
    for name in disk.names() {
        let data = disk.content(&name);
        let place = SegmentHeader::decode(&data).unwrap().place();
        for at in 0..data.len() {
            let hurt = disk.copy();
            hurt.tamper(&name, |data| data[at] ^= 1 << (at % 8));
            // Where no record is, a wrong bit may go unnoticed, but the log says the same.
            let end = |at| Header::decode(&data[at..], at as u64, &place).is_some_and(|h| h.kind != Kind::Record);
            let used = (0..data.len()).step_by(8).find(|at| end(*at)).unwrap();
            assert!(name != tail || used == seal);
            match open(&hurt) {
                Err(Error::Corrupt { path, offset, .. }) if at < used => {
                    assert!(path.ends_with(&name) && offset <= at as u64, "{name} {at}: {path:?} {offset}");
                }
                Ok((_, replayed)) if at >= used => assert_eq!(replayed, log, "{name} {at}"),
                other => panic!("{name} byte {at} of {used}: {:?}", other.map(|(_, replayed)| replayed)),
            }
        }
    }
}

#[test]
fn without_its_seal_only_the_last_record_may_be_taken_for_torn() {
    let disk = Arc::new(TestDisk::default());
    let (before, log) = sample(&disk);
    let (tail, last_record, seal) = tail_of(&disk);
    disk.tamper(&tail, |data| data[seal..seal + HEADER_BYTES].fill(0));
    assert_eq!(open(&disk.copy()).unwrap().1, log, "a lost seal means nothing");
    for at in 0..seal {
        let hurt = disk.copy();
        hurt.tamper(&tail, |data| data[at] ^= 1 << (at % 8));
        match open(&hurt) {
            Err(Error::Corrupt { .. }) if at < seal - 8 => {}
            // The trailer is the one place where a wrong bit and a lost sector look the same; nothing is missing.
            Ok((_, replayed)) if at >= seal - 8 => assert_eq!(replayed, log),
            other => panic!("byte {at}: {:?}", other.map(|(_, replayed)| last(&replayed))),
        }
        if at + 8 <= last_record {
            // Also when more than a bit is wrong.
            let hurt = disk.copy();
            hurt.tamper(&tail, |data| data[at..at + 8].iter_mut().for_each(|byte| *byte ^= 0xa5));
            assert!(matches!(open(&hurt), Err(Error::Corrupt { .. })), "byte {at}");
        }
    }
    assert_ne!(before, log);
}

#[test]
fn a_last_record_cut_anywhere_is_left_out_and_the_log_goes_on() {
    let disk = Arc::new(TestDisk::default());
    let (before, log) = sample(&disk);
    let (tail, last_record, seal) = tail_of(&disk);
    // With all but zeros of its body and nothing else missing, the record is whole.
    let whole = disk.content(&tail)[..seal - 8].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for cut in last_record..=seal {
        let torn = disk.copy();
        torn.tamper(&tail, |data| data[cut..].fill(0));
        let (mut wal, replayed) = open(&torn).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        let kept = if cut >= whole { &log } else { &before };
        assert!(&replayed == kept, "cut at {cut}: last {}", last(&replayed));
        // What is appended next is shorter than the traces of the record, and must not bring them back.
        let hard_state = hard_state(50, 3);
        let append = Append { hard_state: Some(&hard_state), ..Append::default() };
        wal.append(&append).unwrap();
        wal.sync().unwrap();
        assert_eq!(open(&torn).unwrap().1, modelled(kept, &append), "cut at {cut}");
    }
}

/// No crash shortens a segment, so records that are not there because the file ends were there.
#[test]
fn a_shortened_file_is_refused_unless_nothing_stood_in_what_is_missing() {
    let disk = Arc::new(TestDisk::default());
    let (_, log) = sample(&disk);
    let (tail, _, seal) = tail_of(&disk);
    let len = disk.content(&tail).len();
    for cut in (0..seal + 2 * HEADER_BYTES).chain([len - 1]) {
        let hurt = disk.copy();
        hurt.tamper(&tail, |data| data.truncate(cut));
        match open(&hurt) {
            Err(Error::Corrupt { path, .. }) if cut < seal + HEADER_BYTES => assert!(path.ends_with(&tail)),
            Ok((_, replayed)) if cut >= seal + HEADER_BYTES => {
                assert_eq!(replayed, log);
                assert_eq!(hurt.content(&tail).len(), len, "the file has its length back");
            }
            other => panic!("cut at {cut}, sealed at {seal}: {:?}", other.map(|(_, replayed)| last(&replayed))),
        }
    }
}

/// The hardest place: a last record of many sectors, in a used segment, without the seal that proves it.
#[test]
fn a_wrong_bit_in_a_long_last_record_is_never_taken_for_a_torn_write() {
    for recycled in [false, true] {
        let disk = Arc::new(TestDisk::default());
        let (mut wal, _) = open_with(&disk, 16 << 10).unwrap();
        let mut next = 1;
        while wal.tail.place.sequence < if recycled { 3 } else { 2 } {
            wal.append(&Append { entries: &[entry(next, 1, 900)], ..Append::default() }).unwrap();
            wal.sync().unwrap();
            next += 1;
            if next % 30 == 0 {
                wal.truncate_front(base(next - 2, 1)).unwrap();
            }
        }
        // In the middle of the value a sector of zeros, which in a fresh segment could be one that was not written.
        let mut long = entry(next, 1, 4000);
        let mut data = long.data.to_vec();
        data[1000..2500].fill(0);
        long.data = data.into();
        let start = wal.tail.position as usize;
        wal.append(&Append { entries: &[long], ..Append::default() }).unwrap();
        wal.sync().unwrap();
        let (tail, _, seal) = tail_of(&disk);
        let used = SegmentHeader::decode(&disk.content(&tail)).unwrap().recycled;
        assert_eq!(used, recycled);
        disk.tamper(&tail, |data| data[seal..seal + HEADER_BYTES].fill(0));
        let log = open_with(&disk.copy(), 16 << 10).unwrap().1;
        for at in start..seal {
            let hurt = disk.copy();
            hurt.tamper(&tail, |data| data[at] ^= 1 << (at % 8));
            match open_with(&hurt, 16 << 10) {
                Err(Error::Corrupt { path, offset, .. }) if at < seal - TRAILER_BYTES => {
                    assert!(path.ends_with(&tail) && offset == start as u64);
                }
                Ok((_, replayed)) if at >= seal - TRAILER_BYTES => assert_eq!(replayed, log),
                other => panic!("byte {at}: {:?}", other.map(|(_, replayed)| last(&replayed))),
            }
        }
        // A sector that was not written shows what was there before. That is still a torn write.
        let torn = disk.copy();
        let sector = (start + 512).next_multiple_of(512);
        torn.tamper(&tail, |data| data[sector..sector + 512].fill(if recycled { 0x77 } else { 0 }));
        assert_eq!(last(&open_with(&torn, 16 << 10).unwrap().1), next - 1);
    }
}

#[test]
fn a_missing_or_foreign_file_is_refused() {
    let disk = Arc::new(TestDisk::default());
    sample(&disk);
    let names = disk.names();
    for gone in &names {
        let hurt = disk.copy();
        hurt.remove(&Path::new("wal").join(gone)).unwrap();
        assert!(matches!(open(&hurt), Err(Error::Corrupt { .. })), "without {gone}");
    }
    // A crash between the making of a segment and the mark at the end of the one before leaves no mark. An opening does.
    let crashed = disk.copy();
    let (before_last, gone) = (&names[names.len() - 2], &names[names.len() - 1]);
    let place = SegmentHeader::decode(&disk.content(before_last)).unwrap().place();
    let end = SegmentHeader::decode(&disk.content(gone)).unwrap().previous_end as usize;
    let marked = |disk: &TestDisk| {
        let data = disk.content(before_last);
        Header::decode(&data[end..], end as u64, &place).is_some_and(|mark| mark.kind == Kind::End)
    };
    assert!(marked(&crashed));
    crashed.tamper(before_last, |data| data[end..end + HEADER_BYTES].fill(0));
    open(&crashed).unwrap();
    assert!(marked(&crashed));
    crashed.remove(&Path::new("wal").join(gone)).unwrap();
    assert!(matches!(open(&crashed), Err(Error::Corrupt { .. })), "without the last, after a crash");
    let swapped = disk.copy();
    let content = disk.content(&names[0]);
    swapped.tamper(&names[1], |data| *data = content);
    assert!(matches!(open(&swapped), Err(Error::Corrupt { .. })));
    for identity in [(ClusterId(1), IDENTITY.1), (IDENTITY.0, MemberId(1))] {
        let options = WalOptions { segment_bytes: 2048, identity };
        let error = Wal::open(disk.copy(), "wal".into(), options).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }));
        assert!(error.to_string().contains("belongs to member a1 of cluster c1"), "{error}");
    }
}

#[test]
fn recycled_segments_never_show_what_they_held() {
    for sealed in [false, true] {
        recycled_segments_hide(&TestDisk::new(sealed));
    }
}

fn recycled_segments_hide(disk: &Arc<TestDisk>) {
    let (mut wal, mut log) = open(disk).unwrap();
    let mut recycled = BTreeSet::new();
    for round in 1..60 {
        let entries = entries(last(&log) + 1..=last(&log) + 3, round, 100);
        let append = Append { entries: &entries, ..Append::default() };
        wal.append(&append).unwrap();
        wal.sync().unwrap();
        log = modelled(&log, &append);
        if round % 7 == 0 {
            let base = Base { index: Index(last(&log) - 2), term: Term(round) };
            wal.truncate_front(base).unwrap();
            log = truncated(&log, base);
            recycled.extend(disk.names().into_iter().filter(|name| name.ends_with(".free")));
        }
        assert_eq!(open(&disk.copy()).unwrap().1, log, "round {round}");
    }
    assert!(recycled.len() > 4, "{recycled:?}");
    assert!(disk.names().len() <= 2 + SPARES_MAX + 1, "{:?}", disk.names());
    assert!(disk.0.lock().unwrap().data.len() < 8, "files are used again");
}

#[test]
fn an_idle_log_gets_its_next_segment_ready() {
    let disk = Arc::new(TestDisk::default());
    let segment_bytes = PREPARE_STEP_BYTES + 1;
    let (mut wal, _) = open_with(&disk, segment_bytes).unwrap();
    assert!(!wal.prepare().unwrap(), "too early");
    let entry = |index| [entry(index, 1, segment_bytes as usize * 6 / 10)];
    wal.append(&Append { entries: &entry(1), ..Append::default() }).unwrap();
    assert!(wal.prepare().unwrap());
    // A segment is needed in between. Preparing goes on for the one after it.
    wal.append(&Append { entries: &entry(2), ..Append::default() }).unwrap();
    assert!(!wal.prepare().unwrap());
    assert!(disk.names().contains(&segment::ZEROED.to_owned()));
    wal.append(&Append { entries: &entry(3), ..Append::default() }).unwrap();
    wal.sync().unwrap();
    assert_eq!(disk.names(), [1, 2, 3].map(segment::name));
    assert!(wal.prepare().unwrap());
    assert_eq!(last(&open_with(&disk, segment_bytes).unwrap().1), 3);
    assert_eq!(disk.names(), [1, 2, 3].map(segment::name));
}

/// Version 1 of the format: what was written once is read for ever, and what is written now is the same.
#[test]
fn the_format_is_the_fixture() {
    let fixture: [(&str, &[u8]); 2] = [
        ("0000000000000001.wal", include_bytes!("../../../tests/fixtures/wal-v1/0000000000000001.wal")),
        ("0000000000000002.wal", include_bytes!("../../../tests/fixtures/wal-v1/0000000000000002.wal")),
    ];
    let dir = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_bytes: 640, identity: IDENTITY };
    let (mut wal, mut log) = Wal::open(Arc::new(disk::RealDisk), dir.path().into(), options).unwrap();
    let (long, short, hard_state) = (entries(1..=2, 1, 70), entries(2..=2, 2, 3), hard_state(2, 1));
    for append in [
        Append { entries: &long, ..Append::default() },
        Append { entries: &short, hard_state: Some(&hard_state), ..Append::default() },
        Append { reset: Some(base(9, 2)), hard_state: Some(&hard_state), ..Append::default() },
    ] {
        wal.append(&append).unwrap();
        wal.sync().unwrap();
        log = modelled(&log, &append);
    }
    drop(wal);
    for (name, bytes) in fixture {
        assert!(std::fs::read(dir.path().join(name)).unwrap() == bytes, "{name} differs from the fixture");
    }
    assert_eq!(Wal::open(Arc::new(disk::RealDisk), dir.path().into(), options).unwrap().1, log);
}

#[test]
fn after_a_failed_call_nothing_more_is_written_and_what_was_synced_is_there() {
    let mut failed = BTreeSet::new();
    for (errno, sealed) in [(5, false), (28, false), (28, true)] {
        for calls in 0..if sealed { 120 } else { 80 } {
            let disk = TestDisk::new(sealed);
            let (mut wal, mut log) = open(&disk).unwrap();
            disk.fail_in(calls, errno);
            let mut maybe;
            let error = loop {
                let entries = entries(last(&log) + 1..=last(&log) + 2, 1, 200);
                let append = Append { entries: &entries, ..Append::default() };
                maybe = modelled(&log, &append);
                if let Err(error) = wal.append(&append).and_then(|()| wal.sync()) {
                    break error;
                }
                log = maybe;
                if last(&log).is_multiple_of(10) {
                    let base = base(last(&log) - 1, 1);
                    maybe = truncated(&log, base);
                    if let Err(error) = wal.truncate_front(base) {
                        break error;
                    }
                    log = maybe;
                }
            };
            assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(errno)), "{error}");
            disk.0.lock().unwrap().fail_in = None;
            failed.append(&mut disk.0.lock().unwrap().failed);
            let writes = disk.copy().0.lock().unwrap().data.iter().map(|f| f.now.clone()).collect::<Vec<_>>();
            let one = [entry(last(&log) + 1, 1, 1)];
            assert!(matches!(wal.append(&Append { entries: &one, ..Append::default() }), Err(Error::Poisoned)));
            assert!(matches!(wal.append(&Append::default()), Err(Error::Poisoned)));
            assert!(matches!(wal.sync(), Err(Error::Poisoned)));
            assert!(matches!(wal.truncate_front(log.base), Err(Error::Poisoned)));
            let after = disk.0.lock().unwrap().data.iter().map(|f| f.now.clone()).collect::<Vec<_>>();
            assert!(writes == after, "a poisoned log writes nothing");
            let replayed = open(&disk.crash(&mut Random(calls * 2 + 1))).unwrap().1;
            assert!(replayed == log || replayed == maybe, "call {calls}: {replayed:?}");
        }
    }
    let all = ["create", "preallocate", "rename", "sync", "sync_dir", "write_at"];
    assert_eq!(failed.into_iter().collect::<Vec<_>>(), all, "each kind of call has failed");
}

/// A disk that does not answer is no reason to believe in a shorter log, nor is one that fails while the end is repaired.
#[test]
fn an_opening_that_fails_anywhere_changes_nothing_of_what_the_log_says() {
    let disk = Arc::new(TestDisk::default());
    let (_, log) = sample(&disk);
    let (tail, _, seal) = tail_of(&disk);
    // Traces of a record that was never acknowledged are to be removed, and the mark of an earlier segment to be written again.
    disk.tamper(&tail, |data| data[seal..].fill(7));
    let (names, mut failed) = (disk.names(), BTreeSet::new());
    let before_last = SegmentHeader::decode(&disk.content(&names[names.len() - 1])).unwrap().previous_end as usize;
    disk.tamper(&names[names.len() - 2], |data| data[before_last..before_last + HEADER_BYTES].fill(0));
    for changes in [false, true] {
        for calls in 0.. {
            let sick = disk.copy();
            match changes {
                true => sick.fail_in(calls, 5),
                false => sick.0.lock().unwrap().fail_asking_in = Some(calls),
            }
            let Err(error) = open(&sick) else { break };
            assert!(matches!(&error, Error::Io { source, .. } if source.raw_os_error() == Some(5)), "{error}");
            assert!(error.to_string().contains("wal"), "{error}");
            failed.append(&mut sick.0.lock().unwrap().failed);
            sick.0.lock().unwrap().fail_asking_in = None;
            for seed in 1..5 {
                let after = sick.crash(&mut Random(calls * 9 + seed));
                assert_eq!(open(&after).unwrap().1, log, "call {calls}");
            }
        }
    }
    let all = ["len", "list", "open", "preallocate", "read_at", "sync", "write_at"];
    assert_eq!(failed.into_iter().collect::<Vec<_>>(), all);
}

/// Power is cut at arbitrary moments, also in the middle of any call, again and again. The log must open, and hold every
/// record that was synced, perhaps some that were not, in order and without a gap.
#[test]
fn power_cuts_lose_nothing_that_was_synced() {
    for seed in 1..=900 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut disk = TestDisk::new(seed > 600);
        // states[0] is what is durable for sure; the others may be.
        let mut states = vec![Replayed::default()];
        for _ in 0..8 {
            if random.below(3) > 0 {
                disk.fail_in(random.below(60), 5);
            }
            live_until_power_is_cut(seed, &mut random, &disk, &mut states);
            disk = if random.below(5) == 0 { disk.copy() } else { disk.crash(&mut random) };
        }
    }
}

fn live_until_power_is_cut(seed: u64, random: &mut Random, disk: &Arc<TestDisk>, states: &mut Vec<Replayed>) {
    let (mut wal, replayed) = match open(disk) {
        Ok(opened) => opened,
        Err(Error::Io { .. }) => return,
        Err(error) => panic!("SEED {seed}: {error}"),
    };
    assert!(states.contains(&replayed), "SEED {seed}: {:?} to {} is none", replayed.base, last(&replayed));
    *states = vec![replayed];
    for _ in 0..random.below(25) {
        let log = states.last().unwrap();
        let term = 1 + random.below(50);
        let hard = hard_state(term, random.below(100));
        let len = [0, 30, 700, 2500][random.below(4) as usize] + random.below(50) as usize;
        let end = last(log);
        let first = 1 + end - random.below((end - log.base.index.0).min(3) + 1);
        let made = entries(first..=first + random.below(3), term, len);
        let append = match random.below(10) {
            0 => Append { reset: Some(base(end + 5, term)), hard_state: Some(&hard), ..Append::default() },
            1..3 => Append { hard_state: Some(&hard), ..Append::default() },
            8 if wal.prepare().is_err() => return,
            9 if end > log.base.index.0 => {
                let base = base(log.base.index.0 + 1 + random.below(end - log.base.index.0), term);
                states.push(truncated(log, base));
                if wal.truncate_front(base).is_err() {
                    return;
                }
                states.drain(..states.len() - 1);
                continue;
            }
            _ => Append { entries: &made, hard_state: Some(&hard), ..Append::default() },
        };
        states.push(modelled(log, &append));
        if wal.append(&append).is_err() || (random.below(3) == 0 && wal.sync().is_err()) {
            return;
        }
        if wal.tail.synced == wal.tail.position {
            states.drain(..states.len() - 1);
        }
    }
}

/// A sector that a power cut kept from being written is no damage, sealed or not, wherever its record starts: nothing of the record was
/// acknowledged.
#[test]
fn a_record_without_one_of_its_sectors_is_torn() {
    for (sealed, used) in [(false, false), (false, true), (true, false), (true, true)] {
        for small in 0..9 {
            let disk = TestDisk::new(sealed);
            let (mut wal, _) = open_with(&disk, 8 << 10).unwrap();
            let mut next = 1;
            while used && wal.tail.place.sequence < 4 {
                wal.append(&Append { entries: &[entry(next, 1, 900)], ..Append::default() }).unwrap();
                wal.truncate_front(base(next, 1)).unwrap();
                next += 1;
            }
            wal.append(&Append { entries: &[entry(next, 1, 60 * small)], ..Append::default() }).unwrap();
            wal.sync().unwrap();
            let log = open_with(&disk.copy(), 8 << 10).unwrap().1;
            let before = disk.copy();
            let (start, end) = (wal.tail.position as usize, wal.tail.position as usize + 1400);
            wal.append(&Append { entries: &[entry(next + 1, 1, 1300)], ..Append::default() }).unwrap();
            let name = disk.names().into_iter().rfind(|name| name.ends_with(".wal")).unwrap();
            let (old, new) = (before.content(&name), disk.content(&name));
            let sectors = (0..new.len()).step_by(512).filter(|at| old[*at..][..512] != new[*at..][..512]);
            let sectors: Vec<usize> = sectors.collect();
            assert!(
                sectors.len() >= 3 && (sealed || sectors[0] >= start / 512 * 512),
                "{sectors:?} of {start} to {end}"
            );
            for lost in &sectors {
                let torn = disk.copy();
                torn.tamper(&name, |data| data[*lost..][..512].copy_from_slice(&old[*lost..][..512]));
                let found = open_with(&torn, 8 << 10).map(|(_, replayed)| replayed);
                let found = found.unwrap_or_else(|e| panic!("sealed {sealed}, used {used}, {small}, {lost}: {e}"));
                // Without the trailer alone nothing is missing.
                assert!(found == log || (lost == sectors.last().unwrap() && last(&found) == next + 1));
            }
        }
    }
}

/// Nothing of a sealed log can be changed without being noticed, nor is anything of it taken for torn. Where nothing was written, a
/// wrong bit may go unnoticed, but the log says the same.
#[test]
fn a_wrong_bit_anywhere_in_a_sealed_log_is_refused() {
    let disk = TestDisk::new(true);
    let (_, log) = sample(&disk);
    for name in disk.names() {
        let data = disk.content(&name);
        for at in 0..data.len() {
            let hurt = disk.copy();
            hurt.tamper(&name, |data| data[at] ^= 1 << (at % 8));
            match open(&hurt).map(|(_, replayed)| replayed) {
                Err(Error::Corrupt { path, offset, .. }) => {
                    assert!(path.ends_with(&name) && offset <= at as u64, "{name} {at}: {path:?} {offset}");
                }
                Ok(replayed) if data[at / 512 * 512..][..512] == [0; 512] => assert_eq!(replayed, log),
                other => panic!("{name} byte {at}: {other:?}"),
            }
        }
        // Sectors that change places, or come from another file.
        for (from, to) in [(512, 1024), (1024, 512)] {
            let hurt = disk.copy();
            hurt.tamper(&name, |data| data.copy_within(from..from + 512, to));
            assert!(matches!(open(&hurt).map(|_| ()), Err(Error::Corrupt { .. })), "{name} {from} to {to}");
        }
    }
    let [first, second] = &disk.names()[..2] else { panic!("there are several") };
    let (hurt, foreign) = (disk.copy(), disk.content(second));
    hurt.tamper(first, |data| data[512..1024].copy_from_slice(&foreign[512..1024]));
    assert!(matches!(open(&hurt).map(|_| ()), Err(Error::Corrupt { .. })));
    let unsealed = disk.copy();
    unsealed.0.lock().unwrap().keys = None;
    assert!(open(&unsealed).is_err());
}

#[test]
fn what_a_crash_left_of_a_record_never_comes_back() {
    let disk = Arc::new(TestDisk::default());
    let (mut wal, log) = open(&disk).unwrap();
    let hard_state = hard_state(1, 0);
    let first = Append { hard_state: Some(&hard_state), ..Append::default() };
    let at = wal.tail.position as usize;
    wal.append(&first).unwrap();
    wal.append(&Append { entries: &entries(1..=2, 1, 50), ..Append::default() }).unwrap();
    // The power goes before a sync, and of the two records only the second is on disk.
    disk.tamper(&segment::name(1), |data| data[at..at + 40].fill(0));
    let (mut wal, replayed) = open(&disk).unwrap();
    assert_eq!(replayed, log);
    // The same record again makes the chain that the second one continues. The power goes before the seal is on disk.
    wal.append(&first).unwrap();
    wal.sync().unwrap();
    let durable = disk.0.lock().unwrap().data[0].durable.clone();
    disk.tamper(&segment::name(1), |data| *data = durable);
    assert_eq!(open(&disk).unwrap().1, modelled(&log, &first));
}

/// etcd's log took lengths and indexes at their word (CVE-2020-15106, CVE-2020-15112).
#[test]
fn hostile_files_are_refused_without_panic() {
    let mut random = Random(77);
    let disk = Arc::new(TestDisk::default());
    sample(&disk);
    let names = disk.names();
    for _ in 0..300 {
        let hurt = disk.copy();
        hurt.tamper(&names[random.below(names.len() as u64) as usize], |data| {
            let from = random.below(data.len() as u64) as usize;
            let to = (from + random.below(400) as usize).min(data.len());
            data[from..to].iter_mut().for_each(|byte| *byte = random.below(256) as u8);
        });
        let _ = open(&hurt);
    }
    // A client's value that looks like the proof that the record it is in had been synced.
    let forged = Arc::new(TestDisk::default());
    let (mut wal, _) = open(&forged).unwrap();
    let place = wal.tail.place;
    let mut one = entry(1, 1, 600);
    let starts = wal.tail.position as usize + HEADER_BYTES + 8 + 32;
    let mut data = one.data.to_vec();
    for at in (starts.next_multiple_of(8)..starts + 500).step_by(HEADER_BYTES) {
        let proof = Header { kind: Kind::Seal, offset: at as u64, synced: at as u64, body_len: 0, chain: 0 };
        data[at - starts..][..HEADER_BYTES].copy_from_slice(&proof.encode(&place));
    }
    one.data = data.into();
    wal.append(&Append { entries: &[one], ..Append::default() }).unwrap();
    let end = wal.tail.position as usize;
    forged.tamper(&segment::name(1), |data| data[end - 9..end].fill(0));
    assert_eq!(last(&open(&forged).unwrap().1), 0);
    // A header that is valid in every way and claims 4 GiB.
    let (tail, at, _) = tail_of(&disk);
    disk.tamper(&tail, |data| {
        let place = SegmentHeader::decode(data).unwrap().place();
        let header = Header::decode(&data[at..], at as u64, &place).unwrap();
        let lying = Header { body_len: u32::MAX, ..header };
        data[at..at + HEADER_BYTES].copy_from_slice(&lying.encode(&place));
    });
    assert!(matches!(open(&disk), Err(Error::Corrupt { .. })), "the seal proves that it was synced");
}
