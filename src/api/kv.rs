//! The KV service: check, call, stamp.

use tonic::{Request, Response, Status};

use super::check;
use super::status::status;
use crate::mvcc::{RangeResult, txn_is_read_only, txn_is_serializable};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::request_op;
use crate::pb::everwatchpb::EncodedRangeResponse;
use crate::pb::serving::kv_server::Kv;
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
}

impl KvService {
    /// Over a member.
    pub(super) fn new(handle: Handle) -> KvService {
        KvService { handle }
    }

    /// The header of a reply that was computed at `inner`'s revision.
    fn stamp(&self, inner: Option<pb::ResponseHeader>) -> Option<pb::ResponseHeader> {
        Some(self.handle.header(Revision(inner.map_or(0, |header| header.revision))))
    }

    async fn propose(&self, kind: Kind) -> Result<Reply, Status> {
        self.handle.propose(kind).await.map_err(status)
    }
}

/// A reply of another kind than the command's cannot come out of apply.
pub(super) fn unexpected(reply: &Reply) -> Status {
    debug_assert!(false, "reply of another kind: {reply:?}");
    Status::internal("reply of another kind")
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<EncodedRangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        if !request.serializable {
            self.handle.linearize().await.map_err(status)?;
        }
        let (revision, RangeResult { kvs, more, count }) = self.handle.range(&request).await.map_err(status)?;
        self.handle.metrics().ranges.inc();
        Ok(Response::new(EncodedRangeResponse { header: Some(self.handle.header(revision)), kvs, more, count }))
    }

    type RangeStreamStream = tokio_stream::Empty<Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(&self, _: Request<pb::RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(super::not_there())
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let request = request.into_inner();
        self.handle.admit(PUT_OVERHEAD_BYTES + request.key.len() + request.value.len()).await.map_err(status)?;
        check::put(&request)?;
        match self.propose(Kind::Put(request)).await? {
            Reply::Put(mut response) => {
                response.header = self.stamp(response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check::delete_range(&request)?;
        match self.propose(Kind::DeleteRange(request)).await? {
            Reply::DeleteRange(mut response) => {
                response.header = self.stamp(response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        let cost = cost(&request);
        if cost > 0 {
            self.handle.admit(cost).await.map_err(status)?;
        }
        check::txn(&request, self.handle.limits().txn_ops_max)?;
        let mut response = if txn_is_read_only(&request) {
            if !txn_is_serializable(&request) {
                self.handle.linearize().await.map_err(status)?;
            }
            self.handle.read_txn(&request).map_err(status)?
        } else {
            match self.propose(Kind::Txn(request)).await? {
                Reply::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        self.handle.metrics().txns.inc();
        response.header = self.stamp(response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        let physical = request.physical;
        match self.propose(Kind::Compaction(request)).await? {
            Reply::Compaction(mut response) => {
                if physical {
                    self.handle.compacted().await;
                }
                response.header = self.stamp(response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
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
        handle.range(&request).await.map(drop)
    }
    .await;
    outcome.map_err(|error| status(error).message().to_owned())
}
