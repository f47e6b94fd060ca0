//! `everwatchctl`: what etcdctl does not do, or not so. A watch that goes on where it was when its member goes away, at the next
//! endpoint, with nothing lost and nothing twice; backups, whose restore makes a directory of ours; and the way here from etcd.
//!
//! Its output is that of etcd's tools, so that scripts can take either; what becomes of the connection is said on stderr.
//!
//! Deliberately missing: everything that etcdctl does well with this server.

use std::io::{self, Write};

use bytes::Bytes;

use crate::client::resume::News;
use crate::client::{Client, Heard, Login, Want, Watch};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};

mod arguments;
mod migrate;
mod progress;
mod snapshot;

/// How it is used.
pub const USAGE: &str = "\
everwatchctl watch KEY [RANGE_END] [--endpoints=127.0.0.1:2379[,..]]
    --prefix            all keys that begin with KEY
    --from-key          all keys from KEY on
    --rev=N             from this revision on; without it, what comes from now on
    --prev-kv           with what was there before each change
    --progress-notify   with a word from time to time how far it is
    --user=NAME:PASSWORD, or --user=NAME --password=PASSWORD
Prints changes as etcdctl does, until it is interrupted or compaction has removed what comes next.

everwatchctl snapshot save FILE [--endpoints=127.0.0.1:2379] [--user=NAME:PASSWORD] [--password=PASSWORD]
Saves a backup of a member. It is a file of etcd's: etcdutl takes it, too.

everwatchctl snapshot status FILE [-w simple|json|table|fields]
everwatchctl snapshot restore FILE --data-dir=DIR
    --wal-dir=DIR       the log's directory, if not inside the other
    --name=default      the member, of those in --initial-cluster
    --initial-cluster=default=http://localhost:2380
    --initial-cluster-token=etcd-cluster
    --initial-advertise-peer-urls=http://localhost:2380
    --skip-hash-check   the file has no hash, or a wrong one
    --bump-revision=N --mark-compacted   go on N revisions later, so that watches of before end
Makes the data directory of a member of a new cluster, from a backup of Everwatch or etcd. Every member is made from the same file.

everwatchctl migrate --from=DIR|FILE --data-dir=DIR
    --from-wal-dir=DIR  etcd's log, if not inside its data directory
    and what describes the member, as with restore
The same from the data directory of an etcd that has been stopped, which stays as it is, or from a snapshot of it.";

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options(Command);

#[derive(Clone, Debug)]
enum Command {
    Watch(Watching),
    Snapshot(snapshot::Command),
    Migrate(migrate::Command),
}

impl Options {
    /// Reads the arguments, without the program's name.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut arguments = arguments.peekable();
        let command = match arguments.peek().map(String::as_str) {
            Some("snapshot") => Command::Snapshot(snapshot::parse(arguments.skip(1))?),
            Some("migrate") => Command::Migrate(migrate::parse(arguments.skip(1))?),
            _ => Command::Watch(Watching::parse(arguments)?),
        };
        Ok(Options(command))
    }
}

/// Does what is asked for.
pub async fn run(options: Options) -> Result<(), String> {
    match options.0 {
        Command::Watch(watching) => watch(watching).await,
        Command::Snapshot(command) => snapshot::run(command).await,
        Command::Migrate(command) => print(&migrate::run(&command)?),
    }
}

/// What is to be watched, and where.
#[derive(Clone, Debug)]
struct Watching {
    endpoints: Vec<String>,
    login: Option<Login>,
    want: Want,
}

impl Watching {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Watching, String> {
        let mut endpoints = vec!["127.0.0.1:2379".to_owned()];
        let (mut words, mut want) = (Vec::new(), Want::default());
        let (mut prefix, mut from_key) = (false, false);
        let (mut user, mut password) = (None, None);
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
            match name {
                "--user" => user = Some(value.to_owned()),
                "--password" => password = Some(value.to_owned()),
                "--endpoints" => endpoints = value.split(',').map(str::to_owned).collect(),
                "--prefix" => prefix = flag(&argument)?,
                "--from-key" => from_key = flag(&argument)?,
                "--rev" => {
                    let revision = value.parse().ok().filter(|revision| *revision >= 0);
                    want.start_revision = revision.ok_or(format!("--rev wants a revision, not {value:?}"))?;
                }
                "--prev-kv" => want.prev_kv = flag(&argument)?,
                "--progress-notify" => want.progress_notify = flag(&argument)?,
                name if name.starts_with("--") => return Err(format!("unknown flag: {name}")),
                _ => words.push(argument),
            }
        }
        let mut words = words.into_iter();
        match words.next() {
            Some(command) if command == "watch" => {}
            Some(command) => return Err(format!("unknown command {command:?} for \"everwatchctl\"")),
            None => return Err("a command is needed".to_owned()),
        }
        want.key = words.next().ok_or("watch wants a key")?.into();
        let range_end: Option<Bytes> = words.next().map(Bytes::from);
        if let Some(word) = words.next() {
            return Err(format!("{word:?} is one word too many"));
        }
        want.range_end = match (prefix, from_key, range_end) {
            (true, false, None) => behind_prefix(&want.key),
            (false, true, None) => Bytes::from_static(b"\0"),
            (false, false, range_end) => range_end.unwrap_or_default(),
            _ => return Err("only one of --prefix, --from-key and RANGE_END can be given".to_owned()),
        };
        // The least key there is.
        if want.key.is_empty() {
            want.key = Bytes::from_static(b"\0");
        }
        // Large responses are handed out whole all the same.
        want.fragment = true;
        let login = Login::parse(user.as_deref(), password.as_deref())?;
        Ok(Watching { endpoints, login, want })
    }
}

