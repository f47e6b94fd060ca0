//! What a connection is for when it has left HTTP.
//!
//! An answer of status 101 carries it. It is done where HTTP was served before: in the same task, so what it writes is gathered, and the
//! connection keeps its place among those that are counted. It is told of a stop, and may have a last word then: who takes longer than
//! a call may is cut off as one.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Work = Box<dyn FnOnce(watch::Receiver<bool>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What goes on with the connection, in the extensions of the answer that ends HTTP on it. Whatever it does there, it gets the
/// connection from hyper (`hyper::upgrade`), and the connection is over with it. Without such an answer it is never begun.
#[derive(Clone, Default)]
pub struct Afterwards(Arc<Mutex<Option<Work>>>);

impl Afterwards {
    /// This, begun with what turns true with the stop, or whose sender is gone then.
    pub fn new<F>(work: impl FnOnce(watch::Receiver<bool>) -> F + Send + 'static) -> Afterwards
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Afterwards(Arc::new(Mutex::new(Some(Box::new(|stop| Box::pin(work(stop)))))))
    }

    /// Takes over what `other` has.
    pub(super) fn put(&self, other: &Afterwards) {
        let work = other.take();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = work;
    }

    pub(super) fn take(&self) -> Option<Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Afterwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Afterwards").finish_non_exhaustive()
    }
}
