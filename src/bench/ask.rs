//! What clients ask for, again and again.

use bytes::Bytes;
use tonic::Status;
use tonic::transport::Channel;

use super::lean;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// Seconds that leases live here: longer than any run.
const LEASE_TTL_S: i64 = 3600;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Writes a key.
    Put,
    /// Reads a key.
    Range { serializable: bool },
    /// Reads so many keys from one on, as somebody who lists in pages does.
    Page { limit: i64 },
    /// Counts all keys.
    Count,
    /// Reads all keys.
    List,
    /// A txn that writes a key.
    Txn,
    /// Such txns, and as many that read the first of all keys.
    Mixed,
    /// Reads a key and writes it if nobody else has in between; until it succeeds.
    Swap,
    /// Grants a lease.
    Grant,
    /// Renews the client's own lease, on a stream of its own, as Go's `KeepAliveOnce` does.
    KeepAlive,
}

/// One client.
pub(super) struct Asker {
    ask: Ask,
    channel: Channel,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    /// The client's own.
    lease_id: Option<i64>,
}

impl Asker {
    pub(super) fn new(ask: Ask, channel: Channel) -> Asker {
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        Asker { ask, kv, lease: LeaseClient::new(channel.clone()), channel, lease_id: None }
    }

    /// Gets what is asked with.
    pub(super) async fn prepare(&mut self) -> Result<(), Status> {
        if self.ask == Ask::KeepAlive {
            self.lease_id = Some(self.grant().await?);
        }
        Ok(())
    }

    /// Asks once. `number` is that of the request; of `prefix` are all keys.
    pub(super) async fn once(&mut self, number: u64, key: Bytes, value: Bytes, prefix: &str) -> Result<(), Status> {
        let put = |key: &Bytes| PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
        let all = |request: RangeRequest| {
            let (key, range_end) = (Bytes::copy_from_slice(prefix.as_bytes()), Bytes::from(format!("{prefix}~")));
            RangeRequest { key, range_end, ..request }
        };
        match self.ask {
            Ask::Put => self.kv.put(put(&key)).await.map(drop),
            Ask::Range { serializable } => self.read(RangeRequest { key, serializable, ..Default::default() }).await,
            Ask::Page { limit } => {
                let page = RangeRequest { limit, ..Default::default() };
                self.read(RangeRequest { key, ..all(page) }).await
            }
            Ask::Count => self.read(all(RangeRequest { count_only: true, ..Default::default() })).await,
            Ask::List => self.read(all(RangeRequest::default())).await,
            Ask::Mixed if number % 2 == 1 => {
                let first = all(RangeRequest { limit: 1, ..Default::default() });
                self.kv.txn(txn(Vec::new(), Request::RequestRange(first))).await.map(drop)
            }
            Ask::Txn | Ask::Mixed => self.kv.txn(txn(Vec::new(), Request::RequestPut(put(&key)))).await.map(drop),
            Ask::Swap => loop {
                let read = self.kv.range(RangeRequest { key: key.clone(), ..Default::default() }).await?.into_inner();
                let revision = read.kvs.first().map_or(0, |kv| kv.mod_revision);
                let unchanged = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: key.clone(),
                    target_union: Some(TargetUnion::ModRevision(revision)),
                    ..Default::default()
                };
                let swap = txn(vec![unchanged], Request::RequestPut(put(&key)));
                if self.kv.txn(swap).await?.into_inner().succeeded {
                    return Ok(());
                }
            },
            Ask::Grant => self.grant().await.map(drop),
            Ask::KeepAlive => {
                let id = self.lease_id.ok_or_else(|| Status::not_found("it was not prepared"))?;
                let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
                let mut renewed = self.lease.lease_keep_alive(requests).await?.into_inner();
                match renewed.message().await? {
                    Some(response) if response.ttl > 0 => Ok(()),
                    other => Err(Status::not_found(format!("not renewed: {other:?}"))),
                }
            }
        }
    }

    async fn read(&self, request: RangeRequest) -> Result<(), Status> {
        lean::range(self.channel.clone(), request).await.map(drop)
    }

    async fn grant(&mut self) -> Result<i64, Status> {
        let request = LeaseGrantRequest { ttl: LEASE_TTL_S, ..Default::default() };
        Ok(self.lease.lease_grant(request).await?.into_inner().id)
    }
}

fn txn(compare: Vec<Compare>, request: Request) -> TxnRequest {
    TxnRequest { compare, success: vec![RequestOp { request: Some(request) }], failure: Vec::new() }
}
