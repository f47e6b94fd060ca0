//! Keeps the table in `src/lib.rs` true: who may import whom, and what a pure module never names.
//!
//! The table's rows look like `| modules | may name | pure |`, with names in backticks. A name stands for everything below
//! it, so `storage::schema` allows `crate::storage::schema::KEYS` but not `crate::storage::wal`. Files are read as text up
//! to their tests, without comments and string literals.
//!
//! Also keeps `tests/watch_cases.txt` true, which says which test shows what of the watch contract, and `tests/advisories.txt`, which
//! says which test would notice an old hole.

use std::collections::{BTreeMap, BTreeSet};
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

/// How many cases each letter of the watch contract has.
const CASES: [(char, u32); 14] = [
    ('S', 9),
    ('C', 24),
    ('N', 7),
    ('E', 16),
    ('T', 9),
    ('X', 6),
    ('V', 8),
    ('G', 6),
    ('P', 15),
    ('K', 11),
    ('A', 8),
    ('L', 8),
    ('F', 20),
    ('W', 7),
];

/// Tests of a file, by what stands before and after their names.
fn tests_of(text: &str) -> Vec<&str> {
    let named = |line: &str| line.starts_with("wire!(") || line.starts_with("fn ") || line.starts_with("async fn ");
    let lines = text.lines().filter(|line| named(line));
    // The last word before the arguments of a function or the body of a macro.
    let heads = lines.filter_map(|line| line.split_once(", |").or_else(|| line.split_once("()")));
    heads.filter_map(|(head, _)| head.rsplit([' ', '(']).next()).collect()
}

/// The cases that a test's name begins with: `c02_c03_so_it_is`, `e01_to_e07_puts`.
fn cases_of(test: &str) -> Vec<String> {
    let mut cases: Vec<(char, u32)> = Vec::new();
    let mut ranges = false;
    for word in test.split('_') {
        let (letter, number) = word.split_at(word.len().min(1));
        match (letter.chars().next(), number.parse()) {
            (Some(letter), Ok(last)) if number.len() == 2 => {
                let first = cases.last().filter(|_| ranges).map_or(last, |(_, first)| first + 1);
                cases.extend((first..=last).map(|number| (letter.to_ascii_uppercase(), number)));
                ranges = false;
            }
            _ if word == "to" && !cases.is_empty() => ranges = true,
            _ => break,
        }
    }
    cases.into_iter().map(|(letter, number)| format!("{letter}-{number:02}")).collect()
}

#[test]
fn every_case_of_the_watch_contract_names_its_tests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let table = read("watch_cases.txt");
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once("  ").unwrap_or_else(|| panic!("not a case and its tests: {line}")))
        .collect();
    let numbers = CASES.iter().flat_map(|(letter, count)| (1..=*count).map(move |n| format!("{letter}-{n:02}")));
    assert_eq!(rows.iter().map(|(case, _)| (*case).to_owned()).collect::<Vec<_>>(), numbers.collect::<Vec<_>>());

    let mut named = BTreeSet::new();
    for (case, tests) in &rows {
        for test in tests.split(' ').filter(|_| !tests.starts_with("none: ")) {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            let text = read(file);
            assert!(name.is_empty() || tests_of(&text).contains(&name), "{case}: there is no {test}");
            named.insert((*case, test));
        }
    }
    let mut files = Vec::new();
    sources(&directory.join("wire"), &mut files);
    files.push(directory.join("watch.rs"));
    for file in files {
        let relative = file.strip_prefix(&directory).expect("found below tests").to_str().expect("UTF-8").to_owned();
        for test in tests_of(&read(&relative)) {
            for case in cases_of(test) {
                let path = format!("{relative}::{test}");
                assert!(named.contains(&(case.as_str(), path.as_str())), "{path} is not named in the line of {case}");
            }
        }
    }
}

/// Published holes of etcd's, and of the HTTP/2 below it.
const ADVISORIES: [&str; 22] = [
    "CVE-2018-1098",
    "CVE-2018-1099",
    "CVE-2018-16886",
    "CVE-2020-15106",
    "CVE-2020-15112",
    "CVE-2020-15113",
    "CVE-2020-15114",
    "CVE-2020-15115",
    "CVE-2020-15136",
    "CVE-2021-28235",
    "CVE-2023-32082",
    "CVE-2023-44487",
    "CVE-2023-45288",
    "CVE-2024-27316",
    "CVE-2026-33186",
    "CVE-2026-33343",
    "CVE-2026-33413",
    "CVE-2026-44283",
    "GHSA-3wh4-j44w-pg92",
    "GHSA-6vch-q96h-7gc3",
    "GHSA-xg4h-6gfc-h4m8",
    "PR 22147",
];

/// Whether a file has a test of this name, at whatever depth.
fn has_test(text: &str, name: &str) -> bool {
    let function = format!("fn {name}()");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let tests = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let marked = |at: usize| lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(tests);
    lines.iter().enumerate().any(|(at, line)| line.trim_start_matches("async ").starts_with(&function) && marked(at))
}

#[test]
fn every_advisory_names_the_tests_that_would_notice_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let table = read("tests/advisories.txt");
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once("  ").unwrap_or_else(|| panic!("not an advisory and its tests: {line}")))
        .collect();
    assert_eq!(rows.iter().map(|(advisory, _)| *advisory).collect::<Vec<_>>(), ADVISORIES);
    for (advisory, tests) in rows {
        for test in tests.split(' ').filter(|_| !tests.starts_with("none: ")) {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            let text = read(file);
            // A golden script is a test as a whole.
            let exists = if name.is_empty() { file.starts_with("tests/golden/") } else { has_test(&text, name) };
            assert!(exists, "{advisory}: there is no {test}");
            assert!(text.contains(advisory), "{file} does not say that it is about {advisory}");
        }
    }
}

#[test]
fn the_reader_of_tests_wants_them_marked() {
    let text = "#[test]\nfn one() {}\n    #[tokio::test(start_paused = true)]\n    async fn two() {}\nfn three() {}\n";
    assert!(has_test(text, "one") && has_test(text, "two"));
    assert!(!has_test(text, "three") && !has_test(text, "on") && !has_test(text, "four"));
}

#[test]
fn the_reader_of_cases_understands_names() {
    assert_eq!(cases_of("c02_c03_ids_2"), ["C-02", "C-03"]);
    assert_eq!(cases_of("v01_to_v03_p01_all"), ["V-01", "V-02", "V-03", "P-01"]);
    assert!(cases_of("kv_compare").is_empty() && cases_of("m1_members").is_empty());
    let text = "wire!(with [\"--a=1\"] s01_one, |c| {\nwire!(s02_two, |c| {\nfn three() {\n    fn inner() {}\n";
    assert_eq!(tests_of(text), ["s01_one", "s02_two", "three"]);
}
