//! TLS of real processes: between members, towards clients of gRPC and HTTP, and while certificates change.

mod certificates;
mod processes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use certificates::Authority;
use everwatch::client::{self, Client};
use everwatch::pb::authpb::UserAddOptions;
use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, PutRequest, RangeRequest,
};
use everwatch::tls::{Dialer, Settings, ask_anybody};
use http_body_util::BodyExt;
use hyper_util::rt::TokioExecutor;
use processes::{Cluster, PATIENCE, READY};
use tonic::transport::Channel;
use tonic::{Code, Status};

fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

/// Members whose certificates this authority signed, which ask everybody for one.
fn cluster(authority: &Authority, places: usize) -> Cluster {
    authority.sign("server", "a member", &["127.0.0.1", "localhost"]);
    showing(authority, "server", "ca", places)
}

/// Members that show this certificate, and trust this authority.
fn showing(authority: &Authority, certificate: &str, trusted: &str, places: usize) -> Cluster {
    let file = |name: &str, end: &str| authority.path(&format!("{name}.{end}")).display().to_string();
    let mut more = Vec::new();
    for side in ["", "peer-"] {
        more.extend([format!("--{side}cert-file"), file(certificate, "pem")]);
        more.extend([format!("--{side}key-file"), file(certificate, "key")]);
        more.extend([format!("--{side}trusted-ca-file"), file(trusted, "pem"), format!("--{side}client-cert-auth")]);
    }
    let mut cluster = Cluster::new(places);
    (cluster.more, cluster.scheme) = (more, "https");
    cluster
}

/// What a client with this certificate says; with no name: one without.
fn settings(authority: &Authority, name: &str) -> Settings {
    let file = |end: &str| (!name.is_empty()).then(|| authority.path(&format!("{name}.{end}")));
    Settings {
        certificate: file("pem"),
        key: file("key"),
        authority: Some(authority.path("ca.pem")),
        ..Settings::default()
    }
}

/// A connection of its own, and what is done with it.
fn ask<T>(address: &str, settings: Settings, call: impl AsyncFnOnce(Channel) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dialer = Dialer::new(settings, &logger()).unwrap();
        let endpoint = [format!("https://{address}")];
        let client = Client::dialling(&endpoint, 1, &client::Settings::default(), &dialer).unwrap();
        tokio::time::timeout(PATIENCE, call(client.channel(0, 0))).await.expect("an answer")
    })
}

fn put(address: &str, settings: Settings, key: &'static str) -> Result<(), Status> {
    let put = PutRequest { key: key.into(), ..Default::default() };
    ask(address, settings, async |channel| KvClient::new(channel).put(put).await.map(drop))
}

fn has(address: &str, settings: Settings, key: &'static str) -> Result<bool, Status> {
    let range = RangeRequest { key: key.into(), ..Default::default() };
    ask(address, settings, async |channel| Ok(KvClient::new(channel).range(range).await?.into_inner().count == 1))
}

/// The answer to a request by HTTP/1 of a client without a certificate, or why there was none.
fn get(address: &str, path: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = ask_anybody("localhost", stream)?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: m\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn three_members_agree_and_take_nobody_without_a_certificate() {
    let authority = Authority::new();
    let mut cluster = cluster(&authority, 3);
    // Where a container asks for health: without TLS, it need not have a certificate.
    cluster.more.extend(["--listen-metrics-urls".to_owned(), "http://127.0.0.1:0".to_owned()]);
    authority.sign("client", "jane", &[]);
    let members: Vec<_> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    let jane = || settings(&authority, "client");
    for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
        put(&cluster.clients[n], jane(), key).unwrap();
    }
    for address in &cluster.clients {
        assert!(has(address, jane(), "a").unwrap() && has(address, jane(), "c").unwrap());
    }

    put(&cluster.clients[0], settings(&authority, ""), "x").expect_err("without a certificate");
    let other = Authority::new();
    other.sign("client", "jane", &[]);
    let forged = Settings { authority: Some(authority.path("ca.pem")), ..settings(&other, "client") };
    put(&cluster.clients[0], forged, "x").expect_err("with one of somebody else's");
    for address in [&cluster.clients[0], &cluster.peers[0]] {
        assert!(get(address, "/health").is_err(), "HTTP without a certificate");
    }
    let plain = TcpStream::connect(&cluster.clients[0]).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        // The alert of TLS, or nothing at all.
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    });
    assert!(!plain.unwrap_or_default().starts_with(b"HTTP"), "what is not TLS is not answered");
    assert!(!has(&cluster.clients[1], jane(), "x").unwrap());
}

