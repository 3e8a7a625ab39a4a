//! From a graph to a program: what runs in which order, and where every value lives.

mod memory;
mod program;
mod state;

pub use memory::{ALIGN, Arena, Demand, clash, lower_bound, place};
pub use program::{Param, Slot, Stage, StepProgram};
pub use state::{SldState, StepState};
