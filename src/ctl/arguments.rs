//! The command line: what `clap` makes of it, read as etcdctl reads its own.
//!
//! Words are taken as they come, and each command counts its own, for it has a text of its own about a wrong number. Values are text
//! until a command asks for a number: so what is wrong with one is said in etcdctl's words.

use std::ffi::OsString;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::duration;
use super::failure::Failure;

/// The name under which words stand.
const WORDS: &str = "words";

/// A flag with a value.
pub(super) fn value(name: &'static str, default: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).allow_hyphen_values(true).action(ArgAction::Set).help(help);
    if default.is_empty() { arg } else { arg.default_value(default) }
}

/// A flag that is on or off, and on when it stands alone.
pub(super) fn switch(name: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).num_args(0..=1).require_equals(true).action(ArgAction::Set);
    arg.default_value("false").default_missing_value("true").hide_default_value(true).value_name("BOOL").help(help)
}

/// A command that takes words.
pub(super) fn command(name: &'static str, usage: &'static str, about: &'static str) -> Command {
    let words = Arg::new(WORDS).num_args(0..).value_name(if usage.is_empty() { "-" } else { usage });
    Command::new(name).about(about).args_override_self(true).arg(words.hide(usage.is_empty()))
}

/// A command that is a group of others. A word that names none of them is not lost: it is shown what there is.
pub(super) fn group(name: &'static str, about: &'static str) -> Command {
    let words = Arg::new(WORDS).num_args(0..).hide(true);
    Command::new(name).about(about).infer_subcommands(true).args_override_self(true).arg(words)
}

/// What was typed behind a command.
pub(super) struct Typed<'a>(pub(super) &'a ArgMatches);

impl<'a> Typed<'a> {
    /// The words.
    pub(super) fn words(&self) -> Vec<&'a str> {
        self.0.get_many::<String>(WORDS).into_iter().flatten().map(String::as_str).collect()
    }

    /// Exactly so many words.
    pub(super) fn exactly<const N: usize>(&self, otherwise: &str) -> Result<[&'a str; N], Failure> {
        self.words().try_into().map_err(|_| Failure::bad_arguments(otherwise))
    }

    /// A flag's value, or what it is otherwise.
    pub(super) fn text(&self, name: &str) -> &'a str {
        self.0.get_one::<String>(name).map_or("", String::as_str)
    }

    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> Result<bool, Failure> {
        boolean(name, self.text(name))
    }

    /// A number.
    pub(super) fn number(&self, name: &str) -> Result<i64, Failure> {
        let text = self.text(name);
        if text.is_empty() && !self.given(name) {
            return Ok(0);
        }
        text.parse().map_err(|_| invalid(name, text, "strconv.ParseInt: parsing", "invalid syntax"))
    }

    /// Whether a flag was typed.
    pub(super) fn given(&self, name: &str) -> bool {
        self.0.value_source(name) == Some(ValueSource::CommandLine)
    }
}

/// What counts as true and false in Go.
fn boolean(name: &str, text: &str) -> Result<bool, Failure> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(false),
        _ => Err(invalid(name, text, "strconv.ParseBool: parsing", "invalid syntax")),
    }
}

fn invalid(name: &str, text: &str, doing: &str, why: &str) -> Failure {
    Failure::usage(format!("invalid argument {text:?} for \"--{name}\" flag: {doing} {text:?}: {why}"))
}

/// A number in base 16, as ids are written. The error is Go's.
pub(super) fn hex_i64(text: &str) -> Result<i64, String> {
    i64::from_str_radix(text, 16).map_err(|error| go_number("ParseInt", text, &error))
}

/// The same without a sign.
pub(super) fn hex_u64(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| go_number("ParseUint", text, &error))
}

/// A number in base 10.
pub(super) fn decimal(text: &str) -> Result<i64, String> {
    text.parse().map_err(|error| go_number("ParseInt", text, &error))
}

fn go_number(function: &str, text: &str, error: &std::num::ParseIntError) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let why = match error.kind() {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {text:?}: {why}")
}

