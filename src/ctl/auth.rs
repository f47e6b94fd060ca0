//! `auth` and `user`.

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, switch, value};
use super::failure::Failure;
use super::print::{Format, print};
use super::role;
use super::session::{Session, ask_secret};
use crate::pb::authpb::UserAddOptions;
use crate::pb::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleGetRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest, AuthUserGrantRoleRequest,
    AuthUserListRequest, AuthUserRevokeRoleRequest,
};

pub(super) fn auth_command() -> Command {
    group("auth", "Whether users are asked who they are")
        .subcommand(command("enable", "", "From now on"))
        .subcommand(command("disable", "", "No longer"))
        .subcommand(command("status", "", "Whether it is so"))
}

pub(super) fn user_command() -> Command {
    let interactive =
        || switch("interactive", "ask for the password; otherwise it is read from stdin").default_value("true");
    group("user", "Users")
        .subcommand(
            command("add", "<name or name:password>", "Adds a user")
                .arg(interactive())
                .arg(value("new-user-password", "", "the password"))
                .arg(switch("no-password", "a user who comes with a certificate")),
        )
        .subcommand(command("delete", "<name>", "Removes a user"))
        .subcommand(command("get", "<name>", "Tells about a user").arg(switch("detail", "and what its roles permit")))
        .subcommand(command("list", "", "Lists all users"))
        .subcommand(command("passwd", "<name>", "Changes a password").arg(interactive()))
        .subcommand(command("grant-role", "<name> <role>", "Gives a role to a user"))
        .subcommand(command("revoke-role", "<name> <role>", "Takes a role from a user"))
}

pub(super) async fn auth(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    if !Typed(matches).words().is_empty() {
        return Err(Failure::bad_arguments(format!("auth {name} command does not accept any arguments")));
    }
    match name {
        "enable" => enable(session).await,
        "disable" => {
            session.ask(AuthDisableRequest {}).await?;
            print("Authentication Disabled\n")
        }
        _ => {
            let reply = session.ask(AuthStatusRequest {}).await?;
            match session.format {
                Format::Simple => {
                    let (enabled, revision) = (reply.enabled, reply.auth_revision);
                    print(&format!("Authentication Status: {enabled}\nAuthRevision: {revision}\n"))
                }
                format => format.message("AuthStatusResponse", &reply),
            }
        }
    }
}

/// Who enables it must have prepared `root`: etcdctl gives that user its role where it is missing.
async fn enable(session: &Session) -> Result<(), Failure> {
    let client = session.client().await?;
    loop {
        let outcome = session.within(client.ask(AuthEnableRequest {})).await;
        match outcome {
            Ok(_) => return print("Authentication Enabled\n"),
            Err(why) if why == "etcdserver: root user does not have root role" => {
                let (user, role) = ("root".to_owned(), "root".to_owned());
                session.ask_with(&client, AuthUserGrantRoleRequest { user, role }).await?;
            }
            Err(why) => return Err(why.into()),
        }
    }
}

pub(super) async fn user(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let format = session.format;
    let one = || typed.exactly(&format!("user {name} command requires user name as its argument"));
    match name {
        "add" => add(session, &typed).await,
        "delete" => {
            let [user] = one()?;
            let reply = session.ask(AuthUserDeleteRequest { name: user.to_owned() }).await?;
            format.done("AuthUserDeleteResponse", &reply, reply.header.as_ref(), format!("User {user} deleted"))
        }
        "get" => get(session, &typed, one()?[0]).await,
        "list" => {
            let [] = typed.exactly("user list command requires no arguments")?;
            let reply = session.ask(AuthUserListRequest {}).await?;
            match format {
                Format::Simple => print(&reply.users.iter().map(|user| format!("{user}\n")).collect::<String>()),
                format => format.message("AuthUserListResponse", &reply),
            }
        }
        "passwd" => {
            let [user] = one()?;
            let password = password_of(&typed, user)?;
            let question =
                AuthUserChangePasswordRequest { name: user.to_owned(), password, hashed_password: String::new() };
            let reply = session.ask(question).await?;
            format.done("AuthUserChangePasswordResponse", &reply, reply.header.as_ref(), "Password updated")
        }
        "grant-role" => {
            let [user, role] = typed.exactly("user grant command requires user name and role name as its argument")?;
            let question = AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
            let reply = session.ask(question).await?;
            let said = format!("Role {role} is granted to user {user}");
            format.done("AuthUserGrantRoleResponse", &reply, reply.header.as_ref(), said)
        }
        _ => {
            let [user, role] = typed.exactly("user revoke-role requires user name and role name as its argument")?;
            let question = AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() };
            let reply = session.ask(question).await?;
            let said = format!("Role {role} is revoked from user {user}");
            format.done("AuthUserRevokeRoleResponse", &reply, reply.header.as_ref(), said)
        }
    }
}

async fn add(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let no_password = typed.on("no-password")?;
    typed.on("interactive")?;
    let [word] = typed.exactly("user add command requires user name as its argument")?;
    let given = typed.text("new-user-password");
    let (name, password) = match word.split_once(':') {
        _ if no_password => (word, String::new()),
        _ if !given.is_empty() => (word, given.to_owned()),
        Some((name, password)) => (name, password.to_owned()),
        None => (word, password_of(typed, word)?),
    };
    if name.is_empty() {
        return Err(Failure::bad_arguments("empty user name is not allowed"));
    }
    let (options, hashed_password) = (Some(UserAddOptions { no_password }), String::new());
    let question = AuthUserAddRequest { name: name.to_owned(), password, options, hashed_password };
    let reply = session.ask(question).await?;
    session.format.done("AuthUserAddResponse", &reply, reply.header.as_ref(), format!("User {name} created"))
}

/// Asked for twice, or the next line of stdin.
fn password_of(typed: &Typed<'_>, user: &str) -> Result<String, Failure> {
    if !typed.on("interactive")? {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        read.map_err(|error| Failure::bad_arguments(error.to_string()))?;
        return Ok(line.split_whitespace().next().unwrap_or_default().to_owned());
    }
    let password = ask_secret(&format!("Password of {user}: "))?;
    if password.is_empty() {
        return Err(Failure::bad_arguments("empty password"));
    }
    if ask_secret(&format!("Type password of {user} again for confirmation: "))? != password {
        return Err(Failure::bad_arguments("given passwords are different"));
    }
    Ok(password)
}

async fn get(session: &Session, typed: &Typed<'_>, name: &str) -> Result<(), Failure> {
    let detail = typed.on("detail")?;
    let client = session.client().await?;
    let reply = session.ask_with(&client, AuthUserGetRequest { name: name.to_owned() }).await?;
    if detail {
        print(&format!("User: {name}\n"))?;
        for role in reply.roles {
            print("\n")?;
            let reply = session.ask_with(&client, AuthRoleGetRequest { role: role.clone() }).await?;
            role::show(session, &role, &reply)?;
        }
        return Ok(());
    }
    match session.format {
        Format::Simple => {
            let roles: String = reply.roles.iter().map(|role| format!(" {role}")).collect();
            print(&format!("User: {name}\nRoles:{roles}\n"))
        }
        format => format.message("AuthUserGetResponse", &reply),
    }
}
