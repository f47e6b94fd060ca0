//! `snapshot save`, `status` and `restore`: as etcdctl and etcdutl have them, with files of either server.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::arguments::Arguments;
use super::print;
use super::progress::{Progress, bytes};
use crate::backup::HASH_BYTES;
use crate::backup::read::Source;
use crate::backup::status::Status;
use crate::client::{Client, Login};
use crate::server::restore::{Plan, Restored, restore};

/// A command about backups.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Save { endpoint: String, login: Option<Login>, path: PathBuf },
    Status { path: PathBuf, format: Format },
    Restore { path: PathBuf, unchecked: bool, plan: Plan },
}

/// How figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Simple,
    Json,
    Table,
    Fields,
}

/// Flags with values that a new member is described by.
pub(super) const PLAN_FLAGS: [&str; 6] = [
    "--data-dir",
    "--wal-dir",
    "--name",
    "--initial-cluster",
    "--initial-cluster-token",
    "--initial-advertise-peer-urls",
];

/// Reads what comes after `snapshot`.
pub(super) fn parse(line: impl Iterator<Item = String>) -> Result<Command, String> {
    let own = ["--endpoints", "--user", "--password", "--write-out", "--bump-revision"];
    let valued = [&own[..], &PLAN_FLAGS].concat();
    let arguments = Arguments::read(line, &valued, &["--skip-hash-check", "--mark-compacted"])?;
    let (command, words) = arguments.words().split_first().ok_or("snapshot wants save, status or restore")?;
    let [path] = words else { return Err(format!("snapshot {command} expects one argument")) };
    let path = PathBuf::from(path);
    match command.as_str() {
        "save" => {
            let endpoints = arguments.or("--endpoints", "127.0.0.1:2379");
            if endpoints.contains(',') {
                let list = endpoints.replace(',', " ");
                return Err(format!("snapshot must be requested to one selected node, not multiple [{list}]"));
            }
            let login = Login::parse(arguments.get("--user"), arguments.get("--password"))?;
            Ok(Command::Save { endpoint: endpoints, login, path })
        }
        "status" => {
            let format = match arguments.or("--write-out", "simple").as_str() {
                "simple" => Format::Simple,
                "json" => Format::Json,
                "table" => Format::Table,
                "fields" => Format::Fields,
                other => return Err(format!("unsupported output format {other:?}")),
            };
            Ok(Command::Status { path, format })
        }
        "restore" => {
            let bump = arguments.or("--bump-revision", "0");
            let bump_revision = bump.parse().map_err(|_| format!("--bump-revision wants a number, not {bump:?}"))?;
            let compacted = arguments.on("--mark-compacted")?;
            // As in etcdutl: what is skipped must not be read, and what is compacted must be skipped.
            if (bump_revision == 0) == compacted {
                return Err("--mark-compacted required if --revision-bump".to_owned());
            }
            let unchecked = arguments.on("--skip-hash-check")?;
            Ok(Command::Restore { path, unchecked, plan: Plan { bump_revision, ..plan(&arguments)? } })
        }
        other => Err(format!("unknown command {other:?} for \"everwatchctl snapshot\"")),
    }
}

/// The member that the flags describe.
pub(super) fn plan(arguments: &Arguments) -> Result<Plan, String> {
    let urls = arguments.or("--initial-advertise-peer-urls", "http://localhost:2380");
    Ok(Plan {
        data_dir: arguments.get("--data-dir").ok_or("required flag(s) \"data-dir\" not set")?.into(),
        wal_dir: arguments.get("--wal-dir").filter(|dir| !dir.is_empty()).map(PathBuf::from),
        name: arguments.or("--name", "default"),
        initial_cluster: arguments.or("--initial-cluster", "default=http://localhost:2380"),
        initial_cluster_token: arguments.or("--initial-cluster-token", "etcd-cluster"),
        initial_advertise_peer_urls: urls.split(',').map(|url| url.trim().to_owned()).collect(),
        bump_revision: 0,
    })
}

/// Does it.
pub(super) async fn run(command: Command) -> Result<(), String> {
    match command {
        Command::Save { endpoint, login, path } => save(&endpoint, login, &path).await,
        Command::Status { path, format } => {
            let status = Source::open(&path, true).and_then(|mut source| source.status());
            let status = status.map_err(|error| about(&path, &error))?;
            print(&show(&status, format))
        }
        Command::Restore { path, unchecked, plan } => {
            let restored = restore_from(&path, unchecked, &plan)?;
            print(&describe(&path, &plan, &restored))
        }
    }
}

/// Makes a data directory from a file.
pub(super) fn restore_from(path: &Path, unchecked: bool, plan: &Plan) -> Result<Restored, String> {
    let mut source = Source::open(path, unchecked).map_err(|error| about(path, &error))?;
    let size = source.size();
    let mut progress = Progress::new("restoring");
    restore(plan, &mut source, &mut |done| progress.at(done, size)).map_err(|error| error.to_string())
}

