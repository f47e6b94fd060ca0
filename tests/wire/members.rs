//! M: how a cluster is changed, and what is refused.

use super::*;

/// What a call was refused with.
#[track_caller]
fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("a refusal");
    (status.code(), status.message().to_owned())
}

/// What the cluster service tells a single member's client.
struct Members(ClusterClient<Channel>);

impl Members {
    async fn add(&self, urls: &[&str], is_learner: bool) -> Result<pb::MemberAddResponse, Status> {
        let peer_ur_ls = urls.iter().map(|url| (*url).to_owned()).collect();
        let request = MemberAddRequest { peer_ur_ls, is_learner };
        self.0.clone().member_add(request).await.map(tonic::Response::into_inner)
    }

    async fn remove(&self, id: u64) -> Result<pb::MemberRemoveResponse, Status> {
        self.0.clone().member_remove(MemberRemoveRequest { id }).await.map(tonic::Response::into_inner)
    }

    async fn promote(&self, id: u64) -> Result<pb::MemberPromoteResponse, Status> {
        self.0.clone().member_promote(MemberPromoteRequest { id }).await.map(tonic::Response::into_inner)
    }

    async fn update(&self, id: u64, url: &str) -> Result<pb::MemberUpdateResponse, Status> {
        let request = MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] };
        self.0.clone().member_update(request).await.map(tonic::Response::into_inner)
    }

    /// Ids, peer URLs and who learns.
    async fn list(&self) -> Vec<(u64, Vec<String>, bool)> {
        let response = self.0.clone().member_list(MemberListRequest { linearizable: true }).await;
        let members = response.expect("a list").into_inner().members;
        members.into_iter().map(|member| (member.id, member.peer_ur_ls, member.is_learner)).collect()
    }
}

#[tokio::test]
async fn m1_members_are_changed_and_refused_as_etcd_does() {
    let server = Server::start();
    let mut client = Client::on(server.clone()).await;
    let members = Members(ClusterClient::new(client.channel.clone()));
    let own = members.list().await[0].0;
    let not_found = (Code::NotFound, "etcdserver: member not found".to_owned());

    let bad_urls = (Code::InvalidArgument, "etcdserver: given member URLs are invalid".to_owned());
    for bad in ["127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:1/path"] {
        assert_eq!(refusal(members.add(&[bad], false).await), bad_urls, "{bad}");
    }
    let too_few = "etcdserver: re-configuration failed due to not enough started members".to_owned();
    assert_eq!(refusal(members.remove(own).await), (Code::Unknown, too_few));
    let no_learner = (Code::FailedPrecondition, "etcdserver: can only promote a learner member".to_owned());
    assert_eq!(refusal(members.promote(own).await), no_learner);
    assert_eq!(refusal(members.promote(7).await), not_found);
    assert_eq!(refusal(members.remove(7).await), not_found);
    assert_eq!(refusal(members.update(7, "http://127.0.0.1:9").await), not_found);

    let url = free_url();
    let added = members.add(&[&url], true).await.expect("a learner is added");
    let learner = added.member.expect("it is told");
    assert_eq!((&learner.peer_ur_ls, learner.is_learner, &learner.name[..]), (&vec![url.clone()], true, ""));
    assert_eq!((added.members.len(), added.header.expect("a header").revision), (2, 0));
    let taken = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists".to_owned());
    assert_eq!(refusal(members.add(&["http://127.0.0.1:9", &url], false).await), taken);
    assert_eq!(refusal(members.update(own, &url).await), taken);
    let too_many = (Code::FailedPrecondition, "etcdserver: too many learner members in cluster".to_owned());
    assert_eq!(refusal(members.add(&["http://127.0.0.1:9"], true).await), too_many);
    let behind = "etcdserver: can only promote a learner member which is in sync with leader".to_owned();
    assert_eq!(refusal(members.promote(learner.id).await), (Code::FailedPrecondition, behind));

    let moved = free_url();
    members.update(learner.id, &moved).await.expect("a member moves");
    let mut table = vec![(own, vec![server.peer.clone()], false), (learner.id, vec![moved], true)];
    table.sort();
    assert_eq!(members.list().await, table);
    client.put("a", "written while there is a learner that does not run").await;

    server.crash_and_restart();
    client.reconnect().await;
    let members = Members(ClusterClient::new(client.channel.clone()));
    assert_eq!(members.list().await, table);
    assert_eq!(members.remove(learner.id).await.expect("it leaves").members.len(), 1);
    assert_eq!(refusal(members.remove(learner.id).await), not_found);
    assert_eq!(refusal(members.promote(learner.id).await), not_found);
    client.put("b", "written by the only member").await;
}

