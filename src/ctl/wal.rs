//! `wal dump`: what stands in the log of a stopped member. etcd's etcd-dump-logs does the same for its own.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, value};
use super::failure::Failure;
use crate::offline::dump::{Format, dump};
use crate::offline::{Error, Looked};

pub(super) fn wal_command() -> Command {
    let dump = command("dump", "", "Prints a stopped member's log");
    group("wal", "A member's log").subcommand(
        with_directory(dump)
            .arg(value("format", "text", "text, json (a line each), or etcd (InternalRaftRequest in base64)"))
            .arg(value("start-index", "0", "the first entry that is printed"))
            .arg(value("end-index", "", "the last entry that is printed")),
    )
}

/// Flags that name a member's directory.
pub(super) fn with_directory(command: Command) -> Command {
    command
        .arg(value("data-dir", "", "the member's data directory, which is only read"))
        .arg(value("wal-dir", "", "the log's directory, if not inside the other"))
        .arg(value("encryption-key-file", "", "the keys that both are encrypted with, if they are"))
}

/// The directory that the flags name.
pub(super) fn look(typed: &Typed<'_>) -> Result<Looked, Failure> {
    if let Some(word) = typed.words().first() {
        return Err(Failure::bad_arguments(format!("{word:?} is one word too many")));
    }
    if typed.text("data-dir").is_empty() {
        return Err(Failure::bad_arguments("required flag(s) \"data-dir\" not set"));
    }
    let path = |name| Some(typed.text(name)).filter(|path| !path.is_empty()).map(Path::new);
    let looked = Looked::at(Path::new(typed.text("data-dir")), path("wal-dir"), path("encryption-key-file"));
    looked.map_err(|error| Failure::error(error.to_string()))
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let format = match typed.text("format") {
        "text" => Format::Text,
        "json" => Format::Json,
        "etcd" => Format::Etcd,
        other => return Err(Failure::bad_arguments(format!("--format is text, json or etcd, not {other:?}"))),
    };
    let index = |name: &str, otherwise: u64| match typed.text(name) {
        "" => Ok(otherwise),
        text => text.parse().map_err(|_| Failure::bad_arguments(format!("--{name} wants an index, not {text:?}"))),
    };
    let range = index("start-index", 0)?..=index("end-index", u64::MAX)?;
    let looked = look(&typed)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = match dump(&looked, format, range, &mut out) {
        // Whoever read it has seen enough.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        Err(error) => return Err(Failure::error(error.to_string())),
        Ok(outcome) => outcome,
    };
    for remark in &outcome.remarks {
        let _ = writeln!(io::stderr(), "{remark}");
    }
    if outcome.damage.is_empty() { Ok(()) } else { Err(Failure::error(outcome.damage.join("\n"))) }
}
