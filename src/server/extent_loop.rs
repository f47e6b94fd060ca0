//! Counts what there is under the prefixes of `--metrics-key-prefixes`, for `/metrics`.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::handle::Handle;
use crate::mvcc::Extent;
use crate::types::KeyRange;

/// Time between two counts.
const PAUSE: Duration = Duration::from_secs(30);
/// Keys counted before others get their turn.
const SLICE_KEYS: usize = 1000;

/// Counts until the member stops.
pub(super) async fn run(handle: Handle, prefixes: Vec<String>) {
    let mut counts = interval(PAUSE);
    counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        counts.tick().await;
        for prefix in &prefixes {
            let mut extent = Extent::of(KeyRange::prefix(prefix.clone().into()));
            while handle.view(|state| state.kv.extent_more(&mut extent, SLICE_KEYS)) {
                tokio::task::yield_now().await;
            }
            handle.metrics().prefix_keys.set(prefix, extent.keys);
            handle.metrics().prefix_bytes.set(prefix, extent.bytes);
        }
    }
}
