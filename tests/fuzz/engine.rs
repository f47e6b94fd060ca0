//! Where inputs come from and what becomes of those that fail.
//!
//! A target is a function of the input's bytes. It asserts what must hold and returns a number for what happened; an input
//! that made something new happen is kept in memory, and later inputs are made of it. So the search knows a little of where
//! it has been, without any help of the compiler.
//!
//! A panic in `src/` or in a library is counted as a panic, a failed assertion of the target as a difference. The input under
//! way stands in `target/tmp/fuzz-<target>.current`, for a process that dies at once; an input that takes longer than
//! [`PATIENCE`] ends the process.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

/// An input that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Inputs that did something new and are kept to make others of.
const POOL_MAX: usize = 400;
/// Failures after which a target stops looking.
const FAILURES_MAX: usize = 5;

/// xorshift64*.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) % n as u64) as usize
    }
}

/// An input, read as choices. When it is used up every choice is the first, so a shorter input is a simpler one.
pub(crate) struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Feed<'a> {
        Feed(input)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    pub(crate) fn u64(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        match n {
            0..=1 => 0,
            2..=256 => usize::from(self.byte()) % n,
            _ => (self.u64() >> 1) as usize % n,
        }
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Small numbers, their negatives, and now and then the odd ones.
    pub(crate) fn number(&mut self) -> i64 {
        match self.byte() {
            small @ 0..=199 => i64::from(small % 40),
            negative @ 200..=219 => -i64::from(negative - 199),
            odd => match odd % 6 {
                0 => i64::MAX,
                1 => i64::MIN,
                2 => i64::from(i32::MAX) + 1,
                3 => 1 << (self.byte() % 63),
                4 => i64::MAX - 1,
                _ => self.u64() as i64,
            },
        }
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1).min(self.0.len());
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken.to_vec()
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// A copy with something changed: bits, bytes, pieces left out, repeated, moved, or taken from `other`.
pub(crate) fn mutated(dice: &mut Dice, input: &[u8], other: &[u8], len_max: usize) -> Vec<u8> {
    let mut out = input.to_vec();
    for _ in 0..1 << dice.below(4) {
        let at = dice.below(out.len().max(1));
        let piece = at..(at + 1 + dice.below(16)).min(out.len());
        match dice.below(9) {
            _ if out.is_empty() => out.push(dice.next() as u8),
            0 => out[at] ^= 1 << dice.below(8),
            1 => out[at] = dice.next() as u8,
            2 => out[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            3 => out[at] = out[at].wrapping_add([1, 255][dice.below(2)]),
            4 => drop(out.drain(piece)),
            5 => {
                let copy = out[piece].to_vec();
                let to = dice.below(out.len() + 1);
                out.splice(to..to, copy);
            }
            6 => {
                let fresh: Vec<u8> = (0..1 + dice.below(8)).map(|_| dice.next() as u8).collect();
                out.splice(at..at, fresh);
            }
            7 if !other.is_empty() => {
                let from = dice.below(other.len());
                let to = (from + 1 + dice.below(64)).min(other.len());
                out.splice(at..at, other[from..to].iter().copied());
            }
            _ => out.truncate(at),
        }
    }
    out.truncate(len_max);
    out
}

/// The number for what happened, of anything that tells one thing from another.
pub(crate) fn outcome(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// A message without its numbers, so that it can serve as an outcome.
pub(crate) fn gist(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect()
}

#[derive(Clone)]
struct Failure {
    place: String,
    message: String,
}

impl Failure {
    fn is_difference(&self) -> bool {
        self.place.starts_with("tests/")
    }
}

thread_local! {
    /// Set while an input is under way on this thread; takes what panicked.
    static UNDER_WAY: RefCell<Option<Option<Failure>>> = const { RefCell::new(None) };
}

fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload_as_str().unwrap_or("?").to_owned();
            let place = panic.location().map_or_else(String::new, ToString::to_string);
            let ours = UNDER_WAY.with(|cell| {
                let mut cell = cell.borrow_mut();
                cell.as_mut().map(|failure| failure.get_or_insert(Failure { place, message })).is_some()
            });
            if !ours {
                usual(panic);
            }
        }));
    });
}

fn attempt(run: fn(&[u8]) -> u64, input: &[u8]) -> Result<u64, Failure> {
    UNDER_WAY.with(|cell| *cell.borrow_mut() = Some(None));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(input)));
    let failure = UNDER_WAY.with(|cell| cell.borrow_mut().take()).flatten();
    outcome.map_err(|_| failure.unwrap_or(Failure { place: "?".into(), message: "?".into() }))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

struct Session {
    name: &'static str,
    run: fn(&[u8]) -> u64,
    corpus: PathBuf,
    note: File,
    inputs: Arc<AtomicU64>,
    failures: Vec<Failure>,
    outcomes: BTreeSet<u64>,
    pool: Vec<Vec<u8>>,
}

/// Replays the corpus of a target, then draws inputs of up to `len_max` bytes, for a while.
pub(crate) fn run(name: &'static str, len_max: usize, run: fn(&[u8]) -> u64) {
    run_target(name, len_max, None, run);
}

/// The same; so many inputs, unless it is said how long it shall take.
pub(crate) fn run_some(name: &'static str, len_max: usize, inputs: u64, run: fn(&[u8]) -> u64) {
    run_target(name, len_max, Some(inputs), run);
}

