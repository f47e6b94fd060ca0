//! What a script talks to: a store over a backend in memory.

use std::sync::Arc;

use everwatch::mvcc::Store;
use everwatch::storage::backend::Batch;

use crate::kv;
use crate::memory::Rows;

/// The state of one script.
pub(crate) struct World {
    /// What survives `restart`: what was flushed.
    pub(crate) rows: Rows,
    /// What the store has done and the backend does not have yet.
    pub(crate) batch: Batch,
    /// The store.
    pub(crate) kv: Store,
}

impl World {
    pub(crate) fn new() -> World {
        let rows = Rows::default();
        let (kv, _) = Store::open(Arc::new(rows.clone())).unwrap();
        World { rows, batch: Batch::default(), kv }
    }

    /// Carries out a command, given as its line and the indented lines below it, and says what came of it.
    pub(crate) fn run(&mut self, command: &[&str]) -> Vec<String> {
        let words: Vec<&str> = command[0].split_whitespace().collect();
        match words[0] {
            "flush" => {
                self.flush();
                Vec::new()
            }
            // An orderly stop: everything is flushed.
            "restart" => {
                self.flush();
                let (kv, attached) = Store::open(Arc::new(self.rows.clone())).unwrap();
                self.kv = kv;
                let leases = attached.iter().map(|(key, lease)| format!("{}={lease}", kv::show(key)));
                [format!("rev={} compacted={}", self.kv.revision(), self.kv.compacted())]
                    .into_iter()
                    .chain(leases.map(|lease| format!("leased {lease}")))
                    .collect()
            }
            _ => kv::run(self, &words, &command[1..]).unwrap_or_else(|| {
                panic!("unknown command {:?}; the areas' commands are in golden/support/", command[0])
            }),
        }
    }

    fn flush(&mut self) {
        self.kv.meta_rows(&mut self.batch);
        self.rows.commit(&std::mem::take(&mut self.batch));
        self.kv.flushed(Arc::new(self.rows.clone())).unwrap();
    }
}
