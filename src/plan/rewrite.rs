//! Second runs, written into the graph: the decisions of a search become nodes of the backward body.

use std::collections::HashMap;

use super::schedule::Schedule;
use super::search::Step;
use crate::ir::{Fusion, Graph, Item, Node, NodeId, Op, Value, ValueId};

/// What the names of second runs end with.
const AGAIN: &str = ".again";

/// `graph` with the second runs of `steps` before their readers. The members of a group stand together
/// afterwards, where the group runs.
pub fn rewrite(graph: &Graph, fusion: &Fusion, schedule: &Schedule, steps: &[Step]) -> Graph {
    let mut before: HashMap<NodeId, Vec<usize>> = HashMap::new();
    let mut waiting = Vec::new();
    for step in steps {
        if step.again {
            waiting.push(step.unit);
        } else if !waiting.is_empty() {
            before.insert(name_of(schedule, step.unit), std::mem::take(&mut waiting));
        }
    }
    let mut rewriter = Rewriter {
        source: graph,
        fusion,
        schedule,
        before,
        result: Graph { body: Vec::new(), ..graph.clone() },
        copies: HashMap::new(),
        late: HashMap::new(),
        placed: vec![false; graph.values.len()],
    };
    for node in graph.nodes.iter().filter(|node| matches!(node.op, Op::Param { .. })) {
        rewriter.placed[node.outputs[0].0 as usize] = true;
    }
    rewriter.result.body = rewriter.body(&graph.body);
    rewriter.result
}

fn name_of(schedule: &Schedule, unit: usize) -> NodeId {
    *schedule.units[unit].nodes.last().expect("a unit has a node")
}

struct Rewriter<'g> {
    source: &'g Graph,
    fusion: &'g Fusion,
    schedule: &'g Schedule,
    /// Units that run again before a node.
    before: HashMap<NodeId, Vec<usize>>,
    result: Graph,
    /// What second runs made in place of a value (or made of it: views, pairs).
    copies: HashMap<ValueId, ValueId>,
    /// Views of values that are made later than where the views stood.
    late: HashMap<ValueId, Vec<NodeId>>,
    /// Values of the source that are made at this point.
    placed: Vec<bool>,
}

impl Rewriter<'_> {
    fn body(&mut self, items: &[Item]) -> Vec<Item> {
        let mut result = Vec::new();
        for item in items {
            match item {
                Item::Node(id) if matches!(self.source.node(*id).op, Op::Reshape) => {
                    let input = self.source.node(*id).inputs[0];
                    if self.placed[input.0 as usize] {
                        self.place(*id, &mut result);
                    } else {
                        self.late.entry(input).or_default().push(*id);
                    }
                }
                Item::Node(id) if self.fusion.group_of(*id).is_some_and(|group| group.last() != *id) => {}
                Item::Node(id) => {
                    for unit in self.before.remove(id).unwrap_or_default() {
                        for node in self.schedule.units[unit].nodes.clone() {
                            self.copy(node, &mut result);
                        }
                    }
                    for member in self.fusion.members(*id) {
                        let operands = self.operands(member, &mut result);
                        self.result.nodes[member.0 as usize].inputs = operands;
                        self.place(member, &mut result);
                    }
                }
                Item::ForEachSample(inner) => result.push(Item::ForEachSample(self.body(inner))),
                Item::If(flag, inner) => result.push(Item::If(*flag, self.body(inner))),
            }
        }
        result
    }

    /// A node of the source, and the views that waited for it.
    fn place(&mut self, id: NodeId, items: &mut Vec<Item>) {
        items.push(Item::Node(id));
        for &output in &self.source.node(id).outputs {
            self.placed[output.0 as usize] = true;
            for view in self.late.remove(&output).unwrap_or_default() {
                self.place(view, items);
            }
        }
    }

    /// The second run of a node.
    fn copy(&mut self, id: NodeId, items: &mut Vec<Item>) {
        let operands = self.operands(id, items);
        let node = self.source.node(id);
        let shapes = node.outputs.iter().map(|&output| self.source.value(output).clone()).collect();
        let outputs = self.push(node.name.clone() + AGAIN, node.op.clone(), operands, shapes, items);
        self.copies.extend(node.outputs.iter().copied().zip(outputs));
    }

    fn operands(&mut self, id: NodeId, items: &mut Vec<Item>) -> Vec<ValueId> {
        let inputs = self.source.node(id).inputs.clone();
        inputs.into_iter().map(|input| self.operand(input, items)).collect()
    }

    /// What stands for a value by now: itself, what a second run made, or a view of such or what is read from there.
    fn operand(&mut self, value: ValueId, items: &mut Vec<Item>) -> ValueId {
        if let Some(&copy) = self.copies.get(&value) {
            return copy;
        }
        let node = self.source.producer(value).clone();
        if !matches!(node.op, Op::Reshape) && self.fusion.sources(self.source, value).is_none() {
            return value;
        }
        let operands = node.inputs.iter().map(|&input| self.operand(input, items)).collect::<Vec<_>>();
        if operands == node.inputs {
            return value;
        }
        let shapes = vec![self.source.value(value).clone()];
        let copy = self.push(node.name + AGAIN, node.op, operands, shapes, items)[0];
        self.copies.insert(value, copy);
        copy
    }

    fn push(
        &mut self,
        name: String,
        op: Op,
        inputs: Vec<ValueId>,
        shapes: Vec<Value>,
        items: &mut Vec<Item>,
    ) -> Vec<ValueId> {
        let id = NodeId(self.result.nodes.len() as u32);
        let first = self.result.values.len() as u32;
        let outputs: Vec<ValueId> = (first..first + shapes.len() as u32).map(ValueId).collect();
        self.result.values.extend(shapes.into_iter().map(|value| Value { node: id, ..value }));
        self.result.nodes.push(Node { name, op, inputs, outputs: outputs.clone() });
        items.push(Item::Node(id));
        outputs
    }
}
