//! `member`: list, add, remove, update, promote.

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, hex_u64, switch, value};
use super::failure::Failure;
use super::go;
use super::print::{Fields, Format, print, table};
use super::session::Session;
use crate::pb::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberListResponse, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, ResponseHeader,
};

const NO_ID: &str = "member ID is not provided";
const NO_URLS: &str = "member peer urls not provided";

pub(super) fn member_command() -> Command {
    let urls = || value("peer-urls", "", "where other members reach it, separated by commas");
    group("member", "Members of the cluster")
        .subcommand(
            command("add", "<name>", "Adds a member").arg(urls()).arg(switch("learner", "without a vote at first")),
        )
        .subcommand(command("remove", "<id>", "Removes a member"))
        .subcommand(command("update", "<id>", "Changes where a member is reached").arg(urls()))
        .subcommand(command("promote", "<id>", "Gives a learner its vote"))
        .subcommand(command("list", "", "Lists all members").arg(value(
            "consistency",
            "l",
            "Linearizable(l) or Serializable(s)",
        )))
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    match name {
        "add" => add(session, &typed).await,
        "remove" => {
            let id = id_of(&typed)?;
            let reply = session.ask(MemberRemoveRequest { id }).await?;
            changed(session, "MemberRemoveResponse", &reply, reply.header, id, "removed from")
        }
        "update" => {
            let id = id_of(&typed)?;
            let peer_ur_ls = urls(&typed)?;
            let reply = session.ask(MemberUpdateRequest { id, peer_ur_ls }).await?;
            changed(session, "MemberUpdateResponse", &reply, reply.header, id, "updated in")
        }
        "promote" => {
            let id = id_of(&typed)?;
            let reply = session.ask(MemberPromoteRequest { id }).await?;
            changed(session, "MemberPromoteResponse", &reply, reply.header, id, "promoted in")
        }
        _ => list(session, &typed).await,
    }
}

fn id_of(typed: &Typed<'_>) -> Result<u64, Failure> {
    let [id] = typed.exactly(NO_ID)?;
    hex_u64(id).map_err(|error| Failure::bad_arguments(format!("bad member ID arg ({error}), expecting ID in Hex")))
}

fn urls(typed: &Typed<'_>) -> Result<Vec<String>, Failure> {
    let urls = typed.text("peer-urls");
    if urls.is_empty() {
        return Err(Failure::bad_arguments(NO_URLS));
    }
    urls.split(',').map(|url| checked(url.trim())).collect()
}

/// A URL that etcd's client would send: it checks before the server does.
fn checked(url: &str) -> Result<String, Failure> {
    let schemes = ["http", "https", "unix", "unixs"];
    let split = url.split_once("://").filter(|(scheme, _)| schemes.contains(scheme));
    let (scheme, rest) =
        split.ok_or_else(|| Failure::error(format!("URL scheme must be http, https, unix, or unixs: {url}")))?;
    if scheme.starts_with("http") {
        let host = rest.split('/').next().unwrap_or_default();
        if host.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(Failure::error(format!("URL address does not have the form \"host:port\": {url}")));
        }
        if rest.len() > host.len() {
            return Err(Failure::error(format!("URL must not contain a path: {url}")));
        }
    }
    Ok(url.to_owned())
}

/// Done to one member. etcdctl does not print these as fields.
fn changed(
    session: &Session,
    reply_name: &str,
    reply: &impl prost::Message,
    header: Option<ResponseHeader>,
    id: u64,
    what: &str,
) -> Result<(), Failure> {
    let cluster = header.unwrap_or_default().cluster_id;
    match session.format {
        Format::Simple => print(&format!("Member {id:16x} {what} cluster {cluster:16x}\n")),
        format => format.message(reply_name, reply),
    }
}

