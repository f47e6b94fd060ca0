//! Commands about keys.

use super::{Effects, Stopped};
use crate::pb::etcdserverpb::{CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, TxnRequest};
use crate::state::StateMachine;
use crate::state::applied::{Refusal, Reply};
use crate::storage::backend::Batch;
use crate::types::{LeaseId, Revision};

impl StateMachine {
    pub(super) fn put(&mut self, request: &PutRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let lease = LeaseId(request.lease);
        if lease != LeaseId::NONE && !self.leases.exists(lease) {
            return Err(Stopped::Refused(Refusal::LeaseNotFound));
        }
        let written = self.kv.put(request)?;
        let (response, changes) = self.written(written, batch);
        Ok(Effects { reply: Reply::Put(response), changes, leases: Vec::new() })
    }

    pub(super) fn delete_range(&mut self, request: &DeleteRangeRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let written = self.kv.delete_range(request)?;
        let (response, changes) = self.written(written, batch);
        Ok(Effects { reply: Reply::DeleteRange(response), changes, leases: Vec::new() })
    }

    pub(super) fn txn(&mut self, request: &TxnRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let leases = &self.leases;
        let written = self.kv.txn(request, &|id| leases.exists(id))?;
        let (response, changes) = self.written(written, batch);
        Ok(Effects { reply: Reply::Txn(response), changes, leases: Vec::new() })
    }

    pub(super) fn compact(&mut self, request: &CompactionRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        self.kv.compact(Revision(request.revision), batch)?;
        Ok(Effects::reply(Reply::Compaction(CompactionResponse { header: self.header() })))
    }
}
