//! The KV service: check, call, stamp.

use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use prost::Message;
use tonic::Status;

use super::body::Body;
use super::caller::Caller;
use super::check;
use super::range_stream::RangeStream;
use super::requests::Requests;
use super::status::{Intercepted, status};
use super::unary::{self, Rest, Source, receive};
use crate::auth::Asker;
use crate::mvcc::{self, Records, txn_is_read_only, txn_is_serializable};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::request_op;
use crate::server::error::Error;
use crate::server::handle::Handle;
use crate::state::applied::Reply;
use crate::state::command::Kind;
use crate::types::Revision;

/// What a put costs besides its bytes, in etcd's reckoning of the quota.
const PUT_OVERHEAD_BYTES: usize = 256;

/// The service of a member.
#[derive(Clone)]
pub(super) struct KvService {
    handle: Handle,
    /// Of one message.
    request_bytes_max: usize,
}

impl KvService {
    /// Over a member. Requests may have so many bytes.
    pub(super) fn new(handle: Handle, request_bytes_max: usize) -> KvService {
        KvService { handle, request_bytes_max }
    }

    /// The header of a reply that was computed at `inner`'s revision.
    fn stamp(&self, inner: Option<pb::ResponseHeader>) -> Option<pb::ResponseHeader> {
        Some(self.handle.header(Revision(inner.map_or(0, |header| header.revision))))
    }

    async fn propose(&self, kind: Kind, caller: &Caller) -> Result<Reply, Status> {
        let identity = caller.identify(&self.handle).await?;
        caller.propose(&self.handle, &identity, kind).await.map_err(status)
    }
}

/// An answer in one piece.
fn whole(message: &impl Message) -> Result<Body, Status> {
    Rest::message(message).map(Body::Message)
}

/// A reply of another kind than the command's cannot come out of apply.
pub(super) fn unexpected(reply: &Reply) -> Status {
    debug_assert!(false, "reply of another kind: {reply:?}");
    Status::internal("reply of another kind")
}

/// The methods that are called here; others of the service are not there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Range,
    RangeStream,
    Put,
    DeleteRange,
    Txn,
    Compact,
}

impl Call {
    /// The method of this path.
    pub(super) fn of_path(path: &str) -> Option<Call> {
        Some(match path.strip_prefix("/etcdserverpb.KV/")? {
            "Range" => Call::Range,
            "RangeStream" => Call::RangeStream,
            "Put" => Call::Put,
            "DeleteRange" => Call::DeleteRange,
            "Txn" => Call::Txn,
            "Compact" => Call::Compact,
            _ => return None,
        })
    }
}

