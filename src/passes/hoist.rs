//! Takes out of the step what would come to the same at every step: work that depends on weights and texts alone
//! runs once a prompt, work that depends on weights and the timestep once a schedule, for all steps at once.
//!
//! By dependence, not by pattern. What a step reads of such work lies in buffers from then on:
//!
//! | depends on | body | buffer | the step loads |
//! |---|---|---|---|
//! | weights and texts | `once a prompt`, a sample at a time where the step is | one a value, `[n, .., c]` | it all, or the sample's row |
//! | weights and the timestep | `once a schedule`, a row a step | one in all, `[steps, 1, total]` | its columns of the step's row |
//!
//! Everything else stays: what reads both, what a buffer that the step writes has a part in, and what is not worth
//! a buffer, because no product and no embedding of a timestep lies behind it. The hoisted bodies do the arithmetic
//! of the step in its order, image by image and row by row, so no bit of a result changes, and none depends on how
//! many steps there are.

use std::collections::HashMap;

use super::dead::remove_dead;
use super::insert;
use crate::error::{Error, Result};
use crate::ir::{
    Buffer, BufferId, Cost, Flag, Graph, Item, Node, NodeId, Once, Op, Row, Value, ValueId, infer,
};
use crate::tensor::{DType, Shape};

/// What is known about the buffers of a step.
#[derive(Clone, Copy, Debug)]
pub struct Hoisting<'a> {
    /// Buffers that change from prompt to prompt only.
    pub prompt: &'a [&'a str],
    /// Steps of a run, at most.
    pub steps: usize,
    /// What to call the buffer `[steps]` of timesteps, which the host writes.
    pub timesteps: &'a str,
    /// What to call the buffer of what is computed from them.
    pub rows: &'a str,
}

/// Columns of rows of steps are moved to multiples of so many elements: 16 bytes of every storage type.
const COLUMNS: usize = 8;

/// The graph with its hoisted bodies in front. Nodes that nobody reads any more are left to `remove_dead`.
///
/// # Errors
/// [`Error::Bug`] for no steps.
pub fn hoist(mut graph: Graph, hoisting: &Hoisting<'_>) -> Result<Graph> {
    if hoisting.steps == 0 {
        return Err(Error::Bug("a schedule without steps".to_owned()));
    }
    // What nobody reads wants nothing.
    remove_dead(&mut graph);
    let order = graph.order();
    let facts = Facts::of(&graph, &order, hoisting);
    let parts = [Once::Schedule, Once::Prompt].map(|once| (once, facts.wanted(&graph, &order, once)));
    let mut front = Vec::new();
    for (once, wanted) in parts {
        if !wanted.is_empty() {
            let mut body =
                Body { graph: &mut graph, facts: &facts, copies: HashMap::new(), before: HashMap::new() };
            let items = match once {
                Once::Prompt => body.prompt(&order, &wanted),
                Once::Schedule => body.schedule(&order, &wanted, hoisting)?,
            };
            let before = body.before;
            insert(&mut graph.body, &before);
            front.push(Item::If(Flag::Once(once), items));
        }
    }
    graph.body.splice(0..0, front);
    Ok(graph)
}

/// What a value depends on, weights aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depends {
    Nothing,
    On(Once),
    /// Anything else, or on a text and the time.
    Step,
}

impl Depends {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, one) | (one, Self::Nothing) => one,
            (a, b) if a == b => a,
            _ => Self::Step,
        }
    }
}

/// What is found out about every value before anything is changed.
struct Facts {
    depends: Vec<Depends>,
    /// Whether it is worth a buffer: a product or an embedding of a timestep lies behind it.
    worth: Vec<bool>,
    /// Samples of the batch, where the value is one sample's.
    samples: Vec<Option<usize>>,
    steps: usize,
}

