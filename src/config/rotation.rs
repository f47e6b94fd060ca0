//! `--log-rotation-config-json`, as far as it can be wrong. What it asks for takes no effect; but who has mistyped it hears of it, in the
//! words of etcd, which are those of Go's JSON.

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
    let mut scan = Scan { rest: json.chars().peekable() };
    scan.document().map_err(|why| format!("improperly formatted log rotation config: {why}"))?;
    let wrong = |why: String| Err(format!("invalid log rotation config: json: cannot unmarshal {why}"));
    let map = match serde_json::from_str(json) {
        Ok(Value::Object(map)) => map,
        // This ends an etcd.
        Ok(Value::Null) | Err(_) => return wrong("null into Go value of type embed.logRotationConfig".to_owned()),
        Ok(other) => return wrong(format!("{} into Go value of type embed.logRotationConfig", kind(&other))),
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

/// Go's scanner: where it finds what cannot go on, it says what it was looking for.
struct Scan<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
}

type Found<T = ()> = Result<T, String>;

impl Scan<'_> {
    fn document(&mut self) -> Found {
        self.value()?;
        self.space();
        match self.rest.next() {
            None => Ok(()),
            Some(c) => unexpected(c, "after top-level value"),
        }
    }

    fn space(&mut self) {
        while self.rest.next_if(|c| matches!(c, ' ' | '\t' | '\r' | '\n')).is_some() {}
    }

    fn next(&mut self) -> Found<char> {
        self.rest.next().ok_or_else(|| "unexpected end of JSON input".to_owned())
    }

    fn value(&mut self) -> Found {
        self.space();
        match self.next()? {
            '{' => self.object(),
            '[' => self.array(),
            '"' => self.string(),
            't' => self.literal("true"),
            'f' => self.literal("false"),
            'n' => self.literal("null"),
            c @ ('-' | '0'..='9') => self.number(c),
            c => unexpected(c, "looking for beginning of value"),
        }
    }

    fn object(&mut self) -> Found {
        self.space();
        if self.rest.next_if_eq(&'}').is_some() {
            return Ok(());
        }
        loop {
            self.space();
            match self.next()? {
                '"' => self.string()?,
                c => return unexpected(c, "looking for beginning of object key string"),
            }
            self.space();
            match self.next()? {
                ':' => {}
                c => return unexpected(c, "after object key"),
            }
            self.value()?;
            self.space();
            match self.next()? {
                ',' => {}
                '}' => return Ok(()),
                c => return unexpected(c, "after object key:value pair"),
            }
        }
    }

    fn array(&mut self) -> Found {
        self.space();
        if self.rest.next_if_eq(&']').is_some() {
            return Ok(());
        }
        loop {
            self.value()?;
            self.space();
            match self.next()? {
                ',' => {}
                ']' => return Ok(()),
                c => return unexpected(c, "after array element"),
            }
        }
    }

    fn string(&mut self) -> Found {
        loop {
            match self.next()? {
                '"' => return Ok(()),
                '\\' => match self.next()? {
                    'b' | 'f' | 'n' | 'r' | 't' | '\\' | '/' | '"' => {}
                    'u' => {
                        for _ in 0..4 {
                            match self.next()? {
                                c if c.is_ascii_hexdigit() => {}
                                c => return unexpected(c, "in \\u hexadecimal character escape"),
                            }
                        }
                    }
                    c => return unexpected(c, "in string escape code"),
                },
                c if c < ' ' => return unexpected(c, "in string literal"),
                _ => {}
            }
        }
    }

    fn literal(&mut self, word: &str) -> Found {
        for expected in word.chars().skip(1) {
            match self.next()? {
                c if c == expected => {}
                c => return unexpected(c, &format!("in literal {word} (expecting '{expected}')")),
            }
        }
        Ok(())
    }

    fn number(&mut self, mut first: char) -> Found {
        if first == '-' {
            first = self.next()?;
            if !first.is_ascii_digit() {
                return unexpected(first, "in numeric literal");
            }
        }
        if first != '0' {
            self.digits();
        }
        if self.rest.next_if_eq(&'.').is_some() {
            match self.next()? {
                c if c.is_ascii_digit() => self.digits(),
                c => return unexpected(c, "after decimal point in numeric literal"),
            }
        }
        if self.rest.next_if(|c| matches!(c, 'e' | 'E')).is_some() {
            let mut c = self.next()?;
            if matches!(c, '+' | '-') {
                c = self.next()?;
            }
            if !c.is_ascii_digit() {
                return unexpected(c, "in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(())
    }

    fn digits(&mut self) {
        while self.rest.next_if(char::is_ascii_digit).is_some() {}
    }
}

fn unexpected<T>(c: char, context: &str) -> Found<T> {
    let quoted = match c {
        '\'' => r"'\''".to_owned(),
        '"' => "'\"'".to_owned(),
        c => format!("'{}'", c.escape_debug()),
    };
    Err(format!("invalid character {quoted} {context}"))
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
        let malformed = "improperly formatted log rotation config: ";
        let wrong = "invalid log rotation config: json: cannot unmarshal ";
        for (json, begin, text) in [
            ("", malformed, "unexpected end of JSON input"),
            ("  ", malformed, "unexpected end of JSON input"),
            ("{\"maxsize\": 1", malformed, "unexpected end of JSON input"),
            ("foo", malformed, "invalid character 'o' in literal false (expecting 'a')"),
            ("{\"maxsize\": 1} x", malformed, "invalid character 'x' after top-level value"),
            ("{\"maxsize\" 1}", malformed, "invalid character '1' after object key"),
            ("{maxsize: 1}", malformed, "invalid character 'm' looking for beginning of object key string"),
            ("{\"a\": 1 \"b\"}", malformed, "invalid character '\"' after object key:value pair"),
            ("[1 2]", malformed, "invalid character '2' after array element"),
            ("'x'", malformed, "invalid character '\\'' looking for beginning of value"),
            ("{\"a\": 1.x}", malformed, "invalid character 'x' after decimal point in numeric literal"),
            ("{\"maxsize\": \"x\"}", wrong, "string into Go struct field logRotationConfig.maxsize of type int"),
            ("{\"maxsize\": 1.5}", wrong, "number 1.5 into Go struct field logRotationConfig.maxsize of type int"),
            ("{\"compress\": 1}", wrong, "number into Go struct field logRotationConfig.compress of type bool"),
            ("[1]", wrong, "array into Go value of type embed.logRotationConfig"),
            ("\"x\"", wrong, "string into Go value of type embed.logRotationConfig"),
            ("true", wrong, "bool into Go value of type embed.logRotationConfig"),
            // This ends an etcd.
            ("null", wrong, "null into Go value of type embed.logRotationConfig"),
        ] {
            assert_eq!(check(json), Err(format!("{begin}{text}")), "{json}");
        }
    }
}
