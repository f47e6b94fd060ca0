//! One question, one answer: every unary call of etcd's API under the type of its request.
//!
//! An endpoint that cannot be reached was not asked: the next one is. A question that was under way when its connection broke is
//! asked again only if asking twice is harmless. How long that goes on is for the caller to say.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::backoff::Backoff;
use super::{Client, Error};
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::*;

/// Answers may be as large as a server makes them.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// A request that has one answer.
pub trait Ask: prost::Message + Clone + 'static {
    /// What is answered.
    type Answer: prost::Message + Default + 'static;
    /// Service and method.
    const PATH: &'static str;
    /// Asking twice changes nothing.
    const HARMLESS: bool;
}

macro_rules! asks {
    ($($request:ident -> $answer:ident, $path:literal, $harmless:literal;)*) => {$(
        impl Ask for $request {
            type Answer = $answer;
            const PATH: &'static str = concat!("/etcdserverpb.", $path);
            const HARMLESS: bool = $harmless;
        }
    )*};
}

asks! {
    RangeRequest -> RangeResponse, "KV/Range", true;
    PutRequest -> PutResponse, "KV/Put", false;
    DeleteRangeRequest -> DeleteRangeResponse, "KV/DeleteRange", false;
    TxnRequest -> TxnResponse, "KV/Txn", false;
    CompactionRequest -> CompactionResponse, "KV/Compact", false;
    LeaseGrantRequest -> LeaseGrantResponse, "Lease/LeaseGrant", false;
    LeaseRevokeRequest -> LeaseRevokeResponse, "Lease/LeaseRevoke", false;
    LeaseTimeToLiveRequest -> LeaseTimeToLiveResponse, "Lease/LeaseTimeToLive", true;
    LeaseLeasesRequest -> LeaseLeasesResponse, "Lease/LeaseLeases", true;
    MemberAddRequest -> MemberAddResponse, "Cluster/MemberAdd", false;
    MemberRemoveRequest -> MemberRemoveResponse, "Cluster/MemberRemove", false;
    MemberUpdateRequest -> MemberUpdateResponse, "Cluster/MemberUpdate", false;
    MemberListRequest -> MemberListResponse, "Cluster/MemberList", true;
    MemberPromoteRequest -> MemberPromoteResponse, "Cluster/MemberPromote", false;
    AlarmRequest -> AlarmResponse, "Maintenance/Alarm", true;
    StatusRequest -> StatusResponse, "Maintenance/Status", true;
    DefragmentRequest -> DefragmentResponse, "Maintenance/Defragment", false;
    HashKvRequest -> HashKvResponse, "Maintenance/HashKV", true;
    MoveLeaderRequest -> MoveLeaderResponse, "Maintenance/MoveLeader", false;
    AuthEnableRequest -> AuthEnableResponse, "Auth/AuthEnable", false;
    AuthDisableRequest -> AuthDisableResponse, "Auth/AuthDisable", false;
    AuthStatusRequest -> AuthStatusResponse, "Auth/AuthStatus", true;
    AuthenticateRequest -> AuthenticateResponse, "Auth/Authenticate", true;
    AuthUserAddRequest -> AuthUserAddResponse, "Auth/UserAdd", false;
    AuthUserGetRequest -> AuthUserGetResponse, "Auth/UserGet", true;
    AuthUserListRequest -> AuthUserListResponse, "Auth/UserList", true;
    AuthUserDeleteRequest -> AuthUserDeleteResponse, "Auth/UserDelete", false;
    AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse, "Auth/UserChangePassword", false;
    AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse, "Auth/UserGrantRole", false;
    AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse, "Auth/UserRevokeRole", false;
    AuthRoleAddRequest -> AuthRoleAddResponse, "Auth/RoleAdd", false;
    AuthRoleGetRequest -> AuthRoleGetResponse, "Auth/RoleGet", true;
    AuthRoleListRequest -> AuthRoleListResponse, "Auth/RoleList", true;
    AuthRoleDeleteRequest -> AuthRoleDeleteResponse, "Auth/RoleDelete", false;
    AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse, "Auth/RoleGrantPermission", false;
    AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse, "Auth/RoleRevokePermission", false;
}

impl Client {
    /// An answer from whichever endpoint can be reached.
    pub async fn ask<Q: Ask>(&self, question: Q) -> Result<Q::Answer, Error> {
        self.ask_as(0, question).await
    }

