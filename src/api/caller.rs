//! Who calls, and what a method asks of him before its handler does.
//!
//! A client that has logged in sends its token with every call, as `token` or, from HTTP, as `authorization`. One that has not is who its
//! certificate says, if the connection is one of gRPC and certificates are asked for. What that is worth is found out where it matters ([`Caller::identify`]); that depends on neither path nor method, so that no way in forgets it.
//!
//! Handlers of what the log decides, and of what reads keys, pass the caller on to whoever decides. All other methods have a [`Door`]
//! before the handler. A method that is in no table here is for the role `root`: one that is added is closed until somebody opens it.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName};
use http::{Extensions, HeaderMap};
use tonic::Status;

use super::status::{Intercepted, status};
use crate::audit::{Fields, Origin};
use crate::auth::Asker;
use crate::server::handle::Handle;
use crate::server::logins::{Claim, Identity};
use crate::state::permission::Wanted;
use crate::tls::CommonName;

const TOKEN: HeaderName = HeaderName::from_static("token");

/// Who calls, by what he says.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    token: Option<Arc<str>>,
    /// The name in the certificate of a connection whose client had to show one.
    certified: Option<CommonName>,
    /// Where he calls from, if there is an audit log.
    origin: Option<Origin>,
}

impl Caller {
    /// The caller of a call with these headers, and what is known of its connection.
    pub(super) fn of(headers: &HeaderMap, extensions: &Extensions) -> Caller {
        let value = headers.get(TOKEN).or_else(|| headers.get(AUTHORIZATION)).filter(|value| !value.is_empty());
        let token = value.map(|value| {
            // Text that is none is nobody's token.
            let text = String::from_utf8_lossy(value.as_bytes());
            Arc::from(text.strip_prefix("Bearer ").unwrap_or(&text))
        });
        Caller { token, certified: extensions.get().cloned(), origin: extensions.get().cloned() }
    }

    /// Passes it on to the handler.
    pub(super) fn attach(self, extensions: &mut Extensions) {
        if self.token.is_some() || self.certified.is_some() || self.origin.is_some() {
            extensions.insert(self);
        }
    }

    /// What was passed on.
    pub(super) fn passed(extensions: &Extensions) -> Caller {
        extensions.get().cloned().unwrap_or_default()
    }

    /// Where he calls from, if there is an audit log.
    pub(super) fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What he says, as it stands.
    pub(super) fn claim(&self) -> Claim<'_> {
        match (&self.token, &self.certified) {
            (Some(token), _) => Claim::Token(token),
            (None, Some(CommonName(name))) => Claim::Certified(name),
            (None, None) => Claim::Nothing,
        }
    }

    /// Who he is, for whoever decides: nobody if he does not say. A token that this member does not know is refused, whether users
    /// count or not, as etcd does for what it puts into the log.
    pub(super) async fn identify(&self, handle: &Handle) -> Result<Identity, Status> {
        self.known(handle).await.ok_or_else(|| {
            let status = Intercepted::Token.into();
            self.note_refusal(handle, &Identity::default(), Fields::default(), &status);
            status
        })
    }

    /// The same. None: nobody knows his token.
    pub(super) async fn known(&self, handle: &Handle) -> Option<Identity> {
        match self.claim() {
            Claim::Token(token) => handle.identify(token).await,
            Claim::Certified(name) => Some(handle.certified(name)),
            Claim::Nothing => Some(Identity::default()),
        }
    }
}

/// What is asked of whoever calls a method, while users count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Nothing.
    Open,
    /// Its handler passes the caller on, and where it is decided he is asked for what just this request needs.
    Inside,
    /// To be a user.
    Users,
    /// The role `root`.
    Root,
    /// The same, and to have it now: not just where this member stands.
    RootNow,
}

