//! From a step program to launches, without a device.
//!
//! Nodes become launches in the order of the plan, which also says where their results lie. What a kernel reads in
//! another type than it was made in is copied before its first reader. A sample's row of a buffer is copied in and
//! out by kernels that read the sample's index from the state, so that every launch is the same for all samples;
//! what a step needs of the rows of all steps comes the same way, in one copy.
//! Copies, workspaces and statistics go into the gaps that the plan leaves in its arena. Where those are too small,
//! everything gets another place.
//!
//! Pure: equal programs, storage types and targets give equal launches.

mod operands;

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;

use super::choice::Choice;
use super::device::MOST_BLOCKS;
use super::direct::Direct;
use super::forms::{Around, Form};
use super::layout::{Element, Place};
use super::location::{Location, OFFSETS, Space, relocate};
use super::norms::TileStats;
use super::params::{DevicePtr, StepState};
use super::types::{Types, of_letter, root};
use super::unit::{Unit, paired};
use super::{
    Cost, DeviceBuffer, Launch, LaunchProgram, LaunchStage, LaunchStep, Operand, Packing, Storage,
    statistics, weights, work,
};
use crate::error::{Error, Result};
use crate::ir::{BufferId, Node, NodeId, Op, Row, ValueId};
use crate::plan::{self, Arena, Demand, Slot, Stage, StepProgram};
use crate::tensor::{DType, Shape};

/// The launches of a step for one storage type and one of [`crate::manifest::TARGETS`].
///
/// # Errors
/// [`Error::Params`] where a launch would break a rule of its kernel; [`Error::Bug`] where an operation has no
/// kernel or the plan has too little room for a value; [`Error::OutOfMemory`] beyond 1 TiB.
pub fn lower(step: &StepProgram, storage: Storage, target: &'static str) -> Result<LaunchProgram> {
    may_be_addressed(step.arena_bytes)?;
    let types = Types::of(&step.graph, storage);
    let mut lowering = Lowering {
        step,
        storage,
        target,
        direct: Direct::of(step, &types)?,
        wanted: statistics::wanted(&step.graph, &step.fusion, storage),
        types,
        position: 0,
        at_hand: AtHand::default(),
        scratch: step.placed.iter().map(|placed| placed.demand.clone()).collect(),
        piece_of: step.placed.iter().enumerate().map(|(i, placed)| (placed.value, i as u32)).collect(),
        paired: paired(&step.graph, &step.fusion),
        weights: Vec::new(),
        counters: 0,
    };
    let body = lowering.stages(&step.body)?;
    let Lowering { types, scratch, weights, counters, .. } = lowering;

    let buffers = step.graph.buffers.iter().enumerate().map(|(index, buffer)| DeviceBuffer {
        name: buffer.name.clone(),
        shape: buffer.shape.clone(),
        dtype: types.buffer(BufferId(index as u32)),
    });
    let dtypes = param_types(step, &types);
    let weights = weights.iter().map(|&(i, packing)| (step.params[i].clone(), dtypes[i], packing));
    let live_bytes = plan::lower_bound(&scratch);
    let arena = place(step, &scratch, live_bytes);
    may_be_addressed(arena.bytes)?;
    debug_assert_eq!(plan::clash(&scratch, &arena), None);
    let program = LaunchProgram {
        storage,
        target,
        body,
        arena_bytes: arena.bytes.max(step.arena_bytes),
        live_bytes,
        weights: weights::place(weights),
        buffers: buffers.collect(),
        counters,
    };
    let program = program.map(|launch| {
        relocate(launch, |location| match location.space {
            Space::Scratch(index) => {
                let offset = arena.offsets[index as usize] as u64 + location.offset;
                Location { space: Space::Arena, offset }.symbol()
            }
            _ => location.symbol(),
        })
    });
    tracing::debug!(launches = program.steps().len(), arena_bytes = program.arena_bytes, target, "lowered");
    Ok(program)
}

