//! X: filters.

use super::*;

wire!(x01_to_x05_filters_live_and_from_history, |c| {
    c.put("b", "1").await;
    let mut live = c.stream();
    let filtered = |filters: &[i32]| WatchCreateRequest { filters: filters.to_vec(), ..c.everything() };
    for (id, filters) in [(0, &[0][..]), (1, &[1]), (2, &[0, 1])] {
        live.create_as(filtered(filters), id).await;
    }
    let ops = vec![put_op(c.put_request("a", "1")), delete_op(c.key("b"), "".into())];
    let start_revision = c.txn(ops).await.expect("txn");
    let wanted =
        [vec![format!("delete b @{start_revision}")], vec![format!("put a=1 @{start_revision} c{start_revision} v1")]];
    let said = c.before_marker(&mut live).await;
    let mut told: Vec<(i64, Vec<String>)> = said.iter().map(|r| (r.watch_id, live.show(r))).collect();
    told.sort();
    assert_eq!(told, [(0, wanted[0].clone()), (1, wanted[1].clone())]);
    for (filters, wanted) in [([0], &wanted[0]), ([1], &wanted[1])] {
        let create = WatchCreateRequest { start_revision, filters: filters.to_vec(), ..c.everything() };
        let mut late = c.stream();
        late.create_as(create, 0).await;
        assert_eq!(&late.events().await, wanted);
    }
});

wire!(alone x06_progress_passes_filtered_traffic, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { filters: vec![0, 1], ..c.everything() }, 0).await;
    let at = c.put("k", "1").await;
    let (revision, before) = stream.progress().await;
    assert_eq!((revision, before.len()), (at, 0));
});

wire!(with ["--experimental-watch-progress-notify-interval=200ms"] x06_periodic_progress_passes_filtered_traffic, |c| {
    let mut stream = c.stream();
    let create = WatchCreateRequest { filters: vec![0, 1], progress_notify: true, ..c.everything() };
    let (begun, mut promised) = (stream.create_as(create, 0).await, Vec::new());
    let deadline = Instant::now() + PATIENCE;
    // Twice, while there is always something new that it does not hear of.
    while promised.len() < 2 {
        c.put("k", "1").await;
        assert!(Instant::now() < deadline, "no progress");
        while let Ok(response) = stream.responses.try_recv() {
            let response = response.expect("the stream goes on");
            assert!(is_progress(&response) && response.watch_id == 0, "{response:?}");
            promised.push(response.header.expect("a header").revision);
        }
    }
    assert!(promised[0] > begun && promised.is_sorted_by(|a, b| a < b), "{begun} {promised:?}");
});
