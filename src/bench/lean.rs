//! Responses read for what is measured, and no further: a generator that decodes every event in full is the bottleneck long before
//! the server is.

use std::time::Duration;

use bytes::Buf;
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
    pub(super) events: Vec<Event>,
}

/// An event of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) revision: i64,
    /// When its put was sent, after the load's epoch.
    sent: Option<Duration>,
}

impl Event {
    /// How long its put was on the way, if it arrived at this time after the load's epoch.
    pub(super) fn age(&self, arrived: Duration) -> Option<Duration> {
        Some(arrived.saturating_sub(self.sent?))
    }

    fn read(bytes: &[u8]) -> Option<Event> {
        let mut event = Event::default();
        fields(bytes, |field, value| match (field, value) {
            (2, Value::Bytes(kv)) => fields(kv, |field, value| {
                match (field, value) {
                    (3, Value::Number(revision)) => event.revision = revision as i64,
                    (5, Value::Bytes(value)) => event.sent = time(value),
                    _ => {}
                }
                Some(())
            }),
            _ => Some(()),
        })?;
        Some(event)
    }
}

impl Lean {
    fn read(bytes: &[u8]) -> Option<Lean> {
        let mut lean = Lean::default();
        fields(bytes, |field, value| {
            match (field, value) {
                (2, Value::Number(id)) => lean.watch_id = id as i64,
                (3, Value::Number(created)) => lean.created = created != 0,
                (4, Value::Number(canceled)) => lean.canceled = canceled != 0,
                (11, Value::Bytes(event)) => lean.events.push(Event::read(event)?),
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

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Shows each field to `see`. `None` where the bytes are no message.
fn fields<'a>(mut bytes: &'a [u8], mut see: impl FnMut(u32, Value<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let (field, kind) = decode_key(&mut bytes).ok()?;
        let value = match kind {
            WireType::Varint => Value::Number(decode_varint(&mut bytes).ok()?),
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (value, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Value::Bytes(value)
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
        // In one piece: tonic has collected the message.
        let lean = Lean::read(from.chunk());
        from.advance(from.remaining());
        lean.map(Some).ok_or_else(|| Status::internal("not a watch response"))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::ResponseHeader;
    use crate::pb::mvccpb;

    #[test]
    fn reads_what_is_measured() {
        let value = Bytes::from([&7u64.to_be_bytes()[..], b"rest"].concat());
        let kv = mvccpb::KeyValue { key: "k".into(), mod_revision: 9, value, ..Default::default() };
        let response = WatchResponse {
            header: Some(ResponseHeader { revision: 11, ..Default::default() }),
            watch_id: 5,
            events: vec![mvccpb::Event::default(), mvccpb::Event { kv: Some(kv), ..Default::default() }],
            ..Default::default()
        };
        let lean = Lean::read(&response.encode_to_vec()).expect("a response");
        let events = vec![Event::default(), Event { revision: 9, sent: Some(Duration::from_nanos(7)) }];
        assert_eq!(lean, Lean { watch_id: 5, events, ..Lean::default() });
        assert_eq!(Lean::read(&[0x5a, 9]), None);
    }
}
