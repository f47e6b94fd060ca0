//! What happens to messages between members: each link, in each direction, has its own weather.

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::world::MILLI;

/// One direction between two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Nothing gets through.
    pub cut: bool,
    pub loss_per_mille: u64,
    pub twice_per_mille: u64,
    pub delay_min: u64,
    pub delay_max: u64,
    /// Messages that come very late, behind others.
    pub straggler_per_mille: u64,
}

impl Link {
    pub const CALM: Link = Link {
        cut: false,
        loss_per_mille: 0,
        twice_per_mille: 0,
        delay_min: MILLI / 10,
        delay_max: 2 * MILLI,
        straggler_per_mille: 0,
    };

    /// Some weather.
    pub fn rough(dice: &mut Dice) -> Link {
        Link {
            cut: false,
            loss_per_mille: dice.pick(&[0, 10, 100, 300]),
            twice_per_mille: dice.pick(&[0, 10, 100]),
            delay_min: MILLI / 10,
            delay_max: dice.pick(&[2, 20, 200, 1500]) * MILLI,
            straggler_per_mille: dice.pick(&[0, 5, 50]),
        }
    }
}

/// All links.
#[derive(Default)]
pub struct Network {
    links: BTreeMap<(usize, usize), Link>,
}

impl Network {
    pub fn link(&self, from: usize, to: usize) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(Link::CALM)
    }

    pub fn set(&mut self, from: usize, to: usize, link: Link) {
        self.links.insert((from, to), link);
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.links.entry((from, to)).or_insert(Link::CALM).cut = true;
    }

    pub fn heal(&mut self) {
        self.links.clear();
    }

    /// How long a message takes, each time it arrives. Nothing: it is lost.
    pub fn arrivals(&self, from: usize, to: usize, dice: &mut Dice) -> Vec<u64> {
        let link = self.link(from, to);
        if link.cut || dice.chance(link.loss_per_mille) {
            return Vec::new();
        }
        let delay = |dice: &mut Dice| {
            let late = if dice.chance(link.straggler_per_mille) { dice.below(3000) * MILLI } else { 0 };
            late + dice.skewed(link.delay_min, link.delay_max)
        };
        let mut arrivals = vec![delay(dice)];
        if dice.chance(link.twice_per_mille) {
            arrivals.push(delay(dice));
        }
        arrivals
    }
}
