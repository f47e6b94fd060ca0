//! One suite for both implementations.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use super::disk::DiskBackend;
use super::memory::MemoryBackend;
use super::*;
use crate::storage::Error;

fn on_both(check: impl Fn(&dyn Backend)) {
    check(&MemoryBackend::new());
    let dir = tempfile::tempdir().unwrap();
    check(&DiskBackend::open(dir.path().join("state.redb")).unwrap());
}

fn put(batch: &mut Batch, bucket: Bucket, key: &str, value: &str) {
    batch.put(bucket, Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
}

fn committed(backend: &dyn Backend, rows: &[(Bucket, &str, Option<&str>)]) {
    let mut batch = Batch::default();
    for (bucket, key, value) in rows {
        match value {
            Some(value) => put(&mut batch, *bucket, key, value),
            None => batch.delete(*bucket, Bytes::copy_from_slice(key.as_bytes())),
        }
    }
    backend.commit(&batch).unwrap();
}

fn scanned(reader: &dyn Reader, bucket: Bucket, from: &str, to: Option<&str>, limit: usize) -> String {
    let mut seen = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        seen.push(format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
        seen.len() < limit
    };
    reader.scan(bucket, from.as_bytes(), to.map(str::as_bytes), &mut visit).unwrap();
    seen.join(" ")
}

#[test]
fn rows_are_read_in_order_and_by_bucket() {
    use Bucket::{Key, Meta};
    on_both(|backend| {
        committed(
            backend,
            &[(Key, "b", Some("2")), (Key, "a", Some("1")), (Key, "c", Some("")), (Meta, "a", Some("m"))],
        );
        let reader = backend.reader().unwrap();
        assert_eq!(scanned(&*reader, Key, "", None, 9), "a=1 b=2 c=");
        assert_eq!(scanned(&*reader, Key, "a", Some("c"), 9), "a=1 b=2");
        assert_eq!(scanned(&*reader, Key, "aa", None, 1), "b=2", "until the visitor has enough");
        for nothing in ["b", "a", ""] {
            assert_eq!(scanned(&*reader, Key, "b", Some(nothing), 9), "", "to {nothing:?}");
        }
        assert_eq!(scanned(&*reader, Bucket::Alarm, "", None, 9), "");
        assert_eq!(reader.get(Meta, b"a").unwrap().unwrap(), "m");
        assert_eq!(reader.get(Key, b"c").unwrap().unwrap(), "", "an empty value is a row");
        assert_eq!(reader.get(Key, b"d").unwrap(), None);
    });
}

#[test]
fn all_rows_are_read_ahead_as_far_as_somebody_wants_them() {
    on_both(|backend| {
        let mut batch = Batch::default();
        for i in 0..3000 {
            put(&mut batch, Bucket::Key, &format!("key{i:04}"), &"v".repeat(i % 1000));
        }
        backend.commit(&batch).unwrap();
        let reader = backend.reader().unwrap();
        for limit in [1, 2, 2999, usize::MAX] {
            let mut seen = Vec::new();
            let mut visit = |key: &[u8], value: &[u8]| {
                seen.push(format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value)));
                seen.len() < limit
            };
            reader.scan_all(Bucket::Key, &mut visit).unwrap();
            assert!(seen.join(" ") == scanned(&*reader, Bucket::Key, "", None, limit), "{limit}");
        }
        reader.scan_all(Bucket::Alarm, &mut |_, _| panic!("it is empty")).unwrap();
    });
}

#[test]
fn a_batch_happens_in_order_and_old_readers_do_not_see_it() {
    use Bucket::Key;
    on_both(|backend| {
        committed(backend, &[(Key, "a", Some("1")), (Key, "b", Some("1"))]);
        let before = backend.reader().unwrap();
        assert_eq!(before.get(Key, b"a").unwrap().unwrap(), "1");
        committed(backend, &[(Key, "a", None), (Key, "b", None), (Key, "b", Some("2")), (Key, "zz", None)]);
        assert_eq!(scanned(&*before, Key, "", None, 9), "a=1 b=1");
        assert_eq!(scanned(&*backend.reader().unwrap(), Key, "", None, 9), "b=2");
        assert_eq!(backend.size_in_use(), 2);
        committed(backend, &[]);
        assert!(backend.size() >= backend.size_in_use());
    });
}

