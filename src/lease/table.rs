//! The replicated half of leases: which exist, how long they are, which keys hang on them.
//!
//! Promises:
//!   * a key hangs on at most one lease, and only on one that exists;
//!   * what is in memory is what the rows written into the batches say, keys excepted: those are rebuilt from the keys;
//!   * leases iterate by id and keys in byte order, the same on every member.
//!
//! Called by apply alone. Who deletes a revoked lease's keys is `state::apply::lease`'s business.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;

use bytes::Bytes;
use prost::Message;

use super::Error;
use crate::pb::everwatchpb::LeaseRecord;
use crate::storage::backend::{Batch, Bucket};
use crate::storage::schema;
use crate::types::{Index, LeaseId};

/// All leases.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Table {
    leases: BTreeMap<LeaseId, Lease>,
    // Looked up, never iterated. Keys without a lease are not in it.
    lease_of: HashMap<Bytes, LeaseId>,
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its length in seconds, as granted.
    pub ttl: i64,
    /// The entry that granted it. It tells it from one of the same id before it.
    pub granted: Index,
    /// There may be a million leases, and many have nothing of this.
    more: Option<Box<More>>,
}

const _: () = assert!(size_of::<Lease>() <= 24);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct More {
    rest_ms: Option<NonZeroU64>,
    keys: BTreeSet<Bytes>,
}

impl Lease {
    /// What was left when a leader last recorded it, in milliseconds; `None`: all of it.
    pub fn rest_ms(&self) -> Option<NonZeroU64> {
        self.more.as_ref()?.rest_ms
    }

    /// The keys that go with it, in byte order.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.more.iter().flat_map(|more| more.keys.iter())
    }

    /// Changes what not every lease has.
    fn change(&mut self, change: impl FnOnce(&mut More)) {
        change(self.more.get_or_insert_default());
        self.more.take_if(|more| **more == More::default());
    }
}

impl Table {
    /// Takes a lease from its row, at start. Its keys follow by [`attach`](Table::attach).
    pub fn restore(&mut self, record: LeaseRecord) {
        let mut lease = Lease { ttl: record.ttl, granted: Index(record.granted), more: None };
        lease.change(|more| more.rest_ms = NonZeroU64::new(record.remaining_ms));
        self.leases.insert(LeaseId(record.id), lease);
    }

    /// Adds a lease of `ttl` seconds, granted by this entry.
    pub fn grant(&mut self, id: LeaseId, ttl: i64, granted: Index, batch: &mut Batch) -> Result<(), Error> {
        if id == LeaseId::NONE {
            return Err(Error::NotFound);
        }
        if self.exists(id) {
            return Err(Error::Exists);
        }
        let lease = Lease { ttl, granted, more: None };
        put_row(id, &lease, batch);
        self.leases.insert(id, lease);
        Ok(())
    }

    /// Removes a lease and gives back the keys that were on it, in byte order.
    pub fn revoke(&mut self, id: LeaseId, batch: &mut Batch) -> Result<Vec<Bytes>, Error> {
        let lease = self.leases.remove(&id).ok_or(Error::NotFound)?;
        batch.delete(Bucket::Lease, row_key(id));
        let keys = lease.more.map_or_else(Vec::new, |more| more.keys.into_iter().collect());
        for key in &keys {
            self.lease_of.remove(key);
        }
        Ok(keys)
    }

    /// Records what is left of a lease; `None`: all of it.
    pub fn set_rest(&mut self, id: LeaseId, rest_ms: Option<u64>, batch: &mut Batch) -> Result<(), Error> {
        let lease = self.leases.get_mut(&id).ok_or(Error::NotFound)?;
        lease.change(|more| more.rest_ms = rest_ms.and_then(NonZeroU64::new));
        put_row(id, lease, batch);
        Ok(())
    }

    /// Makes `id` the lease of a key, taking the key from the one it had; [`LeaseId::NONE`] leaves it without.
    /// A lease that does not exist is refused: the caller has checked, or the rows contradict each other.
    pub fn attach(&mut self, key: &[u8], id: LeaseId) -> Result<(), Error> {
        let before = self.lease_of(key);
        if before == id {
            return Ok(());
        }
        if id != LeaseId::NONE && !self.exists(id) {
            return Err(Error::NotFound);
        }
        if before != LeaseId::NONE {
            self.lease_of.remove(key);
            let lease = self.leases.get_mut(&before).expect("a key hangs only on a lease that exists");
            lease.change(|more| _ = more.keys.remove(key));
        }
        if id != LeaseId::NONE {
            // A copy: the caller's bytes may be a slice of a whole log entry, which must not live as long as the lease.
            let key = Bytes::copy_from_slice(key);
            let lease = self.leases.get_mut(&id).expect("existence was checked above");
            lease.change(|more| _ = more.keys.insert(key.clone()));
            self.lease_of.insert(key, id);
        }
        Ok(())
    }

