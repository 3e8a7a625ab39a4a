//! How any device runs launches one at a time: in order, loops and branches decided by whoever drives it.

use super::params::DevicePtr;
use super::{LaunchProgram, LaunchStage, LaunchStep, Location, Space, relocate};
use crate::error::Result;
use crate::ir::{BufferId, Flag};
use crate::plan::StepState;

/// What a device must be able to do.
pub trait Executor {
    /// Runs one launch, or queues it behind those before.
    fn launch(&mut self, step: &LaunchStep) -> Result<()>;

    /// The sample that launches find in the state from now on.
    fn set_sample(&mut self, sample: usize) -> Result<()>;

    /// Whether the number at `index` of a buffer is not zero once all launches before are done.
    fn flag(&mut self, buffer: BufferId, index: usize) -> Result<bool>;
}

/// Runs stages in order.
pub fn execute(stages: &[LaunchStage], state: &StepState, on: &mut dyn Executor) -> Result<()> {
    walk(stages, state, 0, on)
}

/// Runs what was hoisted, if it is to run at that step, and nothing else: the rest is done by other means.
pub fn execute_hoisted(stages: &[LaunchStage], state: &StepState, on: &mut dyn Executor) -> Result<()> {
    let mut hoisted = stages.iter().filter(|stage| matches!(stage, LaunchStage::If(Flag::Once(_), _)));
    hoisted.try_for_each(|stage| walk(std::slice::from_ref(stage), state, 0, on))
}

fn walk(stages: &[LaunchStage], state: &StepState, sample: usize, on: &mut dyn Executor) -> Result<()> {
    for stage in stages {
        match stage {
            LaunchStage::Run(run) => run.iter().try_for_each(|step| on.launch(step))?,
            LaunchStage::ForEachSample { samples, body } => {
                for sample in 0..*samples {
                    on.set_sample(sample)?;
                    walk(body, state, sample, on)?;
                }
            }
            LaunchStage::If(flag, body) => {
                let runs = match flag {
                    Flag::Once(_) => state.fresh,
                    Flag::Window => state.window,
                    Flag::Sample(buffer) => on.flag(*buffer, sample)?,
                };
                if runs {
                    walk(body, state, sample, on)?;
                }
            }
        }
    }
    Ok(())
}

/// Where a device has what a program needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub arena: DevicePtr,
    pub state: DevicePtr,
    /// By index in [`LaunchProgram::weights`].
    pub weights: Vec<DevicePtr>,
    /// By index in [`LaunchProgram::buffers`].
    pub buffers: Vec<DevicePtr>,
}

impl Addresses {
    /// Where a location of a lowered program is.
    pub fn of(&self, location: Location) -> DevicePtr {
        let base = match location.space {
            Space::Arena => self.arena,
            Space::State => self.state,
            Space::Weight(index) => self.weights[index as usize],
            Space::Buffer(index) => self.buffers[index as usize],
            Space::Scratch(_) => unreachable!("in a lowered program all scratch has its place"),
        };
        DevicePtr(base.0 + location.offset)
    }
}

impl LaunchProgram {
    /// The same with addresses in place of symbols.
    pub fn at(&self, addresses: &Addresses) -> Self {
        self.map(|launch| relocate(launch, |location| addresses.of(location)))
    }

    /// Indices of the weights, the largest first: the copy on the host that reading one takes is then never on
    /// top of the whole.
    pub fn largest_weights_first(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.weights.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.weights[i].bytes));
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Once;

    /// Writes down what it is told.
    #[derive(Default)]
    struct Listener {
        said: Vec<String>,
        open: Vec<bool>,
    }

    impl Executor for Listener {
        fn launch(&mut self, step: &LaunchStep) -> Result<()> {
            self.said.push(step.node.clone());
            Ok(())
        }

        fn set_sample(&mut self, sample: usize) -> Result<()> {
            self.said.push(sample.to_string());
            Ok(())
        }

        fn flag(&mut self, buffer: BufferId, index: usize) -> Result<bool> {
            self.said.push(format!("?{}[{index}]", buffer.0));
            Ok(self.open[index])
        }
    }

    #[test]
    fn a_body_runs_once_a_sample_and_a_branch_asks_its_own_flag() {
        let run = |node: &str| {
            let launch = super::super::Launch {
                kernel: &crate::manifest::KERNELS[0],
                grid: [1; 3],
                params: Vec::new(),
                addresses: 0,
                maps: Vec::new(),
            };
            let step = LaunchStep { node: node.to_owned(), launch, cost: Default::default(), choice: None };
            LaunchStage::Run(vec![step])
        };
        let gated = LaunchStage::If(Flag::Sample(BufferId(5)), vec![run("back")]);
        let body = vec![run("look"), gated];
        let guard = LaunchStage::If(Flag::Window, vec![LaunchStage::ForEachSample { samples: 2, body }]);
        let once = LaunchStage::If(Flag::Once(Once::Prompt), vec![run("texts")]);
        let stages = [once, run("step"), guard, run("end")];
        let state = |fresh, window| StepState { fresh, window, ..StepState::default() };
        let mut listener = Listener { open: vec![false, true], ..Default::default() };
        execute(&stages, &state(false, true), &mut listener).expect("nothing fails");
        assert_eq!(listener.said, ["step", "0", "look", "?5[0]", "1", "look", "?5[1]", "back", "end"]);
        let mut listener = Listener::default();
        execute(&stages, &state(true, false), &mut listener).expect("nothing fails");
        assert_eq!(listener.said, ["texts", "step", "end"]);
        for (fresh, said) in [(true, &["texts"][..]), (false, &[])] {
            let mut listener = Listener::default();
            execute_hoisted(&stages, &state(fresh, true), &mut listener).expect("nothing fails");
            assert_eq!(listener.said, said);
        }
    }
}
