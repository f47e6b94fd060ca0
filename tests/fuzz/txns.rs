//! Puts, deletions, nested transactions, ranges with all their options, compaction and restarts, against the store's model
//! (`tests/mvcc_model/store.rs`, which asserts). The input is a seed, how long to go on, and how much memory to allow.

use crate::engine::{Feed, outcome};
use crate::store::Harness;

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let steps = 10 + feed.below(200);
    let recent_max = feed.pick(&[usize::MAX, 1000, 0]);
    Harness::new(feed.u64(), recent_max).run(steps);
    outcome((steps / 40, recent_max))
}
