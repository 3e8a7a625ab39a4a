//! What kernels with prologues and epilogues run as one.
//!
//! | group | members, in order |
//! |---|---|
//! | contraction | `upsample`? conv2d, or linear; then `add_channels`? `activate`? `add`? |
//! | gated linear layer | linear, `geglu`: where all readers of the weights can have their rows in pairs |
//! | data gradient | conv2d_bwd `upsample_bwd`?, or linear_bwd; then `add`? |
//! | gradient of a norm | group_norm_bwd or layer_norm_bwd, then `add` |
//! | pair | a `concat` all of whose readers are conv2d or group_norm: they read both sources |
//! | copies | a `repeat_batch` all of whose readers add it in a group or take it for queries: they read the one |
//! | first images | a `slice_batch` from the first on, likewise, or read by conv2d or group_norm: they read the whole |
//!
//! `?` marks what may be missing. An inner value has one reader and is read once, so a value that a backward
//! operation wants is never one. All members stand in one body, and between the first and the last nothing
//! overwrites a buffer that a member reads. Upsampling is by two (or cropped to 2 n - 1) in front of a
//! convolution of 3 x 3 taps at stride 1. Of two groups that could take the same `add`, the one with more
//! FLOPs does, so that the smaller one's result is the residual; of two equal ones the later.

use std::collections::HashMap;

use crate::ir::{BufferId, Cost, Fusion, Graph, Group, Item, Node, NodeId, Op, Padding, ValueId};

/// Groups of `graph`; a pure function of it.
pub fn fuse(graph: &Graph) -> Fusion {
    let mut fuser = Fuser::new(graph);
    for id in graph.order() {
        fuser.visit(id);
    }
    let in_place = fuser.order.iter().copied().filter(|&id| fuser.is_in_place(id)).collect();
    let groups = fuser.groups.into_iter().filter(|group| group.members.len() > 1).collect();
    let pairs =
        fuser.order.iter().copied().filter(|&id| is_pair(graph, &fuser.readers, &fuser.roots, id)).collect();
    Fusion::new(graph, groups, pairs, in_place)
}

/// What may still follow in a group, from everything to nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Open {
    /// The root alone.
    All,
    /// Channels were added or pixels summed.
    Activation,
    /// An activation was applied.
    Residual,
    Closed,
}

struct Fuser<'g> {
    graph: &'g Graph,
    order: Vec<NodeId>,
    /// Position in the order, by node.
    position: Vec<usize>,
    /// The innermost body that a node stands in, by node.
    body: Vec<usize>,
    /// For every value the one that it is a view of.
    roots: Vec<ValueId>,
    /// Nodes that read a value or a view of it, once for every operand.
    readers: HashMap<ValueId, Vec<NodeId>>,
    groups: Vec<Group>,
    open: Vec<Open>,
    group_of: HashMap<NodeId, usize>,
}

impl<'g> Fuser<'g> {
    fn new(graph: &'g Graph) -> Self {
        let order = graph.order();
        let mut position = vec![usize::MAX; graph.nodes.len()];
        order.iter().enumerate().for_each(|(i, &id)| position[id.0 as usize] = i);
        let mut body = vec![0; graph.nodes.len()];
        number_bodies(&graph.body, &mut 0, &mut body);
        let roots = graph.view_roots();
        let mut readers: HashMap<ValueId, Vec<NodeId>> = HashMap::new();
        for &id in order.iter().filter(|&&id| !matches!(graph.node(id).op, Op::Reshape)) {
            for input in &graph.node(id).inputs {
                readers.entry(roots[input.0 as usize]).or_default().push(id);
            }
        }
        let (groups, open, group_of) = (Vec::new(), Vec::new(), HashMap::new());
        Self { graph, order, position, body, roots, readers, groups, open, group_of }
    }

