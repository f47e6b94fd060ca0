//! How soon does a server answer that is being started?

use std::time::{Duration, Instant};

use super::options::Options;
use super::report::Report;
use super::streams::revision;

/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(2);
/// Longer than this an attempt is not waited for. A server may listen before it serves; then what was sent waits for it.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);

/// `first-read`: a linearizable range, each time on a new connection. With `--pids` also the memory that they settle at.
pub(super) async fn run(options: &Options, report: &mut Report) -> Result<(), String> {
    let began = Instant::now();
    // Who starts the server may wait for this line, so that nothing of its start is missed.
    eprintln!("everwatch-bench: asking {}", options.endpoints[0]);
    while let Err(why) = attempt(options).await {
        if began.elapsed() >= options.duration {
            return Err(why);
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    report.add("first_read_ms", began.elapsed().as_secs_f64() * 1e3);
    let memory = report.servers().settled().await;
    report.memory("after", memory);
    Ok(())
}

async fn attempt(options: &Options) -> Result<(), String> {
    let answer = tokio::time::timeout(ATTEMPT_MAX, revision(options)).await;
    answer.map_err(|_| format!("no answer in {ATTEMPT_MAX:?}"))?.map(drop)
}
