//! The generated protobuf code, one module per package. No logic.

#![allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]

/// Keys and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}
/// The public API.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
/// What etcd's raft log says about members.
pub mod membershippb {
    tonic::include_proto!("membershippb");
}
/// The lock recipe.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
/// The election recipe.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}
/// What members say to each other and what stands in the raft log.
pub mod everwatchpb {
    tonic::include_proto!("everwatchpb");
}

/// All of it described as data: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
