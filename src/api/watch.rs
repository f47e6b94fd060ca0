//! The Watch service: one stream of requests and one of responses per client, any number of watchers on it.
//!
//! The service is written by hand where tonic would generate it, because its responses are not built as messages and are put together
//! only when they are sent, and because an idle stream is to cost little: see `frames`, `woven` and `requests` beside it.
//!
//! There is no task per stream. `Responses` is polled when the connection can take more, and then reads requests and the
//! outbox. So a client that does not read its responses is not listened to either, and whatever it does, what this member
//! holds for it is bounded. Half-closing changes nothing: events keep flowing until the client ends the call. However it ends,
//! dropping the stream frees its watchers.
//!
//! A watcher "from now on" begins at what is committed now, not at what this member happens to have carried out: before it is
//! created, the member has the leader confirm how far it must be, as for a linearizable read, once for all requests that wait.
//! So the revision in "created" is never behind a write that the client has seen acknowledged, whoever acknowledged it. Where
//! no leader can be asked, the member does not wait for one: it says what it knows, as etcd always does.
//!
//! Where users count, a watcher is for whoever may read all its keys when it is created. It ends when he may no longer, unless a flag
//! wants it to go on, as in etcd.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use prost::Message;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::Status;
use tonic::codegen::StdError;

use super::body::Body;
use super::caller::Caller;
use super::frames::{Frames, WRITE_BYTES};
use super::requests::Requests;
use super::status::{Intercepted, lagging, no_leader, status, trailers, watch_denied};
use super::unary::respond;
use super::woven::Woven;
use crate::auth;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::server::error::Error;
use crate::server::logins::Claim;
use crate::server::watch_loop::{Confirmation, WatchHandle, WatchStream};
use crate::server::watch_rights::{Denied, Rights};
use crate::types::{KeyRange, Revision};
use crate::watch::{End, Filters, Next, Outgoing, Refusal, Spec};

/// Requests read before the outbox is looked at again.
const REQUESTS_PER_POLL: usize = 64;
/// Requests of one stream that may wait for a confirmation, and their bytes. Beyond either the client is not listened to.
const WAITING_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 1 << 20;
/// What gRPC may add to the largest request, as etcd reckons it.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;
/// Bytes of events to which responses for the same watchers are joined: with its head, such a response is one piece.
const JOINED_BYTES_MAX: usize = WRITE_BYTES - 512;
/// Metadata by which a client asks to be cut off from a member without leader.
const HAS_LEADER: &str = "hasleader";

/// The service, as the router takes it.
#[derive(Clone, Debug)]
pub struct WatchService {
    handle: WatchHandle,
    options: WatchOptions,
}

/// What the flags say about watching.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// How often quiet watchers that want it are told how far they are, before jitter.
    pub progress_interval: Duration,
    /// The largest request; with what gRPC may add it is also the size above which responses are cut for those who asked.
    pub request_bytes_max: usize,
}

impl WatchService {
    /// The service of a member.
    pub fn new(handle: WatchHandle, options: WatchOptions) -> WatchService {
        WatchService { handle, options }
    }

    /// The response to a call of the stream's method.
    pub(super) fn answer<B>(&self, request: Request<B>, caller: Caller) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error: Into<StdError>> + Send + 'static,
    {
        let (head, body) = request.into_parts();
        respond(
            self.open(&head.headers, caller, tonic::body::Body::new(body)).map(|stream| Body::Watch(Box::new(stream))),
        )
    }

    fn open(&self, headers: &HeaderMap, caller: Caller, requests: tonic::body::Body) -> Result<Responses, Status> {
        let message_bytes_max = self.options.request_bytes_max.saturating_add(GRPC_OVERHEAD_BYTES);
        let requests = Requests::new(headers, requests, message_bytes_max)?;
        let standing = self.handle.standing();
        if standing.learner {
            return Err(Intercepted::Learner.into());
        }
        let needs_leader = headers.get(HAS_LEADER).is_some_and(|value| value == "true");
        if needs_leader && standing.leader.is_none() {
            return Err(no_leader());
        }
        if needs_leader && standing.lagging {
            return Err(lagging());
        }
        let stream = self.handle.open();
        if needs_leader {
            stream.need_leader();
        }
        Ok(Responses {
            handle: self.handle.clone(),
            caller,
            rights: Rights::new(self.handle.guard()),
            stream,
            requests: Some(requests),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            confirmed: 0,
            confirming: None,
            ticker: progress_ticker(self.options.progress_interval),
            frames: Frames::new(message_bytes_max),
            next: None,
            end: None,
            ended: false,
        })
    }
}

