//! The kernels of whole models, each distinct launch once: what it takes, what holds it back, what it costs at best.
//!
//! Everything here is known without a device: the launches are values, the compiler has said what they take, and
//! the floor follows from work and limits.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::measure::Measurement;
use super::occupancy::{Occupancy, limits};
use super::opcodes;
use super::simulate::Simulated;
use crate::ir::Graph;
use crate::launch::choice::Choice;
use crate::launch::device::Gpu;
use crate::launch::{Cost, Launch, LaunchProgram, LaunchStep, binaries};

/// One distinct launch of the programs.
#[derive(Clone, Debug)]
pub struct Case {
    pub launch: Launch,
    /// Operands and results of the operation that it is for.
    pub shape: String,
    pub cost: Cost,
    /// What was chosen for the operation, and why.
    pub choice: Option<Choice>,
    /// Of the programs, the first that has it.
    pub program: usize,
    /// The first node that it is for, and how many there are.
    pub node: String,
    pub uses: usize,
}

/// A case on one target.
#[derive(Clone, Debug)]
pub struct Row {
    pub case: Case,
    pub target: &'static str,
    /// Nothing where no device of the target is known.
    pub floor_us: Option<f64>,
    /// What the compiler said; nothing where the build had none.
    pub resources: Option<&'static binaries::Resources>,
    pub occupancy: Option<Occupancy>,
    /// Rounds of blocks over the device's multiprocessors.
    pub waves: Option<f64>,
    /// Nothing without a disassembler.
    pub opcodes: Option<opcodes::Counts>,
    /// What some of its blocks do on the SIMT layer; nothing where the build has none.
    pub simulated: Option<Simulated>,
    /// Nothing without a device.
    pub measured: Option<Measurement>,
}

/// Equal for launches that differ in addresses alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    kernel: &'static str,
    grid: [u32; 3],
    /// Which operands are there: kernels do without some.
    given: Vec<bool>,
    numbers: Vec<u8>,
}

impl Key {
    pub fn of(launch: &Launch) -> Self {
        let (addresses, numbers) = launch.params.split_at(8 * launch.addresses);
        let given = addresses.chunks(8).map(|address| address.iter().any(|&byte| byte != 0)).collect();
        Self { kernel: launch.kernel.name, grid: launch.grid, given, numbers: numbers.to_vec() }
    }
}

/// The distinct launches of programs, in the order in which they first run.
pub fn cases<'p>(programs: impl IntoIterator<Item = (&'p Graph, &'p LaunchProgram)>) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut known: HashMap<Key, usize> = HashMap::new();
    for (index_of_program, (graph, program)) in programs.into_iter().enumerate() {
        let shapes = shapes(graph);
        for LaunchStep { node, launch, cost, choice } in program.steps() {
            let index = *known.entry(Key::of(launch)).or_insert_with(|| {
                let shape = shapes.get(node.as_str()).cloned().unwrap_or_default();
                let (launch, node) = (launch.clone(), node.clone());
                let (cost, choice, program) = (*cost, *choice, index_of_program);
                cases.push(Case { launch, shape, cost, choice, program, node, uses: 0 });
                cases.len() - 1
            });
            cases[index].uses += 1;
        }
    }
    cases
}

/// `[2, 64, 64, 320] [320, 3, 3, 320] -> [2, 64, 64, 320]` for every node.
fn shapes(graph: &Graph) -> HashMap<&str, String> {
    let words =
        |values: &[_]| graph.shapes(values).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let named = |node: &'_ crate::ir::Node| format!("{} -> {}", words(&node.inputs), words(&node.outputs));
    graph.nodes.iter().map(|node| (node.name.as_str(), named(node))).collect()
}

impl Case {
    /// Whether a word stands in what is told about it.
    pub fn matches(&self, word: &str) -> bool {
        [self.launch.kernel.name, &self.shape, &self.node].iter().any(|text| text.contains(word))
    }

    /// What is known about it for a target, on a device that runs that target if one is known.
    pub fn on(self, target: &'static str, gpu: Option<&Gpu>) -> Row {
        let kernel = self.launch.kernel;
        let resources =
            binaries::RESOURCES.iter().find(|used| used.kernel == kernel.name && used.target == target);
        let architecture = gpu.map_or(target, |gpu| gpu.architecture);
        let occupancy = resources
            .zip(limits(architecture))
            .map(|(used, limits)| Occupancy::of(kernel, used.registers, used.shared_bytes, limits));
        let blocks: f64 = self.launch.grid.iter().map(|&n| f64::from(n)).product();
        let at_once = occupancy.zip(gpu).map(|(held, gpu)| f64::from(held.blocks * gpu.multiprocessors));
        Row {
            target,
            floor_us: gpu.map(|gpu| self.cost.floor_us(gpu)),
            resources,
            occupancy,
            waves: at_once.filter(|&n| n > 0.0).map(|n| blocks / n),
            opcodes: None,
            simulated: None,
            measured: None,
            case: self,
        }
    }
}

impl Row {
    pub fn json(&self) -> Value {
        let Case { launch, shape, cost, node, uses, .. } = &self.case;
        let kernel = launch.kernel;
        let mut line = json!({
            "kernel": kernel.name, "arch": self.target, "shape": shape,
            "flops": cost.flops, "bytes": cost.bytes, "floor_us": self.floor_us,
            "registers": self.resources.map(|used| used.registers),
            "smem_bytes": kernel.shared_bytes + self.resources.map_or(0, |used| used.shared_bytes),
            "spill_bytes": self.resources.map(|used| used.spill_bytes),
            "node": node, "uses": uses, "grid": launch.grid, "block": kernel.threads, "waves": self.waves,
        });
        if let Some(Occupancy { blocks, bound, .. }) = self.occupancy {
            line["blocks_per_multiprocessor"] = json!(blocks);
            line["occupancy"] = json!(self.occupancy.map(|occupancy| occupancy.share()));
            line["occupancy_bound"] = json!(bound.to_string());
        }
        if let Some(opcodes) = &self.opcodes {
            line["instructions"] = json!(opcodes);
        }
        if let Some(simulated) = &self.simulated {
            line["simt"] = json!(simulated);
        }
        let measured = self.measured.as_ref().map(|measured| measured.json(&self.case, self.floor_us));
        if let (Some(Value::Object(fields)), Some(line)) = (measured, line.as_object_mut()) {
            line.extend(fields);
        }
        line
    }
}
