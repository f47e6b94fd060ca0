//! Ranges of keys, as requests name them and as watchers are found by them, against a look at every key of a small alphabet.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use everwatch::mvcc::Store;
use everwatch::pb::etcdserverpb::PutRequest;
use everwatch::storage::backend::Backend;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::types::{KeyRange, Revision};
use everwatch::watch::{Filters, Hub, Next, Outgoing, Refusal, Spec};

use crate::engine::{Feed, outcome};

/// The letters of all keys: the smallest byte, one between, and the two largest.
const LETTERS: [u8; 4] = [0, b'a', 0xfe, 0xff];

fn word(feed: &mut Feed<'_>) -> Bytes {
    (0..feed.below(4)).map(|_| feed.pick(&LETTERS)).collect()
}

/// Every word of up to three letters.
fn words() -> BTreeSet<Bytes> {
    let mut words = BTreeSet::from([Bytes::new()]);
    for _ in 0..3 {
        let longer = |word: &Bytes| LETTERS.map(|letter| Bytes::from([&word[..], &[letter]].concat()));
        words.extend(words.iter().flat_map(longer).collect::<Vec<_>>());
    }
    words
}

/// The end of a range that holds everything with this prefix, as clients make it.
fn after_prefix(prefix: &[u8]) -> Bytes {
    match prefix.iter().rposition(|byte| *byte < 0xff) {
        Some(at) => [&prefix[..at], &[prefix[at] + 1]].concat().into(),
        None => Bytes::from_static(&[0]),
    }
}

/// Whether a key belongs to a range, in the words of the API.
fn belongs(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        _ => start <= key && key < end,
    }
}

fn wire_range(feed: &mut Feed<'_>) -> (Bytes, Bytes) {
    let start = word(feed);
    let end = match feed.below(6) {
        0 => Bytes::new(),
        1 => Bytes::from_static(&[0]),
        2 => after_prefix(&start),
        3 => [&start[..], &[0]].concat().into(),
        _ => word(feed),
    };
    (start, end)
}

fn algebra(feed: &mut Feed<'_>) -> u64 {
    let words = words();
    let mut held = 0;
    for _ in 0..4 {
        let (start, end) = wire_range(feed);
        let range = KeyRange::from_wire(start.clone(), end.clone());
        let expected: Vec<&Bytes> = words.iter().filter(|word| belongs(word, &start, &end)).collect();
        let found: Vec<&Bytes> = words.iter().filter(|word| range.contains(word)).collect();
        assert_eq!(found, expected, "{start:?} {end:?}");
        assert!(!range.is_empty() || expected.is_empty(), "{start:?} {end:?} is empty and holds {expected:?}");
        if !range.is_empty() {
            // Something can lie in it: its start does.
            assert!(range.contains(&start), "{start:?} {end:?}");
            let map: BTreeMap<&[u8], ()> = words.iter().map(|word| (&word[..], ())).collect();
            let bounded: Vec<&[u8]> = map.range::<[u8], _>(range.bounds()).map(|(word, ())| *word).collect();
            assert_eq!(bounded, expected, "{start:?} {end:?}");
        }
        if end == after_prefix(&start) && !start.is_empty() {
            let all = words.iter().filter(|word| word.starts_with(&start)).all(|word| range.contains(word));
            assert!(all, "{start:?} is a prefix of something outside");
        }
        held += expected.len();
    }
    outcome((0, held / 8))
}

/// Watchers come and go; every key that changes concerns exactly those whose range holds it.
fn watchers(feed: &mut Feed<'_>) -> u64 {
    let (mut store, _) = Store::open(MemoryBackend::new().reader().expect("memory")).expect("an empty store");
    let mut hub = Hub::new(store.revision(), store.compacted());
    let (stream, outbox) = hub.open_stream();
    let mut live: BTreeMap<i64, (Bytes, Bytes)> = BTreeMap::new();
    let mut told_most = 0;
    while !feed.is_empty() {
        match feed.below(5) {
            0 | 1 => {
                let (start, end) = wire_range(feed);
                let range = KeyRange::from_wire(start.clone(), end.clone());
                let empty = range.is_empty();
                let (filters, start_at) = (Filters::default(), Revision(0));
                hub.create(
                    stream,
                    Spec {
                        range,
                        start: start_at,
                        filters,
                        prev_kv: false,
                        progress_notify: false,
                        fragment: false,
                        id: None,
                    },
                );
                match outbox.try_next() {
                    Some(Next::Message(Outgoing::Created { id, .. })) => {
                        assert!(!empty && live.insert(id, (start, end)).is_none());
                    }
                    Some(Next::Message(Outgoing::Refused { reason: Refusal::EmptyRange, .. })) => assert!(empty),
                    other => panic!("{other:?} is no answer"),
                }
            }
            2 if !live.is_empty() => {
                let id = *live.keys().nth(feed.below(live.len())).expect("one of them");
                hub.cancel(stream, id);
                live.remove(&id);
                assert!(
                    matches!(outbox.try_next(), Some(Next::Message(Outgoing::Canceled { id: gone, .. })) if gone == id)
                );
            }
            _ => {
                let key = word(feed);
                let put = PutRequest { key: key.clone(), ..Default::default() };
                let changes = store.put(&put).expect("a put").changes.expect("it changed something");
                hub.publish(&changes, &mut |_| None);
                let mut told = BTreeSet::new();
                while let Some(next) = outbox.try_next() {
                    let Next::Message(Outgoing::Events(events)) = next else { panic!("{next:?} is no event") };
                    for id in events.ids.as_slice() {
                        assert!(told.insert(*id), "watcher {id} was told twice of {key:?}");
                    }
                }
                let concerned = live.iter().filter(|(_, (start, end))| belongs(&key, start, end));
                let concerned: BTreeSet<i64> = concerned.map(|(id, _)| *id).collect();
                assert_eq!(told, concerned, "{key:?} in {live:?}");
                told_most = told_most.max(told.len());
            }
        }
    }
    outcome((1, told_most, live.len() / 4))
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    if feed.one_in(3) { algebra(&mut feed) } else { watchers(&mut feed) }
}
