//! The Lease service: check, call, stamp.

use std::pin::Pin;

use futures_util::StreamExt;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::caller::{Caller, permit};
use super::intercept::too_long;
use super::kv::unexpected;
use super::status::{Mistake, status};
use crate::auth;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::lease_server::Lease;
use crate::server::error::Error;
use crate::server::handle::Handle;
use crate::server::logins::Identity;
use crate::state::applied::{Refusal, Reply};
use crate::state::command::Kind;
use crate::state::permission::Wanted;
use crate::types::{LeaseId, Revision};

/// The longest lease, in seconds; etcd's bound.
const TTL_MAX: i64 = 9_000_000_000;
/// What a lease costs in etcd's reckoning of the quota.
const LEASE_BYTES: usize = 64;
/// Keepalives of one stream that are under way at once.
const RENEWALS_AT_ONCE: usize = 256;
/// Ids drawn before giving up on finding a free one. A second draw is already rarer than a broken disk.
const DRAWS_MAX: usize = 8;

/// The service of a member.
#[derive(Clone)]
pub(super) struct LeaseService {
    handle: Handle,
}

impl LeaseService {
    /// Over a member.
    pub(super) fn new(handle: Handle) -> LeaseService {
        LeaseService { handle }
    }

    /// Who calls a method on which a token is of no interest while auth is off.
    async fn identify(&self, caller: &Caller) -> Result<Identity, Status> {
        if self.handle.auth_enabled() { caller.identify(&self.handle).await } else { Ok(Identity::default()) }
    }

    /// A header at this member's present revision.
    fn header(&self) -> pb::ResponseHeader {
        self.handle.header(self.handle.view(|state| state.kv.revision()))
    }

    async fn grant(
        &self,
        request: pb::LeaseGrantRequest,
        caller: &Caller,
        by: &Identity,
    ) -> Result<pb::LeaseGrantResponse, Error> {
        match caller.propose(&self.handle, by, Kind::LeaseGrant(request)).await? {
            Reply::LeaseGrant(mut response) => {
                let revision = response.header.map_or(0, |header| header.revision);
                response.header = Some(self.handle.header(Revision(revision)));
                Ok(response)
            }
            _ => Err(Error::Stopped),
        }
    }
}

fn denied(error: auth::Error) -> Status {
    status(Error::Refused(Refusal::Auth(error)))
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let mut request = request.into_inner();
        self.handle.admit(LEASE_BYTES).await.map_err(status)?;
        if request.ttl > TTL_MAX {
            return Err(Mistake::TtlTooLarge.into());
        }
        request.ttl = request.ttl.max(self.handle.limits().ttl_min);
        let identity = caller.identify(&self.handle).await?;
        let drawn = request.id == 0;
        for _ in 0..DRAWS_MAX {
            if drawn {
                let number = getrandom::u64().map_err(|error| Status::internal(error.to_string()))?;
                request.id = ((number >> 1) as i64).max(1);
            }
            match self.grant(request, &caller, &identity).await {
                Err(Error::Refused(Refusal::LeaseExists)) if drawn => {}
                outcome => return outcome.map(Response::new).map_err(status),
            }
        }
        Err(status(Error::Refused(Refusal::LeaseExists)))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let identity = caller.identify(&self.handle).await?;
        let command = Kind::LeaseRevoke(request.into_inner());
        match caller.propose(&self.handle, &identity, command).await.map_err(status)? {
            Reply::LeaseRevoke(mut response) => {
                let revision = response.header.map_or(0, |header| header.revision);
                response.header = Some(self.handle.header(Revision(revision)));
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let service = self.clone();
        let caller = Caller::passed(request.extensions());
        let renewals = request.into_inner().map(move |request| {
            let (service, caller) = (service.clone(), caller.clone());
            async move {
                let id = request.map_err(|error| too_long(&error).unwrap_or(error))?.id;
                // Before the renewal, as etcd does: the answer promises nothing about later revisions.
                let header = service.header();
                let identity = service.identify(&caller).await?;
                if service.handle.auth_enabled() {
                    permit(&service.handle, identity.asker(), Wanted::Renewal(LeaseId(id)))?;
                }
                let ttl = service.handle.renew(LeaseId(id)).await.map_err(status)?;
                service.handle.metrics().leases_renewed.inc();
                Ok(pb::LeaseKeepAliveResponse { header: Some(header), id, ttl })
            }
        });
        // A client keeps all its leases alive on one stream: one at a time they would come as often as a quorum answers.
        Ok(Response::new(Box::pin(renewals.buffered(RENEWALS_AT_ONCE))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let identity = self.identify(&caller).await?;
        if self.handle.auth_enabled() {
            permit(&self.handle, identity.asker(), Wanted::Login)?;
        }
        let left = self.handle.time_to_live(LeaseId(id)).await.map_err(status)?;
        let keys = if keys && left.is_some() {
            // The leader answered; what is attached is replicated, as soon as this member is as far.
            self.handle.linearize().await.map_err(status)?;
            let keys = self.handle.view(|state| {
                state.permit(identity.asker(), Wanted::LeaseKeys(LeaseId(id)))?;
                let lease = state.leases.get(LeaseId(id));
                Ok(lease.map(|lease| lease.keys().cloned().collect()).unwrap_or_default())
            });
            keys.map_err(denied)?
        } else {
            Vec::new()
        };
        let (ttl, granted_ttl) = left.unwrap_or((-1, 0));
        Ok(Response::new(pb::LeaseTimeToLiveResponse { header: Some(self.header()), id, ttl, granted_ttl, keys }))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let identity = self.identify(&Caller::passed(request.extensions())).await?;
        let leases = self.handle.view(|state| {
            state.permit(identity.asker(), Wanted::Leases)?;
            Ok(state.leases.iter().map(|(id, _)| pb::LeaseStatus { id: id.0 }).collect())
        });
        let leases = leases.map_err(denied)?;
        Ok(Response::new(pb::LeaseLeasesResponse { header: Some(self.header()), leases }))
    }
}
