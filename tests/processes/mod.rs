//! Members as processes of their own, for tests that kill, wipe and start them again.
//!
//! Nothing sleeps: members say in their logs what they have come to, and the tests wait for that.
#![allow(dead_code, reason = "each of the tests uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use everwatch::pb::etcdserverpb::cluster_client::ClusterClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, PutRequest, RangeRequest,
    StatusRequest,
};
use proxy::Wires;
use tonic::transport::Channel;

pub(crate) mod proxy;

/// How long anything that must come may take. Long, because the machine may be busy; never waited out by a passing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const READY: &str = "ready to serve client requests";

/// The places of some members; processes come and go.
pub(crate) struct Cluster {
    data: tempfile::TempDir,
    pub(crate) clients: Vec<String>,
    /// Where the others reach it.
    pub(crate) peers: Vec<String>,
    /// Where it listens for them.
    listens: Vec<String>,
    /// What is between the two, if it can be cut.
    pub(crate) wires: Option<Wires>,
    /// What each is told besides.
    pub(crate) flags: &'static [&'static str],
    /// The same, put together for one test.
    pub(crate) more: Vec<String>,
    /// `http`, or `https` for clients and members.
    pub(crate) scheme: &'static str,
    /// What the members run: this program, or another that takes the same flags.
    pub(crate) program: PathBuf,
}

/// One process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: Receiver<String>,
    pub(crate) client: String,
}

impl Cluster {
    /// Places for so many.
    pub(crate) fn new(places: usize) -> Cluster {
        let addresses = || (0..places).map(|_| free_address()).collect::<Vec<String>>();
        let data = tempfile::tempdir().expect("a directory");
        let peers = addresses();
        Cluster {
            data,
            clients: addresses(),
            listens: peers.clone(),
            peers,
            wires: None,
            flags: &[],
            more: Vec::new(),
            scheme: "http",
            program: PathBuf::from(env!("CARGO_BIN_EXE_everwatch")),
        }
    }

    /// Places for so many, with a network between them that can be cut.
    pub(crate) fn wired(places: usize) -> Cluster {
        let mut cluster = Cluster::new(places);
        let wires = Wires::to(&cluster.listens);
        cluster.peers.clone_from(&wires.addresses);
        cluster.wires = Some(wires);
        cluster
    }

    pub(crate) fn wires(&self) -> &Wires {
        self.wires.as_ref().expect("it was made with them")
    }

    pub(crate) fn dir(&self, n: usize) -> PathBuf {
        self.data.path().join(format!("m{n}"))
    }

    /// The list that names the first `count` members.
    pub(crate) fn list(&self, count: usize) -> String {
        let names: Vec<String> = (0..count).map(|n| format!("m{n}={}://{}", self.scheme, self.peers[n])).collect();
        names.join(",")
    }

    /// One of three founders.
    pub(crate) fn start(&self, n: usize) -> Process {
        self.start_with(n, &self.list(3), "new")
    }

    pub(crate) fn start_with(&self, n: usize, list: &str, state: &str) -> Process {
        let scheme = self.scheme;
        let (client, peer) = (format!("{scheme}://{}", self.clients[n]), format!("{scheme}://{}", self.peers[n]));
        let mut command = Command::new(&self.program);
        command.env_clear().args(["--name", &format!("m{n}"), "--data-dir"]).arg(self.dir(n));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &format!("{scheme}://{}", self.listens[n])]);
        command.args(["--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", list, "--initial-cluster-state", state]);
        command.args(self.flags).args(&self.more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        if let Some(wires) = &self.wires {
            wires.knows(n, child.id());
        }
        let lines = BufReader::new(child.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
        let (sender, log) = channel();
        std::thread::spawn(move || {
            // To the end, whoever listens: the process must not be held up by a full pipe.
            lines.for_each(|line| drop(sender.send(line)));
        });
        Process { child, log, client: self.clients[n].clone() }
    }

    /// Loses the disk.
    pub(crate) fn wipe(&self, n: usize) {
        std::fs::remove_dir_all(self.dir(n)).expect("it was there");
    }
}

