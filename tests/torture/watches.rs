//! Clients that watch: several watches on a stream, for a while, then on with what was not yet seen on another member.
//!
//! Watches start in the past, at the edge of what was compacted, now and in the future; with previous values, progress,
//! filters and fragments; they are canceled, asked for progress, and left unread. At the end, when the load has stopped,
//! each client listens until it has been told that it was sent everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use everwatch::pb::etcdserverpb::watch_client::WatchClient;
use everwatch::pb::etcdserverpb::watch_create_request::FilterType;
use everwatch::pb::etcdserverpb::watch_request::RequestUnion;
use everwatch::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::checks::{WatchMessage, WatchRecord};
use crate::dice::Dice;
use crate::{Run, ask, load, lock};

/// Watches that a client has on one stream.
const WATCHES_MAX: u64 = 3;
/// How long a stream is kept, in milliseconds, if nothing ends it.
const STREAM: (u64, u64) = (500, 15_000);
/// How often a client does something other than listen.
const BEAT: Duration = Duration::from_millis(200);
/// How long opening a stream may take, which the member answers at once or not at all.
const OPEN: Duration = Duration::from_secs(3);

/// One watch on its way: the record so far, and where it goes on.
struct Watching {
    record: WatchRecord,
    created: bool,
    /// Everything below was received.
    next: i64,
    /// Canceled: nothing continues it.
    over: bool,
    /// Its end was asked for.
    cancel: bool,
}

impl Watching {
    fn new(record: WatchRecord) -> Watching {
        let next = record.start;
        Watching { record, created: false, next, over: false, cancel: false }
    }

    fn request(&self, id: i64) -> WatchCreateRequest {
        let mut filters = Vec::new();
        if self.record.no_put {
            filters.push(FilterType::Noput as i32);
        }
        if self.record.no_delete {
            filters.push(FilterType::Nodelete as i32);
        }
        WatchCreateRequest {
            key: self.record.key.clone().into(),
            range_end: self.record.end.clone().into(),
            start_revision: self.record.start,
            progress_notify: self.record.progress,
            filters,
            prev_kv: self.record.prev_kv,
            watch_id: id,
            fragment: self.record.fragment,
        }
    }

    /// A message of the stream that is about this watch.
    fn receive(&mut self, time: u64, response: &WatchResponse) {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if self.over && self.cancel && response.canceled {
            // It was canceled for a compaction, and then we asked for it: that is answered, too.
            self.cancel = false;
            return;
        }
        let message = if response.created && !response.canceled {
            self.created = true;
            self.next = if self.record.start > 0 { self.record.start } else { revision + 1 };
            WatchMessage::Created { revision }
        } else if response.canceled {
            self.over = true;
            WatchMessage::Canceled { compact_revision: response.compact_revision }
        } else if response.events.is_empty() {
            self.next = self.next.max(revision + 1);
            if response.watch_id < 0 {
                WatchMessage::StreamProgress { revision }
            } else {
                WatchMessage::Progress { revision }
            }
        } else {
            let events: Vec<_> = response.events.iter().map(ask::event).collect();
            // There may be more of the last revision of a piece.
            let seen = events.last().map_or(0, |last| last.kv.mod_revision + i64::from(!response.fragment));
            self.next = self.next.max(seen);
            WatchMessage::Events { header_revision: revision, fragment: response.fragment, events }
        };
        self.record.messages.push((time, message));
    }
}

