//! A server process with a data directory, and raw gRPC calls to it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// How long a server may take to start, to refuse to, or to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running member, alone in its cluster. Ends when dropped.
pub(crate) struct Server {
    child: Child,
    address: String,
    log: std::path::PathBuf,
}

/// What became of a start.
pub(crate) enum Started {
    Serving(Server),
    /// It ended by itself; what it said.
    Refused(String),
}

fn free_address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id() * 211 + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", 30_000 + offset % 2_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

impl Server {
    /// Starts a member in `root`/data. Returns when it answers or has ended.
    pub(crate) fn start(runtime: &tokio::runtime::Runtime, root: &Path) -> Started {
        Server::start_with(runtime, root, false)
    }

    /// The same, or one whose clients come with TLS.
    pub(crate) fn start_with(runtime: &tokio::runtime::Runtime, root: &Path, tls: bool) -> Started {
        let (address, log) = (free_address(), root.join("stderr"));
        let (url, peer) =
            (format!("{}://{address}", if tls { "https" } else { "http" }), format!("http://{}", free_address()));
        let child = Command::new(env!("CARGO_BIN_EXE_everwatch"))
            .args(["--name", "m0", "--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m0={peer}"), "--heartbeat-interval", "10", "--bcrypt-cost", "4"])
            .args(["--election-timeout", "100", "--data-dir"])
            .arg(root.join("data"))
            .arg(format!("--auto-tls={tls}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a file"))
            .spawn()
            .expect("the binary starts");
        let mut server = Server { child, address, log };
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = server.child.try_wait().expect("the process is ours") {
                let said = server.said();
                assert!(status.code().is_some(), "it was killed: {said}");
                assert!(!said.contains("panicked at"), "{said}");
                return Started::Refused(said);
            }
            if runtime.block_on(async { server.endpoint().connect().await }).is_ok() {
                return Started::Serving(server);
            }
            assert!(Instant::now() < until, "it neither serves nor ends: {}", server.said());
            std::thread::yield_now();
        }
    }

    /// Without TLS: that one of TLS listens is seen, too.
    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.address)).expect("our own address").timeout(PATIENCE)
    }

    /// Where clients find it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A connection; it is made with the first call.
    pub(crate) fn channel(&self, runtime: &tokio::runtime::Runtime) -> Channel {
        let _inside = runtime.enter();
        self.endpoint().connect_lazy()
    }

    /// What it has written to its log.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Fails when it has ended or a thread of it panicked.
    pub(crate) fn assert_sound(&mut self) {
        let ended = self.child.try_wait().expect("the process is ours");
        assert!(ended.is_none(), "the server ended: {}", self.said());
        let said = self.said();
        let panic = said.find("panicked at").map(|at| &said[at..]);
        assert!(panic.is_none(), "in the server: {}", panic.unwrap_or_default());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A codec that leaves bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

/// Messages of any kind to a method of that name; its answers. The end of the requests follows the last one.
pub(crate) async fn call(
    channel: Channel,
    method: &'static str,
    messages: Vec<Bytes>,
) -> Result<Streaming<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(method);
    let response = client.streaming(Request::new(tokio_stream::iter(messages)), path, Raw).await?;
    Ok(response.into_inner())
}

/// A call with one answer.
pub(crate) async fn ask(channel: Channel, method: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let mut answers = call(channel, method, vec![message]).await?;
    let first = answers.message().await?.ok_or_else(|| Status::internal("no answer"))?;
    // The trailers say whether it went well.
    while answers.message().await?.is_some() {}
    Ok(first)
}
