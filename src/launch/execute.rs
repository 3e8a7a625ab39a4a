//! How any device runs launches one at a time: in order, loops and branches decided by whoever drives it.

use super::params::DevicePtr;
use super::{LaunchProgram, LaunchStage, LaunchStep, Location, Space, relocate};
use crate::error::Result;
use crate::ir::{BufferId, Flag};

/// What a device must be able to do.
pub trait Executor {
    /// Runs one launch, or queues it behind those before.
    fn launch(&mut self, step: &LaunchStep) -> Result<()>;

    /// The sample that launches find in the state from now on.
    fn set_sample(&mut self, sample: usize) -> Result<()>;

    /// Whether the number at `index` of a buffer is not zero once all launches before are done.
    fn flag(&mut self, buffer: BufferId, index: usize) -> Result<bool>;
}

/// Runs stages in order. `window` says whether the step lies inside the guided window.
pub fn execute(stages: &[LaunchStage], window: bool, on: &mut dyn Executor) -> Result<()> {
    walk(stages, window, 0, on)
}

fn walk(stages: &[LaunchStage], window: bool, sample: usize, on: &mut dyn Executor) -> Result<()> {
    for stage in stages {
        match stage {
            LaunchStage::Run(run) => run.iter().try_for_each(|step| on.launch(step))?,
            LaunchStage::ForEachSample { samples, body } => {
                for sample in 0..*samples {
                    on.set_sample(sample)?;
                    walk(body, window, sample, on)?;
                }
            }
            LaunchStage::If(flag, body) => {
                let runs = match flag {
                    Flag::Window => window,
                    Flag::Sample(buffer) => on.flag(*buffer, sample)?,
                };
                if runs {
                    walk(body, window, sample, on)?;
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
    fn of(&self, location: Location) -> DevicePtr {
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
            let step = LaunchStep { node: node.to_owned(), launch, cost: Default::default(), steady: false };
            LaunchStage::Run(vec![step])
        };
        let gated = LaunchStage::If(Flag::Sample(BufferId(5)), vec![run("back")]);
        let body = vec![run("look"), gated];
        let guard = LaunchStage::If(Flag::Window, vec![LaunchStage::ForEachSample { samples: 2, body }]);
        let stages = [run("step"), guard, run("end")];
        let mut listener = Listener { open: vec![false, true], ..Default::default() };
        execute(&stages, true, &mut listener).expect("nothing fails");
        assert_eq!(listener.said, ["step", "0", "look", "?5[0]", "1", "look", "?5[1]", "back", "end"]);
        let mut listener = Listener::default();
        execute(&stages, false, &mut listener).expect("nothing fails");
        assert_eq!(listener.said, ["step", "end"]);
    }
}
