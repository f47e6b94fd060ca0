//! What the lock and the election recipes share: they are clients of their own member, as everybody's recipes are.
//!
//! Who wants something puts a key below the name, `NAME/LEASE` with the lease in hex. The oldest of them has it, and the others
//! wait until all that are older are gone. A key goes when it is deleted, or with its lease.
//!
//! Calls go through the same door as those from outside, with the caller's token: the recipes may do what the caller may. etcd
//! does the same, and answers whatever goes wrong inside with UNKNOWN.

use bytes::Bytes;
use tokio::runtime::Handle as Runtime;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status, Streaming};

use super::body::Plain;
use super::intercept::Intercept;
use crate::audit::Origin;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op;
use crate::pb::etcdserverpb::response_op;
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::pb::mvccpb::KeyValue;

/// The lease of a caller who brings none, in seconds. Nobody keeps it alive.
const SESSION_TTL: i64 = 60;
/// What identifies the caller.
const TOKENS: [&str; 2] = ["token", "authorization"];

/// Whether a watch has come to its end, and what it was to show is to be looked for: what it would be told is compacted. One that was
/// ended for another reason is an error: the next would be ended as well.
pub(super) fn is_over(response: &WatchResponse) -> Result<bool, Status> {
    if response.canceled && response.compact_revision == 0 {
        return Err(Status::unknown(response.cancel_reason.clone()));
    }
    Ok(response.canceled)
}

/// The member's own services, called for one of its callers.
#[derive(Clone)]
pub(super) struct Inside {
    services: Plain<Intercept>,
    tokens: MetadataMap,
    origin: Option<Origin>,
}

impl Inside {
    /// For whoever made this request.
    pub(super) fn of<T>(services: &Intercept, request: &Request<T>) -> Inside {
        let mut tokens = MetadataMap::new();
        for name in TOKENS {
            if let Some(token) = request.metadata().get(name) {
                tokens.insert(name, token.clone());
            }
        }
        Inside { services: Plain(services.clone()), tokens, origin: request.extensions().get().cloned() }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.tokens.clone();
        // What is changed for somebody is noted as what he called.
        if let Some(origin) = &self.origin {
            request.extensions_mut().insert(origin.clone());
        }
        request
    }

    /// The lease that the caller brings, or one of its own.
    pub(super) async fn session(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = self.request(LeaseGrantRequest { ttl: SESSION_TTL, id: 0 });
        Ok(LeaseClient::new(self.services.clone()).lease_grant(grant).await.map_err(unknown)?.into_inner().id)
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        let answer = KvClient::new(self.services.clone()).range(self.request(request)).await;
        answer.map(|answer| answer.into_inner()).map_err(unknown)
    }

    pub(super) async fn delete(&self, key: Bytes) -> Result<Option<ResponseHeader>, Status> {
        let request = self.request(DeleteRangeRequest { key, ..Default::default() });
        let answer = KvClient::new(self.services.clone()).delete_range(request).await;
        answer.map(|answer| answer.into_inner().header).map_err(unknown)
    }

    /// Carries out `success` if the key was created at this revision (0: if it is not there), else `failure`.
    pub(super) async fn if_created(
        &self,
        key: Bytes,
        at: i64,
        success: Vec<request_op::Request>,
        failure: Vec<request_op::Request>,
    ) -> Result<TxnResponse, Status> {
        let created = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Create as i32,
            key,
            target_union: Some(TargetUnion::CreateRevision(at)),
            ..Default::default()
        };
        let ops = |ops: Vec<request_op::Request>| ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        let txn = TxnRequest { compare: vec![created], success: ops(success), failure: ops(failure) };
        let answer = KvClient::new(self.services.clone()).txn(self.request(txn)).await;
        answer.map(|answer| answer.into_inner()).map_err(unknown)
    }

    /// Deletes a key, if it is the one that was created at this revision.
    pub(super) async fn withdraw(&self, key: Bytes, created: i64) -> Result<TxnResponse, Status> {
        let deletion = DeleteRangeRequest { key: key.clone(), ..Default::default() };
        let deletion = request_op::Request::RequestDeleteRange(deletion);
        self.if_created(key, created, vec![deletion], Vec::new()).await
    }

    /// A watch of one range from a revision on. What it says first is that it is created.
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Streaming<WatchResponse>, Status> {
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let request = self.request(tokio_stream::once(request));
        let answer = WatchClient::new(self.services.clone()).max_decoding_message_size(usize::MAX).watch(request).await;
        answer.map(|answer| answer.into_inner()).map_err(unknown)
    }

    /// Waits until no key with this prefix is older than `created`.
    pub(super) async fn oldest(&self, prefix: &Bytes, created: i64) -> Result<(), Status> {
        loop {
            let newest_older = RangeRequest {
                max_create_revision: created - 1,
                sort_order: SortOrder::Descend as i32,
                ..below(prefix)
            };
            let answer = self.range(newest_older).await?;
            let Some(older) = answer.kvs.into_iter().next() else { return Ok(()) };
            let mut watch = self
                .watch(WatchCreateRequest {
                    key: older.key,
                    start_revision: answer.header.map_or(0, |header| header.revision) + 1,
                    filters: vec![FilterType::Noput as i32],
                    ..Default::default()
                })
                .await?;
            // It may be cancelled because what it would be told is compacted. Then, too, a look shows what is there.
            while let Some(response) = watch.message().await.map_err(unknown)? {
                if is_over(&response)? || !response.events.is_empty() {
                    break;
                }
            }
        }
    }
}

/// The first key that was put below the name and is still there.
pub(super) fn below(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        ..Default::default()
    }
}

/// What keys of this name begin with.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// The key of a lease.
pub(super) fn key(prefix: &[u8], lease: i64) -> Bytes {
    [prefix, format!("{lease:x}").as_bytes()].concat().into()
}

/// The end of the range of a prefix that ends in a slash.
pub(super) fn end(prefix: &Bytes) -> Bytes {
    [&prefix[..prefix.len() - 1], b"0"].concat().into()
}

/// The keys that an operation of a txn has read.
pub(super) fn read(response: &mut TxnResponse, op: usize) -> Option<KeyValue> {
    match response.responses.get_mut(op)?.response.take()? {
        response_op::Response::ResponseRange(range) => range.kvs.into_iter().next(),
        _ => None,
    }
}

/// What went wrong inside, for the caller.
pub(super) fn unknown(status: Status) -> Status {
    Status::unknown(status.message())
}

/// A place in the queue. Who does not wait to the end gives it up.
pub(super) struct Place {
    given_up: Option<(Inside, Bytes, i64)>,
}

impl Place {
    /// Taken with this key, created at this revision.
    pub(super) fn taken(inside: &Inside, key: &Bytes, created: i64) -> Place {
        Place { given_up: Some((inside.clone(), key.clone(), created)) }
    }

    /// It is not given up any more.
    pub(super) fn keep(mut self) {
        self.given_up = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (Some((inside, key, created)), Ok(runtime)) = (self.given_up.take(), Runtime::try_current()) else {
            return;
        };
        // Where it fails, the key goes with its lease.
        runtime.spawn(async move { inside.withdraw(key, created).await.map(drop) });
    }
}
