//! Reverse-mode differentiation from graph to graph.
//!
//! Only data gradients, and only along the paths that lead from the wanted inputs to the given
//! results: weights are frozen, and what does not depend on a wanted input is never differentiated.
//! The gradient nodes go into the body that is open in the builder, in running order.

mod rules;

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::ir::{Builder, Op, ValueId};

/// Pulls cotangents back: for every `wrt` value the sum over `seeds` `(result, cotangent)` of
/// J^T cotangent, with J = d result / d wrt. `None` where no result depends on it.
///
/// # Errors
/// [`crate::Error::NotDifferentiable`] if a path runs through an operand without a derivative.
pub fn pull_back(
    b: &mut Builder,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    let active = depending_on(b, wrt);
    let mut cotangents: HashMap<ValueId, ValueId> = HashMap::new();
    for &(result, cotangent) in seeds {
        accumulate(b, &mut cotangents, result, cotangent)?;
    }
    // Operands are always made before their readers, so from the last node to the first every cotangent
    // is complete when its node is reached.
    let nodes = b.graph().nodes.len();
    for index in (0..nodes).rev() {
        let node = b.graph().nodes[index].clone();
        let incoming: Vec<_> = node.outputs.iter().map(|output| cotangents.get(output).copied()).collect();
        let wanted: Vec<_> = node.inputs.iter().map(|input| active.contains(input)).collect();
        if incoming.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        for (input, cotangent) in rules::pull_back(b, &node, &incoming, &wanted)? {
            accumulate(b, &mut cotangents, node.inputs[input], cotangent)?;
        }
    }
    Ok(wrt.iter().map(|value| cotangents.get(value).copied()).collect())
}

/// All values that are computed from `wrt`, and `wrt` themselves.
fn depending_on(b: &Builder, wrt: &[ValueId]) -> HashSet<ValueId> {
    let mut active: HashSet<ValueId> = wrt.iter().copied().collect();
    for node in &b.graph().nodes {
        let source = matches!(node.op, Op::Param { .. } | Op::Load { .. });
        if !source && node.inputs.iter().any(|input| active.contains(input)) {
            active.extend(&node.outputs);
        }
    }
    active
}

fn accumulate(
    b: &mut Builder,
    cotangents: &mut HashMap<ValueId, ValueId>,
    value: ValueId,
    more: ValueId,
) -> Result<()> {
    let sum = match cotangents.get(&value) {
        Some(&so_far) => {
            let name = format!("{}.grad.sum", b.graph().producer(value).name);
            b.add(&name, so_far, more)?
        }
        None => more,
    };
    cotangents.insert(value, sum);
    Ok(())
}
