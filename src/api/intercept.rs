//! What is true of every call, whatever its method: metadata that etcd looks at before the handler, counters, and the status of a
//! message that is too long.
//!
//! * `hasleader: true` at a member that knows no leader: `etcdserver: no leader`. At one that has lost it for a while: the same, for
//!   streams (in `led`). Watches look for themselves.
//! * Who may call a method at all, while users count ([`Door`]); handlers are told who calls.
//! * `client-api-version` that is not UTF-8: `etcdserver: invalid client api version`.
//! * gRPC's Go library answers a message over the limit with ResourceExhausted and words of its own; clients of etcd expect those.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf, Bytes};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::codegen::{Service, StdError};
use tonic::service::Routes;
use tonic::{Code, Status};

use super::body::{Body, Payload};
use super::caller::{Caller, Door};
use super::kv::{Call, KvService};
use super::led::WhileLed;
use super::received::{Messages, Received};
use super::status::{Intercepted, no_leader};
use super::unary::GRPC_STATUS;
use super::watch::WatchService;
use crate::metrics::{CallKind, METHODS, Method, Metrics};
use crate::server::handle::Handle;

const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");
const HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// What a missing leader means to a call that asked for one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Led {
    /// It is refused.
    AtFirst,
    /// It is refused, and ended if the leader is lost later.
    Throughout,
    /// It looks for itself.
    ByItself,
}

impl Led {
    fn of(path: &str, kind: CallKind) -> Led {
        match (path, kind) {
            ("/etcdserverpb.Watch/Watch", _) => Led::ByItself,
            (_, CallKind::Unary) => Led::AtFirst,
            ("/etcdserverpb.Maintenance/Snapshot" | "/etcdserverpb.KV/RangeStream", _) => Led::AtFirst,
            _ => Led::Throughout,
        }
    }
}

/// What goes past the router.
#[derive(Clone, Copy)]
enum Past {
    Kv(Call),
    Watch,
}

struct Known {
    method: Method,
    past: Option<Past>,
    door: Door,
    led: Led,
    /// A learner answers it, or looks for itself.
    learner: bool,
}

static KNOWN: LazyLock<HashMap<String, Known>> = LazyLock::new(|| {
    let known = METHODS.iter().filter_map(|(service, name, kind)| {
        let path = format!("/{service}/{name}");
        let method = Method::of_path(&path)?;
        let (door, led) = (Door::of_path(&path), Led::of(&path, *kind));
        let watch = path == "/etcdserverpb.Watch/Watch";
        let past = if watch { Some(Past::Watch) } else { Call::of_path(&path).map(Past::Kv) };
        // etcd's answers no more than this; health is for whoever looks after the process.
        let learner = matches!(
            (*service, *name),
            ("etcdserverpb.KV", "Range" | "RangeStream")
                | ("etcdserverpb.Watch", "Watch")
                | ("etcdserverpb.Maintenance", "Status" | "Snapshot")
                | ("grpc.health.v1.Health", _)
        );
        let known = Known { method, past, door, led, learner };
        Some((path, known))
    });
    known.collect()
});

/// All services of a member, with what is true of every call around them.
#[derive(Clone)]
pub struct Intercept {
    kv: KvService,
    watch: WatchService,
    inner: Routes,
    handle: Handle,
}

impl Intercept {
    /// Around `kv`, `watch` and all the others.
    pub(super) fn new(kv: KvService, watch: WatchService, inner: Routes, handle: Handle) -> Intercept {
        Intercept { kv, watch, inner, handle }
    }

    fn refusal(&self, known: &Known, headers: &HeaderMap) -> Option<Status> {
        if headers.get(CLIENT_API_VERSION).is_some_and(|value| str::from_utf8(value.as_bytes()).is_err()) {
            return Some(Intercepted::ClientVersion.into());
        }
        if !known.learner && self.handle.is_learner() {
            return Some(Intercepted::Learner.into());
        }
        if known.led != Led::ByItself && asks_for_leader(headers) && self.handle.leader().is_none() {
            return Some(no_leader());
        }
        None
    }
}

