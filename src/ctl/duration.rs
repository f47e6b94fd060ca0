//! Lengths of time as Go writes them: `1m30s`, `1.5ms`.

use std::time::Duration;

/// Units in nanoseconds; longer names first where one begins like another.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads one; none: it is none.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        nanos += number * factor;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos as u64))
}

/// Writes one.
pub(super) fn show(length: Duration) -> String {
    let nanos = length.as_nanos();
    let with = |unit: u128, digits: usize, name: &str| {
        let fraction = format!("{:0digits$}", nanos % unit);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{}{point}{fraction}{name}", nanos / unit)
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with(1_000, 3, "µs"),
        1_000_000..1_000_000_000 => with(1_000_000, 6, "ms"),
        _ => {
            let minutes = length.as_secs() / 60;
            let rest = length - Duration::from_secs(minutes * 60);
            let fraction = format!("{:09}", rest.subsec_nanos());
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            let seconds = format!("{}{point}{fraction}s", rest.as_secs());
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written_as_in_go() {
        for (text, nanos) in [("1.569479ms", 1_569_479), ("685.565µs", 685_565), ("2s", 2_000_000_000), ("12ns", 12)] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
            assert_eq!(show(Duration::from_nanos(nanos)), text);
        }
        assert_eq!(parse("1m30s").map(show).as_deref(), Some("1m30s"));
        assert_eq!(parse("1h").map(show).as_deref(), Some("1h0m0s"));
        assert_eq!(parse("1.5s").map(show).as_deref(), Some("1.5s"));
        assert!(["", "x", "5", "5x", "s"].iter().all(|text| parse(text).is_none()));
    }
}
