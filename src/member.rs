//! One member, put together: sockets, the server behind them, and what answers on which socket; then an orderly stop.
//!
//! The only place that knows `server`, `api`, `http` and `listen` at once. What runs in the member itself is listed in
//! [`crate::server`]; this adds the listeners, and the thread that writes the audit log. They stop on the stop signal, after a grace; those
//! of peers are aborted last, because peers never end their streams by themselves, and the thread when nobody is served any more. A member
//! that was removed from its cluster stops by itself.

use std::pin::pin;
use std::sync::Arc;

use slog::{Logger, info, warn};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::audit::{self, AuditLog, Auditor};
use crate::config::{Config, Url};
use crate::http::{Access, Gateway, HandleProbe, Profiles, UnfoundedProbe};
use crate::server::{Admission, Asking};
use crate::tls::{Acceptor, Dialer, self_signed};
use crate::{api, config, discovery, http, listen, server, tls, version};

/// Runs a member until it is told to stop. An error says why it could not start.
pub fn run(config: &Config, logger: &Logger) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, logger))
}

async fn serve(config: &Config, logger: &Logger) -> Result<(), Box<dyn std::error::Error>> {
    let mut termination = pin!(listen::Termination::new()?.wait());
    info!(logger, "starting"; "everwatch-version" => version::RELEASE, "api-version" => version::API,
        "name" => &config.name, "data-dir" => %config.data_dir.display());
    let audit_sink = config.audit_log.as_ref().map(audit::Sink::open).transpose()?;
    let access = Access::new(&config.cors, &config.host_whitelist);
    // Addresses first: a member that cannot listen should not touch its data.
    let of_clients =
        [&config.listen_client_urls[..], &config.listen_client_http_urls, &config.listen_metrics_urls].concat();
    let client_tls = acceptor(config, &config.client_tls, "client", &of_clients, logger)?;
    let peer_tls = acceptor(config, &config.peer_tls, "peer", &config.listen_peer_urls, logger)?;
    let dialer = peer_dialer(config, logger)?;
    let peer_sockets = listen::bind(&config.listen_peer_urls, peer_tls.as_ref()).await?;
    let client_sockets = listen::bind(&config.listen_client_urls, client_tls.as_ref()).await?;
    let http_sockets = listen::bind(&config.listen_client_http_urls, client_tls.as_ref()).await?;
    let metrics_sockets = listen::bind(&config.listen_metrics_urls, client_tls.as_ref()).await?;

    // A member with data knows its cluster.
    let discovered = match discovery::is_asked_for(config) && !server::bootstrap::has_data(config)? {
        true => tokio::select! {
            discovered = discovery::discover(config, logger) => Some(discovered?),
            signal = &mut termination => {
                info!(logger, "stopping"; "signal" => signal);
                info!(logger, "stopped");
                return Ok(());
            }
        },
        false => None,
    };
    let config = discovered.as_ref().unwrap_or(config);
    let admission = match Asking::new(config, dialer.clone(), logger)? {
        None => Admission::Resident,
        Some(asking) => {
            // Those who are asked ask, too, and whoever looks after this member shall see what it does. What is served here
            // ends with this block.
            let mut meanwhile = JoinSet::new();
            let peers = Routes::new(asking.peer_grpc()).prepare();
            serve_unfounded(&mut meanwhile, &peer_sockets, peers, http::peer_routes, logger)?;
            let sockets = if http_sockets.is_empty() { &client_sockets } else { &http_sockets };
            let routes = |probe, logger| {
                let gateway = config.grpc_gateway.then(|| Gateway::new(listen::Nothing::Yet, config.request_bytes_max));
                http::client_routes(probe, gateway, config.pprof.then_some(Profiles), access.clone(), logger)
            };
            serve_unfounded(&mut meanwhile, sockets, listen::Nothing::Yet, routes, logger)?;
            serve_unfounded(&mut meanwhile, &metrics_sockets, listen::Nothing::Yet, http::metrics_routes, logger)?;
            tokio::select! {
                admission = asking.admission() => admission?,
                signal = &mut termination => {
                    info!(logger, "stopping"; "signal" => signal);
                    info!(logger, "stopped");
                    return Ok(());
                }
            }
        }
    };

    let (handle, tasks) = server::start(config, &admission, &dialer, logger)?;
    let audit_log =
        audit_sink.map(|sink| AuditLog::start(sink, handle.metrics().clone(), logger.clone())).transpose()?;
    let (stop, stopped) = watch::channel(false);
    let probe = || HandleProbe::new(handle.clone());
    let peer_listener = tokio::spawn(listen::serve(
        peer_sockets,
        Routes::new(tasks.peer_grpc()).prepare(),
        http::peer_routes(probe(), logger.clone()),
        listen::Limits::of_peers(),
        None,
        stopped.clone(),
        logger.clone(),
    ));

    // What was committed before the restart is carried out before anybody is answered.
    tasks.recovered().await;
    if config.corrupt_checks.before_serving {
        tasks.compare_with_peers(logger).await?;
    }
    let watches = |thread| tasks.watches(thread);
    let places = config.client_connections_max.map(|max| listen::Places::new(max, handle.metrics().clone()));
    let mut edge = Edge {
        listeners: JoinSet::new(),
        threads: config.edge_threads.unwrap_or(1),
        limits: listen::Limits::of_clients(config, places, handle.throttle()),
        audit: audit_log.as_ref().map(AuditLog::auditor),
        stopped,
        logger: logger.clone(),
    };
    let grpc = api::routes(handle.clone(), config);
    let gateway = config.grpc_gateway.then(|| Gateway::new(grpc.clone(), config.request_bytes_max));
    let routes = http::client_routes(probe(), gateway, config.pprof.then_some(Profiles), access, logger.clone());
    if http_sockets.is_empty() {
        edge.listen(client_sockets, grpc, routes, watches)?;
    } else {
        edge.listen(client_sockets, grpc, listen::Nothing::Ever, watches)?;
        edge.listen_here(http_sockets, listen::Nothing::Ever, routes);
    }
    // Whoever looks after the member shall find a place whatever others do.
    edge.limits.places = None;
    edge.listen_here(metrics_sockets, listen::Nothing::Ever, http::metrics_routes(probe(), logger.clone()));

    let announce = async {
        tasks.ready().await;
        info!(logger, "ready to serve client requests");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        signal = &mut termination => info!(logger, "stopping"; "signal" => signal),
        () = tasks.removed() => info!(logger, "stopping: the member has been permanently removed from the cluster"),
        () = announce => {}
    }

    tasks.retire().await;
    let _ = stop.send(true);
    while edge.listeners.join_next().await.is_some() {}
    tasks.stop().await;
    peer_listener.abort();
    // Nobody is left who could be noted: what waits is written.
    drop(audit_log);
    info!(logger, "stopped");
    Ok(())
}

