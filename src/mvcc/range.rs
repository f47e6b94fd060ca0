//! Ranges: which keys, in what order, how many.
//!
//! A scan first collects places from the index, in slices, so that whoever holds the state's lock can let go of it in
//! between; then, without any lock, the records are read, one by one where nothing has to be known of all of them first: how long
//! each is the index knows. The revision it began at pins what it sees: writes between
//! two slices are invisible. Should a compaction overtake a scan, one that asked for the newest revision begins again
//! at what is newest now, and one that named its revision is refused.
//!
//! etcd's odd rule is kept: with a sort target other than the key but no order, the limit (and one more, which tells
//! `more`) is applied in key order first, and what is left is then sorted ascending. With `keys_only` the lease stays.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Error;
use super::record;
use super::revision::RevisionKey;
use super::store::{Store, header};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;
use crate::storage;
use crate::storage::backend::{Bucket, Reader};
use crate::types::{KeyRange, RangeEnd, Revision};

/// Records whose revisions are no further apart than this are read by walking from one to the next, where there are so many of them.
const RUN_GAP: i64 = 4;
const RUN_MIN: usize = 4;
/// Rows that such a walk visits for each of them at the most: a revision may have thousands.
const ROWS_EACH_MAX: usize = 8;

/// A range being read.
pub struct Scan {
    range: KeyRange,
    /// The revision it sees.
    revision: Revision,
    /// It asked for whatever is newest.
    newest: bool,
    /// The newest revision when it began, or began again.
    began: Revision,
    /// 0: none.
    limit: usize,
    count_only: bool,
    keys_only: bool,
    /// `None`: as the keys come.
    sort: Option<(SortTarget, SortOrder)>,
    mod_revisions: Filter,
    create_revisions: Filter,
    /// Places beyond this many are counted, not collected.
    found_max: usize,

    /// The last key visited.
    after: Option<Box<[u8]>>,
    found: Vec<Found>,
    count: i64,
    /// That is all of them, whether they were visited or not.
    counted: bool,
    /// As it was at the last slice: it has every place that was not in memory then.
    reader: Arc<dyn Reader>,
}

#[derive(Debug)]
struct Found {
    place: RevisionKey,
    /// Bytes of the record, if that is known.
    bytes: Option<u32>,
    /// `None`: to be read from the backend.
    record: Option<Bytes>,
}

/// Bounds of a revision, each 0 for none.
#[derive(Clone, Copy)]
struct Filter {
    min: i64,
    max: i64,
}

/// What a range came to.
#[derive(Debug)]
pub struct RangeResult {
    /// Its key-values.
    pub records: Records,
    /// The limit cut something off.
    pub more: bool,
    /// Keys in the range, whatever limit and filters left.
    pub count: i64,
}

/// Encoded key-values, read when they are asked for. Until then the backend cannot use pages again that its reader sees: whoever takes
/// long gives it a [newer one](Records::read_from) now and then.
pub struct Records {
    reader: Arc<dyn Reader>,
    found: std::vec::IntoIter<Found>,
    /// The reader is not the one that has everything for sure.
    renewed: bool,
}

/// Refuses sort orders and targets that we do not know.
pub(super) fn check_sort(request: &RangeRequest) -> Result<(SortTarget, SortOrder), Error> {
    match (SortTarget::try_from(request.sort_target), SortOrder::try_from(request.sort_order)) {
        (Ok(target), Ok(order)) => Ok((target, order)),
        _ => Err(Error::InvalidSort),
    }
}

impl Store {
    /// Begins to read a range. Nothing has been collected yet: [`Store::scan_more`] does that.
    pub fn scan(&self, request: &RangeRequest) -> Result<Scan, Error> {
        self.scan_at(request, self.revision)
    }

    /// Collects from at most `keys_max` more keys. Says whether there are more to come.
    pub fn scan_more(&self, scan: &mut Scan, keys_max: usize) -> Result<bool, Error> {
        if scan.revision < self.compacted {
            if !scan.newest {
                return Err(Error::Compacted { at: self.compacted });
            }
            (scan.revision, scan.began, scan.after) = (self.revision, self.revision, None);
            (scan.count, scan.counted) = self.counted(&scan.range, self.revision);
            scan.found.clear();
        }
        Ok(self.scan_slice(scan, keys_max, &|_| None))
    }

