//! Founders that find each other through another cluster, as real processes.

mod processes;

use everwatch::pb::etcdserverpb::auth_client::AuthClient;
use everwatch::pb::etcdserverpb::kv_client::KvClient;
use everwatch::pb::etcdserverpb::{
    AuthEnableRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, PutRequest, RangeRequest,
};
use processes::{Cluster, Process, READY};

const WAITS: &str = "waiting for peers from discovery service";

/// A cluster of one that founders can ask. An operator has said how many there will be under which token.
fn registry(cluster: &Cluster, sizes: &[(&str, &str)]) -> Process {
    let registry = cluster.start_with(0, &cluster.list(1), "new");
    registry.says(READY);
    for (token, size) in sizes {
        let key = format!("/_etcd/registry/{token}/_config/size");
        let put = PutRequest { key: key.into(), value: size.to_string().into(), ..Default::default() };
        registry.ask(async |channel| KvClient::new(channel).put(put).await).expect("written");
    }
    registry
}

/// What is under a token: keys and values.
fn registered(registry: &Process, token: &str) -> Vec<(String, String)> {
    let prefix = format!("/_etcd/registry/{token}/members/");
    let range = RangeRequest {
        range_end: prefix.replace("members/", "members0").into(),
        key: prefix.into(),
        ..Default::default()
    };
    let answer = registry.ask(async |channel| KvClient::new(channel).range(range).await).expect("read").into_inner();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

fn asking(places: usize, registry: &Cluster, token: &str) -> Cluster {
    let mut cluster = Cluster::new(places);
    let endpoint = registry.clients[0].clone();
    cluster.more = ["--discovery-token", token, "--discovery-endpoints", &endpoint].map(str::to_owned).to_vec();
    cluster
}

#[test]
fn three_founders_find_each_other_and_a_fourth_finds_no_place() {
    let place = Cluster::new(1);
    let there = registry(&place, &[("three", "3")]);
    let cluster = asking(4, &place, "three");
    let first = cluster.start_with(0, "", "new");
    first.says(WAITS);
    // Started again before it has anything, it is still the first.
    drop(first);
    let mut members = vec![cluster.start_with(0, "", "new")];
    members[0].says(WAITS);
    members.extend([1, 2].map(|n| cluster.start_with(n, "", "new")));
    members.iter().for_each(|member| drop(member.says(READY)));
    let mut names: Vec<String> = members[1].members().into_iter().map(|member| member.name).collect();
    names.sort();
    assert_eq!(names, ["m0", "m1", "m2"]);
    members[0].put("key");
    assert!(members[2].has("key"));

    let ids: Vec<u64> = members.iter().map(|member| member.ids().0).collect();
    let mut expected: Vec<(String, String)> = (0..3)
        .map(|n| {
            let key = format!("/_etcd/registry/three/members/{:x}", ids[n]);
            (key, format!("m{n}=http://{}", cluster.peers[n]))
        })
        .collect();
    expected.sort();
    assert_eq!(registered(&there, "three"), expected);

    let (code, last) = cluster.start_with(3, "", "new").ends();
    assert_eq!(code, Some(1));
    assert!(last.contains("failed to join discovery cluster (discovery: cluster is full)"), "{last}");
    assert_eq!(registered(&there, "three").len(), 3, "it left nothing there");

    // Whoever has data asks nobody.
    drop(there);
    drop(members.pop());
    let again = cluster.start_with(2, "", "new");
    again.says(READY);
    assert!(again.has("key"));
}

#[test]
fn a_registry_with_users_is_asked_by_one_whose_password_is_not_logged() {
    let place = Cluster::new(1);
    let there = registry(&place, &[("one", "1")]);
    there.ask(async |channel| {
        let mut auth = AuthClient::new(channel);
        let root = AuthUserAddRequest { name: "root".into(), password: "open sesame".into(), ..Default::default() };
        auth.user_add(root).await.expect("added");
        let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(grant).await.expect("granted");
        auth.auth_enable(AuthEnableRequest {}).await.expect("enabled");
    });
    let mut cluster = asking(1, &place, "one");
    let nobody = cluster.start_with(0, "", "new");
    assert!(nobody.says("retry connecting to discovery service").contains("user name is empty"));
    drop(nobody);
    cluster.more.extend(["--discovery-user=root", "--discovery-password", "open sesame"].map(str::to_owned));
    let founder = cluster.start_with(0, "", "new");
    assert!(founder.says("Running: ").contains("--discovery-password ***"));
    founder.says(READY);
    founder.put("key");
}

#[test]
fn a_registry_that_does_not_say_how_many_is_of_no_use() {
    let place = Cluster::new(1);
    let _there = registry(&place, &[("zero", "0"), ("words", "three")]);
    for (token, why) in [
        ("none", "discovery: size key not found"),
        ("zero", "discovery: size key is bad"),
        ("words", "discovery: size key is bad"),
    ] {
        let (code, last) = asking(1, &place, token).start_with(0, "", "new").ends();
        assert_eq!(code, Some(1));
        assert!(last.contains(&format!("failed to join discovery cluster ({why})")), "{last}");
    }
}