impl KvService {
    /// Answers a call; what becomes of the answer says `then`. Each method has a future of its own: it is in memory while the call
    /// waits, and moved into its place, and most are far smaller than the largest.
    pub(super) fn answer<B, R>(
        self,
        call: Call,
        request: Request<B>,
        caller: Caller,
        then: impl FnOnce(Response<Body>) -> R + Send + 'static,
    ) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let requests = Requests::new(&parts.headers, body, self.request_bytes_max);
        macro_rules! answer {
            ($request:ident => $answer:expr) => {
                Box::pin(async move {
                    let outcome = async {
                        let $request = receive(requests?).await?;
                        $answer
                    };
                    then(unary::respond(outcome.await))
                })
            };
        }
        match call {
            Call::Range => answer!(request => self.range(request, &caller).await.map(Body::Message)),
            Call::RangeStream => answer!(request => {
                let stream = self.range_stream(request, &caller).await?;
                Ok(Body::Tonic(tonic::body::Body::new(stream)))
            }),
            Call::Put => answer!(request => whole(&self.put(request, &caller).await?)),
            Call::DeleteRange => answer!(request => whole(&self.delete_range(request, &caller).await?)),
            Call::Txn => answer!(request => whole(&self.txn(request, &caller).await?)),
            Call::Compact => answer!(request => whole(&self.compact(request, &caller).await?)),
        }
    }

    async fn range(&self, request: pb::RangeRequest, caller: &Caller) -> Result<Rest, Status> {
        if !request.serializable && self.handle.is_learner() {
            return Err(Intercepted::Learner.into());
        }
        check::range(&request)?;
        if !request.serializable {
            self.handle.linearize().await.map_err(status)?;
        }
        let identity = caller.identify(&self.handle).await?;
        let (revision, result) = self.handle.range(&request, identity.asker()).await.map_err(status)?;
        self.handle.metrics().ranges.inc();
        Rest::range(self.handle.header(revision), result, &self.handle)
    }

    async fn range_stream(&self, request: pb::RangeRequest, caller: &Caller) -> Result<RangeStream, Status> {
        if self.handle.is_learner() {
            return Err(Intercepted::Learner.into());
        }
        check::range_stream(&request)?;
        if !request.serializable {
            self.handle.linearize().await.map_err(status)?;
        }
        let identity = caller.identify(&self.handle).await?;
        let (revision, result) = self.handle.range(&request, identity.asker()).await.map_err(status)?;
        self.handle.metrics().ranges.inc();
        Ok(RangeStream::new(self.handle.header(revision), result, &self.handle))
    }

    async fn put(&self, request: pb::PutRequest, caller: &Caller) -> Result<pb::PutResponse, Status> {
        self.handle.admit(PUT_OVERHEAD_BYTES + request.key.len() + request.value.len()).await.map_err(status)?;
        check::put(&request)?;
        match self.propose(Kind::Put(request), caller).await? {
            Reply::Put(response) => Ok(pb::PutResponse { header: self.stamp(response.header), ..response }),
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
        caller: &Caller,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        check::delete_range(&request)?;
        match self.propose(Kind::DeleteRange(request), caller).await? {
            Reply::DeleteRange(response) => {
                Ok(pb::DeleteRangeResponse { header: self.stamp(response.header), ..response })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: pb::TxnRequest, caller: &Caller) -> Result<pb::TxnResponse, Status> {
        let cost = cost(&request);
        if cost > 0 {
            self.handle.admit(cost).await.map_err(status)?;
        }
        check::txn(&request, self.handle.limits().txn_ops_max)?;
        let response = if txn_is_read_only(&request) {
            if !txn_is_serializable(&request) {
                self.handle.linearize().await.map_err(status)?;
            }
            let identity = caller.identify(&self.handle).await?;
            self.handle.read_txn(&request, identity.asker()).map_err(status)?
        } else {
            match self.propose(Kind::Txn(request), caller).await? {
                Reply::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        self.handle.metrics().txns.inc();
        Ok(pb::TxnResponse { header: self.stamp(response.header), ..response })
    }

    async fn compact(&self, request: pb::CompactionRequest, caller: &Caller) -> Result<pb::CompactionResponse, Status> {
        let physical = request.physical;
        match self.propose(Kind::Compaction(request), caller).await? {
            Reply::Compaction(response) => {
                if physical {
                    self.handle.compacted().await;
                }
                Ok(pb::CompactionResponse { header: self.stamp(response.header) })
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Source for Handle {
    fn failed(&self, error: mvcc::Error) -> Status {
        status(self.not_read(error))
    }

    fn renew(&self, records: &mut Records) {
        self.renew_reader(records);
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) {
        Handle::aside(self, work);
    }
}

/// What a txn may add to the store, in etcd's reckoning: the more expensive branch.
fn cost(txn: &pb::TxnRequest) -> usize {
    let branch = |ops: &[pb::RequestOp]| -> usize {
        ops.iter()
            .map(|op| match &op.request {
                Some(request_op::Request::RequestPut(put)) => PUT_OVERHEAD_BYTES + put.key.len() + put.value.len(),
                Some(request_op::Request::RequestTxn(nested)) => cost(nested),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

/// A read of one key, for the health endpoints.
pub(crate) async fn probe(handle: &Handle, linearizable: bool) -> Result<(), String> {
    let outcome: Result<(), Error> = async {
        if linearizable {
            handle.linearize().await?;
        }
        let request = pb::RangeRequest { key: "\0".into(), limit: 1, ..Default::default() };
        handle.range(&request, Asker::Member).await.map(drop)
    }
    .await;
    outcome.map_err(|error| status(error).message().to_owned())
}
