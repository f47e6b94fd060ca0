//! One segment file: its header, its names, how it comes into being. The drawing is in [`super`].
//!
//! Promise: a file has a segment's name only after its header and head record are durable. So damage there is never the
//! trace of a crash.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use super::record::{Encoder, Head, Place, u32_at, u64_at};
use crate::storage::disk::{Disk, DiskFile};
use crate::storage::{Error, Result};
use crate::types::{ClusterId, Index, MemberId};

/// Bytes before a segment's first record.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
const MAGIC: [u8; 8] = *b"EWSEGv1\n";
const RECYCLED: u32 = 1;

/// A file under construction; of no value after a crash.
pub(super) const UNFINISHED: &str = "unfinished.tmp";
/// A file being filled with zeros; of no value after a crash either.
pub(super) const ZEROING: &str = "zeroed.tmp";
/// A file of zeros, ready to become a segment.
pub(super) const ZEROED: &str = "zeroed.free";

/// The file name of a segment.
pub(super) fn name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

/// The name it gets when it is no longer needed and waits to be used again.
pub(super) fn free_name(sequence: u64) -> String {
    format!("{sequence:016x}.free")
}

/// The segment number in a file name; `None` for other files.
pub(super) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// The fixed part of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) sequence: u64,
    pub(super) cluster: ClusterId,
    pub(super) member: MemberId,
    /// Whether bytes of an earlier use may stand where no record has been written yet; zeros otherwise.
    pub(super) recycled: bool,
    /// Where the log ended in the previous segment.
    pub(super) previous_end: u64,
    /// The chain there.
    pub(super) chain: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut out = [0; SEGMENT_HEADER_BYTES as usize];
        out[0..8].copy_from_slice(&MAGIC);
        out[12..16].copy_from_slice(&if self.recycled { RECYCLED } else { 0 }.to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.cluster.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.member.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.previous_end.to_le_bytes());
        out[48..52].copy_from_slice(&self.chain.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header of a segment's bytes; in words why there is none.
    pub(super) fn decode(segment: &[u8]) -> std::result::Result<SegmentHeader, &'static str> {
        let bytes = segment.get(..SEGMENT_HEADER_BYTES as usize).ok_or("shorter than a segment header")?;
        if bytes[0..8] != MAGIC {
            return Err("not a log segment of a known version");
        }
        if u32_at(bytes, 8) != crc32c::crc32c(&bytes[12..]) {
            return Err("the segment header's checksum does not match");
        }
        Ok(SegmentHeader {
            sequence: u64_at(bytes, 16),
            cluster: ClusterId(u64_at(bytes, 24)),
            member: MemberId(u64_at(bytes, 32)),
            recycled: u32_at(bytes, 12) & RECYCLED != 0,
            previous_end: u64_at(bytes, 40),
            chain: u32_at(bytes, 48),
        })
    }

    /// What makes this segment's records valid here only.
    pub(super) fn place(&self) -> Place {
        // The checksum of what does not hold the checksum: it depends on every field.
        Place { salt: crc32c::crc32c(&self.encode()[12..]), sequence: self.sequence }
    }
}

/// A segment that is no longer written to.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) sequence: u64,
    /// Its length on disk.
    pub(super) len: u64,
    /// The highest index of an entry in it. When that is no longer needed, nothing in it is.
    pub(super) newest: Index,
}

/// The segment that the log ends in.
pub(super) struct Tail {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) place: Place,
    pub(super) len: u64,
    pub(super) newest: Index,
    /// Where the next record goes.
    pub(super) position: u64,
    /// Everything before this is durable.
    pub(super) synced: u64,
    /// The chain at `position`.
    pub(super) chain: u32,
}

/// Makes the segment that `header` and `head` describe, of at least `bytes`, out of a spare file if one is named.
/// Durable under its own name on return.
pub(super) fn create(
    disk: &dyn Disk,
    dir: &Path,
    mut header: SegmentHeader,
    head: &Head,
    bytes: u64,
    spare: Option<&str>,
) -> Result<Tail> {
    header.recycled = spare.is_some_and(|name| name != ZEROED);
    let made = dir.join(spare.unwrap_or(UNFINISHED));
    let file = match spare {
        Some(_) => disk.reuse(&made),
        None => disk.create(&made),
    };
    let file = file.map_err(|e| io("creating", &made, e))?;
    file.preallocate(bytes).map_err(|e| io("preallocating", &made, e))?;
    let len = file.len().map_err(|e| io("measuring", &made, e))?;

    let place = header.place();
    let mut record = Encoder::head(head);
    let position = SEGMENT_HEADER_BYTES + record.record_bytes();
    let chain = record.finish(&place, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES, header.chain);
    let header_bytes = header.encode();
    let mut pieces = vec![IoSlice::new(&header_bytes)];
    pieces.extend(record.slices());
    file.write_at(0, &pieces).map_err(|e| io("writing", &made, e))?;
    file.sync().map_err(|e| io("syncing", &made, e))?;

    let path = dir.join(name(header.sequence));
    disk.rename(&made, &path).map_err(|e| io("renaming", &made, e))?;
    disk.sync_dir(dir).map_err(|e| io("syncing", dir, e))?;
    Ok(Tail { file, path, place, len, newest: Index(0), position, synced: position, chain })
}

/// The error of a refused call.
pub(super) fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::of_call(doing, path, source)
}
