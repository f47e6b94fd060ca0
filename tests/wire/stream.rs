//! S: the stream, its life and its end.

use super::*;

wire!(s01_a_stream_that_is_asked_nothing_says_nothing, |c| {
    let (mut silent, mut other) = (c.stream(), c.stream());
    other.create_as(c.one("k"), 0).await;
    c.put("k", "1").await;
    assert_eq!(other.events().await.len(), 1);
    assert!(silent.responses.try_recv().is_err_and(|none| none == mpsc::error::TryRecvError::Empty));
    silent.create_as(c.one("k"), 0).await;
});

wire!(s02_an_empty_request_is_ignored, |c| {
    let mut stream = c.stream();
    stream.request(None);
    stream.create_as(c.one("k"), 0).await;
});

wire!(s03_events_flow_after_half_close, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.send = None;
    let at = c.put("k", "1").await;
    assert_eq!(stream.events().await, [format!("put k=1 @{at} c{at} v1")]);
});

wire!(s04_streams_of_one_connection_are_independent, |c| {
    let (mut first, mut second) = (c.stream(), c.stream());
    first.create_as(c.one("k"), 0).await;
    second.create_as(c.one("k"), 0).await;
    c.put("k", "1").await;
    assert_eq!(first.events().await, second.events().await);
});

wire!(alone s05_watchers_of_a_client_that_dies_are_forgotten, |c| {
    const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";
    let before = c.server.metric(WATCHERS);
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (server, key) = (c.server.clone(), c.key("k"));
    let opened = dying.spawn(async move {
        let channel = Client::connect(&server).await;
        let mut streams = Vec::new();
        for _ in 0..1000 {
            let create = WatchCreateRequest { key: key.clone(), ..Default::default() };
            let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            let requests = tokio_stream::once(request).chain(tokio_stream::pending());
            let mut stream = WatchClient::new(channel.clone()).watch(requests).await.expect("watch").into_inner();
            assert!(stream.message().await.expect("the stream goes on").expect("created").created);
            streams.push(stream);
        }
        streams
    });
    let streams = opened.await.expect("no panic");
    assert!(c.server.metric(WATCHERS) >= before + 1000.0);
    // Its sockets are closed with nothing said.
    dying.shutdown_background();
    drop(streams);
    let deadline = Instant::now() + PATIENCE;
    while c.server.metric(WATCHERS) > before {
        assert!(Instant::now() < deadline, "the watchers of a dead client are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    c.put("k", "1").await;
});

wire!(with ["--grpc-keepalive-interval=1s", "--grpc-keepalive-timeout=1s"] s05_watchers_of_a_client_that_falls_silent_are_forgotten, |c| {
    const WATCHERS: &str = "etcd_debugging_mvcc_watcher_total";
    let before = c.server.metric(WATCHERS);
    let server = c.server.url.strip_prefix("http://").expect("our own url").to_owned();
    let wires = proxy::Wires::to(&[server]);
    let url = format!("http://{}", wires.addresses[0]);
    let channel = Channel::from_shared(url).expect("our own url").connect().await.expect("the proxy listens");
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(unread(&channel, c.one("k"), 10).await);
    }
    assert!(c.server.metric(WATCHERS) >= before + 100.0);
    // Its connection stays open, and nothing passes.
    wires.cut(proxy::OUTSIDE, 0);
    let deadline = Instant::now() + PATIENCE;
    while c.server.metric(WATCHERS) > before {
        assert!(Instant::now() < deadline, "the watchers of a silent client are still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    c.put("k", "1").await;
});

wire!(alone s06_streams_that_come_and_go_disturb_nobody, |c| {
    let mut control = c.stream();
    control.create_as(c.everything(), 0).await;
    let disturbers = (0..8_u64).map(|seed| {
        let (channel, key) = (c.channel.clone(), c.key("k"));
        tokio::spawn(async move {
            let mut dice = seed;
            let mut roll = move |sides: u64| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % sides
            };
            for _ in 0..40 {
                let (send, requests) = mpsc::unbounded_channel();
                for _ in 0..roll(20) {
                    let union = match roll(4) {
                        0 => RequestUnion::CancelRequest(WatchCancelRequest { watch_id: roll(8) as i64 }),
                        1 => RequestUnion::ProgressRequest(WatchProgressRequest {}),
                        _ => RequestUnion::CreateRequest(WatchCreateRequest {
                            key: key.clone(),
                            start_revision: roll(3) as i64,
                            prev_kv: roll(2) == 0,
                            ..Default::default()
                        }),
                    };
                    send.send(WatchRequest { request_union: Some(union) }).expect("it is open");
                }
                let (responses, patience) = (roll(10), Duration::from_millis(1 + roll(30)));
                let watch = async {
                    let mut client = WatchClient::new(channel.clone());
                    let mut stream = client.watch(UnboundedReceiverStream::new(requests)).await?.into_inner();
                    for _ in 0..responses {
                        stream.message().await?;
                    }
                    Ok::<_, Status>(())
                };
                // Left in the middle of whatever it was in: etcd answers an empty stream with nothing at all.
                if let Ok(over) = tokio::time::timeout(patience, watch).await {
                    over.expect("no stream breaks");
                }
            }
        })
    });
    let disturbers: Vec<_> = disturbers.collect();
    let mut written = Vec::new();
    while written.len() < 300 || disturbers.iter().any(|disturber| !disturber.is_finished()) {
        written.push(c.put("k", "v").await);
    }
    for disturber in disturbers {
        disturber.await.expect("no panic");
    }
    let said = c.before_marker(&mut control).await;
    assert_eq!(said.iter().flat_map(|r| &r.events).map(modified).collect::<Vec<_>>(), written);
});

wire!(s07_a_stream_that_its_client_ends_harms_nothing, |c| {
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(c.one("k"))) };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(c.channel.clone()).watch(requests).await.expect("watch").into_inner();
    assert!(stream.message().await.expect("the stream goes on").expect("created").created);
    // The call is cancelled, not half-closed.
    drop(stream);
    let mut other = c.stream();
    other.create_as(c.one("k"), 0).await;
    c.put("k", "1").await;
    assert_eq!(other.events().await.len(), 1);
});

