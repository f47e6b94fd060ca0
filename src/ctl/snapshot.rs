//! `snapshot save`, `status` and `restore`: as etcdctl and etcdutl have them, with files of either server.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, group, switch, value};
use super::failure::Failure;
use super::print::{Format, print, table};
use super::progress::{Progress, bytes};
use super::session::Session;
use crate::backup::HASH_BYTES;
use crate::backup::read::Source;
use crate::backup::status::Status;
use crate::client::Client;
use crate::pb::everwatchpb;
use crate::server::restore::{Plan, Restored, restore};

pub(super) fn snapshot_command() -> Command {
    group("snapshot", "Backups")
        .subcommand(command("save", "<file>", "Saves a backup of a member; etcdutl takes it, too"))
        .subcommand(command("status", "<file>", "Tells about a backup"))
        .subcommand(
            with_plan(command("restore", "<file>", "Makes a new cluster member's data directory from a backup"))
                .arg(switch("skip-hash-check", "take a file that has no hash, or a wrong one"))
                .arg(value("bump-revision", "0", "go on so many revisions later, so that watches of before end"))
                .arg(switch("mark-compacted", "and so that all before is compacted")),
        )
}

/// Flags that a new member is described by.
pub(super) fn with_plan(command: Command) -> Command {
    let urls = "http://localhost:2380";
    command
        .arg(value("data-dir", "", "the directory to be made"))
        .arg(value("wal-dir", "", "the log's directory, if not inside the other"))
        .arg(value("encryption-key-file", "", "keys to encrypt both directories with"))
        .arg(value("name", "default", "the member, of those in --initial-cluster"))
        .arg(value("initial-cluster", "default=http://localhost:2380", "all members"))
        .arg(value("initial-cluster-token", "etcd-cluster", "tells clusters of the same members apart"))
        .arg(value("initial-advertise-peer-urls", urls, "where other members reach it"))
}