/// TLS for the sockets of one kind, where there is one that speaks it.
fn acceptor(
    config: &Config,
    tls: &config::Tls,
    kind: &str,
    urls: &[Url],
    logger: &Logger,
) -> Result<Option<Arc<Acceptor>>, Box<dyn std::error::Error>> {
    let secure: Vec<&Url> = urls.iter().filter(|url| url.is_secure()).collect();
    if !tls.settings.is_empty() && secure.len() < urls.len() {
        warn!(logger, "scheme is HTTP while key and cert files are present; ignoring key and cert files"; "for" => kind);
    }
    if tls.settings.certificate_needed && secure.len() < urls.len() {
        warn!(logger, "scheme is HTTP while --client-cert-auth is enabled; ignoring client cert auth for this URL"; "for" => kind);
    }
    if secure.is_empty() {
        return Ok(None);
    }
    let mut settings = tls.settings.clone();
    if tls.automatic {
        let hosts: Vec<String> =
            secure.iter().map(|url| host_of(url).to_owned()).filter(|host| !host.is_empty()).collect();
        let (certificate, key) = self_signed(&config.data_dir.join("fixtures").join(kind), &hosts, tls.years)?;
        warn!(logger, "a certificate that nobody vouches for encrypts and says nothing of who is at the other end";
            "for" => kind, "cert-file" => %certificate.display());
        (settings.certificate, settings.key) = (Some(certificate), Some(key));
    }
    info!(logger, "TLS"; "for" => kind, "cert" => settings.certificate.as_ref().map(|path| path.display().to_string()),
        "client-cert-auth" => settings.certificate_needed,
        "trusted-ca" => settings.authority.as_ref().map(|path| path.display().to_string()));
    Ok(Some(Arc::new(Acceptor::new(settings, logger)?)))
}

