//! A step as launches: a plain value, the same for every device that runs it.

use super::choice::Choice;
use super::params::StepState;
use super::{Cost, Launch, Packing, Storage, Weight, from_bytes, to_bytes};
use crate::error::{Error, Result};
use crate::ir::{BufferId, Flag, Once};
use crate::plan::{ALIGN, Needs, StepProgram};
use crate::tensor::{DType, Shape};

/// One step (or the encoding of a text, or the decoding of latents) as launches. It needs the memory that
/// [`super::Space`] lists; what runs in which order is [`LaunchProgram::body`].
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchProgram {
    pub storage: Storage,
    /// One of [`crate::manifest::TARGETS`].
    pub target: &'static str,
    pub body: Vec<LaunchStage>,
    pub arena_bytes: usize,
    /// Bytes of the arena that are alive at the busiest moment: no arena can be smaller.
    pub live_bytes: usize,
    pub weights: Vec<Weight>,
    /// By [`BufferId`].
    pub buffers: Vec<DeviceBuffer>,
    /// Tiles that one launch makes in parts, at most: each wants a u32.
    pub counters: usize,
}

/// A named buffer on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceBuffer {
    pub name: String,
    pub shape: Shape,
    pub dtype: DType,
}

impl DeviceBuffer {
    pub fn bytes(&self) -> usize {
        self.shape.count() * self.dtype.bytes()
    }

    fn takes(&self, count: usize) -> Result<()> {
        if self.shape.count() == count {
            return Ok(());
        }
        Err(Error::Bug(format!("buffer `{}` does not take {count} elements", self.name)))
    }
}

/// A piece of the body, in running order.
#[derive(Clone, Debug, PartialEq)]
pub enum LaunchStage {
    Run(Vec<LaunchStep>),
    /// Launches inside find the sample's index in the state; nothing else in them depends on it.
    ForEachSample {
        samples: usize,
        body: Vec<LaunchStage>,
    },
    /// The flag of a sample is the number at its index in an f32 buffer: not zero runs the body.
    If(Flag, Vec<LaunchStage>),
}

/// One launch and what it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchStep {
    /// The path of the graph's node.
    pub node: String,
    pub launch: Launch,
    /// Its share of the work of the node, where that takes several launches.
    pub cost: Cost,
    /// What was chosen for the node; none where elements only change their place.
    pub choice: Option<Choice>,
}

impl LaunchProgram {
    /// A part of the body: the step's own, or what was hoisted out of it.
    pub fn part(&self, hoisted: Option<Once>) -> Vec<&LaunchStage> {
        let mut stages = Vec::new();
        for stage in &self.body {
            match (stage, hoisted) {
                (LaunchStage::If(Flag::Once(found), body), Some(once)) if *found == once => {
                    stages.extend(body);
                }
                (LaunchStage::If(Flag::Once(_), _), _) | (_, Some(_)) => {}
                (stage, None) => stages.push(stage),
            }
        }
        stages
    }

    /// All launches of a part in running order, as if every loop ran once and every flag were set.
    pub fn steps_of(&self, hoisted: Option<Once>) -> Vec<&LaunchStep> {
        Self::flat(self.part(hoisted))
    }

    /// All launches of all parts.
    pub fn steps(&self) -> Vec<&LaunchStep> {
        Self::flat(&self.body)
    }

