//! A disk that forgets what was not synced.
//!
//! Every file has two images: what the process reads back, and what a power cut leaves. A sync carries the written sectors from
//! the first to the second. A power cut takes, for each sector written since, the new bytes or the old ones, so that what was
//! written is torn at sectors; names made, changed or removed since the directory's last sync survive up to some point of
//! their order.
//!
//! A disk can be told to break at one of its next commands: from then on nothing works until the crash. It can be told to give
//! one error, or to be full for a while. After a failed sync what was to be synced counts as clean, and is lost. A bit of a
//! disk at rest can be turned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use everwatch::storage::disk::{Disk, DiskFile};

use crate::dice::Dice;

const SECTOR: usize = 512;

/// How a member dies, seen from its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Only the process: the system writes everything in the end.
    Process,
    /// The power: nothing that was not synced survives.
    All,
    /// The power: some sectors survive, some do not, so that what was written is torn.
    Mixed,
}

/// An error given once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A write fails, half of it done.
    Write,
    /// A read fails.
    Read,
    /// A sync fails, and what it was to carry is lost.
    Sync,
}

/// Errors given so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pub breaks: u64,
    pub writes: u64,
    pub reads: u64,
    pub syncs: u64,
    /// For want of room; one for each time the disk was full.
    pub no_space: u64,
}

/// Writes of which a power cut may have taken the proof that they were there; a bit turned in them could not be told from
/// that, see the log's essay.
const UNPROVEN_WRITES: usize = 4;

/// The disk of one member. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Data>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// What was done to names since the last sync of the directory.
    renames: Vec<Renaming>,
    files_made: u64,
    /// Commands until it breaks.
    fuse: Option<u64>,
    broken: bool,
    /// Commands of its kind until an error.
    trouble: Option<(Trouble, u64)>,
    full: bool,
    full_told: bool,
    /// An error was given since the last crash.
    troubled: bool,
    given: Given,
    syncs: u64,
    /// The last writes: file, start, end.
    last_writes: VecDeque<(u64, usize, usize)>,
}

#[derive(Default)]
struct Data {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    /// Sectors that read back as written but will not be there after the crash.
    lost: BTreeSet<usize>,
}

#[derive(Clone)]
enum Renaming {
    Made(PathBuf, u64),
    Moved(PathBuf, PathBuf),
    Removed(PathBuf),
}