    fn visit(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        match &node.op {
            Op::Linear | Op::LinearBwd | Op::Conv2dBwd { .. } => self.begin(id, None),
            Op::GroupNormBwd { .. } | Op::LayerNormBwd { .. } => self.begin(id, None),
            Op::Conv2d { .. } => {
                let upsample = self.producer(node.inputs[0]);
                let folds = self.doubles(upsample, id) && self.may_join(&[upsample], node.inputs[0], id);
                self.begin(id, folds.then_some(upsample));
            }
            Op::AddChannels => self.extend(id, &[node.inputs[0]], Open::All, Open::Activation),
            Op::Activate(_) => self.extend(id, &[node.inputs[0]], Open::Activation, Open::Residual),
            Op::Geglu if self.halves_may_lie_in_pairs(node.inputs[0]) => {
                self.extend(id, &[node.inputs[0]], Open::All, Open::Closed);
            }
            Op::UpsampleBwd { .. } => self.extend(id, &[node.inputs[0]], Open::All, Open::Activation),
            Op::Add => self.extend(id, &[node.inputs[0], node.inputs[1]], Open::Residual, Open::Closed),
            _ => {}
        }
    }

    fn begin(&mut self, root: NodeId, before: Option<NodeId>) {
        self.group_of.insert(root, self.groups.len());
        self.groups.push(Group { root, members: before.into_iter().chain([root]).collect() });
        self.open.push(Open::All);
    }

    /// Lets `id` join the group that makes one of `operands`, if that group is open for it.
    fn extend(&mut self, id: NodeId, operands: &[ValueId], at_most: Open, then: Open) {
        let candidates = operands.iter().filter_map(|&operand| {
            let producer = self.producer(operand);
            let index = *self.group_of.get(&producer)?;
            let group = &self.groups[index];
            let fits = group.last() == producer && self.open[index] <= at_most && self.suits(group, id);
            let joins = fits && self.may_join(&group.members, operand, id);
            let flops = Cost::of(self.graph, self.graph.node(group.root), 1).flops;
            joins.then_some((flops, self.position[producer.0 as usize], index))
        });
        if let Some((_, _, index)) = candidates.max() {
            self.groups[index].members.push(id);
            self.open[index] = then;
            self.group_of.insert(id, index);
        }
    }

    /// Whether the kernel of the group's root has a place for the operation.
    fn suits(&self, group: &Group, id: NodeId) -> bool {
        let (root, node) = (&self.graph.node(group.root).op, self.graph.node(id));
        // Images, pixels and channels are those of the group, not of a view of its result.
        let as_made = node.inputs.contains(&self.graph.node(group.last()).outputs[0]);
        match node.op {
            Op::Geglu => as_made && matches!(root, Op::Linear),
            Op::UpsampleBwd { .. } => as_made && self.halves(group.root, id),
            // Where a gradient lies follows from the group's result.
            Op::Add => as_made || matches!(root, Op::Linear | Op::LinearBwd | Op::Conv2d { .. }),
            Op::AddChannels => as_made && matches!(root, Op::Linear | Op::Conv2d { .. }),
            _ => matches!(root, Op::Linear | Op::Conv2d { .. }) && !self.is_differentiated(group.root),
        }
    }

    /// Whether the gradient of an activation reads what a contraction makes, or what a second run of it does: whether
    /// the product is rounded before it is activated may not depend on what is kept.
    fn is_differentiated(&self, root: NodeId) -> bool {
        let weight = self.roots[self.graph.node(root).inputs[1].0 as usize];
        let made = self.readers[&weight].iter().flat_map(|&id| &self.graph.node(id).outputs);
        let gradient = |id: &NodeId| matches!(self.graph.node(*id).op, Op::ActivateBwd(_));
        made.filter_map(|value| self.readers.get(value)).flatten().any(gradient)
    }

