//! The smallest backend: a map. Its clones are its readers.

use std::collections::BTreeMap;

use bytes::Bytes;
use everwatch::storage::Result;
use everwatch::storage::backend::{Batch, Bucket, Reader};

/// All rows.
#[derive(Clone, Default)]
pub(crate) struct Rows(BTreeMap<(Bucket, Bytes), Bytes>);

impl Rows {
    pub(crate) fn commit(&mut self, batch: &Batch) {
        for (bucket, key, value) in &batch.rows {
            match value {
                Some(value) => self.0.insert((*bucket, key.clone()), value.clone()),
                None => self.0.remove(&(*bucket, key.clone())),
            };
        }
    }
}

impl Reader for Rows {
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.get(&(bucket, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(
        &self,
        bucket: Bucket,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<()> {
        for ((_, key), value) in self
            .0
            .range((bucket, Bytes::copy_from_slice(from))..)
            .take_while(|((b, key), _)| *b == bucket && to.is_none_or(|to| key.as_ref() < to))
        {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
