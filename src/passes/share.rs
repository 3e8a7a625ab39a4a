//! Computes once what is the same for all copies of an image: of classifier-free guidance everything up to where the
//! text comes in, for latents and timestep are those of every row.
//!
//! [`Op::RepeatBatch`] makes the copies. An operation on each image alone makes copies of copies, if all images that
//! it reads are such; then it runs on one of each, and the copies are made where something reads its result beside
//! what differs. What `fuse` reads in place is then never made at all.
//!
//! | an operation on copies | becomes |
//! |---|---|
//! | any | the same on one image of each, and copies of its results where they are wanted |
//! | a product of [`FEW`] FLOPs an element, whose copies are wanted in memory | stays; others read its first images |
//! | one whose results another body reads | stays: gradients, which stand behind a gate, differ from row to row |
//!
//! The arithmetic of an image is the same whatever the batch, so no bit of a result changes; and what is shared runs
//! no later and reads what it did, since a buffer that is overwritten in between keeps what reads it where it is.

use std::collections::HashMap;

use super::fuse::number_bodies;
use super::insert;
use crate::ir::{Cost, Graph, Node, NodeId, Op, Value, ValueId, infer};
use crate::tensor::{DType, Shape};

/// To multiply so often for an element of two bytes takes a device about as long as to move it.
const FEW: u64 = 128;

/// Rewrites `graph`; copies that nobody reads any more are left to `remove_dead`.
pub fn share(graph: &mut Graph) {
    let copies = Copies::of(graph);
    if copies.times.iter().all(|&times| times == 1) {
        return;
    }
    let given = graph.nodes.len();
    let mut sharing = Sharing { graph: &mut *graph, copies, given, one: HashMap::new(), made: Vec::new() };
    for id in sharing.copies.order.clone() {
        sharing.node(id);
    }
    let Sharing { made, .. } = sharing;
    // What was made stands in front of its first reader.
    let order = graph.order();
    let first = |made: &NodeId| {
        let value = graph.node(*made).outputs[0];
        order.iter().copied().find(|&id| graph.node(id).inputs.contains(&value)).map(|reader| (reader, *made))
    };
    let mut before: HashMap<NodeId, Vec<NodeId>> = HashMap::new();
    for (reader, made) in made.iter().filter_map(first) {
        before.entry(reader).or_default().push(made);
    }
    insert(&mut graph.body, &before);
}

/// What is found out before anything is changed.
struct Copies {
    order: Vec<NodeId>,
    /// How often a value has each of its images, one after the other; by value.
    times: Vec<usize>,
    /// Nodes that read a value, by value.
    readers: Vec<Vec<NodeId>>,
}

impl Copies {
    fn of(graph: &Graph) -> Self {
        let order = graph.order();
        let mut readers = vec![Vec::new(); graph.values.len()];
        for &id in &order {
            graph.node(id).inputs.iter().for_each(|input| readers[input.0 as usize].push(id));
        }
        let mut body = vec![0; graph.nodes.len()];
        number_bodies(&graph.body, &mut 0, &mut body);
        let mut copies = Self { order, times: vec![1; graph.values.len()], readers };
        for at in 0..copies.order.len() {
            let id = copies.order[at];
            let node = graph.node(id);
            let times = match node.op {
                Op::RepeatBatch { times } => times.max(1),
                _ => copies.made_by(graph, node, at),
            };
            let here = |value: &ValueId| {
                let readers = &copies.readers[value.0 as usize];
                readers.iter().all(|reader| body[reader.0 as usize] == body[id.0 as usize])
            };
            if matches!(node.op, Op::RepeatBatch { .. }) || node.outputs.iter().all(here) {
                node.outputs.iter().for_each(|output| copies.times[output.0 as usize] = times);
            }
        }
        copies
    }

    fn times(&self, value: ValueId) -> usize {
        self.times[value.0 as usize]
    }

    /// Of what an operation makes where it stands, at that place of the order.
    fn made_by(&self, graph: &Graph, node: &Node, at: usize) -> usize {
        let images = self.images(graph, node);
        let times = images.first().map_or(1, |&image| self.times(image));
        if times == 1 || images.iter().any(|&image| self.times(image) != times) {
            return 1;
        }
        let whole = node.outputs.iter().all(|&output| graph.shape(output)[0].is_multiple_of(times));
        // A view shows what is there when it is read.
        let until = if node.op == Op::Reshape { self.order.len() } else { at };
        let stays = images.iter().all(|&image| !self.is_overwritten(graph, image, until));
        if whole && stays { times } else { 1 }
    }

