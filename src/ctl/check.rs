//! `check perf` and `check datascale`: whether a cluster is fast and large enough for a load.
//!
//! Keys go below a prefix that must be empty before, and is emptied after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{ArgMatches, Command};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::arguments::{Typed, command, group, switch, value};
use super::failure::Failure;
use super::kv::behind_prefix;
use super::print::print;
use super::progress::Progress;
use super::session::Session;
use crate::client::Client;
use crate::pb::etcdserverpb::{CompactionRequest, DefragmentRequest, DeleteRangeRequest, PutRequest, RangeRequest};

/// How long the load lasts.
const SECONDS: u64 = 60;
/// Of each write.
const KEY_BYTES: usize = 256;
const VALUE_BYTES: usize = 1024;
/// Metrics come at once or not at all.
const METRICS_PATIENCE: Duration = Duration::from_secs(5);
/// What is slow, and what is uneven.
const SLOWEST_S: f64 = 0.5;
const STDDEV_S: f64 = 0.1;

/// A load by its name: its number (writes a second, or keys in all) and clients.
type Load = (&'static str, u64, usize);
const RATES: [Load; 4] = [("s", 150, 50), ("m", 1_000, 200), ("l", 8_000, 500), ("xl", 15_000, 1_000)];
const SIZES: [Load; 4] = [("s", 10_000, 50), ("m", 100_000, 200), ("l", 1_000_000, 500), ("xl", 3_000_000, 1_000)];

pub(super) fn check_command() -> Command {
    let checked = |name, about, prefix| {
        command(name, "", about)
            .arg(value("load", "s", "s(mall), m(edium), l(arge) or xl(arge)"))
            .arg(value("prefix", prefix, "where the keys are written"))
            .arg(switch("auto-compact", "compact afterwards"))
            .arg(switch("auto-defrag", "defragment afterwards"))
    };
    group("check", "Properties of the cluster")
        .subcommand(checked("perf", "Whether it is fast enough for a load", "/etcdctl-check-perf/"))
        .subcommand(checked("datascale", "How much memory data takes", "/etcdctl-check-datascale/"))
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let loads = if name == "perf" { RATES } else { SIZES };
    let asked = typed.text("load");
    let short = match asked.to_lowercase().as_str() {
        "s" | "small" => "s",
        "m" | "medium" => "m",
        "l" | "large" => "l",
        "xl" | "xlarge" => "xl",
        _ => return Err(Failure::bad_feature(format!("unknown load option {asked}"))),
    };
    let load = *loads.iter().find(|(name, ..)| *name == short).expect("all four are there");
    let (compact, defrag) = (typed.on("auto-compact")?, typed.on("auto-defrag")?);
    let prefix = typed.text("prefix");
    let client = session.client().await?;
    let all = |limit| RangeRequest {
        key: Bytes::copy_from_slice(prefix.as_bytes()),
        range_end: behind_prefix(prefix.as_bytes()),
        limit,
        ..Default::default()
    };
    if !session.ask_with(&client, all(1)).await?.kvs.is_empty() {
        return Err(Failure::bad_arguments(format!(
            "prefix {prefix:?} has keys. Delete with etcdctl del --prefix {prefix} first."
        )));
    }
    let passed = match name {
        "perf" => perf(&client, prefix, load).await?,
        _ => data_scale(session, &client, prefix, load).await?,
    };
    let RangeRequest { key, range_end, .. } = all(0);
    // Many keys take longer than a short command.
    let deleted = client.ask(DeleteRangeRequest { key, range_end, prev_kv: false }).await?;
    if compact {
        let revision = deleted.header.unwrap_or_default().revision;
        eprintln!("Compacting with revision {revision}");
        client.ask(CompactionRequest { revision, physical: true }).await?;
    }
    if defrag {
        for endpoint in &session.endpoints {
            eprintln!("Defragmenting {endpoint:?}");
            let one = session.authenticated(session.client_of(std::slice::from_ref(endpoint))?).await?;
            one.ask(DefragmentRequest {}).await?;
        }
    }
    if passed { Ok(()) } else { Err(Failure::silent(1)) }
}

/// What the writers of a load have seen.
#[derive(Default)]
struct Seen {
    seconds: Vec<f64>,
    errors: Vec<String>,
}

/// Writers that share a number of writes, each of which has its moment; none: as fast as they can.
async fn write(
    client: &Client,
    prefix: &str,
    load: Load,
    total: u64,
    pace: Option<Duration>,
    doing: &'static str,
) -> Seen {
    let (_, _, clients) = load;
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let (client, next, prefix) = (client.clone(), next.clone(), prefix.to_owned());
        writers.spawn(async move {
            let mut seen = Seen::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    return seen;
                }
                if let Some(pace) = pace {
                    let moment = started + pace.mul_f64(number as f64);
                    tokio::time::sleep_until(moment.into()).await;
                    if started.elapsed() >= Duration::from_secs(SECONDS) {
                        return seen;
                    }
                }
                let random = getrandom::u64().unwrap_or(number);
                let key = format!("{prefix}{random:016x}{:0width$}", number, width = KEY_BYTES - 16);
                let put = PutRequest { key: key.into(), value: vec![0; VALUE_BYTES].into(), ..Default::default() };
                let asked = Instant::now();
                match client.ask(put).await {
                    Ok(_) => seen.seconds.push(asked.elapsed().as_secs_f64()),
                    Err(error) => seen.errors.push(error.etcd_text()),
                }
            }
        });
    }
    let mut all = Seen::default();
    let mut progress = Progress::new(doing);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            done = writers.join_next() => match done {
                Some(Ok(Seen { seconds, errors })) => {
                    all.seconds.extend(seconds);
                    all.errors.extend(errors);
                }
                Some(Err(error)) => all.errors.push(error.to_string()),
                None => return all,
            },
            _ = tick.tick() => progress.at(next.load(Ordering::Relaxed).min(total), total),
        }
    }
}

