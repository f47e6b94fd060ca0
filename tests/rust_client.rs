//! Every call of the Rust client that is not ours, the crate `etcd-client`, against three members that are processes.
//!
//! What it answers is asserted, not only that it does. `RUST_CLIENT_SERVER=<path of etcd>` runs the same against another server, with
//! the same flags: what is asserted here holds for etcd, too, but for what its version does not have ([`Members::speaks`]).
//!
//! [`CALLS`] says what the client has. A test holds it against the text of the cases, so that none is forgotten that is in the table;
//! that the table is the whole client's is for who reads it beside the crate's documentation. Left out are calls that need features of the
//! crate which are not compiled in (`with_tls`, `with_openssl_tls`, `from_channel`) and those that are unsafe.

mod processes;
mod rust_client {
    pub(crate) mod keys;
    pub(crate) mod leases;
    pub(crate) mod members;
    pub(crate) mod recipes;
    pub(crate) mod users;
    pub(crate) mod watches;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use etcd_client::{Client, Error, KeyValue};
use processes::{Cluster, PATIENCE, Process, READY};
use rust_client::{keys, leases, members, recipes, users, watches};
use tonic::Status;

/// Types of the client; what variables of that type are called in the cases, unless its calls have names of their own; its calls.
const CALLS: &[(&str, &str, &str)] = &[
    (
        "Client",
        "client",
        "connect connect_with_balanced_channel add_endpoint remove_endpoint kv_client watch_client lease_client auth_client \
         maintenance_client cluster_client lock_client election_client put get delete compact txn watch lease_grant lease_revoke \
         lease_keep_alive lease_time_to_live leases lock unlock auth_enable auth_disable role_add role_delete role_get role_list \
         role_grant_permission role_revoke_permission user_add user_get user_list user_delete user_change_password user_grant_role \
         user_revoke_role alarm status defragment hash hash_kv snapshot member_add member_remove member_update member_promote \
         member_list move_leader campaign proclaim leader observe resign refresh_token update_user",
    ),
    (
        "ConnectOptions",
        "",
        "new with_user with_keep_alive with_timeout with_connect_timeout with_tcp_keepalive with_keep_alive_while_idle \
         with_require_leader with_auto_token_refresh",
    ),
    ("KvClient", "", "max_decoding_message_size max_encoding_message_size"),
    ("KvClient", "kv", "put get get_stream delete compact txn"),
    ("GetStreamResponse", "pieces", "message"),
    ("PutOptions", "", "new with_lease with_prev_key with_ignore_value with_ignore_lease"),
    ("PutResponse", "", "header take_header prev_key take_prev_key"),
    (
        "GetOptions",
        "",
        "new with_range with_from_key with_prefix with_all_keys with_limit with_revision with_sort with_serializable with_keys_only \
         with_count_only with_min_mod_revision with_max_mod_revision with_min_create_revision with_max_create_revision",
    ),
    ("GetResponse", "", "kvs take_kvs more count"),
    ("DeleteOptions", "", "new with_range with_from_key with_prefix with_all_keys with_prev_key"),
    ("DeleteResponse", "", "deleted prev_kvs take_prev_kvs"),
    ("CompactionOptions", "", "new with_physical"),
    ("Compare", "Compare::", "version create_revision mod_revision value lease"),
    ("Compare", "", "with_range with_prefix"),
    ("TxnOp", "TxnOp::", "put get delete txn"),
    ("Txn", "", "new when and_then or_else"),
    ("TxnResponse", "", "succeeded op_responses"),
    ("ResponseHeader", "", "cluster_id member_id revision raft_term"),
    ("KeyValue", "", "key key_str value value_str into_key_value create_revision mod_revision version lease"),
    ("KvClientPrefix", "inside", "put get delete txn"),
    ("KvClientPrefix", "KvClientPrefix::", "new"),
    ("LeaseClientPrefix", "leases_inside", "time_to_live"),
    ("LeaseClientPrefix", "LeaseClientPrefix::", "new"),
    ("WatchClient", "watcher", "watch"),
    ("WatchClient", "watch_client()", "max_decoding_message_size"),
    (
        "WatchOptions",
        "",
        "new with_key with_range with_from_key with_prefix with_all_keys with_start_revision with_progress_notify with_filters \
         with_prev_key with_watch_id with_fragment",
    ),
    ("WatchResponse", "", "watch_id created canceled compact_revision cancel_reason events"),
    ("Event", "", "event_type kv prev_kv"),
    ("WatchStream", "stream", "watch cancel request_progress message split"),
    ("WatchRequestSender", "sender", "watch cancel request_progress"),
    ("WatchResponseStream", "receiver", "message"),
    ("LeaseClient", "lease", "grant revoke keep_alive time_to_live leases"),
    ("LeaseGrantOptions", "LeaseGrantOptions::", "new"),
    ("LeaseGrantOptions", "", "with_id"),
    ("LeaseGrantResponse", "granted", "ttl id error"),
    ("LeaseTimeToLiveOptions", "", "new with_keys"),
    ("LeaseTimeToLiveResponse", "left", "ttl id granted_ttl keys"),
    ("LeaseLeasesResponse", "", "leases"),
    ("LeaseStatus", "", "id"),
    ("LeaseKeeper", "keeper", "id keep_alive"),
    ("LeaseKeepAliveStream", "kept", "message"),
    ("LeaseKeepAliveResponse", "renewed", "ttl id"),
    ("LockClient", "locks", "lock unlock"),
    ("LockOptions", "LockOptions::", "new"),
    ("LockOptions", "", "with_lease"),
    ("LockResponse", "", "key"),
    ("ElectionClient", "election", "campaign proclaim leader observe resign"),
    ("CampaignResponse", "", "leader take_leader"),
    ("ProclaimOptions", "ProclaimOptions::", "new"),
    ("ResignOptions", "ResignOptions::", "new"),
    ("ProclaimOptions, ResignOptions", "", "with_leader"),
    ("LeaderResponse", "", "kv take_kv"),
    ("ObserveStream", "observed", "message"),
    ("LeaderKey", "LeaderKey::", "new"),
    ("LeaderKey", "", "with_name with_key with_rev with_lease"),
    ("LeaderKey", "key", "name name_str key key_str rev lease"),
    (
        "AuthClient",
        "auth",
        "auth_enable auth_disable authenticate role_add role_delete role_get role_list role_grant_permission role_revoke_permission \
         user_add user_get user_list user_delete user_change_password user_grant_role user_revoke_role",
    ),
    ("AuthenticateResponse", "", "token"),
    ("Permission", "Permission::", "new read write read_write"),
    ("Permission", "", "with_range_end with_from_key with_prefix with_all_keys"),
    ("Permission", "permission", "key range_end key_str range_end_str get_type is_from_key is_prefix"),
    ("RoleRevokePermissionOptions", "Revoke::", "new"),
    ("RoleRevokePermissionOptions", "Revoke::new()", "with_range_end with_prefix with_from_key with_all_keys"),
    ("RoleGetResponse, RoleListResponse", "", "permissions roles"),
    ("UserAddOptions", "UserAddOptions::", "new"),
    ("UserAddOptions", "", "with_no_pwd"),
    ("UserGetResponse, UserListResponse", "", "roles users"),
    ("ClusterClient", "cluster", "member_add member_remove member_update member_list member_promote"),
    ("MemberAddOptions", "MemberAddOptions::", "new"),
    ("MemberAddOptions", "", "with_is_learner"),
    ("MemberAddResponse", "added", "member member_list"),
    ("MemberRemoveResponse, MemberUpdateResponse, MemberListResponse, MemberPromoteResponse", "", "members"),
    ("Member", "member", "id name peer_urls client_urls is_learner"),
    ("MaintenanceClient", "maintenance", "alarm status defragment hash hash_kv snapshot move_leader downgrade"),
    ("AlarmOptions", "AlarmOptions::", "new"),
    ("AlarmOptions", "", "with_member"),
    ("AlarmResponse", "", "alarms"),
    ("AlarmMember", "raised", "member_id alarm"),
    (
        "StatusResponse",
        "status",
        "version db_size leader raft_index raft_term raft_applied_index errors raft_used_db_size is_learner storage_version \
         db_size_quota downgrade_info",
    ),
    ("DowngradeInfo", "", "enabled target_version"),
    ("DowngradeResponse", "", "version"),
    ("HashResponse", "", "hash"),
    ("HashKvResponse", "hashed", "hash compact_version hash_revision"),
    ("SnapshotStreaming", "backup", "message"),
    ("SnapshotResponse", "piece", "remaining_bytes blob version"),
];

/// Where the calls are made.
const CASES: [&str; 6] = [
    include_str!("rust_client/keys.rs"),
    include_str!("rust_client/leases.rs"),
    include_str!("rust_client/members.rs"),
    include_str!("rust_client/recipes.rs"),
    include_str!("rust_client/users.rs"),
    include_str!("rust_client/watches.rs"),
];

/// Three that serve, and a place for a fourth.
pub(crate) struct Members {
    places: Cluster,
    processes: Vec<Process>,
}

impl Members {
    fn founded() -> Members {
        let mut places = Cluster::new(4);
        // Whether a change of members is wise is not asked, and passwords are cheap: either takes seconds.
        places.flags = &["--strict-reconfig-check=false", "--bcrypt-cost=4"];
        if let Some(program) = std::env::var_os("RUST_CLIENT_SERVER") {
            places.program = program.into();
        }
        let processes: Vec<_> = (0..3).map(|n| places.start(n)).collect();
        processes.iter().for_each(|process| drop(process.says(READY)));
        Members { places, processes }
    }

