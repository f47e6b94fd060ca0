//! `lock` and `elect`: etcd's recipes, carried out by the client.
//!
//! ```text
//!  lease ── key NAME/<lease> ── create revisions under NAME/ say whose turn it is: the lowest holds
//! ```
//!
//! Who waits, waits for those before it to be deleted: by their owners, or with their leases.

use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, switch, value};
use super::failure::Failure;
use super::kv::{behind_prefix, show_range};
use super::session::Session;
use crate::client::resume::News;
use crate::client::{Client, Heard, Want, Watch};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::pb::mvccpb::event::EventType;

/// How long an election's lease lives without its holder, and a lock's unless told otherwise.
const TTL_S: i64 = 60;
const LOCK_TTL_S: i64 = 10;

/// How long to wait before all endpoints are asked again when none has renewed the lease.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) fn lock_command() -> Command {
    command("lock", "<lockname> [command arg...]", "Holds a lock until interrupted, or while a command runs")
        .arg(value("ttl", "10", "seconds until it is free when its holder is gone"))
}

pub(super) fn elect_command() -> Command {
    command("elect", "<election-name> [proposal]", "Stands for election, or watches one")
        .arg(switch("listen", "only watch who is elected").short('l'))
}

pub(super) async fn lock(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let ttl = match typed.number("ttl")? {
        ttl if ttl > 0 => ttl,
        // As without one.
        _ if typed.given("ttl") => TTL_S,
        _ => LOCK_TTL_S,
    };
    let words: Vec<String> = typed.words().into_iter().map(str::to_owned).collect();
    let Some((name, command)) = words.split_first() else {
        return Err(Failure::bad_arguments("lock takes a lock name argument and an optional command to execute"));
    };
    let claim = Claim::new(session, name, Bytes::new(), ttl).await?;
    claim
        .held(async |claim| match command.split_first() {
            None => {
                claim.show(session).await?;
                interrupted().await;
                Ok(())
            }
            Some((program, arguments)) => {
                let key = String::from_utf8_lossy(&claim.key).into_owned();
                let started = tokio::task::spawn_blocking({
                    let (program, arguments, revision) = (program.clone(), arguments.to_vec(), claim.header_revision);
                    move || {
                        std::process::Command::new(program)
                            .args(arguments)
                            .env("ETCD_LOCK_KEY", key)
                            .env("ETCD_LOCK_REV", revision.to_string())
                            .status()
                    }
                });
                match started.await.map_err(|error| Failure::error(error.to_string()))? {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => {
                        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                        Err(Failure::Said { text: ended(status), code })
                    }
                    Err(error) => Err(Failure::error(not_started(program, &error))),
                }
            }
        })
        .await
}

/// How a command ended, in Go's words.
pub(super) fn ended(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Why it did not begin, in Go's words.
pub(super) fn not_started(program: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound if !program.contains('/') => {
            format!("exec: {program:?}: executable file not found in $PATH")
        }
        std::io::ErrorKind::NotFound => format!("fork/exec {program}: no such file or directory"),
        _ => format!("fork/exec {program}: {error}"),
    }
}

pub(super) async fn elect(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let listen = typed.on("listen")?;
    let wrong = || Failure::bad_arguments("elect takes one election name argument and an optional proposal argument");
    match typed.words()[..] {
        [name] if listen => observe(session, name).await,
        [_] => Err(Failure::bad_arguments("no proposal argument but -l not set")),
        [_, _] if listen => Err(Failure::bad_arguments("proposal given but -l is set")),
        [name, proposal] => {
            let claim = Claim::new(session, name, Bytes::copy_from_slice(proposal.as_bytes()), TTL_S).await?;
            claim
                .held(async |claim| {
                    claim.show(session).await?;
                    interrupted().await;
                    Ok(())
                })
                .await
        }
        _ => Err(wrong()),
    }
}

/// A key of one's own in a queue, alive as long as its lease is renewed.
struct Claim {
    client: Client,
    lease: i64,
    ttl: i64,
    key: Bytes,
    prefix: String,
    /// When it was queued.
    created: i64,
    /// What had happened when it was.
    header_revision: i64,
}