/// What was restored, in words.
pub(super) fn describe(from: &Path, plan: &Plan, restored: &Restored) -> String {
    let Restored { cluster, member, content, keys } = restored;
    let compacted = match content.compacted.0 {
        -1 => "not compacted".to_owned(),
        at => format!("compacted at {at}"),
    };
    format!(
        "restored {} to {}\n\
         member {member} ({}) of cluster {cluster} of {}\n\
         revision {}, {compacted}: {keys} keys, {} changes, {} leases, {} alarms, {} users, {} roles\n",
        from.display(),
        plan.data_dir.display(),
        plan.name,
        plan.initial_cluster,
        content.revision,
        content.changes,
        content.leases,
        content.alarms,
        content.users,
        content.roles,
    )
}

/// The file appears under its name when it is whole and on disk.
async fn save(endpoint: &str, login: Option<Login>, path: &Path) -> Result<(), String> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let outcome = save_as(endpoint, login, &part).await.and_then(|version| {
        let renamed = std::fs::rename(&part, path);
        renamed.map_err(|error| format!("could not rename {} to {} ({error})", part.display(), path.display()))?;
        Ok(version)
    });
    match outcome {
        Ok(version) => {
            let version = if version.is_empty() { version } else { format!("Server version {version}\n") };
            print(&format!("Snapshot saved at {}\n{version}", path.display()))
        }
        Err(why) => {
            // There may be none.
            let _ = std::fs::remove_file(&part);
            Err(why)
        }
    }
}

async fn save_as(endpoint: &str, login: Option<Login>, part: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("could not write {} ({error})", part.display());
    let client = Client::new(&[endpoint.to_owned()], 1).map_err(|error| error.to_string())?.with_login(login);
    let mut backup = client.backup(0).await.map_err(|error| error.to_string())?;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut file = file.map_err(failed)?;
    let (mut saved, mut version) = (0, String::new());
    let mut progress = Progress::new("saving");
    while let Some(piece) = backup.next().await.map_err(|error| error.to_string())? {
        file.write_all(&piece.bytes).map_err(failed)?;
        saved += piece.bytes.len() as u64;
        progress.at(saved, saved + piece.left);
        version = piece.version;
    }
    file.sync_all().map_err(failed)?;
    drop::<File>(file);
    if saved % 512 != HASH_BYTES as u64 {
        return Err(format!("sha256 checksum not found [bytes: {saved}]"));
    }
    // etcdctl leaves finding out to whoever restores it.
    Source::open(part, false).map_err(|error| about(part, &error))?;
    Ok(version)
}

fn show(status: &Status, format: Format) -> String {
    let Status { hash, revision, total_key, total_size } = *status;
    match format {
        Format::Simple => format!("{hash:x}, {revision}, {total_key}, {}\n", bytes(total_size)),
        Format::Json => {
            format!("{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{total_key},\"totalSize\":{total_size}}}\n")
        }
        Format::Fields => {
            format!("\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_key}\n\"Size\" : {total_size}\n")
        }
        Format::Table => table(
            &["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"],
            &[format!("{hash:x}"), revision.to_string(), total_key.to_string(), bytes(total_size)],
        ),
    }
}

/// A table of one row, as etcd's tools draw it.
fn table(heads: &[&str], cells: &[String]) -> String {
    let widths: Vec<usize> = heads.iter().zip(cells).map(|(head, cell)| head.len().max(cell.len())).collect();
    let line: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+\n";
    let centred = heads.iter().zip(&widths).map(|(head, width)| format!("| {head:^width$} "));
    let right = cells.iter().zip(&widths).map(|(cell, width)| format!("| {cell:>width$} "));
    let (centred, right): (String, String) = (centred.collect(), right.collect());
    format!("{line}{centred}|\n{line}{right}|\n{line}")
}

fn about(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_look_as_etcdutl_prints_them() {
        let status = Status { hash: 0xe1e47077, revision: 12, total_key: 22, total_size: 45056 };
        assert_eq!(show(&status, Format::Simple), "e1e47077, 12, 22, 45 kB\n");
        assert_eq!(
            show(&status, Format::Json),
            "{\"hash\":3789844599,\"revision\":12,\"totalKey\":22,\"totalSize\":45056}\n"
        );
        assert_eq!(
            show(&status, Format::Table),
            "\
+----------+----------+------------+------------+
|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE |
+----------+----------+------------+------------+
| e1e47077 |       12 |         22 |      45 kB |
+----------+----------+------------+------------+
"
        );
        assert_eq!(
            show(&status, Format::Fields),
            "\"Hash\" : 3789844599\n\"Revision\" : 12\n\"Keys\" : 22\n\"Size\" : 45056\n"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        assert!(
            parse("save f").is_ok() && parse("status f -w json").is_ok() && parse("restore f --data-dir d").is_ok()
        );
        assert!(parse("restore f --data-dir d --bump-revision 7 --mark-compacted").is_ok());
        for line in [
            "",
            "save",
            "save a b",
            "load a",
            "save f --endpoints=a:1,b:1",
            "status f -w xml",
            "restore f",
            "restore f --data-dir d --bump-revision x --mark-compacted",
            "restore f --data-dir d --bump-revision 7",
            "restore f --data-dir d --mark-compacted",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
