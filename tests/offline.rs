//! What the tool says of the directory of a real member that was stopped or killed: the log in all its forms, and whether all of it is
//! sound; and of directories in which something was changed.

mod processes;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::request_op::Request;
use everwatch::pb::etcdserverpb::{
    AuthUserAddRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, InternalRaftRequest,
    LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestOp, TxnRequest,
};
use everwatch::storage::backend::disk::DiskBackend;
use everwatch::storage::backend::{Backend, Batch, Bucket};
use processes::{Cluster, Process, READY, files};
use prost::Message;

const HASHED: &str = "password of nobody";

fn ctl(words: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatchctl"));
    command.env_clear().args(words).arg("--data-dir").arg(dir).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().expect("a directory");
    for (path, bytes) in files(from) {
        let path = to.path().join(path.strip_prefix(from).expect("it is inside"));
        fs::create_dir_all(path.parent().expect("it is in one")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
    to
}

/// One of each kind. The hash of all keys.
fn writes(member: &Process) -> u32 {
    let put = |key: &str, value: &str, lease| PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        lease,
        ..Default::default()
    };
    member.ask(async |channel| {
        let (mut kv, mut leases) = (KvClient::new(channel.clone()), LeaseClient::new(channel.clone()));
        kv.put(put("a", "first", 0)).await.expect("written");
        leases.lease_grant(LeaseGrantRequest { id: 0x77, ttl: 1000 }).await.expect("granted");
        leases.lease_grant(LeaseGrantRequest { id: 0x78, ttl: 1000 }).await.expect("granted");
        kv.put(put("leased", "x", 0x77)).await.expect("written");
        let compare = Compare {
            key: "a".into(),
            target: CompareTarget::Version as i32,
            result: CompareResult::Equal as i32,
            target_union: Some(TargetUnion::Version(1)),
            ..Default::default()
        };
        let success = ["b", "c"].map(|key| RequestOp { request: Some(Request::RequestPut(put(key, "in txn", 0))) });
        let txn = TxnRequest { compare: vec![compare], success: success.into(), ..Default::default() };
        kv.txn(txn).await.expect("written");
        kv.delete_range(DeleteRangeRequest { key: "b".into(), ..Default::default() }).await.expect("deleted");
        kv.put(put("a", "second", 0)).await.expect("written");
        leases.lease_revoke(LeaseRevokeRequest { id: 0x78 }).await.expect("revoked");
        kv.compact(CompactionRequest { revision: 4, physical: true }).await.expect("compacted");
        kv.put(put("a", "third", 0)).await.expect("written");
        let user = AuthUserAddRequest { name: "nobody".into(), password: HASHED.into(), ..Default::default() };
        AuthClient::new(channel.clone()).user_add(user).await.expect("added");
        let hash = MaintenanceClient::new(channel).hash_kv(HashKvRequest { revision: 0 }).await;
        hash.expect("hashed").into_inner().hash
    })
}

/// The directory of a member that was written to, and the hash of its keys.
fn written(cluster: &Cluster, stop: &str) -> (PathBuf, u32) {
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);
    let hash = writes(&member);
    for words in [&["wal", "dump"][..], &["db", "check"]] {
        let output = ctl(words, &cluster.dir(0));
        assert_eq!(output.status.code(), Some(1), "{words:?}: it runs");
        assert!(text(&output.stderr).contains("is in use by another process"), "{}", text(&output.stderr));
    }
    member.signal(stop);
    member.ends();
    (cluster.dir(0), hash)
}

