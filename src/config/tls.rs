//! What is said of TLS, for clients and for members.

use std::path::PathBuf;

use super::flags::{Error, Values};
use super::{Url, invalid, list};
use crate::tls::{Protocol, Settings};

/// Of one kind of socket.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// For sockets, and for connections to the like of them.
    pub settings: Settings,
    /// Whether a certificate is made where none is named.
    pub automatic: bool,
    /// Years that such a one is good for.
    pub years: u32,
}

/// The flags of one side.
pub(super) struct Names {
    certificate: &'static str,
    key: &'static str,
    client_certificate: &'static str,
    client_key: &'static str,
    authority: &'static str,
    revoked: &'static str,
    certificate_needed: &'static str,
    allowed_names: Option<&'static str>,
    allowed_hosts: &'static str,
    from_anywhere: Option<&'static str>,
    automatic: &'static str,
}

pub(super) const OF_CLIENTS: Names = Names {
    certificate: "cert-file",
    key: "key-file",
    client_certificate: "client-cert-file",
    client_key: "client-key-file",
    authority: "trusted-ca-file",
    revoked: "client-crl-file",
    certificate_needed: "client-cert-auth",
    allowed_names: None,
    allowed_hosts: "client-cert-allowed-hostname",
    from_anywhere: None,
    automatic: "auto-tls",
};

pub(super) const OF_MEMBERS: Names = Names {
    certificate: "peer-cert-file",
    key: "peer-key-file",
    client_certificate: "peer-client-cert-file",
    client_key: "peer-client-key-file",
    authority: "peer-trusted-ca-file",
    revoked: "peer-crl-file",
    certificate_needed: "peer-client-cert-auth",
    allowed_names: Some("peer-cert-allowed-cn"),
    allowed_hosts: "peer-cert-allowed-hostname",
    from_anywhere: Some("peer-skip-client-san-verification"),
    automatic: "peer-auto-tls",
};

impl Tls {
    pub(super) fn new(values: &Values, names: &Names) -> Result<Tls, Error> {
        let path = |name| Some(values.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        let several = |name| list(values.text(name)).map(str::to_owned).collect::<Vec<_>>();
        let allowed_names = names.allowed_names.map(several).unwrap_or_default();
        let allowed_hosts = several(names.allowed_hosts);
        if !allowed_names.is_empty() && !allowed_hosts.is_empty() {
            let (names, hosts) = (allowed_names.join(","), allowed_hosts.join(","));
            return invalid(format!(
                "AllowedCN and AllowedHostname are mutually exclusive (cn={names:?}, hostname={hosts:?})"
            ));
        }
        let suites: Vec<&str> = list(values.text("cipher-suites")).collect();
        let protocol = Protocol::new(&suites, values.text("tls-min-version"), values.text("tls-max-version"));
        let settings = Settings {
            certificate: path(names.certificate),
            key: path(names.key),
            client_certificate: path(names.client_certificate),
            client_key: path(names.client_key),
            authority: path(names.authority),
            revoked: path(names.revoked),
            certificate_needed: values.switch(names.certificate_needed),
            allowed_names,
            allowed_hosts,
            from_anywhere: names.from_anywhere.is_some_and(|name| values.switch(name)),
            server_name: None,
            unverified: false,
            protocol: protocol.map_err(Error::Invalid)?,
        };
        let years = u32::try_from(values.unsigned("self-signed-cert-validity")).unwrap_or(u32::MAX);
        if years == 0 {
            return invalid("selfSignedCertValidity is invalid,it should be greater than 0");
        }
        // As in etcd: a certificate that is named is not replaced by one that is made.
        let automatic = values.switch(names.automatic) && settings.is_empty();
        Ok(Tls { settings, automatic, years })
    }

    /// Whether these can be listened on as far as TLS goes.
    pub(super) fn serves(&self, urls: &[Url], members: bool) -> Result<(), Error> {
        let secure = urls.iter().find(|url| url.is_secure());
        let Some(url) = secure.filter(|_| !self.automatic && self.settings.is_empty()) else { return Ok(()) };
        match members {
            true => {
                invalid(format!("cannot listen on TLS for {}: KeyFile and CertFile are not presented", url.address))
            }
            false => invalid(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            )),
        }
    }
}
