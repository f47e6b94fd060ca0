//! Planted bugs: does the simulator bite?
//!
//! Each file in `tests/mutants/` describes one mistake that somebody could make, most of which etcd once had, as a change of the source:
//!
//! ```text
//! # What it does wrong.
//! worlds: the scenario that is after it
//!
//! @@ src/the/file.rs
//! -lines that stand there exactly once
//! +lines that replace them
//! ```
//!
//! A build with such a change is made in a copy of the tree by `scripts/mutants.sh`, so no mistake can get into a release; the
//! simulator has to find it. This test keeps the files true: whoever changes the lines that a mutant replaces hears of it here.
//! With MUTANT and TREE set it plants the mutant of that number in that copy.

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

#[test]
fn every_mutant_can_be_planted() {
    let mutants = mutants();
    let mut complaints = Vec::new();
    for (name, hunks) in &mutants {
        assert!(!hunks.is_empty(), "{name} changes nothing");
        for hunk in hunks {
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&hunk.file)).unwrap_or_default();
            if plant(hunk, &text).is_none() {
                complaints
                    .push(format!("{name}: these lines do not stand exactly once in {}:\n{}", hunk.file, hunk.old));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// With MUTANT and TREE only.
#[test]
fn plant_one() {
    let (Ok(wanted), Ok(tree)) = (std::env::var("MUTANT"), std::env::var("TREE")) else { return };
    let found = mutants().into_iter().find(|(name, _)| name.split('-').next() == Some(&wanted));
    let (name, hunks) = found.expect("MUTANT is the number of a mutant, with two digits");
    for hunk in hunks {
        let path = Path::new(&tree).join(&hunk.file);
        let text = fs::read_to_string(&path).expect("the tree has the file");
        fs::write(&path, plant(&hunk, &text).expect("the lines stand there once")).expect("the tree can be written to");
    }
    println!("planted {name}");
}