/// Whether symbols reach so far, see [`Location::symbol`].
fn may_be_addressed(arena_bytes: usize) -> Result<()> {
    if arena_bytes as u64 <= OFFSETS {
        return Ok(());
    }
    Err(Error::OutOfMemory {
        what: "the activations of a step".to_owned(),
        needed_bytes: arena_bytes as u64,
        hint: format!(", more than the {OFFSETS} that launches address; smaller images or batches take less"),
    })
}

/// How much of an arena may hold nothing before its values leave their places, in parts of it.
const WASTE: usize = 50;

/// The plan's values where the plan has them and the rest in between, or everything anew if that takes less.
fn place(step: &StepProgram, pieces: &[Demand], live_bytes: usize) -> Arena {
    let fixed: Vec<usize> = step.placed.iter().map(|placed| placed.offset).collect();
    let around = plan::place_around(&fixed, pieces);
    if around.bytes <= (live_bytes + live_bytes / WASTE).max(step.arena_bytes) {
        return around;
    }
    let anew = plan::place(pieces);
    if anew.bytes < around.bytes { anew } else { around }
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
    direct: Direct,
    /// Values whose statistics a norm would use.
    wanted: HashSet<ValueId>,
    /// How many units have run: the time of the plan's lifetimes.
    position: usize,
    at_hand: AtHand,
    /// What has no place yet, by [`Space::Scratch`]: the values of the arena, then the rest.
    scratch: Vec<Demand>,
    /// Values of the arena, by their index there.
    piece_of: HashMap<ValueId, u32>,
    /// Names of params whose rows lie in pairs.
    paired: HashSet<&'a str>,
    /// What was read so far, by index of the program's params.
    weights: Vec<(usize, Packing)>,
    /// Tiles that one launch makes in parts, at most.
    counters: usize,
}

/// What later launches of the open stages may read.
#[derive(Clone, Default)]
struct AtHand {
    /// By value and type.
    copies: HashMap<(ValueId, DType), DevicePtr>,
    /// The step's rows of buffers.
    rows: HashMap<(BufferId, DType), DevicePtr>,
    /// By value, images and channels.
    statistics: HashMap<(ValueId, usize, usize), TileStats>,
}

impl<'a> Lowering<'a> {
    fn stages(&mut self, stages: &[Stage]) -> Result<Vec<LaunchStage>> {
        stages.iter().map(|stage| self.stage(stage)).collect()
    }

    fn stage(&mut self, stage: &Stage) -> Result<LaunchStage> {
        match stage {
            Stage::Run(nodes) => {
                let mut run = Vec::new();
                for &id in nodes {
                    self.node(id, &mut run)?;
                    self.position += 1;
                }
                Ok(LaunchStage::Run(run))
            }
            Stage::ForEachSample(body) => {
                let (first, before) = (self.position, self.scratch.len());
                let samples = match self.samples(stage) {
                    0 => {
                        return Err(Error::Bug("a loop over samples of which no buffer has rows".to_owned()));
                    }
                    samples => samples,
                };
                let body = self.inner(body)?;
                // What was copied before the loop is read again by its next round; the plan's values know.
                for scratch in &mut self.scratch[self.step.placed.len()..before] {
                    if scratch.live.end > first {
                        scratch.live.end = self.position;
                    }
                }
                Ok(LaunchStage::ForEachSample { samples, body })
            }
            Stage::If(flag, body) => Ok(LaunchStage::If(*flag, self.inner(body)?)),
        }
    }

    /// A body that may not run: what it copies is of no use behind it.
    fn inner(&mut self, body: &[Stage]) -> Result<Vec<LaunchStage>> {
        let outer = self.at_hand.clone();
        let body = self.stages(body);
        self.at_hand = outer;
        body
    }

