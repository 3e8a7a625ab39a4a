//! Results that are made in the buffer that they are stored in, so that storing them takes no launch.

use std::collections::HashMap;

use super::types::{Types, root};
use super::unit::Unit;
use crate::error::Result;
use crate::ir::{BufferId, Graph, NodeId, Op, Row, ValueId};
use crate::plan::{Slot, Stage, StepProgram};

/// Values that are made in a buffer, and the stores that find them there.
#[derive(Default)]
pub(super) struct Direct {
    pub made: HashMap<ValueId, BufferId>,
    pub done: Vec<NodeId>,
}

impl Direct {
    /// A whole buffer takes a value of its own type, if it is stored once and if nobody reads what it held before
    /// from where the value is made on to where it is stored.
    pub fn of(step: &StepProgram, types: &Types) -> Result<Self> {
        let mut direct = Self::default();
        direct.stages(step, types, &step.body)?;
        Ok(direct)
    }

    fn stages(&mut self, step: &StepProgram, types: &Types, stages: &[Stage]) -> Result<()> {
        for stage in stages {
            match stage {
                Stage::Run(run) => self.run(step, types, run)?,
                Stage::ForEachSample(body) | Stage::If(_, body) => self.stages(step, types, body)?,
            }
        }
        Ok(())
    }

    fn run(&mut self, step: &StepProgram, types: &Types, run: &[NodeId]) -> Result<()> {
        let graph = &step.graph;
        for (at, &id) in run.iter().enumerate() {
            let node = graph.node(id);
            let Op::Store { buffer, row: Row::All } = node.op else { continue };
            let value = root(graph, node.inputs[0]);
            let fits = matches!(step.slot(value), Slot::Arena { .. })
                && types.value(value) == types.buffer(buffer)
                && !self.made.contains_key(&value)
                && stores(graph, buffer) == 1;
            let maker = run[..at].iter().position(|&maker| graph.node(maker).outputs.contains(&value));
            let Some(maker) = maker.filter(|_| fits) else { continue };
            let mut is_free = true;
            for &between in &run[maker..at] {
                is_free &= !reads(step, between, buffer)?;
            }
            if is_free {
                self.made.insert(value, buffer);
                self.done.push(id);
            }
        }
        Ok(())
    }
}

fn stores(graph: &Graph, buffer: BufferId) -> usize {
    let into = |op: &Op| matches!(*op, Op::Store { buffer: stored, .. } if stored == buffer);
    graph.order().into_iter().filter(|&id| into(&graph.node(id).op)).count()
}

/// Whether what runs where `id` stands reads a buffer.
fn reads(step: &StepProgram, id: NodeId, buffer: BufferId) -> Result<bool> {
    let graph = &step.graph;
    let of_buffer = |value: ValueId| matches!(graph.producer(root(graph, value)).op, Op::Load { buffer: read, .. } if read == buffer);
    let node = graph.node(id);
    if let Op::Store { .. } = node.op {
        return Ok(of_buffer(node.inputs[0]));
    }
    let unit = Unit::of(graph, &step.fusion, id)?;
    let mut sources = unit.reads().flat_map(|(value, _)| match step.slot(value) {
        Slot::Passing => graph.producer(value).inputs.clone(),
        _ => vec![value],
    });
    Ok(sources.any(of_buffer))
}
