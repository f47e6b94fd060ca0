//! The waist of the hourglass: everything the edge can ask of a member is one of these verbs.
//!
//! | verb          | meaning                                                                                  |
//! |---------------|------------------------------------------------------------------------------------------|
//! | `propose`     | replicate, apply (if who asks may), answer                                                |
//! | `linearize`   | return when this member has applied everything committed before the call                  |
//! | `view`        | read the state at its applied revision, shortly                                           |
//! | `range`       | read keys, in slices between which others get their turn                                  |
//! | `watch`       | the hub, to open streams on                                                               |
//! | `renew`, `time_to_live` | the leader's lessor, asked through the peer network if another member leads     |
//! | `add_member`, `promote_member`, `remove_member` | change who belongs (in `members`)                        |
//! | `login`, `identify`, `hash_password` | who somebody is (in `logins`)                                     |
//! | `backup`      | everything carried out here, as a file of etcd's (in `backups`)                           |
//! | `compacted`   | return when no compaction has rows left to remove                                         |
//! | `status`      | term, leader, indexes, sizes                                                              |
//! | `leader_lost` | return when there has been no leader for too long                                         |
//!
//! A handle is cheap to clone and may be used from any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use super::aside::Aside;
use super::core;
use super::disk_threads::{Failure, Sizes};
use super::error::{Error, ReadFailure};
use super::inbox::{Event, Inbox};
use super::logins::{Claim, Identity, Logins};
use super::watch_loop::{Bounds, Confirmation, Shard, Standing, StoreAccess, Timeline, WatchHandle};
use super::watch_rights::{self, Denied, Guard};
use crate::auth::{self, Asker};
use crate::metrics::Metrics;
use crate::mvcc::{HashKv, RangeResult, Records, Store};
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmType, RangeRequest, ResponseHeader, TxnRequest, TxnResponse, alarm_request::AlarmAction,
};
use crate::peer::{Remaining, Renewal, Transport};
use crate::state::applied::{Refusal, Reply};
use crate::state::command::{Command, Kind, encode_command};
use crate::state::permission::Wanted;
use crate::state::{AlarmKind, StateMachine};
use crate::storage::backend::Bucket;
use crate::throttle::{Throttle, UnderWay};
use crate::tls::Dialer;
use crate::types::{ClusterId, Index, KeyRange, LeaseId, MemberId, Revision, Term};
use crate::watch::Cancels;

/// Keys that a range looks at before others get their turn.
const SLICE_KEYS: usize = 1000;
/// Records that a range reads before its answer begins on the thread that serves. More are read where it may take long.
const RECORDS_READ_HERE: usize = 250;
/// Entries committed but not applied beyond which nothing is proposed, as in etcd: whoever asked would wait for all of them. An entry
/// holds the commands of many clients here; how many of those may wait for an entry is bounded in `pending`.
const BACKLOG_MAX: u64 = 5000;

/// How long the creation of a watcher may wait to learn what "now" is.
const NOW_TIMEOUT: Duration = Duration::from_millis(50);

/// What bounds requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one encoded command.
    pub request_bytes_max: usize,
    /// Operations of one txn.
    pub txn_ops_max: usize,
    /// Bytes of rows beyond which NOSPACE is raised; none: never.
    pub quota_bytes: Option<u64>,
    /// How long a proposal or a linearizable read may wait.
    pub request_timeout: Duration,
    /// The shortest lease, in seconds.
    pub ttl_min: i64,
    /// Whether changes of members are refused that would leave no working majority.
    pub strict_reconfig_check: bool,
    /// Most members that do not vote.
    pub learners_max: u32,
    /// How long a member may know no leader before it counts as lost.
    pub election_timeout: Duration,
    /// How many watchers there may be.
    pub watchers: Bounds,
}

/// What the core publishes about raft.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) leader: AtomicU64,
    pub(crate) term: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) applied: AtomicU64,
    pub(crate) pending: AtomicU64,
    pub(crate) learner: AtomicBool,
    /// See `watch_loop::Monitor`.
    pub(crate) lagging: AtomicBool,
    /// A leader was known at some time in this process.
    pub(crate) knew_leader: AtomicBool,
}

