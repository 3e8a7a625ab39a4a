//! Places every intermediate buffer of a plan at an offset inside one arena.
//!
//! A plan runs its steps in a fixed order, so we know before the first run how large every buffer is
//! and between which steps it must keep its value. Two buffers may share bytes exactly when they are
//! never alive at the same step.
//!
//! Method: buffers are placed one after the other, each into the smallest gap that fits it ("greedy", Pisarchyk
//! & Lee 2020, arXiv:2001.03288). The order decides how good the result is, so several are tried, and the best
//! one is improved: a buffer that sticks out over the bound moves forward in the order, and the change stays
//! where it does not hurt. Compare [`Arena::bytes`] with [`lower_bound`] to see how far from perfect it landed.
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

/// An arena this close to the bound (in parts of it) is good enough to stop looking.
const GOOD: usize = 200;
/// Buffers smaller than this part of the bound fill gaps at the end; where they go hardly matters.
const SMALL: usize = 2000;
/// Comparisons of two buffers that the search may take, about: a fraction of a second; and so many times more while
/// what it has is further than that from the bound (in parts of it).
const EFFORT: usize = 120_000_000;
const MORE: usize = 8;
const FAR: usize = 50;

/// Places all `demands` into one arena. Deterministic: equal input, equal plan.
pub fn place(demands: &[Demand]) -> Arena {
    let bound = lower_bound(demands);
    let good = bound + bound / GOOD;
    let (mut large, mut small): (Vec<usize>, Vec<usize>) =
        (0..demands.len()).partition(|&i| footprint(&demands[i]) >= bound / SMALL);
    small.sort_by_key(|&i| (Reverse(demands[i].bytes), i));

    let size = |i: usize| demands[i].bytes;
    let length = |i: usize| demands[i].live.len();
    let mut orders: Vec<Vec<usize>> = Vec::new();
    let mut sorted = |key: &dyn Fn(usize) -> (Reverse<usize>, usize)| {
        large.sort_by_key(|&i| (key(i), i));
        orders.push(large.clone());
    };
    sorted(&|i| (Reverse(size(i)), 0));
    sorted(&|i| (Reverse(size(i).saturating_mul(length(i))), 0));
    sorted(&|i| (Reverse(length(i)), 0));
    sorted(&|i| (Reverse(length(i).ilog2() as usize), usize::MAX - size(i)));
    sorted(&|i| (Reverse(0), demands[i].live.start));

    let mut best: Option<(usize, Vec<usize>, Vec<usize>)> = None;
    for order in orders {
        let (bytes, offsets) = in_order(demands, &order);
        if best.as_ref().is_none_or(|(least, ..)| bytes < *least) {
            best = Some((bytes, order, offsets));
        }
        if bytes <= good {
            break;
        }
    }
    let (mut bytes, mut order, mut offsets) = best.expect("there is at least one order");
    let rounds = (EFFORT / (order.len() * order.len()).max(1)).min(4000);
    let mut random = Random(1);
    for round in 0..MORE * rounds {
        if bytes <= good || (round >= rounds && bytes <= bound + bound / FAR) {
            break;
        }
        let high = |&at: &usize| offsets[order[at]] + footprint(&demands[order[at]]) > good;
        let above: Vec<usize> = (1..order.len()).filter(high).collect();
        let Some(&from) = above.get(random.below(above.len().max(1))) else { break };
        let mut changed = order.clone();
        changed[random.below(from)..=from].rotate_right(1);
        let (other, places) = in_order(demands, &changed);
        if other <= bytes {
            (bytes, order, offsets) = (other, changed, places);
        }
    }

    order.extend(small);
    let (bytes, offsets) = in_order(demands, &order);
    let arena = Arena { bytes, offsets };
    debug_assert_eq!(clash(demands, &arena), None);
    arena
}

/// The same where the first ones have their offsets already: the others go around them, the largest first, each into
/// the smallest gap that fits it.
pub fn place_around(fixed: &[usize], demands: &[Demand]) -> Arena {
    let range = |i: usize, start: usize| start..start + footprint(&demands[i]);
    let taken = fixed.iter().enumerate().map(|(i, &offset)| (range(i, offset), demands[i].live.clone()));
    let mut taken: Vec<(Range<usize>, Range<usize>)> = taken.collect();
    taken.sort_by_key(|(bytes, _)| bytes.start);
    let mut order: Vec<usize> = (fixed.len()..demands.len()).collect();
    order.sort_by_key(|&i| (Reverse(demands[i].bytes), i));
    let mut offsets = fixed.to_vec();
    offsets.resize(demands.len(), 0);
    for i in order {
        let rivals = taken.iter().filter(|(_, live)| overlaps(&demands[i].live, live));
        offsets[i] = best_gap(rivals.map(|(bytes, _)| bytes.clone()), footprint(&demands[i]));
        let rank = taken.partition_point(|(bytes, _)| bytes.start <= offsets[i]);
        taken.insert(rank, (range(i, offsets[i]), demands[i].live.clone()));
    }
    let bytes = taken.iter().map(|(bytes, _)| bytes.end).max().unwrap_or(0);
    Arena { offsets, bytes }
}

/// The greedy itself: the arena's size, and offsets by demand (zero for those that `order` leaves out).
fn in_order(demands: &[Demand], order: &[usize]) -> (usize, Vec<usize>) {
    let mut offsets = vec![0; demands.len()];
    let mut by_offset: Vec<(Range<usize>, Range<usize>)> = Vec::with_capacity(order.len()); // bytes, life
    let mut bytes = 0;
    for &i in order {
        let demand = &demands[i];
        let rivals = by_offset.iter().filter(|(_, live)| overlaps(&demand.live, live));
        let start = best_gap(rivals.map(|(taken, _)| taken.clone()), footprint(demand));
        let end = start + footprint(demand);
        offsets[i] = start;
        bytes = bytes.max(end);
        let rank = by_offset.partition_point(|(taken, _)| taken.start <= start);
        by_offset.insert(rank, (start..end, demand.live.clone()));
    }
    (bytes, offsets)
}

/// The same numbers on every machine and in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % end.max(1) as u64) as usize
    }
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

/// Bytes that a demand takes up in the arena.
pub(super) fn footprint(demand: &Demand) -> usize {
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
    fn what_comes_later_goes_into_the_gaps() {
        let fixed = [0, 8, 8].map(|kib| kib * 1024);
        let demands = [demand(8, 0..5), demand(4, 1..3), demand(4, 3..5)];
        let more = [demand(4, 0..1), demand(2, 2..3), demand(1, 4..5)];
        let arena = place_around(&fixed, &[&demands[..], &more].concat());
        let offsets = [0, 8, 8, 8, 12, 12].map(|kib| kib * 1024);
        assert_eq!(arena, Arena { offsets: offsets.into(), bytes: 14 * 1024 });
        assert_eq!(place_around(&fixed, &demands).bytes, 12 * 1024);
    }

    #[test]
    fn random_plans_never_clash_and_stay_between_the_bounds() {
        let mut source = Random(1);
        let mut random = |below: usize| source.below(below);
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
