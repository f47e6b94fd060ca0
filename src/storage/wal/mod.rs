//! The raft log on disk: what was appended and synced comes back after any crash, or the member refuses to start.
//!
//! The log is a row of segment files, `<sequence>.wal`, each allocated in full and filled with zeros before use, so that a
//! sync writes data and no metadata. Segments that are no longer needed become `<sequence>.free` and are used again as they
//! are. One [`Wal::append`] is one record: all of it counts or nothing, be it entries, hard state, or a snapshot adopted
//! together with the hard state that goes with it. A record never crosses a segment's end. Numbers are little endian.
//!
//! # Bytes
//!
//! ```text
//! segment          0        8    12   16        24        32        40        48   52        64
//!                  +--------+----+----+---------+---------+---------+---------+----+---------+---------- - - -
//!                  |EWSEGv1 |crc |flag|sequence | cluster | member  | previous|chn |  zeros  | head record, records,
//!                  |     \n |    |    |         |   id    |   id    |   end   |    |         | seal or end, old bytes
//!                  +--------+----+----+---------+---------+---------+---------+----+---------+---------- - - -
//!      crc: CRC-32C of bytes 12..64.   flag 1: the file was used before, old bytes are not zeros.
//!      previous end, chn: where the log ended in the previous segment, and the chain there.
//!
//! record           0    4    8         16        24        32   36   40   41        48
//!  (8-aligned)     +----+----+---------+---------+---------+----+----+----+---------+---------------+---- - - ---+----+----+
//!                  |EwR1|crc |sequence | offset  | synced  |len |chn |kind|  zeros  | body (len)    | zeros to 8 |EwT1|chn |
//!                  +----+----+---------+---------+---------+----+----+----+---------+---------------+---- - - ---+----+----+
//!      crc: CRC-32C of bytes 8..48, salted with the CRC of the segment header. The header is valid by itself,
//!           at this offset of this use of this file, and nowhere else: never a leftover of an earlier use.
//!      synced: everything before this offset of the segment was durable when this record was written.
//!      chn: CRC-32C of the previous record's chn, of the header without crc and chn, of the body and its padding.
//!      kind: 1 record; 2 seal, 3 end: only the 48 bytes, len 0, chn that of the record before.
//!
//! body             entries (4) flags (4)  then, as the flags say,
//!                  1 reset:       base index (8) term (8)          everything before is void, a snapshot took its place
//!                  2 advance:     base index (8) term (8)          entries up to there are no longer needed
//!                  8 head:        last index (8)                   with 2, the first record of a segment: the log so far
//!                  4 hard state:  term (8) vote (8) commit (8)
//!                  and each entry: index (8) term (8) data length (4) context length (4) kind (8) data context
//! ```
//!
//! An entry whose index is not after the last one replaces that one and all after it.
//!
//! # How a log ends
//!
//! A crash during an append may leave any sectors ([`Disk::sector_bytes`]) of the records written since the last sync, and not
//! others. These were never acknowledged and are cut off. Everything before was durable: if it does not read back, it must be
//! refused, for an acknowledged entry or vote may be in it. To tell one from the other at a place where no valid record stands:
//!
//!   1. In every segment but the last: damage. A segment is synced to its end before the next one exists, and the next
//!      one's header says where that end is. The first record of a segment is durable before the file gets its name.
//!   2. If any valid header after that place has a `synced` beyond it: damage. Every record carries that proof for those
//!      before it, and every sync leaves a *seal* behind, a bare header where the next record will go. The seal is not
//!      synced itself, but it survives the death of the process, and a power cut once the next sync or the system's
//!      own writeback has happened; a clean stop syncs once more for its sake.
//!   3. If the file ends there, or before the record at that place does: damage. A segment has its full length before it
//!      has its name, and room for the mark behind the last record: no crash makes it shorter.
//!   4. If the record's header and trailer are valid and no sector between them can be missing, then all of it had been
//!      written and something changed afterwards: damage. (In a segment of fresh zeros a sector is missing when it is
//!      zeros; in a recycled one it could be any.)
//!   5. If turning one bit of the record makes all of it valid: damage. That is how bits rot, and a missing sector looks so
//!      only by a chance of one in 2^32 for each bit of the record.
//!   6. Otherwise it is a torn write, and the log ends there.
//!
//! So a wrong bit is never taken for a torn write. One case remains where worse damage is: it hit the very last record, the
//! machine lost power before the seal behind that record reached the disk, and either the record is longer than two sectors
//! and was hit in the middle (in a segment of fresh zeros this counts only for one that holds a sector of zeros), or more
//! than one bit of its header, or its trailer together with its body, is wrong. If only the trailer is, the record is kept.
//! A lost seal alone means nothing.
//!
//! The loss of whole files is noticed as well: the header of a segment says which one it is, and behind the last record of
//! each stands that there is a next one. Opening writes that again where a crash, or damage, has left it out.
//!
//! Opening ends with a sync, so that what was replayed is durable whatever it was before, and with the traces of unfinished
//! records overwritten: bytes after the end must not become valid by what is later written before them.
//! `synced` never exceeds where a later opening cuts, so such traces never prove a thing that is not so.
//!
//! # Errors
//!
//! After any failed write or sync the log is poisoned: nobody knows what the disk holds, so nothing is written any more, and
//! a sync is never tried again. What had been synced before is there at the next start.
//!
//! Left to others: when to sync (an append of nothing but a commit index needs none), which entries are still needed,
//! what the entries mean. Missing on purpose: compression, an index of entries (raft holds them in memory), threads.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{self, Disk, DiskFile};
use super::{Error, Result};
use crate::types::{ClusterId, Index, MemberId, Term};
use record::{Encoder, HEADER_BYTES, Head, Header, Kind};
use replay::End;
use segment::{Closed, SEGMENT_HEADER_BYTES, SegmentHeader, Tail, io};

