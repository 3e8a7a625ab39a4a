//! `unguide inspect launches`: what would run on a GPU, on any machine.

use serde_json::json;

use super::args::InspectLaunchesArgs;
use super::inspect;
use super::{print_line, settings};
use crate::error::{Error, Result};
use crate::ir::Flag;
use crate::launch::device::{GPUS, Gpu, target};
use crate::launch::{LaunchProgram, LaunchStage, LaunchStep, lower};
use crate::passes;
use crate::plan::{StepProgram, Storage};
use crate::weights::EmbeddedFiles;

pub fn run(args: &InspectLaunchesArgs, demo: EmbeddedFiles) -> Result<()> {
    let gpu = args.gpu.as_deref().map(named).transpose()?;
    let target = match (&args.arch, gpu) {
        (Some(word), _) => target(word)?,
        (None, Some(gpu)) => gpu.target,
        (None, None) => GPUS[0].target,
    };
    let gpu = gpu.or_else(|| Gpu::of_target(target));
    let storage = settings::storage(args.dtype)?;
    let graph = inspect::step(&args.step, demo)?;
    let fusion = passes::fuse(&graph);
    let step = StepProgram::fused(graph, fusion, Storage::of(storage.dtype()))?;
    let program = lower(&step, storage, target)?;
    let listing = Listing { program: &program, gpu, json: args.step.json };
    if !args.step.json {
        listing.head()?;
    }
    listing.stages(&program.body, 1, 0)?;
    if args.step.json { Ok(()) } else { listing.totals() }
}

fn named(word: &str) -> Result<&'static Gpu> {
    Gpu::named(word).ok_or_else(|| {
        let names: Vec<_> = GPUS.iter().map(|gpu| gpu.name).collect();
        Error::usage("--gpu", format!("expected one of {}, found `{word}`", names.join(", ")))
    })
}

struct Listing<'a> {
    program: &'a LaunchProgram,
    /// None where nobody measured what the target's devices do.
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

    fn stages(&self, stages: &[LaunchStage], times: usize, depth: usize) -> Result<()> {
        let words = |words: String| match self.json {
            true => Ok(()),
            false => print_line(format!("{}{words}", "  ".repeat(depth))),
        };
        for stage in stages {
            match stage {
                LaunchStage::Run(run) => run.iter().try_for_each(|step| self.line(step, times))?,
                LaunchStage::ForEachSample { samples, body } => {
                    words(format!("for each of {samples} samples"))?;
                    self.stages(body, times * samples, depth + 1)?;
                }
                LaunchStage::If(flag, body) => {
                    match flag {
                        Flag::Window => words("if window".to_owned())?,
                        Flag::Sample(buffer) => {
                            words(format!("if {}[sample]", self.program.buffers[buffer.0 as usize].name))?;
                        }
                    }
                    self.stages(body, times, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn line(&self, step: &LaunchStep, times: usize) -> Result<()> {
        let (kernel, grid, cost) = (step.launch.kernel, step.launch.grid, step.cost);
        let floor = self.gpu.map(|gpu| cost.floor_us(gpu));
        if self.json {
            return print_line(json!({
                "kernel": kernel.name, "node": step.node, "grid": grid, "block": [kernel.threads, 1, 1],
                "smem_bytes": kernel.shared_bytes, "flops": cost.flops,
                "executed_flops": cost.executed_flops, "bytes": cost.bytes, "floor_us": floor, "times": times, "steady": step.steady,
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

    /// Of a step in which everything runs.
    fn totals(&self) -> Result<()> {
        let program = self.program;
        let (all, steady) = (program.cost(), program.steady_cost());
        let giga = |flops: u64| flops as f64 / 1e9;
        print_line("")?;
        print_line(format!("launches   {}", program.steps().len()))?;
        print_line(format!("flops      {:.1} GFLOP, as the mathematics has it", giga(all.flops)))?;
        print_line(format!(
            "  of these {:.1} GFLOP are the same at every step: projections of the text and of the time",
            giga(steady.flops)
        ))?;
        print_line(format!(
            "executed   {:.1} GFLOP: whole tiles, and no tap of an enlarged image twice",
            giga(all.executed_flops)
        ))?;
        print_line(format!("bytes      {:.1} MB moved", all.bytes as f64 / 1e6))?;
        if let Some(gpu) = self.gpu {
            let word = gpu.name;
            print_line(format!(
                "floor      {:.2} us on {word}: no launch can be faster",
                self.floor_us(gpu)
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

    fn floor_us(&self, gpu: &Gpu) -> f64 {
        fn sum(stages: &[LaunchStage], gpu: &Gpu) -> f64 {
            let stage = |stage: &LaunchStage| match stage {
                LaunchStage::Run(run) => run.iter().map(|step| step.cost.floor_us(gpu)).sum::<f64>(),
                LaunchStage::ForEachSample { samples, body } => *samples as f64 * sum(body, gpu),
                LaunchStage::If(_, body) => sum(body, gpu),
            };
            stages.iter().map(stage).sum()
        }
        sum(&self.program.body, gpu)
    }
}
