//! What a connection says first, which must come soon.
//!
//! HTTP/1 and HTTP/2 are told apart by the first bytes, and until then nobody who serves either of them looks at the clock. So those bytes
//! are read here, with a limit, and given back in front of the others.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream some of whose first bytes have been read already.
#[derive(Debug)]
pub(super) struct Begun<S> {
    first: Vec<u8>,
    stream: S,
}

/// Waits until it is clear which of the two it is, or until there is no more.
pub(super) async fn begun<S: AsyncRead + Unpin>(mut stream: S, patience: Duration) -> io::Result<Begun<S>> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let reading = async {
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            let room = PREFACE.len() - first.len();
            if (&mut stream).take(room as u64).read_buf(&mut first).await? == 0 {
                break;
            }
        }
        Ok::<(), io::Error>(())
    };
    timeout(patience, reading).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(Begun { first, stream })
}

impl<S> Begun<S> {
    /// Whether it is HTTP/2. To be asked before anything is read.
    pub(super) fn is_http_2(&self) -> bool {
        self.first == PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..count]);
        self.first.drain(..count);
        if self.first.is_empty() {
            self.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn what_comes_first_is_read_again() {
        for said in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"P", b"PRI * HTTP/1.1\r\n", PREFACE, &[PREFACE, b"\0\0"].concat(), b""]
        {
            let (mut near, far) = tokio::io::duplex(7);
            let saying = async move {
                near.write_all(said).await.unwrap();
                drop(near);
            };
            let hearing = async {
                let mut heard = Vec::new();
                let mut begun = begun(far, PATIENCE).await.unwrap();
                assert_eq!(begun.is_http_2(), said.starts_with(PREFACE));
                begun.read_to_end(&mut heard).await.unwrap();
                heard
            };
            assert_eq!(tokio::join!(saying, hearing).1, said);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_stops_in_the_middle_is_not_waited_for() {
        for said in [&b""[..], b"PRI * HT"] {
            let (mut near, far) = tokio::io::duplex(64);
            near.write_all(said).await.unwrap();
            assert_eq!(begun(far, PATIENCE).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
