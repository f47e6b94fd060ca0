//! What the client of a watch stream may hear of, while users count.
//!
//! Promises, of a watcher that was created while users counted:
//!   * it is created only for who may read all of its keys in the state that this member has then;
//!   * whenever a change of users or roles has been carried out here, turning auth on among them, it is looked at before its
//!     stream writes anything more. Who may not read all of its keys any more hears no more of them: not even what was waiting to
//!     be written;
//!   * it ends then, and is told why.
//!
//! What waits for a watcher that its client has canceled himself, or that compaction has ended, is written up to that end.
//!
//! A watcher that was created while users did not count is not ended for them, until its stream is known to be somebody's.
//!
//! Carrying out comes first, in turns of several entries, and what a turn changed is heard by hubs that have threads of their own
//! a moment before its change of users is. So the bound, while a client reads, is the turn of the core that carries out the
//! change: nothing of a later turn is written. A stream whose client does not read writes nothing, and is looked at when he does.
//!
//! Called by `api::watch` for each of its streams. Pure: who is asked is a [`Guard`], and what is done to the stream the
//! caller's.

use std::mem;
use std::sync::Arc;

use super::logins::Claim;
use crate::auth::{self, Asker};
use crate::state::StateMachine;
use crate::state::permission::Wanted;
use crate::types::KeyRange;
use crate::watch::Outgoing;

/// Says who may hear of what.
pub trait Guard: Send + Sync {
    /// The user who says this of himself, if users count and he may hear of these keys; or why he may not.
    fn admit(&self, claim: Claim<'_>, range: &KeyRange) -> Result<Option<Arc<str>>, Denied>;

    /// The [`mark`] of users and roles; one and the same if watchers that run are never to be looked at again.
    fn rights(&self) -> u64;

    /// Whether a user who was admitted may still hear of these keys.
    fn may(&self, user: &Arc<str>, range: &KeyRange) -> bool;
}

/// Why somebody may not hear of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nobody has this token, as far as this member knows.
    Token,
    /// He may not.
    Auth(auth::Error),
}

/// Changes whenever somebody may hear of less than before. Turning auth on makes no auth revision, but what was changed while it
/// was off begins to count.
pub fn mark(enabled: bool, auth_revision: u64) -> u64 {
    auth_revision << 1 | u64::from(enabled)
}

/// Whether a user who was admitted may still hear of these keys, in this state.
pub fn may(state: &StateMachine, user: &str, range: &KeyRange) -> bool {
    let asker = Asker::User { name: user, revision: state.auth.revision() };
    state.permit(asker, Wanted::Watch(range)).is_ok()
}

/// Of one stream.
#[derive(Debug)]
pub struct Rights {
    /// Who its client is, if he came while users counted. A stream says it once, so it is the same for all of its watchers.
    user: Option<Arc<str>>,
    /// The guard's mark when its watchers were looked at.
    mark: u64,
    /// Watchers that he may hear no more of; their last word is still to be written. An id that was given again may be in it
    /// twice.
    revoked: Vec<i64>,
    /// He is owed word of how far the stream is.
    owes_progress: bool,
}

impl Rights {
    /// Of a stream that has no watchers yet.
    pub fn new(guard: &dyn Guard) -> Rights {
        Rights { user: None, mark: guard.rights(), revoked: Vec::new(), owes_progress: false }
    }

    /// Lets a watcher of these keys be created, or not.
    pub fn admit(&mut self, guard: &dyn Guard, claim: Claim<'_>, range: &KeyRange) -> Result<(), Denied> {
        if let Some(user) = guard.admit(claim, range)? {
            self.user = Some(user);
        }
        Ok(())
    }

    /// Ends watchers whose user may no longer read their keys. To be called before anything is written. `revoke` cancels those
    /// that it is not told to leave, and says which they were.
    pub fn review(&mut self, guard: &dyn Guard, revoke: impl FnOnce(&dyn Fn(&KeyRange) -> bool) -> Vec<i64>) {
        let Some(user) = &self.user else { return };
        let mark = guard.rights();
        if mem::replace(&mut self.mark, mark) != mark {
            self.revoked.extend(revoke(&|range| guard.may(user, range)));
        }
    }

    /// Takes out of a message that is about to be written what its client may not hear any more. Whether something is left.
    ///
    /// Progress says that all up to it was written: of a watcher for which something was left out, that would be a lie until it
    /// is known to have ended.
    pub fn filter(&mut self, message: &mut Outgoing) -> bool {
        if self.revoked.is_empty() {
            return true;
        }
        match message {
            Outgoing::Events(events) => {
                events.ids = events.ids.without(&self.revoked);
                !events.ids.as_slice().is_empty()
            }
            Outgoing::Progress { id: Some(id), .. } => !self.revoked.contains(id),
            Outgoing::Progress { id: None, .. } => {
                self.owes_progress = true;
                false
            }
            // Its client may have canceled one of the same id before, and the answer to that is not its last word.
            Outgoing::Canceled { id, reason, .. } if !reason.is_empty() => {
                if let Some(at) = self.revoked.iter().position(|revoked| revoked == id) {
                    self.revoked.remove(at);
                }
                true
            }
            _ => true,
        }
    }

