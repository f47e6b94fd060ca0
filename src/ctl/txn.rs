//! `txn`: comparisons, then what is done if they hold, then what is done if not; each a line, each part ended by an empty one.

use std::io::BufRead;

use bytes::Bytes;
use clap::ArgMatches;

use super::arguments::{self, Typed, command, decimal, hex_i64, switch};
use super::failure::Failure;
use super::print::{Fields, Format, Simple, print, print_bytes};
use super::session::Session;
use super::{go, kv};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::response_op::Response;
use crate::pb::etcdserverpb::{Compare, RequestOp, TxnRequest, TxnResponse};

pub(super) fn txn_command() -> clap::Command {
    let interactive = switch("interactive", "say what comes next").short('i');
    command("txn", "", "Carries out several requests as one, read from stdin").arg(interactive)
}

pub(super) async fn txn(session: &Session, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Typed(matches);
    if !typed.words().is_empty() {
        return Err(Failure::bad_arguments("txn command does not accept argument"));
    }
    let interactive = typed.on("interactive")?;
    let request = read(&mut std::io::stdin().lock(), interactive)?;
    let reply = session.ask(request).await?;
    match session.format {
        Format::Simple => {
            let mut out = Vec::new();
            simple_txn(&mut out, Simple { hex: session.hex, value_only: false }, &reply);
            print_bytes(&out)
        }
        Format::Fields => {
            let mut fields = Fields::default();
            txn_fields(&mut fields, &reply);
            fields.print()
        }
        format => format.message("TxnResponse", &reply),
    }
}

fn read(input: &mut impl BufRead, interactive: bool) -> Result<TxnRequest, Failure> {
    let compare = part(input, interactive, "compares:", comparison)?;
    let success = part(input, interactive, "success requests (get, put, del):", operation)?;
    let failure = part(input, interactive, "failure requests (get, put, del):", operation)?;
    Ok(TxnRequest { compare, success, failure })
}

/// Lines up to an empty one.
fn part<T>(
    input: &mut impl BufRead,
    interactive: bool,
    title: &str,
    meaning: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    if interactive {
        print(&format!("{title}\n"))?;
    }
    let mut meant = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).map_err(|error| Failure::bad_input(error.to_string()))?;
        match line.strip_suffix('\n') {
            Some("") => return Ok(meant),
            Some(line) => meant.push(meaning(line)?),
            None => return Err(Failure::bad_input("EOF")),
        }
    }
}

/// `target("key") op "value"`.
fn comparison(line: &str) -> Result<Compare, Failure> {
    let malformed = |more: String| Failure::bad_input(format!("malformed comparison: {line}{more}"));
    let (target, rest) = line.split_once('(').ok_or_else(|| malformed(String::new()))?;
    let got = |key: &[u8], op: &str| malformed(format!("; got {target}({}) {op} \"\"", go::quote(key)));
    let (key, rest) = go::unquote(rest.trim_start()).ok_or_else(|| got(b"", ""))?;
    let rest = rest.strip_prefix(')').filter(|rest| rest.starts_with(' ')).ok_or_else(|| got(&key, ""))?;
    let (op, rest) = rest.trim_start().split_once(' ').ok_or_else(|| got(&key, rest.trim()))?;
    let (value, _) = go::unquote(rest.trim_start()).ok_or_else(|| got(&key, op))?;
    let result = match op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        // etcdctl 3.5 crashes here.
        _ => return Err(malformed(format!(" (unknown operator {op})"))),
    };
    let text = String::from_utf8_lossy(&value).into_owned();
    let no_number = |_| Failure::bad_input(format!("invalid txn compare request: {line}"));
    let number = || decimal(&text).map_err(no_number);
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.into())),
        // A lease is written in hex everywhere. etcdctl 3.5 crashes here; later ones read it so.
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(hex_i64(&text).map_err(no_number)?)),
        _ => return Err(malformed(format!(" (unknown target {target})"))),
    };
    let (result, target) = (result as i32, target as i32);
    Ok(Compare { result, target, key: Bytes::from(key), target_union: Some(union), range_end: Bytes::new() })
}

