//! Many leases: what they keep in memory, and what it is like when they end together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use super::ask::Ask;
use super::load::{Keys, Load, Until};
use super::options::Options;
use super::report::{Progress, Report, Spent};
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::{LeaseGrantRequest, PutRequest, RangeRequest};

/// Keys that end with their lease.
const PREFIX: &str = "leased/";
/// Seconds that leases live which are not to end here.
const LONG_TTL_S: i64 = 3600;
/// Leases end in this time after the first of them: their lengths are whole seconds.
const ROUNDED: Duration = Duration::from_secs(1);
/// Writers go on alone for so long before leases end.
const BEFORE: Duration = Duration::from_secs(5);
/// How long leases may take to be gone.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a lease without keys keeps in memory.
pub(super) async fn memory(options: &Options, report: &mut Report) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let before = report.servers().settled().await;
    report.memory("before", before);
    let spent = Spent::meter(report.servers());
    let granted = grant_all(&load, options, |_| LONG_TTL_S, false).await;
    report.costs("grant", spent(), options.total);
    granted?;
    let after = report.servers().settled().await;
    report.memory("after", after);
    report.add("bytes_per_lease", after.resident.saturating_sub(before.resident) as f64 / options.total as f64);
    Ok(())
}

/// Leases with a key each that end within a second, beside writers.
pub(super) async fn expiry(options: &Options, report: &mut Report) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let first_end = Instant::now() + options.duration;
    let until_end = move |now: Instant| first_end.saturating_duration_since(now).as_secs_f64().ceil() as i64;
    grant_all(&load, options, move |_| until_end(Instant::now()), true).await?;
    let left = first_end.saturating_duration_since(Instant::now());
    if left < BEFORE + ROUNDED {
        return Err(format!("granting took all but {left:?}: more --seconds are needed"));
    }
    let mut kv = KvClient::new(load.channel(0));
    tokio::time::sleep(left - BEFORE).await;
    let before = load.run(Until::Elapsed(BEFORE - ROUNDED / 2), Ask::Put).await;
    before.report("before", report);
    if count(&mut kv).await? < options.total {
        return Err("leases ended early".to_owned());
    }

    tokio::time::sleep_until(first_end.into()).await;
    let (stop, stopped) = watch::channel(false);
    let writing = {
        let load = load.clone();
        tokio::spawn(async move { load.run(Until::Told(stopped), Ask::Put).await })
    };
    let spent = Spent::meter(report.servers());
    let progress = Progress::new("leases ended", options.total as usize);
    let gone = loop {
        let left = count(&mut kv).await?;
        let elapsed = first_end.elapsed();
        progress.at(options.total.saturating_sub(left) as usize);
        if left == 0 {
            break elapsed;
        }
        if elapsed > PATIENCE {
            return Err(format!("{left} keys of leases are still there after {elapsed:?}"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    report.costs("expiry", spent(), options.total);
    report.add("gone_after_s", gone.as_secs_f64());
    stop.send_replace(true);
    let during = writing.await.map_err(|error| error.to_string())?;
    during.report("during", report);
    match before.errors + during.errors {
        0 => Ok(()),
        errors => Err(format!("{errors} requests failed")),
    }
}

async fn count(kv: &mut KvClient<Channel>) -> Result<u64, String> {
    let range_end = Bytes::from(format!("{PREFIX}~"));
    let request = RangeRequest { key: PREFIX.into(), range_end, count_only: true, ..Default::default() };
    let response = kv.range(request).await.map_err(|status| status.to_string())?;
    Ok(response.into_inner().count as u64)
}

/// Grants `total` leases, from all clients, with a key each if they are to have one.
async fn grant_all(
    load: &Load,
    options: &Options,
    ttl: impl Fn(u64) -> i64 + Clone + Send + 'static,
    with_key: bool,
) -> Result<(), String> {
    let (taken, total) = (Arc::new(AtomicU64::new(0)), options.total);
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            let (channel, taken, ttl) = (load.channel(number), taken.clone(), ttl.clone());
            tokio::spawn(async move {
                let (mut lease, mut kv) = (LeaseClient::new(channel.clone()), KvClient::new(channel));
                loop {
                    let number = taken.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return Ok::<(), Status>(());
                    }
                    let request = LeaseGrantRequest { ttl: ttl(number), ..Default::default() };
                    let id = lease.lease_grant(request).await?.into_inner().id;
                    if with_key {
                        let key = Bytes::from(format!("{PREFIX}{number:010}"));
                        kv.put(PutRequest { key, lease: id, ..Default::default() }).await?;
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.map_err(|error| error.to_string())?.map_err(|status| status.to_string())?;
    }
    Ok(())
}
