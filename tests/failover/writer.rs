//! Writers, and what was promised to them.
//!
//! Four lanes write puts, deletions of a key and of a range, and transactions of several keys, together some hundred a
//! second, each to one member until that member fails it. A write without an answer is sent again, elsewhere. For a put or a
//! deletion that is harmless: it may then stand in the history twice. A transaction is carried out once however often it is sent:
//! it asks that the lane's own key hold the number before its own, and leaves its own there.
//!
//! Now and then a lane fills the keys `big/` and deletes them all at once: with the previous values that revision is larger
//! than what a server sends in one piece.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::client::Client;
use everwatch::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{self as pb, request_op};
use everwatch::pb::mvccpb::Event;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Status;

use crate::dice::Dice;
use crate::judge::{Truth, is_put, key_of};

const LANES: usize = 4;
/// A lane writes no faster.
const PACE: Duration = Duration::from_millis(10);
/// What a member that stands still costs a lane. The time without writes is not known more exactly than this.
const TRY: Duration = Duration::from_millis(250);
/// Nothing is out of order for longer; a write that fails for so long fails the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// Prefixes of the ordinary keys, and how many keys each has.
const PREFIXES: [&str; 4] = ["a", "b", "c", "d"];
const KEYS: u64 = 10;
/// How many large keys there are, how large they are, and after how many writes of the first lane their turn comes.
const BIG: (u64, usize, u64) = (14, 50_000, 200);

/// An ordinary key.
pub fn key(prefix: &str, number: u64) -> Bytes {
    format!("{prefix}/{number:02}").into()
}

#[derive(Clone, Debug)]
enum Write {
    Put { key: Bytes, value: Bytes },
    Delete { key: Bytes, end: Bytes },
    Txn { number: u64, puts: Vec<(Bytes, Bytes)>, deletes: Vec<Bytes> },
}

/// What an answer said.
struct Answer {
    revision: i64,
    /// Of a deletion: how many keys. Of a transaction: 1 if it was carried out now, 0 if it had been before.
    did: i64,
}

/// A write that was answered, and what the answer said.
struct Acknowledged {
    write: Write,
    answer: Answer,
    at: Instant,
}

/// How far all lanes are together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pulse {
    pub acknowledged: u64,
    pub revision: i64,
}

/// One of the writers: what it has done, and what it needs to go on.
struct Lane {
    id: usize,
    dice: Dice,
    endpoint: usize,
    writes: u64,
    txns: u64,
    acknowledged: Vec<Acknowledged>,
    unanswered: u64,
}

/// All lanes, at rest.
pub struct Writer {
    client: Client,
    lanes: Vec<Lane>,
    pulse: Arc<watch::Sender<Pulse>>,
}

/// All lanes, writing.
pub struct Writing {
    client: Client,
    lanes: Vec<tokio::task::JoinHandle<Result<Lane, String>>>,
    stop: watch::Sender<bool>,
    pulse: Arc<watch::Sender<Pulse>>,
}

impl Writer {
    pub fn new(client: Client) -> Writer {
        let lane = |id| Lane {
            id,
            dice: Dice::new(id as u64),
            endpoint: id,
            writes: 0,
            txns: 0,
            acknowledged: Vec::new(),
            unanswered: 0,
        };
        Writer { client, lanes: (0..LANES).map(lane).collect(), pulse: Arc::new(watch::channel(Pulse::default()).0) }
    }

    /// Begins, with the lanes spread over the members: those that had to leave one may have met at another.
    pub fn begin(self) -> Writing {
        let stop = watch::channel(false).0;
        let lanes = self.lanes.into_iter().map(|lane| {
            let lane = Lane { endpoint: lane.id, ..lane };
            tokio::spawn(lane.write(self.client.clone(), self.pulse.clone(), stop.subscribe()))
        });
        Writing { lanes: lanes.collect(), client: self.client, stop, pulse: self.pulse }
    }

    /// How many writes were answered, and how often one had to be sent again.
    pub fn counts(&self) -> (usize, u64) {
        let acknowledged = self.lanes.iter().map(|lane| lane.acknowledged.len()).sum();
        (acknowledged, self.lanes.iter().map(|lane| lane.unanswered).sum())
    }

    /// The longest time in which nothing was acknowledged, from `since` on.
    pub fn longest_pause(&self, since: Instant) -> Duration {
        let mut times: Vec<Instant> =
            self.lanes.iter().flat_map(|lane| &lane.acknowledged).map(|done| done.at).collect();
        times.sort_unstable();
        let later = &times[times.partition_point(|at| *at < since)..];
        let pauses = std::iter::once(&since).chain(later).zip(later).map(|(before, after)| *after - *before);
        pauses.max().unwrap_or_default()
    }

