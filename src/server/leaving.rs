//! A removed member asks the others whether it may go, and until then votes and acknowledges as before.
//!
//! The rule is [`crate::cluster::leaving`]'s. Here is its conversation. It begins when this member carried out its own removal,
//! or had done so before it started, or when a peer refused it as one that was removed. Everybody is asked who is in this
//! member's table or in an answered one: those who voted when it was removed may all have been replaced.
//!
//! Meanwhile clients are told that the member is stopped, whatever they want that needs the others, once it has carried out its removal.
//! Before that they find a member that knows no leader, but while one that has not heard of the removal leads it.

use std::collections::{BTreeMap, BTreeSet};

use slog::{Logger, info, warn};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, sleep_until};

use super::handle::Handle;
use crate::cluster::leaving::Leaving;
use crate::pb::everwatchpb::{MembersRequest, MembersResponse, Standing};
use crate::peer::ask_members;
use crate::types::MemberId;

/// The pause between two rounds of questions: it grows by half each time, up to the longest.
const PAUSE_SHORTEST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// When it is first said who is waited for, and how often after that.
const PATIENCE: Duration = Duration::from_secs(5);
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(30);

/// Lets the member go when it was removed and a majority of the others knows that for ever.
pub(super) async fn run(handle: Handle, logger: Logger) {
    let mut leaving = handle.shared.leaving.subscribe();
    if leaving.wait_for(|leaving| *leaving).await.is_err() {
        return;
    }
    info!(logger, "this member was removed from the cluster: it goes when the others cannot need its vote any more");
    let mut farewells = Farewells::default();
    let mut asking = JoinSet::new();
    let mut complaint = interval_at(Instant::now() + PATIENCE, COMPLAINT_INTERVAL);
    complaint.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pause = PAUSE_SHORTEST;
    loop {
        farewells.add(handle.shared.peers().0, handle.member());
        let question = MembersRequest { cluster_id: handle.cluster().0, asker: handle.member().0 };
        for (id, urls) in farewells.next_questions() {
            let dialer = handle.shared.dialer.clone();
            asking.spawn(async move { (id, ask_members(&urls, &dialer, question).await) });
        }
        let next = Instant::now() + pause;
        while Instant::now() < next {
            tokio::select! {
                () = sleep_until(next) => {}
                Some(Ok((id, answer))) = asking.join_next() => {
                    farewells.heard(id, answer.filter(|answer| answer.cluster_id == question.cluster_id), handle.member());
                    if farewells.leaving.may_go() {
                        return handle.shared.removed();
                    }
                }
                _ = complaint.tick() => {
                    let names = |ids: Vec<MemberId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                    warn!(logger, "this member was removed and waits until a majority of the others has that on disk";
                        "have-it" => names(farewells.told.iter().copied().collect()), "without-word" => names(farewells.waited_for()));
                }
            }
        }
        pause = (pause * 3 / 2).min(PAUSE_LONGEST);
    }
}

/// Who is asked, and what came of it.
#[derive(Default)]
struct Farewells {
    leaving: Leaving,
    /// Those who have the removal on disk.
    told: BTreeSet<MemberId>,
    /// Where anybody ever said that they are reached.
    addresses: BTreeMap<MemberId, BTreeSet<String>>,
    /// A question to them is under way. Whoever is slow does not hold up the others.
    asked: BTreeSet<MemberId>,
}

impl Farewells {
    fn add(&mut self, members: impl IntoIterator<Item = (MemberId, Vec<String>)>, own: MemberId) {
        for (id, urls) in members.into_iter().filter(|(id, _)| *id != own) {
            self.addresses.entry(id).or_default().extend(urls);
        }
    }

    fn next_questions(&mut self) -> Vec<(MemberId, Vec<String>)> {
        let Farewells { addresses, asked, .. } = self;
        let idle = addresses.iter().filter(|(id, _)| asked.insert(**id));
        idle.map(|(id, urls)| (*id, urls.iter().cloned().collect())).collect()
    }

    fn heard(&mut self, from: MemberId, answer: Option<MembersResponse>, own: MemberId) {
        self.asked.remove(&from);
        let Some(answer) = answer.filter(|answer| answer.standing() == Standing::Removed) else { return };
        // Not `from`, if another member has its address now.
        let teller = MemberId(answer.member_id);
        let voters = answer.members.iter().filter(|member| !member.is_learner).map(|member| MemberId(member.id));
        self.leaving.told(teller, voters);
        self.told.insert(teller);
        self.add(answer.members.into_iter().map(|member| (MemberId(member.id), member.peer_urls)), own);
    }

    /// Voters who have not said that they have it; everybody, before anybody said who votes.
    fn waited_for(&self) -> Vec<MemberId> {
        let named = self.leaving.named();
        let known = if named.is_empty() { self.addresses.keys().copied().collect() } else { named };
        known.difference(&self.told).copied().collect()
    }
}
