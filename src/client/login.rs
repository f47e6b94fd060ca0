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
    fn a_password_is_not_shown() {
        let login = Login { name: "u".into(), password: "secret".into() };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
