//! P: progress, asked for and periodic.

use super::*;

wire!(alone p01_progress_on_request, |c| {
    let at = c.put("other", "1").await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("l"), 1).await;
    let (revision, before) = stream.progress().await;
    assert_eq!((revision, before.len()), (at, 0));
    c.assert_quiet(&mut stream).await;
});

wire!(alone p02_one_answer_to_one_question, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(c.one("l"), 1).await;
    stream.progress().await;
    for _ in 0..3 {
        stream.ask_progress();
        let response = stream.next().await;
        assert!(is_progress(&response) && response.watch_id == -1, "{response:?}");
        c.assert_quiet(&mut stream).await;
    }
});

wire!(p03_p12_progress_never_overtakes_an_event_and_never_falls, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    let (mut told, mut promised) = (0, 0);
    for _ in 0..200 {
        let written = c.put("k", "v").await;
        stream.ask_progress();
        while told < written {
            let response = stream.next().await;
            let revision = response.header.as_ref().expect("header").revision;
            if is_progress(&response) {
                assert!(revision >= promised && (revision < written || told >= written), "{revision} before {written}");
                promised = revision;
            }
            told = response.events.last().map_or(told, modified);
        }
    }
});

wire!(p04_progress_of_a_stream_without_watchers, |c| {
    if is_etcd() {
        return; // silent since etcd 3.5.8; before, any request was answered at once
    }
    let mut stream = c.stream();
    stream.ask_progress();
    stream.create_as(c.one("k"), 0).await;
});

wire!(alone p05_progress_of_a_watcher_that_starts_now, |c| {
    let start_revision = c.put("other", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(alone p06_p07_no_progress_before_a_future_start, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.22
    }
    let start_revision = c.revision().await + 6;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 0).await;
    stream.ask_progress();
    c.put("other", "1").await;
    let said = c.before_marker(&mut stream).await;
    assert!(said.iter().all(|r| r.header.as_ref().expect("header").revision >= start_revision), "{said:?}");
    while c.put("other", "2").await < start_revision {}
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(alone p07_a_synced_watcher_does_not_speak_for_one_in_the_future, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.22
    }
    let start_revision = c.revision().await + 3;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { start_revision, ..c.one("k") }, 1).await;
    stream.ask_progress();
    c.put("other", "1").await;
    let of_stream = |r: &WatchResponse| is_progress(r) && r.watch_id == -1;
    let said = c.before_marker(&mut stream).await;
    assert!(!said.iter().any(of_stream), "{said:?}");
    while c.put("other", "2").await < start_revision {}
    assert!(stream.progress().await.0 >= start_revision);
});

wire!(with ["--experimental-watch-progress-notify-interval=500ms"] p08_periodic_progress_is_spread, |c| {
    let revision = c.put("other", "1").await;
    let opened = Instant::now();
    let mut streams: Vec<Stream> = (0..20).map(|_| c.stream()).collect();
    for stream in &mut streams {
        stream.create_as(WatchCreateRequest { progress_notify: true, watch_id: 7, ..c.one("k") }, 7).await;
    }
    // What arrives together once may be this machine's doing; what is never apart is the server's.
    for _ in 0..5 {
        let heard = streams.iter_mut().map(async |stream: &mut Stream| {
            let response = stream.next().await;
            assert!(is_progress(&response) && response.watch_id == 7, "{response:?}");
            assert_eq!(response.header.expect("a header").revision, revision);
            opened.elapsed()
        });
        let heard = together(heard).await;
        let (first, last) = (heard.iter().min().expect("20"), heard.iter().max().expect("20"));
        assert!(*first >= Duration::from_millis(500), "told before the interval was over: {first:?}");
        if *last - *first >= Duration::from_millis(10) {
            return;
        }
    }
    panic!("20 streams are always told at the same moment");
});

wire!(with ["--experimental-watch-progress-notify-interval=200ms"] p09_periodic_progress_is_for_those_who_asked, |c| {
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { progress_notify: true, ..c.one("k") }, 1).await;
    for _ in 0..5 {
        let response = stream.next().await;
        assert!(is_progress(&response) && response.watch_id == 1, "{response:?}");
    }
});

wire!(with ["--experimental-watch-progress-notify-interval=1s"] p10_no_periodic_progress_beside_events, |c| {
    let interval = Duration::from_secs(1);
    for _ in 0..5 {
        let mut stream = c.stream();
        stream.create_as(WatchCreateRequest { progress_notify: true, ..c.one("k") }, 0).await;
        let (begun, mut earlier, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let mut progress = 0;
        while begun.elapsed() < 5 * interval / 2 {
            let now = Instant::now();
            c.put("k", "1").await;
            longest = longest.max(earlier.elapsed());
            earlier = now;
            while let Ok(response) = stream.responses.try_recv() {
                progress += usize::from(is_progress(&response.expect("the stream goes on")));
            }
        }
        // Only if the machine let us write often enough has the server no reason to speak.
        if longest < interval {
            assert_eq!(progress, 0);
            return stream.until(is_progress).await.clear();
        }
    }
    panic!("this machine is too busy to write once a second");
});

wire!(p11_no_progress_before_all_of_history, |c| {
    if is_etcd() {
        return; // kept since etcd 3.5.8
    }
    for n in 0..1001 {
        c.put(&format!("k{n}"), "v").await;
    }
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.everything() }, 0).await;
    let (_, before) = stream.progress().await;
    assert_eq!(before.iter().map(|r| r.events.len()).sum::<usize>(), 1001);
});

wire!(alone p13_each_question_of_a_watcher_that_keeps_up_is_answered, |c| {
    let at = c.put("other", "1").await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    // The first that etcd answers: it counts a watcher among those that keep up a moment after it was created.
    stream.progress().await;
    for _ in 0..100 {
        stream.ask_progress();
        let response = stream.next().await;
        assert!(is_progress(&response) && response.watch_id == -1, "{response:?}");
        assert_eq!(response.header.expect("a header").revision, at);
    }
    c.assert_quiet(&mut stream).await;
});

wire!(p14_progress_after_the_only_late_watcher_is_cancelled, |c| {
    for n in 0..1001 {
        c.put(&format!("k{n}"), "v").await;
    }
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.ask(WatchCreateRequest { start_revision: 1, ..c.everything() });
    stream.ask_cancel(1);
    stream.until(|r| r.canceled).await;
    let revision = c.revision().await;
    assert!(stream.progress().await.0 >= revision);
});

wire!(alone p15_progress_in_spite_of_a_watcher_the_compaction_ended, |c| {
    if is_etcd() {
        return; // etcd stays silent until the client cancels the ended watcher
    }
    c.put("k", "1").await;
    let at = c.put("k", "2").await;
    c.compact(at).await;
    let mut stream = c.stream();
    stream.create_as(c.one("k"), 0).await;
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.one("k") }, 1).await;
    stream.until(|r| r.canceled).await;
    assert_eq!(stream.progress().await.0, at);
});
