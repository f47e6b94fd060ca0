//! One wrong bit anywhere in a member's directory: it starts as what it was, or says which file is damaged and does not start.
//!
//! A real member writes the directories: puts of all sizes, deletions, transactions, leases, a compaction, over a log of many
//! small segments. There are four of them: after a clean stop; of a running member whose backend is behind its log (the
//! files as they are then are what the death of the process leaves, for nobody reads anything but files at the next start);
//! of one whose log has been truncated, with segments in their second use; and of a member that was stopped between the
//! moment its log says that a received snapshot counts and the moment the snapshot becomes the backend.
//!
//! Then, for each of [`FLIPS`] drawn places, a copy of one of them gets one bit turned and is opened the way a start opens it,
//! elects itself and carries out its log. What comes of it is compared with what the member served when its directory was
//! copied: every key at every revision, leases, members, the hash of the history, the applied index.
//!
//! Places are drawn by region, so that each kind of byte is hit: of the log the segment headers, record headers, bodies,
//! trailers, the last record of all, marks, and what has not been written yet; of a backend the header's fixed part, its two
//! commit slots, the rest of the first page, leaf pages, branch pages and the others. `CORRUPTION_SEED` draws other places,
//! `CORRUPTION_FLIPS` another number of them. `--nocapture` shows the table.
//!
//! The same is asked of the real program, a few times, for its exit code and its last words.

#![allow(clippy::single_range_in_vec_init, reason = "a region is a list of ranges, most often of one")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::auth::Asker;
use everwatch::config::Config;
use everwatch::config::flags::{Request, Values};
use everwatch::mvcc::History;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, request_op,
};
use everwatch::raft::Input;
use everwatch::server::apply_loop::{self, Proposer};
use everwatch::server::handle::Handle;
use everwatch::server::{self, Opened, Tasks, raft_loop};
use everwatch::state::StateMachine;
use everwatch::state::command::Kind;
use everwatch::storage::backend::Bucket;
use everwatch::storage::schema;
use everwatch::storage::snapshot::SnapshotWriter;
use everwatch::storage::wal::{Append, Base, HardState};
use everwatch::types::{Index, MemberId, Revision, Term};
use everwatch::watch::Feeds;
use slog::Logger;

/// Places in all.
const FLIPS: usize = 500;
/// Small enough for many segments, and smaller than the longest record.
const SEGMENT_BYTES: u64 = 48 << 10;
/// A start that takes longer hangs. Long, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a log begins with until it is truncated.
const FIRST_SEGMENT: &str = "member/wal/0000000000000001.wal";

/// Everything a member serves.
#[derive(Clone, PartialEq)]
struct Content {
    revision: Revision,
    compacted: Revision,
    /// What was written since the compaction: revision, key, whether it was put, record.
    history: Vec<(Revision, Bytes, String, Bytes)>,
    /// The keys at the compaction and now.
    keys: [Vec<everwatch::pb::mvccpb::KeyValue>; 2],
    leases: String,
    members: String,
    hash: u32,
}

impl Content {
    fn of(state: &StateMachine) -> Content {
        let (revision, compacted) = (state.kv.revision(), state.kv.compacted());
        let mut history = Vec::new();
        let mut from = compacted.next();
        while from <= revision {
            let sets = match state.kv.history(from, usize::MAX) {
                History::Ready(sets) => sets,
                History::Behind(scan) => {
                    scan.read(usize::MAX).expect("a backend that was opened").into_iter().map(Arc::new).collect()
                }
                History::Compacted { at } => panic!("{from} is after the compaction at {at}"),
            };
            from = sets.last().map_or(revision, |set| set.revision).next();
            for set in sets {
                let row = |change: &everwatch::mvcc::change::Change| {
                    (set.revision, change.key.clone(), format!("{:?}", change.kind), change.record.clone())
                };
                history.extend(set.changes.iter().map(row));
            }
        }
        let keys = [compacted, revision].map(|at| {
            let all = Bytes::from_static(&[0]);
            let request =
                RangeRequest { key: all.clone(), range_end: all, revision: at.0.max(1), ..Default::default() };
            state.kv.range(&request).expect("a revision that exists").kvs
        });
        Content {
            revision,
            compacted,
            history,
            keys,
            leases: format!("{:?}", state.leases.iter().collect::<Vec<_>>()),
            members: format!("{:?} {:?}", state.members, state.conf_state()),
            hash: state.kv.hash_kv(Revision(0)).expect("a backend that was opened").hash,
        }
    }
}