    pub(crate) fn url(&self, n: usize) -> String {
        format!("http://{}", self.processes[n].client)
    }

    /// A client of the first.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.url(0)], None).await.expect("it listens")
    }

    /// Whether the members speak a version of etcd's API.
    pub(crate) async fn speaks(&self, major: u32, minor: u32) -> bool {
        let status = self.client().await.status().await.expect("it says how it is");
        let mut numbers = status.version().split('.').map(|number| number.parse::<u32>().expect("a version"));
        (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
    }
}

/// Why a call was refused.
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Status {
    match outcome {
        Err(Error::GRpcStatus(status)) => status,
        other => panic!("not refused: {other:?}"),
    }
}

/// Keys as text.
pub(crate) fn names(found: &[KeyValue]) -> Vec<&str> {
    found.iter().map(|kv| kv.key_str().expect("text")).collect()
}

type Case = for<'a> fn(&'a Members) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Functions, with their names.
macro_rules! cases {
    ($($module:ident: $($case:ident),+;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($case)), |members| Box::pin($module::$case(members)))),+),+]
    };
}

/// In this order: what changes the cluster comes last.
const ALL: &[(&str, Case)] = cases! {
    keys: clients_connect_in_many_ways, keys_are_put_and_read, ranges_are_read_in_every_way, keys_are_deleted, txns_choose_and_nest,
        history_is_compacted, a_range_comes_in_pieces, a_namespace_is_all_there_is;
    watches: events_come_in_order, streams_have_many_watchers, what_is_filtered_does_not_come, history_is_told_and_what_is_gone_is_said,
        large_revisions_come_in_fragments;
    leases: leases_are_granted_and_kept, leases_end_with_their_keys;
    recipes: locks_are_held_by_one, leaders_are_elected, leaders_are_elected_by_the_client_within;
    users: roles_and_users_are_kept, everybody_is_asked_who_he_is, tokens_are_renewed;
    members: members_say_how_they_are, alarms_are_raised_and_taken_back, backups_come_in_pieces, versions_go_not_down,
        another_leads, members_come_and_go;
};

