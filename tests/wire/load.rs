//! L: many watchers, slow ones and late ones: who is told what, and what it costs the server in memory. How fast is
//! measured elsewhere (`everwatch-bench`). F-19: watches of a store that is full.

use super::*;

impl Client {
    /// Puts of one key, several at a time. Their revisions, in order.
    async fn put_often(&self, key: &str, bytes: usize, times: usize) -> Vec<i64> {
        let request = PutRequest { value: vec![b'v'; bytes].into(), ..self.put_request(key, "") };
        let mut revisions = Vec::new();
        while revisions.len() < times {
            let puts = (0..(times - revisions.len()).min(25)).map(|_| {
                let (mut kv, request) = (self.kv.clone(), request.clone());
                async move { kv.put(request).await.expect("put").into_inner().header.expect("a header").revision }
            });
            revisions.extend(together(puts).await);
        }
        revisions.sort_unstable();
        revisions
    }
}

/// Reads until `last`; the revisions of all events.
async fn heard_until(stream: &mut tonic::Streaming<WatchResponse>, last: i64) -> Vec<i64> {
    let mut heard = Vec::new();
    while heard.last().is_none_or(|revision| *revision < last) {
        let response = read(stream).await;
        assert!(!response.canceled, "{response:?}");
        heard.extend(response.events.iter().map(modified));
    }
    heard
}

wire!(alone l01_a_stream_that_is_not_read_holds_up_no_other_and_misses_nothing, |c| {
    let channel = narrow(&c.server).await;
    let mut stalled = unread(&channel, c.one("k"), 1).await;
    let mut other = c.stream();
    other.create_as(c.one("k"), 0).await;
    let written = c.put_often("k", 16 << 10, 800).await;
    let said = c.before_marker(&mut other).await;
    assert_eq!(said.iter().flat_map(|r| &r.events).map(modified).collect::<Vec<_>>(), written);
    assert_eq!(heard_until(&mut stalled, *written.last().expect("800")).await, written);
});

wire!(alone l02_streams_that_are_not_read_do_not_fill_the_memory, |c| {
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let channel = narrow(&c.server).await;
        for _ in 0..10 {
            stalled.push(unread(&channel, c.one("k"), 1).await);
        }
    }
    let before = c.server.resident_bytes();
    // A hundred copies of it are more than a gigabyte.
    let written = c.put_often("k", 64 << 10, 200).await;
    let grown = c.server.resident_bytes().saturating_sub(before);
    assert!(grown < 256 << 20 || is_etcd(), "{} MiB", grown >> 20);
    for stream in stalled.iter_mut().step_by(33) {
        assert_eq!(heard_until(stream, *written.last().expect("200")).await, written);
    }
});

wire!(alone l03_a_watcher_far_behind_catches_up_while_others_write, |c| {
    let mut revisions = Vec::new();
    for _ in 0..160 {
        let ops = (0..125).map(|n| put_op(c.put_request(&format!("{n}"), "v"))).collect();
        revisions.push(c.txn(ops).await.expect("txn"));
    }
    let mut stream = unread(&c.channel, WatchCreateRequest { start_revision: 1, ..c.everything() }, 1).await;
    let written = c.put_often("k", 100, 200).await;
    let heard = heard_until(&mut stream, *written.last().expect("200")).await;
    let wanted: Vec<i64> = revisions.iter().flat_map(|at| [*at; 125]).chain(written).collect();
    assert!(heard == wanted, "{} events, not {}", heard.len(), wanted.len());
});

wire!(alone l04_hundreds_of_late_watchers_of_a_stream_hear_all_or_that_it_was_compacted, |c| {
    if is_etcd() {
        return; // a silent gap until etcd 3.5.13
    }
    const WATCHERS: usize = 500;
    let channel = narrow(&c.server).await;
    let mut stream = unread(&channel, WatchCreateRequest { prev_kv: true, ..c.one("k") }, WATCHERS).await;
    let mut last = 0;
    for n in 1..=100 {
        last = c.put("k", &"v".repeat(200)).await;
        if n % 20 == 0 {
            c.compact(last - 5).await;
        }
    }
    let mut versions = [0; WATCHERS];
    let (mut left, mut ended) = (WATCHERS, [false; WATCHERS]);
    while left > 0 {
        let response = read(&mut stream).await;
        let id = usize::try_from(response.watch_id).expect("an id of the server's choice");
        assert!(!ended[id], "it was over: {response:?}");
        for event in &response.events {
            let kv = event.kv.as_ref().expect("kv");
            assert_eq!(kv.version, versions[id] + 1, "a silent gap of watcher {id}");
            versions[id] = kv.version;
            if let Some(previous) = &event.prev_kv {
                assert_eq!((previous.version, previous.value.len()), (kv.version - 1, 200));
            }
            ended[id] = kv.mod_revision == last;
        }
        if response.canceled {
            assert!(response.compact_revision > 1 + versions[id], "for want of what was there: {response:?}");
            ended[id] = true;
        }
        left -= usize::from(ended[id]);
    }
});