impl<B> Service<Request<B>> for Intercept
where
    B: http_body::Body<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
{
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Counted>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A router is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let known = KNOWN.get(request.uri().path());
        let count = known.map(|known| {
            let metrics = self.handle.metrics().clone();
            metrics.grpc[known.method].started.inc();
            Count { metrics, method: known.method, began: Instant::now(), sent: Messages::default(), code: None }
        });
        let counted = count.as_ref().map(|count| (count.metrics.clone(), count.method));
        let mut request = request.map(|body| Received::new(body, counted));
        if let Some(refusal) = known.and_then(|known| self.refusal(known, request.headers())) {
            let response = refusal.into_http().map(Body::Tonic);
            return Box::pin(std::future::ready(Ok(Counted::around(response, count))));
        }
        if let Some(past) = known.and_then(|known| known.past) {
            let caller = Caller::of(request.headers(), request.extensions());
            match past {
                Past::Kv(call) => {
                    let counted = |response| Ok(Counted::around(response, count));
                    return self.kv.clone().answer(call, request, caller, counted);
                }
                Past::Watch => {
                    let response = self.watch.answer(request, caller);
                    return Box::pin(std::future::ready(Ok(Counted::around(response, count))));
                }
            }
        }
        let throughout = known.is_some_and(|known| known.led == Led::Throughout) && asks_for_leader(request.headers());
        let lost = throughout.then(|| self.handle.leader_lost());
        let while_led = |body| match lost {
            Some(lost) => tonic::body::Body::new(WhileLed::new(body, lost)),
            None => body,
        };
        let caller = Caller::of(request.headers(), request.extensions());
        caller.clone().attach(request.extensions_mut());
        let door = known.map_or(Door::Root, |known| known.door);
        if door.is_kept(&self.handle) {
            let (mut inner, handle) = (self.inner.clone(), self.handle.clone());
            return Box::pin(async move {
                let mut response = match door.admit(&caller, &handle).await {
                    Ok(()) => inner.call(request).await?,
                    Err(status) => status.into_http(),
                };
                correct_too_long(response.headers_mut());
                Ok(Counted::around(response.map(|body| Body::Tonic(while_led(body))), count))
            });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            correct_too_long(response.headers_mut());
            Ok(Counted::around(response.map(|body| Body::Tonic(while_led(body))), count))
        })
    }
}

fn asks_for_leader(headers: &HeaderMap) -> bool {
    headers.get(HAS_LEADER).is_some_and(|value| value == "true")
}

/// tonic says OutOfRange where Go's gRPC says ResourceExhausted, and neither client nor test would recognise its words.
fn correct_too_long(headers: &mut HeaderMap) {
    if headers.get(GRPC_STATUS).is_none_or(|code| code != "11") {
        return;
    }
    let corrected = Status::from_header_map(headers).and_then(|status| too_long(&status));
    if let Some(status) = corrected {
        headers.insert(GRPC_STATUS, HeaderValue::from_static("8"));
        // Digits, dots, letters and parentheses only: nothing that would have to be escaped.
        if let Ok(message) = HeaderValue::from_str(status.message()) {
            headers.insert(MESSAGE, message);
        }
    }
}

/// The status Go's gRPC gives for a message over the limit, if `status` is tonic's for that.
pub(super) fn too_long(status: &Status) -> Option<Status> {
    let text = status.message();
    if status.code() != Code::OutOfRange || !text.contains("message length too large") {
        return None;
    }
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
    let (found, limit) = (numbers.next()?, numbers.next()?);
    Some(Intercepted::TooLong { found: found.to_owned(), limit: limit.to_owned() }.into())
}

/// Counts the end of a call, however it ends.
struct Count {
    metrics: Arc<Metrics>,
    method: Method,
    began: Instant,
    sent: Messages,
    code: Option<i32>,
}

impl Count {
    fn note(&mut self, headers: &HeaderMap) {
        let code = headers.get(GRPC_STATUS).and_then(|code| code.to_str().ok()).and_then(|code| code.parse().ok());
        self.code = self.code.or(code);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let metrics = &self.metrics.grpc[self.method];
        // A call whose response was dropped before its end was given up by the client.
        metrics.handled(self.code.unwrap_or(Code::Cancelled as i32));
        metrics.handling_seconds.observe(self.began.elapsed());
    }
}

/// A response that is counted when it ends.
pub struct Counted {
    inner: Body,
    count: Option<Count>,
}

impl Counted {
    fn around(response: Response<Body>, mut count: Option<Count>) -> Response<Counted> {
        if let Some(count) = &mut count {
            count.note(response.headers());
        }
        response.map(|inner| Counted { inner, count })
    }
}

impl http_body::Body for Counted {
    type Data = Payload;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Payload>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let in_pieces = matches!(self.inner, Body::Message(_));
        if let Some(count) = &mut self.count {
            let metrics = &count.metrics;
            match &frame {
                Some(Ok(frame)) => match (frame.trailers_ref(), frame.data_ref()) {
                    (Some(trailers), _) => {
                        // With them a message that may have had several frames is sent.
                        if in_pieces {
                            metrics.grpc[count.method].sent.inc();
                        }
                        count.note(trailers);
                    }
                    (None, data) => {
                        let begun = match data {
                            // Counted at their end.
                            _ if in_pieces => 0,
                            Some(Payload::Whole(bytes)) => count.sent.begin_in(bytes),
                            Some(Payload::Woven(_)) => 1,
                            None => 0,
                        };
                        metrics.grpc[count.method].sent.add(begun);
                        metrics.client_sent_bytes.add(data.map_or(0, |data| data.remaining() as u64));
                    }
                },
                Some(Err(_)) => count.code = Some(Code::Internal as i32),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_over_the_limit_gets_the_words_that_go_clients_know() {
        let tonic = Status::out_of_range(
            "Error, decoded message length too large: found 2097164 bytes, the limit is: 2097152 bytes",
        );
        let go = too_long(&tonic).unwrap();
        assert_eq!(go.code(), Code::ResourceExhausted);
        assert_eq!(go.message(), "grpc: received message larger than max (2097164 vs. 2097152)");
        assert!(too_long(&Status::out_of_range("etcdserver: mvcc: required revision has been compacted")).is_none());
    }
}
