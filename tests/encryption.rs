//! Data at rest, of real members that were given a key: nothing of it can be read, another key or none is refused, keys are replaced.

mod processes;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::{AuthUserAddRequest, LeaseGrantRequest, PutRequest};
use processes::{Cluster, Process, READY, files};

const SECRET: &str = "what nobody may read";
/// In a form that no other file has by chance.
const USER: &str = "a-user-nobody-may-know";

fn key(of: u8) -> String {
    format!("{of:02x}").repeat(32)
}

fn write_keys(path: &Path, keys: &[u8]) {
    let lines: Vec<String> = keys.iter().map(|of| key(*of)).collect();
    fs::write(path, lines.join("\n")).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}

/// Where something of it can be read.
fn readable(dir: &Path) -> Vec<PathBuf> {
    let shows = |bytes: &[u8]| {
        [SECRET, USER].iter().any(|word| bytes.windows(word.len()).any(|bytes| bytes == word.as_bytes()))
    };
    files(dir).into_iter().filter(|(_, bytes)| shows(bytes)).map(|(path, _)| path).collect()
}

fn stop(member: Process) {
    member.signal("-TERM");
    assert_eq!(member.ends().0, Some(0));
}

fn ctl(words: &[&str], keys: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everwatchctl"));
    command.env_clear().args(words);
    if let Some(keys) = keys {
        command.arg("--encryption-key-file").arg(keys);
    }
    command.output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn write(member: &Process) {
    member.ask(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { id: 7, ttl: 1000 }).await.expect("granted");
        for n in 0..60 {
            let (key, value) = (format!("{SECRET} {n:02}").into(), SECRET.repeat(20).into());
            kv.put(PutRequest { key, value, lease: 7, ..Default::default() }).await.expect("written");
        }
        let (name, password) = (USER.to_owned(), SECRET.to_owned());
        let user = AuthUserAddRequest { name, password, ..Default::default() };
        AuthClient::new(channel).user_add(user).await.expect("added");
    });
}

