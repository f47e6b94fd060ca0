//! Users, roles and tokens.

use etcd_client::{
    Client, ConnectOptions, Permission, PermissionType, RoleRevokePermissionOptions as Revoke, UserAddOptions,
};
use tonic::Code;

use crate::{Members, refused};

async fn connect(members: &Members, name: &str, password: &str) -> Client {
    let options = ConnectOptions::new().with_user(name, password);
    Client::connect([members.url(0)], Some(options)).await.expect("it is known")
}

pub(crate) async fn roles_and_users_are_kept(members: &Members) {
    let mut client = members.client().await;
    client.role_add("r1").await.expect("added");
    client.role_add("r2").await.expect("added");
    assert_eq!(refused(client.role_add("r1").await).message(), "etcdserver: role name already exists");
    assert_eq!(client.role_list().await.expect("listed").roles(), ["r1", "r2"]);
    let permissions = [
        Permission::read("a"),
        Permission::write("b").with_range_end("d"),
        Permission::read_write("d/").with_prefix(),
        Permission::new(PermissionType::Read, "e").with_from_key(),
    ];
    for permission in permissions.clone() {
        client.role_grant_permission("r1", permission).await.expect("granted");
    }
    let held = client.role_get("r1").await.expect("known").permissions();
    assert_eq!(held, permissions);
    let about: Vec<_> = held
        .iter()
        .map(|permission| {
            assert_eq!(permission.key_str().unwrap().as_bytes(), permission.key());
            assert_eq!(permission.range_end_str().unwrap().as_bytes(), permission.range_end());
            (permission.get_type(), permission.key_str().unwrap(), permission.is_prefix(), permission.is_from_key())
        })
        .collect();
    let ends: Vec<_> = held.iter().map(Permission::range_end).collect();
    assert_eq!(ends, [&b""[..], b"d", b"d0", b"\0"]);
    assert_eq!(about, [(0, "a", false, false), (1, "b", false, false), (2, "d/", true, false), (0, "e", false, true)]);
    client.role_grant_permission("r2", Permission::read_write("").with_all_keys()).await.expect("granted");
    client.role_revoke_permission("r1", "a", None).await.expect("revoked");
    client.role_revoke_permission("r1", "b", Some(Revoke::new().with_range_end("d"))).await.expect("revoked");
    client.role_revoke_permission("r1", "d/", Some(Revoke::new().with_prefix())).await.expect("revoked");
    client.role_revoke_permission("r1", "e", Some(Revoke::new().with_from_key())).await.expect("revoked");
    client.role_revoke_permission("r2", "", Some(Revoke::new().with_all_keys())).await.expect("revoked");
    for role in ["r1", "r2"] {
        assert_eq!(client.role_get(role).await.expect("known").permissions(), [], "{role}");
    }
    let none = refused(client.role_revoke_permission("r1", "a", None).await);
    assert_eq!(none.message(), "etcdserver: permission is not granted to the role");

    client.user_add("u1", "one", None).await.expect("added");
    client.user_add("u2", "", Some(UserAddOptions::new().with_no_pwd())).await.expect("added");
    assert_eq!(refused(client.user_add("u1", "one", None).await).message(), "etcdserver: user name already exists");
    assert_eq!(client.user_list().await.expect("listed").users(), ["u1", "u2"]);
    client.user_grant_role("u1", "r2").await.expect("granted");
    client.user_grant_role("u1", "r1").await.expect("granted");
    assert_eq!(client.user_get("u1").await.expect("known").roles(), ["r1", "r2"]);
    client.user_revoke_role("u1", "r1").await.expect("revoked");
    assert_eq!(client.user_get("u1").await.expect("known").roles(), ["r2"]);
    client.user_change_password("u1", "two").await.expect("changed");
    client.role_delete("r2").await.expect("deleted");
    assert!(client.user_get("u1").await.expect("known").roles().is_empty());
    client.role_delete("r1").await.expect("deleted");
    client.user_delete("u1").await.expect("deleted");
    client.user_delete("u2").await.expect("deleted");
    assert_eq!(refused(client.user_get("u1").await).message(), "etcdserver: user name not found");
    assert_eq!(refused(client.role_get("r1").await).message(), "etcdserver: role name not found");
    assert_eq!(refused(client.auth_enable().await).message(), "etcdserver: root user does not exist");
}

