//! The clients of the torture test: load on a real cluster, everything recorded, and the verdict of the judge.
//!
//! Runs only when `TORTURE` names the three members' client URLs, which `tests/torture/torture.py` does; otherwise it
//! passes at once. The cluster is new and nobody else uses it. Faults are not its business: whoever started it makes
//! them, says `life 2` (a line on standard input) before it starts the second member again, and `stop` when everything has
//! been healed, and reads what is printed:
//!
//! ```text
//! torture-clients: began                                        the load begins now
//! torture-clients: life 2                                       heard: the second member may be started
//! torture-clients: wrong: …                                      a promise broken, in words; any number of these
//! torture-clients: violation: …
//! torture-clients: acknowledged per 100 ms: 12 30 …             since it began
//! torture-clients: verdict operations=… acknowledged=… unknown=… events=… watches=… revision=… violations=…
//! ```
//!
//! After `stop` it demands that every member serves within [`HEALED`], that leases run out when they should, that all members
//! have the same contents and the same hash, and that every watch reaches the end. The history goes to the file `history` in
//! `TORTURE_OUT` if anything was wrong.

#![allow(unreachable_pub)]

#[path = "torture/ask.rs"]
mod ask;
#[path = "sim/checks/mod.rs"]
mod checks;
#[allow(dead_code)] // the simulator uses more of it
#[path = "sim/dice.rs"]
mod dice;
#[path = "torture/load.rs"]
mod load;
#[path = "torture/watches.rs"]
mod watches;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{HashKvRequest, StatusRequest};
use tokio::sync::watch;

use ask::Members;
use checks::{History, Op, Outcome, Reply, Request, WatchRecord};
use dice::Dice;
use load::Knowledge;

/// Clients that read and write; three of them stay with one member each.
const WRITERS: u32 = 8;
/// Clients that watch, beside the one that watches everything.
const WATCHERS: u32 = 8;
/// After healing everything must be well again within this time. Not how fast it should be: the machine may be busy.
const HEALED: Duration = Duration::from_secs(60);
/// One machine's clocks do not drift apart; what is allowed is their grain.
const DRIFT_PPM: u64 = 1000;

/// How late a lease may end when all is well, and how long after its call a request without an answer may still be carried
/// out: what the server allows one, and a moment.
const LEASE_LATE: Duration = Duration::from_secs(8);

/// What all clients share.
struct Run {
    members: Members,
    /// How often each member has been started.
    lives: Vec<AtomicU64>,
    streams: AtomicU64,
    knowledge: Mutex<Knowledge>,
    ops: Mutex<Vec<Op>>,
    watches: Mutex<Vec<WatchRecord>>,
    /// Set when the load shall end.
    stop: AtomicBool,
    /// Everything below has reached the watch of everything: what may be compacted.
    watched: AtomicI64,
    /// Watches are to end when they have been sent everything up to here; 0: not yet.
    finish: watch::Sender<i64>,
    /// What is wrong and the judge cannot see.
    wrongs: Mutex<Vec<String>>,
    /// Since when all has been well, under one leader until the end; 0: that cannot be said.
    healed: AtomicU64,
    ended: AtomicU64,
    began: Instant,
}

impl Run {
    /// Nanoseconds on the clock of the history.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One recorded call.
    async fn call(&self, client: u32, member: usize, request: Request, limit: Duration) -> Outcome {
        let life = self.lives[member].load(Ordering::SeqCst);
        let call = self.now();
        let answer = tokio::time::timeout(limit, self.members.ask(member, &request)).await;
        let outcome = answer.unwrap_or(Outcome::Unknown);
        let ret = (outcome != Outcome::Unknown).then(|| self.now());
        lock(&self.knowledge).learn(&request, &outcome);
        let mut op = Op { client, call, ret, request, outcome: outcome.clone(), ..Op::default() };
        let answered = match &outcome {
            Outcome::Ok { .. } => true,
            Outcome::Refused(text) => text != ask::NOT_SENT,
            Outcome::Unknown => false,
        };
        if answered {
            op.member = member as u64 + 1;
            // It was started again only after that had been said: between the same count before and after lies one life.
            op.life = if self.lives[member].load(Ordering::SeqCst) == life { life } else { 0 };
        }
        lock(&self.ops).push(op);
        outcome
    }

