//! The backend: an ordered store of rows in buckets, behind a trait with two implementations.
//!
//! Writing is by whole batches: [`Backend::commit`] makes a batch visible and durable at once, or not at all. Reading is
//! through a [`Reader`], which stays at the commit it was taken at. What the rows are is in [`super::schema`].
//!
//! The backend runs behind apply (see [`super`]); nobody waits for a commit except those who want to know that it happened.

use std::sync::Arc;

use bytes::Bytes;

use super::Result;

pub mod disk;
pub mod inspect;
pub mod memory;

/// A group of rows that are ordered together. The numbers are part of the snapshot stream between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Bucket {
    /// MVCC history: revision key → encoded `mvccpb.KeyValue`.
    Key = 1,
    /// Lease id → `LeaseRecord`.
    Lease = 2,
    /// Member id → `MemberRecord`.
    Members = 3,
    /// Ids of removed members → nothing.
    MembersRemoved = 4,
    /// Alarm kind and member → nothing.
    Alarm = 5,
    /// Applied index, revision and the like; see `schema`.
    Meta = 6,
    /// User name → `authpb.User`.
    Users = 7,
    /// Role name → `authpb.Role`.
    Roles = 8,
}

impl Bucket {
    /// All of them, in the order in which a snapshot carries them.
    pub const ALL: [Bucket; 8] = [
        Bucket::Key,
        Bucket::Lease,
        Bucket::Members,
        Bucket::MembersRemoved,
        Bucket::Alarm,
        Bucket::Meta,
        Bucket::Users,
        Bucket::Roles,
    ];

    /// Where it stands in [`Bucket::ALL`].
    const fn place(self) -> usize {
        self as usize - 1
    }

    /// The bucket of a number from a snapshot stream, if there is one.
    pub fn from_number(number: u32) -> Option<Bucket> {
        Bucket::ALL.into_iter().find(|bucket| *bucket as u32 == number)
    }
}

/// One atomic write: rows to set and rows to remove, in order.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `None` removes the row.
    pub rows: Vec<(Bucket, Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets a row.
    pub fn put(&mut self, bucket: Bucket, key: Bytes, value: Bytes) {
        self.rows.push((bucket, key, Some(value)));
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, bucket: Bucket, key: Bytes) {
        self.rows.push((bucket, key, None));
    }

    /// Appends what another batch does after this one.
    pub fn append(&mut self, mut other: Batch) {
        self.rows.append(&mut other.rows);
    }

    /// Whether it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// An ordered store of rows.
pub trait Backend: Send + Sync {
    /// A consistent view of everything committed so far. It stays as it is while later commits happen.
    fn reader(&self) -> Result<Arc<dyn Reader>>;

    /// Makes the batch visible to later readers and durable, or fails and leaves what was there.
    fn commit(&self, batch: &Batch) -> Result<()>;

    /// Bytes the store occupies on disk. Cheap.
    fn size(&self) -> u64;

    /// Bytes of those that hold rows: the lengths of all keys and values. Cheap.
    fn size_in_use(&self) -> u64;
}

/// The store as one commit left it.
pub trait Reader: Send + Sync {
    /// Visits all rows of a bucket in key order until `visit` returns false. Where reading takes long, what comes next is read while
    /// rows are visited.
    fn scan_all(&self, bucket: Bucket, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        self.scan(bucket, &[], None, visit)
    }

    /// One row.
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>>;

    /// Visits rows with `from <= key` (and `key < to`, when given) in key order until `visit` returns false.
    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()>;
}

#[cfg(test)]
mod tests;
