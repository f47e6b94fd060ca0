//! What was measured, and what the servers and the generator itself spent meanwhile.

use std::cell::Cell;
use std::fs;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::options::Options;

/// By how much memory may change and be called settled, and when it is read all the same: collectors of garbage and allocators
/// give back what they do not need with some delay.
const SETTLED_WITHIN: f64 = 0.005;
const SETTLED_AT_LAST: Duration = Duration::from_secs(30);
/// Between two words about a long step.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The figures of a case, in the order they were added. A name ends with its unit.
pub(super) struct Report {
    command: String,
    servers: Servers,
    began: Instant,
    figures: Vec<(String, f64)>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Report {
        let servers = Servers { pids: options.pids.clone(), settle: options.settle };
        Report { command: options.command.clone(), servers, began: Instant::now(), figures: Vec::new() }
    }

    pub(super) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(super) fn add(&mut self, name: impl Into<String>, value: f64) {
        self.figures.push((name.into(), value));
    }

    /// `NAME_p50_ms` and its relatives.
    pub(super) fn latencies(&mut self, name: &str, latencies: &Latencies) {
        self.add(format!("{name}_count"), latencies.len() as f64);
        for (share, label) in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p999"), (1.0, "max")] {
            self.add(format!("{name}_{label}_ms"), latencies.at(share));
        }
    }

    /// What `done` operations took, and cost the servers.
    pub(super) fn costs(&mut self, name: &str, spent: Spent, done: u64) {
        self.add(format!("{name}_s"), spent.elapsed_s);
        self.add(format!("{name}_per_s"), done as f64 / spent.elapsed_s.max(1e-9));
        // Near 1 the generator, which has one thread, is what limits.
        self.add(format!("{name}_generator_cpu_share"), spent.generator_cpu_s / spent.elapsed_s.max(1e-9));
        if !self.servers.pids.is_empty() {
            self.add(format!("{name}_server_cpu_s"), spent.server_cpu_s);
            self.add(format!("{name}_server_cpu_us_each"), spent.server_cpu_s * 1e6 / done.max(1) as f64);
        }
    }

    /// `NAME_resident_mib` and `NAME_anonymous_mib`, if the servers are known.
    pub(super) fn memory(&mut self, name: &str, memory: Memory) {
        if !self.servers.pids.is_empty() {
            self.add(format!("{name}_resident_mib"), mebibytes(memory.resident));
            self.add(format!("{name}_anonymous_mib"), mebibytes(memory.anonymous));
        }
    }

    /// Prints everything, and how it ended.
    pub(super) fn print(mut self, json: bool, outcome: &Result<(), String>) {
        self.add("generator_s", self.began.elapsed().as_secs_f64());
        self.add("generator_cpu_s", cpu_s("self"));
        self.add("generator_peak_mib", mebibytes(status("self", "VmHWM:")));
        if json {
            let mut line = Map::new();
            line.insert("case".to_owned(), json!(self.command));
            line.insert("failed".to_owned(), outcome.as_ref().err().map_or(Value::Null, |why| json!(why)));
            line.extend(self.figures.into_iter().map(|(name, value)| (name, json!(value))));
            println!("{}", Value::Object(line));
            return;
        }
        for (name, value) in self.figures {
            let decimals = if value.fract() == 0.0 { 0 } else { 2 };
            println!("{name:<44} {value:.decimals$}");
        }
    }
}

/// What takes longer is taken to take so long.
const LATENCY_NANOS_MAX: u64 = 3600 * 1_000_000_000;

/// Latencies, to three digits.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, 3).expect("bounds that make sense"))
    }
}

impl Latencies {
    pub(super) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn append(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Milliseconds that this share of them did not exceed.
    pub(super) fn at(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share) as f64 / 1e6
    }
}

/// The processes under load.
#[derive(Clone, Debug)]
pub(super) struct Servers {
    pids: Vec<u32>,
    settle: Duration,
}

/// Bytes that processes have in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// All, files that are mapped included: etcd maps its database.
    pub(super) resident: u64,
    /// What is in no file.
    pub(super) anonymous: u64,
}

impl Servers {
    pub(super) fn memory(&self) -> Memory {
        let sum = |name: &str| self.pids.iter().map(|pid| status(&pid.to_string(), name)).sum();
        Memory { resident: sum("VmRSS:"), anonymous: sum("RssAnon:") }
    }

    /// What they have when it does not change any more.
    pub(super) async fn settled(&self) -> Memory {
        let (began, mut since) = (Instant::now(), Instant::now());
        let mut mark = self.memory();
        while !self.pids.is_empty() && since.elapsed() < self.settle && began.elapsed() < SETTLED_AT_LAST {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.memory();
            if now.resident.abs_diff(mark.resident) as f64 > mark.resident as f64 * SETTLED_WITHIN {
                (mark, since) = (now, Instant::now());
            }
        }
        self.memory()
    }

