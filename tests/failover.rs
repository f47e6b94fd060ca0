//! Fail-over, from outside: a hundred watchers and some writers while one member after another is stopped, killed, paused
//! and cut off; afterwards each watcher has been told exactly what it asked for.
//!
//! Runs only when `FAILOVER` names the three members' client URLs, which `scripts/failover-test.sh` does; otherwise only the
//! judge is tested. The cluster is new and nobody else uses it. What is done to members the command in `FAILOVER_HOOK` does: it
//! is given a word (`stop start kill pause unpause disconnect connect cut mend`) and the number of a member, returns
//! when that is done, and fails if it went wrong; a stop with another exit code than 0 is wrong.
//!
//! One scenario:
//!
//! ```text
//!  open 100 watchers ─ writes ─ fault ─ all that should have gone on elsewhere ─ writes ─ heal ─ all serve ─ writes ─ end
//!                                                                                          truth of each member ─ judge
//! ```
//!
//! Nothing is waited for by time, and every wait has an end. Half of the watchers stand on one follower (`serving`), the rest
//! on the leader and on the other follower (`follower`). Three more watchers live from the first scenario to the last.
//!
//! Printed for each scenario: whether it was exact; how long watchers were without service, which means without a stream,
//! or later told of a revision than the first who was told of it, whichever took longer; how often streams went on
//! elsewhere; and how long no write was acknowledged. Wrong things are printed in words, and fail the test at the end.
//!
//! `FAILOVER_FULL=1`: more writes in each phase, and wary streams with the client's own patience. `FAILOVER_ONLY`: which
//! scenarios, by words of their names: `pause,kill leader` are four.

#![allow(unreachable_pub)]

#[path = "failover/crowd.rs"]
mod crowd;
#[allow(dead_code)] // the simulator uses more of it
#[path = "sim/dice.rs"]
mod dice;
#[path = "failover/judge.rs"]
mod judge;
#[path = "failover/writer.rs"]
mod writer;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use everwatch::client::resume::revision_of;
use everwatch::client::{Client, Keepalive};
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{RangeRequest, StatusRequest};
use tokio::time::timeout;
use tonic::Code;

use crowd::{Clients, Crowd, Stream};
use judge::{Record, Told, Truth};
use writer::{Writer, Writing};

/// Whatever is waited for should long have happened; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// One question to a member.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two questions.
const AGAIN: Duration = Duration::from_millis(50);
/// Wrong things that are printed of one scenario.
const WRONGS_MAX: usize = 20;
/// What patient streams never come to.
const NEVER: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Stop,
    Kill,
    Pause,
    /// From everybody.
    Disconnect,
    /// From the other members, and not from its clients.
    Cut,
}

impl Fault {
    /// The words that make it and heal it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Fault::Stop => ("stop", "start"),
            Fault::Kill => ("kill", "start"),
            Fault::Pause => ("pause", "unpause"),
            Fault::Disconnect => ("disconnect", "connect"),
            Fault::Cut => ("cut", "mend"),
        }
    }

    /// Patient streams lose their connection, too.
    fn breaks_connections(self) -> bool {
        matches!(self, Fault::Stop | Fault::Kill | Fault::Disconnect)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Serving,
    Leader,
    Follower,
}

#[derive(Clone, Copy, Debug)]
enum Scenario {
    One(Fault, Target),
    RollingRestart,
}

impl Scenario {
    fn all() -> Vec<Scenario> {
        let faults = [Fault::Stop, Fault::Kill, Fault::Pause, Fault::Disconnect, Fault::Cut];
        let targets = [Target::Serving, Target::Leader, Target::Follower];
        let each = faults.iter().flat_map(|fault| targets.iter().map(|target| Scenario::One(*fault, *target)));
        each.chain([Scenario::RollingRestart]).collect()
    }

    fn name(self) -> String {
        match self {
            Scenario::One(fault, target) => format!("{fault:?} {target:?}").to_lowercase(),
            Scenario::RollingRestart => "rolling restart".to_owned(),
        }
    }
}

/// The cluster, as its clients see it.
struct Test {
    urls: Vec<String>,
    hook: String,
    full: bool,
    /// For single questions and for writes.
    members: Client,
    clients: Clients,
}

#[test]
fn failover() {
    let Ok(urls) = std::env::var("FAILOVER") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    assert_eq!(runtime.block_on(run(urls.split(',').map(str::to_owned).collect())), 0, "something was wrong");
}

