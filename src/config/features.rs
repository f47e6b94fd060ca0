//! etcd's feature gates: `--feature-gates=Name=true,Name=false`.
//!
//! Each gate that means something here stands for a flag, mostly for one whose `--experimental-...` name it followed; giving both is
//! refused. `AllAlpha` and `AllBeta` stand for all gates of their stage that are not named themselves.

use std::collections::BTreeMap;

use super::flags::{Error, Values, find, parse_switch};

/// A gate, its stage, and the flag it stands for, if there is one.
struct Gate {
    name: &'static str,
    stage: Stage,
    flag: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
}

use Stage::{Alpha, Beta};

const fn gate(name: &'static str, stage: Stage, flag: Option<&'static str>) -> Gate {
    Gate { name, stage, flag }
}

const GATES: &[Gate] = &[
    gate("StopGRPCServiceOnDefrag", Alpha, Some("stop-grpc-service-on-defrag")),
    gate("InitialCorruptCheck", Alpha, Some("initial-corrupt-check")),
    gate("CompactHashCheck", Alpha, Some("compact-hash-check-enabled")),
    gate("LeaseCheckpoint", Alpha, Some("enable-lease-checkpoint")),
    gate("LeaseCheckpointPersist", Alpha, Some("enable-lease-checkpoint-persist")),
    gate("SetMemberLocalAddr", Alpha, Some("set-member-localaddr")),
    gate("TxnModeWriteWithSharedBuffer", Beta, Some("txn-mode-write-with-shared-buffer")),
    gate("FastLeaseKeepAlive", Beta, None),
    gate("PriorityRequest", Alpha, None),
];
const STAGES: [(&str, Stage); 2] = [("AllAlpha", Alpha), ("AllBeta", Beta)];

/// The gates that are named, and whether they are on. The error is in etcd's words.
pub(super) fn parse(text: &str) -> Result<BTreeMap<&'static str, bool>, String> {
    let mut gates = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("missing bool value for {part}"))?;
        let (name, value) = (name.trim(), value.trim());
        let on = parse_switch(value).map_err(|_| {
            format!("invalid value of {name}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")
        })?;
        let mut names = GATES.iter().map(|gate| gate.name).chain(STAGES.map(|(name, _)| name));
        let known = names.find(|known| *known == name);
        gates.insert(known.ok_or_else(|| format!("unrecognized feature gate: {name}"))?, on);
    }
    Ok(gates)
}

impl Values {
    /// Gates become flags.
    pub(super) fn open_gates(&mut self) -> Result<(), Error> {
        let gates = parse(self.text("feature-gates")).expect("checked when it was read");
        for Gate { name, stage, flag } in GATES {
            let Some(flag) = flag.and_then(find) else { continue };
            let of_stage = STAGES.iter().find(|(_, of)| of == stage).and_then(|(name, _)| gates.get(name));
            match gates.get(name) {
                Some(on) if self.is_given(flag.name) => {
                    let (flag, value) = (flag.name, self.text(flag.name));
                    return Err(Error::Invalid(format!(
                        "cannot specify both flags: --experimental-{flag}={value} and --feature-gates={name}={on} at the same \
                         time, please just use --feature-gates={name}={on}"
                    )));
                }
                Some(on) => drop(self.given.insert(flag.name, on.to_string())),
                None if self.is_given(flag.name) => {}
                None => self.given.extend(of_stage.map(|on| (flag.name, on.to_string()))),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Request;

    fn switch(line: &str, flag: &'static str) -> Result<bool, Error> {
        match Values::read(line.split_whitespace().map(str::to_owned), [])? {
            Request::Run(values) => Ok(values.switch(flag)),
            other => panic!("{line:?} asks for {other:?}"),
        }
    }

    #[test]
    fn gates_stand_for_flags() {
        for (gates, on) in [
            ("", false),
            ("InitialCorruptCheck=true", true),
            (" InitialCorruptCheck = 1 ,", true),
            ("AllAlpha=true", true),
            ("AllBeta=true,FastLeaseKeepAlive=true", false),
            ("AllAlpha=true,InitialCorruptCheck=false", false),
        ] {
            let line = format!("--feature-gates={}", gates.replace(' ', ""));
            assert_eq!(switch(&line, "initial-corrupt-check"), Ok(on), "{gates}");
        }
        assert_eq!(switch("--feature-gates=CompactHashCheck=false", "compact-hash-check-enabled"), Ok(false));
        // A flag counts more than a stage.
        let line = "--feature-gates=AllAlpha=true --experimental-initial-corrupt-check=false";
        assert_eq!(switch(line, "initial-corrupt-check"), Ok(false));
    }

    /// Texts of etcd 3.6.
    #[test]
    fn what_is_no_gate_is_refused() {
        for (gates, why) in [
            ("Foo=true", "unrecognized feature gate: Foo"),
            ("InitialCorruptCheck", "missing bool value for InitialCorruptCheck"),
            (
                "InitialCorruptCheck=x",
                "invalid value of InitialCorruptCheck=x, err: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
        ] {
            let text = format!("invalid value {gates:?} for flag -feature-gates: {why}");
            assert_eq!(switch(&format!("--feature-gates={gates}"), "pre-vote"), Err(Error::Usage(text)));
        }
        let line = "--feature-gates=CompactHashCheck=true --experimental-compact-hash-check-enabled=false";
        let text = "cannot specify both flags: --experimental-compact-hash-check-enabled=false and \
                    --feature-gates=CompactHashCheck=true at the same time, please just use --feature-gates=CompactHashCheck=true";
        assert_eq!(switch(line, "pre-vote"), Err(Error::Invalid(text.to_owned())));
    }
}
