//! From a step program to launches, without a device.
//!
//! Nodes become launches in the order of the plan, which also says where their results lie. What a kernel reads in
//! another type than it was made in is copied before its first reader. A sample's row of a buffer is copied in and
//! out by kernels that read the sample's index from the state, so that every launch is the same for all samples;
//! what a step needs of the rows of all steps comes the same way, in one copy.
//! Copies and workspaces are placed behind the plan's arena, by the launches between which they live.
//!
//! Pure: equal programs, storage types and targets give equal launches.

use std::collections::HashMap;
use std::mem::offset_of;

use super::device::MOST_BLOCKS;
use super::forms::Form;
use super::layout::{Element, Place};
use super::location::{Location, Space, relocate};
use super::params::{DevicePtr, StepState};
use super::types::{Types, of_letter, root};
use super::{
    Cost, DeviceBuffer, Launch, LaunchProgram, LaunchStage, LaunchStep, Operand, Storage, kinds, weights,
};
use crate::error::{Error, Result};
use crate::ir::{BufferId, Node, NodeId, Op, Row, ValueId};
use crate::plan::{self, ALIGN, Demand, Slot, Stage, StepProgram};
use crate::tensor::{DType, Shape};

/// The launches of a step for one storage type and one of [`crate::manifest::TARGETS`].
///
/// # Errors
/// [`Error::Params`] where a launch would break a rule of its kernel; [`Error::Bug`] where an operation has no
/// kernel or the plan has too little room for a value.
pub fn lower(step: &StepProgram, storage: Storage, target: &'static str) -> Result<LaunchProgram> {
    let types = Types::of(&step.graph, storage);
    let mut lowering = Lowering {
        step,
        storage,
        target,
        types,
        launches: 0,
        at_hand: HashMap::new(),
        rows_at_hand: HashMap::new(),
        scratch: Vec::new(),
    };
    let body = lowering.stages(&step.body)?;
    let Lowering { types, scratch, .. } = lowering;

    let buffers = step.graph.buffers.iter().enumerate().map(|(index, buffer)| DeviceBuffer {
        name: buffer.name.clone(),
        shape: buffer.shape.clone(),
        dtype: types.buffer(BufferId(index as u32)),
    });
    let (behind, placed) = (step.arena_bytes.next_multiple_of(ALIGN), plan::place(&scratch));
    let program = LaunchProgram {
        storage,
        target,
        body,
        arena_bytes: behind + placed.bytes,
        weights: weights::place(&step.params, &param_types(step, &types)),
        buffers: buffers.collect(),
    };
    let program = program.map(|launch| {
        relocate(launch, |location| match location.space {
            Space::Scratch(index) => {
                arena(behind + placed.offsets[index as usize] + location.offset as usize).symbol()
            }
            _ => location.symbol(),
        })
    });
    tracing::debug!(launches = program.steps().len(), arena_bytes = program.arena_bytes, target, "lowered");
    Ok(program)
}

fn arena(offset: usize) -> Location {
    Location { space: Space::Arena, offset: offset as u64 }
}

/// Types of the weights, in the order of the program's params.
fn param_types(step: &StepProgram, types: &Types) -> Vec<DType> {
    let mut found = vec![DType::F32; step.params.len()];
    for index in 0..step.graph.values.len() as u32 {
        if let Slot::Param { index: param } = step.slot(ValueId(index)) {
            found[param] = types.value(ValueId(index));
        }
    }
    found
}

struct Lowering<'a> {
    step: &'a StepProgram,
    storage: Storage,
    target: &'static str,
    types: Types,
    /// How many there are so far: the time of lifetimes.
    launches: usize,
    /// Copies that later launches of the open stages may read, by value and type.
    at_hand: HashMap<(ValueId, DType), DevicePtr>,
    /// The same for the step's rows of buffers.
    rows_at_hand: HashMap<(BufferId, DType), DevicePtr>,
    scratch: Vec<Demand>,
}

