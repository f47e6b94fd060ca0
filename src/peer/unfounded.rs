//! What a member without data answers on its peer URL: that it is new too, and nothing else.
//!
//! It takes part in nothing yet: messages and snapshots are turned away in a way that makes the sender come again.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use crate::pb::everwatchpb as wire;
use crate::pb::everwatchpb::peer_server::{Peer, PeerServer};
use crate::types::{ClusterId, MemberId};

/// The gRPC service of a member without data.
pub type UnfoundedGrpc = PeerServer<Unfounded>;

/// A member without data.
pub struct Unfounded {
    /// The cluster it is to found; none of one that joins, which has nothing to say.
    cluster: Option<ClusterId>,
    asked: Arc<dyn Fn(MemberId) + Send + Sync>,
}

impl Unfounded {
    /// The service. `asked` is told who asks: whoever asks can be asked.
    pub fn service(cluster: Option<ClusterId>, asked: Arc<dyn Fn(MemberId) + Send + Sync>) -> UnfoundedGrpc {
        PeerServer::new(Unfounded { cluster, asked })
    }
}

#[tonic::async_trait]
impl Peer for Unfounded {
    async fn messages(&self, _: Request<Streaming<wire::MessageBatch>>) -> Result<Response<wire::PeerAck>, Status> {
        Err(not_yet())
    }

    async fn snapshot(&self, _: Request<Streaming<wire::SnapshotChunk>>) -> Result<Response<wire::PeerAck>, Status> {
        Err(not_yet())
    }

    async fn renew(&self, _: Request<wire::RenewRequest>) -> Result<Response<wire::RenewResponse>, Status> {
        Err(not_yet())
    }

    async fn time_to_live(
        &self,
        _: Request<wire::TimeToLiveRequest>,
    ) -> Result<Response<wire::TimeToLiveResponse>, Status> {
        Err(not_yet())
    }

    async fn learner_state(
        &self,
        _: Request<wire::LearnerStateRequest>,
    ) -> Result<Response<wire::LearnerStateResponse>, Status> {
        Err(not_yet())
    }

    async fn members(&self, request: Request<wire::MembersRequest>) -> Result<Response<wire::MembersResponse>, Status> {
        let wire::MembersRequest { cluster_id, asker } = request.into_inner();
        let cluster = self.cluster.filter(|_| asker != 0).ok_or_else(not_yet)?;
        if cluster_id != cluster.0 {
            return Err(Status::failed_precondition("cluster ID mismatch"));
        }
        (self.asked)(MemberId(asker));
        Ok(Response::new(wire::MembersResponse {
            members: Vec::new(),
            cluster_id: cluster.0,
            standing: wire::Standing::Fresh as i32,
            // It knows only what the cluster will be called.
            member_id: 0,
        }))
    }

    async fn history_hash(
        &self,
        _: Request<wire::HistoryHashRequest>,
    ) -> Result<Response<wire::HistoryHashResponse>, Status> {
        Err(not_yet())
    }
}

fn not_yet() -> Status {
    Status::unavailable("the member does not take part yet")
}
