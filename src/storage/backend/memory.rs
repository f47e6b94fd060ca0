//! A backend in memory: for tests and the simulator, and what the one on disk is compared with. Pure.
//!
//! Buckets are ordered maps of short chunks, shared with readers; a commit copies those chunks that it changes, and only while
//! an older reader still looks at them.
//! Nothing outlives the process: a simulated member that restarts keeps the backend and loses only what it never committed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Backend, Batch, Bucket, Reader};
use crate::storage::Result;

/// Rows of one chunk, at most: more are split in two.
const CHUNK_ROWS_MAX: usize = 64;

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

/// The rows of a bucket. Each chunk holds, in order, those from its own key up to the next chunk's; the first one's key is empty.
#[derive(Clone, Debug, Default)]
struct Rows {
    chunks: BTreeMap<Bytes, Arc<Chunk>>,
}

type Chunk = Vec<(Bytes, Bytes)>;

/// Where a key stands in a chunk, or would.
fn place(chunk: &[(Bytes, Bytes)], key: &[u8]) -> std::result::Result<usize, usize> {
    chunk.binary_search_by(|(other, _)| other[..].cmp(key))
}

impl Rows {
    /// The chunk that a key belongs to, with its own key.
    fn chunk(&self, key: &[u8]) -> Option<(&Bytes, &Arc<Chunk>)> {
        self.chunks.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()
    }

    fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let (_, chunk) = self.chunk(key)?;
        place(chunk, key).ok().map(|at| &chunk[at].1)
    }

    /// Sets a row. Returns what it was.
    fn insert(&mut self, key: Bytes, value: Bytes) -> Option<Bytes> {
        let start = self.chunk(&key).map(|(start, _)| start.clone()).unwrap_or_default();
        let chunk = Arc::make_mut(self.chunks.entry(start).or_default());
        match place(chunk, &key) {
            Ok(at) => return Some(std::mem::replace(&mut chunk[at].1, value)),
            Err(at) => chunk.insert(at, (key, value)),
        }
        if chunk.len() > CHUNK_ROWS_MAX {
            let rest = chunk.split_off(CHUNK_ROWS_MAX / 2);
            self.chunks.insert(rest[0].0.clone(), Arc::new(rest));
        }
        None
    }

    /// Removes a row. Returns what it was.
    fn remove(&mut self, key: &[u8]) -> Option<Bytes> {
        let (start, chunk) = self.chunk(key)?;
        let at = place(chunk, key).ok()?;
        let start = start.clone();
        let chunk = Arc::make_mut(self.chunks.get_mut(&start)?);
        let (_, old) = chunk.remove(at);
        if chunk.is_empty() {
            // Its rows would belong to the one before it.
            self.chunks.remove(&start);
        }
        Some(old)
    }

    /// Rows from a key on, in order.
    fn from<'a>(&'a self, from: &'a [u8]) -> impl Iterator<Item = &'a (Bytes, Bytes)> {
        let start = self.chunk(from).map(|(start, _)| start.clone()).unwrap_or_default();
        let rows = self.chunks.range(start..).flat_map(|(_, chunk)| chunk.iter());
        rows.skip_while(move |(key, _)| key[..] < *from)
    }
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
        for (key, value) in self.buckets[bucket.place()].from(from) {
            if to.is_some_and(|to| key[..] >= *to) {
                break;
            }
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
