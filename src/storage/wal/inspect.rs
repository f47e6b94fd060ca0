//! A log as it lies on disk, for who only looks: nothing is repaired, cut off or made, and damage is told, not refused.
//!
//! The reading is that of `replay`, and so is the judgement of how the log ends. What stands before a damaged
//! place is what it was when it was written; what stands behind it is not read.

use std::fs;
use std::path::{Path, PathBuf};

use super::segment::{self, SegmentHeader, io};
use super::{Replayed, next, replay};
use crate::storage::seal::{self, Keys};
use crate::storage::{Error, Result, disk};
use crate::types::{ClusterId, MemberId};

/// What was found.
#[derive(Debug, Default)]
pub struct Inspected {
    /// Whose log it is.
    pub identity: Option<(ClusterId, MemberId)>,
    /// The segments in use.
    pub segments: usize,
    /// What the records add up to, as far as they could be read.
    pub log: Replayed,
    /// Why nothing more was read.
    pub damage: Option<Error>,
    /// What a crash left at the end: the next start of a member removes it.
    pub torn: Option<Torn>,
}

/// Traces of records that were never finished, so never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub path: PathBuf,
    /// Where the log ends in it.
    pub offset: u64,
    /// Bytes from there on that are not empty.
    pub bytes: u64,
}

/// Looks at the log in `dir`, sealed with one of the keys if there are any. An error says that it could not even be begun.
pub fn inspect(dir: &Path, keys: Option<&Keys>) -> Result<Inspected> {
    let names = fs::read_dir(dir).and_then(|names| names.collect::<std::io::Result<Vec<_>>>());
    let names = names.map_err(|e| io("listing", dir, e))?;
    let mut sequences: Vec<u64> =
        names.iter().filter_map(|name| segment::sequence_of(name.file_name().to_str()?)).collect();
    sequences.sort_unstable();
    let mut found = Inspected { segments: sequences.len(), ..Inspected::default() };
    let mut state = replay::State::default();
    found.damage = read(dir, keys, &sequences, &mut found, &mut state).err();
    if found.damage.is_none() && state.floor > state.base.index {
        let what = format!("entries {} to {} are missing before it", next(state.base.index), state.floor);
        found.damage = Some(Error::Corrupt { path: dir.join(segment::name(sequences[0])), offset: 0, what });
    }
    found.log = Replayed { base: state.base, hard_state: state.hard_state, entries: state.entries.into() };
    Ok(found)
}

fn read(
    dir: &Path,
    keys: Option<&Keys>,
    sequences: &[u64],
    found: &mut Inspected,
    state: &mut replay::State,
) -> Result<()> {
    let sector = seal::sector_bytes(keys);
    let segment = |sequence: u64| -> Result<(PathBuf, Vec<u8>, SegmentHeader)> {
        let path = dir.join(segment::name(sequence));
        let file = seal::look(&path, keys)?;
        let data = disk::read_all(&*file).map_err(|e| io("reading", &path, e))?;
        match SegmentHeader::decode(&data) {
            Ok(header) if header.sequence == sequence => Ok((path, data, header)),
            Ok(header) => {
                let what = format!("is segment {}, where segment {sequence} belongs", header.sequence);
                Err(Error::Corrupt { path, offset: 16, what })
            }
            Err(what) => Err(Error::Corrupt { path, offset: 0, what: what.to_owned() }),
        }
    };
    // One behind, for the next one's header says where this one ends.
    let mut ahead = sequences.first().map(|first| segment(*first)).transpose()?;
    for follows in sequences.iter().skip(1).map(Some).chain([None]) {
        let Some((path, data, header)) = ahead.take() else { return Ok(()) };
        let identity = (header.cluster, header.member);
        if *found.identity.get_or_insert(identity) != identity {
            let what = format!("belongs to member {} of cluster {}, unlike those before", identity.1, identity.0);
            return Err(Error::Corrupt { path, offset: 24, what });
        }
        let following = follows.map(|sequence| {
            if *sequence == header.sequence + 1 {
                return segment(*sequence);
            }
            let what = format!("is segment {sequence}, where segment {} belongs", header.sequence + 1);
            Err(Error::Corrupt { path: dir.join(segment::name(*sequence)), offset: 16, what })
        });
        let until = match &following {
            Some(Ok((_, _, next))) => Some(next.previous_end),
            // Read as the last one it is shown to its end; what is wrong with the next one is said afterwards.
            Some(Err(_)) | None => None,
        };
        let end = replay::read_segment(&path, &data, &header, until, sector, state);
        let following = following.transpose()?;
        let end = end?;
        match &following {
            Some((next_path, _, next)) if next.chain != end.chain => {
                let what = "does not continue the segment before it".to_owned();
                return Err(Error::Corrupt { path: next_path.clone(), offset: 48, what });
            }
            None if end.traces_to > end.position && leaves_traces(&data, end.position, &header) => {
                let (offset, bytes) = (end.position, end.traces_to - end.position);
                found.torn = Some(Torn { path, offset, bytes });
            }
            _ => {}
        }
        ahead = following;
    }
    Ok(())
}

/// Whether what stands behind the end is more than the seal that every sync leaves there.
fn leaves_traces(data: &[u8], at: u64, header: &SegmentHeader) -> bool {
    let rest = data.get(at as usize..).unwrap_or_default();
    let seal = super::Header::decode(rest, at, &header.place()).filter(|found| found.kind != super::Kind::Record);
    let behind = seal.map_or(0, |_| super::HEADER_BYTES).min(rest.len());
    if header.recycled {
        // Old bytes stand there; only a header that is valid here was written in this use.
        return seal.is_none() && super::Header::decode(rest, at, &header.place()).is_some();
    }
    rest[behind..].iter().any(|byte| *byte != 0)
}
