//! A small client for our own tools and tests: endpoints, and watches that survive the members they are served by.
//!
//! ```text
//!  Client ── one lazy connection per endpoint (or several) ──▶ any etcd v3 server
//!    └─ Watch ── one stream, any number of watchers; when it breaks, it goes on at another endpoint
//!          └─ Resume ── per watcher: where it goes on
//! ```
//!
//! What a watch promises: each change that a watcher asked for is handed out once, in order, whole revisions only, whatever
//! happens to members and connections; or it is said that compaction removed some. What it does not promise: that a
//! change is handed out soon. A cluster out of reach is waited for.
//!
//! Deliberately missing: retries of requests (whoever asks knows whether asking twice is harmless) and discovery of members.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::tls::Dialer;

pub mod ask;
mod backoff;
pub mod backup;
mod login;
pub mod resume;
mod tls;
pub mod watch;

pub use login::Login;
pub use resume::Want;
pub use tls::Tls;
pub use watch::{Heard, Watch};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Members hang up on who asks them for signs of life more than once in five seconds, in which questions that were later on their way than
/// others may come.
pub const SOONEST: Duration = Duration::from_secs(6);

/// How a member that went silent is noticed: one that was paused, or cut off without a word, is noticed in no other way.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// How often a connection is asked for a sign of life while something is expected of it: not oftener than [`SOONEST`], unless the
    /// members were told otherwise (`--grpc-keepalive-min-time`).
    pub interval: Duration,
    /// After that long without one the connection is given up, and its watches go on elsewhere.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { interval: SOONEST, timeout: Duration::from_secs(3) }
    }
}

/// How a client connects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How silence is noticed.
    pub keepalive: Keepalive,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How connections are encrypted.
    pub tls: Tls,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { keepalive: Keepalive::default(), connect_timeout: CONNECT_TIMEOUT, tls: Tls::default() }
    }
}

/// Why something cannot be done at all.
#[derive(Debug)]
pub enum Error {
    /// Not the address of an endpoint.
    Endpoint(String),
    /// What was said of TLS cannot be used.
    Tls(String),
    /// A server refused, and any other would.
    Refused(tonic::Status),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Endpoint(endpoint) => write!(f, "not an endpoint: {endpoint}"),
            Error::Tls(why) => write!(f, "{why}"),
            Error::Refused(status) => write!(f, "{status}"),
        }
    }
}

impl std::error::Error for Error {}

/// Connections to the endpoints of a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoints: Arc<Vec<Connections>>,
    login: Option<Login>,
    /// Of a client that does not ask for one with each call.
    token: Option<MetadataValue<Ascii>>,
}

/// To one endpoint.
#[derive(Debug)]
struct Connections {
    channels: Vec<Channel>,
    /// What makes others, and how long that may take.
    dialer: Dialer,
    connect_timeout: Duration,
    uri: Uri,
}

impl Client {
    /// A client of `endpoints` (`http://host:port`, or `host:port`, or `unix://path`), with so many connections to each. Nothing is connected
    /// before it is used.
    pub fn new(endpoints: &[String], connections: usize) -> Result<Client, Error> {
        Client::with_keepalive(endpoints, connections, Keepalive::default())
    }

    /// The same with another patience for members that say nothing.
    pub fn with_keepalive(endpoints: &[String], connections: usize, keepalive: Keepalive) -> Result<Client, Error> {
        Client::with_settings(endpoints, connections, &Settings { keepalive, ..Settings::default() })
    }

    /// The same with everything that can be set.
    pub fn with_settings(endpoints: &[String], connections: usize, settings: &Settings) -> Result<Client, Error> {
        let urls: Vec<String> = endpoints.iter().map(|endpoint| settings.tls.url(endpoint)).collect();
        Client::dialling(&urls, connections, settings, &settings.tls.dialer(&urls)?)
    }

    /// The same with connections that `dialer` makes, whatever the settings say of TLS.
    pub fn dialling(
        urls: &[String],
        connections: usize,
        settings: &Settings,
        dialer: &Dialer,
    ) -> Result<Client, Error> {
        let connect = |url: &String| {
            let (dialer, url) = dialer.at(url);
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|_| Error::Endpoint(url))?;
            let uri = endpoint.uri().clone();
            let endpoint = endpoint
                .connect_timeout(settings.connect_timeout)
                .http2_keep_alive_interval(settings.keepalive.interval)
                .keep_alive_timeout(settings.keepalive.timeout);
            let channel = || endpoint.connect_with_connector_lazy(dialer.clone());
            let channels = (0..connections.max(1)).map(|_| channel()).collect();
            Ok(Connections { channels, dialer, connect_timeout: settings.connect_timeout, uri })
        };
        let endpoints = urls.iter().map(connect).collect::<Result<Vec<Connections>, Error>>()?;
        if endpoints.is_empty() {
            return Err(Error::Endpoint("none was named".to_owned()));
        }
        Ok(Client { endpoints: Arc::new(endpoints), login: None, token: None })
    }

    /// The same for a user of the cluster.
    pub fn with_login(self, login: Option<Login>) -> Client {
        Client { login, ..self }
    }

    /// The token that all calls go with, once there is one.
    pub(crate) fn token(&self) -> Option<&MetadataValue<Ascii>> {
        self.token.as_ref()
    }

    /// A call of the client's user, who first gets a token over this connection.
    async fn call<T>(&self, channel: &Channel, message: T) -> Result<tonic::Request<T>, Status> {
        let mut call = tonic::Request::new(message);
        let token = match (&self.token, &self.login) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(login)) => login.token(channel.clone()).await?,
            (None, None) => None,
        };
        if let Some(token) = token {
            call.metadata_mut().insert("token", token);
        }
        Ok(call)
    }

    /// How many endpoints there are.
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// A connection to an endpoint, by its number; `user` tells users of different connections apart.
    pub fn channel(&self, endpoint: usize, user: usize) -> Channel {
        let channels = &self.endpoint(endpoint).channels;
        channels[user % channels.len()].clone()
    }

    /// Where an endpoint is.
    pub(crate) fn uri(&self, endpoint: usize) -> &Uri {
        &self.endpoint(endpoint).uri
    }

    /// A new connection to an endpoint on which nothing has been said, besides TLS.
    pub(crate) async fn stream(
        &self,
        endpoint: usize,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>> {
        let Connections { dialer, connect_timeout, uri, .. } = self.endpoint(endpoint);
        let connecting = dialer.clone().call(uri.clone());
        let connected = tokio::time::timeout(*connect_timeout, connecting).await.map_err(|_| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection to {uri} came about within {connect_timeout:?}"),
            )
        })?;
        Ok(connected?.into_inner())
    }

    fn endpoint(&self, number: usize) -> &Connections {
        &self.endpoints[number % self.endpoints.len()]
    }
}