    /// Whether there is such a lease, and it was there when entry `seen` had been carried out: it is not another of the same id.
    pub fn existed(&self, id: LeaseId, seen: Index) -> bool {
        self.leases.get(&id).is_some_and(|lease| lease.granted <= seen)
    }

    /// Whether there is such a lease. There is none called [`LeaseId::NONE`].
    pub fn exists(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// One lease.
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// The lease a key hangs on, or [`LeaseId::NONE`].
    pub fn lease_of(&self, key: &[u8]) -> LeaseId {
        self.lease_of.get(key).copied().unwrap_or(LeaseId::NONE)
    }

    /// All leases, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

fn row_key(id: LeaseId) -> Bytes {
    schema::u64_row(id.0 as u64)
}

fn put_row(id: LeaseId, lease: &Lease, batch: &mut Batch) {
    let remaining_ms = lease.rest_ms().map_or(0, NonZeroU64::get);
    let record = LeaseRecord { id: id.0, ttl: lease.ttl, remaining_ms, granted: lease.granted.0 };
    batch.put(Bucket::Lease, row_key(id), record.encode_to_vec().into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(table: &Table, id: i64) -> Vec<&[u8]> {
        table.get(LeaseId(id)).map(|lease| lease.keys().map(|key| key.as_ref()).collect()).unwrap_or_default()
    }

    #[test]
    fn a_key_moves_between_leases_and_goes_with_the_last() {
        let (mut table, mut batch) = (Table::default(), Batch::default());
        for id in [1, 2] {
            assert_eq!(table.grant(LeaseId(id), 60, Index(1), &mut batch), Ok(()));
        }
        for key in ["c", "a", "b"] {
            table.attach(key.as_bytes(), LeaseId(1)).unwrap();
        }
        assert_eq!(keys(&table, 1), [b"a", b"b", b"c"]);
        table.attach(b"b", LeaseId(2)).unwrap();
        table.attach(b"c", LeaseId::NONE).unwrap();
        assert_eq!((keys(&table, 1), keys(&table, 2)), (vec![&b"a"[..]], vec![&b"b"[..]]));
        assert_eq!((table.lease_of(b"b"), table.lease_of(b"c")), (LeaseId(2), LeaseId::NONE));

        assert_eq!(table.attach(b"b", LeaseId(3)), Err(Error::NotFound));
        assert_eq!(table.lease_of(b"b"), LeaseId(2), "a refused move leaves the key where it was");
        assert_eq!(table.revoke(LeaseId(2), &mut batch), Ok(vec!["b".into()]));
        assert_eq!((table.lease_of(b"b"), table.exists(LeaseId(2))), (LeaseId::NONE, false));
        assert_eq!(table.revoke(LeaseId(2), &mut batch), Err(Error::NotFound));
    }

    #[test]
    fn ids_are_taken_once_and_zero_is_none() {
        let (mut table, mut batch) = (Table::default(), Batch::default());
        assert_eq!(table.grant(LeaseId::NONE, 5, Index(1), &mut batch), Err(Error::NotFound));
        assert_eq!(table.grant(LeaseId(-7), 5, Index(1), &mut batch), Ok(()));
        assert_eq!(table.grant(LeaseId(-7), 9, Index(1), &mut batch), Err(Error::Exists));
        assert_eq!(table.set_rest(LeaseId(8), Some(1), &mut batch), Err(Error::NotFound));
        assert_eq!(batch.rows.len(), 1, "a refusal writes nothing");
    }

    #[test]
    fn rows_bring_a_lease_back() {
        let (mut table, mut batch) = (Table::default(), Batch::default());
        table.grant(LeaseId(-7), 5, Index(1), &mut batch).unwrap();
        table.set_rest(LeaseId(-7), Some(1234), &mut batch).unwrap();
        let (_, key, value) = batch.rows.pop().unwrap();
        let mut again = Table::default();
        again.restore(LeaseRecord::decode(value.unwrap()).unwrap());
        assert_eq!(again.get(LeaseId(-7)), table.get(LeaseId(-7)));
        assert_eq!(key, schema::u64_row(-7i64 as u64));
    }
}
