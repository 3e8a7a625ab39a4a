//! The step program: a graph with a place for every value, ready for any backend.

use std::collections::HashMap;
use std::fmt;

use super::memory::{self, Demand};
use super::peak::Peak;
use super::schedule::Schedule;
use super::state::StepState;
use super::storage::Storage;
use crate::error::{Error, Result};
use crate::ir::{BufferId, Flag, Fusion, Graph, Item, Layout, NodeId, Op, Row, ValueId, verify};
use crate::tensor::Shape;

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The `index`-th entry of [`StepProgram::params`].
    Param { index: usize },
    /// A named buffer, whole or the row of the current sample.
    Buffer { buffer: BufferId, row: Row },
    /// `bytes` bytes of the arena from `offset`.
    Arena { offset: usize, bytes: usize },
    /// Nowhere: it passes from one member of a group to the next, or stands for its two sources.
    Passing,
}

/// A frozen weight that the program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: String,
    /// The tensors of the checkpoint that it is made of; see [`Op::Param`].
    pub parts: Vec<String>,
    /// As the graph sees it.
    pub shape: Shape,
    pub layout: Layout,
}

impl Param {
    /// Each of its parts as a weight by itself, in the order of their rows.
    pub fn apart(&self) -> impl Iterator<Item = Self> {
        let shape = match self.parts.len() {
            0 | 1 => self.shape.clone(),
            parts => self.shape.with_first(self.shape[0] / parts),
        };
        let part = move |name: &String| Self {
            name: name.clone(),
            parts: vec![name.clone()],
            shape: shape.clone(),
            layout: self.layout,
        };
        self.parts.iter().map(part)
    }

    /// The shape of a single part in a checkpoint: `[o, c, r, s]` for a filter that is seen as `[o, r, s, c]`.
    pub fn stored_shape(&self) -> Shape {
        match (self.layout, &self.shape[..]) {
            (Layout::Filter, &[o, r, s, c]) => [o, c, r, s].into(),
            _ => self.shape.clone(),
        }
    }

    /// The tensor of the file that it is the whole of; `None` where it is stacked of several.
    pub fn alone(&self) -> Option<(&str, Shape)> {
        (self.parts.len() == 1).then(|| (self.parts[0].as_str(), self.stored_shape()))
    }
}

/// A piece of the body, in running order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    Run(Vec<NodeId>),
    ForEachSample(Vec<Stage>),
    If(Flag, Vec<Stage>),
}

/// One step of sampling (or the encoding of a text, or the decoding of latents) as one value: what runs
/// in which order, and where everything lives. A body is planned as if it always ran; one that does not
/// run costs nothing.
#[derive(Clone, Debug)]
pub struct StepProgram {
    pub graph: Graph,
    pub params: Vec<Param>,
    pub body: Vec<Stage>,
    pub arena_bytes: usize,
    /// Bytes that are alive at the busiest moment: no arena can be smaller.
    pub live_bytes: usize,
    /// Size of one element of an activation.
    pub element_bytes: usize,
    pub storage: Storage,
    /// What runs as one. A node of the body stands for its whole group.
    pub fusion: Fusion,
    /// The busiest moment.
    pub peak: Peak,
    /// Work of what runs a second time so that its results need not be kept; see [`super::Planner`].
    pub extra_flops: u64,
    slots: Vec<Slot>,
    /// The values of the arena.
    pub placed: Vec<Placed>,
}

/// A value of the arena, with its offset there. Time counts what runs, in running order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub value: ValueId,
    pub demand: Demand,
    pub offset: usize,
}

impl StepProgram {
    /// Plans `graph`, node by node, for values of `element_bytes` bytes.
    pub fn new(graph: Graph, element_bytes: usize) -> Result<Self> {
        let fusion = Fusion::none(&graph);
        Self::fused(graph, fusion, Storage::Uniform(element_bytes))
    }

