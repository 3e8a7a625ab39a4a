//! `unguide bench kernels`: every distinct launch of whole models, on any machine; on a GPU, measured.

use std::time::Duration;

use super::args::{BenchArgs, BenchKernelsArgs, BenchWhat};
use super::floors::{floors, target_of};
use super::{device, print_line, say, settings};
use crate::bench::kernels::{Case, Row, cases};
use crate::bench::measure::{Measurement, Session, Settings};
use crate::bench::{opcodes, programs, simulate};
use crate::cuda::{self, CudaDevice};
use crate::error::{Error, Result};
use crate::launch::device::Gpu;
use crate::launch::{LaunchProgram, Storage, binaries, lower};
use crate::passes;
use crate::pipeline::MAX_BATCH;
use crate::plan::{self, Fuse, StepProgram};
use crate::weights::EmbeddedFiles;

/// What runs as one.
const FUSE: Fuse = passes::fuse;

pub fn run(args: &BenchArgs, demo: EmbeddedFiles) -> Result<()> {
    let BenchWhat::Kernels(args) = &args.what;
    let (device, why_none) = match device(args)? {
        Ok(gpu) => (Some(gpu), String::new()),
        Err(reason) => (None, reason),
    };
    let (target, gpu) = floors(args.arch.as_deref(), args.gpu.as_deref(), device.as_ref())?;
    let storage = device::storage(args.dtype)?;
    let mut lowered = Vec::new();
    let names: Vec<&str> = match &args.preset[..] {
        [] => vec!["sd15", "sd21", "odd"],
        names => names.iter().map(String::as_str).collect(),
    };
    for name in names {
        lowered.extend(launches(name, args, (storage, target), demo)?);
    }
    let all = cases(lowered.iter().map(|(step, program)| (&step.graph, program)));
    let mut rows: Vec<Row> =
        all.into_iter().filter(|case| wanted(args, case)).map(|case| case.on(target, gpu)).collect();
    if rows.is_empty() {
        return Err(nothing_wanted(args));
    }
    count_instructions(&mut rows, target)?;
    let programs: Vec<&LaunchProgram> = lowered.iter().map(|(_, program)| program).collect();
    let picked: Vec<&Case> = rows.iter().map(|row| &row.case).collect();
    let counted = simulate::count(&programs, &picked)?;
    rows.iter_mut().zip(counted).for_each(|(row, counted)| row.simulated = counted);
    let head = match gpu {
        Some(Gpu { name, tflops, gb_per_second, .. }) => {
            format!("floors of {name} at {tflops} TFLOP/s and {gb_per_second} GB/s; binaries for {target}")
        }
        None => format!("no floors: no device of {target} is known; binaries for {target}"),
    };
    let Some(found) = device else {
        let why = format!("nothing is measured: {why_none}");
        if args.json {
            say(why);
        } else {
            print_line(head)?;
            print_line(why)?;
        }
        return table(&mut rows, args, (gpu, None), |_| Ok(None));
    };
    let device = CudaDevice::open(&found, storage, None)?;
    let steps: Vec<&StepProgram> = lowered.iter().map(|(step, _)| step).collect();
    let settings = Settings {
        warm_up: Duration::from_millis(args.warm_up),
        duration: Duration::from_millis(args.duration),
        hot: args.hot,
    };
    let picked = rows.iter().map(|row| &row.case);
    let mut session = Session::new((&device, &found), target, &steps, (storage, FUSE), picked, settings)?;
    if !args.json {
        print_line(head)?;
        print_line(format!(
            "measured on {} ({} multiprocessors, {} MiB of L2, clocks at most {} and {} MHz; those of now are not read)",
            found.name,
            found.multiprocessors,
            found.l2_bytes >> 20,
            found.clocks[0],
            found.clocks[1]
        ))?;
    }
    table(&mut rows, args, (gpu, Some(&found.name)), |case| session.measure(case).map(Some))
}

