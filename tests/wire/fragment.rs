//! G: large responses, cut for those who asked and kept small for those who did not.

use prost::Message;

use super::*;

/// Where a response is cut: etcd's limit of a request and half a mebibyte.
const CUT_BYTES: usize = (3 << 19) + (1 << 19);
const KIB: usize = 1 << 10;

async fn put_large(c: &mut Client, key: &str, bytes: usize) -> i64 {
    c.send_put(PutRequest { value: vec![b'v'; bytes].into(), ..c.put_request(key, "") }).await
}

/// The next response, in the pieces it comes in.
async fn pieces(stream: &mut Stream) -> Vec<WatchResponse> {
    let mut pieces = vec![stream.next().await];
    while pieces.last().expect("one at least").fragment {
        pieces.push(stream.next().await);
    }
    for piece in &pieces {
        assert!(!piece.events.is_empty() && !piece.created && !piece.canceled, "not a piece: {}", piece.watch_id);
        assert!(piece.encoded_len() < CUT_BYTES || piece.events.len() == 1, "{} bytes", piece.encoded_len());
        assert_eq!((piece.watch_id, &piece.header), (pieces[0].watch_id, &pieces[0].header));
    }
    pieces
}

wire!(alone g01_g03_history_is_cut_between_events_for_those_who_asked, |c| {
    let mut written = Vec::new();
    for n in 0..10 {
        written.push(put_large(&mut c, &format!("{n}"), 1 << 20).await);
    }
    for n in 0..8 {
        written.push(put_large(&mut c, &format!("{n}"), 300 * KIB).await);
    }
    let mut stream = c.stream();
    let create = WatchCreateRequest { start_revision: 1, fragment: true, ..c.everything() };
    stream.create_as(create, 0).await;
    let (mut heard, mut responses, mut cuts) = (Vec::new(), 0, 0);
    while heard.len() < written.len() {
        let pieces = pieces(&mut stream).await;
        responses += pieces.len();
        cuts += pieces.len() - 1;
        heard.extend(pieces.iter().flat_map(|piece| &piece.events).map(modified));
    }
    assert_eq!(heard, written);
    assert!(responses > 5, "{responses} responses");
    assert!(cuts > 0 || !is_etcd(), "etcd sends one response, in pieces");
    let at = c.put("small", "1").await;
    let response = stream.next().await;
    assert_eq!((response.fragment, modified(&response.events[0])), (false, at));
});

wire!(alone g02_nothing_is_cut_for_those_who_did_not_ask, |c| {
    let mut written = Vec::new();
    for n in 0..10 {
        written.push(put_large(&mut c, &format!("{n}"), 1 << 20).await);
    }
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.everything() }, 0).await;
    let mut heard = Vec::new();
    while heard.len() < written.len() {
        let response = stream.next().await;
        assert!(!response.fragment);
        heard.extend(response.events.iter().map(modified));
    }
    assert_eq!(heard, written);
});

wire!(alone g04_a_revision_that_is_cut_is_not_mixed_with_others, |c| {
    for n in 0..5 {
        put_large(&mut c, &format!("{n}"), 700 * KIB).await;
    }
    let mut live = c.stream();
    live.create_as(WatchCreateRequest { prev_kv: true, fragment: true, ..c.everything() }, 0).await;
    // What a request may hold is less than where responses are cut, but what was there before counts, too.
    let at = c.delete_all().await;
    let next = c.put("next", "1").await;
    let mut late = c.stream();
    let history = WatchCreateRequest { prev_kv: true, fragment: true, start_revision: at, ..c.everything() };
    late.create_as(history, 0).await;
    for stream in [&mut live, &mut late] {
        let pieces = pieces(stream).await;
        let heard: Vec<i64> = pieces.iter().flat_map(|piece| &piece.events).map(modified).collect();
        assert!(pieces.len() > 1, "it was not cut");
        assert_eq!(heard[..5], [at; 5]);
        assert!(pieces.iter().flat_map(|piece| &piece.events).take(5).all(|event| event.prev_kv.is_some()));
        // The rest of history may be in the same response, behind it.
        match &heard[5..] {
            [] => assert_eq!(stream.events().await, [format!("put next=1 @{next} c{next} v1")]),
            rest => assert_eq!(rest, [next]),
        }
    }
});

wire!(g05_an_event_is_not_cut, |c| {
    put_large(&mut c, "k", 1400 * KIB).await;
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { prev_kv: true, fragment: true, ..c.one("k") }, 0).await;
    put_large(&mut c, "k", 1400 * KIB).await;
    let response = stream.next().await;
    assert!(response.encoded_len() > CUT_BYTES, "{} bytes", response.encoded_len());
    assert_eq!((response.events.len(), response.fragment), (1, false));
    c.assert_quiet(&mut stream).await;
});

wire!(alone g06_history_fits_a_client_with_the_usual_limit, |c| {
    if is_etcd() {
        return; // etcd sends up to a thousand revisions at once
    }
    let mut written = Vec::new();
    for n in 0..100 {
        written.push(put_large(&mut c, &format!("{n}"), 100 * KIB).await);
    }
    let mut stream = c.stream();
    stream.create_as(WatchCreateRequest { start_revision: 1, ..c.everything() }, 0).await;
    let mut heard = Vec::new();
    while heard.len() < written.len() {
        let response = stream.next().await;
        assert!(response.encoded_len() <= 4 << 20, "{} bytes", response.encoded_len());
        heard.extend(response.events.iter().map(modified));
    }
    assert_eq!(heard, written);
});
