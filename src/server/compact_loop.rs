//! Auto-compaction's loop: looks when its rule says so, and proposes what the rule says.
//!
//! The rule is [`AutoCompaction`]'s. Every member looks, so that one that comes to lead knows how old the revisions are; only the
//! leader proposes. A proposal that fails is made again at the next look, if it is still due.

use slog::{Logger, info, warn};
use tokio::time::MissedTickBehavior;

use super::error::Error;
use super::handle::Handle;
use crate::auth::Asker;
use crate::config;
use crate::mvcc::auto_compaction::AutoCompaction;
use crate::pb::etcdserverpb::CompactionRequest;
use crate::state::applied::Refusal;
use crate::state::command::Kind;

/// Compacts until the member stops.
pub(super) async fn run(handle: Handle, keep: config::AutoCompaction, logger: Logger) {
    let revision = || handle.view(|state| state.kv.revision());
    let (name, mut rule) = match keep {
        config::AutoCompaction::Periodic(period) => {
            ("periodic", AutoCompaction::periodic(period, handle.shared.now(), revision()))
        }
        config::AutoCompaction::Revisions(kept) => ("revision", AutoCompaction::revisions(kept)),
    };
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + rule.pause(), rule.pause());
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let leads = handle.leader() == Some(handle.member());
        let began = handle.shared.now();
        let Some(to) = rule.look(began, revision(), leads) else { continue };
        let compaction = CompactionRequest { revision: to.0, physical: false };
        match handle.propose(Kind::Compaction(compaction), Asker::Member).await {
            // Somebody else has compacted that far, or farther.
            Ok(_) | Err(Error::Refused(Refusal::Compacted(_))) => {
                rule.done(handle.shared.now(), to);
                // As etcd says it: people look for these lines.
                info!(logger, "completed auto {} compaction", name; "revision" => to.0, "keep" => ?keep,
                    "took" => ?handle.shared.now().saturating_sub(began));
            }
            Err(error) => warn!(logger, "failed auto {} compaction", name; "revision" => to.0, "keep" => ?keep,
                "error" => ?error),
        }
    }
}
