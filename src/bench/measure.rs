//! Launches on a device: what they compute is looked at first, then how long they take.
//!
//! A launch is measured as part of the operation or group that it belongs to ([`super::pieces`]), with operands of
//! the model's sizes. The device runs the whole piece, the CPU backend the same on the same operands, and every element
//! is judged ([`super::judge`]). Only then launches are timed, one kind at a time, and afterwards the piece runs once
//! more and must give the same bits. A launch for which any of this fails gets no time.
//!
//! A batch of launches is a graph like that of a step: on sm_90 and newer each begins before the one in front has ended
//! and waits by itself, so that its fill hides behind the other's end. That is what a launch adds to a step, and less
//! than it takes alone.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::kernels::{Case, Key};
use super::operands::{self, state};
use super::pieces::{Piece, pieces};
use super::statistics::Times;
use crate::backend::WeightSource;
use crate::cuda::{CudaDevice, Gpu, Plan, Workbench};
use crate::error::{Error, Result};
use crate::ir::BufferId;
use crate::launch::{LaunchProgram, Storage, from_bytes};
use crate::plan::{Fuse, StepProgram};

/// How measurements are made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub warm_up: Duration,
    pub duration: Duration,
    /// Operands stay where the last launch left them, in the cache as far as they fit.
    pub hot: bool,
}

/// Batches at least, whatever the duration is: below, percentiles mean nothing.
const FEWEST_BATCHES: usize = 20;
const MOST_COPIES: usize = 256;
/// Memory that copies of operands take at most, besides the first.
const MOST_BYTES_OF_COPIES: usize = 4 << 30;

/// What became of a launch.
#[derive(Clone, Debug)]
pub enum Measurement {
    Timed(Box<Timed>),
    /// No time, and why.
    Without(String),
}

#[derive(Clone, Debug)]
pub struct Timed {
    pub times: Times,
    /// Launches of a batch, whose mean is one measurement.
    pub batch: usize,
    /// Copies of the operands that launches go round among.
    pub copies: usize,
    /// Whether what the launch touches of all of them is twice as large as the cache.
    pub cold: bool,
    /// The worst distance from what was wanted, as a share of what is allowed.
    pub of_tolerance: f64,
}

impl Measurement {
    /// Fields for a line of JSON; the case's cost and floor say what a time is worth.
    pub fn json(&self, case: &Case, floor_us: Option<f64>) -> Value {
        let timed = match self {
            Self::Without(reason) => return json!({ "time_us": null, "not_measured": reason }),
            Self::Timed(timed) => timed,
        };
        let time = timed.times.median_us;
        json!({
            "time_us": time,
            "tflops": case.cost.flops as f64 / time / 1e6,
            "gb_per_second": case.cost.bytes as f64 / time / 1e3,
            "of_floor": floor_us.map(|floor| floor / time),
            "times": timed.times,
            "steady": timed.times.warning().is_none(),
            "batch": timed.batch,
            "copies": timed.copies,
            "cold_l2": timed.cold,
            "of_tolerance": timed.of_tolerance,
        })
    }
}

/// Launches of programs on one device.
pub struct Session<'d> {
    device: &'d CudaDevice,
    l2_bytes: usize,
    storage: Storage,
    settings: Settings,
    pieces: Vec<(Piece, LaunchProgram)>,
    /// The piece that has a launch.
    places: HashMap<Key, usize>,
    wanted: HashSet<Key>,
    done: HashMap<Key, Measurement>,
}

impl<'d> Session<'d> {
    /// For the launches of `wanted`, which are those of `steps` on the device.
    pub fn new<'c>(
        (device, gpu): (&'d CudaDevice, &Gpu),
        target: &'static str,
        steps: &[&StepProgram],
        (storage, fuse): (Storage, Fuse),
        wanted: impl IntoIterator<Item = &'c Case>,
        settings: Settings,
    ) -> Result<Self> {
        let mut session = Self {
            device,
            l2_bytes: gpu.l2_bytes,
            storage,
            settings,
            pieces: Vec::new(),
            places: HashMap::new(),
            wanted: wanted.into_iter().map(|case| Key::of(&case.launch)).collect(),
            done: HashMap::new(),
        };
        for piece in pieces(steps.iter().copied())? {
            let program = piece.lower(storage, fuse, target)?;
            for step in program.steps() {
                session.places.entry(Key::of(&step.launch)).or_insert(session.pieces.len());
            }
            session.pieces.push((piece, program));
        }
        Ok(session)
    }

    /// What becomes of one launch; others of its piece are measured by the way.
    ///
    /// # Errors
    /// What leaves the device unusable, with the launch that did it.
    pub fn measure(&mut self, case: &Case) -> Result<Measurement> {
        let key = Key::of(&case.launch);
        if !self.done.contains_key(&key) {
            match self.places.get(&key) {
                Some(&piece) => self.measure_piece(piece)?,
                None => {
                    let reason = "no operation or group by itself has this launch".to_owned();
                    self.done.insert(key.clone(), Measurement::Without(reason));
                }
            }
        }
        self.done.get(&key).cloned().ok_or_else(|| Error::Bug(format!("`{}` was not measured", case.node)))
    }

