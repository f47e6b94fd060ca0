//! The store: the key index, the newest changes, and the backend behind them. It makes writes and answers for single
//! records; reading ranges is in `range`, transactions in `txn`, forgetting in `compaction`, catching up in `history`.
//!
//! Promises:
//!   * the revision goes up by one for every write that changed something, and for nothing else;
//!   * a write that is refused has changed nothing (one that failed on the disk may have: the member stops);
//!   * a record is in the overlay of recent changes or in the reader, from the moment its write returns.
//!
//! Called by `state` (writes, compaction) and, for reading, by whoever holds the state. Whether a lease exists is
//! the caller's to know. Requests need not have been checked: nonsense is refused or has no effect, it never panics.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::change::{Change, ChangeKind, ChangeSet, SharedChanges};
use super::compaction::Compaction;
use super::index::{Index, Latest};
use super::recent::Recent;
use super::record;
use super::revision::RevisionKey;
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
};
use crate::pb::mvccpb::KeyValue;
use crate::storage;
use crate::storage::backend::{Batch, Bucket, Reader};
use crate::storage::schema::{self, read_u64, u64_row};
use crate::types::{KeyRange, LeaseId, Revision};

/// Keys with all their revisions since the last compaction.
pub struct Store {
    pub(super) index: Index,
    pub(super) recent: Recent,
    pub(super) reader: Arc<dyn Reader>,
    /// Up to where `reader` has everything.
    pub(super) flushed: Revision,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// Nothing is removed of what came from here on. Not above `compacted`.
    pub(super) retained: Revision,
    pub(super) compaction: Option<Compaction>,
}

/// What a write came to.
#[derive(Debug)]
pub struct Written<R> {
    /// The answer. Headers carry the revision alone.
    pub response: R,
    /// What changed, unless nothing did.
    pub changes: Option<SharedChanges>,
    /// In order: this key now belongs to this lease, or to none. Keys that neither had nor got a lease are not here.
    pub attachments: Vec<(Bytes, LeaseId)>,
}

