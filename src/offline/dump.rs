//! The log, printed in its order: one line for each command that it says is carried out, or for each that there is.
//!
//! | format | a line                                                                                   | of                       |
//! |--------|------------------------------------------------------------------------------------------|--------------------------|
//! | text   | index, term, and what is to be done, with tabs between; `?` behind the index: not known to be committed | every entry |
//! | json   | the same as an object, the request as etcd has it                                         | every entry              |
//! | etcd   | an `etcdserverpb.InternalRaftRequest` in base64                                           | committed commands       |
//!
//! A command that was refused when it was carried out stands here like any other: the log does not know. What raft adds by itself (a new
//! leader's empty entry) is not shown in the last form, nor are changes of members, which etcd writes as entries of another
//! kind. Hashes of passwords and tokens stand only in the last form: whoever replays needs them, whoever reads does not.

use std::io::{self, Write};
use std::ops::RangeInclusive;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::json;

use super::{Error, Looked, etcd, words};
use crate::pb;
use crate::pb::everwatchpb::{Command, Reconfiguration};
use crate::state::command::{decode_proposal, decode_reconfiguration};
use crate::storage::wal::LogEntry;
use crate::storage::wal::inspect::{Inspected, inspect};
use crate::types::{Index, Term};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For etcd's tools.
    Etcd,
}

/// What there is to be said besides.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is to be known about the log.
    pub remarks: Vec<String>,
    /// Why it is not all there.
    pub damage: Vec<String>,
}

/// An entry, understood.
pub(super) enum Content {
    /// Nothing: a new leader has begun.
    Nothing,
    /// Commands, in this order.
    Commands(Vec<Command>),
    /// A change of who belongs.
    Change(Reconfiguration),
}

/// Writes the lines of the entries in `range`.
pub fn dump(
    looked: &Looked,
    format: Format,
    range: RangeInclusive<u64>,
    out: &mut dyn Write,
) -> Result<Outcome, Error> {
    let found = inspect(&looked.wal, looked.keys.as_ref())?;
    let mut outcome = Outcome { damage: damage(&found), ..Outcome::default() };
    let committed = committed(&found);
    let printer = Printer { format, request: described() };
    let (mut unsure, mut changes) = (0, 0);
    for entry in found.log.entries.iter().filter(|entry| range.contains(&entry.index.0)) {
        let sure = entry.index <= committed;
        unsure += u64::from(!sure);
        match content(entry) {
            Ok(content) => {
                changes += u64::from(matches!(content, Content::Change(_)));
                if sure || format != Format::Etcd {
                    printer.entry(out, entry.index, entry.term, sure, &content).map_err(Error::Output)?;
                }
            }
            Err(what) => outcome.damage.push(format!("raft entry {}: {what}", entry.index)),
        }
    }
    let base = found.log.base.index.0;
    // (Nothing comes before the entry that stands for the founding.)
    if *range.start() <= base && base > 1 {
        outcome.remarks.push(format!("the log begins after entry {base}: what came before is in the state"));
    }
    if unsure > 0 {
        outcome.remarks.push(format!("{unsure} entries after {committed} are not known to be committed"));
    }
    if changes > 0 && format == Format::Etcd {
        outcome.remarks.push(format!("{changes} entries that change the members are left out"));
    }
    out.flush().map_err(Error::Output)?;
    Ok(outcome)
}

/// What keeps the log from being all there, in words.
pub(super) fn damage(found: &Inspected) -> Vec<String> {
    let torn = found.torn.as_ref().map(|torn| {
        let path = torn.path.display();
        format!("{path} ends at byte {} with {} bytes of a record that was never finished", torn.offset, torn.bytes)
    });
    found.damage.iter().map(ToString::to_string).chain(torn).collect()
}

/// The last entry that the log knows to be committed.
pub(super) fn committed(found: &Inspected) -> Index {
    found.log.hard_state.map_or(Index(0), |state| state.commit).max(found.log.base.index)
}

/// What an entry says; in words why that is not known.
pub(super) fn content(entry: &LogEntry) -> Result<Content, String> {
    let unreadable = |error: prost::DecodeError| format!("cannot be read: {error}");
    match entry.kind {
        0 if entry.data.is_empty() => Ok(Content::Nothing),
        0 => Ok(Content::Commands(decode_proposal(entry.data.clone()).map_err(unreadable)?.commands)),
        // Raft's own, to leave a configuration that is never entered.
        1 | 2 if entry.context.is_empty() => Ok(Content::Nothing),
        1 | 2 => Ok(Content::Change(decode_reconfiguration(entry.context.clone()).map_err(unreadable)?)),
        kind => Err(format!("is of kind {kind}, which does not exist")),
    }
}

struct Printer {
    format: Format,
    request: MessageDescriptor,
}

impl Printer {
    fn entry(&self, out: &mut dyn Write, index: Index, term: Term, sure: bool, content: &Content) -> io::Result<()> {
        match (self.format, content) {
            (Format::Text, content) => {
                let unsure = if sure { "" } else { "?" };
                words::of(content).iter().try_for_each(|line| writeln!(out, "{index}{unsure}\t{term}\t{line}"))
            }
            (Format::Json, Content::Commands(commands)) => commands.iter().try_for_each(|command| {
                let requests: Vec<_> = etcd::requests(command, term)
                    .into_iter()
                    .map(|request| self.json(etcd::without_secrets(request)))
                    .collect();
                // One line for each: what etcd needs several requests for, as for leases that ran out, is still one command.
                let line = json!({
                    "index": index.0, "term": term.0, "committed": sure, "command": words::kind(command),
                    "requests": requests,
                });
                writeln!(out, "{line}")
            }),
            (Format::Json, content) => {
                let line = json!({
                    "index": index.0, "term": term.0, "committed": sure, "command": words::of(content).join(" "),
                    "requests": [],
                });
                writeln!(out, "{line}")
            }
            (Format::Etcd, Content::Commands(commands)) => {
                let mut requests = commands.iter().flat_map(|command| etcd::requests(command, term));
                requests.try_for_each(|request| writeln!(out, "{}", STANDARD.encode(request.encode_to_vec())))
            }
            (Format::Etcd, _) => Ok(()),
        }
    }

    fn json(&self, request: pb::etcdserverpb::InternalRaftRequest) -> serde_json::Value {
        let message = DynamicMessage::decode(self.request.clone(), &request.encode_to_vec()[..]);
        let options = SerializeOptions::new().use_proto_field_name(true);
        let value = message.map(|message| message.serialize_with_options(serde_json::value::Serializer, &options));
        value.expect("it is the same message").expect("a message without maps is JSON")
    }
}

fn described() -> MessageDescriptor {
    let pool = DescriptorPool::decode(pb::DESCRIPTORS).expect("build.rs wrote it");
    pool.get_message_by_name("etcdserverpb.InternalRaftRequest").expect("it is in proto/")
}