#[test]
fn every_call_of_the_client_is_made_in_a_case() {
    let mut text: String = CASES.concat();
    text.retain(|c| !c.is_whitespace());
    let missing: Vec<_> = CALLS
        .iter()
        .flat_map(|(kind, by, names)| names.split_whitespace().map(move |name| (kind, by, name)))
        .filter(|(kind, by, name)| {
            let calls = match by.strip_suffix("::") {
                Some(_) => vec![format!("{by}{name}(")],
                None if *name == "new" || by.is_empty() => vec![format!(".{name}("), format!("{kind}::{name}(")],
                None => vec![format!("{by}.{name}("), format!("{kind}::{name}(")],
            };
            !calls.iter().any(|call| text.contains(call))
        })
        .map(|(kind, _, name)| format!("{kind}::{name}"))
        .collect();
    assert!(missing.is_empty(), "never called: {missing:?}");
}

#[test]
fn the_client_hears_what_it_was_made_for() {
    let members = Members::founded();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let failed: Vec<_> = ALL
        .iter()
        .filter(|(name, case)| {
            let limited = async {
                tokio::time::timeout(PATIENCE, case(&members)).await.unwrap_or_else(|_| panic!("{name} does not end"));
            };
            catch_unwind(AssertUnwindSafe(|| runtime.block_on(limited))).is_err()
        })
        .map(|(name, _)| *name)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
