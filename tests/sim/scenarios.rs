//! What is run: a swarm of drawn worlds, and named ones after particular fears.

use crate::clients::Mix;
use crate::dice::Dice;
use crate::disk::Loss;
use crate::world::{FAULTS, Fault, Faults, MILLI, Options, SECOND, Scenario};

const CALM: Faults = Faults::NONE;

const EVERYTHING: Faults = CALM
    .with(Fault::Crash, 6)
    .with(Fault::CrashAll, 1)
    .with(Fault::CrashLoop, 1)
    .with(Fault::DiskBreaks, 4)
    .with(Fault::DiskError, 3)
    .with(Fault::DiskFull, 2)
    .with(Fault::SlowDisk, 2)
    .with(Fault::BitFlip, 1)
    .with(Fault::Pause, 4)
    .with(Fault::Partition, 4)
    .with(Fault::OneWay, 2)
    .with(Fault::Bridge, 1)
    .with(Fault::Isolate, 2)
    .with(Fault::Ring, 1)
    .with(Fault::Scatter, 1)
    .with(Fault::Flap, 2)
    .with(Fault::Swizzle, 2)
    .with(Fault::Clog, 2)
    .with(Fault::Weather, 2)
    .with(Fault::HandOver, 2);

const MIX: Mix = Mix { keys: 12, range: 30, put: 30, delete: 8, txn: 20, lease: 8, compact: 3 };

const BASE: Scenario = Scenario {
    name: "swarm",
    members: 3,
    kv_clients: 5,
    watch_clients: 5,
    mix: MIX,
    faulty: 60 * SECOND,
    every: 2 * SECOND,
    faults: EVERYTHING,
    think: 300 * MILLI,
    options: None,
    breaks: None,
    drift_ppm: 200,
    retry_per_mille: 0,
    core: true,
    leaders_max: None,
};

/// Everything at once, drawn from the seed.
pub fn swarm(seed: u64) -> Scenario {
    let mut dice = Dice::new(seed.wrapping_mul(31).wrapping_add(7));
    let mut faults = CALM.with(Fault::Crash, 1);
    for fault in FAULTS {
        if dice.chance(600) {
            faults = faults.with(fault, EVERYTHING.of(fault) * dice.pick(&[1, 1, 3]));
        }
    }
    Scenario {
        members: dice.pick(&[1, 3, 3, 3, 3, 5]),
        kv_clients: dice.between(2, 8) as u32,
        watch_clients: dice.between(2, 8) as u32,
        mix: Mix {
            keys: dice.pick(&[3, 12, 40]),
            range: dice.between(5, 40),
            put: dice.between(10, 60),
            delete: dice.between(0, 15),
            txn: dice.between(0, 30),
            lease: dice.between(0, 20),
            compact: dice.between(0, 6),
        },
        faulty: dice.between(270, 420) * SECOND,
        every: dice.pick(&[1000, 2500, 6000]) * MILLI,
        think: dice.pick(&[150, 500, 1500]) * MILLI,
        drift_ppm: dice.pick(&[200, 1000, 10_000, 100_000]),
        retry_per_mille: 0,
        faults,
        ..BASE
    }
}

/// Small limits everywhere.
const TINY: Options = Options {
    segment_bytes: 4 << 10,
    snapshot_count: 10,
    catchup_entries: 2,
    backend_interval: 20 * MILLI,
    backend_rows: 50,
    compaction_keys: 2,
    recent_bytes: 0,
    apply_portion: 3,
    apply_delay: 5 * MILLI,
    catch_up_delay: 20 * MILLI,
    pre_vote: true,
    disk_delay_max: 5 * MILLI,
    slow_sync_per_mille: 0,
};

/// All named ones.
pub fn named() -> Vec<Scenario> {
    vec![
        // Seed 1: a range in slices that a compaction overtook answered with newer keys than its header said.
        Scenario { name: "calm", every: 0, faults: CALM, ..BASE },
        Scenario { name: "alone", members: 1, faults: CALM.with(Fault::Crash, 3).with(Fault::DiskBreaks, 3), ..BASE },
        // etcd #20418: reads in flight when the leader stands still, and answers that come late.
        Scenario {
            name: "paused member",
            every: 800 * MILLI,
            faults: CALM.with(Fault::Pause, 6).with(Fault::Weather, 1).with(Fault::HandOver, 1),
            mix: Mix { range: 80, ..MIX },
            ..BASE
        },
        // Followers fall behind a log that is short, and die at every step of the snapshot that they get.
        Scenario {
            name: "snapshots",
            every: SECOND,
            faults: CALM
                .with(Fault::Crash, 4)
                .with(Fault::DiskBreaks, 4)
                .with(Fault::Pause, 4)
                .with(Fault::Partition, 3),
            think: 50 * MILLI,
            options: Some(TINY),
            ..BASE
        },
        // Compaction on the heels of deletes and of watchers (etcd #18089, #19179).
        Scenario {
            name: "compaction",
            mix: Mix { keys: 4, put: 25, delete: 25, compact: 15, ..MIX },
            options: Some(TINY),
            watch_clients: 10,
            ..BASE
        },
        Scenario {
            name: "power",
            every: 700 * MILLI,
            faults: CALM.with(Fault::Crash, 4).with(Fault::CrashAll, 4).with(Fault::DiskBreaks, 6),
            options: Some(TINY),
            ..BASE
        },
        Scenario {
            name: "partitions",
            members: 5,
            every: SECOND,
            faults: CALM
                .with(Fault::Partition, 5)
                .with(Fault::OneWay, 5)
                .with(Fault::Bridge, 4)
                .with(Fault::Weather, 2),
            ..BASE
        },
        Scenario {
            name: "leases",
            mix: Mix { lease: 60, ..MIX },
            faults: CALM.with(Fault::Crash, 2).with(Fault::Pause, 4).with(Fault::HandOver, 4).with(Fault::Partition, 2),
            ..BASE
        },
        Scenario { name: "watchers", watch_clients: 16, mix: Mix { keys: 3, ..MIX }, think: 40 * MILLI, ..BASE },
    ]
}

/// A short life in which every disk breaks at one particular command, and the crash takes what is said.
pub fn sweep(members: usize, command: u64, loss: Loss) -> Scenario {
    Scenario {
        name: "sweep",
        members,
        kv_clients: 3,
        watch_clients: 1,
        faulty: 6 * SECOND,
        every: 0,
        faults: CALM,
        think: 200 * MILLI,
        options: Some(Options { backend_rows: 10, ..TINY }),
        breaks: Some((command, loss)),
        core: false,
        ..BASE
    }
}
