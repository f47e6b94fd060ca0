//! Sealed files: that they look like others, hold nothing that can be read, and are opened with the right key alone.

use std::io::IoSlice;
use std::sync::Mutex;

use super::*;
use crate::storage::backend::disk::{CACHE_BYTES, DiskBackend};
use crate::storage::backend::{Backend, Batch, Bucket};
use crate::storage::datadir::STATE;
use crate::storage::wal::{Append, LogEntry, Wal, WalOptions};
use crate::types::{ClusterId, Index, MemberId, Term};

const SECRET: &[u8] = b"nobody reads this";

fn keys(of: &[u8]) -> Keys {
    let lines: Vec<String> = of.iter().map(|byte| format!("{byte:02x}").repeat(32)).collect();
    Keys::parse(Path::new("the-keys"), &lines.join("\n")).unwrap()
}

/// A file in memory, for which nothing but its content counts.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl DiskFile for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let data = self.0.lock().unwrap();
        let from = data.get(offset as usize..).unwrap_or_default();
        let read = from.len().min(into.len());
        into[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let (mut data, mut at) = (self.0.lock().unwrap(), offset as usize);
        for piece in pieces {
            let end = at + piece.len();
            let len = data.len().max(end);
            data.resize(len, 0);
            data[at..end].copy_from_slice(piece);
            at = end;
        }
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut data = self.0.lock().unwrap();
        let len = data.len().max(len as usize);
        data.resize(len, 0);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Xorshift: the same numbers for the same seed.
fn random_below(state: &mut u64, limit: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) % limit
}

#[test]
fn a_sealed_file_looks_like_one_that_is_not() {
    let keys = keys(&[1]);
    for (shape, seed) in [Shape::Log, Shape::Pages].into_iter().flat_map(|shape| (1..40).map(move |seed| (shape, seed)))
    {
        let (below, plain, mut random) = (Memory::default(), Memory::default(), seed);
        let mut sealed = SealedFile::create(Box::new(below.clone()), shape, &keys).unwrap();
        for _ in 0..40 {
            let len = DiskFile::len(&sealed).unwrap();
            let offset = random_below(&mut random, [600, 5000, 14_000, len + 1][(seed % 4) as usize]);
            match random_below(&mut random, 8) {
                0 => sealed = SealedFile::open(Box::new(below.clone()), &keys).unwrap().0,
                1 => {
                    sealed.preallocate(offset).unwrap();
                    plain.preallocate(offset).unwrap();
                }
                2 => {
                    // A file of the engine is cut and lengthened by pages.
                    let whole = shape.content(shape.length(offset));
                    DiskFile::set_len(&sealed, whole).unwrap();
                    plain.set_len(whole).unwrap();
                    assert_eq!(DiskFile::len(&sealed).unwrap(), whole);
                }
                3 => {
                    // What a crash can leave at the end of a file is none of it.
                    below.0.lock().unwrap().extend_from_slice(&[7; 100]);
                    assert_eq!(DiskFile::len(&sealed).unwrap(), len);
                    sealed.preallocate(len + 9000).unwrap();
                    plain.preallocate(len + 9000).unwrap();
                }
                _ => {
                    let pieces = (0..random_below(&mut random, 4)).map(|_| {
                        let len = random_below(&mut random, 900 + 5000 * (seed % 3)) as usize;
                        vec![random_below(&mut random, 256) as u8; len]
                    });
                    let pieces: Vec<Vec<u8>> = pieces.collect();
                    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                    sealed.write_at(offset, &slices).unwrap();
                    plain.write_at(offset, &slices).unwrap();
                }
            }
            // It is as long as it has room for; behind what the other has there are zeros.
            let len = DiskFile::len(&sealed).unwrap();
            assert!(len >= plain.len().unwrap());
            plain.preallocate(len).unwrap();
            let from = random_below(&mut random, len + 1);
            let (mut seen, mut expected) = (vec![1; (len - from) as usize + 9], vec![1; (len - from) as usize + 9]);
            assert_eq!(sealed.read_at(from, &mut seen).unwrap(), (len - from) as usize);
            assert_eq!(plain.read_at(from, &mut expected).unwrap(), (len - from) as usize);
            assert!(seen == expected, "{shape:?}, seed {seed}");
        }
    }
}

