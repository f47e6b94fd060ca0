//! NOSPACE heals: a member takes its own alarm back when compaction has made room.
//!
//! When that is, is [`Relief`]'s to say. The alarm of a member that was removed is taken back by the leader: nobody else would. So is
//! one of a member that was never here, if it stood when this member started: it came with a backup of another cluster, and whoever
//! has too much here says so himself. One that is raised later for nobody who belongs is an operator's, and stays; so is that of
//! member 0, who is nobody anywhere.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::time::{MissedTickBehavior, interval};

use super::handle::Handle;
use crate::auth::Asker;
use crate::cluster::Membership;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};
use crate::state::AlarmKind;
use crate::state::command::Kind;
use crate::state::relief::{Relief, Standing};
use crate::types::MemberId;

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes alarms back until the member stops.
pub(super) async fn run(handle: Handle, quota: u64, logger: Logger) {
    let mut looks = interval(PAUSE);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was raised before the start is known then.
    while handle.linearize().await.is_err() {
        looks.tick().await;
    }
    let (mut relief, mut stood) = (Relief::default(), false);
    // Of members that were never here.
    let mut brought: Option<BTreeSet<MemberId>> = None;
    loop {
        looks.tick().await;
        let own = handle.member();
        let raised: Vec<(MemberId, Whose)> = handle.view(|state| {
            let raised = state.alarms.iter().filter(|(kind, _)| *kind == AlarmKind::NoSpace);
            raised.map(|(_, member)| (member, whose(&state.members, member))).collect()
        });
        let strangers =
            raised.iter().filter(|(_, whose)| *whose == Whose::Strangers).map(|(member, _)| *member).collect();
        // Raised again, it is another.
        let brought = match &mut brought {
            Some(brought) => {
                brought.retain(|member| BTreeSet::contains(&strangers, member));
                brought
            }
            None => brought.insert(strangers),
        };
        let stands = raised.iter().any(|(member, _)| *member == own);
        let refused = &handle.shared.refused_bytes;
        if std::mem::replace(&mut stood, stands) && !stands {
            refused.store(0, Ordering::Relaxed);
        }
        let (in_use, refused) = (handle.status().size_in_use, refused.load(Ordering::Relaxed));
        if relief.look(Standing { raised: stands, in_use, refused, quota }) {
            info!(logger, "there is space again: taking NOSPACE back"; "in-use" => in_use, "quota" => quota);
            take_back(&handle, own, &logger).await;
        }
        if handle.leader() == Some(own) {
            for (member, whose) in raised {
                match whose {
                    Whose::Removed => {
                        info!(logger, "taking back NOSPACE of a member that was removed"; "member" => %member);
                    }
                    Whose::Strangers if brought.contains(&member) => {
                        info!(logger, "taking back NOSPACE of a member of another cluster"; "member" => %member);
                    }
                    Whose::Strangers | Whose::Others => continue,
                }
                take_back(&handle, member, &logger).await;
            }
        }
    }
}

/// For whom an alarm was raised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// One who belonged.
    Removed,
    /// One who never did.
    Strangers,
    /// One who belongs, or nobody.
    Others,
}

fn whose(members: &Membership, member: MemberId) -> Whose {
    if members.was_removed(member) {
        Whose::Removed
    } else if members.get(member).is_none() && member != MemberId(0) {
        Whose::Strangers
    } else {
        Whose::Others
    }
}

async fn take_back(handle: &Handle, member: MemberId, logger: &Logger) {
    let (action, alarm) = (AlarmAction::Deactivate as i32, AlarmType::Nospace as i32);
    if let Err(error) =
        handle.propose(Kind::Alarm(AlarmRequest { action, member_id: member.0, alarm }), Asker::Member).await
    {
        warn!(logger, "failed to take NOSPACE back"; "member" => %member, "error" => ?error);
    }
}
