//! From a file of etcd's to a data directory: a member of a new cluster that begins with what the file holds.
//!
//! Every member of the cluster is made from the same file, with the same list of members and token, and its own name. So each begins as
//! a founder does, at the entry that founded the cluster, but with keys.
//!
//! What a stopped etcd had in its log only is carried out after that by a state machine, as one more part of the founding entry: the log
//! of the new cluster begins behind it, and leases count as granted by it.
//!
//! The log is begun first and the state gets its name last: a directory that was left half made is refused at start, rather than taken
//! for one in which nothing has happened. Whatever fails before takes the directory away again.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::bootstrap::{self, FOUNDING, Identity};
use crate::backup::{self, etcd_commands, read::Content, read::Source};
use crate::cluster::{InitialCluster, initial};
use crate::pb::everwatchpb::{Command, ConfState};
use crate::state::StateMachine;
use crate::storage::backend::disk::DiskBackend;
use crate::storage::backend::{Backend, Batch, Bucket};
use crate::storage::datadir::DataDir;
use crate::storage::disk::RealDisk;
use crate::storage::snapshot::{self, SnapshotWriter};
use crate::storage::wal::{Wal, WalOptions};
use crate::storage::{self, schema};
use crate::types::{ClusterId, MemberId, Revision};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The directory, empty or not there.
    pub data_dir: PathBuf,
    /// The log's, if not inside it; the same goes for it.
    pub wal_dir: Option<PathBuf>,
    /// The member.
    pub name: String,
    /// All members, as in the flag.
    pub initial_cluster: String,
    /// What goes into their ids.
    pub initial_cluster_token: String,
    /// Where the others reach this one.
    pub initial_advertise_peer_urls: Vec<String>,
    /// How much the revision is raised, and everything up to there compacted: watches and caches of the old cluster's clients end
    /// rather than go on with another history.
    pub bump_revision: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member.
    pub member: MemberId,
    /// What it begins with.
    pub content: Content,
    /// Keys that exist.
    pub keys: usize,
}

