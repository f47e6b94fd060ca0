//! Watchers, and what they cost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::lean::{self, Lean};
use super::load::{Keys, Load};
use super::options::Options;
use super::report::{Latencies, Spent, mebibytes, resident};
use crate::client::resume::News;
use crate::client::{Client, Heard, Want, Watch};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, kv_client::KvClient,
};

/// The key that all watchers of a case watch.
const KEY: &str = "bench-watch";
/// How long nothing may arrive before what is missing is counted as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stream, read leanly.
struct Stream {
    /// Dropping it would half-close the stream.
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<Lean>,
}

impl Stream {
    /// Opens a stream with these watchers, and returns when all of them exist.
    async fn open(client: &Client, number: usize, creates: Vec<WatchCreateRequest>) -> Result<Stream, String> {
        let count = creates.len();
        let (requests, rest) = mpsc::channel(16);
        let first = tokio_stream::iter(creates.into_iter().map(|create| request(RequestUnion::CreateRequest(create))));
        let endpoints = client.endpoints();
        let channel = client.channel(number % endpoints, number / endpoints);
        let responses = lean::watch(channel, first.chain(ReceiverStream::new(rest))).await;
        let mut stream = Stream { requests, responses: responses.map_err(|status| status.to_string())? };
        stream.created(count).await?;
        Ok(stream)
    }

    /// Returns when so many more watchers exist.
    async fn created(&mut self, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let response = self.next().await?;
            if !response.created || response.canceled {
                return Err(format!("a watcher was not created: {response:?}"));
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Lean, String> {
        let response = self.responses.message().await.map_err(|status| status.to_string())?;
        response.ok_or_else(|| "the server ended a stream".to_owned())
    }
}

fn request(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

fn of_key(key: String) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from(key), ..Default::default() }
}

fn of_prefix(prefix: &str, start_revision: i64) -> WatchCreateRequest {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let key = Bytes::copy_from_slice(prefix.as_bytes());
    WatchCreateRequest { key, range_end: end.into(), start_revision, ..Default::default() }
}

/// Connections of the watchers: not those of the writers.
fn watching_client(options: &Options) -> Result<Client, String> {
    let connections = options.connections.min(options.streams).div_ceil(options.endpoints.len());
    Client::new(&options.endpoints, connections).map_err(|error| error.to_string())
}

/// Opens all streams, each with its part of `watchers` watchers; `watch` makes the request of each.
async fn open(
    options: &Options,
    watchers: usize,
    watch: impl Fn(usize) -> WatchCreateRequest,
) -> Result<Vec<Stream>, String> {
    let client = watching_client(options)?;
    let mut streams = Vec::new();
    for number in 0..options.streams {
        let creates = (number..watchers).step_by(options.streams).map(&watch).collect();
        streams.push(Stream::open(&client, number, creates).await?);
    }
    Ok(streams)
}

/// The store's revision.
async fn revision(options: &Options) -> Result<i64, String> {
    let client = Client::new(&options.endpoints, 1).map_err(|error| error.to_string())?;
    let mut kv = KvClient::new(client.channel(0, 0));
    let request = RangeRequest { key: Bytes::from_static(b"bench"), ..Default::default() };
    let response = kv.range(request).await.map_err(|status| status.to_string())?;
    Ok(response.into_inner().header.map_or(0, |header| header.revision))
}

/// What arrived at all streams of a case.
#[derive(Default)]
struct Arrived {
    events: AtomicU64,
    responses: AtomicU64,
    /// By revision: when the last watcher had it, after it was sent.
    last: Mutex<HashMap<i64, Duration>>,
}

/// `watch-fanout`.
pub(super) async fn fanout(options: &Options) -> Result<(), String> {
    let load = Load::new(options, Keys::One(KEY.to_owned()))?;
    load.warm_up().await?;
    let (before, _) = resident(&options.pids);
    let streams = open(options, options.watchers, |_| of_key(KEY.to_owned())).await?;
    let (opened, _) = resident(&options.pids);
    let arrived = Arc::new(Arrived::default());
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let (arrived, epoch) = (arrived.clone(), load.epoch);
            tokio::spawn(async move {
                while let Ok(response) = stream.next().await {
                    arrived.events.fetch_add(u64::from(response.events), Ordering::Relaxed);
                    arrived.responses.fetch_add(1, Ordering::Relaxed);
                    if let Some(age) = response.age(epoch) {
                        let mut last = arrived.last.lock().unwrap_or_else(PoisonError::into_inner);
                        let slowest = last.entry(response.revision).or_default();
                        *slowest = age.max(*slowest);
                    }
                }
            })
        })
        .collect();
    let spent = Spent::now(&options.pids);
    let mut seen = load.run(options.total, Duration::MAX, false).await;
    let wanted = (seen.latencies.len() * options.watchers) as u64;
    let received = settled(&arrived.events, wanted).await;
    let elapsed = spent.elapsed();
    let (after, _) = resident(&options.pids);
    let mut reached = Latencies::default();
    arrived.last.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|age| reached.add(*age));
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    println!(
        "{received} of {wanted} events in {elapsed:.2} s: {:.0} per second, {:.2} events per response{}",
        received as f64 / elapsed,
        received as f64 / arrived.responses.load(Ordering::Relaxed).max(1) as f64,
        spent.cpu_per_million(received as usize),
    );
    println!("from the put's start to the last watcher: {}", reached.summary());
    println!("puts: {} done, {} errors, {}", seen.latencies.len(), seen.errors, seen.latencies.summary());
    println!(
        "servers' memory: {:.1} MiB, with watchers {:.1} MiB, after the load {:.1} MiB",
        mebibytes(before),
        mebibytes(opened),
        mebibytes(after)
    );
    if received == wanted { Ok(()) } else { Err("events are missing, or there are too many".to_owned()) }
}