async fn add(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let is_learner = typed.on("learner")?;
    let words = typed.words();
    let name = match words[..] {
        [] => return Err(Failure::bad_arguments("member name not provided")),
        [name] => name,
        _ => return Err(Failure::bad_arguments("too many arguments")),
    };
    let peer_ur_ls = urls(typed)?;
    let client = session.client().await?;
    let reply = session.ask_with(&client, MemberAddRequest { peer_ur_ls, is_learner }).await?;
    let id = reply.member.as_ref().map_or(0, |member| member.id);
    changed(session, "MemberAddResponse", &reply, reply.header, id, "added to")?;
    if session.format == Format::Simple { print(&start_of(name, id, &reply.members)) } else { Ok(()) }
}

/// The settings with which the new member is to be started.
fn start_of(name: &str, id: u64, members: &[Member]) -> String {
    let named = |member: &Member| if member.id == id { name.to_owned() } else { member.name.clone() };
    let all =
        members.iter().flat_map(|member| member.peer_ur_ls.iter().map(move |url| format!("{}={url}", named(member))));
    let own = members.iter().filter(|member| member.id == id).flat_map(|member| member.peer_ur_ls.clone());
    let quoted = |text: String| go::quote(text.as_bytes());
    format!(
        "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        quoted(name.to_owned()),
        quoted(all.collect::<Vec<_>>().join(",")),
        quoted(own.collect::<Vec<_>>().join(",")),
    )
}

async fn list(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let linearizable = match typed.text("consistency") {
        "l" => true,
        "s" => false,
        other => return Err(Failure::bad_feature(format!("unknown consistency flag {other:?}"))),
    };
    let reply = session.ask(MemberListRequest { linearizable }).await?;
    match session.format {
        Format::Simple => {
            let lines = rows(&reply).into_iter().map(|row| row.join(", ") + "\n");
            print(&lines.collect::<String>())
        }
        Format::Table => {
            let heads = ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
            print(&table(&heads, &rows(&reply)))
        }
        Format::Fields => {
            let mut fields = Fields::default();
            fields.header(reply.header.as_ref());
            for member in &reply.members {
                fields.raw("ID", member.id);
                fields.quoted("Name", member.name.as_bytes());
                member.peer_ur_ls.iter().for_each(|url| fields.quoted("PeerURL", url.as_bytes()));
                member.client_ur_ls.iter().for_each(|url| fields.quoted("ClientURL", url.as_bytes()));
                fields.raw("IsLearner", member.is_learner);
                fields.gap();
            }
            fields.print()
        }
        Format::Json if session.hex => print(&hex_json(&reply)),
        format => format.message("MemberListResponse", &reply),
    }
}

fn rows(reply: &MemberListResponse) -> Vec<Vec<String>> {
    let row = |member: &Member| {
        let status = if member.name.is_empty() { "unstarted" } else { "started" };
        vec![
            format!("{:x}", member.id),
            status.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    reply.members.iter().map(row).collect()
}

/// Ids in hex, and names as etcdctl has them here.
fn hex_json(reply: &MemberListResponse) -> String {
    let header = reply.header.unwrap_or_default();
    let member = |member: &Member| {
        format!(
            "{{\"ID\":\"{:x}\",\"name\":{},\"peerURLs\":{},\"clientURLS\":{}}}",
            member.id,
            go::string(&member.name),
            go::strings(&member.peer_ur_ls),
            go::strings(&member.client_ur_ls),
        )
    };
    let members: Vec<String> = reply.members.iter().map(member).collect();
    format!(
        "{{\"header\":{{\"cluster_id\":\"{:x}\",\"member_id\":\"{:x}\",\"raft_term\":{}}},\"members\":[{}]}}\n",
        header.cluster_id,
        header.member_id,
        header.raft_term,
        members.join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_before_they_are_sent() {
        assert!(checked("http://127.0.0.1:2380").is_ok() && checked("unix://a").is_ok());
        assert_eq!(checked("bad").unwrap_err().text(), "URL scheme must be http, https, unix, or unixs: bad");
        let wanted = "URL address does not have the form \"host:port\": http://a";
        assert_eq!(checked("http://a").unwrap_err().text(), wanted);
        assert_eq!(checked("http://a:1/x").unwrap_err().text(), "URL must not contain a path: http://a:1/x");
    }
}