#[test]
fn nothing_is_sealed_twice_alike_and_nothing_can_be_read() {
    let keys = keys(&[1]);
    let below = Memory::default();
    let sealed = SealedFile::create(Box::new(below.clone()), Shape::Pages, &keys).unwrap();
    let page = SECRET.repeat(241);
    let mut seen = std::collections::BTreeSet::new();
    for sealed in [sealed, SealedFile::open(Box::new(below.clone()), &keys).unwrap().0] {
        for _ in 0..3 {
            sealed.write_at(0, &[IoSlice::new(&page), IoSlice::new(&page)]).unwrap();
            let data = below.0.lock().unwrap().clone();
            assert!(!data.windows(SECRET.len()).any(|bytes| bytes == SECRET));
            // Session and count: what must never come twice.
            let units = (512..5120).step_by(512).chain([5120]);
            assert!(units.map(|at| data[at..at + 24].to_vec()).all(|start| seen.insert(start)));
        }
    }
    assert_eq!(seen.len(), 60);
}

#[test]
fn a_unit_is_good_where_it_was_written_alone() {
    let keys = keys(&[1]);
    for shape in [Shape::Log, Shape::Pages] {
        let (below, mut read) = (Memory::default(), vec![0; 12_000]);
        let sealed = SealedFile::create(Box::new(below.clone()), shape, &keys).unwrap();
        sealed.write_at(0, &[IoSlice::new(&SECRET.repeat(1000))]).unwrap();
        let whole = below.0.lock().unwrap().clone();
        let size = if shape == Shape::Log { 512 } else { 4136 };
        for (from, to) in [(512, 1024), (1024, 512), (5120, 5120 + size), (5120 + size, 5120)] {
            below.0.lock().unwrap().copy_within(from..from + if from < 5120 { 512 } else { size }, to);
            assert!(sealed.read_at(0, &mut read).is_err(), "{shape:?} {from} to {to}");
            *below.0.lock().unwrap() = whole.clone();
        }
        assert_eq!(sealed.read_at(0, &mut read).unwrap(), read.len());
    }
}

/// What is read of an earlier use of a segment is nothing, and damage to it is none.
#[test]
fn a_segment_that_is_used_again_has_another_key() {
    let below = Memory::default();
    let first = SealedFile::create(Box::new(below.clone()), Shape::Log, &keys(&[1])).unwrap();
    first.write_at(0, &[IoSlice::new(&SECRET.repeat(100))]).unwrap();
    let again = SealedFile::create(Box::new(below.clone()), Shape::Log, &keys(&[2])).unwrap();
    below.0.lock().unwrap()[1100] ^= 1;
    below.0.lock().unwrap()[1536..1560].fill(0);
    again.write_at(100, &[IoSlice::new(SECRET)]).unwrap();
    let (mut read, mut expected) = (vec![1; 1700], vec![0; 1700]);
    expected[100..100 + SECRET.len()].copy_from_slice(SECRET);
    let again = SealedFile::open(Box::new(below.clone()), &keys(&[2])).unwrap().0;
    assert_eq!(again.read_at(0, &mut read).unwrap(), 1700);
    assert!(read == expected);
    assert!(first.read_at(0, &mut read).is_err());
    // A few wrong bits do not make it another use.
    below.0.lock().unwrap()[512 + 3] ^= 0b101;
    assert!(again.read_at(0, &mut read).is_err());
}

