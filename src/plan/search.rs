//! Which results of the forward pass are made again for the backward pass instead of being kept.
//!
//! A decision is a set of *dropped* units. A unit behind the gate that reads a result of a dropped unit gets it
//! from a second run of that unit, placed right before its first such reader; what the second run reads is kept
//! or made again likewise. A unit runs twice at most, so the whole of the extra work is below one forward pass,
//! and dropping everything between two results is the checkpointing of that stretch.
//!
//! The search drops where a byte costs least: of the moves that lower the excess over the target (the sum over
//! all steps of what is alive beyond it) it takes those with the most excess per FLOP, and at the end takes back
//! what turned out not to be needed. Numbers in, numbers out; deterministic.

use super::memory::ALIGN;
use super::schedule::Schedule;

/// Moves that are judged exactly in one round: the ones with the most bytes in the way.
const CANDIDATES: usize = 48;
/// How far a move reaches: the unit itself, and what feeds it, unless that is kept anyway.
const DEPTH: usize = 4;
/// A FLOP's worth of moving one byte: even work without contractions takes time.
const FLOPS_PER_BYTE: f64 = 64.0;

/// One place of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub unit: usize,
    /// The second run of the unit.
    pub again: bool,
}

/// What runs with some units dropped, and what is alive when.
pub struct Timeline {
    pub steps: Vec<Step>,
    /// Bytes alive at every step.
    pub alive: Vec<usize>,
    pub peak: usize,
    pub extra_flops: u64,
    /// Lives of all values, then those of the values that second runs make.
    lives: Vec<(u32, u32)>,
    /// The first step behind the gate.
    gate: usize,
    /// Bytes that second runs read and write.
    extra_bytes: usize,
}

#[derive(Clone)]
pub struct Search<'s> {
    schedule: &'s Schedule,
    /// Units that may be dropped: of the forward pass, in the loop of the gate.
    droppable: Vec<bool>,
    footprints: Vec<usize>,
    /// The loop that the gate stands in.
    gate_loop: Option<usize>,
    pub dropped: Vec<bool>,
}

impl<'s> Search<'s> {
    pub fn new(schedule: &'s Schedule) -> Self {
        let gate = schedule.units.iter().position(|unit| unit.behind_gate);
        let gate_loop = gate.and_then(|gate| schedule.units[gate].in_loop);
        let droppable = schedule.units.iter().enumerate().map(|(i, unit)| {
            gate.is_some_and(|gate| i < gate) && unit.in_loop == gate_loop && !unit.writes.is_empty()
        });
        Self {
            droppable: droppable.collect(),
            footprints: schedule.bytes.iter().map(|bytes| bytes.next_multiple_of(ALIGN)).collect(),
            dropped: vec![false; schedule.units.len()],
            gate_loop,
            schedule,
        }
    }

    /// Drops more units until at most `target` bytes are alive at any step. Returns whether that worked; if not,
    /// what was dropped on the way stays dropped.
    pub fn fit(&mut self, target: usize) -> bool {
        let mut now = self.timeline(&self.dropped);
        while now.peak > target {
            let mut judged = self.judge(&now, target, self.moves(&now, target));
            if judged.is_empty() {
                judged = self.judge(&now, target, self.swaps(&now, target));
                judged.truncate(1);
            }
            let Some(&(best, _)) = judged.first() else { return false };
            for (_, change) in judged {
                let trial = self.with(&change);
                let gain = now.excess(target).saturating_sub(trial.excess(target));
                if gain > 0 && gain as f64 / trial.cost_over(&now) >= 0.5 * best {
                    change.apply(&mut self.dropped);
                    now = trial;
                }
                if now.peak <= target {
                    break;
                }
            }
        }
        true
    }

    /// The changes that lower the excess, the most per FLOP first.
    fn judge(&self, now: &Timeline, target: usize, changes: Vec<Change>) -> Vec<(f64, Change)> {
        let excess = now.excess(target);
        let mut judged: Vec<(f64, Change)> = Vec::new();
        for change in changes {
            let trial = self.with(&change);
            let gain = excess.saturating_sub(trial.excess(target));
            if gain > 0 {
                judged.push((gain as f64 / trial.cost_over(now), change));
            }
        }
        judged.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        judged
    }

    /// Keeps again what need not be dropped for `target`, the most work first.
    pub fn relax(&mut self, target: usize) {
        let mut now = self.timeline(&self.dropped);
        let mut units: Vec<usize> = (0..self.dropped.len()).filter(|&unit| self.dropped[unit]).collect();
        units.sort_by_key(|&unit| (std::cmp::Reverse(self.schedule.units[unit].flops), unit));
        for unit in units {
            self.dropped[unit] = false;
            let trial = self.timeline(&self.dropped);
            if trial.peak <= target && trial.extra_flops <= now.extra_flops {
                now = trial;
            } else {
                self.dropped[unit] = true;
            }
        }
    }

