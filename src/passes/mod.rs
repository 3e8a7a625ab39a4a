//! Graph to graph, one small rewriting a file, in the order of [`run_all`]; [`hoist`], which comes before them
//! and has to be told which buffers are texts; and [`fuse`], which rewrites nothing but says what a device may
//! run as one.

mod dead;
mod fuse;
mod hoist;
mod share;

pub use dead::remove_dead;
pub use fuse::fuse;
pub use hoist::{Hoisting, hoist};
pub use share::share;

use crate::error::Result;
use crate::ir::{Graph, verify};

/// All passes, each verified.
pub fn run_all(mut graph: Graph) -> Result<Graph> {
    let before = graph.order().len();
    remove_dead(&mut graph);
    verify(&graph)?;
    let live = graph.order().len();
    tracing::debug!(pass = "remove_dead", before, after = live, "rewrote");
    share(&mut graph);
    remove_dead(&mut graph);
    verify(&graph)?;
    tracing::debug!(pass = "share", before = live, after = graph.order().len(), "rewrote");
    Ok(graph)
}
