//! Bytes for a connection, some of them shared with others.
//!
//! What many streams are sent differs by some twenty bytes each. A piece keeps those as its own, and of what is shared where it goes
//! between them; it is put together when the connection copies it into what goes to the socket, and not before. So an event is copied
//! once for each watcher, from memory that has just been read for another.

use std::io::IoSlice;

use bytes::{Buf, BufMut};

use crate::watch::EventList;

/// Shared bytes that are fewer than this are copied: to refer to them costs as much.
const SHARED_MIN: usize = 128;

/// Bytes of its own with shared ones in between.
#[derive(Debug, Default)]
pub struct Woven {
    own: Vec<u8>,
    /// Each once, however many are sent it: to count who refers to an event costs as much as to copy it, where threads do it in turn.
    shared: Vec<EventList>,
    /// Where shared bytes go. What is left of `own` comes after the last of them.
    seams: Vec<Seam>,
    /// Bytes in all that is not taken yet.
    remaining: usize,
    /// What is taken: all before this seam, of `own` so many bytes, and of the bytes at the seam.
    seam: usize,
    own_taken: usize,
    shared_taken: usize,
}

/// The own bytes up to `own_end` are followed by one event of one list.
#[derive(Clone, Copy, Debug)]
struct Seam {
    own_end: u32,
    list: u32,
    event: u32,
}

impl Woven {
    /// Makes room for so many times some own bytes and some that may be shared.
    pub(super) fn reserve(&mut self, count: usize, own_bytes: usize, bytes: usize) {
        if bytes < SHARED_MIN {
            self.own.reserve(count * (own_bytes + bytes));
        } else {
            self.own.reserve(count * own_bytes);
            self.seams.reserve(count);
        }
    }

    /// Appends an event that others are sent as well.
    pub(super) fn share(&mut self, events: &EventList, event: usize) {
        let bytes = &events.as_slice()[event];
        if bytes.len() < SHARED_MIN {
            return self.put_slice(bytes);
        }
        if !self.shared.last().is_some_and(|last| last.is(events)) {
            self.shared.push(events.clone());
        }
        let place = |at: usize| u32::try_from(at).expect("a piece is bounded, and so is what one revision changes");
        let (own_end, list) = (place(self.own.len()), place(self.shared.len() - 1));
        self.seams.push(Seam { own_end, list, event: place(event) });
        self.remaining += bytes.len();
    }

    /// Appends bytes of its own.
    pub(super) fn put_slice(&mut self, bytes: &[u8]) {
        self.own.put_slice(bytes);
        self.remaining += bytes.len();
    }

    /// What goes to a seam.
    fn event(&self, seam: &Seam) -> &[u8] {
        &self.shared[seam.list as usize].as_slice()[seam.event as usize]
    }
}

impl Buf for Woven {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        let Some(seam) = self.seams.get(self.seam) else { return &self.own[self.own_taken..] };
        match &self.own[self.own_taken..seam.own_end as usize] {
            [] => &self.event(seam)[self.shared_taken..],
            own => own,
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut own_taken, mut shared_taken) = (self.own_taken, self.shared_taken);
        let (mut free, mut count) = (slices.iter_mut(), 0);
        let mut next = |chunk: &'a [u8]| {
            let Some(slice) = free.next() else { return false };
            *slice = IoSlice::new(chunk);
            count += 1;
            true
        };
        for seam in &self.seams[self.seam..] {
            let own = &self.own[own_taken..seam.own_end as usize];
            if !own.is_empty() && !next(own) || !next(&self.event(seam)[shared_taken..]) {
                return count;
            }
            (own_taken, shared_taken) = (seam.own_end as usize, 0);
        }
        if own_taken < self.own.len() {
            next(&self.own[own_taken..]);
        }
        count
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "more is taken than there is");
        self.remaining -= count;
        let mut left = count;
        while let Some(seam) = self.seams.get(self.seam) {
            let own = left.min(seam.own_end as usize - self.own_taken);
            self.own_taken += own;
            left -= own;
            let shared = self.event(seam).len() - self.shared_taken;
            if left < shared {
                self.shared_taken += left;
                return;
            }
            left -= shared;
            self.shared_taken = 0;
            self.seam += 1;
        }
        self.own_taken += left;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;

    /// Parts of all kinds, and what they are together.
    fn woven() -> (Woven, Vec<u8>) {
        let (mut woven, mut expected) = (Woven::default(), Vec::new());
        let lengths = [300, SHARED_MIN - 1, SHARED_MIN];
        let events = EventList::Many(Arc::new(lengths.map(|len| Bytes::from(vec![1; len])).to_vec()));
        for round in 0..5u8 {
            woven.put_slice(&[3, round]);
            expected.extend([3, round]);
            for event in [0, 1, 2, 2, 0] {
                woven.share(&events, event);
                expected.extend_from_slice(&events.as_slice()[event]);
            }
            if round % 2 == 0 {
                woven.share(&EventList::One(Bytes::from(vec![round; 200])), 0);
                expected.extend([round; 200]);
            }
        }
        woven.put_slice(b"the end");
        expected.extend(b"the end");
        (woven, expected)
    }

    #[test]
    fn it_is_the_same_bytes_whatever_is_taken_at_a_time() {
        for step in [1, 2, 7, 127, 128, 300, 301, 1000, 5000, 10_000] {
            let (mut woven, expected) = woven();
            let mut seen = Vec::new();
            while woven.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = woven.chunks_vectored(&mut slices);
                let chunks: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
                assert!(chunks.starts_with(woven.chunk()) && !woven.chunk().is_empty());
                let taken = chunks.len().min(step);
                seen.extend_from_slice(&chunks[..taken]);
                woven.advance(taken);
                assert_eq!(seen.len() + woven.remaining(), expected.len());
            }
            assert!(seen == expected, "{step} at a time");
            assert_eq!(woven.chunks_vectored(&mut [IoSlice::new(&[])]), 0);
        }
    }

    #[test]
    fn what_comes_again_is_kept_once() {
        // What two rounds have in common, and what is of the first, third and fifth alone.
        assert_eq!(woven().0.shared.len(), 3 + 3);
    }
}
