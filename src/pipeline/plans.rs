//! All programs of a generation, planned before a weight is read, and the memory that they take together.
//!
//! Programs run one after the other and share one arena. Texts are encoded first, and with them the concepts;
//! their weights and buffers are gone before the step's are loaded. What is in memory at once:
//!
//! | phase | weights | arena and scratch | buffers |
//! |---|---|---|---|
//! | texts | text encoder | its own | its own |
//! | concepts | the guard's text tower | its own | its own |
//! | images | UNet, decoder, vision tower | the larger of step and decode | those of step and decode |

use std::collections::{BTreeMap, HashSet};
use std::ops::Add;

use super::blueprint::Blueprint;
use super::model::Model;
use super::programs::{self, Steering, StepSpec};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ir::{Cost, Flag, Graph, Item};
use crate::passes;
use crate::plan::{Fit, Fuse, Needs, Param, Planner, StepProgram, Storage};

/// Whom the plans are for.
pub struct Target<'a> {
    pub storage: Storage,
    pub fuse: Fuse,
    pub needs: Box<NeedsOf<'a>>,
    /// Weights that stay in the pages of a mapped file.
    pub mapped: Box<dyn Fn(&Param) -> bool + 'a>,
    /// The prompt's text encoder stays in memory while images are made, as a server would have it. One copy
    /// of every weight: a guard's text tower of the same sizes is the same tower.
    pub keep_text: bool,
}

/// What a device says of a program; an error where it cannot run it.
pub type NeedsOf<'a> = dyn Fn(&StepProgram) -> Result<Needs> + 'a;

impl<'a> Target<'a> {
    /// A run of a model on a backend: texts go before images are made.
    pub fn of(model: &'a Model, backend: &'a dyn Backend) -> Self {
        let (storage, fuse) = backend.storage();
        let needs = |program: &StepProgram| backend.needs(program);
        let mapped = |param: &Param| model.maps(backend, param);
        Self { storage, fuse, needs: Box::new(needs), mapped: Box::new(mapped), keep_text: false }
    }
}

/// A program, and what its device says that it needs.
struct Loaded<'a> {
    program: &'a StepProgram,
    needs: Needs,
}

impl<'a> Loaded<'a> {
    fn of(program: &'a StepProgram, target: &Target<'_>) -> Result<Self> {
        Ok(Self { program, needs: (target.needs)(program)? })
    }
}

/// The programs of a generation.
#[derive(Clone, Debug)]
pub struct Plans {
    pub text: StepProgram,
    /// For methods with concepts.
    pub concepts: Option<StepProgram>,
    pub step: StepProgram,
    pub decode: StepProgram,
}

/// What is in memory at the busiest moment of a generation, and what of it the rest could do without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights in memory of ours.
    pub weights_bytes: usize,
    /// Weights in the pages of mapped files: page cache, which the system takes back when it is short, and not in
    /// the total.
    pub mapped_bytes: usize,
    /// Results of the forward pass that wait for the backward pass.
    pub kept_bytes: usize,
    /// All other activations.
    pub live_bytes: usize,
    /// What operations need for themselves while they run.
    pub workspace_bytes: usize,
    /// Bytes of the arena that hold nothing at the busiest moment.
    pub waste_bytes: usize,
    /// Named buffers, which outlive a step.
    pub buffer_bytes: usize,
    /// The node that runs at the busiest moment.
    pub peak_step: String,
    /// Second runs of one step of the whole batch, and everything that it runs.
    pub extra_flops: u64,
    pub step_flops: u64,
}

impl Memory {
    /// All that is allocated.
    pub fn total_bytes(&self) -> usize {
        self.weights_bytes + self.kept_bytes + self.transient_bytes()
    }

    /// All that is neither a weight nor kept for the backward pass.
    pub fn transient_bytes(&self) -> usize {
        self.live_bytes + self.workspace_bytes + self.waste_bytes + self.buffer_bytes
    }

