//! Versions of TLS and cipher suites, by the names that etcd's flags have for them.

use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};

/// What is spoken, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// Suites of TLS 1.2; none: all that there are. Those of 1.3 cannot be chosen, as in etcd.
    suites: Vec<String>,
    /// Only 1.2, or only 1.3; neither: both.
    only: Option<Only>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    Tls12,
    Tls13,
}

/// Suites that etcd takes and that are not here: without authenticated encryption, or without forward secrecy.
const NOT_HERE: [&str; 13] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

impl Protocol {
    /// From the names of suites and of the lowest and highest version, in etcd's words where it refuses. An empty name leaves it open.
    pub fn new(suites: &[&str], lowest: &str, highest: &str) -> Result<Protocol, String> {
        let version = |name: &str| match name {
            "" => Ok(None),
            "TLS1.2" => Ok(Some(2)),
            "TLS1.3" => Ok(Some(3)),
            "TLS1.0" | "TLS1.1" => Err(format!("{name} is no longer safe: Everwatch speaks TLS1.2 and TLS1.3")),
            _ => Err(format!("unexpected TLS version {name:?}")),
        };
        let (from, to) = (version(lowest)?, version(highest)?);
        if to.is_some_and(|to| from.is_some_and(|from| from > to)) {
            return Err(format!("min version ({lowest}) is greater than max version ({highest})"));
        }
        if from == Some(3) && !suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let known: Vec<String> = ring::ALL_CIPHER_SUITES.iter().map(name).collect();
        let mut chosen = Vec::new();
        for suite in suites {
            // Two that Go once knew by shorter names.
            let long = match *suite {
                "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
                "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
                other => other,
            };
            if NOT_HERE.contains(&long) {
                return Err(format!(
                    "cipher suite {suite:?} is not offered by Everwatch: neither RSA key exchange nor CBC is safe enough"
                ));
            }
            if !known.iter().any(|name| name == long) {
                return Err(format!("unexpected TLS cipher suite {suite:?}"));
            }
            chosen.push(long.to_owned());
        }
        let only = match (from, to) {
            (Some(3), _) => Some(Only::Tls13),
            (_, Some(2)) => Some(Only::Tls12),
            _ => None,
        };
        Ok(Protocol { suites: chosen, only })
    }

    pub(super) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self.only {
            None => &BOTH,
            Some(Only::Tls12) => &BOTH[1..],
            Some(Only::Tls13) => &BOTH[..1],
        }
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        if !self.suites.is_empty() {
            provider.cipher_suites.retain(|suite| {
                suite.version().version == ProtocolVersion::TLSv1_3 || self.suites.contains(&name(suite))
            });
        }
        Arc::new(provider)
    }
}

/// The name that IANA has for it.
fn name(suite: &SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_spoken_is_refused_by_name() {
        let refusal = |suites: &[&str], lowest, highest| Protocol::new(suites, lowest, highest).unwrap_err();
        assert_eq!(refusal(&[], "TLS1.4", ""), "unexpected TLS version \"TLS1.4\"");
        assert!(refusal(&[], "TLS1.1", "").contains("no longer safe"));
        assert_eq!(refusal(&[], "TLS1.3", "TLS1.2"), "min version (TLS1.3) is greater than max version (TLS1.2)");
        assert_eq!(
            refusal(&["TLS_AES_128_GCM_SHA256"], "TLS1.3", ""),
            "cipher suites cannot be configured when only TLS1.3 is enabled"
        );
        assert_eq!(refusal(&["x"], "TLS1.2", ""), "unexpected TLS cipher suite \"x\"");
        assert!(refusal(&["TLS_RSA_WITH_AES_128_CBC_SHA"], "", "").contains("not offered"));
    }

    #[test]
    fn a_choice_of_suites_leaves_the_newest_version_alone() {
        let chosen = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
        let protocol = Protocol::new(&[chosen], "TLS1.2", "").unwrap();
        let names: Vec<String> = protocol.provider().cipher_suites.iter().map(name).collect();
        assert!(names.contains(&chosen.to_owned()) && names.contains(&"TLS_AES_128_GCM_SHA256".to_owned()));
        assert_eq!(names.iter().filter(|name| name.contains("ECDHE")).count(), 1);
        assert_eq!(Protocol::new(&[], "TLS1.2", "TLS1.2").unwrap().versions().len(), 1);
    }
}
