//! Where one change lives: the revision of its write and its place inside that write.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::Revision;

/// Main revision and position inside it. Ordered as the changes happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RevisionKey {
    /// The write.
    pub main: i64,
    /// 0 for the first change of the write, then 1, 2, …
    pub sub: u32,
}

impl RevisionKey {
    /// The write this change belongs to.
    pub fn revision(self) -> Revision {
        Revision(self.main)
    }

    /// The row key in `Bucket::Key`; orders as the changes happened.
    pub fn row(self, tombstone: bool) -> Bytes {
        let mut row = BytesMut::with_capacity(13);
        row.put_i64(self.main);
        row.put_u32(self.sub);
        if tombstone {
            row.put_u8(b't');
        }
        row.freeze()
    }

    /// Reads a row key back: the place, and whether it is a tombstone. `None` when it is not a row key.
    pub fn from_row(row: &[u8]) -> Option<(RevisionKey, bool)> {
        let tombstone = match row.len() {
            12 => false,
            13 if row[12] == b't' => true,
            _ => return None,
        };
        let main = i64::from_be_bytes(row[..8].try_into().ok()?);
        let sub = u32::from_be_bytes(row[8..12].try_into().ok()?);
        Some((RevisionKey { main, sub }, tombstone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_order_as_revisions_and_read_back() {
        let places = [(1, 0), (1, 1), (2, 0), (256, 7), (i64::MAX, u32::MAX)];
        let rows: Vec<_> = places.iter().map(|&(main, sub)| RevisionKey { main, sub }.row(sub == 1)).collect();
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]));
        for (row, &(main, sub)) in rows.iter().zip(&places) {
            assert_eq!(RevisionKey::from_row(row), Some((RevisionKey { main, sub }, sub == 1)));
        }
        assert_eq!(RevisionKey::from_row(b"short"), None);
        assert_eq!(RevisionKey::from_row(&[0; 13]), None);
    }
}
