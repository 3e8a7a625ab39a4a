//! Interprets a step program on the CPU.

use std::any::TypeId;
use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::eval::{Operand, Target, eval};
use super::scratch;
use crate::backend::{Backend, InPlace, Program, Stop, WeightSource};
use crate::error::{Error, Result};
use crate::ir::{BufferId, Flag, Fusion, Layout, Node, NodeId, Op, Row, ValueId};
use crate::plan::{Fuse, Needs, Param, Slot, Stage, StepProgram, StepState, Storage};
use crate::room::free_bytes;
use crate::tensor::{DType, Real, Shape};

/// A weight of one source: see [`WeightSource::identity`].
type Key = (u64, String);

/// The CPU backend: `f32` to run, `f64` to check gradients. It computes in the rayon pool it is called in.
#[derive(Default)]
pub struct Cpu<T> {
    /// Weights that some program holds at present.
    shared: Mutex<HashMap<Key, Weak<Values<T>>>>,
    /// The arena of all programs: they run one after the other, and nothing in it outlives a run.
    arena: Mutex<Weak<Mutex<Vec<T>>>>,
    limit: Option<usize>,
    /// What a new arena is filled with.
    fill: T,
}

impl<T: Real> Cpu<T> {
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with programs that take `bytes` at most in all, weights included.
    pub fn within(self, bytes: Option<usize>) -> Self {
        Self { limit: bytes, ..self }
    }

    /// The same, with an arena that [`Cpu::touched_bytes`] can read.
    pub fn poisoned(self) -> Self {
        Self { fill: T::from_f64(POISON), ..self }
    }

    /// Bytes up to the last one of a poisoned arena that somebody wrote; none without a program.
    pub fn touched_bytes(&self) -> usize {
        let Some(arena) = self.arena.lock().unwrap_or_else(PoisonError::into_inner).upgrade() else {
            return 0;
        };
        let arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let last = arena.iter().rposition(|&value| value != self.fill);
        last.map_or(0, |last| (last + 1) * size_of::<T>())
    }

    /// [`Backend::load`] with its own type, for reading and writing `T`.
    pub fn load_program(&self, step: StepProgram, weights: &dyn WeightSource) -> Result<CpuProgram<T>> {
        if step.element_bytes != size_of::<T>() {
            let problem = format!("a plan for elements of {} bytes", step.element_bytes);
            return Err(Error::Bug(problem));
        }
        self.check_room(&step, weights)?;
        let params = self.params(&step, weights)?;
        let buffers = step.graph.buffers.iter().map(|buffer| Contents::new(buffer.dtype, &buffer.shape));
        let buffers = buffers.collect::<Result<_>>()?;
        let arena = self.arena(step.arena_bytes / size_of::<T>())?;
        Ok(CpuProgram { step, params, buffers, arena })
    }

    /// Asks for the room of all weights that are to be loaded, before reading the first.
    fn check_room(&self, step: &StepProgram, weights: &dyn WeightSource) -> Result<()> {
        let shared = self.shared.lock().expect("no holder of the lock panics");
        let held = |param: &Param| {
            let key = (weights.identity(), param.name.clone());
            shared.get(&key).is_some_and(|data| data.strong_count() > 0)
        };
        let stays = |param: &Param| {
            reads::<T>(param) && param.alone().is_some_and(|(name, shape)| weights.maps(name, &shape))
        };
        let copied = step.params.iter().filter(|param| !held(param) && !stays(param));
        let count: usize = copied.map(|param| param.shape.count()).sum();
        reserve::<T>(count, "the weights").map(drop)
    }

