//! The general form of every operation, on the table of cases.

use std::sync::Arc;

use bytemuck::bytes_of;
use unguide::ir::Op;
use unguide::launch::params::{DevicePtr, StepState};
use unguide::launch::{Operand, Storage, general, kinds};
use unguide::simt::Simt;

use super::{Output, Prepared, Proof, Wanted, put, rounded};
use crate::support::cases::all;
use crate::support::{Case, Class, Value, run};

/// Few blocks, so that loops over the grid go round.
const MOST_BLOCKS: u32 = 5;

pub fn proofs() -> Vec<Proof> {
    let proof = |trial: Trial| {
        let (name, small, trial) = (trial.case.name.clone(), trial.is_small(), Arc::new(trial));
        let same = Arc::clone(&trial);
        Proof::new(name, small, move |simt, storage| trial.prepare(simt, storage), move |s| same.wanted(s))
    };
    Trial::all().into_iter().map(proof).collect()
}

/// One case with its operands, and what is wanted of it.
struct Trial {
    case: Case,
    operands: Vec<Value<f32>>,
}

impl Trial {
    /// Every case that a kernel exists for, and some whose operands no table can say.
    fn all() -> Vec<Self> {
        let plain = |case: Case| Self { operands: case.operands(), case };
        let mut trials: Vec<Self> =
            all().into_iter().map(plain).filter(|t| kinds(&t.case.op).is_some()).collect();
        let copies = |wanted: fn(&Op) -> bool| -> Vec<Self> {
            all().into_iter().filter(|case| wanted(&case.op)).map(plain).collect()
        };
        for mut trial in copies(|op| matches!(op, Op::DdimUnguide { .. })) {
            trial.case.state.sigma = 0.0;
            trial.case.name += " without noise";
            if trial.operands.len() == 5 {
                // Behind a shut gate nothing is looked at, not even NaN.
                let shut = trial.operands[3].real().data()[0] == 0.0;
                let Value::Real(g) = &mut trial.operands[4] else { unreachable!("g is real") };
                g.data_mut()[0] = if shut { f32::NAN } else { 0.0 };
            }
            trials.push(trial);
        }
        for mut trial in copies(|op| matches!(op, Op::DdimUnguide { .. } | Op::GuideEps { .. })) {
            trial.case.state.window = false;
            trial.case.name += " outside of the window";
            trials.push(trial);
        }
        for (what, bad) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("zeros", 0.0)] {
            for mut trial in copies(|op| matches!(op, Op::ClipCosine { .. })) {
                trial.case.name += &format!(" with {what}");
                let Value::Real(e) = &mut trial.operands[0] else { unreachable!("e is real") };
                if bad == 0.0 {
                    e.data_mut().fill(0.0)
                } else {
                    e.data_mut()[0] = bad
                }
                trials.push(trial);
            }
        }
        trials
    }

    /// Tile and edge shapes run in every way, larger ones once.
    fn is_small(&self) -> bool {
        let operands: usize = self.operands.iter().map(|x| x.shape().count()).sum();
        let work = match self.case.class {
            Class::Contracted(k) => k * self.case.output_shapes()[0].count(),
            _ => 0,
        };
        operands < 9_000 && work < 400_000
    }

    /// The operands as the kernel sees them.
    fn rounded(&self, storage: Storage) -> Vec<Value<f32>> {
        let kinds = kinds(&self.case.op).expect("a case with a kernel").inputs;
        let pairs = self.operands.iter().zip(kinds.chars());
        pairs.map(|(value, kind)| if kind == 't' { rounded(value, storage) } else { value.clone() }).collect()
    }

    fn prepare(&self, simt: &mut Simt, storage: Storage) -> Prepared {
        let op = &self.case.op;
        let kinds = kinds(op).expect("a case with a kernel");
        let mut inputs = Vec::new();
        for (i, (value, kind)) in self.operands.iter().zip(kinds.inputs.chars()).enumerate() {
            // Without noise there may be no buffer for it.
            let silent = matches!(op, Op::DdimUnguide { .. }) && i == 2 && self.case.state.sigma == 0.0;
            let at =
                if silent { DevicePtr::NONE } else { put(simt, value, (kind == 't').then_some(storage)) };
            inputs.push(Operand { at, shape: value.shape().clone() });
        }
        let (mut operands, mut outputs) = (Vec::new(), Vec::new());
        for (shape, kind) in self.case.output_shapes().into_iter().zip(kinds.outputs.chars()) {
            let output = Output::new(simt, &shape, (kind == 't').then_some(storage));
            operands.push(Operand { at: output.at, shape });
            outputs.push(output);
        }
        let state = simt.put(bytes_of(&StepState::from(&self.case.state)));
        let launch = general(op, storage, MOST_BLOCKS, state, &inputs, &operands).expect("a case is legal");
        Prepared { launches: vec![launch], outputs, ..Prepared::default() }
    }

    fn wanted(&self, storage: Storage) -> Vec<Wanted> {
        let Case { op, state, class, .. } = &self.case;
        let pairs = run(op, &self.rounded(storage), state).into_iter().zip(run(op, &self.operands, state));
        let wanted = pairs.enumerate().map(|(i, (rounded, exact))| {
            // Gates and states are numbers that mean words.
            let is_word = matches!(op, Op::ClipCosine { .. }) && (i == 2 || i == 4);
            let class = if is_word { Class::Exact } else { *class };
            let around = matches!(op, Op::TimestepEmbedding { .. }).then_some(1.0);
            Wanted { around, ..Wanted::new(rounded, exact, class) }
        });
        wanted.collect()
    }
}