    /// What of all that was acknowledged does not stand in the history.
    pub fn judge(&self, truth: &Truth) -> Vec<String> {
        self.lanes.iter().flat_map(|lane| lane.judge(truth)).collect()
    }
}

impl Writing {
    pub fn pulse(&self) -> Pulse {
        *self.pulse.borrow()
    }

    /// Waits until so many more writes were acknowledged, and one at that revision or later.
    pub async fn until(&self, more: u64, revision: i64) -> Result<(), String> {
        let goal = self.pulse().acknowledged + more;
        let mut pulse = self.pulse.subscribe();
        let far = pulse.wait_for(|pulse| pulse.acknowledged >= goal && pulse.revision >= revision);
        timeout(PATIENCE, far)
            .await
            .map_err(|_| format!("not {more} more writes within {PATIENCE:?}"))?
            .map(drop)
            .map_err(|_| "ended".into())
    }

    /// Ends the lanes when their last write is answered. The revision of one more write, after which there is none.
    pub async fn end(self) -> Result<(Writer, i64), String> {
        let _ = self.stop.send(true);
        let mut lanes = Vec::new();
        for lane in self.lanes {
            lanes.push(lane.await.expect("a lane does not panic")?);
        }
        let last = Write::Put { key: "end".into(), value: "end".into() };
        let mut unanswered = 0;
        let answer = insist(&self.client, &mut 0, &mut unanswered, 0, &last).await?;
        Ok((Writer { client: self.client, lanes, pulse: self.pulse }, answer.revision))
    }
}

impl Lane {
    async fn write(
        mut self,
        client: Client,
        pulse: Arc<watch::Sender<Pulse>>,
        stop: watch::Receiver<bool>,
    ) -> Result<Lane, String> {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stop.borrow() {
            pace.tick().await;
            let write = self.draw();
            let answer = insist(&client, &mut self.endpoint, &mut self.unanswered, self.id, &write).await?;
            pulse.send_modify(|pulse| {
                pulse.acknowledged += 1;
                pulse.revision = pulse.revision.max(answer.revision);
            });
            self.acknowledged.push(Acknowledged { write, answer, at: Instant::now() });
        }
        Ok(self)
    }

    fn draw(&mut self) -> Write {
        let number = self.writes;
        self.writes += 1;
        let (count, bytes, turn) = BIG;
        if self.id == 0 && number % turn <= count {
            return match number % turn {
                place if place < count => Write::Put { key: key("big", place), value: vec![b'.'; bytes].into() },
                _ => Write::Delete { key: "big/".into(), end: "big0".into() },
            };
        }
        let value = |part: u64| Bytes::from(format!("lane {} write {number} part {part}", self.id));
        let dice = &mut self.dice;
        let prefix = dice.pick(&PREFIXES);
        match dice.below(100) {
            0..55 => Write::Put { key: key(prefix, dice.below(KEYS)), value: value(0) },
            55..75 => Write::Delete { key: key(prefix, dice.below(KEYS)), end: Bytes::new() },
            75..80 => {
                let first = dice.below(KEYS);
                Write::Delete { key: key(prefix, first), end: key(prefix, first + 3) }
            }
            _ => {
                self.txns += 1;
                let places = dice.order(KEYS as usize);
                let keys: Vec<Bytes> = places.iter().map(|place| key(dice.pick(&PREFIXES), *place as u64)).collect();
                let puts = (0..dice.between(1, 4)).map(|part| (keys[part as usize].clone(), value(part))).collect();
                let deletes = keys[5..5 + dice.below(4) as usize].to_vec();
                Write::Txn { number: self.txns, puts, deletes }
            }
        }
    }