/// Waits until so many have arrived, or nothing arrives any more.
async fn settled(count: &AtomicU64, wanted: u64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = count.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if now >= wanted || since.elapsed() > PATIENCE {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `watch-idle`.
pub(super) async fn idle(options: &Options) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let measure = async |name: &str| {
        let spent = Spent::now(&options.pids);
        let mut seen = load.run(options.total, Duration::MAX, false).await;
        let done = seen.latencies.len();
        let rate = done as f64 / spent.elapsed();
        println!(
            "puts {name}: {rate:.0} per second, {} errors, {}{}",
            seen.errors,
            seen.latencies.summary(),
            spent.cpu_per_million(done)
        );
    };
    measure("without watchers").await;
    let (before, _) = resident(&options.pids);
    let mut streams = open(options, options.streams, |number| of_key(format!("idle/{number:010}"))).await?;
    let (opened, _) = resident(&options.pids);
    let more = options.watchers.saturating_sub(options.streams);
    for (place, stream) in streams.iter_mut().enumerate() {
        let own: Vec<usize> = (options.streams..options.watchers).skip(place).step_by(options.streams).collect();
        // In portions: a server does not read requests while their answers wait.
        for portion in own.chunks(1000) {
            let (sender, count) = (stream.requests.clone(), portion.len());
            let creates: Vec<_> = portion.iter().map(|number| of_key(format!("idle/{number:010}"))).collect();
            tokio::spawn(async move {
                for create in creates {
                    // The stream has ended: whoever waits for the answer says so.
                    let _ = sender.send(request(RequestUnion::CreateRequest(create))).await;
                }
            });
            stream.created(count).await?;
        }
    }
    let (full, _) = resident(&options.pids);
    println!(
        "servers' memory: {:.1} MiB; {:.0} bytes for each of {} streams with a watcher, {:.0} for each of {more} more watchers",
        mebibytes(before),
        opened.saturating_sub(before) as f64 / options.streams as f64,
        options.streams,
        full.saturating_sub(opened) as f64 / more.max(1) as f64,
    );
    measure("with watchers").await;
    drop(streams);
    Ok(())
}

/// `watch-stalled`.
pub(super) async fn stalled(options: &Options) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let measure = async |name: &str| {
        let spent = Spent::now(&options.pids);
        let mut seen = load.run(options.total, Duration::MAX, false).await;
        let rate = seen.latencies.len() as f64 / spent.elapsed();
        println!("puts {name}: {rate:.0} per second, {} errors, {}", seen.errors, seen.latencies.summary());
    };
    measure("without watchers").await;
    let (before, _) = resident(&options.pids);
    // Nobody reads them from here on.
    let streams = open(options, options.streams, |_| of_prefix("bench/", 0)).await?;
    measure("with stalled streams").await;
    let (after, most) = resident(&options.pids);
    let written = options.total as f64 * options.value_bytes as f64;
    println!(
        "servers' memory: {:.1} MiB before, {:.1} MiB after {:.1} MiB of values, at most {:.1} MiB ever",
        mebibytes(before),
        mebibytes(after),
        written / f64::from(1 << 20),
        mebibytes(most)
    );
    drop(streams);
    Ok(())
}

