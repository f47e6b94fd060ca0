//! One call of gRPC as the gateway makes it: metadata from headers, messages in their frames, a status at the end.

use std::pin::Pin;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::OptionFuture;
use http_body_util::BodyExt;
use percent_encoding::percent_decode;
use prost::Message;
use tokio::time::{Instant, sleep_until};

use super::stop::Stop;
use crate::api::STOPPED;

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";
const GRPC_TIMEOUT: &str = "grpc-timeout";
/// What is to be metadata of the call carries this before its name.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// A client that grants more time than this sets no limit.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a call failed, in the codes of gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u16,
    pub(super) message: String,
}

impl Failure {
    /// UNKNOWN.
    pub(super) fn unknown(message: String) -> Failure {
        Failure { code: 2, message }
    }

    /// INVALID_ARGUMENT.
    pub(super) fn invalid_argument(message: String) -> Failure {
        Failure { code: 3, message }
    }

    /// What it is when the first request of a stream is wrong: to etcd's gateway not the argument of a call.
    pub(super) fn of_a_stream(self) -> Failure {
        if self.code == 3 { Failure::unknown(self.message) } else { self }
    }

    /// RESOURCE_EXHAUSTED.
    pub(super) fn resource_exhausted(message: String) -> Failure {
        Failure { code: 8, message }
    }

    /// INTERNAL.
    pub(super) fn internal(message: String) -> Failure {
        Failure { code: 13, message }
    }

    /// DEADLINE_EXCEEDED: the client wants no answer any more.
    pub(super) fn too_late() -> Failure {
        Failure { code: 4, message: "context deadline exceeded".to_owned() }
    }

    /// UNAVAILABLE: the member stops.
    pub(super) fn stopped() -> Failure {
        Failure { code: 14, message: STOPPED.to_owned() }
    }

    /// The code of HTTP that stands for this one of gRPC.
    pub(super) fn http_status(&self) -> StatusCode {
        match self.code {
            // Cancelled.
            1 => StatusCode::REQUEST_TIMEOUT,
            // Invalid argument, failed precondition, out of range.
            3 | 9 | 11 => StatusCode::BAD_REQUEST,
            // Deadline exceeded.
            4 => StatusCode::GATEWAY_TIMEOUT,
            5 => StatusCode::NOT_FOUND,
            // Already exists, aborted.
            6 | 10 => StatusCode::CONFLICT,
            // Permission denied.
            7 => StatusCode::FORBIDDEN,
            // Resource exhausted.
            8 => StatusCode::TOO_MANY_REQUESTS,
            // Unimplemented.
            12 => StatusCode::NOT_IMPLEMENTED,
            // Unavailable.
            14 => StatusCode::SERVICE_UNAVAILABLE,
            // Unauthenticated.
            16 => StatusCode::UNAUTHORIZED,
            // Unknown, internal, data loss, and what is none.
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What the headers or trailers say, if they say that the call failed.
    fn told(headers: &HeaderMap) -> Option<Failure> {
        let code = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().unwrap_or(2);
        let text = headers.get(GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
        let message = percent_decode(text).decode_utf8_lossy().into_owned();
        (code != 0).then_some(Failure { code, message })
    }
}

/// The metadata of a call that HTTP's headers ask for: `Grpc-Metadata-NAME`, and the token in `Authorization`.
pub(super) fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(token) = headers.get(header::AUTHORIZATION) {
        metadata.insert(header::AUTHORIZATION, token.clone());
    }
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(METADATA_PREFIX) else { continue };
        // What gRPC itself says of a call is not for the client to say.
        if name.starts_with("grpc-") || name == header::CONTENT_TYPE {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

/// When the client wants no answer any more: `Grpc-Timeout: 1500m` is a second and a half. No time at all is all the time there is, as
/// to etcd's gateway.
pub(super) fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Failure> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(timeout).ok_or_else(|| {
        Failure::invalid_argument(format!("invalid grpc-timeout: {}", String::from_utf8_lossy(value.as_bytes())))
    })?;
    Ok((!timeout.is_zero() && timeout <= TIMEOUT_MAX).then(|| Instant::now() + timeout))
}

fn timeout(value: &str) -> Option<Duration> {
    let unit = value.chars().next_back()?;
    let count: u64 = value.strip_suffix(unit)?.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count.saturating_mul(3600)),
        'M' => Duration::from_secs(count.saturating_mul(60)),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// A message as it travels. None that the gateway made of a bounded request is as long as a frame can be.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + len);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(len).expect("requests are bounded"));
    message.encode(&mut frame).expect("it grows");
    frame.freeze()
}

/// What comes back, message by message.
pub(super) struct Replies<B> {
    body: B,
    /// What has come and is not a whole message yet.
    rest: BytesMut,
    /// How the call ended, where that was said before any message.
    ended: Option<Failure>,
    patience: Patience,
}

impl<B> Replies<B>
where
    B: http_body::Body<Data: Buf, Error: std::fmt::Display> + Unpin,
{
    /// Waits for the call to be answered.
    pub(super) async fn of<E>(
        call: impl Future<Output = Result<Response<B>, E>>,
        mut patience: Patience,
    ) -> Result<Replies<B>, Failure> {
        let response = patience.lasts(call).await?;
        let Ok(response) = response else { return Err(Failure::internal("the call was not answered".to_owned())) };
        let ended = Failure::told(response.headers());
        Ok(Replies { body: response.into_body(), rest: BytesMut::new(), ended, patience })
    }

    /// The next message. None: the call has ended well.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(failure) = self.ended.take() {
            return Err(failure);
        }
        loop {
            if let Some(message) = self.decode() {
                return Ok(Some(message));
            }
            let ended = match self.patience.lasts(self.body.frame()).await? {
                None => None,
                Some(frame) => match frame.map_err(|error| Failure::internal(error.to_string()))?.into_data() {
                    Ok(data) => {
                        self.rest.put(data);
                        continue;
                    }
                    Err(frame) => frame.trailers_ref().and_then(Failure::told),
                },
            };
            let interrupted = self.patience.stop.as_ref().is_some_and(Stop::has_interrupted);
            let failure = ended.or_else(|| interrupted.then(Failure::stopped));
            return failure.map_or(Ok(None), Err);
        }
    }

