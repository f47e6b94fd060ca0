//! Clients that ping more often than they may are hung up on, as etcd does it.
//!
//! The library of HTTP/2 answers pings itself and tells nobody. So they are seen here, on their way in, and what answers them on its
//! way out: only the heads of frames are looked at. A ping is one too early when it comes sooner after the last than [`Patience`] allows,
//! unless a part of an answer to a call has been sent in between (whoever measures a connection pings while much comes by it); with the third of them the client is told `too_many_pings` and gets nothing more. gRPC's
//! clients then ping half as often when they come again.
//!
//! The word is said where the library flushes: there it has just written whole frames.
//!
//! Rules and numbers are those of gRPC in Go, which etcd leaves this to where it does not speak TLS; with TLS it has another server
//! below its gRPC, which does not count, and so nothing is counted here either.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How soon a ping may follow another while no call is under way.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// Pings that may be too early.
const EARLY_MAX: u32 = 2;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;
const REASON: &[u8] = b"too_many_pings";

/// How soon a ping may follow another while a call is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience(pub(super) Duration);

/// How many calls of a connection are under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<AtomicUsize>);

/// A call that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Open(Pulse);

impl Pulse {
    pub(super) fn open(&self) -> Open {
        self.0.fetch_add(1, Relaxed);
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Pulse(open) = &self.0;
        open.fetch_sub(1, Relaxed);
    }
}

/// A connection whose pings are counted, if they are to be; then it is of HTTP/2.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    counting: Option<Counting>,
    farewell: Option<Farewell>,
}

#[derive(Debug)]
struct Counting {
    received: Frames,
    sent: Frames,
    strikes: Strikes,
}

/// The last word, and how much of it is written.
#[derive(Debug)]
struct Farewell {
    frame: Vec<u8>,
    written: usize,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S, patience: Option<(Patience, Pulse)>) -> Counted<S> {
        let counting = patience.map(|(patience, pulse)| Counting {
            received: Frames { before: PREFACE_BYTES, ..Frames::default() },
            sent: Frames::default(),
            strikes: Strikes { patience, pulse, last: None, early: 0, answered: false },
        });
        Counted { stream, counting, farewell: None }
    }

    fn received(&mut self, bytes: &[u8]) {
        let Some(Counting { received, strikes, .. }) = &mut self.counting else { return };
        let newest = received.newest;
        for _ in 0..received.see(bytes).pings {
            if strikes.is_one_too_many(Instant::now(), received.newest > newest) && self.farewell.is_none() {
                self.farewell = Some(Farewell { frame: go_away(received.newest), written: 0 });
            }
        }
    }

    /// Of these, so many bytes were sent.
    fn sent(&mut self, slices: &[IoSlice<'_>], mut count: usize) {
        let Some(Counting { sent, strikes, .. }) = &mut self.counting else { return };
        for slice in slices {
            let bytes = &slice[..count.min(slice.len())];
            strikes.answered |= sent.see(bytes).answers;
            count -= bytes.len();
        }
    }
}

fn go_away(newest: u32) -> Vec<u8> {
    let body = [&newest.to_be_bytes()[..], &ENHANCE_YOUR_CALM.to_be_bytes(), REASON].concat();
    let head = [0, 0, body.len() as u8, GOAWAY, 0, 0, 0, 0, 0];
    [&head[..], &body].concat()
}

/// Pings that came too early.
#[derive(Debug)]
struct Strikes {
    patience: Patience,
    pulse: Pulse,
    last: Option<Instant>,
    early: u32,
    /// A part of an answer was sent since the last ping.
    answered: bool,
}

impl Strikes {
    /// Whether this ping is one too many. `opened`: a call has come with it that is not known elsewhere yet.
    fn is_one_too_many(&mut self, now: Instant, opened: bool) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.answered) {
            self.early = 0;
            return false;
        }
        let Pulse(open) = &self.pulse;
        let wait = if opened || open.load(Relaxed) > 0 { self.patience.0 } else { IDLE };
        self.early += u32::from(last.is_some_and(|last| now < last + wait));
        self.early > EARLY_MAX
    }
}

/// Where in the frames of one side what comes next stands.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes before the first.
    before: usize,
    head: [u8; HEAD_BYTES],
    /// Of the head.
    seen: usize,
    /// Bytes until the next head, and of what kind of frame they are.
    left: usize,
    kind: u8,
    /// The newest stream.
    newest: u32,
}

/// What bytes bring.
#[derive(Debug, Default)]
struct Seen {
    /// Pings that are no answers to any.
    pings: usize,
    /// Anything of a call.
    answers: bool,
}

