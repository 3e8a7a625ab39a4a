//! `unguide memory`: what a generation takes, by plan, without running or even reading anything but sizes.

use serde_json::json;

use super::args::{DTypeArg, GradientArg, MemoryArgs, MemoryMethod, ModelArgs};
use super::{print_line, settings};
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::launch::device::GPUS;
use crate::launch::{self, lower};
use crate::passes;
use crate::pipeline::programs::Steering;
use crate::pipeline::{Blueprint, Memory, Model, Plans, Target};
use crate::plan::{Param, StepProgram, Storage};
use crate::weights::EmbeddedFiles;

/// What is compared where no method is named: every method with the gradients that it has.
const ALL: [(MemoryMethod, GradientArg); 7] = [
    (MemoryMethod::Plain, GradientArg::None),
    (MemoryMethod::Sld, GradientArg::None),
    (MemoryMethod::SafeTaesd, GradientArg::X0),
    (MemoryMethod::Safe, GradientArg::X0),
    (MemoryMethod::Safe, GradientArg::Xt),
    (MemoryMethod::Classifier, GradientArg::X0),
    (MemoryMethod::Classifier, GradientArg::Xt),
];

/// One line of the table.
struct Row {
    model: String,
    method: MemoryMethod,
    gradient: GradientArg,
    batch: usize,
    dtype: &'static str,
    budget: Option<usize>,
    memory: Memory,
}

pub fn run(args: &MemoryArgs, demo: EmbeddedFiles) -> Result<()> {
    let (blueprint, model) = sizes(args, demo)?;
    let cases: Vec<_> =
        ALL.into_iter().filter(|&(method, gradient)| wanted(args, method, gradient)).collect();
    if cases.is_empty() {
        let problem = "no method has that gradient: plain and sld have none, safe-taesd has x0, safe and \
                       classifier have x0 and xt";
        return Err(Error::usage("--gradient", problem));
    }
    let batches = if args.batch_size.is_empty() { vec![1] } else { args.batch_size.clone() };
    let dtypes = if args.dtype.is_empty() { vec![DTypeArg::F16] } else { args.dtype.clone() };
    let mut rows = Vec::new();
    let mut refused = None;
    for &dtype in &dtypes {
        for &batch in &batches {
            for &(method, gradient) in &cases {
                match measure(args, (&blueprint, model.as_ref()), dtype, batch, (method, gradient)) {
                    Ok(more) => rows.extend(more),
                    // The rows that fit are told before what does not fit is.
                    Err(error @ Error::OutOfMemory { .. }) => drop(refused.get_or_insert(error)),
                    Err(error) => return Err(error),
                }
            }
        }
    }
    if args.json {
        rows.iter().try_for_each(|row| print_line(row.json()))?;
    } else if !rows.is_empty() {
        print_line(table(&rows))?;
    }
    refused.map_or(Ok(()), Err)
}

/// A published model by name, wherever a model may be named, or the files of one.
fn sizes(args: &MemoryArgs, demo: EmbeddedFiles) -> Result<(Blueprint, Option<Model>)> {
    let named = args.model.model.as_ref().and_then(|path| path.to_str());
    let named =
        named.filter(|name| Blueprint::PRESETS.contains(name) && !std::path::Path::new(name).exists());
    if let Some(name) = named {
        check_no_files(&args.model, name)?;
    }
    let preset = args.preset.as_deref().or(named);
    if preset.is_some() {
        return Ok((settings::blueprint(&args.model, preset, demo, true)?, None));
    }
    let model = settings::open(&args.model, demo, true)?;
    Ok((Blueprint::of(&model), Some(model)))
}

/// Flags that name files mean nothing where there are none, as with `--preset`.
fn check_no_files(args: &ModelArgs, name: &str) -> Result<()> {
    let flags = [
        ("--clip", args.clip.is_some()),
        ("--vae", args.vae.is_some()),
        ("--taesd", args.taesd.is_some()),
        ("--tokenizer", args.tokenizer.is_some()),
        ("--prediction-type", args.prediction_type.is_some()),
        ("--mmap", args.mmap),
    ];
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(Error::usage(*flag, format!("does nothing with the published sizes of {name}")))
        }
        None => Ok(()),
    }
}

fn wanted(args: &MemoryArgs, method: MemoryMethod, gradient: GradientArg) -> bool {
    (args.method.is_empty() || args.method.contains(&method))
        && (args.gradient.is_empty() || args.gradient.contains(&gradient))
}

