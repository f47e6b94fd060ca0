//! The side that is connected to.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use slog::Logger;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::server::TlsStream;

use super::fresh::Fresh;
use super::names::{CommonName, Names};
use super::{Settings, itself, pair, refused};

/// How long a handshake may take, and how many may be under way on one kind of socket. What comes beyond is closed at once: who makes
/// connections and says nothing on them must not keep others out for long, nor take memory for ever.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
pub(super) const HANDSHAKES_MAX: usize = 2000;

/// Makes TLS of connections that come in.
pub struct Acceptor {
    settings: Settings,
    config: Fresh<ServerConfig>,
    under_way: Semaphore,
}

/// A connection after its handshake.
pub struct Accepted<S> {
    /// It.
    pub stream: TlsStream<S>,
    /// Who is at the other end, if it had to show a certificate and that has a name.
    pub name: Option<CommonName>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// An error says what of the settings, or of the files that they name, cannot be used.
    pub fn new(settings: Settings, logger: &Logger) -> Result<Acceptor, String> {
        let making = settings.clone();
        let config = Fresh::new(settings.files(), logger.clone(), move || server_config(&making))?;
        Ok(Acceptor { settings, config, under_way: Semaphore::new(HANDSHAKES_MAX) })
    }

    /// Shakes hands, and looks at who is there.
    pub async fn accept<S>(&self, stream: S, remote: IpAddr) -> io::Result<Accepted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let busy = |_| io::Error::other("too many handshakes are under way");
        let _under_way = self.under_way.try_acquire().map_err(busy)?;
        let shaking = tokio_rustls::TlsAcceptor::from(self.config.get()).accept(stream);
        let stream = timeout(HANDSHAKE_PATIENCE, shaking).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let Some(certificates) = stream.get_ref().1.peer_certificates() else {
            return Ok(Accepted { stream, name: None });
        };
        let names = Names::of(certificates).map_err(io::Error::other)?;
        names.allowed(&self.settings).map_err(io::Error::other)?;
        if !self.settings.from_anywhere {
            names.may_be_at(remote).await.map_err(io::Error::other)?;
        }
        // Only then is a name worth a user, as in etcd.
        let name = names.common.filter(|_| self.settings.certificate_needed).map(CommonName);
        Ok(Accepted { stream, name })
    }
}

fn server_config(settings: &Settings) -> Result<ServerConfig, String> {
    let provider = settings.protocol.provider();
    let own = pair(settings.certificate.as_deref(), settings.key.as_deref())?;
    let (certificates, key) = own.ok_or("KeyFile and CertFile are not presented")?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(settings.protocol.versions())
        .map_err(refused)?;
    let builder = if settings.asks() {
        let verifier = WebPkiClientVerifier::builder_with_provider(settings.roots()?.into(), provider)
            .with_crls(settings.revocations()?)
            // A list says who is out; whoever is on none is in.
            .allow_unknown_revocation_status()
            .build()
            .map_err(refused)?;
        builder.with_client_cert_verifier(Arc::new(itself::Clients::new(verifier, settings.taken_themselves()?)))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(refused)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
