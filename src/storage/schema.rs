//! Every row of the backend, in one table.
//!
//! | bucket          | key                                    | value                                            |
//! |-----------------|----------------------------------------|--------------------------------------------------|
//! | Key             | main (8, big endian) sub (4, big endian), `t` after it for a tombstone | encoded `mvccpb.KeyValue`; of a tombstone only the key |
//! | Lease           | id (8, big endian)                     | `LeaseRecord`                                     |
//! | Members         | id (8, big endian)                     | `MemberRecord`                                    |
//! | MembersRemoved  | id (8, big endian)                     | nothing                                           |
//! | Alarm           | kind (1) member (8, big endian)        | nothing                                           |
//! | Meta            | a name below                           | see there                                         |
//! | Users           | name                                   | `authpb.User`; its password is a bcrypt hash       |
//! | Roles           | name                                   | `authpb.Role`                                      |

use bytes::Bytes;

/// Meta: index of the last entry whose effects are in the backend (8, big endian).
pub const APPLIED_INDEX: &[u8] = b"applied_index";
/// Meta: term of that entry (8, big endian).
pub const APPLIED_TERM: &[u8] = b"applied_term";
/// Meta: raft's configuration at that entry, a `ConfState`.
pub const CONF_STATE: &[u8] = b"conf_state";
/// Meta: the store's revision (8, big endian). Explicit, for the newest rows may all have been compacted away.
pub const REVISION: &[u8] = b"revision";
/// Meta: the revision up to which history is logically gone (8, big endian); absent before the first compaction.
pub const COMPACTED: &[u8] = b"compacted";
/// Meta: the compaction whose rows have all been removed (8, big endian). Behind COMPACTED: work is left to do.
pub const COMPACTION_DONE: &[u8] = b"compaction_done";
/// Meta: the cluster version, text.
pub const CLUSTER_VERSION: &[u8] = b"cluster_version";
/// Meta: whether users and roles count (nothing); absent while they do not.
pub const AUTH_ENABLED: &[u8] = b"auth_enabled";
/// Meta: the auth revision (8, big endian); absent while it is the first one.
pub const AUTH_REVISION: &[u8] = b"auth_revision";
/// Meta: cluster id and this member's id (8 and 8, big endian): a directory serves one member of one cluster. Not part of snapshots.
pub const IDENTITY: &[u8] = b"identity";

/// An integer as a row key or value.
pub fn u64_row(n: u64) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// The integer of such a row; `None` when it is not eight bytes.
pub fn read_u64(row: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(row.try_into().ok()?))
}
