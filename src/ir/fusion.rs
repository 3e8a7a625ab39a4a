//! Which nodes of a graph run as one, and which values therefore never reach memory: an annotation that
//! leaves the graph as it is.
//!
//! A backend that runs nodes one by one uses [`Fusion::none`]; one whose kernels have prologues and epilogues
//! asks `passes::fuse`. The planner gives no bytes to what a fusion does not materialise.

use std::fmt::Write;

use super::graph::{Graph, NodeId, ValueId};

/// Nodes that run as one. It runs where its last node stands: everything that any of them reads must hold its
/// value until then. Only the results of the last node reach memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// A linear layer, a convolution, or the data gradient of either or of a norm.
    pub root: NodeId,
    /// All nodes in running order. Before the root: what its operand passes through while it is read. After
    /// it: what its result passes through before it is written.
    pub members: Vec<NodeId>,
}

impl Group {
    /// The node at whose place the group runs and whose results reach memory.
    pub fn last(&self) -> NodeId {
        *self.members.last().expect("a group has its root at least")
    }
}

/// The groups of a graph, by [`NodeId`] and [`ValueId`] of that very graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fusion {
    /// In the order of their roots in the graph's list of nodes.
    pub groups: Vec<Group>,
    /// Concatenations that do not run: all their readers read from the two sources.
    pub pairs: Vec<NodeId>,
    /// Copies of images, and first images of a batch, that nobody makes: all their readers find them in what they are
    /// of.
    pub in_place: Vec<NodeId>,
    /// Index into `groups`, by node.
    group_of: Vec<Option<u32>>,
    /// Whether a value owns no bytes, by value.
    passing: Vec<bool>,
}

impl Fusion {
    /// Every node by itself.
    pub fn none(graph: &Graph) -> Self {
        Self::new(graph, Vec::new(), Vec::new(), Vec::new())
    }

    pub fn new(
        graph: &Graph,
        mut groups: Vec<Group>,
        mut pairs: Vec<NodeId>,
        mut in_place: Vec<NodeId>,
    ) -> Self {
        groups.sort_by_key(|group| group.root);
        pairs.sort();
        in_place.sort();
        let mut group_of = vec![None; graph.nodes.len()];
        let mut passing = vec![false; graph.values.len()];
        for (index, group) in groups.iter().enumerate() {
            for &member in &group.members {
                group_of[member.0 as usize] = Some(index as u32);
                if member != group.last() {
                    graph.node(member).outputs.iter().for_each(|value| passing[value.0 as usize] = true);
                }
            }
        }
        for &source in pairs.iter().chain(&in_place) {
            graph.node(source).outputs.iter().for_each(|value| passing[value.0 as usize] = true);
        }
        Self { groups, pairs, in_place, group_of, passing }
    }

    /// The group that a node belongs to, if it does not run by itself.
    pub fn group_of(&self, node: NodeId) -> Option<&Group> {
        self.group_of[node.0 as usize].map(|index| &self.groups[index as usize])
    }

    /// Whether a value reaches memory. Weights, buffers and views are somebody else's bytes and count as
    /// reaching it.
    pub fn is_materialised(&self, value: ValueId) -> bool {
        !self.passing[value.0 as usize]
    }

    /// What is read in the place of a value that nobody makes: both sources of a concatenation, or what copies or first
    /// images are of. `None` for all other values.
    pub fn sources<'g>(&self, graph: &'g Graph, value: ValueId) -> Option<&'g [ValueId]> {
        let node = graph.value(value).node;
        self.is_read_through(node).then(|| &graph.node(node).inputs[..])
    }

    fn is_read_through(&self, node: NodeId) -> bool {
        [&self.pairs, &self.in_place].iter().any(|nodes| nodes.binary_search(&node).is_ok())
    }

    /// Whether a node takes a place of its own in the order of running: not a free one, not one whose readers read
    /// its sources, not an inner node of a group.
    pub fn runs(&self, graph: &Graph, node: NodeId) -> bool {
        !graph.node(node).op.is_free()
            && !self.is_read_through(node)
            && self.group_of(node).is_none_or(|group| group.last() == node)
    }

    /// The nodes that run where `node` stands: those of its group, or itself.
    pub fn members(&self, node: NodeId) -> Vec<NodeId> {
        self.group_of(node).map_or_else(|| vec![node], |group| group.members.clone())
    }

    /// One line a group and a concatenation, for people and golden files.
    pub fn describe(&self, graph: &Graph) -> String {
        let mut text = String::new();
        for group in &self.groups {
            let words: Vec<_> = group.members.iter().map(|&id| graph.node(id).op.name()).collect();
            let _ = writeln!(text, "{} <- {}", graph.node(group.root).name, words.join(" + "));
        }
        for &pair in &self.pairs {
            let _ = writeln!(text, "{} <- read from its two sources", graph.node(pair).name);
        }
        for &id in &self.in_place {
            let (name, from) = (&graph.node(id).name, &graph.producer(graph.node(id).inputs[0]).name);
            let _ = writeln!(text, "{name} <- read from {from}");
        }
        text
    }
}
