//! Numbered places for values of one kind. They lie in pieces of fixed size: a million of them grow without being moved, and a
//! place is a number of four bytes.

/// Places in one piece.
const PIECE: usize = 1024;

/// Values by number. A number is given again after its value is gone.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pieces: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { pieces: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<T> Slab<T> {
    /// Takes a value in; its number.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.insert_with(|_| value)
    }

    /// Takes in a value that is to know its number.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(u32) -> T) -> u32 {
        self.used += 1;
        if let Some(at) = self.free.pop() {
            *self.place(at) = Some(make(at));
            return at;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let full = (self.pieces.len() - 1) * PIECE;
        let piece = self.pieces.last_mut().expect("there is one with room");
        let at = u32::try_from(full + piece.len()).expect("what fits into memory can be counted");
        piece.push(Some(make(at)));
        at
    }

    /// Gives a value out of its place.
    pub(super) fn remove(&mut self, at: u32) -> T {
        let value = self.place(at).take().expect("only what is there is named");
        self.free.push(at);
        self.used -= 1;
        value
    }

    /// The value of a number, if it has one.
    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.pieces.get(at as usize / PIECE)?.get(at as usize % PIECE)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.pieces.get_mut(at as usize / PIECE)?.get_mut(at as usize % PIECE)?.as_mut()
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// All values, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let values = self.pieces.iter().flatten().zip(0..);
        values.filter_map(|(value, at)| Some((at, value.as_ref()?)))
    }

    fn place(&mut self, at: u32) -> &mut Option<T> {
        &mut self.pieces[at as usize / PIECE][at as usize % PIECE]
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        self.get(at).expect("only what is there is named")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        self.get_mut(at).expect("only what is there is named")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_again_and_nothing_moves() {
        let mut slab = Slab::default();
        let numbers: Vec<u32> = (0..3000).map(|n| slab.insert(n)).collect();
        assert!((0..3000).eq(numbers.iter().map(|at| slab[*at])));
        let first: *const i32 = &slab[0];
        assert_eq!(slab.remove(1500), 1500);
        assert_eq!((slab.get(1500), slab.get(3000), slab.len()), (None, None, 2999));
        assert_eq!(slab.insert(-1), 1500);
        slab[1500] = -2;
        (0..2000).for_each(|n| _ = slab.insert(n));
        assert_eq!(slab.iter().nth(1500), Some((1500, &-2)));
        assert!(std::ptr::eq(first, &slab[0]));
    }
}
