//! Calls over WebSocket: for pages in a browser above all, which can ask for more there while answers come.
//!
//! Every path of the gateway can be asked by WebSocket, too, and always as if by POST. What comes in messages, text or binary, is the
//! body of the request, with a line's end after each; each line of the answer goes out as a text message. When the answer has
//! ended the connection is closed, without a frame that says so. All this is what etcd 3.5 does, and so is that a path which leads
//! nowhere is found out only then. A page has no say in headers: its token comes as a subprotocol, `Bearer, TOKEN`, and is taken as one
//! from `Authorization`. Pages of any origin may come, as in etcd: nothing here is granted for a cookie.
//!
//! Unlike etcd, where such calls are never answered, a method that takes one request takes the first object. And tokens count, as a
//! subprotocol and in the header `Authorization`: etcd 3.5 agrees to the subprotocol and believes neither, signed or not.
//!
//! ```text
//!  client ─── messages ──▶ listen ──▶ a channel ──▶ Gateway::call ──▶ answer ─── messages ──▶ client
//! ```
//!
//! When the member stops, every client is told by the error that ends its call, and waited for; etcd tells only those that were answered
//! before.
//!
//! A client that breaks the protocol is told so in a close frame, as by etcd, in the words of our library.
//!
//! Promises: nothing is kept beyond the message that comes, one that waits, one that is read and one that goes out; a client that
//! does not take its answers is not read from for long, and its stream waits; a client that has gone, closes or breaks the protocol
//! ends its call at once, since somebody always reads, and its connection soon, whether it listens or not.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Response, StatusCode, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::stop::Stop;
use super::{Extent, Gateway, Services, failed};
use crate::http::error;
use crate::listen::Afterwards;

type Stream = WebSocketStream<TokioIo<Upgraded>>;

/// What a server's answer to a key is made with (RFC 6455, section 1.3).
const SEAL: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const VERSION: &str = "13";
/// The subprotocol of who has a token. To etcd it is one whatever follows.
const BEARER: &str = "Bearer";
/// Room for what is read at once, which every open socket has.
const READ_BYTES: usize = 4 << 10;
/// Messages between the socket and the call. Beyond it nothing is read until the call takes one.
const WAITING_MAX: usize = 1;
/// For the last word to reach a client, and the client to go. etcd takes as long for the word.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whether the request is to become a WebSocket.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    names(headers, header::CONNECTION, "upgrade") && names(headers, header::UPGRADE, "websocket")
}

/// Agrees to one, and says what is to be done with it.
pub(super) fn open<S: Services>(gateway: Gateway<S>, request: Request) -> Response<Body> {
    let (mut head, _) = request.into_parts();
    if head.method != HttpMethod::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    }
    let (Some(seal), Some(upgrade)) = (sealed(&head.headers), head.extensions.remove::<OnUpgrade>()) else {
        return refused(StatusCode::BAD_REQUEST, "Bad Request");
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, seal);
    let offered = head.headers.get(header::SEC_WEBSOCKET_PROTOCOL);
    if offered.is_some_and(|offered| offered.as_bytes().starts_with(BEARER.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(BEARER));
    }
    if let Some(authorization) = authorization(&head.headers) {
        head.headers.insert(header::AUTHORIZATION, authorization);
    }
    response.extensions_mut().insert(Afterwards::new(|stop| carry(gateway, head, upgrade, Stop::new(stop))));
    response
}

/// Says with a refusal which version is spoken here.
fn refused(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = error(status, message);
    response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    response
}

/// What answers the key of a well-formed request.
fn sealed(headers: &HeaderMap) -> Option<HeaderValue> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty())?;
    if !names(headers, header::SEC_WEBSOCKET_VERSION, VERSION) {
        return None;
    }
    let digest = Sha1::new().chain_update(key).chain_update(SEAL).finalize();
    HeaderValue::from_str(&BASE64_STANDARD.encode(digest)).ok()
}

/// A token that came as a subprotocol. That one was agreed to does not mean that there is one.
fn authorization(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let (scheme, token) = offered.split_once(',')?;
    let token = token.trim();
    if scheme.trim() != BEARER || token.is_empty() {
        return None;
    }
    HeaderValue::from_str(&format!("{BEARER} {token}")).ok()
}

fn names(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|named| named.trim().eq_ignore_ascii_case(word))
}

/// The call, from the moment that the connection speaks WebSocket to its end.
async fn carry<S: Services>(gateway: Gateway<S>, head: Parts, upgrade: OnUpgrade, stop: Stop) {
    let Ok(upgraded) = upgrade.await else { return };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        // Below it is gathered anyway.
        .write_buffer_size(0)
        .max_message_size(Some(gateway.json_bytes_max))
        .max_frame_size(Some(gateway.json_bytes_max));
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let word = tokio::select! {
        biased;
        () = answer(&gateway, &head, receiver, stop, &mut sink) => None,
        word = listen(&mut source, sender) => word,
    };
    if let Ok(socket) = sink.reunite(source) {
        farewell(socket, word).await;
    }
}