    /// The operands that have an image for every image of the result, where that is all they have to do with each
    /// other.
    fn images(&self, graph: &Graph, node: &Node) -> Vec<ValueId> {
        let inputs = &node.inputs;
        match node.op {
            Op::Reshape
            | Op::SliceChannels { .. }
            | Op::PadChannels { .. }
            | Op::SliceTokens { .. }
            | Op::PadTokens { .. }
            | Op::Affine { .. }
            | Op::Activate(_)
            | Op::Geglu
            | Op::Linear
            | Op::Conv2d { .. }
            | Op::GroupNorm { .. }
            | Op::LayerNorm { .. }
            | Op::Upsample { .. } => inputs[..1].to_vec(),
            // One vector for all images, or one for each.
            Op::AddChannels if graph.shape(inputs[1])[0] == 1 => inputs[..1].to_vec(),
            Op::Add | Op::Concat | Op::AddChannels | Op::Attention { .. } => inputs.clone(),
            _ => Vec::new(),
        }
    }

    /// Whether a buffer that copies were made of is stored before that place: then they are all that is left of it.
    fn is_overwritten(&self, graph: &Graph, mut value: ValueId, at: usize) -> bool {
        while let Op::RepeatBatch { .. } | Op::Reshape = graph.producer(value).op {
            value = graph.producer(value).inputs[0];
        }
        let Op::Load { buffer, .. } = graph.producer(value).op else { return false };
        let stores = |id: &NodeId| matches!(graph.node(*id).op, Op::Store { buffer: to, .. } if to == buffer);
        self.order[..at].iter().any(stores)
    }
}

struct Sharing<'g> {
    graph: &'g mut Graph,
    copies: Copies,
    /// How many nodes there were.
    given: usize,
    /// By value that is copies: one of each.
    one: HashMap<ValueId, ValueId>,
    /// Nodes that have no place yet.
    made: Vec<NodeId>,
}

