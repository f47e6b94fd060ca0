//! Reads a log back, and judges what its end looks like.
//!
//! [`State`] is what the records add up to. [`read_segment`] walks one segment and stops where the log ends; if that is not
//! where a later segment says, or if anything shows that the missing part had been durable, it is damage and is refused.
//! What cannot have been acknowledged is left out. The rules are in [`super`], "How a log ends".

use std::collections::VecDeque;
use std::path::Path;

use super::record::{self, Body, Found, HEADER_BYTES, Header, Kind, Place, TRAILER_BYTES};
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{Base, HardState, LogEntry};
use crate::storage::{Error, Result};
use crate::types::Index;

/// What the records read so far add up to.
///
/// Invariant: `entries` are contiguous and start right after `floor`; `base.index <= floor`. Entries between the two
/// stood in segments that are gone; a later record must say that they are not needed.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) base: Base,
    pub(super) floor: Index,
    pub(super) entries: VecDeque<LogEntry>,
    pub(super) hard_state: Option<HardState>,
    started: bool,
}

impl State {
    /// The index of the last entry.
    pub(super) fn last(&self) -> Index {
        self.entries.back().map_or(self.floor, |entry| entry.index)
    }

    fn apply(&mut self, body: Body) -> std::result::Result<(), &'static str> {
        if let Some(last) = body.head {
            return self.head(body.advance.ok_or("a head record without a base")?, last, body.hard_state);
        }
        if !self.started {
            return Err("the segment does not start with a head record");
        }
        if let Some(base) = body.reset {
            self.entries.clear();
            (self.base, self.floor) = (base, base.index);
        }
        if let Some(base) = body.advance {
            if base.index < self.base.index || base.index > self.last() {
                return Err("the base moves to where there is no log");
            }
            let dropped = base.index.0.saturating_sub(self.floor.0) as usize;
            self.entries.drain(..dropped);
            (self.base, self.floor) = (base, self.floor.max(base.index));
        }
        if let Some(first) = body.entries.first() {
            if first.index <= self.base.index || first.index.0 > self.last().0.saturating_add(1) {
                return Err("entries do not follow the log");
            }
            self.floor = self.floor.min(Index(first.index.0 - 1));
            self.entries.truncate((first.index.0 - 1 - self.floor.0) as usize);
            // Overwriting from before what is held: then nothing held is left, and the floor has moved down to there.
            for entry in body.entries {
                if entry.index.0 != self.last().0 + 1 {
                    return Err("entries are not contiguous");
                }
                self.entries.push_back(entry);
            }
        }
        if body.hard_state.is_some() {
            self.hard_state = body.hard_state;
        }
        Ok(())
    }

    fn head(
        &mut self,
        base: Base,
        last: Index,
        hard_state: Option<HardState>,
    ) -> std::result::Result<(), &'static str> {
        if last < base.index {
            return Err("a head record whose log ends before its base");
        }
        if self.started && (base, last, hard_state) != (self.base, self.last(), self.hard_state) {
            return Err("the head record does not continue the segment before");
        }
        if !self.started {
            (self.base, self.floor, self.hard_state, self.started) = (base, last, hard_state, true);
        }
        Ok(())
    }
}

/// Where the log ends in a segment, and what has to be done about it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) position: u64,
    pub(super) chain: u32,
    pub(super) newest: Index,
    /// The last record lacks its trailer, which goes here.
    pub(super) trailer: Option<(u64, [u8; TRAILER_BYTES])>,
    /// Up to here, traces of a crash may stand after the end.
    pub(super) traces_to: u64,
}

impl End {
    /// What says there that the log ends, or goes on elsewhere. All before it is durable.
    pub(super) fn mark(&self, kind: Kind) -> Header {
        Header { kind, offset: self.position, synced: self.position, body_len: 0, chain: self.chain }
    }
}

/// Reads the records of a segment into `state`. `until` is where the next segment says that this one ends; `sector`, in what portions
/// a power cut leaves bytes out.
pub(super) fn read_segment(
    path: &Path,
    data: &[u8],
    header: &SegmentHeader,
    until: Option<u64>,
    sector: u64,
    state: &mut State,
) -> Result<End> {
    let place = header.place();
    let damaged = |offset: u64, what: &str| Error::Corrupt { path: path.to_owned(), offset, what: what.to_owned() };
    let (mut at, mut chain, mut newest) = (SEGMENT_HEADER_BYTES, header.chain, Index(0));
    let mut trailer = None;
    while until != Some(at) {
        let bytes = usize::try_from(at).ok().and_then(|start| data.get(start..)).unwrap_or_default();
        let found = match Header::decode(bytes, at, &place) {
            Some(header) if header.kind == Kind::Record => Some((header, record::check(bytes, &header, chain))),
            _ => None,
        };
        let (header, body) = match found {
            Some((header, Found::Whole(body))) => (header, body),
            // Nothing is missing. If nothing proves that this was durable, the last sector may just not have been written.
            Some((header, Found::WithoutTrailer(body)))
                if until.is_none()
                    && at != SEGMENT_HEADER_BYTES
                    && header.record_bytes() <= bytes.len() as u64
                    && Later::scan(data, at, &place).proof.is_none() =>
            {
                trailer = Some((at + header.record_bytes() - TRAILER_BYTES as u64, record::trailer(header.chain)));
                (header, body)
            }
            _ if until.is_some() => return Err(damaged(at, "no valid record, in a segment that was complete")),
            _ if at == SEGMENT_HEADER_BYTES => return Err(damaged(at, "no valid record at the segment's start")),
            _ => break,
        };
        let body = Body::decode(body).ok_or_else(|| damaged(at, "a record that makes no sense"))?;
        newest = body.entries.iter().map(|entry| entry.index).fold(newest, Index::max);
        state.apply(body).map_err(|what| damaged(at, what))?;
        chain = header.chain;
        at += header.record_bytes();
        if until.is_some_and(|until| at > until) {
            return Err(damaged(at, "the log goes on after where the next segment says it ends"));
        }
        if trailer.is_some() {
            break;
        }
    }
    let mut end = End { position: at, chain, newest, trailer, traces_to: at };
    if until.is_none() {
        let later = Later::scan(data, at, &place);
        if let Some(proof) = later.proof {
            let what = format!("no valid record, but the one at byte {proof} says that this had been durable");
            return Err(damaged(at, &what));
        }
        judge_end(data.get(at as usize..).unwrap_or_default(), at, chain, header, sector)
            .map_err(|what| damaged(at, what))?;
        end.traces_to = if header.recycled { later.reach } else { last_nonzero(data).max(at) };
    }
    Ok(end)
}