impl Facts {
    fn of(graph: &Graph, order: &[NodeId], hoisting: &Hoisting<'_>) -> Self {
        let count = graph.values.len();
        let mut facts = Self {
            depends: vec![Depends::Nothing; count],
            worth: vec![false; count],
            samples: vec![None; count],
            steps: hoisting.steps,
        };
        let stored = |id: BufferId| {
            order.iter().any(|&node| matches!(graph.node(node).op, Op::Store { buffer, .. } if buffer == id))
        };
        for &id in order {
            let node = graph.node(id);
            let inputs = || node.inputs.iter().map(|input| input.0 as usize);
            let mut samples = inputs().find_map(|input| facts.samples[input]);
            let depends = match node.op {
                Op::Load { buffer, row } => {
                    let Buffer { name, shape, .. } = graph.buffer(buffer);
                    samples = (row == Row::Sample).then(|| shape[0]);
                    let steady = hoisting.prompt.contains(&name.as_str()) && !stored(buffer);
                    if steady { Depends::On(Once::Prompt) } else { Depends::Step }
                }
                Op::TimestepEmbedding { .. } if node.inputs.is_empty() => Depends::On(Once::Schedule),
                _ if node.op.reads_state() || node.outputs.len() != 1 => Depends::Step,
                _ => inputs().map(|input| facts.depends[input]).fold(Depends::Nothing, Depends::and),
            };
            let depends = match depends {
                Depends::On(Once::Schedule) if !facts.takes_rows(graph, node) => Depends::Step,
                _ => depends,
            };
            let makes = matches!(node.op, Op::TimestepEmbedding { .. }) || Cost::of(graph, node, 1).flops > 0;
            let worth = makes || inputs().any(|input| facts.worth[input]);
            for output in &node.outputs {
                let output = output.0 as usize;
                (facts.depends[output], facts.worth[output]) = (depends, worth);
                facts.samples[output] = samples;
            }
        }
        facts
    }

    fn depends_on(&self, value: ValueId, once: Once) -> bool {
        self.depends[value.0 as usize] == Depends::On(once)
    }

    /// The shape of a value with a row for every step.
    fn widened(&self, graph: &Graph, value: ValueId) -> Shape {
        let shape = graph.shape(value);
        if self.depends_on(value, Once::Schedule) { shape.with_first(self.steps) } else { shape.clone() }
    }

    /// Whether a node that depends on the timestep does for rows of steps what it does for one.
    fn takes_rows(&self, graph: &Graph, node: &Node) -> bool {
        let row = graph.shape(node.outputs[0]);
        if row.len() < 2 || row[0] != 1 {
            return false;
        }
        if matches!(node.op, Op::Reshape) || node.inputs.is_empty() {
            return true;
        }
        let inputs: Vec<Shape> = node.inputs.iter().map(|&input| self.widened(graph, input)).collect();
        infer(&node.op, &inputs.iter().collect::<Vec<_>>())
            .is_ok_and(|made| made == [row.with_first(self.steps)])
    }

    /// Values that are worth a buffer and that the rest of the step reads, in the order in which they are made.
    fn wanted(&self, graph: &Graph, order: &[NodeId], once: Once) -> Vec<ValueId> {
        let rest = |node: &&Node| !node.outputs.iter().any(|&output| self.depends_on(output, once));
        let readers = order.iter().map(|&id| graph.node(id)).filter(rest);
        let reads = readers.flat_map(|node| node.inputs.iter().copied());
        let mut wanted: Vec<ValueId> =
            reads.filter(|&value| self.depends_on(value, once) && self.worth[value.0 as usize]).collect();
        wanted.sort();
        wanted.dedup();
        wanted
    }
}

/// A hoisted body in the making.
struct Body<'g> {
    graph: &'g mut Graph,
    facts: &'g Facts,
    /// What stands for a value of the step.
    copies: HashMap<ValueId, ValueId>,
    /// Loads in front of nodes of the step.
    before: HashMap<NodeId, Vec<NodeId>>,
}