    /// Reads a range in one go.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let mut scan = self.scan(request)?;
        while self.scan_more(&mut scan, usize::MAX)? {}
        scan.finish()?.into_response(self.revision)
    }

    /// Begins to read a range when the newest revision is `newest`.
    pub(super) fn scan_at(&self, request: &RangeRequest, newest: Revision) -> Result<Scan, Error> {
        let (target, order) = check_sort(request)?;
        let asked = Revision(request.revision);
        if asked > newest {
            return Err(Error::FutureRevision);
        }
        if asked > Revision(0) && asked < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let mod_revisions = Filter { min: request.min_mod_revision, max: request.max_mod_revision };
        let create_revisions = Filter { min: request.min_create_revision, max: request.max_create_revision };
        let as_keys_come = order == SortOrder::None || (target, order) == (SortTarget::Key, SortOrder::Ascend);
        let found_max = if request.count_only {
            0
        } else if limit > 0 && as_keys_come && mod_revisions.passes_all() && create_revisions.passes_all() {
            limit.saturating_add(1)
        } else {
            usize::MAX
        };
        let sort = match (target, order) {
            (SortTarget::Key, SortOrder::None | SortOrder::Ascend) => None,
            (target, SortOrder::None) => Some((target, SortOrder::Ascend)),
            sort => Some(sort),
        };
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let revision = if request.revision > 0 { asked } else { newest };
        // Now, while this revision is the newest.
        let (count, counted) = self.counted(&range, revision);
        Ok(Scan {
            range,
            revision,
            newest: request.revision <= 0,
            began: newest,
            limit,
            count_only: request.count_only,
            keys_only: request.keys_only,
            sort,
            mod_revisions,
            create_revisions,
            found_max,
            after: None,
            found: Vec::new(),
            count,
            counted,
            reader: self.reader.clone(),
        })
    }

    /// How many keys of a range exist, and whether that is known without a walk. One key is found as soon as it is counted.
    fn counted(&self, range: &KeyRange, revision: Revision) -> (i64, bool) {
        let count = match range.end {
            RangeEnd::Single => None,
            _ => self.index.count(range, revision),
        };
        count.map_or((0, false), |count| (count as i64, true))
    }

    /// Collects from at most `keys_max` more keys; `own` has the records of a write under way.
    pub(super) fn scan_slice(
        &self,
        scan: &mut Scan,
        keys_max: usize,
        own: &dyn Fn(RevisionKey) -> Option<Bytes>,
    ) -> bool {
        let Scan { range, revision, found_max, after, found, count, counted, .. } = scan;
        // Whoever knows the count goes no further than for what is collected.
        let enough = |found: &Vec<Found>, counted| counted && found.len() >= *found_max;
        *after = match enough(found, *counted) {
            true => None,
            false => self.index.walk(range, after.as_deref(), keys_max, |_, entry| {
                if let Some((place, bytes)) = entry.find(*revision) {
                    *count += i64::from(!*counted);
                    if found.len() < *found_max {
                        let record = self.recent.record(place).cloned().or_else(|| own(place));
                        found.push(Found { place, bytes, record });
                    }
                }
                !enough(found, *counted)
            }),
        };
        scan.reader = self.reader.clone();
        scan.after.is_some()
    }
}

impl Scan {
    /// The revision it sees.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// What the header of its reply says: the newest revision when it began. Not known before the last slice, for it may
    /// have begun again.
    pub fn began_at(&self) -> Revision {
        self.began
    }

    /// How many records [`Scan::finish`] may have to read, or to sort.
    pub fn reads(&self) -> usize {
        let as_they_come = self.sort.is_none() && self.create_revisions.passes_all() && !self.keys_only;
        if as_they_come { 0 } else { self.found.len() }
    }

    /// Filters, sorts and cuts, and reads the records that it has to know for that. Needs no lock.
    pub fn finish(mut self) -> storage::Result<RangeResult> {
        if self.count_only {
            return Ok(RangeResult { records: self.records(Vec::new()), more: false, count: self.count });
        }
        let mut found = std::mem::take(&mut self.found);
        found.retain(|found| self.mod_revisions.passes(found.place.main));
        if !self.create_revisions.passes_all() {
            found = self.filter_by_creation(found)?;
        }
        if let Some((target, order)) = self.sort {
            found = self.sort(found, target, order)?;
        }
        let more = self.limit > 0 && found.len() > self.limit;
        if more {
            found.truncate(self.limit);
        }
        for found in &mut found {
            if self.keys_only {
                found.record = Some(without_value(&self.record(found)?, found.place)?);
            } else if found.bytes.is_none() {
                found.record = Some(self.record(found)?);
            }
        }
        Ok(RangeResult { records: self.records(found), more, count: self.count })
    }

