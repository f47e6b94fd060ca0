//! The Election service: see `recipe`. Who campaigns waits until it leads; the value of the leader's key is what it proclaims.

use std::collections::VecDeque;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::intercept::Intercept;
use super::recipe::{self, Inside, Place, unknown};
use super::status::RecipeError;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, TxnResponse, WatchCreateRequest, WatchResponse, request_op};
use crate::pb::mvccpb::KeyValue;
use crate::pb::mvccpb::event::EventType;
use crate::pb::v3electionpb::election_server::Election;
use crate::pb::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};

/// The service of a member.
pub(super) struct ElectionService {
    services: Intercept,
}

impl ElectionService {
    /// Over the other services of the member.
    pub(super) fn new(services: Intercept) -> ElectionService {
        ElectionService { services }
    }
}

/// Gives the leader's key a value, if it is still the one that was created then.
async fn proclaim(inside: &Inside, leader: &LeaderKey, lease: i64, value: Bytes) -> Result<TxnResponse, Status> {
    let put = PutRequest { key: leader.key.clone(), value, lease, ..Default::default() };
    let put = request_op::Request::RequestPut(put);
    let answer = inside.if_created(leader.key.clone(), leader.rev, vec![put], Vec::new()).await?;
    if answer.succeeded { Ok(answer) } else { Err(RecipeError::NotLeader.into()) }
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = inside.session(lease).await?;
        let prefix = recipe::prefix(&name);
        let key = recipe::key(&prefix, lease);

        let put = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
        let own = RangeRequest { key: key.clone(), ..Default::default() };
        let success = vec![request_op::Request::RequestPut(put)];
        let failure = vec![request_op::Request::RequestRange(own)];
        let mut queued = inside.if_created(key.clone(), 0, success, failure).await?;
        let own = recipe::read(&mut queued, 0);
        let rev = match &own {
            Some(own) => own.create_revision,
            None => queued.header.map_or(0, |header| header.revision),
        };
        let leader = LeaderKey { name, key, rev, lease };

        let place = Place::taken(&inside, &leader.key, rev);
        // It stood already, for something else perhaps.
        if own.is_some_and(|own| own.value != value) {
            proclaim(&inside, &leader, lease, value).await?;
        }
        inside.oldest(&prefix, rev).await?;
        place.keep();
        Ok(Response::new(CampaignResponse { header: queued.header, leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or(RecipeError::NoLeaderField)?;
        let lease = inside.session(leader.lease).await?;
        let header = proclaim(&inside, &leader, lease, value).await?.header;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let first = inside.range(recipe::below(&recipe::prefix(&request.into_inner().name))).await?;
        let kv = first.kvs.into_iter().next().ok_or(RecipeError::NoLeader)?;
        Ok(Response::new(LeaderResponse { header: first.header, kv: Some(kv) }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let inside = Inside::of(&self.services, &request);
        let prefix = recipe::prefix(&request.into_inner().name);
        let observer = Observer { inside, prefix, seen: VecDeque::new(), watch: None };
        let leaders = stream::try_unfold(observer, |mut observer| async move {
            let leader = observer.next().await?;
            Ok(Some((leader, observer)))
        });
        Ok(Response::new(Box::pin(leaders)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let inside = Inside::of(&self.services, &request);
        let leader = request.into_inner().leader.ok_or(RecipeError::NoLeaderField)?;
        // Who does not lead has nothing to give up.
        let header = inside.withdraw(leader.key, leader.rev).await?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

/// Follows what leaders proclaim, one leader after the other.
struct Observer {
    inside: Inside,
    prefix: Bytes,
    /// What the client is to be told.
    seen: VecDeque<LeaderResponse>,
    /// Of the leader's key, while there is one.
    watch: Option<Streaming<WatchResponse>>,
}

impl Observer {
    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            if let Some(leader) = self.seen.pop_front() {
                return Ok(leader);
            }
            match &mut self.watch {
                None => self.find().await?,
                Some(watch) => {
                    let response = watch.message().await.map_err(unknown)?;
                    let over = self.hear(response)?;
                    if over {
                        self.watch = None;
                    }
                }
            }
        }
    }

    /// Takes in what a leader proclaims. Whether it leads no more, or cannot be followed any more.
    fn hear(&mut self, response: Option<WatchResponse>) -> Result<bool, Status> {
        let Some(response) = response else { return Ok(true) };
        let over = recipe::is_over(&response)?;
        for event in response.events {
            if event.r#type == EventType::Delete as i32 {
                return Ok(true);
            }
            self.seen.push_back(LeaderResponse { header: response.header, kv: event.kv });
        }
        Ok(over)
    }

    /// Looks for the leader, or waits for one.
    async fn find(&mut self) -> Result<(), Status> {
        let first = self.inside.range(recipe::below(&self.prefix)).await?;
        let revision = first.header.map_or(0, |header| header.revision);
        let leader = match first.kvs.into_iter().next() {
            Some(kv) => LeaderResponse { header: first.header, kv: Some(kv) },
            None => match self.first_after(revision).await? {
                Some(leader) => leader,
                None => return Ok(()),
            },
        };
        let KeyValue { key, mod_revision, .. } = leader.kv.clone().unwrap_or_default();
        let create = WatchCreateRequest { key, start_revision: mod_revision + 1, ..Default::default() };
        self.watch = Some(self.inside.watch(create).await?);
        self.seen.push_back(leader);
        Ok(())
    }

    /// The first who stands for election after this revision. None: the watch has ended, and whoever stands is found by looking.
    async fn first_after(&self, revision: i64) -> Result<Option<LeaderResponse>, Status> {
        let create = WatchCreateRequest {
            key: self.prefix.clone(),
            range_end: recipe::end(&self.prefix),
            start_revision: revision + 1,
            filters: vec![FilterType::Nodelete as i32],
            ..Default::default()
        };
        let mut watch = self.inside.watch(create).await?;
        while let Some(response) = watch.message().await.map_err(unknown)? {
            let (header, over) = (response.header, recipe::is_over(&response)?);
            if let Some(event) = response.events.into_iter().next() {
                return Ok(Some(LeaderResponse { header, kv: event.kv }));
            }
            if over {
                break;
            }
        }
        Ok(None)
    }
}
