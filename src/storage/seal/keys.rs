//! The key file: what whoever runs the member keeps secret, and everything else is sealed under.
//!
//! ```text
//! # a comment
//! 3q2+7wAB...   32 bytes in base64 (`head -c 32 /dev/urandom | base64`), or 64 hexadecimal digits
//! ...           a second key, which the first has replaced
//! ```
//!
//! The first key seals what is written from now on, all of them open what is there. What is said of a file that is refused never shows
//! a part of it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::digest;
use zeroize::Zeroizing;

use crate::storage::{Error, Result};

/// Bytes of every key.
pub(super) const KEY_BYTES: usize = 32;
/// What a key is called in the head of a file that it sealed: the beginning of a hash, from which nobody gets back to it.
pub(super) type KeyId = [u8; 8];

/// The keys of one file of them. A copy is cheap.
#[derive(Clone)]
pub struct Keys(Arc<Ring>);

struct Ring {
    path: PathBuf,
    /// At least one.
    keys: Vec<MasterKey>,
}

/// One of them. It seals nothing but the data keys of files.
pub(super) struct MasterKey {
    pub(super) id: KeyId,
    pub(super) key: LessSafeKey,
}

/// A file with more in it is none of keys.
const FILE_BYTES_MAX: u64 = 64 << 10;

impl Keys {
    /// Reads a file of keys. Refused if others than its owner may read it.
    pub fn read(path: &Path) -> Result<Keys> {
        let io = |source| Error::Io { doing: "reading encryption keys from", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(refused(
                path,
                format!("holds keys and others than its owner may use it (mode {mode:04o}): chmod 600"),
            ));
        }
        // With room for all of it: what a vector outgrows is not wiped.
        let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => refused(path, "is no file of keys: it is not text".to_owned()),
            _ => io(error),
        })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(refused(path, "is no file of keys: it is too long".to_owned()));
        }
        Keys::parse(path, &text)
    }

    /// The keys of a file with this text. `path` is what they are said to be of.
    pub fn parse(path: &Path, text: &str) -> Result<Keys> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(key) = key_of(line) else {
                let what = "32 bytes in base64, or 64 hexadecimal digits";
                return Err(refused(
                    path,
                    format!("has something else than a key in line {}: a key is {what}", number + 1),
                ));
            };
            keys.push(MasterKey::new(&key));
        }
        if keys.is_empty() {
            return Err(refused(path, "has no key in it".to_owned()));
        }
        Ok(Keys(Arc::new(Ring { path: path.to_owned(), keys })))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// What new files are sealed under.
    pub(super) fn first(&self) -> &MasterKey {
        &self.0.keys[0]
    }

    /// The one that has this id.
    pub(super) fn find(&self, id: &KeyId) -> Option<&MasterKey> {
        self.0.keys.iter().find(|key| key.id == *id)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.0.path).finish()
    }
}

impl MasterKey {
    fn new(key: &[u8; KEY_BYTES]) -> MasterKey {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"everwatch: the id of a key\0");
        hash.update(key);
        let id = hash.finish().as_ref()[..8].try_into().expect("a hash is longer");
        let key = UnboundKey::new(&AES_256_GCM, key).expect("it has the length of a key");
        MasterKey { id, key: LessSafeKey::new(key) }
    }
}

fn key_of(line: &str) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if line.len() == 2 * KEY_BYTES {
        // Base64 of this length would be a key that is too long.
        for (byte, digits) in key.iter_mut().zip(line.as_bytes().chunks(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        return Some(key);
    }
    // (Room for a little more: the decoder counts in groups of three.)
    let mut decoded = Zeroizing::new([0; KEY_BYTES + 4]);
    let len = STANDARD.decode_slice(line, &mut decoded[..]).ok()?;
    key.copy_from_slice(decoded[..len].get(..KEY_BYTES).filter(|_| len == KEY_BYTES)?);
    Some(key)
}

fn refused(path: &Path, what: String) -> Error {
    Error::Refused { path: path.to_owned(), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_is_read_or_refused_without_showing_a_key() {
        let path = Path::new("keys");
        let (one, two) = ([0x1f; KEY_BYTES], [0xe2; KEY_BYTES]);
        let hex = |key: [u8; KEY_BYTES]| key.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let text = format!("# newest first\n\n  {}\t\r\n{}\n#{}\n", STANDARD.encode(two), hex(one), hex([3; 32]));
        let keys = Keys::parse(path, &text).unwrap();
        let ids = [two, one].map(|key| MasterKey::new(&key).id);
        assert_eq!(keys.0.keys.iter().map(|key| key.id).collect::<Vec<_>>(), ids);
        assert!(keys.first().id == ids[0] && keys.find(&ids[1]).is_some() && keys.find(&[0; 8]).is_none());

        let secret = hex(one);
        for (text, why) in [
            (String::new(), "has no key in it"),
            ("# none\n \n".to_owned(), "has no key in it"),
            (format!("{secret}\n{}", &secret[1..]), "in line 2"),
            (format!("\n{secret}0"), "in line 2"),
            (format!("{}g", &secret[1..]), "in line 1"),
            (STANDARD.encode(&one[1..]), "in line 1"),
            (STANDARD.encode([&one[..], &[1]].concat()), "in line 1"),
            (format!("{} {}", STANDARD.encode(one), STANDARD.encode(two)), "in line 1"),
            (format!("é{}", &secret[2..]), "in line 1"),
        ] {
            let error = Keys::parse(path, &text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains(&secret[..6]) && !error.contains("Hx8f"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(Keys::read(&path).unwrap_err().to_string().contains("reading encryption keys"));
        std::fs::write(&path, STANDARD.encode([5; KEY_BYTES])).unwrap();
        for (mode, fine) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Keys::read(&path).is_ok(), fine, "{mode:o}");
        }
        std::fs::write(&path, [0xff; 80]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Keys::read(&path).unwrap_err().to_string().contains("not text"));
    }
}
