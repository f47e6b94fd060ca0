//! The shell around the pure machines: loops that pump them against disk, network and time.
//!
//! Everything that runs, and what stops it:
//!
//! | what            | where          | runs on                     | stops when                                   |
//! |-----------------|----------------|-----------------------------|----------------------------------------------|
//! | core            | `core_loop`    | the main runtime            | it takes `inbox::Event::Stop`                 |
//! | catch-up        | `watch_loop`   | the main runtime            | [`Tasks::stop`]                              |
//! | hearing what was applied | `watch_loop` | a runtime that serves clients | [`Tasks::stop`], or with that runtime |
//! | log thread      | `disk_threads` | a thread                    | the core drops its queue                     |
//! | backend thread  | `disk_threads` | a thread                    | core and log thread drop its queue; it commits first |
//! | pieces of long ranges | `aside` | threads, as many as serve clients | the last handle is gone                |
//! | a backup being sent | `backups`  | a blocking thread           | the client has it, or goes away              |
//! | transport       | `peer`         | the main runtime            | [`Transport::stop`]                          |
//! | reading and writing a snapshot | `peer` | a thread each         | it is done, or its stream is gone            |
//! | opening a received snapshot | `disk_threads` | a thread         | it is done; the backend thread waits for it  |
//! | questions to the other members | `founding` | the main runtime     | it is known what a member without data may start as |
//! | and of one that was removed    | `leaving`  | the main runtime     | it may go, or [`Tasks::stop`]                |
//! | auto-compaction | `compact_loop` | the main runtime            | [`Tasks::stop`]                              |
//! | taking NOSPACE back | `space_loop`   | the main runtime        | [`Tasks::stop`]                              |
//! | counting prefixes | `extent_loop` | the main runtime           | [`Tasks::stop`]                              |
//! | giving memory back | `memory_loop` | the main runtime, threads that end at once | [`Tasks::stop`]    |
//! | comparing histories | `corrupt_loop` | the main runtime        | [`Tasks::stop`]                              |
//! | giving up a place in a queue for a lock | `api::recipe` | a runtime that serves clients | its txn is answered, or with that runtime |
//!
//! The main runtime has one thread. Listeners are [`crate::member`]'s: with `--edge-threads` above 1 clients are served by that
//! many threads with a runtime each, and the main runtime keeps the core and the peers.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use slog::{Logger, crit};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::pb::everwatchpb::{HistoryHashResponse, MemberAttributes};
use crate::peer::{FromPeer, PeerGrpc, Remaining, ServiceConfig, Transport, TransportConfig, peer_service};
use crate::state::StateMachine;
use crate::storage::backend::Reader;
use crate::storage::backend::disk::DiskBackend;
use crate::storage::datadir::DataDir;
use crate::storage::seal::Keys;
use crate::storage::snapshot::Folder;
use crate::storage::wal::Wal;
use crate::throttle::Throttle;
use crate::tls::Dialer;
use crate::types::Index;
use crate::watch::{Feeds, Hub};

use self::aside::Aside;
use self::core::{Core, CoreConfig};
use self::core_loop::Plumbing;
use self::disk_threads::{BackendThread, Failure, LogThread, ToBackend};
use self::handle::{Handle, Limits, Shared};
use self::inbox::{Event, Inbox};
use self::log_writer::LogWriter;
use self::logins::Logins;
use self::watch_loop::Shard;

mod alone;
pub mod apply_loop;
mod aside;
pub mod backups;
pub mod bootstrap;
mod compact_loop;
pub mod core;
mod core_loop;
mod corrupt_loop;
mod disk_threads;
pub mod error;
mod extent_loop;
mod founding;
pub mod gathering;
pub mod handle;
mod inbox;
pub mod lease_loop;
mod leaving;
pub mod log_writer;
pub mod logins;
mod members;
pub mod memory_loop;
mod pending;
pub mod raft_loop;
mod reads;
mod renewals;
pub mod restore;
mod space_loop;
mod waiters;
pub mod watch_loop;
pub mod watch_rights;

