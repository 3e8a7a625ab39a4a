//! Graphs that branch; the struct of `kernels/include/graph.cuh`.

use bytemuck::{Pod, Zeroable};

use super::{DevicePtr, Params, Rules};

/// What decides whether a body runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The step lies inside the guided window.
    Window,
    /// The sample's number in a buffer of f32 is not zero.
    Flag { flags: DevicePtr },
    /// Begins with the first of so many samples.
    First { samples: usize },
    /// Goes on to the next one, if there is one.
    Next { samples: usize },
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ConditionParams {
    pub state: DevicePtr,
    // [samples] f32
    pub flags: DevicePtr,
    // of the driver: whose value is set
    pub handle: u64,
    // 0 window, 1 flag, 2 first, 3 next
    pub kind: i32,
    pub samples: i32,
}
const _: () = assert!(size_of::<ConditionParams>() == 32);

impl ConditionParams {
    pub fn new(condition: Condition, state: DevicePtr, handle: u64) -> Self {
        let (kind, flags, samples) = match condition {
            Condition::Window => (0, DevicePtr::NONE, 0),
            Condition::Flag { flags } => (1, flags, 0),
            Condition::First { samples } => (2, DevicePtr::NONE, samples),
            Condition::Next { samples } => (3, DevicePtr::NONE, samples),
        };
        // Batches are far smaller than 2^31.
        Self { state, flags, handle, kind, samples: samples as i32 }
    }
}

impl Params for ConditionParams {
    const NAME: &'static str = "ConditionParams";
    const ADDRESSES: usize = 2;

    fn check(&self, rules: &mut Rules) {
        rules.given("state", self.state);
        rules.holds("kind", self.kind, (0..=3).contains(&self.kind), "0 to 3");
        if self.kind == 1 {
            rules.given("flags", self.flags);
        }
        if self.kind >= 2 {
            rules.at_least("samples", self.samples, 1);
        }
        let grid = rules.grid;
        rules.holds("grid", format_args!("{grid:?}"), grid == [1, 1, 1], "one block");
    }
}
