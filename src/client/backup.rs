//! A backup of a member, as it arrives.

use bytes::Bytes;
use tonic::Streaming;

use super::{Client, Error};
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::pb::etcdserverpb::{SnapshotRequest, SnapshotResponse};

/// What is still to come of one.
pub struct Backup {
    responses: Streaming<SnapshotResponse>,
}

/// A piece of it.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The bytes that come next.
    pub bytes: Bytes,
    /// How many the member says come after them, without the hash at the end.
    pub left: u64,
    /// The version of the file's layout; older members do not say.
    pub version: String,
}

impl Client {
    /// Asks an endpoint for a backup. Where it breaks off there is no going on: another would be of another moment.
    pub async fn backup(&self, endpoint: usize) -> Result<Backup, Error> {
        let channel = self.channel(endpoint, 0);
        let call = self.call(&channel, SnapshotRequest {}).await.map_err(Error::Refused)?;
        let mut client = MaintenanceClient::new(channel).max_decoding_message_size(i32::MAX as usize);
        let responses = client.snapshot(call).await.map_err(Error::Refused)?;
        Ok(Backup { responses: responses.into_inner() })
    }
}

impl Backup {
    /// The next piece; none: that was the last.
    pub async fn next(&mut self) -> Result<Option<Piece>, Error> {
        let response = self.responses.message().await.map_err(Error::Refused)?;
        Ok(response.map(|SnapshotResponse { remaining_bytes, blob, version, .. }| Piece {
            bytes: blob,
            left: remaining_bytes,
            version,
        }))
    }
}
