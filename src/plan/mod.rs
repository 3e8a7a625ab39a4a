//! From a graph to a program: which value lives where, and when.

mod state;

pub use state::{SldState, StepState};
