//! Rows on their way to the backend: which are committed together, and when.
//!
//! A commit costs as much as many rows, so rows gather for a while; not for long, as the raft log is kept until they are durable, and
//! not without bound, as they are held in memory.

use std::time::Duration;

use bytes::Bytes;

use crate::storage::backend::Batch;

/// Bytes of rows that are committed without waiting for more.
const COMMIT_BYTES: usize = 32 << 20;
/// What a row takes in memory besides its bytes.
const ROW_OVERHEAD_BYTES: usize = 64;

/// What has gathered.
#[derive(Default)]
pub struct Gathering {
    rows: Batch,
    bytes: usize,
    due: Option<Duration>,
    interval: Duration,
    rows_max: usize,
}

impl Gathering {
    /// Rows wait for `interval` at most, and until there are `rows_max` of them.
    pub fn new(interval: Duration, rows_max: usize) -> Gathering {
        Gathering { interval, rows_max, ..Gathering::default() }
    }

    /// Adds rows that take `bytes`. Whether all that has gathered should be committed now.
    pub fn add(&mut self, batch: Batch, bytes: usize, now: Duration) -> bool {
        self.rows.append(batch);
        self.bytes += bytes;
        self.due.get_or_insert(now + self.interval);
        self.rows.rows.len() >= self.rows_max || self.bytes >= COMMIT_BYTES
    }

    /// When the oldest row has waited long enough; nothing if there is none.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Takes everything, with its bytes: to be committed, or to be thrown away because a snapshot has more.
    pub fn take(&mut self) -> (Batch, usize) {
        self.due = None;
        (std::mem::take(&mut self.rows), std::mem::take(&mut self.bytes))
    }
}

/// What a batch takes in memory.
pub fn bytes_of(batch: &Batch) -> usize {
    let size = |key: &Bytes, value: &Option<Bytes>| key.len() + value.as_ref().map_or(0, Bytes::len);
    batch.rows.iter().map(|(_, key, value)| ROW_OVERHEAD_BYTES + size(key, value)).sum()
}
