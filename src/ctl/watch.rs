//! `watch`: prints changes until it is interrupted, cancelled, or compaction has removed what comes next.
//!
//! Unlike etcdctl's it goes on at the next endpoint when its member goes away, with nothing lost and nothing twice, and says so
//! on stderr. With `-i` watches are read from stdin, a line each.

use bytes::Bytes;
use clap::{Arg, ArgMatches, Command};
use tokio::sync::{mpsc, watch};

use super::arguments::{self, Typed, command, switch, value};
use super::failure::Failure;
use super::kv::behind_prefix;
use super::print::{Fields, Format, Simple, print, print_bytes};
use super::session::Session;
use super::{go, txn};
use crate::client::resume::News;
use crate::client::{Client, Heard, Want, Watch};
use crate::pb::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;

/// The name under which stands what is to be run at each change.
const EXEC: &str = "exec";
const NO_END_WITH_PREFIX: &str = "`range_end` and `--prefix` are mutually exclusive";

pub(super) fn watch_command() -> Command {
    command("watch", "<key> [range_end] [-- command arg...]", "Prints changes of keys as they happen")
        .arg(switch("interactive", "read watches from stdin").short('i'))
        .arg(switch("prefix", "all keys that begin so"))
        .arg(switch("from-key", "all keys from this one on"))
        .arg(value("rev", "0", "from this revision on; 0: from now on"))
        .arg(switch("prev-kv", "print what was there before each change"))
        .arg(switch("progress-notify", "print from time to time how far it is"))
        .arg(Arg::new(EXEC).last(true).num_args(0..).value_name("command").help("run at each change"))
}

/// One watch.
#[derive(Clone, Debug)]
struct Order {
    want: Want,
    /// A command and its arguments, or nothing.
    exec: Vec<String>,
}

impl Order {
    fn read(typed: &Typed<'_>, from: impl Fn(&str) -> Option<String>) -> Result<Order, Failure> {
        let bad = |why: &str| Failure::bad_arguments(format!("bad number of arguments{why}"));
        let exec: Vec<String> = typed.0.get_many::<String>(EXEC).into_iter().flatten().cloned().collect();
        let mut words: Vec<String> = typed.words().into_iter().map(str::to_owned).collect();
        if let Some(key) = from("ETCDCTL_WATCH_KEY") {
            if !words.is_empty() {
                return Err(bad(" (found conflicting environment key)"));
            }
            words.push(key);
            words.extend(from("ETCDCTL_WATCH_RANGE_END"));
        }
        if words.is_empty() || words.len() > 2 {
            return Err(bad(""));
        }
        let key = Bytes::from(words.remove(0));
        let end = words.pop().map(Bytes::from);
        let range_end = match (typed.on("prefix")?, typed.on("from-key")?, end) {
            (true, _, Some(_)) => return Err(Failure::bad_arguments(NO_END_WITH_PREFIX)),
            (true, true, None) | (false, true, Some(_)) => {
                return Err(Failure::bad_arguments("only one of --prefix, --from-key and range_end can be given"));
            }
            (true, false, None) => behind_prefix(&key),
            (false, true, None) => Bytes::from_static(b"\0"),
            (false, false, end) => end.unwrap_or_default(),
        };
        let want = Want {
            // The least key there is.
            key: if key.is_empty() { Bytes::from_static(b"\0") } else { key },
            range_end,
            start_revision: typed.number("rev")?,
            prev_kv: typed.on("prev-kv")?,
            progress_notify: typed.on("progress-notify")?,
            // Large responses are handed out whole all the same.
            fragment: true,
            ..Want::default()
        };
        if want.start_revision < 0 {
            return Err(Failure::bad_arguments("--rev wants a revision"));
        }
        Ok(Order { want, exec })
    }
}

pub(super) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    if typed.on("interactive")? {
        return interactive(session).await;
    }
    // What follows `--` is a command. A bare `--` wants one.
    let bare = std::env::args().next_back().is_some_and(|last| last == "--");
    let order = Order::read(&typed, |name| std::env::var(name).ok())?;
    if bare && order.exec.is_empty() {
        return Err(Failure::bad_arguments("bad number of arguments (found separator --, but no commands)"));
    }
    let (_ask, asked) = watch::channel(0);
    follow(session, session.lasting_client()?, order, asked).await?;
    Err(Failure::interrupted("watch is canceled by the server"))
}

