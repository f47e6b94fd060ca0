//! The body of a call's request, counted as it comes: its bytes, and its messages, each when its length has come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::unary::PREFIX_BYTES;
use crate::metrics::{Method, Metrics};

/// See the module. What is no call of a method that is known is not counted.
pub(super) struct Received<B> {
    inner: B,
    of: Option<(Arc<Metrics>, Method)>,
    messages: Messages,
}

impl<B> Received<B> {
    pub(super) fn new(inner: B, of: Option<(Arc<Metrics>, Method)>) -> Received<B> {
        Received { inner, of, messages: Messages::default() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Received { inner, of, messages } = &mut *self;
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if let (Some((metrics, method)), Some(Ok(frame))) = (of, &frame)
            && let Some(data) = frame.data_ref()
        {
            metrics.client_received_bytes.add(data.len() as u64);
            metrics.grpc[*method].received.add(messages.begin_in(data));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Where messages begin and end in a body, however it is cut.
#[derive(Default)]
pub(super) struct Messages {
    /// What has come of a prefix.
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// What is still to come of a message.
    rest: usize,
}

impl Messages {
    /// How many messages have their length in these bytes, or the end of it.
    pub(super) fn begin_in(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            let skipped = self.rest.min(data.len());
            self.rest -= skipped;
            data = &data[skipped..];
            let taken = (PREFIX_BYTES - self.prefix_len).min(data.len());
            self.prefix[self.prefix_len..][..taken].copy_from_slice(&data[..taken]);
            self.prefix_len += taken;
            data = &data[taken..];
            if self.prefix_len == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                (self.prefix_len, self.rest) = (0, u32::from_be_bytes(length) as usize);
                begun += 1;
            }
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let sent = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        for size in 1..=sent.len() {
            let mut messages = Messages::default();
            let begun: u64 = sent.chunks(size).map(|piece| messages.begin_in(piece)).sum();
            assert_eq!((begun, messages.rest, messages.prefix_len), (3, 0, 0), "in pieces of {size}");
        }
    }
}
