//! Load for any etcd v3 endpoint, ours or etcd's, and what it cost the servers.
//!
//! | command           | what it does                                                                                        |
//! |-------------------|-----------------------------------------------------------------------------------------------------|
//! | `put` `range` `page` `count` `list` `txn` `mixed` `cas` `lease-grant` `lease-keepalive` | requests of one kind, as fast as answers come, or at a rate |
//! | `lease-memory`    | what a lease keeps in memory                                                                          |
//! | `lease-expiry`    | leases that end within a second, beside writers                                                       |
//! | `first-read`      | how long it takes until a server that may be starting answers a read                                   |
//! | `echo` `sync`     | what bounds any server: one that does nothing, and a disk that is asked for nothing else                |
//! | `watch-fanout`    | watchers of one key, over streams; how soon and at what cost does a put reach all of them             |
//! | `watch-idle`      | puts beside watchers of other keys, and without them, in turn                                         |
//! | `watch-memory`    | what one more stream, and one more watcher, keeps in memory                                           |
//! | `watch-stalled`   | streams that nobody reads, while much is written                                                      |
//! | `watch-behind`    | a watcher from the beginning of a long history, while others write                                    |
//! | `watch-failover`  | streams on the first endpoint, whose member is killed; when are all served again, and did they miss anything |
//! | `watch-drain`     | the same with a member that is asked to stop: how soon, and how, do its streams end?                  |
//! | `watch-progress`  | requests for progress on a quiet stream                                                               |
//!
//! Latencies of events are from the start of the put to the arrival of the event: what a user waits. (etcd's own tool
//! subtracts the put's reply.) With `--pids` the processor time and the memory of the servers are told as well. Figures go to
//! stdout, one a line or all of them as one line of JSON; what goes on meanwhile to stderr.
//!
//! Deliberately missing: any judgement of the figures. `scripts/watch-figures.sh` and `scripts/compare.sh` run the cases against
//! etcd and Everwatch, and judge; `scripts/growth.sh` shows what a put costs as something grows, `scripts/limits.sh` what bounds it.

mod ask;
mod failover;
mod first_read;
mod lean;
mod lease;
mod limits;
mod load;
mod options;
mod report;
mod streams;
mod watch;
mod wire;

use ask::Ask;
pub use options::{Options, USAGE};
use report::Report;

/// Does what is asked for, and prints what was seen.
pub async fn run(options: Options) -> Result<(), String> {
    raise_limit_of_files();
    let mut report = Report::new(&options);
    let outcome = match options.command.as_str() {
        "put" => load::run(&options, Ask::Put, &mut report).await,
        "range" => load::run(&options, Ask::Range { serializable: options.serializable }, &mut report).await,
        "page" => load::run(&options, Ask::Page { limit: options.limit.into() }, &mut report).await,
        "count" => load::run(&options, Ask::Count, &mut report).await,
        "list" => load::run(&options, Ask::List, &mut report).await,
        "txn" => load::run(&options, Ask::Txn, &mut report).await,
        "mixed" => load::run(&options, Ask::Mixed, &mut report).await,
        "cas" => load::run(&options, Ask::Swap, &mut report).await,
        "lease-grant" => load::run(&options, Ask::Grant, &mut report).await,
        "lease-keepalive" => load::run(&options, Ask::KeepAlive, &mut report).await,
        "lease-memory" => lease::memory(&options, &mut report).await,
        "lease-expiry" => lease::expiry(&options, &mut report).await,
        "first-read" => first_read::run(&options, &mut report).await,
        "sync" => limits::sync(&options, &mut report).await,
        "echo" => limits::echo(&options).await,
        "watch-fanout" => watch::fanout(&options, &mut report).await,
        "watch-idle" => watch::idle(&options, &mut report).await,
        "watch-memory" => watch::memory(&options, &mut report).await,
        "watch-stalled" => watch::stalled(&options, &mut report).await,
        "watch-behind" => watch::behind(&options, &mut report).await,
        "watch-failover" => failover::run(&options, rustix::process::Signal::KILL, &mut report).await,
        "watch-drain" => failover::run(&options, rustix::process::Signal::TERM, &mut report).await,
        "watch-progress" => watch::progress(&options, &mut report).await,
        other => return Err(format!("there is no {other:?}")),
    };
    report.print(options.json, &outcome);
    outcome
}

/// Every connection is a file.
fn raise_limit_of_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // What the limit is too low for fails by itself.
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}