impl Lowering<'_> {
    fn stages(&mut self, stages: &[Stage]) -> Result<Vec<LaunchStage>> {
        stages.iter().map(|stage| self.stage(stage)).collect()
    }

    fn stage(&mut self, stage: &Stage) -> Result<LaunchStage> {
        match stage {
            Stage::Run(nodes) => {
                let mut run = Vec::new();
                for &id in nodes {
                    self.node(id, &mut run)?;
                }
                Ok(LaunchStage::Run(run))
            }
            Stage::ForEachSample(body) => {
                let (first, before) = (self.launches, self.scratch.len());
                let samples = self.samples(stage);
                let body = self.inner(body)?;
                // What was copied before the loop is read again by its next round.
                for scratch in &mut self.scratch[..before] {
                    if scratch.live.end > first {
                        scratch.live.end = self.launches;
                    }
                }
                Ok(LaunchStage::ForEachSample { samples, body })
            }
            Stage::If(flag, body) => Ok(LaunchStage::If(*flag, self.inner(body)?)),
        }
    }

    /// A body that may not run: what it copies is of no use behind it.
    fn inner(&mut self, body: &[Stage]) -> Result<Vec<LaunchStage>> {
        let outer = (self.at_hand.clone(), self.rows_at_hand.clone());
        let body = self.stages(body);
        (self.at_hand, self.rows_at_hand) = outer;
        body
    }

    /// The batch: rows of a buffer that the body takes a row of.
    fn samples(&self, stage: &Stage) -> usize {
        let graph = &self.step.graph;
        match stage {
            Stage::Run(nodes) => {
                let rows = nodes.iter().find_map(|&id| {
                    let node = graph.node(id);
                    let loaded = node.inputs.iter().find_map(|&input| match self.step.slot(input) {
                        Slot::Buffer { buffer, row: Row::Sample } => Some(buffer),
                        _ => None,
                    });
                    match node.op {
                        Op::Store { buffer, row: Row::Sample } => Some(buffer),
                        _ => loaded,
                    }
                });
                rows.map_or(0, |buffer| graph.buffer(buffer).shape[0])
            }
            Stage::ForEachSample(body) | Stage::If(_, body) => {
                body.iter().map(|stage| self.samples(stage)).max().unwrap_or(0)
            }
        }
    }

    fn node(&mut self, id: NodeId, run: &mut Vec<LaunchStep>) -> Result<()> {
        let node = self.step.graph.node(id);
        if let Op::Store { buffer, row } = node.op {
            return self.store(node, buffer, row, run);
        }
        let Some(kinds) = kinds(&node.op) else {
            return Err(Error::Bug(format!("`{}` ({}) has no kernel", node.name, node.op.name())));
        };
        let inputs = node.inputs.iter().zip(kinds.inputs.bytes());
        let inputs: Vec<Operand> = inputs
            .map(|(&value, letter)| self.input(node, value, of_letter(letter, self.storage), run))
            .collect::<Result<_>>()?;
        let outputs = node.outputs.iter().zip(kinds.outputs.bytes());
        let outputs: Vec<Operand> = outputs
            .map(|(&value, letter)| self.output(node, value, of_letter(letter, self.storage)))
            .collect::<Result<_>>()?;
        let form = Form::of(&node.op, (self.storage, self.target), &inputs, &outputs);
        let workspace = match form.workspace() {
            0 => DevicePtr::NONE,
            bytes => self.scratch(bytes),
        };
        let at = [Location::start(Space::State).symbol(), workspace];
        let launches = form.launches(&node.op, self.storage, at, &inputs, &outputs)?;
        let mut cost = Cost::of(&self.step.graph, node, kinds, self.storage);
        for launch in launches {
            self.emit(node, launch, std::mem::take(&mut cost), run);
        }
        for at in inputs.iter().map(|operand| operand.at).chain([workspace]) {
            if let Some(Location { space: Space::Scratch(index), .. }) = Location::of(at) {
                self.scratch[index as usize].live.end = self.launches;
            }
        }
        Ok(())
    }

    /// Bytes that live for the next launch, and longer if somebody says so.
    fn scratch(&mut self, bytes: usize) -> DevicePtr {
        let index = self.scratch.len() as u32;
        self.scratch.push(Demand { bytes, live: self.launches..self.launches + 1 });
        Location::start(Space::Scratch(index)).symbol()
    }

    fn emit(&mut self, node: &Node, launch: Launch, cost: Cost, run: &mut Vec<LaunchStep>) {
        run.push(LaunchStep { node: node.name.clone(), launch, cost });
        self.launches += 1;
    }

    /// Where a kernel finds an operand in the type that it reads.
    fn input(
        &mut self,
        reader: &Node,
        value: ValueId,
        wanted: DType,
        run: &mut Vec<LaunchStep>,
    ) -> Result<Operand> {
        let shape = self.step.graph.shape(value).clone();
        let value = root(&self.step.graph, value);
        if let Slot::Buffer { buffer, row: Row::Step { start, .. } } = self.step.slot(value) {
            let row = self.row_of_step(reader, buffer, wanted, run)?;
            let offset = (start * wanted.bytes()) as u64;
            return Ok(Operand { at: Location { offset, ..row }.symbol(), shape });
        }
        let (home, of_sample) = self.home(reader, value)?;
        if !of_sample && self.types.value(value) == wanted {
            return Ok(Operand { at: home.symbol(), shape });
        }
        let key = (value, wanted);
        let at = match self.at_hand.get(&key) {
            Some(&at) => at,
            None => {
                let at = self.scratch(shape.count() * wanted.bytes());
                let row_of = of_sample.then_some(SAMPLE);
                let from = Side { at: home.symbol(), dtype: self.types.value(value), row_of };
                self.copy(reader, from, Side { at, dtype: wanted, row_of: None }, &shape, run)?;
                self.at_hand.insert(key, at);
                at
            }
        };
        Ok(Operand { at, shape })
    }

    /// The row of the step of a buffer, copied as a whole: one launch for all that is read of it.
    fn row_of_step(
        &mut self,
        reader: &Node,
        buffer: BufferId,
        wanted: DType,
        run: &mut Vec<LaunchStep>,
    ) -> Result<Location> {
        let at = match self.rows_at_hand.get(&(buffer, wanted)) {
            Some(&at) => at,
            None => {
                let shape = &self.step.graph.buffer(buffer).shape;
                let count = shape.count() / shape[0];
                let at = self.scratch(count * wanted.bytes());
                let home = Location::start(Space::Buffer(buffer.0)).symbol();
                let from = Side { at: home, dtype: self.types.buffer(buffer), row_of: Some(STEP) };
                let to = Side { at, dtype: wanted, row_of: None };
                self.copy(reader, from, to, &[1, count].into(), run)?;
                self.rows_at_hand.insert((buffer, wanted), at);
                at
            }
        };
        Location::of(at).ok_or_else(|| Error::Bug(format!("`{}` reads a row from nowhere", reader.name)))
    }

    /// Where the plan has a value, and whether it is the row of the current sample.
    fn home(&self, reader: &Node, value: ValueId) -> Result<(Location, bool)> {
        Ok(match self.step.slot(value) {
            Slot::Param { index } => (Location::start(Space::Weight(index as u32)), false),
            Slot::Buffer { buffer, row } => (Location::start(Space::Buffer(buffer.0)), row == Row::Sample),
            Slot::Arena { offset, .. } => (arena(offset), false),
            Slot::Passing => {
                let problem =
                    format!("`{}` reads what never reaches memory: its group has no kernel", reader.name);
                return Err(Error::Bug(problem));
            }
        })
    }

    fn output(&self, node: &Node, value: ValueId, dtype: DType) -> Result<Operand> {
        let shape = self.step.graph.shape(value).clone();
        match self.step.slot(value) {
            Slot::Arena { offset, bytes } if bytes >= shape.count() * dtype.bytes() => {
                Ok(Operand { at: arena(offset).symbol(), shape })
            }
            slot => Err(Error::Bug(format!("`{}` makes {shape} in {dtype} at {slot:?}", node.name))),
        }
    }

    fn store(&mut self, node: &Node, buffer: BufferId, row: Row, run: &mut Vec<LaunchStep>) -> Result<()> {
        let value = root(&self.step.graph, node.inputs[0]);
        let dtype = self.types.value(value);
        let from = match self.step.slot(value) {
            Slot::Buffer { row: Row::Step { .. }, .. } => {
                Side { at: self.input(node, value, dtype, run)?.at, dtype, row_of: None }
            }
            _ => {
                let (home, of_sample) = self.home(node, value)?;
                Side { at: home.symbol(), dtype, row_of: of_sample.then_some(SAMPLE) }
            }
        };
        let at = Location::start(Space::Buffer(buffer.0)).symbol();
        let row_of = (row == Row::Sample).then_some(SAMPLE);
        let to = Side { at, dtype: self.types.buffer(buffer), row_of };
        let shape = self.step.graph.shape(node.inputs[0]).clone();
        self.copy(node, from, to, &shape, run)
    }

    fn copy(
        &mut self,
        node: &Node,
        from: Side,
        to: Side,
        shape: &Shape,
        run: &mut Vec<LaunchStep>,
    ) -> Result<()> {
        let count = shape.count();
        let (Some(x), Some(out)) = (from.element(), to.element()) else {
            return Err(Error::Bug(format!("`{}` copies {} to {}", node.name, from.dtype, to.dtype)));
        };
        let row = |side: Side| if side.row_of.is_some() { count } else { 0 };
        let index = from.row_of.or(to.row_of).map_or(DevicePtr::NONE, Location::symbol);
        let place = Place { x_sample: row(from), out_sample: row(to), ..Place::whole(count) };
        let launch = place.launch((x, out), MOST_BLOCKS, index, [from.at, DevicePtr::NONE, to.at])?;
        let bytes = (count * (from.dtype.bytes() + to.dtype.bytes())) as u64;
        self.emit(node, launch, Cost { flops: 0, executed_flops: 0, bytes }, run);
        Ok(())
    }
}

/// One side of a copy.
#[derive(Clone, Copy)]
struct Side {
    at: DevicePtr,
    dtype: DType,
    /// Of what lies there one row, whose index is at this place: the current sample's or the step's.
    row_of: Option<Location>,
}

const SAMPLE: Location = Location { space: Space::State, offset: offset_of!(StepState, sample) as u64 };
const STEP: Location = Location { space: Space::State, offset: offset_of!(StepState, step) as u64 };

impl Side {
    fn element(&self) -> Option<Element> {
        match self.dtype {
            DType::F16 => Some(Element::Stored(Storage::F16)),
            DType::BF16 => Some(Element::Stored(Storage::Bf16)),
            DType::F32 => Some(Element::Word),
            _ => None,
        }
    }
}
