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
use crate::storage::backend::disk::{CACHE_BYTES, DiskBackend};
use crate::storage::backend::{Backend, Batch, Bucket};
use crate::storage::datadir::DataDir;
use crate::storage::disk::RealDisk;
use crate::storage::seal::{self, Keys};
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
    /// The keys that the directory is sealed with, if it is to be.
    pub encryption_key_file: Option<PathBuf>,
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
    let keys = plan.encryption_key_file.as_deref().map(Keys::read).transpose()?;
    let made = make(plan, keys.as_ref(), &founders, source, after, took);
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
    keys: Option<&Keys>,
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
    let (mut wal, mut log) = Wal::open(seal::disk(Arc::new(RealDisk), keys), wal_dir, options)?;
    bootstrap::begin_log(&mut wal, &mut log, FOUNDING.index)?;
    drop(wal);

    let mut state = SnapshotWriter::create(data_dir.member(), FOUNDING.index, keys)?;
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
        carry_out(after, &made, keys, &mut content)?;
    }
    let keys = verify(&made, keys)?;
    snapshot::adopt(data_dir.member(), FOUNDING.index)?;
    Ok(Restored { cluster: identity.cluster, member, content, keys })
}

/// Carries out what comes after the file, and finishes the founding entry.
fn carry_out(commands: &[Command], state: &Path, keys: Option<&Keys>, content: &mut Content) -> storage::Result<()> {
    let backend = DiskBackend::open_with(state, keys, CACHE_BYTES)?;
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
fn verify(state: &Path, keys: Option<&Keys>) -> storage::Result<usize> {
    let backend = DiskBackend::open_with(state, keys, CACHE_BYTES)?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pb::etcdserverpb::alarm_request::AlarmAction;
    use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, LeaseGrantRequest, LeaseRevokeRequest, PutRequest};
    use crate::pb::everwatchpb::command::Kind;
    use crate::types::LeaseId;

    /// Revision 10, compacted at 5, with an alarm for this member; see `tests/backup.rs`.
    const OF_ETCD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd-3.5.1.db");
    const ALARMED: u64 = 3319814642761637952;

    fn put(key: String, lease: i64) -> Kind {
        // What was put before is read again, from memory and from disk.
        Kind::Put(PutRequest {
            key: key.into(),
            value: vec![b'x'; 400].into(),
            lease,
            prev_kv: true,
            ..Default::default()
        })
    }

    #[test]
    fn what_comes_after_the_file_is_carried_out_however_much_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("keys");
        std::fs::write(&key_file, "4b".repeat(32)).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let plan = Plan {
            data_dir: dir.path().join("d"),
            wal_dir: None,
            encryption_key_file: Some(key_file.clone()),
            name: "a".to_owned(),
            initial_cluster: "a=http://127.0.0.1:1".to_owned(),
            initial_cluster_token: "t".to_owned(),
            initial_advertise_peer_urls: vec!["http://127.0.0.1:1".to_owned()],
            bump_revision: 0,
        };
        let action = AlarmAction::Deactivate as i32;
        let disarm = AlarmRequest { action, member_id: ALARMED, alarm: AlarmType::Nospace as i32 };
        let mut kinds = vec![put("refused".to_owned(), 0), Kind::Alarm(disarm)];
        kinds.extend((0..COMMITTED_ROWS + 10).map(|n| put(format!("after/{}", n % 100), 0)));
        kinds.push(Kind::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 60 }));
        kinds.push(put("leased".to_owned(), 7));
        kinds.push(Kind::LeaseRevoke(LeaseRevokeRequest { id: 7 }));
        kinds.push(Kind::LeaseGrant(LeaseGrantRequest { id: 8, ttl: 60 }));
        let after: Vec<_> = kinds.into_iter().map(|kind| Command { kind: Some(kind), ..Command::default() }).collect();
        let mut source = Source::open(Path::new(OF_ETCD), false).unwrap();
        let raised = Plan { bump_revision: 1, ..plan.clone() };
        let refusal = restore(&raised, &mut source, &after, &mut |_| {}).unwrap_err();
        assert!(refusal.to_string().contains("before all changes are made"), "{refusal}");

        let restored = restore(&plan, &mut source, &after, &mut |_| {}).unwrap();
        let puts = COMMITTED_ROWS as i64 + 10;
        assert_eq!((restored.content.revision, restored.content.compacted), (Revision(10 + puts + 2), Revision(5)));
        assert_eq!((restored.content.alarms, restored.content.leases), (0, 3));
        let keys = Keys::read(&key_file).unwrap();
        let made = plan.data_dir.join("member/state.redb");
        let backend = DiskBackend::open_with(made, Some(&keys), CACHE_BYTES).unwrap();
        let state = StateMachine::open(backend.reader().unwrap()).unwrap();
        assert_eq!((state.applied(), state.kv.revision()), (FOUNDING.index, restored.content.revision));
        // It may run out as soon as anything does.
        assert!(state.leases.existed(LeaseId(8), FOUNDING.index) && !state.leases.exists(LeaseId(7)));
        assert_eq!(state.kv.keys_total(), restored.keys);
    }
}
