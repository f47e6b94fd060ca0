//! Unix sockets of real processes, for clients: gRPC and HTTP, in the clear and with TLS, by the control tool.

mod certificates;
mod processes;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};

use certificates::Authority;
use processes::{Cluster, PATIENCE, Process, READY};

/// A member that listens on files, and on nothing else for clients.
fn listening(cluster: &mut Cluster, urls: &str, more: Vec<String>) -> Process {
    cluster.more = vec![format!("--listen-client-urls={urls}"), format!("--advertise-client-urls={urls}")];
    cluster.more.extend(more);
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    member
}

fn ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_everwatchctl")).args(arguments).output().expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn health(path: &Path) -> String {
    let mut connection = UnixStream::connect(path).expect("somebody listens");
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"GET /health HTTP/1.0\r\nHost: m\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn clients_come_by_a_file_which_goes_with_the_process() {
    let mut cluster = Cluster::new(1);
    let path = cluster.dir(0).with_extension("sock");
    let url = format!("unix://{}", path.display());
    let audit = cluster.dir(0).with_extension("audit");
    let more = vec![format!("--audit-log-output={}", audit.display())];
    let member = listening(&mut cluster, &url, more.clone());
    for endpoint in [url.clone(), format!("unix:{}", path.display())] {
        let put = ctl(&["--endpoints", &endpoint, "put", "a", "b"]);
        assert_eq!(said(&put), "OK\n");
    }
    assert_eq!(said(&ctl(&["--endpoints", &url, "get", "a"])), "a\nb\n");
    let cluster_health = said(&ctl(&["--endpoints", &url, "endpoint", "health", "--cluster"]));
    assert!(cluster_health.starts_with(&format!("{url} is healthy")), "{cluster_health}");
    assert!(health(&path).ends_with("{\"health\":\"true\",\"reason\":\"\"}"), "{}", health(&path));
    let noted = std::fs::read_to_string(&audit).unwrap();
    assert!(noted.contains("\"remote\":\"unix\""), "{noted}");

    // Another process does not take the place of one that serves.
    let second = Command::new(env!("CARGO_BIN_EXE_everwatch"))
        .env_clear()
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--listen-peer-urls=http://127.0.0.1:0"])
        .args(["--data-dir".as_ref(), cluster.dir(1).as_os_str()])
        .output()
        .expect("it runs");
    assert!(
        said(&second).contains("cannot listen on unix://") && said(&second).contains("in use"),
        "{}",
        said(&second)
    );

    // A process that is killed leaves its file to the next.
    drop(member);
    assert!(path.exists());
    let member = listening(&mut cluster, &url, more);
    assert_eq!(said(&ctl(&["--endpoints", &url, "get", "a"])), "a\nb\n");
    member.signal("-TERM");
    assert_eq!(member.ends().0, Some(0));
    assert!(!path.exists());
}

#[test]
fn tls_is_spoken_on_a_file_too() {
    let authority = Authority::new();
    authority.sign("server", "a member", &["localhost"]);
    authority.sign("client", "jane", &[]);
    let mut cluster = Cluster::new(1);
    let path = cluster.dir(0).with_extension("sock");
    let url = format!("unixs://{}", path.display());
    let file = |name: &str| authority.path(name).display().to_string();
    let more = vec![
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let _member = listening(&mut cluster, &url, more);
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let put = ctl(&["--endpoints", &url, "--cacert", &ca, "--cert", &cert, "--key", &key, "put", "a", "b"]);
    assert_eq!(said(&put), "OK\n");
    let stranger = ctl(&["--endpoints", &url, "--cacert", &ca, "--command-timeout=1s", "put", "a", "b"]);
    assert_ne!(stranger.status.code(), Some(0));
}