#[test]
fn a_sealed_member_shows_nothing_and_starts_with_its_key_alone() {
    let places = tempfile::tempdir().expect("a directory");
    let key_file = places.path().join("keys");
    write_keys(&key_file, &[1]);
    let mut cluster = Cluster::new(2);
    let given = format!("--encryption-key-file={}", key_file.display());
    cluster.more = vec![given.clone(), "--snapshot-count=20".into(), "--snapshot-catchup-entries=5".into()];
    let (list, both) = (cluster.list(1), cluster.list(2));

    let first = cluster.start_with(0, &list, "new");
    assert!(first.says("opened the data directory").contains("\"encrypted\":true"));
    first.says(READY);
    write(&first);
    // One that joins gets a snapshot, and writes it down.
    first.add(&cluster.peers[1], false);
    let second = cluster.start_with(1, &both, "existing");
    second.says(READY);
    assert!(second.has(&format!("{SECRET} 59")));
    // Killed while it serves, what is on disk is what it is.
    drop(second);
    let second = cluster.start_with(1, &both, "existing");
    second.says(READY);
    assert!(second.has(&format!("{SECRET} 59")));
    let saved = places.path().join("saved.db");
    let done = ctl(&["--endpoints", &first.client, "snapshot", "save", &saved.to_string_lossy()], None);
    assert!(done.status.success(), "{}", text(&done.stderr));
    stop(second);
    drop(first);
    for n in 0..2 {
        let written = files(&cluster.dir(n));
        assert!(written.keys().any(|path| path.ends_with("state.redb")) && written.len() >= 3, "{:?}", written.keys());
        assert_eq!(readable(&cluster.dir(n)), Vec::<PathBuf>::new());
    }

    // The tools need the key as well, and then see everything.
    let dir = cluster.dir(0).to_string_lossy().into_owned();
    let sound = ctl(&["db", "check", "--data-dir", &dir], Some(&key_file));
    assert!(sound.status.success() && text(&sound.stdout).contains("60 keys"), "{sound:?}");
    let dumped = ctl(&["wal", "dump", "--data-dir", &dir], Some(&key_file));
    assert!(dumped.status.success() && !dumped.stdout.is_empty(), "{dumped:?}");
    for words in [["db", "check"], ["wal", "dump"]] {
        let refused = ctl(&[words[0], words[1], "--data-dir", &dir], None);
        assert!(!refused.status.success());
        let said = text(&refused.stdout) + &text(&refused.stderr);
        assert!(said.contains("is encrypted: --encryption-key-file is needed"), "{said}");
    }
    let restored = places.path().join("restored");
    let urls = ["--initial-cluster", "m=http://127.0.0.1:1", "--initial-advertise-peer-urls", "http://127.0.0.1:1"];
    let restored_dir = restored.to_string_lossy().into_owned();
    let words = ["snapshot", "restore", &saved.to_string_lossy(), "--name=m", "--data-dir", &restored_dir];
    let done = ctl(&[&words[..], &urls].concat(), Some(&key_file));
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(readable(&restored), Vec::<PathBuf>::new());
    assert!(!readable(places.path()).is_empty(), "a backup is not sealed, and so this test would notice");
    assert!(ctl(&["db", "check", "--data-dir", &restored_dir], Some(&key_file)).status.success());

    // Another key, and none: refused, and nothing is changed.
    let before = files(&cluster.dir(0));
    write_keys(&key_file, &[9]);
    let (code, said) = cluster.start_with(0, &list, "new").ends();
    assert!(code == Some(1) && said.contains("is encrypted with a key that is not in "), "{said}");
    let more = std::mem::take(&mut cluster.more);
    let (code, said) = cluster.start_with(0, &list, "new").ends();
    assert!(code == Some(1) && said.contains("is encrypted: --encryption-key-file is needed"), "{said}");
    cluster.more = more;
    for keys in [&key(1)[1..], ""] {
        fs::write(&key_file, keys).expect("a file");
        let (code, said) = cluster.start_with(0, &list, "new").ends();
        assert!(code == Some(1) && said.contains("key") && !said.contains(&key(1)[..8]), "{said}");
    }
    assert!(files(&cluster.dir(0)) == before, "nothing was changed");

    // A new key before the old one; then alone.
    write_keys(&key_file, &[2, 1]);
    for keys in [&[2][..], &[3, 2], &[3]] {
        let members = [cluster.start_with(0, &list, "new"), cluster.start_with(1, &both, "existing")];
        members.iter().for_each(|member| drop(member.says(READY)));
        assert!(members[0].has(&format!("{SECRET} 00")));
        members[1].put(&format!("{SECRET} with {keys:?}"));
        members.into_iter().for_each(drop);
        write_keys(&key_file, keys);
    }
    let (code, said) = {
        write_keys(&key_file, &[2]);
        cluster.start_with(0, &list, "new").ends()
    };
    assert!(code == Some(1) && said.contains("is encrypted with a key that is not in "), "{said}");
    write_keys(&key_file, &[3]);
    let members = [cluster.start_with(0, &list, "new"), cluster.start_with(1, &both, "existing")];
    members.iter().for_each(|member| drop(member.says(READY)));
    assert!(members[0].has(&format!("{SECRET} with [3]")));
    for (n, member) in members.into_iter().enumerate() {
        drop(member);
        assert_eq!(readable(&cluster.dir(n)), Vec::<PathBuf>::new());
    }
}

#[test]
fn what_began_unsealed_is_not_opened_with_a_key() {
    let places = tempfile::tempdir().expect("a directory");
    let key_file = places.path().join("keys");
    write_keys(&key_file, &[1]);
    let mut cluster = Cluster::new(1);
    let list = cluster.list(1);
    let member = cluster.start_with(0, &list, "new");
    assert!(member.says("opened the data directory").contains("\"encrypted\":false"));
    member.says(READY);
    write(&member);
    stop(member);
    assert!(readable(&cluster.dir(0)).len() >= 2, "the log and the state");
    let before = files(&cluster.dir(0));
    cluster.more = vec![format!("--encryption-key-file={}", key_file.display())];
    let (code, said) = cluster.start_with(0, &list, "new").ends();
    assert!(code == Some(1) && said.contains("is not encrypted, and --encryption-key-file is given"), "{said}");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (code, said) = cluster.start_with(0, &list, "new").ends();
    assert!(code == Some(1) && said.contains("others than its owner may use it"), "{said}");
    assert!(files(&cluster.dir(0)) == before, "nothing was changed");
    cluster.more.clear();
    let member = cluster.start_with(0, &list, "new");
    member.says(READY);
    assert!(member.has(&format!("{SECRET} 00")));
}
