//! How a cluster of real processes begins, and how a member that lost its disk is kept out of it.
//!
//! Nothing sleeps: members say in their logs what they have come to, and the tests wait for that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use everwatch::pb::etcdserverpb::cluster_client::ClusterClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{MemberAddRequest, PutRequest, RangeRequest};

/// How long anything that must come may take. Long, because the machine may be busy; never waited out by a passing test.
const PATIENCE: Duration = Duration::from_secs(60);

const READY: &str = "ready to serve client requests";
const WAITS: &str = "this member has no data and waits";
const BOOTSTRAPPED: &str = "has already been bootstrapped";

/// The places of three members; processes come and go.
struct Cluster {
    data: tempfile::TempDir,
    clients: Vec<String>,
    peers: Vec<String>,
}

/// One process, killed when dropped.
struct Process {
    child: Child,
    log: Receiver<String>,
    client: String,
}

impl Cluster {
    fn new() -> Cluster {
        let addresses = || (0..3).map(|_| free_address()).collect();
        Cluster { data: tempfile::tempdir().expect("a directory"), clients: addresses(), peers: addresses() }
    }

    fn dir(&self, n: usize) -> PathBuf {
        self.data.path().join(format!("m{n}"))
    }

    /// The list that names the first `count` members.
    fn list(&self, count: usize) -> String {
        let names: Vec<String> = (0..count).map(|n| format!("m{n}=http://{}", self.peers[n])).collect();
        names.join(",")
    }

    fn start(&self, n: usize) -> Process {
        self.start_with(n, &self.list(3), "new")
    }

    fn start_with(&self, n: usize, list: &str, state: &str) -> Process {
        let (client, peer) = (format!("http://{}", self.clients[n]), format!("http://{}", self.peers[n]));
        let mut command = Command::new(env!("CARGO_BIN_EXE_everwatch"));
        command.env_clear().args(["--name", &format!("m{n}"), "--data-dir"]).arg(self.dir(n));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", list, "--initial-cluster-state", state]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
        let (sender, log) = channel();
        std::thread::spawn(move || {
            // To the end, whoever listens: the process must not be held up by a full pipe.
            lines.for_each(|line| drop(sender.send(line)));
        });
        Process { child, log, client: self.clients[n].clone() }
    }

    /// Loses the disk.
    fn wipe(&self, n: usize) {
        std::fs::remove_dir_all(self.dir(n)).expect("it was there");
    }
}

