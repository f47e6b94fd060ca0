//! `lease`: grant, revoke, timetolive, list, keep-alive.
//!
//! etcdctl's client library has types of its own for these answers, and their shape shows: header and content are one JSON object,
//! and as a message there is the header alone.

use std::time::Duration;

use clap::{ArgMatches, Command};
use prost::Message;

use super::arguments::{Typed, command, decimal, group, hex_i64, switch};
use super::failure::Failure;
use super::go;
use super::print::{Fields, Format, print, print_bytes};
use super::session::Session;
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    ResponseHeader,
};

pub(super) fn lease_command() -> Command {
    group("lease", "Leases")
        .subcommand(command("grant", "<ttl>", "Creates a lease"))
        .subcommand(command("revoke", "<id>", "Ends a lease, and removes its keys"))
        .subcommand(
            command("timetolive", "<id>", "Tells about a lease").arg(switch("keys", "also the keys that hang on it")),
        )
        .subcommand(command("list", "", "Lists all leases"))
        .subcommand(command("keep-alive", "<id>", "Keeps a lease alive").arg(switch("once", "only this once")))
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    match name {
        "grant" => grant(session, &typed).await,
        "revoke" => revoke(session, &typed).await,
        "timetolive" => time_to_live(session, &typed).await,
        "list" => list(session).await,
        _ => keep_alive(session, &typed).await,
    }
}

fn id_of(typed: &Typed<'_>, otherwise: &str) -> Result<i64, Failure> {
    let [id] = typed.exactly(otherwise)?;
    hex_i64(id).map_err(|error| Failure::bad_arguments(format!("bad lease ID arg ({error}), expecting ID in Hex")))
}

async fn grant(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let [ttl] = typed.exactly("lease grant command needs TTL argument")?;
    let ttl = decimal(ttl).map_err(|error| Failure::bad_arguments(format!("bad TTL ({error})")))?;
    let client = session.client().await?;
    let reply = session.within(client.ask(LeaseGrantRequest { ttl, id: 0 })).await;
    let reply = reply.map_err(|why| Failure::error(format!("failed to grant lease ({why})")))?;
    let (id, ttl) = (reply.id, reply.ttl);
    let json = format!("\"ID\":{id},\"TTL\":{ttl},\"Error\":{}", go::string(&reply.error));
    show(session, reply.header, format!("lease {id:016x} granted with TTL({ttl}s)"), &json, |fields| {
        fields.raw("ID", id);
        fields.raw("TTL", ttl);
    })
}

async fn revoke(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let id = id_of(typed, "lease revoke command needs 1 argument")?;
    let client = session.client().await?;
    let reply = session.within(client.ask(LeaseRevokeRequest { id })).await;
    let reply = reply.map_err(|why| Failure::error(format!("failed to revoke lease ({why})")))?;
    session.format.done("LeaseRevokeResponse", &reply, reply.header.as_ref(), format!("lease {id:016x} revoked"))
}

async fn time_to_live(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let keys = typed.on("keys")?;
    let id = id_of(typed, "lease timetolive command needs lease ID as argument")?;
    let reply = session.ask(LeaseTimeToLiveRequest { id, keys }).await?;
    let (id, ttl, granted) = (reply.id, reply.ttl, reply.granted_ttl);
    let said = if granted == 0 && ttl == -1 {
        format!("lease {id:016x} already expired")
    } else {
        let names: Vec<_> = reply.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        let attached = if keys { format!(", attached keys([{}])", names.join(" ")) } else { String::new() };
        format!("lease {id:016x} granted with TTL({granted}s), remaining({ttl}s){attached}")
    };
    let names: Vec<String> = reply.keys.iter().map(|key| go::bytes(key)).collect();
    let names = if names.is_empty() { "null".to_owned() } else { format!("[{}]", names.join(",")) };
    let json = format!("\"id\":{id},\"ttl\":{ttl},\"granted-ttl\":{granted},\"keys\":{names}");
    show(session, reply.header, said, &json, |fields| {
        fields.raw("ID", id);
        fields.raw("TTL", ttl);
        fields.raw("GrantedTTL", granted);
        reply.keys.iter().for_each(|key| fields.quoted("Key", key));
    })
}

async fn list(session: &Session) -> Result<(), Failure> {
    let reply = session.ask(LeaseLeasesRequest {}).await?;
    let ids = || reply.leases.iter().map(|lease| lease.id);
    let said = ids().fold(format!("found {} leases", reply.leases.len()), |said, id| format!("{said}\n{id:016x}"));
    let json = ids().map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>().join(",");
    show(session, reply.header, said, &format!("\"leases\":[{json}]"), |fields| {
        ids().for_each(|id| fields.raw("ID", id))
    })
}

/// Renews until the lease is gone, a third of its time to live apart.
async fn keep_alive(session: &Session, typed: &Typed<'_>) -> Result<(), Failure> {
    let once = typed.on("once")?;
    let id = id_of(typed, "lease keep-alive command needs lease ID as argument")?;
    let client = session.client().await?;
    if once {
        let reply = session.within(client.keep_alive(id)).await.map_err(Failure::connection)?;
        if reply.ttl <= 0 {
            return Err(Failure::connection("etcdserver: requested lease not found"));
        }
        return show_kept(session, &reply);
    }
    loop {
        match client.keep_alive(id).await {
            Ok(reply) if reply.ttl > 0 => {
                show_kept(session, &reply)?;
                let third = Duration::from_millis(reply.ttl.unsigned_abs().saturating_mul(1000) / 3);
                tokio::time::sleep(third).await;
            }
            // Whoever cannot reach the cluster does not keep it alive either.
            Ok(_) | Err(_) => return print(&format!("lease {id:016x} expired or revoked.\n")),
        }
    }
}

fn show_kept(session: &Session, reply: &LeaseKeepAliveResponse) -> Result<(), Failure> {
    let (id, ttl) = (reply.id, reply.ttl);
    let json = format!("\"ID\":{id},\"TTL\":{ttl}");
    show(session, reply.header, format!("lease {id:016x} keepalived with TTL({ttl})"), &json, |fields| {
        fields.raw("ID", id);
        fields.raw("TTL", ttl);
    })
}

fn show(
    session: &Session,
    header: Option<ResponseHeader>,
    said: String,
    json: &str,
    more: impl FnOnce(&mut Fields),
) -> Result<(), Failure> {
    let header = header.unwrap_or_default();
    match session.format {
        Format::Simple => print(&format!("{said}\n")),
        Format::Fields => {
            let mut fields = Fields::default();
            fields.header(Some(&header));
            more(&mut fields);
            fields.print()
        }
        Format::Json => {
            let header = go::json("ResponseHeader", &header);
            print(&format!("{},{json}}}\n", header.trim_end_matches('}')))
        }
        Format::Protobuf => print_bytes(&header.encode_to_vec()),
        Format::Table => Err(session.format.unsupported()),
    }
}
