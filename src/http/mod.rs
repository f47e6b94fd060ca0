//! The HTTP endpoints beside gRPC: health, version and metrics, and the [`gateway`] to gRPC itself.
//!
//! Paths, bodies and codes are etcd's, so that probes and dashboards need not change. The routers made here are pure
//! translation; what is true of the member is asked of a [`Probe`], and what clients want of its services. `listen.rs`
//! decides which requests come here.

mod access;
mod ask;
pub mod gateway;
mod health;
mod probe;
mod profile;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::get;

use crate::version;

pub use access::Access;
pub use ask::ask_health;
pub use gateway::Gateway;
pub use health::{ActiveAlarm, Probe};
pub(crate) use probe::{HandleProbe, UnfoundedProbe};
pub use profile::Profiles;

struct Endpoints<P> {
    probe: P,
    logger: slog::Logger,
}

/// Everything: for client URLs and for URLs of HTTP alone. Without a gateway, or profiles, nothing is found where they would be.
pub fn client_routes<P: Probe, S: gateway::Services>(
    probe: P,
    gateway: Option<Gateway<S>>,
    profiles: Option<Profiles>,
    access: Access,
    logger: slog::Logger,
) -> Router {
    let endpoints = Arc::new(Endpoints { probe, logger });
    let routes = with_health(gateway.map_or_else(Router::new, Gateway::routes));
    let routes = if let Some(profiles) = profiles { profiles.routes(routes) } else { routes };
    routes
        .route("/version", get(version_of::<P>))
        .fallback(async || not_found())
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(middleware::from_fn_with_state(Arc::new(access), at_the_door))
        .with_state(endpoints)
}

/// Metrics and health alone: for `--listen-metrics-urls`.
pub fn metrics_routes<P: Probe>(probe: P, logger: slog::Logger) -> Router {
    with_health(Router::new()).fallback(async || not_found()).with_state(Arc::new(Endpoints { probe, logger }))
}

/// The version alone: for peer URLs.
pub fn peer_routes<P: Probe>(probe: P, logger: slog::Logger) -> Router {
    Router::new()
        .route("/version", get(version_of::<P>))
        .fallback(async || not_found())
        .with_state(Arc::new(Endpoints { probe, logger }))
}

fn with_health<P: Probe>(router: Router<Arc<Endpoints<P>>>) -> Router<Arc<Endpoints<P>>> {
    router
        .route("/health", get(health::health::<P>))
        .route("/livez", get(health::livez::<P>))
        .route("/livez/{check}", get(health::livez_one::<P>))
        .route("/readyz", get(health::readyz::<P>))
        .route("/readyz/{check}", get(health::readyz_one::<P>))
        .route("/metrics", axum::routing::any(metrics::<P>))
}

/// Who may come, and who may read the answer. HEAD is not GET to etcd (axum would answer it).
async fn at_the_door(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response<Body> {
    if let Some(refusal) = access.refusal(&request) {
        return refusal;
    }
    let origin = access.origin(request.headers());
    let lenient = ["/metrics", "/v3", "/debug/pprof"];
    let strict = !lenient.iter().any(|path| request.uri().path().starts_with(path));
    let mut response = match *request.method() {
        Method::OPTIONS => Response::new(Body::empty()),
        Method::HEAD if strict => method_not_allowed(),
        _ => next.run(request).await,
    };
    // Where no HTTP follows there is nothing to read.
    if let Some(origin) = origin
        && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        let headers = response.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, fixed("POST, GET, OPTIONS, PUT, DELETE"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fixed("accept, content-type, authorization"));
    }
    response
}

