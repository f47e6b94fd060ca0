//! Handshakes in memory, between the two sides of this module.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

use super::accept::HANDSHAKES_MAX;
use super::*;
use certificates::Authority;

#[path = "../../tests/certificates/mod.rs"]
mod certificates;

fn logger() -> slog::Logger {
    slog::Logger::root(slog::Discard, slog::o!())
}

impl Authority {
    fn settings(&self, file: &str) -> Settings {
        Settings {
            certificate: Some(self.path(&format!("{file}.pem"))),
            key: Some(self.path(&format!("{file}.key"))),
            authority: Some(self.path("ca.pem")),
            certificate_needed: true,
            ..Settings::default()
        }
    }
}

/// Who connects and who is connected to, on a socket of their own. What each of them makes of it: the accepting side the name, the
/// connecting side a byte that came back.
async fn shake(
    acceptor: &Acceptor,
    dialer: &Dialer,
    remote: IpAddr,
) -> (Result<Option<String>, String>, Result<u8, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://localhost:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let mut dialer = dialer.clone();
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut accepted = acceptor.accept(stream, remote).await.map_err(refused)?;
        accepted.stream.write_all(b"7").await.map_err(refused)?;
        Ok(accepted.name.map(|name| name.0.to_string()))
    };
    let dialling = async {
        let mut stream = dialer.call(uri).await.map_err(refused)?.into_inner();
        stream.read_u8().await.map_err(refused)
    };
    tokio::join!(accepting, dialling)
}

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[tokio::test]
async fn both_sides_show_certificates_and_the_name_is_told() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    authority.sign("client", "jane", &[]);
    let acceptor = Acceptor::new(authority.settings("server"), &logger()).unwrap();
    let dialer = Dialer::new(authority.settings("client"), &logger()).unwrap();
    assert_eq!(shake(&acceptor, &dialer, ELSEWHERE).await, (Ok(Some("jane".to_owned())), Ok(b'7')));

    // Asked for by the authority alone, a certificate names no user.
    let settings = Settings { certificate_needed: false, ..authority.settings("server") };
    let acceptor = Acceptor::new(settings, &logger()).unwrap();
    assert_eq!(shake(&acceptor, &dialer, HERE).await, (Ok(None), Ok(b'7')));
    let nameless = Settings { certificate: None, key: None, ..authority.settings("client") };
    let dialer = Dialer::new(nameless, &logger()).unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.0.is_err(), "without a certificate");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_either_side() {
    let (one, other) = (Authority::new(), Authority::new());
    one.sign("server", "a member", &["localhost"]);
    other.sign("client", "jane", &[]);
    let acceptor = Acceptor::new(one.settings("server"), &logger()).unwrap();
    let trusting = Settings { authority: Some(one.path("ca.pem")), ..other.settings("client") };
    let dialer = Dialer::new(trusting, &logger()).unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.0.is_err());
    let dialer = Dialer::new(other.settings("client"), &logger()).unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.1.is_err());
    let dialer = Dialer::new(Settings { unverified: true, ..other.settings("client") }, &logger()).unwrap();
    let acceptor =
        Acceptor::new(Settings { authority: None, certificate_needed: false, ..one.settings("server") }, &logger());
    assert_eq!(shake(&acceptor.unwrap(), &dialer, HERE).await.1, Ok(b'7'), "who does not ask is not told");
}

#[tokio::test]
async fn what_is_revoked_is_refused_as_soon_as_the_list_says_so() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    let serial = authority.sign("client", "jane", &[]);
    authority.sign("other", "joe", &[]);
    authority.revoke("crl.pem", &[99]);
    let settings = Settings { revoked: Some(authority.path("crl.pem")), ..authority.settings("server") };
    let acceptor = Acceptor::new(settings, &logger()).unwrap();
    let dialer = |file| Dialer::new(authority.settings(file), &logger()).unwrap();
    assert!(shake(&acceptor, &dialer("client"), HERE).await.0.is_ok());
    authority.revoke("crl.pem", &[99, serial]);
    let refusal = shake(&acceptor, &dialer("client"), HERE).await.0.unwrap_err();
    assert!(refusal.contains("Revoked"), "{refusal}");
    assert_eq!(shake(&acceptor, &dialer("other"), HERE).await.0, Ok(Some("joe".to_owned())));
}

