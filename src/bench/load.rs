//! Writers and readers in a closed loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::options::Options;
use super::report::{Latencies, Spent};
use crate::client::Client;
use crate::pb::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};

/// `put` and `range`.
pub(super) async fn run(options: &Options) -> Result<(), String> {
    let load = Load::new(options, Keys::Scattered("bench/".to_owned()))?;
    load.warm_up().await?;
    let spent = Spent::now(&options.pids);
    let mut seen = load.run(options.total, Duration::MAX, options.command == "range").await;
    let rate = seen.latencies.len() as f64 / spent.elapsed();
    let cpu = spent.cpu_per_million(seen.latencies.len());
    println!(
        "{} done, {} errors, {rate:.0} per second, {}{cpu}",
        seen.latencies.len(),
        seen.errors,
        seen.latencies.summary()
    );
    Ok(())
}

/// Which keys are written.
#[derive(Clone, Debug)]
pub(super) enum Keys {
    /// Many, under this prefix, in a scattered order that is the same in every run.
    Scattered(String),
    /// This one.
    One(String),
}

/// What clients saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) latencies: Latencies,
    pub(super) errors: usize,
}

/// Clients that do the same.
#[derive(Clone)]
pub(super) struct Load {
    client: Client,
    clients: usize,
    connections: usize,
    keys: Keys,
    key_space: u64,
    value_bytes: usize,
    rate: u64,
    /// What times in values count from.
    pub(super) epoch: Instant,
}

impl Load {
    pub(super) fn new(options: &Options, keys: Keys) -> Result<Load, String> {
        let connections = options.connections.div_ceil(options.endpoints.len()).min(options.clients).max(1);
        let client = Client::new(&options.endpoints, connections).map_err(|error| error.to_string())?;
        Ok(Load {
            client,
            clients: options.clients,
            connections,
            keys,
            key_space: options.keys,
            value_bytes: options.value_bytes.max(TIME_BYTES),
            rate: options.rate,
            epoch: Instant::now(),
        })
    }

    /// Makes all connections, so that the first requests do not pay for them.
    pub(super) async fn warm_up(&self) -> Result<(), String> {
        for endpoint in 0..self.client.endpoints() {
            for user in 0..self.connections {
                let mut kv = KvClient::new(self.client.channel(endpoint, user));
                let request = RangeRequest { key: Bytes::from_static(b"bench"), ..Default::default() };
                kv.range(request).await.map_err(|status| format!("endpoint {endpoint}: {status}"))?;
            }
        }
        Ok(())
    }

    /// Does `total` requests, or as many as `limit` allows.
    pub(super) async fn run(&self, total: u64, limit: Duration, range: bool) -> Seen {
        let taken = Arc::new(AtomicU64::new(0));
        let end = Instant::now().checked_add(limit);
        let clients: Vec<_> = (0..self.clients)
            .map(|number| tokio::spawn(self.clone().one(number, taken.clone(), (total, end), range)))
            .collect();
        let mut all = Seen::default();
        for client in clients {
            // A client that panicked counts as an error.
            let mut seen = client.await.unwrap_or_else(|_| Seen { errors: 1, ..Seen::default() });
            all.latencies.append(&mut seen.latencies);
            all.errors += seen.errors;
        }
        all
    }

    /// One client: takes the next number until all are taken.
    async fn one(self, number: usize, taken: Arc<AtomicU64>, until: (u64, Option<Instant>), range: bool) -> Seen {
        let mut seen = Seen::default();
        let endpoints = self.client.endpoints();
        let mut kv = KvClient::new(self.client.channel(number % endpoints, number / endpoints));
        let began = Instant::now();
        loop {
            let number = taken.fetch_add(1, Ordering::Relaxed);
            if number >= until.0 || until.1.is_some_and(|end| Instant::now() >= end) {
                return seen;
            }
            if let Some(nanos) = (number * 1_000_000_000).checked_div(self.rate) {
                tokio::time::sleep_until((began + Duration::from_nanos(nanos)).into()).await;
            }
            let key = self.key(number);
            let sent = Instant::now();
            let succeeded = if range {
                kv.range(RangeRequest { key, ..Default::default() }).await.is_ok()
            } else {
                kv.put(PutRequest { key, value: self.value(sent), ..Default::default() }).await.is_ok()
            };
            if succeeded {
                seen.latencies.add(sent.elapsed());
            } else {
                seen.errors += 1;
            }
        }
    }

    fn key(&self, number: u64) -> Bytes {
        match &self.keys {
            Keys::One(key) => Bytes::copy_from_slice(key.as_bytes()),
            // Multiplying by a large odd number.
            Keys::Scattered(prefix) => {
                let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.key_space;
                Bytes::from(format!("{prefix}{number:010}"))
            }
        }
    }

    /// A value that says when it was sent.
    pub(super) fn value(&self, sent: Instant) -> Bytes {
        let mut value = vec![b'v'; self.value_bytes];
        let nanos = sent.saturating_duration_since(self.epoch).as_nanos() as u64;
        value[..TIME_BYTES].copy_from_slice(&nanos.to_be_bytes());
        Bytes::from(value)
    }
}

/// Bytes of a value that say when it was sent.
pub(super) const TIME_BYTES: usize = 8;
