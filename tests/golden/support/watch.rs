//! The commands of watching. Whatever clients are told because of a command stands behind the command's own answer.
//!
//! ```text
//! watch RANGE [from=N] [id=N] [prev] [progress] [noput] [nodelete]
//! cancel ID
//! progress                                  asks how far the stream is
//! ticker                                    the stream's progress ticker ticks
//! leave                                     the client ends the stream
//! stall, resume                             the client stops reading, and reads again
//! flood KEY N                               N puts of 100,000 bytes
//! late, catch up                            history is not read for late watchers, and is again
//! grace, grace over                         what is compacted is not removed yet, and is
//! forget                                    what the backend has is not kept in memory too
//! cut off, install                          this member hears of nothing, and then gets a snapshot
//! ```
//!
//! Each of the first six ends in `on=NAME` when it is not about the stream that is meant when no name is given. Lines of other
//! streams begin with their name. One line is one message.

use std::collections::BTreeMap;

use bytes::Bytes;
use everwatch::mvcc::Store;
use everwatch::pb::etcdserverpb::{PutRequest, WatchResponse};
use everwatch::pb::mvccpb::{Event, KeyValue};
use everwatch::server::watch_loop::{Record, SLICE_BYTES_MAX, Shard, StoreAccess, turn};
use everwatch::state::command::Kind;
use everwatch::types::{KeyRange, Revision};
use everwatch::watch::{Feeds, Filters, Hub, Next, Notice, Outbox, Outgoing, Spec, StreamId};
use prost::Message;

use crate::kv;
use crate::world::World;

/// The hub and its clients.
pub(crate) struct Watches {
    feeds: Feeds,
    shard: Shard,
    streams: BTreeMap<String, Client>,
    late: bool,
    grace: bool,
    cut_off: bool,
}

struct Client {
    stream: StreamId,
    outbox: Outbox,
    stalled: bool,
}

struct InPlainSight<'a>(&'a Store);

impl StoreAccess for InPlainSight<'_> {
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(self.0)
    }
}

impl Watches {
    /// `record` reads from the store, as it is then.
    pub(crate) fn new(kv: &Store, record: Record) -> Watches {
        let feeds = Feeds::new(1, kv.revision());
        let hub = Hub::new(kv.revision(), kv.compacted());
        let shard = Shard::new(hub, feeds.of(0), record);
        Watches { feeds, shard, streams: BTreeMap::new(), late: false, grace: false, cut_off: false }
    }

    /// Catches up those who are behind; returns what clients have read since the last call.
    pub(crate) fn follow(&mut self, kv: &Store) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            while !self.late && turn(&self.shard, &InPlainSight(kv), SLICE_BYTES_MAX).unwrap() {}
            let told = lines.len();
            for (name, client) in self.streams.iter().filter(|(_, client)| !client.stalled) {
                while let Some(next) = client.outbox.try_next() {
                    let Next::Message(message) = next else { panic!("the member does not stop in scripts") };
                    let space = if name.is_empty() { "" } else { " " };
                    lines.extend(show(message).into_iter().map(|line| format!("{name}{space}{line}")));
                }
            }
            if lines.len() == told {
                return lines;
            }
        }
    }

    /// Where it hears what happens, unless this member hears of nothing.
    pub(crate) fn feeds(&self) -> Option<&Feeds> {
        (!self.cut_off).then_some(&self.feeds)
    }

    /// Whether what is compacted stays for those who read it.
    pub(crate) fn has_grace(&self) -> bool {
        self.grace
    }

    /// What was told is heard, and what was compacted is removed, unless that is to wait.
    pub(crate) fn hear(&self, compacted: Option<Revision>) {
        if let Some(at) = compacted.filter(|_| !self.grace && !self.cut_off) {
            self.feeds.tell(&[Notice::Removed(at)]);
        }
        drop(self.shard.hub());
    }

    fn client(&mut self, name: &str) -> &mut Client {
        let shard = &self.shard;
        self.streams.entry(name.to_owned()).or_insert_with(|| {
            let (stream, outbox) = shard.hub().open_stream();
            Client { stream, outbox, stalled: false }
        })
    }
}