async fn perf(client: &Client, prefix: &str, load: Load) -> Result<bool, Failure> {
    let (_, rate, _) = load;
    let pace = Duration::from_secs_f64(1.0 / rate as f64);
    let started = Instant::now();
    let Seen { seconds, errors } = write(client, prefix, load, rate * SECONDS, Some(pace), "writing").await;
    let throughput = seconds.len() as f64 / started.elapsed().as_secs_f64();
    let mut passed = errors.is_empty() && !seconds.is_empty();
    for error in &errors {
        print(&format!("FAIL: {error}\n"))?;
    }
    if throughput >= rate as f64 * 0.9 {
        print(&format!("PASS: Throughput is {} writes/s\n", throughput as u64 + 1))?;
    } else {
        passed = false;
        print(&format!("FAIL: Throughput too low: {} writes/s\n", throughput as u64 + 1))?;
    }
    let slowest = seconds.iter().copied().fold(0.0, f64::max);
    let mean = seconds.iter().sum::<f64>() / seconds.len().max(1) as f64;
    let variance = seconds.iter().map(|took| (took - mean).powi(2)).sum::<f64>() / seconds.len().max(1) as f64;
    for (value, most, good, bad) in [
        (slowest, SLOWEST_S, "Slowest request took", "Slowest request took too long:"),
        (variance.sqrt(), STDDEV_S, "Stddev is", "Stddev too high:"),
    ] {
        let (verdict, said) = if value <= most { ("PASS", good) } else { ("FAIL", bad) };
        passed &= value <= most;
        let colon = if verdict == "PASS" { "PASS: " } else { "" };
        print(&format!("{colon}{said} {value:.6}s\n"))?;
    }
    print(if passed { "PASS\n" } else { "FAIL\n" })?;
    Ok(passed)
}

async fn data_scale(session: &Session, client: &Client, prefix: &str, load: Load) -> Result<bool, Failure> {
    let (_, keys, clients) = load;
    let [endpoint] = &session.endpoints[..] else {
        return Err(Failure::bad_arguments("only one endpoint is accepted: its memory is measured"));
    };
    let before = memory(endpoint).await?;
    print(&format!(
        "Start data scale check for work load [{keys} key-value pairs, {VALUE_BYTES} bytes per key-value, {clients} concurrent clients].\n"
    ))?;
    let Seen { errors, .. } = write(client, prefix, load, keys, None, "writing").await;
    let after = memory(endpoint).await?;
    if !errors.is_empty() {
        print(&format!("FAIL: too many errors\nFAIL: ERROR({}) -> {}\n", errors[0], errors.len()))?;
        return Ok(false);
    }
    print(&format!("PASS: Approximate system memory used : {:.2} MB.\n", (after - before) / 1_048_576.0))?;
    Ok(true)
}

/// Resident bytes of a member's process, which its metrics tell.
async fn memory(endpoint: &str) -> Result<f64, Failure> {
    let failed = |why: String| Failure::error(format!("cannot read the metrics of {endpoint}: {why}"));
    let host = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(METRICS_PATIENCE, ask).await;
    let text = text.map_err(|_| failed("no answer".to_owned()))?.map_err(|error| failed(error.to_string()))?;
    let value = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    value.and_then(|value| value.trim().parse().ok()).ok_or_else(|| failed("they do not say".to_owned()))
}
