//! Places every intermediate buffer of a plan at an offset inside one arena.
//!
//! A plan runs its steps in a fixed order, so we know before the first run how large every buffer is
//! and between which steps it must keep its value. Two buffers may share bytes exactly when they are
//! never alive at the same step.
//!
//! Method: largest buffer first, into the smallest gap that fits it ("greedy by size", Pisarchyk & Lee
//! 2020, arXiv:2001.03288). It is a heuristic: compare [`Arena::bytes`] with [`lower_bound`] to see how
//! far from perfect it landed.
//!
//! Numbers in, numbers out: this module knows no graph, no tensor, no device.

use std::cmp::Reverse;
use std::ops::Range;

/// Every offset is a multiple of this many bytes. 256 satisfies 16-byte vector loads, 128-byte bulk
/// copies, and what the CUDA driver itself guarantees.
pub const ALIGN: usize = 256;

/// One buffer to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    pub bytes: usize,
    /// Steps at which the buffer must hold its value: written at `start`, last read at `end - 1`.
    pub live: Range<usize>,
}

/// Where every buffer went: `offsets[i]` belongs to the `i`-th demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    pub offsets: Vec<usize>,
    pub bytes: usize,
}

/// Places all `demands` into one arena. Deterministic: equal input, equal plan.
pub fn place(demands: &[Demand]) -> Arena {
    let mut largest_first: Vec<usize> = (0..demands.len()).collect();
    largest_first.sort_by_key(|&i| (Reverse(demands[i].bytes), i));

    let mut offsets = vec![0; demands.len()];
    let mut by_offset: Vec<usize> = Vec::new(); // placed so far
    for i in largest_first {
        let rivals = by_offset.iter().filter(|&&j| overlaps(&demands[i].live, &demands[j].live));
        let taken = rivals.map(|&j| offsets[j]..offsets[j] + footprint(&demands[j]));
        offsets[i] = best_gap(taken, footprint(&demands[i]));
        let rank = by_offset.partition_point(|&j| offsets[j] <= offsets[i]);
        by_offset.insert(rank, i);
    }

    let ends = demands.iter().zip(&offsets).map(|(d, &offset)| offset + footprint(d));
    let arena = Arena { bytes: ends.max().unwrap_or(0), offsets };
    debug_assert_eq!(clash(demands, &arena), None);
    arena
}

/// No arena can be smaller than the busiest step.
pub fn lower_bound(demands: &[Demand]) -> usize {
    let last = demands.iter().map(|d| d.live.end).max().unwrap_or(0);
    let mut change = vec![0isize; last + 1]; // bytes that become alive at a step, less those that die
    for demand in demands {
        change[demand.live.start] += footprint(demand) as isize;
        change[demand.live.end] -= footprint(demand) as isize;
    }
    let alive = change.iter().scan(0, |alive, &bytes| {
        *alive += bytes;
        Some(*alive as usize)
    });
    alive.max().unwrap_or(0)
}

/// Two buffers that share a byte while both are alive, if there are any.
pub fn clash(demands: &[Demand], arena: &Arena) -> Option<(usize, usize)> {
    let bytes = |i: usize| arena.offsets[i]..arena.offsets[i] + demands[i].bytes;
    let pairs = (0..demands.len()).flat_map(|i| (0..i).map(move |j| (j, i)));
    pairs
        .filter(|&(j, i)| overlaps(&demands[j].live, &demands[i].live))
        .find(|&(j, i)| overlaps(&bytes(j), &bytes(i)))
}

/// The start of the smallest hole of at least `size` bytes between the `taken` ranges (sorted by start,
/// possibly overlapping), else the end of them all.
fn best_gap(taken: impl Iterator<Item = Range<usize>>, size: usize) -> usize {
    let mut best: Option<Range<usize>> = None;
    let mut end = 0;
    for range in taken {
        let hole = end..range.start.max(end);
        let fits = hole.len() >= size;
        if fits && best.as_ref().is_none_or(|b| hole.len() < b.len()) {
            best = Some(hole);
        }
        end = end.max(range.end);
    }
    best.map_or(end, |hole| hole.start)
}

fn footprint(demand: &Demand) -> usize {
    demand.bytes.next_multiple_of(ALIGN)
}

fn overlaps(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(kib: usize, live: Range<usize>) -> Demand {
        Demand { bytes: kib * 1024, live }
    }

    #[test]
    fn a_chain_needs_two_buffers_not_four() {
        // Each value is read only by the next step.
        let chain = [demand(4, 0..2), demand(4, 1..3), demand(4, 2..4), demand(4, 3..5)];
        assert_eq!(place(&chain).bytes, 8 * 1024);
        assert_eq!(lower_bound(&chain), 8 * 1024);
    }

    #[test]
    fn a_skip_connection_keeps_its_bytes() {
        let plan = [demand(8, 0..5), demand(4, 1..3), demand(4, 2..4), demand(4, 3..5)];
        let arena = place(&plan);
        assert_eq!(arena.offsets[0], 0);
        assert!(arena.offsets[1..].iter().all(|&offset| offset >= 8 * 1024));
        assert_eq!(arena.bytes, 16 * 1024);
    }

    #[test]
    fn random_plans_never_clash_and_stay_between_the_bounds() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as usize
        };
        for _ in 0..500 {
            let demands: Vec<_> = (0..1 + random(30))
                .map(|_| {
                    let start = random(20);
                    Demand { bytes: 1 + random(100_000), live: start..start + 1 + random(10) }
                })
                .collect();
            let arena = place(&demands);
            assert_eq!(clash(&demands, &arena), None);
            assert!(arena.bytes >= lower_bound(&demands));
            assert!(arena.bytes <= demands.iter().map(footprint).sum());
            assert!(arena.offsets.iter().all(|offset| offset.is_multiple_of(ALIGN)));
        }
    }
}