    fn records(&self, found: Vec<Found>) -> Records {
        Records { reader: self.reader.clone(), found: found.into_iter(), renewed: false }
    }

    fn filter_by_creation(&self, found: Vec<Found>) -> storage::Result<Vec<Found>> {
        let mut passed = Vec::new();
        for mut found in found {
            let record = self.record(&found)?;
            if self.create_revisions.passes(record::read_at(&record, found.place)?.create_revision) {
                found.record = Some(record);
                passed.push(found);
            }
        }
        Ok(passed)
    }

    /// Keys that compare equal stay in key order, whichever way round.
    fn sort(&self, found: Vec<Found>, target: SortTarget, order: SortOrder) -> storage::Result<Vec<Found>> {
        match target {
            SortTarget::Key => Ok(found.into_iter().rev().collect()),
            SortTarget::Mod => sort_by(found, order, |found| Ok(found.place.main)),
            SortTarget::Create => {
                let found = self.read_all(found)?;
                sort_by(found, order, |found| Ok(self.fields_of(found)?.create_revision))
            }
            SortTarget::Version => {
                let found = self.read_all(found)?;
                sort_by(found, order, |found| Ok(self.fields_of(found)?.version))
            }
            SortTarget::Value => {
                let found = self.read_all(found)?;
                sort_by(found, order, |found| {
                    let record = self.record(found)?;
                    Ok(record.slice_ref(record::read_at(&record, found.place)?.value))
                })
            }
        }
    }

    fn read_all(&self, mut found: Vec<Found>) -> storage::Result<Vec<Found>> {
        for found in &mut found {
            found.record = Some(self.record(found)?);
        }
        Ok(found)
    }

    fn fields_of<'a>(&self, found: &'a Found) -> storage::Result<record::Fields<'a>> {
        record::read_at(found.record.as_ref().expect("read before sorting"), found.place)
    }

    fn record(&self, found: &Found) -> storage::Result<Bytes> {
        found.read(&*self.reader)
    }
}

impl Found {
    fn read(&self, reader: &dyn Reader) -> storage::Result<Bytes> {
        self.find(reader)?.ok_or_else(|| self.is_missing())
    }

    fn find(&self, reader: &dyn Reader) -> storage::Result<Option<Bytes>> {
        match &self.record {
            Some(record) => Ok(Some(record.clone())),
            None => reader.get(Bucket::Key, &self.place.row(false)),
        }
    }

    fn is_missing(&self) -> storage::Error {
        record::damaged(self.place, "is missing")
    }

    /// Bytes of its record. It is known, or the record was read.
    fn bytes(&self) -> usize {
        match &self.record {
            Some(record) => record.len(),
            None => self.bytes.unwrap_or_default() as usize,
        }
    }
}

impl Records {
    /// How long each of those is that are still to come.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        self.found.as_slice().iter().map(Found::bytes)
    }

    /// Goes on with a later state of the backend. What was compacted and removed since is an error from here on.
    pub fn read_from(&mut self, reader: Arc<dyn Reader>) {
        (self.reader, self.renewed) = (reader, true);
    }

    /// Reads some of the next `count` ahead of their turn: what was written one after the other lies side by side in the backend, and
    /// to walk there is cheaper than to look for each. What is not found is looked for in its turn, and missed then.
    pub fn read_ahead(&mut self, count: usize) -> storage::Result<()> {
        let next = self.found.as_mut_slice().iter_mut().take(count);
        let mut wanted: Vec<&mut Found> = next.filter(|found| found.record.is_none()).collect();
        wanted.sort_unstable_by_key(|found| found.place);
        for run in wanted.chunk_by_mut(|one, next| next.place.main - one.place.main <= RUN_GAP) {
            if run.len() >= RUN_MIN {
                read_run(&*self.reader, run)?;
            }
        }
        Ok(())
    }

    /// Whether none is to come any more.
    pub fn is_empty(&self) -> bool {
        self.found.as_slice().is_empty()
    }

    #[cfg(test)]
    pub(crate) fn of(records: Vec<Bytes>) -> Records {
        use crate::storage::backend::Backend;
        let place = RevisionKey::default();
        let found = records.into_iter().map(|record| Found { place, bytes: None, record: Some(record) });
        let reader = crate::storage::backend::memory::MemoryBackend::new().reader().expect("it is in memory");
        Records { reader, found: found.collect::<Vec<_>>().into_iter(), renewed: false }
    }
}

