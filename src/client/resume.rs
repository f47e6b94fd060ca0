//! Where a watcher goes on: what of a stream's responses counts, and from which revision the next stream must start.
//!
//! The rule. A watcher stands at the first revision it has not been handed. "Created" moves one that asked for "now" behind
//! the header's revision; events move it behind their last change; progress behind its revision. The header of *events*
//! moves nothing: etcd names the store's revision there, which may be ahead of what it has sent.
//!
//! Pieces of a response that was cut are kept until the last one is there: whoever goes on elsewhere after half a revision
//! would get the first half twice or the second never.

use bytes::Bytes;

use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::Event;

/// What a watcher wants to hear of.
#[derive(Clone, Debug, Default)]
pub struct Want {
    /// The key, or the first of a range.
    pub key: Bytes,
    /// The first key after the range; empty: one key; a zero byte: no end.
    pub range_end: Bytes,
    /// The first revision; 0: what comes from now on.
    pub start_revision: i64,
    /// With what was there before each change.
    pub prev_kv: bool,
    /// With a word from time to time how far it is.
    pub progress_notify: bool,
    /// Large responses may come in pieces. They are handed out whole all the same.
    pub fragment: bool,
    /// Without puts.
    pub no_put: bool,
    /// Without deletions.
    pub no_delete: bool,
}

/// What a response means for its watcher.
#[derive(Debug, PartialEq)]
pub enum News {
    /// It exists, for the first time: it is handed what comes after this revision, or from where it wanted to start.
    Created {
        /// What the server had applied.
        revision: i64,
    },
    /// Changes, whole revisions.
    Events(Vec<Event>),
    /// Nothing up to this revision will follow.
    Progress {
        /// Up to where.
        revision: i64,
    },
    /// Compaction removed what it wanted next. It is over.
    Compacted {
        /// The oldest revision it could start from.
        at: i64,
    },
    /// The server does not have it, or not any longer. It is over.
    Ended {
        /// In the server's words.
        reason: String,
    },
}

/// One watcher, across all of its streams.
#[derive(Debug)]
pub struct Resume {
    want: Want,
    /// The first revision that was not handed out; none while "now" is not known.
    next: Option<i64>,
    /// A server has said that it exists.
    created: bool,
    /// Changes of a response that goes on.
    pieces: Vec<Event>,
    /// Changes that were sent and not handed out, for they were handed out before, or lie before the start.
    repeated: u64,
}

impl Resume {
    /// A watcher that has not been created anywhere.
    pub fn new(want: Want) -> Resume {
        let next = (want.start_revision != 0).then_some(want.start_revision);
        Resume { want, next, created: false, pieces: Vec::new(), repeated: 0 }
    }

    /// The first revision it was not handed, if that is known.
    pub fn next(&self) -> Option<i64> {
        self.next
    }

    /// How many changes servers have sent that were not asked for: again, or from before the start. They are not handed out; a
    /// server that keeps its promises sends none.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// The request that goes on with it on a new stream, under this id.
    pub fn request(&mut self, id: i64) -> WatchCreateRequest {
        self.pieces.clear();
        let want = &self.want;
        let filters = [(want.no_put, FilterType::Noput), (want.no_delete, FilterType::Nodelete)];
        WatchCreateRequest {
            key: want.key.clone(),
            range_end: want.range_end.clone(),
            start_revision: self.next.unwrap_or(0),
            prev_kv: want.prev_kv,
            progress_notify: want.progress_notify,
            fragment: want.fragment,
            filters: filters.into_iter().filter_map(|(wanted, filter)| wanted.then_some(filter as i32)).collect(),
            watch_id: id,
        }
    }

    /// Takes a response about it, or about its whole stream. Often it is no news.
    pub fn take(&mut self, response: WatchResponse) -> Option<News> {
        let revision = response.header.map_or(0, |header| header.revision);
        if response.canceled {
            return Some(match response.compact_revision {
                0 => News::Ended { reason: response.cancel_reason },
                at => News::Compacted { at },
            });
        }
        if response.created {
            self.next.get_or_insert(revision + 1);
            return (!std::mem::replace(&mut self.created, true)).then_some(News::Created { revision });
        }
        if response.events.is_empty() && !response.fragment && self.pieces.is_empty() {
            let next = self.next.get_or_insert(0);
            *next = (*next).max(revision + 1);
            return Some(News::Progress { revision });
        }
        self.pieces.extend(response.events);
        if response.fragment {
            return None;
        }
        let next = self.next.unwrap_or(0);
        let mut events = std::mem::take(&mut self.pieces);
        let sent = events.len();
        events.retain(|event| revision_of(event) >= next);
        self.repeated += (sent - events.len()) as u64;
        let last = revision_of(events.last()?);
        self.next = Some(last + 1);
        Some(News::Events(events))
    }
}