impl Claim {
    /// Queues up.
    async fn new(session: &Session, name: &str, value: Bytes, ttl: i64) -> Result<Claim, Failure> {
        let client = session.client().await?;
        let lease = client.ask(LeaseGrantRequest { ttl, id: 0 }).await?.id;
        let prefix = format!("{name}/");
        let key = Bytes::from(format!("{prefix}{lease:x}"));
        let absent = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Create as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            range_end: Bytes::new(),
        };
        let op = |request| RequestOp { request: Some(request) };
        let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        let reply = client
            .ask(TxnRequest {
                compare: vec![absent],
                success: vec![op(Request::RequestPut(put))],
                failure: vec![op(Request::RequestRange(get))],
            })
            .await?;
        let revision = reply.header.unwrap_or_default().revision;
        let found = reply.responses.into_iter().filter_map(|op| op.response).find_map(|response| match response {
            Response::ResponseRange(range) => range.kvs.first().map(|kv| kv.create_revision),
            _ => None,
        });
        let created = found.unwrap_or(revision);
        Ok(Claim { client, lease, ttl, key, prefix, created, header_revision: revision })
    }

    /// Waits for its turn, does something, and gives the turn away, whatever came of it.
    async fn held(self, doing: impl AsyncFnOnce(&Claim) -> Result<(), Failure>) -> Result<(), Failure> {
        let turn = async {
            tokio::select! {
                waited = self.wait() => waited?,
                () = interrupted() => return Err(Failure::error("context canceled")),
            }
            doing(&self).await
        };
        let outcome = tokio::select! {
            outcome = turn => outcome,
            () = self.renew() => Err(Failure::error("session expired")),
        };
        let (key, lease) = (self.key.clone(), self.lease);
        // Without them the lease runs out by itself.
        let _ = self.client.ask(DeleteRangeRequest { key, ..Default::default() }).await;
        let _ = self.client.ask(LeaseRevokeRequest { id: lease }).await;
        outcome
    }

    /// Until nobody who came earlier is left.
    async fn wait(&self) -> Result<(), Failure> {
        loop {
            let before = RangeRequest {
                key: self.prefix.clone().into(),
                range_end: behind_prefix(self.prefix.as_bytes()),
                max_create_revision: self.created - 1,
                sort_order: SortOrder::Descend as i32,
                sort_target: SortTarget::Create as i32,
                limit: 1,
                ..Default::default()
            };
            let reply = self.client.ask(before).await?;
            let Some(last) = reply.kvs.into_iter().next() else { return Ok(()) };
            let start_revision = reply.header.unwrap_or_default().revision + 1;
            deleted(&self.client, Want { key: last.key, start_revision, ..Want::default() }).await?;
        }
    }

    /// Renews the lease; returns when it is lost. Of its life a third passes in between, and in the next all endpoints come to be
    /// asked, although one of them may have gone silent.
    async fn renew(&self) {
        let third = Duration::from_secs(self.ttl.unsigned_abs()) / 3;
        loop {
            let pause = match self.client.keep_alive_within(self.lease, third).await {
                Ok(reply) if reply.ttl <= 0 => return,
                Ok(_) => third,
                Err(_) => third.min(RENEWAL_PAUSE_MAX),
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn show(&self, session: &Session) -> Result<(), Failure> {
        let reply = self.client.ask(RangeRequest { key: self.key.clone(), ..Default::default() }).await?;
        show_range(session, &reply, false)
    }
}

/// Until a key is deleted.
async fn deleted(client: &Client, want: Want) -> Result<(), Failure> {
    let mut watch = Watch::new(client.clone(), [want], 0, 0);
    while let Some(heard) = watch.next().await? {
        match heard {
            Heard::Of(_, News::Events(events))
                if events.iter().any(|event| event.r#type == EventType::Delete as i32) =>
            {
                return Ok(());
            }
            // Whoever waits looks again.
            Heard::Of(_, News::Compacted { .. }) => return Ok(()),
            // The next would end as well.
            Heard::Of(_, News::Ended { reason }) => return Err(Failure::error(reason)),
            _ => {}
        }
    }
    Ok(())
}

/// Prints each leader in turn: now the oldest claim, then whoever follows it.
async fn observe(session: &Session, name: &str) -> Result<(), Failure> {
    let client = session.client().await?;
    let prefix = format!("{name}/");
    let (key, range_end) = (Bytes::from(prefix.clone()), behind_prefix(prefix.as_bytes()));
    let mut shown = None;
    loop {
        let first = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            sort_order: SortOrder::Ascend as i32,
            sort_target: SortTarget::Create as i32,
            limit: 1,
            ..Default::default()
        };
        let mut reply = client.ask(first).await?;
        let leader = reply.kvs.first().map(|kv| (kv.key.clone(), kv.mod_revision));
        if leader.is_some() && leader != shown {
            (reply.more, reply.count) = (false, 0);
            show_range(session, &reply, false)?;
            shown = leader;
        }
        let start_revision = reply.header.unwrap_or_default().revision + 1;
        let want = Want { key: key.clone(), range_end: range_end.clone(), start_revision, ..Want::default() };
        tokio::select! {
            changed = changed(&client, want) => changed?,
            () = interrupted() => return Ok(()),
        }
    }
}

/// Until something changes.
async fn changed(client: &Client, want: Want) -> Result<(), Failure> {
    let mut watch = Watch::new(client.clone(), [want], 0, 0);
    while let Some(heard) = watch.next().await? {
        match heard {
            Heard::Of(_, News::Events(_) | News::Compacted { .. }) => break,
            Heard::Of(_, News::Ended { reason }) => return Err(Failure::error(reason)),
            _ => {}
        }
    }
    Ok(())
}

/// Until somebody wants it to end.
async fn interrupted() {
    let terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let Ok(mut terminated) = terminated else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
}