    /// Drops a unit, and what feeds it as far as that takes no contraction and is not kept anyway.
    pub fn drop_with_what_feeds(&mut self, unit: usize) {
        let feeding = self.feeding(&self.now(), &[unit]);
        self.dropped[unit] = true;
        for maker in feeding.into_iter().filter(|&maker| self.schedule.units[maker].flops == 0) {
            self.drop_with_what_feeds(maker);
        }
    }

    pub fn now(&self) -> Timeline {
        self.timeline(&self.dropped)
    }

    fn with(&self, change: &Change) -> Timeline {
        let mut dropped = self.dropped.clone();
        change.apply(&mut dropped);
        self.timeline(&dropped)
    }

    /// Moves that also keep one result again: where second runs are in each other's way.
    fn swaps(&self, now: &Timeline, target: usize) -> Vec<Change> {
        let values = self.footprints.len();
        let over: Vec<usize> = (0..now.alive.len()).filter(|&step| now.alive[step] > target).collect();
        let crowded = |&unit: &usize| {
            self.dropped[unit]
                && self.schedule.units[unit].writes.iter().any(|value| {
                    let (start, end) = now.lives[values + value.0 as usize];
                    over.iter().any(|&step| (start as usize..end as usize).contains(&step))
                })
        };
        let crowded: Vec<usize> = (0..self.dropped.len()).filter(crowded).collect();
        let nothing = Change { drop: Vec::new(), keep: None };
        let moves = self.moves(now, target).into_iter().chain([nothing]);
        let swap =
            |change: Change| crowded.iter().map(move |&unit| Change { keep: Some(unit), ..change.clone() });
        moves.flat_map(swap).collect()
    }

    /// Sets of units whose results are in the way, the most bytes first.
    fn moves(&self, now: &Timeline, target: usize) -> Vec<Change> {
        // Steps over the target before every step.
        let mut over = vec![0usize];
        for &alive in &now.alive {
            over.push(over.last().expect("one entry") + usize::from(alive > target));
        }
        let in_the_way = |unit: usize| -> usize {
            let results = self.schedule.units[unit].writes.iter().map(|value| {
                let (start, end) = now.lives[value.0 as usize];
                if (end as usize) <= now.gate || start >= end {
                    return 0;
                }
                self.footprints[value.0 as usize] * (over[end as usize] - over[start as usize])
            });
            results.sum()
        };
        let units = (0..self.dropped.len()).filter(|&unit| self.droppable[unit] && !self.dropped[unit]);
        let mut ranked: Vec<(usize, usize)> =
            units.map(|unit| (in_the_way(unit), unit)).filter(|&(bytes, _)| bytes > 0).collect();
        ranked.sort_by_key(|&(bytes, unit)| (std::cmp::Reverse(bytes), unit));
        let mut moves = Vec::new();
        for (_, unit) in ranked.into_iter().take(CANDIDATES) {
            let mut units = vec![unit];
            for _ in 0..DEPTH {
                moves.push(Change { drop: units.clone(), keep: None });
                let more = self.feeding(now, &units);
                if more.is_empty() {
                    break;
                }
                units.extend(more);
            }
        }
        moves
    }

    /// Units that make what `units` read and that would be kept for it, though they are not now.
    fn feeding(&self, now: &Timeline, units: &[usize]) -> Vec<usize> {
        let mut found = Vec::new();
        for read in units.iter().flat_map(|&unit| &self.schedule.units[unit].reads) {
            let Some(&maker) = self.schedule.maker.get(read) else { continue };
            let kept = now.lives[read.0 as usize].1 as usize > now.gate;
            let known = self.dropped[maker] || units.contains(&maker) || found.contains(&maker);
            if self.droppable[maker] && !kept && !known {
                found.push(maker);
            }
        }
        found
    }

    fn timeline(&self, dropped: &[bool]) -> Timeline {
        let mut walk = Walk {
            search: self,
            dropped,
            done: vec![false; dropped.len()],
            steps: Vec::with_capacity(self.schedule.units.len()),
            lives: vec![(0, 0); 2 * self.footprints.len()],
            spans: vec![(u32::MAX, 0); self.schedule.loops.len()],
            over_loops: Vec::new(),
            extra_flops: 0,
            extra_bytes: 0,
        };
        let mut gate = None;
        for unit in 0..self.schedule.units.len() {
            if self.schedule.units[unit].behind_gate {
                gate.get_or_insert(walk.steps.len());
                walk.prepare(unit);
            }
            walk.run(unit, false);
        }
        walk.finish(gate)
    }
}

