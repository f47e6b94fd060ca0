//! Single rows, from our form to etcd's and back. Reading refuses (`None`) what etcd does not write.

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};

use crate::mvcc::revision::RevisionKey;
use crate::pb::etcdserverpb::AlarmMember;
use crate::pb::everwatchpb::{ConfState, LeaseRecord, MemberRecord};

/// Bytes of the key of a revision in etcd, without the mark of a tombstone.
const REVISION_BYTES: usize = 17;

/// `leasepb.Lease`.
#[derive(Clone, PartialEq, Message)]
struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// The key of a change.
pub(super) fn revision_to_etcd(place: RevisionKey, tombstone: bool) -> Vec<u8> {
    let mut row = Vec::with_capacity(REVISION_BYTES + 1);
    row.extend(place.main.to_be_bytes());
    row.push(b'_');
    row.extend(u64::from(place.sub).to_be_bytes());
    if tombstone {
        row.push(b't');
    }
    row
}

/// Reads such a key; whether it is that of a tombstone.
pub(super) fn revision_from_etcd(row: &[u8]) -> Option<(RevisionKey, bool)> {
    let (place, mark) = row.split_at_checked(REVISION_BYTES)?;
    let main = i64::from_be_bytes(place[..8].try_into().ok()?);
    let sub = u64::from_be_bytes(place[9..].try_into().ok()?);
    if place[8] != b'_' || main < 0 || !matches!(mark, b"" | b"t") {
        return None;
    }
    Some((RevisionKey { main, sub: u32::try_from(sub).ok()? }, !mark.is_empty()))
}

/// A lease's value; its key is the same.
pub(super) fn lease_to_etcd(row: &[u8]) -> Option<Vec<u8>> {
    let LeaseRecord { id, ttl, remaining_ms, .. } = LeaseRecord::decode(row).ok()?;
    let remaining_ttl = remaining_ms.div_ceil(1000) as i64;
    Some(Lease { id, ttl, remaining_ttl }.encode_to_vec())
}

/// The same back. `granted` is the entry that it counts as granted by.
pub(super) fn lease_from_etcd(key: &[u8], row: &[u8], granted: u64) -> Option<Bytes> {
    let Lease { id, ttl, remaining_ttl } = Lease::decode(row).ok()?;
    if key != id.to_be_bytes() || id == 0 {
        return None;
    }
    let remaining_ms = u64::try_from(remaining_ttl).ok()?.checked_mul(1000)?;
    Some(LeaseRecord { id, ttl, remaining_ms, granted }.encode_to_vec().into())
}

/// An alarm's key, which is all there is to it. Ours is kind and member.
pub(super) fn alarm_to_etcd(key: &[u8]) -> Option<Vec<u8>> {
    let (kind, member) = key.split_first()?;
    let member_id = u64::from_be_bytes(member.try_into().ok()?);
    Some(AlarmMember { member_id, alarm: i32::from(*kind) }.encode_to_vec())
}

/// The same back.
pub(super) fn alarm_from_etcd(key: &[u8]) -> Option<Bytes> {
    let AlarmMember { member_id, alarm } = AlarmMember::decode(key).ok()?;
    let mut row = vec![u8::try_from(alarm).ok().filter(|kind| *kind > 0)?];
    row.extend(member_id.to_be_bytes());
    Some(row.into())
}

/// A member's row.
pub(super) fn member_to_etcd(row: &[u8]) -> Option<(String, Vec<u8>)> {
    let MemberRecord { id, name, peer_urls, client_urls, is_learner } = MemberRecord::decode(row).ok()?;
    let mut member = json!({ "id": id, "peerURLs": peer_urls });
    // Left out where Go leaves them out.
    let optional = [
        ("isLearner", is_learner.then_some(Value::Bool(true))),
        ("name", (!name.is_empty()).then(|| name.into())),
        ("clientURLs", (!client_urls.is_empty()).then(|| client_urls.into())),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            member[field] = value;
        }
    }
    Some((member_key(id), member.to_string().into_bytes()))
}

/// The id of a member of whom such a row is, if it votes.
pub(super) fn voter_from_etcd(key: &[u8], value: &[u8]) -> Option<Option<u64>> {
    let id = u64::from_str_radix(str::from_utf8(key).ok()?, 16).ok()?;
    let member: Value = serde_json::from_slice(value).ok()?;
    let is_learner = member.get("isLearner").and_then(Value::as_bool).unwrap_or(false);
    Some((!is_learner).then_some(id))
}

/// The key of a member, there or removed.
pub(super) fn member_key(id: u64) -> String {
    format!("{id:x}")
}

