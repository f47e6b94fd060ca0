//! Simple tokens: which a member knows, whose they are, and when they end.
//!
//! A token is sixteen letters that its proposer drew, a dot and the index of its entry. Like etcd's it lives for a fixed time after
//! it was last used here; another member has its own clock. Pure: the time is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::Index;

/// Letters of a token before the dot.
pub const LETTERS: usize = 16;
/// Tokens kept. Beyond this the one that would end first goes: its user logs in again.
const TOKENS_MAX: usize = 100_000;

/// What befell tokens when an entry was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenChange {
    /// A user got one.
    Issued {
        /// The token.
        token: String,
        /// Whose.
        user: String,
    },
    /// Those of a user are void: he is gone, or has another password.
    VoidOf(String),
    /// All are void: auth is off.
    VoidAll,
}

/// The tokens of a member.
#[derive(Debug)]
pub struct Tokens {
    lifetime: Duration,
    /// The auth revision that they are of: the changes of users up to it have been followed.
    revision: u64,
    known: HashMap<String, Login>,
    /// When those that ran out are looked for next.
    sweep: Duration,
}

#[derive(Debug)]
struct Login {
    user: Arc<str>,
    ends: Duration,
}

impl Tokens {
    /// None yet, of a state at this auth revision. They will live for so long.
    pub fn new(lifetime: Duration, revision: u64) -> Tokens {
        Tokens { lifetime, revision, known: HashMap::new(), sweep: Duration::ZERO }
    }

    /// Follows what apply did, in order; the auth revision is this one after it.
    pub fn follow(&mut self, changes: &[TokenChange], revision: u64, now: Duration) {
        for change in changes {
            match change {
                TokenChange::Issued { token, user } => self.issue(token.clone(), user.as_str().into(), now),
                TokenChange::VoidOf(user) => self.known.retain(|_, login| *login.user != **user),
                TokenChange::VoidAll => self.known.clear(),
            }
        }
        self.revision = revision;
    }

    fn issue(&mut self, token: String, user: Arc<str>, now: Duration) {
        if self.sweep <= now {
            self.known.retain(|_, login| login.ends > now);
            self.sweep = now + self.lifetime;
        }
        if self.known.len() >= TOKENS_MAX {
            let first =
                self.known.iter().min_by_key(|&(token, login)| (login.ends, token)).map(|(token, _)| token.clone());
            first.map(|token| self.known.remove(&token));
        }
        self.known.insert(token, Login { user, ends: now + self.lifetime });
    }

    /// Whose token it is, and the auth revision at which that is so: not the state's, which may be ahead by the very change that
    /// makes the token void. It lives on for its whole time after that.
    pub fn user(&mut self, token: &str, now: Duration) -> Option<(Arc<str>, u64)> {
        let login = self.known.get_mut(token)?;
        if login.ends <= now {
            self.known.remove(token);
            return None;
        }
        login.ends = now + self.lifetime;
        Some((login.user.clone(), self.revision))
    }
}

/// The token that the entry at `index` makes of its letters.
pub fn name(letters: &str, index: Index) -> String {
    format!("{letters}.{index}")
}

/// The entry that has made a token, if it is one at all.
pub fn made_at(token: &str) -> Option<Index> {
    let (letters, index) = token.split_once('.')?;
    (letters.len() == LETTERS).then_some(())?;
    index.parse().ok().map(Index)
}

/// The letters that so many random bytes stand for.
pub fn letters(random: [u8; LETTERS]) -> String {
    // Some letters are a little more likely than the others, which costs less than one of their 91 bits.
    let letter = |byte: u8| match byte % 52 {
        low @ 0..26 => b'a' + low,
        high => b'A' + high - 26,
    };
    random.into_iter().map(|byte| char::from(letter(byte))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn issued(token: &str, user: &str) -> TokenChange {
        TokenChange::Issued { token: token.into(), user: user.into() }
    }

    #[test]
    fn a_token_lives_while_it_is_used() {
        let mut tokens = Tokens::new(at(300), 1);
        tokens.follow(&[issued("t", "alice")], 1, at(0));
        assert_eq!(tokens.user("t", at(299)), Some(("alice".into(), 1)));
        assert_eq!(tokens.user("t", at(598)), Some(("alice".into(), 1)));
        assert_eq!(tokens.user("t", at(898)), None);
        assert_eq!(tokens.user("t", at(0)), None, "it does not come back");
    }

    #[test]
    fn tokens_go_with_their_user_and_with_auth() {
        let mut tokens = Tokens::new(at(300), 1);
        tokens.follow(
            &[("a1", "alice"), ("a2", "alice"), ("b1", "bob")].map(|(token, user)| issued(token, user)),
            1,
            at(0),
        );
        tokens.follow(&[TokenChange::VoidOf("alice".into())], 2, at(1));
        assert_eq!((tokens.user("a1", at(1)), tokens.user("a2", at(1))), (None, None));
        assert_eq!(tokens.user("b1", at(1)), Some(("bob".into(), 2)));
        tokens.follow(&[TokenChange::VoidAll], 3, at(1));
        assert_eq!(tokens.user("b1", at(1)), None);
    }

    #[test]
    fn their_number_is_bounded() {
        let mut tokens = Tokens::new(at(300), 1);
        for n in 0..=TOKENS_MAX {
            tokens.issue(format!("t{n}"), "alice".into(), Duration::from_millis(n as u64));
        }
        assert_eq!(tokens.known.len(), TOKENS_MAX);
        assert!(tokens.user("t0", at(100)).is_none() && tokens.user("t1", at(100)).is_some());
        tokens.issue("late".into(), "alice".into(), at(10_000));
        assert_eq!(tokens.known.len(), 1);
    }

    #[test]
    fn a_token_says_where_it_was_made() {
        let token = name(&letters([0, 25, 26, 51, 52, 255, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]), Index(42));
        assert_eq!(token, "azAZaVhhhhhhhhhh.42");
        assert_eq!(made_at(&token), Some(Index(42)));
        for other in ["", ".", "azAZaXhhhhhhhhhh", "short.4", "azAZaXhhhhhhhhhh.-1", "azAZaXhhhhhhhhhh.x"] {
            assert_eq!(made_at(other), None);
        }
    }
}
