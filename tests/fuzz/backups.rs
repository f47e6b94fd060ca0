//! Files of bbolt, ours and one of etcd's, with something changed in them. What was written is read back; of what is read of a hurt file
//! keys are in order, and reading it ends.

use std::io::Cursor;

use everwatch::storage::bolt::{Damage, Reader, Writer};

use crate::engine::{Dice, Feed, gist, outcome};

const OF_ETCD: &[u8] = include_bytes!("../fixtures/etcd-3.5.1.db");
const PAGE_BYTES: usize = 4096;

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn written(rows: &Rows) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).expect("memory takes everything");
    writer.bucket("b").expect("it is the first");
    for (key, value) in rows {
        writer.row(key, value).expect("they are in order");
    }
    writer.bucket("c").expect("another name");
    let (body, layout) = writer.finish().expect("it is whole");
    [layout.head(), body].concat()
}

fn read(file: &[u8]) -> Result<Rows, Damage> {
    let mut reader = Reader::open(Cursor::new(file))?;
    let names: Vec<_> = reader.buckets().keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let mut all = Vec::new();
    for name in names {
        let mut rows: Rows = Vec::new();
        let scanned = reader.scan(&name, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        });
        assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0));
        scanned?;
        all.append(&mut rows);
    }
    Ok(all)
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let mut file = if feed.one_in(2) {
        OF_ETCD.to_vec()
    } else {
        let many = feed.below(400) as u32;
        let value_bytes = feed.pick(&[0usize, 3, 50, 700, 5000]);
        let rows: Rows = (0..many).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value_bytes])).collect();
        let file = written(&rows);
        assert!(read(&file).expect("it was written whole") == rows);
        file
    };
    // Where it matters: in the first bytes of pages, where headers and elements are, rather than anywhere. Not in what a checksum guards.
    let mut dice = Dice::new(feed.u64());
    for _ in 0..1 + feed.below(6) {
        let page = 2 + dice.below(file.len() / PAGE_BYTES - 2);
        let within = [16, 64, PAGE_BYTES][dice.below(3)];
        let at = page * PAGE_BYTES + dice.below(within);
        let value = [0, 1, 0xff, file[at] ^ 1 << dice.below(8), dice.next() as u8];
        file[at] = value[dice.below(5)];
    }
    if feed.one_in(8) {
        file.truncate(dice.below(file.len()));
    }
    match read(&file) {
        Ok(rows) => outcome((0, rows.len() / 8)),
        Err(error) => outcome((1, gist(&error.to_string()))),
    }
}
