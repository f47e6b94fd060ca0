//! Snapshots received from the leader: files that may become the backend.
//!
//! ```text
//! snap-<index>.part   being received; of no value after a crash
//! snap-<index>.redb   complete and durable; becomes state.redb when the log says so
//! ```
//!
//! A member that adopts a snapshot at index i replaces two things, its log and its backend, and a crash can come between any
//! two steps. The order is
//!
//!   1. [`SnapshotWriter::finish`]: `snap-i.redb` is complete and durable under that name. Raft does not know it yet, and
//!      the old log and backend are what counts; after a crash the file is a leftover.
//!   2. `Wal::append` with `reset` to i and the hard state that goes with it, and `Wal::sync`. From here on the snapshot
//!      counts: the log starts after i, and the old backend has no log to catch up with.
//!   3. [`adopt`]: the file takes the backend's place in one rename. Whoever uses the old backend has stopped; its rows
//!      stay readable to those who have them open.
//!
//! So a start looks at the log's base first. Let i be its index: if the backend's applied index is less than i, step 3 is
//! missing, and `snap-i.redb` is there to be adopted (if it is not, the directory is damaged); every other snapshot is
//! a leftover to [`discard`]. Adopting again after a crash inside step 3 does what was left to do, for the rename is the
//! only step. A snapshot never lowers the backend: raft offers none behind what is applied.
//!
//! The rows are the leader's; those that belong to one member alone (`schema::IDENTITY`) the caller writes as its own.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::backend::disk::{CACHE_BYTES, DiskBackend};
use super::backend::{Backend, Batch, Bucket};
use super::disk::{Disk, RealDisk};
use super::seal::Keys;
use super::{Error, Result, datadir};
use crate::types::Index;

/// Rows gathered before they are committed: memory of a receiving member.
const BATCH_BYTES: usize = 4 << 20;

/// Where received snapshots go: the member's directory, and what seals them there.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The directory.
    pub dir: PathBuf,
    /// The keys, if it is sealed.
    pub keys: Option<Keys>,
}

/// A snapshot being received. Dropped before it is finished, it leaves nothing that counts.
pub struct SnapshotWriter {
    dir: PathBuf,
    index: Index,
    backend: DiskBackend,
    batch: Batch,
    batch_bytes: usize,
}

impl SnapshotWriter {
    /// Begins the snapshot at `index` in the member's directory, anew if there is an unfinished one; sealed if there are keys.
    pub fn create(dir: &Path, index: Index, keys: Option<&Keys>) -> Result<SnapshotWriter> {
        let part = dir.join(part_name(index));
        remove_if_there(&part)?;
        let backend = DiskBackend::open_with(part, keys, CACHE_BYTES)?;
        Ok(SnapshotWriter { dir: dir.to_owned(), index, backend, batch: Batch::default(), batch_bytes: 0 })
    }

    /// Adds a row.
    pub fn row(&mut self, bucket: Bucket, key: Bytes, value: Bytes) -> Result<()> {
        self.batch_bytes += key.len() + value.len();
        self.batch.put(bucket, key, value);
        if self.batch_bytes >= BATCH_BYTES { self.commit() } else { Ok(()) }
    }

    /// The last row has been added: makes the snapshot durable under its name, which is returned.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.commit()?;
        let SnapshotWriter { dir, index, backend, .. } = self;
        drop(backend); // closes the file
        complete(&RealDisk, &dir, index)
    }

    fn commit(&mut self) -> Result<()> {
        self.backend.commit(&self.batch)?;
        self.batch.rows.clear();
        self.batch_bytes = 0;
        Ok(())
    }
}

/// Puts the snapshot at `index` in the backend's place. The log's base says that it counts; nobody uses the old backend.
pub fn adopt(dir: &Path, index: Index) -> Result<()> {
    adopt_on(&RealDisk, dir, index)
}

/// The complete snapshots in the member's directory, by index.
pub fn pending(dir: &Path) -> Result<Vec<(Index, PathBuf)>> {
    let names = RealDisk.list(dir).map_err(|e| io("listing", dir, e))?;
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| Some((index_of(name.strip_prefix("snap-")?.strip_suffix(".redb")?)?, dir.join(name))))
        .collect();
    found.sort();
    Ok(found)
}

