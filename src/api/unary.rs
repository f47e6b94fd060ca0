//! Unary calls, from the frames of HTTP/2 to the message and back, for what clients do most.
//!
//! Between a connection and a handler tonic has a router, a codec, a stream of messages and a boxed body, each with its buffers and
//! allocations: more than a put of a few hundred bytes costs otherwise. Here a request is decoded from the frame in which it came,
//! and a response is one piece and its trailers. A long range is written piece by piece as the client takes it, so that it is not
//! in memory a second time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Status;

use super::body::Body;
use super::requests::{Requests, gone};
use super::status::STOPPED;
use crate::mvcc::{self, RangeResult, Records};
use crate::pb::etcdserverpb::{RangeResponse, ResponseHeader};

/// How gRPC says how a call ended.
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// What gRPC puts before a message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;
/// About how much of a long response is encoded at a time, and of how many records: they may have to be read from a disk.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_RECORDS: usize = 250;
/// The largest message that Go's gRPC sends, and so the largest that clients can expect.
const MESSAGE_MAX: usize = i32::MAX as usize;
/// Field 1 of `RangeResponse`, length-delimited.
const HEADER_TAG: u8 = 1 << 3 | 2;
/// Field 2 of `RangeResponse`, length-delimited.
const KVS_TAG: u8 = 2 << 3 | 2;

/// What is still to be sent.
pub(super) enum Rest {
    Whole(Bytes),
    Range(RangePieces),
    Trailers,
    Nothing,
}

/// A response to a range that is being written: a piece ahead of the client, on a thread that serves nobody.
pub(super) struct RangePieces {
    reading: oneshot::Receiver<(Pieces, Piece)>,
    aside: Aside,
    /// Has them read from a newer state of the backend, for as long as there are any.
    renewing: JoinHandle<()>,
}

/// What is not written yet.
struct Pieces {
    /// What comes before the keys.
    head: Vec<u8>,
    records: Arc<Mutex<Records>>,
    /// What comes after them.
    tail: Vec<u8>,
    failed: Failed,
}

/// A piece, and whether it is the last.
type Piece = Result<(Bytes, bool), Status>;

/// Has work done aside.
type Aside = Box<dyn Fn(Box<dyn FnOnce() + Send>) + Send>;

/// Hears why a record could not be read, and says how the call ends.
type Failed = Box<dyn Fn(mvcc::Error) -> Status + Send>;

/// Where the records of a range come from.
pub(super) trait Source: Clone + Send + 'static {
    /// As above.
    fn failed(&self, error: mvcc::Error) -> Status;

    /// Has records read from the newest state of the backend.
    fn renew(&self, records: &mut Records);

    /// Has long work done where nobody is served. What comes first is done first.
    fn aside(&self, work: Box<dyn FnOnce() + Send>);
}

/// How long a client that takes its time may keep the backend from using pages again.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// The request of a call that has one.
pub(super) async fn receive<M, B>(mut requests: Requests<B>) -> Result<M, Status>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let message = poll_fn(|cx| requests.poll_next(cx)).await;
    let message = message.unwrap_or_else(|| Err(Status::internal("missing request message")))?;
    // The call is not whole before the client has said that there is no more.
    let mut body = requests.into_body();
    while !body.is_end_stream() {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            Some(Ok(_)) => {}
            // It has reset the stream: a body says so again and again.
            Some(Err(_)) => return Err(gone()),
            None => break,
        }
    }
    Ok(message)
}

