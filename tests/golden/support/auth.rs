//! The commands of users and roles.
//!
//! ```text
//! as NAME | nobody | the member             who asks from here on; a user is recognised at the present auth revision
//! user add NAME [no_password], user delete|get NAME, user password NAME, user grant|revoke NAME ROLE
//! role add|delete|get NAME, role grant NAME read|write|readwrite RANGE, role revoke NAME RANGE
//! auth enable|disable|status
//! login NAME [compared=REV]                 a password that was compared, now or at that auth revision
//! may read|watch RANGE, may read txn, may renew|see ID, may see leases, may see user|role NAME, may everything
//! ```

use everwatch::auth::{Error, token};
use everwatch::pb::authpb::{Permission, UserAddOptions};
use everwatch::pb::etcdserverpb::*;
use everwatch::pb::everwatchpb::auth_change::Change;
use everwatch::pb::everwatchpb::{AuthChange, Authenticate, UserAdd, UserPassword};
use everwatch::state::command::Kind;
use everwatch::state::permission::Wanted;
use everwatch::types::{KeyRange, LeaseId};

use crate::kv;
use crate::world::{Speaker, World, show_auth_error};

/// Carries out a command of this area; `None` when it is none.
pub(crate) fn run(world: &mut World, words: &[&str], body: &[&str]) -> Option<Vec<String>> {
    Some(match *words {
        ["as", "nobody"] => speak(world, Speaker::Nobody),
        ["as", "the", "member"] => speak(world, Speaker::Member),
        ["as", name] => {
            let revision = world.state().auth.revision();
            speak(world, Speaker::User(name.to_owned(), revision))
        }
        ["auth", "status"] => {
            let state = world.state();
            vec![format!("{} revision={}", if state.auth.is_enabled() { "on" } else { "off" }, state.auth.revision())]
        }
        ["user", "get", name] => shown(world.state().auth.roles_of(name)),
        ["role", "get", name] => {
            let show = |permission: &Permission| {
                let end = kv::show(&permission.range_end);
                let key = kv::show(&permission.key);
                format!("{:?} {key}{}", permission.perm_type(), if end.is_empty() { end } else { format!("..{end}") })
            };
            shown(world.state().auth.permissions_of(name).map(|all| all.iter().map(show).collect()))
        }
        ["may", ref wanted @ ..] => may(world, wanted, body),
        ["login", name, ref compared @ ..] => {
            let now = world.state().auth.revision();
            let auth_revision =
                compared.first().map_or(now, |at| kv::number(at.trim_start_matches("compared=")) as u64);
            let command = Authenticate { name: name.to_owned(), token: "x".repeat(token::LETTERS), auth_revision };
            world.propose(Kind::Authenticate(command))
        }
        _ => world.propose(Kind::AuthChange(AuthChange { change: Some(change(words)?) })),
    })
}

fn speak(world: &mut World, speaker: Speaker) -> Vec<String> {
    world.speaker = speaker;
    Vec::new()
}

fn shown(lines: Result<Vec<String>, Error>) -> Vec<String> {
    lines.unwrap_or_else(|error| vec![show_auth_error(error)])
}

fn may(world: &World, wanted: &[&str], body: &[&str]) -> Vec<String> {
    let (key, range_end) = wanted.get(1).map(|range| kv::range(range)).unwrap_or_default();
    let range = KeyRange::from_wire(key.clone(), range_end.clone());
    let id = |text: &str| LeaseId(kv::number(text));
    let (read, txn) = (RangeRequest { key, range_end, ..Default::default() }, kv::txn(body));
    let wanted = match *wanted {
        ["read", "txn"] => Wanted::Txn(&txn),
        ["read", _] => Wanted::Range(&read),
        ["watch", _] => Wanted::Watch(&range),
        ["renew", lease] => Wanted::Renewal(id(lease)),
        ["see", "leases"] => Wanted::Leases,
        ["see", "user", name] => Wanted::User(name),
        ["see", "role", name] => Wanted::Role(name),
        ["see", lease] => Wanted::LeaseKeys(id(lease)),
        ["everything"] => Wanted::Root,
        _ => panic!("nobody wants {wanted:?}"),
    };
    vec![world.state().permit(world.speaker.asker(), wanted).map_or_else(show_auth_error, |()| "yes".into())]
}

fn change(words: &[&str]) -> Option<Change> {
    let text = |text: &str| text.to_owned();
    Some(match *words {
        ["auth", "enable"] => Change::Enable(AuthEnableRequest {}),
        ["auth", "disable"] => Change::Disable(AuthDisableRequest {}),
        ["user", "add", name, ref options @ ..] => {
            let options = UserAddOptions { no_password: options.contains(&"no_password") };
            Change::UserAdd(UserAdd { name: text(name), hash: "a hash".into(), options: Some(options) })
        }
        ["user", "add"] => Change::UserAdd(UserAdd::default()),
        ["user", "delete", name] => Change::UserDelete(AuthUserDeleteRequest { name: text(name) }),
        ["user", "password", name] => {
            Change::UserPassword(UserPassword { name: text(name), hash: "another hash".into() })
        }
        ["user", "grant", user, role] => {
            Change::UserGrantRole(AuthUserGrantRoleRequest { user: text(user), role: text(role) })
        }
        ["user", "revoke", name, role] => {
            Change::UserRevokeRole(AuthUserRevokeRoleRequest { name: text(name), role: text(role) })
        }
        ["role", "add", ref name @ ..] => Change::RoleAdd(AuthRoleAddRequest { name: name.concat() }),
        ["role", "delete", role] => Change::RoleDelete(AuthRoleDeleteRequest { role: text(role) }),
        ["role", "grant", name] => {
            Change::RoleGrantPermission(AuthRoleGrantPermissionRequest { name: text(name), perm: None })
        }
        ["role", "grant", name, access, range] => {
            let (key, range_end) = kv::range(range);
            let perm_type = ["read", "write", "readwrite"].iter().position(|known| *known == access);
            let perm_type = perm_type.expect("read, write or readwrite") as i32;
            let perm = Some(Permission { perm_type, key, range_end });
            Change::RoleGrantPermission(AuthRoleGrantPermissionRequest { name: text(name), perm })
        }
        ["role", "revoke", role, range] => {
            let (key, range_end) = kv::range(range);
            Change::RoleRevokePermission(AuthRoleRevokePermissionRequest { role: text(role), key, range_end })
        }
        _ => return None,
    })
}
