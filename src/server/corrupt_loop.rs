//! Members compare what they hold: after compactions, from time to time, and before one that was started serves.
//!
//! The leader asks. It takes the hash of its history up to a revision and has every peer do the same; whose differs is
//! [`judge`]'s to say. For a member that is wrong CORRUPT is raised, for member 0 where nobody can say who is, and then
//! the cluster takes no more writes until an operator has looked, as in etcd. Nothing is compared while CORRUPT is raised.
//!
//! A peer that is behind, away, or has compacted elsewhere is left out, and compared the next time. A comparison after compaction is
//! made again until everybody was. Where those who are missing could say who is wrong, they are waited for, a while.
//!
//! A member that is told to compare before it serves does not start when it is wrong, or when somebody is and nobody can say who.

use std::fmt;
use std::time::Duration;

use slog::{Logger, error, info, warn};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};

use super::error::Error;
use super::handle::Handle;
use crate::auth::Asker;
use crate::cluster::corruption::{Answer, Verdict, judge};
use crate::config::CorruptChecks;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};
use crate::peer::AskError;
use crate::state::AlarmKind;
use crate::state::command::Kind;
use crate::types::{MemberId, Revision};

/// How long a member that was just started waits for connections to its peers before it does without them.
const CONNECTIONS_PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two looks at a connection.
const CONNECTION_PAUSE: Duration = Duration::from_millis(20);
/// Comparisons, and the pause before each, until nobody waits any longer for those who could say who is wrong: about as long as
/// a member takes to start.
const DECISIONS_MAX: usize = 30;
const DECISION_PAUSE: Duration = Duration::from_secs(1);

/// What a comparison came to.
struct Comparison {
    revision: Revision,
    verdict: Verdict,
    /// Members there are.
    members: usize,
}

impl Comparison {
    fn covers_all(&self) -> bool {
        !matches!(self.verdict, Verdict::Equal { members } if members < self.members)
    }
}

/// Compares until the member stops.
pub(super) async fn run(handle: Handle, checks: CorruptChecks, logger: Logger) {
    let mut after_compaction = checks.after_compaction.map(interval);
    let mut every = checks.every.map(interval);
    let mut compared = Revision::default();
    loop {
        let after_compaction = tokio::select! {
            () = tick(&mut after_compaction) => true,
            () = tick(&mut every) => false,
        };
        let (compacted, idle) = handle.view(|state| {
            let idle = state.members.len() < 2 || state.alarms.is_raised(AlarmKind::Corrupt);
            (state.kv.compacted(), idle)
        });
        let leads = handle.leader() == Some(handle.member());
        if !leads || idle || after_compaction && compacted <= compared.max(Revision(0)) {
            continue;
        }
        let at = if after_compaction { compacted } else { Revision(0) };
        match decide(&handle, at, Duration::ZERO, &logger).await {
            Ok(comparison) => {
                if after_compaction && comparison.covers_all() {
                    compared = compacted;
                }
                alarm(&handle, &comparison, &logger).await;
            }
            Err(error) => warn!(logger, "failed to compare the members' histories"; "error" => ?error),
        }
    }
}

/// Compares before the member serves. An error says why it may not.
pub(super) async fn before_serving(handle: &Handle, logger: &Logger) -> Result<(), Inconsistent> {
    let own = handle.member();
    info!(logger, "starting initial corruption check"; "local-member-id" => %own);
    match decide(handle, Revision(0), CONNECTIONS_PATIENCE, logger).await {
        Ok(Comparison { verdict: Verdict::Undecided { .. }, .. }) => return Err(Inconsistent(own)),
        Ok(Comparison { verdict: Verdict::Wrong(wrong), .. }) if wrong.contains(&own) => return Err(Inconsistent(own)),
        Ok(Comparison { verdict: Verdict::Wrong(wrong), .. }) => {
            warn!(logger, "other members differ from the majority, this one does not"; "wrong" => listed(&wrong));
        }
        Ok(Comparison { verdict: Verdict::Equal { members }, revision, .. }) => {
            info!(logger, "initial corruption checking passed; no corruption"; "members" => members, "revision" => revision.0);
        }
        Err(error) => warn!(logger, "initial corruption check was not possible"; "error" => ?error),
    }
    Ok(())
}

