//! One record of the log, to bytes and back. Pure; the drawing is in [`super`].
//!
//! Nothing here trusts a length: decoding works on slices that exist, and every count is checked against them first.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

use super::{Append, Base, HardState, LogEntry};
use crate::types::{Index, MemberId, Term};

/// Bytes before a record's body.
pub(super) const HEADER_BYTES: usize = 48;
/// Bytes after it.
pub(super) const TRAILER_BYTES: usize = 8;
/// The first bytes of every header.
pub(super) const MAGIC: [u8; 4] = *b"EwR1";
const TRAILER_MAGIC: [u8; 4] = *b"EwT1";
/// Bytes of the longest record that starts a segment.
pub(super) const HEAD_BYTES_MAX: u64 = (HEADER_BYTES + 8 + 16 + 8 + 24 + TRAILER_BYTES) as u64;
const ENTRY_BYTES: usize = 32;
/// Data longer than this is written from where it is; shorter is cheaper to copy than to describe to the kernel.
const BORROW_MIN: usize = 2048;

const RESET: u8 = 1;
const ADVANCE: u8 = 2;
const HARD_STATE: u8 = 4;
const HEAD: u8 = 8;

/// What a header introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A record with body and trailer.
    Record = 1,
    /// Nothing: the log ended here when everything before had been synced. The next record takes its place.
    Seal = 2,
    /// Nothing: the log goes on in the next segment, which was durable when this was written.
    End = 3,
}

/// The segment that records stand in, as far as their validity depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Checksum of the segment's header: different for every use of a file.
    pub(super) salt: u32,
    /// The segment's number.
    pub(super) sequence: u64,
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) offset: u64,
    /// Everything before this offset of the segment was durable when the record was written.
    pub(super) synced: u64,
    /// Bytes of the body, without padding.
    pub(super) body_len: u32,
    /// The chain after this record.
    pub(super) chain: u32,
}

impl Header {
    /// The record's extent; only the header itself when it has no body.
    pub(super) fn record_bytes(&self) -> u64 {
        match self.kind {
            Kind::Record => record_bytes(self.body_len as usize),
            Kind::Seal | Kind::End => HEADER_BYTES as u64,
        }
    }

    /// Its bytes.
    pub(super) fn encode(&self, place: &Place) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&place.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced.to_le_bytes());
        out[32..36].copy_from_slice(&self.body_len.to_le_bytes());
        out[36..40].copy_from_slice(&self.chain.to_le_bytes());
        out[40] = self.kind as u8;
        let crc = crc32c::crc32c_append(place.salt, &out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, which stand at `offset` of the segment; `None` unless it is valid there.
    pub(super) fn decode(bytes: &[u8], offset: u64, place: &Place) -> Option<Header> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if bytes[0..4] != MAGIC
            || u32_at(bytes, 4) != crc32c::crc32c_append(place.salt, &bytes[8..])
            || u64_at(bytes, 8) != place.sequence
            || u64_at(bytes, 16) != offset
        {
            return None;
        }
        let kind = match bytes[40] {
            1 => Kind::Record,
            2 => Kind::Seal,
            3 => Kind::End,
            _ => return None,
        };
        let header =
            Header { kind, offset, synced: u64_at(bytes, 24), body_len: u32_at(bytes, 32), chain: u32_at(bytes, 36) };
        (header.synced <= offset).then_some(header)
    }

    /// The chain after this record: over the chain before it, the header, and the body with its padding.
    fn chained<'b>(bytes: &[u8], before: u32, body: impl Iterator<Item = &'b [u8]>) -> u32 {
        let mut chain = crc32c::crc32c_append(before, &bytes[8..36]);
        chain = crc32c::crc32c_append(chain, &bytes[40..HEADER_BYTES]);
        body.fold(chain, crc32c::crc32c_append)
    }
}

