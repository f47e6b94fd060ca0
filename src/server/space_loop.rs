//! NOSPACE heals: a member takes its own alarm back when compaction has made room.
//!
//! When that is, is [`Relief`]'s to say. The alarm of a member that was removed is taken back by the leader: nobody else would.

use std::sync::atomic::Ordering;
use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::time::{MissedTickBehavior, interval};

use super::handle::Handle;
use crate::auth::Asker;
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
    loop {
        looks.tick().await;
        let own = handle.member();
        let raised: Vec<(MemberId, bool)> = handle.view(|state| {
            let raised = state.alarms.iter().filter(|(kind, _)| *kind == AlarmKind::NoSpace);
            raised.map(|(_, member)| (member, state.members.was_removed(member))).collect()
        });
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
            for (member, _) in raised.into_iter().filter(|(_, gone)| *gone) {
                info!(logger, "taking back NOSPACE of a member that was removed"; "member" => %member);
                take_back(&handle, member, &logger).await;
            }
        }
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
