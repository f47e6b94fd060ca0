//! `migrate`: from a stopped etcd, or from a file of it, to a member of ours.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};
use rustix::fs::FlockOperation;

use super::arguments::{Typed, command, switch, value};
use super::failure::Failure;
use super::print::print;
use super::snapshot::{self, describe, restore_from, with_plan};
use crate::backup::etcd_log::{self, Tail};
use crate::backup::read::Source;
use crate::server::restore::Plan;

pub(super) fn migrate_command() -> Command {
    let migrate =
        command("migrate", "", "Makes a member's data directory from a stopped etcd's data directory or a snapshot");
    with_plan(migrate)
        .arg(value("from", "", "a stopped etcd's data directory, which is only read, or a snapshot file"))
        .arg(value("from-wal-dir", "", "etcd's --wal-dir, if it had one"))
        .arg(switch("skip-hash-check", "take a snapshot file that has no hash, or a wrong one"))
}

/// Does it; says what it did.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    if let Some(word) = typed.words().first() {
        return Err(Failure::bad_arguments(format!("{word:?} is one word too many")));
    }
    let path = |name| Some(typed.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let from = path("from").ok_or_else(|| Failure::bad_arguments("required flag(s) \"from\" not set"))?;
    let (unchecked, plan) = (typed.on("skip-hash-check")?, snapshot::plan(&typed)?);
    print(&migrate(&from, path("from-wal-dir"), unchecked, &plan)?)
}

fn migrate(from: &Path, log: Option<PathBuf>, unchecked: bool, plan: &Plan) -> Result<String, String> {
    if !from.is_dir() {
        return Ok(describe(from, plan, &restore_from(from, unchecked, plan, &[])?));
    }
    let file = from.join("member/snap/db");
    // Held to the end: etcd does not start meanwhile.
    let _lock = lock(&file)?;
    let log = log.unwrap_or_else(|| from.join("member/wal"));
    let tail = after(from, &file, &log)?;
    let restored = restore_from(&file, true, plan, &tail.commands)?;
    let described = describe(&file, plan, &restored);
    Ok(format!("{described}{}", told(&tail)))
}

/// How far it came, in words.
fn told(Tail { commands, last, undecided }: &Tail) -> String {
    let also = match commands.len() {
        0 => String::new(),
        n => format!(", {n} changes among it that only the log had"),
    };
    let open = match (undecided.first(), undecided.last()) {
        (Some(first), Some(last)) => format!(
            "left out: {} changes (entries {first} to {last}) that were not decided as far as this member knew, and only the others can \
             tell; to have those that were, {REMEDY}\n",
            undecided.len(),
        ),
        _ => "the log holds no change after that\n".to_owned(),
    };
    format!("everything up to entry {last} of its log{also}\n{open}")
}

/// etcd holds the file while it runs.
fn lock(file: &Path) -> Result<File, String> {
    let opened = File::open(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(opened),
        Err(error) => Err(format!("{} cannot be locked: is etcd still running? ({error})", file.display())),
    }
}

/// What the log has after the file. Refuses a directory in which more is missing.
fn after(dir: &Path, file: &Path, log: &Path) -> Result<Tail, String> {
    let about = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let snaps = file.parent().expect("it has a name");
    let names = std::fs::read_dir(snaps).map_err(|error| about(snaps, &error))?;
    for name in names {
        let name = name.map_err(|error| about(snaps, &error))?.file_name();
        if name.as_encoded_bytes().ends_with(b".snap.db") {
            let name = name.display();
            return Err(format!("{} has a snapshot that it has not taken over yet, {name}; {REMEDY}", dir.display()));
        }
    }
    let found = Source::open(file, true).and_then(|mut source| Ok((source.consistent_index()?, source.voters()?)));
    let (index, voters) = found.map_err(|error| about(file, &error))?;
    etcd_log::tail(log, index, voters).map_err(|error| format!("{}; {REMEDY}", about(log, &error)))
}

const REMEDY: &str =
    "start etcd once more and stop it with SIGTERM, or migrate from what `etcdctl snapshot save` gives";
