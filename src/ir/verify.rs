//! What must hold in every graph, checked after it is built and after every pass.

use std::collections::HashSet;

use super::graph::{BufferId, Flag, Graph, Item, Node, ValueId};
use super::op::{Op, Row};
use super::shapes;
use crate::error::{Error, Result};

/// Checks that
/// - every operand is made before it is read, and inside a body only if that body always runs first,
/// - shapes agree with what the operation returns for its operands,
/// - a loaded value is not read after its buffer was stored (it would see the new contents),
/// - rows of single samples are touched inside a for-each-sample body only,
/// - rows of single steps are loaded only, and no more of them than there is,
/// - what was hoisted stands in the outermost body.
pub fn verify(graph: &Graph) -> Result<()> {
    let params = graph.nodes.iter().filter(|node| matches!(node.op, Op::Param { .. }));
    let mut checker = Checker {
        graph,
        made: params.flat_map(|node| node.outputs.iter().copied()).collect(),
        stale: HashSet::new(),
        in_loop: false,
        depth: 0,
    };
    checker.body(&graph.body)
}

struct Checker<'g> {
    graph: &'g Graph,
    /// Values that can be read at this point.
    made: HashSet<ValueId>,
    /// Buffers that were stored since the beginning.
    stale: HashSet<BufferId>,
    in_loop: bool,
    /// Bodies around the one that is looked at.
    depth: usize,
}

impl Checker<'_> {
    fn body(&mut self, items: &[Item]) -> Result<()> {
        for item in items {
            match item {
                Item::Node(id) => self.node(self.graph.node(*id))?,
                Item::ForEachSample(body) => {
                    if self.in_loop {
                        return Err(Error::Bug("a for-each-sample body inside another one".into()));
                    }
                    self.in_loop = true;
                    self.inner(body)?;
                    self.in_loop = false;
                }
                Item::If(flag, body) => {
                    if matches!(flag, Flag::Once(_)) && self.depth > 0 {
                        return Err(Error::Bug("a hoisted body inside of another one".into()));
                    }
                    if matches!(flag, Flag::Sample(_)) && !self.in_loop {
                        return Err(Error::Bug("a sample's flag outside of a for-each-sample body".into()));
                    }
                    self.inner(body)?;
                }
            }
        }
        Ok(())
    }

    /// What is made inside cannot be read outside: the body may not have run.
    fn inner(&mut self, body: &[Item]) -> Result<()> {
        let outer = self.made.clone();
        self.depth += 1;
        self.body(body)?;
        self.depth -= 1;
        self.made = outer;
        Ok(())
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let wrong = |problem: String| Error::Shape { node: node.name.clone(), op: node.op.name(), problem };
        for &input in &node.inputs {
            if !self.made.contains(&input) {
                return Err(wrong(format!("operand {} is not made before", input.0)));
            }
            if let Some(buffer) = self.loaded(input)
                && self.stale.contains(&buffer)
            {
                let name = &self.graph.buffer(buffer).name;
                return Err(wrong(format!("reads buffer `{name}` after it was overwritten")));
            }
        }
        match node.op {
            Op::Load { buffer, row } | Op::Store { buffer, row } => {
                if row == Row::Sample && !self.in_loop {
                    return Err(wrong("touches a sample's row outside of a for-each-sample body".into()));
                }
                let shape = &self.graph.buffer(buffer).shape;
                if let Row::Step { start, len } = row
                    && (matches!(node.op, Op::Store { .. }) || start + len > shape[1..].iter().product())
                {
                    return Err(wrong(format!("touches {start}..+{len} of a step's row of {shape}")));
                }
                if matches!(node.op, Op::Store { .. }) {
                    self.stale.insert(buffer);
                } else {
                    self.stale.remove(&buffer);
                }
            }
            Op::Param { .. } => {}
            Op::Reshape => {
                let (from, to) = (self.graph.shape(node.inputs[0]), self.graph.shape(node.outputs[0]));
                if from.count() != to.count() {
                    return Err(wrong(format!("sees {from} as {to}")));
                }
            }
            _ => {
                let shapes = shapes::infer(&node.op, &self.graph.shapes(&node.inputs)).map_err(wrong)?;
                let found = self.graph.shapes(&node.outputs);
                if shapes.iter().ne(found) {
                    let found = self.graph.shapes(&node.outputs);
                    return Err(wrong(format!("should return {shapes:?}, not {found:?}")));
                }
            }
        }
        self.made.extend(&node.outputs);
        Ok(())
    }

    /// The buffer that a value is a view of, if it is one.
    fn loaded(&self, value: ValueId) -> Option<BufferId> {
        let node = self.graph.producer(value);
        match node.op {
            Op::Load { buffer, .. } => Some(buffer),
            Op::Reshape => self.loaded(node.inputs[0]),
            _ => None,
        }
    }
}