/// A directory and what its member served.
struct Image {
    name: &'static str,
    dir: tempfile::TempDir,
    content: Content,
    applied: Index,
}

/// Where to put what is thrown away again: nothing here depends on what survives a power cut.
fn temporary() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a temporary directory")
}

fn config(dir: &Path, flags: &[&str]) -> Config {
    let mut line = vec!["--data-dir".to_owned(), dir.display().to_string()];
    line.extend(["--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned));
    line.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let Ok(Request::Run(values)) = Values::read(line, []) else { panic!("these flags make sense") };
    let mut config = Config::new(&values).expect("these flags make sense");
    config.wal_segment_bytes = Some(SEGMENT_BYTES);
    config
}

fn logger() -> Logger {
    Logger::root(slog::Discard, slog::o!())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of ours");
    for entry in fs::read_dir(from).expect("a directory of ours") {
        let entry = entry.expect("a directory of ours");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("there is room");
        }
    }
}

/// Xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// A member that has been written to, and its keys as its clients know them.
async fn written(config: &Config, seed: u64) -> (Handle, Tasks) {
    let (handle, tasks) =
        server::start(config, &server::Admission::Founder, &everwatch::tls::Dialer::plain(), &logger())
            .expect("an empty directory");
    tasks.ready().await;
    let mut random = Random::new(seed);
    let mut model = BTreeMap::new();
    let ask =
        async |kind| drop(handle.propose(kind, Asker::Member).await.expect("the only member, and a fine request"));
    for id in 1..=20 {
        ask(Kind::LeaseGrant(LeaseGrantRequest { id, ttl: 36_000 })).await;
    }
    let key = |number: usize| Bytes::from(format!("key{number:04}"));
    for step in 0..420 {
        let number = random.below(150);
        let len = [3, 40, 300, 1500, 6000][random.below(5)] + random.below(40);
        let zeros = random.below(4) == 0;
        let value: Bytes = (0..len).map(|_| if zeros { 0 } else { random.below(256) as u8 }).collect();
        let lease = if random.below(3) == 0 { 11 + random.below(10) as i64 } else { 0 };
        let put = |number| PutRequest { key: key(number), value: value.clone(), lease, ..Default::default() };
        match step % 10 {
            3 => {
                ask(Kind::DeleteRange(DeleteRangeRequest {
                    key: key(number),
                    range_end: key(number + 3),
                    ..Default::default()
                }))
                .await;
                model.retain(|known: &Bytes, _| *known < key(number) || *known >= key(number + 3));
            }
            7 => {
                let puts = [number, number + 200];
                let success =
                    puts.map(|number| RequestOp { request: Some(request_op::Request::RequestPut(put(number))) });
                ask(Kind::Txn(TxnRequest { success: success.to_vec(), ..Default::default() })).await;
                model.extend(puts.map(|number| (key(number), value.clone())));
            }
            _ => {
                ask(Kind::Put(put(number))).await;
                model.insert(key(number), value);
            }
        }
        if step == 250 {
            let revision = handle.view(|state| state.kv.revision().0) - 60;
            ask(Kind::Compaction(CompactionRequest { revision, ..Default::default() })).await;
        }
    }
    for id in 1..=5 {
        ask(Kind::LeaseRevoke(LeaseRevokeRequest { id })).await;
    }
    let served = handle.view(Content::of);
    let keys: BTreeMap<_, _> = served.keys[1].iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
    assert!(keys == model, "the member serves what was acknowledged");
    (handle, tasks)
}

fn image(name: &'static str, handle: &Handle, dir: tempfile::TempDir) -> Image {
    Image { name, dir, content: handle.view(Content::of), applied: handle.status().applied }
}

async fn stopped(seed: u64) -> Image {
    let dir = temporary();
    let (handle, tasks) = written(&config(dir.path(), &[]), seed).await;
    let image = image("stopped", &handle, dir);
    tasks.retire().await;
    tasks.stop().await;
    image
}

async fn killed(seed: u64) -> Image {
    let (dir, living) = (temporary(), temporary());
    let (handle, tasks) = written(&config(living.path(), &["--backend-batch-interval=1h"]), seed).await;
    copy(living.path(), dir.path());
    let image = image("killed", &handle, dir);
    tasks.stop().await;
    image
}

async fn truncated(seed: u64) -> Image {
    let (dir, living) = (temporary(), temporary());
    let flags = ["--backend-batch-interval=5ms", "--snapshot-count=60", "--snapshot-catchup-entries=40"];
    let (handle, tasks) = written(&config(living.path(), &flags), seed).await;
    // When everything is in its backend, and the log without it, its files do not change any more.
    handle.compacted().await;
    let (deadline, first) = (Instant::now() + PATIENCE, living.path().join(FIRST_SEGMENT));
    while first.exists() {
        assert!(Instant::now() < deadline, "the log is not truncated");
        tokio::task::yield_now().await;
    }
    copy(living.path(), dir.path());
    let image = image("truncated", &handle, dir);
    tasks.stop().await;
    image
}

/// The member of another image gets what it has as a snapshot of a later index, and stops before it adopts it.
fn received(from: &Image) -> Image {
    let dir = temporary();
    copy(from.dir.path(), dir.path());
    let booted = boot(dir.path()).expect("an image without damage");
    let member = dir.path().join("member");
    let mut opened = server::open(&config(dir.path(), &[]), &logger()).expect("an image without damage");
    let (index, term) = (Index(booted.applied.0 + 1000), Term(9));
    let mut file = SnapshotWriter::create(&member, index, None).expect("there is room");
    for bucket in Bucket::ALL {
        let mut row = |key: &[u8], value: &[u8]| {
            file.row(bucket, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)).is_ok()
        };
        opened.state.kv.reader().scan(bucket, &[], None, &mut row).expect("a backend that was opened");
    }
    for (row, number) in [(schema::APPLIED_INDEX, index.0), (schema::APPLIED_TERM, term.0)] {
        file.row(Bucket::Meta, Bytes::from_static(row), schema::u64_row(number)).expect("there is room");
    }
    let content = Content::of(&opened.state);
    file.finish().expect("there is room");
    let hard_state = HardState { term, vote: MemberId(0), commit: index };
    let append = Append { reset: Some(Base { index, term }), entries: &[], hard_state: Some(&hard_state) };
    opened.wal.append(&append).and_then(|()| opened.wal.sync()).expect("there is room");
    Image { name: "received", dir, content, applied: index }
}

