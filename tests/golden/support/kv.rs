//! The commands of keys and transactions.
//!
//! ```text
//! put KEY VALUE [lease=N] [prev] [ignore_value] [ignore_lease]       VALUE "" is the empty one
//! get RANGE [rev=N] [limit=N] [sort=target[:order]] [keys_only] [count_only]
//!           [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! delete RANGE [prev]
//! txn                                       and below it, indented:
//!   if TARGET(RANGE) OP VALUE               TARGET version create mod value lease; OP = != > <
//!   then COMMAND                            put, get, delete; `txn` with its body indented deeper; `nothing`
//!   else COMMAND
//! compact N                                 logically
//! step [N]                                  one step of N (default 1000) of removing rows
//! hash [N]
//! history FROM                              what a watch from there would be told, with what each change replaced
//! ```
//!
//! RANGE: `a` one key, `a..c` up to c, `a..` from a on, `a*` the prefix, `*` everything. Leases below 100 exist, except in scripts about leases.
//! `read txn` carries a transaction out as one that only reads.

use bytes::Bytes;
use everwatch::mvcc::{History, txn_is_read_only};
use everwatch::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use everwatch::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::response_op::Response;
use everwatch::pb::etcdserverpb::*;
use everwatch::pb::mvccpb::KeyValue;
use everwatch::state::command::Kind;
use everwatch::types::Revision;

use crate::world::World;

/// Carries out a command of this area; `None` when it is none.
pub(crate) fn run(world: &mut World, words: &[&str], body: &[&str]) -> Option<Vec<String>> {
    let answer = match words {
        ["put", ..] => return Some(world.propose(Kind::Put(put(words)))),
        ["get", ..] => world.state().kv.range(&get(words)).map(|response| show_range(&response)),
        ["delete", ..] => return Some(world.propose(Kind::DeleteRange(delete(words)))),
        ["txn"] => return Some(world.propose(Kind::Txn(txn(body)))),
        ["read", "txn"] => {
            let request = txn(body);
            assert!(txn_is_read_only(&request));
            world.state().kv.read_txn(&request).map(|response| show_txn(&response, ""))
        }
        ["compact", revision] => {
            let request = CompactionRequest { revision: number(revision), ..Default::default() };
            return Some(world.propose(Kind::Compaction(request)));
        }
        ["step", max @ ..] => {
            let max = max.first().map_or(1000, |max| number(max) as usize);
            let (mut state, batch) = world.state_mut();
            let rows = batch.rows.len();
            let more = state.kv.compact_step(max, batch).unwrap();
            let removed = batch.rows[rows..].iter().filter(|(_, _, value)| value.is_none()).count();
            Ok(vec![format!("removed={removed}{}", if more { " more" } else { "" })])
        }
        ["hash", at @ ..] => {
            let at = at.first().map_or(0, |at| number(at));
            world.state().kv.hash_kv(Revision(at)).map(|hash| {
                vec![format!("hash={} compacted={} at={}", hash.hash, hash.compact_revision, hash.hash_revision)]
            })
        }
        ["history", from] => Ok(history(world, Revision(number(from)))),
        _ => return None,
    };
    Some(answer.unwrap_or_else(|error| vec![format!("error: {error}")]))
}

fn history(world: &World, from: Revision) -> Vec<String> {
    let show = |set: &everwatch::mvcc::change::ChangeSet| -> Vec<String> {
        let change = |change: &everwatch::mvcc::change::Change| {
            let replaced =
                change.replaced.map_or(String::new(), |place| format!(" replaced={}.{}", place.main, place.sub));
            format!("{} {:?} {}{replaced}", set.revision, change.kind, show(&change.key)).to_lowercase()
        };
        set.changes.iter().map(change).collect()
    };
    let state = world.state();
    match state.kv.history(from, usize::MAX) {
        History::Ready(sets) => sets.iter().flat_map(|set| show(set)).collect(),
        History::Behind(scan) => {
            let mut sets = scan.read(usize::MAX).unwrap();
            state.kv.link(&mut sets);
            sets.iter().flat_map(show).collect()
        }
        History::Compacted { at } => vec![format!("error: compacted at {at}")],
    }
}

pub(crate) fn put(words: &[&str]) -> PutRequest {
    let value = if words[2] == "\"\"" { "" } else { words[2] };
    let mut request = PutRequest { key: bytes(words[1]), value: bytes(value), ..Default::default() };
    for option in &words[3..] {
        match option.split_once('=').unwrap_or((option, "")) {
            ("lease", n) => request.lease = number(n),
            ("prev", _) => request.prev_kv = true,
            ("ignore_value", _) => request.ignore_value = true,
            ("ignore_lease", _) => request.ignore_lease = true,
            _ => panic!("put has no option {option}"),
        }
    }
    request
}

pub(crate) fn get(words: &[&str]) -> RangeRequest {
    let (key, range_end) = range(words[1]);
    let mut request = RangeRequest { key, range_end, ..Default::default() };
    for option in &words[2..] {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "rev" => request.revision = number(value),
            "limit" => request.limit = number(value),
            "keys_only" => request.keys_only = true,
            "count_only" => request.count_only = true,
            "min_mod" => request.min_mod_revision = number(value),
            "max_mod" => request.max_mod_revision = number(value),
            "min_create" => request.min_create_revision = number(value),
            "max_create" => request.max_create_revision = number(value),
            "sort" => {
                let (target, order) = value.split_once(':').unwrap_or((value, "none"));
                request.sort_target =
                    SortTarget::from_str_name(&target.to_uppercase()).map_or(9, |target| target as i32);
                request.sort_order = match order {
                    "none" => SortOrder::None as i32,
                    "asc" => SortOrder::Ascend as i32,
                    "desc" => SortOrder::Descend as i32,
                    _ => -1,
                };
            }
            _ => panic!("get has no option {option}"),
        }
    }
    request
}