    /// The same over the connections of one of the client's users.
    pub async fn ask_as<Q: Ask>(&self, user: usize, question: Q) -> Result<Q::Answer, Error> {
        let mut backoff = Backoff::default();
        for endpoint in 0.. {
            let channel = self.channel(endpoint, user);
            match self.ask_over(channel, question.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) if was_not_asked(&status) || Q::HARMLESS && status.code() == Code::Unavailable => {
                    // Endpoints are tried in turn; after each turn it is time to wait.
                    if (endpoint + 1) % self.endpoints() == 0 {
                        tokio::time::sleep(backoff.pause()).await;
                    }
                }
                Err(status) => return Err(Error::Refused(status)),
            }
        }
        unreachable!("endpoints never run out")
    }

    async fn ask_over<Q: Ask>(&self, channel: Channel, question: Q) -> Result<Q::Answer, Status> {
        let call = match Q::PATH {
            // Whoever asks for a token has none.
            <AuthenticateRequest as Ask>::PATH => tonic::Request::new(question),
            _ => self.call(&channel, question).await?,
        };
        let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let codec = ProstCodec::<Q, Q::Answer>::default();
        Ok(grpc.unary(call, PathAndQuery::from_static(Q::PATH), codec).await?.into_inner())
    }

    /// The same client with one token for all of its calls: for many calls in a short time.
    pub async fn authenticated(&self) -> Result<Client, Error> {
        let Some(login) = &self.login else { return Ok(self.clone()) };
        let (name, password) = (login.name.clone(), login.password.clone());
        let token = match self.ask(AuthenticateRequest { name, password }).await {
            Ok(answer) => answer.token.parse().ok(),
            // A cluster without users has no tokens, and needs none.
            Err(Error::Refused(status)) if super::login::is_not_needed(&status) => None,
            Err(error) => return Err(error),
        };
        let login = token.as_ref().and(self.login.clone());
        Ok(Client { login, token, ..self.clone() })
    }

    /// Renews a lease once, at the first endpoint that answers. A time to live of 0: there is no such lease.
    pub async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        self.keep_alive_within(id, Duration::MAX).await
    }

    /// The same when there is not all the time in the world: after so long the last endpoint is being asked at the latest, and it
    /// has no longer than each of those before it had. A connection to somebody who has gone silent is noticed much later.
    pub async fn keep_alive_within(&self, id: i64, patience: Duration) -> Result<LeaseKeepAliveResponse, Error> {
        let others = u32::try_from(self.endpoints() - 1).unwrap_or(u32::MAX).max(1);
        let mut endpoint = 0;
        loop {
            let asking = tokio::time::timeout(patience / others, self.keep_alive_at(endpoint, id));
            let silent = |_| Err(Error::Refused(Status::unavailable("there is no answer in time")));
            let outcome = asking.await.unwrap_or_else(silent);
            endpoint += 1;
            // Renewing twice is harmless.
            let again = matches!(&outcome, Err(Error::Refused(status)) if status.code() == Code::Unavailable);
            if !again || endpoint == self.endpoints() {
                return outcome;
            }
        }
    }

    async fn keep_alive_at(&self, endpoint: usize, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        let channel = self.channel(endpoint, 0);
        let once = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let call = self.call(&channel, once).await.map_err(Error::Refused)?;
        let answers = LeaseClient::new(channel).lease_keep_alive(call).await.map_err(Error::Refused)?;
        let answer = answers.into_inner().message().await.map_err(Error::Refused)?;
        answer.ok_or_else(|| Error::Refused(Status::unavailable("the server ended the stream")))
    }
}

/// No connection came about.
fn was_not_asked(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl Error {
    /// What etcd's own client says of it.
    pub fn etcd_text(&self) -> String {
        match self {
            Error::Endpoint(_) | Error::Tls(_) => self.to_string(),
            Error::Refused(status) if status.message().starts_with("etcdserver:") => status.message().to_owned(),
            Error::Refused(status) => {
                let code = match status.code() {
                    Code::Cancelled => "Canceled".to_owned(),
                    code => format!("{code:?}"),
                };
                format!("rpc error: code = {code} desc = {}", status.message())
            }
        }
    }

    /// The user may not do that; whoever says so is well.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self, Error::Refused(status) if status.code() == Code::PermissionDenied)
    }
}
