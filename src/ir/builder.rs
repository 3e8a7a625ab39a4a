//! Appends nodes to a graph, checking shapes as it goes.

use super::graph::{Buffer, BufferId, Flag, Graph, Item, Node, NodeId, Value, ValueId};
use super::op::{Activation, Layout, Op, Padding, Row};
use super::shapes;
use crate::error::{Error, Result};
use crate::tensor::{DType, Shape};

/// Builds a graph in running order.
///
/// Node names are paths: [`Builder::scope`] adds a level. A weight that is asked for twice is the same
/// value. The methods return [`Error::Shape`] where operands do not fit, naming the node.
#[derive(Default)]
pub struct Builder {
    graph: Graph,
    /// Open bodies, outermost first; nodes go into the last one.
    open: Vec<Vec<Item>>,
    path: Vec<String>,
    params: std::collections::HashMap<String, ValueId>,
}

impl Builder {
    pub fn new() -> Self {
        Self { open: vec![Vec::new()], ..Self::default() }
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn shape(&self, value: ValueId) -> &Shape {
        self.graph.shape(value)
    }

    pub fn finish(mut self) -> Graph {
        self.graph.body = self.open.pop().expect("the outermost body is open until the end");
        self.graph
    }

    /// Runs `build` with one more level in the names of nodes and weights.
    pub fn scope<R>(&mut self, level: impl Into<String>, build: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(level.into());
        let result = build(self);
        self.path.pop();
        result
    }

    /// A body that runs once for every sample.
    pub fn for_each_sample<R>(&mut self, build: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        self.open.push(Vec::new());
        let result = build(self);
        let body = self.open.pop().expect("the body opened above");
        self.item(Item::ForEachSample(body));
        result
    }

    /// A body that runs only behind a flag.
    pub fn when<R>(&mut self, flag: Flag, build: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        self.open.push(Vec::new());
        let result = build(self);
        let body = self.open.pop().expect("the body opened above");
        self.item(Item::If(flag, body));
        result
    }

    /// Declares a buffer that outlives the step.
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType) -> BufferId {
        let id = BufferId(self.graph.buffers.len() as u32);
        self.graph.buffers.push(Buffer { name: name.to_owned(), shape: shape.into(), dtype });
        id
    }

    pub fn load(&mut self, buffer: BufferId, row: Row) -> Result<ValueId> {
        let Buffer { name, shape, dtype } = self.graph.buffer(buffer).clone();
        let shape = row.shape(&shape);
        Ok(self.node(name, Op::Load { buffer, row }, vec![], vec![(shape, dtype)])[0])
    }

    pub fn store(&mut self, value: ValueId, buffer: BufferId, row: Row) -> Result<()> {
        let Buffer { name, shape, .. } = self.graph.buffer(buffer).clone();
        let shape = row.shape(&shape);
        if *self.shape(value) != shape {
            let problem = format!("expected {shape}, found {}", self.shape(value));
            return Err(Error::Shape { node: name, op: "store", problem });
        }
        self.node(name, Op::Store { buffer, row }, vec![value], vec![]);
        Ok(())
    }

