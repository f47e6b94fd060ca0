//! Tokens that say themselves who their user is: JSON web tokens, signed with a key that every member has.
//!
//! The claims are etcd's: `username`, the auth `revision` at which he was recognised, and `exp`, seconds since 1970. What follows from
//! the revision is that such a token is of no use for keys after the next change of users or roles. A member with only the public key
//! recognises users and logs nobody in. Pure: keys and the time are arguments.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Value, json};

use super::es512::Es512;

/// Signs and recognises.
pub struct Jwt {
    keys: Keys,
    lifetime: Duration,
}

/// With which keys, by which method. Without one that signs it only recognises.
enum Keys {
    Library { algorithm: Algorithm, sign: Option<EncodingKey>, verify: DecodingKey },
    Es512(Box<Es512>),
}

/// Why keys cannot be used.
#[derive(Debug)]
pub struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

impl Jwt {
    /// With the keys as they stand in their files, for a method by its name (`HS256`, `RS256`, `PS256`, `ES256`, `EdDSA` and the like).
    /// The secret of a symmetric method is its private key.
    pub fn new(
        method: &str,
        public: Option<&[u8]>,
        private: Option<&[u8]>,
        lifetime: Duration,
    ) -> Result<Jwt, Unusable> {
        let keys = if method == "ES512" {
            let keys = Es512::new(public.ok_or_else(|| missing(method, "pub-key"))?, private);
            let unusable =
                |what| Unusable(format!("the {what} key of --auth-token cannot be used: not of P-521, in PEM"));
            Keys::Es512(Box::new(keys.map_err(unusable)?))
        } else {
            Jwt::library_keys(method, public, private)?
        };
        let jwt = Jwt { keys, lifetime };
        // Keys that do not belong together, or to the method, are found now and not by the first user.
        if jwt.signs() && jwt.issue("a", 1, 0).and_then(|token| jwt.user(&token, 0)).is_none() {
            return Err(Unusable("the keys of --auth-token do not belong together".into()));
        }
        Ok(jwt)
    }

    fn library_keys(method: &str, public: Option<&[u8]>, private: Option<&[u8]>) -> Result<Keys, Unusable> {
        let algorithm = method.parse().map_err(|_| Unusable(format!("no such sign-method: {method:?}")))?;
        let unusable = |what| move |error| Unusable(format!("the {what} key of --auth-token cannot be used: {error}"));
        let missing = |what| missing(method, what);
        use Algorithm::*;
        let (sign, verify) = match algorithm {
            HS256 | HS384 | HS512 => {
                let secret = private.filter(|secret| !secret.is_empty()).ok_or_else(|| missing("priv-key"))?;
                (Some(EncodingKey::from_secret(secret)), DecodingKey::from_secret(secret))
            }
            _ => {
                let public = public.ok_or_else(|| missing("pub-key"))?;
                let (sign, verify) = match algorithm {
                    ES256 | ES384 => (private.map(EncodingKey::from_ec_pem), DecodingKey::from_ec_pem(public)),
                    EdDSA => (private.map(EncodingKey::from_ed_pem), DecodingKey::from_ed_pem(public)),
                    _ => (private.map(EncodingKey::from_rsa_pem), DecodingKey::from_rsa_pem(public)),
                };
                (sign.transpose().map_err(unusable("private"))?, verify.map_err(unusable("public"))?)
            }
        };
        Ok(Keys::Library { algorithm, sign, verify })
    }

    /// Whether it can make tokens.
    pub fn signs(&self) -> bool {
        match &self.keys {
            Keys::Library { sign, .. } => sign.is_some(),
            Keys::Es512(keys) => keys.signs(),
        }
    }

    /// A token for a user who was recognised at this auth revision, at this time in seconds since 1970. None: there is no key for it.
    pub fn issue(&self, user: &str, revision: u64, now: u64) -> Option<String> {
        let ends = now.saturating_add(self.lifetime.as_secs());
        let claims = json!({ "username": user, "revision": revision, "exp": ends });
        match &self.keys {
            Keys::Library { algorithm, sign, .. } => {
                jsonwebtoken::encode(&Header::new(*algorithm), &claims, sign.as_ref()?).ok()
            }
            Keys::Es512(keys) => keys.encode(&claims),
        }
    }

    /// The user of a token, and the auth revision that it is of. None: it is not one of ours, or its time is over.
    pub fn user(&self, token: &str, now: u64) -> Option<(String, u64)> {
        let claims = match &self.keys {
            Keys::Library { algorithm, verify, .. } => {
                let mut validation = Validation::new(*algorithm);
                // The library would ask the clock.
                validation.validate_exp = false;
                validation.validate_aud = false;
                validation.required_spec_claims.clear();
                jsonwebtoken::decode::<Value>(token, verify, &validation).ok()?.claims
            }
            Keys::Es512(keys) => keys.decode(token)?,
        };
        let seconds = |name: &str| claims.get(name).and_then(Value::as_f64);
        let now = now as f64;
        if seconds("exp").is_some_and(|ends| ends <= now) || seconds("nbf").is_some_and(|begins| begins > now) {
            return None;
        }
        let revision = claims.get("revision")?.as_f64().filter(|revision| *revision >= 0.0)?;
        Some((claims.get("username")?.as_str()?.to_owned(), revision as u64))
    }
}

