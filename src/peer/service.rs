//! The receiving half: the gRPC service on the peer URL.
//!
//! Promises: a message is delivered only if its batch came from a member of the table (or one that is to be there soon: see
//! [`remote`](super::remote)), names this cluster, this member and its sender throughout, and consists of kinds that may
//! come this way; otherwise the stream ends and nothing of the batch is delivered. Of one peer's streams only the newest is
//! listened to, so that what an old connection still holds does not come after what a new one brought; none of a peer that
//! was dropped. Everything ends with the [`Transport`].
//!
//! The listener should give connections large HTTP/2 windows (4 MiB per stream and more), for appends come in batches of
//! a megabyte, and keepalive pings, for a peer that vanished without a word would leave its stream open.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ::raft::eraftpb::{Message, MessageType};
use slog::warn;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::forward::{RENEW_IDS_MAX, learner_to_wire, remaining_to_wire, renewals_to_wire};
use super::transport::{Peer, Shared};
use super::{BoxFuture, FromPeer, Learner, Remaining, Renewal, Transport, codec, snapshot};
use crate::pb::everwatchpb as wire;
use crate::pb::everwatchpb::peer_server::PeerServer;
use crate::storage::snapshot::Folder;
use crate::types::{LeaseId, MemberId, Revision};

/// The largest batch of messages or chunk of rows that is decoded.
const DECODE_BYTES_MAX: usize = 64 << 20;

/// Messages in one batch; a sender of ours stays far below.
const BATCH_MESSAGES_MAX: usize = 16_384;

/// Why a stream ends that nothing is wrong with.
const DROPPED: &str = "there is a newer stream, or its sender was dropped";

/// What the service asks the member it belongs to.
pub struct ServiceConfig {
    /// Renews leases, if this member leads; one answer per id, in their order.
    pub renew: Arc<dyn Fn(Vec<LeaseId>) -> BoxFuture<Vec<Renewal>> + Send + Sync>,
    /// What is left of a lease, if this member leads.
    pub time_to_live: Arc<dyn Fn(LeaseId) -> BoxFuture<Remaining> + Send + Sync>,
    /// Whether a member has the log, if this member leads.
    pub learner: Arc<dyn Fn(MemberId) -> BoxFuture<Learner> + Send + Sync>,
    /// The table of members as this one knows it, and what is known of a member that starts without data, if one asks.
    pub members: Members,
    /// The hash of this member's history up to a revision.
    pub history_hash: HistoryHash,
    /// Where received snapshots are written to.
    pub snapshots: Folder,
}

/// Answers a question about the members.
pub type Members = Arc<dyn Fn(Option<MemberId>) -> BoxFuture<wire::MembersResponse> + Send + Sync>;

/// Answers a question about the history; `None` if the member does not have that revision, or not any more.
pub type HistoryHash = Arc<dyn Fn(Revision) -> BoxFuture<Option<wire::HistoryHashResponse>> + Send + Sync>;

/// The gRPC service that peers call.
pub type PeerGrpc = PeerServer<PeerService>;

/// The gRPC service to be routed on the peer URL.
pub fn peer_service(transport: &Transport, config: ServiceConfig) -> PeerGrpc {
    let service = PeerService {
        shared: transport.shared.clone(),
        renew: config.renew,
        time_to_live: config.time_to_live,
        learner: config.learner,
        members: config.members,
        history_hash: config.history_hash,
        snapshots: config.snapshots,
        receiving: Arc::new(Semaphore::new(1)),
        hashing: Semaphore::new(1),
    };
    PeerServer::new(service).max_decoding_message_size(DECODE_BYTES_MAX)
}

/// Answers peers.
pub struct PeerService {
    shared: Arc<Shared>,
    renew: Arc<dyn Fn(Vec<LeaseId>) -> BoxFuture<Vec<Renewal>> + Send + Sync>,
    time_to_live: Arc<dyn Fn(LeaseId) -> BoxFuture<Remaining> + Send + Sync>,
    learner: Arc<dyn Fn(MemberId) -> BoxFuture<Learner> + Send + Sync>,
    members: Members,
    history_hash: HistoryHash,
    snapshots: Folder,
    /// One snapshot at a time.
    receiving: Arc<Semaphore>,
    /// One hash at a time: it reads everything.
    hashing: Semaphore,
}

#[tonic::async_trait]
impl wire::peer_server::Peer for PeerService {
    async fn messages(
        &self,
        request: Request<Streaming<wire::MessageBatch>>,
    ) -> Result<Response<wire::PeerAck>, Status> {
        let mut sender = None;
        let result = tokio::select! {
            biased;
            status = self.stopped() => Err(status),
            result = self.listen(request.into_inner(), &mut sender) => result,
        };
        if let (Some(sender), Err(status)) = (&sender, &result) {
            sender.peer.counters.received_failures.fetch_add(1, Relaxed);
            if status.code() == tonic::Code::InvalidArgument {
                warn!(self.shared.logger, "ended a stream of messages"; "peer" => %sender.peer.id,
                    "why" => status.message());
            }
        }
        result.map(|()| Response::new(wire::PeerAck {}))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<wire::PeerAck>, Status> {
        let permit = self.receiving.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("another snapshot is being received"))?;
        let mut stream = request.into_inner();
        tokio::select! {
            biased;
            status = self.stopped() => return Err(status),
            result = snapshot::receive(&self.shared, &self.snapshots, permit, &mut stream) => result?,
        }
        Ok(Response::new(wire::PeerAck {}))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(request.cluster_id)?;
        if request.ids.len() > RENEW_IDS_MAX {
            return Err(Status::invalid_argument("too many leases in one request"));
        }
        let ids: Vec<LeaseId> = request.ids.into_iter().map(LeaseId).collect();
        // Asking for none is how peers measure the round trip.
        let renewals = if ids.is_empty() { Vec::new() } else { (self.renew)(ids).await };
        Ok(Response::new(renewals_to_wire(renewals)))
    }