/// The watch of everything from the first revision on, which moves from member to member for ever: what the judge
/// knows of every revision.
pub async fn everything(run: Arc<Run>, client: u32, mut dice: Dice) {
    let mut to_resume: Vec<(usize, WatchRecord)> = Vec::new();
    let mut member = dice.below(run.members.count() as u64) as usize;
    loop {
        let first = WatchRecord { key: vec![0], end: vec![0], start: 1, prev_kv: true, ..WatchRecord::default() };
        let record = to_resume.pop().map_or(first, |(index, record)| resumed(index, record));
        let watches = vec![WatchRecord { client, member: member as u64 + 1, ..record.clone() }];
        match stream(&run, member, watches, &mut dice, true).await {
            Ended::Finished => return,
            Ended::Early(mut left) => match left.pop() {
                Some(seen) => to_resume.push(seen),
                // Not even created: the same again elsewhere.
                None => {
                    if let Some(index) = record.resumes {
                        to_resume.push((index, record));
                    }
                }
            },
        }
        member = (member + 1) % run.members.count();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client with watches of all sorts.
pub async fn client(run: Arc<Run>, client: u32, mut dice: Dice) {
    let mut to_resume: Vec<(usize, WatchRecord)> = Vec::new();
    loop {
        let member = dice.below(run.members.count() as u64) as usize;
        let mut watches: Vec<WatchRecord> = Vec::new();
        for (index, record) in to_resume.drain(..) {
            if dice.chance(700) {
                watches.push(resumed(index, record));
            }
        }
        let wanted = dice.between(1, WATCHES_MAX);
        while (watches.len() as u64) < wanted {
            watches.push(fresh(&run, &mut dice));
        }
        for record in &mut watches {
            (record.client, record.member) = (client, member as u64 + 1);
        }
        match stream(&run, member, watches, &mut dice, false).await {
            Ended::Finished => return,
            Ended::Early(left) => to_resume = left,
        }
        tokio::time::sleep(Duration::from_millis(dice.between(10, 200))).await;
    }
}

/// The watch that goes on where a recorded one ended; `record.start` says where that is.
fn resumed(index: usize, record: WatchRecord) -> WatchRecord {
    WatchRecord { resumes: Some(index), messages: Vec::new(), ..record }
}

fn fresh(run: &Run, dice: &mut Dice) -> WatchRecord {
    let (key, end) = load::range(dice);
    let (revision, compacted) = {
        let knowledge = lock(&run.knowledge);
        (knowledge.revision, knowledge.compacted)
    };
    let start = match dice.below(8) {
        0..3 => 0,
        3 => compacted.max(1),
        4 => compacted + 1,
        5 => revision + dice.below(50) as i64,
        _ => revision - dice.below(300) as i64,
    };
    let filter = dice.below(12);
    WatchRecord {
        key,
        end,
        start: start.max(i64::from(start != 0)),
        prev_kv: dice.chance(400),
        progress: dice.chance(400),
        no_put: filter == 0,
        no_delete: filter == 1,
        fragment: dice.chance(300),
        ..WatchRecord::default()
    }
}

enum Ended {
    /// Everything there will ever be was received.
    Finished,
    /// What may be gone on with: its index, and the record with the revision to go on from as its start.
    Early(Vec<(usize, WatchRecord)>),
}

/// One stream with these watches, recorded when it ends.
async fn stream(run: &Run, member: usize, watches: Vec<WatchRecord>, dice: &mut Dice, whole: bool) -> Ended {
    let stream = 1 + run.streams.fetch_add(1, Ordering::Relaxed);
    let watches = watches.into_iter().map(|record| Watching::new(WatchRecord { stream, ..record }));
    let mut watches: BTreeMap<i64, Watching> = (1..).zip(watches).collect();
    let finished = listen(run, member, &mut watches, dice, whole).await;
    let mut left = Vec::new();
    let mut records = lock(&run.watches);
    for watching in watches.into_values() {
        let Watching { mut record, created, next, over, .. } = watching;
        // Of a watch that was never created there is nothing to say.
        if !created {
            continue;
        }
        if !finished {
            record.messages.push((run.now(), WatchMessage::Ended));
        }
        if !over {
            left.push((records.len(), WatchRecord { start: next, messages: Vec::new(), ..record.clone() }));
        }
        records.push(record);
    }
    if finished { Ended::Finished } else { Ended::Early(left) }
}

/// Listens until the stream ends or has been kept long enough; true if it was told that it was sent everything.
async fn listen(run: &Run, member: usize, watches: &mut BTreeMap<i64, Watching>, dice: &mut Dice, whole: bool) -> bool {
    let (requests, queue) = mpsc::channel(16);
    let ask = |union| requests.try_send(WatchRequest { request_union: Some(union) }).is_ok();
    for (id, watching) in &*watches {
        ask(RequestUnion::CreateRequest(watching.request(*id)));
    }
    let mut client = WatchClient::new(run.members.own_channel(member)).max_decoding_message_size(usize::MAX);
    let opened = tokio::time::timeout(OPEN, client.watch(ReceiverStream::new(queue))).await;
    let Ok(Ok(responses)) = opened else { return false };
    let mut responses = responses.into_inner();
    let mut finish = run.finish.subscribe();
    let until = Instant::now() + Duration::from_millis(dice.between(STREAM.0, STREAM.1));
    let mut beat = tokio::time::interval(BEAT);
    let mut before = 0;
    loop {
        let last = *finish.borrow_and_update();
        tokio::select! {
            response = responses.message() => {
                let Ok(Some(response)) = response else { return false };
                // The judge knows the order of what arrives on a stream by the times.
                let now = run.now().max(before + 1);
                before = now;
                let progress = response.events.is_empty() && !response.created && !response.canceled;
                if response.watch_id < 0 && progress {
                    // An answer to a question is about all watches of the stream that have begun.
                    let revision = response.header.as_ref().map_or(0, |header| header.revision);
                    for watching in watches.values_mut().filter(|w| w.created && !w.over && w.record.start <= revision) {
                        watching.receive(now, &response);
                    }
                    if last > 0 && revision >= last {
                        return true;
                    }
                } else if let Some(watching) = watches.get_mut(&response.watch_id) {
                    watching.receive(now, &response);
                    if whole {
                        run.watched.store(watching.next, Ordering::Relaxed);
                    }
                } else {
                    run.wrong(format!("a response about no watch of the stream: {response:?}"));
                }
            }
            _ = beat.tick() => {
                if last > 0 {
                    if watches.values().all(|watching| watching.created && (watching.over || watching.next > last)) {
                        return true;
                    }
                    // There is no answer about progress while one of the stream's watches lies in the future.
                    for (watch_id, watching) in watches.iter_mut().filter(|(_, w)| w.record.start > last && !w.cancel) {
                        watching.cancel |= ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: *watch_id }));
                    }
                    ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                } else if Instant::now() > until {
                    return false;
                } else if dice.chance(50) {
                    ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
                } else if !whole && dice.chance(10) {
                    let watch_id = dice.between(1, watches.len() as u64) as i64;
                    if let Some(watching) = watches.get_mut(&watch_id).filter(|watching| !watching.cancel) {
                        watching.cancel = ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
                    }
                } else if !whole && dice.chance(10) {
                    // Reads nothing for a while, so that the member's queue for it fills.
                    tokio::time::sleep(Duration::from_millis(dice.skewed(100, 5000))).await;
                }
            }
        }
    }
}
