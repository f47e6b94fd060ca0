//! What stands in the raft log: proposals of commands, and how they are written and read.
//!
//! A raft entry is one [`Proposal`]: everything its proposer had waiting in one turn, so that raft, the log and the followers
//! pay once for many clients. Its bytes are the protobuf message; the proposer never builds it whole, it strings together
//! commands that were encoded where they were made.
//!
//! What changes raft's configuration is the exception: such an entry is raft's own kind, its payload is raft's, and it holds one
//! [`Reconfiguration`] in its context.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::auth::Asker;
pub use crate::pb::everwatchpb::command::Kind;
pub use crate::pb::everwatchpb::reconfiguration::Change;
pub use crate::pb::everwatchpb::{
    AuthChange, Authenticate, Command, LeaseExpire, LeaseRemaining, MemberAdd, MemberPeerUrls, MemberPromote,
    MemberRemove, Proposal, Reconfiguration,
};

/// Field 1 and field 2 of `Proposal`, varints.
const PROPOSER_TAG: u8 = 1 << 3;
const BOOT_TAG: u8 = 2 << 3;
/// Field 3 of `Proposal`, length-delimited.
const COMMANDS_TAG: u8 = 3 << 3 | 2;
/// The longest that the first two fields get.
const HEAD_BYTES_MAX: usize = 2 * (1 + 10);

/// A raft entry in the making.
#[derive(Debug)]
pub struct ProposalWriter {
    buffer: BytesMut,
}

impl ProposalWriter {
    /// An entry of this proposer, in this life of its process, with room for `capacity` bytes of commands.
    pub fn new(proposer: u64, boot: u64, capacity: usize) -> ProposalWriter {
        let mut buffer = BytesMut::with_capacity(capacity + HEAD_BYTES_MAX);
        buffer.put_u8(PROPOSER_TAG);
        encode_varint(proposer, &mut buffer);
        buffer.put_u8(BOOT_TAG);
        encode_varint(boot, &mut buffer);
        ProposalWriter { buffer }
    }

    /// Adds a command that was encoded with [`encode_command`].
    pub fn push(&mut self, command: &[u8]) {
        self.buffer.put_slice(command);
    }

    /// The entry's payload.
    pub fn finish(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// A command in the form in which it is strung into a proposal.
pub fn encode_command(command: &Command) -> Bytes {
    let len = command.encoded_len();
    let mut out = BytesMut::with_capacity(1 + encoded_len_varint(len as u64) + len);
    out.put_u8(COMMANDS_TAG);
    encode_varint(len as u64, &mut out);
    command.encode_raw(&mut out);
    out.freeze()
}

/// Reads an entry's payload. An error means that the entry was written by something else than this code: the member that
/// meets one stops, for guessing would fork the state.
pub fn decode_proposal(payload: Bytes) -> Result<Proposal, prost::DecodeError> {
    Proposal::decode(payload)
}

/// The context of an entry that changes who belongs.
pub fn encode_reconfiguration(reconfiguration: &Reconfiguration) -> Bytes {
    reconfiguration.encode_to_vec().into()
}

/// Reads such a context; an error means the same as that of [`decode_proposal`].
pub fn decode_reconfiguration(context: Bytes) -> Result<Reconfiguration, prost::DecodeError> {
    Reconfiguration::decode(context)
}

impl Command {
    /// What `asker` wants done. The proposer knows it by this number; 0: nobody waits for it.
    pub fn new(id: u64, asker: Asker<'_>, kind: Kind) -> Command {
        let (user, auth_revision) = match asker {
            Asker::User { name, revision } => (name.to_owned(), revision),
            Asker::Member | Asker::Nobody => (String::new(), 0),
        };
        Command { id, user, auth_revision, by_member: asker == Asker::Member, kind: Some(kind) }
    }

    /// Who wants it done.
    pub fn asker(&self) -> Asker<'_> {
        match self.user.as_str() {
            _ if self.by_member => Asker::Member,
            "" => Asker::Nobody,
            name => Asker::User { name, revision: self.auth_revision },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::PutRequest;

    #[test]
    fn strung_commands_read_back_as_one_proposal() {
        let command = |id| {
            let put = PutRequest { key: "k".into(), value: vec![id as u8; 200].into(), ..Default::default() };
            Command { id, kind: Some(Kind::Put(put)), ..Default::default() }
        };
        let mut writer = ProposalWriter::new(u64::MAX, 7, 0);
        writer.push(&encode_command(&command(1)));
        writer.push(&encode_command(&command(2)));
        let proposal = Proposal { proposer: u64::MAX, boot: 7, commands: vec![command(1), command(2)] };
        assert_eq!(decode_proposal(writer.finish()), Ok(proposal));
    }
}