impl Process {
    /// Waits until it logs a line with `what`; the line.
    pub(crate) fn says(&self, what: &str) -> String {
        self.says_before(what).pop().expect("the last of them is that line")
    }

    /// The same; and all lines before it.
    pub(crate) fn says_before(&self, what: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if line.contains(what) => {
                    seen.push(line);
                    return seen;
                }
                Ok(line) => seen.push(line),
                Err(_) => panic!("nothing said of {what:?}: {seen:#?}"),
            }
        }
    }

    /// Waits until it ends; its code and the end of what it said.
    pub(crate) fn ends(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        // The log ends with the process.
        while let Ok(line) = self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            last = line;
        }
        assert!(Instant::now() < deadline, "it does not end: {last}");
        (self.child.wait().expect("it was started").code(), last)
    }

    pub(crate) fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()));
    }

    /// The answer to a GET.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(&self.client).expect("it listens");
        connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
        connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: m\r\n\r\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// Whatever `call` asks of it.
    pub(crate) fn ask<T>(&self, call: impl AsyncFnOnce(Channel) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Channel::from_shared(format!("http://{}", self.client)).expect("a URL");
        runtime.block_on(async { call(endpoint.connect().await.expect("it listens")).await })
    }

    pub(crate) fn try_put(&self, key: &str) -> Result<(), tonic::Status> {
        let put = PutRequest { key: key.to_owned().into(), ..Default::default() };
        self.ask(async |channel| KvClient::new(channel).put(put).await).map(|_| ())
    }

    pub(crate) fn put(&self, key: &str) {
        self.try_put(key).expect("a majority is there");
    }

    pub(crate) fn try_has(&self, key: &str) -> Result<bool, tonic::Status> {
        let range = RangeRequest { key: key.to_owned().into(), ..Default::default() };
        self.ask(async |channel| KvClient::new(channel).range(range).await).map(|answer| answer.into_inner().count == 1)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.try_has(key).expect("a majority is there")
    }

    /// Its id, and that of the leader it knows.
    pub(crate) fn ids(&self) -> (u64, u64) {
        let status = self.ask(async |channel| MaintenanceClient::new(channel).status(StatusRequest {}).await);
        let status = status.expect("it says how it is").into_inner();
        (status.header.expect("there is one").member_id, status.leader)
    }

    /// Adds a member that will be reached at this address. Its id.
    pub(crate) fn add(&self, peer: &str, is_learner: bool) -> u64 {
        let add = MemberAddRequest { peer_ur_ls: vec![format!("http://{peer}")], is_learner };
        let answer = self.ask(async |channel| ClusterClient::new(channel).member_add(add).await);
        answer.expect("a majority agrees").into_inner().member.expect("it is named").id
    }

    /// Makes a learner a voter.
    pub(crate) fn promote(&self, id: u64) -> Result<(), tonic::Status> {
        let promote = MemberPromoteRequest { id };
        self.ask(async |channel| ClusterClient::new(channel).member_promote(promote).await).map(|_| ())
    }

    /// Removes a member; those who are left.
    pub(crate) fn remove(&self, id: u64) -> Vec<Member> {
        let remove = MemberRemoveRequest { id };
        let answer = self.ask(async |channel| ClusterClient::new(channel).member_remove(remove).await);
        answer.expect("a majority agrees").into_inner().members
    }

    /// The members it knows.
    pub(crate) fn members(&self) -> Vec<Member> {
        let list = MemberListRequest { linearizable: false };
        let answer = self.ask(async |channel| ClusterClient::new(channel).member_list(list).await);
        answer.expect("it asks nobody").into_inner().members
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address nobody listens on, below the ports that the system gives to outgoing connections.
pub(crate) fn free_address() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let offset = u64::from(std::process::id()) * 211 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 10_000 + offset % 20_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// All files of a directory.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("a file"));
        }
    }
    found
}
