//! The backend on disk: one redb file, one table per bucket.
//!
//! Promises:
//!   * a commit is durable when it returns, and a crash before that leaves the commit before it;
//!   * opening verifies the checksum of every page, so a changed bit is refused rather than served or copied to others.
//!     That reads the whole file, which the store does anyway to build its index;
//!   * after a failed commit nothing is committed any more: what the disk holds is unknown;
//!   * the file appears under its name only once it is a complete empty store, and a second process is refused.
//!
//! `size` is the file's length, `size_in_use` the bytes of all keys and values: kept up to date by each commit from the
//! lengths that its rows had before, in a row of its own table, since the engine could only tell by walking all pages.

use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, StorageError,
    TableDefinition, WriteTransaction,
};

use super::{Backend, Batch, Bucket, Reader};
use crate::storage::disk::{Disk, RealDisk};
use crate::storage::{Error, Result};

type RowTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// What the engine may hold of the file in memory. Scans of history go through it; live values mostly are elsewhere.
const CACHE_BYTES: usize = 128 << 20;
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
    })
}

/// The store.
pub struct DiskBackend {
    path: PathBuf,
    database: Database,
    row_bytes: AtomicU64,
    poisoned: AtomicBool,
}

impl DiskBackend {
    /// Opens the store at `path`, or creates an empty one.
    pub fn open(path: impl Into<PathBuf>) -> Result<DiskBackend> {
        let path = path.into();
        if !path.exists() {
            create(&path)?;
        }
        let mut engine = Database::builder();
        engine.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        let database = engine.open(&path).map_err(|e| refused(&path, e))?;
        let backend = DiskBackend { path, database, row_bytes: AtomicU64::new(0), poisoned: AtomicBool::new(false) };
        let sum = backend.row_bytes_recorded().map_err(|e| failed(&backend.path, e))?;
        backend.row_bytes.store(sum, Ordering::Relaxed);
        Ok(backend)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
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
            for (bucket, key, value) in &batch.rows {
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

/// Makes a complete empty store, then gives it its name: a crash in between leaves a file that is of no value.
fn create(path: &Path) -> Result<()> {
    let made = path.with_extension("new");
    let io = |doing: &'static str| {
        let path = made.clone();
        move |source| Error::Io { doing, path, source }
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    // Left from such a crash, perhaps. Created as a file for this user alone.
    drop(RealDisk.create(&made).map_err(io("creating"))?);
    let database = Database::create(&made).map_err(|e| refused(&made, e))?;
    let tables = || -> std::result::Result<(), redb::Error> {
        let transaction = begin(&database)?;
        for bucket in Bucket::ALL {
            transaction.open_table(table(bucket))?;
        }
        transaction.open_table(ROW_BYTES)?;
        Ok(transaction.commit()?)
    };
    tables().map_err(|e| failed(&made, e))?;
    drop(database);
    RealDisk.open(&made).and_then(|file| file.sync()).map_err(io("syncing"))?;
    RealDisk.rename(&made, path).and_then(|()| RealDisk.sync_dir(dir)).map_err(io("renaming"))
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
        DatabaseError::DatabaseAlreadyOpen => {
            Error::Refused { path: path.to_owned(), what: "is in use by another process".to_owned() }
        }
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() == std::io::ErrorKind::InvalidData => {
            Error::Corrupt { path: path.to_owned(), offset: 0, what: source.to_string() }
        }
        other => failed(path, other.into()),
    }
}

/// The engine's error as ours.
fn failed(path: &Path, error: redb::Error) -> Error {
    match error {
        redb::Error::Corrupted(what) => Error::Corrupt { path: path.to_owned(), offset: 0, what },
        redb::Error::Io(source) => Error::Io { doing: "using", path: path.to_owned(), source },
        redb::Error::PreviousIo => Error::Poisoned,
        other => Error::Engine(format!("{}: {other}", path.display())),
    }
}
