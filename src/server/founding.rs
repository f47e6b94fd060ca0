//! A member without data asks the others whether it may take part, and a member that runs answers it; and one that was removed.
//!
//! The rule is [`crate::cluster::founding`]'s. Here is its conversation: every other member is asked until it is clear, soon at
//! first and then once per second; whoever asks this member is asked again at once, so that two that start together find
//! each other without delay. Meanwhile this member takes part in nothing, and says so to its peers ([`Asking::peer_grpc`]).
//!
//! A member that joins (`--initial-cluster-state=existing`) first looks for itself in the table of members: adding it came
//! before. It has its id and the cluster's from there. Like etcd it gives up when it is not in the table; unlike etcd it
//! asks all listed members, since the first may not have heard of it yet, and has them confirm that it has not run before.
//!
//! A member that has data asks nobody: [`Asking::new`] costs it a look at the directory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout};

use super::bootstrap::{self, Admission, Error, FOUNDING};
use super::error::Error::Refused;
use super::handle::Handle;
use crate::auth::Asker;
use crate::cluster::InitialCluster;
use crate::cluster::founding::{self, Answer, Decision, Heard, Wish};
use crate::config::{ClusterState, Config};
use crate::pb::everwatchpb::{LeaseRemaining, MembersRequest, MembersResponse, Standing};
use crate::peer::{Unfounded, UnfoundedGrpc, ask_members};
use crate::raft::Node;
use crate::state::command::Kind;
use crate::storage::backend::Bucket;
use crate::storage::schema;
use crate::tls::Dialer;
use crate::types::{ClusterId, MemberId};

/// The pause between two questions to the same member: it grows by half each time, up to the longest.
const PAUSE_SHORTEST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// When it is first said what is waited for, and how often after that.
const PATIENCE: Duration = Duration::from_secs(1);
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(5);

/// How long the entry may take that confirms an answer. Less than the asker waits.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// A member without data, on its way to being one with data.
pub(crate) struct Asking {
    name: String,
    token: String,
    /// As `--initial-cluster` has them.
    listed: InitialCluster,
    wish: Wish,
    dialer: Dialer,
    logger: Logger,
    /// Those who asked, for those who ask them.
    calls: Arc<BTreeMap<MemberId, Notify>>,
}

impl Asking {
    /// The conversation that `config` asks for; none where there is data, or nobody to ask.
    pub(crate) fn new(config: &Config, dialer: Dialer, logger: &Logger) -> Result<Option<Asking>, Error> {
        if bootstrap::has_data(config)? {
            return Ok(None);
        }
        let listed = InitialCluster::parse(&config.initial_cluster)?;
        let wish = match config.initial_cluster_state {
            ClusterState::New => {
                let own_urls: Vec<String> =
                    config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
                listed.check(&config.name, &own_urls)?;
                Wish::Found
            }
            ClusterState::Existing => {
                listed.check_joining(&config.name)?;
                Wish::Join
            }
        };
        let token = config.initial_cluster_token.clone();
        let ids = listed.members().filter_map(|(name, _)| listed.member_id(name, &token));
        let calls = Arc::new(ids.map(|id| (id, Notify::new())).collect());
        Ok(Some(Asking { name: config.name.clone(), token, listed, wish, dialer, logger: logger.clone(), calls }))
    }

    /// What peers call meanwhile.
    pub(crate) fn peer_grpc(&self) -> UnfoundedGrpc {
        let cluster = (self.wish == Wish::Found).then(|| self.listed.cluster_id(&self.token));
        let calls = self.calls.clone();
        Unfounded::service(
            cluster,
            Arc::new(move |asker| {
                if let Some(call) = calls.get(&asker) {
                    call.notify_one();
                }
            }),
        )
    }

    /// Returns when it is clear as what this member may start. An error says why it must not.
    pub(crate) async fn admission(&self) -> Result<Admission, Error> {
        let others: Vec<(MemberId, Vec<String>)> = self.others().collect();
        match self.wish {
            Wish::Found => {
                let cluster = self.listed.cluster_id(&self.token);
                let own = self.listed.member_id(&self.name, &self.token);
                let own = own.expect("the list was checked to name this member");
                self.ask(cluster, own, others).await?;
                Ok(Admission::Founder)
            }
            Wish::Join => {
                let (own, table) = self.find(&others).await?;
                let cluster = ClusterId(table.cluster_id);
                self.ask(cluster, own, others).await?;
                info!(self.logger, "joining a cluster"; "cluster-id" => %cluster, "member-id" => %own);
                Ok(Admission::Joiner { cluster, member: own, table: table.members })
            }
        }
    }

    /// All listed members but this one. The ids are those of founders: where members were added later they only tell them apart.
    fn others(&self) -> impl Iterator<Item = (MemberId, Vec<String>)> {
        let others = self.listed.members().filter(|(name, _)| *name != self.name);
        others.filter_map(|(name, urls)| Some((self.listed.member_id(name, &self.token)?, urls.to_vec())))
    }

    /// This member's id in the table of a running cluster, and that table.
    async fn find(&self, others: &[(MemberId, Vec<String>)]) -> Result<(MemberId, MembersResponse), Error> {
        let mut asking = JoinSet::new();
        for (_, urls) in others {
            let (urls, dialer) = (urls.clone(), self.dialer.clone());
            asking.spawn(async move { ask_members(&urls, &dialer, MembersRequest::default()).await });
        }
        let mut refusal =
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
                .to_owned();
        while let Some(answer) = asking.join_next().await {
            // One that has not caught up with anything knows nobody.
            let Some(table) = answer.ok().flatten().filter(|table| !table.members.is_empty()) else { continue };
            match self.listed.join(&self.name, ClusterId(table.cluster_id), &table.members) {
                Ok(own) => return Ok((own, table)),
                Err(why) => refusal = why.to_string(),
            }
        }
        Err(Error::Refused(refusal))
    }

