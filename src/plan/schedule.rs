//! A graph as the planner sees it: what runs one after the other, what each reads and writes of the arena.

use std::collections::HashMap;
use std::ops::Range;

use super::memory::Demand;
use super::storage::Storage;
use crate::ir::{Cost, Flag, Fusion, Graph, Item, NodeId, Op, ValueId};

/// One place in the order of running: a node, or a group of nodes that run as one.
#[derive(Clone, Debug)]
pub struct Unit {
    /// In running order; the last one names the unit.
    pub nodes: Vec<NodeId>,
    /// Values of the arena, each once.
    pub reads: Vec<ValueId>,
    pub writes: Vec<ValueId>,
    pub workspace: usize,
    pub flops: u64,
    /// Index into [`Schedule::loops`].
    pub in_loop: Option<usize>,
    /// Whether it runs only where a sample's gate is open: the backward pass.
    pub behind_gate: bool,
}

/// Everything that runs, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub units: Vec<Unit>,
    /// Units of every for-each-sample body.
    pub loops: Vec<Range<usize>>,
    /// For every value the one that it is a view of.
    pub roots: Vec<ValueId>,
    /// The unit that writes a value, for those that the arena holds.
    pub maker: HashMap<ValueId, usize>,
    /// Bytes of every value.
    pub bytes: Vec<usize>,
}

impl Schedule {
    pub fn new(graph: &Graph, fusion: &Fusion, storage: Storage) -> Self {
        let values = (0..graph.values.len() as u32).map(ValueId);
        let mut schedule = Self {
            units: Vec::new(),
            loops: Vec::new(),
            roots: graph.view_roots(),
            maker: HashMap::new(),
            bytes: values.map(|value| storage.value_bytes(graph, value)).collect(),
        };
        schedule.walk(graph, fusion, storage, &graph.body, (None, false));
        schedule
    }

    fn walk(
        &mut self,
        graph: &Graph,
        fusion: &Fusion,
        storage: Storage,
        items: &[Item],
        (in_loop, behind_gate): (Option<usize>, bool),
    ) {
        for item in items {
            match item {
                Item::Node(id) if fusion.runs(graph, *id) => {
                    let nodes = fusion.members(*id);
                    let mut unit = Unit {
                        reads: Vec::new(),
                        writes: graph.node(*id).outputs.clone(),
                        workspace: 0,
                        flops: 0,
                        in_loop,
                        behind_gate,
                        nodes,
                    };
                    for &member in &unit.nodes {
                        let node = graph.node(member);
                        unit.flops += Cost::of(graph, node, 1).flops;
                        unit.workspace += storage.workspace_bytes(graph, node);
                        for &input in &node.inputs {
                            self.read(graph, fusion, input, &mut unit.reads);
                        }
                    }
                    for &write in &unit.writes {
                        self.maker.insert(write, self.units.len());
                    }
                    self.units.push(unit);
                }
                Item::Node(_) => {}
                Item::ForEachSample(body) => {
                    let (index, first) = (self.loops.len(), self.units.len());
                    self.loops.push(first..first);
                    self.walk(graph, fusion, storage, body, (Some(index), behind_gate));
                    self.loops[index].end = self.units.len();
                }
                Item::If(flag, body) => {
                    let gated = behind_gate || matches!(flag, Flag::Sample(_));
                    self.walk(graph, fusion, storage, body, (in_loop, gated));
                }
            }
        }
    }

    /// The arena's values behind an operand: none for weights and buffers, those of its sources where it is read from
    /// there.
    fn read(&self, graph: &Graph, fusion: &Fusion, operand: ValueId, reads: &mut Vec<ValueId>) {
        let root = self.roots[operand.0 as usize];
        let node = graph.producer(root);
        match node.op {
            Op::Param { .. } | Op::Load { .. } => {}
            _ if fusion.sources(graph, root).is_some() => {
                node.inputs.iter().for_each(|&source| self.read(graph, fusion, source, reads));
            }
            _ if !fusion.is_materialised(root) || reads.contains(&root) => {}
            _ => reads.push(root),
        }
    }

    /// What the arena has to hold and when: the values with their owners, then the workspaces.
    pub fn demands(&self) -> (Vec<ValueId>, Vec<Demand>) {
        let mut live: HashMap<ValueId, Range<usize>> = HashMap::new();
        for (position, unit) in self.units.iter().enumerate() {
            for &write in &unit.writes {
                live.insert(write, position..position + 1);
            }
            for read in &unit.reads {
                if let Some(range) = live.get_mut(read) {
                    range.end = self.last_read(range.start, position);
                }
            }
        }
        // In the order of the values, so that equal graphs get equal plans.
        let mut owners: Vec<ValueId> = live.keys().copied().collect();
        owners.sort();
        let values = owners
            .iter()
            .map(|owner| Demand { bytes: self.bytes[owner.0 as usize], live: live[owner].clone() });
        let workspaces = self.units.iter().enumerate().filter(|(_, unit)| unit.workspace > 0);
        let workspaces = workspaces.map(|(i, unit)| Demand { bytes: unit.workspace, live: i..i + 1 });
        let demands = values.chain(workspaces).collect();
        (owners, demands)
    }

    /// The end of the life of a value that was made at `start` and is read at `position`: a value from outside
    /// that a loop reads must survive until the loop's last round has read it.
    pub fn last_read(&self, start: usize, position: usize) -> usize {
        match self.units[position].in_loop {
            Some(index) if start < self.loops[index].start => self.loops[index].end,
            _ => position + 1,
        }
    }
}
