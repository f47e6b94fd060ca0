//! The Cluster service: check, call, stamp. Unlike etcd's, an update refuses URLs that nobody could be reached at.

use tonic::{Request, Response, Status};

use super::audit::{member, urls};
use super::caller::Caller;
use super::kv::unexpected;
use super::status::{Mistake, status};
use crate::audit::Fields;
use crate::config::Url;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::cluster_server::Cluster;
use crate::server::handle::Handle;
use crate::state::applied::Reply;
use crate::state::command::{Kind, MemberPeerUrls};
use crate::types::{MemberId, Revision};

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

    /// Cluster calls do not touch keys: etcd's headers have no revision there.
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(self.handle.header(Revision(0)))
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
        let members = self.handle.view(|state| state.members.list());
        Ok(Response::new(pb::MemberListResponse { header: self.header(), members }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let pb::MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let peer_ur_ls = checked(peer_ur_ls)?;
        let what = |added: Option<&(MemberId, Reply)>| {
            let fields = urls(Fields::default(), &peer_ur_ls).number("learner", is_learner);
            match added {
                Some((id, _)) => member(fields, id.0),
                None => fields,
            }
        };
        let adding = self.handle.add_member(peer_ur_ls.clone(), is_learner);
        let (id, reply) = caller.noted(&self.handle, what, adding).await.map_err(status)?;
        let member = Some(pb::Member { id: id.0, peer_ur_ls, is_learner, ..Default::default() });
        let members = members(reply)?;
        Ok(Response::new(pb::MemberAddResponse { header: self.header(), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let id = request.into_inner().id;
        let what = |_: Option<&Reply>| member(Fields::default(), id);
        let reply = caller.noted(&self.handle, what, self.handle.remove_member(MemberId(id))).await;
        let members = members(reply.map_err(status)?)?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        let peer_urls = checked(peer_ur_ls)?;
        let identity = caller.identify(&self.handle).await?;
        let command = Kind::MemberPeerUrls(MemberPeerUrls { id, peer_urls });
        let reply = caller.propose(&self.handle, &identity, command).await;
        let members = members(reply.map_err(status)?)?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let id = request.into_inner().id;
        let what = |_: Option<&Reply>| member(Fields::default(), id);
        let reply = caller.noted(&self.handle, what, self.handle.promote_member(MemberId(id))).await;
        let members = members(reply.map_err(status)?)?;
        self.handle.metrics().learner_promote_successes.inc();
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members }))
    }
}

/// Peer URLs in etcd's order, if there are any and each is one.
fn checked(urls: Vec<String>) -> Result<Vec<String>, Status> {
    let parsed = urls.iter().map(|url| Url::parse(url)).collect::<Result<Vec<_>, _>>();
    let mut urls: Vec<String> = match parsed {
        Ok(urls) if !urls.is_empty() => urls.iter().map(Url::to_string).collect(),
        _ => return Err(Mistake::MemberUrls.into()),
    };
    urls.sort();
    Ok(urls)
}

fn members(reply: Reply) -> Result<Vec<pb::Member>, Status> {
    match reply {
        Reply::Members(members) => Ok(members),
        other => Err(unexpected(&other)),
    }
}
