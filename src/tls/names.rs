//! What a certificate says of its holder, and whether that is what we want to hear.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Settings;

/// How long names are looked up before they count as wrong.
const LOOK_UP_PATIENCE: Duration = Duration::from_secs(5);

/// The common name of the certificate that a client has shown, and that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonName(pub Arc<str>);

/// What of a certificate matters here.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) common: Option<Arc<str>>,
    hosts: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Names {
    /// Of the first certificate, its holder's.
    pub(super) fn of(certificates: &[CertificateDer<'_>]) -> Result<Names, String> {
        let Some(first) = certificates.first() else { return Ok(Names::default()) };
        let (_, certificate) = X509Certificate::from_der(first).map_err(|error| error.to_string())?;
        // The last, if there are several: the most particular.
        let common = certificate.subject().iter_common_name().last();
        let common = common.and_then(|name| name.as_str().ok()).filter(|name| !name.is_empty()).map(Arc::from);
        let mut names = Names { common, ..Names::default() };
        let others = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in others.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(host) => names.hosts.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(names)
    }

    /// Whether it is one that the settings allow.
    pub(super) fn allowed(&self, settings: &Settings) -> Result<(), String> {
        let named = |name: &String| self.common.as_deref() == Some(name);
        let hosted = |host: &String| match host.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.hosts.iter().any(|own| is_for(own, host)),
        };
        let allowed = (settings.allowed_names.is_empty() || settings.allowed_names.iter().any(named))
            && (settings.allowed_hosts.is_empty() || settings.allowed_hosts.iter().any(hosted));
        if allowed { Ok(()) } else { Err("client certificate authentication failed".to_owned()) }
    }

    /// Whether its holder may be at this address: it must be one that it names, or one of a host that it names. Who names nothing may
    /// be anywhere.
    pub(super) async fn may_be_at(&self, remote: IpAddr) -> Result<(), String> {
        let remote = remote.to_canonical();
        if self.hosts.is_empty() && self.addresses.is_empty() || self.addresses.contains(&remote) {
            return Ok(());
        }
        if self.hosts.is_empty() {
            return Err(format!("tls: {remote} is none of the addresses of the certificate, {:?}", self.addresses));
        }
        let hosts = self.hosts.clone();
        let looked_up = tokio::task::spawn_blocking(move || any_is_at(&hosts, remote));
        match tokio::time::timeout(LOOK_UP_PATIENCE, looked_up).await {
            Ok(Ok(true)) => Ok(()),
            _ => Err(format!("tls: {:?} does not match any of DNSNames {:?}", remote.to_string(), self.hosts)),
        }
    }
}

/// Whether the system finds one of these hosts at an address; patterns by the name that the address has.
fn any_is_at(hosts: &[String], address: IpAddr) -> bool {
    let (patterns, names): (Vec<&String>, Vec<&String>) = hosts.iter().partition(|host| host.starts_with("*."));
    let own = if patterns.is_empty() { None } else { dns_lookup::lookup_addr(&address).ok() };
    own.is_some_and(|own| patterns.into_iter().any(|pattern| is_for(pattern, own.trim_end_matches('.'))))
        || names.into_iter().any(|name| {
            dns_lookup::lookup_host(name).is_ok_and(|mut found| found.any(|found| found.to_canonical() == address))
        })
}

/// Whether a name of a certificate, perhaps a pattern, is for a host.
fn is_for(own: &str, host: &str) -> bool {
    match own.strip_prefix("*.") {
        None => own.eq_ignore_ascii_case(host),
        // A star stands for one label.
        Some(rest) => {
            host.split_once('.').is_some_and(|(label, zone)| !label.is_empty() && rest.eq_ignore_ascii_case(zone))
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
