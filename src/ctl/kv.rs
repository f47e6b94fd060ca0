//! `get`, `put`, `del` and `compaction`. The first three also stand in a transaction, so their requests are made apart from asking.

use std::io::Read;

use bytes::Bytes;
use clap::{ArgMatches, Command};

use super::arguments::{Typed, command, decimal, hex_i64, switch, value};
use super::failure::Failure;
use super::print::{Fields, Format, Simple, print, print_bytes};
use super::session::Session;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
};

const BOTH_RANGES: &str = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
const RANGE_AND_END: &str = "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";

pub(super) fn get_command() -> Command {
    command("get", "<key> [range_end]", "Gets the key or a range of keys")
        .arg(value("consistency", "l", "Linearizable(l) or Serializable(s)"))
        .arg(value("order", "", "ASCEND or DESCEND"))
        .arg(value("sort-by", "", "CREATE, KEY, MODIFY, VALUE or VERSION"))
        .arg(value("limit", "0", "most results; 0: all"))
        .arg(value("rev", "0", "as of this revision"))
        .arg(switch("prefix", "all keys that begin so"))
        .arg(switch("from-key", "all keys from this one on"))
        .arg(switch("keys-only", "without the values"))
        .arg(switch("count-only", "only how many there are"))
        .arg(switch("print-value-only", "values without their keys, in the simple format"))
}

pub(super) fn put_command() -> Command {
    command("put", "<key> [value]", "Puts a value; without one, from stdin")
        .arg(value("lease", "0", "lease that the key hangs on, in hex"))
        .arg(switch("prev-kv", "print what was there before"))
        .arg(switch("ignore-value", "keep the value"))
        .arg(switch("ignore-lease", "keep the lease"))
}

pub(super) fn del_command() -> Command {
    command("del", "<key> [range_end]", "Removes a key or a range of keys")
        .arg(switch("prefix", "all keys that begin so"))
        .arg(switch("from-key", "all keys from this one on"))
        .arg(switch("prev-kv", "print what was there before"))
}

pub(super) fn compaction_command() -> Command {
    command("compaction", "<revision>", "Removes the history up to a revision")
        .visible_alias("compact")
        .arg(switch("physical", "wait until it is gone from the disk, too"))
}

/// Key and end of what `--prefix` and `--from-key` mean.
fn range(typed: &Typed<'_>, words: &[&str]) -> Result<(Bytes, Bytes), Failure> {
    let (prefix, from_key) = (typed.on("prefix")?, typed.on("from-key")?);
    if prefix && from_key {
        return Err(Failure::bad_arguments(BOTH_RANGES));
    }
    if words.len() > 1 && (prefix || from_key) {
        return Err(Failure::bad_arguments(RANGE_AND_END));
    }
    let key = Bytes::copy_from_slice(words[0].as_bytes());
    let end = match words.get(1) {
        Some(end) => Bytes::copy_from_slice(end.as_bytes()),
        None if prefix => behind_prefix(&key),
        None if from_key => Bytes::from_static(b"\0"),
        None => Bytes::new(),
    };
    // The least key there is.
    let key = if key.is_empty() && (prefix || from_key) { Bytes::from_static(b"\0") } else { key };
    Ok((key, end))
}

/// The first key behind all that begin so; a zero byte: there is none.
pub(super) fn behind_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff);
    kept.map_or(Bytes::from_static(b"\0"), |last| {
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        end.into()
    })
}