/// Ticks of one stream. The jitter keeps streams that were opened together from being told together for ever.
fn progress_ticker(interval: Duration) -> Interval {
    let chance = getrandom::u32().map_or(0.0, |number| f64::from(number) / f64::from(u32::MAX));
    // A ticker cannot have no period; flags ask for at least 100 ms.
    let period = interval.max(Duration::from_millis(1)).mul_f64(1.0 + 0.1 * chance);
    let mut ticker = interval_at(Instant::now() + period, period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// The responses of one stream, as the body of the call's response.
pub(super) struct Responses {
    handle: WatchHandle,
    /// Asked anew for every watcher: a token may run out while its stream goes on.
    caller: Caller,
    /// What he may hear of.
    rights: Rights,
    stream: WatchStream,
    /// `None` once the client has half-closed.
    requests: Option<Requests<tonic::body::Body>>,
    /// Requests that were read, in order. One that needs to know what "now" is keeps those behind it waiting.
    waiting: VecDeque<WatchRequest>,
    waiting_bytes: usize,
    /// How many of them, from the front, came before the last confirmation was asked for.
    confirmed: usize,
    confirming: Option<Confirmation>,
    ticker: Interval,
    frames: Frames,
    /// Taken from the outbox already, to see whether it can be joined to what comes before it.
    next: Option<Next>,
    /// How the call ends, once everything is written.
    end: Option<Status>,
    ended: bool,
}

impl http_body::Body for Responses {
    type Data = Woven;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Woven>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.frames.take() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(status) = &this.end {
                this.ended = true;
                return Poll::Ready(Some(trailers(status)));
            }
            if !this.gather(cx) {
                return Poll::Pending;
            }
        }
    }
}

impl Responses {
    /// Looks after the clock and the requests, and writes what waits in the outbox, not too much at once. Whether there is
    /// something to hand to the connection.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        if self.ticker.poll_tick(cx).is_ready() {
            self.stream.tick_progress();
            // Once more, to be woken for the next tick.
            cx.waker().wake_by_ref();
        }
        if let Err(status) = self.listen(cx) {
            self.end = Some(status);
            return true;
        }
        // Before anything is written.
        let reason = watch_denied(Denied::Auth(auth::Error::PermissionDenied));
        self.rights.review(self.handle.guard(), |may| self.stream.revoke(may, reason));
        let standing = self.handle.standing();
        let (mut written, mut newest) = (false, None);
        while self.frames.resume() && !self.frames.is_full() {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.stream.outbox().poll_next(cx) {
                    Poll::Ready(next) => next,
                    Poll::Pending => break,
                },
            };
            written = true;
            let result = match next {
                Next::Message(mut message) => {
                    if let Outgoing::Events(events) = &mut message {
                        self.next = self.stream.outbox().join(events, JOINED_BYTES_MAX);
                        newest = Some(events.revision);
                    }
                    match self.rights.filter(&mut message) {
                        true => self.frames.write(message, &standing),
                        false => Ok(()),
                    }
                }
                Next::End(End::Stopped) => Err(status(Error::Stopped)),
                Next::End(End::NoLeader) => Err(no_leader()),
                Next::End(End::Lagging) => Err(lagging()),
            };
            if let Err(status) = result {
                self.end = Some(status);
                break;
            }
        }
        if let Some(revision) = newest {
            self.handle.written(revision);
        }
        if self.rights.ask_again() {
            self.stream.progress();
        }
        written || !self.frames.is_empty()
    }

    /// Handles what requests there are, not too many at once.
    fn listen(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        self.read(cx)?;
        loop {
            if let Some(confirming) = &mut self.confirming {
                if confirming.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                self.confirming = None;
            }
            while let Some(request) = self.waiting.front() {
                if self.confirmed == 0 && self.needs_confirmation(request) {
                    break;
                }
                // Without room there is something to write, and then we are called again.
                if !self.stream.outbox().has_answer_room() {
                    return Ok(());
                }
                self.confirmed = self.confirmed.saturating_sub(1);
                if let Some(request) = self.waiting.pop_front() {
                    self.waiting_bytes -= request.encoded_len();
                    self.handle(request);
                }
            }
            if self.waiting.is_empty() {
                // A thousand requests at once are not to cost their room for ever.
                self.waiting = VecDeque::new();
                return Ok(());
            }
            self.confirmed = self.waiting.len();
            self.confirming = Some(self.handle.confirm());
        }
    }

    /// Reads what requests there are.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        for _ in 0..REQUESTS_PER_POLL {
            let full = self.waiting.len() >= WAITING_MAX || self.waiting_bytes >= WAITING_BYTES_MAX;
            if full || !self.stream.outbox().has_answer_room() {
                return Ok(());
            }
            let Some(requests) = &mut self.requests else { return Ok(()) };
            match requests.poll_next(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(request)) => {
                    let request: WatchRequest = request?;
                    self.waiting_bytes += request.encoded_len();
                    self.waiting.push_back(request);
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether a request creates a watcher of what comes from now on, or one by somebody whose rights, or token, another member may
    /// know better.
    fn needs_confirmation(&self, request: &WatchRequest) -> bool {
        let Some(RequestUnion::CreateRequest(create)) = &request.request_union else { return false };
        create.start_revision == 0 || !matches!(self.caller.claim(), Claim::Nothing)
    }

    fn handle(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                let spec = spec(create);
                match self.rights.admit(self.handle.guard(), self.caller.claim(), &spec.range) {
                    Ok(()) => self.stream.create(spec),
                    Err(denied) => self.stream.refuse(Refusal::Denied(watch_denied(denied))),
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => self.stream.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.stream.progress(),
            // A request of a later version of the API, or an empty one.
            None => {}
        }
    }
}