impl Iterator for Records {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Result<Bytes, Error>> {
        let found = self.found.next()?;
        let read = || {
            let Some(record) = found.find(&*self.reader)? else {
                return Err(match self.renewed {
                    true => Error::Compacted { at: found.place.revision() },
                    false => found.is_missing().into(),
                });
            };
            record::read_at(&record, found.place)?;
            match record.len() == found.bytes() {
                true => Ok(record),
                false => Err(record::damaged(found.place, "has another length").into()),
            }
        };
        Some(read())
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.found.as_slice()).finish()
    }
}

impl Filter {
    fn passes_all(self) -> bool {
        self.min == 0 && self.max == 0
    }

    fn passes(self, revision: i64) -> bool {
        (self.min == 0 || revision >= self.min) && (self.max == 0 || revision <= self.max)
    }
}

impl RangeResult {
    /// The response, when the store's revision is this.
    pub fn into_response(self, revision: Revision) -> Result<RangeResponse, Error> {
        let decode =
            |record: Result<Bytes, Error>| Ok::<_, Error>(record::key_value(&record?, RevisionKey::default())?);
        let kvs = self.records.map(decode).collect::<Result<_, _>>()?;
        Ok(RangeResponse { header: header(revision), kvs, more: self.more, count: self.count })
    }
}

/// Reads records that lie near each other, by their places, into one piece of memory.
fn read_run(reader: &dyn Reader, run: &mut [&mut Found]) -> storage::Result<()> {
    let mut bytes = Vec::with_capacity(run.iter().map(|found| found.bytes()).sum());
    let mut read = Vec::with_capacity(run.len());
    let (first, last) = (run[0].place, run[run.len() - 1].place);
    let (mut next, mut rows_left) = (0, run.len() * ROWS_EACH_MAX);
    reader.scan(Bucket::Key, &first.row(false), None, &mut |row, record| {
        rows_left -= 1;
        let Some((place, tombstone)) = RevisionKey::from_row(row) else { return false };
        while run.get(next).is_some_and(|found| found.place < place) {
            next += 1;
        }
        // One of another length than the index says is left to be refused in its turn.
        let is_it = |found: &&mut Found| found.place == place && found.bytes() == record.len();
        if !tombstone && run.get(next).is_some_and(is_it) {
            let begin = bytes.len();
            bytes.extend_from_slice(record);
            read.push((next, begin..bytes.len()));
        }
        place < last && rows_left > 0
    })?;
    let bytes = Bytes::from(bytes);
    for (place, range) in read {
        run[place].record = Some(bytes.slice(range));
    }
    Ok(())
}

fn sort_by<K: Ord>(
    found: Vec<Found>,
    order: SortOrder,
    key: impl Fn(&Found) -> storage::Result<K>,
) -> storage::Result<Vec<Found>> {
    let mut keyed = Vec::with_capacity(found.len());
    for found in found {
        keyed.push((key(&found)?, found));
    }
    match order {
        SortOrder::Descend => keyed.sort_by(|(a, _), (b, _)| b.cmp(a)),
        SortOrder::None | SortOrder::Ascend => keyed.sort_by(|(a, _), (b, _)| a.cmp(b)),
    }
    Ok(keyed.into_iter().map(|(_, found)| found).collect())
}