impl Sharing<'_> {
    fn node(&mut self, id: NodeId) {
        let node = self.graph.node(id).clone();
        let Some(&first) = node.outputs.first() else { return };
        let times = self.copies.times(first);
        if times == 1 {
            return;
        }
        if let Op::RepeatBatch { .. } = node.op {
            self.one.insert(first, node.inputs[0]);
        } else if self.stays(&node) {
            if self.copies.readers[first.0 as usize].iter().any(|&reader| self.is_shared(reader)) {
                let len = self.graph.shape(first)[0] / times;
                let shape = self.graph.shape(first).with_first(len);
                let value = self.push(&node.name, Op::SliceBatch { start: 0, len }, first, shape);
                self.one.insert(first, value);
            }
        } else {
            self.share(id, &node, times);
        }
    }

    /// Whether something makes copies of copies.
    fn is_shared(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let copies = node.outputs.first().is_some_and(|&output| self.copies.times(output) > 1);
        copies && !matches!(node.op, Op::RepeatBatch { .. })
    }

    /// Whether it is less work to make all copies than to make them of one.
    fn stays(&self, node: &Node) -> bool {
        let [made] = node.outputs[..] else { return false };
        let flops = Cost::of(self.graph, node, 1).flops;
        let elements = self.graph.shape(made).count() as u64;
        let few = flops > 0 && flops <= FEW * elements;
        let is_given = |&image: &ValueId| (self.graph.value(image).node.0 as usize) < self.given;
        few && self.copies.images(self.graph, node).iter().all(is_given)
            && self.copies.readers[made.0 as usize].iter().any(|&reader| self.wants_memory(reader, made))
    }

    /// Whether copies have to lie in memory for that reader: it is not shared, and neither adds them to what it makes nor
    /// takes them for queries.
    fn wants_memory(&self, reader: NodeId, value: ValueId) -> bool {
        let node = self.graph.node(reader);
        let in_place = match node.op {
            Op::Add => true,
            Op::Attention { .. } => node.inputs.len() > 1 && !node.inputs[1..].contains(&value),
            _ => false,
        };
        !in_place && !self.is_shared(reader)
    }

    /// The node goes on with one image of each, at its place; its results are copies of what it makes.
    fn share(&mut self, id: NodeId, node: &Node, times: usize) {
        let images = self.copies.images(self.graph, node);
        let inputs: Vec<ValueId> = node
            .inputs
            .iter()
            .map(|input| if images.contains(input) { self.one[input] } else { *input })
            .collect();
        let shapes: Vec<Shape> = node
            .outputs
            .iter()
            .map(|&output| {
                let shape = self.graph.shape(output);
                shape.with_first(shape[0] / times)
            })
            .collect();
        debug_assert!(
            matches!(node.op, Op::Reshape)
                || infer(&node.op, &self.graph.shapes(&inputs)).is_ok_and(|made| made == shapes)
        );
        let outputs: Vec<ValueId> = shapes.into_iter().map(|shape| self.value(shape, id)).collect();
        for (&copies, &one) in node.outputs.iter().zip(&outputs) {
            let repeat = NodeId(self.graph.nodes.len() as u32);
            let (name, op) = (format!("{}.rows", node.name), Op::RepeatBatch { times });
            self.graph.nodes.push(Node { name, op, inputs: vec![one], outputs: vec![copies] });
            self.graph.values[copies.0 as usize].node = repeat;
            self.made.push(repeat);
            self.one.insert(copies, one);
        }
        let node = &mut self.graph.nodes[id.0 as usize];
        (node.inputs, node.outputs) = (inputs, outputs);
    }

    fn push(&mut self, name: &str, op: Op, input: ValueId, shape: Shape) -> ValueId {
        let id = NodeId(self.graph.nodes.len() as u32);
        let value = self.value(shape, id);
        let name = format!("{name}.row");
        self.graph.nodes.push(Node { name, op, inputs: vec![input], outputs: vec![value] });
        self.made.push(id);
        value
    }

    fn value(&mut self, shape: Shape, node: NodeId) -> ValueId {
        self.graph.values.push(Value { shape, dtype: DType::F32, node });
        ValueId(self.graph.values.len() as u32 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::remove_dead;
    use super::*;
    use crate::error::Result;
    use crate::ir::{Builder, Flag, Padding, Row, verify};

    const SAME: (usize, Padding) = (1, Padding::all(1));

    fn shared(b: Builder) -> Graph {
        let mut graph = b.finish();
        remove_dead(&mut graph);
        share(&mut graph);
        remove_dead(&mut graph);
        verify(&graph).expect("a graph that holds");
        graph
    }

    /// What runs, with the images of its results.
    fn words(graph: &Graph) -> Vec<String> {
        let nodes = graph.order().into_iter().map(|id| graph.node(id));
        let word = |node: &Node| {
            let images: Vec<_> = node.outputs.iter().map(|&output| graph.shape(output)[0]).collect();
            format!("{} {images:?}", node.name)
        };
        nodes.filter(|node| !node.op.is_free() && !node.outputs.is_empty()).map(word).collect()
    }

    /// Two images three times each, and what belongs to a row.
    fn begin(b: &mut Builder) -> Result<(ValueId, ValueId)> {
        let z = b.buffer("z", [2, 4, 4, 4], DType::F32);
        let text = b.buffer("text", [6, 5, 32], DType::F32);
        let (z, text) = (b.load(z, Row::All)?, b.load(text, Row::All)?);
        Ok((b.push("rows", Op::RepeatBatch { times: 3 }, &[z])?, text))
    }

    fn store(b: &mut Builder, value: ValueId) -> Result<()> {
        let out = b.buffer("out", b.shape(value).clone(), DType::F32);
        b.store(value, out, Row::All)
    }

    #[test]
    fn everything_up_to_the_text_runs_once_for_all_rows() -> Result<()> {
        let mut b = Builder::new();
        let (z, text) = begin(&mut b)?;
        let x = b.conv2d("wide", z, (32, 7), (1, Padding::all(3)), true)?;
        let time = b.param("time", [1, 32], crate::ir::Layout::Plain)?;
        let h = b.push("shift", Op::AddChannels, &[x, time])?;
        let h = b.group_norm("norm", h, (2, 1e-5), None)?;
        let h = b.reshape(h, [6, 16, 32])?;
        let qkv = b.linear("qkv", h, 96, false)?;
        let o = b.attention("self", &[qkv], 2, false)?;
        let h = b.add("add1", h, o)?;
        let q = b.linear("q", h, 32, false)?;
        let kv = b.linear("kv", text, 64, false)?;
        let o = b.attention("cross", &[q, kv], 2, false)?;
        let h = b.add("add2", h, o)?;
        store(&mut b, h)?;
        let graph = shared(b);
        let once = ["wide [2]", "shift [2]", "norm [2]", "qkv [2]", "self [2, 2]", "add1 [2]", "q [2]"];
        let rows = ["kv [6]", "q.rows [6]", "cross [6, 6]", "add1.rows [6]", "add2 [6]"];
        assert_eq!(words(&graph), [&once[..], &rows].concat());
        let again = {
            let mut again = graph.clone();
            share(&mut again);
            remove_dead(&mut again);
            again
        };
        assert_eq!(again.to_string(), graph.to_string());
        Ok(())
    }

    #[test]
    fn a_skip_of_few_products_is_made_for_every_row_and_read_in_part_and_a_dear_one_is_copied() -> Result<()>
    {
        for (taps, wanted) in [
            (3, ["rows [6]", "skip [6]", "skip.row [2]", "norm [2]"]),
            (7, ["skip [2]", "norm [2]", "norm.rows [6]", "skip.rows [6]"]),
        ] {
            let mut b = Builder::new();
            let (z, text) = begin(&mut b)?;
            let same = (1, Padding::all(taps / 2));
            let skip = b.conv2d("skip", z, (32, taps), same, true)?;
            let h = b.group_norm("norm", skip, (2, 1e-5), None)?;
            let other = b.push("other", Op::SliceTokens { start: 0, len: 1 }, &[text])?;
            let other = b.reshape(other, [6, 32])?;
            let h = b.push("and", Op::AddChannels, &[h, other])?;
            let joined = b.push("join", Op::Concat, &[h, skip])?;
            store(&mut b, joined)?;
            let found = words(&shared(b));
            for word in wanted {
                assert!(found.iter().any(|found| found == word), "{word} in {found:?}");
            }
            assert_eq!(found.len(), 3 + wanted.len() + usize::from(taps == 3), "{found:?}");
        }
        Ok(())
    }

    #[test]
    fn images_stand_in_the_order_of_rows() -> Result<()> {
        let mut b = Builder::new();
        let (z, _) = begin(&mut b)?;
        let h = b.conv2d("conv", z, (8, 3), SAME, true)?;
        // Two images of each row become one of twice the lines: still three copies, but not of what had two.
        let tall = b.reshape(h, [3, 8, 4, 8])?;
        let tall = b.group_norm("tall", tall, (2, 1e-5), None)?;
        let flat = b.reshape(h, [4, 6, 4, 8])?;
        let flat = b.group_norm("flat", flat, (2, 1e-5), None)?;
        store(&mut b, tall)?;
        let out = b.buffer("flat", [4, 6, 4, 8], DType::F32);
        b.store(flat, out, Row::All)?;
        let found = words(&shared(b));
        assert!(
            found.contains(&"tall [1]".to_owned()) && found.contains(&"flat [4]".to_owned()),
            "{found:?}"
        );
        Ok(())
    }

    #[test]
    fn what_a_gradient_reads_and_what_has_no_copies_stays_as_it_is() -> Result<()> {
        for (gated, copied) in [(false, false), (true, true)] {
            let mut b = Builder::new();
            let z = b.buffer("z", [1, 4, 4, 4], DType::F32);
            let flag = b.buffer("flag", [1], DType::F32);
            b.for_each_sample(|b| {
                let z = b.load(z, Row::Sample)?;
                let x = if copied { b.push("rows", Op::RepeatBatch { times: 2 }, &[z])? } else { z };
                let x = b.conv2d("conv", x, (8, 7), (1, Padding::all(3)), true)?;
                let y = b.group_norm("norm", x, (2, 1e-5), None)?;
                let out = b.buffer("out", b.shape(y).clone(), DType::F32);
                b.store(y, out, Row::All)?;
                let body = |b: &mut Builder| {
                    let twice = b.affine("twice", x, 2.0, 0.0)?;
                    let out = b.buffer("gradient", b.shape(twice).clone(), DType::F32);
                    b.store(twice, out, Row::All)
                };
                if gated { b.when(Flag::Sample(flag), body) } else { body(b) }
            })?;
            let mut before = b.finish();
            remove_dead(&mut before);
            let mut after = before.clone();
            share(&mut after);
            remove_dead(&mut after);
            assert_eq!(after.to_string(), before.to_string(), "gated {gated}");
        }
        Ok(())
    }

    #[test]
    fn copies_of_a_buffer_that_is_overwritten_are_not_made_of_what_it_became() -> Result<()> {
        for overwritten in [false, true] {
            let mut b = Builder::new();
            let z = b.buffer("z", [1, 4, 4, 4], DType::F32);
            let loaded = b.load(z, Row::All)?;
            let rows = b.push("rows", Op::RepeatBatch { times: 2 }, &[loaded])?;
            let next = b.affine("next", loaded, 2.0, 0.0)?;
            if overwritten {
                b.store(next, z, Row::All)?;
            }
            let x = b.conv2d("conv", rows, (8, 7), (1, Padding::all(3)), true)?;
            store(&mut b, x)?;
            let found = words(&shared(b));
            let wanted = if overwritten { "conv [2]" } else { "conv [1]" };
            assert!(found.contains(&wanted.to_owned()), "{found:?}");
        }
        Ok(())
    }
}
