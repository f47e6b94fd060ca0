//! From flags and a data directory to a node and a state: a member that founds its cluster, or one that comes back.
//!
//! The backend is the state at some applied index; the log has everything after that. A founding member writes the backend's
//! first rows, then the log's base; found half done, founding starts over, for nothing can have been acknowledged.
//!
//! A member without data starts only as what the others admit it to ([`Admission`]): one that lost its directory would vote as if
//! it had never voted, and answer for entries that it no longer has. `founding` asks them. One that joins a running
//! cluster begins with nothing but the members' addresses, the state at index 0, and a blank configuration: the leader
//! sends it a snapshot, for no log starts before the founding.
//!
//! A received snapshot is adopted in three steps, each durable before the next: the file is complete, the log says that it starts
//! after the snapshot, the file takes the backend's name. The log's word decides: a file that the log does not mention is
//! thrown away, one that it does mention is adopted now if the crash came before.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use slog::{Logger, info, warn};

use super::alone;
use super::disk_threads::adopt;
use super::raft_loop::from_log;
use crate::cluster::initial::Error as InitialClusterError;
use crate::cluster::{InitialCluster, membership};
use crate::config::Config;
use crate::pb::everwatchpb::{self, MemberRecord};
use crate::raft::{self, ConfState, LogStart, Node, NodeConfig, SnapshotPoint};
use crate::state::StateMachine;
use crate::storage::backend::disk::DiskBackend;
use crate::storage::backend::{Backend, Batch, Bucket, Reader};
use crate::storage::datadir::DataDir;
use crate::storage::disk::{Disk, RealDisk};
use crate::storage::seal::{self, Keys};
use crate::storage::wal::{Append, Base, HardState, Replayed, Wal, WalOptions};
use crate::storage::{self, schema, snapshot};
use crate::types::{ClusterId, Index, MemberId, Term};

/// Why a member does not start.
#[derive(Debug)]
pub enum Error {
    /// Its disk, or what is on it.
    Storage(storage::Error),
    /// Its log and its state do not fit together.
    Raft(raft::Error),
    /// What it was told about the cluster it shall found.
    Cluster(InitialClusterError),
    /// Anything else; the text is for the operator.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Storage(error) => error.fmt(f),
            Error::Raft(error) => error.fmt(f),
            Error::Cluster(error) => error.fmt(f),
            Error::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}

impl From<InitialClusterError> for Error {
    fn from(error: InitialClusterError) -> Error {
        Error::Cluster(error)
    }
}

/// A member, ready to run.
pub(crate) struct Member {
    pub(crate) cluster: ClusterId,
    pub(crate) id: MemberId,
    pub(crate) data_dir: DataDir,
    /// What it is sealed with, if it is.
    pub(crate) keys: Option<Keys>,
    pub(crate) wal: Wal,
    pub(crate) backend: DiskBackend,
    /// The rows that say whose this directory is.
    pub(crate) identity: Batch,
    pub(crate) state: StateMachine,
    pub(crate) node: Node,
    /// The last entry known to be committed when this member stopped.
    pub(crate) committed: Index,
}

/// Who a member is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) cluster: ClusterId,
    pub(super) member: MemberId,
}

impl Identity {
    pub(super) fn rows(self) -> Batch {
        let mut row = Vec::with_capacity(16);
        row.extend(self.cluster.0.to_be_bytes());
        row.extend(self.member.0.to_be_bytes());
        let mut batch = Batch::default();
        batch.put(Bucket::Meta, Bytes::from_static(schema::IDENTITY), row.into());
        batch
    }

    fn read(reader: &dyn Reader) -> storage::Result<Option<Identity>> {
        let Some(row) = reader.get(Bucket::Meta, schema::IDENTITY)? else { return Ok(None) };
        let number = |part: Option<&[u8]>| part.and_then(schema::read_u64);
        match (number(row.get(..8)), number(row.get(8..))) {
            (Some(cluster), Some(member)) => {
                Ok(Some(Identity { cluster: ClusterId(cluster), member: MemberId(member) }))
            }
            _ => Err(storage::Error::Engine("the row that says whose data this is cannot be read".into())),
        }
    }
}

