//! The JSON gateway: etcd's gRPC methods for who has HTTP/1 and JSON, `POST /v3/...`.
//!
//! It knows no method by itself. A request is found in `ROUTES`, its JSON becomes the message that the method takes (`json`,
//! guided by the description of the API in `pb`), the message goes to the same services that gRPC clients are answered by
//! (`call`), and what they answer becomes JSON again. So checks, tokens, counters and errors are those of gRPC.
//!
//! ```text
//! POST /v3/kv/put                                    :path /etcdserverpb.KV/Put
//! {"key":"Zm9v","value":"YmFy"}       ───────▶       0a 03 66 6f 6f 12 03 62 61 72
//! {"header":{"revision":"2",...}}     ◀───────       0a 06 ...
//! ```
//!
//! A method that streams answers in lines, `{"result":{...}}`, and at last, or at once, if it failed, `{"error":{...}}`. A body may
//! hold several requests to a method that takes a stream, one JSON object after the other, and more may come while answers go
//! out. Closing the connection ends the call. All this can be had over WebSocket, too (`socket`).
//!
//! Words and codes are those of etcd 3.5, whose gateway this was compared with (`tests/compat/gateway.py`, which also lists what
//! is meant to differ). Not there: the form fields that etcd's gateway would take from a query.

mod call;
mod json;
mod socket;
mod stop;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method as HttpMethod, Response, StatusCode, Uri, header};
use axum::routing::any;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use serde_json::json;
use tower::Service;

use self::call::{Failure, Patience, Replies};
use self::json::Scan;
use self::stop::Stop;
use crate::audit::Origin;
use crate::pb;

/// Where each method is found below `/v3/`. Some have an older name, too.
const ROUTES: [(&str, &str); 51] = [
    ("kv/range", "etcdserverpb.KV/Range"),
    ("kv/put", "etcdserverpb.KV/Put"),
    ("kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "etcdserverpb.KV/Txn"),
    ("kv/compaction", "etcdserverpb.KV/Compact"),
    ("watch", "etcdserverpb.Watch/Watch"),
    ("lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock/Lock"),
    ("lock/unlock", "v3lockpb.Lock/Unlock"),
    ("election/campaign", "v3electionpb.Election/Campaign"),
    ("election/proclaim", "v3electionpb.Election/Proclaim"),
    ("election/leader", "v3electionpb.Election/Leader"),
    ("election/observe", "v3electionpb.Election/Observe"),
    ("election/resign", "v3electionpb.Election/Resign"),
];

/// What gRPC may add to the largest request, as etcd reckons it.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;
/// How much longer a message may be in JSON: base64 makes three bytes four, and names are longer than numbers.
const JSON_FACTOR: usize = 2;
/// However large requests may be: a message of this length in JSON fits into a frame, whatever is in it.
const JSON_BYTES_MAX: usize = 512 << 20;
/// Bytes of one message that are translated where they came: a millisecond's work. The thread may be the one that everything else
/// runs on.
const TRANSLATED_HERE_MAX: usize = 64 << 10;

const GRPC_METADATA_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");

/// The gRPC services of a member: they must always be ready.
pub trait Services:
    Service<Request, Response = Response<Self::Body>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
    /// The body of their answers.
    type Body: http_body::Body<Data: Buf + Send, Error: std::fmt::Display> + Send + Unpin + 'static;
}

impl<S, B> Services for S
where
    S: Service<Request, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
    B: http_body::Body<Data: Buf + Send, Error: std::fmt::Display> + Send + Unpin + 'static,
{
    type Body = B;
}

/// The gateway to some services.
#[derive(Clone)]
pub struct Gateway<S> {
    services: S,
    methods: Arc<HashMap<&'static str, Method>>,
    /// Of one request in JSON.
    json_bytes_max: usize,
}

/// A method, as it is described.
struct Method {
    /// `/service/method`.
    path: Uri,
    request: MessageDescriptor,
    reply: MessageDescriptor,
    takes_stream: bool,
    gives_stream: bool,
}

impl<S: Services> Gateway<S> {
    /// The gateway to `services`, which take requests of this length at most.
    pub fn new(services: S, request_bytes_max: usize) -> Gateway<S> {
        let pool = DescriptorPool::decode(pb::DESCRIPTORS).expect("build.rs wrote it");
        let methods = ROUTES.iter().map(|(route, path)| {
            let method = described(&pool, path).expect("routes name methods of the API");
            (*route, method)
        });
        let json_bytes_max = request_bytes_max.saturating_add(GRPC_OVERHEAD_BYTES).saturating_mul(JSON_FACTOR);
        Gateway { services, methods: Arc::new(methods.collect()), json_bytes_max: json_bytes_max.min(JSON_BYTES_MAX) }
    }