/// All scenarios; how many things were wrong.
async fn run(urls: Vec<String>) -> usize {
    let full = std::env::var("FAILOVER_FULL").is_ok_and(|full| full == "1");
    let only = std::env::var("FAILOVER_ONLY").unwrap_or_default();
    let client = |keepalive| Client::with_keepalive(&urls, 4, keepalive).expect("addresses");
    let quick = Keepalive { interval: Duration::from_secs(1), timeout: Duration::from_secs(1) };
    let wary = if full { Keepalive::default() } else { quick };
    let clients = Clients { wary: client(wary), patient: client(Keepalive { interval: NEVER, timeout: NEVER }) };
    let hook = std::env::var("FAILOVER_HOOK").expect("FAILOVER_HOOK says who does it");
    let test = Test { members: client(Keepalive::default()), urls: urls.clone(), hook, full, clients };

    let mut wrongs = 0;
    let lifelong = Crowd::lifelong(&test.clients);
    let mut writer = Some(Writer::new(test.members.clone()));
    let (mut scenarios, mut events, mut moves, mut end) = (0, 0, 0, 0);
    let chosen = |name: &str| only.split(',').any(|some| some.split_whitespace().all(|word| name.contains(word)));
    for scenario in Scenario::all().into_iter().filter(|scenario| chosen(&scenario.name())) {
        scenarios += 1;
        match test.scenario(scenario, writer.take().expect("it came back")).await {
            Ok((outcome, rested)) => {
                say(&format!("{:<20} {}", scenario.name(), outcome.report));
                wrongs += outcome.wrongs.len();
                complain(&scenario.name(), &outcome.wrongs);
                events += outcome.events;
                moves += outcome.moves;
                end = outcome.end;
                writer = Some(rested);
            }
            Err(why) => {
                // What it left behind nobody knows: nothing after it would mean anything.
                complain(&scenario.name(), &[why]);
                wrongs += 1;
                break;
            }
        }
    }
    if let Some(writer) = writer {
        let (streams, told) = lifelong.finish(end, PATIENCE).await;
        let truth = Truth::read(&test.urls[0], end).await;
        let outcome = match (told, truth) {
            (Ok(()), Ok(truth)) => judge_all(&truth, &streams),
            (Err(missing), _) => vec![format!("{missing} have not been told everything")],
            (_, Err(why)) => vec![why],
        };
        let lived: usize = streams.iter().map(|stream| stream.moves.len()).sum();
        let verdict = if outcome.is_empty() { "exact" } else { "WRONG" };
        say(&format!("{:<20} {verdict}: 3 watchers of everything through all of it, moved {lived} times", "lifelong"));
        complain("lifelong", &outcome);
        wrongs += outcome.len();
        let (writes, again) = writer.counts();
        say(&format!("{writes} writes acknowledged, {again} sent again"));
    }
    say(&format!("{scenarios} scenarios, {events} events told, {moves} moves, {wrongs} wrong"));
    wrongs
}

/// How a scenario ended.
struct Outcome {
    report: String,
    wrongs: Vec<String>,
    events: usize,
    moves: usize,
    end: i64,
}