/// What a create request asks for. An empty key is the smallest key there is.
fn spec(request: WatchCreateRequest) -> Spec {
    let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
    Spec {
        range: KeyRange::from_wire(key, request.range_end),
        start: Revision(request.start_revision),
        filters: Filters {
            no_put: request.filters.contains(&(FilterType::Noput as i32)),
            no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
        },
        prev_kv: request.prev_kv,
        progress_notify: request.progress_notify,
        fragment: request.fragment,
        id: (request.watch_id != 0).then_some(request.watch_id),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::codegen::Service;
    use tonic::{Code, Request, Streaming};

    use super::*;
    use crate::api::body::Plain;
    use crate::mvcc::change::{Change, ChangeKind, ChangeSet};
    use crate::pb::etcdserverpb::watch_client::WatchClient;
    use crate::pb::etcdserverpb::{ResponseHeader, WatchCancelRequest, WatchProgressRequest, WatchResponse};
    use crate::pb::mvccpb::KeyValue;
    use crate::server::watch_loop::{Shard, Standing};
    use crate::server::watch_rights::Guard;
    use crate::types::{ClusterId, MemberId, Term};
    use crate::watch::{Feeds, Hub, Notice};

    struct Member {
        feeds: Feeds,
        shard: Arc<Shard>,
        standing: Arc<Mutex<Standing>>,
        /// A quorum answers.
        confirmed: tokio::sync::watch::Sender<bool>,
        client: WatchClient<Plain<Called>>,
    }

    /// The service, called directly.
    #[derive(Clone)]
    struct Called(WatchService);

    impl Service<http::Request<tonic::body::Body>> for Called {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
            let caller = Caller::of(request.headers(), request.extensions());
            std::future::ready(Ok(self.0.answer(request, caller)))
        }
    }

    /// Nobody has to say who he is.
    struct Everybody;

    impl Guard for Everybody {
        fn admit(&self, _: Claim<'_>, _: &KeyRange) -> Result<Option<Arc<str>>, Denied> {
            Ok(None)
        }

        fn rights(&self) -> u64 {
            0
        }

        fn may(&self, _: &Arc<str>, _: &KeyRange) -> bool {
            true
        }
    }

    /// A member without a store behind it; clients call its service directly.
    fn member() -> Member {
        let (hub, feeds) = (Hub::new(Revision(1), Revision(-1)), Feeds::new(1, Revision(1)));
        let shard = Arc::new(Shard::new(hub, feeds.of(0), Box::new(|_| None)));
        let standing = Arc::new(Mutex::new(Standing {
            cluster: ClusterId(7),
            member: MemberId(u64::MAX),
            term: Term(3),
            leader: Some(MemberId(1)),
            learner: false,
            lagging: false,
        }));
        let seen = standing.clone();
        let confirmed = tokio::sync::watch::Sender::new(true);
        let quorum = confirmed.subscribe();
        let confirm = Arc::new(move || -> Confirmation {
            let mut quorum = quorum.clone();
            Box::pin(async move { drop(quorum.wait_for(|confirmed| *confirmed).await) })
        });
        let handle = WatchHandle::new(
            [shard.clone()].into(),
            Arc::new(|_| ()),
            Arc::new(move || *seen.lock().unwrap()),
            confirm,
            Arc::new(Everybody),
        );
        let options = WatchOptions { progress_interval: Duration::from_millis(20), request_bytes_max: 0 };
        let client =
            WatchClient::new(Plain(Called(WatchService::new(handle, options)))).max_decoding_message_size(usize::MAX);
        Member { feeds, shard, standing, confirmed, client }
    }

    impl Member {
        fn put(&self, revision: i64, key: &str, bytes: usize) {
            let changes = (0..2).map(|n| {
                let key = Bytes::from(format!("{key}{n}"));
                let kv = KeyValue { key: key.clone(), value: vec![1; bytes].into(), ..Default::default() };
                Change::new(key, ChangeKind::Put, kv.encode_to_vec().into(), None)
            });
            let set = ChangeSet { revision: Revision(revision), changes: changes.collect() };
            self.shard.hub().publish(&Arc::new(set), &mut |_| None);
        }

        async fn watch(&mut self) -> (mpsc::Sender<WatchRequest>, Streaming<WatchResponse>) {
            let (requests, receiver) = mpsc::channel(16);
            let responses = self.client.watch(ReceiverStream::new(receiver)).await.unwrap();
            (requests, responses.into_inner())
        }
    }

    fn create(prefix: &str) -> WatchCreateRequest {
        let end = [&prefix.as_bytes()[..prefix.len() - 1], &[prefix.as_bytes()[prefix.len() - 1] + 1]].concat();
        WatchCreateRequest { key: prefix.to_owned().into(), range_end: end.into(), ..Default::default() }
    }

    fn ask(union: RequestUnion) -> WatchRequest {
        WatchRequest { request_union: Some(union) }
    }

    async fn next(responses: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Status> {
        let message = timeout(Duration::from_secs(10), responses.message()).await.expect("a response in time");
        message.map(|response| response.expect("the stream goes on"))
    }

    #[tokio::test]
    async fn responses_are_the_messages_of_the_api_and_outlive_the_requests() {
        let mut member = member();
        let (requests, mut responses) = member.watch().await;
        requests.send(WatchRequest::default()).await.unwrap();
        requests.send(ask(RequestUnion::CreateRequest(create("k")))).await.unwrap();
        let created = next(&mut responses).await.unwrap();
        let header = ResponseHeader { cluster_id: 7, member_id: u64::MAX, revision: 1, raft_term: 3 };
        let plain = WatchResponse { header: Some(header), ..Default::default() };
        assert_eq!(created, WatchResponse { created: true, ..plain.clone() });

        requests.send(ask(RequestUnion::CreateRequest(create("k")))).await.unwrap();
        assert_eq!(next(&mut responses).await.unwrap().watch_id, 1);
        requests.send(ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 1 }))).await.unwrap();
        assert_eq!(next(&mut responses).await.unwrap(), WatchResponse { watch_id: 1, canceled: true, ..plain.clone() });
        let backwards = WatchCreateRequest { range_end: "a".into(), ..create("k") };
        requests.send(ask(RequestUnion::CreateRequest(backwards))).await.unwrap();
        let cancel_reason = "mvcc: watcher range is empty".to_owned();
        let refused = WatchResponse { watch_id: -1, created: true, canceled: true, cancel_reason, ..plain.clone() };
        assert_eq!(next(&mut responses).await.unwrap(), refused);
        requests.send(ask(RequestUnion::ProgressRequest(WatchProgressRequest {}))).await.unwrap();
        assert_eq!(next(&mut responses).await.unwrap(), WatchResponse { watch_id: -1, ..plain });

        drop(requests);
        member.put(2, "k", 1);
        let events = next(&mut responses).await.unwrap();
        assert_eq!((events.watch_id, events.header.unwrap().revision, events.events.len()), (0, 2, 2));
        assert_eq!(member.shard.hub().stats().watchers, 1);
        drop(responses);
        while member.shard.hub().stats().streams > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(member.shard.hub().stats().watchers, 0);
    }

    #[tokio::test]
    async fn a_watcher_from_now_on_waits_to_learn_what_now_is() {
        let mut member = member();
        let (requests, mut responses) = member.watch().await;
        member.confirmed.send_replace(false);
        let from = |start_revision| RequestUnion::CreateRequest(WatchCreateRequest { start_revision, ..create("k") });
        let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 });
        // The first knows where it begins. Those behind the second keep their places.
        for union in [from(1), from(0), from(2), cancel, from(0)] {
            requests.send(ask(union)).await.unwrap();
        }
        let told = |response: WatchResponse| (response.watch_id, response.canceled, response.header.unwrap().revision);
        assert_eq!(told(next(&mut responses).await.unwrap()), (0, false, 1));
        member.put(2, "other", 1);
        // Whatever could go on has gone on by then.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(member.shard.hub().stats().watchers, 1);
        member.confirmed.send_replace(true);
        for wanted in [(1, false, 2), (2, false, 2), (0, true, 2), (3, false, 2)] {
            assert_eq!(told(next(&mut responses).await.unwrap()), wanted);
        }
    }

    #[tokio::test]
    async fn large_responses_are_cut_for_those_who_asked() {
        let mut member = member();
        let (requests, mut responses) = member.watch().await;
        for fragment in [true, false] {
            let create = WatchCreateRequest { fragment, ..create("k") };
            requests.send(ask(RequestUnion::CreateRequest(create))).await.unwrap();
            next(&mut responses).await.unwrap();
        }
        member.put(2, "k", 300 << 10);
        let mut seen = Vec::new();
        for _ in 0..3 {
            let response = next(&mut responses).await.unwrap();
            assert_eq!(response.header.unwrap().revision, 2);
            seen.push((response.watch_id, response.fragment, response.events.len()));
        }
        assert_eq!(seen, [(0, true, 1), (0, false, 1), (1, false, 2)]);
    }

    #[tokio::test]
    async fn quiet_watchers_are_told_how_far_they_are() {
        let mut member = member();
        let (requests, mut responses) = member.watch().await;
        let create = WatchCreateRequest { progress_notify: true, ..create("k") };
        requests.send(ask(RequestUnion::CreateRequest(create))).await.unwrap();
        assert!(next(&mut responses).await.unwrap().created);
        member.put(2, "other", 1);
        loop {
            let progress = next(&mut responses).await.unwrap();
            assert!(progress.watch_id == 0 && progress.events.is_empty() && !progress.canceled);
            if progress.header.unwrap().revision == 2 {
                break;
            }
        }
    }

    #[tokio::test]
    async fn an_end_that_was_told_before_a_stream_opened_is_not_for_it() {
        let mut member = member();
        member.feeds.tell(&[Notice::Ended(End::NoLeader)]);
        let (requests, receiver) = mpsc::channel(1);
        let mut needing = Request::new(ReceiverStream::new(receiver));
        needing.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut responses = member.client.watch(needing).await.unwrap().into_inner();
        requests.send(ask(RequestUnion::CreateRequest(create("k")))).await.unwrap();
        assert!(next(&mut responses).await.unwrap().created);
    }

    #[tokio::test]
    async fn streams_end_as_unavailable() {
        let mut member = member();
        let mut needing = Request::new(tokio_stream::pending());
        needing.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut needing = member.client.watch(needing).await.unwrap().into_inner();
        let (_requests, mut other) = member.watch().await;
        member.shard.hub().end_needing(End::NoLeader);
        let status = next(&mut needing).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        member.shard.hub().stop(usize::MAX);
        let status = next(&mut other).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));

        member.standing.lock().unwrap().lagging = true;
        let mut needing = Request::new(tokio_stream::pending());
        needing.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let status = member.client.watch(needing).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_ne!(status.message(), "etcdserver: no leader", "clients give up with this one");

        member.standing.lock().unwrap().leader = None;
        let mut needing = Request::new(tokio_stream::pending());
        needing.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let status = member.client.watch(needing).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        member.standing.lock().unwrap().learner = true;
        let status = member.client.watch(tokio_stream::pending()).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
    }
}
