//! One question to a name server: where is a service? (RFC 1035 and 2782.)
//!
//! A page of our own rather than a resolver's crate: it is asked twice in the life of a member or of a command, for one type of record, without a cache.
//! Answers come from the network: every length is checked, pointers only lead back, and what makes no sense is no answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server has for one answer, and how often each is asked: as Go's resolver has it.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;

const PORT: u16 = 53;
const HEADER_BYTES: usize = 12;
/// Without extensions no datagram is longer. What is longer is asked for over TCP.
const DATAGRAM_BYTES_MAX: usize = 512;
const TYPE_SRV: u16 = 33;
const CLASS_INTERNET: u16 = 1;
const NAME_BYTES_MAX: usize = 255;
const NO_SUCH_NAME: u8 = 3;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) target: String,
    pub(super) port: u16,
}

/// The servers that this system asks.
pub(super) fn of_system() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = named.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    let found: Vec<SocketAddr> = addresses.map(|address| SocketAddr::new(address, PORT)).collect();
    // As the C library has it.
    if found.is_empty() { vec![SocketAddr::from(([127, 0, 0, 1], PORT))] } else { found }
}

/// A service as it is called where several clusters share a domain.
pub(super) fn with_suffix(service: &str, suffix: &str) -> String {
    if suffix.is_empty() { service.to_owned() } else { format!("{service}-{suffix}") }
}

/// Where the service called `name` is, in the order in which it should be tried. An error says why that is not known.
pub(super) async fn services(name: &str, servers: &[SocketAddr]) -> Result<Vec<Service>, String> {
    let mut why = "no name server".to_owned();
    for server in servers.iter().cycle().take(servers.len() * ATTEMPTS) {
        let id = getrandom::u32().map_err(|error| error.to_string())? as u16;
        let query = query(id, name).ok_or_else(|| format!("{name:?} is no name of a service"))?;
        let answer = match timeout(PATIENCE, ask(*server, &query)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err("i/o timeout".to_owned()),
        };
        match answer.and_then(|answer| read(&answer, &query).ok_or_else(|| "cannot unmarshal DNS message".to_owned())) {
            Ok(Answer::Found(found)) => return Ok(found),
            Ok(Answer::NoSuchName) => return Err("no such host".to_owned()),
            Ok(Answer::Failed) => why = format!("server misbehaving ({server})"),
            Err(error) => why = format!("{error} ({server})"),
        }
    }
    Err(why)
}

