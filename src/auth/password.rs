//! Passwords, as bcrypt hashes. Slow on purpose: never called by apply, nor on a thread that serves, nor under a lock.

use bytes::Bytes;

/// Bytes of salt that a hash begins with.
pub const SALT_BYTES: usize = 16;

/// The costs bcrypt knows.
pub const COSTS: std::ops::RangeInclusive<u32> = 4..=31;

/// The hash of a password. The cost is one of [`COSTS`].
pub fn hash(password: &str, cost: u32, salt: [u8; SALT_BYTES]) -> Bytes {
    let parts = bcrypt::hash_with_salt(password, cost, salt).expect("the cost is one that bcrypt knows");
    // The version that Go's library writes, so that etcd could read it.
    parts.format_for_version(bcrypt::Version::TwoA).into()
}

/// Whether a hash is of this password. One that is none is of no password.
pub fn matches(password: &str, hash: &[u8]) -> bool {
    str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_of_one_password() {
        let hash = hash("secret", 4, [7; SALT_BYTES]);
        assert!(hash.starts_with(b"$2a$04$") && !hash.windows(6).any(|part| part == b"secret"));
        assert!(matches("secret", &hash) && !matches("Secret", &hash) && !matches("", &hash));
        assert!(!matches("", b"") && !matches("x", b"x") && !matches("x", b"\xff"));
    }

    #[test]
    fn hashes_of_etcd_are_read() {
        // Made by Go's bcrypt.
        let hash = b"$2a$10$XajjQvNhvvRt5GSeFk1xFeyqRrsxkhBkUiQeg0dt.wU1qD4aFDcga";
        assert!(matches("allmine", hash) && !matches("allyours", hash));
    }

    #[test]
    fn odd_passwords_can_be_hashed() {
        for odd in ["", "\0", "a\0b", &"long".repeat(100)] {
            assert!(matches(odd, &super::hash(odd, 4, [0; SALT_BYTES])), "{odd:?}");
        }
    }
}
