//! The verbs of the [`Handle`] about who somebody is: logging in, recognising tokens, hashing passwords.
//!
//! A password is compared where that may take long, a few at a time, before anything is proposed; the log then decides whether users
//! have changed meanwhile. What tokens there are comes from the log (`Logins::follow`), how long they live from this member's clock.
//! With `--auth-token=jwt` they are signed here and recognised by their signature, and the log knows nothing of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::error::Error;
use super::handle::Handle;
use super::watch_rights;
use crate::auth::token::{self, TokenChange};
use crate::auth::{self, Asker, Jwt, Tokens, password};
use crate::config::{AuthToken, Config};
use crate::pb::everwatchpb::Authenticate;
use crate::state::StateMachine;
use crate::state::applied::{Refusal, Reply};
use crate::state::command::Kind;
use crate::types::Revision;

/// Passwords that wait to be hashed or compared. Beyond this the next is refused: each costs a processor for a twentieth of a second.
const WAITING_MAX: usize = 1000;
/// Times that a password is compared because users changed meanwhile, before its client is told to try again itself.
const COMPARISONS_MAX: usize = 10;

/// Who a caller was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity(Option<(Arc<str>, u64)>);

impl Identity {
    /// A user, recognised at this auth revision.
    pub fn of(user: Arc<str>, revision: u64) -> Identity {
        Identity(Some((user, revision)))
    }

    /// The user's name, if it is one.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.0.as_ref().map(|(name, _)| name)
    }

    /// For whoever decides.
    pub fn asker(&self) -> Asker<'_> {
        match &self.0 {
            Some((name, revision)) => Asker::User { name, revision: *revision },
            None => Asker::Nobody,
        }
    }
}

/// What somebody says of himself.
#[derive(Clone, Copy, Debug)]
pub enum Claim<'a> {
    /// Nothing.
    Nothing,
    /// To have logged in, and been given this.
    Token(&'a str),
    /// To be the one whom the certificate of his connection names.
    Certified(&'a Arc<str>),
}

/// What a member knows of those who have logged in.
pub(crate) struct Logins {
    /// Whether auth is on: what the state says, for those who look at every call.
    enabled: AtomicBool,
    /// The [`watch_rights::mark`] that running watchers are held against; none: they are not.
    rights: Option<AtomicU64>,
    tokens: Mutex<Tokens>,
    /// Instead of tokens that are remembered.
    jwt: Option<Jwt>,
    cost: u32,
    waiting: Semaphore,
    hashing: Semaphore,
}

impl Logins {
    /// An error says which key cannot be used.
    pub(crate) fn new(config: &Config, state: &StateMachine) -> Result<Logins, Box<dyn std::error::Error>> {
        let jwt = match &config.auth_token {
            AuthToken::Simple => None,
            AuthToken::Jwt { public_key, private_key, method, lifetime } => {
                let read =
                    |path: &Option<PathBuf>| path.as_ref().map(|path| named(path, std::fs::read(path))).transpose();
                let (public, private) = (read(public_key)?, read(private_key)?);
                Some(Jwt::new(method, public.as_deref(), private.as_deref(), *lifetime)?)
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Logins {
            jwt,
            enabled: AtomicBool::new(state.auth.is_enabled()),
            rights: (!config.watch_outlives_rights)
                .then(|| AtomicU64::new(watch_rights::mark(state.auth.is_enabled(), state.auth.revision()))),
            tokens: Mutex::new(Tokens::new(config.auth_token_lifetime, state.auth.revision())),
            cost: config.bcrypt_cost,
            waiting: Semaphore::new(WAITING_MAX),
            // The others are for those who are logged in.
            hashing: Semaphore::new((processors / 2).max(1)),
        })
    }

    /// Follows what apply did. `users`: whether auth is on, and the auth revision.
    pub(crate) fn follow(&self, changes: &[TokenChange], (enabled, revision): (bool, u64), now: Duration) {
        self.enabled.store(enabled, Ordering::Release);
        if let Some(rights) = &self.rights {
            rights.store(watch_rights::mark(enabled, revision), Ordering::Release);
        }
        self.tokens().follow(changes, revision, now);
    }

    /// Changes when watchers that run should be looked at again.
    pub(crate) fn rights(&self) -> u64 {
        self.rights.as_ref().map_or(0, |rights| rights.load(Ordering::Acquire))
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what takes long, when it is its turn.
    async fn at_leisure<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Error::TooManyRequests)?;
        let _hashing = self.hashing.acquire().await.map_err(|_| Error::Stopped)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)
    }
}

