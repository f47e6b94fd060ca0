//! A range as a stream: the answer to `Range` in pieces, each a message of its own, so that neither side ever holds all of it.
//!
//! Put together, the messages are the answer that `Range` gives, at one revision. The last brings the header, the count and whether
//! there is more. Source: etcd 3.7, which has neither sort orders nor filters here.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;

use super::unary::{GRPC_STATUS, PREFIX_BYTES, RangePieces, Source, put_prefix};
use crate::mvcc::RangeResult;
use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};

/// Field 1 of `RangeStreamResponse`, length-delimited.
const RESPONSE_TAG: u8 = 1 << 3 | 2;

/// The body of the response.
pub(super) struct RangeStream {
    pieces: RangePieces,
    /// What comes next.
    next: Next,
}

enum Next {
    Piece,
    Trailers,
    Nothing,
}

impl RangeStream {
    /// Of what was found. `source` is where its records come from.
    pub(super) fn new(header: ResponseHeader, result: RangeResult, source: &impl Source) -> RangeStream {
        let RangeResult { records, more, count } = result;
        let last = RangeResponse { header: Some(header), more, count, kvs: Vec::new() };
        RangeStream { pieces: RangePieces::new(Vec::new(), records, last.encode_to_vec(), source), next: Next::Piece }
    }
}

/// A piece of a `RangeResponse` as a message.
fn message(piece: &[u8]) -> Result<Bytes, Status> {
    let len = 1 + encoded_len_varint(piece.len() as u64) + piece.len();
    let mut message = BytesMut::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut message, len)?;
    message.put_u8(RESPONSE_TAG);
    encode_varint(piece.len() as u64, &mut message);
    message.put_slice(piece);
    Ok(message.freeze())
}

impl http_body::Body for RangeStream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut trailers = HeaderMap::with_capacity(1);
        match self.next {
            Next::Piece => {
                let piece = ready!(self.pieces.poll_next(cx));
                let piece = piece.and_then(|(piece, last)| Ok((message(&piece)?, last)));
                match piece {
                    Ok((message, last)) => {
                        if last {
                            self.next = Next::Trailers;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(message))));
                    }
                    Err(status) => {
                        // What cannot be written into a header ends the stream all the same.
                        let _ = status.add_header(&mut trailers);
                    }
                }
            }
            Next::Trailers => {
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
            }
            Next::Nothing => return Poll::Ready(None),
        }
        self.next = Next::Nothing;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.next, Next::Nothing)
    }
}
