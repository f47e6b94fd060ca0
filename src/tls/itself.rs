//! A certificate that is its own authority: what `openssl req -x509` makes, and what is then named both as certificate and as
//! whom to trust.
//!
//! Such a certificate says that it may vouch for others (`CA:TRUE`), and the library of verifiers refuses to see an authority at
//! the end of a connection. Go, and with it etcd, takes one that is itself among those trusted. So do we, where an authority is
//! named: the very certificate, byte for byte, stands in that file, its time is now, it is for that end of a connection if it says
//! what it is for, and for the host that was asked for. Whoever has its key could make another certificate that would be taken, so
//! this trusts nobody new. It is not taken where there are lists of what is revoked, which etcd would look it up in.
//!
//! Everything else, and every other certificate, is the library's to decide.

use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// The end of a connection that a certificate is for.
#[derive(Clone, Copy, Debug)]
enum End {
    Server,
    Client,
}

/// Decides about servers.
#[derive(Debug)]
pub(super) struct Servers {
    usual: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

/// Decides about clients.
#[derive(Debug)]
pub(super) struct Clients {
    usual: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Servers {
    /// As the usual one, and takes these if they are shown.
    pub(super) fn new(usual: Arc<WebPkiServerVerifier>, trusted: Vec<CertificateDer<'static>>) -> Servers {
        Servers { usual, trusted }
    }
}

impl Clients {
    /// As the usual one, and takes these if they are shown.
    pub(super) fn new(usual: Arc<dyn ClientCertVerifier>, trusted: Vec<CertificateDer<'static>>) -> Clients {
        Clients { usual, trusted }
    }
}

/// Whether a certificate is one of those trusted, an authority, and good for that end of a connection now.
fn vouches_for_itself(
    shown: &CertificateDer<'_>,
    trusted: &[CertificateDer<'static>],
    end: End,
    now: UnixTime,
) -> bool {
    if !trusted.iter().any(|known| known == shown) {
        return false;
    }
    let Ok((_, certificate)) = X509Certificate::from_der(shown) else { return false };
    let Ok(now) =
        i64::try_from(now.as_secs()).map_err(drop).and_then(|now| ASN1Time::from_timestamp(now).map_err(drop))
    else {
        return false;
    };
    let purpose = match certificate.extended_key_usage() {
        Ok(None) => true,
        Ok(Some(usage)) => {
            let own = match end {
                End::Server => usage.value.server_auth,
                End::Client => usage.value.client_auth,
            };
            usage.value.any || own
        }
        Err(_) => false,
    };
    // The library has no other objection to one that is not.
    certificate.is_ca() && certificate.validity().is_valid_at(now) && purpose
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(shown, chain, name, ocsp, now);
        if usual.is_ok() || !vouches_for_itself(shown, &self.trusted, End::Server, now) {
            return usual;
        }
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.usual.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.usual.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.usual.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let usual = self.usual.verify_client_cert(shown, chain, now);
        if usual.is_ok() || !vouches_for_itself(shown, &self.trusted, End::Client, now) {
            return usual;
        }
        // What it cannot read is nobody's.
        ParsedCertificate::try_from(shown)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
