//! Watch responses as the bytes of a gRPC stream.
//!
//! They are not built as messages. An event was encoded once for everybody; what differs from watcher to watcher is a head of some
//! twenty bytes, and most of that is the same for all watchers of a change. So a response is: the length that gRPC wants, the header
//! field as it was encoded for the first of them, the id, the events as they are. Only what comes before the events is written here; the
//! events themselves are referred to, however many watchers get them.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;

use super::status::watch_refused;
use super::woven::Woven;
use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::server::watch_loop::Standing;
use crate::types::Revision;
use crate::watch::{Events, Outgoing};

/// Bytes gathered before they are handed to the connection: a frame of HTTP/2 as most clients take them, and not a little more, which
/// would be a frame of its own. A stream that is busy keeps three such pieces.
pub(super) const WRITE_BYTES: usize = 16 << 10;
/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// The largest message that Go's gRPC sends, and so the largest that clients can expect.
const MESSAGE_MAX: usize = i32::MAX as usize;
/// The id of a response that is about no watcher.
const NO_WATCHER: i64 = -1;
/// Field 1 of `WatchResponse`, length-delimited.
const HEADER_TAG: u8 = 1 << 3 | 2;
/// Field 2 of `WatchResponse`, varint.
const WATCH_ID_TAG: u8 = 2 << 3;
/// Field 7 of `WatchResponse`, varint: true.
const FRAGMENT: [u8; 2] = [7 << 3, 1];
/// The most that id and fragment field take.
const HEAD_REST_BYTES: usize = 1 + 10 + FRAGMENT.len();

/// Turns messages into pieces for the connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Responses that are larger are cut for those who asked for that.
    response_bytes_max: usize,
    open: Woven,
    /// A message of which some watchers have not been written their response.
    unfinished: Option<Unfinished>,
}

/// A message with events, and how much of it is written.
#[derive(Debug)]
struct Unfinished {
    events: Events,
    /// The encoded header field.
    header: Vec<u8>,
    /// What each watcher is written: one response, or several.
    responses: Vec<Cut>,
    /// How many watchers have all of theirs, and how many of its responses the next one has.
    watchers: usize,
    done: usize,
    /// The events of the next response that are written, if it has been begun.
    begun: Option<usize>,
}

/// The events of one response.
#[derive(Debug)]
struct Cut {
    events: std::ops::Range<usize>,
    bytes: usize,
}

impl Frames {
    pub(super) fn new(response_bytes_max: usize) -> Frames {
        Frames { response_bytes_max, open: Woven::default(), unfinished: None }
    }

    /// What is gathered, for the connection.
    pub(super) fn take(&mut self) -> Option<Woven> {
        (!self.is_empty()).then(|| std::mem::take(&mut self.open))
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        !self.open.has_remaining()
    }

    /// Whether so much is gathered that it should be taken before more is written.
    pub(super) fn is_full(&self) -> bool {
        self.open.remaining() >= WRITE_BYTES
    }

    /// Goes on with a message that was not finished when enough was gathered. Whether none is left unfinished. However large a message
    /// is, what is gathered of it is not.
    pub(super) fn resume(&mut self) -> bool {
        let Some(mut message) = self.unfinished.take() else { return true };
        let finished = self.go_on(&mut message);
        if !finished {
            self.unfinished = Some(message);
        }
        finished
    }

    fn go_on(&mut self, message: &mut Unfinished) -> bool {
        let Unfinished { events, header, responses, watchers, done, begun } = message;
        let (ids, list) = (events.ids.as_slice(), &events.events);
        while let Some(id) = ids.get(*watchers) {
            let Cut { events, bytes } = &responses[*done];
            let mut at = match *begun {
                Some(at) => at,
                None => {
                    let head = PREFIX_BYTES + header.len() + HEAD_REST_BYTES;
                    let longest = head + bytes;
                    if !self.is_empty() && self.open.remaining() + longest > WRITE_BYTES {
                        return false;
                    }
                    if self.is_empty() {
                        self.open.reserve((ids.len() - *watchers).min(WRITE_BYTES / longest + 1), head, *bytes);
                    }
                    self.begin(header, *id, *done + 1 < responses.len(), *bytes);
                    events.start
                }
            };
            while at < events.end {
                if self.is_full() {
                    *begun = Some(at);
                    return false;
                }
                // `events` is the last field of the message: what follows its head is the whole of it.
                self.open.share(list, at);
                at += 1;
            }
            *begun = None;
            *done += 1;
            if *done == responses.len() {
                (*watchers, *done) = (*watchers + 1, 0);
            }
        }
        true
    }

