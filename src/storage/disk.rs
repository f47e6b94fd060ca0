//! The seam between storage and the operating system: what the log and the snapshots ask of a disk.
//!
//! There are two implementations: [`RealDisk`] here, and the simulator's, which forgets what was not synced. (Over either there can be
//! one that seals: [`super::seal`].) So the promises are only these:
//!   * after a successful [`DiskFile::sync`] the file's bytes and length survive a power cut; before it any sectors of what
//!     was written since may be there and others not (a sector: 512 bytes at a multiple of 512 of the file, whole, or of the
//!     last one that was written a first part: disks do not tear a sector inside);
//!   * a created, renamed or removed name survives a power cut only after [`Disk::sync_dir`] on its directory;
//!   * after an error nothing is known about what the call was to write. Nobody retries.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

/// A place for files.
pub trait Disk: Send + Sync {
    /// Makes a directory for this user alone; fine if it is there.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates an empty file for this user alone, replacing what has that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file that exists, for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// The same of a file whose content is of no use any more: what is read is that, or zeros.
    fn reuse(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    /// Gives a file another name in the same directory, replacing what has that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes of a file that a power cut leaves old or new together: so many from every multiple of it on.
    fn sector_bytes(&self) -> u64 {
        SECTOR_BYTES
    }
}

/// The unit in which a disk writes all or nothing. Disks with larger units keep the same promise for this one.
pub(super) const SECTOR_BYTES: u64 = 512;

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads at `offset` until `into` is full or the file ends; returns how many bytes that were.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes all the pieces, one after the other, from `offset` on.
    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()>;

    /// Lengthens the file to `len` with zeros that occupy their blocks, so that overwriting them later changes no metadata
    /// and a sync then writes nothing but the data. Does nothing to a file that is long enough.
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Cuts the file at `len`, or lengthens it with zeros that need not occupy anything.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes its bytes and its length durable.
    fn sync(&self) -> io::Result<()>;
}

/// Reads a whole file.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut data = vec![0; len];
    let read = file.read_at(0, &mut data)?;
    data.truncate(read);
    Ok(data)
}

/// Opens a file of this machine for who only looks: nothing can be written to it.
pub(super) fn look(path: &Path) -> io::Result<Box<dyn DiskFile>> {
    Ok(Box::new(RealFile(File::open(path)?)))
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is not text is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, mut offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match self.0.read_at(&mut into[filled..], offset) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, mut offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut pieces = pieces.to_vec();
        let mut rest = pieces.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0); // drops empty pieces in front: a write of nothing looks like a full disk
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(PIECES_MAX)];
            match rustix::io::pwritev(&self.0, batch, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut rest, written);
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        const STEP: usize = 1 << 20;
        let mut at = self.len()?;
        if at >= len {
            return Ok(());
        }
        // Reserving first means a full disk is noticed before anything is written; the zeros then turn the reservation
        // into plain blocks. A file system that cannot reserve does without.
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::KEEP_SIZE, at, len - at) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let zeros = vec![0; STEP];
        while at < len {
            let step = (len - at).min(STEP as u64);
            self.0.write_all_at(&zeros[..step as usize], at)?;
            // A bit at a time, for whoever else syncs on this disk meanwhile has to wait for it.
            self.0.sync_data()?;
            at += step;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Pieces the kernel takes in one vectored write (its UIO_MAXIOV). More than that are written in turns.
const PIECES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_arrive_in_order_and_reads_stop_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.create(&path).unwrap();
        file.preallocate(10_000).unwrap();
        let bytes: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let mut pieces = vec![IoSlice::new(b"")];
        pieces.extend(bytes.chunks(1).map(IoSlice::new));
        file.write_at(9_000, &pieces).unwrap();
        file.sync().unwrap();
        let data = read_all(&*RealDisk.open(&path).unwrap()).unwrap();
        assert_eq!(data.len(), 12_000);
        assert!(data[..9_000].iter().all(|byte| *byte == 0));
        assert_eq!(data[9_000..], bytes);
        assert_eq!(file.read_at(11_999, &mut [0; 8]).unwrap(), 1);
        assert_eq!(RealDisk.list(dir.path()).unwrap(), ["f"]);
    }
}