/// The member that the flags describe.
pub(super) fn plan(typed: &Typed<'_>) -> Result<Plan, Failure> {
    let text = |name| typed.text(name).to_owned();
    let path = |name| Some(text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    if typed.text("data-dir").is_empty() {
        return Err(Failure::bad_arguments("required flag(s) \"data-dir\" not set"));
    }
    Ok(Plan {
        data_dir: text("data-dir").into(),
        wal_dir: path("wal-dir"),
        encryption_key_file: path("encryption-key-file"),
        name: text("name"),
        initial_cluster: text("initial-cluster"),
        initial_cluster_token: text("initial-cluster-token"),
        initial_advertise_peer_urls: text("initial-advertise-peer-urls")
            .split(',')
            .map(|url| url.trim().to_owned())
            .collect(),
        bump_revision: 0,
    })
}

pub(super) async fn run(session: &Session, name: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    match name {
        "save" => {
            let [path] = typed.exactly("snapshot save expects one argument")?;
            let [endpoint] = &session.endpoints[..] else {
                let list = session.endpoints.join(" ");
                let why = format!("snapshot must be requested to one selected node, not multiple [{list}]");
                return Err(Failure::interrupted(why));
            };
            let client = session.authenticated(session.client_of(std::slice::from_ref(endpoint))?).await?;
            save(&client, Path::new(path)).await
        }
        "status" => {
            let [path] = typed.exactly("snapshot status requires exactly one argument")?;
            let path = Path::new(path);
            if !path.exists() {
                return Err(Failure::error(format!("stat {}: no such file or directory", path.display())));
            }
            let status = Source::open(path, true).and_then(|mut source| source.status());
            let status = status.map_err(|error| about(path, &error))?;
            print(&show(&status, session.format)?)
        }
        _ => {
            let [path] = typed.exactly("snapshot restore requires exactly one argument")?;
            let (path, unchecked, plan) = (Path::new(path), typed.on("skip-hash-check")?, restore_plan(&typed)?);
            let restored = restore_from(path, unchecked, &plan, &[])?;
            print(&describe(path, &plan, &restored))
        }
    }
}

fn restore_plan(typed: &Typed<'_>) -> Result<Plan, Failure> {
    let bump = typed.number("bump-revision")?;
    let bump_revision = bump.try_into().map_err(|_| Failure::bad_arguments("--bump-revision wants a number"))?;
    // As in etcdutl: what is skipped must not be read, and what is compacted must be skipped.
    if (bump == 0) == typed.on("mark-compacted")? {
        return Err(Failure::bad_arguments("--mark-compacted required if --revision-bump"));
    }
    Ok(Plan { bump_revision, ..plan(typed)? })
}

/// Makes a data directory from a file, and from what is to be carried out after it.
pub(super) fn restore_from(
    path: &Path,
    unchecked: bool,
    plan: &Plan,
    after: &[everwatchpb::Command],
) -> Result<Restored, String> {
    let mut source = Source::open(path, unchecked).map_err(|error| about(path, &error))?;
    let size = source.size();
    let mut progress = Progress::new("restoring");
    restore(plan, &mut source, after, &mut |done| progress.at(done, size)).map_err(|error| error.to_string())
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
async fn save(client: &Client, path: &Path) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let outcome = save_as(client, &part).await.and_then(|version| {
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
            // etcdctl's code for what went wrong with a backup.
            Err(Failure::interrupted(why))
        }
    }
}

async fn save_as(client: &Client, part: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("could not write {} ({error})", part.display());
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part);
    let not_opened = |error: io::Error| {
        let (part, why) = (
            part.display(),
            match error.kind() {
                io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                _ => error.to_string(),
            },
        );
        format!("could not open {part} (open {part}: {why})")
    };
    let mut file = file.map_err(not_opened)?;
    let mut backup = client.backup(0).await.map_err(|error| error.etcd_text())?;
    let (mut saved, mut version) = (0, String::new());
    let mut progress = Progress::new("saving");
    while let Some(piece) = backup.next().await.map_err(|error| error.etcd_text())? {
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

fn show(status: &Status, format: Format) -> Result<String, Failure> {
    let Status { hash, revision, total_key, total_size } = *status;
    match format {
        Format::Simple => Ok(format!("{hash:x}, {revision}, {total_key}, {}\n", bytes(total_size))),
        Format::Json => Ok(format!(
            "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{total_key},\"totalSize\":{total_size}}}\n"
        )),
        Format::Fields => Ok(format!(
            "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_key}\n\"Size\" : {total_size}\n"
        )),
        Format::Table => Ok(table(
            &["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"],
            &[vec![format!("{hash:x}"), revision.to_string(), total_key.to_string(), bytes(total_size)]],
        )),
        Format::Protobuf => Err(format.unsupported()),
    }
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
        assert_eq!(show(&status, Format::Simple).unwrap(), "e1e47077, 12, 22, 45 kB\n");
        assert_eq!(
            show(&status, Format::Json).unwrap(),
            "{\"hash\":3789844599,\"revision\":12,\"totalKey\":22,\"totalSize\":45056}\n"
        );
        assert_eq!(
            show(&status, Format::Table).unwrap(),
            "\
+----------+----------+------------+------------+
|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE |
+----------+----------+------------+------------+
| e1e47077 |       12 |         22 |      45 kB |
+----------+----------+------------+------------+
"
        );
        assert_eq!(
            show(&status, Format::Fields).unwrap(),
            "\"Hash\" : 3789844599\n\"Revision\" : 12\n\"Keys\" : 22\n\"Size\" : 45056\n"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let plan = |line: &str| {
            let command = snapshot_command();
            let matches = command.try_get_matches_from(format!("snapshot {line}").split(' ')).expect("flags are known");
            restore_plan(&Typed(matches.subcommand().expect("it is restore").1))
        };
        assert!(plan("restore f --data-dir d").is_ok());
        assert!(plan("restore f --data-dir d --bump-revision 7 --mark-compacted").is_ok());
        for line in [
            "restore f",
            "restore f --data-dir d --bump-revision x --mark-compacted",
            "restore f --data-dir d --bump-revision 7",
            "restore f --data-dir d --mark-compacted",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