impl Frames {
    fn see(&mut self, mut bytes: &[u8]) -> Seen {
        let mut brought = Seen::default();
        let before = bytes.len().min(self.before);
        self.before -= before;
        bytes = &bytes[before..];
        while !bytes.is_empty() {
            let passed = self.left.min(bytes.len());
            brought.answers |= passed > 0 && self.kind == DATA;
            self.left -= passed;
            bytes = &bytes[passed..];
            let taken = bytes.len().min(HEAD_BYTES - self.seen);
            self.head[self.seen..][..taken].copy_from_slice(&bytes[..taken]);
            self.seen += taken;
            bytes = &bytes[taken..];
            if self.seen == HEAD_BYTES {
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                (self.seen, self.left, self.kind) = (0, u32::from_be_bytes([0, a, b, c]) as usize, kind);
                brought.answers |= kind == DATA || kind == HEADERS;
                match kind {
                    HEADERS => self.newest = self.newest.max(u32::from_be_bytes(stream) & !(1 << 31)),
                    PING => brought.pings += usize::from(flags & ACK == 0),
                    _ => {}
                }
            }
        }
        brought
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.farewell.as_ref().is_some_and(Farewell::is_said) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "too many pings")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl Farewell {
    fn is_said(&self) -> bool {
        self.written == self.frame.len()
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.sent(slices, count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Counted { stream, farewell, .. } = &mut *self;
        if let Some(farewell) = farewell
            && !farewell.is_said()
        {
            while !farewell.is_said() {
                farewell.written += ready!(Pin::new(&mut *stream).poll_write(cx, &farewell.frame[farewell.written..]))?;
            }
            // Whoever reads is to hear that this is the end.
            cx.waker().wake_by_ref();
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, body: usize) -> Vec<u8> {
        let mut frame = (body as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.resize(HEAD_BYTES + body, PING);
        frame
    }

    #[test]
    fn pings_are_seen_however_the_bytes_are_cut() {
        let sent = [
            vec![PING; PREFACE_BYTES],
            frame(4, 0, 0, 60),
            frame(PING, 0, 0, 8),
            frame(HEADERS, 4, 1, 100),
            frame(0, 1, 1, 0),
            frame(PING, ACK, 0, 8),
            frame(HEADERS, 4, 3, 0),
            frame(PING, 0, 0, 8),
            frame(0, 1, 3, 70_000),
        ];
        let sent = sent.concat();
        for piece in [1, 2, 3, 7, 9, 24, 100, sent.len()] {
            let mut frames = Frames { before: PREFACE_BYTES, ..Frames::default() };
            let pings: usize = sent.chunks(piece).map(|bytes| frames.see(bytes).pings).sum();
            assert_eq!((pings, frames.newest, frames.seen, frames.left), (2, 3, 0, 0), "in pieces of {piece}");
        }
    }

    #[test]
    fn what_answers_calls_is_told_from_what_answers_pings() {
        let mut frames = Frames::default();
        for others in [frame(4, ACK, 0, 0), frame(PING, ACK, 0, 8), frame(8, 0, 0, 4), frame(7, 0, 0, 8)] {
            assert!(!frames.see(&others).answers);
        }
        let long = frame(DATA, 0, 1, 100_000);
        assert!(long.chunks(1000).all(|bytes| frames.see(bytes).answers), "all along");
        assert!(!frames.see(&frame(PING, ACK, 0, 8)).answers && frames.see(&frame(HEADERS, 5, 1, 9)).answers);
    }

    #[test]
    fn a_ping_is_too_early_after_another_unless_something_was_sent() {
        let pulse = Pulse::default();
        let patience = Patience(Duration::from_secs(5));
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut strikes = Strikes { patience, pulse: pulse.clone(), last: None, early: 0, answered: false };
        // Without a call the fourth is one too many, however slow they come.
        assert_eq!(
            [0, 6000, 12_000, 18_000].map(|ms| strikes.is_one_too_many(at(ms), false)),
            [false, false, false, true]
        );

        let call = pulse.open();
        let mut strikes = Strikes { patience, pulse: pulse.clone(), last: None, early: 0, answered: false };
        assert!((0..100).all(|n| !strikes.is_one_too_many(at(n * 5000), false)));
        let early = [1, 2, 3].map(|ms| strikes.is_one_too_many(at(600_000 + ms), false));
        assert_eq!(early, [false; 3], "the first of them is not early");
        strikes.answered = true;
        assert!(!strikes.is_one_too_many(at(600_004), false));
        assert_eq!([5, 6, 7].map(|ms| strikes.is_one_too_many(at(600_000 + ms), false)), [false, false, true]);

        drop(call);
        let mut strikes = Strikes { patience, pulse, last: Some(begin), early: EARLY_MAX, answered: false };
        assert!(!strikes.is_one_too_many(at(5000), true), "its call came with it");
        assert!(strikes.is_one_too_many(at(10_000), false));
    }
}