fn without_value(record: &Bytes, place: RevisionKey) -> storage::Result<Bytes> {
    let kv = record::key_value(record, place)?;
    Ok(record::encode(&KeyValue { value: Bytes::new(), ..kv }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};
    use crate::storage::backend::memory::MemoryBackend;
    use crate::storage::backend::{Backend, Batch};

    /// A store whose records are all in the backend.
    fn flushed(store: &mut Store, backend: &MemoryBackend, mut batch: Batch) {
        store.meta_rows(&mut batch);
        backend.commit(&batch).unwrap();
        store.flushed(backend.reader().unwrap()).unwrap();
        store.limit_recent(0);
    }

    #[test]
    fn what_is_read_ahead_is_what_is_read_in_its_turn() {
        let backend = MemoryBackend::new();
        let (mut store, _) = Store::open(backend.reader().unwrap()).unwrap();
        let (mut batch, mut random) = (Batch::default(), 7u64);
        for _ in 0..600 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let key = Bytes::from(format!("k{:02}", (random >> 33) % 60));
            let applied = match random >> 61 {
                0 => store.delete_range(&DeleteRangeRequest { key, ..Default::default() }).unwrap().changes,
                // Rows that nobody asks for lie between.
                1 => {
                    store
                        .delete_range(&DeleteRangeRequest {
                            key: "k3".into(),
                            range_end: "k4".into(),
                            ..Default::default()
                        })
                        .unwrap()
                        .changes
                }
                more => {
                    let value = vec![b'v'; more as usize].into();
                    store.put(&PutRequest { key, value, ..Default::default() }).unwrap().changes
                }
            };
            applied.into_iter().for_each(|changes| changes.rows(&mut batch));
        }
        flushed(&mut store, &backend, batch);
        let mut read_ahead = 0;
        for revision in 100..=store.revision().0 {
            let request = RangeRequest { key: "a".into(), range_end: "z".into(), revision, ..Default::default() };
            let found = || {
                let mut scan = store.scan(&request).unwrap();
                assert!(!store.scan_more(&mut scan, 99).unwrap());
                scan.finish().unwrap().records
            };
            let mut ahead = found();
            ahead.read_ahead(7).unwrap();
            let first: Vec<_> = ahead.by_ref().take(7).map(|record| record.unwrap()).collect();
            ahead.read_ahead(99).unwrap();
            read_ahead += ahead.found.as_slice().iter().filter(|found| found.record.is_some()).count();
            let all: Vec<_> = first.into_iter().chain(ahead.map(|record| record.unwrap())).collect();
            assert_eq!(all, found().map(|record| record.unwrap()).collect::<Vec<_>>(), "at {revision}");
        }
        assert!(read_ahead > 5_000, "only {read_ahead}");
    }

    #[test]
    fn a_record_of_another_length_than_the_index_says_is_refused() {
        let backend = MemoryBackend::new();
        let mut batch = Batch::default();
        let found = (1..9).map(|main| {
            let (place, record) = (RevisionKey { main, sub: 0 }, record::encode_tombstone(b"key"));
            let bytes = Some(record.len() as u32 + u32::from(main == 5));
            batch.put(Bucket::Key, place.row(false), record);
            Found { place, bytes, record: None }
        });
        let found = found.collect::<Vec<_>>().into_iter();
        backend.commit(&batch).unwrap();
        let mut records = Records { reader: backend.reader().unwrap(), found, renewed: false };
        records.read_ahead(8).unwrap();
        let whole: Vec<_> = records.map(|record| record.is_ok()).collect();
        assert_eq!(whole, [true, true, true, true, false, true, true, true]);
    }

    #[test]
    fn a_range_that_is_read_late_is_whole_or_says_that_it_was_compacted() {
        let backend = MemoryBackend::new();
        let (mut store, _) = Store::open(backend.reader().unwrap()).unwrap();
        let mut batch = Batch::default();
        for (key, value) in [("a", "1"), ("b", "1"), ("a", "22")] {
            let put = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
            store.put(&put).unwrap().changes.unwrap().rows(&mut batch);
        }
        flushed(&mut store, &backend, batch);
        let request = RangeRequest { key: "a".into(), range_end: "z".into(), revision: 3, ..Default::default() };
        let found = || {
            let mut scan = store.scan(&request).unwrap();
            assert!(!store.scan_more(&mut scan, 9).unwrap() && scan.reads() == 0);
            scan.finish().unwrap().records
        };
        let (kept, mut renewed) = (found(), found());
        assert_eq!(kept.lengths().collect::<Vec<_>>(), [12, 12]);

        let mut batch = Batch::default();
        store.compact(Revision(4), &mut batch).unwrap();
        store.remove(Revision(4));
        while store.compact_step(9, &mut batch).unwrap() {}
        flushed(&mut store, &backend, batch);
        let key = |record: Result<Bytes, Error>| record::read(&record.unwrap()).unwrap().key.to_vec();
        assert_eq!(kept.map(key).collect::<Vec<_>>(), [b"a", b"b"]);
        renewed.read_from(store.reader());
        assert!(matches!(renewed.next(), Some(Err(Error::Compacted { .. }))));
        assert_eq!(renewed.map(key).collect::<Vec<_>>(), [b"b"], "it is still the newest");
    }
}
