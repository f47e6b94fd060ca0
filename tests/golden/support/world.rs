//! What a script talks to: a store over a backend in memory.

use std::sync::Arc;

use everwatch::mvcc::Store;
use everwatch::storage::backend::Batch;

use crate::kv;
use crate::memory::Rows;
use crate::watch_commands::{self, Watches};

/// The state of one script.
pub(crate) struct World {
    /// What survives `restart`: what was flushed.
    pub(crate) rows: Rows,
    /// What the store has done and the backend does not have yet.
    pub(crate) batch: Batch,
    /// The store.
    pub(crate) kv: Store,
    /// Those who are told.
    pub(crate) watches: Watches,
}

impl World {
    pub(crate) fn new() -> World {
        let rows = Rows::default();
        let (kv, _) = Store::open(Arc::new(rows.clone())).unwrap();
        let watches = Watches::new(&kv);
        World { rows, batch: Batch::default(), kv, watches }
    }

    /// Carries out a command, given as its line and the indented lines below it, and says what came of it.
    pub(crate) fn run(&mut self, command: &[&str]) -> Vec<String> {
        let words: Vec<&str> = command[0].split_whitespace().collect();
        let mut lines = match words[0] {
            "flush" => {
                self.flush();
                Vec::new()
            }
            // An orderly stop: everything is flushed.
            "restart" => {
                self.flush();
                let (kv, attached) = Store::open(Arc::new(self.rows.clone())).unwrap();
                self.kv = kv;
                self.watches = Watches::new(&self.kv);
                let leases = attached.iter().map(|(key, lease)| format!("{}={lease}", kv::show(key)));
                [format!("rev={} compacted={}", self.kv.revision(), self.kv.compacted())]
                    .into_iter()
                    .chain(leases.map(|lease| format!("leased {lease}")))
                    .collect()
            }
            _ => kv::run(self, &words, &command[1..])
                .or_else(|| watch_commands::run(self, &words))
                .unwrap_or_else(|| panic!("no command {:?}; the areas' commands are in golden/support/", command[0])),
        };
        lines.extend(self.watches.follow(&self.kv));
        lines
    }

    fn flush(&mut self) {
        self.kv.meta_rows(&mut self.batch);
        self.rows.commit(&std::mem::take(&mut self.batch));
        self.kv.flushed(Arc::new(self.rows.clone())).unwrap();
    }
}
