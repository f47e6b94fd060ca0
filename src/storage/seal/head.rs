//! PURE but for the dice: the first sector of a sealed file. The drawing is in [`super`].

use ring::aead::{Aad, Nonce};
use zeroize::Zeroizing;

use super::keys::{KEY_BYTES, KeyId, Keys, MasterKey};
use super::{Broken, Shape, random};
use crate::storage::disk::SECTOR_BYTES;

/// Bytes before the first unit: a sector, so that it is the old one or the new one after any crash.
pub(super) const HEAD_BYTES: usize = SECTOR_BYTES as usize;
const MAGIC: [u8; 8] = *b"EWSEALv1";
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

const CRC: usize = 8;
const SHAPE: usize = 12;
const KEY_ID: usize = 16;
const NONCE: usize = 24;
const DATA_KEY: usize = NONCE + NONCE_BYTES;
const END: usize = DATA_KEY + KEY_BYTES + TAG_BYTES;

/// What the units of one file are sealed under.
pub(super) type DataKey = Zeroizing<[u8; KEY_BYTES]>;

/// The head of a file that was read and whose data key was opened.
pub(super) struct Head {
    pub(super) shape: Shape,
    pub(super) data_key: DataKey,
    /// Whether the first of the keys seals it: one that is replaced can go.
    pub(super) is_newest: bool,
}

/// Whether a file that starts like this is a sealed one.
pub(super) fn is_sealed(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

impl Head {
    /// The head of a file with this data key, sealed under the first of the keys.
    ///
    /// The nonce is drawn. A key seals as many data keys as there are files and rotations: far from 2^32, up to where that is safe.
    pub(super) fn seal(keys: &Keys, shape: Shape, data_key: &DataKey) -> std::io::Result<[u8; HEAD_BYTES]> {
        let master = keys.first();
        let nonce: [u8; NONCE_BYTES] = random()?;
        let mut out = [0; HEAD_BYTES];
        out[..CRC].copy_from_slice(&MAGIC);
        out[SHAPE..KEY_ID].copy_from_slice(&shape.number().to_le_bytes());
        out[KEY_ID..NONCE].copy_from_slice(&master.id);
        out[NONCE..DATA_KEY].copy_from_slice(&nonce);
        let (about, sealed) = (about(&out), &mut out[DATA_KEY..END]);
        sealed[..KEY_BYTES].copy_from_slice(&data_key[..]);
        let tag = master.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(about),
            &mut sealed[..KEY_BYTES],
        );
        sealed[KEY_BYTES..].copy_from_slice(tag.expect("a key is short").as_ref());
        let crc = crc32c::crc32c(&out[SHAPE..]);
        out[CRC..SHAPE].copy_from_slice(&crc.to_le_bytes());
        Ok(out)
    }

    /// What the first bytes of a file say, to who has the right key.
    pub(super) fn open(start: &[u8], keys: &Keys) -> Result<Head, Broken> {
        let damaged = |what| Broken::Damaged { offset: 0, what };
        if !is_sealed(start) {
            return Err(if PLAIN.iter().any(|plain| start.starts_with(plain)) {
                Broken::Plain
            } else {
                damaged("neither an encrypted file nor one that is not")
            });
        }
        let bytes = start.first_chunk::<HEAD_BYTES>().ok_or(damaged("shorter than the head of an encrypted file"))?;
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if number(CRC) != crc32c::crc32c(&bytes[SHAPE..]) {
            return Err(damaged("the checksum of an encrypted file's head does not match"));
        }
        let shape = Shape::of(number(SHAPE)).ok_or(damaged("an encrypted file of an unknown shape"))?;
        let id: KeyId = bytes[KEY_ID..NONCE].try_into().expect("it has that length");
        let master = keys.find(&id).ok_or_else(|| Broken::UnknownKey { keys: keys.path().to_owned() })?;
        let data_key = unseal(bytes, master).ok_or(damaged("the key in an encrypted file's head cannot be opened"))?;
        Ok(Head { shape, data_key, is_newest: id == keys.first().id })
    }
}

/// How files of ours start that are not sealed: a segment of the log, the engine's.
const PLAIN: [&[u8]; 2] = [b"EWSEG", b"redb"];

/// What the tag vouches for besides the data key.
fn about(head: &[u8; HEAD_BYTES]) -> [u8; 12] {
    head[SHAPE..NONCE].try_into().expect("it has that length")
}

fn unseal(head: &[u8; HEAD_BYTES], master: &MasterKey) -> Option<DataKey> {
    let nonce = Nonce::try_assume_unique_for_key(&head[NONCE..DATA_KEY]).ok()?;
    let mut sealed = Zeroizing::new([0; KEY_BYTES + TAG_BYTES]);
    sealed.copy_from_slice(&head[DATA_KEY..END]);
    let opened = master.key.open_in_place(nonce, Aad::from(about(head)), &mut sealed[..]).ok()?;
    let mut data_key = DataKey::default();
    data_key.copy_from_slice(opened);
    Some(data_key)
}
