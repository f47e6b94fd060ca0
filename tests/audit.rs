//! The audit log of a real process: a line for each change that was carried out or refused because of who asked, whatever way it came.

mod processes;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use everwatch::pb::authpb::Permission;
use everwatch::pb::etcdserverpb::alarm_request::AlarmAction;
use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::cluster_client::ClusterClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::lease_client::LeaseClient;
use everwatch::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use everwatch::pb::etcdserverpb::{
    AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, MemberAddRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, SnapshotRequest, TxnRequest, request_op,
};
use everwatch::pb::v3lockpb::LockRequest;
use everwatch::pb::v3lockpb::lock_client::LockClient;
use processes::{Cluster, PATIENCE, Process, READY};
use serde_json::Value;
use tonic::Request;

const SECRET: &str = "hunter2-in-the-clear";

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().expect("visible text"));
    request
}

fn put(key: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: SECRET.into(), ..Default::default() }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Posts JSON; the port it came from, and the answer.
fn post(member: &Process, path: &str, headers: &str, json: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(&member.client).expect("it listens");
    connection.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let length = json.len();
    write!(connection, "POST {path} HTTP/1.0\r\nHost: m\r\n{headers}Content-Length: {length}\r\n\r\n{json}")
        .expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("answered");
    (connection.local_addr().expect("it is connected").port(), answer)
}

/// A line without what is different every time, `method code user what`.
fn gist(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
    let mut what: Vec<String> = Vec::new();
    for (name, value) in line.as_object().expect("an object") {
        if !["ts", "user", "remote", "method", "code", "error", "revision"].contains(&name.as_str()) {
            what.push(format!("{name}={}", value.to_string().replace('"', "")));
        }
    }
    let method = text("method");
    format!("{} {} {} {}", method.rsplit('/').next().unwrap_or_default(), text("code"), text("user"), what.join(" "))
}

