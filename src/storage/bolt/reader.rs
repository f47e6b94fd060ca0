//! A file of anybody to rows.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use super::{BRANCH, ELEMENT_BYTES, HEADER_BYTES, IS_BUCKET, LEAF, MAGIC, META, META_BYTES, VERSION, checksum};

/// Page sizes that there are: bbolt takes the system's.
const PAGE_BYTES_MIN: u64 = 512;
const PAGE_BYTES_MAX: u64 = 65536;

/// Levels of a tree. Each has at least twice as many pages as the one above, so a sound file never has as many.
const LEVELS_MAX: usize = 64;

/// Why a file cannot be read, or not to its end.
#[derive(Debug)]
pub enum Damage {
    /// The operating system refused.
    Io(io::Error),
    /// The bytes are not those of a sound file.
    Bytes {
        /// Where in the file, at the beginning of the page.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Io(error) => error.fmt(f),
            Damage::Bytes { offset, what } => write!(f, "damaged at byte {offset}: {what}"),
        }
    }
}

impl std::error::Error for Damage {}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Damage {
        Damage::Io(error)
    }
}

/// A bucket found in a file.
#[derive(Clone, Debug)]
pub struct Bucket {
    root: Root,
}

#[derive(Clone, Debug)]
enum Root {
    /// The page where it begins.
    Page(u64),
    /// Its only page, which lies inside the row of the bucket, and that row's place in the file.
    Inline { page: Vec<u8>, offset: u64 },
}

/// A file.
pub struct Reader<S> {
    source: S,
    bytes: u64,
    page_bytes: u64,
    /// Pages that are in use or were.
    pages: u64,
    buckets: BTreeMap<Vec<u8>, Bucket>,
}

impl<S: Read + Seek> Reader<S> {
    /// Finds the meta page that counts, and the buckets.
    pub fn open(mut source: S) -> Result<Reader<S>, Damage> {
        let bytes = source.seek(SeekFrom::End(0))?;
        let meta = newest_meta(&mut source, bytes)?;
        let mut reader =
            Reader { source, bytes, page_bytes: meta.page_bytes, pages: meta.pages, buckets: BTreeMap::new() };
        let mut buckets = BTreeMap::new();
        reader.walk(&Root::Page(meta.root), &mut |offset, flags, name, value| {
            if flags & IS_BUCKET == 0 {
                return Err(bytes_at(offset, "a row of the root is no bucket"));
            }
            let Some((root, rest)) = value.split_first_chunk::<8>() else {
                return Err(bytes_at(offset, "a bucket is too short"));
            };
            let root = match (u64::from_le_bytes(*root), rest.get(8..)) {
                (_, None) => return Err(bytes_at(offset, "a bucket is too short")),
                (0, Some(page)) => Root::Inline { page: page.to_vec(), offset },
                (page, Some(_)) => Root::Page(page),
            };
            buckets.insert(name.to_vec(), Bucket { root });
            Ok(true)
        })?;
        reader.buckets = buckets;
        Ok(reader)
    }

    /// The buckets by name.
    pub fn buckets(&self) -> &BTreeMap<Vec<u8>, Bucket> {
        &self.buckets
    }

