//! Commands about leases, and what they mean for keys.

use super::{Effects, Stopped};
use crate::mvcc::change::SharedChanges;
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse};
use crate::state::StateMachine;
use crate::state::applied::{LeaseChange, Reply};
use crate::state::command::{LeaseExpire, LeaseRemaining};
use crate::storage::backend::Batch;
use crate::types::{Index, LeaseId, Term};

impl StateMachine {
    /// The id was chosen and the length raised to the least one before the grant was proposed.
    pub(super) fn lease_grant(&mut self, request: &LeaseGrantRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let (id, ttl) = (LeaseId(request.id), request.ttl);
        self.leases.grant(id, ttl, Index(self.applied.0 + 1), batch)?;
        let response = LeaseGrantResponse { header: self.header(), id: id.0, ttl, ..Default::default() };
        let leases = vec![LeaseChange::Granted { id, ttl }];
        Ok(Effects { reply: Reply::LeaseGrant(response), changes: Vec::new(), leases })
    }

    pub(super) fn lease_revoke(&mut self, request: &LeaseRevokeRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let id = LeaseId(request.id);
        let changes = self.end_lease(id, batch)?;
        let response = LeaseRevokeResponse { header: self.header() };
        Ok(Effects { reply: Reply::LeaseRevoke(response), changes, leases: vec![LeaseChange::Revoked { id }] })
    }

    /// Each lease that still exists ends at a revision of its own, as if it had been revoked by itself.
    pub(super) fn lease_expire(
        &mut self,
        term: Term,
        command: &LeaseExpire,
        batch: &mut Batch,
    ) -> Result<Effects, Stopped> {
        let mut effects = Effects::reply(Reply::Done);
        // Raft may carry a deposed leader's proposal into a later term. The new leader has renewed leases since.
        if command.term != term.0 {
            return Ok(effects);
        }
        for id in command.ids.iter().copied().map(LeaseId) {
            // A lease that was revoked in the meantime is no surprise. Nor is one that was granted anew: the leader offers what has
            // run out again and again, and an offer may arrive when an earlier one has done its work.
            if self.leases.existed(id, Index(command.seen)) {
                effects.changes.extend(self.end_lease(id, batch)?);
                effects.leases.push(LeaseChange::Revoked { id });
            }
        }
        Ok(effects)
    }

    /// Records rests for the leases that still exist.
    pub(super) fn lease_remaining(
        &mut self,
        term: Term,
        command: &LeaseRemaining,
        batch: &mut Batch,
    ) -> Result<Effects, Stopped> {
        let mut effects = Effects::reply(Reply::Done);
        // As above: the rest was read from a clock that does not count any more.
        if command.term != term.0 {
            return Ok(effects);
        }
        for rest in &command.leases {
            let id = LeaseId(rest.id);
            let rest_ms = (rest.remaining_ms > 0).then_some(rest.remaining_ms);
            let existed = self.leases.existed(id, Index(command.seen));
            if existed && self.leases.set_rest(id, rest_ms, batch).is_ok() {
                effects.leases.push(LeaseChange::Remaining { id, rest_ms });
            }
        }
        Ok(effects)
    }

    /// Removes a lease and then its keys, all in one revision, in byte order.
    fn end_lease(&mut self, id: LeaseId, batch: &mut Batch) -> Result<Vec<SharedChanges>, Stopped> {
        let keys = self.leases.revoke(id, batch)?;
        let written = self.kv.delete_keys(&keys)?;
        Ok(self.written(written, batch).1)
    }
}
