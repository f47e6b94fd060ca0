//! The audit log: who changed what, when and from where, with the revision; a line of JSON for each change.
//!
//! ```text
//! {"ts":"2026-11-29T09:30:06.123Z","user":"alice","remote":"10.0.0.7:41822","method":"/etcdserverpb.KV/Put","code":"OK","revision":12,
//!  "writes":[{"op":"put","key":"app/a"}]}
//! ```
//!
//! Promises: keys and names are bounded (`BYTES_SHOWN_MAX`) and written so that nothing in them can be taken for anything else;
//! values, passwords and tokens are never given to this module; a request never waits for the sink. Lines are written by a
//! thread of its own, in the order in which changes were answered. Where they cannot be, because more wait than
//! `QUEUE_LINES_MAX` and `QUEUE_BYTES_MAX` allow or because the sink fails, they are lost, and that is said three times: in the audit
//! log itself as soon as it goes on (`{"ts":...,"lost":N}`), in the log, and by the metric `everwatch_audit_lost_total`. An orderly
//! stop writes what waits; a process that is killed loses it. Nothing is synced.
//!
//! A request that may be noted carries its [`Origin`], which `listen` gives it; where there is no audit log none does, and that
//! is all there is to see of it. What is noted, and when, is decided by `api::audit`.

use std::collections::VecDeque;
use std::fmt::{Display, Write as _};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use http::Uri;
use slog::Logger;

use crate::config::LogOutput;
use crate::logging::timestamp;
use crate::metrics::{Metrics, code_name};

/// Lines waiting for the sink, and their bytes. A line that would be one more is lost. What was refused may take half of that: whoever
/// may do nothing is not to push out what others have done.
const QUEUE_LINES_MAX: usize = 16 << 10;
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// How long an orderly stop waits for the sink.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that are shown of a key or of a name. Of a longer one the length is told.
const BYTES_SHOWN_MAX: usize = 256;
/// Entries that are shown of a list. Of a longer one the length is told.
const ENTRIES_SHOWN_MAX: usize = 64;

/// Where lines are written to, opened.
pub struct Sink(Box<dyn Write + Send>);

impl Sink {
    /// Opens it; a file is written at its end.
    pub fn open(output: &LogOutput) -> io::Result<Sink> {
        Ok(Sink(match output {
            LogOutput::Stderr => Box::new(io::stderr()),
            LogOutput::Stdout => Box::new(io::stdout()),
            LogOutput::File(path) => {
                // For nobody else: keys and names are in it.
                let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
                let named = |error: io::Error| {
                    io::Error::new(error.kind(), format!("cannot open audit log {}: {error}", path.display()))
                };
                Box::new(opened.map_err(named)?)
            }
        }))
    }
}

/// The audit log of a member. Dropping it writes what waits, unless the sink takes nothing for `STOP_PATIENCE`.
pub struct AuditLog {
    queue: Arc<Queue>,
    /// Says that the thread has written everything, by being gone.
    written: mpsc::Receiver<()>,
}

/// What notes go to.
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines that were lost and not told of yet.
    lost: u64,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String, refused: bool) {
        let share = if refused { 2 } else { 1 };
        let mut waiting = self.lock();
        if waiting.lines.len() >= QUEUE_LINES_MAX / share || waiting.bytes + line.len() > QUEUE_BYTES_MAX / share {
            waiting.lost += 1;
            self.metrics.audit_lost.inc();
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line);
        drop(waiting);
        self.more.notify_one();
    }

    /// Waits for lines; none: it is closed and empty.
    fn take(&self) -> Option<(VecDeque<String>, u64)> {
        let mut waiting = self.lock();
        while waiting.lines.is_empty() && !waiting.closed {
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if waiting.lines.is_empty() && waiting.lost == 0 {
            return None;
        }
        waiting.bytes = 0;
        Some((std::mem::take(&mut waiting.lines), std::mem::take(&mut waiting.lost)))
    }
}

impl AuditLog {
    /// Starts the thread that writes.
    pub fn start(sink: Sink, metrics: Arc<Metrics>, logger: Logger) -> io::Result<AuditLog> {
        let queue = Arc::new(Queue { waiting: Mutex::default(), more: Condvar::new(), metrics });
        let read = queue.clone();
        let (writing, written) = mpsc::channel();
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            write_all(&read, sink.0, &logger);
            drop(writing);
        })?;
        Ok(AuditLog { queue, written })
    }

    /// For who serves.
    pub fn auditor(&self) -> Auditor {
        Auditor(self.queue.clone())
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_one();
        // A pipe that nobody reads does not keep a member from stopping.
        let _ = self.written.recv_timeout(STOP_PATIENCE);
    }
}