    fn measure_piece(&mut self, index: usize) -> Result<()> {
        let (piece, program) = &self.pieces[index];
        let mut launches: Vec<(usize, Key)> = Vec::new();
        for (i, step) in program.steps().into_iter().enumerate() {
            let key = Key::of(&step.launch);
            let open = self.wanted.contains(&key) && !self.done.contains_key(&key);
            if open && launches.iter().all(|(_, known)| *known != key) {
                launches.push((i, key));
            }
        }
        let found = match self.run_piece(piece, program, &launches) {
            Ok(found) => found,
            Err(error @ Error::OutOfMemory { .. }) => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        for (i, (_, key)) in launches.into_iter().enumerate() {
            let measurement = match &found {
                Ok(timed) => Measurement::Timed(Box::new(timed[i].clone())),
                Err(reason) => Measurement::Without(reason.clone()),
            };
            self.done.insert(key, measurement);
        }
        Ok(())
    }

    /// Times of launches of a piece, or why there are none.
    fn run_piece(
        &self,
        piece: &Piece,
        program: &LaunchProgram,
        launches: &[(usize, Key)],
    ) -> Result<Result<Vec<Timed>, String>> {
        let steps = program.steps();
        let touched = |&(index, _): &(usize, Key)| steps[index].cost.bytes as usize;
        let bench = self.workbench(program, launches.iter().map(touched).min().unwrap_or(0))?;
        let contents = Contents::of(piece, program, self.storage)?;
        let last = bench.copies() - 1;
        for copy in 0..=last {
            contents.fill(&bench, copy)?;
            bench.run(copy)?;
        }
        let results = read(&bench, program, piece, 0)?;
        let of_tolerance = match contents.judge(piece, program, &results) {
            Ok(share) => share,
            Err(problem) => return Ok(Err(format!("its result is wrong: {problem}"))),
        };
        if read(&bench, program, piece, last)? != results {
            return Ok(Err("its result is another at another place".to_owned()));
        }
        let plan = Plan {
            warm_up: self.settings.warm_up,
            duration: self.settings.duration,
            batches: FEWEST_BATCHES,
        };
        let mut all = Vec::new();
        for launch @ &(index, _) in launches {
            let timing = bench.time(index, &plan)?;
            let Some(times) = Times::of(&timing.batches_us).filter(|times| times.median_us > 0.0) else {
                return Ok(Err("the device's clock did not move".to_owned()));
            };
            let cold = bench.copies() * touched(launch) >= 2 * self.l2_bytes && !self.settings.hot;
            all.push(Timed { times, batch: timing.batch, copies: timing.copies, cold, of_tolerance });
        }
        contents.fill(&bench, 0)?;
        bench.run(0)?;
        if read(&bench, program, piece, 0)? != results {
            return Ok(Err("its result is another after it was timed".to_owned()));
        }
        Ok(Ok(all))
    }

    /// With as many copies as it takes to find nothing in the cache of a launch that touches so many bytes, if there
    /// is room.
    fn workbench(&self, program: &LaunchProgram, touched: usize) -> Result<Workbench> {
        let bytes = Workbench::bytes(program);
        let copies = match self.settings.hot {
            true => 1,
            false => (2 * self.l2_bytes).div_ceil(touched.max(1)).clamp(2, MOST_COPIES),
        };
        let copies = copies.min(1 + MOST_BYTES_OF_COPIES / bytes);
        match Workbench::new(self.device, program, copies) {
            Err(Error::OutOfMemory { .. }) if copies > 1 => Workbench::new(self.device, program, 1),
            bench => bench,
        }
    }
}

/// What a piece's memory holds before it runs, and what it must hold afterwards.
struct Contents {
    weights: Vec<Vec<u8>>,
    /// Without those of results.
    buffers: Vec<Vec<u8>>,
    wanted: Vec<Vec<f32>>,
}

impl Contents {
    fn of(piece: &Piece, program: &LaunchProgram, storage: Storage) -> Result<Self> {
        let operands = piece.operands(storage)?;
        let encode = |(i, operand): (usize, &operands::Value)| {
            let name = format!("in{i}");
            let (_, bytes) = match operand {
                operands::Value::Real(data, _) => program.encode(&name, data)?,
                operands::Value::Index(data) => program.encode_indices(&name, data)?,
            };
            Ok(bytes)
        };
        let source = piece.weights(storage);
        let pack = |weight: &crate::launch::Weight| {
            let mut bytes = Vec::with_capacity(weight.bytes);
            weight.pack_parts(&|part| source.load(&part.name, &part.stored_shape()), &mut |_, packed| {
                bytes.extend_from_slice(packed);
                Ok(())
            })?;
            Ok(bytes)
        };
        Ok(Self {
            weights: program.weights.iter().map(pack).collect::<Result<_>>()?,
            buffers: operands.iter().enumerate().map(encode).collect::<Result<_>>()?,
            wanted: piece.wanted(storage, &operands)?,
        })
    }

    fn fill(&self, bench: &Workbench, copy: usize) -> Result<()> {
        bench.fill(copy, &state(), &self.weights, &self.buffers)
    }

    /// The worst distance of all results as a share of what is allowed, or what is wrong.
    fn judge(&self, piece: &Piece, program: &LaunchProgram, results: &[Vec<u8>]) -> Result<f64, String> {
        let mut worst = 0f64;
        for (i, (class, wanted)) in piece.classes().iter().zip(&self.wanted).enumerate() {
            let dtype = program.buffers[self.buffers.len() + i].dtype;
            let share = class.judge(&from_bytes(dtype, &results[i]), wanted, dtype);
            worst = worst.max(share.map_err(|problem| format!("output {i}: {problem}"))?);
        }
        Ok(worst)
    }
}

/// Bytes of buffers `out{i}`.
fn read(bench: &Workbench, program: &LaunchProgram, piece: &Piece, copy: usize) -> Result<Vec<Vec<u8>>> {
    let first = program.buffers.len() - piece.classes().len();
    (first..program.buffers.len()).map(|i| bench.read(copy, BufferId(i as u32))).collect()
}