pub(crate) fn delete(words: &[&str]) -> DeleteRangeRequest {
    let (key, range_end) = range(words[1]);
    DeleteRangeRequest { key, range_end, prev_kv: words[2..].contains(&"prev") }
}

/// The transaction of these lines, all indented at least as far as the first.
pub(crate) fn txn(body: &[&str]) -> TxnRequest {
    let mut request = TxnRequest::default();
    let mut at = 0;
    while at < body.len() {
        let indent = indent(body[at]);
        let words: Vec<&str> = body[at].split_whitespace().collect();
        let nested = body[at + 1..].iter().take_while(|line| self::indent(line) > indent).count();
        let deeper = &body[at + 1..at + 1 + nested];
        at += 1 + nested;
        match words[0] {
            "if" => request.compare.push(compare(&words[1..])),
            "then" => request.success.push(operation(&words[1..], deeper)),
            "else" => request.failure.push(operation(&words[1..], deeper)),
            _ => panic!("a transaction has if, then and else, not {}", words[0]),
        }
    }
    request
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn operation(words: &[&str], body: &[&str]) -> RequestOp {
    let request = match words[0] {
        "put" => Some(Request::RequestPut(put(words))),
        "get" => Some(Request::RequestRange(get(words))),
        "delete" => Some(Request::RequestDeleteRange(delete(words))),
        "txn" => Some(Request::RequestTxn(txn(body))),
        "nothing" => None,
        _ => panic!("no operation {}", words[0]),
    };
    RequestOp { request }
}

fn compare(words: &[&str]) -> Compare {
    let (target, keys) = words[0].trim_end_matches(')').split_once('(').expect("TARGET(RANGE)");
    let (key, range_end) = range(keys);
    let result = match words[1] {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => panic!("no comparison {}", words[1]),
    };
    let wanted = words.get(2).copied();
    let (target, wanted) = match target {
        "version" => (CompareTarget::Version, wanted.map(|n| TargetUnion::Version(number(n)))),
        "create" => (CompareTarget::Create, wanted.map(|n| TargetUnion::CreateRevision(number(n)))),
        "mod" => (CompareTarget::Mod, wanted.map(|n| TargetUnion::ModRevision(number(n)))),
        "lease" => (CompareTarget::Lease, wanted.map(|n| TargetUnion::Lease(number(n)))),
        "value" => (CompareTarget::Value, wanted.map(|value| TargetUnion::Value(bytes(value)))),
        _ => panic!("no compare target {target}"),
    };
    Compare { result: result as i32, target: target as i32, key, range_end, target_union: wanted }
}

pub(crate) fn range(text: &str) -> (Bytes, Bytes) {
    if text == "*" {
        return (bytes("\0"), bytes("\0"));
    }
    if let Some(prefix) = text.strip_suffix('*') {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix") += 1;
        return (bytes(prefix), end.into());
    }
    match text.split_once("..") {
        None => (bytes(text), Bytes::new()),
        Some((key, "")) => (bytes(key), bytes("\0")),
        Some((key, end)) => (bytes(key), bytes(end)),
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn number(text: &str) -> i64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

pub(crate) fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().map_or(-1, |header| header.revision)
}

/// Bytes as text.
pub(crate) fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

pub(crate) fn show_kv(kv: &KeyValue) -> String {
    let (key, value) = (show(&kv.key), show(&kv.value));
    let mut line =
        format!("{key}={value} create={} mod={} version={}", kv.create_revision, kv.mod_revision, kv.version);
    if kv.lease != 0 {
        line += &format!(" lease={}", kv.lease);
    }
    line
}

pub(crate) fn show_put(response: &PutResponse) -> Vec<String> {
    let mut lines = vec![format!("rev={}", revision(&response.header))];
    lines.extend(response.prev_kv.iter().map(|kv| format!("prev {}", show_kv(kv))));
    lines
}

pub(crate) fn show_range(response: &RangeResponse) -> Vec<String> {
    let more = if response.more { " more" } else { "" };
    let mut lines = vec![format!("rev={} count={}{more}", revision(&response.header), response.count)];
    lines.extend(response.kvs.iter().map(show_kv));
    lines
}

pub(crate) fn show_delete(response: &DeleteRangeResponse) -> Vec<String> {
    let mut lines = vec![format!("rev={} deleted={}", revision(&response.header), response.deleted)];
    lines.extend(response.prev_kvs.iter().map(|kv| format!("prev {}", show_kv(kv))));
    lines
}

/// Operations are numbered from 1, those of a nested transaction `2.1`, `2.2`, ….
pub(crate) fn show_txn(response: &TxnResponse, prefix: &str) -> Vec<String> {
    let succeeded = if response.succeeded { "succeeded" } else { "failed" };
    let mut lines = vec![format!("{succeeded} rev={}", revision(&response.header))];
    for (n, op) in (1..).zip(&response.responses) {
        let (name, answer) = match op.response.as_ref().unwrap() {
            Response::ResponsePut(put) => ("put ", show_put(put)),
            Response::ResponseRange(range) => ("get ", show_range(range)),
            Response::ResponseDeleteRange(delete) => ("delete ", show_delete(delete)),
            Response::ResponseTxn(txn) => {
                let answer = show_txn(txn, &format!("{prefix}{n}."));
                lines.push(format!("{prefix}{n} txn {}", answer[0]));
                lines.extend_from_slice(&answer[1..]);
                continue;
            }
        };
        lines.extend(answer.iter().enumerate().map(|(at, line)| {
            let name = if at == 0 { name } else { "" };
            format!("{prefix}{n} {name}{line}")
        }));
    }
    lines
}
