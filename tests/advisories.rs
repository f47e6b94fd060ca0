//! What became of etcd's published security holes here, and of those of the HTTP/2 libraries below it, as far as no other test is
//! about it: real processes, and clients that mean harm. `tests/advisories.txt` has all of them.

mod processes;

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest, PutRequest,
    kv_client::KvClient,
};
use processes::{Cluster, PATIENCE, Process, READY};

/// Types of HTTP/2's frames, and their flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

fn alone(flags: &'static [&'static str]) -> (Cluster, Process) {
    let mut cluster = Cluster::new(1);
    cluster.flags = flags;
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    (cluster, member)
}

/// A connection of HTTP/2, frame by frame.
struct Frames(TcpStream);

impl Frames {
    fn open(address: &str) -> Frames {
        let socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
        let mut frames = Frames(socket);
        frames.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("it reads");
        frames.0.write_all(&frame(SETTINGS, 0, 0, &[])).expect("it reads");
        frames
    }

    /// The type, the flags and the stream of the next frame, and what it holds; none: the connection is closed.
    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("nothing is said"),
            Err(_) => return None,
        }
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((kind, flags, u32::from_be_bytes(stream), payload))
    }

    /// What a call of this method gives: the bytes of its messages, until it ends in whatever way.
    fn call(address: &str, path: &str, token: Option<&str>, message: &[u8]) -> Vec<u8> {
        let mut frames = Frames::open(address);
        let token = token.map(|token| ("token", token));
        let head = request(path, token.as_slice());
        frames.0.write_all(&frame(HEADERS, END_HEADERS, 1, &head)).expect("it reads");
        // It may have been refused by its head.
        let _ = frames.0.write_all(&frame(DATA, END_STREAM, 1, message));
        let mut answer = Vec::new();
        loop {
            match frames.next() {
                Some((DATA, flags, 1, payload)) => {
                    answer.extend(payload);
                    if flags & END_STREAM != 0 {
                        return answer;
                    }
                }
                Some((HEADERS, flags, 1, _)) if flags & END_STREAM != 0 => return answer,
                None | Some((RST_STREAM, _, 1, _) | (GOAWAY, ..)) => return answer,
                Some(_) => {}
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is not so long").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A field that no table remembers.
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [&[0][..], &text(name), &text(value)].concat()
}

/// The head of a call of gRPC.
fn request(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "m"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().chain(more).flat_map(|(name, value)| field(name, value)).collect()
}

/// Has a client send what `next` gives, again and again, until its connection is closed; others are served meanwhile.
fn closes_and_serves_others(member: &Process, first: &[u8], next: impl FnMut() -> Vec<u8> + Send) {
    const BYTES_MAX: usize = 512 << 20;
    let mut attacker = Frames::open(&member.client);
    attacker.0.write_all(first).expect("it reads");
    let mut listening = Frames(attacker.0.try_clone().expect("a socket"));
    member.put("before");
    std::thread::scope(|scope| {
        // What is said to it is taken, lest the server wait with its goodbye.
        scope.spawn(move || while listening.next().is_some() {});
        let mut next = next;
        let attack = scope.spawn(move || {
            let (began, mut sent) = (Instant::now(), 0);
            while sent < BYTES_MAX && began.elapsed() < PATIENCE {
                let bytes = next();
                if attacker.0.write_all(&bytes).is_err() {
                    return true;
                }
                sent += bytes.len();
            }
            let _ = attacker.0.shutdown(std::net::Shutdown::Both);
            false
        });
        while !attack.is_finished() {
            let began = Instant::now();
            assert!(member.has("before"));
            assert!(began.elapsed() < PATIENCE, "others wait");
        }
        assert!(attack.join().expect("it does not panic"), "the connection is never closed");
    });
    assert!(member.has("before"));
}

/// CVE-2023-44487: calls that are cancelled as soon as they are made cost their client nothing, and the server a call each.
#[test]
fn who_cancels_calls_faster_than_they_are_looked_at_is_cut_off() {
    let (_cluster, member) = alone(&[]);
    let head = request("/etcdserverpb.KV/Range", &[]);
    let mut stream = 1;
    closes_and_serves_others(&member, &[], move || {
        let mut burst = Vec::new();
        for _ in 0..10_000 {
            burst.extend(frame(HEADERS, END_HEADERS, stream, &head));
            burst.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            stream += 2;
        }
        burst
    });
}

/// CVE-2024-27316, CVE-2023-45288: a head that goes on for ever, in frames that are full and in such that are empty.
#[test]
fn who_never_ends_the_head_of_a_call_is_cut_off() {
    let (_cluster, member) = alone(&[]);
    let begun = frame(HEADERS, 0, 1, &request("/etcdserverpb.KV/Range", &[]));
    let fields = field("x", "y").repeat(1000);
    closes_and_serves_others(&member, &begun, || frame(CONTINUATION, 0, 1, &fields).repeat(10));
    closes_and_serves_others(&member, &begun, || frame(CONTINUATION, 0, 1, &[]).repeat(1000));
}

/// CVE-2026-33186: what is asked for is what is looked at when it is decided who may ask for it, however the path is written.
#[test]
fn no_other_writing_of_a_path_gets_past_the_door() {
    let (_cluster, member) = alone(&["--bcrypt-cost=4"]);
    let (name, password) = ("root".to_owned(), "secret".to_owned());
    let token = member.ask(async |channel| {
        let mut auth = AuthClient::new(channel);
        let add = AuthUserAddRequest { name: name.clone(), password: password.clone(), ..Default::default() };
        auth.user_add(add).await.expect("before auth is on everybody may");
        let grant = AuthUserGrantRoleRequest { user: name.clone(), role: name.clone() };
        auth.user_grant_role(grant).await.expect("a role");
        auth.auth_enable(AuthEnableRequest {}).await.expect("users count");
        let login = AuthenticateRequest { name: name.clone(), password: password.clone() };
        auth.authenticate(login).await.expect("a token").into_inner().token
    });
    let empty = [0; 5];
    let allowed = Frames::call(&member.client, "/etcdserverpb.Maintenance/Hash", Some(&token), &empty);
    assert!(allowed.len() > 5, "root is answered");
    for path in [
        "/etcdserverpb.Maintenance/Hash",
        "etcdserverpb.Maintenance/Hash",
        "//etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance//Hash",
        "/etcdserverpb.Maintenance/Hash/",
        "/./etcdserverpb.Maintenance/Hash",
        "/x/../etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance/%48ash",
        "/etcdserverpb%2EMaintenance/Hash",
        "/etcdserverpb.Maintenance%2fHash",
        "/etcdserverpb.maintenance/hash",
        "/etcdserverpb.Maintenance/Hash?x",
        "/etcdserverpb.Maintenance/Hash#x",
        "/etcdserverpb.KV/../etcdserverpb.Maintenance/Hash",
        "http://m/etcdserverpb.Maintenance/Hash",
        "*",
        "",
    ] {
        assert_eq!(Frames::call(&member.client, path, None, &empty), b"", "{path}");
    }
    let denied = member.ask(async |channel| KvClient::new(channel).put(PutRequest::default()).await);
    assert!(denied.is_err(), "it serves, and nobody is nobody");
}

/// etcd's PR 22147: whoever claims to send more than anybody may is told so before he has sent it.
#[test]
fn bodies_are_bounded_on_every_socket() {
    let (cluster, member) = alone(&[]);
    let claims = [&[0][..], &u32::MAX.to_be_bytes(), b"and then nothing"].concat();
    for (address, path) in [
        (&cluster.peers[0], "/everwatchpb.Peer/Renew"),
        (&cluster.peers[0], "/everwatchpb.Peer/TimeToLive"),
        (&cluster.peers[0], "/everwatchpb.Peer/Messages"),
        (&cluster.peers[0], "/everwatchpb.Peer/Snapshot"),
        (&cluster.clients[0], "/etcdserverpb.KV/Put"),
        (&cluster.clients[0], "/etcdserverpb.Lease/LeaseTimeToLive"),
        (&cluster.clients[0], "/etcdserverpb.Watch/Watch"),
    ] {
        let mut frames = Frames::open(address);
        frames.0.write_all(&frame(HEADERS, END_HEADERS, 1, &request(path, &[]))).expect("it reads");
        // The call does not end: who waits for the rest waits for ever.
        frames.0.write_all(&frame(DATA, 0, 1, &claims)).expect("it reads");
        loop {
            match frames.next().expect("the connection is good for other calls") {
                (DATA, _, 1, payload) => assert!(payload.is_empty(), "{path}"),
                (HEADERS, flags, 1, _) if flags & END_STREAM != 0 => break,
                (RST_STREAM, _, 1, _) => break,
                _ => {}
            }
        }
    }
    // By HTTP, without end and without saying how much it will be.
    let mut json = TcpStream::connect(&member.client).expect("it listens");
    json.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let head = "POST /v3/kv/put HTTP/1.1\r\nHost: m\r\nTransfer-Encoding: chunked\r\n\r\n";
    json.write_all(head.as_bytes()).expect("it reads");
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let mut chunks = 0;
    while chunks < 64 && json.write_all(chunk.as_bytes()).is_ok() {
        chunks += 1;
    }
    assert!(chunks < 64, "it takes whatever comes");
    member.put("it serves");
}

/// What comes back for a request of HTTP/1: the answer's head in small letters.
fn head_of(member: &Process, request: &str) -> String {
    let mut connection = TcpStream::connect(&member.client).expect("it listens");
    connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
    connection.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    answer.split("\r\n\r\n").next().unwrap_or_default().to_lowercase()
}

/// CVE-2018-1098, CVE-2018-1099: a page of somebody else's must not use this member through the browser of someone who reaches it: not
/// by a name of its own that leads here, nor by asking from where it is.
#[test]
fn pages_of_others_get_nothing_by_http() {
    let (_cluster, member) = alone(&["--host-whitelist=m.example", "--cors=http://good.example:80"]);
    let put = |host: &str, key: &str| {
        // "a" to "z" are keys in base64 of themselves, as far as anybody cares.
        let json = format!(r#"{{"key":"{key}"}}"#);
        let length = json.len();
        format!("POST /v3/kv/put HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{json}")
    };
    for host in ["evil.example", "evil.example:2379", "m.example.evil.example", ""] {
        let refused = head_of(&member, &put(host, "YmFk"));
        assert!(refused.starts_with("http/1.0 421"), "{host}: {refused}");
    }
    assert!(!member.has("bad"));
    let taken = head_of(&member, &put("m.example:2379", "Z29vZA=="));
    assert!(taken.starts_with("http/1.0 200") && member.has("good"), "{taken}");

    // A preflight, and the request after it.
    for method in ["OPTIONS", "GET"] {
        let from = |origin: &str| {
            let ask = format!("{method} /version HTTP/1.0\r\nHost: m.example\r\nOrigin: {origin}\r\n\r\n");
            head_of(&member, &ask)
        };
        for origin in ["http://evil.example:80", "http://good.example.evil.example:80", "null"] {
            let answer = from(origin);
            assert!(!answer.contains("access-control-allow"), "{origin}: {answer}");
        }
        let answer = from("http://good.example:80");
        assert!(answer.contains("access-control-allow-origin: http://good.example:80"), "{answer}");
    }
}

/// CVE-2020-15113: a directory that was there before us keeps what others may do in it, and the operator hears of that.
#[test]
fn a_data_directory_that_others_may_look_into_is_told_of() {
    const WARNING: &str = "others than this user may look into the data directory";
    let cluster = Cluster::new(1);
    let list = cluster.list(1);
    let allow = |mode| fs::set_permissions(cluster.dir(0), fs::Permissions::from_mode(mode)).expect("it is ours");
    fs::create_dir(cluster.dir(0)).expect("it is new");
    for mode in [0o755, 0o770, 0o701] {
        allow(mode);
        let member = cluster.start_with(0, &list, "new");
        let said = member.says(WARNING);
        assert!(said.contains(&format!("{mode:04o}")), "{said}");
        // Whatever that is, what is in it is for nobody else.
        member.says(READY);
        let inside = fs::metadata(cluster.dir(0).join("member")).expect("it is there").permissions();
        assert_eq!(inside.mode() & 0o777, 0o700);
    }
    allow(0o700);
    let member = cluster.start_with(0, &list, "new");
    assert!(!member.says_before(READY).iter().any(|line| line.contains(WARNING)));
    drop(member);
    fs::set_permissions(cluster.dir(0).join("member"), fs::Permissions::from_mode(0o750)).expect("it is ours");
    cluster.start_with(0, &list, "new").says(WARNING);
}
