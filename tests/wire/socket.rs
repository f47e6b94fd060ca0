//! W: the JSON gateway by WebSocket, with a client that is not ours.

use futures_util::SinkExt;
use http::{HeaderValue, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::gateway::{WATCHERS, base64};
use super::*;

struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn open(server: &Server, path: &str) -> Socket {
        Socket::open_as(server, path, None).await
    }

    /// With what is to stand in `Sec-WebSocket-Protocol`.
    async fn open_as(server: &Server, path: &str, protocol: Option<&str>) -> Socket {
        let address = server.url.strip_prefix("http://").expect("our own url");
        let stream = TcpStream::connect(address).await.expect("the server listens");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
        if let Some(protocol) = protocol {
            let value = HeaderValue::from_str(protocol).expect("visible text");
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.expect("an upgrade");
        let agreed = response.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
        assert_eq!(agreed.map(HeaderValue::as_bytes), protocol.map(|_| &b"Bearer"[..]));
        Socket(socket)
    }

    async fn say(&mut self, json: &str) {
        self.0.send(Message::text(json)).await.expect("an open socket");
    }

    /// The next message. None: the server has closed the connection.
    async fn message(&mut self) -> Option<String> {
        match tokio::time::timeout(PATIENCE, self.0.next()).await.expect("an answer in time") {
            Some(Ok(Message::Text(text))) => Some(text.to_string()),
            None | Some(Err(_)) => None,
            Some(Ok(other)) => panic!("{other:?}"),
        }
    }

    async fn line(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.message().await.expect("the socket is open")).expect("JSON")
    }
}

/// A socket by which this was asked.
async fn asked(server: &Server, path: &str, request: &str) -> Socket {
    let mut socket = Socket::open(server, path).await;
    socket.say(request).await;
    socket
}

fn terminate(server: &Server) {
    let child = server.child.lock().expect("no test panicked in here");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("the process is ours");
}

/// Waits for the end of a server that stops: nobody is cut off.
async fn ends(server: &Server) {
    let deadline = Instant::now() + PATIENCE;
    while server.child.lock().expect("no test panicked in here").try_wait().expect("the process is ours").is_none() {
        assert!(Instant::now() < deadline, "the server does not stop");
        tokio::task::yield_now().await;
    }
    let log = std::fs::read_to_string(server.data.path().join("log")).expect("a file");
    assert!(!log.contains("cutting off"), "{log}");
}

