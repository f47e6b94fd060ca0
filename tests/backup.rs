//! Backups of real processes: saved, looked at, and made into new members with the control tool, as an operator does.
//!
//! `scripts/round-trip.sh` holds the same against etcd; here is a file that etcd 3.5.1 made.

mod processes;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use everwatch::pb::etcdserverpb::alarm_request::AlarmAction;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::watch_client::WatchClient;
use everwatch::pb::etcdserverpb::watch_request::RequestUnion;
use everwatch::pb::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest, HashKvResponse,
    LeaseGrantRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest, WatchCreateRequest,
    WatchRequest,
};
use processes::{Cluster, PATIENCE, Process, READY};

/// Made by etcd 3.5.1: five puts, two leases and a key with one of them, a deletion, a put, compaction at 5, a transaction of two puts and a
/// deletion, an alarm. `etcdctl endpoint hashkv` and `etcdutl snapshot status` said of it what stands in the tests.
const OF_ETCD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd-3.5.1.db");

/// The file and the log, without the zeros behind it, of an etcd 3.5.1 that was killed: three puts and a compaction at 3, which its file has;
/// then a put, a deletion, a lease and a key with it, a txn of two puts, a user with a role. `etcdctl endpoint hashkv` said of it what stands
/// in the test.
const KILLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd-3.5.1-killed");

fn ctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatchctl"));
    command.env_clear().args(arguments).output().expect("the binary runs")
}

/// What it prints when it does what it shall.
fn told(arguments: &[&str]) -> String {
    let output = ctl(arguments);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    stdout.into_owned()
}

/// Why it does not do what it shall.
fn refused(arguments: &[&str]) -> String {
    let output = ctl(arguments);
    // etcdctl has a code of its own for a backup that was not saved.
    let code = if arguments.starts_with(&["snapshot", "save"]) { 5 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("it is text")
}

/// Makes place `n` of the cluster from a file.
fn restore(cluster: &Cluster, n: usize, list: &str, file: &Path, more: &[&str]) -> String {
    let (name, dir) = (format!("m{n}"), cluster.dir(n));
    let peer = format!("http://{}", cluster.peers[n]);
    let line = ["snapshot", "restore", path(file), "--data-dir", path(&dir), "--name", &name];
    let line = [&line[..], &["--initial-cluster", list, "--initial-advertise-peer-urls", &peer], more].concat();
    told(&line)
}

fn hash_kv(member: &Process) -> HashKvResponse {
    let answer = member.ask(async |channel| MaintenanceClient::new(channel).hash_kv(HashKvRequest::default()).await);
    answer.expect("it reads what it has").into_inner()
}

/// Hash, revision and compacted revision: what a backup keeps.
fn content(member: &Process) -> (u32, i64, i64) {
    let HashKvResponse { hash, hash_revision, compact_revision, .. } = hash_kv(member);
    (hash, hash_revision, compact_revision)
}

fn lease(member: &Process, id: i64) -> LeaseTimeToLiveResponse {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    member.ask(async |channel| LeaseClient::new(channel).lease_time_to_live(request).await).expect("asked").into_inner()
}

/// Who has which.
fn alarms(member: &Process) -> Vec<(u64, i32)> {
    let alarms = member.ask(async |channel| MaintenanceClient::new(channel).alarm(AlarmRequest::default()).await);
    let alarms = alarms.expect("asked").into_inner().alarms;
    alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect()
}

#[test]
fn a_backup_holds_what_was_acknowledged_and_a_new_cluster_goes_on_from_it() {
    let cluster = Cluster::new(2);
    let list = cluster.list(1);
    let member = cluster.start_with(0, &list, "new");
    member.says(READY);
    member.ask(async |channel| {
        let grant = LeaseGrantRequest { ttl: 3000, id: 77 };
        LeaseClient::new(channel.clone()).lease_grant(grant).await.expect("granted");
        let mut kv = KvClient::new(channel);
        for n in 0..500u32 {
            let (key, value) = (format!("k{}", n % 200).into(), vec![7; n as usize * 20].into());
            let put = PutRequest { key, value, lease: if n % 5 == 0 { 77 } else { 0 }, ..Default::default() };
            kv.put(put).await.expect("put");
        }
        kv.compact(CompactionRequest { revision: 300, physical: true }).await.expect("compacted");
        let delete = DeleteRangeRequest { key: "k1".into(), range_end: "k12".into(), ..Default::default() };
        kv.delete_range(delete).await.expect("deleted");
    });
    let (before, leased) = (content(&member), lease(&member, 77));
    let file = cluster.dir(0).with_extension("db");
    // Right behind the last answer.
    assert_eq!(
        told(&["snapshot", "save", path(&file), "--endpoints", &member.client]),
        format!("Snapshot saved at {}\nServer version 3.5.0\n", path(&file))
    );
    let status = told(&["snapshot", "status", path(&file), "-w", "json"]);
    assert!(status.contains(&format!("\"revision\":{}", before.1)), "{status}");

    let other = format!("m1=http://{}", cluster.peers[1]);
    let said = restore(&cluster, 1, &other, &file, &[]);
    assert!(said.contains(&format!("revision {}, compacted at 300", before.1)), "{said}");
    let restored = cluster.start_with(1, &other, "new");
    restored.says(READY);
    assert_eq!(content(&restored), before);
    let again = lease(&restored, 77);
    assert_eq!((again.granted_ttl, again.keys), (leased.granted_ttl, leased.keys));
    restored.put("next");
    assert_eq!(content(&restored).1, before.1 + 1);
    assert_eq!(restored.members()[0].name, "m1");
    let done = restored.ask(async |channel| MaintenanceClient::new(channel).defragment(DefragmentRequest {}).await);
    done.expect("there is little to do");
}

#[test]
fn f15_a_watcher_from_before_a_restored_backup_is_told_of_the_compaction() {
    let cluster = Cluster::new(3);
    let members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    // The last by the member that is asked how far it is.
    for n in 0..19 {
        members[n % 3].put("before");
    }
    let saved = content(&members[0]).1;
    let file = cluster.dir(0).with_extension("db");
    told(&["snapshot", "save", path(&file), "--endpoints", &members[0].client]);
    for _ in 0..100 {
        members[0].put("lost");
    }
    let next = saved + 1;
    drop(members);
    let list = cluster.list(3);
    for n in 0..3 {
        cluster.wipe(n);
        restore(&cluster, n, &list, &file, &["--bump-revision", "1000", "--mark-compacted"]);
    }
    let members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    for member in &members {
        let watch = WatchCreateRequest { key: "lost".into(), start_revision: next, ..Default::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) };
        let canceled = member.ask(async |channel| {
            let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
            let mut stream = WatchClient::new(channel).watch(requests).await.expect("it serves").into_inner();
            loop {
                let response = tokio::time::timeout(PATIENCE, stream.message()).await.expect("it says so soon");
                let response = response.expect("the stream goes on").expect("it does not end");
                assert!(response.events.is_empty(), "nothing of another history: {response:?}");
                if response.canceled {
                    return response;
                }
            }
        });
        assert_eq!(canceled.compact_revision, saved + 1000);
    }
    members[1].put("after");
    let hashes: Vec<_> = members.iter().map(|member| (member.has("after"), content(member))).collect();
    assert!(hashes.iter().all(|(has, content)| *has && *content == hashes[0].1), "{hashes:?}");
    assert_eq!(hashes[0].1.1, saved + 1001);
}