struct Booted {
    content: Content,
    applied: Index,
}

/// Opens the directory as a start does, elects the member and carries out its log. An error is why it would not run.
fn boot(dir: &Path) -> Result<Booted, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let Opened { mut node, state, mut wal, backend, data_dir } =
        server::open(&config(dir, &[]), &logger()).map_err(|e| words(&e))?;
    let feeds = Feeds::new(1, state.kv.revision());
    let state = RwLock::new(state);
    let mut campaigned = false;
    loop {
        let turn = raft_loop::turn(&mut node);
        let Some(number) = turn.writes.last().map(|write| write.number) else {
            if std::mem::replace(&mut campaigned, true) {
                break;
            }
            node.handle(Input::Campaign).map_err(|e| words(&e))?;
            continue;
        };
        for write in &turn.writes {
            write.append_to(&mut wal).map_err(|e| words(&e))?;
        }
        wal.sync().map_err(|e| words(&e))?;
        node.handle(Input::Persisted { number }).map_err(|e| words(&e))?;
        if !turn.committed.is_empty() {
            let nobody = Proposer { member: 0, boot: 0 };
            let done = apply_loop::turn(&state, &feeds, nobody, turn.committed, &mut |_| {}).map_err(|e| words(&e))?;
            node.handle(Input::Applied(done.applied)).map_err(|e| words(&e))?;
        }
    }
    assert!(node.is_leader(), "the only member elects itself");
    let state = state.into_inner().expect("nobody panicked");
    let booted = Booted { content: Content::of(&state), applied: state.applied() };
    drop((state, backend, data_dir));
    Ok(booted)
}

/// Bytes of one kind in one file.
struct Region {
    image: usize,
    file: PathBuf,
    kind: &'static str,
    ranges: Vec<Range<usize>>,
}

fn number(data: &[u8], at: usize) -> usize {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("four bytes")) as usize
}

