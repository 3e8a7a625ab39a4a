//! Group norms whose statistics the kernel that makes their operand takes along: they need not read it twice, and
//! their gradients find what they left. What is made again for a gradient is measured again, so that its bits are
//! those of what is kept.

use std::collections::HashSet;

use super::Storage;
use super::norms::{self, GroupNorm, Stats, TileStats};
use super::params::DevicePtr;
use crate::ir::{Fusion, Graph, Op, ValueId};

/// Values whose statistics a group norm would use, if whoever makes them gives them: those that it reads as images of
/// the very extents that they are made in, alone or beside another one.
pub(super) fn wanted(graph: &Graph, fusion: &Fusion, storage: Storage) -> HashSet<ValueId> {
    let roots = graph.view_roots();
    let mut wanted = HashSet::new();
    for id in graph.order() {
        let node = graph.node(id);
        let (Op::GroupNorm { groups, eps, act } | Op::GroupNormBwd { groups, eps, act }) = node.op else {
            continue;
        };
        let read = node.inputs[0];
        let sources = fusion.sources(graph, read).unwrap_or(&node.inputs[..1]);
        let x = graph.shape(read);
        let channels = |i: usize| sources.get(i).map_or(0, |&source| graph.shape(source).last());
        let (pixels, c) = (x.rows() / x[0], [channels(0), channels(1)]);
        let norm = GroupNorm { storage, n: x[0], measured: x[0], pixels, c, groups, eps, act };
        let some = TileStats { at: DevicePtr::NONE, rows: 1 };
        if let norms::Form::General(_) = norms::choose(&norm, Stats::Each([Some(some), None])) {
            continue;
        }
        for &source in sources {
            let (made, seen) = (roots[source.0 as usize], graph.shape(source));
            let as_made = graph.shape(made)[0] == seen[0] && graph.shape(made).last() == seen.last();
            if as_made {
                wanted.insert(made);
                // Copies have those of what they are of.
                if let Op::RepeatBatch { .. } = graph.producer(made).op {
                    wanted.insert(roots[graph.producer(made).inputs[0].0 as usize]);
                }
            }
        }
    }
    wanted
}
