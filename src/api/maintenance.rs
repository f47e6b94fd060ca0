//! The Maintenance service: status, alarms, hashes, backups, the choice of a leader, and what there is to say about room and versions.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::audit::member;
use super::caller::Caller;
use super::kv::unexpected;
use super::status::{Mistake, NO_LEADER, status};
use crate::audit::Fields;
use crate::backup::STORAGE_VERSION;
use crate::cluster::Version;
use crate::metrics::Inflight;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::pb::etcdserverpb::maintenance_server::Maintenance;
use crate::server::backups::Blob;
use crate::server::error::Error;
use crate::server::handle::Handle;
use crate::state::applied::Reply;
use crate::state::command::Kind;
use crate::state::{AlarmKind, StateMachine};
use crate::types::{MemberId, Revision};
use crate::version;

/// The service of a member.
#[derive(Clone)]
pub(super) struct MaintenanceService {
    handle: Handle,
}

impl MaintenanceService {
    /// Over a member.
    pub(super) fn new(handle: Handle) -> MaintenanceService {
        MaintenanceService { handle }
    }

    fn header(&self) -> pb::ResponseHeader {
        self.handle.header(self.handle.view(|state| state.kv.revision()))
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let identity = caller.identify(&self.handle).await?;
        let command = Kind::Alarm(request.into_inner());
        match caller.propose(&self.handle, &identity, command).await.map_err(status)? {
            Reply::Alarm(mut response) => {
                response.header = Some(self.header());
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(&self, _: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let status = self.handle.status();
        let (alarms, storage_version, is_learner) = self.handle.view(|state| {
            let alarms = state.alarms.iter().map(|(kind, member)| {
                let kind = match kind {
                    AlarmKind::NoSpace => "NOSPACE",
                    AlarmKind::Corrupt => "CORRUPT",
                };
                format!("memberID:{} alarm:{kind} ", member.0)
            });
            let learner = state.members.get(self.handle.member()).is_some_and(|member| member.is_learner);
            (alarms.collect::<Vec<_>>(), state.cluster_version().map(|version| version.to_string()), learner)
        });
        let mut errors = alarms;
        if status.leader.is_none() {
            errors.insert(0, NO_LEADER.to_owned());
        }
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.header()),
            version: version::API.to_owned(),
            db_size: status.size as i64,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: status.committed.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: status.size_in_use as i64,
            is_learner,
            storage_version: storage_version.unwrap_or_default(),
            db_size_quota: self.handle.limits().quota_bytes.map_or(0, |bytes| bytes as i64),
            downgrade_info: Some(pb::DowngradeInfo::default()),
        }))
    }

    /// The hash of every row of the backend, with the revision of the store. It can be compared with nothing but itself (etcd's
    /// is of its file); `HashKV` is the one that members and etcd have in common.
    async fn hash(&self, _: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let header = self.header();
        let hash = self.handle.hash().await.map_err(status)?;
        Ok(Response::new(pb::HashResponse { header: Some(header), hash }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let asked = Revision(request.into_inner().revision);
        let (revision, hash) = self.handle.hash_kv(asked).await.map_err(status)?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.handle.header(revision)),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.hash_revision,
        }))
    }

    /// Space is given back as compaction goes on, and nothing has to be rewritten for it. What there is to do is to end what compaction
    /// has left for later; nobody waits for it but who asked. etcd sends no header.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let (metrics, began) = (self.handle.metrics(), Instant::now());
        let compacting = async {
            // Also for as long as a client waits that then goes.
            let _inflight = Inflight::add(&metrics.defrag_inflight);
            self.handle.compacted().await;
            metrics.backend_defrag_seconds.observe(began.elapsed());
            Ok(())
        };
        caller.noted(&self.handle, |_| Fields::default(), compacting).await.map_err(status)?;
        Ok(Response::new(pb::DefragmentResponse::default()))
    }

    type SnapshotStream = Snapshot;

    /// Noted when it begins: whoever gets it may have everything.
    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let caller = Caller::passed(request.extensions());
        let backup = caller.noted(&self.handle, |_| Fields::default(), self.handle.backup()).await;
        Ok(Response::new(Snapshot(backup.map_err(status)?)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let target = request.into_inner().target_id;
        let what = |_: Option<&_>| member(Fields::default(), target);
        caller.noted(&self.handle, what, self.handle.transfer(MemberId(target))).await.map_err(status)?;
        // etcd sends no header here.
        Ok(Response::new(pb::MoveLeaderResponse::default()))
    }

    /// Says what etcd would of a target. No release of ours speaks an older version, so none can be gone down to; as nothing is ever under
    /// way, there is nothing to call off, which etcd 3.6 takes for success.
    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        let request = request.into_inner();
        let action = DowngradeAction::try_from(request.action).map_err(|_| Mistake::UnknownMethod)?;
        if action != DowngradeAction::Cancel {
            let target: Version = request.version.parse().map_err(|_| Mistake::DowngradeFormat)?;
            self.handle.linearize().await.map_err(status)?;
            let current = self.handle.view(StateMachine::cluster_version).ok_or(Mistake::NoClusterVersion)?;
            if current.one_below() != Some(Version { patch: 0, ..target }) {
                return Err(Mistake::DowngradeTarget.into());
            }
        }
        if action == DowngradeAction::Enable {
            return Err(Mistake::NoDowngrade.into());
        }
        let current = self.handle.view(StateMachine::cluster_version);
        let version = current.map(|Version { major, minor, .. }| format!("{major}.{minor}")).unwrap_or_default();
        Ok(Response::new(pb::DowngradeResponse { header: Some(self.header()), version }))
    }
}

/// The pieces of a backup. etcd sends no headers here.
pub(super) struct Snapshot(mpsc::Receiver<Result<Blob, Error>>);

impl Stream for Snapshot {
    type Item = Result<pb::SnapshotResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| {
            Some(piece?.map_err(status).map(|Blob { left, bytes }| pb::SnapshotResponse {
                header: None,
                remaining_bytes: left,
                blob: bytes,
                version: STORAGE_VERSION.to_owned(),
            }))
        })
    }
}
