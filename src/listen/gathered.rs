//! A connection's writes, gathered until its task has nothing more to say for now.
//!
//! HTTP/2 flushes after every frame of some size, and the system sends a packet for every write: most of what a busy watch stream
//! costs is that. Here a write goes into a buffer, and the buffer to the socket when it is full or when the task that serves the
//! connection is about to wait ([`Gathered::around`]): nothing is ever kept for longer than it takes to come to that.
//!
//! Buffers are lent from thread to connection while something is in them: an idle connection has none.
//!
//! What is read and sent before others have their turn is bounded, too: whoever sends or takes without end is not alone on its thread.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that are gathered. What comes beyond waits until some are written.
const GATHERED_MAX: usize = 64 << 10;
/// Bytes that are sent before others run on the thread. A client that takes all it is given, history of hours perhaps, is not to keep
/// those waiting who have a few bytes to come.
const SENT_AT_ONCE_MAX: usize = 128 << 10;
/// Bytes that are taken before others run on the thread: hundreds of small requests, each of which costs more than being read.
const RECEIVED_AT_ONCE_MAX: usize = 256 << 10;
/// Empty buffers that a thread keeps.
const SPARE_MAX: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// See the module. Clones are the same connection, for the one task that serves it.
#[derive(Clone, Debug)]
pub(super) struct Gathered {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stream: TcpStream,
    waiting: Mutex<Waiting>,
    /// What came since the task began to run.
    received: AtomicUsize,
}

/// What is not written yet: the buffer from `written` on.
#[derive(Debug, Default)]
struct Waiting {
    buffer: Vec<u8>,
    written: usize,
    /// What was sent since the task began to run.
    sent: usize,
}

impl Gathered {
    pub(super) fn new(stream: TcpStream) -> Gathered {
        Gathered { shared: Arc::new(Shared { stream, waiting: Mutex::default(), received: AtomicUsize::new(0) }) }
    }

    /// The same future; whenever it waits, what it wrote to this connection is sent.
    pub(super) async fn around<F: Future>(&self, mut future: Pin<&mut F>) -> F::Output {
        poll_fn(|cx| {
            self.lock().sent = 0;
            self.shared.received.store(0, Relaxed);
            let outcome = future.as_mut().poll(cx);
            // Where the socket takes no more, its room wakes this task. An error comes to light with the next write.
            let _ = self.poll_send(cx, &mut self.lock());
            outcome
        })
        .await
    }

    /// Writes what is gathered.
    fn poll_send(&self, cx: &mut Context<'_>, waiting: &mut Waiting) -> Poll<io::Result<()>> {
        let stream = &self.shared.stream;
        while waiting.written < waiting.buffer.len() {
            if waiting.sent >= SENT_AT_ONCE_MAX {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match stream.try_write(&waiting.buffer[waiting.written..]) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    waiting.written += count;
                    waiting.sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        waiting.release();
        Poll::Ready(Ok(()))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn room(&self) -> usize {
        GATHERED_MAX.saturating_sub(self.buffer.len() - self.written)
    }

    /// Takes in as much as there is room for.
    fn gather(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let count = wanted.min(self.room());
        if self.buffer.capacity() == 0 && count > 0 {
            self.buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(GATHERED_MAX));
        }
        if self.buffer.len() + count > GATHERED_MAX {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
        let mut left = count;
        for slice in slices {
            let taken = left.min(slice.len());
            self.buffer.extend_from_slice(&slice[..taken]);
            left -= taken;
        }
        count
    }

    /// Everything is written: the buffer can serve others.
    fn release(&mut self) {
        self.written = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() > 0 {
            buffer.clear();
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_MAX {
                    spare.push(buffer);
                }
            });
        }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Shared { stream, received, .. } = &*self.shared;
        if received.load(Relaxed) >= RECEIVED_AT_ONCE_MAX {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buf) {
                Ok(count) => {
                    received.fetch_add(count, Relaxed);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut waiting = self.lock();
        if waiting.room() == 0 {
            ready!(self.poll_send(cx, &mut waiting))?;
        }
        Poll::Ready(Ok(waiting.gather(slices)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// It is sent when the task waits.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx, &mut self.lock()))?;
        match rustix::net::shutdown(&self.shared.stream, rustix::net::Shutdown::Write) {
            // The other side was faster.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_when_the_task_waits_or_shuts_down() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let gathered = Gathered::new(listener.accept().await.unwrap().0);
        let (mut near, pieces) = (gathered.clone(), 3000u32);
        let writing = async move {
            near.write_all(b"first").await.unwrap();
            near.flush().await.unwrap();
            // It waits for an answer: what it wrote must have been sent.
            let mut answer = [0; 2];
            near.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"ok");
            for n in 0..pieces {
                near.write_all(&n.to_be_bytes().repeat(1 + n as usize % 100)).await.unwrap();
                near.flush().await.unwrap();
            }
            near.shutdown().await.unwrap();
        };
        let reading = async {
            let mut first = [0; 5];
            far.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"first");
            far.write_all(b"ok").await.unwrap();
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
            let expected = (0..pieces).flat_map(|n| n.to_be_bytes().repeat(1 + n as usize % 100));
            assert!(expected.eq(rest.iter().copied()));
        };
        let mut writing = std::pin::pin!(writing);
        tokio::join!(gathered.around(writing.as_mut()), reading);
        assert_eq!(gathered.lock().buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn a_client_that_takes_everything_is_not_sent_everything_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let gathered = Gathered::new(listener.accept().await.unwrap().0);
        let mut near = gathered.clone();
        let bytes = 2 << 20;
        let mut writing = std::pin::pin!(async move {
            near.write_all(&vec![7; bytes]).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut writing = std::pin::pin!(gathered.around(writing.as_mut()));
        let mut sent = Vec::new();
        let turns = poll_fn(|cx| {
            let outcome = writing.as_mut().poll(cx);
            sent.push(gathered.lock().sent);
            outcome
        });
        let mut received = Vec::new();
        let (_, reading) = tokio::join!(turns, far.read_to_end(&mut received));
        reading.unwrap();
        assert_eq!((received.len(), sent.iter().sum()), (bytes, bytes));
        let most = *sent.iter().max().unwrap();
        // What is under way is written whole.
        assert!(most < SENT_AT_ONCE_MAX + GATHERED_MAX && sent.len() > 1, "{most} in one of {} turns", sent.len());
    }
    #[tokio::test]
    async fn a_client_that_sends_without_end_is_not_read_without_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let gathered = Gathered::new(listener.accept().await.unwrap().0);
        let mut near = gathered.clone();
        const READ_BYTES: usize = 16 << 10;
        let bytes = 2 << 20;
        let mut reading = std::pin::pin!(async move {
            let (mut room, mut all) = (vec![0; READ_BYTES], 0);
            loop {
                match near.read(&mut room).await.unwrap() {
                    0 => return all,
                    count => all += count,
                }
            }
        });
        let mut reading = std::pin::pin!(gathered.around(reading.as_mut()));
        let mut received = Vec::new();
        let turns = poll_fn(|cx| {
            let outcome = reading.as_mut().poll(cx);
            received.push(gathered.shared.received.load(Relaxed));
            outcome
        });
        let writing = async {
            far.write_all(&vec![7; bytes]).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (read, ()) = tokio::join!(turns, writing);
        assert_eq!((read, received.iter().sum()), (bytes, bytes));
        let most = *received.iter().max().unwrap();
        // The last read may go beyond.
        assert!(
            most < RECEIVED_AT_ONCE_MAX + READ_BYTES && received.len() > 1,
            "{most} in one of {} turns",
            received.len()
        );
    }
}
