//! The two threads that wait for the disk, so that nobody else has to.
//!
//! *Log thread*: takes every write that is queued, appends them all, syncs once, sends what had to wait for that, reports the
//! last number. While a sync is under way the next batch gathers: batching comes from load.
//!
//! *Backend thread*: gathers rows and commits them, with the applied index they belong to, every `interval` or `rows_max` rows
//! (or so many bytes; see [`gathering`]).
//! It also swaps the backend for a received snapshot, which is why it owns the backend.
//!
//! Rows wait in memory until they are committed, so the log thread waits for a backend that has fallen too far behind: what is not
//! durable in the log is neither acknowledged nor carried out, here or, when a quorum waits, anywhere.
//!
//! Both end when their queue does. An error on either stops the member: see [`Failure`].

use std::fmt;
use std::mem;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::gathering::{self, Gathering};
use super::inbox::{Event, Inbox};
use super::log_writer::{Durable, LogJob, LogWriter};
use crate::metrics::Metrics;
use crate::peer::{Place, Transport};
use crate::state::StateMachine;
use crate::storage::backend::disk::DiskBackend;
use crate::storage::backend::{Backend, Batch, Reader};
use crate::storage::seal::Keys;
use crate::storage::{self, schema};
use crate::storage::{datadir, snapshot};
use crate::throttle::Throttle;
use crate::types::Index;

/// Takes an error after which this member may not go on. It does not return.
pub(crate) type Failure = Arc<dyn Fn(&dyn fmt::Display) + Send + Sync>;

/// For the backend thread.
pub(crate) enum BackendJob {
    /// Commit these rows, of so many bytes; not necessarily at once.
    Commit(Batch, usize),
    /// Commit what has gathered now.
    Flush,
    /// A snapshot that raft does not want.
    Discard {
        /// Its index.
        index: Index,
        /// What keeps the next one from being received.
        place: Place,
    },
    /// The next snapshot should not wait for others.
    Hurry,
    /// The snapshot of this index takes the place of the backend; the log has recorded that durably.
    Install {
        /// The output of raft that brought it.
        number: u64,
        /// Its index.
        index: Index,
    },
}

/// The way to the backend thread, and how much is on it.
#[derive(Clone)]
pub(crate) struct ToBackend {
    jobs: Sender<BackendJob>,
    backlog: Arc<Backlog>,
}

/// Bytes of rows that the backend has not committed.
#[derive(Default)]
pub(crate) struct Backlog {
    bytes: Mutex<usize>,
    less: Condvar,
}

/// How nice a thread is, of 19, that makes a received snapshot the state of this member: where every processor is busy it gets a tenth
/// of one. No less: the member is of no use until it is done.
const NICENESS: i32 = 10;

/// Bytes of rows that may wait for the backend. Beyond this nothing more is written to the log.
const BACKLOG_BYTES_MAX: usize = 256 << 20;

/// With more than that it lets nobody go first any more: it would fall ever further behind where every processor is always busy.
const HURRY_BYTES: usize = 8 << 20;

impl ToBackend {
    pub(crate) fn new(jobs: Sender<BackendJob>) -> ToBackend {
        ToBackend { jobs, backlog: Arc::default() }
    }

    /// What the thread at the other end tells of its progress.
    pub(crate) fn backlog(&self) -> Arc<Backlog> {
        self.backlog.clone()
    }

    /// Queues rows. Never waits.
    pub(crate) fn commit(&self, batch: Batch) {
        let bytes = gathering::bytes_of(&batch);
        *self.backlog.lock() += bytes;
        self.send(BackendJob::Commit(batch, bytes));
    }

    /// Queues anything else.
    pub(crate) fn send(&self, job: BackendJob) {
        // The thread ends before its senders only with the process.
        let _ = self.jobs.send(job);
    }

    /// Returns when the backend is not too far behind.
    fn wait(&self) {
        let mut bytes = self.backlog.lock();
        while *bytes > BACKLOG_BYTES_MAX {
            bytes = self.backlog.less.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Backlog {
    /// So much is committed, or void.
    fn done(&self, bytes: usize) {
        *self.lock() -= bytes;
        self.less.notify_all();
    }

    fn bytes(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the log thread works with.
pub(crate) struct LogThread {
    pub(crate) log: LogWriter,
    pub(crate) jobs: Receiver<LogJob>,
    pub(crate) backend: ToBackend,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) transport: Arc<Transport>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) fail: Failure,
}

impl LogThread {
    pub(crate) fn run(mut self) {
        let fail = self.fail.clone();
        if let Err(error) = self.serve() {
            fail(&error);
        }
    }

    fn serve(&mut self) -> storage::Result<()> {
        while let Ok(job) = self.jobs.recv() {
            self.backend.wait();
            let mut batch = vec![job];
            batch.extend(self.jobs.try_iter());
            self.write(batch)?;
        }
        self.log.close()
    }

    fn write(&mut self, batch: Vec<LogJob>) -> storage::Result<()> {
        let began = Instant::now();
        let appended = self.log.append(batch)?;
        let syncs = appended.must_sync();
        let written = Instant::now();
        let Durable { messages, installs, persisted, truncate } = self.log.sync(appended)?;
        if syncs {
            self.metrics.wal_write_seconds.observe(written - began);
            let took = written.elapsed();
            self.metrics.wal_fsync_seconds.observe(took);
            self.throttle.synced(took);
        }
        for (number, index) in installs {
            self.backend.send(BackendJob::Install { number, index });
        }
        if !messages.is_empty() {
            self.transport.send(messages);
        }
        if let Some(number) = persisted {
            self.inbox.put(Event::Persisted(number));
        }
        self.log.tidy(truncate)
    }
}

/// What the backend thread works with.
pub(crate) struct BackendThread {
    pub(crate) backend: Option<DiskBackend>,
    /// `<data-dir>/member`.
    pub(crate) dir: PathBuf,
    /// What is sealed with there, if anything is.
    pub(crate) keys: Option<Keys>,
    pub(crate) jobs: Receiver<BackendJob>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) inbox: Arc<Inbox>,
    /// What a snapshot for a peer is read from: the last commit.
    pub(crate) newest: Arc<Mutex<Arc<dyn Reader>>>,
    pub(crate) sizes: Arc<Sizes>,
    pub(crate) identity: Batch,
    /// Of its file, in memory.
    pub(crate) cache_bytes: usize,
    pub(crate) interval: Duration,
    pub(crate) rows_max: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) fail: Failure,
}

/// How large the backend is; written by its thread, read by everybody.
#[derive(Default)]
pub(crate) struct Sizes {
    /// Bytes of the file.
    pub(crate) total: std::sync::atomic::AtomicU64,
    /// Bytes of it that hold rows.
    pub(crate) in_use: std::sync::atomic::AtomicU64,
}

impl BackendThread {
    pub(crate) fn run(mut self) {
        let fail = self.fail.clone();
        if let Err(error) = self.serve() {
            fail(&error);
        }
    }