wire!(alone l05_large_reads_on_the_same_port_stop_no_event, |c| {
    for n in 0..50 {
        c.send_put(PutRequest { value: vec![b'v'; 100 << 10].into(), ..c.put_request(&format!("{n}"), "") }).await;
    }
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let enough = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..10)
        .map(|_| {
            let (mut kv, enough) = (c.kv.clone(), enough.clone());
            let all = RangeRequest { key: c.key(""), range_end: c.end(), ..Default::default() };
            tokio::spawn(async move {
                while !enough.load(Ordering::SeqCst) {
                    assert!(kv.range(all.clone()).await.expect("range").into_inner().count >= 50);
                }
            })
        })
        .collect();
    for value in 0..20 {
        let at = c.put("k", &value.to_string()).await;
        assert_eq!(modified(&stream.next().await.events[0]), at);
    }
    enough.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.expect("no panic");
    }
});

wire!(alone l06_a_thousand_prefix_watchers_hear_every_write, |c| {
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(unread(&c.channel, c.everything(), 100).await);
    }
    let writing = async { c.put_often("k", 10, 25).await };
    let reading = streams.iter_mut().map(async |stream: &mut tonic::Streaming<WatchResponse>| {
        let mut heard = vec![Vec::new(); 100];
        while heard.iter().any(|of_one: &Vec<i64>| of_one.len() < 25) {
            let response = read(stream).await;
            heard[response.watch_id as usize].extend(response.events.iter().map(modified));
        }
        heard
    });
    let (written, heard) = tokio::join!(writing, together(reading));
    assert!(heard.iter().flatten().all(|of_one| *of_one == written));
});

/// Gives each stream a watcher of every one of these keys.
async fn watch_keys(c: &Client, streams: Vec<Stream>, keys: std::ops::Range<usize>) -> Vec<Stream> {
    let filled = streams.into_iter().enumerate().map(|(n, mut stream): (usize, Stream)| {
        keys.clone().for_each(|key| stream.ask(c.one(&format!("{n}/{key}"))));
        let count = keys.len();
        async move {
            for _ in 0..count {
                assert!(stream.next().await.created);
            }
            stream
        }
    });
    together(filled).await
}

wire!(alone l07_idle_watchers_are_small, |c| {
    // What the first ones cost is the server's, not theirs.
    let streams = watch_keys(&c, (0..10).map(|_| c.stream()).collect(), 0..500).await;
    let before = c.server.resident_bytes();
    let mut streams = watch_keys(&c, streams, 500..3500).await;
    let each = c.server.resident_bytes().saturating_sub(before) / 30_000;
    assert!(each < 1024 || is_etcd(), "{each} bytes");
    c.put("3/777", "1").await;
    let response = streams[3].next().await;
    assert_eq!((response.watch_id, response.events.len()), (777, 1));
    for stream in &mut streams {
        c.assert_quiet(stream).await;
    }
});

wire!(alone l08_one_write_reaches_ten_thousand_watchers_once, |c| {
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(unread(&c.channel, c.one("k"), 100).await);
    }
    // The second tells that the first has come once and not again. They are read at once: a client library may end a
    // connection on which too many small frames wait.
    let writing = async { c.put_often("k", 1, 2).await };
    let reading = streams.iter_mut().map(async |stream: &mut tonic::Streaming<WatchResponse>| {
        let mut heard = vec![Vec::new(); 100];
        while heard.iter().any(|of_one: &Vec<i64>| of_one.len() < 2) {
            let response = read(stream).await;
            heard[response.watch_id as usize].extend(response.events.iter().map(modified));
        }
        heard
    });
    let (written, heard) = tokio::join!(writing, together(reading));
    assert!(heard.iter().flatten().all(|of_one| *of_one == written));
});

wire!(with ["--quota-backend-bytes=4194304"] f19_a_full_store_still_tells_of_deletions_and_of_history, |c| {
    let mut stream = c.stream();
    stream.create_as(c.everything(), 0).await;
    let mut written = 0;
    let status = loop {
        let key = format!("{written}");
        let large = PutRequest { value: vec![b'v'; 256 << 10].into(), ..c.put_request(&key, "") };
        match c.kv.put(large).await {
            Ok(_) => written += 1,
            Err(status) => break status,
        }
        assert!(written < 1000, "it is never full");
    };
    let full = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    assert_eq!((status.code(), status.message()), full);
    let at = c.delete("0").await;
    let live = stream.take(written + 1).await;
    assert_eq!(live[written], format!("delete 0 @{at}"));
    let mut late = c.stream();
    late.create_as(WatchCreateRequest { start_revision: 1, ..c.everything() }, 0).await;
    assert_eq!(late.take(written + 1).await, live);
    for stream in [&mut stream, &mut late] {
        assert!(stream.progress().await.0 >= at);
    }
});
