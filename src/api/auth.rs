//! The Auth service while there are no users: auth is off, and that is all that can be said. Everything that would change it answers
//! UNIMPLEMENTED.

use tonic::{Request, Response, Status};

use super::status::Mistake;
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::auth_server::Auth;
use crate::server::handle::Handle;

/// The auth revision of a store nobody has changed.
const AUTH_REVISION: u64 = 1;

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
}

/// Methods that are not there yet.
macro_rules! not_there {
    ($($method:ident($request:ident) -> $response:ident;)*) => {$(
        fn $method<'life0, 'async_trait>(
            &'life0 self,
            _: Request<pb::$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(super::not_there())))
        }
    )*};
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let header = Some(self.handle.header(self.handle.view(|state| state.kv.revision())));
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: AUTH_REVISION }))
    }

    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        Err(Mistake::AuthNotEnabled.into())
    }

    not_there! {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse;
        auth_disable(AuthDisableRequest) -> AuthDisableResponse;
        user_add(AuthUserAddRequest) -> AuthUserAddResponse;
        user_get(AuthUserGetRequest) -> AuthUserGetResponse;
        user_list(AuthUserListRequest) -> AuthUserListResponse;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
        role_list(AuthRoleListRequest) -> AuthRoleListResponse;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    }
}
