//! What `snapshot status` says of a file: the figures of etcdutl 3.5, from the same bytes.

use super::Error;
use super::read::Source;
use super::rows;

/// The figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of the names of all buckets, each followed by its keys and values.
    pub hash: u32,
    /// The newest revision of a row.
    pub revision: i64,
    /// Rows of all buckets.
    pub total_key: u64,
    /// Bytes of the file's pages.
    pub total_size: u64,
}

impl Source {
    /// Goes through the whole file.
    pub fn status(&mut self) -> Result<Status, Error> {
        let mut status = Status { total_size: self.file.size(), ..Status::default() };
        let names: Vec<Vec<u8>> = self.file.buckets().keys().cloned().collect();
        let mut odd = None;
        for name in names {
            status.hash = crc32c::crc32c_append(status.hash, &name);
            let keys = name == b"key";
            // A name that is not text is none of etcd's, and there is no bucket of what it is read as.
            self.file.scan(&String::from_utf8_lossy(&name), &mut |key, value| {
                status.total_key += 1;
                status.hash = crc32c::crc32c_append(crc32c::crc32c_append(status.hash, key), value);
                if keys {
                    match rows::revision_from_etcd(key) {
                        Some((place, _)) => status.revision = place.main,
                        None => odd = Some(key.escape_ascii().to_string()),
                    }
                }
                odd.is_none()
            })?;
        }
        match odd {
            Some(key) => Err(Error::Refused(format!("the row {key} of the bucket \"key\" is none that etcd writes"))),
            None => Ok(status),
        }
    }
}