    /// The batch: rows of a buffer that the body takes a row of.
    fn samples(&self, stage: &Stage) -> usize {
        let graph = &self.step.graph;
        match stage {
            Stage::Run(nodes) => {
                let members = nodes.iter().flat_map(|&id| self.step.fusion.members(id));
                let rows = members.map(|id| graph.node(id)).find_map(|node| {
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
        let step = self.step;
        let node = step.graph.node(id);
        if let Op::Store { buffer, row } = node.op {
            return if self.direct.done.contains(&id) { Ok(()) } else { self.store(node, buffer, row, run) };
        }
        let unit = Unit::of(&step.graph, &step.fusion, id)?;
        if self.moved(&unit, run)? {
            return Ok(());
        }
        let reads = self.reads(&unit, run)?;
        let outputs: Vec<Operand> = unit
            .makes()
            .map(|(value, letter)| self.output(node, value, of_letter(letter, self.storage)))
            .collect::<Result<_>>()?;
        let mut form = Form::of(&unit, (self.storage, self.target), &reads, &outputs);
        let mut stats = DevicePtr::NONE;
        let made = outputs.len() == 1 && self.wanted.contains(&unit.last.outputs[0]);
        if let Some((measuring, rows, bytes)) = form.measuring(self.target).filter(|_| made) {
            (form, stats) = (measuring, self.scratch(bytes));
            let measured = self.measured(unit.last.outputs[0]);
            self.at_hand.statistics.insert(measured, TileStats { at: stats, rows });
        }
        let workspace = match form.workspace() {
            0 => DevicePtr::NONE,
            bytes => self.scratch(bytes),
        };
        let arrived = Location { space: Space::State, offset: size_of::<StepState>() as u64 }.symbol();
        let at = Around { state: Location::start(Space::State).symbol(), workspace, stats, arrived };
        let launches = form.launches(&unit, self.storage, at, &reads, &outputs)?;
        self.counters = launches.iter().map(|launch| form.counters(launch)).fold(self.counters, usize::max);
        if let Some(&read) = unit.inputs.first() {
            let (first, other) = self.sources(read);
            // Taken of the first images of a batch alone, they are not its statistics.
            let all = reads.stats[0].is_some() || reads.measured == step.graph.shape(read)[0];
            for (source, stats) in [Some(first), other].into_iter().zip(form.left(workspace)) {
                if let (Some(source), Some(stats), true) = (source, stats, all) {
                    self.at_hand.statistics.insert(self.measured(source), stats);
                }
            }
        }
        let costs = work::of(&form, Cost::of(step, &unit, self.storage), &launches);
        let choice = form.choice(&unit, self.target, &reads, &outputs);
        for (launch, cost) in launches.into_iter().zip(costs) {
            self.emit(node, launch, cost, Some(choice), run);
        }
        for at in reads.addresses() {
            self.is_read(at);
        }
        if let Op::RepeatBatch { .. } = unit.root.op {
            self.repeat_statistics(&unit, run)?;
        }
        Ok(())
    }

    /// Copies of images have the statistics of what they are of, bit for bit.
    fn repeat_statistics(&mut self, unit: &Unit<'_>, run: &mut Vec<LaunchStep>) -> Result<()> {
        let (graph, one, copies) = (&self.step.graph, unit.inputs[0], unit.last.outputs[0]);
        let known = self.at_hand.statistics.get(&self.measured(one)).copied();
        let Some(stats) = known.filter(|_| self.wanted.contains(&copies)) else { return Ok(()) };
        let shape = |value: ValueId| {
            let images = graph.shape(value);
            let tiles = (images.rows() / images[0]).div_ceil(stats.rows);
            Shape::from([images[0], tiles, 2 * images.last()])
        };
        let (from, to) = (shape(one), shape(copies));
        let at = self.scratch(to.count() * DType::F32.bytes());
        if let Some(place) = Place::of(&unit.root.op, &from, &to) {
            let side = |at| Side { at, dtype: DType::F32, row_of: None };
            let bytes = (from.count() + to.count()) * DType::F32.bytes();
            self.place(unit.last, &place, [side(stats.at), side(at)], bytes, run)?;
            self.is_read(stats.at);
            self.at_hand.statistics.insert(self.measured(copies), TileStats { at, rows: stats.rows });
        }
        Ok(())
    }

    /// Keeps what was copied or worked out earlier until the unit has run.
    fn is_read(&mut self, at: DevicePtr) {
        if let Some(Location { space: Space::Scratch(index), .. }) = Location::of(at) {
            let live = &mut self.scratch[index as usize].live;
            live.end = live.end.max(self.position + 1);
        }
    }

    /// Elements that only change their place and their type do both at once; whether the unit was of that kind.
    fn moved(&mut self, unit: &Unit<'_>, run: &mut Vec<LaunchStep>) -> Result<bool> {
        let graph = &self.step.graph;
        let (&[x], &[out]) = (&unit.inputs[..], &unit.last.outputs[..]) else { return Ok(false) };
        let Some(place) = Place::of(&unit.root.op, graph.shape(x), graph.shape(out)) else {
            return Ok(false);
        };
        if let Slot::Buffer { row: Row::Step { .. }, .. } = self.step.slot(root(graph, x)) {
            return Ok(false);
        }
        let (home, of_sample) = self.home(unit.last, root(graph, x), Packing::Plain)?;
        let dtype = self.types.value(root(graph, x));
        let known = self.at_hand.copies.contains_key(&(root(graph, x), self.storage.dtype()));
        if of_sample || known || dtype == self.storage.dtype() {
            return Ok(false);
        }
        let to = self.output(unit.last, out, self.storage.dtype())?;
        let bytes = graph.shape(x).count() * dtype.bytes() + to.shape.count() * self.storage.dtype().bytes();
        let side = |at, dtype| Side { at, dtype, row_of: None };
        let ends = [side(home.symbol(), dtype), side(to.at, self.storage.dtype())];
        self.place(unit.last, &place, ends, bytes, run)?;
        Ok(true)
    }

    /// Bytes that live while the unit runs, and longer if somebody says so.
    fn scratch(&mut self, bytes: usize) -> DevicePtr {
        let index = self.scratch.len() as u32;
        self.scratch.push(Demand { bytes, live: self.position..self.position + 1 });
        Location::start(Space::Scratch(index)).symbol()
    }

    fn emit(
        &self,
        node: &Node,
        launch: Launch,
        cost: Cost,
        choice: Option<Choice>,
        run: &mut Vec<LaunchStep>,
    ) {
        run.push(LaunchStep { node: node.name.clone(), launch, cost, choice });
    }

    fn store(&mut self, node: &Node, buffer: BufferId, row: Row, run: &mut Vec<LaunchStep>) -> Result<()> {
        let value = root(&self.step.graph, node.inputs[0]);
        let dtype = self.types.value(value);
        let from = match self.step.slot(value) {
            Slot::Buffer { row: Row::Step { .. }, .. } => {
                let at = self.input(node, value, (dtype, Packing::Plain), run)?.at;
                self.is_read(at);
                Side { at, dtype, row_of: None }
            }
            _ => {
                let (home, of_sample) = self.home(node, value, Packing::Plain)?;
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
        let row = |side: Side| if side.row_of.is_some() { count } else { 0 };
        let place = Place { x_sample: row(from), out_sample: row(to), ..Place::whole(count) };
        self.place(node, &place, [from, to], count * (from.dtype.bytes() + to.dtype.bytes()), run)
    }

    fn place(
        &mut self,
        node: &Node,
        place: &Place,
        [from, to]: [Side; 2],
        bytes: usize,
        run: &mut Vec<LaunchStep>,
    ) -> Result<()> {
        let (Some(x), Some(out)) = (from.element(), to.element()) else {
            return Err(Error::Bug(format!("`{}` copies {} to {}", node.name, from.dtype, to.dtype)));
        };
        let index = from.row_of.or(to.row_of).map_or(DevicePtr::NONE, Location::symbol);
        let launch = place.launch((x, out), MOST_BLOCKS, index, [from.at, DevicePtr::NONE, to.at])?;
        self.emit(node, launch, Cost { bytes: bytes as u64, ..Cost::default() }, None, run);
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
