//! What a client was told about TLS. Paths only: nothing is read before something is to be encrypted.

use std::path::PathBuf;

use tonic::transport::Endpoint;

use super::Error;

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

    /// The one place where an address becomes something to connect to, in the clear or encrypted.
    pub(super) fn endpoint(&self, address: &str) -> Result<Endpoint, Error> {
        if address.starts_with("https://") {
            return Err(Error::Endpoint(format!("{address} (this client does not speak TLS yet)")));
        }
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Endpoint::from_shared(url).map_err(|_| Error::Endpoint(address.to_owned()))
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
        assert!(Tls::default().endpoint("https://a:1").unwrap_err().to_string().contains("TLS"));
        assert!(Tls::default().endpoint("a:1").is_ok() && Tls::default().endpoint("http://a:1").is_ok());
    }
}
