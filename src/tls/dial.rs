//! The side that connects.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use slog::Logger;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, StreamOwned,
};
use tower::Service;

use super::fresh::Fresh;
use super::names::Names;
use super::{Settings, itself, pair, refused};

/// Connects to `http` and `https` addresses, or to a Unix socket in their place. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    tls: Option<Arc<Tls>>,
    /// Where it connects to whatever it is asked for.
    socket: Option<Arc<Path>>,
}

struct Tls {
    settings: Settings,
    config: Fresh<ClientConfig>,
}

/// A connection of either kind.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("settings", &self.tls.as_ref().map(|tls| &tls.settings)).finish()
    }
}

impl Dialer {
    /// One that knows nothing of TLS.
    pub fn plain() -> Dialer {
        Dialer { tls: None, socket: None }
    }

    /// An error says what of the settings, or of the files that they name, cannot be used.
    pub fn new(settings: Settings, logger: &Logger) -> Result<Dialer, String> {
        let making = settings.clone();
        let config = Fresh::new(settings.files(), logger.clone(), move || client_config(&making))?;
        Ok(Dialer { tls: Some(Arc::new(Tls { settings, config })), socket: None })
    }

    /// What connects to `url`, and the URL to ask it for. For a Unix socket that one has the name which a certificate has to have there.
    pub fn at(&self, url: &str) -> (Dialer, String) {
        let Some((secure, path)) = socket(url) else { return (self.clone(), url.to_owned()) };
        let named = if secure { "https://localhost" } else { "http://localhost" };
        (Dialer { socket: Some(path.into()), ..self.clone() }, named.to_owned())
    }

    async fn dial(self, uri: Uri) -> io::Result<Box<dyn Io>> {
        let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("no address: {uri}"));
        let host = uri.host().ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        if let Some(path) = &self.socket {
            let stream = UnixStream::connect(path).await?;
            return if secure { self.secured(host, stream).await } else { Ok(Box::new(stream)) };
        }
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        if secure { self.secured(host, stream).await } else { Ok(Box::new(stream)) }
    }

    async fn secured(&self, host: &str, stream: impl Io + 'static) -> io::Result<Box<dyn Io>> {
        let nothing = || io::Error::other(format!("https://{host}: nothing was said of TLS"));
        let tls = self.tls.as_ref().ok_or_else(nothing)?;
        let name = tls.settings.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = tokio_rustls::TlsConnector::from(tls.config.get()).connect(name, stream).await?;
        if !tls.settings.unverified {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let names = Names::of(certificates).map_err(io::Error::other)?;
            names.allowed(&tls.settings).map_err(io::Error::other)?;
        }
        Ok(Box::new(stream))
    }
}

/// The file of a Unix socket, `unix://path` or `unix:path`, and whether TLS is spoken there (`unixs`).
pub fn socket(url: &str) -> Option<(bool, &Path)> {
    let (secure, rest) = match (url.strip_prefix("unix:"), url.strip_prefix("unixs:")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return None,
    };
    Some((secure, Path::new(rest.strip_prefix("//").unwrap_or(rest))))
}

/// As tonic wants it.
impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial(uri).await.map(TokioIo::new) })
    }
}

fn client_config(settings: &Settings) -> Result<ClientConfig, String> {
    let provider = settings.protocol.provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(settings.protocol.versions())
        .map_err(refused)?;
    let builder = if settings.unverified {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else if settings.authority.is_none() && settings.roots()?.is_empty() {
        // An empty container trusts nobody. That matters to whoever dials with TLS, and to nobody else.
        builder.with_root_certificates(RootCertStore::empty())
    } else {
        let mut verifier = WebPkiServerVerifier::builder_with_provider(settings.roots()?.into(), provider);
        let revoked = settings.revocations()?;
        if !revoked.is_empty() {
            verifier = verifier.with_crls(revoked).allow_unknown_revocation_status();
        }
        let usual = verifier.build().map_err(refused)?;
        let verifier = itself::Servers::new(usual, settings.taken_themselves()?);
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    };
    let own = match pair(settings.client_certificate.as_deref(), settings.client_key.as_deref())? {
        Some(own) => Some(own),
        None => pair(settings.certificate.as_deref(), settings.key.as_deref())?,
    };
    let mut config = match own {
        Some((certificates, key)) => builder.with_client_auth_cert(certificates, key).map_err(refused)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    Ok(config)
}

/// Takes every certificate whose holder has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS to whoever is there, on a connection of a thread that waits: for a question whose answer is no secret.
pub fn ask_anybody(host: &str, stream: std::net::TcpStream) -> io::Result<impl io::Read + io::Write> {
    let settings = Settings { unverified: true, ..Settings::default() };
    let mut config = client_config(&settings).map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(session, stream))
}
