//! A file whose units are sealed, with the face of one that is not: for the log, and for the engine of the backend.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Mutex, PoisonError};

use super::cipher::{AtHand, BEFORE_BYTES, Cipher, MORE_BYTES};
use super::head::{DataKey, HEAD_BYTES, Head};
use super::keys::Keys;
use super::random;
use crate::storage::disk::{DiskFile, SECTOR_BYTES};

/// Content of a unit that fills a sector.
pub(super) const SECTOR_CONTENT: u64 = SECTOR_BYTES - MORE_BYTES as u64;
/// Content of a unit that is a page of the engine's.
const PAGE_CONTENT: u64 = 4096;
/// Bytes of content that are read or written at once.
const PORTION_BYTES: u64 = 256 << 10;

/// How a file is cut into units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Sectors.
    Log,
    /// The first page in sectors, since it is overwritten while it counts; then pages, which are not.
    Pages,
}

/// One unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    /// Where its content starts, in the file as it looks.
    start: u64,
    /// How much of its content is seen.
    len: u64,
    /// How much is sealed.
    room: u64,
    /// Where it starts in the file as it is.
    at: u64,
}

impl Unit {
    /// Bytes of the file that it takes.
    fn bytes(&self) -> u64 {
        self.room + MORE_BYTES as u64
    }
}

impl Shape {
    /// The first page's sectors, and where the second page is.
    const FIRST_SECTORS: u64 = PAGE_CONTENT.div_ceil(SECTOR_CONTENT);
    const PAGES_AT: u64 = HEAD_BYTES as u64 + Shape::FIRST_SECTORS * SECTOR_BYTES;
    const PAGE_BYTES: u64 = PAGE_CONTENT + MORE_BYTES as u64;

    pub(super) fn number(self) -> u32 {
        match self {
            Shape::Log => 1,
            Shape::Pages => 2,
        }
    }

    pub(super) fn of(number: u32) -> Option<Shape> {
        [Shape::Log, Shape::Pages].into_iter().find(|shape| shape.number() == number)
    }

    /// The unit that has the byte at `offset`.
    fn unit(self, offset: u64) -> Unit {
        if self == Shape::Pages && offset >= PAGE_CONTENT {
            let number = offset / PAGE_CONTENT;
            let at = Shape::PAGES_AT + (number - 1) * Shape::PAGE_BYTES;
            return Unit { start: number * PAGE_CONTENT, len: PAGE_CONTENT, room: PAGE_CONTENT, at };
        }
        let number = offset / SECTOR_CONTENT;
        let start = number * SECTOR_CONTENT;
        let len = match self {
            Shape::Log => SECTOR_CONTENT,
            Shape::Pages => SECTOR_CONTENT.min(PAGE_CONTENT - start),
        };
        Unit { start, len, room: SECTOR_CONTENT, at: HEAD_BYTES as u64 + number * SECTOR_BYTES }
    }

    /// The length of a file that has room for so much.
    pub(super) fn length(self, content: u64) -> u64 {
        match content.checked_sub(1).map(|last| self.unit(last)) {
            Some(last) => last.at + last.bytes(),
            None => HEAD_BYTES as u64,
        }
    }

    /// What a file of this length has room for: whole units.
    pub(super) fn content(self, length: u64) -> u64 {
        let sectors = length.saturating_sub(HEAD_BYTES as u64) / SECTOR_BYTES;
        match self {
            Shape::Log => sectors * SECTOR_CONTENT,
            Shape::Pages if length < Shape::PAGES_AT => sectors * SECTOR_CONTENT,
            Shape::Pages => PAGE_CONTENT + (length - Shape::PAGES_AT) / Shape::PAGE_BYTES * PAGE_CONTENT,
        }
    }
}

/// An open file.
pub(crate) struct SealedFile {
    below: Box<dyn DiskFile>,
    cipher: Cipher,
    shape: Shape,
    writing: Mutex<Writing>,
}

/// What a write works with. One at a time: what it does not overwrite of a unit must be what is there.
#[derive(Default)]
struct Writing {
    buffer: Vec<u8>,
    /// The unit that the last write ended in, for who goes on there.
    last: Option<u64>,
    last_content: Vec<u8>,
}

impl SealedFile {
    /// Makes an empty one of a file that is empty, or, in a log, of one whose content is of no use any more.
    pub(super) fn create(below: Box<dyn DiskFile>, shape: Shape, keys: &Keys) -> io::Result<SealedFile> {
        let data_key = DataKey::new(random()?);
        below.write_at(0, &[IoSlice::new(&Head::seal(keys, shape, &data_key)?)])?;
        SealedFile::over(below, shape, data_key)
    }

    /// Opens one that is. Also says whether the first of the keys seals it.
    pub(super) fn open(below: Box<dyn DiskFile>, keys: &Keys) -> io::Result<(SealedFile, bool)> {
        let mut start = [0; HEAD_BYTES];
        let read = below.read_at(0, &mut start)?;
        let Head { shape, data_key, is_newest } = Head::open(&start[..read], keys)?;
        Ok((SealedFile::over(below, shape, data_key)?, is_newest))
    }

