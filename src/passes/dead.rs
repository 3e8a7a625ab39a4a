//! Drops nodes whose results nobody reads, and buffers that nobody touches.

use std::collections::HashSet;

use crate::ir::{BufferId, Flag, Graph, Item, Node, NodeId, Op, ValueId};

/// Keeps the stores and what they need, directly or not. Differentiation leaves such nodes behind, and
/// models return more than every caller wants.
pub fn remove_dead(graph: &mut Graph) {
    let order = graph.order();
    let mut needed: HashSet<ValueId> = HashSet::new();
    let mut kept: HashSet<NodeId> = HashSet::new();
    for &id in order.iter().rev() {
        let node = graph.node(id);
        if matches!(node.op, Op::Store { .. }) || node.outputs.iter().any(|v| needed.contains(v)) {
            kept.insert(id);
            needed.extend(&node.inputs);
        }
    }
    retain(&mut graph.body, &kept);
    // Weights stand outside of the body; those that nobody reads must not be loaded.
    compact(graph, |id, node| match node.op {
        Op::Param { .. } => needed.contains(&node.outputs[0]),
        _ => kept.contains(&id),
    });
}

fn retain(items: &mut Vec<Item>, kept: &HashSet<NodeId>) {
    items.retain_mut(|item| match item {
        Item::Node(id) => kept.contains(id),
        Item::ForEachSample(body) | Item::If(_, body) => {
            retain(body, kept);
            !body.is_empty()
        }
    });
}

/// Removes nodes and their values, and renumbers the rest in their old order.
fn compact(graph: &mut Graph, keep: impl Fn(NodeId, &Node) -> bool) {
    let mut new_node = vec![NodeId(u32::MAX); graph.nodes.len()];
    let mut new_value = vec![ValueId(u32::MAX); graph.values.len()];
    let old_nodes = std::mem::take(&mut graph.nodes);
    let old_values = std::mem::take(&mut graph.values);
    for (i, mut node) in old_nodes.into_iter().enumerate() {
        if !keep(NodeId(i as u32), &node) {
            continue;
        }
        let id = NodeId(graph.nodes.len() as u32);
        new_node[i] = id;
        for output in &mut node.outputs {
            let old = output.0 as usize;
            *output = ValueId(graph.values.len() as u32);
            new_value[old] = *output;
            graph.values.push(crate::ir::Value { node: id, ..old_values[old].clone() });
        }
        graph.nodes.push(node);
    }
    // Weights may stand behind their first reader in the list, so operands are renumbered at the end.
    for input in graph.nodes.iter_mut().flat_map(|node| &mut node.inputs) {
        *input = new_value[input.0 as usize];
    }
    let new_buffer = compact_buffers(graph);
    renumber(&mut graph.body, &new_node, &new_buffer);
}

/// Removes buffers that no node loads or stores and no body asks; returns their new numbers.
fn compact_buffers(graph: &mut Graph) -> Vec<BufferId> {
    let mut touched: HashSet<BufferId> = graph.nodes.iter().filter_map(|node| buffer_of(&node.op)).collect();
    flags(&graph.body, &mut touched);
    let mut new_buffer = vec![BufferId(u32::MAX); graph.buffers.len()];
    for (i, buffer) in std::mem::take(&mut graph.buffers).into_iter().enumerate() {
        if touched.contains(&BufferId(i as u32)) {
            new_buffer[i] = BufferId(graph.buffers.len() as u32);
            graph.buffers.push(buffer);
        }
    }
    for node in &mut graph.nodes {
        if let Op::Load { buffer, .. } | Op::Store { buffer, .. } = &mut node.op {
            *buffer = new_buffer[buffer.0 as usize];
        }
    }
    new_buffer
}

fn flags(items: &[Item], found: &mut HashSet<BufferId>) {
    for item in items {
        if let Item::If(Flag::Sample(buffer), _) = item {
            found.insert(*buffer);
        }
        if let Item::ForEachSample(body) | Item::If(_, body) = item {
            flags(body, found);
        }
    }
}

fn buffer_of(op: &Op) -> Option<BufferId> {
    match op {
        Op::Load { buffer, .. } | Op::Store { buffer, .. } => Some(*buffer),
        _ => None,
    }
}

fn renumber(items: &mut [Item], new_node: &[NodeId], new_buffer: &[BufferId]) {
    for item in items {
        match item {
            Item::Node(id) => *id = new_node[id.0 as usize],
            Item::If(Flag::Sample(buffer), body) => {
                *buffer = new_buffer[buffer.0 as usize];
                renumber(body, new_node, new_buffer);
            }
            Item::ForEachSample(body) | Item::If(_, body) => renumber(body, new_node, new_buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, Row, verify};
    use crate::tensor::DType;

    #[test]
    fn a_flag_that_only_the_host_writes_stays() {
        let mut b = Builder::new();
        b.buffer("untouched", [1], DType::F32);
        let [flags, x] = ["flags", "x"].map(|name| b.buffer(name, [1, 8], DType::F32));
        b.for_each_sample(|b| {
            b.when(Flag::Sample(flags), |b| {
                let value = b.load(x, Row::Sample)?;
                let value = b.affine("twice", value, 2.0, 0.0)?;
                b.store(value, x, Row::Sample)
            })
        })
        .unwrap();
        let mut graph = b.finish();
        remove_dead(&mut graph);
        assert!(graph.to_string().contains("if flags[sample]"), "{graph}");
        assert_eq!(graph.buffers.len(), 2);
    }

    #[test]
    fn what_no_store_needs_is_gone_and_the_rest_still_holds() {
        let mut b = Builder::new();
        b.buffer("untouched", [1, 8], DType::F32);
        let x = b.buffer("x", [1, 8], DType::F32);
        let value = b.load(x, Row::All).unwrap();
        let used = b.linear("used", value, 8, true).unwrap();
        let unused = b.linear("unused", used, 8, true).unwrap();
        b.affine("leaf", unused, 2.0, 0.0).unwrap();
        b.for_each_sample(|b| b.load(x, Row::Sample)).unwrap();
        b.store(used, x, Row::All).unwrap();
        let mut graph = b.finish();
        remove_dead(&mut graph);
        verify(&graph).unwrap();
        let names: Vec<_> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["x", "used.weight", "used.bias", "used", "x"]);
        assert_eq!((graph.body.len(), graph.buffers.len()), (3, 1));
    }
}
