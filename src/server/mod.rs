//! The shell around the pure machines: loops that pump them against disk, network and time.
//!
//! Everything that runs, and what stops it:
//!
//! | what            | where          | runs on                     | stops when                                   |
//! |-----------------|----------------|-----------------------------|----------------------------------------------|
//! | core            | `core`         | the main runtime            | it takes [`inbox::Event::Stop`]              |
//! | catch-up        | `watch_loop`   | the main runtime            | the hub is stopped                           |
//! | log thread      | `disk_threads` | a thread                    | the core drops its queue                     |
//! | backend thread  | `disk_threads` | a thread                    | core and log thread drop its queue; it commits first |
//! | transport       | `peer`         | the main runtime            | [`Transport::stop`]                          |
//! | peer listener   | `listen`       | the main runtime            | aborted when the core has ended              |
//! | client listeners| `listen`       | the edge's runtimes         | the stop signal, then 3 s of grace           |
//!
//! The main runtime has one thread. With `--edge-threads` above 1 clients are served by that many threads with a runtime each, and
//! the main runtime keeps the core and the peers.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use slog::{Logger, crit, info};
use tokio::sync::watch;

use crate::config::Config;
use crate::listen;
use crate::metrics::Metrics;
use crate::pb::everwatchpb::MemberAttributes;
use crate::peer::{FromPeer, Remaining, ServiceConfig, Transport, TransportConfig, peer_service};
use crate::storage::backend::Reader;
use crate::types::MemberId;
use crate::watch::Hub;
use crate::{api, http, version};

use self::core::{Core, CoreConfig};
use self::disk_threads::{BackendThread, Failure, LogThread, ToBackend};
use self::handle::{Handle, Limits, Shared};
use self::inbox::{Event, Inbox};

pub mod apply_loop;
pub(crate) mod bootstrap;
mod core;
mod disk_threads;
pub mod error;
pub mod handle;
mod inbox;
pub mod lease_loop;
mod pending;
mod probe;
pub mod raft_loop;
mod reads;
mod waiters;
pub mod watch_loop;

/// Runs a member until it is told to stop. An error says why it could not start.
pub fn run(config: Config, logger: Logger) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, logger))
}

