//! The busiest moment of a plan, by class.

use super::memory::{Demand, footprint};
use super::schedule::Schedule;
use crate::ir::Graph;

/// What the arena holds at the step where it holds most. The classes add up to the liveness bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Name of the node that runs at that moment; empty for a program of nothing.
    pub step: String,
    /// Values of the forward pass that the backward pass still wants.
    pub kept_bytes: usize,
    /// All other values.
    pub transient_bytes: usize,
    /// What the node needs for itself.
    pub workspace_bytes: usize,
}

impl Peak {
    /// `demands` are those of the schedule: values first, then workspaces.
    pub(super) fn of(graph: &Graph, schedule: &Schedule, demands: &[Demand]) -> Self {
        let mut alive = vec![0isize; schedule.units.len() + 1];
        for demand in demands {
            alive[demand.live.start] += footprint(demand) as isize;
            alive[demand.live.end] -= footprint(demand) as isize;
        }
        let mut most = (0, 0);
        let mut now = 0;
        for (position, change) in alive.iter().enumerate() {
            now += change;
            if now > most.0 {
                most = (now, position);
            }
        }
        let Some(unit) = schedule.units.get(most.1) else { return Self::default() };
        let mut peak = Self::default();
        let last = unit.nodes.last().expect("a unit has a node");
        peak.step.clone_from(&graph.node(*last).name);
        // A value that was made before the gate and is read behind it is kept.
        let behind = |position: usize| schedule.units.get(position).is_some_and(|unit| unit.behind_gate);
        for demand in demands.iter().filter(|demand| demand.live.contains(&most.1)) {
            let kept = !behind(demand.live.start) && behind(demand.live.end - 1);
            *(if kept { &mut peak.kept_bytes } else { &mut peak.transient_bytes }) += footprint(demand);
        }
        if unit.workspace > 0 {
            peak.workspace_bytes = unit.workspace.next_multiple_of(super::memory::ALIGN);
            peak.transient_bytes -= peak.workspace_bytes;
        }
        peak
    }
}