/// The order of keys in the file, which key seals the file, and what then can be said of it.
#[test]
fn a_file_is_opened_with_its_key_alone_and_sealed_under_the_newest() {
    let below = Memory::default();
    let sealed = SealedFile::create(Box::new(below.clone()), Shape::Log, &keys(&[1])).unwrap();
    sealed.write_at(0, &[IoSlice::new(SECRET)]).unwrap();
    let open = |keys: &Keys| SealedFile::open(Box::new(below.clone()), keys);
    let why = |error: io::Error| error.get_ref().and_then(|why| why.downcast_ref::<Broken>()).cloned();
    let unknown = Some(Broken::UnknownKey { keys: "the-keys".into() });
    assert_eq!(why(open(&keys(&[2])).unwrap_err()), unknown);
    let both = keys(&[2, 1]);
    let (file, is_newest) = open(&both).unwrap();
    assert!(!is_newest && open(&keys(&[1, 2])).unwrap().1);
    file.rotate(&both).unwrap();
    assert_eq!(why(open(&keys(&[1])).unwrap_err()), unknown);
    let (file, is_newest) = open(&keys(&[2])).unwrap();
    let mut read = vec![0; SECRET.len()];
    file.read_at(0, &mut read).unwrap();
    assert!(is_newest && read == SECRET);

    // Any change of the head is refused, and so is whatever else starts a file.
    let whole = below.0.lock().unwrap().clone();
    for at in 0..HEAD_BYTES {
        below.0.lock().unwrap()[at] ^= 1 << (at % 8);
        assert!(matches!(why(open(&keys(&[2])).unwrap_err()), Some(Broken::Damaged { offset: 0, .. })), "byte {at}");
        *below.0.lock().unwrap() = whole.clone();
    }
    for cut in 0..HEAD_BYTES {
        *below.0.lock().unwrap() = whole[..cut].to_vec();
        assert!(matches!(why(open(&keys(&[2])).unwrap_err()), Some(Broken::Damaged { .. })), "cut to {cut}");
    }
    for plain in [&b"EWSEGv1\n"[..], b"redb\x1a\n"] {
        *below.0.lock().unwrap() = plain.to_vec();
        assert_eq!(why(open(&keys(&[2])).unwrap_err()), Some(Broken::Plain));
    }
    // A head whose checksum is right, made by who has no key.
    let mut forged = whole.clone();
    forged[40] ^= 1;
    let crc = crc32c::crc32c(&forged[12..HEAD_BYTES]);
    forged[8..12].copy_from_slice(&crc.to_le_bytes());
    *below.0.lock().unwrap() = forged;
    assert!(matches!(why(open(&keys(&[2])).unwrap_err()), Some(Broken::Damaged { .. })));
}

/// Entries at the log's end.
fn append(dir: &Path, keys: Option<&Keys>, indexes: std::ops::Range<u64>) -> Wal {
    let options = WalOptions { segment_bytes: 4096, ..WalOptions::new(ClusterId(1), MemberId(2)) };
    let (mut wal, log) = Wal::open(disk(Arc::new(RealDisk), keys), dir.join("wal"), options).unwrap();
    let end = log.entries.last().map_or(log.base.index, |entry| entry.index);
    assert_eq!(end.0 + 1, indexes.start);
    for index in indexes {
        let (term, data) = (Term(1), SECRET.repeat(30).into());
        let entry = LogEntry { kind: 0, term, index: Index(index), data, context: SECRET.to_vec().into() };
        wal.append(&Append { entries: &[entry], ..Append::default() }).unwrap();
        wal.sync().unwrap();
    }
    wal
}

/// A log and a state, sealed or not, and what else may lie about.
fn member(dir: &Path, keys: Option<&Keys>) {
    let mut wal = append(dir, keys, 1..9);
    wal.truncate_front(crate::storage::wal::Base { index: Index(8), term: Term(1) }).unwrap();
    let backend = DiskBackend::open_with(dir.join(STATE), keys, CACHE_BYTES).unwrap();
    let mut batch = Batch::default();
    for row in 0..100 {
        batch.put(Bucket::Key, format!("{row:03}").into(), SECRET.repeat(9).into());
    }
    backend.commit(&batch).unwrap();
}

fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for dir in [dir.to_owned(), dir.join("wal")] {
        for name in RealDisk.list(&dir).unwrap() {
            let path = dir.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                found.push((path, bytes));
            }
        }
    }
    found
}