impl Test {
    async fn scenario(&self, scenario: Scenario, writer: Writer) -> Result<(Outcome, Writer), String> {
        let began = Instant::now();
        let few = if self.full { 1000 } else { 60 };
        let leader = self.leader().await?;
        let (serving, follower) = match leader {
            0 => (1, 2),
            1 => (2, 0),
            _ => (0, 1),
        };
        let writing = writer.begin();
        writing.until(few, 0).await?;
        let revision = writing.pulse().revision;
        let crowd = Crowd::open(&self.clients, serving, revision);
        crowd.created(PATIENCE).await.map_err(|missing| format!("{missing} streams are not served at the start"))?;
        writing.until(few, 0).await?;

        let mut wrongs = Vec::new();
        let fault = Instant::now();
        // Streams that stood on the member that was hit.
        let mut hit: Vec<usize> = Vec::new();
        match scenario {
            Scenario::One(fault, target) => {
                let member = match target {
                    Target::Serving => crowd.most_at().unwrap_or(serving),
                    Target::Leader => leader,
                    Target::Follower => follower,
                };
                hit = crowd
                    .streams()
                    .enumerate()
                    .filter(|(_, stream)| stream.at == Some(member))
                    .map(|(n, _)| n)
                    .collect();
                wrongs.extend(self.one_fault(fault, member, &hit, &crowd, &writing, few).await?);
            }
            Scenario::RollingRestart => {
                for member in 0..self.urls.len() {
                    self.hook("stop", member).await?;
                    self.hook("start", member).await?;
                    self.serves(member).await?;
                }
            }
        }
        for member in 0..self.urls.len() {
            self.serves(member).await?;
        }
        writing.until(few, crowd::last_start(revision)).await?;

        let (writer, end) = writing.end().await?;
        let watchers = crowd.watchers();
        let (streams, told) = crowd.finish(end, PATIENCE).await;
        if let Err(missing) = told {
            wrongs.push(format!("{missing} streams have not been told everything up to {end} within {PATIENCE:?}"));
        }
        let truth = self.truth(end, &mut wrongs).await?;
        wrongs.extend(writer.judge(&truth));
        wrongs.extend(judge_all(&truth, &streams));

        let events = streams.iter().flat_map(|stream| &stream.records).map(told_events).sum();
        let moves = streams.iter().map(|stream| stream.moves.len()).sum();
        let (there, elsewhere) = without_service(&streams, &hit, fault);
        let report = format!(
            "{}: {watchers} watchers told {events} events up to revision {end}; without service: {}{}; moves {moves}; \
             no write acknowledged for {:.2} s; took {:.1} s",
            if wrongs.is_empty() { "exact" } else { "WRONG" },
            if hit.is_empty() { String::new() } else { format!("{} there, ", in_words(there)) },
            format_args!("{} elsewhere", in_words(elsewhere)),
            writer.longest_pause(fault).as_secs_f64(),
            began.elapsed().as_secs_f64(),
        );
        Ok((Outcome { report, wrongs, events, moves, end }, writer))
    }

    /// Makes a fault, waits until the streams that have to leave have gone on elsewhere and until there were writes
    /// without the member, and heals it. What was wrong with that.
    async fn one_fault(
        &self,
        fault: Fault,
        member: usize,
        hit: &[usize],
        crowd: &Crowd,
        writing: &Writing,
        few: u64,
    ) -> Result<Vec<String>, String> {
        let mut wrongs = Vec::new();
        let (make, heal) = fault.words();
        self.hook(make, member).await?;
        let leaves = |number: usize, stream: &Stream| {
            !hit.contains(&number)
                || !(stream.wary || fault.breaks_connections())
                || stream.at.is_some_and(|at| at != member)
        };
        if let Err(missing) = crowd.until(PATIENCE, leaves).await {
            wrongs.push(format!("{missing} streams have not left m{} within {PATIENCE:?}", member + 1));
        }
        writing.until(few, 0).await?;
        for (number, stream) in crowd.streams().enumerate().filter(|(number, _)| hit.contains(number)) {
            if fault == Fault::Cut && stream.wary {
                let told =
                    |why: &tonic::Status| (why.code(), why.message()) == (Code::Unavailable, "etcdserver: no leader");
                if !stream.moves.iter().any(|moved| told(&moved.why)) {
                    wrongs.push(format!("stream {number} left for other reasons than no leader: {:?}", stream.moves));
                }
            }
            if !stream.wary && !fault.breaks_connections() && !stream.moves.is_empty() {
                wrongs.push(format!("stream {number} is patient and has left: {:?}", stream.moves));
            }
        }
        self.hook(heal, member).await?;
        Ok(wrongs)
    }

    async fn hook(&self, word: &str, member: usize) -> Result<(), String> {
        let mut command = std::process::Command::new(&self.hook);
        command.args([word, &(member + 1).to_string()]);
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it does not panic");
        let output = output.map_err(|error| format!("{}: {error}", self.hook))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        Err(format!("{word} m{}: {}: {said}", member + 1, output.status))
    }

    /// Waits until all members know the same leader; which it is.
    async fn leader(&self) -> Result<usize, String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut ids = Vec::new();
            for member in 0..self.urls.len() {
                let mut maintenance = MaintenanceClient::new(self.members.channel(member, 0));
                if let Ok(Ok(status)) = timeout(ANSWER, maintenance.status(StatusRequest {})).await {
                    let status = status.into_inner();
                    ids.push((status.header.map_or(0, |header| header.member_id), status.leader));
                }
            }
            let leads = ids.iter().position(|(id, _)| ids.iter().all(|(_, leader)| leader == id));
            if let (Some(leader), true) = (leads, ids.len() == self.urls.len()) {
                return Ok(leader);
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(format!("the members do not agree on a leader within {PATIENCE:?}"))
    }

