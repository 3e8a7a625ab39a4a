//! What runs as one: a node, or a contraction with what its group puts in front of it and behind it.

use std::collections::HashSet;

use super::norms::TileStats;
use super::params::{self as p, DevicePtr, Epilogue};
use super::types::root;
use super::{Kinds, Operand, kinds};
use crate::error::{Error, Result};
use crate::ir::{Fusion, Graph, Group, Node, NodeId, Op, ValueId};

/// A node or a group as its kernel sees it: `act(root(inputs) + channels) + residual`, of an enlarged image or
/// summed back to the small one where the root is a convolution or its gradient.
pub(super) struct Unit<'g> {
    pub root: &'g Node,
    /// Whose results reach memory.
    pub last: &'g Node,
    pub kinds: Kinds,
    /// Operands of the root; those of the enlargement in its stead.
    pub inputs: Vec<ValueId>,
    /// Lines and columns of the image that the root's filter slides over, where the stored one is half that.
    pub enlarged: Option<[usize; 2]>,
    pub channels: Option<ValueId>,
    /// As [`Epilogue::activation`].
    pub activation: i32,
    pub residual: Option<ValueId>,
}

/// The operands of a unit on the device.
pub(super) struct Reads {
    pub inputs: Vec<Operand>,
    /// What stands beside the first input, where that is one of two sources.
    pub second: Option<Operand>,
    pub channels: Option<Operand>,
    pub residual: Option<Operand>,
    /// The first input has the halves of its channels side by side; see [`super::Packing::Pairs`].
    pub paired: bool,
    /// Of the first input and of what stands beside it, where a norm reads them.
    pub stats: [Option<TileStats>; 2],
    /// Images of those of the first input: all of a batch, where the first are read.
    pub measured: usize,
}

impl Reads {
    pub fn addresses(&self) -> impl Iterator<Item = DevicePtr> {
        let operands = self.inputs.iter().chain(&self.second).chain(&self.channels).chain(&self.residual);
        operands.map(|operand| operand.at).chain(self.stats.iter().flatten().map(|stats| stats.at))
    }
}

/// Names of the params of gated linear layers whose gate is in the epilogue: their rows lie in pairs, for all their
/// readers.
pub(super) fn paired<'g>(graph: &'g Graph, fusion: &Fusion) -> HashSet<&'g str> {
    let gated = |group: &&Group| group.members.iter().any(|&id| matches!(graph.node(id).op, Op::Geglu));
    let params = fusion.groups.iter().filter(gated).flat_map(|group| &graph.node(group.root).inputs[1..]);
    params
        .filter_map(|&param| match &graph.producer(param).op {
            Op::Param { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

impl<'g> Unit<'g> {
    /// What runs where `id` stands.
    pub fn of(graph: &'g Graph, fusion: &Fusion, id: NodeId) -> Result<Self> {
        let last = graph.node(id);
        let none = |node: &Node| Error::Bug(format!("`{}` ({}) has no kernel", node.name, node.op.name()));
        let Some(group) = fusion.group_of(id) else {
            return Ok(Self::bare(last, kinds(&last.op).ok_or_else(|| none(last))?));
        };
        let node = graph.node(group.root);
        let kinds = kinds(&node.op).ok_or_else(|| none(node))?;
        let mut unit = Self { last, ..Self::bare(node, kinds) };
        let mut before = true;
        // What passes from one member to the next.
        let mut passing = None;
        for &member in &group.members {
            let node = graph.node(member);
            let other = node.inputs.iter().find(|&&input| Some(root(graph, input)) != passing);
            match node.op {
                _ if member == group.root => before = false,
                Op::Upsample { height, width } if before => {
                    unit.inputs[0] = node.inputs[0];
                    unit.enlarged = Some([height, width]);
                }
                Op::UpsampleBwd { .. } => {
                    let large = graph.shape(node.inputs[0]);
                    unit.enlarged = Some([large[1], large[2]]);
                }
                Op::AddChannels => unit.channels = other.copied(),
                Op::Activate(act) => unit.activation = p::activation(Some(act)),
                Op::Geglu => unit.activation = Epilogue::GEGLU,
                Op::Add => unit.residual = other.copied(),
                _ => return Err(none(node)),
            }
            passing = node.outputs.first().copied();
        }
        Ok(unit)
    }

    fn bare(node: &'g Node, kinds: Kinds) -> Self {
        Self {
            root: node,
            last: node,
            kinds,
            inputs: node.inputs.clone(),
            enlarged: None,
            channels: None,
            activation: p::activation(None),
            residual: None,
        }
    }

    /// Everything that is read, with the letter of its type.
    pub fn reads(&self) -> impl Iterator<Item = (ValueId, u8)> {
        let more = [self.channels, self.residual].into_iter().flatten().map(|value| (value, b't'));
        self.inputs.iter().copied().zip(self.kinds.inputs.bytes()).chain(more)
    }

    /// Everything that is made, with the letter of its type.
    pub fn makes(&self) -> impl Iterator<Item = (ValueId, u8)> {
        self.last.outputs.iter().copied().zip(self.kinds.outputs.bytes())
    }
}
