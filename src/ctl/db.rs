//! `db check`: whether the directory of a stopped member is sound.

use clap::{ArgMatches, Command};
use serde_json::json;

use super::arguments::{Typed, command, group};
use super::failure::Failure;
use super::print::print;
use super::wal::{look, with_directory};
use crate::offline::check::{Report, check};

pub(super) fn db_command() -> Command {
    let check = command("check", "", "Checks a stopped member's data directory");
    group("db", "A member's data").subcommand(with_directory(check))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let show = match typed.text("write-out") {
        "simple" => simple,
        "json" => json_line,
        other => return Err(Failure::bad_feature(format!("{other} not supported as output format"))),
    };
    let report = check(&look(&typed)?).map_err(|error| Failure::error(error.to_string()))?;
    print(&show(&report))?;
    match report.problems.len() {
        0 => Ok(()),
        1 => Err(Failure::error("the directory is damaged: one thing is wrong")),
        count => Err(Failure::error(format!("the directory is damaged: {count} things are wrong"))),
    }
}

fn simple(report: &Report) -> String {
    let mut lines = Vec::new();
    if let Some((cluster, member)) = report.identity {
        lines.push(format!("member {member} of cluster {cluster}"));
    }
    let log = &report.log;
    lines.push(format!(
        "log: entries after {} up to {}, committed {}, term {}, {} segments",
        log.base, log.last, log.committed, log.term, log.segments
    ));
    if let Some(state) = &report.state {
        let auth = if state.auth { "on" } else { "off" };
        lines.push(format!(
            "state: at entry {}, revision {}, compacted {}, {} keys, {} rows of history, {} leases, {} members, auth {auth}",
            state.applied, state.revision, state.compacted, state.keys, state.history_rows, state.leases, state.members
        ));
        if let Some(hash) = state.hash {
            let (hash, revision, compacted) = (hash.hash, hash.hash_revision, hash.compact_revision);
            lines.push(format!("HashKV: {hash} at revision {revision}, compacted {compacted}"));
        }
    }
    lines.extend(report.remarks.iter().map(|remark| format!("note: {remark}")));
    lines.extend(report.problems.iter().map(|problem| format!("WRONG: {problem}")));
    if report.problems.is_empty() {
        lines.push("sound".to_owned());
    }
    lines.join("\n") + "\n"
}

fn json_line(report: &Report) -> String {
    let log = &report.log;
    let state = report.state.as_ref().map(|state| {
        json!({
            "applied": state.applied.0, "revision": state.revision.0, "compacted": state.compacted.0, "keys": state.keys,
            "historyRows": state.history_rows, "leases": state.leases, "members": state.members, "auth": state.auth,
            "hash": state.hash.map(|hash| hash.hash),
        })
    });
    let line = json!({
        "cluster": report.identity.map(|(cluster, _)| cluster.to_string()),
        "member": report.identity.map(|(_, member)| member.to_string()),
        "log": {
            "base": log.base.0, "last": log.last.0, "committed": log.committed.0, "term": log.term.0, "segments": log.segments,
        },
        "state": state,
        "remarks": report.remarks,
        "problems": report.problems,
        "sound": report.problems.is_empty(),
    });
    format!("{line}\n")
}
