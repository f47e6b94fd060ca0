//! What the allocator of the server has free goes back to the system, though nobody asks it for anything.

use std::time::{Duration, Instant};

use everwatch::server::memory_loop;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USED_BYTES: usize = 64 << 20;
const PIECE_BYTES: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(30);

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

#[tokio::test]
async fn memory_that_became_free_goes_back_while_nothing_happens() {
    let before = resident_bytes();
    let pieces: Vec<Vec<u8>> = (0..USED_BYTES / PIECE_BYTES).map(|_| vec![1; PIECE_BYTES]).collect();
    assert!(resident_bytes() > before + USED_BYTES * 9 / 10);
    drop(pieces);
    let giving = tokio::spawn(memory_loop::run());
    let until = Instant::now() + PATIENCE;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    while resident_bytes() > before + USED_BYTES / 4 {
        assert!(Instant::now() < until, "{} MiB are still there", (resident_bytes() - before) >> 20);
        looks.tick().await;
    }
    giving.abort();
}
