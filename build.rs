//! Compiles `proto/` into the modules that `src/pb.rs` includes. Every `bytes` field becomes `bytes::Bytes`, so that a
//! key or a value is a slice of the buffer it arrived in. The same definitions are kept as data, for who translates messages
//! without knowing them.

use std::error::Error;
use std::path::PathBuf;

const PROTOS: [&str; 8] = [
    "kv.proto",
    "auth.proto",
    "rpc.proto",
    "lock.proto",
    "election.proto",
    "membership.proto",
    "raft_internal.proto",
    "internal.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_files(PROTOS)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // With the comments, which become those of the generated code.
    let descriptors = compiler.include_source_info(true).include_imports(true).file_descriptor_set();
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
