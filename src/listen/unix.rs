//! Unix sockets: a file that a process listens on, for clients and members on the same machine.
//!
//! A process that was killed leaves its file behind. Where nobody answers on it any more, the next one takes its place, as etcd's
//! does. Unlike etcd, which removes whatever it finds there, this leaves a file alone that is no socket, and one that somebody
//! listens on. An orderly stop removes the file, if it is still the one that was made here, while it still listens.
//!
//! Of two that start at the same moment each could find the file left behind, and the slower one would remove what the other has
//! put in its place. So whoever looks holds a lock on the directory until it listens. Where there is no such lock to be had it
//! does without.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::{TcpStream, UnixStream};

/// Whoever listens accepts connections by then, or has them wait.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How long somebody else may be about to take a file of the directory over. Whoever locks a directory for longer wants something
/// else.
const TURN_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts at the lock.
const TURN_PAUSE: Duration = Duration::from_millis(5);

/// A socket that listens, and its file, which goes first.
#[derive(Debug)]
pub(super) struct Bound {
    file: Arc<File>,
    pub(super) listener: UnixListener,
}

/// Removed when nobody listens on it any more.
#[derive(Debug)]
struct File {
    path: PathBuf,
    inode: (u64, u64),
}

impl Bound {
    pub(super) async fn open(path: &Path) -> io::Result<Bound> {
        let _turn = turn(path).await;
        make_room(path).await?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let file = Arc::new(File { path: path.to_owned(), inode: inode(path)? });
        Ok(Bound { file, listener })
    }

    pub(super) fn try_clone(&self) -> io::Result<Bound> {
        Ok(Bound { file: self.file.clone(), listener: self.listener.try_clone()? })
    }

    /// As the runtime wants it, and what keeps the file, to be dropped first.
    pub(super) fn listen(self) -> io::Result<(tokio::net::UnixListener, impl Send + 'static)> {
        Ok((tokio::net::UnixListener::from_std(self.listener)?, self.file))
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

impl Drop for File {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Waits until nobody else is about to take over a file of the same directory. Others wait until what is returned is dropped.
async fn turn(path: &Path) -> Option<fs::File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = fs::File::open(directory).ok()?;
    let locked = async {
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => tokio::time::sleep(TURN_PAUSE).await,
                outcome => return outcome.is_ok(),
            }
        }
    };
    let locked = tokio::time::timeout(TURN_PATIENCE, locked).await.unwrap_or(false);
    locked.then_some(directory)
}

/// Removes the file of a process that is gone.
async fn make_room(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        Ok(_) => {}
    }
    match tokio::time::timeout(ANSWER_PATIENCE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// A connection as what serves connections wants it: to whoever reads and writes, a stream is a stream.
pub(super) fn as_stream(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream.into_std()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_of_a_dead_process_is_taken_over_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        // A process that is gone leaves it so.
        drop(UnixListener::bind(&path).unwrap());
        let bound = Bound::open(&path).await.unwrap();
        assert_eq!(Bound::open(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let other = bound.try_clone().unwrap();
        drop(bound);
        assert!(path.exists());
        drop(other);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert_eq!(Bound::open(&path).await.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_file_that_somebody_else_has_put_there_is_left_to_him() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let bound = Bound::open(&path).await.unwrap();
        fs::rename(&path, directory.path().join("away")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_those_who_start_at_the_same_moment_one_has_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = Arc::new(directory.path().join("socket"));
        for _ in 0..200 {
            drop(UnixListener::bind(&*path).unwrap());
            let together = Arc::new(tokio::sync::Barrier::new(4));
            let start = |_| {
                let (path, together) = (path.clone(), together.clone());
                tokio::spawn(async move {
                    together.wait().await;
                    Bound::open(&path).await
                })
            };
            let (mut served, starting) = (Vec::new(), (0..4).map(start).collect::<Vec<_>>());
            for started in starting {
                match started.await.unwrap() {
                    Ok(bound) => served.push(bound),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
                }
            }
            assert_eq!(served.len(), 1);
            assert_eq!(inode(&path).unwrap(), served[0].file.inode);
            drop(served);
            assert!(!path.exists());
        }
    }
}