pub use bootstrap::{Admission, snapshot_point};
pub(crate) use founding::Asking;

/// Starts a member on the current runtime, as what it was admitted to: from now on it follows its peers and answers its
/// [`Handle`]. An error says why it could not start.
pub fn start(
    config: &Config,
    admission: &Admission,
    dialer: &Dialer,
    logger: &Logger,
) -> Result<(Handle, Tasks), Box<dyn std::error::Error>> {
    let boot = getrandom::u64()?;
    let fail = failure(logger);
    let member = bootstrap::open(config, admission, boot, logger)?;
    let fresh = founding::is_fresh(&member.node);
    let metrics = Arc::new(Metrics::new(config.metrics_extensive));
    metrics.set_member(member.id);
    metrics.quota_bytes.set(config.quota_bytes.map_or(0, |bytes| bytes as i64));
    let (ready, is_ready) = watch::channel(false);
    // One that was removed and is started again asks again: it may have been stopped before it had an answer.
    let leaving = watch::Sender::new(member.state.members.was_removed(member.id));
    let (removed, may_go) = watch::channel(false);
    let inbox = Arc::new(Inbox::default());
    let durable = snapshot_point(&*member.state.kv.reader())?;
    let newest: Arc<Mutex<Arc<dyn Reader>>> = Arc::new(Mutex::new(member.state.kv.reader()));
    let applied = member.state.applied();
    let (revision, compacted) = (member.state.kv.revision(), member.state.kv.compacted());
    let logins = Logins::new(config, &member.state)?;
    let feeds = Feeds::new(shard_count(config), revision);
    let replicated = core::Shared { state: Arc::new(RwLock::new(member.state)), feeds };
    let shards = (0..shard_count(config)).map(|number| {
        let record = record(replicated.state.clone(), fail.clone());
        Arc::new(Shard::new(Hub::new(revision, compacted), replicated.feeds.of(number), record))
    });
    let shards: Arc<[Arc<Shard>]> = shards.collect();
    let shared = Arc::new(Shared {
        cluster: member.cluster,
        member: member.id,
        dialer: dialer.clone(),
        limits: limits(config),
        replicated: replicated.clone(),
        shards: shards.clone(),
        logins,
        backups: Arc::new(Semaphore::new(backups::AT_ONCE_MAX)),
        aside: Aside::start(config.edge_threads.unwrap_or(1))?,
        timeline: watch_loop::Timeline::default(),
        inbox: inbox.clone(),
        throttle: Arc::new(Throttle::new(config.hold_busy_clients)),
        progress: Default::default(),
        sizes: Arc::default(),
        refused_bytes: AtomicU64::new(0),
        metrics: metrics.clone(),
        transport: OnceLock::new(),
        fail: fail.clone(),
        started: Instant::now(),
        command_ids: AtomicU64::new(1),
        ready,
        leader_lost: watch::Sender::new(()),
        leaving,
        removed,
        stopping: AtomicBool::new(false),
    });
    shared.progress.applied.store(applied.0, Ordering::Relaxed);
    let handle = Handle { shared: shared.clone() };

    let transport = Arc::new(transport(&shared, newest.clone(), logger));
    let (peers, _) = shared.peers();
    transport.set_peers(peers.clone());
    let _ = shared.transport.set(transport.clone());

    let (log_jobs, log_queue) = mpsc::channel();
    let (backend_jobs, backend_queue) = mpsc::channel();
    let to_backend = ToBackend::new(backend_jobs);
    let log = LogThread {
        log: LogWriter::new(member.wal),
        jobs: log_queue,
        backend: to_backend.clone(),
        inbox: inbox.clone(),
        transport: transport.clone(),
        metrics: metrics.clone(),
        throttle: shared.throttle.clone(),
        fail: fail.clone(),
    };
    let backend = BackendThread {
        backend: Some(member.backend),
        dir: member.data_dir.member().to_owned(),
        keys: member.keys.clone(),
        jobs: backend_queue,
        backlog: to_backend.backlog(),
        inbox: inbox.clone(),
        newest,
        sizes: shared.sizes.clone(),
        identity: member.identity,
        cache_bytes: config.backend_cache_bytes,
        interval: config.backend_batch_interval,
        rows_max: config.backend_batch_max,
        metrics: metrics.clone(),
        fail: fail.clone(),
    };
    let log = std::thread::Builder::new().name("log".into()).spawn(move || log.run())?;
    let backend = std::thread::Builder::new().name("backend".into()).spawn(move || backend.run())?;

    let config_of_core = CoreConfig {
        boot,
        election_ticks: (config.election_timeout.as_millis() / config.heartbeat_interval.as_millis().max(1)) as u64,
        election: config.election_timeout,
        request_timeout: shared.limits.request_timeout,
        snapshot_count: config.snapshot_count,
        catchup_entries: config.snapshot_catchup_entries,
        compaction_keys: config.compaction_batch_max,
        compaction_grace: config.watch_compaction_grace,
        apply_bytes: APPLY_BYTES,
        attributes: MemberAttributes {
            id: member.id.0,
            name: config.name.clone(),
            client_urls: config.advertise_client_urls.iter().map(ToString::to_string).collect(),
        },
    };
    let plumbing = Plumbing {
        shared: shared.clone(),
        transport: transport.clone(),
        log: log_jobs,
        backend: to_backend,
        place: None,
        peers,
        farewell: None,
        warning_apply_duration: config.warning_apply_duration,
        logger: logger.clone(),
        fail,
    };
    let core = Core::new(config_of_core, member.node, replicated, durable);
    let core = tokio::spawn(core_loop::run(core, plumbing, config.heartbeat_interval));
    let mut watching = JoinSet::new();
    for shard in shards.iter().cloned() {
        let (handle, visits) = (handle.clone(), watch_loop::Visits::start()?);
        watching.spawn(async move {
            if let Err(error) = watch_loop::run(shard, handle.shared.clone(), visits).await {
                handle.fail(&error);
            }
        });
    }
    // The others' are served where their streams are.
    let first = shards[0].clone();
    watching.spawn(async move { first.serve().await });

    let leaving = tokio::spawn(leaving::run(handle.clone(), logger.clone()));
    let mut upkeep = JoinSet::new();
    if let Some(keep) = config.auto_compaction {
        upkeep.spawn(compact_loop::run(handle.clone(), keep, logger.clone()));
    }
    if let Some(quota) = config.quota_bytes.filter(|_| !config.quota_manual_disarm) {
        upkeep.spawn(space_loop::run(handle.clone(), quota, logger.clone()));
    }
    if !config.metrics_key_prefixes.is_empty() {
        upkeep.spawn(extent_loop::run(handle.clone(), config.metrics_key_prefixes.clone()));
    }
    upkeep.spawn(memory_loop::run());
    upkeep.spawn(corrupt_loop::run(handle.clone(), config.corrupt_checks, logger.clone()));

    let tasks = Tasks {
        handle: handle.clone(),
        peer_grpc: peer_service(&transport, answers(&handle, &member.data_dir, member.keys, fresh)),
        ready: is_ready,
        removed: may_go,
        committed: member.committed,
        transport,
        core,
        watching,
        leaving,
        upkeep,
        log,
        backend,
        data_dir: member.data_dir,
    };
    Ok((handle, tasks))
}