/// `GET /version`.
async fn version_of<P: Probe>(State(endpoints): State<Arc<Endpoints<P>>>) -> Response<Body> {
    let cluster = endpoints.probe.cluster_version();
    let storage = if cluster.is_some() { version::CLUSTER } else { "unknown" };
    let cluster = cluster.as_deref().unwrap_or("not_decided");
    let body = format!(
        "{{\"etcdserver\":\"{}\",\"etcdcluster\":\"{cluster}\",\"storage\":\"{storage}\",\"everwatch\":\"{}\"}}",
        version::API,
        version::RELEASE
    );
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// `/metrics`; etcd serves it to every method.
async fn metrics<P: Probe>(State(endpoints): State<Arc<Endpoints<P>>>) -> Response<Body> {
    let mut response = text(StatusCode::OK, endpoints.probe.metrics());
    let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, form);
    response
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An error as Go's net/http writes it.
fn error(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = text(status, format!("{message}\n"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn not_found() -> Response<Body> {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed() -> Response<Body> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Member {
        no_leader: bool,
        no_quorum: bool,
        learner: bool,
        alarms: Vec<ActiveAlarm>,
    }

    impl Probe for Member {
        async fn linearizable_read(&self) -> Result<(), String> {
            if self.no_quorum { Err("etcdserver: request timed out".to_owned()) } else { Ok(()) }
        }
        async fn serializable_read(&self) -> Result<(), String> {
            Ok(())
        }
        fn has_leader(&self) -> bool {
            !self.no_leader
        }
        fn is_learner(&self) -> bool {
            self.learner
        }
        fn alarms(&self) -> Vec<ActiveAlarm> {
            self.alarms.clone()
        }
        fn cluster_version(&self) -> Option<String> {
            (!self.no_leader).then(|| "3.6.0".to_owned())
        }
        fn metrics(&self) -> String {
            "up 1\n".to_owned()
        }
        fn checked(&self, _: &'static str, _: &'static str, _: bool) {}
    }

    /// The answer of `member` as `code body`.
    fn ask_with(member: &Member, method: &str, path: &str) -> String {
        ask_profiled(member, None, method, path)
    }

    fn ask_profiled(member: &Member, profiles: Option<Profiles>, method: &str, path: &str) -> String {
        let gateway = None::<Gateway<Router>>;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let routes = client_routes(member.clone(), gateway, profiles, Access::default(), logger);
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("well-formed");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let response = routes.oneshot(request).await.expect("routes answer everything");
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.expect("a whole body").to_bytes();
            format!("{code} {}", String::from_utf8_lossy(&body))
        })
    }

    fn ask(member: &Member, path: &str) -> String {
        ask_with(member, "GET", path)
    }

    #[test]
    fn a_healthy_member_says_so() {
        let member = Member::default();
        assert_eq!(ask(&member, "/health"), "200 {\"health\":\"true\",\"reason\":\"\"}");
        assert_eq!(ask(&member, "/livez"), "200 ok\n");
        assert_eq!(ask(&member, "/readyz/linearizable_read"), "200 ok\n");
        assert_eq!(ask(&member, "/livez?verbose"), "200 [+]serializable_read ok\nok\n");
        assert_eq!(ask(&member, "/metrics"), "200 up 1\n");
        let version = ask(&member, "/version");
        assert!(version.starts_with("200 {\"etcdserver\":\"3.6.5\",\"etcdcluster\":\"3.6.0\""), "{version}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let lonely = Member { no_leader: true, no_quorum: true, ..Member::default() };
        assert_eq!(ask(&lonely, "/health"), "503 {\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n");
        assert_eq!(ask(&lonely, "/health?serializable=true"), "200 {\"health\":\"true\",\"reason\":\"\"}");
        assert!(ask(&lonely, "/version").contains("not_decided"));
        assert_eq!(ask(&lonely, "/livez"), "200 ok\n");
        let partitioned = Member { no_quorum: true, ..Member::default() };
        let reason = "503 {\"health\":\"false\",\"reason\":\"RANGE ERROR:etcdserver: request timed out\"}\n";
        assert_eq!(ask(&partitioned, "/health"), reason);
        assert_eq!(
            ask(&partitioned, "/readyz"),
            "503 [+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed \
             out\n[+]non_learner ok\n\n"
        );
        assert_eq!(ask(&partitioned, "/readyz?exclude=linearizable_read&exclude=nonsense"), "200 ok\n");
        let full = Member { alarms: vec![ActiveAlarm::NoSpace], ..Member::default() };
        assert_eq!(ask(&full, "/health"), "503 {\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n");
        assert_eq!(ask(&full, "/health?exclude=NOSPACE"), "200 {\"health\":\"true\",\"reason\":\"\"}");
        assert_eq!(ask(&full, "/readyz"), "200 ok\n");
        let corrupt = Member { alarms: vec![ActiveAlarm::Corrupt], learner: true, ..Member::default() };
        assert!(ask(&corrupt, "/readyz").contains("[-]data_corruption failed: alarm activated: CORRUPT\n"));
        assert!(ask(&corrupt, "/readyz").contains("[-]non_learner failed: "));
    }

    #[test]
    fn other_methods_and_paths_are_refused() {
        let member = Member::default();
        for method in ["POST", "PUT", "HEAD", "DELETE"] {
            assert!(ask_with(&member, method, "/health").starts_with("405 "), "{method}");
        }
        assert_eq!(ask_with(&member, "POST", "/version"), "405 Method Not Allowed\n");
        assert_eq!(ask_with(&member, "PUT", "/metrics"), "200 up 1\n");
        for path in [
            "/debug/pprof/",
            "/debug/pprof/profile",
            "/",
            "/nope",
            "/v2/keys",
            "/readyz/nope",
            "/metricsx",
            "/v3/kv/range",
        ] {
            assert_eq!(ask(&member, path), "404 404 page not found\n", "{path}");
        }
    }
    #[test]
    fn profiles_are_found_by_those_who_were_asked_for_them() {
        let member = Member::default();
        let ask = |path: &str| ask_profiled(&member, Some(Profiles), "GET", path);
        let page = ask("/debug/pprof/");
        assert!(page.starts_with("200 ") && page.contains("href=\"profile\""), "{page}");
        assert!(ask("/debug/pprof").starts_with("301 "));
        let words = ask("/debug/pprof/cmdline");
        assert!(words.starts_with("200 ") && words.contains(&std::env::args().next().unwrap()), "{words}");
        for others in ["heap", "goroutine", "nope"] {
            assert_eq!(ask(&format!("/debug/pprof/{others}")), "404 Unknown profile\n");
        }
    }
}