/// Removes the snapshot at `index`, complete or not, if there is one.
pub fn discard(dir: &Path, index: Index) -> Result<()> {
    remove_if_there(&dir.join(part_name(index)))?;
    remove_if_there(&dir.join(name(index)))
}

/// Removes what a crash left of snapshots that were being received. For a start, when none is.
pub fn discard_unfinished(dir: &Path) -> Result<()> {
    for name in RealDisk.list(dir).map_err(|e| io("listing", dir, e))? {
        if name.starts_with("snap-") && (name.ends_with(".part") || name.ends_with(".new")) {
            remove_if_there(&dir.join(name))?;
        }
    }
    Ok(())
}

/// The file has all its rows: it gets its name, both durably.
fn complete(disk: &dyn Disk, dir: &Path, index: Index) -> Result<PathBuf> {
    let (part, path) = (dir.join(part_name(index)), dir.join(name(index)));
    disk.open(&part).and_then(|file| file.sync()).map_err(|e| io("syncing", &part, e))?;
    disk.rename(&part, &path).map_err(|e| io("renaming", &part, e))?;
    disk.sync_dir(dir).map_err(|e| io("syncing", dir, e))?;
    Ok(path)
}

fn adopt_on(disk: &dyn Disk, dir: &Path, index: Index) -> Result<()> {
    let path = dir.join(name(index));
    disk.rename(&path, &dir.join(datadir::STATE)).map_err(|e| io("adopting", &path, e))?;
    disk.sync_dir(dir).map_err(|e| io("syncing", dir, e))
}

fn name(index: Index) -> String {
    format!("snap-{:020}.redb", index.0)
}

fn part_name(index: Index) -> String {
    format!("snap-{:020}.part", index.0)
}

fn index_of(digits: &str) -> Option<Index> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok().map(Index))?
}

fn remove_if_there(path: &Path) -> Result<()> {
    match RealDisk.remove(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("removing", path, error)),
        _ => Ok(()),
    }
}

fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::storage::disk::DiskFile;

    fn write(dir: &Path, index: u64, value: &'static str) -> SnapshotWriter {
        let mut writer = SnapshotWriter::create(dir, Index(index), None).unwrap();
        writer.row(Bucket::Key, Bytes::from_static(b"k"), Bytes::from_static(value.as_bytes())).unwrap();
        writer
    }

    fn state(dir: &Path) -> Option<Bytes> {
        let backend = DiskBackend::open(dir.join(datadir::STATE)).unwrap();
        backend.reader().unwrap().get(Bucket::Key, b"k").unwrap()
    }

    #[test]
    fn only_a_finished_snapshot_can_take_the_backends_place() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(state(dir), None);
        drop(write(dir, 7, "unfinished"));
        assert!(pending(dir).unwrap().is_empty());
        assert!(matches!(adopt(dir, Index(7)), Err(Error::Io { .. })));
        let path = write(dir, 7, "seven").finish().unwrap();
        write(dir, 12, "twelve").finish().unwrap();
        write(dir, 100, "left over").finish().unwrap();
        drop(write(dir, 101, "unfinished"));
        let found = pending(dir).unwrap();
        assert_eq!(found[0], (Index(7), path));
        assert_eq!(found.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [7, 12, 100]);
        assert_eq!(state(dir), None, "nothing counts before it is adopted");

        adopt(dir, Index(12)).unwrap();
        assert_eq!(state(dir).unwrap(), "twelve");
        for (index, _) in pending(dir).unwrap() {
            discard(dir, index).unwrap();
        }
        discard(dir, Index(3)).unwrap();
        discard_unfinished(dir).unwrap();
        assert_eq!(RealDisk.list(dir).unwrap(), [datadir::STATE]);
    }

    /// The disk of this machine, which takes back at a power cut what was not synced of names, and refuses one call.
    struct Forgetful {
        names: Mutex<Vec<(PathBuf, PathBuf)>>,
        calls_left: AtomicUsize,
        file_synced: Arc<AtomicBool>,
    }

    impl Forgetful {
        fn call(&self) -> io::Result<()> {
            match self.calls_left.fetch_sub(1, Ordering::Relaxed) {
                0 => Err(io::Error::from_raw_os_error(5)),
                _ => Ok(()),
            }
        }

        fn power_cut(&self) {
            for (from, to) in self.names.lock().unwrap().drain(..).rev() {
                RealDisk.rename(&to, &from).unwrap();
            }
        }
    }

    impl Disk for Forgetful {
        fn create_dir(&self, dir: &Path) -> io::Result<()> {
            self.call().and_then(|()| RealDisk.create_dir(dir))
        }

        fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
            self.call().and_then(|()| RealDisk.list(dir))
        }

        fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
            self.call().and_then(|()| RealDisk.create(path))
        }

        fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
            self.call()?;
            Ok(Box::new(Watched(RealDisk.open(path)?, self.file_synced.clone())))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.call()?;
            assert!(self.file_synced.load(Ordering::Relaxed), "a file gets a name that counts when it is durable");
            // What it replaces comes back with a power cut.
            let kept = to.with_extension("replaced");
            if to.exists() {
                RealDisk.rename(to, &kept)?;
                self.names.lock().unwrap().push((to.to_owned(), kept));
            }
            RealDisk.rename(from, to)?;
            self.names.lock().unwrap().push((from.to_owned(), to.to_owned()));
            Ok(())
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            self.call().and_then(|()| RealDisk.remove(path))
        }

        fn sync_dir(&self, _: &Path) -> io::Result<()> {
            self.call()?;
            self.names.lock().unwrap().clear();
            Ok(())
        }
    }

    struct Watched(Box<dyn DiskFile>, Arc<AtomicBool>);

    impl DiskFile for Watched {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
            self.0.read_at(offset, into)
        }

        fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
            self.0.write_at(offset, pieces)
        }

        fn preallocate(&self, len: u64) -> io::Result<()> {
            self.0.preallocate(len)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync(&self) -> io::Result<()> {
            self.0.sync()?;
            self.1.store(true, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn whatever_call_fails_a_power_cut_later_it_counts_or_can_be_done_again() {
        let mut adopted = 0;
        for calls in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            write(dir, 1, "old").finish().unwrap();
            adopt(dir, Index(1)).unwrap();
            let mut writer = write(dir, 7, "seven");
            writer.commit().unwrap();
            drop(writer);
            let disk =
                Forgetful { names: Mutex::default(), calls_left: AtomicUsize::new(calls), file_synced: Arc::default() };
            let completed = complete(&disk, dir, Index(7));
            if completed.is_err() {
                disk.power_cut();
                assert!(pending(dir).unwrap().is_empty(), "call {calls}: the snapshot is not there");
                assert_eq!(state(dir).unwrap(), "old");
                continue;
            }
            let outcome = adopt_on(&disk, dir, Index(7));
            disk.power_cut();
            match outcome {
                Ok(()) => adopted += 1,
                Err(_) => {
                    assert_eq!(pending(dir).unwrap().len(), 1, "call {calls}: it can still be adopted");
                    assert_eq!(state(dir).unwrap(), "old");
                    adopt(dir, Index(7)).unwrap();
                }
            }
            assert_eq!(state(dir).unwrap(), "seven");
        }
        assert_eq!(adopted, 3, "five calls can fail");
    }

    #[test]
    fn many_rows_arrive_whatever_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SnapshotWriter::create(dir.path(), Index(1), None).unwrap();
        let value = Bytes::from(vec![7; BATCH_BYTES / 3]);
        for key in 0..8u8 {
            writer.row(Bucket::Key, Bytes::from(vec![key]), value.clone()).unwrap();
        }
        writer.row(Bucket::Meta, Bytes::from_static(b"m"), Bytes::new()).unwrap();
        let backend = DiskBackend::open(writer.finish().unwrap()).unwrap();
        let mut keys = Vec::new();
        let reader = backend.reader().unwrap();
        reader
            .scan(Bucket::Key, b"", None, &mut |key, row| {
                row == value && {
                    keys.push(key[0]);
                    true
                }
            })
            .unwrap();
        assert_eq!(keys, (0..8).collect::<Vec<_>>());
        assert_eq!(reader.get(Bucket::Meta, b"m").unwrap().unwrap(), "");
    }
}