/// Whether a launch is one of those that the flags pick.
fn wanted(args: &BenchKernelsArgs, case: &Case) -> bool {
    let words = args.filter.is_empty() || args.filter.iter().any(|word| case.matches(word));
    words && args.picks(case.launch.kernel.name)
}

fn nothing_wanted(args: &BenchKernelsArgs) -> Error {
    match (&args.filter[..], &args.kernel[..]) {
        ([], []) => Error::usage("--no-kernel", "no launch is left"),
        ([], names) => {
            let names = names.join("` or `");
            Error::usage("--kernel", format!("no launch has a kernel whose name begins with `{names}`"))
        }
        (words, _) => {
            let words = words.join("` or `");
            Error::usage("--filter", format!("no launch has `{words}` in its kernel, shape or node"))
        }
    }
}

/// The GPU that launches are measured on, or why they are not.
fn device(args: &BenchKernelsArgs) -> Result<Result<cuda::Gpu, String>> {
    let word = args.device.as_str();
    let ordinal = match word {
        "none" => return Ok(Err("--device none".to_owned())),
        "auto" => match cuda::first_usable() {
            Ok(gpu) => {
                let own = target_of(&gpu)?;
                return Ok(match &args.arch {
                    Some(arch) if arch != own => Err(format!("{} runs {own}, not {arch}", gpu.name)),
                    _ => Ok(gpu),
                });
            }
            Err(error) => return Ok(Err(error.to_string())),
        },
        "cuda" => Some(0),
        _ => word.strip_prefix("cuda:").and_then(|digits| digits.parse().ok()),
    };
    let Some(ordinal) = ordinal else {
        let problem = format!("expected auto, none, cuda or cuda:N, found `{word}`");
        return Err(Error::usage("--device", problem));
    };
    let gpu = cuda::usable(ordinal)?;
    let own = target_of(&gpu)?;
    match &args.arch {
        Some(arch) if arch != own => {
            Err(Error::usage("--arch", format!("{} runs {own}, found `{arch}`", gpu.name)))
        }
        _ => Ok(Ok(gpu)),
    }
}

