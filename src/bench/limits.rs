//! What bounds any server on this machine: a server that does nothing, and a disk that is asked for nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::options::Options;
use super::report::{Latencies, Report, mebibytes};
use crate::pb::etcdserverpb as pb;
use crate::pb::etcdserverpb::kv_server::{Kv, KvServer};
use crate::pb::mvccpb::KeyValue;

/// Bytes of a log's segment: what a server writes to, too, has its size before it is written.
const FILE_BYTES: u64 = 64 << 20;

/// Keys of a page from a server that does nothing, at most.
const PAGE_MAX: usize = 10_000;

/// Answers puts and ranges with messages of the size that they have, at once, through tonic as it comes, on this thread: until
/// the process is stopped.
pub(super) async fn echo(options: &Options) -> Result<(), String> {
    let listen = options.listen.as_deref().ok_or("--listen is needed")?;
    let address = listen.parse().map_err(|_| format!("--listen wants an address and a port, not {listen:?}"))?;
    let value = Bytes::from(vec![b'v'; options.value_bytes]);
    let server = tonic::transport::Server::builder().add_service(KvServer::new(Echo { value }));
    server.serve(address).await.map_err(|error| format!("{listen}: {error}"))
}

struct Echo {
    value: Bytes,
}

impl Echo {
    fn header(&self) -> Option<pb::ResponseHeader> {
        // As long as real ones are.
        Some(pb::ResponseHeader { cluster_id: u64::MAX, member_id: u64::MAX, revision: 1_000_000, raft_term: 2 })
    }
}

#[tonic::async_trait]
impl Kv for Echo {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let request = request.into_inner();
        let kv = KeyValue {
            key: request.key,
            create_revision: 1_000_000,
            mod_revision: 1_000_000,
            version: 1,
            value: self.value.clone(),
            lease: 0,
        };
        // A page is as many as were asked for. They share their bytes, so that it costs what tonic does with them.
        let page = usize::try_from(request.limit).unwrap_or(0).clamp(1, PAGE_MAX);
        let response =
            pb::RangeResponse { header: self.header(), kvs: vec![kv; page], more: page > 1, count: page as i64 };
        Ok(Response::new(response))
    }

    type RangeStreamStream = tokio_stream::Empty<Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(&self, _: Request<pb::RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("it does nothing"))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Ok(Response::new(pb::PutResponse { header: self.header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("it does nothing"))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        Err(Status::unimplemented("it does nothing"))
    }

    async fn compact(&self, _: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        Err(Status::unimplemented("it does nothing"))
    }
}

/// Writes and syncs, from so many threads with a file each, until the time is over.
pub(super) async fn sync(options: &Options, report: &mut Report) -> Result<(), String> {
    let dir = options.dir.as_deref().ok_or("--dir is needed")?;
    let began = Instant::now();
    let threads: Vec<_> = (0..options.clients)
        .map(|number| {
            let (options, path) = (options.clone(), dir.join(format!("everwatch-bench-sync-{number}")));
            std::thread::spawn(move || {
                let outcome = write_and_sync(&path, &options);
                let _ = std::fs::remove_file(&path);
                outcome.map_err(|error| format!("{}: {error}", path.display()))
            })
        })
        .collect();
    let mut all = Latencies::default();
    for thread in threads {
        all.append(&thread.join().map_err(|_| "a thread panicked")??);
    }
    let elapsed = began.elapsed().as_secs_f64();
    report.latencies("sync", &all);
    report.add("sync_per_s", all.len() as f64 / elapsed);
    report.add("sync_mib_per_s", mebibytes(all.len() * options.value_bytes as u64) / elapsed);
    Ok(())
}

fn write_and_sync(path: &Path, options: &Options) -> std::io::Result<Latencies> {
    let file: File = OpenOptions::new().create(true).truncate(true).write(true).open(path)?;
    let block = vec![0x5a; options.value_bytes.max(1)];
    // Written once before, so that what is measured changes bytes, not the file system's own records.
    let zeros = vec![0; 1 << 20];
    (0..FILE_BYTES / zeros.len() as u64).try_for_each(|n| file.write_all_at(&zeros, n * zeros.len() as u64))?;
    file.sync_all()?;
    let (mut latencies, began, mut at) = (Latencies::default(), Instant::now(), 0);
    while began.elapsed() < options.duration {
        if at + block.len() as u64 > FILE_BYTES {
            at = 0;
        }
        let asked = Instant::now();
        file.write_all_at(&block, at)?;
        file.sync_data()?;
        latencies.add(asked.elapsed());
        at += block.len() as u64;
    }
    Ok(latencies)
}
