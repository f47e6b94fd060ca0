//! ES512, which the library that knows the other methods lacks: ECDSA with SHA-512 on the curve P-521.
//!
//! Signatures are made without randomness (RFC 6979), as two numbers of 66 bytes, one after the other. Keys come in PEM:
//! a private one as PKCS #8 or as SEC 1 ("EC PRIVATE KEY"), a public one as "PUBLIC KEY".

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use p521::ecdsa::signature::{Signer, Verifier};
use p521::ecdsa::{Signature, SigningKey, VerifyingKey};
use p521::pkcs8::{DecodePrivateKey, DecodePublicKey};
use p521::{PublicKey, SecretKey};
use serde_json::{Value, json};

/// Signs and verifies.
pub(super) struct Es512 {
    sign: Option<SigningKey>,
    verify: VerifyingKey,
}

impl Es512 {
    /// The key that verifies, and the one that signs. An error says which cannot be used.
    pub(super) fn new(public: &[u8], private: Option<&[u8]>) -> Result<Es512, &'static str> {
        let text = |pem| str::from_utf8(pem).ok();
        let public = text(public).and_then(|pem| PublicKey::from_public_key_pem(pem).ok()).ok_or("public")?;
        let secret = |pem: &str| SecretKey::from_pkcs8_pem(pem).ok().or_else(|| SecretKey::from_sec1_pem(pem).ok());
        let private = match private {
            Some(pem) => Some(text(pem).and_then(secret).ok_or("private")?),
            None => None,
        };
        Ok(Es512 { sign: private.map(SigningKey::from), verify: VerifyingKey::from(public) })
    }

    pub(super) fn signs(&self) -> bool {
        self.sign.is_some()
    }

    pub(super) fn encode(&self, claims: &Value) -> Option<String> {
        let header = json!({ "alg": "ES512", "typ": "JWT" });
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature: Signature = self.sign.as_ref()?.try_sign(signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", BASE64.encode(signature.to_bytes())))
    }

    /// The claims of a token, if they are signed as agreed.
    pub(super) fn decode(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let read = |part: &str| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
        if read(header)?.get("alg")? != "ES512" {
            return None;
        }
        let signature = Signature::from_slice(&BASE64.decode(signature).ok()?).ok()?;
        self.verify.verify(signed.as_bytes(), &signature).ok()?;
        read(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of nobody, for these tests, made by OpenSSL.
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----
MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIAQEzcgAkGducGuCw3
c67IZGxTs0Qlsh/ujS7edpJfXkI9ieuE7ZdIXg29TrJhFjF89wCuKET2/TNfEh0l
A48Xi2ehgYkDgYYABAB+qXYUbPUMjT5oVvcxnRdlWuZcBYl+gKXC2TD8C0mk42gz
1nuPf4ILt+XZhjIVpLtNiz3Xl/u3XXzQ/CtNIiAllwFRnB44fmRAA04AIxy671Fe
Py9B6nS+q4MeIDsSP0/0gawzuOdc3Mh+5qya2Rx+I8C0wTsIlQBND4jXr80Ahoy4
Dg==
-----END PRIVATE KEY-----
";
    const THE_SAME_IN_SEC1: &[u8] = b"-----BEGIN EC PRIVATE KEY-----
MIHcAgEBBEIAQEzcgAkGducGuCw3c67IZGxTs0Qlsh/ujS7edpJfXkI9ieuE7ZdI
Xg29TrJhFjF89wCuKET2/TNfEh0lA48Xi2egBwYFK4EEACOhgYkDgYYABAB+qXYU
bPUMjT5oVvcxnRdlWuZcBYl+gKXC2TD8C0mk42gz1nuPf4ILt+XZhjIVpLtNiz3X
l/u3XXzQ/CtNIiAllwFRnB44fmRAA04AIxy671FePy9B6nS+q4MeIDsSP0/0gawz
uOdc3Mh+5qya2Rx+I8C0wTsIlQBND4jXr80Ahoy4Dg==
-----END EC PRIVATE KEY-----
";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----
MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAfql2FGz1DI0+aFb3MZ0XZVrmXAWJ
foClwtkw/AtJpONoM9Z7j3+CC7fl2YYyFaS7TYs915f7t1180PwrTSIgJZcBUZwe
OH5kQANOACMcuu9RXj8vQep0vquDHiA7Ej9P9IGsM7jnXNzIfuasmtkcfiPAtME7
CJUATQ+I16/NAIaMuA4=
-----END PUBLIC KEY-----
";
    const OF_ANOTHER_CURVE: &[u8] = b"-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+tAr2p3Ge2+PwgDia6exMGnYhUVt
oLXsUaTaItZ+CgV2VUEqAV0Jl8Enk1JlwMLbz1U4IdENnOoV7J58D2C0PA==
-----END PUBLIC KEY-----
";
    /// Signed by OpenSSL.
    const SIGNED: &str = "eyJhbGciOiJFUzUxMiIsInR5cCI6IkpXVCJ9.eyJ1c2VybmFtZSI6ImFsaWNlIiwicmV2aXNpb24iOjcsImV4cCI6MTMwMH0.AJQJ48QlbFe7j\
        gvViflhGq3FZx3vXXf8xxWm36-0FvxYRdqLWUJEbvijjdyQNG32Sp1V_aLgFkUhMhOf2vNl9RHFAAjrmjiHAfnKbtKbPiASZs6K-U5RJ4F_Mj5\
        GdvmVMuDJUo2G1NuU9BUMnX1FwXkT94GuiHUo7HNMWXG0CbFUpkBG";

    #[test]
    fn tokens_of_others_are_recognised_and_own_ones_too() {
        let claims = json!({ "username": "alice", "revision": 7, "exp": 1300 });
        let only = Es512::new(PUBLIC, None).unwrap();
        assert_eq!(only.decode(SIGNED), Some(claims.clone()));
        assert!(!only.signs() && only.encode(&claims).is_none());
        for private in [PRIVATE, THE_SAME_IN_SEC1] {
            let both = Es512::new(PUBLIC, Some(private)).unwrap();
            let token = both.encode(&claims).unwrap();
            assert_eq!((only.decode(&token), both.signs()), (Some(claims.clone()), true));
        }
    }

    #[test]
    fn what_is_forged_is_nobodys() {
        let both = Es512::new(PUBLIC, Some(PRIVATE)).unwrap();
        let token = both.encode(&json!({ "username": "alice" })).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let [header, claims, signature] = parts[..] else { panic!("{token}") };
        let (none, root) = (BASE64.encode("{\"alg\":\"none\"}"), BASE64.encode("{\"username\":\"root\"}"));
        let zeros = BASE64.encode([0; 132]);
        for forged in [
            format!("{header}.{root}.{signature}"),
            format!("{none}.{claims}.{signature}"),
            format!("{none}.{claims}."),
            format!("{header}.{claims}.{zeros}"),
            format!("{header}.{claims}.{}", &signature[4..]),
            format!("{header}.{claims}.{claims}.{signature}"),
            format!("{header}.{claims}"),
            "..".to_owned(),
            String::new(),
        ] {
            assert_eq!(both.decode(&forged), None, "{forged}");
        }
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        assert_eq!(Es512::new(OF_ANOTHER_CURVE, None).err(), Some("public"));
        assert_eq!(Es512::new(PRIVATE, None).err(), Some("public"));
        assert_eq!(Es512::new(PUBLIC, Some(PUBLIC)).err(), Some("private"));
        assert_eq!(Es512::new(b"\xff", None).err(), Some("public"));
    }
}
