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

use std::collections::HashMap;

use crate::error::Result;
use crate::ir::{Graph, Item, NodeId, verify};

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

/// Puts the nodes that `before` leads to in front of those that lead there.
fn insert(items: &mut Vec<Item>, before: &HashMap<NodeId, Vec<NodeId>>) {
    for item in std::mem::take(items) {
        match item {
            Item::Node(id) => {
                items.extend(before.get(&id).into_iter().flatten().map(|&made| Item::Node(made)));
                items.push(Item::Node(id));
            }
            Item::ForEachSample(mut body) => {
                insert(&mut body, before);
                items.push(Item::ForEachSample(body));
            }
            Item::If(flag, mut body) => {
                insert(&mut body, before);
                items.push(Item::If(flag, body));
            }
        }
    }
}
