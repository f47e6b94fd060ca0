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

use super::backend::disk::DiskBackend;
use super::backend::{Backend, Batch, Bucket};
use super::disk::{Disk, RealDisk};
use super::{Error, Result, datadir};
use crate::types::Index;

/// Rows gathered before they are committed: memory of a receiving member.
const BATCH_BYTES: usize = 4 << 20;

/// A snapshot being received. Dropped before it is finished, it leaves nothing that counts.
pub struct SnapshotWriter {
    dir: PathBuf,
    index: Index,
    backend: DiskBackend,
    batch: Batch,
    batch_bytes: usize,
}

impl SnapshotWriter {
    /// Begins the snapshot at `index` in the member's directory, anew if there is an unfinished one.
    pub fn create(dir: &Path, index: Index) -> Result<SnapshotWriter> {
        let part = dir.join(part_name(index));
        remove_if_there(&part)?;
        let backend = DiskBackend::open(part)?;
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
        let (part, path) = (dir.join(part_name(index)), dir.join(name(index)));
        RealDisk.open(&part).and_then(|file| file.sync()).map_err(|e| io("syncing", &part, e))?;
        RealDisk.rename(&part, &path).map_err(|e| io("renaming", &part, e))?;
        RealDisk.sync_dir(&dir).map_err(|e| io("syncing", &dir, e))?;
        Ok(path)
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
    let path = dir.join(name(index));
    RealDisk.rename(&path, &dir.join(datadir::STATE)).map_err(|e| io("adopting", &path, e))?;
    RealDisk.sync_dir(dir).map_err(|e| io("syncing", dir, e))
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
    use super::*;

    fn write(dir: &Path, index: u64, value: &'static str) -> SnapshotWriter {
        let mut writer = SnapshotWriter::create(dir, Index(index)).unwrap();
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

    #[test]
    fn many_rows_arrive_whatever_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SnapshotWriter::create(dir.path(), Index(1)).unwrap();
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
