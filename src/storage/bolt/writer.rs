//! Rows in order to a fresh file.

use std::io::{self, Write};

use super::{
    BRANCH, ELEMENT_BYTES, FREELIST, HEADER_BYTES, IS_BUCKET, LEAF, MAGIC, META, META_BYTES, PAGE_BYTES, VERSION,
    checksum,
};

/// The longest key and value that bbolt takes.
const KEY_BYTES_MAX: usize = 32768;
const VALUE_BYTES_MAX: usize = (1 << 31) - 2;

/// The freelist's page; what the writer makes comes from there on.
const FREELIST_PAGE: u64 = 2;

/// Where things have come to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    root: u64,
    pages: u64,
}

impl Layout {
    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES as u64
    }

    /// The two meta pages, which come before what the writer wrote.
    pub fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(2 * PAGE_BYTES);
        for page in 0..2u64 {
            head.extend(header(page, META, 0, 0));
            let meta = head.len();
            for number in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
                head.extend(number.to_le_bytes());
            }
            // Root and its sequence, freelist, pages, transaction.
            for number in [self.root, 0, FREELIST_PAGE, self.pages, page] {
                head.extend(number.to_le_bytes());
            }
            debug_assert_eq!(head.len() - meta, META_BYTES - 8);
            head.extend(checksum(&head[meta..]).to_le_bytes());
            head.resize((page as usize + 1) * PAGE_BYTES, 0);
        }
        head
    }
}

/// Writes everything behind the two meta pages. Buckets come one after the other, each with its rows in the order of their keys.
pub struct Writer<W> {
    out: W,
    next_page: u64,
    /// Of the bucket under way: the page that is being filled on each level, leaves first.
    levels: Vec<Page>,
    name: Vec<u8>,
    last_key: Option<Vec<u8>>,
    /// Names and root pages of those that are finished.
    finished: Vec<(Vec<u8>, u64)>,
}

impl<W: Write> Writer<W> {
    /// Begins with no bucket.
    pub fn new(mut out: W) -> io::Result<Writer<W>> {
        let mut page = header(FREELIST_PAGE, FREELIST, 0, 0).to_vec();
        page.resize(PAGE_BYTES, 0);
        out.write_all(&page)?;
        Ok(Writer {
            out,
            next_page: FREELIST_PAGE + 1,
            levels: Vec::new(),
            name: Vec::new(),
            last_key: None,
            finished: Vec::new(),
        })
    }

    /// The rows of this bucket follow. Of no other name may there be two.
    pub fn bucket(&mut self, name: &str) -> io::Result<()> {
        self.end_bucket()?;
        if name.is_empty() || self.finished.iter().any(|(other, _)| other == name.as_bytes()) {
            return Err(refused("a bucket has no name, or one that is taken"));
        }
        self.name = name.as_bytes().to_vec();
        self.levels.push(Page::default());
        Ok(())
    }

