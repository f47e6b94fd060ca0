//! Commands about users and roles, and logging in.

use super::{Effects, Stopped};
use crate::auth::token::TokenChange;
use crate::auth::{Error, token};
use crate::pb::everwatchpb::auth_change::Change;
use crate::pb::everwatchpb::{AuthChange, Authenticate};
use crate::state::StateMachine;
use crate::state::applied::{Refusal, Reply};
use crate::storage::{self, backend::Batch};
use crate::types::Index;

impl StateMachine {
    pub(super) fn change_auth(&mut self, command: &AuthChange, batch: &mut Batch) -> Result<Effects, Stopped> {
        let Some(change) = &command.change else {
            let what = "a change of users that this release does not know".to_owned();
            return Err(Stopped::Failed(storage::Error::Engine(what)));
        };
        let auth = &mut self.auth;
        let mut void = None;
        match change {
            Change::Enable(_) => auth.enable(batch)?,
            Change::Disable(_) => {
                auth.disable(batch);
                void = Some(TokenChange::VoidAll);
            }
            Change::UserAdd(new) => auth.add_user(new, batch)?,
            Change::UserDelete(request) => {
                auth.delete_user(request, batch)?;
                void = Some(TokenChange::VoidOf(request.name.clone()));
            }
            Change::UserPassword(change) => {
                auth.change_password(change, batch)?;
                void = Some(TokenChange::VoidOf(change.name.clone()));
            }
            Change::UserGrantRole(request) => auth.grant_role(request, batch)?,
            Change::UserRevokeRole(request) => auth.revoke_role(request, batch)?,
            Change::RoleAdd(request) => auth.add_role(request, batch)?,
            Change::RoleDelete(request) => auth.delete_role(request, batch)?,
            Change::RoleGrantPermission(request) => auth.grant_permission(request, batch)?,
            Change::RoleRevokePermission(request) => auth.revoke_permission(request, batch)?,
        }
        Ok(Effects::reply(Reply::AuthChanged { revision: self.kv.revision(), tokens: void }))
    }

    /// Every member learns the token; its text is unique, for the proposer drew the letters.
    pub(super) fn authenticate(&mut self, command: &Authenticate) -> Result<Effects, Stopped> {
        self.auth.authenticate(&command.name, command.auth_revision)?;
        let token = token::name(&command.token, Index(self.applied.0 + 1));
        let issued = TokenChange::Issued { token: token.clone(), user: command.name.clone() };
        Ok(Effects::reply(Reply::Authenticated { revision: self.kv.revision(), token, tokens: issued }))
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped::Refused(Refusal::Auth(error))
    }
}