impl Body<'_> {
    /// Every wanted value goes into a buffer of its own; what belongs to one sample in a loop over them.
    fn prompt(&mut self, order: &[NodeId], wanted: &[ValueId]) -> Vec<Item> {
        let (mut whole, mut of_samples) = (Vec::new(), Vec::new());
        for id in self.needed(order, wanted) {
            let value = self.graph.node(id).outputs[0];
            let samples = self.facts.samples[value.0 as usize];
            let items = if samples.is_some() { &mut of_samples } else { &mut whole };
            let copy = self.copy(id, None, items);
            if !wanted.contains(&value) {
                continue;
            }
            // Three extents: what texts become is stored as activations are.
            let (name, shape) = (self.graph.node(id).name.clone(), self.graph.shape(value).clone());
            let c = shape.last();
            let shape: Shape = match samples {
                Some(samples) => [samples, shape.count() / c, c].into(),
                None if shape.len() < 2 => [1, 1, c].into(),
                None => [shape[0], shape.count() / shape[0] / c, c].into(),
            };
            let row = if samples.is_some() { Row::Sample } else { Row::All };
            let buffer = self.buffer(&name, shape);
            self.store(copy, buffer, row, items);
            self.load_instead(value, buffer, row);
        }
        if !of_samples.is_empty() {
            whole.push(Item::ForEachSample(of_samples));
        }
        whole
    }

    /// All wanted values side by side in one buffer, a row for every step.
    fn schedule(
        &mut self,
        order: &[NodeId],
        wanted: &[ValueId],
        hoisting: &Hoisting<'_>,
    ) -> Result<Vec<Item>> {
        let (mut items, steps) = (Vec::new(), self.facts.steps);
        let timesteps = self.buffer(hoisting.timesteps, [steps].into());
        let load = Op::Load { buffer: timesteps, row: Row::All };
        let timesteps = self.push(hoisting.timesteps, load, vec![], &[[steps].into()], &mut items)[0];
        for id in self.needed(order, wanted) {
            self.copy(id, Some(timesteps), &mut items);
        }
        let (mut columns, mut parts) = (Vec::new(), Vec::new());
        let mut total = 0;
        for &value in wanted {
            let name = self.graph.producer(value).name.clone();
            let len = self.graph.shape(value).count();
            let channels = len.next_multiple_of(COLUMNS);
            let mut part = self.reshape(self.copies[&value], [steps, len].into(), &mut items);
            if channels > len {
                let pad = Op::PadChannels { start: 0, channels };
                part = self.push(&name, pad, vec![part], &[[steps, channels].into()], &mut items)[0];
            }
            columns.push(Row::Step { start: total, len });
            parts.push(part);
            total += channels;
        }
        // Two by two: nothing is moved more often than the logarithm of their number.
        while parts.len() > 1 {
            let pairs: Vec<_> = parts.chunks(2).map(<[ValueId]>::to_vec).collect();
            parts = pairs
                .into_iter()
                .map(|pair| match pair[..] {
                    [a, b] => {
                        let joined = self.graph.shape(a).last() + self.graph.shape(b).last();
                        let shape = Shape::from([steps, joined]);
                        self.push(hoisting.rows, Op::Concat, vec![a, b], &[shape], &mut items)[0]
                    }
                    _ => pair[0],
                })
                .collect();
        }
        let rows = self.buffer(hoisting.rows, [steps, 1, total].into());
        self.store(parts[0], rows, Row::All, &mut items);
        for (&value, row) in wanted.iter().zip(columns) {
            self.load_instead(value, rows, row);
        }
        Ok(items)
    }

    /// The nodes behind `wanted`, weights aside, in running order.
    fn needed(&self, order: &[NodeId], wanted: &[ValueId]) -> Vec<NodeId> {
        let mut needed = vec![false; self.graph.nodes.len()];
        let mut open: Vec<ValueId> = wanted.to_vec();
        while let Some(value) = open.pop() {
            let id = self.graph.value(value).node;
            let node = self.graph.node(id);
            if !matches!(node.op, Op::Param { .. }) && !std::mem::replace(&mut needed[id.0 as usize], true) {
                open.extend(&node.inputs);
            }
        }
        order.iter().copied().filter(|id| needed[id.0 as usize]).collect()
    }

    /// A node of the step once more, for rows of steps where it depends on the timestep.
    fn copy(&mut self, id: NodeId, timesteps: Option<ValueId>, items: &mut Vec<Item>) -> ValueId {
        let node = self.graph.node(id).clone();
        let value = node.outputs[0];
        let mut inputs: Vec<ValueId> =
            node.inputs.iter().map(|input| self.copies.get(input).copied().unwrap_or(*input)).collect();
        if matches!(node.op, Op::TimestepEmbedding { .. }) && inputs.is_empty() {
            inputs.extend(timesteps);
        }
        let shape = self.facts.widened(self.graph, value);
        let copy = self.push(&node.name, node.op, inputs, &[shape], items)[0];
        self.copies.insert(value, copy);
        copy
    }

    fn reshape(&mut self, value: ValueId, shape: Shape, items: &mut Vec<Item>) -> ValueId {
        if *self.graph.shape(value) == shape {
            return value;
        }
        self.push("reshape", Op::Reshape, vec![value], &[shape], items)[0]
    }

    fn store(&mut self, value: ValueId, buffer: BufferId, row: Row, items: &mut Vec<Item>) {
        let Buffer { name, shape, .. } = self.graph.buffer(buffer).clone();
        let value = self.reshape(value, row.shape(&shape), items);
        self.push(&name, Op::Store { buffer, row }, vec![value], &[], items);
    }

    /// In the step a value is no longer made but loaded, at the same place.
    fn load_instead(&mut self, value: ValueId, buffer: BufferId, row: Row) {
        let Buffer { name, shape, .. } = self.graph.buffer(buffer).clone();
        let (id, shape) = (self.graph.value(value).node, row.shape(&shape));
        let load = Op::Load { buffer, row };
        if *self.graph.shape(value) == shape {
            self.graph.nodes[id.0 as usize] = Node { name, op: load, inputs: vec![], outputs: vec![value] };
            return;
        }
        let mut placed = Vec::new();
        let loaded = self.push(&name, load, vec![], &[shape], &mut placed)[0];
        self.before.insert(id, vec![self.graph.value(loaded).node]);
        let node = &mut self.graph.nodes[id.0 as usize];
        (node.op, node.inputs) = (Op::Reshape, vec![loaded]);
    }

    fn buffer(&mut self, name: &str, shape: Shape) -> BufferId {
        self.graph.buffers.push(Buffer { name: name.to_owned(), shape, dtype: DType::F32 });
        BufferId(self.graph.buffers.len() as u32 - 1)
    }

    fn push(
        &mut self,
        name: &str,
        op: Op,
        inputs: Vec<ValueId>,
        outputs: &[Shape],
        items: &mut Vec<Item>,
    ) -> Vec<ValueId> {
        let node = NodeId(self.graph.nodes.len() as u32);
        let first = self.graph.values.len() as u32;
        let made: Vec<ValueId> = (first..first + outputs.len() as u32).map(ValueId).collect();
        let values = outputs.iter().map(|shape| Value { shape: shape.clone(), dtype: DType::F32, node });
        self.graph.values.extend(values);
        self.graph.nodes.push(Node { name: name.to_owned(), op, inputs, outputs: made.clone() });
        items.push(Item::Node(node));
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, verify};

    const HOISTING: Hoisting<'_> =
        Hoisting { prompt: &["text", "moving"], steps: 5, timesteps: "timesteps", rows: "time" };

    fn hoisted(b: Builder) -> Graph {
        let mut graph = hoist(b.finish(), &HOISTING).expect("steps");
        remove_dead(&mut graph);
        verify(&graph).expect("a graph that holds");
        graph
    }

    /// The names of what runs in a part, stores with an arrow.
    fn names(graph: &Graph, part: Option<Once>) -> Vec<String> {
        let nodes = graph.order_of(part).into_iter().map(|id| graph.node(id));
        let nodes = nodes.filter(|node| !node.op.is_free());
        let name = |node: &Node| match node.op {
            Op::Store { .. } => format!("-> {}", node.name),
            _ => node.name.clone(),
        };
        nodes.map(name).collect()
    }

    fn shift(b: &mut Builder, name: &str, channels: usize) -> Result<ValueId> {
        let t = b.push("sinusoid", Op::TimestepEmbedding { channels: 4, flip: false, shift: 0.0 }, &[])?;
        b.linear(name, t, channels, true)
    }

    #[test]
    fn texts_and_times_leave_the_step_and_what_reads_both_stays() -> Result<()> {
        let mut b = Builder::new();
        let [text, z] = ["text", "z"].map(|name| b.buffer(name, [2, 3, 8], DType::F32));
        let (context, x) = (b.load(text, Row::All)?, b.load(z, Row::All)?);
        let k = b.linear("to_k", context, 8, false)?;
        let time = shift(&mut b, "time_proj", 8)?;
        let both = b.push("both", Op::AddChannels, &[k, time])?;
        let x = b.add("add", x, both)?;
        let x = b.push("shift", Op::AddChannels, &[x, time])?;
        b.store(x, z, Row::All)?;
        let graph = hoisted(b);
        assert_eq!(names(&graph, Some(Once::Prompt)), ["to_k", "-> to_k"]);
        assert_eq!(names(&graph, Some(Once::Schedule)), ["sinusoid", "time_proj", "-> time"]);
        assert_eq!(names(&graph, None), ["both", "add", "shift", "-> z"]);
        let buffers: Vec<_> = graph.buffers.iter().map(|b| (b.name.as_str(), b.shape.to_vec())).collect();
        let expected = [
            ("text", vec![2, 3, 8]),
            ("z", vec![2, 3, 8]),
            ("timesteps", vec![5]),
            ("time", vec![5, 1, 8]),
            ("to_k", vec![2, 3, 8]),
        ];
        assert_eq!(buffers, expected);
        Ok(())
    }

    #[test]
    fn a_row_of_another_shape_is_loaded_as_one_and_what_nobody_reads_is_not_hoisted() -> Result<()> {
        let mut b = Builder::new();
        let [text, z] = ["text", "z"].map(|name| b.buffer(name, [1, 3, 8], DType::F32));
        let (context, x) = (b.load(text, Row::All)?, b.load(z, Row::All)?);
        let time = shift(&mut b, "time_proj", 24)?;
        let time = b.reshape(time, [1, 3, 8])?;
        let x = b.add("add", x, time)?;
        let k = b.linear("to_k", context, 8, false)?;
        b.add("unread", x, k)?;
        let v = b.linear("to_v", context, 8, false)?;
        let x = b.add("and", x, v)?;
        b.store(x, z, Row::All)?;
        let graph = hoisted(b);
        assert_eq!(names(&graph, Some(Once::Prompt)), ["to_v", "-> to_v"]);
        assert_eq!(names(&graph, Some(Once::Schedule)), ["sinusoid", "time_proj", "-> time"]);
        assert_eq!(names(&graph, None), ["add", "and", "-> z"]);
        Ok(())
    }

    #[test]
    fn what_the_step_writes_and_what_takes_no_work_stays_where_it_is() -> Result<()> {
        let mut b = Builder::new();
        let [text, moving, noise] =
            ["text", "moving", "noise"].map(|name| b.buffer(name, [2, 3, 8], DType::F32));
        let loaded = b.load(moving, Row::All)?;
        let moved = b.linear("moved", loaded, 8, false)?;
        // The host writes it at every step: nobody said that it belongs to a prompt.
        let loaded = b.load(noise, Row::All)?;
        let drawn = b.linear("drawn", loaded, 8, false)?;
        let loaded = b.load(text, Row::All)?;
        let cheap = b.affine("cheap", loaded, 2.0, 0.0)?;
        let sum = b.add("sum", moved, drawn)?;
        let sum = b.add("and", sum, cheap)?;
        b.store(sum, moving, Row::All)?;
        let graph = hoisted(b);
        assert_eq!(names(&graph, None), ["moved", "drawn", "cheap", "sum", "and", "-> moving"]);
        assert_eq!(graph.order_of(None).len(), graph.order().len());
        assert_eq!(graph.buffers.len(), 3);
        Ok(())
    }

    #[test]
    fn rows_of_steps_have_aligned_columns_and_operations_on_batches_are_not_for_them() -> Result<()> {
        let mut b = Builder::new();
        let z = b.buffer("z", [2, 3, 5], DType::F32);
        let wide = b.buffer("wide", [2, 3, 16], DType::F32);
        let (x, y) = (b.load(z, Row::All)?, b.load(wide, Row::All)?);
        let (odd, even) = (shift(&mut b, "odd", 5)?, shift(&mut b, "even", 16)?);
        let each = b.push("each", Op::RepeatBatch { times: 2 }, &[even])?;
        let x = b.push("add_odd", Op::AddChannels, &[x, odd])?;
        let y = b.push("add_even", Op::AddChannels, &[y, each])?;
        b.store(x, z, Row::All)?;
        b.store(y, wide, Row::All)?;
        let graph = hoisted(b);
        assert_eq!(names(&graph, None), ["each", "add_odd", "add_even", "-> z", "-> wide"]);
        let rows = graph.nodes.iter().filter_map(|node| match node.op {
            Op::Load { row: row @ Row::Step { .. }, .. } => Some(row),
            _ => None,
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows, [Row::Step { start: 0, len: 5 }, Row::Step { start: 8, len: 16 }]);
        assert_eq!(graph.buffers.last().expect("rows").shape[..], [5, 1, 24]);
        Ok(())
    }

    #[test]
    fn what_belongs_to_a_sample_is_made_and_kept_a_sample_at_a_time() -> Result<()> {
        let mut b = Builder::new();
        let text = b.buffer("text", [3, 2, 3, 8], DType::F32);
        let z = b.buffer("z", [3, 2, 3, 8], DType::F32);
        b.for_each_sample(|b| {
            let (context, x) = (b.load(text, Row::Sample)?, b.load(z, Row::Sample)?);
            let rows = b.reshape(context, [2, 3, 8])?;
            let x = b.reshape(x, [2, 3, 8])?;
            let k = b.linear("to_k", rows, 8, false)?;
            let x = b.add("add", x, k)?;
            let x = b.reshape(x, [1, 2, 3, 8])?;
            b.store(x, z, Row::Sample)
        })?;
        let graph = hoisted(b);
        assert_eq!(names(&graph, Some(Once::Prompt)), ["to_k", "-> to_k"]);
        assert_eq!(names(&graph, None), ["add", "-> z"]);
        let Item::If(Flag::Once(Once::Prompt), body) = &graph.body[0] else { panic!("it stands in front") };
        assert!(matches!(body[..], [Item::ForEachSample(_)]));
        assert_eq!(graph.buffers.last().expect("keys").shape[..], [3, 6, 8]);
        Ok(())
    }
}