impl Door {
    /// The door of the method at this path.
    pub(super) fn of_path(path: &str) -> Door {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return Door::Root;
        };
        match (service, method) {
            ("etcdserverpb.Auth", "Authenticate") | ("grpc.health.v1.Health", "Check" | "Watch") => Door::Open,
            ("etcdserverpb.KV", "Range" | "RangeStream" | "Put" | "DeleteRange" | "Txn" | "Compact")
            | ("etcdserverpb.Watch", "Watch")
            | (
                "etcdserverpb.Lease",
                "LeaseGrant" | "LeaseRevoke" | "LeaseKeepAlive" | "LeaseTimeToLive" | "LeaseLeases",
            )
            | ("v3lockpb.Lock", "Lock" | "Unlock")
            | ("v3electionpb.Election", "Campaign" | "Proclaim" | "Leader" | "Observe" | "Resign")
            | ("etcdserverpb.Cluster", "MemberUpdate")
            | ("etcdserverpb.Maintenance", "Alarm")
            | (
                "etcdserverpb.Auth",
                "AuthEnable"
                | "AuthDisable"
                | "AuthStatus"
                | "UserAdd"
                | "UserGet"
                | "UserList"
                | "UserDelete"
                | "UserChangePassword"
                | "UserGrantRole"
                | "UserRevokeRole"
                | "RoleAdd"
                | "RoleGet"
                | "RoleList"
                | "RoleDelete"
                | "RoleGrantPermission"
                | "RoleRevokePermission",
            ) => Door::Inside,
            ("etcdserverpb.Cluster", "MemberList") | ("etcdserverpb.Maintenance", "Status") => Door::Users,
            ("etcdserverpb.Cluster", "MemberAdd" | "MemberRemove" | "MemberPromote") => Door::RootNow,
            _ => Door::Root,
        }
    }

    /// Whether it has to be looked at, now.
    pub(super) fn is_kept(self, handle: &Handle) -> bool {
        !matches!(self, Door::Open | Door::Inside) && handle.auth_enabled()
    }

    /// Lets a caller through, or says why not.
    pub(super) async fn admit(self, caller: &Caller, handle: &Handle) -> Result<(), Status> {
        let wanted = match self {
            Door::Open | Door::Inside => return Ok(()),
            Door::Users => Wanted::Login,
            Door::Root => Wanted::Root,
            Door::RootNow => {
                handle.linearize().await.map_err(status)?;
                Wanted::Root
            }
        };
        let identity = caller.identify(handle).await?;
        permit(handle, identity.asker(), wanted)
            .inspect_err(|status| caller.note_refusal(handle, &identity, Fields::default(), status))
    }
}

/// Whether somebody may do this, in the state as this member has it.
pub(super) fn permit(handle: &Handle, asker: Asker<'_>, wanted: Wanted<'_>) -> Result<(), Status> {
    handle.permit(asker, wanted).map_err(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_of(headers: &[(&'static str, &'static str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Caller::of(&map, &Extensions::new()).token.map(|token| token.to_string())
    }

    #[test]
    fn a_token_comes_in_one_of_two_headers() {
        assert_eq!(token_of(&[]), None);
        assert_eq!(token_of(&[("token", "")]), None);
        assert_eq!(token_of(&[("token", "t.1")]).as_deref(), Some("t.1"));
        assert_eq!(token_of(&[("authorization", "t.1")]).as_deref(), Some("t.1"));
        assert_eq!(token_of(&[("authorization", "Bearer t.1")]).as_deref(), Some("t.1"));
        assert_eq!(token_of(&[("token", "a.1"), ("authorization", "b.1")]).as_deref(), Some("a.1"));
    }

    /// CVE-2026-33186: a path that is not quite a method's.
    #[test]
    fn what_nobody_has_opened_is_closed() {
        for path in
            ["", "/", "etcdserverpb.KV/Range", "/etcdserverpb.KV", "/v3lockpb.Lock/New", "/etcdserverpb.Auth/New"]
        {
            assert_eq!(Door::of_path(path), Door::Root, "{path}");
        }
    }
}