wire!(s08_answers_come_in_the_order_of_the_requests, |c| {
    let mut stream = c.stream();
    for _ in 0..100 {
        stream.ask(c.one("k"));
    }
    for id in 0..100 {
        assert_eq!(stream.next().await.watch_id, id);
    }
});

wire!(s09_created_precedes_history, |c| {
    let start_revision = c.put("k", "1").await;
    let mut stream = c.stream();
    for _ in 0..2 {
        stream.ask(WatchCreateRequest { start_revision, ..c.one("k") });
    }
    let (mut created, mut told) = ([false; 2], [0; 2]);
    while told != [1, 1] {
        let response = stream.next().await;
        let id = usize::try_from(response.watch_id).expect("0 or 1");
        created[id] |= response.created;
        assert!(created[id], "an event before created: {response:?}");
        told[id] += response.events.len();
    }
    c.assert_quiet(&mut stream).await;
});

wire!(alone what_watchers_cost_and_why_they_end_is_counted, |c| {
    if is_etcd() {
        return;
    }
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("other"), 1).await;
    c.put("k", "1").await;
    stream.take(1).await;
    stream.cancel(1).await;
    stream.create_refused(WatchCreateRequest { range_end: "a".into(), ..c.one("k") }, "mvcc: watcher range is empty").await;
    let server = c.server.clone();
    let metric = |name: &str| server.metric(name);
    assert_eq!(metric("etcd_debugging_mvcc_watcher_total"), 1.0);
    assert_eq!(metric("everwatch_watch_cancels_total{reason=\"client\"}"), 1.0);
    assert_eq!(metric("everwatch_watch_cancels_total{reason=\"refused\"}"), 1.0);
    assert_eq!(metric("everwatch_watch_queued_bytes") + metric("everwatch_watch_lagging_streams"), 0.0);
    // The first write's event may have been older than what is remembered.
    c.put("k", "2").await;
    stream.take(1).await;
    assert!(metric("everwatch_watch_delivery_seconds_count") >= 1.0);
    let mut late = c.stream();
    late.create_as(WatchCreateRequest { start_revision: 2, ..c.one("k") }, 0).await;
    late.take(2).await;
    assert_eq!(metric("everwatch_watch_caught_up_events_total"), 2.0);
    assert!(metric("everwatch_watch_caught_up_bytes_total") > 0.0);
});

#[tokio::test]
async fn threads_that_serve_clients_have_watches_of_their_own() {
    if is_etcd() {
        return;
    }
    let server = Server::start_with(&["--edge-threads=3"]);
    let mut writer = Client::on(server.clone()).await;
    let watched = writer.one("k");
    let mut streams = Vec::new();
    // The system shares connections out, as it likes.
    for _ in 0..12 {
        let mut stream = Client::on(server.clone()).await.stream();
        stream.create_as(watched.clone(), 0).await;
        streams.push(stream);
    }
    let mut written = Vec::new();
    for _ in 0..100 {
        written.push(writer.put("k", "1").await);
        // "Now" is not behind what was acknowledged, whoever serves it.
        let now = writer.stream().create(watched.clone()).await.header.expect("a header").revision;
        assert!(now >= *written.last().expect("just written"));
    }
    for stream in &mut streams {
        let mut told: Vec<i64> = Vec::new();
        while told.len() < written.len() {
            told.extend(stream.next().await.events.iter().map(modified));
        }
        assert_eq!(told, written);
        let (promised, events) = stream.progress().await;
        assert!(promised >= written[99] && events.is_empty());
    }
    assert!(server.metric("etcd_debugging_mvcc_watcher_total") >= 12.0);
}