/// The parts of a log segment, by the drawing in its format's description. `last` is whether the log ends in it.
fn segment_regions(data: &[u8], last: bool) -> BTreeMap<&'static str, Vec<Range<usize>>> {
    let mut regions: BTreeMap<_, Vec<_>> = BTreeMap::from([("log: segment header", vec![0..64])]);
    let mut at = 64;
    let mut final_record = at..at;
    while data[at..].starts_with(b"EwR1") && data[at + 40] == 1 {
        let body = at + 48..at + 48 + number(data, at + 32).next_multiple_of(8);
        regions.entry("log: record header").or_default().push(at..body.start);
        regions.entry("log: record body").or_default().push(body.clone());
        regions.entry("log: record trailer").or_default().push(body.end..body.end + 8);
        final_record = at..body.end;
        at = body.end + 8;
    }
    if last {
        regions.insert("log: last record", vec![final_record]);
    }
    // Behind a record that nobody relied on, a new commit index for example, there is none.
    if data[at..].starts_with(b"EwR1") {
        regions.insert("log: seal or end mark", vec![at..at + 48]);
        at += 48;
    }
    regions.insert("log: right behind the end", vec![at..(at + 600).min(data.len())]);
    regions.insert("log: not written yet", vec![at..data.len()]);
    regions
}

/// The parts of a backend file.
fn backend_regions(data: &[u8]) -> BTreeMap<&'static str, Vec<Range<usize>>> {
    const PAGE: usize = 4096;
    let mut regions: BTreeMap<_, Vec<_>> = BTreeMap::from([
        ("backend: fixed header", vec![0..64]),
        ("backend: commit slots", vec![64..192, 192..320]),
        ("backend: rest of the first page", vec![320..PAGE]),
    ]);
    for start in (PAGE..data.len()).step_by(PAGE) {
        let page = start..(start + PAGE).min(data.len());
        let kind = match data[start] {
            1 => "backend: leaf pages",
            2 => "backend: branch pages",
            _ if data[page.clone()].iter().all(|byte| *byte == 0) => "backend: empty pages",
            _ => "backend: other pages",
        };
        regions.entry(kind).or_default().push(page);
    }
    regions
}

fn regions_of(dirs: &[&Path]) -> Vec<Region> {
    let mut regions = Vec::new();
    for (image, dir) in dirs.iter().enumerate() {
        let member = dir.join("member");
        let files = |dir: &Path, suffix: &str| {
            let entries = fs::read_dir(dir).expect("a directory of ours").map(|entry| entry.expect("ours").path());
            let mut files: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
            files.sort();
            files
        };
        let logs = files(&member.join("wal"), ".wal");
        let last = logs.last().cloned();
        let mut add = |file: PathBuf, parts: BTreeMap<&'static str, Vec<Range<usize>>>| {
            let file = file.strip_prefix(dir).expect("inside").to_owned();
            regions.extend(parts.into_iter().map(|(kind, ranges)| Region { image, file: file.clone(), kind, ranges }));
        };
        for path in logs {
            let parts = segment_regions(&fs::read(&path).expect("ours"), Some(&path) == last.as_ref());
            add(path, parts);
        }
        for path in files(&member, ".redb") {
            let parts = backend_regions(&fs::read(&path).expect("ours"));
            add(path, parts);
        }
    }
    regions
}

/// One bit of one file.
struct Flip<'a> {
    region: &'a Region,
    at: usize,
    bit: u8,
}

/// As many flips of each kind of byte; of one kind any byte is as likely as another.
fn draw<'a>(regions: &'a [Region], flips: usize, random: &mut Random) -> Vec<Flip<'a>> {
    let mut kinds: BTreeMap<&str, Vec<(&Region, &Range<usize>)>> = BTreeMap::new();
    for region in regions {
        let ranges = region.ranges.iter().filter(|range| !range.is_empty());
        kinds.entry(region.kind).or_default().extend(ranges.map(|range| (region, range)));
    }
    let kinds: Vec<_> = kinds.into_values().collect();
    let mut drawn = Vec::new();
    for turn in 0..flips {
        let ranges = &kinds[turn % kinds.len()];
        let mut place = random.below(ranges.iter().map(|(_, range)| range.len()).sum());
        for (region, range) in ranges {
            if place < range.len() {
                drawn.push(Flip { region, at: range.start + place, bit: random.below(8) as u8 });
                break;
            }
            place -= range.len();
        }
    }
    drawn
}

fn turn_bit(path: &Path, at: usize, bit: u8) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a file of ours");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("inside the file");
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at as u64).expect("inside the file");
}