    fn wrong(&self, what: String) {
        println!("torture-clients: wrong: {what}");
        lock(&self.wrongs).push(what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn torture() {
    let Ok(members) = std::env::var("TORTURE") else { return };
    let members: Vec<String> = members.split(',').map(str::to_owned).collect();
    let seed = std::env::var("TORTURE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let run = runtime.block_on(clients(members, seed));
    drop(runtime);
    judge(&Arc::into_inner(run).expect("the clients have ended"));
}

/// Waits for `stop`, or for the end of the input: whoever started us is gone then. Until then it counts lives.
fn told_to_stop(run: &Arc<Run>) -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    let run = Arc::downgrade(run);
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) && line.trim() != "stop" {
            let member = line.trim().strip_prefix("life ").and_then(|number| number.parse::<usize>().ok());
            if let (Some(member), Some(run)) = (member, run.upgrade()) {
                run.lives[member - 1].fetch_add(1, Ordering::SeqCst);
                println!("torture-clients: life {member}");
            }
            line.clear();
        }
        let _ = tell.send(true);
    });
    told
}

async fn clients(urls: Vec<String>, seed: u64) -> Arc<Run> {
    let run = Arc::new(Run {
        members: Members::new(&urls),
        lives: urls.iter().map(|_| AtomicU64::new(1)).collect(),
        streams: AtomicU64::new(0),
        knowledge: Mutex::default(),
        ops: Mutex::default(),
        watches: Mutex::default(),
        stop: AtomicBool::new(false),
        watched: AtomicI64::new(1),
        finish: watch::channel(0).0,
        wrongs: Mutex::default(),
        healed: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        began: Instant::now(),
    });
    let mut stop = told_to_stop(&run);
    let mut dice = Dice::new(seed);
    println!("torture-clients: began");
    let mut writers = Vec::new();
    for client in 0..WRITERS {
        writers.push(tokio::spawn(load::client(run.clone(), client, Dice::new(dice.next()))));
    }
    let mut watchers = vec![tokio::spawn(watches::everything(run.clone(), WRITERS, Dice::new(dice.next())))];
    for client in WRITERS + 1..=WRITERS + WATCHERS {
        watchers.push(tokio::spawn(watches::client(run.clone(), client, Dice::new(dice.next()))));
    }
    let _ = stop.wait_for(|stop| *stop).await;
    run.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a client does not panic");
    }
    if let Some(last) = healed(&run).await {
        run.finish.send_replace(last);
        let deadline = tokio::time::Instant::now() + HEALED;
        for (number, watcher) in watchers.into_iter().enumerate() {
            let abort = watcher.abort_handle();
            match tokio::time::timeout_at(deadline, watcher).await {
                Ok(ended) => ended.expect("a client does not panic"),
                Err(_) => {
                    abort.abort();
                    run.wrong(format!("watch client {number} has not been sent everything up to {last}"));
                }
            }
        }
    } else {
        watchers.iter().for_each(|watcher| watcher.abort());
    }
    run.ended.store(run.now(), Ordering::Relaxed);
    run
}

/// Every member serves, all have the same contents; the revision of the last change, after which there are no keys and
/// so no lease can make another one.
async fn healed(run: &Run) -> Option<i64> {
    let client = WRITERS + WATCHERS + 1;
    let deadline = Instant::now() + HEALED;
    let members = run.members.count();
    let mut last = 0;
    for member in 0..members {
        let request = Request::Put {
            key: b"k00".to_vec(),
            value: format!("healed{member}").into_bytes(),
            lease: 0,
            prev_kv: true,
        };
        last = insist(run, client, member, request, deadline).await?.0;
    }
    leases_end(run, client, deadline).await?;
    let deadline = Instant::now() + HEALED;
    let mut contents = Vec::new();
    for member in 0..members {
        let request =
            Request::Range { key: vec![0], end: vec![0], limit: 0, revision: last, serializable: member % 2 == 1 };
        contents.push(insist(run, client, member, request, deadline).await?.1);
    }
    if contents.iter().any(|other| *other != contents[0]) {
        run.wrong(format!("contents differ at revision {last}: {contents:?}"));
    }
    same_hash(run, last, deadline).await;
    let request = Request::Delete { key: vec![0], end: vec![0], prev_kv: true };
    let (last, _) = insist(run, client, 0, request, deadline).await?;
    for member in 0..members {
        let request = Request::Range { key: vec![0], end: vec![0], limit: 0, revision: 0, serializable: false };
        insist(run, client, member, request, deadline).await?;
    }
    same_hash(run, last, deadline).await;
    Some(last)
}

