//! The backend on disk: one redb file, one table per bucket.
//!
//! Promises:
//!   * a commit is durable when it returns, and a crash before that leaves the commit before it;
//!   * opening verifies the checksum of every page, so a changed bit is refused rather than served or copied to others.
//!     That reads the whole file, which the store does anyway to build its index;
//!   * after a failed commit nothing is committed any more: what the disk holds is unknown;
//!   * the file appears under its name only once it is a complete empty store, and a second process is refused.
//!
//! With keys the file is sealed ([`seal`]); what is promised is the same.
//!
//! `size` is the file's length, `size_in_use` the bytes of all keys and values: kept up to date by each commit from the
//! lengths that its rows had before, in a row of its own table, since the engine could only tell by walking all pages.

use std::fs::{self, File};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, StorageError,
    TableDefinition, WriteTransaction,
};
use rustix::fs::FlockOperation;

use super::inspect::Glass;
use super::{Backend, Batch, Bucket, Reader};
use crate::storage::disk::{Disk, DiskFile, RealDisk};
use crate::storage::seal::{self, Keys};
use crate::storage::{Error, Result};

type RowTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// What the engine may hold of the file in memory where nobody says. Scans of history go through it; the system keeps pages, too.
pub const CACHE_BYTES: usize = 24 << 20;
/// Rows of a commit until whoever waits for the processor has his turn: nobody waits for a commit, but on a busy machine the log's
/// thread, for which everybody does, would else wait until the system takes the processor away from it, four milliseconds on some.
const ROWS_PER_TURN: usize = 128;
/// Beside the buckets: the sum of the lengths of all keys and values, under an empty key.
const ROW_BYTES: TableDefinition<'static, &'static [u8], u64> = TableDefinition::new("row_bytes");

const fn table(bucket: Bucket) -> RowTable {
    TableDefinition::new(match bucket {
        Bucket::Key => "key",
        Bucket::Lease => "lease",
        Bucket::Members => "members",
        Bucket::MembersRemoved => "members_removed",
        Bucket::Alarm => "alarm",
        Bucket::Meta => "meta",
        Bucket::Users => "users",
        Bucket::Roles => "roles",
    })
}

/// The store.
pub struct DiskBackend {
    path: PathBuf,
    database: Database,
    row_bytes: AtomicU64,
    poisoned: AtomicBool,
    /// Others do not have their turn between rows.
    hurried: AtomicBool,
    /// Of a sealed file. The engine holds one that is not.
    _held: Option<File>,
}

impl DiskBackend {
    /// Opens the store at `path`, which is not sealed, or creates an empty one.
    pub fn open(path: impl Into<PathBuf>) -> Result<DiskBackend> {
        DiskBackend::open_with(path, None, CACHE_BYTES)
    }

    /// The same with a file that is sealed if there are keys, and so many bytes of it in memory, at the most.
    pub fn open_with(path: impl Into<PathBuf>, keys: Option<&Keys>, cache_bytes: usize) -> Result<DiskBackend> {
        let path = path.into();
        if !path.exists() {
            create(&path, keys)?;
        }
        let mut engine = engine();
        engine.set_cache_size(cache_bytes);
        let Some(keys) = keys else {
            drop(seal::look(&path, None)?);
            let database = engine.open(&path).map_err(|e| refused(&path, e))?;
            return DiskBackend::over(path, database);
        };
        let held = hold(&path)?;
        let file = seal::open(&path, keys).map_err(|e| Error::of_call("opening", &path, e))?;
        if file.is_empty().map_err(|e| Error::of_call("measuring", &path, e))? {
            // The engine would take it for one to begin with.
            return Err(Error::Corrupt { path, offset: 0, what: "the file is empty".to_owned() });
        }
        let database = engine.create_with_backend(file).map_err(|e| refused(&path, e))?;
        Ok(DiskBackend { _held: Some(held), ..DiskBackend::over(path, database)? })
    }