    /// Forgets the most that they ever had resident.
    pub(super) fn forget_peak(&self) {
        for pid in &self.pids {
            if let Err(error) = fs::write(format!("/proc/{pid}/clear_refs"), "5") {
                eprintln!("everwatch-bench: the peak of {pid} is the one since its start: {error}");
            }
        }
    }

    /// The most that they had resident since that was forgotten.
    pub(super) fn peak_resident(&self) -> u64 {
        self.pids.iter().map(|pid| status(&pid.to_string(), "VmHWM:")).sum()
    }

    /// The most of anonymous memory that they have while something goes on. The kernel does not keep it: it is looked at.
    pub(super) async fn peak_anonymous<T>(&self, what: impl Future<Output = T>) -> (T, u64) {
        let most = Cell::new(self.memory().anonymous);
        let look = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                most.set(most.get().max(self.memory().anonymous));
            }
        };
        let outcome = tokio::select! {
            outcome = what => outcome,
            () = look => unreachable!("it looks until the other is done"),
        };
        (outcome, most.get().max(self.memory().anonymous))
    }
}

/// A stretch of time, and the processor time that went with it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    elapsed_s: f64,
    server_cpu_s: f64,
    generator_cpu_s: f64,
}

impl Spent {
    /// What was spent from here until the function that comes back is called.
    pub(super) fn meter(servers: &Servers) -> impl Fn() -> Spent + use<> {
        let servers = servers.clone();
        let cpu = move || servers.pids.iter().map(|pid| cpu_s(&pid.to_string())).sum::<f64>();
        let (began, server, generator) = (Instant::now(), cpu(), cpu_s("self"));
        move || Spent {
            elapsed_s: began.elapsed().as_secs_f64(),
            server_cpu_s: cpu() - server,
            generator_cpu_s: cpu_s("self") - generator,
        }
    }

    pub(super) fn plus(self, other: Spent) -> Spent {
        Spent {
            elapsed_s: self.elapsed_s + other.elapsed_s,
            server_cpu_s: self.server_cpu_s + other.server_cpu_s,
            generator_cpu_s: self.generator_cpu_s + other.generator_cpu_s,
        }
    }
}

/// Says from time to time, on stderr, how far a long step is: as a bar where somebody looks on, else as a line now and then.
pub(super) struct Progress {
    what: &'static str,
    of: usize,
    done: Cell<usize>,
    bar: bool,
    began: Instant,
    said: Cell<Instant>,
}

/// Between two looks of a bar.
pub(super) const BAR_INTERVAL: Duration = Duration::from_millis(200);
const BAR_CELLS: usize = 40;

impl Progress {
    pub(super) fn new(what: &'static str, of: usize) -> Progress {
        let (bar, began) = (io::stderr().is_terminal(), Instant::now());
        Progress { what, of, done: Cell::new(0), bar, began, said: Cell::new(began) }
    }

    pub(super) fn step(&self) {
        self.done.set(self.done.get() + 1);
        self.at(self.done.get());
    }

    pub(super) fn at(&self, done: usize) {
        let interval = if self.bar { BAR_INTERVAL } else { PROGRESS_INTERVAL };
        if self.said.get().elapsed() < interval {
            return;
        }
        self.said.set(Instant::now());
        let (what, of) = (self.what, self.of);
        if self.bar {
            let full = (done * BAR_CELLS / of.max(1)).min(BAR_CELLS);
            let rate = done as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
            eprint!("\r[{:<BAR_CELLS$}] {done} of {of} {what}, {rate:.0} a second ", "#".repeat(full));
        } else {
            eprintln!("everwatch-bench: {done} of {of} {what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.bar && self.said.get() > self.began {
            eprint!("\r{:BAR_LINE$}\r", "");
        }
    }
}

/// What a bar may cover of its line.
const BAR_LINE: usize = BAR_CELLS + 60;

/// Processor seconds, user and system, that a process has used so far.
fn cpu_s(pid: &str) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0; // what Linux shows in /proc on every architecture in use
    let ticks = || -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    };
    ticks().unwrap_or(0.0) / TICKS_PER_SECOND
}

/// A field of a process's status, in bytes.
fn status(pid: &str, name: &str) -> u64 {
    let field = || -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    };
    field().unwrap_or(0) * 1024
}

/// Whether a process has ended, though its parent may not have asked how.
pub(super) fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with(['Z', 'X']))
}

/// Mebibytes, for people.
pub(super) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_latencies_does_not_exceed_what_is_told() {
        let mut latencies = Latencies::default();
        (1..=100).rev().for_each(|ms| latencies.add(Duration::from_millis(ms)));
        for (share, expected) in [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0)] {
            assert!((latencies.at(share) - expected).abs() <= expected / 1000.0, "{share}: {}", latencies.at(share));
        }
        assert_eq!(Latencies::default().at(0.99), 0.0);
    }
}
