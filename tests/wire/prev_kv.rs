//! V: what was there before, for those who asked.

use super::*;

wire!(v01_to_v04_prev_kv_only_for_those_who_asked, |c| {
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, ..c.everything() }, 0).await;
    stream.create_as(c.everything(), 1).await;
    stream.create_as(WatchCreateRequest { prev_kv: true, ..c.everything() }, 2).await;
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.delete("k").await];
    let said = c.before_marker(&mut stream).await;
    let of = |id| said.iter().filter(|r| r.watch_id == id).flat_map(|r| stream.show(r)).collect::<Vec<_>>();
    let [r1, r2, r3] = at;
    assert_eq!(
        of(1),
        [format!("put k=1 @{r1} c{r1} v1"), format!("put k=2 @{r2} c{r1} v2"), format!("delete k @{r3}")]
    );
    for id in [0, 2] {
        assert_eq!(
            of(id),
            [
                format!("put k=1 @{r1} c{r1} v1"),
                format!("put k=2 @{r2} c{r1} v2 <- 1@{r1}"),
                format!("delete k @{r3} <- 2@{r2}")
            ]
        );
    }
});

wire!(v05_prev_kv_from_history, |c| {
    let at = [c.put("k", "1").await, c.put("k", "2").await, c.put("k", "3").await];
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, start_revision: at[0], ..c.one("k") }, 0).await;
    let [r1, r2, r3] = at;
    assert_eq!(
        stream.take(3).await,
        [
            format!("put k=1 @{r1} c{r1} v1"),
            format!("put k=2 @{r2} c{r1} v2 <- 1@{r1}"),
            format!("put k=3 @{r3} c{r1} v3 <- 2@{r2}")
        ]
    );
});

wire!(alone v06_prev_kv_below_the_compaction_is_absent_or_right, |c| {
    let first = c.put("k", "1").await;
    let start_revision = c.put("k", "2").await;
    c.compact(start_revision).await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, start_revision, ..c.one("k") }, 0).await;
    let bare = format!("put k=2 @{start_revision} c{first} v2");
    let event = stream.take(1).await.remove(0);
    assert!(event == bare || event == format!("{bare} <- 1@{first}"), "{event}");
});

wire!(v07_a_put_that_is_filtered_is_not_told_with_prev_kv_either, |c| {
    c.put("k", "1").await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, filters: vec![0], ..c.one("k") }, 0).await;
    c.txn(vec![put_op(c.put_request("k", "2"))]).await.expect("txn");
    c.assert_quiet(&mut stream).await;
});
