//! Prompt in, image out: the one place that knows every stage, in the order of the data.

mod batch;
mod blueprint;
mod contexts;
mod model;
mod observe;
mod plans;
pub mod programs;
mod request;
mod run;

pub use batch::batch_that_fits;
pub use blueprint::Blueprint;
pub use model::{Model, ModelSource};
pub use observe::{GeneratedImage, Observer, Startup, StepReport, Trace};
pub use plans::{Memory, Plans, Target};
pub use request::{Guidance, MAX_BATCH, Method, Request, check_side};
pub use run::{generate, required_memory};
