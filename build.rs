//! Compiles `proto/` into the modules that `src/pb.rs` includes. Every `bytes` field becomes `bytes::Bytes`, so that a
//! key or a value is a slice of the buffer it arrived in.

use std::error::Error;

const PROTOS: [&str; 6] = ["kv.proto", "auth.proto", "rpc.proto", "lock.proto", "election.proto", "internal.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