fn create(key: &[u8], more: &str) -> String {
    format!(r#"{{"create_request":{{"key":"{}"{more}}}}}"#, base64(key))
}

wire!(watches_share_a_socket, |c| {
    let mut socket = Socket::open(&c.server, "/v3/watch").await;
    // Two requests in one message, one of them as bytes, and the first spread over two messages.
    let (first, second) = (create(&c.key("a"), r#","watch_id":1"#), create(&c.key("b"), r#","watch_id":2"#));
    let (begin, end) = first.split_at("{\"create_request\":".len());
    socket.say(begin).await;
    socket.0.send(Message::binary(format!("{end}{second}").into_bytes())).await.expect("an open socket");
    for id in ["1", "2"] {
        let created = &socket.line().await["result"];
        assert_eq!((&created["created"], &created["watch_id"]), (&true.into(), &id.into()));
    }
    for (key, id) in [("a", "1"), ("b", "2"), ("a", "1")] {
        let at = c.put(key, "x").await.to_string();
        let told = &socket.line().await["result"];
        assert_eq!((&told["watch_id"], &told["events"][0]["kv"]["mod_revision"]), (&id.into(), &at.into()));
        assert_eq!(told["events"][0]["kv"]["key"], base64(&c.key(key)));
    }
    // Nonsense ends the requests, and not the answers.
    socket.say("x").await;
    c.put("b", "y").await;
    assert_eq!(socket.line().await["result"]["events"][0]["kv"]["value"], base64(b"y"));
});

wire!(nothing_is_a_request_that_is_none, |c| {
    let mut socket = Socket::open(&c.server, "/v3/watch").await;
    for nothing in ["null", "{}", " ", &create(&c.key("k"), "")] {
        socket.say(nothing).await;
    }
    assert_eq!(socket.line().await["result"]["created"], true);
});

wire!(nonsense_is_answered_with_an_error_and_the_end, |c| {
    let mut socket = Socket::open(&c.server, "/v3/watch").await;
    socket.say("x").await;
    assert_eq!(socket.line().await["code"], 2);
    assert!(socket.message().await.is_none());
    // A message ends with its line: no string goes on in the next.
    let mut socket = Socket::open(&c.server, "/v3/watch").await;
    let request = create(&c.key("k"), "");
    let (begin, end) = request.split_at(request.len() - 5);
    socket.say(begin).await;
    socket.say(end).await;
    assert_eq!(socket.line().await["code"], 2);
    let mut socket = Socket::open(&c.server, "/v3/nothing").await;
    assert_eq!(socket.message().await.as_deref(), Some("Not Found"));
    assert!(socket.message().await.is_none());
});

wire!(frames_against_the_rules_end_the_socket_and_nothing_else, |c| {
    // etcd hears nobody who does not wait for its answer.
    if is_etcd() {
        return;
    }
    let address = c.server.url.strip_prefix("http://").expect("our own url").to_owned();
    let unmasked = b"\x81\x02{}".to_vec();
    let endless = b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0".to_vec();
    let reserved = b"\xf1\x80\0\0\0\0".to_vec();
    let unbegun = b"\x80\x80\0\0\0\0".to_vec();
    let long_ping = [b"\x89\xfe\x01\x00\0\0\0\0", &[0; 256][..]].concat();
    let no_text = b"\x81\x81\0\0\0\0\xff".to_vec();
    for (frame, code) in [
        (unmasked, 1002_u16),
        (endless, 1009),
        (reserved, 1002),
        (unbegun, 1002),
        (long_ping, 1002),
        // etcd leaves it to who reads JSON.
        (no_text, 1007),
    ] {
        let mut stream = TcpStream::connect(&address).await.expect("the server listens");
        let head = "GET /v3/watch HTTP/1.1\r\nHost: m0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n";
        // With the request, before it is answered, and with more behind it than is read at once.
        stream.write_all(&[head.as_bytes(), &frame, &[0; 1 << 16]].concat()).await.expect("a request");
        let mut said = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("the end in time");
        ended.expect("an end without a reset");
        assert!(said.starts_with(b"HTTP/1.1 101 "), "{frame:?}: {}", String::from_utf8_lossy(&said));
        let head = said.windows(4).position(|end| end == b"\r\n\r\n").expect("the end of a head") + 4;
        let [0x88, length, high, low, reason @ ..] = &said[head..] else { panic!("{frame:?}: {:?}", &said[head..]) };
        assert_eq!((u16::from_be_bytes([*high, *low]), usize::from(*length)), (code, reason.len() + 2), "{frame:?}");
    }
    let mut socket = Socket::open(&c.server, "/v3/watch").await;
    for _ in 0..10_000 {
        socket.0.feed(Message::Ping(bytes::Bytes::from_static(&[7; 125]))).await.expect("an open socket");
    }
    socket.say(&create(&c.key("k"), "")).await;
    while !matches!(socket.0.next().await, Some(Ok(Message::Text(_)))) {}
});

wire!(alone a_client_that_vanishes_ends_its_watches, |c| {
    let before = c.server.metric(WATCHERS);
    // One whose requests are at their end already, by nonsense.
    let mut sockets = Vec::new();
    // To etcd such a client never goes.
    let ends = if is_etcd() { ["", ""] } else { ["", "x"] };
    for more in ends {
        let mut socket = Socket::open(&c.server, "/v3/watch").await;
        socket.say(&(create(&c.key("k"), "") + more)).await;
        assert_eq!(socket.line().await["result"]["created"], true);
        sockets.push(socket);
    }
    assert_eq!(c.server.metric(WATCHERS), before + 2.0);
    drop(sockets);
    let deadline = Instant::now() + PATIENCE;
    while c.server.metric(WATCHERS) > before {
        assert!(Instant::now() < deadline, "watchers of closed sockets are still there");
        tokio::task::yield_now().await;
    }
});

wire!(alone a_stopping_member_tells_every_socket_why, |c| {
    let mut sockets = Vec::new();
    for n in 0..20 {
        sockets.push(asked(&c.server, "/v3/watch", &create(&c.key(&format!("k{n}")), "")).await);
        sockets[n].line().await;
    }
    let mut kept = asked(&c.server, "/v3/lease/keepalive", r#"{"ID":1}"#).await;
    kept.line().await;
    sockets.push(kept);
    // What comes of it is not known yet.
    let held = r#"{"name":"bA==","lease":"#.to_owned() + &c.grant(600).await.to_string() + "}";
    let mut lock = asked(&c.server, "/v3/lock/lock", &held).await;
    if !is_etcd() {
        lock.line().await;
        let waits = r#"{"name":"bA==","lease":"#.to_owned() + &c.grant(600).await.to_string() + "}";
        sockets.push(asked(&c.server, "/v3/lock/lock", &waits).await);
        sockets.push(asked(&c.server, "/v3/election/observe", r#"{"name":"bm9ib2R5"}"#).await);
        // Some of what is asked for has not come yet, or all.
        sockets.push(asked(&c.server, "/v3/watch", "{").await);
        sockets.push(asked(&c.server, "/v3/kv/range", "{").await);
        for path in ["/v3/watch", "/v3/lease/keepalive", "/v3/kv/range"] {
            sockets.push(Socket::open(&c.server, path).await);
        }
    }
    terminate(&c.server);
    for (number, socket) in sockets.iter_mut().enumerate() {
        let said = socket.line().await;
        let why = if is_etcd() { "error reading from server: EOF" } else { "etcdserver: server stopped" };
        // Before a stream has begun the error stands alone.
        let told = said["error"].get("message").or(said.get("message"));
        assert_eq!(told, Some(&why.into()), "{number}: {said}");
        // Not by a reset: that might have taken the word with it.
        let end = tokio::time::timeout(PATIENCE, socket.0.next()).await.expect("the end in time");
        assert!(matches!(end, Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)))), "{number}: {end:?}");
    }
    drop(sockets);
    // Beside them, the connection of gRPC agrees to its end.
    ends(&c.server).await;
});

wire!(alone a_stop_is_not_held_up_by_who_does_not_go, |c| {
    let mut socket = asked(&c.server, "/v3/watch", &create(&c.key("k"), "")).await;
    socket.line().await;
    terminate(&c.server);
    ends(&c.server).await;
    drop(socket);
});

wire!(leases_are_kept_alive_and_methods_with_one_request_are_answered, |c| {
    let lease = c.grant(60).await;
    let mut socket = Socket::open(&c.server, "/v3/lease/keepalive").await;
    for _ in 0..2 {
        socket.say(&format!(r#"{{"ID":"{lease}"}}"#)).await;
        let kept = &socket.line().await["result"];
        assert_eq!((&kept["ID"], &kept["TTL"]), (&lease.to_string().into(), &"60".into()));
    }
    // etcd waits for an end that does not come.
    if !is_etcd() {
        c.put("k", "1").await;
        let mut socket = Socket::open(&c.server, "/v3beta/kv/range").await;
        socket.say(&format!(r#"{{"key":"{}"}}"#, base64(&c.key("k")))).await;
        assert_eq!(socket.line().await["count"], "1");
        assert!(socket.message().await.is_none());
        let mut socket = Socket::open(&c.server, "/v3/maintenance/snapshot").await;
        socket.say("{}").await;
        assert!(socket.line().await["result"]["blob"].is_string());
    }
});

wire!(with ["--bcrypt-cost", "4"] a_token_comes_as_a_subprotocol, |c| {
    // etcd does not know the token behind the word.
    if is_etcd() {
        return;
    }
    let mut auth = pb::auth_client::AuthClient::new(c.channel.clone());
    let (name, password) = ("root".to_owned(), "secret".to_owned());
    let user = pb::AuthUserAddRequest { name: name.clone(), password: password.clone(), ..Default::default() };
    auth.user_add(user).await.expect("a user");
    let role = pb::AuthUserGrantRoleRequest { user: name.clone(), role: name.clone() };
    auth.user_grant_role(role).await.expect("a role");
    auth.auth_enable(pb::AuthEnableRequest {}).await.expect("auth is on");
    let login = auth.authenticate(pb::AuthenticateRequest { name, password }).await.expect("a token");
    let token = format!("Bearer, {}", login.into_inner().token);
    let nobody = serde_json::Value::Bool(true);
    for (protocol, refused) in [
        (Some(token.as_str()), &serde_json::Value::Null),
        (Some("Bearer"), &nobody),
        (Some("Bearer, "), &nobody),
        (None, &nobody),
    ] {
        let mut socket = Socket::open_as(&c.server, "/v3/watch", protocol).await;
        socket.say(&create(&c.key("k"), "")).await;
        assert_eq!(&socket.line().await["result"]["canceled"], refused, "{protocol:?}");
    }
});
