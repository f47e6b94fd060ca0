//! Asks a running member for its health: what `everwatch --health-check URL` does.
//!
//! For containers made from nothing but the binary, where no curl and no shell is at hand. Blocking and small on purpose:
//! one GET, one answer, one deadline.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::tls;

/// Longest wait for a connection, and then for each part of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any answer has.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Gets `http[s]://host:port[/path]`, by default `/health`. `Ok` holds the body of a 200; everything else is an error.
pub fn ask_health(url: &str) -> Result<String> {
    let refused = |text: String| Error::new(ErrorKind::InvalidInput, text);
    let (secure, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(refused(format!("URL must start with http:// or https://: {url}"))),
    };
    let (host, path) = rest.find('/').map_or((rest, "/health"), |at| rest.split_at(at));
    let path = if path == "/" { "/health" } else { path };
    let mut last = refused(format!("no address for {host}"));
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| ask(stream, secure, host, path)) {
            Ok((200, body)) => return Ok(body),
            Ok((code, body)) => return Err(Error::other(format!("{code}: {}", body.trim_end()))),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(stream: TcpStream, secure: bool, host: &str, path: &str) -> Result<(u16, String)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if secure {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
        return get(tls::ask_anybody(name, stream)?, host, path);
    }
    get(stream, host, path)
}

fn get(mut stream: impl Read + Write, host: &str, path: &str) -> Result<(u16, String)> {
    // HTTP/1.0: the answer ends where the connection ends.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let malformed = || Error::new(ErrorKind::InvalidData, "answer is not HTTP");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let body = answer.split_once("\r\n\r\n").ok_or_else(malformed)?.1;
    Ok((code, body.to_owned()))
}