/// The response with this message, or with the status of a call that failed.
pub(super) fn respond(outcome: Result<Body, Status>) -> Response<Body> {
    match outcome {
        Ok(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http().map(Body::Tonic),
    }
}

impl Rest {
    /// A message in one piece.
    pub(super) fn message(message: &impl Message) -> Result<Rest, Status> {
        let len = message.encoded_len();
        let mut out = Vec::with_capacity(PREFIX_BYTES + len);
        put_prefix(&mut out, len)?;
        message.encode_raw(&mut out);
        Ok(Rest::Whole(out.into()))
    }

    /// A `RangeResponse` of key-values as they are stored.
    pub(super) fn range(header: ResponseHeader, result: RangeResult, source: &impl Source) -> Result<Rest, Status> {
        let RangeResult { mut records, more, count } = result;
        let field = |len: usize| 1 + encoded_len_varint(len as u64) + len;
        let tail = RangeResponse { more, count, ..Default::default() }.encode_to_vec();
        let len = field(header.encoded_len()) + records.lengths().map(field).sum::<usize>() + tail.len();
        let mut head = Vec::new();
        put_prefix(&mut head, len)?;
        head.push(HEADER_TAG);
        header.encode_length_delimited(&mut head).expect("it grows");
        if len < PIECE_BYTES && records.lengths().nth(PIECE_RECORDS).is_none() {
            return Ok(Rest::Whole(piece(&head, &mut records, &tail, |error| source.failed(error))?));
        }
        Ok(Rest::Range(RangePieces::new(head, records, tail, source)))
    }

    /// The next frame.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let frame = match std::mem::replace(self, Rest::Trailers) {
            Rest::Whole(bytes) => Some(Frame::data(bytes)),
            Rest::Range(mut pieces) => match pieces.poll_next(cx) {
                Poll::Pending => {
                    *self = Rest::Range(pieces);
                    return Poll::Pending;
                }
                Poll::Ready(Ok((bytes, last))) => {
                    if !last {
                        *self = Rest::Range(pieces);
                    }
                    Some(Frame::data(bytes))
                }
                // The message ends in the middle, and the call as one that failed.
                Poll::Ready(Err(status)) => {
                    *self = Rest::Nothing;
                    let mut trailers = HeaderMap::new();
                    // What cannot be written into a header ends the stream all the same.
                    let _ = status.add_header(&mut trailers);
                    Some(Frame::trailers(trailers))
                }
            },
            Rest::Trailers => {
                *self = Rest::Nothing;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Frame::trailers(trailers))
            }
            Rest::Nothing => {
                *self = Rest::Nothing;
                None
            }
        };
        Poll::Ready(frame)
    }
}

impl RangePieces {
    /// These records between what comes before and after them.
    pub(super) fn new(head: Vec<u8>, records: Records, tail: Vec<u8>, source: &impl Source) -> RangePieces {
        let records = Arc::new(Mutex::new(records));
        let (waiting, renewed) = (Arc::downgrade(&records), source.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_EVERY).await;
                let Some(records) = waiting.upgrade() else { return };
                renewed.renew(&mut lock(&records));
            }
        });
        let (failing, helping) = (source.clone(), source.clone());
        let pieces = Pieces { head, records, tail, failed: Box::new(move |error| failing.failed(error)) };
        let aside: Aside = Box::new(move |work| helping.aside(work));
        RangePieces { reading: pieces.read(&aside), aside, renewing }
    }

    /// The next piece. The one after it is read while this one is on its way.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Piece> {
        let Ok((pieces, piece)) = ready!(Pin::new(&mut self.reading).poll(cx)) else {
            // Whoever works aside ends with the member.
            return Poll::Ready(Err(Status::unavailable(STOPPED)));
        };
        if let Ok((_, false)) = piece {
            self.reading = pieces.read(&self.aside);
        }
        Poll::Ready(piece)
    }
}

impl Pieces {
    /// Has the next piece read.
    fn read(mut self, aside: &Aside) -> oneshot::Receiver<(Pieces, Piece)> {
        let (read, reading) = oneshot::channel();
        aside(Box::new(move || {
            // A client that went away is read nothing for.
            if !read.is_closed() {
                let piece = self.next();
                let _ = read.send((self, piece));
            }
        }));
        reading
    }

    fn next(&mut self) -> Piece {
        let mut records = lock(&self.records);
        let bytes = piece(&std::mem::take(&mut self.head), &mut records, &self.tail, &self.failed)?;
        Ok((bytes, records.is_empty()))
    }
}

/// As many records as one piece takes, after the head, and the tail if they are the last.
fn piece(
    head: &[u8],
    records: &mut Records,
    tail: &[u8],
    failed: impl Fn(mvcc::Error) -> Status,
) -> Result<Bytes, Status> {
    let (mut count, mut room) = (0, head.len() + tail.len());
    for len in records.lengths().take(PIECE_RECORDS) {
        if room >= PIECE_BYTES {
            break;
        }
        count += 1;
        room += 1 + encoded_len_varint(len as u64) + len;
    }
    records.read_ahead(count).map_err(|error| failed(error.into()))?;
    let mut piece = BytesMut::with_capacity(room);
    piece.put_slice(head);
    for record in records.take(count) {
        let record = record.map_err(&failed)?;
        piece.put_u8(KVS_TAG);
        encode_varint(record.len() as u64, &mut piece);
        piece.put_slice(&record);
    }
    if records.is_empty() {
        piece.put_slice(tail);
    }
    Ok(piece.freeze())
}