fn missing(method: &str, what: &str) -> Unusable {
    Unusable(format!("--auth-token with sign-method={method} needs a {what}"))
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match &self.keys {
            Keys::Library { algorithm, .. } => format!("{algorithm:?}"),
            Keys::Es512(_) => "ES512".to_owned(),
        };
        f.debug_struct("Jwt").field("algorithm", &method).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of nobody, for these tests.
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIKAdCZ2JK1DTAwxOR/PgAFMKa+NoMMBBWuwlgugLaJ76
-----END PRIVATE KEY-----
";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAc6au5CLKln9Sd57u6XZ/CLCrHfn1ThDyACKV7nTO/oo=
-----END PUBLIC KEY-----
";
    const ANOTHER: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAn11+lkwv5gXqeFknvkwUyN2c93MQaPW9t1F2UnUq16k=
-----END PUBLIC KEY-----
";

    fn secret(secret: &[u8], method: &str) -> Jwt {
        Jwt::new(method, None, Some(secret), Duration::from_secs(300)).unwrap()
    }

    #[test]
    fn a_token_says_whose_it_is_for_its_time() {
        for method in ["HS256", "HS384", "HS512"] {
            let jwt = secret(b"a secret", method);
            let token = jwt.issue("alice", 7, 1000).unwrap();
            assert_eq!(jwt.user(&token, 1299), Some(("alice".into(), 7)));
            assert_eq!(jwt.user(&token, 1300), None, "its time is over");
            assert_eq!(secret(b"another", method).user(&token, 1000), None);
        }
    }

    #[test]
    fn what_is_not_signed_as_agreed_is_nobodys() {
        let jwt = secret(b"a secret", "HS256");
        let other_method = secret(b"a secret", "HS512").issue("root", 7, 1000).unwrap();
        let token = jwt.issue("alice", 7, 1000).unwrap();
        let (head, rest) = token.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        // {"alg":"none"} and {"username":"root","revision":9}.
        let (none, root) = ("eyJhbGciOiJub25lIn0", "eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6OX0");
        for forged in [
            other_method,
            format!("{none}.{root}."),
            format!("{none}.{root}.{signature}"),
            format!("{head}.{root}.{signature}"),
            format!("{head}.{root}"),
            String::new(),
            "..".into(),
            "AAAAAAAAAAAAAAAA.7".into(),
        ] {
            assert_eq!(jwt.user(&forged, 1000), None, "{forged}");
        }
    }

    #[test]
    fn claims_that_make_no_sense_are_nobodys() {
        let jwt = secret(b"a secret", "HS256");
        let sign = |claims: Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"a secret"))
                .unwrap()
        };
        assert_eq!(jwt.user(&sign(json!({ "username": "a", "revision": 3.0 })), 0), Some(("a".into(), 3)));
        for claims in [
            json!({ "revision": 3 }),
            json!({ "username": "a" }),
            json!({ "username": 1, "revision": 3 }),
            json!({ "username": "a", "revision": "3" }),
            json!({ "username": "a", "revision": -3 }),
            json!({ "username": "a", "revision": 3, "nbf": 99 }),
            json!([]),
        ] {
            assert_eq!(jwt.user(&sign(claims.clone()), 0), None, "{claims}");
        }
    }

    #[test]
    fn with_a_public_key_alone_users_are_recognised_and_not_made() {
        let new = |public, private| Jwt::new("EdDSA", public, private, Duration::from_secs(300));
        let both = new(Some(PUBLIC), Some(PRIVATE)).unwrap();
        let token = both.issue("alice", 7, 1000).unwrap();
        let only = new(Some(PUBLIC), None).unwrap();
        assert!(both.signs() && !only.signs());
        assert_eq!((only.user(&token, 1000), only.issue("alice", 7, 1000)), (Some(("alice".into(), 7)), None));
        assert_eq!(new(Some(ANOTHER), None).unwrap().user(&token, 1000), None);
        // What anybody may know is not taken for a secret.
        assert_eq!(only.user(&secret(PUBLIC, "HS256").issue("root", 7, 1000).unwrap(), 1000), None);
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused_at_once() {
        let new = |method, public, private| {
            Jwt::new(method, public, private, Duration::from_secs(300)).map(drop).expect_err(method).to_string()
        };
        assert_eq!(new("none", None, None), "no such sign-method: \"none\"");
        assert_eq!(new("", None, None), "no such sign-method: \"\"");
        assert_eq!(new("HS256", Some(PUBLIC), None), "--auth-token with sign-method=HS256 needs a priv-key");
        assert_eq!(new("HS256", None, Some(b"")), "--auth-token with sign-method=HS256 needs a priv-key");
        assert_eq!(new("RS256", None, Some(PRIVATE)), "--auth-token with sign-method=RS256 needs a pub-key");
        assert_eq!(new("EdDSA", Some(ANOTHER), Some(PRIVATE)), "the keys of --auth-token do not belong together");
        for (public, private) in [(b"x".as_slice(), None), (PUBLIC, Some(b"x".as_slice())), (PRIVATE, None)] {
            assert!(new("EdDSA", Some(public), private).contains("cannot be used"), "{private:?}");
        }
        assert!(new("RS256", Some(PUBLIC), None).contains("cannot be used"));
        assert_eq!(new("ES512", None, Some(PRIVATE)), "--auth-token with sign-method=ES512 needs a pub-key");
        assert!(new("ES512", Some(PUBLIC), None).contains("public key of --auth-token cannot be used: not of P-521"));
    }
}