/// Flags that every command has, with their defaults. Each may also be set by a variable, `ETCDCTL_` and its name.
const GLOBAL: [(&str, &str, &str); 15] = [
    ("endpoints", "127.0.0.1:2379", "gRPC endpoints, separated by commas"),
    ("user", "", "username[:password]; without a password it is asked for"),
    ("password", "", "password of that user"),
    ("write-out", "simple", "output format: simple, fields, json, table, protobuf"),
    ("dial-timeout", "2s", "how long a connection may take to be made"),
    ("command-timeout", "5s", "how long a short command may take, apart from connecting"),
    ("keepalive-time", "2s", "how often a silent connection is asked for a sign of life"),
    ("keepalive-timeout", "6s", "how long it has for that"),
    ("cacert", "", "certificates of those who may vouch for a server"),
    ("cert", "", "certificate of this client"),
    ("key", "", "key of that certificate"),
    ("discovery-srv", "", "domain whose SRV records name the endpoints"),
    ("discovery-srv-name", "", "suffix of the services in those records"),
    ("max-request-bytes", "0", "accepted, and without effect"),
    ("max-recv-bytes", "0", "accepted, and without effect"),
];

/// Those that are on or off.
const GLOBAL_SWITCHES: [(&str, &str, &str); 5] = [
    ("hex", "false", "print byte strings as hex"),
    ("debug", "false", "print the settings on stderr first"),
    ("insecure-transport", "true", "connections may be in the clear"),
    ("insecure-skip-tls-verify", "false", "encrypt, whoever the server is"),
    ("insecure-discovery", "true", "take endpoints in the clear from DNS, and whatever name they have"),
];

/// Variables that are read elsewhere, or mean nothing any more.
const OTHER_VARIABLES: [&str; 3] = ["ETCDCTL_API", "ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"];

/// Adds the flags that every command has.
pub(super) fn with_global_flags(mut root: Command) -> Command {
    for (name, default, help) in GLOBAL {
        let mut arg = value(name, default, help).global(true).help_heading("Global options");
        arg = match name {
            "write-out" => arg.short('w'),
            "discovery-srv" => arg.short('d'),
            "endpoints" => arg.action(ArgAction::Append),
            _ => arg,
        };
        root = root.arg(arg);
    }
    for (name, default, help) in GLOBAL_SWITCHES {
        root = root.arg(switch(name, help).default_value(default).global(true).help_heading("Global options"));
    }
    root
}

/// Settings from flags, variables and defaults, in this order.
pub(super) struct Global {
    values: Vec<(&'static str, String)>,
}

impl Global {
    /// Reads them. A variable that a flag contradicts is refused, as etcdctl refuses it.
    pub(super) fn read(matches: &ArgMatches, variable: impl Fn(&str) -> Option<String>) -> Result<Global, Failure> {
        let names = GLOBAL.iter().chain(&GLOBAL_SWITCHES).map(|(name, ..)| *name);
        let read = |name: &'static str| {
            let typed = matches.get_many::<String>(name).into_iter().flatten().cloned().collect::<Vec<_>>().join(",");
            let env = variable_of(name);
            match variable(&env).filter(|value| !value.is_empty()) {
                Some(_) if matches.value_source(name) == Some(ValueSource::CommandLine) => {
                    Err(Failure::error(format!(
                        "conflicting environment variable is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag): {env}"
                    )))
                }
                Some(value) => Ok((name, value)),
                None => Ok((name, typed)),
            }
        };
        Ok(Global { values: names.map(read).collect::<Result<_, _>>()? })
    }

