//! Founders that find each other in another cluster, as etcd 3.6 has them do it.
//!
//! ```text
//! /_etcd/registry/<token>/_config/size        how many founders there will be; an operator has put it there
//! /_etcd/registry/<token>/members/<id>        <name>=<peer URL>[,<name>=<peer URL>], by each founder, under its id in hex
//! ```
//!
//! Founders are those whose keys were created first, so all of them come to the same list even if too many come. A founder that is started
//! again before it has data finds its own key, and waits on.
//!
//! The other cluster may be away: it is asked again, after a pause that grows to [`PAUSE_LONGEST`] (etcd's to four minutes).

use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::time::{sleep, timeout};

use super::Error;
use crate::client::ask::Ask;
use crate::client::resume::{News, Want};
use crate::client::{Client, Heard, Keepalive, Login, Settings, Watch};
use crate::cluster::{InitialCluster, member_id};
use crate::config::{Config, Registry};
use crate::pb::etcdserverpb::{PutRequest, RangeRequest};
use crate::pb::mvccpb::KeyValue;
use crate::tls::Dialer;

const PAUSE_SHORTEST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(16);

/// What the registry holds under one token.
#[derive(Debug, PartialEq, Eq)]
struct Book {
    /// How many founders there will be.
    size: usize,
    /// Those who are there, with their keys, first come first.
    founders: Vec<(String, String)>,
    /// The revision of all that.
    revision: i64,
}

/// Leaves this member's name there and waits for the other founders; their list.
pub(super) async fn join(asked: &Registry, config: &Config, logger: &Logger) -> Result<String, Error> {
    let registrar = Registrar::new(asked, config, logger)?;
    registrar.book().await?.require_place(&registrar.own_key)?;
    let value = registrar.own_value.clone();
    let put =
        || PutRequest { key: registrar.own_key.clone().into(), value: value.clone().into(), ..Default::default() };
    registrar.ask("register member itself", put).await;
    loop {
        let book = registrar.book().await?;
        book.require_place(&registrar.own_key)?;
        if book.founders.len() >= book.size {
            return book.list();
        }
        info!(logger, "waiting for peers from discovery service";
            "cluster-size" => book.size, "found-peers" => book.founders.len());
        registrar.wait_after(book.revision).await?;
    }
}

struct Registrar {
    client: Client,
    /// Everything under the token.
    prefix: String,
    own_key: String,
    own_value: String,
    patience: Duration,
    logger: Logger,
}

impl Registrar {
    fn new(asked: &Registry, config: &Config, logger: &Logger) -> Result<Registrar, Error> {
        let refused = |error: &dyn std::fmt::Display| Error::Registry(error.to_string());
        let dialer = match &asked.tls {
            Some(settings) => Dialer::new(settings.clone(), logger).map_err(|error| refused(&error))?,
            None => Dialer::plain(),
        };
        let scheme = if asked.tls.is_some() { "https" } else { "http" };
        let url = |endpoint: &String| match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("{scheme}://{endpoint}"),
        };
        let endpoints: Vec<String> = asked.endpoints.iter().map(url).collect();
        let settings = Settings {
            keepalive: Keepalive { interval: asked.keepalive_interval, timeout: asked.keepalive_timeout },
            connect_timeout: asked.dial_timeout,
            ..Settings::default()
        };
        let client = Client::dialling(&endpoints, 1, &settings, &dialer).map_err(|error| refused(&error))?;
        let login = asked.user.clone().map(|(name, password)| Login { name, password });

