//! The simulated device as a backend: the launches of a step, run one after the other by the kernels themselves.
//!
//! Slow but complete: what a GPU would be given is what runs here, so whole images prove packing, lowering and
//! kernels together. Every buffer, the state, every weight and every program's arena is memory of its own whose
//! neighbourhood faults; an arena begins as NaN.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::bytes_of;

use super::{Mode, Simt};
use crate::backend::{Backend, Program, Stop, WeightSource};
use crate::error::{Error, Result};
use crate::ir::BufferId;
use crate::launch::params::{self, DevicePtr};
use crate::launch::{
    Addresses, Executor, LaunchProgram, LaunchStep, Storage, Weight, WeightKey, execute, from_bytes, lower,
};
use crate::manifest::TARGETS;
use crate::passes;
use crate::plan::{self, ALIGN, Fuse, Needs, Param, StepProgram, StepState};
use crate::room::free_bytes;
use crate::tensor::DType;

/// What the launches are made for unless somebody says: the forms that every GPU since Ampere runs.
const TARGET: &str = TARGETS[0];

/// Fewer blocks are not worth a thread.
const FEWEST_BLOCKS: u32 = 4;

/// A device that is this process' own CPU.
pub struct SimtDevice {
    storage: Storage,
    target: &'static str,
    threads: usize,
    limit: Option<usize>,
    weights: Arc<Mutex<Weights>>,
}

/// Weights that programs have in common; they stay as long as the device or one of its programs.
#[derive(Default)]
struct Weights {
    simt: Simt,
    /// By source.
    held: HashMap<(u64, WeightKey), DevicePtr>,
    bytes: usize,
}

impl SimtDevice {
    /// The blocks of a launch are shared out among `threads` threads. No bit depends on how many there are.
    pub fn new(storage: Storage, threads: usize) -> Self {
        Self { storage, target: TARGET, threads, limit: None, weights: Arc::default() }
    }

    /// The same, with programs that take `bytes` at most in all, weights included.
    pub fn within(self, bytes: Option<usize>) -> Self {
        Self { limit: bytes, ..self }
    }

    /// The same, with the launches of that one of [`crate::manifest::TARGETS`].
    pub fn like(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    /// Bytes of all weights that were taken in.
    pub fn weight_bytes(&self) -> usize {
        lock(&self.weights).bytes
    }

    /// [`Backend::load`] with its own type.
    pub fn load_program(&self, step: StepProgram, source: &dyn WeightSource) -> Result<SimtProgram> {
        let program = lower(&step, self.storage, self.target)?;
        let weights = lock(&self.weights).take_all(&program, source)?;
        let mut simt = Simt::new();
        let arena = simt.alloc(program.arena_bytes);
        let state = simt.put(&vec![0; program.state_bytes()]);
        let buffers: Vec<DevicePtr> =
            program.buffers.iter().map(|buffer| simt.put(&vec![0; buffer.bytes()])).collect();
        let launches = program.at(&Addresses { arena, state, weights, buffers: buffers.clone() });
        let helpers = (1..self.threads).map(|_| Simt::new()).collect();
        let weights = Arc::clone(&self.weights);
        Ok(SimtProgram { step, launches, simt, helpers, arena, state, buffers, _weights: weights })
    }
}

fn lock(weights: &Mutex<Weights>) -> MutexGuard<'_, Weights> {
    weights.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Weights {
    fn take_all(&mut self, program: &LaunchProgram, source: &dyn WeightSource) -> Result<Vec<DevicePtr>> {
        let mut places = vec![DevicePtr::NONE; program.weights.len()];
        for i in program.largest_weights_first() {
            places[i] = self.take(&program.weights[i], source)?;
        }
        Ok(places)
    }

    /// Where a weight is; it is read and packed at its first use.
    fn take(&mut self, weight: &Weight, source: &dyn WeightSource) -> Result<DevicePtr> {
        let key = (source.identity(), weight.key());
        if let Some(&at) = self.held.get(&key) {
            return Ok(at);
        }
        let bytes = weight.bytes.next_multiple_of(ALIGN);
        let at = self.simt.alloc(bytes);
        let read = |part: &Param| source.load(&part.name, &part.stored_shape());
        weight.pack_parts(&read, &mut |offset, piece| {
            self.simt.write(at, offset, piece);
            Ok(())
        })?;
        self.held.insert(key, at);
        self.bytes += bytes;
        Ok(at)
    }
}

impl Backend for SimtDevice {
    fn name(&self) -> &'static str {
        "simt"
    }

    fn storage(&self) -> (plan::Storage, Fuse) {
        (plan::Storage::of(self.storage.dtype()), passes::fuse)
    }

