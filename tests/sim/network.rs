//! What happens to messages between members: each link, in each direction, has its own weather.

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::world::MILLI;

/// One direction between two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Nothing gets through.
    pub cut: bool,
    /// What is sent before this time arrives together after it.
    pub clogged_until: u64,
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
        clogged_until: 0,
        loss_per_mille: 0,
        twice_per_mille: 0,
        delay_min: MILLI / 10,
        delay_max: 2 * MILLI,
        straggler_per_mille: 0,
    };

    /// Some weather.
    pub fn rough(dice: &mut Dice) -> Link {
        Link {
            loss_per_mille: dice.pick(&[0, 10, 100, 300]),
            twice_per_mille: dice.pick(&[0, 10, 100]),
            delay_max: dice.pick(&[2, 20, 200, 1500]) * MILLI,
            straggler_per_mille: dice.pick(&[0, 5, 50]),
            ..Link::CALM
        }
    }
}

/// All links.
#[derive(Default)]
pub struct Network {
    links: BTreeMap<(usize, usize), Link>,
    /// Counts how often everything was mended; what was to happen to links before that does not.
    pub era: u64,
}

impl Network {
    pub fn link(&self, from: usize, to: usize) -> Link {
        self.links.get(&(from, to)).copied().unwrap_or(Link::CALM)
    }

    /// To change a link.
    pub fn at(&mut self, from: usize, to: usize) -> &mut Link {
        self.links.entry((from, to)).or_insert(Link::CALM)
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.at(from, to).cut = true;
    }

    /// Cuts or mends both directions.
    pub fn set_both(&mut self, a: usize, b: usize, cut: bool) {
        self.at(a, b).cut = cut;
        self.at(b, a).cut = cut;
    }

    /// All links are calm.
    pub fn heal(&mut self) {
        self.links.clear();
        self.era += 1;
    }

    /// The links among these are calm, in both directions.
    pub fn heal_among(&mut self, members: &[usize]) {
        self.links.retain(|(from, to), _| !(members.contains(from) && members.contains(to)));
        self.era += 1;
    }

    /// How long a message takes, each time it arrives. Nothing: it is lost.
    pub fn arrivals(&self, from: usize, to: usize, now: u64, dice: &mut Dice) -> Vec<u64> {
        let link = self.link(from, to);
        if link.cut || dice.chance(link.loss_per_mille) {
            return Vec::new();
        }
        let delay = |dice: &mut Dice| {
            let late = if dice.chance(link.straggler_per_mille) { dice.below(3000) * MILLI } else { 0 };
            late + link.clogged_until.saturating_sub(now) + dice.skewed(link.delay_min, link.delay_max)
        };
        let mut arrivals = vec![delay(dice)];
        if dice.chance(link.twice_per_mille) {
            arrivals.push(delay(dice));
        }
        arrivals
    }
}
