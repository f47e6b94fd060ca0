//! The log of a stopped etcd, as far as one question goes: does it hold changes that the member's file does not have yet?
//!
//! ```text
//! file     <sequence>-<first index>.wal: frames, then zeros
//! frame    record bytes 7, padding 1 (with the high bit set: its low three bits) · walpb.Record · padding      little endian
//! record   type (2: raftpb.Entry, 4: the checksum goes on from here), CRC-32C of the data of all records so far, data
//! ```
//!
//! A member that was stopped has committed to its file what it had applied. One that was killed has up to a tenth of a second of it in the
//! log only, and one that fell behind may have entries that it never applied. What is not decided yet counts as a change, too: only
//! the cluster could tell.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use super::Error;

/// `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: bytes::Bytes,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: bytes::Bytes,
}

const ENTRY: i64 = 2;
const CHECKSUM: i64 = 4;
/// Kind of an entry that is no change of members. Who the members are is not taken over.
const NORMAL: i32 = 0;

/// Fields of `InternalRaftRequest` with which nothing changes that is taken over: id, v2 (members' names), range, header, authenticate,
/// versions and names, the test of a downgrade.
const IDLE: [u32; 9] = [1, 2, 3, 100, 1012, 1300, 1301, 1302, 9900];

/// The indexes of entries above `index` in the log in `dir` that may change something.
pub fn changes_after(dir: &Path, index: u64) -> Result<Vec<u64>, Error> {
    let mut names: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    names.retain(|entry| entry.file_name().as_encoded_bytes().ends_with(b".wal"));
    names.sort_by_key(|entry| entry.file_name());
    let mut log = Log { above: index, entries: BTreeMap::new(), crc: 0 };
    let last = names.len().saturating_sub(1);
    for (n, entry) in names.iter().enumerate() {
        let rest = log.read(&std::fs::read(entry.path())?);
        // The last record may have been written half.
        if rest.is_err() && n < last {
            return Err(Error::Refused(format!("the log file {} is damaged", entry.path().display())));
        }
    }
    Ok(log.entries.into_iter().filter(|(_, changes)| *changes).map(|(index, _)| index).collect())
}

/// What was read so far.
struct Log {
    above: u64,
    /// Index → whether it may change something.
    entries: BTreeMap<u64, bool>,
    crc: u32,
}

/// A record that is not whole.
struct Torn;

impl Log {
    fn read(&mut self, mut file: &[u8]) -> Result<(), Torn> {
        while let Some((head, rest)) = file.split_first_chunk::<8>() {
            let head = u64::from_le_bytes(*head);
            if head == 0 {
                return Ok(());
            }
            let bytes = usize::try_from(head & (u64::MAX >> 8)).map_err(|_| Torn)?;
            let padding = if head >> 63 == 1 { (head >> 56) as usize & 7 } else { 0 };
            let (record, rest) = rest.split_at_checked(bytes).ok_or(Torn)?;
            file = rest.get(padding..).ok_or(Torn)?;
            self.record(Record::decode(record).map_err(|_| Torn)?)?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), Torn> {
        if record.kind == CHECKSUM {
            if self.crc != 0 && self.crc != record.crc {
                return Err(Torn);
            }
            self.crc = record.crc;
            return Ok(());
        }
        let crc = crc32c::crc32c_append(self.crc, &record.data);
        if crc != record.crc {
            return Err(Torn);
        }
        self.crc = crc;
        if record.kind == ENTRY {
            let entry = Entry::decode(record.data).map_err(|_| Torn)?;
            // It takes the place of one that was not decided, and of all after that.
            self.entries.split_off(&entry.index);
            if entry.index > self.above {
                self.entries.insert(entry.index, entry.kind == NORMAL && changes(&entry.data));
            }
        }
        Ok(())
    }
}

/// Whether a request may change something that is taken over. What cannot be read may.
fn changes(mut request: &[u8]) -> bool {
    let (mut any, mut v2) = (false, false);
    while !request.is_empty() {
        let Ok((field, wire)) = decode_key(&mut request) else { return true };
        // Requests of the old API are not wrapped in anything; there, too, field 2 says so.
        v2 |= field == 2;
        any |= !IDLE.contains(&field);
        if matches!(wire, WireType::StartGroup | WireType::EndGroup)
            || skip_field(wire, field, &mut request, DecodeContext::default()).is_err()
        {
            return true;
        }
    }
    any && !v2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log file, as etcd writes it.
    fn file(crc: &mut u32, entries: &[(u64, i32, &[u8])]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut frame = |record: Record| {
            let record = record.encode_to_vec();
            let padding = (8 - record.len() % 8) % 8;
            let mark = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
            file.extend((record.len() as u64 | mark).to_le_bytes());
            file.extend(&record);
            file.extend(vec![0; padding]);
        };
        frame(Record { kind: CHECKSUM, crc: *crc, data: Default::default() });
        for &(index, kind, data) in entries {
            let data = Entry { kind, index, data: data.to_vec().into() }.encode_to_vec();
            *crc = crc32c::crc32c_append(*crc, &data);
            frame(Record { kind: ENTRY, crc: *crc, data: data.into() });
        }
        file.resize(file.len() + 512, 0);
        file
    }

    fn after(files: &[Vec<u8>], index: u64) -> Result<Vec<u64>, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (n, file) in files.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{n:016x}-{n:016x}.wal")), file).unwrap();
        }
        std::fs::write(dir.path().join("0.tmp"), b"preallocated").unwrap();
        changes_after(dir.path(), index)
    }

    // Requests with an id and: a put, a cluster version, nothing else.
    const PUT: &[u8] = b"\x08\x01\x22\x03\x0a\x01k";
    const VERSION: &[u8] = b"\x08\x01\xa2\x51\x07\x0a\x053.5.0";

    #[test]
    fn only_what_changes_something_counts_and_what_was_overwritten_does_not() {
        let mut crc = 0;
        let first = file(&mut crc, &[(1, 1, b"members"), (2, 0, PUT), (3, 0, b""), (4, 0, VERSION), (5, 0, PUT)]);
        let second = file(&mut crc, &[(6, 0, PUT), (7, 0, PUT), (6, 0, VERSION), (7, 0, PUT), (8, 0, b"\x12\x03PUT")]);
        let files = [first.clone(), second.clone()];
        assert_eq!(after(&files, 0).unwrap(), [2, 5, 7]);
        assert_eq!(after(&files, 5).unwrap(), [7]);
        assert_eq!(after(&files, 7).unwrap(), [0u64; 0]);
        // Cut in the middle of its last entry: it was never acknowledged. In an earlier file nothing may be missing.
        let torn = |file: &[u8]| file[..file.len() - 512 - 4].to_vec();
        assert_eq!(after(&[first.clone(), torn(&second)], 5).unwrap(), [7]);
        assert!(after(&[torn(&first), second.clone()], 5).is_err());
        let mut changed = first;
        changed[40] ^= 1;
        assert!(after(&[changed, second], 5).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = file(&mut 0, &[(1, 0, PUT), (2, 0, VERSION)]);
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0xff, whole[at] ^ 1] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = after(&[bytes], 0);
            }
        }
        assert!(changes(b"\xff\xff") && changes(b"\x0b"));
    }
}
