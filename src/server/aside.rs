//! Threads for what takes long and keeps nobody waiting but who asked for it.
//!
//! There are as many as serve clients, and work is taken in the order in which it came: however much of it there is, whoever
//! serves clients and the core have their share of the processors.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

/// Something to do. It does not panic.
type Work = Box<dyn FnOnce() + Send>;

/// The way to the threads. They end when this is gone and everything was done.
pub(crate) struct Aside {
    work: mpsc::Sender<Work>,
}

impl Aside {
    /// So many threads.
    pub(crate) fn start(threads: usize) -> io::Result<Aside> {
        let (work, queue) = mpsc::channel::<Work>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads.max(1) {
            let queue = queue.clone();
            thread::Builder::new().name("aside".into()).spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(work) = next else { return };
                    work();
                }
            })?;
        }
        Ok(Aside { work })
    }

    /// Has it done. Never waits.
    pub(crate) fn take(&self, work: Work) {
        // The threads end after this only.
        let _ = self.work.send(work);
    }
}
