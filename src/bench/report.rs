//! What was measured, and what the servers spent meanwhile.

use std::time::{Duration, Instant};

/// Latencies, each kept.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    all: Vec<Duration>,
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        self.all.push(latency);
    }

    pub(super) fn append(&mut self, other: &mut Latencies) {
        self.all.append(&mut other.all);
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// `p50 1.2 ms, p99 3.4 ms, worst 5.6 ms`.
    pub(super) fn summary(&mut self) -> String {
        self.all.sort_unstable();
        let at = |share: f64| {
            let place = (self.all.len() as f64 * share) as usize;
            self.all.get(place.min(self.all.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
        };
        format!("p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(0.5), at(0.99), at(1.0))
    }
}

/// Where the servers stood at some moment.
#[derive(Debug)]
pub(super) struct Spent {
    pids: Vec<u32>,
    at: Instant,
    cpu: f64,
}

impl Spent {
    pub(super) fn now(pids: &[u32]) -> Spent {
        Spent { pids: pids.to_vec(), at: Instant::now(), cpu: cpu_seconds(pids) }
    }

    /// Seconds since then.
    pub(super) fn elapsed(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }

    /// `, 61.2 server CPU seconds per million`, if the servers are known.
    pub(super) fn cpu_per_million(&self, done: usize) -> String {
        if self.pids.is_empty() || done == 0 {
            return String::new();
        }
        let spent = cpu_seconds(&self.pids) - self.cpu;
        format!(", {:.2} server CPU seconds per million", spent / done as f64 * 1e6)
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

/// Bytes of memory that these processes have resident, and the most that they ever had.
pub(super) fn resident(pids: &[u32]) -> (u64, u64) {
    let field = |pid: &u32, name: &str| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    };
    let sum = |name: &str| pids.iter().filter_map(|pid| field(pid, name)).sum();
    (sum("VmRSS:"), sum("VmHWM:"))
}

/// Mebibytes, for people.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
