//! NVIDIA GPUs: the launches of a step, queued on one stream, and from the second step on replayed as one graph.
//!
//! - `driver`, `nvrtc`, `places`: the two libraries, as tables of functions that are looked up before anything runs;
//! - `handles`: what the driver hands out, given back when dropped;
//! - `device`, `kernels`, `cache`: which GPU, its binaries, and those that had to be compiled;
//! - `program`, `graph`: the backend;
//! - `trial`: launches by themselves, for proofs;
//! - `workbench`: launches by themselves, timed.
//!
//! A machine without a driver, with an old one or without a GPU is an ordinary answer here, never a panic.
//! Nothing here has run on a GPU yet: the tests drive it against a stand-in for the driver, which does nothing or runs
//! the kernels on the CPU.

mod cache;
mod device;
mod driver;
mod graph;
mod handles;
mod kernels;
mod nvrtc;
mod places;
mod program;
mod table;
mod trial;
mod workbench;

pub use device::{Gpu, first_usable, gpus, usable};
pub use program::{CudaDevice, CudaProgram};
pub use trial::TrialOperand;
pub use workbench::{Plan, Timing, Workbench};