    /// All routes of the gateway.
    pub(super) fn routes<T: Clone + Send + Sync + 'static>(self) -> Router<T> {
        let answer = any(move |request: Request| {
            let gateway = self.clone();
            async move { gateway.answer(request).await }
        });
        let moved = any(async || {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/v3/"));
            response
        });
        Router::new()
            .route("/v3", moved)
            .route("/v3/", answer.clone())
            .route("/v3/{*rest}", answer.clone())
            // What it was called before it was finished.
            .route("/v3beta/{*rest}", answer)
    }

    async fn answer(self, request: Request) -> Response<Body> {
        if socket::wanted(request.headers()) {
            return socket::open(self, request);
        }
        let Some(method) = self.method(request.uri().path()) else {
            return super::error(StatusCode::NOT_FOUND, "Not Found");
        };
        if request.method() != HttpMethod::POST {
            return super::error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        }
        let (head, body) = request.into_parts();
        let objects = self.objects(body, Extent::Whole);
        self.call(method, &head, objects).await.unwrap_or_else(|failure| failed(&failure))
    }

    fn method(&self, path: &str) -> Option<&Method> {
        let route = path.strip_prefix("/v3/").or_else(|| path.strip_prefix("/v3beta/"))?;
        self.methods.get(route)
    }

    fn objects(&self, body: Body, extent: Extent) -> Objects {
        Objects { body, extent, scan: Scan::default(), rest: BytesMut::new(), bytes_max: self.json_bytes_max }
    }

    async fn call(&self, method: &Method, head: &Parts, mut objects: Objects) -> Result<Response<Body>, Failure> {
        let headers = &head.headers;
        let origin = head.extensions.get::<Origin>().map(|origin| origin.for_method(&method.path));
        let patience = Patience::new(call::deadline(headers)?, objects.extent.stop().cloned());
        let body = if method.takes_stream {
            let kind = method.request.clone();
            // A stream that begins with nonsense is refused. Nonsense later ends the requests, and not the call.
            match objects.next(&kind).await.map_err(Failure::of_a_stream)? {
                None => Body::empty(),
                Some(first) => {
                    let rest = stream::unfold(objects, move |mut objects| {
                        let kind = kind.clone();
                        async move { Some((objects.next(&kind).await.ok()??, objects)) }
                    });
                    Body::from_stream(stream::once(ready(first)).chain(rest).map(Ok::<_, Infallible>))
                }
            }
        } else {
            Body::from(objects.only(&method.request).await?)
        };
        let mut request = Request::new(body);
        *request.method_mut() = HttpMethod::POST;
        *request.uri_mut() = method.path.clone();
        *request.headers_mut() = call::metadata(headers);
        if let Some(origin) = origin {
            request.extensions_mut().insert(origin);
        }
        let mut replies = Replies::of(self.services.clone().call(request), patience).await?;

        let first = replies.next().await;
        let body = if method.gives_stream {
            let first = match first {
                Ok(Some(first)) => first,
                Ok(None) => return Ok(in_json(Body::empty())),
                // Then nothing has come of the answer, not even its head.
                Err(failure) if failure == Failure::too_late() => return Err(failure),
                Err(failure) => return Ok(broken(&failure)),
            };
            let kind = method.reply.clone();
            let first = line(&kind, first).await;
            let rest = stream::unfold(Some(replies), move |replies| {
                let kind = kind.clone();
                async move {
                    let mut replies = replies?;
                    match replies.next().await {
                        Ok(None) => None,
                        Ok(Some(reply)) => Some((line(&kind, reply).await, Some(replies))),
                        Err(failure) => Some((last_line(&failure), None)),
                    }
                }
            });
            Body::from_stream(stream::once(ready(first)).chain(rest).map(Ok::<_, Infallible>))
        } else {
            let message = first?.ok_or_else(|| Failure::internal("the call ended without an answer".to_owned()))?;
            // It may end badly all the same.
            replies.next().await?;
            let kind = method.reply.clone();
            let json = translated(message.len(), move || json::write(&kind, message)).await?;
            Body::from(json.map_err(Failure::internal)?)
        };
        Ok(answered(body))
    }
}

fn described(pool: &DescriptorPool, path: &str) -> Option<Method> {
    let (service, name) = path.split_once('/')?;
    let service = pool.get_service_by_name(service)?;
    let method = service.methods().find(|method| method.name() == name)?;
    Some(Method {
        path: Uri::try_from(format!("/{path}")).ok()?,
        request: method.input(),
        reply: method.output(),
        takes_stream: method.is_client_streaming(),
        gives_stream: method.is_server_streaming(),
    })
}

