//! Questions between members: what only the leader can answer, asked by another member on behalf of its clients, and what a
//! member asks the others before it exists.
//!
//! Promises: every question ends, with an answer or an error, within [`ANSWER_TIMEOUT`] of being sent (within [`HASH_TIMEOUT`], if it
//! takes reading everything); keepalives that
//! wait while a request is under way travel together in the next one, so that a member sends the leader one request per
//! round trip however many leases its clients keep. A renewal whose answer was lost may have happened: asking again does
//! no harm.
//!
//! Who leads, and whether to ask again, is for the caller to know.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Status;

use super::Transport;
use super::transport::{Peer, Shared, connect};
use crate::pb::everwatchpb::{
    HistoryHashRequest, HistoryHashResponse, LearnerStateRequest, LearnerStateResponse, MembersRequest,
    MembersResponse, RenewRequest, RenewResponse, TimeToLiveRequest, TimeToLiveResponse, renew_response,
};
use crate::tls::Dialer;
use crate::types::{LeaseId, MemberId, Revision};

/// How long the leader may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a member may take to hash its history.
pub const HASH_TIMEOUT: Duration = Duration::from_secs(60);

/// Ids in one request.
pub(super) const RENEW_IDS_MAX: usize = 10_000;

/// Renewals that may wait for one peer; beyond this they fail at once.
const RENEW_WAITING_MAX: usize = 100_000;

/// A future that can be kept and sent.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the leader says to a keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Renewed, to this many seconds.
    Ttl(i64),
    /// There is no such lease.
    Unknown,
    /// It is not sure that it leads: ask again.
    Unavailable,
}

/// What the leader says about a lease's rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remaining {
    /// Seconds.
    Left {
        /// What is left.
        ttl: i64,
        /// What was granted.
        granted_ttl: i64,
    },
    /// There is no such lease.
    Unknown,
    /// It does not lead: ask again.
    Unavailable,
}

/// What the leader says about a member that is to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learner {
    /// It lacks too much of the log to vote.
    Behind,
    /// It does not, or is no learner.
    Unobjectionable,
    /// It does not lead: ask again.
    Unavailable,
}

/// Why there is no answer. Asking again, perhaps another leader, is all that can be done about any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no connection to that member, or it broke.
    Unreachable,
    /// It did not answer in time.
    Timeout,
    /// Too many questions wait already.
    TooMany,
    /// It refused.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unreachable => f.write_str("no connection to the member"),
            Error::Timeout => f.write_str("no answer from the member in time"),
            Error::TooMany => f.write_str("too many questions wait for the member"),
            Error::Refused(why) => write!(f, "the member refused: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl Transport {
    /// Asks `leader` to renew a lease.
    pub async fn renew(&self, leader: MemberId, id: LeaseId) -> Result<Renewal, Error> {
        let answer = {
            let peer = self.shared.peer(leader).ok_or(Error::Unreachable)?;
            let (sender, answer) = oneshot::channel();
            if peer.renewals.join(id, sender)? {
                let pump = Pump { shared: self.shared.clone(), peer: peer.clone(), done: false };
                peer.spawn(&self.shared, pump.run());
            }
            answer
        };
        // The sender goes away with the peer.
        answer.await.unwrap_or(Err(Error::Unreachable))
    }

    /// Asks `leader` how much time a lease has left.
    pub async fn time_to_live(&self, leader: MemberId, id: LeaseId) -> Result<Remaining, Error> {
        let peer = self.shared.peer(leader).ok_or(Error::Unreachable)?;
        let mut client = peer.client().ok_or(Error::Unreachable)?;
        let question = TimeToLiveRequest { cluster_id: self.shared.cluster.0, id: id.0 };
        let answer = timeout(ANSWER_TIMEOUT, client.time_to_live(question)).await;
        let answer = failure(answer).inspect_err(|_| {
            peer.counters.sent_failures.fetch_add(1, Relaxed);
        })?;
        Ok(remaining_from_wire(answer))
    }

    /// Asks `leader` whether a member has the log.
    pub async fn learner(&self, leader: MemberId, id: MemberId) -> Result<Learner, Error> {
        let peer = self.shared.peer(leader).ok_or(Error::Unreachable)?;
        let mut client = peer.client().ok_or(Error::Unreachable)?;
        let question = LearnerStateRequest { cluster_id: self.shared.cluster.0, id: id.0 };
        let answer = failure(timeout(ANSWER_TIMEOUT, client.learner_state(question)).await)?;
        Ok(learner_from_wire(answer))
    }
}

impl Transport {
    /// Asks a member for the hash of its history up to a revision.
    pub async fn history_hash(&self, member: MemberId, revision: Revision) -> Result<HistoryHashResponse, Error> {
        let peer = self.shared.peer(member).ok_or(Error::Unreachable)?;
        let mut client = peer.client().ok_or(Error::Unreachable)?;
        let question = HistoryHashRequest { cluster_id: self.shared.cluster.0, revision: revision.0 };
        let answer = failure(timeout(HASH_TIMEOUT, client.history_hash(question)).await)?;
        if answer.member_id != member.0 {
            return Err(Error::Refused("it is another member".to_owned()));
        }
        Ok(answer)
    }
}

/// How long one question to a member may take, with the connection to it. Longer than a healthy cluster needs to commit an entry.
const MEMBERS_TIMEOUT: Duration = Duration::from_millis(1500);

/// What the member that is reached at one of `urls` says about the members, or `None`. For a member without data: it asks without
/// a transport, and nobody needs to know it.
pub async fn ask_members(urls: &[String], dialer: &Dialer, question: MembersRequest) -> Option<MembersResponse> {
    let mut asking = JoinSet::new();
    for url in urls {
        let (url, dialer) = (url.clone(), dialer.clone());
        asking.spawn(timeout(MEMBERS_TIMEOUT, async move {
            let connection = connect(&url, &dialer).await.ok()?;
            Some(connection.client.clone().members(question).await.ok()?.into_inner())
        }));
    }
    while let Some(answer) = asking.join_next().await {
        if let Ok(Ok(Some(answer))) = answer {
            return Some(answer);
        }
    }
    None
}

