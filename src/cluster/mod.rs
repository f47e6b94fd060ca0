//! Who the members are: ids, the founding members, the table of members, versions.
//!
//! A cluster is founded statically: every founding member is started with the same `--initial-cluster` and
//! `--initial-cluster-token`, and each derives the same ids from them without asking anybody, in the way etcd does:
//!
//! ```text
//! member id  = first 8 bytes of SHA-1( peer URLs, sorted, joined ‖ token )     big endian
//! cluster id = first 8 bytes of SHA-1( member ids, sorted, 8 bytes each )
//! ```
//!
//! So a wrong token or a differing list gives another cluster id, and members that disagree never talk to each other.
//! Of a member added later, seconds since 1970 take the token's place: the same URLs get another id the second time,
//! because an id that was removed never returns.
//!
//! Raft's view of the same members (who votes) is its configuration, which changes through entries of its own; the table
//! here says how to reach them and what they call themselves.
//!
//! Members are added, promoted, removed and moved to other URLs one at a time. Two kinds of rule guard that. What the table
//! itself forbids ([`membership`]) is checked when the change is carried out, alike on every member: ids and URLs are not
//! taken twice, the last voter stays. Whether the change is *wise* ([`reconfig`]) depends on who is connected to whom right
//! now; it is asked once, by the member that proposes.
//!
//! Deliberately missing: changing several members in one step. Who founders are that were not named is `discovery`'s.

use sha1::{Digest, Sha1};

use crate::types::{ClusterId, MemberId};

pub mod corruption;
pub mod founding;
pub mod initial;
pub mod leaving;
pub mod membership;
pub mod reconfig;
pub mod version;

pub use initial::InitialCluster;
pub use membership::{Member, Membership};
pub use version::Version;

/// The id of a founding member.
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    MemberId(first_eight(Sha1::new().chain_update(urls.concat()).chain_update(token)))
}

/// The id of a member added at run time, at so many seconds since 1970.
pub fn added_member_id(peer_urls: &[String], unix_seconds: u64) -> MemberId {
    member_id(peer_urls, &unix_seconds.to_string())
}

/// The id of the cluster with these founding members.
pub fn cluster_id(members: impl IntoIterator<Item = MemberId>) -> ClusterId {
    let mut ids: Vec<MemberId> = members.into_iter().collect();
    ids.sort_unstable();
    let hash = ids.iter().fold(Sha1::new(), |hash, id| hash.chain_update(id.0.to_be_bytes()));
    ClusterId(first_eight(hash))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("a SHA-1 has 20 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| url.to_string()).collect()
    }

    // The ids in these tests are what etcd 3.5.1 printed when it was started with these URLs and tokens.

    #[test]
    fn a_single_member_has_the_ids_etcd_gives_it() {
        let member = member_id(&urls(&["http://127.0.0.1:33380"]), "tok-1");
        assert_eq!(member, MemberId(16887119571583015891));
        assert_eq!(cluster_id([member]), ClusterId(12114224183430450364));
    }

    #[test]
    fn the_order_of_urls_and_members_does_not_matter() {
        let two = urls(&["http://127.0.0.1:34382", "http://127.0.0.1:34380"]);
        let member = member_id(&two, "etcd-cluster");
        assert_eq!(member, MemberId(1247056468590996031));
        assert_eq!(cluster_id([member]), ClusterId(13104507264411422658));

        let ids = [35380, 36380, 37380].map(|port| member_id(&[format!("http://127.0.0.1:{port}")], "three"));
        assert_eq!(ids, [0x515584f63ba3e030, 0x1f85b5d3ba970d27, 0xbac6623ff4120a73].map(MemberId));
        assert_eq!(cluster_id(ids), ClusterId(2625442833910391818));
    }

    #[test]
    fn the_second_counts_for_a_member_added_later() {
        let url = urls(&["http://127.0.0.1:33382"]);
        assert_eq!(added_member_id(&url, 1_795_391_960), MemberId(0x7f26bb5bcdd10c6c));
        assert_ne!(added_member_id(&url, 1_795_391_960), added_member_id(&url, 1_795_391_961));
    }
}