/// Where a new cluster's log starts: as if an entry at index 1 had established the founding members.
pub const FOUNDING: Base = Base { index: Index(1), term: Term(1) };

/// What a member may start as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// What its data says.
    Resident,
    /// One of those who found the cluster, if it has no data.
    Founder,
    /// The member of a running cluster that was added for it, if it has no data.
    Joiner {
        /// The cluster.
        cluster: ClusterId,
        /// Its id there.
        member: MemberId,
        /// All members, so that it can talk to them before it knows anything.
        table: Vec<MemberRecord>,
    },
}

/// What the directory is sealed with, if anything.
fn keys(config: &Config) -> Result<Option<Keys>, Error> {
    Ok(config.encryption_key_file.as_deref().map(Keys::read).transpose()?)
}

/// Whether the directory says what this member is.
pub(crate) fn has_data(config: &Config) -> Result<bool, Error> {
    // Read in any case: what is wrong with the file is said before anybody is asked anything.
    let keys = keys(config)?;
    if has_log(&wal_dir(config)) {
        return Ok(true);
    }
    Ok(DataDir::is_founded(&config.data_dir) && holds_data(&DataDir::open(&config.data_dir)?, keys.as_ref(), config)?)
}

/// Data that was begun and not finished is none: nothing had come of it. Data that lost one of its halves later is, for [`open`] to
/// refuse it.
fn holds_data(data_dir: &DataDir, keys: Option<&Keys>, config: &Config) -> Result<bool, Error> {
    if has_log(&wal_dir(config)) {
        return Ok(true);
    }
    if !DataDir::is_founded(&config.data_dir) {
        return Ok(false);
    }
    let backend = DiskBackend::open_with(data_dir.state(), keys, config.backend_cache_bytes)?;
    let applied = applied_index(&*backend.reader()?)?;
    Ok(applied.is_some_and(|applied| applied > FOUNDING.index))
}

/// Opens the member that `config` describes, or begins it as what it was admitted to. `boot` is drawn by the caller, new at every
/// start.
pub(crate) fn open(config: &Config, admission: &Admission, boot: u64, logger: &Logger) -> Result<Member, Error> {
    let data_dir = DataDir::open(&config.data_dir)?;
    // As etcd: where a whole volume is given to a member, its root is seldom made for it alone.
    for (path, mode) in data_dir.exposed(&config.data_dir)? {
        warn!(logger, "others than this user may look into the data directory";
            "path" => %path.display(), "mode" => format!("{mode:04o}"), "recommended" => "0700");
    }
    let dir = data_dir.member().to_owned();
    let wal_dir = wal_dir(config);
    let keys = keys(config)?;
    let keys = keys.as_ref();
    let rotated = seal::admit(&[&dir, &wal_dir], keys)?;
    if rotated > 0 {
        info!(logger, "the first key of the file seals what others had sealed; none of them is needed any more";
            "files" => rotated);
    }
    snapshot::discard_unfinished(&dir)?;

    let begin = !holds_data(&data_dir, keys, config)?;
    if begin && *admission != Admission::Resident && DataDir::is_founded(&config.data_dir) {
        let path = data_dir.state();
        RealDisk.remove(&path).map_err(|source| storage::Error::Io { doing: "removing", path, source })?;
    }
    let cache_bytes = config.backend_cache_bytes;
    let mut backend = DiskBackend::open_with(data_dir.state(), keys, cache_bytes)?;
    let identity = match Identity::read(&*backend.reader()?)? {
        _ if begin => begin_backend(config, admission, &backend)?,
        Some(identity) => identity,
        // The backend is begun before the log is.
        None => return Err(Error::Refused("there is a raft log but the state that belongs to it is gone".into())),
    };
    let mut options = WalOptions::new(identity.cluster, identity.member);
    options.segment_bytes = config.wal_segment_bytes.unwrap_or(options.segment_bytes);
    // At the same time: both take long where there is much.
    let reader = backend.reader()?;
    let (opened, state) = std::thread::scope(|scope| {
        let state = std::thread::Builder::new().name("open".into()).spawn_scoped(scope, || StateMachine::open(reader));
        let opened = Wal::open(seal::disk(Arc::new(RealDisk), keys), wal_dir, options);
        (opened, state.map(|state| state.join().expect("no rows make it panic")))
    });
    let (mut wal, mut log) = opened?;
    let mut state = state.map_err(|error| Error::Refused(format!("no thread to open the state with: {error}")))?;
    let applied = applied_index(&*backend.reader()?)?.unwrap_or(Index(0));
    begin_log(&mut wal, &mut log, applied)?;

    for (index, path) in snapshot::pending(&dir)? {
        if index == log.base.index && index > applied {
            info!(logger, "adopting a snapshot that arrived before the last stop"; "index" => index.0);
            // Whatever the one before looked like.
            drop((state, backend));
            backend = adopt(&dir, keys, index, &identity.rows(), cache_bytes)?;
            state = StateMachine::open(backend.reader()?);
        } else {
            info!(logger, "removing a snapshot that was not adopted"; "path" => %path.display());
            snapshot::discard(&dir, index)?;
        }
    }

    let state = state?;
    if config.force_new_cluster && !begin {
        alone::leave_others(&mut wal, &mut log, &state, identity.member, logger)?;
    }
    let committed = log.hard_state.map_or(Index(0), |state| state.commit).max(state.applied());
    let node = start_node(config, identity.member, boot, &state, log, logger)?;
    info!(logger, "opened the data directory";
        "cluster-id" => %identity.cluster, "member-id" => %identity.member, "applied-index" => state.applied().0,
        "revision" => state.kv.revision().0, "keys" => state.kv.keys_total(), "encrypted" => keys.is_some());
    Ok(Member {
        cluster: identity.cluster,
        id: identity.member,
        data_dir,
        keys: keys.cloned(),
        wal,
        backend,
        identity: identity.rows(),
        state,
        node,
        committed,
    })
}