    /// The weight `name` below the current path; `shape` is the one that the graph sees.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, layout: Layout) -> Result<ValueId> {
        self.stacked_param(name, &[name], shape.into(), layout)
    }

    /// The weights `parts` below the current path as one, which goes by `name`: see [`Op::Param`].
    pub fn stacked_param(
        &mut self,
        name: &str,
        parts: &[&str],
        shape: Shape,
        layout: Layout,
    ) -> Result<ValueId> {
        let name = self.full_name(name);
        if let Some(&value) = self.params.get(&name) {
            if *self.shape(value) == shape {
                return Ok(value);
            }
            let problem = format!("used as {} and as {shape}", self.shape(value));
            return Err(Error::Shape { node: name, op: "param", problem });
        }
        // Weights stand before every body, so that a value made inside a loop may serve outside it too.
        let parts = parts.iter().map(|part| self.full_name(part)).collect();
        let op = Op::Param { name: name.clone(), parts, layout };
        let value = self.detached(name.clone(), op, vec![], vec![(shape, DType::F32)]).1[0];
        self.params.insert(name, value);
        Ok(value)
    }

    /// Any operation with one result.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        let outputs = self.push_many(name, op, inputs)?;
        Ok(outputs[0])
    }

    /// Any operation.
    pub fn push_many(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let name = self.full_name(name);
        let shapes = self.graph.shapes(inputs);
        let outputs = shapes::infer(&op, &shapes).map_err(|problem| Error::Shape {
            node: name.clone(),
            op: op.name(),
            problem,
        })?;
        let outputs = outputs.into_iter().map(|shape| (shape, DType::F32)).collect();
        Ok(self.node(name, op, inputs.to_vec(), outputs))
    }

    pub fn reshape(&mut self, x: ValueId, shape: impl Into<Shape>) -> Result<ValueId> {
        let shape = shape.into();
        let name = self.full_name("reshape");
        if shape.checked_count() != Some(self.shape(x).count()) {
            let problem = format!("cannot see {} as {shape}", self.shape(x));
            return Err(Error::Shape { node: name, op: "reshape", problem });
        }
        Ok(self.node(name, Op::Reshape, vec![x], vec![(shape, DType::F32)])[0])
    }

    /// x W^T + b with the weights `name.weight` `[out, in]` and `name.bias` `[out]`.
    pub fn linear(&mut self, name: &str, x: ValueId, out: usize, bias: bool) -> Result<ValueId> {
        let features = self.shape(x).last();
        let mut inputs = vec![x, self.param(&format!("{name}.weight"), [out, features], Layout::Plain)?];
        if bias {
            inputs.push(self.param(&format!("{name}.bias"), [out], Layout::Plain)?);
        }
        self.push(name, Op::Linear, &inputs)
    }

    /// The linear layers `parts`, of `out` channels each, as one layer `name`: their results lie side by side.
    pub fn linear_side_by_side(
        &mut self,
        name: &str,
        parts: &[&str],
        x: ValueId,
        out: usize,
        bias: bool,
    ) -> Result<ValueId> {
        let (rows, features) = (parts.len() * out, self.shape(x).last());
        let mut stacked = |kind: &str, shape: Shape| {
            let parts: Vec<String> = parts.iter().map(|part| format!("{part}.{kind}")).collect();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            self.stacked_param(&format!("{name}.{kind}"), &parts, shape, Layout::Plain)
        };
        let mut inputs = vec![x, stacked("weight", [rows, features].into())?];
        if bias {
            inputs.push(stacked("bias", [rows].into())?);
        }
        self.push(name, Op::Linear, &inputs)
    }

    /// A convolution with the weights `name.weight` (stored `[out, in, size, size]`) and `name.bias`.
    pub fn conv2d(
        &mut self,
        name: &str,
        x: ValueId,
        (out, size): (usize, usize),
        (stride, padding): (usize, Padding),
        bias: bool,
    ) -> Result<ValueId> {
        let shape = [out, size, size, self.shape(x).last()];
        let mut inputs = vec![x, self.param(&format!("{name}.weight"), shape, Layout::Filter)?];
        if bias {
            inputs.push(self.param(&format!("{name}.bias"), [out], Layout::Plain)?);
        }
        self.push(name, Op::Conv2d { stride, padding }, &inputs)
    }

    /// Group norm with the weights `name.weight` and `name.bias`, and an activation.
    pub fn group_norm(
        &mut self,
        name: &str,
        x: ValueId,
        (groups, eps): (usize, f32),
        act: Option<Activation>,
    ) -> Result<ValueId> {
        let (gamma, beta) = self.scale_and_shift(name, x)?;
        self.push(name, Op::GroupNorm { groups, eps, act }, &[x, gamma, beta])
    }

    /// Layer norm with the weights `name.weight` and `name.bias`.
    pub fn layer_norm(&mut self, name: &str, x: ValueId, eps: f32) -> Result<ValueId> {
        let (gamma, beta) = self.scale_and_shift(name, x)?;
        self.push(name, Op::LayerNorm { eps }, &[x, gamma, beta])
    }

    /// softmax(q k^T / sqrt(d)) v, a head at a time, of `[q, k, v]`, `[q, kv]` or `[qkv]`.
    pub fn attention(
        &mut self,
        name: &str,
        operands: &[ValueId],
        heads: usize,
        causal: bool,
    ) -> Result<ValueId> {
        self.push(name, Op::Attention { heads, causal }, operands)
    }

    pub fn add(&mut self, name: &str, a: ValueId, b: ValueId) -> Result<ValueId> {
        self.push(name, Op::Add, &[a, b])
    }

    pub fn affine(&mut self, name: &str, x: ValueId, mul: f32, add: f32) -> Result<ValueId> {
        self.push(name, Op::Affine { mul, add }, &[x])
    }

    pub fn activate(&mut self, name: &str, x: ValueId, act: Activation) -> Result<ValueId> {
        self.push(name, Op::Activate(act), &[x])
    }

    fn scale_and_shift(&mut self, name: &str, x: ValueId) -> Result<(ValueId, ValueId)> {
        let channels = self.shape(x).last();
        let gamma = self.param(&format!("{name}.weight"), [channels], Layout::Plain)?;
        let beta = self.param(&format!("{name}.bias"), [channels], Layout::Plain)?;
        Ok((gamma, beta))
    }

    fn full_name(&self, name: &str) -> String {
        let mut full = self.path.join(".");
        if !full.is_empty() && !name.is_empty() {
            full.push('.');
        }
        full + name
    }

    fn item(&mut self, item: Item) {
        self.open.last_mut().expect("a body is open").push(item);
    }

    fn node(
        &mut self,
        name: String,
        op: Op,
        inputs: Vec<ValueId>,
        outputs: Vec<(Shape, DType)>,
    ) -> Vec<ValueId> {
        let (node, outputs) = self.detached(name, op, inputs, outputs);
        self.item(Item::Node(node));
        outputs
    }

    /// A node outside the body: only weights, which are always there.
    fn detached(
        &mut self,
        name: String,
        op: Op,
        inputs: Vec<ValueId>,
        outputs: Vec<(Shape, DType)>,
    ) -> (NodeId, Vec<ValueId>) {
        let node = NodeId(self.graph.nodes.len() as u32);
        let first = self.graph.values.len() as u32;
        let ids: Vec<_> = (first..first + outputs.len() as u32).map(ValueId).collect();
        let values = outputs.into_iter().map(|(shape, dtype)| Value { shape, dtype, node });
        self.graph.values.extend(values);
        self.graph.nodes.push(Node { name, op, inputs, outputs: ids.clone() });
        (node, ids)
    }
}