#[test]
fn every_change_is_noted_and_nothing_that_is_secret() {
    let mut cluster = Cluster::new(1);
    let path = cluster.dir(0).with_extension("audit");
    cluster.more = vec!["--audit-log-output".to_owned(), path.display().to_string(), "--bcrypt-cost=4".to_owned()];
    let member = cluster.start_with(0, &cluster.list(1), "new");
    member.says(READY);

    let (port, answer) =
        post(&member, "/v3/kv/put", "", r#"{"key":"anNvbg==","value":"aHVudGVyMi1pbi10aGUtY2xlYXI="}"#);
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    member.ask(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("a")).await.unwrap();
        kv.range(RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
        let delete = DeleteRangeRequest { key: "b".into(), range_end: "c".into(), ..Default::default() };
        let nested = TxnRequest {
            success: vec![op(request_op::Request::RequestPut(put("nested")))],
            failure: vec![op(request_op::Request::RequestPut(put("not carried out")))],
            ..Default::default()
        };
        let txn = TxnRequest {
            success: vec![
                op(request_op::Request::RequestDeleteRange(delete.clone())),
                op(request_op::Request::RequestTxn(nested)),
            ],
            failure: vec![op(request_op::Request::RequestPut(put("nor this")))],
            ..Default::default()
        };
        kv.txn(txn).await.unwrap();
        kv.delete_range(DeleteRangeRequest { key: "x".into(), range_end: "y".into(), ..Default::default() })
            .await
            .unwrap();
        kv.compact(CompactionRequest { revision: 2, physical: false }).await.unwrap();
        // What is refused for another reason than who asks changes nothing.
        kv.compact(CompactionRequest { revision: 1, physical: false }).await.unwrap_err();
        let mut lease = LeaseClient::new(channel.clone());
        lease.lease_grant(LeaseGrantRequest { id: 255, ttl: 60 }).await.unwrap();
        let lock = LockRequest { name: "lock".into(), lease: 255 };
        LockClient::new(channel.clone()).lock(lock).await.unwrap();
        lease.lease_revoke(LeaseRevokeRequest { id: 255 }).await.unwrap();
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let look = AlarmRequest { action: AlarmAction::Get as i32, ..Default::default() };
        maintenance.alarm(look).await.unwrap();
        let disarm = AlarmRequest { action: AlarmAction::Deactivate as i32, member_id: 16, alarm: 1 };
        maintenance.alarm(disarm).await.unwrap();
        maintenance.defragment(DefragmentRequest {}).await.unwrap();

        let mut auth = AuthClient::new(channel.clone());
        for name in ["root", "alice"] {
            let (name, password) = (name.into(), "none".into());
            auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await.unwrap();
        }
        let change =
            AuthUserChangePasswordRequest { name: "alice".into(), password: SECRET.into(), ..Default::default() };
        auth.user_change_password(change).await.unwrap();
        auth.role_add(AuthRoleAddRequest { name: "app".into() }).await.unwrap();
        let perm = Some(Permission { perm_type: 2, key: "app/".into(), range_end: "app0".into() });
        auth.role_grant_permission(AuthRoleGrantPermissionRequest { name: "app".into(), perm }).await.unwrap();
        for (user, role) in [("root", "root"), ("alice", "app")] {
            let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
            auth.user_grant_role(grant).await.unwrap();
        }
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();

        let mut login = async |name: &str, password: &str| {
            let request = AuthenticateRequest { name: name.into(), password: password.into() };
            auth.authenticate(request).await.map(|answer| answer.into_inner().token)
        };
        login("alice", "wrong").await.unwrap_err();
        let alice = login("alice", SECRET).await.unwrap();
        let root = login("root", "none").await.unwrap();
        kv.put(by(&alice, put("app/1"))).await.unwrap();
        kv.put(by(&alice, put("other"))).await.unwrap_err();
        kv.put(put("by nobody")).await.unwrap_err();
        kv.put(by("no.1", put("by a stranger"))).await.unwrap_err();
        // Reads are not noted, whatever becomes of them.
        let range = RangeRequest { key: "other".into(), ..Default::default() };
        kv.range(by(&alice, range.clone())).await.unwrap_err();
        kv.range(by("no.1", range)).await.unwrap_err();
        let new = AuthUserAddRequest { name: "bob".into(), password: SECRET.into(), ..Default::default() };
        auth.user_add(by(&alice, new)).await.unwrap_err();
        let join = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: true };
        let mut members = ClusterClient::new(channel.clone());
        members.member_add(by(&alice, join.clone())).await.unwrap_err();
        members.member_add(by(&root, join)).await.unwrap();
        maintenance.snapshot(by(&root, SnapshotRequest {})).await.unwrap();
        maintenance.move_leader(by(&alice, MoveLeaderRequest { target_id: 1 })).await.unwrap_err();
        auth.auth_disable(by(&root, AuthDisableRequest {})).await.unwrap();
        // Where users do not count, nobody asks whose token that is.
        maintenance.defragment(by("no.1", DefragmentRequest {})).await.unwrap();
    });
    let metrics = member.get("/metrics");
    member.signal("-TERM");
    assert_eq!(member.ends().0, Some(0));

    let text = std::fs::read_to_string(&path).expect("it was written");
    for secret in [SECRET, "hunter2", "wrong", "none"] {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let gists: Vec<String> = lines.iter().map(gist).collect();
    let id =
        gists.iter().find_map(|line| line.strip_prefix("MemberAdd OK root learner=true member=")?.split(' ').next());
    let added = format!("MemberAdd OK root learner=true member={} peer_urls=http://127.0.0.1:1", id.unwrap_or("?"));
    let expected = [
        "Put OK - writes=[{key:json,op:put}]",
        "Put OK - writes=[{key:a,op:put}]",
        "Txn OK - writes=[{key:b,op:delete,range_end:c},{key:nested,op:put}]",
        "DeleteRange OK - writes=[{key:x,op:delete,range_end:y}]",
        "Compact OK - compact_revision=2",
        "LeaseGrant OK - lease=00000000000000ff ttl=60",
        "Lock OK - writes=[{key:lock/ff,lease:00000000000000ff,op:put}]",
        "LeaseRevoke OK - lease=00000000000000ff",
        "Alarm OK - action=DEACTIVATE alarm=NOSPACE member=10",
        "Defragment OK - ",
        "UserAdd OK - name=root",
        "UserAdd OK - name=alice",
        "UserChangePassword OK - name=alice",
        "RoleAdd OK - role=app",
        "RoleGrantPermission OK - key=app/ permission=READWRITE range_end=app0 role=app",
        "UserGrantRole OK - name=root role=root",
        "UserGrantRole OK - name=alice role=app",
        "AuthEnable OK - ",
        "Authenticate InvalidArgument - name=alice",
        "Authenticate OK alice name=alice",
        "Authenticate OK root name=root",
        "Put OK alice writes=[{key:app/1,op:put}]",
        "Put PermissionDenied alice writes=[{key:other,op:put}]",
        "Put InvalidArgument - writes=[{key:by nobody,op:put}]",
        "Put Unauthenticated - ",
        "UserAdd PermissionDenied alice name=bob",
        "MemberAdd PermissionDenied alice ",
        &added,
        "Snapshot OK root ",
        "MoveLeader PermissionDenied alice ",
        "AuthDisable OK root ",
        "Defragment OK - ",
    ];
    assert_eq!(gists, expected);
    // The client of JSON, too, is known by its address.
    assert_eq!(lines[0]["remote"], format!("127.0.0.1:{port}"));
    assert_eq!((&lines[0]["revision"], &lines[1]["revision"]), (&2.into(), &3.into()));
    assert_eq!(lines[0]["method"], "/etcdserverpb.KV/Put");
    assert!(metrics.contains("everwatch_audit_lost_total 0\n"), "{metrics}");
    // The thread that writes may not have come to the last of them.
    let written = metrics.lines().find_map(|line| line.strip_prefix("everwatch_audit_lines_total ")?.parse().ok());
    assert!(written.is_some_and(|count: usize| count <= lines.len()), "{metrics}");
}

#[test]
fn a_change_for_whose_outcome_nobody_waited_is_noted() {
    let mut cluster = Cluster::new(2);
    let path = cluster.dir(0).with_extension("audit");
    cluster.more = vec!["--audit-log-output".to_owned(), path.display().to_string()];
    let list = cluster.list(2);
    let mut members: Vec<Process> = (0..2).map(|n| cluster.start_with(n, &list, "new")).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    // Without it nothing is decided.
    drop(members.pop());
    let put = r#"{"key":"anNvbg==","value":"eA=="}"#;
    let (_, answer) = post(&members[0], "/v3/kv/put", "Grpc-Timeout: 100m\r\n", put);
    assert!(answer.contains("context deadline exceeded"), "{answer}");
    let deadline = Instant::now() + PATIENCE;
    let lines = loop {
        let text = std::fs::read_to_string(&path).expect("it was made");
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if !lines.is_empty() {
            break lines;
        }
        assert!(Instant::now() < deadline, "nothing is noted");
        std::thread::yield_now();
    };
    assert_eq!(lines.iter().map(gist).collect::<Vec<_>>(), ["Put Canceled - writes=[{key:json,op:put}]"]);
}
