//! Our rows to a file of etcd's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Error, HASH_BYTES, STORAGE_VERSION, rows};
use crate::cluster::Version;
use crate::mvcc::revision::RevisionKey;
use crate::storage::backend::{Bucket, Reader};
use crate::storage::bolt::{Layout, Writer};
use crate::storage::{self, schema};

/// A backup of what a reader sees, about to be written.
pub struct Backup<'a> {
    reader: &'a dyn Reader,
    layout: Layout,
}

impl<'a> Backup<'a> {
    /// Finds out how large it will be: goes through all rows.
    pub fn new(reader: &'a dyn Reader) -> Result<Backup<'a>, Error> {
        let (_, layout) = write_rows(reader, io::sink())?;
        Ok(Backup { reader, layout })
    }

    /// Bytes of it, the hash at its end included.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes() + HASH_BYTES as u64
    }

    /// Writes it.
    pub fn write(&self, out: impl Write) -> Result<(), Error> {
        let mut out = Hashing { out, hash: Sha256::new() };
        out.write_all(&self.layout.head())?;
        let (Hashing { mut out, hash }, layout) = write_rows(self.reader, out)?;
        assert_eq!(layout, self.layout, "a reader sees the same rows twice");
        out.write_all(&hash.finalize())?;
        Ok(out.flush()?)
    }
}

/// Hashes what passes.
struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_rows<W: Write>(reader: &dyn Reader, out: W) -> Result<(W, Layout), Error> {
    let mut file = Writer::new(out)?;
    auth(reader, &mut file)?;
    alarms(reader, &mut file)?;
    cluster(reader, &mut file)?;
    keys(reader, &mut file)?;
    leases(reader, &mut file)?;
    members(reader, &mut file)?;
    meta(reader, &mut file)?;
    Ok(file.finish()?)
}

/// Users and roles are the same rows in etcd.
fn auth<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    let enabled = reader.get(Bucket::Meta, schema::AUTH_ENABLED)?.is_some();
    let revision = reader.get(Bucket::Meta, schema::AUTH_REVISION)?;
    file.bucket("auth")?;
    file.row(b"authEnabled", &[u8::from(enabled)])?;
    file.row(b"authRevision", &revision.unwrap_or_else(|| schema::u64_row(1)))?;
    for (name, bucket) in [("authRoles", Bucket::Roles), ("authUsers", Bucket::Users)] {
        file.bucket(name)?;
        each(reader, bucket, |key, value| Ok(file.row(key, value)?))?;
    }
    Ok(())
}

fn keys<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    file.bucket("key")?;
    each(reader, Bucket::Key, |key, value| {
        let (place, tombstone) = RevisionKey::from_row(key).ok_or_else(|| unreadable("a change"))?;
        Ok(file.row(&rows::revision_to_etcd(place, tombstone), value)?)
    })
}

fn leases<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    file.bucket("lease")?;
    each(reader, Bucket::Lease, |key, value| {
        let value = rows::lease_to_etcd(value).ok_or_else(|| unreadable("a lease"))?;
        Ok(file.row(key, &value)?)
    })
}

fn alarms<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    let mut keys = BTreeSet::new();
    each(reader, Bucket::Alarm, |key, _| {
        keys.insert(rows::alarm_to_etcd(key).ok_or_else(|| unreadable("an alarm"))?);
        Ok(())
    })?;
    file.bucket("alarm")?;
    Ok(keys.iter().try_for_each(|key| file.row(key, &[]))?)
}

fn members<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    let (mut members, mut removed) = (BTreeMap::new(), BTreeSet::new());
    each(reader, Bucket::Members, |_, value| {
        let (key, value) = rows::member_to_etcd(value).ok_or_else(|| unreadable("a member"))?;
        members.insert(key, value);
        Ok(())
    })?;
    each(reader, Bucket::MembersRemoved, |key, _| {
        removed.insert(rows::member_key(schema::read_u64(key).ok_or_else(|| unreadable("a removed member"))?));
        Ok(())
    })?;
    file.bucket("members")?;
    members.iter().try_for_each(|(key, value)| file.row(key.as_bytes(), value))?;
    file.bucket("members_removed")?;
    Ok(removed.iter().try_for_each(|key| file.row(key.as_bytes(), b"removed"))?)
}

/// The cluster version is not above that of the layout: an etcd of that version would take it for a downgrade. Whoever is restored
/// finds out anew what all its members speak.
fn cluster<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    file.bucket("cluster")?;
    let Some(row) = reader.get(Bucket::Meta, schema::CLUSTER_VERSION)? else { return Ok(()) };
    let parse = |text: &str| text.parse::<Version>().ok();
    let version = str::from_utf8(&row).ok().and_then(parse).ok_or_else(|| unreadable("the cluster version"))?;
    let layout = parse(STORAGE_VERSION).expect("it is a version");
    Ok(file.row(b"clusterVersion", version.min(layout).to_string().as_bytes())?)
}

fn meta<W: Write>(reader: &dyn Reader, file: &mut Writer<W>) -> Result<(), Error> {
    let get = |name: &'static [u8]| reader.get(Bucket::Meta, name);
    let revision = |name| -> Result<Option<Vec<u8>>, Error> {
        let Some(row) = get(name)? else { return Ok(None) };
        let main = schema::read_u64(&row).ok_or_else(|| unreadable("a revision"))? as i64;
        Ok(Some(rows::revision_to_etcd(RevisionKey { main, sub: 0 }, false)))
    };
    let conf_state = get(schema::CONF_STATE)?.unwrap_or_default();
    let rows: [(&str, Option<Vec<u8>>); 5] = [
        ("confState", Some(rows::conf_state_to_etcd(&conf_state).ok_or_else(|| unreadable("raft's configuration"))?)),
        ("consistent_index", get(schema::APPLIED_INDEX)?.map(Bytes::into)),
        ("finishedCompactRev", revision(schema::COMPACTION_DONE)?),
        ("scheduledCompactRev", revision(schema::COMPACTED)?),
        ("term", get(schema::APPLIED_TERM)?.map(Bytes::into)),
    ];
    file.bucket("meta")?;
    for (name, value) in rows {
        if let Some(value) = value {
            file.row(name.as_bytes(), &value)?;
        }
    }
    Ok(())
}

/// Visits all rows of a bucket, until one fails.
fn each(
    reader: &dyn Reader,
    bucket: Bucket,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut outcome = Ok(());
    reader.scan(bucket, &[], None, &mut |key, value| {
        outcome = visit(key, value);
        outcome.is_ok()
    })?;
    outcome
}

fn unreadable(what: &str) -> Error {
    Error::Storage(storage::Error::Engine(format!("the row of {what} cannot be read")))
}