/// What the bytes after a place in a segment tell about that place.
struct Later {
    /// A valid header after it which says that the log had been durable beyond it.
    proof: Option<u64>,
    /// Where the farthest record that has a valid header ends.
    reach: u64,
}

impl Later {
    fn scan(data: &[u8], at: u64, place: &Place) -> Later {
        // A record whose header is valid reaches to where that says. What looks like a header inside it is a client's data.
        let at_hand = Header::decode(data.get(at as usize..).unwrap_or_default(), at, place);
        let reach = at_hand.map_or(at, |header| at + header.record_bytes());
        let reach = if reach <= data.len() as u64 { reach } else { at };
        let mut later = Later { proof: None, reach };
        let start = (reach.max(at + 8) as usize).min(data.len());
        let used = last_nonzero(data) as usize; // most of a segment, usually, is still zeros
        for found in (start..used).step_by(8) {
            if !data[found..].starts_with(&record::MAGIC) {
                continue;
            }
            if let Some(header) = Header::decode(&data[found..], found as u64, place) {
                later.reach = later.reach.max((found as u64 + header.record_bytes()).min(data.len() as u64));
                if header.synced > at {
                    later.proof.get_or_insert(found as u64);
                }
            }
        }
        later
    }
}

/// Nothing later proves that the log went on at `at`, where `bytes` stand. Do they themselves?
fn judge_end(
    bytes: &[u8],
    at: u64,
    chain: u32,
    segment: &SegmentHeader,
    sector: u64,
) -> std::result::Result<(), &'static str> {
    let place = segment.place();
    match Header::decode(bytes, at, &place) {
        Some(header) => match header.kind {
            Kind::Seal => Ok(()),
            Kind::End => Err("the next segment is missing"),
            Kind::Record if header.record_bytes() > bytes.len() as u64 => Err("the file ends inside a record"),
            Kind::Record => match record::check(bytes, &header, chain) {
                Found::Broken { ended: true } if !sector_may_be_missing(bytes, &header, segment.recycled, sector) => {
                    Err("a record's checksum does not match, and both its ends were written")
                }
                Found::Broken { ended: true } if record::body_is_one_bit_off(bytes, &header, chain) => {
                    Err("a record has a wrong bit, the rest was written")
                }
                _ => Ok(()),
            },
        },
        None if bytes.len() < HEADER_BYTES => Err("the file ends where the log goes on"),
        None if one_bit_off(bytes, at, chain, &place) => Err("a record's header has a wrong bit, the rest was written"),
        None => Ok(()),
    }
}

/// Whether a sector between those that hold the header and the trailer, which were written, can have been left out.
fn sector_may_be_missing(bytes: &[u8], header: &Header, recycled: bool, sector: u64) -> bool {
    let header_end = header.offset + HEADER_BYTES as u64;
    let trailer_start = header.offset + header.record_bytes() - TRAILER_BYTES as u64;
    let between = header_end.next_multiple_of(sector)..trailer_start / sector * sector;
    if recycled {
        return !between.is_empty(); // What stood there before could be anything.
    }
    let start = |at: u64| (at - header.offset) as usize;
    between.step_by(sector as usize).any(|at| bytes[start(at)..start(at + sector)].iter().all(|byte| *byte == 0))
}

/// Whether turning one bit of the header makes the whole record valid.
fn one_bit_off(bytes: &[u8], at: u64, chain: u32, place: &Place) -> bool {
    let Some(fixed) = bytes.get(..HEADER_BYTES) else { return false };
    let mut trial = [0; HEADER_BYTES];
    (0..HEADER_BYTES * 8).any(|bit| {
        trial.copy_from_slice(fixed);
        trial[bit / 8] ^= 1 << (bit % 8);
        let Some(header) = Header::decode(&trial, at, place) else { return false };
        let Some(record) = bytes.get(..header.record_bytes() as usize) else { return false };
        let record = [&trial, &record[HEADER_BYTES..]].concat();
        header.kind == Kind::Record && matches!(record::check(&record, &header, chain), Found::Whole(_))
    })
}

/// Where the zeros at the end begin.
fn last_nonzero(data: &[u8]) -> u64 {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = data.len();
    while end > 0 {
        let start = end.saturating_sub(ZEROS.len());
        if data[start..end] != ZEROS[..end - start] {
            return data[start..end].iter().rposition(|byte| *byte != 0).map_or(0, |at| start + at + 1) as u64;
        }
        end = start;
    }
    0
}
