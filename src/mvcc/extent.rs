//! How much there is of a range: the keys that exist, and the bytes of their newest key-values.
//!
//! It is counted in slices between which others write, so it is the truth of no single revision; for charts that is enough. History
//! is left out, and so are rows beyond 16 MiB, whose length the index does not know.

use super::store::Store;
use crate::types::{KeyRange, Revision};

/// An extent that is being counted: [`Store::extent_more`] until there is no more.
#[derive(Debug)]
pub struct Extent {
    range: KeyRange,
    /// The last key that is counted.
    after: Option<Box<[u8]>>,
    /// Keys that exist.
    pub keys: u64,
    /// Bytes of their key-values.
    pub bytes: u64,
}

impl Extent {
    /// Of this range; nothing is counted yet.
    pub fn of(range: KeyRange) -> Extent {
        Extent { range, after: None, keys: 0, bytes: 0 }
    }
}

impl Store {
    /// Counts `keys_max` keys more. Says whether there are others.
    pub fn extent_more(&self, extent: &mut Extent, keys_max: usize) -> bool {
        let Extent { range, after, keys, bytes } = extent;
        *after = self.index.walk(range, after.as_deref(), keys_max, |_, entry| {
            if let Some((_, record_bytes)) = entry.find(Revision(i64::MAX)) {
                *keys += 1;
                *bytes += u64::from(record_bytes.unwrap_or(0));
            }
            true
        });
        after.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};
    use crate::storage::backend::Backend;
    use crate::storage::backend::memory::MemoryBackend;

    #[test]
    fn what_exists_under_a_prefix_is_counted_in_slices_of_any_size() {
        let (mut store, _) = Store::open(MemoryBackend::default().reader().expect("memory")).expect("an empty store");
        let mut put = |key: &str, value: usize| {
            let put = PutRequest { key: key.to_owned().into(), value: vec![0; value].into(), ..Default::default() };
            store.put(&put).expect("there is room");
        };
        for key in ["a", "p/1", "p/2", "p/3", "p0", "q"] {
            put(key, 1000);
        }
        put("p/1", 10);
        store.delete_range(&DeleteRangeRequest { key: "p/2".into(), ..Default::default() }).expect("it exists");
        for slice in [1, 2, usize::MAX] {
            let mut extent = Extent::of(KeyRange::prefix("p/".into()));
            while store.extent_more(&mut extent, slice) {}
            assert_eq!(extent.keys, 2, "{slice}");
            assert!((1010..1100).contains(&extent.bytes), "{}", extent.bytes);
        }
    }
}
