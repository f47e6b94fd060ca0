//! Streams with watchers, read leanly.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::lean::{self, Lean};
use super::options::{Options, Watched};
use super::report::Progress;
use crate::client::Client;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, kv_client::KvClient,
};

/// The key that the watchers of most cases watch.
pub(super) const KEY: &str = "bench-watch";
/// How long nothing may arrive before what is missing is counted as lost.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Streams that are opened, or filled, at the same time.
const AT_ONCE: usize = 64;

/// A stream. Dropping it ends it.
pub(super) struct Stream {
    /// Dropping it alone would half-close the stream.
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<Lean>,
}

impl Stream {
    /// Opens a stream with this watcher, and returns when it exists. (etcd says nothing on a stream without one.)
    pub(super) async fn open(client: &Client, number: usize, first: WatchCreateRequest) -> Result<Stream, String> {
        let (requests, rest) = mpsc::channel(256);
        let first = tokio_stream::iter([request(RequestUnion::CreateRequest(first))]);
        let endpoints = client.endpoints();
        let channel = client.channel(number % endpoints, number / endpoints);
        let responses = lean::watch(channel, first.chain(ReceiverStream::new(rest))).await;
        let mut stream = Stream { requests, responses: responses.map_err(|status| status.to_string())? };
        stream.created().await?;
        Ok(stream)
    }

    /// Adds watchers, and returns when all of them exist. Answers are read meanwhile: a server reads no requests while its
    /// answers wait.
    async fn add(
        &mut self,
        creates: impl Iterator<Item = WatchCreateRequest> + Clone,
        progress: &Progress,
    ) -> Result<(), String> {
        let (requests, count) = (self.requests.clone(), creates.clone().count());
        let ask = async {
            for create in creates {
                let asked = requests.send(request(RequestUnion::CreateRequest(create))).await;
                asked.map_err(|_| "the stream has ended".to_owned())?;
            }
            Ok(())
        };
        let hear = async {
            for _ in 0..count {
                self.created().await?;
                progress.step();
            }
            Ok(())
        };
        tokio::try_join!(ask, hear).map(drop)
    }

    async fn created(&mut self) -> Result<(), String> {
        let response = self.next().await?;
        match response {
            Lean { created: true, canceled: false, .. } => Ok(()),
            _ => Err(format!("a watcher was not created: {response:?}")),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Lean, String> {
        let response = self.responses.message().await.map_err(|status| status.to_string())?;
        response.ok_or_else(|| "the server ended a stream".to_owned())
    }

    /// Asks how far the stream is, and returns when that was answered.
    pub(super) async fn progress(&mut self) -> Result<(), String> {
        let ask = request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        self.requests.send(ask).await.map_err(|_| "the stream has ended".to_owned())?;
        let answer = tokio::time::timeout(PATIENCE, self.next()).await;
        let answer = answer.map_err(|_| "a request for progress was not answered".to_owned())??;
        if answer.watch_id != -1 || !answer.events.is_empty() {
            return Err(format!("not progress of the stream: {answer:?}"));
        }
        Ok(())
    }
}

fn request(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

pub(super) fn of_key(key: impl Into<String>) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from(key.into()), ..Default::default() }
}

pub(super) fn of_prefix(prefix: &str, start_revision: i64) -> WatchCreateRequest {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let key = Bytes::copy_from_slice(prefix.as_bytes());
    WatchCreateRequest { key, range_end: end.into(), start_revision, ..Default::default() }
}

/// A watcher of what nobody writes.
pub(super) fn idle(watched: Watched, number: usize) -> WatchCreateRequest {
    match watched {
        Watched::Own => of_key(format!("idle/{number:010}")),
        Watched::One => of_key("idle/key"),
        Watched::Prefix => of_prefix("idle/", 0),
    }
}

/// Connections of the watchers: not those of the writers.
pub(super) fn watching_client(options: &Options) -> Result<Client, String> {
    let connections = options.connections.min(options.streams.max(1)).div_ceil(options.endpoints.len());
    options.client(&options.endpoints, connections)
}

/// Opens streams with one watcher each.
pub(super) async fn open(
    client: &Client,
    streams: usize,
    watch: impl Fn(usize) -> WatchCreateRequest,
) -> Result<Vec<Stream>, String> {
    let progress = Progress::new("streams opened", streams);
    let opening = futures_util::stream::iter(0..streams).map(|number| {
        let (first, progress) = (watch(number), &progress);
        async move {
            let stream = Stream::open(client, number, first).await;
            progress.step();
            stream
        }
    });
    opening.buffered(AT_ONCE).try_collect().await
}

/// Adds watchers to streams that have one each, until there are `watchers` of them.
pub(super) async fn fill(
    streams: &mut [Stream],
    watchers: usize,
    watch: impl Fn(usize) -> WatchCreateRequest,
) -> Result<(), String> {
    let count = streams.len();
    let (progress, watch) = (Progress::new("watchers created", watchers), &watch);
    let filling = streams
        .iter_mut()
        .enumerate()
        .map(|(place, stream)| stream.add((count..watchers).skip(place).step_by(count).map(watch), &progress));
    futures_util::stream::iter(filling).buffer_unordered(AT_ONCE).try_collect().await
}

/// The store's revision.
pub(super) async fn revision(options: &Options) -> Result<i64, String> {
    let client = options.client(&options.endpoints, 1)?;
    let mut kv = KvClient::new(client.channel(0, 0));
    let request = RangeRequest { key: Bytes::from_static(b"bench"), ..Default::default() };
    let response = kv.range(request).await.map_err(|status| status.to_string())?;
    Ok(response.into_inner().header.map_or(0, |header| header.revision))
}
