//! The sending half: the table of peers, and one connection to each.
//!
//! Promises: [`Transport::send`] never waits; each peer has at most one connection for messages, which is made again,
//! ever less eagerly, for as long as the peer is in the table; dropping the transport ends every task it started, and
//! every inbound stream of its [`super::PeerService`].
//!
//! Called by the owner of the raft node (send, set_peers) from any thread; its tasks live on the runtime it was made on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::raft::eraftpb::{Message, MessageType};
use slog::{Logger, debug, error, info, warn};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

use super::forward::Renewals;
use super::queue::{MESSAGE_BYTES_MAX, Queue};
use super::{Deliver, FromPeer, SnapshotSource, codec, remote, snapshot};
use crate::pb::everwatchpb::peer_client::PeerClient;
use crate::pb::everwatchpb::{MessageBatch, RenewRequest};
use crate::throttle::Throttle;
use crate::tls::Dialer;
use crate::types::{ClusterId, MemberId};

/// How long a peer may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after the first failed connection; it doubles up to the longest one. Both are cut by up to a half, at
/// random, so that members restarted together do not dial in step.
const PAUSE_SHORTEST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);
/// HTTP/2 pings, so that a peer that vanished without a word is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the round trip is measured, and how long it may take.
const PROBE_INTERVAL: Duration = Duration::from_secs(4);
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a round trip takes that is counted among the shortest, and how many kinds of them are told apart.
const RTT_SHORTEST_US: u64 = 100;
const RTT_COUNTS: usize = 17;
/// Bytes in flight to us on a connection that we dialled: only answers, but no reason to hold them up.
const WINDOW_BYTES: u32 = 4 << 20;

/// What a [`Transport`] needs to know.
pub struct TransportConfig {
    /// This member.
    pub local: MemberId,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Where connections that come and go are reported.
    pub logger: Logger,
    /// Makes connections.
    pub dialer: Dialer,
    /// Takes what arrives and what became of things.
    pub deliver: Deliver,
    /// Gives the rows when a MsgSnapshot is to be sent.
    pub snapshot_source: SnapshotSource,
    /// Whether a member that is not in the table was removed, as far as this member has heard.
    pub was_removed: Arc<dyn Fn(MemberId) -> bool + Send + Sync>,
    /// How long one that is in no table is kept as a peer without a stream from it.
    pub remote_patience: Duration,
    /// Says whether there are clients to protect, and hears of others'.
    pub throttle: Arc<Throttle>,
    /// How long a snapshot, in either direction, may stand still before it is given up. Includes the time the receiver
    /// needs to make it durable after the last row.
    pub snapshot_stall: Duration,
}

impl TransportConfig {
    /// Long enough for gigabytes to be synced by a slow disk.
    pub const SNAPSHOT_STALL: Duration = Duration::from_secs(60);
    /// Longer than a pause between two connections of a member that is there.
    pub const REMOTE_PATIENCE: Duration = Duration::from_secs(10);
}

/// Sends to all peers. One per member.
pub struct Transport {
    pub(super) shared: Arc<Shared>,
}

/// What passes between this member and one peer, counted since the peer was added.
#[derive(Debug, Default)]
pub struct PeerCounters {
    /// Bytes of messages and snapshots handed to connections.
    pub sent_bytes: AtomicU64,
    /// Bytes of messages and snapshots that came in.
    pub received_bytes: AtomicU64,
    /// Messages dropped, connections that failed or broke, snapshots and questions without an answer.
    pub sent_failures: AtomicU64,
    /// Inbound streams that broke or said something wrong.
    pub received_failures: AtomicU64,
    /// Snapshots that the peer said it holds.
    pub snapshots_sent: AtomicU64,
    /// Snapshots from the peer that are durable here.
    pub snapshots_received: AtomicU64,
    /// Snapshots for the peer that did not get there.
    pub snapshots_not_sent: AtomicU64,
    /// Snapshots from the peer that did not get here.
    pub snapshots_not_received: AtomicU64,
    /// Connections that the peer had answered on and that are no more.
    pub disconnections: AtomicU64,
    /// Round trips of at most 0.1 ms, at most twice as much, and so on; the last took longer than all these.
    pub rtt_counts: [AtomicU64; RTT_COUNTS],
    /// The sum of all, in microseconds.
    pub rtt_sum_us: AtomicU64,
}

