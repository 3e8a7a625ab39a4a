//! A GPU as a backend.
//!
//! The weights that a program brings along are one allocation, its state and buffers another; all programs of a
//! device share one arena, since they run one after the other. A program's first run queues its launches one by one,
//! which loads kernels and names the one that fails. From the second run on the whole step is one graph that decides
//! by itself which samples are guarded; where the driver has no such graphs, or the switch below says so, launches
//! go on one by one and a flag is read back where the step branches.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytemuck::bytes_of;

use super::device::{Gpu, word};
use super::driver::{Answer, Driver, Failure};
use super::graph::Graph;
use super::handles::{Context, Memory, Staging, Stream};
use super::kernels::Kernels;
use crate::backend::{Backend, Preparation, Program, Stop, WeightSource};
use crate::error::{Error, LaunchFailure, Result};
use crate::ir::BufferId;
use crate::launch::params::{self, DevicePtr};
use crate::launch::{
    Addresses, Executor, Launch, LaunchProgram, LaunchStage, LaunchStep, Storage, WeightKey, execute,
    execute_hoisted, lower,
};
use crate::passes;
use crate::plan::{self, ALIGN, Fuse, Needs, Param, StepProgram, StepState};

/// Bytes that are left to the driver: binaries, graphs, and what it keeps for itself.
const SPARE_BYTES: usize = 256 << 20;
/// A batch is large enough when this share of its work fills the device.
const FULL: f64 = 0.9;
/// Set to `0`: no graphs.
const SWITCH: &str = "UNGUIDE_CUDA_GRAPH";
/// `0`: no launch begins before the one in front has ended.
const OVERLAP: &str = "UNGUIDE_CUDA_OVERLAP";
/// The driver's own: each launch ends before the next begins, and answers for itself.
const BLOCKING: &str = "CUDA_LAUNCH_BLOCKING";

/// A GPU that step programs run on.
pub struct CudaDevice {
    pub(super) shared: Arc<Shared>,
    storage: Storage,
    limit: usize,
    /// What was free when it was opened.
    room: usize,
}

/// What all programs of a device use. Kernels go before the stream, and both before the context.
pub(super) struct Shared {
    pub kernels: Kernels,
    pub stream: Stream,
    pub context: Arc<Context>,
    device: String,
    target: &'static str,
    pub graphs: bool,
    /// Whether graphs may let launches begin before the one in front has ended.
    pub overlaps: AtomicBool,
    /// Weights that some program holds at present.
    weights: Mutex<HashMap<Key, Held>>,
    arena: Mutex<Weak<Mutex<Memory>>>,
    multiprocessors: u32,
    /// To be made.
    graphs_took: Mutex<Duration>,
}

/// A weight's source, and what it is of that.
type Key = (u64, WeightKey);

/// Where a weight is.
struct Held {
    block: Weak<Memory>,
    offset: usize,
}

impl CudaDevice {
    /// Programs take `most_bytes` in all, and never more than is free now.
    pub fn open(gpu: &Gpu, storage: Storage, most_bytes: Option<usize>) -> Result<Self> {
        let device = word(gpu.ordinal);
        let wrong = |problem| Error::Device { device: device.clone(), problem };
        let words = |failure: Failure| wrong(failure.to_string());
        let target = gpu.target().map_err(wrong)?;
        let driver = Driver::get().map_err(wrong)?;
        let context =
            driver.device(gpu.ordinal as i32).and_then(|raw| Context::new(driver, raw)).map_err(words)?;
        let free = context.free_bytes().map_err(words)?.saturating_sub(SPARE_BYTES);
        let off = |name: &str, value: &str| std::env::var_os(name).is_some_and(|set| set == value);
        let graphs = driver.graphs.is_some() && !off(SWITCH, "0") && !off(BLOCKING, "1");
        tracing::info!(device, gpu.name, target, graphs, free, "opened");
        let shared = Shared {
            kernels: Kernels::new(&context, &device, target, gpu.shared_bytes as u32),
            stream: Stream::new(&context).map_err(words)?,
            context,
            device,
            target,
            graphs,
            overlaps: AtomicBool::new(!off(OVERLAP, "0")),
            weights: Mutex::default(),
            arena: Mutex::default(),
            multiprocessors: gpu.multiprocessors,
            graphs_took: Mutex::default(),
        };
        let limit = most_bytes.map_or(free, |most| most.min(free));
        Ok(Self { shared: Arc::new(shared), storage, limit, room: free })
    }

