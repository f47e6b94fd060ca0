//! Logs of a stopped etcd: sound frames around requests that are not, and files with something changed in them. Whatever can be read of
//! one is carried out without failing: what makes no sense is refused.

use bytes::Bytes;
use everwatch::backup::Error;
use everwatch::backup::etcd_log::{Log, Tail};
use everwatch::pb::everwatchpb::ConfState;
use everwatch::state::StateMachine;
use everwatch::storage::backend::memory::MemoryBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket};
use everwatch::storage::schema;
use everwatch::types::{Index, Term};
use prost::Message;

use crate::engine::{Dice, Feed, gist, mutated, outcome};

const KILLED: &[u8] = include_bytes!("../fixtures/etcd-3.5.1-killed/wal");
/// The last entry that the file beside it has.
const IN_FILE: u64 = 8;
/// Changes after that.
const COMMANDS: usize = 9;

/// `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    data: Bytes,
}

const ENTRY: i64 = 2;
const CHECKSUM: i64 = 4;

/// The records of a sound file.
fn records(mut file: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((head, rest)) = file.split_first_chunk::<8>() {
        let head = u64::from_le_bytes(*head);
        let (bytes, padding) = ((head & (u64::MAX >> 8)) as usize, (head >> 56) as usize & 7);
        records.push(Record::decode(&rest[..bytes]).expect("it is sound"));
        file = &rest[bytes + padding..];
    }
    records
}

/// A file of these, with checksums that are right.
fn file(records: &[Record]) -> Vec<u8> {
    let (mut file, mut crc) = (Vec::new(), 0);
    for record in records {
        if record.kind != CHECKSUM {
            crc = crc32c::crc32c_append(crc, &record.data);
        }
        let record = Record { crc, ..record.clone() }.encode_to_vec();
        let padding = (8 - record.len() % 8) % 8;
        let mark = if padding == 0 { 0 } else { (0x80 | padding as u64) << 56 };
        file.extend((record.len() as u64 | mark).to_le_bytes());
        file.extend(&record);
        file.resize(file.len() + padding, 0);
    }
    file
}

/// Whether the file is whole, and what comes of it.
fn read(file: &[u8], above: u64, voters: u64) -> (bool, Result<Tail, Error>) {
    let mut log = Log::after(above);
    (log.read(file).is_ok(), log.tail((0..voters).collect()))
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    let mut dice = Dice::new(feed.u64());
    let mut records = records(KILLED);
    let sound = read(&file(&records), IN_FILE, 1).1.expect("it is sound");
    assert_eq!(sound.commands.len(), COMMANDS);
    let entries: Vec<usize> = (0..records.len()).filter(|n| records[*n].kind == ENTRY).collect();
    for _ in 0..feed.below(4) {
        let at = entries[feed.below(entries.len())];
        let other = entries[feed.below(entries.len())];
        let mut entry = Entry::decode(records[at].data.clone()).expect("it is sound");
        let donor = Entry::decode(records[other].data.clone()).expect("it is sound");
        match feed.below(4) {
            0 => entry.data = mutated(&mut dice, &entry.data, &donor.data, 300).into(),
            1 => entry.data = feed.bytes(100).into(),
            2 => entry.kind = feed.number() as i32,
            _ => entry.index = feed.number() as u64,
        }
        records[at].data = entry.encode_to_vec().into();
    }
    if feed.one_in(3) {
        let at = feed.below(records.len());
        records[at].data = mutated(&mut dice, &records[at].data.clone(), KILLED, 300).into();
    }
    let mut bytes = file(&records);
    if feed.one_in(3) {
        bytes = mutated(&mut dice, &bytes, KILLED, 4000);
    }
    let (whole, tail) = read(&bytes, feed.pick(&[IN_FILE, 0, 3, u64::MAX]), feed.below(3) as u64);
    let tail = match tail {
        Ok(tail) => tail,
        Err(error) => return outcome((whole, gist(&error.to_string()))),
    };

    let backend = MemoryBackend::default();
    let mut batch = StateMachine::founding_rows(&[], &ConfState::default());
    for name in [schema::APPLIED_INDEX, schema::APPLIED_TERM] {
        batch.put(Bucket::Meta, Bytes::from_static(name), schema::u64_row(0));
    }
    backend.commit(&batch).expect("memory");
    let mut state = StateMachine::open(backend.reader().expect("memory")).expect("it is new");
    let mut batch = Batch::default();
    let mut done = 0;
    for command in &tail.commands {
        let applied = state.apply(Index(1), Term(1), command, &mut batch).expect("nothing fails in memory");
        done += usize::from(applied.reply.is_ok());
    }
    state.finish_entry(Index(1), Term(1), &mut batch);
    backend.commit(&batch).expect("memory");
    let again = StateMachine::open(backend.reader().expect("memory")).expect("what was carried out can be read");
    assert_eq!((again.kv.revision(), again.leases.len()), (state.kv.revision(), state.leases.len()));
    outcome((whole, tail.commands.len(), done, tail.undecided.len()))
}