async fn ask(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket =
        UdpSocket::bind(SocketAddr::new(if server.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0)).await?;
    // From now on nobody else is heard.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let len = socket.recv(&mut answer).await?;
        // Anything else answers a question that was given up.
        if len >= HEADER_BYTES && answer[..2] == query[..2] {
            answer.truncate(len);
            break;
        }
    }
    let truncated = answer[2] & 2 != 0;
    if !truncated {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// The question; none if `name` cannot be one.
fn query(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    // Recursion is desired; one question.
    for number in [id, 0x0100, 1, 0, 0, 0] {
        out.extend(number.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
        out.push(len);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(TYPE_SRV.to_be_bytes());
    out.extend(CLASS_INTERNET.to_be_bytes());
    (out.len() <= HEADER_BYTES + NAME_BYTES_MAX + 4).then_some(out)
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Found(Vec<Service>),
    NoSuchName,
    /// The server could not, or would not.
    Failed,
}

/// What a message answers; none if it is no answer to `query`.
fn read(message: &[u8], query: &[u8]) -> Option<Answer> {
    let is_response = message.get(2)? & 0x80 != 0;
    if !is_response || message.get(..2)? != &query[..2] {
        return None;
    }
    match message.get(3)? & 0x0f {
        0 => {}
        NO_SUCH_NAME => return Some(Answer::NoSuchName),
        _ => return Some(Answer::Failed),
    }
    let questions = u16_at(message, 4)?;
    let answers = u16_at(message, 6)?;
    let mut at = HEADER_BYTES;
    for _ in 0..questions {
        at = name(message, at)?.1 + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        // Whose record it is does not matter: it may be an alias of what was asked for.
        let after = name(message, at)?.1;
        let (kind, class) = (u16_at(message, after)?, u16_at(message, after + 2)?);
        let len = usize::from(u16_at(message, after + 8)?);
        let data = after + 10;
        if kind == TYPE_SRV && class == CLASS_INTERNET {
            let (priority, weight) = (u16_at(message, data)?, u16_at(message, data + 2)?);
            let (target, end) = name(message, data + 6)?;
            if end > data + len {
                return None;
            }
            found.push((priority, std::cmp::Reverse(weight), Service { target, port: u16_at(message, data + 4)? }));
        }
        at = data + len;
    }
    // The target of no name says that there is no such service.
    found.retain(|(_, _, service)| !service.target.is_empty());
    found.sort_by_key(|(priority, weight, _)| (*priority, *weight));
    let found: Vec<Service> = found.into_iter().map(|(_, _, service)| service).collect();
    Some(if found.is_empty() { Answer::NoSuchName } else { Answer::Found(found) })
}

/// The name that stands at `at`, and where what follows it stands.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut out = String::new();
    let mut after = None;
    loop {
        let len = usize::from(*message.get(at)?);
        match len {
            0 => return Some((out, after.unwrap_or(at + 1))),
            1..=63 => {
                let label = str::from_utf8(message.get(at + 1..at + 1 + len)?).ok()?;
                if out.len() + 1 + len > NAME_BYTES_MAX {
                    return None;
                }
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(label);
                at += 1 + len;
            }
            // A pointer. It leads back, or it could lead around for ever.
            192.. => {
                let to = usize::from(u16_at(message, at)? & 0x3fff);
                after.get_or_insert(at + 2);
                at = Some(to).filter(|to| *to < at)?;
            }
            _ => return None,
        }
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A name server that knows these services: name, ports at 127.0.0.1. What it hears is answered until the test ends.
    pub(in crate::discovery) async fn name_server(known: Vec<(&'static str, Vec<u16>)>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut query).await {
                let name = asked_for(&query[..len]);
                let ports = known.iter().find(|(service, _)| *service == name).map(|(_, ports)| ports.clone());
                let answer = answer(&query[..len], ports.as_deref(), "127.0.0.1.");
                let _ = socket.send_to(&answer, from).await;
            }
        });
        address
    }

    /// The name in a query.
    fn asked_for(query: &[u8]) -> String {
        name(query, HEADER_BYTES).expect("we wrote it").0
    }

    /// An answer: the service is at `target`, at these ports; or there is none of that name.
    fn answer(query: &[u8], ports: Option<&[u16]>, target: &str) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2] |= 0x80;
        let Some(ports) = ports else {
            out[3] |= NO_SUCH_NAME;
            return out;
        };
        out[6..8].copy_from_slice(&(ports.len() as u16).to_be_bytes());
        for port in ports {
            // Its name is that in the question.
            out.extend([0xc0, HEADER_BYTES as u8]);
            let mut data = [0u16, 10, *port].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
            for label in target.trim_end_matches('.').split('.') {
                data.push(label.len() as u8);
                data.extend(label.as_bytes());
            }
            data.push(0);
            out.extend(TYPE_SRV.to_be_bytes());
            out.extend(CLASS_INTERNET.to_be_bytes());
            out.extend(60u32.to_be_bytes());
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    #[test]
    fn answers_are_read_and_cut_or_twisted_ones_are_none() {
        let query = query(7, "_etcd-server._tcp.example.com.").unwrap();
        assert_eq!(asked_for(&query), "_etcd-server._tcp.example.com");
        let whole = answer(&query, Some(&[2380, 2381]), "a.example.com.");
        let service = |port| Service { target: "a.example.com".to_owned(), port };
        assert_eq!(read(&whole, &query), Some(Answer::Found(vec![service(2380), service(2381)])));
        assert_eq!(read(&answer(&query, None, ""), &query), Some(Answer::NoSuchName));
        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len], &query), None, "cut to {len}");
        }
        for at in 0..whole.len() {
            for value in [0, 0xff, 0xc0, whole[at] ^ 1] {
                let mut twisted = whole.clone();
                twisted[at] = value;
                let _ = read(&twisted, &query); // whatever it makes of it, it ends
            }
        }
        assert_eq!(read(&query, &query), None, "a question is no answer");
        let mut around = whole;
        let at = query.len();
        around[at..at + 2].copy_from_slice(&(0xc000 | at as u16).to_be_bytes());
        assert_eq!(read(&around, &query), None, "a pointer to itself");
        for name in ["", "a..b", &"x".repeat(64), &"abcdefg.".repeat(40)] {
            assert_eq!(super::query(7, name), None, "{name:?}");
        }
    }

    #[tokio::test]
    async fn a_long_answer_is_asked_for_again_over_tcp() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let ports: Vec<u16> = (1..=40).collect();
        let expected = ports.clone();
        let serving = tokio::spawn(async move {
            let mut query = [0; 512];
            let (len, from) = udp.recv_from(&mut query).await.unwrap();
            let mut short = answer(&query[..len], Some(&[]), "");
            short[2] |= 2;
            udp.send_to(&short, from).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let long = answer(&query, Some(&ports), "a.example.com");
            stream.write_all(&[&(long.len() as u16).to_be_bytes()[..], &long].concat()).await.unwrap();
        });
        let found = services("_etcd-server._tcp.example.com", &[address]).await.unwrap();
        assert_eq!(found.iter().map(|service| service.port).collect::<Vec<_>>(), expected);
        serving.await.unwrap();
    }
}