impl Progress {
    /// Whether this member has so much to carry out that it takes nothing on.
    fn is_backed_up(&self) -> bool {
        let applied = self.applied.load(Ordering::Relaxed);
        self.committed.load(Ordering::Relaxed) > applied + BACKLOG_MAX
    }
}

/// What the core and all handles share.
pub(crate) struct Shared {
    pub(crate) cluster: ClusterId,
    pub(crate) member: MemberId,
    /// Reaches the other members.
    pub(crate) dialer: Dialer,
    pub(crate) limits: Limits,
    /// What the core works on, too.
    pub(crate) replicated: core::Shared,
    /// The hubs, and what each of them hears.
    pub(crate) shards: Arc<[Arc<Shard>]>,
    pub(crate) logins: Logins,
    /// Places for backups.
    pub(crate) backups: Arc<Semaphore>,
    /// Does what takes long.
    pub(crate) aside: Aside,
    pub(crate) timeline: Timeline,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) progress: Progress,
    pub(crate) sizes: Arc<Sizes>,
    /// Bytes of the largest write that was refused since NOSPACE was raised; 0: none was.
    pub(crate) refused_bytes: AtomicU64,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) transport: OnceLock<Arc<Transport>>,
    pub(crate) fail: Failure,
    pub(crate) started: Instant,
    pub(crate) command_ids: AtomicU64,
    pub(crate) ready: watch::Sender<bool>,
    /// Told whenever streams that need a leader are to end because there is none.
    pub(crate) leader_lost: watch::Sender<()>,
    /// This member was removed, as far as it or a peer knows.
    pub(crate) leaving: watch::Sender<bool>,
    /// It was, and those who stay do not need it any more.
    pub(crate) removed: watch::Sender<bool>,
    pub(crate) stopping: AtomicBool,
}

impl Shared {
    /// Time since the start of this process: the clock of everything that may expire.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The others know of this member: it serves.
    pub(crate) fn ready(&self) {
        self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
    }

    /// This member does not belong any more: it asks whether it may stop.
    pub(crate) fn leave(&self) {
        self.leaving.send_if_modified(|leaving| !std::mem::replace(leaving, true));
    }

    /// It may.
    pub(crate) fn removed(&self) {
        self.removed.send_if_modified(|removed| !std::mem::replace(removed, true));
    }

    /// The members with their peer URLs, this one among them, and whether it was removed.
    pub(crate) fn peers(&self) -> (Vec<(MemberId, Vec<String>)>, bool) {
        let state = self.replicated.state.read().unwrap_or_else(PoisonError::into_inner);
        let members = state.members.iter().map(|(id, member)| (id, member.peer_urls.clone()));
        (members.collect(), state.members.was_removed(self.member))
    }
}

impl StoreAccess for Shared {
    fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.replicated.state.read().unwrap_or_else(PoisonError::into_inner).kv)
    }
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// The leader it knows.
    pub leader: Option<MemberId>,
    /// Its term.
    pub term: Term,
    /// The last entry it knows to be committed.
    pub committed: Index,
    /// The last entry it has carried out.
    pub applied: Index,
    /// Bytes of the backend's file.
    pub size: u64,
    /// Bytes of it that hold rows.
    pub size_in_use: u64,
}

/// Everything the edge can ask of a member.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
}

/// Users and roles, as far as watchers go.
struct Users(Handle);

impl Guard for Users {
    fn admit(&self, claim: Claim<'_>, range: &KeyRange) -> Result<Option<Arc<str>>, Denied> {
        let Users(handle) = self;
        if !handle.auth_enabled() {
            return Ok(None);
        }
        let identity = match claim {
            Claim::Token(token) => handle.recognise(token).ok_or(Denied::Token)?,
            Claim::Certified(name) => handle.certified(name),
            Claim::Nothing => Identity::default(),
        };
        handle.view(|state| state.permit(identity.asker(), Wanted::Watch(range))).map_err(Denied::Auth)?;
        Ok(identity.user().cloned())
    }

