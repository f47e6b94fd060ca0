//! `everwatchctl`: what etcdctl does, with its commands, flags, outputs and exit codes, so that scripts can take either.
//!
//! ```text
//!  arguments ──▶ session: settings, connections ──▶ a command: asks ([`crate::client`]), then prints (`print`, `go`)
//!                                                        └─ failure: a text for stderr and an exit code
//! ```
//!
//! Some things it does otherwise. A watch goes on where it was when its member goes away, at the next endpoint, with nothing lost
//! and nothing twice, and what becomes of the connection is said on stderr. Backups, whose restore makes a directory of ours. And
//! `migrate`, the way here from etcd. `wal` and `db` look at the directory of a stopped member. `tests/compat/ctl.py` holds both tools against each other, and lists all differences.
//!
//! Deliberately missing: `defrag --data-dir`, for a stopped member needs no defragmenting.

use std::ffi::OsString;
use std::io::Write;

use clap::{ArgMatches, Command};

mod arguments;
mod auth;
mod check;
mod db;
mod duration;
mod endpoint;
mod failure;
mod go;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod member;
mod migrate;
mod mirror;
mod print;
mod progress;
mod role;
mod session;
mod snapshot;
mod txn;
mod wal;
mod watch;

pub use failure::Failure;

use arguments::Typed;
use print::print;
use session::Session;

use crate::version;

/// The tool's name.
const NAME: &str = "everwatchctl";

fn root() -> Command {
    let completion = arguments::command("completion", "<shell>", "Prints completion for bash, zsh or fish");
    let root = arguments::group(NAME, "A command line client of Everwatch and etcd")
        .subcommand(kv::get_command())
        .subcommand(kv::put_command())
        .subcommand(kv::del_command())
        .subcommand(txn::txn_command())
        .subcommand(kv::compaction_command())
        .subcommand(watch::watch_command())
        .subcommand(lease::lease_command())
        .subcommand(member::member_command())
        .subcommand(endpoint::endpoint_command())
        .subcommand(maintenance::alarm_command())
        .subcommand(maintenance::defrag_command())
        .subcommand(maintenance::move_leader_command())
        .subcommand(snapshot::snapshot_command())
        .subcommand(migrate::migrate_command())
        .subcommand(wal::wal_command())
        .subcommand(db::db_command())
        .subcommand(lock::lock_command())
        .subcommand(lock::elect_command())
        .subcommand(auth::auth_command())
        .subcommand(auth::user_command())
        .subcommand(role::role_command())
        .subcommand(check::check_command())
        .subcommand(mirror::mirror_command())
        .subcommand(completion)
        .subcommand(arguments::command("version", "", "Prints the version"));
    arguments::with_global_flags(root)
}

/// Does what the line asks for.
pub async fn run(line: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let line: Vec<OsString> = line.collect();
    let outcome = run_line(&line).await;
    if let Err(Failure::Usage(_)) = outcome {
        // What is wrong is said on stderr; how it is right, on stdout.
        print(&arguments::help_of(root(), &line))?;
    }
    outcome
}

async fn run_line(line: &[OsString]) -> Result<(), Failure> {
    let matches = arguments::read(root(), line.iter().cloned())?;
    match matches.subcommand() {
        Some((name, inner)) => dispatch(name, inner).await,
        None => match Typed(&matches).words().first() {
            Some(word) => {
                Err(Failure::error(format!("unknown command {word:?} for {NAME:?}\nRun '{NAME} --help' for usage.")))
            }
            None => Err(Failure::Help(root().render_help().to_string())),
        },
    }
}

async fn dispatch(name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    match name {
        "version" => {
            let api = version::CLUSTER.trim_end_matches(".0");
            return print(&format!("{NAME} version: {}\nAPI version: {api}\n", version::RELEASE));
        }
        "completion" => return completion(matches),
        "migrate" => return migrate::run(matches),
        _ => {}
    }
    // A group without a command of it, or with a word that is none, says what there is.
    let grouped = matches.subcommand();
    let known = root().find_subcommand(name).is_some_and(Command::has_subcommands);
    let (inner, matches) = match grouped {
        Some((inner, matches)) => (inner, matches),
        None if known => {
            let help = root().find_subcommand_mut(name).map(|group| group.render_help().to_string());
            return Err(Failure::Help(help.unwrap_or_default()));
        }
        None => ("", matches),
    };
    match (name, inner) {
        // Of files: nobody is asked.
        ("wal", "dump") => return wal::run(matches),
        ("db", "check") => return db::run(matches),
        _ => {}
    }
    let session = Session::new(matches).await?;
    match name {
        "get" => kv::get(&session, matches).await,
        "put" => kv::put(&session, matches).await,
        "del" => kv::del(&session, matches).await,
        "compaction" => kv::compaction(&session, matches).await,
        "txn" => txn::txn(&session, matches).await,
        "watch" => watch::run(&session, matches).await,
        "lease" => lease::run(&session, inner, matches).await,
        "member" => member::run(&session, inner, matches).await,
        "endpoint" => endpoint::run(&session, inner, matches).await,
        "alarm" => maintenance::alarm(&session, inner, matches).await,
        "defrag" => maintenance::defrag(&session, matches).await,
        "move-leader" => maintenance::move_leader(&session, matches).await,
        "snapshot" => snapshot::run(&session, inner, matches).await,
        "lock" => lock::lock(&session, matches).await,
        "elect" => lock::elect(&session, matches).await,
        "auth" => auth::auth(&session, inner, matches).await,
        "user" => auth::user(&session, inner, matches).await,
        "role" => role::run(&session, inner, matches).await,
        "check" => check::run(&session, inner, matches).await,
        "make-mirror" => mirror::run(&session, matches).await,
        other => unreachable!("{other} is no command of the table"),
    }
}

fn completion(matches: &ArgMatches) -> Result<(), Failure> {
    use clap_complete::{Shell, generate};
    let words = Typed(matches).words();
    let shell = match words[..] {
        ["bash"] => Shell::Bash,
        ["zsh"] => Shell::Zsh,
        ["fish"] => Shell::Fish,
        _ => return Err(Failure::bad_arguments("completion wants one of bash, zsh and fish")),
    };
    let mut script = Vec::new();
    generate(shell, &mut root(), NAME, &mut script);
    print::print_bytes(&script)
}

/// Says on stderr what is to be said of a failure, as etcdctl says it; the help on stdout.
pub fn tell(failure: &Failure) {
    let said = match failure {
        Failure::Help(text) => print(text.trim_end()).and_then(|()| print("\n")),
        failure if failure.text().is_empty() => Ok(()),
        failure => {
            // There is nobody to tell that stderr is gone.
            let _ = writeln!(std::io::stderr(), "Error: {}", failure.text());
            Ok(())
        }
    };
    drop(said);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_commands_is_sound() {
        root().debug_assert();
    }
}
