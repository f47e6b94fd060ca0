//! Sockets: accepts connections, speaks TLS where it should, tells HTTP/1 from HTTP/2 and gRPC from the rest, and stops within bounds.
//!
//! Promises: a connection never moves between runtimes; running out of file descriptors slows accepting down but ends
//! nothing; once told to stop, nothing new is accepted, running calls may finish for [`GRACE`], then they are cut off.
//!
//! Called by `member` once per runtime that serves connections: [`bind`] once, then [`serve`] in each runtime with a
//! [`Socket::try_clone`] of every socket (the kernel gives a connection to whoever takes it first). What is served comes as
//! two services: gRPC (a tonic router) and HTTP (an axum router). Either may be missing.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Either, Empty};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use slog::Logger;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::Service;

use self::calls::Calls;
use self::gathered::Gathered;
use self::pings::{Counted, Open, Patience, Pulse};
use self::turns::Turns;
use crate::audit::Auditor;
use crate::config::{Config, Scheme, Url};
use crate::throttle::Throttle;
use crate::tls::{Accepted, Acceptor, CommonName};

mod afterwards;
mod begun;
mod calls;
mod gathered;
mod pings;
mod places;
mod turns;
mod unix;

pub use afterwards::Afterwards;
pub use places::Places;

/// How long calls may go on after the stop. Watches are ended by their owner before that.
pub const GRACE: Duration = Duration::from_secs(3);

/// HTTP/2 windows. Fixed and large: hyper's adaptive window costs bandwidth, and its default stalls on large values.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// What may wait on one stream for a client that could take it and a connection that cannot. The default of 400 KiB is most of what a
/// member takes in memory when many streams are busy, and gains nothing: two frames are under way while the next is made.
const SEND_BUFFER_BYTES: usize = 32 * 1024;

/// Calls of one connection that were cancelled before we looked at them. Beyond this the connection is closed as hostile;
/// the library's 20 is soon reached by an honest client that drops many watches at once. It must be less than what is read of a
/// connection at once has room for, or nobody would ever come so far.
const CANCELLED_UNSEEN_MAX: usize = 1000;

/// Connections waiting to be accepted. The kernel turns away more.
const BACKLOG: u32 = 4096;

/// A new connection that says nothing for so long, or does not come to the end of what it says first, is closed.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);

/// Waits after an accept that failed for want of something; doubled up to the maximum.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What of the configuration concerns connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most open calls on one connection.
    pub concurrent_streams_max: u32,
    /// Time between pings; none: no pings.
    pub keepalive_interval: Option<Duration>,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
    /// How soon a client's ping may follow another where there is no TLS; none: at once.
    pub keepalive_min_time: Option<Duration>,
    /// How many connections there may be; none: as many as come.
    pub places: Option<Places>,
    /// Whether there is room for more writes of those that have many under way.
    pub throttle: Arc<Throttle>,
}

impl Limits {
    /// For clients, as configured.
    pub fn of_clients(config: &Config, places: Option<Places>, throttle: Arc<Throttle>) -> Limits {
        Limits {
            concurrent_streams_max: config.concurrent_streams_max,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            keepalive_min_time: Some(config.keepalive_min_time),
            places,
            throttle,
        }
    }

    /// For members: a dead one shall be noticed before long.
    pub fn of_peers() -> Limits {
        Limits {
            concurrent_streams_max: u32::MAX,
            keepalive_interval: Some(Duration::from_secs(5)),
            keepalive_timeout: Duration::from_secs(10),
            keepalive_min_time: None,
            places: None,
            throttle: Arc::new(Throttle::new(false)),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Socket {
    listener: Bound,
    /// Where TLS is spoken.
    tls: Option<Arc<Acceptor>>,
}

#[derive(Debug)]
enum Bound {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(unix::Bound),
}

/// Opens a socket for every URL; those of `https` and `unixs` speak TLS, as `tls` says. A port of 0 takes a free one ([`Socket::address`] tells).
/// Needs a runtime with I/O.
pub async fn bind(urls: &[Url], tls: Option<&Arc<Acceptor>>) -> io::Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for url in urls {
        let tls = match (url.scheme, tls) {
            (Scheme::Https | Scheme::Unixs, None) => {
                return Err(io::Error::other(format!("cannot listen on TLS for {}", url.address)));
            }
            (Scheme::Https | Scheme::Unixs, Some(tls)) => Some(tls.clone()),
            _ => None,
        };
        let bound = match url.socket_path() {
            Some(path) => unix::Bound::open(path).await.map(Bound::Unix),
            None => url.socket_addr().and_then(open),
        };
        let named = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {url}: {error}"));
        sockets.push(Socket { listener: bound.map_err(named)?, tls });
    }
    Ok(sockets)
}

fn open(address: SocketAddr) -> io::Result<Bound> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    // A restart must not wait for connections of the former process to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    let address = listener.local_addr()?;
    Ok(Bound::Tcp(listener, address))
}

impl Socket {
    /// Where it listens. None: on a file.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Bound::Tcp(_, address) => Some(*address),
            Bound::Unix(_) => None,
        }
    }

    /// Another handle of the same socket, for another runtime.
    pub fn try_clone(&self) -> io::Result<Socket> {
        let listener = match &self.listener {
            Bound::Tcp(listener, address) => Bound::Tcp(listener.try_clone()?, *address),
            Bound::Unix(bound) => Bound::Unix(bound.try_clone()?),
        };
        Ok(Socket { listener, tls: self.tls.clone() })
    }
}

