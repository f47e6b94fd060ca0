//! The control tool's lock, when the endpoint that it talks to goes silent.

mod processes;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};

use everwatch::pb::etcdserverpb::LeaseTimeToLiveRequest;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use processes::{Cluster, PATIENCE, READY};

/// An address whose connections lead to a server, until it falls silent: then it goes on accepting and reading, and says nothing.
struct Endpoint {
    address: String,
    silent: Arc<AtomicBool>,
    /// Something was said to a client.
    said: Receiver<()>,
}

impl Endpoint {
    fn of(server: String) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (silent, (saying, said)) = (Arc::new(AtomicBool::new(false)), channel());
        let falls = silent.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&server)) else { return };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket");
                let (ask, answer) = ((clone(&client), clone(&server)), (server, client));
                let (silent, saying) = (falls.clone(), saying.clone());
                std::thread::spawn(move || carry(ask, || true));
                let says = move || !silent.load(Ordering::Acquire) && saying.send(()).is_ok();
                std::thread::spawn(move || carry(answer, says));
            }
        });
        Endpoint { address, silent, said }
    }
}

/// Carries bytes on, as long as that is wanted of them.
fn carry((mut from, mut to): (TcpStream, TcpStream), wanted: impl Fn() -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if wanted() && to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

#[test]
fn a_lock_is_kept_when_the_endpoint_that_renews_it_goes_silent() {
    let cluster = Cluster::new(1);
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    let (first, second) = (Endpoint::of(member.client.clone()), Endpoint::of(member.client.clone()));
    let mut lock = Command::new(env!("CARGO_BIN_EXE_everwatchctl"))
        .args(["--endpoints", &format!("{},{}", first.address, second.address), "lock", "--ttl=12", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut key = String::new();
    BufReader::new(lock.stdout.take().expect("a pipe")).read_line(&mut key).expect("it says what it holds");
    let lease = key.trim().strip_prefix("name/").and_then(|id| i64::from_str_radix(id, 16).ok());
    let id = lease.unwrap_or_else(|| panic!("not a key of the lock: {key:?}"));
    first.silent.store(true, Ordering::Release);

    // A third of its life until it is to be renewed, and a third until the second endpoint is asked: then little is left.
    let mut left = 0;
    while left <= 6 {
        second.said.recv_timeout(PATIENCE).expect("the second endpoint is asked");
        let ask = LeaseTimeToLiveRequest { id, keys: false };
        let answer = member.ask(async |channel| LeaseClient::new(channel).lease_time_to_live(ask).await);
        left = answer.expect("the member answers").into_inner().ttl;
        assert!(left > 0, "the lease has run out");
    }
    lock.kill().and_then(|()| lock.wait()).expect("it still runs");
}