#[tokio::test]
async fn certificates_that_changed_are_used_and_such_as_cannot_be_are_not() {
    let authority = Authority::new();
    let serial = authority.sign("server", "first", &["localhost"]);
    let acceptor = Acceptor::new(authority.settings("server"), &logger()).unwrap();
    authority.sign("client", "jane", &[]);
    let dialer = Dialer::new(authority.settings("client"), &logger()).unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.1.is_ok());

    fs::write(authority.path("server.pem"), "no certificate").unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.1.is_ok(), "the former goes on");
    authority.sign("stranger", "x", &["localhost"]);
    fs::copy(authority.path("stranger.key"), authority.path("server.key")).unwrap();
    assert!(shake(&acceptor, &dialer, HERE).await.1.is_ok(), "a key without its certificate");
    authority.sign("server", "second", &["localhost"]);
    authority.revoke("crl.pem", &[serial]);
    let strict = Settings { revoked: Some(authority.path("crl.pem")), ..authority.settings("client") };
    let strict = Dialer::new(strict, &logger()).unwrap();
    assert!(shake(&acceptor, &strict, HERE).await.1.is_ok(), "the first would be refused");
}

#[tokio::test]
async fn a_certificate_says_where_its_holder_may_be() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    let acceptor = Acceptor::new(authority.settings("server"), &logger()).unwrap();
    let anywhere = Settings { from_anywhere: true, ..authority.settings("server") };
    let lenient = Acceptor::new(anywhere, &logger()).unwrap();
    for (hosts, remote, good) in [
        (&["127.0.0.1"][..], HERE, true),
        (&["127.0.0.1"], ELSEWHERE, false),
        (&["localhost"], HERE, true),
        (&["localhost"], ELSEWHERE, false),
        (&["192.0.2.1", "localhost"], ELSEWHERE, true),
        (&[], ELSEWHERE, true),
    ] {
        authority.sign("client", "jane", hosts);
        let dialer = Dialer::new(authority.settings("client"), &logger()).unwrap();
        assert_eq!(shake(&acceptor, &dialer, remote).await.0.is_ok(), good, "{hosts:?} at {remote}");
        assert!(shake(&lenient, &dialer, remote).await.0.is_ok());
    }
}

#[tokio::test]
async fn only_allowed_names_and_hosts_come_in() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    authority.sign("client", "jane", &["*.example.org", "127.0.0.1"]);
    let dialer = Dialer::new(authority.settings("client"), &logger()).unwrap();
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (names, hosts, good) in [
        (&["joe", "jane"][..], &[][..], true),
        (&["joe"], &[], false),
        (&[], &["a.example.org"], true),
        (&[], &["a.b.example.org"], false),
        (&[], &["127.0.0.1"], true),
        (&[], &["example.org"], false),
    ] {
        let settings =
            Settings { allowed_names: list(names), allowed_hosts: list(hosts), ..authority.settings("server") };
        let acceptor = Acceptor::new(settings, &logger()).unwrap();
        assert_eq!(shake(&acceptor, &dialer, HERE).await.0.is_ok(), good, "{names:?} {hosts:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_we_made_serves_those_who_do_not_verify_it() {
    let directory = TempDir::new().unwrap();
    let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let (certificate, key) = self_signed(&directory.path().join("fixtures/peer"), &hosts, 1).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let before = fs::read(&certificate).unwrap();
    let settings = Settings { certificate: Some(certificate.clone()), key: Some(key), ..Settings::default() };
    let acceptor = Acceptor::new(settings, &logger()).unwrap();
    let verifying = Dialer::new(Settings::default(), &logger()).unwrap();
    assert!(shake(&acceptor, &verifying, HERE).await.1.is_err());
    let trusting = Dialer::new(Settings { unverified: true, ..Settings::default() }, &logger()).unwrap();
    assert_eq!(shake(&acceptor, &trusting, HERE).await.1, Ok(b'7'));
    self_signed(&directory.path().join("fixtures/peer"), &hosts, 1).unwrap();
    assert_eq!(fs::read(&certificate).unwrap(), before, "it is there");
}

#[tokio::test]
async fn who_says_something_else_than_tls_is_refused_and_nobody_waits_for_him() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    let acceptor = Acceptor::new(authority.settings("server"), &logger()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let stream = listener.accept().await.unwrap().0;
    assert!(acceptor.accept(stream, HERE).await.is_err());
}

/// GHSA-6vch-q96h-7gc3, its first half: nobody keeps a connection that comes to nothing.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_stands_still_ends() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    let acceptor = Acceptor::new(authority.settings("server"), &logger()).unwrap();
    let (near, _far) = tokio::io::duplex(64);
    let error = acceptor.accept(near, HERE).await.err().expect("nobody says anything");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

/// GHSA-6vch-q96h-7gc3, the other half: nor has he any number of them meanwhile.
#[tokio::test(start_paused = true)]
async fn more_handshakes_than_can_be_under_way_are_turned_away() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    let acceptor = Arc::new(Acceptor::new(authority.settings("server"), &logger()).unwrap());
    let mut waiting = tokio::task::JoinSet::new();
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES_MAX {
        let (near, far) = tokio::io::duplex(64);
        silent.push(far);
        let acceptor = acceptor.clone();
        waiting.spawn(async move { acceptor.accept(near, HERE).await.err().map(|error| error.kind()) });
    }
    // Time stands still for as long as any of them has something to do.
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    let error = acceptor.accept(tokio::io::duplex(64).0, HERE).await.err().expect("there are enough");
    assert_eq!(error.to_string(), "too many handshakes are under way");
    while let Some(ended) = waiting.join_next().await {
        assert_eq!(ended.unwrap(), Some(std::io::ErrorKind::TimedOut));
    }
    let error = acceptor.accept(tokio::io::duplex(64).0, HERE).await.err().expect("nobody says anything");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "there is room again");
}