#[test]
fn a_file_of_etcd_becomes_a_member() {
    assert_eq!(told(&["snapshot", "status", OF_ETCD]), "59805fdd, 10, 22, 20 kB\n");
    let mut cluster = Cluster::new(1);
    cluster.flags = &["--quota-manual-disarm"];
    let list = cluster.list(1);
    restore(&cluster, 0, &list, Path::new(OF_ETCD), &[]);
    let member = cluster.start_with(0, &list, "new");
    member.says(READY);
    assert_eq!(content(&member), (685047109, 10, 5));
    let leased = lease(&member, 0x2040a224cbbeea0a);
    assert_eq!((leased.granted_ttl, leased.keys), (86400, vec!["leased".into()]));
    let range = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let range = member.ask(async |channel| KvClient::new(channel).range(range).await).expect("read").into_inner();
    let found: Vec<_> = range.kvs.iter().map(|kv| (&kv.key[..], &kv.value[..], kv.version)).collect();
    assert_eq!(found, [(&b"k1"[..], &b"again"[..], 2), (b"k4", b"v4", 1), (b"k5", b"v5", 1)]);
    assert_eq!(alarms(&member), [(3319814642761637952, 1)]);
    assert!(member.try_put("k").expect_err("there is no room").message().contains("space exceeded"));

    // There is room here, and the member that had none is not.
    drop(member);
    cluster.flags = &[];
    let member = cluster.start_with(0, &list, "new");
    member.says("taking back NOSPACE of a member of another cluster");
    let deadline = Instant::now() + PATIENCE;
    while let Err(status) = member.try_put("k") {
        assert!(Instant::now() < deadline && status.message().contains("space exceeded"), "{status}");
    }
    assert_eq!(alarms(&member), []);
    // One of nobody anywhere is an operator's, whenever it was raised.
    for member_id in [3319814642761637952, 0] {
        let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm: AlarmType::Nospace as i32 };
        member.ask(async |channel| MaintenanceClient::new(channel).alarm(raise).await).expect("raised");
    }
    assert_eq!(alarms(&member), [(0, 1), (3319814642761637952, 1)]);
    let member = {
        drop(member);
        cluster.start_with(0, &list, "new")
    };
    member.says("taking back NOSPACE of a member of another cluster");
    let deadline = Instant::now() + PATIENCE;
    while alarms(&member) != [(0, 1)] {
        assert!(Instant::now() < deadline, "it stays");
    }
}

