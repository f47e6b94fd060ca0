//! A CPU profile as bytes: `perftools.profiles.Profile` of the pprof format, uncompressed, with names instead of addresses.
//!
//! A sample is a stack, the innermost call first, and how often it was seen. A stack consists of locations; a location has a line
//! for each call that the compiler has put into another there, again the innermost first. Texts are numbers in one table.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::UNIX_EPOCH;

use pprof::{Report, Symbol};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

/// Numbers for things, in the order in which they are met.
struct Numbers<T>(HashMap<T, usize>);

impl<T: Hash + Eq + Clone> Numbers<T> {
    /// From 0 on.
    fn of(&mut self, thing: &T) -> usize {
        let next = self.0.len();
        *self.0.entry(thing.clone()).or_insert(next)
    }

    fn in_order(self) -> Vec<T> {
        let mut things: Vec<(T, usize)> = self.0.into_iter().collect();
        things.sort_by_key(|(_, number)| *number);
        things.into_iter().map(|(thing, _)| thing).collect()
    }
}

/// A stack without the innermost frames, in which the sampler looks at it.
fn of_program(frames: &[Vec<Symbol>]) -> &[Vec<Symbol>] {
    let samples = |frame: &Vec<Symbol>| frame.iter().any(|symbol| symbol.name().contains("pprof::backtrace::"));
    match frames.iter().position(samples) {
        Some(at) if at + 1 < frames.len() => &frames[at + 1..],
        _ => frames,
    }
}

/// What was seen, as bytes.
pub(super) fn encode(report: &Report) -> Vec<u8> {
    let mut texts = Numbers(HashMap::new());
    let mut functions: Numbers<[i64; 3]> = Numbers(HashMap::new());
    let mut locations: Numbers<Vec<Line>> = Numbers(HashMap::new());
    let mut text = |text: String| texts.of(&text) as i64;
    // The format wants the first to be empty.
    text(String::new());
    let [samples, count, cpu, nanoseconds, thread] =
        ["samples", "count", "cpu", "nanoseconds", "thread"].map(|word| text(word.to_owned()));
    let period = 1_000_000_000 / i64::from(report.timing.frequency.max(1));
    let mut sample = Vec::new();
    for (stack, seen) in &report.data {
        let mut line = |symbol: &Symbol| {
            let file = symbol.filename.as_ref().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
            let function = [text(symbol.name()), text(symbol.sys_name().into_owned()), text(file)];
            Line { function_id: 1 + functions.of(&function) as u64, line: symbol.lineno().into() }
        };
        let mut location = |frame: &Vec<Symbol>| 1 + locations.of(&frame.iter().map(&mut line).collect()) as u64;
        let location_id = of_program(&stack.frames).iter().map(&mut location).collect();
        let seen = i64::try_from(*seen).unwrap_or(i64::MAX);
        let label = vec![Label { key: thread, text: text(stack.thread_name_or_id()) }];
        sample.push(Sample { location_id, value: vec![seen, seen.saturating_mul(period)], label });
    }
    let numbered =
        |(at, [name, system_name, file]): (usize, [i64; 3])| Function { id: 1 + at as u64, name, system_name, file };
    let located = |(at, line): (usize, Vec<Line>)| Location { id: 1 + at as u64, line };
    let began = report.timing.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let profile = Profile {
        sample_type: vec![ValueType { kind: samples, unit: count }, ValueType { kind: cpu, unit: nanoseconds }],
        sample,
        location: locations.in_order().into_iter().enumerate().map(located).collect(),
        function: functions.in_order().into_iter().enumerate().map(numbered).collect(),
        string_table: texts.in_order(),
        time_nanos: i64::try_from(began.as_nanos()).unwrap_or(i64::MAX),
        duration_nanos: i64::try_from(report.timing.duration.as_nanos()).unwrap_or(i64::MAX),
        period_type: Some(ValueType { kind: cpu, unit: nanoseconds }),
        period,
    };
    profile.encode_to_vec()
}
