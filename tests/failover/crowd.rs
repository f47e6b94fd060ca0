//! A hundred watchers of many shapes, on streams of two tempers.
//!
//! A *wary* stream wants a member that has a leader and asks its connection for signs of life: it has to leave a member that
//! is cut off or stands still. A *patient* one does neither: there it has to stay, and go on when the member is back. When the
//! connection breaks both go on elsewhere.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::client::resume::News;
use everwatch::client::{Client, Heard, Want, Watch};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Status;

use crate::judge::{Record, Told, from};
use crate::writer::key;

/// Streams on the member that most watchers stand on, and on each of the others: how many watchers each has. Every third is
/// patient.
const MOST: &[usize] = &[14, 12, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
const FEWER: &[usize] = &[8, 7, 2, 1, 1, 1, 1, 1, 1, 1, 1];
/// While a watcher waits for the last revision, its member is asked that often how far it is.
const ASK: Duration = Duration::from_millis(200);
/// While it does not, it asks after so many responses.
const ASK_AFTER: usize = 50;

/// A move of a stream from one member to another.
#[derive(Clone, Debug)]
pub struct Move {
    pub lost: Instant,
    pub why: Status,
    /// When it was served again.
    pub back: Option<Instant>,
}

/// A stream as it is now, and all that became of it.
pub struct Stream {
    pub wary: bool,
    /// The member that serves it.
    pub at: Option<usize>,
    pub moves: Vec<Move>,
    pub records: Vec<Record>,
    /// Changes it was sent without having asked.
    pub repeated: u64,
    /// All its watchers have been told everything.
    pub finished: bool,
}

/// All streams.
pub struct Crowd {
    streams: Vec<Arc<Mutex<Stream>>>,
    tasks: Vec<JoinHandle<()>>,
    changed: Arc<Notify>,
    /// Up to where all are to be told; 0: that is not known.
    finish: watch::Sender<i64>,
}

/// The clients of the two tempers.
pub struct Clients {
    pub wary: Client,
    pub patient: Client,
}

/// The shape of a watcher, by its number, when the store is at `revision`: what it watches, and with what.
pub fn shape(number: usize, revision: i64) -> Want {
    let prefix = |prefix: &'static str| (Bytes::from(format!("{prefix}/")), Bytes::from(format!("{prefix}0")));
    let (key, range_end) = match number % 6 {
        0 => (key(["a", "b", "c", "d"][number / 6 % 4], number as u64 % 10), Bytes::new()),
        1 => prefix(["a", "b", "c", "d"][number / 6 % 4]),
        2 => (key("a", 5), key("c", 3)),
        3 => (key("c", 0), vec![0].into()),
        4 => (vec![0].into(), vec![0].into()),
        _ => [prefix("big"), prefix("lane")][number / 6 % 2].clone(),
    };
    let distance = number as i64 * 3;
    let start_revision = match number / 2 % 3 {
        0 => 0,
        1 => (revision - distance).max(1),
        _ => revision + 1 + distance,
    };
    Want {
        key,
        range_end,
        start_revision,
        prev_kv: number % 5 < 3,
        progress_notify: number % 7 < 4,
        fragment: number % 11 < 6,
        no_put: number % 8 == 3,
        no_delete: number % 8 == 6,
    }
}

/// The revision behind the last start of a shape.
pub fn last_start(revision: i64) -> i64 {
    (0..100).map(|number| shape(number, revision).start_revision).max().unwrap_or(0)
}

impl Crowd {
    /// Asks for a hundred watchers, half of them on the member `most`.
    pub fn open(clients: &Clients, most: usize, revision: i64) -> Crowd {
        let members = clients.wary.endpoints();
        let layout = (0..members).map(|n| (most + n) % members).flat_map(|member| {
            let streams = if member == most { MOST } else { FEWER };
            streams.iter().enumerate().map(move |(number, watchers)| (member, number % 3 != 1, *watchers))
        });
        let mut number = 0;
        let plan = layout.map(|(member, wary, watchers)| {
            let wants = (number..number + watchers).map(|number| shape(number, revision)).collect();
            number += watchers;
            (member, wary, wants)
        });
        Crowd::of(clients, plan)
    }

    /// Asks for watchers of everything that ever happened, one on each member.
    pub fn lifelong(clients: &Clients) -> Crowd {
        let everything = || Want { start_revision: 1, prev_kv: true, ..from(&[0]) };
        Crowd::of(clients, (0..clients.wary.endpoints()).map(|member| (member, true, vec![everything()])))
    }

    fn of(clients: &Clients, plan: impl Iterator<Item = (usize, bool, Vec<Want>)>) -> Crowd {
        let (finish, finishing) = watch::channel(0);
        let changed = Arc::new(Notify::new());
        let mut crowd = Crowd { streams: Vec::new(), tasks: Vec::new(), changed: changed.clone(), finish };
        for (number, (member, wary, wants)) in plan.enumerate() {
            let client = if wary { &clients.wary } else { &clients.patient };
            let watch = Watch::new(client.clone(), wants.clone(), member, number);
            let watch = if wary { watch } else { watch.without_leader() };
            let record = |want| Record { want, created: None, told: Vec::new(), over: None };
            let records = wants.into_iter().map(record).collect();
            let stream = Stream { wary, at: None, moves: Vec::new(), records, repeated: 0, finished: false };
            let stream = Arc::new(Mutex::new(stream));
            crowd.tasks.push(tokio::spawn(follow(watch, stream.clone(), changed.clone(), finishing.clone())));
            crowd.streams.push(stream);
        }
        crowd
    }

    pub fn streams(&self) -> impl Iterator<Item = MutexGuard<'_, Stream>> {
        self.streams.iter().map(|stream| lock(stream))
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.streams().map(|stream| stream.records.len()).sum()
    }

    /// The member that serves most watchers.
    pub fn most_at(&self) -> Option<usize> {
        let mut counts = std::collections::BTreeMap::new();
        for stream in self.streams() {
            *counts.entry(stream.at).or_insert(0) += stream.records.len();
        }
        counts.into_iter().filter_map(|(at, count)| Some((count, at?))).max().map(|(_, at)| at)
    }

    /// Waits until something holds of every stream. If it does not within that time: of how many it does not.
    pub async fn until(&self, patience: Duration, holds: impl Fn(usize, &Stream) -> bool) -> Result<(), usize> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let change = self.changed.notified();
            let missing = self.streams().enumerate().filter(|(number, stream)| !holds(*number, stream)).count();
            if missing == 0 {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                return Err(missing);
            }
        }
    }

    /// Every watcher exists.
    pub async fn created(&self, patience: Duration) -> Result<(), usize> {
        self.until(patience, |_, stream| stream.records.iter().all(|record| record.created.is_some())).await
    }

    /// Tells all that nothing follows `end`, waits until they have been told everything up to there, and ends them.
    pub async fn finish(self, end: i64, patience: Duration) -> (Vec<Stream>, Result<(), usize>) {
        self.finish.send_replace(end);
        let outcome = self.until(patience, |_, stream| stream.finished).await;
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        let streams = self.streams.into_iter();
        let streams = streams.map(|stream| Arc::into_inner(stream).expect("its task has ended"));
        (streams.map(|stream| stream.into_inner().expect("nobody panics")).collect(), outcome)
    }
}