/// `watch-behind`.
pub(super) async fn behind(options: &Options) -> Result<(), String> {
    let first = revision(options).await? + 1;
    let filling = Options { clients: 500, rate: 0, ..options.clone() };
    let fill = Load::new(&filling, Keys::Scattered("bench/".to_owned()))?;
    fill.run(options.history, Duration::MAX, false).await;
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let mut baseline = load.run(u64::MAX, Duration::from_secs(10), false).await;
    println!(
        "puts alone: {} done, {} errors, {}",
        baseline.latencies.len(),
        baseline.errors,
        baseline.latencies.summary()
    );

    let last = revision(options).await?;
    let (done, mut finished) = oneshot::channel();
    let client = watching_client(options)?;
    let spent = Spent::now(&options.pids);
    let (began, prefix) = (Instant::now(), of_prefix("bench/", first));
    tokio::spawn(async move {
        let caught_up = async {
            let mut stream = Stream::open(&client, 0, vec![prefix]).await?;
            let (mut events, mut at) = (0u64, 0);
            while at < last {
                let response = stream.next().await?;
                events += u64::from(response.events);
                at = at.max(response.revision);
            }
            Ok::<_, String>((events, began.elapsed()))
        };
        // Nobody waits any more when the case has failed.
        let _ = done.send(caught_up.await);
    });
    // Writers go on in short portions until the watcher is there.
    let mut beside = super::load::Seen::default();
    let (events, took) = loop {
        if let Ok(outcome) = finished.try_recv() {
            break outcome?;
        }
        let mut seen = load.run(u64::MAX, Duration::from_millis(200), false).await;
        beside.latencies.append(&mut seen.latencies);
        beside.errors += seen.errors;
    };
    println!(
        "{events} events of {} revisions in {:.2} s: {:.0} per second{}",
        last - first + 1,
        took.as_secs_f64(),
        events as f64 / took.as_secs_f64(),
        spent.cpu_per_million(events as usize)
    );
    println!(
        "puts beside it: {} done, {} errors, {}",
        beside.latencies.len(),
        beside.errors,
        beside.latencies.summary()
    );
    Ok(())
}

/// What one stream saw of a fail-over.
#[derive(Debug, Default)]
struct Moved {
    noticed: Option<Instant>,
    /// The first event that came from elsewhere.
    served: Option<Instant>,
    /// Events that were not the next of their key.
    wrong: u64,
}