impl Process {
    /// Waits until it logs a line with `what`; the line.
    fn says(&self, what: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("nothing said of {what:?}: {seen:#?}"),
            }
        }
    }

    /// Waits until it ends; its code and the end of what it said.
    fn ends(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        // The log ends with the process.
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            last = line;
        }
        assert!(Instant::now() < deadline, "it does not end: {last}");
        (self.child.wait().expect("it was started").code(), last)
    }

    fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()));
    }

    /// The answer to a GET.
    fn get(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(&self.client).expect("it listens");
        connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
        connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: m\r\n\r\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("answered");
        answer
    }

    fn client<T>(&self, call: impl AsyncFnOnce(KvClient<tonic::transport::Channel>) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let url = format!("http://{}", self.client);
        runtime.block_on(async { call(KvClient::connect(url).await.expect("it listens")).await })
    }

    fn put(&self, key: &str) {
        let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
        self.client(async |mut client| client.put(put).await).expect("a majority is there");
    }

    fn has(&self, key: &str) -> bool {
        let range = RangeRequest { key: key.to_owned().into(), ..Default::default() };
        self.client(async |mut client| client.range(range).await).expect("a majority is there").into_inner().count == 1
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address nobody listens on, below the ports that the system gives to outgoing connections.
fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let offset = u64::from(std::process::id()) * 211 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 10_000 + offset % 20_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

#[test]
fn two_of_three_found_a_cluster_and_the_third_comes_later() {
    let cluster = Cluster::new();
    let alone = cluster.start(2);
    alone.says(WAITS);
    assert!(alone.get("/health").ends_with("{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"));
    assert!(alone.get("/readyz").contains(" 503 "));
    assert!(alone.get("/livez").contains(" 200 "), "a restart would not help");
    let range = alone.client(async |mut client| client.range(RangeRequest::default()).await);
    assert_eq!(range.expect_err("there is no data").code(), tonic::Code::Unavailable);
    alone.signal("-TERM");
    let (code, last) = alone.ends();
    assert_eq!(code, Some(0), "{last}");
    assert!(!cluster.dir(2).join("member/state.redb").exists(), "it was founded all alone");

    let third = cluster.start(2);
    let first = cluster.start(0);
    third.says(READY);
    first.says(READY);
    first.put("early");
    let second = cluster.start(1);
    second.says(READY);
    assert!(second.has("early"));

    // A founded member asks nobody.
    drop(first);
    drop(third);
    drop(second);
    let again: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    for process in &again {
        process.says(READY);
        assert!(process.has("early"));
    }
}

#[test]
fn a_member_that_lost_its_disk_is_refused_even_if_nobody_answers_at_first() {
    let cluster = Cluster::new();
    let mut members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    members[1].put("precious");

    drop(members.remove(0));
    cluster.wipe(0);
    members.iter().for_each(|member| member.signal("-STOP"));
    let wiped = cluster.start(0);
    wiped.says(WAITS);
    assert!(wiped.get("/health").contains(" 503 "));
    members.iter().for_each(|member| member.signal("-CONT"));
    let (code, last) = wiped.ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
    assert!(members[0].has("precious"));

    // Nor as one that joins.
    let (code, last) = cluster.start_with(0, &cluster.list(3), "existing").ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");

    // One other member knows it, majority or not; and it knows when it is all that is left.
    drop(members.remove(0));
    let (code, last) = cluster.start(0).ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
}

#[test]
fn whoever_was_not_added_does_not_join() {
    let cluster = Cluster::new();
    let joining = |list: &str| {
        let (code, last) = cluster.start_with(1, list, "existing").ends();
        assert_eq!(code, Some(1), "{last}");
        last
    };
    let nobody = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs";
    assert!(joining(&cluster.list(2)).contains(nobody));
    let alone = cluster.start_with(0, &cluster.list(1), "new");
    alone.says(READY);
    assert!(joining(&cluster.list(2)).contains("RemovedMemberIDs:[]}: member count is unequal"));
    assert!(joining(&cluster.list(1)).contains("couldn't find local name"));
    let stranger = format!("m1=http://{}", cluster.peers[1]);
    assert!(joining(&stranger).contains(nobody), "there is nobody else to ask");
    assert!(!cluster.dir(1).join("member/state.redb").exists());
}

#[test]
fn a_member_that_was_added_joins_once() {
    let cluster = Cluster::new();
    let first = cluster.start_with(0, &cluster.list(1), "new");
    first.says(READY);
    first.put("before");
    let peer = format!("http://{}", cluster.peers[1]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = ClusterClient::connect(format!("http://{}", first.client)).await.expect("it listens");
        let add = MemberAddRequest { peer_ur_ls: vec![peer], is_learner: false };
        client.member_add(add).await.expect("the only member agrees");
    });
    // From here on there is no majority without the new member.
    let second = cluster.start_with(1, &cluster.list(2), "existing");
    second.says(READY);
    assert!(second.has("before"));
    second.put("after");

    // With its data it may come back, without it not.
    drop(second);
    let second = cluster.start_with(1, &cluster.list(2), "existing");
    second.says(READY);
    assert!(second.has("after"));
    drop(second);
    cluster.wipe(1);
    let (code, last) = cluster.start_with(1, &cluster.list(2), "existing").ends();
    assert!(code == Some(1) && last.contains(BOOTSTRAPPED), "{code:?} {last}");
}