    /// A value.
    pub(super) fn text(&self, name: &str) -> &str {
        self.values.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> Result<bool, Failure> {
        boolean(name, self.text(name))
    }

    /// A length of time.
    pub(super) fn duration(&self, name: &str) -> Result<Duration, Failure> {
        let text = self.text(name);
        let wrong = || {
            Failure::usage(format!("invalid argument {text:?} for \"--{name}\" flag: time: invalid duration {text:?}"))
        };
        duration::parse(text).ok_or_else(wrong)
    }

    /// All of them as variables, for `--debug`.
    pub(super) fn lines(&self) -> String {
        let mut lines: Vec<_> =
            self.values.iter().map(|(name, value)| format!("{}={value}\n", variable_of(name))).collect();
        lines.sort();
        lines.concat()
    }
}

/// Variables of etcdctl's that nobody reads.
pub(super) fn unknown_variables(all: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let known = |name: &str| {
        OTHER_VARIABLES.contains(&name)
            || GLOBAL.iter().chain(&GLOBAL_SWITCHES).any(|(flag, ..)| variable_of(flag) == name)
    };
    let unknown = all.filter(|(name, _)| name.starts_with("ETCDCTL_") && !known(name));
    unknown.map(|(name, value)| format!("{name}={value}")).collect()
}

fn variable_of(flag: &str) -> String {
    format!("ETCDCTL_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

/// How the command of a line is used, as far as its words name one.
pub(super) fn help_of(mut root: Command, line: &[OsString]) -> String {
    root.build();
    let mut command = &mut root;
    for word in line.iter().skip(1).filter_map(|word| word.to_str()) {
        if command.find_subcommand(word).is_some() {
            command = command.find_subcommand_mut(word).expect("it was just found");
        }
    }
    command.render_help().to_string()
}

/// Takes a line apart. What `clap` has to say about it is said in etcdctl's words.
pub(super) fn read(root: Command, line: impl Iterator<Item = OsString>) -> Result<ArgMatches, Failure> {
    root.try_get_matches_from(line).map_err(|error| {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => text.clone(),
            Some(ContextValue::Strings(texts)) => texts.concat(),
            _ => String::new(),
        };
        let flag = context(ContextKind::InvalidArg);
        let flag = flag.split([' ', '=', '[']).next().unwrap_or_default();
        match error.kind() {
            ErrorKind::DisplayHelp => Failure::Help(error.render().to_string()),
            ErrorKind::UnknownArgument if flag.starts_with("--") => Failure::usage(format!("unknown flag: {flag}")),
            ErrorKind::UnknownArgument if flag.starts_with('-') => {
                let letter = flag.chars().nth(1).unwrap_or('-');
                Failure::usage(format!("unknown shorthand flag: '{letter}' in {flag}"))
            }
            ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_empty() => {
                Failure::usage(format!("flag needs an argument: {flag}"))
            }
            _ => Failure::usage(error.render().to_string().trim_start_matches("error: ").trim_end().to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<ArgMatches, Failure> {
        let get = command("get", "<key>", "").arg(value("limit", "0", "")).arg(switch("prefix", ""));
        let root = with_global_flags(group("x", "").subcommand(get));
        read(root, line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_stand_anywhere_and_take_their_values_either_way() {
        let all = parse("x -w json get a --limit=-1 --endpoints a,b b --prefix c -- --limit").unwrap();
        let (_, get) = all.subcommand().unwrap();
        let typed = Typed(get);
        assert_eq!(typed.words(), ["a", "b", "c", "--limit"]);
        assert_eq!((typed.number("limit").ok(), typed.on("prefix").ok()), (Some(-1), Some(true)));
        let global = Global::read(get, |name| (name == "ETCDCTL_HEX").then(|| "true".into())).ok().unwrap();
        assert_eq!((global.text("endpoints"), global.text("write-out")), ("a,b", "json"));
        assert!(global.on("hex").is_ok_and(|on| on));
        assert!(Global::read(get, |name| (name == "ETCDCTL_WRITE_OUT").then(|| "x".into())).is_err());
    }

    #[test]
    fn what_is_wrong_is_said_in_etcdctls_words() {
        let said = |line: &str| parse(line).expect_err(line).text().to_owned();
        assert_eq!(said("x get --nope"), "unknown flag: --nope");
        assert_eq!(said("x get -z"), "unknown shorthand flag: 'z' in -z");
        assert_eq!(said("x get a --limit"), "flag needs an argument: --limit");
        let wrong = parse("x get --limit=x --prefix=y").unwrap();
        let typed = Typed(wrong.subcommand().unwrap().1);
        let number = "invalid argument \"x\" for \"--limit\" flag: strconv.ParseInt: parsing \"x\": invalid syntax";
        assert_eq!(typed.number("limit").unwrap_err().text(), number);
        let switch = "invalid argument \"y\" for \"--prefix\" flag: strconv.ParseBool: parsing \"y\": invalid syntax";
        assert_eq!(typed.on("prefix").unwrap_err().text(), switch);
        assert_eq!(hex_u64("zz").unwrap_err(), "strconv.ParseUint: parsing \"zz\": invalid syntax");
    }
}
