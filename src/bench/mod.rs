//! Load for any etcd v3 endpoint, ours or etcd's, and what it cost the servers.
//!
//! | command           | what it does                                                                                        |
//! |-------------------|-----------------------------------------------------------------------------------------------------|
//! | `put` `range`     | closed loop: each client sends its next request when the last is answered                            |
//! | `watch-fanout`    | watchers of one key, over streams; how soon and at what cost does a put reach all of them             |
//! | `watch-idle`      | watchers of keys that nobody writes; what do they cost, and what do puts to other keys cost beside them |
//! | `watch-stalled`   | streams that nobody reads, while much is written                                                    |
//! | `watch-behind`    | a watcher from the beginning of a long history, while others write                                   |
//! | `watch-failover`  | streams on the first endpoint, whose member is killed; when are all served again, and did they miss anything |
//! | `watch-progress`  | requests for progress on a quiet stream                                                             |
//!
//! Latencies of events are from the start of the put to the arrival of the event: what a user waits. (etcd's own tool
//! subtracts the put's reply.) With `--pids` the processor time and the resident memory of the servers are told as well.
//!
//! Deliberately missing: mixed workloads, and any judgement of the figures.

mod lean;
mod load;
mod options;
mod report;
mod watch;

pub use options::{Options, USAGE};

/// Does what is asked for, and prints what was seen.
pub async fn run(options: Options) -> Result<(), String> {
    match options.command.as_str() {
        "put" | "range" => load::run(&options).await,
        "watch-fanout" => watch::fanout(&options).await,
        "watch-idle" => watch::idle(&options).await,
        "watch-stalled" => watch::stalled(&options).await,
        "watch-behind" => watch::behind(&options).await,
        "watch-failover" => watch::failover(&options).await,
        "watch-progress" => watch::progress(&options).await,
        other => Err(format!("there is no {other:?}")),
    }
}