        let urls: Vec<String> = config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect();
        let mut named: Vec<String> = urls.iter().map(|url| format!("{}={url}", config.name)).collect();
        named.sort_unstable();
        let prefix = format!("/_etcd/registry/{}", asked.token.trim_matches('/'));
        Ok(Registrar {
            client: client.with_login(login),
            own_key: format!("{prefix}/members/{:x}", member_id(&urls, &asked.token).0),
            prefix,
            own_value: named.join(","),
            patience: asked.dial_timeout + asked.request_timeout,
            logger: logger.clone(),
        })
    }

    /// What the registry holds now.
    async fn book(&self) -> Result<Book, Error> {
        let key = format!("{}/_config/size", self.prefix);
        let size = || RangeRequest { key: key.clone().into(), ..Default::default() };
        let size = self.ask("cluster status check", size).await;
        let size = size.kvs.first().ok_or(Error::SizeNotFound)?;
        let size = str::from_utf8(&size.value).ok().and_then(|size| size.parse::<u32>().ok());
        let size = size.filter(|size| *size > 0).ok_or(Error::BadSize)?;
        let (from, to) = self.founders_range();
        let members = || RangeRequest { key: from.clone().into(), range_end: to.clone().into(), ..Default::default() };
        let members = self.ask("cluster status check", members).await;
        let revision = members.header.unwrap_or_default().revision;
        Ok(Book::new(size as usize, members.kvs, revision))
    }

    fn founders_range(&self) -> (String, String) {
        // '0' comes after '/'.
        (format!("{}/members/", self.prefix), format!("{}/members0", self.prefix))
    }

    /// Returns when a founder has come, or gone, after this revision. Or when that cannot be said any more.
    async fn wait_after(&self, revision: i64) -> Result<(), Error> {
        let (from, to) = self.founders_range();
        let want = Want { key: from.into(), range_end: to.into(), start_revision: revision + 1, ..Default::default() };
        let mut watch = Watch::new(self.client.clone(), [want], 0, 0);
        loop {
            match watch.next().await.map_err(|error| Error::Registry(error.to_string()))? {
                Some(Heard::Of(_, News::Created { .. } | News::Progress { .. }) | Heard::Moved(_)) => {}
                Some(Heard::Lost(status)) => {
                    warn!(self.logger, "lost the discovery service"; "why" => status.message());
                }
                Some(Heard::Of(_, News::Events(_) | News::Compacted { .. } | News::Ended { .. })) | None => {
                    return Ok(());
                }
            }
        }
    }

    /// Asks until there is an answer.
    async fn ask<Q: Ask>(&self, step: &str, question: impl Fn() -> Q) -> Q::Answer {
        let mut pause = PAUSE_SHORTEST;
        loop {
            // (Putting the same name twice is harmless.)
            let why = match timeout(self.patience, self.client.ask(question())).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            warn!(self.logger, "retry connecting to discovery service";
                "reason" => step, "why" => why, "backoff" => ?pause);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }
}

impl Book {
    fn new(size: usize, mut rows: Vec<KeyValue>, revision: i64) -> Book {
        rows.sort_by_key(|row| row.create_revision);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let founders = rows.iter().map(|row| (text(&row.key), text(&row.value)));
        // What is no name and URL is nobody's.
        Book { size, founders: founders.filter(|(_, value)| value.contains('=')).collect(), revision }
    }

    /// Whether the member of `key` is one of the founders, or can still become one.
    fn require_place(&self, key: &str) -> Result<(), Error> {
        let place = self.founders.iter().position(|(known, _)| known == key).unwrap_or(self.founders.len());
        if place < self.size { Ok(()) } else { Err(Error::Full) }
    }

    fn list(&self) -> Result<String, Error> {
        let values: Vec<&str> = self.founders.iter().take(self.size).map(|(_, value)| value.as_str()).collect();
        let list = values.join(",");
        InitialCluster::parse(&list).map(|_| list).map_err(|_| Error::InvalidUrl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, value: &str, create_revision: i64) -> KeyValue {
        KeyValue { key: key.to_owned().into(), value: value.to_owned().into(), create_revision, ..Default::default() }
    }

    #[test]
    fn founders_are_those_who_came_first() {
        let rows = vec![
            row("m/a", "a=http://h:1", 9),
            row("m/b", "b=http://h:2,b=http://h:3", 5),
            row("m/c", "c=http://h:4", 7),
            row("m/d", "nobody", 1),
        ];
        let book = Book::new(2, rows, 9);
        assert_eq!(book.list().unwrap(), "b=http://h:2,b=http://h:3,c=http://h:4");
        assert!(book.require_place("m/c").is_ok());
        for late in ["m/a", "m/e"] {
            assert!(matches!(book.require_place(late), Err(Error::Full)));
        }
        assert!(Book { size: 4, ..book }.require_place("m/e").is_ok());
        assert!(matches!(Book::new(1, vec![row("m/a", "a=nowhere", 1)], 1).list(), Err(Error::InvalidUrl)));
    }
}
