//! Requests that make no sense are refused here, before anything is proposed, in etcd's order and with etcd's errors.
//! Source: etcd's api/v3rpc/key.go.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::status::Mistake;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::KeyRange;

/// Txns inside one another. Protobuf readers give up at a depth of about a hundred messages, two for each txn, and the log adds
/// a few of its own: what the door lets in, every member must be able to read back, or none could ever start again.
const NESTING_MAX: usize = 32;

/// A range needs a key and sort options that exist.
pub(crate) fn range(request: &RangeRequest) -> Result<(), Mistake> {
    if request.key.is_empty() {
        return Err(Mistake::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Mistake::InvalidSort);
    }
    Ok(())
}

/// A range that is streamed comes in the order of the keys, and whole.
pub(crate) fn range_stream(request: &RangeRequest) -> Result<(), Mistake> {
    range(request)?;
    if request.sort_order != SortOrder::None as i32 || request.sort_target != SortTarget::Key as i32 {
        return Err(Mistake::StreamSorted);
    }
    let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = *request;
    if [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision] != [0; 4] {
        return Err(Mistake::StreamFiltered);
    }
    Ok(())
}

/// A put needs a key, and neither a value nor a lease that it says it does not bring.
pub(crate) fn put(request: &PutRequest) -> Result<(), Mistake> {
    if request.key.is_empty() {
        return Err(Mistake::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Mistake::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Mistake::LeaseProvided);
    }
    Ok(())
}

/// A deletion needs a key.
pub(crate) fn delete_range(request: &DeleteRangeRequest) -> Result<(), Mistake> {
    if request.key.is_empty() { Err(Mistake::EmptyKey) } else { Ok(()) }
}

/// A txn is bounded, its operations make sense one by one, and no branch writes a key twice.
pub(crate) fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Mistake> {
    operations(request, ops_max, NESTING_MAX)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

fn operations(request: &TxnRequest, ops_max: usize, nesting_max: usize) -> Result<(), Mistake> {
    let largest = request.compare.len().max(request.success.len()).max(request.failure.len());
    // What is nested may use what this level left.
    let left = ops_max.checked_sub(largest).ok_or(Mistake::TooManyOps)?;
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Mistake::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => {
                operations(request, left, nesting_max.checked_sub(1).ok_or(Mistake::TooManyOps)?)?;
            }
            None => return Err(Mistake::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch, with all that is nested in it, may write.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    fn deletes(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

fn writes(branch: &[RequestOp]) -> Result<Writes, Mistake> {
    let mut all = Writes::default();
    for op in branch {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push(KeyRange::from_wire(delete.key.clone(), delete.range_end.clone()));
        }
    }
    for op in branch {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            let then = writes(&nested.success)?;
            let otherwise = writes(&nested.failure)?;
            if then.puts.iter().any(|key| all.puts.contains(key) || all.deletes(key)) {
                return Err(Mistake::DuplicateKey);
            }
            // One key in both branches of the same nested txn is fine: only one of them runs.
            if otherwise.puts.iter().any(|key| all.puts.contains(key) || all.deletes(key)) {
                return Err(Mistake::DuplicateKey);
            }
            all.puts.extend(then.puts);
            all.puts.extend(otherwise.puts);
            all.deletes.extend(then.deletes);
            all.deletes.extend(otherwise.deletes);
        }
    }
    for op in branch {
        if let Some(Request::RequestPut(put)) = &op.request
            && (all.deletes(&put.key) || !all.puts.insert(put.key.clone()))
        {
            return Err(Mistake::DuplicateKey);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::command::{Command, Kind, ProposalWriter, decode_proposal, encode_command};

    fn put(key: &'static str) -> RequestOp {
        let put = PutRequest { key: key.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete(key: &'static str, end: &'static str) -> RequestOp {
        let delete = DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { success, failure, ..Default::default() })) }
    }

    fn check(success: Vec<RequestOp>) -> Result<(), Mistake> {
        txn(&TxnRequest { success, ..Default::default() }, 128)
    }

    #[test]
    fn a_branch_writes_a_key_once() {
        const TWICE: Result<(), Mistake> = Err(Mistake::DuplicateKey);
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), TWICE);
        assert_eq!(check(vec![put("b"), delete("a", "c")]), TWICE);
        assert_eq!(check(vec![put("b"), delete("c", "\0")]), Ok(()));
        assert_eq!(check(vec![delete("a", "c"), delete("b", "d")]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])]), TWICE);
        assert_eq!(check(vec![nested(vec![put("a")], vec![]), put("a")]), TWICE);
        assert_eq!(check(vec![nested(vec![delete("a", "")], vec![]), put("a")]), TWICE);
    }

    #[test]
    fn nested_txns_share_the_bound_on_operations() {
        let two = TxnRequest { success: vec![nested(vec![put("a"), put("b")], vec![])], ..Default::default() };
        assert_eq!(txn(&two, 3), Ok(()));
        assert_eq!(txn(&two, 2), Err(Mistake::TooManyOps));
        let silent = TxnRequest { failure: vec![RequestOp { request: None }], ..Default::default() };
        assert_eq!(txn(&silent, 128), Err(Mistake::KeyNotFound));
    }

    #[test]
    fn a_nested_txn_that_is_let_in_can_be_read_back_from_the_log() {
        let deep = |depth: usize| {
            (0..depth).fold(TxnRequest { success: vec![put("a")], ..Default::default() }, |inner, _| TxnRequest {
                success: vec![RequestOp { request: Some(Request::RequestTxn(inner)) }],
                ..Default::default()
            })
        };
        assert_eq!(txn(&deep(NESTING_MAX), usize::MAX), Ok(()));
        assert_eq!(txn(&deep(NESTING_MAX + 1), usize::MAX), Err(Mistake::TooManyOps));
        let mut entry = ProposalWriter::new(1, 1, 0);
        let kind = Some(Kind::Txn(deep(NESTING_MAX)));
        entry.push(&encode_command(&Command { id: 1, kind, ..Default::default() }));
        assert!(decode_proposal(entry.finish()).is_ok());
    }
}