/// The programs of a published model, of the demo, or of odd sizes.
fn launches(
    name: &str,
    args: &BenchKernelsArgs,
    (storage, target): (Storage, &'static str),
    demo: EmbeddedFiles,
) -> Result<Vec<(StepProgram, LaunchProgram)>> {
    if !(1..=MAX_BATCH).contains(&args.batch_size) {
        let problem = format!("expected 1 to {MAX_BATCH}, found {}", args.batch_size);
        return Err(Error::usage("--batch-size", problem));
    }
    let graphs = match name {
        "odd" => vec![programs::odd()?],
        _ => {
            let preset = Some(name).filter(|&name| name != "demo");
            programs::of_model(
                &settings::blueprint(&Default::default(), preset, demo, true)?,
                args.batch_size,
            )?
        }
    };
    let plan = |graph| {
        let fusion = FUSE(&graph);
        let step = StepProgram::fused(graph, fusion, plan::Storage::of(storage.dtype()))?;
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

/// A line a row, as soon as it is known: floors are of one device or none, times of another or none.
fn table(
    rows: &mut [Row],
    args: &BenchKernelsArgs,
    (floor_gpu, device): (Option<&Gpu>, Option<&str>),
    mut measure: impl FnMut(&Case) -> Result<Option<Measurement>>,
) -> Result<()> {
    if args.json {
        return rows.iter_mut().try_for_each(|row| {
            row.measured = measure(&row.case)?;
            let mut line = row.json();
            line["floor_gpu"] = floor_gpu.map(|gpu| gpu.name).into();
            line["device"] = device.into();
            print_line(line)
        });
    }
    if rows.iter().any(|row| row.simulated.is_some()) {
        print_line(
            "moved: bytes between global memory and multiprocessors, and cycles lost to bank conflicts, by the SIMT \
             layer from the first, the middle and the last block",
        )?;
    }
    print_line(format!(
        "{:<30} {:>5} {:>10} {:>10} {:>9} {:>10} {:>6} {:>8} {:>7} {:>4} {:>7} {:>6} {:>6}  {:<14} {:>10} {:>9}  {:<24} shape",
        "kernel",
        "uses",
        "GFLOP",
        "MB",
        "floor_us",
        "time_us",
        "floor%",
        "TFLOP/s",
        "GB/s",
        "regs",
        "smem",
        "blocks",
        "waves",
        "bound by",
        "moved MB",
        "conflicts",
        "instructions"
    ))?;
    let (mut least, mut took, mut without, mut unsteady) = (0.0, 0.0, 0, 0);
    for row in rows.iter_mut() {
        row.measured = measure(&row.case)?;
        print_line(line(row))?;
        least += row.floor_us.unwrap_or(0.0) * row.case.uses as f64;
        match &row.measured {
            Some(Measurement::Timed(timed)) => {
                took += timed.times.median_us * row.case.uses as f64;
                unsteady += usize::from(timed.times.warning().is_some());
            }
            _ => without += 1,
        }
    }
    let floor =
        floor_gpu.map_or(String::new(), |_| format!("; all uses together take {least:.1} us at least"));
    print_line(format!("{} distinct launches{floor}", rows.len()))?;
    if rows.iter().any(|row| row.measured.is_some()) {
        print_line(format!(
            "measured: {took:.1} us for all uses of {} launches; {without} have no time; {unsteady} vary by more than \
             1 % (marked ~): lock the clocks or measure longer",
            rows.len() - without
        ))?;
    }
    Ok(())
}

fn line(row: &Row) -> String {
    let Case { launch, shape, cost, uses, .. } = &row.case;
    let kernel = launch.kernel;
    let known = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
    let shared = kernel.shared_bytes + row.resources.map_or(0, |used| used.shared_bytes);
    let instructions = row.opcodes.as_ref().map_or("-".to_owned(), |counts| {
        let classes = ["mma", "ldmatrix", "async", "global", "shared"];
        let found = classes.iter().filter_map(|class| counts.get(class).map(|n| format!("{n} {class}")));
        found.collect::<Vec<_>>().join(" ")
    });
    let (times, why) = match &row.measured {
        None => (["-"; 4].map(str::to_owned), String::new()),
        Some(Measurement::Without(reason)) => {
            (["-"; 4].map(str::to_owned), format!("; not measured: {reason}"))
        }
        Some(Measurement::Timed(timed)) => {
            let time = timed.times.median_us;
            let mark = if timed.times.warning().is_some() { "~" } else { "" };
            let times = [
                format!("{mark}{time:.2}"),
                row.floor_us.map_or("-".to_owned(), |floor| format!("{:.1}", 100.0 * floor / time)),
                format!("{:.1}", cost.flops as f64 / time / 1e6),
                format!("{:.0}", cost.bytes as f64 / time / 1e3),
            ];
            (times, String::new())
        }
    };
    let [time, of_floor, tflops, gb_per_second] = times;
    let counted = row.simulated.as_ref();
    format!(
        "{:<30} {uses:>5} {:>10.3} {:>10.3} {:>9} {time:>10} {of_floor:>6} {tflops:>8} {gb_per_second:>7} {:>4} \
         {shared:>7} {:>6} {:>6}  {:<14} {:>10} {:>9}  {instructions:<24} {shape}{why}",
        kernel.name,
        cost.flops as f64 / 1e9,
        cost.bytes as f64 / 1e6,
        row.floor_us.map_or("-".to_owned(), |floor| format!("{floor:.2}")),
        known(row.resources.map(|used| used.registers)),
        known(row.occupancy.map(|occupancy| occupancy.blocks)),
        row.waves.map_or("-".to_owned(), |waves| format!("{waves:.2}")),
        row.occupancy.map_or("-".to_owned(), |occupancy| occupancy.bound.to_string()),
        counted.map_or("-".to_owned(), |counted| format!("{:.3}", counted.global_bytes() / 1e6)),
        counted.map_or("-".to_owned(), |counted| counted.bank_conflicts.to_string()),
    )
}
