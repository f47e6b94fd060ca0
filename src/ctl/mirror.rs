//! `make-mirror`: what is here goes there, and goes on going there.
//!
//! First all keys as of one revision, a page at a time; then every change after it, whole revisions in one transaction each unless
//! they are too large for one. With `--rev` there is no first part.

use std::time::Duration;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, switch, value};
use super::failure::Failure;
use super::kv::behind_prefix;
use super::print::print;
use super::session::{Session, login};
use crate::client::resume::News;
use crate::client::{Client, Heard, Settings, Tls, Want, Watch};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::mvccpb::Event;
use crate::pb::mvccpb::event::EventType;

/// How often it is said how many keys went over.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// Keys asked for at once.
const PAGE: i64 = 1000;

pub(super) fn mirror_command() -> Command {
    command("make-mirror", "<destination>", "Copies keys to another cluster, and goes on doing so")
        .arg(value("prefix", "", "only keys that begin so"))
        .arg(value("rev", "0", "only changes from this revision on"))
        .arg(value("dest-prefix", "", "what stands there instead of the prefix"))
        .arg(switch("no-dest-prefix", "nothing stands there instead of the prefix"))
        .arg(value("max-txn-ops", "128", "most changes in one transaction there"))
        .arg(value("dest-cert", "", "certificate for the other cluster"))
        .arg(value("dest-key", "", "key of that certificate"))
        .arg(value("dest-cacert", "", "who may vouch for the other cluster"))
        .arg(switch("dest-insecure-transport", "in the clear").default_value("true"))
        .arg(value("dest-user", "", "username[:password] there"))
        .arg(value("dest-password", "", "password of that user"))
}

/// A mirror at work.
struct Mirror {
    there: Client,
    prefix: String,
    instead: String,
    operations_max: usize,
    /// Keys that went over.
    total: u64,
}

pub(super) async fn run(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let [destination] = typed.exactly("make-mirror takes one destination argument")?;
    let (prefix, instead) = (typed.text("prefix").to_owned(), typed.text("dest-prefix").to_owned());
    let (none, revision) = (typed.on("no-dest-prefix")?, typed.number("rev")?);
    if none && !instead.is_empty() {
        return Err(Failure::bad_arguments(
            "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
        ));
    }
    let instead = if none || !instead.is_empty() { instead } else { prefix.clone() };
    let path = |name| Some(typed.text(name)).filter(|path| !path.is_empty()).map(Into::into);
    let required = !typed.on("dest-insecure-transport")?;
    let (cacert, cert, key) = (path("dest-cacert"), path("dest-cert"), path("dest-key"));
    let tls = Tls { cacert, cert, key, required, ..Tls::default() };
    tls.check().map_err(Failure::bad_arguments)?;
    let settings = Settings { tls, ..Settings::default() };
    let there = Client::with_settings(&[destination.to_owned()], 1, &settings)
        .map_err(|error| Failure::connection(error.to_string()))?;
    let there = there.with_login(login(typed.text("dest-user"), typed.text("dest-password"))?);
    let operations_max = usize::try_from(typed.number("max-txn-ops")?).unwrap_or(0).max(1);
    let mut mirror = Mirror { there, prefix, instead, operations_max, total: 0 };
    mirror.follow(session, revision).await
}

impl Mirror {
    async fn follow(&mut self, session: &Session, revision: i64) -> Result<(), Failure> {
        let here = session.lasting_client()?;
        let mut say = tokio::time::interval(SAY_EVERY);
        // The first tick is at once, and there is nothing to say.
        say.tick().await;
        let (key, range_end) = match self.prefix.as_bytes() {
            b"" => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            prefix => (Bytes::copy_from_slice(prefix), behind_prefix(prefix)),
        };
        let mut base = (revision <= 1).then(|| RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            limit: PAGE,
            ..Default::default()
        });
        let mut start_revision = revision;
        while let Some(mut page) = base.take() {
            let reply = here.ask(page.clone()).await?;
            if page.revision == 0 {
                // All pages are of the moment of the first, and changes begin behind it.
                page.revision = reply.header.unwrap_or_default().revision;
                start_revision = page.revision + 1;
            }
            if let (true, Some(last)) = (reply.more, reply.kvs.last()) {
                page.key = [&last.key[..], b"\0"].concat().into();
                base = Some(page);
            }
            for kv in reply.kvs {
                let put = PutRequest { key: self.named(&kv.key), value: kv.value, ..Default::default() };
                self.there.ask(put).await?;
                self.total += 1;
            }
        }
        let mut watch = Watch::new(here, [Want { key, range_end, start_revision, ..Want::default() }], 0, 0);
        loop {
            let heard = tokio::select! {
                heard = watch.next() => heard?,
                _ = say.tick() => { print(&format!("{}\n", self.total))?; continue }
            };
            match heard {
                Some(Heard::Of(_, News::Events(events))) => self.repeat(events).await?,
                Some(Heard::Of(_, News::Compacted { .. })) => {
                    return Err(Failure::error("etcdserver: mvcc: required revision has been compacted"));
                }
                Some(Heard::Of(_, News::Ended { reason })) => return Err(Failure::error(reason)),
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    /// The key's name there.
    fn named(&self, key: &[u8]) -> Bytes {
        let rest = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        [self.instead.as_bytes(), rest].concat().into()
    }

    /// The same changes there, a revision at a time.
    async fn repeat(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        for change in events.chunk_by(|left, right| revision(left) == revision(right)) {
            for part in change.chunks(self.operations_max) {
                let success = part.iter().map(|event| self.operation(event)).collect();
                self.there.ask(TxnRequest { success, ..Default::default() }).await?;
                self.total += part.len() as u64;
            }
        }
        Ok(())
    }

    fn operation(&self, event: &Event) -> RequestOp {
        let kv = event.kv.clone().unwrap_or_default();
        let key = self.named(&kv.key);
        let request = if event.r#type == EventType::Delete as i32 {
            Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })
        } else {
            Request::RequestPut(PutRequest { key, value: kv.value, ..Default::default() })
        };
        RequestOp { request: Some(request) }
    }
}