    /// Opens a file that stays as it is.
    pub(super) fn over_glass(path: &Path, glass: Glass) -> Result<DiskBackend> {
        let database = engine().create_with_backend(glass).map_err(|e| refused(path, e))?;
        DiskBackend::over(path.to_owned(), database)
    }

    fn over(path: PathBuf, database: Database) -> Result<DiskBackend> {
        // Releases before there were users made no tables for them.
        if lacks_tables(&database).map_err(|e| failed(&path, e))? {
            make_tables(&database).map_err(|e| failed(&path, e))?;
        }
        let (row_bytes, poisoned, hurried) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let backend = DiskBackend { path, database, row_bytes, poisoned, hurried, _held: None };
        let sum = backend.row_bytes_recorded().map_err(|e| failed(&backend.path, e))?;
        backend.row_bytes.store(sum, Ordering::Relaxed);
        Ok(backend)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether commits are to be quick, whoever else wants the processor: so much waits for them.
    pub fn hurry(&self, hurried: bool) {
        self.hurried.store(hurried, Ordering::Relaxed);
    }

    fn row_bytes_recorded(&self) -> std::result::Result<u64, redb::Error> {
        let table = self.database.begin_read()?.open_table(ROW_BYTES)?;
        Ok(table.get([].as_slice())?.map_or(0, |sum| sum.value()))
    }

    fn write(&self, batch: &Batch) -> std::result::Result<u64, redb::Error> {
        let transaction = begin(&self.database)?;
        let mut sum = self.row_bytes.load(Ordering::Relaxed);
        {
            let mut tables = [const { None }; Bucket::ALL.len()];
            for (number, (bucket, key, value)) in batch.rows.iter().enumerate() {
                if number % ROWS_PER_TURN == 0 && !self.hurried.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                let table = match &mut tables[bucket.place()] {
                    Some(table) => table,
                    none => none.insert(transaction.open_table(table(*bucket))?),
                };
                let old = match value {
                    Some(value) => {
                        sum += (key.len() + value.len()) as u64;
                        table.insert(key.as_ref(), value.as_ref())?
                    }
                    None => table.remove(key.as_ref())?,
                };
                sum = sum.saturating_sub(old.map_or(0, |old| (key.len() + old.value().len()) as u64));
            }
            transaction.open_table(ROW_BYTES)?.insert([].as_slice(), sum)?;
        }
        transaction.commit()?;
        Ok(sum)
    }
}

impl Backend for DiskBackend {
    fn reader(&self) -> Result<Arc<dyn Reader>> {
        let transaction = self.database.begin_read().map_err(|e| failed(&self.path, e.into()))?;
        Ok(Arc::new(DiskReader { path: self.path.clone(), transaction, tables: Default::default() }))
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(Error::Poisoned);
        }
        let sum = self.write(batch).map_err(|error| {
            self.poisoned.store(true, Ordering::Relaxed);
            failed(&self.path, error)
        })?;
        self.row_bytes.store(sum, Ordering::Relaxed);
        Ok(())
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    fn size_in_use(&self) -> u64 {
        self.row_bytes.load(Ordering::Relaxed)
    }
}

/// One commit's state. Pages it can see are not used again until it is dropped.
struct DiskReader {
    path: PathBuf,
    transaction: ReadTransaction,
    /// Opened when first needed.
    tables: [OnceLock<ReadOnlyTable<&'static [u8], &'static [u8]>>; Bucket::ALL.len()],
}

impl DiskReader {
    fn table(&self, bucket: Bucket) -> Result<&ReadOnlyTable<&'static [u8], &'static [u8]>> {
        let cell = &self.tables[bucket.place()];
        if let Some(table) = cell.get() {
            return Ok(table);
        }
        let opened = self.transaction.open_table(table(bucket)).map_err(|e| failed(&self.path, e.into()))?;
        Ok(cell.get_or_init(|| opened))
    }
}

impl Reader for DiskReader {
    fn scan_all(&self, bucket: Bucket, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        let (portions, read) = mpsc::sync_channel(AHEAD_PORTIONS);
        let reading = move || {
            let mut rows = Rows::default();
            self.scan(bucket, &[], None, &mut |key, value| {
                rows.push(key, value);
                // Whoever looks at them may have seen enough.
                rows.bytes.len() < AHEAD_BYTES || portions.send(std::mem::take(&mut rows)).is_ok()
            })?;
            let _ = portions.send(rows);
            Ok(())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("read-ahead".into());
            let reading = thread.spawn_scoped(scope, reading).map_err(|source| {
                let path = self.path.clone();
                Error::Io { doing: "reading ahead in", path, source }
            })?;
            let _ = read.iter().all(|rows: Rows| rows.visit(visit));
            drop(read);
            reading.join().expect("reading does not panic")
        })
    }

    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>> {
        let row = self.table(bucket)?.get(key).map_err(|e| failed(&self.path, e.into()))?;
        // A copy rather than a share: a row that is kept would hold its whole page in memory.
        Ok(row.map(|row| Bytes::copy_from_slice(row.value())))
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let failed = |e: StorageError| failed(&self.path, e.into());
        let bounds = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        for row in self.table(bucket)?.range::<&[u8]>(bounds).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            if !visit(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }
}

/// Rows on their way from the thread that reads them to the one that looks at them: how long each key and value is, and all of them
/// behind each other.
#[derive(Default)]
struct Rows {
    lengths: Vec<(usize, usize)>,
    bytes: Vec<u8>,
}

/// Bytes of rows that are handed over at once, and how many such portions may wait.
const AHEAD_BYTES: usize = 256 << 10;
const AHEAD_PORTIONS: usize = 4;

impl Rows {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.lengths.push((key.len(), value.len()));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    /// Whether `visit` wants more.
    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> bool {
        let mut rest = &self.bytes[..];
        self.lengths.iter().all(|(key_bytes, value_bytes)| {
            let (key, value);
            (key, rest) = rest.split_at(*key_bytes);
            (value, rest) = rest.split_at(*value_bytes);
            visit(key, value)
        })
    }
}

/// Makes a complete empty store, then gives it its name: a crash in between leaves a file that is of no value.
fn create(path: &Path, keys: Option<&Keys>) -> Result<()> {
    let made = path.with_extension("new");
    let io = |doing: &'static str| {
        let made = &made;
        move |source| Error::of_call(doing, made, source)
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    // Left from such a crash, perhaps. Created as a file for this user alone.
    let database = match keys {
        None => {
            drop(RealDisk.create(&made).map_err(io("creating"))?);
            Database::create(&made)
        }
        Some(keys) => engine().create_with_backend(seal::create_pages(&made, keys).map_err(io("creating"))?),
    };
    let database = database.map_err(|e| refused(&made, e))?;
    make_tables(&database).map_err(|e| failed(&made, e))?;
    drop(database);
    RealDisk.open(&made).and_then(|file| file.sync()).map_err(io("syncing"))?;
    RealDisk.rename(&made, path).and_then(|()| RealDisk.sync_dir(dir)).map_err(io("renaming"))
}

/// Keeps other processes from the file, as the engine does with one that it opens itself.
fn hold(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::of_call("opening", path, e))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(errno) => Err(Error::of_call("locking", path, errno.into())),
    }
}