/// As `openssl req -x509` makes one by default.
#[test]
fn members_and_clients_agree_with_one_certificate_that_is_its_own_authority() {
    let files = Authority::new();
    files.vouch_for_itself("own", &["127.0.0.1", "localhost"], |_| ());
    let mut cluster = showing(&files, "own", "own", 3);
    cluster.more.extend(["--listen-metrics-urls".to_owned(), "http://127.0.0.1:0".to_owned()]);
    let members: Vec<_> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    let own = || Settings { authority: Some(files.path("own.pem")), ..settings(&files, "own") };
    put(&cluster.clients[0], own(), "a").unwrap();
    assert!(has(&cluster.clients[2], own(), "a").unwrap());
    // One that looks the same is none of them.
    files.vouch_for_itself("alike", &["127.0.0.1", "localhost"], |_| ());
    let alike = Settings { authority: Some(files.path("own.pem")), ..settings(&files, "alike") };
    put(&cluster.clients[0], alike, "x").expect_err("with one of somebody else's");
}

/// Connections that are made one after the other, eight at a time, while certificates and keys of both sides are written anew without
/// a pause: also between a key and its certificate, which do not change in one step.
#[test]
fn certificates_change_during_a_thousand_connections_and_none_fails() {
    const CONNECTIONS: usize = 1000;
    const ROTATIONS_MIN: usize = 20;
    let authority = Authority::new();
    let cluster = cluster(&authority, 1);
    authority.sign("client", "jane", &[]);
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    let endpoint = [format!("https://{}", cluster.clients[0])];
    let jane = settings(&authority, "client");
    let (done, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let rotating = std::thread::spawn({
        let (done, ends) = (done.clone(), ends.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                authority.sign("server", "a member", &["127.0.0.1"]);
                authority.sign("client", "jane", &[]);
                ends.fetch_add(1, Ordering::Relaxed);
            }
            authority
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (failures, made) = runtime.block_on(async {
        // Who stays is what reads certificates anew; each client makes a connection of its own.
        let dialer = Dialer::new(jane, &logger()).unwrap();
        let client = || Client::dialling(&endpoint, 1, &client::Settings::default(), &dialer).unwrap();
        let put = async |client: &Client| {
            let put = PutRequest { key: "k".into(), ..Default::default() };
            let asked = tokio::time::timeout(PATIENCE, KvClient::new(client.channel(0, 0)).put(put)).await;
            asked.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))).map(drop)
        };
        let first = client();
        put(&first).await.unwrap();
        let (mut failures, mut made) = (Vec::new(), 0);
        while made < CONNECTIONS || ends.load(Ordering::Relaxed) < ROTATIONS_MIN {
            let asked = futures_util::future::join_all((0..8).map(async |_| put(&client()).await)).await;
            failures.extend(asked.into_iter().filter_map(Result::err).map(|status| format!("{made}: {status}")));
            made += 8;
        }
        // Connections stay as they were made.
        failures.extend(put(&first).await.err().map(|status| format!("the first: {status}")));
        (failures, made)
    });
    done.store(true, Ordering::Relaxed);
    let authority = rotating.join().unwrap();
    println!("{made} connections, {} rotations, {} failures", ends.load(Ordering::Relaxed), failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    // What has been in use is what is there now: the first is refused by whoever knows that it was revoked.
    authority.revoke("crl.pem", &[1]);
    let strict = Settings { revoked: Some(authority.path("crl.pem")), ..settings(&authority, "client") };
    put(&cluster.clients[0], strict, "k").unwrap();
}

/// GHSA-3wh4-j44w-pg92: a socket for HTTP of its own must not leave that for gRPC without the list.
#[test]
fn what_is_revoked_is_refused_on_every_socket() {
    let authority = Authority::new();
    let mut cluster = cluster(&authority, 1);
    let revoked = authority.sign("client", "jane", &[]);
    authority.sign("other", "joe", &[]);
    authority.revoke("crl.pem", &[]);
    let http = processes::free_address();
    let crl = authority.path("crl.pem").display().to_string();
    let more =
        ["--listen-client-http-urls", &format!("https://{http}"), "--client-crl-file", &crl, "--peer-crl-file", &crl];
    cluster.more.extend(more.map(str::to_owned));
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    put(&cluster.clients[0], settings(&authority, "client"), "a").unwrap();
    authority.revoke("crl.pem", &[revoked]);
    for address in [&cluster.clients[0], &http, &cluster.peers[0]] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let knocks = |name: &str| {
            let mut dialer = Dialer::new(settings(&authority, name), &logger()).unwrap();
            let uri: http::Uri = format!("https://{address}").parse().unwrap();
            runtime.block_on(async move {
                let mut stream = tower::Service::call(&mut dialer, uri).await?.into_inner();
                // A server of HTTP/2 speaks first, and so does one that has looked at a certificate and does not like it.
                tokio::io::AsyncWriteExt::write_all(
                    &mut stream,
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                )
                .await?;
                tokio::io::AsyncReadExt::read_u8(&mut stream).await
            })
        };
        assert!(knocks("client").is_err(), "{address}");
        assert!(knocks("other").is_ok(), "{address}");
    }
}