/// The value of a flag that may stand alone.
fn flag(argument: &str) -> Result<bool, String> {
    match argument.split_once('=') {
        None | Some((_, "true")) => Ok(true),
        Some((_, "false")) => Ok(false),
        Some((name, value)) => Err(format!("{name} is true or false, not {value:?}")),
    }
}

/// The first key behind all that begin so; a zero byte: there is none.
fn behind_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff);
    kept.map_or(Bytes::from_static(b"\0"), |last| {
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        end.into()
    })
}

async fn watch(watching: Watching) -> Result<(), String> {
    let client = Client::new(&watching.endpoints, 1).map_err(|error| error.to_string())?.with_login(watching.login);
    let mut watch = Watch::new(client, [watching.want], 0, 0);
    let mut stdout = io::stdout().lock();
    let mut lost = false;
    while let Some(heard) = watch.next().await.map_err(|error| error.to_string())? {
        let written = match heard {
            Heard::Of(_, News::Events(events)) => write_events(&mut stdout, &events),
            Heard::Of(_, News::Progress { revision }) => writeln!(stdout, "progress notify: {revision}"),
            Heard::Of(_, News::Created { .. }) => Ok(()),
            Heard::Of(_, News::Compacted { at }) => {
                return Err(format!(
                    "watch was canceled: what comes next was compacted; revision {at} is the oldest there is"
                ));
            }
            Heard::Of(_, News::Ended { reason }) => return Err(format!("watch was canceled ({reason})")),
            Heard::Lost(status) => {
                // Endpoints that are gone are tried in turn: once is enough.
                if !lost {
                    eprintln!("everwatchctl: {}", status.message());
                }
                lost = true;
                Ok(())
            }
            Heard::Moved(endpoint) => {
                if lost {
                    eprintln!("everwatchctl: watching at {}", watching.endpoints[endpoint % watching.endpoints.len()]);
                }
                lost = false;
                Ok(())
            }
        };
        match written.and_then(|()| stdout.flush()) {
            Ok(()) => {}
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn write_events(out: &mut impl Write, events: &[Event]) -> io::Result<()> {
    for event in events {
        let kind = if event.r#type == EventType::Delete as i32 { "DELETE" } else { "PUT" };
        writeln!(out, "{kind}")?;
        for kv in event.prev_kv.iter().chain(&event.kv) {
            let KeyValue { key, value, .. } = kv;
            out.write_all(&[key, &b"\n"[..], value, b"\n"].concat())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Watching, String> {
        Watching::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn ranges_are_what_etcdctl_makes_of_them() {
        let range = |line: &str| {
            let want = parse(line).expect(line).want;
            (want.key, want.range_end)
        };
        assert_eq!(range("watch a"), ("a".into(), "".into()));
        assert_eq!(range("watch a b --prefix=false"), ("a".into(), "b".into()));
        assert_eq!(range("watch --prefix a"), ("a".into(), "b".into()));
        assert_eq!(range("watch a --from-key"), ("a".into(), "\0".into()));
        assert_eq!(behind_prefix(b"a\xff\xff")[..], b"b"[..]);
        assert_eq!(behind_prefix(b"\xff")[..], b"\0"[..]);
        assert_eq!(behind_prefix(b"")[..], b"\0"[..]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "get a",
            "watch",
            "watch a b c",
            "watch a --rev=x",
            "watch a --rev=-1",
            "watch a b --prefix",
            "watch a --nope",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn events_are_printed_as_etcdctl_prints_them() {
        let kv = |value: &str| KeyValue { key: "k".into(), value: Bytes::from(value.to_owned()), ..Default::default() };
        let put = Event { kv: Some(kv("new")), prev_kv: Some(kv("old")), ..Default::default() };
        let delete = Event { r#type: EventType::Delete as i32, kv: Some(kv("")), ..Default::default() };
        let mut out = Vec::new();
        write_events(&mut out, &[put, delete]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "PUT\nk\nold\nk\nnew\nDELETE\nk\n\n");
    }
}