pub mod inspect;
mod record;
mod replay;
mod segment;

/// How a log is laid out, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Bytes of one segment. Longer records get a longer segment.
    pub segment_bytes: u64,
    /// The cluster and the member that the log belongs to. Another one's is refused.
    pub identity: (ClusterId, MemberId),
}

impl WalOptions {
    /// The usual segments.
    pub fn new(cluster: ClusterId, member: MemberId) -> WalOptions {
        WalOptions { segment_bytes: 64 << 20, identity: (cluster, member) }
    }
}

/// Where a log starts: right after this entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Index of the entry; 0 for a log from the beginning.
    pub index: Index,
    /// Its term.
    pub term: Term,
}

/// What raft must not forget besides entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Whom this member voted for in it; 0 for nobody.
    pub vote: MemberId,
    /// The latest index known to be committed.
    pub commit: Index,
}

/// One entry of the raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Number of raft's entry type.
    pub kind: u8,
    /// Term in which it was proposed.
    pub term: Term,
    /// Its place.
    pub index: Index,
    /// What it says.
    pub data: Bytes,
    /// What raft carries beside it.
    pub context: Bytes,
}

/// What is appended at once: after a crash all of it is there or nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append<'a> {
    /// A snapshot was adopted: all entries before are void and the log goes on from here.
    pub reset: Option<Base>,
    /// Entries, contiguous. They replace what the log has from the first one's index on.
    pub entries: &'a [LogEntry],
    /// The new hard state.
    pub hard_state: Option<&'a HardState>,
}

/// What a log held when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Where it starts.
    pub base: Base,
    /// The last hard state written, if any ever was.
    pub hard_state: Option<HardState>,
    /// All entries after the base, contiguous.
    pub entries: Vec<LogEntry>,
}

/// The log, open at its end.
///
/// Invariant: the tail is synced up to `tail.synced`, and no record is written without saying so.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    closed: VecDeque<Closed>,
    tail: Tail,
    base: Base,
    last: Index,
    hard_state: Option<HardState>,
    /// Files that can become segments.
    spares: Vec<String>,
    /// The spare being filled with zeros, and how far.
    preparing: Option<(Box<dyn DiskFile>, u64)>,
    poisoned: bool,
    /// Memory of the previous record, for the next one.
    buffer: Vec<u8>,
}

/// Recycled segments kept for later use. More are removed.
const SPARES_MAX: usize = 2;
/// Zeros written by one [`Wal::prepare`], so that it does not hold up the next append for long.
const PREPARE_STEP_BYTES: u64 = 4 << 20;
/// The record buffer is given back to the allocator when a record needed more than this.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

