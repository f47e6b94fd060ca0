//! TLS: what we show, whom we trust, and files that change while we run.
//!
//! One function makes the settings of every socket that listens ([`Acceptor`]), and one those of every connection that we open
//! ([`Dialer`]), so that nothing that is asked of a certificate can be forgotten on one of them: who vouches for it, whether it was
//! revoked, whose name is in it, where it comes from.
//!
//! Certificates, keys, authorities and lists of revoked certificates are looked at again for every handshake and read again when they
//! have changed; what cannot be used is reported once, and what was there before stays in use. (etcd does so for certificates and
//! revocations; its authorities are those of the start.) Connections stay as they were made.
//!
//! TLS 1.2 and 1.3, with authenticated encryption and forward secrecy only: of the suites that etcd knows, the others are refused by
//! name. Sessions are not resumed: a connection lives long, and each begins with a look at its certificate.

mod accept;
mod dial;
mod fresh;
mod itself;
mod names;
mod protocol;
mod self_signed;

use std::path::{Path, PathBuf};

use rustls_native_certs::load_native_certs;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

pub use accept::{Accepted, Acceptor};
pub use dial::{Dialer, ask_anybody, socket};
pub use names::CommonName;
pub use protocol::Protocol;
pub use self_signed::self_signed;

/// What one side of a member, or a client, is told about TLS. Files are PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Our certificate, and those that stand between it and an authority.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Another certificate for connections that we open.
    pub client_certificate: Option<PathBuf>,
    /// Its key.
    pub client_key: Option<PathBuf>,
    /// Whose certificates are taken; none: those whom the system trusts.
    pub authority: Option<PathBuf>,
    /// Certificates that are taken no more (PEM or DER).
    pub revoked: Option<PathBuf>,
    /// Whether who connects must have a certificate. An authority asks for one as well, as in etcd.
    pub certificate_needed: bool,
    /// If there are any: the common name of a certificate must be one of these.
    pub allowed_names: Vec<String>,
    /// If there are any: a certificate must be for one of these hosts.
    pub allowed_hosts: Vec<String>,
    /// Whether who connects may do so from elsewhere than its certificate says.
    pub from_anywhere: bool,
    /// If it is known: the name that the certificate of whom we connect to must have, whatever we call him.
    pub server_name: Option<String>,
    /// Whether the certificate of whom we connect to is not looked at. It encrypts, and says nothing of who is at the other end.
    pub unverified: bool,
    /// Versions and cipher suites.
    pub protocol: Protocol,
}

impl Settings {
    /// Whether there is a certificate to show.
    pub fn is_empty(&self) -> bool {
        self.certificate.is_none() && self.key.is_none()
    }

    /// Whether who connects is asked for a certificate.
    fn asks(&self) -> bool {
        self.certificate_needed || self.authority.is_some()
    }

    /// The files all this is in.
    fn files(&self) -> Vec<PathBuf> {
        let files =
            [&self.certificate, &self.key, &self.client_certificate, &self.client_key, &self.authority, &self.revoked];
        files.into_iter().flatten().cloned().collect()
    }

    /// Those who may vouch for others.
    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match &self.authority {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
            }
            None => {
                // Some of a system's may be of no use.
                roots.add_parsable_certificates(load_native_certs().certs);
            }
        }
        Ok(roots)
    }

    /// Those of them that are taken when they are shown themselves.
    fn taken_themselves(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        match &self.authority {
            Some(path) if self.revoked.is_none() => certificates(path),
            _ => Ok(Vec::new()),
        }
    }

    /// What is taken no more.
    fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
        let Some(path) = &self.revoked else { return Ok(Vec::new()) };
        let bytes = read(path)?;
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        match lists {
            Ok(lists) if !lists.is_empty() => Ok(lists),
            Ok(_) => Ok(vec![CertificateRevocationListDer::from(bytes)]),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }
}

/// A certificate with its chain and its key.
type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(certificate: Option<&Path>, key: Option<&Path>) -> Result<Option<Pair>, String> {
    let (certificate, key) = match (certificate, key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (certificate, key) => {
            let name = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
            let (certificate, key) = (name(certificate), name(key));
            return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {certificate}]"));
        }
    };
    let bytes = read(key)?;
    let secret = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| format!("{}: {error}", key.display()))?;
    Ok(Some((certificates(certificate)?, secret)))
}

/// All certificates of a file.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err(format!("{}: no certificate in it", path.display())),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("open {}: {error}", path.display()))
}

/// What a library refused, as text.
fn refused(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