/// The revision of a change.
pub fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;
    use crate::pb::mvccpb::KeyValue;

    fn response(revision: i64) -> WatchResponse {
        WatchResponse { header: Some(ResponseHeader { revision, ..Default::default() }), ..Default::default() }
    }

    fn created(revision: i64) -> WatchResponse {
        WatchResponse { created: true, ..response(revision) }
    }

    fn events(header: i64, revisions: &[i64], fragment: bool) -> WatchResponse {
        let event = |revision: &i64| {
            let kv = KeyValue { mod_revision: *revision, ..Default::default() };
            Event { kv: Some(kv), ..Default::default() }
        };
        WatchResponse { events: revisions.iter().map(event).collect(), fragment, ..response(header) }
    }

    fn handed(news: Option<News>) -> Vec<i64> {
        match news {
            Some(News::Events(events)) => events.iter().map(revision_of).collect(),
            other => panic!("no events: {other:?}"),
        }
    }

    #[test]
    fn now_is_what_the_first_server_said_it_was() {
        let mut watcher = Resume::new(Want::default());
        assert_eq!(watcher.request(1).start_revision, 0);
        assert_eq!(watcher.take(created(7)), Some(News::Created { revision: 7 }));
        assert_eq!(watcher.request(1).start_revision, 8);
        // A member that is behind, and one that is ahead.
        assert_eq!(watcher.take(created(5)), None);
        assert_eq!(watcher.take(created(9)), None);
        assert_eq!(watcher.request(1).start_revision, 8);
    }

    #[test]
    fn it_goes_on_behind_the_last_change_and_not_behind_the_header() {
        let mut watcher = Resume::new(Want { start_revision: 3, ..Default::default() });
        watcher.take(created(20));
        assert_eq!(handed(watcher.take(events(20, &[3, 4], false))), [3, 4]);
        assert_eq!(watcher.request(1).start_revision, 5);
        assert_eq!(watcher.take(response(12)), Some(News::Progress { revision: 12 }));
        assert_eq!(watcher.request(1).start_revision, 13);
        assert_eq!(watcher.take(response(10)), Some(News::Progress { revision: 10 }));
        assert_eq!(watcher.request(1).start_revision, 13, "a member that is behind takes nothing back");
    }

    #[test]
    fn pieces_are_handed_out_together_or_asked_for_again() {
        let mut watcher = Resume::new(Want { start_revision: 3, fragment: true, ..Default::default() });
        watcher.take(created(9));
        assert_eq!(watcher.take(events(9, &[3, 4, 4], true)), None);
        assert_eq!(watcher.request(1).start_revision, 3);
        watcher.take(created(9));
        assert_eq!(watcher.take(events(9, &[3, 4, 4], true)), None);
        assert_eq!(handed(watcher.take(events(9, &[4, 5], false))), [3, 4, 4, 4, 5]);
        assert_eq!(watcher.request(1).start_revision, 6);
        assert_eq!(watcher.repeated(), 0);
        assert_eq!(watcher.take(events(9, &[5], false)), None, "what it was handed before");
        assert_eq!(watcher.repeated(), 1);
    }

    #[test]
    fn it_ends_when_a_server_says_so() {
        let mut watcher = Resume::new(Want { start_revision: 3, ..Default::default() });
        let compacted = WatchResponse { canceled: true, compact_revision: 8, ..response(0) };
        assert_eq!(watcher.take(compacted), Some(News::Compacted { at: 8 }));
        let denied = WatchResponse { created: true, canceled: true, cancel_reason: "no".into(), ..response(0) };
        assert_eq!(watcher.take(denied), Some(News::Ended { reason: "no".into() }));
    }
}
