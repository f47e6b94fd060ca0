//! Backups on their way to clients: a file of etcd's, made while it is sent.
//!
//! A backup is of one reader of the backend, taken when that has everything that this member had carried out before the call: what was
//! acknowledged here is in it. The reader stays where it is, and everybody else goes on. Until the client has all of it the backend
//! cannot use again the pages that changed meanwhile.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::bootstrap::applied_index;
use super::error::Error;
use super::handle::Handle;
use crate::backup::{self, write::Backup};
use crate::storage::backend::Reader;
use crate::types::Index;

/// Bytes of a piece, as in etcd.
const BLOB_BYTES: usize = 32 << 10;

/// Pieces read and not yet sent. Beyond this reading waits for the client.
const BLOBS_WAITING_MAX: usize = 16;

/// Backups under way. Each has a thread that waits for its client, and keeps pages of the backend. Beyond this the next is refused.
pub(super) const AT_ONCE_MAX: usize = 8;

/// How often to look whether the backend has come as far as this member.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A piece of a backup. The last one is the hash of the others.
#[derive(Debug)]
pub struct Blob {
    /// Bytes of the file that come after it.
    pub left: u64,
    /// The piece.
    pub bytes: Bytes,
}

impl Handle {
    /// A backup of everything this member has carried out by now, in pieces.
    pub async fn backup(&self) -> Result<mpsc::Receiver<Result<Blob, Error>>, Error> {
        let place = self.shared.backups.clone().try_acquire_owned().map_err(|_| Error::TooManyRequests)?;
        let reader = self.caught_up_reader().await?;
        let (blobs, waiting) = mpsc::channel(BLOBS_WAITING_MAX);
        let handle = self.clone();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            match write(&*reader, blobs.clone()) {
                Ok(()) => {}
                Err(backup::Error::Storage(error)) => {
                    let _ = blobs.blocking_send(Err(handle.fail(&error)));
                }
                // The client went away.
                Err(_) => {}
            }
        });
        Ok(waiting)
    }

    /// The backend when it has everything that was carried out here before the call. It is behind by a commit at the most, and commits
    /// several times a second.
    async fn caught_up_reader(&self) -> Result<Arc<dyn Reader>, Error> {
        let wanted = self.status().applied;
        let waiting = async {
            loop {
                let reader = self.view(|state| state.kv.reader());
                let index = applied_index(&*reader).map_err(|error| self.fail(&error))?;
                if index.unwrap_or(Index(0)) >= wanted {
                    return Ok(reader);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(self.limits().request_timeout, waiting).await.unwrap_or(Err(Error::Timeout))
    }
}

fn write(reader: &dyn Reader, blobs: mpsc::Sender<Result<Blob, Error>>) -> Result<(), backup::Error> {
    let backup = Backup::new(reader)?;
    let left = backup.bytes() - backup::HASH_BYTES as u64;
    backup.write(Blobs { left, gathered: Vec::with_capacity(BLOB_BYTES), blobs })
}

/// Cuts what is written into pieces, so that the hash is one of its own.
struct Blobs {
    /// Bytes of the file that have not been written.
    left: u64,
    gathered: Vec<u8>,
    blobs: mpsc::Sender<Result<Blob, Error>>,
}

impl Write for Blobs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BLOB_BYTES - self.gathered.len();
        let until_hash = if self.left > 0 { usize::try_from(self.left).unwrap_or(usize::MAX) } else { usize::MAX };
        let taken = bytes.len().min(room).min(until_hash);
        self.gathered.extend_from_slice(&bytes[..taken]);
        let ends_file = self.left > 0 && self.left == taken as u64;
        self.left = self.left.saturating_sub(taken as u64);
        if self.gathered.len() == BLOB_BYTES || ends_file {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::replace(&mut self.gathered, Vec::with_capacity(BLOB_BYTES)).into();
        let sent = self.blobs.blocking_send(Ok(Blob { left: self.left, bytes }));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