fn run_target(name: &'static str, len_max: usize, some: Option<u64>, run: fn(&[u8]) -> u64) {
    listen_to_panics();
    if let Ok(path) = std::env::var("FUZZ_INPUT") {
        // As it is, so that everything about a failure is seen.
        run(&std::fs::read(&path).expect("the file of one input"));
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = root.join("tests/corpus").join(name);
    let current = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}.current"));
    let inputs = Arc::new(AtomicU64::new(0));
    let session = Session {
        name,
        run,
        corpus,
        note: File::create(&current).expect("the target directory can be written"),
        inputs: inputs.clone(),
        failures: Vec::new(),
        outcomes: BTreeSet::new(),
        pool: Vec::new(),
    };
    let done = Arc::new(AtomicBool::new(false));
    let watchdog = std::thread::spawn({
        let (done, current) = (done.clone(), current.clone());
        move || watch_over(name, &current, &inputs, &done)
    });
    let ended = catch_unwind(AssertUnwindSafe(|| session.go(len_max, some)));
    done.store(true, Ordering::Relaxed);
    watchdog.thread().unpark();
    watchdog.join().expect("it only waits");
    let _ = std::fs::remove_file(&current);
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn watch_over(name: &str, current: &Path, inputs: &AtomicU64, done: &AtomicBool) {
    let (mut seen, mut since) = (u64::MAX, Instant::now());
    while !done.load(Ordering::Relaxed) {
        let now = inputs.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            eprintln!("fuzz target {name}: an input hangs, it is in {}", current.display());
            std::process::abort();
        }
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

impl Session {
    fn go(mut self, len_max: usize, some: Option<u64>) {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&self.corpus) {
            Ok(files) => files.map(|file| file.expect("a readable directory").path()).collect(),
            Err(_) => Vec::new(),
        };
        files.sort();
        for path in &files {
            self.feed(std::fs::read(path).expect("a readable corpus"), Some(path));
        }
        let seed = setting("FUZZ_SEED").unwrap_or(1);
        let mut dice = Dice::new(seed);
        let seconds = setting("FUZZ_SECONDS");
        let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
        let some = some.filter(|_| seconds.is_none());
        for drawn in 0.. {
            let more = some.map_or_else(|| Instant::now() < until, |some| drawn < some);
            if !more || self.failures.len() >= FAILURES_MAX {
                break;
            }
            let input = match dice.below(4) {
                1.. if !self.pool.is_empty() => {
                    let (one, other) = (dice.below(self.pool.len()), dice.below(self.pool.len()));
                    mutated(&mut dice, &self.pool[one], &self.pool[other], len_max)
                }
                _ => (0..dice.below(len_max + 1)).map(|_| dice.next() as u8).collect(),
            };
            self.feed(input, None);
        }
        let (name, inputs, outcomes) = (self.name, self.inputs.load(Ordering::Relaxed), self.outcomes.len());
        let differences = self.failures.iter().filter(|failure| failure.is_difference()).count();
        let panics = self.failures.len() - differences;
        println!(
            "fuzz-target {name}: seed {seed}, {inputs} inputs, {panics} panics, {differences} differences, {outcomes} outcomes"
        );
        assert!(self.failures.is_empty(), "{} inputs failed, see above", self.failures.len());
    }

    fn feed(&mut self, input: Vec<u8>, from: Option<&Path>) {
        self.inputs.fetch_add(1, Ordering::Relaxed);
        self.note(&input);
        match attempt(self.run, &input) {
            Ok(outcome) => {
                let fresh = self.outcomes.insert(outcome);
                if (fresh || from.is_some()) && self.pool.len() < POOL_MAX {
                    if from.is_none() && std::env::var("FUZZ_KEEP").is_ok() {
                        self.save(&format!("{outcome:016x}.bin"), &input);
                    }
                    self.pool.push(input);
                }
            }
            Err(failure) => {
                // One report for each place that fails.
                if self.failures.iter().any(|known| known.place == failure.place) {
                    return;
                }
                let path = match from {
                    Some(path) => path.to_owned(),
                    None => {
                        let least = self.cut_down(input, &failure);
                        self.save(&format!("fail-{:08x}.bin", outcome(&least) as u32), &least)
                    }
                };
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let shown = path.strip_prefix(root).unwrap_or(&path).display();
                println!(
                    "fuzz target {name} failed at {}: {}\n  replay: FUZZ_INPUT={shown} cargo test --test fuzz {name} -- --exact --nocapture",
                    failure.place,
                    failure.message,
                    name = self.name,
                );
                self.failures.push(failure);
            }
        }
    }

    /// Writes down what is about to be tried. The file is kept open: making one anew takes longer than most inputs.
    fn note(&self, input: &[u8]) {
        let _ = self.note.write_all_at(input, 0).and_then(|()| self.note.set_len(input.len() as u64));
    }

    fn save(&self, name: &str, input: &[u8]) -> PathBuf {
        std::fs::create_dir_all(&self.corpus).expect("the corpus can be written");
        let path = self.corpus.join(name);
        std::fs::write(&path, input).expect("the corpus can be written");
        path
    }

    /// The same failure with less input: pieces left out, then bytes made zero. Crude, and bounded in time.
    fn cut_down(&self, mut input: Vec<u8>, failure: &Failure) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(10);
        let fails = |input: &[u8]| attempt(self.run, input).is_err_and(|other| other.place == failure.place);
        let mut piece = input.len().div_ceil(2);
        while piece > 0 {
            let mut at = 0;
            while at < input.len() && Instant::now() < until {
                let less = [&input[..at], &input[(at + piece).min(input.len())..]].concat();
                if fails(&less) { input = less } else { at += piece }
            }
            piece /= 2;
        }
        for at in 0..input.len() {
            let was = std::mem::take(&mut input[at]);
            if was != 0 && (Instant::now() >= until || !fails(&input)) {
                input[at] = was;
            }
        }
        input
    }
}
