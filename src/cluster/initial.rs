//! The members that `--initial-cluster` names: `a=http://1.2.3.4:2380,b=http://1.2.3.5:2380`.
//!
//! They are those who found a cluster, or all members of a running one that this member joins. A name may stand more than once: that member has several URLs. Errors are worded as etcd words them, for they are what
//! an operator searches for. Unlike etcd, host names are compared as written and not looked up: `localhost` is not
//! `127.0.0.1` here, and founding a cluster does not depend on a name server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{cluster_id, member_id};
use crate::pb::everwatchpb::MemberRecord;
use crate::types::{ClusterId, MemberId};

/// Names and peer URLs of the members of a cluster. URLs of a member are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    members: BTreeMap<String, Vec<String>>,
}

/// Why a cluster cannot be founded or joined like this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A URL is not one a peer can have.
    Url(String),
    /// This member's name does not stand in the list.
    NameMissing(String),
    /// The list has other URLs of this member than it advertises; the text says which.
    UrlMismatch(String),
    /// A URL stands twice in the list, given here.
    DuplicateUrl(String),
    /// The running cluster, given here as etcd prints it, has other members than the list; why that is seen.
    OtherMembers {
        /// The cluster.
        cluster: String,
        /// The difference.
        why: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Url(what) => write!(f, "error setting up initial cluster: {what}"),
            Error::NameMissing(name) => {
                write!(f, "couldn't find local name {name:?} in the initial cluster configuration")
            }
            Error::UrlMismatch(what) => f.write_str(what),
            Error::DuplicateUrl(list) => write!(f, "initial cluster {list} has duplicate url"),
            Error::OtherMembers { cluster, why } => write!(f, "error validating peerURLs {cluster}: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl InitialCluster {
    /// Reads the flag. An empty one names nobody.
    pub fn parse(list: &str) -> Result<InitialCluster, Error> {
        let mut members: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let (name, url) = item.split_once('=').unwrap_or((item, ""));
            let url = url.trim();
            check_url(url).map_err(Error::Url)?;
            members.entry(name.to_owned()).or_default().push(url.to_owned());
        }
        members.values_mut().for_each(|urls| urls.sort_unstable());
        Ok(InitialCluster { members })
    }

    /// Whether the member called `name`, which advertises `peer_urls`, can be one of these.
    pub fn check(&self, name: &str, peer_urls: &[String]) -> Result<(), Error> {
        let listed = self.members.get(name).ok_or_else(|| Error::NameMissing(name.to_owned()))?;
        check_match(name, peer_urls, listed).map_err(Error::UrlMismatch)?;
        self.check_joining(name)
    }

    /// Whether the member called `name` can join these. What it advertises does not matter: its URLs were given when it was added.
    pub fn check_joining(&self, name: &str) -> Result<(), Error> {
        if !self.members.contains_key(name) {
            return Err(Error::NameMissing(name.to_owned()));
        }
        let mut seen = BTreeSet::new();
        if self.members.values().flatten().any(|url| !seen.insert(url)) {
            return Err(Error::DuplicateUrl(self.to_string()));
        }
        Ok(())
    }

    /// The id of the member called `name` in a running cluster whose table of members is `table`. The list has to name the same
    /// members, by their URLs: the names there are what they call themselves, and a new one has none yet.
    pub fn join(&self, name: &str, cluster: ClusterId, table: &[MemberRecord]) -> Result<MemberId, Error> {
        let other = |why| Error::OtherMembers { cluster: describe(cluster, table), why };
        if table.len() != self.members.len() {
            return Err(other("member count is unequal".to_owned()));
        }
        let mut own = None;
        for record in table {
            let mut urls = record.peer_urls.clone();
            urls.sort_unstable();
            match self.members.iter().find(|(_, listed)| **listed == urls) {
                Some((listed, _)) if listed == name => own = Some(MemberId(record.id)),
                Some(_) => {}
                None => {
                    return Err(other(format!(
                        "PeerURLs: no match found for existing member ({}, {})",
                        MemberId(record.id),
                        bracketed(&record.peer_urls)
                    )));
                }
            }
        }
        own.ok_or_else(|| Error::NameMissing(name.to_owned()))
    }

    /// The founding members' rows, by id.
    pub fn records(&self, token: &str) -> Vec<MemberRecord> {
        let record = |(name, peer_urls): (&String, &Vec<String>)| MemberRecord {
            id: member_id(peer_urls, token).0,
            name: name.clone(),
            peer_urls: peer_urls.clone(),
            ..Default::default()
        };
        let mut records: Vec<MemberRecord> = self.members.iter().map(record).collect();
        records.sort_unstable_by_key(|record| record.id);
        records
    }

    /// The id of the member called `name`.
    pub fn member_id(&self, name: &str, token: &str) -> Option<MemberId> {
        Some(member_id(self.members.get(name)?, token))
    }

    /// The id of the cluster they found.
    pub fn cluster_id(&self, token: &str) -> ClusterId {
        cluster_id(self.members.values().map(|urls| member_id(urls, token)))
    }

    /// Names with their URLs, by name.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (&str, &[String])> {
        self.members.iter().map(|(name, urls)| (name.as_str(), urls.as_slice()))
    }
}

impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, urls) in &self.members {
            for url in urls {
                write!(f, "{comma}{name}={url}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// A table of members as etcd prints it.
fn describe(cluster: ClusterId, table: &[MemberRecord]) -> String {
    let members: Vec<String> = table
        .iter()
        .map(|member| {
            format!(
                "&{{ID:{} RaftAttributes:{{PeerURLs:{} IsLearner:{}}} Attributes:{{Name:{} ClientURLs:{}}}}}",
                MemberId(member.id),
                bracketed(&member.peer_urls),
                member.is_learner,
                member.name,
                bracketed(&member.client_urls)
            )
        })
        .collect();
    format!("{{ClusterID:{cluster} Members:{} RemovedMemberIDs:[]}}", bracketed(&members))
}

fn bracketed(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// Whether a URL can be one of a peer's: a scheme we speak, a host and a port, and nothing else. The error says what is wrong.
pub fn check_url(url: &str) -> Result<(), String> {
    let scheme = scheme(url).ok_or_else(|| format!("parse {url:?}: first path segment in URL cannot contain colon"))?;
    match scheme {
        "http" | "https" => {
            let rest = url[scheme.len() + 1..].strip_prefix("//").unwrap_or("");
            let (host, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
            if !has_port(host) {
                return Err(format!("URL address does not have the form \"host:port\": {url}"));
            }
            if !path.is_empty() {
                return Err(format!("URL must not contain a path: {url}"));
            }
            Ok(())
        }
        "unix" | "unixs" => Ok(()),
        _ => Err(format!("URL scheme must be http, https, unix, or unixs: {url}")),
    }
}

/// What stands before the first colon, if it can be a scheme; nothing when there is no colon before the path. `None` when
/// there is one and what stands before it cannot be a scheme.
fn scheme(url: &str) -> Option<&str> {
    let Some(colon) = url.find(':').filter(|colon| !url[..*colon].contains('/')) else { return Some("") };
    let before = &url[..colon];
    let letters = before.starts_with(|c: char| c.is_ascii_alphabetic())
        && before.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    letters.then_some(before)
}

/// `host:port`, `[v6]:port` or `:port`.
fn has_port(host: &str) -> bool {
    let Some((name, port)) = host.rsplit_once(':') else { return false };
    let bracketed = name.starts_with('[') && name.ends_with(']');
    port.bytes().all(|digit| digit.is_ascii_digit()) && (bracketed || !name.contains([':', '[', ']']))
}

fn check_match(name: &str, advertised: &[String], listed: &[String]) -> Result<(), String> {
    let mut advertised_sorted = advertised.to_vec();
    advertised_sorted.sort_unstable();
    if advertised_sorted == listed {
        return Ok(());
    }
    let named = |urls: &[String]| urls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",");
    let without = |urls: &[String], other: &[String]| -> Vec<String> {
        urls.iter().filter(|url| !other.contains(url)).cloned().collect()
    };
    let not_advertised = without(listed, advertised);
    if !not_advertised.is_empty() {
        return Err(format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
            named(&not_advertised),
            advertised.join(",")
        ));
    }
    let not_listed = without(&advertised_sorted, listed);
    if !not_listed.is_empty() {
        return Err(format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            not_listed.join(","),
            named(listed)
        ));
    }
    Err(format!("failed to resolve {} to match --initial-cluster={}", advertised.join(","), named(listed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(list: &str, name: &str, advertised: &[&str]) -> String {
        let advertised: Vec<String> = advertised.iter().map(|url| url.to_string()).collect();
        let outcome = InitialCluster::parse(list).and_then(|cluster| cluster.check(name, &advertised));
        outcome.map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn a_name_may_have_several_urls_in_any_order() {
        let list = "a=http://1.1.1.1:2382,b=https://h:1,a=http://1.1.1.1:2380";
        assert_eq!(refusal(list, "a", &["http://1.1.1.1:2382", "http://1.1.1.1:2380"]), "accepted");
        assert_eq!(refusal(list, "b", &["https://h:1"]), "accepted");
        let cluster = InitialCluster::parse(list).unwrap();
        assert_eq!(cluster.to_string(), "a=http://1.1.1.1:2380,a=http://1.1.1.1:2382,b=https://h:1");
        let records = cluster.records("token");
        assert!(records.is_sorted_by_key(|record| record.id));
        let ids = records.iter().map(|record| MemberId(record.id));
        assert_eq!(cluster_id(ids), cluster.cluster_id("token"));
        assert!(records.iter().any(|r| Some(MemberId(r.id)) == cluster.member_id("a", "token") && r.name == "a"));
        assert_ne!(cluster.cluster_id("token"), cluster.cluster_id("other"));
    }

    #[test]
    fn a_member_that_does_not_fit_is_told_why() {
        let p = "http://h:1";
        assert_eq!(
            refusal("b=http://h:1", "a", &[p]),
            "couldn't find local name \"a\" in the initial cluster configuration"
        );
        assert_eq!(refusal("", "a", &[p]), "couldn't find local name \"a\" in the initial cluster configuration");
        assert_eq!(
            refusal("a=http://h:2", "a", &[p]),
            "--initial-cluster has a=http://h:2 but missing from --initial-advertise-peer-urls=http://h:1"
        );
        assert_eq!(
            refusal("a=http://h:1", "a", &[p, "http://h:2"]),
            "--initial-advertise-peer-urls has http://h:2 but missing from --initial-cluster=a=http://h:1"
        );
        assert_eq!(
            refusal("a=http://h:1,a=http://h:1", "a", &[p]),
            "failed to resolve http://h:1 to match --initial-cluster=a=http://h:1,a=http://h:1"
        );
        assert_eq!(
            refusal("b=http://h:1,a=http://h:1", "a", &[p]),
            "initial cluster a=http://h:1,b=http://h:1 has duplicate url"
        );
    }

    #[test]
    fn whoever_joins_is_found_by_its_urls() {
        let record = |id, name: &str, peer_urls: &[&str], client_urls: &[&str]| MemberRecord {
            id,
            name: name.into(),
            peer_urls: peer_urls.iter().map(|url| url.to_string()).collect(),
            client_urls: client_urls.iter().map(|url| url.to_string()).collect(),
            is_learner: false,
        };
        let a = record(0x69b38ac7138de88d, "a", &["http://h:1"], &["http://c:1"]);
        let b = record(0x5a96eedc907994b1, "", &["http://h:3", "http://h:2"], &[]);
        let join = |list: &str, table: &[&MemberRecord]| {
            let table: Vec<MemberRecord> = table.iter().map(|record| (*record).clone()).collect();
            let list = InitialCluster::parse(list).unwrap();
            list.join("b", ClusterId(0x31c6e9f19e0fb0d9), &table).map_err(|error| error.to_string())
        };
        // The others may be called anything.
        assert_eq!(join("x=http://h:1,b=http://h:2,b=http://h:3", &[&a, &b]), Ok(MemberId(b.id)));
        // Texts as etcd 3.5.1 has them, but for what its resolver says at the end of the last one.
        assert_eq!(
            join("a=http://h:1,b=http://h:2", &[&a]).unwrap_err(),
            "error validating peerURLs {ClusterID:31c6e9f19e0fb0d9 Members:[&{ID:69b38ac7138de88d \
             RaftAttributes:{PeerURLs:[http://h:1] IsLearner:false} Attributes:{Name:a ClientURLs:[http://c:1]}}] \
             RemovedMemberIDs:[]}: member count is unequal"
        );
        let why = join("a=http://h:1,b=http://h:2", &[&b, &a]).unwrap_err();
        let end = ": PeerURLs: no match found for existing member (5a96eedc907994b1, [http://h:3 http://h:2])";
        assert!(why.ends_with(end), "{why}");
        assert!(join("a=http://h:1,c=http://h:2,c=http://h:3", &[&a, &b]).is_err(), "another one than this member");
        let list = InitialCluster::parse("a=http://h:1,b=http://h:1").unwrap();
        assert_eq!(
            list.check_joining("b").unwrap_err().to_string(),
            format!("initial cluster {list} has duplicate url")
        );
        assert_eq!(list.check_joining("c"), Err(Error::NameMissing("c".into())));
    }

    #[test]
    fn urls_name_a_scheme_a_host_and_a_port() {
        let cases = [
            ("a", "URL scheme must be http, https, unix, or unixs: "),
            ("a=", "URL scheme must be http, https, unix, or unixs: "),
            ("a=ftp://h:1", "URL scheme must be http, https, unix, or unixs: ftp://h:1"),
            ("a=localhost:2380", "URL scheme must be http, https, unix, or unixs: localhost:2380"),
            ("a=127.0.0.1:2380", "parse \"127.0.0.1:2380\": first path segment in URL cannot contain colon"),
            ("a=http://h", "URL address does not have the form \"host:port\": http://h"),
            ("a=http://", "URL address does not have the form \"host:port\": http://"),
            ("a=http://h:1/x", "URL must not contain a path: http://h:1/x"),
        ];
        for (list, what) in cases {
            assert_eq!(refusal(list, "a", &[]), format!("error setting up initial cluster: {what}"), "{list}");
        }
        for good in ["http://[::1]:2380", "https://a.b-c.d:1", "http://h:1", "unix://x", "http://:2380"] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        assert!(check_url("http://::1:2380").is_err() && check_url("http://h:port").is_err());
    }
}
