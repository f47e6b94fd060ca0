//! Streams that end when their member has had no leader for a while, for clients that asked for one: whoever renews a lease or follows
//! an election there should go to a member that has one.
//!
//! All streams are treated alike, as in etcd, but for three. Watches are ended by their hub, together with their watchers. A range that
//! comes in pieces waits for nobody. And a backup is not ended: what is left of a cluster is where it may be wanted most.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::status::{no_leader, trailers};

/// A response for as long as there is a leader.
pub(super) struct WhileLed {
    /// `None` once it has ended for want of one.
    inner: Option<Body>,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl WhileLed {
    /// This response until `lost` has come to its end.
    pub(super) fn new(inner: Body, lost: impl Future<Output = ()> + Send + 'static) -> WhileLed {
        WhileLed { inner: Some(inner), lost: Box::pin(lost) }
    }
}

impl http_body::Body for WhileLed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        // A frame is a whole message, or several: nothing is cut in two.
        let next = Pin::new(inner).poll_frame(cx);
        if next.is_pending() && self.lost.as_mut().poll(cx).is_ready() {
            self.inner = None;
            return Poll::Ready(Some(trailers(&no_leader())));
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