    /// Whether a linear layer's weights may have the rows of a gate's two halves in turn, which the gate in the
    /// epilogue takes: everybody else who reads them must see the same. That is a linear layer for one gate or its
    /// gradient, and the gradient of such a layer behind that of the gate.
    fn halves_may_lie_in_pairs(&self, product: ValueId) -> bool {
        let graph = self.graph;
        let linear = graph.producer(product);
        let Op::Linear = linear.op else { return false };
        let only_reader = |value: ValueId| match self.readers.get(&value).map(Vec::as_slice) {
            Some(&[reader]) => Some(graph.node(reader)),
            _ => None,
        };
        let gate = |value: ValueId| {
            let reader = only_reader(value).filter(|reader| reader.inputs[0] == value);
            reader.is_some_and(|reader| match reader.op {
                Op::Geglu => true,
                Op::GegluBwd => only_reader(reader.outputs[0])
                    .is_some_and(|behind| behind.op == Op::LinearBwd && behind.inputs[1] == linear.inputs[1]),
                _ => false,
            })
        };
        let sees_pairs = |reader: &NodeId| {
            let node = graph.node(*reader);
            match node.op {
                Op::Linear => node.inputs[1..] == linear.inputs[1..] && gate(node.outputs[0]),
                Op::LinearBwd => {
                    let before = graph.producer(node.inputs[0]);
                    before.op == Op::GegluBwd
                        && only_reader(before.outputs[0]).is_some()
                        && matches!(graph.producer(before.inputs[0]).op, Op::Linear)
                        && graph.producer(before.inputs[0]).inputs[1] == linear.inputs[1]
                }
                _ => false,
            }
        };
        linear.inputs[1..].iter().all(|param| {
            matches!(graph.producer(*param).op, Op::Param { .. })
                && self.readers[param].iter().all(sees_pairs)
        })
    }

    /// Whether `value`, made by the last of `members`, is for `reader` alone, and `members` may run later,
    /// where `reader` stands.
    fn may_join(&self, members: &[NodeId], value: ValueId, reader: NodeId) -> bool {
        let root = self.roots[value.0 as usize];
        let producer = self.graph.value(root).node;
        if self.readers[&root] != [reader] || self.body[producer.0 as usize] != self.body[reader.0 as usize] {
            return false;
        }
        let first = members.iter().map(|id| self.position[id.0 as usize]).min().unwrap_or(0);
        let between = &self.order[first..self.position[reader.0 as usize]];
        let overwritten = between.iter().filter_map(|&id| match self.graph.node(id).op {
            Op::Store { buffer, .. } => Some(buffer),
            _ => None,
        });
        let overwritten: Vec<_> = overwritten.collect();
        let reads = members.iter().flat_map(|&id| &self.graph.node(id).inputs);
        let mut loads =
            reads.filter_map(|input| match self.graph.producer(self.roots[input.0 as usize]).op {
                Op::Load { buffer, .. } => Some(buffer),
                _ => None,
            });
        !loads.any(|buffer| overwritten.contains(&buffer))
    }

    /// Whether all readers of copies, or of the first images of a batch, find them in what they are of.
    fn is_in_place(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let copies = match node.op {
            Op::RepeatBatch { .. } => true,
            Op::SliceBatch { start: 0, .. } => false,
            _ => return false,
        };
        let made = node.outputs[0];
        // The gradient of a norm adds as many rows as it has.
        let adds_in_turn = |reader: &NodeId| {
            let root = self.group_of.get(reader).map(|&group| &self.graph.node(self.groups[group].root).op);
            root.is_some_and(|op| !matches!(op, Op::GroupNormBwd { .. } | Op::LayerNormBwd { .. }))
        };
        let finds = |&reader: &NodeId| {
            let inputs = &self.graph.node(reader).inputs;
            let first = inputs.first() == Some(&made);
            let alone = first && inputs[1..].iter().all(|input| self.roots[input.0 as usize] != made);
            match self.graph.node(reader).op {
                Op::Add => inputs.contains(&made) && adds_in_turn(&reader),
                Op::Attention { .. } => copies && alone && inputs.len() > 1,
                Op::Conv2d { .. } | Op::GroupNorm { .. } => !copies && alone,
                _ => false,
            }
        };
        is_there(self.graph, &self.roots, node.inputs[0])
            && self.readers.get(&made).is_some_and(|readers| readers.iter().all(finds))
    }