    /// [`Backend::load`] with its own type.
    pub fn load_program(&self, step: StepProgram, source: &dyn WeightSource) -> Result<CudaProgram> {
        let launches = lower(&step, self.storage, self.shared.target)?;
        let shared = &self.shared;
        let mut offsets = Vec::with_capacity(launches.buffers.len());
        let mut bytes = launches.state_bytes().next_multiple_of(ALIGN);
        for buffer in &launches.buffers {
            offsets.push(bytes);
            bytes += buffer.bytes().next_multiple_of(ALIGN);
        }
        shared.check_room(&launches, bytes, source.identity())?;
        let (weights, blocks) = shared.weights(&launches, source)?;
        let memory = shared.alloc("the buffers", bytes)?;
        shared.answer(shared.stream.clear(&memory))?;
        let arena = shared.arena(launches.arena_bytes)?;
        Ok(CudaProgram {
            step,
            ready: None,
            launches,
            memory,
            offsets,
            weights,
            arena,
            _blocks: blocks,
            shared: Arc::clone(shared),
        })
    }
}

impl Backend for CudaDevice {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn storage(&self) -> (plan::Storage, Fuse) {
        (plan::Storage::of(self.storage.dtype()), passes::fuse)
    }

    fn dtype(&self) -> &'static str {
        self.storage.name()
    }

    fn wider(&self) -> Option<Box<dyn Backend>> {
        let Self { limit, room, .. } = *self;
        let wider = || Self { shared: Arc::clone(&self.shared), storage: Storage::Bf16, limit, room };
        (self.storage == Storage::F16).then(|| Box::new(wider()) as Box<dyn Backend>)
    }

    fn needs(&self, program: &StepProgram) -> Result<Needs> {
        Ok(lower(program, self.storage, self.shared.target)?.needs(program))
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit)
    }

    fn room(&self) -> Option<usize> {
        Some(self.room)
    }

    fn is_filled_by(&self, program: &StepProgram) -> bool {
        let lowered = lower(program, self.storage, self.shared.target);
        lowered.map_or(true, |lowered| full_share(&lowered, self.shared.multiprocessors) >= FULL)
    }

    fn preparation(&self) -> Preparation {
        Preparation { modules: self.shared.kernels.took(), graphs: *lock(&self.shared.graphs_took) }
    }

    fn load(&self, step: StepProgram, weights: &dyn WeightSource) -> Result<Box<dyn Program>> {
        Ok(Box::new(self.load_program(step, weights)?))
    }
}