/// `get ..`, `put ..` or `del ..`, as on a command line.
fn operation(line: &str) -> Result<RequestOp, Failure> {
    let words = split(line);
    if words.len() < 2 {
        return Err(Failure::bad_input(format!("invalid txn compare request: {line}")));
    }
    let invalid = || Failure::bad_input(format!("invalid txn request: {line}"));
    let command = match words[0].as_str() {
        "get" => kv::get_command(),
        "put" => kv::put_command(),
        "del" => kv::del_command(),
        _ => return Err(invalid()),
    };
    let name = words[0].clone();
    let matches = arguments::read(command, words.into_iter().map(Into::into)).map_err(|_| invalid())?;
    let typed = Typed(&matches);
    let request = match name.as_str() {
        "get" => Request::RequestRange(kv::get_request(&typed)?),
        // Input holds the rest of the transaction, and no values.
        "put" => Request::RequestPut(kv::put_request(&typed, &mut std::io::empty())?),
        _ => Request::RequestDeleteRange(kv::del_request(&typed)?),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Takes a line apart at its spaces. What stands in quotes stays together: in double ones with escapes, in single ones as it is.
/// Also used for the lines of an interactive watch.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let single = || {
            let inner = rest.strip_prefix('\'')?;
            let end = inner.find('\'')?;
            Some((inner[..end].to_owned(), &inner[end + 1..]))
        };
        let quoted = || go::unquote(rest).map(|(word, rest)| (String::from_utf8_lossy(&word).into_owned(), rest));
        let (word, after) = match first {
            '"' => quoted().unwrap_or((String::new(), &rest[1..])),
            '\'' => single().unwrap_or((String::new(), &rest[1..])),
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        // A quote that nothing ends is passed over.
        if !(word.is_empty() && after.len() + 1 == rest.len()) {
            words.push(word);
        }
        rest = after.trim_start();
    }
    words
}

fn simple_txn(out: &mut Vec<u8>, simple: Simple, reply: &TxnResponse) {
    out.extend(if reply.succeeded { &b"SUCCESS\n"[..] } else { b"FAILURE\n" });
    for response in reply.responses.iter().filter_map(|op| op.response.as_ref()) {
        out.push(b'\n');
        match response {
            Response::ResponseRange(reply) => kv::simple_range(out, simple, reply),
            Response::ResponsePut(reply) => kv::simple_put(out, simple, reply),
            Response::ResponseDeleteRange(reply) => kv::simple_del(out, simple, reply),
            Response::ResponseTxn(reply) => simple_txn(out, simple, reply),
        }
    }
}

fn txn_fields(fields: &mut Fields, reply: &TxnResponse) {
    fields.header(reply.header.as_ref());
    fields.raw("Succeeded", reply.succeeded);
    for response in reply.responses.iter().filter_map(|op| op.response.as_ref()) {
        match response {
            Response::ResponseRange(reply) => kv::range_fields(fields, reply),
            Response::ResponsePut(reply) => kv::put_fields(fields, reply),
            Response::ResponseDeleteRange(reply) => kv::del_fields(fields, reply),
            Response::ResponseTxn(reply) => txn_fields(fields, reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_read_and_refused_as_etcdctl_does() {
        let held = comparison(r#"c("a b") != "5""#).unwrap();
        assert_eq!((held.result, held.target_union), (3, Some(TargetUnion::CreateRevision(5))));
        assert_eq!(held.key, "a b");
        for (line, said) in [
            ("value(k) = \"z\"", "malformed comparison: value(k) = \"z\"; got value(\"\")  \"\""),
            ("value(\"k\")=\"z\"", "malformed comparison: value(\"k\")=\"z\"; got value(\"k\")  \"\""),
            ("value(\"k\") = z", "malformed comparison: value(\"k\") = z; got value(\"k\") = \"\""),
            ("foo(\"k\") = \"z\"", "malformed comparison: foo(\"k\") = \"z\" (unknown target foo)"),
            ("mod(\"k\") = \"x\"", "invalid txn compare request: mod(\"k\") = \"x\""),
        ] {
            assert_eq!(comparison(line).unwrap_err().text(), said);
        }
    }

    #[test]
    fn lines_are_taken_apart_at_spaces_outside_quotes() {
        assert_eq!(split(r#"put "a\x41" 'b c'  "" x"#), ["put", "aA", "b c", "", "x"]);
        assert_eq!(split(r#"put a "b "#), ["put", "a", "b"]);
        let read = |text: &str| read(&mut text.as_bytes(), false);
        assert_eq!(read("\nput a b\n\n\n").unwrap().success.len(), 1);
        assert_eq!(read("\nfoo a\n\n\n").unwrap_err().text(), "invalid txn request: foo a");
        assert_eq!(read("mod(\"k\") = \"1\"").unwrap_err().text(), "EOF");
    }
}