impl Drop for RangePieces {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// It is held while a piece is read.
fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts before a message what gRPC wants there.
pub(super) fn put_prefix(out: &mut impl BufMut, len: usize) -> Result<(), Status> {
    let Some(shown) = u32::try_from(len).ok().filter(|_| len <= MESSAGE_MAX) else {
        let text = format!("grpc: trying to send message larger than max ({len} vs. {MESSAGE_MAX})");
        return Err(Status::resource_exhausted(text));
    };
    out.put_u8(0);
    out.put_u32(shown);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::RangeRequest;
    use crate::pb::mvccpb::KeyValue;

    async fn next(rest: &mut Rest) -> Option<Frame<Bytes>> {
        poll_fn(|cx| rest.poll_next(cx)).await
    }

    /// What is sent before the trailers, in its pieces.
    async fn pieces(mut rest: Rest) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        loop {
            match next(&mut rest).await.expect("trailers come last").into_data() {
                Ok(data) => pieces.push(data),
                Err(trailers) => {
                    assert_eq!(trailers.trailers_ref().unwrap()[GRPC_STATUS], "0");
                    assert!(next(&mut rest).await.is_none());
                    return pieces;
                }
            }
        }
    }

    /// Of records that are in memory.
    #[derive(Clone)]
    struct Memory;

    impl Source for Memory {
        fn failed(&self, error: mvcc::Error) -> Status {
            Status::data_loss(error.to_string())
        }

        fn renew(&self, _: &mut Records) {}

        fn aside(&self, work: Box<dyn FnOnce() + Send>) {
            std::thread::spawn(work);
        }
    }

    #[tokio::test]
    async fn a_range_in_pieces_is_the_message() {
        let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 300, raft_term: 4 };
        for (count, value_bytes) in [(0, 0), (1, 0), (1, PIECE_BYTES * 2), (3000, 100), (10, PIECE_BYTES)] {
            let kv = |n: usize| KeyValue {
                key: format!("key{n}").into(),
                value: vec![n as u8; value_bytes].into(),
                mod_revision: n as i64,
                ..Default::default()
            };
            let kvs: Vec<KeyValue> = (0..count).map(kv).collect();
            let response = RangeResponse { header: Some(header), kvs, more: count % 2 == 1, count: count as i64 };
            let encoded = response.kvs.iter().map(|kv| kv.encode_to_vec().into()).collect();
            let records = Records::of(encoded);
            let result = RangeResult { records, more: response.more, count: response.count };
            let pieces = pieces(Rest::range(header, result, &Memory).unwrap()).await;
            assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES + value_bytes + 100));
            let whole = self::pieces(Rest::message(&response).unwrap()).await;
            assert_eq!(pieces.concat(), whole.concat(), "{count} keys of {value_bytes} bytes");
        }
    }

    #[tokio::test]
    async fn a_client_that_resets_its_call_is_let_go() {
        use http_body_util::StreamBody;
        let message = RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
        let framed = Bytes::from([&[0, 0, 0, 0, message.len() as u8], &message[..]].concat());
        let frames = [Ok(Frame::data(framed)), Err(Status::cancelled("reset"))];
        let body =
            StreamBody::new(tokio_stream::iter(frames.into_iter().chain(std::iter::from_fn(|| panic!("asked again")))));
        let requests = Requests::new(&HeaderMap::new(), body, 100).unwrap();
        let received = receive::<RangeRequest, _>(requests).await;
        assert_eq!(received.unwrap_err().code(), tonic::Code::Cancelled);
    }

    #[tokio::test]
    async fn a_range_that_cannot_be_read_to_its_end_ends_as_a_call_that_failed() {
        let good = Bytes::from(KeyValue { key: "k".into(), ..Default::default() }.encode_to_vec());
        let records = [vec![good; PIECE_RECORDS], vec![Bytes::from_static(b"\xff")]].concat();
        let result = RangeResult { records: Records::of(records), more: false, count: 251 };
        let mut rest = Rest::range(ResponseHeader::default(), result, &Memory).unwrap();
        assert!(next(&mut rest).await.unwrap().is_data());
        let trailers = next(&mut rest).await.unwrap().into_trailers().unwrap();
        assert_eq!(trailers[GRPC_STATUS], "15");
        assert!(next(&mut rest).await.is_none());
    }

    #[test]
    fn a_message_that_no_client_would_take_is_refused() {
        let kv = Bytes::from(vec![0; 1 << 20]);
        let result = RangeResult { records: Records::of(vec![kv; 2048]), more: false, count: 2048 };
        let status = Rest::range(ResponseHeader::default(), result, &Memory).err().unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