fn lock(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    stream.lock().expect("nobody panics")
}

/// Writes down what is heard until everything was.
async fn follow(mut watch: Watch, stream: Arc<Mutex<Stream>>, changed: Arc<Notify>, mut finish: watch::Receiver<i64>) {
    let watchers = lock(&stream).records.len();
    let mut responses: usize = 0;
    loop {
        let end = *finish.borrow_and_update();
        let connected = lock(&stream).at.is_some();
        if end > 0 && (0..watchers).all(|place| watch.next_revision(place).is_some_and(|next| next > end)) {
            break;
        }
        let heard = match (end > 0, connected) {
            // Making a connection is not interrupted: it would begin anew.
            (_, false) => watch.next().await,
            (true, true) => match timeout(ASK, watch.next()).await {
                Ok(heard) => heard,
                Err(_) => {
                    watch.ask_progress();
                    continue;
                }
            },
            (false, true) => tokio::select! {
                heard = watch.next() => heard,
                _ = finish.changed() => continue,
            },
        };
        let now = Instant::now();
        let mut known = lock(&stream);
        known.repeated = watch.repeated();
        match heard {
            Ok(Some(Heard::Of(place, news))) => {
                responses += 1;
                if responses.is_multiple_of(ASK_AFTER) {
                    watch.ask_progress();
                }
                let record = &mut known.records[place];
                match news {
                    News::Events(events) => record.told.push((now, Told::Events(events))),
                    News::Progress { revision } => record.told.push((now, Told::Progress(revision))),
                    News::Created { revision } => {
                        record.created = Some(revision);
                        changed.notify_waiters();
                    }
                    over => record.over = Some(format!("{over:?}")),
                }
            }
            Ok(Some(Heard::Lost(why))) => {
                known.at = None;
                // Another member that does not serve either is not another move.
                if known.moves.last().is_none_or(|last| last.back.is_some()) {
                    known.moves.push(Move { lost: now, why, back: None });
                }
                changed.notify_waiters();
            }
            Ok(Some(Heard::Moved(member))) => {
                known.at = Some(member);
                if let Some(last) = known.moves.last_mut() {
                    last.back = Some(now);
                }
                changed.notify_waiters();
            }
            Ok(None) => break,
            Err(error) => {
                known.records.iter_mut().for_each(|record| record.over = Some(error.to_string()));
                break;
            }
        }
    }
    lock(&stream).finished = true;
    changed.notify_waiters();
}
