//! The Lock service: see `recipe`. Who locks with a lease holds the lock until it unlocks or the lease ends.

use tonic::{Request, Response, Status};

use super::intercept::Intercept;
use super::recipe::{self, Inside, Place};
use super::status::RecipeError;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, request_op};
use crate::pb::v3lockpb::lock_server::Lock;
use crate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

/// The service of a member.
pub(super) struct LockService {
    services: Intercept,
}

impl LockService {
    /// Over the other services of the member.
    pub(super) fn new(services: Intercept) -> LockService {
        LockService { services }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let LockRequest { name, lease } = request.into_inner();
        let lease = inside.session(lease).await?;
        let prefix = recipe::prefix(&name);
        let key = recipe::key(&prefix, lease);

        let put = PutRequest { key: key.clone(), lease, ..Default::default() };
        let own = RangeRequest { key: key.clone(), ..Default::default() };
        let owner = request_op::Request::RequestRange(recipe::below(&prefix));
        let success = vec![request_op::Request::RequestPut(put), owner.clone()];
        let failure = vec![request_op::Request::RequestRange(own.clone()), owner];
        let mut queued = inside.if_created(key.clone(), 0, success, failure).await?;
        let created = match queued.succeeded {
            true => queued.header.map_or(0, |header| header.revision),
            false => recipe::read(&mut queued, 0).map_or(0, |own| own.create_revision),
        };
        let owner = recipe::read(&mut queued, 1);
        if owner.is_none_or(|owner| owner.create_revision == created) {
            return Ok(Response::new(LockResponse { header: queued.header, key }));
        }

        let place = Place::taken(&inside, &key, created);
        inside.oldest(&prefix, created).await?;
        let own = inside.range(own).await?;
        // Its lease may have ended while it waited.
        if own.kvs.is_empty() {
            return Err(RecipeError::SessionExpired.into());
        }
        place.keep();
        Ok(Response::new(LockResponse { header: own.header, key }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let header = inside.delete(request.into_inner().key).await?;
        Ok(Response::new(UnlockResponse { header }))
    }
}
