//! Messages in JSON, as etcd's gateway reads and writes them.
//!
//! Written: fields by the names of the API (`range_end`, not `rangeEnd`), those with their default value left out, 64-bit numbers
//! as strings, bytes in base64, values of enumerations by name. Read: the same, both forms of a name, numbers and strings for
//! numbers, names and numbers of enumerations; `null` is as if it were not there, and so is a field that the API does not have.
//! A library writes; but what it reads and what it ignores differs from etcd in small things, some of them dangerous (a target
//! of a comparison that is misspelt would be read as the first target), so reading is done here. Base64 of URLs is
//! understood, too, and padding may be missing, as in etcd from 3.6.

use std::collections::HashMap;
use std::str::FromStr;

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine};
use bytes::Bytes;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions, Value,
};
use serde_json::value::RawValue;

/// How deep messages may be in one another. Decoders of protobuf stop there, too.
const DEPTH_MAX: usize = 100;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The message that `bytes` begin with; an empty one if there is nothing. What comes behind it is not looked at. The error is for
/// who sent it.
pub(super) fn read(kind: &MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    match values.next() {
        None => Ok(DynamicMessage::new(kind.clone())),
        Some(value) => message(kind, value.map_err(syntax)?.get(), 0),
    }
}

/// A message of this kind, from protobuf to JSON.
pub(super) fn write(kind: &MessageDescriptor, encoded: Bytes) -> Result<Vec<u8>, String> {
    let message = DynamicMessage::decode(kind.clone(), encoded).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let options = SerializeOptions::new().use_proto_field_name(true);
    let written = message.serialize_with_options(&mut serde_json::Serializer::new(&mut out), &options);
    written.map(|()| out).map_err(|error| error.to_string())
}

/// Like Go's for what is cut off; its words for everything else are its own.
fn syntax(error: serde_json::Error) -> String {
    if error.is_eof() { "unexpected EOF".to_owned() } else { error.to_string() }
}

fn message(kind: &MessageDescriptor, json: &str, depth: usize) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(kind.clone());
    if json == "null" {
        return Ok(message);
    }
    if !json.starts_with('{') {
        return Err(mismatch(json, "map[string]json.RawMessage"));
    }
    if depth == DEPTH_MAX {
        return Err("exceeded max depth".to_owned());
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(json).map_err(syntax)?;
    for field in kind.fields() {
        let given = fields.get(field.json_name()).or_else(|| fields.get(field.name()));
        let Some(json) = given.map(|raw| raw.get()).filter(|json| *json != "null") else { continue };
        let value = if field.is_list() { list(&field, json, depth)? } else { single(&field, json, depth)? };
        message.set_field(&field, value);
    }
    Ok(message)
}

fn list(field: &FieldDescriptor, json: &str, depth: usize) -> Result<Value, String> {
    if !json.starts_with('[') {
        return Err(mismatch(json, "[]json.RawMessage"));
    }
    let items: Vec<&RawValue> = serde_json::from_str(json).map_err(syntax)?;
    let items = items.into_iter().map(|item| single(field, item.get(), depth));
    items.collect::<Result<_, _>>().map(Value::List)
}