async fn serve(config: Config, logger: Logger) -> Result<(), Box<dyn std::error::Error>> {
    let termination = listen::Termination::new()?;
    info!(logger, "starting"; "everwatch-version" => version::RELEASE, "api-version" => version::API,
        "name" => &config.name, "data-dir" => %config.data_dir.display());
    // Before there is a socket that others could connect to: members that found a cluster together must not wait for each
    // other's answer.
    bootstrap::refuse_to_found_twice(&config).await?;
    // Addresses first: a member that cannot listen should not touch its data.
    let peer_sockets = listen::bind(&config.listen_peer_urls).await?;
    let client_sockets = listen::bind(&config.listen_client_urls).await?;
    let http_sockets = listen::bind(&config.listen_client_http_urls).await?;
    let metrics_sockets = listen::bind(&config.listen_metrics_urls).await?;

    let boot = getrandom::u64()?;
    let fail = failure(&logger);
    let mut member = bootstrap::open(&config, boot, &logger)?;
    let metrics = Arc::new(Metrics::new(config.metrics_extensive));
    metrics.set_member(member.id);
    metrics.quota_bytes.set(config.quota_bytes.map_or(0, |bytes| bytes as i64));
    let (ready, mut is_ready) = watch::channel(false);
    let inbox = Arc::new(Inbox::default());
    let peers = peers_of(&member);
    member.node.handle(crate::raft::Input::SnapshotReady(bootstrap::snapshot_point(&*member.state.kv.reader())?)).ok();
    let newest: Arc<Mutex<Arc<dyn Reader>>> = Arc::new(Mutex::new(member.state.kv.reader()));
    let shared = Arc::new(Shared {
        cluster: member.cluster,
        member: member.id,
        boot,
        limits: limits(&config),
        hub: Arc::new(Mutex::new(Hub::new(member.state.kv.revision(), member.state.kv.compacted()))),
        lessor: Mutex::default(),
        inbox: inbox.clone(),
        progress: Default::default(),
        sizes: Arc::default(),
        metrics: metrics.clone(),
        transport: OnceLock::new(),
        fail: fail.clone(),
        started: Instant::now(),
        command_ids: AtomicU64::new(1),
        ready,
        stopping: AtomicBool::new(false),
        state: RwLock::new(member.state),
    });
    shared
        .progress
        .applied
        .store(shared.state.read().unwrap_or_else(PoisonError::into_inner).applied().0, Ordering::Relaxed);
    let handle = Handle { shared: shared.clone() };

    let transport = Arc::new(transport(&shared, &config, newest.clone(), &logger));
    transport.set_peers(peers);
    let _ = shared.transport.set(transport.clone());

    let (log_jobs, log_queue) = mpsc::channel();
    let (backend_jobs, backend_queue) = mpsc::channel();
    let to_backend = ToBackend::new(backend_jobs);
    let log = LogThread {
        wal: member.wal,
        jobs: log_queue,
        backend: to_backend.clone(),
        inbox: inbox.clone(),
        transport: transport.clone(),
        metrics: metrics.clone(),
        fail: fail.clone(),
    };
    let backend = BackendThread {
        backend: Some(member.backend),
        dir: member.data_dir.member().to_owned(),
        jobs: backend_queue,
        backlog: to_backend.backlog(),
        inbox: inbox.clone(),
        newest,
        sizes: shared.sizes.clone(),
        identity: member.identity,
        interval: config.backend_batch_interval,
        rows_max: config.backend_batch_max,
        metrics: metrics.clone(),
        fail: fail.clone(),
    };
    let log = std::thread::Builder::new().name("log".into()).spawn(move || log.run())?;
    let backend = std::thread::Builder::new().name("backend".into()).spawn(move || backend.run())?;

    let core = Core {
        node: member.node,
        shared: shared.clone(),
        transport: transport.clone(),
        log: log_jobs,
        backend: to_backend,
        config: CoreConfig {
            heartbeat: config.heartbeat_interval,
            election: config.election_timeout,
            snapshot_count: config.snapshot_count,
            catchup_entries: config.snapshot_catchup_entries,
            compaction_keys: config.compaction_batch_max,
            warning_apply_duration: config.warning_apply_duration,
            attributes: MemberAttributes {
                id: member.id.0,
                name: config.name.clone(),
                client_urls: config.advertise_client_urls.iter().map(ToString::to_string).collect(),
            },
        },
        logger: logger.clone(),
        fail,
        state: Default::default(),
    };
    let core = tokio::spawn(core.run());
    let catch_up = tokio::spawn({
        let handle = handle.clone();
        async move {
            let shared = handle.shared.clone();
            if let Err(error) = watch_loop::run(shared.hub.clone(), shared).await {
                handle.fail(&error);
            }
        }
    });

    let (stop, stopped) = watch::channel(false);
    let probe = || probe::HandleProbe::new(handle.clone());
    let peer_grpc = tonic::service::Routes::new(peer_service(&transport, answers(&handle, &member.data_dir))).prepare();
    let mut listeners = tokio::task::JoinSet::new();
    let peer_limits = listen::Limits::of_peers();
    let peer_listener = tokio::spawn(listen::serve(
        peer_sockets,
        peer_grpc,
        http::peer_routes(probe(), logger.clone()),
        peer_limits,
        stopped.clone(),
        logger.clone(),
    ));

    // What was committed before the restart is carried out before anybody is answered.
    while handle.status().applied < member.committed {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let client_limits = listen::Limits::of_clients(&config);
    let grpc = api::routes(handle.clone(), &config);
    let routes = http::client_routes(probe(), logger.clone());
    if http_sockets.is_empty() {
        edge(&mut listeners, &config, client_sockets, grpc, routes, client_limits, &stopped, &logger)?;
    } else {
        edge(&mut listeners, &config, client_sockets, grpc, listen::Nothing, client_limits, &stopped, &logger)?;
        let (stopped, logger) = (stopped.clone(), logger.clone());
        listeners.spawn(listen::serve(http_sockets, listen::Nothing, routes, client_limits, stopped, logger));
    }
    listeners.spawn(listen::serve(
        metrics_sockets,
        listen::Nothing,
        http::metrics_routes(probe(), logger.clone()),
        client_limits,
        stopped.clone(),
        logger.clone(),
    ));

    let announce = async {
        let _ = is_ready.wait_for(|ready| *ready).await;
        info!(logger, "ready to serve client requests");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        signal = termination.wait() => info!(logger, "stopping"; "signal" => signal),
        () = announce => {}
    }

    // Watches end in a way that makes clients resume elsewhere; then everything else does.
    shared.stopping.store(true, Ordering::Relaxed);
    shared.hub.lock().unwrap_or_else(PoisonError::into_inner).stop();
    handle.hand_over_leadership().await;
    let _ = stop.send(true);
    while listeners.join_next().await.is_some() {}
    inbox.put(Event::Stop);
    let _ = core.await;
    catch_up.abort();
    transport.stop();
    // Peers never end their streams by themselves.
    peer_listener.abort();
    let _ = tokio::task::spawn_blocking(move || (log.join(), backend.join())).await;
    info!(logger, "stopped");
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn edge<G: listen::Answer + Sync, H: listen::Answer + Sync>(
    listeners: &mut tokio::task::JoinSet<std::io::Result<()>>,
    config: &Config,
    sockets: Vec<listen::Socket>,
    grpc: G,
    http: H,
    limits: listen::Limits,
    stopped: &watch::Receiver<bool>,
    logger: &Logger,
) -> std::io::Result<()> {
    let threads = config.edge_threads.unwrap_or(1);
    if threads <= 1 {
        listeners.spawn(listen::serve(sockets, grpc, http, limits, stopped.clone(), logger.clone()));
        return Ok(());
    }
    for number in 0..threads {
        let sockets = sockets.iter().map(listen::Socket::try_clone).collect::<std::io::Result<Vec<_>>>()?;
        let serving = listen::serve(sockets, grpc.clone(), http.clone(), limits, stopped.clone(), logger.clone());
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let _ = ended.send(runtime.and_then(|runtime| runtime.block_on(serving)));
        })?;
        listeners.spawn(async { end.await.unwrap_or(Ok(())) });
    }
    Ok(())
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
        election_timeout: config.election_timeout,
    }
}

