//! Everything that can go wrong, as one enum that carries the object it happened to.
//!
//! A message names the thing (file, tensor, flag, node), what was expected, what was found and what
//! to do. [`Error::exit_code`] is the process' exit status for it; the table is in the README.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag or its value is wrong, or two flags contradict each other.
    #[error("{flag}: {problem}")]
    Usage { flag: String, problem: String },

    /// A file that the user gave is not what it should be.
    #[error("{}: {problem}", .path.display())]
    Input { path: PathBuf, problem: String },

    /// A tensor of a weight file does not fit the architecture.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", .path.display())]
    Tensor { path: PathBuf, tensor: String, expected: String, found: String },

    /// A weight that is finite and too large for the type of the computation.
    #[error("tensor `{tensor}` holds {value}, which {dtype} cannot; use another --dtype")]
    Overflow { tensor: String, value: f32, dtype: &'static str },

    /// A field of a configuration file is missing, out of range or not supported.
    #[error("{}: `{field}`: expected {expected}, found {found}", .path.display())]
    Config { path: PathBuf, field: String, expected: String, found: String },

    /// An operation was given operands that it cannot take.
    #[error("node `{node}` ({op}): {problem}")]
    Shape { node: String, op: &'static str, problem: String },

    /// A derivative was asked for along a path where none is defined.
    #[error("node `{node}` ({op}) is not differentiable with respect to its input {input}")]
    NotDifferentiable { node: String, op: &'static str, input: usize },

    /// A launch would break what its kernel relies on.
    #[error(
        "kernel `{kernel}`: `{field}` must be {rule}, found {found}; nothing was launched, please report this"
    )]
    Params { kernel: String, field: &'static str, rule: String, found: String },

    /// The device that was asked for cannot be used.
    #[error("device `{device}` is not usable: {problem}")]
    Device { device: String, problem: String },

    /// A device refused a kernel, or failed while it ran.
    #[error(transparent)]
    Launch(Box<LaunchFailure>),

    /// Memory that the plan asks for cannot be had.
    #[error("out of memory: {what}; that needs {needed_bytes} bytes{hint}")]
    OutOfMemory { what: String, needed_bytes: u64, hint: String },

    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// Some items of a larger job failed, the others are done.
    #[error("{failed} of {total} {what} failed")]
    Partial { what: &'static str, failed: usize, total: usize },

    /// A value is NaN or infinite where that would make an image meaningless or unsafe.
    #[error("non-finite value in {what} at step {step} of image {image}; nothing was written for it")]
    NonFinite { what: &'static str, step: usize, image: usize },

    /// The user or the system asked us to stop, by that signal.
    #[error("interrupted")]
    Interrupted { signal: u8 },

    /// A mistake of ours.
    #[error("internal error: {0}; please report this")]
    Bug(String),
}

/// What was launched, and what the device answered.
#[derive(Debug, thiserror::Error)]
#[error(
    "device `{device}`: kernel `{kernel}` of `{node}` failed: {problem} (grid {grid:?}, {threads} threads, params \
     {params})"
)]
pub struct LaunchFailure {
    pub device: String,
    pub kernel: &'static str,
    /// The path of the graph's node.
    pub node: String,
    pub grid: [u32; 3],
    pub threads: u32,
    /// As 64-bit words.
    pub params: String,
    pub problem: String,
}

impl Error {
    pub fn usage(flag: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Usage { flag: flag.into(), problem: problem.into() }
    }

    pub fn input(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    pub fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// The exit status of a process that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Bug(_) | Self::Params { .. } | Self::NotDifferentiable { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Input { .. }
            | Self::Tensor { .. }
            | Self::Overflow { .. }
            | Self::Config { .. }
            | Self::Shape { .. } => 3,
            Self::Device { .. } | Self::Launch(_) => 4,
            Self::OutOfMemory { .. } => 5,
            Self::Io { .. } => 6,
            Self::Partial { .. } => 7,
            Self::NonFinite { .. } => 8,
            Self::Interrupted { signal } => 128u8.saturating_add(*signal),
        }
    }
}