#[test]
fn the_directory_of_an_etcd_that_was_killed_becomes_a_member_with_what_only_its_log_has() {
    let cluster = Cluster::new(1);
    let (list, peer) = (cluster.list(1), format!("http://{}", cluster.peers[0]));
    let from = cluster.dir(0).with_extension("etcd");
    let log = from.join("member/wal");
    std::fs::create_dir_all(from.join("member/snap")).unwrap();
    std::fs::create_dir_all(&log).unwrap();
    std::fs::copy(format!("{KILLED}/db"), from.join("member/snap/db")).unwrap();
    let wal = std::fs::read(format!("{KILLED}/wal")).unwrap();
    let dir = cluster.dir(0);
    let line = ["migrate", "--from", path(&from), "--data-dir", path(&dir), "--name", "m0", "--initial-cluster", &list];
    let line = [&line[..], &["--initial-advertise-peer-urls", &peer]].concat();

    // Its last entry is not whole: it was never acknowledged. In an earlier file nothing may be missing.
    std::fs::write(log.join("0000000000000000-0000000000000000.wal"), &wal[..1000]).unwrap();
    let said = told(&line);
    assert!(said.contains("revision 5, compacted at 3") && said.contains("1 changes among it"), "{said}");
    cluster.wipe(0);
    std::fs::write(log.join("0000000000000001-0000000000000009.wal"), &wal).unwrap();
    let said = refused(&line);
    assert!(said.contains("0000000000000000-0000000000000000.wal is damaged; start etcd once more"), "{said}");
    assert!(!dir.join("member").exists());

    std::fs::remove_file(log.join("0000000000000001-0000000000000009.wal")).unwrap();
    std::fs::write(log.join("0000000000000000-0000000000000000.wal"), &wal).unwrap();
    let said = told(&line);
    assert!(
        said.contains("revision 8, compacted at 3: 5 keys, 8 changes, 1 leases, 0 alarms, 1 users, 1 roles"),
        "{said}"
    );
    assert!(said.ends_with("9 changes among it that only the log had\nthe log holds no change after that\n"), "{said}");
    let member = cluster.start_with(0, &list, "new");
    member.says(READY);
    assert_eq!(content(&member), (105782393, 8, 3));
    let leased = lease(&member, 0x2aa22b53d8010b);
    assert_eq!((leased.granted_ttl, leased.keys), (3000, vec!["leased".into()]));
    member.put("next");
    assert_eq!(content(&member).1, 9);
}

#[test]
fn what_cannot_be_restored_leaves_nothing_behind() {
    let base = tempfile::tempdir().unwrap();
    let (file, dir) = (base.path().join("f.db"), base.path().join("d"));
    let whole = std::fs::read(OF_ETCD).unwrap();
    let refused_for = |bytes: &[u8], more: &[&str], why: &str| {
        std::fs::write(&file, bytes).unwrap();
        let line = [&["snapshot", "restore", path(&file), "--data-dir", path(&dir)], more].concat();
        let said = refused(&line);
        assert!(said.contains(why), "{said}");
        assert!(!dir.join("member").exists(), "{why}");
    };
    let unhashed = &whole[..whole.len() - 32];
    let mut changed = whole.clone();
    changed[9000] ^= 1;
    refused_for(unhashed, &[], "snapshot missing hash but --skip-hash-check=false");
    refused_for(&changed, &[], "expected sha256");
    refused_for(&whole[..8192], &["--skip-hash-check"], "damaged at byte");
    refused_for(b"", &["--skip-hash-check"], "this is not a bbolt file");
    refused_for(&whole, &["--name=z"], "couldn't find local name \"z\" in the initial cluster configuration");
    let far = i64::MAX.to_string();
    refused_for(&whole, &["--mark-compacted", "--bump-revision", &far], "cannot be raised");

    std::fs::write(&file, unhashed).unwrap();
    let line = ["snapshot", "restore", path(&file), "--data-dir", path(&dir)];
    told(&[&line[..], &["--skip-hash-check"]].concat());
    let said = refused(&[&line[..], &["--skip-hash-check"]].concat());
    assert!(said.contains(&format!("data-dir {:?} not empty or could not be read", path(&dir))), "{said}");
    assert!(dir.join("member/state.redb").exists(), "what is there stays");
    assert!(refused(&["snapshot", "save", path(&file), "--endpoints=127.0.0.1:1"]).starts_with("Error: "));
    assert_eq!(std::fs::read(&file).unwrap(), unhashed, "a save that fails leaves what was there");
}
