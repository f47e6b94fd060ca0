//! Watches: events, their streams, what is left out and what is gone.

use etcd_client::{DeleteOptions, EventType, WatchFilterType, WatchOptions, WatchResponse, WatchStream};

use crate::Members;

/// The next message.
async fn next(stream: &mut WatchStream) -> WatchResponse {
    stream.message().await.expect("it goes on").expect("it goes on")
}

/// The events of the next message that has some, each as kind, key, value and value before.
async fn events(stream: &mut WatchStream) -> Vec<String> {
    let message = loop {
        let message = next(stream).await;
        if !message.events().is_empty() {
            break message;
        }
    };
    let told = message.events().iter().map(|event| {
        let kind = match event.event_type() {
            EventType::Put => "put",
            EventType::Delete => "delete",
        };
        let kv = event.kv().expect("there is one");
        let before = event.prev_kv().map_or("-", |kv| kv.value_str().expect("text"));
        format!("{kind} {} {} {before}", kv.key_str().unwrap(), kv.value_str().unwrap())
    });
    told.collect()
}

pub(crate) async fn events_come_in_order(members: &Members) {
    let mut client = members.client().await;
    let mut stream =
        client.watch("w/", Some(WatchOptions::new().with_prefix().with_prev_key())).await.expect("watched");
    let created = next(&mut stream).await;
    assert!(created.created() && !created.canceled() && created.watch_id() == 0 && created.events().is_empty());
    let begun = created.header().expect("there is one").revision();
    client.put("w/a", "1", None).await.expect("put");
    client.put("w/a", "2", None).await.expect("put");
    client.put("other", "", None).await.expect("put");
    client.delete("w/", Some(DeleteOptions::new().with_prefix())).await.expect("deleted");
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let message = next(&mut stream).await;
        let revisions = message.events().iter().map(|event| event.kv().unwrap().mod_revision());
        assert!(revisions.clone().all(|revision| revision > begun));
        heard.extend(
            message.events().iter().map(|event| (event.event_type(), event.kv().unwrap().mod_revision() - begun)),
        );
    }
    assert_eq!(heard, [(EventType::Put, 1), (EventType::Put, 2), (EventType::Delete, 4)]);
    // Nothing is left: progress is what is known now.
    stream.request_progress().await.expect("asked");
    let progress = next(&mut stream).await;
    assert!(progress.events().is_empty() && !progress.created());
    assert_eq!((progress.watch_id(), progress.header().unwrap().revision()), (-1, begun + 4));
    stream.cancel(0).await.expect("asked");
    let canceled = next(&mut stream).await;
    assert!(canceled.canceled() && canceled.cancel_reason().is_empty() && canceled.compact_revision() == 0);
}

pub(crate) async fn streams_have_many_watchers(members: &Members) {
    let mut client = members.client().await;
    let mut watcher = client.watch_client().max_decoding_message_size(8 << 20);
    let mut stream = watcher.watch("m/a", Some(WatchOptions::new().with_watch_id(7))).await.expect("watched");
    assert_eq!(next(&mut stream).await.watch_id(), 7);
    stream.watch("m/b", Some(WatchOptions::new().with_range("m/d").with_watch_id(8))).await.expect("asked");
    let created = next(&mut stream).await;
    assert!(created.created() && created.watch_id() == 8);
    // The id is taken.
    stream.watch("m/x", Some(WatchOptions::new().with_watch_id(7))).await.expect("asked");
    let refusal = next(&mut stream).await;
    assert!(refusal.created() && refusal.canceled());
    assert_eq!(refusal.cancel_reason(), "mvcc: duplicate watch ID provided on the WatchStream");

    let (mut sender, mut receiver) = stream.split();
    let from = WatchOptions::new().with_key("").with_from_key().with_watch_id(9).with_progress_notify();
    sender.watch("m/c", Some(from)).await.expect("asked");
    sender.watch("", Some(WatchOptions::new().with_all_keys().with_watch_id(10))).await.expect("asked");
    for id in [9, 10] {
        let created = receiver.message().await.expect("it goes on").expect("it goes on");
        assert!(created.created() && created.watch_id() == id, "{created:?}");
    }
    client.put("m/c", "1", None).await.expect("put");
    let mut told = Vec::new();
    for _ in 0..3 {
        let message = receiver.message().await.expect("it goes on").expect("it goes on");
        assert_eq!(message.events()[0].kv().unwrap().key(), b"m/c");
        told.push(message.watch_id());
    }
    told.sort_unstable();
    assert_eq!(told, [8, 9, 10]);
    sender.cancel(9).await.expect("asked");
    let canceled = receiver.message().await.expect("it goes on").expect("it goes on");
    assert!(canceled.canceled() && canceled.watch_id() == 9);
    sender.request_progress().await.expect("asked");
    let progress = receiver.message().await.expect("it goes on").expect("it goes on");
    assert_eq!(progress.watch_id(), -1);
    // Who has no more to ask still hears; who hears no more ends it.
    drop(sender);
    client.put("m/a", "2", None).await.expect("put");
    let message = receiver.message().await.expect("it goes on");
    assert!(message.is_none_or(|message| message.events()[0].kv().unwrap().value() == b"2"));
}