    fn judge(&self, truth: &Truth) -> Vec<String> {
        let mut wrongs = Vec::new();
        for Acknowledged { write, answer, .. } in &self.acknowledged {
            let events = truth.at(answer.revision);
            let stands = match write {
                Write::Put { key, value } => events.len() == 1 && is_put(&events[0], key, value),
                Write::Delete { .. } if answer.did == 0 => true,
                Write::Delete { key, end } => {
                    let within = |event: &Event| {
                        let at = key_of(event);
                        event.r#type == 1 && (at == key || !end.is_empty() && at >= key && at < end)
                    };
                    events.len() as i64 == answer.did && events.iter().all(within)
                }
                // It stands where the lane's own key says.
                Write::Txn { .. } => true,
            };
            if !stands {
                wrongs.push(format!("acknowledged at {}: {write:?}; there stands {events:?}", answer.revision));
            }
        }
        let mine = marker(self.id);
        let marked: Vec<&Event> = truth.events().iter().filter(|event| key_of(event) == &mine).collect();
        let txns = self.acknowledged.iter().filter_map(|done| match &done.write {
            Write::Txn { number, puts, deletes } => Some((*number, puts, deletes)),
            _ => None,
        });
        let mut count = 0;
        for ((number, puts, deletes), mark) in txns.zip(&marked) {
            count += 1;
            let events = truth.at(mark.kv.as_ref().map_or(0, |kv| kv.mod_revision));
            let done: Vec<&Event> = events.iter().filter(|event| event.r#type == 0).collect();
            let number = Bytes::from(number.to_string());
            let wanted = puts.iter().map(|(key, value)| (key, value)).chain([(&mine, &number)]);
            let right = done.len() == puts.len() + 1
                && done.iter().zip(wanted).all(|(event, (key, value))| is_put(event, key, value))
                && events.iter().all(|event| event.r#type == 0 || deletes.contains(key_of(event)));
            if !right {
                wrongs.push(format!("transaction {number:?} of lane {}: there stands {events:?}", self.id));
            }
        }
        if count != self.txns || marked.len() as u64 != self.txns {
            wrongs.push(format!("lane {} made {} transactions, {} stand", self.id, self.txns, marked.len()));
        }
        wrongs
    }
}

fn marker(lane: usize) -> Bytes {
    format!("lane/{lane}").into()
}

/// Sends a write until it is answered.
async fn insist(
    client: &Client,
    endpoint: &mut usize,
    unanswered: &mut u64,
    lane: usize,
    write: &Write,
) -> Result<Answer, String> {
    let began = Instant::now();
    for attempt in 0.. {
        match timeout(TRY, send(client, *endpoint, lane, write)).await {
            Ok(Ok(Answer { did: 0, .. })) if attempt == 0 && matches!(write, Write::Txn { .. }) => {
                return Err(format!("lane {lane}: somebody else has changed its key before {write:?}"));
            }
            Ok(Ok(answer)) => return Ok(answer),
            _ if began.elapsed() > PATIENCE => return Err(format!("no answer for {PATIENCE:?} to {write:?}")),
            _ => {
                *unanswered += 1;
                *endpoint += 1;
                tokio::time::sleep(PACE).await;
            }
        }
    }
    unreachable!("attempts do not run out")
}

async fn send(client: &Client, endpoint: usize, lane: usize, write: &Write) -> Result<Answer, Status> {
    let mut kv = KvClient::new(client.channel(endpoint % client.endpoints(), lane));
    let revision = |header: Option<pb::ResponseHeader>| header.map_or(0, |header| header.revision);
    let put =
        |key: &Bytes, value: &Bytes| pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
    let delete = |key: &Bytes, end: &Bytes| pb::DeleteRangeRequest {
        key: key.clone(),
        range_end: end.clone(),
        ..Default::default()
    };
    Ok(match write {
        Write::Put { key, value } => {
            let answer = kv.put(put(key, value)).await?.into_inner();
            Answer { revision: revision(answer.header), did: 1 }
        }
        Write::Delete { key, end } => {
            let answer = kv.delete_range(delete(key, end)).await?.into_inner();
            Answer { revision: revision(answer.header), did: answer.deleted }
        }
        Write::Txn { number, puts, deletes } => {
            let op = |request| pb::RequestOp { request: Some(request) };
            let own = (marker(lane), Bytes::from(number.to_string()));
            let puts = puts.iter().chain([&own]);
            let puts = puts.map(|(key, value)| op(request_op::Request::RequestPut(put(key, value))));
            let deletes = deletes.iter().map(|key| delete(key, &Bytes::new()));
            let deletes = deletes.map(|delete| op(request_op::Request::RequestDeleteRange(delete)));
            let (target, union) = match number - 1 {
                0 => (CompareTarget::Version, TargetUnion::Version(0)),
                before => (CompareTarget::Value, TargetUnion::Value(before.to_string().into())),
            };
            let compare = pb::Compare {
                result: CompareResult::Equal as i32,
                target: target as i32,
                key: marker(lane),
                target_union: Some(union),
                ..Default::default()
            };
            let txn =
                pb::TxnRequest { compare: vec![compare], success: puts.chain(deletes).collect(), failure: Vec::new() };
            let answer = kv.txn(txn).await?.into_inner();
            Answer { revision: revision(answer.header), did: answer.succeeded.into() }
        }
    })
}
