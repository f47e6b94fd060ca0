//! Bytes that nobody meant, given to everything that reads bytes. No compiler support is needed: inputs are drawn from a seed,
//! or are kept ones with something changed, and every target says what must hold for any input at all.
//!
//! One test per target. It replays the target's corpus, `tests/corpus/<target>/`, then draws inputs for a while:
//!
//! ```text
//! FUZZ_SECONDS=60 FUZZ_SEED=7 cargo test --test fuzz log -- --nocapture      one target, one minute
//! FUZZ_INPUT=tests/corpus/log/5f3a.bin cargo test --test fuzz log            one input alone
//! FUZZ_KEEP=1 ...                                                            inputs that did something new join the corpus
//! ```
//!
//! An input that fails is cut down and saved into the corpus under a name that begins with `fail-`; the test says how to
//! replay it. `scripts/fuzz.sh` runs all targets for long and counts.

#[path = "fuzz/backups.rs"]
mod backups;
#[path = "fuzz/boot.rs"]
mod boot;
#[path = "fuzz/engine.rs"]
mod engine;
#[path = "fuzz/etcd_logs.rs"]
mod etcd_logs;
#[path = "fuzz/log.rs"]
mod log;
#[path = "fuzz/peers.rs"]
mod peers;
#[path = "fuzz/process.rs"]
mod process;
#[path = "fuzz/ranges.rs"]
mod ranges;
#[path = "fuzz/readers.rs"]
mod readers;
#[path = "fuzz/requests.rs"]
mod requests;
#[path = "fuzz/settings.rs"]
mod settings;
#[path = "fuzz/snapshots.rs"]
mod snapshots;
#[path = "mvcc_model/store.rs"]
mod store;
#[path = "fuzz/txns.rs"]
mod txns;
#[path = "fuzz/watches.rs"]
mod watches;
#[path = "fuzz/wires.rs"]
mod wires;

/// CVE-2020-15106, CVE-2020-15112: lengths and indexes that are lies.
#[test]
fn log() {
    engine::run("log", 300, log::run);
}

/// The same log, encrypted: heads and blocks that are lies.
#[test]
fn sealed() {
    engine::run("sealed", 300, log::run_sealed);
}

#[test]
fn snapshots() {
    engine::run("snapshots", 200, snapshots::run);
}

#[test]
fn peers() {
    engine::run("peers", 3000, peers::run);
}

#[test]
fn requests() {
    let _ends = requests::Ends;
    engine::run("requests", 400, requests::run);
}

/// As many inputs as take some ten seconds: always the same ones.
#[test]
fn wires() {
    let _ends = wires::Ends;
    engine::run_some("wires", 400, 500, wires::run);
}

#[test]
fn txns() {
    engine::run("txns", 9, txns::run);
}

#[test]
fn ranges() {
    engine::run("ranges", 200, ranges::run);
}

#[test]
fn watches() {
    engine::run("watches", 600, watches::run);
}

#[test]
fn settings() {
    engine::run("settings", 200, settings::run);
}

/// CVE-2020-15112: entries that do not follow each other.
#[test]
fn boot() {
    engine::run("boot", 40, boot::run);
}

#[test]
fn readers() {
    engine::run("readers", 200, readers::run);
}

#[test]
fn backups() {
    engine::run("backups", 200, backups::run);
}

#[test]
fn etcd_logs() {
    engine::run("etcd_logs", 200, etcd_logs::run);
}
