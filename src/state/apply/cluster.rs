//! Commands about members.

use bytes::Bytes;

use super::{Effects, Stopped};
use crate::cluster::Version;
use crate::pb::everwatchpb::{ClusterVersion, MemberAttributes};
use crate::state::applied::Reply;
use crate::state::{StateMachine, put_meta};
use crate::storage::backend::Batch;
use crate::storage::schema::CLUSTER_VERSION;
use crate::types::MemberId;

impl StateMachine {
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