type Waiter = (LeaseId, oneshot::Sender<Result<Renewal, Error>>);

/// Renewals waiting for one peer.
#[derive(Default)]
pub(super) struct Renewals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiter>,
    /// A pump is taking care of them.
    pumped: bool,
}

impl Renewals {
    /// Adds a renewal; true: the caller has to start the pump.
    fn join(&self, id: LeaseId, answer: oneshot::Sender<Result<Renewal, Error>>) -> Result<bool, Error> {
        let mut state = self.state();
        if state.waiting.len() >= RENEW_WAITING_MAX {
            return Err(Error::TooMany);
        }
        state.waiting.push((id, answer));
        Ok(!std::mem::replace(&mut state.pumped, true))
    }

    /// The next request's worth; `None` when there is none, and no pump from then on.
    fn take(&self) -> Option<Vec<Waiter>> {
        let mut state = self.state();
        let count = state.waiting.len().min(RENEW_IDS_MAX);
        if count == 0 {
            state.pumped = false;
            return None;
        }
        Some(state.waiting.drain(..count).collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends waiting renewals, one request at a time, until none waits.
struct Pump {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    /// None waits any more; whoever comes next starts another pump.
    done: bool,
}

impl Pump {
    async fn run(mut self) {
        while let Some(waiters) = self.peer.renewals.take() {
            let ids = waiters.iter().map(|(id, _)| id.0).collect();
            let answers = self.ask(ids).await;
            if answers.is_err() {
                self.peer.counters.sent_failures.fetch_add(1, Relaxed);
            }
            for (n, (_, waiter)) in waiters.into_iter().enumerate() {
                let answer = match &answers {
                    // An answer too few is as good as none.
                    Ok(answers) => Ok(answers.get(n).copied().unwrap_or(Renewal::Unavailable)),
                    Err(error) => Err(error.clone()),
                };
                // Whoever no longer waits has given up.
                let _ = waiter.send(answer);
            }
        }
        self.done = true;
    }

    async fn ask(&self, ids: Vec<i64>) -> Result<Vec<Renewal>, Error> {
        let mut client = self.peer.client().ok_or(Error::Unreachable)?;
        let question = RenewRequest { cluster_id: self.shared.cluster.0, ids };
        let answer = failure(timeout(ANSWER_TIMEOUT, client.renew(question)).await)?;
        Ok(answer.renewals.iter().map(renewal_from_wire).collect())
    }
}

impl Drop for Pump {
    /// Ended with its peer: nobody will send what still waits.
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.peer.renewals.state();
            state.waiting.clear();
            state.pumped = false;
        }
    }
}

fn failure<T, E>(answer: Result<Result<tonic::Response<T>, Status>, E>) -> Result<T, Error> {
    match answer {
        Err(_) => Err(Error::Timeout),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => Err(Error::Unreachable),
        Ok(Err(status)) => Err(Error::Refused(status.message().to_owned())),
        Ok(Ok(answer)) => Ok(answer.into_inner()),
    }
}

/// The answers to one request, as they travel.
pub(super) fn renewals_to_wire(renewals: Vec<Renewal>) -> RenewResponse {
    let renewals = renewals.into_iter().map(|renewal| match renewal {
        Renewal::Ttl(ttl) => renew_response::Renewal { ttl, unavailable: false },
        Renewal::Unknown => renew_response::Renewal { ttl: 0, unavailable: false },
        Renewal::Unavailable => renew_response::Renewal { ttl: 0, unavailable: true },
    });
    RenewResponse { renewals: renewals.collect() }
}

fn renewal_from_wire(renewal: &renew_response::Renewal) -> Renewal {
    match renewal {
        renew_response::Renewal { unavailable: true, .. } => Renewal::Unavailable,
        renew_response::Renewal { ttl: 1.., .. } => Renewal::Ttl(renewal.ttl),
        _ => Renewal::Unknown,
    }
}

/// The answer about a lease's rest, as it travels.
pub(super) fn remaining_to_wire(remaining: Remaining) -> TimeToLiveResponse {
    match remaining {
        Remaining::Left { ttl, granted_ttl } => TimeToLiveResponse { ttl, granted_ttl, unavailable: false },
        Remaining::Unknown => TimeToLiveResponse { ttl: -1, granted_ttl: 0, unavailable: false },
        Remaining::Unavailable => TimeToLiveResponse { ttl: 0, granted_ttl: 0, unavailable: true },
    }
}

fn remaining_from_wire(answer: TimeToLiveResponse) -> Remaining {
    match answer {
        TimeToLiveResponse { unavailable: true, .. } => Remaining::Unavailable,
        TimeToLiveResponse { ttl: 0.., .. } => Remaining::Left { ttl: answer.ttl, granted_ttl: answer.granted_ttl },
        _ => Remaining::Unknown,
    }
}

/// The answer about a learner, as it travels.
pub(super) fn learner_to_wire(learner: Learner) -> LearnerStateResponse {
    let (behind, unavailable) = (learner == Learner::Behind, learner == Learner::Unavailable);
    LearnerStateResponse { behind, unavailable }
}

fn learner_from_wire(answer: LearnerStateResponse) -> Learner {
    match answer {
        LearnerStateResponse { unavailable: true, .. } => Learner::Unavailable,
        LearnerStateResponse { behind: true, .. } => Learner::Behind,
        _ => Learner::Unobjectionable,
    }
}