fn carry_out(names: &mut BTreeMap<PathBuf, u64>, renaming: &Renaming) {
    match renaming {
        Renaming::Made(path, file) => {
            names.insert(path.clone(), *file);
        }
        Renaming::Moved(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Renaming::Removed(path) => {
            names.remove(path);
        }
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics with the disk in hand")
    }

    /// It breaks after so many more commands.
    pub fn break_after(&self, commands: u64) {
        self.lock().fuse = Some(commands);
    }

    /// It gives an error once, after so many more commands of that kind.
    pub fn trouble_after(&self, trouble: Trouble, commands: u64) {
        self.lock().trouble = Some((trouble, commands));
    }

    /// There is no room for more, or there is again.
    pub fn set_full(&self, full: bool) {
        let state = &mut *self.lock();
        (state.full, state.full_told) = (full, false);
    }

    /// Whether it has given an error since the last crash.
    pub fn has_failed(&self) -> bool {
        let state = self.lock();
        state.broken || state.troubled
    }

    /// Nothing goes wrong any more.
    pub fn repair(&self) {
        let state = &mut *self.lock();
        (state.fuse, state.trouble, state.full) = (None, None, false);
    }

    /// Errors given so far.
    pub fn given(&self) -> Given {
        self.lock().given
    }

    /// Syncs that carried all they were to.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Names of files that exist.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().map(|path| path.display().to_string()).collect()
    }

    /// Everything on it is gone.
    pub fn empty(&self) {
        let state = &mut *self.lock();
        (state.files, state.names, state.durable_names) = Default::default();
        state.renames.clear();
        state.last_writes.clear();
    }

    /// Turns a bit of what is at rest, of which the disk alone can tell that it was there. Says where.
    pub fn flip(&self, dice: &mut Dice) -> Option<String> {
        let state = &mut *self.lock();
        let used = |data: &Data| data.durable.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let files: Vec<(PathBuf, u64, usize)> = (state.names.iter())
            .map(|(path, file)| (path.clone(), *file, used(&state.files[file])))
            .filter(|(_, _, used)| *used > 0)
            .collect();
        if files.is_empty() {
            return None;
        }
        for _ in 0..20 {
            let (path, file, used) = &files[dice.below(files.len() as u64) as usize];
            let (at, bit) = (dice.below(*used as u64) as usize, dice.below(8));
            let unproven = |(of, start, end): &(u64, usize, usize)| of == file && (*start..*end).contains(&at);
            if state.last_writes.iter().any(unproven) {
                continue;
            }
            let data = state.files.get_mut(file).expect("it has a name");
            data.durable[at] ^= 1 << bit;
            if let Some(byte) = data.now.get_mut(at) {
                *byte ^= 1 << bit;
            }
            return Some(format!("{} byte {at} bit {bit}", path.display()));
        }
        None
    }

    /// The process or the machine dies; the disk works again.
    pub fn crash(&self, loss: Loss, dice: &mut Dice) {
        let state = &mut *self.lock();
        (state.fuse, state.broken) = (None, false);
        (state.trouble, state.troubled) = (None, false);
        if loss == Loss::Process {
            state.files.values_mut().for_each(Data::lose);
            return;
        }
        let kept = match loss {
            Loss::Mixed => dice.below(state.renames.len() as u64 + 1) as usize,
            _ => 0,
        };
        for renaming in state.renames.drain(..).take(kept) {
            carry_out(&mut state.durable_names, &renaming);
        }
        state.names = state.durable_names.clone();
        let alive: BTreeSet<u64> = state.names.values().copied().collect();
        state.files.retain(|file, _| alive.contains(file));
        for data in state.files.values_mut() {
            data.crash(loss, dice);
        }
    }
}

impl Data {
    /// What a failed sync dropped turns out to be gone.
    fn lose(&mut self) {
        for sector in std::mem::take(&mut self.lost) {
            let start = (sector * SECTOR).min(self.now.len());
            let end = (start + SECTOR).min(self.now.len());
            let kept = start.max(end.min(self.durable.len()));
            self.now[start..kept].copy_from_slice(&self.durable[start..kept]);
            self.now[kept..end].fill(0);
        }
    }

    fn crash(&mut self, loss: Loss, dice: &mut Dice) {
        let (before, reached) = (self.durable.len(), self.now.len());
        if loss == Loss::Mixed {
            let kept_of_thousand = dice.pick(&[100, 500, 900]);
            let mut len = if dice.chance(500) { reached } else { before.min(reached) };
            self.durable.resize(before.max(reached), 0);
            if dice.chance(200) {
                // What was on the medium before the file grew over it.
                let mut garbage = dice.clone();
                self.durable[before..].iter_mut().for_each(|byte| *byte = garbage.next() as u8);
            }
            for sector in &self.dirty {
                if !dice.chance(kept_of_thousand) {
                    continue;
                }
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(reached);
                self.durable[start..end].copy_from_slice(&self.now[start..end]);
                len = len.max(end);
            }
            self.durable.truncate(len);
        }
        self.dirty.clear();
        self.lost.clear();
        self.now = self.durable.clone();
    }
}

impl State {
    /// One command; an error when the disk is broken or breaks now.
    fn command(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.fuse {
            if *left == 0 {
                self.given.breaks += u64::from(!self.broken);
                self.broken = true;
            } else {
                *left -= 1;
            }
        }
        if self.broken { Err(io::Error::other("the disk broke")) } else { Ok(()) }
    }

    /// Whether the error asked for is due in a command of this kind.
    fn trouble(&mut self, kind: Trouble) -> io::Result<()> {
        let Some((_, left)) = self.trouble.as_mut().filter(|(asked, _)| *asked == kind) else { return Ok(()) };
        if *left > 0 {
            *left -= 1;
            return Ok(());
        }
        (self.trouble, self.troubled) = (None, true);
        let count = match kind {
            Trouble::Write => &mut self.given.writes,
            Trouble::Read => &mut self.given.reads,
            Trouble::Sync => &mut self.given.syncs,
        };
        *count += 1;
        Err(io::Error::other("input/output error"))
    }

