//! Watchers on one stream that moves from endpoint to endpoint.
//!
//! All watchers are created at once, without waiting for one answer before the next request: coming back with a thousand takes
//! one round trip. Servers answer in the order of the requests, which tells whose refusal a response without an id is.

use std::collections::VecDeque;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use super::backoff::Backoff;
use super::resume::{News, Resume, Want};
use super::{Client, Error};
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{ResponseHeader, WatchCancelRequest, WatchProgressRequest, WatchRequest, WatchResponse};

/// Requests that may wait for the connection, beyond those that create. Beyond this they are dropped: both kinds may be
/// asked again.
const REQUESTS_MAX: usize = 64;
/// The largest response. A server sends a revision in one piece unless told otherwise, and that can be large.
const RESPONSE_BYTES_MAX: usize = 1 << 30;

/// What a watch has to say.
#[derive(Debug)]
pub enum Heard {
    /// Something about one of its watchers, by its place among those wanted.
    Of(usize, News),
    /// The stream broke, for this reason. It goes on at the next endpoint.
    Lost(Status),
    /// All watchers were asked for at this endpoint, by its number.
    Moved(usize),
}

/// Watchers on one stream.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    /// Tells watches of different connections apart.
    user: usize,
    /// A member that knows no leader does not serve it.
    needs_leader: bool,
    /// Those that are over are none.
    watchers: Vec<Option<Resume>>,
    endpoint: usize,
    stream: Option<Stream>,
    backoff: Backoff,
    waiting: VecDeque<Heard>,
    header: ResponseHeader,
}

#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    /// Watchers whose creation was not answered, in the order of the requests.
    creating: VecDeque<usize>,
    /// When the last of them was.
    running_since: Option<Instant>,
}

impl Watch {
    /// Watchers, to be created at this endpoint first. `user` says whose connection they are to share. A member that has been
    /// without a leader for some seconds ends their stream (metadata `hasleader`), and they go on elsewhere.
    pub fn new(client: Client, wants: impl IntoIterator<Item = Want>, endpoint: usize, user: usize) -> Watch {
        let watchers = wants.into_iter().map(|want| Some(Resume::new(want))).collect();
        let waiting = VecDeque::new();
        Watch {
            client,
            user,
            needs_leader: true,
            watchers,
            endpoint,
            stream: None,
            backoff: Backoff::default(),
            waiting,
            header: ResponseHeader::default(),
        }
    }

    /// The same, but content with a member that knows no leader: where it is cut off from the others it says nothing until it is
    /// back, and then everything.
    pub fn without_leader(mut self) -> Watch {
        self.needs_leader = false;
        self
    }

    /// What comes next; `None` when no watcher is left. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Heard>, Error> {
        loop {
            if let Some(heard) = self.waiting.pop_front() {
                return Ok(Some(heard));
            }
            if self.watchers.iter().all(Option::is_none) {
                return Ok(None);
            }
            let Some(stream) = &mut self.stream else {
                let outcome = self.connect().await;
                let heard = match outcome {
                    Ok(()) => Heard::Moved(self.endpoint),
                    Err(status) => self.lost(status)?,
                };
                return Ok(Some(heard));
            };
            match stream.responses.message().await {
                Ok(Some(response)) => self.take(response),
                Ok(None) => return self.lost(Status::unavailable("the server ended the stream")).map(Some),
                Err(status) => return self.lost(status).map(Some),
            }
        }
    }

    /// Asks the server how far it is. Nothing is heard where it cannot say.
    pub fn ask_progress(&self) {
        self.request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    /// Ends a watcher, by its place. Nothing more is heard of it.
    pub fn cancel(&mut self, watcher: usize) {
        if self.watchers[watcher].take().is_some() {
            self.request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id_of(watcher) }));
        }
    }

    /// Where a watcher goes on if the stream breaks now.
    pub fn next_revision(&self, watcher: usize) -> Option<i64> {
        self.watchers[watcher].as_ref().and_then(Resume::next)
    }

    /// How many changes servers have sent to its watchers without being asked; see [`Resume::repeated`].
    pub fn repeated(&self) -> u64 {
        self.watchers.iter().flatten().map(Resume::repeated).sum()
    }

    /// Since when all watchers exist on the present stream.
    pub fn running_since(&self) -> Option<Instant> {
        self.stream.as_ref().and_then(|stream| stream.running_since)
    }

    fn request(&self, request: RequestUnion) {
        if let Some(stream) = &self.stream {
            // A full queue or a broken stream: see REQUESTS_MAX.
            let _ = stream.requests.try_send(WatchRequest { request_union: Some(request) });
        }
    }

    async fn connect(&mut self) -> Result<(), Status> {
        tokio::time::sleep(self.backoff.pause()).await;
        let live = self.watchers.iter_mut().enumerate();
        let creates: Vec<(usize, WatchRequest)> = live
            .filter_map(|(place, watcher)| {
                let create = RequestUnion::CreateRequest(watcher.as_mut()?.request(id_of(place)));
                Some((place, WatchRequest { request_union: Some(create) }))
            })
            .collect();
        let creating = creates.iter().map(|(place, _)| *place).collect();
        let (requests, rest) = mpsc::channel(REQUESTS_MAX);
        let first = tokio_stream::iter(creates.into_iter().map(|(_, create)| create));
        let channel = self.client.channel(self.endpoint, self.user);
        let mut call = self.client.call(&channel, first.chain(ReceiverStream::new(rest))).await?;
        if self.needs_leader {
            // A member without leader must not keep a client that could be served elsewhere.
            call.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        let mut client = WatchClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
        let responses = client.watch(call).await?.into_inner();
        self.stream = Some(Stream { requests, responses, creating, running_since: None });
        Ok(())
    }

    /// The stream is gone: the next endpoint is tried, unless no server will have it otherwise.
    fn lost(&mut self, status: Status) -> Result<Heard, Error> {
        self.stream = None;
        self.endpoint = (self.endpoint + 1) % self.client.endpoints();
        match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
                Err(Error::Refused(status))
            }
            _ => Ok(Heard::Lost(status)),
        }
    }

    /// Who sent the last response, and what it had applied then. Of a single watcher: of what was heard last.
    pub fn header(&self) -> ResponseHeader {
        self.header
    }

    fn take(&mut self, response: WatchResponse) {
        self.header = response.header.unwrap_or_default();
        let Some(stream) = &mut self.stream else { return };
        let place = if response.created {
            // It serves: whatever happens next begins anew.
            self.backoff.reset();
            let place = stream.creating.pop_front();
            if stream.creating.is_empty() {
                stream.running_since = Some(Instant::now());
            }
            place
        } else {
            usize::try_from(response.watch_id - 1).ok()
        };
        match place {
            Some(place) => self.tell(place, response),
            None => {
                // Progress of the whole stream: of those that the server has heard of.
                let creating = stream.creating.clone();
                for place in (0..self.watchers.len()).filter(|place| !creating.contains(place)) {
                    self.tell(place, response.clone());
                }
            }
        }
    }

    fn tell(&mut self, place: usize, response: WatchResponse) {
        let Some(slot) = self.watchers.get_mut(place) else { return };
        let Some(news) = slot.as_mut().and_then(|watcher| watcher.take(response)) else { return };
        if matches!(news, News::Compacted { .. } | News::Ended { .. }) {
            *slot = None;
        }
        self.waiting.push_back(Heard::Of(place, news));
    }
}

/// Watchers choose their own ids: 0 would let the server choose.
fn id_of(place: usize) -> i64 {
    place as i64 + 1
}