#[test]
fn both_agree_with_a_map_after_arbitrary_batches() {
    on_both(|backend| {
        let mut model = BTreeMap::new();
        let mut random = 1u64;
        for _ in 0..20 {
            let mut batch = Batch::default();
            for _ in 0..60 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let (key, len) = ((random >> 40) % 50, (random >> 33) as usize % 300);
                let (key, value) = (format!("{key:03}"), "v".repeat(len));
                if len < 100 {
                    batch.delete(Bucket::Key, Bytes::from(key.clone()));
                    model.remove(&key);
                } else {
                    put(&mut batch, Bucket::Key, &key, &value);
                    model.insert(key, value);
                }
            }
            backend.commit(&batch).unwrap();
        }
        let expected = model.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
        assert_eq!(scanned(&*backend.reader().unwrap(), Bucket::Key, "", None, usize::MAX), expected);
        let bytes: usize = model.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert_eq!(backend.size_in_use(), bytes as u64);
    });
}

#[test]
fn the_file_comes_back_as_it_was_and_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    std::fs::write(dir.path().join("state.new"), b"left by a crash").unwrap();
    let backend = DiskBackend::open(&path).unwrap();
    committed(&backend, &[(Bucket::Key, "a", Some("1"))]);
    let second = DiskBackend::open(&path).map(|_| ()).unwrap_err();
    assert!(matches!(&second, Error::Refused { .. }) && second.to_string().contains("in use"), "{second}");
    drop(backend);
    let backend = DiskBackend::open(&path).unwrap();
    assert_eq!(scanned(&*backend.reader().unwrap(), Bucket::Key, "", None, 9), "a=1");
    assert_eq!((backend.size_in_use(), backend.size()), (2, std::fs::metadata(&path).unwrap().len()));
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap()) & 0o777, 0o600);
}

#[test]
fn a_changed_file_is_refused_or_reads_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let backend = DiskBackend::open(&path).unwrap();
    let mut batch = Batch::default();
    for i in 0..200 {
        put(&mut batch, Bucket::Key, &format!("key{i:04}"), &"value".repeat(40));
    }
    backend.commit(&batch).unwrap();
    let expected = scanned(&*backend.reader().unwrap(), Bucket::Key, "", None, usize::MAX);
    drop(backend);
    let data = std::fs::read(&path).unwrap();
    let marks = (0..data.len()).filter(|at| data[*at..].starts_with(b"valuevalue")).step_by(40).collect::<Vec<_>>();
    let places = (0..64).chain((64..4096).step_by(97)).chain(marks);
    let mut refused = 0;
    for at in places {
        let copy = dir.path().join("copy.redb");
        std::fs::write(&copy, &data).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&copy).unwrap();
        file.write_all_at(&[data[at] ^ 0x10], at as u64).unwrap();
        match DiskBackend::open(&copy) {
            Err(_) => refused += 1,
            Ok(backend) => {
                let rows = scanned(&*backend.reader().unwrap(), Bucket::Key, "", None, usize::MAX);
                assert!(rows == expected, "byte {at}");
            }
        }
    }
    assert!(refused > 20, "only {refused} refused");
    for len in [0, 1, 100, 4096, data.len() / 2] {
        let copy = dir.path().join("copy.redb");
        std::fs::write(&copy, &data[..len]).unwrap();
        assert!(DiskBackend::open(&copy).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn a_store_of_before_there_were_users_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    for name in ["key", "lease", "members", "members_removed", "alarm", "meta"] {
        let table: redb::TableDefinition<'static, &'static [u8], &'static [u8]> = redb::TableDefinition::new(name);
        transaction.open_table(table).unwrap().insert(b"k".as_slice(), b"v".as_slice()).unwrap();
    }
    let row_bytes: redb::TableDefinition<'static, &'static [u8], u64> = redb::TableDefinition::new("row_bytes");
    transaction.open_table(row_bytes).unwrap().insert([].as_slice(), 12).unwrap();
    transaction.commit().unwrap();
    drop(database);

    let backend = DiskBackend::open(&path).unwrap();
    committed(&backend, &[(Bucket::Users, "root", Some("r"))]);
    let reader = backend.reader().unwrap();
    assert_eq!(scanned(&*reader, Bucket::Meta, "", None, 9), "k=v");
    assert_eq!(scanned(&*reader, Bucket::Users, "", None, 9), "root=r");
    assert_eq!(scanned(&*reader, Bucket::Roles, "", None, 9), "");
    assert_eq!(backend.size_in_use(), 17);
}
