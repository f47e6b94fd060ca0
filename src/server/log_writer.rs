//! What goes to the log, and in which order its parts take effect.
//!
//! A batch of jobs is appended, then synced once if anybody relies on that, and only then does anything come of it: messages that
//! had to wait leave, raft hears the number, a snapshot is put in the backend's place, old segments go. The log thread does both
//! halves in one go; the simulator lets the world end in between.

use super::raft_loop::LogWrite;
use crate::raft::Message;
use crate::storage;
use crate::storage::wal::{Base, Wal};
use crate::types::Index;

/// For the log.
pub enum LogJob {
    /// Append, sync, send, report.
    Write(LogWrite),
    /// Entries up to here are no longer needed.
    Truncate(Base),
}

/// The log, and the order of what is done with it.
pub struct LogWriter {
    wal: Wal,
}

/// Appended, and not durable before [`LogWriter::sync`].
pub struct Appended {
    writes: Vec<LogWrite>,
    truncate: Option<Base>,
}

/// What follows once a batch is durable, in this order.
#[derive(Default)]
pub struct Durable {
    /// To send.
    pub messages: Vec<Message>,
    /// Snapshots that take the backend's place: the output of raft that brought it, its index. Reported to raft when it has.
    pub installs: Vec<(u64, Index)>,
    /// The last output of raft that is durable; none if that is still to be said of a snapshot.
    pub persisted: Option<u64>,
    /// Then, while nobody waits: the log may forget what is below.
    pub truncate: Option<Base>,
}

impl LogWriter {
    /// Over a log that was replayed.
    pub fn new(wal: Wal) -> LogWriter {
        LogWriter { wal }
    }

    /// Appends a batch. After an error the log takes nothing more.
    pub fn append(&mut self, batch: Vec<LogJob>) -> storage::Result<Appended> {
        let mut appended = Appended { writes: Vec::with_capacity(batch.len()), truncate: None };
        for job in batch {
            match job {
                LogJob::Write(write) => {
                    write.append_to(&mut self.wal)?;
                    appended.writes.push(write);
                }
                LogJob::Truncate(base) => appended.truncate = Some(base),
            }
        }
        Ok(appended)
    }

    /// Makes a batch durable, as far as anybody relies on that, and says what follows.
    pub fn sync(&mut self, appended: Appended) -> storage::Result<Durable> {
        if appended.must_sync() {
            self.wal.sync()?;
        }
        let mut durable = Durable { truncate: appended.truncate, ..Durable::default() };
        for write in appended.writes {
            durable.messages.extend(write.then_send);
            match write.reset {
                Some(base) => durable.installs.push((write.number, base.index)),
                None => durable.persisted = Some(write.number),
            }
        }
        Ok(durable)
    }

    /// Between batches: forgets what is below `base`, and makes room for the next segment a little at a time. If there is none,
    /// the append that needs it will say so.
    pub fn tidy(&mut self, base: Option<Base>) -> storage::Result<()> {
        if let Some(base) = base {
            self.wal.truncate_front(base)?;
        }
        let _ = self.wal.prepare();
        Ok(())
    }

    /// A clean stop leaves nothing for the next start to wonder about.
    pub fn close(&mut self) -> storage::Result<()> {
        self.wal.sync()
    }
}

impl Appended {
    /// Whether anybody relies on it being durable.
    pub fn must_sync(&self) -> bool {
        self.writes.iter().any(|write| write.must_sync || write.reset.is_some())
    }

    /// What was written, in order.
    pub fn writes(&self) -> &[LogWrite] {
        &self.writes
    }
}
