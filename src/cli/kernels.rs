//! `unguide inspect kernels`: where the time of a step will go, and how far each of its layers is from its floor.

use serde_json::{Value, json};

use super::args::InspectLaunchesArgs;
use super::launches::Lowered;
use super::print_line;
use crate::bench::kernels::{Case, cases};
use crate::error::{Error, Result};
use crate::ir::{Flag, Once};
use crate::launch::choice::{Choice, Tiling, Why};
use crate::launch::device::Gpu;
use crate::launch::predict::{FILL_US, GAP_US, Prediction};
use crate::launch::tune::{Fastest, Obstacle, Reason, Rival};
use crate::launch::{LaunchStage, LaunchStep};
use crate::weights::EmbeddedFiles;

pub fn run(args: &InspectLaunchesArgs, demo: EmbeddedFiles) -> Result<()> {
    let lowered = Lowered::of(args, demo)?;
    let Some(gpu) = lowered.gpu else {
        return Err(Error::usage(
            "--gpu",
            "no device of this target is known: name one that predictions are for",
        ));
    };
    let mut rows: Vec<Row> = cases([(&lowered.step.graph, &lowered.program)])
        .into_iter()
        .map(|case| Row::of(case, gpu))
        .collect::<Result<_>>()?;
    rows.sort_by(|a, b| b.above_floor_us().total_cmp(&a.above_floor_us()));
    let mut all = Vec::new();
    flatten(&lowered.program.body, "always", 1, &mut all);
    let conditions = sums(&all, gpu, |one| one.runs)?;
    let mut files = sums(&all, gpu, |one| one.step.launch.kernel.namespace())?;
    files.sort_by(|a, b| b.above_floor_us().total_cmp(&a.above_floor_us()));
    if args.step.json {
        rows.iter().try_for_each(|row| print_line(row.json()))?;
        conditions.iter().try_for_each(|part| print_line(part.json("runs")))?;
        return files.iter().try_for_each(|part| print_line(part.json("file")));
    }
    print_line(format!(
        "predicted for {} and not measured: {FILL_US} us to fill and drain and {GAP_US} us between launches included",
        gpu.name
    ))?;
    print_line(format!(
        "{:<30} {:>4} {:>6} {:>6} {:>5} {:>5} {:>9} {:>9} {:>8} {:>9}  shape",
        "kernel", "uses", "tiles", "rounds", "tile%", "full%", "floor_us", "pred_us", "bound", "above_us"
    ))?;
    rows.iter().try_for_each(|row| print_line(row.lines()))?;
    for (title, parts) in [("runs", &conditions), ("file", &files)] {
        print_line("")?;
        print_line(format!("{title:<24} {:>8} {:>10} {:>12}", "launches", "floor_us", "predicted_us"))?;
        parts.iter().try_for_each(|part| {
            let Part { of, launches, floor_us, predicted_us } = part;
            print_line(format!("{of:<24} {launches:>8} {floor_us:>10.1} {predicted_us:>12.1}"))
        })?;
    }
    Ok(())
}

/// A distinct launch of the step.
struct Row {
    case: Case,
    floor_us: f64,
    prediction: Prediction,
}

fn predict(launch: &crate::launch::Launch, cost: &crate::launch::Cost, gpu: &Gpu) -> Result<Prediction> {
    Prediction::of(launch, cost, gpu)
        .ok_or_else(|| Error::Bug(format!("`{}` is in no family of kernels", launch.kernel.name)))
}

impl Row {
    fn of(case: Case, gpu: &Gpu) -> Result<Self> {
        let prediction = predict(&case.launch, &case.cost, gpu)?;
        Ok(Self { floor_us: case.cost.floor_us(gpu), case, prediction })
    }

    /// What all its uses together could save.
    fn above_floor_us(&self) -> f64 {
        self.case.uses as f64 * (self.prediction.us - self.floor_us)
    }