    /// Writes a message: one response, or one for each of its watchers, and more for those who let theirs be cut. An error ends the
    /// stream: one revision's events are more than a message can hold.
    pub(super) fn write(&mut self, message: Outgoing, standing: &Standing) -> Result<(), Status> {
        debug_assert!(self.unfinished.is_none());
        let head = |revision: Revision, watch_id: i64| WatchResponse {
            header: Some(header(standing, revision)),
            watch_id,
            ..Default::default()
        };
        let response = match message {
            Outgoing::Created { id, revision } => WatchResponse { created: true, ..head(revision, id) },
            Outgoing::Refused { reason: refusal, revision } => WatchResponse {
                created: true,
                canceled: true,
                cancel_reason: watch_refused(refusal).to_owned(),
                ..head(revision, NO_WATCHER)
            },
            Outgoing::Canceled { id, revision, reason } => {
                WatchResponse { canceled: true, cancel_reason: reason.to_owned(), ..head(revision, id) }
            }
            // etcd leaves the revision out here.
            Outgoing::Compacted { id, at } => {
                WatchResponse { canceled: true, compact_revision: at.0, ..head(Revision(0), id) }
            }
            Outgoing::Progress { id, revision } => head(revision, id.unwrap_or(NO_WATCHER)),
            Outgoing::Events(events) => {
                let header = header(standing, events.revision);
                let mut field = Vec::with_capacity(48);
                field.push(HEADER_TAG);
                encode_varint(header.encoded_len() as u64, &mut field);
                header.encode_raw(&mut field);
                // All watchers get the same pieces, however long their ids are.
                let head = field.len() + HEAD_REST_BYTES;
                let mut end = 0;
                let cut = |piece: &[Bytes]| {
                    let start = end;
                    end += piece.len();
                    Cut { events: start..end, bytes: piece.iter().map(Bytes::len).sum() }
                };
                let responses: Vec<Cut> = events.pieces(head, self.response_bytes_max).into_iter().map(cut).collect();
                if let Some(large) = responses.iter().map(|cut| head + cut.bytes).find(|bytes| *bytes > MESSAGE_MAX) {
                    let text = format!("trying to send message larger than max ({large} vs. {MESSAGE_MAX})");
                    return Err(Status::resource_exhausted(text));
                }
                self.unfinished =
                    Some(Unfinished { events, header: field, responses, watchers: 0, done: 0, begun: None });
                self.resume();
                return Ok(());
            }
        };
        self.prefix(response.encoded_len());
        self.open.put_slice(&response.encode_to_vec());
        Ok(())
    }

    /// The beginning of a response with so many bytes of events.
    fn begin(&mut self, header: &[u8], id: i64, fragment: bool, bytes: usize) {
        let id_bytes = if id == 0 { 0 } else { 1 + encoded_len_varint(id as u64) };
        let fragment = if fragment { &FRAGMENT[..] } else { &[] };
        self.prefix(header.len() + id_bytes + fragment.len() + bytes);
        self.open.put_slice(header);
        if id != 0 {
            let mut field = [WATCH_ID_TAG; 1 + 10];
            encode_varint(id as u64, &mut &mut field[1..]);
            self.open.put_slice(&field[..id_bytes]);
        }
        self.open.put_slice(fragment);
    }

    /// What comes before a message of so many bytes.
    fn prefix(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).expect("larger ones are refused before");
        let [a, b, c, d] = bytes.to_be_bytes();
        self.open.put_slice(&[0, a, b, c, d]);
    }
}