    fn decode(&mut self) -> Option<Bytes> {
        let [_, length @ ..] = *self.rest.first_chunk::<PREFIX_BYTES>()?;
        let len = u32::from_be_bytes(length) as usize;
        if self.rest.len() - PREFIX_BYTES < len {
            return None;
        }
        self.rest.advance(PREFIX_BYTES);
        Some(self.rest.split_to(len).freeze())
    }
}

/// For how long a call is waited for.
pub(super) struct Patience {
    stop: Option<Stop>,
    /// Why it is at its end, when it is. None: it never is.
    end: Option<Pin<Box<dyn Future<Output = Failure> + Send>>>,
}

impl Patience {
    /// Until the deadline; if the call has to do with the stop, until shortly after it.
    pub(super) fn new(deadline: Option<Instant>, stop: Option<Stop>) -> Patience {
        let overdue = stop.clone();
        let end = async move {
            let too_late = OptionFuture::from(deadline.map(sleep_until));
            let stopped = OptionFuture::from(overdue.map(async |mut stop| stop.is_overdue().await));
            tokio::select! {
                biased;
                Some(()) = too_late => Failure::too_late(),
                Some(()) = stopped => Failure::stopped(),
            }
        };
        Patience { end: (deadline.is_some() || stop.is_some()).then(|| Box::pin(end) as _), stop }
    }

    /// What `future` gives, if it does in time.
    async fn lasts<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Failure> {
        match &mut self.end {
            None => Ok(future.await),
            Some(end) => tokio::select! {
                biased;
                failure = end => Err(failure),
                output = future => Ok(output),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;

    /// The clock of this test goes on by itself when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_when_the_member_stops_has_a_while() {
        let (stop, told) = watch::channel(false);
        let mut patience = Patience::new(None, Some(Stop::new(told)));
        assert_eq!(patience.lasts(sleep(TIMEOUT_MAX)).await, Ok(()));
        stop.send_replace(true);
        assert_eq!(patience.lasts(sleep(Duration::from_secs(1))).await, Ok(()));
        assert_eq!(patience.lasts(pending::<()>()).await, Err(Failure::stopped()));
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, text.parse().unwrap());
            deadline(&headers).map(|at| at.is_some())
        };
        for good in ["1H", "20M", "3S", "100m", "7u", "1n"] {
            assert_eq!(read(good), Ok(true), "{good}");
        }
        for endless in ["0n", "0H", "18446744073709551615H"] {
            assert_eq!(read(endless), Ok(false), "{endless}");
        }
        for bad in ["", "5", "m", "-1m", "1.5S", "1s", "5 m", "\u{b5}"] {
            assert_eq!(read(bad).unwrap_err().code, 3, "{bad}");
        }
    }

    #[test]
    fn headers_become_metadata_but_not_those_of_grpc() {
        let mut headers = HeaderMap::new();
        let sent = [
            ("authorization", "tok"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-content-type", "text/plain"),
            ("grpc-metadata-grpc-encoding", "gzip"),
            ("grpc-metadata-", "x"),
            ("cookie", "x"),
        ];
        for (name, value) in sent {
            headers.insert(name, value.parse().unwrap());
        }
        let metadata = metadata(&headers);
        let mut names: Vec<_> = metadata.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "hasleader"]);
        assert_eq!(metadata["content-type"], "application/grpc");
    }
}
