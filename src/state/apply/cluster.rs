//! Commands about members, and the changes of who belongs.
//!
//! The table of members and raft's configuration say the same of who votes; both change here, together.

use bytes::Bytes;

use super::{Effects, Stopped};
use crate::cluster::Version;
use crate::cluster::membership::Refused;
use crate::pb::everwatchpb::{ClusterVersion, ConfState, MemberAttributes};
use crate::state::applied::{Refusal, Reply};
use crate::state::command::{Change, MemberAdd, MemberPeerUrls, MemberPromote, MemberRemove, Reconfiguration};
use crate::state::{StateMachine, put_meta};
use crate::storage;
use crate::storage::backend::Batch;
use crate::storage::schema::CLUSTER_VERSION;
use crate::types::{Index, MemberId, Term};

impl StateMachine {
    /// Carries out the change of members that the entry at `index` holds. Refused, it has changed nothing, and raft must not
    /// hear of it; carried out, raft's configuration is now [`StateMachine::conf_state`], and raft is to be told so. An error
    /// stops the member: the change is none that this release knows.
    pub fn reconfigure(
        &mut self,
        index: Index,
        term: Term,
        command: &Reconfiguration,
        batch: &mut Batch,
    ) -> storage::Result<Result<Reply, Refusal>> {
        self.assert_next(index, term);
        let Some(change) = &command.change else {
            let what = format!("entry {index} holds a change of members that this release does not know");
            return Err(storage::Error::Engine(what));
        };
        if let Err(refused) = self.change_members(change, batch) {
            return Ok(Err(refused.into()));
        }
        let conf_state = changed(&self.conf_state, change);
        debug_assert!(self.members.voters().map(|(id, _)| id.0).eq(conf_state.voters.iter().copied()));
        self.set_conf_state(conf_state, batch);
        Ok(Ok(Reply::Members(self.members.list())))
    }

    fn change_members(&mut self, change: &Change, batch: &mut Batch) -> Result<(), Refused> {
        match change {
            Change::Add(new) => self.members.add(new, batch),
            Change::Promote(MemberPromote { id }) => self.members.promote(MemberId(*id), batch),
            Change::Remove(MemberRemove { id }) => self.members.remove(MemberId(*id), batch),
        }
    }

    /// Who belongs is as before: this is a command like any other.
    pub(super) fn member_peer_urls(&mut self, command: &MemberPeerUrls, batch: &mut Batch) -> Result<Effects, Stopped> {
        let MemberPeerUrls { id, peer_urls } = command;
        match self.members.set_peer_urls(MemberId(*id), peer_urls, batch) {
            Ok(()) => Ok(Effects::reply(Reply::Members(self.members.list()))),
            Err(refused) => Err(Stopped::Refused(refused.into())),
        }
    }

    pub(super) fn member_attributes(
        &mut self,
        command: &MemberAttributes,
        batch: &mut Batch,
    ) -> Result<Effects, Stopped> {
        let MemberAttributes { id, name, client_urls } = command.clone();
        self.members.set_attributes(MemberId(id), name, client_urls, batch);
        Ok(Effects::reply(Reply::Done))
    }

    /// What is not a version, or not above the present one, changes nothing: two leaders may have found out the same.
    pub(super) fn raise_cluster_version(
        &mut self,
        command: &ClusterVersion,
        batch: &mut Batch,
    ) -> Result<Effects, Stopped> {
        if let Ok(version) = command.version.parse::<Version>()
            && self.cluster_version < Some(version)
        {
            self.cluster_version = Some(version);
            put_meta(batch, CLUSTER_VERSION, Bytes::from(version.to_string()));
        }
        Ok(Effects::reply(Reply::Done))
    }
}

/// Raft's configuration after a change that the table of members allowed. Ids in order, so that the row is the same on every
/// member.
fn changed(conf_state: &ConfState, change: &Change) -> ConfState {
    let ConfState { mut voters, mut learners, .. } = conf_state.clone();
    let id = match change {
        Change::Add(MemberAdd { id, .. })
        | Change::Promote(MemberPromote { id })
        | Change::Remove(MemberRemove { id }) => *id,
    };
    voters.retain(|voter| *voter != id);
    learners.retain(|learner| *learner != id);
    match change {
        Change::Add(MemberAdd { is_learner: true, .. }) => learners.push(id),
        Change::Add(_) | Change::Promote(_) => voters.push(id),
        Change::Remove(_) => {}
    }
    voters.sort_unstable();
    learners.sort_unstable();
    ConfState { voters, learners, ..ConfState::default() }
}