/// How much of a body is the request to a method that takes one.
enum Extent {
    /// All of it, though only its first object is read.
    Whole,
    /// Its first object. It has no end before the client's, or the stop.
    First(Stop),
}

impl Extent {
    fn stop(&self) -> Option<&Stop> {
        match self {
            Extent::Whole => None,
            Extent::First(stop) => Some(stop),
        }
    }
}

/// The body of a request, object by object or as one.
struct Objects {
    body: Body,
    extent: Extent,
    scan: Scan,
    /// What has come and is not a whole object yet.
    rest: BytesMut,
    bytes_max: usize,
}

impl Objects {
    /// The next message, in its frame. None: the client sends no more.
    async fn next(&mut self, kind: &MessageDescriptor) -> Result<Option<Bytes>, Failure> {
        loop {
            let json = match self.scan.end(&self.rest) {
                Some(end) => self.rest.split_to(end),
                None if self.more().await? => continue,
                None if self.rest.trim_ascii().is_empty() => return Ok(None),
                None => std::mem::take(&mut self.rest),
            };
            let kind = kind.clone();
            return translated(json.len(), move || read(&kind, &json)).await?.map(Some);
        }
    }

    /// The only message, in its frame.
    async fn only(mut self, kind: &MessageDescriptor) -> Result<Bytes, Failure> {
        match self.extent {
            Extent::First(_) => Ok(self.next(kind).await?.unwrap_or_default()),
            Extent::Whole => {
                while self.more().await? {}
                let (kind, json) = (kind.clone(), self.rest);
                translated(json.len(), move || read(&kind, &json)).await?
            }
        }
    }

    /// Waits for more of the body. False: there is none.
    async fn more(&mut self) -> Result<bool, Failure> {
        let frame = match &mut self.extent {
            Extent::Whole => self.body.frame().await,
            Extent::First(stop) => tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = stop.interrupts() => return Err(Failure::stopped()),
            },
        };
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|error| Failure::unknown(error.to_string()))?;
        if let Ok(data) = frame.into_data() {
            if self.rest.len() + data.len() > self.bytes_max {
                let max = self.bytes_max;
                return Err(Failure::resource_exhausted(format!("request in JSON is longer than {max} bytes")));
            }
            self.rest.extend_from_slice(&data);
        }
        Ok(true)
    }
}

/// A request in its frame.
fn read(kind: &MessageDescriptor, json: &[u8]) -> Result<Bytes, Failure> {
    let message = json::read(kind, json).map_err(Failure::invalid_argument)?;
    Ok(call::framed(&message))
}

/// Translates so many bytes: here, or aside if that would keep others waiting.
async fn translated<T: Send + 'static>(
    bytes: usize,
    translate: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    if bytes <= TRANSLATED_HERE_MAX {
        return Ok(translate());
    }
    tokio::task::spawn_blocking(translate).await.map_err(|error| Failure::internal(error.to_string()))
}

/// One answer of a stream.
async fn line(kind: &MessageDescriptor, reply: Bytes) -> Bytes {
    let kind = kind.clone();
    let json = translated(reply.len(), move || json::write(&kind, reply).map_err(Failure::internal)).await;
    match json.flatten() {
        Ok(json) => [&b"{\"result\":"[..], &json, b"}\n"].concat().into(),
        Err(failure) => last_line(&failure),
    }
}

/// How a stream of answers ends that failed.
fn last_line(failure: &Failure) -> Bytes {
    let status = failure.http_status();
    let error = json!({
        "grpc_code": failure.code,
        "http_code": status.as_u16(),
        "message": failure.message,
        "http_status": status.canonical_reason(),
    });
    format!("{}\n", json!({ "error": error })).into()
}

/// What a stream of answers is that fails before the first: the error that ends others, with the status that it means.
fn broken(failure: &Failure) -> Response<Body> {
    let mut response = in_json(Body::from(last_line(failure)));
    *response.status_mut() = failure.http_status();
    response
}

fn answered(body: Body) -> Response<Body> {
    let mut response = in_json(body);
    response.headers_mut().insert(GRPC_METADATA_CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn failed(failure: &Failure) -> Response<Body> {
    let (message, code) = (json!(failure.message), failure.code);
    // Its name has changed with versions of the gateway: clients look for either.
    let error = format!("{{\"error\":{message},\"code\":{code},\"message\":{message}}}");
    let mut response = in_json(Body::from(error));
    *response.status_mut() = failure.http_status();
    response
}

fn in_json(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
