//! K: compaction and the watchers it overtakes.

use super::*;

wire!(alone k01_k02_k03_k07_starts_around_the_compaction, |c| {
    for value in 2..=10 {
        c.put("k", &value.to_string()).await;
    }
    c.compact(5).await;
    let mut stream = c.stream();
    let from = |start_revision| WatchCreateRequest { start_revision, ..c.one("k") };
    stream.create_as(from(0), 0).await;
    for (id, start) in [(1, 3), (2, 4)] {
        stream.create_as(from(start), id).await;
        let end = stream.next().await;
        assert_eq!((end.watch_id, end.created, end.canceled, end.compact_revision, end.events.len()), (id, false, true, 5, 0));
        assert_eq!(end.cancel_reason, "");
    }
    stream.create_as(from(5), 3).await;
    assert_eq!(stream.take(6).await[0], "put k=5 @5 c2 v4");
    c.put("k", "11").await;
    let said = c.before_marker(&mut stream).await;
    let mut ids: Vec<i64> = said.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 3]);
});

wire!(alone k04_compaction_does_not_touch_a_watcher_that_keeps_up, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let at = c.put("k", "1").await;
    c.compact(at).await;
    c.put("k", "2").await;
    assert_eq!(stream.take(2).await.len(), 2);
    c.assert_quiet(&mut stream).await;
});

wire!(alone k05_k06_a_deletion_at_the_compaction_is_told_even_after_a_crash, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.16
    }
    for value in ["1", "2", "3"] {
        c.put("k", value).await;
    }
    let start_revision = c.delete("k").await;
    let again = c.put("k", "4").await;
    c.compact(start_revision).await;
    let wanted = [format!("delete k @{start_revision}"), format!("put k=4 @{again} c{again} v1")];
    for crash in [false, true] {
        if crash {
            c.server.crash_and_restart();
            c.reconnect().await;
        }
        let mut stream = c.stream();
        stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
        assert_eq!(stream.take(2).await, wanted);
    }
});

wire!(alone k07_a_watcher_the_compaction_ended_may_be_cancelled, |c| {
    c.put("k", "1").await;
    let at = c.put("k", "2").await;
    c.compact(at).await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.one("k") }, 1).await;
    assert_eq!(stream.next().await.compact_revision, at);
    stream.ask_cancel(1);
    // It is answered or not.
    let said = c.before_marker(&mut stream).await;
    assert!(said.iter().all(|r| r.watch_id == 1 && r.canceled && r.compact_revision == 0), "{said:?}");
    assert!(said.len() <= 1, "{said:?}");
    c.put("k", "3").await;
    assert_eq!(stream.events().await.len(), 1);
});

wire!(alone k08_keys_last_changed_before_the_compaction_are_not_told, |c| {
    c.put("old", "1").await;
    c.put("k", "1").await;
    let start_revision = c.put("k", "2").await;
    c.compact(start_revision).await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.everything() }, 0).await;
    assert_eq!(stream.take(1).await, ["put k=2 @4 c3 v2"]);
    c.assert_quiet(&mut stream).await;
});

wire!(alone k09_a_future_start_beyond_the_compaction, |c| {
    let at = c.put("k", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: at + 2, ..c.one("k") }, 0).await;
    c.compact(at).await;
    c.put("k", "2").await;
    c.put("k", "3").await;
    assert_eq!(stream.take(1).await, [format!("put k=3 @{} c{at} v3", at + 2)]);
});

wire!(alone k10_a_paused_reader_misses_nothing_silently, |c| {
    let mut stream = unread(&narrow(&c.server).await, c.one("k"), 1).await;
    let (value, mut last) = ("v".repeat(8 << 10), 0);
    for n in 1..=2000 {
        last = c.put("k", &value).await;
        if n > 100 && n % 50 == 0 {
            c.compact(last - 100).await;
        }
    }
    let (mut told, mut version) = (0, 0);
    while told < last {
        let response = read(&mut stream).await;
        if response.canceled {
            assert!(response.compact_revision > told + 1, "ended for want of what was there: {response:?}, {told}");
            return;
        }
        for event in &response.events {
            let kv = event.kv.as_ref().expect("kv");
            assert_eq!(kv.version, version + 1, "a silent gap");
            (told, version) = (kv.mod_revision, kv.version);
        }
    }
});

wire!(alone k11_logical_compaction_is_visible_at_once, |c| {
    for _ in 0..5 {
        c.put("k", "1").await;
    }
    c.kv.compact(CompactionRequest { revision: 5, physical: false }).await.expect("compact");
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 2, ..c.one("k") }, 0).await;
    assert_eq!(stream.next().await.compact_revision, 5);
    let old = RangeRequest { key: c.key("k"), revision: 4, ..Default::default() };
    let status = c.kv.range(old).await.expect_err("compacted");
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, COMPACTED));
});