/// Watches from stdin: `watch ..` begins one, `progress` asks all of them how far they are.
async fn interactive(session: &Session) -> Result<(), Failure> {
    let client = session.lasting_client()?;
    let (ask, asked) = watch::channel(0);
    let mut lines = stdin_lines();
    let mut watches = futures_util::stream::FuturesUnordered::new();
    loop {
        use futures_util::StreamExt;
        let line = tokio::select! {
            line = lines.recv() => line,
            // Those that were cancelled have said so.
            Some(outcome) = watches.next() => { outcome?; continue }
        };
        let Some(line) = line else {
            return Err(Failure::bad_input("error reading watch request line: EOF"));
        };
        let words = txn::split(&line);
        match words.first().map(String::as_str) {
            Some("watch") => match order_of(words) {
                Ok(order) => watches.push(follow(session, client.clone(), order, asked.clone())),
                Err(why) => eprintln!("Invalid command {line} ({why})"),
            },
            Some("progress") if words.len() == 1 => ask.send_modify(|times| *times += 1),
            _ => eprintln!("Invalid command {line} (only support watch)"),
        }
    }
}

fn order_of(words: Vec<String>) -> Result<Order, String> {
    if words.len() < 2 {
        return Err("command type or key is not provided".to_owned());
    }
    let read = arguments::read(watch_command(), words.into_iter().map(Into::into));
    read.and_then(|matches| Order::read(&Typed(&matches), |_| None)).map_err(|failure| failure.text().to_owned())
}

/// Reads them on a thread of its own, which ends with the process.
fn stdin_lines() -> mpsc::Receiver<String> {
    let (lines, read) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    read
}

/// Prints one watch until it is over.
async fn follow(
    session: &Session,
    client: Client,
    order: Order,
    mut progress: watch::Receiver<u64>,
) -> Result<(), Failure> {
    progress.mark_unchanged();
    let mut watch = Watch::new(client, [order.want], 0, 0);
    let mut lost = false;
    loop {
        let heard = tokio::select! {
            heard = watch.next() => heard.map_err(|error| Failure::error(error.etcd_text()))?,
            Ok(()) = progress.changed() => { watch.ask_progress(); continue }
        };
        let Some(heard) = heard else { return Ok(()) };
        match heard {
            Heard::Of(_, News::Events(events)) => {
                show(session, watch.header(), &events)?;
                for event in &events {
                    exec(&order.exec, event, watch.header().revision)?;
                }
            }
            Heard::Of(_, News::Progress { revision }) => show_progress(session, watch.header(), revision)?,
            Heard::Of(_, News::Created { .. }) => {}
            Heard::Of(_, News::Compacted { at }) => {
                return cancelled(
                    session,
                    watch.header(),
                    at,
                    "etcdserver: mvcc: required revision has been compacted",
                );
            }
            Heard::Of(_, News::Ended { reason }) => return cancelled(session, watch.header(), 0, &reason),
            Heard::Lost(status) => {
                // Endpoints that are gone are tried in turn: once is enough.
                if !lost {
                    eprintln!("everwatchctl: {}", status.message());
                }
                lost = true;
            }
            Heard::Moved(endpoint) => {
                if lost {
                    eprintln!("everwatchctl: watching at {}", session.endpoints[endpoint % session.endpoints.len()]);
                }
                lost = false;
            }
        }
    }
}

fn cancelled(session: &Session, header: ResponseHeader, compacted: i64, why: &str) -> Result<(), Failure> {
    eprintln!("watch was canceled ({why})");
    match session.format {
        Format::Simple => Ok(()),
        Format::Fields => header_fields(&header),
        Format::Json => print(&json(header, &[], compacted, true)),
        Format::Table => Err(session.format.unsupported()),
        Format::Protobuf => {
            let (header, compact_revision) = (Some(header), compacted);
            message(&WatchResponse { header, compact_revision, canceled: true, ..Default::default() })
        }
    }
}

