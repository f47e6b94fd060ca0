//! What is run: a swarm of drawn worlds, and named ones after particular fears.

use crate::clients::Mix;
use crate::dice::Dice;
use crate::disk::Loss;
use crate::world::{FAULTS, Fault, Faults, MILLI, Options, SECOND, Scenario, World};

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
    .with(Fault::Wipe, 2)
    .with(Fault::AddLearner, 6)
    .with(Fault::AddVoter, 3)
    .with(Fault::Promote, 8)
    .with(Fault::Remove, 3)
    .with(Fault::Replace, 2)
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

const MIX: Mix = Mix { keys: 12, range: 30, put: 30, delete: 8, txn: 20, lease: 8, again: 150, compact: 3 };

const BASE: Scenario = Scenario {
    name: "swarm",
    members: 3,
    kv_clients: 5,
    managers: 0,
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
    script: None,
};

/// A few seconds of peace, for a change of members that goes wrong in one way.
const REMOVAL: Scenario = Scenario {
    name: "removal",
    kv_clients: 2,
    watch_clients: 2,
    faulty: 10 * SECOND,
    every: 0,
    faults: CALM,
    options: Some(Options { apply_portion: 100, ..TINY }),
    core: false,
    ..BASE
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
    // Members come and go in half of the worlds: there all of it happens.
    let changes = dice.chance(500);
    for fault in [Fault::AddLearner, Fault::AddVoter, Fault::Promote, Fault::Remove, Fault::Replace] {
        faults = faults.with(fault, if changes { EVERYTHING.of(fault) } else { 0 });
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
            again: 150,
            compact: dice.pick(&[0, 2, 3, 5]),
        },
        faulty: dice.between(270, 420) * SECOND,
        every: dice.pick(&[1000, 2500, 6000]) * MILLI,
        think: dice.pick(&[150, 500, 1500]) * MILLI,
        drift_ppm: dice.pick(&[200, 1000, 10_000, 100_000]),
        retry_per_mille: dice.pick(&[0, 0, 300]),
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
    hear_delay: 2 * MILLI,
    feed_changes: 8,
    compaction_grace: 0,
    pre_vote: true,
    disk_delay_max: 5 * MILLI,
    slow_sync_per_mille: 0,
    outbox_bytes: 2000,
    outbox_messages: 16,
    slice_bytes: 1000,
    message_bytes: 300,
    piece_bytes: 200,
    election_ticks: 10,
    wire: true,
};

