//! Writers and readers: closed loop, or at a rate.
//!
//! At a rate, request n is due at n / rate after the begin, whatever became of those before. A client that is late because the
//! one before took long counts from when it was due: a server that stands still for a second has made a second's worth of
//! requests slow, and not one (what is called coordinated omission). A client that slept until then counts from when it
//! woke: how exact a timer is says nothing of a server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tonic::transport::Channel;

use super::ask::{Ask, Asker, RANGE};
use super::options::Options;
use super::report::{BAR_INTERVAL, Latencies, Progress, Report, Spent, mebibytes};
use super::wire::{Token, Wire};
use crate::client::Client;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};

/// Requests of one kind.
pub(super) async fn run(options: &Options, ask: Ask, report: &mut Report) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    if options.fill {
        eprintln!("everwatch-bench: writing {} keys", options.keys);
        let filling = Load { keys: Keys::InOrder("bench/".to_owned()), rate: 0, ..load.clone() };
        let spent = Spent::meter(report.servers());
        let filled = filling.run(Until::Requests(options.keys), Ask::Put).await;
        report.costs("fill", spent(), options.keys);
        filled.report("fill", report);
        if filled.errors > 0 {
            return Err(format!("{} keys were not written", filled.errors));
        }
        let memory = report.servers().settled().await;
        report.memory("filled", memory);
    }
    let askers = load.prepared(ask).await?;
    report.servers().forget_peak();
    let spent = Spent::meter(report.servers());
    let seen = load.run_with(askers, Until::Requests(options.total)).await;
    report.costs("requests", spent(), seen.latencies.len());
    seen.report("requests", report);
    report.memory("after", report.servers().memory());
    report.add("peak_resident_mib", mebibytes(report.servers().peak_resident()));
    match seen.errors {
        0 => Ok(()),
        errors => Err(format!("{errors} requests failed")),
    }
}

/// Which keys are written.
#[derive(Clone, Debug)]
pub(super) enum Keys {
    /// Many, under this prefix, in a scattered order that is the same in every run.
    Scattered(String),
    /// The same, each once, in order.
    InOrder(String),
    /// This one.
    One(String),
}

impl Keys {
    /// All of them begin with it.
    fn prefix(&self) -> &str {
        match self {
            Keys::Scattered(prefix) | Keys::InOrder(prefix) | Keys::One(prefix) => prefix,
        }
    }
}

/// When a load ends.
#[derive(Clone, Debug)]
pub(super) enum Until {
    Requests(u64),
    Elapsed(Duration),
    /// When this becomes true.
    Told(watch::Receiver<bool>),
}

/// What clients saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) latencies: Latencies,
    pub(super) errors: u64,
}

impl Seen {
    pub(super) fn append(&mut self, other: &Seen) {
        self.latencies.append(&other.latencies);
        self.errors += other.errors;
    }

    pub(super) fn report(&self, name: &str, report: &mut Report) {
        report.latencies(name, &self.latencies);
        report.add(format!("{name}_errors"), self.errors as f64);
    }
}

/// Clients that do the same.
#[derive(Clone)]
pub(super) struct Load {
    client: Client,
    /// Connections by their number.
    wires: Vec<Wire>,
    clients: usize,
    keys: Keys,
    key_space: u64,
    key_bytes: u16,
    value_bytes: usize,
    rate: u64,
    /// What times in values count from.
    pub(super) epoch: Instant,
}

impl Load {
    pub(super) fn new(options: &Options, keys: Keys) -> Result<Load, String> {
        let connections = options.connections.div_ceil(options.endpoints.len()).min(options.clients).max(1);
        let client = options.client(&options.endpoints, connections)?;
        let token = Token::default();
        let wire = |n| Wire::new(client.clone(), n % client.endpoints(), token.clone());
        let wires = (0..connections * client.endpoints()).map(wire).collect();
        Ok(Load {
            client,
            wires,
            clients: options.clients,
            keys,
            key_space: options.keys,
            key_bytes: options.key_bytes,
            value_bytes: options.value_bytes.max(TIME_BYTES),
            rate: options.rate,
            epoch: Instant::now(),
        })
    }

    /// Makes all connections, so that the first requests do not pay for them.
    pub(super) async fn warm_up(&self) -> Result<(), String> {
        for (number, wire) in self.wires.iter().enumerate() {
            let request = RangeRequest { key: Bytes::from_static(b"bench"), ..Default::default() };
            let endpoint = number % self.client.endpoints();
            wire.clone().ask(RANGE, &request).await.map_err(|status| format!("endpoint {endpoint}: {status}"))?;
        }
        Ok(())
    }

    /// Sends requests, from all clients.
    pub(super) async fn run(&self, until: Until, ask: Ask) -> Seen {
        self.run_with((0..self.clients).map(|number| self.asker(number, ask)).collect(), until).await
    }

    fn asker(&self, number: usize, ask: Ask) -> Asker {
        Asker::new(ask, self.wires[number % self.wires.len()].clone())
    }

    /// The connection of the client with this number.
    pub(super) fn channel(&self, number: usize) -> Channel {
        let endpoints = self.client.endpoints();
        self.client.channel(number % endpoints, number / endpoints)
    }