/// The first rows of a member: who it is, and what it can know of its cluster.
fn begin_backend(config: &Config, admission: &Admission, backend: &DiskBackend) -> Result<Identity, Error> {
    let (identity, mut rows) = match admission {
        Admission::Resident => return Err(Error::Refused("there is no data here".into())),
        Admission::Founder => {
            let founders = InitialCluster::parse(&config.initial_cluster)?;
            let own_urls: Vec<String> = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
            founders.check(&config.name, &own_urls)?;
            let token = &config.initial_cluster_token;
            let member = founders.member_id(&config.name, token).expect("the check found this member in the list");
            let records = founders.records(token);
            let voters = records.iter().map(|record| record.id).collect();
            let conf_state = everwatchpb::ConfState { voters, ..Default::default() };
            let identity = Identity { cluster: founders.cluster_id(token), member };
            (identity, StateMachine::founding_rows(&records, &conf_state))
        }
        Admission::Joiner { cluster, member, table } => {
            let mut rows = Batch::default();
            table.iter().for_each(|record| membership::put_row(&mut rows, record));
            (Identity { cluster: *cluster, member: *member }, rows)
        }
    };
    rows.append(identity.rows());
    backend.commit(&rows)?;
    Ok(identity)
}

/// Begins a log to which nothing was ever written, below a state that is at `applied`. The simulator's members begin theirs with it,
/// too.
pub fn begin_log(wal: &mut Wal, log: &mut Replayed, applied: Index) -> Result<(), Error> {
    if *log != Replayed::default() {
        return Ok(());
    }
    if applied > FOUNDING.index {
        return Err(Error::Refused(format!(
            "the raft log is empty but the state is at index {applied}: acknowledged entries are lost"
        )));
    }
    // A founder's log starts after the founding, that of a member that joins at the beginning.
    let reset = (applied == FOUNDING.index).then_some(FOUNDING);
    log.base = reset.unwrap_or_default();
    let hard_state = HardState { term: log.base.term, vote: MemberId(0), commit: log.base.index };
    wal.append(&Append { reset, entries: &[], hard_state: Some(&hard_state) })?;
    wal.sync()?;
    log.hard_state = Some(hard_state);
    Ok(())
}

