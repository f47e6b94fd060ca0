//! Streams whose member goes: when do they end, when are they served elsewhere, and was anything missed or repeated?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use super::ask::Ask;
use super::load::{Keys, Load, Until};
use super::options::Options;
use super::report::{Latencies, Report, has_ended};
use super::streams::{KEY, PATIENCE, revision, watching_client};
use super::watch::settled;
use crate::client::resume::News;
use crate::client::{Heard, Want, Watch};

/// How far the streams of a case are.
#[derive(Debug, Default)]
struct Counts {
    created: AtomicU64,
    told: AtomicU64,
    moved: AtomicU64,
}

/// What one stream saw.
#[derive(Debug, Default)]
struct Moved {
    /// When its member was gone, and in which words.
    noticed: Option<(Instant, Code)>,
    /// When another member had its watcher.
    running: Option<Instant>,
    /// The first event that came from elsewhere.
    served: Option<Instant>,
    /// Events that were not the next of their key.
    wrong: u64,
}

/// `watch-failover` and `watch-drain`.
pub(super) async fn run(options: &Options, signal: Signal, report: &mut Report) -> Result<(), String> {
    let victim = options.kill.ok_or("which process is to be stopped? --kill=PID")?;
    let pid = i32::try_from(victim).ok().and_then(Pid::from_raw).ok_or("no such process")?;
    if options.endpoints.len() < 2 || options.rate == 0 {
        return Err("another endpoint to go to, and a rate, are needed".to_owned());
    }
    let others = Options { endpoints: options.endpoints[1..].to_vec(), ..options.clone() };
    let load = Load::new(&others, Keys::One(KEY.to_owned()))?;
    load.warm_up().await?;
    // Connections to each, all streams at the first.
    let connections = options.connections * options.endpoints.len();
    let client = watching_client(&Options { connections, ..options.clone() })?;
    let counts = Arc::new(Counts::default());
    let (end, ended) = tokio::sync::watch::channel(i64::MAX);
    let streams: Vec<_> = (0..options.streams)
        .map(|number| {
            let want = Want { key: Bytes::from_static(KEY.as_bytes()), ..Default::default() };
            let watch = Watch::new(client.clone(), [want], 0, number);
            tokio::spawn(follow(watch, counts.clone(), ended.clone()))
        })
        .collect();
    let all = options.streams as u64;
    if settled(&counts.created, all).await < all {
        return Err(format!("only {} of {all} streams were opened", counts.created.load(Ordering::Relaxed)));
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writer = tokio::spawn(async move { load.run(Until::Told(stopped), Ask::Put).await });
    if settled(&counts.told, all).await < all {
        return Err(format!("only {} of {all} streams were told anything", counts.told.load(Ordering::Relaxed)));
    }

    let began = Instant::now();
    kill_process(pid, signal).map_err(|error| error.to_string())?;
    let gone = tokio::spawn(async move {
        while !has_ended(victim) && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    });
    let back = settled(&counts.moved, all).await;
    // Something more to miss.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.send_replace(true);
    let puts = writer.await.map_err(|error| error.to_string())?;
    // They end when they have all that was written.
    end.send_replace(revision(&others).await?);
    let gone = gone.await.map_err(|error| error.to_string())?;

    let (mut noticing, mut running, mut serving) = (Latencies::default(), Latencies::default(), Latencies::default());
    let (mut unavailable, mut wrong, mut unfinished) = (0u64, 0, 0u64);
    for stream in streams {
        let Ok(stream) = tokio::time::timeout(PATIENCE, stream).await else {
            unfinished += 1;
            continue;
        };
        let seen = stream.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        wrong += seen.wrong;
        let Some((noticed, code)) = seen.noticed else { continue };
        if noticed < began {
            return Err("a stream ended before its member was stopped".to_owned());
        }
        unavailable += u64::from(code == Code::Unavailable);
        noticing.add(noticed.saturating_duration_since(began));
        seen.running.iter().for_each(|at| running.add(at.saturating_duration_since(noticed)));
        seen.served.iter().for_each(|at| serving.add(at.saturating_duration_since(noticed)));
    }
    report.add("streams", all as f64);
    report.add("streams_back", back as f64);
    report.add("ended_unavailable", unavailable as f64);
    report.add("process_gone_s", gone.as_secs_f64());
    report.latencies("noticed_after_signal", &noticing);
    report.latencies("running_after_noticed", &running);
    report.latencies("event_after_noticed", &serving);
    puts.report("puts", report);
    report.add("events_wrong", wrong as f64);
    report.add("streams_unfinished", unfinished as f64);
    if back == all && wrong == 0 && unfinished == 0 { Ok(()) } else { Err("not exact".to_owned()) }
}

/// Follows one key through whatever happens, until it has been handed the last revision.
async fn follow(
    mut watch: Watch,
    counts: Arc<Counts>,
    mut end: tokio::sync::watch::Receiver<i64>,
) -> Result<Moved, crate::client::Error> {
    let mut seen = Moved::default();
    let (mut version, mut at) = (None, 0);
    loop {
        if at >= *end.borrow_and_update() {
            return Ok(seen);
        }
        let heard = tokio::select! {
            heard = watch.next() => heard?,
            _ = end.changed() => continue,
        };
        match heard {
            Some(Heard::Of(_, News::Created { .. })) => {
                counts.created.fetch_add(1, Ordering::Relaxed);
            }
            Some(Heard::Of(_, News::Events(events))) => {
                if seen.noticed.is_some() && seen.served.is_none() {
                    (seen.running, seen.served) = (watch.running_since(), Some(Instant::now()));
                    counts.moved.fetch_add(1, Ordering::Relaxed);
                }
                if at == 0 {
                    counts.told.fetch_add(1, Ordering::Relaxed);
                }
                for kv in events.iter().filter_map(|event| event.kv.as_ref()) {
                    // Every put of a key counts its version up by one: nothing can be missing unnoticed.
                    seen.wrong += u64::from(version.is_some_and(|version| kv.version != version + 1));
                    version = Some(kv.version);
                    at = kv.mod_revision;
                }
            }
            Some(Heard::Lost(status)) => {
                seen.noticed.get_or_insert_with(|| (Instant::now(), status.code()));
            }
            Some(Heard::Moved(_) | Heard::Of(_, News::Progress { .. })) => {}
            Some(Heard::Of(_, News::Compacted { .. } | News::Ended { .. })) | None => return Ok(seen),
        }
    }
}
