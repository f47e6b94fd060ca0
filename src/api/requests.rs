//! The requests of a call, from the bytes of its body.
//!
//! tonic's own reader keeps, for as long as the stream is open, the room that the largest burst of requests took. Of a stream that
//! created a hundred watchers at once and then sits there for days, that is the larger part of what it costs. This one keeps what is
//! half a message, and else nothing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use prost::Message;
use tonic::Status;

use super::status::Intercepted;

/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// How a call says that its messages are compressed; "identity" says that they are not.
const ENCODING: &str = "grpc-encoding";

/// See the module.
pub(super) struct Requests<B> {
    body: B,
    /// What has come and is not a whole message yet.
    rest: BytesMut,
    message_bytes_max: usize,
}

impl<B: Body<Data = Bytes> + Unpin> Requests<B> {
    /// The requests of a call, each of `message_bytes_max` at most. Compressed ones are not understood.
    pub(super) fn new(headers: &HeaderMap, body: B, message_bytes_max: usize) -> Result<Requests<B>, Status> {
        match headers.get(ENCODING) {
            Some(encoding) if encoding != "identity" => {
                let encoding = encoding.as_bytes().escape_ascii();
                Err(Status::unimplemented(format!("Content is compressed with `{encoding}` which isn't supported")))
            }
            _ => Ok(Requests { body, rest: BytesMut::new(), message_bytes_max }),
        }
    }

    /// What is left of the body.
    pub(super) fn into_body(self) -> B {
        self.body
    }

    /// The next one. `None`: the client sends no more. An error ends the call.
    pub(super) fn poll_next<M: Message + Default>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<M, Status>>> {
        loop {
            if let Some(request) = self.decode().transpose() {
                return Poll::Ready(Some(request));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    // Most come whole, and alone.
                    if self.rest.is_empty() && self.message_in(&data)? == Some(data.len()) {
                        return Poll::Ready(Some(decoded(&data[PREFIX_BYTES..])));
                    }
                    self.rest.extend_from_slice(&data);
                }
                // The client has gone, or has reset the stream.
                Some(Err(_)) => return Poll::Ready(Some(Err(gone()))),
                None if self.rest.is_empty() => return Poll::Ready(None),
                None => {
                    self.rest.clear();
                    return Poll::Ready(Some(Err(Status::internal("unexpected end of a message"))));
                }
            }
        }
    }

    /// The first message of what has come, if it has come whole.
    fn decode<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let Some(len) = self.message_in(&self.rest)?.filter(|len| *len <= self.rest.len()) else { return Ok(None) };
        let mut message = self.rest.split_to(len);
        message.advance(PREFIX_BYTES);
        if self.rest.is_empty() {
            self.rest = BytesMut::new();
        }
        decoded(&message).map(Some)
    }

    /// The length of the message that begins here, with its prefix; nothing while there is not even that.
    fn message_in(&self, bytes: &[u8]) -> Result<Option<usize>, Status> {
        let Some((prefix, _)) = bytes.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::internal("a message says that it is compressed, and the call does not say how"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.message_bytes_max {
            let (found, limit) = (length.to_string(), self.message_bytes_max.to_string());
            return Err(Intercepted::TooLong { found, limit }.into());
        }
        Ok(Some(PREFIX_BYTES + length))
    }
}

/// The status of a call whose client is not there any more: it is counted, and nobody reads it.
pub(super) fn gone() -> Status {
    Status::cancelled("the client has gone")
}

/// A copy of its own: keys are kept for long, and shall not keep what came beside them.
fn decoded<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::{BodyExt, StreamBody};
    use tonic::Code;
    use tonic::body::Body;

    use super::*;
    use crate::pb::etcdserverpb::watch_request::RequestUnion;
    use crate::pb::etcdserverpb::{WatchCancelRequest, WatchCreateRequest, WatchRequest};

    fn create(key: &str) -> WatchRequest {
        let create = WatchCreateRequest { key: key.to_owned().into(), ..Default::default() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }

    fn framed(request: &WatchRequest) -> Vec<u8> {
        let message = request.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    }

    /// Everything that comes of a body in pieces of so many bytes.
    async fn read(bytes: &[u8], piece: usize) -> (Vec<WatchRequest>, Option<Status>, usize) {
        let pieces: Vec<_> = bytes.chunks(piece).map(Bytes::copy_from_slice).map(http_body::Frame::data).collect();
        let stream = tokio_stream::iter(pieces.into_iter().map(Ok::<_, Status>));
        let body = Body::new(StreamBody::new(stream).boxed_unsync());
        let mut requests = Requests::new(&HeaderMap::new(), body, 1000).unwrap();
        let mut all = Vec::new();
        loop {
            match poll_fn(|cx| requests.poll_next(cx)).await {
                Some(Ok(request)) => all.push(request),
                other => return (all, other.and_then(Result::err), requests.rest.capacity()),
            }
        }
    }

    #[tokio::test]
    async fn messages_are_put_together_and_leave_nothing_behind() {
        let cancel = WatchCancelRequest { watch_id: 7 };
        let cancel = WatchRequest { request_union: Some(RequestUnion::CancelRequest(cancel)) };
        let sent = [create("a"), WatchRequest::default(), create(&"k".repeat(900)), cancel];
        let bytes: Vec<u8> = sent.iter().flat_map(framed).collect();
        for piece in [1, 2, 7, 100, bytes.len()] {
            let (read, error, room) = read(&bytes, piece).await;
            assert!(error.is_none() && room == 0, "{error:?}, {room} bytes kept");
            assert_eq!(read, sent);
        }
    }

    #[tokio::test]
    async fn what_makes_no_sense_ends_the_call_after_what_does() {
        let good = framed(&create("a"));
        let cases: [(&[u8], Code, &str); 5] = [
            (&[1, 0, 0, 0, 0], Code::Internal, "compressed"),
            (&[0, 0, 0, 3, 233], Code::ResourceExhausted, "received message larger than max (1001 vs. 1000)"),
            (&[0, 255, 255, 255, 255], Code::ResourceExhausted, "(4294967295 vs. 1000)"),
            (&[0, 0, 0, 0, 1, 255], Code::Internal, ""),
            (&[0, 0, 0, 0, 2, 8], Code::Internal, "unexpected end"),
        ];
        for (bad, code, text) in cases {
            let (read, error, _) = read(&[&good[..], bad].concat(), 3).await;
            let error = error.expect("it makes no sense");
            assert_eq!((read.len(), error.code()), (1, code), "{error:?}");
            assert!(error.message().contains(text), "{error:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(ENCODING, "gzip".parse().unwrap());
        let refused = Requests::new(&headers, Body::empty(), 1000).err().expect("not understood");
        assert_eq!(refused.code(), Code::Unimplemented);
    }
}