    /// An arena of `count` elements at least, in place of the one that programs had if that was smaller.
    fn arena(&self, count: usize) -> Result<Arc<Mutex<Vec<T>>>> {
        let mut shared = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        let arena = shared.upgrade().unwrap_or_default();
        let mut data = arena.lock().unwrap_or_else(PoisonError::into_inner);
        if data.len() < count {
            // The old one goes first: both at once would be more than the plan. Programs that have it go on if there
            // is no larger one.
            let before = std::mem::take(&mut *data).len();
            match filled(count, self.fill, "the activations of a step") {
                Ok(larger) => *data = larger,
                Err(error) => {
                    *data = filled(before, self.fill, "the activations of a step")?;
                    return Err(error);
                }
            }
        }
        drop(data);
        *shared = Arc::downgrade(&arena);
        Ok(arena)
    }

    /// All weights of a program, the largest first: the copy that reading one takes is then never on top of the
    /// whole.
    fn params(&self, step: &StepProgram, weights: &dyn WeightSource) -> Result<Params<T>> {
        let mut order: Vec<usize> = (0..step.params.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(step.params[i].shape.count()));
        let nothing = Arc::new(Values::Owned(Vec::new()));
        let mut params = vec![nothing; step.params.len()];
        for i in order {
            params[i] = self.param(&step.params[i], weights)?;
        }
        Ok(params)
    }

    fn param(&self, param: &Param, weights: &dyn WeightSource) -> Result<Arc<Values<T>>> {
        let key = (weights.identity(), param.name.clone());
        let held =
            self.shared.lock().expect("no holder of the lock panics").get(&key).and_then(Weak::upgrade);
        if let Some(data) = held {
            return Ok(data);
        }
        let mapped = match param.alone() {
            Some((name, shape)) if reads::<T>(param) => weights.map(name, &shape)?,
            _ => None,
        };
        let data = Arc::new(match mapped {
            Some(values) => Values::Mapped(values),
            None => {
                let mut packed = Vec::with_capacity(param.shape.count());
                for part in param.apart() {
                    pack(&part, &weights.load(&part.name, &part.stored_shape())?, &mut packed);
                }
                Values::Owned(packed)
            }
        });
        let mut shared = self.shared.lock().expect("no holder of the lock panics");
        shared.insert(key, Arc::downgrade(&data));
        Ok(data)
    }
}

impl<T: Real> Backend for Cpu<T> {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn storage(&self) -> (Storage, Fuse) {
        (Storage::Uniform(size_of::<T>()), Fusion::none)
    }

    fn dtype(&self) -> &'static str {
        if size_of::<T>() == size_of::<f32>() { "f32" } else { "f64" }
    }

    fn needs(&self, step: &StepProgram) -> Result<Needs> {
        let threads = rayon::current_num_threads();
        let bytes = |node: &Node| scratch::bytes(&step.graph, node, size_of::<T>(), threads);
        let largest = step.graph.nodes.iter().map(bytes).max().unwrap_or(0);
        Ok(Needs { scratch_bytes: largest + threads * scratch::KEPT_BYTES, weights: step.weights() })
    }

    fn reads_in_place(&self, param: &Param) -> bool {
        reads::<T>(param)
    }

    fn limit(&self) -> Option<usize> {
        self.limit.into_iter().chain(self.room()).min()
    }

    fn room(&self) -> Option<usize> {
        free_bytes()
    }

    fn load(&self, step: StepProgram, weights: &dyn WeightSource) -> Result<Box<dyn Program>> {
        Ok(Box::new(self.load_program(step, weights)?))
    }
}

/// The elements of a weight as the graph sees it.
enum Values<T> {
    Owned(Vec<T>),
    /// In the pages of the file, which hold what [`pack`] would make.
    Mapped(InPlace),
}

type Params<T> = Vec<Arc<Values<T>>>;

impl<T: Real> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            // The same type: see `reads`.
            Self::Mapped(values) => bytemuck::cast_slice(values.values()),
        }
    }
}

/// Whether [`pack`] leaves the elements of a weight as they are stored in f32.
fn reads<T: Real>(param: &Param) -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>() && !has_taps(param)
}

/// Whether it is a filter of more than one tap, which is stored as `[o, c, r, s]` and seen as `[o, r, s, c]`.
fn has_taps(param: &Param) -> bool {
    matches!((param.layout, &param.shape[..]), (Layout::Filter, &[_, r, s, _]) if r * s > 1)
}

