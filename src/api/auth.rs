//! The Auth service: check, call, stamp. What is changed goes through the log, passwords as hashes only; what is looked at is read
//! when this member is as far as the cluster, which to a client is the same as etcd's way, through the log too.

use tonic::{Extensions, Request, Response, Status};

use super::caller::{Caller, permit};
use super::kv::unexpected;
use super::status::status;
use crate::audit::Fields;
use crate::auth;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::auth_server::Auth;
use crate::pb::everwatchpb::auth_change::Change;
use crate::pb::everwatchpb::{AuthChange, UserAdd, UserPassword};
use crate::server::error::Error;
use crate::server::handle::Handle;
use crate::state::applied::{Refusal, Reply};
use crate::state::command::Kind;
use crate::state::permission::Wanted;
use crate::types::Revision;

/// The service of a member.
#[derive(Clone)]
pub(super) struct AuthService {
    handle: Handle,
}

impl AuthService {
    /// Over a member.
    pub(super) fn new(handle: Handle) -> AuthService {
        AuthService { handle }
    }

    /// Has a change made, for whoever calls.
    async fn change(&self, caller: &Caller, change: Change) -> Result<Option<pb::ResponseHeader>, Status> {
        let identity = caller.identify(&self.handle).await?;
        let command = Kind::AuthChange(AuthChange { change: Some(change) });
        match caller.propose(&self.handle, &identity, command).await.map_err(status)? {
            Reply::AuthChanged { revision, .. } => Ok(Some(self.handle.header(revision))),
            other => Err(unexpected(&other)),
        }
    }

    /// Looks at users and roles, for whoever calls.
    async fn look<T>(
        &self,
        extensions: &Extensions,
        wanted: Wanted<'_>,
        look: impl FnOnce(&auth::Store) -> Result<T, auth::Error>,
    ) -> Result<(Option<pb::ResponseHeader>, T), Status> {
        self.handle.linearize().await.map_err(status)?;
        let identity = Caller::passed(extensions).identify(&self.handle).await?;
        permit(&self.handle, identity.asker(), wanted)?;
        let (revision, found) = self.handle.view(|state| (state.kv.revision(), look(&state.auth)));
        let found = found.map_err(|error| status(Error::Refused(Refusal::Auth(error))))?;
        Ok((self.header(revision), found))
    }

    fn header(&self, revision: Revision) -> Option<pb::ResponseHeader> {
        Some(self.handle.header(revision))
    }

    async fn hash(&self, password: String) -> Result<bytes::Bytes, Status> {
        self.handle.hash_password(password).await.map_err(status)
    }
}

/// Methods that make one change, which is their request.
macro_rules! changes {
    ($($method:ident($request:ident) -> $response:ident = $change:ident;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            request: Request<pb::$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async move {
                let caller = Caller::passed(request.extensions());
                let header = self.change(&caller, Change::$change(request.into_inner())).await?;
                Ok(Response::new(pb::$response { header }))
            })
        }
    )*};
}

#[tonic::async_trait]
impl Auth for AuthService {
    changes! {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse = Enable;
        auth_disable(AuthDisableRequest) -> AuthDisableResponse = Disable;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse = UserDelete;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse = UserGrantRole;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse = UserRevokeRole;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse = RoleAdd;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse = RoleDelete;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse = RoleGrantPermission;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse = RoleRevokePermission;
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let look = |auth: &auth::Store| Ok((auth.is_enabled(), auth.revision()));
        let (header, (enabled, auth_revision)) = self.look(request.extensions(), Wanted::Root, look).await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let caller = Caller::passed(request.extensions());
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let outcome = self.handle.login(&name, password).await;
        caller.note_login(&self.handle, &name, outcome.as_ref().err());
        let (revision, token) = outcome.map_err(status)?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header(revision), token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let caller = self.manager(request.extensions(), &request.get_ref().name).await?;
        let pb::AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        let hash = match options {
            Some(options) if options.no_password => bytes::Bytes::new(),
            _ => self.hash(password).await?,
        };
        let header = self.change(&caller, Change::UserAdd(UserAdd { name, hash, options })).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let caller = self.manager(request.extensions(), &request.get_ref().name).await?;
        let pb::AuthUserChangePasswordRequest { name, password, .. } = request.into_inner();
        // Without a password there is nothing to log in with, as in etcd.
        let hash = if password.is_empty() { bytes::Bytes::new() } else { self.hash(password).await? };
        let header = self.change(&caller, Change::UserPassword(UserPassword { name, hash })).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let name = &request.get_ref().name;
        let (header, roles) = self.look(request.extensions(), Wanted::User(name), |auth| auth.roles_of(name)).await?;
        Ok(Response::new(pb::AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let look = |auth: &auth::Store| Ok(auth.users().cloned().collect());
        let (header, users) = self.look(request.extensions(), Wanted::Root, look).await?;
        Ok(Response::new(pb::AuthUserListResponse { header, users }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let role = &request.get_ref().role;
        let (header, perm) =
            self.look(request.extensions(), Wanted::Role(role), |auth| auth.permissions_of(role)).await?;
        Ok(Response::new(pb::AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let look = |auth: &auth::Store| Ok(auth.roles().cloned().collect());
        let (header, roles) = self.look(request.extensions(), Wanted::Root, look).await?;
        Ok(Response::new(pb::AuthRoleListResponse { header, roles }))
    }
}

impl AuthService {
    /// A caller who may be about to manage a user: whoever surely may not costs no hash of a password. The log decides.
    async fn manager(&self, extensions: &Extensions, name: &str) -> Result<Caller, Status> {
        let caller = Caller::passed(extensions);
        let identity = caller.identify(&self.handle).await?;
        permit(&self.handle, identity.asker(), Wanted::Root).inspect_err(|status| {
            caller.note_refusal(&self.handle, &identity, Fields::default().text("name", name), status);
        })?;
        Ok(caller)
    }
}
