//! `endpoint`: status, health and hashkv of each endpoint, each asked by itself; with `--cluster`, of each member there is.

use std::time::Instant;

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, switch, value};
use super::failure::Failure;
use super::print::{Fields, Format, print, table};
use super::progress::bytes;
use super::session::Session;
use super::{duration, go};
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmType, HashKvRequest, HashKvResponse, MemberListRequest, RangeRequest, StatusRequest,
    StatusResponse,
};

pub(super) fn endpoint_command() -> Command {
    let every = || switch("cluster", "all members of the cluster").global(true);
    group("endpoint", "Endpoints")
        .arg(every())
        .subcommand(command("health", "", "Whether endpoints can take changes"))
        .subcommand(command("status", "", "How endpoints are"))
        .subcommand(command("hashkv", "", "Hashes of the history, to be compared").arg(value(
            "rev",
            "0",
            "up to this revision; 0: all",
        )))
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let endpoints = chosen(session, typed.on("cluster")?).await?;
    match name {
        "health" => health(session, &endpoints).await,
        "status" => status(session, &endpoints).await,
        _ => hashes(session, &endpoints, typed.number("rev")?).await,
    }
}

/// The endpoints that were named, or those of all members.
pub(super) async fn chosen(session: &Session, cluster: bool) -> Result<Vec<String>, Failure> {
    if !cluster {
        return Ok(session.endpoints.clone());
    }
    let failed = |why: Failure| {
        Failure::error(format!("failed to fetch endpoints from etcd cluster member list: {}", why.text()))
    };
    let members = session.ask(MemberListRequest { linearizable: true }).await.map_err(failed)?.members;
    Ok(members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

/// How an endpoint answered to a read that needs the cluster.
struct Health {
    endpoint: String,
    took: String,
    error: String,
}

async fn health(session: &Session, endpoints: &[String]) -> Result<(), Failure> {
    let asked = endpoints.iter().map(|endpoint| health_of(session, endpoint));
    let found: Vec<Health> = futures_util::future::join_all(asked).await;
    match session.format {
        Format::Simple => {
            for Health { endpoint, took, error } in &found {
                if error.is_empty() {
                    print(&format!("{endpoint} is healthy: successfully committed proposal: took = {took}\n"))?;
                } else {
                    eprintln!("{endpoint} is unhealthy: failed to commit proposal: {error}");
                }
            }
        }
        Format::Fields => {
            let mut fields = Fields::default();
            for Health { endpoint, took, error } in &found {
                fields.quoted("Endpoint", endpoint.as_bytes());
                fields.raw("Health", error.is_empty());
                fields.raw("Took", took);
                fields.raw("Error", error);
                fields.gap();
            }
            fields.print()?;
        }
        Format::Json => {
            let one = |Health { endpoint, took, error }: &Health| {
                let (endpoint, health) = (go::string(endpoint), error.is_empty());
                let error = if health { String::new() } else { format!(",\"error\":{}", go::string(error)) };
                format!("{{\"endpoint\":{endpoint},\"health\":{health},\"took\":\"{took}\"{error}}}")
            };
            print(&format!("[{}]\n", found.iter().map(one).collect::<Vec<_>>().join(",")))?;
        }
        Format::Table => {
            let row = |Health { endpoint, took, error }: &Health| {
                vec![endpoint.clone(), error.is_empty().to_string(), took.clone(), error.clone()]
            };
            let rows: Vec<_> = found.iter().map(row).collect();
            print(&table(&["ENDPOINT", "HEALTH", "TOOK", "ERROR"], &rows))?;
        }
        Format::Protobuf => return Err(session.format.unsupported()),
    }
    if found.iter().all(|health| health.error.is_empty()) { Ok(()) } else { Err(Failure::error("unhealthy cluster")) }
}

async fn health_of(session: &Session, endpoint: &str) -> Health {
    let started = Instant::now();
    let error = match session.client_of(&[endpoint.to_owned()]) {
        Ok(client) => match session.authenticated(client).await {
            Ok(client) => {
                // Whoever may not read this key learns all the same that the cluster has decided so.
                let read = async {
                    match client.ask(RangeRequest { key: "health".into(), ..Default::default() }).await {
                        Err(error) if !error.is_permission_denied() => Err(error),
                        _ => Ok(()),
                    }
                };
                session.within(read).await.map(|()| client)
            }
            Err(failure) => Err(failure.text().to_owned()),
        },
        Err(failure) => Err(failure.text().to_owned()),
    };
    let took = duration::show(started.elapsed());
    let error = match error {
        Err(why) => why,
        Ok(client) => match session.within(client.ask(AlarmRequest::default())).await {
            Ok(reply) if reply.alarms.is_empty() => String::new(),
            Ok(reply) => {
                let name = |alarm: i32| AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
                let names: String = reply.alarms.iter().map(|alarm| format!("{} ", name(alarm.alarm))).collect();
                format!("Active Alarm(s): {names}")
            }
            Err(_) => "Unable to fetch the alarm list".to_owned(),
        },
    };
    Health { endpoint: endpoint.to_owned(), took, error }
}

async fn status(session: &Session, endpoints: &[String]) -> Result<(), Failure> {
    let (mut found, mut failed) = (Vec::new(), false);
    for endpoint in endpoints {
        match asked_at(session, endpoint, StatusRequest {}).await {
            Ok(status) => found.push((endpoint.clone(), status)),
            Err(why) => {
                failed = true;
                eprintln!("Failed to get the status of endpoint {endpoint} ({why})");
            }
        }
    }
    show_status(session, &found)?;
    if failed { Err(Failure::silent(1)) } else { Ok(()) }
}

/// One question to one endpoint.
async fn asked_at<Q: crate::client::ask::Ask>(
    session: &Session,
    endpoint: &str,
    question: Q,
) -> Result<Q::Answer, String> {
    let text = |failure: Failure| failure.text().to_owned();
    let client = session.client_of(&[endpoint.to_owned()]).map_err(text)?;
    let client = session.authenticated(client).await.map_err(text)?;
    session.within(client.ask(question)).await
}

fn show_status(session: &Session, found: &[(String, StatusResponse)]) -> Result<(), Failure> {
    let row = |(endpoint, status): &(String, StatusResponse)| {
        let member = status.header.unwrap_or_default().member_id;
        vec![
            endpoint.clone(),
            format!("{member:x}"),
            status.version.clone(),
            bytes(status.db_size.unsigned_abs()),
            (status.leader == member).to_string(),
            status.is_learner.to_string(),
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.errors.join(", "),
        ]
    };
    match session.format {
        Format::Simple => print(&found.iter().map(|one| row(one).join(", ") + "\n").collect::<String>()),
        Format::Table => {
            let heads = [
                "ENDPOINT",
                "ID",
                "VERSION",
                "DB SIZE",
                "IS LEADER",
                "IS LEARNER",
                "RAFT TERM",
                "RAFT INDEX",
                "RAFT APPLIED INDEX",
                "ERRORS",
            ];
            print(&table(&heads, &found.iter().map(row).collect::<Vec<_>>()))
        }
        Format::Json => print(&json(found, "Status", "StatusResponse")),
        Format::Fields => {
            let mut fields = Fields::default();
            for (endpoint, status) in found {
                fields.header(status.header.as_ref());
                fields.quoted("Version", status.version.as_bytes());
                fields.raw("DBSize", status.db_size);
                fields.raw("Leader", status.leader);
                fields.raw("IsLearner", status.is_learner);
                fields.raw("RaftIndex", status.raft_index);
                fields.raw("RaftTerm", status.raft_term);
                fields.raw("RaftAppliedIndex", status.raft_applied_index);
                fields.raw("Errors", format!("[{}]", status.errors.join(" ")));
                fields.quoted("Endpoint", endpoint.as_bytes());
                fields.gap();
            }
            fields.print()
        }
        Format::Protobuf => Err(session.format.unsupported()),
    }
}

async fn hashes(session: &Session, endpoints: &[String], revision: i64) -> Result<(), Failure> {
    let (mut found, mut failed) = (Vec::new(), None);
    for endpoint in endpoints {
        match asked_at(session, endpoint, HashKvRequest { revision }).await {
            Ok(hash) => found.push((endpoint.clone(), hash)),
            Err(why) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({why})");
                failed = Some(why);
            }
        }
    }
    show_hashes(session, &found)?;
    failed.map_or(Ok(()), |why| Err(Failure::error(why)))
}

fn show_hashes(session: &Session, found: &[(String, HashKvResponse)]) -> Result<(), Failure> {
    let row = |(endpoint, hash): &(String, HashKvResponse)| vec![endpoint.clone(), hash.hash.to_string()];
    match session.format {
        Format::Simple => print(&found.iter().map(|one| row(one).join(", ") + "\n").collect::<String>()),
        Format::Table => print(&table(&["ENDPOINT", "HASH"], &found.iter().map(row).collect::<Vec<_>>())),
        Format::Json => print(&json(found, "HashKV", "HashKVResponse")),
        Format::Fields => {
            let mut fields = Fields::default();
            for (endpoint, hash) in found {
                fields.header(hash.header.as_ref());
                fields.quoted("Endpoint", endpoint.as_bytes());
                fields.raw("Hash", hash.hash);
                fields.gap();
            }
            fields.print()
        }
        Format::Protobuf => Err(session.format.unsupported()),
    }
}

/// Answers beside the endpoints that gave them.
fn json<M: prost::Message>(found: &[(String, M)], name: &str, message: &str) -> String {
    let one = |(endpoint, reply): &(String, M)| {
        format!("{{\"Endpoint\":{},\"{name}\":{}}}", go::string(endpoint), go::json(message, reply))
    };
    format!("[{}]\n", found.iter().map(one).collect::<Vec<_>>().join(","))
}