/// What raft starts from: the log, and the configuration of the state. As above.
pub fn log_start(log: Replayed, state: &StateMachine) -> Result<LogStart, Error> {
    let entries = log.entries.into_iter().map(|entry| {
        let index = entry.index;
        from_log(entry).ok_or_else(|| Error::Refused(format!("raft entry {index} is of a kind that does not exist")))
    });
    let hard_state = log.hard_state.map(|state| {
        let mut out = raft::HardState::default();
        (out.term, out.vote, out.commit) = (state.term.0, state.vote.0, state.commit.0);
        out
    });
    Ok(LogStart {
        base: (log.base.index, log.base.term),
        conf_state: conf_state(state.conf_state()),
        hard_state,
        entries: entries.collect::<Result<_, _>>()?,
    })
}

fn wal_dir(config: &Config) -> PathBuf {
    config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("member").join("wal"))
}

/// Whether somebody's log is in this directory. An empty one, or one with what a file system puts into it, may wait for a log.
fn has_log(dir: &Path) -> bool {
    RealDisk.list(dir).is_ok_and(|names| names.iter().any(|name| name.ends_with(".wal")))
}

fn start_node(
    config: &Config,
    id: MemberId,
    boot: u64,
    state: &StateMachine,
    log: Replayed,
    logger: &Logger,
) -> Result<Node, Error> {
    let heartbeat = config.heartbeat_interval.as_millis().max(1);
    Node::new(NodeConfig {
        id,
        election_ticks: (config.election_timeout.as_millis() / heartbeat) as usize,
        heartbeat_ticks: 1,
        applied: state.applied(),
        seed: boot,
        boot,
        pre_vote: config.pre_vote,
        log: log_start(log, state)?,
        logger: logger.new(slog::o!("part" => "raft")),
    })
    .map_err(Error::Raft)
}

fn conf_state(stored: &everwatchpb::ConfState) -> ConfState {
    ConfState {
        voters: stored.voters.clone(),
        learners: stored.learners.clone(),
        voters_outgoing: stored.voters_outgoing.clone(),
        learners_next: stored.learners_next.clone(),
        auto_leave: stored.auto_leave,
        ..ConfState::default()
    }
}

/// How far the rows are; none in those of a member that has not heard of its cluster yet.
pub(super) fn applied_index(reader: &dyn Reader) -> storage::Result<Option<Index>> {
    let Some(row) = reader.get(Bucket::Meta, schema::APPLIED_INDEX)? else { return Ok(None) };
    let index = schema::read_u64(&row).map(Index);
    index.map(Some).ok_or_else(|| storage::Error::Engine("the row of the applied index cannot be read".into()))
}

/// The place in the log that the rows of `reader` are the state at.
pub(crate) fn snapshot_meta(reader: &dyn Reader) -> storage::Result<everwatchpb::SnapshotMeta> {
    let damaged = |what: &str| storage::Error::Engine(format!("the row of the {what} cannot be read"));
    let Some(Index(index)) = applied_index(reader)? else {
        return Ok(everwatchpb::SnapshotMeta { conf_state: Some(Default::default()), ..Default::default() });
    };
    let term = reader.get(Bucket::Meta, schema::APPLIED_TERM)?.as_deref().and_then(schema::read_u64);
    let conf_state = reader.get(Bucket::Meta, schema::CONF_STATE)?.unwrap_or_default();
    Ok(everwatchpb::SnapshotMeta {
        index,
        term: term.ok_or_else(|| damaged("applied term"))?,
        conf_state: Some(everwatchpb::ConfState::decode(conf_state).map_err(|_| damaged("raft configuration"))?),
    })
}