/// Passes on what the client says, until it has gone, or is to be told what it did wrong. What the call does not want is dropped.
async fn listen(source: &mut SplitStream<Stream>, sender: mpsc::Sender<Bytes>) -> Option<CloseFrame> {
    while let Some(message) = source.next().await {
        let data = match message {
            Ok(Message::Text(text)) => text.into(),
            Ok(Message::Binary(data)) => data,
            // The library answers, when it is asked for the next.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => continue,
            Err(error) => return reproach(&error),
        };
        for part in [data, Bytes::from_static(b"\n")] {
            if sender.send(part).await.is_err() {
                break;
            }
        }
    }
    None
}

/// What a client that broke the protocol is told.
fn reproach(error: &Error) -> Option<CloseFrame> {
    let (code, reason) = match error {
        Error::Protocol(error) => (CloseCode::Protocol, error.to_string()),
        Error::Capacity(error) => (CloseCode::Size, error.to_string()),
        Error::Utf8(error) => (CloseCode::Invalid, error.clone()),
        // The connection is no more.
        _ => return None,
    };
    Some(CloseFrame { code, reason: reason.into() })
}

async fn answer<S: Services>(
    gateway: &Gateway<S>,
    head: &Parts,
    receiver: mpsc::Receiver<Bytes>,
    stop: Stop,
    sink: &mut SplitSink<Stream, Message>,
) {
    let parts = stream::unfold(receiver, |mut receiver| async {
        let part = receiver.recv().await?;
        Some((Ok::<_, Infallible>(part), receiver))
    });
    let objects = gateway.objects(Body::from_stream(parts), Extent::First(stop));
    let response = match gateway.method(head.uri.path()) {
        Some(method) => gateway.call(method, head, objects).await.unwrap_or_else(|failure| failed(&failure)),
        None => error(StatusCode::NOT_FOUND, "Not Found"),
    };
    let mut body = response.into_body();
    // Each frame of it is a line: so it was made.
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(mut line) = frame.into_data() else { continue };
        if line.ends_with(b"\n") {
            line.truncate(line.len() - 1);
        }
        let Ok(text) = line.try_into() else { return };
        if sink.send(Message::Text(text)).await.is_err() {
            return;
        }
    }
}

/// Says the last word, if there is one, and waits for the client to go.
async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(mut socket: WebSocketStream<S>, word: Option<CloseFrame>) {
    let said = async {
        if word.is_some() {
            // Behind what was begun. If the client has gone there is nobody to tell.
            let _ = socket.close(word).await;
        }
        let mut connection = socket.into_inner();
        // TLS has a last word, too.
        connection.shutdown().await?;
        // A connection that ends with something unread is reset, and may take with it what the client was told.
        tokio::io::copy(&mut connection, &mut tokio::io::sink()).await
    };
    // Whatever goes wrong with it, that is the end.
    let _ = timeout(FAREWELL, said).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn requests_for_a_socket_are_known_by_their_headers() {
        let keyed = [("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("sec-websocket-version", "13")];
        // The example of RFC 6455.
        assert_eq!(sealed(&headers(&keyed)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(sealed(&headers(&keyed[..1])), None);
        assert_eq!(sealed(&headers(&keyed[1..])), None);

        assert!(wanted(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(wanted(&headers(&[("connection", "a"), ("connection", "upgrade"), ("upgrade", "h2c, websocket")])));
        for others in [&[("connection", "upgrade"), ("upgrade", "h2c")][..], &[("upgrade", "websocket")], &[]] {
            assert!(!wanted(&headers(others)), "{others:?}");
        }
    }

    #[test]
    fn a_token_may_be_a_subprotocol() {
        let token = |offered| authorization(&headers(&[("sec-websocket-protocol", offered)]));
        assert_eq!(token("Bearer, tok.1").unwrap(), "Bearer tok.1");
        assert_eq!(token("Bearer,tok").unwrap(), "Bearer tok");
        for others in ["Bearer", "Bearer, ", "Bearertok", "Bearer tok", "x, Bearer, tok", "tok", ""] {
            assert_eq!(token(others), None, "{others}");
        }
    }

    /// The clock of this test goes on by itself when nothing else does.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_listen_is_left() {
        for (room, word) in [(4, reproach(&Error::Utf8("a reason".into()))), (64, None)] {
            let (client, server) = tokio::io::duplex(room);
            let socket = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
            timeout(2 * FAREWELL, farewell(socket, word)).await.expect("an end in time");
            drop(client);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_heard_out() {
        let (mut client, server) = tokio::io::duplex(64);
        let socket = WebSocketStream::from_raw_socket(server, Role::Server, None).await;
        let client = async {
            client.write_all(&[0; 1000]).await.expect("a connection that is not reset");
            drop(client);
        };
        tokio::join!(farewell(socket, None), client);
    }
}