/// All is well: nobody renews a lease any more, and they run out. Whether in time the judge says, unless another leader came
/// meanwhile, which gives every lease its full time again.
async fn leases_end(run: &Run, client: u32, deadline: Instant) -> Option<()> {
    let granted = |op: &Op| match &op.outcome {
        Outcome::Ok { reply: Reply::Grant { id, .. }, .. } => Some(*id),
        _ => None,
    };
    let mut ids: BTreeSet<i64> = lock(&run.ops).iter().filter_map(granted).collect();
    let (term, healed) = (terms(run, deadline).await, run.now());
    // One for what was carried out late, one for being late itself, and what the clocks differ. One that lives longer the judge
    // finds in the answers.
    let all_over = Instant::now() + Duration::from_secs(load::TTL_MAX_S + 1) + LEASE_LATE * 2;
    let deadline = all_over + HEALED;
    // Again and again: how late it was is seen to a moment.
    while !ids.is_empty() {
        let last = Instant::now() >= all_over;
        for id in ids.clone() {
            let (_, reply) = insist(run, client, 0, Request::TimeToLive { id, keys: false }, deadline).await?;
            if last || matches!(reply, Reply::TimeToLive { ttl_s: -1, .. }) {
                ids.remove(&id);
            }
        }
    }
    let everything = Request::Range { key: vec![0], end: vec![0], limit: 0, revision: 0, serializable: false };
    insist(run, client, 1, everything, deadline).await?;
    if term.is_some() && terms(run, deadline).await == term {
        run.healed.store(healed, Ordering::Relaxed);
    } else {
        println!("torture-clients: the leader changed after healing: nothing is said of when leases end");
    }
    Some(())
}

/// The term that all members are in, if it is the same.
async fn terms(run: &Run, deadline: Instant) -> Option<u64> {
    let mut terms = BTreeSet::new();
    for member in 0..run.members.count() {
        let mut client = MaintenanceClient::new(run.members.channel(member));
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(left, client.status(StatusRequest {})).await;
        terms.insert(answer.ok()?.ok()?.into_inner().raft_term);
    }
    terms.first().copied().filter(|_| terms.len() == 1)
}