/// The name that a certificate for this place has to have. Who comes by a file asks for `localhost`.
fn host_of(url: &Url) -> &str {
    if url.socket_path().is_some() { "localhost" } else { url.host() }
}

/// What connects to the other members.
fn peer_dialer(config: &Config, logger: &Logger) -> Result<Dialer, String> {
    let tls = &config.peer_tls;
    // With certificates that are made nobody could verify the others'.
    Dialer::new(tls::Settings { unverified: tls.automatic, ..tls.settings.clone() }, logger)
}

/// Serves on the same sockets before there is a member behind them, for as long as the task is kept.
fn serve_unfounded<G: listen::Answer, H: listen::Answer>(
    tasks: &mut JoinSet<std::io::Result<()>>,
    sockets: &[listen::Socket],
    grpc: G,
    routes: impl FnOnce(UnfoundedProbe, Logger) -> H,
    logger: &Logger,
) -> std::io::Result<()> {
    let sockets = sockets.iter().map(listen::Socket::try_clone).collect::<std::io::Result<Vec<_>>>()?;
    let routes = routes(UnfoundedProbe, logger.clone());
    let limits = listen::Limits::of_peers();
    let logger = logger.clone();
    tasks.spawn(async move {
        // It ends when the task does.
        let (_stop, stopped) = watch::channel(false);
        listen::serve(sockets, grpc, routes, limits, None, stopped, logger).await
    });
    Ok(())
}

/// Where clients are answered: on the main runtime, or on threads with a runtime each.
struct Edge {
    listeners: JoinSet<std::io::Result<()>>,
    threads: usize,
    limits: listen::Limits,
    audit: Option<Auditor>,
    stopped: watch::Receiver<bool>,
    logger: Logger,
}

impl Edge {
    /// Serves on the edge's threads, each with the same sockets: the system shares connections out. `watches` belongs beside
    /// them on each thread.
    fn listen<G, H, W>(
        &mut self,
        sockets: Vec<listen::Socket>,
        grpc: G,
        http: H,
        watches: impl Fn(usize) -> W,
    ) -> std::io::Result<()>
    where
        G: listen::Answer + Sync,
        H: listen::Answer + Sync,
        W: Future<Output = ()> + Send + 'static,
    {
        if self.threads <= 1 {
            self.listen_here(sockets, grpc, http);
            return Ok(());
        }
        for number in 0..self.threads {
            let sockets = sockets.iter().map(listen::Socket::try_clone).collect::<std::io::Result<Vec<_>>>()?;
            let (stopped, logger) = (self.stopped.clone(), self.logger.clone());
            let (limits, audit) = (self.limits.clone(), self.audit.clone());
            let serving = listen::serve(sockets, grpc.clone(), http.clone(), limits, audit, stopped, logger);
            let watches = watches(number);
            let (ended, end) = tokio::sync::oneshot::channel();
            std::thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let serving = async {
                    let watches = tokio::spawn(watches);
                    let served = serving.await;
                    watches.abort();
                    served
                };
                let _ = ended.send(runtime.and_then(|runtime| runtime.block_on(serving)));
            })?;
            self.listeners.spawn(async { end.await.unwrap_or(Ok(())) });
        }
        Ok(())
    }

    /// Serves on the main runtime.
    fn listen_here<G, H>(&mut self, sockets: Vec<listen::Socket>, grpc: G, http: H)
    where
        G: listen::Answer + Sync,
        H: listen::Answer + Sync,
    {
        let (stopped, logger) = (self.stopped.clone(), self.logger.clone());
        self.listeners.spawn(listen::serve(
            sockets,
            grpc,
            http,
            self.limits.clone(),
            self.audit.clone(),
            stopped,
            logger,
        ));
    }
}