    /// Clients with what they need for their first request.
    async fn prepared(&self, ask: Ask) -> Result<Vec<Asker>, String> {
        let mut askers = Vec::with_capacity(self.clients);
        for number in 0..self.clients {
            let mut asker = self.asker(number, ask);
            asker.prepare().await.map_err(|status| status.to_string())?;
            askers.push(asker);
        }
        Ok(askers)
    }

    async fn run_with(&self, askers: Vec<Asker>, until: Until) -> Seen {
        let (taken, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let all = Arc::new(Mutex::new(Seen::default()));
        let total = match until {
            Until::Requests(total) => Some(total),
            Until::Elapsed(_) | Until::Told(_) => None,
        };
        let clients: Vec<_> = (askers.into_iter())
            .map(|asker| tokio::spawn(self.clone().one(asker, taken.clone(), began, until.clone(), all.clone())))
            .collect();
        let ended = async {
            for client in clients {
                // A client that panicked counts as an error.
                let ended = client.await;
                lock(&all).errors += u64::from(ended.is_err());
            }
        };
        tokio::select! {
            () = ended => {}
            () = show_progress(total, &taken) => {}
        }
        std::mem::take(&mut *lock(&all))
    }

    /// Puts once, from the first client.
    pub(super) async fn put(&self, number: u64) -> Result<Duration, String> {
        let (mut kv, sent) = (KvClient::new(self.client.channel(0, 0)), Instant::now());
        let put = PutRequest { key: self.key(number), value: self.value(sent), ..Default::default() };
        kv.put(put).await.map_err(|status| status.to_string())?;
        Ok(sent.elapsed())
    }

    /// One client: takes the next number until the end.
    async fn one(
        self,
        mut asker: Asker,
        taken: Arc<AtomicU64>,
        began: Instant,
        mut until: Until,
        all: Arc<Mutex<Seen>>,
    ) {
        loop {
            let number = taken.fetch_add(1, Ordering::Relaxed);
            let Some(sent) = self.due(number, began, &mut until).await else { return };
            let outcome = asker.once(number, self.key(number), self.value(sent), self.keys.prefix()).await;
            let mut seen = lock(&all);
            match outcome {
                Ok(()) => seen.latencies.add(sent.elapsed()),
                Err(status) => {
                    if seen.errors == 0 {
                        eprintln!("everwatch-bench: a request failed: {status}");
                    }
                    seen.errors += 1;
                }
            }
        }
    }

    /// Waits until a request is to be sent, and says when it counts as sent. `None` when it is not to be sent any more.
    async fn due(&self, number: u64, began: Instant, until: &mut Until) -> Option<Instant> {
        let now = Instant::now();
        let paced = number.saturating_mul(1_000_000_000).checked_div(self.rate).map(Duration::from_nanos);
        let due = paced.map_or(now, |after| began + after);
        let over = match until {
            Until::Requests(total) => number >= *total,
            Until::Elapsed(limit) => now.max(due) >= began + *limit,
            Until::Told(stop) => *stop.borrow(),
        };
        if over {
            return None;
        }
        if due <= now {
            return Some(due);
        }
        match until {
            Until::Told(stop) => tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                _ = stop.changed() => return None,
            },
            _ => tokio::time::sleep_until(due.into()).await,
        }
        Some(Instant::now())
    }

    fn key(&self, number: u64) -> Bytes {
        match &self.keys {
            Keys::One(key) => Bytes::copy_from_slice(key.as_bytes()),
            Keys::InOrder(prefix) => self.numbered(prefix, number % self.key_space),
            // Multiplying by a large odd number.
            Keys::Scattered(prefix) => {
                self.numbered(prefix, number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.key_space)
            }
        }
    }

    fn numbered(&self, prefix: &str, number: u64) -> Bytes {
        let digits = usize::from(self.key_bytes).saturating_sub(prefix.len()).max(KEY_DIGITS_MIN);
        Bytes::from(format!("{prefix}{number:0digits$}"))
    }

    /// A value that says when it was sent.
    fn value(&self, sent: Instant) -> Bytes {
        let mut value = vec![b'v'; self.value_bytes];
        let nanos = sent.saturating_duration_since(self.epoch).as_nanos() as u64;
        value[..TIME_BYTES].copy_from_slice(&nanos.to_be_bytes());
        Bytes::from(value)
    }
}

/// Shows how far a load of so many requests is, and never ends.
async fn show_progress(total: Option<u64>, taken: &AtomicU64) {
    let Some(total) = total else { return std::future::pending().await };
    let progress = Progress::new("requests", total as usize);
    loop {
        tokio::time::sleep(BAR_INTERVAL).await;
        progress.at(taken.load(Ordering::Relaxed).min(total) as usize);
    }
}

/// It is never held while others run.
fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Digits of a key, however short it is to be: numbers that are not longer sort as their keys do.
const KEY_DIGITS_MIN: usize = 10;
/// Bytes of a value that say when it was sent.
pub(super) const TIME_BYTES: usize = 8;
