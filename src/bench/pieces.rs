//! What a model's program runs as one, by itself: an operation or a fused group with operands of its own. A group norm
//! is also cut out together with whoever makes its operand, for those give it statistics; its gradient with the norm
//! as well, which leaves them to it.
//!
//! Lowered, a piece gives the very launches that the model has; run by the CPU backend on the same operands, it says
//! what must come out of them.

use std::collections::{HashMap, HashSet};

use super::judge::Class;
use super::operands::{self, Operand, Source};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ir::{Builder, Graph, Node, NodeId, Op, Row, ValueId};
use crate::launch::{LaunchProgram, Storage, lower};
use crate::plan::{self, Fuse, Stage, StepProgram};
use crate::tensor::DType;

/// One operation or group, or a norm with what comes before it.
pub struct Piece {
    /// The node of the model that it was cut from, the last one.
    pub node: String,
    /// Operations and groups that it has.
    pub units: usize,
    graph: Graph,
    /// By buffer `in{i}`: what the first member that reads it takes it for.
    operands: Vec<Operand>,
    /// By buffer `out{i}`.
    classes: Vec<Class>,
}

/// The distinct pieces of programs, in running order.
pub fn pieces<'p>(steps: impl IntoIterator<Item = &'p StepProgram>) -> Result<Vec<Piece>> {
    let (mut pieces, mut known) = (Vec::new(), HashSet::new());
    for step in steps {
        for id in running(&step.body) {
            if step.graph.node(id).outputs.is_empty() {
                continue;
            }
            let alone = [id];
            let measured = with_makers(step, id);
            for units in [&alone[..], &measured].into_iter().filter(|units| !units.is_empty()) {
                let piece = Cut::new(step).piece(units)?;
                if known.insert(piece.signature()) {
                    pieces.push(piece);
                }
            }
        }
    }
    Ok(pieces)
}

fn running(stages: &[Stage]) -> Vec<NodeId> {
    let of_stage = |stage: &Stage| match stage {
        Stage::Run(nodes) => nodes.clone(),
        Stage::ForEachSample(body) | Stage::If(_, body) => running(body),
    };
    stages.iter().flat_map(of_stage).collect()
}

/// A norm, or the gradient of one, behind what may give it statistics, in running order; nothing for all else.
fn with_makers(step: &StepProgram, id: NodeId) -> Vec<NodeId> {
    let graph = &step.graph;
    let root = |id: NodeId| step.fusion.group_of(id).map_or(id, |group| group.root);
    let norm = graph.node(root(id));
    if !matches!(norm.op, Op::GroupNorm { .. } | Op::GroupNormBwd { .. }) {
        return Vec::new();
    }
    let read = norm.inputs[0];
    let sources = step.fusion.sources(graph, read).unwrap_or(&norm.inputs[..1]);
    let roots = graph.view_roots();
    let maker = |&source: &ValueId| graph.value(roots[source.0 as usize]).node;
    let contracts = |&id: &NodeId| matches!(graph.node(root(id)).op, Op::Linear | Op::Conv2d { .. });
    let mut units: Vec<NodeId> = sources.iter().map(maker).filter(contracts).collect();
    if let Op::GroupNormBwd { .. } = norm.op {
        let forward = |node: &&Node| {
            matches!(node.op, Op::GroupNorm { .. }) && node.inputs.iter().eq(norm.inputs.iter().take(3))
        };
        let ran = running(&step.body).into_iter().find(|&id| forward(&graph.node(id)));
        units.extend(ran);
    }
    if !units.is_empty() {
        units.push(id);
    }
    units
}

impl Piece {
    /// Equal for pieces that differ in names alone.
    fn signature(&self) -> String {
        let node = |node: &Node| {
            let op = match &node.op {
                Op::Param { layout, .. } => format!("{layout:?}"),
                op => format!("{op:?}"),
            };
            format!("{op} {:?} {:?}", node.inputs, self.graph.shapes(&node.outputs))
        };
        self.graph.nodes.iter().map(node).collect::<Vec<_>>().join("\n")
    }

    /// Its launches, on a device that fuses so.
    pub fn lower(&self, storage: Storage, fuse: Fuse, target: &'static str) -> Result<LaunchProgram> {
        lower(&self.step(storage, fuse)?, storage, target)
    }

    /// The program that is lowered.
    pub fn step(&self, storage: Storage, fuse: Fuse) -> Result<StepProgram> {
        let fusion = fuse(&self.graph);
        StepProgram::fused(self.graph.clone(), fusion, plan::Storage::of(storage.dtype()))
    }

    /// Where its weights come from; every number is one that the storage type holds.
    pub fn weights(&self, storage: Storage) -> Source {
        Source { storage }
    }