/// What `get` asks.
pub(super) fn get_request(typed: &Typed<'_>) -> Result<RangeRequest, Failure> {
    let (limit, revision) = (typed.number("limit")?, typed.number("rev")?);
    let (keys_only, count_only) = (typed.on("keys-only")?, typed.on("count-only")?);
    typed.on("print-value-only")?;
    let words = typed.words();
    if words.is_empty() {
        return Err(Failure::bad_arguments(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = range(typed, &words)?;
    let serializable = match typed.text("consistency") {
        "l" => false,
        "s" => true,
        other => return Err(Failure::bad_feature(format!("unknown consistency flag {other:?}"))),
    };
    let order = match typed.text("order").to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return Err(Failure::bad_feature(format!("bad sort order {}", typed.text("order")))),
    };
    let target = match typed.text("sort-by").to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Failure::bad_feature(format!("bad sort target {}", typed.text("sort-by")))),
    };
    Ok(RangeRequest {
        key,
        range_end,
        limit,
        revision,
        sort_order: order as i32,
        sort_target: target as i32,
        serializable,
        keys_only,
        count_only,
        ..Default::default()
    })
}

/// What `put` asks. A value that does not stand there is read from `input`.
pub(super) fn put_request(typed: &Typed<'_>, input: &mut impl Read) -> Result<PutRequest, Failure> {
    let (prev_kv, ignore_lease) = (typed.on("prev-kv")?, typed.on("ignore-lease")?);
    let ignore_value = typed.on("ignore-value")?;
    let words = typed.words();
    let wrong = || Failure::bad_arguments("put command needs 1 argument and input from stdin or 2 arguments");
    let key = words.first().ok_or_else(wrong)?;
    if ignore_value && words.len() > 1 {
        return Err(Failure::bad_arguments("put command needs only 1 argument when 'ignore-value' is set"));
    }
    let value = match words.get(1) {
        _ if ignore_value => Vec::new(),
        Some(value) => value.as_bytes().to_vec(),
        None => {
            let mut value = Vec::new();
            input.read_to_end(&mut value).map_err(|_| wrong())?;
            if value.is_empty() {
                return Err(wrong());
            }
            value
        }
    };
    let bad_lease = |error| Failure::bad_arguments(format!("bad lease ID ({error}), expecting ID in Hex"));
    let lease = hex_i64(typed.text("lease")).map_err(bad_lease)?;
    let key = Bytes::copy_from_slice(key.as_bytes());
    Ok(PutRequest { key, value: value.into(), lease, prev_kv, ignore_value, ignore_lease })
}

/// What `del` asks.
pub(super) fn del_request(typed: &Typed<'_>) -> Result<DeleteRangeRequest, Failure> {
    let prev_kv = typed.on("prev-kv")?;
    let words = typed.words();
    if words.is_empty() || words.len() > 2 {
        return Err(Failure::bad_arguments(
            "del command needs one argument as key and an optional argument as range_end",
        ));
    }
    let (key, range_end) = range(typed, &words)?;
    Ok(DeleteRangeRequest { key, range_end, prev_kv })
}

pub(super) async fn get(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let reply = session.ask(get_request(&typed)?).await?;
    if typed.on("count-only")? && session.format != Format::Fields {
        return Err(Failure::bad_arguments("--count-only is only for `--write-out=fields`"));
    }
    let value_only = typed.on("print-value-only")?;
    if value_only && session.format != Format::Simple {
        return Err(Failure::bad_arguments("print-value-only is only for `--write-out=simple`"));
    }
    show_range(session, &reply, value_only)
}

/// Prints an answer to `get`; also who holds a lock or was elected.
pub(super) fn show_range(session: &Session, reply: &RangeResponse, value_only: bool) -> Result<(), Failure> {
    match session.format {
        Format::Simple => {
            let mut out = Vec::new();
            simple_range(&mut out, Simple { hex: session.hex, value_only }, reply);
            print_bytes(&out)
        }
        Format::Fields => {
            let mut fields = Fields::default();
            range_fields(&mut fields, reply);
            fields.print()
        }
        format => format.message("RangeResponse", reply),
    }
}

pub(super) fn simple_range(out: &mut Vec<u8>, simple: Simple, reply: &RangeResponse) {
    reply.kvs.iter().for_each(|kv| simple.kv(out, kv));
}

pub(super) fn range_fields(fields: &mut Fields, reply: &RangeResponse) {
    fields.header(reply.header.as_ref());
    reply.kvs.iter().for_each(|kv| fields.kv("", kv));
    fields.raw("More", reply.more);
    fields.raw("Count", reply.count);
}

