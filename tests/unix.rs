//! Unix sockets of real processes: for clients, by the control tool, gRPC and HTTP; and between members. In the clear and with TLS.

mod certificates;
mod processes;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

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

/// Where members meet, each on a file.
struct Meeting {
    cluster: Cluster,
    scheme: &'static str,
    more: Vec<String>,
}

impl Meeting {
    fn path(&self, n: usize) -> std::path::PathBuf {
        self.cluster.dir(n).with_extension("peer")
    }

    fn url(&self, n: usize) -> String {
        format!("{}://{}", self.scheme, self.path(n).display())
    }

    fn list(&self, count: usize) -> String {
        (0..count).map(|n| format!("m{n}={}", self.url(n))).collect::<Vec<_>>().join(",")
    }

    /// One of so many members.
    fn start(&mut self, n: usize, count: usize, state: &str) -> Process {
        let (url, list) = (self.url(n), self.list(count));
        self.cluster.more = vec![format!("--listen-peer-urls={url}"), format!("--initial-advertise-peer-urls={url}")];
        self.cluster.more.extend_from_slice(&self.more);
        self.cluster.start_with(n, &list, state)
    }

    /// Three members found a cluster, one of them is killed and comes back, a fourth joins, and all end.
    fn goes_well(&mut self) {
        let mut members: Vec<Process> = (0..3).map(|n| self.start(n, 3, "new")).collect();
        for member in &members {
            member.says(READY);
        }
        members[0].put("a");
        for member in &members {
            assert!(member.has("a"));
        }
        // Not the leader: the others go on.
        let follows = |member: &Process| matches!(member.ids(), (id, leader) if id != leader);
        let killed = (1..3).find(|n| follows(&members[*n])).expect("one of two leads at most");
        drop(members.remove(killed));
        members[0].put("b");
        members.insert(killed, self.start(killed, 3, "existing"));
        members[killed].says(READY);
        // What it missed came by the file that the killed process left.
        assert!(members[killed].has("b"));

        let endpoint = format!("http://{}", members[0].client);
        let urls = format!("--peer-urls={}", self.url(3));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let added = ctl(&["--endpoints", &endpoint, "member", "add", "m3", &urls]);
            if added.status.success() {
                break;
            }
            // Until all are known to be there again.
            assert!(said(&added).contains("unhealthy cluster") && Instant::now() < deadline, "{}", said(&added));
        }
        members.push(self.start(3, 4, "existing"));
        members[3].says(READY);
        members[3].put("c");
        for member in &members {
            assert!(member.has("c"));
        }
        let table = said(&ctl(&["--endpoints", &endpoint, "member", "list"]));
        for (n, member) in members.into_iter().enumerate() {
            assert!(table.contains(&format!("started, m{n}, {}, http://{}", self.url(n), member.client)), "{table}");
            member.signal("-TERM");
            assert_eq!(member.ends().0, Some(0));
            assert!(!self.path(n).exists());
        }
    }
}

#[test]
fn members_meet_on_files() {
    Meeting { cluster: Cluster::new(4), scheme: "unix", more: Vec::new() }.goes_well();
}

#[test]
fn members_meet_on_files_with_tls() {
    let authority = Authority::new();
    authority.sign("member", "a member", &["localhost"]);
    let file = |name: &str| authority.path(name).display().to_string();
    let more = vec![
        format!("--peer-cert-file={}", file("member.pem")),
        format!("--peer-key-file={}", file("member.key")),
        format!("--peer-trusted-ca-file={}", file("ca.pem")),
        "--peer-client-cert-auth".to_owned(),
    ];
    Meeting { cluster: Cluster::new(4), scheme: "unixs", more }.goes_well();
}
