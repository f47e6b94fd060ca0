//! N: cancelling watchers.

use super::*;

wire!(n01_n02_n03_cancel_answers_once_and_silences, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.cancel(0).await;
    stream.ask_cancel(0);
    stream.ask_cancel(99);
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(n04_cancel_does_not_disturb_others, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("k"), 1).await;
    let mut written = Vec::new();
    for n in 0..200 {
        written.push(c.put("k", "").await);
        if n == 100 {
            stream.ask_cancel(1);
        }
    }
    let said = c.before_marker(&mut stream).await;
    let heard: Vec<i64> = said.iter().filter(|r| r.watch_id == 0).flat_map(|r| &r.events).map(modified).collect();
    assert_eq!(heard, written);
});

wire!(n05_cancel_right_behind_create, |c| {
    c.put("k", "1").await;
    let mut stream = c.stream();
    stream.ask(c.one("k"));
    stream.ask_cancel(0);
    assert!(stream.next().await.created);
    assert!(stream.next().await.canceled);
    c.put("k", "2").await;
    c.assert_quiet(&mut stream).await;
});

wire!(n06_a_reused_id_hears_nothing_of_its_predecessor, |c| {
    if is_etcd() {
        return; // etcd may deliver late events of the cancelled watcher
    }
    for _ in 0..80 {
        let ops = (0..125).map(|n| put_op(c.put_request(&format!("{n}"), "v"))).collect();
        c.txn(ops).await.expect("txn");
    }
    let mut stream = c.stream();
    stream.ask(WatchCreateRequest { watch_id: 3, start_revision: 1, ..c.everything() });
    stream.ask_cancel(3);
    stream.ask(WatchCreateRequest { watch_id: 3, ..c.everything() });
    stream.until(|r| r.canceled).await;
    let created = stream.next().await;
    assert!(created.created, "{created:?}");
    c.assert_quiet(&mut stream).await;
});

wire!(n07_a_stream_without_watchers_stays_open, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.cancel(0).await;
    stream.create_as(c.one("k"), 1).await;
    c.put("k", "1").await;
    assert_eq!(stream.events().await.len(), 1);
});
