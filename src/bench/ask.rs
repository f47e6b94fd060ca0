//! What clients ask for, again and again.

use bytes::Bytes;
use tonic::Status;

use super::wire::Wire;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest,
    RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};

/// Seconds that leases live here: longer than any run.
const LEASE_TTL_S: i64 = 3600;

const PUT: &str = "/etcdserverpb.KV/Put";
pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

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
    wire: Wire,
    /// The client's own.
    lease_id: Option<i64>,
}

impl Asker {
    pub(super) fn new(ask: Ask, wire: Wire) -> Asker {
        Asker { ask, wire, lease_id: None }
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
            Ask::Put => self.wire.ask(PUT, &put(&key)).await,
            Ask::Range { serializable } => self.read(RangeRequest { key, serializable, ..Default::default() }).await,
            Ask::Page { limit } => {
                let page = RangeRequest { limit, ..Default::default() };
                self.read(RangeRequest { key, ..all(page) }).await
            }
            Ask::Count => self.read(all(RangeRequest { count_only: true, ..Default::default() })).await,
            Ask::List => self.read(all(RangeRequest::default())).await,
            Ask::Mixed if number % 2 == 1 => {
                let first = all(RangeRequest { limit: 1, ..Default::default() });
                self.wire.ask(TXN, &txn(Vec::new(), Request::RequestRange(first))).await
            }
            Ask::Txn | Ask::Mixed => self.wire.ask(TXN, &txn(Vec::new(), Request::RequestPut(put(&key)))).await,
            Ask::Swap => loop {
                let read = RangeRequest { key: key.clone(), ..Default::default() };
                let read: RangeResponse = self.wire.answer(RANGE, &read).await?;
                let revision = read.kvs.first().map_or(0, |kv| kv.mod_revision);
                let unchanged = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: key.clone(),
                    target_union: Some(TargetUnion::ModRevision(revision)),
                    ..Default::default()
                };
                let swap = txn(vec![unchanged], Request::RequestPut(put(&key)));
                if self.wire.answer::<TxnResponse>(TXN, &swap).await?.succeeded {
                    return Ok(());
                }
            },
            Ask::Grant => self.grant().await.map(drop),
            Ask::KeepAlive => {
                let id = self.lease_id.ok_or_else(|| Status::not_found("it was not prepared"))?;
                let renewal = LeaseKeepAliveRequest { id };
                match self.wire.answer::<LeaseKeepAliveResponse>(KEEP_ALIVE, &renewal).await? {
                    response if response.ttl > 0 => Ok(()),
                    other => Err(Status::not_found(format!("not renewed: {other:?}"))),
                }
            }
        }
    }

    async fn read(&mut self, request: RangeRequest) -> Result<(), Status> {
        self.wire.ask(RANGE, &request).await
    }

    async fn grant(&mut self) -> Result<i64, Status> {
        let request = LeaseGrantRequest { ttl: LEASE_TTL_S, ..Default::default() };
        Ok(self.wire.answer::<LeaseGrantResponse>(GRANT, &request).await?.id)
    }
}

fn txn(compare: Vec<Compare>, request: Request) -> TxnRequest {
    TxnRequest { compare, success: vec![RequestOp { request: Some(request) }], failure: Vec::new() }
}
