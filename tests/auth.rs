//! Users, roles and tokens in a cluster of real processes.

mod processes;

use std::time::Instant;

use everwatch::pb::authpb::Permission;
use everwatch::pb::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest, AuthenticateRequest, PutRequest, RangeRequest,
    auth_client::AuthClient, kv_client::KvClient,
};
use processes::{Cluster, PATIENCE, Process, READY};
use tonic::{Code, Request, Status};

const READWRITE: i32 = 2;

/// A message by whoever has this token.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("visible text"));
    }
    request
}

fn login(member: &Process, name: &str) -> Result<String, Status> {
    let request = AuthenticateRequest { name: name.into(), password: "secret".into() };
    member.ask(async |channel| Ok(AuthClient::new(channel).authenticate(request).await?.into_inner().token))
}

fn put(member: &Process, token: &str, key: &'static str) -> Result<(), Status> {
    let request = by(token, PutRequest { key: key.into(), ..Default::default() });
    member.ask(async |channel| KvClient::new(channel).put(request).await.map(drop))
}

/// What this member itself says, without asking the others.
fn get(member: &Process, token: &str, key: &'static str) -> Result<i64, Status> {
    let request = by(token, RangeRequest { key: key.into(), serializable: true, ..Default::default() });
    member.ask(async |channel| Ok(KvClient::new(channel).range(request).await?.into_inner().count))
}

/// A user `root`, and a user `alice` with a role `app` for the keys from `app/` on.
fn manage(member: &Process) {
    let outcome: Result<(), Status> = member.ask(async |channel| {
        let mut auth = AuthClient::new(channel);
        for name in ["root", "alice"] {
            let (name, password) = (name.into(), "secret".into());
            auth.user_add(AuthUserAddRequest { name, password, ..Default::default() }).await?;
        }
        auth.role_add(AuthRoleAddRequest { name: "app".into() }).await?;
        let perm = Some(Permission { perm_type: READWRITE, key: "app/".into(), range_end: "app0".into() });
        auth.role_grant_permission(AuthRoleGrantPermissionRequest { name: "app".into(), perm }).await?;
        for (user, role) in [("root", "root"), ("alice", "app")] {
            auth.user_grant_role(AuthUserGrantRoleRequest { user: user.into(), role: role.into() }).await?;
        }
        auth.auth_enable(AuthEnableRequest {}).await.map(drop)
    });
    outcome.expect("nobody is asked yet");
}

fn founded(flags: &'static [&'static str]) -> (Cluster, Vec<Process>) {
    let mut cluster = Cluster::new(3);
    cluster.flags = flags;
    let members: Vec<Process> = (0..3).map(|n| cluster.start(n)).collect();
    members.iter().for_each(|member| drop(member.says(READY)));
    (cluster, members)
}

#[test]
fn a_token_is_good_on_every_member_at_once() {
    let (_cluster, members) = founded(&["--bcrypt-cost=4"]);
    manage(&members[0]);
    for n in 0..10 {
        let token = login(&members[n % 3], "alice").expect("she has a password");
        for other in [1, 2, 0] {
            let member = &members[(n + other) % 3];
            assert!(get(member, &token, "app/a").is_ok());
            put(member, &token, "app/a").expect("she may");
            assert_eq!(put(member, &token, "other").expect_err("she may not").code(), Code::PermissionDenied);
        }
    }
}

/// etcd's #14571: what users may do was not built anew.
#[test]
fn a_member_that_gets_a_snapshot_knows_who_may_what() {
    const FLAGS: &[&str] = &["--bcrypt-cost=4", "--snapshot-count=20", "--snapshot-catchup-entries=5"];
    let (cluster, mut members) = founded(FLAGS);
    let away = (0..3).find(|n| matches!(members[*n].ids(), (own, leader) if own != leader)).expect("two do not lead");
    drop(members.remove(away));
    manage(&members[0]);
    let root = login(&members[0], "root").expect("he has a password");
    for _ in 0..100 {
        put(&members[0], &root, "app/a").expect("root may");
    }
    let last = cluster.start(away);
    last.says("snapshot adopted");
    // It may serve already, or not yet.
    let deadline = Instant::now() + PATIENCE;
    let alice = loop {
        match login(&last, "alice") {
            Ok(token) => break token,
            Err(status) => assert!(Instant::now() < deadline, "{status}"),
        }
    };
    assert_eq!(get(&last, "", "app/a").expect_err("auth is on").message(), "etcdserver: user name is empty");
    assert_eq!(get(&last, &alice, "app/a").expect("she may"), 1);
    assert_eq!(get(&last, &alice, "other").expect_err("she may not").code(), Code::PermissionDenied);

    // And follows what changes.
    let revoke = by(&root, AuthUserRevokeRoleRequest { name: "alice".into(), role: "app".into() });
    let revoked = members[0].ask(async |channel| AuthClient::new(channel).user_revoke_role(revoke).await.map(drop));
    revoked.expect("root may");
    let refused = put(&last, &alice, "app/a").expect_err("she may not any more");
    let told =
        [(Code::PermissionDenied, "permission denied"), (Code::InvalidArgument, "revision of auth store is old")];
    assert!(told.iter().any(|(code, text)| refused.code() == *code && refused.message().ends_with(text)), "{refused}");
}