/// Raft's configuration as etcd keeps it.
pub(super) fn conf_state_to_etcd(row: &[u8]) -> Option<Vec<u8>> {
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave } = ConfState::decode(row).ok()?;
    let mut conf_state = json!({ "auto_leave": auto_leave });
    let lists = [
        ("voters", voters),
        ("learners", learners),
        ("voters_outgoing", voters_outgoing),
        ("learners_next", learners_next),
    ];
    for (field, ids) in lists {
        if !ids.is_empty() {
            conf_state[field] = ids.into();
        }
    }
    Some(conf_state.to_string().into_bytes())
}

/// Everybody who has a vote in a configuration of raft's.
pub(super) fn voters_from_etcd(value: &[u8]) -> Option<Vec<u64>> {
    let conf_state: Value = serde_json::from_slice(value).ok()?;
    let lists = ["voters", "voters_outgoing"].map(|field| conf_state.get(field).and_then(Value::as_array));
    lists.into_iter().flatten().flatten().map(Value::as_u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_those_of_etcd_3_5_1() {
        // As found in its files.
        let place = RevisionKey { main: 11, sub: 0 };
        let row = b"\0\0\0\0\0\0\0\x0b_\0\0\0\0\0\0\0\0t";
        assert_eq!(revision_to_etcd(place, true), row);
        assert_eq!(revision_from_etcd(row), Some((place, true)));
        assert_eq!(revision_from_etcd(&row[..17]), Some((place, false)));
        for bad in [&row[..16], b"\0\0\0\0\0\0\0\x0b-\0\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\x0b_\0\0\0\0\0\0\0\0x"] {
            assert_eq!(revision_from_etcd(bad), None, "{}", bad.escape_ascii());
        }

        let key = b" @\xa2$\xb9.\xde\r";
        let value = b"\x08\x8d\xbc\xbb\xc9\xcb\xc4\xa8\xa0 \x10\xe8\x07";
        let ours = lease_from_etcd(key, value, 1).unwrap();
        assert_eq!(LeaseRecord::decode(ours.clone()).unwrap().ttl, 1000);
        assert_eq!(lease_to_etcd(&ours).unwrap(), value);
        assert_eq!(lease_from_etcd(b"\0\0\0\0\0\0\0\x01", value, 1), None);

        let record = MemberRecord {
            id: 3319814642761637952,
            name: "a".into(),
            peer_urls: vec!["http://127.0.0.1:23800".into()],
            ..Default::default()
        };
        let (key, value) = member_to_etcd(&record.encode_to_vec()).unwrap();
        let text: Value = serde_json::from_slice(&value).unwrap();
        assert_eq!(key, "2e1259d415f2a040");
        assert_eq!(text, json!({ "id": 3319814642761637952u64, "peerURLs": ["http://127.0.0.1:23800"], "name": "a" }));
        assert_eq!(voter_from_etcd(key.as_bytes(), &value), Some(Some(record.id)));
        assert_eq!(voter_from_etcd(key.as_bytes(), br#"{"id":5,"isLearner":true}"#), Some(None));
        assert_eq!(voter_from_etcd(b"m1", &value), None);

        let conf_state = ConfState { voters: vec![3319814642761637952], ..Default::default() };
        let text = conf_state_to_etcd(&conf_state.encode_to_vec()).unwrap();
        let text: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(text, json!({ "voters": [3319814642761637952u64], "auto_leave": false }));
        assert_eq!(voters_from_etcd(text.to_string().as_bytes()), Some(conf_state.voters));
        assert_eq!(voters_from_etcd(br#"{"voters":[1],"voters_outgoing":[2]}"#), Some(vec![1, 2]));
        assert_eq!(voters_from_etcd(b"voters"), None);
    }

    #[test]
    fn alarms_go_there_and_back() {
        let ours = b"\x02\0\0\0\0\0\0\x01\x07";
        let theirs = alarm_to_etcd(ours).unwrap();
        assert_eq!(theirs, b"\x08\x87\x02\x10\x02");
        assert_eq!(alarm_from_etcd(&theirs).unwrap()[..], ours[..]);
        assert_eq!(alarm_from_etcd(b""), None);
        assert_eq!(alarm_from_etcd(b"\x10\x80\x02"), None);
    }

    #[test]
    fn a_rest_is_rounded_up_for_nobody_is_to_lose_a_lease_early() {
        let record = LeaseRecord { id: 5, ttl: 10, remaining_ms: 1001, granted: 9 };
        let theirs = lease_to_etcd(&record.encode_to_vec()).unwrap();
        assert_eq!(Lease::decode(&theirs[..]).unwrap().remaining_ttl, 2);
    }
}
