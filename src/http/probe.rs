//! What the HTTP endpoints ask a member, answered by a [`Handle`], or by nobody while there is none.

use super::{ActiveAlarm, Probe};
use crate::api;
use crate::server::handle::Handle;
use crate::state::AlarmKind;

/// A member as the endpoints see it.
pub(crate) struct HandleProbe {
    handle: Handle,
}

impl HandleProbe {
    pub(crate) fn new(handle: Handle) -> HandleProbe {
        HandleProbe { handle }
    }
}

impl Probe for HandleProbe {
    async fn linearizable_read(&self) -> Result<(), String> {
        api::kv::probe(&self.handle, true).await
    }

    async fn serializable_read(&self) -> Result<(), String> {
        api::kv::probe(&self.handle, false).await
    }

    fn has_leader(&self) -> bool {
        self.handle.leader().is_some()
    }

    fn is_learner(&self) -> bool {
        self.handle.is_learner()
    }

    fn alarms(&self) -> Vec<ActiveAlarm> {
        let kind = |kind| match kind {
            AlarmKind::NoSpace => ActiveAlarm::NoSpace,
            AlarmKind::Corrupt => ActiveAlarm::Corrupt,
        };
        self.handle.view(|state| state.alarms.iter().map(|(raised, _)| kind(raised)).collect())
    }

    fn cluster_version(&self) -> Option<String> {
        self.handle.view(|state| state.cluster_version().map(|version| version.to_string()))
    }

    fn metrics(&self) -> String {
        self.handle.refresh_metrics();
        self.handle.metrics().expose()
    }

    fn checked(&self, kind: &'static str, check: &'static str, healthy: bool) {
        let metrics = self.handle.metrics();
        if kind == "health" {
            if healthy { metrics.health_success.inc() } else { metrics.health_failures.inc() }
        } else {
            metrics.health_checked(kind, check, healthy);
        }
    }
}

/// A member that takes part in nothing yet: alive, for a restart would not help, and not ready.
#[derive(Clone, Copy)]
pub(crate) struct UnfoundedProbe;

impl Probe for UnfoundedProbe {
    async fn linearizable_read(&self) -> Result<(), String> {
        Err("etcdserver: no leader".to_owned())
    }

    async fn serializable_read(&self) -> Result<(), String> {
        Ok(())
    }

    fn has_leader(&self) -> bool {
        false
    }

    fn is_learner(&self) -> bool {
        false
    }

    fn alarms(&self) -> Vec<ActiveAlarm> {
        Vec::new()
    }

    fn cluster_version(&self) -> Option<String> {
        None
    }

    fn metrics(&self) -> String {
        String::new()
    }

    fn checked(&self, _: &'static str, _: &'static str, _: bool) {}
}
