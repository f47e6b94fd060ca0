//! The Cluster service. Members are fixed at the foundation so far: only the list can be asked for.

use tonic::{Request, Response, Status};

use super::status::status;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::server::handle::Handle;
use crate::types::Revision;

/// The service of a member.
#[derive(Clone)]
pub(super) struct ClusterService {
    handle: Handle,
}

impl ClusterService {
    /// Over a member.
    pub(super) fn new(handle: Handle) -> ClusterService {
        ClusterService { handle }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.handle.linearize().await.map_err(status)?;
        }
        let members = self.handle.view(|state| {
            let members = state.members.iter();
            members
                .map(|(id, member)| pb::Member {
                    id: id.0,
                    name: member.name.clone(),
                    peer_ur_ls: member.peer_urls.clone(),
                    client_ur_ls: member.client_urls.clone(),
                    is_learner: member.is_learner,
                })
                .collect()
        });
        // Cluster calls do not touch keys: etcd's headers have no revision there.
        Ok(Response::new(pb::MemberListResponse { header: Some(self.handle.header(Revision(0))), members }))
    }

    async fn member_add(&self, _: Request<pb::MemberAddRequest>) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(super::not_there())
    }

    async fn member_remove(
        &self,
        _: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(super::not_there())
    }

    async fn member_update(
        &self,
        _: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(super::not_there())
    }

    async fn member_promote(
        &self,
        _: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(super::not_there())
    }
}