    fn dtype(&self) -> &'static str {
        self.storage.name()
    }

    fn wider(&self) -> Option<Box<dyn Backend>> {
        let Self { target, threads, limit, .. } = *self;
        let wider =
            || Self { storage: Storage::Bf16, target, threads, limit, weights: Arc::clone(&self.weights) };
        (self.storage == Storage::F16).then(|| Box::new(wider()) as Box<dyn Backend>)
    }

    fn needs(&self, program: &StepProgram) -> Result<Needs> {
        Ok(lower(program, self.storage, self.target)?.needs(program))
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

/// A program with its own memory.
pub struct SimtProgram {
    step: StepProgram,
    /// With addresses.
    launches: LaunchProgram,
    simt: Simt,
    /// Without buffers: for the other threads' blocks.
    helpers: Vec<Simt>,
    arena: DevicePtr,
    state: DevicePtr,
    buffers: Vec<DevicePtr>,
    /// Launches have addresses in there.
    _weights: Arc<Mutex<Weights>>,
}

impl SimtProgram {
    /// What runs, with this device's addresses.
    pub fn launches(&self) -> &LaunchProgram {
        &self.launches
    }

    /// Bytes of its own memory: arena, buffers, state.
    pub fn device_bytes(&self) -> usize {
        self.simt.bytes()
    }

    /// Bytes up to the last one of the arena that somebody wrote: it began as NaN.
    pub fn touched_bytes(&self) -> usize {
        let arena = self.simt.get(self.arena);
        arena.iter().rposition(|&byte| byte != 0xff).map_or(0, |last| last + 1)
    }
}

/// One run of a program.
struct Run<'a> {
    simt: &'a mut Simt,
    helpers: &'a mut [Simt],
    buffers: &'a [DevicePtr],
    /// Where the state is, and what it says.
    state: (DevicePtr, StepState),
    stop: &'a Stop,
}

impl Run<'_> {
    fn set_state(&mut self) {
        let (at, state) = &self.state;
        self.simt.write(*at, 0, bytes_of(&params::StepState::from(state)));
    }
}

impl Executor for Run<'_> {
    fn launch(&mut self, step: &LaunchStep) -> Result<()> {
        self.stop.check()?;
        let Self { simt, helpers, .. } = self;
        let blocks = step.launch.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let blocks = u32::try_from(blocks).map_err(|_| {
            Error::Bug(format!("`{}`: a grid of {blocks} blocks on the simulated device", step.node))
        })?;
        let share = blocks.div_ceil(1 + helpers.len() as u32).max(FEWEST_BLOCKS);
        let share = share.next_multiple_of(step.launch.kernel.cluster);
        let parts = (0..blocks).step_by(share as usize).map(|first| first..(first + share).min(blocks));
        let ran = std::thread::scope(|scope| {
            let mut contexts = [&mut **simt].into_iter().chain(helpers.iter_mut());
            let mut work = contexts
                .by_ref()
                .zip(parts)
                .map(|(context, part)| move || context.run_blocks(&step.launch, part, Mode::FAST));
            let first = work.next().expect("a grid has blocks");
            let others: Vec<_> = work.map(|work| scope.spawn(work)).collect();
            let first = first();
            let others = others.into_iter().map(|other| other.join().expect("the runtime does not panic"));
            others.chain([first]).collect::<Result<Vec<_>, _>>()
        });
        ran.map(drop).map_err(|error| Error::Bug(format!("`{}` on the simulated device: {error}", step.node)))
    }

    fn set_sample(&mut self, sample: usize) -> Result<()> {
        self.state.1.sample = sample as u32;
        self.set_state();
        Ok(())
    }

    fn flag(&mut self, buffer: BufferId, index: usize) -> Result<bool> {
        let bytes = self.simt.get(self.buffers[buffer.0 as usize]);
        Ok(from_bytes(DType::F32, &bytes)[index] != 0.0)
    }
}

impl Program for SimtProgram {
    fn step(&self) -> &StepProgram {
        &self.step
    }

    fn write(&mut self, buffer: &str, data: &[f32]) -> Result<()> {
        let (id, bytes) = self.launches.encode(buffer, data)?;
        self.simt.write(self.buffers[id.0 as usize], 0, &bytes);
        Ok(())
    }

    fn write_indices(&mut self, buffer: &str, data: &[i32]) -> Result<()> {
        let (id, bytes) = self.launches.encode_indices(buffer, data)?;
        self.simt.write(self.buffers[id.0 as usize], 0, &bytes);
        Ok(())
    }

    fn read(&self, buffer: &str) -> Result<Vec<f32>> {
        self.launches.decode(buffer, |id| Ok(self.simt.get(self.buffers[id.0 as usize])))
    }

    fn run(&mut self, state: &StepState, stop: &Stop) -> Result<()> {
        self.step.check(state)?;
        let Self { simt, helpers, launches, buffers, .. } = self;
        let mut run = Run { simt, helpers, buffers, state: (self.state, *state), stop };
        run.set_state();
        execute(&launches.body, state, &mut run)
    }
}
