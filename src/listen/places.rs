//! Places for connections: how many clients may have open at once on all sockets together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slog::Logger;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;

/// One that finds no place is closed at once: its client goes on to another endpoint, where waiting to be accepted would look like a
/// member that is not there. Clones are the same places.
#[derive(Clone, Debug)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Arc<Semaphore>,
    max: usize,
    /// The last that came found none; said once until there are some again.
    full: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Places {
    /// So many.
    pub fn new(max: usize, metrics: Arc<Metrics>) -> Places {
        let free = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Places(Arc::new(Shared { free, max, full: AtomicBool::new(false), metrics }))
    }

    /// A place, until it is dropped.
    pub(super) fn take(&self, logger: &Logger) -> Option<OwnedSemaphorePermit> {
        let shared = &self.0;
        let place = shared.free.clone().try_acquire_owned().ok();
        let full = place.is_none();
        if full {
            shared.metrics.connections_refused.inc();
        }
        if shared.full.swap(full, Ordering::Relaxed) != full && full {
            slog::warn!(logger, "rejecting connections: there are as many as --max-client-connections allows";
                "max" => shared.max);
        }
        place
    }
}
