//! The launches of a small program by themselves, timed.
//!
//! The program has its memory several times over, and launches go round among the copies: where all of them together
//! are larger than the cache, a launch finds nothing of its own there. So that queueing costs nothing, launches are
//! timed in batches that are one graph of the driver each; where it has none, they are queued one by one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::bytes_of;

use super::graph::Graph;
use super::handles::{Event, Memory};
use super::program::{CudaDevice, Shared};
use crate::error::{Error, Result};
use crate::ir::BufferId;
use crate::launch::params::{self, DevicePtr};
use crate::launch::{Addresses, LaunchProgram, LaunchStage, LaunchStep};
use crate::plan::{ALIGN, StepState};

/// How long a launch is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Runs that nobody looks at, for so long.
    pub warm_up: Duration,
    /// Measures for so long, and so many batches at least.
    pub duration: Duration,
    pub batches: usize,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// Of one launch, in microseconds: the mean of a batch each.
    pub batches_us: Vec<f64>,
    /// Launches of a batch.
    pub batch: usize,
    /// Copies of the operands that they went round among.
    pub copies: usize,
}

/// A batch is about as long as that, or as long as the driver's timer takes for exact.
const BATCH_US: f64 = 500.0;
const MOST_LAUNCHES: usize = 512;
const MOST_BATCHES: usize = 10_000;
/// Batches that are queued at once: the device never waits for the host between two of them.
const IN_A_ROW: usize = 10;

/// A program that neither loops nor branches, on a device.
pub struct Workbench {
    program: LaunchProgram,
    layout: Layout,
    copies: Vec<Copy>,
    shared: Arc<Shared>,
}

/// The program's memory, once.
struct Copy {
    /// With addresses.
    launches: Vec<LaunchStep>,
    memory: Memory,
}

/// Where everything is in a copy: the state, the buffers, the weights, the arena.
struct Layout {
    buffers: Vec<usize>,
    weights: usize,
    arena: usize,
    bytes: usize,
}

impl Layout {
    fn of(program: &LaunchProgram) -> Self {
        let mut bytes = program.state_bytes().next_multiple_of(ALIGN);
        let mut take = |room: usize| {
            let at = bytes;
            bytes += room.next_multiple_of(ALIGN);
            at
        };
        let buffers = program.buffers.iter().map(|buffer| take(buffer.bytes())).collect();
        let (weights, arena) = (take(program.weight_bytes()), take(program.arena_bytes));
        Self { buffers, weights, arena, bytes }
    }

    fn addresses(&self, program: &LaunchProgram, base: u64) -> Addresses {
        let at = |offset: usize| DevicePtr(base + offset as u64);
        Addresses {
            arena: at(self.arena),
            state: at(0),
            weights: program.weights.iter().map(|weight| at(self.weights + weight.offset)).collect(),
            buffers: self.buffers.iter().map(|&offset| at(offset)).collect(),
        }
    }
}

impl Workbench {
    /// Bytes of a program once.
    pub fn bytes(program: &LaunchProgram) -> usize {
        Layout::of(program).bytes
    }

    /// Nothing in memory yet.
    pub fn new(device: &CudaDevice, program: &LaunchProgram, copies: usize) -> Result<Self> {
        let [LaunchStage::Run(_)] = &program.body[..] else {
            return Err(Error::Bug("a program that loops or branches cannot be timed".to_owned()));
        };
        let (shared, layout) = (Arc::clone(&device.shared), Layout::of(program));
        let copy = |_| {
            let memory = shared.alloc("the operands of a launch", layout.bytes)?;
            let placed = program.at(&layout.addresses(program, memory.address()));
            Ok(Copy { launches: placed.steps().into_iter().cloned().collect(), memory })
        };
        let copies = (0..copies.max(1)).map(copy).collect::<Result<_>>()?;
        Ok(Self { program: program.clone(), layout, copies, shared })
    }

    pub fn copies(&self) -> usize {
        self.copies.len()
    }

