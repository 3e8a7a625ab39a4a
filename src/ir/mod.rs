//! The graph: what to compute, as data that runs nothing.
//!
//! A [`Graph`] is a list of named [`Node`]s over typed [`Value`]s, in an order in which they can run,
//! plus a body that says which of them run once, once a sample, or only behind a flag. Models build
//! graphs through [`Builder`]; differentiation and passes turn graphs into graphs; the planner gives
//! every value a place. The set of operations is closed: see [`Op`].

mod attending;
mod builder;
mod cost;
mod fusion;
mod graph;
mod op;
mod print;
mod shapes;
mod verify;

pub use attending::{Attending, WIDEST_WHOLE, queries_of_piece, score_row};
pub use builder::Builder;
pub use cost::Cost;
pub use fusion::{Fusion, Group};
pub use graph::{Buffer, BufferId, Flag, Graph, Item, Node, NodeId, Once, Value, ValueId};
pub use op::{Activation, Layout, Op, Padding, Reduce, Row};
pub use shapes::infer;
pub use verify::verify;
