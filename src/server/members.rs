//! The verbs of the [`Handle`] that change who belongs to the cluster.
//!
//! Before a change is proposed, this member asks itself whether it is wise ([`reconfig`]): it knows who has been started, and to
//! whom it is connected. Whether a learner is in sync only the leader's raft knows, and says so when the change is proposed; a
//! leader elsewhere then lets the proposal drop; here it is made again until it times out.
//!
//! Peer URLs are changed by a command like any other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use super::error::Error;
use super::handle::Handle;
use super::inbox::Event;
use crate::cluster::{self, reconfig};
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
        self.reconfigure(Change::Promote(MemberPromote { id: id.0 })).await
    }

    /// A member is to leave for ever.
    pub async fn remove_member(&self, id: MemberId) -> Result<Reply, Error> {
        let own = self.member();
        self.if_strict(|members, connected| reconfig::may_remove(members, id, own, connected))?;
        self.reconfigure(Change::Remove(MemberRemove { id: id.0 })).await
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