#[test]
fn a_certificate_names_a_user_to_grpc_and_to_nobody_else() {
    let authority = Authority::new();
    let cluster = cluster(&authority, 1);
    for name in ["root", "jane"] {
        authority.sign(name, name, &[]);
    }
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    let address = &cluster.clients[0];
    let set_up: Result<(), Status> = ask(address, settings(&authority, "jane"), async |channel| {
        let mut auth = AuthClient::new(channel);
        for name in ["root", "jane"] {
            let options = Some(UserAddOptions { no_password: true });
            auth.user_add(AuthUserAddRequest { name: name.into(), options, ..Default::default() }).await?;
        }
        auth.user_grant_role(AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() }).await?;
        auth.auth_enable(AuthEnableRequest {}).await.map(drop)
    });
    set_up.unwrap();
    put(address, settings(&authority, "root"), "a").unwrap();
    let denied = put(address, settings(&authority, "jane"), "a").unwrap_err();
    assert_eq!((denied.code(), denied.message()), (Code::PermissionDenied, "etcdserver: permission denied"));

    // CVE-2018-16886: by the gateway, root's certificate is nobody's.
    let mut dialer = Dialer::new(settings(&authority, "root"), &logger()).unwrap();
    let uri: http::Uri = format!("https://{address}").parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async move {
        let stream = tower::Service::call(&mut dialer, uri.clone()).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        let body = http_body_util::Full::new(bytes::Bytes::from(r#"{"key":"YQ=="}"#));
        let answer = send.send_request(http::Request::post(format!("{uri}v3/kv/put")).body(body).unwrap()).await;
        let body = answer.expect("it is answered").into_body().collect().await.unwrap().to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    });
    assert!(answer.contains("user name is empty"), "{answer}");
}

#[test]
fn members_that_make_their_certificates_find_each_other() {
    let mut cluster = Cluster::new(3);
    cluster.scheme = "https";
    cluster.flags = &["--auto-tls", "--peer-auto-tls"];
    let members: Vec<_> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    let unverified = || Settings { unverified: true, ..Settings::default() };
    put(&cluster.clients[0], unverified(), "a").unwrap();
    assert!(has(&cluster.clients[2], unverified(), "a").unwrap());
    assert!(get(&cluster.clients[1], "/health").unwrap().contains("\"true\""));
    assert!(cluster.dir(0).join("fixtures/peer/cert.pem").exists());
}

#[test]
fn a_founder_asks_a_cluster_that_wants_certificates() {
    let authority = Authority::new();
    authority.sign("jane", "jane", &[]);
    let place = cluster(&authority, 1);
    let registry = place.start_with(0, &place.list(1), "new");
    registry.says(READY);
    let size = PutRequest { key: "/_etcd/registry/t/_config/size".into(), value: "1".into(), ..Default::default() };
    let jane = settings(&authority, "jane");
    ask(&place.clients[0], jane, async |channel| KvClient::new(channel).put(size).await).expect("written");

    let mut founders = Cluster::new(1);
    let file = |name: &str| authority.path(name).display().to_string();
    founders.more = vec![
        "--discovery-token=t".to_owned(),
        format!("--discovery-endpoints=https://{}", place.clients[0]),
        "--discovery-insecure-transport=false".to_owned(),
        format!("--discovery-cacert={}", file("ca.pem")),
    ];
    let nobody = founders.start_with(0, "", "new");
    nobody.says("retry connecting to discovery service");
    drop(nobody);
    founders
        .more
        .extend([format!("--discovery-cert={}", file("jane.pem")), format!("--discovery-key={}", file("jane.key"))]);
    let founder = founders.start_with(0, "", "new");
    founder.says(READY);
    founder.put("key");
    assert!(founder.has("key"));
}
