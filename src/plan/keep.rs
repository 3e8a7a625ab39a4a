//! Plans under a byte budget: what the forward pass keeps for the backward pass, and what is made again.
//!
//! Weights are frozen, so convolutions and linear layers keep nothing; norms keep their input, attention its
//! operands, result and log-sum-exps. That is what differentiation leaves behind, and the plan without a budget.
//! Under a budget the search of `search.rs` drops some of it; the second runs that this takes are ordinary nodes
//! with the same operands, so they give the same bits, and so does everything behind them.
//!
//! Two decisions come first for a device that fuses, whatever the budget. What the backward pass reads joined is
//! joined again there, which takes no arithmetic, and the forward pass then never joins. And the operand of a
//! gated unit, the widest tensor of a transformer, is not kept but projected again from the norm's input, so that
//! the forward pass has the gate in the projection's epilogue: 2 % of a step's work for a fifth of what it keeps.

use super::program::StepProgram;
use super::rewrite::rewrite;
use super::schedule::Schedule;
use super::search::Search;
use super::storage::Storage;
use crate::error::Result;
use crate::ir::{Fusion, Graph, Op, verify};

/// What of a graph runs as one: a pass, or [`Fusion::none`].
pub type Fuse = fn(&Graph) -> Fusion;

/// How much smaller every next point of a frontier is meant to be, in parts of the point before.
const STRIDE: usize = 24;

/// Plans one graph, with and without a budget.
pub struct Planner {
    graph: Graph,
    storage: Storage,
    fuse: Fuse,
    /// Work of the second runs that are in the graph already.
    extra_flops: u64,
}

/// What a budget came to.
pub enum Fit {
    Fits(Box<StepProgram>),
    /// Nothing that the search knows is small enough; this is the smallest.
    Smallest(Box<StepProgram>),
}

impl Planner {
    pub fn new(graph: Graph, storage: Storage, fuse: Fuse) -> Result<Self> {
        verify(&graph)?;
        let (graph, extra_flops) = decide(graph, storage, fuse);
        Ok(Self { graph, storage, fuse, extra_flops })
    }

    /// The plan without a budget.
    pub fn plan(&self) -> Result<StepProgram> {
        let mut program = StepProgram::fused(self.graph.clone(), (self.fuse)(&self.graph), self.storage)?;
        program.extra_flops = self.extra_flops;
        Ok(program)
    }

    /// The plan with the least extra work whose arena takes at most `bytes`.
    pub fn within(&self, bytes: usize) -> Result<Fit> {
        let mut smallest = self.plan()?;
        if smallest.arena_bytes <= bytes {
            return Ok(Fit::Fits(Box::new(smallest)));
        }
        let fusion = (self.fuse)(&self.graph);
        let schedule = Schedule::new(&self.graph, &fusion, self.storage);
        let (mut search, mut target) = (Search::new(&schedule), bytes);
        loop {
            // In small steps: what is cheap to drop first stays dropped.
            let mut going = true;
            while going && search.now().peak > target {
                going = descend(&mut search, target);
            }
            let reached = search.now().peak;
            let mut point = search.clone();
            point.relax(target.max(reached));
            let program = self.with(&fusion, &schedule, &point)?;
            if program.arena_bytes <= bytes {
                return Ok(Fit::Fits(Box::new(program)));
            }
            // The arena may be a little larger than what is alive in it.
            target = target.saturating_sub((program.arena_bytes - bytes).max(bytes / 400));
            if program.arena_bytes < smallest.arena_bytes {
                smallest = program;
            }
            if !going {
                return Ok(Fit::Smallest(Box::new(smallest)));
            }
        }
    }

    /// Plans from the largest to the smallest arena, each with less memory and more work than the one before.
    pub fn frontier(&self) -> Result<Vec<StepProgram>> {
        let fusion = (self.fuse)(&self.graph);
        let schedule = Schedule::new(&self.graph, &fusion, self.storage);
        let mut points = vec![self.plan()?];
        let mut search = Search::new(&schedule);
        while descend(&mut search, 0) {
            let mut point = search.clone();
            point.relax(search.now().peak);
            let program = self.with(&fusion, &schedule, &point)?;
            let beaten = |last: &StepProgram| {
                last.extra_flops >= program.extra_flops && last.arena_bytes >= program.arena_bytes
            };
            while points.last().is_some_and(beaten) {
                points.pop();
            }
            if points.last().is_none_or(|last| program.arena_bytes < last.arena_bytes) {
                points.push(program);
            }
        }
        Ok(points)
    }

    fn with(&self, fusion: &Fusion, schedule: &Schedule, search: &Search<'_>) -> Result<StepProgram> {
        let timeline = search.now();
        let graph = rewrite(&self.graph, fusion, schedule, &timeline.steps);
        let fusion = (self.fuse)(&graph);
        let mut program = StepProgram::fused(graph, fusion, self.storage)?;
        program.extra_flops = self.extra_flops + timeline.extra_flops;
        Ok(program)
    }
}

/// One step down, towards `target`; whether there was one.
fn descend(search: &mut Search<'_>, target: usize) -> bool {
    let peak = search.now().peak;
    search.fit(target.max(peak - peak / STRIDE)) || search.now().peak < peak
}

/// Takes the decisions that no budget changes; see the top. Returns the graph and the work of its second runs.
fn decide(graph: Graph, storage: Storage, fuse: Fuse) -> (Graph, u64) {
    let fusion = fuse(&graph);
    if fusion.pairs.is_empty() && fusion.groups.is_empty() {
        return (graph, 0);
    }
    let schedule = Schedule::new(&graph, &fusion, storage);
    let mut search = Search::new(&schedule);
    let op = |unit: usize, op: &Op| schedule.units[unit].nodes.iter().any(|&node| graph.node(node).op == *op);
    for unit in 0..schedule.units.len() {
        if op(unit, &Op::Concat) && !schedule.units[unit].behind_gate {
            search.dropped[unit] = true;
        }
        if op(unit, &Op::GegluBwd) {
            let operand = graph.node(schedule.units[unit].nodes[0]).inputs[0];
            let Some(&projection) = schedule.maker.get(&schedule.roots[operand.0 as usize]) else { continue };
            search.drop_with_what_feeds(projection);
        }
    }
    let timeline = search.now();
    (rewrite(&graph, &fusion, &schedule, &timeline.steps), timeline.extra_flops)
}
