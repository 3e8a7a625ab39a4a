//! Why a tile or a form was taken, as data that prints.

use std::fmt;

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There were tiles to choose from.
    Fastest(Fastest),
    /// No other form takes the operands.
    Only(Fact),
}

/// Of all tiles this one's blocks take the least time together: rounds, each as long as its tile is large, at the rate
/// that `tune` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fastest {
    /// Of all parts of all sums, and how many of them the fullest multiprocessor makes.
    pub tiles: usize,
    pub rounds: usize,
    /// The next best.
    pub rival: Option<Rival>,
    /// What keeps it from the matrix units of sm_90a, on a device that has them.
    pub obstacle: Option<Obstacle>,
}

/// Another tile, and its time in per cent of the time of the one that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Rows or pixels, and columns or channels.
    pub tile: [usize; 2],
    pub percent: usize,
}

/// What holds of operands that tiles of whole vectors do not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    Unaligned,
    FewFromFew,
    FewMade,
    NoVectors,
    NoVectorsAside,
}

/// What a product for sm_90a cannot do, or does badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    Batch,
    FewRows,
    FewPixels,
    FewChannels,
    Stride,
    Enlarged,
    SourcesWithinAStep,
}

/// The first of the cheapest, and the cheapest of the others with its cost in per cent.
pub(super) fn cheapest<T: Copy>(
    tiles: &[T],
    size: impl Fn(&T) -> [usize; 2],
    cost: impl Fn(&T) -> usize,
) -> (T, Option<Rival>) {
    let best = (0..tiles.len()).min_by_key(|&i| cost(&tiles[i])).expect("there are tiles");
    let others = (0..tiles.len()).filter(|&i| i != best);
    let rival = others.min_by_key(|&i| cost(&tiles[i])).map(|next| Rival {
        tile: size(&tiles[next]),
        percent: 100 * cost(&tiles[next]) / cost(&tiles[best]).max(1),
    });
    (tiles[best], rival)
}

impl Fastest {
    pub(super) fn of(tiles: usize, multiprocessors: usize, rival: Option<Rival>) -> Self {
        Self { tiles, rounds: tiles.div_ceil(multiprocessors), rival, obstacle: None }
    }
}

impl Fact {
    pub fn words(self) -> &'static str {
        match self {
            Self::Unaligned => "rows of operands are not aligned to 16 bytes",
            Self::FewFromFew => "a few channels are made of few",
            Self::FewMade => "few channels are made",
            Self::NoVectors => "the channels are no whole vectors of 8",
            Self::NoVectorsAside => "channels in no whole vectors of 8 come from one image, as it is",
        }
    }
}

impl Obstacle {
    pub fn words(self) -> &'static str {
        match self {
            Self::Batch => "matrices with operands of their own",
            Self::FewRows => "an image has fewer rows than half a slab",
            Self::FewPixels => "an image has fewer pixels than half a slab",
            Self::FewChannels => "fewer than 32 channels are made",
            Self::Stride => "boxes of pixels lie together, and the stride is not 1",
            Self::Enlarged => "the enlargement is not twofold",
            Self::SourcesWithinAStep => "two sources meet within a step of 64 channels",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fastest(fastest) => fastest.fmt(f),
            Self::Only(fact) => f.write_str(fact.words()),
        }
    }
}

impl fmt::Display for Fastest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tiles, rounds, rival, obstacle } = self;
        write!(f, "{tiles} tiles, at most {rounds} on a multiprocessor")?;
        if let Some(Rival { tile: [m, n], percent }) = rival {
            write!(f, "; {m} x {n} takes {percent} % of the time")?;
        }
        obstacle.map_or(Ok(()), |obstacle| write!(f, "; not on wgmma: {}", obstacle.words()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_taken_and_the_next_best_is_named() {
        let cost = |&(_, cost): &(usize, usize)| cost;
        let size = |&(m, _): &(usize, usize)| [m, 1];
        let (best, rival) = cheapest(&[(3, 40), (1, 20), (2, 20), (4, 21)], size, cost);
        assert_eq!((best.0, rival), (1, Some(Rival { tile: [2, 1], percent: 100 })));
        assert_eq!(cheapest(&[(1, 20)], size, cost).1, None);
    }
}