    fn over(below: Box<dyn DiskFile>, shape: Shape, data_key: DataKey) -> io::Result<SealedFile> {
        Ok(SealedFile { below, cipher: Cipher::new(data_key, shape == Shape::Log)?, shape, writing: Mutex::default() })
    }

    /// Seals it under the first of the keys. It is in one sector: after a crash the file is sealed under that one or the one before.
    pub(super) fn rotate(&self, keys: &Keys) -> io::Result<()> {
        let head = Head::seal(keys, self.shape, self.cipher.data_key())?;
        self.below.write_at(0, &[IoSlice::new(&head)])?;
        self.below.sync()
    }

    /// The content of a unit as the file has it; zeros if it has none.
    fn load(&self, unit: &Unit, into: &mut [u8]) -> io::Result<()> {
        let mut bytes = vec![0; unit.bytes() as usize];
        if self.below.read_at(unit.at, &mut bytes)? == bytes.len() {
            self.cipher.open(unit.at, &mut bytes, &mut None)?;
            into.copy_from_slice(&bytes[BEFORE_BYTES..][..into.len()]);
        }
        Ok(())
    }

    /// What a crash or damage left of a unit at the file's end must not come to stand in the middle of it.
    fn cut_fragment(&self) -> io::Result<()> {
        let length = self.below.len()?;
        let whole = self.shape.length(self.shape.content(length));
        if length > whole { self.below.set_len(whole) } else { Ok(()) }
    }
}

impl DiskFile for SealedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.shape.content(self.below.len()?))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let end = offset.checked_add(into.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let (mut buffer, mut at_hand, mut done) = (Vec::new(), AtHand::None, 0);
        while done < into.len() {
            let first = self.shape.unit(offset + done as u64);
            let until = end.min(first.start.saturating_add(PORTION_BYTES));
            buffer.resize((self.shape.length(until) - first.at) as usize, 0);
            let read = self.below.read_at(first.at, &mut buffer)?;
            let mut rest = &mut buffer[..read];
            while offset + (done as u64) < until {
                let unit = self.shape.unit(offset + done as u64);
                let Some((bytes, more)) = rest.split_at_mut_checked(unit.bytes() as usize) else { return Ok(done) };
                self.cipher.open(unit.at, bytes, &mut at_hand)?;
                let from = (offset + done as u64 - unit.start) as usize;
                let content = &bytes[BEFORE_BYTES..][..unit.len as usize][from..];
                let seen = content.len().min(into.len() - done);
                into[done..done + seen].copy_from_slice(&content[..seen]);
                done += seen;
                rest = more;
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut pieces = Pieces { pieces, at: 0 };
        let (mut at, end) = (offset, offset + pieces.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>());
        let writing = &mut *self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while at < end {
            let (first, mut ended_in) = (self.shape.unit(at), None);
            writing.buffer.clear();
            while at < end && at < first.start + PORTION_BYTES {
                let unit = self.shape.unit(at);
                let (from, len) = ((at - unit.start) as usize, (unit.len - (at - unit.start)).min(end - at));
                let place = writing.buffer.len();
                writing.buffer.resize(place + unit.bytes() as usize, 0);
                let sealed = &mut writing.buffer[place..];
                let content = &mut sealed[BEFORE_BYTES..][..unit.len as usize];
                if len < unit.len {
                    match writing.last {
                        Some(start) if start == unit.start => content.copy_from_slice(&writing.last_content),
                        _ => self.load(&unit, content)?,
                    }
                }
                pieces.take(&mut content[from..from + len as usize]);
                if len < unit.len {
                    ended_in = Some(unit.start);
                    writing.last = None;
                    writing.last_content.clear();
                    writing.last_content.extend_from_slice(content);
                }
                self.cipher.seal(unit.at, sealed);
                at += len;
            }
            // Until it is written, nobody knows what is there.
            writing.last = None;
            self.below.write_at(first.at, &[IoSlice::new(&writing.buffer)])?;
            writing.last = ended_in;
        }
        Ok(())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.cut_fragment()?;
        self.below.preallocate(self.shape.length(len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let length = self.shape.length(len);
        if self.shape.content(length) != len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an encrypted file ends with a whole unit"));
        }
        let writing = &mut *self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.last = None;
        self.cut_fragment()?;
        self.below.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.below.sync()
    }
}

/// What is to be written, taken from the front.
struct Pieces<'a> {
    pieces: &'a [IoSlice<'a>],
    /// How much of the first was taken.
    at: usize,
}

impl Pieces<'_> {
    fn take(&mut self, mut into: &mut [u8]) {
        while !into.is_empty() {
            let piece = &self.pieces[0][self.at..];
            let len = piece.len().min(into.len());
            into[..len].copy_from_slice(&piece[..len]);
            into = &mut into[len..];
            self.at += len;
            if self.at == self.pieces[0].len() {
                (self.pieces, self.at) = (&self.pieces[1..], 0);
            }
        }
    }
}

impl fmt::Debug for SealedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedFile").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// The engine's pages are never overwritten while they count, but for the first.
impl redb::StorageBackend for SealedFile {
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
        self.write_at(offset, &[IoSlice::new(data)])
    }
}