/// A member that [`open`] found.
#[doc(hidden)]
pub struct Opened {
    pub node: crate::raft::Node,
    pub state: StateMachine,
    pub wal: Wal,
    pub backend: DiskBackend,
    pub data_dir: DataDir,
}

/// Opens a data directory as [`start`] does, and starts nothing: for tests of which directories a start accepts.
#[doc(hidden)]
pub fn open(config: &Config, logger: &Logger) -> Result<Opened, Box<dyn std::error::Error>> {
    let bootstrap::Member { node, state, wal, backend, data_dir, .. } =
        bootstrap::open(config, &Admission::Resident, 1, logger)?;
    Ok(Opened { node, state, wal, backend, data_dir })
}

/// What runs of a member, for the one who started it.
pub struct Tasks {
    handle: Handle,
    peer_grpc: PeerGrpc,
    ready: watch::Receiver<bool>,
    removed: watch::Receiver<bool>,
    /// What the log was known to have committed when the member started.
    committed: Index,
    transport: Arc<Transport>,
    core: JoinHandle<()>,
    watching: JoinSet<()>,
    leaving: JoinHandle<()>,
    /// What looks after the member's data from time to time.
    upkeep: JoinSet<()>,
    log: std::thread::JoinHandle<()>,
    backend: std::thread::JoinHandle<()>,
    /// Nobody else is in there until the last byte is written.
    data_dir: DataDir,
}

