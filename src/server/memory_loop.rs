//! Memory that has become free goes back to the system, of a member that does little as well.
//!
//! The allocator keeps for a second what is free, for whoever needs memory next, and gives it back when somebody needs more than that or
//! a thread ends. After a start, or after many writes, neither happens: a quarter of what a member then has in memory may be such. So
//! threads end here, which do nothing else.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// Time between two threads. One takes some fifty microseconds.
const PAUSE: Duration = Duration::from_secs(1);

/// Goes on until the member stops.
pub async fn run() {
    let mut pauses = interval(PAUSE);
    pauses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pauses.tick().await;
        // It has to have had memory of its own. Where there is no room for a thread, there will be another time.
        let thread = thread::Builder::new().name("memory".to_owned());
        let _ = thread.spawn(|| drop(black_box(Vec::<u8>::with_capacity(64))));
    }
}
