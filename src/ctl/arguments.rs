//! A command line as etcdctl takes it: words, and flags in any place among them. `--name=value`, `--name value`, `-w value`, and
//! switches that may stand alone.

use std::collections::BTreeMap;

/// What was typed.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    words: Vec<String>,
    flags: BTreeMap<String, String>,
}

impl Arguments {
    /// Reads a line on which these flags with values and these switches can stand. Texts as etcdctl has them.
    pub(super) fn read(
        line: impl IntoIterator<Item = String>,
        valued: &[&str],
        switches: &[&str],
    ) -> Result<Arguments, String> {
        let mut read = Arguments::default();
        let mut line = line.into_iter();
        while let Some(argument) = line.next() {
            if argument == "--" {
                read.words.extend(line);
                break;
            }
            if argument == "-" || !argument.starts_with('-') {
                read.words.push(argument);
                continue;
            }
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (&argument[..], None),
            };
            let name = if name == "-w" { "--write-out" } else { name };
            let value = if switches.contains(&name) {
                value.unwrap_or_else(|| "true".to_owned())
            } else if valued.contains(&name) {
                value.or_else(|| line.next()).ok_or_else(|| format!("flag needs an argument: {argument}"))?
            } else {
                return Err(format!("unknown flag: {name}"));
            };
            read.flags.insert(name.to_owned(), value);
        }
        Ok(read)
    }

    /// The words that are no flags.
    pub(super) fn words(&self) -> &[String] {
        &self.words
    }

    /// The value of a flag that was given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// The value of a flag, or what it is otherwise.
    pub(super) fn or(&self, name: &str, otherwise: &str) -> String {
        self.get(name).unwrap_or(otherwise).to_owned()
    }

    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> Result<bool, String> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(value) => Err(format!("{name} is true or false, not {value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, String> {
        let line = line.split_whitespace().map(str::to_owned);
        Arguments::read(line, &["--name", "--write-out"], &["--skip"])
    }

    #[test]
    fn flags_stand_anywhere_and_take_their_values_either_way() {
        let read_all = read("a --name=x b -w json --skip c -- --name").unwrap();
        assert_eq!(read_all.words(), ["a", "b", "c", "--name"]);
        assert_eq!((read_all.get("--name"), read_all.get("--write-out")), (Some("x"), Some("json")));
        assert_eq!((read_all.on("--skip"), read("").unwrap().on("--skip")), (Ok(true), Ok(false)));
        assert_eq!(read("--skip=false").unwrap().on("--skip"), Ok(false));
        assert_eq!(read("--name y --name z").unwrap().or("--name", "n"), "z");
        assert!(read("--skip=x").unwrap().on("--skip").is_err());
        assert_eq!(read("--nope=1").unwrap_err(), "unknown flag: --nope");
        assert_eq!(read("a --name").unwrap_err(), "flag needs an argument: --name");
    }
}
