//! `role`.

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, switch};
use super::failure::Failure;
use super::kv::behind_prefix;
use super::print::{Fields, Format, print};
use super::session::Session;
use crate::pb::authpb::Permission;
use crate::pb::authpb::permission::Type;
use crate::pb::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleListRequest, AuthRoleRevokePermissionRequest,
};

pub(super) fn role_command() -> Command {
    let ranged = |command: Command| {
        command.arg(switch("prefix", "all keys that begin so")).arg(switch("from-key", "all keys from this one on"))
    };
    group("role", "Roles")
        .subcommand(command("add", "<name>", "Adds a role"))
        .subcommand(command("delete", "<name>", "Removes a role"))
        .subcommand(command("get", "<name>", "Tells what a role permits"))
        .subcommand(command("list", "", "Lists all roles"))
        .subcommand(ranged(command("grant-permission", "<role> <read|write|readwrite> <key> [endkey]", "Permits more")))
        .subcommand(ranged(command("revoke-permission", "<role> <key> [endkey]", "Permits less")))
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let format = session.format;
    let one = || typed.exactly(&format!("role {name} command requires role name as its argument"));
    match name {
        "add" => {
            let [role] = one()?;
            let reply = session.ask(AuthRoleAddRequest { name: role.to_owned() }).await?;
            format.done("AuthRoleAddResponse", &reply, reply.header.as_ref(), format!("Role {role} created"))
        }
        "delete" => {
            let [role] = one()?;
            let reply = session.ask(AuthRoleDeleteRequest { role: role.to_owned() }).await?;
            format.done("AuthRoleDeleteResponse", &reply, reply.header.as_ref(), format!("Role {role} deleted"))
        }
        "get" => {
            let [role] = one()?;
            let reply = session.ask(AuthRoleGetRequest { role: role.to_owned() }).await?;
            show(session, role, &reply)
        }
        "list" => {
            let [] = typed.exactly("role list command requires no arguments")?;
            let reply = session.ask(AuthRoleListRequest {}).await?;
            match format {
                Format::Simple => print(&reply.roles.iter().map(|role| format!("{role}\n")).collect::<String>()),
                Format::Fields => {
                    let mut fields = Fields::default();
                    fields.header(reply.header.as_ref());
                    let roles: Vec<_> = reply.roles.iter().map(|role| super::go::quote(role.as_bytes())).collect();
                    fields.raw("Roles", roles.join(" "));
                    fields.print()
                }
                format => format.message("AuthRoleListResponse", &reply),
            }
        }
        "grant-permission" => grant(session, &typed).await,
        _ => revoke(session, &typed).await,
    }
}

/// A key and where its range ends.
fn range(typed: &Typed<'_>, words: &[&str]) -> Result<(Bytes, Bytes), Failure> {
    let (prefix, from_key) = (typed.on("prefix")?, typed.on("from-key")?);
    let key = Bytes::copy_from_slice(words[0].as_bytes());
    let end = match (prefix, from_key, words.get(1)) {
        (true, true, _) => return Err(Failure::bad_arguments("--from-key and --prefix flags are mutually exclusive")),
        (true, false, Some(_)) => return Err(Failure::bad_arguments("unexpected endkey argument with --prefix flag")),
        (false, true, Some(_)) => {
            return Err(Failure::bad_arguments("unexpected endkey argument with --from-key flag"));
        }
        (false, false, Some(end)) => Bytes::copy_from_slice(end.as_bytes()),
        (true, false, None) => behind_prefix(&key),
        (false, true, None) => Bytes::from_static(b"\0"),
        (false, false, None) => Bytes::new(),
    };
    // The least key there is.
    let key = if key.is_empty() && (prefix || from_key) { Bytes::from_static(b"\0") } else { key };
    Ok((key, end))
}

async fn grant(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let words = typed.words();
    let [role, kind, rest @ ..] = &words[..] else { return Err(Failure::bad_arguments(GRANT_WORDS)) };
    if rest.is_empty() {
        return Err(Failure::bad_arguments(GRANT_WORDS));
    }
    let perm_type = match kind.to_uppercase().as_str() {
        "READ" => Type::Read,
        "WRITE" => Type::Write,
        "READWRITE" => Type::Readwrite,
        _ => return Err(Failure::bad_arguments(format!("invalid permission type: {kind}"))),
    };
    let (key, range_end) = range(typed, rest)?;
    let perm = Some(Permission { perm_type: perm_type as i32, key, range_end });
    let reply = session.ask(AuthRoleGrantPermissionRequest { name: (*role).to_owned(), perm }).await?;
    let said = format!("Role {role} updated");
    session.format.done("AuthRoleGrantPermissionResponse", &reply, reply.header.as_ref(), said)
}

const GRANT_WORDS: &str = "role grant command requires role name, permission type, and key [endkey] as its argument";
const REVOKE_WORDS: &str = "role revoke-permission command requires role name and key [endkey] as its argument";

async fn revoke(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let words = typed.words();
    let [role, rest @ ..] = &words[..] else { return Err(Failure::bad_arguments(REVOKE_WORDS)) };
    if rest.is_empty() {
        return Err(Failure::bad_arguments(REVOKE_WORDS));
    }
    let (key, range_end) = range(typed, rest)?;
    let shown = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let said = match &range_end[..] {
        b"" => format!("Permission of key {} is revoked from role {role}", shown(&key)),
        b"\0" => format!("Permission of range [{}, <open ended> is revoked from role {role}", shown(&key)),
        _ => format!("Permission of range [{}, {}) is revoked from role {role}", shown(&key), shown(&range_end)),
    };
    let reply = session.ask(AuthRoleRevokePermissionRequest { role: (*role).to_owned(), key, range_end }).await?;
    session.format.done("AuthRoleRevokePermissionResponse", &reply, reply.header.as_ref(), said)
}

/// What a role permits.
pub(super) fn show(session: &Session, role: &str, reply: &AuthRoleGetResponse) -> Result<(), Failure> {
    let kind = |perm: &Permission| Type::try_from(perm.perm_type).unwrap_or(Type::Read);
    match session.format {
        Format::Simple => {
            let all = role == "root" && reply.perm.is_empty();
            let part = |other: Type| {
                let permitted = reply.perm.iter().filter(|perm| kind(perm) != other).map(line);
                if all { "\t[, <open ended> (prefix )\n".to_owned() } else { permitted.collect::<String>() }
            };
            print(&format!("Role {role}\nKV Read:\n{}KV Write:\n{}", part(Type::Write), part(Type::Read)))
        }
        Format::Fields => {
            let mut fields = Fields::default();
            fields.header(reply.header.as_ref());
            for perm in &reply.perm {
                fields.raw("PermType", format!(" {}", kind(perm).as_str_name()));
                fields.quoted("Key", &perm.key);
                fields.quoted("RangeEnd", &perm.range_end);
            }
            fields.print()
        }
        format => format.message("AuthRoleGetResponse", reply),
    }
}

fn line(perm: &Permission) -> String {
    let (key, end) = (String::from_utf8_lossy(&perm.key), String::from_utf8_lossy(&perm.range_end));
    if end.is_empty() {
        return format!("\t{key}\n");
    }
    let range = if end == "\0" { format!("[{key}, <open ended>") } else { format!("[{key}, {end})") };
    let prefix = if behind_prefix(&perm.key) == perm.range_end { format!(" (prefix {key})") } else { String::new() };
    format!("\t{range}{prefix}\n")
}