    fn flat<'p>(stages: impl IntoIterator<Item = &'p LaunchStage>) -> Vec<&'p LaunchStep> {
        fn walk<'p>(stages: &'p [LaunchStage], steps: &mut Vec<&'p LaunchStep>) {
            for stage in stages {
                match stage {
                    LaunchStage::Run(run) => steps.extend(run),
                    LaunchStage::ForEachSample { body, .. } | LaunchStage::If(_, body) => walk(body, steps),
                }
            }
        }
        let mut steps = Vec::new();
        stages.into_iter().for_each(|stage| walk(std::slice::from_ref(stage), &mut steps));
        steps
    }

    /// The same program with every launch replaced.
    pub fn map(&self, mut change: impl FnMut(&Launch) -> Launch) -> Self {
        fn stages(all: &[LaunchStage], change: &mut dyn FnMut(&Launch) -> Launch) -> Vec<LaunchStage> {
            let stage = |stage: &LaunchStage| match stage {
                LaunchStage::Run(run) => {
                    let step = |s: &LaunchStep| LaunchStep { launch: change(&s.launch), ..s.clone() };
                    LaunchStage::Run(run.iter().map(step).collect())
                }
                LaunchStage::ForEachSample { samples, body } => {
                    LaunchStage::ForEachSample { samples: *samples, body: stages(body, change) }
                }
                LaunchStage::If(flag, body) => LaunchStage::If(*flag, stages(body, change)),
            };
            all.iter().map(stage).collect()
        }
        Self { body: stages(&self.body, &mut change), ..self.clone() }
    }

    /// The buffer of that name.
    pub fn buffer(&self, name: &str) -> Option<(BufferId, &DeviceBuffer)> {
        let index = self.buffers.iter().position(|buffer| buffer.name == name)?;
        Some((BufferId(index as u32), &self.buffers[index]))
    }

    /// A buffer of numbers and the bytes that put `data` there.
    pub fn encode(&self, name: &str, data: &[f32]) -> Result<(BufferId, Vec<u8>)> {
        let (id, buffer) = self.find(name, false)?;
        buffer.takes(data.len())?;
        Ok((id, to_bytes(buffer.dtype, data)))
    }

    /// The same for a buffer of indices.
    pub fn encode_indices(&self, name: &str, data: &[i32]) -> Result<(BufferId, Vec<u8>)> {
        let (id, buffer) = self.find(name, true)?;
        buffer.takes(data.len())?;
        Ok((id, bytemuck::cast_slice(data).to_vec()))
    }

    /// The numbers of a buffer; `read` gets its bytes.
    pub fn decode(&self, name: &str, read: impl FnOnce(BufferId) -> Result<Vec<u8>>) -> Result<Vec<f32>> {
        let (id, buffer) = self.find(name, false)?;
        Ok(from_bytes(buffer.dtype, &read(id)?))
    }

    /// A buffer of numbers, or of indices.
    fn find(&self, name: &str, indices: bool) -> Result<(BufferId, &DeviceBuffer)> {
        let found = self.buffer(name).filter(|(_, buffer)| (buffer.dtype == DType::I32) == indices);
        found.ok_or_else(|| Error::Bug(format!("no such buffer `{name}`")))
    }

    /// Bytes of all weights in one piece of memory.
    pub fn weight_bytes(&self) -> usize {
        self.weights.last().map_or(0, |last| last.offset + last.bytes)
    }

    /// What tells the weights apart, and their bytes.
    pub fn weight_names(&self) -> Vec<(String, usize)> {
        let name = |weight: &Weight| match weight.packing {
            Packing::Plain => weight.param.name.clone(),
            packing => format!("{} {packing:?}", weight.param.name),
        };
        self.weights.iter().map(|weight| (name(weight), weight.bytes.next_multiple_of(ALIGN))).collect()
    }

    /// What it takes besides what the plan of `step` says, which it was made of: copies and workspaces that find no
    /// room in the plan's arena.
    pub fn needs(&self, step: &StepProgram) -> Needs {
        Needs { scratch_bytes: self.arena_bytes - step.arena_bytes, weights: self.weight_names() }
    }

    /// Bytes of [`super::Space::State`]: all zero but for the state, before the first step.
    pub fn state_bytes(&self) -> usize {
        size_of::<StepState>() + self.counters * size_of::<u32>()
    }

    pub fn buffer_bytes(&self) -> usize {
        self.buffers.iter().map(DeviceBuffer::bytes).sum()
    }

    /// Work of one step in which every flag is set, without what was hoisted out of it; what a loop holds
    /// counts once a sample.
    pub fn cost(&self) -> Cost {
        self.cost_of(None)
    }

    /// The same of any part.
    pub fn cost_of(&self, hoisted: Option<Once>) -> Cost {
        fn walk(stage: &LaunchStage, times: u64, sum: &mut Cost) {
            match stage {
                LaunchStage::Run(run) => run.iter().for_each(|step| *sum += step.cost.times(times)),
                LaunchStage::ForEachSample { samples, body } => {
                    body.iter().for_each(|stage| walk(stage, times * *samples as u64, sum));
                }
                LaunchStage::If(_, body) => body.iter().for_each(|stage| walk(stage, times, sum)),
            }
        }
        let mut sum = Cost::default();
        self.part(hoisted).into_iter().for_each(|stage| walk(stage, 1, &mut sum));
        sum
    }
}