    /// Waits until a member answers what only a majority knows.
    async fn serves(&self, member: usize) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let range = RangeRequest { key: "end".into(), ..Default::default() };
            let mut kv = KvClient::new(self.members.channel(member, 0));
            let answer = timeout(ANSWER, kv.range(range)).await;
            if matches!(answer, Ok(Ok(_))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("m{} does not serve within {PATIENCE:?}: {answer:?}", member + 1));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The history, which has to be the same on all members and has to lead to the keys that they have.
    async fn truth(&self, end: i64, wrongs: &mut Vec<String>) -> Result<Truth, String> {
        let truth = Truth::read(&self.urls[0], end).await?;
        let (keys, faults) = truth.check();
        wrongs.extend(faults);
        let keys: Vec<_> = keys.into_values().collect();
        for (member, url) in self.urls.iter().enumerate() {
            if member > 0 && Truth::read(url, end).await? != truth {
                wrongs.push(format!("m{} has another history than m1", member + 1));
            }
            if judge::keys(&self.members, member, end).await? != keys {
                wrongs.push(format!("m{} has other keys than its history leads to", member + 1));
            }
        }
        Ok(truth)
    }
}

/// What is wrong with what watchers were told, with their numbers and shapes.
fn judge_all(truth: &Truth, streams: &[Stream]) -> Vec<String> {
    let mut wrongs = Vec::new();
    for (number, stream) in streams.iter().enumerate() {
        for record in &stream.records {
            let found = truth.judge(record).into_iter();
            wrongs.extend(found.map(|wrong| {
                format!("stream {number}, moved {} times: {wrong}: {:?}", stream.moves.len(), record.want)
            }));
        }
        if stream.repeated > 0 {
            wrongs.push(format!("stream {number}: {} changes sent that were not asked for", stream.repeated));
        }
    }
    wrongs
}

/// Median and worst of the time that watchers were without service since the fault: those that stood where it hit, and the
/// others.
fn without_service(streams: &[Stream], hit: &[usize], fault: Instant) -> (Vec<Duration>, Vec<Duration>) {
    let mut first_told: HashMap<i64, Instant> = HashMap::new();
    let records = || streams.iter().flat_map(|stream| &stream.records);
    for (at, event) in records().flat_map(events_of).filter(|(at, _)| *at >= fault) {
        let first = first_told.entry(revision_of(event)).or_insert(at);
        *first = at.min(*first);
    }
    // Told before the fault is told first.
    for (_, event) in records().flat_map(events_of).filter(|(at, _)| *at < fault) {
        first_told.remove(&revision_of(event));
    }
    let (mut there, mut elsewhere) = (Vec::new(), Vec::new());
    for (number, stream) in streams.iter().enumerate() {
        let away =
            stream.moves.iter().map(|moved| moved.back.unwrap_or(moved.lost) - moved.lost).max().unwrap_or_default();
        for record in &stream.records {
            let late = events_of(record).filter_map(|(at, event)| Some(at - *first_told.get(&revision_of(event))?));
            let without = late.max().unwrap_or_default().max(away);
            if hit.contains(&number) { there.push(without) } else { elsewhere.push(without) }
        }
    }
    there.sort_unstable();
    elsewhere.sort_unstable();
    (there, elsewhere)
}

fn events_of(record: &Record) -> impl Iterator<Item = (Instant, &everwatch::pb::mvccpb::Event)> {
    record.told.iter().flat_map(|(at, told)| {
        let events = match told {
            Told::Events(events) => &events[..],
            Told::Progress(_) => &[],
        };
        events.iter().map(move |event| (*at, event))
    })
}

fn told_events(record: &Record) -> usize {
    events_of(record).count()
}

fn in_words(sorted: Vec<Duration>) -> String {
    let of = |place: usize| sorted.get(place).map_or(0.0, Duration::as_secs_f64);
    let last = sorted.len().saturating_sub(1);
    format!("median {:.2} worst {:.2} s of {}", of(sorted.len() / 2), of(last), sorted.len())
}

fn complain(scenario: &str, wrongs: &[String]) {
    for wrong in wrongs.iter().take(WRONGS_MAX) {
        say(&format!("{scenario}: wrong: {wrong}"));
    }
    if wrongs.len() > WRONGS_MAX {
        say(&format!("{scenario}: and {} more", wrongs.len() - WRONGS_MAX));
    }
}

fn say(what: &str) {
    println!("failover: {what}");
}
