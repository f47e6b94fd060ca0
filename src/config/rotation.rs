//! `--log-rotation-config-json`, as far as it can be wrong. What it asks for takes no effect; but who has mistyped it hears of it, in the
//! words of etcd; only what is not JSON at all is described in other words than Go's.

use serde_json::Value;

/// Its settings, and their types in etcd.
const FIELDS: [(&str, &str); 6] = [
    ("filename", "string"),
    ("maxsize", "int"),
    ("maxage", "int"),
    ("maxbackups", "int"),
    ("localtime", "bool"),
    ("compress", "bool"),
];

/// What is wrong with it, if anything is.
pub(super) fn check(json: &str) -> Result<(), String> {
    let value = serde_json::from_str(json).map_err(|why| format!("improperly formatted log rotation config: {why}"))?;
    let wrong = |why: String| Err(format!("invalid log rotation config: json: cannot unmarshal {why}"));
    let map = match value {
        Value::Object(map) => map,
        // Null ends an etcd.
        other => return wrong(format!("{} into Go value of type embed.logRotationConfig", kind(&other))),
    };
    for (key, value) in &map {
        let Some((name, go)) = FIELDS.iter().find(|(name, _)| key.eq_ignore_ascii_case(name)) else { continue };
        let fits = match *go {
            "int" => value.is_i64(),
            "bool" => value.is_boolean(),
            _ => value.is_string(),
        };
        if !fits && !value.is_null() {
            return wrong(format!("{} into Go struct field logRotationConfig.{name} of type {go}", kind(value)));
        }
    }
    Ok(())
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        // A number that would fit is told as its kind; one that cannot be an int, with its digits.
        Value::Number(number) if number.is_i64() => "number".to_owned(),
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts compared with etcd 3.5.1.
    #[test]
    fn what_is_wrong_is_said_in_etcd_s_words() {
        for good in [
            "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0, \"localtime\": false, \"compress\": false}",
            "{\"maxsize\": -1, \"nope\": [1.5e3, {\"a\": \"\\u00e9\\n\"}, null], \"MaxAge\": null} ",
            "{}",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let wrong = "invalid log rotation config: json: cannot unmarshal ";
        for json in
            ["", "  ", "{\"maxsize\": 1", "foo", "{\"maxsize\": 1} x", "{maxsize: 1}", "[1 2]", &"[".repeat(100_000)]
        {
            assert!(check(json).unwrap_err().starts_with("improperly formatted log rotation config: "), "{json}");
        }
        for (json, text) in [
            ("{\"maxsize\": \"x\"}", "string into Go struct field logRotationConfig.maxsize of type int"),
            ("{\"maxsize\": 1.5}", "number 1.5 into Go struct field logRotationConfig.maxsize of type int"),
            ("{\"compress\": 1}", "number into Go struct field logRotationConfig.compress of type bool"),
            ("[1]", "array into Go value of type embed.logRotationConfig"),
            ("\"x\"", "string into Go value of type embed.logRotationConfig"),
            ("true", "bool into Go value of type embed.logRotationConfig"),
            ("null", "null into Go value of type embed.logRotationConfig"),
        ] {
            assert_eq!(check(json), Err(format!("{wrong}{text}")), "{json}");
        }
    }
}
