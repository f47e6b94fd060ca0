//! Who may come by HTTP: pages of which origins (`--cors`), and under which names of this host (`--host-whitelist`).
//!
//! A browser lets a page read our answers if they say so. And a page whose own name has been made to point at this address
//! would need no such permission: it is known by the name that it asks for (DNS rebinding, CVE-2018-5702). gRPC is not
//! reached that way, and nothing of this concerns it.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::error;

/// What the flags say. An empty list allows everything, and so does `*` in it.
#[derive(Clone, Debug, Default)]
pub struct Access {
    origins: BTreeSet<String>,
    hosts: BTreeSet<String>,
}

impl Access {
    /// Of these origins, and to these names.
    pub fn new(origins: &[String], hosts: &[String]) -> Access {
        Access { origins: origins.iter().cloned().collect(), hosts: hosts.iter().cloned().collect() }
    }

    /// What a request is told that asks for a host of another name.
    pub(super) fn refusal(&self, request: &Request) -> Option<Response<Body>> {
        let authority = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
        };
        let host = without_port(authority);
        (!allows(&self.hosts, host)).then(|| error(StatusCode::MISDIRECTED_REQUEST, &misdirected(host)))
    }

    /// Who may read the answer to this request, as a header. None: only who needs no permission.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if allows(&self.origins, "*") {
            return Some(HeaderValue::from_static("*"));
        }
        let origin = headers.get(header::ORIGIN)?;
        origin.to_str().is_ok_and(|origin| allows(&self.origins, origin)).then(|| origin.clone())
    }
}

fn allows(list: &BTreeSet<String>, name: &str) -> bool {
    list.is_empty() || list.contains("*") || list.contains(name)
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, _)) if host.starts_with('[') && host.ends_with(']') => &host[1..host.len() - 1],
        Some((host, _)) if !host.contains([':', '[']) => host,
        _ => authority,
    }
}

fn misdirected(host: &str) -> String {
    format!(
        "
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist {host:?}

This requirement has been added to help prevent \"DNS Rebinding\" attacks (CVE-2018-5702).
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(origins: &str, hosts: &str) -> Access {
        let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
        Access::new(&list(origins), &list(hosts))
    }

    /// CVE-2018-1099.
    #[test]
    fn hosts_are_known_by_name_whatever_the_port() {
        let access = access("*", "localhost,::1,10.0.0.1");
        let refused = |host: &str| {
            let request =
                Request::builder().uri("/health").header("host", host).body(Body::empty()).expect("well-formed");
            access.refusal(&request).is_some()
        };
        for host in ["localhost", "localhost:2379", "[::1]:2379", "10.0.0.1:80", "::1"] {
            assert!(!refused(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:2379", "localhost.evil.example", "[::2]:2379", "localhost:1:2"] {
            assert!(refused(host), "{host}");
        }
        let any = Access::default();
        assert!(any.refusal(&Request::new(Body::empty())).is_none());
    }

    /// CVE-2018-1098.
    #[test]
    fn an_origin_is_told_that_it_may_read() {
        let of = |access: &Access, origin: Option<&'static str>| {
            let headers = origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin)));
            access.origin(&headers.into_iter().collect())
        };
        let some = access("http://a.example:80,http://b.example:80", "*");
        assert_eq!(of(&some, Some("http://b.example:80")).expect("allowed"), "http://b.example:80");
        assert_eq!(of(&some, Some("http://c.example:80")), None);
        assert_eq!(of(&some, None), None);
        assert_eq!(of(&Access::default(), None).expect("everybody"), "*");
    }
}