impl Wal {
    /// Opens the log in `dir`, or begins one if there is none: cuts off what a crash left unfinished, refuses damage.
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: WalOptions) -> Result<(Wal, Replayed)> {
        disk.create_dir(&dir).map_err(|e| io("creating", &dir, e))?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk.sync_dir(parent).map_err(|e| io("syncing", parent, e))?;
        }
        let mut sequences = Vec::new();
        let mut spares = Vec::new();
        for name in disk.list(&dir).map_err(|e| io("listing", &dir, e))? {
            if let Some(sequence) = segment::sequence_of(&name) {
                sequences.push(sequence);
            } else if name == segment::UNFINISHED || name == segment::ZEROING {
                let path = dir.join(name);
                disk.remove(&path).map_err(|e| io("removing", &path, e))?;
            } else if name.ends_with(".free") {
                spares.push(name);
            }
        }
        let mut state = replay::State::default();
        let mut closed = VecDeque::new();
        let tail = if sequences.is_empty() {
            let header = options.header(1, 0, 0);
            let head = Head { base: Base::default(), last: Index(0), hard_state: None };
            let spare = spares.pop();
            segment::create(&*disk, &dir, header, &head, options.segment_bytes, spare.as_deref())?
        } else {
            Wal::read_segments(&*disk, &dir, &options, &sequences, &mut state, &mut closed)?
        };
        if state.floor > state.base.index {
            let what = format!("entries {} to {} are missing before it", next(state.base.index), state.floor);
            return Err(Error::Corrupt { path: dir.join(segment::name(sequences[0])), offset: 0, what });
        }
        let (base, last, hard_state) = (state.base, state.last(), state.hard_state);
        let (preparing, poisoned, buffer) = (None, false, Vec::new());
        let mut wal =
            Wal { disk, dir, options, closed, tail, base, last, hard_state, spares, preparing, poisoned, buffer };
        wal.seal()?;
        Ok((wal, Replayed { base, hard_state, entries: state.entries.into() }))
    }

    /// Writes a record. It counts once [`Wal::sync`] has returned.
    pub fn append(&mut self, append: &Append<'_>) -> Result<()> {
        if append.reset.is_none() && append.entries.is_empty() && append.hard_state.is_none() {
            return self.usable();
        }
        let (base, last) = append.reset.map_or((self.base, self.last), |reset| (reset, reset.index));
        if let Some(first) = append.entries.first() {
            assert!(first.index > base.index && first.index <= next(last), "entries must follow the log");
            assert!(append.entries.windows(2).all(|pair| pair[1].index == next(pair[0].index)), "contiguous entries");
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.write(Encoder::append(append, buffer))?;
        self.base = base;
        self.last = last;
        if let Some(entry) = append.entries.last() {
            self.last = entry.index;
            self.tail.newest = self.tail.newest.max(entry.index);
        }
        if let Some(hard_state) = append.hard_state {
            self.hard_state = Some(*hard_state);
        }
        Ok(())
    }

    /// Makes everything appended so far durable. A clean stop calls it once more, for the seal's sake.
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        self.tail.file.sync().map_err(|e| self.poison("syncing", e))?;
        if self.tail.synced == self.tail.position {
            return Ok(());
        }
        self.tail.synced = self.tail.position;
        self.seal()
    }

    /// Entries up to and including `base` are no longer needed. Segments that hold nothing else are set aside.
    pub fn truncate_front(&mut self, base: Base) -> Result<()> {
        self.usable()?;
        assert!(base.index <= self.last, "a log cannot start after its end");
        if base.index > self.base.index {
            let buffer = std::mem::take(&mut self.buffer);
            self.write(Encoder::advance(base, buffer))?;
            self.base = base;
        }
        self.sync()?;
        self.drop_segments()
    }

    /// Gets a file of zeros ready for the next segment, a few megabytes per call; whether there is more to do. For idle
    /// moments: without it, the append that needs a new segment may have to wait for that. An error here concerns no record.
    pub fn prepare(&mut self) -> Result<bool> {
        self.usable()?;
        if !self.spares.is_empty() || self.tail.position < self.tail.len / 2 {
            return Ok(false);
        }
        let (made, zeroed) = (self.dir.join(segment::ZEROING), self.dir.join(segment::ZEROED));
        let (file, len) = match self.preparing.take() {
            Some(preparing) => preparing,
            None => (self.disk.create(&made).map_err(|e| io("creating", &made, e))?, 0),
        };
        let len = (len + PREPARE_STEP_BYTES).min(self.options.segment_bytes);
        file.preallocate(len).map_err(|e| io("preallocating", &made, e))?;
        file.sync().map_err(|e| io("syncing", &made, e))?;
        if len < self.options.segment_bytes {
            self.preparing = Some((file, len));
            return Ok(true);
        }
        self.disk.rename(&made, &zeroed).map_err(|e| io("renaming", &made, e))?;
        self.disk.sync_dir(&self.dir).map_err(|e| io("syncing", &self.dir, e))?;
        self.spares.push(segment::ZEROED.to_owned());
        Ok(false)
    }

    /// Where the log starts.
    pub fn base(&self) -> Base {
        self.base
    }

    /// The index of the last entry, or of the base if there is none.
    pub fn last(&self) -> Index {
        self.last
    }

    /// Bytes of all segments in use.
    pub fn size(&self) -> u64 {
        self.closed.iter().map(|segment| segment.len).sum::<u64>() + self.tail.len
    }

    fn usable(&self) -> Result<()> {
        if self.poisoned { Err(Error::Poisoned) } else { Ok(()) }
    }

    /// Nothing is written after a failed write: what the disk holds is unknown.
    fn poison(&mut self, doing: &'static str, error: std::io::Error) -> Error {
        self.poisoned = true;
        io(doing, &self.tail.path, error)
    }

    fn write(&mut self, mut record: Encoder<'_>) -> Result<()> {
        self.usable()?;
        let bytes = record.record_bytes();
        // Room is kept for the seal or the end mark behind the record.
        if self.tail.position + bytes + HEADER_BYTES as u64 > self.tail.len
            && let Err(error) = self.rotate(bytes)
        {
            self.poisoned = true;
            return Err(error);
        }
        let tail = &mut self.tail;
        let chain = record.finish(&tail.place, tail.position, tail.synced, tail.chain);
        if let Err(error) = tail.file.write_at(tail.position, &record.slices()) {
            return Err(self.poison("writing", error));
        }
        self.tail.chain = chain;
        self.tail.position += bytes;
        self.buffer = record.into_buffer();
        if self.buffer.capacity() > BUFFER_KEEP_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Goes on in a new segment that has room for a record of `record_bytes`.
    fn rotate(&mut self, record_bytes: u64) -> Result<()> {
        // The old segment is durable before the new one exists: only the last segment can have a torn end.
        self.tail.file.sync().map_err(|e| io("syncing", &self.tail.path, e))?;
        self.tail.synced = self.tail.position;

        let header = self.options.header(self.tail.place.sequence + 1, self.tail.position, self.tail.chain);
        let head = Head { base: self.base, last: self.last, hard_state: self.hard_state };
        let most = SEGMENT_HEADER_BYTES + record::HEAD_BYTES_MAX + record_bytes + HEADER_BYTES as u64;
        let bytes = self.options.segment_bytes.max(most);
        let spare = self.spares.pop();
        let next = segment::create(&*self.disk, &self.dir, header, &head, bytes, spare.as_deref())?;

        // Says that there must be a next segment: without it the loss of the last file would look like a shorter log.
        self.mark(Kind::End).map_err(|e| io("writing", &self.tail.path, e))?;
        self.tail.file.sync().map_err(|e| io("syncing", &self.tail.path, e))?;
        let old = std::mem::replace(&mut self.tail, next);
        self.closed.push_back(Closed { sequence: old.place.sequence, len: old.len, newest: old.newest });
        Ok(())
    }

    /// Leaves the proof that everything before is durable.
    fn seal(&mut self) -> Result<()> {
        self.mark(Kind::Seal).map_err(|e| self.poison("writing", e))
    }

    fn mark(&self, kind: Kind) -> std::io::Result<()> {
        let Tail { position, synced, chain, .. } = self.tail;
        let mark = Header { kind, offset: position, synced, body_len: 0, chain };
        self.tail.file.write_at(position, &[IoSlice::new(&mark.encode(&self.tail.place))])
    }

    /// Sets aside the segments from the front that hold no entry after the base. The base is durable.
    fn drop_segments(&mut self) -> Result<()> {
        while let Some(front) = self.closed.front()
            && front.newest <= self.base.index
        {
            let path = self.dir.join(segment::name(front.sequence));
            let free = segment::free_name(front.sequence);
            // (A disk may round lengths up to a sector.)
            let usual = front.len.abs_diff(self.options.segment_bytes) < self.disk.sector_bytes();
            let keep = self.spares.len() < SPARES_MAX && usual;
            let done = if keep { self.disk.rename(&path, &self.dir.join(&free)) } else { self.disk.remove(&path) };
            // One after the other: a gap in the row of segments would be damage.
            let done = done.and_then(|()| self.disk.sync_dir(&self.dir));
            if let Err(error) = done {
                self.poisoned = true;
                return Err(io("setting aside", &path, error));
            }
            if keep {
                self.spares.push(free);
            }
            self.closed.pop_front();
        }
        Ok(())
    }

    /// Reads all segments and leaves the last one ready to be written to.
    fn read_segments(
        disk: &dyn Disk,
        dir: &Path,
        options: &WalOptions,
        sequences: &[u64],
        state: &mut replay::State,
        closed: &mut VecDeque<Closed>,
    ) -> Result<Tail> {
        let mut headers = Vec::with_capacity(sequences.len());
        for &sequence in sequences {
            let path = dir.join(segment::name(sequence));
            let file = disk.open(&path).map_err(|e| io("opening", &path, e))?;
            let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
            let read = file.read_at(0, &mut bytes).map_err(|e| io("reading", &path, e))?;
            let header = SegmentHeader::decode(&bytes[..read]);
            let header =
                header.map_err(|what| Error::Corrupt { path: path.clone(), offset: 0, what: what.to_owned() })?;
            options.check(&path, &header)?;
            let expected =
                headers.last().map_or(sequence, |(_, _, before): &(_, _, SegmentHeader)| before.sequence + 1);
            if header.sequence != expected || header.sequence != sequence {
                let what = format!("is segment {}, where segment {expected} belongs", header.sequence);
                return Err(Error::Corrupt { path, offset: 16, what });
            }
            headers.push((path, file, header));
        }
        let untils: Vec<Option<SegmentHeader>> =
            headers.iter().skip(1).map(|(_, _, next)| Some(*next)).chain([None]).collect();
        let mut tail = None;
        for ((path, file, header), next) in headers.into_iter().zip(untils) {
            let data = disk::read_all(&*file).map_err(|e| io("reading", &path, e))?;
            let len = data.len() as u64;
            let until = next.map(|next| next.previous_end);
            let end = replay::read_segment(&path, &data, &header, until, disk.sector_bytes(), state)?;
            if let Some(next) = next {
                if next.chain != end.chain {
                    let path = dir.join(segment::name(next.sequence));
                    let what = "does not continue the segment before it".to_owned();
                    return Err(Error::Corrupt { path, offset: 48, what });
                }
                let bytes = data.get(end.position as usize..).unwrap_or_default();
                let mark = Header::decode(bytes, end.position, &header.place());
                if mark.is_none_or(|mark| mark.kind != Kind::End) {
                    let mark = end.mark(Kind::End).encode(&header.place());
                    let write = file.write_at(end.position, &[IoSlice::new(&mark)]).and_then(|()| file.sync());
                    write.map_err(|e| io("repairing", &path, e))?;
                }
                closed.push_back(Closed { sequence: header.sequence, len, newest: end.newest });
                continue;
            }
            // A file cut short behind the log's end gets its length back; the bytes of an unfinished record make room for zeros.
            let repair = || {
                file.preallocate(options.segment_bytes)?;
                if let Some((at, trailer)) = end.trailer {
                    file.write_at(at, &[IoSlice::new(&trailer)])?;
                }
                let zeros = vec![0; (end.traces_to - end.position) as usize];
                file.write_at(end.position, &[IoSlice::new(&zeros)])?;
                file.sync()?;
                file.len()
            };
            let len = repair().map_err(|e| io("repairing", &path, e))?;
            let End { position, chain, newest, .. } = end;
            tail = Some(Tail { place: header.place(), file, path, len, newest, position, synced: position, chain });
        }
        Ok(tail.expect("there is a last segment"))
    }
}

fn next(index: Index) -> Index {
    Index(index.0 + 1)
}

impl WalOptions {
    fn header(&self, sequence: u64, previous_end: u64, chain: u32) -> SegmentHeader {
        let (cluster, member) = self.identity;
        SegmentHeader { sequence, cluster, member, recycled: false, previous_end, chain }
    }

    fn check(&self, path: &Path, header: &SegmentHeader) -> Result<()> {
        if (header.cluster, header.member) == self.identity {
            return Ok(());
        }
        let what = format!(
            "belongs to member {} of cluster {}, not to member {} of cluster {}",
            header.member, header.cluster, self.identity.1, self.identity.0
        );
        Err(Error::Refused { path: path.to_owned(), what })
    }
}

#[cfg(test)]
mod tests;