fn peers_of(member: &bootstrap::Member) -> Vec<(MemberId, Vec<String>)> {
    let others = member.state.members.iter().filter(|(id, _)| *id != member.id);
    others.map(|(id, peer)| (id, peer.peer_urls.clone())).collect()
}

fn transport(shared: &Arc<Shared>, config: &Config, newest: Arc<Mutex<Arc<dyn Reader>>>, logger: &Logger) -> Transport {
    let inbox = shared.inbox.clone();
    let _ = config;
    Transport::new(TransportConfig {
        local: shared.member,
        cluster: shared.cluster,
        logger: logger.new(slog::o!("part" => "peer")),
        deliver: Arc::new(move |news: FromPeer| inbox.put(Event::Peer(news))),
        snapshot_source: Arc::new(move || {
            let reader = newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let meta = bootstrap::snapshot_meta(&*reader)?;
            Ok((reader, meta))
        }),
        snapshot_stall: TransportConfig::SNAPSHOT_STALL,
    })
}

/// What this member answers its peers' members.
fn answers(handle: &Handle, data_dir: &crate::storage::datadir::DataDir) -> ServiceConfig {
    let (renewing, asking, listing) = (handle.clone(), handle.clone(), handle.clone());
    ServiceConfig {
        renew: Arc::new(move |ids| {
            let handle = renewing.clone();
            Box::pin(async move { handle.renew_here(ids).await })
        }),
        time_to_live: Arc::new(move |id| {
            let handle = asking.clone();
            Box::pin(async move { handle.time_to_live_here(id).await.unwrap_or(Remaining::Unavailable) })
        }),
        members: Arc::new(move || {
            listing.view(|state| state.members.iter().map(|(id, member)| member.record(id)).collect())
        }),
        snapshot_dir: data_dir.member().to_owned(),
    }
}