fn header(standing: &Standing, revision: Revision) -> ResponseHeader {
    ResponseHeader {
        cluster_id: standing.cluster.0,
        member_id: standing.member.0,
        revision: revision.0,
        raft_term: standing.term.0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::mvcc::change::{Change, ChangeKind};
    use crate::pb::mvccpb::KeyValue;
    use crate::types::{ClusterId, MemberId, Term};
    use crate::watch::{EventList, Ids};

    const STANDING: Standing = Standing {
        cluster: ClusterId(7),
        member: MemberId(u64::MAX),
        term: Term(3),
        leader: None,
        learner: false,
        lagging: false,
    };

    fn events(ids: &[i64], sizes: &[usize], fragment: bool) -> Events {
        let event = |bytes: &usize| {
            let kv = KeyValue { key: "k".into(), value: vec![1; *bytes].into(), ..Default::default() };
            let change = Change::new("k".into(), ChangeKind::Put, kv.encode_to_vec().into(), None);
            change.event(Revision(9)).clone()
        };
        let list: Vec<Bytes> = sizes.iter().map(event).collect();
        let bytes = list.iter().map(Bytes::len).sum();
        let ids = Ids::Many(ids.into());
        Events { ids, revision: Revision(9), events: EventList::Many(Arc::new(list)), bytes, fragment }
    }

    /// Everything that is written, in as many rounds as it takes, as messages.
    fn decode(frames: &mut Frames) -> Vec<WatchResponse> {
        let mut all = Vec::new();
        loop {
            let finished = frames.resume();
            while let Some(mut piece) = frames.take() {
                all.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
            }
            assert!(frames.is_empty());
            if finished {
                break;
            }
        }
        let mut responses = Vec::new();
        let mut rest = &all[..];
        while let [compressed, a, b, c, d, body @ ..] = rest {
            assert_eq!(*compressed, 0);
            let (body, next) = body.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            responses.push(WatchResponse::decode(body).unwrap());
            rest = next;
        }
        assert!(rest.is_empty());
        responses
    }

    #[test]
    fn each_watcher_is_written_the_message_of_the_api() {
        for sizes in [&[1][..], &[10, 20_000, 30], &[20_000, 20_000]] {
            let mut frames = Frames::new(usize::MAX);
            let ids = [i64::MIN, -5, 0, 1, 300, i64::MAX];
            frames.write(Outgoing::Events(events(&ids, sizes, true)), &STANDING).unwrap();
            let responses = decode(&mut frames);
            assert_eq!(responses.iter().map(|response| response.watch_id).collect::<Vec<_>>(), ids);
            for response in responses {
                let expected = ResponseHeader { cluster_id: 7, member_id: u64::MAX, revision: 9, raft_term: 3 };
                assert_eq!(response.header, Some(expected));
                let values: Vec<usize> =
                    response.events.iter().map(|event| event.kv.as_ref().unwrap().value.len()).collect();
                assert_eq!((values, response.fragment, response.created), (sizes.to_vec(), false, false));
            }
        }
    }

    #[test]
    fn pieces_of_one_watcher_follow_each_other() {
        let mut frames = Frames::new(1000);
        frames.write(Outgoing::Events(events(&[1, 2], &[400, 400, 2000, 10], true)), &STANDING).unwrap();
        let shape: Vec<_> = decode(&mut frames).iter().map(|r| (r.watch_id, r.fragment, r.events.len())).collect();
        let of = |id| [(id, true, 2), (id, true, 1), (id, false, 1)];
        assert_eq!(shape, [of(1), of(2)].concat());
        frames.write(Outgoing::Events(events(&[1], &[400, 400, 2000, 10], false)), &STANDING).unwrap();
        assert_eq!(decode(&mut frames).len(), 1, "nobody is cut who did not ask");
    }

    #[test]
    fn what_no_message_can_hold_is_an_error() {
        let mut frames = Frames::new(usize::MAX);
        // The same event again and again: what counts is what would be written.
        let mut large = events(&[1], &[16 << 20], false);
        let event = large.events.as_slice()[0].clone();
        large.events = EventList::Many(Arc::new(vec![event; 130]));
        let error = frames.write(Outgoing::Events(large), &STANDING).unwrap_err();
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_large_message_is_written_in_portions() {
        let mut frames = Frames::new(usize::MAX);
        let sizes: Vec<usize> = (0..3000).map(|n| if n % 100 == 0 { 40_000 } else { n % 500 }).collect();
        frames.write(Outgoing::Events(events(&[1, 2], &sizes, false)), &STANDING).unwrap();
        let mut most = frames.open.remaining();
        let mut all = Vec::new();
        loop {
            while let Some(mut piece) = frames.take() {
                all.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
            }
            let finished = frames.resume();
            most = most.max(frames.open.remaining());
            if finished && frames.is_empty() {
                break;
            }
        }
        assert!(most < WRITE_BYTES + 41_000, "{most}");
        let (first, second) = all.split_at(all.len() / 2);
        for response in [first, second] {
            let response = WatchResponse::decode(&response[PREFIX_BYTES..]).unwrap();
            let values = response.events.iter().map(|event| event.kv.as_ref().unwrap().value.len());
            assert!(values.eq(sizes.iter().copied()));
        }
    }

    #[test]
    fn a_message_for_many_is_written_in_portions() {
        let ids: Vec<i64> = (0..10_000).collect();
        let mut frames = Frames::new(usize::MAX);
        frames.write(Outgoing::Events(events(&ids, &[300], false)), &STANDING).unwrap();
        let bytes = frames.open.remaining();
        assert!(bytes > WRITE_BYTES - 1000 && bytes <= WRITE_BYTES, "{bytes}");
        assert_eq!(decode(&mut frames).iter().map(|response| response.watch_id).collect::<Vec<_>>(), ids);
    }
}
