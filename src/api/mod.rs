//! What clients see: etcd's gRPC services, thin translators onto one [`Handle`].
//!
//! A method is three steps: check the request (`check`), call a verb, stamp the header. Errors get their code and text in
//! `status`, and nowhere else. Services that are not registered answer UNIMPLEMENTED.

use tonic::service::Routes;

use crate::config::Config;
use crate::pb::etcdserverpb::auth_server::AuthServer;
use crate::pb::etcdserverpb::cluster_server::ClusterServer;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::server::handle::Handle;

mod audit;
mod auth;
mod body;
mod caller;
mod check;
mod cluster;
mod election;
mod frames;
mod intercept;
pub(crate) mod kv;
mod lease;
mod led;
mod lock;
mod maintenance;
mod range_stream;
mod received;
mod recipe;
mod requests;
mod status;
mod unary;
pub mod watch;
mod woven;

pub use intercept::Intercept;
pub(crate) use status::STOPPED;

/// What gRPC may add to the largest request, as etcd reckons it.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

/// All services of a member.
pub fn routes(handle: Handle, config: &Config) -> Intercept {
    let decode_max = config.request_bytes_max.saturating_add(GRPC_OVERHEAD_BYTES);
    let encode_max = i32::MAX as usize;
    let watch_options = watch::WatchOptions {
        progress_interval: config.watch_progress_notify_interval,
        request_bytes_max: config.request_bytes_max,
    };
    macro_rules! sized {
        ($server:expr) => {
            $server.max_decoding_message_size(decode_max).max_encoding_message_size(encode_max)
        };
    }
    let routes = Routes::new(sized!(LeaseServer::new(lease::LeaseService::new(handle.clone()))))
        .add_service(sized!(ClusterServer::new(cluster::ClusterService::new(handle.clone()))))
        .add_service(sized!(MaintenanceServer::new(maintenance::MaintenanceService::new(handle.clone()))))
        .add_service(sized!(AuthServer::new(auth::AuthService::new(handle.clone()))))
        .add_service(tonic_health::server::health_reporter().1);
    let kv = kv::KvService::new(handle.clone(), decode_max);
    let watch = watch::WatchService::new(handle.watch(), watch_options);
    // Recipes are clients of what there is without them.
    let services = Intercept::new(kv.clone(), watch.clone(), routes.clone().prepare(), handle.clone());
    let routes = routes
        .add_service(sized!(LockServer::new(lock::LockService::new(services.clone()))))
        .add_service(sized!(ElectionServer::new(election::ElectionService::new(services))));
    Intercept::new(kv, watch, routes.prepare(), handle)
}
