//! Something that is made from files, and made anew when they have changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use slog::{Logger, info, warn};

/// How a file is told from an earlier one of the same name.
type Stamp = Option<(SystemTime, u64, u64)>;

/// See the module.
pub(super) struct Fresh<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    kept: Mutex<Kept<T>>,
    logger: Logger,
}

struct Kept<T> {
    /// Of the files when it was last tried to make one.
    stamps: Vec<Stamp>,
    value: Arc<T>,
}

impl<T> Fresh<T> {
    /// Makes the first. Whatever is wrong with it is the error.
    pub(super) fn new(
        files: Vec<PathBuf>,
        logger: Logger,
        make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Fresh<T>, String> {
        let kept = Kept { stamps: stamps(&files), value: Arc::new(make()?) };
        Ok(Fresh { files, make: Box::new(make), kept: Mutex::new(kept), logger })
    }

    /// As the files are now, or as they were when they could be used last.
    pub(super) fn get(&self) -> Arc<T> {
        // Before they are read: what changes meanwhile is seen the next time.
        let stamps = stamps(&self.files);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.stamps != stamps {
            kept.stamps = stamps;
            match (self.make)() {
                Ok(value) => {
                    info!(self.logger, "certificates have changed: read anew");
                    kept.value = Arc::new(value);
                }
                Err(why) => {
                    warn!(self.logger, "certificates have changed and cannot be used, going on with the former"; "error" => why);
                }
            }
        }
        kept.value.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len(), about.ino()))
    };
    files.iter().map(|path| stamp(path)).collect()
}
