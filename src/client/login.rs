//! Who a client is, where the cluster has users: a token for a name and a password.
//!
//! A token is asked for with each stream or call. It so never is one that has run out, or that a member has forgotten with its restart.

use std::fmt;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::pb::etcdserverpb::AuthenticateRequest;
use crate::pb::etcdserverpb::auth_client::AuthClient;

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

/// Without the password: it must not get into a log.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Login {
    /// What etcd's tools take: `NAME:PASSWORD`, or the one without the other.
    pub fn parse(user: Option<&str>, password: Option<&str>) -> Result<Option<Login>, String> {
        let (name, password) = match (user, password) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err("--password is of no use without --user".to_owned()),
            (Some(name), Some(password)) => (name, password),
            (Some(user), None) => user.split_once(':').ok_or("--user wants NAME:PASSWORD, or --password beside it")?,
        };
        Ok(Some(Login { name: name.to_owned(), password: password.to_owned() }))
    }

    /// A token from the member at the other end; none where the cluster has no users.
    pub(super) async fn token(&self, channel: Channel) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let Login { name, password } = self.clone();
        let answer = match AuthClient::new(channel).authenticate(AuthenticateRequest { name, password }).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_not_needed(&status) => return Ok(None),
            Err(status) => return Err(status),
        };
        let token = MetadataValue::try_from(answer.token);
        token.map(Some).map_err(|_| Status::internal("the token is no text that can be sent back"))
    }
}

/// The cluster does not ask who calls.
pub(super) fn is_not_needed(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message() == "etcdserver: authentication is not enabled"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_written_as_for_etcds_tools() {
        let login = |name: &str, password: &str| Some(Login { name: name.into(), password: password.into() });
        assert_eq!(Login::parse(None, None), Ok(None));
        assert_eq!(Login::parse(Some("u:p:q"), None), Ok(login("u", "p:q")));
        assert_eq!(Login::parse(Some("u:v"), Some("p")), Ok(login("u:v", "p")));
        assert!(Login::parse(Some("u"), None).is_err() && Login::parse(None, Some("p")).is_err());
        assert!(!format!("{:?}", login("u", "secret")).contains("secret"));
    }
}
