//! W: JSON over HTTP/1, as other clients than those of gRPC come. What every route answers is compared with etcd in
//! tests/compat/gateway.py.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

use super::*;

pub(super) const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";

/// A request whose answer is read line by line.
struct Asked {
    connection: TcpStream,
    answer: BufReader<TcpStream>,
}

impl Asked {
    fn open(server: &Server, path: &str, header: &str) -> Asked {
        let address = server.url.strip_prefix("http://").expect("our own url");
        let mut connection = TcpStream::connect(address).expect("the server listens");
        connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let head = format!("POST {path} HTTP/1.1\r\nHost: m0\r\n{header}\r\n\r\n");
        connection.write_all(head.as_bytes()).expect("a request");
        let answer = BufReader::new(connection.try_clone().expect("a socket"));
        Asked { connection, answer }
    }

    fn post(server: &Server, path: &str, json: &str) -> Asked {
        let mut asked = Asked::open(server, path, &format!("Content-Length: {}", json.len()));
        asked.connection.write_all(json.as_bytes()).expect("a request");
        asked
    }

    /// Sends a part of a body in chunks.
    fn say(&mut self, part: &str) {
        let chunk = format!("{:x}\r\n{part}\r\n", part.len());
        self.connection.write_all(chunk.as_bytes()).expect("a request");
    }

    /// The next object of the answer. What frames it in HTTP is left out.
    fn line(&mut self) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(self.answer.read_line(&mut line).expect("a line in time") > 0, "the answer has ended");
            if line.starts_with('{') {
                return serde_json::from_str(line.trim_end()).expect("JSON");
            }
        }
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

wire!(w01_a_watch_as_json_over_http, |c| {
    let before = c.put("k", "0").await;
    let create = format!(r#"{{"create_request":{{"key":"{}"}}}}"#, base64(&c.key("k")));
    let mut watch = Asked::post(&c.server, "/v3/watch", &create);
    let created = &watch.line()["result"];
    assert_eq!(created["created"], true);
    let revision: i64 = created["header"]["revision"].as_str().expect("a string").parse().expect("a number");
    assert!(revision >= before);

    let at = c.put("k", "1").await;
    let event = &watch.line()["result"]["events"][0];
    assert!(event.get("type").is_none(), "a put is the default: {event}");
    assert_eq!(event["kv"]["key"], base64(&c.key("k")));
    assert_eq!(event["kv"]["value"], base64(b"1"));
    assert_eq!(event["kv"]["mod_revision"], at.to_string());
    let at = c.delete("k").await;
    let event = &watch.line()["result"]["events"][0];
    assert_eq!((&event["type"], &event["kv"]["mod_revision"]), (&"DELETE".into(), &at.to_string().into()));
});

wire!(alone w02_a_compacted_start_as_json, |c| {
    c.put("k", "1").await;
    let at = c.put("k", "2").await;
    c.compact(at).await;
    let create = format!(r#"{{"create_request":{{"key":"{}","start_revision":"1"}}}}"#, base64(&c.key("k")));
    let mut watch = Asked::post(&c.server, "/v3/watch", &create);
    assert_eq!(watch.line()["result"]["created"], true);
    let canceled = &watch.line()["result"];
    assert_eq!((&canceled["canceled"], &canceled["compact_revision"]), (&true.into(), &at.to_string().into()));
});

wire!(alone w03_closing_the_connection_frees_the_watcher, |c| {
    let before = c.server.metric(WATCHERS);
    let create = format!(r#"{{"create_request":{{"key":"{}"}}}}"#, base64(&c.key("k")));
    let mut watches: Vec<Asked> = (0..10).map(|_| Asked::post(&c.server, "/v3/watch", &create)).collect();
    for watch in &mut watches {
        assert_eq!(watch.line()["result"]["created"], true);
    }
    assert_eq!(c.server.metric(WATCHERS), before + 10.0);
    for watch in &watches {
        watch.connection.shutdown(std::net::Shutdown::Both).expect("an open socket");
    }
    drop(watches);
    let deadline = Instant::now() + PATIENCE;
    while c.server.metric(WATCHERS) > before {
        assert!(Instant::now() < deadline, "watchers of closed connections are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
});

wire!(requests_may_follow_while_answers_come, |c| {
    let mut watch = Asked::open(&c.server, "/v3/watch", "Transfer-Encoding: chunked");
    let create = format!(r#"{{"create_request":{{"key":"{}","watch_id":"7"}}}}"#, base64(&c.key("k")));
    // Cut where it hurts.
    let (begin, end) = create.split_at(create.len() / 2);
    watch.say(begin);
    watch.say(end);
    assert_eq!(watch.line()["result"]["watch_id"], "7");
    watch.say(r#"{"cancel_request":{"watch_id":7}}"#);
    assert_eq!(watch.line()["result"]["canceled"], true);
});

wire!(a_stream_that_fails_at_once_ends_like_others, |c| {
    let create = format!(r#"{{"create_request":{{"key":"{}"}}}}"#, base64(&[0; 2_200_000]));
    let mut watch = Asked::post(&c.server, "/v3/watch", &create);
    let mut status = String::new();
    watch.answer.read_line(&mut status).expect("an answer");
    assert!(status.starts_with("HTTP/1.1 429 "), "{status}");
    let error = &watch.line()["error"];
    assert_eq!((&error["grpc_code"], &error["http_code"]), (&8.into(), &429.into()));
    assert_eq!(error["http_status"], "Too Many Requests");
});

wire!(with ["--enable-grpc-gateway=false"] without_a_gateway_nothing_is_found, |c| {
    let mut answer = String::new();
    let mut asked = Asked::post(&c.server, "/v3/kv/range", "{}");
    asked.answer.read_line(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
});
