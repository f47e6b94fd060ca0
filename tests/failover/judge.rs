//! What happened, and whether a watcher was told exactly that.
//!
//! The truth is the history of one member from the first revision on, with previous values. It has to be a history at all
//! ([`Truth::check`]); that all members have the same one, and the same keys, is for the caller to ask. A watcher has been told
//! exactly that if its responses, joined over all of its streams, are what it asked for of the truth: nothing else, nothing missing,
//! in order, no revision in two responses, previous values where it wanted them and nowhere else, and progress never
//! ahead of what it was told nor behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwatch::client::resume::{News, revision_of};
use everwatch::client::{Client, Heard, Want, Watch};
use everwatch::pb::etcdserverpb::RangeRequest;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::mvccpb::{Event, KeyValue};
use tokio::time::timeout;

/// A member that has nothing to say is asked how far it is.
const SILENCE: Duration = Duration::from_millis(200);
/// Reading everything takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// All changes, from the first revision to `end`.
#[derive(Debug, PartialEq)]
pub struct Truth {
    events: Vec<Event>,
    pub end: i64,
}

/// A watcher's part in what it was told.
#[derive(Clone, Debug)]
pub enum Told {
    /// One response.
    Events(Vec<Event>),
    Progress(i64),
}

/// What became of a watcher.
#[derive(Clone, Debug)]
pub struct Record {
    pub want: Want,
    /// The revision in its first "created".
    pub created: Option<i64>,
    pub told: Vec<(Instant, Told)>,
    /// Why it is over, which none should be.
    pub over: Option<String>,
}

impl Truth {
    /// What the member at this address says.
    pub async fn read(url: &str, end: i64) -> Result<Truth, String> {
        let client = Client::new(&[url.to_owned()], 1).map_err(|error| error.to_string())?;
        let everything = Want { start_revision: 1, prev_kv: true, ..from(&[0]) };
        let mut watch = Watch::new(client, [everything], 0, 0);
        let mut events = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while watch.next_revision(0).is_some_and(|next| next <= end) {
            if Instant::now() > deadline {
                return Err(format!("{url} has not told its history up to {end} within {PATIENCE:?}"));
            }
            match timeout(SILENCE, watch.next()).await {
                Err(_) => watch.ask_progress(),
                Ok(Ok(Some(Heard::Of(_, News::Events(more))))) => events.extend(more),
                Ok(Ok(Some(Heard::Of(_, news @ (News::Compacted { .. } | News::Ended { .. }))))) => {
                    return Err(format!("{url}: {news:?}"));
                }
                Ok(Ok(Some(_))) => {}
                Ok(other) => return Err(format!("{url}: {other:?}")),
            }
        }
        events.retain(|event| revision_of(event) <= end);
        Ok(Truth { events, end })
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The changes of one revision.
    pub fn at(&self, revision: i64) -> &[Event] {
        let first = self.events.partition_point(|event| revision_of(event) < revision);
        let after = self.events.partition_point(|event| revision_of(event) <= revision);
        &self.events[first..after]
    }

    /// The keys after the last change. What is wrong with the history itself comes with it: each revision has a change, each
    /// change says what it makes of the key, and what was there before.
    pub fn check(&self) -> (BTreeMap<Bytes, KeyValue>, Vec<String>) {
        let mut keys: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
        let mut wrongs = Vec::new();
        // The first revision is that of the empty store.
        let mut last = 1;
        for event in &self.events {
            let revision = revision_of(event);
            if revision != last && revision != last + 1 {
                wrongs.push(format!("after revision {last} comes {revision}"));
            }
            last = revision;
            let kv = event.kv.clone().unwrap_or_default();
            let before = keys.get(&kv.key).cloned();
            let right = match (event.r#type, &before) {
                (0, None) => kv.version == 1 && kv.create_revision == revision,
                (0, Some(old)) => kv.version == old.version + 1 && kv.create_revision == old.create_revision,
                (_, None) => false,
                (_, Some(_)) => kv == KeyValue { key: kv.key.clone(), mod_revision: revision, ..Default::default() },
            };
            if !right || event.prev_kv != before {
                wrongs.push(format!(
                    "{} does not follow {}",
                    in_short(event),
                    before.as_ref().map_or("nothing".into(), kv_in_short)
                ));
            }
            if event.r#type == 0 {
                keys.insert(kv.key.clone(), kv)
            } else {
                keys.remove(&kv.key)
            };
        }
        if last != self.end {
            wrongs.push(format!("the last change is at {last}, not {}", self.end));
        }
        (keys, wrongs)
    }

