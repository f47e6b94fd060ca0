//! C: what creating a watcher is answered with, and what it then hears.

use super::*;

wire!(alone c01_created_names_the_revision, |c| {
    let revision = c.put("other", "1").await;
    assert_eq!(c.stream().create_as(c.one("k"), 0).await, revision);
});

wire!(c02_c03_c05_c07_ids_are_given_in_order_and_skip_those_in_use, |c| {
    let mut stream = c.stream();
    let with_id = |watch_id| WatchCreateRequest { watch_id, ..c.one("k") };
    stream.create_as(with_id(0), 0).await;
    stream.create_as(with_id(7), 7).await;
    stream.create_as(with_id(2), 2).await;
    stream.create_as(with_id(0), 1).await;
    stream.create_as(with_id(0), 3).await;
    stream.cancel(3).await;
    stream.create_as(with_id(0), 4).await;
});

wire!(c04_a_duplicate_id_is_refused_and_hurts_nobody, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let seven = WatchCreateRequest { watch_id: 7, ..c.one("k") };
    stream.create_as(seven.clone(), 7).await;
    stream.create_refused(seven, "mvcc: duplicate watch ID provided on the WatchStream").await;
    c.put("k", "1").await;
    let mut ids: Vec<i64> = c.before_marker(&mut stream).await.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 7]);
});

wire!(c06_an_id_is_free_after_its_cancel, |c| {
    let mut stream = c.stream();
    let five = WatchCreateRequest { watch_id: 5, ..c.one("k") };
    stream.create_as(five.clone(), 5).await;
    stream.cancel(5).await;
    stream.create_as(five, 5).await;
    c.put("k", "1").await;
    assert_eq!(c.events_of(&mut stream, 5).await.len(), 1);
});

wire!(c08_an_empty_range_is_refused, |c| {
    let mut stream = c.stream();
    for (key, end) in [("b", "a"), ("a", "a")] {
        let create = WatchCreateRequest { range_end: c.key(end), ..c.one(key) };
        stream.create_refused(create, "mvcc: watcher range is empty").await;
    }
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone c09_c10_c11_c22_open_ranges_and_the_empty_key, |c| {
    let mut stream = c.stream();
    let ranges: [(&'static [u8], &'static [u8]); 4] = [(b"", b""), (b"", b"\0"), (b"m", b"\0"), (b"\xff", b"\0")];
    for (id, (key, range_end)) in (0..).zip(ranges) {
        stream.create_as(WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }, id).await;
    }
    for key in [b"\0" as &[u8], b"l", b"m", b"z", b"\xfe", b"\xff\x00"] {
        c.put_raw(key).await;
    }
    let said = c.before_marker(&mut stream).await;
    let count = |id| said.iter().filter(|r| r.watch_id == id).flat_map(|r| &r.events)
        .filter(|e| !e.kv.as_ref().expect("kv").key.starts_with(b"~")).count();
    assert_eq!([count(0), count(1), count(2), count(3)], [1, 6, 4, 1]);
});

wire!(c12_c21_half_open_ranges, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { range_end: c.key("fop"), ..c.one("foo") }, 0).await;
    for key in ["foo", "foo1", "fo", "fop"] {
        c.put(key, "").await;
    }
    let events = c.events_of(&mut stream, 0).await;
    assert_eq!(events.iter().map(|e| &e[..8]).collect::<Vec<_>>(), ["put foo=", "put foo1"]);
});

wire!(c13_a_negative_start_is_refused, |c| {
    if is_etcd() {
        return; // refused since etcd 3.5.24
    }
    let mut stream = c.stream();
    stream.create_refused(WatchCreateRequest { start_revision: -1, ..c.one("k") }, COMPACTED).await;
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone c14_a_future_start_waits_for_its_revision, |c| {
    let revision = c.revision().await;
    let mut stream = c.stream();
    let create = WatchCreateRequest { start_revision: revision + 5, ..c.one("k") };
    assert_eq!(stream.create_as(create, 0).await, revision);
    for value in 1..=5 {
        c.put("k", &value.to_string()).await;
    }
    let response = stream.next().await;
    assert_eq!(response.header.as_ref().expect("header").revision, revision + 5);
    assert_eq!(stream.show(&response), [format!("put k=5 @{} c{} v5", revision + 5, revision + 1)]);
});

wire!(c15_history_comes_in_order, |c| {
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.put("k", "3").await];
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.one("k") }, 0).await;
    let wanted = [1, 2, 3].map(|n| format!("put k={n} @{} c{} v{n}", at[n - 1], at[0]));
    assert_eq!(stream.take(3).await, wanted);
});

wire!(alone c16_c17_c18_now_next_and_last, |c| {
    let last = c.put("k", "1").await;
    let mut stream = c.stream();
    for (id, start_revision) in [(0, 0), (1, last + 1), (2, last)] {
        stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, id).await;
    }
    stream.take(1).await;
    c.put("k", "2").await;
    let said = c.before_marker(&mut stream).await;
    let mut ids: Vec<i64> = said.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
});

wire!(c19_the_farthest_future_is_accepted, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: i64::MAX - 2, ..c.one("k") }, 0).await;
    c.put("k", "1").await;
    c.assert_quiet(&mut stream).await;
});

wire!(c20_equal_watchers_all_hear, |c| {
    let mut stream = c.stream();
    for id in 0..100 {
        stream.create_as(c.one("k"), id).await;
    }
    c.put("k", "1").await;
    let mut ids: Vec<i64> = c.before_marker(&mut stream).await.iter().map(|r| r.watch_id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
});

wire!(c23_unknown_filters_are_ignored, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { filters: vec![9], ..c.one("k") }, 0).await;
    c.put("k", "1").await;
    c.delete("k").await;
    assert_eq!(c.events_of(&mut stream, 0).await.len(), 2);
});

wire!(c24_a_key_of_a_mebibyte, |c| {
    let key: bytes::Bytes = vec![b'k'; 1 << 20].into();
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { key: key.clone(), ..Default::default() }, 0).await;
    c.send_put(PutRequest { key, ..Default::default() }).await;
    assert_eq!(stream.next().await.events.len(), 1);
});
