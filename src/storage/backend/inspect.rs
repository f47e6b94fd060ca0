//! A backend's file for who only looks: opened, verified and even repaired in memory, while the file stays as it is.
//!
//! The engine knows no way to verify a file without a right to write to it, and repairs one that was not closed. So it
//! is given the file with a sheet of glass over it: what it writes lies on the glass, in pages, and is read from there.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::DiskBackend;
use crate::storage::disk::DiskFile;
use crate::storage::seal::{self, Keys};
use crate::storage::{Error, Result};

/// Opens the file at `path`, sealed with one of the keys if there are any. Every page of it is verified meanwhile.
pub fn inspect(path: &Path, keys: Option<&Keys>) -> Result<DiskBackend> {
    let file = seal::look(path, keys)?;
    let len = file.len().map_err(|source| Error::of_call("measuring", path, source))?;
    if len == 0 {
        // The engine would take it for one to begin with.
        return Err(Error::Corrupt { path: path.to_owned(), offset: 0, what: "the file is empty".to_owned() });
    }
    DiskBackend::over_glass(
        path,
        Glass { file, sheet: Mutex::new(Sheet { len, file_len: len, pages: BTreeMap::new() }) },
    )
}

const PAGE: u64 = 4096;

/// The file and what lies over it.
pub(super) struct Glass {
    file: Box<dyn DiskFile>,
    sheet: Mutex<Sheet>,
}

#[derive(Debug)]
struct Sheet {
    len: u64,
    /// How much of the file is still seen. Behind a cut there are zeros.
    file_len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

impl fmt::Debug for Glass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Glass").field("sheet", &self.sheet).finish_non_exhaustive()
    }
}

impl Glass {
    fn sheet(&self) -> MutexGuard<'_, Sheet> {
        self.sheet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a page as the file has them.
    fn page_below(&self, number: u64, file_len: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        let mut page = Box::new([0; PAGE as usize]);
        let at = number * PAGE;
        let there = file_len.saturating_sub(at).min(PAGE) as usize;
        self.read_below(at, &mut page[..there])?;
        Ok(page)
    }

    fn read_below(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_at(at, out)?;
        if read == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The pieces of `len` bytes from `at` on: page, where in it, how much.
fn pieces(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = at + len as u64;
    (at / PAGE..end.div_ceil(PAGE)).map(move |number| {
        let from = at.max(number * PAGE);
        let to = end.min((number + 1) * PAGE);
        (number, (from - number * PAGE) as usize, (to - from) as usize)
    })
}

impl redb::StorageBackend for Glass {
    fn len(&self) -> io::Result<u64> {
        Ok(self.sheet().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let sheet = self.sheet();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > sheet.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = out;
        for (number, from, len) in pieces(offset, rest.len()) {
            let (piece, more) = rest.split_at_mut(len);
            match sheet.pages.get(&number) {
                Some(page) => piece.copy_from_slice(&page[from..from + len]),
                None => {
                    let at = number * PAGE + from as u64;
                    let there = sheet.file_len.saturating_sub(at).min(len as u64) as usize;
                    self.read_below(at, &mut piece[..there])?;
                    piece[there..].fill(0);
                }
            }
            rest = more;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let sheet = &mut *self.sheet();
        if len < sheet.len {
            sheet.file_len = sheet.file_len.min(len);
            sheet.pages.split_off(&len.div_ceil(PAGE));
            if let Some(page) = sheet.pages.get_mut(&(len / PAGE)) {
                page[(len % PAGE) as usize..].fill(0);
            }
        }
        sheet.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let sheet = &mut *self.sheet();
        let mut rest = data;
        for (number, from, len) in pieces(offset, data.len()) {
            let (piece, more) = rest.split_at(len);
            let page = match sheet.pages.entry(number) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(none) => {
                    none.insert(self.page_below(number, sheet.file_len)?)
                }
            };
            page[from..from + len].copy_from_slice(piece);
            rest = more;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::backend::{Backend, Batch, Bucket};

    #[test]
    fn what_is_written_over_the_file_is_read_and_the_file_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut batch = Batch::default();
        for n in 0..500 {
            batch.put(Bucket::Key, Bytes::from(format!("key {n:03}")), Bytes::from(vec![n as u8; 300]));
        }
        DiskBackend::open(&path).unwrap().commit(&batch).unwrap();
        let before = std::fs::read(&path).unwrap();
        let over = inspect(&path, None).unwrap();
        let get = |key: &str| over.reader().unwrap().get(Bucket::Key, key.as_bytes()).unwrap();
        assert_eq!(get("key 499").unwrap(), vec![243; 300]);
        let mut more = Batch::default();
        for n in 0..3000 {
            more.put(Bucket::Key, Bytes::from(format!("more {n:04}")), Bytes::from(vec![7; 300]));
        }
        more.delete(Bucket::Key, Bytes::from_static(b"key 499"));
        over.commit(&more).unwrap();
        assert_eq!((get("key 499"), get("more 2999")), (None, Some(vec![7; 300].into())));
        drop(over);
        assert!(std::fs::read(&path).unwrap() == before);

        // A wrong byte in a page that is in use.
        let at = before.windows(300).position(|bytes| bytes == [9; 300]).unwrap();
        let mut hurt = before;
        hurt[at] ^= 1;
        std::fs::write(&path, &hurt).unwrap();
        assert!(matches!(inspect(&path, None), Err(Error::Corrupt { .. })));
        assert!(std::fs::read(&path).unwrap() == hurt);
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(inspect(&path, None), Err(Error::Corrupt { .. })));
    }
}