    fn rights(&self) -> u64 {
        self.0.shared.logins.rights()
    }

    fn may(&self, user: &Arc<str>, range: &KeyRange) -> bool {
        self.0.view(|state| watch_rights::may(state, user, range))
    }
}

impl Handle {
    /// Replicates what somebody wants done; the future waits until it is carried out here, and gives its reply. It is on its way when
    /// this returns, and goes it although nobody waits. `Error::Timeout` leaves open whether it was or will be carried out.
    pub fn propose(&self, kind: Kind, asker: Asker<'_>) -> impl Future<Output = Result<Reply, Error>> + Send + use<'_> {
        let proposed = self.proposed(kind, asker);
        let under_way = UnderWay::begin();
        async move {
            let outcome = proposed?.await.unwrap_or(Err(Error::Stopped));
            drop(under_way);
            if matches!(outcome, Err(Error::Timeout | Error::TimeoutLeaderLost | Error::TooManyRequests)) {
                self.shared.metrics.proposals_failed.inc();
            }
            outcome
        }
    }

    fn proposed(&self, kind: Kind, asker: Asker<'_>) -> Result<oneshot::Receiver<Result<Reply, Error>>, Error> {
        let shared = &self.shared;
        let id = shared.command_ids.fetch_add(1, Ordering::Relaxed);
        let command = encode_command(&Command::new(id, asker, kind));
        if command.len() > shared.limits.request_bytes_max {
            return Err(Error::TooLarge);
        }
        if shared.progress.is_backed_up() {
            return Err(Error::TooManyRequests);
        }
        let (reply, outcome) = oneshot::channel();
        shared.throttle.proposed(id, || shared.now());
        shared.inbox.put(Event::Propose { id, command, reply });
        Ok(outcome)
    }

    /// Refuses a write of about `cost` bytes when the backend is full, and raises NOSPACE for the whole cluster then, as etcd does.
    pub async fn admit(&self, cost: usize) -> Result<(), Error> {
        let Some(quota) = self.shared.limits.quota_bytes else { return Ok(()) };
        if self.status().size_in_use.saturating_add(cost as u64) <= quota {
            return Ok(());
        }
        let refused = || self.shared.refused_bytes.fetch_max(cost as u64, Ordering::Relaxed);
        refused();
        // Raised already: a client that keeps trying does not cost an entry each time.
        if !self.view(|state| state.alarms.is_raised(AlarmKind::NoSpace)) {
            let raise = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: self.shared.member.0,
                alarm: AlarmType::Nospace as i32,
            };
            self.propose(Kind::Alarm(raise), Asker::Member).await?;
            // An earlier alarm may have gone meanwhile, and what was refused was forgotten with it.
            refused();
        }
        Err(Error::Refused(Refusal::NoSpace))
    }

    /// Returns when this member has applied everything that was committed anywhere before the call.
    pub async fn linearize(&self) -> Result<(), Error> {
        let (reader, confirmed) = oneshot::channel();
        self.shared.inbox.put(Event::Linearize(reader));
        let outcome = confirmed.await.unwrap_or(Err(Error::Stopped));
        match outcome {
            Ok(()) => {}
            Err(Error::Timeout) => self.metrics().slow_read_indexes.inc(),
            Err(_) => self.metrics().read_indexes_failed.inc(),
        }
        outcome
    }

