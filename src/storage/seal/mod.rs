//! Data at rest, sealed: what somebody finds who gets hold of the disk, a copy of it or a file, but not of the key.
//!
//! Log, backend and snapshots then consist of *units*, each of which is encrypted and vouched for by itself (AES-256-GCM). A unit is
//! opened only where it was written, in the file it was written to, and whole: a changed bit, a unit in another's place, or one of
//! another file is damage, and is refused (but for a segment that is used again, see below). The disk of such files is [`disk()`].
//!
//! ```text
//! head             0        8    12   16        24           36                             84           512
//! (one sector)     +--------+----+----+---------+------------+------------------------------+-----------+
//!                  |EWSEALv1|crc |form|key id   | nonce      | the file's data key, sealed  |   zeros   |
//!                  +--------+----+----+---------+------------+------------------------------+-----------+
//!      crc: CRC-32C of bytes 12..512. form: 1 log, 2 pages. Sealed under the key that the id says, together with bytes 12..24.
//!
//! unit             0                16       24
//!                  +----------------+--------+------------- - - -+----------------+
//!                  |use    :session |count   | content, sealed   | tag            |
//!                  +----------------+--------+------------- - - -+----------------+
//!      sealed under the session's key, with the count as nonce, together with the unit's place in the file.
//!      use: the beginning of a hash of the data key. Zeros throughout: never written, and the content is zeros.
//! ```
//!
//! A segment of the log that is used again gets a new data key with its head; units of another use count as never written there.
//! That is told from damage by the use: one that differs in a few bits is damage, one that has nothing to do with this one is another.
//!
//! # What a power cut leaves
//!
//! A disk writes a sector whole or not at all ([`super::disk`]), and more than one in any mixture. A unit of which a part is old cannot be
//! opened. So what is overwritten while it counts has units of one sector: all of the log, which goes on inside the sector where
//! it ended, and the first page of the engine, in which it says which of two states counts. Its other pages are a unit each, for it
//! writes only to those that nothing refers to; their units do not start at sectors, but what a write leaves of its neighbours in a
//! sector is what was there. (A page in sectors takes four times as long.) Thus the log keeps its promises with sectors of 472 bytes
//! in place of 512, and a unit that cannot be opened is never the trace of a crash.
//!
//! # Keys
//!
//! The [`Keys`] of the operator seal one data key for each file, drawn when it is made. To replace one, the new one is put before
//! it; whatever opens a file then writes its head anew, and [`admit`] opens all there are at every start. After it the old one is of no
//! use to who only has the files as they are now. The data key of a segment stays until it is used again, that of the state as long as its
//! file: whoever has an old copy of a head and the key that it was sealed under can read what comes until then.
//!
//! # Deliberately missing
//!
//! It is not known here whether a file, or a unit, is the newest that there was: who can write to the disk can put back what was there
//! before (the log's chain and the engine's checksums notice units that do not fit together). Lengths, names, times, and where something
//! was written are seen by everybody. What was begun unsealed is not sealed, nor the other way round: a member is replaced.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{self, Disk, DiskFile, RealDisk};
use super::{Error, Result};
use file::{SECTOR_CONTENT, Shape};
use head::HEAD_BYTES;

mod cipher;
pub(super) mod file;
mod head;
mod keys;

pub use keys::Keys;

use file::SealedFile;

/// Why a file is not opened, or a part of it not read. Travels inside an [`io::Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It is not what was written.
    Damaged {
        /// Where, in bytes of the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// It is not sealed, and there are keys.
    Plain,
    /// It is sealed, and there are none.
    Sealed,
    /// It is sealed under another key than those of this file.
    UnknownKey {
        /// Where they are.
        keys: PathBuf,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Damaged { offset, what } => write!(f, "is damaged at byte {offset}: {what}"),
            Broken::Plain => f.write_str(
                "is not encrypted, and --encryption-key-file is given: start without it, or replace this member by one that begins with it",
            ),
            Broken::Sealed => f.write_str("is encrypted: --encryption-key-file is needed"),
            Broken::UnknownKey { keys } => write!(f, "is encrypted with a key that is not in {}", keys.display()),
        }
    }
}

impl std::error::Error for Broken {}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, broken)
    }
}