    async fn time_to_live(
        &self,
        request: Request<wire::TimeToLiveRequest>,
    ) -> Result<Response<wire::TimeToLiveResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(request.cluster_id)?;
        let remaining = (self.time_to_live)(LeaseId(request.id)).await;
        Ok(Response::new(remaining_to_wire(remaining)))
    }

    async fn learner_state(
        &self,
        request: Request<wire::LearnerStateRequest>,
    ) -> Result<Response<wire::LearnerStateResponse>, Status> {
        let request = request.into_inner();
        self.check_cluster(request.cluster_id)?;
        Ok(Response::new(learner_to_wire((self.learner)(MemberId(request.id)).await)))
    }

    async fn members(&self, request: Request<wire::MembersRequest>) -> Result<Response<wire::MembersResponse>, Status> {
        let wire::MembersRequest { cluster_id, asker } = request.into_inner();
        self.check_cluster(if cluster_id == 0 { self.shared.cluster.0 } else { cluster_id })?;
        let asker = Some(MemberId(asker)).filter(|asker| asker.0 != 0);
        Ok(Response::new((self.members)(asker).await))
    }

    async fn history_hash(
        &self,
        request: Request<wire::HistoryHashRequest>,
    ) -> Result<Response<wire::HistoryHashResponse>, Status> {
        let wire::HistoryHashRequest { cluster_id, revision } = request.into_inner();
        self.check_cluster(cluster_id)?;
        let permit = self.hashing.try_acquire();
        let _permit = permit.map_err(|_| Status::resource_exhausted("another hash is being made"))?;
        let hash = (self.history_hash)(Revision(revision)).await;
        hash.map(Response::new).ok_or_else(|| Status::out_of_range("this member has not got that revision"))
    }
}

/// The peer behind an inbound stream, and the stream's number among those of that peer.
struct Sender {
    peer: Arc<Peer>,
    newest: watch::Receiver<u64>,
    number: u64,
}

impl Sender {
    fn new(peer: Arc<Peer>) -> Sender {
        let mut number = 0;
        peer.inbound.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        Sender { newest: peer.inbound.subscribe(), peer, number }
    }
}

impl PeerService {
    /// Delivers what a stream brings until it ends.
    async fn listen(
        &self,
        mut stream: Streaming<wire::MessageBatch>,
        sender: &mut Option<Sender>,
    ) -> Result<(), Status> {
        loop {
            let batch = tokio::select! {
                biased;
                () = superseded(sender) => return Err(Status::aborted(DROPPED)),
                batch = stream.message() => batch?,
            };
            let Some(mut batch) = batch else { return Ok(()) };
            self.check_cluster(batch.cluster_id)?;
            if batch.to != self.shared.local.0 {
                return Err(Status::failed_precondition("member ID mismatch"));
            }
            // Looked up every time: a member may have been removed.
            let peer = self.shared.sender(MemberId(batch.from), std::mem::take(&mut batch.peer_urls))?;
            match sender {
                None => *sender = Some(Sender::new(peer.clone())),
                Some(sender) if sender.peer.id != peer.id => {
                    return Err(Status::invalid_argument("two senders on one stream"));
                }
                // Dropped and back again in the moment between two batches.
                Some(sender) if !Arc::ptr_eq(&sender.peer, &peer) => return Err(Status::aborted(DROPPED)),
                Some(_) => {}
            }
            let protects = batch.protects;
            let messages = checked(batch)?;
            if protects {
                self.shared.throttle.heard();
            }
            let bytes: usize = messages.iter().map(codec::size).sum();
            peer.counters.received_bytes.fetch_add(bytes as u64, Relaxed);
            for message in messages {
                (self.shared.deliver)(FromPeer::Message(message));
            }
        }
    }

    fn check_cluster(&self, id: u64) -> Result<(), Status> {
        if *self.shared.stopped.borrow() {
            return Err(Status::unavailable("the member stops"));
        }
        if id != self.shared.cluster.0 {
            return Err(Status::failed_precondition("cluster ID mismatch"));
        }
        Ok(())
    }

    /// Returns when the transport stops.
    async fn stopped(&self) -> Status {
        let _ = self.shared.stopped.subscribe().wait_for(|stopped| *stopped).await;
        Status::unavailable("the member stops")
    }
}

/// Returns when the sender has opened a newer stream, or is no longer a peer.
async fn superseded(sender: &mut Option<Sender>) {
    match sender {
        None => pending().await,
        Some(Sender { newest, number, .. }) => {
            let number = *number;
            let _ = newest.wait_for(|newest| *newest != number).await;
        }
    }
}

/// All messages of a batch, if every one of them may be here.
fn checked(batch: wire::MessageBatch) -> Result<Vec<Message>, Status> {
    let (from, to) = (batch.from, batch.to);
    if batch.messages.len() > BATCH_MESSAGES_MAX {
        return Err(Status::invalid_argument("too many messages in one batch"));
    }
    let messages = batch.messages.into_iter().map(|message| {
        let message = codec::from_wire(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if message.from != from || message.to != to {
            return Err(Status::invalid_argument("a message in another member's name or for another member"));
        }
        // It would be believed without the rows that belong to it.
        if message.msg_type == MessageType::MsgSnapshot {
            return Err(Status::invalid_argument("a snapshot among messages"));
        }
        Ok(message)
    });
    messages.collect()
}
