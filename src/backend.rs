//! What every backend offers: load a step program once, then run it step after step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::plan::{Fuse, Needs, Param, StepProgram, StepState, Storage};
use crate::tensor::Shape;
use crate::weights::Weights;

pub use crate::weights::InPlace;

/// Where weights come from, by the names that models use.
pub trait WeightSource: Sync {
    /// The elements of a tensor in the order of its checkpoint, converted to f32. `shape` is what the
    /// model expects to find.
    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>>;

    /// Programs of one backend share a weight where both its name and this number are the same. 0 is for the only
    /// source that a backend ever sees.
    fn identity(&self) -> u64 {
        0
    }

    /// The same without a copy, if that is possible: the pages of a mapped file.
    fn map(&self, _name: &str, _shape: &Shape) -> Result<Option<InPlace>> {
        Ok(None)
    }

    /// Whether [`WeightSource::map`] has it; reads nothing.
    fn maps(&self, _name: &str, _shape: &Shape) -> bool {
        false
    }
}

impl WeightSource for Weights {
    fn identity(&self) -> u64 {
        self.identity()
    }

    fn load(&self, name: &str, shape: &Shape) -> Result<Vec<f32>> {
        self.load(name, shape)
    }

    fn map(&self, name: &str, shape: &Shape) -> Result<Option<InPlace>> {
        self.map(name, shape)
    }

    fn maps(&self, name: &str, shape: &Shape) -> bool {
        self.maps(name, shape)
    }
}

/// A device that can run step programs.
pub trait Backend {
    /// A word for messages and metadata: `cpu`.
    fn name(&self) -> &'static str;

    /// The types that it stores, and what it runs as one.
    fn storage(&self) -> (Storage, Fuse);

    /// What activations are stored in, as `--dtype` says it.
    fn dtype(&self) -> &'static str;

    /// The same device with a type of a wider range, for what did not stay finite; none where this is the widest.
    fn wider(&self) -> Option<Box<dyn Backend>> {
        None
    }

    /// What a program takes besides its buffers and its arena.
    ///
    /// # Errors
    /// What keeps the device from running it.
    fn needs(&self, program: &StepProgram) -> Result<Needs>;

    /// Whether it reads a weight as checkpoints in f32 store it, so that one in a mapped file can stay there.
    fn reads_in_place(&self, _param: &Param) -> bool {
        false
    }

    /// Bytes that programs may take in all, if there is a limit.
    fn limit(&self) -> Option<usize> {
        None
    }

    /// Bytes that are there, whatever the limit; none where nobody knows.
    fn room(&self) -> Option<usize> {
        None
    }

    /// Whether a program keeps the device busy, so that a larger batch would only take longer.
    fn is_filled_by(&self, _: &StepProgram) -> bool {
        true
    }

    /// Time that kernels and graphs of the programs so far took to get ready.
    fn preparation(&self) -> Preparation {
        Preparation::default()
    }

    /// Takes the weights in and makes all memory that running will need. Programs of one backend share
    /// the weights that they have in common, and one arena: they run one after the other.
    fn load(&self, program: StepProgram, weights: &dyn WeightSource) -> Result<Box<dyn Program>>;
}

/// What a device does once for many runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Binaries of kernels: found or compiled, and loaded.
    pub modules: Duration,
    /// Whole steps made into graphs.
    pub graphs: Duration,
}

/// A loaded step program with its buffers.
pub trait Program {
    fn step(&self) -> &StepProgram;

    /// Whether its buffers are in the host's memory, where looking into them costs nothing.
    fn is_near(&self) -> bool {
        true
    }

    /// Fills a buffer of numbers. NHWC, as declared.
    fn write(&mut self, buffer: &str, data: &[f32]) -> Result<()>;

    /// Fills a buffer of indices.
    fn write_indices(&mut self, buffer: &str, data: &[i32]) -> Result<()>;

    /// The contents of a buffer of numbers.
    fn read(&self, buffer: &str) -> Result<Vec<f32>>;

    /// Runs the body once. Stops between two operations when `stop` says so.
    fn run(&mut self, state: &StepState, stop: &Stop) -> Result<()>;
}

/// A wish to stop that signal handlers set and long computations ask for.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    /// Asks to stop on behalf of the signal with that number; returns whether somebody had asked before.
    pub fn ask(&self, signal: u8) -> bool {
        self.0.swap(signal, Ordering::Relaxed) != 0
    }

    /// [`Error::Interrupted`] once somebody asked to stop.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Error::Interrupted { signal }),
        }
    }
}
