//! The alarm command.

use super::{Effects, Stopped};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmResponse};
use crate::state::StateMachine;
use crate::state::alarm::{AlarmKind, to_wire};
use crate::state::applied::Reply;
use crate::storage::backend::Batch;
use crate::types::MemberId;

impl StateMachine {
    /// The reply lists what was asked for, what was raised (even if it was before), or what was taken back. Without a kind,
    /// or with one or an action that we do not know, nothing happens.
    pub(super) fn alarm(&mut self, request: &AlarmRequest, batch: &mut Batch) -> Result<Effects, Stopped> {
        let member = MemberId(request.member_id);
        let kind = AlarmKind::from_wire(request.alarm);
        let alarms = match (AlarmAction::try_from(request.action), kind) {
            (Ok(AlarmAction::Get), _) => self.alarms.list(request.alarm),
            (Ok(AlarmAction::Activate), Some(kind)) => {
                self.alarms.raise(kind, member, batch);
                vec![to_wire(kind, member)]
            }
            (Ok(AlarmAction::Deactivate), Some(kind)) if self.alarms.clear(kind, member, batch) => {
                vec![to_wire(kind, member)]
            }
            _ => Vec::new(),
        };
        Ok(Effects::reply(Reply::Alarm(AlarmResponse { header: self.header(), alarms })))
    }
}
