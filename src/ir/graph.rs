//! Nodes, values, named buffers, and the body that orders them.

use super::Op;
use crate::tensor::{DType, Shape};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// One result of a node.
#[derive(Clone, Debug)]
pub struct Value {
    pub shape: Shape,
    /// `F32` stands for the type that is computed in; indices are `I32`.
    pub dtype: DType,
    pub node: NodeId,
}

/// One operation on values. The name is the checkpoint path of its weights where it has any.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub op: Op,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
}

/// A tensor that outlives a step: state of the sampler, or what the host reads and writes.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
}

/// What an [`Item::If`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// `StepState::fresh`: a body that was hoisted out of the step. It stands in the outermost body.
    Once(Once),
    /// `StepState::window`: the step lies inside the guided window.
    Window,
    /// Entry `StepState::sample` of the buffer is not zero.
    Sample(BufferId),
}

/// What has to change before the results of a hoisted body do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Once {
    Prompt,
    Schedule,
}

impl Once {
    /// The parts of a graph in running order, the step last.
    pub const PARTS: [Option<Self>; 3] = [Some(Self::Schedule), Some(Self::Prompt), None];

    /// The word for a part in listings.
    pub const fn part(part: Option<Self>) -> &'static str {
        match part {
            Some(once) => once.name(),
            None => "step",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Schedule => "schedule",
        }
    }
}

impl Flag {
    /// The heading of a body in listings; `buffer` knows the names of buffers.
    pub fn heading<'a>(self, buffer: impl Fn(BufferId) -> &'a str) -> String {
        match self {
            Self::Once(once) => format!("once a {}", once.name()),
            Self::Window => "if window".to_owned(),
            Self::Sample(id) => format!("if {}[sample]", buffer(id)),
        }
    }
}

/// A piece of the body, in running order.
#[derive(Clone, Debug)]
pub enum Item {
    Node(NodeId),
    /// Runs once for every sample of the batch; values inside belong to one sample.
    ForEachSample(Vec<Item>),
    If(Flag, Vec<Item>),
}

fn walk(items: &[Item], order: &mut Vec<NodeId>) {
    for item in items {
        match item {
            Item::Node(id) => order.push(*id),
            Item::ForEachSample(body) | Item::If(_, body) => walk(body, order),
        }
    }
}

/// A computation: see the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub values: Vec<Value>,
    pub buffers: Vec<Buffer>,
    pub body: Vec<Item>,
}

impl Graph {
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0 as usize]
    }

    pub fn shape(&self, id: ValueId) -> &Shape {
        &self.value(id).shape
    }

    pub fn shapes(&self, ids: &[ValueId]) -> Vec<&Shape> {
        ids.iter().map(|&id| self.shape(id)).collect()
    }

    /// The node that makes a value.
    pub fn producer(&self, id: ValueId) -> &Node {
        self.node(self.value(id).node)
    }

    /// For every value the one whose bytes it shows: itself, unless it is a reshaped view.
    pub fn view_roots(&self) -> Vec<ValueId> {
        let mut roots: Vec<ValueId> = (0..self.values.len() as u32).map(ValueId).collect();
        for node in &self.nodes {
            if matches!(node.op, Op::Reshape) {
                roots[node.outputs[0].0 as usize] = roots[node.inputs[0].0 as usize];
            }
        }
        roots
    }

    /// Nodes of the body in running order, as if every loop ran once and every flag were set.
    pub fn order(&self) -> Vec<NodeId> {
        let mut order = Vec::with_capacity(self.nodes.len());
        walk(&self.body, &mut order);
        order
    }

    /// The same of a part of the body: of the step itself, or of what was hoisted out of it.
    pub fn order_of(&self, hoisted: Option<Once>) -> Vec<NodeId> {
        let mut order = Vec::new();
        for item in &self.body {
            let part = if let Item::If(Flag::Once(once), _) = item { Some(*once) } else { None };
            if part == hoisted {
                walk(std::slice::from_ref(item), &mut order);
            }
        }
        order
    }
}