    fn producer(&self, value: ValueId) -> NodeId {
        self.graph.value(self.roots[value.0 as usize]).node
    }

    /// Whether `conv` reads an image that `upsample` made twice as large.
    fn doubles(&self, upsample: NodeId, conv: NodeId) -> bool {
        let (from, to) = (self.graph.node(upsample), self.graph.node(conv));
        let (Op::Upsample { height, width }, Op::Conv2d { stride, padding }) = (&from.op, &to.op) else {
            return false;
        };
        if to.inputs[0] != from.outputs[0] {
            return false;
        }
        let small = self.graph.shape(from.inputs[0]);
        self.is_same(conv, *stride, *padding) && is_double((small[1], small[2]), (*height, *width))
    }

    /// Whether `sum` takes back to half the size what `conv`, a data gradient, makes.
    fn halves(&self, conv: NodeId, sum: NodeId) -> bool {
        let (from, to) = (self.graph.node(conv), self.graph.node(sum));
        let (Op::Conv2dBwd { stride, padding, .. }, Op::UpsampleBwd { height, width }) = (&from.op, &to.op)
        else {
            return false;
        };
        let large = self.graph.shape(to.inputs[0]);
        self.is_same(conv, *stride, *padding) && is_double((*height, *width), (large[1], large[2]))
    }

    /// 3 x 3 taps that keep the size.
    fn is_same(&self, conv: NodeId, stride: usize, padding: Padding) -> bool {
        let filter = self.graph.shape(self.graph.node(conv).inputs[1]);
        (filter[1], filter[2]) == (3, 3) && stride == 1 && padding == Padding::all(1)
    }
}

/// Twice as large, the last line or column left out where that is an odd size.
fn is_double(small: (usize, usize), large: (usize, usize)) -> bool {
    let side = |small: usize, large: usize| large == 2 * small || large + 1 == 2 * small;
    side(small.0, large.0) && side(small.1, large.1)
}

fn is_pair(graph: &Graph, readers: &HashMap<ValueId, Vec<NodeId>>, roots: &[ValueId], id: NodeId) -> bool {
    let node = graph.node(id);
    let two_sources = |&reader: &NodeId| {
        let reader = graph.node(reader);
        let first = reader.inputs.first() == Some(&node.outputs[0]);
        let alone = reader.inputs.iter().skip(1).all(|input| roots[input.0 as usize] != node.outputs[0]);
        first && alone && matches!(reader.op, Op::Conv2d { .. } | Op::GroupNorm { .. })
    };
    matches!(node.op, Op::Concat)
        && node.inputs.iter().all(|&input| is_there(graph, roots, input))
        && readers.get(&node.outputs[0]).is_some_and(|readers| readers.iter().all(two_sources))
}

/// Whether what a value holds is in memory, and will still be there when others read it in the place of what was made
/// of it.
fn is_there(graph: &Graph, roots: &[ValueId], value: ValueId) -> bool {
    let stays = |buffer: BufferId| {
        let stores = |node: &Node| matches!(node.op, Op::Store { buffer: stored, .. } if stored == buffer);
        !graph.nodes.iter().any(stores)
    };
    match graph.producer(roots[value.0 as usize]).op {
        Op::Concat => false,
        Op::Load { buffer, .. } => stays(buffer),
        _ => true,
    }
}

