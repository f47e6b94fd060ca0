//! `/debug/pprof/`: where the member's CPU time goes, for tools that read Go's profiles (`--enable-pprof`).
//!
//! ```text
//! go tool pprof http://127.0.0.1:2379/debug/pprof/profile?seconds=10
//! ```
//!
//! Paths and codes are those of a Go program, and so of etcd. There is a CPU profile and the command line; what else a Go program
//! has there is about Go's runtime, and not found here. Nothing is installed and no signal comes before somebody asks for a profile;
//! while one is taken, the member is interrupted [`SAMPLES_PER_SECOND`] times in a second of its CPU time, in one of the threads that
//! run. One is taken at a time. The crate wants a directory for temporary files, and leaves an empty file there.
//!
//! Deliberately missing: compression, which readers do without; a bound on the time, as in Go: whoever asks for an hour waits for it, and
//! it ends when he goes.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::any;
use pprof::ProfilerGuardBuilder;

use super::{error, text};

mod encode;

/// Not 100, so that it does not keep step with what happens a hundred times in a second.
const SAMPLES_PER_SECOND: i32 = 99;
/// As long as Go takes if nobody says how long.
const SECONDS: u64 = 30;
/// Unwinding is not safe from within these: samples that strike there are left out.
const NOT_WITHIN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// The paths that are served.
pub struct Profiles;

impl Profiles {
    pub(super) fn routes<S: Clone + Send + Sync + 'static>(self, router: Router<S>) -> Router<S> {
        router
            .route("/debug/pprof", any(async || to_index()))
            .route("/debug/pprof/", any(async || index()))
            .route("/debug/pprof/cmdline", any(async || text(StatusCode::OK, command_line())))
            .route("/debug/pprof/profile", any(profile))
            .route("/debug/pprof/{other}", any(async || error(StatusCode::NOT_FOUND, "Unknown profile")))
    }
}

fn to_index() -> Response<Body> {
    let mut response = text(StatusCode::MOVED_PERMANENTLY, String::new());
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/debug/pprof/"));
    response
}

fn index() -> Response<Body> {
    let page = "<html><head><title>/debug/pprof/</title></head><body>/debug/pprof/<br>\n\
                <a href=\"cmdline\">cmdline</a>: the command line<br>\n\
                <a href=\"profile\">profile</a>: CPU profile; its length is the GET parameter seconds\n</body></html>\n";
    let mut response = text(StatusCode::OK, page.to_owned());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

/// Its words, with a zero between any two.
fn command_line() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join("\0")
}

async fn profile(request: Request) -> Response<Body> {
    let length = Duration::from_secs(seconds(request.uri().query().unwrap_or_default()));
    // Both ends read the program's own file: not on a thread that serves.
    let sampler = ProfilerGuardBuilder::default().frequency(SAMPLES_PER_SECOND);
    let begun = tokio::task::spawn_blocking(move || sampler.blocklist(&NOT_WITHIN).build()).await;
    let sampling = match begun {
        Ok(Ok(sampling)) => sampling,
        Ok(Err(pprof::Error::Running)) => return failed("cpu profiling already in use"),
        Ok(Err(why)) => return failed(&why.to_string()),
        Err(_) => return failed("the member stops"),
    };
    tokio::time::sleep(length).await;
    let written = tokio::task::spawn_blocking(move || sampling.report().build().map(|report| encode::encode(&report)));
    match written.await {
        Ok(Ok(profile)) => {
            let mut response = Response::new(Body::from(profile));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"profile\""));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
            response
        }
        Ok(Err(why)) => failed(&why.to_string()),
        Err(_) => failed("the member stops"),
    }
}

fn failed(why: &str) -> Response<Body> {
    error(StatusCode::INTERNAL_SERVER_ERROR, &format!("Could not enable CPU profiling: {why}"))
}

/// How long: what is no number, or none, is as if nothing was said.
fn seconds(query: &str) -> u64 {
    let given = query.split('&').find_map(|pair| pair.strip_prefix("seconds="));
    given.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0).unwrap_or(SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_as_long_as_was_asked_for_or_as_go_would() {
        assert_eq!(["seconds=5", "debug=1&seconds=2", "", "seconds=0", "seconds=x"].map(seconds), [5, 2, 30, 30, 30]);
    }
}