    fn of_phase(weights: Held, programs: &[&Loaded<'_>]) -> Self {
        let busiest = programs.iter().max_by_key(|one| one.program.arena_bytes + one.needs.scratch_bytes);
        let Some(Loaded { program: busiest, needs }) = busiest else { return Self::default() };
        let arena = programs.iter().map(|one| one.program.arena_bytes).max().unwrap_or(0);
        let peak = &busiest.peak;
        Self {
            weights_bytes: weights.allocated,
            mapped_bytes: weights.mapped,
            kept_bytes: peak.kept_bytes,
            live_bytes: peak.transient_bytes,
            workspace_bytes: peak.workspace_bytes + needs.scratch_bytes,
            waste_bytes: arena - peak.kept_bytes - peak.transient_bytes - peak.workspace_bytes,
            buffer_bytes: programs.iter().map(|one| one.program.buffer_bytes()).sum(),
            peak_step: peak.step.clone(),
            extra_flops: 0,
            step_flops: 0,
        }
    }
}

impl Plans {
    /// Plans everything within `limit` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the smallest limit that works, and what takes most of it.
    pub fn new(
        blueprint: &Blueprint,
        spec: &StepSpec,
        target: &Target<'_>,
        limit: Option<usize>,
    ) -> Result<Self> {
        let drafts = Drafts::new(blueprint, spec, target)?;
        let Some(limit) = limit else { return drafts.plain() };
        drafts.within(limit, spec, target)
    }

    /// All plans that are worth having, from the one without a limit to the smallest.
    pub fn frontier(blueprint: &Blueprint, spec: &StepSpec, target: &Target<'_>) -> Result<Vec<Self>> {
        let drafts = Drafts::new(blueprint, spec, target)?;
        let steps = drafts.step.frontier()?;
        Ok(steps.into_iter().map(|step| Self { step, ..drafts.rest.clone() }).collect())
    }

    /// The busiest moment of all phases.
    pub fn memory(&self, spec: &StepSpec, target: &Target<'_>) -> Result<Memory> {
        let loaded = |program| Loaded::of(program, target);
        let [text, step, decode] = [loaded(&self.text)?, loaded(&self.step)?, loaded(&self.decode)?];
        let texts = weights(&[&text], target);
        let kept = if target.keep_text { texts } else { Held::default() };
        let images = kept + weights(&[&step, &decode], target);
        let mut phases = vec![Memory::of_phase(texts, &[&text]), Memory::of_phase(images, &[&step, &decode])];
        if let Some(concepts) = &self.concepts {
            let concepts = loaded(concepts)?;
            let towers = if target.keep_text { vec![&text, &concepts] } else { vec![&concepts] };
            phases.push(Memory::of_phase(weights(&towers, target), &[&concepts]));
        }
        let most = phases.into_iter().max_by_key(Memory::total_bytes).expect("there are two phases");
        let (all, second) = (flops(&self.step.graph, spec.batch), self.step.extra_flops);
        Ok(Memory { extra_flops: second * spec.batch as u64, step_flops: all, ..most })
    }
}

/// How often a plan that meets its budget, but not with what its operations need for themselves, is made smaller.
const TRIES: usize = 4;
/// And by how much more than what is too much, in parts of its room.
const MARGIN: usize = 200;

/// Graphs that are not planned yet, and plans that no limit changes.
struct Drafts {
    step: Planner,
    /// All programs, the step's without a limit.
    rest: Plans,
}

impl Drafts {
    fn new(blueprint: &Blueprint, spec: &StepSpec, target: &Target<'_>) -> Result<Self> {
        let planner = |graph: Graph| Planner::new(passes::run_all(graph)?, target.storage, target.fuse);
        let concepts = match (&spec.steering, &blueprint.clip) {
            (Steering::X0(_) | Steering::Xt { .. }, Some(clip)) => {
                Some(planner(programs::embed_text(&clip.text)?)?.plan()?)
            }
            _ => None,
        };
        let step = Planner::new(blueprint.step(spec)?, target.storage, target.fuse)?;
        let rest = Plans {
            text: planner(programs::encode_text(&blueprint.text, spec.tokens)?)?.plan()?,
            concepts,
            decode: planner(programs::decode(&blueprint.decoder, spec.height, spec.width)?)?.plan()?,
            step: step.plan()?,
        };
        Ok(Self { step, rest })
    }

    fn plain(self) -> Result<Plans> {
        Ok(self.rest)
    }