    /// Asks until it is clear that this member may start.
    async fn ask(&self, cluster: ClusterId, own: MemberId, others: Vec<(MemberId, Vec<String>)>) -> Result<(), Error> {
        let question = MembersRequest { cluster_id: cluster.0, asker: own.0 };
        let mut heard = vec![Heard::Nothing; others.len()];
        let (say, mut hear) = mpsc::channel(others.len().max(1));
        // They end with this function.
        let mut asking = JoinSet::new();
        for (at, (id, urls)) in others.iter().cloned().enumerate() {
            let (say, calls, dialer) = (say.clone(), self.calls.clone(), self.dialer.clone());
            asking.spawn(async move {
                let mut pause = PAUSE_SHORTEST;
                loop {
                    let answer = ask_members(&urls, &dialer, question).await;
                    let answer = answer.filter(|answer| answer.cluster_id == cluster.0);
                    let standing = answer.map(|answer| Standing::try_from(answer.standing).unwrap_or_default());
                    let heard = standing.map_or(Heard::Silence, |standing| Heard::Said(Answer::from_wire(standing)));
                    if say.send((at, heard)).await.is_err() {
                        return;
                    }
                    let called = async {
                        match calls.get(&id).filter(|_| heard == Heard::Silence) {
                            Some(call) => call.notified().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = sleep(pause) => pause = (pause * 3 / 2).min(PAUSE_LONGEST),
                        // It is there after all.
                        () = called => {}
                    }
                }
            });
        }
        let mut complaint = interval_at(tokio::time::Instant::now() + PATIENCE, COMPLAINT_INTERVAL);
        complaint.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match founding::decide(self.wish, &heard) {
                Decision::Start => return Ok(()),
                Decision::Refuse { removed: false } => {
                    return Err(Error::Refused(format!("member {own} has already been bootstrapped")));
                }
                Decision::Refuse { removed: true } => {
                    return Err(Error::Refused(format!(
                        "the member has been permanently removed from the cluster: member {own}"
                    )));
                }
                Decision::KeepAsking => {}
            }
            tokio::select! {
                Some((at, what)) = hear.recv() => heard[at] = what,
                _ = complaint.tick() => {
                    let names = |wanted: fn(&Heard) -> bool| {
                        let some = others.iter().zip(&heard).filter(|(_, heard)| wanted(heard));
                        some.flat_map(|((_, urls), _)| urls.iter().map(String::as_str)).collect::<Vec<_>>().join(",")
                    };
                    warn!(self.logger, "this member has no data and waits until it is known that it may start";
                        "member-id" => %own,
                        "without-answer" => names(|heard| matches!(heard, Heard::Nothing | Heard::Silence)),
                        "new-themselves" => names(|heard| *heard == Heard::Said(Answer::Fresh)),
                        "running-without-majority" => names(|heard| *heard == Heard::Said(Answer::Unsure)));
                }
            }
        }
    }
}

/// Whether a node at its start has nothing beyond the founding.
pub(super) fn is_fresh(node: &Node) -> bool {
    node.last_index() == FOUNDING.index
}

/// What the member of `handle` knows about the members, and about one that starts without data or was removed. `fresh`: it had
/// nothing beyond the founding when it started.
pub(super) async fn answer(handle: Handle, fresh: bool, asker: Option<MemberId>) -> MembersResponse {
    let standing = match asker {
        Some(asker) => match standing(&handle, fresh, asker).await {
            Answer::Removed if !has_removal_on_disk(&handle, asker) => Answer::Unsure,
            answer => answer,
        },
        None => Answer::Unsure,
    };
    // Not before: the table is that of after the removal then.
    MembersResponse {
        members: handle.view(|state| state.members.iter().map(|(id, member)| member.record(id)).collect()),
        cluster_id: handle.cluster().0,
        standing: standing.to_wire() as i32,
        member_id: handle.member().0,
    }
}

/// Whether this member would still know after a crash that the other was removed. Otherwise it says that when it is asked again.
fn has_removal_on_disk(handle: &Handle, removed: MemberId) -> bool {
    let on_disk = handle.view(|state| state.kv.reader());
    match on_disk.get(Bucket::MembersRemoved, &schema::u64_row(removed.0)) {
        Ok(row) => row.is_some(),
        Err(error) => {
            handle.fail(&error);
            false
        }
    }
}

async fn standing(handle: &Handle, fresh: bool, asker: MemberId) -> Answer {
    let fresh = fresh && !handle.knew_leader();
    let (at_once, alone) = handle.view(|state| {
        let alone = founding::depend_on_each_other(handle.member(), asker, &state.conf_state().voters);
        (founding::answer(asker, fresh, &state.members), alone)
    });
    if let Some(answer) = at_once {
        return answer;
    }
    if !alone && !commit_without_effect(handle).await {
        return Answer::Unsure;
    }
    handle.view(|state| founding::confirmed(asker, &state.members))
}

/// Has an entry committed, and carried out here, that changes nothing. Whether it was done in time.
async fn commit_without_effect(handle: &Handle) -> bool {
    if handle.leader().is_none() {
        return false;
    }
    // Of no leader's term, about no lease.
    let nothing = Kind::LeaseRemaining(LeaseRemaining::default());
    // An alarm may refuse it, when it is carried out.
    matches!(timeout(CONFIRM_TIMEOUT, handle.propose(nothing, Asker::Member)).await, Ok(Ok(_) | Err(Refused(_))))
}
