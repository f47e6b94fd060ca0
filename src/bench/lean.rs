//! Watch responses read for what is measured, and no further: a generator that decodes every event in full is the
//! bottleneck long before the server is.

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::{ProstCodec, ProstEncoder};

use super::load::TIME_BYTES;
use crate::pb::etcdserverpb::{WatchRequest, WatchResponse};

/// A response, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lean {
    pub(super) watch_id: i64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    pub(super) fragment: bool,
    pub(super) events: u32,
    /// The revision of the last event.
    pub(super) revision: i64,
    /// The revision of the header.
    pub(super) header_revision: i64,
    /// When the last event's put was sent, after the load's epoch.
    pub(super) sent: Option<Duration>,
}

impl Lean {
    /// How long ago the last event's put was sent.
    pub(super) fn age(&self, epoch: Instant) -> Option<Duration> {
        Some(epoch.elapsed().saturating_sub(self.sent?))
    }

    fn read(mut bytes: Bytes) -> Option<Lean> {
        let mut lean = Lean::default();
        fields(&mut bytes, |field, value| {
            match (field, value) {
                (1, Value::Bytes(mut header)) => fields(&mut header, |field, value| {
                    if let (3, Value::Number(revision)) = (field, value) {
                        lean.header_revision = revision as i64;
                    }
                    Some(())
                })?,
                (2, Value::Number(id)) => lean.watch_id = id as i64,
                (3, Value::Number(created)) => lean.created = created != 0,
                (4, Value::Number(canceled)) => lean.canceled = canceled != 0,
                (7, Value::Number(fragment)) => lean.fragment = fragment != 0,
                (11, Value::Bytes(mut event)) => {
                    lean.events += 1;
                    fields(&mut event, |field, value| match (field, value) {
                        (2, Value::Bytes(mut kv)) => fields(&mut kv, |field, value| {
                            match (field, value) {
                                (3, Value::Number(revision)) => lean.revision = revision as i64,
                                (5, Value::Bytes(value)) => lean.sent = time(&value),
                                _ => {}
                            }
                            Some(())
                        }),
                        _ => Some(()),
                    })?;
                }
                _ => {}
            }
            Some(())
        })?;
        Some(lean)
    }
}

fn time(value: &[u8]) -> Option<Duration> {
    let bytes = value.get(..TIME_BYTES)?.try_into().ok()?;
    Some(Duration::from_nanos(u64::from_be_bytes(bytes)))
}

enum Value {
    Number(u64),
    Bytes(Bytes),
}

/// Shows each field to `see`. `None` where the bytes are no message.
fn fields(bytes: &mut Bytes, mut see: impl FnMut(u32, Value) -> Option<()>) -> Option<()> {
    while bytes.has_remaining() {
        let (field, kind) = decode_key(bytes).ok()?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(bytes).ok()?),
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(bytes).ok()?).ok()?;
                if len > bytes.len() {
                    return None;
                }
                Value::Bytes(bytes.split_to(len))
            }
            _ => return None,
        };
        see(field, value)?;
    }
    Some(())
}

/// Opens a watch whose responses are read leanly.
pub(super) async fn watch(
    channel: Channel,
    requests: impl tokio_stream::Stream<Item = WatchRequest> + Send + 'static,
) -> Result<tonic::Streaming<Lean>, Status> {
    let mut grpc = Grpc::new(channel).max_decoding_message_size(1 << 30);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    Ok(grpc.streaming(tonic::Request::new(requests), path, LeanCodec).await?.into_inner())
}

#[derive(Clone, Copy, Debug)]
struct LeanCodec;

impl Codec for LeanCodec {
    type Encode = WatchRequest;
    type Decode = Lean;
    type Encoder = ProstEncoder<WatchRequest>;
    type Decoder = LeanDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<WatchRequest, WatchResponse>::default().encoder()
    }

    fn decoder(&mut self) -> LeanDecoder {
        LeanDecoder
    }
}

#[derive(Debug)]
struct LeanDecoder;

impl Decoder for LeanDecoder {
    type Item = Lean;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Lean>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        Lean::read(bytes).map(Some).ok_or_else(|| Status::internal("not a watch response"))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;
    use crate::pb::mvccpb::{Event, KeyValue};

    #[test]
    fn reads_what_is_measured() {
        let value = Bytes::from([&7u64.to_be_bytes()[..], b"rest"].concat());
        let kv = KeyValue { key: "k".into(), mod_revision: 9, value, ..Default::default() };
        let response = WatchResponse {
            header: Some(ResponseHeader { revision: 11, ..Default::default() }),
            watch_id: 5,
            fragment: true,
            events: vec![Event::default(), Event { kv: Some(kv), ..Default::default() }],
            ..Default::default()
        };
        let lean = Lean::read(response.encode_to_vec().into()).expect("a response");
        let sent = Some(Duration::from_nanos(7));
        let wanted =
            Lean { watch_id: 5, fragment: true, events: 2, revision: 9, header_revision: 11, sent, ..Lean::default() };
        assert_eq!(lean, wanted);
        assert_eq!(Lean::read(Bytes::from_static(&[0x5a, 9])), None);
    }
}