    /// What a watcher is to be told from revision `first` on.
    fn selected(&self, want: &Want, first: i64) -> Vec<Event> {
        let wanted = |event: &&Event| {
            let filtered = if event.r#type == 0 { want.no_put } else { want.no_delete };
            revision_of(event) >= first && covers(want, key_of(event)) && !filtered
        };
        let told = |event: &Event| Event { prev_kv: event.prev_kv.clone().filter(|_| want.prev_kv), ..event.clone() };
        self.events.iter().filter(wanted).map(told).collect()
    }

    /// What was wrong with what a watcher was told; it should have been told everything.
    pub fn judge(&self, record: &Record) -> Vec<String> {
        let mut wrongs = Vec::new();
        if let Some(why) = &record.over {
            wrongs.push(format!("it is over: {why}"));
        }
        let Some(created) = record.created else {
            return vec!["it was never created".into()];
        };
        let first = if record.want.start_revision > 0 { record.want.start_revision } else { created + 1 };
        let selected = self.selected(&record.want, first);
        let mut rest = selected.iter();
        let mut reached = first - 1;
        for (_, told) in &record.told {
            match told {
                Told::Events(events) => {
                    let begin = events.first().map_or(0, revision_of);
                    if begin <= reached {
                        wrongs.push(format!("a response begins at {begin}, and it had been told up to {reached}"));
                    }
                    for event in events {
                        reached = reached.max(revision_of(event));
                        match rest.next() {
                            Some(due) if due == event => {}
                            due => {
                                let due = due.map_or("nothing more".into(), in_short);
                                wrongs.push(format!("told {}, and due was {due}", in_short(event)));
                                // The rest would only repeat it.
                                return wrongs;
                            }
                        }
                    }
                }
                Told::Progress(revision) => {
                    if let Some(due) = rest.as_slice().first().filter(|due| revision_of(due) <= *revision) {
                        wrongs.push(format!("progress at {revision} before {}", in_short(due)));
                    }
                    if *revision < reached {
                        wrongs.push(format!("progress at {revision}, and it had been told up to {reached}"));
                    }
                    reached = reached.max(*revision);
                }
            }
        }
        if let Some(due) = rest.next() {
            wrongs.push(format!("not told {} and {} more", in_short(due), rest.len()));
        }
        wrongs
    }
}

/// The keys of a member, as they were at this revision.
pub async fn keys(client: &Client, member: usize, revision: i64) -> Result<Vec<KeyValue>, String> {
    let everything = RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        revision,
        serializable: true,
        ..Default::default()
    };
    let mut kv = KvClient::new(client.channel(member, 0)).max_decoding_message_size(usize::MAX);
    kv.range(everything)
        .await
        .map(|answer| answer.into_inner().kvs)
        .map_err(|status| format!("m{}: {status}", member + 1))
}

/// A watcher of all keys from this one on.
pub fn from(key: &[u8]) -> Want {
    Want { key: key.to_vec().into(), range_end: vec![0].into(), ..Want::default() }
}

pub fn key_of(event: &Event) -> &Bytes {
    static NONE: Bytes = Bytes::new();
    event.kv.as_ref().map_or(&NONE, |kv| &kv.key)
}

pub fn is_put(event: &Event, key: &Bytes, value: &Bytes) -> bool {
    event.r#type == 0 && event.kv.as_ref().is_some_and(|kv| kv.key == key && kv.value == value)
}

fn covers(want: &Want, key: &Bytes) -> bool {
    match &want.range_end[..] {
        [] => *key == want.key,
        [0] => *key >= want.key,
        end => *key >= want.key && &key[..] < end,
    }
}

/// An event in a line.
fn in_short(event: &Event) -> String {
    let what = if event.r#type == 0 { "put" } else { "delete" };
    let before = event.prev_kv.as_ref().map_or(String::new(), |kv| format!(" (before: {})", kv_in_short(kv)));
    format!("{what} {}{before}", event.kv.as_ref().map_or("without key".into(), kv_in_short))
}