/// Appends a weight of one part as the graph sees it.
fn pack<T: Real>(param: &Param, stored: &[f32], packed: &mut Vec<T>) {
    match (param.layout, &param.shape[..]) {
        (Layout::Filter, &[_, r, s, c]) if has_taps(param) => {
            for filter in stored.chunks_exact(c * r * s) {
                for tap in 0..r * s {
                    packed.extend((0..c).map(|channel| T::from_f32(filter[channel * r * s + tap])));
                }
            }
        }
        _ => packed.extend(stored.iter().map(|&value| T::from_f32(value))),
    }
}

enum Contents<T> {
    Real(Vec<T>),
    Index(Vec<i32>),
}

impl<T: Real> Contents<T> {
    fn new(dtype: DType, shape: &Shape) -> Result<Self> {
        Ok(match dtype {
            DType::I32 => Self::Index(filled(shape.count(), 0, "a buffer")?),
            _ => Self::Real(filled(shape.count(), T::ZERO, "a buffer")?),
        })
    }
}

fn filled<E: Copy>(count: usize, value: E, what: &str) -> Result<Vec<E>> {
    let mut data = reserve(count, what)?;
    data.resize(count, value);
    Ok(data)
}

/// Memory that the system may refuse.
fn reserve<E>(count: usize, what: &str) -> Result<Vec<E>> {
    let mut data = Vec::new();
    data.try_reserve_exact(count).map_err(|_| Error::OutOfMemory {
        what: what.to_owned(),
        needed_bytes: (count * size_of::<E>()) as u64,
        hint: "; a smaller model, image or batch needs less".to_owned(),
    })?;
    Ok(data)
}

/// A program with its weights, buffers and arena.
pub struct CpuProgram<T> {
    step: StepProgram,
    params: Params<T>,
    buffers: Vec<Contents<T>>,
    arena: Arc<Mutex<Vec<T>>>,
}

/// A number that no computation gives.
const POISON: f64 = -1.234_567_890_123e-33;

impl<T: Real> CpuProgram<T> {
    /// Fills a buffer with exact values.
    pub fn set(&mut self, buffer: &str, data: &[T]) -> Result<()> {
        let id = self.id(buffer)?;
        match &mut self.buffers[id] {
            Contents::Real(to) if to.len() == data.len() => to.copy_from_slice(data),
            _ => return Err(Error::Bug(format!("buffer `{buffer}` does not take {} numbers", data.len()))),
        }
        Ok(())
    }

    /// The exact contents of a buffer.
    pub fn get(&self, buffer: &str) -> Result<&[T]> {
        match &self.buffers[self.id(buffer)?] {
            Contents::Real(data) => Ok(data),
            Contents::Index(_) => Err(Error::Bug(format!("buffer `{buffer}` holds indices"))),
        }
    }

    fn id(&self, buffer: &str) -> Result<usize> {
        let id = self.step.buffer(buffer);
        id.map(|id| id.0 as usize).ok_or_else(|| Error::Bug(format!("no buffer `{buffer}`")))
    }

