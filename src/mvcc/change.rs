//! What one write changed, in the form that the backend, readers and watchers share.
//!
//! A key-value is encoded once, when it is written: [`Change::record`]. The event around it is encoded the first time a
//! watcher needs it, and then shared by all of them.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use super::revision::RevisionKey;
use crate::storage::backend::{Batch, Bucket};
use crate::types::Revision;

/// All changes of one revision, in the order in which they were made.
#[derive(Debug)]
pub struct ChangeSet {
    /// The revision that made them.
    pub revision: Revision,
    /// At least one; a key occurs once. `changes[i]` has sub-revision `i`.
    pub changes: Vec<Change>,
}

/// What a change costs in memory besides its record.
const CHANGE_OVERHEAD_BYTES: usize = 200;

impl ChangeSet {
    /// About how much it keeps in memory.
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(|change| change.record.len() + CHANGE_OVERHEAD_BYTES).sum()
    }

    /// Adds the rows of these changes to a batch for the backend.
    pub fn rows(&self, batch: &mut Batch) {
        for (sub, change) in (0..).zip(&self.changes) {
            let place = RevisionKey { main: self.revision.0, sub };
            batch.put(Bucket::Key, place.row(change.kind == ChangeKind::Delete), change.record.clone());
        }
    }
}

/// One key put or deleted.
#[derive(Debug)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// Put or deleted.
    pub kind: ChangeKind,
    /// The row's value: the encoded `mvccpb.KeyValue`; of a deletion one that has only the key.
    pub record: Bytes,
    /// Where the value lay that this change replaced or deleted; `None` when the key did not exist.
    pub replaced: Option<RevisionKey>,
    /// The `events` field of a `WatchResponse`, tag and length included.
    pub(crate) event: OnceLock<Bytes>,
    /// The same with the previous key-value in it; empty when that is not to be had.
    pub(crate) event_with_prev: OnceLock<Bytes>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It got a value.
    Put,
    /// It was deleted, by a request or with its lease.
    Delete,
}

/// Field 11 of `WatchResponse`, length-delimited.
const EVENTS_TAG: u8 = 11 << 3 | 2;
/// Field 1 of `Event`, varint; the value of DELETE follows.
const TYPE_DELETE: [u8; 2] = [1 << 3, 1];
/// Field 2 of `Event`, length-delimited.
const KV_TAG: u8 = 2 << 3 | 2;
/// Field 3 of `Event`, length-delimited.
const PREV_KV_TAG: u8 = 3 << 3 | 2;
/// Field 3 of `KeyValue`, varint.
const MOD_REVISION_TAG: u8 = 3 << 3;

impl Change {
    /// A change as apply makes it or as history gives it back.
    pub fn new(key: Bytes, kind: ChangeKind, record: Bytes, replaced: Option<RevisionKey>) -> Change {
        Change { key, kind, record, replaced, event: OnceLock::new(), event_with_prev: OnceLock::new() }
    }

    /// A change as history gives it back, for a watcher: its record is made together with its event, if that contains it whole. `key`
    /// is part of the record.
    pub(super) fn from_row(kind: ChangeKind, record: &[u8], key: &[u8], revision: Revision) -> Change {
        if kind == ChangeKind::Delete {
            let record = Bytes::copy_from_slice(record);
            return Change::new(Bytes::copy_from_slice(key), kind, record, None);
        }
        let event = encode(kind, record, revision, None);
        let copy = event.slice(event.len() - record.len()..);
        let at = key.as_ptr() as usize - record.as_ptr() as usize;
        let key = copy.slice(at..at + key.len());
        Change { event: OnceLock::from(event), ..Change::new(key, kind, copy, None) }
    }

    /// The encoded event for watchers that did not ask for previous values. `revision` is that of the change set.
    pub fn event(&self, revision: Revision) -> &Bytes {
        self.event.get_or_init(|| encode(self.kind, &self.record, revision, None))
    }

    /// The encoded event with the previous key-value, which `previous` supplies, encoded, the first time it is needed.
    /// Without one (a creation, or history compacted away) this is the plain event.
    pub fn event_with_prev(&self, revision: Revision, previous: impl FnOnce() -> Option<Bytes>) -> &Bytes {
        self.event_with_prev.get_or_init(|| match self.replaced.and_then(|_| previous()) {
            Some(prev) => encode(self.kind, &self.record, revision, Some(&prev)),
            None => self.event(revision).clone(),
        })
    }
}

/// The event of a change. A put's ends with the record, unless the previous key-value follows.
fn encode(kind: ChangeKind, record: &[u8], revision: Revision, prev: Option<&Bytes>) -> Bytes {
    let delete = kind == ChangeKind::Delete;
    // A tombstone's record has the key alone; the event's also says when.
    let mod_revision = if delete { 1 + encoded_len_varint(revision.0 as u64) } else { 0 };
    let kv_len = record.len() + mod_revision;
    let field = |len: usize| 1 + encoded_len_varint(len as u64) + len;
    let body = if delete { TYPE_DELETE.len() } else { 0 } + field(kv_len) + prev.map_or(0, |prev| field(prev.len()));

    let mut out = BytesMut::with_capacity(field(body));
    out.put_u8(EVENTS_TAG);
    encode_varint(body as u64, &mut out);
    if delete {
        out.put_slice(&TYPE_DELETE);
    }
    out.put_u8(KV_TAG);
    encode_varint(kv_len as u64, &mut out);
    out.put_slice(record);
    if delete {
        out.put_u8(MOD_REVISION_TAG);
        encode_varint(revision.0 as u64, &mut out);
    }
    if let Some(prev) = prev {
        out.put_u8(PREV_KV_TAG);
        encode_varint(prev.len() as u64, &mut out);
        out.put_slice(prev);
    }
    out.freeze()
}

/// A change set shared by the overlay, the backend's queue and the watchers.
pub type SharedChanges = Arc<ChangeSet>;

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::WatchResponse;
    use crate::pb::mvccpb::{Event, KeyValue, event::EventType};

    fn decode(event: &Bytes) -> Event {
        WatchResponse::decode(event.clone()).unwrap().events.remove(0)
    }

    #[test]
    fn hand_encoded_events_decode_as_the_message() {
        let old = KeyValue {
            key: "k".into(),
            value: "old".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 7,
        };
        let new = KeyValue { mod_revision: 300, version: 2, value: vec![9; 500].into(), ..old.clone() };
        let replaced = Some(RevisionKey { main: 2, sub: 0 });

        let put = Change::new("k".into(), ChangeKind::Put, new.encode_to_vec().into(), replaced);
        let plain = Event { r#type: EventType::Put as i32, kv: Some(new), prev_kv: None };
        assert_eq!(decode(put.event(Revision(300))), plain);
        let prev = Bytes::from(old.encode_to_vec());
        let with_prev = Event { prev_kv: Some(old.clone()), ..plain };
        assert_eq!(decode(put.event_with_prev(Revision(300), || Some(prev.clone()))), with_prev);

        let tombstone = KeyValue { key: "k".into(), ..Default::default() }.encode_to_vec();
        let delete = Change::new("k".into(), ChangeKind::Delete, tombstone.into(), replaced);
        let kv = KeyValue { key: "k".into(), mod_revision: 301, ..Default::default() };
        let plain = Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None };
        assert_eq!(decode(delete.event(Revision(301))), plain);
        assert_eq!(decode(delete.event_with_prev(Revision(301), || None)), plain);
    }
}