/// What came of a damaged directory. `Err` is what must never happen.
enum Outcome {
    Refused,
    AsItWas,
}

fn judge(image: &Image, flip: &Flip<'_>, dir: &Path) -> Result<Outcome, String> {
    copy(image.dir.path(), dir);
    turn_bit(&dir.join(&flip.region.file), flip.at, flip.bit);
    let booted = catch_unwind(AssertUnwindSafe(|| boot(dir))).map_err(|_| "it panics".to_owned())?;
    match booted {
        Ok(booted) if booted.applied < image.applied => {
            Err(format!("it goes back from index {} to {}", image.applied, booted.applied))
        }
        Ok(booted) if booted.content != image.content => {
            let now = booted.content.revision;
            Err(format!("it serves something else, revision {now} instead of {}", image.content.revision))
        }
        Ok(_) => Ok(Outcome::AsItWas),
        Err(words) => {
            let file = flip.region.file.file_name().expect("a file").to_string_lossy();
            // A snapshot takes the backend's name before it is read.
            let named = words.contains(&*file) || (file.starts_with("snap-") && words.contains("state.redb"));
            if named { Ok(Outcome::Refused) } else { Err(format!("it names another file than {file}: {words}")) }
        }
    }
}

#[test]
fn one_wrong_bit_is_refused_or_changes_nothing() {
    let from = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (seed, flips) = (from("CORRUPTION_SEED", 1), from("CORRUPTION_FLIPS", FLIPS as u64) as usize);
    println!("SEED {seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut images = runtime.block_on(async { vec![stopped(seed).await, killed(seed).await, truncated(seed).await] });
    images.push(received(&images[0]));
    for image in &images {
        let copied = temporary();
        copy(image.dir.path(), copied.path());
        let booted = boot(copied.path()).unwrap_or_else(|words| panic!("{} without damage: {words}", image.name));
        assert!(booted.content == image.content && booted.applied >= image.applied, "{} without damage", image.name);
    }
    assert!(!images[2].dir.path().join(FIRST_SEGMENT).exists(), "the log was truncated");
    let regions = regions_of(&images.iter().map(|image| image.dir.path()).collect::<Vec<_>>());
    let heads = |image| regions.iter().filter(move |r| r.image == image && r.kind == "log: segment header").count();
    // How much of the truncated log is left depends on how far the backend was.
    let several = |image: usize| heads(image) > if images[image].name == "truncated" { 0 } else { 2 };
    assert!((0..images.len()).all(several), "logs of several segments");
    let drawn = draw(&regions, flips, &mut Random::new(seed));

    // By kind of byte: refused, as it was. And what must not be.
    let mut table: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut times = Vec::new();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..2 {
            let (tell, next, drawn, images) = (tell.clone(), &next, &drawn, &images);
            scope.spawn(move || {
                while let Some(flip) = drawn.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let dir = temporary();
                    let began = Instant::now();
                    let outcome = judge(&images[flip.region.image], flip, dir.path());
                    tell.send((flip, outcome, began.elapsed())).expect("the test listens");
                }
            });
        }
        drop(tell);
        for _ in 0..drawn.len() {
            let Ok((flip, outcome, time)) = told.recv_timeout(PATIENCE) else {
                // The thread cannot be stopped, nor waited for.
                eprintln!("SEED {seed}: a start hangs");
                std::process::abort();
            };
            let Flip { region, at, bit } = flip;
            times.push(time);
            match outcome {
                Ok(Outcome::Refused) => table.entry(region.kind).or_default()[0] += 1,
                Ok(Outcome::AsItWas) => table.entry(region.kind).or_default()[1] += 1,
                Err(what) => {
                    let (image, file) = (images[region.image].name, region.file.display());
                    wrong.push(format!("{image}: {file} byte {at} bit {bit} ({}): {what}", region.kind));
                }
            }
        }
    });
    times.sort();
    println!("{:34} {:>7} {:>9}", "bytes", "refused", "as it was");
    for (kind, [refused, same]) in &table {
        println!("{kind:34} {refused:>7} {same:>9}");
    }
    let (total, refused) = (table.values().flatten().sum::<usize>(), table.values().map(|row| row[0]).sum::<usize>());
    println!("{total} of {flips} right, {refused} refused, {} wrong", wrong.len());
    println!("a start takes {:?} in the middle, at most {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(wrong.is_empty(), "SEED {seed}:\n{}", wrong.join("\n"));
    // What the log says is never guessed.
    for kind in ["log: segment header", "log: record header", "log: record body", "log: last record"] {
        assert_eq!(table[kind][1], 0, "{kind}");
    }
}

