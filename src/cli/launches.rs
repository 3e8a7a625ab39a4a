//! `unguide inspect launches`: what would run on a GPU, on any machine.

use serde_json::json;

use super::args::InspectLaunchesArgs;
use super::floors::floors;
use super::inspect;
use super::{device, print_line};
use crate::error::Result;
use crate::ir::{Flag, Once};
use crate::launch::device::Gpu;
use crate::launch::{LaunchProgram, LaunchStage, LaunchStep, lower};
use crate::passes;
use crate::plan::{StepProgram, Storage};
use crate::weights::EmbeddedFiles;

pub fn run(args: &InspectLaunchesArgs, demo: EmbeddedFiles) -> Result<()> {
    let lowered = Lowered::of(args, demo)?;
    let program = &lowered.program;
    let listing = Listing { program, gpu: lowered.gpu, json: args.step.json };
    if !args.step.json {
        listing.head()?;
    }
    listing.stages(&program.body, (1, None), 0)?;
    if args.step.json { Ok(()) } else { listing.totals() }
}

/// A step as the launches of a target.
pub(super) struct Lowered {
    pub step: StepProgram,
    pub program: LaunchProgram,
    /// None where no device of the target is known.
    pub gpu: Option<&'static Gpu>,
}

impl Lowered {
    pub fn of(args: &InspectLaunchesArgs, demo: EmbeddedFiles) -> Result<Self> {
        let (target, gpu) = floors(args.arch.as_deref(), args.gpu.as_deref(), None)?;
        let storage = device::storage(args.dtype)?;
        let graph = inspect::step(&args.step, demo)?;
        let fusion = passes::fuse(&graph);
        let step = StepProgram::fused(graph, fusion, Storage::of(storage.dtype()))?;
        let program = lower(&step, storage, target)?;
        Ok(Self { step, program, gpu })
    }
}

struct Listing<'a> {
    program: &'a LaunchProgram,
    /// None where no device of the target is known.
    gpu: Option<&'a Gpu>,
    json: bool,
}

impl Listing<'_> {
    fn head(&self) -> Result<()> {
        print_line(format!(
            "{:<24} {:<12} {:>5} {:>10} {:>13} {:>12} {:>9}  node",
            "kernel", "grid", "block", "smem_bytes", "flops", "bytes", "floor_us"
        ))
    }

    /// `times` a step (or prompt, or schedule) in a part of the program.
    fn stages(
        &self,
        stages: &[LaunchStage],
        (times, part): (usize, Option<Once>),
        depth: usize,
    ) -> Result<()> {
        let words = |words: String| match self.json {
            true => Ok(()),
            false => print_line(format!("{}{words}", "  ".repeat(depth))),
        };
        for stage in stages {
            match stage {
                LaunchStage::Run(run) => run.iter().try_for_each(|step| self.line(step, times, part))?,
                LaunchStage::ForEachSample { samples, body } => {
                    words(format!("for each of {samples} samples"))?;
                    self.stages(body, (times * samples, part), depth + 1)?;
                }
                LaunchStage::If(flag, body) => {
                    words(flag.heading(|id| &self.program.buffers[id.0 as usize].name))?;
                    let part = if let Flag::Once(once) = flag { Some(*once) } else { part };
                    self.stages(body, (times, part), depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn line(&self, step: &LaunchStep, times: usize, part: Option<Once>) -> Result<()> {
        let (kernel, grid, cost) = (step.launch.kernel, step.launch.grid, step.cost);
        let floor = self.gpu.map(|gpu| cost.floor_us(gpu));
        if self.json {
            return print_line(json!({
                "kernel": kernel.name, "node": step.node, "grid": grid, "block": [kernel.threads, 1, 1],
                "smem_bytes": kernel.shared_bytes, "flops": cost.flops, "executed_flops": cost.executed_flops,
                "bytes": cost.bytes, "floor_us": floor, "times": times, "part": Once::part(part),
            }));
        }
        print_line(format!(
            "{:<24} {:<12} {:>5} {:>10} {:>13} {:>12} {:>9}  {}",
            kernel.name,
            format!("{}x{}x{}", grid[0], grid[1], grid[2]),
            kernel.threads,
            kernel.shared_bytes,
            cost.flops,
            cost.bytes,
            floor.map_or("-".to_owned(), |floor| format!("{floor:.2}")),
            step.node
        ))
    }

    /// Of a step in which everything runs, and of what runs once for all steps.
    fn totals(&self) -> Result<()> {
        let program = self.program;
        print_line("")?;
        for part in Once::PARTS.into_iter().filter(|&part| !program.part(part).is_empty()) {
            let (cost, launches) = (program.cost_of(part), program.steps_of(part).len());
            let floor = self.gpu.map(|gpu| {
                let us = floor_us(program.part(part), gpu);
                format!("; {us:.2} us on {}: no launch can be faster", gpu.name)
            });
            print_line(format!(
                "{:<10} {launches} launches, {:.1} GFLOP as the mathematics has it, {:.1} executed, {:.1} MB moved{}",
                Once::part(part),
                cost.flops as f64 / 1e9,
                cost.executed_flops as f64 / 1e9,
                cost.bytes as f64 / 1e6,
                floor.unwrap_or_default()
            ))?;
        }
        print_line(format!(
            "weights    {} bytes in {} tensors",
            program.weight_bytes(),
            program.weights.len()
        ))?;
        print_line(format!("buffers    {} bytes", program.buffer_bytes()))?;
        print_line(format!("arena      {} bytes", program.arena_bytes))
    }
}

fn floor_us<'s>(stages: impl IntoIterator<Item = &'s LaunchStage>, gpu: &Gpu) -> f64 {
    let of = |stage: &LaunchStage| match stage {
        LaunchStage::Run(run) => run.iter().map(|step| step.cost.floor_us(gpu)).sum::<f64>(),
        LaunchStage::ForEachSample { samples, body } => *samples as f64 * floor_us(body, gpu),
        LaunchStage::If(_, body) => floor_us(body, gpu),
    };
    stages.into_iter().map(of).sum()
}