fn kv_in_short(kv: &KeyValue) -> String {
    let value = String::from_utf8_lossy(&kv.value[..kv.value.len().min(40)]).into_owned();
    let key = String::from_utf8_lossy(&kv.key);
    format!("{key}={value:?} @{} of {} version {}", kv.mod_revision, kv.create_revision, kv.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts of a and b at 2, of a at 3, of b at 4; a is deleted and c put at 5.
    fn truth() -> Truth {
        let kv = |key: &'static str, create, modified, version| KeyValue {
            key: key.into(),
            value: format!("value {modified}").into(),
            create_revision: create,
            mod_revision: modified,
            version,
            lease: 0,
        };
        let put =
            |kv: &KeyValue, prev: Option<&KeyValue>| Event { r#type: 0, kv: Some(kv.clone()), prev_kv: prev.cloned() };
        let (a2, b2, a3, b4, c5) =
            (kv("a", 2, 2, 1), kv("b", 2, 2, 1), kv("a", 2, 3, 2), kv("b", 2, 4, 2), kv("c", 5, 5, 1));
        let gone = KeyValue { key: "a".into(), mod_revision: 5, ..Default::default() };
        let gone = Event { r#type: 1, kv: Some(gone), prev_kv: Some(a3.clone()) };
        let events =
            vec![put(&a2, None), put(&b2, None), put(&a3, Some(&a2)), put(&b4, Some(&b2)), gone, put(&c5, None)];
        Truth { events, end: 5 }
    }

    /// A watcher of everything with previous values, told each revision by itself and then how far it is.
    fn told() -> Record {
        let truth = truth();
        let mut told: Vec<Told> = (2..=5).map(|revision| Told::Events(truth.at(revision).to_vec())).collect();
        told.push(Told::Progress(5));
        let told = told.into_iter().map(|told| (Instant::now(), told)).collect();
        let want = Want { start_revision: 1, prev_kv: true, ..from(&[0]) };
        Record { want, created: Some(1), told, over: None }
    }

    /// What is wrong after `change`; `first` is the beginning of the first complaint.
    fn wrong(first: &str, change: impl FnOnce(&mut Record)) {
        let mut record = told();
        change(&mut record);
        let wrongs = truth().judge(&record);
        assert!(wrongs.first().is_some_and(|wrong| wrong.starts_with(first)), "{first}: {wrongs:#?}");
    }

    fn events(told: &mut Told) -> &mut Vec<Event> {
        match told {
            Told::Events(events) => events,
            Told::Progress(_) => panic!("no events"),
        }
    }

    #[test]
    fn the_truth_is_a_history_and_what_it_selects_is_right() {
        let (keys, wrongs) = truth().check();
        assert_eq!(wrongs, Vec::<String>::new());
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(truth().judge(&told()), Vec::<String>::new());
        let shape = |want: Want, first| {
            let selected = truth().selected(&want, first);
            assert!(selected.iter().all(|event| event.prev_kv.is_none()));
            selected.iter().map(|event| (key_of(event).clone(), revision_of(event))).collect::<Vec<_>>()
        };
        let one = |key: &'static str| Want { key: key.into(), ..Want::default() };
        assert_eq!(shape(one("a"), 3), [("a".into(), 3), ("a".into(), 5)]);
        assert_eq!(shape(Want { no_put: true, ..one("a") }, 1), [("a".into(), 5)]);
        assert_eq!(shape(Want { no_delete: true, ..one("a") }, 1), [("a".into(), 2), ("a".into(), 3)]);
        assert_eq!(shape(Want { range_end: "c".into(), ..one("b") }, 1), [("b".into(), 2), ("b".into(), 4)]);
        assert_eq!(shape(from(b"b"), 4), [("b".into(), 4), ("c".into(), 5)]);
    }

    #[test]
    fn a_history_that_cannot_be_is_found_out() {
        let changes: [fn(&mut Vec<Event>); 4] = [
            |events| drop(events.remove(2)),
            |events| events.truncate(4),
            |events| events[3].prev_kv = None,
            |events| events[4].kv.as_mut().expect("a key").version = 1,
        ];
        for change in changes {
            let mut truth = truth();
            change(&mut truth.events);
            assert_ne!(truth.check().1, Vec::<String>::new());
        }
    }

    #[test]
    fn whatever_is_not_exact_is_found_out() {
        wrong("told put b", |record| drop(record.told.remove(1)));
        wrong("told put a", |record| drop(events(&mut record.told[0].1).pop()));
        wrong("not told put c", |record| {
            record.told.pop();
            drop(events(&mut record.told[3].1).pop());
        });
        wrong("a response begins at 2", |record| record.told.insert(1, record.told[0].clone()));
        wrong("told put b", |record| record.told.swap(1, 2));
        wrong("told put b", |record| events(&mut record.told[0].1).swap(0, 1));
        wrong("a response begins at 2, and it had been told up to 2", |record| {
            let second = events(&mut record.told[0].1).split_off(1);
            record.told.insert(1, (record.told[0].0, Told::Events(second)));
        });
        wrong("told put a", |record| events(&mut record.told[1].1)[0].prev_kv = None);
        wrong("told put a", |record| record.want.prev_kv = false);
        wrong("a response begins at 2, and it had been told up to 2", |record| record.want.start_revision = 3);
        wrong("progress at 3 before put a", |record| record.told.insert(1, (record.told[0].0, Told::Progress(3))));
        wrong("progress at 2, and", |record| record.told.push((record.told[0].0, Told::Progress(2))));
        wrong("it was never created", |record| record.created = None);
        wrong("it is over", |record| record.over = Some("compacted".into()));
    }
}
