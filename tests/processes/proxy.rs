//! A network that a test can cut, in either direction, without being root.
//!
//! ```text
//!  member 0 ──▶ proxy of 1 ──▶ member 1      from 0 to 1: what 0 says on it
//!           ◀──            ◀──               from 1 to 0: what 1 answers on it
//! ```
//!
//! Members are told the proxy's address as each other's and listen elsewhere. What is cut is not closed: bytes wait, as they do
//! when packets are lost, and go on when it is healed. Who made a connection is looked up in /proc.
#![allow(dead_code, reason = "each of the tests uses a part")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Whoever is no member.
pub(crate) const OUTSIDE: usize = usize::MAX;
/// How long a process may take to be known after its first connection.
const STRANGE: Duration = Duration::from_secs(10);

/// The proxies of some servers.
pub(crate) struct Wires {
    shared: Arc<Shared>,
    /// Where each server is reached.
    pub(crate) addresses: Vec<String>,
}

#[derive(Default)]
struct Shared {
    /// Processes that are told apart, by their number.
    processes: Mutex<Vec<(usize, u32)>>,
    /// From whom to whom nothing passes.
    cut: Mutex<BTreeSet<(usize, usize)>>,
    changed: Condvar,
    /// How often what waited was lost.
    losses: AtomicU64,
    over: AtomicBool,
}

impl Wires {
    /// In front of these addresses.
    pub(crate) fn to(servers: &[String]) -> Wires {
        let shared = Arc::new(Shared::default());
        let addresses = servers.iter().enumerate().map(|(to, server)| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("an address");
            let address = listener.local_addr().expect("it is bound").to_string();
            let (shared, server) = (shared.clone(), server.clone());
            std::thread::spawn(move || {
                for connection in listener.incoming().map_while(Result::ok) {
                    if shared.over.load(Ordering::SeqCst) {
                        return;
                    }
                    let (shared, server) = (shared.clone(), server.clone());
                    std::thread::spawn(move || shared.connect(&connection, to, &server));
                }
            });
            address
        });
        let addresses = addresses.collect();
        Wires { shared, addresses }
    }

    /// This process is member `n` from now on.
    pub(crate) fn knows(&self, n: usize, process: u32) {
        let mut processes = self.shared.processes.lock().expect("nobody panicked");
        processes.retain(|(member, _)| *member != n);
        processes.push((n, process));
    }

    /// Nothing passes between `n` and `other`.
    pub(crate) fn cut(&self, n: usize, other: usize) {
        self.shared.cut.lock().expect("nobody panicked").extend([(n, other), (other, n)]);
    }

    /// Nothing passes from `n` to `other`.
    pub(crate) fn silence(&self, n: usize, other: usize) {
        self.shared.cut.lock().expect("nobody panicked").insert((n, other));
    }

    /// Nothing passes between `n` and any other server.
    pub(crate) fn isolate(&self, n: usize) {
        (0..self.addresses.len()).filter(|other| *other != n).for_each(|other| self.cut(n, other));
    }

    /// Everything passes, but connections on which something waited are closed, and what waited is lost. So it is after a
    /// cut that was long.
    pub(crate) fn heal_with_losses(&self) {
        self.shared.losses.fetch_add(1, Ordering::SeqCst);
        self.heal();
    }

    /// Everything passes, also what was said in the meantime.
    pub(crate) fn heal(&self) {
        self.shared.cut.lock().expect("nobody panicked").clear();
        self.shared.changed.notify_all();
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.heal();
        // Whoever listens wakes up and sees that it is over.
        self.addresses.iter().for_each(|address| drop(TcpStream::connect(address)));
    }
}

impl Shared {
    fn connect(self: Arc<Shared>, near: &TcpStream, to: usize, server: &str) {
        let Some(from) = self.who(near) else { return };
        if !self.pass((from, to)) {
            return;
        }
        let Ok(far) = TcpStream::connect(server) else { return };
        let (shared, back) = (self.clone(), (far.try_clone(), near.try_clone()));
        let (Ok(back_from), Ok(back_to)) = back else { return };
        std::thread::spawn(move || shared.carry(&back_from, &back_to, (to, from)));
        self.carry(near, &far, (from, to));
    }

    /// Carries bytes until one side ends, which the other is told.
    fn carry(&self, mut from: &TcpStream, mut to: &TcpStream, way: (usize, usize)) {
        let _ = to.set_nodelay(true);
        let mut bytes = vec![0; 64 << 10];
        loop {
            let read = from.read(&mut bytes).unwrap_or(0);
            if !self.pass(way) {
                let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
                return;
            }
            if read == 0 || to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }

    /// Waits until the way is free; whether nothing was lost on it.
    fn pass(&self, way: (usize, usize)) -> bool {
        let losses = self.losses.load(Ordering::SeqCst);
        let cut = self.cut.lock().expect("nobody panicked");
        let blocked = |cut: &mut BTreeSet<_>| cut.contains(&way) && !self.over.load(Ordering::SeqCst);
        let waits = cut.contains(&way);
        drop(self.changed.wait_while(cut, blocked).expect("nobody panicked"));
        !waits || self.losses.load(Ordering::SeqCst) == losses
    }

    /// The member at the other end. It may be so new that nobody has told us of it.
    fn who(&self, connection: &TcpStream) -> Option<usize> {
        let deadline = Instant::now() + STRANGE;
        let (local, remote) = (connection.local_addr().ok()?.port(), connection.peer_addr().ok()?.port());
        while Instant::now() < deadline {
            let processes = self.processes.lock().expect("nobody panicked").clone();
            if processes.is_empty() {
                return Some(OUTSIDE);
            }
            let socket = inode(remote, local)?;
            if let Some((member, _)) = processes.iter().find(|(_, process)| owns(*process, &socket)) {
                return Some(*member);
            }
            std::thread::yield_now();
        }
        None
    }
}

/// The system's name of the socket between these ports of this machine; none once it is closed.
fn inode(local: u16, remote: u16) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let port = |address: &str| address.split(':').nth(1).and_then(|port| u16::from_str_radix(port, 16).ok());
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let ours = port(columns[1]) == Some(local) && port(columns[2]) == Some(remote);
        (ours && columns[9] != "0").then(|| format!("socket:[{}]", columns[9]))
    })
}

fn owns(process: u32, socket: &str) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    files.filter_map(Result::ok).any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == socket))
}