#[test]
fn what_was_written_stands_in_the_log_in_order_in_every_form() {
    let cluster = Cluster::new(1);
    let (dir, hash) = written(&cluster, "-TERM");
    let before = files(&dir);

    let output = ctl(&["wal", "dump"], &dir);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    let done: Vec<&str> = lines.lines().map(|line| line.split('\t').nth(2).expect("three columns")).collect();
    let expected = [
        "put \"a\" \"first\"",
        "lease grant 0000000000000077 ttl=1000s",
        "lease grant 0000000000000078 ttl=1000s",
        "put \"leased\" \"x\" lease=0000000000000077",
        "txn if 1 of [\"a\"] then [put \"b\" \"in txn\"; put \"c\" \"in txn\"] else []",
        "delete \"b\"",
        "put \"a\" \"second\"",
        "lease revoke 0000000000000078",
        "compact 4 physical",
        "put \"a\" \"third\"",
        "user add nobody",
    ];
    let asked: Vec<&str> = done
        .iter()
        .copied()
        .filter(|line| !["nothing", "member", "cluster", "lease remaining"].iter().any(|word| line.starts_with(word)))
        .collect();
    assert_eq!(asked, expected.map(|line| line.replace("0000000000000077", "77").replace("0000000000000078", "78")));
    let indexes: Vec<u64> = lines.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
    assert!(indexes.is_sorted());

    // A part of it.
    let (from, to) = (indexes[2].to_string(), indexes[4].to_string());
    let part = ctl(&["wal", "dump", "--start-index", &from, "--end-index", &to], &dir);
    let within = |index: &u64| (indexes[2]..=indexes[4]).contains(index);
    assert_eq!(text(&part.stdout).lines().count(), indexes.iter().filter(|index| within(index)).count());

    let output = ctl(&["wal", "dump", "--format=json"], &dir);
    assert!(output.status.success());
    let objects: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(objects.len(), done.len());
    let first = objects.iter().find(|object| object["command"] == "put").expect("there is one");
    assert_eq!(first["requests"][0]["put"]["value"], STANDARD.encode("first"));
    assert_eq!(first["committed"], true);

    let output = ctl(&["wal", "dump", "--format=etcd"], &dir);
    assert!(output.status.success());
    let requests: Vec<InternalRaftRequest> = text(&output.stdout)
        .lines()
        .map(|line| InternalRaftRequest::decode(&STANDARD.decode(line).expect("base64")[..]).expect("a request"))
        .collect();
    let puts: Vec<_> = requests.iter().filter_map(|request| request.put.as_ref()).collect();
    assert_eq!(puts.iter().map(|put| &put.value[..]).collect::<Vec<_>>(), [b"first", &b"x"[..], b"second", b"third"]);
    assert!(requests.iter().all(|request| request.header.is_some()));
    assert_eq!(requests.iter().filter(|request| request.txn.is_some()).count(), 1);
    let user = requests.iter().find_map(|request| request.auth_user_add.as_ref()).expect("one was added");
    let hashed = STANDARD.decode(&user.hashed_password).expect("as etcd writes it");
    assert!(hashed.starts_with(b"$2") && user.password.is_empty());
    // Nobody who only reads gets the hash.
    for format in ["text", "json"] {
        let output = text(&ctl(&["wal", "dump", "--format", format], &dir).stdout);
        assert!(!output.contains(&user.hashed_password) && !output.contains("$2"), "{format}");
    }

    let output = ctl(&["db", "check"], &dir);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("HashKV: {hash} at revision 7, compacted 4\n")), "{said}");
    assert!(said.contains("revision 7, compacted 4, 3 keys") && said.ends_with("\nsound\n"), "{said}");
    let json: serde_json::Value =
        serde_json::from_slice(&ctl(&["db", "check", "-w", "json"], &dir).stdout).expect("an object");
    assert_eq!((&json["state"]["hash"], &json["sound"]), (&hash.into(), &true.into()));
    assert!(files(&dir) == before, "nothing was written");
}

#[test]
fn of_a_killed_member_everything_is_sound_and_nothing_is_repaired() {
    let cluster = Cluster::new(1);
    let (dir, _) = written(&cluster, "-KILL");
    let before = files(&dir);
    let output = ctl(&["db", "check"], &dir);
    assert!(output.status.success(), "{}", text(&output.stdout));
    assert!(ctl(&["wal", "dump"], &dir).status.success());
    assert!(files(&dir) == before);
    // A copy without the file that members hold.
    let copied = copy(&dir);
    fs::remove_file(copied.path().join("member/LOCK")).expect("it was there");
    assert!(ctl(&["db", "check"], copied.path()).status.success());

    // As if the power had failed in the middle of a record: its header and the first half of it, without the rest.
    let path = first_segment(copied.path());
    let segment = fs::read(&path).expect("it was there");
    let records = positions(&segment, b"EwR1");
    let seal = *records.last().expect("one is the seal");
    let last = records[records.len() - 2];
    let file = fs::OpenOptions::new().write(true).open(&path).expect("it was there");
    file.write_all_at(&vec![0; 4096], seal as u64).expect("no seal was written yet");
    let begun = segment[last..seal].iter().take(60).copied().collect::<Vec<_>>();
    file.write_all_at(&vec![0; seal - last], last as u64).expect("nor all of the record");
    file.write_all_at(&begun, last as u64).expect("but its header");
    let torn = ctl(&["wal", "dump"], copied.path());
    if text(&torn.stderr).contains("never finished") {
        assert_eq!(torn.status.code(), Some(1));
        let check = ctl(&["db", "check"], copied.path());
        assert!(text(&check.stdout).contains("the next start removes them"), "{}", text(&check.stdout));
    } else {
        // A record of less than two sectors is never half there: what looks so is damage.
        assert!(text(&torn.stderr).contains("is damaged at byte"), "{}", text(&torn.stderr));
        assert_eq!(torn.status.code(), Some(1));
    }
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("member/wal/0000000000000001.wal")
}