fn single(field: &FieldDescriptor, json: &str, depth: usize) -> Result<Value, String> {
    let kind = field.kind();
    if json == "null" {
        return Ok(Value::default_value(&kind));
    }
    match kind {
        Kind::Message(kind) => message(&kind, json, depth + 1).map(Value::Message),
        Kind::Enum(kind) => enumeration(&kind, json).map(Value::EnumNumber),
        Kind::Bool => match json {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(mismatch(json, "bool")),
        },
        Kind::String => string(json).map(Value::String).ok_or_else(|| mismatch(json, "string")),
        Kind::Bytes => {
            let text = string(json).ok_or_else(|| mismatch(json, "[]uint8"))?;
            bytes(&text).map(Value::Bytes)
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => number(json, "int64").map(Value::I64),
        Kind::Uint64 | Kind::Fixed64 => number(json, "uint64").map(Value::U64),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => number(json, "int32").map(Value::I32),
        Kind::Uint32 | Kind::Fixed32 => number(json, "uint32").map(Value::U32),
        Kind::Float => number(json, "float32").map(Value::F32),
        Kind::Double => number(json, "float64").map(Value::F64),
    }
}

/// By name or by number. Numbers without a name are passed on: the method says what it thinks of them.
fn enumeration(kind: &EnumDescriptor, json: &str) -> Result<i32, String> {
    match unquoted(json) {
        None => number(json, "protoreflect.EnumNumber"),
        Some(name) => {
            let value = kind.get_value_by_name(name);
            let unknown = || format!("unknown value {json:?} for enum {}", kind.full_name());
            value.map(|value| value.number()).ok_or_else(unknown)
        }
    }
}

fn number<T: FromStr>(json: &str, go_type: &str) -> Result<T, String> {
    let text = unquoted(json).unwrap_or(json).trim_ascii();
    match text.bytes().next() {
        None => Err("unexpected end of JSON input".to_owned()),
        Some(b'-' | b'0'..=b'9') => {
            text.parse().map_err(|_| format!("json: cannot unmarshal number {text} into Go value of type {go_type}"))
        }
        Some(_) => Err(mismatch(text, go_type)),
    }
}

/// Encoders for mail break lines, and the alphabet for URLs has two other letters.
fn bytes(text: &str) -> Result<Bytes, String> {
    let letter = |letter| match letter {
        b'-' => b'+',
        b'_' => b'/',
        letter => letter,
    };
    let letters: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).map(letter).collect();
    BASE64.decode(letters).map(Bytes::from).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(len) => len.saturating_sub(1),
            DecodeError::InvalidPadding => 0,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

fn string(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// What is between quotes, as it stands there.
fn unquoted(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

/// What Go says of JSON that is of another type than it should be.
fn mismatch(json: &str, go_type: &str) -> String {
    let found = match json.bytes().next() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'-' | b'0'..=b'9') => "number",
        _ => {
            return format!(
                "invalid character {:?} looking for beginning of value",
                json.chars().next().unwrap_or(' ')
            );
        }
    };
    format!("json: cannot unmarshal {found} into Go value of type {go_type}")
}

/// Finds where JSON values end in what comes piece by piece, looking at every byte once. It does not see whether they are right.
#[derive(Default)]
pub(super) struct Scan {
    /// How far it has looked.
    at: usize,
    /// How many braces and brackets are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// In a number, `true`, `false` or `null` that is a value by itself.
    in_word: bool,
}

impl Scan {
    /// Looks at what was added to `bytes`. The length of the first value, with the space before it, once all of it is there: then
    /// the caller takes that much away. A word is over with what follows it, and what begins no value is one by itself.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(byte) = bytes.get(self.at) {
            if self.in_word && !byte.is_ascii_alphanumeric() && !matches!(byte, b'+' | b'-' | b'.') {
                return Some(std::mem::take(self).at);
            }
            self.at += 1;
            match byte {
                _ if self.in_string => {
                    self.in_string = self.escaped || *byte != b'"';
                    self.escaped = !self.escaped && *byte == b'\\';
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b'"' => self.in_string = true,
                b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => self.in_word = self.depth == 0,
                _ => {}
            }
            if self.depth == 0 && !self.in_string && !self.in_word && !byte.is_ascii_whitespace() {
                return Some(std::mem::take(self).at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_reflect::DescriptorPool;

    use super::*;
    use crate::pb;
    use crate::pb::etcdserverpb as api;

    fn kind(name: &str) -> MessageDescriptor {
        DescriptorPool::decode(pb::DESCRIPTORS).unwrap().get_message_by_name(&format!("etcdserverpb.{name}")).unwrap()
    }

    fn read_as<M: Message + Default>(name: &str, json: &str) -> Result<M, String> {
        read(&kind(name), json.as_bytes()).map(|message| M::decode(&message.encode_to_vec()[..]).unwrap())
    }

    fn range(json: &str) -> Result<api::RangeRequest, String> {
        read_as("RangeRequest", json)
    }

    #[test]
    fn what_means_the_same_is_read_the_same() {
        let wanted = api::RangeRequest {
            key: "\u{fb}\u{ff}".as_bytes().to_vec().into(),
            limit: 7,
            sort_order: 2,
            ..Default::default()
        };
        for json in [
            r#"{"key":"w7vDvw==","limit":"7","sort_order":"DESCEND"}"#,
            r#" {"sortOrder":2, "limit":7, "key":"w7vDvw", "nope":{"a":[1]}} more"#,
            r#"{"key":"w7vD\nvw==","limit":" 7 ","sort_order":0,"sortOrder":"DESCEND","range_end":null}"#,
            r#"{"key":5,"key":"\u00777vDvw==","limit":"7","sort_order":2}"#,
        ] {
            assert_eq!(range(json).as_ref(), Ok(&wanted), "{json}");
        }
        let url = range(r#"{"key":"-_8="}"#).unwrap();
        assert_eq!(url, range(r#"{"key":"+/8="}"#).unwrap());
        for empty in ["", " ", "{}", "null", r#"{"key":"","limit":0}"#] {
            assert_eq!(range(empty), Ok(api::RangeRequest::default()), "{empty}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words_that_users_of_etcd_know() {
        for (json, error) in [
            (r#"{"key":"#, "unexpected EOF"),
            (r#"{"key":"Z!9v"}"#, "illegal base64 data at input byte 1"),
            (r#"{"key":5}"#, "json: cannot unmarshal number into Go value of type []uint8"),
            (r#"{"limit":1.5}"#, "json: cannot unmarshal number 1.5 into Go value of type int64"),
            (
                r#"{"limit":9223372036854775808}"#,
                "json: cannot unmarshal number 9223372036854775808 into Go value of type int64",
            ),
            (r#"{"limit":true}"#, "json: cannot unmarshal bool into Go value of type int64"),
            (r#"{"limit":""}"#, "unexpected end of JSON input"),
            (r#"{"serializable":"true"}"#, "json: cannot unmarshal string into Go value of type bool"),
            (r#"{"sort_order":"NOPE"}"#, "unknown value \"\\\"NOPE\\\"\" for enum etcdserverpb.RangeRequest.SortOrder"),
            ("[]", "json: cannot unmarshal array into Go value of type map[string]json.RawMessage"),
        ] {
            assert_eq!(range(json).unwrap_err(), error, "{json}");
        }
    }

    #[test]
    fn messages_in_messages_have_an_end() {
        let nested = |depth: usize| {
            let (open, close) = (r#"{"success":[{"request_txn":"#.repeat(depth), "}]}".repeat(depth));
            read_as::<api::TxnRequest>("TxnRequest", &format!("{open}{{}}{close}"))
        };
        assert!(nested(40).is_ok());
        assert_eq!(nested(60).unwrap_err(), "exceeded max depth");
        assert_eq!(nested(100_000).unwrap_err(), "exceeded max depth");
    }

    #[test]
    fn messages_are_written_with_the_names_of_the_api_and_without_what_is_default() {
        let event = pb::mvccpb::Event {
            r#type: 1,
            kv: Some(pb::mvccpb::KeyValue { key: "\u{fb}".into(), mod_revision: i64::MIN, ..Default::default() }),
            prev_kv: None,
        };
        let header = api::ResponseHeader { cluster_id: u64::MAX, ..Default::default() };
        let response =
            api::WatchResponse { header: Some(header), created: true, events: vec![event], ..Default::default() };
        let json = write(&kind("WatchResponse"), response.encode_to_vec().into()).unwrap();
        let wanted = "{\"header\":{\"cluster_id\":\"18446744073709551615\"},\"created\":true,\"events\":[{\"type\":\"DELETE\",\
                      \"kv\":{\"key\":\"w7s=\",\"mod_revision\":\"-9223372036854775808\"}}]}";
        assert_eq!(String::from_utf8(json).unwrap(), wanted);
    }

    #[test]
    fn values_are_found_however_they_are_cut() {
        let text = br#" {"a":"}\"{\\","b":[{}, 5]}{} x null -1.5e+3"a b\"{"true{}"" nil] {"c":1"#;
        for piece in [1, 2, 5, text.len()] {
            let (mut scan, mut seen, mut rest) = (Scan::default(), Vec::new(), Vec::new());
            for bytes in text.chunks(piece) {
                rest.extend_from_slice(bytes);
                while let Some(end) = scan.end(&rest) {
                    seen.push(String::from_utf8(rest.drain(..end).collect()).unwrap());
                }
            }
            let first = r#" {"a":"}\"{\\","b":[{}, 5]}"#;
            let others = ["{}", " x", " null", " -1.5e+3", r#""a b\"{""#, "true", "{}", r#""""#, " nil", "]"];
            assert_eq!(seen[0], first, "in pieces of {piece}");
            assert_eq!(seen[1..], others, "in pieces of {piece}");
            assert_eq!(rest, br#" {"c":1"#);
        }
    }
}