fn in_use(path: &Path) -> Error {
    Error::Refused { path: path.to_owned(), what: "is in use by another process".to_owned() }
}

fn lacks_tables(database: &Database) -> std::result::Result<bool, redb::Error> {
    Ok(database.begin_read()?.list_tables()?.count() <= Bucket::ALL.len())
}

fn make_tables(database: &Database) -> std::result::Result<(), redb::Error> {
    let transaction = begin(database)?;
    for bucket in Bucket::ALL {
        transaction.open_table(table(bucket))?;
    }
    transaction.open_table(ROW_BYTES)?;
    Ok(transaction.commit()?)
}

fn engine() -> redb::Builder {
    let mut engine = Database::builder();
    engine.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    engine
}

fn begin(database: &Database) -> std::result::Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Two-phase: after a crash the file is as the last commit left it, without a walk through all of it first.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Why the file could not be opened.
fn refused(path: &Path, error: DatabaseError) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen => in_use(path),
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() == std::io::ErrorKind::InvalidData => {
            match Error::of_call("opening", path, source) {
                // The engine's own word for a file that is none of its.
                Error::Io { path, source, .. } => Error::Corrupt { path, offset: 0, what: source.to_string() },
                error => error,
            }
        }
        other => failed(path, other.into()),
    }
}