fn positions(data: &[u8], what: &[u8]) -> Vec<usize> {
    (0..data.len()).step_by(8).filter(|at| data[*at..].starts_with(what)).collect()
}

fn flip(path: &Path, at: usize) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("it was there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("it is inside");
    file.write_all_at(&[byte[0] ^ 0x10], at as u64).expect("written");
}

#[test]
fn what_was_changed_is_found_and_said_where() {
    let cluster = Cluster::new(1);
    let (dir, _) = written(&cluster, "-TERM");

    // In the log, in the value of the second put of "a": what came before is shown.
    let hurt = copy(&dir);
    let path = first_segment(hurt.path());
    let segment = fs::read(&path).expect("it is there");
    let at = segment.windows(6).position(|bytes| bytes == b"second").expect("it was written");
    flip(&path, at);
    let dump = ctl(&["wal", "dump"], hurt.path());
    assert_eq!(dump.status.code(), Some(1));
    let (shown, said) = (text(&dump.stdout), text(&dump.stderr));
    assert!(shown.contains("\tdelete \"b\"\n") && !shown.contains("lease revoke"), "{shown}");
    assert!(said.contains("0000000000000001.wal is damaged at byte "), "{said}");
    let record = *positions(&segment, b"EwR1").iter().rfind(|record| **record < at).expect("it is in one");
    assert!(said.contains(&format!(" at byte {record}:")), "{said}");
    let check = ctl(&["db", "check"], hurt.path());
    assert_eq!(check.status.code(), Some(1));
    assert!(text(&check.stdout).contains("WRONG: ") && text(&check.stdout).contains(&format!(" at byte {record}:")));

    // In the state, in the value of the last put.
    let hurt = copy(&dir);
    let state = hurt.path().join("member/state.redb");
    let bytes = fs::read(&state).expect("it is there");
    let found: Vec<usize> = (0..bytes.len() - 5).filter(|at| bytes[*at..].starts_with(b"third")).collect();
    found.iter().for_each(|at| flip(&state, *at));
    let check = ctl(&["db", "check"], hurt.path());
    assert_eq!(check.status.code(), Some(1), "{}", text(&check.stdout));
    assert!(text(&check.stdout).contains("state.redb"), "{}", text(&check.stdout));
    assert!(ctl(&["wal", "dump"], hurt.path()).status.success(), "the log is whole");

    // Rows that the engine vouches for, and that something else has written.
    for (what, change) in [
        (
            "comes where the row of revision 6, change 0, should",
            &(|batch: &mut Batch| {
                batch.delete(Bucket::Key, key_row(6));
            }) as &dyn Fn(&mut Batch),
        ),
        ("the history ends with revision 6, and the store is at 7", &|batch| batch.delete(Bucket::Key, key_row(7))),
        ("the row no revision is not a revision", &|batch| {
            batch.put(Bucket::Key, "no revision".into(), "x".into());
        }),
        ("the log ends with", &|batch| {
            batch.put(Bucket::Meta, "applied_index".into(), 1000u64.to_be_bytes().to_vec().into());
        }),
        ("the row of a lease cannot be read", &|batch| {
            batch.put(Bucket::Lease, 5u64.to_be_bytes().to_vec().into(), "x".into());
        }),
        ("and the log of member", &|batch| batch.put(Bucket::Meta, "identity".into(), vec![1; 16].into())),
    ] {
        let hurt = copy(&dir);
        let mut batch = Batch::default();
        change(&mut batch);
        DiskBackend::open(hurt.path().join("member/state.redb")).expect("it is sound").commit(&batch).expect("written");
        let check = ctl(&["db", "check"], hurt.path());
        assert_eq!(check.status.code(), Some(1));
        assert!(text(&check.stdout).contains(what), "{what}: {}", text(&check.stdout));
    }

    // Without the state, without a log, without anything.
    let hurt = copy(&dir);
    fs::remove_file(hurt.path().join("member/state.redb")).expect("it was there");
    assert!(text(&ctl(&["db", "check"], hurt.path()).stdout).contains("there is no state.redb"));
    fs::remove_file(first_segment(hurt.path())).expect("it was there");
    assert!(text(&ctl(&["db", "check"], hurt.path()).stdout).contains("holds no segment of a log"));
    let nothing = tempfile::tempdir().expect("a directory");
    let check = ctl(&["db", "check"], nothing.path());
    assert_eq!(check.status.code(), Some(1));
    assert!(text(&check.stderr).contains("there is no log at"));
    assert!(files(nothing.path()).is_empty());
}

fn key_row(revision: i64) -> bytes::Bytes {
    [&revision.to_be_bytes()[..], &[0; 4]].concat().into()
}
