//! The deterministic simulator: a whole cluster in one thread, under virtual time, with faults, out of a seed.
//!
//! ```text
//! cargo test --test sim                                            a few seeds of everything
//! SEEDS=1000 FIRST_SEED=5000 cargo test --test sim swarm           many
//! SEED=42 SCENARIO=swarm cargo test --test sim scenario            one again, as a failure says
//! TRACE=1 SEED=42 cargo test --test sim scenario -- --nocapture    with everything that happens
//! ```

#![allow(unreachable_pub)]

#[path = "sim/checks/mod.rs"]
mod checks;
#[path = "sim/clients.rs"]
mod clients;
#[path = "sim/dice.rs"]
mod dice;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/member.rs"]
mod member;
#[path = "sim/network.rs"]
mod network;
#[path = "sim/scenarios.rs"]
mod scenarios;
#[path = "sim/users.rs"]
mod users;
#[path = "sim/world.rs"]
mod world;

use std::time::Instant;

use world::{FAULTS, Report, Scenario, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, scenario: Scenario) -> Report {
    match World::new(seed, scenario).run() {
        Ok(report) => report,
        Err(failure) => panic!("{failure}"),
    }
}

fn add(total: &mut Report, report: &Report) {
    total.virtual_ns += report.virtual_ns;
    total.faults.iter_mut().zip(report.faults).for_each(|(total, faults)| *total += faults);
    total.crashes += report.crashes;
    total.power_cuts += report.power_cuts;
    total.refusals += report.refusals;
    total.installs += report.installs;
    total.leaders += report.leaders;
    total.replaced += report.replaced;
    total.recovery_ms = total.recovery_ms.max(report.recovery_ms);
    total.events += report.events;
    total.ops += report.ops;
    total.acknowledged += report.acknowledged;
    total.watches += report.watches;
    total.watch_events += report.watch_events;
    total.rights.add(&report.rights);
}

/// A row of names and numbers, for people and for the script.
fn row(what: &str, report: &Report, began: Instant) {
    let faults: u64 = report.faults.iter().sum();
    print!("sim: {what}: virtual_ms={} wall_ms={}", report.virtual_ns / world::MILLI, began.elapsed().as_millis());
    print!(" faults={faults} operations={} acknowledged={}", report.ops, report.acknowledged);
    print!(" watches={} watch_events={}", report.watches, report.watch_events);
    print!(" world_events={}", report.events);
    print!(" crashes={} power_cuts={} refusals={}", report.crashes, report.power_cuts, report.refusals);
    print!(" snapshots={} leaders={} slowest_recovery_ms={}", report.installs, report.leaders, report.recovery_ms);
    if report.rights.changes > 0 {
        let checks::rights::Counts { allowed, denied, outdated, changes, logins, leases, watches, run_out } =
            report.rights;
        print!(" allowed={allowed} denied={denied} outdated={outdated} changes_of_users={changes} logins={logins}");
        let [let_be, turned_away, ended] = watches;
        print!(" denied_about_leases={leases} tokens_run_out={run_out}");
        print!(" watches_let_be={let_be} watches_turned_away={turned_away} watches_ended={ended}");
    }
    print!(" replaced={}", report.replaced);
    for (fault, count) in FAULTS.iter().zip(report.faults) {
        print!(" fault.{}={count}", fault.name());
    }
    println!();
}

/// Runs drawn worlds, and counts those that broke a promise.
#[test]
fn swarm() {
    let (first, seeds) = (number("FIRST_SEED").unwrap_or(1), number("SEEDS").unwrap_or(4));
    let mut violations = 0;
    for seed in first..first + seeds {
        let began = Instant::now();
        println!("sim: begins seed {seed}");
        match World::new(seed, scenarios::swarm(seed)).run() {
            Ok(report) => row(&format!("seed {seed}"), &report, began),
            Err(failure) => {
                violations += 1;
                println!("{failure}");
            }
        }
    }
    assert_eq!(violations, 0, "violations, each told above");
}

/// Each command of the log's disk is the last one before a crash, and the crash takes nothing, everything or something.
#[test]
fn a_crash_at_any_disk_command_loses_nothing() {
    let began = Instant::now();
    let stride = number("STRIDE").unwrap_or(1);
    let mut total = Report::default();
    let mut runs = 0;
    for (at, command) in (0..200).step_by(stride as usize).enumerate() {
        for loss in [disk::Loss::Process, disk::Loss::All, disk::Loss::Mixed] {
            let members = if at % 4 == 3 { 3 } else { 1 };
            add(&mut total, &run(command, scenarios::sweep(members, command, loss)));
            runs += 1;
        }
    }
    assert!(total.crashes >= runs, "every run has its crash");
    row("sweep", &total, began);
}

#[test]
fn named_scenarios() {
    let (first, seeds) = (number("FIRST_SEED").unwrap_or(1), number("SEEDS").unwrap_or(1));
    for scenario in scenarios::named() {
        let began = Instant::now();
        let mut total = Report::default();
        for seed in first..first + seeds {
            add(&mut total, &run(seed, scenario.clone()));
        }
        row(scenario.name, &total, began);
    }
}

/// One seed, as a failure names it. Without SEED there is nothing to do.
#[test]
fn scenario() {
    let Some(seed) = number("SEED") else { return };
    let name = std::env::var("SCENARIO").unwrap_or_else(|_| "swarm".into());
    let found = scenarios::named().into_iter().find(|scenario| scenario.name == name);
    let report = run(seed, found.unwrap_or_else(|| scenarios::swarm(seed)));
    println!("{report:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let seeds = number("TWICE").unwrap_or(2);
    for seed in 1..=seeds {
        let scenario = Scenario { faulty: 20 * world::SECOND, ..scenarios::swarm(seed) };
        assert_eq!(run(seed, scenario.clone()), run(seed, scenario), "seed {seed}");
    }
}
