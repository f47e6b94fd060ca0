//! Runs the scripts `tests/golden/<area>/*.txt`: one behaviour per file, in words.
//!
//! A script is a conversation. A line above `---` is a command (with the indented lines that follow it, for commands
//! that span several); the lines below `---`, up to an empty line, a comment or the next command, are the answer it
//! must get:
//!
//! ```text
//! # A deleted key starts again at version 1.
//! put a 1
//! ---
//! rev=2
//! delete a
//! ---
//! rev=3 deleted=1
//! ```
//!
//! `UPDATE=1 cargo test --test golden` writes the answers given into the files; read the diff. What the commands are is
//! said in `golden/support/`: one file per area, each called by `World::run` with the words of a command and the lines
//! below it. An area is added with its file there, its arm in `World::run`, a directory of scripts and a test below.

#[path = "golden/support/auth.rs"]
mod auth_commands;
#[path = "golden/support/kv.rs"]
mod kv;
#[path = "golden/support/lease.rs"]
mod lease_commands;
#[path = "golden/support/member.rs"]
mod member_commands;
#[path = "golden/support/watch.rs"]
mod watch_commands;
#[path = "golden/support/world.rs"]
mod world;

use std::fs;
use std::path::Path;

use world::World;

#[test]
fn mvcc() {
    check("mvcc", World::with_leases);
}

#[test]
fn txn() {
    check("txn", World::with_leases);
}

#[test]
fn watch() {
    check("watch", World::with_leases);
}

#[test]
fn lease() {
    check("lease", World::new);
}

#[test]
fn auth() {
    check("auth", World::new);
}

#[test]
fn cluster() {
    check("cluster", World::of_three);
}

/// Runs every script of an area, each in a world of its own.
fn check(area: &str, new_world: fn() -> World) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(area);
    let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let update = std::env::var_os("UPDATE").is_some();
    let mut failed = 0;
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "txt")) {
        let script = fs::read_to_string(path).unwrap();
        let answered = play(&script, &mut new_world()).unwrap_or_else(|what| panic!("{}: {what}", path.display()));
        if answered == script {
            continue;
        }
        if update {
            fs::write(path, answered).unwrap();
        } else {
            failed += 1;
            println!("{}\n{}", path.display(), difference(&script, &answered));
        }
    }
    assert_eq!(failed, 0, "scripts of {area} got other answers than they expect");
}

/// The script with the answers its commands get in a new world.
fn play(script: &str, world: &mut World) -> Result<String, String> {
    let lines: Vec<&str> = script.lines().collect();
    let mut out = String::new();
    let mut push = |line: &str| {
        out.push_str(line);
        out.push('\n');
    };
    let mut at = 0;
    while at < lines.len() {
        if lines[at].is_empty() || lines[at].starts_with('#') {
            push(lines[at]);
            at += 1;
            continue;
        }
        let body = lines[at + 1..].iter().take_while(|line| line.starts_with(' ')).count();
        let command = &lines[at..=at + body];
        at += 1 + body;
        if lines.get(at) != Some(&"---") {
            return Err(format!("no --- below {:?}, which is neither a command nor part of an answer", command[0]));
        }
        at += 1;
        command.iter().chain(&["---"]).for_each(|line| push(line));
        for line in world.run(command) {
            assert!(!line.is_empty() && !line.starts_with([' ', '#']), "an answer that cannot be told from a script");
            push(&line);
        }
        while at < lines.len() && !lines[at].is_empty() && !lines[at].starts_with('#') && !begins_command(&lines[at..])
        {
            at += 1;
        }
    }
    Ok(out)
}

fn begins_command(lines: &[&str]) -> bool {
    let body = lines[1..].iter().take_while(|line| line.starts_with(' ')).count();
    lines.get(1 + body) == Some(&"---")
}

/// The lines around the first difference.
fn difference(expected: &str, answered: &str) -> String {
    let (expected, answered): (Vec<_>, Vec<_>) = (expected.lines().collect(), answered.lines().collect());
    let same = expected.iter().zip(&answered).take_while(|(a, b)| a == b).count();
    let from = same.saturating_sub(3);
    let show = |mark: char, lines: &[&str]| -> String {
        lines.iter().skip(same).take(6).map(|line| format!("  {mark} {line}\n")).collect()
    };
    let common: String = expected[from..same].iter().map(|line| format!("    {line}\n")).collect();
    common + &show('-', &expected) + &show('+', &answered)
}