    /// Reads the state as it is now. Nothing is applied meanwhile: `read` is short.
    pub fn view<T>(&self, read: impl FnOnce(&StateMachine) -> T) -> T {
        read(&self.shared.replicated.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether somebody may do this, in the state as it is now.
    pub fn permit(&self, asker: Asker<'_>, wanted: Wanted<'_>) -> Result<(), Error> {
        self.view(|state| state.permit(asker, wanted)).map_err(|error| Error::Refused(Refusal::Auth(error)))
    }

    /// Reads keys for somebody, with the revision of the store at that moment. Long ranges are read in slices; what they see is fixed by
    /// the revision.
    pub async fn range(&self, request: &RangeRequest, asker: Asker<'_>) -> Result<(Revision, RangeResult), Error> {
        // Asked where the revision is fixed: both are of one moment.
        let mut scan = self.read_as(asker, Wanted::Range(request), |state| state.kv.scan(request))?;
        while self.read(|state| state.kv.scan_more(&mut scan, SLICE_KEYS))? {
            tokio::task::yield_now().await;
        }
        let revision = scan.began_at();
        let result = if scan.reads() > RECORDS_READ_HERE {
            tokio::task::spawn_blocking(move || scan.finish()).await.map_err(|_| Error::Stopped)?
        } else {
            scan.finish()
        };
        // As etcd has it: reading may have taken long.
        if let Asker::User { revision: recognised_at, .. } = asker
            && self.view(|state| state.auth.is_enabled() && state.auth.revision() != recognised_at)
        {
            return Err(Error::Refused(Refusal::Auth(auth::Error::OldRevision)));
        }
        Ok((revision, result.map_err(|error| self.fail(&error))?))
    }

    /// Has long work done on a thread that serves nobody, in the order in which it comes. It does not panic.
    pub fn aside(&self, work: Box<dyn FnOnce() + Send>) {
        self.shared.aside.take(work);
    }

    /// Carries out a txn that only reads, for somebody.
    pub fn read_txn(&self, request: &TxnRequest, asker: Asker<'_>) -> Result<TxnResponse, Error> {
        self.read_as(asker, Wanted::Txn(request), |state| state.kv.read_txn(request))
    }

    /// The hash of every row of the backend.
    pub async fn hash(&self) -> Result<u32, Error> {
        let (reader, began) = (self.view(|state| state.kv.reader()), Instant::now());
        let hashed = tokio::task::spawn_blocking(move || {
            let mut crc = 0;
            for bucket in Bucket::ALL {
                reader.scan(bucket, &[], None, &mut |key, value| {
                    crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, key), value);
                    true
                })?;
            }
            Ok::<_, crate::storage::Error>(crc)
        });
        let hashed = hashed.await.map_err(|_| Error::Stopped)?.map_err(|error| self.fail(&error));
        self.metrics().hash_seconds.observe(began.elapsed());
        hashed
    }

    /// The hash of the history up to a revision (0: all of it), and the revision of the store.
    pub async fn hash_kv(&self, revision: Revision) -> Result<(Revision, HashKv), Error> {
        let began = Instant::now();
        let (current, mut scan) = self.read(|state| Ok((state.kv.revision(), state.kv.hash_begin(revision)?)))?;
        while self.read(|state| state.kv.hash_more(&mut scan, SLICE_KEYS))? {
            tokio::task::yield_now().await;
        }
        // A long read: not on a thread that serves.
        let hash = tokio::task::spawn_blocking(move || scan.compute()).await.map_err(|_| Error::Stopped)?;
        let hash = hash.map_err(|error| self.fail(&error))?;
        self.metrics().hash_rev_seconds.observe(began.elapsed());
        // It was begun anew if there was a compaction.
        Ok((current.max(Revision(hash.hash_revision)), hash))
    }

    fn read_as<T>(
        &self,
        asker: Asker<'_>,
        wanted: Wanted<'_>,
        read: impl FnOnce(&StateMachine) -> Result<T, crate::mvcc::Error>,
    ) -> Result<T, Error> {
        match self.view(|state| state.permit(asker, wanted).map(|()| read(state))) {
            Ok(outcome) => outcome.map_err(|error| self.not_read(error)),
            Err(error) => Err(Error::Refused(Refusal::Auth(error))),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&StateMachine) -> Result<T, crate::mvcc::Error>) -> Result<T, Error> {
        self.view(read).map_err(|error| self.not_read(error))
    }