/// Numbers the bodies, and says for every node in which one it stands.
pub(super) fn number_bodies(items: &[Item], last: &mut usize, body: &mut [usize]) {
    let own = *last;
    for item in items {
        match item {
            Item::Node(id) => body[id.0 as usize] = own,
            Item::ForEachSample(inner) | Item::If(_, inner) => {
                *last += 1;
                number_bodies(inner, last, body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Activation, Builder, Row};
    use crate::tensor::DType;

    const SAME: (usize, Padding) = (1, Padding::all(1));

    fn words(graph: &Graph) -> Vec<String> {
        fuse(graph).describe(graph).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_residual_block_writes_what_its_norms_and_its_shortcut_read_and_nothing_else() {
        let mut b = Builder::new();
        let io = b.buffer("x", [1, 4, 4, 8], DType::F32);
        let out = b.buffer("y", [1, 4, 4, 16], DType::F32);
        let x = b.load(io, Row::All).unwrap();
        let h = b.group_norm("norm1", x, (2, 1e-5), Some(Activation::Silu)).unwrap();
        let h = b.conv2d("conv1", h, (16, 3), SAME, true).unwrap();
        let time = b.param("time", [1, 16], crate::ir::Layout::Plain).unwrap();
        let h = b.push("shift", Op::AddChannels, &[h, time]).unwrap();
        let h = b.group_norm("norm2", h, (2, 1e-5), Some(Activation::Silu)).unwrap();
        let h = b.conv2d("conv2", h, (16, 3), SAME, true).unwrap();
        let x = b.conv2d("shortcut", x, (16, 1), (1, Padding::NONE), true).unwrap();
        let y = b.add("add", x, h).unwrap();
        b.store(y, out, Row::All).unwrap();
        let graph = b.finish();
        assert_eq!(words(&graph), ["conv1 <- conv2d + add_channels", "conv2 <- conv2d + add"]);
    }

    #[test]
    fn what_is_read_twice_is_written() {
        let mut b = Builder::new();
        let io = b.buffer("x", [4, 8], DType::F32);
        let x = b.load(io, Row::All).unwrap();
        let h = b.linear("fc", x, 8, true).unwrap();
        let y = b.activate("act", h, Activation::Gelu).unwrap();
        let dx = b.push("act.grad", Op::ActivateBwd(Activation::Gelu), &[h, y]).unwrap();
        b.store(dx, io, Row::All).unwrap();
        assert!(words(&b.finish()).is_empty());
    }

    #[test]
    fn a_product_is_rounded_where_its_gradient_wants_it_whether_it_is_kept_or_made_again() {
        for again in [false, true] {
            let mut b = Builder::new();
            let io = b.buffer("x", [4, 8], DType::F32);
            let x = b.load(io, Row::All).unwrap();
            let h = b.linear("fc", x, 8, true).unwrap();
            let y = b.activate("act", h, Activation::Gelu).unwrap();
            let h = if again { b.linear("fc", x, 8, true).unwrap() } else { h };
            let dx = b.push("act.grad", Op::ActivateBwd(Activation::Gelu), &[h, y]).unwrap();
            b.store(dx, io, Row::All).unwrap();
            assert!(words(&b.finish()).is_empty());
        }
    }

    #[test]
    fn a_gate_is_taken_in_where_all_readers_of_the_weights_see_the_same_rows() {
        for (read_by_another, groups) in [(false, &["fc <- linear + geglu"][..]), (true, &[])] {
            let mut b = Builder::new();
            let io = b.buffer("x", [4, 8], DType::F32);
            let out = b.buffer("y", [4, 8], DType::F32);
            let x = b.load(io, Row::All).unwrap();
            let h = b.linear("fc", x, 16, true).unwrap();
            let y = b.push("gate", Op::Geglu, &[h]).unwrap();
            let h = b.linear("fc", x, 16, true).unwrap();
            let dh = b.push("gate.grad", Op::GegluBwd, &[h, y]).unwrap();
            let weight = b.param("fc.weight", [16, 8], crate::ir::Layout::Plain).unwrap();
            let other = if read_by_another { b.affine("other", dh, 2.0, 0.0).unwrap() } else { dh };
            let dx = b.push("fc.grad", Op::LinearBwd, &[other, weight]).unwrap();
            b.store(dx, out, Row::All).unwrap();
            assert_eq!(words(&b.finish()), groups);
        }
    }

    #[test]
    fn a_member_does_not_run_after_its_operand_was_overwritten() {
        let mut b = Builder::new();
        let io = b.buffer("x", [4, 8], DType::F32);
        let x = b.load(io, Row::All).unwrap();
        let h = b.linear("fc", x, 8, true).unwrap();
        let other = b.affine("other", x, 2.0, 0.0).unwrap();
        b.store(other, io, Row::All).unwrap();
        let y = b.activate("act", h, Activation::Gelu).unwrap();
        b.store(y, io, Row::All).unwrap();
        assert!(words(&b.finish()).is_empty());
    }

    #[test]
    fn upsampling_by_two_goes_into_the_convolution_and_other_factors_do_not() {
        for (height, folds) in [(8, true), (7, true), (6, false), (12, false)] {
            let mut b = Builder::new();
            let io = b.buffer("x", [1, 4, 4, 8], DType::F32);
            let out = b.buffer("y", [1, height, 8, 8], DType::F32);
            let x = b.load(io, Row::All).unwrap();
            let x = b.push("nearest", Op::Upsample { height, width: 8 }, &[x]).unwrap();
            let y = b.conv2d("conv", x, (8, 3), SAME, true).unwrap();
            b.store(y, out, Row::All).unwrap();
            let expected: &[&str] = if folds { &["conv <- upsample + conv2d"] } else { &[] };
            assert_eq!(words(&b.finish()), expected);
        }
    }

    #[test]
    fn copies_and_first_images_that_all_readers_find_elsewhere_are_not_made() {
        for (start, read_by_another, found) in [(0, false, 3), (0, true, 2), (1, false, 2)] {
            let mut b = Builder::new();
            let io = b.buffer("x", [2, 4, 4, 8], DType::F32);
            let out = b.buffer("y", [2, 16, 8], DType::F32);
            let x = b.load(io, Row::All).unwrap();
            let wide = b.conv2d("wide", x, (8, 3), SAME, true).unwrap();
            let one = b.push("one", Op::SliceBatch { start, len: 1 }, &[wide]).unwrap();
            let h = b.group_norm("norm", one, (2, 1e-5), None).unwrap();
            let h = b.reshape(h, [1, 16, 8]).unwrap();
            let q = b.linear("q", h, 8, true).unwrap();
            let kv = b.reshape(wide, [2, 16, 8]).unwrap();
            let kv = b.linear("kv", kv, 16, true).unwrap();
            let rows = Op::RepeatBatch { times: 2 };
            let [qs, hs] = [("qs", q), ("hs", h)].map(|(name, x)| b.push(name, rows.clone(), &[x]).unwrap());
            let o = b.attention("attention", &[qs, kv], 2, false).unwrap();
            let o = b.linear("out", o, 8, true).unwrap();
            let mut y = b.add("add", hs, o).unwrap();
            if read_by_another {
                y = b.add("and", y, qs).unwrap();
            }
            b.store(y, out, Row::All).unwrap();
            let graph = b.finish();
            assert_eq!(fuse(&graph).in_place.len(), found, "{}", fuse(&graph).describe(&graph));
        }
    }

    #[test]
    fn a_concat_that_only_norms_and_convolutions_read_owns_no_bytes() {
        for read_by_another in [false, true] {
            let mut b = Builder::new();
            let io = b.buffer("x", [1, 4, 4, 8], DType::F32);
            let out = b.buffer("y", [1, 4, 4, 16], DType::F32);
            let x = b.load(io, Row::All).unwrap();
            let joined = b.push("concat", Op::Concat, &[x, x]).unwrap();
            let h = b.group_norm("norm", joined, (2, 1e-5), None).unwrap();
            let y = if read_by_another { b.add("add", h, joined).unwrap() } else { h };
            b.store(y, out, Row::All).unwrap();
            let graph = b.finish();
            assert_eq!(fuse(&graph).pairs.len(), usize::from(!read_by_another));
        }
    }
}