fn write_all(queue: &Queue, mut sink: Box<dyn Write + Send>, logger: &Logger) {
    let (mut untold, mut torn) = (0, false);
    while let Some((lines, lost)) = queue.take() {
        if lost > 0 {
            slog::warn!(logger, "audit log has lost lines, queue full"; "lost" => lost);
        }
        untold += lost;
        // What failed may have left half a line.
        let mut bytes = if torn { "\n".to_owned() } else { String::new() };
        if untold > 0 {
            let _ = writeln!(bytes, "{{\"ts\":\"{}\",\"lost\":{untold}}}", timestamp(SystemTime::now()));
        }
        lines.iter().for_each(|line| bytes.push_str(line));
        let outcome = sink.write_all(bytes.as_bytes()).and_then(|()| sink.flush());
        torn = outcome.is_err();
        match outcome {
            Ok(()) => {
                queue.metrics.audit_lines.add(lines.len() as u64);
                untold = 0;
            }
            Err(error) => {
                slog::error!(logger, "audit log has lost lines"; "lost" => lines.len(), "error" => %error);
                queue.metrics.audit_lost.add(lines.len() as u64);
                untold += lines.len() as u64;
            }
        }
    }
}

/// Makes origins of requests.
#[derive(Clone)]
pub struct Auditor(Arc<Queue>);

impl Auditor {
    /// Of a request from `remote` for `method`, `/service/method`.
    pub fn origin(&self, remote: &Arc<str>, method: &Uri) -> Origin {
        Origin(Arc::new(Whence { auditor: self.clone(), remote: remote.clone(), method: method.clone() }))
    }
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auditor")
    }
}

/// Where a request comes from, and where what becomes of it is noted. It is small: every call has room for one, audit log or not.
#[derive(Clone, Debug)]
pub struct Origin(Arc<Whence>);

#[derive(Debug)]
struct Whence {
    auditor: Auditor,
    remote: Arc<str>,
    method: Uri,
}

impl Origin {
    /// The same, for another method.
    pub fn for_method(&self, method: &Uri) -> Origin {
        self.0.auditor.origin(&self.0.remote, method)
    }

    /// What was called.
    pub fn method(&self) -> &str {
        self.0.method.path()
    }

    /// Notes what became of the request. `refused`: gRPC's code and the text, if it was not carried out.
    pub fn note(&self, user: Option<&str>, what: Fields, refused: Option<(i32, &str)>, revision: i64) {
        let line = Fields::default()
            .text("ts", &timestamp(SystemTime::now()))
            .optional_text("user", user)
            .text("remote", &self.0.remote)
            .text("method", self.method())
            .text("code", code_name(refused.map_or(0, |(code, _)| code)));
        let line = match refused {
            None => line,
            Some((_, text)) => line.text("error", text),
        };
        let mut line = line.number("revision", revision).0;
        line.push_str(&what.0);
        self.0.auditor.0.push(format!("{{{}}}\n", &line[1..]), refused.is_some());
    }
}

/// What a line says, field by field: each begins with its comma.
#[derive(Clone, Debug, Default)]
pub struct Fields(String);

impl Fields {
    /// Words of a client, or ours.
    #[must_use]
    pub fn text(mut self, name: &'static str, text: &str) -> Fields {
        let shown = &text[..text.floor_char_boundary(BYTES_SHOWN_MAX)];
        let quoted = serde_json::to_string(shown).expect("text is JSON");
        let _ = write!(self.0, ",\"{name}\":{quoted}");
        self.cut(name, shown.len(), text.len())
    }

    /// The same, or null.
    #[must_use]
    pub fn optional_text(mut self, name: &'static str, text: Option<&str>) -> Fields {
        match text {
            Some(text) => self.text(name, text),
            None => {
                let _ = write!(self.0, ",\"{name}\":null");
                self
            }
        }
    }

    /// A number, or true or false.
    #[must_use]
    pub fn number(mut self, name: &'static str, number: impl Display) -> Fields {
        let _ = write!(self.0, ",\"{name}\":{number}");
        self
    }

    /// A key: what is not printable ASCII, and a backslash, is written as in a string of C (`\n`, `\\`, `\xff`).
    #[must_use]
    pub fn key(mut self, name: &'static str, key: &[u8]) -> Fields {
        let shown = &key[..key.len().min(BYTES_SHOWN_MAX)];
        let mut escaped = String::with_capacity(shown.len());
        for byte in shown {
            match byte {
                // JSON says how quotes are written.
                b'"' | b'\'' => escaped.push(char::from(*byte)),
                byte => _ = write!(escaped, "{}", byte.escape_ascii()),
            }
        }
        let _ = write!(self.0, ",\"{name}\":{}", serde_json::to_string(&escaped).expect("text is JSON"));
        self.cut(name, shown.len(), key.len())
    }

    /// Objects, as many as are shown.
    #[must_use]
    pub fn list(mut self, name: &'static str, entries: impl IntoIterator<Item = Fields>) -> Fields {
        let (mut shown, mut count) = (Vec::new(), 0);
        for entry in entries {
            if count < ENTRIES_SHOWN_MAX {
                shown.push(format!("{{{}}}", entry.0.get(1..).unwrap_or_default()));
            }
            count += 1;
        }
        let _ = write!(self.0, ",\"{name}\":[{}]", shown.join(","));
        self.cut(name, shown.len(), count)
    }