    /// Plans `graph` for a device that runs the groups of `fusion` as one.
    pub fn fused(graph: Graph, fusion: Fusion, storage: Storage) -> Result<Self> {
        verify(&graph)?;
        let schedule = Schedule::new(&graph, &fusion, storage);
        let (owners, demands) = schedule.demands();
        let arena = memory::place(&demands);
        let live_bytes = memory::lower_bound(&demands);
        let peak = Peak::of(&graph, &schedule, &demands);
        let placed = owners.iter().zip(demands).zip(&arena.offsets);
        let placed = placed.map(|((&value, demand), &offset)| Placed { value, demand, offset }).collect();
        let offsets: HashMap<ValueId, usize> = owners.into_iter().zip(arena.offsets).collect();

        let mut params = Vec::new();
        let mut slots = Vec::with_capacity(graph.values.len());
        for (index, value) in graph.values.iter().enumerate() {
            let root = schedule.roots[index];
            slots.push(match &graph.producer(root).op {
                Op::Param { name, parts, layout } if root.0 as usize == index => {
                    let (name, parts, shape) = (name.clone(), parts.clone(), value.shape.clone());
                    params.push(Param { name, parts, shape, layout: *layout });
                    Slot::Param { index: params.len() - 1 }
                }
                Op::Param { .. } => slots[root.0 as usize],
                Op::Load { buffer, row } => Slot::Buffer { buffer: *buffer, row: *row },
                _ if !fusion.is_materialised(root) => Slot::Passing,
                // A value that no body makes (its node was removed) has no place and no reader.
                _ => Slot::Arena {
                    offset: offsets.get(&root).copied().unwrap_or(0),
                    bytes: schedule.bytes[root.0 as usize],
                },
            });
        }
        let body = stages(&graph, &fusion, &graph.body);
        tracing::debug!(units = schedule.units.len(), arena_bytes = arena.bytes, live_bytes, "planned");
        let element_bytes = storage.element_bytes();
        let arena_bytes = arena.bytes;
        Ok(Self {
            graph,
            params,
            body,
            arena_bytes,
            live_bytes,
            element_bytes,
            storage,
            fusion,
            peak,
            extra_flops: 0,
            slots,
            placed,
        })
    }

    /// Whether there is a row for the step wherever rows of steps are read.
    ///
    /// # Errors
    /// [`Error::Bug`] beyond the last row.
    pub fn check(&self, state: &StepState) -> Result<()> {
        let rows = |slot: &Slot| match slot {
            Slot::Buffer { buffer, row: Row::Step { .. } } => Some(self.graph.buffer(*buffer).shape[0]),
            _ => None,
        };
        match self.slots.iter().filter_map(rows).min() {
            Some(steps) if state.step as usize >= steps => {
                Err(Error::Bug(format!("step {} of a program for {steps}", state.step)))
            }
            _ => Ok(()),
        }
    }

    pub fn slot(&self, value: ValueId) -> Slot {
        self.slots[value.0 as usize]
    }

    /// The buffer of that name.
    pub fn buffer(&self, name: &str) -> Option<BufferId> {
        let position = self.graph.buffers.iter().position(|buffer| buffer.name == name)?;
        Some(BufferId(position as u32))
    }

    /// Names and bytes of all weights.
    pub fn weights(&self) -> Vec<(String, usize)> {
        let bytes = |param: &Param| (param.name.clone(), self.storage.param_bytes(&param.shape));
        self.params.iter().map(bytes).collect()
    }

    /// Bytes of all weights.
    pub fn param_bytes(&self) -> usize {
        self.weights().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of all named buffers.
    pub fn buffer_bytes(&self) -> usize {
        self.storage.buffer_bytes(&self.graph).iter().sum()
    }
}

/// What a program takes on a device besides its buffers and its arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Bytes that running it takes at most for itself.
    pub scratch_bytes: usize,
    /// Names and bytes of the weights that it holds. Programs share those of one name.
    pub weights: Vec<(String, usize)>,
}

/// The body with runs of nodes joined; free nodes and inner nodes of groups are left out.
fn stages(graph: &Graph, fusion: &Fusion, items: &[Item]) -> Vec<Stage> {
    let mut result = Vec::new();
    for item in items {
        match item {
            Item::Node(id) if !fusion.runs(graph, *id) => {}
            Item::Node(id) => match result.last_mut() {
                Some(Stage::Run(run)) => run.push(*id),
                _ => result.push(Stage::Run(vec![*id])),
            },
            Item::ForEachSample(body) => result.push(Stage::ForEachSample(stages(graph, fusion, body))),
            Item::If(flag, body) => result.push(Stage::If(*flag, stages(graph, fusion, body))),
        }
    }
    result
}

