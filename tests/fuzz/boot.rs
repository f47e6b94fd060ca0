//! A data directory that somebody has been at: the log's files and the backend's cut, overwritten, removed, exchanged. The
//! server either refuses to start, in words and without a panic, or serves a state that was really there: all of it, unless
//! it was the end of the log that went.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use bytes::Bytes;
use everwatch::pb::etcdserverpb as pb;
use prost::Message;
use tonic::transport::Channel;

use crate::engine::{Feed, gist, outcome};
use crate::process::{Server, Started, ask, runtime};

/// A file, without the zeros at its end.
#[derive(Clone)]
struct Content {
    bytes: Vec<u8>,
    len: u64,
}

/// A directory as a killed member left it, and what it had acknowledged: the keys after each revision.
struct Image {
    files: BTreeMap<PathBuf, Content>,
    states: Vec<BTreeMap<Bytes, Bytes>>,
}

const WRITES: usize = 60;

fn load(dir: &Path, root: &Path, files: &mut BTreeMap<PathBuf, Content>) {
    for found in std::fs::read_dir(dir).expect("a directory") {
        let path = found.expect("a directory").path();
        if path.is_dir() {
            load(&path, root, files);
        } else {
            let mut bytes = std::fs::read(&path).expect("a file");
            let len = bytes.len() as u64;
            bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1));
            files.insert(path.strip_prefix(root).expect("below").to_owned(), Content { bytes, len });
        }
    }
}

fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = tempfile::tempdir().expect("a directory");
        let runtime = runtime();
        let Started::Serving(server) = Server::start(&runtime, root.path()) else { panic!("a new member starts") };
        let channel = server.channel(&runtime);
        let mut states = vec![BTreeMap::new(), BTreeMap::new()];
        for n in 0..WRITES {
            let mut state = states.last().expect("the first").clone();
            let key = Bytes::from(format!("k{:02}", n % 23));
            let (method, request) = if n % 5 == 4 && state.remove(&key).is_some() {
                ("/etcdserverpb.KV/DeleteRange", pb::DeleteRangeRequest { key, ..Default::default() }.encode_to_vec())
            } else {
                let value = Bytes::from(vec![b'a' + n as u8 % 26; 40 * (n % 7)]);
                state.insert(key.clone(), value.clone());
                ("/etcdserverpb.KV/Put", pb::PutRequest { key, value, ..Default::default() }.encode_to_vec())
            };
            runtime.block_on(ask(channel.clone(), method, request.into())).expect("a write");
            states.push(state);
        }
        // Killed, not stopped.
        drop(server);
        let mut files = BTreeMap::new();
        load(&root.path().join("data"), &root.path().join("data"), &mut files);
        assert!(files.keys().any(|path| path.ends_with("state.redb")), "{:?}", files.keys());
        Image { files, states }
    })
}

fn store(files: &BTreeMap<PathBuf, Content>, root: &Path) {
    for (path, content) in files {
        let path = root.join("data").join(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("a directory");
        std::fs::write(&path, &content.bytes).expect("a file");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("a file");
        file.set_len(content.len).expect("a file");
    }
}

/// Changes files; whether the log is among them.
fn tamper(feed: &mut Feed<'_>, files: &mut BTreeMap<PathBuf, Content>) -> bool {
    let mut log = false;
    for _ in 0..1 + feed.below(2) {
        let paths: Vec<PathBuf> =
            files.iter().filter(|(_, content)| content.len > 0).map(|(path, _)| path.clone()).collect();
        if feed.is_empty() || paths.is_empty() {
            break;
        }
        let path = &paths[feed.below(paths.len())];
        let other = files[&paths[feed.below(paths.len())]].clone();
        log |= path.to_string_lossy().contains("wal");
        let content = files.get_mut(path).expect("listed");
        let at = (feed.u64() >> 1) as usize % content.bytes.len().max(1);
        let size = feed.pick(&[1usize, 8, 512, 4096]).min(content.bytes.len() - at.min(content.bytes.len()));
        match feed.below(8) {
            _ if content.bytes.is_empty() => {}
            0..=2 => content.bytes[at] ^= 1 << feed.below(8),
            3 => content.bytes[at..at + size].fill(feed.byte()),
            4 => {
                content.bytes.truncate(at);
                content.len = at as u64;
            }
            5 => content.bytes.copy_within(..size, at),
            6 => drop(files.remove(path)),
            _ => drop(files.insert(path.clone(), other)),
        }
    }
    log
}

async fn read(channel: Channel) -> Result<(i64, BTreeMap<Bytes, Bytes>), tonic::Status> {
    let request =
        pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), serializable: true, ..Default::default() };
    let answer = ask(channel, "/etcdserverpb.KV/Range", request.encode_to_vec().into()).await?;
    let answer = pb::RangeResponse::decode(answer).map_err(|error| tonic::Status::internal(error.to_string()))?;
    let revision = answer.header.map_or(0, |header| header.revision);
    Ok((revision, answer.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()))
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let image = image();
    let mut feed = Feed::new(input);
    let mut files = image.files.clone();
    let log = tamper(&mut feed, &mut files);
    let founded_anew = files.is_empty() || files.keys().all(|path| path.ends_with("LOCK"));
    let root = tempfile::tempdir().expect("a directory");
    store(&files, root.path());
    let runtime = runtime();
    let mut server = match Server::start(&runtime, root.path()) {
        Started::Refused(said) => {
            assert!(!input.is_empty(), "nobody has been at it: {said}");
            let error = said.find("\"error\"").map_or("", |at| &said[at..]);
            return outcome(gist(error));
        }
        Started::Serving(server) => server,
    };
    let (revision, keys) = match runtime.block_on(read(server.channel(&runtime))) {
        Ok(read) => read,
        Err(status) => {
            // It may find out later than at its start, and then it stops.
            assert!(!input.is_empty(), "nobody has been at it: {status}");
            return outcome(gist(status.message()));
        }
    };
    server.assert_sound();
    let known = usize::try_from(revision).ok().and_then(|at| image.states.get(at));
    assert_eq!(Some(&keys), known, "the keys at revision {revision}");
    let whole = revision as usize == image.states.len() - 1;
    assert!(whole || log || founded_anew, "only the log's end may be lost, and nobody has been at the log: {revision}");
    outcome((whole, log))
}