/// What came of reading a file, with its name where that failed.
fn named<T>(path: &Path, outcome: std::io::Result<T>) -> Result<T, String> {
    outcome.map_err(|error| format!("reading {}: {error}", path.display()))
}

/// The time that tokens speak of.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Handle {
    /// Whether users and roles count, as far as this member knows.
    pub fn auth_enabled(&self) -> bool {
        self.shared.logins.enabled.load(Ordering::Acquire)
    }

    /// The user of a token, if this member knows it by now.
    pub fn recognise(&self, token: &str) -> Option<Identity> {
        if let Some(jwt) = &self.shared.logins.jwt {
            let (user, revision) = jwt.user(token, unix_seconds())?;
            return Some(Identity::of(user.into(), revision));
        }
        // Whatever changes after this, or has and is still to be heard of here, is seen where the request is decided.
        let (user, revision) = self.shared.logins.tokens().user(token, self.shared.now())?;
        Some(Identity::of(user, revision))
    }

    /// The user of a token. One that another member has just given out is waited for.
    pub async fn identify(&self, token: &str) -> Option<Identity> {
        let known = self.recognise(token);
        if known.is_none() && self.shared.logins.jwt.is_none() && token::made_at(token)? > self.status().applied {
            self.linearize().await.ok()?;
            return self.recognise(token);
        }
        known
    }

    /// The user that a certificate names. Its right to that name is as good as the authority behind it.
    pub fn certified(&self, name: &Arc<str>) -> Identity {
        match self.auth_enabled() {
            true => Identity::of(name.clone(), self.view(|state| state.auth.revision())),
            false => Identity::default(),
        }
    }

    /// The hash of a new password.
    pub async fn hash_password(&self, password: String) -> Result<bytes::Bytes, Error> {
        let mut salt = [0; password::SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|error| self.fail(&error))?;
        let cost = self.shared.logins.cost;
        self.shared.logins.at_leisure(move || password::hash(&password, cost, salt)).await
    }

    /// A token for a user who gives his password, with the revision of the store.
    pub async fn login(&self, name: &str, password: String) -> Result<(Revision, String), Error> {
        self.linearize().await?;
        let password: Arc<str> = password.into();
        let refused = |error| Error::Refused(Refusal::Auth(error));
        let mut matched = None;
        for _ in 0..COMPARISONS_MAX {
            let (hash, auth_revision) = self.view(|state| (state.auth.hash_of(name), state.auth.revision()));
            let hash = hash.map_err(refused)?;
            if matched.as_ref() != Some(&hash) {
                let (password, compared) = (password.clone(), hash.clone());
                let matches = self.shared.logins.at_leisure(move || password::matches(&password, &compared));
                if !matches.await? {
                    return Err(refused(auth::Error::WrongPassword));
                }
                matched = Some(hash);
            }
            if let Some(jwt) = &self.shared.logins.jwt {
                self.linearize().await?;
                let (revision, now) =
                    self.view(|state| (state.kv.revision(), state.auth.authenticate(name, auth_revision)));
                match now {
                    Ok(()) => {}
                    Err(auth::Error::OldRevision) => continue,
                    Err(error) => return Err(refused(error)),
                }
                let token = jwt.issue(name, auth_revision, unix_seconds());
                return token.map(|token| (revision, token)).ok_or(refused(auth::Error::VerifyOnly));
            }
            let mut random = [0; token::LETTERS];
            getrandom::fill(&mut random).map_err(|error| self.fail(&error))?;
            let command = Authenticate { name: name.to_owned(), token: token::letters(random), auth_revision };
            match self.propose(Kind::Authenticate(command), Asker::Nobody).await {
                Ok(Reply::Authenticated { revision, token, .. }) => return Ok((revision, token)),
                Ok(_) => return Err(Error::Stopped),
                Err(Error::Refused(Refusal::Auth(auth::Error::OldRevision))) => {}
                Err(error) => return Err(error),
            }
        }
        Err(refused(auth::Error::OldRevision))
    }
}