impl Store {
    /// The store as the reader has it, and the leases of the keys that exist. Reads the whole history.
    pub fn open(reader: Arc<dyn Reader>) -> storage::Result<(Store, Vec<(Bytes, LeaseId)>)> {
        let revision = meta(&*reader, schema::REVISION)?.unwrap_or(Revision::FIRST);
        let compacted = meta(&*reader, schema::COMPACTED)?.unwrap_or(Revision(-1));
        let done = meta(&*reader, schema::COMPACTION_DONE)?.unwrap_or(Revision(-1));

        let mut index = Index::default();
        let mut attached = BTreeMap::new();
        let mut damage = None;
        reader.scan_all(
            Bucket::Key,
            &mut |row, value| match index_row(&mut index, &mut attached, revision, row, value) {
                Ok(()) => true,
                Err(error) => {
                    damage = Some(error);
                    false
                }
            },
        )?;
        if let Some(error) = damage {
            return Err(error);
        }
        // What was being removed is at some place nobody knows.
        let (retained, compaction) = (compacted, (done < compacted).then(|| Compaction::to(compacted)));
        let recent = Recent::new();
        let store = Store { index, recent, reader, flushed: revision, revision, compacted, retained, compaction };
        Ok((store, attached.into_iter().collect()))
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision below which nothing can be read; -1 before the first compaction.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The revision from which on history is whole; below [`Store::compacted`] only watches that run may still see it.
    pub fn retained(&self) -> Revision {
        self.retained
    }

    /// How many keys exist.
    pub fn keys_total(&self) -> usize {
        self.index.live()
    }

    /// The backend as it was at the last [`Store::flushed`].
    pub fn reader(&self) -> Arc<dyn Reader> {
        self.reader.clone()
    }

    /// The backend has committed and `reader` sees it: changes up to its revision need not be held here any more.
    pub fn flushed(&mut self, reader: Arc<dyn Reader>) -> storage::Result<()> {
        let flushed = meta(&*reader, schema::REVISION)?.unwrap_or(Revision::FIRST);
        assert!(self.flushed <= flushed && flushed <= self.revision, "the backend follows the store, and only forward");
        self.flushed = flushed;
        self.reader = reader;
        self.recent.trim(flushed);
        Ok(())
    }

    /// Changes how many bytes of recent changes, which the backend has too, are kept for watchers that are a little
    /// late.
    pub fn limit_recent(&mut self, bytes_max: usize) {
        self.recent.limit(bytes_max);
        self.recent.trim(self.flushed);
    }

    /// Adds the row that says which revision the store is at.
    pub fn meta_rows(&self, batch: &mut Batch) {
        batch.put(Bucket::Meta, Bytes::from_static(schema::REVISION), u64_row(self.revision.0 as u64));
    }

    /// Puts a key. The caller has checked that the lease exists.
    pub fn put(&mut self, request: &PutRequest) -> Result<Written<PutResponse>, Error> {
        if (request.ignore_value || request.ignore_lease) && self.index.latest(&request.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        let mut write = Write::new(self);
        let response = write.put(request)?;
        Ok(write.finish(response))
    }

    /// Deletes the keys of a range.
    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<Written<DeleteRangeResponse>, Error> {
        let mut write = Write::new(self);
        let response = write.delete_range(request)?;
        Ok(write.finish(response))
    }

    /// Deletes these keys, those that exist, in one revision: the end of leases.
    pub fn delete_keys(&mut self, keys: &[Bytes]) -> Result<Written<()>, Error> {
        let mut write = Write::new(self);
        for key in keys {
            if let Some(latest) = write.store.index.latest(key) {
                write.delete(record::encode_tombstone(key), latest)?;
            }
        }
        Ok(write.finish(()))
    }

    /// The encoded key-value at a place, wherever it lies. `None` when there is none, or not any more.
    pub fn record(&self, place: RevisionKey) -> storage::Result<Option<Bytes>> {
        match self.recent.record(place) {
            Some(record) => Ok(Some(record.clone())),
            None => self.reader.get(Bucket::Key, &place.row(false)),
        }
    }

    /// The encoded key-value that a key had just before a revision; `None` when there was none or it is compacted.
    pub fn previous(&self, key: &[u8], before: Revision) -> storage::Result<Option<Bytes>> {
        let at = Revision(before.0.saturating_sub(1));
        if at < self.compacted {
            return Ok(None);
        }
        match self.index.at(key, at) {
            Some(place) => self.record(place),
            None => Ok(None),
        }
    }
}

/// One write under way: it sees its own changes, and nobody else does until it is finished.
pub(super) struct Write<'a> {
    pub(super) store: &'a mut Store,
    changes: Vec<Change>,
    attachments: Vec<(Bytes, LeaseId)>,
}

impl<'a> Write<'a> {
    pub(super) fn new(store: &'a mut Store) -> Write<'a> {
        Write { store, changes: Vec::new(), attachments: Vec::new() }
    }

    /// What a read inside the write sees: the store's revision, or the next one as soon as something changed.
    pub(super) fn revision(&self) -> Revision {
        if self.changes.is_empty() { self.store.revision } else { self.store.revision.next() }
    }

    /// Puts a key, whatever the request's lease is. What `ignore_value` and `ignore_lease` keep of a key that is not
    /// there is nothing; refusing that is for the caller, before the write begins.
    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Error> {
        let place = self.next_place();
        let previous = match request.prev_kv || request.ignore_value || request.ignore_lease {
            true => self.store.index.latest(&request.key).map(|latest| self.key_value(latest.place)).transpose()?,
            false => None,
        };
        let kept = previous.as_ref();
        let value = if request.ignore_value { kept.map(|kv| &kv.value) } else { Some(&request.value) };
        let lease = if request.ignore_lease { kept.map_or(0, |kv| kv.lease) } else { request.lease };
        let leased = lease != LeaseId::NONE.0;
        let mut kv = KeyValue {
            key: request.key.clone(),
            mod_revision: place.main,
            value: value.cloned().unwrap_or_default(),
            lease,
            ..KeyValue::default()
        };
        let record_bytes = record::bytes_with(&kv);
        let latest = self.store.index.write(&request.key, place, leased, &record_bytes);
        (kv.create_revision, kv.version) = latest.map_or((place.main, 1), |latest| (latest.create, latest.version + 1));
        let record = record::encode(&kv);
        debug_assert_eq!(record.len(), record_bytes(kv.create_revision, kv.version));
        let key = key_of(&record);
        if leased || latest.is_some_and(|latest| latest.leased) {
            self.attachments.push((key.clone(), LeaseId(lease)));
        }
        self.changes.push(Change::new(key, ChangeKind::Put, record, latest.map(|latest| latest.place)));
        Ok(PutResponse { header: header(self.revision()), prev_kv: previous.filter(|_| request.prev_kv) })
    }

    /// Deletes the keys of a range.
    pub(super) fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Error> {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let mut doomed = Vec::new();
        self.store.index.walk(&range, None, usize::MAX, |key, entry| {
            doomed.extend(entry.latest().map(|latest| (record::encode_tombstone(&key.whole()), latest)));
            true
        });
        let deleted = doomed.len() as i64;
        let mut prev_kvs = Vec::new();
        for (tombstone, latest) in doomed {
            if request.prev_kv {
                prev_kvs.push(self.key_value(latest.place)?);
            }
            self.delete(tombstone, latest)?;
        }
        Ok(DeleteRangeResponse { header: header(self.revision()), deleted, prev_kvs })
    }

    fn delete(&mut self, tombstone: Bytes, latest: Latest) -> Result<(), Error> {
        let key = key_of(&tombstone);
        if latest.leased {
            self.attachments.push((key.clone(), LeaseId::NONE));
        }
        self.store.index.delete(&key, self.next_place());
        self.changes.push(Change::new(key, ChangeKind::Delete, tombstone, Some(latest.place)));
        Ok(())
    }

    /// Reads a range as the write sees it.
    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let revision = self.revision();
        let mut scan = self.store.scan_at(request, revision)?;
        self.store.scan_slice(&mut scan, usize::MAX, &|place| self.own(place).cloned());
        scan.finish()?.into_response(revision)
    }