impl fmt::Display for StepProgram {
    /// Sizes first, then one line a step: where its results go.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waste = self.arena_bytes as f64 / self.live_bytes.max(1) as f64 - 1.0;
        writeln!(
            f,
            "arena   {:>14} bytes, {:.1} % over the busiest moment",
            self.arena_bytes,
            100.0 * waste
        )?;
        writeln!(f, "kept    {:>14} bytes at `{}`, the busiest step", self.peak.kept_bytes, self.peak.step)?;
        writeln!(f, "weights {:>14} bytes in {} tensors", self.param_bytes(), self.params.len())?;
        writeln!(f, "buffers {:>14} bytes", self.buffer_bytes())?;
        for buffer in &self.graph.buffers {
            writeln!(f, "  {} {} {}", buffer.name, buffer.dtype, buffer.shape)?;
        }
        self.print_stages(&self.body, 0, f)
    }
}

impl StepProgram {
    fn print_stages(&self, stages: &[Stage], depth: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indent = "  ".repeat(depth);
        for stage in stages {
            match stage {
                Stage::Run(nodes) => {
                    for &id in nodes {
                        self.print_step(id, &indent, f)?;
                    }
                }
                Stage::ForEachSample(body) => {
                    writeln!(f, "{indent}for each sample")?;
                    self.print_stages(body, depth + 1, f)?;
                }
                Stage::If(flag, body) => {
                    writeln!(f, "{indent}{}", flag.heading(|id| &self.graph.buffer(id).name))?;
                    self.print_stages(body, depth + 1, f)?;
                }
            }
        }
        Ok(())
    }

    fn print_step(&self, id: NodeId, indent: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.graph.node(id);
        let words: Vec<_> =
            self.fusion.members(id).iter().map(|&member| self.graph.node(member).op.name()).collect();
        write!(f, "{indent}{:<18} {}", words.join("+"), node.name)?;
        for &output in &node.outputs {
            if let Slot::Arena { offset, bytes } = self.slot(output) {
                write!(f, "  {}@{offset}+{bytes}", self.graph.shape(output))?;
            }
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Activation, Builder};
    use crate::tensor::DType;

    #[test]
    fn a_chain_of_equal_values_needs_two_places() {
        let mut b = Builder::new();
        let x = b.buffer("x", [1, 64], DType::F32);
        let mut value = b.load(x, Row::All).unwrap();
        for i in 0..5 {
            value = b.activate(&format!("f{i}"), value, Activation::Silu).unwrap();
        }
        b.store(value, x, Row::All).unwrap();
        let program = StepProgram::new(b.finish(), 4).unwrap();
        assert_eq!((program.arena_bytes, program.live_bytes), (512, 512));
    }

    #[test]
    fn a_view_has_the_bytes_of_what_it_shows() {
        let mut b = Builder::new();
        let x = b.buffer("x", [2, 3], DType::F32);
        let x = b.load(x, Row::All).unwrap();
        let y = b.affine("y", x, 2.0, 0.0).unwrap();
        let view = b.reshape(y, [6]).unwrap();
        let z = b.affine("z", view, 2.0, 0.0).unwrap();
        let program = StepProgram::new(b.finish(), 4).unwrap();
        assert_eq!(program.slot(view), program.slot(y));
        assert_ne!(program.slot(z), program.slot(y));
    }

    #[test]
    fn what_a_loop_reads_from_outside_survives_all_its_rounds() {
        let mut b = Builder::new();
        let x = b.buffer("x", [2, 64], DType::F32);
        let all = b.load(x, Row::All).unwrap();
        let outside = b.affine("outside", all, 2.0, 0.0).unwrap();
        let (first, last) = b
            .for_each_sample(|b| {
                let row = b.push("row", Op::SliceBatch { start: 0, len: 1 }, &[outside])?;
                let mut value = row;
                for i in 0..4 {
                    value = b.affine(&format!("inside{i}"), value, 2.0, 0.0)?;
                }
                b.store(value, x, Row::Sample)?;
                Ok((row, value))
            })
            .unwrap();
        let program = StepProgram::new(b.finish(), 4).unwrap();
        let Slot::Arena { offset, bytes } = program.slot(outside) else { panic!("outside is computed") };
        for value in [first, last] {
            let Slot::Arena { offset: other, bytes: len } = program.slot(value) else { panic!("computed") };
            assert!(other + len <= offset || offset + bytes <= other);
        }
    }
}