/// The share of a step's work whose launches have a block for every multiprocessor. What runs once a sample is the
/// same for every batch and left out.
fn full_share(program: &LaunchProgram, multiprocessors: u32) -> f64 {
    let (mut full, mut all) = (0, 0);
    for stage in &program.body {
        let LaunchStage::Run(run) = stage else { continue };
        for LaunchStep { launch, cost, .. } in run {
            let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
            all += cost.flops;
            full += if blocks >= u64::from(multiprocessors) { cost.flops } else { 0 };
        }
    }
    if all == 0 { 1.0 } else { full as f64 / all as f64 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::Device { device: self.device.clone(), problem: problem.into() }
    }

    /// The driver's answer to something that no single launch did.
    pub fn answer<T>(&self, answer: Answer<T>) -> Result<T> {
        answer.map_err(|failure| self.error(failure.to_string()))
    }

    pub fn alloc(&self, what: &str, bytes: usize) -> Result<Memory> {
        Memory::new(&self.context, bytes).map_err(|failure| match failure.is_out_of_memory() {
            true => self.no_room(what, bytes, self.context.free_bytes().unwrap_or(0)),
            false => self.error(failure.to_string()),
        })
    }

    fn no_room(&self, what: &str, needed: usize, free: usize) -> Error {
        Error::OutOfMemory {
            what: what.to_owned(),
            needed_bytes: needed as u64,
            hint: format!(
                " on {}, where {free} are free: make the batch or the image smaller, or end what else runs there",
                self.device
            ),
        }
    }

    /// Asks for all room before the first weight is read.
    fn check_room(&self, launches: &LaunchProgram, buffers: usize, source: u64) -> Result<()> {
        let held = lock(&self.weights);
        let missing = launches.weights.iter().filter(|weight| {
            held.get(&(source, weight.key())).is_none_or(|held| held.block.strong_count() == 0)
        });
        let weights: usize = missing.map(|weight| weight.bytes.next_multiple_of(ALIGN)).sum();
        let arena = lock(&self.arena).upgrade().map_or(0, |arena| lock(&arena).bytes());
        // A larger arena replaces the old one, whose memory is free by then.
        let arena = launches.arena_bytes.saturating_sub(arena);
        let (needed, free) = (weights + buffers + arena, self.answer(self.context.free_bytes())?);
        if needed <= free {
            return Ok(());
        }
        Err(self.no_room("the program's weights, buffers and activations", needed, free))
    }

    /// Where the weights of a program are, and what keeps them there. Those that no other program holds are read,
    /// packed and sent one after the other.
    fn weights(
        &self,
        launches: &LaunchProgram,
        source: &dyn WeightSource,
    ) -> Result<(Vec<DevicePtr>, Vec<Arc<Memory>>)> {
        let from = source.identity();
        let key = |i: usize| (from, launches.weights[i].key());
        let mut held = lock(&self.weights);
        held.retain(|_, held| held.block.strong_count() > 0);
        let mut places = vec![DevicePtr::NONE; launches.weights.len()];
        let mut blocks: Vec<Arc<Memory>> = Vec::new();
        let (mut offsets, mut bytes) = (vec![None; launches.weights.len()], 0);
        for (i, weight) in launches.weights.iter().enumerate() {
            let found = held.get(&key(i)).and_then(|held| Some((held.block.upgrade()?, held.offset)));
            if let Some((block, offset)) = found {
                places[i] = DevicePtr(block.address() + offset as u64);
                if !blocks.iter().any(|known| Arc::ptr_eq(known, &block)) {
                    blocks.push(block);
                }
            } else {
                offsets[i] = Some(bytes);
                bytes += weight.bytes.next_multiple_of(ALIGN);
            }
        }
        if bytes == 0 {
            return Ok((places, blocks));
        }
        let block = Arc::new(self.alloc("the weights", bytes)?);
        let mut staging = self.answer(Staging::new(&self.stream))?;
        for i in launches.largest_weights_first() {
            let (weight, Some(offset)) = (&launches.weights[i], offsets[i]) else { continue };
            let read = |part: &Param| source.load(&part.name, &part.stored_shape());
            let mut send = |at, piece: &[u8]| self.answer(staging.send(&block, offset + at, piece));
            weight.pack_parts(&read, &mut send)?;
            places[i] = DevicePtr(block.address() + offset as u64);
        }
        self.answer(staging.finish())?;
        for (i, offset) in offsets.into_iter().enumerate() {
            if let Some(offset) = offset {
                held.insert(key(i), Held { block: Arc::downgrade(&block), offset });
            }
        }
        blocks.push(block);
        Ok((places, blocks))
    }

    /// An arena of so many bytes at least, in place of the one that programs had if that was smaller.
    fn arena(&self, bytes: usize) -> Result<Arc<Mutex<Memory>>> {
        let mut shared = lock(&self.arena);
        let arena = match shared.upgrade() {
            Some(arena) => arena,
            None => Arc::new(Mutex::new(self.alloc("the activations of a step", 0)?)),
        };
        let mut memory = lock(&arena);
        if memory.bytes() < bytes {
            let (before, what) = (memory.bytes(), "the activations of a step");
            // The old one goes first: both at once would be more than the plan.
            *memory = self.alloc(what, 0)?;
            *memory = match self.alloc(what, bytes) {
                // Programs that had it go on with one as large.
                Err(error) => {
                    *memory = self.alloc(what, before)?;
                    return Err(error);
                }
                new => new?,
            };
        }
        drop(memory);
        *shared = Arc::downgrade(&arena);
        Ok(arena)
    }
}