    fn within(self, limit: usize, spec: &StepSpec, target: &Target<'_>) -> Result<Plans> {
        let total = |plans: &Plans| Ok::<_, Error>(plans.memory(spec, target)?.total_bytes());
        if total(&self.rest)? <= limit {
            return self.plain();
        }
        // All but the step's arena and what its operations need for themselves.
        let phase = [&self.rest.step, &self.rest.decode].map(|program| program.buffer_bytes());
        let [step, decode] = [&self.rest.step, &self.rest.decode].map(|program| Loaded::of(program, target));
        let step = step?;
        let text = match target.keep_text {
            true => weights(&[&Loaded::of(&self.rest.text, target)?], target),
            false => Held::default(),
        };
        let held = text + weights(&[&step, &decode?], target);
        let fixed = phase.iter().sum::<usize>() + held.allocated + step.needs.scratch_bytes;
        let mut room = limit.saturating_sub(fixed);
        let mut plans = self.rest;
        for _ in 0..TRIES {
            let fit = self.step.within(room)?;
            let smallest = matches!(fit, Fit::Smallest(_));
            let (Fit::Fits(step) | Fit::Smallest(step)) = fit;
            plans.step = *step;
            let over = total(&plans)?.saturating_sub(limit);
            if over == 0 {
                return Ok(plans);
            }
            if smallest {
                break;
            }
            // A smaller arena may leave smaller gaps for workspaces.
            room = room.saturating_sub(over + room / MARGIN);
        }
        let memory = plans.memory(spec, target)?;
        let activations = memory.kept_bytes + memory.live_bytes + memory.waste_bytes;
        let parts = [
            (memory.weights_bytes, "the weights".to_owned()),
            (activations, format!("activations, at `{}`", memory.peak_step)),
            (memory.workspace_bytes, format!("the workspace of `{}`", memory.peak_step)),
            (memory.buffer_bytes, "the buffers".to_owned()),
        ];
        let (most, what) = parts.iter().max_by_key(|(bytes, _)| *bytes).expect("there are four");
        Err(Error::OutOfMemory {
            what: format!("this run does not fit into {limit} bytes, not even by the smallest plan"),
            needed_bytes: memory.total_bytes() as u64,
            hint: format!("; most of them, {most}, are {what}"),
        })
    }
}

/// Bytes of weights.
#[derive(Clone, Copy, Default)]
struct Held {
    allocated: usize,
    mapped: usize,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { allocated: self.allocated + other.allocated, mapped: self.mapped + other.mapped }
    }
}

/// Bytes of the weights of several programs, each once.
fn weights(programs: &[&Loaded<'_>], target: &Target<'_>) -> Held {
    let mut held = BTreeMap::new();
    for Loaded { program, needs } in programs {
        let mapped = program.params.iter().filter(|param| (target.mapped)(param));
        let mapped: HashSet<&str> = mapped.map(|param| param.name.as_str()).collect();
        for (name, bytes) in &needs.weights {
            let (name, bytes) = (name.as_str(), *bytes);
            let one = match mapped.contains(name) {
                true => Held { mapped: bytes, allocated: 0 },
                false => Held { allocated: bytes, mapped: 0 },
            };
            // The towers of texts go by different names but are one where both are in memory.
            let name = if target.keep_text { tower(name) } else { name };
            held.insert((name, bytes), one);
        }
    }
    held.into_values().fold(Held::default(), Add::add)
}

/// The name of a weight inside its text tower.
fn tower(name: &str) -> &str {
    let inside = ["text_encoder.", "clip."].iter().find_map(|prefix| name.strip_prefix(prefix));
    inside.filter(|name| name.starts_with("text_model.")).unwrap_or(name)
}

/// Contractions of one step; a for-each-sample body counts `batch` times, a gate as open. What was hoisted out
/// of the step does not count.
fn flops(graph: &Graph, batch: usize) -> u64 {
    fn of(graph: &Graph, items: &[Item], batch: u64) -> u64 {
        let item = |item: &Item| match item {
            Item::Node(id) => Cost::of(graph, graph.node(*id), 1).flops,
            Item::ForEachSample(body) => batch * of(graph, body, batch),
            Item::If(Flag::Once(_), _) => 0,
            Item::If(_, body) => of(graph, body, batch),
        };
        items.iter().map(item).sum()
    }
    of(graph, &graph.body, batch as u64)
}
