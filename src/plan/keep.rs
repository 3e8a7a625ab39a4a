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
        let free = self.plan()?;
        if free.arena_bytes <= bytes {
            return Ok(Fit::Fits(Box::new(free)));
        }
        match self.down(free, bytes, bytes)? {
            // Where the search ends depends on where it is headed. The smallest plan of a budget that nothing
            // fits lies at the end of the way to the bottom, and has to be found by the budget that it names.
            Fit::Smallest(smallest) if bytes > 0 => self.down(*smallest, bytes, 0),
            fit => Ok(fit),
        }
    }

    /// Heads for `target` bytes until a plan takes at most `bytes`; `smallest` is the smallest so far.
    fn down(&self, mut smallest: StepProgram, bytes: usize, mut target: usize) -> Result<Fit> {
        let fusion = (self.fuse)(&self.graph);
        let schedule = Schedule::new(&self.graph, &fusion, self.storage);
        let mut search = Search::new(&schedule);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, Flag, Padding, Row};
    use crate::tensor::DType;

    /// Two convolutions with a norm each, of which the second one's input waits for the backward pass.
    fn forward_and_backward() -> Graph {
        let mut b = Builder::new();
        let x = b.buffer("x", [1, 8, 8, 8], DType::F32);
        let gate = b.buffer("gate", [1], DType::F32);
        let gradient = b.buffer("gradient", [1, 8, 8, 8], DType::F32);
        b.for_each_sample(|b| {
            let x = b.load(x, Row::Sample)?;
            let h = b.conv2d("conv1", x, (8, 3), (1, Padding::all(1)), false)?;
            let mut y = b.group_norm("norm", h, (2, 1e-5), None)?;
            for i in 0..3 {
                y = b.conv2d(&format!("after{i}"), y, (32, 3), (1, Padding::all(1)), false)?;
            }
            let y = b.conv2d("last", y, (8, 3), (1, Padding::all(1)), false)?;
            b.when(Flag::Sample(gate), |b| {
                let gamma = b.param("norm.weight", [8], crate::ir::Layout::Plain)?;
                let beta = b.param("norm.bias", [8], crate::ir::Layout::Plain)?;
                let backward = Op::GroupNormBwd { groups: 2, eps: 1e-5, act: None };
                let dx = b.push("norm.grad", backward, &[h, gamma, beta, y])?;
                b.store(dx, gradient, Row::Sample)
            })
        })
        .expect("shapes fit");
        b.finish()
    }

    #[test]
    fn what_is_not_kept_is_made_again_right_before_it_is_wanted() {
        let planner = Planner::new(forward_and_backward(), Storage::Uniform(4), Fusion::none).unwrap();
        let free = planner.plan().unwrap();
        // Two wide images and what waits for the backward pass, of 2048 bytes.
        assert_eq!((free.arena_bytes, free.peak.kept_bytes), (2 * 8192 + 2048, 2048));
        let Fit::Fits(lean) = planner.within(2 * 8192).unwrap() else { panic!("two wide images are enough") };
        assert_eq!((lean.arena_bytes, lean.peak.kept_bytes), (2 * 8192, 0));
        assert_eq!(lean.extra_flops, 2 * 64 * 8 * 9 * 8);
        let names: Vec<_> = lean.graph.order().iter().map(|&id| lean.graph.node(id).name.clone()).collect();
        assert_eq!(names[names.len() - 3..], ["conv1.again", "norm.grad", "gradient"]);
        let Fit::Smallest(least) = planner.within(8192).unwrap() else { panic!("that is too little") };
        assert_eq!(least.arena_bytes, 2 * 8192);
    }
}