    /// The numbers, and below them what was chosen and why.
    fn lines(&self) -> String {
        let Prediction { tiles, busiest, of_tiles, of_rounds, us, bound, .. } = self.prediction;
        let numbers = format!(
            "{:<30} {:>4} {tiles:>6} {busiest:>6} {:>5.0} {:>5.0} {:>9.2} {us:>9.2} {bound:>8} {:>9.1}  {}",
            self.case.launch.kernel.name,
            self.case.uses,
            100.0 * of_tiles,
            100.0 * of_rounds,
            self.floor_us,
            self.above_floor_us(),
            self.case.shape
        );
        self.case.choice.map_or(numbers.clone(), |choice| format!("{numbers}\n    {choice}"))
    }

    fn json(&self) -> Value {
        let Prediction { blocks, tiles, busiest, of_tiles, of_rounds, compute_us, memory_us, us, bound } =
            self.prediction;
        json!({
            "kernel": self.case.launch.kernel.name, "node": self.case.node, "shape": self.case.shape,
            "uses": self.case.uses, "blocks": blocks, "tiles": tiles, "rounds": busiest,
            "efficiency": self.prediction.efficiency(), "tile_efficiency": of_tiles, "round_efficiency": of_rounds,
            "floor_us": self.floor_us, "compute_us": compute_us, "memory_us": memory_us, "predicted_us": us,
            "bound": bound.to_string(), "choice": self.case.choice.as_ref().map(choice),
        })
    }
}

fn choice(choice: &Choice) -> Value {
    let mut line = json!({ "why": choice.why.to_string() });
    if let Some(Tiling { tile, step, stages, splits, cluster, slab }) = choice.tiling {
        line["tile"] = json!(tile);
        line["step"] = json!(step);
        line["stages"] = json!(stages);
        line["splits"] = json!(splits);
        line["cluster"] = json!(cluster);
        line["slab"] = json!(slab);
    }
    if let Why::Product(Reason::Fastest(Fastest { rival, obstacle, .. })) = choice.why {
        line["rival"] =
            json!(rival.map(|Rival { tile, percent }| json!({ "tile": tile, "percent": percent })));
        line["obstacle"] = json!(obstacle.map(Obstacle::words));
    }
    line
}

/// A launch of a step with every flag set, how often it runs and when.
struct One<'a> {
    step: &'a LaunchStep,
    times: usize,
    runs: &'static str,
}

fn flatten<'a>(stages: &'a [LaunchStage], runs: &'static str, times: usize, all: &mut Vec<One<'a>>) {
    for stage in stages {
        match stage {
            LaunchStage::Run(steps) => all.extend(steps.iter().map(|step| One { step, times, runs })),
            LaunchStage::ForEachSample { samples, body } => flatten(body, runs, times * samples, all),
            LaunchStage::If(flag, body) => {
                let runs = match flag {
                    Flag::Once(Once::Prompt) => "once a batch of prompts",
                    Flag::Once(Once::Schedule) => "once a schedule",
                    Flag::Window => "in the guided window",
                    Flag::Sample(_) => "where the gate is open",
                };
                flatten(body, runs, times, all);
            }
        }
    }
}

/// Launches that have something in common, added up.
struct Part<'a> {
    of: &'a str,
    launches: usize,
    floor_us: f64,
    predicted_us: f64,
}

impl Part<'_> {
    fn above_floor_us(&self) -> f64 {
        self.predicted_us - self.floor_us
    }

    fn json(&self, of: &str) -> Value {
        let Self { launches, floor_us, predicted_us, .. } = self;
        json!({ of: self.of, "launches": launches, "floor_us": floor_us, "predicted_us": predicted_us })
    }
}

/// In the order of their first launches.
fn sums<'a>(all: &[One<'a>], gpu: &Gpu, of: impl Fn(&One<'a>) -> &'a str) -> Result<Vec<Part<'a>>> {
    let mut parts: Vec<Part<'a>> = Vec::new();
    for one in all {
        let (name, LaunchStep { launch, cost, .. }) = (of(one), one.step);
        let index = parts.iter().position(|part| part.of == name).unwrap_or_else(|| {
            parts.push(Part { of: name, launches: 0, floor_us: 0.0, predicted_us: 0.0 });
            parts.len() - 1
        });
        let part = &mut parts[index];
        part.launches += one.times;
        part.floor_us += one.times as f64 * cost.floor_us(gpu);
        part.predicted_us += one.times as f64 * predict(launch, cost, gpu)?.us;
    }
    Ok(parts)
}