/// This member's data is not that of its peers.
#[derive(Debug)]
pub(super) struct Inconsistent(MemberId);

impl fmt::Display for Inconsistent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} found data inconsistency with peers", self.0)
    }
}

impl std::error::Error for Inconsistent {}

/// Compares, again and again while others could say who is wrong.
async fn decide(handle: &Handle, at: Revision, patience: Duration, logger: &Logger) -> Result<Comparison, Error> {
    let mut comparison = compare(handle, at, patience, logger).await?;
    for _ in 0..DECISIONS_MAX {
        if !matches!(comparison.verdict, Verdict::Undecided { open: true }) {
            break;
        }
        warn!(logger, "the members' histories differ, and too few can be compared to say who is wrong");
        sleep(DECISION_PAUSE).await;
        comparison = compare(handle, at, patience, logger).await?;
    }
    Ok(comparison)
}

/// Has everybody hash the history up to a revision (0 is this member's newest). For connections to peers it waits so long.
async fn compare(handle: &Handle, at: Revision, patience: Duration, logger: &Logger) -> Result<Comparison, Error> {
    let (_, own) = handle.hash_kv(at).await?;
    let revision = Revision(own.hash_revision);
    let own = Answer { member: handle.member(), hash: own.hash, compacted: Revision(own.compact_revision) };
    let members: Vec<MemberId> = handle.view(|state| state.members.iter().map(|(id, _)| id).collect());
    let mut asking = JoinSet::new();
    for peer in members.iter().copied().filter(|id| *id != own.member) {
        let handle = handle.clone();
        asking.spawn(async move { (peer, ask(&handle, peer, revision, patience).await) });
    }
    let mut others = Vec::new();
    while let Some(Ok((peer, answer))) = asking.join_next().await {
        match answer {
            Ok(answer) if answer.compacted == own.compacted => others.push(answer),
            Ok(answer) => warn!(logger, "a peer has compacted elsewhere and is not compared"; "peer" => %peer,
                "revision" => revision.0, "compacted" => answer.compacted.0, "compacted-here" => own.compacted.0),
            Err(error) => warn!(logger, "a peer gives no hash and is not compared"; "peer" => %peer,
                "revision" => revision.0, "error" => %error),
        }
    }
    Ok(Comparison { revision, verdict: judge(own, &others, members.len()), members: members.len() })
}

async fn ask(handle: &Handle, peer: MemberId, revision: Revision, patience: Duration) -> Result<Answer, AskError> {
    let deadline = Instant::now() + patience;
    loop {
        match handle.transport().history_hash(peer, revision).await {
            Err(AskError::Unreachable) if Instant::now() < deadline => sleep(CONNECTION_PAUSE).await,
            answer => {
                let answer = answer?;
                return Ok(Answer { member: peer, hash: answer.hash, compacted: Revision(answer.compacted) });
            }
        }
    }
}

/// Raises CORRUPT for whoever is wrong.
async fn alarm(handle: &Handle, comparison: &Comparison, logger: &Logger) {
    let wrong = match &comparison.verdict {
        Verdict::Equal { members } => {
            info!(logger, "finished peer corruption check"; "revision" => comparison.revision.0,
                "members-checked" => members, "members" => comparison.members);
            return;
        }
        Verdict::Wrong(wrong) => wrong.clone(),
        Verdict::Undecided { .. } => vec![MemberId(0)],
    };
    error!(logger, "found hash mismatch: the members' histories differ"; "revision" => comparison.revision.0,
        "wrong" => listed(&wrong));
    for member in wrong {
        let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
        let raise = AlarmRequest { action, member_id: member.0, alarm };
        if let Err(error) = handle.propose(Kind::Alarm(raise), Asker::Member).await {
            // It is found again the next time.
            warn!(logger, "failed to raise CORRUPT"; "member" => %member, "error" => ?error);
        }
    }
}

fn listed(members: &[MemberId]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn interval(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Never, without an interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