    fn backend(&self) -> &DiskBackend {
        self.backend.as_ref().expect("taken out only while a snapshot takes its place")
    }

    fn serve(&mut self) -> storage::Result<()> {
        self.report_sizes();
        let started = Instant::now();
        let mut gathering = Gathering::new(self.interval, self.rows_max);
        let mut hurried = false;
        loop {
            let job = match gathering.due() {
                None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => self.jobs.recv_timeout(due.saturating_sub(started.elapsed())),
            };
            let asked = matches!(job, Ok(BackendJob::Flush));
            let commit = match job {
                Ok(BackendJob::Commit(batch, bytes)) => gathering.add(batch, bytes, started.elapsed()),
                Err(RecvTimeoutError::Timeout) | Ok(BackendJob::Flush) => true,
                Ok(BackendJob::Install { number, index }) => {
                    // What has gathered is older than the snapshot.
                    self.backlog.done(gathering.take().1);
                    self.install(number, index, mem::take(&mut hurried))?;
                    false
                }
                Ok(BackendJob::Hurry) => {
                    hurried = true;
                    false
                }
                Ok(BackendJob::Discard { index, place }) => {
                    snapshot::discard(&self.dir, index)?;
                    drop(place);
                    false
                }
                Err(RecvTimeoutError::Disconnected) => return self.commit(&gathering.take().0),
            };
            if commit {
                let (rows, bytes) = gathering.take();
                self.commit(&rows)?;
                self.backlog.done(bytes);
            }
            if asked {
                self.inbox.put(Event::FlushDone);
            }
        }
    }

    fn commit(&mut self, batch: &Batch) -> storage::Result<()> {
        if !batch.is_empty() {
            let began = Instant::now();
            self.backend().hurry(self.backlog.bytes() > HURRY_BYTES);
            self.backend().commit(batch)?;
            self.metrics.backend_commit_seconds.observe(began.elapsed());
            self.report_sizes();
        }
        let reader = self.backend().reader()?;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = reader.clone();
        self.inbox.put(Event::Flushed { reader });
        Ok(())
    }

    fn install(&mut self, number: u64, index: Index, hurried: bool) -> storage::Result<()> {
        // Readers of the old file go on with it until they are dropped.
        self.backend = None;
        let opening = || {
            let backend = adopt(&self.dir, self.keys.as_ref(), index, &self.identity, self.cache_bytes)?;
            let reader = backend.reader()?;
            Ok((backend, reader.clone(), StateMachine::open(reader)?))
        };
        let (backend, reader, state) = if hurried { opening() } else { nicely(opening) }?;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = reader;
        self.backend = Some(backend);
        let state = Box::new(state);
        self.report_sizes();
        self.inbox.put(Event::Installed { number, state, index });
        Ok(())
    }

    fn report_sizes(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.sizes.total.store(self.backend().size(), Relaxed);
        self.sizes.in_use.store(self.backend().size_in_use(), Relaxed);
    }
}

/// Has it done by a thread that is nicer than others, as are those that it starts.
fn nicely<T: Send>(work: impl FnOnce() -> storage::Result<T> + Send) -> storage::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("install".to_owned()).spawn_scoped(scope, || {
            // Of this thread alone, on Linux. Where it is not allowed, it is as the others are.
            let _ = rustix::process::nice(NICENESS);
            work()
        });
        let thread = thread.map_err(|error| storage::Error::Engine(format!("no thread to open it: {error}")))?;
        thread.join().expect("opening a state does not panic")
    })
}

/// Puts a received snapshot in the place of the backend. The snapshot is another member's state: whose this is, is written anew.
pub(crate) fn adopt(
    dir: &std::path::Path,
    keys: Option<&Keys>,
    index: Index,
    identity: &Batch,
    cache_bytes: usize,
) -> storage::Result<DiskBackend> {
    snapshot::adopt(dir, index)?;
    let backend = DiskBackend::open_with(dir.join(datadir::STATE), keys, cache_bytes)?;
    backend.commit(identity)?;
    let applied = backend.reader()?.get(storage::backend::Bucket::Meta, schema::APPLIED_INDEX)?;
    if applied.as_deref().and_then(schema::read_u64) != Some(index.0) {
        return Err(storage::Error::Engine(format!("the snapshot of index {index} describes another index")));
    }
    Ok(backend)
}
