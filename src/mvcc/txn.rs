//! Transactions: if every compare holds, do this, else that; all of it at one revision.
//!
//! In this order, as in etcd:
//!   1. what no state could make valid is refused, in both branches: an operation that says nothing, an unknown sort;
//!   2. every compare is judged, those of nested transactions on the chosen way included, against the state before;
//!   3. the puts on the chosen way are checked against that state (the key that ignore_value or ignore_lease needs, the
//!      lease), then the revisions that its ranges name;
//!   4. the operations run one after the other, each seeing what those before it did. None can be refused any more.

use std::cmp::Ordering;
use std::slice::Iter;

use super::Error;
use super::index::Latest;
use super::range::check_sort;
use super::record;
use super::store::{Store, Write, Written, header};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{Compare, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse};
use crate::types::{KeyRange, LeaseId, Revision};

/// Whether a transaction only reads: both branches have nothing but ranges. (A nested one counts as a write, as in
/// etcd.)
pub fn txn_is_read_only(request: &TxnRequest) -> bool {
    both_branches(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether a transaction may be answered from local state: both branches have nothing but serializable ranges.
pub fn txn_is_serializable(request: &TxnRequest) -> bool {
    both_branches(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

impl Store {
    /// Carries out a transaction. `lease_exists` answers for the leases that its puts name.
    pub fn txn(
        &mut self,
        request: &TxnRequest,
        lease_exists: &dyn Fn(LeaseId) -> bool,
    ) -> Result<Written<TxnResponse>, Error> {
        let way = self.checked_way(request, lease_exists)?;
        let mut write = Write::new(self);
        let mut response = run(&mut write, request, &mut way.iter())?;
        response.header = header(write.revision());
        Ok(write.finish(response))
    }

    /// Carries out a transaction that is read-only by [`txn_is_read_only`].
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        let way = self.checked_way(request, &|_| true)?;
        let succeeded = way.first() == Some(&true);
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let Some(Request::RequestRange(range)) = &op.request else {
                debug_assert!(false, "only for read-only transactions");
                return Err(Error::KeyNotFound);
            };
            responses.push(ResponseOp { response: Some(Response::ResponseRange(self.range(range)?)) });
        }
        Ok(TxnResponse { header: header(self.revision), succeeded, responses })
    }

    /// Steps 1 to 3: the verdicts, a transaction's before those nested in its chosen branch.
    fn checked_way(&self, request: &TxnRequest, lease_exists: &dyn Fn(LeaseId) -> bool) -> Result<Vec<bool>, Error> {
        check_form(request)?;
        let mut way = Vec::new();
        self.judge(request, &mut way)?;
        let mut ops = Vec::new();
        collect_chosen(request, &mut way.iter(), &mut ops);
        for op in &ops {
            self.check_put(op, lease_exists)?;
        }
        for op in &ops {
            if let Request::RequestRange(range) = op {
                self.check_revision(range)?;
            }
        }
        Ok(way)
    }

    fn judge(&self, request: &TxnRequest, way: &mut Vec<bool>) -> Result<(), Error> {
        let mut verdict = true;
        for compare in &request.compare {
            if !self.holds(compare)? {
                verdict = false;
                break;
            }
        }
        way.push(verdict);
        for op in branch(request, verdict) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                self.judge(nested, way)?;
            }
        }
        Ok(())
    }

    /// Whether a compare holds for its key, or for every key of its range. What does not exist compares as zero, but
    /// its value compares as nothing: never.
    fn holds(&self, compare: &Compare) -> Result<bool, Error> {
        let range = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
        let mut exists = false;
        let mut outcome = Ok(true);
        self.index.walk(&range, None, usize::MAX, |_, entry| {
            let Some(latest) = entry.latest() else { return true };
            exists = true;
            outcome = self.holds_for(compare, latest);
            matches!(outcome, Ok(true))
        });
        if exists {
            return outcome;
        }
        if compare.target == CompareTarget::Value as i32 {
            return Ok(false);
        }
        Ok(verdict(compare, 0.cmp(&wanted(compare))))
    }

    fn holds_for(&self, compare: &Compare, latest: Latest) -> Result<bool, Error> {
        let wanted = wanted(compare);
        let ordering = match CompareTarget::try_from(compare.target) {
            Ok(CompareTarget::Version) => latest.version.cmp(&wanted),
            Ok(CompareTarget::Create) => latest.create.cmp(&wanted),
            Ok(CompareTarget::Mod) => latest.place.main.cmp(&wanted),
            Ok(CompareTarget::Lease) if !latest.leased => 0.cmp(&wanted),
            Ok(target @ (CompareTarget::Lease | CompareTarget::Value)) => {
                let record = self.record(latest.place)?;
                let record = record.ok_or_else(|| record::damaged(latest.place, "is missing"))?;
                let fields = record::read_at(&record, latest.place)?;
                match (target, &compare.target_union) {
                    (CompareTarget::Lease, _) => fields.lease.cmp(&wanted),
                    (_, Some(TargetUnion::Value(value))) => fields.value.cmp(value.as_ref()),
                    _ => fields.value.cmp(&[]),
                }
            }
            Err(_) => Ordering::Equal,
        };
        Ok(verdict(compare, ordering))
    }

    fn check_put(&self, op: &Request, lease_exists: &dyn Fn(LeaseId) -> bool) -> Result<(), Error> {
        let Request::RequestPut(put) = op else { return Ok(()) };
        if (put.ignore_value || put.ignore_lease) && self.index.latest(&put.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        let lease = LeaseId(put.lease);
        if lease != LeaseId::NONE && !lease_exists(lease) {
            return Err(Error::LeaseNotFound);
        }
        Ok(())
    }

    /// Unlike in a plain range, a negative revision is one below the compacted, not the newest. So it is in etcd.
    fn check_revision(&self, range: &RangeRequest) -> Result<(), Error> {
        let revision = Revision(range.revision);
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        if revision != Revision(0) && revision < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        Ok(())
    }
}

/// Step 4. A nested response's header is empty, as in etcd; the outermost one's is filled by the caller.
fn run(write: &mut Write<'_>, request: &TxnRequest, way: &mut Iter<'_, bool>) -> Result<TxnResponse, Error> {
    let succeeded = *way.next().expect("every transaction on the way was judged");
    let mut responses = Vec::new();
    for op in branch(request, succeeded) {
        let response = match op.request.as_ref().ok_or(Error::KeyNotFound)? {
            Request::RequestRange(range) => Response::ResponseRange(write.range(range)?),
            Request::RequestPut(put) => Response::ResponsePut(write.put(put)?),
            Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(write.delete_range(delete)?),
            Request::RequestTxn(nested) => Response::ResponseTxn(run(write, nested, way)?),
        };
        responses.push(ResponseOp { response: Some(response) });
    }
    Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
}

fn check_form(request: &TxnRequest) -> Result<(), Error> {
    for op in both_branches(request) {
        match &op.request {
            None => return Err(Error::KeyNotFound),
            Some(Request::RequestRange(range)) => {
                check_sort(range)?;
            }
            Some(Request::RequestTxn(nested)) => check_form(nested)?,
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => {}
        }
    }
    Ok(())
}

/// The operations on the chosen way, in the order in which they will run.
fn collect_chosen<'a>(request: &'a TxnRequest, way: &mut Iter<'_, bool>, ops: &mut Vec<&'a Request>) {
    let verdict = *way.next().expect("every transaction on the way was judged");
    for op in branch(request, verdict) {
        match &op.request {
            Some(Request::RequestTxn(nested)) => collect_chosen(nested, way, ops),
            Some(op) => ops.push(op),
            None => {}
        }
    }
}

fn branch(request: &TxnRequest, verdict: bool) -> &[RequestOp] {
    if verdict { &request.success } else { &request.failure }
}

fn both_branches(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// The number a compare names; 0 when it names none, or one of another target.
fn wanted(compare: &Compare) -> i64 {
    match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(n)))
        | (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(n)))
        | (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(n)))
        | (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(n))) => *n,
        _ => 0,
    }
}

/// `ordering` is what was found against what was wanted. A result that we do not know always holds, as in etcd.
fn verdict(compare: &Compare, ordering: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
