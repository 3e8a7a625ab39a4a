//! `unguide bench kernels`: every distinct launch of whole models, on any machine.

use super::args::{BenchArgs, BenchKernelsArgs, BenchWhat};
use super::{print_line, settings};
use crate::bench::kernels::{Case, Row, cases};
use crate::bench::opcodes;
use crate::error::{Error, Result};
use crate::launch::device::{GPUS, Gpu, target};
use crate::launch::{LaunchProgram, binaries, lower};
use crate::passes;
use crate::pipeline::MAX_BATCH;
use crate::pipeline::programs::{self, Steering};
use crate::plan::{StepProgram, Storage};
use crate::weights::EmbeddedFiles;

pub fn run(args: &BenchArgs, demo: EmbeddedFiles) -> Result<()> {
    let BenchWhat::Kernels(args) = &args.what;
    let target = target(&args.arch)?;
    let gpu = gpu(args, target)?;
    let mut lowered = Vec::new();
    let names: Vec<&str> = match &args.preset[..] {
        [] => vec!["sd15", "sd21"],
        names => names.iter().map(String::as_str).collect(),
    };
    for name in names {
        lowered.extend(launches(name, args, target, demo)?);
    }
    let all = cases(lowered.iter().map(|(step, program)| (&step.graph, program)));
    let wanted = |case: &Case| args.filter.is_empty() || args.filter.iter().any(|word| case.matches(word));
    let mut rows: Vec<Row> = all.into_iter().filter(wanted).map(|case| case.on(target, gpu)).collect();
    if rows.is_empty() {
        let problem = format!("no launch has {:?} in its kernel, shape or node", args.filter);
        return Err(Error::usage("--filter", problem));
    }
    count_instructions(&mut rows, target)?;
    if args.json {
        return rows.iter().try_for_each(|row| print_line(row.json()));
    }
    table(&rows, target, gpu)
}

fn gpu(args: &BenchKernelsArgs, target: &'static str) -> Result<&'static Gpu> {
    match &args.gpu {
        Some(word) => Gpu::named(word),
        None => Gpu::of_target(target).or_else(|| GPUS.first()),
    }
    .ok_or_else(|| {
        let names: Vec<_> = GPUS.iter().map(|gpu| gpu.name).collect();
        let found = args.gpu.as_deref().unwrap_or_default();
        Error::usage("--gpu", format!("expected one of {}, found `{found}`", names.join(", ")))
    })
}

/// All that a guided generation runs: the text tower, a step whose gradient goes to x0 and one whose gradient goes
/// through the UNet, and the last decoding.
fn launches(
    name: &str,
    args: &BenchKernelsArgs,
    target: &'static str,
    demo: EmbeddedFiles,
) -> Result<Vec<(StepProgram, LaunchProgram)>> {
    if !(1..=MAX_BATCH).contains(&args.batch_size) {
        let problem = format!("expected 1 to {MAX_BATCH}, found {}", args.batch_size);
        return Err(Error::usage("--batch-size", problem));
    }
    let blueprint =
        settings::blueprint(&Default::default(), Some(name).filter(|&name| name != "demo"), demo)?;
    let storage = settings::storage(args.dtype)?;
    let step = |steering| blueprint.step(&blueprint.step_spec(steering, blueprint.size, args.batch_size));
    let factor = blueprint.decoder.factor();
    let (width, height) = blueprint.size;
    let graphs = [
        passes::run_all(programs::encode_text(&blueprint.text, blueprint.text.positions)?)?,
        step(Steering::X0(blueprint.guard()?))?,
        step(Steering::Xt { guard: blueprint.guard()?, frozen: false })?,
        passes::run_all(programs::decode(&blueprint.decoder, height / factor, width / factor)?)?,
    ];
    let plan = |graph| {
        let fusion = passes::fuse(&graph);
        let step = StepProgram::fused(graph, fusion, Storage::of(storage.dtype()))?;
        let program = lower(&step, storage, target)?;
        Ok((step, program))
    };
    graphs.into_iter().map(plan).collect()
}

/// Disassembles every binary that a row stands for, once.
fn count_instructions(rows: &mut [Row], target: &str) -> Result<()> {
    let Some(disassembler) = opcodes::disassembler()? else { return Ok(()) };
    for module in binaries::MODULES.iter().filter(|module| module.target == target) {
        let of_file = |row: &&mut Row| row.case.launch.kernel.file == module.file;
        let mut of_file: Vec<&mut Row> = rows.iter_mut().filter(of_file).collect();
        if of_file.is_empty() {
            continue;
        }
        let counts = opcodes::count(&disassembler, module)?;
        for row in &mut of_file {
            // A file may be compiled in several modules.
            if let Some(found) = counts.get(row.case.launch.kernel.name) {
                row.opcodes = Some(found.clone());
            }
        }
    }
    Ok(())
}

fn table(rows: &[Row], target: &str, gpu: &Gpu) -> Result<()> {
    print_line(format!(
        "floors of {} at {} TFLOP/s and {} GB/s; binaries for {target}",
        gpu.name, gpu.tflops, gpu.gb_per_second
    ))?;
    print_line("nothing was measured: this command times no kernels yet")?;
    print_line(format!(
        "{:<30} {:>5} {:>10} {:>10} {:>9} {:>4} {:>7} {:>6} {:>6}  {:<14} {:<24} shape",
        "kernel",
        "uses",
        "GFLOP",
        "MB",
        "floor_us",
        "regs",
        "smem",
        "blocks",
        "waves",
        "bound by",
        "instructions"
    ))?;
    for row in rows {
        print_line(line(row))?;
    }
    let total: f64 = rows.iter().map(|row| row.floor_us * row.case.uses as f64).sum();
    print_line(format!("{} distinct launches; all uses together take {total:.1} us at least", rows.len()))
}

fn line(row: &Row) -> String {
    let kernel = row.case.launch.kernel;
    let known = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
    let shared = kernel.shared_bytes + row.resources.map_or(0, |used| used.shared_bytes);
    let instructions = row.opcodes.as_ref().map_or("-".to_owned(), |counts| {
        let classes = ["mma", "ldmatrix", "async", "global", "shared"];
        let found = classes.iter().filter_map(|class| counts.get(class).map(|n| format!("{n} {class}")));
        found.collect::<Vec<_>>().join(" ")
    });
    format!(
        "{:<30} {:>5} {:>10.3} {:>10.3} {:>9.2} {:>4} {:>7} {:>6} {:>6}  {:<14} {instructions:<24} {}",
        kernel.name,
        row.case.uses,
        row.case.cost.flops as f64 / 1e9,
        row.case.cost.bytes as f64 / 1e6,
        row.floor_us,
        known(row.resources.map(|used| used.registers)),
        shared,
        known(row.occupancy.map(|occupancy| occupancy.blocks)),
        row.waves.map_or("-".to_owned(), |waves| format!("{waves:.2}")),
        row.occupancy.map_or("-".to_owned(), |occupancy| occupancy.bound.to_string()),
        row.case.shape
    )
}
