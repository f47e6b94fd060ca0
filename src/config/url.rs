//! Addresses as flags carry them: `scheme://host:port`, lists of them, and the list of founding members.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

/// An address to listen on or to advertise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    /// How to speak there.
    pub scheme: Scheme,
    /// Host and port, or the path of a Unix socket; as typed.
    pub address: String,
}

/// How to speak at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// A Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

impl Url {
    /// Reads one address; the error is in etcd's words.
    pub fn parse(text: &str) -> Result<Url, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let scheme = match scheme {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {text}")),
        };
        if matches!(scheme, Scheme::Http | Scheme::Https) {
            let host_end = rest.find('/').unwrap_or(rest.len());
            let (authority, path) = rest.split_at(host_end);
            if split_port(authority).is_none() {
                return Err(format!("URL address does not have the form \"host:port\": {text}"));
            }
            if !path.is_empty() {
                return Err(format!("URL must not contain a path: {text}"));
            }
        } else if rest.is_empty() {
            return Err(format!("URL address does not name a socket: {text}"));
        }
        Ok(Url { scheme, address: rest.to_owned() })
    }

    /// Reads comma-separated addresses, in the order etcd keeps them in. Nothing at all is an empty list.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort_by_cached_key(Url::to_string);
        Ok(urls)
    }

    /// Whether TLS is spoken there.
    pub fn is_secure(&self) -> bool {
        matches!(self.scheme, Scheme::Https | Scheme::Unixs)
    }

    /// The file of a Unix socket, if it is one.
    pub fn socket_path(&self) -> Option<&Path> {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs).then(|| Path::new(&self.address))
    }

    /// The host, without brackets and port.
    pub fn host(&self) -> &str {
        split_port(&self.address).map_or("", |(host, _)| host)
    }

    /// Whether one can listen there: an IP address, `localhost`, or no host at all.
    pub fn names_own_address(&self) -> bool {
        matches!(self.scheme, Scheme::Unix | Scheme::Unixs)
            || matches!(self.host(), "" | "localhost")
            || self.host().parse::<IpAddr>().is_ok()
    }

    /// The socket address to listen on; of a host with several the first of IPv4, as Go does it.
    pub fn socket_addr(&self) -> io::Result<SocketAddr> {
        let address = match self.address.strip_prefix(':') {
            Some(port) => format!("[::]:{port}"),
            None => self.address.clone(),
        };
        let candidates: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
        let first = candidates.iter().find(|candidate| candidate.is_ipv4()).or(candidates.first());
        first.copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no address for {self}")))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// `host:port` or `[host]:port`. The port may be any word, as in Go; listening will tell.
fn split_port(authority: &str) -> Option<(&str, &str)> {
    let (host, port) = authority.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(host) => Some((host.strip_suffix(']')?, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

/// The founding members as `--initial-cluster` lists them: names in order, each with its URLs in order.
pub type Founders = Vec<(String, Vec<Url>)>;

/// Reads `name=url,name=url,...`; a name may come several times, once for each of its URLs.
pub(super) fn parse_founders(text: &str) -> Result<Founders, String> {
    let mut founders: std::collections::BTreeMap<String, Vec<Url>> = std::collections::BTreeMap::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        // Without a URL it is an empty one, which is refused like any other that is malformed.
        let (name, url) = part.trim().split_once('=').unwrap_or((part, ""));
        founders.entry(name.to_owned()).or_default().push(Url::parse(url)?);
    }
    for urls in founders.values_mut() {
        urls.sort_by_cached_key(Url::to_string);
    }
    Ok(founders.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in
            ["http://1.2.3.4:2379", "https://[::1]:2380", "http://localhost:1", "http://:1", "unix:///run/e.sock"]
        {
            assert_eq!(Url::parse(text).map(|url| url.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(Url::parse("https://[::1]:2380").map(|url| url.host().to_owned()), Ok("::1".to_owned()));
        let path = Url::parse("http://1.2.3.4:4/a").expect_err("a path");
        assert_eq!(path, "URL must not contain a path: http://1.2.3.4:4/a");
        for text in ["http://1.2.3.4", "http://::1:80", "http://", "https://[::1]"] {
            let why = format!("URL address does not have the form \"host:port\": {text}");
            assert_eq!(Url::parse(text), Err(why));
        }
        let list = Url::parse_list("http://b:1, http://a:2").expect("well-formed");
        assert_eq!(list.iter().map(Url::to_string).collect::<Vec<_>>(), ["http://a:2", "http://b:1"]);
    }

    #[test]
    fn only_own_addresses_can_be_listened_on() {
        let own = |text| Url::parse(text).expect("well-formed").names_own_address();
        assert!(own("http://0.0.0.0:1") && own("http://[::]:1") && own("http://localhost:1") && own("http://:1"));
        assert!(!own("http://foo.com:1"));
        let address = Url::parse("http://localhost:7").expect("well-formed").socket_addr().expect("resolves");
        assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], 7)));
    }

    #[test]
    fn founders_are_grouped_by_name() {
        let founders = parse_founders("b=http://b:1,a=http://a:2,a=http://a:1").expect("well-formed");
        let text = |urls: &[Url]| urls.iter().map(Url::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(founders[0].0, "a");
        assert_eq!(text(&founders[0].1), "http://a:1 http://a:2");
        assert_eq!(founders[1].0, "b");
        assert!(parse_founders("foo").is_err() && parse_founders("a=").is_err() && parse_founders("a=b").is_err());
    }
}
