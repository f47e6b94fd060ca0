//! When a member's own NOSPACE alarm may go by itself.
//!
//! It was raised because a write did not fit. It goes when the largest of those that were refused would, since compaction has made
//! room. One that stood already when the member started goes when there is any: the quota may be another now, and nobody knows what
//! was refused. One that was raised while nothing was refused is an operator's, to keep writers out, and stays.
//!
//! The size is a member's own, so this is nothing that apply may know. The member proposes what comes of it
//! (`server::space_loop`), and everybody carries that out. In etcd an operator has to.

/// What the member has seen of its alarm.
#[derive(Debug, Default)]
pub struct Relief {
    /// Whether it has stood since the member started; none before the first look.
    old: Option<bool>,
}

/// How things stand at one look.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The alarm is raised for this member.
    pub raised: bool,
    /// Bytes of rows.
    pub in_use: u64,
    /// Bytes of the largest write that was refused since the alarm was raised; 0: none was.
    pub refused: u64,
    /// Bytes of rows there may be.
    pub quota: u64,
}

impl Relief {
    /// Looks once. Whether the alarm may go.
    pub fn look(&mut self, now: Standing) -> bool {
        let old = now.raised && self.old.unwrap_or(true);
        self.old = Some(old);
        now.raised && (old || now.refused > 0) && now.in_use.saturating_add(now.refused) <= now.quota
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(raised: bool, in_use: u64, refused: u64) -> Standing {
        Standing { raised, in_use, refused, quota: 100 }
    }

    #[test]
    fn room_for_what_was_refused_ends_the_alarm() {
        let mut relief = Relief::default();
        assert!(!relief.look(standing(false, 95, 0)));
        assert!(!relief.look(standing(true, 95, 10)));
        assert!(!relief.look(standing(true, 91, 10)));
        // Something larger was tried since.
        assert!(!relief.look(standing(true, 90, 11)));
        assert!(relief.look(standing(true, 89, 11)));
        // Until it is carried out.
        assert!(relief.look(standing(true, 89, 11)));
        assert!(!relief.look(standing(false, 89, 0)));
    }

    #[test]
    fn what_an_operator_raised_stays() {
        let mut relief = Relief::default();
        assert!(!relief.look(standing(false, 50, 0)));
        assert!(!relief.look(standing(true, 50, 0)));
        assert!(!relief.look(standing(true, 10, 0)));
    }

    #[test]
    fn an_alarm_from_before_the_start_goes_when_there_is_room() {
        assert!(Relief::default().look(standing(true, 90, 0)));
        let mut relief = Relief::default();
        assert!(!relief.look(standing(true, 101, 0)));
        assert!(!relief.look(standing(true, 99, 5)));
        assert!(relief.look(standing(true, 95, 5)));
        // The next one is another.
        assert!(!relief.look(standing(false, 50, 0)));
        assert!(!relief.look(standing(true, 50, 0)));
    }
}