    /// Whether there is room for a file to grow.
    fn room(&mut self) -> io::Result<()> {
        if !self.full {
            return Ok(());
        }
        self.given.no_space += u64::from(!self.full_told);
        (self.full_told, self.troubled) = (true, true);
        Err(io::ErrorKind::StorageFull.into())
    }

    fn rename(&mut self, renaming: Renaming) -> io::Result<()> {
        // It may survive, like a write, even when the command failed.
        carry_out(&mut self.names, &renaming);
        self.renames.push(renaming);
        self.command()
    }

    fn file(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.lock().command()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        state.files_made += 1;
        let file = state.files_made;
        state.files.insert(file, Data::default());
        state.rename(Renaming::Made(path.to_owned(), file))?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.lock().file(path)?;
        Ok(Box::new(SimFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.file(from)?;
        state.rename(Renaming::Moved(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.file(path)?;
        state.rename(Renaming::Removed(path.to_owned()))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let state = &mut *self.lock();
        state.command()?;
        for renaming in state.renames.drain(..) {
            carry_out(&mut state.durable_names, &renaming);
        }
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    file: u64,
}

impl SimFile {
    fn with<T>(&self, work: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.disk.lock();
        if !state.files.contains_key(&self.file) {
            return Err(io::Error::other("a file of before the crash"));
        }
        work(state, self.file)
    }
}

fn data(state: &mut State, file: u64) -> &mut Data {
    state.files.get_mut(&file).expect("checked by the caller")
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state, file| Ok(data(state, file).now.len() as u64))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.with(|state, file| {
            state.trouble(Trouble::Read)?;
            let now = &data(state, file).now;
            let start = (offset as usize).min(now.len());
            let count = into.len().min(now.len() - start);
            into[..count].copy_from_slice(&now[start..start + count]);
            Ok(count)
        })
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.with(|state, file| {
            if state.broken {
                return state.command();
            }
            let mut at = offset as usize;
            let mut len: usize = pieces.iter().map(|piece| piece.len()).sum();
            if data(state, file).now.len() < at + len {
                state.room()?;
            }
            let failed = state.trouble(Trouble::Write);
            if failed.is_err() {
                len /= 2;
            }
            state.last_writes.push_back((file, at, at + len));
            if state.last_writes.len() > UNPROVEN_WRITES {
                state.last_writes.pop_front();
            }
            let data = data(state, file);
            if len > 0 {
                if data.now.len() < at + len {
                    data.now.resize(at + len, 0);
                }
                for sector in at / SECTOR..=(at + len - 1) / SECTOR {
                    data.dirty.insert(sector);
                    data.lost.remove(&sector);
                }
            }
            for piece in pieces {
                let part = &piece[..piece.len().min(len)];
                data.now[at..at + part.len()].copy_from_slice(part);
                at += part.len();
                len -= part.len();
            }
            failed?;
            // Some of it may be there even if the command fails.
            state.command()
        })
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.with(|state, file| {
            state.command()?;
            if data(state, file).now.len() < len as usize {
                state.room()?;
            }
            let data = data(state, file);
            if data.now.len() < len as usize {
                data.now.resize(len as usize, 0);
            }
            Ok(())
        })
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        // The log never asks for it.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state, file| {
            state.command()?;
            let failed = state.trouble(Trouble::Sync);
            let data = data(state, file);
            if failed.is_err() {
                data.lost.append(&mut data.dirty);
                return failed;
            }
            data.durable.resize(data.now.len(), 0);
            for sector in std::mem::take(&mut data.dirty) {
                let range = sector * SECTOR..((sector + 1) * SECTOR).min(data.now.len());
                data.durable[range.clone()].copy_from_slice(&data.now[range]);
            }
            let whole = data.lost.is_empty();
            state.syncs += u64::from(whole);
            Ok(())
        })
    }
}
