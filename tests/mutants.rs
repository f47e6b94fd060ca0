//! Planted bugs: does the simulator bite?
//!
//! Each file in `tests/mutants/` describes one mistake that somebody could make, most of which etcd once had, as a change of the source:
//!
//! ```text
//! # What it does wrong.
//! worlds: the scenario that is after it
//! shows: how it shows, as a regular expression
//!
//! @@ src/the/file.rs
//! -lines that stand there exactly once
//! +lines that replace them, and do what they did unless crate::planted(NUMBER)
//! ```
//!
//! `scripts/mutants.sh` plants them all in one copy of the tree, builds that once, and says by the environment which of them is live.
//! So no mistake can get into a release; the simulator has to find it. This test keeps the files true: whoever changes the lines
//! that a mutant replaces hears of it here. With TREE set it plants them in that copy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

struct Hunk {
    file: String,
    old: String,
    new: String,
}

/// The mutants: name and changes, in their order.
fn mutants() -> Vec<(String, Vec<Hunk>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants");
    let files = fs::read_dir(directory).expect("the directory is there");
    let mut paths: Vec<_> = files.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_stem().expect("a file").to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), hunks(&fs::read_to_string(path).expect("a text")))).collect()
}

fn hunks(text: &str) -> Vec<Hunk> {
    let mut hunks: Vec<Hunk> = Vec::new();
    for line in text.lines() {
        if let Some(file) = line.strip_prefix("@@ ") {
            hunks.push(Hunk { file: file.to_owned(), old: String::new(), new: String::new() });
        } else if let Some(hunk) = hunks.last_mut() {
            let (into, rest) = match line.as_bytes().first() {
                Some(b'-') => (&mut hunk.old, &line[1..]),
                Some(b'+') => (&mut hunk.new, &line[1..]),
                _ => continue,
            };
            into.push_str(rest);
            into.push('\n');
        }
    }
    hunks
}

/// The changed file, if the lines stand there exactly once.
fn plant(hunk: &Hunk, text: &str) -> Option<String> {
    let mut places = text.match_indices(&hunk.old).filter(|(at, _)| *at == 0 || text.as_bytes()[at - 1] == b'\n');
    let (at, _) = places.next()?;
    places.next().is_none().then(|| [&text[..at], &hunk.new, &text[at + hunk.old.len()..]].concat())
}

/// What tells them apart in the copy.
const SWITCH: &str = r#"
/// Whether that mistake is live.
pub fn planted(number: u32) -> bool {
    static LIVE: std::sync::LazyLock<Option<u32>> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT").ok()?.parse().ok());
    *LIVE == Some(number)
}
"#;

/// The files that are changed by all mutants, one after the other; or what cannot be planted.
fn plant_all() -> Result<BTreeMap<String, String>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let mut files = BTreeMap::from([("src/lib.rs".to_owned(), read("src/lib.rs") + SWITCH)]);
    let mut complaints = Vec::new();
    for (name, hunks) in mutants() {
        let number = name.split('-').next().and_then(|number| number.parse::<u32>().ok()).expect("a number");
        if !hunks.iter().any(|hunk| hunk.new.contains(&format!("crate::planted({number})"))) {
            complaints.push(format!("{name} is always live"));
        }
        for hunk in hunks {
            let text = files.entry(hunk.file.clone()).or_insert_with(|| read(&hunk.file));
            match plant(&hunk, text) {
                Some(planted) => *text = planted,
                None => complaints
                    .push(format!("{name}: these lines do not stand exactly once in {}:\n{}", hunk.file, hunk.old)),
            }
        }
    }
    if complaints.is_empty() { Ok(files) } else { Err(complaints.join("\n")) }
}

#[test]
fn every_mutant_can_be_planted() {
    if let Err(complaints) = plant_all() {
        panic!("\n{complaints}");
    }
}

/// With TREE only.
#[test]
fn plant_them() {
    let Ok(tree) = std::env::var("TREE") else { return };
    for (file, text) in plant_all().expect("they can be planted") {
        let path = Path::new(&tree).join(file);
        // What is built goes by the times of files.
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(&path, text).expect("the tree can be written to");
        }
    }
}