pub(crate) async fn everybody_is_asked_who_he_is(members: &Members) {
    let mut client = members.client().await;
    let mut auth = client.auth_client();
    for (user, role) in [("root", "root"), ("jane", "hers")] {
        auth.role_add(role).await.expect("added");
        auth.user_add(user, format!("{user}'s own"), None).await.expect("added");
        auth.user_grant_role(user, role).await.expect("granted");
    }
    auth.role_grant_permission("hers", Permission::read_write("jane/").with_prefix()).await.expect("granted");
    assert_eq!(auth.role_list().await.expect("listed").roles(), ["hers", "root"]);
    assert_eq!(auth.user_list().await.expect("listed").users(), ["jane", "root"]);
    assert_eq!(auth.role_get("hers").await.expect("known").permissions().len(), 1);
    assert_eq!(auth.user_get("jane").await.expect("known").roles(), ["hers"]);
    auth.auth_enable().await.expect("enabled");

    assert_eq!(refused(client.put("a", "", None).await).message(), "etcdserver: user name is empty");
    let wrong = refused(auth.authenticate("jane".into(), "wrong".into()).await);
    let text = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!((wrong.code(), wrong.message()), (Code::InvalidArgument, text));
    assert!(!auth.authenticate("jane".into(), "jane's own".into()).await.expect("it is known").token().is_empty());
    let mut jane = connect(members, "jane", "jane's own").await;
    jane.put("jane/a", "1", None).await.expect("hers");
    let not = refused(jane.put("a", "", None).await);
    assert_eq!((not.code(), not.message()), (Code::PermissionDenied, "etcdserver: permission denied"));
    assert_eq!(refused(jane.role_add("more").await).code(), Code::PermissionDenied);

    // Another user, by the same client; and nobody.
    jane.update_user(Some(("root".into(), "root's own".into()))).await.expect("it is known");
    jane.put("a", "", None).await.expect("root may");
    assert_eq!(refused(jane.update_user(Some(("root".into(), "wrong".into()))).await).message(), text);
    jane.put("a", "", None).await.expect("root still");
    jane.update_user(None).await.expect("nobody is known");
    assert_eq!(refused(jane.put("a", "", None).await).message(), "etcdserver: user name is empty");

    let mut auth = connect(members, "root", "root's own").await.auth_client();
    auth.user_change_password("jane", "another").await.expect("changed");
    assert_eq!(refused(auth.authenticate("jane".into(), "jane's own".into()).await).message(), text);
    auth.role_revoke_permission("hers", "jane/", Some(Revoke::new().with_prefix())).await.expect("revoked");
    let mut jane = connect(members, "jane", "another").await;
    assert_eq!(refused(jane.get("jane/a", None).await).code(), Code::PermissionDenied);
    auth.user_revoke_role("jane", "hers").await.expect("revoked");
    auth.user_delete("jane").await.expect("deleted");
    auth.role_delete("hers").await.expect("deleted");
    auth.auth_disable().await.expect("disabled");
    members.client().await.put("a", "", None).await.expect("nobody is asked");
}

pub(crate) async fn tokens_are_renewed(members: &Members) {
    let mut client = members.client().await;
    client.auth_enable().await.expect("enabled");
    let mut client = connect(members, "root", "root's own").await;
    let renewing = ConnectOptions::new().with_user("root", "root's own").with_auto_token_refresh(true);
    let mut renewing = Client::connect([members.url(0)], Some(renewing)).await.expect("it is known");
    client.put("a", "1", None).await.expect("root may");
    renewing.put("a", "1", None).await.expect("root may");
    // All tokens end with this.
    client.auth_disable().await.expect("disabled");
    members.client().await.auth_enable().await.expect("enabled");
    let ended = refused(client.put("a", "2", None).await);
    assert_eq!((ended.code(), ended.message()), (Code::Unauthenticated, "etcdserver: invalid auth token"));
    renewing.put("a", "2", None).await.expect("it asked for another");
    client.refresh_token().await.expect("it is known");
    client.put("a", "3", None).await.expect("root may");
    client.auth_disable().await.expect("disabled");
    client.update_user(None).await.expect("nobody is known");
    client.user_delete("root").await.expect("deleted");
    client.role_delete("root").await.expect("deleted");
}