impl Tasks {
    /// What peers call, to be served on the peer URLs.
    pub fn peer_grpc(&self) -> PeerGrpc {
        self.peer_grpc.clone()
    }

    /// To be run on the thread of clients' connections with this number, beside what serves them: has their watches hear what
    /// happens.
    pub fn watches(&self, thread: usize) -> impl Future<Output = ()> + Send + use<> {
        let shards = self.handle.shared.shards.clone();
        async move {
            // The first is the main runtime's.
            let number = thread + 1;
            watch_loop::own_shard(number);
            match shards.get(number) {
                Some(shard) => shard.serve().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Returns when everything committed before the start has been carried out.
    pub async fn recovered(&self) {
        while self.handle.status().applied < self.committed {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Compares this member's data with its peers'. An error says that it must not serve.
    pub async fn compare_with_peers(&self, logger: &Logger) -> Result<(), Box<dyn std::error::Error>> {
        Ok(corrupt_loop::before_serving(&self.handle, logger).await?)
    }

    /// Returns when the member can answer clients: it belongs to a cluster that has a leader.
    pub async fn ready(&self) {
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Returns when the member was removed from its cluster, the others do not need it any more, and it has had time to say
    /// and hear what there was left.
    pub async fn removed(&self) {
        if self.removed.clone().wait_for(|removed| *removed).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(core_loop::FAREWELL).await;
    }

    /// The first half of stopping, while clients are still being answered: watches end in a way that makes clients resume
    /// elsewhere, and a leader hands over.
    pub async fn retire(&self) {
        let shared = &self.handle.shared;
        shared.stopping.store(true, Ordering::Relaxed);
        // First: whoever goes elsewhere is to find a leader there.
        self.handle.hand_over_leadership().await;
        let mut portion = shards_streams(&shared.shards).div_ceil(DRAIN_STEPS);
        let stop = |portion| shared.shards.iter().filter(|shard| shard.hub().stop(portion)).count();
        while stop(portion) > 0 {
            tokio::time::sleep(DRAIN_PAUSE).await;
            // Nobody is left behind by those who came meanwhile.
            portion += 1;
        }
    }

    /// The second half: what was acknowledged is in the log, and goes into the backend now.
    pub async fn stop(self) {
        self.handle.shared.inbox.put(Event::Stop);
        let _ = self.core.await;
        drop((self.watching, self.upkeep));
        self.leaving.abort();
        self.transport.stop();
        let _ = tokio::task::spawn_blocking(move || (self.log.join(), self.backend.join())).await;
        drop(self.data_dir);
    }
}

/// One hub where there is one runtime. Else one for each thread that serves clients, and one for the main runtime.
fn shard_count(config: &Config) -> usize {
    config.edge_threads.filter(|threads| *threads > 1).map_or(1, |threads| threads + 1)
}

/// Reads what events replaced, for watchers that want it.
fn record(state: Arc<RwLock<StateMachine>>, fail: Failure) -> watch_loop::Record {
    Box::new(move |place| {
        let state = state.read().unwrap_or_else(PoisonError::into_inner);
        state.kv.record(place).unwrap_or_else(|error| {
            fail(&error);
            None
        })
    })
}

fn shards_streams(shards: &[Arc<Shard>]) -> usize {
    shards.iter().map(|shard| shard.stats().streams).sum()
}

/// Says why the member cannot go on, and ends the process: nothing may be acknowledged after that.
fn failure(logger: &Logger) -> Failure {
    let logger = logger.clone();
    Arc::new(move |error: &dyn fmt::Display| {
        crit!(logger, "member stops: it cannot go on without risking data"; "error" => %error);
        // The log's drain is asynchronous and dies with the process.
        eprintln!("everwatch: cannot go on without risking data: {error}");
        std::process::exit(1);
    })
}

/// When the member stops, its streams end in so many portions with pauses between: clients that all came at once to the members
/// that stay would be served late.
const DRAIN_STEPS: usize = 20;
const DRAIN_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of entries that the core carries out before others run on its thread.
const APPLY_BYTES: usize = 1 << 20;
/// The longest command, whatever the flags say: an entry that is too long for a message between members could never be committed,
/// nor could anything after it.
const COMMAND_BYTES_MAX: usize = 48 << 20;

fn limits(config: &Config) -> Limits {
    // As in etcd: a lease outlives an election.
    let ttl_min = (3 * config.election_timeout.as_millis()).div_ceil(2 * 1000) as i64;
    Limits {
        request_bytes_max: config.request_bytes_max.min(COMMAND_BYTES_MAX),
        txn_ops_max: config.txn_ops_max,
        quota_bytes: config.quota_bytes,
        request_timeout: Duration::from_secs(5) + 2 * config.election_timeout,
        ttl_min,
        strict_reconfig_check: config.strict_reconfig_check,
        learners_max: config.learners_max,
        watchers: watch_loop::Bounds { per_stream: config.watchers_per_stream_max, in_all: config.watchers_max },
        election_timeout: config.election_timeout,
    }
}

fn transport(shared: &Arc<Shared>, newest: Arc<Mutex<Arc<dyn Reader>>>, logger: &Logger) -> Transport {
    let inbox = shared.inbox.clone();
    let state = shared.replicated.state.clone();
    Transport::new(TransportConfig {
        local: shared.member,
        cluster: shared.cluster,
        logger: logger.new(slog::o!("part" => "peer")),
        dialer: shared.dialer.clone(),
        deliver: Arc::new(move |news: FromPeer| inbox.put(Event::Peer(news))),
        snapshot_source: Arc::new(move || {
            let reader = newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let meta = bootstrap::snapshot_meta(&*reader)?;
            Ok((reader, meta))
        }),
        was_removed: Arc::new(move |id| state.read().unwrap_or_else(PoisonError::into_inner).members.was_removed(id)),
        throttle: shared.throttle.clone(),
        remote_patience: TransportConfig::REMOTE_PATIENCE,
        snapshot_stall: TransportConfig::SNAPSHOT_STALL,
    })
}

/// What this member answers its peers' members. `fresh`: it had nothing beyond the founding at its start.
fn answers(handle: &Handle, data_dir: &DataDir, keys: Option<Keys>, fresh: bool) -> ServiceConfig {
    let [renewing, asking, judging, listing, hashing] = [(); 5].map(|()| handle.clone());
    ServiceConfig {
        renew: Arc::new(move |ids| {
            let handle = renewing.clone();
            Box::pin(async move { handle.renew_here(ids).await })
        }),
        time_to_live: Arc::new(move |id| {
            let handle = asking.clone();
            Box::pin(async move { handle.time_to_live_here(id).await.unwrap_or(Remaining::Unavailable) })
        }),
        learner: Arc::new(move |id| {
            let handle = judging.clone();
            Box::pin(async move { handle.learner_here(id).await })
        }),
        members: Arc::new(move |asker| Box::pin(founding::answer(listing.clone(), fresh, asker))),
        history_hash: Arc::new(move |revision| {
            let handle = hashing.clone();
            Box::pin(async move {
                let (_, hash) = handle.hash_kv(revision).await.ok()?;
                let member_id = handle.member().0;
                Some(HistoryHashResponse { member_id, hash: hash.hash, compacted: hash.compact_revision })
            })
        }),
        snapshots: Folder { dir: data_dir.member().to_owned(), keys },
    }
}
