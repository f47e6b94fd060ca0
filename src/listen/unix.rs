//! Unix sockets: a file that a process listens on, for clients on the same machine.
//!
//! A process that was killed leaves its file behind. Where nobody answers on it any more, the next one takes its place, as etcd's
//! does. Unlike etcd, which removes whatever it finds there, this leaves a file alone that is no socket, and one that somebody
//! listens on. An orderly stop removes the file, if it is still the one that was made here.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

/// Whoever listens accepts connections by then, or has them wait.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// A socket that listens, and its file.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: UnixListener,
    file: Arc<File>,
}

/// Removed when nobody listens on it any more.
#[derive(Debug)]
struct File {
    path: PathBuf,
    inode: (u64, u64),
}

impl Bound {
    pub(super) async fn open(path: &Path) -> io::Result<Bound> {
        make_room(path).await?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let file = Arc::new(File { path: path.to_owned(), inode: inode(path)? });
        Ok(Bound { listener, file })
    }

    pub(super) fn try_clone(&self) -> io::Result<Bound> {
        Ok(Bound { listener: self.listener.try_clone()?, file: self.file.clone() })
    }

    /// As the runtime wants it, and what keeps the file.
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
}