/// Both ends of a connection that show and trust this one certificate, which vouches for itself.
fn vouching_for_itself(
    authority: &Authority,
    file: &str,
    host: &str,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> Settings {
    authority.vouch_for_itself(file, &[host], change);
    Settings { authority: Some(authority.path(&format!("{file}.pem"))), ..authority.settings(file) }
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority_is_taken_if_it_is_the_very_one() {
    let files = Authority::new();
    let own = vouching_for_itself(&files, "own", "localhost", |_| ());
    let acceptor = |settings: &Settings| Acceptor::new(settings.clone(), &logger()).unwrap();
    let dialer = |settings: &Settings| Dialer::new(settings.clone(), &logger()).unwrap();
    let both = shake(&acceptor(&own), &dialer(&own), HERE).await;
    assert_eq!((both.0.map(drop), both.1), (Ok(()), Ok(b'7')));

    // Whose time is over or still to come, and one that only looks like the trusted one.
    let day = rcgen::date_time_ymd;
    let wrong = [
        vouching_for_itself(&files, "over", "localhost", |params| params.not_after = day(2001, 1, 1)),
        vouching_for_itself(&files, "to-come", "localhost", |params| params.not_before = day(2999, 1, 1)),
        Settings {
            certificate: own.certificate.clone(),
            key: own.key.clone(),
            ..vouching_for_itself(&files, "alike", "localhost", |_| ())
        },
    ];
    let nobody_asked = |shown: &Settings| Settings { authority: None, certificate_needed: false, ..shown.clone() };
    let anybody = |shown: &Settings| Settings { unverified: true, ..shown.clone() };
    for wrong in &wrong {
        assert!(shake(&acceptor(&nobody_asked(wrong)), &dialer(wrong), HERE).await.1.is_err(), "server: {wrong:?}");
        assert!(shake(&acceptor(wrong), &dialer(&anybody(wrong)), HERE).await.0.is_err(), "client: {wrong:?}");
    }
    // Of another host, and for the other end.
    let elsewhere = vouching_for_itself(&files, "elsewhere", "elsewhere", |_| ());
    assert!(shake(&acceptor(&nobody_asked(&elsewhere)), &dialer(&elsewhere), HERE).await.1.is_err());
    let for_end = |file: &str, end| {
        vouching_for_itself(&files, file, "localhost", |params| params.extended_key_usages = vec![end])
    };
    let server = for_end("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let client = for_end("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth);
    for (settings, serves) in [(&server, true), (&client, false)] {
        let asked = shake(&acceptor(&nobody_asked(settings)), &dialer(settings), HERE).await.1;
        assert_eq!(asked.is_ok(), serves, "{settings:?}");
        let asked = shake(&acceptor(settings), &dialer(&anybody(settings)), HERE).await.0;
        assert_eq!(asked.is_ok(), !serves, "{settings:?}");
    }

    // Where something may be revoked, none is taken.
    files.revoke("crl.pem", &[99]);
    let listed = Settings { revoked: Some(files.path("crl.pem")), ..own.clone() };
    assert!(shake(&acceptor(&listed), &dialer(&anybody(&own)), HERE).await.0.is_err());
    assert!(shake(&acceptor(&nobody_asked(&own)), &dialer(&listed), HERE).await.1.is_err());
}

#[test]
fn what_is_missing_is_said() {
    let half = Settings { certificate: Some(PathBuf::from("/c")), ..Settings::default() };
    let why = Acceptor::new(half, &logger()).unwrap_err();
    assert_eq!(why, "KeyFile and CertFile must both be present[key: , cert: /c]");
    let nowhere =
        Settings { certificate: Some("/nowhere/c".into()), key: Some("/nowhere/k".into()), ..Settings::default() };
    assert!(Acceptor::new(nowhere, &logger()).unwrap_err().starts_with("open /nowhere/k: "));
}