#[test]
fn a_directory_is_admitted_as_what_it_is_or_refused_unchanged() {
    let (dir, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, plain) = (dir.path(), plain.path());
    member(dir, Some(&keys(&[1])));
    member(plain, None);
    assert!(content(plain).iter().any(|(_, bytes)| bytes.windows(SECRET.len()).any(|bytes| bytes == SECRET)));
    let names: Vec<_> = content(dir).into_iter().map(|(path, _)| path).collect();
    assert!(names.iter().any(|path| path.extension().is_some_and(|end| end == "free")), "{names:?}");
    for (path, bytes) in content(dir) {
        assert!(!bytes.windows(SECRET.len()).any(|bytes| bytes == SECRET), "{}", path.display());
    }
    let admit = |dir: &Path, keys: Option<&Keys>| admit(&[dir, &dir.join("wal"), &dir.join("nowhere")], keys);
    let before = (content(dir), content(plain));
    for (dir, keys, why) in [
        (dir, None, "is encrypted: --encryption-key-file is needed"),
        (dir, Some(&keys(&[2])), "is encrypted with a key that is not in the-keys"),
        (plain, Some(&keys(&[1])), "is not encrypted, and --encryption-key-file is given"),
    ] {
        let error = admit(dir, keys).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(why), "{error}");
        let error = DiskBackend::open_with(dir.join(STATE), keys, CACHE_BYTES).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(why), "{error}");
    }
    assert_eq!(admit(plain, None).unwrap(), 0);
    assert_eq!(admit(dir, Some(&keys(&[1, 2]))).unwrap(), 0);
    assert!((content(dir), content(plain)) == before, "nothing was changed");

    // A new key comes before the old one, which then can go. The next time there is nothing to be done.
    let rotated = admit(dir, Some(&keys(&[2, 1]))).unwrap();
    let counts = names.iter().filter(|path| path.extension().is_none_or(|end| end != "free")).count();
    assert_eq!(rotated, counts);
    assert_eq!(admit(dir, Some(&keys(&[2]))).unwrap(), 0);
    // The log goes on in the spare that the old key had sealed.
    let spares =
        |dir: &Path| content(dir).iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "free")).count();
    assert!(spares(dir) > 0);
    append(dir, Some(&keys(&[2])), 9..40);
    assert_eq!(spares(dir), 0);
    append(dir, Some(&keys(&[2])), 40..41);
    assert!(admit(dir, Some(&keys(&[1]))).is_err());
    let backend = DiskBackend::open_with(dir.join(STATE), Some(&keys(&[2])), CACHE_BYTES).unwrap();
    assert_eq!(backend.reader().unwrap().get(Bucket::Key, b"099").unwrap().unwrap(), SECRET.repeat(9));
    let second = DiskBackend::open_with(dir.join(STATE), Some(&keys(&[2])), CACHE_BYTES).map(|_| ()).unwrap_err();
    assert!(second.to_string().contains("in use"), "{second}");
    drop(backend);

    // Half rotated, as after a crash in between: each file is opened with the key it has.
    let (path, head) = &before.0[0];
    let mut half = std::fs::read(path).unwrap();
    half[..HEAD_BYTES].copy_from_slice(&head[..HEAD_BYTES]);
    std::fs::write(path, half).unwrap();
    assert!(admit(dir, Some(&keys(&[2]))).is_err());
    assert_eq!(admit(dir, Some(&keys(&[2, 1]))).unwrap(), 1);
}

#[test]
fn a_changed_state_is_refused_or_reads_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = (dir.path().join(STATE), keys(&[1]));
    member(dir.path(), Some(&keys));
    let data = std::fs::read(&path).unwrap();
    let written = |at: &usize| data[*at..].iter().take(64).any(|byte| *byte != 0);
    let (mut refused, mut served) = (0, 0);
    for at in (0..data.len()).step_by(487).filter(written) {
        let copy = dir.path().join("copy.redb");
        let mut hurt = data.clone();
        hurt[at] ^= 0x10;
        std::fs::write(&copy, hurt).unwrap();
        match DiskBackend::open_with(&copy, Some(&keys), CACHE_BYTES) {
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "byte {at}: {error}");
                refused += 1;
            }
            // A page that is of no use any more.
            Ok(backend) => {
                let (reader, mut rows) = (backend.reader().unwrap(), 0);
                let mut visit = |_: &[u8], value: &[u8]| {
                    rows += usize::from(value == SECRET.repeat(9));
                    true
                };
                reader.scan(Bucket::Key, b"", None, &mut visit).unwrap();
                assert_eq!(rows, 100, "byte {at}");
                served += 1;
            }
        }
    }
    assert!(refused > 20, "{refused} refused, {served} served");
}