/// A program with its own buffers.
pub struct CudaProgram {
    step: StepProgram,
    /// None before the first run.
    ready: Option<Ready>,
    /// With symbols: the arena may move between two runs.
    launches: LaunchProgram,
    /// The state, then the buffers.
    memory: Memory,
    /// Of every buffer.
    offsets: Vec<usize>,
    weights: Vec<DevicePtr>,
    arena: Arc<Mutex<Memory>>,
    _blocks: Vec<Arc<Memory>>,
    shared: Arc<Shared>,
}

/// The launches for the arena at an address.
struct Ready {
    arena: u64,
    launches: LaunchProgram,
    replay: Replay,
}

enum Replay {
    /// Not run yet.
    Not,
    /// Run, launch by launch; the next run may make a graph.
    Ran,
    /// Launch by launch for good.
    Never,
    Graph(Graph),
}

impl CudaProgram {
    fn address(&self, offset: usize) -> DevicePtr {
        DevicePtr(self.memory.address() + offset as u64)
    }

    /// Launches for the arena as it is now, and how this run goes.
    fn settle(&mut self, arena: &Memory) -> Result<()> {
        if self.ready.as_ref().is_none_or(|ready| ready.arena != arena.address()) {
            if arena.bytes() < self.launches.arena_bytes {
                return Err(Error::Bug("the arena is smaller than a program that was loaded".to_owned()));
            }
            let addresses = Addresses {
                arena: DevicePtr(arena.address()),
                state: self.address(0),
                weights: self.weights.clone(),
                buffers: self.offsets.iter().map(|&offset| self.address(offset)).collect(),
            };
            let launches = self.launches.at(&addresses);
            self.ready = Some(Ready { arena: arena.address(), launches, replay: Replay::Not });
        }
        let (state, offsets) = (self.address(0), &self.offsets);
        let flag = |id: BufferId| DevicePtr(self.memory.address() + offsets[id.0 as usize] as u64);
        let ready = self.ready.as_mut().expect("set above");
        if let (Replay::Ran, true) = (&ready.replay, self.shared.graphs) {
            let (start, loaded) = (Instant::now(), self.shared.kernels.took());
            let graph = Graph::new(&self.shared, &ready.launches, state, &flag);
            let modules = self.shared.kernels.took() - loaded;
            *lock(&self.shared.graphs_took) += start.elapsed().saturating_sub(modules);
            ready.replay = match graph {
                Ok(graph) => Replay::Graph(graph),
                Err(error) => {
                    tracing::warn!("no graph, launches one by one: {error}");
                    Replay::Never
                }
            };
        }
        Ok(())
    }

    fn run_one_by_one(&self, launches: &LaunchProgram, state: &StepState, stop: &Stop) -> Result<()> {
        let Self { memory, offsets, shared, .. } = self;
        let mut eager = Eager { shared, memory, offsets, stop, last: None };
        execute(&launches.body, state, &mut eager)?;
        eager.wait()
    }

    /// What is not in the graph: it would stand there for every step and run at the first one only.
    fn run_hoisted(&self, launches: &LaunchProgram, state: &StepState, stop: &Stop) -> Result<()> {
        let Self { memory, offsets, shared, .. } = self;
        let mut eager = Eager { shared, memory, offsets, stop, last: None };
        execute_hoisted(&launches.body, state, &mut eager)
    }
}

impl Program for CudaProgram {
    fn step(&self) -> &StepProgram {
        &self.step
    }

    fn is_near(&self) -> bool {
        false
    }

    fn write(&mut self, buffer: &str, data: &[f32]) -> Result<()> {
        let (id, bytes) = self.launches.encode(buffer, data)?;
        self.shared.answer(self.shared.stream.write(&self.memory, self.offsets[id.0 as usize], &bytes))
    }

    fn write_indices(&mut self, buffer: &str, data: &[i32]) -> Result<()> {
        let (id, bytes) = self.launches.encode_indices(buffer, data)?;
        self.shared.answer(self.shared.stream.write(&self.memory, self.offsets[id.0 as usize], &bytes))
    }

