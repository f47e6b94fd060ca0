//! What it means to a call over WebSocket that the member stops.
//!
//! Of HTTP the listener takes care: it ends connections by which nothing is asked. Here it is not for the listener to know. No request
//! is waited for any more, and what is under way has a while. Either way the client is told why, as the last word of its call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// For what is under way. Together with the farewell it is less than what the listener grants a connection that ends.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Clones are for the same call.
#[derive(Clone)]
pub(super) struct Stop {
    told: watch::Receiver<bool>,
    interrupted: Arc<AtomicBool>,
}

impl Stop {
    /// `told` turns true with the stop, or its sender is gone then.
    pub(super) fn new(told: watch::Receiver<bool>) -> Stop {
        Stop { told, interrupted: Arc::default() }
    }

    /// Ready when it is told, for who waits for a request.
    pub(super) async fn interrupts(&mut self) {
        self.told().await;
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Whether a request was waited for. Then the end of the answers is no good one.
    pub(super) fn has_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Ready when answers have come for long enough.
    pub(super) async fn is_overdue(&mut self) {
        self.told().await;
        sleep(PATIENCE).await;
    }

    async fn told(&mut self) {
        let _ = self.told.wait_for(|told| *told).await;
    }
}