impl PeerCounters {
    fn round_trip(&self, us: u64) {
        let within = (0..RTT_COUNTS - 1).find(|at| us <= RTT_SHORTEST_US << at);
        self.rtt_counts[within.unwrap_or(RTT_COUNTS - 1)].fetch_add(1, Relaxed);
        self.rtt_sum_us.fetch_add(us, Relaxed);
    }
}

/// One peer as the transport sees it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub id: MemberId,
    /// Since when it has been answering; `None` while it does not.
    pub active_since: Option<Instant>,
    /// Its counters.
    pub counters: Arc<PeerCounters>,
}

impl Transport {
    /// A transport without peers. Must be called on the tokio runtime its tasks shall run on.
    pub fn new(config: TransportConfig) -> Transport {
        let TransportConfig { local, cluster, logger, dialer, deliver, .. } = config;
        let shared = Shared {
            local,
            cluster,
            logger,
            dialer,
            deliver,
            snapshot_source: config.snapshot_source,
            was_removed: config.was_removed,
            throttle: config.throttle,
            remote_patience: config.remote_patience,
            snapshot_stall: config.snapshot_stall,
            runtime: Handle::current(),
            own_urls: RwLock::default(),
            peers: RwLock::default(),
            stopped: watch::Sender::new(false),
        };
        Transport { shared: Arc::new(shared) }
    }

    /// Makes the table of peers what is given: new ones are dialled, those with other URLs dialled anew, missing ones
    /// dropped, but for those of whom the table is still to hear. If this member itself is among them, those who may not
    /// know it are told its URLs.
    pub fn set_peers(&self, peers: Vec<(MemberId, Vec<String>)>) {
        let shared = &self.shared;
        let mut table = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if *shared.stopped.borrow() {
            return;
        }
        let wanted: BTreeSet<u64> = peers.iter().map(|(id, _)| id.0).filter(|id| *id != shared.local.0).collect();
        let awaited = |peer: &Peer| peer.is_remote() && !(shared.was_removed)(peer.id);
        table.retain(|id, peer| wanted.contains(id) || awaited(peer) || peer.remove());
        for (id, urls) in peers {
            if id == shared.local {
                *shared.own_urls.write().unwrap_or_else(PoisonError::into_inner) = urls;
                continue;
            }
            if let Some(peer) = table.get(&id.0) {
                peer.remote.store(false, Relaxed);
                peer.urls.send_if_modified(|current| {
                    let changed = *current != urls;
                    *current = urls;
                    changed
                });
                continue;
            }
            let peer = Arc::new(Peer::new(id, urls));
            table.insert(id.0, peer.clone());
            peer.spawn(shared, keep_connected(shared.clone(), peer.clone()));
        }
    }

    /// Sends each message to the member it is addressed to, or drops it and says so. Never waits.
    pub fn send(&self, mut messages: Vec<Message>) {
        let shared = &self.shared;
        // Stable: what goes to one member stays in order.
        messages.sort_by_key(|message| message.to);
        let mut reports = Vec::new();
        let mut messages = messages.into_iter().peekable();
        while let Some(to) = messages.peek().map(|message| MemberId(message.to)) {
            let peer = shared.peer(to);
            let mut batch = Vec::new();
            let mut dropped = 0;
            while let Some(message) = messages.next_if(|message| message.to == to.0) {
                match (&peer, message.msg_type) {
                    (None, MessageType::MsgSnapshot) => reports.push(FromPeer::SnapshotSent { to, ok: false }),
                    (Some(peer), MessageType::MsgSnapshot) => snapshot::send(shared, peer, message),
                    _ if !codec::travels(message.msg_type) || message.from != shared.local.0 => {
                        // Nobody would take it: said once here rather than by a broken stream.
                        warn!(shared.logger, "not sending a message that is not ours to send";
                            "kind" => ?message.msg_type, "from" => %MemberId(message.from));
                    }
                    (None, _) => dropped += 1,
                    (Some(_), _) => {
                        if codec::size(&message) > MESSAGE_BYTES_MAX {
                            error!(shared.logger, "dropping a message that is too large for any peer";
                                "peer" => %to, "bytes" => codec::size(&message));
                        }
                        batch.push(message);
                    }
                }
            }
            if let Some(peer) = peer {
                dropped += peer.queue.push(batch);
                peer.counters.sent_failures.fetch_add(dropped as u64, Relaxed);
            }
            if dropped > 0 {
                reports.push(FromPeer::Unreachable(to));
            }
        }
        reports.into_iter().for_each(|report| (shared.deliver)(report));
    }