    /// The next row of the bucket.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.levels.is_empty() {
            return Err(refused("a row belongs to no bucket"));
        }
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(refused("a key or value is too long, or a key is empty"));
        }
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(refused("keys are not in order"));
        }
        let last = self.last_key.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key);
        self.add_row(key, value, 0)
    }

    /// The last row has been given.
    pub fn finish(mut self) -> io::Result<(W, Layout)> {
        self.end_bucket()?;
        self.finished.sort();
        self.levels.push(Page::default());
        for (name, root) in std::mem::take(&mut self.finished) {
            let mut bucket = [0; 16];
            bucket[..8].copy_from_slice(&root.to_le_bytes());
            self.add_row(&name, &bucket, IS_BUCKET)?;
        }
        let root = self.end_tree()?;
        Ok((self.out, Layout { root, pages: self.next_page }))
    }

    fn end_bucket(&mut self) -> io::Result<()> {
        if !self.levels.is_empty() {
            let root = self.end_tree()?;
            self.finished.push((std::mem::take(&mut self.name), root));
            self.last_key = None;
        }
        Ok(())
    }

    fn add_row(&mut self, key: &[u8], value: &[u8], flags: u32) -> io::Result<()> {
        self.make_room(0, key.len() + value.len())?;
        self.levels[0].add_row(key, value, flags);
        Ok(())
    }

    /// Writes the page of a level if so many bytes more would not fit into it. A branch of one child would not make the tree narrower.
    fn make_room(&mut self, level: usize, bytes: usize) -> io::Result<()> {
        let page = &self.levels[level];
        let least = if level == 0 { 1 } else { 2 };
        if page.elements.len() >= least && page.bytes() + ELEMENT_BYTES + bytes > PAGE_BYTES {
            self.write_page(level)?;
        }
        Ok(())
    }

    /// Writes the page of a level; the level above learns of it.
    fn write_page(&mut self, level: usize) -> io::Result<()> {
        let page = std::mem::take(&mut self.levels[level]);
        let first_key = page.first_key();
        let id = self.put(level, &page)?;
        if self.levels.len() == level + 1 {
            self.levels.push(Page::default());
        }
        self.make_room(level + 1, first_key.len())?;
        self.levels[level + 1].add_child(&first_key, id);
        Ok(())
    }

    fn put(&mut self, level: usize, page: &Page) -> io::Result<u64> {
        let id = self.next_page;
        let bytes = page.encode(id, if level == 0 { LEAF } else { BRANCH });
        self.out.write_all(&bytes)?;
        self.next_page += (bytes.len() / PAGE_BYTES) as u64;
        Ok(id)
    }

    /// Writes what is left of the tree; its root page.
    fn end_tree(&mut self) -> io::Result<u64> {
        let mut level = 0;
        while level + 1 < self.levels.len() {
            // A page is written only to make room for what comes into it next, so it is not empty.
            self.write_page(level)?;
            level += 1;
        }
        let top = std::mem::take(&mut self.levels[level]);
        let root = self.put(level, &top)?;
        self.levels.clear();
        Ok(root)
    }
}

/// A page that is being filled.
#[derive(Default)]
struct Page {
    elements: Vec<Element>,
    /// Keys and values, in the order of the elements.
    data: Vec<u8>,
}

struct Element {
    key_bytes: u32,
    content: Content,
}

enum Content {
    Row { flags: u32, value_bytes: u32 },
    Child(u64),
}

impl Page {
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.data.len()
    }

    fn add_row(&mut self, key: &[u8], value: &[u8], flags: u32) {
        let content = Content::Row { flags, value_bytes: value.len() as u32 };
        self.elements.push(Element { key_bytes: key.len() as u32, content });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn add_child(&mut self, key: &[u8], page: u64) {
        self.elements.push(Element { key_bytes: key.len() as u32, content: Content::Child(page) });
        self.data.extend_from_slice(key);
    }

    fn first_key(&self) -> Vec<u8> {
        self.data[..self.elements[0].key_bytes as usize].to_vec()
    }

    /// The page and those that it overflows into.
    fn encode(&self, id: u64, flags: u16) -> Vec<u8> {
        let pages = self.bytes().div_ceil(PAGE_BYTES);
        let mut page = Vec::with_capacity(pages * PAGE_BYTES);
        page.extend(header(id, flags, self.elements.len() as u16, (pages - 1) as u32));
        let mut at = HEADER_BYTES + self.elements.len() * ELEMENT_BYTES;
        for element in &self.elements {
            let pos = (at - page.len()) as u32;
            at += element.key_bytes as usize;
            let key_bytes = element.key_bytes.to_le_bytes();
            match element.content {
                Content::Row { flags, value_bytes } => {
                    at += value_bytes as usize;
                    page.extend(flags.to_le_bytes());
                    page.extend(pos.to_le_bytes());
                    page.extend(key_bytes);
                    page.extend(value_bytes.to_le_bytes());
                }
                Content::Child(child) => {
                    page.extend(pos.to_le_bytes());
                    page.extend(key_bytes);
                    page.extend(child.to_le_bytes());
                }
            }
        }
        page.extend_from_slice(&self.data);
        page.resize(pages * PAGE_BYTES, 0);
        page
    }
}

fn header(id: u64, flags: u16, count: u16, overflow: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&id.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    header[10..12].copy_from_slice(&count.to_le_bytes());
    header[12..].copy_from_slice(&overflow.to_le_bytes());
    header
}

fn refused(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