    fn read(&self, buffer: &str) -> Result<Vec<f32>> {
        self.launches.decode(buffer, |id| {
            let index = id.0 as usize;
            let mut bytes = vec![0; self.launches.buffers[index].bytes()];
            let read = self.shared.stream.read(&self.memory, self.offsets[index], &mut bytes);
            self.shared.answer(read).map(|()| bytes)
        })
    }

    fn run(&mut self, state: &StepState, stop: &Stop) -> Result<()> {
        stop.check()?;
        self.step.check(state)?;
        let arena = Arc::clone(&self.arena);
        // Held while it is in use.
        let arena = lock(&arena);
        self.settle(&arena)?;
        let shared = Arc::clone(&self.shared);
        let bytes = params::StepState::from(state);
        shared.answer(shared.stream.write(&self.memory, 0, bytes_of(&bytes)))?;
        let mut ready = self.ready.take().expect("settled");
        let ran = match &ready.replay {
            Replay::Graph(graph) => {
                self.run_hoisted(&ready.launches, state, stop).and_then(|()| graph.run(&shared))
            }
            _ => self.run_one_by_one(&ready.launches, state, stop),
        };
        if let Replay::Not = ready.replay {
            ready.replay = Replay::Ran;
        }
        self.ready = Some(ready);
        ran
    }
}

/// One run, launch by launch.
struct Eager<'a> {
    shared: &'a Shared,
    memory: &'a Memory,
    offsets: &'a [usize],
    stop: &'a Stop,
    /// What was queued last: a failure that shows later is its own or that of one before.
    last: Option<LaunchStep>,
}

impl Eager<'_> {
    fn wait(&self) -> Result<()> {
        self.shared.stream.wait().map_err(|failure| self.late(&failure))
    }

    fn late(&self, failure: &Failure) -> Error {
        let Some(step) = &self.last else { return self.shared.error(failure.to_string()) };
        let problem = format!("{failure}, there or in a launch before; {BLOCKING}=1 tells in which");
        self.shared.launch_error(step, problem)
    }
}

impl Executor for Eager<'_> {
    fn launch(&mut self, step: &LaunchStep) -> Result<()> {
        self.stop.check()?;
        self.shared.queue_step(step)?;
        self.last = Some(step.clone());
        Ok(())
    }

    fn set_sample(&mut self, sample: usize) -> Result<()> {
        let at = std::mem::offset_of!(params::StepState, sample);
        let set = self.shared.stream.set_word(self.memory, at, sample as u32);
        set.map_err(|failure| self.late(&failure))
    }

    fn flag(&mut self, buffer: BufferId, index: usize) -> Result<bool> {
        let mut bytes = [0; size_of::<f32>()];
        let at = self.offsets[buffer.0 as usize] + index * bytes.len();
        let read = self.shared.stream.read(self.memory, at, &mut bytes);
        read.map_err(|failure| self.late(&failure))?;
        Ok(f32::from_le_bytes(bytes) != 0.0)
    }
}

impl Shared {
    /// Queues a launch, its maps encoded for where its tensors are; `named` says of which one a failure is.
    pub fn queue(&self, launch: &Launch, named: impl FnOnce(Failure) -> Error) -> Result<()> {
        let function = self.kernels.function(launch.kernel)?;
        let encoded = launch.encoded(|at, map| self.context.tensor_map(at, map));
        encoded.and_then(|params| self.stream.launch(function, launch.grid, &params)).map_err(named)
    }

    pub fn queue_step(&self, step: &LaunchStep) -> Result<()> {
        self.queue(&step.launch, |failure| self.launch_error(step, failure.to_string()))
    }

    /// What was launched, and what became of it.
    pub fn launch_error(&self, step: &LaunchStep, problem: String) -> Error {
        let launch = &step.launch;
        // As 64-bit words, addresses first.
        let word = |word: &[u8]| word.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
        let words = launch.params.chunks(8).map(word);
        Error::Launch(Box::new(LaunchFailure {
            device: self.device.clone(),
            kernel: launch.kernel.name,
            node: step.node.clone(),
            grid: launch.grid,
            threads: launch.kernel.threads,
            params: words.collect::<Vec<_>>().join(" "),
            problem,
        }))
    }
}