/// Carries out a command of this area; `None` when it is none.
pub(crate) fn run(world: &mut World, words: &[&str]) -> Option<Vec<String>> {
    let watches = &mut world.watches;
    match words {
        ["late"] => watches.late = true,
        ["catch", "up"] => watches.late = false,
        ["grace"] => watches.grace = true,
        ["grace", "over"] => {
            watches.grace = false;
            let at = world.state().kv.compacted();
            world.state_mut().0.kv.remove(at);
            world.watches.hear(Some(at));
        }
        ["forget"] => world.state_mut().0.kv.limit_recent(0),
        ["cut", "off"] => watches.cut_off = true,
        ["install"] => {
            watches.cut_off = false;
            let (revision, compacted) = (world.state().kv.revision(), world.state().kv.compacted());
            world.watches.feeds.tell(&[Notice::Restored { revision, compacted }]);
            world.watches.hear(None);
        }
        ["flood", key, count] => {
            let value = Bytes::from(vec![b'x'; 100_000]);
            for _ in 0..kv::number(count) {
                let request = PutRequest { key: kv::bytes(key), value: value.clone(), ..Default::default() };
                world.propose(Kind::Put(request));
            }
        }
        _ => return on_stream(watches, words),
    }
    Some(Vec::new())
}

fn on_stream(watches: &mut Watches, words: &[&str]) -> Option<Vec<String>> {
    let (name, words) = match words.split_last() {
        Some((last, rest)) => last.strip_prefix("on=").map_or(("", words), |name| (name, rest)),
        None => ("", words),
    };
    if !matches!(words[0], "watch" | "cancel" | "progress" | "ticker" | "leave" | "stall" | "resume") {
        return None;
    }
    let stream = watches.client(name).stream;
    match words {
        ["watch", range, options @ ..] => watches.shard.hub().create(stream, spec(range, options)),
        ["cancel", id] => watches.shard.hub().cancel(stream, kv::number(id)),
        ["progress"] => watches.shard.hub().progress(stream),
        ["ticker"] => watches.shard.hub().tick_progress(stream),
        ["leave"] => {
            watches.shard.hub().close_stream(stream);
            watches.streams.remove(name);
        }
        ["stall"] => watches.client(name).stalled = true,
        ["resume"] => watches.client(name).stalled = false,
        _ => return None,
    }
    Some(Vec::new())
}

fn spec(range: &str, options: &[&str]) -> Spec {
    let (key, range_end) = kv::range(range);
    let mut spec = Spec {
        range: KeyRange::from_wire(key, range_end),
        start: Revision(0),
        filters: Filters::default(),
        prev_kv: false,
        progress_notify: false,
        fragment: false,
        id: None,
    };
    for option in options {
        match option.split_once('=').unwrap_or((option, "")) {
            ("from", n) => spec.start = Revision(kv::number(n)),
            ("id", n) => spec.id = Some(kv::number(n)),
            ("prev", _) => spec.prev_kv = true,
            ("progress", _) => spec.progress_notify = true,
            ("noput", _) => spec.filters.no_put = true,
            ("nodelete", _) => spec.filters.no_delete = true,
            _ => panic!("watch has no option {option}"),
        }
    }
    spec
}

/// A line for each watcher that it is for.
fn show(message: Outgoing) -> Vec<String> {
    vec![match message {
        Outgoing::Created { id, revision } => format!("w{id} created rev={revision}"),
        Outgoing::Refused { reason, revision } => format!("refused rev={revision} {reason:?}"),
        Outgoing::Canceled { id, revision, reason: "" } => format!("w{id} canceled rev={revision}"),
        Outgoing::Canceled { id, revision, reason } => format!("w{id} canceled rev={revision}: {reason}"),
        Outgoing::Compacted { id, at } => format!("w{id} compacted at={at}"),
        Outgoing::Progress { id: Some(id), revision } => format!("w{id} progress rev={revision}"),
        Outgoing::Progress { id: None, revision } => format!("stream progress rev={revision}"),
        Outgoing::Events(events) => {
            let encoded = Bytes::from(events.events.as_slice().concat());
            let decoded = WatchResponse::decode(encoded).unwrap().events;
            let shown = decoded.iter().map(show_event).collect::<Vec<String>>().join(" & ");
            let line = |id: &i64| format!("w{id} rev={} {shown}", events.revision);
            return events.ids.as_slice().iter().map(line).collect();
        }
    }]
}

fn show_event(event: &Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let was = event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" (was {})", show_value(kv)));
    match event.r#type {
        0 => format!("put {}{was}", show_value(kv)),
        _ => {
            let only_these = KeyValue { key: kv.key.clone(), mod_revision: kv.mod_revision, ..Default::default() };
            assert_eq!(kv, &only_these, "a deletion says which key and when");
            format!("delete {} mod={}{was}", kv::show(&kv.key), kv.mod_revision)
        }
    }
}

fn show_value(kv: &KeyValue) -> String {
    if kv.value.len() > 1000 {
        return format!("{}=({} bytes) mod={}", kv::show(&kv.key), kv.value.len(), kv.mod_revision);
    }
    kv::show_kv(kv)
}