pub(crate) async fn what_is_filtered_does_not_come(members: &Members) {
    let mut client = members.client().await;
    let filtered = |filter| WatchOptions::new().with_filters([filter]);
    let mut puts = client.watch("f", Some(filtered(WatchFilterType::NoDelete))).await.expect("watched");
    let mut deletes = client.watch("f", Some(filtered(WatchFilterType::NoPut))).await.expect("watched");
    assert!(next(&mut puts).await.created() && next(&mut deletes).await.created());
    client.put("f", "1", None).await.expect("put");
    client.delete("f", None).await.expect("deleted");
    client.put("f", "2", None).await.expect("put");
    client.delete("f", None).await.expect("deleted");
    assert_eq!([events(&mut puts).await, events(&mut puts).await].concat(), ["put f 1 -", "put f 2 -"]);
    assert_eq!([events(&mut deletes).await, events(&mut deletes).await].concat(), ["delete f  -", "delete f  -"]);
}

pub(crate) async fn history_is_told_and_what_is_gone_is_said(members: &Members) {
    let mut client = members.client().await;
    let first = client.put("g", "1", None).await.expect("put").header().unwrap().revision();
    client.put("g", "2", None).await.expect("put");
    let from = |revision| Some(WatchOptions::new().with_start_revision(revision).with_prev_key());
    let mut stream = client.watch("g", from(first)).await.expect("watched");
    assert_eq!(events(&mut stream).await, ["put g 1 -", "put g 2 1"]);
    client.compact(first + 1, None).await.expect("compacted");
    let mut stream = client.watch("g", from(first)).await.expect("watched");
    let (created, canceled) = (next(&mut stream).await, next(&mut stream).await);
    assert!(created.created() && canceled.canceled());
    assert_eq!(canceled.compact_revision(), first + 1);
}

pub(crate) async fn large_revisions_come_in_fragments(members: &Members) {
    let mut client = members.client().await;
    let value = vec![b'x'; 1 << 20];
    let first = client.put("l/0", value.clone(), None).await.expect("put").header().unwrap().revision();
    for n in 1..4 {
        client.put(format!("l/{n}"), value.clone(), None).await.expect("put");
    }
    let options = WatchOptions::new().with_prefix().with_fragment().with_start_revision(first);
    let mut stream = client.watch("l/", Some(options)).await.expect("watched");
    assert!(next(&mut stream).await.created());
    let (mut keys, mut messages) = (Vec::new(), 0);
    while keys.len() < 4 {
        let message = next(&mut stream).await;
        messages += 1;
        keys.extend(message.events().iter().map(|event| event.kv().unwrap().key_str().unwrap().to_owned()));
    }
    assert_eq!(keys, ["l/0", "l/1", "l/2", "l/3"]);
    assert!(messages > 1, "{messages}");
    client.delete("l/", Some(DeleteOptions::new().with_prefix())).await.expect("deleted");
}