/// Where connections come in.
enum Listener {
    Tcp(TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<(TcpStream, Remote)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((stream, Remote(Some(address))))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((unix::as_stream(stream)?, Remote(None)))
            }
        }
    }
}

/// Where a connection comes from; a Unix socket has no addresses.
#[derive(Clone, Copy, Debug)]
struct Remote(Option<SocketAddr>);

impl Remote {
    /// Who comes by a file comes from this machine.
    fn ip(self) -> IpAddr {
        self.0.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

/// Serves nothing: stands where there is no gRPC, or no HTTP, on a socket.
#[derive(Clone, Copy, Debug)]
pub enum Nothing {
    /// Nor ever will.
    Ever,
    /// For now: clients of gRPC come again, here or elsewhere.
    Yet,
}

impl<B> Service<Request<B>> for Nothing {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        std::future::ready(Ok(match self {
            Nothing::Ever => refusal(&request, "12", StatusCode::NOT_FOUND),
            Nothing::Yet => refusal(&request, "14", StatusCode::SERVICE_UNAVAILABLE),
        }))
    }
}

/// How gRPC says its status (12: UNIMPLEMENTED, 14: UNAVAILABLE) without a body, or HTTP its own.
fn refusal<B>(request: &Request<B>, grpc_status: &'static str, status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    if is_grpc(request) {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", http::HeaderValue::from_static(grpc_status));
    } else {
        *response.status_mut() = status;
    }
    response
}

/// What is asked of a service that answers requests. It must always be ready (tonic's and axum's routers are).
pub trait Answer: Clone + Send + 'static {
    /// The body of its answers.
    type Body: Body<Data: Buf + Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static;

    /// The answer to a request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send + use<Self>;
}

impl<S, B> Answer for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Buf + Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    type Body = B;

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<B>> + Send + use<S, B> {
        // Not a part of what waits for the answer.
        let answer = self.clone().call(request);
        async move { answer.await.unwrap_or_else(|never| match never {}) }
    }
}

/// Serves `grpc` and `http` on `sockets`, on this runtime, until `stop` turns true or its sender is gone; then returns
/// when every connection is closed, at the latest after [`GRACE`]. With an audit log every request carries where it came from.
pub async fn serve<G: Answer, H: Answer>(
    sockets: Vec<Socket>,
    grpc: G,
    http: H,
    limits: Limits,
    audit: Option<Auditor>,
    stop: watch::Receiver<bool>,
    logger: Logger,
) -> io::Result<()> {
    let (mut accepting, turns) = (JoinSet::new(), Arc::new(Turns::new(limits.throttle.clone())));
    for socket in sockets {
        let (audit, limits, turns) = (audit.clone(), limits.clone(), turns.clone());
        let served = Served { grpc: grpc.clone(), http: http.clone(), limits, audit, turns, tls: socket.tls };
        let (stop, logger) = (stop.clone(), logger.clone());
        match socket.listener {
            Bound::Tcp(listener, _) => {
                let listener = Listener::Tcp(TcpListener::from_std(listener)?);
                accepting.spawn(accept(listener, (), served, stop, logger));
            }
            Bound::Unix(bound) => {
                let (listener, file) = bound.listen()?;
                accepting.spawn(accept(Listener::Unix(listener), file, served, stop, logger));
            }
        }
    }
    let all = async { while accepting.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = turns.call() => {}
    }
    Ok(())
}

/// What a socket's connections get.
#[derive(Clone)]
struct Served<G, H> {
    grpc: G,
    http: H,
    limits: Limits,
    audit: Option<Auditor>,
    turns: Arc<Turns>,
    tls: Option<Arc<Acceptor>>,
}