/// A change of decisions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    drop: Vec<usize>,
    keep: Option<usize>,
}

impl Change {
    fn apply(&self, dropped: &mut [bool]) {
        self.drop.iter().for_each(|&unit| dropped[unit] = true);
        if let Some(unit) = self.keep {
            dropped[unit] = false;
        }
    }
}

impl Timeline {
    fn excess(&self, target: usize) -> usize {
        self.alive.iter().map(|alive| alive.saturating_sub(target)).sum()
    }

    /// Work that this one has and `other` has not.
    fn cost_over(&self, other: &Self) -> f64 {
        let flops = self.extra_flops.saturating_sub(other.extra_flops) as f64;
        let bytes = self.extra_bytes.saturating_sub(other.extra_bytes) as f64;
        1.0 + flops + FLOPS_PER_BYTE * bytes
    }
}

/// A timeline in the making.
struct Walk<'w, 's> {
    search: &'w Search<'s>,
    dropped: &'w [bool],
    /// Units whose second run is placed.
    done: Vec<bool>,
    steps: Vec<Step>,
    lives: Vec<(u32, u32)>,
    /// First and last step of every loop.
    spans: Vec<(u32, u32)>,
    /// Values from outside that a loop reads.
    over_loops: Vec<(usize, usize)>,
    extra_flops: u64,
    extra_bytes: usize,
}

impl Walk<'_, '_> {
    /// Places the second runs that `unit` waits for.
    fn prepare(&mut self, unit: usize) {
        for read in &self.search.schedule.units[unit].reads {
            let Some(&maker) = self.search.schedule.maker.get(read) else { continue };
            if self.dropped[maker] && !self.done[maker] {
                self.done[maker] = true;
                self.prepare(maker);
                self.run(maker, true);
            }
        }
    }

    fn run(&mut self, index: usize, again: bool) {
        let schedule = self.search.schedule;
        let unit = &schedule.units[index];
        let (position, values) = (self.steps.len() as u32, self.search.footprints.len());
        let in_loop = if again { self.search.gate_loop } else { unit.in_loop };
        if let Some(index) = in_loop {
            let span = &mut self.spans[index];
            *span = (span.0.min(position), position);
        }
        for read in &unit.reads {
            let second = (again || unit.behind_gate)
                && schedule.maker.get(read).is_some_and(|&maker| self.dropped[maker]);
            let value = read.0 as usize + if second { values } else { 0 };
            self.lives[value].1 = position + 1;
            if let Some(index) = in_loop
                && self.lives[value].0 < self.spans[index].0
            {
                self.over_loops.push((value, index));
            }
        }
        for write in &unit.writes {
            let value = write.0 as usize + if again { values } else { 0 };
            self.lives[value] = (position, position + 1);
        }
        if again {
            self.extra_flops += unit.flops;
            let touched = unit.reads.iter().chain(&unit.writes);
            self.extra_bytes += touched.map(|value| self.search.footprints[value.0 as usize]).sum::<usize>();
        }
        self.steps.push(Step { unit: index, again });
    }

    fn finish(mut self, gate: Option<usize>) -> Timeline {
        for (value, index) in std::mem::take(&mut self.over_loops) {
            self.lives[value].1 = self.lives[value].1.max(self.spans[index].1 + 1);
        }
        let values = self.search.footprints.len();
        let mut alive = vec![0usize; self.steps.len() + 1];
        for (value, &(start, end)) in self.lives.iter().enumerate().filter(|(_, (start, end))| start < end) {
            let bytes = self.search.footprints[value % values];
            alive[start as usize] = alive[start as usize].wrapping_add(bytes);
            alive[end as usize] = alive[end as usize].wrapping_sub(bytes);
        }
        let mut sum = 0usize;
        for entry in &mut alive {
            sum = sum.wrapping_add(*entry);
            *entry = sum;
        }
        alive.pop();
        for (alive, step) in alive.iter_mut().zip(&self.steps) {
            *alive += self.search.schedule.units[step.unit].workspace.next_multiple_of(ALIGN);
        }
        Timeline {
            peak: alive.iter().copied().max().unwrap_or(0),
            gate: gate.unwrap_or(self.steps.len()),
            steps: self.steps,
            alive,
            extra_flops: self.extra_flops,
            lives: self.lives,
            extra_bytes: self.extra_bytes,
        }
    }
}