    /// All peers of the table, in the order of their ids.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let table = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        table.values().filter(|peer| !peer.is_remote()).map(|peer| peer.status()).collect()
    }

    /// Ends every task and every inbound stream. Nothing is sent or accepted afterwards.
    pub fn stop(&self) {
        let mut table = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.stopped.send_replace(true);
        table.retain(|_, peer| peer.remove());
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the tasks and the service have in common.
pub(super) struct Shared {
    pub(super) local: MemberId,
    pub(super) cluster: ClusterId,
    pub(super) logger: Logger,
    pub(super) dialer: Dialer,
    pub(super) deliver: Deliver,
    pub(super) snapshot_source: SnapshotSource,
    pub(super) was_removed: Arc<dyn Fn(MemberId) -> bool + Send + Sync>,
    pub(super) remote_patience: Duration,
    pub(super) throttle: Arc<Throttle>,
    pub(super) snapshot_stall: Duration,
    runtime: Handle,
    /// This member's own URLs, as the table has them, or had them last.
    own_urls: RwLock<Vec<String>>,
    /// The table, and remotes.
    peers: RwLock<BTreeMap<u64, Arc<Peer>>>,
    pub(super) stopped: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn peer(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&id.0).cloned()
    }

    pub(super) fn own_urls(&self) -> Vec<String> {
        self.own_urls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The peer of that name, if there is one by now; else `remote` is, unless there are too many.
    pub(super) fn add_remote(self: &Arc<Shared>, remote: Arc<Peer>) -> Option<Arc<Peer>> {
        let mut table = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.get(&remote.id.0) {
            return Some(peer.clone());
        }
        let remotes = table.values().filter(|peer| peer.is_remote()).count();
        if remotes >= remote::REMOTES_MAX || *self.stopped.borrow() {
            return None;
        }
        table.insert(remote.id.0, remote.clone());
        remote.spawn(self, keep_connected(self.clone(), remote.clone()));
        remote.spawn(self, remote::watch_over(self.clone(), remote.clone()));
        Some(remote)
    }

    /// Forgets a remote, if it still is one.
    pub(super) fn drop_remote(&self, remote: &Peer) {
        let mut table = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let there = table.get(&remote.id.0).is_some_and(|peer| std::ptr::eq(&**peer, remote));
        if there && remote.is_remote() {
            table.remove(&remote.id.0);
            remote.remove();
        }
    }
}

/// One row of the table of peers, or a remote.
pub(super) struct Peer {
    pub(super) id: MemberId,
    /// The table does not have it yet.
    remote: AtomicBool,
    pub(super) urls: watch::Sender<Vec<String>>,
    pub(super) queue: Queue,
    pub(super) counters: Arc<PeerCounters>,
    pub(super) renewals: Renewals,
    /// A snapshot is on its way to it.
    pub(super) sending_snapshot: AtomicBool,
    /// When a part of one last went.
    pub(super) snapshot_moved: Mutex<Option<tokio::time::Instant>>,
    /// How many streams of messages it has opened towards us; only the newest counts.
    pub(super) inbound: watch::Sender<u64>,
    /// No longer in the table: all its tasks end.
    gone: watch::Sender<bool>,
    link: Mutex<Link>,
}

/// The connection for messages, as others may use or know it.
#[derive(Default)]
struct Link {
    client: Option<PeerClient<Channel>>,
    active_since: Option<Instant>,
}

impl Peer {
    fn new(id: MemberId, urls: Vec<String>) -> Peer {
        Peer {
            id,
            remote: AtomicBool::new(false),
            urls: watch::Sender::new(urls),
            queue: Queue::default(),
            counters: Arc::default(),
            renewals: Renewals::default(),
            sending_snapshot: AtomicBool::new(false),
            snapshot_moved: Mutex::default(),
            inbound: watch::Sender::new(0),
            gone: watch::Sender::new(false),
            link: Mutex::default(),
        }
    }

    pub(super) fn remote(id: MemberId, urls: Vec<String>) -> Peer {
        Peer { remote: AtomicBool::new(true), ..Peer::new(id, urls) }
    }

    /// Whether the table does not have it yet.
    pub(super) fn is_remote(&self) -> bool {
        self.remote.load(Relaxed)
    }

    /// Whether a stream of messages from it is open.
    pub(super) fn is_heard(&self) -> bool {
        self.inbound.receiver_count() > 0
    }

    /// Runs a task that ends with the peer's place in the table.
    pub(super) fn spawn(&self, shared: &Shared, task: impl Future<Output = ()> + Send + 'static) {
        let mut gone = self.gone.subscribe();
        shared.runtime.spawn(async move {
            tokio::select! {
                biased;
                _ = gone.wait_for(|gone| *gone) => {}
                () = task => {}
            }
        });
    }

    /// The open connection, for questions.
    pub(super) fn client(&self) -> Option<PeerClient<Channel>> {
        self.link().client.clone()
    }

    fn status(&self) -> PeerStatus {
        PeerStatus { id: self.id, active_since: self.link().active_since, counters: self.counters.clone() }
    }

    /// Ends its tasks and streams; false, as the answer to whether it stays in the table.
    fn remove(&self) -> bool {
        self.gone.send_replace(true);
        self.inbound.send_modify(|newest| *newest += 1);
        self.queue.close();
        false
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to a peer. Dropping it closes it at once: nothing that was handed to it is sent any more.
pub(super) struct Connection {
    pub(super) client: PeerClient<Channel>,
    _open: watch::Sender<()>,
}

/// Dials one of the URLs of a peer.
pub(super) async fn connect(url: &str, dialer: &Dialer) -> Result<Connection, String> {
    let open = watch::Sender::new(());
    let (dialer, url) = dialer.at(url);
    let endpoint = Endpoint::from_shared(url)
        .map_err(|error| error.to_string())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .executor(WhileOpen(open.subscribe()));
    match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(dialer)).await {
        Ok(Ok(channel)) => Ok(Connection { client: PeerClient::new(channel), _open: open }),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err("no connection in time".to_owned()),
    }
}

/// Runs the tasks of one connection for as long as it is wanted. Left alone they would wait for their streams to end,
/// and a peer that takes nothing more would keep them, and what they hold, for as long as it liked.
#[derive(Clone)]
struct WhileOpen(watch::Receiver<()>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for WhileOpen {
    fn execute(&self, task: F) {
        let mut open = self.0.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                // Nothing is ever sent here: it ends with the sender.
                _ = open.changed() => {}
                () = task => {}
            }
        });
    }
}

