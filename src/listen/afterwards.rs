//! What a connection is for when it has left HTTP.
//!
//! An answer of status 101 carries it. It is done where HTTP was served before: in the same task, so what it writes is gathered, the
//! connection keeps its place among those that are counted, and a stop ends it.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What goes on with the connection, in the extensions of the answer that ends HTTP on it. Whatever it does there, it gets the
/// connection from hyper (`hyper::upgrade`), and the connection is over with it. Without such an answer it is never begun.
#[derive(Clone, Default)]
pub struct Afterwards(Arc<Mutex<Option<Work>>>);

impl Afterwards {
    /// This.
    pub fn new(work: impl Future<Output = ()> + Send + 'static) -> Afterwards {
        Afterwards(Arc::new(Mutex::new(Some(Box::pin(work)))))
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
