//! Graph to graph, one small rewriting a file, in the order of [`run_all`]; [`hoist`], which comes before them
//! and has to be told which buffers are texts; and [`fuse`], which rewrites nothing but says what a device may
//! run as one.

mod dead;
mod fuse;
mod hoist;

pub use dead::remove_dead;
pub use fuse::fuse;
pub use hoist::{Hoisting, hoist};

use crate::error::Result;
use crate::ir::{Graph, verify};

/// All passes, each verified.
pub fn run_all(mut graph: Graph) -> Result<Graph> {
    let before = graph.order().len();
    remove_dead(&mut graph);
    verify(&graph)?;
    tracing::debug!(pass = "remove_dead", before, after = graph.order().len(), "rewrote");
    Ok(graph)
}