/// An error with the causes it hides.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The task of one peer: connect, serve the queue, pause, again.
async fn keep_connected(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut urls = peer.urls.subscribe();
    let mut turn = 0;
    let mut pause = PAUSE_SHORTEST;
    let mut complaint = String::new();
    loop {
        let url = {
            let urls = urls.borrow_and_update();
            if urls.is_empty() { None } else { Some(urls[turn % urls.len()].clone()) }
        };
        let why = match &url {
            None => "it has no URL".to_owned(),
            Some(url) => match connect(url, &shared.dialer).await {
                Ok(connection) => {
                    let (why, answered) = serve(&shared, &peer, connection, &mut urls).await;
                    // Whatever was on its way may be lost, and will not be sent again.
                    (shared.deliver)(FromPeer::Unreachable(peer.id));
                    if answered {
                        // It was there a moment ago, and is likely to be there again.
                        (pause, complaint) = (PAUSE_SHORTEST, String::new());
                        turn = turn.wrapping_sub(1);
                    }
                    why
                }
                Err(why) => why,
            },
        };
        turn = turn.wrapping_add(1);
        peer.counters.sent_failures.fetch_add(1, Relaxed);
        let url = url.unwrap_or_default();
        // The same complaint every second tells the operator nothing new.
        if why == complaint {
            debug!(shared.logger, "still no connection to peer"; "peer" => %peer.id, "url" => url, "why" => &why);
        } else {
            warn!(shared.logger, "no connection to peer"; "peer" => %peer.id, "url" => url, "why" => &why);
            complaint = why;
        }
        tokio::select! {
            () = sleep(jittered(pause)) => {}
            _ = urls.changed() => pause = PAUSE_SHORTEST,
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// Between a half and the whole of it.
fn jittered(pause: Duration) -> Duration {
    // Without randomness the whole: late, not wrong.
    let part = getrandom::u64().map_or(u64::MAX, |random| random >> 11);
    let whole = (u64::MAX >> 11) as f64;
    pause.mul_f64(0.5 + 0.5 * (part as f64 / whole).min(1.0))
}

/// Lets a connection carry the queue until it breaks. Says why it ended, and whether the peer ever answered on it and is
/// likely to take the next one.
async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: Connection,
    urls: &mut watch::Receiver<Vec<String>>,
) -> (String, bool) {
    let number = peer.queue.open();
    peer.link().client = Some(connection.client.clone());
    // Also when the task is dropped in the middle.
    let _closing = Closing(peer);
    let outgoing = Outgoing { shared: shared.clone(), peer: peer.clone(), connection: number, greeted: false };
    let mut client = connection.client.clone();
    let mut messages = pin!(client.messages(outgoing));
    let mut probing = pin!(probe(shared, peer, connection.client.clone()));
    let mut refused = false;
    let why = tokio::select! {
        ended = &mut messages => match ended {
            Ok(_) => "the peer ended the stream".to_owned(),
            Err(status) => {
                refused = remote::says_removed(&status);
                if refused {
                    (shared.deliver)(FromPeer::ToldRemoved(peer.id));
                }
                format!("{:?}: {}", status.code(), status.message())
            }
        },
        _ = urls.changed() => "its URLs changed".to_owned(),
        () = &mut probing => "it stopped answering".to_owned(),
    };
    let active = peer.link().active_since.is_some();
    peer.counters.disconnections.fetch_add(active.into(), Relaxed);
    (why, active && !refused)
}

/// Measures round trips while the connection lives; ends when the peer stops answering.
async fn probe(shared: &Shared, peer: &Peer, mut client: PeerClient<Channel>) {
    loop {
        let asked = Instant::now();
        let question = RenewRequest { cluster_id: shared.cluster.0, ids: Vec::new() };
        match timeout(PROBE_TIMEOUT, client.renew(question)).await {
            Ok(Ok(_)) => {
                peer.counters.round_trip(asked.elapsed().as_micros() as u64);
                let mut link = peer.link();
                if link.active_since.is_none() {
                    link.active_since = Some(Instant::now());
                    info!(shared.logger, "connected to peer"; "peer" => %peer.id);
                }
            }
            // A refusal ends the stream of messages too, which knows better why.
            Ok(Err(_)) => peer.link().active_since = None,
            Err(_) => return,
        }
        sleep(PROBE_INTERVAL).await;
    }
}

/// Ends the life of a connection.
struct Closing<'a>(&'a Peer);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.queue.close();
        *self.0.link() = Link::default();
    }
}

/// The batches of one connection, as its stream asks for them.
struct Outgoing {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    connection: u64,
    greeted: bool,
}

impl Stream for Outgoing {
    type Item = MessageBatch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MessageBatch>> {
        let mut peer_urls = Vec::new();
        let messages = if self.greeted {
            match self.peer.queue.poll_batch(self.connection, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(messages)) => messages,
            }
        } else {
            // An empty batch says who we are, so that a wrong address is refused before anything is lost in it.
            self.greeted = true;
            peer_urls = self.shared.own_urls();
            Vec::new()
        };
        let bytes: usize = messages.iter().map(codec::size).sum();
        self.peer.counters.sent_bytes.fetch_add(bytes as u64, Relaxed);
        Poll::Ready(Some(MessageBatch {
            cluster_id: self.shared.cluster.0,
            from: self.shared.local.0,
            to: self.peer.id.0,
            messages: messages.into_iter().map(codec::to_wire).collect(),
            peer_urls,
            protects: self.shared.throttle.says(),
        }))
    }
}
