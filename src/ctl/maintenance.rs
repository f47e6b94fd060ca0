//! `alarm`, `defrag` and `move-leader`.

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, hex_u64, switch, value};
use super::endpoint::chosen;
use super::failure::Failure;
use super::print::{Fields, Format, print};
use super::session::Session;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, MoveLeaderRequest, StatusRequest,
};

pub(super) fn alarm_command() -> Command {
    group("alarm", "Alarms").subcommand(command("list", "", "Lists alarms")).subcommand(command(
        "disarm",
        "",
        "Ends all alarms",
    ))
}

pub(super) fn defrag_command() -> Command {
    command("defrag", "", "Gives space back to the file system")
        .arg(switch("cluster", "all members of the cluster"))
        .arg(value("data-dir", "", "(not supported: a stopped member needs no defragmenting)"))
}

pub(super) fn move_leader_command() -> Command {
    command("move-leader", "<member id>", "Makes another member the leader")
}

pub(super) async fn alarm(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    if !Typed(matches).words().is_empty() {
        return Err(Failure::bad_arguments(format!("alarm {name} command accepts no arguments")));
    }
    let client = session.client().await?;
    let reply = session.ask_with(&client, AlarmRequest::default()).await?;
    if name == "list" {
        return show(session, &reply);
    }
    // One by one, as etcd's client does it. It then tells of no header.
    let mut ended = AlarmResponse::default();
    for AlarmMember { member_id, alarm } in reply.alarms {
        let action = AlarmAction::Deactivate as i32;
        ended.alarms.extend(session.ask_with(&client, AlarmRequest { action, member_id, alarm }).await?.alarms);
    }
    show(session, &ended)
}

fn show(session: &Session, reply: &AlarmResponse) -> Result<(), Failure> {
    let name = |alarm: &AlarmMember| AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
    match session.format {
        Format::Simple => {
            let line = |alarm: &AlarmMember| format!("memberID:{} alarm:{} \n", alarm.member_id, name(alarm));
            print(&reply.alarms.iter().map(line).collect::<String>())
        }
        Format::Fields => {
            let mut fields = Fields::default();
            fields.header(reply.header.as_ref());
            for alarm in &reply.alarms {
                fields.raw("MemberID", alarm.member_id);
                fields.raw("AlarmType", name(alarm));
                fields.gap();
            }
            fields.print()
        }
        format => format.message("AlarmResponse", reply),
    }
}

pub(super) async fn defrag(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    if !typed.text("data-dir").is_empty() {
        return Err(Failure::bad_feature("--data-dir is not supported: a stopped member needs no defragmenting"));
    }
    let mut failed = false;
    for endpoint in chosen(session, typed.on("cluster")?).await? {
        let client = session.authenticated(session.client_of(std::slice::from_ref(&endpoint))?).await?;
        match session.within(client.ask(DefragmentRequest {})).await {
            Ok(_) => print(&format!("Finished defragmenting etcd member[{endpoint}]\n"))?,
            Err(why) => {
                failed = true;
                eprintln!("Failed to defragment etcd member[{endpoint}] ({why})");
            }
        }
    }
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

/// Only the leader can do it, so it is looked for among the endpoints.
pub(super) async fn move_leader(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let [target] = Typed(matches).exactly("move-leader command needs 1 argument")?;
    let target_id = hex_u64(target).map_err(Failure::bad_arguments)?;
    for endpoint in &session.endpoints {
        let client = session.authenticated(session.client_of(std::slice::from_ref(endpoint))?).await?;
        let status = session.ask_with(&client, StatusRequest {}).await?;
        let member = status.header.unwrap_or_default().member_id;
        if status.leader == member {
            let reply = session.ask_with(&client, MoveLeaderRequest { target_id }).await?;
            return match session.format {
                Format::Simple => print(&format!("Leadership transferred from {member:x} to {target_id:x}\n")),
                format => format.message("MoveLeaderResponse", &reply),
            };
        }
    }
    Err(Failure::bad_arguments(format!("no leader endpoint given at [{}]", session.endpoints.join(" "))))
}
