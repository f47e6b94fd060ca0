//! A file of etcd's to our rows.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Error, HASH_BYTES, rows};
use crate::mvcc::revision::RevisionKey;
use crate::storage::backend::Bucket;
use crate::storage::{self, bolt, schema};
use crate::types::Revision;

/// A file of etcd's: a snapshot, or the one that a stopped member has.
pub struct Source {
    pub(super) file: bolt::Reader<File>,
}

/// What a file was found to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The newest revision.
    pub revision: Revision,
    /// The compacted one; -1: none.
    pub compacted: Revision,
    /// The compaction whose rows have been removed; -1: none.
    pub compaction_done: Revision,
    /// Changes, tombstones included.
    pub changes: u64,
    /// Leases.
    pub leases: u64,
    /// Alarms raised.
    pub alarms: u64,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
}

/// Takes a row of ours.
pub type Take<'a> = dyn FnMut(Bucket, Bytes, Bytes) -> storage::Result<()> + 'a;

/// Looks at a row of etcd's. `None`: it is not one that etcd writes.
type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Option<storage::Result<()>> + 'a;

impl Source {
    /// Opens a file. Without `unchecked` it has to end with the hash of everything before. Texts as etcdutl has them.
    pub fn open(path: &Path, unchecked: bool) -> Result<Source, Error> {
        let mut file = File::open(path)?;
        if !unchecked {
            check_hash(&mut file)?;
        }
        Ok(Source { file: bolt::Reader::open(file)? })
    }

    /// Bytes of the file's pages.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// Gives all rows of ours that a new cluster can begin with to `take`. Leases count as granted by the entry `granted`.
    pub fn read(&mut self, granted: u64, take: &mut Take<'_>) -> Result<Content, Error> {
        if !self.file.buckets().contains_key(&b"key"[..]) {
            return Err(Error::Refused("this is not a file of etcd: it has no bucket \"key\"".to_owned()));
        }
        let none = Revision(-1);
        let mut content = Content { compacted: none, compaction_done: none, ..Content::default() };
        let mut newest = Revision::FIRST;
        self.each("key", &mut |key, value| {
            let (place, tombstone) = rows::revision_from_etcd(key)?;
            newest = newest.max(place.revision());
            content.changes += 1;
            Some(take(Bucket::Key, place.row(tombstone), Bytes::copy_from_slice(value)))
        })?;
        self.each("lease", &mut |key, value| {
            content.leases += 1;
            let row = rows::lease_from_etcd(key, value, granted)?;
            Some(take(Bucket::Lease, Bytes::copy_from_slice(key), row))
        })?;
        self.each("alarm", &mut |key, _| {
            content.alarms += 1;
            Some(take(Bucket::Alarm, rows::alarm_from_etcd(key)?, Bytes::new()))
        })?;
        self.each("meta", &mut |key, value| {
            let revision = match key {
                b"scheduledCompactRev" => &mut content.compacted,
                b"finishedCompactRev" => &mut content.compaction_done,
                _ => return Some(Ok(())),
            };
            let (RevisionKey { main, .. }, _) = rows::revision_from_etcd(value)?;
            *revision = Revision(main);
            Some(Ok(()))
        })?;
        self.read_auth(&mut content, take)?;
        // Older versions of etcd have files in which only one of them is there.
        content.compacted = content.compacted.max(content.compaction_done);
        // What was compacted may be all there was.
        content.revision = newest.max(content.compacted);
        Ok(content)
    }

    /// The last entry that is in the file, of a member's log; 0: none.
    pub fn consistent_index(&mut self) -> Result<u64, Error> {
        let mut index = 0;
        self.each("meta", &mut |key, value| {
            if key == b"consistent_index" {
                index = u64::from_be_bytes(value.try_into().ok()?);
            }
            Some(Ok(()))
        })?;
        Ok(index)
    }

    /// Whose votes decide there, as far as the file says: who is one by either of its two lists.
    pub fn voters(&mut self) -> Result<BTreeSet<u64>, Error> {
        let mut voters = BTreeSet::new();
        self.each("members", &mut |key, value| {
            voters.extend(rows::voter_from_etcd(key, value)?);
            Some(Ok(()))
        })?;
        self.each("meta", &mut |key, value| {
            if key == b"confState" {
                voters.extend(rows::voters_from_etcd(value)?);
            }
            Some(Ok(()))
        })?;
        Ok(voters)
    }

    /// Users and roles are the same rows here.
    fn read_auth(&mut self, content: &mut Content, take: &mut Take<'_>) -> Result<(), Error> {
        for (bucket, ours, count) in
            [("authUsers", Bucket::Users, &mut content.users), ("authRoles", Bucket::Roles, &mut content.roles)]
        {
            self.each(bucket, &mut |key, value| {
                *count += 1;
                Some(take(ours, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)))
            })?;
        }
        self.each("auth", &mut |key, value| match key {
            b"authEnabled" if value == [1] => {
                Some(take(Bucket::Meta, Bytes::from_static(schema::AUTH_ENABLED), Bytes::new()))
            }
            b"authRevision" => {
                let revision = schema::read_u64(value)?;
                Some(take(Bucket::Meta, Bytes::from_static(schema::AUTH_REVISION), schema::u64_row(revision)))
            }
            _ => Some(Ok(())),
        })
    }

    /// Visits all rows of a bucket, until one is refused.
    fn each(&mut self, bucket: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
        let mut outcome = Ok(());
        self.file.scan(bucket, &mut |key, value| {
            outcome = match visit(key, value) {
                Some(taken) => taken.map_err(Error::Storage),
                None => {
                    let key = key.escape_ascii();
                    Err(Error::Refused(format!("the row {key} of the bucket {bucket:?} is none that etcd writes")))
                }
            };
            outcome.is_ok()
        })?;
        outcome
    }
}

/// Whether the file ends with the hash of everything before.
fn check_hash(file: &mut File) -> Result<(), Error> {
    let bytes = file.seek(SeekFrom::End(0))?;
    // A file of bbolt has whole sectors.
    if bytes % 512 != HASH_BYTES as u64 {
        return Err(Error::Refused("snapshot missing hash but --skip-hash-check=false".to_owned()));
    }
    file.rewind()?;
    let (mut hash, mut left) = (Sha256::new(), bytes - HASH_BYTES as u64);
    let mut portion = vec![0; 1 << 20];
    while left > 0 {
        let wanted = portion.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut portion[..wanted])?;
        hash.update(&portion[..wanted]);
        left -= wanted as u64;
    }
    let mut expected = [0; HASH_BYTES];
    file.read_exact(&mut expected)?;
    let found = hash.finalize();
    if found[..] != expected {
        return Err(Error::Refused(format!("expected sha256 {expected:?}, got {:?}", &found[..])));
    }
    Ok(())
}
