use std::collections::BTreeMap;
use std::io::Cursor;

use super::*;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A whole file of these buckets.
fn file(buckets: &[(&str, Rows)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for (name, rows) in buckets {
        writer.bucket(name).unwrap();
        rows.iter().for_each(|(key, value)| writer.row(key, value).unwrap());
    }
    let (body, layout) = writer.finish().unwrap();
    let file = [layout.head(), body].concat();
    assert_eq!(file.len() as u64, layout.bytes());
    file
}

/// All rows of a file, by bucket.
fn read(file: &[u8]) -> Result<BTreeMap<String, Rows>, Damage> {
    let mut reader = Reader::open(Cursor::new(file))?;
    let names: Vec<String> = reader.buckets().keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut all = BTreeMap::new();
    for name in names {
        let mut rows = Vec::new();
        reader.scan(&name, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        })?;
        all.insert(name, rows);
    }
    Ok(all)
}

fn numbered(count: u32, value_bytes: impl Fn(u32) -> usize) -> Rows {
    (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value_bytes(n)])).collect()
}

#[test]
fn what_is_written_is_read() {
    let buckets = [
        ("z", Vec::new()),
        ("one", vec![(b"k".to_vec(), b"".to_vec())]),
        ("many", numbered(30_000, |n| n as usize % 90)),
        ("large", numbered(200, |n| n as usize * 397)),
        ("a page and a bit", numbered(9, |n| 4080 - 20 * 9 + n as usize)),
        // Keys so long that a branch has room for one child.
        ("long", (0..40u8).map(|n| ([vec![n; 2 + n as usize % 3], vec![7; 5000]].concat(), vec![n])).collect()),
    ];
    let file = file(&buckets);
    let found = read(&file).unwrap();
    assert_eq!(found.len(), buckets.len());
    for (name, rows) in buckets {
        assert!(found[name] == rows, "{name}");
    }
    let mut seen = 0;
    let mut reader = Reader::open(Cursor::new(&file)).unwrap();
    assert_eq!(reader.size(), file.len() as u64);
    reader
        .scan("many", &mut |_, _| {
            seen += 1;
            seen < 1000
        })
        .unwrap();
    assert_eq!(seen, 1000, "a visitor that has seen enough ends it");
    reader.scan("none", &mut |_, _| panic!("there is no such bucket")).unwrap();
}

#[test]
fn what_is_no_file_of_bbolt_is_not_written() {
    let writer = || {
        let mut writer = Writer::new(std::io::sink()).unwrap();
        writer.bucket("b").unwrap();
        writer.row(b"k", b"").unwrap();
        writer
    };
    assert!(writer().row(b"k", b"again").is_err());
    assert!(writer().row(b"j", b"out of order").is_err());
    assert!(writer().row(b"", b"no key").is_err());
    assert!(writer().row(&[b'x'; 32769], b"").is_err());
    assert!(writer().bucket("").is_err());
    let mut two = writer();
    two.bucket("c").unwrap();
    two.row(b"a", b"keys begin anew in a bucket").unwrap();
    assert!(two.bucket("b").is_err());
    assert!(Writer::new(std::io::sink()).unwrap().row(b"k", b"no bucket").is_err());
}

#[test]
fn one_of_the_two_meta_pages_is_enough() {
    let whole = file(&[("b", numbered(500, |_| 20))]);
    let rows = read(&whole).unwrap();
    for (zeroed, readable) in [(0..4096, true), (4096..8192, true), (0..8192, false)] {
        let mut damaged = whole.clone();
        damaged[zeroed].fill(0);
        match read(&damaged) {
            Ok(found) => assert!(readable && found == rows),
            Err(error) => assert!(!readable, "{error}"),
        }
    }
    // The newer one counts.
    let mut writer = Writer::new(Vec::new()).unwrap();
    writer.bucket("other").unwrap();
    let (_, other) = writer.finish().unwrap();
    let mut mixed = whole.clone();
    mixed[..4096].copy_from_slice(&other.head()[..4096]);
    assert!(read(&mixed).unwrap() == rows);
}

#[test]
fn whatever_the_bytes_are_it_ends_without_a_panic() {
    let whole = file(&[("b", numbered(150, |n| if n == 9 { 9000 } else { 12 })), ("c", numbered(3, |_| 5))]);
    assert!(read(&whole).is_ok());
    for len in (0..whole.len()).step_by(61) {
        assert!(read(&whole[..len]).is_err(), "cut at {len}");
    }
    // Every byte of the headers and elements, and of the meta pages; a page's data may be anything.
    let mut refused = 0;
    for page in (0..whole.len()).step_by(4096) {
        for at in (page..whole.len().min(page + 400)).chain(page + 4090..page + 4096) {
            for value in [whole[at] ^ 0x01, whole[at] ^ 0x80, 0xff, 0] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                refused += read(&damaged).is_err() as u32;
            }
        }
    }
    assert!(refused > 1000, "only {refused}");
    // Several at once, anywhere.
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    for _ in 0..3000 {
        let mut damaged = whole.clone();
        for _ in 0..1 + next(20) {
            let at = 8192 + next(whole.len() - 8192);
            damaged[at] = next(256) as u8;
        }
        let _ = read(&damaged);
    }
}

/// A file of one branch page, whose children are these pages, and two leaves.
fn branch(children: &[u64]) -> Vec<u8> {
    // Rows in two leaves, so that there is a branch above them.
    let mut file = file(&[("b", numbered(150, |_| 20))]);
    let place = (8192..file.len()).step_by(4096).find(|at| file[*at + 8] == 1).unwrap();
    file[place + 10..place + 12].copy_from_slice(&(children.len() as u16).to_le_bytes());
    for (n, child) in children.iter().enumerate() {
        let at = place + HEADER_BYTES + n * ELEMENT_BYTES + 8;
        file[at..at + 8].copy_from_slice(&child.to_le_bytes());
    }
    file
}

#[test]
fn a_tree_that_is_none_is_refused() {
    assert!(read(&branch(&[3, 4])).is_ok());
    for (children, what) in [
        (&[][..], "a branch has no children"),
        (&[3, 3], "keys are not in order"),
        (&[4, 3], "keys are not in order"),
        (&[5, 5], "pages lie in more than one place"),
        (&[3, 5], "keys are not in order"),
        (&[3, 1], "a page is named that there is not"),
        (&[3, 1 << 60], "a page is named that there is not"),
        (&[3, 2], "the page is neither a leaf nor a branch"),
    ] {
        let error = read(&branch(children)).unwrap_err().to_string();
        assert!(error.contains(what) || error.contains("too many levels"), "{children:?}: {error}");
    }
}