/// `kept` goes with the listener.
async fn accept<G: Answer, H: Answer>(
    listener: Listener,
    kept: impl Send,
    served: Served<G, H>,
    mut stop: watch::Receiver<bool>,
    logger: Logger,
) {
    let mut connections = JoinSet::new();
    let mut pause = ACCEPT_PAUSE_MIN;
    let stopping = stop.clone();
    let mut told = pin!(stopped(&mut stop));
    loop {
        tokio::select! {
            biased;
            () = &mut told => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    pause = ACCEPT_PAUSE_MIN;
                    let place = served.limits.places.as_ref().map(|places| places.take(&logger));
                    if let Some(None) = place {
                        continue;
                    }
                    let logger = logger.new(slog::o!("remote-addr" => remote.to_string()));
                    let serving = connection(stream, remote, served.clone(), stopping.clone(), logger);
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                // The client went away before we came to it.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted) => {}
                // File descriptors or memory ran out. Connections in service go on and will free some.
                Err(error) => {
                    slog::warn!(logger, "accept failed, retrying"; "error" => %error, "pause" => ?pause);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = &mut told => break,
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            },
        }
    }
    // A file goes while somebody still listens on it: so it is nobody else's yet.
    drop((kept, listener));
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        slog::warn!(logger, "cutting off connections that did not end in time"; "connections" => connections.len());
        connections.abort_all();
    }
}

/// The signals that end a member, SIGTERM and SIGINT. They are kept from the moment this is made: as process 1 of a
/// container a member would never hear of a signal that came before anybody asked for it.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Asks for the signals. Needs a runtime with I/O.
    pub fn new() -> io::Result<Termination> {
        Ok(Termination { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them and returns its name. A second one ends the process at once, for whoever lost patience.
    pub async fn wait(mut self) -> &'static str {
        let first = self.next().await;
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(130);
        });
        first
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "terminated",
            _ = self.interrupt.recv() => "interrupt",
        }
    }
}

/// Returns when `stop` is true, or when nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection<G: Answer, H: Answer>(
    stream: TcpStream,
    remote: Remote,
    served: Served<G, H>,
    mut stop: watch::Receiver<bool>,
    logger: Logger,
) {
    // Small replies must not wait for one another. A connection that is already gone fails here and, properly, below.
    let _ = stream.set_nodelay(true);
    let stream = Gathered::new(stream);
    let Some(tls) = served.tls.clone() else {
        return exchange(stream.clone(), &stream, remote, None, served, stop, logger).await;
    };
    let mut accepting = pin!(tls.accept(stream.clone(), remote.ip()));
    let accepted = tokio::select! {
        accepted = stream.around(accepting.as_mut()) => accepted,
        () = stopped(&mut stop) => return,
    };
    match accepted {
        Ok(Accepted { stream: secure, name }) => exchange(secure, &stream, remote, name, served, stop, logger).await,
        Err(error) => slog::warn!(logger, "rejected connection"; "error" => %error),
    }
}