impl Server {
    /// Two members that found a cluster together.
    fn pair() -> [Arc<Server>; 2] {
        let addresses = [0, 1].map(|_| (free_url(), free_url()));
        let cluster = format!("m0={},m1={}", addresses[0].1, addresses[1].1);
        let cluster: &'static str = Box::leak(cluster.into_boxed_str());
        let mut names = ["m0", "m1"].into_iter();
        addresses.map(|(url, peer)| {
            let name = names.next().expect("as many names as members");
            let flags: &'static [&'static str] = Box::leak(Box::new(["--name", name, "--initial-cluster", cluster]));
            let data = tempfile::tempdir().expect("a temporary directory");
            let child = Server::spawn(&url, &peer, data.path(), flags);
            Arc::new(Server { child: Mutex::new(child), url, peer, data, flags })
        })
    }

    /// Whether the process ends by itself, and well.
    async fn stops(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.lock().expect("no test panicked in here").try_wait().expect("the process is ours");
            match ended {
                Some(status) => return status.success(),
                None if Instant::now() > deadline => return false,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Removes the member with the peer URL of `leaving`, asked at `asked`. The second left is asked to write.
async fn remove_one_of_two(asked: usize, leaving: usize) {
    let servers = Server::pair();
    let mut clients = [Client::on(servers[0].clone()).await, Client::on(servers[1].clone()).await];
    clients[0].put("a", "written by two").await;
    let members = Members(ClusterClient::new(clients[asked].channel.clone()));
    let table = members.list().await;
    let own = |(_, peer, _): &&(u64, Vec<String>, bool)| peer[0] == servers[leaving].peer;
    let id = table.iter().find(own).expect("it is a member").0;
    let unhealthy = (Code::Unavailable, "etcdserver: unhealthy cluster".to_owned());
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Members have to be connected for a while before they may be removed.
        match members.remove(id).await {
            Ok(answer) => break assert_eq!(answer.members.len(), 1),
            Err(status) => assert_eq!((status.code(), status.message().to_owned()), unhealthy),
        }
        assert!(Instant::now() < deadline, "the members stay unhealthy");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(servers[leaving].stops().await, "the removed member stops by itself");
    let left = &mut clients[1 - leaving];
    left.reconnect().await;
    assert_eq!(Members(ClusterClient::new(left.channel.clone())).list().await.len(), 1);
    left.put("b", "written by the one that is left").await;

    // Started again, it knows.
    servers[leaving].crash_and_restart();
    assert!(servers[leaving].stops().await, "it stops again");
}

#[tokio::test]
async fn m2_a_member_removed_through_the_other_stops() {
    remove_one_of_two(0, 1).await;
}

#[tokio::test]
async fn m3_a_member_that_removes_itself_stops() {
    remove_one_of_two(0, 0).await;
}

wire!(a_downgrade_goes_one_version_down_or_nowhere, |c| {
    use pb::downgrade_request::DowngradeAction::{Enable, Validate};
    let maintenance = pb::maintenance_client::MaintenanceClient::new(c.channel.clone());
    let ask = async |action: i32, version: &str| {
        let request = pb::DowngradeRequest { action, version: version.to_owned() };
        maintenance.clone().downgrade(request).await.map(|answer| answer.into_inner().version)
    };
    let format = (Code::InvalidArgument, "etcdserver: wrong downgrade target version format".to_owned());
    assert_eq!(refusal(ask(Validate as i32, "next").await), format);
    assert_eq!(refusal(ask(Enable as i32, "").await), format);
    assert_eq!(refusal(ask(7, "3.5.0").await), (Code::Unknown, "etcdserver: unknown method".to_owned()));
    // A single member finds out what all speak soon after its election.
    let unknown = |answer: &Result<String, Status>| {
        answer.as_ref().is_err_and(|status| status.message().contains("cluster version not found"))
    };
    let mut target = ask(Validate as i32, "3.1.0").await;
    while unknown(&target) {
        target = ask(Validate as i32, "3.1.0").await;
    }
    assert_eq!(refusal(target), (Code::InvalidArgument, "etcdserver: invalid downgrade target version".to_owned()));
});
