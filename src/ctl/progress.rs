//! A bar on a terminal for what takes long. Nothing is drawn where nobody looks.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often it is drawn, at the most.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar.
const WIDTH: u64 = 30;

/// Progress of one thing, on stderr.
pub(super) struct Progress {
    doing: &'static str,
    drawn: Option<Instant>,
    on: bool,
}

impl Progress {
    /// Nothing has been done yet.
    pub(super) fn new(doing: &'static str) -> Progress {
        Progress { doing, drawn: None, on: io::stderr().is_terminal() }
    }

    /// So much of so many bytes is done.
    pub(super) fn at(&mut self, done: u64, of: u64) {
        if self.on && self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY) {
            self.drawn = Some(Instant::now());
            self.draw(&bar(self.doing, done, of));
        }
    }

    /// The line is free for something else.
    pub(super) fn end(&mut self) {
        if self.drawn.take().is_some() {
            self.draw("");
        }
    }

    fn draw(&self, line: &str) {
        // A terminal that does not take it is no reason to stop.
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn bar(doing: &str, done: u64, of: u64) -> String {
    let done = done.min(of);
    let share =
        |of_whole: u64| (u128::from(done) * u128::from(of_whole)).checked_div(u128::from(of)).unwrap_or(0) as u64;
    let full = share(WIDTH);
    let bar: String = (0..WIDTH).map(|place| if place < full { '=' } else { ' ' }).collect();
    format!("{doing} [{bar}] {:3} % of {}", share(100), bytes(of))
}

/// Bytes as etcd's tools print them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 10 {
        return format!("{count} B");
    }
    let (mut unit, mut size) = (0, count as f64);
    while size >= 1000.0 {
        (unit, size) = (unit + 1, size / 1000.0);
    }
    let size = (size * 10.0 + 0.5).floor() / 10.0;
    let decimals = if size < 10.0 { 1 } else { 0 };
    format!("{size:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_as_etcds_tools_round_them() {
        let sizes = [0, 9, 10, 999, 1000, 4100, 9960, 45056, 20_480, 999_999, 2_147_483_648];
        let shown = sizes.map(bytes);
        assert_eq!(
            shown,
            ["0 B", "9 B", "10 B", "999 B", "1.0 kB", "4.1 kB", "10 kB", "45 kB", "20 kB", "1000 kB", "2.1 GB"]
        );
    }

    #[test]
    fn a_bar_is_as_full_as_what_it_shows() {
        assert_eq!(bar("saving", 5, 10), format!("saving [{}{}]  50 % of 10 B", "=".repeat(15), " ".repeat(15)));
        assert!(bar("saving", 11, 10).contains("100 %"));
        assert!(bar("saving", 0, 0).contains("  0 %"));
    }
}
