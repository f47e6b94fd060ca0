//! The verbs of the [`Handle`] that change who belongs to the cluster.
//!
//! Before a change is proposed, this member asks itself whether it is wise ([`reconfig`]): it knows who has been started, and to
//! whom it is connected. Whether a learner is in sync only the leader's raft knows: it says so when the change is proposed there, and
//! when another member asks before it proposes. A learner that falls behind in between has its promotion dropped by the leader; here
//! it is proposed again until it times out.
//!
//! Peer URLs are changed by a command like any other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::error::Error;
use super::handle::Handle;
use super::inbox::Event;
use crate::cluster::reconfig::Unwise;
use crate::cluster::{self, reconfig};
use crate::peer::{AskError, Learner};
use crate::state::applied::Reply;
use crate::state::command::{Change, MemberAdd, MemberPromote, MemberRemove};
use crate::types::MemberId;

impl Handle {
    /// A new member, reached at `peer_urls`: its id follows from them and from the time. It is still to be started.
    pub async fn add_member(&self, peer_urls: Vec<String>, is_learner: bool) -> Result<(MemberId, Reply), Error> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = cluster::added_member_id(&peer_urls, seconds);
        let (own, learners_max) = (self.member(), self.limits().learners_max);
        self.if_strict(|members, connected| reconfig::may_add(members, is_learner, own, connected))?;
        let new = MemberAdd { id: id.0, peer_urls, is_learner, learners_max };
        Ok((id, self.reconfigure(Change::Add(new)).await?))
    }

    /// A learner is to vote.
    pub async fn promote_member(&self, id: MemberId) -> Result<Reply, Error> {
        self.if_strict(|members, _| reconfig::may_promote(members))?;
        if self.learner(id).await? == Learner::Behind {
            return Err(Error::Unwise(Unwise::LearnerNotReady));
        }
        self.reconfigure(Change::Promote(MemberPromote { id: id.0 })).await
    }

    /// A member is to leave for ever.
    pub async fn remove_member(&self, id: MemberId) -> Result<Reply, Error> {
        let own = self.member();
        self.if_strict(|members, connected| reconfig::may_remove(members, id, own, connected))?;
        self.reconfigure(Change::Remove(MemberRemove { id: id.0 })).await
    }

    /// Whether a member has the log, as far as the leader knows.
    async fn learner(&self, id: MemberId) -> Result<Learner, Error> {
        let deadline = self.shared.now() + self.shared.limits.request_timeout;
        while self.shared.now() < deadline && !self.is_stopping() {
            self.belongs()?;
            let answer = match self.leader() {
                Some(leader) if leader == self.member() => self.learner_here(id).await,
                Some(leader) => match self.transport().learner(leader, id).await {
                    Ok(answer) => answer,
                    // It cannot be asked, and will say when the change is proposed.
                    Err(AskError::Refused(_)) => Learner::Unobjectionable,
                    Err(_) => Learner::Unavailable,
                },
                None => Learner::Unavailable,
            };
            if answer != Learner::Unavailable {
                return Ok(answer);
            }
            tokio::time::sleep(self.shared.limits.election_timeout / 10).await;
        }
        Err(Error::Timeout)
    }

    /// As `learner`, as the leader.
    pub(crate) async fn learner_here(&self, id: MemberId) -> Learner {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.put(Event::Learner { id, reply });
        // Without an answer the member goes down.
        answer.await.unwrap_or(Learner::Unavailable)
    }

    /// What `check` says of the present members and of who is connected, unless such checks are switched off.
    fn if_strict(
        &self,
        check: impl FnOnce(&cluster::Membership, &dyn Fn(MemberId) -> Option<Duration>) -> Result<(), reconfig::Unwise>,
    ) -> Result<(), Error> {
        if !self.limits().strict_reconfig_check {
            return Ok(());
        }
        let now = Instant::now();
        let peers = self.transport().peers();
        let connected = |id| {
            let since = peers.iter().find(|peer| peer.id == id)?.active_since?;
            Some(now.saturating_duration_since(since))
        };
        self.view(|state| check(&state.members, &connected)).map_err(Error::Unwise)
    }

    async fn reconfigure(&self, change: Change) -> Result<Reply, Error> {
        let (reply, outcome) = oneshot::channel();
        let id = self.shared.command_ids.fetch_add(1, Ordering::Relaxed);
        self.shared.inbox.put(Event::Reconfigure { id, change, reply });
        outcome.await.unwrap_or(Err(Error::Stopped))
    }
}