/// Bytes a record with such a body occupies.
pub(super) fn record_bytes(body_len: usize) -> u64 {
    (HEADER_BYTES + padded(body_len) + TRAILER_BYTES) as u64
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// What the bytes after a valid header of kind [`Kind::Record`] turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// The body, as it was written.
    Whole(&'a [u8]),
    /// The body as it was written, but not the trailer. Nothing is lost.
    WithoutTrailer(&'a [u8]),
    /// Not the body that was written. `ended`: the trailer is there, so the end of the record did reach the disk.
    Broken { ended: bool },
}

/// Compares what follows a header with its checksums. `bytes` start with the header.
pub(super) fn check<'a>(bytes: &'a [u8], header: &Header, chain_before: u32) -> Found<'a> {
    let (fixed, after) = bytes.split_at(HEADER_BYTES);
    let body_len = header.body_len as usize;
    let Some(body) = after.get(..padded(body_len)) else { return Found::Broken { ended: false } };
    let ended = after.get(body.len()..body.len() + TRAILER_BYTES) == Some(&trailer(header.chain)[..]);
    let intact = Header::chained(fixed, chain_before, std::iter::once(body)) == header.chain;
    match (intact, ended) {
        (true, true) => Found::Whole(&body[..body_len]),
        (true, false) => Found::WithoutTrailer(&body[..body_len]),
        (false, ended) => Found::Broken { ended },
    }
}

/// Whether turning one bit of the body makes the checksum right.
///
/// A wrong bit changes a CRC by a value that depends on nothing but its distance from the end, and each step away from the
/// end is one shift of the CRC's register: so all bits are tried in one pass that does not look at the body again.
pub(super) fn body_is_one_bit_off(bytes: &[u8], header: &Header, chain_before: u32) -> bool {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let (fixed, after) = bytes.split_at(HEADER_BYTES);
    let Some(body) = after.get(..padded(header.body_len as usize)) else { return false };
    let difference = Header::chained(fixed, chain_before, std::iter::once(body)) ^ header.chain;
    let mut wrong_bit = POLYNOMIAL;
    (0..body.len() * 8).any(|_| {
        let found = wrong_bit == difference;
        wrong_bit = wrong_bit >> 1 ^ if wrong_bit & 1 == 1 { POLYNOMIAL } else { 0 };
        found
    })
}

/// The last bytes of a record.
pub(super) fn trailer(chain: u32) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..4].copy_from_slice(&TRAILER_MAGIC);
    out[4..].copy_from_slice(&chain.to_le_bytes());
    out
}

/// What stands at the start of every segment: the whole state of the log except its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) base: Base,
    pub(super) last: Index,
    pub(super) hard_state: Option<HardState>,
}

/// A record's content.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) reset: Option<Base>,
    pub(super) advance: Option<Base>,
    /// With `advance`, at the start of a segment: the index of the last entry before it.
    pub(super) head: Option<Index>,
    pub(super) hard_state: Option<HardState>,
    pub(super) entries: Vec<LogEntry>,
}

/// A record on its way to disk: small parts gathered in a buffer, large data where the caller has it.
pub(super) struct Encoder<'a> {
    buffer: Vec<u8>,
    pieces: Vec<Piece<'a>>,
    /// Start of the part of the buffer that no piece covers yet.
    open: usize,
    body_len: usize,
}

enum Piece<'a> {
    Buffered(Range<usize>),
    Borrowed(&'a [u8]),
}