    /// What becomes of a read that failed.
    pub(crate) fn not_read(&self, error: crate::mvcc::Error) -> Error {
        match ReadFailure::from(error) {
            ReadFailure::Refused(refusal) => Error::Refused(refusal),
            ReadFailure::Storage(error) => self.fail(&error),
        }
    }

    /// The rest of a range is read from what the backend has now.
    pub(crate) fn renew_reader(&self, records: &mut Records) {
        records.read_from(self.view(|state| state.kv.reader()));
    }

    /// The disk cannot be trusted any more: the member stops.
    pub(crate) fn fail(&self, error: &dyn std::fmt::Display) -> Error {
        (self.shared.fail)(error);
        Error::Stopped
    }

    /// The hub that watch streams are opened on, with what their headers say.
    pub fn watch(&self) -> WatchHandle {
        let handle = self.clone();
        let standing = move || Standing {
            cluster: handle.cluster(),
            member: handle.member(),
            term: handle.status().term,
            leader: handle.leader(),
            learner: handle.is_learner(),
            lagging: handle.shared.progress.lagging.load(Ordering::Relaxed),
        };
        let handle = self.clone();
        let confirm = move || -> Confirmation {
            let handle = handle.clone();
            Box::pin(async move {
                if handle.leader().is_some() {
                    // What cannot be confirmed by then is said from what is known here.
                    let _ = tokio::time::timeout(NOW_TIMEOUT, handle.linearize()).await;
                }
            })
        };
        {
            let handle = self.clone();
            let written = move |revision| {
                let shared = &handle.shared;
                if let Some(age) = shared.timeline.age(revision, shared.now()) {
                    shared.metrics.watch_delivery_seconds.observe(age);
                }
            };
            let shards = self.shared.shards.clone();
            WatchHandle::new(
                shards,
                Arc::new(written),
                Arc::new(standing),
                Arc::new(confirm),
                Arc::new(Users(self.clone())),
            )
            .bounded(self.shared.limits.watchers)
        }
    }

    /// Returns when no compaction has rows left to remove and the removals are on disk.
    pub async fn compacted(&self) {
        let (waiter, done) = oneshot::channel();
        self.shared.inbox.put(Event::AwaitCompaction(waiter));
        let _ = done.await;
    }

    /// Renews a lease for its full length: the seconds, or 0 when there is no such lease.
    pub async fn renew(&self, id: LeaseId) -> Result<i64, Error> {
        let deadline = self.shared.now() + self.shared.limits.request_timeout;
        while self.shared.now() < deadline && !self.is_stopping() {
            self.belongs()?;
            let answer = match self.leader() {
                Some(leader) if leader == self.member() => self.renew_here(vec![id]).await.pop(),
                Some(leader) => self.transport().renew(leader, id).await.ok(),
                None => None,
            };
            match answer {
                Some(Renewal::Ttl(ttl)) => return Ok(ttl),
                Some(Renewal::Unknown) => return Ok(0),
                Some(Renewal::Unavailable) | None => {}
            }
            // No leader that could renew: look again after about a heartbeat.
            tokio::time::sleep(self.shared.limits.election_timeout / 10).await;
        }
        Err(Error::Timeout)
    }