pub(super) async fn put(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let reply = session.ask(put_request(&Typed(matches), &mut std::io::stdin())?).await?;
    match session.format {
        Format::Simple => {
            let mut out = Vec::new();
            simple_put(&mut out, Simple { hex: session.hex, value_only: false }, &reply);
            print_bytes(&out)
        }
        Format::Fields => {
            let mut fields = Fields::default();
            put_fields(&mut fields, &reply);
            fields.print()
        }
        format => format.message("PutResponse", &reply),
    }
}

pub(super) fn simple_put(out: &mut Vec<u8>, simple: Simple, reply: &PutResponse) {
    out.extend(b"OK\n");
    reply.prev_kv.iter().for_each(|kv| simple.kv(out, kv));
}

pub(super) fn put_fields(fields: &mut Fields, reply: &PutResponse) {
    fields.header(reply.header.as_ref());
    reply.prev_kv.iter().for_each(|kv| fields.kv("Prev", kv));
}

pub(super) async fn del(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let reply = session.ask(del_request(&Typed(matches))?).await?;
    match session.format {
        Format::Simple => {
            let mut out = Vec::new();
            simple_del(&mut out, Simple { hex: session.hex, value_only: false }, &reply);
            print_bytes(&out)
        }
        Format::Fields => {
            let mut fields = Fields::default();
            del_fields(&mut fields, &reply);
            fields.print()
        }
        format => format.message("DeleteRangeResponse", &reply),
    }
}

pub(super) fn simple_del(out: &mut Vec<u8>, simple: Simple, reply: &DeleteRangeResponse) {
    out.extend(format!("{}\n", reply.deleted).bytes());
    reply.prev_kvs.iter().for_each(|kv| simple.kv(out, kv));
}

pub(super) fn del_fields(fields: &mut Fields, reply: &DeleteRangeResponse) {
    fields.header(reply.header.as_ref());
    fields.raw("Deleted", reply.deleted);
    reply.prev_kvs.iter().for_each(|kv| fields.kv("Prev", kv));
}

pub(super) async fn compaction(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    let physical = typed.on("physical")?;
    let [revision] = typed.exactly("compaction command needs 1 argument")?;
    let revision = decimal(revision).map_err(Failure::error)?;
    let client = session.client().await?;
    let asked = client.ask(CompactionRequest { revision, physical });
    // Removing it from the disk takes as long as it takes.
    if physical {
        asked.await.map(drop)?
    } else {
        session.within(asked).await.map(drop)?
    }
    print(&format!("compacted revision {revision}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<RangeRequest, Failure> {
        let matches = get_command().try_get_matches_from(line.split_whitespace()).expect("flags are known");
        get_request(&Typed(&matches))
    }

    #[test]
    fn ranges_are_what_etcdctl_makes_of_them() {
        let range = |line: &str| {
            let request = asked(line).expect(line);
            (request.key, request.range_end)
        };
        assert_eq!(range("get a"), ("a".into(), "".into()));
        assert_eq!(range("get a b --prefix=false"), ("a".into(), "b".into()));
        assert_eq!(range("get --prefix a"), ("a".into(), "b".into()));
        assert_eq!(range("get a --from-key"), ("a".into(), "\0".into()));
        assert_eq!(behind_prefix(b"a\xff\xff")[..], b"b"[..]);
        assert_eq!(behind_prefix(b"\xff")[..], b"\0"[..]);
        assert_eq!(behind_prefix(b"")[..], b"\0"[..]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, code) in [
            ("get", 128),
            ("get a b --prefix", 128),
            ("get a --prefix --from-key", 128),
            ("get a --order=x", 4),
            ("get a --sort-by=x", 4),
            ("get a --consistency=x", 4),
            ("get a --rev=x", 1),
        ] {
            assert_eq!(asked(line).expect_err(line).code(), code, "{line}");
        }
    }
}