fn show(session: &Session, header: ResponseHeader, events: &[Event]) -> Result<(), Failure> {
    match session.format {
        Format::Simple => {
            let mut out = Vec::new();
            simple_events(&mut out, Simple { hex: session.hex, value_only: false }, events);
            print_bytes(&out)
        }
        Format::Fields => {
            let mut fields = Fields::default();
            fields.header(Some(&header));
            for event in events {
                fields.raw("Type", type_of(event));
                event.prev_kv.iter().for_each(|kv| fields.kv("Prev", kv));
                event.kv.iter().for_each(|kv| fields.kv("", kv));
            }
            fields.print()
        }
        Format::Json => print(&json(header, events, 0, false)),
        Format::Table => Err(session.format.unsupported()),
        Format::Protobuf => {
            message(&WatchResponse { header: Some(header), events: events.to_vec(), ..Default::default() })
        }
    }
}

fn show_progress(session: &Session, header: ResponseHeader, revision: i64) -> Result<(), Failure> {
    match session.format {
        Format::Simple => print(&format!("progress notify: {revision}\n")),
        Format::Fields => header_fields(&header),
        _ => show(session, header, &[]),
    }
}

fn header_fields(header: &ResponseHeader) -> Result<(), Failure> {
    let mut fields = Fields::default();
    fields.header(Some(header));
    fields.print()
}

fn message(response: &WatchResponse) -> Result<(), Failure> {
    print_bytes(&prost::Message::encode_to_vec(response))
}

/// etcdctl prints what its client library made of the response.
fn json(header: ResponseHeader, events: &[Event], compacted: i64, canceled: bool) -> String {
    let header = go::json("ResponseHeader", &header);
    let events: Vec<String> = events.iter().map(|event| go::json_of("mvccpb.Event", event)).collect();
    format!(
        "{{\"Header\":{header},\"Events\":[{}],\"CompactRevision\":{compacted},\"Canceled\":{canceled},\"Created\":false}}\n",
        events.join(","),
    )
}

fn type_of(event: &Event) -> &'static str {
    if event.r#type == EventType::Delete as i32 { "DELETE" } else { "PUT" }
}

fn simple_events(out: &mut Vec<u8>, simple: Simple, events: &[Event]) {
    for event in events {
        out.extend(format!("{}\n", type_of(event)).bytes());
        event.prev_kv.iter().chain(&event.kv).for_each(|kv| simple.kv(out, kv));
    }
}

/// Runs the command with the change in its environment.
fn exec(command: &[String], event: &Event, revision: i64) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let kv = event.kv.clone().unwrap_or_default();
    let quoted = |bytes: &[u8]| go::quote(bytes);
    let ran = std::process::Command::new(program)
        .args(arguments)
        .env("ETCD_WATCH_REVISION", revision.to_string())
        .env("ETCD_WATCH_EVENT_TYPE", quoted(type_of(event).as_bytes()))
        .env("ETCD_WATCH_KEY", quoted(&kv.key))
        .env("ETCD_WATCH_VALUE", quoted(&kv.value))
        .status();
    let why = match ran {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => super::lock::ended(status),
        Err(error) => super::lock::not_started(program, &error),
    };
    let words: Vec<String> = command.iter().map(|word| go::quote(word.as_bytes())).collect();
    eprintln!("command [{}] error ({why})", words.join(" "));
    Err(Failure::silent(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb::KeyValue;

    fn order(line: &str) -> Result<Order, String> {
        order_of(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn orders_are_read() {
        let read = order("watch a --prefix --rev=7 -- echo --x").unwrap();
        assert_eq!((read.want.key, read.want.range_end, read.want.start_revision), ("a".into(), "b".into(), 7));
        assert_eq!(read.exec, ["echo", "--x"]);
        for line in
            ["watch", "watch a b c", "watch a b --prefix", "watch a --rev=x", "watch a --rev=-1", "watch a --nope"]
        {
            assert!(order(line).is_err(), "{line}");
        }
    }

    #[test]
    fn events_are_printed_as_etcdctl_prints_them() {
        let kv = |value: &str| KeyValue { key: "k".into(), value: Bytes::from(value.to_owned()), ..Default::default() };
        let put = Event { kv: Some(kv("new")), prev_kv: Some(kv("old")), ..Default::default() };
        let delete = Event { r#type: EventType::Delete as i32, kv: Some(kv("")), ..Default::default() };
        let mut out = Vec::new();
        simple_events(&mut out, Simple { hex: false, value_only: false }, &[put, delete]);
        assert_eq!(String::from_utf8(out).unwrap(), "PUT\nk\nold\nk\nnew\nDELETE\nk\n\n");
    }
}