    /// Bytes that the file has to have: all its pages. Others may follow.
    pub fn size(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// Visits the rows of a bucket in the order of their keys until `visit` returns false. A file without the bucket has no rows of it.
    pub fn scan(&mut self, bucket: &str, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Damage> {
        let Some(Bucket { root }) = self.buckets.get(bucket.as_bytes()).cloned() else { return Ok(()) };
        self.walk(&root, &mut |offset, flags, key, value| match flags & IS_BUCKET {
            0 => Ok(visit(key, value)),
            _ => Err(bytes_at(offset, "there is a bucket inside a bucket")),
        })
    }

    /// Visits the elements of all leaves of a tree, from left to right. It ends: no tree has more pages than the file.
    fn walk(&mut self, root: &Root, visit: &mut Visit<'_>) -> Result<(), Damage> {
        let mut last_key = None;
        let root = match root {
            Root::Inline { page, offset } => {
                return match Page::parse(page, *offset)? {
                    page if page.flags == LEAF => page.visit(&mut last_key, visit).map(drop),
                    _ => Err(bytes_at(*offset, "the page of a bucket inside its row is no leaf")),
                };
            }
            Root::Page(page) => *page,
        };
        // What is to be visited on each level, last first.
        let mut levels = vec![vec![root]];
        let mut pages_left = self.pages;
        while let Some(level) = levels.last_mut() {
            let Some(id) = level.pop() else {
                levels.pop();
                continue;
            };
            let (offset, bytes) = self.page(id)?;
            let pages = bytes.len() as u64 / self.page_bytes;
            pages_left =
                pages_left.checked_sub(pages).ok_or_else(|| bytes_at(offset, "pages lie in more than one place"))?;
            let page = Page::parse(&bytes, offset)?;
            if page.flags == LEAF {
                if !page.visit(&mut last_key, visit)? {
                    return Ok(());
                }
                continue;
            }
            if levels.len() == LEVELS_MAX {
                return Err(bytes_at(offset, "there are too many levels of pages"));
            }
            let mut children = page.children()?;
            children.reverse();
            levels.push(children);
        }
        Ok(())
    }

    /// A page, with what it overflows into, and where it is.
    fn page(&mut self, id: u64) -> Result<(u64, Vec<u8>), Damage> {
        let Some(offset) = id.checked_mul(self.page_bytes).filter(|_| (2..self.pages).contains(&id)) else {
            return Err(bytes_at(0, "a page is named that there is not"));
        };
        if self.bytes.saturating_sub(offset) < self.page_bytes {
            return Err(bytes_at(offset, "the file ends before this page"));
        }
        let mut bytes = vec![0; self.page_bytes as usize];
        self.source.seek(SeekFrom::Start(offset))?;
        self.source.read_exact(&mut bytes)?;
        let (number, overflow) = (u64_at(&bytes, 0), u32_at(&bytes, 12));
        if number != id {
            return Err(bytes_at(offset, "the page says it is another one"));
        }
        let pages = 1 + u64::from(overflow);
        let whole = pages.checked_mul(self.page_bytes).filter(|_| pages <= self.pages - id);
        let Some(whole) = whole.filter(|whole| *whole <= self.bytes - offset) else {
            return Err(bytes_at(offset, "the page is longer than the file"));
        };
        // The file is at least as long.
        bytes.resize(whole as usize, 0);
        self.source.read_exact(&mut bytes[self.page_bytes as usize..])?;
        Ok((offset, bytes))
    }
}

/// Offset of the page, flags of the element, key, value; whether to go on.
type Visit<'a> = dyn FnMut(u64, u32, &[u8], &[u8]) -> Result<bool, Damage> + 'a;

/// A page whose elements are within it.
struct Page<'a> {
    bytes: &'a [u8],
    offset: u64,
    flags: u16,
    count: usize,
}

impl<'a> Page<'a> {
    fn parse(bytes: &'a [u8], offset: u64) -> Result<Page<'a>, Damage> {
        if bytes.len() < HEADER_BYTES {
            return Err(bytes_at(offset, "the page is too short"));
        }
        let (flags, count) = (u16_at(bytes, 8), usize::from(u16_at(bytes, 10)));
        if flags != LEAF && flags != BRANCH {
            return Err(bytes_at(offset, "the page is neither a leaf nor a branch"));
        }
        if HEADER_BYTES + count * ELEMENT_BYTES > bytes.len() {
            return Err(bytes_at(offset, "the page has more elements than room for them"));
        }
        Ok(Page { bytes, offset, flags, count })
    }

    /// Where the elements begin.
    fn places(&self) -> impl Iterator<Item = usize> {
        (0..self.count).map(|n| HEADER_BYTES + n * ELEMENT_BYTES)
    }

    fn visit(&self, last_key: &mut Option<Vec<u8>>, visit: &mut Visit<'_>) -> Result<bool, Damage> {
        for place in self.places() {
            let [flags, pos, key_bytes, value_bytes] = [0, 4, 8, 12].map(|field| u32_at(self.bytes, place + field));
            let from = place + pos as usize;
            let taken = self.bytes.get(from..).and_then(|rest| rest.split_at_checked(key_bytes as usize));
            let Some((key, rest)) = taken.filter(|(_, rest)| rest.len() >= value_bytes as usize) else {
                return Err(bytes_at(self.offset, "a row lies outside its page"));
            };
            if last_key.as_deref().is_some_and(|last| last >= key) {
                return Err(bytes_at(self.offset, "keys are not in order"));
            }
            let last = last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            if !visit(self.offset, flags, key, &rest[..value_bytes as usize])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn children(&self) -> Result<Vec<u64>, Damage> {
        if self.count == 0 {
            return Err(bytes_at(self.offset, "a branch has no children"));
        }
        Ok(self.places().map(|place| u64_at(self.bytes, place + 8)).collect())
    }
}

struct Meta {
    page_bytes: u64,
    root: u64,
    pages: u64,
    txid: u64,
}

/// The valid meta page of the last transaction. The second lies one page behind the first, which may not be able to say how far that is.
fn newest_meta<S: Read + Seek>(source: &mut S, bytes: u64) -> Result<Meta, Damage> {
    let first = meta_at(source, 0, bytes)?;
    let mut second = None;
    let mut page_bytes = PAGE_BYTES_MIN;
    while page_bytes <= PAGE_BYTES_MAX && second.is_none() {
        second = meta_at(source, page_bytes, bytes)?.filter(|meta| meta.page_bytes == page_bytes);
        page_bytes *= 2;
    }
    let second = second.filter(|second| first.as_ref().is_none_or(|first| first.page_bytes == second.page_bytes));
    let newest = first.into_iter().chain(second).max_by_key(|meta| meta.txid);
    newest.ok_or_else(|| bytes_at(0, "this is not a bbolt file, or neither of its meta pages is whole"))
}

/// The meta page at this place, if it is one and whole.
fn meta_at<S: Read + Seek>(source: &mut S, offset: u64, bytes: u64) -> Result<Option<Meta>, Damage> {
    let mut page = [0; HEADER_BYTES + META_BYTES];
    if bytes.saturating_sub(offset) < page.len() as u64 {
        return Ok(None);
    }
    source.seek(SeekFrom::Start(offset))?;
    source.read_exact(&mut page)?;
    let meta = &page[HEADER_BYTES..];
    let page_bytes = u64::from(u32_at(meta, 8));
    let whole = u16_at(&page, 8) & META != 0
        && (u32_at(meta, 0), u32_at(meta, 4)) == (MAGIC, VERSION)
        && u64_at(meta, META_BYTES - 8) == checksum(&meta[..META_BYTES - 8])
        && page_bytes.is_power_of_two()
        && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
    let pages = u64_at(meta, 40);
    // So that offsets can be computed. No disk holds as much.
    let countable = pages.checked_mul(page_bytes).is_some();
    Ok((whole && countable).then(|| Meta { page_bytes, root: u64_at(meta, 16), pages, txid: u64_at(meta, 48) }))
}

fn bytes_at(offset: u64, what: &'static str) -> Damage {
    Damage::Bytes { offset, what }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