/// The engine's error as ours.
fn failed(path: &Path, error: redb::Error) -> Error {
    match error {
        redb::Error::Corrupted(what) => Error::Corrupt { path: path.to_owned(), offset: 0, what },
        redb::Error::Io(source) => Error::of_call("using", path, source),
        redb::Error::PreviousIo => Error::Poisoned,
        other => Error::Engine(format!("{}: {other}", path.display())),
    }
}

/// The engine over a file that fails and forgets: every call of a script of commits fails once, with the power lost right after.
#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::sync::{Mutex, MutexGuard};

    use super::*;

    const SECTOR: usize = 512;
    const ROWS: usize = 40;

    #[derive(Clone, Debug, Default)]
    struct TornFile(Arc<Mutex<Image>>);

    #[derive(Debug, Default)]
    struct Image {
        now: Vec<u8>,
        durable: Vec<u8>,
        pending: Vec<Change>,
        /// Calls until one fails, and all after it.
        fuse: Option<u64>,
    }

    #[derive(Debug)]
    enum Change {
        Length(usize),
        Sector(usize, Vec<u8>),
    }

    impl TornFile {
        fn call(&self) -> io::Result<MutexGuard<'_, Image>> {
            let mut image = self.0.lock().unwrap();
            match &mut image.fuse {
                Some(0) => Err(io::Error::from_raw_os_error(5)),
                Some(left) => {
                    *left -= 1;
                    Ok(image)
                }
                None => Ok(image),
            }
        }

        /// What is there after a power cut that kept some of what had not been synced.
        fn crash(&self, mut kept: impl FnMut() -> bool) -> TornFile {
            let image = self.0.lock().unwrap();
            let mut data = image.durable.clone();
            for change in image.pending.iter().filter(|_| kept()) {
                match change {
                    Change::Length(len) => data.resize(*len, 0),
                    Change::Sector(at, bytes) => {
                        data.resize(data.len().max(at + bytes.len()), 0);
                        data[*at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            let after = Image { now: data.clone(), durable: data, ..Image::default() };
            TornFile(Arc::new(Mutex::new(after)))
        }
    }

    impl DiskFile for TornFile {
        fn len(&self) -> io::Result<u64> {
            Ok(self.call()?.now.len() as u64)
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
            let image = self.call()?;
            let bytes = image.now.get(offset as usize..).unwrap_or_default();
            let read = bytes.len().min(into.len());
            into[..read].copy_from_slice(&bytes[..read]);
            Ok(read)
        }

        fn preallocate(&self, _: u64) -> io::Result<()> {
            unreachable!("the engine does not ask for it")
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            let mut image = self.call()?;
            image.now.resize(len as usize, 0);
            image.pending.push(Change::Length(len as usize));
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            let image = &mut *self.call()?;
            image.durable = image.now.clone();
            image.pending.clear();
            Ok(())
        }

        fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
            let image = &mut *self.call()?;
            let [data] = pieces else { unreachable!("the engine writes one piece at a time") };
            let (mut at, mut rest) = (offset as usize, &data[..]);
            image.now.resize(image.now.len().max(at + rest.len()), 0);
            while !rest.is_empty() {
                let (sector, more) = rest.split_at((SECTOR - at % SECTOR).min(rest.len()));
                image.now[at..at + sector.len()].copy_from_slice(sector);
                image.pending.push(Change::Sector(at, sector.to_vec()));
                (at, rest) = (at + sector.len(), more);
            }
            Ok(())
        }
    }

    impl redb::StorageBackend for TornFile {
        fn len(&self) -> io::Result<u64> {
            DiskFile::len(self)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let read = self.read_at(offset, out)?;
            if read == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            DiskFile::set_len(self, len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.sync()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            assert!(offset as usize + data.len() <= self.0.lock().unwrap().now.len(), "a write behind the end");
            self.write_at(offset, &[IoSlice::new(data)])
        }
    }

    fn database(file: &TornFile, keys: Option<&Keys>) -> std::result::Result<Database, DatabaseError> {
        match keys {
            Some(keys) => engine().create_with_backend(seal::pages_over(Box::new(file.clone()), keys)?),
            None => engine().create_with_backend(file.clone()),
        }
    }

    fn open(file: &TornFile, keys: Option<&Keys>) -> Result<DiskBackend> {
        let path = PathBuf::from("state.redb");
        let database = database(file, keys).map_err(|e| refused(&path, e))?;
        DiskBackend::over(path, database)
    }

    /// Every row says which commit it is of.
    fn commit(backend: &DiskBackend, number: usize) -> Result<()> {
        let mut batch = Batch::default();
        for row in 0..ROWS {
            let value = format!("{number:03}").repeat(1 + row * 9);
            batch.put(Bucket::Key, Bytes::from(format!("row{row:02}")), Bytes::from(value));
        }
        backend.commit(&batch)
    }

    /// The commit that all rows are of; 0 when there are none.
    fn state(backend: &DiskBackend) -> usize {
        let mut numbers = Vec::new();
        let mut visit = |_: &[u8], value: &[u8]| {
            numbers.push(str::from_utf8(&value[..3]).unwrap().parse::<usize>().unwrap());
            true
        };
        backend.reader().unwrap().scan(Bucket::Key, b"", None, &mut visit).unwrap();
        assert!(numbers.is_empty() || numbers.len() == ROWS);
        assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "half of a commit: {numbers:?}");
        numbers.first().copied().unwrap_or(0)
    }

    #[test]
    fn a_commit_that_failed_is_there_or_not_and_nothing_is_committed_after_it() {
        every_call_fails_once(None);
        every_call_fails_once(Some(&Keys::parse(Path::new("keys"), &"5c".repeat(32)).unwrap()));
    }

    fn every_call_fails_once(keys: Option<&Keys>) {
        let empty = TornFile::default();
        make_tables(&database(&empty, keys).unwrap()).unwrap();
        let (mut random, mut failures) = (1u64, 0);
        for calls in 0.. {
            let file = empty.crash(|| true);
            file.0.lock().unwrap().fuse = Some(calls);
            let mut durable = 0;
            if let Ok(backend) = open(&file, keys) {
                let outcome = (1..=4).try_for_each(|number| {
                    commit(&backend, number)?;
                    durable = number;
                    Ok(())
                });
                match outcome {
                    Ok(()) => break,
                    Err(Error::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(5)),
                    Err(error) => panic!("call {calls}: {error}"),
                }
                failures += 1;
                // The disk works again, but nobody knows what is on it.
                let written = file.0.lock().unwrap().now.clone();
                file.0.lock().unwrap().fuse = None;
                assert!(matches!(commit(&backend, 9), Err(Error::Poisoned)));
                assert!(file.0.lock().unwrap().now == written, "a poisoned backend writes nothing");
                file.0.lock().unwrap().fuse = Some(0);
            }
            for mode in 0..4 {
                let after = file.crash(|| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    mode == 0 || (mode > 1 && random >> 63 == 1)
                });
                let backend = open(&after, keys).unwrap_or_else(|e| panic!("call {calls}, mode {mode}: {e}"));
                let found = state(&backend);
                assert!(found == durable || found == durable + 1, "call {calls}, mode {mode}: {found} of {durable}");
                commit(&backend, 7).unwrap();
                assert_eq!(state(&backend), 7);
            }
        }
        assert!(failures > 20, "only {failures}");
    }
}
