//! The judge's requests on the wire, and what comes back in the judge's words.
//!
//! No call is ever repeated here. What the API refused was certainly not carried out, nor was what could not even be sent
//! because there was no connection; any other failure leaves it open.

use std::error::Error as _;
use std::time::Duration;

use everwatch::pb::etcdserverpb::{
    self as pb, compare::CompareResult, compare::CompareTarget, compare::TargetUnion, kv_client::KvClient,
    lease_client::LeaseClient, request_op, response_op,
};
use everwatch::pb::mvccpb;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::checks::{Compare, Event, EventKind, KeyValue, Outcome, Relation, Reply, Request, Target, TxnOp};

/// A member that is not there says so at once; this is for one whose machine does not answer.
const CONNECT: Duration = Duration::from_millis(500);
/// A member that stands still is found out by streams, too: unanswered pings end them.
const PING: Duration = Duration::from_secs(2);

/// Connections to the members, made when first used and again when broken.
pub struct Members {
    endpoints: Vec<Endpoint>,
    channels: Vec<Channel>,
}

impl Members {
    pub fn new(urls: &[String]) -> Members {
        let endpoint = |url: &String| {
            let endpoint = Endpoint::from_shared(url.clone()).expect("a URL");
            endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(PING).keep_alive_timeout(PING)
        };
        let endpoints: Vec<Endpoint> = urls.iter().map(endpoint).collect();
        Members { channels: endpoints.iter().map(Endpoint::connect_lazy).collect(), endpoints }
    }

    pub fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// The connection that all calls to the member share.
    pub fn channel(&self, member: usize) -> Channel {
        self.channels[member].clone()
    }

    /// A connection of one's own.
    pub fn own_channel(&self, member: usize) -> Channel {
        self.endpoints[member].connect_lazy()
    }

    /// Asks once.
    pub async fn ask(&self, member: usize, request: &Request) -> Outcome {
        self.answer(member, request).await.unwrap_or_else(|status| failure(&status))
    }

    async fn answer(&self, member: usize, request: &Request) -> Result<Outcome, Status> {
        let mut kv = KvClient::new(self.channel(member)).max_decoding_message_size(usize::MAX);
        let mut lease = LeaseClient::new(self.channel(member));
        Ok(match request {
            Request::Range { key, end, limit, revision, serializable } => {
                let request = pb::RangeRequest { serializable: *serializable, ..range(key, end, *limit, *revision) };
                let response = kv.range(request).await?.into_inner();
                done(&response.header, range_part(&response))
            }
            Request::Put { key, value, lease, prev_kv } => {
                let response = kv.put(put(key, value, *lease, *prev_kv)).await?.into_inner();
                done(&response.header, put_part(&response))
            }
            Request::Delete { key, end, prev_kv } => {
                let response = kv.delete_range(delete(key, end, *prev_kv)).await?.into_inner();
                done(&response.header, delete_part(&response))
            }
            Request::Txn { compares, then, otherwise } => {
                let response = kv.txn(txn(compares, then, otherwise)).await?.into_inner();
                done(&response.header, txn_part(&response))
            }
            Request::Grant { id, ttl_s } => {
                let response = lease.lease_grant(pb::LeaseGrantRequest { id: *id, ttl: *ttl_s }).await?.into_inner();
                done(&response.header, Reply::Grant { id: response.id, ttl_s: response.ttl })
            }
            Request::Revoke { id } => {
                let response = lease.lease_revoke(pb::LeaseRevokeRequest { id: *id }).await?.into_inner();
                done(&response.header, Reply::Revoke)
            }
            Request::KeepAlive { id } => {
                let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: *id }]);
                match lease.lease_keep_alive(requests).await?.into_inner().message().await? {
                    Some(response) => done(&response.header, Reply::KeepAlive { ttl_s: response.ttl }),
                    None => Outcome::Unknown,
                }
            }
            Request::Compact { revision } => {
                let request = pb::CompactionRequest { revision: *revision, physical: false };
                let response = kv.compact(request).await?.into_inner();
                done(&response.header, Reply::Compact)
            }
            Request::Users(_) | Request::Login { .. } => unreachable!("users do not count here"),
            Request::TimeToLive { id, keys } => {
                let request = pb::LeaseTimeToLiveRequest { id: *id, keys: *keys };
                let response = lease.lease_time_to_live(request).await?.into_inner();
                let (granted_ttl_s, ttl_s) = (response.granted_ttl, response.ttl);
                let keys = response.keys.iter().map(|key| key.to_vec()).collect();
                done(&response.header, Reply::TimeToLive { granted_ttl_s, ttl_s, keys })
            }
        })
    }
}