    /// The contents of buffers `in{i}`.
    pub fn operands(&self, storage: Storage) -> Result<Vec<operands::Value>> {
        let value = |i: usize, attended: &[operands::Value]| {
            self.operands[i].value(&self.node, i, &self.graph.buffers[i].shape, storage, attended)
        };
        let saved = |i: &usize| matches!(self.operands[*i], Operand::Attention { .. });
        // What a forward pass saved comes first among the operands of its gradient and is made of the last.
        let first = (0..self.operands.len()).find(|i| !saved(i)).unwrap_or(0);
        let given: Vec<_> = (first..self.operands.len()).map(|i| value(i, &[])).collect::<Result<_>>()?;
        let attended = given.get(1..).unwrap_or_default();
        let mut values: Vec<_> = (0..first).map(|i| value(i, attended)).collect::<Result<_>>()?;
        values.extend(given);
        Ok(values)
    }

    /// What the CPU backend makes of the operands, in the order of buffers `out{i}`.
    pub fn wanted(&self, storage: Storage, operands: &[operands::Value]) -> Result<Vec<Vec<f32>>> {
        let step = StepProgram::new(self.graph.clone(), size_of::<f32>())?;
        let mut program = Cpu::<f32>::new().load_program(step, &self.weights(storage))?;
        operands::run(&mut program, operands)?;
        let output = |i: usize| program.get(&format!("out{i}")).map(<[f32]>::to_vec);
        (0..self.classes.len()).map(output).collect()
    }

    /// How results are judged, in the order of buffers `out{i}`.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }
}

/// A piece on its way out of a program.
struct Cut<'p> {
    step: &'p StepProgram,
    builder: Builder,
    /// Values of the program, and what they are in the piece.
    known: HashMap<ValueId, ValueId>,
    operands: Vec<Operand>,
}

impl<'p> Cut<'p> {
    fn new(step: &'p StepProgram) -> Self {
        Self { step, builder: Builder::new(), known: HashMap::new(), operands: Vec::new() }
    }

    /// Of units in running order.
    fn piece(mut self, units: &[NodeId]) -> Result<Piece> {
        let (step, graph) = (self.step, &self.step.graph);
        let (mut classes, mut made) = (Vec::new(), Vec::new());
        for &id in units {
            let members = step.fusion.members(id);
            for &member in &members {
                self.push(graph.node(member))?;
            }
            let last = graph.node(id);
            let root = step.fusion.group_of(id).map_or(last, |group| graph.node(group.root));
            let class = |i| Class::of(graph, root, i, members.len() > 1);
            classes.extend((0..last.outputs.len()).map(class));
            made.extend_from_slice(&last.outputs);
        }
        // Behind the buffers of all operands.
        for (i, &output) in made.iter().enumerate() {
            let buffer = self.builder.buffer(&format!("out{i}"), graph.shape(output).clone(), DType::F32);
            self.builder.store(self.known[&output], buffer, Row::All)?;
        }
        let node = units.last().map(|&id| graph.node(id).name.clone()).unwrap_or_default();
        let graph = self.builder.finish();
        Ok(Piece { node, units: units.len(), graph, operands: self.operands, classes })
    }

    fn push(&mut self, node: &Node) -> Result<()> {
        let inputs: Vec<ValueId> =
            (0..node.inputs.len()).map(|i| self.input(node, i)).collect::<Result<_>>()?;
        let outputs = self.builder.push_many(&node.name, node.op.clone(), &inputs)?;
        self.known.extend(node.outputs.iter().copied().zip(outputs));
        Ok(())
    }

    fn input(&mut self, reader: &Node, index: usize) -> Result<ValueId> {
        let graph = &self.step.graph;
        let value = reader.inputs[index];
        let operand = Operand::of(graph, reader, index);
        self.value(value, operand)
    }

    /// A value of the program: one that a member makes, a weight, or a buffer's in the place of everything else.
    fn value(&mut self, value: ValueId, operand: Operand) -> Result<ValueId> {
        let graph = &self.step.graph;
        if let Some(&known) = self.known.get(&value) {
            return Ok(known);
        }
        let (node, shape) = (graph.producer(value), graph.shape(value).clone());
        let made = match &node.op {
            Op::Param { name, parts, layout } => {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                self.builder.stacked_param(name, &parts, shape, *layout)?
            }
            // Nobody makes it: its reader reads its sources.
            _ if self.step.fusion.sources(graph, value).is_some() => {
                self.push(node)?;
                self.known[&value]
            }
            Op::Reshape if self.reaches_members(node.inputs[0]) => {
                let from = self.value(node.inputs[0], operand)?;
                self.builder.reshape(from, shape)?
            }
            _ => {
                let dtype = graph.value(value).dtype;
                let name = format!("in{}", self.operands.len());
                let buffer = self.builder.buffer(&name, shape, dtype);
                self.operands.push(operand);
                self.builder.load(buffer, Row::All)?
            }
        };
        self.known.insert(value, made);
        Ok(made)
    }

    /// Whether a view shows a weight, or what a member makes or nobody does.
    fn reaches_members(&self, value: ValueId) -> bool {
        let graph = &self.step.graph;
        if self.known.contains_key(&value) || !self.step.fusion.is_materialised(value) {
            return true;
        }
        match &graph.producer(value).op {
            Op::Param { .. } => true,
            Op::Reshape => self.reaches_members(graph.producer(value).inputs[0]),
            _ => false,
        }
    }
}