    /// A member that has carried out its own removal does nothing for clients any more.
    pub(super) fn belongs(&self) -> Result<(), Error> {
        let removed = self.view(|state| state.members.was_removed(self.member()));
        if removed { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Renews as the leader; one answer per id, in their order.
    pub(crate) async fn renew_here(&self, ids: Vec<LeaseId>) -> Vec<Renewal> {
        let count = ids.len();
        let (reply, answers) = oneshot::channel();
        self.shared.inbox.put(Event::Renew { ids, reply });
        // Without an answer the member goes down.
        answers.await.unwrap_or_else(|_| vec![Renewal::Unavailable; count])
    }

    /// Seconds left of a lease and seconds granted; `None` when there is no such lease.
    pub async fn time_to_live(&self, id: LeaseId) -> Result<Option<(i64, i64)>, Error> {
        let deadline = self.shared.now() + self.shared.limits.request_timeout;
        while self.shared.now() < deadline {
            self.belongs()?;
            let answer = match self.leader() {
                Some(leader) if leader == self.member() => self.time_to_live_here(id).await?,
                Some(leader) => self.transport().time_to_live(leader, id).await.unwrap_or(Remaining::Unavailable),
                None => Remaining::Unavailable,
            };
            match answer {
                Remaining::Left { ttl, granted_ttl } => return Ok(Some((ttl, granted_ttl))),
                Remaining::Unknown => return Ok(None),
                Remaining::Unavailable => tokio::time::sleep(self.shared.limits.election_timeout / 10).await,
            }
        }
        Err(Error::Timeout)
    }

    /// As `time_to_live`, as the leader.
    pub(crate) async fn time_to_live_here(&self, id: LeaseId) -> Result<Remaining, Error> {
        let (reply, left) = oneshot::channel();
        self.shared.inbox.put(Event::TimeToLive { id, reply });
        left.await.map_err(|_| Error::Stopped)
    }

    pub(super) fn transport(&self) -> &Transport {
        self.shared.transport.get().expect("set before the first handle is given out")
    }

    /// What this member knows of itself right now.
    pub fn status(&self) -> Status {
        let progress = &self.shared.progress;
        let applied = progress.applied.load(Ordering::Relaxed);
        Status {
            leader: self.leader(),
            term: Term(progress.term.load(Ordering::Relaxed)),
            // Told at the end of a turn, and what was applied in the middle of it.
            committed: Index(progress.committed.load(Ordering::Relaxed).max(applied)),
            applied: Index(applied),
            size: self.shared.sizes.total.load(Ordering::Relaxed),
            size_in_use: self.shared.sizes.in_use.load(Ordering::Relaxed),
        }
    }

    /// The leader this member knows.
    pub fn leader(&self) -> Option<MemberId> {
        Some(MemberId(self.shared.progress.leader.load(Ordering::Relaxed))).filter(|leader| leader.0 != 0)
    }

    /// Returns when this member has been without a leader for as long as streams that need one bear it, at some time after this call.
    pub fn leader_lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.shared.leader_lost.subscribe();
        async move { drop(lost.changed().await) }
    }

    /// Whether it ever knew one since it started.
    pub(crate) fn knew_leader(&self) -> bool {
        self.shared.progress.knew_leader.load(Ordering::Relaxed)
    }

    /// This member.
    pub fn member(&self) -> MemberId {
        self.shared.member
    }

    /// Whether it does not vote.
    pub fn is_learner(&self) -> bool {
        self.shared.progress.learner.load(Ordering::Relaxed)
    }

    /// Hands leadership to `to`; returns when this member knows that it leads.
    pub async fn transfer(&self, to: MemberId) -> Result<(), Error> {
        if self.leader() != Some(self.member()) {
            return Err(Error::NotLeader);
        }
        if self.view(|state| state.members.get(to).is_none_or(|member| member.is_learner)) {
            return Err(Error::BadTransferee);
        }
        if to == self.member() {
            return Ok(());
        }
        self.shared.inbox.put(Event::HandOver(Some(to)));
        let deadline = self.shared.now() + self.shared.limits.election_timeout;
        while self.leader() != Some(to) {
            if self.shared.now() >= deadline {
                return Err(Error::TransferTimeout);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// If this member leads, asks another to; returns when it has, or after an election timeout.
    pub(crate) async fn hand_over_leadership(&self) {
        if self.leader() != Some(self.member()) {
            return;
        }
        self.shared.inbox.put(Event::HandOver(None));
        let deadline = self.shared.now() + self.shared.limits.election_timeout;
        while self.leader() == Some(self.member()) && self.shared.now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Brings gauges up to date that nobody keeps while nobody looks.
    pub(crate) fn refresh_metrics(&self) {
        let metrics = self.metrics();
        let status = self.status();
        metrics.db_total_bytes.set(status.size as i64);
        metrics.db_in_use_bytes.set(status.size_in_use as i64);
        metrics.proposals_committed.set(status.committed.0 as i64);
        metrics.proposals_applied.set(status.applied.0 as i64);
        metrics.proposals_pending.set(self.shared.progress.pending.load(Ordering::Relaxed) as i64);
        metrics.throttle_waits.set(self.shared.throttle.waits());
        metrics.is_learner.set_flag(self.is_learner());
        let version = self.view(|state| {
            metrics.current_revision.set(state.kv.revision().0);
            metrics.auth_revision.set(state.auth.revision() as i64);
            metrics.compact_revision.set(state.kv.compacted().0);
            metrics.keys.set(state.kv.keys_total() as i64);
            state.cluster_version()
        });
        if let Some(version) = version {
            metrics.set_cluster_version(&version.to_string());
        }
        let stats = self.watch().stats();
        metrics.watchers.set(stats.watchers as i64);
        metrics.watch_streams.set(stats.streams as i64);
        metrics.slow_watchers.set(stats.slow_watchers as i64);
        metrics.pending_events.set(stats.pending_events as i64);
        metrics.events.set(stats.events_sent);
        metrics.watch_lagging_streams.set(stats.lagging_streams as i64);
        metrics.watch_queued_bytes.set(stats.queued_bytes as i64);
        metrics.watch_caught_up_events.set(stats.caught_up.0);
        metrics.watch_caught_up_bytes.set(stats.caught_up.1);
        let Cancels { client, compacted, refused, revoked, stopped, no_leader, lagging } = stats.cancels;
        for (reason, count) in [
            ("client", client),
            ("compacted", compacted),
            ("refused", refused),
            ("revoked", revoked),
            ("stopped", stopped),
            ("no_leader", no_leader),
            ("lagging", lagging),
        ] {
            metrics.watch_cancels.set(reason, count);
        }
        for peer in self.transport().peers() {
            let (counted, shown) = (&peer.counters, metrics.peer(peer.id));
            shown.sent_bytes.set(counted.sent_bytes.load(Ordering::Relaxed));
            shown.received_bytes.set(counted.received_bytes.load(Ordering::Relaxed));
            shown.sent_failures.set(counted.sent_failures.load(Ordering::Relaxed));
            shown.received_failures.set(counted.received_failures.load(Ordering::Relaxed));
            shown.snapshot_send_success.set(counted.snapshots_sent.load(Ordering::Relaxed));
            shown.snapshot_receive_success.set(counted.snapshots_received.load(Ordering::Relaxed));
            shown.snapshot_send_failures.set(counted.snapshots_not_sent.load(Ordering::Relaxed));
            shown.snapshot_receive_failures.set(counted.snapshots_not_received.load(Ordering::Relaxed));
            shown.disconnected.set(counted.disconnections.load(Ordering::Relaxed));
            let round_trips = counted.rtt_counts.iter().map(|count| count.load(Ordering::Relaxed));
            shown.round_trip_seconds.set(round_trips, counted.rtt_sum_us.load(Ordering::Relaxed) as f64 / 1e6);
            shown.active.set_flag(peer.active_since.is_some());
        }
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// What bounds requests.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Who is held while there is too much to write.
    pub fn throttle(&self) -> Arc<Throttle> {
        self.shared.throttle.clone()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Whether the member is going down.
    pub fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    /// A header that says who answers, in which term, at this revision.
    pub fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster().0,
            member_id: self.member().0,
            revision: revision.0,
            raft_term: self.shared.progress.term.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_takes_nothing_on_while_more_than_5000_entries_wait_to_be_carried_out() {
        let at = |committed: u64, applied: u64| {
            let progress = Progress { committed: committed.into(), applied: applied.into(), ..Progress::default() };
            progress.is_backed_up()
        };
        assert_eq!([at(15_000, 10_000), at(15_001, 10_000)], [false, true]);
        // What is applied may be told before what is committed.
        assert!(!at(10_000, 15_001));
    }
}
