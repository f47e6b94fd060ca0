//! A closed-loop load generator for any etcd v3 endpoint: each client sends its next request when the last is answered.
//!
//! Works against etcd and Everwatch alike, so that one run can compare them. Reports the rate, the latencies, and how
//! much processor time the servers used for it, when their process ids are given.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use everwatch::pb::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use tonic::transport::{Channel, Endpoint};

const USAGE: &str = "everwatch-bench put|range --endpoints=http://127.0.0.1:2379[,..] [--clients=1000] [--conns=100] \
                     [--total=100000] [--val-size=256] [--key-space=100000] [--pids=1,2,3]";

/// What is asked for on the command line.
struct Options {
    range: bool,
    endpoints: Vec<String>,
    clients: usize,
    connections: usize,
    total: u64,
    value_bytes: usize,
    keys: u64,
    pids: Vec<u32>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            range: false,
            endpoints: Vec::new(),
            clients: 1000,
            connections: 100,
            total: 100_000,
            value_bytes: 256,
            keys: 100_000,
            pids: Vec::new(),
        };
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "put" => options.range = false,
                "range" => options.range = true,
                "--endpoints" => options.endpoints = value.split(',').map(str::to_owned).collect(),
                "--clients" => options.clients = number(name, value)?,
                "--conns" => options.connections = number(name, value)?,
                "--total" => options.total = number(name, value)?,
                "--val-size" => options.value_bytes = number(name, value)?,
                "--key-space" => options.keys = number(name, value)?,
                "--pids" => options.pids = value.split(',').map(|pid| number(name, pid)).collect::<Result<_, _>>()?,
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        if options.endpoints.is_empty() || options.clients == 0 || options.connections == 0 || options.keys == 0 {
            return Err("an endpoint, a client, a connection and a key are needed".to_owned());
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} wants a number, not {value:?}"))
}

/// What one client measured.
#[derive(Default)]
struct Measured {
    latencies: Vec<Duration>,
    errors: u64,
}

/// One client: takes the next number until all are taken.
async fn client(mut kv: KvClient<Channel>, options: Arc<Options>, taken: Arc<AtomicU64>) -> Measured {
    let mut measured = Measured::default();
    let value = bytes::Bytes::from(vec![b'v'; options.value_bytes]);
    loop {
        let number = taken.fetch_add(1, Ordering::Relaxed);
        if number >= options.total {
            return measured;
        }
        // Multiplying by a large odd number visits the keys in a scattered order, the same in every run.
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % options.keys;
        let key = bytes::Bytes::from(format!("bench/{key:010}"));
        let began = Instant::now();
        let succeeded = if options.range {
            kv.range(RangeRequest { key, ..Default::default() }).await.is_ok()
        } else {
            kv.put(PutRequest { key, value: value.clone(), ..Default::default() }).await.is_ok()
        };
        if succeeded {
            measured.latencies.push(began.elapsed());
        } else {
            measured.errors += 1;
        }
    }
}

/// Processor seconds, user and system, that these processes have used so far.
fn cpu_seconds(pids: &[u32]) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0; // what Linux shows in /proc on every architecture in use
    let ticks = |pid: &u32| -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<f64>() / TICKS_PER_SECOND
}

async fn run(options: Options) -> Result<(), String> {
    let options = Arc::new(options);
    let mut channels = Vec::new();
    for number in 0..options.connections {
        let endpoint = options.endpoints[number % options.endpoints.len()].clone();
        let endpoint = Endpoint::from_shared(endpoint).map_err(|error| error.to_string())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.map_err(|error| format!("cannot connect: {error:?}"))?);
    }
    let taken = Arc::new(AtomicU64::new(0));
    let (cpu, began) = (cpu_seconds(&options.pids), Instant::now());
    let clients: Vec<_> = (0..options.clients)
        .map(|number| KvClient::new(channels[number % channels.len()].clone()))
        .map(|kv| tokio::spawn(client(kv, options.clone(), taken.clone())))
        .collect();
    let mut all = Measured::default();
    for client in clients {
        let measured = client.await.map_err(|error| error.to_string())?;
        all.latencies.extend(measured.latencies);
        all.errors += measured.errors;
    }
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(&options.pids) - cpu);
    all.latencies.sort_unstable();
    let done = all.latencies.len();
    let at = |share: f64| all.latencies.get((done as f64 * share) as usize).map_or(0.0, |d| d.as_secs_f64() * 1e3);
    print!(
        "{} done, {} errors, {:.0} per second, p50 {:.1} ms, p99 {:.1} ms",
        done,
        all.errors,
        done as f64 / elapsed,
        at(0.5),
        at(0.99)
    );
    if !options.pids.is_empty() && done > 0 {
        print!(", {:.1} server CPU seconds per million", cpu / done as f64 * 1e6);
    }
    println!();
    Ok(())
}

fn main() -> ExitCode {
    let result = Options::parse(std::env::args().skip(1)).and_then(|options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| error.to_string())?.block_on(run(options))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("everwatch-bench: {message}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}