fn measure(
    args: &MemoryArgs,
    (blueprint, model): (&Blueprint, Option<&Model>),
    dtype: DTypeArg,
    batch: usize,
    (method, gradient): (MemoryMethod, GradientArg),
) -> Result<Vec<Row>> {
    let blueprint = match method {
        MemoryMethod::SafeTaesd => blueprint.clone().with_tiny_guard(),
        _ => blueprint.clone(),
    };
    let size = settings::checked_size(&args.image, batch, &blueprint)?;
    let steering = match (method, gradient) {
        (MemoryMethod::Plain, _) => Steering::None,
        (MemoryMethod::Sld, _) => Steering::Sld,
        (MemoryMethod::Classifier, GradientArg::X0) => {
            Steering::Xt { guard: blueprint.guard()?, frozen: true }
        }
        (_, GradientArg::Xt) => Steering::Xt { guard: blueprint.guard()?, frozen: false },
        _ => Steering::X0(blueprint.guard()?),
    };
    let spec = blueprint.step_spec(steering, size, batch);

    let cpu = Cpu::<f32>::new();
    let (target, word) = match dtype {
        DTypeArg::F32 => (on_cpu(&cpu, model), "f32"),
        DTypeArg::F16 => (on_device(launch::Storage::F16), "f16"),
        DTypeArg::Bf16 => (on_device(launch::Storage::Bf16), "bf16"),
    };
    let target = Target { keep_text: !args.release_text, ..target };
    let row = |memory: Memory, budget: Option<usize>| {
        let model = blueprint.name.clone();
        Row { model, method, gradient, batch, dtype: word, budget, memory }
    };
    if !args.frontier {
        let plans = Plans::new(&blueprint, &spec, &target, args.max_vram)?;
        return Ok(vec![row(plans.memory(&spec, &target)?, args.max_vram)]);
    }
    let points = Plans::frontier(&blueprint, &spec, &target)?;
    let point = |plans: &Plans| {
        let memory = plans.memory(&spec, &target)?;
        let budget = memory.total_bytes();
        Ok(row(memory, Some(budget)))
    };
    points.iter().map(point).collect()
}

/// The CPU backend's programs, with or without the files of a model.
fn on_cpu<'a>(cpu: &'a Cpu<f32>, model: Option<&'a Model>) -> Target<'a> {
    let (storage, fuse) = cpu.storage();
    let needs = |program: &StepProgram| cpu.needs(program);
    let mapped = move |param: &Param| model.is_some_and(|model| model.maps(cpu, param));
    Target { storage, fuse, needs: Box::new(needs), mapped: Box::new(mapped), keep_text: true }
}

/// The launches of a GPU.
fn on_device(storage: launch::Storage) -> Target<'static> {
    let needs = move |program: &StepProgram| Ok(lower(program, storage, GPUS[0].target)?.needs(program));
    Target {
        storage: Storage::of(storage.dtype()),
        fuse: passes::fuse,
        needs: Box::new(needs),
        mapped: Box::new(|_| false),
        keep_text: true,
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "model": self.model,
            "method": self.method.word(),
            "gradient": self.gradient.word(),
            "batch": self.batch,
            "dtype": self.dtype,
            "total_bytes": self.memory.total_bytes(),
            "weights_bytes": self.memory.weights_bytes,
            "kept_bytes": self.memory.kept_bytes,
            "transient_bytes": self.memory.transient_bytes(),
            "extra_flops": self.memory.extra_flops,
            "budget_bytes": self.budget,
            "peak_step": self.memory.peak_step,
            "mapped_bytes": self.memory.mapped_bytes,
        })
    }

    fn line(&self) -> String {
        let memory = &self.memory;
        let mega = |bytes: usize| format!("{:.1}", bytes as f64 / 1e6);
        let work = 1.0 + memory.extra_flops as f64 / memory.step_flops.max(1) as f64;
        let method = format!("{} {}", self.method.word(), self.gradient.word());
        format!(
            "{method:<16} {:>5} {:>5} {:>9} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7} {work:>6.3}  {}",
            self.batch,
            self.dtype,
            mega(memory.total_bytes()),
            mega(memory.weights_bytes),
            mega(memory.kept_bytes),
            mega(memory.live_bytes),
            mega(memory.workspace_bytes),
            mega(memory.waste_bytes),
            mega(memory.buffer_bytes),
            mega(memory.mapped_bytes),
            memory.peak_step
        )
    }
}

/// The rows in megabytes (10^6 bytes), and the two comparisons.
fn table(rows: &[Row]) -> String {
    let mut lines = vec![
        format!(
            "{}: bytes by plan, in MB (10^6); a driver's own memory and what is mapped are not in the total",
            rows[0].model
        ),
        format!(
            "{:<16} {:>5} {:>5} {:>9} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7} {:>7} {:>6}  at",
            "method",
            "batch",
            "dtype",
            "total",
            "weights",
            "kept",
            "transient",
            "work-sp",
            "waste",
            "buffers",
            "mapped",
            "work"
        ),
    ];
    lines.extend(rows.iter().map(Row::line));
    for x0 in rows.iter().filter(|row| row.method == MemoryMethod::Safe && row.gradient == GradientArg::X0) {
        let same = |row: &&Row| {
            (row.method, row.gradient) == (MemoryMethod::Safe, GradientArg::Xt)
                && (row.batch, row.dtype, row.budget) == (x0.batch, x0.dtype, x0.budget)
        };
        if let Some(xt) = rows.iter().find(same) {
            let share = 100.0 * x0.memory.total_bytes() as f64 / xt.memory.total_bytes() as f64;
            lines.push(format!("x0 against xt, both ours, batch {}, {}: {share:.1} %", x0.batch, x0.dtype));
        }
    }
    lines
        .push("ours against torch, same method: not measured (benches/torch_memory.py, on a GPU)".to_owned());
    lines.join("\n")
}
