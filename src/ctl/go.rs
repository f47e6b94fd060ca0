//! Text as Go's libraries write it, which is what scripts have learnt to read: JSON of a message, and quoted strings.
//!
//! JSON here is not that of the gateway: numbers are numbers, names are those of the `.proto` files, enums are numbers, and what is
//! empty is left out. Fields come in the order of the definitions, which [`prost_reflect`] knows.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};

/// Fields that etcd 3.5 does not know. It leaves them out, and so do we, for those who compare outputs.
const LATER: [(&str, &str); 4] = [
    ("StatusResponse", "storageVersion"),
    ("StatusResponse", "dbSizeQuota"),
    ("StatusResponse", "downgradeInfo"),
    ("HashKVResponse", "hash_revision"),
];

/// A message of `etcdserverpb`, by its name.
pub(super) fn json(name: &str, message: &impl Message) -> String {
    json_of(&format!("etcdserverpb.{name}"), message)
}

/// A message of any package.
pub(super) fn json_of(name: &str, message: &impl Message) -> String {
    let pool = DescriptorPool::decode(crate::pb::DESCRIPTORS).expect("the build made them");
    let descriptor = pool.get_message_by_name(name).expect("the name is one of ours");
    let bytes = message.encode_to_vec();
    let dynamic = DynamicMessage::decode(descriptor, &bytes[..]).expect("it was just encoded");
    let mut out = String::new();
    write_message(&mut out, &dynamic);
    out
}

fn write_message(out: &mut String, message: &DynamicMessage) {
    out.push('{');
    let descriptor = message.descriptor();
    let mut first = true;
    for field in descriptor.fields() {
        let later = LATER.contains(&(descriptor.name(), field.name()));
        if later || !message.has_field(&field) {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        let member = format!("{}:", string(field.name()));
        match field.containing_oneof() {
            // A oneof is a member of its own, with its name in capitals, around the field that is set.
            Some(oneof) => {
                let (head, tail) = oneof.name().split_at(1);
                out.push_str(&format!("\"{}{tail}\":{{{member}", head.to_uppercase()));
                write_value(out, &message.get_field(&field));
                out.push('}');
            }
            None => {
                out.push_str(&member);
                write_value(out, &message.get_field(&field));
            }
        }
    }
    out.push('}');
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Bool(value) => out.push_str(&value.to_string()),
        Value::I32(value) | Value::EnumNumber(value) => out.push_str(&value.to_string()),
        Value::I64(value) => out.push_str(&value.to_string()),
        Value::U32(value) => out.push_str(&value.to_string()),
        Value::U64(value) => out.push_str(&value.to_string()),
        Value::String(value) => out.push_str(&string(value)),
        Value::Bytes(value) => out.push_str(&bytes(value)),
        Value::Message(value) => write_message(out, value),
        Value::List(values) => {
            out.push('[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write_value(out, value);
            }
            out.push(']');
        }
        Value::F32(_) | Value::F64(_) | Value::Map(_) => unreachable!("the API has none"),
    }
}

/// Bytes as a JSON string.
pub(super) fn bytes(bytes: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(bytes))
}

/// Text as a JSON string: safe inside HTML, too.
pub(super) fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A list of texts as JSON.
pub(super) fn strings(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| string(text)).collect::<Vec<_>>().join(","))
}

/// Bytes as Go's `%q`: what cannot be seen is escaped.
pub(super) fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                c if u32::from(c) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
                c if c.is_control() || c == '\u{feff}' || c.is_whitespace() && c != ' ' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => out.push(c),
            }
        }
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out + "\""
}

/// The reverse, of a quoted string at the start of some text: its bytes, and the text behind it. None: it does not start with one.
pub(super) fn unquote(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let end = raw.find('`')?;
        return Some((raw[..end].into(), &raw[end + 1..]));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut out = Vec::new();
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((out, rest)),
            '\\' => rest = unescape(rest, &mut out)?,
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

/// What stands behind a backslash; the text behind that.
fn unescape<'a>(text: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let hex = |digits: usize| u32::from_str_radix(rest.get(..digits)?, 16).ok();
    let (byte, digits) = match kind {
        'a' => (7, 0),
        'b' => (8, 0),
        'f' => (12, 0),
        'n' => (b'\n', 0),
        'r' => (b'\r', 0),
        't' => (b'\t', 0),
        'v' => (11, 0),
        '\\' | '"' => (kind as u8, 0),
        'x' => (u8::try_from(hex(2)?).ok()?, 2),
        'u' | 'U' => {
            let digits = if kind == 'u' { 4 } else { 8 };
            let c = char::from_u32(hex(digits)?)?;
            out.extend(c.encode_utf8(&mut [0; 4]).bytes());
            return rest.get(digits..);
        }
        '0'..='7' => {
            out.push(u8::try_from(u32::from_str_radix(text.get(..3)?, 8).ok()?).ok()?);
            return text.get(3..);
        }
        _ => return None,
    };
    out.push(byte);
    rest.get(digits..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{PutResponse, ResponseHeader, ResponseOp, StatusResponse, TxnResponse, response_op};

    #[test]
    fn messages_become_what_go_makes_of_them() {
        let put = PutResponse { header: Some(ResponseHeader { revision: 6, ..Default::default() }), prev_kv: None };
        let op = ResponseOp { response: Some(response_op::Response::ResponsePut(put)) };
        let reply = TxnResponse { succeeded: true, responses: vec![op], header: None };
        let wanted = r#"{"succeeded":true,"responses":[{"Response":{"response_put":{"header":{"revision":6}}}}]}"#;
        assert_eq!(json("TxnResponse", &reply), wanted);
        let status = StatusResponse { db_size: 7, db_size_quota: 8, ..Default::default() };
        assert_eq!(json("StatusResponse", &status), r#"{"dbSize":7}"#);
    }

    #[test]
    fn strings_are_quoted_and_back() {
        assert_eq!(string("a<\"\u{1}é"), "\"a\\u003c\\\"\\u0001é\"");
        let odd = b"x<&>\"\xc3\xa9\t\x00\xff\\";
        assert_eq!(quote(odd), r#""x<&>\"é\t\x00\xff\\""#);
        assert_eq!(unquote(&(quote(odd) + ") x")), Some((odd.to_vec(), ") x")));
        assert_eq!(unquote("`a\\b`c"), Some((b"a\\b".to_vec(), "c")));
        assert_eq!(unquote(r#""\u00e9\101""#), Some(("éA".into(), "")));
        assert!(unquote("a").is_none() && unquote("\"a").is_none() && unquote("\"\\q\"").is_none());
    }
}
