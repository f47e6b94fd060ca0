//! Keeps the table in `src/lib.rs` true: who may import whom, and what a pure module never names.
//!
//! The table's rows look like `| modules | may name | pure |`, with names in backticks. A name stands for everything below
//! it, so `storage::schema` allows `crate::storage::schema::KEYS` but not `crate::storage::wal`. Files are read as text up
//! to their tests, without comments and string literals.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One row of the table, for each of its modules.
struct Rule {
    may_name: Vec<String>,
    pure: bool,
}

/// What a pure module never names, and where one of them is allowed after all.
const IMPURE: [&str; 12] = [
    "tokio",
    "std::fs",
    "std::net",
    "std::thread",
    "std::sync::mpsc",
    "Instant::now",
    "SystemTime",
    "rand::",
    "getrandom",
    "Mutex",
    "RwLock",
    "async fn",
];
const ALLOWED: [(&str, &str); 4] = [
    // The queue between the hub and one stream: locked for a push or a take.
    ("watch/outbox.rs", "Mutex"),
    ("watch/outbox.rs", "async fn"),
    // And the one between the apply loop and a hub.
    ("watch/feed.rs", "Mutex"),
    ("watch/feed.rs", "async fn"),
];

/// Crates with places of their own: what is said below the table in `lib.rs`.
const FOREIGN: [(&str, &[&str]); 5] = [
    ("raft", &["raft", "peer"]),
    ("protobuf", &["raft"]),
    ("redb", &["storage"]),
    ("tonic", &["pb", "peer", "api", "listen", "member", "client", "bench"]),
    ("axum", &["http"]),
];

fn backticked(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn table(lib: &str) -> BTreeMap<String, Rule> {
    let mut rules = BTreeMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
        let cells: Vec<&str> = line.split('|').collect();
        for module in backticked(cells[0]) {
            let rule = Rule { may_name: backticked(cells[1]), pure: cells[2].trim().starts_with("yes") };
            assert!(rules.insert(module.clone(), rule).is_none(), "{module} has two rows");
        }
    }
    rules
}

/// Every `.rs` file below `src`, as a path relative to it.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("src is there") {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module a file belongs to: its first directory, or its own name.
fn module_of(relative: &Path) -> String {
    let first = relative.iter().next().expect("not empty").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file: no tests, no comments, nothing inside string literals.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().expect("split gives at least one part");
    let mut code = String::new();
    for line in text.lines() {
        let mut rest = line;
        loop {
            let quote = rest.replace("'\"'", "'_'").find('"');
            let comment = rest.find("//");
            match (quote, comment) {
                (Some(quote), comment) if comment.is_none_or(|comment| quote < comment) => {
                    code.push_str(&rest[..quote]);
                    let after = &rest[quote + 1..];
                    let mut escaped = false;
                    let end = after.find(|c: char| {
                        let ends = c == '"' && !escaped;
                        escaped = c == '\\' && !escaped;
                        ends
                    });
                    match end {
                        Some(end) => rest = &after[end + 1..],
                        // A literal over several lines: what follows may be taken for code, which errs on the strict side.
                        None => break,
                    }
                }
                (_, Some(comment)) => {
                    code.push_str(&rest[..comment]);
                    break;
                }
                _ => {
                    code.push_str(rest);
                    break;
                }
            }
        }
        code.push('\n');
    }
    code
}

/// Every path that starts with `root` (`crate::` or `everwatch::`), groups in braces spelled out.
fn named(code: &str, root: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(root) {
        // `some_crate::` is not `crate::`; `$crate::` is.
        if code[..at].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_') {
            continue;
        }
        spell_out("", &code[at + root.len()..], &mut paths);
    }
    paths
}

/// The module that `use crate::module;` or `use crate::module::{self, ..}` brings in under its own name.
fn whole_module(path: &str, rules: &BTreeMap<String, Rule>) -> Option<String> {
    let name = path.strip_suffix("::self").unwrap_or(path);
    rules.contains_key(name).then(|| name.to_owned())
}

/// Whether a crate that is not ours is named: `::raft::Config`, or `raft::Config` where no module of ours has that name.
fn foreign(code: &str, krate: &str) -> bool {
    let shadowed = ["raft"].contains(&krate);
    code.match_indices(&format!("{krate}::")).any(|(at, _)| {
        let before = &code[..at];
        let rooted = before.ends_with("::") && !before[..before.len() - 2].ends_with(|c: char| c.is_alphanumeric());
        let bare = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        rooted || bare && !shadowed
    })
}

