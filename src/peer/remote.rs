//! Senders that this member has not heard of yet, and such as were removed.
//!
//! A member that was away does not know who joined meanwhile, and hears of that only from those who did if they are all that is
//! left. So a sender says where it is reached itself, and one that is not in the table becomes a peer for the while, a
//! *remote*: what raft answers finds it. (etcd calls it so, too.)
//!
//! Promises: whoever is in the table is reached where the table says, whatever else it says itself; a sender that was removed
//! is told so, and nothing that it sends is delivered; there are at most [`REMOTES_MAX`] remotes, and each goes when
//! it is known to have been removed, or when it has not kept a stream open for a while.

use std::sync::Arc;

use slog::info;
use tokio::time::sleep;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::transport::{Peer, Shared};
use crate::tls;
use crate::types::MemberId;

/// Remotes at the same time. Further senders are refused, and come again: more than a cluster has members.
pub(super) const REMOTES_MAX: usize = 8;

/// URLs of one remote, and bytes of one URL. With more it is refused.
const URLS_MAX: usize = 16;
const URL_BYTES_MAX: usize = 512;

/// As etcd words it.
const REMOVED: &str = "the member has been permanently removed from the cluster";

impl Shared {
    /// Who sends. `urls`: where it says that it is reached.
    pub(super) fn sender(self: &Arc<Shared>, id: MemberId, urls: Vec<String>) -> Result<Arc<Peer>, Status> {
        let known = self.peer(id);
        if let Some(peer) = known.as_ref().filter(|peer| !peer.is_remote()) {
            return Ok(peer.clone());
        }
        if (self.was_removed)(id) {
            return Err(Status::permission_denied(REMOVED));
        }
        if let Some(remote) = known {
            return Ok(remote);
        }
        if urls.is_empty() || id.0 == 0 || id == self.local {
            return Err(Status::failed_precondition("unknown member"));
        }
        // Files are of this machine, and one that a stranger reaches from elsewhere has nothing to look for there for him.
        let own_urls = self.own_urls();
        let on_files = !own_urls.is_empty() && own_urls.iter().all(|url| tls::socket(url).is_some());
        let dialled = |url: &String| is_peer_url(url) && (on_files || tls::socket(url).is_none());
        if urls.len() > URLS_MAX || !urls.iter().all(dialled) {
            return Err(Status::invalid_argument("unknown member, and what it says are no peer URLs"));
        }
        let remote = Arc::new(Peer::remote(id, urls));
        self.add_remote(remote).ok_or_else(|| Status::resource_exhausted("unknown member, one of too many"))
    }
}

/// Ends when the peer is no longer a remote.
pub(super) async fn watch_over(shared: Arc<Shared>, remote: Arc<Peer>) {
    info!(shared.logger, "hearing from a member that is not in the table yet"; "peer" => %remote.id,
        "urls" => remote.urls.borrow().join(","));
    while remote.is_remote() {
        sleep(shared.remote_patience).await;
        if !remote.is_heard() {
            shared.drop_remote(&remote);
        }
    }
}

/// Whether a peer refused this member because it was removed.
pub(super) fn says_removed(status: &Status) -> bool {
    // Something in between may use the code for its own purposes.
    status.code() == Code::PermissionDenied && status.message() == REMOVED
}

/// A scheme that can be dialled, a host and a port, and nothing else; or a Unix socket.
fn is_peer_url(url: &str) -> bool {
    if let Some((_, path)) = tls::socket(url) {
        return url.len() <= URL_BYTES_MAX && !path.as_os_str().is_empty() && !url.contains(char::is_control);
    }
    let Some(endpoint) = Endpoint::from_shared(url.to_owned()).ok().filter(|_| url.len() <= URL_BYTES_MAX) else {
        return false;
    };
    let uri = endpoint.uri();
    let dialled = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.path() == "/" && uri.query().is_none();
    let host = uri.authority().is_some_and(|at| {
        !at.host().is_empty() && at.port_u16().is_some_and(|port| port != 0) && !at.as_str().contains('@')
    });
    dialled && bare && host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_says_is_taken_for_a_url_only_if_it_is_one() {
        for good in [
            "http://h:1",
            "https://a.b-c.d:2380",
            "http://127.0.0.1:2380",
            "http://[::1]:2380",
            "http://h:1/",
            "unix:///run/peer.sock",
            "unixs://h:1",
        ] {
            assert!(is_peer_url(good), "{good}");
        }
        let long = format!("http://{}:1", "h".repeat(URL_BYTES_MAX));
        let bad = [
            "",
            "h",
            "h:1",
            "http://",
            "http://h",
            "http://h:0",
            "http://h:99999",
            "http://:1",
            "ftp://h:1",
            "unix://",
            "unix://\0",
            "http://h:1/x",
            "http://h:1/?q",
            "http://user@h:1",
            "http://h:1 ",
            "http://h\n:1",
            "http://\u{fc}:1",
            "\0",
            &long,
        ];
        for bad in bad {
            assert!(!is_peer_url(bad), "{bad:?}");
        }
    }
}
