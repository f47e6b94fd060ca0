//! The file format of bbolt, the store that etcd keeps its data in: as much of it as backups need.
//!
//! ```text
//! page 0, page 1   meta: page size, the root's page, how many pages there are, a checksum. The valid one with the higher txid counts
//! page 2 …         freelist · leaf pages (rows, or buckets) · branch pages (first key of each child, and its page)
//!
//! page             id 8 · flags 2 · count 2 · overflow 4 · elements, 16 bytes each · keys and values     all little endian
//! leaf element     flags 4 (1: a bucket) · pos 4 · key bytes 4 · value bytes 4       pos counts from the element itself
//! branch element   pos 4 · key bytes 4 · page 8
//! bucket           root page 8 · sequence 8; root 0: its only page follows right there
//! ```
//!
//! What does not fit into one page overflows into those behind it, which have no header of their own. The root is a bucket whose
//! rows are buckets; etcd has no buckets inside those.
//!
//! [`Writer`] makes a fresh file from rows in order, in one pass and with one page per level of the tree in memory; where the root is,
//! which stands at the file's beginning, is known at the end ([`Layout`]). [`Reader`] takes files of anybody: whatever the bytes are it
//! ends, with rows or with an error, and holds one page and the numbers of the pages above it.
//!
//! Deliberately missing: changing a file, and the freelist, which only matters to those who do.

mod reader;
mod writer;

pub use reader::{Bucket, Damage, Reader};
pub use writer::{Layout, Writer};

/// Bytes of a page that we write. (bbolt takes the system's page size, and reads any.)
const PAGE_BYTES: usize = 4096;
/// Bytes before a page's elements.
const HEADER_BYTES: usize = 16;
/// Bytes of an element, before keys and values.
const ELEMENT_BYTES: usize = 16;
/// Bytes of a meta page's content, the checksum of those before it included.
const META_BYTES: usize = 64;
const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREELIST: u16 = 0x10;
/// Of a leaf element: its value is a bucket.
const IS_BUCKET: u32 = 1;

/// FNV-1a, 64 bits: what guards a meta page.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