    /// Tells the length of what is not shown whole.
    fn cut(mut self, name: &'static str, shown: usize, whole: usize) -> Fields {
        if shown < whole {
            let _ = write!(self.0, ",\"{name}_length\":{whole}");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn start(sink: Sink) -> AuditLog {
        AuditLog::start(sink, Arc::new(Metrics::new(false)), Logger::root(slog::Discard, slog::o!())).unwrap()
    }

    fn note(log: &AuditLog, user: Option<&str>, what: Fields, refused: Option<(i32, &str)>) {
        let method = Uri::from_static("/etcdserverpb.KV/Put");
        log.auditor().origin(&Arc::from("1.2.3.4:5"), &method).note(user, what, refused, 7);
    }

    /// A sink that can be read, and that can be made to wait and to fail.
    #[derive(Clone, Default)]
    struct Shown(Arc<Mutex<Vec<u8>>>, Arc<Mutex<bool>>);

    impl Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // A disk that is full takes what it still can.
            let room = if *self.1.lock().unwrap() { 10 - self.0.lock().unwrap().len().min(10) } else { bytes.len() };
            if room == 0 {
                *self.1.lock().unwrap() = false;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(room);
            self.0.lock().unwrap().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shown {
        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    #[test]
    fn a_line_says_who_what_and_from_where_and_is_at_the_end_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        std::fs::write(&path, "before\n").unwrap();
        let log = start(Sink::open(&LogOutput::File(path.clone())).unwrap());
        note(&log, Some("al\"ice\n"), Fields::default().key("key", b"a\\\"'\xff\n").number("ttl", 3), None);
        let denied = Some((7, "etcdserver: permission denied"));
        note(&log, None, Fields::default().key("key", &[b'k'; 300]).text("name", &"é".repeat(200)), denied);
        drop(log);
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "before"));
        let (ts, rest) = lines[1].split_once(",\"user\"").unwrap();
        assert!(ts.starts_with("{\"ts\":\"2") && ts.ends_with("Z\""), "{ts}");
        assert_eq!(
            rest,
            r#":"al\"ice\n","remote":"1.2.3.4:5","method":"/etcdserverpb.KV/Put","code":"OK","revision":7,"key":"a\\\\\"'\\xff\\n","ttl":3}"#
        );
        let second: Value = serde_json::from_str(lines[2]).unwrap();
        assert_eq!((&second["user"], &second["code"]), (&Value::Null, &"PermissionDenied".into()));
        assert_eq!(second["error"], "etcdserver: permission denied");
        assert_eq!(second["key"].as_str().unwrap().len(), BYTES_SHOWN_MAX);
        assert_eq!((&second["key_length"], &second["name_length"]), (&300.into(), &400.into()));
    }

    #[test]
    fn what_is_lost_is_counted_and_told_of() {
        let shown = Shown::default();
        let held = shown.0.clone();
        let log = start(Sink(Box::new(shown.clone())));
        let metrics = log.queue.metrics.clone();
        {
            // The sink takes nothing meanwhile.
            let _held = held.lock().unwrap();
            for _ in 0..2 * QUEUE_LINES_MAX + 7 {
                note(&log, None, Fields::default(), None);
            }
        }
        note(&log, None, Fields::default(), None);
        drop(log);
        let (written, lost) = (metrics.audit_lines.get(), metrics.audit_lost.get());
        assert_eq!(written + lost, 2 * QUEUE_LINES_MAX as u64 + 8);
        assert!(lost >= 7, "{lost}");
        let told: Vec<u64> = shown.lines().iter().filter_map(|line| line["lost"].as_u64()).collect();
        assert_eq!(told.iter().sum::<u64>(), lost);
        assert_eq!(shown.lines().len() - told.len(), written as usize);
    }

    #[test]
    fn a_sink_that_failed_says_so_when_it_works_again() {
        let shown = Shown::default();
        *shown.1.lock().unwrap() = true;
        let log = start(Sink(Box::new(shown.clone())));
        let metrics = log.queue.metrics.clone();
        note(&log, None, Fields::default(), None);
        while metrics.audit_lost.get() == 0 {
            std::thread::yield_now();
        }
        note(&log, None, Fields::default(), None);
        drop(log);
        let text = String::from_utf8(shown.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0].len()), (3, 10), "{text}");
        let whole: Vec<Value> = lines[1..].iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&whole[0]["lost"], &whole[1]["code"]), (&1.into(), &"OK".into()));
    }

    #[test]
    fn a_list_is_bounded() {
        let shown = Shown::default();
        let log = start(Sink(Box::new(shown.clone())));
        let entries = (0..100).map(|n| Fields::default().number("n", n));
        note(&log, None, Fields::default().list("writes", entries), None);
        drop(log);
        let line = &shown.lines()[0];
        assert_eq!(line["writes"].as_array().unwrap().len(), ENTRIES_SHOWN_MAX);
        assert_eq!((&line["writes"][1]["n"], &line["writes_length"]), (&1.into(), &100.into()));
    }
}
