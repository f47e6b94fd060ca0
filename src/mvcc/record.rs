//! The encoded `mvccpb.KeyValue`: written once, then read in place, without decoding, wherever one field is wanted.
//!
//! The reader accepts exactly what the writer makes (fields of `KeyValue`, no others), so whatever it accepts is a
//! valid message, and a record that it refuses was damaged on disk.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{decode_varint, encoded_len_varint};

use super::revision::RevisionKey;
use crate::pb::mvccpb::KeyValue;
use crate::storage;

/// What a record says, borrowed from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Fields<'a> {
    pub(super) key: &'a [u8],
    pub(super) create_revision: i64,
    pub(super) mod_revision: i64,
    pub(super) version: i64,
    pub(super) value: &'a [u8],
    pub(super) lease: i64,
}

/// The record of a put.
pub(super) fn encode(kv: &KeyValue) -> Bytes {
    kv.encode_to_vec().into()
}

/// How long the record of a put gets that lacks only its create revision and its version, once it has them. (Neither is ever 0.)
pub(super) fn bytes_with(kv: &KeyValue) -> impl Fn(i64, i64) -> usize + use<> {
    let bytes = kv.encoded_len();
    move |create, version| bytes + 2 + encoded_len_varint(create as u64) + encoded_len_varint(version as u64)
}

/// The record of a deletion: the key and nothing else.
pub(super) fn encode_tombstone(key: &[u8]) -> Bytes {
    encode(&KeyValue { key: Bytes::copy_from_slice(key), ..Default::default() })
}

/// Reads a record in place. `None`: damaged.
pub(super) fn read(mut record: &[u8]) -> Option<Fields<'_>> {
    let mut fields = Fields::default();
    while let Some((&tag, rest)) = record.split_first() {
        record = rest;
        let number = decode_varint(&mut record).ok()?;
        match tag {
            0x0a => fields.key = take(&mut record, number)?,
            0x10 => fields.create_revision = number as i64,
            0x18 => fields.mod_revision = number as i64,
            0x20 => fields.version = number as i64,
            0x2a => fields.value = take(&mut record, number)?,
            0x30 => fields.lease = number as i64,
            _ => return None,
        }
    }
    Some(fields)
}

/// Reads a record that lies at `place`.
pub(super) fn read_at(record: &[u8], place: RevisionKey) -> storage::Result<Fields<'_>> {
    read(record).ok_or_else(|| damaged(place, "cannot be read"))
}

/// The record as the message of the API. Key and value stay slices of the record.
pub(super) fn key_value(record: &Bytes, place: RevisionKey) -> storage::Result<KeyValue> {
    let fields = read_at(record, place)?;
    Ok(KeyValue {
        key: record.slice_ref(fields.key),
        create_revision: fields.create_revision,
        mod_revision: fields.mod_revision,
        version: fields.version,
        value: record.slice_ref(fields.value),
        lease: fields.lease,
    })
}

/// The error for a row that is not what was written.
pub(super) fn damaged(place: RevisionKey, what: &str) -> storage::Error {
    storage::Error::Engine(format!("the row of revision {}, change {} {what}", place.main, place.sub))
}

fn take<'a>(record: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (taken, rest) = record.split_at_checked(usize::try_from(len).ok()?)?;
    *record = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_refuses_the_rest() {
        let place = RevisionKey { main: 9, sub: 0 };
        let kv = KeyValue {
            key: "k".into(),
            create_revision: 5,
            mod_revision: i64::MAX,
            version: 300,
            value: vec![0x2a; 400].into(),
            lease: -7,
        };
        let record = encode(&kv);
        assert_eq!(key_value(&record, place).unwrap(), kv);
        assert_eq!(read(&encode_tombstone(b"k")), Some(Fields { key: b"k", ..Fields::default() }));
        for len in [1, 2, 4, record.len() - 1] {
            assert!(read(&record[..len]).is_none(), "{len}");
        }
        assert_eq!(read(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), None);
        assert_eq!(read(b"\x3a\x00"), None);
    }
}
