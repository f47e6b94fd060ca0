//! THE table: every error of every layer, its gRPC code and etcd's exact text. Go clients recognise errors by the text, so it
//! is the wire as much as field numbers are. Source: etcd's api/v3rpc/rpctypes. ("Too many requests" really travels as Unknown: etcd
//! maps it to an error of its client library, which has no code.)

use http::HeaderMap;
use http_body::Frame;
use tonic::{Code, Status};

use crate::auth;
use crate::server::error::{Error, Unwise};
use crate::server::watch_rights::Denied;
use crate::state::applied::Refusal;
use crate::watch;

/// The status of a failed verb.
pub(crate) fn status(error: Error) -> Status {
    let (code, text) = match error {
        Error::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
        Error::TimeoutLeaderLost => {
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure")
        }
        Error::NoLeader => (Code::Unavailable, NO_LEADER),
        Error::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
        Error::BadTransferee => (Code::FailedPrecondition, "etcdserver: bad leader transferee"),
        Error::TransferTimeout => (Code::Unknown, "etcdserver: request timed out, leader transfer took too long"),
        Error::TooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
        Error::TooManyRequests => (Code::Unknown, "etcdserver: too many requests"),
        Error::Unwise(Unwise::NotEnoughStarted) => (Code::Unknown, NOT_ENOUGH_STARTED),
        Error::Unwise(Unwise::Unhealthy) => (Code::Unavailable, "etcdserver: unhealthy cluster"),
        Error::Unwise(Unwise::LearnerNotReady) => {
            (Code::FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader")
        }
        Error::Stopped => (Code::Unavailable, STOPPED),
        Error::Refused(refusal) => return refused(&refusal),
    };
    Status::new(code, text)
}

fn refused(refusal: &Refusal) -> Status {
    let (code, text) = match refusal {
        Refusal::Compacted(_) => (Code::OutOfRange, COMPACTED),
        Refusal::FutureRevision => (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
        Refusal::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
        Refusal::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
        Refusal::KeyNotFound => return Mistake::KeyNotFound.into(),
        Refusal::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Refusal::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
        Refusal::InvalidSort => return Mistake::InvalidSort.into(),
        Refusal::MemberNotFound => (Code::NotFound, "etcdserver: member not found"),
        Refusal::MemberExists => (Code::FailedPrecondition, "etcdserver: member ID already exist"),
        Refusal::PeerUrlExists => (Code::FailedPrecondition, "etcdserver: Peer URLs already exists"),
        Refusal::NotLearner => (Code::FailedPrecondition, "etcdserver: can only promote a learner member"),
        Refusal::TooManyLearners => (Code::FailedPrecondition, "etcdserver: too many learner members in cluster"),
        Refusal::LastVoter => (Code::Unknown, NOT_ENOUGH_STARTED),
        Refusal::Auth(error) => return unauthorised(*error),
    };
    Status::new(code, text)
}

fn unauthorised(error: auth::Error) -> Status {
    use auth::Error::*;
    let (code, text) = match error {
        NoRootUser => (Code::FailedPrecondition, "etcdserver: root user does not exist"),
        NoRootRole => (Code::FailedPrecondition, "etcdserver: root user does not have root role"),
        UserEmpty => (Code::InvalidArgument, "etcdserver: user name is empty"),
        UserExists => (Code::FailedPrecondition, "etcdserver: user name already exists"),
        UserNotFound => (Code::FailedPrecondition, "etcdserver: user name not found"),
        RoleEmpty => (Code::InvalidArgument, "etcdserver: role name is empty"),
        RoleExists => (Code::FailedPrecondition, "etcdserver: role name already exists"),
        RoleNotFound => (Code::FailedPrecondition, "etcdserver: role name not found"),
        RoleNotGranted => (Code::FailedPrecondition, "etcdserver: role is not granted to the user"),
        PermissionMissing => (Code::InvalidArgument, "etcdserver: permission not given"),
        PermissionNotGranted => (Code::FailedPrecondition, "etcdserver: permission is not granted to the role"),
        InvalidManagement => (Code::InvalidArgument, "etcdserver: invalid auth management"),
        PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
        OldRevision => (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        NotEnabled => (Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
        WrongPassword => (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
        NoPassword => (Code::Unknown, "auth: authentication failed, password was given for no password user"),
        VerifyOnly => (Code::Unknown, "auth: token signing attempted with verify-only key"),
    };
    Status::new(code, text)
}

/// A change of members would leave no majority that has been started. (Like "too many requests" it travels as Unknown.)
const NOT_ENOUGH_STARTED: &str = "etcdserver: re-configuration failed due to not enough started members";
/// The member knows no leader.
pub(crate) const NO_LEADER: &str = "etcdserver: no leader";
/// The member is going down. Clients of watches take this as "resume elsewhere".
pub(crate) const STOPPED: &str = "etcdserver: server stopped";
/// History asked for is gone; also the reason given for a watch with a negative start.
pub(crate) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// How a call ends whose response has begun.
pub(crate) fn trailers<D>(status: &Status) -> Result<Frame<D>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// The status of a member that knows no leader.
pub(crate) fn no_leader() -> Status {
    status(Error::NoLeader)
}

/// The status of a watch that asked for a member with a leader, and has one that does not follow it. etcd keeps such a watch. Clients
/// go elsewhere with any text but that of [`no_leader`], which they give up with.
pub(crate) fn lagging() -> Status {
    Status::unavailable("etcdserver: member is too far behind its leader")
}

/// What etcd says about a watcher that it did not create.
pub(crate) fn watch_refused(refusal: watch::Refusal) -> &'static str {
    match refusal {
        watch::Refusal::NegativeStart => COMPACTED,
        watch::Refusal::EmptyRange => "mvcc: watcher range is empty",
        watch::Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
        watch::Refusal::Denied(text) => text,
        // Bounds that etcd does not have.
        watch::Refusal::StreamFull => "everwatch: too many watchers on this stream",
        watch::Refusal::MemberFull => "everwatch: too many watchers at this member",
    }
}

/// What it says about one that its client may not have: statuses, as Go prints them. At some of them clients log in again.
pub(crate) fn watch_denied(denied: Denied) -> &'static str {
    match denied {
        Denied::Token => "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        Denied::Auth(auth::Error::UserEmpty) => {
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        }
        Denied::Auth(auth::Error::OldRevision) => {
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        }
        Denied::Auth(_) => "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    }
}

/// What is refused before a handler sees it.
#[derive(Debug)]
pub(crate) enum Intercepted {
    /// Metadata that should be text is not.
    ClientVersion,
    /// The call needs a voting member.
    Learner,
    /// A token that this member did not give.
    Token,
    /// A message is over the limit, both in bytes.
    TooLong {
        /// Its length.
        found: String,
        /// What is allowed.
        limit: String,
    },
}

impl From<Intercepted> for Status {
    fn from(intercepted: Intercepted) -> Status {
        match intercepted {
            Intercepted::ClientVersion => Status::invalid_argument("etcdserver: invalid client api version"),
            Intercepted::Learner => Status::failed_precondition("etcdserver: rpc not supported for learner"),
            Intercepted::Token => Status::unauthenticated("etcdserver: invalid auth token"),
            Intercepted::TooLong { found, limit } => {
                Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"))
            }
        }
    }
}

/// A request that is refused at the door, before anything is proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// An operation needs a key.
    EmptyKey,
    /// Also what an operation of a txn gets that says nothing.
    KeyNotFound,
    /// ignore_value came with a value.
    ValueProvided,
    /// ignore_lease came with a lease.
    LeaseProvided,
    /// More than `--max-txn-ops`.
    TooManyOps,
    /// A txn would write one key twice.
    DuplicateKey,
    /// A sort order or target that does not exist.
    InvalidSort,
    /// Streams of a range have one order.
    StreamSorted,
    /// And no filters.
    StreamFiltered,
    /// Peer URLs that nobody could be reached at.
    MemberUrls,
    /// A lease longer than 9,000,000,000 s.
    TtlTooLarge,
    /// An action that there is not.
    UnknownMethod,
    /// What a cluster is to go down to is no version.
    DowngradeFormat,
    /// It is none that it can go down to.
    DowngradeTarget,
    /// The leader has not found out yet what its members speak.
    NoClusterVersion,
    /// It could, if there were releases of ours that speak it.
    NoDowngrade,
}

impl From<Mistake> for Status {
    fn from(mistake: Mistake) -> Status {
        let (code, text) = match mistake {
            Mistake::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Mistake::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            Mistake::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Mistake::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            Mistake::TooManyOps => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            Mistake::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            Mistake::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
            Mistake::StreamSorted => (Code::Unimplemented, "RangeStream does not support custom sort orders"),
            Mistake::StreamFiltered => (Code::Unimplemented, "RangeStream does not support revision filters"),
            Mistake::MemberUrls => (Code::InvalidArgument, "etcdserver: given member URLs are invalid"),
            Mistake::TtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            Mistake::UnknownMethod => (Code::Unknown, "etcdserver: unknown method"),
            Mistake::DowngradeFormat => (Code::InvalidArgument, "etcdserver: wrong downgrade target version format"),
            Mistake::DowngradeTarget => (Code::InvalidArgument, "etcdserver: invalid downgrade target version"),
            Mistake::NoClusterVersion => {
                (Code::FailedPrecondition, "etcdserver: cluster version not found during downgrade")
            }
            Mistake::NoDowngrade => (Code::Unimplemented, "everwatch: no release speaks an older version"),
        };
        Status::new(code, text)
    }
}

/// What can be wrong with a request for a lock or in an election. It travels as Unknown, as in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecipeError {
    /// The lease ended while its owner waited for the lock.
    SessionExpired,
    /// Nobody stands for election.
    NoLeader,
    /// Somebody else leads.
    NotLeader,
    /// The request does not say who leads.
    NoLeaderField,
}

impl From<RecipeError> for Status {
    fn from(error: RecipeError) -> Status {
        Status::unknown(match error {
            RecipeError::SessionExpired => "mutex: session is expired",
            RecipeError::NoLeader => "election: no leader",
            RecipeError::NotLeader => "election: not leader",
            RecipeError::NoLeaderField => "\"leader\" field must be provided",
        })
    }
}
