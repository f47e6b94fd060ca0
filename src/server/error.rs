//! Why a verb of the [`Handle`](super::handle::Handle) did not do what it was asked. Every variant is the caller's to act on; what
//! only an operator can act on stops the member instead. The texts clients see are in `api::status`.

pub use crate::cluster::reconfig::Unwise;
use crate::mvcc;
use crate::state::applied::Refusal;

/// The failure of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No answer in time; whether the command was or will be carried out is unknown.
    Timeout,
    /// As `Timeout`, and the leader was lost while it waited.
    TimeoutLeaderLost,
    /// This member knows no leader and the caller does not want to wait for one.
    NoLeader,
    /// Only the leader can do that, and this member is not.
    NotLeader,
    /// Who shall lead next is not a voting member.
    BadTransferee,
    /// Leadership did not move in time.
    TransferTimeout,
    /// The encoded command is longer than `--max-request-bytes`. It was not proposed.
    TooLarge,
    /// Too much is waiting already. It was not proposed.
    TooManyRequests,
    /// A change of members would be carried out, but better not now. It was not proposed.
    Unwise(Unwise),
    /// The member is going down.
    Stopped,
    /// It was carried out as a refusal; every member knows.
    Refused(Refusal),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused(refusal)
    }
}

/// What a read came to when it did not succeed: the caller's mistake, or a disk that can no longer be trusted.
pub(crate) enum ReadFailure {
    /// Told to the caller.
    Refused(Refusal),
    /// Stops the member.
    Storage(crate::storage::Error),
}

impl From<mvcc::Error> for ReadFailure {
    fn from(error: mvcc::Error) -> ReadFailure {
        match Refusal::try_from(error) {
            Ok(refusal) => ReadFailure::Refused(refusal),
            Err(storage) => ReadFailure::Storage(storage),
        }
    }
}