/// Answers what comes on a connection, until it ends. `socket` is what is below `stream`.
async fn exchange<S, G: Answer, H: Answer>(
    stream: S,
    socket: &Gathered,
    remote: Remote,
    name: Option<CommonName>,
    served: Served<G, H>,
    mut stop: watch::Receiver<bool>,
    logger: Logger,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Served { grpc, http, limits, audit, turns, tls } = served;
    let audit: Option<(Auditor, Arc<str>)> = audit.map(|audit| (audit, remote.to_string().into()));
    let calls = Calls::default();
    let mut builder = auto::Builder::new(calls.clone());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        // gRPC has no use for it.
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.concurrent_streams_max)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(CANCELLED_UNSEEN_MAX)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    let afterwards = Afterwards::default();
    let leaving = afterwards.clone();
    // With TLS nobody counts, as in etcd.
    let min_time = limits.keepalive_min_time.filter(|_| tls.is_none());
    let patience = min_time.map(|time| (Patience(time), Pulse::default()));
    let pulse = patience.as_ref().map(|(_, pulse)| pulse.clone());
    // Each request goes to the service it is for.
    let dispatch = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let open = pulse.as_ref().map(Pulse::open);
        if let Some((audit, remote)) = &audit {
            let origin = audit.origin(remote, request.uri());
            request.extensions_mut().insert(origin);
        }
        let answer = if is_grpc(&request) {
            // Not for HTTP: whoever calls for others there would lend them its own name (CVE-2018-16886).
            if let Some(name) = &name {
                request.extensions_mut().insert(name.clone());
            }
            Either::Left(grpc.answer(request))
        } else {
            Either::Right((http.answer(request), leaving.clone()))
        };
        async move {
            Ok::<_, Infallible>(match answer {
                Either::Left(grpc) => {
                    let part = until_the_end(open, Of::Grpc);
                    grpc.await.map(|body| Either::Left(body.map_frame(part)))
                }
                Either::Right((http, leaving)) => {
                    let mut answer = http.await;
                    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
                        && let Some(afterwards) = answer.extensions_mut().remove()
                    {
                        leaving.put(&afterwards);
                    }
                    let part = until_the_end(open, Of::Http);
                    answer.map(|body| Either::Right(body.map_frame(part)))
                }
            })
        }
    });
    let mut beginning = pin!(begun::begun(stream, HEADER_PATIENCE));
    let begun = tokio::select! {
        begun = socket.around(beginning.as_mut()) => begun,
        () = stopped(&mut stop) => return,
    };
    let stream = match begun {
        Ok(stream) => stream,
        Err(error) => return slog::debug!(logger, "connection ended"; "error" => %error),
    };
    let patience = patience.filter(|_| stream.is_http_2());
    let stream = Counted::new(stream, patience);
    let ended = {
        let serving = pin!(async {
            let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), dispatch));
            tokio::select! {
                ended = serving.as_mut() => ended,
                () = stopped(&mut stop) => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        });
        socket.around(pin!(calls.with(serving, turns.turn()))).await
    };
    if let Err(error) = ended {
        // Clients vanish all the time; only someone looking for trouble wants to read it.
        slog::debug!(logger, "connection ended"; "error" => %error);
    }
    if let Some(afterwards) = afterwards.take() {
        socket.around(pin!(afterwards(stop))).await;
    }
}

/// What is done with each part of an answer; the call is under way as long as there may be more.
fn until_the_end<D, T>(open: Option<Open>, map: impl Fn(D) -> T) -> impl FnMut(Frame<D>) -> Frame<T> {
    move |frame| {
        let _under_way = &open;
        frame.map_data(&map)
    }
}

/// What one or the other service gives a connection.
enum Of<G, H> {
    Grpc(G),
    Http(H),
}

impl<G: Buf, H: Buf> Buf for Of<G, H> {
    fn remaining(&self) -> usize {
        match self {
            Of::Grpc(data) => data.remaining(),
            Of::Http(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Of::Grpc(data) => data.chunk(),
            Of::Http(data) => data.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Of::Grpc(data) => data.chunks_vectored(slices),
            Of::Http(data) => data.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Of::Grpc(data) => data.advance(count),
            Of::Http(data) => data.advance(count),
        }
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    request.version() == Version::HTTP_2
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use axum::Router;
    use axum::routing::get;

    fn discard() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    /// Serves `http` on a free port of a single-threaded runtime while `client` runs on a thread; returns what it does.
    fn with_server<T: Send + 'static>(http: Router, client: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let url = Url::parse("http://127.0.0.1:0").expect("well-formed");
            let sockets = bind(&[url], None).await.expect("a free port");
            let address = sockets[0].address().expect("of TCP");
            let (stop, stopped) = watch::channel(false);
            let serving =
                tokio::spawn(serve(sockets, Nothing::Ever, http, Limits::of_peers(), None, stopped, discard()));
            let result = tokio::task::spawn_blocking(move || client(address)).await.expect("the client returns");
            stop.send_replace(true);
            serving.await.expect("no panic").expect("no error");
            result
        })
    }

    fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).expect("somebody listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    #[test]
    fn http_1_is_answered_and_an_idle_connection_does_not_hold_up_the_stop() {
        let routes = Router::new().route("/", get(async || "hello"));
        let (answer, _idle) = with_server(routes, |address| {
            let idle = std::net::TcpStream::connect(address).expect("somebody listens");
            (exchange(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), idle)
        });
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    }

    #[test]
    fn grpc_over_http_2_goes_to_the_grpc_service() {
        let routes = Router::new().fallback(async || "not gRPC");
        let code = with_server(routes, |address| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("a URI");
                let channel = endpoint.connect().await.expect("somebody listens");
                let mut client = tonic::client::Grpc::new(channel);
                client.ready().await.expect("connected");
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
                let codec = tonic_prost::ProstCodec::<crate::pb::etcdserverpb::RangeRequest, ()>::default();
                let request = tonic::Request::new(Default::default());
                client.unary(request, path, codec).await.expect_err("nothing is served").code()
            })
        });
        assert_eq!(code, tonic::Code::Unimplemented);
    }
}
