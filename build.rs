//! Compiles `proto/` into the modules that `src/pb.rs` includes. Every `bytes` field becomes `bytes::Bytes`, so that a
//! key or a value is a slice of the buffer it arrived in.
//!
//! A range is answered from key-values as they are stored, encoded: they are not decoded only to be encoded again. For that there
//! is a second KV server, which answers with a message that is the same on the wire, and whose key-values are bytes.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

const PROTOS: [&str; 6] = ["kv.proto", "auth.proto", "rpc.proto", "lock.proto", "election.proto", "internal.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors.clone())?;

    // The services of that file once more, of which the KV server is used. All messages are there.
    let rpc = descriptors.file.iter_mut().find(|file| file.name() == "rpc.proto").ok_or("rpc.proto is not there")?;
    let range = rpc.service.iter_mut().flat_map(|service| &mut service.method).find(|method| method.name() == "Range");
    range.ok_or("Range is not there")?.output_type = Some(".everwatchpb.EncodedRangeResponse".to_owned());
    rpc.service.retain(|service| service.name() == "KV");
    let serving = PathBuf::from(std::env::var("OUT_DIR")?).join("serving");
    fs::create_dir_all(&serving)?;
    let mut services = tonic_prost_build::configure().build_client(false).out_dir(serving);
    for package in descriptors.file.iter().map(|file| file.package().to_owned()).collect::<BTreeSet<_>>() {
        services = services.extern_path(format!(".{package}"), format!("crate::pb::{package}"));
    }
    services.compile_fds(descriptors)?;
    Ok(())
}
