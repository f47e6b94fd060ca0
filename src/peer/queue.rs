//! What waits for one peer: two lanes of messages and the connection that empties them.
//!
//! Promises: pushing never waits; a message is handed out at most once, and only to the connection that was open when it
//! was pushed; what is left when a connection ends is forgotten.
//!
//! The bulk lane holds messages whose entries carry the log's payload, the urgent lane all others. Urgent messages go
//! first, in every batch.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use ::raft::eraftpb::{Message, MessageType};

use super::codec;

/// Messages of one lane that may wait. Beyond this the newest is dropped: raft repeats itself, and a slow peer must not
/// hold memory or stop the raft loop.
const LANE_MESSAGES_MAX: usize = 4096;

/// Bulk bytes that may wait; beyond this, as above. At 1 Gbit/s they take a quarter of a second to go.
const BULK_BYTES_MAX: usize = 32 << 20;

/// A message that alone is larger than this is dropped: the other side would break the stream over it.
pub(super) const MESSAGE_BYTES_MAX: usize = 60 << 20;

/// A batch is closed when it has grown to this; the rest goes into the next one, after what became urgent meanwhile.
const BATCH_BYTES: usize = 1 << 20;

/// The messages waiting for one peer.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The connection that may take messages; connections are counted from 1.
    open: Option<u64>,
    connections: u64,
    urgent: VecDeque<Message>,
    bulk: VecDeque<Message>,
    bulk_bytes: usize,
    /// Set while the connection waits for something to send.
    waker: Option<Waker>,
}

impl Queue {
    /// Adds messages for the open connection; says how many were dropped instead.
    pub(super) fn push(&self, messages: Vec<Message>) -> usize {
        let mut state = self.state();
        if state.open.is_none() {
            return messages.len();
        }
        let dropped = messages.into_iter().map(|message| state.push(message)).filter(|taken| !taken).count();
        let waker = if state.is_empty() { None } else { state.waker.take() };
        drop(state);
        // One wake for all of them, and none while the connection is busy anyway.
        if let Some(waker) = waker {
            waker.wake();
        }
        dropped
    }

    /// Starts the life of a connection and gives its number.
    pub(super) fn open(&self) -> u64 {
        let mut state = self.state();
        state.clear();
        state.connections += 1;
        state.open = Some(state.connections);
        state.connections
    }

    /// Ends the life of the connection: what waits is forgotten, and its stream ends.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.clear();
        state.open = None;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Everything waiting, up to a batch; `None` once the connection's life is over.
    pub(super) fn poll_batch(&self, connection: u64, cx: &mut Context<'_>) -> Poll<Option<Vec<Message>>> {
        let mut state = self.state();
        if state.open != Some(connection) {
            return Poll::Ready(None);
        }
        if state.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(state.take_batch()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

impl State {
    fn push(&mut self, message: Message) -> bool {
        if !is_bulk(message.msg_type) {
            let fits = self.urgent.len() < LANE_MESSAGES_MAX;
            if fits {
                self.urgent.push_back(message);
            }
            return fits;
        }
        let size = codec::size(&message);
        // The first one may be as large as it likes, else a large entry could never go.
        let fits = self.bulk.is_empty() || self.bulk_bytes + size <= BULK_BYTES_MAX;
        if !fits || self.bulk.len() == LANE_MESSAGES_MAX || size > MESSAGE_BYTES_MAX {
            return false;
        }
        self.bulk_bytes += size;
        self.bulk.push_back(message);
        true
    }

    fn take_batch(&mut self) -> Vec<Message> {
        let mut batch: Vec<Message> = self.urgent.drain(..).collect();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(message) = self.bulk.pop_front_if(|next| {
                let size = codec::size(next);
                // Large messages travel alone, so that no batch passes the receiver's limit.
                bytes == 0 || bytes + size <= MESSAGE_BYTES_MAX
            })
        {
            let size = codec::size(&message);
            bytes += size;
            self.bulk_bytes -= size;
            batch.push(message);
        }
        batch
    }

    fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    fn clear(&mut self) {
        self.urgent.clear();
        self.bulk.clear();
        self.bulk_bytes = 0;
    }
}

/// Whether messages of this kind carry the log's payload.
fn is_bulk(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgAppend | MessageType::MsgPropose)
}

#[cfg(test)]
mod tests {
    use ::raft::eraftpb::Entry;
    use bytes::Bytes;

    use super::*;

    fn append(index: u64, bytes: usize) -> Message {
        let entry = Entry { data: Bytes::from(vec![0; bytes]), ..Entry::default() };
        Message { msg_type: MessageType::MsgAppend, index, entries: vec![entry].into(), ..Message::default() }
    }

    fn heartbeat(commit: u64) -> Message {
        Message { msg_type: MessageType::MsgHeartbeat, commit, ..Message::default() }
    }

    fn take(queue: &Queue, connection: u64) -> Poll<Option<Vec<Message>>> {
        queue.poll_batch(connection, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn urgent_messages_overtake_a_backlog_of_log() {
        let queue = Queue::default();
        let connection = queue.open();
        let backlog = (1..=20).map(|index| append(index, 512 << 10)).collect();
        assert_eq!(queue.push(backlog), 0);
        assert!(matches!(take(&queue, connection), Poll::Ready(Some(batch)) if batch.len() < 5 && batch[0].index == 1));
        assert_eq!(queue.push(vec![heartbeat(7), heartbeat(8)]), 0);
        let Poll::Ready(Some(batch)) = take(&queue, connection) else { panic!("there is more") };
        assert_eq!((batch[0].commit, batch[1].commit), (7, 8));
        assert!(batch[2].index > 1 && batch[2].index < batch[3].index, "the log goes on behind them");
    }

    #[test]
    fn a_full_lane_drops_the_newest_and_only_its_own() {
        let queue = Queue::default();
        assert_eq!(queue.push(vec![heartbeat(1)]), 1, "nobody is connected");
        queue.open();
        assert_eq!(
            queue.push((0..40).map(|index| append(index, 1 << 20)).collect()),
            9,
            "32 MiB, less what goes with them"
        );
        assert_eq!(queue.push(vec![heartbeat(1)]), 0, "heartbeats still fit");
        assert_eq!(queue.push((0..5000).map(heartbeat).collect()), 5001 - LANE_MESSAGES_MAX);
        assert_eq!(queue.push(vec![append(1, MESSAGE_BYTES_MAX)]), 1, "too large for any stream");
    }

    #[test]
    fn what_waited_for_one_connection_is_not_given_to_the_next() {
        let queue = Queue::default();
        let first = queue.open();
        queue.push(vec![heartbeat(1)]);
        queue.close();
        assert!(matches!(take(&queue, first), Poll::Ready(None)));
        let second = queue.open();
        assert!(matches!(take(&queue, second), Poll::Pending));
        assert!(matches!(take(&queue, first), Poll::Ready(None)), "the old stream stays over");
    }
}