    /// Ends the write: from here on its changes are the store's.
    pub(super) fn finish<R>(self, response: R) -> Written<R> {
        let Write { store, changes, attachments } = self;
        if changes.is_empty() {
            return Written { response, changes: None, attachments };
        }
        store.revision = store.revision.next();
        let set = Arc::new(ChangeSet { revision: store.revision, changes });
        store.recent.push(set.clone());
        store.recent.trim(store.flushed);
        Written { response, changes: Some(set), attachments }
    }

    fn next_place(&self) -> RevisionKey {
        let sub = u32::try_from(self.changes.len()).expect("a request has fewer than 4 billion changes");
        RevisionKey { main: self.store.revision.next().0, sub }
    }

    /// The record of a change that this write has made.
    fn own(&self, place: RevisionKey) -> Option<&Bytes> {
        (place.main > self.store.revision.0).then(|| &self.changes[place.sub as usize].record)
    }

    fn key_value(&self, place: RevisionKey) -> Result<KeyValue, Error> {
        let record = match self.own(place) {
            Some(own) => Some(own.clone()),
            None => self.store.record(place)?,
        };
        let record = record.ok_or_else(|| record::damaged(place, "is missing"))?;
        Ok(record::key_value(&record, place)?)
    }
}

/// A header with nothing but a revision.
pub(super) fn header(revision: Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: revision.0, ..Default::default() })
}

/// The key, as a slice of a record that we made.
fn key_of(record: &Bytes) -> Bytes {
    record.slice_ref(record::read(record).expect("a record just encoded can be read").key)
}

fn meta(reader: &dyn Reader, name: &'static [u8]) -> storage::Result<Option<Revision>> {
    let Some(row) = reader.get(Bucket::Meta, name)? else { return Ok(None) };
    match read_u64(&row).and_then(|n| i64::try_from(n).ok()) {
        Some(n) => Ok(Some(Revision(n))),
        None => Err(storage::Error::Engine(format!("the row {} is not a revision", name.escape_ascii()))),
    }
}

/// Takes one row of history into the index. Rows come in the order in which they were made.
fn index_row(
    index: &mut Index,
    attached: &mut BTreeMap<Bytes, LeaseId>,
    newest: Revision,
    row: &[u8],
    value: &[u8],
) -> storage::Result<()> {
    let (place, tombstone) = RevisionKey::from_row(row)
        .ok_or_else(|| storage::Error::Engine(format!("the row {} is not a revision", row.escape_ascii())))?;
    let fields = record::read_at(value, place)?;
    if place.main > newest.0 {
        return Err(record::damaged(place, "lies above the store's revision"));
    }
    if tombstone {
        index.delete(fields.key, place);
    } else {
        let leased = fields.lease != LeaseId::NONE.0;
        let (create, version) = (fields.create_revision, fields.version);
        index.put(fields.key, Latest { place, create, version, leased }, value.len());
        if leased {
            attached.insert(Bytes::copy_from_slice(fields.key), LeaseId(fields.lease));
            return Ok(());
        }
    }
    attached.remove(fields.key);
    Ok(())
}
