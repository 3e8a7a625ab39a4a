//! From a graph to a program: what runs in which order, where every value lives, what is kept for the backward
//! pass and what is computed again.

mod keep;
mod memory;
mod peak;
mod program;
mod rewrite;
mod schedule;
mod search;
mod state;
mod storage;

pub use keep::{Fit, Fuse, Planner};
pub use memory::{ALIGN, Arena, Demand, clash, lower_bound, place, place_around};
pub use peak::Peak;
pub use program::{Needs, Param, Placed, Slot, Stage, StepProgram};
pub use state::{SldState, StepState};
pub use storage::Storage;
