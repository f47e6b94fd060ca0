//! One unit: sealed, and opened again. The drawing is in [`super`].
//!
//! Every opening of a file is a *session* with a key of its own, derived from the file's data key and 8 bytes that are drawn. A
//! session counts what it seals, and the count is the nonce. So no nonce is used twice under a key, and there is nothing to be kept from
//! one start to the next and no bound to watch. (A copy of a running machine must not go on beside it; no member must.)
//!
//! Random nonces of this cipher's length would repeat too soon: 2^32 of them is an hour of a busy disk. A cipher with longer ones,
//! XChaCha20-Poly1305, was measured: seven times as slow for a sector, and eleven times for a page.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hkdf};

use super::head::DataKey;
use super::{Broken, random};

/// Bytes that a unit has before its content: which use and session, and its count.
pub(super) const BEFORE_BYTES: usize = SESSION_BYTES + 8;
/// Bytes that it has more than its content.
pub(super) const MORE_BYTES: usize = BEFORE_BYTES + TAG_BYTES;
const TAG_BYTES: usize = 16;
const USE_BYTES: usize = 8;
const SESSION_BYTES: usize = 16;
/// A unit whose use differs from this one in so many of its 64 bits is damaged. Two that have nothing to do with each other differ in some
/// 32, and in so few by a chance of one in 10^9.
const ROTTEN_BITS_MAX: u32 = 8;

type SessionId = [u8; SESSION_BYTES];

/// A session's key, at hand for the next unit of the same.
pub(super) type AtHand = Option<(SessionId, Arc<LessSafeKey>)>;

/// Keys of sessions that are kept. A file has one for each time it was opened and written to; beyond this they are derived again.
const SESSIONS_MAX: usize = 4096;

/// What a unit that was never written looks like: most of a segment of the log, so it has to be seen fast.
static ZEROS: [u8; 4096 + MORE_BYTES] = [0; 4096 + MORE_BYTES];

/// Seals and opens the units of one file.
pub(super) struct Cipher {
    data_key: DataKey,
    /// Whether units of another use of the file count as never written.
    is_reused: bool,
    /// Under which it seals.
    session: (SessionId, Arc<LessSafeKey>),
    /// Units that it sealed.
    sealed: AtomicU64,
    /// Those that it has met.
    sessions: RwLock<HashMap<SessionId, Arc<LessSafeKey>>>,
}

impl Cipher {
    pub(super) fn new(data_key: DataKey, is_reused: bool) -> std::io::Result<Cipher> {
        let mut id = [0; SESSION_BYTES];
        id[..USE_BYTES].copy_from_slice(&use_of(&data_key));
        id[USE_BYTES..].copy_from_slice(&random::<{ SESSION_BYTES - USE_BYTES }>()?);
        let session = (id, Arc::new(session_key(&data_key, &id)));
        Ok(Cipher { data_key, is_reused, session, sealed: AtomicU64::new(0), sessions: RwLock::default() })
    }

    /// The key that all others come from.
    pub(super) fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    /// Seals the content of a unit, which stands in it where it belongs. `at` is where in the file: nowhere else it is valid.
    pub(super) fn seal(&self, at: u64, unit: &mut [u8]) {
        let (id, key) = &self.session;
        // From 1 on, so that no unit looks like one that was never written, whatever was drawn.
        let count = self.sealed.fetch_add(1, Ordering::Relaxed) + 1;
        let (before, rest) = unit.split_at_mut(BEFORE_BYTES);
        before[..SESSION_BYTES].copy_from_slice(id);
        before[SESSION_BYTES..].copy_from_slice(&count.to_le_bytes());
        let (content, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let made = key.seal_in_place_separate_tag(nonce(count), Aad::from(at.to_le_bytes()), content);
        tag.copy_from_slice(made.expect("a unit is short").as_ref());
    }

    /// Opens a unit in place; its content stands where it stood when it was sealed. One that was never written stays what it is, zeros.
    pub(super) fn open(&self, at: u64, unit: &mut [u8], at_hand: &mut AtHand) -> Result<(), Broken> {
        let damaged = Broken::Damaged { offset: at, what: "an encrypted block is not what was written" };
        let (before, rest) = unit.split_at_mut(BEFORE_BYTES);
        if *before == ZEROS[..BEFORE_BYTES] && *rest == ZEROS[..rest.len()] {
            return Ok(());
        }
        let (id, count) = before.split_at(SESSION_BYTES);
        let id: SessionId = id.try_into().expect("it has that length");
        match differing_bits(&id, &self.session.0) {
            0 => {}
            bits if bits > ROTTEN_BITS_MAX && self.is_reused => {
                unit.fill(0);
                return Ok(());
            }
            _ => return Err(damaged),
        }
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes"));
        let known = match at_hand {
            Some((known, key)) if *known == id => key.clone(),
            _ => self.session_of(&id),
        };
        if known.open_in_place(nonce(count), Aad::from(at.to_le_bytes()), rest).is_err() {
            return Err(damaged);
        }
        if at_hand.as_ref().is_none_or(|(known, _)| *known != id) {
            self.remember(id, &known);
            *at_hand = Some((id, known));
        }
        Ok(())
    }

    fn session_of(&self, id: &SessionId) -> Arc<LessSafeKey> {
        if *id == self.session.0 {
            return self.session.1.clone();
        }
        let known = self.sessions.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        known.unwrap_or_else(|| Arc::new(session_key(&self.data_key, id)))
    }

    /// Only what has opened something is worth keeping: a damaged file could name any session.
    fn remember(&self, id: SessionId, key: &Arc<LessSafeKey>) {
        let known = self.sessions.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id);
        if known || id == self.session.0 {
            return;
        }
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(id, key.clone());
    }
}

fn use_of(data_key: &DataKey) -> [u8; USE_BYTES] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"everwatch: a use of a file\0");
    hash.update(&data_key[..]);
    hash.finish().as_ref()[..USE_BYTES].try_into().expect("a hash is longer")
}

/// Bits in which the uses of two sessions differ.
fn differing_bits(one: &SessionId, other: &SessionId) -> u32 {
    one.iter().zip(other).take(USE_BYTES).map(|(one, other)| (one ^ other).count_ones()).sum()
}

fn session_key(data_key: &DataKey, id: &SessionId) -> LessSafeKey {
    let drawn = hkdf::Salt::new(hkdf::HKDF_SHA256, id).extract(&data_key[..]);
    let key = drawn.expand(&[b"everwatch: a session's key"], &AES_256_GCM).expect("a key is not too long");
    LessSafeKey::new(UnboundKey::from(key))
}

fn nonce(count: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&count.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