/// Asks until it is answered.
async fn insist(run: &Run, client: u32, member: usize, request: Request, deadline: Instant) -> Option<(i64, Reply)> {
    let mut outcome = Outcome::Unknown;
    while Instant::now() < deadline {
        outcome = run.call(client, member, request.clone(), Duration::from_secs(5)).await;
        if let Outcome::Ok { revision, reply } = outcome {
            return Some((revision, reply));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run.wrong(format!("member {} does not serve after healing: {request:?}: {outcome:?}", member + 1));
    None
}

/// Compaction ends at different times on different members: hashes are compared when it has ended on all.
async fn same_hash(run: &Run, revision: i64, deadline: Instant) {
    let mut hashes = Vec::new();
    while Instant::now() < deadline {
        hashes.clear();
        for member in 0..run.members.count() {
            let request = HashKvRequest { revision };
            let mut client = MaintenanceClient::new(run.members.channel(member));
            let answer = tokio::time::timeout(Duration::from_secs(5), client.hash_kv(request)).await;
            if let Ok(Ok(answer)) = answer {
                let answer = answer.into_inner();
                hashes.push((answer.compact_revision, answer.hash));
            }
        }
        if hashes.len() == run.members.count() && hashes.iter().all(|(compacted, _)| *compacted == hashes[0].0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if hashes.len() < run.members.count() || hashes.iter().any(|hash| *hash != hashes[0]) {
        run.wrong(format!("hashes at revision {revision} differ (compacted at, hash): {hashes:?}"));
    }
}

fn judge(run: &Run) {
    let mut ops = std::mem::take(&mut *lock(&run.ops));
    ops.sort_by_key(|op| op.call);
    let watches = std::mem::take(&mut *lock(&run.watches));
    let healed = Some(run.healed.load(Ordering::Relaxed)).filter(|healed| *healed > 0);
    let end = run.ended.load(Ordering::Relaxed);
    let lease_bound = u64::try_from(LEASE_LATE.as_nanos()).unwrap_or(0);
    let history = History { ops, watches, drift_ppm: DRIFT_PPM, healed, end, lease_bound, rights: None };
    let mut wrongs = lock(&run.wrongs).clone();
    let judged = Instant::now();
    match checks::check(&history) {
        Ok(summary) => {
            let own = history.ops.iter().filter(|op| op.life > 0).count();
            println!("torture-clients: {own} answers of known lives, {} leases over in time", summary.leases_over);
            for watch in &summary.behind {
                wrongs.push(format!("watch {watch} is behind at the end: {:?}", show_head(&history.watches[*watch])));
                println!("torture-clients: violation: {}", wrongs.last().expect("just pushed"));
            }
        }
        Err(violation) => {
            println!("torture-clients: violation: {violation}");
            wrongs.push(violation.to_string());
        }
    }
    println!("torture-clients: judged in {:.1} s", judged.elapsed().as_secs_f64());
    if !wrongs.is_empty()
        && let Ok(directory) = std::env::var("TORTURE_OUT")
        && let Err(error) = write(&history, &wrongs, &format!("{directory}/history"))
    {
        println!("torture-clients: the history could not be written: {error}");
    }
    let acknowledged = |op: &&Op| matches!(op.outcome, Outcome::Ok { .. });
    let mut rates: Vec<u64> = Vec::new();
    for ret in history.ops.iter().filter(acknowledged).filter_map(|op| op.ret) {
        let at = (ret / 100_000_000) as usize;
        rates.resize(rates.len().max(at + 1), 0);
        rates[at] += 1;
    }
    let rates = rates.iter().fold(String::new(), |mut line, rate| {
        let _ = write!(line, " {rate}");
        line
    });
    println!("torture-clients: acknowledged per 100 ms:{rates}");
    println!(
        "torture-clients: verdict operations={} acknowledged={} unknown={} events={} watches={} revision={} violations={}",
        history.ops.len(),
        history.ops.iter().filter(acknowledged).count(),
        history.ops.iter().filter(|op| op.outcome == Outcome::Unknown).count(),
        history
            .watches
            .iter()
            .flat_map(|watch| &watch.messages)
            .map(|(_, message)| message.events().len())
            .sum::<usize>(),
        history.watches.len(),
        lock(&run.knowledge).revision,
        wrongs.len(),
    );
    assert!(wrongs.is_empty(), "{} violations", wrongs.len());
}

/// A watch without what it received.
fn show_head(record: &WatchRecord) -> WatchRecord {
    let last = record.messages.len().saturating_sub(3);
    WatchRecord { messages: record.messages[last..].to_vec(), ..record.clone() }
}

/// The history as text: one line for each call, one for each watch, one for each of its messages.
fn write(history: &History, wrongs: &[String], path: &str) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for wrong in wrongs {
        writeln!(file, "wrong: {wrong}")?;
    }
    for (index, op) in history.ops.iter().enumerate() {
        writeln!(file, "op {index}: {op:?}")?;
    }
    for (index, record) in history.watches.iter().enumerate() {
        writeln!(file, "watch {index}: {:?}", WatchRecord { messages: Vec::new(), ..record.clone() })?;
        for (time, message) in &record.messages {
            writeln!(file, "  {time} {message:?}")?;
        }
    }
    file.flush()
}