impl<'a> Encoder<'a> {
    fn new(mut buffer: Vec<u8>) -> Encoder<'a> {
        buffer.clear();
        buffer.resize(HEADER_BYTES, 0);
        Encoder { buffer, pieces: Vec::new(), open: 0, body_len: 0 }
    }

    /// The record of an append. `buffer` lends its memory.
    pub(super) fn append(append: &Append<'a>, buffer: Vec<u8>) -> Encoder<'a> {
        let mut record = Encoder::new(buffer);
        let flags = append.reset.map_or(0, |_| RESET) | append.hard_state.map_or(0, |_| HARD_STATE);
        record.prefix(flags, append.entries.len());
        record.base(append.reset);
        record.hard_state(append.hard_state);
        for entry in append.entries {
            record.u64(entry.index.0);
            record.u64(entry.term.0);
            record.u32(len_u32(&entry.data));
            record.u32(len_u32(&entry.context));
            record.u64(u64::from(entry.kind));
            record.bytes(&entry.data);
            record.bytes(&entry.context);
        }
        record
    }

    /// The record that says which entries are no longer needed.
    pub(super) fn advance(base: Base, buffer: Vec<u8>) -> Encoder<'a> {
        let mut record = Encoder::new(buffer);
        record.prefix(ADVANCE, 0);
        record.base(Some(base));
        record
    }

    /// The record at the start of a segment.
    pub(super) fn head(head: &Head) -> Encoder<'a> {
        let mut record = Encoder::new(Vec::new());
        record.prefix(ADVANCE | HEAD | head.hard_state.map_or(0, |_| HARD_STATE), 0);
        record.base(Some(head.base));
        record.u64(head.last.0);
        record.hard_state(head.hard_state.as_ref());
        record
    }

    /// Bytes the record will occupy.
    pub(super) fn record_bytes(&self) -> u64 {
        record_bytes(self.body_len)
    }

    /// Closes the record for its place in the log; returns the chain after it.
    pub(super) fn finish(&mut self, place: &Place, offset: u64, synced: u64, chain_before: u32) -> u32 {
        self.buffer.resize(self.buffer.len() + padded(self.body_len) - self.body_len, 0);
        let body_len = u32::try_from(self.body_len).expect("an append is bounded far below 4 GiB by its caller");
        let mut header = Header { kind: Kind::Record, offset, synced, body_len, chain: 0 };
        self.pieces.push(Piece::Buffered(self.open..self.buffer.len()));
        let bytes = header.encode(place);
        let body = self.pieces.iter().enumerate().map(|(i, piece)| match piece {
            Piece::Buffered(range) if i == 0 => &self.buffer[HEADER_BYTES..range.end],
            Piece::Buffered(range) => &self.buffer[range.clone()],
            Piece::Borrowed(data) => data,
        });
        header.chain = Header::chained(&bytes, chain_before, body);
        self.buffer[..HEADER_BYTES].copy_from_slice(&header.encode(place));
        self.buffer.extend_from_slice(&trailer(header.chain));
        if let Some(Piece::Buffered(range)) = self.pieces.last_mut() {
            range.end = self.buffer.len();
        }
        header.chain
    }

    /// What to write, in order. Only after [`Encoder::finish`].
    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            slices.push(IoSlice::new(match piece {
                Piece::Buffered(range) => &self.buffer[range.clone()],
                Piece::Borrowed(data) => data,
            }));
        }
        slices
    }

    /// Gives the buffer back for the next record.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    fn prefix(&mut self, flags: u8, entries: usize) {
        self.u32(u32::try_from(entries).expect("fewer entries than bytes in an append"));
        self.u32(u32::from(flags));
    }

    fn base(&mut self, base: Option<Base>) {
        if let Some(base) = base {
            self.u64(base.index.0);
            self.u64(base.term.0);
        }
    }

    fn hard_state(&mut self, hard_state: Option<&HardState>) {
        if let Some(hard_state) = hard_state {
            self.u64(hard_state.term.0);
            self.u64(hard_state.vote.0);
            self.u64(hard_state.commit.0);
        }
    }

    fn u32(&mut self, n: u32) {
        self.copy(&n.to_le_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.copy(&n.to_le_bytes());
    }

    fn copy(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.body_len += bytes.len();
    }

    fn bytes(&mut self, bytes: &'a [u8]) {
        if bytes.len() < BORROW_MIN {
            return self.copy(bytes);
        }
        self.pieces.push(Piece::Buffered(self.open..self.buffer.len()));
        self.pieces.push(Piece::Borrowed(bytes));
        self.open = self.buffer.len();
        self.body_len += bytes.len();
    }
}

impl Body {
    /// The content of a body whose checksum was right; `None` when it still makes no sense.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Body> {
        let from = &mut bytes;
        let count = take_u32(from)? as usize;
        let flags = u8::try_from(take_u32(from)?).ok()?;
        if flags & !(RESET | ADVANCE | HARD_STATE | HEAD) != 0 || count > from.len() / ENTRY_BYTES {
            return None;
        }
        let mut body = Body::default();
        if flags & RESET != 0 {
            body.reset = Some(take_base(from)?);
        }
        if flags & ADVANCE != 0 {
            body.advance = Some(take_base(from)?);
        }
        if flags & HEAD != 0 {
            body.head = Some(Index(take_u64(from)?));
        }
        if flags & HARD_STATE != 0 {
            let (term, vote) = (Term(take_u64(from)?), MemberId(take_u64(from)?));
            body.hard_state = Some(HardState { term, vote, commit: Index(take_u64(from)?) });
        }
        body.entries.reserve_exact(count);
        for _ in 0..count {
            let (index, term) = (Index(take_u64(from)?), Term(take_u64(from)?));
            let (data_len, context_len) = (take_u32(from)? as usize, take_u32(from)? as usize);
            let kind = u8::try_from(take_u64(from)?).ok()?;
            let data = Bytes::copy_from_slice(take(from, data_len)?);
            let context = Bytes::copy_from_slice(take(from, context_len)?);
            body.entries.push(LogEntry { kind, term, index, data, context });
        }
        from.is_empty().then_some(body)
    }
}

