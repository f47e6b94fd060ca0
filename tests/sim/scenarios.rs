//! What is run: a swarm of drawn worlds, and named ones after particular fears.

use crate::clients::Mix;
use crate::dice::Dice;
use crate::disk::Loss;
use crate::world::{Faults, MILLI, Options, SECOND, Scenario};

const CALM: Faults = Faults {
    crash: 0,
    crash_all: 0,
    disk_breaks: 0,
    pause: 0,
    partition: 0,
    one_way: 0,
    bridge: 0,
    rough: 0,
    hand_over: 0,
    slow_disk: 0,
};

const EVERYTHING: Faults = Faults {
    crash: 6,
    crash_all: 1,
    disk_breaks: 4,
    pause: 4,
    partition: 4,
    one_way: 2,
    bridge: 1,
    rough: 2,
    hand_over: 2,
    slow_disk: 2,
};

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
};

/// Everything at once, drawn from the seed.
pub fn swarm(seed: u64) -> Scenario {
    let mut dice = Dice::new(seed.wrapping_mul(31).wrapping_add(7));
    let mut some = |weight: u64| if dice.chance(700) { weight } else { 0 };
    let faults = Faults {
        crash: some(6) + 1,
        crash_all: some(1),
        disk_breaks: some(4),
        pause: some(4),
        partition: some(4),
        one_way: some(2),
        bridge: some(1),
        rough: some(2),
        hand_over: some(2),
        slow_disk: some(2),
    };
    Scenario {
        members: dice.pick(&[1, 3, 3, 3, 5]),
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
        faulty: dice.between(20, 60) * SECOND,
        every: dice.pick(&[500, 1500, 4000]) * MILLI,
        think: dice.pick(&[50, 300, 1000]) * MILLI,
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
        Scenario { name: "alone", members: 1, faults: Faults { crash: 3, disk_breaks: 3, ..CALM }, ..BASE },
        // etcd #20418: reads in flight when the leader stands still, and answers that come late.
        Scenario {
            name: "paused member",
            every: 800 * MILLI,
            faults: Faults { pause: 6, rough: 1, hand_over: 1, ..CALM },
            mix: Mix { range: 80, ..MIX },
            ..BASE
        },
        // Followers fall behind a log that is short, and die at every step of the snapshot that they get.
        Scenario {
            name: "snapshots",
            every: SECOND,
            faults: Faults { crash: 4, disk_breaks: 4, pause: 4, partition: 3, ..CALM },
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
            faults: Faults { crash: 4, crash_all: 4, disk_breaks: 6, ..CALM },
            options: Some(TINY),
            ..BASE
        },
        Scenario {
            name: "partitions",
            members: 5,
            every: SECOND,
            faults: Faults { partition: 5, one_way: 5, bridge: 4, rough: 2, ..CALM },
            ..BASE
        },
        Scenario {
            name: "leases",
            mix: Mix { lease: 60, ..MIX },
            faults: Faults { crash: 2, pause: 4, hand_over: 4, partition: 2, ..CALM },
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
        ..BASE
    }
}