    /// NaN everywhere, then the state, and every weight and buffer that has bytes here.
    pub fn fill(
        &self,
        copy: usize,
        state: &StepState,
        weights: &[Vec<u8>],
        buffers: &[Vec<u8>],
    ) -> Result<()> {
        let (shared, memory) = (&self.shared, &self.copies[copy].memory);
        shared.answer(shared.stream.fill(memory, 0xff))?;
        let write = |offset: usize, bytes: &[u8]| shared.answer(shared.stream.write(memory, offset, bytes));
        write(0, &vec![0; self.program.state_bytes()])?;
        write(0, bytes_of(&params::StepState::from(state)))?;
        for (weight, bytes) in self.program.weights.iter().zip(weights) {
            write(self.layout.weights + weight.offset, bytes)?;
        }
        self.layout.buffers.iter().zip(buffers).try_for_each(|(&offset, bytes)| write(offset, bytes))
    }

    /// All launches on a copy, once.
    pub fn run(&self, copy: usize) -> Result<()> {
        for step in &self.copies[copy].launches {
            self.shared.queue_step(step)?;
            self.shared
                .stream
                .wait()
                .map_err(|failure| self.shared.launch_error(step, failure.to_string()))?;
        }
        Ok(())
    }

    /// The bytes of a buffer.
    pub fn read(&self, copy: usize, buffer: BufferId) -> Result<Vec<u8>> {
        let index = buffer.0 as usize;
        let mut bytes = vec![0; self.program.buffers[index].bytes()];
        let from = &self.copies[copy].memory;
        self.shared.answer(self.shared.stream.read(from, self.layout.buffers[index], &mut bytes))?;
        Ok(bytes)
    }

    /// Times the launch at `index` of the program, whose operands must be there.
    pub fn time(&self, index: usize, plan: &Plan) -> Result<Timing> {
        let step = &self.copies[0].launches[index];
        let wrong = |failure: super::driver::Failure| self.shared.launch_error(step, failure.to_string());
        let events = (0..IN_A_ROW + 2).map(|_| Event::new(&self.shared.context));
        let events = events.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        // Microseconds from event to event, without the first ones: before them the device had nothing to do.
        let row = |work: &dyn Fn() -> Result<()>| -> Result<Vec<f64>> {
            for event in &events[..IN_A_ROW + 1] {
                event.record(&self.shared.stream).map_err(wrong)?;
                work()?;
            }
            events[IN_A_ROW + 1].record(&self.shared.stream).map_err(wrong)?;
            let between =
                events[1..].windows(2).map(|pair| pair[1].since(&pair[0]).map(|ms| f64::from(ms) * 1e3));
            between.collect::<Result<_, _>>().map_err(wrong)
        };
        let guess = row(&|| self.shared.queue_step(step))?.into_iter().fold(f64::INFINITY, f64::min).max(1.0);
        let fitting = (BATCH_US / guess) as usize;
        // Every copy has its turn.
        let batch = fitting.max(self.copies.len()).clamp(1, MOST_LAUNCHES);
        let launches: Vec<LaunchStep> =
            (0..batch).map(|i| self.copies[i % self.copies.len()].launches[index].clone()).collect();
        let graph = match self.shared.graphs.then(|| self.graph(launches.clone())) {
            Some(Err(error)) => {
                tracing::warn!("a batch runs launch by launch: {error}");
                None
            }
            graph => graph.transpose()?,
        };
        let work = || match &graph {
            Some(graph) => graph.queue(&self.shared).map_err(wrong),
            None => launches.iter().try_for_each(|step| self.shared.queue_step(step)),
        };
        let started = Instant::now();
        while started.elapsed() < plan.warm_up {
            row(&work)?;
        }
        let (started, mut batches_us) = (Instant::now(), Vec::new());
        while batches_us.len() < plan.batches
            || (started.elapsed() < plan.duration && batches_us.len() < MOST_BATCHES)
        {
            batches_us.extend(row(&work)?.into_iter().map(|us| us / batch as f64));
        }
        Ok(Timing { batches_us, batch, copies: self.copies.len() })
    }

    fn graph(&self, launches: Vec<LaunchStep>) -> Result<Graph> {
        let batch = LaunchProgram { body: vec![LaunchStage::Run(launches)], ..self.program.clone() };
        Graph::new(&self.shared, &batch, DevicePtr::NONE, &|_| DevicePtr::NONE)
    }
}