/// `watch-failover`.
pub(super) async fn failover(options: &Options) -> Result<(), String> {
    let victim = options.kill.ok_or("which process is to be killed? --kill=PID")?;
    if options.endpoints.len() < 2 {
        return Err("there is no other endpoint to go to".to_owned());
    }
    let others = Options {
        endpoints: options.endpoints[1..].to_vec(),
        clients: 1,
        rate: if options.rate == 0 { 5 } else { options.rate },
        ..options.clone()
    };
    let load = Load::new(&others, Keys::One(KEY.to_owned()))?;
    load.warm_up().await?;
    let client = watching_client(options)?;
    let created = Arc::new(AtomicU64::new(0));
    let moved = Arc::new(AtomicU64::new(0));
    let told = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = tokio::sync::watch::channel(i64::MAX);
    let streams: Vec<_> = (0..options.streams)
        .map(|number| {
            let want = Want { key: Bytes::from_static(KEY.as_bytes()), ..Default::default() };
            let watch = Watch::new(client.clone(), [want], 0, number);
            tokio::spawn(follow(watch, [created.clone(), told.clone(), moved.clone()], stopped.clone()))
        })
        .collect();
    let all = options.streams as u64;
    if settled(&created, all).await < all {
        return Err(format!("only {} of {all} streams were opened", created.load(Ordering::Relaxed)));
    }
    let writer = tokio::spawn(async move { load.run(u64::MAX, Duration::from_secs(20), false).await });
    if settled(&told, all).await < all {
        return Err(format!("only {} of {all} streams were told anything", told.load(Ordering::Relaxed)));
    }
    let killed = Instant::now();
    let pid = i32::try_from(victim).ok().and_then(rustix::process::Pid::from_raw).ok_or("no such process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(|error| error.to_string())?;
    let back = settled(&moved, all).await;
    let seen = writer.await.map_err(|error| error.to_string())?;
    let last = revision(&others).await?;
    // They end when they have all that was written.
    stop.send_replace(last);
    let (mut noticing, mut serving, mut wrong) = (Latencies::default(), Latencies::default(), 0);
    let mut lasted = Duration::ZERO;
    for stream in streams {
        let seen = stream.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        wrong += seen.wrong;
        if let (Some(noticed), Some(served)) = (seen.noticed, seen.served) {
            noticing.add(noticed.saturating_duration_since(killed));
            serving.add(served.saturating_duration_since(noticed));
            lasted = lasted.max(served.saturating_duration_since(killed));
        }
    }
    println!("{back} of {all} streams served elsewhere, the last {:.2} s after the kill", lasted.as_secs_f64());
    println!("noticed: {}; then served again: {}", noticing.summary(), serving.summary());
    println!("{} puts, {} errors; {wrong} events missing, repeated or out of order", seen.latencies.len(), seen.errors);
    if back == all && wrong == 0 { Ok(()) } else { Err("not exact".to_owned()) }
}

/// Follows one key through whatever happens, until it has been handed the last revision. Counts when it is created, when it hears
/// first, and when it hears first from elsewhere.
async fn follow(
    mut watch: Watch,
    [created, told, moved]: [Arc<AtomicU64>; 3],
    mut stop: tokio::sync::watch::Receiver<i64>,
) -> Result<Moved, crate::client::Error> {
    let mut seen = Moved::default();
    let (mut version, mut at) = (None, 0);
    loop {
        if at >= *stop.borrow_and_update() {
            return Ok(seen);
        }
        let heard = tokio::select! {
            heard = watch.next() => heard?,
            _ = stop.changed() => continue,
        };
        match heard {
            Some(Heard::Of(_, News::Created { .. })) => {
                created.fetch_add(1, Ordering::Relaxed);
            }
            Some(Heard::Of(_, News::Events(events))) => {
                if seen.noticed.is_some() && seen.served.is_none() {
                    seen.served = Some(Instant::now());
                    moved.fetch_add(1, Ordering::Relaxed);
                }
                if at == 0 {
                    told.fetch_add(1, Ordering::Relaxed);
                }
                for kv in events.iter().filter_map(|event| event.kv.as_ref()) {
                    // Every put of a key counts its version up by one: nothing can be missing unnoticed.
                    seen.wrong += u64::from(version.is_some_and(|version| kv.version != version + 1));
                    version = Some(kv.version);
                    at = kv.mod_revision;
                }
            }
            Some(Heard::Lost(_)) => {
                seen.noticed.get_or_insert_with(Instant::now);
            }
            Some(Heard::Moved(_) | Heard::Of(_, News::Progress { .. })) => {}
            Some(Heard::Of(_, News::Compacted { .. } | News::Ended { .. })) | None => return Ok(seen),
        }
    }
}

/// `watch-progress`.
pub(super) async fn progress(options: &Options) -> Result<(), String> {
    let client = watching_client(options)?;
    let mut stream = Stream::open(&client, 0, vec![of_key(KEY.to_owned())]).await?;
    let mut latencies = Latencies::default();
    for _ in 0..options.total {
        let asked = Instant::now();
        let ask = request(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        stream.requests.send(ask).await.map_err(|_| "the stream has ended".to_owned())?;
        let answer = tokio::time::timeout(PATIENCE, stream.next()).await;
        let answer = answer.map_err(|_| "a request for progress was not answered".to_owned())??;
        if answer.watch_id != -1 || answer.events > 0 {
            return Err(format!("not progress of the stream: {answer:?}"));
        }
        latencies.add(asked.elapsed());
    }
    println!("{} requests for progress: {}", latencies.len(), latencies.summary());
    Ok(())
}