    /// Whether the hub is to be asked again, on the client's behalf, how far the stream is: when it last said so that was not
    /// written.
    pub fn ask_again(&mut self) -> bool {
        self.revoked.is_empty() && mem::take(&mut self.owes_progress)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::types::Revision;
    use crate::watch::{EventList, Events, Ids};

    /// Alice is who comes, if users count. She may hear of everything, or of nothing.
    struct Alice {
        enabled: bool,
        mark: u64,
    }

    impl Guard for Alice {
        fn admit(&self, _: Claim<'_>, _: &KeyRange) -> Result<Option<Arc<str>>, Denied> {
            Ok(self.enabled.then(|| "alice".into()))
        }

        fn rights(&self) -> u64 {
            self.mark
        }

        fn may(&self, _: &Arc<str>, _: &KeyRange) -> bool {
            false
        }
    }

    fn key() -> KeyRange {
        KeyRange::single("a".into())
    }

    /// Whether what runs is looked at.
    fn looks(rights: &mut Rights, guard: &Alice) -> bool {
        let looked = Cell::new(false);
        rights.review(guard, |may| {
            looked.set(!may(&key()));
            vec![5]
        });
        looked.get()
    }

    fn alice(enabled: bool, auth_revision: u64) -> Alice {
        Alice { enabled, mark: mark(enabled, auth_revision) }
    }

    #[test]
    fn watchers_are_looked_at_once_for_every_change() {
        let mut rights = Rights::new(&alice(true, 7));
        assert!(!looks(&mut rights, &alice(true, 8)), "it is nobody's yet");
        rights.admit(&alice(true, 8), Claim::Nothing, &key()).unwrap();
        assert!(looks(&mut rights, &alice(true, 8)) && !looks(&mut rights, &alice(true, 8)));
        assert!(looks(&mut rights, &alice(false, 9)));
        assert!(looks(&mut rights, &alice(true, 9)), "auth is on again");
    }

    #[test]
    fn a_stream_stays_whose_it_is() {
        let mut rights = Rights::new(&alice(true, 7));
        rights.admit(&alice(true, 7), Claim::Nothing, &key()).unwrap();
        rights.admit(&alice(false, 8), Claim::Nothing, &key()).unwrap();
        assert!(looks(&mut rights, &alice(true, 8)));
    }

    #[test]
    fn what_waits_for_a_watcher_is_not_written_until_its_last_word() {
        let mut rights = Rights::new(&alice(true, 7));
        rights.admit(&alice(true, 7), Claim::Nothing, &key()).unwrap();
        let heard = |rights: &mut Rights| {
            let (ids, events) = (Ids::Many([4, 5].into()), EventList::One("event".into()));
            let events = Events { ids, revision: Revision(1), events, bytes: 5, fragment: false };
            let mut message = Outgoing::Events(events);
            assert!(rights.filter(&mut message));
            let Outgoing::Events(events) = message else { unreachable!("it was one") };
            events.ids.as_slice().to_vec()
        };
        let canceled = |rights: &mut Rights, reason| {
            let mut message = Outgoing::Canceled { id: 5, revision: Revision(1), reason };
            assert!(rights.filter(&mut message), "it is an answer, or its last word");
        };
        assert_eq!(heard(&mut rights), [4, 5]);
        // Two of the same id, one after the other; in between its client has canceled a third.
        assert!(looks(&mut rights, &alice(true, 8)) && looks(&mut rights, &alice(true, 9)));
        canceled(&mut rights, "");
        assert_eq!(heard(&mut rights), [4]);
        canceled(&mut rights, "denied");
        assert_eq!(heard(&mut rights), [4]);
        canceled(&mut rights, "denied");
        assert_eq!(heard(&mut rights), [4, 5]);
    }

    #[test]
    fn progress_waits_for_the_last_word_of_a_watcher_that_was_not_sent_all() {
        let mut rights = Rights::new(&alice(true, 7));
        rights.admit(&alice(true, 7), Claim::Nothing, &key()).unwrap();
        let told = |rights: &mut Rights, id| rights.filter(&mut Outgoing::Progress { id, revision: Revision(1) });
        assert_eq!([None, Some(4), Some(5)].map(|id| told(&mut rights, id)), [true; 3]);
        assert!(!rights.ask_again() && looks(&mut rights, &alice(true, 8)));
        assert_eq!([None, Some(4), Some(5)].map(|id| told(&mut rights, id)), [false, true, false]);
        assert!(!rights.ask_again(), "not yet");
        rights.filter(&mut Outgoing::Canceled { id: 5, revision: Revision(1), reason: "denied" });
        assert!(rights.ask_again() && !rights.ask_again());
        assert!(told(&mut rights, None));
    }
}