/// The place in the log that the rows of `reader` are the state at, as raft takes it.
pub fn snapshot_point(reader: &dyn Reader) -> storage::Result<SnapshotPoint> {
    let meta = snapshot_meta(reader)?;
    Ok(SnapshotPoint {
        index: Index(meta.index),
        term: Term(meta.term),
        conf_state: conf_state(&meta.conf_state.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::{Request, Values};
    use crate::storage::snapshot::SnapshotWriter;

    fn config(dir: &std::path::Path) -> Config {
        let line = ["--data-dir".to_owned(), dir.display().to_string()];
        let Ok(Request::Run(values)) = Values::read(line, []) else { panic!("a data directory is all it is told") };
        Config::new(&values).expect("the rest has defaults")
    }

    fn start_as(dir: &std::path::Path, admission: &Admission) -> Result<Member, Error> {
        open(&config(dir), admission, 1, &Logger::root(slog::Discard, slog::o!()))
    }

    fn start(dir: &std::path::Path) -> Result<Member, Error> {
        start_as(dir, &Admission::Founder)
    }

    /// The member receives a snapshot of what it has, said to be the state at `index`.
    fn receive(member: &Member, index: u64) {
        let mut file = SnapshotWriter::create(member.data_dir.member(), Index(index), None).unwrap();
        for bucket in Bucket::ALL {
            let mut row = |key: &[u8], value: &[u8]| {
                file.row(bucket, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)).is_ok()
            };
            member.backend.reader().unwrap().scan(bucket, &[], None, &mut row).unwrap();
        }
        for (row, number) in [(schema::APPLIED_INDEX, index), (schema::APPLIED_TERM, 2)] {
            file.row(Bucket::Meta, Bytes::from_static(row), schema::u64_row(number)).unwrap();
        }
        file.finish().unwrap();
    }

    #[test]
    fn a_snapshot_counts_from_the_moment_the_log_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let member = start(dir.path()).unwrap();
        assert_eq!((member.state.applied(), member.committed), (FOUNDING.index, FOUNDING.index));
        receive(&member, 7);
        drop(member);

        let mut member = start(dir.path()).unwrap();
        assert_eq!(member.state.applied(), FOUNDING.index, "the log does not know of the snapshot");
        assert!(snapshot::pending(member.data_dir.member()).unwrap().is_empty());
        receive(&member, 9);
        let reset = Base { index: Index(9), term: Term(2) };
        let hard_state = HardState { term: Term(2), vote: MemberId(0), commit: reset.index };
        member.wal.append(&Append { reset: Some(reset), entries: &[], hard_state: Some(&hard_state) }).unwrap();
        member.wal.sync().unwrap();
        drop(member);

        for _ in 0..2 {
            let member = start(dir.path()).unwrap();
            assert_eq!(
                (member.state.applied(), member.node.applied(), member.committed),
                (Index(9), Index(9), Index(9))
            );
            assert!(snapshot::pending(member.data_dir.member()).unwrap().is_empty());
        }
        assert!(has_data(&config(dir.path())).unwrap());
        // Now without the state that the log starts after.
        std::fs::remove_file(dir.path().join("member/state.redb")).unwrap();
        assert!(matches!(start(dir.path()), Err(Error::Refused(_))));
    }

    #[test]
    fn what_was_begun_and_not_finished_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let member = start(dir.path()).unwrap();
        assert!(!has_data(&config(&dir.path().join("elsewhere"))).unwrap());
        let (founder, log) = (member.id, member.data_dir.wal());
        drop(member);
        assert!(has_data(&config(dir.path())).unwrap());
        // As if the crash had come before the log was begun. Who comes back may have been told otherwise meanwhile.
        std::fs::remove_dir_all(log).unwrap();
        assert!(!has_data(&config(dir.path())).unwrap());
        assert!(matches!(start_as(dir.path(), &Admission::Resident), Err(Error::Refused(_))));
        assert_eq!(start(dir.path()).unwrap().id, founder);
    }

    #[test]
    fn a_member_that_joins_begins_with_nothing_but_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let record = |id: u64| MemberRecord { id, peer_urls: vec![format!("http://h:{id}")], ..Default::default() };
        let table = vec![record(4), record(5)];
        let joiner = Admission::Joiner { cluster: ClusterId(9), member: MemberId(5), table };
        for admission in [joiner, Admission::Resident] {
            let member = start_as(dir.path(), &admission).unwrap();
            assert_eq!((member.cluster, member.id), (ClusterId(9), MemberId(5)));
            assert_eq!((member.state.applied(), member.node.last_index(), member.committed), Default::default());
            assert!(member.node.voters().is_empty());
            assert_eq!(member.state.members.get(MemberId(4)).unwrap().peer_urls, ["http://h:4"]);
            drop(member);
            assert!(has_data(&config(dir.path())).unwrap());
        }
        std::fs::remove_dir_all(dir.path().join("member/wal")).unwrap();
        assert_eq!(start(dir.path()).unwrap().state.applied(), FOUNDING.index, "admitted as something else");
    }
}