fn failure(status: &Status) -> Outcome {
    let refused = match status.code() {
        Code::OutOfRange
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::ResourceExhausted => status.message().starts_with("etcdserver: "),
        Code::Unknown => status.message() == "etcdserver: too many requests",
        _ => false,
    };
    if refused {
        return Outcome::Refused(status.message().to_owned());
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return Outcome::Refused(NOT_SENT.to_owned());
        }
        cause = error.source();
    }
    Outcome::Unknown
}

/// The refusal of a member that could not be reached: the request never left.
pub const NOT_SENT: &str = "not connected";

fn done(header: &Option<pb::ResponseHeader>, reply: Reply) -> Outcome {
    Outcome::Ok { revision: header.as_ref().map_or(0, |header| header.revision), reply }
}

fn range(key: &[u8], end: &[u8], limit: i64, revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_vec().into(), range_end: end.to_vec().into(), limit, revision, ..Default::default() }
}

fn put(key: &[u8], value: &[u8], lease: i64, prev_kv: bool) -> pb::PutRequest {
    pb::PutRequest { key: key.to_vec().into(), value: value.to_vec().into(), lease, prev_kv, ..Default::default() }
}

fn delete(key: &[u8], end: &[u8], prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_vec().into(), range_end: end.to_vec().into(), prev_kv }
}

fn txn(compares: &[Compare], then: &[TxnOp], otherwise: &[TxnOp]) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: compares.iter().map(compare).collect(),
        success: then.iter().map(operation).collect(),
        failure: otherwise.iter().map(operation).collect(),
    }
}

fn operation(op: &TxnOp) -> pb::RequestOp {
    let request = match op {
        TxnOp::Range { key, end, limit, revision } => {
            request_op::Request::RequestRange(range(key, end, *limit, *revision))
        }
        TxnOp::Put { key, value, lease, prev_kv } => request_op::Request::RequestPut(put(key, value, *lease, *prev_kv)),
        TxnOp::Delete { key, end, prev_kv } => request_op::Request::RequestDeleteRange(delete(key, end, *prev_kv)),
        TxnOp::Txn { compares, then, otherwise } => request_op::Request::RequestTxn(txn(compares, then, otherwise)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(compare: &Compare) -> pb::Compare {
    let (target, union) = match &compare.target {
        Target::ModRevision(n) => (CompareTarget::Mod, TargetUnion::ModRevision(*n)),
        Target::CreateRevision(n) => (CompareTarget::Create, TargetUnion::CreateRevision(*n)),
        Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(*n)),
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
    };
    let result = match compare.is {
        Relation::Equal => CompareResult::Equal,
        Relation::NotEqual => CompareResult::NotEqual,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: compare.key.clone().into(),
        target_union: Some(union),
        ..Default::default()
    }
}

fn part(op: &pb::ResponseOp) -> Reply {
    match &op.response {
        Some(response_op::Response::ResponseRange(response)) => range_part(response),
        Some(response_op::Response::ResponsePut(response)) => put_part(response),
        Some(response_op::Response::ResponseDeleteRange(response)) => delete_part(response),
        Some(response_op::Response::ResponseTxn(response)) => txn_part(response),
        // The judge will find that this is no answer to anything.
        None => Reply::Compact,
    }
}

fn txn_part(response: &pb::TxnResponse) -> Reply {
    Reply::Txn { succeeded: response.succeeded, replies: response.responses.iter().map(part).collect() }
}

fn range_part(response: &pb::RangeResponse) -> Reply {
    Reply::Range { kvs: response.kvs.iter().map(key_value).collect(), more: response.more, count: response.count }
}

fn put_part(response: &pb::PutResponse) -> Reply {
    Reply::Put { prev: response.prev_kv.as_ref().map(key_value) }
}

fn delete_part(response: &pb::DeleteRangeResponse) -> Reply {
    Reply::Delete { deleted: response.deleted, prevs: response.prev_kvs.iter().map(key_value).collect() }
}

fn key_value(kv: &mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key.to_vec(),
        value: kv.value.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}

/// An event of a watch.
pub fn event(event: &mvccpb::Event) -> Event {
    Event {
        kind: match event.r#type() {
            mvccpb::event::EventType::Put => EventKind::Put,
            mvccpb::event::EventType::Delete => EventKind::Delete,
        },
        kv: event.kv.as_ref().map(key_value).unwrap_or_default(),
        prev: event.prev_kv.as_ref().map(key_value),
    }
}
