//! What a client was told about TLS. Paths only: nothing is read before something is to be encrypted.

use std::path::PathBuf;

use slog::Logger;

use super::Error;
use crate::tls::{self, Dialer};

/// etcdctl's settings, under its names.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificates of those who may vouch for a server.
    pub cacert: Option<PathBuf>,
    /// The client's own certificate.
    pub cert: Option<PathBuf>,
    /// The key that belongs to it.
    pub key: Option<PathBuf>,
    /// Whoever the server is.
    pub insecure_skip_verify: bool,
    /// Nothing goes in the clear, unless an address says so itself.
    pub required: bool,
    /// The name that the certificate of every server must have; none: that by which it is addressed.
    pub server_name: Option<String>,
}

impl Tls {
    /// Refuses what cannot be meant: one of two files, or a file that is not there. Texts as etcdctl has them.
    pub fn check(&self) -> Result<(), String> {
        let shown = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |path| path.display().to_string());
        if self.cert.is_some() != self.key.is_some() {
            let (key, cert) = (shown(&self.key), shown(&self.cert));
            return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"));
        }
        match [&self.cert, &self.key, &self.cacert].into_iter().flatten().find(|path| !path.is_file()) {
            Some(path) => Err(format!("open {}: no such file or directory", path.display())),
            None => Ok(()),
        }
    }

    /// Whether anything was said.
    fn is_meant(&self) -> bool {
        self.required || [&self.cacert, &self.cert, &self.key].into_iter().any(Option::is_some)
    }

    /// The URL of an address. One that does not say how to speak there is spoken to as is meant for it.
    pub(super) fn url(&self, address: &str) -> String {
        match address.contains("://") || tls::socket(address).is_some() {
            true => address.to_owned(),
            false if self.is_meant() => format!("https://{address}"),
            false => format!("http://{address}"),
        }
    }

    /// What makes connections to these URLs. Nothing is read if none of them is to be encrypted.
    pub(super) fn dialer(&self, urls: &[String]) -> Result<Dialer, Error> {
        let secure = |url: &String| match tls::socket(url) {
            Some((secure, _)) => secure,
            None => url.starts_with("https://"),
        };
        if !urls.iter().any(secure) {
            return Ok(Dialer::plain());
        }
        let settings = tls::Settings {
            certificate: self.cert.clone(),
            key: self.key.clone(),
            authority: self.cacert.clone(),
            server_name: self.server_name.clone(),
            unverified: self.insecure_skip_verify,
            ..tls::Settings::default()
        };
        Dialer::new(settings, &Logger::root(slog::Discard, slog::o!())).map_err(Error::Tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_in_etcdctls_words() {
        let half = Tls { cert: Some("c".into()), ..Tls::default() };
        assert_eq!(half.check().unwrap_err(), "KeyFile and CertFile must both be present[key: , cert: c]");
        let gone = Tls { cacert: Some("/nope".into()), ..Tls::default() };
        assert_eq!(gone.check().unwrap_err(), "open /nope: no such file or directory");
    }

    #[test]
    fn an_address_alone_is_spoken_to_as_is_meant() {
        let (plain, secure) = (Tls::default(), Tls { cacert: Some("ca".into()), ..Tls::default() });
        assert_eq!([plain.url("a:1"), secure.url("a:1")], ["http://a:1", "https://a:1"]);
        assert_eq!([plain.url("unix:a"), secure.url("unix:///a")], ["unix:a", "unix:///a"]);
        assert_eq!([plain.url("https://a:1"), secure.url("http://a:1")], ["https://a:1", "http://a:1"]);
    }
}