/// The same disk, with the log's files sealed if there are keys.
pub fn disk(below: Arc<dyn Disk>, keys: Option<&Keys>) -> Arc<dyn Disk> {
    match keys {
        Some(keys) => Arc::new(SealedDisk { below, keys: keys.clone() }),
        None => below,
    }
}

/// [`Disk::sector_bytes`] of such a disk, for who reads files without one.
pub(super) fn sector_bytes(keys: Option<&Keys>) -> u64 {
    keys.map_or(disk::SECTOR_BYTES, |_| SECTOR_CONTENT)
}

/// Makes sure that what is in these directories of a member is sealed if there are keys, and not if there are none; and that it is
/// sealed under the first of them from here on. How many files had been under another. Refused before anything is changed.
///
/// For a start, before anything else looks at the files.
pub fn admit(dirs: &[&Path], keys: Option<&Keys>) -> Result<usize> {
    let mut files = Vec::new();
    for dir in dirs {
        let names = match RealDisk.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            names => names.map_err(|source| Error::of_call("listing", dir, source))?,
        };
        files.extend(names.into_iter().filter(|name| holds_data(name)).map(|name| dir.join(name)));
    }
    let mut outdated = Vec::new();
    for path in files {
        match keys {
            None => drop(look(&path, None)?),
            Some(keys) => {
                let opened = disk::look(&path).and_then(|file| SealedFile::open(file, keys));
                let (_, is_newest) = opened.map_err(|source| Error::of_call("opening", &path, source))?;
                outdated.extend((!is_newest).then_some(path));
            }
        }
    }
    for path in &outdated {
        let keys = keys.expect("nothing is outdated without keys");
        open(path, keys).map_err(|source| Error::of_call("opening", path, source))?;
    }
    Ok(outdated.len())
}

/// Whether a file of that name has something in it that counts, or comes to count. Others are thrown away at a start, or used again
/// whatever is in them.
fn holds_data(name: &str) -> bool {
    [".wal", ".redb"].iter().any(|end| name.ends_with(end))
}

/// Opens a file that stays as it is, for reading, sealed or not as the keys say.
pub(super) fn look(path: &Path, keys: Option<&Keys>) -> Result<Box<dyn DiskFile>> {
    let opened = disk::look(path).and_then(|file| match keys {
        Some(keys) => Ok(Box::new(SealedFile::open(file, keys)?.0) as Box<dyn DiskFile>),
        None => {
            let mut start = [0; HEAD_BYTES];
            let read = file.read_at(0, &mut start)?;
            if head::is_sealed(&start[..read]) { Err(Broken::Sealed.into()) } else { Ok(file) }
        }
    });
    opened.map_err(|source| Error::of_call("opening", path, source))
}

/// Makes an empty file for the engine.
pub(super) fn create_pages(path: &Path, keys: &Keys) -> io::Result<SealedFile> {
    SealedFile::create(RealDisk.create(path)?, Shape::Pages, keys)
}

/// The same of any file, which may be one already.
#[cfg(test)]
pub(super) fn pages_over(file: Box<dyn DiskFile>, keys: &Keys) -> io::Result<SealedFile> {
    match file.is_empty()? {
        true => SealedFile::create(file, Shape::Pages, keys),
        false => Ok(SealedFile::open(file, keys)?.0),
    }
}

/// Opens a file.
pub(super) fn open(path: &Path, keys: &Keys) -> io::Result<SealedFile> {
    open_on(&RealDisk, path, keys)
}

fn open_on(disk: &dyn Disk, path: &Path, keys: &Keys) -> io::Result<SealedFile> {
    let (file, is_newest) = SealedFile::open(disk.open(path)?, keys)?;
    if !is_newest {
        file.rotate(keys)?;
    }
    Ok(file)
}

/// A disk on which the log's files are sealed.
struct SealedDisk {
    below: Arc<dyn Disk>,
    keys: Keys,
}

impl Disk for SealedDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.create_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.below.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SealedFile::create(self.below.create(path)?, Shape::Log, &self.keys)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(open_on(&*self.below, path, &self.keys)?))
    }

    fn reuse(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(SealedFile::create(self.below.open(path)?, Shape::Log, &self.keys)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.below.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.sync_dir(dir)
    }

    fn sector_bytes(&self) -> u64 {
        SECTOR_CONTENT
    }
}

/// Bytes that nobody can guess, from the system.
fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