    fn stages(
        &mut self,
        stages: &[Stage],
        arena: &mut [T],
        state: &mut StepState,
        stop: &Stop,
    ) -> Result<()> {
        for stage in stages {
            match stage {
                Stage::Run(nodes) => {
                    for &node in nodes {
                        stop.check()?;
                        self.node(node, arena, state);
                    }
                }
                Stage::ForEachSample(body) => {
                    for sample in 0..self.samples(body) {
                        state.sample = sample as u32;
                        self.stages(body, arena, state, stop)?;
                    }
                }
                Stage::If(flag, body) => {
                    let runs = match flag {
                        Flag::Once(_) => state.fresh,
                        Flag::Window => state.window,
                        Flag::Sample(buffer) => self.flag(*buffer, state.sample),
                    };
                    if runs {
                        self.stages(body, arena, state, stop)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The batch: rows of the buffers that the body takes a row of.
    fn samples(&self, body: &[Stage]) -> usize {
        let graph = &self.step.graph;
        let rows_of_node = |id: &NodeId| {
            let node = graph.node(*id);
            let stored = match node.op {
                Op::Store { buffer, row: Row::Sample } => Some(buffer),
                _ => None,
            };
            let loaded = node.inputs.iter().find_map(|&input| match self.step.slot(input) {
                Slot::Buffer { buffer, row: Row::Sample } => Some(buffer),
                _ => None,
            });
            stored.or(loaded).map(|buffer| graph.buffer(buffer).shape[0])
        };
        body.iter()
            .find_map(|stage| match stage {
                Stage::Run(nodes) => nodes.iter().find_map(rows_of_node),
                Stage::ForEachSample(body) | Stage::If(_, body) => {
                    Some(self.samples(body)).filter(|&samples| samples > 0)
                }
            })
            .unwrap_or(0)
    }

    fn flag(&self, buffer: BufferId, sample: u32) -> bool {
        match &self.buffers[buffer.0 as usize] {
            Contents::Real(data) => data[sample as usize] != T::ZERO,
            Contents::Index(data) => data[sample as usize] != 0,
        }
    }

    fn node(&mut self, id: NodeId, arena: &mut [T], state: &StepState) {
        let Self { step, params, buffers, .. } = self;
        let node = step.graph.node(id);
        if let Op::Store { buffer, row } = node.op {
            store(step, params, buffers, arena, (node.inputs[0], buffer, row), state);
            return;
        }
        let outputs: Vec<Range<usize>> = node.outputs.iter().map(|&v| arena_range(step, v)).collect();
        let (mut writable, readable) = split(arena, &outputs);
        let inputs: Vec<Operand<'_, T>> = node
            .inputs
            .iter()
            .map(|&input| operand(step, params, buffers, &readable, input, state))
            .collect();
        let mut targets: Vec<Target<'_, T>> = node
            .outputs
            .iter()
            .zip(&mut writable)
            .map(|(&output, data)| Target { shape: step.graph.shape(output), data })
            .collect();
        // What an operation forgets to write must not pass unseen.
        if cfg!(debug_assertions) {
            let nan = T::from_f64(f64::NAN);
            targets.iter_mut().for_each(|target| target.data.fill(nan));
        }
        eval(&node.op, &inputs, &mut targets, state);
    }
}

impl<T: Real> Program for CpuProgram<T> {
    fn step(&self) -> &StepProgram {
        &self.step
    }

    fn write(&mut self, buffer: &str, data: &[f32]) -> Result<()> {
        let data: Vec<T> = data.iter().map(|&value| T::from_f32(value)).collect();
        self.set(buffer, &data)
    }

    fn write_indices(&mut self, buffer: &str, data: &[i32]) -> Result<()> {
        let id = self.id(buffer)?;
        match &mut self.buffers[id] {
            Contents::Index(to) if to.len() == data.len() => to.copy_from_slice(data),
            _ => return Err(Error::Bug(format!("buffer `{buffer}` does not take {} indices", data.len()))),
        }
        Ok(())
    }

    fn read(&self, buffer: &str) -> Result<Vec<f32>> {
        Ok(self.get(buffer)?.iter().map(|value| value.to_f32()).collect())
    }

    fn run(&mut self, state: &StepState, stop: &Stop) -> Result<()> {
        self.step.check(state)?;
        let stages = std::mem::take(&mut self.step.body);
        let arena = Arc::clone(&self.arena);
        let mut arena = arena.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.stages(&stages, &mut arena, &mut state.clone(), stop);
        self.step.body = stages;
        result
    }
}

/// Elements of the arena that a value owns.
fn arena_range(step: &StepProgram, value: ValueId) -> Range<usize> {
    match step.slot(value) {
        Slot::Arena { offset, bytes } => offset / step.element_bytes..(offset + bytes) / step.element_bytes,
        slot => unreachable!("results are computed into the arena, not into {slot:?}"),
    }
}

/// Pieces of the arena that nobody writes, with their first element's position.
type Gaps<'a, T> = Vec<(usize, &'a [T])>;

/// The `wanted` ranges (disjoint: the plan sees to it) for writing, and the gaps between them for reading.
fn split<'a, T>(arena: &'a mut [T], wanted: &[Range<usize>]) -> (Vec<&'a mut [T]>, Gaps<'a, T>) {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&i| wanted[i].start);
    let mut writable: Vec<Option<&mut [T]>> = wanted.iter().map(|_| None).collect();
    let mut gaps = Vec::with_capacity(wanted.len() + 1);
    let (mut rest, mut position) = (arena, 0);
    for i in order {
        let (gap, tail) = rest.split_at_mut(wanted[i].start - position);
        let (range, tail) = tail.split_at_mut(wanted[i].len());
        gaps.push((position, &*gap));
        writable[i] = Some(range);
        (rest, position) = (tail, wanted[i].end);
    }
    gaps.push((position, rest));
    (writable.into_iter().flatten().collect(), gaps)
}

/// The elements of a buffer that `count` elements of a row are.
fn row_of(buffer: &Shape, row: Row, count: usize, state: &StepState) -> Range<usize> {
    let start = match row {
        Row::All => 0,
        Row::Sample => state.sample as usize * count,
        Row::Step { start, .. } => state.step as usize * (buffer.count() / buffer[0]) + start,
    };
    start..start + count
}

fn operand<'a, T: Real>(
    step: &'a StepProgram,
    params: &'a [Arc<Values<T>>],
    buffers: &'a [Contents<T>],
    gaps: &Gaps<'a, T>,
    value: ValueId,
    state: &StepState,
) -> Operand<'a, T> {
    let shape = step.graph.shape(value);
    let rows = |buffer: BufferId, row| row_of(&step.graph.buffer(buffer).shape, row, shape.count(), state);
    match step.slot(value) {
        Slot::Param { index } => Operand::Real { shape, data: &params[index] },
        Slot::Buffer { buffer, row } => match &buffers[buffer.0 as usize] {
            Contents::Real(data) => Operand::Real { shape, data: &data[rows(buffer, row)] },
            Contents::Index(data) => Operand::Index { shape, data: &data[rows(buffer, row)] },
        },
        Slot::Arena { .. } => {
            let range = arena_range(step, value);
            let gap = gaps.partition_point(|(start, _)| *start <= range.start) - 1;
            let (start, data) = gaps[gap];
            Operand::Real { shape, data: &data[range.start - start..range.end - start] }
        }
        Slot::Passing => unreachable!("this backend runs nodes one by one"),
    }
}

fn store<T: Real>(
    step: &StepProgram,
    params: &[Arc<Values<T>>],
    buffers: &mut [Contents<T>],
    arena: &[T],
    (value, buffer, row): (ValueId, BufferId, Row),
    state: &StepState,
) {
    let count = step.graph.shape(value).count();
    let place = row_of(&step.graph.buffer(buffer).shape, row, count, state);
    let copied: Vec<T>;
    let source = match step.slot(value) {
        Slot::Arena { .. } => &arena[arena_range(step, value)],
        Slot::Param { index } => &params[index][..],
        Slot::Buffer { .. } => {
            // A loaded buffer that goes into another one unchanged.
            match operand(step, params, buffers, &Vec::new(), value, state) {
                Operand::Real { data, .. } => copied = data.to_vec(),
                Operand::Index { .. } => unreachable!("indices are only read"),
            }
            &copied
        }
        Slot::Passing => unreachable!("this backend runs nodes one by one"),
    };
    match &mut buffers[buffer.0 as usize] {
        Contents::Real(data) => data[place].copy_from_slice(source),
        Contents::Index(_) => unreachable!("indices are only written by the host"),
    }
}
