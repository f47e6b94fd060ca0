//! A backend in memory: for tests and the simulator, and what the one on disk is compared with. Pure.
//!
//! Buckets are ordered maps shared with readers; a commit copies a bucket only while an older reader still looks at it.
//! Nothing outlives the process: a simulated member that restarts keeps the backend and loses only what it never committed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Backend, Batch, Bucket, Reader};
use crate::storage::Result;

type Rows = BTreeMap<Bytes, Bytes>;

/// The store.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    state: Mutex<State>,
}

/// The store as one commit left it.
#[derive(Clone, Debug, Default)]
struct State {
    buckets: [Arc<Rows>; Bucket::ALL.len()],
    bytes: u64,
}

impl MemoryBackend {
    /// An empty store.
    pub fn new() -> MemoryBackend {
        MemoryBackend::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A batch is applied by calls that do not panic; whoever panicked while holding the lock was reading.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for MemoryBackend {
    fn reader(&self) -> Result<Arc<dyn Reader>> {
        Ok(Arc::new(self.state().clone()))
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        let state = &mut *self.state();
        for (bucket, key, value) in &batch.rows {
            let rows = Arc::make_mut(&mut state.buckets[bucket.place()]);
            let old = match value {
                Some(value) => {
                    state.bytes += (key.len() + value.len()) as u64;
                    rows.insert(key.clone(), value.clone())
                }
                None => rows.remove(key),
            };
            state.bytes -= old.map_or(0, |old| (key.len() + old.len()) as u64);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.state().bytes
    }

    fn size_in_use(&self) -> u64 {
        self.state().bytes
    }
}

impl Reader for State {
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.buckets[bucket.place()].get(key).cloned())
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        if to.is_some_and(|to| to <= from) {
            return Ok(());
        }
        let bounds = (Bound::Included(from), to.map_or(Bound::Unbounded, Bound::Excluded));
        for (key, value) in self.buckets[bucket.place()].range::<[u8], _>(bounds) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
