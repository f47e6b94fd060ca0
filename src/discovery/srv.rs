//! Founders that stand in DNS: `_etcd-server-ssl._tcp.<domain>` for https, `_etcd-server._tcp.<domain>` for http.
//!
//! Records have no names of members. This member is the one whose record leads to the address that it advertises; the others are called
//! by numbers until they say what they are called. Ids come from URLs alone, so all members come to the same ones.
//!
//! Unlike etcd, which names members anew for each of the two services, none is ever taken for a second URL of another.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use slog::{Logger, info, warn};
use tokio::net::lookup_host;

use super::Error;
use super::dns::{self, Service};
use crate::config::{Config, Dns, Scheme, Url};

/// What was found.
pub(super) struct Found {
    /// As in `--initial-cluster`.
    pub(super) list: String,
    /// Where this member is, by its records.
    pub(super) own: Vec<Url>,
}

/// Looks the founders up. This member has to be one of them.
pub(super) async fn look_up(asked: &Dns, config: &Config, logger: &Logger) -> Result<Found, Error> {
    let resolvers = match &asked.resolvers {
        Some(resolvers) => resolvers.clone(),
        None => dns::of_system(),
    };
    let mut advertised = Vec::new();
    for url in &config.initial_advertise_peer_urls {
        let address = address_of(&host_and_port(url)).await;
        let address = address.map_err(|why| Error::Dns(format!("lookup {url}: {why}")))?;
        advertised.push((url, address));
    }
    let (mut list, mut own, mut refused, mut numbers) = (Vec::new(), Vec::new(), Vec::new(), 0..);
    for (scheme, service) in [(Scheme::Https, "etcd-server-ssl"), (Scheme::Http, "etcd-server")] {
        let service = dns::with_suffix(service, &asked.service_suffix);
        let query = format!("_{service}._tcp.{}", asked.domain);
        let records = match dns::services(&query, &resolvers).await {
            Ok(records) => records,
            Err(why) => {
                refused.push(format!("error querying DNS SRV records for _{service} {why}"));
                continue;
            }
        };
        for Service { target, port } in records {
            let place = format!("{target}:{port}");
            let address = match address_of(&place).await {
                Ok(address) => address,
                Err(why) => {
                    refused.push(format!("lookup {target}: {why}"));
                    continue;
                }
            };
            let written = format!("{}://{place}", if scheme == Scheme::Https { "https" } else { "http" });
            match advertised.iter().find(|(_, at)| !at.is_disjoint(&address)) {
                Some((url, _)) if url.scheme != scheme => refused.push(format!(
                    "bootstrap at {written} from DNS for {service} has scheme mismatch with expected peer {url}"
                )),
                Some(_) => {
                    list.push(format!("{}={written}", config.name));
                    let urls = Url::parse_list(&written).map_err(|why| Error::Dns(why.to_string()))?;
                    own.extend(urls);
                }
                None => {
                    let number: u32 = numbers.next().expect("fewer records than numbers");
                    list.push(format!("{number}={written}"));
                }
            }
        }
    }
    for why in &refused {
        // Most have records for one of the two only.
        info!(logger, "looking up founders in DNS"; "why" => why);
    }
    if list.is_empty() {
        return Err(Error::Dns(refused.join("; ")));
    }
    if own.is_empty() {
        warn!(logger, "this member is not in DNS"; "found" => list.join(","));
        return Err(Error::Dns(format!("cannot find local etcd member {:?} in SRV records", config.name)));
    }
    Ok(Found { list: list.join(","), own })
}

fn host_and_port(url: &Url) -> String {
    let text = url.to_string();
    text.split_once("://").map_or(text.clone(), |(_, rest)| rest.trim_end_matches('/').to_owned())
}

/// All addresses that a name stands for.
async fn address_of(place: &str) -> Result<BTreeSet<SocketAddr>, String> {
    lookup_host(place).await.map(Iterator::collect).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Discovery;
    use crate::config::flags::{Request, Values};
    use crate::discovery::discover;
    use crate::discovery::dns::tests::name_server;

    fn config(line: &str, resolver: SocketAddr) -> Config {
        let line = line.split_whitespace().map(str::to_owned);
        let Ok(Request::Run(values)) = Values::read(line, []) else { panic!("flags that make sense") };
        let mut config = Config::new(&values).unwrap();
        let Some(Discovery::Dns(asked)) = &mut config.discovery else { panic!("it asks name servers") };
        asked.resolvers = Some(vec![resolver]);
        config
    }

    async fn found(line: &str, resolver: SocketAddr) -> Result<(String, String), String> {
        let logger = Logger::root(slog::Discard, slog::o!());
        let found = discover(&config(line, resolver), &logger).await.map_err(|error| error.to_string())?;
        let own: Vec<String> = found.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
        Ok((found.initial_cluster, own.join(",")))
    }

    #[tokio::test]
    async fn a_member_finds_itself_by_its_address_among_the_records() {
        let server = name_server(vec![
            ("_etcd-server._tcp.example.com", vec![2380, 2381, 2382]),
            ("_etcd-server-ssl-blue._tcp.example.com", vec![2380]),
        ])
        .await;
        let flags = "--name b --discovery-srv example.com --initial-advertise-peer-urls";
        let at = |port: u16| format!("{flags} http://localhost:{port}");
        let (list, own) = found(&at(2381), server).await.unwrap();
        assert_eq!(list, "0=http://127.0.0.1:2380,b=http://127.0.0.1:2381,1=http://127.0.0.1:2382");
        assert_eq!(own, "http://127.0.0.1:2381");
        let why = found(&at(2399), server).await.unwrap_err();
        assert_eq!(why, "error setting up initial cluster: cannot find local etcd member \"b\" in SRV records");

        let blue = format!("{flags} https://127.0.0.1:2380 --discovery-srv-name blue");
        assert_eq!(found(&blue, server).await.unwrap().0, "b=https://127.0.0.1:2380");
        let plain = format!("{} --discovery-srv-name blue", at(2380));
        let why = found(&plain, server).await.unwrap_err();
        assert!(why.contains("scheme mismatch with expected peer http://localhost:2380"), "{why}");
        let nowhere = at(2380).replace("example.com", "example.org");
        let why = found(&nowhere, server).await.unwrap_err();
        assert!(why.contains("error querying DNS SRV records for _etcd-server no such host"), "{why}");
    }
}