/// A member in a process of its own.
struct Program {
    child: Child,
    url: String,
    /// Its log, line by line.
    lines: mpsc::Receiver<String>,
}

impl Program {
    fn start(dir: &Path) -> Program {
        let free =
            || std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
        let (url, peer) = (format!("http://{}", free()), format!("http://{}", free()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_everwatch"));
        command.env_clear().arg("--data-dir").arg(dir).args(["--heartbeat-interval=20", "--election-timeout=200"]);
        command.args([format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}")]);
        // Founded under one peer URL; where it listens is its own affair.
        command.args([format!("--listen-peer-urls={peer}"), "--initial-advertise-peer-urls=http://127.0.0.1:1".into()]);
        command.args(["--name=m0", "--initial-cluster=m0=http://127.0.0.1:1"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let (tell, lines) = mpsc::channel();
        let log = BufReader::new(child.stderr.take().expect("it is a pipe"));
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Program { child, url, lines }
    }

    /// Whether it came to serve clients; otherwise it has ended, and this is all it said.
    fn served(&self) -> Result<(), String> {
        let mut said = String::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains("ready to serve client requests") => return Ok(()),
                Ok(line) => said += &(line + "\n"),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(said),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("neither serves nor ends: {said}"),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_program_names_the_damaged_file_and_exits_with_1() {
    const PUTS: usize = 200;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = temporary();
    let program = Program::start(dir.path());
    program.served().expect("an empty directory");
    // Killed while several clients write: what was answered counts, what was not may be there.
    let acknowledged = runtime.block_on(async {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let channel = tonic::transport::Endpoint::new(program.url.clone()).expect("a url").connect().await;
        let client = KvClient::new(channel.expect("it serves"));
        for writer in 0..4 {
            let (mut client, tell) = (client.clone(), tell.clone());
            tokio::spawn(async move {
                for turn in 0.. {
                    let (key, value) = (format!("{writer}/{turn:05}"), vec![turn as u8; 10 + turn % 900]);
                    let put = PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
                    if client.put(put).await.is_err() || tell.send((key, value)).is_err() {
                        break;
                    }
                }
            });
        }
        let mut acknowledged = Vec::new();
        while acknowledged.len() < PUTS {
            acknowledged.push(told.recv().await.expect("the writers go on"));
        }
        acknowledged
    });
    drop(program);

    let regions = regions_of(&[dir.path()]);
    let kinds = regions.iter().map(|region| region.kind).collect::<std::collections::BTreeSet<_>>().len();
    let mut refused = 0;
    for flip in draw(&regions, kinds, &mut Random::new(7)) {
        let hurt = temporary();
        copy(dir.path(), hurt.path());
        turn_bit(&hurt.path().join(&flip.region.file), flip.at, flip.bit);
        let place = format!("{} byte {} ({})", flip.region.file.display(), flip.at, flip.region.kind);
        let mut program = Program::start(hurt.path());
        match program.served() {
            Err(said) => {
                let code = program.child.wait().expect("it was started").code();
                let file = flip.region.file.file_name().expect("a file").to_string_lossy();
                assert!(code == Some(1) && said.contains(&*file), "{place}: exit code {code:?}, {said}");
                refused += 1;
            }
            Ok(()) => {
                let found = runtime.block_on(async {
                    let channel = tonic::transport::Endpoint::new(program.url.clone()).expect("a url").connect().await;
                    let all = Bytes::from_static(&[0]);
                    let request = RangeRequest { key: all.clone(), range_end: all, ..Default::default() };
                    KvClient::new(channel.expect("it serves")).range(request).await.expect("it serves").into_inner()
                });
                let found: BTreeMap<_, _> = found.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
                let kept = |(key, value): &(String, Vec<u8>)| found.get(key.as_bytes()).is_some_and(|v| v == value);
                assert!(acknowledged.iter().all(kept), "{place}: an acknowledged value is gone or changed");
            }
        }
    }
    println!("{refused} of {kinds} refused");
    assert!(refused >= 5, "only {refused} of {kinds} refused");
}
