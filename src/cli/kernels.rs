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
    let mut parts = Vec::new();
    sum(&lowered.program.body, gpu, "always", 1, &mut parts)?;
    if args.step.json {
        rows.iter().try_for_each(|row| print_line(row.json()))?;
        return parts.iter().try_for_each(|part| print_line(part.json()));
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
    print_line("")?;
    print_line(format!("{:<24} {:>8} {:>10} {:>12}", "runs", "launches", "floor_us", "predicted_us"))?;
    parts.iter().try_for_each(|part| {
        let Part { runs, launches, floor_us, predicted_us } = part;
        print_line(format!("{runs:<24} {launches:>8} {floor_us:>10.1} {predicted_us:>12.1}"))
    })
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

/// What runs under one condition.
struct Part {
    runs: String,
    launches: usize,
    floor_us: f64,
    predicted_us: f64,
}

impl Part {
    fn json(&self) -> Value {
        let Self { runs, launches, floor_us, predicted_us } = self;
        json!({ "runs": runs, "launches": launches, "floor_us": floor_us, "predicted_us": predicted_us })
    }

    fn add(&mut self, steps: &[LaunchStep], times: usize, gpu: &Gpu) -> Result<()> {
        for LaunchStep { launch, cost, .. } in steps {
            self.launches += times;
            self.floor_us += times as f64 * cost.floor_us(gpu);
            self.predicted_us += times as f64 * predict(launch, cost, gpu)?.us;
        }
        Ok(())
    }
}

/// Adds up launches by the conditions under which they run.
fn sum(stages: &[LaunchStage], gpu: &Gpu, runs: &str, times: usize, parts: &mut Vec<Part>) -> Result<()> {
    for stage in stages {
        match stage {
            LaunchStage::Run(steps) => {
                let known = parts.iter().position(|part| part.runs == runs);
                let index = known.unwrap_or(parts.len());
                if known.is_none() {
                    parts.push(Part { runs: runs.to_owned(), launches: 0, floor_us: 0.0, predicted_us: 0.0 });
                }
                parts[index].add(steps, times, gpu)?;
            }
            LaunchStage::ForEachSample { samples, body } => sum(body, gpu, runs, times * samples, parts)?,
            LaunchStage::If(flag, body) => {
                let runs = match flag {
                    Flag::Once(Once::Prompt) => "once a batch of prompts",
                    Flag::Once(Once::Schedule) => "once a schedule",
                    Flag::Window => "in the guided window",
                    Flag::Sample(_) => "where the gate is open",
                };
                sum(body, gpu, runs, times, parts)?;
            }
        }
    }
    Ok(())
}