/// All named ones. Each is after a fear, most of them after a bug that etcd had.
pub fn named() -> Vec<Scenario> {
    let disks = CALM.with(Fault::DiskBreaks, 6).with(Fault::DiskError, 6).with(Fault::DiskFull, 3);
    let reads = Mix { range: 80, ..MIX };
    vec![
        // Seed 1: a range in slices that a compaction overtook answered with newer keys than its header said.
        Scenario { name: "calm", every: 0, faults: CALM, ..BASE },
        // Nothing happens for an hour, and nobody campaigns.
        Scenario {
            name: "quiet hour",
            kv_clients: 1,
            watch_clients: 1,
            faulty: 3600 * SECOND,
            every: 0,
            faults: CALM,
            think: 60 * SECOND,
            leaders_max: Some(1),
            core: false,
            ..BASE
        },
        // A member that is its own quorum acknowledged before its disk had it (etcd #14370).
        Scenario { name: "alone", members: 1, every: SECOND, faults: disks.with(Fault::Crash, 6), ..BASE },
        // Reads in flight when the leader stands still or is alone, and answers that come late, to a leader that is none any more
        // (etcd #20418).
        Scenario {
            name: "paused member",
            every: 500 * MILLI,
            faults: CALM
                .with(Fault::Pause, 4)
                .with(Fault::Clog, 8)
                .with(Fault::Isolate, 6)
                .with(Fault::Weather, 2)
                .with(Fault::HandOver, 1),
            mix: reads,
            think: 40 * MILLI,
            ..BASE
        },
        // Whoever stood still for a moment is told of one tick, not of all that it missed. Without the vote before the vote, whoever
        // campaigns for no reason unseats the leader.
        Scenario {
            name: "short pauses",
            every: 2 * SECOND,
            faults: CALM.with(Fault::ShortPause, 1),
            options: Some(Options { pre_vote: false, snapshot_count: 1000, ..TINY }),
            drift_ppm: 0,
            leaders_max: Some(1),
            core: false,
            ..BASE
        },
        // Followers fall behind a log that is short, and die at every step of the snapshot that they get. A watch went back in
        // time over one (etcd #15271); two came in a row (etcd #18055).
        Scenario {
            name: "snapshots",
            every: SECOND,
            faults: disks.with(Fault::Crash, 4).with(Fault::Pause, 4).with(Fault::Partition, 3).with(Fault::Isolate, 3),
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
        // After a compaction and a restart the revision went back (etcd #17780).
        Scenario {
            name: "compaction and crashes",
            every: 700 * MILLI,
            mix: Mix { keys: 3, put: 20, delete: 40, txn: 5, lease: 4, compact: 25, ..MIX },
            faults: CALM.with(Fault::Crash, 6).with(Fault::CrashAll, 4).with(Fault::CrashLoop, 1),
            options: Some(TINY),
            ..BASE
        },
        // The applied index was saved apart from the rows (etcd #13766); names that were not synced (etcd #6368).
        Scenario {
            name: "power",
            every: 700 * MILLI,
            faults: CALM.with(Fault::Crash, 4).with(Fault::CrashAll, 4).with(Fault::DiskBreaks, 6),
            options: Some(TINY),
            ..BASE
        },
        // A sync that failed is not tried again: what it was to carry is gone.
        Scenario { name: "failing disks", every: 500 * MILLI, faults: disks, options: Some(TINY), ..BASE },
        // Damage at rest is found, not taken for a torn end.
        Scenario {
            name: "damaged logs",
            members: 5,
            every: SECOND,
            faults: CALM.with(Fault::BitFlip, 6).with(Fault::Crash, 2).with(Fault::Isolate, 1),
            options: Some(TINY),
            ..BASE
        },
        // Members come and go, the leader among them, while others die and are cut off.
        Scenario {
            name: "members come and go",
            every: 700 * MILLI,
            faulty: 120 * SECOND,
            faults: CALM
                .with(Fault::AddLearner, 6)
                .with(Fault::AddVoter, 3)
                .with(Fault::Promote, 8)
                .with(Fault::Remove, 3)
                .with(Fault::Replace, 2)
                .with(Fault::Crash, 3)
                .with(Fault::CrashAll, 1)
                .with(Fault::Isolate, 2)
                .with(Fault::Partition, 2)
                .with(Fault::HandOver, 1),
            options: Some(TINY),
            ..BASE
        },
        // Of two voters one is removed, and the other does not hear that it is alone.
        Scenario { name: "the commit is lost", members: 2, script: Some(World::the_commit_is_lost), ..REMOVAL },
        // A leader that is removed leaves nobody who leads, if it does not hand over before.
        Scenario { name: "the leader is removed", script: Some(World::the_leader_is_removed), ..REMOVAL },
        // What a follower passes on to the leader may get lost, and a leader that refuses it does not say so.
        Scenario { name: "the forward is lost", script: Some(World::the_forward_is_lost), ..REMOVAL },
        // Everybody is replaced, one after another and each in another way, while all go on working and faults go on, too.
        Scenario {
            name: "all are replaced",
            every: 2 * SECOND,
            faulty: 10 * SECOND,
            mix: Mix { compact: 6, ..MIX },
            faults: CALM
                .with(Fault::Crash, 3)
                .with(Fault::CrashAll, 1)
                .with(Fault::DiskError, 1)
                .with(Fault::SlowDisk, 1)
                .with(Fault::Pause, 2)
                .with(Fault::Partition, 3)
                .with(Fault::OneWay, 2)
                .with(Fault::Isolate, 3)
                .with(Fault::Clog, 1)
                .with(Fault::Weather, 1)
                .with(Fault::HandOver, 2),
            think: 100 * MILLI,
            options: Some(TINY),
            script: Some(World::all_are_replaced),
            ..BASE
        },
        // One member grows to many and shrinks to one again.
        Scenario {
            name: "a cluster grows",
            members: 1,
            every: 700 * MILLI,
            faulty: 120 * SECOND,
            faults: CALM
                .with(Fault::AddLearner, 6)
                .with(Fault::AddVoter, 3)
                .with(Fault::Promote, 8)
                .with(Fault::Remove, 4)
                .with(Fault::Crash, 2)
                .with(Fault::OneWay, 1),
            ..BASE
        },
        // A member that lost its disk must not vote and acknowledge as if it were new.
        Scenario {
            name: "lost disks",
            every: 900 * MILLI,
            faulty: 120 * SECOND,
            faults: CALM
                .with(Fault::Wipe, 6)
                .with(Fault::AddLearner, 3)
                .with(Fault::Promote, 6)
                .with(Fault::Replace, 4)
                .with(Fault::Crash, 2)
                .with(Fault::Isolate, 2),
            options: Some(Options { snapshot_count: 50, catchup_entries: 10, ..TINY }),
            ..BASE
        },
        // A member dies as soon as it has started, again and again.
        Scenario {
            name: "crash loops",
            every: 2 * SECOND,
            faults: CALM.with(Fault::CrashLoop, 6).with(Fault::CrashAll, 1),
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
                .with(Fault::Weather, 2)
                .with(Fault::Ring, 2)
                .with(Fault::Scatter, 2)
                .with(Fault::Swizzle, 2),
            ..BASE
        },
        // Entries that a new leader replaced must not come back after a restart.
        Scenario {
            name: "partitions and power",
            every: SECOND,
            faults: CALM
                .with(Fault::Isolate, 6)
                .with(Fault::Partition, 3)
                .with(Fault::Crash, 4)
                .with(Fault::CrashAll, 3)
                .with(Fault::DiskBreaks, 2),
            think: 40 * MILLI,
            options: Some(Options { snapshot_count: 300, ..TINY }),
            ..BASE
        },
        // Members that see only some of the others must settle for a leader.
        Scenario {
            name: "bridges",
            members: 5,
            every: 3 * SECOND,
            faults: CALM.with(Fault::Bridge, 6).with(Fault::Ring, 3).with(Fault::OneWay, 3),
            ..BASE
        },
        // Links come and go faster than an election takes.
        Scenario {
            name: "flapping links",
            every: 3 * SECOND,
            faults: CALM.with(Fault::Flap, 6).with(Fault::Swizzle, 1).with(Fault::Clog, 2),
            ..BASE
        },
        // A vote is remembered over a crash, else two lead in one term.
        Scenario {
            name: "votes",
            members: 5,
            kv_clients: 2,
            watch_clients: 1,
            every: 250 * MILLI,
            faults: CALM
                .with(Fault::Crash, 4)
                .with(Fault::CrashAll, 2)
                .with(Fault::CrashLoop, 10)
                .with(Fault::Scatter, 4)
                .with(Fault::Weather, 6)
                .with(Fault::HandOver, 6),
            think: SECOND,
            options: Some(Options { pre_vote: false, election_ticks: 5, snapshot_count: 300, ..TINY }),
            ..BASE
        },
        // A new leader answers reads only once an entry of its own term is committed.
        Scenario {
            name: "leader changes",
            every: 600 * MILLI,
            faults: CALM
                .with(Fault::HandOver, 4)
                .with(Fault::Isolate, 4)
                .with(Fault::Pause, 3)
                .with(Fault::Clog, 3)
                .with(Fault::SlowDisk, 3)
                .with(Fault::OneWay, 3),
            mix: reads,
            think: 40 * MILLI,
            ..BASE
        },
        // The leader's disk is slow, its clock is not.
        Scenario {
            name: "slow disks",
            every: 2 * SECOND,
            faults: CALM.with(Fault::SlowDisk, 6).with(Fault::Pause, 1),
            mix: Mix { lease: 30, ..MIX },
            ..BASE
        },
        // A deposed leader went on to revoke (etcd #15247).
        Scenario {
            name: "leases",
            mix: Mix { lease: 60, ..MIX },
            faults: CALM
                .with(Fault::Crash, 2)
                .with(Fault::Pause, 4)
                .with(Fault::HandOver, 4)
                .with(Fault::Partition, 2)
                .with(Fault::Isolate, 4),
            drift_ppm: 1000,
            ..BASE
        },
        // Many leases that end together, of members that come and go: what goes with a lease is the same everywhere.
        Scenario {
            name: "leases and crashes",
            every: SECOND,
            mix: Mix { keys: 40, put: 60, lease: 30, ..MIX },
            faults: CALM.with(Fault::Crash, 5).with(Fault::CrashAll, 2).with(Fault::Isolate, 2),
            think: 60 * MILLI,
            options: Some(TINY),
            ..BASE
        },
        // A lease was renewed by a leader that had not carried out yet what others had: its revoke (etcd #20615).
        Scenario {
            name: "renewals after revokes",
            kv_clients: 24,
            watch_clients: 2,
            mix: Mix { put: 15, range: 5, delete: 2, txn: 5, lease: 80, compact: 1, ..MIX },
            faults: CALM.with(Fault::ShortPause, 4).with(Fault::HandOver, 2).with(Fault::Isolate, 1),
            think: 20 * MILLI,
            options: Some(Options { apply_portion: 1, apply_delay: 50 * MILLI, snapshot_count: 300, ..TINY }),
            ..BASE
        },
        // A lease was granted again under its id, and an expiry of the one before it, offered a second time, ended it.
        Scenario {
            name: "ids granted again",
            kv_clients: 16,
            watch_clients: 2,
            mix: Mix { put: 15, range: 5, delete: 2, txn: 5, lease: 80, again: 1000, compact: 1, ..MIX },
            faults: CALM.with(Fault::SlowDisk, 4).with(Fault::Clog, 4).with(Fault::Pause, 1),
            think: 60 * MILLI,
            ..BASE
        },
        // A watch created right after a change missed it (etcd #20655).
        Scenario { name: "watchers", watch_clients: 16, mix: Mix { keys: 3, ..MIX }, think: 40 * MILLI, ..BASE },
        // A hub that does not come to hear what was applied finds it in history.
        Scenario {
            name: "deaf hubs",
            watch_clients: 14,
            mix: Mix { keys: 4, put: 60, ..MIX },
            faults: CALM.with(Fault::Pause, 3).with(Fault::Isolate, 3).with(Fault::Crash, 2),
            options: Some(Options { hear_delay: 300 * MILLI, feed_changes: 2, ..TINY }),
            think: 40 * MILLI,
            ..BASE
        },
        // What is compacted is read to its end, or its readers are told that they cannot go on.
        Scenario {
            name: "grace",
            watch_clients: 14,
            mix: Mix { keys: 4, put: 40, compact: 20, ..MIX },
            faults: CALM.with(Fault::Pause, 3).with(Fault::Isolate, 3).with(Fault::Crash, 2),
            options: Some(Options {
                catch_up_delay: 200 * MILLI,
                outbox_messages: 4,
                compaction_grace: 700 * MILLI,
                recent_bytes: 0,
                ..TINY
            }),
            think: 40 * MILLI,
            ..BASE
        },
        // A watch from a revision to come was sent what comes before it (etcd #20221).
        Scenario {
            name: "future watches",
            watch_clients: 16,
            faults: CALM.with(Fault::Pause, 4).with(Fault::Isolate, 4).with(Fault::Crash, 2),
            options: Some(Options { recent_bytes: 0, ..TINY }),
            think: 80 * MILLI,
            ..BASE
        },
        // Progress told of what was still to come (etcd #15220).
        Scenario {
            name: "progress",
            watch_clients: 14,
            mix: Mix { keys: 5, put: 60, ..MIX },
            faults: CALM.with(Fault::Pause, 3).with(Fault::Isolate, 3),
            options: Some(Options { catch_up_delay: 200 * MILLI, ..TINY }),
            think: 40 * MILLI,
            ..BASE
        },
        // What a stream's queue could not take was gone (etcd #17529).
        Scenario {
            name: "starved streams",
            watch_clients: 14,
            mix: Mix { keys: 3, put: 60, ..MIX },
            faults: CALM.with(Fault::Pause, 1).with(Fault::Isolate, 1),
            // Who is behind for a moment is soon caught up: streams are to be found full by what is new.
            options: Some(Options {
                outbox_messages: 4,
                outbox_bytes: 300,
                slice_bytes: 1 << 20,
                message_bytes: 1 << 20,
                catch_up_delay: MILLI,
                ..TINY
            }),
            think: 30 * MILLI,
            ..BASE
        },
        // Apply depended on whether somebody waited for the reply (etcd #18667), and on a table that was not built anew
        // (etcd #14571).
        Scenario {
            name: "txns",
            every: SECOND,
            mix: Mix { keys: 5, txn: 90, put: 20, ..MIX },
            faults: CALM.with(Fault::Crash, 4).with(Fault::Isolate, 2).with(Fault::HandOver, 2),
            think: 60 * MILLI,
            options: Some(TINY),
            ..BASE
        },
        // Who may do what changes all the time, and is decided where the log has it, on whichever member somebody asks.
        Scenario {
            name: "users and roles",
            kv_clients: 10,
            managers: 2,
            watch_clients: 8,
            every: SECOND,
            mix: Mix { lease: 20, compact: 1, ..MIX },
            faults: CALM
                .with(Fault::Crash, 4)
                .with(Fault::CrashAll, 1)
                .with(Fault::Pause, 2)
                .with(Fault::Isolate, 3)
                .with(Fault::Partition, 3)
                .with(Fault::Clog, 2)
                .with(Fault::HandOver, 3),
            think: 60 * MILLI,
            options: Some(TINY),
            ..BASE
        },
        // Everything that depends on time, with clocks a tenth apart.
        Scenario {
            name: "drifting clocks",
            mix: Mix { lease: 50, ..MIX },
            faults: CALM.with(Fault::Pause, 2).with(Fault::Isolate, 2).with(Fault::HandOver, 2).with(Fault::Crash, 1),
            drift_ppm: 100_000,
            ..BASE
        },
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
