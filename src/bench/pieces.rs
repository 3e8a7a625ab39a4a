//! What a model's program runs as one, by itself: an operation or a fused group with operands of its own.
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

/// One operation or group.
pub struct Piece {
    /// The node of the model that it was cut from.
    pub node: String,
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
            let piece = Cut::new(step).piece(id)?;
            if known.insert(piece.signature()) {
                pieces.push(piece);
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

    fn piece(mut self, id: NodeId) -> Result<Piece> {
        let (step, graph) = (self.step, &self.step.graph);
        let members = step.fusion.members(id);
        for &member in &members {
            self.push(graph.node(member))?;
        }
        let last = graph.node(id);
        let root = step.fusion.group_of(id).map_or(last, |group| graph.node(group.root));
        for (i, output) in last.outputs.iter().enumerate() {
            let value = self.known[output];
            let buffer = self.builder.buffer(&format!("out{i}"), graph.shape(*output).clone(), DType::F32);
            self.builder.store(value, buffer, Row::All)?;
        }
        let classes = (0..last.outputs.len()).map(|i| Class::of(graph, root, i, members.len() > 1)).collect();
        Ok(Piece { node: last.name.clone(), graph: self.builder.finish(), operands: self.operands, classes })
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
            // A concatenation that does not run: its reader reads both sources.
            Op::Concat if !self.step.fusion.is_materialised(value) => {
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

    /// Whether a view shows a weight, or what a member or a concatenation that does not run makes.
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
