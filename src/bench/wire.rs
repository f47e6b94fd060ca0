//! Calls put on HTTP/2 by hand. A client for everyday use has queues, tasks and buffers between a call and its connection, which cost
//! a generator more than a fast server spends on the call: it would measure itself.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderName, TE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use prost::Message;
use tokio::sync::{Mutex, OnceCell};
use tonic::{Code, Status};

use crate::client::{Client, Error};

/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// Where etcd looks for a token.
const TOKEN: HeaderName = HeaderName::from_static("token");
/// A server may have so much under way of one answer, and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// The token with which a user's calls go, once he has one; none if the cluster has no users or the client is none of them.
pub(super) type Token = Arc<OnceCell<Option<HeaderValue>>>;

/// A connection to an endpoint that several share, made when it is first used, and again when it broke.
#[derive(Clone)]
pub(super) struct Wire {
    client: Client,
    endpoint: usize,
    token: Token,
    open: Arc<Mutex<Option<SendRequest<Bytes>>>>,
    /// This one's handle of it, ready for the next call.
    own: Option<SendRequest<Bytes>>,
}

impl Wire {
    /// One to the endpoint of this number. The token is the same on all connections.
    pub(super) fn new(client: Client, endpoint: usize, token: Token) -> Wire {
        Wire { client, endpoint, token, open: Arc::default(), own: None }
    }

    /// A call with one message, whose answer matters only in that it is whole.
    pub(super) async fn ask(&mut self, path: &'static str, message: &impl Message) -> Result<(), Status> {
        self.call(path, message, |_| {}).await
    }

    /// A call with one message, answered with one.
    pub(super) async fn answer<A: Message + Default>(
        &mut self,
        path: &'static str,
        message: &impl Message,
    ) -> Result<A, Status> {
        let mut answer = BytesMut::new();
        self.call(path, message, |bytes| answer.put_slice(bytes)).await?;
        A::decode(answer.split_off(PREFIX_BYTES)).map_err(|error| Status::internal(error.to_string()))
    }

    /// Shows the answer with its prefix, piece by piece.
    async fn call(
        &mut self,
        path: &'static str,
        message: &impl Message,
        mut show: impl FnMut(&[u8]),
    ) -> Result<(), Status> {
        let mut connection = self.ready().await?;
        let (answer, mut sending) = connection.send_request(self.request(path)?, false).map_err(broken)?;
        self.own = Some(connection);
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
        framed.put_u8(0);
        framed.put_u32(message.encoded_len() as u32);
        message.encode_raw(&mut framed);
        sending.send_data(framed.freeze(), true).map_err(broken)?;

        let (head, mut body) = answer.await.map_err(broken)?.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return Err(status);
        }
        if head.status != StatusCode::OK {
            return Err(Status::unknown(format!("answered with {}", head.status)));
        }
        let mut whole = Whole::default();
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
            let _ = body.flow_control().release_capacity(data.len());
            whole.see(&data);
            show(&data);
        }
        let trailers = body.trailers().await.map_err(broken)?.unwrap_or_default();
        match Status::from_header_map(&trailers) {
            Some(status) if status.code() != Code::Ok => Err(status),
            Some(_) if whole.is_it() => Ok(()),
            _ => Err(Status::internal("the answer is not one whole message with a status")),
        }
    }

    async fn ready(&mut self) -> Result<SendRequest<Bytes>, Status> {
        if let Some(own) = self.own.take()
            && let Ok(ready) = own.ready().await
        {
            return Ok(ready);
        }
        let mut open = self.open.lock().await;
        if let Some(open) = &*open
            && let Ok(ready) = open.clone().ready().await
        {
            return Ok(ready);
        }
        let unreachable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        let log_in = async || {
            let client = self.client.authenticated().await?;
            Ok::<_, Error>(client.token().and_then(|token| HeaderValue::from_bytes(token.as_encoded_bytes()).ok()))
        };
        self.token.get_or_try_init(log_in).await.map_err(|error| unreachable(&error))?;
        let stream = self.client.stream(self.endpoint).await.map_err(|error| unreachable(&error))?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(broken)?;
        // Whoever has a call under way hears of its end.
        tokio::spawn(async { drop(connection.await) });
        *open = Some(send.clone());
        send.ready().await.map_err(broken)
    }

    fn request(&self, path: &'static str) -> Result<Request<()>, Status> {
        let mut uri = self.client.uri(self.endpoint).clone().into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(uri).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(Some(token)) = self.token.get() {
            headers.insert(TOKEN, token.clone());
        }
        *request.headers_mut() = headers;
        Ok(request)
    }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}

/// Whether as many bytes came as the prefix says.
#[derive(Debug, Default)]
struct Whole {
    prefix: [u8; PREFIX_BYTES],
    seen: usize,
}

impl Whole {
    fn see(&mut self, bytes: &[u8]) {
        if let Some(missing) = self.prefix.get_mut(self.seen..) {
            let count = missing.len().min(bytes.len());
            missing[..count].copy_from_slice(&bytes[..count]);
        }
        self.seen += bytes.len();
    }

    fn is_it(&self) -> bool {
        let [compressed, length @ ..] = self.prefix;
        compressed == 0 && self.seen == PREFIX_BYTES + u32::from_be_bytes(length) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::{Settings, Tls};
    use crate::pb::etcdserverpb::PutRequest;

    #[test]
    fn a_message_is_whole_however_it_is_cut_and_not_with_a_byte_more_or_less() {
        let bytes = [0, 0, 0, 0, 3, 7, 7, 7];
        let whole = |bytes: &[u8], piece: usize| {
            let mut whole = Whole::default();
            bytes.chunks(piece).for_each(|piece| whole.see(piece));
            whole.is_it()
        };
        for piece in 1..=bytes.len() {
            assert!(whole(&bytes, piece), "{piece}");
            assert!(!whole(&bytes[..7], piece) && !whole(&[&bytes[..], &[7]].concat(), piece), "{piece}");
        }
        assert!(!whole(&[], 1) && !whole(&[1, 0, 0, 0, 0], 2) && whole(&[0; 5], 2));
    }

    #[tokio::test]
    async fn an_endpoint_that_accepts_and_says_nothing_is_given_up() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("https://{}", silent.local_addr().unwrap());
        let tls = Tls { insecure_skip_verify: true, ..Tls::default() };
        let settings = Settings { connect_timeout: Duration::from_millis(50), tls, ..Settings::default() };
        let client = Client::with_settings(std::slice::from_ref(&endpoint), 1, &settings).unwrap();
        let mut wire = Wire::new(client, 0, Token::default());
        let (put, in_time) = (PutRequest::default(), Duration::from_secs(10));
        let asked = tokio::time::timeout(in_time, wire.ask("/etcdserverpb.KV/Put", &put)).await;
        let said = asked.expect("it does not wait for ever").expect_err("nobody is there").message().to_owned();
        assert_eq!(said, format!("no connection to {endpoint}/ came about within 50ms"));
    }
}