/// Why nothing was made.
#[derive(Debug)]
pub enum Error {
    /// The file.
    Backup(backup::Error),
    /// The new member.
    Member(bootstrap::Error),
    /// Anything else; the text is for the operator.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Backup(error) => error.fmt(f),
            Error::Member(error) => error.fmt(f),
            Error::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<bootstrap::Error> for Error {
    fn from(error: bootstrap::Error) -> Error {
        Error::Member(error)
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Member(error.into())
    }
}

impl From<initial::Error> for Error {
    fn from(error: initial::Error) -> Error {
        Error::Member(error.into())
    }
}

impl From<backup::Error> for Error {
    fn from(error: backup::Error) -> Error {
        Error::Backup(error)
    }
}

// Commands about the rest of leases name the entry that they are part of.
const _: () = assert!(FOUNDING.index.0 == etcd_commands::FOUNDING.0 && FOUNDING.term.0 == etcd_commands::FOUNDING.1);

/// Rows that are committed at once while commands are carried out. More cost memory, fewer time.
const COMMITTED_ROWS: usize = 50_000;

/// Makes the directory: from the file, and what is to be carried out after it. `took` hears again and again how many bytes of rows it has.
pub fn restore(
    plan: &Plan,
    source: &mut Source,
    after: &[Command],
    took: &mut dyn FnMut(u64),
) -> Result<Restored, Error> {
    let founders = InitialCluster::parse(&plan.initial_cluster)?;
    founders.check(&plan.name, &plan.initial_advertise_peer_urls)?;
    require_vacant("data-dir", &plan.data_dir)?;
    if let Some(dir) = &plan.wal_dir {
        require_vacant("wal-dir", dir)?;
    }
    let made = make(plan, &founders, source, after, took);
    if made.is_err() {
        // Nothing else was in there. What cannot be removed is no reason to say less about why.
        let _ = std::fs::remove_dir_all(plan.data_dir.join("member"));
        if let Some(dir) = &plan.wal_dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
    made
}

fn make(
    plan: &Plan,
    founders: &InitialCluster,
    source: &mut Source,
    after: &[Command],
    took: &mut dyn FnMut(u64),
) -> Result<Restored, Error> {
    if plan.bump_revision > 0 && !after.is_empty() {
        return Err(Error::Refused("the revision cannot be raised before all changes are made".to_owned()));
    }
    let token = &plan.initial_cluster_token;
    let member = founders.member_id(&plan.name, token).expect("the check found this member in the list");
    let identity = Identity { cluster: founders.cluster_id(token), member };
    let data_dir = DataDir::open(&plan.data_dir)?;
    let wal_dir = plan.wal_dir.clone().unwrap_or_else(|| data_dir.wal());
    let options = WalOptions::new(identity.cluster, identity.member);
    let (mut wal, mut log) = Wal::open(Arc::new(RealDisk), wal_dir, options)?;
    bootstrap::begin_log(&mut wal, &mut log, FOUNDING.index)?;
    drop(wal);

    let mut state = SnapshotWriter::create(data_dir.member(), FOUNDING.index)?;
    let mut bytes = 0;
    let mut content = source.read(FOUNDING.index.0, &mut |bucket, key, value| {
        bytes += (key.len() + value.len()) as u64;
        took(bytes);
        state.row(bucket, key, value)
    })?;
    if plan.bump_revision > 0 {
        let bumped = i64::try_from(plan.bump_revision).ok().and_then(|by| content.revision.0.checked_add(by));
        let bumped = bumped.filter(|revision| *revision < i64::MAX);
        content.revision = Revision(bumped.ok_or_else(|| {
            Error::Refused(format!("revision {} cannot be raised by {}", content.revision, plan.bump_revision))
        })?);
        content.compacted = content.revision;
    }

    let records = founders.records(token);
    let conf_state = ConfState { voters: records.iter().map(|record| record.id).collect(), ..Default::default() };
    let mut rows = StateMachine::founding_rows(&records, &conf_state);
    rows.append(identity.rows());
    for (name, revision) in [
        (schema::REVISION, content.revision),
        (schema::COMPACTED, content.compacted),
        (schema::COMPACTION_DONE, content.compaction_done),
    ] {
        if revision > Revision(0) {
            rows.put(Bucket::Meta, Bytes::from_static(name), schema::u64_row(revision.0 as u64));
        }
    }
    if !after.is_empty() {
        // The entry is not finished yet.
        for name in [schema::APPLIED_INDEX, schema::APPLIED_TERM] {
            rows.put(Bucket::Meta, Bytes::from_static(name), schema::u64_row(0));
        }
    }
    for (bucket, key, value) in rows.rows {
        state.row(bucket, key, value.expect("nothing is removed from what is new"))?;
    }
    let made = state.finish()?;
    if !after.is_empty() {
        carry_out(after, &made, &mut content)?;
    }
    let keys = verify(&made)?;
    snapshot::adopt(data_dir.member(), FOUNDING.index)?;
    Ok(Restored { cluster: identity.cluster, member, content, keys })
}

/// Carries out what comes after the file, and finishes the founding entry.
fn carry_out(commands: &[Command], state: &Path, content: &mut Content) -> storage::Result<()> {
    let backend = DiskBackend::open(state)?;
    let mut state = StateMachine::open(backend.reader()?)?;
    let mut batch = Batch::default();
    for command in commands {
        // What is refused was refused there, too.
        let applied = state.apply(FOUNDING.index, FOUNDING.term, command, &mut batch)?;
        content.changes += applied.changes.iter().map(|set| set.changes.len() as u64).sum::<u64>();
        if batch.rows.len() >= COMMITTED_ROWS {
            state.kv.meta_rows(&mut batch);
            backend.commit(&std::mem::take(&mut batch))?;
            state.kv.flushed(backend.reader()?)?;
        }
    }
    state.finish_entry(FOUNDING.index, FOUNDING.term, &mut batch);
    backend.commit(&batch)?;
    (content.revision, content.compacted) = (state.kv.revision(), state.kv.compacted());
    content.leases = state.leases.len() as u64;
    content.alarms = state.alarms.iter().count() as u64;
    content.users = state.auth.users().count() as u64;
    content.roles = state.auth.roles().count() as u64;
    Ok(())
}

/// Opens the state as a member would. What it contains makes sense, then; how many keys there are.
fn verify(state: &Path) -> storage::Result<usize> {
    let backend = DiskBackend::open(state)?;
    Ok(StateMachine::open(backend.reader()?)?.kv.keys_total())
}

fn require_vacant(flag: &str, dir: &Path) -> Result<(), Error> {
    let vacant = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    // etcdutl's words.
    if vacant { Ok(()) } else { Err(Error::Refused(format!("{flag} {dir:?} not empty or could not be read"))) }
}