/// Spells out one use tree that begins `rest`; returns what comes after it.
fn spell_out<'a>(prefix: &str, rest: &'a str, paths: &mut Vec<String>) -> &'a str {
    let rest = rest.trim_start();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start().trim_start_matches(',').trim_start();
            if inside.is_empty() {
                return inside;
            }
            if let Some(after) = inside.strip_prefix('}') {
                return after;
            }
            let after = spell_out(prefix, inside, paths);
            // `a as b`: on to the comma or the brace.
            let next = after.find([',', '}']).unwrap_or(after.len());
            inside = &after[next..];
            assert!(!std::ptr::eq(inside, rest), "a use tree makes progress");
        }
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}::{word}") };
    match after.strip_prefix("::") {
        Some(deeper) if deeper.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '{') => {
            spell_out(&path, deeper, paths)
        }
        _ => {
            paths.push(path.trim_end_matches("::").to_owned());
            after
        }
    }
}

fn allows(rule: &Rule, path: &str) -> bool {
    rule.may_name
        .iter()
        .any(|name| path == name || path.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with("::")))
}

#[test]
fn imports_point_down_and_pure_modules_are_pure() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let rules = table(&fs::read_to_string(source.join("lib.rs")).expect("src/lib.rs"));
    let mut files = Vec::new();
    sources(&source, &mut files);
    files.sort();
    let mut complaints = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).expect("found below src");
        let module = module_of(relative);
        if module == "lib" {
            continue;
        }
        let shown = relative.display();
        let Some(rule) = rules.get(&module) else {
            complaints.push(format!("{shown}: module {module} has no row in the table"));
            continue;
        };
        let code = code(&fs::read_to_string(&file).expect("a readable file"));
        let root = if matches!(module.as_str(), "main" | "bin") { "everwatch::" } else { "crate::" };
        let mut paths = named(&code, root);
        // `use crate::storage;` says nothing yet: what is then written as `storage::Error` does.
        let by_name: Vec<String> = paths.iter().filter_map(|path| whole_module(path, &rules)).collect();
        paths.retain(|path| whole_module(path, &rules).is_none());
        for name in by_name {
            let prefix = format!("{name}::");
            let used = named(&code, &prefix).into_iter().filter(|path| path != "self");
            paths.extend(used.map(|path| prefix.clone() + &path));
        }
        for path in paths {
            let own = path == module || path.starts_with(&format!("{module}::"));
            if !own && !allows(rule, &path) {
                complaints.push(format!("{shown} names {path}, which the table does not allow to {module}"));
            }
        }
        for (krate, only_in) in FOREIGN {
            if !only_in.contains(&module.as_str()) && foreign(&code, krate) {
                complaints.push(format!("{shown} names the crate {krate}, which is for {}", only_in.join(", ")));
            }
        }
        for word in IMPURE.iter().filter(|_| rule.pure) {
            if code.contains(word) && !ALLOWED.contains(&(relative.to_str().expect("UTF-8"), word)) {
                complaints.push(format!("{shown} names {word}, but {module} is pure"));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn the_reader_of_imports_understands_their_forms() {
    let text = "
        use crate::types::{Revision, lease::{Id as LeaseId, Table}, *};
        use other_crate::nothing; // crate::comment
        /// [`crate::doc`]
        fn f() -> crate::pb::Kv { let _ = \"crate::literal \\\" crate::more\"; crate::mvcc::open::<u8>() }
        #[cfg(test)] use crate::tests_only;
    ";
    let found = named(&code(text), "crate::");
    let expected = ["types::Revision", "types::lease::Id", "types::lease::Table", "types", "pb::Kv", "mvcc::open"];
    assert_eq!(found, expected);
    let crates = "use ::raft::Config; use redb::Database";
    assert!(foreign(crates, "raft") && foreign(crates, "redb"));
    let ours = "use crate::raft::Node; let x: my_redb::X; crate::redb::y";
    assert!(!foreign(ours, "raft") && !foreign(ours, "redb"));
    let rule = Rule { may_name: vec!["storage::schema".to_owned()], pure: true };
    assert!(allows(&rule, "storage::schema::KEYS") && !allows(&rule, "storage::wal") && !allows(&rule, "storage"));
}