fn take<'b>(from: &mut &'b [u8], len: usize) -> Option<&'b [u8]> {
    let (taken, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(taken)
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    take(from, 4).map(|bytes| u32_at(bytes, 0))
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    take(from, 8).map(|bytes| u64_at(bytes, 0))
}

fn take_base(from: &mut &[u8]) -> Option<Base> {
    Some(Base { index: Index(take_u64(from)?), term: Term(take_u64(from)?) })
}

fn len_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("an append is bounded far below 4 GiB by its caller")
}

/// The little-endian number at `at`, which the caller knows to be inside.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The little-endian number at `at`, which the caller knows to be inside.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { salt: 7, sequence: 3 };

    fn entry(index: u64, len: usize) -> LogEntry {
        let data = (0..len).map(|i| (i * 7 + index as usize) as u8).collect();
        LogEntry { kind: 1, term: Term(2), index: Index(index), data, context: Bytes::from_static(b"ctx") }
    }

    fn written(append: &Append<'_>, offset: usize) -> Vec<u8> {
        let mut record = Encoder::append(append, Vec::new());
        let len = record.record_bytes();
        record.finish(&PLACE, offset as u64, 0, 99);
        let mut out = vec![0; offset];
        record.slices().iter().for_each(|piece| out.extend_from_slice(piece));
        assert_eq!(out.len() as u64, offset as u64 + len);
        out
    }

    #[test]
    fn small_and_large_entries_come_back_as_they_were() {
        let entries = [entry(5, 0), entry(6, BORROW_MIN), entry(7, 3), entry(8, 3 * BORROW_MIN + 1)];
        let hard_state = HardState { term: Term(2), vote: MemberId(9), commit: Index(5) };
        let reset = Some(Base { index: Index(4), term: Term(1) });
        let segment = written(&Append { reset, entries: &entries, hard_state: Some(&hard_state) }, 64);
        let header = Header::decode(&segment[64..], 64, &PLACE).unwrap();
        let Found::Whole(bytes) = check(&segment[64..], &header, 99) else { panic!("the record is whole") };
        let body = Body::decode(bytes).unwrap();
        assert_eq!(body.entries, entries);
        assert_eq!((body.reset, body.hard_state), (reset, Some(hard_state)));
        assert_eq!(check(&segment[64..], &header, 98), Found::Broken { ended: true });
        assert!(!body_is_one_bit_off(&segment[64..], &header, 98));
        let body = 64 + HEADER_BYTES..segment.len() - TRAILER_BYTES;
        let mut hurt = segment.clone();
        for at in body.clone().step_by(37).chain([body.end - 1]) {
            hurt[at] ^= 1 << (at % 8);
            assert!(body_is_one_bit_off(&hurt[64..], &header, 99), "byte {at}");
            hurt[at - 1] ^= 1;
            assert!(!body_is_one_bit_off(&hurt[64..], &header, 99) || at == body.start, "byte {at} and the one before");
            (hurt[at], hurt[at - 1]) = (segment[at], segment[at - 1]);
        }
        for elsewhere in [Place { salt: 8, ..PLACE }, Place { sequence: 4, ..PLACE }] {
            assert_eq!(Header::decode(&segment[64..], 64, &elsewhere), None);
        }
    }

    /// CVE-2020-15106: a length that is a lie.
    #[test]
    fn hostile_bodies_are_refused_without_allocating_what_they_claim() {
        let mut huge = Vec::new();
        huge.extend_from_slice(&u32::MAX.to_le_bytes());
        huge.extend_from_slice(&[0; 200]);
        assert_eq!(Body::decode(&huge), None);
        let segment = written(&Append { reset: None, entries: &[entry(1, 20)], hard_state: None }, 0);
        let header = Header::decode(&segment, 0, &PLACE).unwrap();
        let Found::Whole(bytes) = check(&segment, &header, 99) else { panic!("the record is whole") };
        for len in 0..bytes.len() {
            assert_eq!(Body::decode(&bytes[..len]), None, "cut to {len} bytes");
        }
        for at in 0..bytes.len() {
            let mut wrong = bytes.to_vec();
            wrong[at] = 0xff;
            Body::decode(&wrong); // whatever it makes of it, it does not panic
        }
        let lying = Header { body_len: u32::MAX, ..header };
        assert_eq!(check(&segment, &lying, 99), Found::Broken { ended: false });
    }
}
