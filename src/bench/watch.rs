//! Watchers, and what they cost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::ask::Ask;
use super::load::{Keys, Load, Seen, Until};
use super::options::{Options, Watched};
use super::report::{Latencies, Progress, Report, Spent, mebibytes};
use super::streams::{
    KEY, PATIENCE, Stream, fill, idle as idle_watcher, of_key, of_prefix, open, revision, watching_client,
};

/// Bytes of events after which a stream that nobody reads has stalled: hyper takes 2 MiB of a stream unasked.
const STALLING_BYTES: usize = 4 << 20;
/// What all writers write below, where they do not write one key.
const PREFIX: &str = "bench/";

fn scattered(options: &Options) -> Result<Load, String> {
    Load::new(options, Keys::Scattered(PREFIX.to_owned()))
}

/// Waits until so many have arrived, or nothing arrives any more.
pub(super) async fn settled(count: &AtomicU64, wanted: u64) -> u64 {
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

/// What arrived at all streams of a case.
#[derive(Default)]
struct Arrived {
    events: AtomicU64,
    responses: AtomicU64,
    /// By revision, from the first that is written: how many watchers have it, and how long the last of them waited.
    revisions: Mutex<Vec<(u64, Duration)>>,
}

impl Arrived {
    /// Counts what comes on a stream until it ends.
    async fn read(self: Arc<Self>, mut stream: Stream, first: i64, epoch: Instant) {
        while let Ok(response) = stream.next().await {
            self.events.fetch_add(response.events.len() as u64, Ordering::Relaxed);
            self.responses.fetch_add(1, Ordering::Relaxed);
            let now = epoch.elapsed();
            let mut revisions = self.revisions.lock().unwrap_or_else(PoisonError::into_inner);
            for event in response.events {
                let place = usize::try_from(event.revision - first).expect("the watch begins at that revision");
                if revisions.len() <= place {
                    revisions.resize(place + 1, (0, Duration::ZERO));
                }
                let (count, slowest) = &mut revisions[place];
                *count += 1;
                *slowest = event.age(now).unwrap_or_default().max(*slowest);
            }
        }
    }
}

/// `watch-fanout`.
pub(super) async fn fanout(options: &Options, report: &mut Report) -> Result<(), String> {
    let load = Load::new(options, Keys::One(KEY.to_owned()))?;
    load.warm_up().await?;
    let first = revision(options).await? + 1;
    report.memory("before", report.servers().settled().await);
    let client = watching_client(options)?;
    let mut streams = open(&client, options.streams, |_| of_key(KEY)).await?;
    fill(&mut streams, options.watchers, |_| of_key(KEY)).await?;
    report.memory("with_watchers", report.servers().settled().await);
    report.servers().forget_peak();

    let watchers = options.watchers.max(options.streams) as u64;
    let arrived = Arc::new(Arrived::default());
    let readers: Vec<_> =
        streams.into_iter().map(|stream| tokio::spawn(arrived.clone().read(stream, first, load.epoch))).collect();
    let spent = Spent::meter(report.servers());
    let puts = if options.lockstep {
        in_turn(&load, options.total, watchers, &arrived.events).await?
    } else {
        load.run(Until::Requests(options.total), Ask::Put).await
    };
    let wanted = puts.latencies.len() * watchers;
    let received = settled(&arrived.events, wanted).await;
    report.costs("events", spent(), received);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    report.add("events_wanted", wanted as f64);
    report.add("events_received", received as f64);
    report.add("events_per_response", received as f64 / arrived.responses.load(Ordering::Relaxed).max(1) as f64);
    let revisions = std::mem::take(&mut *arrived.revisions.lock().unwrap_or_else(PoisonError::into_inner));
    let mut reached = Latencies::default();
    revisions.iter().for_each(|(_, slowest)| reached.add(*slowest));
    report.latencies("reached_all", &reached);
    puts.report("puts", report);
    report.add("peak_resident_mib", mebibytes(report.servers().peak_resident()));
    report.memory("after", report.servers().settled().await);
    match revisions.iter().filter(|(count, _)| *count != watchers).count() {
        0 if received == wanted => Ok(()),
        wrong => Err(format!("{received} events instead of {wanted}; {wrong} revisions not once at every watcher")),
    }
}

/// Puts, each when the one before has reached all watchers: one event in each response.
async fn in_turn(load: &Load, total: u64, watchers: u64, arrived: &AtomicU64) -> Result<Seen, String> {
    let (mut seen, progress) = (Seen::default(), Progress::new("puts", total as usize));
    for number in 0..total {
        seen.latencies.add(load.put(number).await?);
        let since = Instant::now();
        while arrived.load(Ordering::Relaxed) < (number + 1) * watchers {
            if since.elapsed() > PATIENCE {
                return Err(format!("put {number} did not reach all watchers"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        progress.step();
    }
    Ok(seen)
}

/// `watch-idle`.
pub(super) async fn idle(options: &Options, report: &mut Report) -> Result<(), String> {
    let load = scattered(options)?;
    load.warm_up().await?;
    // What is slow only once, such as new keys, is not for those who come first.
    load.run(Until::Requests(options.keys.min(options.total)), Ask::Put).await;
    let (mut without, mut with) = (Measured::default(), Measured::default());
    without.take(&load, options, report).await;
    for round in 0..options.rounds {
        eprintln!("everwatch-bench: round {} of {}", round + 1, options.rounds);
        let client = watching_client(options)?;
        let mut streams = open(&client, options.streams, |number| idle_watcher(options.watched, number)).await?;
        fill(&mut streams, options.watchers, |number| idle_watcher(options.watched, number)).await?;
        report.servers().settled().await;
        with.take(&load, options, report).await;
        drop((streams, client));
        report.servers().settled().await;
        without.take(&load, options, report).await;
    }
    for (name, measured) in [("without", &mut without), ("with", &mut with)] {
        report.costs(name, measured.spent, measured.seen.latencies.len());
        measured.seen.report(name, report);
    }
    Ok(())
}

/// What several portions of the same load came to.
#[derive(Default)]
struct Measured {
    seen: Seen,
    spent: Spent,
}

impl Measured {
    async fn take(&mut self, load: &Load, options: &Options, report: &Report) {
        let spent = Spent::meter(report.servers());
        self.seen.append(&load.run(Until::Requests(options.total), Ask::Put).await);
        self.spent = self.spent.plus(spent());
    }
}

/// `watch-memory`. Connections are there first, each with a stream; then come streams, then watchers. None is closed before the
/// end: what one step gave back, the next would take.
pub(super) async fn memory(options: &Options, report: &mut Report) -> Result<(), String> {
    let client = watching_client(options)?;
    let watch = |number: usize| idle_watcher(options.watched, number);
    report.memory("empty", report.servers().settled().await);
    let mut streams = open(&client, options.streams, watch).await?;
    let before = report.servers().settled().await;
    report.memory("with_connections", before);

    // Keys of their own for the first watchers of these streams, too.
    let own = options.watchers.max(options.streams);
    let began = Instant::now();
    let more_streams = open(&client, options.more_streams, |number| watch(own + number)).await?;
    report.add("opening_streams_s", began.elapsed().as_secs_f64());
    let with_streams = report.servers().settled().await;
    report.memory("with_streams", with_streams);

    let began = Instant::now();
    fill(&mut streams, options.watchers, watch).await?;
    report.add("creating_watchers_s", began.elapsed().as_secs_f64());
    let with_watchers = report.servers().settled().await;
    report.memory("with_watchers", with_watchers);

    let each = |more: u64, less: u64, count: usize| (more as f64 - less as f64) / count.max(1) as f64;
    let watchers = options.watchers.saturating_sub(options.streams);
    let watcher = each(with_watchers.resident, with_streams.resident, watchers);
    report.add("watcher_bytes", watcher);
    let stream = each(with_streams.resident, before.resident, options.more_streams);
    // Each came with a watcher.
    report.add("stream_bytes", stream - watcher);
    drop((streams, more_streams, client));
    report.memory("after_all_ended", report.servers().settled().await);
    Ok(())
}

/// `watch-stalled`. Without streams: what the same writing takes alone.
pub(super) async fn stalled(options: &Options, report: &mut Report) -> Result<(), String> {
    let load = scattered(options)?;
    load.warm_up().await?;
    let client = watching_client(options)?;
    let mut streams = open(&client, options.streams, |_| of_prefix(PREFIX, 0)).await?;
    let before = report.servers().settled().await;
    report.memory("before", before);
    report.servers().forget_peak();
    // Nobody reads them from here on. Latencies count from when they have stalled, memory from before.
    let stalling = Until::Requests((STALLING_BYTES / options.value_bytes.max(1)) as u64);
    let writing = async {
        let mut written = load.run(stalling, Ask::Put).await.latencies.len();
        let spent = Spent::meter(report.servers());
        let seen = load.run(Until::Requests(options.total), Ask::Put).await;
        written += seen.latencies.len();
        (written, seen, spent())
    };
    let ((written, seen, spent), peak_anonymous) = report.servers().peak_anonymous(writing).await;
    report.costs("puts", spent, seen.latencies.len());
    seen.report("puts", report);
    report.add("written_mib", mebibytes(written * options.value_bytes as u64));
    let peak = report.servers().peak_resident();
    report.add("peak_growth_resident_mib", mebibytes(peak.saturating_sub(before.resident)));
    report.add("peak_growth_anonymous_mib", mebibytes(peak_anonymous.saturating_sub(before.anonymous)));
    report.memory("after", report.servers().settled().await);

    // One of them is read after all.
    let Some(stream) = streams.first_mut() else { return Ok(()) };
    let (began, mut events) = (Instant::now(), 0);
    while events < written {
        let response = tokio::time::timeout(PATIENCE, stream.next()).await;
        let response = response.map_err(|_| format!("a stalled stream brought {events} of {written} events"))??;
        events += response.events.len() as u64;
    }
    report.add("read_after_all_per_s", events as f64 / began.elapsed().as_secs_f64());
    if seen.errors == 0 { Ok(()) } else { Err(format!("{} puts failed", seen.errors)) }
}

/// `watch-behind`. As soon as the watcher is there, the next one begins, until as much time has passed as without them.
pub(super) async fn behind(options: &Options, report: &mut Report) -> Result<(), String> {
    let first = revision(options).await? + 1;
    let filling = Options { clients: 500, rate: 0, ..options.clone() };
    eprintln!("everwatch-bench: writing {} revisions", options.history);
    let filled = scattered(&filling)?.run(Until::Requests(options.history), Ask::Put).await;
    filled.report("history", report);
    report.servers().settled().await;

    let load = scattered(options)?;
    load.warm_up().await?;
    let alone = load.run(Until::Elapsed(options.duration), Ask::Put).await;
    alone.report("puts_alone", report);

    let last = revision(options).await?;
    let (done, finished) = oneshot::channel();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let watching = options.clone();
    // On a thread of its own: otherwise puts would wait for the generator while it reads.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
            let began = Instant::now();
            let (mut times, mut spent) = (0u32, Duration::ZERO);
            while times == 0 || began.elapsed() < watching.duration {
                spent += runtime.block_on(catch_up(&watching, first, last))?;
                times += 1;
            }
            Ok((times, spent / times))
        });
        stop.send_replace(true);
        // Nobody waits any more when the case has failed.
        let _ = done.send(outcome);
    });
    let spent = Spent::meter(report.servers());
    let beside = load.run(Until::Told(stopped), Ask::Put).await;
    let (times, took) = finished.await.map_err(|_| "the watcher's thread panicked".to_owned())??;
    let revisions = (last - first + 1) as u64;
    report.costs("catching_up", spent(), revisions * u64::from(times));
    report.add("catch_ups", f64::from(times));
    report.add("revisions_behind", revisions as f64);
    report.add("catch_up_s", took.as_secs_f64());
    report.add("catch_up_events_per_s", revisions as f64 / took.as_secs_f64());
    beside.report("puts_beside", report);
    match alone.errors + beside.errors {
        0 => Ok(()),
        errors => Err(format!("{errors} puts failed")),
    }
}

/// Watches from one revision to another, each of which wrote one key, and says how long that took.
async fn catch_up(options: &Options, first: i64, last: i64) -> Result<Duration, String> {
    let began = Instant::now();
    let mut stream = Stream::open(&watching_client(options)?, 0, of_prefix(PREFIX, first)).await?;
    let (mut at, progress) = (first - 1, Progress::new("revisions read", (last - first + 1) as usize));
    while at < last {
        let response = tokio::time::timeout(PATIENCE, stream.next()).await;
        let response = response.map_err(|_| format!("nothing came after revision {at}"))??;
        for event in response.events {
            if event.revision != at + 1 {
                return Err(format!("revision {} came after {at}", event.revision));
            }
            at = event.revision;
        }
        progress.at((at - first + 1) as usize);
    }
    Ok(began.elapsed())
}

/// `watch-progress`.
pub(super) async fn progress(options: &Options, report: &mut Report) -> Result<(), String> {
    let client = watching_client(options)?;
    let mut streams = open(&client, 1, |_| of_key(KEY)).await?;
    fill(&mut streams, options.watchers, |number| idle_watcher(Watched::Own, number)).await?;
    let spent = Spent::meter(report.servers());
    let mut latencies = Latencies::default();
    for _ in 0..options.total {
        let asked = Instant::now();
        streams[0].progress().await?;
        latencies.add(asked.elapsed());
    }
    report.costs("progress", spent(), options.total);
    report.latencies("progress", &latencies);
    Ok(())
}
