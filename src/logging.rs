//! Log lines as etcd writes them: one JSON object with level, ts, caller and msg, then the facts as fields.
//!
//! Lines are made by `slog` and written by a thread of its own, so that a slow sink never holds up the core. If more than
//! `QUEUE_MAX` lines wait, further ones are dropped and their number is logged. Dropping [`Logging`] writes what waits.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use slog::{Drain, FnValue, Level, Logger, PushFnValue, Record, o};
use slog_async::OverflowStrategy;

use crate::config::{LogConfig, LogFormat, LogLevel, LogOutput};

/// Lines waiting for the sink. Beyond this they are dropped and counted.
const QUEUE_MAX: usize = 4096;

/// A logger and what must outlive it.
pub struct Logging {
    /// Where to log.
    pub logger: Logger,
    _writer: slog_async::AsyncGuard,
}

impl Logging {
    /// Opens the sinks that `config` names.
    pub fn start(config: &LogConfig) -> io::Result<Logging> {
        let sink = Sink::open(&config.outputs)?;
        let (drain, writer) = match config.format {
            LogFormat::Json => queue(Mutex::new(json(sink)).map(slog::Fuse)),
            LogFormat::Console => queue(
                slog_term::FullFormat::new(slog_term::PlainSyncDecorator::new(sink))
                    .use_custom_timestamp(|out: &mut dyn Write| out.write_all(timestamp(SystemTime::now()).as_bytes()))
                    .use_original_order()
                    .build()
                    .fuse(),
            ),
        };
        let logger = Logger::root(drain.filter_level(level_of(config.level)).fuse(), o!());
        Ok(Logging { logger, _writer: writer })
    }
}

fn queue<D>(drain: D) -> (slog_async::Async, slog_async::AsyncGuard)
where
    D: Drain<Ok = (), Err = slog::Never> + Send + 'static,
{
    let drop_and_count = OverflowStrategy::DropAndReport;
    slog_async::Async::new(drain).chan_size(QUEUE_MAX).overflow_strategy(drop_and_count).build_with_guard()
}

fn json(sink: Sink) -> slog_json::Json<Sink> {
    // slog writes the pairs of one `o!` from the last to the first.
    slog_json::Json::new(sink)
        .set_newlines(true)
        .set_flush(true)
        .add_key_value(o!(
            "msg" => PushFnValue(|record: &Record<'_>, out| out.emit(record.msg())),
            "caller" => PushFnValue(|record: &Record<'_>, out| {
                out.emit(format_args!("{}:{}", short_path(record.file()), record.line()))
            }),
            "ts" => FnValue(|_: &Record<'_>| timestamp(SystemTime::now())),
            "level" => FnValue(|record: &Record<'_>| name_of(record.level())),
        ))
        .build()
}

/// All outputs as one: every line goes to each.
struct Sink(Vec<Box<dyn Write + Send>>);

impl Sink {
    fn open(outputs: &[LogOutput]) -> io::Result<Sink> {
        let mut sinks: Vec<Box<dyn Write + Send>> = Vec::new();
        for output in outputs {
            sinks.push(match output {
                LogOutput::Stderr => Box::new(Line::new(io::stderr())),
                LogOutput::Stdout => Box::new(Line::new(io::stdout())),
                LogOutput::File(path) => {
                    let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                        io::Error::new(error.kind(), format!("cannot open log output {}: {error}", path.display()))
                    })?;
                    Box::new(Line::new(file))
                }
            });
        }
        if sinks.is_empty() {
            sinks.push(Box::new(Line::new(io::stderr())));
        }
        Ok(Sink(sinks))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.iter_mut().try_for_each(|sink| sink.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|sink| sink.flush())
    }
}

/// Collects a line and writes it with one call, so that lines of several processes do not mix. A sink that fails (a
/// closed pipe, a full disk) loses lines and nothing else.
struct Line<W> {
    sink: W,
    waiting: Vec<u8>,
}

impl<W: Write> Line<W> {
    fn new(sink: W) -> Line<W> {
        Line { sink, waiting: Vec::new() }
    }
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.sink.write_all(&self.waiting).and_then(|()| self.sink.flush());
        self.waiting.clear();
        Ok(())
    }
}

fn level_of(level: LogLevel) -> Level {
    match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Info => Level::Info,
        LogLevel::Warn => Level::Warning,
        LogLevel::Error => Level::Error,
        LogLevel::Fatal => Level::Critical,
    }
}

fn name_of(level: Level) -> &'static str {
    match level {
        Level::Critical => "fatal",
        Level::Error => "error",
        Level::Warning => "warn",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    }
}

/// The last two parts of a source path.
fn short_path(path: &str) -> &str {
    let mut separators = path.rmatch_indices('/');
    let _file = separators.next();
    separators.next().map_or(path, |(at, _)| &path[at + 1..])
}

/// A moment as etcd writes it: UTC, milliseconds.
pub(crate) fn timestamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// The date that many days after 1 January 1970. Years are counted from March, so that the leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 1 March of the year 0
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_have_etcd_s_keys_in_etcd_s_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let config =
            LogConfig { level: LogLevel::Info, format: LogFormat::Json, outputs: vec![LogOutput::File(path.clone())] };
        let logging = Logging::start(&config).expect("the file opens");
        slog::debug!(logging.logger, "too quiet");
        slog::warn!(logging.logger, "dropping message, queue full"; "member" => "a1", "lag" => 3);
        drop(logging);
        let text = std::fs::read_to_string(path).expect("the file is there");
        let (start, rest) = text.split_once(",\"ts\":\"").expect("a time");
        assert_eq!(start, "{\"level\":\"warn\"");
        let (caller, rest) = rest.split_once(",\"msg\":").expect("a message");
        assert!(caller.contains("\"caller\":\"src/logging.rs:"), "{caller}");
        assert_eq!(rest, "\"dropping message, queue full\",\"lag\":3,\"member\":\"a1\"}\n");
    }

    #[test]
    fn moments_are_written_as_dates() {
        let at = |seconds, millis: u32| timestamp(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_827_696, 7), "2000-02-29T12:34:56.007Z");
        assert_eq!(at(1_795_389_895, 999), "2026-11-22T23:24:55.999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }
}
